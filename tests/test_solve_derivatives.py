"""Derivatives that do not belong to the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any
T = np.linspace(0, 1, 30)
Y = 2 * np.exp(-3 * T) + 0.01 * np.random.default_rng(1).normal(size=30)


def residuals(p: Array) -> Array:
    return p[0] * np.exp(-p[1] * T) - Y


def jacobian(p: Array) -> Array:
    return np.stack([np.exp(-p[1] * T), -p[0] * T * np.exp(-p[1] * T)], axis=1)


@pytest.mark.parametrize("signs", [(-1, -1), (1, -1), (-1, 1), (1, -3)])
def test_a_jacobian_of_the_wrong_sign(signs: tuple[int, int]) -> None:
    r = solve.levenberg_marquardt(residuals, [1.0, 1.0], jac=lambda p: jacobian(p) * signs)
    assert (r.status, r.success) == (-9, False)
    wrong = next(k for k in range(2) if signs[k] != 1)
    assert f"does not agree with the function along x[{wrong}]" in r.message
    assert "disagreement" not in r
    # The best point evaluated, with its own residuals.
    assert r.cost <= 0.5 * np.sum(residuals(np.ones(2)) ** 2)
    np.testing.assert_array_equal(r.fun, residuals(r.x))
    np.testing.assert_array_equal(r.jac, jacobian(r.x) * signs)


def test_bounds_are_kept_while_a_jacobian_is_checked() -> None:
    seen: list[Array] = []

    def watched(p: Array) -> Array:
        seen.append(p.copy())
        return residuals(p)

    r = solve.levenberg_marquardt(watched, [1.0, 1.0], jac=lambda p: -jacobian(p), bounds=([0.9, 0.0], [1.5, 1.5]))
    assert r.status == -9
    assert (np.array(seen) >= [0.9, 0.0]).all()
    assert (np.array(seen) <= [1.5, 1.5]).all()


def test_a_kink_is_not_a_wrong_derivative() -> None:
    """|x| has two slopes at 0; a derivative gives one of them."""
    r = solve.levenberg_marquardt(
        lambda p: np.array([abs(p[0]) + 1.0, p[1] - 2.0]),
        [0.0, 2.0],
        jac=lambda p: np.array([[1.0 if p[0] >= 0 else -1.0, 0.0], [0.0, 1.0]]),
    )
    assert r.status != -9


# check_derivatives


def test_a_right_jacobian_passes_the_check() -> None:
    assert solve.levenberg_marquardt(residuals, [1.0, 1.0], jac=jacobian, check_derivatives=True).success
    assert solve.check_derivatives(residuals, [1.0, 1.0], jac=jacobian).success
    zeros = solve.check_derivatives(residuals, np.zeros(2), jac=jacobian)
    assert zeros.success, zeros.message
    single = solve.check_derivatives(residuals, np.ones(2, np.float32), jac=jacobian)
    assert single.success, single.message


def test_the_worst_element_is_named() -> None:
    def wrong(p: Array) -> Array:
        j = jacobian(p)
        j[7, 1] *= -1
        j[3, 0] *= 1.01
        return j

    with pytest.raises(ValueError, match=r"check_derivatives: jac\[7, 1\] is .* central differences give"):
        solve.levenberg_marquardt(residuals, [1.0, 1.0], jac=wrong, check_derivatives=True)
    r = solve.check_derivatives(residuals, [1.0, 1.0], jac=wrong)
    assert (r.success, r.where) == (False, (7, 1))
    assert r.given == pytest.approx(-r.differences, rel=1e-6)
    assert r.relative == pytest.approx(2.0, rel=1e-6)


def test_gradients_and_hessians_are_checked() -> None:
    def f(x: Array) -> float:
        return float(x[0] ** 3 * x[1])

    def g(x: Array) -> Array:
        return np.array([3 * x[0] ** 2 * x[1], x[0] ** 3])

    def h(x: Array) -> Array:
        return np.array([[6 * x[0] * x[1], 3 * x[0] ** 2], [3 * x[0] ** 2, 0.0]])

    assert solve.check_derivatives(f, [2.0, 3.0], jac=g, hess=h).success
    assert solve.check_derivatives(lambda x, a: a * f(x), [2.0, 3.0], (2.0,), jac=lambda x, a: a * g(x)).success
    with pytest.raises(ValueError, match=r"check_derivatives: hess\[1, 1\] is 1 at x0"):
        solve.newton(f, [2.0, 3.0], jac=g, hess=lambda x: h(x) + np.diag([0.0, 1.0]), check_derivatives=True)
    for solver in (solve.newton, solve.conjugate_gradient, solve.steepest_descent):
        with pytest.raises(ValueError, match=r"check_derivatives: jac\[1\] is -8 at x0"):
            solver(f, [2.0, 3.0], jac=lambda x: g(x) * [1, -1], check_derivatives=True)
        with pytest.raises(ValueError, match=r"check_derivatives: jac\[0\]"):
            solver(lambda x: (f(x), 2 * g(x)), [2.0, 3.0], jac=True, check_derivatives=True)
        with pytest.raises(ValueError, match="check_derivatives: there is no jac to check"):
            solver(f, [2.0, 3.0], check_derivatives=True)
    with pytest.raises(ValueError, match=r"jac must return an array of shape \(2,\), got one of shape \(3,\)"):
        solve.check_derivatives(f, [2.0, 3.0], jac=lambda x: np.ones(3))
    with pytest.raises(TypeError, match="jac: expected a callable, got str"):
        solve.check_derivatives(f, [2.0, 3.0], jac="2-point")


def test_compiled_derivatives_are_checked() -> None:
    import ctypes

    real, pointer, user = ctypes.c_double, ctypes.POINTER(ctypes.c_double), ctypes.c_void_p

    @ctypes.CFUNCTYPE(real, ctypes.c_int, pointer, user)
    def f(n: int, x: Any, _: Any) -> float:
        return float(x[0] * x[0])

    @ctypes.CFUNCTYPE(None, ctypes.c_int, pointer, pointer, user)
    def g(n: int, x: Any, out: Any, _: Any) -> None:
        out[0] = -2 * x[0]

    with pytest.raises(ValueError, match=r"check_derivatives: jac\[0\] is -6 at x0, and central differences give 6"):
        solve.conjugate_gradient(f, [3.0], jac=g, check_derivatives=True)


# The covariance under robust losses


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "tukey"])
def test_standard_deviations_under_a_robust_loss(loss: str) -> None:
    """10% outliers, twenty times as wide: the spread of 300 fits matches the standard deviations of each."""
    g = np.random.default_rng(5)
    t = np.linspace(0, 1, 100)
    found, said = [], []
    for _ in range(300):
        noise = g.normal(size=100) * 0.1
        noise[g.random(100) < 0.1] *= 20
        y = 2 * np.exp(-3 * t) + noise
        scale = {"tukey": 0.47, "cauchy": 0.24}.get(loss, 0.15)
        r = solve.levenberg_marquardt(lambda p, y=y: p[0] * np.exp(-p[1] * t) - y, [1.8, 2.5], loss=loss, f_scale=scale)
        found.append(r.x)
        said.append(r.x_std)
    ratio = np.median(said, axis=0) / np.std(found, axis=0)
    assert (ratio > 0.8).all()
    assert (ratio < 1.2).all()
