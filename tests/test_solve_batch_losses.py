"""Batches with robust losses, counts, and parameters that are fixed in some problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk.solve import levenberg_marquardt, levenberg_marquardt_batch

Array = np.ndarray[Any, Any]
ROBUST = ("huber", "soft_l1", "cauchy", "arctan", "tukey")
T = np.linspace(0, 3, 25)
TRUE = np.array([3.0, 1.2, 0.5])
START = np.array([2.5, 1.0, 0.4])


@pytest.fixture(autouse=True)
def machine_settings() -> Iterator[None]:
    isa, threads = adaptk.get_isa(), adaptk.get_num_threads()
    yield
    adaptk.set_isa(isa)
    adaptk.set_num_threads(threads)


def decay(p: Array, t: Array = T) -> Array:
    return p[0] * np.exp(-p[1] * t) + p[2]


def slope(p: Array, t: Array = T) -> Array:
    e = np.exp(-p[1] * t)
    return np.stack([e, -p[0] * t * e, np.ones_like(t)], axis=1)


def with_outliers(k: int) -> Array:
    rng = np.random.default_rng(3)
    data = decay(TRUE) + 0.05 * rng.normal(size=(k, len(T)))
    data[:, 4] += 2.0
    data[:, 17] -= 1.0
    return data


@pytest.mark.parametrize("loss", ROBUST)
def test_matches_single_fits(loss: str) -> None:
    data, scale = with_outliers(11), np.linspace(0.1, 0.2, 11)
    # Tukey's loss has a second minimum, as for most data.
    start = TRUE * 1.01 if loss == "tukey" else START
    r = levenberg_marquardt_batch("exponential", start, data, coordinates=T, loss=loss, f_scale=scale, covariance=True)
    assert r.success.all()
    for i, (y, c) in enumerate(zip(data, scale, strict=True)):
        one = levenberg_marquardt(lambda p, y=y: decay(p) - y, start, jac=slope, loss=loss, f_scale=c)
        np.testing.assert_allclose(r.x[i], one.x, rtol=1e-7)
        np.testing.assert_allclose(r.cost[i], one.cost, rtol=1e-9)
        np.testing.assert_allclose(r.cov[i], one.cov, rtol=1e-5)
        np.testing.assert_allclose(r.x_std[i] ** 2, np.diag(r.cov[i]), rtol=1e-12)
    # The outliers would move a least-squares fit by far more.
    squares = levenberg_marquardt_batch("exponential", START, data, coordinates=T)
    assert np.abs(r.x - TRUE).max() < 0.5 * np.abs(squares.x - TRUE).max()


@pytest.mark.parametrize("loss", [*ROBUST, "poisson"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_same_bits(loss: str, dtype: Any) -> None:
    data = (np.round(20 * with_outliers(13)).clip(0) if loss == "poisson" else with_outliers(13)).astype(dtype)
    start = 20 * START if loss == "poisson" else START
    start[1] = 1.0

    def fit(y: Array) -> Any:
        return levenberg_marquardt_batch("exponential", start, y, coordinates=T, loss=loss, f_scale=0.2)

    wanted = fit(data)
    assert wanted.success.all()
    for isa in adaptk.available_isas():
        for threads in (1, 3):
            adaptk.set_isa(isa)
            adaptk.set_num_threads(threads)
            again = fit(data)
            for key in ("x", "cost", "nit", "status"):
                np.testing.assert_array_equal(again[key], wanted[key], f"{isa}, {threads} threads, {key}")
    np.testing.assert_array_equal(fit(data[6:7]).x[0], wanted.x[6])


@pytest.mark.parametrize("loss", ["huber", "tukey"])
def test_units_of_the_data(loss: str) -> None:
    data = with_outliers(5)
    fits = [
        levenberg_marquardt_batch(
            "exponential", START * [s, 1, s], s * data, coordinates=T, loss=loss, f_scale=0.15 * s, covariance=True
        )
        for s in (1.0, 2.0**700, 2.0**-600)
    ]
    for r, s in zip(fits[1:], (2.0**700, 2.0**-600), strict=True):
        np.testing.assert_array_equal(r.x, fits[0].x * [s, 1, s])
        np.testing.assert_allclose(r.x_std, fits[0].x_std * [s, 1, s], rtol=1e-14)


def test_weights_and_residuals_of_robust_losses() -> None:
    # A weight of 4 doubles the residual, also in the loss.
    data = with_outliers(3)
    w = np.where(np.arange(len(T)) % 2, 4.0, 1.0)
    r = levenberg_marquardt_batch("exponential", START, data, coordinates=T, loss="soft_l1", f_scale=0.1, weights=w)
    for x, y in zip(r.x, data, strict=True):
        root = np.sqrt(w)
        one = levenberg_marquardt(
            lambda p, y=y, root=root: root * (decay(p) - y),
            START,
            jac=lambda p, root=root: root[:, None] * slope(p),
            loss="soft_l1",
            f_scale=0.1,
        )
        np.testing.assert_allclose(x, one.x, rtol=1e-7)


def test_tukey_without_weight_at_the_start() -> None:
    data = np.stack([decay(TRUE), decay(TRUE) + 100])
    r = levenberg_marquardt_batch("exponential", START, data, coordinates=T, loss="tukey", f_scale=3.0)
    assert r.status[0] > 0
    assert r.status[1] == -4
    np.testing.assert_array_equal(r.x[1], START)
    np.testing.assert_allclose(r.cost[1], len(T) * 9 / 6)


def test_infinite_residuals_are_rejected() -> None:
    # arctan's and Tukey's rho are finite there.
    y = np.ones((1, 4))
    for loss in ("arctan", "tukey"):
        r = levenberg_marquardt_batch("exponential", [1.0, -1e4, 0.0], y, loss=loss, f_scale=1.0)
        assert r.status[0] == -3


def test_counts_of_a_known_shape() -> None:
    # model = a e(t): the maximum-likelihood a is the sum of the counts over that of e; its variance a over that of e.
    rng = np.random.default_rng(0)
    y = rng.poisson(decay(np.array([4.0, 1.0, 0.0])), size=(40, len(T))).astype(float)
    e = np.exp(-T)
    fixed = {"rate": 1.0, "offset": 0.0}
    r = levenberg_marquardt_batch(
        "exponential", [3.0, 1.0, 0.0], y, coordinates=T, fixed=fixed, loss="poisson", covariance=True
    )
    assert r.success.all()
    a = y.sum(axis=1) / e.sum()
    np.testing.assert_allclose(r.x[:, 0], a, rtol=1e-12)
    np.testing.assert_allclose(r.cov[:, 0, 0], a / e.sum(), rtol=1e-11)
    model = a[:, None] * e
    with np.errstate(divide="ignore", invalid="ignore"):
        deviance = np.where(y > 0, y * np.log(y / model), 0) - (y - model)
    np.testing.assert_allclose(r.cost, deviance.sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("name", ["exponential", "function"])
def test_counts_against_scipy(name: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(1)
    true = np.array([30.0, 1.2, 5.0])
    y = rng.poisson(decay(true), size=(6, len(T)))
    model: Any = name if name == "exponential" else lambda t, a, b, c: a * np.exp(-b * t) + c
    w = np.where(np.arange(len(T)) % 3, 1.0, 2.0)
    r = levenberg_marquardt_batch(model, [25.0, 1.0, 4.0], y, coordinates=T, loss="poisson", weights=w, covariance=True)
    assert r.success.all()
    for i in range(6):

        def gradient(p: Array, y: Array = y[i]) -> Array:
            return slope(p).T @ (w * (1 - y / decay(p)))

        root = optimize.root(gradient, r.x[i] * 1.01, tol=1e-14)
        np.testing.assert_allclose(r.x[i], root.x, rtol=1e-8)
        j = slope(r.x[i])
        np.testing.assert_allclose(
            r.cov[i], np.linalg.inv(j.T @ ((w / decay(r.x[i]))[:, None] * j)), rtol=1e-7, atol=1e-9
        )


def test_negative_models_are_rejected() -> None:
    rng = np.random.default_rng(2)
    y = rng.poisson(np.exp(-T) * 3, size=(50, len(T)))
    r = levenberg_marquardt_batch("exponential", [2.0, 1.0, 0.5], y, coordinates=T, loss="poisson")
    model = r.x[:, :1] * np.exp(-r.x[:, 1:2] * T) + r.x[:, 2:]
    assert (model > 0).all()
    bad = levenberg_marquardt_batch("exponential", [2.0, 1.0, -9.0], y, coordinates=T, loss="poisson")
    assert (bad.status == -3).all()


def test_parameters_fixed_in_some_problems() -> None:
    data = decay(TRUE) + 0.05 * np.random.default_rng(0).normal(size=(9, len(T)))
    rng = np.random.default_rng(1)
    fixed = rng.random((9, 3)) < 0.4
    assert len({tuple(row) for row in fixed}) > 3
    start = np.where(fixed, TRUE, START) * (1 + 0.01 * np.arange(9))[:, None]
    r = levenberg_marquardt_batch("exponential", start, data, coordinates=T, fixed=fixed, covariance=True)
    for i, row in enumerate(fixed):
        one = levenberg_marquardt_batch(
            "exponential", start[i], data[i : i + 1], coordinates=T, fixed=row, covariance=True
        )
        np.testing.assert_array_equal(r.x[i], one.x[0])
        np.testing.assert_array_equal(r.cov[i], one.cov[0])
        np.testing.assert_array_equal(r.x[i][row], start[i][row])
        assert (r.x_std[i] == 0).tolist() == row.tolist()
    again = levenberg_marquardt_batch("exponential", start, data, coordinates=T, fixed=fixed, starts=3)
    np.testing.assert_array_equal(again.x[fixed], start[fixed])
    assert (again.cost <= r.cost * (1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loss": "square"}, "loss: expected one of .*'poisson'"),
        ({"loss": "huber", "f_scale": 0.0}, "f_scale: must be positive and finite"),
        ({"loss": "huber", "f_scale": [1.0, 2.0]}, r"f_scale: expected a number or shape \(3,\)"),
        ({"loss": "poisson"}, "data: counts of loss='poisson' must be >= 0"),
        ({"fixed": np.zeros((2, 3), bool)}, r"fixed: expected booleans of shape \(3,\) or \(3, 3\)"),
    ],
)
def test_errors(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        levenberg_marquardt_batch("exponential", START, -np.ones((3, len(T))), coordinates=T, **options)
