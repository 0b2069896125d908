"""CUDA devices. This build has no CUDA kernels, so there are none to use."""

from __future__ import annotations

__all__ = ["is_available"]


def is_available() -> bool:
    """Whether updates of buffers on a CUDA device can run: a build with CUDA kernels, a driver and a device.

    Examples
    --------
    >>> import adaptk
    >>> isinstance(adaptk.cuda.is_available(), bool)
    True
    """
    return False
