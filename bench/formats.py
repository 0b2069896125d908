"""Steps with params and states in each storage format, compared with float32, torch's fused step and other libraries.

``python bench/formats.py [--rules adam,lion] [--size 64M] [--threads 2] [--repeats N] [--json FILE] [--alone]``

All are timed alternately on the same params and gradients. Bytes are those that a step with the format must move. The
ceiling is the time in which a kernel with one addition for each float32 moves as many.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk import _core, formats
from adaptk._bench import _size, dtype_of, interleaved, machine, size_text
from adaptk._cli._parser import whole
from adaptk._registry import RULES, Rule
from racing.contenders import LR, RACES, Unavailable, first_line, forward_count, torch_optimizer
from racing.report import threads_text

GRADIENTS = ("float32", "bfloat16")
PARAMS = ("sr", "remainder8", "remainder16", "kahan")
FUSED = "torch, fused=True"


@dataclass(frozen=True)
class Contender:
    """A step, the formats of its states, params and gradients, and the bytes that it must move for each element."""

    name: str
    params: str
    gradients: str
    bytes: float | None
    step: Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table. Ratios are medians over the rounds: above 1, this step is faster."""

    rule: str
    name: str
    params: str
    gradients: str
    bytes_per_parameter: float | None
    nanoseconds_per_parameter: float
    over_float32: float
    over_torch: float | None
    of_ceiling: float | None


def layouts(rule: Rule) -> dict[str, list[str]]:
    """The possible formats of a rule's states, by the value of `state_dtype`: one format for each state."""
    names = [n for n in formats.STATE_DTYPES if n != "float16"] if rule.states else ["float32"]
    found = {n: [formats.format_of(n, s, 1, 0) for s in rule.states] for n in names}
    if 0 < sum(s.nonnegative for s in rule.states) < len(rule.states):
        found["bfloat16 and 8bit"] = ["uint8" if s.nonnegative else "bfloat16" for s in rule.states]
    kept: dict[str, list[str]] = {}
    for name, layout in found.items():
        if layout not in kept.values():  # without second moments 8bit and 8bit_nearest are the same
            kept[name] = layout
    return kept


def _nbytes(state: Any) -> int:
    if isinstance(state, formats.Stored):
        return int(state.data.nbytes + (0 if state.scales is None else state.scales.nbytes))
    return int(state.nbytes)


def own(rule: Rule, param: np.ndarray[Any, Any], grads: dict[str, Any]) -> Iterator[Contender]:
    """The steps of adaptk."""
    function = getattr(adaptk.ops, rule.name)
    for name, layout in layouts(rule).items():
        # As in adaptk bench: no number becomes subnormal.
        values = [max(value, 1e-6) for value in rule.initial_states().values()]
        states = [formats.full_like(param, value, f) for value, f in zip(values, layout, strict=True)]
        for kind, grad in grads.items():
            moved = 2 * (param.nbytes + sum(map(_nbytes, states))) + grad.nbytes

            def step(grad: Any = grad, states: Sequence[Any] = states) -> None:
                function(param, grad, *states, step=10)

            yield Contender(name, "float32", kind, moved / param.size, step)


def own_params(rule: Rule, param: np.ndarray[Any, Any], grads: dict[str, Any]) -> Iterator[Contender]:
    """The steps of adaptk with 16-bit params: states and gradients in float32, and both in bfloat16."""
    function = getattr(adaptk.ops, rule.name)
    values = [max(value, 1e-6) for value in rule.initial_states().values()]
    for name in PARAMS:
        for kind, grad in grads.items():
            stored = param.astype(dtype_of("bfloat16")) if name == "sr" else formats.split_param(param, name)
            parts = stored if isinstance(stored, tuple) else (stored,)
            states = [formats.full_like(param, value, kind) for value in values]
            moved = 2 * (sum(p.nbytes for p in parts) + sum(map(_nbytes, states))) + grad.nbytes

            def step(stored: Any = stored, grad: Any = grad, states: Sequence[Any] = states, name: str = name) -> None:
                function(stored, grad, *states, step=10, param_format=name)

            yield Contender(kind, name, kind, moved / param.size, step)


def _bitsandbytes(p: Any) -> Any:
    import bitsandbytes

    return bitsandbytes.optim.Adam8bit([p], lr=LR)


def _torchao(name: str) -> Callable[[Any], Any]:
    def optimizer_of(p: Any) -> Any:
        from torchao import optim

        return getattr(optim, name)([p], lr=LR)

    return optimizer_of


def _optimi(p: Any) -> Any:
    import optimi
    import torch

    narrow = torch.nn.Parameter(p.detach().bfloat16())
    narrow.grad = p.grad.bfloat16()
    return optimi.Adam([narrow], lr=LR, kahan_sum=True)


#: Adam in low precision in other libraries: its name, the dtype of the gradients, and a function that makes it.
OTHERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "bitsandbytes, 8 bits": ("float32", _bitsandbytes),
    "torchao, 8 bits": ("float32", _torchao("Adam8bit")),
    "torchao, float8": ("float32", _torchao("AdamFp8")),
    "torchao, 4 bits": ("float32", _torchao("Adam4bit")),
    "torch-optimi, bfloat16 and Kahan": ("bfloat16", _optimi),
}


