"""Arrays of the libraries that parameters come from: states are made by the params' own library, where they live."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from adaptk import _core


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def full_like(param: Any, value: float) -> Any:
    """A state array: the param's shape and layout, float64 beside float64 and float32 beside all else."""
    if is_torch(param):
        import torch

        dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
        return torch.full_like(param, value, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)
    shape, strides, name = _core.layout(param, "params")
    dtype_ = np.float64 if name == "float64" else np.float32
    outermost_first = sorted(range(len(shape)), key=lambda i: -strides[i])
    array = np.full([shape[i] for i in outermost_first], value, dtype=dtype_)
    return array.transpose(np.argsort(outermost_first)) if len(shape) > 1 else array


def copy(x: Any) -> Any:
    """A copy in C order, whatever the layout: safetensors takes no other tensors."""
    if is_torch(x):
        import torch

        return x.detach().clone(memory_format=torch.contiguous_format)
    return np.array(x, order="C", copy=True)


def scalar(x: float | int, like: Any) -> Any:
    """A 0-d array of the library that `like` is from, so that a state dict holds one kind of array."""
    array = np.array(x, dtype=np.int64 if isinstance(x, int) and not isinstance(x, bool) else np.float64)
    if is_torch(like):
        import torch

        return torch.from_numpy(array)
    return array


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A NumPy view or copy of a saved array."""
    if is_torch(x):
        import torch

        x = x.detach().cpu()
        # NumPy has no bfloat16; float32 holds every value of it.
        return np.asarray(x.float() if x.dtype == torch.bfloat16 else x)
    return np.asarray(x)


def assign(target: Any, value: np.ndarray[Any, Any]) -> None:
    """Write saved values into a state array of the same shape."""
    if is_torch(target):
        import torch

        target.copy_(torch.from_numpy(np.array(value, order="C", copy=True)))
    else:
        with np.errstate(over="ignore"):  # float64 beyond float32 is inf, as in torch
            np.copyto(target, value, casting="same_kind")
