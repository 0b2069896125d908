"""The solvers: problems with known answers, every status, bad input, callables of all kinds, threads, memory."""

from __future__ import annotations

import ctypes
import gc
import io
import itertools
import math
import pickle
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _nist, _solve, solve

Array = np.ndarray[Any, Any]

# ---------------------------------------------------------------------------------------------------------------------
# Problems: value, gradient, Hessian, start, minimum, minimiser (None: many)
# ---------------------------------------------------------------------------------------------------------------------


def rosenbrock(x: Array) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def rosenbrock_gradient(x: Array) -> Array:
    g = np.zeros_like(x)
    t = x[1:] - x[:-1] ** 2
    g[:-1] = -400 * x[:-1] * t - 2 * (1 - x[:-1])
    g[1:] += 200 * t
    return g


def rosenbrock_hessian(x: Array) -> Array:
    h = np.zeros((len(x), len(x)), x.dtype)
    for i in range(len(x) - 1):
        h[i, i] += 1200 * x[i] ** 2 - 400 * x[i + 1] + 2
        h[i, i + 1] = h[i + 1, i] = -400 * x[i]
        h[i + 1, i + 1] += 200
    return h


MATRIX = np.array([[4.0, 1.0, 0.5], [1.0, 3.0, 0.25], [0.5, 0.25, 2.0]])
RIGHT = np.array([1.0, -2.0, 0.5])


def wood(x: Array) -> float:
    a, b, c, d = x
    return float(
        100 * (b - a * a) ** 2
        + (1 - a) ** 2
        + 90 * (d - c * c) ** 2
        + (1 - c) ** 2
        + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2)
        + 19.8 * (b - 1) * (d - 1)
    )


def wood_gradient(x: Array) -> Array:
    a, b, c, d = x
    return np.array(
        [
            -400 * a * (b - a * a) - 2 * (1 - a),
            200 * (b - a * a) + 20.2 * (b - 1) + 19.8 * (d - 1),
            -360 * c * (d - c * c) - 2 * (1 - c),
            180 * (d - c * c) + 20.2 * (d - 1) + 19.8 * (b - 1),
        ]
    )


def wood_hessian(x: Array) -> Array:
    a, b, c, d = x
    return np.array(
        [
            [1200 * a * a - 400 * b + 2, -400 * a, 0, 0],
            [-400 * a, 220.2, 0, 19.8],
            [0, 0, 1080 * c * c - 360 * d + 2, -360 * c],
            [0, 19.8, -360 * c, 200.2],
        ]
    )


PROBLEMS: dict[str, tuple[Any, ...]] = {
    "quadratic": (
        lambda x: float(x @ MATRIX @ x / 2 - RIGHT @ x),
        lambda x: MATRIX @ x - RIGHT,
        lambda x: MATRIX,
        [5.0, 5.0, 5.0],
        -RIGHT @ np.linalg.solve(MATRIX, RIGHT) / 2,
        np.linalg.solve(MATRIX, RIGHT),
    ),
    "rosenbrock": (rosenbrock, rosenbrock_gradient, rosenbrock_hessian, [-1.2, 1.0], 0.0, [1.0, 1.0]),
    "wood": (wood, wood_gradient, wood_hessian, [-3.0, -1.0, -3.0, -1.0], 0.0, [1.0] * 4),
    "logarithm": (
        lambda x: float(np.sum(x - np.log(x))) if (x > 0).all() else math.nan,
        lambda x: 1 - 1 / x,
        lambda x: np.diag(1 / x**2),
        [5.0, 0.01],
        2.0,
        [1.0, 1.0],
    ),
    "exponentials": (
        lambda x: float(np.exp(x[0] + 3 * x[1] - 0.1) + np.exp(x[0] - 3 * x[1] - 0.1) + np.exp(-x[0] - 0.1)),
        lambda x: np.array(
            [
                np.exp(x[0] + 3 * x[1] - 0.1) + np.exp(x[0] - 3 * x[1] - 0.1) - np.exp(-x[0] - 0.1),
                3 * np.exp(x[0] + 3 * x[1] - 0.1) - 3 * np.exp(x[0] - 3 * x[1] - 0.1),
            ]
        ),
        lambda x: np.array(
            [
                [
                    np.exp(x[0] + 3 * x[1] - 0.1) + np.exp(x[0] - 3 * x[1] - 0.1) + np.exp(-x[0] - 0.1),
                    3 * np.exp(x[0] + 3 * x[1] - 0.1) - 3 * np.exp(x[0] - 3 * x[1] - 0.1),
                ],
                [
                    3 * np.exp(x[0] + 3 * x[1] - 0.1) - 3 * np.exp(x[0] - 3 * x[1] - 0.1),
                    9 * np.exp(x[0] + 3 * x[1] - 0.1) + 9 * np.exp(x[0] - 3 * x[1] - 0.1),
                ],
            ]
        ),
        [-1.0, 1.0],
        2 * math.sqrt(2) * math.exp(-0.1),
        [-math.log(2) / 2, 0.0],
    ),
    "one variable": (
        lambda x: float(np.cosh(x[0] - 2)),
        lambda x: np.sinh(x - 2),
        lambda x: np.cosh(x - 2)[:, None],
        [6.0],
        1.0,
        [2.0],
    ),
}

NEWTONS: dict[str, Callable[..., solve.Result]] = {
    "trust-region": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hess=h, **o),
    "levenberg": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hess=h, damping="levenberg", **o),
    "hessp": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hessp=lambda p, v: h(p) @ v, **o),
    "hess by differences": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, **o),
}
GRADIENTS: dict[str, Callable[..., solve.Result]] = {
    **{
        f"cg {beta}": lambda f, x, g, h, beta=beta, **o: solve.conjugate_gradient(f, x, jac=g, beta=beta, **o)
        for beta in ("hz", "pr+", "fr", "hs", "dy")
    },
    "sd bb": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, line_search="bb", **o),
}
SLOW = {
    "sd wolfe": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, **o),
    "sd exact": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, line_search="exact", **o),
}
SOLVERS = NEWTONS | GRADIENTS | SLOW


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_minima(solver: str, problem: str) -> None:
    f, g, h, start, minimum, where = PROBLEMS[problem]
    if (solver in SLOW and problem in ("rosenbrock", "wood")) or (solver == "sd bb" and problem == "wood"):
        pytest.skip("takes steepest descent thousands of steps")
    values: list[float] = []

    def watched(x: Array) -> float:
        values.append(f(x))
        return values[-1]

    r = SOLVERS[solver](watched, start, g, h)
    assert r.success, r.message
    assert r.fun == pytest.approx(minimum, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(r.x, where, rtol=2e-5, atol=2e-5)
    # The best that was seen, and consistent with itself.
    assert r.fun <= np.nanmin(values) + 4e-16 * abs(minimum)
    assert r.fun == f(r.x)
    np.testing.assert_allclose(r.jac, g(r.x), rtol=0, atol=1e-6 * np.abs(g(np.array(start))).max())
    assert r.nfev == len(values)
    assert r.x.dtype == np.float64
    assert r.x.shape == (len(start),)


@pytest.mark.parametrize("solver", [*NEWTONS, *GRADIENTS])
def test_float32_is_kept(solver: str) -> None:
    f, g, h = rosenbrock, rosenbrock_gradient, rosenbrock_hessian
    seen: list[Any] = []

    def watched(x: Array) -> float:
        seen.append(x.dtype)
        return f(x)

    r = SOLVERS[solver](watched, np.array([-1.2, 1.0], np.float32), g, h)
    assert set(seen) == {np.dtype(np.float32)}
    assert r.x.dtype == r.jac.dtype == np.asarray(r.fun).dtype == np.float32
    np.testing.assert_allclose(r.x, 1.0, atol=0.05)


def test_float32_least_squares() -> None:
    t = np.linspace(0, 1, 20, dtype=np.float32)
    y = (2 * np.exp(-3 * t)).astype(np.float32)
    r = solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * t) - y, np.ones(2, np.float32))
    assert all(v.dtype == np.float32 for v in (r.x, r.fun, r.jac, r.cov, r.x_std))
    np.testing.assert_allclose(r.x, [2, 3], rtol=1e-4)


@pytest.mark.parametrize("solver", ["trust-region", "levenberg", "hessp", *GRADIENTS])
@pytest.mark.parametrize(("in_x", "in_f"), [(2.0**10, 1.0), (2.0**-20, 2.0**30), (1.0, 2.0**-40)])
def test_powers_of_two_change_no_iterate(solver: str, in_x: float, in_f: float) -> None:
    def run(a: float, b: float) -> tuple[list[Array], solve.Result]:
        log: list[Array] = []
        r = SOLVERS[solver](
            lambda x: b * rosenbrock(x / a),
            np.array([-1.2, 1.0, 0.7]) * a,
            lambda x: b / a * rosenbrock_gradient(x / a),
            lambda x: b / a / a * rosenbrock_hessian(x / a),
            callback=lambda x: log.append(x / a),
        )
        return log, r

    want, one = run(1.0, 1.0)
    got, other = run(in_x, in_f)
    assert (one.status, one.nit, one.nfev) == (other.status, other.nit, other.nfev)
    np.testing.assert_array_equal(want, got)


# ---------------------------------------------------------------------------------------------------------------------
# Saddles, maxima, and every status
# ---------------------------------------------------------------------------------------------------------------------

# value, gradient, Hessian, starts on the stable manifold or at the point itself, minimum
SADDLES: dict[str, tuple[Any, ...]] = {
    "saddle": (
        lambda x: float(x[0] ** 2 - x[1] ** 2 + x[1] ** 4 / 4),
        lambda x: np.array([2 * x[0], -2 * x[1] + x[1] ** 3]),
        lambda x: np.diag([2, -2 + 3 * x[1] ** 2]),
        ([1.0, 0.0], [0.0, 0.0], [-1e3, 0.0]),
        -1.0,
    ),
    "maximum": (
        lambda x: float(np.cos(x).sum()),
        lambda x: -np.sin(x),
        lambda x: np.diag(-np.cos(x)),
        ([0.0, 0.0], [0.0, math.pi]),
        -2.0,
    ),
    "maximum with H = 0": (
        lambda x: float(-(x[0] ** 4) + x[0] ** 6),
        lambda x: -4 * x**3 + 6 * x**5,
        lambda x: np.array([[-12 * x[0] ** 2 + 30 * x[0] ** 4]]),
        ([0.0],),
        -4 / 27,
    ),
    "monkey saddle": (
        lambda x: float(x[0] ** 3 - 3 * x[0] * x[1] ** 2 + (x @ x) ** 2),
        lambda x: np.array([3 * x[0] ** 2 - 3 * x[1] ** 2, -6 * x[0] * x[1]]) + 4 * x * (x @ x),
        lambda x: (
            np.array([[6 * x[0], -6 * x[1]], [-6 * x[1], -6 * x[0]]]) + 4 * (x @ x) * np.eye(2) + 8 * np.outer(x, x)
        ),
        ([0.0, 0.0],),
        -27 / 256,
    ),
}


