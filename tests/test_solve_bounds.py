"""Bounds of newton, conjugate_gradient, steepest_descent and lbfgs."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from adaptk import solve
from solve_problems import (
    rosenbrock,
    rosenbrock_gradient,
    rosenbrock_hessian,
    wood,
    wood_gradient,
    wood_hessian,
)

Array = Any
inf = np.inf


class Problem(NamedTuple):
    """A problem of W. Hock and K. Schittkowski, Test Examples for Nonlinear Programming Codes, 1981."""

    name: str
    fun: Callable[[Array], Any]
    jac: Callable[[Array], Array]
    hess: Callable[[Array], Array]
    bounds: tuple[Any, Any]
    x0: list[float]
    x: list[float]
    minimum: float


def hs3(x: Array) -> Any:
    return x[1] + 1e-5 * (x[1] - x[0]) ** 2


def hs5(x: Array) -> Any:
    return np.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1


def hs5_gradient(x: Array) -> Array:
    c, d = math.cos(x[0] + x[1]), 2 * (x[0] - x[1])
    return np.array([c + d - 1.5, c - d + 2.5])


def hs5_hessian(x: Array) -> Array:
    s = -math.sin(x[0] + x[1])
    return np.array([[s + 2, s - 2], [s - 2, s + 2]])


def hs45_gradient(x: Array) -> Array:
    return np.array([-np.prod(np.delete(x, i)) / 120 for i in range(5)])


def hs45_hessian(x: Array) -> Array:
    return np.array([[0.0 if i == k else -np.prod(np.delete(x, [i, k])) / 120 for k in range(5)] for i in range(5)])


def hs110(x: Array) -> Any:
    return np.sum(np.log(x - 2) ** 2 + np.log(10 - x) ** 2) - np.prod(x) ** 0.2


def hs110_gradient(x: Array) -> Array:
    return 2 * np.log(x - 2) / (x - 2) - 2 * np.log(10 - x) / (10 - x) - 0.2 * np.prod(x) ** 0.2 / x


def hs110_hessian(x: Array) -> Array:
    p = np.prod(x) ** 0.2
    own = 2 * (1 - np.log(x - 2)) / (x - 2) ** 2 + 2 * (1 - np.log(10 - x)) / (10 - x) ** 2 + 0.2 * p / x**2
    return np.diag(own) - 0.04 * p * np.outer(1 / x, 1 / x)


A = math.sqrt(598 / 1200)
VALLEY = 2 * A * math.cos(math.acos(1 / (400 * A**3)) / 3)
PROBLEMS = [
    Problem("1", rosenbrock, rosenbrock_gradient, rosenbrock_hessian, ([-inf, -1.5], inf), [-2, 1], [1, 1], 0),
    # Its start is outside the bounds, and the nearest point leads to the other minimum, with x[0] = -1.22.
    Problem(
        "2", rosenbrock, rosenbrock_gradient, rosenbrock_hessian, ([-inf, 1.5], inf), [2, 3], [VALLEY, 1.5],
        0.0504261879,
    ),
    Problem(
        "3", hs3, lambda x: np.array([-2e-5 * (x[1] - x[0]), 1 + 2e-5 * (x[1] - x[0])]),
        lambda x: 2e-5 * np.array([[1.0, -1], [-1, 1]]), ([-inf, 0], inf), [10, 1], [0, 0], 0,
    ),
    Problem(
        "4", lambda x: (x[0] + 1) ** 3 / 3 + x[1], lambda x: np.array([(x[0] + 1) ** 2, 1.0]),
        lambda x: np.diag([2 * (x[0] + 1), 0]), ([1, 0], inf), [1.125, 0.125], [1, 0], 8 / 3,
    ),
    Problem(
        "5", hs5, hs5_gradient, hs5_hessian, ([-1.5, -3], [4, 3]), [0, 0], [0.5 - math.pi / 3, -0.5 - math.pi / 3],
        -math.sqrt(3) / 2 - math.pi / 3,
    ),
    Problem("38", wood, wood_gradient, wood_hessian, (-10, 10), [-3, -1, -3, -1], [1, 1, 1, 1], 0),
    # From the nearest point to its start.
    Problem(
        "45", lambda x: 2 - np.prod(x) / 120, hs45_gradient, hs45_hessian, (0, [1, 2, 3, 4, 5]), [1, 2, 2, 2, 2],
        [1, 2, 3, 4, 5], 1,
    ),
    Problem(
        "110", hs110, hs110_gradient, hs110_hessian, (2.001, 9.999), [9] * 10, [9.35025655] * 10, -45.77846971
    ),
]  # fmt: skip

METHODS: dict[str, Callable[..., Any]] = {
    "newton": solve.newton,
    "levenberg": lambda *a, **k: solve.newton(*a, damping="levenberg", **k),
    "hessp": lambda *a, hess, **k: solve.newton(*a, hessp=lambda x, v: hess(x) @ v, **k),
    "hz": solve.conjugate_gradient,
    "pr+": lambda *a, **k: solve.conjugate_gradient(*a, beta="pr+", **k),
    "fr": lambda *a, **k: solve.conjugate_gradient(*a, beta="fr", **k),
    "hs": lambda *a, **k: solve.conjugate_gradient(*a, beta="hs", **k),
    "dy": lambda *a, **k: solve.conjugate_gradient(*a, beta="dy", **k),
    "lbfgs": solve.lbfgs,
}
DESCENTS = {
    rule: lambda *a, rule=rule, **k: solve.steepest_descent(*a, line_search=rule, **k)
    for rule in ("wolfe", "exact", "bb")
}
SECOND = ("newton", "levenberg", "hessp")


def limits(bounds: Any, n: int) -> tuple[Array, Array]:
    low, high = (np.array(np.broadcast_to(np.asarray(b, dtype=float), (n,))) for b in bounds)
    return low, high


def watched(f: Callable[..., Any], low: Array, high: Array) -> Callable[..., Any]:
    """The function, which fails outside the bounds."""

    def inside(x: Array, *args: Any) -> Any:
        assert ((x.real >= low) & (x.real <= high)).all(), x
        return f(x, *args)

    return inside


def run(method: str, p: Problem, x0: Any = None, dtype: Any = float, **options: Any) -> Any:
    start = np.array(p.x0 if x0 is None else x0, dtype)
    low, high = limits(p.bounds, start.size)
    low, high = low.astype(dtype), high.astype(dtype)
    options.setdefault("jac", watched(p.jac, low, high))
    if method in SECOND:
        options.setdefault("hess", watched(p.hess, low, high))
    r = (METHODS | DESCENTS)[method](watched(p.fun, low, high), start, bounds=(low, high), **options)
    assert ((r.x >= low) & (r.x <= high)).all()
    np.testing.assert_array_equal(r.active_mask, np.where(r.x <= low, -1, np.where(r.x >= high, 1, 0)))
    assert r.x.dtype == dtype
    return r


def free_slopes(x: Array, g: Array, low: Array, high: Array) -> Array:
    """The gradient of what no bound holds."""
    return np.where(((x <= low) & (g > 0)) | ((x >= high) & (g < 0)), 0, g)


@pytest.mark.parametrize("p", PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("method", METHODS)
def test_problems_of_hock_and_schittkowski(method: str, p: Problem) -> None:
    r = run(method, p)
    assert r.success, r.message
    np.testing.assert_allclose(r.x, p.x, rtol=1e-5, atol=1e-5 if p.name != "3" else 1e-3)
    assert abs(r.fun - p.minimum) <= 1e-8 * max(1, abs(p.minimum))
    low, high = limits(p.bounds, len(p.x))
    np.testing.assert_array_equal(r.jac, p.jac(r.x))
    np.testing.assert_allclose(free_slopes(r.x, r.jac, low, high), 0, atol=1e-5)
    if method in SECOND:
        free = np.array([low[k] < x < high[k] for k, x in enumerate(p.x)])
        np.testing.assert_array_equal(np.isinf(r.lambda_min), not free.any())
        if free.any():
            h = p.hess(r.x)
            want = np.linalg.eigvalsh(h[np.ix_(free, free)])[0]
            np.testing.assert_allclose(r.lambda_min, want, rtol=1e-6, atol=1e-9 * np.abs(h).max())


def minimum_of_quadratic(a: Array, b: Array, low: Array, high: Array) -> Array:
    """The minimum of x'Ax/2 - b'x within bounds: of all sets of active bounds, the one that meets the conditions."""
    for sides in itertools.product((-1, 0, 1), repeat=len(b)):
        side = np.array(sides)
        x = np.where(side < 0, low, np.where(side > 0, high, 0.0))
        free = side == 0
        if not np.isfinite(x).all():
            continue
        if free.any():
            x[free] = np.linalg.solve(a[np.ix_(free, free)], b[free] - a[np.ix_(free, ~free)] @ x[~free])
        g = a @ x - b
        feasible = ((x >= low - 1e-12) & (x <= high + 1e-12)).all()
        if feasible and (g[side < 0] >= -1e-9).all() and (g[side > 0] <= 1e-9).all():
            return x
    raise AssertionError("no set of active bounds meets the conditions")


def quadratic(seed: int) -> tuple[Array, Problem]:
    """With bounds on one side or both, or equal ones, and a start inside, on a bound or in a corner."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    root = rng.normal(size=(n, n))
    a, b = root @ root.T + 0.1 * np.eye(n), 3 * rng.normal(size=n)
    low = np.where(rng.random(n) < 0.7, rng.uniform(-1, 0, n), -inf)
    high = np.where(rng.random(n) < 0.7, rng.uniform(0.01, 1, n), inf)
    if seed % 3 == 0:
        k = rng.integers(n)
        low[k] = high[k] = 0.3
    x0 = np.clip(rng.normal(size=n) * (1 if seed % 2 else 10), low, high)
    want = minimum_of_quadratic(a, b, low, high)
    p = Problem(
        str(seed), lambda x: x @ a @ x / 2 - b @ x, lambda x: a @ x - b, lambda x: a, (low, high), list(x0),
        list(want), float(want @ a @ want / 2 - b @ want),
    )  # fmt: skip
    return a, p


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("method", [*METHODS, *DESCENTS])
def test_quadratics(method: str, seed: int) -> None:
    _, p = quadratic(seed)
    r = run(method, p)
    assert r.success
    np.testing.assert_allclose(r.x, p.x, rtol=1e-5, atol=1e-5)
    if method in SECOND:
        # A quadratic is its own model: the first step is the minimum, unless a bound is released afterwards. Conjugate
        # gradients only come near to it.
        assert r.nit <= (8 if method == "hessp" else 4)


