"""curve_fit: SciPy's arguments and results, and further results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any
T = np.linspace(0, 4, 50)


def decay(t: Array, amplitude: float, rate: float, offset: float) -> Array:
    return amplitude * np.exp(-rate * t) + offset


def slopes(t: Array, amplitude: float, rate: float, offset: float) -> Array:
    e = np.exp(-rate * t)
    return np.stack([e, -amplitude * t * e, np.ones_like(t)], axis=1)


G = np.random.default_rng(3)
ERROR = G.uniform(0.05, 0.3, 50)
Y = decay(T, 2.5, 1.3, 0.5) + ERROR * G.normal(size=50)
ROOT = G.normal(size=(50, 50)) / 20
COVARIANCE = ROOT @ ROOT.T + np.diag(ERROR**2)


@pytest.mark.parametrize("jac", [None, "3-point", slopes])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    "sigma", [None, 0.2, ERROR, COVARIANCE], ids=["no sigma", "a number", "one for each", "a covariance"]
)
@pytest.mark.parametrize("bounds", [None, ([0, 0, 0], [3, 2, 1])])
def test_results_match_scipy(sigma: Any, absolute: bool, jac: Any, bounds: Any) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    more = {} if bounds is None else {"bounds": bounds}
    theirs = np.full(50, sigma) if isinstance(sigma, float) else sigma  # SciPy's jac needs an array
    want = optimize.curve_fit(
        decay, T, Y, None if bounds else [1, 1, 0], theirs, absolute, jac=jac if callable(jac) else None,
        ftol=1e-13, xtol=1e-13, gtol=1e-13, **more,
    )  # fmt: skip
    popt, pcov = solve.curve_fit(decay, T, Y, None if bounds else [1, 1, 0], sigma, absolute, jac=jac, **more)
    np.testing.assert_allclose(popt, want[0], rtol=1e-5)
    np.testing.assert_allclose(pcov, want[1], rtol=1e-4)


def test_the_full_output() -> None:
    fit = solve.curve_fit(decay, T, Y, [1, 1, 0], full_output=True)
    popt, pcov, information, message, ier = fit
    assert len(fit) == 5
    assert ier in (1, 2, 3, 4)
    assert message == fit.fit.message
    np.testing.assert_array_equal(information["fvec"], decay(T, *popt) - Y)
    assert information["nfev"] == fit.fit.nfev
    np.testing.assert_array_equal(pcov, fit.pcov)


def test_default_start() -> None:
    seen: list[Any] = []

    def model(t: Array, a: float, b: float, c: float, d: float) -> Array:
        seen.append((a, b, c, d))
        return a + b * t + c * t**2 + d * t**3

    inf = np.inf
    solve.curve_fit(model, T, Y)
    assert seen[0] == (1, 1, 1, 1)
    seen.clear()
    solve.curve_fit(model, T, Y, bounds=([2, -inf, -8, -inf], [10, 5, inf, inf]))
    assert seen[0] == (6, 4, -7, 1)
    with pytest.raises(ValueError, match="p0: has 2 values, but f takes 3 parameters: "):
        solve.curve_fit(decay, T, Y, [1.0, 1.0])
    with pytest.raises(ValueError, match="p0: must be given"):
        solve.curve_fit(lambda t, *p: p[0] * t, T, Y)
    assert solve.curve_fit(lambda t, *p: p[0] * t, T, Y, [1.0]).names == ("p0",)


def test_points_with_nan() -> None:
    holes = Y.copy()
    holes[[3, 17]] = np.nan
    keep = np.isfinite(holes)
    with pytest.raises(ValueError, match="ydata: has values that are not finite"):
        solve.curve_fit(decay, T, holes)
    with pytest.raises(ValueError, match="ydata: has values that are not finite"):
        solve.curve_fit(decay, T, holes, nan_policy="raise")
    with pytest.raises(ValueError, match="ydata: has NaN, and nan_policy is 'raise'"):
        solve.curve_fit(decay, T, holes, nan_policy="raise", check_finite=False)
    for sigma in (None, ERROR, COVARIANCE):
        part = sigma if sigma is None else sigma[keep] if sigma.ndim == 1 else sigma[np.ix_(keep, keep)]
        got = solve.curve_fit(decay, T, holes, [1, 1, 0], sigma, nan_policy="omit")
        want = solve.curve_fit(decay, T[keep], Y[keep], [1, 1, 0], part)
        np.testing.assert_array_equal(got.popt, want.popt)
        np.testing.assert_array_equal(got.pcov, want.pcov)
    gaps = T.copy()
    gaps[5] = np.nan
    assert solve.curve_fit(decay, gaps, holes, [1, 1, 0], nan_policy="omit").fit.fun.size == 47


def test_the_summary() -> None:
    fit = solve.curve_fit(decay, T, Y, [1, 1, 0])
    text = str(fit).splitlines()
    assert text[0].split() == ["parameter", "value", "std", "95%", "interval"]
    assert [line.split()[0] for line in text[1:4]] == ["amplitude", "rate", "offset"]
    assert "correlation of rate and offset" in fit.summary()
    assert "47 degrees of freedom" in text[-1]
    np.testing.assert_allclose(np.diag(fit.correlation), 1)
    np.testing.assert_allclose(fit.x_std, np.sqrt(np.diag(fit.pcov)))
    low, high = fit.confidence_intervals(0.9).T
    assert (low < fit.popt).all()
    assert (fit.popt < high).all()


@pytest.mark.parametrize("sigma", [None, ERROR])
def test_bands(sigma: Any) -> None:
    """For a straight line, against the textbook formula."""

    def line(t: Array, a: float, b: float) -> Array:
        return a + b * t

    absolute = sigma is not None
    fit = solve.curve_fit(line, T, Y, [0, 0], sigma, absolute)
    at = np.array([-1.0, 2.0, 7.0])
    weights = np.ones(50) if sigma is None else sigma**-2.0
    rows = np.stack([np.ones(50), T], axis=1)
    scale = 1.0 if absolute else np.sum((line(T, *fit.popt) - Y) ** 2) / 48
    cov = scale * np.linalg.inv((rows * weights[:, None]).T @ rows)
    new = np.stack([np.ones(3), at], axis=1)
    std = np.sqrt(np.einsum("ik,kl,il->i", new, cov, new))
    quantile = 1.959963984540054 if absolute else 2.010634757624228
    value, low, high = fit.predict(at, 0.95)
    np.testing.assert_array_equal(value, fit.predict(at))
    np.testing.assert_allclose(high - value, quantile * std, rtol=1e-6)
    np.testing.assert_allclose(value - low, quantile * std, rtol=1e-6)
    if absolute:
        with pytest.raises(ValueError, match="sigma: give the standard deviations of the new measurements"):
            fit.predict(at, 0.95, new=True)
        _, _, high = fit.predict(at, 0.95, new=True, sigma=[0.1, 0.2, 0.3])
        np.testing.assert_allclose(high - value, quantile * np.sqrt(std**2 + np.square([0.1, 0.2, 0.3])), rtol=1e-6)
    else:
        _, _, high = fit.predict(at, 0.95, new=True)
        np.testing.assert_allclose(high - value, quantile * np.sqrt(std**2 + scale), rtol=1e-6)


def test_bands_of_measurements_with_outliers() -> None:
    """A robust cost is no variance: the band is that of good data, with whatever scale of the loss."""

    def line(t: Array, a: float, b: float) -> Array:
        return a + b * t

    g = np.random.default_rng(0)
    t = np.linspace(0, 1, 2000)
    y = line(t, 1, 2) + 0.1 * g.normal(size=t.size)
    y[::20] += 5
    for loss, f_scale in (("huber", 0.01), ("cauchy", 0.1), ("soft_l1", 0.1), ("tukey", "mad")):
        fit = solve.curve_fit(line, t, y, [1, 1], loss=loss, f_scale=f_scale)
        value, low, high = fit.predict(np.array([0.5]), 0.95, new=True)
        np.testing.assert_allclose(high - value, 1.96 * 0.1, rtol=0.1)
        np.testing.assert_allclose(value - low, 1.96 * 0.1, rtol=0.1)


def test_the_plot() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    figure = solve.curve_fit(decay, T, Y, [1, 1, 0], ERROR).plot(level=0.9)
    assert pyplot.gcf() is figure
    ax = pyplot.figure().subplots()
    assert solve.curve_fit(decay, T, Y, [1, 1, 0], ERROR).plot(ax) is ax.figure
    pyplot.close("all")
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert sorted(labels) == ["90% band", "data", "fit"]
    with pytest.raises(ValueError, match="xdata: a plot needs one number for each point"):
        solve.curve_fit(lambda t, a: a * t[0], np.stack([T, T]), Y, [1.0]).plot()


def test_losses_and_other_options() -> None:
    spoilt = Y.copy()
    spoilt[::10] += 5
    fit = solve.curve_fit(decay, T, spoilt, [1, 1, 0], loss="cauchy", f_scale=0.2)
    np.testing.assert_allclose(fit.popt, [2.5, 1.3, 0.5], atol=0.4)
    with pytest.raises(RuntimeError, match="Optimal parameters not found: The limit"):
        solve.curve_fit(decay, T, Y, [1, 1, 0], maxfev=2)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        solve.curve_fit(decay, T, Y, [1, 1, 0], colour=1)


def test_a_covariance_that_cannot_be_estimated() -> None:
    with pytest.warns(RuntimeWarning, match="Covariance of the parameters could not be estimated"):
        _, pcov = solve.curve_fit(lambda t, a, b: a * t + 0 * b, T, Y)
    assert np.isinf(pcov).all()


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (TypeError, "f: expected a callable", {"f": 1}),
        (ValueError, "nan_policy: expected", {"nan_policy": "propagate"}),
        (ValueError, "method: expected", {"method": "bfgs"}),
        (ValueError, "ydata: is empty", {"ydata": []}),
        (TypeError, "ydata: expected numbers", {"ydata": ["a"] * 50}),
        (ValueError, "sigma: expected a number, or shape", {"sigma": np.ones(3)}),
        (ValueError, "sigma: must be finite and positive", {"sigma": -ERROR}),
        (ValueError, "sigma: as a covariance", {"sigma": -COVARIANCE}),
        (TypeError, "ydata: 2 points cannot determine 3 parameters", {"xdata": T[:2], "ydata": Y[:2]}),
        (ValueError, "sigma: as a covariance it must be symmetric", {"sigma": COVARIANCE + np.triu(COVARIANCE, 1)}),
        (TypeError, "sigma: expected real numbers", {"sigma": ERROR + 0j}),
        (TypeError, "sigma: expected numbers", {"sigma": ["a"] * 50}),
        (ValueError, "sigma: must be finite", {"sigma": COVARIANCE * np.inf}),
        (ValueError, "f must return an array of shape", {"f": lambda t, a: np.ones(3)}),
        (ValueError, "f must return an array of shape", {"f": lambda t, a: np.ones((25, 2))}),
        (TypeError, "f must return numbers, got NoneType", {"f": lambda t, a: None}),
        (TypeError, "f returns complex numbers, and ydata are real", {"f": lambda t, a: a * (t + 1j)}),
        (TypeError, "xdata: expected numbers, got dtype datetime64", {"xdata": np.full(50, "2020-01-01", "M8[D]")}),
        (ValueError, "bounds: lower must be less than upper.*fixed keeps", {"bounds": ([0, 1, 0], [2, 1, 2])}),
        (ValueError, "xdata: to leave points out its last axis", {"xdata": T[:, None], "mask": T > 3}),
        (TypeError, "mask: expected booleans", {"mask": T}),
        (ValueError, r"mask: expected shape \(50,\)", {"mask": T[:3] > 3}),
        (ValueError, "ydata: no point is left", {"mask": T > -1}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, arguments: dict[str, Any]) -> None:
    given = {"f": decay, "xdata": T, "ydata": Y} | arguments
    with pytest.raises(error, match=text):
        solve.curve_fit(**given)


def test_models_by_name() -> None:
    rng = np.random.default_rng(0)
    t = np.linspace(-2, 3, 40)
    gaussian = lambda x, a, c, s, o: a * np.exp(-((x - c) ** 2) / (2 * s**2)) + o  # noqa: E731
    y = gaussian(t, 3.0, 0.5, 0.7, 1.0) + 0.05 * rng.normal(size=t.size)
    named = solve.curve_fit("gaussian", t, y, p0=[2.0, 0.0, 1.0, 0.5])
    own = solve.curve_fit(gaussian, t, y, p0=[2.0, 0.0, 1.0, 0.5], jac="cs")
    np.testing.assert_allclose(named.popt, own.popt, rtol=1e-9)
    np.testing.assert_allclose(named.pcov, own.pcov, rtol=1e-7)
    assert named.names == ("amplitude", "center", "sigma", "offset")
    np.testing.assert_allclose(named.predict(t), own.predict(t), rtol=1e-9)
    held = solve.curve_fit("gaussian", t, y, p0=[2.0, 0.0, 1.0, 0.5], fixed={"offset": 1.0})
    assert held.popt[3] == 1.0
    # One start for each parameter: 1, as for functions.
    assert solve.curve_fit("exponential", t, 2 * np.exp(-t) + 1).popt.round(6).tolist() == [2, 1, 1]


def test_models_by_name_of_two_coordinates_and_polynomials() -> None:
    rows, columns = np.indices((9, 8))
    points = np.stack([columns.ravel(), rows.ravel()])
    y = 5 * np.exp(-((points[0] - 3.2) ** 2 + (points[1] - 4.1) ** 2) / (2 * 1.3**2)) + 2
    fit = solve.curve_fit("gaussian_2d", points, y, p0=[4, 3, 4, 1, 1])
    np.testing.assert_allclose(fit.popt, [5, 3.2, 4.1, 1.3, 2], rtol=1e-9)
    t = np.linspace(0, 1, 9)
    fit = solve.curve_fit("polynomial", t, 1 + 2 * t - 3 * t**2, p0=np.zeros(3))
    np.testing.assert_allclose(fit.popt, [1, 2, -3], rtol=1e-10)
    assert fit.names == ("c0", "c1", "c2")


def test_errors_of_models_by_name() -> None:
    t = np.linspace(0, 1, 9)
    for text, arguments in (
        ("f: expected a callable, or one of 'gaussian'", ("gauss", t, t)),
        (r"xdata: 'gaussian_2d' needs shape \(2, m\), got \(9,\)", ("gaussian_2d", t, t)),
        ("f: expected a callable, or one of .*, got 'rational'", ("rational", t, t, [1, 1])),
        ("p0: must be given, for it says how many", ("polynomial", t, t)),
    ):
        with pytest.raises(ValueError, match=text):
            solve.curve_fit(*arguments)
    with pytest.raises(ValueError, match="jac: the model 'gaussian' has its own derivatives"):
        solve.curve_fit("gaussian", t, t, jac="3-point")


def two(t: Array, amplitude: float, rate: float) -> Array:
    return amplitude * np.exp(-rate * t)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (T.tolist(), Y.tolist()),
        (T.astype(np.float32), Y.astype(np.float32)),
        (T.astype(object), Y.astype(object)),
        (T.reshape(5, 10), Y.reshape(5, 10)),
        (np.asfortranarray(T.reshape(5, 10)), np.asfortranarray(Y.reshape(5, 10))),
        (T, Y[:, None]),
    ],
    ids=["lists", "float32", "objects", "5 by 10", "Fortran", "a column"],
)
def test_forms_of_data(x: Any, y: Any) -> None:
    want = solve.curve_fit(two, T, Y, [1, 1])
    got = solve.curve_fit(two, x, y, [1, 1])
    rtol = 1e-6 if getattr(x, "dtype", None) == np.float32 else 1e-12
    np.testing.assert_allclose(got.popt, want.popt, rtol=rtol)
    np.testing.assert_allclose(got.pcov, want.pcov, rtol=10 * rtol)


def test_pandas() -> None:
    """A Series or DataFrame goes to the model as it is."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"t": T, "y": Y, "name": "a"}, index=range(7, 57))
    want = solve.curve_fit(two, T, Y, [1, 1], ERROR)
    seen: list[Any] = []

    def model(d: Any, amplitude: float, rate: float) -> Any:
        seen.append(d)
        return amplitude * np.exp(-rate * d["t"])

    got = solve.curve_fit(model, table, table["y"], [1, 1], pandas.Series(ERROR))
    assert seen[0] is table
    np.testing.assert_allclose(got.popt, want.popt, rtol=1e-12)
    np.testing.assert_allclose(solve.curve_fit(two, table["t"], table["y"], [1, 1], ERROR).popt, want.popt, rtol=1e-12)
    np.testing.assert_allclose(got.predict(table), want.predict(T), rtol=1e-12)
    # Rows with missing values are left out; SciPy leaves out NaN of arrays only.
    holes = table.copy()
    holes.loc[9, "t"] = np.nan
    holes.loc[12, "y"] = np.nan
    keep = ~holes[["t", "y"]].isna().any(axis=1).to_numpy()
    want = solve.curve_fit(two, T[keep], Y[keep], [1, 1], ERROR[keep])
    for x, f in ((holes, model), (holes["t"], two)):
        got = solve.curve_fit(f, x, holes["y"], [1, 1], ERROR, nan_policy="omit")
        np.testing.assert_allclose(got.popt, want.popt, rtol=1e-12)
    with pytest.raises(ValueError, match="xdata: has values that are not finite"):
        solve.curve_fit(two, holes["t"], Y)
    with pytest.raises(ValueError, match="xdata: to leave points out it must have 50 rows, got 49"):
        solve.curve_fit(two, table["t"].iloc[1:], Y, mask=T > 3)


