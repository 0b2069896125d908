"""Batches of small least-squares problems: models against SciPy and certified results, lanes against each other."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _nist, _solve
from adaptk.solve import levenberg_marquardt_batch
from adaptk.solve._batch import BATCH_MODELS, choose

Array = np.ndarray[Any, Any]
DTYPES = (np.float32, np.float64)


@pytest.fixture(autouse=True)
def machine_settings() -> Iterator[None]:
    isa, threads = adaptk.get_isa(), adaptk.get_num_threads()
    yield
    adaptk.set_isa(isa)
    adaptk.set_num_threads(threads)


# The models in NumPy, also for complex parameters


def gaussian(p: Array, x: Array) -> Array:
    a, c, s, o = p
    return a * np.exp(-((x - c) ** 2) / (2 * s**2)) + o


def gaussian_2d(p: Array, x: Array) -> Array:
    a, cx, cy, s, o = p
    return a * np.exp(-((x[:, 0] - cx) ** 2 + (x[:, 1] - cy) ** 2) / (2 * s**2)) + o


def gaussian_2d_elliptic(p: Array, x: Array) -> Array:
    a, cx, cy, sx, sy, o = p
    return a * np.exp(-((x[:, 0] - cx) ** 2) / (2 * sx**2) - (x[:, 1] - cy) ** 2 / (2 * sy**2)) + o


def gaussian_2d_rotated(p: Array, x: Array) -> Array:
    a, cx, cy, su, sv, o, t = p
    dx, dy = x[:, 0] - cx, x[:, 1] - cy
    u, v = (dx * np.cos(t) + dy * np.sin(t)) / su, (dy * np.cos(t) - dx * np.sin(t)) / sv
    return a * np.exp(-(u**2) / 2 - v**2 / 2) + o


def lorentz(p: Array, x: Array) -> Array:
    a, c, w, o = p
    return a * w**2 / (w**2 + (x - c) ** 2) + o


def exponentials(p: Array, x: Array) -> Array:
    return sum((a * np.exp(-b * x) for a, b in zip(p[:-1:2], p[1::2], strict=True)), p[-1] + 0 * x)


def polynomial(p: Array, x: Array) -> Array:
    return sum(c * x**i for i, c in enumerate(p))


def rational(numerator: int) -> Callable[[Array, Array], Array]:
    def model(p: Array, x: Array) -> Array:
        above = polynomial(p[: numerator + 1], x)
        return above / (1 + x * polynomial(p[numerator + 1 :], x))

    return model


@dataclass
class Case:
    """A model with typical parameters, their spread, and coordinates."""

    model: str
    function: Callable[[Array, Array], Array]
    typical: tuple[float, ...]
    x: Array
    degree: Any = None
    loose: float = 1.0  # factor on the tolerance
    spread: float = 0.1
    noise: float = 0.02

    @property
    def n(self) -> int:
        return len(self.typical)

    def true(self, k: int, seed: int = 0) -> Array:
        rng = np.random.default_rng(seed)
        return np.array(self.typical) * (1 + self.spread * rng.uniform(-1, 1, (k, self.n)))

    def problems(self, k: int, seed: int = 0) -> tuple[Array, Array]:
        """Starts and data."""
        p = self.true(k, seed)
        rng = np.random.default_rng(seed + 1)
        clean = np.array([self.function(q, self.x) for q in p])
        start = p * (1 + self.spread / 2 * rng.uniform(-1, 1, p.shape))
        return start, clean + self.noise * np.ptp(clean) * rng.normal(size=clean.shape)

    def solve(self, x0: Any, data: Any, **options: Any) -> Any:
        return levenberg_marquardt_batch(
            self.model, x0, data, degree=self.degree, **({"coordinates": self.x} | options)
        )

    def scipy(self, x0: Array, y: Array, w: Array | float = 1.0, **options: Any) -> Any:
        optimize = pytest.importorskip("scipy.optimize")
        settings = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "x_scale": "jac", "max_nfev": 2000} | options

        def jacobian(p: Array) -> Array:
            return (
                np.sqrt(w)[..., None] * derivative(self.function, p, self.x)
                if np.ndim(w)
                else derivative(self.function, p, self.x)
            )

        return optimize.least_squares(
            lambda p: np.sqrt(w) * (self.function(p, self.x) - y), x0, jac=jacobian, **settings
        )


def derivative(function: Callable[[Array, Array], Array], p: Array, x: Array) -> Array:
    """By complex steps: exact to rounding."""
    columns = []
    for i in range(len(p)):
        q = np.array(p, dtype=complex)
        q[i] += 1e-30j
        columns.append(np.imag(function(q, x)) / 1e-30)
    return np.stack(columns, axis=-1)


GRID = np.stack([a.ravel() for a in np.meshgrid(np.arange(9.0), np.arange(8.0))], axis=1)
LINE = np.linspace(-3, 5, 60)
TIME = np.linspace(0, 4, 50)
CASES = [
    Case("gaussian", gaussian, (5, 1, 0.8, 2), LINE),
    Case("gaussian_2d", gaussian_2d, (10, 4, 3.5, 1.3, 2), GRID),
    Case("gaussian_2d_elliptic", gaussian_2d_elliptic, (10, 4, 3.5, 1.3, 1.9, 2), GRID),
    Case("gaussian_2d_rotated", gaussian_2d_rotated, (10, 4, 3.5, 1.1, 2.2, 2, 0.5), GRID),
    Case("lorentz", lorentz, (5, 1, 0.8, 2), LINE),
    Case("exponential", exponentials, (5, 1.5, 1), TIME),
    Case("double_exponential", exponentials, (5, 3, 4, 0.5, 1), TIME, loose=100),
    Case(
        "triple_exponential",
        exponentials,
        (5, 6, 4, 1.5, 3, 0.3, 1),
        np.linspace(0, 8, 120),
        loose=1e4,
        spread=0.02,
        noise=1e-4,
    ),
    *(
        Case(
            "polynomial", polynomial, (1.0, -2.0, 0.5, 0.25, -0.125, 2.0, 1.5, -1.0, 0.3, 0.7)[: d + 1], LINE / 5, d, 10
        )
        for d in (0, 1, 3, 9)
    ),
    Case("rational", rational(0), (5, 0.5), TIME, (0, 1)),
    Case("rational", rational(2), (5, 1, 0.3, 0.5, 0.2), TIME, (2, 2), loose=1e3, spread=0.03),
    Case("rational", rational(3), (5, 1, 0.3, 0.2, 0.5, 0.2), TIME, (3, 2), loose=1e4, spread=0.02),
]
SIMPLE = CASES[0]


def case_id(case: Any) -> str | None:
    return f"{case.model}{case.n}" if isinstance(case, Case) else None


every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def equal(a: Any, b: Any) -> bool:
    """All arrays of two results, bit for bit."""
    return all(a[name].tobytes() == b[name].tobytes() for name in a if isinstance(a[name], np.ndarray))


def part(result: Any, rows: Any) -> dict[str, Any]:
    return {name: value[rows] for name, value in result.items() if isinstance(value, np.ndarray)}


# The models


def test_every_model_has_a_case() -> None:
    assert {case.model for case in CASES} == set(BATCH_MODELS)
    for case in CASES:
        assert len(BATCH_MODELS[case.model].parameters) in (0, case.n)


@every_dtype
@every_case
def test_values_and_derivatives(case: Case, dtype: Any) -> None:
    choice = choose(case.model, case.degree, case.typical)
    for p in case.true(20):
        p = p.astype(dtype).astype(float)
        value, slope = _solve.batch_model(choice, p.astype(dtype), np.ascontiguousarray(case.x, dtype))
        x = case.x.astype(dtype).astype(float)
        wanted, wanted_slope = case.function(p, x), derivative(case.function, p, x)
        scale = np.finfo(dtype).eps * 40
        np.testing.assert_allclose(value, wanted, rtol=0, atol=scale * np.abs(wanted).max())
        for j in range(case.n):
            atol = scale * np.abs(wanted_slope[:, j]).max()
            np.testing.assert_allclose(slope[:, j], wanted_slope[:, j], rtol=0, atol=atol)


def test_angles_beyond_a_turn() -> None:
    case = next(c for c in CASES if c.model == "gaussian_2d_rotated")
    choice = choose(case.model, None, case.typical)
    for angle in np.linspace(-60, 60, 101):
        p = np.array([*case.typical[:-1], angle])
        value, slope = _solve.batch_model(choice, p, case.x)
        np.testing.assert_allclose(value, case.function(p, case.x), rtol=1e-12)
        np.testing.assert_allclose(slope, derivative(case.function, p, case.x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("isa", adaptk.available_isas())
@every_dtype
def test_exp(dtype: Any, isa: str) -> None:
    adaptk.set_isa(isa)
    rng = np.random.default_rng(0)
    least, most = (-745.2, 709.8) if dtype == np.float64 else (-103.9, 88.8)
    x = np.concatenate([rng.uniform(least, most, 200_000), rng.uniform(-1, 1, 200_000), rng.normal(0, 1e-3, 1000)])
    x = x.astype(dtype)
    got = _solve.batch_exp(x)
    wanted = np.exp(x.astype(np.longdouble))
    with np.errstate(over="ignore", under="ignore"):
        unit = np.spacing(np.abs(wanted.astype(dtype))).astype(np.longdouble)
        inside = np.isfinite(unit) & np.isfinite(got)
        assert (np.isfinite(got) | (wanted > np.finfo(dtype).max * 0.999)).all()
        assert float((np.abs(got.astype(np.longdouble) - wanted) / unit)[inside].max()) < 1.01
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30], dtype)
    got = _solve.batch_exp(special)
    assert (got[:2] == 1).all()
    assert got[2] == got[5] == np.inf
    assert got[3] == got[6] == 0
    assert np.isnan(got[4])


# Solutions


@every_case
def test_against_scipy(case: Case) -> None:
    x0, y = case.problems(9)
    result = case.solve(x0, y, covariance=True, max_iterations=500)
    assert result.success.all()
    assert result.message == "9 of 9 problems have converged."
    for i in range(len(y)):
        peer = case.scipy(x0[i], y[i])
        assert result.cost[i] <= peer.cost * (1 + 1e-9)
        if result.cost[i] < peer.cost * (1 - 1e-9):
            continue  # a lower minimum
        # SciPy ends if the sum of squares does not change; Gauss-Newton steps continue.
        for _ in range(20):
            jacobian = derivative(case.function, peer.x, case.x)
            peer.x -= np.linalg.lstsq(jacobian, case.function(peer.x, case.x) - y[i], rcond=None)[0]
        deviation = np.sqrt(np.diag(np.linalg.inv(peer.jac.T @ peer.jac)) * 2 * peer.cost / (len(y[i]) - case.n))
        assert (np.abs(result.x[i] - peer.x) < 1e-7 * case.loose * deviation).all()
        np.testing.assert_allclose(result.x_std[i], deviation, rtol=1e-7 * case.loose)


@every_case
def test_float32(case: Case) -> None:
    x0, y = case.problems(9)
    result = case.solve(x0.astype(np.float32), y.astype(np.float32), max_iterations=500, covariance=True)
    assert {result[name].dtype for name in ("x", "cost", "cov", "x_std")} == {np.dtype(np.float32)}
    wide = case.solve(x0, y, max_iterations=500, covariance=True)
    assert result.success.all()
    np.testing.assert_allclose(result.cost, wide.cost, rtol=2e-4)
    if case.loose <= 10:
        assert (np.abs(result.x - wide.x) < 0.02 * wide.x_std).all()


@every_case
def test_exact_data(case: Case) -> None:
    p = case.true(20)
    y = np.array([case.function(q, case.x) for q in p])
    result = case.solve(case.problems(20)[0], y, max_iterations=1000)
    assert result.success.all()
    assert (2 * result.cost <= (1e-9 * np.abs(y).max()) ** 2 * len(case.x)).all()


def _identity(v: Any) -> Any:
    return v


@dataclass
class Certified:
    """A NIST data set in terms of a built-in model."""

    model: str
    to: Callable[[Any], Any] = _identity
    back: Callable[[Any], Any] = _identity
    degree: Any = None
    fixed: Any = None
    starts: tuple[int, ...] = (0, 1)
    digits: float = 9.5


NO_OFFSET = [False] * 6 + [True]
CERTIFIED = {
    **{
        name: Certified("triple_exponential", lambda b: [*b, 0.0], lambda p: p[:6], fixed=NO_OFFSET)
        for name in ("Lanczos1", "Lanczos2", "Lanczos3")
    },
    # From its first start, hundreds of trial points.
    "MGH17": Certified(
        "double_exponential",
        lambda b: [b[1], b[3], b[2], b[4], b[0]],
        lambda p: [p[4], p[0], p[2], p[1], p[3]],
        starts=(1,),
    ),
    "Kirby2": Certified("rational", degree=(2, 2)),
    "Hahn1": Certified("rational", degree=(3, 3)),
    "Thurber": Certified("rational", degree=(3, 3)),
    "Misra1d": Certified(
        "rational",
        lambda b: [0, b[0] * b[1], b[1]],
        lambda p: [p[1] / p[2], p[2]],
        (1, 1),
        [True, False, False],
    ),
    "MGH09": Certified(
        "rational",
        lambda b: [0, b[0] * b[1] / b[3], b[0] / b[3], b[2] / b[3], 1 / b[3]],
        lambda p: [p[2] / p[4], p[1] / p[2], p[3] / p[4], 1 / p[4]],
        (2, 2),
        [True, False, False, False, False],
        digits=7,
    ),
    "Eckerle4": Certified(
        "gaussian",
        lambda b: [b[0] / b[1], b[2], b[1], 0],
        lambda p: [p[0] * p[2], p[2], p[1]],
        fixed=[False] * 3 + [True],
    ),
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_certified(name: str) -> None:
    """At the default tolerances."""
    how, problem = CERTIFIED[name], _nist.problems()[name]
    x0 = np.array([how.to(start) for start in map(problem.starts.__getitem__, how.starts)], float)
    data = np.stack([problem.y] * len(x0))
    result = levenberg_marquardt_batch(
        how.model,
        x0,
        data,
        coordinates=problem.x,
        degree=how.degree,
        fixed=how.fixed,
        covariance=True,
        max_iterations=300,
    )
    assert result.success.all()
    for x, deviations in zip(result.x, result.x_std, strict=True):
        assert _nist.digits(how.back(x), problem.certified) >= how.digits
        if how.back is _identity or name == "MGH17":
            assert _nist.digits(how.back(deviations), problem.deviations) >= 9
    if name != "Lanczos1":
        np.testing.assert_allclose(2 * result.cost, problem.sum_of_squares, rtol=1e-6)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_wampler_polynomials(number: int) -> None:
    """Polynomials of degree 5 as in NIST's linear sets of that name, with certified coefficients 1 or 10**-i."""
    x = np.arange(21.0)
    c = np.ones(6) if number != 2 else 10.0 ** -np.arange(6)
    noise = np.zeros(21) if number != 4 else 1e5 * np.cos(np.pi * x) * np.sin(x)
    y = polynomial(c, x) + noise
    result = levenberg_marquardt_batch("polynomial", np.zeros(6), y[None], coordinates=x, degree=5)
    wanted = np.linalg.lstsq(np.vander(x, 6, increasing=True) / 21.0 ** np.arange(6), y, rcond=None)[0]
    wanted /= 21.0 ** np.arange(6)
    assert result.success.all()
    np.testing.assert_allclose(result.x[0], wanted if number == 4 else c, rtol=1e-7)


