"""The benchmark on a device: what it runs and prints, on tiny sizes. No measurement is asserted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _bench_cuda
from adaptk.__main__ import main
from adaptk._cli._screen import Screen
from device_arrays import Library, Machine
from helpers import FLOATS


class HostClock:
    """Arrays of the tests' library. Its calls are synchronous, so the host's clock can be used."""

    name = "tests"

    def __init__(self, device: Library) -> None:
        self.device = device
        self.copied = 0

    def full(self, size: int, value: float, dtype: str) -> Any:
        return self.device.put(np.full(size, value).astype(FLOATS[dtype]))

    def copy(self, target: Any, source: Any) -> None:
        self.copied += 1

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


@pytest.mark.cuda
def test_every_rule_is_run(device: Library, capsys: pytest.CaptureFixture[str]) -> None:
    using = HostClock(device)
    results = _bench_cuda.run(list(adaptk.rules()), ["float32"], [300], 1, using)
    assert [r.rule for r in results] == list(adaptk.rules())
    for r in results:
        assert r.bytes_per_parameter == 4 * (3 + 2 * len(adaptk.rules()[r.rule].states))
        assert r.seconds > 0
        assert r.of_copy > 0
        assert r.of_ceiling is not None
    assert using.copied > 0
    _bench_cuda.show(Screen(), results)
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert "of copy" in header
    assert [line.split()[0] for line in lines[: len(results)]] == list(adaptk.rules())


@pytest.mark.cuda
def test_types_and_json(device: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_bench_cuda, "library", lambda: HostClock(device))
    arguments = ["--rules", "adam", "--sizes", "100", "--dtypes", "float64,bfloat16", "--repeats", "1", "--json", "-"]
    assert main(["bench", "--device", "cuda", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(r["dtype"], r["bytes_per_parameter"]) for r in report["results"]] == [("float64", 56), ("bfloat16", 22)]
    assert report["results"][1]["of_ceiling"] is None
    assert report["machine"]["devices"] == [
        vars(d) | {"compute_capability": list(d.compute_capability)} for d in adaptk.cuda.devices()
    ]


@pytest.mark.cuda
def test_on_a_real_device(real_device: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda", "--sizes", "1M", "--repeats", "3", "--rules", "adam,lion"]) == 0
    header, _, adam, lion, *_ = capsys.readouterr().out.splitlines()
    assert "of copy" in header
    assert (adam.split()[0], lion.split()[0]) == ("adam", "lion")


def test_message_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptk.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="CUDA"):
        main(["bench", "--device", "cuda"])


@pytest.mark.parametrize("option", [["--isas", "all"], ["--threads", "1"], ["--overhead"], ["--plot", "x.png"]])
def test_options_of_the_cpu_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--device", "cuda", *option])
    assert "about the CPU" in capsys.readouterr().err


def test_torch_times_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="arrays and events are torch's")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a torch that knows it")
    using = _bench_cuda.Torch()
    x = using.full(1000, 1.0, "bfloat16")
    assert using.seconds(lambda: using.copy(x, x.clone()), 3) > 0