@pytest.mark.parametrize("solver", ["trust-region", "levenberg", "hessp"])
@pytest.mark.parametrize(("name", "start"), [(name, start) for name, p in SADDLES.items() for start in p[3]])
def test_saddles_and_maxima_are_left(solver: str, name: str, start: list[float]) -> None:
    f, g, h, _, minimum = SADDLES[name]
    r = SOLVERS[solver](f, start, g, h)
    assert r.success, r.message
    assert r.fun == pytest.approx(minimum, rel=1e-12)
    assert r.lambda_min > 0
    assert r.lambda_min == pytest.approx(np.linalg.eigvalsh(h(r.x))[0], rel=1e-5)


def test_a_saddle_in_many_dimensions() -> None:
    """x'Dx/2 + |x|^4/4 with one negative eigenvalue, from where the gradient does not see it."""
    rng = np.random.default_rng(3)
    q, _ = np.linalg.qr(rng.normal(size=(150, 150)))
    d = np.linspace(1, 5, 150)
    d[17] = -2.0
    a = (q * d) @ q.T
    start = rng.normal(size=150)
    start -= q[:, 17] * (q[:, 17] @ start)
    r = solve.newton(
        lambda x: float(x @ a @ x / 2 + (x @ x) ** 2 / 4),
        start,
        jac=lambda x: a @ x + x * (x @ x),
        hess=lambda x: a + (x @ x) * np.eye(150) + 2 * np.outer(x, x),
    )
    assert r.success
    assert r.fun == pytest.approx(-1.0, rel=1e-12)


@pytest.mark.parametrize("name", SADDLES)
def test_the_plain_method_never_calls_a_saddle_a_success(name: str) -> None:
    f, g, h, starts, _ = SADDLES[name]
    for start in starts:
        r = solve.newton(f, start, jac=g, hess=h, damping=None)
        assert not r.success
        assert r.status in (-4, -5)


def test_the_plain_method_takes_full_steps() -> None:
    """Algorithm 8.8: x - H^-1 g, and nothing else."""
    steps: list[Array] = []
    r = solve.newton(
        rosenbrock,
        [1.2, 1.2],
        jac=rosenbrock_gradient,
        hess=rosenbrock_hessian,
        damping=None,
        callback=steps.append,
    )
    assert r.success
    x = np.array([1.2, 1.2])
    for got in steps[:-1]:
        x = x - np.linalg.solve(rosenbrock_hessian(x), rosenbrock_gradient(x))
        np.testing.assert_allclose(got, x, rtol=1e-9)


def test_a_flat_minimum_is_one() -> None:
    r = solve.newton(
        lambda x: float(np.sum(x**4)), [0.0, 0.0], jac=lambda x: 4 * x**3, hess=lambda x: np.diag(12 * x**2)
    )
    assert r.status == 1
    assert r.lambda_min == 0


def test_status_of_newton() -> None:
    f, g, h = rosenbrock, rosenbrock_gradient, rosenbrock_hessian
    start = [-1.2, 1.0]
    assert solve.newton(f, start, jac=g, hess=h).status == 1
    assert solve.newton(f, start, jac=g, hess=h, gtol=0, xtol=0.1).status == 3
    assert solve.newton(f, start, jac=g, hess=h, maxiter=2).status == 0
    assert solve.newton(f, start, jac=g, hess=h, max_seconds=0).status == -2
    assert solve.newton(lambda x: math.nan, start, jac=g, hess=h).status == -3
    assert solve.newton(f, start, jac=lambda x: x * math.nan, hess=h).status == -3
    assert solve.newton(f, start, jac=g, hess=lambda x: np.full((2, 2), math.inf)).status == -3
    assert solve.newton(f, [0.0, 2.0], jac=g, hess=h, damping=None).status == -4

    # A gradient that is not the function's: no step goes down.
    wrong = solve.newton(lambda x: float(x @ x), [1.0], jac=lambda x: -2 * x, hess=lambda x: [[2.0]])
    assert wrong.status == 5

    # Claims of curvature that f does not have.
    lie = solve.newton(lambda x: float(x @ x), [0.0], jac=lambda x: 0 * x, hess=lambda x: [[-1.0]])
    assert lie.status == -5
    assert not lie.success

    fall = solve.newton(
        lambda x: -math.inf if x[0] > 10 else -float(x[0]), [1.0], jac=lambda x: -np.ones(1), hess=lambda x: [[0.0]]
    )
    assert fall.status == -6


def test_status_of_gradient_methods() -> None:
    f, g = rosenbrock, rosenbrock_gradient
    start = [-1.2, 1.0]
    for method in (solve.conjugate_gradient, solve.steepest_descent):
        assert method(f, start, jac=g, gtol=0.5).status == 1
        assert method(f, start, jac=g, maxiter=3).status == 0
        assert method(f, start, jac=g, maxiter=3).nit == 3
        assert method(f, start, jac=g, max_seconds=0).status == -2
        assert method(lambda x: math.inf, start, jac=g).status == -3
        assert method(f, start, jac=lambda x: x * math.nan).status == -3
        assert method(lambda x: float(x @ x), start, jac=lambda x: -2 * x).status == 5
        assert method(lambda x: -math.inf if x[0] > 9 else -float(x[0]), [1.0], jac=lambda x: -np.ones(1)).status == -6


def test_status_of_least_squares() -> None:
    def f(x: Array) -> Array:
        return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])

    t = np.linspace(0, 1, 9)

    def curve(x: Array) -> Array:
        return x[0] * np.exp(-x[1] * t) - np.cos(3 * t)

    start = [-1.2, 1.0]
    assert solve.levenberg_marquardt(f, start).status == 1
    loose = {"ftol": 0.0, "xtol": 0.0, "gtol": 0.0}
    assert solve.levenberg_marquardt(curve, start, **(loose | {"gtol": 1e-3})).status == 1
    assert solve.levenberg_marquardt(curve, start, **(loose | {"ftol": 1e-3})).status == 2
    assert solve.levenberg_marquardt(curve, start, **(loose | {"xtol": 1e-3})).status == 3
    assert solve.levenberg_marquardt(curve, start, **(loose | {"xtol": 1e-3, "ftol": 1e-3})).status in (2, 3, 4)
    assert solve.levenberg_marquardt(curve, [1.0, 1.0], ftol=0.99, xtol=1e6, gtol=0).status == 4
    assert solve.levenberg_marquardt(curve, start, **loose).status == 5
    assert solve.levenberg_marquardt(curve, start, max_nfev=2).status == 0
    assert solve.levenberg_marquardt(curve, start, max_seconds=0).status == -2
    assert solve.levenberg_marquardt(lambda x: x * math.nan, start).status == -3
    assert solve.levenberg_marquardt(curve, start, jac=lambda x: np.full((9, 2), math.nan)).status == -3


def test_status_of_cg() -> None:
    assert solve.cg(MATRIX, RIGHT).status == 1
    assert solve.cg(MATRIX, RIGHT, maxiter=1).status == 0
    assert solve.cg(MATRIX, RIGHT, max_seconds=0).status == -2
    assert solve.cg(-MATRIX, RIGHT).status == -7
    assert solve.cg(np.diag([1.0, -1.0]), [1.0, 1.0]).status == -7
    assert solve.cg(lambda v: v * math.nan, RIGHT).status == -3
    rng = np.random.default_rng(0)
    hilbert = 1 / (np.arange(12)[:, None] + np.arange(12) + 1.0)
    assert solve.cg(hilbert, rng.normal(size=12), rtol=0, maxiter=10**6).status in (5, -7)
    for kind in ("callback", "true"):

        def stop(x: Array, kind: str = kind) -> bool:
            if kind == "callback":
                raise StopIteration
            return True

        assert solve.cg(MATRIX, RIGHT, callback=stop).status == -1


def test_the_best_point_is_returned_however_it_ends() -> None:
    for limit in range(1, 12):
        seen: list[float] = []

        def f(x: Array, seen: list[float] = seen) -> float:
            seen.append(rosenbrock(x))
            return seen[-1]

        for name in ("trust-region", "levenberg", "hessp", "cg hz", "cg fr", "sd bb", "sd wolfe"):
            r = SOLVERS[name](f, [-1.2, 1.0], rosenbrock_gradient, rosenbrock_hessian, maxiter=limit)
            assert r.fun == min(seen)
            assert r.fun == rosenbrock(r.x)
            seen.clear()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("outside", [math.nan, math.inf])
@pytest.mark.parametrize("solver", [*NEWTONS, *GRADIENTS])
def test_a_wall_shortens_the_step(solver: str, outside: float) -> None:
    """Beyond x > 3 there is nothing: the minimum at 2.5 is reached all the same."""

    def f(x: Array) -> float:
        return outside if x[0] > 3 else float((x[0] - 2.5) ** 2 + (x[0] - 2.5) ** 4)

    def g(x: Array) -> Array:
        return 2 * (x - 2.5) + 4 * (x - 2.5) ** 3 if x[0] <= 3 else x * outside

    r = SOLVERS[solver](f, [-20.0], g, lambda x: np.array([[2 + 12 * (x[0] - 2.5) ** 2]]))
    assert r.x[0] == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("solver", [*NEWTONS, *GRADIENTS])
def test_no_success_where_every_step_ends_in_nan(solver: str) -> None:
    start = np.array([1.0, 2.0])
    h = np.array([[2.0, 0.0], [0.0, 1.0]])
    r = SOLVERS[solver](
        lambda x: 3.0 if (x == start).all() else math.nan, start, lambda x: np.array([1.0, -1.0]), lambda x: h
    )
    assert (r.status, r.success, r.fun) == (-3, False, 3.0)
    np.testing.assert_array_equal(r.x, start)


def rounded_valley() -> tuple[Any, ...]:
    """The first variable has no say, but for rounding: a log of exponentials and what offsets it."""
    f = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 0]], float)
    k = np.array([1.0, 0.3, 0.5])

    def share(x: Array) -> Array:
        e = np.exp(f @ x)
        return e / e.sum()

    def value(x: Array) -> float:
        return float(np.log(np.exp(f @ x).sum()) - k @ x)

    def hessian(x: Array) -> Array:
        p = share(x)
        return f.T @ (np.diag(p) - np.outer(p, p)) @ f

    return value, lambda x: f.T @ share(x) - k, hessian


