"""Fits of features that are narrow relative to their position, models with fewer digits than their dtype, and data near
the limits of the range."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any


class Peak:
    """A Lorentz peak far from zero."""

    def __init__(self, centre: float, width: float) -> None:
        self.at = centre + width * np.linspace(-6, 6, 201)
        self.start = [0.8, centre + 0.3 * width, 1.3 * width, 0.0]
        noise = np.random.default_rng(0).normal(size=201) * 0.01
        self.y = self.model([1.0, centre, width, 0.1]) + noise

    def model(self, p: Any) -> Array:
        return p[0] / (1 + ((self.at - p[1]) / p[2]) ** 2) + p[3]

    def residuals(self, p: Array) -> Array:
        return self.model(p) - self.y

    def jacobian(self, p: Array) -> Array:
        u = (self.at - p[1]) / p[2]
        d = 1 + u * u
        return np.stack([1 / d, 2 * p[0] * u / d**2 / p[2], 2 * p[0] * u * u / d**2 / p[2], np.ones(201)], axis=1)


@pytest.mark.parametrize("jac", [None, "2-point", "3-point"])
@pytest.mark.parametrize(("centre", "width"), [(6e9, 3e3), (6e9, 3e2), (6e8, 3e3), (1e6, 1.0), (1e3, 1.0), (1.0, 0.5)])
def test_a_narrow_peak_far_from_zero(centre: float, width: float, jac: str | None) -> None:
    peak = Peak(centre, width)
    want = solve.levenberg_marquardt(peak.residuals, peak.start, jac=peak.jacobian)
    got = solve.levenberg_marquardt(peak.residuals, peak.start, jac=jac)
    assert want.success
    assert got.success, got.message
    np.testing.assert_allclose(got.x_std, want.x_std, rtol=1e-3)
    np.testing.assert_allclose((got.x - want.x) / want.x_std, 0, atol=1e-4)


def test_a_given_step_is_used_for_the_last_jacobian() -> None:
    seen: list[Array] = []

    def residuals(p: Array) -> Array:
        seen.append(p.copy())
        return np.array([p[0] - 1.0, p[0] * p[0], 2.0 * p[1]])

    solve.levenberg_marquardt(residuals, [3.0, 4.0], rel_step=1e-5)
    solved = seen[-1]
    assert np.abs(solved).max() > 0
    steps = {round(float(np.abs(a - b).max() / 3.0), 9) for a, b in itertools.pairwise(seen)}
    assert 1e-5 in steps  # of the first Jacobian: 1e-5 times |x0|
    last = np.abs(seen[-1] - seen[-2])
    assert 0 < last.max() <= 2.1e-5 * 4.0


T = np.linspace(0, 1, 50)
Y = 2 * np.exp(-3 * T) + 0.01 * np.random.default_rng(1).normal(size=50)
SINGLE = T.astype(np.float32)
OF_FEWER_DIGITS = {
    "arguments in float32": lambda p: np.float32(p[0]) * np.exp(-np.float32(p[1]) * SINGLE),
    "results in float32": lambda p: (float(p[0]) * np.exp(-float(p[1]) * T)).astype(np.float32),
}


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("start", [(1.0, 1.0), (0.3, 0.7), (1.1, 0.9)])
@pytest.mark.parametrize("name", OF_FEWER_DIGITS)
def test_a_float32_model_in_float64_residuals(name: str, start: tuple[float, float], jac: str) -> None:
    """Differences with the step for float64 are zero or float32 rounding errors."""
    model = OF_FEWER_DIGITS[name]
    want = solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * T) - Y, [1.0, 1.0])
    got = solve.levenberg_marquardt(lambda p: model(p).astype(np.float64) - Y, start, jac=jac)
    assert got.fun.dtype == np.float64
    assert got.success, got.message
    np.testing.assert_allclose((got.x - want.x) / want.x_std, 0, atol=0.02)
    np.testing.assert_allclose(got.x_std, want.x_std, rtol=0.02)


def test_an_unused_parameter_costs_few_evaluations() -> None:
    used = solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * T) - Y, [1.0, 1.0])
    idle = solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * T) - Y, [1.0, 1.0, 5.0])
    assert idle.success
    assert idle.nfev <= used.nfev + used.njev + 12
    assert np.isinf(idle.x_std).all()
    np.testing.assert_allclose(idle.x, [*used.x, 5.0], rtol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        (np.float32, 1e-26),
        (np.float32, 1e19),
        (np.float32, 1e-16),
        (np.float64, 1e-160),
        (np.float64, 1e-200),
        (np.float64, 1e155),
        (np.float64, 1e200),
    ],
)
@pytest.mark.parametrize("loss", ["linear", "huber"])
@pytest.mark.parametrize("absolute", [False, True])
def test_units_of_the_data(dtype: Any, unit: float, loss: str, absolute: bool) -> None:
    t, y = T.astype(dtype), Y.astype(dtype)
    power = dtype(2.0 ** round(np.log2(unit)))

    def run(unit: Any) -> Any:
        scale = np.array([unit, 1, unit], dtype)
        data = y * unit
        options = {"loss": loss, "f_scale": float(unit) * 0.015, "absolute_sigma": absolute}
        r = solve.levenberg_marquardt(
            lambda p: p[0] * np.exp(-p[1] * t) + p[2] - data,
            scale * np.array([1, 1, 0], dtype),
            jac=lambda p: np.stack([np.exp(-p[1] * t), -p[0] * t * np.exp(-p[1] * t), np.ones_like(t)], axis=1),
            **options,
        )
        return r, r.x / scale, r.x_std / (1 if absolute and loss == "linear" else scale)

    want, x, deviation = run(dtype(1))
    got, x_scaled, deviation_scaled = run(power)
    assert want.success
    assert got.success, got.message
    np.testing.assert_allclose((x_scaled - x) / deviation, 0, atol=1e-3 if dtype == np.float32 else 1e-9)
    if absolute and loss == "linear":
        # Residuals are declared to have variance 1, whatever their unit.
        deviation_scaled = deviation_scaled * np.array([1, float(power), 1])
    np.testing.assert_allclose(deviation_scaled, deviation, rtol=1e-4)
