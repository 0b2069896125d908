"""``bench/offload.py`` and ``adaptk bench --offload`` on a small size. No measured value is asserted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import adaptk
import numpy as np
import pytest
from adaptk import _bench, _core

pytest.importorskip("torch", reason="needs PyTorch")

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.skipif(not BENCH.is_dir(), reason="only in a checkout")
def test_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], restored: None
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    bench = importlib.import_module("offload")
    path = tmp_path / "rows.json"
    arguments = ["--size", "5000", "--tensors", "3", "--repeats", "2", "--threads", "1", "--alone"]
    assert bench.main([*arguments, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    printed = capsys.readouterr().out
    of_offload = ["Offload", "Offload and a read of the gradients", "Offload, clip_norm"]
    assert [row["work"] for row in rows] == ["ceiling", *of_offload]
    for row in rows:
        assert row["work"] in printed
        assert row["seconds"] > 0
        assert row["gigabytes_per_second"] == pytest.approx(28 * 5000 / row["seconds"] / 1e9)
        assert row["seconds_for_8b"] == pytest.approx(row["seconds"] / 5000 * 8_030_261_248)
    assert rows[0]["of_ceiling"] == rows[1]["over_offload"] == 1.0


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, restored: None
) -> None:
    from adaptk import _bench_offload

    monkeypatch.setattr(_bench_offload, "deepspeeds", lambda *_: {})  # which compiles its code
    path = tmp_path / "report.json"
    assert _bench.main(["--offload", "--sizes", "4K", "--repeats", "2", "--threads", "1", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["offload"]
    assert [row["work"] for row in rows][4:] == ["torch, bfloat16 as torchao's", "torch, float32 masters"]
    assert {row["size"] for row in rows} == {4096}
    assert "of ceiling" in capsys.readouterr().out


@pytest.mark.parametrize("count", [0, 16, 48, 16 * 70001])
def test_read_probe(count: int, restored: None) -> None:
    numbers = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32) & np.uint32(0xFF00FF0F)
    memory = np.zeros(count + 16, np.uint32)
    first = -memory.ctypes.data % 64 // 4
    line = memory[first : first + count]
    line[:] = numbers
    expected = int(np.bitwise_or.reduce(numbers.view(np.uint64), initial=np.uint64(0)))
    for threads in (1, 3):
        adaptk.set_num_threads(threads)
        assert _core.read_probe(line.view(np.float32)) == expected


def test_read_probe_rejects_other_buffers() -> None:
    lines = np.zeros(64, np.float32)
    lines = lines[-lines.ctypes.data % 64 // 4 :][:32]
    for buffer in (lines[1:17], lines[:15]):
        with pytest.raises(ValueError, match=r"^buffer: expected whole lines of 64 bytes, aligned$"):
            _core.read_probe(buffer)


@pytest.mark.parametrize("other", ["--overhead", "--isas=portable", "--plot=x.png", "--device=cuda"])
def test_incompatible_options(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _bench.main(["--offload", other])
    assert "--offload" in capsys.readouterr().err or other.startswith("--isas")
