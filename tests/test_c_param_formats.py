"""Params in bfloat16 that are rounded stochastically, in C: the bits of adaptk.ops and of optimizer objects."""

from __future__ import annotations

import ctypes

import adaptk
import c_abi
import numpy as np
import pytest
from c_abi import INVALID_ARGUMENT, CError, Options, Plan

ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is in ml_dtypes")
BF16 = np.dtype(ml_dtypes.bfloat16)
SIZES = (1, 130, 4099)
SR = c_abi.options(stochastic_params=1)


def arrays(seed: int, dtype: np.dtype = BF16) -> list[np.ndarray]:
    return [np.random.default_rng([seed, n]).standard_normal(n).astype(dtype) for n in SIZES]


def test_steps() -> None:
    params, beside, nearest = arrays(0), arrays(0), arrays(0)
    for step in (1, 2, 3):
        grads = arrays(step, np.dtype(np.float32))
        c_abi.step_stored("sgd", params, grads, [], step, 7, SR, lr=1e-3)
        adaptk.ops.sgd(beside, grads, step=step, lr=1e-3, seed=7, param_format="sr")
        adaptk.ops.sgd(nearest, grads, step=step, lr=1e-3)
    for p, b in zip(params, beside, strict=True):
        np.testing.assert_array_equal(p.view(np.uint16), b.view(np.uint16))
    assert not np.array_equal(params[2], nearest[2])
    # adaptk_step() has no seed.
    a, b = arrays(0), arrays(0)
    c_abi.step("sgd", a, grads, [], 1, {"lr": 1e-3}, SR)
    adaptk.ops.sgd(b, grads, step=1, lr=1e-3, seed=0, param_format="sr")
    np.testing.assert_array_equal(a[2].view(np.uint16), b[2].view(np.uint16))


def test_plans() -> None:
    """The option belongs to a step: the next one may omit it."""
    params, beside = arrays(0), arrays(0)
    states = [np.zeros(n, np.float32) for n in SIZES for _ in range(2)]
    plan = Plan("adam", params, states, lr=1e-3)
    plan.seed = 11
    opt = adaptk.Adam(beside, lr=1e-3, seed=11, param_format="sr")
    for k in range(2):
        grads = arrays(5 + k, np.dtype(np.float32))
        plan.step(grads, SR)
        opt.step(grads)
    for p, b in zip(params, beside, strict=True):
        np.testing.assert_array_equal(p.view(np.uint16), b.view(np.uint16))
    before = [p.copy() for p in params]
    plan.step(grads)
    plain = adaptk.Adam(before, lr=1e-3)
    saved = {k: v for k, v in opt.state_dict().items() if k != "seed"}
    plain.load_state_dict(saved)
    plain.step(grads)
    for p, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(p.view(np.uint16), b.view(np.uint16))


def test_float16() -> None:
    """The bits of adaptk.ops."""
    grad = np.random.default_rng(1).standard_normal(300).astype(np.float32)
    want, half, planned = (np.ones(300, np.float16) for _ in range(3))
    adaptk.ops.sgd(want, grad, step=1, param_format="sr")
    c_abi.step("sgd", [half], [grad], [], 1, None, SR)
    Plan("sgd", [planned], []).step([grad], SR)
    for got in (half, planned):
        np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))


def test_options_of_programs_compiled_with_an_older_header() -> None:
    """They end before the option, which is then off."""
    older = Options(size=Options.stochastic_params.offset, grad_scale=1.0, stochastic_params=1)
    a, b = arrays(0), arrays(0)
    grads = arrays(1)
    c_abi.step("sgd", a, grads, [], 1, {"lr": 1e-3}, ctypes.byref(older))
    adaptk.ops.sgd(b, grads, step=1, lr=1e-3)
    np.testing.assert_array_equal(a[2].view(np.uint16), b[2].view(np.uint16))
    older.size -= 1
    with pytest.raises(CError, match="options: ") as error:
        c_abi.step("sgd", a, grads, [], 1, None, ctypes.byref(older))
    assert error.value.status == INVALID_ARGUMENT
