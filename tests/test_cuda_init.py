"""Initial values on a CUDA device: the bits of the same calls on the CPU, and no writes out of bounds."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import init
from device_arrays import Library, assert_equal, machine
from helpers import FLOATS
from test_init import ALL

pytestmark = pytest.mark.cuda

DTYPES = ("float32", "float64", "bfloat16", "float16")
BEFORE = 0.125  # the contents of memory that must not be written


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_the_bits_of_the_cpu(name: str, dtype: str, device: Library) -> None:
    if not device.has(dtype) or dtype not in FLOATS:
        pytest.skip(f"{device.name} has no {dtype}")
    for shape in ((1, 1), (3, 5), (5, 517), (0, 4)):
        host = np.full(shape, BEFORE).astype(FLOATS[dtype])
        x = device.put(host)
        assert ALL[name](x, 7) is x
        assert_equal(device.get(x), ALL[name](host, 7), (name, shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["uniform", "normal", "truncated_normal", "zeros", "constant"])
def test_parts(name: str, dtype: str, device: Library) -> None:
    """A part of an array that begins and ends within a tile of the generator, at any alignment."""
    if not device.has(dtype) or dtype not in FLOATS:
        pytest.skip(f"{device.name} has no {dtype}")
    fixed: dict[str, Any] = {"zeros": {}, "constant": {"value": -0.0}}
    for offset, size in ((0, 1), (5, 255), (1023, 1030), (2**40 + 777, 300)):
        given = fixed.get(name, {"seed": 2**63 + 1, "offset": offset})
        host = np.full(size + 8, BEFORE).astype(FLOATS[dtype])
        whole = device.put(host)
        getattr(init, name)(device.part(whole, 3, (size,)), **given)
        getattr(init, name)(host[3 : 3 + size], **given)
        assert_equal(device.get(whole), host, (name, offset))


def test_orders_of_axes(device: Library) -> None:
    for name in ALL:
        host = np.full((5, 7), BEFORE, np.float32).T
        x = device.put(host)
        ALL[name](x, 3)
        ALL[name](host, 3)
        assert_equal(device.get(x), host, name)


def test_special_constants(device: Library) -> None:
    for value in (np.inf, -np.inf, -0.0, 1e-40):
        x = device.put(np.ones(7, np.float32))
        init.constant(x, value)
        assert_equal(device.get(x), np.full(7, value, np.float32))
    x = device.put(np.ones(7, np.float32))
    init.constant(x, np.nan)
    assert np.isnan(device.get(x)).all()


def test_the_stream(device: Library) -> None:
    cudart = machine().cudart
    if cudart is None:
        pytest.skip("needs the CUDA runtime library")
    stream = cudart.new_stream()
    x = device.put(np.ones((4, 4), np.float32))
    with adaptk.cuda.stream(stream):
        init.normal(x, seed=1)
        init.orthogonal(x, seed=1)
    got = device.get(x)
    cudart.end_stream(stream)
    assert_equal(got, init.orthogonal(np.ones((4, 4), np.float32), seed=1))


def test_errors(device: Library) -> None:
    x = device.put(np.full((4, 4), BEFORE, np.float32))
    for call, error, text in (
        (lambda: init.normal(x, seed=-1), ValueError, "seed must be >= 0"),
        (lambda: init.constant(x, 1e39), ValueError, "value: 1e.39 is beyond float32"),
        (lambda: init.zeros(device.put(np.ones(3, np.int32))), TypeError, "x: dtype int32"),
    ):
        with pytest.raises(error, match=text):
            call()
    with machine().calls.failing("fill_random"), pytest.raises(RuntimeError, match="fill_random: unspecified launch"):
        init.normal(x, seed=1)
    with machine().calls.failing("write"), pytest.raises(RuntimeError, match="write: unspecified launch"):
        init.orthogonal(x, seed=1)
    assert (device.get(x) == BEFORE).all()


@pytest.mark.parametrize("name", ["uniform", "normal", "truncated_normal", "constant", "orthogonal"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8(name: str, dtype: str, device: Library) -> None:
    narrow = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype))
    if not device.has("bfloat16"):
        pytest.skip(f"{device.name} has no dtypes of ml_dtypes")
    host = np.zeros((3, 1021), narrow)
    x = device.put(host)
    assert_equal(device.get(ALL[name](x, 7)), ALL[name](host, 7), name)