@pytest.mark.parametrize("hess", ["exact", "products", "2-point", "3-point", "cs"])
@pytest.mark.parametrize("damping", ["trust-region", "levenberg"])
def test_rounding_along_a_valley_is_no_saddle(damping: str, hess: str) -> None:
    f, g, h = rounded_valley()
    if hess == "products":
        r = solve.newton(f, np.zeros(3), jac=g, hessp=lambda x, v: h(x) @ v)
    else:
        r = solve.newton(f, np.zeros(3), jac=g, hess=h if hess == "exact" else hess, damping=damping)
    assert r.success, r.message
    np.testing.assert_allclose(g(r.x), 0, atol=1e-7)
    assert r.nfev < 100


@pytest.mark.parametrize("how", ["hess", "hessp"])
def test_a_singular_quadratic_with_large_terms_ends(how: str) -> None:
    """f is 0 but for the rounding of its terms, of which a descent along the null space must make nothing."""
    g = np.random.default_rng(4)
    q = np.linalg.qr(g.normal(size=(19, 19)))[0]
    h = (q * np.concatenate([np.zeros(9), np.geomspace(1e-2, 1e5, 10)])) @ q.T
    h = (h + h.T) / 2
    b = h @ g.normal(size=19) * 1e-7
    second = {"hess": lambda x: h} if how == "hess" else {"hessp": lambda x, v: h @ v}
    r = solve.newton(lambda x: float(x @ h @ x / 2 + b @ x), np.zeros(19), jac=lambda x: h @ x + b, **second)
    assert r.success, r.message
    assert r.nit < 100
    assert np.linalg.norm(r.jac) < 1e-8 * np.linalg.norm(b)


@pytest.mark.parametrize("solver", GRADIENTS)
def test_no_point_is_evaluated_twice_in_a_row(solver: str) -> None:
    """One-sided differences start from the value that the line search has just taken."""
    seen: list[Any] = []

    def f(x: Array) -> float:
        seen.append(x.copy())
        return float(np.sum((x - [1.0, 2.0]) ** 2 + np.cosh(x)))

    r = SOLVERS[solver](f, [3.0, -1.0], None, None)
    assert r.success
    assert r.nfev == len(seen)
    assert not any((a == b).all() for a, b in itertools.pairwise(seen))


def test_differences_of_functions_that_compute_in_float32() -> None:
    """x is float64, and steps that suit it would drown in the rounding of float32."""
    t = np.linspace(0, 1, 100, dtype=np.float32)
    y = np.random.default_rng(1).random(100, dtype=np.float32)

    def residuals(p: Array) -> Array:
        return (p[0] + p[1] * t).astype(np.float32) - y

    want = np.linalg.lstsq(np.stack([np.ones(100), t.astype(float)], axis=1), y.astype(float), rcond=None)[0]
    for jac in ("2-point", "3-point"):
        r = solve.levenberg_marquardt(residuals, [-1.0, -1.0], jac=jac)
        assert r.success
        assert r.x.dtype == np.float64
        np.testing.assert_allclose(r.x, want, rtol=1e-4)
        r = solve.conjugate_gradient(lambda p: np.float32(np.mean(residuals(p) ** 2)), [-1.0, -1.0], jac=jac)
        assert r.success
        assert r.fun < 1.1 * np.mean(residuals(want) ** 2)


# ---------------------------------------------------------------------------------------------------------------------
# Least squares
# ---------------------------------------------------------------------------------------------------------------------

T = np.linspace(0, 4, 40)


def decay(p: Array) -> Array:
    return p[0] * np.exp(-p[1] * T) + p[2]


def decay_jacobian(p: Array) -> Array:
    e = np.exp(-p[1] * T)
    return np.stack([e, -p[0] * T * e, np.ones_like(T)], axis=1)


TRUTH = np.array([2.5, 1.3, 0.5])
NOISY = decay(TRUTH) + 0.05 * np.random.default_rng(7).normal(size=40)


def test_covariance_is_that_of_the_definition() -> None:
    r = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian)
    j = decay_jacobian(r.x)
    inverse = np.linalg.inv(j.T @ j)
    np.testing.assert_allclose(r.cov, inverse * 2 * r.cost / 37, rtol=1e-7)
    np.testing.assert_allclose(r.x_std, np.sqrt(np.diag(r.cov)), rtol=1e-15)
    absolute = solve.levenberg_marquardt(
        lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian, absolute_sigma=True
    )
    np.testing.assert_allclose(absolute.cov, inverse, rtol=1e-7)


def test_covariance_where_there_is_none() -> None:
    r = solve.levenberg_marquardt(lambda p: np.array([p[0] + p[1], p[0] + p[1], 1.0]), [1.0, 2.0])
    assert r.success
    assert np.isinf(r.x_std).all()
    exact = solve.levenberg_marquardt(lambda p: p - 1, [0.0, 0.0])
    assert np.isinf(exact.x_std).all()


def test_fewer_residuals_than_variables() -> None:
    r = solve.levenberg_marquardt(lambda p: np.array([p[0] + 2 * p[1] + 3 * p[2] - 6]), [0.0, 0.0, 1.0])
    assert r.success
    assert r.cost == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(
    "jac", [None, "2-point", "3-point", "cs", decay_jacobian], ids=["default", "2-point", "3-point", "cs", "own"]
)
def test_jacobians(jac: Any) -> None:
    r = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=jac)
    exact = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian)
    np.testing.assert_allclose(r.x, exact.x, rtol=1e-8)
    np.testing.assert_allclose(r.jac, decay_jacobian(r.x), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_stacks_of_points(jac: str) -> None:
    shapes: list[tuple[int, ...]] = []

    def f(p: Array) -> Array:
        shapes.append(p.shape)
        p = p[..., None]
        return p[..., 0, :] * np.exp(-p[..., 1, :] * T) + p[..., 2, :] - NOISY

    one = solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=jac)
    assert all(len(s) == 1 for s in shapes)
    shapes.clear()
    many = solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=jac, vectorized=True)
    assert {s for s in shapes if len(s) == 2} <= {(3, 3), (6, 3)}
    np.testing.assert_array_equal(one.x, many.x)
    assert one.nfev == many.nfev

    def scalar(x: Array) -> Any:
        return np.sum((x - 1) ** 2 + (x - 1) ** 4, axis=-1)

    r = solve.conjugate_gradient(scalar, [3.0, 4.0], jac=jac, vectorized=True)
    np.testing.assert_allclose(r.x, 1, atol=1e-4)


def test_differences_stay_inside_the_bounds() -> None:
    def f(p: Array) -> Array:
        assert (p >= low).all()
        assert (p <= high).all()
        return decay(p) - NOISY

    low, high = np.array([0.0, 0.0, 0.0]), np.array([2.0, 5.0, 0.4])
    for jac in ("2-point", "3-point"):
        r = solve.levenberg_marquardt(f, [2.0, 1.0, 0.0], jac=jac, bounds=(low, high))
        assert r.success
        np.testing.assert_array_equal(r.active_mask, [1, 0, 1])


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([0, 0, 0], [2.0, np.inf, np.inf]),
        ([0, 1.5, -1], [9, 9, 9]),
        ([-np.inf] * 3, [1.0, 1.0, 0.2]),
        ([3.0, 0.0, 0.6], [4.0, 1.0, 1.0]),
    ],
)
def test_bounds_against_scipy(low: Any, high: Any) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    start = np.clip([1.0, 1.0, 0.0], low, high)
    r = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, start, jac=decay_jacobian, bounds=(low, high))
    inside = np.clip([1.0, 1.0, 0.0], np.array(low) + 1e-3, np.array(high) - 1e-3)
    want = optimize.least_squares(
        lambda p: decay(p) - NOISY, inside, jac=decay_jacobian, bounds=(low, high), xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    assert r.success
    assert r.cost <= want.cost * (1 + 1e-9)
    np.testing.assert_allclose(r.x, want.x, rtol=1e-4, atol=1e-4)
    assert (r.x >= low).all()
    assert (r.x <= high).all()
    np.testing.assert_array_equal(r.active_mask, np.where(r.x == low, -1, np.where(r.x == high, 1, 0)))


LOSSES = ("huber", "soft_l1", "cauchy", "arctan")


def rho(loss: str, z: Array) -> Array:
    return {
        "linear": lambda: z,
        "huber": lambda: np.where(z <= 1, z, 2 * np.sqrt(z) - 1),
        "soft_l1": lambda: 2 * (np.sqrt(1 + z) - 1),
        "cauchy": lambda: np.log1p(z),
        "arctan": lambda: np.arctan(z),
        "tukey": lambda: np.where(z <= 1, (1 - (1 - np.minimum(z, 1)) ** 3) / 3, 1 / 3),
    }[loss]()


@pytest.mark.parametrize("loss", [*LOSSES, "tukey"])
def test_robust_losses(loss: str) -> None:
    spoilt = NOISY.copy()
    spoilt[::8] += 5.0
    scale = 0.2
    r = solve.levenberg_marquardt(
        lambda p: decay(p) - spoilt, TRUTH + 0.2, jac=decay_jacobian, loss=loss, f_scale=scale
    )
    assert r.success, r.message
    z = (r.fun / scale) ** 2
    assert r.cost == pytest.approx(0.5 * scale**2 * rho(loss, z).sum(), rel=1e-12)
    # Stationary: J'(rho' r) = 0, with rho' by a difference.
    slope = (rho(loss, z * (1 + 1e-6)) - rho(loss, z * (1 - 1e-6))) / (2e-6 * z)
    np.testing.assert_allclose(decay_jacobian(r.x).T @ (slope * r.fun), 0, atol=1e-6)
    np.testing.assert_allclose(r.x, TRUTH, atol=0.25)
    if loss != "tukey":
        optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
        want = optimize.least_squares(
            lambda p: decay(p) - spoilt,
            TRUTH + 0.2,
            jac=decay_jacobian,
            loss=loss,
            f_scale=scale,
            xtol=1e-15,
            ftol=1e-15,
        )
        assert r.cost == pytest.approx(want.cost, rel=1e-8)
        np.testing.assert_allclose(r.x, want.x, rtol=1e-4)


@pytest.mark.parametrize("tolerance", [1e-8, None])
@pytest.mark.parametrize("loss", LOSSES)
def test_robust_losses_where_all_are_outliers(loss: str, tolerance: float | None) -> None:
    """From a start at which every residual is far out: success means that the gradient of the cost is small."""
    x = np.linspace(-1, 1, 11)
    for seed in range(10):
        g = np.random.default_rng(seed)
        noise = (0.01, 0.1, 1.0)[seed % 3]
        y = 1 + np.exp(0.1 * x) + noise * g.normal(size=11)
        y[g.integers(0, 11)] += 50 * noise
        r = solve.levenberg_marquardt(
            lambda p, y=y: p[0] + np.exp(p[1] * x) - y,
            [0.0, 0.0],
            jac=lambda p: np.stack([np.ones(11), x * np.exp(p[1] * x)], axis=1),
            loss=loss,
            f_scale=noise,
            ftol=tolerance,
            xtol=tolerance,
            gtol=tolerance,
        )
        z = (r.fun / noise) ** 2
        weight = (rho(loss, z * (1 + 1e-6)) - rho(loss, z * (1 - 1e-6))) / (2e-6 * z)
        rows = np.sqrt(weight)[:, None] * r.jac
        cosine = np.abs(r.jac.T @ (weight * r.fun)) / np.linalg.norm(rows, axis=0) / np.linalg.norm(weight**0.5 * r.fun)
        assert r.success
        assert cosine.max() < 1e-4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_geodesic_acceleration_pays_where_the_valley_bends() -> None:
    p = _nist.problems()["MGH17"]
    runs = {
        how: solve.levenberg_marquardt(p.residuals, p.starts[0], jac=p.jacobian, geodesic=how, max_nfev=9000)
        for how in (False, True, "auto")
    }
    for r in runs.values():
        np.testing.assert_allclose(r.x, p.certified, rtol=1e-9)
    assert runs["auto"].njev < runs[False].njev / 2
    assert runs[True].njev < runs[False].njev / 2


def test_x_scale() -> None:
    for scale in (1.0, [2.0, 1.0, 0.5], "jac"):
        r = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian, x_scale=scale)
        assert r.success
        assert r.cost == pytest.approx(0.5 * np.sum((decay(r.x) - NOISY) ** 2))


