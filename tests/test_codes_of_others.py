"""The formats of torchao and bitsandbytes: codes against an oracle in NumPy, every rule's steps around its own step."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import RULES, Array

BLOCK = 256
DYNAMIC = ("dynamic_signed", "dynamic_unsigned")
ALL = ("fp8_e4m3", *DYNAMIC)
F32 = np.float32

# ---------------------------------------------------------------------------------------------------------------------
# The oracle
# ---------------------------------------------------------------------------------------------------------------------


def dynamic_map(signed: bool) -> Array:
    """In order: the midpoints of n equal parts of [0.1, 1], where n doubles in each of seven decades, 0 and 1."""
    numbers = [F32(0), F32(1)]
    for decade in range(7):
        n = 2**decade if signed else 2 ** (decade + 1)
        for j in range(n):
            x = (F32(0.1) + F32(0.9) * F32((j + 0.5) / n)) * F32(10.0 ** (decade - 6))
            numbers += [x, -x] if signed else [x]
    return np.sort(np.array(numbers, F32))


def fp8_numbers() -> Array:
    """The value of each code: sign, exponent, significand; NaN if all bits but the sign are set."""
    codes = np.arange(256)
    exponent, significand = (codes >> 3) & 15, codes & 7
    x = np.where(exponent == 0, significand * 2.0**-9, (1 + significand / 8) * 2.0 ** (exponent - 7.0))
    return np.where(codes & 127 == 127, np.nan, np.where(codes & 128, -x, x)).astype(F32)


NUMBERS = {"fp8_e4m3": fp8_numbers(), "dynamic_signed": dynamic_map(True), "dynamic_unsigned": dynamic_map(False)}


def each(scales: Array, size: int) -> Array:
    return np.repeat(scales, BLOCK)[:size]


def oracle_decode(codes: Array, scales: Array, name: str) -> Array:
    with np.errstate(over="ignore"):
        return NUMBERS[name][codes.reshape(-1)] * each(scales, codes.size)


def oracle_scales(x: Array, name: str) -> Array:
    padded = np.zeros(-(-x.size // BLOCK) * BLOCK, F32)
    padded[: x.size] = np.where(np.isfinite(x), np.abs(x), 0)
    largest = padded.reshape(-1, BLOCK).max(axis=1)
    return np.maximum(largest / F32(448), F32(2.0**-126)) if name == "fp8_e4m3" else largest


def quotients(x: Array, scales: Array) -> Array:
    divisor = each(scales, x.size)
    return np.where(np.isfinite(x), x, F32(0)) / np.where(divisor == 0, F32(1), divisor)


def nearest_fp8(y: Array) -> Array:
    """Ties to the even code: by the distances in float64, which are exact."""
    known = NUMBERS["fp8_e4m3"][:127].astype(np.float64)
    above = np.clip(np.searchsorted(known, np.abs(y)), 1, 126)
    low, high = np.abs(y) - known[above - 1], known[above] - np.abs(y)
    up = (high < low) | ((high == low) & (above % 2 == 0))
    return (above - ~up + np.where(np.signbit(y), 128, 0)).astype(np.uint8)


def nearest_dynamic(y: Array, signed: bool) -> Array:
    """By the decade, and by the position in it, computed in float32."""
    a = np.abs(y) if signed else np.maximum(y, 0)
    n = 2 ** np.arange(7) * (1 if signed else 2)
    begins = [0.5e-6 * (0.1 + 0.45 / n[0])]
    begins += [10.0 ** (i - 7) * (1 + 0.9 / n[i - 1]) for i in range(1, 7)]
    begins += [1 - 0.225 / n[6]]
    decade = np.searchsorted(np.array(begins, F32), a, side="right") - 1
    i = np.clip(decade, 0, 6)
    t = a * (10.0 ** (6 - np.arange(7)) / 0.9).astype(F32)[i] + F32(8 / 9)
    place = np.minimum(np.floor(n[i] * (t.astype(np.float64) - 1)), n[i] - 1).astype(int)
    above_zero = np.where(decade < 0, 0, n[i] - n[0] + 1 + place)
    most = 127 if signed else 254
    if not signed:
        return np.where(decade == 7, 255, above_zero).astype(np.uint8)
    return np.where(y < 0, 127 - np.minimum(above_zero, most), np.where(decade == 7, 255, 127 + above_zero)).astype(
        np.uint8
    )


def oracle_encode(x: Array, name: str) -> tuple[Array, Array]:
    x = x.reshape(-1)
    scales = oracle_scales(x, name)
    y = quotients(x, scales)
    if name == "fp8_e4m3":
        return np.where(np.isfinite(x), nearest_fp8(y), 127).astype(np.uint8), scales
    return nearest_dynamic(y, name == "dynamic_signed"), scales


# ---------------------------------------------------------------------------------------------------------------------
# Codes
# ---------------------------------------------------------------------------------------------------------------------


def bits(x: Any) -> Array:
    a = np.ascontiguousarray(x)
    return a.view(f"u{a.itemsize}")


def numbers_of(size: int, name: str, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(size) * 10.0 ** rng.uniform(-9, 3, size)).astype(F32)
    return np.abs(x) if name == "dynamic_unsigned" else x


def assert_same(got: formats.Stored, want: tuple[Array, Array]) -> None:
    np.testing.assert_array_equal(np.asarray(got.data).reshape(-1), want[0])
    np.testing.assert_array_equal(bits(got.scales), bits(want[1]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [0, 1, 15, 17, 255, 256, 257, 511, 512, 513, 5000])
def test_codes(name: str, size: int, isa: str) -> None:
    x = numbers_of(size, name)
    got = formats.quantize(x, name)
    assert_same(got, oracle_encode(x, name))
    np.testing.assert_array_equal(bits(formats.dequantize(got)), bits(oracle_decode(got.data, got.scales, name)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1.0, 1.7, 3e35, 3e38, 1e-30, 1.2e-38, 1e-42, 0.0])
def test_every_code(name: str, scale: float, isa: str) -> None:
    codes = np.arange(256).astype(np.uint8)
    for size in (256, 255):  # a whole block, and a partial one at the end of the tensor
        scales = np.full(1, scale, F32)
        got = formats.dequantize((codes[:size], scales, name))
        want = oracle_decode(codes[:size], scales, name)
        nan = np.isnan(want)
        np.testing.assert_array_equal(np.isnan(got), nan)
        np.testing.assert_array_equal(bits(got[~nan]), bits(want[~nan]))


def test_the_map_matches_its_definition() -> None:
    """As exact fractions: at most two units of the last place away."""
    for name, first in (("dynamic_signed", 1), ("dynamic_unsigned", 2)):
        exact = [Fraction(0), Fraction(1)]
        for decade in range(7):
            n = first << decade
            middles = [Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * j + 1, 2 * n) for j in range(n)]
            exact += [x * Fraction(10) ** (decade - 6) for x in middles]
        if first == 1:
            exact += [-x for x in exact if 0 < x < 1]
        exact.sort()
        got = formats.dequantize((np.arange(256).astype(np.uint8), np.ones(1, F32), name))
        for x, y in zip(got, exact, strict=True):
            assert abs(Fraction(float(x)) - y) <= 2 * Fraction(float(np.spacing(np.abs(x))))
        assert (np.diff(got) > 0).all()


@pytest.mark.parametrize("name", DYNAMIC)
def test_the_nearest_number_of_the_map(name: str, isa: str) -> None:
    """On both sides of each midpoint of two numbers, at a fraction of their distance."""
    known = NUMBERS[name].astype(np.float64)
    middle, distance = (known[1:] + known[:-1]) / 2, np.diff(known)
    for off in (-0.49, -(2.0**-14), 0, 2.0**-14, 0.49):
        x = np.concatenate([middle + off * distance, [1]]).astype(F32)
        codes = formats.quantize(x, name).data[:255].astype(int)
        assert set(codes - np.arange(255)) <= {0, 1}
        if off != 0:
            np.testing.assert_array_equal(codes > np.arange(255), off > 0)


@pytest.mark.parametrize("scale", [1.0, 448.0, 3e38, 1e-37])
def test_every_midpoint_of_fp8(scale: float, isa: str) -> None:
    known = NUMBERS["fp8_e4m3"][:127].astype(np.float64)
    middle = ((known[1:] + known[:-1]) / 2).astype(F32)
    for off in (-1, 0, 1):
        y = middle + F32(off) * np.spacing(middle)
        x = np.concatenate([F32([448]), y, -y[:127]]).astype(F32) * F32(scale / 448)
        assert_same(formats.quantize(x, "fp8_e4m3"), oracle_encode(x, "fp8_e4m3"))


def test_fp8_is_the_dtype_of_others() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(256).astype(np.uint8)
    np.testing.assert_array_equal(
        formats.dequantize((codes, np.ones(1, F32), "fp8_e4m3")), codes.view(ml_dtypes.float8_e4m3fn).astype(F32)
    )
    # All significands at every exponent until everything is 0, in blocks whose scale is 1.
    x = (np.arange(1 << 16, dtype=np.uint32) << 16).view(F32)
    x = np.repeat(x[np.abs(x) <= 448], 7) * np.tile(
        1 + np.arange(7, dtype=F32) * F32(2.0**-10), (np.abs(x) <= 448).sum()
    )
    x = x[np.abs(x) <= 448]
    x = np.pad(x, (0, -x.size % 255)).reshape(-1, 255)
    x = np.concatenate([np.full((len(x), 1), 448, F32), x], axis=1)
    got = formats.quantize(x, "fp8_e4m3")
    np.testing.assert_array_equal(got.scales, 1)
    np.testing.assert_array_equal(got.data, x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1.0, 1.7, 3e35, 1e-30])
def test_decoded_numbers_are_fixed_points(name: str, scale: float) -> None:
    values = NUMBERS[name].copy()
    values[np.isnan(values)] = 0
    values *= F32(scale)
    once = formats.quantize(values, name)
    again = formats.quantize(formats.dequantize(once), name)
    np.testing.assert_array_equal(again.data, once.data)
    # The scale of fp8 is a 448th, rounded.
    np.testing.assert_allclose(again.scales, once.scales, rtol=0 if name in DYNAMIC else 2.0**-23)
    np.testing.assert_allclose(formats.dequantize(once), values, rtol=2.0**-22)


@pytest.mark.parametrize("name", ALL)
def test_encoding_is_monotonic(name: str) -> None:
    x = np.sort(numbers_of(BLOCK, name, 3))
    assert (np.diff(formats.dequantize(formats.quantize(x, name))) >= 0).all()


@pytest.mark.parametrize("name", ALL)
def test_the_largest_error(name: str) -> None:
    x = numbers_of(64 * BLOCK, name, 4)
    stored = formats.quantize(x, name)
    error = np.abs(formats.dequantize(stored).astype(np.float64) - x)
    y = np.abs(x.astype(np.float64)) / each(np.abs(x).reshape(-1, BLOCK).max(axis=1), x.size)
    if name == "fp8_e4m3":
        limit = np.maximum(y / 16, 2.0**-10 / 448)
    else:
        # Half of the distance between the two neighbours.
        known = NUMBERS[name].astype(np.float64)
        known = np.append(known[known >= 0], 2 - known[-2])
        at = np.clip(np.searchsorted(known, y, side="right"), 1, known.size - 1)
        limit = (known[at] - known[at - 1]) / 2
        if name == "dynamic_signed":
            limit = np.where(y > known[-3], 1 - known[-3], limit)  # there is no -1
    assert (error <= limit * each(np.abs(x).reshape(-1, BLOCK).max(axis=1), x.size) * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1.0, 3e38, 2.0**-120, 2.0**-149, 0.0])
def test_one_nonfinite_element_in_each_block(name: str, scale: float, isa: str) -> None:
    """At each position of a block, among blocks without any: NaN in fp8, 0 in a map without a code for it."""
    kinds = np.array([np.inf, -np.inf, np.nan, -np.nan], F32)
    unit = numbers_of(2 * BLOCK * BLOCK, name, 8)
    x = (unit / np.abs(unit).max() * F32(scale)).reshape(BLOCK, 2, BLOCK)
    places = np.arange(BLOCK)
    x[places, 0, places] = kinds[places % kinds.size]
    x = x.reshape(-1)
    got = formats.quantize(x, name)
    assert_same(got, oracle_encode(x, name))
    values = formats.dequantize(got)
    bad = ~np.isfinite(x)
    assert (np.isnan(values[bad]) if name == "fp8_e4m3" else values[bad] == 0).all()
    others = formats.dequantize(formats.quantize(np.where(bad, F32(0), x), name))
    np.testing.assert_array_equal(values[~bad], others[~bad])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [2.0**-99, 2.0**-117, 2.0**-118, 2.0**-126, 2.0**-130, 2.0**-149, 0.0])
def test_tiny_blocks(name: str, scale: float, isa: str) -> None:
    x = (np.linspace(0, 1, BLOCK) * scale).astype(F32)
    got = formats.quantize(x, name)
    assert_same(got, oracle_encode(x, name))
    values = formats.dequantize(got)
    assert np.isfinite(values).all()
    assert values[-1] == pytest.approx(x[-1], rel=1e-6) or scale < 448 * 2.0**-126


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------

NAMES = {"8bit_dynamic": ("dynamic_unsigned", "dynamic_signed"), "fp8_e4m3": ("fp8_e4m3", "fp8_e4m3")}
STEPS = [(rule.name, chosen) for rule in RULES.values() if rule.states for chosen in NAMES]


@pytest.mark.parametrize(("rule", "chosen"), STEPS, ids=[f"{r}-{c}" for r, c in STEPS])
def test_steps(rule: str, chosen: str, isa: str) -> None:
    """Decode, the rule's own step in float32, encode: bit for bit."""
    rng = np.random.default_rng(11)
    size = 3 * 256 + 77
    update = getattr(adaptk.ops, rule)
    names = [NAMES[chosen][0 if s.nonnegative else 1] for s in RULES[rule].states]
    param = rng.standard_normal(size).astype(F32)
    starts = RULES[rule].initial_states().values()
    states = [formats.quantize(np.full(size, v, F32), n) for v, n in zip(starts, names, strict=True)]
    plain = param.copy()
    for step in range(1, 4):
        grad = (rng.standard_normal(size) * 10.0 ** rng.uniform(-3, 1, size)).astype(F32)
        between = [oracle_decode(s.data, s.scales, n) for s, n in zip(states, names, strict=True)]
        update(param, grad, *states, step=step)
        update(plain, grad, *between, step=step)
        np.testing.assert_array_equal(bits(param), bits(plain))
        for state, want, name in zip(states, between, names, strict=True):
            assert_same(state, oracle_encode(want, name))


