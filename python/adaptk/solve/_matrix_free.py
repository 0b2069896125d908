"""Least squares with Jacobians that are sparse or operators: Levenberg-Marquardt steps by conjugate gradients.

H. B. Nielsen, Damping parameter in Marquardt's method, 1999; S. J. Wright and J. N. Holt, An inexact
Levenberg-Marquardt method for large sparse nonlinear least squares, J. Austral. Math. Soc. B 26, 1985. Robust losses
weight the rows, and steps are projected onto bounds, as in the solver with factorisations: Triggs et al. 2000; Kanzow,
Yamashita and Fukushima 2004.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from adaptk.solve import _arguments as arguments
from adaptk.solve import _check, _covariance, _losses
from adaptk.solve._linear import cg
from adaptk.solve._operators import Jacobian, is_product
from adaptk.solve._result import Fit, finish

__all__ = ["fit"]

Array = arguments.Array

# The most parameters with a covariance: its matrix then takes 32 MB, and its inverse a second or so. With an operator
# each parameter takes a product with J and one with J'.
MOST_WITH_COVARIANCE, MOST_OF_OPERATORS = 2048, 256


class _Weighted:
    """A robust cost at some residuals: twice its value, the rows' weights, and the residuals for the gradient."""

    def __init__(self, loss: Any, c: float, r: Array) -> None:
        self.r = r
        if loss == "linear":
            self.squares = float(r @ r)
            self.weight = self.root_slope = np.ones_like(r)
            self.pull = r
            self.robust = None
            return
        z, rho, first, second = _losses.values(loss, r, c)
        self.squares = float(c * c * rho.sum())
        self.weight = np.sqrt(np.maximum(first + 2 * second * z, 0.1 * first)).astype(r.dtype)
        self.root_slope = np.sqrt(first).astype(r.dtype)
        self.pull = (first * r).astype(r.dtype)
        # For the sandwich estimate: the squared weights, psi' and psi.
        self.robust = np.square(self.weight, dtype=np.float64), first + 2 * second * z, first * r


class _Monitor:
    """Callback, progress, history and time limit."""

    def __init__(self, options: dict[str, Any]) -> None:
        (self.callback, self.progress, self.keep, seconds), _ = arguments.common(
            "levenberg_marquardt",
            options["callback"],
            options["disp"],
            options["history"],
            options["max_seconds"],
        )
        self.end = math.inf if math.isinf(seconds) else time.monotonic() + seconds
        self.history: dict[str, list[float]] = {"fun": [], "step": [], "gradient": []}

    def stops(self, nit: int, x: Array, cost: float, step: float, gradient: float) -> bool:
        if self.keep:
            for name, value in (("fun", cost), ("step", step), ("gradient", gradient)):
                self.history[name].append(value)
        if self.progress is not None:
            self.progress(nit, cost, step, gradient)
        if nit == 0 or self.callback is None:
            return False
        try:
            return bool(self.callback(x.copy(), cost, nit))
        except StopIteration:
            return True

    def late(self) -> bool:
        return time.monotonic() > self.end


def _tolerances(options: dict[str, Any], coarse: bool) -> tuple[float, float, float]:
    defaults = {"ftol": 1e-5, "xtol": 1e-5, "gtol": 1e-6} if coarse else {"ftol": 1e-10, "xtol": 1e-10, "gtol": 1e-12}
    given = {name: arguments.tolerance(options[name], name) for name in defaults}
    ftol, xtol, gtol = (defaults[name] if value is None else value for name, value in given.items())
    return ftol, xtol, gtol


