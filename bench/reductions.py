"""Rules with reductions, compared with the time of their memory traffic and with other implementations.

``python bench/reductions.py [--size 64M] [--tensors 200] [--elements 4096] [--threads 2] [--repeats N] [--json FILE]``

The traffic is what the passes over the elements read and write. Its time is measured with a kernel that reads and
writes the same number of streams, with one addition each. Other implementations are the installed ones for PyTorch, on
many small tensors and on one of that size.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk import _core
from adaptk._bench import _size, interleaved
from adaptk._cli._parser import whole

# The streams that a step reads and writes, for the pass of each phase and for the update. Some passes write states.
STREAMS = {
    "lamb": 6 + 4,
    "lars": 2 + 5,
    "stable_adamw": 2 + 7,
    "prodigy": 5 + 7,
    "dadapt_adam": 4 + 7,
    "dadapt_sgd": 3 + 4,
    "novograd": 1 + 5,
    "adafactor": 3 + 3,
}
THEIRS = {
    "lamb": "pytorch_optimizer.Lamb",
    "lars": "pytorch_optimizer.LARS",
    "stable_adamw": "optimi.StableAdamW",
    "prodigy": "prodigyopt.Prodigy",
    "dadapt_adam": "dadaptation.DAdaptAdam",
    "dadapt_sgd": "dadaptation.DAdaptSGD",
    "novograd": "pytorch_optimizer.NovoGrad",
    "adafactor": "torch.optim.Adafactor",
}
# Second implementations, with their options.
ALSO: dict[str, tuple[str, dict[str, Any]]] = {
    "adafactor": ("transformers.Adafactor", {"relative_step": False}),  # of Hugging Face; it refuses lr otherwise
}
# Rules that treat matrices and vectors differently: they are measured on matrices.
OF_MATRICES = ("adafactor",)


def shape_of(name: str, elements: int) -> tuple[int, ...]:
    """The shape of a vector, or of a nearly square matrix."""
    if name not in OF_MATRICES:
        return (elements,)
    rows = next(n for n in range(math.isqrt(elements), 0, -1) if elements % n == 0)
    return rows, elements // rows


def over_traffic(name: str, size: int, repeats: int) -> float:
    """The time of a step relative to that of its memory traffic."""
    p, g = (np.full(shape_of(name, size), 0.1, np.float32) for _ in range(2))
    opt = adaptk.optimizer_for(name, [p])
    opt.step([g])
    streams = [p, g, *(s for s in opt.state[0].values() if s.size == p.size)][:3]
    probed = 2 * len(streams) - 1  # the second stream is only read
    own, probe = interleaved([lambda: opt.step([g]), lambda: _core.bandwidth_probe(streams)], repeats)
    return statistics.median(own) / statistics.median(probe) * probed / STREAMS[name]


def over_theirs(
    name: str, path: str, tensors: int, elements: int, threads: int, repeats: int, **options: Any
) -> float | None:
    """The time of another implementation over adaptk's, on PyTorch tensors; None if it is not installed."""
    module, cls = path.rsplit(".", 1)
    try:
        import torch

        theirs: Any = getattr(importlib.import_module(module), cls)
    except ImportError:
        return None
    ours: Any = getattr(importlib.import_module("adaptk.torch"), adaptk.catalogue.CLASSES[name])
    torch.set_num_threads(threads)
    steps: list[Callable[[], object]] = []
    for make in (ours, functools.partial(theirs, **options)):
        params = [torch.nn.Parameter(torch.full(shape_of(name, elements), 0.1)) for _ in range(tensors)]
        for p in params:
            p.grad = torch.full(shape_of(name, elements), 0.1)
        steps.append(make(params, lr=1e-3).step)
    mine, others = interleaved(steps, repeats)
    return statistics.median(others) / statistics.median(mine)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="64M", help="elements of the large tensor")
    parser.add_argument("--tensors", type=whole(1), default=200)
    parser.add_argument("--elements", type=whole(1), default=4096)
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument("--repeats", type=whole(1), default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rules", nargs="*", choices=STREAMS, help="default: all")
    given = parser.parse_args(arguments)
    adaptk.set_num_threads(given.threads)
    found: dict[str, Any] = {"threads": given.threads, "over_traffic": {}, "over_theirs": {}, "over_theirs_large": {}}
    for name in given.rules or STREAMS:
        found["over_traffic"][name] = ratio = over_traffic(name, _size(given.size), given.repeats)
        print(f"{name}: {ratio:.2f} of its traffic's time")
        others: dict[str, tuple[str, dict[str, Any]]] = {THEIRS[name]: (name, {})}
        if name in ALSO:
            path, options = ALSO[name]
            others[path] = (path, options)
        for path, (key, options) in others.items():
            times = over_theirs(name, path, given.tensors, given.elements, given.threads, given.repeats, **options)
            found["over_theirs"][key] = times
            large = over_theirs(name, path, 1, _size(given.size), given.threads, given.repeats, **options)
            found["over_theirs_large"][key] = large
            beside = "not installed" if times is None else f"{times:.1f} times as fast, and {large:.1f} with one tensor"
            print(f"    beside {path}: {beside}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