def test_a_model_without_points() -> None:
    """A constant is compared with all points; and one number of data with all values of the model."""
    fit = solve.curve_fit(lambda t, c: c, T, Y)
    np.testing.assert_allclose(fit.popt, Y.mean(), rtol=1e-12)
    np.testing.assert_allclose(fit.pcov, Y.var(ddof=1) / Y.size, rtol=1e-8)
    value, low, high = fit.predict(T[:3], 0.95)
    assert value.shape == low.shape == high.shape == (3,)
    got = solve.curve_fit(lambda t, a, b: two(t, a, b) - Y, T, 0, sigma=0.2)
    want = solve.curve_fit(two, T, Y, sigma=0.2)
    np.testing.assert_allclose(got.popt, want.popt, rtol=1e-12)
    np.testing.assert_allclose(got.pcov, want.pcov, rtol=1e-10)


def test_a_start_by_names() -> None:
    seen: list[Any] = []

    def model(t: Array, amplitude: float, rate: float) -> Array:
        seen.append((amplitude, rate))
        return two(t, amplitude, rate)

    solve.curve_fit(model, T, Y, {"rate": 2})
    assert seen[0] == (1, 2)
    with pytest.raises(ValueError, match=r"p0: there is no parameter 'rat'.*'rate'"):
        solve.curve_fit(model, T, Y, {"rat": 2})
    with pytest.raises(ValueError, match=r"p0: variable 1 is 2\.0, outside its bounds"):
        solve.curve_fit(model, T, Y, {"rate": 2}, bounds=([0, 0], [5, 1]))
    with pytest.raises(ValueError, match="p0: must be finite"):
        solve.curve_fit(model, T, Y, [np.nan, 1])


