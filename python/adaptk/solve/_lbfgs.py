"""Limited-memory quasi-Newton methods: L-BFGS, and L-BFGS-B with bounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptk.solve import _arguments as arguments
from adaptk.solve import _check
from adaptk.solve._result import Result, finish

__all__ = ["lbfgs"]

Array = arguments.Array
_DECREASE, _CURVATURE = 1e-4, 0.9
_MAX_TRIALS = 40
# A point with a small gradient is a minimum if the next step is short relative to the path so far (_RELATIVE_STEP) and
# either short relative to x or the path (_SMALL_STEP), or predicts a small decrease of |f| (_SMALL_DECREASE); the last
# two are in units of sqrt(eps).
_RELATIVE_STEP = 1e-3
_SMALL_STEP, _SMALL_DECREASE = 1.0, 1e-2
# The least predicted decrease for doubling x, as a fraction of |f|, for which this step is tried.
_OUTWARD_DECREASE = 1e-3
# The number of directions in which the curvature is checked, to distinguish a minimum from a saddle.
_MAX_DIRECTIONS = 10
# The largest number of variables for which each derivative is checked; one may need about twenty evaluations.
_MAX_AXES = 64


def _no_mask(result: Any, name: str) -> None:
    if isinstance(result, np.ma.MaskedArray) and np.ma.is_masked(result):
        raise ValueError(f"{name} must return no masked elements: leave them out, or fill them")


class _Function:
    """Values and gradients in float64 or float32, and their counts."""

    def __init__(
        self, fun: Any, jac: Any, differences: int, pair: bool, x: Array, args: tuple[Any, ...], rel: Any, typical: Any
    ) -> None:
        self.fun = _check._bind(fun, "fun", x, args)
        self.jac = None if jac is None else _check._bind(jac, "jac", x, args)
        self.pair, self.differences, self.dtype = pair, differences, x.dtype
        self.eps = eps = float(np.finfo(x.dtype).eps)
        self.relative = {1: math.sqrt(eps), 2: float(np.cbrt(eps)), 3: eps * eps}.get(differences, 0.0)
        if rel is not None:
            self.relative = rel.astype(np.float64)
        own = np.where(x != 0, np.abs(x), 1.0) if typical is None else np.broadcast_to(typical, x.shape)
        self.typical = own.astype(np.float64)
        # For differences: whether their steps may become longer, and whether a variable has no effect here.
        self.measured, self.silent = rel is None, np.zeros(x.size, bool)
        self.nfev = self.njev = 0
        self.lower: Any = -np.inf
        self.upper: Any = np.inf

    def value(self, x: Array) -> float:
        self.nfev += 1
        return self._number(self.fun(x.copy()))

    @staticmethod
    def _number(value: Any) -> float:
        _no_mask(value, "fun")
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "biuf":
            raise TypeError(f"fun must return a number, got {array.dtype} of shape {array.shape}")
        return float(array.reshape(()))

    def __call__(self, x: Array) -> tuple[float, Array]:
        self.njev += 1
        if self.pair:
            self.nfev += 1
            value, gradient = self.fun(x.copy())
            return self._number(value), self._gradient(gradient, x)
        value = self.value(x)
        if self.jac is not None:
            return value, self._gradient(self.jac(x.copy()), x)
        return value, self._by_differences(x, value)

    def _gradient(self, gradient: Any, x: Array) -> Array:
        _no_mask(gradient, "jac")
        g = np.asarray(gradient)
        if g.shape != x.shape or g.dtype.kind not in "biuf":
            raise ValueError(f"jac must return real numbers of shape {x.shape}, got {g.dtype} of shape {g.shape}")
        return g.astype(self.dtype)

    def _steps(self, at: Array) -> Array:
        steps: Array = self.relative * np.maximum(np.abs(at), self.typical)
        return steps

    def rounding_of_gradient(self, x: Array, value: float) -> float:
        """The error of a derivative from rounding of values; 0 without differences of values."""
        if self.differences not in (1, 2):
            return 0.0
        return float(np.finfo(self.dtype).eps) * abs(value) / float(self._steps(x.astype(np.float64)).min())

    def _by_differences(self, x: Array, value: float) -> Array:
        at = x.astype(np.float64)
        step = self._steps(at)
        g = np.empty(x.size)
        for k in range(x.size):
            if self.differences == 3:
                z = at.astype(np.complex128)
                z[k] += 1j * step[k]
                self.nfev += 1
                g[k] = complex(np.asarray(self.fun(z)).reshape(())).imag / step[k]
                continue
            up, down = x.copy(), x.copy()
            up[k] = min(at[k] + step[k], np.broadcast_to(self.upper, x.shape)[k])
            if self.differences == 2 or up[k] == x[k]:
                down[k] = max(at[k] - step[k], np.broadcast_to(self.lower, x.shape)[k])
            if up[k] == down[k]:  # the bounds leave no room
                g[k] = 0
                continue
            high = value if up[k] == x[k] else self.value(up)
            low = value if down[k] == x[k] else self.value(down)
            g[k] = (high - low) / (float(up[k]) - float(down[k]))
            if not abs(high - low) <= 8 * self.eps * abs(value):
                self.silent[k] = False
            elif self.measured and not self.silent[k]:
                g[k] = self._measure(x, value, k, g[k])
        return g.astype(self.dtype)

    def _measure(self, x: Array, value: float, k: int, before: float) -> float:
        """The slope by longer and longer steps, if rounding hides the difference.

        At a maximum, a saddle or a minimum f changes with the square of the step, and ``|x_k|`` does not show over what
        length: near zero it may be far too short. The length found is the typical size of the variable from then on.
        """
        size = max(abs(float(x[k])), float(self.typical[k]))
        most = max(1.0, size)
        lower, upper = (np.broadcast_to(bound, x.shape)[k] for bound in (self.lower, self.upper))
        self.silent[k] = True
        h = 0.0
        while h < most * 2.0**-6:
            h = min(h * 2.0**4, most * 2.0**-6) if h else size * 2.0 ** (-6 if self.dtype == np.float32 else -13)
            up, down = x.copy(), x.copy()
            up[k], down[k] = min(x[k] + h, upper), max(x[k] - h, lower)
            rise, fall = self.value(up) - value, self.value(down) - value
            change = max(abs(rise), abs(fall))
            if not math.isfinite(rise - fall):
                break
            if change > (64 if h < most * 2.0**-6 else 8) * self.eps * abs(value):
                self.silent[k] = False
                length = h * math.sqrt(abs(value) / change) if change < abs(value) else h
                # At most 1, however far from zero a search has looked.
                if min(length, 1.0) > 2 * size:
                    self.typical[k] = 2.0 ** math.floor(math.log2(min(length, 1.0)))
                # A maximum: there is a slope away from it, even if rounding hides it at x.
                if rise < 0 and fall < 0 and abs(rise - fall) <= 8 * self.eps * abs(value):
                    return fall / float(down[k] - x[k]) if x[k] < 0 else rise / float(up[k] - x[k])
                return (rise - fall) / float(up[k] - down[k])
        return before


class _Memory:
    """The last steps s and changes of the gradient y: B = theta I - W M W', W = [Y, theta S]."""

    def __init__(self, size: int, n: int, dtype: Any) -> None:
        self.size = size
        self.s = np.empty((0, n), dtype)
        self.y = np.empty((0, n), dtype)
        self.theta = 1.0

    def clear(self) -> None:
        self.s, self.y, self.theta = self.s[:0], self.y[:0], 1.0

    def add(self, s: Array, y: Array) -> None:
        """Add a pair, if its curvature is positive beyond rounding."""
        curvature, squares = float(s @ y), float(y @ y)
        if not curvature > np.finfo(s.dtype).eps * math.sqrt(float(s @ s) * squares):
            return
        self.s = np.concatenate([self.s[-(self.size - 1) :] if self.size > 1 else self.s[:0], s[None]])
        self.y = np.concatenate([self.y[-(self.size - 1) :] if self.size > 1 else self.y[:0], y[None]])
        self.theta = squares / curvature

    def direction(self, g: Array) -> Array:
        """-H g by the recursion of Nocedal 1980."""
        q = -g
        rho = [1.0 / float(s @ y) for s, y in zip(self.s, self.y, strict=True)]
        weights = []
        for s, y, r in zip(self.s[::-1], self.y[::-1], rho[::-1], strict=True):
            a = r * float(s @ q)
            weights.append(a)
            q = q - a * y
        q = q / self.theta
        for s, y, r, a in zip(self.s, self.y, rho, weights[::-1], strict=True):
            q = q + (a - r * float(y @ q)) * s
        return np.asarray(q, dtype=g.dtype)

    def matrices(self) -> tuple[Array, Array]:
        w = np.concatenate([self.y, self.theta * self.s]).T.astype(np.float64)
        sy = self.s.astype(np.float64) @ self.y.T.astype(np.float64)
        lower = np.tril(sy, -1)
        middle = np.block(
            [
                [-np.diag(sy.diagonal()), lower.T],
                [lower, self.theta * (self.s.astype(np.float64) @ self.s.T.astype(np.float64))],
            ]
        )
        return w, np.linalg.inv(middle) if middle.size else middle


