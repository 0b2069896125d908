"""bfloat16 params with remainders or compensations: the bits of the definition, in every interface."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from split_params import BF16, SIDE_DTYPE, SPLIT, assert_same, bits_of, decode, encode, every_upper_half

RULES = adaptk.rules()
NAMES = {"remainder16": "remainder", "remainder8": "remainder", "kahan": "compensation"}


def numbers(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


# Conversions.


@pytest.mark.parametrize("name", SPLIT)
def test_every_upper_half(name: str, isa: str) -> None:
    x = every_upper_half()
    param, side = formats.split_param(x, name)
    assert param.dtype == BF16
    assert side.dtype == SIDE_DTYPE[name]
    want = encode(x, name)
    assert_same(param, want[0])
    assert_same(side, want[1])
    value = formats.join_param(param, side, name)
    assert_same(value, decode(*want, name))
    # Splitting again changes nothing; a sum may have another pair whose sum it is.
    again = formats.split_param(value, name)
    assert_same(formats.join_param(*again, name), value)
    if name != "kahan":
        assert_same(again[0], param)
        assert_same(again[1], side)


def test_remainders_of_16_bits_are_exact() -> None:
    x = every_upper_half()
    param, side = formats.split_param(x, "remainder16")
    value = formats.join_param(param, side, "remainder16")
    real = ~np.isnan(x)
    np.testing.assert_array_equal(value.view(np.uint32)[real], x.view(np.uint32)[real])
    # A NaN keeps its sign and its upper half, and is quiet.
    nan = np.isnan(x)
    np.testing.assert_array_equal(
        value.view(np.uint32)[nan], (x.view(np.uint32)[nan] & 0xFFFF0000) | np.uint32(0x400000)
    )
    # The param alone is the nearest bfloat16; ties go away from zero.
    near = x[real].astype(BF16).view(np.uint16).astype(np.int64)
    tie = x.view(np.uint32)[real] & 0xFFFF == 0x8000
    got = bits_of(param)[real].astype(np.int64)
    np.testing.assert_array_equal(got[~tie], near[~tie])
    np.testing.assert_array_equal(got[tie], (x.view(np.uint32)[real][tie] >> 16) + 1)


@pytest.mark.parametrize("name", ["remainder8", "kahan"])
def test_error_bounds(name: str) -> None:
    """24 bits of a float32 have 16 significant ones; a compensation has 8 more and a sign."""
    x = every_upper_half()
    normal = np.isfinite(x) & (np.abs(x) > 2.0**-100) & (np.abs(x) < 2.0**127)
    value = formats.join_param(*formats.split_param(x, name), name)
    error = np.abs(value[normal].astype(np.float64) - x[normal])
    assert (error <= np.abs(x[normal]) * 2.0**-16).all()
    order = np.argsort(x[normal])
    assert (np.diff(value[normal][order]) >= 0).all()


@pytest.mark.parametrize("side", [-1, -0x8000, 0, 5])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_param_that_was_set_to_zero(side: int, zero: float) -> None:
    """A negative remainder of zero encodes no value and must not give NaN."""
    value = formats.join_param(np.array([zero], BF16), np.array([side], np.int16), "remainder16")
    assert abs(value[0]) < 2.0**-140
    assert np.signbit(value[0]) == np.signbit(zero)


def test_errors_of_conversions() -> None:
    x = numbers(4)
    with pytest.raises(ValueError, match="param_format: 'sr', expected 'remainder16', 'remainder8', 'kahan'"):
        formats.split_param(x, "sr")
    with pytest.raises(TypeError, match="x: expected float32 in C order"):
        formats.split_param(x.astype(np.float64), "kahan")
    param, side = formats.split_param(x, "remainder16")
    with pytest.raises(ValueError, match="param_format: 'other'"):
        formats.join_param(param, side, "other")
    with pytest.raises(TypeError, match="param, remainder: dtype int16, expected int8 beside a bfloat16 param"):
        formats.join_param(param, side, "remainder8")
    with pytest.raises(ValueError, match=r"param, remainder: shape \(3,\), expected \(4,\)"):
        formats.join_param(param, side[:3], "remainder16")
    for array in (param, side):
        array.flags.writeable = False
    np.testing.assert_array_equal(formats.join_param(param, side, "remainder16"), x)


# Steps.


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, name: str, isa: str) -> None:
    """Decode, the rule's own step in float32, encode: bit for bit."""
    size = 2 * 256 + 77
    update = getattr(adaptk.ops, rule)
    pair = formats.split_param(numbers(size), name)
    states = [np.full(size, v, np.float32) for v in RULES[rule].initial_states().values()]
    want, beside = decode(*pair, name), [s.copy() for s in states]
    for step in range(1, 4):
        grad = numbers(size, step)
        update(pair, grad, *states, step=step, param_format=name)
        update(want, grad, *beside, step=step)
        split = encode(want, name)
        assert_same(pair[0], split[0])
        assert_same(pair[1], split[1])
        want = decode(*split, name)
        for state, same in zip(states, beside, strict=True):
            np.testing.assert_array_equal(state.view(np.uint32), same.view(np.uint32))


