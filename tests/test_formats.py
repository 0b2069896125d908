"""Storage formats of states: codes against an oracle in NumPy, steps against decoding, the rule's step and encoding."""

from __future__ import annotations

import itertools
import math
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _core, formats

BLOCK = 128
CODED = ("int8", "uint8", "uint8_nearest")
ALL = (*CODED, "bfloat16_sr")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 comes from ml_dtypes")

# ---------------------------------------------------------------------------------------------------------------------
# The oracle
# ---------------------------------------------------------------------------------------------------------------------

MASK = (1 << 64) - 1


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def key_of(seed: int, step: int, tensor: int, buffer: int) -> int:
    z = mix((seed + 0x9E3779B97F4A7C15) & MASK)
    z = mix((z + step * 0x9E3779B97F4A7C15) & MASK)
    return mix((z + (tensor * 8 + buffer + 1) * 0xD1342543DE82EF95) & MASK)


def random_bits(key: int, size: int, bits: int) -> np.ndarray:
    """The random bits of each element by the definition: each draw of 32 bits is split among consecutive elements."""
    each = 32 // bits
    out = np.empty(size, np.uint64)
    for e in range(size):
        x = (e // each) ^ (key & 0xFFFFFFFF)
        x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) + (key >> 32)) & 0xFFFFFFFF
        out[e] = (x >> (e % each * bits)) & ((1 << bits) - 1)
    return out