def test_what_masked_models_return_is_not_used() -> None:
    """Below the mask of np.ma.log of a negative number there is a number that means nothing."""

    def model(t: Array, a: float, b: float) -> Any:
        return a * np.ma.log(t + b)

    t, y = T + 0.5, 2 * np.log(T + 0.6)
    np.testing.assert_allclose(solve.curve_fit(model, t, y, [1, 1]).popt, [2, 0.1], rtol=1e-8)
    with pytest.raises(RuntimeError, match=r"Optimal parameters not found.*At the start, a=1, b=-1: check f there"):
        solve.curve_fit(model, t, y, [1, -1])


def test_options_by_scipys_names() -> None:
    want = solve.curve_fit(two, T, Y, [1, 1], rel_step=1e-6, x_scale=[0.5, 0.25])
    got = solve.curve_fit(two, T, Y, [1, 1], diff_step=1e-6, diag=[2, 4], verbose=0, maxfev=0)
    np.testing.assert_array_equal(got.popt, want.popt)
    assert got.fit.nfev == want.fit.nfev
    got = solve.curve_fit(two, T, Y, [1, 1], epsfcn=1e-12, x_scale=[0.5, 0.25])
    np.testing.assert_allclose(got.popt, want.popt, rtol=1e-12)
    by_rows = solve.curve_fit(decay, T, Y, [1, 1, 0], ERROR, jac=slopes)
    by_columns = solve.curve_fit(decay, T, Y, [1, 1, 0], ERROR, jac=lambda *a: slopes(*a).T, col_deriv=True)
    np.testing.assert_array_equal(by_columns.popt, by_rows.popt)
    with pytest.raises(TypeError, match="maxfev: is the same as max_nfev"):
        solve.curve_fit(two, T, Y, maxfev=9, max_nfev=9)
    for name in ("args", "m", "vectorized", "complex_residuals"):
        with pytest.raises(ValueError, match=f"{name}: "):
            solve.curve_fit(two, T, Y, **{name: 1})