# Problems that the documentation and tests of Ceres publish


def test_powell_of_ceres() -> None:
    def f(x: Array) -> Array:
        return np.array(
            [x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2]
        )

    r = solve.levenberg_marquardt(f, [3.0, -1.0, 0.0, 1.0])
    assert r.cost < 1e-12


def test_curve_fit_of_ceres() -> None:
    """exp(0.3 x + 0.1) with noise, from (0, 0)."""
    x = np.linspace(0, 5, 67)
    y = np.exp(0.3 * x + 0.1) + 0.2 * np.random.default_rng(0).normal(size=67)
    r = solve.levenberg_marquardt(lambda p: np.exp(p[0] * x + p[1]) - y, [0.0, 0.0], jac="3-point")
    assert r.success
    assert np.all(np.abs(r.x - [0.3, 0.1]) < 4 * r.x_std)
    y[::20] += 10
    robust = solve.levenberg_marquardt(lambda p: np.exp(p[0] * x + p[1]) - y, [0.0, 0.0], loss="cauchy", f_scale=0.5)
    np.testing.assert_allclose(robust.x, [0.3, 0.1], atol=0.08)


def test_robust_curve_fit_of_ceres() -> None:
    """The same curve, some observations far off, under Cauchy's loss at 0.5: against a search without derivatives."""
    x = 0.075 * np.arange(67)
    y = np.exp(0.3 * x + 0.1) + 0.2 * np.random.default_rng(5).normal(size=67)
    y[[11, 47]] += [30.0, 40.0]

    def f(p: Array) -> Array:
        return np.exp(p[0] * x + p[1]) - y

    def jacobian(p: Array) -> Array:
        e = np.exp(p[0] * x + p[1])
        return np.stack([x * e, e], axis=1)

    plain = solve.levenberg_marquardt(f, [0.0, 0.0], jac=jacobian)
    robust = solve.levenberg_marquardt(f, [0.0, 0.0], jac=jacobian, loss="cauchy", f_scale=0.5)
    assert plain.success
    assert robust.success
    assert np.abs(robust.x - [0.3, 0.1]).max() < 0.1
    assert np.abs(plain.x - [0.3, 0.1]).max() > 0.1

    def cost(p: Array) -> float:
        return 0.125 * float(np.sum(np.log1p((f(p) / 0.5) ** 2)))

    assert robust.cost == pytest.approx(cost(robust.x), rel=1e-13)
    around = [cost(robust.x + d) for d in 1e-4 * np.random.default_rng(0).normal(size=(100, 2))]
    assert min(around) > robust.cost


def test_circle_fit_of_ceres() -> None:
    """The residual m^4 - |p - c|^2 with radius m^2 is linear in c and m^4 - |c|^2: a linear system has the answer."""
    g = np.random.default_rng(3)
    angle = g.uniform(0, 2 * np.pi, 80)
    x = 3 + 5 * np.cos(angle) + 0.05 * g.normal(size=80)
    y = -2 + 5 * np.sin(angle) + 0.05 * g.normal(size=80)
    b, c, d = np.linalg.lstsq(np.stack([2 * x, 2 * y, np.ones(80)], axis=1), x**2 + y**2, rcond=None)[0]
    want = [b, c, (d + b * b + c * c) ** 0.25]
    for jac in ("2-point", "cs"):
        r = solve.levenberg_marquardt(
            lambda p: p[2] ** 4 - (x - p[0]) ** 2 - (y - p[1]) ** 2, [x[0], y[0], 1.0], jac=jac
        )
        assert r.success
        np.testing.assert_allclose(r.x, want, rtol=1e-9)
        assert r.cost == pytest.approx(0.5 * np.sum((d - (x**2 + y**2 - 2 * b * x - 2 * c * y)) ** 2), rel=1e-9)


def test_ellipse_fit() -> None:
    """Exact points of an ellipse, from a circle about them: back to the ellipse, up to the order of its axes."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    points = np.array([[1.0], [2.0]]) + turn @ np.array([4 * np.cos(t), 1.5 * np.sin(t)])

    def f(p: Array) -> Array:
        dx, dy = points[0] - p[0], points[1] - p[1]
        u, v = np.cos(p[4]) * dx + np.sin(p[4]) * dy, np.cos(p[4]) * dy - np.sin(p[4]) * dx
        return (u / p[2]) ** 2 + (v / p[3]) ** 2 - 1

    r = solve.levenberg_marquardt(f, [*points.mean(axis=1), 3.0, 2.5, 0.3], jac="cs")
    assert r.success
    np.testing.assert_allclose(np.abs(r.x[:4]), [1.0, 2.0, 4.0, 1.5], rtol=1e-10)
    assert math.remainder(r.x[4] - 0.5, math.pi) == pytest.approx(0, abs=1e-10)
    assert r.cost < 1e-20


def test_robot_in_a_corridor_of_ceres() -> None:
    """Odometry and ranges to the corridor's end, each in units of its deviation: normal equations have the answer."""
    g = np.random.default_rng(2)
    n, length = 30, 30.0
    odometry = 1 + 0.1 * g.normal(size=n)
    ranges = length - np.arange(1, n + 1) + 0.01 * g.normal(size=n)

    def f(steps: Array) -> Array:
        return np.concatenate([(steps - odometry) / 0.1, (length - np.cumsum(steps) - ranges) / 0.01])

    a = np.concatenate([np.eye(n) / 0.1, -np.tri(n) / 0.01])
    want = np.linalg.solve(a.T @ a, -a.T @ f(np.zeros(n)))
    r = solve.levenberg_marquardt(f, odometry, jac="3-point", absolute_sigma=True)
    assert r.success
    np.testing.assert_allclose(r.x, want, rtol=1e-9)
    np.testing.assert_allclose(r.cov, np.linalg.inv(a.T @ a), rtol=1e-6, atol=1e-12)


# Problems of SciPy's tests


@pytest.mark.parametrize("bounds", [None, ([-np.inf, -1.5], np.inf), (-1000, 1000), ([-2.0, -0.5], [3.0, 10.0])])
def test_rosenbrock_residuals_within_bounds(bounds: Any) -> None:
    start = np.array([-2.0, 1.0])
    r = solve.levenberg_marquardt(lambda x: np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]]), start, bounds=bounds)
    np.testing.assert_allclose(r.x, 1, rtol=1e-9)


def test_rank_deficient_residuals() -> None:
    def f(x: Array) -> Array:
        return np.array([x[0] - 1, x[0] - 1, 0 * x[1]])

    r = solve.levenberg_marquardt(f, [5.0, 7.0])
    assert r.success
    assert r.x[0] == pytest.approx(1)
    assert r.x[1] == 7


def test_broyden_tridiagonal() -> None:
    n = 100

    def f(x: Array) -> Array:
        r = (3 - x) * x + 1
        r[1:] -= x[:-1]
        r[:-1] -= 2 * x[1:]
        return r

    r = solve.levenberg_marquardt(f, -np.ones(n))
    assert r.success
    assert r.cost < 1e-20


# ---------------------------------------------------------------------------------------------------------------------
# Linear conjugate gradients
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "list", "function", "fortran", "float32"])
def test_cg(form: str) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(30, 30))
    a = a @ a.T + 5 * np.eye(30)
    a = (a + a.T) / 2
    b = rng.normal(size=30)
    given: Any = {
        "array": a,
        "list": a.tolist(),
        "function": lambda v: a @ v,
        "fortran": np.asfortranarray(a),
        "float32": a.astype(np.float32),
    }[form]
    r = solve.cg(given, b.astype(np.float32) if form == "float32" else b, rtol=1e-5 if form == "float32" else 1e-12)
    assert r.success, r.message
    assert r.x.dtype == (np.float32 if form == "float32" else np.float64)
    np.testing.assert_allclose(
        r.x, np.linalg.solve(a, b), rtol=1e-3 if form == "float32" else 1e-9, atol=1e-5 if form == "float32" else 1e-12
    )
    assert r.fun == pytest.approx(float(r.x @ a @ r.x / 2 - b @ r.x), rel=1e-3)


def test_cg_ends_after_as_many_steps_as_there_are_eigenvalues() -> None:
    d = np.repeat([1.0, 10.0, 100.0], 20)
    r = solve.cg(np.diag(d), np.ones(60), rtol=1e-10)
    assert r.nit == 3
    assert solve.cg(np.diag(d), np.ones(60), M=np.diag(1 / d)).nit == 1
    assert solve.cg(np.diag(d), np.ones(60), M=lambda v: v / d).nit == 1
    assert solve.cg(np.diag(d), np.zeros(60)).nit == 0
    assert solve.cg(np.diag(d), np.ones(60), x0=1 / d).nit == 0