@pytest.mark.parametrize("seed", [132, 372, 487, 596])
def test_a_gradient_that_is_only_rounding_ends_lbfgs(seed: int) -> None:
    _, p = quadratic(seed)
    r = run("lbfgs", p)
    assert r.success
    assert r.nit < 50


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("jac", ["2-point", "3-point", "cs"])
@pytest.mark.parametrize("method", ["newton", "hz", "pr+", "bb", "lbfgs"])
def test_differences_stay_within_the_bounds(method: str, jac: str, seed: int) -> None:
    _, p = quadratic(seed)
    more = {"hess": None} if method == "newton" else {}
    r = run(method, p, jac=jac, **more)
    assert r.success
    np.testing.assert_allclose(r.x, p.x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("hess", [None, "2-point", "3-point", "cs", "bfgs", "sr1"])
def test_approximate_hessians(hess: str | None) -> None:
    r = run("newton", PROBLEMS[1], hess=hess)
    assert r.success
    np.testing.assert_allclose(r.x, PROBLEMS[1].x, rtol=1e-5)


def test_stacks_of_points_stay_within_the_bounds() -> None:
    low, high = np.array([-2.0, -2.0, 0.25]), np.array([0.5, 2.0, 0.25])

    def stack(x: Array) -> Array:
        assert ((x >= low) & (x <= high)).all()
        x = np.atleast_2d(x)
        value = 100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2 + x[:, 2]
        return value if len(value) > 1 else value[0]

    for jac in ("2-point", "3-point"):
        r = solve.conjugate_gradient(stack, [-1.2, 1, 0.25], jac=jac, vectorized=True, bounds=(low, high))
        np.testing.assert_allclose(r.x, [0.5, 0.25, 0.25], rtol=1e-4)


@pytest.mark.parametrize("method", [*METHODS, *DESCENTS])
def test_float32(method: str) -> None:
    r = run(method, PROBLEMS[4], dtype=np.float32)
    assert r.success
    np.testing.assert_allclose(r.x, PROBLEMS[4].x, rtol=1e-2)


@pytest.mark.parametrize("method", [*METHODS, *DESCENTS])
def test_nothing_to_do(method: str) -> None:
    p = PROBLEMS[0]._replace(bounds=([-2, 1], [-2, 1]))
    r = run(method, p)
    assert r.success
    assert r.nit == 0
    np.testing.assert_array_equal(r.x, [-2, 1])
    np.testing.assert_array_equal(r.active_mask, [-1, -1])
    np.testing.assert_array_equal(r.jac, rosenbrock_gradient(np.array([-2.0, 1.0])))


@pytest.mark.parametrize("method", [m for m in (*METHODS, *DESCENTS) if m != "lbfgs"])
def test_bounds_that_are_far_away_change_nothing(method: str) -> None:
    p = PROBLEMS[5]
    f = (METHODS | DESCENTS)[method]
    more = {"hess": p.hess} if method in SECOND else {}
    free = f(p.fun, p.x0, jac=p.jac, **more)
    far = f(p.fun, p.x0, jac=p.jac, bounds=(-1e6, 1e6), **more)
    infinite = f(p.fun, p.x0, jac=p.jac, bounds=(-inf, inf), **more)
    assert "active_mask" not in free
    for other in (far, infinite):
        np.testing.assert_array_equal(other.x, free.x)
        assert (other.nit, other.nfev, other.njev, other.status) == (free.nit, free.nfev, free.njev, free.status)


@pytest.mark.parametrize("method", SECOND)
def test_saddles_and_maxima(method: str) -> None:
    # A maximum inside: the way out ends at a bound.
    r = run(method, Problem("", lambda x: -(x @ x), lambda x: -2 * x, lambda x: -2 * np.eye(2), (-1, 2), [0, 0], [], 0))
    assert r.success
    assert r.fun <= -2
    # At a bound without a slope, f falls inward.
    r = run(method, Problem("", lambda x: -(x @ x), lambda x: -2 * x, lambda x: -2 * np.eye(1), (0, 3), [0], [], 0))
    np.testing.assert_array_equal(r.x, [3])
    # The Hessian is indefinite at a corner without slopes, and yet it is a minimum: xy >= 0 there.
    h = np.array([[0.0, 1.0], [1.0, 0.0]])
    p = Problem("", lambda x: x[0] * x[1], lambda x: x[::-1].copy(), lambda x: h, (0, 1), [0, 0], [], 0)
    r = run(method, p)
    assert r.status == 1
    np.testing.assert_array_equal(r.x, [0, 0])
    # Inside the bounds that is a saddle, which is left.
    r = run(method, p._replace(bounds=(-1, 1)))
    assert r.success
    assert r.fun == -1


@pytest.mark.parametrize("method", [*METHODS, *DESCENTS])
def test_a_bound_without_a_slope(method: str) -> None:
    """A degenerate solution: the minimum of f lies on a bound, so that this one does not hold the variable."""
    a = np.array([[2.0, 1.0], [1.0, 3.0]])
    c = np.array([1.0, -0.5])
    p = Problem(
        "", lambda x: (x - c) @ a @ (x - c) / 2, lambda x: a @ (x - c), lambda x: a, ([1, -2], 4), [3, 3], [], 0
    )
    r = run(method, p)
    assert r.success
    np.testing.assert_allclose(r.x, c, atol=1e-6)


@pytest.mark.parametrize("method", [m for m in (*METHODS, *DESCENTS) if m != "lbfgs"])
def test_a_wrong_gradient_at_a_bound(method: str) -> None:
    p = PROBLEMS[1]._replace(x0=[0.5, 1.5])
    r = run(method, p, jac=lambda x: -rosenbrock_gradient(x))
    assert not r.success or np.array_equal(np.abs(r.active_mask), [1, 1])
    if r.status == -9:
        assert "does not agree" in r.message or "do not agree" in r.message


def test_checks_of_derivatives_stay_within_the_bounds() -> None:
    p = PROBLEMS[1]._replace(x0=[0.5, 1.5], bounds=([0.5, 1.5], [0.5, inf]))
    for method in ("newton", "hz", "lbfgs"):
        run(method, p, check_derivatives=True)
        with pytest.raises(ValueError, match=r"check_derivatives: jac\[1\]"):
            run(method, p, jac=lambda x: 2 * rosenbrock_gradient(x), check_derivatives=True)


def test_a_plain_method_needs_a_definite_hessian_of_the_free_variables() -> None:
    h = np.diag([2.0, -2.0])
    p = Problem("", lambda x: x[0] ** 2 - x[1] ** 2, lambda x: h @ x, lambda x: h, (-1, [3, 2]), [3, 2], [0, 2], -4)
    r = run("newton", p, damping=None)
    assert r.success
    np.testing.assert_allclose(r.x, [0, 2], atol=1e-12)
    assert run("newton", p._replace(x0=[3, 1]), damping=None).status == -4


@pytest.mark.parametrize("n", [40, 150])
def test_many_bounds(n: int) -> None:
    """Rosenbrock's function: the methods agree, also where matrices are factored in blocks."""
    low, high = np.where(np.arange(n) % 2 == 0, 0.3, -inf), np.where(np.arange(n) % 3 == 0, 0.9, inf)
    x0 = np.clip(np.full(n, -1.2), low, high)
    p = Problem("", rosenbrock, rosenbrock_gradient, rosenbrock_hessian, (low, high), list(x0), [], 0)
    best = run("newton", p)
    assert best.success
    assert (best.active_mask != 0).sum() > n // 4
    np.testing.assert_allclose(free_slopes(best.x, best.jac, low, high), 0, atol=1e-9)
    for method in ("levenberg", "hz", "pr+", "lbfgs"):
        r = run(method, p)
        assert r.success
        np.testing.assert_allclose(r.x, best.x, rtol=1e-4, atol=1e-6)


def test_as_a_method_of_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    low, high = np.array([-2.0, -2.0, -inf]), np.array([0.5, inf, 0.1])
    x0 = np.array([-1.2, 1.0, -1.0])
    want = optimize.minimize(
        rosenbrock, x0, jac=rosenbrock_gradient, method="L-BFGS-B", bounds=optimize.Bounds(low, high),
        options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    for method in (solve.newton, solve.conjugate_gradient):
        more = {"hess": rosenbrock_hessian} if method is solve.newton else {}
        got = optimize.minimize(
            rosenbrock, x0, jac=rosenbrock_gradient, method=method, bounds=optimize.Bounds(low, high), **more
        )
        assert got.success
        np.testing.assert_allclose(got.x, want.x, rtol=1e-5, atol=1e-6)


def test_compiled_functions() -> None:
    @ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int, ctypes.POINTER(ctypes.c_double), ctypes.c_void_p)
    def f(n: int, x: Any, user: Any) -> float:
        return (x[0] - 3.0) ** 2 + (x[1] + 1.0) ** 2 if 0 <= x[0] <= 2 and 0 <= x[1] <= 5 else math.nan

    for method in (solve.newton, solve.conjugate_gradient, solve.steepest_descent):
        r = method(f, [1.0, 1.0], jac="3-point", bounds=([0, 0], [2, 5]))
        assert r.success
        np.testing.assert_allclose(r.x, [2, 0], atol=1e-8)


@pytest.mark.parametrize("method", [solve.newton, solve.conjugate_gradient, solve.steepest_descent, solve.lbfgs])
@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("bounds: lower must not be greater than upper, got 1.0 and 0.0 for variable 1", ([0, 1], [2, 0])),
        ("x0: variable 0 is 0.5, outside its bounds", (1, 2)),
        ("bounds: hold NaN", (math.nan, 2)),
        ("bounds: expected a pair", 3),
        ("bounds: expected a pair", ([0, 0, 0], 2)),
        ("bounds: None is not a bound", (None, 2)),
    ],
)
def test_bounds_that_cannot_be(method: Any, text: str, bounds: Any) -> None:
    with pytest.raises(ValueError, match=text):
        method(rosenbrock, [0.5, 0.5], bounds=bounds)
    with pytest.raises(ValueError, match=r"for a pair for each variable write bounds=\(\[0"):
        method(rosenbrock, [0.5, 0.5, 0.5], bounds=[(0, 1), (0, 1), (0, 1)])


@pytest.mark.parametrize("n", [40, 300])
def test_products_with_the_hessian_find_the_minimum_of_the_dense_form(n: int) -> None:
    """A string over an obstacle, of which many bounds become active at once."""
    a = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    obstacle = 1 - 8 * (np.linspace(0, 1, n) - 0.4) ** 2
    load = np.full(n, 1.0 / n**2)
    p = Problem(
        "", lambda x: x @ a @ x / 2 + load @ x, lambda x: a @ x + load, lambda x: a, (obstacle, inf),
        list(np.maximum(obstacle, 0) + 1), [], 0,
    )  # fmt: skip
    dense, products = run("newton", p), run("hessp", p)
    assert dense.success
    assert products.success
    np.testing.assert_allclose(products.x, dense.x, atol=1e-7)
    np.testing.assert_array_equal(products.active_mask, dense.active_mask)
    assert products.nit < 60
    assert products.lambda_min == pytest.approx(dense.lambda_min, rel=0.5)
