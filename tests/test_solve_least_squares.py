"""Least squares: covariances, bounds, losses, published problems."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from adaptk import _nist, solve
from solve_problems import (
    NOISY,
    TRUTH,
    Array,
    T,
    decay,
    decay_jacobian,
)


def test_covariance_matches_its_definition() -> None:
    r = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian)
    j = decay_jacobian(r.x)
    inverse = np.linalg.inv(j.T @ j)
    np.testing.assert_allclose(r.cov, inverse * 2 * r.cost / 37, rtol=1e-7)
    np.testing.assert_allclose(r.x_std, np.sqrt(np.diag(r.cov)), rtol=1e-15)
    absolute = solve.levenberg_marquardt(
        lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0], jac=decay_jacobian, absolute_sigma=True
    )
    np.testing.assert_allclose(absolute.cov, inverse, rtol=1e-7)


def test_undefined_covariance() -> None:
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
def test_robust_losses_if_all_are_outliers(loss: str, tolerance: float | None) -> None:
    """From a start at which every residual is an outlier: success means that the gradient of the cost is small."""
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
def test_geodesic_acceleration_in_a_curved_valley() -> None:
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
    """The same curve with outliers under Cauchy's loss at 0.5, against a derivative-free search."""
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
    """The residual m^4 - |p - c|^2 with radius m^2 is linear in c and m^4 - |c|^2: against the linear solution."""
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
    """Exact points of an ellipse, from a circle around them: the fit finds the ellipse, up to the order of its axes."""
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
    """Odometry and ranges to the corridor's end, each in units of its deviation, against the normal equations."""
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