def _cauchy_point(
    x: Array, g: Array, low: Array, high: Array, breaks: Array, theta: float, w: Array, m: Array
) -> Array:
    """The first minimum of the model along -g, where each variable stops at its bound, its breakpoint.

    With d the steps of the variables that still move after breakpoint t, G their squares, p = W'd and c = W'(x(t) - x),
    the slope is -G + theta t G - p'Mc and the curvature theta G - p'Mp: sums over the sorted breakpoints.
    """
    moving = np.flatnonzero(breaks > 0)
    order = moving[np.argsort(breaks[moving], kind="stable")]
    d, t = -g[order], breaks[order]
    stops = int(np.isfinite(t).sum())
    rows = d[:, None] * w[order]
    begin = np.concatenate([[0.0], t[:stops]])
    end = np.append(t[:stops], np.inf)

    def after(terms: Array) -> Array:
        """Sums over the variables that still move, in each segment."""
        total = np.concatenate([np.cumsum(terms[::-1], axis=0)[::-1], np.zeros((1, *terms.shape[1:]))])
        return np.asarray(total[: stops + 1])

    squares, p = after(d * d), after(rows)
    stopped = np.cumsum(t[:stops, None] * rows[:stops], axis=0)
    c = np.concatenate([np.zeros((1, w.shape[1])), stopped]) + begin[:, None] * p
    pm = p @ m
    slope = (theta * begin - 1) * squares - (pm * c).sum(axis=1)
    bend = theta * squares - (pm * p).sum(axis=1)
    bend = np.maximum(bend, np.finfo(np.float64).eps * theta * squares)
    best = begin + np.divide(-slope, bend, out=np.zeros_like(slope), where=(slope < 0) & (bend > 0))
    at = int(np.argmax((slope >= 0) | (best <= end)))
    moved = min(float(best[at]), float(end[at]))
    cauchy = x.copy()
    cauchy[order] = x[order] + np.minimum(t, moved) * d
    there = order[t <= moved]
    cauchy[there] = np.where(g[there] < 0, high[there], low[there])
    return np.clip(cauchy, low, high)


