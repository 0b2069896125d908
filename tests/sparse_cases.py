"""Sparse gradients, and the dense ones that they represent."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers import FLOATS, Array

LEAF = 32


def gradient(
    rows: int, row_shape: tuple[int, ...], count: int, seed: int, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """Unsorted indices with duplicates, some rows many times, and their values."""
    rng = np.random.default_rng(seed)
    indices = np.minimum(rng.zipf(1.3, count) - 1, rows - 1)
    if rows > 1:
        indices[::3] = rng.integers(0, rows, len(indices[::3]))
    return indices.astype(np.int64), rng.standard_normal((count, *row_shape)).astype(dtype)


def dense(indices: Array, values: Array, shape: tuple[int, ...], compute: Any = np.float32) -> Array:
    """The dense gradient. Duplicates are added in order in leaves of 32 occurrences, then the leaves in order."""
    out = np.zeros(shape, compute)
    for row in np.unique(indices):
        of_row = values[indices == row].astype(compute)
        total = None
        for begin in range(0, len(of_row), LEAF):
            leaf = of_row[begin].copy()
            for x in of_row[begin + 1 : begin + LEAF]:
                leaf += x
            total = leaf if total is None else total + leaf
        out[row] = total
    return out


def compute_type(param: str) -> Any:
    return np.float64 if param == "float64" else np.float32


def touched(indices: Array, rows: int) -> Array:
    mask = np.zeros(rows, bool)
    mask[indices] = True
    return mask


def equal(got: Array, want: Array) -> None:
    assert got.dtype == want.dtype
    assert got.tobytes() == want.tobytes(), np.flatnonzero((got != want).ravel())[:5]


__all__ = ["FLOATS", "compute_type", "dense", "equal", "gradient", "touched"]
