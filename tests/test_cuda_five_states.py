"""Rules with five states on a CUDA device: those have a second entry in the tables. The bits are the CPU's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import adaptk
import c_abi
import numpy as np
import pytest
from adaptk.catalogue import find
from device_arrays import Library, Machine, assert_equal
from helpers import FLOATS, same_bits
from run_time_compiler import cache as cache
from run_time_compiler import needs_nvrtc
from sparse_cases import gradient
from test_cuda_c_abi import Device
from test_cuda_rule import c_device as c_device
from test_cuda_rule import check, steps_of_optimizers

pytestmark = [pytest.mark.cuda, needs_nvrtc]


def found(name: str) -> adaptk.TracedRule:
    made = find(name)
    assert made is not None
    return made


def averages(p: Any, g: Any, a: Any, b: Any, c: Any, d: Any, e: Any, h: Any, t: Any) -> Any:
    """Each state has a part in the others and in the step, so that two that are exchanged show."""
    a = h.beta * a + g
    b = 0.5 * b + a * g
    c = c - 0.25 * b
    d = 0.75 * d + c * p
    e = adaptk.maximum(e, abs(a + d))
    return p - h.lr * (a + b * c + d) / (1 + e), a, b, c, d, e


def measured(p: Any, g: Any, a: Any, b: Any, c: Any, d: Any, e: Any, h: Any, t: Any) -> Any:
    """The reduction reads the last state."""
    size = adaptk.norm(e + g)
    return p - h.lr * g / (1 + size), a + g, b - g, c + p, d * h.beta, e + size * g


@contextmanager
def rule_of(formula: Callable[..., Any]) -> Iterator[adaptk.TracedRule]:
    states = dict.fromkeys("abcd", 0.25) | {"e": 1.0}
    made = adaptk.rule(states=states, name=f"five_{formula.__name__}", lr=0.1, beta=0.5)(formula)
    yield made
    made.unregister()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cocob(device: Library, dtype: str) -> None:
    check(device, found("cocob"), dtype, weight_decay=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("formula", [averages, measured], ids=lambda f: f.__name__)
def test_rules_made_at_run_time(device: Library, formula: Callable[..., Any], dtype: str) -> None:
    with rule_of(formula) as made:
        assert len(made.rule.states) == 5
        check(device, made, dtype, weight_decay=0.1)


@pytest.mark.parametrize("count", [39, 50])
def test_many_params(device: Library, count: int) -> None:
    """Tables of up to some 40 entries are a kernel's parameters, longer ones are in device memory."""
    made = found("cocob")
    rng = np.random.default_rng(1)
    host = [rng.normal(size=3 + k % 5).astype(np.float32) for k in range(count)]
    there = [device.put(p) for p in host]
    one, two = made.Optimizer(host), made.Optimizer(there)
    for _ in range(2):
        grads = [rng.normal(size=p.size).astype(np.float32) for p in host]
        one.step(grads)
        two.step([device.put(g) for g in grads])
    assert_equal([device.get(p) for p in there], host)
    for mine, other in zip(one.state.values(), two.state.values(), strict=True):
        for s in made.rule.states:
            assert_equal(device.get(other[s.name]), mine[s.name], s.name)


@pytest.mark.parametrize(
    ("step", "options"),
    [
        ({"clip_norm": 0.5}, {}),
        ({"skip_nonfinite": True}, {}),
        ({"clip_norm": 1.0}, {"state_dtype": "8bit", "min_8bit_size": 0, "seed": 5}),
        ({}, {"state_dtype": "bfloat16_sr", "seed": 5}),
    ],
    ids=str,
)
def test_objects(device: Library, step: dict[str, Any], options: dict[str, Any]) -> None:
    """Of coefficients of the host and of the device; of formats with scales and with random bits."""
    if "state_dtype" in options:
        pytest.importorskip("ml_dtypes")
    steps_of_optimizers(device, found("cocob"), step, **options)


def test_formats_of_reductions(device: Library) -> None:
    with rule_of(measured) as made:
        steps_of_optimizers(device, made, {"clip_norm": 1.0}, state_dtype="8bit_nearest", min_8bit_size=0)


def test_skipped_steps(device: Library) -> None:
    made = found("cocob")
    rng = np.random.default_rng(8)
    host = [rng.normal(size=n).astype(np.float32) for n in (300, 0, 5)]
    there = [device.put(p) for p in host]
    one, two = made.Optimizer(host), made.Optimizer(there)
    for bad in (False, True, False):
        grads = [rng.normal(size=p.shape).astype(np.float32) for p in host]
        grads[2][0] = np.inf if bad else 1.0
        skipped = [
            opt.step(g, skip_nonfinite=True).skipped for opt, g in ((one, grads), (two, [device.put(g) for g in grads]))
        ]
        assert skipped == [bad, bad]
    assert one.step_count == two.step_count == 2
    assert_equal([device.get(p) for p in there], host)


@pytest.mark.parametrize("kind", [None, "8bit_nearest", "bfloat16_sr"])
@pytest.mark.parametrize("mode", ["lazy", "dense"])
def test_rows(device: Library, mode: str, kind: str | None) -> None:
    """The rows of a sparse gradient become tensors, whose entries are made on the device."""
    if kind == "bfloat16_sr" and "bfloat16" not in FLOATS:
        pytest.skip("ml_dtypes is not installed")
    made = found("cocob")
    results = []
    for library in (device, None):
        put = library.put if library is not None else np.copy
        get = library.get if library is not None else np.asarray
        param = put(np.ones((40, 256), np.float32))
        opt = made.Optimizer([param], sparse=mode, state_dtype=kind, **({} if kind is None else {"min_8bit_size": 0}))
        for t in range(3):
            indices, values = gradient(40, (256,), 60, t)
            opt.step([(put(indices), put(values))])
        results.append([get(param)])
        for state in opt.state[0].values():
            parts = state if isinstance(state, tuple) else (state,)
            results[-1] += [get(x) for x in parts if hasattr(x, "dtype")]
    assert_equal(results[0], results[1])
    assert len(results[0]) >= 6


def test_the_c_interface(c_device: Device) -> None:
    made = found("cocob")
    rng = np.random.default_rng(2)
    sizes = (3, 0, 300)
    params, grads = ([rng.normal(size=n).astype(np.float32) for n in sizes] for _ in range(2))
    states = [abs(rng.normal(size=n)).astype(np.float32) for n in sizes for _ in made.rule.states]
    p, g, s = ([c_device.put(a) for a in arrays] for arrays in (params, grads, states))
    for step in (1, 2):
        c_abi.step(made.rule.key, p, g, s, step, {"weight_decay": 0.01})
        c_abi.step(made.rule.key, params, grads, states, step, {"weight_decay": 0.01})
    for t, x in zip([*p, *s], [*params, *states], strict=True):
        assert same_bits(c_device.get(t, x), x)


@pytest.mark.parametrize("device_counts", [False, True])
def test_torch(machine: Machine, device_counts: bool) -> None:
    """The plan of PyTorch's optimizers, with dense and sparse gradients, and captured if the device counts."""
    pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    from test_cuda_torch import Pair, step_by_rows

    step_by_rows(Pair("cocob", {"step": 0.0}, device_counts), 3)
    pair = Pair("cocob", {"step": 0.0}, device_counts)
    for t in range(3):
        pair.set_grads()
        machine.calls.is_capturing = device_counts and t > 0
        pair.on_device.step(pair.device, {"lr": 0.5})
        machine.calls.is_capturing = False
        pair.on_host.step(pair.host, {"lr": 0.5})
        pair.check()
