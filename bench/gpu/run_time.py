"""A rule that is made at run time, on the device: the time until its first step, its speed, and its results.

``python bench/gpu/run_time.py [--json FILE] [--cpu]``

Adam as a Python function is traced, registered and compiled by NVRTC; then again under another name, from the cached
file of the first time. Both are compared with the kernel of the library. Two rules with reductions, over tensors and
over rows and columns, are compared with a copy of as many bytes as their passes move (bench/reductions.py). ``--cpu``:
a trial run, in which all are interpreted.
"""

# ruff: noqa: E402  # modules of other folders are found first
from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import Record, find_modules, write_json

find_modules("bench")

import adaptk
import torch
from reductions import STREAMS, shape_of
from rules_at_run_time import make

REPEATS = 20
REDUCING = ("lamb", "adafactor")
FORMATS = ("float32", "bfloat16")


def until_first_step(name: str, buffers: Sequence[Any], wait: Callable[[], None]) -> tuple[adaptk.TracedRule, float]:
    """The rule, and the time of tracing, registering and its first step, in seconds."""
    begin = time.perf_counter()
    made = make(name)
    made(*buffers, step=1)
    wait()
    return made, time.perf_counter() - begin


def step_time(step: Callable[[], None], wait: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def buffers_of(size: int, device: str, dtype: str = "float32") -> list[Any]:
    values = [torch.linspace(a, a + 1, size) for a in (1.0, -0.5, 0.1, 0.2)]
    return [values[0].to(device, getattr(torch, dtype)), *(v.to(device) for v in values[1:])]


def equal_bits(made: adaptk.TracedRule, size: int, device: str, dtype: str) -> bool:
    """Whether the results are those of the library's rule on the CPU, with which all its kernels agree."""
    ours, want = buffers_of(size, device, dtype), buffers_of(size, "cpu", dtype)
    for step in (1, 2, 3):
        made(*ours, step=step, weight_decay=0.1)
        adaptk.ops.adam(*want, step=step, weight_decay=0.1)
    return all(torch.equal(a.cpu(), b) for a, b in zip(ours, want, strict=True))


def reducing(name: str, size: int, device: str, wait: Callable[[], None]) -> Record:
    """The times of a step and of a copy, and whether the step has the CPU's bits."""
    results = []
    for where in (device, "cpu"):
        params = [torch.linspace(-1, 1, 1007 * 131, device=where).reshape(1007, 131) for _ in range(2)]
        opt = adaptk.optimizer_for(name, params[:1])
        for _ in range(2):
            opt.step(params[1:])
        results.append(params[0].cpu())
    shape = shape_of(name, size)
    param, grad = (torch.full(shape, 0.1, device=device) for _ in range(2))
    opt = adaptk.optimizer_for(name, [param])
    source, target = (torch.zeros(size * STREAMS[name] // 2, device=device) for _ in range(2))
    return {
        "rule": name,
        "shape": list(shape),
        "seconds": step_time(lambda: opt.step([grad]), wait),
        "copy_seconds": step_time(lambda: target.copy_(source), wait),
        "equal": torch.equal(*results),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 1 if bits differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args(argv)
    device, size = ("cpu", 1 << 12) if options.cpu else ("cuda", 1 << 26)
    wait = (lambda: None) if options.cpu else torch.cuda.synchronize
    buffers = buffers_of(size, device)
    adaptk.ops.adam(*buffers, step=1)  # so that the device and the library's kernels are loaded
    found: Record = {"size": size, "complete": False}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAPTK_CACHE"] = folder
        made, first = until_first_step("first_adam", buffers, wait)
        again, second = until_first_step("second_adam", buffers, wait)
        library = step_time(lambda: adaptk.ops.adam(*buffers, step=5), wait)
        found |= {
            "first_step_seconds": first,
            "first_step_from_file_seconds": second,
            "speed": library / step_time(lambda: made(*buffers, step=5), wait),
            "equal": {dtype: equal_bits(made, 10_007, device, dtype) for dtype in FORMATS},
        }
        made.unregister()
        again.unregister()
        found["reducing"] = [reducing(name, size, device, wait) for name in REDUCING]
    found["complete"] = True
    print(found)
    if options.json is not None:
        write_json(options.json, found)
    return 0 if all([*found["equal"].values(), *(r["equal"] for r in found["reducing"])]) else 1


if __name__ == "__main__":
    sys.exit(main())
