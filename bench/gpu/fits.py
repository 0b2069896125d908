"""Batches of fits on the device: fits per second, and a bitwise comparison with the CPU.

``python bench/gpu/fits.py [--json FILE] [--cpu]``

The problems of Gpufit's published test, as in bench/solve_batch.py: 5 x 5 pixels, five parameters, at most 10
iterations. ``--cpu``: a trial run with few problems on the CPU.
"""

# ruff: noqa: E402  # modules of other folders are found first
from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import Record, find_modules, write_json

find_modules("bench")

import numpy as np
import torch
from solve_batch import images, run_batch

REPEATS = 20
PUBLISHED = 3e6  # fits per second of Gpufit


def seconds(call: Callable[[], object], wait: Callable[[], None]) -> float:
    times = []
    for _ in range(REPEATS):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 1 if bits differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args(argv)
    count = 1000 if options.cpu else 4_000_000
    some = images(min(count, 100_000), np.float32)
    wait = (lambda: None) if options.cpu else torch.cuda.synchronize

    def there(data: Any) -> Any:
        return data if options.cpu else torch.from_numpy(data).cuda()

    def host(x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(x if options.cpu else x.cpu())

    data = np.resize(some, (count, *some.shape[1:]))
    on_device = there(data)
    got, want = run_batch(there(some)), run_batch(some)
    equal = {name: host(got[name]).tobytes() == want[name].tobytes() for name in ("x", "cost", "status", "nit")}
    found: Record = {"count": count, "equal": equal, "trials": float(want.nit.mean()), "complete": False}
    found["fits_a_second"] = count / seconds(lambda: run_batch(on_device), wait)
    found["of_published"] = found["fits_a_second"] / PUBLISHED
    found["complete"] = True
    print(found)
    if options.json is not None:
        write_json(options.json, found)
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
