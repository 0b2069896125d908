"""Functions without a minimum, functions that do not change along a line, and starts at saddle points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from adaptk import solve
from solve_problems import NEWTONS, SOLVERS

Array = Any
LBFGS = {"lbfgs": lambda f, x, g, h, **o: solve.lbfgs(f, x, jac=g, **o)}

# Functions without a minimum: value, gradient, Hessian
FALLING: dict[str, tuple[Callable[..., Any], ...]] = {
    "line": (lambda x: float(x[0] - 2 * x[1]), lambda x: np.array([1.0, -2.0]), lambda x: np.zeros((2, 2))),
    "slope across a valley": (
        lambda x: float(-x[0] + x[1] ** 2),
        lambda x: np.array([-1.0, 2 * x[1]]),
        lambda x: np.diag([0.0, 2.0]),
    ),
    "exponential": (
        lambda x: float(-np.exp(x[0]) + x[1] ** 2),
        lambda x: np.array([-np.exp(x[0]), 2 * x[1]]),
        lambda x: np.diag([-np.exp(x[0]), 2.0]),
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("solver", [s for s in SOLVERS | LBFGS if s != "hess by differences"])
def test_a_function_without_a_minimum_ends_soon(solver: str, name: str) -> None:
    f, g, h = FALLING[name]
    seen: list[Array] = []

    def watched(x: Array) -> float:
        seen.append(x)
        return f(x)

    r = (SOLVERS | LBFGS)[solver](watched, [1.0, 1.0], g, h)
    assert not r.success
    assert np.isfinite(seen).all()  # the function is called with finite points only
    assert r.fun == f(r.x) < -1000
    if solver in ("sd wolfe", "sd exact", "cg hz") and name == "slope across a valley":
        # Rounding across the valley outweighs the slope along it, which these searches need: they go down to the limit.
        assert r.status == 0, r.message
        return
    assert r.status == -6, r.message
    assert "no minimum" in r.message
    assert len(seen) < 1000
    assert r.fun < -1e100


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("damping", ["trust-region", "levenberg"])
def test_a_logarithmic_fall_is_no_minimum(damping: str) -> None:
    """-log(1 + x^2): the curvature along x is far below that along y times the rounding."""
    r = solve.newton(
        lambda x: float(-np.log1p(x[0] ** 2) + x[1] ** 2),
        [1.0, 1.0],
        jac=lambda x: np.array([-2 * x[0] / (1 + x[0] ** 2), 2 * x[1]]),
        hess=lambda x: np.diag([-2 * (1 - x[0] ** 2) / (1 + x[0] ** 2) ** 2, 2.0]),
        damping=damping,
    )
    assert r.status == -6, r.message


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_start_far_out_is_not_a_fall() -> None:
    for solver in (solve.newton, solve.conjugate_gradient, solve.steepest_descent, solve.lbfgs):
        r = solver(lambda x: float(np.abs(x[0] / 1e160 - 1) ** 2), [3e160], jac=lambda x: 2e-160 * (x / 1e160 - 1))
        assert r.status != -6, r.message


# Functions of one combination of the variables, a'x: the Hessian is singular everywhere

LIFTED: dict[str, tuple[Callable[..., Any], ...]] = {
    "square": (lambda s: (s - 1) ** 2, lambda s: 2 * (s - 1), lambda s: 2.0),
    "cosh": (lambda s: np.cosh(s - 1), lambda s: np.sinh(s - 1), lambda s: np.cosh(s - 1)),
    "quartic": (lambda s: (s - 3) ** 4, lambda s: 4 * (s - 3) ** 3, lambda s: 12 * (s - 3) ** 2),
    "two wells": (lambda s: (s * s - 1) ** 2, lambda s: 4 * s * (s * s - 1), lambda s: 12 * s * s - 4),
    "sine": (lambda s: np.sin(s), lambda s: np.cos(s), lambda s: -np.sin(s)),
}
NULL_SPACE = {name: NEWTONS[name] for name in ("trust-region", "levenberg", "hessp", "hess by differences")}


@pytest.mark.parametrize("name", LIFTED)
@pytest.mark.parametrize("solver", NULL_SPACE)
@pytest.mark.parametrize("n", [2, 6, 120])
def test_a_function_of_one_combination_of_the_variables(solver: str, name: str, n: int) -> None:
    phi, d, dd = LIFTED[name]
    rng = np.random.default_rng(n)
    a = np.ones(2) if n == 2 else rng.normal(size=n) / np.sqrt(n)
    x0 = np.array([0.3, -2.0]) if n == 2 else rng.normal(size=n)
    r = NULL_SPACE[solver](
        lambda x: float(phi(a @ x)), x0, lambda x: d(a @ x) * a, lambda x: dd(a @ x) * np.outer(a, a)
    )
    assert r.status > 0, r.message
    assert abs(d(a @ r.x)) < 1e-7
    assert dd(a @ r.x) > -1e-7
    assert r.nit < 60
    # At the minimum of the quartic nothing is left of H but errors.
    if name != "quartic":
        assert np.linalg.norm(r.x - x0) < 4 * np.linalg.norm(x0)


# Starts at saddle points, where differences of f are longer than the gradient tells

SADDLES: dict[str, tuple[Callable[[Array], float], list[float], float]] = {
    "x^2 - y^2 + y^4": (lambda x: float(x[0] ** 2 - x[1] ** 2 + x[1] ** 4), [0.0, 0.0], -0.25),
    "the same near 5": (lambda x: float(5 + x[0] ** 2 - x[1] ** 2 + x[1] ** 4), [0.0, 0.0], 4.75),
    "xy": (lambda x: float(x[0] * x[1] + (x @ x) ** 2 / 4), [0.0, 0.0], -0.25),
    "shifted": (lambda x: float((x[0] - 1) ** 2 - (x[1] - 2) ** 2 + (x[1] - 2) ** 4), [1.0, 2.0], -0.25),
    "turned": (
        lambda x: float((x[0] + x[1]) ** 2 - (x[0] - x[1] - 1) ** 2 + (x[0] - x[1] - 1) ** 4),
        [0.5, -0.5],
        -0.25,
    ),
}


@pytest.mark.parametrize("name", SADDLES)
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("damping", ["trust-region", "levenberg"])
def test_a_saddle_is_left_by_differences(name: str, jac: str, damping: str) -> None:
    f, x0, lowest = SADDLES[name]
    r = solve.newton(f, x0, jac=jac, damping=damping)
    assert r.success, r.message
    assert r.fun == pytest.approx(lowest, abs=1e-9)
    assert r.nit < 20
    assert r.nfev < 300
