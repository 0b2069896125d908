"""Oracles in NumPy of the rules with one number per row.

They follow FBGEMM's description of EXACT_ROWWISE_ADAGRAD and PARTIAL_ROWWISE_ADAM, with the library's order of
summation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import Array
from oracles import power

RULES = ("rowwise_adagrad", "rowwise_adam")
STATES = {"rowwise_adagrad": ("sum",), "rowwise_adam": ("exp_avg", "exp_avg_sq")}
PER_ROW = {"rowwise_adagrad": "sum", "rowwise_adam": "exp_avg_sq"}


def mean_square(row: Array) -> Any:
    """In blocks of 256: 16 sums of every sixteenth square, added as a tree. Blocks are added in float64."""
    total = np.float64(0.0)
    for begin in range(0, len(row), 256):
        part = row[begin : begin + 256]
        sums = np.zeros(16, row.dtype)
        for i in range(0, len(part), 16):
            x = part[i : i + 16]
            sums[: len(x)] = sums[: len(x)] + x * x
        for w in (8, 4, 2, 1):
            sums = sums[:w] + sums[w : 2 * w]
        total = total + np.float64(sums[0])
    return row.dtype.type(total / np.float64(len(row)))


def step(rule: str, param: Array, grad: Array, states: dict[str, Array], t: int, **given: float) -> None:
    """One step of all rows, in place; all arrays of one dtype."""
    dtype = param.dtype.type
    h: dict[str, float] = {"weight_decay": 0.0, "decoupled": 0.0, "maximize": 0.0, "grad_scale": 1.0}
    if rule == "rowwise_adagrad":
        h |= {"lr": 1e-2, "lr_decay": 0.0, "eps_in": 0.0, "eps_out": 1e-8}
    else:
        h |= {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    assert set(given) <= set(h)
    h |= given
    p = param.reshape(len(param), -1)
    g = dtype(-h["grad_scale"] if h["maximize"] else h["grad_scale"]) * grad.astype(param.dtype).reshape(p.shape)
    if h["weight_decay"] and not h["decoupled"]:
        g = g + dtype(h["weight_decay"]) * p
    else:
        p[:] = p * dtype(1.0 - h["lr"] * h["weight_decay"] if h["decoupled"] else 1.0)
    with np.errstate(all="ignore"):
        for i in range(len(p)):
            mean = mean_square(g[i])
            if rule == "rowwise_adagrad":
                r = states["sum"]
                r[i] = r[i] + mean
                lr = dtype(h["lr"] / (1.0 + (t - 1) * h["lr_decay"]))
                factor = lr / (np.sqrt(r[i] + dtype(h["eps_in"])) + dtype(h["eps_out"]))
                p[i] = p[i] - factor * g[i]
                continue
            m, v = states["exp_avg"].reshape(p.shape), states["exp_avg_sq"]
            c1, c2 = 1.0 - power(h["beta1"], t), 1.0 - power(h["beta2"], t)
            v[i] = dtype(h["beta2"]) * v[i] + dtype(1.0 - h["beta2"]) * mean
            factor = dtype(h["lr"] / c1) / (np.sqrt(v[i]) * dtype(1.0 / np.sqrt(c2)) + dtype(h["eps"]))
            m[i] = dtype(h["beta1"]) * m[i] + dtype(1.0 - h["beta1"]) * g[i]
            p[i] = p[i] - factor * m[i]


def new_states(rule: str, shape: tuple[int, ...], dtype: Any = np.float32) -> dict[str, Array]:
    """Positive numbers, like the states in the middle of a run."""
    rng = np.random.default_rng(7)
    rows = shape[:1] or (1,)
    return {
        name: rng.uniform(0.1, 1.0, rows if name == PER_ROW[rule] else shape).astype(dtype) for name in STATES[rule]
    }


def from_history(rule: str, param: Array, grads: list[Array], lr: float, decay: float) -> Array:
    """The same from a closed formula of all gradients so far, in float64, with decoupled weight decay."""
    p = param.astype(np.float64)
    for t in range(1, len(grads) + 1):
        means = [np.square(g.reshape(len(p), -1)).mean(axis=1) for g in grads[:t]]
        if rule == "rowwise_adagrad":
            rate = lr / (np.sqrt(np.sum(means, axis=0)) + 1e-8)
            move = grads[t - 1]
        else:
            first = [0.1 * 0.9 ** (t - 1 - k) for k in range(t)]
            second = [0.001 * 0.999 ** (t - 1 - k) for k in range(t)]
            move = np.tensordot(first, np.stack(grads[:t]), 1) / (1 - 0.9**t)
            rate = lr / (np.sqrt(np.tensordot(second, np.stack(means), 1) / (1 - 0.999**t)) + 1e-8)
        p = (1 - lr * decay) * p - rate.reshape(-1, *[1] * (p.ndim - 1)) * move
    return p
