"""Linear systems by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptk import _solve
from adaptk.solve import _arguments as arguments
from adaptk.solve._result import Result, finish


def _operator(a: Any, name: str, b: arguments.Array) -> Any:
    """A dense array of b's dtype, or a function of a vector."""
    if a is None:
        return None
    shape = getattr(a, "shape", None)
    if shape is not None and tuple(shape) != (b.size, b.size):
        raise ValueError(f"{name}: expected shape {(b.size, b.size)} to go with b, got {tuple(shape)}")
    if isinstance(a, (np.ndarray, list, tuple)):
        array = np.asarray(a)
        if array.shape != (b.size, b.size):
            raise ValueError(f"{name}: expected shape {(b.size, b.size)} to go with b, got {array.shape}")
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
        array = np.ascontiguousarray(array, dtype=b.dtype)
        if not np.array_equal(array, array.T):
            scale = np.abs(array).max()
            # A product computed in another order is symmetric up to rounding.
            if not (np.abs(array - array.T) <= 100 * np.finfo(b.dtype).eps * scale).all():
                raise ValueError(f"{name}: must be symmetric")
        return array
    if hasattr(a, "matvec"):
        return a.matvec
    if callable(a):
        return a
    if hasattr(a, "__matmul__"):
        return a.__matmul__
    raise TypeError(f"{name}: expected an array, a function or a linear operator, got {type(a).__name__}")


def cg(
    A: Any,
    b: Any,
    *,
    x0: Any = None,
    M: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    callback: Callable[..., Any] | None = None,
    disp: bool = False,
    history: bool = False,
    max_seconds: float | None = None,
) -> Result:
    """Solve ``A x = b`` for a symmetric positive definite A by conjugate gradients.

    Parameters
    ----------
    A : array_like, shape (n, n), or callable
        The matrix, a function that returns ``A @ v``, shape (n,), or anything with ``matvec`` or ``@``.
    b : array_like, shape (n,)
        The right-hand side. float32 is kept; other real numbers become float64.
    x0 : array_like, shape (n,), optional
        The start, zeros by default.
    M : array_like or callable, optional
        A preconditioner, near the inverse of A and positive definite.
    rtol, atol : float, optional
        Tolerances: see `status`. `rtol` is 1e-8 by default; for float32 1e-4.
    maxiter : int, optional
        The most iterations. Default ``10 n``.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result=...)`` after each iteration; StopIteration or a returned
        ``True`` ends the run.
    disp, history : bool
        Show progress on one line of standard error; record each iteration in ``result.history``.
    max_seconds : float, optional
        Time limit: the run ends with the iteration that reaches it.

    Returns
    -------
    Result
        `x` (the point of the lowest residual), `fun` (``x'Ax/2 - b'x``), `jac` (``A x - b``), `residual`
        (``|b - A x|``, computed from `x`), `nit`, `nmatvec`, `success`, `message` and `status`:

        == =======================================================================
        1  ``|b - A x| <= max(rtol |b|, atol)``
        5  rounding keeps the residual from falling, and it is ``<= 32 n eps (|A| |x| + |b|)``
        0  `maxiter` iterations
        -1 the callback stopped it
        -2 time limit reached
        -3 a product is not finite
        -7 ``p'A p <= 0`` for a direction p, or ``<= n eps |A| |p|**2`` and the step does not lower the residual: A (or
           M) is not positive definite, or singular within rounding
        == =======================================================================

    Raises
    ------
    TypeError, ValueError
        If an argument or a returned value has a wrong type, shape or range. Exceptions of the functions propagate.

    References
    ----------
    M. R. Hestenes and E. Stiefel, Methods of conjugate gradients for solving linear systems, 1952.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> adaptk.solve.cg([[4.0, 1.0], [1.0, 3.0]], [1.0, 2.0]).x.round(6)
    array([0.090909, 0.636364])
    """
    right = arguments.start(b, "b")
    start = np.zeros_like(right) if x0 is None else arguments.start(x0).astype(right.dtype)
    if start.shape != right.shape:
        raise ValueError(f"x0: expected shape {right.shape} to go with b, got {start.shape}")
    if A is None:
        raise TypeError("A: expected an array, a function or a linear operator, got None")
    a, m = _operator(A, "A", right), _operator(M, "M", right)
    limit = 10 * right.size if maxiter is None else arguments.whole(maxiter, "maxiter")
    relative = arguments.tolerance(rtol, "rtol")
    common, progress = arguments.common("cg", callback, disp, history, max_seconds)
    raw = _solve.cg(
        a, right, start, m, math.nan if relative is None else relative, arguments.real(atol, "atol"), limit, common
    )
    return finish(raw, "cg", progress)