def _toward_minimum(x: Array, g: Array, low: Array, high: Array, memory: _Memory) -> Array:
    """The minimum of the quadratic model within the bounds, over the variables that are free at the Cauchy point.

    Byrd, Lu, Nocedal and Zhu 1995, Cauchy point and direct primal method; Morales and Nocedal 2011, the projection.
    """
    x, g = x.astype(np.float64), g.astype(np.float64)
    theta = memory.theta
    w, m = memory.matrices()
    with np.errstate(divide="ignore", invalid="ignore"):
        breaks = np.where(g < 0, (x - high) / g, np.where(g > 0, (x - low) / g, np.inf))
    cauchy = _cauchy_point(x, g, low, high, breaks, theta, w, m)
    c = w.T @ (cauchy - x)
    free = (cauchy > low) & (cauchy < high)
    if not free.any():
        return cauchy
    rest = (g + theta * (cauchy - x) - w @ (m @ c))[free]
    part = w[free]
    v = m @ (part.T @ rest)
    if v.size:
        v = np.linalg.solve(np.eye(v.size) - m @ (part.T @ part) / theta, v)
    change = -rest / theta - part @ v / theta**2
    target = cauchy.copy()
    target[free] = np.clip(cauchy[free] + change, low[free], high[free])
    if float((target - x) @ g) < 0:
        return target
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(change > 0, (high[free] - cauchy[free]) / change, (low[free] - cauchy[free]) / change)
    share = min(1.0, float(np.min(room[change != 0], initial=1.0)))
    target = cauchy.copy()
    target[free] += share * change
    return np.clip(target, low, high)


