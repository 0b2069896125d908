"""16-bit params with param formats on a CUDA device: the same bits as on the CPU."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from device_arrays import Library, assert_equal
from helpers import FLOATS, RULES
from split_params import SPLIT, every_upper_half

pytestmark = pytest.mark.cuda

SIZES = (1, 100, 129, 256, 700)
NAMES = {"remainder16": "remainder", "remainder8": "remainder", "kahan": "compensation"}


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize(("rule", "offset"), [("adam", 0), ("sgd", 1)])
def test_functions(device: Library, rule: str, name: str, offset: int) -> None:
    """Full and partial tiles; params and remainders, aligned to 16 bytes and not."""
    rng = np.random.default_rng(7)
    pairs = [formats.split_param(rng.normal(size=n).astype(np.float32), name) for n in SIZES]
    states = [[np.full(n, v, np.float32) for n in SIZES] for v in RULES[rule].initial_states().values()]
    there = [(device.put(p, offset), device.put(s, offset if i % 2 else 0)) for i, (p, s) in enumerate(pairs)]
    states_there = [[device.put(s) for s in of_all] for of_all in states]
    for step in (1, 2):
        grads = [rng.normal(size=n).astype(np.float32) for n in SIZES]
        options = {"step": step, "param_format": name}
        getattr(adaptk.ops, rule)(there, [device.put(g) for g in grads], *states_there, **options)
        getattr(adaptk.ops, rule)(pairs, grads, *states, **options)
    for i, (param, side) in enumerate(pairs):
        assert_equal(device.get(there[i][0]), param, f"param {i}")
        assert_equal(device.get(there[i][1]), side, f"what lies beside param {i}")


@pytest.mark.parametrize("name", [*SPLIT, "float16_sr"])
def test_numbers_of_every_kind(device: Library, name: str) -> None:
    """A step that changes nothing decodes and encodes: NaN, infinity, subnormal numbers, every edge."""
    x = np.ascontiguousarray(every_upper_half()[::271])
    if name == "float16_sr":
        param: Any = np.arange(0, 1 << 16, 13, dtype=np.uint16).view(np.float16)
        there, grad = device.put(param), np.zeros(param.size, np.float32)
    else:
        # Each param with the remainder of another.
        param = formats.split_param(x, name)
        param[1][...] = np.roll(param[1], 5)
        there, grad = (device.put(param[0]), device.put(param[1])), np.zeros(x.size, np.float32)
    options = {"step": 1, "lr": 1.0, "seed": 3, "param_format": "sr" if name == "float16_sr" else name}
    adaptk.ops.sgd(there, device.put(grad), **options)
    adaptk.ops.sgd(param, grad, **options)
    for got, want in zip(there, param, strict=True) if isinstance(there, tuple) else [(there, param)]:
        got = device.get(got)
        if want.dtype.kind != "i":
            nan = np.isnan(want.astype(np.float32))
            np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), nan)
            got, want = got.view(np.uint16)[~nan], want.view(np.uint16)[~nan]
        np.testing.assert_array_equal(got, want)


def test_float16_rounded_stochastically(device: Library) -> None:
    """Normal numbers, subnormal ones, and some beyond the largest."""
    rng = np.random.default_rng(4)
    magnitude = np.resize([1.0, 3e-6, 60000.0], 700)
    param = np.clip(rng.normal(size=700) * magnitude, -65504, 65504).astype(np.float16)
    there, grad = device.put(param), (rng.normal(size=700) * magnitude).astype(np.float32)
    options = {"step": 1, "lr": 0.1, "seed": 3, "param_format": "sr"}
    adaptk.ops.sgd(there, device.put(grad), **options)
    adaptk.ops.sgd(param, grad, **options)
    assert_equal(device.get(there), param, "param")


@pytest.mark.parametrize(
    ("name", "state_dtype"), [("remainder16", "8bit"), ("remainder8", "float32"), ("kahan", "float32")]
)
def test_objects(device: Library, name: str, state_dtype: str) -> None:
    """Several tensors, one of them float32 and stored as usual; a state of one device resumes on the other."""
    rng = np.random.default_rng(5)
    options = {"lr": 1e-2, "state_dtype": state_dtype, "min_8bit_size": 200, "seed": 3, "param_format": name}
    params = [rng.normal(size=n).astype(np.float32 if n == 129 else FLOATS["bfloat16"]) for n in SIZES]
    there = [device.put(p) for p in params]
    here, on_device = adaptk.Adam(params, **options), adaptk.Adam(there, **options)
    for _ in range(2):
        grads = [rng.normal(size=n).astype(np.float32) for n in SIZES]
        here.step(grads)
        on_device.step([device.put(g) for g in grads])
    for i, p in enumerate(params):
        assert_equal(device.get(there[i]), p, f"param {i}")
        if NAMES[name] in here.state[i]:
            assert_equal(device.get(on_device.state[i][NAMES[name]]), here.state[i][NAMES[name]], f"beside param {i}")
    assert [NAMES[name] in here.state[i] for i in range(5)] == [n != 129 for n in SIZES]
    if name == "kahan":
        return  # NumPy reads no bfloat16 by DLPack
    again = adaptk.Adam([p.copy() for p in params], **options)
    again.load_state_dict(on_device.state_dict())
    np.testing.assert_array_equal(again.state[4][NAMES[name]], here.state[4][NAMES[name]])


def test_a_remainder_on_another_device(device: Library) -> None:
    param, remainder = formats.split_param(np.ones(8, np.float32), "remainder16")
    there, grad = device.put(param), device.put(np.ones(8, np.float32))
    with pytest.raises(ValueError, match=r"param, remainder: on cpu, expected .* like its param"):
        adaptk.ops.sgd((there, remainder), grad, step=1, param_format="remainder16")
