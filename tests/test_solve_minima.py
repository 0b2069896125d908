"""The solvers on problems with known minima."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve
from solve_problems import (
    GRADIENTS,
    NEWTONS,
    PROBLEMS,
    SLOW,
    SOLVERS,
    Array,
    rosenbrock,
    rosenbrock_gradient,
    rosenbrock_hessian,
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_minima(solver: str, problem: str) -> None:
    f, g, h, start, minimum, where = PROBLEMS[problem]
    if (solver in SLOW and problem in ("rosenbrock", "wood")) or (solver == "sd bb" and problem == "wood"):
        pytest.skip("takes steepest descent thousands of steps")
    values: list[float] = []

    def watched(x: Array) -> float:
        values.append(f(x))
        return values[-1]

    r = SOLVERS[solver](watched, start, g, h)
    assert r.success, r.message
    assert r.fun == pytest.approx(minimum, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(r.x, where, rtol=2e-5, atol=2e-5)
    # The best point evaluated, and consistent results.
    assert r.fun <= np.nanmin(values) + 4e-16 * abs(minimum)
    assert r.fun == f(r.x)
    np.testing.assert_allclose(r.jac, g(r.x), rtol=0, atol=1e-6 * np.abs(g(np.array(start))).max())
    assert r.nfev == len(values)
    assert r.x.dtype == np.float64
    assert r.x.shape == (len(start),)


@pytest.mark.parametrize("solver", [*NEWTONS, *GRADIENTS])
def test_float32_is_kept(solver: str) -> None:
    f, g, h = rosenbrock, rosenbrock_gradient, rosenbrock_hessian
    seen: list[Any] = []

    def watched(x: Array) -> float:
        seen.append(x.dtype)
        return f(x)

    r = SOLVERS[solver](watched, np.array([-1.2, 1.0], np.float32), g, h)
    assert set(seen) == {np.dtype(np.float32)}
    assert r.x.dtype == r.jac.dtype == np.asarray(r.fun).dtype == np.float32
    np.testing.assert_allclose(r.x, 1.0, atol=0.05)


def test_float32_least_squares() -> None:
    t = np.linspace(0, 1, 20, dtype=np.float32)
    y = (2 * np.exp(-3 * t)).astype(np.float32)
    r = solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * t) - y, np.ones(2, np.float32))
    assert all(v.dtype == np.float32 for v in (r.x, r.fun, r.jac, r.cov, r.x_std))
    np.testing.assert_allclose(r.x, [2, 3], rtol=1e-4)


@pytest.mark.parametrize("solver", ["trust-region", "levenberg", "hessp", *GRADIENTS])
@pytest.mark.parametrize(("in_x", "in_f"), [(2.0**10, 1.0), (2.0**-20, 2.0**30), (1.0, 2.0**-40)])
def test_powers_of_two_change_no_iterate(solver: str, in_x: float, in_f: float) -> None:
    def run(a: float, b: float) -> tuple[list[Array], solve.Result]:
        log: list[Array] = []
        r = SOLVERS[solver](
            lambda x: b * rosenbrock(x / a),
            np.array([-1.2, 1.0, 0.7]) * a,
            lambda x: b / a * rosenbrock_gradient(x / a),
            lambda x: b / a / a * rosenbrock_hessian(x / a),
            callback=lambda x: log.append(x / a),
        )
        return log, r

    want, one = run(1.0, 1.0)
    got, other = run(in_x, in_f)
    assert (one.status, one.nit, one.nfev) == (other.status, other.nit, other.nfev)
    np.testing.assert_array_equal(want, got)
