"""States in 4 bits: codes against an oracle in NumPy, steps around a rule's own, in functions, objects and PyTorch."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import RULES, Array, first_tier

BLOCK = 128
F32 = np.float32
SIGNED, UNSIGNED = "4bit_signed", "4bit_unsigned"
ALL = (SIGNED, UNSIGNED)

# ---------------------------------------------------------------------------------------------------------------------
# The oracle
# ---------------------------------------------------------------------------------------------------------------------


def dynamic_map() -> Array:
    """The midpoints of n equal parts of [0.1, 1], with n doubling in each of three decades and both signs; 0 and 1."""
    numbers = [Fraction(0), Fraction(1)]
    for decade in range(3):
        n = 2**decade
        for j in range(n):
            x = (Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * j + 1, 2 * n)) * Fraction(10) ** (decade - 2)
            numbers += [x, -x]
    return np.array([float(x) for x in sorted(numbers)]).astype(F32)


NUMBERS = {SIGNED: dynamic_map(), UNSIGNED: (np.arange(1, 17) / 16).astype(F32)}


def unpacked(data: Array, size: int) -> Array:
    return np.stack([data >> 4, data & 15], axis=1).reshape(-1)[:size]


def packed(codes: Array, of_zero: int) -> Array:
    codes = np.append(codes, np.full(codes.size % 2, of_zero, codes.dtype)).astype(np.uint8)
    return codes[::2] << 4 | codes[1::2]


def oracle_decode(stored: tuple[Array, Array, str], size: int) -> Array:
    data, scales, name = stored
    return NUMBERS[name][unpacked(data, size)] * np.repeat(scales, BLOCK)[:size]


def oracle_encode(x: Array, name: str) -> tuple[Array, Array]:
    x = x.reshape(-1)
    sound = np.where(np.isfinite(x), x, F32(0))
    padded = np.zeros(-(-x.size // BLOCK) * BLOCK, F32)
    padded[: x.size] = np.abs(sound)
    scales = padded.reshape(-1, BLOCK).max(axis=1)
    divisor = np.repeat(np.where(scales == 0, F32(1), scales), BLOCK)[: x.size]
    y = (sound / divisor).astype(np.float64)
    # By the distances, which are exact in float64. Ties go away from 0, or to the even multiple of 1/16.
    known = NUMBERS[name].astype(np.float64)
    above = np.clip(np.searchsorted(known, y), 1, 15)
    low, high = y - known[above - 1], known[above] - y
    tie_up = above % 2 == 1 if name == UNSIGNED else y > 0
    codes = above - 1 + ((high < low) | ((high == low) & tie_up))
    codes = np.where(np.isfinite(x), codes, 7 if name == SIGNED else 0)
    return packed(codes, 7 if name == SIGNED else 0), scales


# ---------------------------------------------------------------------------------------------------------------------
# Codes
# ---------------------------------------------------------------------------------------------------------------------


def bits(x: Any) -> Array:
    a = np.ascontiguousarray(x)
    return a.view(f"u{a.itemsize}")


def numbers_of(size: int, name: str, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(size) * 10.0 ** rng.uniform(-4, 3, size)).astype(F32)
    return np.abs(x) if name == UNSIGNED else x


def assert_same(got: formats.Stored, want: tuple[Array, Array]) -> None:
    np.testing.assert_array_equal(got.data, want[0])
    np.testing.assert_array_equal(bits(got.scales), bits(want[1]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "size", first_tier([0, 1, 2, 15, 17, 127, 128, 129, 255, 256, 257, 511, 5000, 5001], 0, 129, 5001)
)
def test_codes(name: str, size: int, isa: str) -> None:
    x = numbers_of(size, name)
    got = formats.quantize(x, name)
    assert got.data.shape == (-(-size // 2),)
    assert_same(got, oracle_encode(x, name))
    values = formats.dequantize(got, x.shape)
    np.testing.assert_array_equal(bits(values), bits(oracle_decode(got, size)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", first_tier([1.0, 1.7, 3e35, 3e38, 1e-30, 1.2e-38, 1e-42, 0.0], 1.7, 1e-42))
def test_every_byte(name: str, scale: float, isa: str) -> None:
    data = np.arange(256).astype(np.uint8)
    scales = np.full(4, scale, F32)
    for size in (512, 511):
        got = formats.dequantize((data, scales, name), (size,))
        np.testing.assert_array_equal(bits(got), bits(oracle_decode((data, scales, name), size)))


def test_the_map_matches_the_paper() -> None:
    """As printed by its authors."""
    magnitudes = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    want = np.array([-x for x in magnitudes[::-1]] + [0, *magnitudes, 1]).astype(F32)
    np.testing.assert_array_equal(formats._map_of(SIGNED), want)
    np.testing.assert_array_equal(formats._map_of(UNSIGNED), np.linspace(0, 1, 17)[1:].astype(F32))


@pytest.mark.parametrize("name", ALL)
def test_around_every_midpoint(name: str, isa: str) -> None:
    known = NUMBERS[name].astype(np.float64)
    middle = ((known[1:] + known[:-1]) / 2).astype(F32)
    for off in (-2, -1, 0, 1, 2):
        x = np.append(middle + F32(off) * np.spacing(middle), F32(1))
        assert_same(formats.quantize(x, name), oracle_encode(x, name))


@pytest.mark.parametrize("scale", first_tier([1.0, 3.0, 2.0**-126, 2.0**-149, 3e38], 3.0))
@pytest.mark.parametrize("name", ALL)
def test_every_upper_half_of_a_float(name: str, scale: float, isa: str) -> None:
    """Every sign, exponent and seven bits of the significand up to the scale, and nonfinite numbers."""
    x = (np.arange(1 << 16, dtype=np.uint32) << 16).view(F32)
    x = np.concatenate([x[np.abs(x) <= 1] * F32(scale), x[~np.isfinite(x)]])
    x = np.pad(x, (0, -x.size % (BLOCK - 1))).reshape(-1, BLOCK - 1)
    x = np.concatenate([np.full((len(x), 1), scale, F32), x], axis=1).reshape(-1)
    assert_same(formats.quantize(x, name), oracle_encode(x, name))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1.0, 1.7, 3e35, 1e-30])
def test_decoded_numbers_are_fixed_points(name: str, scale: float) -> None:
    values = np.tile(NUMBERS[name], 8) * F32(scale)
    once = formats.quantize(values, name)
    np.testing.assert_array_equal(unpacked(once.data, 128), np.tile(np.arange(16), 8))
    again = formats.quantize(formats.dequantize(once), name)
    np.testing.assert_array_equal(again.data, once.data)
    np.testing.assert_array_equal(again.scales, once.scales)


@pytest.mark.parametrize("name", ALL)
def test_encoding_is_monotonic(name: str) -> None:
    x = np.sort(numbers_of(BLOCK, name, 3))
    assert (np.diff(formats.dequantize(formats.quantize(x, name))) >= 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", first_tier([1.0, 3e38, 2.0**-120, 2.0**-149, 0.0], 1.0))
def test_one_nonfinite_element_in_each_block(name: str, scale: float, isa: str) -> None:
    """At each position of a block, among blocks without any: it becomes the smallest number; no other element
    changes."""
    kinds = np.array([np.inf, -np.inf, np.nan, -np.nan], F32)
    unit = numbers_of(2 * BLOCK * BLOCK, name, 8)
    x = (unit / np.abs(unit).max() * F32(scale)).reshape(BLOCK, 2, BLOCK)
    places = np.arange(BLOCK)
    x[places, 0, places] = kinds[places % kinds.size]
    x = x.reshape(-1)
    got = formats.quantize(x, name)
    assert_same(got, oracle_encode(x, name))
    np.testing.assert_array_equal(got.data, formats.quantize(np.where(np.isfinite(x), x, F32(0)), name).data)


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def names_of(rule: str) -> list[str]:
    return [UNSIGNED if s.nonnegative else SIGNED for s in RULES[rule].states]


@pytest.mark.parametrize("rule", first_tier([r.name for r in RULES.values() if r.states], "adam", "adadelta"))
@pytest.mark.parametrize("size", [845, 256])
def test_steps(rule: str, size: int, isa: str) -> None:
    """Decode, the rule's own step in float32, encode: bit for bit."""
    rng = np.random.default_rng(11)
    update = getattr(adaptk.ops, rule)
    param = rng.standard_normal(size).astype(F32)
    starts = RULES[rule].initial_states().values()
    states = [formats.quantize(np.full(size, v, F32), n) for v, n in zip(starts, names_of(rule), strict=True)]
    plain = param.copy()
    for step in range(1, 4):
        grad = (rng.standard_normal(size) * 10.0 ** rng.uniform(-3, 1, size)).astype(F32)
        between = [oracle_decode(s, size) for s in states]
        update(param, grad, *states, step=step)
        update(plain, grad, *between, step=step)
        np.testing.assert_array_equal(bits(param), bits(plain))
        for state, want in zip(states, between, strict=True):
            assert_same(state, oracle_encode(want, state.format))