# Independence


OPTIONS: dict[str, Callable[[Case, int], dict[str, Any]]] = {
    "plain": lambda case, k: {},
    "weights": lambda case, k: {"weights": np.random.default_rng(3).uniform(0.5, 2, (k, len(case.x)))},
    "bounds": lambda case, k: {"bounds": tuple(np.sort([np.array(case.typical) * f for f in (0.8, 1.05)], axis=0))},
    "fixed": lambda case, k: {"fixed": np.arange(case.n) == case.n - 1} if case.n > 1 else {},
    "each its coordinates": lambda case, k: {"coordinates": np.stack([case.x] * k)},
    "loose": lambda case, k: {"ftol": 1e-4, "xtol": 1e-4, "polish": False},
}


@pytest.mark.parametrize("options", OPTIONS)
@every_dtype
@every_case
def test_same_bits(case: Case, dtype: Any, options: str) -> None:
    """On every instruction set, on several threads, with any neighbours or none."""
    k = 37
    x0, y = case.problems(k)
    given = OPTIONS[options](case, k)
    if "bounds" in given:
        x0 = np.clip(x0, *given["bounds"])
    x0, y = x0.astype(dtype), y.astype(dtype)
    if "bounds" in given:
        given["bounds"] = tuple(np.asarray(b, dtype) for b in given["bounds"])
        x0 = np.clip(x0, *given["bounds"])

    def solve(rows: Any = slice(None)) -> Any:
        cut = {name: value[rows] if name in ("weights", "coordinates") else value for name, value in given.items()}
        return case.solve(x0[rows], y[rows], covariance=True, **cut)

    wanted = solve()
    assert (wanted.status > -1).all()
    for isa in adaptk.available_isas():
        adaptk.set_isa(isa)
        assert equal(solve(), wanted), isa
    for threads in (1, 2, 5):
        adaptk.set_num_threads(threads)
        assert equal(solve(), wanted), threads
    rng = np.random.default_rng(5)
    order = rng.permutation(k)
    assert equal(solve(order), part(wanted, order))
    few = rng.integers(0, k, 7)
    assert equal(solve(few), part(wanted, few))
    assert equal(solve([11]), part(wanted, [11]))


