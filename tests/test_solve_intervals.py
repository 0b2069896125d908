"""Confidence intervals of fits, and the repr of results."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk.solve import Batch, Fit, Result
from adaptk.solve._result import student_t


def fit(sigma: float = 0.1, **options: Any) -> tuple[Fit, Any, Any]:
    t = np.linspace(0.0, 2.0, 30)
    y = 2.5 * t + 1.0 + sigma * np.random.default_rng(0).normal(size=t.size)
    return adaptk.solve.levenberg_marquardt(lambda p: p[0] * t + p[1] - y, [1.0, 0.0], **options), t, y


# Published quantiles of Student's t (two-sided): Abramowitz and Stegun, Table 26.10, to the digits given there.
TABLE = {
    (1, 0.5): 1.000,
    (1, 0.9): 6.314,
    (1, 0.99): 63.657,
    (2, 0.95): 4.303,
    (3, 0.99): 5.841,
    (5, 0.998): 5.893,
    (10, 0.95): 2.228,
    (29, 0.98): 2.462,
    (60, 0.999): 3.460,
    (120, 0.95): 1.980,
    (math.inf, 0.95): 1.960,
    (math.inf, 0.999): 3.291,
}


@pytest.mark.parametrize(("dof", "level"), TABLE)
def test_quantiles_of_a_published_table(dof: float, level: float) -> None:
    assert student_t(level, dof) == pytest.approx(TABLE[dof, level], abs=6e-4)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 6, 17, 100, 399, 400, 401, 402, 1000, 10**4, 10**7, math.inf])
def test_quantiles_match_scipy(dof: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    for level in (1e-3, 0.1, 0.5, 0.6827, 0.9, 0.95, 0.99, 0.999, 0.99999):
        want = stats.norm.isf((1 - level) / 2) if math.isinf(dof) else stats.t.isf((1 - level) / 2, dof)
        assert student_t(level, dof) == pytest.approx(want, rel=1e-10), level


def test_quantiles_at_extreme_levels() -> None:
    assert 0.0 < student_t(1e-300, 3) < 1e-299
    assert 1e15 < student_t(1.0 - 2.0**-53, 1) < 1e16
    assert 8.0 < student_t(1.0 - 2.0**-53, math.inf) < 9.0


def test_intervals_of_a_line() -> None:
    """The textbook's formulas of linear regression, by NumPy."""
    result, t, y = fit()
    design = np.stack([t, np.ones_like(t)], axis=1)
    best, squares, *_ = np.linalg.lstsq(design, y, rcond=None)
    std = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * squares[0] / 28)
    quantile = 2.0484071417952445  # of 28 degrees of freedom, for 95 %
    want = np.stack([best - quantile * std, best + quantile * std], axis=1)
    assert result.dof == 28.0
    assert result.confidence_intervals() == pytest.approx(want, rel=1e-8)
    assert result.confidence_intervals(0.5) == pytest.approx(
        np.stack([best - 0.6833531 * std, best + 0.6833531 * std], axis=1), rel=1e-7
    )


def test_intervals_where_the_variance_is_known() -> None:
    result, *_ = fit(absolute_sigma=True)
    assert result.dof == math.inf
    half = 1.959963984540054 * result.x_std
    assert result.confidence_intervals() == pytest.approx(np.stack([result.x - half, result.x + half], axis=1))


def test_coverage() -> None:
    """1000 fits with three degrees of freedom, where the normal distribution would give 84 %."""
    rng = np.random.default_rng(1)
    t = np.arange(5.0)
    held = 0
    for _ in range(1000):
        y = 2.0 * t + 1.0 + rng.normal(size=5)
        result = adaptk.solve.levenberg_marquardt(
            lambda p, y=y: p[0] * t + p[1] - y, [2.0, 1.0], jac=lambda _: JACOBIAN
        )
        low, high = result.confidence_intervals(0.9)[0]
        held += low < 2.0 < high
    assert held == pytest.approx(900, abs=30)  # three standard deviations of the count


JACOBIAN = np.stack([np.arange(5.0), np.ones(5)], axis=1)


def test_no_degree_of_freedom() -> None:
    t = np.arange(2.0)
    result = adaptk.solve.levenberg_marquardt(lambda p: p[0] * t + p[1] - t, [1.0, 1.0])
    assert result.dof == 0.0
    assert np.isinf(result.confidence_intervals()).all()


@pytest.mark.parametrize(
    ("level", "error"),
    [
        (0.0, ValueError),
        (1.0, ValueError),
        (95, ValueError),
        (math.nan, ValueError),
        ("0.9", TypeError),
        (True, TypeError),
    ],
)
def test_invalid_levels(level: Any, error: type[Exception]) -> None:
    result, *_ = fit()
    with pytest.raises(error, match=r"level: expected a number in \(0, 1\)"):
        result.confidence_intervals(level)


# What is printed


