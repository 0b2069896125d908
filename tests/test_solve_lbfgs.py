"""L-BFGS and L-BFGS-B."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import mgh
import numpy as np
import pytest
from adaptk import solve

Array = Any
inf = np.inf


def rosenbrock(x: Array) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def slope(x: Array) -> Array:
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
    g[1:] += 200 * (x[1:] - x[:-1] ** 2)
    return g


def held(x: Array, g: Array, low: Array, high: Array) -> Array:
    """The gradient without components at active bounds."""
    return np.where(((x <= low) & (g > 0)) | ((x >= high) & (g < 0)), 0, g)


def quadratic(seed: int, n: int = 30) -> tuple[Array, Array, Array, Array, Array]:
    g = np.random.default_rng(seed)
    root = g.normal(size=(n, n))
    a = root @ root.T / n + 0.1 * np.diag(g.uniform(0.1, 10, n))
    low = np.where(g.random(n) < 0.7, g.uniform(-1, 0, n), -inf)
    high = np.where(g.random(n) < 0.7, g.uniform(0.01, 1, n), inf)
    return a, 3 * g.normal(size=n), low, high, np.clip(g.normal(size=n), low, high)


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("memory", [1, 5, 10])
def test_rosenbrock(n: int, memory: int) -> None:
    r = solve.lbfgs(rosenbrock, np.full(n, -1.2), jac=slope, memory=memory)
    assert r.success
    np.testing.assert_allclose(slope(r.x), 0, atol=1e-5)
    assert r.fun == rosenbrock(r.x)
    np.testing.assert_array_equal(r.jac, slope(r.x))
    if n == 2:
        np.testing.assert_allclose(r.x, 1, rtol=1e-6)


NAMES = ("Rosenbrock", "helical valley", "Powell singular", "Bard", "Box, three dimensions", "Brown and Dennis")


@pytest.mark.parametrize(("p", "x"), [run for run in mgh.runs() if run[0].name in NAMES])
def test_problems_of_more_garbow_and_hillstrom(p: Any, x: Array) -> None:
    with np.errstate(all="ignore"):
        r = solve.lbfgs(
            lambda z: float(np.sum(p.residuals(z) ** 2)), x, jac=lambda z: 2 * p.jacobian(z).T @ p.residuals(z)
        )
    assert r.success
    assert r.fun <= p.minimum * (1 + 1e-7) + 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_quadratics_within_bounds(seed: int) -> None:
    a, b, low, high, x0 = quadratic(seed)

    def fun(x: Array) -> tuple[float, Array]:
        assert ((x >= low) & (x <= high)).all()
        return float(x @ a @ x / 2 - b @ x), a @ x - b

    r = solve.lbfgs(fun, x0, jac=True, bounds=(low, high))
    assert r.success
    assert ((r.x >= low) & (r.x <= high)).all()
    # The KKT conditions, which are sufficient here.
    np.testing.assert_allclose(held(r.x, a @ r.x - b, low, high), 0, atol=1e-7)
    np.testing.assert_array_equal(r.active_mask, np.where(r.x == low, -1, np.where(r.x == high, 1, 0)))
    assert (r.active_mask != 0).sum() > 3


@pytest.mark.parametrize(
    ("bounds", "want"),
    [(([-2, -2], [0.5, 2]), [0.5, 0.25]), (([-2, 1.5], [2, 3]), [-1.22103, 1.5]), (([-2, -2], [2, 2]), [1, 1])],
)
@pytest.mark.parametrize("jac", [slope, "2-point", "3-point", None, "cs"])
def test_rosenbrock_within_bounds(bounds: Any, want: Any, jac: Any) -> None:
    low, high = np.array(bounds, dtype=float)

    def fun(x: Array) -> Any:
        assert ((x.real >= low) & (x.real <= high)).all()
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    r = solve.lbfgs(fun, np.clip([-1.2, 1.0], low, high), jac=jac, bounds=bounds)
    assert r.success
    np.testing.assert_allclose(r.x, want, rtol=1e-3)
    np.testing.assert_allclose(held(r.x, slope(r.x), low, high), 0, atol=1e-2 if jac == "2-point" else 1e-4)


def test_scipy_finds_the_same_minimum() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    n = 25
    low, high = np.where(np.arange(n) % 2 == 0, 0.3, -inf), np.where(np.arange(n) % 3 == 0, 0.9, inf)
    x0 = np.clip(np.full(n, -1.2), low, high)
    want = optimize.minimize(
        rosenbrock, x0, jac=slope, method="L-BFGS-B", bounds=optimize.Bounds(low, high),
        options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000},
    )  # fmt: skip
    got = optimize.minimize(rosenbrock, x0, jac=slope, method=solve.lbfgs, bounds=optimize.Bounds(low, high))
    assert got.success
    np.testing.assert_allclose(got.x, want.x, rtol=1e-5)
    assert got.fun <= want.fun * (1 + 1e-10)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**60])
def test_units(scale: float) -> None:
    one = solve.lbfgs(rosenbrock, [-1.2, 1.0], jac=slope)
    of_f = solve.lbfgs(lambda x: scale * rosenbrock(x), [-1.2, 1.0], jac=lambda x: scale * slope(x))
    of_x = solve.lbfgs(
        lambda x: rosenbrock(x / scale), np.array([-1.2, 1.0]) * scale, jac=lambda x: slope(x / scale) / scale
    )
    np.testing.assert_array_equal(of_f.x, one.x)
    np.testing.assert_array_equal(of_x.x / scale, one.x)
    assert of_f.nfev == of_x.nfev == one.nfev


def test_float32() -> None:
    r = solve.lbfgs(rosenbrock, np.array([-1.2, 1.0], np.float32), jac=slope, bounds=(-2, 2))
    assert r.success
    assert r.x.dtype == r.jac.dtype == np.float32
    assert isinstance(r.fun, np.float32)
    np.testing.assert_allclose(r.x, 1, rtol=1e-2)


def test_a_large_problem() -> None:
    n = 8_000
    d = np.linspace(1, 100, n)
    r = solve.lbfgs(lambda x: float(d @ (x - 1) ** 2 / 2), np.zeros(n), jac=lambda x: d * (x - 1))
    assert r.success
    np.testing.assert_allclose(r.x, 1, atol=1e-6)
    bounded = solve.lbfgs(
        lambda x: float(d @ (x - 1) ** 2 / 2), np.zeros(n), jac=lambda x: d * (x - 1), bounds=(-1, 0.5)
    )
    assert bounded.success
    np.testing.assert_array_equal(bounded.x, 0.5)


def test_statuses() -> None:
    assert solve.lbfgs(rosenbrock, [-1.2, 1.0], jac=slope, maxiter=3).status == 0
    assert solve.lbfgs(rosenbrock, [-1.2, 1.0], jac=slope, maxiter=3).nit == 3
    assert solve.lbfgs(rosenbrock, [-1.2, 1.0], jac=slope, max_seconds=0.0).status == -2
    assert solve.lbfgs(lambda x: np.nan, [1.0], jac=lambda x: x).status == -3
    assert solve.lbfgs(lambda x: -inf if x[0] > 9 else float(-x[0]), [1.0], jac=lambda x: [-1.0]).status == -6
    seen: list[Any] = []

    def stop(intermediate_result: Any) -> Any:
        seen.append(intermediate_result)
        return np.bool_(len(seen) == 4)

    r = solve.lbfgs(rosenbrock, [-1.2, 1.0], jac=slope, callback=stop, history=True)
    assert r.status == -1
    assert [s.nit for s in seen] == [1, 2, 3, 4]
    np.testing.assert_array_equal(r.history["fun"][1:], [s.fun for s in seen])
    assert np.isnan(r.history["step"][0])
    done = solve.lbfgs(lambda x: float(x @ x), [0.0, 0.0], jac=lambda x: 2 * x)
    assert (done.status, done.nit) == (1, 0)


def test_a_step_to_a_nonfinite_value() -> None:
    def fun(x: Array) -> float:
        return float(x[0] - np.log(x[0])) if x[0] > 0 else np.nan

    r = solve.lbfgs(fun, [1e-3], jac=lambda x: 1 - 1 / x)
    assert r.success
    np.testing.assert_allclose(r.x, 1, rtol=1e-6)


def test_a_function_finite_only_at_the_start() -> None:
    # The points are as near as possible and there is a slope: not "no lower point".
    r = solve.lbfgs(lambda x: 1.0 if x[0] == 1 else math.nan, [1.0], jac=lambda x: np.ones(1))
    assert r.status == -3
    assert r.x[0] == 1


def test_a_wrong_gradient() -> None:
    r = solve.lbfgs(rosenbrock, [-1.2, 1.0], jac=lambda x: -slope(x))
    assert r.status == -9
    assert not r.success
    assert "does not agree" in r.message
    with pytest.raises(ValueError, match=r"check_derivatives: jac\["):
        solve.lbfgs(rosenbrock, [-1.2, 1.0], jac=lambda x: -slope(x), check_derivatives=True)


def test_compiled_functions() -> None:
    double, pointer = ctypes.c_double, ctypes.POINTER(ctypes.c_double)
    value = ctypes.CFUNCTYPE(double, ctypes.c_int, pointer, ctypes.c_void_p)(
        lambda n, x, user: rosenbrock(np.ctypeslib.as_array(x, (n,)))
    )

    def write(n: int, x: Any, g: Any, user: Any) -> None:
        np.ctypeslib.as_array(g, (n,))[:] = slope(np.ctypeslib.as_array(x, (n,)))

    gradient = ctypes.CFUNCTYPE(None, ctypes.c_int, pointer, pointer, ctypes.c_void_p)(write)
    got = solve.lbfgs(value, [-1.2, 1.0], jac=gradient)
    want = solve.lbfgs(rosenbrock, [-1.2, 1.0], jac=slope)
    np.testing.assert_array_equal(got.x, want.x)


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "memory: must be >= 1", {"memory": 0}),
        (ValueError, "bounds: lower must not be greater", {"bounds": (1, 0)}),
        (ValueError, "x0: variable 0 is -1.2, outside its bounds", {"bounds": (0, 2)}),
        (ValueError, "constraints: this method has none", {"constraints": [1]}),
        (ValueError, r"jac must return real numbers of shape \(2,\)", {"jac": lambda x: x[:1]}),
        (TypeError, "fun must return a number", {"fun": lambda x: x}),
        (ValueError, "gtol: must be >= 0", {"gtol": -1}),
        (TypeError, "callback: expected a callable", {"callback": 3}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"fun": rosenbrock, "x0": [-1.2, 1.0], "jac": slope} | options
    with pytest.raises(error, match=text):
        solve.lbfgs(**given)


def test_exceptions_propagate() -> None:
    def fails(x: Array) -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        solve.lbfgs(fails, [1.0])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("start", [[1.0, 1.0], [0.0, 3.0], [-1e3, 1e-3]])
def test_an_unbounded_slope_is_not_a_minimum(start: list[float], exact: bool) -> None:
    """Far out, rounding of x[1] makes its slope far larger than the slope of descent."""
    jac = (lambda x: np.array([-1.0, 2 * x[1]])) if exact else None
    with np.errstate(all="ignore"):
        r = solve.lbfgs(lambda x: float(-x[0] + x[1] ** 2), start, jac=jac)
    assert not r.success


@pytest.mark.parametrize("offset", [1e12, 1e16])
def test_rounding_that_hides_the_gradient(offset: float) -> None:
    """Differences of 0 far from the minimum are not a small gradient, and the message says so."""
    r = solve.lbfgs(lambda x: float((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2 + offset), [-1.2, 1.0])
    assert r.status == 5
    assert "rounding" in r.message


def test_differences_that_see_that_the_gradient_is_0() -> None:
    r = solve.lbfgs(lambda x: float(x[0] ** 2), [0.0])
    assert r.status == 1


@pytest.mark.parametrize("n", [1, 5])
def test_evaluations_on_a_sphere(n: int) -> None:
    """Three for a search along -g with one secant, the first included; one gradient for each direction's curvature."""
    r = solve.lbfgs(lambda x: (float(x @ x) / 2, x.copy()), np.arange(1.0, n + 1), jac=True)
    assert r.status == 1
    np.testing.assert_allclose(r.x, 0, atol=1e-10)
    assert r.nfev <= 6


def test_a_search_ends_at_rounding() -> None:
    """Watson's function has no lower point within its rounding, which forty trials of a search do not change."""
    p, x = next(run for run in mgh.runs() if run[0].name == "Watson" and run[0].n == 6)

    def f(z: Array) -> tuple[float, Array]:
        r = p.residuals(z)
        return float(r @ r), 2 * p.jacobian(z).T @ r

    r = solve.lbfgs(f, x, jac=True)
    assert r.success
    assert mgh.reaches_minimum(p, r.x)
    assert r.nfev <= 120
