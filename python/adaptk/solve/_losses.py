"""Losses that are Python functions, and their scale from the data.

With a loss rho the residuals r are replaced by sign(r) C rho(r^2 / C^2)^(1/2), whose squares sum to the same cost, so
the solver need not know the loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptk.solve import _arguments as arguments
from adaptk.solve import _check, _covariance
from adaptk.solve._operators import is_product, is_sparse
from adaptk.solve._result import Fit

__all__ = ["MEDIAN", "TUNING", "fit_with_function", "fit_with_scale", "values"]

Array = arguments.Array
# C over the standard deviation for which the estimate has 95 % of the efficiency of squares, if errors are normal.
TUNING = {"huber": 1.3452, "soft_l1": 1.2871, "cauchy": 2.3849, "arctan": 2.5714, "tukey": 4.6851}
# The median of |r| over the standard deviation, if errors are normal.
MEDIAN = 0.6744897501960817
_MAX_SCALES = 60


def fit_with_scale(solve: Callable[..., Fit], fun: Any, x0: Any, args: Any, options: dict[str, Any]) -> Fit:
    """The fit whose own residuals give the scale of its loss: C is a multiple of the median of |r|."""
    if options["f_scale"] != "mad":
        raise ValueError(f"f_scale: expected a number or 'mad', got {options['f_scale']!r}")
    loss = options["loss"]
    if isinstance(loss, str):
        if loss == "linear":
            raise ValueError("f_scale: 'mad' is for a robust loss, and loss is 'linear'")
        arguments.choice(loss, "loss", {"linear": 0, **dict.fromkeys(TUNING, 1)})
    factor = (TUNING[loss] if isinstance(loss, str) else 1.0) / MEDIAN
    options["f_scale"] = 1.0
    result = solve(fun, x0, args, **options | {"loss": "linear"})
    options["check_derivatives"] = False
    counts = dict.fromkeys([name for name in ("nit", "nfev", "njev", "nhev") if name in result], 0)
    scale = 0.0
    tolerance = 1e-3 * float(np.sqrt(np.finfo(result.x.dtype).eps))
    for _ in range(_MAX_SCALES):
        for name in counts:
            counts[name] += result[name]
        if not result.success:
            break
        before, scale = scale, factor * float(np.median(np.abs(result.fun.astype(np.float64))))
        if abs(scale - before) <= tolerance * scale or scale == 0:
            scale = before if scale == 0 else scale
            break
        result = solve(fun, result.x, args, **options | {"f_scale": scale})
    else:
        warnings.warn(
            "f_scale: the scale has not settled; the result is that of the last one", RuntimeWarning, stacklevel=4
        )
    result.update(counts)
    result["f_scale"] = scale
    return result


def _huber(z: Array) -> Array:
    root = np.sqrt(np.maximum(z, 1.0))
    return np.where(z <= 1, [z, np.ones_like(z), np.zeros_like(z)], [2 * root - 1, 1 / root, -0.5 / root**3])


def _soft_l1(z: Array) -> Array:
    root = np.sqrt(1 + z)
    return np.stack([2 * (z / (root + 1)), 1 / root, -0.5 / root**3])


def _cauchy(z: Array) -> Array:
    return np.stack([np.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2])


def _arctan(z: Array) -> Array:
    u = 1 + z * z
    return np.stack([np.arctan(z), 1 / u, -2 * z / u**2])


def _tukey(z: Array) -> Array:
    v = np.maximum(1 - z, 0)
    return np.stack([np.where(z < 1, z * (1 - z + z * z / 3), 1 / 3), v * v, -2 * v])


# The solver's own losses, for code that weights rows in Python.
NAMED = {"huber": _huber, "soft_l1": _soft_l1, "cauchy": _cauchy, "arctan": _arctan, "tukey": _tukey}


def values(loss: Any, r: Array, c: float) -> tuple[Array, Array, Array, Array]:
    """z, rho, rho' and rho'' of a loss, given by its name or as a function."""
    z = (r.astype(np.float64) / c) ** 2
    if isinstance(loss, str):
        with np.errstate(over="ignore", invalid="ignore"):
            return (z, *NAMED[loss](z))
    found = np.asarray(loss(z.copy()), dtype=np.float64)
    if found.shape != (3, *z.shape):
        raise ValueError(f"loss must return rho, rho' and rho'', shape {(3, *z.shape)}, got {found.shape}")
    rho, first, second = found
    if (rho < 0).any():
        raise ValueError(f"loss: rho must be >= 0, got {rho.min()} at z = {z.flat[int(np.argmin(rho))]}")
    return z, rho, first, second


