"""Stochastically rounded float16: the bits of its definition, in every interface."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from split_params import every_upper_half, float16_stochastic
from test_formats import key_of, random_bits

RULES = adaptk.rules()


def numbers(size: int, seed: int = 0, dtype: Any = np.float16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


def rounded(x: np.ndarray, seed: int, step: int, tensor: int = 0) -> np.ndarray:
    """Of results in float32: the param is buffer 0."""
    return float16_stochastic(x, random_bits(key_of(seed, step, tensor, 0), x.size, 16)).view(np.uint16)


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    """Bit for bit, except for the payload of NaNs."""
    nan = np.isnan(got)
    np.testing.assert_array_equal(nan, np.isnan(want))
    np.testing.assert_array_equal(got.view(np.uint16)[~nan], want.view(np.uint16)[~nan])


def test_every_code_round_trips(isa: str) -> None:
    """Exact values are not rounded, so random bits have no effect; except for NaN."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    stored = formats.quantize(codes.astype(np.float32), "float16_sr", seed=5)
    assert_same(np.asarray(stored.data), codes)
    assert_same(formats.dequantize(stored).astype(np.float16), codes)


def test_every_upper_half(isa: str) -> None:
    """Every exponent and every boundary between two codes, with arbitrary random bits."""
    x = every_upper_half()
    # The same 16,384 random numbers repeatedly: the oracle computes them one by one.
    random = random_bits(key_of(11, 1, 0, 0), 1 << 14, 16)
    for first in range(0, x.size, 1 << 14):
        part = x[first : first + (1 << 14)]
        got = np.asarray(formats.quantize(part, "float16_sr", seed=11).data)
        assert_same(got, float16_stochastic(part, random[: part.size]))


@pytest.mark.parametrize("x", [1.0003, 2.0**-15 * 1.0003, 2.0**-24 * 0.3, -65503.0, 0.1])
def test_rounding_is_unbiased(x: float) -> None:
    size = 1 << 16
    got = np.asarray(formats.quantize(np.full(size, x, np.float32), "float16_sr", seed=1).data).astype(np.float64)
    x = float(np.float32(x))
    below, above = np.unique(got)
    assert below <= x <= above
    assert np.float16(above) == np.nextafter(np.float16(below), np.float16(np.inf))
    chance = (x - below) / (above - below)
    deviation = (above - below) * np.sqrt(chance * (1 - chance) / size)
    assert abs(got.mean() - x) < 5 * deviation + (above - below) * 2.0**-14


def test_infinity_is_not_random() -> None:
    for x, want in ((65504.0, 65504), (65519.0, 65504), (65520.0, np.inf), (1e30, np.inf), (np.inf, np.inf)):
        for sign in (1, -1):
            stored = formats.quantize(np.full(4096, sign * x, np.float32), "float16_sr", seed=2)
            assert (np.asarray(stored.data) == np.float16(sign * want)).all()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, isa: str) -> None:
    """Decode, the rule's own step in float32, encode: bit for bit."""
    size = 2 * 256 + 77
    update = getattr(adaptk.ops, rule)
    param = numbers(size)
    states = [np.full(size, v, np.float32) for v in RULES[rule].initial_states().values()]
    for step in range(1, 4):
        grad = numbers(size, step, np.float32)
        want, beside = param.astype(np.float32), [s.copy() for s in states]
        update(param, grad, *states, step=step, seed=9, param_format="sr")
        update(want, grad, *beside, step=step)
        np.testing.assert_array_equal(param.view(np.uint16), rounded(want, 9, step))
        for state, same in zip(states, beside, strict=True):
            np.testing.assert_array_equal(state.view(np.uint32), same.view(np.uint32))


def test_states() -> None:
    """As a state format, in functions and in objects."""
    size = 5000
    grad = numbers(size, 1, np.float32)
    param, twin = numbers(size, 0, np.float32), numbers(size, 0, np.float32)
    opt = adaptk.SGD([param], lr=0.1, momentum=0.9, state_dtype="float16_sr", seed=7)
    buffer = formats.full_like(twin, 0.0, "float16_sr")
    for step in (1, 2):
        opt.step([grad])
        want = np.zeros(size, np.float32) if step == 1 else np.asarray(buffer.data).astype(np.float32)
        rule = RULES[opt.rules[0]]
        update = getattr(adaptk.ops, rule.name)
        before = twin.copy()
        update(twin, grad, buffer, step=step, lr=0.1, momentum=0.9, seed=7)
        update(before, grad, want, step=step, lr=0.1, momentum=0.9)
        key = key_of(7, step, 0, 2)
        assert_same(np.asarray(buffer.data), float16_stochastic(want, random_bits(key, size, 16)))
    np.testing.assert_array_equal(param, twin)
    assert_same(np.asarray(opt.state[0]["momentum_buffer"].data), np.asarray(buffer.data))


def test_small_changes_add_up() -> None:
    """1,000 changes of a hundredth of a unit in the last place, which rounding to nearest loses."""
    place = 2.0**-10
    grad = np.full(4096, -1, np.float32)
    nearest, stochastic = np.ones(4096, np.float16), np.ones(4096, np.float16)
    for step in range(1, 1001):
        adaptk.ops.sgd(nearest, grad, step=step, lr=place / 100)
        adaptk.ops.sgd(stochastic, grad, step=step, lr=place / 100, seed=1, param_format="sr")
    assert (nearest == 1).all()
    moved = (stochastic.astype(np.float64) - 1) / place
    # Each step adds a unit with a probability of 1/100, to a multiple of 2**-13.
    assert abs(moved.mean() - 10) < 5 * np.sqrt(9.9 / moved.size) + 1000 * 2.0**-13