@pytest.mark.parametrize("names", [(SIGNED, UNSIGNED), ("int8", UNSIGNED), (SIGNED, "uint8")])
def test_threads(names: tuple[str, ...]) -> None:
    """Threads share no bytes, also in consecutive tensors of odd sizes."""
    rng = np.random.default_rng(12)
    sizes = [1, 100_001, 3, 200_003]
    starts = [rng.standard_normal(n).astype(F32) for n in sizes]
    grads = [rng.standard_normal(n).astype(F32) for n in sizes]
    before = adaptk.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 7):
            adaptk.set_num_threads(n)
            params = [x.copy() for x in starts]
            states = [[formats.quantize(np.zeros(size, F32), name) for size in sizes] for name in names]
            for step in (1, 2):
                adaptk.ops.adam(params, grads, *states, step=step)
            results.append([*params, *(x for row in states for s in row for x in s[:2])])
    finally:
        adaptk.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(bits(a), bits(b))


def test_params_of_any_layout() -> None:
    """Codes are in the order of memory."""
    rng = np.random.default_rng(13)
    rows, grad = rng.standard_normal((2, 7, 33)).astype(F32)
    columns = np.asfortranarray(rows.T)
    flat = rows.T.reshape(-1, order="F").copy()
    results = []
    for p, g in ((rows.copy(), grad), (columns, np.asfortranarray(grad.T)), (flat, grad.reshape(-1))):
        m, v = (formats.full_like(p, 0.0, name) for name in ALL)
        adaptk.ops.adam(p, g, m, v, step=1)
        results.append([m.data, m.scales, v.data, v.scales])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_unaligned_row() -> None:
    """Codes begin at any byte."""
    rng = np.random.default_rng(14)
    param, grad = rng.standard_normal((2, 1001)).astype(F32)
    twin = param.copy()
    m, v = (formats.full_like(param, 0.0, name) for name in ALL)
    room = np.zeros(502, np.uint8)
    moved = formats.Stored(room[1:], m.scales.copy(), SIGNED)
    moved.data[:] = m.data
    adaptk.ops.adam(param, grad, m, v, step=1)
    adaptk.ops.adam(twin, grad, moved, formats.full_like(twin, 0.0, UNSIGNED), step=1)
    np.testing.assert_array_equal(moved.data, m.data)
    np.testing.assert_array_equal(param, twin)


