"""Random rules against NumPy: the same operations, each rounded, on the same numbers."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import same_bits

STATES = ("a", "b", "c")
HYPERS = {"lr": 0.25, "x": -1.5, "y": 0.1, "z": 3.0}
BINARY = ("+", "-", "*", "/", "maximum", "minimum")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
UNARY = ("-", "sqrt", "abs", "sign")


class Traced:
    """The operations on traced values."""

    @staticmethod
    def unary(op: str, x: Any) -> Any:
        return -x if op == "-" else getattr(adaptk, op)(x)

    @staticmethod
    def binary(op: str, x: Any, y: Any) -> Any:
        if op in ("maximum", "minimum"):
            return getattr(adaptk, op)(x, y)
        return eval(f"x {op} y", {"x": x, "y": y})

    where = staticmethod(adaptk.where)


class Numpy:
    """The operations on arrays of one type, and numbers in float64."""

    @staticmethod
    def unary(op: str, x: Any) -> Any:
        return -x if op == "-" else getattr(np, op)(x)

    @staticmethod
    def binary(op: str, x: Any, y: Any) -> Any:
        # A number is rounded to the type of the array in the same operation.
        if isinstance(x, np.ndarray) and not isinstance(y, np.ndarray):
            y = x.dtype.type(y)
        elif isinstance(y, np.ndarray) and not isinstance(x, np.ndarray):
            x = y.dtype.type(x)
        if op == "maximum":
            return np.where((x > y) | (x != x), x, y)[()]
        if op == "minimum":
            return np.where((x < y) | (x != x), x, y)[()]
        return eval(f"x {op} y", {"x": x, "y": y})

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> Any:
        if all(not isinstance(v, np.ndarray) for v in (condition, x, y)):
            return x if condition else y
        (dtype,) = {v.dtype for v in (x, y) if isinstance(v, np.ndarray)} or {None}
        return np.where(condition, *(v if isinstance(v, np.ndarray) else dtype.type(v) for v in (x, y)))


def grow(rng: np.random.Generator, nodes: int) -> list[tuple[Any, ...]]:
    """Operations on values by index: leaves (p, g, states, hyperparameters, t, two numbers), then earlier results."""
    leaves = 2 + len(STATES) + len(HYPERS) + 3
    elements = [True] * (2 + len(STATES)) + [False] * (len(HYPERS) + 3)
    found: list[tuple[Any, ...]] = []
    for _ in range(nodes):
        count = leaves + len(found)
        # Later values are chosen more often, so that some expressions are deep.
        i, j, k, m = (int(count - 1 - rng.integers(0, rng.integers(1, count + 1))) for _ in range(4))
        kind = rng.choice(["unary", "binary", "binary", "binary", "where"])
        if kind == "unary":
            found.append((kind, rng.choice(UNARY), i))
            elements.append(elements[i])
        elif kind == "binary":
            found.append((kind, rng.choice(BINARY), i, j))
            elements.append(elements[i] or elements[j])
        else:
            if not (elements[k] or elements[m]):
                k = 0  # so that NumPy has a type to round to
            found.append((kind, rng.choice(COMPARISONS), i, j, k, m))
            elements.append(True)
    return found


def evaluate(space: Any, leaves: list[Any], nodes: list[tuple[Any, ...]]) -> list[Any]:
    values = list(leaves)
    for kind, op, *operands in nodes:
        x = [values[i] for i in operands]
        if kind == "where":
            values.append(space.where(space.binary(op, x[0], x[1]), x[2], x[3]))
        else:
            values.append(getattr(space, kind)(op, *x))
    return values


def as_array(x: Any, size: int, dtype: Any) -> Any:
    return x if isinstance(x, np.ndarray) else np.full(size, x, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(150))
def test_random_rules(seed: int, dtype: Any, restored: None) -> None:
    rng = np.random.default_rng(seed)
    isas = adaptk.available_isas()
    adaptk.set_isa(isas[seed % len(isas)])
    nodes = grow(rng, int(rng.integers(1, 60)))
    results = [int(i) for i in rng.integers(0, 2 + len(STATES) + len(nodes), 1 + len(STATES))]
    numbers = [0.7, -2.0]

    def rule(p, g, a, b, c, h, t):
        values = evaluate(Traced, [p, g, a, b, c, h.lr, h.x, h.y, h.z, t, *numbers], nodes)
        return tuple(values[i] for i in results)

    try:
        made = adaptk.rule(states=dict.fromkeys(STATES, 0.0), name="random_rule", **HYPERS)(rule)
    except ValueError as error:
        if "at the same time" not in str(error):
            raise
        pytest.skip("needs more scratch than there is")
    size = int(rng.choice([1, 40, 64, 100, 333]))
    start = [rng.choice([rng.normal(size=size), rng.integers(-2, 3, size)]).astype(dtype) for _ in range(5)]
    start[0][rng.random(size) < 0.1] = rng.choice([np.nan, np.inf, -0.0])
    want = [x.copy() for x in start]
    got = [x.copy() for x in start]
    try:
        for step in (1, 2):
            made(*got, step=step)
            with np.errstate(all="ignore"):
                hypers = [np.float64(h) for h in (*HYPERS.values(), step, *numbers)]
                values = evaluate(Numpy, [*(x.copy() for x in want), *hypers], nodes)
            new = [as_array(values[i], size, dtype) for i in results]
            want = [new[0], want[1], *new[1:]]
            for i, (x, y) in enumerate(zip(got, want, strict=True)):
                assert same_bits(x, y), (step, i)
    finally:
        made.unregister()
