"""Losses given as functions, and scales estimated from the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve
from adaptk.solve._losses import TUNING

Array = Any
T = np.linspace(0, 3, 60)
G = np.random.default_rng(4)
Y = 2 * np.exp(-1.5 * T) + 0.3 + 0.05 * G.normal(size=60)
Y[::9] += G.uniform(0.5, 3, size=Y[::9].size)


def residuals(p: Array) -> Array:
    return p[0] * np.exp(-p[1] * T) + p[2] - Y


def jacobian(p: Array) -> Array:
    e = np.exp(-p[1] * T)
    return np.stack([e, -p[0] * T * e, np.ones_like(T)], axis=1)


def huber(z: Array) -> Array:
    s = np.sqrt(np.maximum(z, 1))
    inner = z <= 1
    return np.stack([np.where(inner, z, 2 * s - 1), np.where(inner, 1, 1 / s), np.where(inner, 0, -0.5 / s**3)])


def soft_l1(z: Array) -> Array:
    u = 1 + z
    return np.stack([2 * z / (np.sqrt(u) + 1), u**-0.5, -0.5 * u**-1.5])


def cauchy(z: Array) -> Array:
    return np.stack([np.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2])


def arctan(z: Array) -> Array:
    w = 1 + z * z
    return np.stack([np.arctan(z), 1 / w, -2 * z / w**2])


def tukey(z: Array) -> Array:
    v = np.maximum(1 - z, 0)
    return np.stack([(1 - v**3) / 3, v**2, -2 * v])


FUNCTIONS = {f.__name__: f for f in (huber, soft_l1, cauchy, arctan, tukey)}


@pytest.mark.parametrize("jac", [None, "cs", jacobian])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_built_in_losses_as_functions(name: str, jac: Any) -> None:
    start = [1.8, 1.4, 0.2]
    want = solve.levenberg_marquardt(residuals, start, jac="3-point", loss=name, f_scale=0.15)
    got = solve.levenberg_marquardt(residuals, start, jac=jac, loss=FUNCTIONS[name], f_scale=0.15)
    assert got.success
    np.testing.assert_allclose(got.x, want.x, rtol=2e-5)
    np.testing.assert_allclose(got.cov, want.cov, rtol=1e-3, atol=1e-9)
    assert got.cost == pytest.approx(want.cost, rel=1e-9)
    np.testing.assert_allclose(got.fun, residuals(got.x), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got.jac, jacobian(got.x), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.grad, 0, atol=1e-5)


def test_squares_as_a_function() -> None:
    def squares(z: Array) -> Array:
        return np.stack([z, np.ones_like(z), np.zeros_like(z)])

    want = solve.levenberg_marquardt(residuals, [1.8, 1.4, 0.2], jac=jacobian, covariance="sandwich")
    got = solve.levenberg_marquardt(residuals, [1.8, 1.4, 0.2], jac=jacobian, loss=squares, f_scale=3.0)
    np.testing.assert_allclose(got.x, want.x, rtol=1e-9)
    np.testing.assert_allclose(got.cov, want.cov, rtol=1e-6)


def test_scipy_takes_the_same_function() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")

    def fair(z: Array) -> Array:  # 2 (u - log(1 + u)), u^2 = z
        u = np.sqrt(np.maximum(z, 1e-300))
        return np.stack([2 * (u - np.log1p(u)), 1 / (1 + u), -0.5 / (u * (1 + u) ** 2)])

    options: dict[str, Any] = {"loss": fair, "f_scale": 0.1, "ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14}
    want = optimize.least_squares(residuals, [1.8, 1.4, 0.2], jac=jacobian, **options)
    got = solve.levenberg_marquardt(residuals, [1.8, 1.4, 0.2], jac=jacobian, loss=fair, f_scale=0.1)
    np.testing.assert_allclose(got.x, want.x, rtol=1e-5)
    assert got.cost == pytest.approx(want.cost, rel=1e-10)


def test_with_other_options() -> None:
    got = solve.levenberg_marquardt(
        residuals, np.array([1.8, 1.4, 0.3], np.float32), loss=cauchy, f_scale=0.15, fixed={2: 0.3},
        bounds=([0, 0, 0], [9, 1.4, 9]), mask=T > 2.5,
    )  # fmt: skip
    want = solve.levenberg_marquardt(
        lambda p: (residuals([p[0], p[1], 0.3]))[T <= 2.5], [1.8, 1.4], loss="cauchy", f_scale=0.15,
        bounds=([0, 0], [9, 1.4]),
    )  # fmt: skip
    assert got.x.dtype == got.cov.dtype == np.float32
    np.testing.assert_allclose(got.x[:2], want.x, rtol=1e-3)
    np.testing.assert_array_equal(got.active_mask, [0, 1, 0])


# The tuning constants


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_efficiency_under_normal_errors(name: str) -> None:
    """(E psi')^2 / E psi^2 = 0.95, by the trapezoidal rule."""
    x = np.linspace(0, 40, 400_001)
    density = np.exp(-x * x / 2)
    density /= density.sum()
    _, first, second = FUNCTIONS[name]((x / TUNING[name]) ** 2)
    psi, slope = first * x, first + 2 * second * (x / TUNING[name]) ** 2
    assert (slope @ density) ** 2 / (psi**2 @ density) == pytest.approx(0.95, abs=2e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_scale_is_that_of_the_fits_own_residuals(name: str) -> None:
    r = solve.levenberg_marquardt(residuals, [1.0, 1.0, 0.0], loss=name, f_scale="mad")
    assert r.f_scale == pytest.approx(TUNING[name] * np.median(np.abs(r.fun)) / 0.6744897501960817, rel=1e-6)
    want = solve.levenberg_marquardt(residuals, r.x, loss=name, f_scale=r.f_scale)
    np.testing.assert_allclose(r.x, want.x, rtol=1e-6)
    np.testing.assert_allclose(r.x, [2, 1.5, 0.3], rtol=0.15)
    assert r.nfev > want.nfev
    sigma = r.f_scale / TUNING[name]
    assert 0.03 < sigma < 0.1


def test_the_scale_follows_the_units() -> None:
    one = solve.levenberg_marquardt(residuals, [1.0, 1.0, 0.0], loss="tukey", f_scale="mad")
    far = solve.levenberg_marquardt(lambda p: 1e6 * residuals(p), [1.0, 1.0, 0.0], loss="tukey", f_scale="mad")
    np.testing.assert_allclose(far.x, one.x, rtol=1e-5)
    assert far.f_scale == pytest.approx(1e6 * one.f_scale, rel=1e-5)


def test_statsmodels_has_the_same_regression() -> None:
    api = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    design = np.stack([np.ones_like(T), T], axis=1)
    y = 1 + 2 * T + 0.1 * G.normal(size=60)
    y[::7] += 4
    want = api.RLM(y, design, M=api.robust.norms.HuberT(t=TUNING["huber"])).fit(tol=1e-12, maxiter=500)
    got = solve.levenberg_marquardt(lambda p: design @ p - y, [0.0, 0.0], loss="huber", f_scale="mad")
    np.testing.assert_allclose(got.x, want.params, rtol=1e-5)
    assert got.f_scale / TUNING["huber"] == pytest.approx(want.scale, rel=1e-4)


def test_a_function_with_a_scale_from_the_data() -> None:
    def wide(z: Array) -> Array:
        k = TUNING["cauchy"] ** 2
        rho, first, second = cauchy(z / k)
        return np.stack([k * rho, first, second / k])

    want = solve.levenberg_marquardt(residuals, [1.0, 1.0, 0.0], loss="cauchy", f_scale="mad")
    got = solve.levenberg_marquardt(residuals, [1.0, 1.0, 0.0], loss=wide, f_scale="mad")
    np.testing.assert_allclose(got.x, want.x, rtol=1e-4)
    assert got.f_scale * TUNING["cauchy"] == pytest.approx(want.f_scale, rel=1e-4)


def test_data_without_errors() -> None:
    y = 2 * T + 1
    r = solve.levenberg_marquardt(lambda p: p[0] * T + p[1] - y, [0.0, 0.0], loss="huber", f_scale="mad")
    assert r.success
    np.testing.assert_allclose(r.x, [2, 1], rtol=1e-12)


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "f_scale: expected a number or 'mad', got 'iqr'", {"loss": "huber", "f_scale": "iqr"}),
        (ValueError, "f_scale: 'mad' is for a robust loss", {"f_scale": "mad"}),
        (ValueError, "loss: expected one of", {"loss": "lorentz", "f_scale": "mad"}),
        (ValueError, r"loss must return rho, rho' and rho'', shape \(3, 60\)", {"loss": lambda z: z}),
        (ValueError, "loss: rho must be >= 0", {"loss": lambda z: np.stack([-z, -z, z])}),
        (ValueError, "f_scale: must be > 0", {"loss": cauchy, "f_scale": 0.0}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        solve.levenberg_marquardt(residuals, [1.0, 1.0, 0.0], **options)


def test_the_table_names_the_loss_and_its_scale() -> None:
    import copy
    import pickle

    t = np.linspace(0, 1, 20)
    y = 1 + 2 * t + np.sin(50 * t) / 20

    def line(p: Array) -> Array:
        return p[0] + p[1] * t - y

    def squares(z: Array) -> Array:
        return np.stack([z, np.ones_like(z), np.zeros_like(z)])

    for loss, f_scale, name in (("cauchy", 0.25, "cauchy"), (squares, 2, "squares"), ("huber", "mad", "huber")):
        fit = solve.levenberg_marquardt(line, [0.0, 0.0], loss=loss, f_scale=f_scale)
        scale = f"{fit.f_scale:.6g}"
        assert f_scale in ("mad", fit.f_scale)
        assert f"by loss '{name}' with f_scale {scale}, 20 residuals" in repr(fit)
        assert repr(pickle.loads(pickle.dumps(fit))) == repr(copy.copy(fit)) == repr(fit)
        curve = solve.curve_fit(lambda x, a, b: a + b * x, t, y, loss=loss, f_scale=f_scale)
        assert f"by loss '{name}' with f_scale {scale}, 20 points" in str(curve)
    assert "loss" not in repr(solve.levenberg_marquardt(line, [0.0, 0.0]))