@every_dtype
def test_failing_neighbours(dtype: Any) -> None:
    x0, y = SIMPLE.problems(40)
    x0, y = x0.astype(dtype), y.astype(dtype)
    wanted = SIMPLE.solve(x0, y, covariance=True)
    broken = y.copy()
    where = np.arange(40) % 4 == 1
    broken[where, 7] = np.resize([np.nan, np.inf, -np.inf, np.finfo(dtype).max], where.sum())
    starts = x0.copy()
    bad_start = np.arange(40) % 8 == 3
    starts[bad_start, 1] = np.nan
    got = SIMPLE.solve(starts, broken, covariance=True)
    fine = ~where & ~bad_start
    assert equal(part(got, fine), part(wanted, fine))
    not_finite = bad_start | ~np.isfinite(broken).all(axis=1)
    assert (got.status[not_finite] == -3).all()
    assert not got.success[not_finite].any()
    assert np.isnan(got.cost[not_finite]).all()
    np.testing.assert_array_equal(got.x[not_finite], starts[not_finite])
    assert np.isinf(got.cov[not_finite]).all()


def test_powers_of_two() -> None:
    """Data and amplitudes in other units: the same iterates, up to the ends of the range."""
    x0, y = SIMPLE.problems(12)
    wanted = SIMPLE.solve(x0, y, covariance=True)
    for power in (-900, -300, -30, 3, 500, 1000):
        scale = np.array([2.0**power, 1, 1, 2.0**power])
        got = SIMPLE.solve(x0 * scale, y * 2.0**power, covariance=True)
        np.testing.assert_array_equal(got.x, wanted.x * scale)
        np.testing.assert_array_equal(got.nit, wanted.nit)
        np.testing.assert_array_equal(got.status, wanted.status)
    # Coordinates in other units.
    scale = np.array([1, 2.0**40, 2.0**40, 1])
    got = SIMPLE.solve(x0 * scale, y, coordinates=SIMPLE.x * 2.0**40)
    np.testing.assert_array_equal(got.x, wanted.x * scale)


