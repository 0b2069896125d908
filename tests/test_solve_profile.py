"""Intervals by profile likelihood, and the sandwich covariance of squares."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any
# The treated cells of Bates and Watts's Puromycin experiment, and Marske's biochemical oxygen demand: R's data sets.
CONC = np.repeat([0.02, 0.06, 0.11, 0.22, 0.56, 1.1], 2)
RATE = np.array([76.0, 47, 97, 107, 123, 139, 159, 152, 191, 201, 207, 200])
TIME = np.array([1.0, 2, 3, 4, 5, 7])
DEMAND = np.array([8.3, 10.3, 19.0, 16.0, 15.6, 19.8])
G = np.random.default_rng(7)


def michaelis(c: Array, v: float, k: float) -> Array:
    return v * c / (k + c)


def rise(t: Array, a: float, lrc: float) -> Array:
    return a * (1 - np.exp(-np.exp(min(lrc, 700.0)) * t))


def decay(t: Array, a: float, b: float, o: float) -> Array:
    return a * np.exp(-b * t) + o


T = np.linspace(0, 3, 30)
Y = decay(T, 2.0, 1.5, 0.3) + 0.1 * G.normal(size=30)


def test_r() -> None:
    """The output of ``confint`` of R's ``nls``, which interpolates by splines."""
    fit = solve.curve_fit(michaelis, CONC, RATE, [200, 0.05])
    ends = fit.conf_interval(0.95)
    np.testing.assert_allclose(ends, [[197.30212848, 229.29006490], [0.04692517, 0.08615995]], rtol=2e-4)
    np.testing.assert_array_equal(fit.conf_interval(0.95, "k"), ends[1:])
    np.testing.assert_array_equal(fit.conf_interval(0.95, ["k", 0]), ends[::-1])
    one = fit.profile("k", 0.95, 5)
    np.testing.assert_allclose(one.value[[0, 2, 4]], [ends[1, 0], fit.popt[1], ends[1, 1]], rtol=1e-12)
    np.testing.assert_allclose(one.tau[[0, 4]], [-2.2281388519649385, 2.2281388519649385], rtol=1e-7)
    np.testing.assert_array_equal(one.x[:, 1], one.value)


@pytest.mark.parametrize(("model", "x", "y", "start"), [(michaelis, CONC, RATE, [200, 0.05]), (decay, T, Y, [1, 1, 0])])
def test_lmfit(model: Any, x: Array, y: Array, start: Any) -> None:
    lmfit = pytest.importorskip("lmfit", reason="lmfit is not installed")
    peer = lmfit.Model(model)
    names = peer.param_names
    result = peer.fit(y, peer.make_params(**dict(zip(names, start, strict=True))), **{peer.independent_vars[0]: x})
    want = result.conf_interval(sigmas=[0.9])
    got = solve.curve_fit(model, x, y, start).conf_interval(0.9)
    for name, ends in zip(names, got, strict=True):
        np.testing.assert_allclose(ends, [want[name][0][1], want[name][-1][1]], rtol=1e-3)


def test_ends_match_the_sum_of_squares() -> None:
    """With SciPy or NumPy: for a given rate the rest of the model is linear."""
    fit = solve.curve_fit(decay, T, Y, [1, 1, 0])

    def squares(rate: float) -> float:
        design = np.stack([np.exp(-rate * T), np.ones_like(T)], axis=1)
        return float(np.linalg.lstsq(design, Y, rcond=None)[1][0])

    quantile = 1.7032884457221265  # of 27 degrees of freedom, for 90 %
    allowed = 2 * fit.fit.cost * (1 + quantile**2 / 27)
    for end in fit.conf_interval(0.9, "b")[0]:
        assert squares(end) == pytest.approx(allowed, rel=1e-8)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_linear_model_has_the_intervals_of_its_covariance(absolute: bool, dtype: Any) -> None:
    y = (0.5 * T + 1 + 0.2 * G.normal(size=30)).astype(dtype)
    t = T.astype(dtype)
    fit = solve.levenberg_marquardt(lambda p: p[0] * t + p[1] - y, np.ones(2, dtype), absolute_sigma=absolute)
    rtol = 1e-6 if dtype == np.float64 else 5e-3
    np.testing.assert_allclose(fit.conf_interval(0.9), fit.confidence_intervals(0.9), rtol=rtol)


def test_one_parameter() -> None:
    data = np.array([1.0, 2.0, 3.0])
    fit = solve.levenberg_marquardt(lambda p: p[0] - data, [0.0])
    np.testing.assert_allclose(fit.conf_interval(0.9), fit.confidence_intervals(0.9), rtol=1e-8)
    fit = solve.levenberg_marquardt(lambda p: p[0] * p[1] - data, [1.0, 0.5], fixed={1: 0.5})
    np.testing.assert_allclose(fit.conf_interval(0.9), fit.confidence_intervals(0.9), rtol=1e-8)