def test_cg_takes_linear_operators() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is not installed")
    sparse = pytest.importorskip("scipy.sparse")
    a = sparse.diags_array([np.full(9, -1.0), np.full(10, 3.0), np.full(9, -1.0)], offsets=[-1, 0, 1]).tocsr()
    want = np.linalg.solve(a.toarray(), np.ones(10))
    np.testing.assert_allclose(solve.cg(a, np.ones(10)).x, want, rtol=1e-6)
    np.testing.assert_allclose(solve.cg(linalg.aslinearoperator(a), np.ones(10)).x, want, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def quadratic(x: Array) -> float:
    return float(x @ x)


def gradient(x: Array) -> Array:
    return 2 * x


def hessian(x: Array) -> Array:
    return 2 * np.eye(len(x))


ALL: dict[str, Callable[..., solve.Result]] = {
    "newton": lambda x0, f=quadratic, **o: solve.newton(f, x0, **{"jac": gradient, "hess": hessian, **o}),
    "levenberg_marquardt": lambda x0, f=lambda x: x, **o: solve.levenberg_marquardt(f, x0, **o),
    "conjugate_gradient": lambda x0, f=quadratic, **o: solve.conjugate_gradient(f, x0, **{"jac": gradient, **o}),
    "steepest_descent": lambda x0, f=quadratic, **o: solve.steepest_descent(f, x0, **{"jac": gradient, **o}),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("x0", "error", "text"),
    [
        ([math.nan, 1.0], ValueError, "x0: must be finite, got nan at index 0"),
        ([1.0, math.inf], ValueError, "x0: must be finite, got inf at index 1"),
        ([], ValueError, "x0: is empty"),
        ([[1.0, 2.0], [3.0, 4.0]], ValueError, r"x0: expected a 1-D array, got shape \(2, 2\)"),
        ([1j], TypeError, "x0: expected real numbers .*, got dtype complex128"),
        (["a"], TypeError, "x0: expected real numbers"),
        (None, TypeError, "x0: expected real numbers"),
        ([None, 1.0], TypeError, "x0: expected real numbers"),
        (np.ones(2, np.float16), TypeError, "x0: expected real numbers .*float16"),
    ],
    ids=str,
)
def test_starts_that_cannot_be(name: str, x0: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ALL[name](x0)


@pytest.mark.parametrize("name", ALL)
def test_starts_of_other_kinds(name: str) -> None:
    for x0 in (3, 3.0, [3], (3,), np.int8(3), np.array(3.0), np.array([3], ">f8"), np.arange(3, 9)[::6], [True]):
        assert ALL[name](x0).success
    frozen = np.array([3.0, 4.0])
    frozen.flags.writeable = False
    assert ALL[name](frozen).success
    assert frozen.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("name", ["newton", "conjugate_gradient", "steepest_descent"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "fun must return real numbers, got None"),
        (1j, TypeError, "fun must return real numbers, got dtype complex"),
        (np.complex64(1), TypeError, "fun must return real numbers, got dtype complex64"),
        ("1.0", TypeError, "fun must return real numbers, got dtype"),
        (object(), TypeError, r"fun must return real numbers, got dtype object \(object\)"),
        (np.ones(2), ValueError, r"fun must return one number, got an array of shape \(2,\)"),
        ([], ValueError, r"fun must return one number, got an array of shape \(0,\)"),
    ],
    ids=range(7),
)
def test_functions_that_return_no_number(name: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ALL[name]([1.0, 2.0], lambda x: value)


@pytest.mark.parametrize(
    "value", [1, True, np.float32(1), np.array(1.0), np.array([1.0]), [[1.0]], np.int64(1)], ids=repr
)
def test_functions_that_return_numbers_of_all_kinds(value: Any) -> None:
    assert solve.conjugate_gradient(lambda x: value, [1.0], jac=lambda x: [0.0]).fun == 1


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "jac must return real numbers, got None"),
        ([1.0], ValueError, r"jac must return an array of shape \(2,\), got one of shape \(1,\)"),
        (np.ones((2, 1)), ValueError, r"jac must return an array of shape \(2,\), got one of shape \(2, 1\)"),
        (np.ones((2, 2)), ValueError, r"jac must return an array of shape \(2,\), got one of shape \(2, 2\)"),
        ([1j, 1], TypeError, "jac must return real numbers, got dtype complex128"),
        (np.array([None, 1.0]), TypeError, "jac must return real numbers, got dtype object"),
    ],
    ids=str,
)
def test_gradients_that_are_none(value: Any, error: type[Exception], text: str) -> None:
    for name in ("newton", "conjugate_gradient", "steepest_descent"):
        with pytest.raises(error, match=text):
            ALL[name]([1.0, 2.0], jac=lambda x: value)


def test_other_functions_that_return_the_wrong_thing() -> None:
    with pytest.raises(ValueError, match=r"hess must return an array of shape \(2, 2\), got one of shape \(3, 3\)"):
        solve.newton(quadratic, [1.0, 2.0], jac=gradient, hess=lambda x: np.eye(3))
    with pytest.raises(ValueError, match=r"hessp must return an array of shape \(2,\), got one of shape \(1,\)"):
        solve.newton(quadratic, [1.0, 2.0], jac=gradient, hessp=lambda x, v: [1.0])
    with pytest.raises(TypeError, match=r"fun must return a pair \(value, gradient\) with jac=True, got float"):
        solve.newton(quadratic, [1.0, 2.0], jac=True)
    with pytest.raises(ValueError, match=r"the gradient of fun must return an array of shape \(2,\)"):
        solve.newton(lambda x: (1.0, [1.0]), [1.0, 2.0], jac=True)
    with pytest.raises(ValueError, match=r"fun must return at least one residual"):
        solve.levenberg_marquardt(lambda x: [], [1.0])
    with pytest.raises(TypeError, match="fun must return real numbers, got None"):
        solve.levenberg_marquardt(lambda x: None, [1.0])
    with pytest.raises(TypeError, match="fun must return real numbers, got dtype complex128"):
        solve.levenberg_marquardt(lambda x: x * 1j, [1.0])
    with pytest.raises(ValueError, match=r"fun must return a 1-D array of residuals, got one of shape \(1, 1\)"):
        solve.levenberg_marquardt(lambda x: x[None], [1.0])
    with pytest.raises(ValueError, match=r"jac must return an array of shape \(3, 1\), got one of shape \(1, 3\)"):
        solve.levenberg_marquardt(lambda x: np.ones(3) * x, [1.0], jac=lambda x: np.ones((1, 3)))
    lengths = iter([3, 4])
    with pytest.raises(ValueError, match=r"fun must return an array of shape \(3,\), got one of shape \(4,\)"):
        solve.levenberg_marquardt(lambda x: np.ones(next(lengths)) * x, [1.0])
    with pytest.raises(ValueError, match=r"fun, called on a stack of points, must return an array of shape \(2, 3\)"):
        solve.levenberg_marquardt(lambda x: np.ones(3), [1.0, 2.0], vectorized=True)
    with pytest.raises(ValueError, match=r"A must return an array of shape \(2,\)"):
        solve.cg(lambda v: [1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: solve.newton(3, [1.0]), TypeError, "fun: expected a callable or a compiled function, got int"),
        (lambda: solve.newton(None, [1.0]), TypeError, "fun: expected a callable"),
        (lambda: solve.newton(quadratic, [1.0], jac=3), TypeError, "jac: expected a callable"),
        (lambda: solve.newton(quadratic, [1.0], jac="4-point"), ValueError, "jac: expected one of '2-point'"),
        (lambda: solve.newton(quadratic, [1.0], hess=3), TypeError, "hess: expected a callable"),
        (lambda: solve.newton(quadratic, [1.0], hess=hessian, hessp=gradient), ValueError, "hessp: give either"),
        (lambda: solve.newton(quadratic, [1.0], damping="lm"), ValueError, "damping: expected one of 'trust-region'"),
        (lambda: solve.newton(quadratic, [1.0], gtol=-1), ValueError, "gtol: must be >= 0, got -1"),
        (lambda: solve.newton(quadratic, [1.0], gtol="a"), TypeError, "gtol: expected a number, got str"),
        (lambda: solve.newton(quadratic, [1.0], xtol=math.nan), ValueError, "xtol: must be >= 0, got nan"),
        (lambda: solve.newton(quadratic, [1.0], maxiter=1.5), TypeError, "maxiter: expected a whole number"),
        (lambda: solve.newton(quadratic, [1.0], maxiter=-1), ValueError, "maxiter: must be >= 0, got -1"),
        (lambda: solve.newton(quadratic, [1.0], callback=3), TypeError, "callback: expected a callable, got int"),
        (lambda: solve.newton(quadratic, [1.0], bounds=[(0, 1)]), ValueError, "bounds: this method has none"),
        (lambda: solve.newton(quadratic, [1.0], constraints={"type": "eq"}), ValueError, "constraints: this method"),
        (
            lambda: solve.newton(quadratic, [1.0], initial_trust_radius=0),
            ValueError,
            "initial_trust_radius: must be > 0",
        ),
        (lambda: solve.newton(quadratic, [1.0], max_seconds=-1), ValueError, "max_seconds: must be >= 0"),
        (lambda: solve.newton(quadratic, [1.0], typical=[1.0, 2.0]), ValueError, r"typical: .*shape \(1,\), got shape"),
        (lambda: solve.newton(quadratic, [1.0], rel_step=-1.0), ValueError, "rel_step: must be finite and positive"),
        (lambda: solve.newton(quadratic, [1.0], jac=gradient, vectorized=True), ValueError, "vectorized: is for"),
        (lambda: solve.conjugate_gradient(quadratic, [1.0], beta="x"), ValueError, "beta: expected one of 'hz'"),
        (lambda: solve.steepest_descent(quadratic, [1.0], line_search=1), ValueError, "line_search: expected one of"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], loss="l1"), ValueError, "loss: expected one of 'linear'"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], f_scale=0), ValueError, "f_scale: must be > 0, got 0"),
        (
            lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=(2, 3)),
            ValueError,
            "x0: variable 0 is 1.0, outside",
        ),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=(3, 2)), ValueError, "bounds: lower must be less"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=3), ValueError, "bounds: expected a pair"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=([0, 0], 2)), ValueError, "bounds: expected a pair"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], bounds=(math.nan, 2)), ValueError, "bounds: hold NaN"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], max_nfev=0), ValueError, "max_nfev: must be >= 1"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], x_scale=-1), ValueError, "x_scale: must be finite and pos"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], geodesic=3), ValueError, "geodesic: expected one of"),
        (lambda: solve.levenberg_marquardt(gradient, [1.0], factor=0), ValueError, "factor: must be > 0"),
        (lambda: solve.cg(np.eye(3), [1.0]), ValueError, r"A: expected shape \(1, 1\) to go with b, got \(3, 3\)"),
        (lambda: solve.cg([[1.0, 2.0], [0.0, 1.0]], [1.0, 1.0]), ValueError, "A: must be symmetric"),
        (lambda: solve.cg([[1j]], [1.0]), TypeError, "A: expected real numbers, got dtype complex128"),
        (lambda: solve.cg(None, [1.0]), TypeError, "A: expected an array, a function"),
        (lambda: solve.cg(3, [1.0]), TypeError, "A: expected an array, a function"),
        (lambda: solve.cg([[1.0]], [math.nan]), ValueError, "b: must be finite"),
        (lambda: solve.cg([[1.0]], [1.0], x0=[1.0, 2.0]), ValueError, r"x0: expected shape \(1,\)"),
        (lambda: solve.cg([[1.0]], [1.0], rtol=-1), ValueError, "rtol: must be >= 0"),
        (lambda: solve.cg([[1.0]], [1.0], M=[[1.0, 0.0]]), ValueError, r"M: expected shape \(1, 1\)"),
    ],
)
def test_arguments_that_cannot_be(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


class Refused(Exception):
    pass


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("after", range(6))
def test_exceptions_come_through(solver: str, after: int) -> None:
    """The same object, whichever function raises it and when."""
    for which in ("f", "g", "h", "callback"):
        error = Refused(which)
        count = 0

        def failing(name: str, function: Callable[..., Any], which: str = which, error: Exception = error) -> Any:
            def call(*x: Any) -> Any:
                nonlocal count
                count += name == which
                if count > after:
                    raise error
                return function(*x)

            return call

        try:
            SOLVERS[solver](
                failing("f", rosenbrock),
                [-1.2, 1.0],
                failing("g", rosenbrock_gradient),
                failing("h", rosenbrock_hessian),
                callback=failing("callback", lambda x: None),
                maxiter=20,
            )
        except Refused as got:
            assert got is error  # noqa: PT017  (whether it is raised depends on the solver)
        else:
            assert count <= after


def test_exceptions_of_residuals_come_through() -> None:
    for after in range(8):
        for which in ("f", "j"):
            count = 0

            def f(p: Array, which: str = which, after: int = after) -> Array:
                nonlocal count
                count += which == "f"
                if count > after:
                    raise Refused
                return decay(p) - NOISY

            def j(p: Array, which: str = which, after: int = after) -> Array:
                nonlocal count
                count += which == "j"
                if count > after:
                    raise Refused
                return decay_jacobian(p)

            if which == "f":
                with pytest.raises(Refused):
                    solve.levenberg_marquardt(f, [1.0, 1.0, 0.0])
            count = 0
            try:
                solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=j)
            except Refused:
                continue
            assert count <= after


