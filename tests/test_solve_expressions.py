"""Models of batches that are functions: values, derivatives, results and errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _solve
from adaptk.solve import levenberg_marquardt_batch
from adaptk.solve._batch import _trace

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def machine_settings() -> Iterator[None]:
    isa, threads = adaptk.get_isa(), adaptk.get_num_threads()
    yield
    adaptk.set_isa(isa)
    adaptk.set_num_threads(threads)


def evaluate(model: Callable[..., Any], p: Any, x: Any, dtype: Any = np.float64) -> tuple[Array, Array]:
    """Values and derivatives, from the kernels."""
    p, x = np.asarray(p, dtype), np.ascontiguousarray(x, dtype)
    choice, _ = _trace(model, None, p, x, np.empty((1, len(x))))
    value, slope = _solve.batch_model(choice, p, x.reshape(len(x), -1))
    return value, slope


def by_complex_steps(model: Callable[..., Any], p: Any, x: Any) -> Array:
    columns = []
    for i in range(len(p)):
        q = np.array(p, dtype=complex)
        q[i] += 1e-30j
        columns.append(np.broadcast_to(np.imag(model(x, *q)) / 1e-30, (np.shape(x)[-1],)))
    return np.stack(columns, axis=-1)


T = np.linspace(0.25, 3, 12)
# Each is analytic, so that complex steps give exact derivatives.
MODELS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "line": (lambda x, a, b: a + b * x, (0.5, -2.0)),
    "constant": (lambda x, a, b: a * b, (0.5, -2.0)),
    "decay": (lambda x, a, b, c: a * np.exp(-b * x) + c, (3.0, 0.7, 0.2)),
    "enzyme": (lambda x, v, k: v * x / (k + x), (2.0, 0.6)),
    "hill": (lambda x, v, k, h: v * x**h / (k**h + x**h), (2.0, 0.6, 1.7)),
    "logistic": (lambda x, a, b, c: a / (1 + np.exp(-(x - b) / c)), (2.0, 1.1, 0.3)),
    "power": (lambda x, a, b, c: a * (x + c) ** b, (2.0, -1.3, 0.4)),
    "powers": (lambda x, a, b: a * x**3 - (x + b) ** -2 + (b + x) ** 1.5 + 2.0 ** (a * x), (0.3, 0.6)),
    "wave": (lambda x, a, w, f: a * np.sin(w * x + f) + np.cos(a * x) - np.tan(f * x / 9), (2.0, 3.0, 0.4)),
    "step": (lambda x, a, b: np.arctan(a * x - 1) * np.arctan(9 * b) - np.arctan(x - b), (2.0, 0.7)),
    "hyperbolic": (lambda x, a, b: np.sinh(a * x) - np.cosh(b * x) + np.tanh(a - b * x), (0.4, 0.9)),
    "logarithms": (lambda x, a, b: np.log(a + x) * np.log1p(b * x) - np.log2(b * x) + np.log10(a * x), (0.4, 0.9)),
    "exponentials": (lambda x, a, b: np.expm1(a * x) - np.exp2(b * x) * np.sqrt(a + x) + np.square(b - x), (0.4, 0.9)),
    "inverse": (lambda x, a, b: np.arcsin(a * x) - np.arccos(b * x) * np.arcsinh(9 * (x - a) / b), (0.3, 0.2)),
    "area": (lambda x, a, b: np.arctanh(a * x - b) + np.arcsinh(1e9 * a * x), (0.3, 0.2)),
    "degrees": (lambda x, a, b: np.sin(a * x * (np.pi / 180)) * b, (30.0, 0.2)),
    "shared": (lambda x, a, b: (u := a * x + b) * u * np.exp(-u) / (1 + u * u), (0.4, 0.9)),
    "by the parameters": (lambda x, a, b: np.exp(a) * np.sqrt(b) * x - np.log(a / b) * np.sin(a * b), (0.4, 0.9)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_derivatives(name: str, dtype: Any) -> None:
    model, p = MODELS[name]
    value, slope = evaluate(model, p, T, dtype)
    rounding = 64 * np.finfo(dtype).eps
    wanted = np.broadcast_to(model(T, *p), T.shape)
    np.testing.assert_allclose(value, wanted, rtol=rounding, atol=rounding * np.abs(wanted).max())
    exact = by_complex_steps(model, p, T)
    np.testing.assert_allclose(slope, exact, rtol=rounding, atol=rounding * np.abs(exact).max())


def test_piecewise_functions() -> None:
    # By hand: where, maximum, minimum, abs, sign, combined comparisons, of values whose other branch is NaN.
    def model(x: Any, a: Any, b: Any) -> Any:
        step = np.where((x > a) & (x < 2.0), np.sqrt(x - a), b * x)
        return step + np.maximum(a * x, b) - np.minimum(b * x, 1.0) + np.abs(x - b) + np.sign(a)

    a, b = 1.1, 0.6
    value, slope = evaluate(model, (a, b), T)
    inside, big, small, right = (a < T) & (T < 2), a * T > b, b * T < 1, b < T
    root = np.sqrt(np.where(inside, T - a, 1.0))
    wanted = np.where(inside, root, b * T) + np.maximum(a * T, b) - np.minimum(b * T, 1) + np.abs(T - b) + 1
    np.testing.assert_allclose(value, wanted, rtol=1e-15)
    by_a = np.where(inside, -0.5 / root, 0) + np.where(big, T, 0)
    by_b = np.where(inside, 0, T) + np.where(big, 0, 1) - np.where(small, T, 0) - np.where(right, 1, -1)
    np.testing.assert_allclose(slope, np.stack([by_a, by_b], axis=1), rtol=1e-14, atol=1e-15)


def test_odd_functions_at_zero() -> None:
    """A parameter that starts at 0 must not look as if it had no influence."""
    x = np.array([-1.0, 0.0, 2.0])
    for function in (np.tanh, np.sinh, np.arcsinh, np.arctanh, np.arcsin, np.arctan, np.sin):
        value, slope = evaluate(lambda t, a, b, f=function: a * f(b * t), (1.5, 0.0), x)
        assert not value.any()
        np.testing.assert_array_equal(slope, np.stack([0 * x, 1.5 * x], axis=1))
    r = levenberg_marquardt_batch(lambda t, a, b: a + np.tanh(b * t), [0.0, 0.0], [np.tanh(0.5 * T)], coordinates=T)
    np.testing.assert_allclose(r.x, [[0, 0.5]], atol=1e-9)


def test_functions_that_are_made_of_others() -> None:
    x = np.array([-3.0, -0.5, 0.0, 0.5, 2.0])
    value, slope = evaluate(lambda t, a, b: np.logaddexp(a * t, b), (1.5, 0.75), x)
    np.testing.assert_allclose(value, np.logaddexp(1.5 * x, 0.75), rtol=1e-14)
    share = 1 / (1 + np.exp(0.75 - 1.5 * x))  # a half where both are equal
    np.testing.assert_allclose(slope, np.stack([x * share, 1 - share], axis=1), rtol=1e-13, atol=1e-15)
    value, slope = evaluate(lambda t, a: np.logaddexp(a * t, 0), [1.0], np.array([-1e4, 1e4]))
    assert value.tolist() == [0, 1e4]
    assert slope.ravel().tolist() == [0, 1e4]
    value, slope = evaluate(lambda t, a: np.sinc(a * t), [0.7], x)
    np.testing.assert_allclose(value, np.sinc(0.7 * x), rtol=1e-14)
    z = np.where(x == 0, 1, 0.7 * np.pi * x)
    exact = np.where(x == 0, 0, (np.cos(z) / z - np.sin(z) / z**2) * np.pi * x)
    np.testing.assert_allclose(slope[:, 0], exact, rtol=1e-13, atol=1e-15)
    value, slope = evaluate(lambda t, a, b: np.clip(a * t, -1, b), (1.0, 1.5), x)
    np.testing.assert_array_equal(value, np.clip(x, -1, 1.5))
    np.testing.assert_array_equal(slope, [[0, 0], [-0.5, 0], [0, 0], [0.5, 0], [0, 1]])
    value, _ = evaluate(lambda t, a: np.clip(a * t, None, 1.0), [1.0], x)
    np.testing.assert_array_equal(value, np.minimum(x, 1))
    value, _ = evaluate(lambda t, a: np.deg2rad(t) + np.radians(t) + np.rad2deg(a * t) + np.degrees(t), [1.0], x)
    np.testing.assert_allclose(value, 2 * np.deg2rad(x) + 2 * np.rad2deg(x), rtol=1e-15)
    ends = np.array([-1.0, 1.0])
    for function in (np.arcsin, np.arccos):
        np.testing.assert_allclose(evaluate(lambda t, a, f=function: f(a * t), [1.0], ends)[0], function(ends))


def test_a_branch_that_overflows_where_it_is_not_taken() -> None:
    def softplus(t: Any, a: Any) -> Any:
        return np.where(a * t > 0, a * t + np.log1p(np.exp(-a * t)), np.log1p(np.exp(a * t)))

    value, slope = evaluate(softplus, [1.0], np.array([-1e4, 0.5, 1e4]))
    np.testing.assert_allclose(value, [0, np.log1p(np.exp(0.5)), 1e4], rtol=1e-15)
    np.testing.assert_allclose(slope[:, 0], [0, 0.5 / (1 + np.exp(-0.5)), 1e4], rtol=1e-14)

    def beyond(t: Any, a: Any, b: Any) -> Any:
        u = np.exp(a * (t - b))
        return np.where(t > b, np.where(t > 9, u * np.sqrt(u) + u, u * u + u), 1.0)

    value, slope = evaluate(beyond, [-1e3, 1.0], np.array([0.0, 1.001]))
    u = np.exp(-1)
    np.testing.assert_allclose(value, [1, u * u + u], rtol=1e-10)
    by_u = (2 * u + 1) * u
    np.testing.assert_allclose(slope, [[0, 0], [0.001 * by_u, 1e3 * by_u]], rtol=1e-10)


def test_powers_of_zero() -> None:
    x = np.array([0.0, 0.5, 2.0])
    value, slope = evaluate(lambda t, a, b: (t / a) ** b + np.sqrt(t / a) + (t / a) ** 0.3 + t**1.5, (0.8, 0.6), x)
    u = x[1:] / 0.8
    assert value[0] == 0
    assert (slope[0] == 0).all()
    by_a = -(0.6 * u**0.6 + 0.5 * u**0.5 + 0.3 * u**0.3) / 0.8
    np.testing.assert_allclose(slope[1:], np.stack([by_a, u**0.6 * np.log(u)], axis=1), rtol=1e-13)
    for exponent in (-1.5, -0.3, 0.0, 0.7):
        value, _ = evaluate(lambda t, a: t**a, [exponent], np.zeros(2))
        with np.errstate(divide="ignore"):
            np.testing.assert_array_equal(value, np.zeros(2) ** exponent)


@pytest.mark.parametrize("isa", adaptk.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_at_extreme_values(isa: str, dtype: Any) -> None:
    adaptk.set_isa(isa)
    f = np.finfo(dtype)
    x = np.array([0.0, f.smallest_subnormal, f.tiny, 1e-3, 0.5, 0.70710678, 1.0, 1.5, 1e4, f.max, np.inf, -1.0, np.nan])
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
        wide = x.astype(np.longdouble)
        for ours, exact in (
            (lambda z, a: np.log(z) + 0 * a, np.log(wide)),
            (lambda z, a: np.expm1(z) + 0 * a, np.expm1(wide)),
            (lambda z, a: np.expm1(-z) + 0 * a, np.expm1(-wide)),
            (lambda z, a: np.tanh(z) + 0 * a, np.tanh(wide)),
            (lambda z, a: np.arctan(z) + 0 * a, np.arctan(wide)),
            (lambda z, a: np.arctan(-z) + 0 * a, np.arctan(-wide)),
        ):
            value, _ = evaluate(ours, [1.0], x, dtype)
            np.testing.assert_allclose(value, exact.astype(dtype), rtol=4 * f.eps, atol=4 * float(f.smallest_subnormal))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithms_and_expm1_everywhere(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    f = np.finfo(dtype)
    x = np.exp(rng.uniform(math.log(f.tiny), math.log(f.max), 4000)).astype(dtype)
    x[:1000] = rng.uniform(0.5, 2, 1000)
    value, _ = evaluate(lambda z, a: np.log(z) + 0 * a, [1.0], x, dtype)
    exact = np.log(x.astype(np.longdouble))
    assert np.abs((value - exact) / np.spacing(np.abs(exact.astype(dtype)))).max() < 1
    x = (rng.choice([-1, 1], 4000) * np.exp(rng.uniform(math.log(1e-12), math.log(80), 4000))).astype(dtype)
    value, _ = evaluate(lambda z, a: np.expm1(z) + 0 * a, [1.0], x, dtype)
    exact = np.expm1(x.astype(np.longdouble))
    assert np.abs((value - exact) / np.spacing(np.abs(exact.astype(dtype)))).max() < 4


def spots(k: int, dtype: Any = np.float64) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    rows, columns = np.indices((7, 7))
    center = 3 + rng.uniform(-0.5, 0.5, (2, k, 1, 1))
    data = 9 * np.exp(-((columns - center[0]) ** 2 + (rows - center[1]) ** 2) / 3) + 1
    return np.array([8.0, 3.0, 3.0, 1.0, 0.5], dtype), (data + 0.05 * rng.normal(size=data.shape)).astype(dtype)


def spot(x: Any, a: Any, cx: Any, cy: Any, s: Any, o: Any) -> Any:
    u, v = x[0] - cx, x[1] - cy
    return a * np.exp(-(u * u + v * v) / (2 * s**2)) + o


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matches_the_model_by_name(dtype: Any) -> None:
    start, data = spots(37, dtype)
    named = levenberg_marquardt_batch("gaussian_2d", start, data, covariance=True)
    own = levenberg_marquardt_batch(spot, start, data, covariance=True)
    assert named.success.all()
    assert own.success.all()
    near = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(own.x, named.x, rtol=near)
    np.testing.assert_allclose(own.x_std, named.x_std, rtol=10 * near)
    assert own.x.dtype == dtype


def test_same_bits() -> None:
    start, data = spots(21)
    model = MODELS["logistic"][0]
    y = model(T, 2.0, 1.1, 0.3) + 0.02 * np.random.default_rng(1).normal(size=(21, len(T)))

    def both() -> tuple[Any, Any]:
        return (
            levenberg_marquardt_batch(spot, start, data, covariance=True),
            levenberg_marquardt_batch(model, [1.5, 1.0, 0.5], y, coordinates=T, covariance=True),
        )

    wanted = both()
    assert all(r.success.all() for r in wanted)
    for isa in adaptk.available_isas():
        for threads in (1, 3):
            adaptk.set_isa(isa)
            adaptk.set_num_threads(threads)
            for a, b in zip(wanted, both(), strict=True):
                for key in ("x", "cost", "nit", "status", "cov"):
                    np.testing.assert_array_equal(a[key], b[key], f"{isa}, {threads} threads, {key}")
    alone = levenberg_marquardt_batch(spot, start, data[4:5])
    np.testing.assert_array_equal(alone.x[0], wanted[0].x[4])


def test_against_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    for name, start in (("enzyme", (1.0, 1.0)), ("decay", (2.0, 1.0, 0.0)), ("hill", (1.5, 0.9, 1.2))):
        model, p = MODELS[name]
        y = model(T, *p) + 0.01 * rng.normal(size=(3, len(T)))
        r = levenberg_marquardt_batch(model, start, y, coordinates=T, covariance=True, max_iterations=500)
        assert r.success.all()
        for i in range(3):
            with np.errstate(invalid="ignore"):  # a trial point of SciPy's
                x, cov = optimize.curve_fit(model, T, y[i], start, ftol=1e-14, xtol=1e-14, gtol=1e-14, maxfev=5000)
            np.testing.assert_allclose(r.x[i], x, rtol=1e-5)
            np.testing.assert_allclose(r.cov[i], cov, rtol=1e-3)


def test_options_of_batches() -> None:
    model = MODELS["decay"][0]
    y = np.stack([model(T, 3.0, rate, 0.2) for rate in (0.5, 0.7, 1.0)])
    r = levenberg_marquardt_batch(model, [2.0, 1.0, 0.2], y, coordinates=T, fixed={"c": 0.2})
    np.testing.assert_allclose(r.x, [[3, rate, 0.2] for rate in (0.5, 0.7, 1.0)], rtol=1e-9)
    r = levenberg_marquardt_batch(model, [2.0, 0.4, 0.2], y, coordinates=T, bounds=([0, 0, 0], [9, 0.6, 1]))
    np.testing.assert_allclose(r.x[0], [3, 0.5, 0.2], rtol=1e-9)
    assert (r.x[1:, 1] == 0.6).all()
    w = np.ones((3, len(T)))
    w[:, 3] = 0
    y[:, 3] = np.nan
    r = levenberg_marquardt_batch(model, [2.0, 1.0, 0.0], y, coordinates=np.tile(T, (3, 1)), weights=w)
    np.testing.assert_allclose(r.x, [[3, rate, 0.2] for rate in (0.5, 0.7, 1.0)], rtol=1e-9)


def test_three_coordinates() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 3))
    plane = lambda x, a, b, c, d: a * x[0] + b * x[1] + c * x[2] + d  # noqa: E731
    r = levenberg_marquardt_batch(plane, np.zeros(4), (points @ [1.0, 2.0, 3.0] + 4)[None], coordinates=points)
    np.testing.assert_allclose(r.x, [[1, 2, 3, 4]], rtol=1e-12)


def raises(model: Callable[..., Any], text: str, error: type[Exception] = TypeError, **options: Any) -> None:
    arguments: dict[str, Any] = {"x0": [1.0, 1.0], "data": np.ones((2, len(T))), "coordinates": T} | options
    with pytest.raises(error, match=text):
        levenberg_marquardt_batch(model, **arguments)


def test_errors() -> None:
    raises(lambda x, a, b: a if x > 0 else b, r"test_solve_expressions\.py, line \d+.*a branch on a value.*np.where")
    raises(lambda x, a, b: math.exp(a * x), "line .*a function on a traced value.*exp, .*sin")
    raises(lambda x, a, b: np.arccosh(a * x), "line .*arccosh is no function")
    raises(lambda x, a, b: np.sum(a * x), "line .*no function|line .*no shape")
    raises(lambda x, a, b: x[0] * a, "line .*no shape")
    raises(lambda x, a, b: x // a, "line .*no operations of a model")
    raises(lambda x, a, b: a * x + np.ones(3), "line .*an array of shape")
    raises(lambda x, a, b: (-2.0) ** (a * x), "line .*not positive")
    raises(lambda x, a, b: None, "returns a NoneType for one point, expected a number")
    raises(lambda x, a: a * x, "positional argument")
    raises(lambda x, a, b: a * x, "degree: a model that is a function has none", ValueError, degree=2)
    raises(lambda x, a, b: a * x, "x0: expected 1 to 10 parameters", ValueError, x0=1.0)
    raises(lambda x, a, b: a * x, "coordinates: expected shape", ValueError, coordinates=np.ones((len(T), 5)))
    raises(lambda x, a, b: a * x, "fixed: there is no parameter 'c'", ValueError, fixed={"c": 1.0})

    def too_many(x: Any, a: Any, b: Any) -> Any:
        for i in range(600):
            x = x * a + i
        return x

    raises(too_many, "line .*more than 512 operations")


def test_a_model_that_stores_a_value() -> None:
    kept: list[Any] = []

    def model(x: Any, a: Any, b: Any) -> Any:
        kept.append(x)
        return a * kept[0] + b

    levenberg_marquardt_batch(model, [1.0, 1.0], np.ones((2, len(T))), coordinates=T)
    raises(model, "a value of another model, or of another call")