@pytest.mark.parametrize(
    "names", [("dynamic_signed", "dynamic_unsigned"), ("fp8_e4m3", "fp8_e4m3"), ("int8", "fp8_e4m3")]
)
def test_threads(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(12)
    size = 300_001
    start, grad = rng.standard_normal((2, size)).astype(F32)
    before = adaptk.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 7):
            adaptk.set_num_threads(n)
            param = start.copy()
            states = [formats.quantize(np.zeros(size, F32), name) for name in names]
            for step in (1, 2):
                adaptk.ops.adam(param, grad, *states, step=step)
            results.append([param, *(x for s in states for x in s[:2])])
    finally:
        adaptk.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(bits(a), bits(b))


@pytest.mark.parametrize("state_dtype", list(NAMES))
def test_an_infinite_gradient_affects_its_element_only(state_dtype: str) -> None:
    w, twin = np.ones((2, 5000), F32)
    grad = np.linspace(-1, 1, 5000, dtype=F32)
    bad = grad.copy()
    bad[700] = np.inf
    for param, first in ((w, bad), (twin, np.where(np.isfinite(bad), grad, F32(0)))):
        opt = adaptk.Adam([param], state_dtype=state_dtype)
        opt.step([first])
        opt.step([grad])
    assert np.isnan(w[700])
    np.testing.assert_array_equal(np.delete(w, 700), np.delete(twin, 700))