def _far_out(x: Array) -> bool:
    """Whether squares of x overflow."""
    return not float(np.abs(x).max()) < math.sqrt(float(np.finfo(x.dtype).max))


class _Search:
    """Strong Wolfe conditions by cubic interpolation (Nocedal and Wright, algorithms 3.5 and 3.6).

    If rounding hides the decrease, Hager and Zhang's approximate conditions are used.
    """

    def __init__(self, f: _Function, x: Array, d: Array, value: float, slope: float, most: float, clip: Any) -> None:
        self.f, self.x, self.d, self.value, self.slope, self.most, self.clip = f, x, d, value, slope, most, clip
        self.noise = 16 * float(np.finfo(x.dtype).eps) * abs(value)
        self.blocked = False  # f or its slope is not finite at the last point that is not x

    def at(self, a: float) -> tuple[float, float, float, Array, Array]:
        with np.errstate(over="ignore"):
            point = self.clip((self.x + self.x.dtype.type(a) * self.d).astype(self.x.dtype))
        if not np.isfinite(point).all():
            return a, math.inf, math.nan, point, self.x
        value, g = self.f(point)
        slope = float(g @ self.d)
        if math.isnan(value) or (math.isfinite(value) and not math.isfinite(slope)):
            value = math.inf
        if math.isfinite(value) == self.blocked and (point != self.x).any():
            self.blocked = not self.blocked
        return a, value, slope, point, g

    def enough(self, t: tuple[float, float, float, Array, Array]) -> bool:
        a, value, slope, *_ = t
        if value <= self.value + _DECREASE * a * self.slope and abs(slope) <= -_CURVATURE * self.slope:
            return True
        return value <= self.value + self.noise and (2 * _DECREASE - 1) * self.slope >= slope >= _CURVATURE * self.slope

    def run(self, first: float) -> Any:
        """The trial that satisfies the conditions, else the lowest one below the start, else None."""
        low: Any = (0.0, self.value, self.slope, self.x, None)
        high: Any = None
        best: Any = None
        # A shorter step leaves x as it is: far out, where f falls on and on, that may be most of the trials.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            shortest = np.abs(self.x) / np.abs(self.d) * self.x.dtype.type(np.finfo(self.x.dtype).eps)
        a = min(max(first, float(shortest[self.d != 0].min(initial=np.inf))), self.most)
        tiny = 4 * float(np.finfo(self.x.dtype).eps)
        for _ in range(_MAX_TRIALS):
            t = self.at(a)
            if best is not None and not np.isfinite(t[3]).all() and _far_out(best[3]):
                return best
            if t[1] < (self.value if best is None else best[1]):
                best = t
            if t[1] == -math.inf or self.enough(t):
                return t
            # If rounding hides the expected fall of f, a slope that does not get flatter shows that f is still falling.
            hidden = t[1] <= self.value + self.noise and t[2] <= 0.9 * low[2]
            no_lower = low[0] > 0 and t[1] >= low[1] and not hidden
            if not t[1] <= self.value + _DECREASE * a * self.slope + self.noise or no_lower:
                high = t
            elif high is None and t[2] < 0:
                if a >= self.most:
                    return t
                # On to where the slope is 0 if it is linear, within 1.1 and 4 times as far (More and Thuente 1994).
                flatter = (t[2] - low[2]) / (a - low[0])
                further = -t[2] / flatter if flatter > 0 else math.inf
                low = t
                a = min(a + min(max(further, 0.1 * a), 3 * a), self.most)
                continue
            else:
                if high is None or t[2] * (high[0] - low[0]) >= 0:
                    high = low
                low = t
            width = high[0] - low[0]
            if abs(width) <= tiny * max(abs(low[0]), abs(high[0])):
                break
            # Shorter steps change f by less than its rounding.
            if low[0] == 0 and -high[0] * self.slope <= self.noise / 128:
                break
            a = self._cubic(low, high) if math.isfinite(high[1]) else low[0] + 0.1 * width
            least, greatest = sorted((low[0] + 0.1 * width, low[0] + 0.9 * width))
            a = min(max(a, least), greatest) if math.isfinite(a) else low[0] + 0.5 * width
        return best

    @staticmethod
    def _cubic(p: Any, q: Any) -> float:
        a, fa, sa = map(float, p[:3])
        b, fb, sb = map(float, q[:3])
        d1 = sa + sb - 3 * (fa - fb) / (a - b)
        square = d1 * d1 - sa * sb
        if not square >= 0:
            return (a + b) / 2
        d2 = math.copysign(math.sqrt(square), b - a)
        bottom = sb - sa + 2 * d2
        return b - (b - a) * (sb + d2 - d1) / bottom if bottom != 0 else (a + b) / 2


