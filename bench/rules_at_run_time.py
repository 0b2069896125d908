"""A rule from a Python function beside the compiled one, on the same buffers, and the time that it takes to make it.

``python bench/rules_at_run_time.py [--sizes 1M,64M] [--threads 2] [--repeats N] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk._bench import _size, interleaved, size_text
from adaptk._cli._parser import whole


def adam(p: Any, g: Any, m: Any, v: Any, h: Any, t: Any) -> Any:
    m = h.beta1 * m + (1 - h.beta1) * g
    v = h.beta2 * v + (1 - h.beta2) * (g * g)
    root = adaptk.sqrt(v) * (1 / adaptk.sqrt(1 - h.beta2**t))
    return p - h.lr / (1 - h.beta1**t) * m / (root + h.eps), m, v


def make(name: str) -> adaptk.TracedRule:
    decorate = adaptk.rule(states={"m": 0.0, "v": 0.0}, name=name, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    return decorate(adam)


def speed(made: adaptk.TracedRule, size: int, repeats: int) -> float:
    """Of the made rule relative to the compiled one's: the quotient of medians."""
    buffers = [np.full(size, 0.1, np.float32) for _ in range(4)]
    calls: list[Callable[[], object]] = [
        lambda: adaptk.ops.adam(*buffers, step=5),
        lambda: made(*buffers, step=5),
    ]
    compiled, traced = interleaved(calls, repeats)
    return statistics.median(compiled) / statistics.median(traced)


def making(repeats: int) -> float:
    """Seconds to trace a rule, register it and take a first step."""
    times = []
    for i in range(repeats):
        buffers = [np.full(10, 0.1, np.float32) for _ in range(4)]
        begin = time.perf_counter()
        made = make(f"made_{i}")
        made(*buffers, step=1)
        times.append(time.perf_counter() - begin)
        made.unregister()
    return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="1M,64M", help="elements, with commas between them")
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument("--repeats", type=whole(1), default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    adaptk.set_num_threads(given.threads)
    made = make("made_adam")
    found: dict[str, Any] = {"making_ms": making(given.repeats) * 1e3, "threads": given.threads, "relative": {}}
    print(f"traced, registered and a first step: {found['making_ms']:.2f} ms")
    chosen = adaptk.get_isa()
    try:
        for isa in adaptk.available_isas()[-2:]:
            adaptk.set_isa(isa)
            for text in given.sizes.split(","):
                size = _size(text)
                relative = speed(made, size, given.repeats)
                found["relative"][f"{isa} {size_text(size)}"] = relative
                print(f"{isa}, {size_text(size)}: {relative:.2f} of the compiled rule's speed")
    finally:
        adaptk.set_isa(chosen)
        made.unregister()
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