@pytest.mark.parametrize("solver", [*NEWTONS, *GRADIENTS])
def test_arguments_are_the_functions_own(solver: str) -> None:
    """A function may keep its argument, and it may change it."""
    plain = SOLVERS[solver](rosenbrock, [-1.2, 1.0], rosenbrock_gradient, rosenbrock_hessian)
    kept: list[tuple[Array, Array]] = []

    def keeping(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
        def call(x: Array) -> Any:
            assert x.flags.writeable
            assert x.flags.owndata
            value = function(x)
            kept.append((x, x.copy()))
            return value

        return call

    SOLVERS[solver](
        keeping(rosenbrock),
        [-1.2, 1.0],
        keeping(rosenbrock_gradient),
        keeping(rosenbrock_hessian),
        callback=keeping(len),
    ) if solver != "hessp" else None
    for x, copy in kept:
        np.testing.assert_array_equal(x, copy)
    assert len({id(x) for x, _ in kept}) == len(kept)

    def spoiling(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
        def call(x: Array) -> Any:
            value = function(x.copy())
            x[:] = math.nan
            return value

        return call

    start = np.array([-1.2, 1.0])
    r = SOLVERS[solver](
        spoiling(rosenbrock),
        start,
        spoiling(rosenbrock_gradient),
        spoiling(rosenbrock_hessian),
        callback=spoiling(lambda x: None),
    )
    np.testing.assert_array_equal(start, [-1.2, 1.0])
    if solver != "hessp":  # whose products come from a function of two arguments here
        np.testing.assert_array_equal(r.x, plain.x)


def test_a_result_buffer_that_is_used_again() -> None:
    out, slope = np.empty(40), np.empty((40, 3), order="F")

    def f(p: Array) -> Array:
        out[:] = decay(p) - NOISY
        return out

    def j(p: Array) -> Array:
        slope[:] = decay_jacobian(p)
        return slope

    r = solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=j)
    want = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian)
    np.testing.assert_array_equal(r.x, want.x)
    out[:] = 0
    slope[:] = 0
    np.testing.assert_array_equal(r.fun, want.fun)
    np.testing.assert_array_equal(r.jac, want.jac)


def test_results_in_other_layouts() -> None:
    want = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian)
    wide = np.zeros((80, 6))

    def j(p: Array) -> Array:
        wide[::2, ::2] = decay_jacobian(p)
        return wide[::2, ::2]

    for f, jac in (
        (lambda p: (decay(p) - NOISY).tolist(), lambda p: decay_jacobian(p).tolist()),
        (lambda p: np.repeat(decay(p) - NOISY, 2)[::2], j),
        (lambda p: (decay(p) - NOISY).astype(">f8"), lambda p: decay_jacobian(p).astype(">f8")),
        (lambda p: (decay(p) - NOISY).astype(np.longdouble), lambda p: np.asfortranarray(decay_jacobian(p))),
    ):
        np.testing.assert_array_equal(solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=jac).x, want.x)


def test_args() -> None:
    def f(x: Array, a: float, b: float) -> float:
        return float((x[0] - a) ** 2 + b)

    r = solve.newton(f, [0.0], (3.0, 4.0), jac=lambda x, a, b: 2 * (x - a), hess=lambda x, a, b: [[2.0]])
    assert (r.x[0], r.fun) == (3.0, 4.0)
    r = solve.newton(f, [0.0], (3.0, 4.0), jac=lambda x, a, b: 2 * (x - a), hessp=lambda x, v, a, b: 2 * v)
    assert r.x[0] == 3.0
    assert solve.levenberg_marquardt(lambda x, a: x - a, [0.0], 5.0).x[0] == 5.0


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks, progress, history
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_callbacks_stop_it(solver: str) -> None:
    f, g, h = rosenbrock, rosenbrock_gradient, rosenbrock_hessian
    for how in ("raise", "return"):
        count = 0

        def callback(x: Array, how: str = how) -> bool | None:
            nonlocal count
            count += 1
            if count < 3:
                return None
            if how == "raise":
                raise StopIteration
            return True

        r = SOLVERS[solver](f, [-1.2, 1.0], g, h, callback=callback)
        assert (r.status, r.success, r.nit, count) == (-1, False, 3, 3)


def test_callbacks_with_an_intermediate_result() -> None:
    seen: list[Any] = []

    def callback(intermediate_result: Any) -> None:
        seen.append(intermediate_result)

    r = solve.newton(rosenbrock, [-1.2, 1.0], jac=rosenbrock_gradient, hess=rosenbrock_hessian, callback=callback)
    assert len(seen) == r.nit
    for k, s in enumerate(seen):
        assert s.fun == rosenbrock(s.x)
        assert s.nit == k + 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_history(solver: str) -> None:
    f, g, h = PROBLEMS["quadratic"][:3]
    r = SOLVERS[solver](f, [5.0, 5.0, 5.0], g, h, history=True)
    assert set(r.history) == {"fun", "step", "gradient"}
    assert all(len(v) == r.nit + 1 for v in r.history.values())
    assert r.history["fun"][0] == f(np.full(3, 5.0))
    assert r.history["gradient"][0] == np.abs(g(np.full(3, 5.0))).max()
    assert np.isnan(r.history["step"][0])
    assert (r.history["step"][1:] > 0).all()
    assert "history" not in SOLVERS[solver](f, [5.0, 5.0, 5.0], g, h)


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    solve.newton(rosenbrock, [-1.2, 1.0], jac=rosenbrock_gradient, hess=rosenbrock_hessian, disp=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("newton: iteration ")
    assert "A minimum" in captured.err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    solve.cg(MATRIX, RIGHT, disp=True)
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.count("\r") >= 2


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    runs = {
        "newton": solve.newton(rosenbrock, [-1.2, 1.0], jac=rosenbrock_gradient, hess=rosenbrock_hessian, history=True),
        "cg": solve.conjugate_gradient(rosenbrock, [-1.2, 1.0], jac=rosenbrock_gradient, history=True),
    }
    figure = solve.plot(runs)
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines) == 2
    assert solve.plot(runs["cg"]) is not None
    assert solve.plot(list(runs.values())) is not None
    with pytest.raises(ValueError, match="result: has no history; call the solver with history=True"):
        solve.plot(solve.cg(MATRIX, RIGHT))


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot needs matplotlib, which is not installed: pip install matplotlib"):
        solve.plot(solve.cg(MATRIX, RIGHT, history=True))


# ---------------------------------------------------------------------------------------------------------------------
# The result, and SciPy
# ---------------------------------------------------------------------------------------------------------------------


def test_the_result_is_a_dict_with_attributes() -> None:
    r = solve.cg(MATRIX, RIGHT)
    assert isinstance(r, dict)
    assert r["x"] is r.x
    r.note = 3
    assert r["note"] == 3
    del r.note
    with pytest.raises(AttributeError, match="note"):
        _ = r.note
    with pytest.raises(AttributeError, match="note"):
        del r.note
    assert "x" in dir(r)
    assert "success: True" in repr(r)
    assert repr(solve.Result()) == "Result()"
    copy = pickle.loads(pickle.dumps(r))
    assert type(copy) is solve.Result
    np.testing.assert_array_equal(copy.x, r.x)


@pytest.mark.filterwarnings("ignore:.*does not use.*")
def test_methods_of_scipys_minimize() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    start = [-1.2, 1.0, 0.5]
    f, g, h = optimize.rosen, optimize.rosen_der, optimize.rosen_hess
    options = {"maxiter": 500}
    seen: list[Any] = []
    r = optimize.minimize(f, start, jac=g, hess=h, method=solve.newton, callback=seen.append, options=options)
    assert r.success
    assert len(seen) == r.nit
    np.testing.assert_allclose(r.x, 1, rtol=1e-10)
    for method in (solve.newton, solve.conjugate_gradient):
        for jac in (g, None, "2-point", "3-point"):
            r = optimize.minimize(f, start, jac=jac, method=method, options=options, tol=1e-9)
            np.testing.assert_allclose(r.x, 1, atol=1e-3)
    both = optimize.minimize(lambda x: (f(x), g(x)), start, jac=True, method=solve.conjugate_gradient)
    np.testing.assert_allclose(both.x, 1, rtol=1e-6)
    r = optimize.minimize(f, start, jac=g, hessp=optimize.rosen_hess_prod, method=solve.newton)
    np.testing.assert_allclose(r.x, 1, rtol=1e-6)
    with_args = optimize.minimize(
        lambda x, a: float((x[0] - a) ** 2), [0.0], args=(3.0,), jac=lambda x, a: 2 * (x - a), method=solve.newton
    )
    assert with_args.x[0] == pytest.approx(3)
    with pytest.raises(ValueError, match="bounds: this method has none"):
        optimize.minimize(f, start, jac=g, method=solve.newton, bounds=[(0, 2)] * 3)