def test_single_precision_ends_of_the_range() -> None:
    x0, y = (a.astype(np.float32) for a in SIMPLE.problems(12))
    wanted = SIMPLE.solve(x0, y)
    for power in (-100, 110):
        scale = np.array([2.0**power, 1, 1, 2.0**power], np.float32)
        got = SIMPLE.solve(x0 * scale, y * np.float32(2.0**power))
        np.testing.assert_array_equal(got.x, wanted.x * scale)


# Options


def test_weights_and_sigma() -> None:
    x0, y = SIMPLE.problems(11)
    rng = np.random.default_rng(2)
    sigma = rng.uniform(0.5, 2, y.shape)
    by_sigma = SIMPLE.solve(x0, y, sigma=sigma, covariance=True, absolute_sigma=True)
    by_weights = SIMPLE.solve(x0, y, weights=1 / sigma / sigma, covariance=True, absolute_sigma=True)
    assert equal(by_sigma, by_weights)
    optimize = pytest.importorskip("scipy.optimize")
    for absolute in (False, True):
        ours = SIMPLE.solve(x0, y, sigma=sigma, covariance=True, absolute_sigma=absolute)
        for i in range(11):
            x, cov = optimize.curve_fit(
                lambda t, *p: gaussian(p, t),
                SIMPLE.x,
                y[i],
                x0[i],
                sigma=sigma[i],
                absolute_sigma=absolute,
                jac=lambda t, *p: derivative(gaussian, np.array(p), t),
                ftol=1e-15,
                xtol=1e-15,
            )
            np.testing.assert_allclose(ours.x[i], x, rtol=1e-7)
            np.testing.assert_allclose(ours.cov[i], cov, rtol=1e-6, atol=1e-9 * np.abs(cov).max())
            np.testing.assert_allclose(ours.cost[i], SIMPLE.scipy(x0[i], y[i], sigma[i] ** -2.0).cost, rtol=1e-12)
    shared = SIMPLE.solve(x0, y, weights=sigma[0])
    assert equal(shared, SIMPLE.solve(x0, y, weights=np.stack([sigma[0]] * 11)))


