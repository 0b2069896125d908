"""CUDA devices, and the stream for updates.

The same functions and optimizer objects as on the CPU update buffers on a CUDA device, with bitwise identical results.
Updates are enqueued asynchronously. The stream is the current stream of the library of the params if that library
reports it (PyTorch does), else the default stream. :func:`stream` chooses another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptk import _core
from adaptk._names import face

__all__ = ["Device", "devices", "is_available", "stream"]


@dataclass(frozen=True)
class Device:
    """A CUDA device.

    Attributes
    ----------
    index : int
        The index of the device, as in ``"cuda:0"``.
    name : str
    compute_capability : (int, int)
    multiprocessors : int
    memory : int
        In bytes.

    Examples
    --------
    >>> import adaptk
    >>> all(device.memory > 0 for device in adaptk.cuda.devices())
    True
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory: int


def devices() -> list[Device]:
    """The CUDA devices for updates. The list is empty if the build has no CUDA kernels, or without driver or device.

    Raises
    ------
    ImportError
        If the build has CUDA kernels that cannot be loaded.
    RuntimeError
        If a device does not answer.

    Examples
    --------
    >>> import adaptk
    >>> isinstance(adaptk.cuda.devices(), list)
    True
    """
    return [Device(**device) for device in _core.cuda_devices() or []]


def is_available() -> bool:
    """Whether updates can run on a CUDA device: whether there are CUDA kernels in the build, a driver and a device.

    Examples
    --------
    >>> import adaptk
    >>> isinstance(adaptk.cuda.is_available(), bool)
    True
    """
    return bool(_core.cuda_devices())


def _handle(stream: Any) -> int:
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    if hasattr(stream, "__cuda_stream__"):  # cuda.core and others: (version, handle)
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr"):  # PyTorch, CuPy
        if isinstance(getattr(stream, name, None), int):
            return int(getattr(stream, name))
    raise TypeError(f"stream: expected a CUDA stream or its handle as an integer, got {type(stream).__name__}")


@contextmanager
def stream(stream: Any, *, device: int | None = None) -> Iterator[None]:
    """Run the updates of a ``with`` block on this stream, whatever libraries their buffers come from.

    It is synchronized with the current streams of these libraries: an update waits for their earlier work, and their
    later work waits for the update.

    Parameters
    ----------
    stream : object or int
        A stream of PyTorch, CuPy or another library with ``__cuda_stream__``, or a ``cudaStream_t`` as an integer.
    device : int, optional
        The device of the stream. By default the stream is used for every device.

    Raises
    ------
    TypeError
        If `stream` is of another type.

    Examples
    --------
    >>> import adaptk, numpy as np
    >>> with adaptk.cuda.stream(0):  # the default stream
    ...     w = np.zeros(2)
    ...     adaptk.ops.sgd(w, np.ones(2), step=1, lr=1.0)  # CPU buffers are updated at once
    >>> w
    array([-1., -1.])
    """
    before = _core.name_stream(_handle(stream), -1 if device is None else device)
    try:
        yield
    finally:
        _core.name_stream(*((None, -1) if before is None else before))


if not TYPE_CHECKING:
    __getattr__, __dir__ = face(__name__, __all__)
