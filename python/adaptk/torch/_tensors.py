"""Tensors of any class and layout, as the native step sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptk.torch._dtensor import is_sharded


def is_wrapper(t: Tensor) -> bool:
    """Whether its class keeps the numbers elsewhere, in other tensors as a rule, and answers operations by itself."""
    if type(t).__torch_dispatch__ is Tensor.__torch_dispatch__ or is_sharded(t):
        return False
    try:
        return t.numel() == 0 or t.data_ptr() == 0
    except RuntimeError:  # it has no storage
        return True


def plain_copy(t: Tensor, where: str) -> Tensor:
    """A plain copy of a wrapper."""
    plain = torch.empty(t.shape, dtype=t.dtype, device=t.device)
    try:
        plain.copy_(t)
    except Exception as error:
        raise TypeError(
            f"{where}: a {type(t).__name__}, which has no memory of its own, and a plain tensor cannot copy_() from "
            f"it: {error}"
        ) from error
    return plain


def check_wrapper(p: Tensor, where: str) -> None:
    """What a step does to a wrapper is tried on a copy of it, or else with the numbers that it has."""
    numbers = plain_copy(p, where)
    try:
        twin = p.detach().clone()
        (twin if type(twin) is type(p) else p.detach()).copy_(numbers)
    except Exception as error:
        raise TypeError(
            f"{where}: a {type(p).__name__}, which has no memory of its own and cannot copy_() from a plain tensor: "
            f"{error}"
        ) from error


def is_dense(t: Tensor) -> bool:
    expected = 1
    if not t.is_contiguous():
        axes = zip(t.stride(), t.shape, strict=True)
        for stride, size in sorted((stride, size) for stride, size in axes if size != 1):
            if stride != expected and t.numel() > 0:
                return False
            expected *= size
    return not (t.is_neg() or t.is_conj())


def in_memory_order(t: Tensor) -> Tensor:
    """The elements of a dense tensor in one row."""
    return t.detach().as_strided((t.numel(),), (1,))


def row_shape(p: Tensor) -> tuple[int, ...]:
    """That of a state with one number for each row."""
    return (p.shape[0] if p.ndim > 0 else 1,)


def full_like(p: Tensor, value: float, dtype: torch.dtype) -> Tensor:
    # PyTorch steps the real and the imaginary parts of complex params as numbers of their own.
    fill = complex(value, value) if p.is_complex() else value
    if is_wrapper(p):
        return torch.full(p.shape, fill, dtype=dtype, device=p.device)
    if value == 0.0:
        return torch.zeros_like(p, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)
    return torch.full_like(p, fill, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)


def in_layout_of(t: Tensor, p: Tensor, dtype: torch.dtype) -> Tensor:
    if is_wrapper(p):
        return torch.empty(p.shape, dtype=dtype, device=p.device).copy_(t)
    return torch.empty_like(p, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format).copy_(t)


def is_captured(p: Tensor) -> bool:
    """Whether what is done to a tensor goes into a CUDA graph and not to the device."""
    return p.is_cuda and torch.cuda.is_current_stream_capturing()


def detached(x: Any) -> Any:
    """A hyperparameter without the graph that it may belong to, about which PyTorch warns."""
    return x.detach() if isinstance(x, Tensor) else x


def check_storage(t: Tensor, where: str) -> None:
    """Storage may be freed, or made smaller, under a tensor that keeps its shape."""
    if t.numel() == 0 or t.is_meta or is_wrapper(t):
        return
    end = t.storage_offset() + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
    bytes_now = t.untyped_storage().nbytes()
    if end * t.element_size() > bytes_now:
        raise ValueError(
            f"{where}: its storage holds {bytes_now} bytes, but shape {tuple(t.shape)} of {t.dtype} reaches to "
            f"{end * t.element_size()}; it was freed or made smaller (untyped_storage().resize_)"
        )


def overlaps_itself(t: Tensor) -> bool:
    """Whether two elements lie at one address, as in an expanded tensor."""
    axes = sorted((stride, size) for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1)
    if t.numel() == 0:
        return False
    reach = 0
    for stride, size in axes:
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False
    if any(stride == 0 for stride, _ in axes):
        return True
    places = torch.zeros((), dtype=torch.int64)
    for stride, size in axes:
        places = (places.unsqueeze(-1) + stride * torch.arange(size)).flatten()
    return len(set(places.tolist())) < t.numel()
