"""Batches with starts that do not determine a parameter, and with data near the limits of the range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve

Array = Any


def rotated(p: Any, x: Array, y: Array) -> Array:
    a, cx, cy, su, sv, offset, angle = p
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
    return a * np.exp(-u * u / 2 / su**2 - v * v / 2 / sv**2) + offset


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("widths", [(2.0, 2.0), (3.0, 3.0), (2.0, 2.0001), (2.0, 2.2)])
def test_an_angle_undetermined_at_the_start(widths: tuple[float, float], dtype: Any) -> None:
    """With equal widths the column of the angle is zero: it must neither get an unbounded step nor end the run."""
    g = np.random.default_rng(0)
    y, x = np.indices((15, 15)).astype(float)
    true = np.array(
        [
            [
                *(100 * g.uniform(0.8, 1.2), *(7 + g.uniform(-1, 1, 2)), g.uniform(1.5, 2), g.uniform(2.2, 3), 10.0),
                g.uniform(-1.4, 1.4),
            ]
            for _ in range(60)
        ]
    )
    data = np.array([rotated(p, x, y) + g.normal(size=x.shape) for p in true])
    start = np.array([90, 7, 7, *widths, 8, 0], dtype)
    r = solve.levenberg_marquardt_batch("gaussian_2d_rotated", start, data.astype(dtype))
    assert r.success.all()
    best = 0.5 * np.sum((data - np.array([rotated(p, x, y) for p in true])) ** 2, axis=(1, 2))
    assert (r.cost <= best * (1 + 1e-5)).all()
    # The shape of the fit, independent of the order of the widths and of full turns of the angle.
    for got, want in zip(r.x.astype(float), true, strict=True):
        np.testing.assert_allclose(rotated(got, x, y), rotated(want, x, y), atol=3.0)
    assert (np.abs(r.x[:, 6]) < 1e5).all()


T = np.linspace(0, 1, 50)
Y = 2 * np.exp(-3 * T) + 0.01 * np.random.default_rng(1).normal(size=50)


@pytest.mark.parametrize(
    ("dtype", "power"),
    [(np.float32, -86), (np.float32, 63), (np.float32, -50), (np.float64, -531), (np.float64, -664), (np.float64, 515)],
)
@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("absolute", [False, True])
def test_units_of_the_data(dtype: Any, power: int, offset: float, absolute: bool) -> None:
    def run(unit: Any) -> Any:
        scale = np.array([unit, 1, unit], dtype)
        start = np.array([1, 1, offset], dtype) * scale
        r = solve.levenberg_marquardt_batch(
            "exponential",
            start,
            (Y.astype(dtype) * unit)[None],
            coordinates=T.astype(dtype),
            covariance=True,
            absolute_sigma=absolute,
        )
        # With absolute_sigma: residuals are declared to have variance 1, whatever their unit.
        deviation = r.x_std[0] / (np.array([1, 1 / unit, 1], dtype) if absolute else scale)
        return r.status[0], r.x[0] / scale, deviation

    want_status, x, deviation = run(dtype(1))
    got_status, scaled_x, scaled_deviation = run(dtype(2.0**power))
    assert want_status > 0
    assert got_status > 0
    tolerance = 1e-2 if dtype == np.float32 else 1e-7
    assert (np.abs(scaled_x - x) <= tolerance * np.array([0.004, 0.01, 0.004])).all()
    np.testing.assert_allclose(scaled_deviation, deviation, rtol=1e-3 if dtype == np.float32 else 1e-9)