def _negative_curvature(
    f: _Function, x: Array, g: Array, free: Array, path: float, largest: float, clip: Any
) -> Array | None:
    """A direction of the free variables with negative curvature, if conjugate gradients on H p = -g find one.

    Products with H are differences of gradients, to one side if this is clear. With few variables every direction is
    tried.
    """
    eps = float(np.finfo(x.dtype).eps)
    noise = 8 * {1: math.sqrt(eps), 2: eps ** (2 / 3)}.get(f.differences, eps / 8)
    h = min(_RELATIVE_STEP, noise ** (1 / 3)) * path
    whole, g = g.astype(np.float64), np.where(free, g, 0)
    square = float(g.astype(np.float64) @ g)
    if not h > 0 or not square > 0:
        return None
    r: Array = -g.astype(np.float64)
    u = r
    for _ in range(min(x.size, _MAX_DIRECTIONS)):
        step = (h / float(np.linalg.norm(u)) * u).astype(x.dtype)
        if (clip(x + step) != x + step).any() or (clip(x - step) != x - step).any():
            return None
        u_norm = float(np.linalg.norm(u))
        up = f(x + step)[1].astype(np.float64)
        hu: Array = np.where(free, (up - whole) * (u_norm / h), 0)
        bend, unknown = float(u @ hu), 8 * noise * largest / h * float(u @ u)
        # The other side, if this one alone does not show a positive curvature.
        if not bend > 16 * unknown:
            hu = np.where(free, (up - f(x - step)[1]) * (u_norm / (2 * h)), 0)
            bend, unknown = float(u @ hu), unknown / 2
        if not abs(bend) > unknown:
            return None
        if bend < 0:
            return u / u_norm
        r = r - square / bend * hu
        before, square = square, float(r @ r)
        if not square > (1e-2 * float(g @ g) if x.size > _MAX_DIRECTIONS else 0):
            return None
        u = r + square / before * u
    return None


def _contradicted(
    f: _Function, x: Array, d: Array, value: float, slope: float, clip: Any
) -> tuple[float, float] | None:
    """The slopes (claimed, found) along d, if two differences agree with each other and not with the claimed slope."""
    size = (float(np.linalg.norm(x)) or 1.0) / float(np.linalg.norm(d))
    before = math.nan
    eps = float(np.finfo(x.dtype).eps)
    for k in range(1, 12):
        h = size * 16.0**-k
        up, down = (clip((x + x.dtype.type(side) * d).astype(x.dtype)) for side in (h, -h))
        high, low = f.value(up), f.value(down)
        rounding = 8 * eps * max(abs(high), abs(low), abs(value)) / h
        width = float((up - down).astype(np.float64) @ d.astype(np.float64)) / float(d.astype(np.float64) @ d)
        if not width > 0 or not math.isfinite(high - low):
            continue
        found = (high - low) / width
        if rounding > abs(slope) / 10:
            return None
        if abs(found - slope) <= 0.5 * abs(slope) + rounding:
            return None
        if abs(found - before) <= 0.1 * max(abs(found), abs(slope)):
            length = float(np.linalg.norm(d))
            return slope / length, found / length
        before = found
    return None