def test_a_fit_prints_its_parameters_and_not_its_jacobian() -> None:
    result, *_ = fit()
    lines = str(result).splitlines()
    assert lines[0].split() == ["parameter", "value", "std", "95%", "interval"]
    for i, line in enumerate(lines[1:3]):
        name, value, std, *ends = line.split()
        assert name == f"x[{i}]"
        assert float(value) == pytest.approx(result.x[i], rel=1e-7)
        assert float(std) == pytest.approx(result.x_std[i], rel=5e-3)
        assert [float(end.strip("[,]")) for end in ends] == pytest.approx(result.confidence_intervals()[i], rel=1e-5)
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3] == f"cost {result.cost:.8g}, 30 residuals, 28 degrees of freedom"
    assert lines[4] == (
        f"status {result.status}: {result.message} ({result.nit} iterations, {result.nfev} evaluations)"
    )
    assert len(lines) == 5
    assert "known variance" in repr(fit(absolute_sigma=True)[0])


def test_a_fit_marks_the_parameters_at_a_bound() -> None:
    far = np.array([3.0, 1.0])
    held = adaptk.solve.levenberg_marquardt(
        lambda p: np.concatenate([p - far, p - far]), [1.0, 2.5], bounds=([-5.0, 2.0], [1.5, np.inf])
    )
    lines = str(held).splitlines()
    assert lines[1].endswith("]  at its upper bound")
    assert lines[2].endswith("]  at its lower bound")
    assert "bound" not in str(fit()[0])


def test_other_results_print_no_large_array() -> None:
    text = repr(Result(x=np.arange(1000.0), jac=np.zeros((100, 3)), hess=np.eye(2), success=True, message="Done."))
    assert "jac: array of shape (100, 3)" in text
    assert "..." in text
    assert "hess: [[1. 0.]" in text
    assert text.splitlines()[0].strip() == "message: Done."
    assert len(text.splitlines()) == 6
    r = adaptk.solve.cg([[2.0, 0.0], [0.0, 5.0]], [1.0, 1.0], history=True)
    assert "history: " in repr(r)
    assert "array(" not in repr(r)


def test_a_batch_prints_unconverged_problems() -> None:
    t = np.linspace(0.0, 2.0, 20)
    data = np.stack([5 * np.exp(-t) + 1, np.full(20, np.nan)])
    result = adaptk.solve.levenberg_marquardt_batch("exponential", [4.0, 1.5, 0.0], data, coordinates=t)
    assert type(result) is Batch
    lines = repr(result).splitlines()
    assert lines[0] == "1 of 2 problems have converged."
    assert lines[1] == "not converged: 1 (status -3)"
    assert "x (2, 3)" in lines[2]
    many = adaptk.solve.levenberg_marquardt_batch("exponential", [4.0, 1.5, 0.0], np.full((12, 20), np.nan))
    assert repr(many).splitlines()[1].endswith("9 (status -3), ...")


def test_fits_are_dicts() -> None:
    result, *_ = fit()
    assert isinstance(result, dict)
    assert result["x"] is result.x
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert type(other) is Fit
        assert repr(other) == repr(result)
    assert repr(Fit()) == "Fit()"
    assert repr(Batch()) == "Batch()"
    assert "x: [1.]" in repr(Fit(x=np.ones(1)))


# Bounds


@pytest.mark.parametrize(
    ("bounds", "start", "remedy"),
    [
        ([(0, 1), (0, 1)], [0.5, 0.5], "write bounds=([0.0, 0.0], [1.0, 1.0]), which is zip(*bounds)"),
        ([(0, 1), (0, 1), (2, 3)], [0.5, 0.5, 2.5], "write bounds=([0.0, 0.0, 2.0], [1.0, 1.0, 3.0])"),
    ],
)
def test_bounds_that_are_pairs_for_each_variable(bounds: Any, start: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=r"^bounds: ") as error:
        adaptk.solve.levenberg_marquardt(lambda p: p - 1, start, bounds=bounds)
    assert remedy in str(error.value)
    adaptk.solve.levenberg_marquardt(lambda p: p - 1, start, bounds=tuple(zip(*bounds, strict=True)))


def test_bounds_that_are_pairs_in_a_batch() -> None:
    t, data = np.arange(5.0), np.ones((2, 5))
    for bounds in ([(0, 1), (0, 1)], [(0, 1), (0, 1), (0, 1)]):
        with pytest.raises(ValueError, match=r"write bounds=\(\[0\.0, 0\.0"):
            adaptk.solve.levenberg_marquardt_batch(
                "polynomial", np.full(len(bounds), 0.5), data, coordinates=t, bounds=bounds
            )


def test_invalid_bounds() -> None:
    for bounds in ([(2, 1), (0, 1)], 3, [(0, 1)], "ab"):
        with pytest.raises(ValueError, match=r"^bounds: ") as error:
            adaptk.solve.levenberg_marquardt(lambda p: p - 1, [0.5, 0.5], bounds=bounds)
        assert "zip" not in str(error.value)
