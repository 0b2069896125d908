"""Threads, instruction sets, the build, sums of gradients and their norm."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Literal, overload

from adaptk import _core


class _Info(dict[str, Any]):
    """A dict that is printed with one line for each item."""

    def __repr__(self) -> str:
        def text(value: Any) -> str:
            if isinstance(value, dict):
                return ", ".join(f"{k} {text(v)}" for k, v in value.items())
            return " ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)

        width = max(map(len, self), default=0)
        return "\n".join(f"{name.ljust(width)}  {text(value)}" for name, value in self.items())


def build_info() -> dict[str, Any]:
    """How this installation of adaptk was built.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``isas`` (the instruction sets in the build), ``openmp`` (the date of the
        specification, or ``None`` if the library uses its own threads), ``eigen`` (the version of the Eigen headers)
        and ``cuda`` (a dict of ``toolkit`` and ``architectures``, or ``None`` if built without CUDA).

    Examples
    --------
    >>> import adaptk
    >>> adaptk.build_info()["version"] == adaptk.__version__
    True
    """
    return _Info(
        version=_core.version,
        compiler=_core.compiler,
        isas=list(_core.built_isas()),
        openmp=_core.openmp,
        eigen=_core.eigen,
        cuda=_cuda_info(),
    )


def _cuda_info() -> dict[str, Any] | None:
    try:
        # `from adaptk import _cuda` would raise a different error if the module does not exist.
        _cuda = import_module("adaptk._cuda")
    except ModuleNotFoundError:
        return None
    return {"toolkit": _cuda.toolkit, "architectures": _cuda.architectures.split()}


def _installed(*parts: str) -> str:
    """A path next to the compiled modules, which some editable installations keep apart from the sources."""
    return os.path.join(os.path.dirname(os.path.realpath(_core.__file__)), *parts)


def get_include() -> str:
    """The folder of the C and C++ headers, for programs that include ``adaptk/adaptk.h``.

    Examples
    --------
    >>> import adaptk, pathlib
    >>> (pathlib.Path(adaptk.get_include()) / "adaptk" / "adaptk.h").exists()
    True
    """
    return _installed("include")


def get_cmake_dir() -> str:
    """The folder of the CMake package, for ``cmake -Dadaptk_DIR=...`` and ``find_package(adaptk CONFIG)``.

    ``python -m adaptk info --cmake-dir`` prints it.

    Examples
    --------
    >>> import adaptk, pathlib
    >>> (pathlib.Path(adaptk.get_cmake_dir()) / "adaptk-config.cmake").exists()
    True
    """
    return _installed("lib", "cmake", "adaptk")


def get_num_threads() -> int:
    """The number of threads for a large step.

    Initially ``ADAPTK_NUM_THREADS``, else OpenMP's default (``OMP_NUM_THREADS``, else the number of cores), or the
    number of cores if the library uses its own threads. A child of ``fork()`` uses one thread, because threads do not
    survive a fork. Results do not depend on it.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.get_num_threads() >= 1
    True
    """
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads for a large step.

    Parameters
    ----------
    n : int in [1, 1024]

    Raises
    ------
    ValueError
        If `n` is out of range.
    RuntimeError
        If `n` is above 1 in a child of ``fork()``.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.set_num_threads(adaptk.get_num_threads())
    """
    _core.set_num_threads(n)


def get_isa() -> str:
    """The current instruction set: the fastest that the processor supports, or the chosen one.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.get_isa() in adaptk.available_isas()
    True
    """
    return _core.get_isa()


def set_isa(name: str) -> None:
    """Choose the instruction set. The environment variable ``ADAPTK_ISA`` does the same at import.

    Parameters
    ----------
    name : str
        One of :func:`available_isas`. Results do not depend on it.

    Raises
    ------
    ValueError
        If the name is unknown or the processor does not support it.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.set_isa(adaptk.available_isas()[-1])
    """
    _core.set_isa(name)


def available_isas() -> list[str]:
    """The instruction sets that this processor and this build support, slowest first.

    Returns
    -------
    list of str
        Some of ``"portable"``, ``"x86-64-v2"``, ``"x86-64-v3"``, ``"x86-64-v4"`` and ``"neon"``.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.available_isas()[0]
    'portable'
    """
    return _core.available_isas()


@overload
def accumulate(into: Any, grads: Any, scale: float = 1.0, *, norm: Literal[False] = False) -> None: ...
@overload
def accumulate(into: Any, grads: Any, scale: float = 1.0, *, norm: Literal[True]) -> float: ...
@overload
def accumulate(into: Any, grads: Any, scale: float = 1.0, *, norm: bool = False) -> float | None: ...
def accumulate(into: Any, grads: Any, scale: float = 1.0, *, norm: bool = False) -> float | None:
    """Add gradients to wider buffers in place: ``into += scale * grads``.

    Use it to accumulate bfloat16 or float16 gradients of several backward passes before one step, without losing small
    values. The last call can also return the norm, which is computed while the sums are in the cache. A step that clips
    by this norm reads the gradients only once::

        adaptk.accumulate(sums, grads)
        norm = adaptk.accumulate(sums, more_grads, norm=True)
        opt.step(sums, clip_norm=1.0, grad_norm=norm, zero_grad=True)

    Parameters
    ----------
    into : buffer or sequence of buffers
        float32 or float64, dense in memory.
    grads : as into
        With the shapes and strides of `into`; float32, float64, bfloat16, float16 or float8. Each gradient is converted
        to the dtype of its buffer, multiplied by `scale` in that dtype, and added.
    scale : float
        Factor for these gradients.
    norm : bool
        Whether to return the norm of `into` after the addition.

    Returns
    -------
    float or None
        With `norm`, the value of ``adaptk.global_norm(into)``, bit for bit. It is also the norm that a step with these
        gradients in the same order computes. On a CUDA device the call waits for it.

    Raises
    ------
    TypeError, ValueError, BufferError
        If buffers do not match, are read-only or overlap. Nothing is modified in this case.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> total = np.array([1.0, 1.0], np.float32)
    >>> adaptk.accumulate(total, np.array([4.0, 6.0], np.float16), scale=0.5, norm=True)
    5.0
    >>> total
    array([3., 4.], dtype=float32)
    """
    found = _core.accumulate(into, grads, scale, norm)
    return found if norm else None


def global_norm(grads: Any, grad_scale: float = 1.0) -> float:
    """The Euclidean norm of all gradients together, as a step with `clip_norm` computes it.

    Squares are summed in float64 in a fixed order, so the result is bitwise identical for any number of threads, and
    for one tensor or the same data split into many tensors.

    Parameters
    ----------
    grads : buffer or sequence of buffers
        Dense in memory; float32, float64, bfloat16, float16 or float8.
    grad_scale : float
        Factor for all gradients.

    Returns
    -------
    float
        The norm. It is inf or NaN if and only if a gradient contains inf or NaN, or the norm overflows float64.

    Raises
    ------
    TypeError, ValueError, BufferError
        If a gradient is not a dense buffer of a supported dtype.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> adaptk.global_norm([np.array([3.0]), np.array([4.0])])
    5.0
    """
    return _core.global_norm(grads, grad_scale)
