"""States with storage formats in C on a CUDA device: the CPU's bits, and errors."""

from __future__ import annotations

from ctypes import byref, c_int64, c_uint64
from typing import Any

import c_abi
import numpy as np
import pytest
from adaptk import formats
from c_abi import INVALID_ARGUMENT, UNSUPPORTED, CError, StoredPlan, lib, stored
from test_cuda_c_abi import Device, device  # noqa: F401

pytestmark = pytest.mark.cuda

SIZES = (5, 0, 300)


def start() -> tuple[list[Any], list[Any], list[Any]]:
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(n).astype(np.float32) for n in SIZES] for _ in range(2))
    return params, grads, [formats.full_like(p, 0.5, kind) for p in params for kind in ("int8", "uint8")]


def put(device: Device, state: formats.Stored) -> c_abi.Stored:  # noqa: F811
    return stored(state, data=device.put(state.data), scales=device.put(state.scales))


def assert_same(device: Device, states: list[c_abi.Stored], want: list[formats.Stored]) -> None:  # noqa: F811
    for s, w in zip(states, want, strict=True):
        for t, a in zip(s.kept, w[:2], strict=True):
            np.testing.assert_array_equal(device.get(t, a), a)


def test_steps_and_plans(device: Device) -> None:  # noqa: F811
    params, grads, states = start()
    p, g = ([device.put(a) for a in arrays] for arrays in (params, grads))
    s = [put(device, x) for x in states]
    c_abi.step_stored("adam", p, g, s, 3, seed=5)
    c_abi.step_stored("adam", params, grads, states, 3, seed=5)
    assert_same(device, s, states)
    there, here = StoredPlan("adam", p, s), StoredPlan("adam", params, states)
    for plan, of in ((there, g), (here, grads)):
        plan.seed = 6
        plan.steps = [4] * len(SIZES)
        plan.step(of)
        plan.step(of)
    assert_same(device, s, states)
    for t, a in zip(p, params, strict=True):
        np.testing.assert_array_equal(device.get(t, a), a)


def test_errors(device: Device) -> None:  # noqa: F811
    params, grads, states = start()
    p, g = ([device.put(a) for a in arrays] for arrays in (params, grads))
    with pytest.raises(CError, match=r"states\[0\] \(exp_avg of params\[0\]\): on cpu, expected cuda:0") as e:
        c_abi.step_stored("adam", p, g, states, 1)
    assert e.value.status == INVALID_ARGUMENT
    apart = [stored(s, data=device.put(s.data)) for s in states]
    with pytest.raises(CError, match=r"states\[0\] \(exp_avg of params\[0\]\), scales: on cpu, expected cuda:0"):
        c_abi.step_stored("adam", p, g, apart, 1)
    with pytest.raises(CError, match="values: on cuda:0; codes are converted on the CPU") as e:
        c_abi.check(lib.adaptk_quantize(byref(p[0]), byref(put(device, states[0])), c_uint64(0), c_int64(1)))
    assert e.value.status == UNSUPPORTED
