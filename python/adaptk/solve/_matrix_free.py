"""Least squares whose Jacobians are sparse or only products: Levenberg and Marquardt's steps by conjugate gradients.

H. B. Nielsen, Damping parameter in Marquardt's method, 1999; S. J. Wright and J. N. Holt, An inexact
Levenberg-Marquardt method for large sparse nonlinear least squares, J. Austral. Math. Soc. B 26, 1985.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from adaptk.solve import _arguments as arguments
from adaptk.solve import _check
from adaptk.solve._linear import cg
from adaptk.solve._result import Fit, finish

__all__ = ["fit"]

Array = arguments.Array
# What they cannot have; each is None, False or its default here.
_NOT_HERE = ("bounds", "fixed", "ties", "mask", "nan_policy", "covariance")


class _Jacobian:
    """Products with J and J', and the norms of its columns where they can be had."""

    def __init__(self, j: Any, m: int, n: int, dtype: Any) -> None:
        shape = getattr(j, "shape", None)
        if shape is None:
            j = np.asarray(j)
            shape = j.shape
        if tuple(shape) != (m, n):
            raise ValueError(f"jac must return shape {(m, n)}, got {tuple(shape)}")
        self.norms: Array | None = None
        if hasattr(j, "rmatvec") and hasattr(j, "matvec"):
            self.times, self.back = j.matvec, j.rmatvec
        else:
            t = j.T.tocsr() if hasattr(j, "tocsr") else j.T
            self.times, self.back = lambda v: j @ v, lambda u: t @ u
            squares = j.multiply(j).sum(axis=0) if hasattr(j, "tocsr") else (np.asarray(j) ** 2).sum(axis=0)
            self.norms = np.sqrt(np.asarray(squares, dtype=np.float64).ravel()).astype(dtype)

    def normal(self, divisor: Array, damping: float) -> Callable[[Array], Array]:
        """Products with ``D^-1 J'J D^-1 + damping``."""

        def times(v: Array) -> Array:
            inner = np.asarray(self.times(v / divisor)).ravel()
            outer = np.asarray(self.back(inner)).ravel() / divisor + damping * v
            return np.asarray(outer, dtype=v.dtype)

        return times