def test_the_scale_of_a_parameter_does_not_matter() -> None:
    rate = solve.curve_fit(decay, T, Y, [1, 1, 0]).conf_interval(0.95, "b")[0]
    log = solve.curve_fit(lambda t, a, b, o: decay(t, a, np.exp(b), o), T, Y, [1, 0, 0])
    np.testing.assert_allclose(np.exp(log.conf_interval(0.95, "b")[0]), rate, rtol=1e-6)


def test_ends_that_are_infinite_or_bounds() -> None:
    fit = solve.curve_fit(rise, TIME, DEMAND, [19, -0.6])
    low, high = fit.conf_interval(0.99)[0]
    assert 0 < low < fit.popt[0]
    assert high == math.inf
    one = fit.profile("a", 0.99, 6)
    assert np.isfinite(one.value).all()
    assert (np.diff(one.tau) > 0).all()
    held = solve.curve_fit(rise, TIME, DEMAND, [19, -0.6], bounds=([15, -np.inf], [25, np.inf]))
    np.testing.assert_array_equal(held.conf_interval(0.99, "a"), [[15, 25]])


def test_fixed_and_tied_parameters() -> None:
    small = solve.curve_fit(lambda t, b, o: decay(t, 2 * b, b, o), T, Y, [1, 0.2]).conf_interval(0.9)
    fit = solve.curve_fit(decay, T, Y, [1, 1, 0.2], ties={"a": lambda b: 2 * b})
    ends = fit.conf_interval(0.9)
    np.testing.assert_allclose(ends[1:], small, rtol=1e-6)
    assert np.isnan(ends[0]).all()
    with pytest.raises(ValueError, match="parameters: a is tied"):
        fit.conf_interval(0.9, "a")
    fixed = solve.curve_fit(decay, T, Y, [1, 1, 0.2], fixed={"o": 0.3})
    np.testing.assert_array_equal(fixed.conf_interval(0.9, "o"), [[0.3, 0.3]])
    want = solve.curve_fit(lambda t, a, b: decay(t, a, b, 0.3), T, Y, [1, 1]).conf_interval(0.9)
    np.testing.assert_allclose(fixed.conf_interval(0.9)[:2], want, rtol=1e-6)
    with pytest.raises(ValueError, match="parameter: o is fixed"):
        fixed.profile("o")


def test_masked_residuals() -> None:
    holes = Y.copy()
    holes[4] = np.nan
    keep = np.isfinite(holes)
    want = solve.levenberg_marquardt(lambda p: (decay(T, *p) - Y)[keep], [1.0, 1, 0]).conf_interval(0.9)
    fit = solve.levenberg_marquardt(lambda p: decay(T, *p) - holes, [1.0, 1, 0], nan_policy="omit")
    np.testing.assert_allclose(fit.conf_interval(0.9), want, rtol=1e-7)


def test_fits_without_a_profile() -> None:
    def f(p: Array) -> Array:
        return decay(T, *p) - Y

    fit = solve.levenberg_marquardt(f, [1.0, 1, 0])
    for level, error in ((95, ValueError), ("0.9", TypeError)):
        with pytest.raises(error, match=r"level: expected a number in \(0, 1\)"):
            fit.conf_interval(level)
    with pytest.raises(ValueError, match="parameters: there is no parameter 3"):
        fit.conf_interval(0.9, 3)
    with pytest.raises(ValueError, match="points: must be >= 3"):
        fit.profile(0, points=2)
    for other in (copy.deepcopy(fit), pickle.loads(pickle.dumps(fit))):
        assert repr(other) == repr(fit)
        with pytest.raises(ValueError, match="the fit has lost its functions"):
            other.conf_interval()
    with pytest.raises(ValueError, match="with a robust loss give absolute_sigma=True"):
        solve.levenberg_marquardt(f, [1.0, 1, 0], loss="huber").conf_interval()
    with pytest.raises(ValueError, match="the fit has not converged"):
        solve.levenberg_marquardt(f, [1.0, 1, 0], max_nfev=2).conf_interval()
    with pytest.raises(ValueError, match="degrees of freedom"):
        solve.levenberg_marquardt(lambda p: f(p)[:3], [1.0, 1, 0]).conf_interval()


def test_a_robust_loss_with_a_known_scale() -> None:
    data = np.array([0.0, 0.1, -0.2, 0.15, 5.0])
    fit = solve.levenberg_marquardt(lambda p: p[0] - data, [0.0], loss="huber", absolute_sigma=True)

    def cost(x: float) -> float:
        z = (x - data) ** 2
        return float(np.where(z <= 1, z, 2 * np.sqrt(z) - 1).sum() / 2)

    for end in fit.conf_interval(0.95)[0]:
        assert 2 * (cost(end) - fit.cost) == pytest.approx(1.959963984540054**2, rel=1e-7)


