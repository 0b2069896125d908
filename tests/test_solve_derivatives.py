"""Derivatives that are not those of the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any
T = np.linspace(0, 1, 30)
Y = 2 * np.exp(-3 * T) + 0.01 * np.random.default_rng(1).normal(size=30)


def residuals(p: Array) -> Array:
    return p[0] * np.exp(-p[1] * T) - Y


def jacobian(p: Array) -> Array:
    return np.stack([np.exp(-p[1] * T), -p[0] * T * np.exp(-p[1] * T)], axis=1)


@pytest.mark.parametrize("signs", [(-1, -1), (1, -1), (-1, 1), (1, -3)])
def test_a_jacobian_of_the_wrong_sign(signs: tuple[int, int]) -> None:
    r = solve.levenberg_marquardt(residuals, [1.0, 1.0], jac=lambda p: jacobian(p) * signs)
    assert (r.status, r.success) == (-9, False)
    wrong = next(k for k in range(2) if signs[k] != 1)
    assert f"does not agree with the function along x[{wrong}]" in r.message
    assert "disagreement" not in r
    # The best point that was seen, with its own residuals.
    assert r.cost <= 0.5 * np.sum(residuals(np.ones(2)) ** 2)
    np.testing.assert_array_equal(r.fun, residuals(r.x))
    np.testing.assert_array_equal(r.jac, jacobian(r.x) * signs)


def test_bounds_are_kept_while_a_jacobian_is_checked() -> None:
    seen: list[Array] = []

    def watched(p: Array) -> Array:
        seen.append(p.copy())
        return residuals(p)

    r = solve.levenberg_marquardt(watched, [1.0, 1.0], jac=lambda p: -jacobian(p), bounds=([0.9, 0.0], [1.5, 1.5]))
    assert r.status == -9
    assert (np.array(seen) >= [0.9, 0.0]).all()
    assert (np.array(seen) <= [1.5, 1.5]).all()


def test_a_kink_is_no_wrong_derivative() -> None:
    """|x| has two slopes at 0, of which a derivative gives one."""
    r = solve.levenberg_marquardt(
        lambda p: np.array([abs(p[0]) + 1.0, p[1] - 2.0]),
        [0.0, 2.0],
        jac=lambda p: np.array([[1.0 if p[0] >= 0 else -1.0, 0.0], [0.0, 1.0]]),
    )
    assert r.status != -9