@every_dtype
def test_data_without_weight(dtype: Any) -> None:
    x0, y = (a.astype(dtype) for a in SIMPLE.problems(20))
    kept = np.ones(len(SIMPLE.x), bool)
    kept[[3, 17, 40, 41]] = False
    wanted = SIMPLE.solve(x0, np.ascontiguousarray(y[:, kept]), coordinates=SIMPLE.x[kept], covariance=True)
    weights = kept.astype(dtype)
    for value in (0, np.nan, np.inf):
        holes = np.where(kept, y, dtype(value))
        got = SIMPLE.solve(x0, holes, weights=weights, covariance=True)
        assert got.success.all()
        np.testing.assert_allclose(got.x, wanted.x, rtol=1e-9 if dtype == np.float64 else 1e-3)
        np.testing.assert_allclose(got.x_std, wanted.x_std, rtol=1e-9 if dtype == np.float64 else 1e-3)
    # So does a coordinate that is NaN.
    t = np.where(kept, SIMPLE.x, np.nan)
    assert SIMPLE.solve(x0, y, coordinates=t, weights=weights).success.all()


@every_case
def test_bounds(case: Case) -> None:
    """Active bounds of each parameter in turn: results are within them and as low as SciPy's."""
    k = 5
    x0, y = case.problems(k)
    for j in range(case.n):
        free = case.solve(x0, y, max_iterations=500)
        low, high = np.full((k, case.n), -np.inf), np.full((k, case.n), np.inf)
        edge = free.x[:, j] + 0.02 * np.abs(free.x[:, j])
        low[:, j] = edge
        start = np.maximum(x0, low)
        start[:, j] = edge + 0.05 * np.abs(edge)
        result = case.solve(start, y, bounds=(low, high), max_iterations=500)
        assert (result.x >= low).all()
        assert (result.status > 0).sum() >= k - 1 or case.loose > 1000
        # The last models have several minima, some of them at infinity.
        for i in range(k if case.loose <= 1000 else 0):
            peer = case.scipy(start[i], y[i], bounds=(low[i], high[i]), method="trf")
            assert result.cost[i] <= peer.cost * (1 + 1e-4 * case.loose**0.5)
        if case.loose == 1:
            assert (result.x[:, j] == edge).all()


def test_inactive_bounds() -> None:
    x0, y = SIMPLE.problems(20)
    assert equal(SIMPLE.solve(x0, y), SIMPLE.solve(x0, y, bounds=(-1e9, 1e9)))
    assert equal(SIMPLE.solve(x0, y), SIMPLE.solve(x0, y, bounds=(-np.inf, np.inf)))


def test_bounds_in_the_form_of_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x0, y = SIMPLE.problems(5)
    low, high = np.array([0, -3, 0.1, -9.0]), np.array([9, 3, 3, 1.5])
    x0 = np.clip(x0, low, high)
    got = SIMPLE.solve(x0, y, bounds=optimize.Bounds(low, high))
    assert equal(got, SIMPLE.solve(x0, y, bounds=(low, high)))
    assert (got.x[:, 3] == 1.5).any()


def test_fixed() -> None:
    x0, y = SIMPLE.problems(11)
    x0[:, 3] = np.linspace(1.8, 2.2, 11)
    got = SIMPLE.solve(x0, y, fixed=[False, False, False, True], covariance=True)
    assert got.success.all()
    np.testing.assert_array_equal(got.x[:, 3], x0[:, 3])
    for i in range(11):
        case = Case("gaussian", lambda p, x, o=x0[i, 3]: gaussian((*p, o), x), (0, 0, 0), SIMPLE.x)
        peer = case.scipy(x0[i, :3], y[i])
        np.testing.assert_allclose(got.x[i, :3], peer.x, rtol=1e-8)
        cov = np.linalg.inv(peer.jac.T @ peer.jac) * 2 * peer.cost / (len(SIMPLE.x) - 3)
        np.testing.assert_allclose(got.cov[i, :3, :3], cov, rtol=1e-6, atol=1e-9 * np.abs(cov).max())
        assert (got.cov[i, 3] == 0).all()
        assert (got.cov[i, :, 3] == 0).all()
    everything = SIMPLE.solve(x0, y, fixed=[True] * 4)
    np.testing.assert_array_equal(everything.x, x0)
    assert (everything.status == 1).all()


