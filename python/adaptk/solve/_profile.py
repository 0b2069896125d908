"""Intervals by profile likelihood: a parameter is moved, and the others are fitted again.

D. M. Bates and D. G. Watts, Nonlinear regression analysis and its applications, 1988, chapter 6. With S the sum of
squares at the best values of the other parameters, tau(v) = sign(v - x_k) sqrt((S(v) - S(x_k)) / s^2) has approximately
Student's t distribution, whatever the scale of the parameter. For a linear model it is (v - x_k) / std.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adaptk.solve import _arguments as arguments
from adaptk.solve._parameters import index
from adaptk.solve._result import Fit, Result, level_of, student_t

__all__ = ["conf_interval", "profile"]

Array = arguments.Array
# The search for an end: how far it goes, in units of the first step, and how near tau must come.
_MAX_EXPANSIONS, _GROWTH = 30, 3.0
_MAX_STEPS = 60
_TOLERANCE = 1e-8


class _Profile:
    """The fits of the others, with parameter k at one value after another."""

    def __init__(self, fit: Fit, k: int) -> None:
        from adaptk.solve import levenberg_marquardt

        call = fit.__dict__.get("_call")
        if call is None:
            raise ValueError("the fit has lost its functions, as copies and pickled fits do; fit again")
        if not fit.success:
            raise ValueError(f"the fit has not converged: {fit.message}")
        given = inspect.signature(levenberg_marquardt).bind(*call[0], **call[1])
        given.apply_defaults()
        options = dict(given.arguments)
        self.solve, self.fit, self.k = levenberg_marquardt, fit, k
        self.fun, self.args = options.pop("fun"), options.pop("args")
        options.pop("x0")
        if options["loss"] != "linear" and not options["absolute_sigma"]:
            raise ValueError(
                "a profile needs the scale of the cost: with a robust loss give absolute_sigma=True, which says that "
                "the cost is a negative log-likelihood"
            )
        if not fit.dof > 0 or not fit.cost > 0:
            raise ValueError("a profile needs residuals and degrees of freedom, to estimate their variance")
        if isinstance(fit.jac, np.ndarray):
            terms = np.linalg.norm(fit.jac.astype(np.float64) * np.asarray(fit.x, dtype=np.float64))
            if math.sqrt(2.0 * float(fit.cost)) <= 4.0 * float(np.finfo(fit.x.dtype).eps) * terms:
                raise ValueError("a profile needs residuals that are more than the rounding errors of the model")
        options.update(callback=None, disp=False, history=False, check_derivatives=False, covariance=None)
        options.update(starts=None)
        if "mask" in fit:
            options.update(mask=fit.mask, nan_policy=None)
        if "f_scale" in fit:
            options["f_scale"] = fit.f_scale
        held = fit.get("fixed", np.zeros(fit.x.size, dtype=bool))
        tied = fit.get("tied", np.zeros(fit.x.size, dtype=bool))
        if tied[k]:
            raise ValueError(f"parameter {k} is tied to others: only free parameters have a profile")
        self.held = {int(i): float(fit.x[i]) for i in np.flatnonzero(held)}
        self.alone = int((~held & ~tied).sum()) == 1
        self.options = options
        self.lower, self.upper = _limits(options["bounds"], fit.x.size)
        self.best = float(fit.x[k])
        self.std = float(fit.x_std[k]) if "x_std" in fit else math.inf
        self.variance = 1.0 if math.isinf(fit.dof) else 2.0 * float(fit.cost) / fit.dof
        self.seen: list[tuple[float, Array]] = [(self.best, np.asarray(fit.x, dtype=np.float64))]

    def _guess(self, value: float) -> Array:
        """The other parameters, from the fits at the nearest values, or to first order."""
        near = sorted(self.seen, key=lambda one: abs(one[0] - value))[:2]
        guess = near[0][1].copy()
        if len(near) == 2 and near[0][0] != near[1][0]:
            guess += (near[0][1] - near[1][1]) * ((value - near[0][0]) / (near[0][0] - near[1][0]))
        else:
            row = np.asarray(self.fit.cov[:, self.k], dtype=np.float64) if "cov" in self.fit else np.array([np.inf])
            if np.isfinite(row).all() and row[self.k] > 0:
                guess += row / row[self.k] * (value - self.best)
        guess = np.clip(guess, self.lower, self.upper)
        guess[self.k] = value
        return guess

    def at(self, value: float) -> tuple[float, float, Array]:
        """(tau, cost, x), with an infinite tau if the model is not finite."""
        options = dict(self.options)
        if self.alone:
            options.update(max_nfev=1, polish=False)
        else:
            options["fixed"] = {**self.held, self.k: value}
        for start in (self._guess(value), self.seen[0][1].copy()):
            start[self.k] = value
            found = self.solve(self.fun, start.astype(self.fit.x.dtype), self.args, **options)
            if found.status != -3:
                break
        if found.status == -3:
            return math.copysign(math.inf, value - self.best), math.inf, start
        x = np.asarray(found.x, dtype=np.float64)
        excess = 2.0 * (float(found.cost) - float(self.fit.cost)) / self.variance
        noise = 1e3 * float(np.finfo(self.fit.x.dtype).eps) * max(2.0 * float(self.fit.cost) / self.variance, 1.0)
        if excess < -max(noise, 1e-6):
            raise RuntimeError(
                f"with parameter {self.k} at {value:.8g} the cost is {float(found.cost):.8g}, less than that of the "
                f"fit, {float(self.fit.cost):.8g}: it was not the minimum; fit again from "
                f"{np.array2string(x, precision=6)}"
            )
        self.seen.append((value, x))
        return math.copysign(math.sqrt(max(excess, 0.0)), value - self.best), float(found.cost), x

    def end(self, side: int, quantile: float) -> float:
        """Where |tau| reaches the quantile: the bound if |tau| does not reach it before, infinite if it never does."""
        limit = float(self.upper[self.k] if side > 0 else self.lower[self.k])
        if self.best == limit:
            return limit
        reach = quantile * self.std if 0 < self.std < math.inf else max(abs(self.best), 1.0)
        inner, below = self.best, -quantile
        for _ in range(_MAX_EXPANSIONS):
            outer = self.best + side * reach
            if side * (outer - limit) >= 0:
                outer = limit
            above = abs(self.at(outer)[0]) - quantile
            if above >= 0:
                break
            if outer == limit:
                return limit
            inner, below = outer, above
            reach *= min(max(1.1 * quantile / (above + quantile), 1.2), _GROWTH) if above > -quantile else _GROWTH
        else:
            return side * math.inf
        return self._root(inner, below, outer, above, quantile)

    def _root(self, inner: float, below: float, outer: float, above: float, quantile: float) -> float:
        """By false position, with neither end kept twice (Dowell and Jarratt 1971: the Illinois rule)."""
        kept = 0
        for _ in range(_MAX_STEPS):
            if not abs(outer - inner) > 4 * np.finfo(np.float64).eps * abs(outer):
                break
            middle = (inner + outer) / 2 if math.isinf(above) else (inner * above - outer * below) / (above - below)
            value = abs(self.at(middle)[0]) - quantile
            if abs(value) <= _TOLERANCE * quantile:
                return middle
            if value > 0:
                outer, above = middle, value
                if kept == 1:
                    below /= 2
                kept = 1
            else:
                inner, below = middle, value
                if kept == -1:
                    above /= 2
                kept = -1
        return outer


def _limits(bounds: Any, n: int) -> tuple[Array, Array]:
    if bounds is None:
        return np.full(n, -np.inf), np.full(n, np.inf)
    low, high = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else bounds
    return (
        np.array(np.broadcast_to(np.asarray(low, dtype=np.float64), (n,))),
        np.array(np.broadcast_to(np.asarray(high, dtype=np.float64), (n,))),
    )


def conf_interval(fit: Fit, level: Any, parameters: Any, names: Sequence[str] = ()) -> Array:
    """Lower and upper ends, shape (number of parameters, 2)."""
    quantile = student_t(level_of(level), fit["dof"])
    n = fit.x.size
    fixed, tied = fit.get("fixed", np.zeros(n, dtype=bool)), fit.get("tied", np.zeros(n, dtype=bool))
    if parameters is None:
        chosen = list(range(n))
    else:
        if isinstance(parameters, (str, int)):
            parameters = [parameters]
        chosen = [index(key, n, names, "parameters") for key in parameters]
        for k in chosen:
            if tied[k]:
                raise ValueError(f"parameters: {names[k] if names else k} is tied to others and has no profile")
    ends = np.full((len(chosen), 2), np.nan)
    for row, k in zip(ends, chosen, strict=True):
        if fixed[k]:
            row[:] = fit.x[k]
        elif not tied[k]:
            moved = _Profile(fit, k)
            row[:] = moved.end(-1, quantile), moved.end(1, quantile)
    return ends


def profile(fit: Fit, parameter: Any, level: Any, points: Any, names: Sequence[str] = ()) -> Result:
    """Values of a parameter between the ends of its interval, with tau, the cost and all parameters at each."""
    quantile = student_t(level_of(level), fit["dof"])
    count = arguments.whole(points, "points", low=3)
    k = index(parameter, fit.x.size, names, "parameter")
    if fit.get("fixed", np.zeros(fit.x.size, dtype=bool))[k]:
        raise ValueError(f"parameter: {names[k] if names else k} is fixed and has no profile")
    moved = _Profile(fit, k)
    low, high = moved.end(-1, quantile), moved.end(1, quantile)
    for side, end in ((-1, low), (1, high)):
        if math.isinf(end):  # as far as twice the interval of the linear model
            reach = 2 * quantile * moved.std if 0 < moved.std < math.inf else max(abs(moved.best), 1.0)
            low, high = (moved.best - reach, high) if side < 0 else (low, moved.best + reach)
    left = np.linspace(low, moved.best, count // 2 + 1)[:-1]
    right = np.linspace(moved.best, high, (count - 1) // 2 + 1)[1:]
    rows = [(0.0, float(fit.cost), np.asarray(fit.x, dtype=np.float64))]
    for value in left[::-1]:
        rows.insert(0, moved.at(float(value)))
    rows += [moved.at(float(value)) for value in right]
    tau, cost, x = zip(*rows, strict=True)
    return Result(value=np.array([*left, moved.best, *right]), tau=np.array(tau), cost=np.array(cost), x=np.array(x))