def fit(fun: Any, x0: Any, args: Any, options: dict[str, Any], bounds: Callable[..., Any]) -> Fit:
    """A fit that uses the Jacobian only in products."""
    x = arguments.start(x0)
    white = options["covariance"] is not None
    if white and x.size > MOST_WITH_COVARIANCE:
        raise ValueError(f"covariance: linear_solver='cg' has none of more than {MOST_WITH_COVARIANCE} parameters")
    n, size, extra = x.size, x.dtype.itemsize, arguments.tuple_of(args)
    f = arguments.function(fun, "fun", size, "residuals")
    if isinstance(f, tuple):
        f = _check._bind(f, "residuals", x, extra, arguments.whole(options["m"], "m", low=1))
        extra = ()
    jac, loss = options["jac"], options["loss"]
    if not callable(jac):
        raise ValueError("jac: with linear_solver='cg' give a function that returns it, or jac_sparsity")
    if not callable(loss):
        arguments.choice(loss, "loss", {"linear": 0, **dict.fromkeys(_losses.TUNING, 1)})
    c = arguments.real(options["f_scale"], "f_scale", open_low=True)
    lower, upper = bounds(options["bounds"], x)
    low = np.full(n, -np.inf, dtype=x.dtype) if lower is None else lower
    high = np.full(n, np.inf, dtype=x.dtype) if upper is None else upper
    coarse = x.dtype == np.float32
    ftol, xtol, gtol = _tolerances(options, coarse)
    most = 200 * (n + 1) if options["max_nfev"] is None else arguments.whole(options["max_nfev"], "max_nfev", low=1)
    given_scale = options["x_scale"]
    scale = None if isinstance(given_scale, str) else arguments.per_variable(given_scale, "x_scale", x)
    watch = _Monitor(options)

    def residuals(at: Array) -> Array:
        value = np.asarray(f(at.copy(), *extra))
        if value.ndim != 1 or value.dtype.kind not in "biuf":
            raise ValueError(f"fun must return residuals, shape (m,), got shape {value.shape} of {value.dtype}")
        return value.astype(x.dtype, copy=False)

    r = residuals(x)
    m = r.size
    if options["check_derivatives"]:
        _check.verify(
            f, x, extra, lambda at, *more: Jacobian(jac(at, *more), m, n, x.dtype).dense(), False, residuals=m
        )
    count = {"nit": 0, "nfev": 1, "njev": 0, "nhev": 0}
    here = _Weighted(loss, c, r)
    grad = np.full(n, np.nan, dtype=x.dtype)
    j: Any = None
    j_at: Array | None = None  # the point that it is of
    free = np.ones(n, dtype=bool)
    d = np.zeros(n, dtype=x.dtype) if scale is None else 1 / scale
    damping, growth, largest, moved = 1e-3, 2.0, 0.0, math.nan
    status = 0 if math.isfinite(here.squares) else -3

    def slope() -> Jacobian:
        nonlocal j, j_at, grad, free
        j, j_at = jac(x.copy(), *extra), x
        if white and is_product(j) and n > MOST_OF_OPERATORS:
            raise ValueError(
                f"covariance: there is none for more than {MOST_OF_OPERATORS} parameters if jac returns operators"
            )
        count["njev"] += 1
        product = Jacobian(j, m, n, x.dtype)
        grad = product.back(here.pull)
        free = ~(((x <= low) & (grad >= 0)) | ((x >= high) & (grad <= 0)))
        return product

    def steepest() -> float:
        return float(np.abs(grad[free]).max(initial=0.0))

    while status == 0:
        product = slope()
        if not np.isfinite(grad).all():
            status = -3
            break
        norms = product.norms(here.weight)
        if scale is None:
            d = np.ones(n, dtype=x.dtype) if norms is None else np.maximum(d, norms)
        divisor = np.where(d > 0, d, 1).astype(x.dtype)
        largest = max(largest, float(np.abs(grad / divisor).max()))
        if norms is None:
            column, bound = divisor, largest
        else:
            # The rows for the cosines give the gradient of the cost, without the weights of its curvature.
            plain = norms if loss == "linear" else cast(Array, product.norms(here.root_slope))
            column = np.where(plain > 0, plain, 1)
            bound = float(np.linalg.norm(here.root_slope * here.r))
        if watch.stops(count["nit"], x, here.squares / 2, moved, steepest()):
            status = -1
            break
        steepness = float(np.abs(grad / column)[free].max(initial=0.0))
        if steepness <= gtol * bound or here.squares == 0:
            status = 1
            break
        right = np.where(free, -grad / divisor, 0).astype(x.dtype)
        # The smaller the gradient, the more exact, so that convergence is faster than linear.
        exact = max(min(0.1, steepness / bound), 1e-6 if coarse else 1e-10)
        squared_weight = here.weight * here.weight
        while status == 0 and count["nfev"] < most:
            solved = cg(product.normal(squared_weight, divisor, free, damping), right, rtol=exact)
            count["nhev"] += solved.nmatvec
            whole = (x + np.where(free, solved.x / divisor, 0)).astype(x.dtype)
            trial = np.clip(whole, low, high)
            if (whole == x).all():
                status = 5
                break
            if (trial == x).all():
                # The bounds leave nothing of the step. Shorter steps turn towards the gradient, which points inwards.
                damping, growth = damping * growth, growth * 2
                continue
            step = trial - x
            there = _Weighted(loss, c, residuals(trial))
            count["nfev"] += 1
            forward = (here.weight * product.times(step)).astype(np.float64)
            predicted = -2 * float(grad @ step) - float(forward @ forward)
            actual = here.squares - there.squares if math.isfinite(there.squares) else -math.inf
            ratio = actual / predicted if predicted > 0 else -1.0
            enough = ftol * here.squares
            reduced = abs(actual) <= enough and abs(predicted) <= enough and ratio <= 2
            small = float(np.linalg.norm(d * step)) <= xtol * float(np.linalg.norm(d * x))
            accepted = actual > 0
            if accepted:
                x, here, moved = trial, there, float(np.linalg.norm(step))
                damping *= max(1 / 3, 1 - (2 * ratio - 1) ** 3)
                growth = 2.0
            else:
                damping *= growth
                growth *= 2
            if reduced or small:
                status = 4 if reduced and small else 2 if reduced else 3
            elif not damping < 1e300:
                status = 5
            elif watch.late():
                status = -2
            if accepted:
                break
        count["nit"] += 1
        if count["nfev"] >= most and status == 0:
            break
    if j is not None and j_at is not x:
        slope()
        if not np.isfinite(grad).all():
            status = -3
    if loss == "tukey" and status > 0 and (np.abs(here.r) >= c).all():
        status = -4
    raw: dict[str, Any] = {"status": status, "x": x, "fun": here.r, "jac": j, "grad": grad, "cost": here.squares / 2}
    raw |= count
    if status == -3:
        raw |= {"jac": None, "grad": np.full_like(grad, np.nan), "optimality": math.nan}
    else:
        raw["optimality"] = steepest()
    if n <= (MOST_OF_OPERATORS if is_product(j) else MOST_WITH_COVARIANCE):
        cov, std = np.full((n, n), np.nan), np.full(n, np.nan)
        if status != -3:
            gram = Jacobian(j, m, n, x.dtype).gram
            cov, std = _covariance.of_products(gram, here.r, bool(options["absolute_sigma"]), white, here.robust)
        raw |= {"cov": cov.astype(x.dtype), "x_std": std.astype(x.dtype)}
    raw["active_mask"] = (x >= high).astype(np.int64) - (x <= low).astype(np.int64)
    if watch.keep:
        raw["history"] = {name: np.array(values) for name, values in watch.history.items()}
    result = cast(Fit, finish(raw, "least_squares", watch.progress))
    result["dof"] = math.inf if options["absolute_sigma"] else float(m - n)
    return result
