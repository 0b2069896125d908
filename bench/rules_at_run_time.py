"""A rule from a Python function, interpreted and compiled, compared with the library's own; and the time to make it.

``python bench/rules_at_run_time.py [--sizes 1M,64M] [--threads 2] [--repeats N] [--torch] [--json FILE]``

``--torch`` compares ``torch.compile`` of the same function: its first call, a new learning rate, and its speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk._bench import _size, interleaved, size_text
from adaptk._cli._parser import whole
from adaptk._compile import compiler


def adam(p: Any, g: Any, m: Any, v: Any, h: Any, t: Any) -> Any:
    m = h.beta1 * m + (1 - h.beta1) * g
    v = h.beta2 * v + (1 - h.beta2) * (g * g)
    root = adaptk.sqrt(v) * (1 / adaptk.sqrt(1 - h.beta2**t))
    return p - h.lr / (1 - h.beta1**t) * m / (root + h.eps), m, v


def make(name: str, compile: bool = False) -> adaptk.TracedRule:
    hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    return adaptk.rule(states={"m": 0.0, "v": 0.0}, name=name, compile=compile, **hyper)(adam)


def buffers_of(size: int) -> list[Any]:
    return [np.full(size, 0.1, np.float32) for _ in range(4)]


def speed(made: Sequence[adaptk.TracedRule], size: int, repeats: int) -> list[float]:
    """The speed of the made rules relative to the library's: ratios of medians."""
    buffers = buffers_of(size)
    calls: list[Callable[[], object]] = [lambda: adaptk.ops.adam(*buffers, step=5)]
    calls += [lambda r=r: r(*buffers, step=5) for r in made]
    own, *others = interleaved(calls, repeats)
    return [statistics.median(own) / statistics.median(times) for times in others]


def making(repeats: int, compile: bool = False) -> float:
    """The time to trace a rule, register it and take a first step, in seconds."""
    times = []
    for i in range(repeats):
        buffers = buffers_of(10)
        begin = time.perf_counter()
        made = make(f"made_{'compiled' if compile else 'interpreted'}_{i}", compile)
        made(*buffers, step=1)
        times.append(time.perf_counter() - begin)
        made.unregister()
    return statistics.median(times)


class OfTorch:
    """The same function on torch tensors, under torch.compile. The learning rate is a tensor, as torch recommends."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.lr: Any = torch.tensor(1e-3)

        def step(p: Any, g: Any, m: Any, v: Any, lr: Any, first: Any, second: Any) -> None:
            m.mul_(0.9).add_(g, alpha=1 - 0.9)
            v.mul_(0.999).add_(g * g, alpha=1 - 0.999)
            p.sub_(lr / first * m / (v.sqrt() / second.sqrt() + 1e-8))

        self.step = torch.compile(step)

    def __call__(self, buffers: Sequence[Any], t: int = 5, lr: Any = None) -> None:
        lr = self.lr if lr is None else lr
        first, second = (self.torch.tensor(1 - b**t) for b in (0.9, 0.999))
        with self.torch.no_grad():
            self.step(*buffers, lr, first, second)

    def compilations(self) -> int:
        return int(self.torch._dynamo.utils.counters["stats"]["unique_graphs"])


def beside_torch(made: adaptk.TracedRule, sizes: Sequence[int], threads: int, repeats: int) -> dict[str, Any]:
    of_torch = OfTorch()
    torch = of_torch.torch
    torch.set_num_threads(threads)
    buffers = [torch.from_numpy(a) for a in buffers_of(sizes[0])]
    begin = time.perf_counter()
    of_torch(buffers)
    found: dict[str, Any] = {"first_call_ms": (time.perf_counter() - begin) * 1e3}
    before = of_torch.compilations()
    for lr in (1e-3, 2e-3, 3e-3):
        of_torch(buffers, 5, lr)
    found["compilations_for_rates_as_numbers"] = of_torch.compilations() - before
    found["speed"] = {}
    for size in sizes:
        found["speed"][size_text(size)] = speed_over_torch(made, of_torch, size, repeats)
    return found


def speed_over_torch(made: adaptk.TracedRule, of_torch: OfTorch, size: int, repeats: int) -> float:
    own = buffers_of(size)
    theirs = [of_torch.torch.from_numpy(a) for a in own]
    of_torch(theirs)
    calls: list[Callable[[], object]] = [lambda: made(*own, step=5), lambda: of_torch(theirs)]
    ours, them = interleaved(calls, repeats)
    return statistics.median(them) / statistics.median(ours)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="1M,64M", help="comma-separated numbers of elements")
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument("--repeats", type=whole(1), default=15)
    parser.add_argument("--torch", action="store_true", help="compare torch.compile of the same function")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    adaptk.set_num_threads(given.threads)
    sizes = [_size(text) for text in given.sizes.split(",")]
    found: dict[str, Any] = {"threads": given.threads, "relative": {}, "compiled": {}}
    found["making_ms"] = making(given.repeats) * 1e3
    print(f"traced, registered and a first step: {found['making_ms']:.2f} ms")
    interpreted, compiled = make("interpreted_adam"), make("compiled_adam")
    chosen = adaptk.get_isa()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAPTK_CACHE"] = folder  # an empty cache, so that rules are compiled
        try:
            compiler()
        except RuntimeError as error:
            print(f"left out: {error}")
            compiled.unregister()
            made = [interpreted]
        else:
            made = [interpreted, compiled]
            found["compiling_ms"] = making(1, compile=True) * 1e3
            print(f"the same, compiled: {found['compiling_ms']:.0f} ms")
        try:
            for isa in adaptk.available_isas()[-2:]:
                adaptk.set_isa(isa)
                if len(made) == 2:
                    compiled.compile()
                for size in sizes:
                    what = f"{isa} {size_text(size)}"
                    relative = speed(made, size, given.repeats)
                    for way, value in zip(("relative", "compiled"), relative, strict=False):
                        found[way][what] = value
                    text = ", ".join(
                        f"{x:.2f} {w}" for x, w in zip(relative, ("interpreted", "compiled"), strict=False)
                    )
                    print(f"{isa}, {size_text(size)}: {text}, of the library's own rule's speed")
            adaptk.set_isa(chosen)
            if given.torch:
                found["torch"] = t = beside_torch(made[-1], sizes, given.threads, given.repeats)
                print(
                    f"torch.compile: {t['first_call_ms']:.0f} ms for its first call, "
                    f"{t['compilations_for_rates_as_numbers']} compilations for three learning rates as numbers"
                )
                for size_of, value in t["speed"].items():
                    print(f"{size_of}: {value:.2f} of torch.compile's speed")
        finally:
            adaptk.set_isa(chosen)
            for r in made:
                r.unregister()
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
