"""The covariance of least squares where the residuals' variances differ: White's sandwich."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptk.solve._result import Fit

__all__ = ["sandwich"]


def sandwich(result: Fit, known: bool, curvature: Any = None, score: Any = None) -> None:
    """Put ``A^-1 B A^-1`` into the result, ``A = J' diag(curvature) J`` and ``B = J' diag(score^2) J``.

    By default `curvature` is 1 and `score` are the residuals, as for squares; times ``m / (m - n)`` unless the variance
    is `known`. J is not squared: with J D^-1 = Q R it is D^-1 R^-1 Q' = A^-1 J'.
    """
    j = np.asarray(result.jac, dtype=np.float64)
    m, n = j.shape
    if not np.isfinite(result.cov).all():
        return
    score = np.asarray(result.fun if score is None else score, dtype=np.float64)
    unit = float(np.abs(score).max()) or 1.0
    weighted = j if curvature is None else j * np.sqrt(curvature)[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    scale[scale == 0] = 1.0
    q, r = np.linalg.qr(weighted / scale)
    # Rows whose curvature is 0 have a score all the same, so that Q' is of use for squares alone.
    rows = q.T if curvature is None else np.linalg.solve(r.T, (j / scale).T)
    half = np.linalg.solve(r, rows * (score / unit)) / scale[:, None]
    spread = half @ half.T * (1.0 if known else m / (m - n))
    result["x_std"] = (np.sqrt(spread.diagonal()) * unit).astype(result.cov.dtype)
    result["cov"] = (spread * unit * unit).astype(result.cov.dtype)
