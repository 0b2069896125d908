"""``bench/gradient_release.py`` on a small model. No measured value is asserted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("resource", reason="needs Linux or macOS")

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="only in a checkout")
SIZE = ["--layers", "2", "--width", "16", "--steps", "2"]


def test_every_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("gradient_release")
    threads = torch.get_num_threads()

    def here(layers: int, width: int, steps: int) -> list[dict[str, Any]]:
        """Run everything in this process, whose peak is not meaningful."""
        rows = []
        for way in bench.WAYS:
            assert bench.main([*SIZE, "--way", way]) == 0
            rows.append({"way": way, **json.loads(capsys.readouterr().out)})
        return rows

    monkeypatch.setattr(bench, "measured", here)
    path = tmp_path / "rows.json"
    try:
        assert bench.main([*SIZE, "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(path.read_text())["rows"]
    printed = capsys.readouterr().out
    assert [row["way"] for row in rows] == list(bench.WAYS)
    assert all(row["gradients"] == 2 * 16 * 16 * 4 and row["bytes"] >= 0 and row["way"] in printed for row in rows)
