"""Saddles, maxima, walls, and every status of the solvers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from adaptk import solve
from solve_problems import (
    GRADIENTS,
    MATRIX,
    NEWTONS,
    RIGHT,
    SOLVERS,
    Array,
    rosenbrock,
    rosenbrock_gradient,
    rosenbrock_hessian,
)

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
    """x'Dx/2 + |x|^4/4 with one negative eigenvalue, from a start without gradient along it."""
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
def test_the_plain_method_reports_no_success_at_a_saddle(name: str) -> None:
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


def test_a_flat_minimum() -> None:
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

    # A wrong gradient: no step decreases f, and differences show why.
    wrong = solve.newton(lambda x: float(x @ x), [1.0], jac=lambda x: -2 * x, hess=lambda x: [[2.0]])
    assert wrong.status == -9

    # Curvature that f does not have.
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
        assert method(lambda x: float(x @ x), start, jac=lambda x: -2 * x).status == -9
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


def test_the_best_point_is_returned_for_every_status() -> None:
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
    """f is not finite for x > 3: the minimum at 2.5 is still reached."""

    def f(x: Array) -> float:
        return outside if x[0] > 3 else float((x[0] - 2.5) ** 2 + (x[0] - 2.5) ** 4)

    def g(x: Array) -> Array:
        return 2 * (x - 2.5) + 4 * (x - 2.5) ** 3 if x[0] <= 3 else x * outside

    r = SOLVERS[solver](f, [-20.0], g, lambda x: np.array([[2 + 12 * (x[0] - 2.5) ** 2]]))
    assert r.x[0] == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("solver", [*NEWTONS, *GRADIENTS])
def test_no_success_if_every_step_gives_nan(solver: str) -> None:
    start = np.array([1.0, 2.0])
    h = np.array([[2.0, 0.0], [0.0, 1.0]])
    r = SOLVERS[solver](
        lambda x: 3.0 if (x == start).all() else math.nan, start, lambda x: np.array([1.0, -1.0]), lambda x: h
    )
    assert (r.status, r.success, r.fun) == (-3, False, 3.0)
    np.testing.assert_array_equal(r.x, start)


def rounded_valley() -> tuple[Any, ...]:
    """The first variable only has an effect by rounding: a log of exponentials and its negative cancel."""
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
def test_rounding_along_a_valley_is_not_a_saddle(damping: str, hess: str) -> None:
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
    """f is 0 except for the rounding of its terms, along which the solver must not descend in the null space."""
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
    """One-sided differences start from the value that the line search has just evaluated."""
    seen: list[Any] = []

    def f(x: Array) -> float:
        seen.append(x.copy())
        return float(np.sum((x - [1.0, 2.0]) ** 2 + np.cosh(x)))

    r = SOLVERS[solver](f, [3.0, -1.0], None, None)
    assert r.success
    assert r.nfev == len(seen)
    assert not any((a == b).all() for a, b in itertools.pairwise(seen))


def test_differences_of_functions_that_compute_in_float32() -> None:
    """x is float64, but its step for differences would be lost in the rounding of float32."""
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