def others(rule: Rule, param: np.ndarray[Any, Any], grad: np.ndarray[Any, Any]) -> Iterator[Contender]:
    """Steps of torch and of installed libraries based on it. Prints which ones are left out."""
    try:
        import torch
    except ImportError:
        print("left out: torch is not installed")
        return
    torch.set_num_threads(adaptk.get_num_threads())

    def fused(p: Any) -> Any:
        if rule.name not in RACES:
            raise Unavailable("torch has no such rule")
        return torch_optimizer("fused", RACES[rule.name], [p])

    made = {FUSED: ("float32", fused), **(OTHERS if rule.name == "adam" else {})}
    for name, (kind, optimizer_of) in made.items():
        p = torch.nn.Parameter(torch.from_numpy(param))
        p.grad = torch.from_numpy(grad)
        try:
            optimizer = optimizer_of(p)
            optimizer.step()
        except ImportError as e:
            print(f"left out: {name}: not installed ({first_line(e)})")
        except Exception as e:  # a failure of another library must not lose all figures
            print(f"left out: {name}: {e if isinstance(e, Unavailable) else first_line(e)}")
        else:
            if name == FUSED:
                forward_count(optimizer)
            # The bytes that others move are not known: they make several passes.
            moved = 4.0 * (3 + 2 * len(rule.states)) if name == FUSED else None
            params = "kahan" if optimizer_of is _optimi else "float32"
            yield Contender(name, params, kind, moved, optimizer.step)


def measured(rule: Rule, size: int, repeats: int, alone: bool) -> list[Row]:
    """All contenders of a rule."""
    param = np.linspace(0.5, 1.5, size, dtype=np.float32)
    grad = np.linspace(1e-3, 2e-3, size, dtype=np.float32)
    grads = {kind: grad.astype(dtype_of(kind)) for kind in GRADIENTS}
    contenders = [*own(rule, param, grads), *own_params(rule, param, grads)]
    if not alone:
        contenders += others(rule, param, grad)
    streams = [np.full(size, 0.5, np.float32) for _ in range(2 + len(rule.states))]
    probed = 4 * (2 * len(streams) - 1)  # bytes; the second stream is only read
    times = interleaved([lambda: _core.bandwidth_probe(streams), *(c.step for c in contenders)], repeats)

    def key(c: Contender) -> tuple[str, str, str]:
        return c.name, c.params, c.gradients

    probe, by = times[0], dict(zip(map(key, contenders), times[1:], strict=True))

    def median_ratio(theirs: list[float], mine: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(theirs, mine, strict=True))

    def row(c: Contender) -> Row:
        mine = by[key(c)]
        torchs = by.get((FUSED, "float32", "float32"))
        return Row(
            rule=rule.name,
            name=c.name,
            params=c.params,
            gradients=c.gradients,
            bytes_per_parameter=c.bytes,
            nanoseconds_per_parameter=statistics.median(mine) / size * 1e9,
            over_float32=median_ratio(by["float32", "float32", "float32"], mine),
            over_torch=None if torchs is None else median_ratio(torchs, mine),
            of_ceiling=None if c.bytes is None else median_ratio(probe, mine) * c.bytes / probed,
        )

    return [row(c) for c in contenders]


def show(rows: Sequence[Row]) -> None:
    """Print a table."""

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    head = f"{'states':<34}{'params':<13}{'gradients':<11}{'B/param':>8}{'ns/param':>10}{'x float32':>11}"
    print(f"{head}{'x torch':>9}{'of ceiling':>12}")
    for r in rows:
        cells = f"{r.name:<34}{r.params:<13}{r.gradients:<11}{number(r.bytes_per_parameter):>8}"
        cells += f"{number(r.nanoseconds_per_parameter, 3):>10}{number(r.over_float32):>11}"
        print(f"{cells}{number(r.over_torch):>9}{number(r.of_ceiling):>12}", flush=True)


def _rules(text: str) -> list[str]:
    chosen = list(RULES) if text == "all" else text.split(",")
    for name in chosen:
        if name not in RULES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(RULES)}, or all")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/formats.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rules", type=_rules, default="adam", metavar="A,B", help="rules, or all; default: adam")
    parser.add_argument("--size", type=_size, default="64M", help="elements; default: 64M")
    parser.add_argument("--threads", type=whole(1), default=2, metavar="N", help="default: 2")
    parser.add_argument("--repeats", type=whole(1), default=11, metavar="N", help="rounds; default: 11")
    parser.add_argument("--alone", action="store_true", help="leave out torch and other libraries")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of all tables")
    options = parser.parse_args(arguments)
    adaptk.set_num_threads(options.threads)
    rows: list[Row] = []
    for name in options.rules:
        print(f"{name}, {size_text(options.size)} params, {threads_text(options.threads)}, {adaptk.get_isa()}")
        found = measured(RULES[name], options.size, options.repeats, options.alone)
        show(found)
        print()
        rows += found
    if options.json:
        report = {
            "size": options.size,
            "threads": options.threads,
            "machine": machine(),
            "rows": list(map(asdict, rows)),
        }
        options.json.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
