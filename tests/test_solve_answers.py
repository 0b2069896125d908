"""Return values of functions and callbacks other than plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any


class Table:
    """Like a data frame of one column: an object that becomes an array of shape (m, 1)."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return np.array(self.values, dtype=dtype)[:, None]


@pytest.mark.parametrize("answer", [True, np.True_])
def test_a_callback_stops_with_true_of_python_and_of_numpy(answer: Any) -> None:
    f, g = lambda x: float(np.sum(x**4)), lambda x: 4 * x**3
    start = [3.0, 2.0]
    for r in (
        solve.newton(f, start, jac=g, hess=lambda x: np.diag(12 * x**2), callback=lambda x: answer),
        solve.conjugate_gradient(f, start, jac=g, callback=lambda x: answer),
        solve.levenberg_marquardt(lambda x: x**2 + 1, start, callback=lambda intermediate_result: answer),
        solve.cg(np.diag([1.0, 2.0]), [1.0, 1.0], callback=lambda x: answer),
    ):
        assert (r.status, r.nit) == (-1, 1)


@pytest.mark.parametrize("answer", [False, np.False_, None, 1, "yes", np.ones(2)])
def test_other_return_values_do_not_stop(answer: Any) -> None:
    assert solve.levenberg_marquardt(lambda x: x**2 + 1, [3.0, 2.0], callback=lambda x: answer).success


def test_residuals_in_a_table_are_refused_by_their_shape() -> None:
    with pytest.raises(ValueError, match=r"fun must return a 1-D array of residuals, got one of shape \(3, 1\)"):
        solve.levenberg_marquardt(lambda x: Table(x - [1.0, 2.0, 3.0]), [0.0, 0.0, 0.0])


def test_masked_elements_are_refused() -> None:
    masked = np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False])
    with pytest.raises(ValueError, match=r"fun must return no masked elements"):
        solve.levenberg_marquardt(lambda x: masked - x[0], [0.0])
    with pytest.raises(ValueError, match=r"jac must return no masked elements"):
        solve.levenberg_marquardt(lambda x: x[0] - np.ones(3), [0.0], jac=lambda x: masked[:, None])
    with pytest.raises(ValueError, match=r"jac must return no masked elements"):
        solve.conjugate_gradient(lambda x: float(x @ x), [1.0, 1.0, 1.0], jac=lambda x: masked * x)
    with pytest.raises(ValueError, match=r"jac must return no masked elements"):
        solve.lbfgs(lambda x: float(x @ x), [1.0, 1.0, 1.0], jac=lambda x: masked * x)
    for solver in (solve.newton, solve.lbfgs):
        with pytest.raises(ValueError, match=r"fun must return no masked elements"):
            solver(lambda x: np.ma.masked, [1.0])
    with pytest.raises(ValueError, match=r"x0: has masked elements"):
        solve.levenberg_marquardt(lambda x: x, masked)


def test_arrays_with_an_empty_mask() -> None:
    whole = np.ma.masked_array([1.0, 2.0, 3.0], mask=False)
    assert solve.levenberg_marquardt(lambda x: x[0] - whole, [0.0]).x[0] == pytest.approx(2.0)
    assert solve.levenberg_marquardt(lambda x: x - 1, whole).success


@pytest.mark.parametrize("loss", ["linear", "huber"])
def test_every_key_is_there_if_the_start_is_not_finite(loss: str) -> None:
    bad = solve.levenberg_marquardt(lambda x: x * np.nan, [1.0, 2.0], loss=loss)
    good = solve.levenberg_marquardt(lambda x: x - 1, [1.0, 2.0], loss=loss)
    assert bad.status == -3
    assert set(bad) == set(good)
    for name in ("x_std", "cov", "grad"):
        assert bad[name].shape == good[name].shape
        assert np.isnan(bad[name]).all()
    assert "nan" in repr(bad)
    assert np.isnan(bad.confidence_intervals(0.9)).all()


@pytest.mark.parametrize("feature", [1e3, 2e6])
def test_the_covariance_is_that_of_the_last_point(feature: float) -> None:
    """The Jacobian may be skipped after a last step that is short relative to x, but a peak may be narrow."""
    width = 3e3
    centre = width * feature
    t = centre + width * np.linspace(-6, 6, 201)
    rng = np.random.default_rng(1)

    def peak(p: Array) -> Array:
        return p[0] / (1 + ((t - p[1]) / p[2]) ** 2) + p[3]

    def slopes(p: Array) -> Array:
        u = (t - p[1]) / p[2]
        d = 1 / (1 + u * u)
        return np.stack([d, 2 * p[0] * d * d * u / p[2], 2 * p[0] * d * d * u * u / p[2], np.ones_like(u)], axis=1)

    y = peak(np.array([1.0, centre, width, 0.1])) + 0.01 * rng.normal(size=201)
    reused = 0
    for _ in range(20):
        x0 = [1 + 0.3 * rng.normal(), centre + 1000 * rng.normal(), width * np.exp(0.3 * rng.normal()), 0.1]
        fit = solve.levenberg_marquardt(lambda p: peak(p) - y, x0, jac=slopes)
        reused += not np.array_equal(fit.jac, slopes(fit.x))
        steps = np.diag([1e-4, 1e-4 * width, 1e-4 * width, 1e-4])
        j = np.stack([(peak(fit.x + h) - peak(fit.x - h)) / (2 * h.max()) for h in steps], axis=1)
        size = np.linalg.norm(j, axis=0)
        cov = np.linalg.inv((j / size).T @ (j / size)) / np.outer(size, size) * (fit.fun @ fit.fun / 197)
        std = np.sqrt(np.diag(cov))
        np.testing.assert_allclose(fit.x_std, std, rtol=1e-5)
        np.testing.assert_allclose(fit.cov / np.outer(std, std), cov / np.outer(std, std), atol=1e-5)
    assert reused > 0
