"""CUDA devices, and the stream that updates run on.

The same functions and optimizer objects as on the CPU update buffers on a CUDA device, with bitwise identical results.
Updates are enqueued asynchronously: on the current stream of the library that the params come from, if that library
reports it (PyTorch does), else on the default stream; :func:`stream` chooses another one.
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
        Its number, as in ``"cuda:0"``.
    name : str
    compute_capability : (int, int)
    multiprocessors : int
    memory : int
        Bytes.

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
    """The CUDA devices that updates can run on; empty without CUDA kernels in this build, a driver, or a device.

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
    """Whether updates of buffers on a CUDA device can run: a build with CUDA kernels, a driver and a device.

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
    """Run the updates of a block on this stream, whatever libraries their buffers come from.

    The streams of the buffers' own libraries are ordered with it: an update waits for their earlier work, and their
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
        If `stream` is none of these.

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
