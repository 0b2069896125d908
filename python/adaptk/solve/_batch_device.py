"""Batches of fits whose data are on a CUDA device: kernels for built-in models, bitwise identical to the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptk import _backend, _core
from adaptk.solve._parameters import index
from adaptk.solve._result import Batch

__all__ = ["fit", "is_on_device", "refuse"]


def is_on_device(x: Any) -> bool:
    return not isinstance(x, (np.ndarray, np.generic, list, tuple, int, float)) and bool(_core.on_cuda(x))


def refuse(**arguments: Any) -> None:
    """Raise if an argument is on a device while data are on the CPU."""
    for name, value in arguments.items():
        values = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else (value,)
        )
        if any(map(is_on_device, values)):
            raise ValueError(f"{name}: on a CUDA device, but data are on the CPU")


def _is_array(x: Any) -> bool:
    """Whether x is an array, which must be on the device of the data; numbers and sequences of them are not."""
    if isinstance(x, (list, tuple)):
        return any(map(_is_array, x))
    return any(hasattr(x, name) for name in ("__dlpack__", "__array_interface__", "__cuda_array_interface__"))


def _row(value: Any, name: str, like: Any, shape: Sequence[int]) -> Any:
    """An array unchanged, or numbers as a row on the device."""
    if value is None or _is_array(value):
        return value
    try:
        row = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected numbers, or an array on the device of data") from None
    if row.shape not in ((), tuple(shape)):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {row.shape}")
    return _backend.put(np.array(np.broadcast_to(row, tuple(shape)), order="C"), like)


def _bounds(bounds: Any, n: int, like: Any) -> tuple[Any, Any]:
    if bounds is None:
        return None, None
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = (bounds.lb, bounds.ub)
    try:
        low, high = bounds
    except (TypeError, ValueError):
        raise ValueError(f"bounds: expected a pair (lower, upper) of numbers or of shape {(n,)} or (k, {n})") from None
    # A number takes the shape of an array that is given with it.
    for number, array in ((low, high), (high, low)):
        if not _is_array(number) and np.ndim(number) == 0 and _is_array(array):
            filled = _backend.full(like, tuple(array.shape), float(number))
            low, high = (filled, high) if number is low else (low, filled)
            break
    return _row(low, "bounds", like, (n,)), _row(high, "bounds", like, (n,))


def _fixed(fixed: Any, names: Sequence[str], n: int, x0: Any) -> tuple[np.ndarray[Any, Any] | None, Any]:
    """Which parameters keep their start, and the start."""
    if fixed is None:
        return None, x0
    keep = np.zeros(n, np.uint8)
    if isinstance(fixed, Mapping):
        if _is_array(x0):
            # Otherwise it would be changed in place, or copied by the library it belongs to.
            raise NotImplementedError("fixed: values beside an x0 on a device; put them into x0, and give booleans")
        x0 = list(x0)
        for key, value in fixed.items():
            if _is_array(value):
                # Starts are made on the host, which would have to wait for a number on the device.
                raise NotImplementedError(f"fixed[{key!r}]: beside data on a device it has to be a number")
            j = index(key, n, names, "fixed")
            x0[j], keep[j] = float(value), 1
        return keep, x0
    # The number of fixed parameters must be known on the host, to check before anything is written that there are
    # enough points.
    if isinstance(fixed, (list, tuple)) and len(fixed) != n:
        raise ValueError(f"fixed: {len(fixed)} booleans, expected {n}, one for each parameter")
    if not isinstance(fixed, (list, tuple)) or not all(isinstance(b, bool) for b in fixed):
        raise NotImplementedError(f"fixed: beside data on a device a dict, or a list of {n} booleans")
    return np.array(fixed, np.uint8), x0


def fit(
    choice: Any,
    model: Any,
    names: Sequence[str],
    data: Any,
    *,
    x0: Any,
    coordinates: Any,
    grid: Any,
    weights: Any,
    bounds: Any,
    fixed: Any,
    f_scale: Any,
    options: tuple[Any, ...],
    covariance: bool,
) -> Batch:
    """The fits; `grid(shape, dtype, inputs)` makes coordinates."""
    # Polynomials and rational functions have any number of parameters, but a kernel is compiled for one number.
    if not _core.has_batch_kernel(choice):
        raise NotImplementedError(f"model: {model!r} has no kernel for data on a CUDA device; copy them to the CPU")
    _, n, inputs, _, _ = choice
    shape = tuple(map(int, data.shape))
    if len(shape) < 2:
        raise ValueError(f"data: expected shape (k, m), got {shape}")
    k, *image = shape
    m = math.prod(image)
    keep, x0 = _fixed(fixed, names, n, x0)
    free = n - (0 if keep is None else int(keep.sum()))
    if m < max(free, 1):
        raise ValueError(f"data: {m} points cannot determine {free} parameters")
    if coordinates is None:
        coordinates = _backend.put(grid(tuple(image), np.dtype(np.float32), inputs), data)
    low, high = _bounds(bounds, n, data)
    given = {
        "data": data,
        "x0": _row(x0, "x0", data, (n,)),
        "coordinates": _row(coordinates, "coordinates", data, (m,) if inputs == 1 else (m, inputs)),
        "weights": _row(weights, "weights", data, (m,)),
        "lower": low,
        "upper": high,
        "fixed": None if keep is None else _backend.put(keep, data),
        "f_scale": None if options[6] == 0 else _row(f_scale, "f_scale", data, ()),
    }
    raw = {
        "x": _backend.full(data, (k, n), 0.0),
        "cost": _backend.full(data, (k,), 0.0),
        "status": _backend.row(data, k, 0, "int32"),
        "nit": _backend.row(data, k, 0, "int32"),
    }
    if covariance:
        raw |= {"cov": _backend.full(data, (k, n, n), 0.0), "x_std": _backend.full(data, (k, n), 0.0)}
    _core.fit_batch_on_device(choice, options, given, raw)
    result = Batch(raw)
    result["success"] = raw["status"] > 0
    result["message"] = f"{k} problems on {data.device}; success says which have converged."
    return result
