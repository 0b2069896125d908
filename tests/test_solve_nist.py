"""The least-squares solver on published problems: NIST's certified sets, and the 53 runs of MINPACK's driver."""

from __future__ import annotations

from typing import Any

import adaptk
import mgh
import numpy as np
import pytest
from adaptk import _nist

PROBLEMS = _nist.problems()
# Far from the solution the models overflow, which the solver must handle.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def fit(p: _nist.Problem, start: Any, **options: Any) -> adaptk.solve.Result:
    return adaptk.solve.levenberg_marquardt(p.residuals, start, **{"jac": p.jacobian, **options})


@pytest.mark.parametrize("p", PROBLEMS.values(), ids=PROBLEMS)
def test_the_data_are_read_as_certified(p: _nist.Problem) -> None:
    assert len(p.y) == p.x.shape[-1]
    if p.name != "Lanczos1":  # parameters of 11 digits do not determine its sum of squares
        assert np.sum(p.residuals(p.certified) ** 2) == pytest.approx(p.sum_of_squares, rel=1e-9)
    b = p.certified.astype(complex)
    for k in range(len(b)):
        z = b.copy()
        h = 1e-30 * abs(b[k])
        z[k] += 1j * h
        slope = _nist.MODELS[p.name](z, p.x.astype(complex))[0].imag / h
        column = p.jacobian(p.certified)[:, k]
        np.testing.assert_allclose(column, slope, rtol=1e-9, atol=1e-12 * np.abs(column).max())


@pytest.mark.parametrize("start", [0, 1], ids=["far", "near"])
@pytest.mark.parametrize("p", PROBLEMS.values(), ids=PROBLEMS)
def test_certified_digits(p: _nist.Problem, start: int) -> None:
    before = p.starts[start].copy()
    r = fit(p, p.starts[start])
    assert r.success, r.message
    assert _nist.digits(r.x, p.certified) >= 10
    if p.name != "Lanczos1":
        assert _nist.digits(r.x_std, p.deviations) >= 7
    np.testing.assert_array_equal(r.x_std, np.sqrt(np.diag(r.cov)))
    np.testing.assert_array_equal(r.fun, p.residuals(r.x))
    assert r.cost == pytest.approx(0.5 * float(r.fun @ r.fun), rel=1e-12)
    np.testing.assert_array_equal(p.starts[start], before)


def test_the_mean_of_the_digits() -> None:
    digits = [_nist.digits(fit(p, s).x, p.certified) for p in PROBLEMS.values() for s in p.starts]
    assert np.mean(digits) >= 10.7


@pytest.mark.parametrize(("jac", "least"), [("2-point", 8.0), ("3-point", 9.0)])
def test_the_mean_of_the_digits_by_differences(jac: str, least: float) -> None:
    digits = []
    for p in PROBLEMS.values():
        for s in p.starts:
            r = fit(p, s, jac=jac)
            digits.append(_nist.digits(r.x, p.certified) if r.success else 0.0)
    assert np.mean(digits) >= least


@pytest.mark.parametrize("p", PROBLEMS.values(), ids=PROBLEMS)
def test_powers_of_two_change_no_iterate(p: _nist.Problem) -> None:
    """Each variable times its own power of two, and the residuals times another: the same bits throughout."""
    shift = 2.0 ** np.arange(-3, len(p.certified) - 3)
    iterates: list[list[Any]] = [[], []]

    def run(scale: Any, unit: float, log: list[Any]) -> adaptk.solve.Result:
        return adaptk.solve.levenberg_marquardt(
            lambda x: unit * p.residuals(x / scale),
            p.starts[1] * scale,
            jac=lambda x: unit * p.jacobian(x / scale) / scale,
            callback=lambda x: log.append(x / scale),
        )

    one = run(np.ones_like(shift), 1.0, iterates[0])
    other = run(shift, 2.0**7, iterates[1])
    assert (one.status, one.nit, one.nfev) == (other.status, other.nit, other.nfev)
    np.testing.assert_array_equal(iterates[0], iterates[1])
    np.testing.assert_array_equal(one.x_std, other.x_std / shift)


def test_scipy_reaches_fewer_digits() -> None:
    """Both use the same residuals and Jacobians, as in the demo."""
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    p = PROBLEMS["Thurber"]
    theirs = optimize.least_squares(p.residuals, p.starts[1], jac=p.jacobian, method="lm")
    assert _nist.digits(theirs.x, p.certified) < _nist.digits(fit(p, p.starts[1]).x, p.certified)


def test_the_summary() -> None:
    found = _nist.fits()
    assert [fit.problem.name for fit in found] == list(PROBLEMS)
    assert _nist.summary(found).startswith("54 of 54 least-squares fits of NIST's reference sets reach 10 or more of")
    head, rows = _nist.rows(found)
    assert {len(row) for row in rows} == {len(head)}


def test_digits() -> None:
    want = np.array([1.0, 2.0])
    assert _nist.digits(want, want) == 11
    assert _nist.digits(want * (1 + 1e-5), want) == pytest.approx(5, abs=1e-6)
    assert _nist.digits([1.0, np.nan], want) == 0
    assert _nist.digits([1.0, 30.0], want) == 0


# More, Garbow and Hillstrom

RUNS = list(mgh.runs())


def test_the_problems_match_the_driver() -> None:
    assert len(RUNS) == 53
    for p in mgh.PROBLEMS:
        x = p.start + 0.01
        with np.errstate(all="ignore"):
            assert p.residuals(x).shape == (p.m,)
            slope = (p.residuals(x + 1e-6) - p.residuals(x - 1e-6)) / 2e-6
            np.testing.assert_allclose(p.jacobian(x).sum(axis=1), slope, rtol=1e-4, atol=1e-4)


def test_as_many_global_minima_as_minpack() -> None:
    reached = 0
    for p, start in RUNS:
        r = adaptk.solve.levenberg_marquardt(p.residuals, start, jac=p.jacobian)
        # The result is never worse than the start.
        assert not r.cost > 0.5 * np.sum(p.residuals(start) ** 2) * (1 + 1e-14), p.name
        reached += mgh.reaches_minimum(p, r.x)
    assert reached >= 43


@pytest.mark.parametrize("p", [p for p in mgh.PROBLEMS if p.m >= p.n], ids=lambda p: f"{p.name} {p.n} {p.m}")
def test_standard_starts_end_at_stationary_points(p: mgh.Problem) -> None:
    r = adaptk.solve.levenberg_marquardt(p.residuals, p.start, jac=p.jacobian)
    assert r.success, r.message
    cosines = np.abs(r.jac.T @ r.fun) / np.maximum(np.linalg.norm(r.jac, axis=0) * np.linalg.norm(r.fun), 1e-300)
    assert r.cost < 1e-12 or cosines.max() < 1e-5


def test_runs_are_independent() -> None:
    """Small runs of one thread share a workspace: a run does not depend on earlier ones."""
    paths = []
    for before in ("Rat43", "MGH09", "Misra1a"):
        fit(PROBLEMS[before], PROBLEMS[before].starts[0])
        path: list[Any] = []
        fit(PROBLEMS["BoxBOD"], PROBLEMS["BoxBOD"].starts[1], callback=lambda x, path=path: path.append(x.tolist()))
        paths.append(path)
    assert paths[0] == paths[1] == paths[2]
