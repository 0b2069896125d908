"""The sandwich covariance of a fit: Huber 1981, section 7.6; White 1982."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptk.solve._result import Fit

__all__ = ["of_products", "sandwich"]

Array = npt.NDArray[Any]


def _definite(m: Array) -> bool:
    """Whether m is safely positive definite, by the same criterion as in the solver."""
    try:
        return bool(np.linalg.cholesky(m).diagonal().min() > 0.1)
    except np.linalg.LinAlgError:
        return False


def sandwich(result: Fit, known: bool, robust: tuple[Array, Array, Array] | None = None) -> None:
    """Put ``A^-1 B A^-1`` into the result, times ``m / (m - n)`` unless the variance is `known`.

    For squares ``A = J'J`` and ``B = J' diag(r^2) J``. `robust` are weights, psi' and psi of the residuals: then
    ``A = J' diag(psi') J`` and ``B = J' diag(psi^2) J``; the positive weights replace psi' if A is not safely positive
    definite otherwise. J is not squared: ``diag(weight)^(1/2) J D^-1 = Q R``.
    """
    j = np.asarray(result.jac, dtype=np.float64)
    m, n = j.shape
    if not np.isfinite(result.cov).all():
        return
    weighted = j if robust is None else j * np.sqrt(robust[0])[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    scale[scale == 0] = 1.0
    q, r = np.linalg.qr(weighted / scale)
    if robust is None:
        score = np.asarray(result.fun, dtype=np.float64)
        rows = q.T
    else:
        weight, curvature, score = robust
        share = np.divide(curvature, weight, out=np.zeros(m), where=weight > 0)
        middle = (q.T * share) @ q
        # Rows of weight 0 still have a psi, so Q' cannot be used here.
        rows = np.linalg.solve(r.T, (j / scale).T)
        if _definite(middle):
            rows = np.linalg.solve(middle, rows)
    unit = float(np.abs(score).max()) or 1.0
    half = np.linalg.solve(r, rows * (score / unit)) / scale[:, None]
    spread = half @ half.T * (1.0 if known else m / (m - n))
    result["x_std"] = (np.sqrt(spread.diagonal()) * unit).astype(result.cov.dtype)
    result["cov"] = (spread * unit * unit).astype(result.cov.dtype)


def of_products(
    gram: Callable[[Array], Array],
    residuals: Array,
    known: bool,
    white: bool,
    robust: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array]:
    """The covariance and the standard deviations of a fit whose Jacobian is not factored, float64.

    ``gram(c)`` is ``J' diag(c) J``. `robust` is as in :func:`sandwich`; `white` also selects the sandwich estimate. J
    is squared, with columns scaled to norm 1, so a J that has full rank by less than the root of its rounding counts as
    singular.
    """
    weight = np.ones(residuals.size) if robust is None else robust[0]
    a = gram(weight)
    m, n = residuals.size, len(a)
    infinite = np.full((n, n), np.inf), np.full(n, np.inf)
    if m < n or (m == n and not known) or not np.isfinite(a).all():
        return infinite
    scale = np.sqrt(a.diagonal())
    scale[scale == 0] = 1.0
    units = np.outer(scale, scale)
    try:
        factor = np.linalg.cholesky(a / units)
    except np.linalg.LinAlgError:
        return infinite
    if factor.diagonal().min() <= np.sqrt(m * np.finfo(np.float64).eps):
        return infinite
    inverse = np.linalg.inv(factor)
    if robust is None and not white:
        sigma = 1.0 if known else float(np.linalg.norm(residuals)) / np.sqrt(m - n)
        spread = inverse.T @ inverse
    else:
        rows, score = inverse, residuals
        if robust is not None:
            score = robust[2]
            middle = inverse @ (gram(robust[1]) / units) @ inverse.T
            if _definite(middle):
                rows = np.linalg.solve(middle, inverse)
        sigma = float(np.abs(score).max()) or 1.0
        left = inverse.T @ rows
        spread = left @ (gram(np.square(score / sigma)) / units) @ left.T
        sigma *= 1.0 if known else np.sqrt(m / (m - n))
    size = sigma / scale
    return spread * np.outer(size, size), np.sqrt(spread.diagonal()) * size