def _disagreement(f: _Function, x: Array, g: Array, inner: Array, value: float, clip: Any) -> Any:
    """The variable whose derivative is most wrong, or -1 for all of them, and its slopes; None if none is wrong."""
    along = _contradicted(f, x, -inner, value, -float(inner @ inner), clip)
    if along is None:
        return None
    worst, error = (-1, *along, True), 0.0
    for k in range(x.size if x.size <= _MAX_AXES else 0):
        axis = np.zeros_like(x)
        axis[k] = 1
        one = _contradicted(f, x, axis, value, float(g[k]), clip)
        if one is not None and abs(one[1] - one[0]) > error:
            worst, error = (k, *one, True), abs(one[1] - one[0])
    return worst


def lbfgs(
    fun: Any,
    x0: Any,
    args: Any = (),
    *,
    jac: Any = None,
    bounds: Any = None,
    memory: int = 10,
    gtol: float | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    rel_step: Any = None,
    typical: Any = None,
    check_derivatives: bool = False,
    hess: None = None,
    hessp: None = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    disp: bool = False,
    history: bool = False,
    max_seconds: float | None = None,
) -> Result:
    """Minimise a function by the limited-memory BFGS method, with or without bounds.

    L-BFGS estimates the inverse Hessian from the last `memory` steps. With bounds the method is L-BFGS-B: the step goes
    to the minimum of the model within the bounds, over the variables that are free at its Cauchy point.

    Parameters
    ----------
    fun : callable or compiled function
        ``fun(x, *args)`` returns a number. `x` is a new array, shape (n,), at each call. Compiled:
        ``double (int n, const double *x, void *user)``.
    x0 : array_like, shape (n,)
        The start; float32, or anything real that converts to float64.
    args : tuple
        Additional arguments of the functions.
    jac : callable, compiled function, True or {"2-point", "3-point", "cs"}, optional
        The gradient, shape (n,). ``True``: `fun` returns the pair (value, gradient). Compiled:
        ``void (int n, const double *x, double *g, void *user)``. By default, central differences.
    bounds : (lower, upper), optional
        Numbers or shape (n,) each, or an object with ``lb`` and ``ub``. Equal ones hold a variable.
    memory : int
        The number of steps to store.
    gtol : float, optional
        Tolerance: see `status`. Default 1e-10, for float32 1e-6, and with differences not below their error. `tol` is
        another name for it.
    maxiter : int, optional
        ``max(10000, 200 n)``.
    rel_step, typical : float or array_like, optional
        Differences step by ``rel_step * max(|x|, typical)``. `typical` is by default ``|x0|``, or 1 where that is 0.
        Without `rel_step`, steps become longer if rounding hides the change of `fun`, up to those for a `typical` of 1.
    check_derivatives : bool
        Whether to compare `jac` with central differences at `x0` first, and raise ValueError with the worst element if
        one is wrong.
    hess, hessp, constraints
        Passed by ``scipy.optimize.minimize``; not supported by this method.
    callback : callable, optional
        ``callback(x)`` or ``callback(intermediate_result=...)`` after each iteration; StopIteration or a returned
        ``True`` ends the run.
    disp, history : bool
        Show progress on one line of standard error; record each iteration in ``result.history``.
    max_seconds : float, optional
        Time limit: the run ends with the iteration that reaches it.

    Returns
    -------
    Result
        `x`, `fun`, `jac`, `active_mask` (-1 and 1 at a lower and an upper bound), `nit`, `nfev`, `njev`, `success`,
        `message` and `status`, with g the gradient of what no bound holds and G the largest ``|g|_inf`` of the run:

        == =======================================================================
        1  ``|g|_inf <= gtol G``, and the next step is at most a thousandth of the path so far, and either at most
           eps**(1/2) of it or of ``|x|``, or predicts a fall of less than 0.01 eps**(1/2) of ``|f|``; and the curvature
           is not negative in up to ten directions
        5  no step along -g lowers f by more than its rounding
        0  `maxiter` iterations
        -1 the callback stopped it
        -2 time limit reached
        -3 the value or the gradient is not finite at the start, or however short the step
        -6 no minimum: f is -inf, or still falls where squares of x overflow
        -9 as 5, but the gradient is not small and differences of `fun` contradict it
        == =======================================================================

    Raises
    ------
    TypeError, ValueError
        If an argument or a returned value has a wrong type, shape or range. Exceptions of the functions propagate.

    References
    ----------
    J. Nocedal, Math. Comp. 35, 1980. R. H. Byrd, P. Lu, J. Nocedal and C. Zhu, SIAM J. Sci. Comput. 16, 1995. J. L.
    Morales and J. Nocedal, ACM TOMS 38, 2011.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> f = lambda x: float(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)
    >>> adaptk.solve.lbfgs(f, [-1.2, 1.0]).x.round(6)
    array([1., 1.])
    >>> adaptk.solve.lbfgs(f, [-1.2, 1.0], bounds=([-2, -2], [0.5, 2])).x.round(6)
    array([0.5 , 0.25])
    """
    arguments.unconstrained(constraints)
    arguments.warn_unused(hess=hess, hessp=hessp)
    x = arguments.start(x0)
    extra = arguments.tuple_of(args)
    compiled, g_compiled, differences, pair = arguments.gradient_options(
        fun, "3-point" if jac is None else jac, x, False
    )
    lower, upper = arguments.bounds(bounds, x, fixed=True)
    if check_derivatives:
        _check.verify(compiled, x, extra, g_compiled, pair, bounds=(lower, upper))
    limit = max(10000, 200 * x.size) if maxiter is None else arguments.whole(maxiter, "maxiter")
    steps = tuple(arguments.per_variable(v, name, x) for v, name in ((rel_step, "rel_step"), (typical, "typical")))
    f = _Function(compiled, g_compiled, differences, pair, x, extra, *steps)
    given = arguments.tolerance(tol if gtol is None else gtol, "gtol")
    tolerance = (1e-6 if x.dtype == np.float32 else 1e-10) if given is None else given
    if given is None and differences in (1, 2):
        tolerance = max(tolerance, float(np.finfo(x.dtype).eps) ** (0.5 if differences == 1 else 2 / 3))
    kept = _Memory(arguments.whole(memory, "memory", low=1), x.size, x.dtype)
    common, progress = arguments.common("lbfgs", callback, disp, history, max_seconds)
    raw = _run(f, x, lower, upper, kept, tolerance, limit, common)
    return finish(raw, "gradient", progress)


