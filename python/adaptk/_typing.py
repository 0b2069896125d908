"""Types of arguments."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias


class Buffer(Protocol):
    """What speaks DLPack: NumPy arrays, tensors."""

    def __dlpack__(self) -> Any: ...


Buffers: TypeAlias = "Buffer | list[Any] | tuple[Any, ...]"