def test_errors() -> None:
    p, g = np.zeros((2, 300), F32)
    scales = np.zeros(3, F32)

    def step(data: Any, of: Any = scales) -> None:
        adaptk.ops.momentum(p, g, formats.Stored(data, of, SIGNED), step=1)

    step(np.zeros(150, np.uint8))
    with pytest.raises(
        ValueError, match=r"momentum_buffer: shape \(300,\), expected a row of 150 for the 300 elements"
    ):
        step(np.zeros(300, np.uint8))
    with pytest.raises(ValueError, match=r"shape \(10, 15\), expected a row of 150"):
        step(np.zeros((10, 15), np.uint8))
    with pytest.raises(ValueError, match=r"shape \(150,\), expected a row of 150"):
        step(np.zeros(300, np.uint8)[::2])
    with pytest.raises(TypeError, match="dtype int8, which is not that of the format 4bit_signed"):
        step(np.zeros(150, np.int8))
    with pytest.raises(ValueError, match=r"scales: shape \(2,\), expected \(3,\): one for each 128 of the state's 300"):
        step(np.zeros(150, np.uint8), np.zeros(2, F32))
    stored = formats.quantize(np.ones(5, F32), SIGNED)
    assert formats.dequantize(stored, (5, 1)).shape == (5, 1)
    assert formats.dequantize(stored).shape == (6,)
    for shape in ((4,), (7,)):
        with pytest.raises(
            ValueError, match=rf"shape: \({shape[0]},\) has {shape[0]} elements, and the codes are of 6"
        ):
            formats.dequantize(stored, shape)
    state = formats.Stored(np.zeros(16, np.uint8), scales[:1], SIGNED)
    with pytest.raises(ValueError, match="its elements share a scale in blocks"):
        adaptk.ops.momentum(np.zeros((8, 4), F32), (np.array([1]), np.ones((1, 4), F32)), state, step=1)


