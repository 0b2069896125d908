"""Sparse gradients, with values for some rows of a param, in types that the core cannot read."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptk import _backend, _core
from adaptk._names import hint
from adaptk._registry import Rule

_MODES = ("lazy", "dense", "catch_up")


def check_mode(mode: Any, rule: Rule | None = None) -> str:
    """Check the option `sparse`: what a sparse gradient does to the rows without values."""
    if not isinstance(mode, str):
        raise TypeError(f"sparse: expected a string, got {type(mode).__name__}")
    if mode not in _MODES:
        raise ValueError(f"sparse: {mode!r} is not one of {', '.join(map(repr, _MODES))}{hint(mode, _MODES)}")
    if mode == "catch_up" and rule is not None and not rule.catch_up:
        raise ValueError(
            f"sparse: 'catch_up': {rule.name} has no closed form for steps with a gradient of 0; use 'lazy' or 'dense'"
        )
    return mode


def is_of_rows(grad: Any) -> bool:
    """Whether a gradient is sparse."""
    if isinstance(grad, tuple):
        return len(grad) == 2
    return not isinstance(grad, np.ndarray) and hasattr(grad, "tocsr")


def new_last_step(param: Any) -> dict[str, Any]:
    """An array for the last step of each row of a param; empty if its rows cannot be stepped separately."""
    shape, strides, dtype, device = _core.layout(param, "params")
    expected = {"float64": 8, "float32": 4}.get(dtype, 2)
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent > 1 and stride != expected:
            return {}
        expected *= extent
    if not shape or not device.startswith(("cpu", "cuda")):
        return {}
    counts = np.zeros(shape[0], np.int64)
    if not _backend.is_torch(param):
        return {"last_step": counts}
    import torch

    return {"last_step": torch.from_numpy(counts)}


def integers(given: Any, name: str) -> np.ndarray[Any, Any]:
    """An integer array of another library as a NumPy array that shares its memory.

    Raises
    ------
    TypeError
        If it is not an array.
    """
    if _backend.is_torch(given):
        return np.asarray(given.detach())
    if hasattr(given, "__dlpack__"):
        return np.from_dlpack(given)
    if hasattr(given, "__array_interface__"):
        return np.asarray(given)
    raise TypeError(
        f"{name}: expected an array of int32 or int64, got {type(given).__name__}"
        + ("; pass np.asarray(...) of it" if isinstance(given, (list, tuple, range)) else "")
    )


def rows_of(matrix: Any, shape: tuple[int, ...], name: str) -> tuple[Any, Any]:
    """The rows of a sparse matrix of SciPy that have entries, as (indices, values).

    For a param with one axis the matrix has one row or one column. Duplicate entries are added.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if len(shape) == 1 and tuple(matrix.shape) in ((1, *shape), (*shape, 1), shape):
        entries = matrix.tocoo()
        axis = -1 if tuple(matrix.shape) in ((1, *shape), shape) else 0
        index = entries.coords[axis] if hasattr(entries, "coords") else (entries.row, entries.col)[axis]
        return np.ascontiguousarray(index), np.ascontiguousarray(entries.data)
    if len(shape) != 2 or tuple(matrix.shape) != shape:
        raise ValueError(f"{name}: a sparse matrix of shape {tuple(matrix.shape)}, expected {shape} like the param")
    rows = matrix.tocsr()
    indices = np.flatnonzero(np.diff(rows.indptr))
    return indices, np.ascontiguousarray(rows[indices].toarray())