def test_fewer_evaluations_than_steepest_descent_needs() -> None:
    """Figure 8.6 of the Deep Learning book: what the zig-zag costs."""
    scale = np.array([1.0, 50.0])

    def f(x: Array) -> float:
        return float(x @ (scale * x)) / 2

    slow = solve.steepest_descent(f, [50.0, 1.0], jac=lambda x: scale * x, line_search="exact", gtol=1e-6)
    fast = solve.conjugate_gradient(f, [50.0, 1.0], jac=lambda x: scale * x, gtol=1e-6)
    # From this start exact steepest descent contracts by (50 - 1) / (50 + 1) a step, no faster.
    assert slow.nit == pytest.approx(math.log(1e6) / math.log(51 / 49), rel=0.05)
    assert fast.nit < 10


# ---------------------------------------------------------------------------------------------------------------------
# Compiled functions
# ---------------------------------------------------------------------------------------------------------------------

REAL = {np.float64: ctypes.c_double, np.float32: ctypes.c_float}


def pointers(real: Any) -> dict[str, Any]:
    p = ctypes.POINTER(real)
    return {
        "fun": ctypes.CFUNCTYPE(real, ctypes.c_int, p, ctypes.c_void_p),
        "jac": ctypes.CFUNCTYPE(None, ctypes.c_int, p, p, ctypes.c_void_p),
        "hessp": ctypes.CFUNCTYPE(None, ctypes.c_int, p, p, p, ctypes.c_void_p),
        "residuals": ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, p, p, ctypes.c_void_p),
    }


SOURCE = """
#include <math.h>
#define REAL %s
REAL value(int n, const REAL *x, void *user) {
    REAL s = user ? *(REAL *)user : 0;
    for (int i = 0; i + 1 < n; ++i) s += 100 * (x[i+1]-x[i]*x[i]) * (x[i+1]-x[i]*x[i]) + (1-x[i]) * (1-x[i]);
    return s;
}
void gradient(int n, const REAL *x, REAL *g, void *user) {
    for (int i = 0; i < n; ++i) g[i] = 0;
    for (int i = 0; i + 1 < n; ++i) {
        REAL t = x[i+1] - x[i]*x[i];
        g[i] += -400 * x[i] * t - 2 * (1 - x[i]);
        g[i+1] += 200 * t;
    }
}
void hessian(int n, const REAL *x, REAL *h, void *user) {
    for (int i = 0; i < n * n; ++i) h[i] = 0;
    for (int i = 0; i + 1 < n; ++i) {
        h[i*n+i] += 1200 * x[i]*x[i] - 400 * x[i+1] + 2;
        h[i*n+i+1] = h[(i+1)*n+i] = -400 * x[i];
        h[(i+1)*n+i+1] += 200;
    }
}
void product(int n, const REAL *x, const REAL *v, REAL *hv, void *user) {
    for (int i = 0; i < n; ++i) hv[i] = 0;
    for (int i = 0; i + 1 < n; ++i) {
        hv[i] += (1200 * x[i]*x[i] - 400 * x[i+1] + 2) * v[i] - 400 * x[i] * v[i+1];
        hv[i+1] += -400 * x[i] * v[i] + 200 * v[i+1];
    }
}
void residuals(int m, int n, const REAL *x, REAL *r, void *user) {
    for (int i = 0; i < m; ++i) r[i] = x[0] * exp(-x[1] * i / 10.0) - 2 * exp(-i * 0.13);
}
void jacobian(int m, int n, const REAL *x, REAL *j, void *user) {
    for (int i = 0; i < m; ++i) {
        j[i*n] = exp(-x[1] * i / 10.0);
        j[i*n+1] = -x[0] * i / 10.0 * j[i*n];
    }
}
"""


@pytest.fixture(scope="module", params=["double", "float"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import shutil

    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "f.c").write_text(SOURCE % request.param)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "f.c", "-o", "f.so", "-lm"], cwd=folder, check=True)
    loaded = ctypes.CDLL(str(folder / "f.so"))
    real = ctypes.c_double if request.param == "double" else ctypes.c_float
    p, i, v = ctypes.POINTER(real), ctypes.c_int, ctypes.c_void_p
    for name, arguments in {
        "value": [i, p, v],
        "gradient": [i, p, p, v],
        "hessian": [i, p, p, v],
        "product": [i, p, p, p, v],
        "residuals": [i, i, p, p, v],
        "jacobian": [i, i, p, p, v],
    }.items():
        getattr(loaded, name).argtypes = arguments
        getattr(loaded, name).restype = real if name == "value" else None
    loaded.dtype = np.float64 if request.param == "double" else np.float32
    return loaded


def test_compiled_functions(library: Any) -> None:
    start = np.array([-1.2, 1.0, 0.5], library.dtype)
    tolerance = 1e-6 if library.dtype is np.float64 else 2e-2
    c = library
    for r in (
        solve.newton(c.value, start, jac=c.gradient, hess=c.hessian),
        solve.newton(c.value, start, jac=c.gradient, hessp=c.product),
        solve.newton(c.value, start, jac=c.gradient),
        solve.newton(c.value, start, jac=rosenbrock_gradient, hess=c.hessian),
        solve.conjugate_gradient(c.value, start, jac=c.gradient),
        solve.conjugate_gradient(c.value, start, jac=c.gradient, history=True, callback=lambda x: None),
    ):
        assert r.success
        assert r.x.dtype == library.dtype
        np.testing.assert_allclose(r.x, 1, atol=tolerance)
    for jac in (c.jacobian, "2-point", "3-point"):
        r = solve.levenberg_marquardt(c.residuals, np.ones(2, library.dtype), jac=jac, m=20)
        assert r.success
        np.testing.assert_allclose(r.x, [2, 1.3], atol=tolerance)


def test_compiled_functions_give_what_python_gives(library: Any) -> None:
    if library.dtype is np.float32:
        pytest.skip("the Python functions of this test compute in float64")
    start = np.array([-1.2, 1.0, 0.5])
    c = library
    mine = solve.newton(c.value, start, jac=c.gradient, hess=c.hessian)
    want = solve.newton(rosenbrock, start, jac=rosenbrock_gradient, hess=rosenbrock_hessian)
    np.testing.assert_allclose(mine.x, want.x, rtol=1e-12)
    assert (mine.nfev, mine.njev, mine.nhev) == (want.nfev, want.njev, want.nhev)


def test_low_level_callables(library: Any) -> None:
    scipy = pytest.importorskip("scipy", reason="SciPy is not installed")
    if library.dtype is np.float32:
        pytest.skip("the user data of this test is a double")
    offset = ctypes.c_double(5.0)
    data = ctypes.cast(ctypes.pointer(offset), ctypes.c_void_p)
    f = scipy.LowLevelCallable(library.value, data)
    r = solve.newton(f, [-1.2, 1.0], jac=scipy.LowLevelCallable(library.gradient), hess=library.hessian)
    assert r.fun == pytest.approx(5.0)
    np.testing.assert_allclose(r.x, 1, rtol=1e-9)


def test_signatures_are_checked(library: Any) -> None:
    scipy = pytest.importorskip("scipy", reason="SciPy is not installed")
    start = np.array([-1.2, 1.0], library.dtype)
    with pytest.raises(TypeError, match="fun: the signature of a compiled function must be"):
        solve.newton(library.gradient, start)
    with pytest.raises(TypeError, match="jac: the signature of a compiled function must be"):
        solve.newton(library.value, start, jac=library.value)
    other = np.float32 if library.dtype is np.float64 else np.float64
    with pytest.raises(TypeError, match="fun: the signature of a compiled function must be"):
        solve.newton(library.value, start.astype(other))
    with pytest.raises(TypeError, match="fun: the signature of a compiled function must be"):
        solve.newton(scipy.LowLevelCallable(library.residuals), start)
    unset = ctypes.CDLL(library._name).value
    with pytest.raises(TypeError, match="fun: set restype and argtypes of the ctypes function"):
        solve.newton(unset, start)
    with pytest.raises(TypeError, match="m: a compiled fun needs the number of residuals"):
        solve.levenberg_marquardt(library.residuals, start)
    with pytest.raises(TypeError, match="jac: 'cs' calls fun with complex numbers"):
        solve.levenberg_marquardt(library.residuals, start, jac="cs", m=20)
    with pytest.raises(TypeError, match="jac: True is for Python functions"):
        solve.newton(library.value, start, jac=True)
    with pytest.raises(ValueError, match="vectorized: is for"):
        solve.newton(library.value, start, vectorized=True)


def test_numba(library: Any) -> None:
    numba = pytest.importorskip("numba", reason="numba is not installed")
    types = numba.types

    @numba.cfunc(
        types.void(types.int32, types.int32, types.CPointer(types.double), types.CPointer(types.double), types.voidptr)
    )
    def residuals(m: int, n: int, x: Any, r: Any, user: Any) -> None:
        r[0] = 10 * (x[1] - x[0] * x[0])
        r[1] = 1 - x[0]

    r = solve.levenberg_marquardt(residuals, [-1.2, 1.0], m=2)
    assert r.success
    np.testing.assert_allclose(r.x, 1, rtol=1e-10)


def test_functions_that_call_back_into_python() -> None:
    """A ctypes callback takes the lock again by itself."""
    kind = pointers(ctypes.c_double)
    f = kind["fun"](lambda n, x, user: (x[0] - 3) ** 2)

    def g(n: int, x: Any, out: Any, user: Any) -> None:
        out[0] = 2 * (x[0] - 3)

    r = solve.conjugate_gradient(f, [10.0], jac=kind["jac"](g))
    assert r.x[0] == pytest.approx(3)


# ---------------------------------------------------------------------------------------------------------------------
# Threads, nesting, signals, memory
# ---------------------------------------------------------------------------------------------------------------------


def run_all(seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    y = decay(TRUTH) + 0.05 * rng.normal(size=40)
    start = rng.normal(size=4) + 1.5
    return [
        solve.levenberg_marquardt(lambda p: decay(p) - y, [1.0, 1.0, 0.0]).x.tobytes(),
        solve.newton(rosenbrock, start, jac=rosenbrock_gradient, hess=rosenbrock_hessian).x.tobytes(),
        solve.conjugate_gradient(rosenbrock, start, jac=rosenbrock_gradient).x.tobytes(),
        solve.cg(MATRIX, rng.normal(size=3)).x.tobytes(),
    ]


def test_many_threads() -> None:
    want = [run_all(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(run_all, range(8))) == want


def test_compiled_functions_in_many_threads(library: Any) -> None:
    c = library

    def run(seed: int) -> bytes:
        start = np.random.default_rng(seed).normal(size=5).astype(c.dtype)
        return solve.newton(c.value, start, jac=c.gradient, hess=c.hessian).x.tobytes()

    want = [run(seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(16))) == want


def test_solvers_inside_solvers() -> None:
    """The outer function's value is a minimum that an inner solver finds, with the same functions."""

    def inner(x: Array) -> Array:
        r = solve.levenberg_marquardt(lambda p: decay(np.array([p[0], x[0], p[1]])) - NOISY, [1.0, 0.0])
        return r.fun

    r = solve.levenberg_marquardt(inner, [1.0])
    want = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0])
    assert r.x[0] == pytest.approx(want.x[1], rel=1e-6)

    depth = 0

    def f(x: Array) -> float:
        nonlocal depth
        if depth == 0:
            depth = 1
            assert abs(solve.newton(f, [9.0], jac=gradient, hess=hessian).x[0]) < 1e-12
            depth = 0
        return float(x @ x)

    assert abs(solve.newton(f, [3.0], jac=gradient, hess=hessian).x[0]) < 1e-12


