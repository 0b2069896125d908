"""Matrices, labels and weights as arguments: read in place if possible. Errors name the argument."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adaptk import _core
from adaptk.hogwild._estimator import warning_named

Array: TypeAlias = npt.NDArray[Any]


@dataclass
class Matrix:
    """CSR rows for the compiled code: finite numbers, and increasing indices within the range in each row."""

    data: Array
    indices: Array
    starts: Array | None
    rows: int
    columns: int
    stored: int
    longest: int
    counts: npt.NDArray[np.int64] | None

    @property
    def native(self) -> tuple[Array, Array, Array | None, int, int]:
        return self.data, self.indices, self.starts, self.rows, self.columns


def _dense(x: Any, name: str) -> Array:
    a = np.asarray(x)
    if a.dtype.kind == "c":
        raise ValueError(f"{name}: Complex data not supported, got dtype {a.dtype}")
    if a.dtype.kind in "USmM":
        raise ValueError(f"{name}: dtype {a.dtype}, expected numbers")
    if a.dtype.kind == "O":
        if any(isinstance(v, (bytes, dict, list)) for v in a.ravel()):
            raise TypeError(f"{name}: dtype object; argument must be a string or a number in each of its elements")
        a = a.astype(np.float64)
    if a.ndim != 2:
        raise ValueError(
            f"{name}: expected a 2D array, got {a.ndim}D of shape {a.shape}. Reshape your data by "
            f"{name}.reshape(-1, 1) if it has one feature, or {name}.reshape(1, -1) if it is one example"
        )
    return a


def _plain(a: Any, dtypes: tuple[type, ...], default: type, name: str) -> Array:
    """An array in native byte order, aligned, contiguous, with one of these dtypes."""
    a = np.asarray(a)
    dtype = a.dtype.newbyteorder("=") if any(a.dtype == d for d in dtypes) else np.dtype(default)
    if a.dtype.kind not in "biuf" and dtype != a.dtype:
        raise TypeError(f"{name}: dtype {a.dtype}, expected numbers")
    return np.require(a, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def _in_order(data: Array, indices: Array, starts: Array, rows: int) -> tuple[Array, Array, Array]:
    """The same rows with increasing indices, in new arrays; duplicates are added."""
    lengths = np.diff(starts)
    row = np.repeat(np.arange(rows), lengths)
    begin, end = int(starts[0]), int(starts[-1])
    data, indices = data[begin:end], indices[begin:end]
    order = np.lexsort((indices, row))
    row, indices, data = row[order], indices[order], data[order]
    new = np.ones(len(data), bool)
    new[1:] = (row[1:] != row[:-1]) | (indices[1:] != indices[:-1])
    at = np.flatnonzero(new)
    new_starts = np.searchsorted(row[at], np.arange(rows + 1)).astype(starts.dtype)
    return np.add.reduceat(data, at), indices[at], new_starts


def matrix(x: Any, name: str = "X", *, dtype: Any = None, columns: int | None = None, count: bool = False) -> Matrix:
    """Check ``x``; with ``count`` also return the number of rows with each feature."""
    compressed: Any = None
    if hasattr(x, "tocsr"):
        x = x.tocsr()
        compressed = (x.data, x.indices, x.indptr)
        shape = tuple(x.shape)
    elif isinstance(x, tuple) and len(x) in (3, 4) and all(isinstance(a, np.ndarray) for a in x[:3]):
        compressed = x[:3]
        widest = int(x[1].max()) + 1 if len(x[1]) else 0
        shape = tuple(x[3]) if len(x) == 4 else (len(x[2]) - 1, columns if columns is not None else widest)
    if compressed is None:
        a = _plain(_dense(x, name), (np.float32, np.float64), np.float64, name)
        if dtype is not None:
            a = np.ascontiguousarray(a, dtype)
        rows, wide = a.shape
        data, starts = a.reshape(-1), None
        indices: Array = np.arange(wide, dtype=np.int32)
    else:
        if len(shape) != 2:
            raise ValueError(f"{name}: expected a 2D matrix, got shape {shape}")
        rows, wide = (int(n) for n in shape)
        if np.asarray(compressed[0]).dtype.kind == "c":
            raise ValueError(f"{name}: Complex data not supported, got dtype {compressed[0].dtype}")
        data = _plain(compressed[0], (np.float32, np.float64), np.float64, name)
        if dtype is not None:
            data = np.ascontiguousarray(data, dtype)
        for what, part in (("indices", compressed[1]), ("indptr", compressed[2])):
            if part.dtype.kind not in "iu":
                raise TypeError(f"{name}: {what} of dtype {part.dtype}, expected int32 or int64")
        indices = _plain(compressed[1], (np.int32, np.int64), np.int64, name)
        starts = _plain(compressed[2], (np.int32, np.int64), np.int64, name)
        if data.ndim != 1 or indices.shape != data.shape or starts.shape != (rows + 1,):
            raise ValueError(
                f"{name}: data of shape {data.shape}, indices {indices.shape} and indptr {starts.shape}, expected "
                f"(k,), (k,) and ({rows + 1},)"
            )
    if rows == 0 or wide == 0:
        what, n = ("sample", rows) if rows == 0 else ("feature", wide)
        raise ValueError(f"{name}: {n} {what}(s) (shape=({rows}, {wide})) while a minimum of 1 is required.")
    counts = np.zeros(wide, np.int64) if count else None
    report = _core.hogwild_check((data, indices, starts, rows, wide), counts)
    decreasing, outside, not_finite, not_canonical, stored, longest = report
    if decreasing >= 0:
        raise ValueError(f"{name}: indptr decreases, or goes beyond the {len(data)} elements, at row {decreasing}")
    if outside >= 0:
        raise ValueError(f"{name}: row {outside} has an index outside of [0, {wide})")
    if not_finite >= 0:
        raise ValueError(f"{name}: row {not_finite} has a NaN or inf; Input {name} contains NaN or infinity")
    if not_canonical >= 0 and starts is not None:
        data, indices, starts = _in_order(data, indices, starts, rows)
        if counts is not None:
            counts[:] = 0
        *_, stored, longest = _core.hogwild_check((data, indices, starts, rows, wide), counts)
    return Matrix(data, indices, starts, rows, wide, stored, longest, counts)


def vector(values: Any, name: str, rows: int) -> Array:
    """Check a one-dimensional array with one element for each row."""
    a = np.asarray(values)
    if a.ndim == 2 and a.shape[1] == 1:
        warnings.warn(
            f"A column-vector {name} was passed when a 1d array was expected; give {name}.ravel()",
            warning_named("DataConversionWarning", UserWarning),
            stacklevel=4,
        )
        a = a.ravel()
    if a.ndim != 1:
        raise ValueError(f"{name} should be a 1d array, got an array of shape {a.shape} instead.")
    if len(a) != rows:
        raise ValueError(f"{name}: {len(a)} elements, expected {rows}, one for each row of X")
    return a


def numbers(values: Any, name: str, rows: int) -> npt.NDArray[np.float64]:
    """As :func:`vector`, for finite numbers."""
    a = vector(values, name, rows)
    if a.dtype.kind == "c":
        raise ValueError(f"{name}: Complex data not supported, got dtype {a.dtype}")
    try:
        x = np.ascontiguousarray(a, np.float64)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    finite = np.isfinite(x)
    if not finite.all():
        raise ValueError(
            f"{name}: element {int(finite.argmin())} is NaN or inf; Input {name} contains NaN or Input {name} contains "
            "infinity or a value too large for dtype('float64')."
        )
    return x


def sample_weights(values: Any, rows: int) -> npt.NDArray[np.float64] | None:
    """Check weights: finite, >= 0 and not all zero, or ``None``."""
    if values is None:
        return None
    a = np.asarray(values)
    if a.ndim == 0:
        a = np.full(rows, a)
    if a.ndim != 1:
        raise ValueError(f"sample_weight: Sample weights must be 1D array or scalar, got shape {a.shape}")
    if len(a) != rows:
        raise ValueError(f"sample_weight.shape == {a.shape}, expected ({rows},)!")
    w = numbers(a, "sample_weight", rows)
    if (w < 0).any():
        raise ValueError(f"sample_weight must be >= 0, got {w.min():g} for row {int(w.argmin())}")
    if not (w > 0).any():
        raise ValueError("sample_weight: Sample weights must contain at least one non-zero number.")
    return w
