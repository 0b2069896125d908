"""``bench/formats.py`` on small sizes. No measured value is asserted."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import adaptk
import pytest

BENCH = Path(__file__).parents[1] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="only in a checkout")
SIZE = 5120  # 40 blocks
GRADIENTS = {"float32": 4, "bfloat16": 2}  # bytes

pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 comes from ml_dtypes")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, restored: None) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    # Remove it from sys.modules, because "formats" is a common name.
    monkeypatch.delitem(sys.modules, "formats", raising=False)
    yield importlib.import_module("formats")
    sys.modules.pop("formats", None)


def rows_of(bench: Any, path: Path, *arguments: str) -> list[dict[str, Any]]:
    assert bench.main(["--size", str(SIZE), "--repeats", "2", "--threads", "1", "--json", str(path), *arguments]) == 0
    report = json.loads(path.read_text())
    assert (report["size"], report["threads"]) == (SIZE, 1)
    assert report["machine"]["version"] == adaptk.__version__
    rows: list[dict[str, Any]] = report["rows"]
    for row in rows:
        assert row["nanoseconds_per_parameter"] > 0
        assert row["over_float32"] > 0
    return rows


def test_formats_of_adam(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(bench, tmp_path / "rows.json", "--alone")
    byte = 1 + 4 / 128
    states = {
        "float32": 8,
        "bfloat16": 4,
        "bfloat16_sr": 4,
        "float16_sr": 4,
        "8bit": 2 * byte,
        "8bit_nearest": 2 * byte,
        "8bit_dynamic": 2 * (1 + 4 / 256),
        "fp8_e4m3": 2 * (1 + 4 / 256),
        "4bit": 2 * (1 / 2 + 4 / 128),
        "bfloat16 and 8bit": 2 + byte,
    }
    plain = [r for r in rows if r["params"] == "float32"]
    assert {(r["name"], r["gradients"]): r["bytes_per_parameter"] for r in plain} == {
        (name, kind): 8 + size + 2 * of_states for name, of_states in states.items() for kind, size in GRADIENTS.items()
    }
    params = {"sr": 2, "remainder8": 3, "remainder16": 4, "kahan": 4}
    split = [r for r in rows if r["params"] != "float32"]
    assert {(r["params"], r["name"], r["gradients"]): r["bytes_per_parameter"] for r in split} == {
        (name, kind, kind): 2 * size + size_of * 5
        for name, size in params.items()
        for kind, size_of in GRADIENTS.items()
    }
    assert rows[0]["over_float32"] == 1
    assert all(r["of_ceiling"] > 0 and r["over_torch"] is None for r in rows)
    first, head, *lines, end = capsys.readouterr().out.splitlines()
    assert first.startswith("adam, 5K params, 1 thread, ")
    assert head.split()[:4] == ["states", "params", "gradients", "B/param"]
    assert [" ".join(line.split()[:-7]) for line in lines] == [r["name"] for r in rows]
    assert not end


def test_every_rule(bench: Any, tmp_path: Path) -> None:
    rows = rows_of(bench, tmp_path / "rows.json", "--alone", "--rules", "all")
    assert list(dict.fromkeys(r["rule"] for r in rows)) == list(adaptk.rules())
    plain = [r for r in rows if r["params"] == "float32"]
    formats = {rule: [r["name"] for r in plain if r["rule"] == rule] for rule in ("sgd", "lion", "adam")}
    assert formats["sgd"] == ["float32"] * 2
    assert "8bit" in formats["lion"]
    assert "8bit_nearest" not in formats["lion"]  # it has no second moment, so that would be the same
    assert "8bit_nearest" in formats["adam"]


@pytest.mark.full
def test_baselines(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    rows = rows_of(bench, tmp_path / "rows.json", "--rules", "adam,lion")
    at = {(r["rule"], r["name"]): r for r in rows}
    assert at["adam", bench.FUSED]["over_torch"] == 1
    assert at["adam", bench.FUSED]["bytes_per_parameter"] == 28
    assert ("lion", bench.FUSED) not in at
    said = capsys.readouterr().out
    assert f"left out: {bench.FUSED}: torch has no such rule" in said
    for name in bench.OTHERS:
        assert ("adam", name) in at or f"left out: {name}: not installed" in said


def test_wrong_arguments(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["--rules", "adma"], "adma"), (["--size", "0"], "'0'"), (["--threads", "0"], "0")):
        with pytest.raises(SystemExit) as stopped:
            bench.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
