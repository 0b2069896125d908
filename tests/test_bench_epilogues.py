"""``bench/epilogues.py`` on a small size. No measured value is asserted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="only in a checkout")

pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 comes from ml_dtypes")


@pytest.mark.parametrize("alone", [True, False])
def test_every_kind_of_work(
    alone: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], restored: None
) -> None:
    if not alone:
        pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("epilogues")
    path = tmp_path / "rows.json"
    arguments = ["--size", "5120", "--repeats", "2", "--threads", "1", "--json", str(path)]
    assert bench.main([*arguments, *(["--alone"] if alone else [])]) == 0
    rows = json.loads(path.read_text())["rows"]
    printed = capsys.readouterr().out
    assert len(rows) == 5
    for row in rows:
        assert row["work"] in printed
        assert row["fused_nanoseconds_per_parameter"] > 0
        assert row["over_separate"] > 0
        assert (row["over_torch"] is None) == alone