def _run(
    f: _Function, x: Array, lower: Any, upper: Any, memory: _Memory, gtol: float, limit: int, common: tuple[Any, ...]
) -> dict[str, Any]:
    callback, progress, history, seconds = common
    bounded = lower is not None
    if bounded:
        f.lower, f.upper = lower, upper
    low, high = (lower, upper) if bounded else (np.full(x.size, -np.inf, x.dtype), np.full(x.size, np.inf, x.dtype))
    end = math.inf if math.isinf(seconds) else time.monotonic() + seconds

    def clip(point: Array) -> Array:
        return np.clip(point, low, high) if bounded else point

    def free_part(at: Array, g: Array) -> Array:
        return np.where(((at <= low) & (g > 0)) | ((at >= high) & (g < 0)), 0, g) if bounded else g

    def leave() -> tuple[Array, float, Array] | None:
        """A lower point beyond a saddle, at most as far as the path so far."""
        free = (x > low) & (x < high) if bounded else np.ones(x.size, bool)
        u = _negative_curvature(f, x, g, free, path, largest, clip)
        if u is None:
            return None
        for k in range(60):
            for side in (path * 0.25**k, -path * 0.25**k):
                point = clip((x + side * u).astype(x.dtype))
                if f.value(point) < value - 16 * f.eps * abs(value):
                    return point, *f(point)
        return None

    value, g = f(x)
    records: list[tuple[float, float, float]] = []
    path = largest = 0.0
    step = math.nan
    nit = 0
    initial_gradient = np.zeros_like(g)
    disagreement = None
    began_far_out = _far_out(x)
    status = -6 if value == -math.inf else 0 if math.isfinite(value) and np.isfinite(g).all() else -3
    while status == 0:
        inner = free_part(x, g)
        steepest = float(np.abs(inner).max())
        largest = max(largest, steepest)
        if nit == 0:
            initial_gradient = np.abs(inner)
        records.append((value, step, steepest))
        if progress is not None:
            progress(nit, value, step, steepest)
        if nit and callback is not None:
            try:
                if callback(x.copy(), value, nit):
                    status = -1
            except StopIteration:
                status = -1
        if status == 0 and time.monotonic() > end:
            status = -2
        if status:
            break
        if steepest == 0:
            # If rounding of the function hides a difference, 0 only shows that.
            status = 5 if f.rounding_of_gradient(x, value) > gtol * largest else 1
            break
        found = search = away = None
        for attempt in range(3):
            if attempt == 1:
                if not memory.s.size and nit:
                    continue
                memory.clear()
            if attempt == 2:
                # Far out, the slope may change f by more than its rounding only over steps as long as x.
                d = (clip(x + x) - x).astype(x.dtype)
                if not -float(g @ d) > _OUTWARD_DECREASE * abs(value):
                    continue
            elif not bounded:
                d = memory.direction(g)
            elif memory.s.size:
                d = (_toward_minimum(x, g, low, high, memory) - x).astype(x.dtype)
                if not float(g @ d) < 0:  # so small a gradient that only rounding is left of the step
                    d = (-inner / memory.theta).astype(x.dtype)
            else:
                d = -inner
            slope = float(g @ d)
            if not slope < 0 or not math.isfinite(slope):
                continue
            length = float(np.linalg.norm(d))
            near = steepest <= gtol * largest and length <= _RELATIVE_STEP * path
            # A slope that is as large as at the start is not small, even if later ones were larger.
            slopes = np.abs(inner)
            sloping = (slopes >= initial_gradient / 2) & (slopes > gtol * float(initial_gradient.max()))
            if memory.s.size and near and not sloping.any():
                root = math.sqrt(float(np.finfo(x.dtype).eps))
                small = length <= _SMALL_STEP * root * max(float(np.linalg.norm(x)), path)
                if small or -slope / 2 <= _SMALL_DECREASE * root * abs(value):
                    away = leave()
                    if away is None:
                        status = 1
                    break
            most = math.inf
            if bounded:
                with np.errstate(divide="ignore", invalid="ignore"):
                    room = np.where(d > 0, (high - x) / d, np.where(d < 0, (low - x) / d, np.inf))
                most = max(float(room.min()), 1.0 if memory.s.size else 0.0)
                # Along -g each variable stops at its own bound: the longest distance counts, and clip does the rest.
                if not memory.s.size:
                    most = float(room[np.isfinite(room) & (d != 0)].max(initial=0.0)) or math.inf
            if memory.s.size or attempt == 2:
                first = 1.0
            else:
                size = float(np.abs(x).max())
                first = 0.01 * size / steepest if size > 0 else 1.0 / steepest
            if nit >= limit:
                break
            search = _Search(f, x, d, value, slope, most, clip)
            found = search.run(first)
            if found is not None:
                break
        if status:
            break
        if away is not None:
            x, value, g = away
            memory.clear()
            continue
        if nit >= limit:
            break
        if found is None:
            status = -3 if search is not None and search.blocked else 5
            if status == 5 and search is not None and steepest > 1e-3 * largest and f.differences == 0:
                disagreement = _disagreement(f, x, g, inner, value, clip)
                if disagreement is not None:
                    status = -9
            break
        _, new, _, point, gradient = found
        if new == -math.inf:
            x, value, status = point, new, -6
            break
        if not np.isfinite(gradient).all():
            status = -3
            break
        change = point - x
        step = float(np.linalg.norm(change))
        path += step
        memory.add(change, gradient - g)
        x, value, g = point, new, gradient
        nit += 1
        if _far_out(x) and not began_far_out:
            status = -6
    raw: dict[str, Any] = {
        "status": status, "x": x, "fun": x.dtype.type(value) if x.dtype == np.float32 else value, "jac": g,
        "nit": nit, "nfev": f.nfev, "njev": f.njev, "nhev": 0,
        "active_mask": np.where(x <= low, -1, np.where(x >= high, 1, 0)),
    }  # fmt: skip
    if disagreement is not None:
        raw["disagreement"] = disagreement
    if history:
        columns = zip(("fun", "step", "gradient"), np.array(records, dtype=float).reshape(-1, 3).T, strict=True)
        raw["history"] = {name: column.copy() for name, column in columns}
    return raw