def test_the_lock_is_released_for_compiled_functions(library: Any) -> None:
    """Another thread runs while a compiled run is under way, though no thread switches by itself."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    count = 0
    stop = threading.Event()

    def counter() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0)

    thread = threading.Thread(target=counter)
    thread.start()
    try:
        c = library
        start = np.full(60, 1.7, c.dtype)
        for _ in range(200):
            before = count
            solve.newton(c.value, start, jac=c.gradient, hess=c.hessian)
            if count > before:
                break
        else:
            raise AssertionError("no other thread ran")
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


class Switchless:
    """A thread that counts, and that runs only where the one under test gives up the lock: no thread is interrupted."""

    def __enter__(self) -> Switchless:
        self.interval = sys.getswitchinterval()
        sys.setswitchinterval(1000.0)
        self.count = 0
        self.left = math.nan  # the count when the solver was last given control, in this run
        self.seen = 0  # how often it has grown before the solver gave it back
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self) -> None:
        while not self.stop.is_set():
            self.count += 1
            time.sleep(0)

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a look at the count at both ends, between which NumPy may release the lock too."""
        self.left = math.nan

        def watched(*args: Any) -> Any:
            self.seen += self.count > self.left
            value = function(*args)
            self.left = self.count
            return value

        return watched

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        sys.setswitchinterval(self.interval)


def large_fit(w: Callable[..., Any]) -> solve.Result:
    g = np.random.default_rng(0)
    a, b = g.normal(size=(500, 300)), g.normal(size=500)
    return solve.levenberg_marquardt(
        w(lambda x: a @ x + 0.01 * np.sin(a @ x) - b),
        np.zeros(300),
        jac=w(lambda x: (1 + 0.01 * np.cos(a @ x))[:, None] * a),
    )


def large_saddle(w: Callable[..., Any]) -> solve.Result:
    """Of an order at which the Cholesky factorisation alone keeps the lock."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(200, 200)))[0]

    def f(x: Array) -> float:
        y = q @ x
        return float(np.sum((y**2 - 1) ** 2))

    def hessian(x: Array) -> Array:
        return q.T @ ((12 * (q @ x) ** 2 - 4)[:, None] * q)

    start = q.T @ np.full(200, 0.1)
    return solve.newton(w(f), start, jac=w(lambda x: q.T @ (4 * (q @ x) * ((q @ x) ** 2 - 1))), hess=w(hessian))


@pytest.mark.parametrize("problem", [large_fit, large_saddle])
def test_the_lock_is_released_in_the_linear_algebra_of_large_problems(problem: Callable[..., Any]) -> None:
    with Switchless() as other:
        for _ in range(20):
            r = problem(other.watch)
            assert r.success, r.message
            if other.seen > 0:
                break
    assert other.seen > 0


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="an interpreter without Python's lock")
def test_small_problems_keep_the_lock() -> None:
    """Taking it back may mean to wait for another thread."""
    p = _nist.problems()["Thurber"]
    with Switchless() as other:
        for _ in range(5):
            assert solve.levenberg_marquardt(other.watch(p.residuals), p.starts[1], jac=other.watch(p.jacobian)).success
    assert other.seen == 0


def test_callbacks_and_errors_without_the_lock() -> None:
    a = np.random.default_rng(0).normal(size=(300, 256))
    seen: list[int] = []

    def residuals(x: Array) -> Array:
        return a @ x + 0.1 * np.sin(x).sum() - 1

    def failing(x: Array) -> Array:
        seen.append(len(seen))
        if len(seen) == 5:
            raise KeyError("five")
        return residuals(x)

    with pytest.raises(KeyError, match="five"):
        solve.levenberg_marquardt(failing, np.zeros(256), jac="2-point")
    assert len(seen) == 5
    jacobian = lambda x: a + 0.1 * np.cos(x)  # noqa: E731
    r = solve.levenberg_marquardt(residuals, np.zeros(256), jac=jacobian, callback=lambda x: True, history=True)
    assert (r.status, r.nit, len(r.history["fun"])) == (-1, 1, 2)
    plain = solve.levenberg_marquardt(residuals, np.zeros(256), jac=jacobian)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: solve.levenberg_marquardt(residuals, np.zeros(256), jac=jacobian), range(4)))
    for other in both:
        np.testing.assert_array_equal(other.x, plain.x)


INTERRUPT = """
import ctypes, os, signal, sys, threading, time
import numpy as np
from adaptk import solve
kind, path = sys.argv[1:3]
# Never at an end: it falls for ever.
if kind == "python":
    def f(x): return -float(x[0])
    def g(x): return -np.ones(1)
else:
    library = ctypes.CDLL(path)
    p = ctypes.POINTER(ctypes.c_double)
    f, g = library.value, library.gradient
    f.restype, f.argtypes = ctypes.c_double, [ctypes.c_int, p, ctypes.c_void_p]
    g.restype, g.argtypes = None, [ctypes.c_int, p, p, ctypes.c_void_p]
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        solve.steepest_descent(f, [0.1], jac=g, gtol=0, maxiter=10**9)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="a system without these signals")
@pytest.mark.parametrize("kind", ["python", "compiled"])
def test_ctrl_c(kind: str, tmp_path: Any) -> None:
    import shutil

    path = tmp_path / "f.so"
    if kind == "compiled":
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler")
        # Each call takes a millisecond, and the function has no end.
        (tmp_path / "f.c").write_text(
            "#include <time.h>\n"
            "static void rest(void) { struct timespec t = {0, 1000000}; nanosleep(&t, 0); }\n"
            "double value(int n, const double *x, void *u) { rest(); return -x[0]; }\n"
            "void gradient(int n, const double *x, double *g, void *u) { rest(); g[0] = -1; }\n"
        )
        subprocess.run([compiler, "-shared", "-fPIC", "f.c", "-o", "f.so"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, kind, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "interrupted"


def test_nothing_leaks() -> None:
    class Token:
        pass

    token = Token()
    big = np.zeros(1000)

    def failing(x: Array) -> float:
        raise Refused

    def once() -> None:
        run_all(0)
        solve.levenberg_marquardt(lambda p, t: decay(p) - NOISY, [1.0, 1.0, 0.0], (token,), history=True)
        solve.newton(
            lambda x, t, b: float(x @ x), [1.0], (token, big), jac=lambda x, t, b: 2 * x, callback=lambda x: None
        )
        for bad in (failing, lambda x: None, lambda x: 1j, lambda x: np.ones(3)):
            with pytest.raises((Refused, TypeError, ValueError)):
                solve.conjugate_gradient(bad, [1.0, 2.0], (), jac=gradient)
        with pytest.raises(ValueError):
            solve.levenberg_marquardt(lambda x: np.ones((2, 2)), [1.0])

    for _ in range(3):
        once()
    gc.collect()
    references = sys.getrefcount(token), sys.getrefcount(big), sys.getrefcount(None)
    tracemalloc.start()
    try:
        # Without Python's lock the interpreter frees some memory later, up to a bound.
        for _ in range(50):
            once()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            once()
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert sys.getrefcount(token) == references[0]
    assert sys.getrefcount(big) == references[1]
    assert abs(sys.getrefcount(None) - references[2]) < 50 or sys.version_info >= (3, 12)
    # An array that each run lost would be 50 times 100 bytes at the least, and there are a hundred in each.
    assert after - before < 20_000


# ---------------------------------------------------------------------------------------------------------------------
# Large matrices
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 31, 96, 111, 112, 113, 127, 128, 129, 160, 257, 300, 401])
def test_cholesky(n: int, dtype: Any) -> None:
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, n))
    a = (a @ a.T + n * np.eye(n)).astype(dtype)
    a = (a + a.T) / 2
    x = rng.normal(size=n).astype(dtype)
    got = _solve.cholesky_solve(a, (a.astype(np.float64) @ x).astype(dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, x, rtol=0, atol=200 * np.finfo(dtype).eps * np.abs(x).max() * math.sqrt(n))
    for bad in (0, n // 2, n - 1):
        spoilt = a.copy()
        spoilt[bad, bad] = -1
        assert _solve.cholesky_solve(spoilt, x) is None
        spoilt[bad, bad] = math.nan
        assert _solve.cholesky_solve(spoilt, x) is None


@pytest.mark.usefixtures("restored")
def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 500))
    a = a @ a.T + 500 * np.eye(500)
    b = rng.normal(size=500)
    results = set()
    for threads in (1, 2, 3):
        adaptk.set_num_threads(threads)
        results.add(_solve.cholesky_solve(a, b).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("n", [20, 140, 300])
def test_newton_on_large_quadratics(n: int) -> None:
    rng = np.random.default_rng(n)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    d = np.geomspace(0.5, 50, n)
    a = (q * d) @ q.T
    b = rng.normal(size=n)
    r = solve.newton(lambda x: float(x @ a @ x / 2 - b @ x), np.zeros(n), jac=lambda x: a @ x - b, hess=lambda x: a)
    assert r.success
    assert r.nit <= 2
    np.testing.assert_allclose(r.x, np.linalg.solve(a, b), rtol=1e-9, atol=1e-10)
    assert r.lambda_min == pytest.approx(0.5, rel=1e-5)


def test_the_import_is_lazy() -> None:
    code = (
        "import sys, adaptk\n"
        "assert 'adaptk._solve' not in sys.modules and 'adaptk.solve' not in sys.modules\n"
        "assert 'solve' in adaptk.__all__\n"
        "adaptk.solve.newton\n"
        "assert 'adaptk._solve' in sys.modules\n"
        "assert not {'scipy', 'matplotlib', 'numba', 'torch'} & set(sys.modules)\n"
        "try:\n"
        "    adaptk.nothing\n"
        "except AttributeError as e:\n"
        "    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "module 'adaptk' has no attribute 'nothing'"


def test_docstrings_run() -> None:
    import doctest
    import importlib

    tried = 0
    for name in ("_gradient", "_least_squares", "_linear", "_newton", "_plot", "_result"):
        results = doctest.testmod(importlib.import_module(f"adaptk.solve.{name}"))
        assert results.failed == 0
        tried += results.attempted
    assert tried > 15
