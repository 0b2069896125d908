"""``bench/hogwild.py`` on a small size. No measured value is asserted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="only in a checkout")


def test_all_contenders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("hogwild")
    path = tmp_path / "times.json"
    assert bench.main(["--smoke", "--bounds", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    for what in ("linear model", "matrix factorisation"):
        assert what in printed
        assert all(len(t) == 2 and min(t) > 0 for t in found[what]["seconds"].values())
        assert all(len(losses) == 2 for losses in found[what]["losses"].values())
        assert all(0 < loss < 1.5 for losses in found[what]["losses"].values() for loss in losses)
        for way in ("", ", nothing shared"):
            assert found[what]["ratios"]["one thread / 2 threads" + way] > 0
    with pytest.raises(SystemExit):
        bench.main(["--threads", "1"])


def test_shares_of_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts together are all examples, in order."""
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("hogwild")
    x, y = bench.rcv1_shaped(31, features=400, per_row=5)
    parts = bench.shares(x, y, 3)
    assert [part[0][3] for part in parts] == [(10, 400), (10, 400), (11, 400)]
    assert (np.concatenate([part[1] for part in parts]) == y).all()
    for k in (0, 1):
        assert (np.concatenate([part[0][k] for part in parts]) == x[k]).all()
    for part, _ in parts:
        assert part[2][0] == 0
        assert part[2][-1] == len(part[0]) == len(part[1])


def test_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("hogwild")
    (data, indices, starts, shape), labels = bench.rcv1_shaped(300)
    assert shape == (300, 47_236)
    assert (np.diff(starts) == 76).all()
    rows = indices.reshape(300, 76)
    assert (np.diff(rows, axis=1) > 0).all()
    np.testing.assert_allclose((data.reshape(300, 76) ** 2).sum(axis=1), 1, rtol=1e-5)
    assert 0.2 < labels.mean() < 0.8
    counts = np.sort(np.bincount(indices))[::-1]
    assert counts[0] > 290  # the most frequent is in nearly every row
    assert 10 * counts[100] < counts[0]
