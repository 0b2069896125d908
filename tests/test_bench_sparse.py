"""``bench/sparse_rows.py`` on small tables. No measured value is asserted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import adaptk
import numpy as np
import pytest
from adaptk import _core

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="only in a checkout")


def test_every_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], restored: None
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("sparse_rows")
    path = tmp_path / "rows.json"
    assert bench.main(["--smoke", "--threads", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 8
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{row['step_seconds'] * 1e6:.0f} us a step" in printed
        assert row["share_of_floor"] > 0
        assert row["distinct"] < 100


@pytest.mark.parametrize("threads", [1, 2])
def test_the_floor_reads_all_values_and_writes_all_rows(threads: int, restored: None) -> None:
    adaptk.set_num_threads(threads)
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(0, 5000, 3000))
    values = rng.integers(0, 9, (8000, 16)).astype(np.float32)
    streams = [np.zeros((5000, 16), np.float32) for _ in range(3)]
    _core.row_probe(streams, rows, values)
    for s in streams:
        assert s.sum() == values.sum()
        assert not s[np.setdiff1d(np.arange(5000), rows)].any()
        np.testing.assert_array_equal(s[rows[0]], values[: 8000 // len(rows)].sum(0))