def fit(fun: Any, x0: Any, args: Any, options: dict[str, Any]) -> Fit:
    """The fit in which every product with the Jacobian is one."""
    for name in _NOT_HERE:
        if options[name] is not None:
            raise ValueError(f"linear_solver: 'cg' does not go with {name}")
    if options.get("history"):
        raise ValueError("linear_solver: 'cg' does not go with history")
    if options["loss"] != "linear" or options["complex_residuals"]:
        raise ValueError("linear_solver: 'cg' is for real residuals and loss='linear'")
    x = arguments.start(x0)
    n, size, extra = x.size, x.dtype.itemsize, arguments.tuple_of(args)
    f = arguments.function(fun, "fun", size, "residuals")
    if isinstance(f, tuple):
        f = _check._bind(f, "residuals", x, extra, arguments.whole(options["m"], "m", low=1))
        extra = ()
    jac = options["jac"]
    if not callable(jac):
        raise ValueError("jac: with linear_solver='cg' give a function that returns it, or jac_sparsity")
    coarse = x.dtype == np.float32
    ftol, xtol, gtol = (
        default if value is None else value
        for value, default in (
            (arguments.tolerance(options["ftol"], "ftol"), 1e-5 if coarse else 1e-10),
            (arguments.tolerance(options["xtol"], "xtol"), 1e-5 if coarse else 1e-10),
            (arguments.tolerance(options["gtol"], "gtol"), 1e-6 if coarse else 1e-12),
        )
    )
    most = 200 * (n + 1) if options["max_nfev"] is None else arguments.whole(options["max_nfev"], "max_nfev", low=1)
    given_scale = options["x_scale"]
    scale = None if isinstance(given_scale, str) else arguments.per_variable(given_scale, "x_scale", x)
    (callback, progress, _, seconds), _ = arguments.common(
        "levenberg_marquardt", options["callback"], options["disp"], False, options["max_seconds"]
    )
    end = math.inf if math.isinf(seconds) else time.monotonic() + seconds

    def residuals(at: Array) -> Array:
        value = np.asarray(f(at.copy(), *extra))
        if value.ndim != 1 or value.dtype.kind not in "biuf":
            raise ValueError(f"fun must return residuals, shape (m,), got shape {value.shape} of {value.dtype}")
        return value.astype(x.dtype, copy=False)

    r = residuals(x)
    m = r.size
    count = {"nit": 0, "nfev": 1, "njev": 0, "nhev": 0}
    squares = float(r @ r)
    grad = np.full(n, np.nan, dtype=x.dtype)
    j: Any = None
    d = np.zeros(n, dtype=x.dtype) if scale is None else 1 / scale
    damping, growth, largest = 1e-3, 2.0, 0.0
    status = 0 if math.isfinite(squares) else -3
    first = True
    while status == 0:
        j = jac(x.copy(), *extra)
        count["njev"] += 1
        product = _Jacobian(j, m, n, x.dtype)
        grad = np.asarray(product.back(r), dtype=x.dtype).ravel()
        if not np.isfinite(grad).all():
            status = -3
            break
        if product.norms is not None and scale is None:
            d = np.maximum(d, product.norms)
        elif scale is None:
            d = np.ones(n, dtype=x.dtype)
        divisor = np.where(d > 0, d, 1)
        largest = max(largest, float(np.abs(grad / divisor).max()))
        length = math.sqrt(squares)
        column = divisor if product.norms is None else np.where(product.norms > 0, product.norms, 1)
        bound = largest if product.norms is None else length
        if progress is not None:
            progress(count["nit"], squares / 2, math.nan, float(np.abs(grad).max()))
        if not first and callback is not None:
            try:
                if callback(x.copy(), squares / 2, count["nit"]):
                    status = -1
            except StopIteration:
                status = -1
            if status:
                break
        first = False
        steepness = float(np.abs(grad / column).max())
        if steepness <= gtol * bound or squares == 0:
            status = 1
            break
        right = -grad / divisor
        # As exact as the gradient is small, so that steps converge faster than linearly.
        exact = max(min(0.1, steepness / bound), 1e-6 if coarse else 1e-10)
        while status == 0:
            if count["nfev"] >= most:
                break
            solved = cg(product.normal(divisor, damping), right, rtol=exact)
            count["nhev"] += solved.nmatvec
            step = solved.x / divisor
            trial = (x + step).astype(x.dtype)
            if (trial == x).all():
                status = 5
                break
            new = residuals(trial)
            count["nfev"] += 1
            squares_new = float(new @ new)
            forward = np.asarray(product.times(step), dtype=np.float64).ravel()
            predicted = -2 * float(grad @ step) - float(forward @ forward)
            actual = squares - squares_new if math.isfinite(squares_new) else -math.inf
            ratio = actual / predicted if predicted > 0 else -1.0
            reduced = abs(actual) <= ftol * squares and predicted <= ftol * squares and ratio <= 2
            small = float(np.linalg.norm(d * step)) <= xtol * float(np.linalg.norm(d * x))
            accepted = actual > 0
            if accepted:
                x, r, squares = trial, new, squares_new
                damping *= max(1 / 3, 1 - (2 * ratio - 1) ** 3)
                growth = 2.0
            else:
                damping *= growth
                growth *= 2
            if reduced or small:
                status = 4 if reduced and small else 2 if reduced else 3
            elif not damping < 1e300:
                status = 5
            elif time.monotonic() > end:
                status = -2
            if accepted:
                break
        count["nit"] += 1
        if count["nfev"] >= most and status == 0:
            break
    if status > 1 and j is not None:
        j = jac(x.copy(), *extra)
        count["njev"] += 1
        grad = np.asarray(_Jacobian(j, m, n, x.dtype).back(r), dtype=x.dtype).ravel()
    raw: dict[str, Any] = {"status": status, "x": x, "fun": r, "jac": j, "grad": grad, "cost": squares / 2, **count}
    raw["optimality"] = float(np.abs(grad).max())
    result = cast(Fit, finish(raw, "least_squares", progress))
    result["dof"] = math.inf if options["absolute_sigma"] else float(m - n)
    return result
