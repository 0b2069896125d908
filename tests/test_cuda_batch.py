"""Batches of fits whose data are on a CUDA device: the CPU's bits, and errors of arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from device_arrays import Library
from helpers import same_bits

pytestmark = pytest.mark.cuda

START = [9.0, 2.0, 2.0, 1.0, 1.5]
fit = adaptk.solve.levenberg_marquardt_batch


def spots(count: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    y, x = np.indices((5, 5))
    cx, cy = 2 + rng.uniform(-0.5, 0.5, (2, count, 1, 1))
    clean = 10 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * rng.uniform(0.8, 1.2, (count, 1, 1)) ** 2)) + 2
    return (rng.poisson(50 * clean) / 50).astype(np.float32)


def assert_same(device: Library, got: Any, want: Any) -> None:
    assert set(got) == set(want)
    for name in ("x", "cost", "status", "nit", "success", *(("cov", "x_std") if "cov" in want else ())):
        assert type(got[name]) is type(got.x)
        assert same_bits(device.get(got[name]), want[name]), name
    assert "on cuda:0" in got.message


def test_spots(device: Library) -> None:
    data = spots(5)
    want = fit("gaussian_2d", START, data, covariance=True)
    assert want.success.all()
    assert_same(device, fit("gaussian_2d", START, device.put(data), covariance=True), want)


def test_one_row_per_problem(device: Library) -> None:
    """Every array with a row per problem, a robust loss, and fixed parameters."""
    rng = np.random.default_rng(4)
    t = np.linspace(0, 3, 12, dtype=np.float32) + rng.uniform(0, 0.1, (4, 1)).astype(np.float32)
    rates = np.array([[0.8], [1.2], [1.5], [2.0]], np.float32)
    data = (5 * np.exp(-rates * t) + 1 + rng.normal(0, 0.02, t.shape)).astype(np.float32)
    data[:, 3] += 2
    x0 = np.tile(np.array([4.0, 1.0, 1.0], np.float32), (4, 1))
    weights = rng.uniform(0.5, 1, t.shape).astype(np.float32)
    low, high = np.full((4, 3), 0.5, np.float32), np.full((4, 3), 5.0, np.float32)
    scale = np.array([0.1, 0.2, 0.1, 0.2], np.float32)
    arrays = {"coordinates": t, "weights": weights, "f_scale": scale}
    options: dict[str, Any] = {"loss": "cauchy", "fixed": [False, False, True]}
    want = fit("exponential", x0, data, bounds=(low, high), **arrays, **{**options, "fixed": np.array([0, 0, 1], bool)})
    assert want.success.all()
    there = {name: device.put(a) for name, a in arrays.items()}
    got = fit("exponential", device.put(x0), device.put(data), bounds=(device.put(low), device.put(high)), **there,
              **options)  # fmt: skip
    assert_same(device, got, want)


def test_numbers_for_all_problems(device: Library) -> None:
    data = spots(2)
    options: dict[str, Any] = {"bounds": (0, [20, 4, 4, 3, 4]), "fixed": {"offset": 2.0}, "max_iterations": 6}
    want = fit("gaussian_2d", START, data, **options)
    assert_same(device, fit("gaussian_2d", START, device.put(data), **options), want)


def test_empty(device: Library) -> None:
    got = fit("gaussian_2d", START, device.put(np.zeros((0, 5, 5), np.float32)))
    assert device.get(got.x).shape == (0, 5)


def arguments(count: int) -> dict[str, np.ndarray[Any, Any]]:
    y, x = np.indices((5, 5), dtype=np.float32)
    return {
        "x0": np.tile(np.float32(START), (count, 1)),
        "coordinates": np.stack([x.ravel(), y.ravel()], axis=1),
        "weights": np.ones(25, np.float32),
        "f_scale": np.ones(count, np.float32),
    }


@pytest.mark.parametrize("name", ["x0", "coordinates", "weights", "f_scale"])
def test_arrays_on_other_devices(device: Library, name: str) -> None:
    data = spots(3)
    here = arguments(3)
    there = {k: device.put(a) for k, a in here.items()}
    with pytest.raises(ValueError, match=rf"^{name}: on the CPU, but data are on cuda:0"):
        fit("gaussian_2d", data=device.put(data), loss="huber", **{**there, name: here[name]})
    with pytest.raises(ValueError, match=rf"^{name}: on a CUDA device, but data are on the CPU"):
        fit("gaussian_2d", data=data, loss="huber", **{**here, name: there[name]})
    with pytest.raises(TypeError, match=rf"^{name}: dtype float64, expected float32"):
        fit("gaussian_2d", data=device.put(data), loss="huber", **{**there, name: device.put(here[name].astype(float))})
    with pytest.raises(ValueError, match=rf"^{name}: expected shape"):
        fit("gaussian_2d", data=device.put(data), loss="huber", **{**there, name: device.put(np.ones(7, np.float32))})


@pytest.mark.parametrize("side", [0, 1])
def test_bounds_on_other_devices(device: Library, side: int) -> None:
    data = spots(3)
    bounds = [np.zeros(5, np.float32), np.full(5, 20, np.float32)]
    there = [device.put(b) for b in bounds]
    with pytest.raises(ValueError, match=r"^bounds: on the CPU, but data are on cuda:0"):
        fit("gaussian_2d", START, device.put(data), bounds=[*there[:side], bounds[side], *there[side + 1 :]])
    with pytest.raises(ValueError, match=r"^bounds: on a CUDA device, but data are on the CPU"):
        fit("gaussian_2d", START, data, bounds=[*bounds[:side], there[side], *bounds[side + 1 :]])


VALUES: list[tuple[str, Callable[[Library], dict[str, Any]], str]] = [
    ("weights", lambda d: {"weights": d.put(np.full(25, -1, np.float32))}, "weights: must be finite and >= 0"),
    ("bounds", lambda d: {"bounds": (d.put(np.full(5, 9, np.float32)), 9.0)}, "bounds: lower must be less than upper"),
    ("x0", lambda d: {"bounds": (0.0, 5.0)}, "x0: outside its bounds"),
    ("f_scale", lambda d: {"loss": "huber", "f_scale": 0.0}, "f_scale: must be positive and finite"),
]


@pytest.mark.parametrize(("name", "make", "message"), VALUES, ids=[name for name, _, _ in VALUES])
def test_values(device: Library, name: str, make: Callable[[Library], dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit("gaussian_2d", START, device.put(spots(3)), **make(device))


def test_negative_counts(device: Library) -> None:
    data = spots(3)
    data[2, 4, 4] = -1
    with pytest.raises(ValueError, match="data: counts of loss='poisson' must be >= 0"):
        fit("gaussian_2d", START, device.put(data), loss="poisson")


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": np.ones(25, np.float32)},
        {"mask": np.zeros(25, bool)},
        {"nan_policy": "omit"},
        {"starts": 3},
        {"fixed": np.zeros(5, bool)},
    ],
    ids=lambda o: next(iter(o)),
)
def test_cpu_only_options(device: Library, options: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match=f"^{next(iter(options))}: "):
        fit("gaussian_2d", START, device.put(spots(2)), **options)


def test_a_wrong_number_of_fixed(device: Library) -> None:
    with pytest.raises(ValueError, match="fixed: 2 booleans, expected 5"):
        fit("gaussian_2d", START, device.put(spots(2)), fixed=[True, False])


def test_models_for_the_cpu(device: Library) -> None:
    data = device.put(np.ones((2, 9), np.float32))
    with pytest.raises(NotImplementedError, match="model: a function"):
        fit(lambda x, a: a * x, [1.0], data)
    with pytest.raises(NotImplementedError, match="model: 'polynomial'"):
        fit("polynomial", [1.0, 2.0], data)


def test_float64(device: Library) -> None:
    with pytest.raises(TypeError, match="data: dtype float64, expected float32"):
        fit("gaussian_2d", START, device.put(spots(2).astype(float)))


def test_too_few_points(device: Library) -> None:
    with pytest.raises(ValueError, match="data: 4 points cannot determine 5 parameters"):
        fit("gaussian_2d", START, device.put(np.ones((2, 4), np.float32)))
