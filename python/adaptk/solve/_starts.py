"""Several starts of one fit: Latin hypercubes, and the best of the local minima.

M. D. McKay, R. J. Beckman and W. J. Conover, A comparison of three methods for selecting values of input variables in
the analysis of output from a computer code, Technometrics 21, 1979.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptk import init
from adaptk.solve import _arguments as arguments
from adaptk.solve._result import Fit

__all__ = ["best_of", "fit", "points"]

Array = arguments.Array
# Without two bounds: magnitudes up to this many times the larger of |x0| and 1, and most below a thousandth of that.
_FURTHEST, _FINEST = 10.0, 1e-3


def _hypercube(count: int, n: int, seed: int) -> Array:
    """(count, n) in (0, 1): each of `count` equal intervals of each variable has one point."""
    u = init.uniform(np.empty((2, n, count)), seed=seed)
    cells: Array = (np.argsort(u[0], axis=-1, kind="stable") + u[1]) / count
    return cells.T


def points(starts: Any, seed: Any, x0: Array, lower: Array, upper: Array) -> Array:
    """Starts besides x0, shape (s, *x0.shape): those given, or this many from a Latin hypercube.

    x0 and the bounds, which are infinite if there are none, have shape (n,) or (k, n).
    """
    n = x0.shape[-1]
    if isinstance(starts, bool) or np.ndim(starts) != 0:
        given = np.asarray(starts)
        if given.dtype.kind not in "iuf":
            raise TypeError(f"starts: expected a number or real points, got dtype {given.dtype}")
        if given.shape[1:] == (n,) and x0.ndim == 2:
            given = np.broadcast_to(given[:, None], (given.shape[0], *x0.shape))
        if given.shape[1:] != x0.shape:
            raise ValueError(f"starts: expected a number, or points of shape {x0.shape} each, got {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError("starts: must be finite")
        outside = (given < lower) | (given > upper)
        if outside.any():
            at = tuple(int(i) for i in np.unravel_index(int(np.argmax(outside)), outside.shape))
            raise ValueError(f"starts: {given[at]} at {at} is outside its bounds")
        return np.array(given, dtype=x0.dtype, order="C")
    count = arguments.whole(starts, "starts", low=1)
    number = arguments.whole(seed, "seed")
    if number >= 1 << 64:
        raise ValueError(f"seed: must be < 2**64, got {number}")
    unit = _hypercube(count, n, number)
    if x0.ndim == 2:
        unit = unit[:, None]
    size = np.maximum(np.abs(x0.astype(np.float64)), 1.0)
    spread = math.asinh(1.0 / _FINEST)

    def far(share: Array) -> Array:
        """From -1 to 1 to both sides of 0, with about as many in each order of magnitude."""
        return _FURTHEST * _FINEST * size * np.sinh(spread * share)

    low, high = np.isfinite(lower), np.isfinite(upper)
    with np.errstate(invalid="ignore", over="ignore"):
        between = lower * (1 - unit) + upper * unit
        result = np.where(low & high, between, far(2 * unit - 1))
        result = np.where(low & ~high, lower + far(unit), result)
        result = np.where(~low & high, upper - far(unit), result)
    # In the dtype of x0, a point may be rounded beyond a bound.
    return np.ascontiguousarray(np.clip(result.astype(x0.dtype), lower, upper).astype(x0.dtype))


def best_of(costs: Array, success: Array) -> Array:
    """The index along the first axis of the first fit with the lowest cost, of the converged ones if there are any."""
    ranked = np.where(np.isfinite(costs), costs, np.inf)
    converged = np.where(success, ranked, np.inf)
    which = np.where(np.isfinite(converged).any(axis=0), np.argmin(converged, axis=0), np.argmin(ranked, axis=0))
    return np.asarray(which)


def fit(
    solve: Callable[..., Fit], fun: Any, x0: Any, args: Any, options: dict[str, Any], bounds: Callable[..., Any]
) -> Fit:
    """The best of the fits from x0 and other starts, with all of them in `local_results`."""
    starts, seed = options.pop("starts"), options.pop("seed")
    x = arguments.start(x0)
    lower, upper = bounds(options["bounds"], x)
    n = x.size
    more = points(
        starts, seed, x, np.full(n, -np.inf) if lower is None else lower, np.full(n, np.inf) if upper is None else upper
    )
    if isinstance(options["fixed"], (list, tuple, np.ndarray)) and np.shape(options["fixed"]) == (n,):
        keep = np.asarray(options["fixed"], dtype=bool)
        more[:, keep] = x[keep]
    limit = options["max_seconds"]
    end = math.inf if limit is None else time.monotonic() + arguments.real(limit, "max_seconds")
    results: list[Fit] = []
    for start in (x, *more):
        if math.isfinite(end):
            options["max_seconds"] = max(end - time.monotonic(), 0.0)
        results.append(solve(fun, start, args, **options))
        options["check_derivatives"] = False
        if results[-1].status in (-1, -2):
            break
    which = best_of(np.array([float(r.cost) for r in results]), np.array([r.success for r in results]))
    best = Fit(results[int(which)])
    best["local_results"] = results
    best["starts"] = np.array([x, *more])
    return best