def test_the_factorisation_in_the_full_output() -> None:
    """The covariance by the recipe for the output of MINPACK."""
    _, pcov, information, _, _ = solve.curve_fit(decay, T, Y, [1, 1, 0], ERROR, True, full_output=True)
    r = np.triu(information["fjac"].T[:3])
    order = np.take(np.eye(3), information["ipvt"] - 1, 0)
    np.testing.assert_allclose(np.linalg.inv((r @ order).T @ (r @ order)), pcov, rtol=1e-8)
    # The residuals are orthogonal to the columns of the Jacobian.
    np.testing.assert_allclose(information["qtf"], 0, atol=1e-6)


def test_more_parameters_than_points() -> None:
    """As in SciPy, only the other methods than MINPACK's fit them."""

    def cubic(t: Array, a: float, b: float, c: float) -> Array:
        return a + b * t + c * t**2

    for more in ({"method": "trf"}, {"bounds": (-9, 9)}):
        with pytest.warns(RuntimeWarning, match="Covariance of the parameters"):
            popt, pcov = solve.curve_fit(cubic, T[:2], Y[:2], **more)
        np.testing.assert_allclose(cubic(T[:2], *popt), Y[:2], rtol=1e-6)
        assert np.isinf(pcov).all()


@pytest.mark.parametrize("sigma", [None, ERROR, COVARIANCE], ids=["no sigma", "one for each", "a covariance"])
@pytest.mark.parametrize("form", ["csr_array", "aslinearoperator"])
@pytest.mark.parametrize("turned", [False, True], ids=["real", "complex"])
def test_sparse_derivatives(form: str, sigma: Any, turned: bool) -> None:
    pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    from scipy import sparse
    from scipy.sparse import linalg

    factor = 0.6 + 0.8j if turned else 1.0
    as_form = sparse.csr_array if form == "csr_array" else linalg.aslinearoperator
    y = Y * factor

    def model(t: Array, *p: float) -> Array:
        return decay(t, *p) * factor

    want = solve.curve_fit(model, T, y, [1, 1, 0], sigma, jac=lambda *a: slopes(*a) * factor)
    got = solve.curve_fit(model, T, y, [1, 1, 0], sigma, jac=lambda *a: as_form(slopes(*a) * factor))
    np.testing.assert_allclose(got.popt, want.popt, rtol=1e-5)
    np.testing.assert_allclose(got.pcov, want.pcov, rtol=1e-4)
