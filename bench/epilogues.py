"""Operations fused with a step into one pass over memory, compared with separate passes, and with torch.

``python bench/epilogues.py [--size 64M] [--threads 2] [--repeats N] [--json FILE] [--alone]``

Adam on float32. All contenders are timed alternately on the same params and gradients. Ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk._bench import _size, dtype_of, interleaved, machine, size_text
from adaptk._cli._parser import whole
from racing.report import threads_text

CLIP, DECAY, LR = 1e9, 0.999, 1e-3


@dataclass(frozen=True)
class Row:
    """One line of the table. Ratios are above 1 if the fused pass is faster."""

    work: str
    fused_nanoseconds_per_parameter: float
    over_separate: float
    over_torch: float | None


class Arrays:
    """The arrays that all contenders share."""

    def __init__(self, size: int) -> None:
        self.param = np.linspace(0.5, 1.5, size, dtype=np.float32)
        self.grad = np.linspace(1e-3, 2e-3, size, dtype=np.float32)
        self.narrow = self.grad.astype(dtype_of("bfloat16"))
        self.copy = np.zeros(size, dtype_of("bfloat16"))
        self.average = self.param.copy()


def own(a: Arrays) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Each operation in two ways: fused with the step, and in separate passes after it."""
    opt = adaptk.Adam([a.param], lr=LR)
    grads = [a.grad]

    def zero() -> None:
        opt.step(grads)
        a.grad.fill(0)

    def clip_zero() -> None:
        opt.step(grads, clip_norm=CLIP)
        a.grad.fill(0)

    def copy() -> None:
        opt.step(grads)
        np.copyto(a.copy, a.param, casting="unsafe")

    def average() -> None:
        opt.step(grads)
        adaptk.ops.sgd(a.param, a.grad, step=1, lr=0.0, ema=(a.average, DECAY))

    def accumulate() -> None:
        adaptk.accumulate(grads, [a.narrow])
        opt.step(grads, clip_norm=CLIP)
        a.grad.fill(0)

    def accumulate_known() -> None:
        norm = adaptk.accumulate(grads, [a.narrow], norm=True)
        opt.step(grads, clip_norm=CLIP, grad_norm=norm, zero_grad=True)

    return {
        "step, zero": (lambda: opt.step(grads, zero_grad=True), zero),
        "clip, step, zero": (lambda: opt.step(grads, clip_norm=CLIP, zero_grad=True), clip_zero),
        "step, copy to bfloat16": (lambda: opt.step(grads, copy_out=[a.copy]), copy),
        "step, average": (lambda: opt.step(grads, ema=([a.average], DECAY)), average),
        "accumulate bfloat16, clip, step, zero": (accumulate_known, accumulate),
    }


def torchs(a: Arrays) -> dict[str, Callable[[], object]]:
    """The same operations with torch's fused step."""
    try:
        import torch
    except ImportError:
        print("left out: torch is not installed")
        return {}
    torch.set_num_threads(adaptk.get_num_threads())
    p = torch.nn.Parameter(torch.from_numpy(a.param))
    p.grad = torch.from_numpy(a.grad)
    narrow = torch.from_numpy(a.narrow.view(np.int16)).view(torch.bfloat16)
    half = torch.from_numpy(a.copy.view(np.int16)).view(torch.bfloat16)
    average = torch.from_numpy(a.average)
    opt = torch.optim.Adam([p], lr=LR, fused=True)

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_([p], CLIP)
        opt.step()
        opt.zero_grad(set_to_none=False)

    def zero() -> None:
        opt.step()
        opt.zero_grad(set_to_none=False)

    def copy() -> None:
        opt.step()
        half.copy_(p.detach())

    def mean() -> None:
        opt.step()
        average.lerp_(p.detach(), 1 - DECAY)

    def accumulate() -> None:
        p.grad.add_(narrow)
        clip()

    return {
        "step, zero": zero,
        "clip, step, zero": clip,
        "step, copy to bfloat16": copy,
        "step, average": mean,
        "accumulate bfloat16, clip, step, zero": accumulate,
    }


def measured(size: int, repeats: int, alone: bool) -> list[Row]:
    a = Arrays(size)
    ours = own(a)
    theirs = {} if alone else torchs(a)
    steps: dict[tuple[str, str], Callable[[], object]] = {}
    for work, (fused, separate) in ours.items():
        steps[work, "fused"], steps[work, "separate"] = fused, separate
        if work in theirs:
            steps[work, "torch"] = theirs[work]
    times = dict(zip(steps, interleaved(list(steps.values()), repeats), strict=True))

    def over(work: str, other: str) -> float | None:
        if (work, other) not in times:
            return None
        return statistics.median(x / y for x, y in zip(times[work, other], times[work, "fused"], strict=True))

    return [
        Row(
            work=work,
            fused_nanoseconds_per_parameter=statistics.median(times[work, "fused"]) / size * 1e9,
            over_separate=over(work, "separate") or 0.0,
            over_torch=over(work, "torch"),
        )
        for work in ours
    ]


def show(rows: Sequence[Row]) -> None:
    print(f"{'':<40}{'ns/param':>10}{'x separate':>12}{'x torch':>9}")
    for r in rows:
        torch = "-" if r.over_torch is None else f"{r.over_torch:.2f}"
        print(f"{r.work:<40}{r.fused_nanoseconds_per_parameter:>10.3f}{r.over_separate:>12.2f}{torch:>9}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/epilogues.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=_size, default="64M", help="elements; default: 64M")
    parser.add_argument("--threads", type=whole(1), default=2, metavar="N", help="default: 2")
    parser.add_argument("--repeats", type=whole(1), default=11, metavar="N", help="rounds; default: 11")
    parser.add_argument("--alone", action="store_true", help="leave out torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table")
    options = parser.parse_args(arguments)
    adaptk.set_num_threads(options.threads)
    print(f"adam, {size_text(options.size)} float32 params, {threads_text(options.threads)}, {adaptk.get_isa()}")
    rows = measured(options.size, options.repeats, options.alone)
    show(rows)
    if options.json:
        report: dict[str, Any] = {
            "size": options.size,
            "threads": options.threads,
            "machine": machine(),
            "rows": list(map(asdict, rows)),
        }
        options.json.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
