"""Rules on 16-bit buffers and 8-bit states: one loop decodes, updates and encodes, with the bits of the operations."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import FLOATS, same_bits

# Whole blocks of 128, and a partial one at the end.
SIZES = (128, 384, 128 * 21 + 77)
OPTIONS = {"step": 3, "lr": 0.01, "seed": 7}


def states(size: int, first: str, second: str) -> list[formats.Stored]:
    """First and second moments with blocks that the loop skips: with NaN, tiny numbers, zeros."""
    rng = np.random.default_rng(size)
    m, v = rng.standard_normal(size).astype(np.float32), rng.standard_normal(size).astype(np.float32) ** 2
    if size > 1000:
        for x in (m, v):
            x[300] = np.nan
            x[512:640] *= np.float32(1e-36)
            x[896:1152] = 0
            x[-3] = np.nan
    return [formats.quantize(m, first), formats.quantize(v, second, seed=1)]


def gradient(size: int, dtype: str) -> Any:
    g = np.random.default_rng([size, 1]).standard_normal(size).astype(np.float32)
    if size > 1000:
        g[512:640] = 0  # its states stay tiny
        g[700], g[1400], g[1700] = np.inf, np.nan, -np.inf
    return g.astype(FLOATS[dtype])


def by_parts(param: Any, grad: Any, stored: list[formats.Stored], **options: Any) -> None:
    """Decode, the rule on float32 states, encode, as for buffers 2 and 3 of tensor 0."""
    wide = [formats.dequantize(s) for s in stored]
    adaptk.ops.adam(param, grad, *wide, **OPTIONS, **options)
    for i, (x, s) in enumerate(zip(wide, stored, strict=True)):
        adaptk._core.encode(x, s, OPTIONS["seed"], OPTIONS["step"], 0, 2 + i)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("second", ["uint8", "uint8_nearest"])
@pytest.mark.parametrize("dtype", [name for name in FLOATS if name != "float64"])
@pytest.mark.parametrize("decay", [0.0, 0.1], ids=["plain", "coupled"])
def test_bits(isa: str, size: int, second: str, dtype: str, decay: float) -> None:
    param = np.random.default_rng([size, 2]).standard_normal(size).astype(np.float32)
    grad, got, want = gradient(size, dtype), states(size, "int8", second), states(size, "int8", second)
    other = param.copy()
    with np.errstate(all="ignore"):
        adaptk.ops.adam(param, grad, *got, weight_decay=decay, **OPTIONS)
        by_parts(other, grad, want, weight_decay=decay)
    assert same_bits(param, other)
    for a, b in zip(got, want, strict=True):
        assert same_bits(a.data, b.data)
        assert same_bits(a.scales, b.scales)


@pytest.mark.skipif("bfloat16" not in FLOATS, reason="NumPy's bfloat16 is in ml_dtypes")
@pytest.mark.parametrize("param_format", ["sr", "remainder16"])
def test_params_of_16_bits(isa: str, param_format: str) -> None:
    """Params are decoded and encoded with the rule; copies follow in parts of a tensor."""
    size = 3 * 4096 + 128 + 5
    start = np.random.default_rng(5).standard_normal(size).astype(np.float32)
    grad = np.random.default_rng(6).standard_normal(size).astype(FLOATS["bfloat16"])
    results = []
    for step in (adaptk.ops.adam, by_parts):
        narrow = start.astype(FLOATS["bfloat16"])
        param: Any = narrow if param_format == "sr" else formats.split_param(start, param_format)
        stored = [formats.quantize(np.zeros(size, np.float32), name) for name in ("int8", "uint8")]
        copied, mean = np.zeros(size, np.float16), start.copy()
        options = {"param_format": param_format, "copy_out": copied, "ema": (mean, 0.75)}
        if step is by_parts:
            by_parts(param, grad, stored, **options)
        else:
            adaptk.ops.adam(param, grad, *stored, **OPTIONS, **options)
        arrays = [*(param if isinstance(param, tuple) else [param]), copied, mean]
        results.append(arrays + [x for s in stored for x in (s.data, s.scales)])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


HALVES = ("float32", "bfloat16", "bfloat16_sr", "float16", "float16_sr")


@pytest.mark.parametrize("size", [128, 128 * 21 + 77])
@pytest.mark.parametrize("second", HALVES)
@pytest.mark.parametrize("first", HALVES)
@pytest.mark.skipif("bfloat16" not in FLOATS, reason="NumPy's bfloat16 is in ml_dtypes")
def test_states_of_16_bits(isa: str, first: str, second: str, size: int) -> None:
    """Also NaN, infinities and numbers that round to infinity, which have a scalar code path."""

    def stored(x: Any, name: str) -> Any:
        return formats.quantize(x, name, seed=1) if name.endswith("_sr") else x.astype(FLOATS[name])

    def both() -> list[Any]:
        rng = np.random.default_rng(size)
        m, v = rng.standard_normal(size).astype(np.float32), rng.standard_normal(size).astype(np.float32) ** 2
        m[5:40:7] *= np.float32(1e-39)
        if size > 1000:
            m[300], m[301], v[640], v[2000] = np.nan, -np.inf, np.inf, 3e38
        return [stored(m, first), stored(v, second)]

    param = np.random.default_rng([size, 2]).standard_normal(size).astype(np.float32)
    with np.errstate(all="ignore"):
        other, grad, got, want = param.copy(), gradient(size, "float32"), both(), both()
        adaptk.ops.adam(param, grad, *got, **OPTIONS)
        wide = [formats.dequantize(s) if isinstance(s, formats.Stored) else s.astype(np.float32) for s in want]
        adaptk.ops.adam(other, grad, *wide, **OPTIONS)
    assert same_bits(param, other)
    for i, (x, a, b) in enumerate(zip(wide, got, want, strict=True)):
        if isinstance(b, formats.Stored):
            adaptk._core.encode(x, b, OPTIONS["seed"], OPTIONS["step"], 0, 2 + i)
            assert same_bits(a.data, b.data)
        else:
            assert_rounded(a, x)


def assert_rounded(narrow: Any, wide: Any) -> None:
    """NumPy rounds like the library, except for the bits of NaN."""
    numbers = ~np.isnan(wide)
    with np.errstate(all="ignore"):
        assert same_bits(narrow[numbers], wide[numbers].astype(narrow.dtype))
    assert np.isnan(narrow[~numbers].astype(np.float32)).all()


@pytest.mark.parametrize("size", [128, 128 * 21 + 77])
@pytest.mark.parametrize("grads", [name for name in FLOATS if name != "float64"])
@pytest.mark.parametrize("dtype", [name for name in FLOATS if name.endswith("16")])
@pytest.mark.parametrize("rule", ["sgd", "adamw", "adan"])
def test_params_and_gradients_of_16_bits(isa: str, rule: str, dtype: str, grads: str, size: int) -> None:
    start = np.random.default_rng([size, 3]).standard_normal(size).astype(np.float32).astype(FLOATS[dtype])
    grad = gradient(size, grads)
    step = getattr(adaptk.ops, rule)
    count = len(adaptk.rules()[rule].states)
    got, want = ([np.full(size, 0.01, np.float32) for _ in range(count)] for _ in range(2))
    param, other = start.copy(), start.astype(np.float32)
    with np.errstate(all="ignore"):
        step(param, grad, *got, step=3, lr=0.01, weight_decay=0.1)
        step(other, grad.astype(np.float32), *want, step=3, lr=0.01, weight_decay=0.1)
    assert_rounded(param, other)
    assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
