"""What Muon's tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
from adaptk._muon import COEFFICIENTS


def newton_schulz(x: np.ndarray[Any, Any], coefficients: Any = COEFFICIENTS, steps: int = 5) -> np.ndarray[Any, Any]:
    """The polynomial of the singular values, by a decomposition."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    a, b, c = coefficients
    s = s / max(float(np.sqrt((s**2).sum())), 1e-7)
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return np.asarray((u * s) @ vt)