def _complex_steps(f: Callable[..., Any]) -> Callable[..., Array]:
    """The Jacobian of `f` by complex steps, without the loss, which does not accept complex numbers."""

    def jacobian(x: Array, *args: Any) -> Array:
        columns = []
        for k in range(x.size):
            step = float(np.finfo(x.dtype).eps) ** 2 * max(abs(float(x[k])), 1.0)
            z = x.astype(np.complex128)
            z[k] += 1j * step
            columns.append(np.asarray(f(z, *args)).imag / step)
        return np.stack(columns, axis=1)

    return jacobian


def fit_with_function(solve: Callable[..., Fit], fun: Any, x0: Any, args: Any, options: dict[str, Any]) -> Fit:
    """The fit with ``loss(z)``, which returns rho and its two derivatives at z."""
    loss = options.pop("loss")
    c = arguments.real(options.pop("f_scale"), "f_scale", open_low=True)
    x = arguments.start(x0)
    size, extra = x.dtype.itemsize, arguments.tuple_of(args)
    f = arguments.function(fun, "fun", size, "residuals")
    if isinstance(f, tuple):
        if options["m"] is None:
            raise TypeError("m: a compiled fun needs the number of residuals")
        if options["jac"] == "cs":
            raise TypeError("jac: 'cs' calls fun with complex numbers, which a compiled function does not take")
        f, extra = _check._bind(f, "residuals", x, extra, arguments.whole(options["m"], "m", low=1)), ()
    jac = options["jac"]
    if jac == "cs":
        jac = _complex_steps(f)
    j = jac if jac is None or isinstance(jac, str) else arguments.function(jac, "jac", size, "jacobian")

    def root(r: Any) -> Array:
        r = np.asarray(r)
        _, rho, _, _ = values(loss, r, c)
        return np.asarray(np.copysign(c, r) * np.sqrt(rho), dtype=r.dtype if r.dtype.kind == "f" else np.float64)

    def residuals(at: Array, *more: Any) -> Array:
        return root(f(at, *more))

    options["m"] = None
    slopes: Any = "3-point"
    if callable(j) or isinstance(j, tuple):
        m = np.size(f(x.copy(), *extra)) if isinstance(j, tuple) else 0
        slopes = _check._bind(j, "jacobian", x, (), m) if isinstance(j, tuple) else j
        if options["check_derivatives"]:
            _check.verify(f, x, extra, slopes, False, residuals=0)
            options["check_derivatives"] = False

        def jacobian(at: Array, *more: Any) -> Array:
            value = slopes(at, *more)
            if is_sparse(value) or is_product(value):
                # The words for which the outer call repeats the fit by conjugate gradients.
                raise TypeError(f"jac must return real numbers in an array, got {type(value).__name__}")
            r = np.asarray(f(at, *more), dtype=np.float64)
            z, rho, first, _ = values(loss, r, c)
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = np.where(z > 0, first * np.sqrt(z / rho), np.sqrt(np.abs(first)))
            return np.asarray(factor[:, None] * np.asarray(value))

        options["jac"] = jacobian
    result = solve(residuals, x, extra, **options)
    if result.jac is None:
        return result
    # Residuals and Jacobian at the solution, by the solver's own differences.
    plain = {**options, "jac": slopes, "max_nfev": 1, "polish": False}
    plain.update(callback=None, disp=False, history=False, max_seconds=None)
    at_end = solve(f, result.x, extra, **plain)
    for name in ("fun", "jac", "cov", "x_std"):
        result[name] = at_end[name]
    r = result.fun.astype(np.float64)
    z, _, first, second = values(loss, r, c)
    curvature = first + 2 * second * z
    weight = np.maximum(curvature, 0.1 * first)
    _covariance.sandwich(result, bool(options["absolute_sigma"]), (np.maximum(weight, 0.0), curvature, first * r))
    return result
