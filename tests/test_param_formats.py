"""Stochastically rounded bfloat16 params: the bits of the definition, in every interface."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from test_formats import bits, key_of, oracle_encode

ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is in ml_dtypes")
BF16 = np.dtype(ml_dtypes.bfloat16)
RULES = adaptk.rules()


def numbers(size: int, seed: int = 0, dtype: Any = BF16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


def rounded(x: np.ndarray, seed: int, step: int, tensor: int = 0) -> np.ndarray:
    """Of results in float32: the param is buffer 0."""
    return oracle_encode(x, "bfloat16_sr", key_of(seed, step, tensor, 0))[0]


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
            np.testing.assert_array_equal(bits(state), bits(same))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(threads: int) -> None:
    size = 100_003
    grad = numbers(size, 1)
    results = []
    before = adaptk.get_num_threads()
    try:
        for n in (1, threads):
            adaptk.set_num_threads(n)
            param = numbers(size)
            adaptk.ops.sgd(param, grad, step=1, lr=1e-3, seed=3, param_format="sr")
            results.append(param.view(np.uint16))
    finally:
        adaptk.set_num_threads(before)
    np.testing.assert_array_equal(*results)


def test_lists_and_coded_states() -> None:
    """Each tensor and each buffer has its own random bits."""
    sizes = [1, 130, 700]
    params, grads = [numbers(n, n) for n in sizes], [numbers(n, n + 1, np.float32) for n in sizes]
    wanted = [p.astype(np.float32) for p in params]
    m = [formats.quantize(np.zeros(n, np.float32), "int8") for n in sizes]
    v = [formats.quantize(np.zeros(n, np.float32), "bfloat16_sr") for n in sizes]
    adaptk.ops.adam(params, grads, m, v, step=2, seed=4, param_format="sr")
    for i, n in enumerate(sizes):
        second = np.zeros(n, np.float32)
        adaptk.ops.adam(wanted[i], grads[i], np.zeros(n, np.float32), second, step=2)
        np.testing.assert_array_equal(params[i].view(np.uint16), rounded(wanted[i], 4, 2, i))
        want = oracle_encode(second, "bfloat16_sr", key_of(4, 2, i, 3))[0]
        np.testing.assert_array_equal(np.asarray(v[i].data).view(np.uint16), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wider_params_are_unchanged(dtype: Any) -> None:
    grad = numbers(300, 1, dtype)
    a, b = numbers(300, 0, dtype), numbers(300, 0, dtype)
    adaptk.ops.sgd(a, grad, step=1, param_format="sr")
    adaptk.ops.sgd(b, grad, step=1)
    np.testing.assert_array_equal(a, b)
    mixed = [numbers(10), numbers(10, 0, dtype)]
    opt = adaptk.SGD(mixed, lr=0.1, param_format="sr", seed=2)
    opt.step([np.ones(10, dtype), np.ones(10, dtype)])
    want = numbers(10, 0, dtype)
    adaptk.ops.sgd(want, np.ones(10, dtype), step=1, lr=0.1)
    np.testing.assert_array_equal(mixed[1], want)


def test_small_changes_add_up() -> None:
    """10,000 changes of a hundredth of a unit in the last place: 100 units, which rounding to nearest loses."""
    place = 2.0**-7
    grad = np.full(4096, -1, np.float32)
    nearest, stochastic = np.ones(4096, BF16), np.ones(4096, BF16)
    for step in range(1, 10_001):
        adaptk.ops.sgd(nearest, grad, step=step, lr=place / 100)
        adaptk.ops.sgd(stochastic, grad, step=step, lr=place / 100, seed=1, param_format="sr")
    assert (nearest == 1).all()
    moved = (stochastic.astype(np.float64) - 1) / place
    # Each step adds a unit with a probability of 1/100: mean 100, variance 99, within five standard deviations.
    assert abs(moved.mean() - 100) < 5 * np.sqrt(99 / moved.size)
    assert abs(moved.var() - 99) < 5 * 99 * np.sqrt(2 / moved.size)


def steps(opt: Any, count: int, first: int = 0) -> None:
    for k in range(first, first + count):
        opt.step([numbers(p.size, 100 + k, np.float32) for g in opt.param_groups for p in g["params"]])


def test_objects_and_groups() -> None:
    """A group may have its own option; tensors are numbered over all groups."""
    params = [numbers(50, i) for i in range(3)]
    opt = adaptk.Adam(params[:1], lr=0.01, seed=6)
    opt.add_param_group({"params": params[1:], "param_format": "sr"})
    plain = [numbers(50, i).astype(np.float32) for i in range(3)]
    states = [[np.zeros(50, np.float32) for _ in range(2)] for _ in plain]
    steps(opt, 1)
    for i, p in enumerate(plain):
        adaptk.ops.adam(p, numbers(50, 100, np.float32), *states[i], step=1, lr=0.01)
        want = p.astype(BF16).view(np.uint16) if i == 0 else rounded(p, 6, 1, i)
        np.testing.assert_array_equal(params[i].view(np.uint16), want)


@pytest.mark.parametrize("again", ["saved", "pickled", "copied"])
def test_resuming_is_bit_exact(again: str) -> None:
    whole = [numbers(300)]
    opt = adaptk.Adam(whole, param_format="sr", seed=13)
    steps(opt, 2)
    other: Any
    if again == "saved":
        other = adaptk.Adam([whole[0].copy()], param_format="sr", seed=1)
        other.load_state_dict(opt.state_dict())
    elif again == "pickled":
        other = pickle.loads(pickle.dumps(opt))
    else:
        other = copy.deepcopy(opt)
    steps(opt, 2, 2)
    steps(other, 2, 2)
    there = other.param_groups[0]["params"][0]
    np.testing.assert_array_equal(there.view(np.uint16), whole[0].view(np.uint16))
    fresh = [numbers(300)]
    steps(adaptk.optimizer_for("adam", fresh, param_format="sr", seed=13), 4)
    np.testing.assert_array_equal(fresh[0].view(np.uint16), whole[0].view(np.uint16))


REFUSED: list[tuple[Any, type[Exception], str]] = [
    ("nearest", ValueError, "param_format: 'nearest' is unknown; expected 'sr', .*'kahan' or None"),
    (1, TypeError, "param_format: expected a str or None, got int"),
]


@pytest.mark.parametrize(("value", "error", "message"), REFUSED)
def test_errors(value: Any, error: type[Exception], message: str) -> None:
    param, grad = numbers(3), numbers(3, 1)
    with pytest.raises(error, match=message):
        adaptk.ops.sgd(param, grad, step=1, param_format=value)
    with pytest.raises(error, match=message):
        adaptk.SGD([param], param_format=value)
    opt = adaptk.SGD([param])
    with pytest.raises(error, match=message):
        opt.add_param_group({"params": [numbers(2)], "param_format": value})
    assert len(opt.param_groups) == 1
    opt.step([grad])
