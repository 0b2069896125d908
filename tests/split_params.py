"""Oracles in NumPy, from the definitions: params that are split in two, and stochastic rounding to float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is in ml_dtypes")
BF16 = np.dtype(ml_dtypes.bfloat16)
SPLIT = ("remainder16", "remainder8", "kahan")
SIDE_DTYPE = {"remainder16": np.dtype(np.int16), "remainder8": np.dtype(np.int8), "kahan": BF16}

#: Lower halves of a float32: 0, the smallest, values around every rounding boundary, the largest.
LOW = [
    0,
    1,
    0x7F,
    0x80,
    0x81,
    0xFF,
    0x100,
    0x17F,
    0x180,
    0x7F7F,
    0x7F80,
    0x7FFF,
    0x8000,
    0x8001,
    0x8080,
    0xFF80,
    0xFFFF,
]


def every_upper_half() -> np.ndarray:
    """All 65,536 upper halves, including NaNs, infinities and subnormal numbers, with each of the lower ones."""
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    return (upper[:, None] | np.array(LOW, np.uint32)).reshape(-1).view(np.float32)


def encode(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The param, and its remainder or compensation."""
    x = np.ascontiguousarray(x, np.float32)
    if name == "kahan":
        return _compensated(x)
    bits = 16 if name == "remainder16" else 8
    u = x.view(np.uint32).astype(np.int64)
    # Round to a multiple of the last place that is kept, ties to even. This is exact in float64.
    kept = np.rint(u / 2.0 ** (16 - bits)).astype(np.int64)
    kept = np.where(np.isnan(x), ((u >> 16) | 0x40) << bits, kept)
    half = 1 << (bits - 1)
    lower = (kept + half) % (2 * half) - half
    upper = (kept - lower) // (2 * half)
    return upper.astype(np.uint16).view(BF16), lower.astype(SIDE_DTYPE[name])


def _compensated(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore", invalid="ignore"):
        param = x.astype(BF16)
        largest = np.float32(ml_dtypes.finfo(BF16).max)
        clipped = np.isfinite(x) & ~np.isfinite(param.astype(np.float32))
        param = np.where(clipped, np.copysign(largest, x).astype(BF16), param)
        lost = x.astype(np.float64) - param.astype(np.float64)
        towards_zero = (lost.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        side = np.where(lost == 0, np.copysign(np.float32(0), x), np.where(clipped, towards_zero, lost)).astype(BF16)
    return param, np.where(np.isfinite(x), side, np.float32(0)).astype(BF16)


def decode(param: np.ndarray, side: np.ndarray, name: str) -> np.ndarray:
    if name == "kahan":
        with np.errstate(invalid="ignore"):
            return param.astype(np.float32) + side.astype(np.float32)
    upper = param.view(np.uint16).astype(np.int64)
    lower = side.astype(np.int64) << (0 if name == "remainder16" else 8)
    lower = np.where((upper & 0x7FFF) == 0, np.maximum(lower, 0), lower)
    return ((upper << 16) + lower).astype(np.uint32).view(np.float32)


def float16_stochastic(x: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Stochastic rounding in float64; `random` has 16 bits per element, of which the upper 13 are used."""
    x = x.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = x.astype(np.float16)
        a = np.abs(np.where(np.isfinite(x), x, 0)).astype(np.float64)
        exponent = np.maximum(np.frexp(a)[1] - 1, -14)
        place = np.ldexp(1.0, exponent - 10)
        # The lost fraction of the last place, as a multiple of 2**-13, which is rounded for subnormal numbers.
        eighths = np.rint(a / place * 2**13).astype(np.int64)
        places = (eighths + (random.astype(np.int64) >> 3)) >> 13
        made = np.minimum(places * place, 65504.0).astype(np.float16)
    return np.where(np.isfinite(nearest), np.where(np.signbit(x), -made, made), nearest)


def bits_of(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])


def assert_same(got: Any, want: Any) -> None:
    """Equal bit for bit, except for the payload of NaNs."""
    a, b = np.asarray(got), np.asarray(want)
    if a.dtype.kind != "i":
        nan = np.isnan(a.astype(np.float32))
        np.testing.assert_array_equal(nan, np.isnan(b.astype(np.float32)))
        a, b = np.where(nan, 0, bits_of(a)), np.where(nan, 0, bits_of(b))
    np.testing.assert_array_equal(a, b)
