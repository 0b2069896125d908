"""The first step over many small tensors, a later one, and loading their state: seconds, and microseconds per tensor.

    python bench/many_tensors.py [--counts 1000 10000 50000] [--torch]

The time per tensor is the same for all counts if steps and loading take linear time. `--torch` measures torch's AdamW
too, which searches the lists of all groups for each state that it loads.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import adaptk.torch
import torch


def measure(cls: Any, count: int) -> list[tuple[str, float]]:
    params = [torch.nn.Parameter(torch.zeros(16)) for _ in range(count)]
    for p in params:
        p.grad = torch.ones(16)
    taken: list[tuple[str, float]] = []

    def timed(what: str, call: Any) -> None:
        start = time.perf_counter()
        call()
        taken.append((what, time.perf_counter() - start))

    opt = cls(params, lr=1e-3)
    timed("first step", opt.step)
    timed("second step", opt.step)
    saved = opt.state_dict()
    again = cls(params, lr=1e-3)
    timed("load", lambda: again.load_state_dict(saved))
    timed("step after it", again.step)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10000, 50000])
    parser.add_argument("--torch", action="store_true", help="also measure torch's class")
    options = parser.parse_args()
    classes = [adaptk.torch.AdamW] + ([torch.optim.AdamW] if options.torch else [])
    for cls in classes:
        for count in options.counts:
            for what, seconds in measure(cls, count):
                each = seconds / count * 1e6
                print(f"{cls.__module__:18} {count:6} tensors  {what:14} {seconds:8.3f} s  {each:7.1f} us each")


if __name__ == "__main__":
    main()