def oracle_scales(x: np.ndarray) -> np.ndarray:
    padded = np.zeros(-(-x.size // BLOCK) * BLOCK, np.float32)
    padded[: x.size] = np.where(np.isfinite(x), np.abs(x), 0)
    return padded.reshape(-1, BLOCK).max(axis=1)


def scaled(x: np.ndarray, scales: np.ndarray, top: float) -> np.ndarray:
    """``x / scale * top`` as float32 computes it: with one reciprocal per block, of scaled numbers if it is tiny."""
    each = np.repeat(scales, BLOCK)[: x.size]
    lift = np.where(each < np.float32(2.0**-100), np.float32(2.0**100), np.float32(1))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.where(each == 0, np.float32(0), np.float32(top) / (each * lift))
        return ((x * lift) * inverse).astype(np.float32)


def oracle_encode(x: np.ndarray, name: str, key: int) -> tuple[np.ndarray, np.ndarray | None]:
    x = x.astype(np.float32)
    if name == "bfloat16_sr":
        u = x.view(np.uint32).astype(np.uint64)
        u = np.where(np.isfinite(x), u + random_bits(key, x.size, 16), np.where(np.isnan(x), u | 0x400000, u))
        return (u >> np.uint64(16)).astype(np.uint16), None
    scales = oracle_scales(x)
    y = scaled(x, scales, 127 if name == "int8" else 1)
    if name == "int8":
        return np.where(np.isfinite(x), np.rint(np.where(np.isfinite(x), y, 0)), -128).astype(np.int8), scales
    # The code of 2**k * (1 + j/8) is 8 * k + j, counted from the smallest: by arithmetic, not by the bits of floats.
    y = np.maximum(np.where(np.isfinite(x), y, 0).astype(np.float64), 2.0**-31 * (1 - 0.375))
    fraction, exponent = np.frexp(y)
    position = 8.0 * (exponent - 1) + 8.0 * (2 * fraction - 1) + 254
    if name == "uint8":
        position += (random_bits(key, x.size, 8).astype(np.float64) + 0.5) / 256
    else:
        position += 0.5
    return np.where(np.isfinite(x), np.clip(np.floor(position), 0, 254), 255).astype(np.uint8), scales


def oracle_decode(codes: np.ndarray, scales: np.ndarray | None, name: str) -> np.ndarray:
    if name == "bfloat16_sr":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    assert scales is not None
    each = np.repeat(scales, BLOCK)[: codes.size]
    if name == "int8":
        unit = codes.astype(np.float32) * (np.float32(1) / np.float32(127))
        return np.where(codes == -128, np.float32(np.nan), unit * each).astype(np.float32)
    steps = codes.astype(np.int64) - 254
    unit = np.ldexp(1.0 + (steps % 8) / 8, steps // 8).astype(np.float32)
    return np.where(codes == 255, np.float32(np.nan), unit * each).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Codes
# ---------------------------------------------------------------------------------------------------------------------


def wide_numbers(size: int, name: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(size) * 10.0 ** rng.uniform(-9, 3, size)).astype(np.float32)
    return np.abs(x) if name.startswith("uint8") else x


def bits(x: Any) -> np.ndarray:
    a = np.ascontiguousarray(x)
    return a.view(f"u{a.itemsize}")


def assert_same(got: formats.Stored, want: tuple[np.ndarray, np.ndarray | None]) -> None:
    np.testing.assert_array_equal(bits(got.data), bits(want[0]))
    if want[1] is not None:
        np.testing.assert_array_equal(bits(got.scales), bits(want[1]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 127, 128, 129, 255, 256, 257, 1000])
def test_codes(name: str, size: int, isa: str) -> None:
    x = wide_numbers(size, name)
    got = formats.quantize(x, name, seed=12345, step=7)
    assert_same(got, oracle_encode(x, name, key_of(12345, 7, 0, 0)))
    np.testing.assert_array_equal(bits(formats.dequantize(got)), bits(oracle_decode(bits_of(got), got.scales, name)))


def bits_of(stored: formats.Stored) -> np.ndarray:
    return bits(stored.data) if stored.format == "bfloat16_sr" else stored.data


@pytest.mark.parametrize("name", CODED)
def test_every_code(name: str, isa: str) -> None:
    dtype = np.int8 if name == "int8" else np.uint8
    codes = np.arange(256).astype(np.uint8).view(dtype)
    for scale in (1.0, 1.7, 3e38, 1e-30, 1.2e-38, 1e-42, 0.0):
        scales = np.full(2, scale, np.float32)
        got = formats.dequantize((codes, scales, name))
        np.testing.assert_array_equal(bits(got), bits(oracle_decode(codes, scales, name)))
        if scale < 1e-37:
            continue
        # A decoded number keeps its code with every rounding, and so does the scale.
        values = np.where(np.isnan(got), np.float32(scale), got)
        values[::BLOCK] = scale
        again = formats.quantize(values, name, seed=3)
        np.testing.assert_array_equal(formats.dequantize(again), values)
        np.testing.assert_array_equal(again.scales, scales)


@pytest.mark.parametrize("name", ["int8", "uint8_nearest"])
def test_encoding_is_monotonic(name: str) -> None:
    """Codes of sorted numbers are sorted, without stochastic rounding."""
    x = np.sort(wide_numbers(BLOCK, name, 3))
    values = formats.dequantize(formats.quantize(x, name))
    assert (np.diff(values) >= 0).all()


@pytest.mark.parametrize(("name", "bound"), [("int8", 0.5 / 127), ("uint8", 1 / 8), ("uint8_nearest", 1 / 16)])
def test_the_largest_error(name: str, bound: float) -> None:
    x = wide_numbers(64 * BLOCK, name, 4)
    stored = formats.quantize(x, name)
    scale = np.repeat(stored.scales, BLOCK).astype(np.float64)
    error = np.abs(formats.dequantize(stored).astype(np.float64) - x)
    # Relative to the scale for a linear code, and to the number for a logarithmic one, down to the smallest number.
    limit = bound * scale if name == "int8" else bound * x + scale * 2.0**-31
    assert (error <= limit * (1 + 1e-6)).all()


@pytest.mark.parametrize(("name", "spread"), [("uint8", 1 / 8), ("bfloat16_sr", 1 / 128)])
def test_rounding_is_unbiased(name: str, spread: float) -> None:
    x = np.abs(np.random.default_rng(5).standard_normal(BLOCK)).astype(np.float32) + np.float32(0.01)
    draws = 4000
    total = np.zeros(BLOCK)
    for step in range(1, draws + 1):
        total += formats.dequantize(formats.quantize(x, name, step=step))
    # Five standard deviations of the mean of numbers at most `spread` apart, relatively, plus the resolution of a draw,
    # whose 8 bits are fewer than the bits lost in rounding.
    tolerance = 5 * spread / 2 / math.sqrt(draws) + spread / 512
    np.testing.assert_allclose(total / draws, x, rtol=tolerance)


def test_draws_are_independent() -> None:
    """Elements, steps, tensors, buffers and seeds have independent random bits."""
    n = 1 << 14
    flat = np.full(n, 1.03, np.float32)

    def up(**given: int) -> np.ndarray:
        data = np.empty(n, np.uint8)
        scales = np.empty(n // BLOCK, np.float32)
        at = {"seed": 0, "step": 1, "tensor": 0, "buffer": 2, **given}
        flat[::BLOCK] = 2.0  # otherwise each would be the largest of its block, which is exact
        _core.encode(flat, (data, scales, "uint8"), at["seed"], at["step"], at["tensor"], at["buffer"])
        codes = data.astype(float)
        keep = np.arange(n) % BLOCK != 0
        return codes[keep] - codes[keep].mean()

    a = up()
    others = [up(seed=1), up(step=2), up(tensor=1), up(buffer=3), up(seed=1 << 40), up(step=1 << 40)]
    deviations = 5 / math.sqrt(a.size)
    for b in others:
        assert abs((a * b).mean() / (a.std() * b.std())) < deviations
    for lag in (1, 2, 15, 16, 17, 64, 127):
        assert abs((a[lag:] * a[:-lag]).mean() / a.var()) < deviations


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_nonfinite_element_affects_no_other(name: str, bad: float) -> None:
    x = wide_numbers(3 * BLOCK, name, 6)
    want = formats.dequantize(formats.quantize(x, name))
    place = BLOCK + 5
    x[BLOCK] = want[BLOCK] = 1e4  # the scale, which the nonfinite element does not change
    want = formats.dequantize(formats.quantize(x, name))
    x[place] = bad
    got = formats.dequantize(formats.quantize(x, name))
    assert np.isnan(got[place])
    others = np.arange(x.size) != place
    np.testing.assert_array_equal(got[others], want[others])


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("scale", [1.0, 3e38, 2.0**-120, 0.0])
def test_one_nonfinite_element_in_each_block(name: str, scale: float, isa: str) -> None:
    """At each position of a block, among blocks without any."""
    kinds = np.array([np.inf, -np.inf, np.nan, -np.nan], np.float32)
    unit = wide_numbers(2 * BLOCK * BLOCK, name, 8)
    x = (unit / np.abs(unit).max() * np.float32(scale)).reshape(BLOCK, 2, BLOCK)
    places = np.arange(BLOCK)
    x[places, 0, places] = kinds[places % kinds.size]
    x = x.reshape(-1)
    got = formats.quantize(x, name, seed=4)
    assert_same(got, oracle_encode(x, name, key_of(4, 1, 0, 0)))
    values = formats.dequantize(got)
    np.testing.assert_array_equal(bits(values), bits(oracle_decode(got.data, got.scales, name)))
    np.testing.assert_array_equal(np.isnan(values), ~np.isfinite(x))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("name", CODED)
def test_no_element_is_finite(name: str, bad: float, isa: str) -> None:
    got = formats.quantize(np.full(BLOCK + 5, bad, np.float32), name)
    assert np.isnan(formats.dequantize(got)).all()
    np.testing.assert_array_equal(got.scales, 0)


@pytest.mark.parametrize("name", CODED)
def test_the_largest_has_the_last_code(name: str, isa: str) -> None:
    """For all significands of the scale, whose reciprocal is rounded, and all random bits."""
    largest = np.random.default_rng(9).uniform(1, 2, 4096).astype(np.float32)
    largest = np.concatenate([largest, np.nextafter(np.float32([1, 2, 2]), np.float32([2, 1, 3]), dtype=np.float32)])
    x = np.repeat(largest, BLOCK)
    x[1::BLOCK] = np.nextafter(largest, np.float32(0))
    got = formats.quantize(x, name, seed=5)
    last = 127 if name == "int8" else 254
    np.testing.assert_array_equal(np.delete(got.data.reshape(-1, BLOCK), 1, axis=1), last)
    assert (got.data >= last - 1).all()


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("scale", [2.0**-99, 2.0**-101, 2.0**-126, 2.0**-130, 2.0**-149])
def test_tiny_blocks(name: str, scale: float) -> None:
    x = (np.linspace(0, 1, BLOCK) * scale).astype(np.float32)
    got = formats.quantize(x, name)
    assert_same(got, oracle_encode(x, name, key_of(0, 1, 0, 0)))
    assert np.isfinite(formats.dequantize(got)).all()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_bfloat16_with_nonfinite_elements(bad: float, isa: str) -> None:
    """One in some blocks of 128 elements, and none in the others."""
    x = wide_numbers(2 * BLOCK * 8, "bfloat16_sr", 10).reshape(8, 2, BLOCK)
    x[np.arange(8), 0, np.arange(8) * 17] = bad
    x = x.reshape(-1)
    assert_same(formats.quantize(x, "bfloat16_sr", seed=6), oracle_encode(x, "bfloat16_sr", key_of(6, 1, 0, 0)))


@pytest.mark.parametrize("high", [0x0000, 0x3F80, 0x7F7F, 0xBF80, 0xFF7F, 0x7F80, 0xFF80])
def test_every_lost_half_of_bfloat16(high: int) -> None:
    x = ((np.uint32(high) << 16) + np.arange(1 << 16, dtype=np.uint32)).astype(np.uint32).view(np.float32)
    got = formats.quantize(x, "bfloat16_sr", seed=9)
    # A part of them, as random_bits() takes a second for so many.
    n = 2048
    want, _ = oracle_encode(x[:n], "bfloat16_sr", key_of(9, 1, 0, 0))
    np.testing.assert_array_equal(bits(got.data)[:n], want)
    down, up = bits(got.data) == high, bits(got.data) == high + 1
    if high & 0x7F80 != 0x7F80:
        assert (down | up).all()
        assert down[0]
        assert abs(up.mean() - 0.5) < 0.01
    else:
        assert bits(got.data)[0] == high
        assert np.isnan(x[1:]).all()
        assert np.isnan(got.data[1:].astype(np.float32)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------

RULES = adaptk.rules()


def stored_as(x: np.ndarray, name: str) -> Any:
    if name == "float32":
        return x.copy()
    return formats.quantize(x, name, seed=77)


def values_of(state: Any) -> np.ndarray:
    return formats.dequantize(state) if isinstance(state, formats.Stored) else np.asarray(state, np.float32)


def copied(state: Any) -> Any:
    if not isinstance(state, formats.Stored):
        return state.copy()
    return formats.Stored(state.data.copy(), None if state.scales is None else state.scales.copy(), state.format)


def choices(rule: Any) -> list[tuple[str, ...]]:
    coded = tuple("uint8" if s.nonnegative else "int8" for s in rule.states)
    nearest = tuple("uint8_nearest" if s.nonnegative else "int8" for s in rule.states)
    mixed = tuple(a for a, _ in zip(itertools.cycle(["bfloat16_sr", "float32"]), rule.states, strict=False))
    return list(dict.fromkeys([coded, nearest, mixed])) if rule.states else []


STEPS = [(r.name, c) for r in RULES.values() for c in choices(r)]


@pytest.mark.parametrize(("rule", "names"), STEPS, ids=[f"{r}-{'-'.join(c)}" for r, c in STEPS])
def test_steps(rule: str, names: tuple[str, ...], isa: str) -> None:
    """Decode, the rule's own step in float32, encode: bit for bit."""
    rng = np.random.default_rng(11)
    size = 3 * 256 + 77
    update = getattr(adaptk.ops, rule)
    param = rng.standard_normal(size).astype(np.float32)
    starts = [np.full(size, v, np.float32) for v in RULES[rule].initial_states().values()]
    states = [stored_as(x, n) for x, n in zip(starts, names, strict=True)]
    plain = param.copy()
    for step in range(1, 4):
        grad = (rng.standard_normal(size) * 10.0 ** rng.uniform(-3, 1, size)).astype(np.float32)
        between = [values_of(s).copy() for s in states]
        update(param, grad, *states, step=step, seed=5)
        update(plain, grad, *between, step=step)
        np.testing.assert_array_equal(bits(param), bits(plain))
        for b, (state, want, name) in enumerate(zip(states, between, names, strict=True)):
            if name == "float32":
                np.testing.assert_array_equal(bits(state), bits(want))
            else:
                assert_same(state, oracle_encode(want, name, key_of(5, step, 0, 2 + b)))


@pytest.mark.parametrize("names", [("int8", "uint8"), ("bfloat16_sr", "bfloat16_sr"), ("float32", "uint8")])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads(names: tuple[str, ...], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(12)
    size = 300_001
    start = rng.standard_normal(size).astype(np.float32)
    grad = rng.standard_normal(size).astype(np.float32)
    before = adaptk.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            adaptk.set_num_threads(n)
            param = start.copy()
            states = [stored_as(np.zeros(size, np.float32), name) for name in names]
            for step in (1, 2):
                adaptk.ops.adam(param, grad, *states, step=step, seed=1)
            arrays = [x for s in states for x in (s[:2] if isinstance(s, tuple) else [s]) if x is not None]
            results.append([bits(param), *map(bits, arrays)])
    finally:
        adaptk.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_lists_have_draws_for_each_tensor() -> None:
    rng = np.random.default_rng(13)
    sizes = [5, 128, 700]
    grads = [rng.standard_normal(n).astype(np.float32) for n in sizes]
    params = [np.zeros(n, np.float32) for n in sizes]
    m = [stored_as(np.zeros(n, np.float32), "int8") for n in sizes]
    v = [stored_as(np.zeros(n, np.float32), "uint8") for n in sizes]
    adaptk.ops.adam(params, grads, m, v, step=1, seed=4)
    for i, n in enumerate(sizes):
        param, want = np.zeros(n, np.float32), [np.zeros(n, np.float32) for _ in range(2)]
        adaptk.ops.adam(param, grads[i], *want, step=1)
        np.testing.assert_array_equal(param, params[i])
        assert_same(m[i], oracle_encode(want[0], "int8", 0))
        assert_same(v[i], oracle_encode(want[1], "uint8", key_of(4, 1, i, 3)))


def test_second_moments_follow_smaller_gradients() -> None:
    """Half of the gradients fall to a tenth: states rounded to nearest do not follow."""
    size, found = 1 << 12, {}
    for name in ("float32", "bfloat16", "bfloat16_sr", "8bit", "8bit_nearest"):
        rng = np.random.default_rng(14)
        opt = adaptk.Adam([np.zeros(size, np.float32)], state_dtype=name)
        scale = np.ones(size, np.float32)
        for step in range(4300):
            if step == 300:
                scale[::2] = 0.1
            opt.step([rng.standard_normal(size, np.float32) * scale])
        found[name] = float(np.median(np.sqrt(values_of(opt.state[0]["exp_avg_sq"])[::2])))
    ratio = {name: x / found["float32"] for name, x in found.items()}
    assert 0.9 < ratio["8bit"] < 1.1
    assert 0.9 < ratio["bfloat16_sr"] < 1.1
    assert ratio["8bit_nearest"] > 3
    assert ratio["bfloat16"] > 3


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def buffers(size: int = 300) -> dict[str, Any]:
    return {
        "param": np.zeros(size, np.float32),
        "grad": np.ones(size, np.float32),
        "exp_avg": formats.quantize(np.zeros(size, np.float32), "int8"),
        "exp_avg_sq": formats.quantize(np.zeros(size, np.float32), "uint8"),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"exp_avg": np.zeros(300, np.int8)}, TypeError, r"exp_avg: dtype int8, expected float32"),
        ({"param": np.zeros(300, np.int8)}, TypeError, r"param: dtype int8, expected float32"),
        ({"exp_avg": (np.zeros(300, np.int8),)}, TypeError, r"exp_avg: a tuple of 1, expected a buffer"),
        ({"exp_avg": (np.zeros(300, np.int8), None)}, TypeError, r"exp_avg, scales: None, expected a buffer"),
        (
            {"exp_avg": (np.zeros(300, np.int8), np.zeros(2, np.float32))},
            ValueError,
            r"exp_avg, scales: shape \(2,\), expected \(3,\): one for each 128 of the state's 300 elements",
        ),
        (
            {"exp_avg": (np.zeros(300, np.int8), np.zeros(3))},
            TypeError,
            r"exp_avg, scales: dtype float64, expected float32",
        ),
        (
            {"exp_avg": (np.zeros(299, np.int8), np.zeros(3, np.float32))},
            ValueError,
            r"exp_avg: shape \(299,\), expected \(300,\)",
        ),
        (
            {"exp_avg": (np.zeros(300, np.int8), np.zeros(6, np.float32)[::2])},
            ValueError,
            r"exp_avg, scales: strides",
        ),
        (
            {"exp_avg": (np.zeros(300, np.float32), np.zeros(3, np.float32))},
            TypeError,
            r"exp_avg: scales beside float32, which has none",
        ),
        (
            {"exp_avg": (np.zeros(300, np.int8), np.zeros(3, np.float32), "uint8")},
            TypeError,
            r"exp_avg: dtype int8, which is not that of the format uint8",
        ),
        (
            {"exp_avg": (np.zeros(300, np.int8), np.zeros(3, np.float32), "int9")},
            ValueError,
            r"exp_avg: unknown format 'int9'; there are float32",
        ),
        ({"param": np.zeros(300), "grad": np.ones(300)}, TypeError, r"exp_avg: dtype int8, expected float64"),
        ({"seed": -1}, ValueError, r"seed: -1 is not in \[0, 2\*\*64\)"),
        ({"seed": 1 << 64}, ValueError, r"seed: 18446744073709551616 is not in"),
        ({"seed": 0.5}, TypeError, r"seed: expected an int, got float"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {**buffers(), **change}
    before = {k: copied(v) for k, v in given.items() if isinstance(v, (np.ndarray, formats.Stored))}
    with pytest.raises(error, match=message):
        adaptk.ops.adam(**given, step=1)
    for name, was in before.items():
        for a, b in zip(was, given[name], strict=True) if isinstance(was, formats.Stored) else [(was, given[name])]:
            assert np.array_equal(a, b)


def test_read_only_and_shared_memory_is_refused() -> None:
    given = buffers()
    given["exp_avg"].scales.flags.writeable = False
    with pytest.raises(ValueError, match="exp_avg, scales: read-only"):
        adaptk.ops.adam(**given, step=1)
    given = buffers()
    shared = given["exp_avg"].scales
    given["exp_avg_sq"] = given["exp_avg_sq"]._replace(scales=shared)
    with pytest.raises(ValueError, match="exp_avg and exp_avg_sq overlap in memory"):
        adaptk.ops.adam(**given, step=1)
    with pytest.raises(ValueError, match="overlap"):
        adaptk.ops.adam(*([x] for x in given.values()), step=1)
    room = np.zeros(300, np.float32)
    given = buffers() | {"param": room}
    given["exp_avg"] = given["exp_avg"]._replace(scales=room[10:13])
    with pytest.raises(ValueError, match="param and exp_avg overlap in memory"):
        adaptk.ops.adam(**given, step=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: formats.quantize(x, "float32"), ValueError, "format: 'float32', expected 'bfloat16_sr'"),
        (lambda x: formats.quantize(x.astype(float), "int8"), TypeError, "x: expected float32 in C order"),
        (lambda x: formats.quantize(x, "uint8", step=0), ValueError, "step: steps are counted from 1"),
        (lambda x: formats.quantize(x, "uint8", seed=-1), ValueError, "seed: -1 is not in"),
    ],
)
def test_errors_of_quantize(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.ones(4, np.float32))
