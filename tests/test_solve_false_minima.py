"""Points whose gradient is small relative to the largest of the run, but which are not minima."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve
from solve_problems import rosenbrock, rosenbrock_gradient, rosenbrock_hessian

Array = Any

SOLVERS: dict[str, Any] = {
    "trust-region": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hess=h, **o),
    "levenberg": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hess=h, damping="levenberg", **o),
    "hessp": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hessp=lambda x, v: h(x) @ v, **o),
    "hz": lambda f, x, g, h, **o: solve.conjugate_gradient(f, x, jac=g, **o),
    "fr": lambda f, x, g, h, **o: solve.conjugate_gradient(f, x, jac=g, beta="fr", **o),
    "wolfe": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, **o),
}
OTHERS: dict[str, Any] = {
    "bfgs": lambda f, x, g, h, **o: solve.newton(f, x, jac=g, hess="bfgs", **o),
    "exact": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, line_search="exact", **o),
    "bb": lambda f, x, g, h, **o: solve.steepest_descent(f, x, jac=g, line_search="bb", **o),
    "dy": lambda f, x, g, h, **o: solve.conjugate_gradient(f, x, jac=g, beta="dy", **o),
    "pr+": lambda f, x, g, h, **o: solve.conjugate_gradient(f, x, jac=g, beta="pr+", **o),
}
NEWTONS = ["trust-region", "levenberg", "hessp"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_exponential_wall(solver: str) -> None:
    """(exp(x) - 1)^2 from 20: at 5.5 the gradient is 1e-12 of the first one, and f is 6e4."""
    r = SOLVERS[solver](
        lambda x: float((np.exp(x[0]) - 1) ** 2),
        [20.0],
        lambda x: 2 * (np.exp(x) - 1) * np.exp(x),
        lambda x: np.array([[4 * np.exp(2 * x[0]) - 2 * np.exp(x[0])]]),
    )
    assert r.success, r.message
    assert abs(r.x[0]) < 2e-3
    assert r.fun < 2e-6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("solver", SOLVERS)
def test_poisson_regression_from_a_bad_start(solver: str) -> None:
    g = np.random.default_rng(0)
    rows = np.c_[np.ones(50), g.normal(size=(50, 2))]
    counts = g.poisson(np.exp(rows @ [0.5, 0.3, -0.2]))
    want = [0.62561529, 0.26110334, -0.14280228]
    r = SOLVERS[solver](
        lambda b: float(np.sum(np.exp(rows @ b) - counts * (rows @ b))),
        [1.0, 6.0, -6.0],
        lambda b: rows.T @ (np.exp(rows @ b) - counts),
        lambda b: (rows * np.exp(rows @ b)[:, None]).T @ rows,
    )
    assert r.success, r.message
    np.testing.assert_allclose(r.x, want, atol=1e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("start", [[0.0, 1.0], [1.0, 1.0], [5.0, -300.0]])
@pytest.mark.parametrize("solver", [*SOLVERS, *OTHERS])
def test_an_unbounded_function(solver: str, start: list[float]) -> None:
    """-x0 + x1^2: where |x0| is 1/eps, the gradient is no larger than the rounding of |H| |x|."""
    r = (SOLVERS | OTHERS)[solver](
        lambda x: float(-x[0] + x[1] ** 2), start, lambda x: np.array([-1.0, 2 * x[1]]), lambda x: np.diag([0.0, 2.0])
    )
    assert not r.success, r.message
    assert r.fun < -1e3


@pytest.mark.parametrize("solver", [*NEWTONS, "hz", "fr", "dy", "wolfe", "exact", "bb"])
def test_a_loose_tolerance(solver: str) -> None:
    """In Rosenbrock's valley the gradient is small from (0.8, 0.65) on, far from the minimum."""
    r = (SOLVERS | OTHERS)[solver](rosenbrock, [-1.2, 1.0], rosenbrock_gradient, rosenbrock_hessian, tol=1e-3)
    assert r.success
    np.testing.assert_allclose(r.x, 1.0, atol=5e-3)


