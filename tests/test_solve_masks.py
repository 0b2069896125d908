"""Data excluded from a fit: masks, masked arrays, NaN. Complex residuals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any
T = np.linspace(0, 4, 50)
OUT = np.zeros(50, dtype=bool)
OUT[[2, 9, 40]] = True
G = np.random.default_rng(11)


def decay(t: Array, amplitude: float, rate: float, offset: float) -> Array:
    return amplitude * np.exp(-rate * t) + offset


Y = decay(T, 2.5, 1.3, 0.5) + 0.05 * G.normal(size=50)
SPOILT = np.where(OUT, 1e3, Y)
HOLES = np.where(OUT, np.nan, Y)
ERROR = G.uniform(0.05, 0.3, 50)
START = [1.0, 1.0, 0.0]


def jacobian(p: Array) -> Array:
    e = np.exp(-p[1] * T)
    return np.stack([e, -p[0] * T * e, np.ones_like(T)], axis=1)


def want(**options: Any) -> Any:
    return solve.levenberg_marquardt(lambda p: (decay(T, *p) - Y)[~OUT], START, **options)


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"mask": OUT}, SPOILT),
        ({"mask": OUT}, HOLES),
        ({"mask": OUT}, np.ma.masked_array(SPOILT, mask=OUT)),
        ({"nan_policy": "omit"}, HOLES),
        ({"nan_policy": "omit"}, np.ma.masked_array(SPOILT, mask=OUT)),
    ],
)
@pytest.mark.parametrize("jac", [False, True])
def test_residuals_that_are_left_out(options: Any, data: Array, jac: bool) -> None:
    r = solve.levenberg_marquardt(lambda p: decay(T, *p) - data, START, jac=jacobian if jac else None, **options)
    w = want(jac=(lambda p: jacobian(p)[~OUT]) if jac else None)
    np.testing.assert_array_equal(r.x, w.x)
    np.testing.assert_array_equal(r.cov, w.cov)
    np.testing.assert_array_equal(r.fun, w.fun)
    np.testing.assert_array_equal(r.mask, OUT)
    assert r.dof == 44
    assert r.nfev == w.nfev + 1


def test_errors() -> None:
    def f(p: Array) -> Array:
        return decay(T, *p) - HOLES

    assert solve.levenberg_marquardt(f, START).status == -3
    with pytest.raises(ValueError, match=r"fun: residual 2 is NaN at x0, and nan_policy is 'raise'"):
        solve.levenberg_marquardt(f, START, nan_policy="raise")
    other = OUT.copy()
    other[2] = False
    assert solve.levenberg_marquardt(f, START, mask=other).status == -3
    assert solve.levenberg_marquardt(f, START, mask=other, nan_policy="omit").dof == 44
    for options, text in (
        ({"mask": OUT[:3]}, r"mask: expected shape \(50,\), got \(3,\)"),
        ({"mask": ~np.zeros(50, dtype=bool)}, "mask: no residual is left"),
        ({"nan_policy": "propagate"}, "nan_policy: expected"),
    ):
        with pytest.raises(ValueError, match=text):
            solve.levenberg_marquardt(f, START, **options)
    with pytest.raises(TypeError, match="mask: expected booleans"):
        solve.levenberg_marquardt(f, START, mask=np.zeros(50))
    masked = np.ma.masked_array(SPOILT, mask=OUT)
    with pytest.raises(ValueError, match="fun must return no masked elements: give mask"):
        solve.levenberg_marquardt(lambda p: decay(T, *p) - masked, START, nan_policy="raise")


def test_a_mask_that_changes_on_the_way() -> None:
    calls = 0

    def f(p: Array) -> Array:
        nonlocal calls
        calls += 1
        return np.ma.masked_array(decay(T, *p) - Y, mask=OUT if calls < 5 else T > 3)

    with pytest.raises(ValueError, match="fun must return no masked elements but those of x0"):
        solve.levenberg_marquardt(f, START, nan_policy="omit")


@pytest.mark.parametrize("kind", ["mask", "ydata", "xdata", "sigma", "nan in ydata", "nan in xdata"])
def test_points_of_a_curve_that_are_left_out(kind: str) -> None:
    x, y, sigma, options = T, SPOILT, ERROR, {}
    if kind == "mask":
        options = {"mask": OUT}
    elif kind == "ydata":
        y = np.ma.masked_array(y, mask=OUT)
    elif kind == "xdata":
        x = np.ma.masked_array(x, mask=OUT)
    elif kind == "sigma":
        sigma = np.ma.masked_array(sigma, mask=OUT)
    else:
        options = {"nan_policy": "omit"}
        x, y = (np.where(OUT, np.nan, x), y) if kind == "nan in xdata" else (x, HOLES)
    got = solve.curve_fit(decay, x, y, START, sigma, **options)
    plain = solve.curve_fit(decay, T[~OUT], Y[~OUT], START, ERROR[~OUT])
    np.testing.assert_array_equal(got.popt, plain.popt)
    np.testing.assert_array_equal(got.pcov, plain.pcov)


def test_points_of_a_curve_under_a_mask_need_not_be_finite() -> None:
    got = solve.curve_fit(decay, T, HOLES, START, mask=OUT)
    np.testing.assert_array_equal(got.popt, solve.curve_fit(decay, T[~OUT], Y[~OUT], START).popt)


@pytest.mark.parametrize("kind", ["mask", "masks", "masked", "nan"])
def test_data_of_a_batch_that_are_left_out(kind: str) -> None:
    data = np.stack([HOLES, HOLES[::-1]])
    out = np.isnan(data)
    options: dict[str, Any] = {"mask": out}
    if kind == "mask":
        data[1] = HOLES
        options = {"mask": OUT}
    elif kind == "masked":
        data, options = np.ma.masked_array(np.where(out, 1e3, data), mask=out), {}
    elif kind == "nan":
        options = {"nan_policy": "omit"}
    hidden = np.isnan(data) | np.ma.getmaskarray(data)
    weights = np.where(hidden, 0.0, 1.0)
    more: dict[str, Any] = {"coordinates": T, "covariance": True}
    got = solve.levenberg_marquardt_batch("exponential", START, data, **options, **more)
    plain = solve.levenberg_marquardt_batch("exponential", START, np.ma.filled(data, 0), weights=weights, **more)
    for name in ("x", "cov", "cost", "status"):
        np.testing.assert_array_equal(got[name], plain[name])
    np.testing.assert_allclose(got.x[0], want(jac="3-point").x, rtol=1e-8)
    assert not solve.levenberg_marquardt_batch("exponential", START, np.stack([HOLES, Y]), coordinates=T).success[0]


def test_invalid_masks_of_a_batch() -> None:
    data = np.stack([HOLES, Y])
    with pytest.raises(ValueError, match=r"data: NaN at \(0, 2\), and nan_policy is 'raise'"):
        solve.levenberg_marquardt_batch("exponential", START, data, nan_policy="raise")
    with pytest.raises(ValueError, match="nan_policy: expected"):
        solve.levenberg_marquardt_batch("exponential", START, data, nan_policy="drop")
    with pytest.raises(ValueError, match="mask: expected shape"):
        solve.levenberg_marquardt_batch("exponential", START, data, mask=OUT[:4])
    with pytest.raises(TypeError, match="mask: expected booleans"):
        solve.levenberg_marquardt_batch("exponential", START, data, mask=np.zeros(50))


# Complex residuals

W = np.linspace(0.1, 10, 40)


def low_pass(w: Array, gain: float, tau: float) -> Array:
    return gain / (1 + 1j * w * tau)


Z = low_pass(W, 2.0, 0.7) + 0.01 * (G.normal(size=40) + 1j * G.normal(size=40))


def low_pass_slopes(w: Array, gain: float, tau: float) -> Array:
    return np.stack([1 / (1 + 1j * w * tau), -gain * 1j * w / (1 + 1j * w * tau) ** 2], axis=1)


def parts(z: Array) -> Array:
    return np.concatenate([z.real, z.imag])


@pytest.mark.parametrize("jac", [None, "3-point", low_pass_slopes])
def test_complex_residuals(jac: Any) -> None:
    both = solve.levenberg_marquardt(lambda p: parts(low_pass(W, *p) - Z), [1.0, 1.0], jac="3-point")
    slopes = (lambda p: low_pass_slopes(W, *p)) if callable(jac) else jac
    r = solve.levenberg_marquardt(lambda p: low_pass(W, *p) - Z, [1.0, 1.0], jac=slopes, complex_residuals=True)
    fit = solve.curve_fit(low_pass, W, Z, [1.0, 1.0], jac=jac)
    for x, cov in ((r.x, r.cov), fit):
        np.testing.assert_allclose(x, both.x, rtol=1e-8)
        np.testing.assert_allclose(cov, both.cov, rtol=1e-6)
    assert r.dof == fit.fit.dof == 78
    np.testing.assert_allclose(r.fun, both.fun, atol=1e-9)
    value, low, high = fit.predict(W, 0.9)
    np.testing.assert_allclose(value, low_pass(W, *fit.popt))
    slope = low_pass_slopes(W, *fit.popt)
    quantile = solve.Fit(x=[0.0], x_std=[1.0], dof=78.0).confidence_intervals(0.9)[0, 1]
    for part in ("real", "imag"):
        s = getattr(slope, part)
        half = quantile * np.sqrt(np.einsum("ik,kl,il->i", s, fit.pcov, s))
        np.testing.assert_allclose(getattr(high - value, part), half, rtol=1e-6)
        np.testing.assert_allclose(getattr(value - low, part), half, rtol=1e-6)


def test_complex_data_with_errors_and_holes() -> None:
    sigma = np.linspace(0.01, 0.02, 40)
    holes = Z.copy()
    holes[3] = complex(0, np.nan)
    keep = np.arange(40) != 3
    want = solve.levenberg_marquardt(
        lambda p: parts((low_pass(W, *p) - Z)[keep] / sigma[keep]), [1.0, 1.0], absolute_sigma=True, jac="3-point"
    )
    got = solve.curve_fit(low_pass, W, holes, [1.0, 1.0], sigma, True, nan_policy="omit", jac="3-point")
    np.testing.assert_allclose(got.popt, want.x, rtol=1e-9)
    np.testing.assert_allclose(got.pcov, want.cov, rtol=1e-7)
    r = solve.levenberg_marquardt(
        lambda p: low_pass(W, *p) - holes, [1.0, 1.0], nan_policy="omit", complex_residuals=True
    )
    np.testing.assert_array_equal(r.mask, ~keep)
    assert r.fun.size == 78


def test_errors_of_complex_residuals() -> None:
    def f(p: Array) -> Array:
        return low_pass(W, *p) - Z

    with pytest.raises(TypeError, match=r"fun must return .*real"):
        solve.levenberg_marquardt(f, [1.0, 1.0])
    with pytest.raises(TypeError, match="fun must return real residuals, or give complex_residuals=True"):
        solve.levenberg_marquardt(f, [1.0, 1.0], nan_policy="omit")
    for call in (
        lambda: solve.levenberg_marquardt(f, [1.0, 1.0], jac="cs", complex_residuals=True),
        lambda: solve.curve_fit(low_pass, W, Z, [1.0, 1.0], jac="cs"),
    ):
        with pytest.raises(ValueError, match="jac: 'cs' takes the imaginary part"):
            call()