@pytest.mark.parametrize("rule", RULES)
def test_remainders_of_16_bits_are_float32_params(rule: str) -> None:
    """Independent of encoding and decoding: the run is that of float32."""
    master = numbers(1000)
    pair = formats.split_param(master, "remainder16")
    twin = pair[0]
    a, b = adaptk.optimizer_for(rule, [master]), adaptk.optimizer_for(rule, [twin], param_format="remainder16")
    b.state[0]["remainder"][...] = pair[1]
    for step in range(20):
        grad = numbers(1000, step)
        a.step([grad])
        b.step([grad])
    np.testing.assert_array_equal(formats.join_param(twin, b.state[0]["remainder"], "remainder16"), master)


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(name: str, threads: int) -> None:
    size = 100_003
    results = []
    before = adaptk.get_num_threads()
    try:
        for n in (1, threads):
            adaptk.set_num_threads(n)
            pair = formats.split_param(numbers(size), name)
            adaptk.ops.sgd(pair, numbers(size, 1), step=1, lr=1e-3, param_format=name)
            results.append(pair)
    finally:
        adaptk.set_num_threads(before)
    for k in range(2):
        np.testing.assert_array_equal(bits_of(results[0][k]), bits_of(results[1][k]))


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 255, 257, 1025])
def test_sizes_and_unaligned_params(name: str, size: int) -> None:
    pair = formats.split_param(numbers(size), name)
    room = np.zeros(2 * size + 1, np.uint8)
    unaligned = room[1:].view(BF16)
    unaligned[...] = pair[0]
    beside = np.zeros(size + 1, SIDE_DTYPE[name])[1:]
    beside[...] = pair[1]
    for params in (pair, (unaligned, beside)):
        adaptk.ops.sgd(params, numbers(size, 1), step=1, lr=0.5, param_format=name)
    np.testing.assert_array_equal(bits_of(np.ascontiguousarray(unaligned)), bits_of(pair[0]))
    np.testing.assert_array_equal(bits_of(beside), bits_of(pair[1]))


def test_layouts() -> None:
    """A remainder has the layout of its param."""
    x = numbers(60).reshape(3, 4, 5)
    param, side = (a.reshape(x.shape) for a in formats.split_param(x.reshape(-1), "remainder16"))
    turned = np.ascontiguousarray(param.T).T, np.ascontiguousarray(side.T).T
    grad = numbers(60, 1).reshape(x.shape)
    adaptk.ops.sgd((param, side), grad, step=1, lr=0.5, param_format="remainder16")
    adaptk.ops.sgd(turned, np.ascontiguousarray(grad.T).T, step=1, lr=0.5, param_format="remainder16")
    np.testing.assert_array_equal(turned[0], param)
    np.testing.assert_array_equal(turned[1], side)


def test_lists() -> None:
    """A list, or a tuple of tuples; params that are not split are no pairs."""
    pairs = [formats.split_param(numbers(n), "remainder16") for n in (3, 300)]
    wide = numbers(7)
    params = [*pairs, wide]
    grads = [numbers(p[0].size if isinstance(p, tuple) else p.size, 1) for p in params]
    alone = [(p[0].copy(), p[1].copy()) for p in pairs]
    adaptk.ops.sgd(params, grads, step=1, param_format="remainder16")
    for pair, other, grad in zip(pairs, alone, grads, strict=False):
        adaptk.ops.sgd(other, grad, step=1, param_format="remainder16")
        np.testing.assert_array_equal(pair[0], other[0])
        np.testing.assert_array_equal(pair[1], other[1])
    want = numbers(7)
    adaptk.ops.sgd(want, grads[2], step=1)
    np.testing.assert_array_equal(wide, want)
    adaptk.ops.sgd(tuple(alone), grads[:2], step=2, param_format="remainder16")
    adaptk.ops.sgd(pairs, grads[:2], step=2, param_format="remainder16")
    np.testing.assert_array_equal(alone[1][1], pairs[1][1])


