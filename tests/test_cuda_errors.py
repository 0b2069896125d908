"""Errors on a CUDA device: the message names the argument, nothing is written, nothing leaks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import adaptk
import numpy as np
import pytest
from device_arrays import (
    DeviceArray,
    Exchange,
    ExchangeByExport,
    Interface,
    Legacy,
    Machine,
    SimulatedMachine,
    Versioned,
    assert_equal,
    interface,
)
from helpers import mentions

pytestmark = pytest.mark.cuda

ONES = np.ones(5, np.float32)
every_kind = pytest.mark.parametrize(
    "kind", [Exchange, ExchangeByExport, Versioned, Legacy, Interface], ids=lambda k: k.__name__
)


def blocks(x: Any) -> list[Any]:
    """The contents of the memory blocks of the arrays in `x`."""
    if isinstance(x, Mapping):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        return [b for y in x for b in blocks(y)]
    if isinstance(x, DeviceArray):
        return [x.block.cudart.read(x.block.address, x.block.nbytes)]
    return [x.tobytes()] if isinstance(x, np.ndarray) else []


@contextmanager
def refused(error: type[Exception], *parts: str, unchanged: Any = (), machine: Machine | None = None) -> Iterator[None]:
    """The block raises this error with these texts and changes nothing; with a machine, it launches nothing on the
    device."""
    before = blocks(unchanged)
    if machine is not None:
        machine.calls.made.clear()
    with pytest.raises(error) as info:
        yield
    for part in parts:
        assert mentions(str(info.value), part) if re.fullmatch(r"[\w\[\]']+", part) else part in str(info.value), (
            part,
            str(info.value),
        )
    assert blocks(unchanged) == before, "a buffer changed"
    if machine is not None:
        assert not [call for call in machine.calls.made if call[0] == "step"]


# One device at a time


@every_kind
def test_buffers_of_the_cpu_and_of_a_device(kind: Any) -> None:
    there, here = kind.put(ONES), ONES.copy()
    state = kind.put(ONES)
    with refused(ValueError, "grad", "on cpu, expected cuda:0 like its param", unchanged=[there]):
        adaptk.ops.sgd(there, ONES, step=1)
    with refused(ValueError, "grad", "on cuda:0, expected cpu like its param", unchanged=[here]):
        adaptk.ops.sgd(here, there, step=1)
    with refused(ValueError, "exp_avg", "on cpu, expected cuda:0", unchanged=[there, state, here]):
        adaptk.ops.adam(there, kind.put(ONES), here, state, step=1)
    with refused(ValueError, "exp_avg_sq[1]", "on cuda:0, expected cpu", unchanged=[here, state]):
        adaptk.ops.adam(
            [here[:2], here[2:4]], [ONES[:2]] * 2, [ONES[:2].copy(), ONES[:2].copy()], [ONES[:2].copy(), state], step=1
        )
    with refused(ValueError, "param[1]", "param[0]", "on cpu", unchanged=[there, here]):
        adaptk.ops.sgd([there, here], [kind.put(ONES), ONES.copy()], step=1)
    with refused(ValueError, "param[1]", "param[0]", "on cuda:0", unchanged=[there, here]):
        adaptk.ops.sgd([here, there], [ONES.copy(), kind.put(ONES)], step=1)
    with refused(ValueError, "grads[1]", "grads[0]", "one call works on the buffers of one device"):
        adaptk.global_norm([there, here])


def test_optimizers_of_the_cpu_and_of_a_device(machine: Machine) -> None:
    there, here = Exchange.put(ONES), ONES.copy()
    with refused(ValueError, "params[1]", "params[0]", "on cpu"):
        adaptk.Adam([there, here])
    with refused(ValueError, "params['b']", "params['a']", "on cuda:0"):
        adaptk.Adam({"a": here, "b": there})
    optimizer = adaptk.Adam([there], skip_nonfinite=True)
    states = list(optimizer.state[0].values())
    with refused(ValueError, "params[1]", unchanged=[there, states]):
        optimizer.add_param_group({"params": [here]})
    with refused(ValueError, "grads[0]", "on cpu, expected cuda:0", unchanged=[there, states], machine=machine):
        optimizer.step([ONES])
    assert optimizer.step_count == 0
    assert len(optimizer.param_groups) == 1
    optimizer.step([Exchange.put(ONES)])
    on_cpu = adaptk.Adam([here])
    with refused(ValueError, "grads[0]", "on cuda:0, expected cpu", unchanged=[here]):
        on_cpu.step([there])


def test_buffers_of_two_devices(machine: Machine) -> None:
    machine.calls.devices = 2
    first, second = Exchange.put(ONES), Exchange.put(ONES)
    second.device_id = 1
    with refused(ValueError, "grad", "on cuda:1, expected cuda:0", unchanged=[first, second], machine=machine):
        adaptk.ops.sgd(first, second, step=1)
    with refused(ValueError, "param[1]", "on cuda:1", unchanged=[first, second], machine=machine):
        adaptk.ops.sgd([first, second], [first.view((5,)), second], step=1)
    with refused(ValueError, "exp_avg", "on cuda:1", unchanged=[first, second], machine=machine):
        adaptk.ops.adam(first, Exchange.put(ONES), second, Exchange.put(ONES), step=1)
    number = Exchange.put(np.array(1.0))
    number.device_id = 1
    with refused(ValueError, "lr", "on cuda:1, expected cuda:0 like the params", unchanged=[first], machine=machine):
        adaptk.ops.sgd(first, Exchange.put(ONES), step=1, lr=number)
    with refused(ValueError, "step", "on cuda:1, expected cuda:0 like the params", unchanged=[first], machine=machine):
        adaptk.ops.sgd(first, Exchange.put(ONES), step=number)
    optimizer = adaptk.SGD([first], lr=0.5)
    with refused(ValueError, "grads[0]", "on cuda:1", unchanged=[first], machine=machine):
        optimizer.step([second])
    optimizer.param_groups[0]["lr"] = number
    with refused(ValueError, "lr", "on cuda:1", unchanged=[first], machine=machine):
        optimizer.step([Exchange.put(ONES)])
    assert optimizer.step_count == 0


@pytest.mark.parametrize("kind", [Exchange, Versioned, Legacy])
def test_missing_device(kind: Any) -> None:
    for number in (7, 64, -1):
        param = kind.put(ONES)
        param.device_id = number
        with refused(ValueError, "param", f"on the device cuda:{number}", "CUDA devices here"):
            adaptk.ops.sgd(param, kind.put(ONES), step=1)
        with refused(ValueError, "params[0]", f"cuda:{number}"):
            adaptk.SGD([param])


# Types, shapes and memory


@every_kind
def test_wrong_dtypes(kind: Any) -> None:
    param, state = kind.put(ONES), [kind.put(ONES), kind.put(ONES)]
    with refused(TypeError, "exp_avg_sq", "float64", "float32", unchanged=[param, state]):
        adaptk.ops.adam(param, kind.put(ONES), state[0], kind.put(np.ones(5)), step=1)
    for dtype in (np.int32, np.int64):
        with refused(TypeError, "param", "expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2"):
            adaptk.ops.sgd(kind.put(ONES.astype(dtype)), kind.put(ONES), step=1)
        with refused(TypeError, "grads[0]", "expected float32"):
            adaptk.global_norm([kind.put(ONES.astype(dtype))])


@every_kind
def test_wrong_shapes_and_layouts(kind: Any, machine: Machine) -> None:
    param = kind.put(np.ones((3, 4), np.float32))
    for grad in (np.ones((4, 3)), np.ones(12), np.ones((3, 4, 1)), np.ones((3, 5)), np.ones(())):
        with refused(ValueError, "grad", "shape", unchanged=[param], machine=machine):
            adaptk.ops.sgd(param, kind.put(grad.astype(np.float32)), step=1)
    turned = kind.put(np.asfortranarray(np.ones((3, 4), np.float32)))
    with refused(ValueError, "grad", "layout of its param", unchanged=[param], machine=machine):
        adaptk.ops.sgd(param, turned, step=1)
    whole = kind.put(np.ones(24, np.float32))
    for strides in ((8, 2), (4, 0), (-4, 1), (8, 1)):
        with refused(ValueError, "param", "not contiguous", unchanged=[whole], machine=machine):
            adaptk.ops.sgd(whole.view((3, 4), strides), whole.view((3, 4), strides), step=1)
        with refused(ValueError, "grads[1]", "not contiguous"):
            adaptk.global_norm([whole, whole.view((3, 4), strides)])
        with refused(ValueError, "params[0]", "not contiguous"):
            adaptk.SGD([whole.view((3, 4), strides)])


@pytest.mark.parametrize("kind", [ExchangeByExport, Versioned, Interface])
def test_read_only_buffers(kind: Any, machine: Machine) -> None:
    param, frozen = kind.put(ONES), kind.put(ONES)
    frozen.read_only = True
    with refused(ValueError, "param", "read-only", unchanged=[param, frozen], machine=machine):
        adaptk.ops.sgd(frozen, param, step=1)
    with refused(ValueError, "exp_avg", "read-only", unchanged=[param, frozen], machine=machine):
        adaptk.ops.adam(param, kind.put(ONES), frozen, kind.put(ONES), step=1)
    with refused(ValueError, "params[0]", "read-only"):
        adaptk.SGD([frozen])


@every_kind
def test_buffers_that_overlap(kind: Any, machine: Machine) -> None:
    whole = kind.put(np.ones(16, np.float32))
    a, b, c = whole.view((5,)), whole.view((5,), start=4), whole.view((5,), start=10)
    for grad in (a, b):
        with refused(ValueError, "param", "grad", "overlap", unchanged=[whole], machine=machine):
            adaptk.ops.sgd(a, grad, step=1)
    with refused(ValueError, "exp_avg", "exp_avg_sq", "overlap", unchanged=[whole], machine=machine):
        adaptk.ops.adam(c, kind.put(ONES), a, b, step=1)
    with refused(ValueError, "param[0]", "param[2]", "overlap", unchanged=[whole], machine=machine):
        adaptk.ops.sgd([a, c, b], [kind.put(ONES)] * 3, step=1)
    with refused(ValueError, "grad[0]", "param[1]", "overlap", unchanged=[whole], machine=machine):
        adaptk.ops.sgd([a, c], [c, a], step=1)
    with refused(ValueError, "params[0]", "params[1]", "overlap", unchanged=[whole]):
        adaptk.SGD([a, b])
    optimizer = adaptk.SGD([a, c])
    with refused(ValueError, "grads[1]", "params[0]", "overlap", unchanged=[whole], machine=machine):
        optimizer.step([kind.put(ONES), b])
    adaptk.ops.sgd(a, c, step=1)


@every_kind
def test_memory_that_is_not_a_multiple_of_the_item_size(kind: Any, machine: Machine) -> None:
    for dtype in ("float16", "float32", "float64"):
        whole = kind.put(np.ones(64, np.dtype(dtype)))
        bad = whole.view((5,))
        bad.address += 1
        for arguments in ((bad, kind.put(np.ones(5, np.dtype(dtype)))), (whole.view((5,), start=32), bad)):
            name = "param" if arguments[0] is bad else "grad"
            with refused(ValueError, name, "multiple of its item size", unchanged=[whole], machine=machine):
                adaptk.ops.sgd(*arguments, step=1)
        with refused(ValueError, "grads", "multiple of its item size"):
            adaptk.global_norm(bad)
    number = kind.put(np.ones(4)).view(())
    number.address += 4
    with refused(ValueError, "lr", "multiple of its item size", machine=machine):
        adaptk.ops.sgd(kind.put(ONES), kind.put(ONES), step=1, lr=number)


def test_buffers_without_memory() -> None:
    for kind in (Exchange, Versioned, Legacy):
        param = kind.put(ONES)
        param.fields["data"] = None
        with refused(ValueError, "param", "no memory"):
            adaptk.ops.sgd(param, kind.put(ONES), step=1)
        number = kind.put(np.array(1.0))
        number.fields["data"] = None
        with refused(ValueError, "lr", "no memory"):
            adaptk.ops.sgd(kind.put(ONES), kind.put(ONES), step=1, lr=number)


def test_masks() -> None:
    masked = interface(mask=object())
    with refused(TypeError, "grad", "mask"):
        adaptk.ops.sgd(Interface.put(ONES), masked.put(ONES), step=1)
    with refused(TypeError, "lr", "mask"):
        adaptk.ops.sgd(Interface.put(ONES), Interface.put(ONES), step=1, lr=masked.put(np.array(1.0)))


BROKEN: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"shape": None}, BufferError, "has no 'shape'"),
    ({"typestr": None}, BufferError, "has no 'typestr'"),
    ({"data": None}, BufferError, "has no 'data'"),
    ({"shape": 5}, BufferError, "values of other types"),
    ({"shape": ("5",)}, BufferError, "values of other types"),
    ({"typestr": 4}, BufferError, "values of other types"),
    ({"data": 4096}, BufferError, "values of other types"),
    ({"data": (-1, False)}, BufferError, "values of other types"),
    ({"data": ("x", False)}, BufferError, "values of other types"),
    ({"strides": (4, 4)}, BufferError, "strides of another length"),
    ({"strides": 4}, BufferError, "values of other types"),
    ({"strides": (6,)}, ValueError, "strides"),
    ({"strides": (8,)}, ValueError, "strides"),
    ({"stream": "x"}, BufferError, "values of other types"),
    ({"stream": -1}, BufferError, "values of other types"),
    ({"shape": (-5,)}, ValueError, "shape"),
    ({"shape": (2**62, 4)}, ValueError, "shape"),
    ({"typestr": ">f4"}, TypeError, "dtype >f4"),
    ({"typestr": "<c8"}, TypeError, "dtype <c8"),
    ({"typestr": "|b1"}, TypeError, "dtype |b1"),
]


@pytest.mark.parametrize(("entries", "error", "text"), BROKEN, ids=[str(b[0]) for b in BROKEN])
def test_invalid_interfaces(entries: dict[str, Any], error: type[Exception], text: str, machine: Machine) -> None:
    broken = interface(**entries)
    param = Interface.put(ONES)
    with refused(error, "grad", text, unchanged=[param], machine=machine):
        adaptk.ops.sgd(param, broken.put(ONES), step=1)


def test_an_interface_that_is_not_a_dict() -> None:
    class Odd:
        __cuda_array_interface__ = 5

    with refused(BufferError, "grad", "is not a dict"):
        adaptk.ops.sgd(Interface.put(ONES), Odd(), step=1)


def test_an_interface_over_memory_of_the_host(simulator: SimulatedMachine) -> None:
    here = ONES.copy()
    odd = interface(data=(here.ctypes.data, False))
    with refused(RuntimeError, "grad", "cudaPointerGetAttributes", unchanged=[here]):
        adaptk.ops.sgd(Interface.put(ONES), odd.put(ONES), step=1)


# Numbers on the device


def test_numbers_of_wrong_types_and_sizes(machine: Machine) -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    optimizer = adaptk.SGD([param])
    for value, error, text in [
        (np.ones(2), ValueError, "2 numbers, expected one"),
        (np.ones(0), ValueError, "0 numbers, expected one"),
        (np.ones((), np.float16), TypeError, "expected float32, float64, int32 or int64"),
        (np.ones((), np.int16), TypeError, "expected float32, float64, int32 or int64"),
        (np.ones((), np.complex64), TypeError, "expected float32, float64, int32 or int64"),
    ]:
        for name in ("lr", "weight_decay", "step"):
            there = Exchange.put(value)
            with refused(error, name, text, unchanged=[param], machine=machine):
                adaptk.ops.sgd(param, grad, **{"step": 1, name: there})
        optimizer.param_groups[0]["lr"] = Exchange.put(value)
        with refused(error, "lr", text, unchanged=[param], machine=machine):
            optimizer.step([grad])
    assert optimizer.step_count == 0


def test_flags_on_the_device(machine: Machine) -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    there = Exchange.put(np.array(1.0))
    for name, text in [("maximize", "expected a bool"), ("decoupled", "bool"), ("grad_scale", "expected a number")]:
        with refused(TypeError, name, text, "on a device", unchanged=[param], machine=machine):
            adaptk.ops.sgd(param, grad, step=1, **{name: there})
        optimizer = adaptk.SGD([param])
        optimizer.param_groups[0][name] = there
        with refused(TypeError, name, text, unchanged=[param], machine=machine):
            optimizer.step([grad])
    optimizer = adaptk.RMSProp([param], nesterov=True)
    optimizer.param_groups[0]["momentum"] = there
    with refused(TypeError, "momentum", "look-ahead", unchanged=[param], machine=machine), optimizer.lookahead():
        pass


def test_other_numbers_are_still_checked(machine: Machine) -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    there = Exchange.put(np.array(1.0))
    with refused(ValueError, "weight_decay", unchanged=[param], machine=machine):
        adaptk.ops.sgd(param, grad, step=1, lr=there, weight_decay=-1.0)
    with refused(ValueError, "step", unchanged=[param], machine=machine):
        adaptk.ops.sgd(param, grad, step=0, lr=there)
    with refused(ValueError, "weight_decay"):
        adaptk.SGD([param], lr=there, weight_decay=-1.0)
    params = [Exchange.put(ONES), Exchange.put(ONES)]
    optimizer = adaptk.RProp([{"params": params[:1], "lr": there}, {"params": params[1:]}])
    optimizer.param_groups[1]["step_min"] = 100.0
    with refused(ValueError, "step_min", unchanged=params, machine=machine):
        optimizer.step([grad, grad])


def test_a_limit_on_the_device_is_not_compared() -> None:
    # The other one may be anything: the value on the device is not known here.
    there = Exchange.put(np.array(200.0))
    optimizer = adaptk.RProp([Exchange.put(ONES)], step_min=100.0, step_max=there)
    optimizer.step([Exchange.put(ONES)])
    assert optimizer.step_count == 1


def test_capturable() -> None:
    with refused(ValueError, "capturable", "params[0] is on cpu, expected a CUDA device"):
        adaptk.Adam([ONES.copy()], capturable=True)
    param = Exchange.put(ONES)
    optimizer = adaptk.SGD([param], lr=lambda t: 1.0 / t, capturable=True)
    with refused(TypeError, "lr", "schedule", unchanged=[param]):
        optimizer.step([Exchange.put(ONES)])
    assert optimizer.step_count == 0


def test_a_step_under_capture_counts_on_the_device(machine: Machine) -> None:
    params = [Exchange.put(ONES) for _ in range(2)]
    plain, capturable = adaptk.SGD(params[:1], lr=1.0), adaptk.SGD(params[1:], lr=1.0, capturable=True, clip_norm=1.0)
    machine.calls.is_capturing = True
    with refused(RuntimeError, "capturable=True", unchanged=params):
        plain.step([Exchange.put(ONES)])
    assert plain.step_count == 0
    captured = [capturable.step([Exchange.put(ONES)]) for _ in range(256)]
    with refused(RuntimeError, "outcomes of 256 steps", unchanged=params):
        capturable.step([Exchange.put(ONES)])
    machine.calls.is_capturing = False
    # They are also occupied outside of a capture: a graph may write to each of them at any time.
    with refused(RuntimeError, "outcomes of 256 steps", unchanged=params):
        capturable.step([Exchange.put(ONES)])
    assert captured[0].grad_norm == captured[255].grad_norm == 5.0**0.5
    assert capturable.step_count == 256


def test_unread_reports_when_a_step_is_captured(machine: Machine) -> None:
    param = Exchange.put(ONES)
    optimizer = adaptk.SGD([param], lr=1.0, capturable=True, clip_norm=1.0)
    wanted = [optimizer.step([Exchange.put(ONES)]) for _ in range(256)]
    machine.calls.reset()
    machine.calls.is_capturing = True
    # A capture cannot wait: no slot is free until a report has been read or dropped.
    with refused(RuntimeError, "outcomes of 256 steps", "nobody has looked at", unchanged=[param]):
        optimizer.step([Exchange.put(ONES)])
    assert not machine.calls.streams("read_report")
    machine.calls.is_capturing = False
    assert wanted[100].grad_norm == 5.0**0.5
    del wanted[7]
    machine.calls.reset()
    machine.calls.is_capturing = True
    captured = [optimizer.step([Exchange.put(ONES)]) for _ in range(2)]
    with refused(RuntimeError, "outcomes of 256 steps"):
        optimizer.step([Exchange.put(ONES)])
    assert not machine.calls.streams("read_report")
    machine.calls.is_capturing = False
    assert {info.grad_norm for info in captured + wanted} == {5.0**0.5}


# Failures of calls


def fail(machine: Machine, name: str) -> Any:
    return machine.calls.failing(name, f"cudaSomething: failed in {name} (cudaErrorUnknown)")


def test_a_call_that_fails_is_named(machine: Machine) -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    optimizer = adaptk.Adam([param], clip_norm=1.0, skip_nonfinite=True)
    kept = optimizer.step([grad])
    there = [param, *optimizer.state[0].values()]
    with fail(machine, "step"), refused(RuntimeError, "cudaSomething: failed in step", unchanged=there):
        optimizer.step([grad])
    with fail(machine, "step"), refused(RuntimeError, "cudaSomething: failed in step", unchanged=there):
        adaptk.ops.sgd(param, grad, step=1)
    with fail(machine, "global_norm"), refused(RuntimeError, "cudaSomething: failed in global_norm"):
        adaptk.global_norm([grad])
    with fail(machine, "capturing"), refused(RuntimeError, "cudaSomething: failed in capturing", unchanged=there):
        optimizer.step([grad])
    for look in (lambda: kept.grad_norm, lambda: kept.skipped, lambda: repr(kept), lambda: kept == kept):
        with fail(machine, "read_report"), refused(RuntimeError, "cudaSomething: failed in read_report"):
            look()
    with fail(machine, "read_counts"), refused(RuntimeError, "cudaSomething: failed in read_counts"):
        optimizer.state_dict()
    assert kept.grad_norm == 5.0**0.5
    assert optimizer.step_count == 1
    optimizer.step([grad])
    assert optimizer.step_count == 2


def test_a_lookahead_that_fails(machine: Machine) -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    optimizer = adaptk.RMSProp([param], nesterov=True, lr=1.0)
    optimizer.step([grad])
    for name in ("save", "add_scaled"):
        with fail(machine, name), refused(RuntimeError, f"failed in {name}", unchanged=[param]), optimizer.lookahead():
            pass
    full = machine.calls.failing("save", "cudaMallocFromPoolAsync: out of memory", out_of_memory=True)
    with full, refused(MemoryError, "cudaMallocFromPoolAsync: out of memory", unchanged=[param]), optimizer.lookahead():
        pass
    before = param.host()
    with optimizer.lookahead():
        pass
    assert_equal(param.host(), before)
    optimizer.step([grad])


def test_stream_waits_that_fail(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    with adaptk.cuda.stream(2), fail(machine, "order"), refused(RuntimeError, "failed in order", unchanged=[param]):
        adaptk.ops.sgd(param, grad, step=1)


def test_out_of_memory(simulator: SimulatedMachine) -> None:
    params = [Exchange.put(ONES) for _ in range(60)]
    grads = [Exchange.put(ONES) for _ in range(60)]
    # No memory for the state of a param, the workspace of a step, the reports of steps, or the counts.
    optimizer = adaptk.SGD(params, lr=1.0, clip_norm=1.0)
    for skip in (False, True):
        for room in (0, 100, 12_000):
            simulator.room = room
            with refused(
                MemoryError, "cudaMallocFromPoolAsync: out of memory (cudaErrorMemoryAllocation)", unchanged=params[:3]
            ):
                optimizer.step(grads, skip_nonfinite=skip)
            simulator.room = None
            assert optimizer.step_count == 0
    simulator.room = 0
    for call in (lambda: adaptk.ops.sgd(params, grads, step=1), lambda: adaptk.global_norm(grads)):
        with refused(MemoryError, "cudaMallocFromPoolAsync: out of memory", unchanged=params[:3]):
            call()
    with refused(MemoryError, "cudaMallocFromPoolAsync: out of memory"):
        adaptk.SGD(params, capturable=True)
    simulator.room = None
    optimizer.step(grads)
    assert optimizer.step_count == 1
    assert_equal(params[59].host(), params[0].host())


def test_a_workspace_that_cannot_grow(simulator: SimulatedMachine) -> None:
    params = [Exchange.put(ONES) for _ in range(60)]
    grads = [Exchange.put(ONES) for _ in range(60)]
    optimizer = adaptk.SGD(params, lr=1.0)
    optimizer.step(grads)
    simulator.room = 1000
    with refused(MemoryError, "cudaMallocFromPoolAsync", unchanged=params[:3]):
        optimizer.step(grads, clip_norm=1.0)
    optimizer.step(grads)
    simulator.room = None
    optimizer.step(grads, clip_norm=1e9)
    assert_equal([p.host() for p in params], [-2 * ONES] * 60)


@pytest.mark.parametrize("sticky", [False, True], ids=["of its own", "that stays"])
def test_launches_that_fail(simulator: SimulatedMachine, sticky: bool, capfd: pytest.CaptureFixture[str]) -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    optimizer = adaptk.Adam([param], skip_nonfinite=True)
    optimizer.step([grad])
    code = "cudaErrorIllegalAddress" if sticky else "cudaErrorInvalidConfiguration"
    simulator.break_launches(sticky)
    with pytest.raises(RuntimeError, match=rf"kernel: .*\({code}\)"):
        adaptk.ops.sgd(param, grad, step=1)
    with pytest.raises(RuntimeError, match=rf"\({code}\)"):
        optimizer.step([grad])
    with pytest.raises(RuntimeError, match=rf"\({code}\)"):
        adaptk.global_norm([grad])
    if sticky:
        with pytest.raises(RuntimeError, match=rf"\({code}\)"):
            _ = optimizer.step_count
    simulator.forgive()
    assert optimizer.step_count == 1
    optimizer.step([grad])
    assert optimizer.step_count == 2
    capfd.readouterr()


def test_tables_are_uploaded_again_after_a_launch_that_failed(simulator: SimulatedMachine) -> None:
    host = [ONES * i for i in range(60)]
    params, grads = [Exchange.put(p) for p in host], [Exchange.put(ONES) for _ in host]
    optimizer = adaptk.SGD(params, lr=1.0, momentum=0.5)
    simulator.break_launches(sticky=False)
    with pytest.raises(RuntimeError, match="kernel"):
        optimizer.step(grads)
    simulator.forgive()
    optimizer.step(grads)
    assert_equal([p.host() for p in params], [p - ONES for p in host])


# Errors of other libraries


def test_exceptions_of_producers_propagate() -> None:
    class Raising(Versioned):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("requires grad")

    param = Versioned.put(ONES)
    with refused(BufferError, "requires grad", unchanged=[param]):
        adaptk.ops.sgd(param, Raising.put(ONES), step=1)


def test_exports_that_are_copies() -> None:
    for kind in (ExchangeByExport, Versioned):
        param = kind.put(ONES)
        param.fields["flags"] = 2
        with refused(BufferError, "param", "copy", unchanged=[param]):
            adaptk.ops.sgd(param, kind.put(ONES), step=1)


def test_wrong_numbers_of_gradients(machine: Machine) -> None:
    params = [Exchange.put(ONES) for _ in range(3)]
    optimizer = adaptk.SGD(params)
    for n in (0, 2, 4):
        with refused(ValueError, "grads", f"{n} gradients, expected 3", unchanged=params, machine=machine):
            optimizer.step([Exchange.put(ONES)] * n)