def test_default_coordinates() -> None:
    p = np.array([[5, 9, 2.5, 1.0]])
    y = gaussian(p[0], np.arange(20.0))[None]
    np.testing.assert_allclose(levenberg_marquardt_batch("gaussian", [4, 8, 2, 0.5], y).x, p, rtol=1e-9)
    q = np.array([10, 2.2, 3.1, 1.2, 1.0])
    for rows, columns in ((6, 6), (5, 8)):
        yy, xx = np.indices((rows, columns))
        image = gaussian_2d(q, np.stack([xx.ravel(), yy.ravel()], axis=1)).reshape(1, rows, columns)
        got = levenberg_marquardt_batch("gaussian_2d", [9, 2, 3, 1, 0], image)
        np.testing.assert_allclose(got.x[0], q, rtol=1e-9)
        weighted = levenberg_marquardt_batch("gaussian_2d", [9, 2, 3, 1, 0], image, weights=np.full_like(image[0], 2))
        np.testing.assert_allclose(weighted.x[0], q, rtol=1e-9)
        if rows == columns:
            assert equal(got, levenberg_marquardt_batch("gaussian_2d", [9, 2, 3, 1, 0], image.reshape(1, -1)))


def test_polishing() -> None:
    """Loose tolerances and all digits."""
    x0, y = SIMPLE.problems(30)
    wanted = SIMPLE.solve(x0, y, ftol=1e-15, xtol=1e-15, gtol=0)
    loose = {"ftol": 1e-3, "xtol": 1e-3, "gtol": 1e-3}
    np.testing.assert_allclose(SIMPLE.solve(x0, y, **loose).x, wanted.x, rtol=1e-9)
    rough = SIMPLE.solve(x0, y, **loose, polish=False)
    assert (rough.nit < wanted.nit).all()
    assert np.abs(rough.x / wanted.x - 1).max() > 1e-9


# How a problem ends


def one(model: str, x0: Any, y: Any, **options: Any) -> Any:
    result = levenberg_marquardt_batch(model, x0, np.asarray(y)[None], **options)
    assert result.success[0] == (result.status[0] > 0)
    return result


def test_status_gradient() -> None:
    assert one("polynomial", [3.0], [3.0, 3.0]).status == 1
    y = [1.0, 2.0, 4.0, 3.0]
    got = one("polynomial", [0.0, 0.0], y, ftol=0, xtol=0, gtol=1e-8, polish=False)
    assert got.status == 1
    np.testing.assert_allclose(got.x[0], np.polyfit(range(4), y, 1)[::-1], rtol=1e-6)


def test_status_reduction_step_and_both() -> None:
    x0, y = (a[0] for a in SIMPLE.problems(1))
    tolerances = {"coordinates": SIMPLE.x, "gtol": 0}
    assert one("gaussian", x0, y, ftol=1e-6, xtol=0, **tolerances).status == 2
    assert one("gaussian", x0, y, ftol=0, xtol=1e-6, **tolerances).status == 3
    assert one("gaussian", x0, y, ftol=0.9, xtol=0.9, **tolerances).status == 4


def test_status_precision() -> None:
    x0, y = (a[0] for a in SIMPLE.problems(1))
    got = one("gaussian", x0, y, ftol=0, xtol=0, gtol=0, coordinates=SIMPLE.x, max_iterations=10_000)
    assert got.status == 5
    np.testing.assert_allclose(got.x[0], one("gaussian", x0, y, coordinates=SIMPLE.x).x[0], rtol=1e-7)


def test_status_limit() -> None:
    x0, y = SIMPLE.problems(30)
    for most in (0, 1, 2):
        got = SIMPLE.solve(x0, y, ftol=0, xtol=0, gtol=0, max_iterations=most)
        assert (got.status == 0).all()
        assert (got.nit == most).all()
        assert not got.success.any()
        if most == 0:
            np.testing.assert_array_equal(got.x, x0)
            np.testing.assert_allclose(
                got.cost, [0.5 * ((gaussian(p, LINE) - d) ** 2).sum() for p, d in zip(x0, y, strict=True)]
            )


def test_status_nonfinite() -> None:
    assert one("exponential", [1.0, -1e6, 0.0], np.ones(5)).status == -3  # overflows at the start
    assert one("rational", [1.0, -1.0], np.ones(5), degree=(0, 1)).status == -3  # a pole at a point
    assert one("gaussian", [1.0, 0.0, 0.0, 0.0], np.ones(5)).status == -3  # no width


def test_nonfinite_trial_points() -> None:
    """A step into an overflow is shortened."""
    t = np.linspace(0, 10, 30)
    y = 1e-3 * np.exp(0.7 * t)
    got = one("exponential", [1e-3, 5.0, 1.0], y, coordinates=t, max_iterations=500)
    assert np.isfinite(got.cost).all()
    assert got.success.all()


@every_dtype
def test_singular(dtype: Any) -> None:
    """Two equal terms, a term without effect, more unknowns than the data determine."""
    t = np.linspace(0, 3, 40)
    y = (3 * np.exp(-t) + 0.5).astype(dtype)[None]
    got = levenberg_marquardt_batch("double_exponential", [1, 2, 1, 2, 0], y, coordinates=t, covariance=True)
    assert np.isfinite(got.x).all()
    assert got.cost[0] < 1e-6
    y = np.resize(np.array([1, 3], dtype), (1, 30))
    flat = levenberg_marquardt_batch("gaussian", [0, 14.5, 1e-3, 2], y, covariance=True)
    assert flat.success.all()
    np.testing.assert_allclose(flat.x[0], [0, 14.5, 1e-3, 2], rtol=1e-5)
    assert np.isinf(flat.cov).all()
    assert np.isinf(flat.x_std).all()
    same_point = levenberg_marquardt_batch("polynomial", [0, 0], np.full((1, 5), 2, dtype), coordinates=np.ones(5))
    assert same_point.success.all()
    np.testing.assert_allclose(same_point.x.sum(), 2, rtol=1e-5)


