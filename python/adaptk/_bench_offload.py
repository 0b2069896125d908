"""``adaptk bench --offload``: an offloaded AdamW step on the host, compared with memory bandwidth and other libraries.

Gradients and params are bfloat16, master weights and states float32. The ceiling is a kernel that moves as many bytes,
with one addition for each element. All are timed alternately.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import adaptk
from adaptk import _core
from adaptk._bench import interleaved, size_text
from adaptk._cli._parser import CommandError
from adaptk._cli._screen import Cell, Column, Screen

# Bytes moved for each element: the gradient is read, the param written, the master weight and two states both.
BYTES = 2 + 2 + 3 * (4 + 4)
# The number of bfloat16 elements in a cache line.
LINE = 32
# The number of parameters of a typical "8B" model.
LARGE = 8_030_261_248
LR = 1e-4

LEGEND = (
    "of ceiling: speed beside a kernel that moves the same number of bytes with one addition each, in turns, median. "
    f"GB/s: of the {BYTES} bytes a parameter that a step has to move. 8B: the time of a step of {LARGE / 1e9:.2f} "
    "billion parameters at this speed. x Offload: the time beside that of Offload without clipping. A read of the "
    "gradients: as fast as memory gives them, with nothing done to them."
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    seconds: float
    gigabytes_per_second: float
    of_ceiling: float
    seconds_for_8b: float
    over_offload: float


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise CommandError("--offload needs PyTorch: pip install torch") from None
    return torch


def _params(torch: Any, size: int, tensors: int) -> list[Any]:
    """bfloat16 params with `size` elements in all, and their gradients."""
    cuts = [size * k // tensors for k in range(tensors + 1)]
    params = []
    for first, last in itertools.pairwise(cuts):
        p = torch.nn.Parameter(torch.linspace(0.5, 1.5, last - first).to(torch.bfloat16))
        p.grad = torch.linspace(1e-3, 2e-3, last - first).to(torch.bfloat16)
        params.append(p)
    return params


class Probe:
    """A kernel that moves as many bytes: four float32 arrays are read, and three of them written."""

    def __init__(self, size: int) -> None:
        self._buffers = [np.full(size, 0.5, np.float32) for _ in range(4)]

    def __call__(self) -> None:
        _core.bandwidth_probe(self._buffers)


def own(torch: Any, size: int, tensors: int, threads: int) -> dict[str, Callable[[], object]]:
    """The variants of Offload's step."""
    import adaptk.torch

    options: dict[str, Any] = {"lr": LR, "threads": threads}
    stepped = _params(torch, size, tensors)
    step = adaptk.torch.Offload(stepped, adaptk.torch.AdamW, **options)
    lines = [p.grad[: p.grad.numel() // LINE * LINE] for p in stepped]
    params = _params(torch, size, tensors)
    taken = adaptk.torch.Offload(params, adaptk.torch.AdamW, grads="collect", clip_norm=1e9, **options)
    grads = [p.grad for p in params]

    def clipped() -> None:
        """A whole step with clipping: the norms, whose time a backward pass would hide, and then the step."""
        for p, g, slot in zip(params, grads, taken._slots, strict=True):
            p.grad = g
            taken._arrive(slot)
        taken.step()

    def read_first() -> None:
        """The memory traffic that clipping adds to a step, without its arithmetic."""
        for line in lines:
            _core.read_probe(line)
        step.step()

    return {"Offload": step.step, "Offload and a read of the gradients": read_first, "Offload, clip_norm": clipped}


def torchs(torch: Any, size: int, tensors: int) -> dict[str, Callable[[], object]]:
    """torch's fused AdamW in two ways.

    All in bfloat16, with one optimizer per param, as torchao's CPUOffloadOptimizer calls it on the host; and on float32
    master weights, with a conversion of the gradient before the step and of the param after it.
    """
    params = _params(torch, size, tensors)
    alone = [torch.optim.AdamW([p], lr=LR, fused=True) for p in params]
    masters = [torch.nn.Parameter(p.detach().float()) for p in params]
    for p, m in zip(params, masters, strict=True):
        m.grad = p.grad.float()
    opt = torch.optim.AdamW(masters, lr=LR, fused=True)

    def torchao() -> None:
        for o in alone:
            o.step()

    def with_masters() -> None:
        with torch.no_grad():
            for p, m in zip(params, masters, strict=True):
                m.grad.copy_(p.grad)
            opt.step()
            for p, m in zip(params, masters, strict=True):
                p.copy_(m)

    return {"torch, bfloat16 as torchao's": torchao, "torch, float32 masters": with_masters}


def deepspeeds(torch: Any, size: int, tensors: int) -> dict[str, Callable[[], object]]:
    """DeepSpeed's CPUAdam on float32 master weights, with the same conversions; it compiles its code at first use."""
    try:
        adam = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
        params = _params(torch, size, tensors)
        masters = [torch.nn.Parameter(p.detach().float()) for p in params]
        for p, m in zip(params, masters, strict=True):
            m.grad = p.grad.float()
        opt = adam(masters, lr=LR, adamw_mode=True)
    except Exception as error:  # the build of an extension may raise anything
        print(f"left out: DeepSpeed's CPUAdam: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return {}

    def step() -> None:
        with torch.no_grad():
            for p, m in zip(params, masters, strict=True):
                m.grad.copy_(p.grad)
            opt.step()
            for p, m in zip(params, masters, strict=True):
                p.copy_(m)

    return {"DeepSpeed CPUAdam": step}


def measured(size: int, threads: int, repeats: int, tensors: int = 16, alone: bool = False) -> list[Row]:
    """Time Offload and, unless `alone`, the other libraries, alternately with the ceiling."""
    torch = _torch()
    before = adaptk.get_num_threads(), torch.get_num_threads()
    steps: dict[str, Callable[[], object]] = {"ceiling": Probe(size), **own(torch, size, tensors, threads)}
    try:
        adaptk.set_num_threads(threads)
        torch.set_num_threads(threads)
        if not alone:
            steps |= torchs(torch, size, tensors) | deepspeeds(torch, size, tensors)
        times = interleaved(list(steps.values()), repeats)
    finally:
        adaptk.set_num_threads(before[0])
        torch.set_num_threads(before[1])
    of = dict(zip(steps, times, strict=True))

    def ratio(one: str, other: str) -> float:
        return statistics.median(x / y for x, y in zip(of[one], of[other], strict=True))

    return [
        Row(
            work=work,
            seconds=(seconds := statistics.median(of[work])),
            gigabytes_per_second=BYTES * size / seconds / 1e9,
            of_ceiling=ratio("ceiling", work),
            seconds_for_8b=seconds / size * LARGE,
            over_offload=ratio(work, "Offload"),
        )
        for work in of
    ]


def show(screen: Screen, rows: Sequence[Row], size: int, threads: int) -> None:
    columns = [
        Column(f"{size_text(size)} parameters, threads: {threads}", left=True, style="cyan"),
        Column("step"),
        Column("GB/s", drop=1),
        Column("of ceiling", style="bold"),
        Column("8B", drop=2),
        Column("x Offload"),
    ]
    cells: list[list[Cell]] = [
        [
            r.work,
            f"{r.seconds * 1e3:.3g} ms",
            f"{r.gigabytes_per_second:.3g}",
            f"{r.of_ceiling:.2f}",
            f"{r.seconds_for_8b:.3g} s",
            f"{r.over_offload:.2f}",
        ]
        for r in rows
    ]
    screen.table(columns, cells)
    screen.line()
    screen.note(LEGEND)