# ---------------------------------------------------------------------------------------------------------------------
# Objects
# ---------------------------------------------------------------------------------------------------------------------


def trained(state_dtype: Any, shapes: list[tuple[int, ...]], **options: Any) -> tuple[Any, list[Array]]:
    params = [np.ones(s, F32) for s in shapes]
    opt = adaptk.Adam(params, lr=0.01, state_dtype=state_dtype, **options)
    rng = np.random.default_rng(5)
    for _ in range(3):
        opt.step([rng.standard_normal(s).astype(F32) for s in shapes])
    return opt, params


def test_objects() -> None:
    shapes = [(70, 71), (4095,), (5, 1001)]
    opt, params = trained("4bit", shapes)
    assert opt.state[1]["exp_avg"].dtype == F32  # below the smallest size
    for i in (0, 2):
        m, v = opt.state[i]["exp_avg"], opt.state[i]["exp_avg_sq"]
        assert (m.format, v.format) == ALL
        assert m.data.shape == v.data.shape == (-(-params[i].size // 2),)
        assert m.scales.shape == (-(-params[i].size // BLOCK),)
    twins = [p.copy() for p in params]
    later = adaptk.Adam(twins, state_dtype="4bit")
    saved = opt.state_dict()
    assert "state.0.exp_avg.4bit_scales" in saved
    later.load_state_dict(saved)
    again = copy.deepcopy(opt)
    grads = [np.full(s, 0.1, F32) for s in shapes]
    for o in (opt, later, again):
        o.step(grads)
    for p, q, r in zip(params, twins, again.param_groups[0]["params"], strict=True):
        np.testing.assert_array_equal(p, q)
        np.testing.assert_array_equal(p, r)
    saved["state.0.exp_avg"] = saved["state.0.exp_avg"][:-1]
    with pytest.raises(ValueError, match="shape"):
        later.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"state.0.exp_avg'\]: shape \(2484,\), expected \(2485,\) in 4bit_signed"):
        adaptk.Adam([p.copy() for p in params]).load_state_dict(saved)


@pytest.mark.parametrize("to", ["4bit", "8bit", "8bit_dynamic", None])
@pytest.mark.parametrize("of", ["4bit", "8bit", None])
def test_states_of_other_formats_are_loaded(of: str | None, to: str | None) -> None:
    opt, params = trained(of, [(70, 71), (4097,)])
    later = adaptk.Adam([p.copy() for p in params], state_dtype=to)
    later.load_state_dict(opt.state_dict())
    for i, p in enumerate(params):
        for name in ("exp_avg", "exp_avg_sq"):
            before, after = opt.state[i][name], later.state[i][name]
            decoded = formats.dequantize(before, p.shape) if of else before
            if of == to:
                continue
            if to is None:
                np.testing.assert_array_equal(after, decoded)
            else:
                want = formats.quantize(decoded, after.format, seed=0)
                np.testing.assert_array_equal(after.data, want.data)
                np.testing.assert_array_equal(after.scales, want.scales)


# ---------------------------------------------------------------------------------------------------------------------
# torchao's checkpoints
# ---------------------------------------------------------------------------------------------------------------------


def of_torchao(size: int = 512, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"step": F32(3)}
    for key, name in (("exp_avg", SIGNED), ("exp_avg_sq", UNSIGNED)):
        stored = formats.quantize(numbers_of(size, name), name)
        parts = {"codes": stored.data, "scale": stored.scales, "qmap": NUMBERS[name], "signed": name == SIGNED}
        made[key] = {**parts, "shape": shape or (size,)}
    return made


def test_torchao_round_trip() -> None:
    theirs = of_torchao(shape=(16, 32))
    ours = formats.from_torchao(theirs)
    assert list(ours) == ["step", "exp_avg", "exp_avg_4bit_scales", "exp_avg_sq", "exp_avg_sq_4bit_scales"]
    assert ours["exp_avg"] is theirs["exp_avg"]["codes"] or np.shares_memory(
        ours["exp_avg"], theirs["exp_avg"]["codes"]
    )
    back = formats.to_torchao(ours, (16, 32))
    assert list(back) == list(theirs)
    for name in ("exp_avg", "exp_avg_sq"):
        assert list(back[name]) == list(theirs[name])
        for key in back[name]:
            np.testing.assert_array_equal(np.asarray(back[name][key]), np.asarray(theirs[name][key]))
    with pytest.raises(ValueError, match="shape: None, expected that of the param beside the 4-bit codes of 'exp_avg'"):
        formats.to_torchao(ours)
    with pytest.raises(ValueError, match=r"shape: \(16, 31\), and 'exp_avg' has 4-bit codes of 512 elements"):
        formats.to_torchao(ours, (16, 31))


def test_other_torchao_states() -> None:
    """With longer blocks, and with a signed map."""
    theirs = of_torchao(shape=(2, 256))
    theirs["exp_avg"]["scale"] = theirs["exp_avg"]["scale"][::2].copy()
    theirs["exp_avg_sq"] = {**theirs["exp_avg"], "scale": of_torchao()["exp_avg"]["scale"]}
    ours = formats.from_torchao(theirs)
    assert list(ours) == ["step", "exp_avg", "exp_avg_sq"]
    codes = unpacked(theirs["exp_avg"]["codes"], 512)
    want = NUMBERS[SIGNED][codes] * np.repeat(theirs["exp_avg"]["scale"], 256)
    np.testing.assert_array_equal(ours["exp_avg"], want.reshape(2, 256))
    want = NUMBERS[SIGNED][codes] * np.repeat(theirs["exp_avg_sq"]["scale"], 128)
    np.testing.assert_array_equal(ours["exp_avg_sq"], want.reshape(2, 256))


def test_sizes_that_torchao_keeps_in_float32() -> None:
    stored = formats.quantize(numbers_of(301, SIGNED), SIGNED)
    ours = {"exp_avg": stored.data, "exp_avg_4bit_scales": stored.scales}
    back = formats.to_torchao(ours, (7, 43))
    np.testing.assert_array_equal(back["exp_avg"], formats.dequantize(stored, (7, 43)))


def test_to_bitsandbytes_uses_8_bits() -> None:
    ours = formats.from_torchao(of_torchao(shape=(16, 32)))
    theirs = formats.to_bitsandbytes(ours, shape=(16, 32))
    dense = formats.dequantize((ours["exp_avg"], ours["exp_avg_4bit_scales"], SIGNED), (16, 32))
    want = formats.quantize(dense, "dynamic_signed")
    np.testing.assert_array_equal(theirs["state1"], want.data)
    np.testing.assert_array_equal(theirs["absmax1"], want.scales)


def test_codes_of_torchao(torch: Any) -> None:
    """torchao stores the same codes and scales, if it is installed."""
    quant = pytest.importorskip("torchao.optim.quant_utils", exc_type=ImportError)
    classes = pytest.importorskip("torchao.optim.subclass_4bit", exc_type=ImportError)
    for name in ALL:
        x = numbers_of(1 << 16, name, 21)
        zeros = classes.OptimState4bit.zeros((1 << 16,), name == SIGNED, BLOCK)
        np.testing.assert_allclose(zeros.qmap.numpy(), NUMBERS[name], rtol=3e-7)
        scaled, scales = quant.scale_tensor(torch.from_numpy(x), BLOCK)
        codes = quant.quantize_4bit_with_qmap(scaled.view(-1), torch.from_numpy(NUMBERS[name]))
        got = formats.quantize(x, name)
        np.testing.assert_array_equal(got.scales, scales.numpy())
        np.testing.assert_array_equal(got.data, (codes[::2] << 4 | codes[1::2]).numpy())
        theirs = classes.OptimState4bit(
            torch.from_numpy(got.data),
            torch.from_numpy(got.scales),
            torch.from_numpy(NUMBERS[name]),
            name == SIGNED,
            x.shape,
        )
        np.testing.assert_array_equal(theirs.dequantize().numpy(), formats.dequantize(got))


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------------------------


def test_in_torch(torch: Any) -> None:
    import adaptk.torch as at

    torch.manual_seed(0)
    start = torch.randn(65, 77)
    grads = [torch.randn(65, 77) for _ in range(6)]
    p = torch.nn.Parameter(start.clone())
    opt = at.Adam([p], lr=0.01, state_dtype="4bit")
    param, m, v = start.numpy().copy(), *(formats.full_like(start.numpy(), 0.0, name) for name in ALL)
    for step, g in enumerate(grads[:3], 1):
        p.grad = g
        opt.step()
        adaptk.ops.adam(param, g.numpy(), m, v, step=step, lr=0.01)
    state = opt.state[p]
    np.testing.assert_array_equal(p.detach().numpy(), param)
    assert list(state) == ["step", "exp_avg", "exp_avg_4bit_scales", "exp_avg_sq", "exp_avg_sq_4bit_scales"]
    np.testing.assert_array_equal(state["exp_avg"].numpy(), m.data)
    np.testing.assert_array_equal(state["exp_avg_sq_4bit_scales"].numpy(), v.scales)
    # Loaded, although torch casts states to the param's dtype.
    q = torch.nn.Parameter(p.detach().clone())
    later = at.Adam([q], state_dtype="4bit")
    later.load_state_dict(copy.deepcopy(opt.state_dict()))
    for g in grads[3:]:
        p.grad, q.grad = g, g
        opt.step()
        later.step()
    assert torch.equal(p, q)
    assert torch.equal(opt.state[p]["exp_avg"], later.state[q]["exp_avg"])
    # torchao's dict and back.
    back = formats.from_torchao(formats.to_torchao(opt.state[p], p.shape))
    np.testing.assert_array_equal(
        back["exp_avg"].numpy(),
        formats.dequantize([x.numpy() for x in (state["exp_avg"], state["exp_avg_4bit_scales"])] + [SIGNED], p.shape),
    )
    # Another format at any time.
    dense = formats.dequantize((state["exp_avg"].numpy(), state["exp_avg_4bit_scales"].numpy(), SIGNED), p.shape)
    opt.param_groups[0]["state_dtype"] = None
    p.grad = torch.zeros_like(p)
    opt.step()
    np.testing.assert_array_equal(opt.state[p]["exp_avg"].numpy(), dense * F32(0.9))
    opt.param_groups[0]["state_dtype"] = "4bit"
    opt.step()
    assert opt.state[p]["exp_avg"].shape == (-(-p.numel() // 2),)
    opt.state[p]["exp_avg"] = opt.state[p]["exp_avg"][:-1]
    with pytest.raises(ValueError, match=r"expected codes of shape \(2503,\) for the 5005 elements of its param"):
        opt.step()


def test_moved_codes_in_torch(torch: Any) -> None:
    """share_memory_() moves a state, and the step finds it."""
    import adaptk.torch as at

    results = []
    for moved in (False, True):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.ones(5001))
        opt = at.Adam([p], state_dtype="4bit")
        for step in range(4):
            p.grad = torch.randn(5001)
            opt.step()
            if moved and step == 1:
                opt.state[p]["exp_avg"].share_memory_()
        results.append(p.detach().numpy())
    np.testing.assert_array_equal(*results)
