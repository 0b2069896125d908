"""Check by differences whether derivatives belong to their functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptk.solve import _arguments as arguments
from adaptk.solve._operators import Jacobian, is_product, is_sparse
from adaptk.solve._result import Result

__all__ = ["check_derivatives", "verify"]

# Relative; a step ten times as short must agree better for a difference to count.
_TOLERANCE = 1e-3


def _python(f: Any, kind: str, x: arguments.Array, m: int) -> Callable[[arguments.Array], Any]:
    """A compiled function, given by its address, as a Python function."""
    address, user = f
    size, n = x.dtype.itemsize, x.size
    result, parameters = arguments._signatures(size, kind)
    native = ctypes.CFUNCTYPE(result, *parameters)(address)

    def pointer(a: arguments.Array) -> Any:
        return a.ctypes.data_as(ctypes.POINTER(arguments._SCALAR[size]))

    def call(at: arguments.Array) -> Any:
        at = np.ascontiguousarray(at, dtype=x.dtype)
        if kind == "fun":
            return native(n, pointer(at), user)
        shape = {"jac": (n,), "hess": (n, n), "residuals": (m,), "jacobian": (m, n)}[kind]
        out = np.empty(shape, dtype=x.dtype)
        sizes = (m, n) if kind in ("residuals", "jacobian") else (n,)
        native(*sizes, pointer(at), pointer(out), user)
        return out

    return call


def _bind(f: Any, kind: str, x: arguments.Array, args: tuple[Any, ...], m: int = 0) -> Callable[[arguments.Array], Any]:
    if isinstance(f, tuple):
        return _python(f, kind, x, m)
    return lambda at: f(at.copy(), *args)


def _compare(
    fun: Callable[[arguments.Array], Any],
    derivative: Callable[[arguments.Array], Any],
    x: arguments.Array,
    name: str,
    bounds: tuple[Any, Any] = (None, None),
) -> Result:
    """The worst element of `derivative`, (rows, n) or (n,), compared with central differences of `fun`.

    Within bounds, if there are any: then to one side if the other has no room.
    """
    low, high = (-np.inf, np.inf) if bounds[0] is None else bounds
    at = x.astype(np.float64)

    def values(point: arguments.Array) -> arguments.Array:
        return np.atleast_1d(np.asarray(fun(point.astype(x.dtype)), dtype=np.float64))

    base = fun(x.copy())
    rounding = float(np.finfo(x.dtype).eps)
    if isinstance(base, (np.ndarray, np.floating)) and base.dtype.kind == "f":
        rounding = max(rounding, float(np.finfo(base.dtype).eps))
    scalar = np.ndim(base) == 0
    base = np.atleast_1d(np.asarray(base, dtype=np.float64))
    found = derivative(x.copy())
    if is_sparse(found) or is_product(found):
        found = Jacobian(found, base.size, x.size, x.dtype).dense()
    given = np.asarray(found, dtype=np.float64)
    if given.size != base.size * x.size:
        wanted = (x.size,) if scalar else (base.size, x.size)
        raise ValueError(f"{name} must return an array of shape {wanted}, got one of shape {given.shape}")
    given = given.reshape(base.size, x.size)
    found, doubt = np.empty_like(given), np.empty_like(given)
    for k in range(x.size):
        step = np.cbrt(rounding) * (abs(at[k]) if at[k] != 0 else 1.0)
        both = []
        for h in (step, step / 8):
            up, down = at.copy(), at.copy()
            up[k] += h
            down[k] -= h
            up, down = (np.clip(side.astype(x.dtype), low, high).astype(np.float64) for side in (up, down))
            free = up[k] > down[k]
            both.append((values(up) - values(down)) / (up[k] - down[k]) if free else given[:, k])
            size = 4 * rounding * np.abs(base) / h
        found[:, k] = both[0]
        doubt[:, k] = 2 * np.abs(both[0] - both[1]) + size
    scale = np.maximum(np.abs(given), np.abs(found))
    excess = np.abs(given - found) - doubt - _TOLERANCE * scale
    excess = np.where(np.isfinite(excess), excess / np.where(scale > 0, scale, 1.0), np.inf)
    i, k = divmod(int(np.argmax(excess)), x.size)
    where = (k,) if scalar else (i, k)
    ok = not (excess[i, k] > 0)
    difference = abs(float(given[i, k] - found[i, k]))
    relative = difference / float(scale[i, k]) if scale[i, k] > 0 else 0.0
    place = ", ".join(map(str, where))
    text = (
        f"{name}[{place}] is {given[i, k]:.8g} at x0, and central differences give {found[i, k]:.8g} "
        f"(relative difference {relative:.2g})"
    )
    return Result(
        success=ok,
        message=f"{name} agrees with differences: its worst element: {text}" if ok else text,
        where=where,
        given=float(given[i, k]),
        differences=float(found[i, k]),
        relative=relative,
    )


def check_derivatives(fun: Any, x0: Any, args: Any = (), *, jac: Any, hess: Any = None) -> Result:
    """Compare a gradient or Jacobian, and a Hessian, with central differences.

    Parameters
    ----------
    fun : callable
        ``fun(x, *args)`` returns a number, or residuals of shape (m,).
    x0 : array_like, shape (n,)
        The point. A point where derivatives vanish, such as a minimum or all zeros, shows less than others.
    args : tuple
        Additional arguments of the functions.
    jac : callable or True
        The gradient, shape (n,), or Jacobian, shape (m, n), which may be sparse or an operator; ``True``: `fun` returns
        the pair (value, gradient).
    hess : callable, optional
        The Hessian, shape (n, n), compared with differences of `jac`.

    Returns
    -------
    Result
        `success`: whether all elements agree within a thousandth plus the uncertainty of the differences, estimated
        from two step sizes; `message`; and for the worst element `where` (its index), `given`, `differences`, and
        `relative`, the relative difference of these two. If `hess` is given and `jac` agrees, these describe the
        Hessian.

    Raises
    ------
    TypeError, ValueError
        If an argument or a returned value has a wrong type or shape. Exceptions of the functions propagate.

    Examples
    --------
    >>> import adaptk
    >>> f = lambda x: float(x[0] ** 2 * x[1])
    >>> r = adaptk.solve.check_derivatives(f, [3.0, 2.0], jac=lambda x: [2 * x[0] * x[1], -x[0] ** 2])
    >>> r.success, r.where, r.given, round(r.differences, 6)
    (False, (1,), -9.0, 9.0)
    """
    x = arguments.start(x0)
    extra = arguments.tuple_of(args)
    for f, name in ((fun, "fun"), (jac, "jac"), (hess, "hess")):
        if not callable(f) and not (f is None and name == "hess") and not (f is True and name == "jac"):
            raise TypeError(f"{name}: expected a callable, got {type(f).__name__}")
    value, slope = _pair(fun, jac, extra)
    result = _compare(value, slope, x, "jac")
    if hess is not None and result.success:
        result = _compare(slope, _bind(hess, "hess", x, extra), x, "hess")
    return result


def _pair(fun: Any, jac: Any, args: tuple[Any, ...]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if jac is True:
        return lambda x: fun(x, *args)[0], lambda x: fun(x, *args)[1]
    return lambda x: fun(x, *args), lambda x: jac(x, *args)


def verify(
    f: Any,
    x: arguments.Array,
    args: tuple[Any, ...],
    jac: Any,
    pair: bool,
    hess: Any = None,
    residuals: int | None = None,
    bounds: tuple[Any, Any] = (None, None),
) -> None:
    """What ``check_derivatives=True`` does: raise ValueError with the worst element, if one is wrong."""
    if jac is None and not pair:
        raise ValueError("check_derivatives: there is no jac to check; it is taken by differences")
    m = residuals or 0
    if pair:
        value, slope = _pair(f, True, args)
    else:
        value = _bind(f, "fun" if residuals is None else "residuals", x, args, m)
        slope = _bind(jac, "jac" if residuals is None else "jacobian", x, args, m)
    checks = [(value, slope, "jac")]
    if hess is not None:
        checks.append((slope, _bind(hess, "hess", x, args), "hess"))
    for function, derivative, name in checks:
        result = _compare(function, derivative, x, name, bounds)
        if not result.success:
            raise ValueError(f"check_derivatives: {result.message}")