def test_no_freedom_left() -> None:
    y = np.array([[1.0, 3.0, 2.0]])
    got = levenberg_marquardt_batch("polynomial", [0, 0, 0], y, covariance=True)
    assert got.success.all()
    np.testing.assert_allclose(polynomial(got.x[0], np.arange(3)), y[0], atol=1e-12)
    assert np.isinf(got.cov).all()
    absolute = levenberg_marquardt_batch("polynomial", [0, 0, 0], y, covariance=True, absolute_sigma=True)
    v = np.vander(np.arange(3.0), increasing=True)
    np.testing.assert_allclose(absolute.cov[0], np.linalg.inv(v.T @ v), rtol=1e-9)


# Shapes and types


def test_no_problems() -> None:
    for x0 in (np.zeros(4), np.zeros((0, 4))):
        got = levenberg_marquardt_batch("gaussian", x0, np.zeros((0, 10)), covariance=True)
        assert [got[name].shape for name in ("x", "cost", "status", "nit", "success", "cov", "x_std")] == [
            (0, 4), (0,), (0,), (0,), (0,), (0, 4, 4), (0, 4),
        ]  # fmt: skip
        assert got.message == "0 of 0 problems have converged."


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 200])
def test_numbers_of_problems(k: int) -> None:
    x0, y = SIMPLE.problems(200)
    assert equal(SIMPLE.solve(x0[:k], y[:k]), part(SIMPLE.solve(x0, y), slice(0, k)))


@pytest.mark.parametrize("m", [4, 5, 31, 32, 33, 64, 65, 1000])
def test_numbers_of_points(m: int) -> None:
    t = np.linspace(-3, 5, m)
    p = SIMPLE.true(9)
    y = np.array([gaussian(q, t) for q in p])
    got = levenberg_marquardt_batch("gaussian", SIMPLE.typical, y, coordinates=t, max_iterations=1000)
    assert (got.cost < 1e-9).all()
    if m > 30:
        np.testing.assert_allclose(got.x, p, rtol=1e-8)


def test_layouts_and_types() -> None:
    x0, y = SIMPLE.problems(8)
    wanted = SIMPLE.solve(x0, y)
    frozen = [a.copy() for a in (x0, y, SIMPLE.x)]
    for a in frozen:
        a.flags.writeable = False
    copies = [a.copy() for a in frozen]
    assert equal(levenberg_marquardt_batch("gaussian", frozen[0], frozen[1], coordinates=frozen[2]), wanted)
    for a, b in zip(frozen, copies, strict=True):
        np.testing.assert_array_equal(a, b)
    spaced = np.zeros((16, 180))
    spaced[::2, ::3] = y
    assert equal(SIMPLE.solve(np.asfortranarray(x0), spaced[::2, ::3]), wanted)
    assert equal(
        SIMPLE.solve(x0, y[:, ::-1], coordinates=SIMPLE.x[::-1]),
        SIMPLE.solve(x0, y[:, ::-1].copy(), coordinates=SIMPLE.x[::-1].copy()),
    )
    assert equal(SIMPLE.solve(x0, y.astype(y.dtype.newbyteorder())), wanted)
    assert equal(SIMPLE.solve(x0.tolist(), y.tolist()), wanted)
    counts = np.round(20 * y).astype(np.uint16)
    assert equal(SIMPLE.solve(x0, counts), SIMPLE.solve(x0, counts.astype(float)))
    # The dtype of the data decides.
    assert SIMPLE.solve(x0.astype(np.float32), y).x.dtype == np.float64
    assert SIMPLE.solve(x0, y.astype(np.float32)).x.dtype == np.float32
    for name in ("x", "cost", "status", "nit"):
        assert wanted[name].flags.owndata or wanted[name].base is None
        assert wanted[name].flags.writeable


