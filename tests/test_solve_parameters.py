"""Fixed and tied parameters: each fit equals that of a model written without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any
T = np.linspace(0, 4, 60)
G = np.random.default_rng(5)


def peaks(t: Array, a: float, c: float, w: float, b: float, d: float, v: float) -> Array:
    return a * np.exp(-(((t - c) / w) ** 2)) + b * np.exp(-(((t - d) / v) ** 2))


def slopes(t: Array, a: float, c: float, w: float, b: float, d: float, v: float) -> Array:
    columns = []
    for height, centre, width in ((a, c, w), (b, d, v)):
        u = (t - centre) / width
        e = np.exp(-(u**2))
        columns += [e, height * e * 2 * u / width, height * e * 2 * u * u / width]
    return np.stack(columns, axis=1)


Y = peaks(T, 2.0, 1.0, 0.4, 1.0, 2.5, 0.8) + 0.02 * G.normal(size=T.size)
START = [1.5, 1.1, 0.5, 1.2, 2.4, 0.6]
TIES = {"v": lambda w: 2 * w, "b": lambda x: 0.5 * x[0] ** 2 / x[2] * 0.2 + 0.5}


def residuals(p: Array) -> Array:
    return peaks(T, *p) - Y


def small(t: Array, a: float, c: float, w: float) -> Array:
    return peaks(t, a, c, w, 0.1 * a**2 / w + 0.5, 2.5, 2 * w)


@pytest.mark.parametrize("jac", [None, "3-point", slopes])
def test_a_fit_matches_the_reduced_model(jac: Any) -> None:
    want = solve.curve_fit(small, T, Y, START[:3], jac="3-point")
    got = solve.curve_fit(peaks, T, Y, START, jac=jac, fixed={"d": 2.5}, ties=TIES)
    a, _, w = want.popt
    np.testing.assert_allclose(got.popt, [*want.popt, 0.1 * a**2 / w + 0.5, 2.5, 2 * w], rtol=1e-7)
    np.testing.assert_allclose(got.pcov[:3, :3], want.pcov, rtol=1e-5)
    # To first order: db = 0.2 a / w da - 0.1 a^2 / w^2 dw, dv = 2 dw.
    by_free = np.array([[0.2 * a / w, 0, -0.1 * a**2 / w**2], [0, 0, 0], [0, 0, 2]])
    np.testing.assert_allclose(got.pcov[3:, 3:], by_free @ want.pcov @ by_free.T, rtol=1e-5)
    np.testing.assert_allclose(got.pcov[3:, :3], by_free @ want.pcov, rtol=1e-5)
    np.testing.assert_allclose(got.x_std, np.sqrt(np.diag(got.pcov)), rtol=1e-12)
    assert got.x_std[4] == 0
    assert got.fit.dof == 57
    np.testing.assert_array_equal(got.fit.fixed, [0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(got.fit.tied, [0, 0, 0, 1, 0, 1])
    assert got.fit.jac.shape == (60, 6)
    assert not got.fit.jac[:, 3:].any()
    np.testing.assert_allclose(got.fit.grad, got.fit.jac.T @ got.fit.fun, atol=1e-12)
    lines = str(got).splitlines()
    assert lines[4].endswith("  tied")
    assert lines[5].endswith("  fixed")
    assert lines[6].endswith("  tied")
    _, low, high = got.predict(T, 0.9)
    _, other_low, other_high = want.predict(T, 0.9)
    np.testing.assert_allclose(low, other_low, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(high, other_high, rtol=1e-5, atol=1e-8)


def test_lmfit_finds_the_same() -> None:
    lmfit = pytest.importorskip("lmfit", reason="lmfit is not installed")
    model = lmfit.Model(peaks)
    p = model.make_params(**dict(zip("acwbdv", START, strict=True)))
    p["d"].set(value=2.5, vary=False)
    p["v"].set(expr="2*w")
    p["b"].set(expr="0.1*a**2/w + 0.5")
    want = model.fit(Y, p, t=T, fit_kws={"ftol": 1e-13, "xtol": 1e-13})
    got = solve.curve_fit(peaks, T, Y, START, fixed={"d": 2.5}, ties=TIES)
    np.testing.assert_allclose(got.popt, [want.params[k].value for k in "acwbdv"], rtol=1e-6)
    np.testing.assert_allclose(got.x_std, [want.params[k].stderr for k in "acwbdv"], rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_least_squares_by_index(dtype: Any) -> None:
    start = np.array(START, dtype=dtype)
    start[3] = 0.8
    seen: list[Any] = []
    r = solve.levenberg_marquardt(
        residuals, start, fixed={4: 2.5}, ties={5: lambda x: 2 * x[2]},
        bounds=([0, 0, 0, 0, 0, -np.inf], [9, 9, 9, 0.9, 9, np.inf]), x_scale=[1, 1, 1, 1, 2, 3],
        callback=lambda x: seen.append(x.copy()),
    )  # fmt: skip
    assert r.success
    assert r.x.dtype == r.cov.dtype == dtype
    assert r.x[5] == dtype(2) * r.x[2]
    assert r.x[4] == 2.5
    assert r.x[3] == dtype(0.9)
    np.testing.assert_array_equal(r.active_mask, [0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(seen[-1][4:], [2.5, dtype(2) * seen[-1][2]])
    np.testing.assert_allclose(r.fun, residuals(r.x), atol=1e-5 if dtype == np.float32 else 1e-15)


def test_booleans_keep_the_start() -> None:
    start = np.array(START)
    r = solve.levenberg_marquardt(residuals, start, fixed=[False, False, False, False, True, True])
    np.testing.assert_array_equal(r.x[4:], start[4:])
    np.testing.assert_array_equal(start, START)
    one = solve.levenberg_marquardt(residuals, start, fixed={4: start[4], 5: start[5]})
    np.testing.assert_array_equal(r.x, one.x)
    np.testing.assert_array_equal(r.cov, one.cov)


@pytest.mark.parametrize("options", [{"jac": "cs"}, {"jac": "3-point"}, {"loss": "huber", "f_scale": 0.05}])
def test_other_options(options: Any) -> None:
    def tied(p: Array) -> Array:
        return residuals([*p, 2.5, 2 * p[2]])

    want = solve.levenberg_marquardt(tied, START[:4], **options)
    got = solve.levenberg_marquardt(residuals, START, fixed={4: 2.5}, ties={5: lambda x: 2 * x[2]}, **options)
    np.testing.assert_allclose(got.x[:4], want.x, rtol=1e-9)
    np.testing.assert_allclose(got.cov[:4, :4], want.cov, rtol=1e-7)


def test_a_stack_of_points() -> None:
    def stacked(p: Array) -> Array:
        return residuals(p) if p.ndim == 1 else np.stack([residuals(row) for row in p])

    options: dict[str, Any] = {"fixed": {4: 2.5}, "ties": {5: lambda x: 2 * x[2]}, "jac": "2-point"}
    got = solve.levenberg_marquardt(stacked, START, vectorized=True, **options)
    want = solve.levenberg_marquardt(residuals, START, **options)
    np.testing.assert_allclose(got.x, want.x, rtol=1e-9)


def test_undefined_covariance() -> None:
    def f(p: Array) -> Array:
        return p[0] + p[1] - Y

    r = solve.levenberg_marquardt(f, [1, 1, 1, 1], fixed={2: 1.0}, ties={3: lambda x: x[2] + 1})
    np.testing.assert_array_equal(r.x_std, [np.inf, np.inf, 0, 0])
    assert np.isinf(r.cov[:2, :2]).all()
    assert not r.cov[2:].any()
    np.testing.assert_array_equal(r.x[2:], [1, 2])


def test_derivatives_that_are_wrong_are_named_by_the_index_of_all() -> None:
    wrong = {"jac": lambda p: -slopes(T, *p), "fixed": {0: 2.0, 1: 1.0, 2: 0.4, 4: 2.5, 5: 0.8}}
    r = solve.levenberg_marquardt(residuals, START, **wrong)
    assert r.status == -9
    assert "x[3]" in r.message or "last step" in r.message
    with pytest.raises(ValueError, match=r"check_derivatives: jac\[\d+, "):
        solve.levenberg_marquardt(residuals, START, check_derivatives=True, **wrong)


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (TypeError, "must return a number, got .*; it gets single parameters if", {"ties": {"v": lambda W: 2 * W}}),
        (ValueError, r"fixed: there is no parameter 'A' \(did you mean 'a'\?\); they are a, c, w", {"fixed": {"A": 1}}),
        (ValueError, "fixed: there is no parameter 6; there are 6", {"fixed": {6: 1}}),
        (TypeError, "fixed: a: expected a number, got str", {"fixed": {"a": "1"}}),
        (ValueError, "fixed: a must be finite", {"fixed": {"a": np.inf}}),
        (TypeError, "fixed: expected a dict", {"fixed": ["a"]}),
        (ValueError, "fixed: no parameter is left", {"fixed": np.ones(6, dtype=bool)}),
        (TypeError, "ties: expected a dict", {"ties": [1]}),
        (TypeError, "ties: expected a function for v, got float; a constant", {"ties": {"v": 2.0}}),
        (TypeError, "ties: expected a function for v, got str; write an expression", {"ties": {"v": "2 * w"}}),
        (ValueError, "ties: v is fixed", {"fixed": {"v": 1}, "ties": {"v": lambda w: w}}),
        (ValueError, "ties: v is nan at the start", {"ties": {"v": lambda b: b, "b": lambda a: a}}),
        (TypeError, "ties: the function of v must return a number", {"ties": {"v": lambda x: x}}),
        (ValueError, r"bounds: x\[5\] is tied", {"ties": {"v": lambda w: w}, "bounds": (0, 9)}),
        (ValueError, "p0: variable 4 is 2.5, outside its bounds", {"fixed": {"d": 2.5}, "bounds": (0, 2.45)}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        solve.curve_fit(peaks, T, Y, START, **options)


def test_exceptions_of_a_tie_propagate() -> None:
    def tie(x: Array) -> Array:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        solve.levenberg_marquardt(residuals, START, ties={0: tie})


def test_a_batch_fixes_by_name() -> None:
    rate = np.array([0.5, 1.0, 2.0])
    data = 3 * np.exp(-rate[:, None] * T) + 1 + 0.01 * G.normal(size=(3, T.size))
    options: dict[str, Any] = {"coordinates": T, "covariance": True}
    got = solve.levenberg_marquardt_batch("exponential", [2.0, 1.0, 0.0], data, fixed={"offset": 1.0}, **options)
    for k in range(3):
        one = solve.curve_fit(
            lambda t, a, b, o: a * np.exp(-b * t) + o, T, data[k], [2, 1, 0], fixed={2: 1.0}, jac="3-point"
        )
        np.testing.assert_allclose(got.x[k], one.popt, rtol=1e-7)
        np.testing.assert_allclose(got.x_std[k], one.x_std, rtol=1e-5)
    each = solve.levenberg_marquardt_batch("exponential", [2.0, 1.0, 0.0], data, fixed={"rate": rate}, **options)
    np.testing.assert_array_equal(each.x[:, 1], rate)
    assert each.success.all()
    with pytest.raises(ValueError, match="fixed: there is no parameter 'ofset'"):
        solve.levenberg_marquardt_batch("exponential", [2.0, 1.0, 0.0], data, fixed={"ofset": 1.0})
    with pytest.raises(ValueError, match="fixed: expected booleans of shape"):
        solve.levenberg_marquardt_batch("exponential", [2.0, 1.0, 0.0], data, fixed=[0])


def test_arguments_of_ties_with_defaults() -> None:
    t = np.linspace(0, 1, 9)
    y = 2 * t + 6 + 0.1 * np.cos(9 * t)

    def line(x: Array, slope: float, level: float) -> Array:
        return slope * x + level

    got = solve.curve_fit(line, t, y, ties={"level": lambda slope, factor=3: factor * slope})
    want = solve.curve_fit(line, t, y, ties={"level": lambda slope: 3 * slope})
    np.testing.assert_array_equal(got.popt, want.popt)
