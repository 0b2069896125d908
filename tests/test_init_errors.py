"""Errors of initializers, before anything is written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import init
from helpers import Producer, memory
from test_init import ALL, DRAWN


def refused(call: Callable[[], Any], error: type[Exception], text: str, unchanged: Any = ()) -> None:
    before = memory(unchanged)
    with pytest.raises(error, match=re.escape(text)):
        call()
    assert memory(unchanged) == before


@pytest.mark.parametrize("name", ALL)
def test_buffers(name: str) -> None:
    frozen = np.ones((4, 4))
    frozen.flags.writeable = False
    wide = np.ones((4, 8))
    cases: list[tuple[Any, type[Exception], str]] = [
        (frozen, ValueError, "x: read-only, but it is updated in place"),
        (wide[:, ::2], ValueError, "x: not contiguous: shape (4, 4) with strides (64, 16) in bytes"),
        (wide[:, :4], ValueError, "make it with np.ascontiguousarray(...) and use the result"),
        (np.ones((4, 4), np.int32), TypeError, "x: dtype int32, expected float32, float64, bfloat16, float16, float8"),
        (np.ones((4, 4), ">f4"), TypeError, "x: dtype >f4"),
        (np.ma.ones((4, 4)), TypeError, "x: a masked array"),
        (Producer(np.ones((4, 4)), flags=1), ValueError, "x: read-only"),
        (
            Producer(np.ones((4, 4)), device_type=4),
            ValueError,
            "x: on a device of DLPack type 4, expected memory of the",
        ),
    ]
    if not adaptk.cuda.is_available():
        cases.append((Producer(np.ones((4, 4)), device_type=2), ValueError, "x: on the device cuda:0, but "))
    for x, error, text in cases:
        refused(lambda x=x: ALL[name](x, 0), error, text, x if isinstance(x, np.ndarray) else x.array)
    for x, text in (([[1.0]], "x: list is not a buffer"), (None, "x: NoneType is not"), (1.0, "x: float is not")):
        refused(lambda x=x: ALL[name](x, 0), TypeError, text)
    assert (wide == 1).all()


@pytest.mark.parametrize("name", DRAWN)
def test_seeds(name: str) -> None:
    x = np.ones((4, 4))
    for seed, error, text in (
        (None, TypeError, "seed must be an integer, got None (NoneType)"),
        (0.0, TypeError, "seed must be an integer, got 0.0 (float)"),
        (True, TypeError, "seed must be an integer, got True"),
        ("1", TypeError, "seed must be an integer"),
        (-1, ValueError, "seed must be >= 0, got -1"),
        (2**64, ValueError, "seed must be < 2**64, got 18446744073709551616"),
    ):
        refused(lambda seed=seed: DRAWN[name](x, seed), error, text, x)
    with pytest.raises(TypeError, match="seed"):
        getattr(init, name)(x)
    DRAWN[name](x, np.uint64(2**64 - 1))


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("constant", {"value": "1"}, TypeError, "value must be a number, got '1' (str)"),
        ("constant", {"value": None}, TypeError, "value must be a number"),
        ("uniform", {"low": 2.0}, ValueError, "low must be <= high, got low=2 and high=1"),
        ("uniform", {"high": math.inf}, ValueError, "high must be a finite number, got inf"),
        ("uniform", {"low": math.nan}, ValueError, "low must be a finite number, got nan"),
        ("uniform", {"low": -1.7e308, "high": 1.7e308}, ValueError, "high - low is beyond float64"),
        ("uniform", {"low": None}, TypeError, "low must be a number, got None"),
        ("uniform", {"offset": -1}, ValueError, "offset must be >= 0, got -1"),
        ("normal", {"offset": 2**62}, ValueError, "offset must be < 2**62"),
        ("normal", {"offset": 0.5}, TypeError, "offset must be an integer"),
        ("normal", {"std": -0.1}, ValueError, "std must be a finite number >= 0, got -0.1"),
        ("normal", {"std": math.nan}, ValueError, "std must be a finite number"),
        ("normal", {"mean": math.inf}, ValueError, "mean must be a finite number, got inf"),
        ("normal", {"mean": [0.0, 1.0]}, TypeError, "mean must be a number"),
        ("truncated_normal", {"low": 2.0}, ValueError, "low must be < high, got low=2 and high=2"),
        ("truncated_normal", {"low": math.nan}, ValueError, "low must be a finite number"),
        ("truncated_normal", {"low": 36.5, "high": 40.0}, ValueError, "low: 36.5 standard deviations"),
        ("truncated_normal", {"low": -40.0, "high": -37.0}, ValueError, "high: -37 standard deviations"),
        ("truncated_normal", {"std": -1.0}, ValueError, "std must be a finite number >= 0"),
        ("glorot_uniform", {"gain": -1.0}, ValueError, "gain must be >= 0, got -1"),
        ("glorot_normal", {"gain": "gelu"}, ValueError, "nonlinearity must be 'linear' or "),
        ("glorot_normal", {"convention": "jax"}, ValueError, "convention must be 'torch' or 'keras', got 'jax'"),
        ("he_normal", {"mode": "in"}, ValueError, "mode must be 'fan_in' or 'fan_out' or 'fan_avg', got 'in'"),
        ("he_uniform", {"gain": None}, TypeError, "gain must be a number"),
        ("lecun_normal", {"mode": None}, ValueError, "mode must be"),
        ("orthogonal", {"gain": math.inf}, ValueError, "gain must be a finite number"),
        ("orthogonal", {"convention": None}, ValueError, "convention must be"),
        ("identity", {"gain": math.nan}, ValueError, "gain must be a finite number"),
        ("sparse", {"sparsity": None}, TypeError, "sparsity must be a number, got None"),
        ("sparse", {"sparsity": 1.1}, ValueError, "sparsity must be a finite number >= 0 and <= 1, got 1.1"),
        ("sparse", {"sparsity": 0.5, "std": -1}, ValueError, "std must be a finite number >= 0"),
    ],
)
def test_arguments(name: str, options: dict[str, Any], error: type[Exception], text: str) -> None:
    x = np.ones((4, 4))
    refused(lambda: getattr(init, name)(x, seed=0, **options), error, text, x)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {"value": 65505.0}),
        ("uniform", {"high": 1e5}),
        ("normal", {"mean": -1e5}),
        ("normal", {"std": 1e5}),
        ("truncated_normal", {"std": 1e5}),
        ("orthogonal", {"gain": 1e5}),
        ("identity", {"gain": 1e5}),
        ("sparse", {"sparsity": 0.5, "std": 1e5}),
    ],
)
def test_beyond_a_dtype(name: str, options: dict[str, Any]) -> None:
    x = np.ones((4, 4), np.float16)
    refused(
        lambda: getattr(init, name)(x, seed=0, **options), ValueError, "is beyond float16, whose largest number is", x
    )
    refused(lambda: init.constant(np.ones(3, np.float32), 1e39), ValueError, "value: 1e+39 is beyond float32")
    refused(
        lambda: init.uniform(np.ones(3, np.float32), seed=0, low=-3e38, high=3e38), ValueError, "beyond float32, got"
    )


def test_shapes() -> None:
    for name in ("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal"):
        for shape in ((), (5,)):
            x = np.ones(shape)
            text = f"x: shape {shape} has no fan-in and fan-out, which need two axes; for a bias use zeros"
            refused(lambda x=x, name=name: getattr(init, name)(x, seed=0), ValueError, text, x)
    refused(lambda: init.orthogonal(np.ones(3), seed=0), ValueError, "x: shape (3,), expected two axes or more")
    for shape in ((3,), (2, 2, 2)):
        x = np.ones(shape)
        refused(lambda x=x: init.identity(x), ValueError, f"x: shape {shape}, expected a matrix", x)
        refused(lambda x=x: init.sparse(x, seed=0, sparsity=0.1), ValueError, f"x: shape {shape}, expected a matrix", x)


def test_gains_and_fans() -> None:
    refused(lambda: init.calculate_gain("tanh", 0.1), ValueError, "param: 'tanh' has no slope; only 'leaky_relu' has")
    refused(lambda: init.calculate_gain("leaky_relu", math.nan), ValueError, "param must be a finite number")
    refused(lambda: init.fans((2, 3), "jax"), ValueError, "convention must be 'torch' or 'keras'")
    refused(lambda: init.fans(5), TypeError, "shape must be a tuple of integers, got 5 (int)")
    refused(lambda: init.fans((2.0, 3)), TypeError, "shape[0] must be an integer, got 2.0")
    refused(lambda: init.fans((2, -3)), ValueError, "shape[1] must be >= 0, got -3")


def test_names_of_other_libraries() -> None:
    x = np.ones((2, 2))
    refused(lambda: init.normal(x, seed=0, stddev=0.1), TypeError, "'stddev' (did you mean 'std'?)", x)
    refused(lambda: init.constant(x, val=0.1), TypeError, "'val' (did you mean 'value'?)", x)
    refused(lambda: init.he_normal(x, seed=0, nonlinearity="relu"), TypeError, "(did you mean 'gain'?)", x)
    refused(lambda: init.normal(x, generator=0), TypeError, "(did you mean 'seed'?)", x)
    for name, ours in (("xavier_uniform", "glorot_uniform"), ("kaiming_normal", "he_normal"), ("ones", "constant")):
        refused(lambda name=name: getattr(init, name), AttributeError, f"use {ours}")
    refused(lambda: init.glorot_norm, AttributeError, "did you mean 'glorot_")
