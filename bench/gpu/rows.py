"""Steps with sparse gradients on the device, compared with torch's sparse optimizers and a copy of the same rows.

``python bench/gpu/rows.py [--json FILE] [--cpu]``

The tables and indices of bench/sparse_rows.py: 8,192 by Zipf's law into 1M rows of 64 elements and 10M of 16. The
contenders are timed alternately. Times are from the host's clock, around a burst of steps with synchronisation, because
a step sorts its indices on the host. The copy moves as many bytes as the step: rows are read and written, values read.
``--cpu`` is a trial run with small tables on the CPU; its figures mean nothing.
"""

# ruff: noqa: E402  # modules of other folders are found first
from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import Record, find_modules, write_json

find_modules("bench")

import adaptk
import adaptk.torch
import numpy as np
import torch
from adaptk._bench import timed
from sparse_rows import TABLES, batches, turns

# The class of adaptk, and torch's if there is one.
RULES = {"adam": ("Adam", "SparseAdam"), "adagrad": ("Adagrad", "Adagrad"), "rowwise_adagrad": ("RowWiseAdaGrad", None)}
STEPS, REPEATS, INDICES = 20, 7, 8192


def steps_of(
    made: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], shape: tuple[int, int], given: Any, device: str
) -> Callable[[], object]:
    """A call that steps with each of several gradients in turn."""
    table = torch.nn.Parameter(torch.zeros(shape, device=device))
    opt = made([table])

    def call(indices: torch.Tensor, values: torch.Tensor) -> Callable[[], None]:
        def step() -> None:
            # A new tensor, because a coalesced one stays coalesced.
            table.grad = torch.sparse_coo_tensor(indices[None], values, shape, check_invariants=False)
            opt.step()

        return step

    return turns([call(i, v) for i, v in given])


def race(rule: str, shape: tuple[int, int], count: int, device: str, steps: int, repeats: int) -> Record:
    """Measure one rule on one table."""
    rows, width = shape
    host = batches(rows, width, count)
    given = [(torch.from_numpy(i).to(device), torch.from_numpy(v).to(device)) for i, v in host]
    of_elements = sum(s.per == "element" for s in adaptk.rules()[rule].states)
    distinct = statistics.mean(len(np.unique(i)) for i, _ in host)
    moved = round(4 * width * (count + 2 * (1 + of_elements) * distinct))
    source, target = (torch.zeros(moved // 8, device=device) for _ in range(2))
    own, peer = RULES[rule]
    calls = {"adaptk": steps_of(getattr(adaptk.torch, own), shape, given, device), "copy": lambda: target.copy_(source)}
    if peer is not None:
        calls["torch"] = steps_of(getattr(torch.optim, peer), shape, given, device)

    def seconds(call: Callable[[], object]) -> float:
        def burst() -> None:
            for _ in range(steps):
                call()
            if device != "cpu":
                torch.cuda.synchronize()

        return timed(burst, 1) / steps

    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            found = seconds(call)
            if round_ > 0:  # the first round is for warming up
                times[name].append(found)
    medians = {name: {"seconds": t, "median": statistics.median(t)} for name, t in times.items()}
    return {"rule": rule, "rows": rows, "width": width, "distinct": round(distinct), "bytes": moved, "times": medians}


def line_of(record: Record) -> str:
    """A line of the log."""
    times = {name: t["median"] for name, t in record["times"].items()}
    own = times["adaptk"]
    beside = f", {times['torch'] / own:.2f} times torch's speed" if "torch" in times else ""
    return (
        f"{record['rule']:<15}{record['rows']:>9} x {record['width']}: {own * 1e6:7.1f} us a step, "
        f"{record['bytes'] / own / 1e9:.1f} GB/s, {times['copy'] / own:.2f} of a copy's{beside}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args(argv)
    tables = ((1000, 64), (2000, 16)) if options.cpu else TABLES
    count, steps, repeats = (100, 2, 1) if options.cpu else (INDICES, STEPS, REPEATS)
    torch.sparse.check_sparse_tensor_invariants.disable()  # without an explicit choice torch warns
    report: Record = {"trial": options.cpu, "complete": False, "indices": count, "rows": []}
    for shape, rule in itertools.product(tables, RULES):
        found = race(rule, shape, count, "cpu" if options.cpu else "cuda", steps, repeats)
        report["rows"].append(found)
        print(line_of(found), flush=True)
        report["complete"] = len(report["rows"]) == len(tables) * len(RULES)
        if options.json is not None:
            write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