Y = np.ones((3, 20))
ERRORS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "unknown model": (ValueError, r"model: .*one of 'gaussian'.*got 'spline'", {"model": "spline"}),
    "model of another type": (ValueError, "model: expected", {"model": 3}),
    "unhashable model": (ValueError, "model: expected", {"model": []}),
    "1-D data": (ValueError, r"data: expected shape \(k, m\), got \(20,\); one set", {"data": Y[0]}),
    "1-D data of a function": (
        ValueError,
        r"data: expected shape \(k, m\), got \(20,\); one set",
        {"model": lambda x, *p: p[0] * x, "data": Y[0]},
    ),
    "SciPy's name": (TypeError, "'p0': the start is x0", {"p0": [1, 1, 1, 1]}),
    "3-D data": (ValueError, r"data: expected shape \(k, m\), got", {"data": np.ones((3, 5, 4))}),
    "complex data": (TypeError, "data: expected real numbers, got dtype complex128", {"data": Y + 1j}),
    "objects": (TypeError, "data: expected real numbers, got dtype object", {"data": Y.astype(object)}),
    "ragged data": (ValueError, "data: ", {"data": [[1, 2], [1]]}),
    "few points": (ValueError, "data: 3 points cannot determine 4 parameters", {"data": np.ones((3, 3))}),
    "no points": (ValueError, "data: 0 points cannot", {"data": np.ones((3, 0))}),
    "x0 too short": (ValueError, r"x0: 'gaussian' has 4 parameters \(amplitude, center", {"x0": [1, 1, 1]}),
    "x0 for fewer problems": (ValueError, r"x0: .*\(4,\) or \(3, 4\), got \(2, 4\)", {"x0": np.ones((2, 4))}),
    "x0 of strings": (TypeError, "x0: expected real numbers", {"x0": list("abcd")}),
    "coordinates too short": (ValueError, r"coordinates: expected shape \(20,\) or", {"coordinates": np.ones(19)}),
    "coordinates of pixels": (ValueError, "coordinates: expected", {"coordinates": np.ones((20, 2))}),
    "weights' shape": (ValueError, "weights: expected shape", {"weights": np.ones((2, 20))}),
    "negative weights": (ValueError, "weights: must be finite and >= 0", {"weights": -np.ones(20)}),
    "NaN weights": (ValueError, "weights: must be finite and >= 0", {"weights": np.full(20, np.nan)}),
    "sigma of zero": (ValueError, "sigma: must be positive", {"sigma": np.zeros(20)}),
    "NaN sigma": (ValueError, "sigma: must be positive", {"sigma": np.full(20, np.nan)}),
    "tiny sigma": (ValueError, "sigma: its inverse square", {"sigma": np.full(20, 1e-300)}),
    "both": (ValueError, "weights: give these or sigma", {"sigma": np.ones(20), "weights": np.ones(20)}),
    "one bound": (ValueError, "bounds: expected a pair", {"bounds": 3}),
    "bounds' shape": (ValueError, "bounds: expected a pair", {"bounds": ([0, 0], [1, 1])}),
    "NaN bounds": (ValueError, "bounds: hold NaN", {"bounds": (np.nan, 5)}),
    "empty bounds": (ValueError, r"bounds: lower must be less than upper, got 0.0 and 0.0 at \(1,\)",
                     {"bounds": ([0, 0, 0, 0], [9, 0, 9, 9])}),
    "start outside": (ValueError, r"x0: 1.0 at \(2,\) is outside its bounds \[2.0, 9.0\]",
                      {"bounds": ([0, 0, 2, 0], [9, 9, 9, 9])}),
    "fixed' shape": (ValueError, r"fixed: expected booleans of shape \(4,\)", {"fixed": [True]}),
    "fixed' type": (ValueError, r"fixed: expected booleans of shape \(4,\)", {"fixed": [0, 1, 0, 1]}),
    "degree": (ValueError, "degree: the model 'gaussian' has none", {"degree": 2}),
    "no degree": (ValueError, "degree: a rational function needs", {"model": "rational"}),
    "no denominator": (ValueError, "degree: must be >= 1", {"model": "rational", "degree": (2, 0)}),
    "large degree": (ValueError, "degree: at most 10 parameters, got 11", {"model": "polynomial", "degree": 10}),
    "negative ftol": (ValueError, "ftol: must be >= 0", {"ftol": -1}),
    "NaN xtol": (ValueError, "xtol: must be >= 0", {"xtol": np.nan}),
    "text for gtol": (TypeError, "gtol: expected a number", {"gtol": "small"}),
    "negative limit": (ValueError, "max_iterations: must be >= 0", {"max_iterations": -1}),
    "large limit": (ValueError, "max_iterations: must be <=", {"max_iterations": 10**9}),
    "part of an iteration": (TypeError, "max_iterations: expected a whole number", {"max_iterations": 1.5}),
    "pixels of no square": (ValueError, "coordinates: 20 points", {"model": "gaussian_2d", "x0": [1] * 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    kind, message, given = ERRORS[name]
    arguments = {"model": "gaussian", "x0": [1, 1, 1, 1], "data": Y} | given
    with pytest.raises(kind, match=message):
        levenberg_marquardt_batch(**arguments)


# Processes


def test_no_reference_is_kept() -> None:
    x0, y = SIMPLE.problems(50)
    gc.collect()
    before = sys.getrefcount(y), sys.getrefcount(x0), sys.getrefcount(SIMPLE.x)
    for _ in range(20):
        result = SIMPLE.solve(x0, y, weights=np.ones_like(y), covariance=True)
    assert (sys.getrefcount(y), sys.getrefcount(x0), sys.getrefcount(SIMPLE.x)) == before
    gone = weakref.ref(result.x)
    del result
    assert gone() is None


def long_run() -> Any:
    """Takes seconds, most of them in a few problems."""
    t = np.linspace(0, 1, 20_000)
    y = np.random.default_rng(0).normal(size=(64, len(t)))
    return levenberg_marquardt_batch(
        "triple_exponential", [1, 1, 1, 2, 1, 3, 0], y, coordinates=t, max_iterations=1_000_000, ftol=0, xtol=0, gtol=0
    )


def test_interrupt() -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        long_run()
    timer.join()
    assert time.monotonic() - begin < 20


def test_other_threads_run_during_a_batch() -> None:
    x0, y = SIMPLE.problems(50_000)
    wanted = SIMPLE.solve(x0[:100], y[:100])
    turns = 0
    for _ in range(10):
        done = threading.Event()
        results: list[Any] = []

        def work(results: list[Any] = results, done: threading.Event = done) -> None:
            results.append(SIMPLE.solve(x0, y))
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        while not done.wait(0.001):
            turns += 1
            assert equal(SIMPLE.solve(x0[:100], y[:100]), wanted)
        thread.join()
        assert equal(part(results[0], slice(0, 100)), wanted)
        # On a busy machine it may finish before this thread is scheduled.
        if turns > 0:
            break
    assert turns > 0
