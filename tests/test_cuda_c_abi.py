"""The C interface on a CUDA device: the CPU's bits from steps and plans, and errors."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import c_abi
import numpy as np
import pytest
from c_abi import INVALID_ARGUMENT, OK, UNSUPPORTED, CError, Plan, lib
from device_arrays import Cudart, Machine, cudart
from helpers import PAIRS, RULES, SOME_PAIRS, Array, make_list, same_bits
from row_wise_oracles import RULES as ROW_WISE
from row_wise_oracles import new_states
from sparse_cases import gradient

pytestmark = pytest.mark.cuda


class Device:
    """Copies of arrays on device 0."""

    def __init__(self, runtime: Cudart) -> None:
        self.runtime = runtime
        self.memory: list[int] = []

    def put(self, array: Array) -> c_abi.Tensor:
        address = self.runtime.allocate(max(array.nbytes, 1))
        self.memory.append(address)
        self.runtime.write(address, array.tobytes())
        return c_abi.tensor(array, data=address, device_type=2)

    def get(self, t: c_abi.Tensor, like: Array) -> Array:
        assert t.data is not None
        data = self.runtime.read(t.data, like.nbytes)
        return np.frombuffer(data, like.dtype).reshape(like.shape)


@pytest.fixture
def device(machine: Machine) -> Iterator[Device]:
    d = Device(cudart())
    yield d
    d.runtime.synchronize()
    for address in d.memory:
        d.runtime.free(address)


def states_of(rule: str, buffers: dict[str, Any]) -> list[Array]:
    return c_abi.state_arrays(rule, {s.name: buffers[s.name] for s in RULES[rule].states})


def test_devices(machine: Machine) -> None:
    count = ctypes.c_int()
    assert lib.adaptk_cuda_device_count(ctypes.byref(count)) == OK
    assert count.value >= 1
    assert lib.adaptk_cuda_available() == 1


@pytest.mark.parametrize(
    ("rule", "param", "grad"),
    [("adam", *pair) for pair in PAIRS]
    + [(rule, *pair) for rule in ("momentum", "sgd", "delta_bar_delta") for pair in SOME_PAIRS],
)
def test_steps(device: Device, rule: str, param: str, grad: str) -> None:
    b = make_list(rule, (3, 0, 300), param, grad)
    states = states_of(rule, b)
    p, g, s = ([device.put(a) for a in arrays] for arrays in (b["param"], b["grad"], states))
    c_abi.step(rule, p, g, s, 3, {"weight_decay": 0.01})
    c_abi.step(rule, b["param"], b["grad"], states, 3, {"weight_decay": 0.01})
    for t, a in zip([*p, *s], [*b["param"], *states], strict=True):
        assert same_bits(device.get(t, a), a)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("mode", [c_abi.LAZY, c_abi.DENSE])
def test_rows(device: Device, rule: str, mode: int) -> None:
    """Indices on the device or on the CPU."""
    for on_host, index in ((True, np.int64), (False, np.int32)):
        b = make_list(rule, (8,), "float32")
        b = {name: [np.resize(x[0], (30, 9))] for name, x in b.items()}
        states = states_of(rule, b)
        indices, values = gradient(30, (9,), 200, 1)
        indices = indices.astype(index)
        p, s = ([device.put(a) for a in arrays] for arrays in (b["param"], states))
        grad = c_abi.rows(indices if on_host else device.put(indices), device.put(values))
        given, out, also = c_abi.options(clip_norm=0.5), c_abi.report(), c_abi.report()
        c_abi.step_rows(rule, p, [grad], s, 3, mode, 0, given, out, weight_decay=0.01)
        c_abi.step_rows(
            rule, b["param"], [c_abi.rows(indices, values)], states, 3, mode, 0, given, also, weight_decay=0.01
        )
        assert out.grad_norm == also.grad_norm > 0.5
        for t, a in zip([*p, *s], [*b["param"], *states], strict=True):
            assert same_bits(device.get(t, a), a)


@pytest.mark.parametrize("rule", ROW_WISE)
def test_numbers_of_rows(device: Device, rule: str) -> None:
    """A sparse gradient, then a dense one."""
    p = np.linspace(-1, 1, 270, dtype=np.float32).reshape(30, 9)
    states = list(new_states(rule, p.shape).values())
    there = [device.put(a) for a in (p, *states)]
    indices, values = gradient(30, (9,), 200, 1)
    whole = np.resize(values, (30, 9))
    for mode in (c_abi.LAZY, c_abi.DENSE):
        grad = c_abi.rows(device.put(indices), device.put(values))
        c_abi.step_rows(rule, there[:1], [grad], there[1:], 3, mode, weight_decay=0.01)
        c_abi.step_rows(rule, [p], [c_abi.rows(indices, values)], states, 3, mode, weight_decay=0.01)
    c_abi.step(rule, there[:1], [device.put(whole)], there[1:], 4, {"lr": 0.1})
    c_abi.step(rule, [p], [whole], states, 4, {"lr": 0.1})
    for t, a in zip(there, [p, *states], strict=True):
        assert same_bits(device.get(t, a), a)


def test_errors_of_rows(device: Device) -> None:
    indices, values = np.array([0, 9]), np.ones((2, 9), np.float32)
    param = np.ones((9, 9), np.float32)
    there = device.put(param)
    for grad, mode, status, text in (
        (
            c_abi.rows(device.put(indices), device.put(values)),
            c_abi.LAZY,
            INVALID_ARGUMENT,
            "number 1 is 9, expected in",
        ),
        (c_abi.rows(indices - 1, values), c_abi.LAZY, INVALID_ARGUMENT, "on the param's device"),
        (c_abi.rows(indices, device.put(values)), c_abi.CATCH_UP, INVALID_ARGUMENT, "number 1 is 9"),
    ):
        with pytest.raises(CError) as raised:
            c_abi.step_rows("sgd", [there], [grad], [], 1, mode)
        assert raised.value.status == status
        assert text in str(raised.value)
        assert same_bits(device.get(there, param), param)


def test_rows_that_catch_up(device: Device) -> None:
    p, m = np.ones((30, 9), np.float32), np.full((30, 9), 0.5, np.float32)
    there = [device.put(p), device.put(m)]
    counts = [np.zeros(30, np.int64), np.zeros(30, np.int64)]
    for step in (1, 2, 3, 4):
        indices, values = gradient(30, (9,), 5, step)
        grad = c_abi.rows(device.put(indices), device.put(values), counts[0])
        c_abi.step_rows("momentum", there[:1], [grad], there[1:], step, c_abi.CATCH_UP)
        c_abi.step_rows("momentum", [p], [c_abi.rows(indices, values, counts[1])], [m], step, c_abi.CATCH_UP)
    assert same_bits(device.get(there[0], p), p)
    assert same_bits(device.get(there[1], m), m)
    assert same_bits(*counts)


def test_plans(device: Device) -> None:
    """Clipping, skipping, reports and counts of steps, on a stream."""
    rng = np.random.default_rng(0)
    params = [rng.normal(size=n).astype(np.float32) for n in (300, 7)]
    states = [np.zeros_like(p) for p in params for _ in range(2)]
    on_device = [device.put(p) for p in params]
    of_device = [device.put(s) for s in states]
    mine, theirs = Plan("adamw", params, states, lr=0.1), Plan("adamw", on_device, of_device, lr=0.1)
    stream = device.runtime.new_stream()
    for given in ({}, {"clip_norm": 0.5}, {"want_norm": 1}, {"skip_nonfinite": 1}, {"skip_nonfinite": 1}, {}):
        grads: list[Array | None] = [rng.normal(size=p.size).astype(np.float32) for p in params]
        if given == {"want_norm": 1}:
            grads[1] = None
        if given == {"skip_nonfinite": 1} and mine.steps == [4, 3]:
            grads[0] = np.full(300, np.nan, np.float32)
        mine.step(grads, c_abi.options(**given))
        theirs.step([None if g is None else device.put(g) for g in grads], c_abi.options(**given, stream=stream))
        a, b = mine.report(), theirs.report()
        assert (a.has_norm, a.skipped) == (b.has_norm, b.skipped)
        assert a.grad_norm == b.grad_norm or (np.isnan(a.grad_norm) and np.isnan(b.grad_norm))
        assert mine.steps == theirs.steps
    assert mine.steps == [5, 4]
    for t, a in zip([*on_device, *of_device], [*params, *states], strict=True):
        assert same_bits(device.get(t, a), a)
    theirs.steps = [9, 9]
    assert theirs.steps == [9, 9]
    del theirs
    device.runtime.end_stream(stream)


def test_global_norm(device: Device) -> None:
    arrays = [np.linspace(-1, 1, n).astype(np.float32) for n in (9000, 3)]
    values = []
    for given in (arrays, [device.put(a) for a in arrays]):
        out = ctypes.c_double()
        norm = lib.adaptk_global_norm
        assert norm(ctypes.c_size_t(2), c_abi.tensors(given), ctypes.c_double(0.5), None, ctypes.byref(out)) == OK
        values.append(out.value)
    assert values[0] == values[1]


def test_errors(device: Device) -> None:
    host = np.ones(4, np.float32)
    p, g = device.put(host), device.put(host)

    def refused(status: int, text: str, *arguments: Any) -> None:
        with pytest.raises(CError) as e:
            c_abi.step("sgd", *arguments, [], 1)
        assert e.value.status == status
        assert text in str(e.value)

    refused(INVALID_ARGUMENT, "grads[0]: on cpu, expected cuda:0 like its param", [p], [host])
    refused(INVALID_ARGUMENT, "grads[0]: on cuda:0, expected cpu", [host], [g])
    refused(INVALID_ARGUMENT, "params[1]: on cpu, but params[0] is on cuda:0", [p, host], [g, host])
    g.device.device_id = 99
    refused(INVALID_ARGUMENT, "cuda:99, but there are", [p], [g])
    p.device.device_id = -1
    refused(INVALID_ARGUMENT, "cuda:-1", [p], [g])
    p.device.device_id = 0
    plan = Plan("momentum", [p], [device.put(host)])
    with pytest.raises(CError, match="cuda:0") as e:
        plan.init_states()
    assert e.value.status == UNSUPPORTED
    assert (device.get(p, host) == 1).all()