def test_coded_states_and_gradients_of_16_bits() -> None:
    size = 5000
    pair = formats.split_param(numbers(size), "remainder16")
    want = numbers(size)
    grad = numbers(size, 1).astype(BF16)
    for param, extra in ((pair, {"param_format": "remainder16"}), (want, {})):
        m = formats.quantize(np.zeros(size, np.float32), "int8")
        v = formats.quantize(np.zeros(size, np.float32), "uint8")
        for step in range(1, 4):
            adaptk.ops.adam(param, grad, m, v, step=step, seed=3, **extra)
    np.testing.assert_array_equal(formats.join_param(*pair, "remainder16"), want)


def test_small_changes_add_up() -> None:
    """Changes of a hundredth of a unit in the last place: plain bfloat16 params stay, these move."""
    place = 2.0**-7
    grad = np.full(64, -1, np.float32)
    nearest = np.ones(64, BF16)
    pairs = {name: formats.split_param(np.ones(64, np.float32), name) for name in SPLIT}
    for step in range(1, 1001):
        adaptk.ops.sgd(nearest, grad, step=step, lr=place / 100)
        for name, pair in pairs.items():
            adaptk.ops.sgd(pair, grad, step=step, lr=place / 100, param_format=name)
    assert (nearest == 1).all()
    for name, pair in pairs.items():
        # Of 1,000 roundings the error is at most half a unit each.
        unit = {"remainder16": 2.0**-23, "remainder8": 2.0**-15, "kahan": 2.0**-16}[name]
        moved = formats.join_param(*pair, name).astype(np.float64) - 1
        assert abs(moved - 10 * place).max() <= 1000 * unit / 2
        assert (pair[0].astype(np.float64) - 1 >= 8 * place).all()


# Objects.


def steps(opt: Any, count: int, first: int = 0) -> None:
    for k in range(first, first + count):
        opt.step([numbers(p.size, 100 + k) for g in opt.param_groups for p in g["params"]])


@pytest.mark.parametrize("name", SPLIT)
def test_objects_match_functions(name: str) -> None:
    params = [numbers(n).astype(BF16) for n in (50, 300)]
    pairs = [(p.copy(), np.zeros(p.size, SIDE_DTYPE[name])) for p in params]
    opt = adaptk.Adam(params, lr=0.01, param_format=name)
    assert list(opt.state[0]) == ["exp_avg", "exp_avg_sq", NAMES[name]]
    states = [[np.zeros(p.size, np.float32) for p in params] for _ in range(2)]
    for k in range(3):
        grads = [numbers(p.size, 100 + k) for p in params]
        opt.step(grads)
        adaptk.ops.adam(pairs, grads, *states, step=k + 1, lr=0.01, param_format=name)
    for i, (param, side) in enumerate(pairs):
        np.testing.assert_array_equal(bits_of(params[i]), bits_of(param))
        np.testing.assert_array_equal(bits_of(opt.state[i][NAMES[name]]), bits_of(side))


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("again", ["saved", "pickled", "copied"])
def test_resuming_is_bit_exact(name: str, again: str) -> None:
    whole = [numbers(300).astype(BF16)]
    opt = adaptk.Adam(whole, param_format=name)
    steps(opt, 2)
    other: Any
    if again == "saved":
        saved = opt.state_dict()
        assert f"state.0.{NAMES[name]}" in saved
        assert "seed" not in saved
        other = adaptk.Adam([whole[0].copy()], param_format=name)
        other.load_state_dict(saved)
    elif again == "pickled":
        other = pickle.loads(pickle.dumps(opt))
    else:
        other = copy.deepcopy(opt)
    steps(opt, 2, 2)
    steps(other, 2, 2)
    there = other.param_groups[0]["params"][0]
    np.testing.assert_array_equal(bits_of(there), bits_of(whole[0]))
    np.testing.assert_array_equal(bits_of(other.state[0][NAMES[name]]), bits_of(opt.state[0][NAMES[name]]))