@pytest.mark.parametrize("solver", ["hz", "wolfe"])
def test_cost_of_the_distance_check(solver: str) -> None:
    """At most ten pairs of gradients, and none while the gradient is large."""
    g = np.random.default_rng(0)
    a = g.normal(size=(40, 20))
    h = np.eye(20) + a.T @ a / 40
    r = SOLVERS[solver](lambda x: float(x @ h @ x) / 2, np.ones(20), lambda x: h @ x, lambda x: h)
    assert r.success, r.message
    assert r.njev <= r.nfev + 20


@pytest.mark.parametrize("power", [4, 6, 8])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_degenerate_minimum(solver: str, power: int) -> None:
    """x^8 has no step that is small relative to x."""
    r = SOLVERS[solver](
        lambda x: float(np.sum(x**power)),
        [1.0, 2.0],
        lambda x: power * x ** (power - 1),
        lambda x: np.diag(power * (power - 1) * x ** (power - 2)),
    )
    assert r.success, r.message
    assert r.fun < 1e-11


@pytest.mark.parametrize("solver", [solve.newton, solve.conjugate_gradient, solve.steepest_descent])
@pytest.mark.parametrize("offset", [1e4, 1e8, 1e10])
def test_an_offset_does_not_end_the_run_at_its_start(solver: Any, offset: float) -> None:
    """Differences of a function whose values are large relative to their changes use longer steps."""
    r = solver(lambda x: float((x[0] - 1) ** 2 + (x[1] - 2) ** 2) + offset, [3.0, -1.0])
    assert r.success, r.message
    # What is left is the rounding of the offset.
    assert r.fun - offset <= 16 * np.spacing(offset)


@pytest.mark.parametrize("offset", [1e4, 1e8, 1e10])
def test_an_offset_in_a_valley(offset: float) -> None:
    for solver in (solve.newton, solve.conjugate_gradient):
        r = solver(lambda x: rosenbrock(x) + offset, [-1.2, 1.0])
        assert r.success, r.message
        np.testing.assert_allclose(r.x, 1.0, atol=0.05)


@pytest.mark.parametrize("damping", ["trust-region", "levenberg"])
@pytest.mark.parametrize("derivatives", ["", "jac", "jac hess"])
@pytest.mark.parametrize("n", [3, pytest.param(130, marks=pytest.mark.full)])
def test_an_unused_variable_stays(damping: str, derivatives: str, n: int) -> None:
    """A singular H has many steps to the minimum; long ones change such variables without effect."""

    def hessian(x: Array) -> Array:
        h = np.zeros((n, n))
        h[:2, :2] = rosenbrock_hessian(x[:2])
        return h

    all_of_them = {"jac": lambda x: np.r_[rosenbrock_gradient(x[:2]), np.zeros(n - 2)], "hess": hessian}
    given = {name: all_of_them[name] for name in derivatives.split()}
    start = np.r_[-1.2, 1.0, np.arange(2.0, n)]
    r = solve.newton(lambda x: rosenbrock(x[:2]), start, damping=damping, **given)
    assert r.success, r.message
    np.testing.assert_array_equal(r.x[2:], start[2:])
    np.testing.assert_allclose(r.x[:2], 1.0, atol=1e-4)
    assert not r.hess[2:].any()
    assert abs(r.lambda_min) < 1e-3


def test_the_shortest_step_along_a_null_space() -> None:
    """|A x - b|^2 with a null space that is not an axis: the minimum nearest to the start."""
    a, b, start = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), np.array([2.0, 3.0]), np.array([3.0, -1.0, 4.0])
    r = solve.newton(
        lambda x: float(np.sum((a @ x - b) ** 2)),
        start,
        jac=lambda x: 2 * a.T @ (a @ x - b),
        hess=lambda x: 2 * a.T @ a,
    )
    assert r.success, r.message
    np.testing.assert_allclose(r.x, start + np.linalg.lstsq(a, b - a @ start, rcond=None)[0], atol=1e-9)


