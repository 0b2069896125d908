"""``bench/quality.py`` with a few steps. No loss is asserted, only that losses fall."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = [pytest.mark.full, pytest.mark.skipif(not BENCH.is_dir(), reason="only in a checkout")]

pytest.importorskip("torch", reason="the models are PyTorch's")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("quality")


@pytest.mark.parametrize("model", ["digits", "characters"])
def test_a_few_steps(bench: Any, model: str, tmp_path: Path) -> None:
    """Every variant trains, from the same start as float32."""
    path = tmp_path / "rows.json"
    assert bench.main(["--models", model, "--seeds", "1", "--steps", "9", "--json", str(path)]) == 0
    rows = {row["variant"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == set(bench.VARIANTS)
    losses = [row["mean"] for row in rows.values()]
    assert max(losses) - min(losses) < 0.2
    assert rows["float32"]["difference"] == 0.0
    # The bits differ from float32's: otherwise the variant would have no effect.
    same = {name for name, row in rows.items() if row["mean"] == rows["float32"]["mean"]}
    assert same == {"float32"}


def test_training_lowers_the_loss(bench: Any) -> None:
    task = bench.digits()
    before = bench.train(task, bench.VARIANTS["float32"], 0, 1)
    assert bench.train(task, bench.VARIANTS["float32"], 0, 60) < before - 0.3


def test_an_unknown_variant(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--variants", "float16x"])
    assert "'float16x' is none of float32, " in capsys.readouterr().err


def test_a_picture(bench: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [bench.Row("digits", name, [1.0, 1.1], 1.05, 0.0, 0.1) for name in bench.VARIANTS]
    bench.plot(rows, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 1000
