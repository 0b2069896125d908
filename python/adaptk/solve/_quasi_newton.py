"""Dense Hessians from changes of the gradient: BFGS and SR1.

J. Nocedal and S. J. Wright, Numerical Optimization, 2006: 6.1, 6.2 and procedure 18.2 (M. J. D. Powell's damping).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from adaptk.solve import _arguments as arguments

__all__ = ["UPDATES", "QuasiNewton"]

Array = arguments.Array
UPDATES = ("bfgs", "sr1")
_DAMPED, _SKIPPED = 0.2, 1e-8


class QuasiNewton:
    """Wrappers of `fun` and `jac` that store their gradients here, and `hess`, which is built from these."""

    def __init__(self, fun: Any, jac: Any, pair: bool, update: str, dtype: Any) -> None:
        self._fun, self._jac, self._pair, self._update = fun, jac, pair, update
        self._dtype = dtype
        self._seen: list[tuple[Array, Array]] = []
        self._at: tuple[Array, Array] | None = None
        self._matrix: Array | None = None
        self._fresh = True

    def _keep(self, x: Array, g: Any) -> None:
        self._seen = [*self._seen[-3:], (x.copy(), np.array(g, dtype=np.float64))]

    def fun(self, x: Array, *args: Any) -> Any:
        at = x.copy()
        value, g = self._fun(x, *args)
        self._keep(at, g)
        return value, g

    def jac(self, x: Array, *args: Any) -> Any:
        at = x.copy()
        g = self._jac(x, *args)
        self._keep(at, g)
        return g

    def hess(self, x: Array, *args: Any) -> Array:
        known = next((g for at, g in self._seen[::-1] if np.array_equal(at, x)), None)
        if known is None:
            known = np.asarray(self._fun(x, *args)[1] if self._pair else self._jac(x, *args), dtype=np.float64)
        point = x.astype(np.float64)
        if self._matrix is None or self._at is None:
            size = float(np.linalg.norm(point))
            steep = float(np.linalg.norm(known))
            # A full step as long as a tenth of x.
            scale = steep / (0.1 * size) if size > 0 else steep
            self._matrix = np.eye(x.size) * (scale if scale > 0 and math.isfinite(scale) else 1.0)
        else:
            self._change(point - self._at[0], known - self._at[1])
        self._at = (point, known)
        return self._matrix.astype(self._dtype)

    def _change(self, s: Array, y: Array) -> None:
        assert self._matrix is not None
        if not (s.any() and np.isfinite(y).all()):
            return
        curvature = float(s @ y)
        if self._fresh:
            self._fresh = False
            if curvature > 0:
                self._matrix = np.eye(s.size) * (float(y @ y) / curvature)
        b = self._matrix @ s
        if self._update == "sr1":
            rest = y - b
            bottom = float(s @ rest)
            if abs(bottom) >= _SKIPPED * float(np.linalg.norm(s)) * float(np.linalg.norm(rest)) and bottom != 0:
                self._matrix = self._matrix + np.outer(rest, rest / bottom)
            return
        model = float(s @ b)
        if curvature < _DAMPED * model:
            share = (1 - _DAMPED) * model / (model - curvature)
            y = share * y + (1 - share) * b
            curvature = float(s @ y)
        if curvature > 0 and model > 0:
            self._matrix = self._matrix - np.outer(b, b / model) + np.outer(y, y / curvature)
