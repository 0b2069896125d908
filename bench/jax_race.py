"""adaptk.jax compared with optax, both under ``jax.jit`` with donated buffers, on the CPU and in one run.

``python bench/jax_race.py [--quick] [--rules adam,rmsprop] [--markdown]``. Each side has its own params and states,
which each step donates. Steps are timed alternately, and medians are compared. "jit alone" is a compiled function that
returns the donated arrays unchanged: JAX's own overhead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adaptk.jax
import jax
import jax.numpy as jnp
import optax

Step = Callable[[Any, Any, Any], tuple[Any, Any]]

LR = 1e-3
# Rules of adaptk, and optax's functions with the same arithmetic.
PEERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(LR),
    "momentum": lambda: optax.sgd(LR, momentum=0.9),
    "adagrad": lambda: optax.adagrad(LR),
    "rmsprop": lambda: optax.rmsprop(LR),
    "adam": lambda: optax.adam(LR),
    "adamw": lambda: optax.adamw(LR),
    "lion": lambda: optax.lion(LR),
}
SIZES = {"64M": (1, 64 << 20), "1M": (1, 1 << 20), "200 x 4096": (200, 4096), "1000 x 64": (1000, 64)}
QUICK = {"1M": (1, 1 << 20), "100 x 64": (100, 64)}


class Side:
    """A compiled step with its arrays."""

    def __init__(self, step: Step, init: Callable[[Any], Any], count: int, size: int) -> None:
        self.params: Any = [jnp.full(size, 0.5 + i / count) for i in range(count)]
        self.state = init(self.params)
        self.step = jax.jit(step, donate_argnums=(0, 2))
        self.seconds: list[float] = []

    def run(self, grads: Any) -> float:
        start = time.perf_counter()
        self.params, self.state = self.step(self.params, grads, self.state)
        jax.block_until_ready((self.params, self.state))
        return time.perf_counter() - start


def in_optax(peer: Any) -> Step:
    def step(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        updates, state = peer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def race(rule: str, count: int, size: int, seconds: float) -> dict[str, float]:
    """The median time of a step by side, in seconds."""
    make, peer = getattr(adaptk.jax, rule), PEERS[rule]()
    tree, packed = make(LR, convention="optax"), make(LR, convention="optax", packed=True)
    sides = {
        "adaptk": Side(tree.apply, tree.init, count, size),
        "packed": Side(packed.apply, packed.init, count, size),
        "optax": Side(in_optax(peer), peer.init, count, size),
        "jit alone": Side(lambda params, grads, state: (params, state), peer.init, count, size),
    }
    grads = [jnp.full(size, 1e-3 * (1 + i % 7)) for i in range(count)]
    for side in sides.values():
        for _ in range(2):
            side.run(grads)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(side.seconds) < 5:
        for side in sides.values():
            side.seconds.append(side.run(grads))
    return {name: statistics.median(side.seconds) for name, side in sides.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", default="adam,rmsprop,momentum", help=f"comma-separated, from {','.join(PEERS)}")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and little time, to see that everything works"
    )
    parser.add_argument("--markdown", action="store_true", help="print a table for the README")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds for each rule and size, default 8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians, in seconds")
    arguments = parser.parse_args()
    rules = arguments.rules.split(",")
    if unknown := sorted(set(rules) - set(PEERS)):
        parser.error(f"--rules: {', '.join(unknown)}: not of {', '.join(PEERS)}")
    sizes = QUICK if arguments.quick else SIZES
    rows = []
    for rule in rules:
        for name, (count, size) in sizes.items():
            medians = race(rule, count, size, 0.2 if arguments.quick else arguments.seconds)
            rows.append((rule, name, medians))
            if not arguments.markdown:
                times = ", ".join(f"{side} {seconds * 1e3:.3f} ms" for side, seconds in medians.items())
                ratios = ", ".join(f"{medians['optax'] / medians[s]:.2f}" for s in ("adaptk", "packed"))
                print(f"{rule:10} {name:11} optax / adaptk, packed: {ratios}   ({times})", flush=True)
    if arguments.json:
        found = [{"rule": rule, "size": name, "seconds": medians} for rule, name, medians in rows]
        arguments.json.write_text(json.dumps({"optax": optax.__version__, "results": found}))
    if arguments.markdown:
        print(f"| optax {optax.__version__} / adaptk | {' | '.join(sizes)} |")
        print(f"|---|{'---|' * len(sizes)}")
        for rule in rules:
            for side in ("adaptk", "packed"):
                cells = [f"{m['optax'] / m[side]:.2f}" for r, _, m in rows if r == rule]
                print(f"| {rule}{', packed' if side == 'packed' else ''} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
