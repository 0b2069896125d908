"""Steps with sparse gradients, compared with torch's sparse optimizers and with a kernel that has the same memory
traffic.

``python bench/sparse_rows.py [--threads 2] [--repeats N] [--json FILE] [--smoke]``

Indices follow Zipf's law, with duplicates, and are the same for all contenders: several batches in turn, so that rows
are not cached. All are timed alternately; ratios are medians over the rounds. The floor is a kernel that knows the
sorted rows beforehand: it reads as many values in order, and reads and writes the same rows, with one addition per
element. It does not access arrays with one number per row. The rate counts rows, read and written, and values, read.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk import _core
from adaptk._bench import _size, interleaved, machine, size_text
from racing.report import threads_text

Array = np.ndarray[Any, Any]
BATCHES = 8
RULES = {"adam": "Adam", "adagrad": "AdaGrad", "rowwise_adagrad": "row-wise AdaGrad", "rowwise_adam": "row-wise Adam"}
TORCHS = {"adam": "SparseAdam", "adagrad": "Adagrad"}
TABLES = ((1_000_000, 64), (10_000_000, 16))


def batches(rows: int, width: int, count: int) -> list[tuple[Array, Array]]:
    """Indices by Zipf's law with exponent 1.05, with the frequent rows anywhere in the table; and values."""
    rng = np.random.default_rng(0)
    weights = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -1.05)
    found = []
    for _ in range(BATCHES):
        rank = np.searchsorted(weights, rng.random(count) * weights[-1])
        found.append(((rank * 7919) % rows, rng.standard_normal((count, width)).astype(np.float32)))
    return found


def turns(calls: list[Callable[[], object]]) -> Callable[[], object]:
    """A call that makes one of several calls each time, in turn."""
    ring = itertools.cycle(calls)
    return lambda: next(ring)()


def own(rule: str, rows: int, given: list[tuple[Array, Array]], width: int) -> Callable[[], object]:
    table = np.zeros((rows, width), np.float32)
    opt = adaptk.optimizer_for(rule, [table])
    return turns([partial(opt.step, [g]) for g in given])


def floor(rule: str, rows: int, given: list[tuple[Array, Array]], width: int) -> Callable[[], object]:
    of_elements = [s for s in adaptk.rules()[rule].states if s.per == "element"]
    streams = [np.zeros((rows, width), np.float32) for _ in range(1 + len(of_elements))]
    return turns([partial(_core.row_probe, streams, np.unique(i), v) for i, v in given])


def torchs(rule: str, rows: int, given: list[tuple[Array, Array]], width: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(adaptk.get_num_threads())
    torch.sparse.check_sparse_tensor_invariants.disable()  # without an explicit choice torch warns
    table = torch.nn.Parameter(torch.zeros(rows, width))
    opt = getattr(torch.optim, TORCHS[rule])([table])

    def call(i: Array, v: Array) -> Callable[[], None]:
        pair = torch.from_numpy(i)[None], torch.from_numpy(v)
        grad = torch.sparse_coo_tensor(*pair, (rows, width), check_invariants=False)

        def step() -> None:
            # A new tensor, because a coalesced one stays coalesced.
            table.grad = torch.sparse_coo_tensor(grad._indices(), grad._values(), (rows, width), check_invariants=False)
            opt.step()

        return step

    return turns([call(i, v) for i, v in given])


def measure(tables: tuple[tuple[int, int], ...], count: int, repeats: int) -> list[dict[str, Any]]:
    """A row of results for each rule and table: seconds of a step, and ratios."""
    with_torch = importlib.util.find_spec("torch") is not None
    results = []
    for (rows, width), rule in itertools.product(tables, RULES):
        given = batches(rows, width, count)
        calls = [own(rule, rows, given, width), floor(rule, rows, given, width)]
        if with_torch and rule in TORCHS:
            calls.append(torchs(rule, rows, given, width))
        grouping = turns([partial(_core.group_rows, i, rows) for i, _ in given])
        ours, least, *theirs, sort = interleaved([*calls, grouping], repeats)
        median = statistics.median
        distinct = statistics.mean(len(np.unique(i)) for i, _ in given)
        streams = 1 + sum(s.per == "element" for s in adaptk.rules()[rule].states)
        moved = 4 * width * (count + 2 * streams * distinct)
        results.append(
            {
                "rule": rule,
                "rows": rows,
                "width": width,
                "distinct": round(distinct),
                "step_seconds": median(ours),
                "bytes_per_second": moved / median(ours),
                "grouping_seconds": median(sort),
                "share_of_floor": median(f / o for f, o in zip(least, ours, strict=True)),
                "over_torch": median(t / o for t, o in zip(theirs[0], ours, strict=True)) if theirs else None,
            }
        )
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--indices", default="8k", metavar="N", help="indices per batch")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="small tables, to see that everything works")
    options = parser.parse_args(argv)
    adaptk.set_num_threads(options.threads)
    tables = ((1000, 64), (2000, 16)) if options.smoke else TABLES
    results = measure(tables, 100 if options.smoke else _size(options.indices), 2 if options.smoke else options.repeats)
    print(f"{options.indices} indices by Zipf's law, float32, {threads_text(options.threads)}")
    for r in results:
        beside = "" if r["over_torch"] is None else f", {r['over_torch']:.1f} times torch's speed"
        print(
            f"{RULES[r['rule']]:<16} {size_text(r['rows'])} x {r['width']}: {r['step_seconds'] * 1e6:.0f} us a step, "
            f"{r['bytes_per_second'] / 1e9:.1f} GB/s"
            f"{beside}, {r['share_of_floor']:.2f} of the floor's; {r['distinct']} distinct rows, grouped in "
            f"{r['grouping_seconds'] * 1e6:.0f} us"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "threads": options.threads, "rows": results}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
