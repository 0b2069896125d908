"""Steps of adaptk beside PyTorch's fused optimizers on the CPU, on tensors of the same sizes, taken in turn.

Prints the ratio of the medians, PyTorch's time over adaptk's: above 1, adaptk is the faster one.
"""

from __future__ import annotations

import argparse
import json
import statistics

import adaptk
from adaptk._bench import _size, interleaved, machine, size_text

PAIRS = {
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "adagrad": ("Adagrad", {}),
}


def ratio(rule: str, size: int, repeats: int) -> float:
    """PyTorch's median time of a step over adaptk's."""
    import torch

    torch_class, options = PAIRS[rule]
    param = torch.nn.Parameter(torch.linspace(0.5, 1.5, size))
    param.grad = torch.linspace(1e-3, 2e-3, size)
    theirs = getattr(torch.optim, torch_class)([param], fused=True, **options)
    # Tensors on both sides: memory of the same allocator, with the same pages and alignment.
    mine = torch.linspace(0.5, 1.5, size)
    grad = torch.linspace(1e-3, 2e-3, size)
    ours = adaptk.optimizer_for(rule, [mine], convention="torch", **options)
    times = interleaved([theirs.step, lambda: ours.step([grad])], repeats, least=5e-3)
    return statistics.median(times[0]) / statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", default=",".join(PAIRS))
    parser.add_argument("--sizes", default="1M,64M")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(adaptk.get_num_threads())
    results = []
    print(f"{'rule':<10}{'size':>8}{'torch fused / adaptk':>24}")
    for rule in options.rules.split(","):
        for size in map(_size, options.sizes.split(",")):
            r = ratio(rule, size, options.repeats)
            results.append({"rule": rule, "size": size, "ratio": r})
            print(f"{rule:<10}{size_text(size):>8}{r:>24.2f}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump({"machine": machine(), "torch": torch.__version__, "results": results}, f, indent=2)


if __name__ == "__main__":
    main()
