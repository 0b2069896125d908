"""The sandwich covariance of a fit: Huber 1981, section 7.6; White 1982."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from adaptk.solve._result import Fit

__all__ = ["sandwich"]

Array = npt.NDArray[Any]


def _definite(m: Array) -> bool:
    """Safely, as the solver itself asks it of the same matrix."""
    try:
        return bool(np.linalg.cholesky(m).diagonal().min() > 0.1)
    except np.linalg.LinAlgError:
        return False


def sandwich(result: Fit, known: bool, robust: tuple[Array, Array, Array] | None = None) -> None:
    """Put ``A^-1 B A^-1`` into the result, times ``m / (m - n)`` unless the variance is `known`.

    For squares ``A = J'J`` and ``B = J' diag(r^2) J``. `robust` are weights, psi' and psi of the residuals: then
    ``A = J' diag(psi') J`` and ``B = J' diag(psi^2) J``; the positive weights are in the place of psi' where that
    leaves A not safely positive definite. J is not squared: ``diag(weight)^(1/2) J D^-1 = Q R``.
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
        # Rows of weight 0 have a psi all the same, so that Q' is of no use here.
        rows = np.linalg.solve(r.T, (j / scale).T)
        if _definite(middle):
            rows = np.linalg.solve(middle, rows)
    unit = float(np.abs(score).max()) or 1.0
    half = np.linalg.solve(r, rows * (score / unit)) / scale[:, None]
    spread = half @ half.T * (1.0 if known else m / (m - n))
    result["x_std"] = (np.sqrt(spread.diagonal()) * unit).astype(result.cov.dtype)
    result["cov"] = (spread * unit * unit).astype(result.cov.dtype)
