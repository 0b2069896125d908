"""Arrays for states: made by the library that the params come from, on the device of the params."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from adaptk import _core


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _namespace(x: Any) -> Any:
    """The array API's functions for arrays on a device."""
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    raise TypeError(
        f"params: states beside {type(x).__name__} on a device cannot be made, for it has no __array_namespace__; "
        "make them yourself and use adaptk.ops"
    )


def _where(x: Any) -> tuple[AbstractContextManager[Any], dict[str, Any]]:
    """How to make new arrays on the device of `x`: CuPy uses the current device, other libraries take an argument."""
    if type(x).__module__.partition(".")[0] == "cupy":
        return x.device, {}
    return nullcontext(), {"device": x.device}


def bfloat16() -> Any:
    """NumPy's bfloat16, which comes from ml_dtypes."""
    try:
        from ml_dtypes import bfloat16 as dtype
    except ImportError:
        raise ImportError("state_dtype: NumPy arrays of bfloat16 need ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(dtype)


def full_like(param: Any, value: float, dtype: str | None = None) -> Any:
    """A state array with the param's shape and layout: float64 for float64 params, else `dtype` or float32."""
    if is_torch(param):
        import torch

        torchs = torch.float64 if param.dtype == torch.float64 else getattr(torch, dtype or "float32")
        return torch.full_like(param, value, dtype=torchs, requires_grad=False, memory_format=torch.preserve_format)
    shape, strides, name, device = _core.layout(param, "params")
    kind = "float64" if name == "float64" else dtype or "float32"
    outermost_first = sorted(range(len(shape)), key=lambda i: -strides[i])
    extents = tuple(shape[i] for i in outermost_first)
    back = tuple(int(i) for i in np.argsort(outermost_first))
    if device == "cpu":
        array = np.full(extents, value, dtype=bfloat16() if kind == "bfloat16" else kind)
        return array.transpose(back) if len(shape) > 1 else array
    xp = _namespace(param)
    current, where = _where(param)
    with current:
        state = xp.full(extents, value, dtype=getattr(xp, kind), **where)
    return xp.permute_dims(state, back) if back != tuple(range(len(shape))) else state


def full(like: Any, shape: Sequence[int], value: float) -> Any:
    """A C-ordered array of the library and on the device of `like`: float64 if `like` is float64, else float32."""
    if is_torch(like):
        import torch

        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.full(tuple(shape), value, dtype=dtype, device=like.device)
    kind = "float64" if _core.layout(like, "params")[2] == "float64" else "float32"
    if _on_host(like):
        return np.full(tuple(shape), value, kind)
    xp = _namespace(like)
    current, where = _where(like)
    with current:
        return xp.full(tuple(shape), value, dtype=getattr(xp, kind), **where)


def put(array: np.ndarray[Any, Any], like: Any) -> Any:
    """A copy of the array, as an array of the library and on the device of `like`."""
    if is_torch(like):
        import torch

        return torch.from_numpy(array).to(like.device)
    current, where = _where(like)
    with current:
        return _namespace(like).asarray(array, **where)


def row(like: Any, count: int, value: float, dtype: str = "float32") -> Any:
    """`count` elements of the given dtype, as an array of the library and on the device of `like`."""
    if is_torch(like):
        import torch

        return torch.full((count,), value, dtype=getattr(torch, dtype), device=like.device)
    if _on_host(like):
        return np.full(count, value, dtype)
    xp = _namespace(like)
    current, where = _where(like)
    with current:
        return xp.full((count,), value, dtype=getattr(xp, dtype), **where)


def zeros(shape: Sequence[int], like: Any) -> Any:
    """Zeros in float32 on the CPU, as an array of the library of `like`."""
    if is_torch(like):
        import torch

        return torch.zeros(tuple(shape), dtype=torch.float32, device=like.device)
    return np.zeros(tuple(shape), np.float32)


def float32(x: Any) -> Any:
    """Numbers of a saved state in float32."""
    if is_torch(x):
        return x.float()
    return x.astype(np.float32, copy=False)


def like(numbers: list[int], x: Any) -> Any:
    """A 1-d array of these numbers, with the dtype, library and device of `x`."""
    if is_torch(x):
        import torch

        return torch.tensor(numbers, dtype=x.dtype, device=x.device)
    return np.array(numbers, x.dtype)


def uint8(like: Any) -> Any:
    """The dtype uint8 of the library of `like`."""
    if is_torch(like):
        import torch

        return torch.uint8
    return np.uint8


def float8(like: Any) -> Any:
    """The dtype float8_e4m3fn of the library of `like`; for NumPy it comes from ml_dtypes."""
    if is_torch(like):
        import torch

        return torch.float8_e4m3fn
    try:
        from ml_dtypes import float8_e4m3fn
    except ImportError:
        raise ImportError("state: NumPy arrays of float8_e4m3fn need ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(float8_e4m3fn)


def _on_host(x: Any) -> bool:
    return isinstance(x, (np.ndarray, np.generic, int, float)) or not _core.on_cuda(x)


def copy(x: Any) -> Any:
    """A copy in C order, because safetensors accepts no other layout."""
    if is_torch(x):
        import torch

        return x.detach().clone(memory_format=torch.contiguous_format)
    if _on_host(x):
        return np.array(x, order="C", copy=True)
    return _namespace(x).asarray(x, copy=True)


def scalar(x: float | int, like: Any) -> Any:
    """A 0-d array of the library of `like`, so that a state dict contains one kind of array."""
    array = np.array(x, dtype=np.int64 if isinstance(x, int) and not isinstance(x, bool) else np.float64)
    if is_torch(like):
        import torch

        return torch.from_numpy(array)
    return array


def text(x: str, like: Any) -> Any:
    """A string as an array of its ASCII codes, of the library of `like`, because tensors cannot hold strings."""
    array = np.array(list(x.encode("ascii")), dtype=np.uint8)
    if is_torch(like):
        import torch

        return torch.from_numpy(array)
    return array


def read_text(array: np.ndarray[Any, Any]) -> str:
    """The string that :func:`text` has saved."""
    if array.dtype.kind == "U":
        return str(array)
    return "".join(map(chr, array.ravel().tolist())) if array.dtype.kind in "iu" else repr(array)


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A NumPy view or copy of a saved array."""
    if is_torch(x):
        import torch

        x = x.detach().cpu()
        # NumPy has no bfloat16; float32 represents all its values.
        return np.asarray(x.float() if x.dtype == torch.bfloat16 else x)
    if _on_host(x):
        array = np.asarray(x)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    if hasattr(x, "get"):  # CuPy
        return np.asarray(x.get())
    return np.from_dlpack(x, device="cpu", copy=True)  # NumPy 2.1


def named_again(x: Any) -> Any:
    """A bfloat16 array that ``np.load`` has read: NumPy's files store the dtype as two unnamed bytes."""
    return x.view(bfloat16()) if isinstance(x, np.ndarray) and x.dtype == np.dtype("V2") else x


def assign(target: Any, value: np.ndarray[Any, Any]) -> None:
    """Write saved values into a state array of the same shape."""
    if is_torch(target):
        import torch

        target.copy_(torch.from_numpy(np.array(value, order="C", copy=True)))
        return
    with np.errstate(over="ignore"):  # float64 values beyond the range of float32 become inf, as in torch
        if _on_host(target):
            target[...] = value.astype(target.dtype)
        else:
            xp = _namespace(target)
            current, where = _where(target)
            # Codes are integers and are saved unchanged.
            narrow = value if value.dtype.kind in "iu" else value.astype(_core.layout(target, "state")[2])
            with current:
                target[...] = xp.asarray(narrow, **where)
