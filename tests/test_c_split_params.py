"""bfloat16 params with remainders or compensations in C: the bits of adaptk.ops and of optimizer objects."""

from __future__ import annotations

from typing import Any

import adaptk
import c_abi
import numpy as np
import pytest
from adaptk import formats
from c_abi import INVALID_ARGUMENT, INVALID_TYPE, UNKNOWN_NAME, CError, Plan
from split_params import BF16, SIDE_DTYPE, SPLIT, bits_of, encode

SIZES = (1, 130, 4099)


def floats(seed: int) -> list[np.ndarray]:
    return [np.random.default_rng([seed, n]).standard_normal(n).astype(np.float32) for n in SIZES]


def options(name: str, sides: list[Any] | None) -> Any:
    return c_abi.options(param_format=name.encode(), param_sides=None if sides is None else c_abi.tensors(sides))


def assert_same(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(bits_of(x), bits_of(y))


@pytest.mark.parametrize("name", SPLIT)
def test_steps(name: str) -> None:
    """With a float32 param among the others, which is stored as usual."""
    pairs = [formats.split_param(x, name) for x in floats(0)]
    here = [(p.copy(), s.copy()) for p, s in pairs]
    wide, twin = np.ones(50, np.float32), np.ones(50, np.float32)
    params, sides = [*(p for p, _ in pairs), wide], [*(s for _, s in pairs), None]
    for step in (1, 2, 3):
        grads = [*floats(step), np.full(50, 0.5, np.float32)]
        c_abi.step("sgd", params, grads, [], step, {"lr": 1e-3}, options(name, sides))
        adaptk.ops.sgd([*here, twin], grads, step=step, lr=1e-3, param_format=name)
    assert_same([x for pair in pairs for x in pair], [x for pair in here for x in pair])
    np.testing.assert_array_equal(wide, twin)


@pytest.mark.parametrize("name", SPLIT)
def test_plans(name: str) -> None:
    params, beside = ([x.astype(BF16) for x in floats(0)] for _ in range(2))
    sides = [np.zeros(n, SIDE_DTYPE[name]) for n in SIZES]
    states = [np.zeros(n, np.float32) for n in SIZES for _ in range(2)]
    plan = Plan("adam", params, states, lr=1e-3)
    opt = adaptk.Adam(beside, lr=1e-3, param_format=name)
    for k in range(3):
        grads: list[Any] = floats(5 + k)
        if k == 1:
            grads[1] = None
        # A param without a gradient needs no remainder.
        plan.step(grads, options(name, [None if g is None else s for g, s in zip(grads, sides, strict=True)]))
        opt.step(grads)
    assert_same(params, beside)
    assert_same(sides, [next(reversed(opt.state[i].values())) for i in range(3)])


@pytest.mark.parametrize("name", SPLIT)
def test_conversions(name: str) -> None:
    x = floats(3)[2]
    param, side = np.zeros(x.size, BF16), np.zeros(x.size, SIDE_DTYPE[name])
    stored = c_abi.stored((param, side, f"bfloat16_{name}"))
    c_abi.check(c_abi.lib.adaptk_quantize(c_abi.byref(c_abi.tensor(x)), c_abi.byref(stored), 0, 1))
    assert_same([param, side], list(encode(x, name)))
    back = np.zeros_like(x)
    c_abi.check(c_abi.lib.adaptk_dequantize(c_abi.byref(stored), c_abi.byref(c_abi.tensor(back))))
    np.testing.assert_array_equal(back, formats.join_param(param, side, name))


def refused(status: int, text: str, param: np.ndarray, given: Any) -> None:
    before = param.copy()
    grad = np.ones(param.size, np.float32)
    with pytest.raises(CError) as error:
        c_abi.step("sgd", [param], [grad], [], 1, None, given)
    assert error.value.status == status
    assert text in str(error.value)
    plan = Plan("sgd", [param], [])
    with pytest.raises(CError) as error:
        plan.step([grad], given)
    assert text in str(error.value)
    np.testing.assert_array_equal(bits_of(param), bits_of(before))
    plan.step([grad])


def test_errors() -> None:
    param, side = formats.split_param(np.ones(4, np.float32), "remainder16")
    refused(UNKNOWN_NAME, "unknown param_format 'x'; there are sr, remainder16", param, options("x", None))
    refused(INVALID_ARGUMENT, "options.param_sides[0]: NULL, expected", param.copy(), options("kahan", None))
    refused(INVALID_ARGUMENT, "options.param_sides[0]: NULL, expected", param.copy(), options("kahan", [None]))
    refused(INVALID_TYPE, "dtype int16, expected int8 beside", param.copy(), options("remainder8", [side]))
    refused(INVALID_TYPE, "beside a float32 param", np.ones(4, np.float32), options("remainder16", [side]))
    refused(INVALID_TYPE, "dtype float16 cannot be stored as 'kahan'", np.ones(4, np.float16), options("kahan", None))
    refused(INVALID_ARGUMENT, "shape (3,), expected (4,)", param.copy(), options("remainder16", [side[:3]]))
    own = np.ones(4, BF16)
    refused(INVALID_ARGUMENT, "overlap", own, options("remainder16", [own.view(np.int16)]))
    both = c_abi.options(param_format=b"kahan", stochastic_params=1)
    refused(INVALID_ARGUMENT, "stochastic_params beside param_format 'kahan'", param.copy(), both)
    state = c_abi.all_stored([(param, side, "bfloat16_remainder16")])
    with pytest.raises(CError, match=r"states\[0\]"):
        c_abi.check(
            c_abi.lib.adaptk_step_stored(
                *(b"momentum", *c_abi.hypers({}), 1, 0, 1),
                *(c_abi.tensors([np.ones(4, np.float32)]), c_abi.tensors([np.ones(4, np.float32)]), state, None, None),
            )
        )
