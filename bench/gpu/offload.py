"""Offload on the device: comparison of values with the CPU, and how far copies and the host's step overlap.

``python bench/gpu/offload.py [--json FILE] [--size N] [--cpu]``

A step's time is compared with that of its parts: the same step of params on the host, and the copies of gradients and
params alone. ``adaptk bench --offload --alone`` compares the host's part with memory bandwidth, and is run too.
``--cpu``: a trial run, with params on the CPU.
"""

# first, so that modules of other folders are found
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import adaptk
import adaptk.torch
import torch
from adaptk._bench_offload import measured
from common import Record, write_json

REPEATS = 5
TENSORS = 16
LR = 1e-4
# The mode of gradients, the number of backward passes of a step, and the clipping.
MODES: list[tuple[str, int | None, float | None]] = [
    *(("keep", 1, clip) for clip in (None, 0.5)),
    *(("collect", passes, clip) for passes in (1, 2, None) for clip in (None, 0.5)),
    *(("step", passes, None) for passes in (1, 2)),
]
FORMATS: list[dict[str, Any]] = [{}, {"state_dtype": "8bit", "min_8bit_size": 0}, {"param_format": "remainder16"}]


def _params(device: str, sizes: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(0.5, 1.5, n).to(dtype).to(device)) for n in sizes]


def _backward(params: Sequence[Any], grads: Sequence[Any]) -> None:
    """A backward pass with exactly these gradients, whatever the device's arithmetic."""
    torch.autograd.backward(list(params), [g.to(p.device) for p, g in zip(params, grads, strict=True)])


def _run(device: str, mode: tuple[str, int | None, float | None], options: Record) -> list[Any]:
    kind, passes, clip = mode
    sizes = (1, 3000, 70_001)
    params = _params(device, sizes)
    opt = adaptk.torch.Offload(
        params, adaptk.torch.AdamW, lr=0.01, grads=kind, accumulation_steps=passes, clip_norm=clip, **options
    )
    for t in range(3):
        opt.zero_grad()
        for k in range(passes or 2):
            grads = [torch.cos(torch.arange(n) + 2.0 * t + k).to(torch.bfloat16) for n in sizes]
            _backward(params, grads)
        opt.step()
    found = [p.detach().cpu() for p in params]
    found += [v.cpu() for p in params for v in opt.state[p].values() if isinstance(v, torch.Tensor)]
    opt.close()
    return found


def differences(device: str) -> tuple[int, list[str]]:
    """The number of variants that were run, and those whose results differ from the CPU's."""
    cases = [(mode, options) for mode in MODES for options in (FORMATS if mode[1] == 1 else FORMATS[:1])]
    wrong = []
    for mode, options in cases:
        ours, want = _run(device, mode, options), _run("cpu", mode, options)
        if not all(map(torch.equal, ours, want)):
            wrong.append(f"grads={mode[0]} passes={mode[1]} clip_norm={mode[2]} {options}")
    return len(cases), wrong


def _median(step: Callable[[], None], wait: Callable[[], None]) -> float:
    times = []
    for i in range(REPEATS + 1):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        if i > 0:  # the first one allocates buffers for the others
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def times(device: str, size: int, wait: Callable[[], None]) -> Record:
    """The times of a step and of its parts, in seconds."""
    sizes = [size // TENSORS] * TENSORS
    found: Record = {"size": sum(sizes), "threads": adaptk.get_num_threads()}
    for name, place in (("step", device), ("host", "cpu")):
        params = _params(place, sizes)
        for p in params:
            p.grad = torch.full_like(p, 1e-3)
        opt = adaptk.torch.Offload(params, adaptk.torch.AdamW, lr=LR)

        def step(opt: Any = opt) -> None:
            opt.step()
            opt.synchronize()

        found[name] = _median(step, wait)
        opt.close()
        del opt, params, step
    pinned = device != "cpu"
    on_host = [torch.empty(n, dtype=torch.bfloat16, pin_memory=pinned) for n in sizes]
    there = _params(device, sizes)

    def copies() -> None:
        with torch.no_grad():
            for h, d in zip(on_host, there, strict=True):
                h.copy_(d, non_blocking=True)
            for h, d in zip(on_host, there, strict=True):
                d.copy_(h, non_blocking=True)

    found["copies"] = _median(copies, wait)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and measure; the exit status is 1 if values differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args(argv)
    device = "cpu" if options.cpu else "cuda"
    size = options.size or (1 << 14 if options.cpu else 1 << 27)
    wait = (lambda: None) if options.cpu else torch.cuda.synchronize
    cases, wrong = differences(device)
    found: Record = {"cases": cases, "different": wrong, "complete": False}

    def keep() -> None:
        if options.json is not None:
            write_json(options.json, found)

    keep()
    found["times"] = times(device, size, wait)
    keep()
    rows = measured(size // 2, adaptk.get_num_threads(), REPEATS, TENSORS, alone=True)
    found |= {"rows": [asdict(row) for row in rows], "complete": True}
    keep()
    print(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