def test_a_fit_that_is_not_the_minimum() -> None:
    """Two minima; the fit found the worse one."""
    fit = solve.levenberg_marquardt(lambda p: np.array([p[0] ** 2 - 1, 0.3 * (p[0] - 1), 2.0]), [-1.0])
    assert fit.success
    assert fit.x[0] < -0.8
    with pytest.raises(RuntimeError, match="less than that of the fit"):
        fit.conf_interval(0.5)


# The sandwich

X = np.stack([np.ones(40), np.linspace(0, 2, 40), np.linspace(0, 2, 40) ** 2], axis=1)
UNEQUAL = X @ [1.0, 2.0, -0.5] + (0.05 + 0.3 * X[:, 1]) * G.normal(size=40)


def test_the_sandwich_of_a_linear_model() -> None:
    bread = np.linalg.inv(X.T @ X)
    best = bread @ X.T @ UNEQUAL
    r = X @ best - UNEQUAL
    want = bread @ (X.T * r**2) @ X @ bread
    fit = solve.levenberg_marquardt(lambda p: X @ p - UNEQUAL, np.ones(3), covariance="sandwich")
    np.testing.assert_allclose(fit.cov, want * 40 / 37, rtol=1e-6)
    np.testing.assert_allclose(fit.x_std, np.sqrt(np.diag(want) * 40 / 37), rtol=1e-6)
    known = solve.levenberg_marquardt(lambda p: X @ p - UNEQUAL, np.ones(3), covariance="sandwich", absolute_sigma=True)
    np.testing.assert_allclose(known.cov, want, rtol=1e-6)
    popt, pcov = solve.curve_fit(lambda x, a, b, c: X @ [a, b, c], X[:, 1], UNEQUAL, covariance="sandwich")
    np.testing.assert_allclose(popt, best, rtol=1e-7)
    np.testing.assert_allclose(pcov, fit.cov, rtol=1e-6)


def test_the_sandwich_of_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    want = api.OLS(UNEQUAL, X).fit(cov_type="HC1")
    fit = solve.levenberg_marquardt(lambda p: X @ p - UNEQUAL, np.ones(3), covariance="sandwich")
    np.testing.assert_allclose(fit.x, want.params, rtol=1e-8)
    np.testing.assert_allclose(fit.cov, want.cov_params(), rtol=1e-6)


def test_the_sandwich_in_any_units_and_with_ties() -> None:
    def fit(size: float, **more: Any) -> Any:
        return solve.levenberg_marquardt(
            lambda p: size * (decay(T, *p) - Y), [1.0, 1, 0.2], covariance="sandwich", jac="3-point", **more
        )

    np.testing.assert_allclose(fit(1e60).x_std, fit(1.0).x_std, rtol=1e-5)
    tied = fit(1.0, ties={0: lambda x: 2 * x[1]})
    small = solve.levenberg_marquardt(
        lambda p: decay(T, 2 * p[0], *p) - Y, [1.0, 0.2], covariance="sandwich", jac="3-point"
    )
    np.testing.assert_allclose(tied.cov[1:, 1:], small.cov, rtol=1e-6)
    np.testing.assert_allclose(tied.x_std[0], 2 * small.x_std[0], rtol=1e-6)


def test_the_sandwich_is_the_spread_of_the_estimates() -> None:
    """A line through points with more scatter to the right: the plain covariance underestimates the spread of 500
    fits."""
    rng = np.random.default_rng(2)
    t = np.linspace(0, 1, 60)
    jacobian = np.stack([t, np.ones_like(t)], axis=1)
    slopes, sandwich, plain = [], [], []
    for _ in range(500):
        y = t + rng.normal(size=60) * t**4
        for errors, kind in ((sandwich, "sandwich"), (plain, None)):
            fit = solve.levenberg_marquardt(
                lambda p, y=y: jacobian @ p - y, [1.0, 0.0], jac=lambda p: jacobian, covariance=kind
            )
            errors.append(fit.x_std[0])
        slopes.append(fit.x[0])
    spread = np.std(slopes)
    assert np.mean(sandwich) == pytest.approx(spread, rel=0.1)
    assert np.mean(plain) < 0.85 * spread


def test_invalid_estimates() -> None:
    with pytest.raises(ValueError, match="covariance: expected None or 'sandwich', got 'HC3'"):
        solve.levenberg_marquardt(lambda p: p, [1.0], covariance="HC3")
    fit = solve.levenberg_marquardt(
        lambda p: np.array([p[0] + p[1] - 1, p[0] + p[1], 1.0]),
        [1.0, 1.0],
        jac=lambda p: [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]],
        covariance="sandwich",
    )
    assert np.isinf(fit.x_std).all()


def test_residuals_that_are_rounding_errors_have_no_profile() -> None:
    t = np.linspace(0.1, 4, 40)

    def model(x: Array, a: float, b: float, c: float) -> Array:
        return a * np.exp(-b * x) + c

    fit = solve.curve_fit(model, t, model(t, 2, 1, 0.5), [2.1, 1, 0.5])
    with pytest.raises(ValueError, match="needs residuals"):
        fit.conf_interval()