def test_descent_along_a_flat_variable() -> None:
    r = solve.newton(
        lambda x: float((x[0] - 3) ** 2 - x[1] ** 3 + x[1] ** 4),
        [1.0, 0.0],
        jac=lambda x: np.array([2 * (x[0] - 3), -3 * x[1] ** 2 + 4 * x[1] ** 3]),
        hess=lambda x: np.diag([2.0, -6 * x[1] + 12 * x[1] ** 2]),
    )
    assert r.success, r.message
    np.testing.assert_allclose(r.x, [3.0, 0.75], atol=1e-6)


@pytest.mark.parametrize("solver", [solve.conjugate_gradient, solve.steepest_descent, solve.lbfgs])
@pytest.mark.parametrize("jac", ["given", "2-point", "3-point"])
@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("start", [[1.0, 1e-9], [1.0, 1e-12], [3.0, 1e-7]])
def test_a_saddle_with_a_slope_below_the_tolerance(solver: Any, jac: str, offset: float, start: list[float]) -> None:
    """x0^2 - x1^2 + x1^4: the slope along x1 is far smaller than that along x0 was."""
    r = solver(
        lambda x: float(offset + x[0] ** 2 - x[1] ** 2 + x[1] ** 4),
        start,
        jac=(lambda x: np.array([2 * x[0], -2 * x[1] + 4 * x[1] ** 3])) if jac == "given" else jac,
    )
    assert r.success, r.message
    np.testing.assert_allclose(np.abs(r.x), [0.0, np.sqrt(0.5)], atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_unbounded_function_ends() -> None:
    """-x0 + x1^2: far out, a step of the length that changed the first x no longer changes x."""
    r = solve.lbfgs(lambda x: float(-x[0] + x[1] ** 2), [1.0, 1.0], jac=lambda x: np.array([-1.0, 2 * x[1]]))
    assert r.status == -6
    assert r.nfev < 5000


def test_saddle_checks_stay_within_bounds() -> None:
    seen: list[Array] = []

    def f(x: Array) -> float:
        seen.append(x.copy())
        return float(x[0] ** 2 - x[1] ** 2 + x[1] ** 4)

    r = solve.lbfgs(f, [1.0, 1e-9], bounds=([-2.0, -1e-8], [2.0, 0.5]))
    assert r.success, r.message
    np.testing.assert_allclose(r.x, [0.0, 0.5], atol=1e-5)
    assert all(-2 <= x[0] <= 2 and -1e-8 <= x[1] <= 0.5 for x in seen)


# Maxima near zero: no step that is short relative to x changes f


@pytest.mark.parametrize("solver", [*SOLVERS, *OTHERS])
@pytest.mark.parametrize("start", [1e-9, -1e-9, 1e-12])
def test_a_maximum_near_zero_is_left(solver: str, start: float) -> None:
    r = (SOLVERS | OTHERS)[solver](
        lambda x: float(np.cos(x[0])), [start], lambda x: -np.sin(x), lambda x: -np.cos(x)[:, None]
    )
    assert r.success, r.message
    assert r.fun == pytest.approx(-1.0, abs=1e-9)


DIFFERENCES = [solve.newton, solve.conjugate_gradient, solve.steepest_descent, solve.lbfgs]


@pytest.mark.parametrize("solver", DIFFERENCES)
@pytest.mark.parametrize("jac", ["2-point", "3-point", "cs"])
@pytest.mark.parametrize("start", [1e-5, 1e-9, -1e-9, 1e-12, 1e-15])
def test_a_maximum_near_zero_is_left_by_differences(solver: Any, jac: str, start: float) -> None:
    r = solver(lambda x: np.cos(x[0]), [start], jac=jac)
    assert r.success, r.message
    assert r.fun == pytest.approx(-1.0, abs=1e-4)
    assert r.nfev < 1500


@pytest.mark.parametrize("solver", DIFFERENCES)
@pytest.mark.parametrize("start", [[1e-9, 1e-9], [1e-9, -1e-10], [-1e-7, 0.0]])
def test_the_top_of_a_hill_is_left_by_differences(solver: Any, start: list[float]) -> None:
    r = solver(lambda x: float(1 + np.exp(-(x[0] ** 2) - 2 * x[1] ** 2)), start)
    assert r.fun < 1.001


@pytest.mark.parametrize("solver", DIFFERENCES[:3])
def test_vectorized_differences_leave_a_maximum(solver: Any) -> None:
    r = solver(lambda x: np.cos(x[:, 0]) if x.ndim == 2 else np.cos(x[0]), [1e-9], vectorized=True)
    assert r.success, r.message
    assert r.fun == pytest.approx(-1.0, abs=1e-4)


@pytest.mark.parametrize("solver", DIFFERENCES)
def test_an_unused_variable_costs_few_evaluations(solver: Any) -> None:
    seen: list[Array] = []

    def f(x: Array) -> float:
        seen.append(x.copy())
        return float(1 + (x[0] - 3) ** 2)

    r = solver(f, [1.0, 5.0])
    assert r.success, r.message
    assert abs(r.x[0] - 3) < 1e-3
    assert len(seen) < 150


# Derivatives of another function


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gradient_of_the_wrong_sign_is_a_failure(solver: str) -> None:
    r = SOLVERS[solver](rosenbrock, [-1.2, 1.0], lambda x: -rosenbrock_gradient(x), rosenbrock_hessian)
    assert (r.status, r.success) == (-9, False)
    assert "The derivative does not agree with the function along x[0]" in r.message
    assert r.fun == rosenbrock(r.x) <= rosenbrock(np.array([-1.2, 1.0]))
    np.testing.assert_array_equal(r.jac, -rosenbrock_gradient(r.x))


def test_a_wrong_gradient_is_named_by_its_variable() -> None:
    r = solve.lbfgs(
        lambda x: float((x[0] - 1) ** 2 + (x[1] - 3) ** 2),
        [1.0, 1.0],
        jac=lambda x: np.array([2 * (x[0] - 1), -2 * (x[1] - 3)]),
    )
    assert r.status == -9
    assert "along x[1]: the slope of the function is 4 by jac, and -4 by differences" in r.message
    n = 100
    wrong = [solve.lbfgs, solve.conjugate_gradient, solve.newton]
    for solver in wrong:
        r = solver(
            lambda x: float(x @ x),
            np.ones(n),
            jac=lambda x: -2 * x,
            **({"hess": lambda x: 2 * np.eye(n)} if solver is solve.newton else {}),
        )
        assert r.status == -9
        assert "along the gradient: the slope" in r.message


def test_one_wrong_element_of_the_gradient() -> None:
    r = solve.newton(
        lambda x: float((x[0] - 1) ** 2 + (x[1] - 3) ** 2),
        [1.0, 1.0],
        jac=lambda x: np.array([2 * (x[0] - 1), -2 * (x[1] - 3)]),
        hess=lambda x: 2 * np.eye(2),
    )
    assert r.status == -9
    assert "along x[1]: the slope of the function is 4 by jac, and -4 by differences" in r.message


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_end_of_precision_is_not_a_wrong_derivative(solver: str) -> None:
    r = SOLVERS[solver](rosenbrock, [-1.2, 1.0], rosenbrock_gradient, rosenbrock_hessian, gtol=0.0, maxiter=3000)
    assert r.status != -9


def test_a_kink_is_not_a_wrong_derivative() -> None:
    for solver in (solve.conjugate_gradient, solve.steepest_descent):
        r = solver(lambda x: float(np.abs(x - 1).sum()), [3.0, 5.0], jac=lambda x: np.sign(x - 1) + 0.0)
        assert r.status != -9


@pytest.mark.parametrize("solver", [solve.newton, solve.conjugate_gradient, solve.steepest_descent])
@pytest.mark.parametrize("start", [0.375, 0.4821428571428571, 0.6428571428571428, 1.982142857142857, 3.0])
def test_differences_at_a_minimum_of_zero(solver: Any, start: float) -> None:
    """One-sided differences are not zero at the minimum, where f is 0 and any step increases it."""
    r = solver(lambda x: float(2.5 * (1 - np.exp(-1.5 * (x[0] - 0.5))) ** 2), [start])
    assert r.success, r.message
    assert r.x[0] == pytest.approx(0.5, abs=1e-6)
    assert r.nfev < 500
