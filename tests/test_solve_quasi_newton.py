"""Newton's method with Hessians from quasi-Newton updates."""

from __future__ import annotations

from typing import Any

import mgh
import numpy as np
import pytest
from adaptk import solve
from adaptk.solve._quasi_newton import QuasiNewton

Array = Any


def rosenbrock(x: Array) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def slope(x: Array) -> Array:
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
    g[1:] += 200 * (x[1:] - x[:-1] ** 2)
    return g


@pytest.mark.parametrize("update", ["bfgs", "sr1"])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("n", [2, 20])
def test_rosenbrock(update: str, pair: bool, n: int) -> None:
    calls = 0

    def gradient(x: Array) -> Array:
        nonlocal calls
        calls += 1
        return slope(x)

    start = np.tile([-1.2, 1.0], n // 2)
    if pair:
        r = solve.newton(lambda x: (rosenbrock(x), gradient(x)), start, jac=True, hess=update)
    else:
        r = solve.newton(rosenbrock, start, jac=gradient, hess=update)
        assert calls == r.njev
    assert r.success
    np.testing.assert_allclose(slope(r.x), 0, atol=1e-5)
    if n == 2:
        np.testing.assert_allclose(r.x, 1, rtol=1e-6)


NAMES = ("helical valley", "Bard", "Box, three dimensions", "Brown and Dennis", "Kowalik and Osborne")


@pytest.mark.parametrize("update", ["bfgs", "sr1"])
@pytest.mark.parametrize("p", [p for p in mgh.PROBLEMS if p.name in NAMES])
def test_problems_of_more_garbow_and_hillstrom(p: Any, update: str) -> None:
    with np.errstate(all="ignore"):
        r = solve.newton(
            lambda z: float(np.sum(p.residuals(z) ** 2)),
            p.start,
            jac=lambda z: 2 * p.jacobian(z).T @ p.residuals(z),
            hess=update,
        )
    assert r.success
    assert r.fun <= p.minimum * (1 + 1e-7) + 1e-12


@pytest.mark.parametrize("update", ["bfgs", "sr1"])
def test_the_secant_equation(update: str) -> None:
    """For a quadratic SR1 has the full Hessian after n steps; both updates have it along the last step."""
    g = np.random.default_rng(0)
    root = g.normal(size=(5, 5))
    a = root @ root.T + np.eye(5)
    model = QuasiNewton(None, lambda x: a @ x, False, update, np.float64)
    points = g.normal(size=(7, 5))
    for before, x in zip([None, *points], points, strict=False):
        b = model.hess(x)
        if before is not None:
            np.testing.assert_allclose(b @ (x - before), a @ (x - before), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(b, b.T, rtol=1e-10, atol=1e-12)
    if update == "sr1":
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6)
    assert np.linalg.eigvalsh(b).min() > 0


def test_negative_curvature() -> None:
    """BFGS stays positive definite; SR1 follows the curvature of the gradients."""
    a = np.diag([2.0, -3.0])
    for update in ("bfgs", "sr1"):
        model = QuasiNewton(None, lambda x: a @ x, False, update, np.float64)
        for x in np.random.default_rng(1).normal(size=(6, 2)):
            b = model.hess(x)
        low = np.linalg.eigvalsh(b).min()
        assert low > 0 if update == "bfgs" else low == pytest.approx(-3, rel=1e-6)


def test_errors() -> None:
    for jac in (None, "2-point", "3-point"):
        with pytest.raises(ValueError, match="hess: 'bfgs' needs a gradient written in Python; give jac"):
            solve.newton(rosenbrock, [-1.2, 1.0], jac=jac, hess="bfgs")
    with pytest.raises(ValueError, match=r"check_derivatives: jac\["):
        solve.newton(rosenbrock, [-1.2, 1.0], jac=lambda x: -slope(x), hess="sr1", check_derivatives=True)
    with pytest.raises(ValueError, match="hess: expected one of"):
        solve.newton(rosenbrock, [-1.2, 1.0], jac=slope, hess="dfp")


def test_float32_and_the_other_damping() -> None:
    r = solve.newton(rosenbrock, np.array([-1.2, 1.0], np.float32), jac=slope, hess="bfgs")
    assert r.success
    assert r.x.dtype == r.hess.dtype == np.float32
    np.testing.assert_allclose(r.x, 1, rtol=2e-2)
    r = solve.newton(rosenbrock, [-1.2, 1.0], jac=slope, hess="bfgs", damping="levenberg")
    assert r.success
    np.testing.assert_allclose(r.x, 1, rtol=1e-5)
