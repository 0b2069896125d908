"""Random numbers of adaptk.init, NumPy's generator and torch.nn.init, in existing arrays, timed alternately.

Prints millions of numbers per second. NumPy's generator uses one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk import init
from adaptk._bench import _size, interleaved, size_text


def contestants(kind: str, x: np.ndarray[Any, Any]) -> dict[str, Callable[[], Any]]:
    """Functions that fill an array, by name."""
    generator = np.random.default_rng(0)
    draw: Any = generator.standard_normal if kind == "normal" else generator.random
    own = {"normal": init.normal, "uniform": init.uniform}[kind]
    found = {"adaptk": lambda: own(x, seed=0), "numpy": lambda: draw(dtype=x.dtype, out=x)}
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(adaptk.get_num_threads())
        t = torch.from_numpy(x)
        theirs: Any = torch.nn.init.normal_ if kind == "normal" else torch.nn.init.uniform_
        found["torch"] = lambda: theirs(t)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="64M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians, in seconds")
    options = parser.parse_args()
    adaptk.set_num_threads(options.threads)
    size = _size(options.size)
    medians: dict[str, dict[str, float]] = {}
    for kind in ("normal", "uniform"):
        for dtype in ("float32", "float64"):
            found = contestants(kind, np.zeros(size, dtype))
            times = interleaved(list(found.values()), options.repeats)
            by_name = {name: statistics.median(t) for name, t in zip(found, times, strict=True)}
            medians[f"{kind} {dtype}"] = by_name
            line = "".join(f"{name:>10} {size / t / 1e6:6.0f}" for name, t in by_name.items())
            ratio = by_name["numpy"] / by_name["adaptk"]
            print(f"{kind:<8} {dtype}  {size_text(size)}{line}   numpy / adaptk {ratio:.1f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"size": size, "threads": options.threads, "medians": medians}))


if __name__ == "__main__":
    main()