def test_groups_and_wider_params() -> None:
    params = [numbers(20).astype(BF16), numbers(20), numbers(20).astype(BF16)]
    opt = adaptk.SGD(params[:2], param_format="kahan")
    opt.add_param_group({"params": params[2:], "param_format": "remainder8"})
    assert [list(opt.state[i]) for i in range(3)] == [["compensation"], [], ["remainder"]]
    steps(opt, 2)


def test_look_ahead_restores_everything() -> None:
    param = numbers(300).astype(BF16)
    opt = adaptk.RMSProp([param], lr=0.1, nesterov=True, param_format="remainder16")
    steps(opt, 1)
    before = bits_of(param).copy(), opt.state[0]["remainder"].copy()
    with opt.lookahead():
        assert (bits_of(param) != before[0]).any()
    np.testing.assert_array_equal(bits_of(param), before[0])
    np.testing.assert_array_equal(opt.state[0]["remainder"], before[1])


def test_loading_names_missing_remainders() -> None:
    opt = adaptk.SGD([numbers(5).astype(BF16)], param_format="remainder16")
    saved = opt.state_dict()
    plain = adaptk.SGD([numbers(5).astype(BF16)])
    with pytest.raises(ValueError, match=r"unexpected .*state\.0\.remainder"):
        plain.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"missing .*state\.0\.remainder"):
        opt.load_state_dict(plain.state_dict())
    eight = adaptk.SGD([numbers(5).astype(BF16)], param_format="remainder8")
    with pytest.raises(ValueError, match=r"state_dict\['state.0.remainder'\]: dtype int16, expected int8"):
        eight.load_state_dict(saved)


# Errors.


def refused(param: Any, error: type[Exception], message: str, name: str = "remainder16") -> None:
    with pytest.raises(error, match=message):
        adaptk.ops.sgd(param, numbers(4), step=1, param_format=name)


def test_errors() -> None:
    param, side = formats.split_param(numbers(4), "remainder16")
    refused(param, TypeError, r"param: one buffer, expected the pair \(param, remainder\)")
    refused(param, TypeError, r"param: one buffer, expected the pair \(param, compensation\)", "kahan")
    refused((param, side, side), TypeError, "param: a tuple of 3, expected a buffer or a pair of buffers")
    refused((numbers(4), side), TypeError, "param: a pair of buffers, expected one: .* float32 params")
    refused((param, side), TypeError, "expected int8 beside a bfloat16 param", "remainder8")
    refused((param, side.astype(np.int32)), TypeError, "param, remainder: dtype int32")
    refused((param, side.view(BF16)), TypeError, "param, remainder: dtype bfloat16, expected int16")
    refused((param, side[:3]), ValueError, r"param, remainder: shape \(3,\), expected \(4,\)")
    refused((param, np.zeros(8, np.int16)[::2]), ValueError, "param, remainder: strides")
    refused((param, np.zeros(9, np.uint8)[1:].view(np.int16)), ValueError, "param, remainder: not on a multiple of 2")
    refused((param, param.view(np.int16)), ValueError, "param and param overlap")
    read_only = side.copy()
    read_only.flags.writeable = False
    refused((param, read_only), ValueError, "param, remainder: read-only")
    half = np.ones(4, np.float16)
    refused((half, side), TypeError, "param: dtype float16 cannot be stored as 'remainder16', which is for bfloat16")
    with pytest.raises(TypeError, match=r"params\[0\]: dtype float16 cannot be stored as 'kahan'"):
        adaptk.SGD([half], param_format="kahan")
    with pytest.raises(TypeError, match="exp_avg: dtype int16, expected float32"):
        adaptk.ops.adam(numbers(4), numbers(4), (np.zeros(4, np.int16), None), numbers(4), step=1)
    with pytest.raises(TypeError, match="exp_avg: dtype int16, which is not that of the format bfloat16_sr"):
        adaptk.ops.adam(numbers(4), numbers(4), (np.zeros(4, np.int16), None, "bfloat16_sr"), numbers(4), step=1)
    with pytest.raises(TypeError, match="exp_avg: "):
        adaptk.ops.adam(numbers(4), numbers(4), (param, side, "bfloat16_remainder16"), numbers(4), step=1)
    np.testing.assert_array_equal(formats.join_param(param, side, "remainder16"), numbers(4))
