"""Types of arguments."""

from __future__ import annotations

from typing import Any, Protocol, SupportsFloat, TypeAlias


class Buffer(Protocol):
    """Objects that support DLPack: NumPy arrays, tensors."""

    def __dlpack__(self) -> Any: ...


Buffers: TypeAlias = "Buffer | list[Any] | tuple[Any, ...]"
# Also sparse gradients: pairs (indices, values), and SciPy's sparse matrices.
Gradients: TypeAlias = "Buffers | Any"
# A number, or a buffer that holds one on the CUDA device of the params.
Number: TypeAlias = "SupportsFloat | Buffer"