def test_scales_have_blocks_of_256() -> None:
    stored = formats.Stored(np.zeros(300, np.uint8), np.zeros(3, F32), "fp8_e4m3")
    with pytest.raises(ValueError, match=r"momentum_buffer, scales: shape \(3,\), expected \(2,\): one for each 256"):
        adaptk.ops.momentum(np.zeros(300, F32), np.zeros(300, F32), stored, step=1)


# ---------------------------------------------------------------------------------------------------------------------
# Against PyTorch's own
# ---------------------------------------------------------------------------------------------------------------------


def test_codes_of_torchao(torch: Any) -> None:
    """torchao stores the same codes and scales, if it is installed."""
    quant = pytest.importorskip("torchao.optim.quant_utils", exc_type=ImportError)
    fp8 = pytest.importorskip("torchao.optim.subclass_fp8", exc_type=ImportError)
    for name in ALL:
        x = numbers_of(1 << 16, name, 21)
        got = formats.quantize(x, name)
        if name == "fp8_e4m3":
            codes, scales = fp8.quantize_fp8(torch.from_numpy(x), BLOCK)
            codes = codes.view(torch.uint8)
        else:
            scaled, scales = quant.scale_tensor(torch.from_numpy(x), BLOCK)
            codes = quant.quantize_8bit_with_qmap(scaled, torch.from_numpy(NUMBERS[name]))
        np.testing.assert_array_equal(got.scales, scales.numpy())
        np.testing.assert_array_equal(got.data, codes.numpy().reshape(-1))
