"""Buffers on a CUDA device: exports, references, and the stream of the work."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import adaptk
import numpy as np
import pytest
from device_arrays import (
    CUDA_MANAGED,
    DeviceArray,
    Exchange,
    ExchangeByExport,
    Interface,
    InterfaceOnStream,
    Legacy,
    Library,
    Machine,
    Versioned,
    assert_equal,
    cudart,
    interface,
)
from helpers import Export

pytestmark = pytest.mark.cuda

ONES = np.ones(5, np.float32)
every_kind = pytest.mark.parametrize(
    "kind", [Exchange, ExchangeByExport, Versioned, Legacy, Interface, InterfaceOnStream], ids=lambda k: k.__name__
)


@pytest.fixture
def stream() -> Iterator[int]:
    made = cudart().new_stream()
    yield made
    cudart().synchronize()
    cudart().end_stream(made)


@pytest.fixture
def other() -> Iterator[int]:
    made = cudart().new_stream()
    yield made
    cudart().synchronize()
    cudart().end_stream(made)


def sgd(*arrays: Any, **options: Any) -> None:
    adaptk.ops.sgd(*arrays, **{"step": 1, "lr": 1.0, **options})


# Exports and references


@every_kind
def test_exports_are_deleted_when_the_call_is_over(kind: type[DeviceArray]) -> None:
    param, grad = kind.put(ONES), kind.put(ONES)
    sgd(param, grad)
    sgd([param], [grad])
    adaptk.global_norm([param])
    assert not Export.live
    assert_equal(param.host(), -ONES)


@every_kind
def test_an_optimizer_holds_and_releases_its_params(kind: type[DeviceArray]) -> None:
    param, grad = kind.put(ONES), kind.put(ONES)
    optimizer = adaptk.Adam([param])
    optimizer.step([grad])
    gone = weakref.ref(param.block)
    left = weakref.ref(grad.block)
    del param, grad
    gc.collect()
    assert gone() is not None
    assert left() is None
    optimizer.step([kind.put(ONES)])
    del optimizer
    gc.collect()
    assert gone() is None
    assert not Export.live


def test_kinds_in_one_call() -> None:
    kinds = [Exchange, ExchangeByExport, Versioned, Legacy, Interface]
    params = [kind.put(ONES) for kind in kinds]
    grads = [kind.put(ONES) for kind in reversed(kinds)]
    sgd(params, grads)
    assert_equal([p.host() for p in params], [np.zeros_like(ONES)] * 5)


def test_managed_memory() -> None:
    param = Exchange.put(ONES)
    param.fields["device_type"] = CUDA_MANAGED
    sgd(param, Versioned.put(ONES))
    assert_equal(param.host(), np.zeros_like(ONES))


def test_a_byte_offset_in_the_export() -> None:
    for kind in (Exchange, Versioned, Legacy):
        whole = kind.put(np.arange(8, dtype=np.float32))
        part = whole.view((5,))
        part.fields["byte_offset"] = 12
        sgd(part, kind.put(ONES))
        assert_equal(whole.host(), np.array([0, 1, 2, 2, 3, 4, 5, 6], np.float32))


def test_an_export_without_strides() -> None:
    for kind in (Exchange, Versioned, Legacy):
        param = kind.put(np.ones((2, 3), np.float32))
        param.fields["strides"] = None
        sgd(param, kind.put(np.ones((2, 3), np.float32)))
        assert_equal(param.host(), np.zeros((2, 3), np.float32))


def test_strides_of_an_interface() -> None:
    array = np.arange(6, dtype=np.float64).reshape(2, 3).T
    param, grad = Interface.put(array), Interface.put(array)
    assert param.__cuda_array_interface__["strides"] == (8, 24)
    sgd(param, grad)
    assert_equal(param.host(), np.zeros((3, 2)))


def test_a_read_only_gradient() -> None:
    for kind in (ExchangeByExport, Versioned, Interface):
        param, grad = kind.put(ONES), kind.put(ONES)
        grad.read_only = True
        sgd(param, grad)
        assert_equal(param.host(), np.zeros_like(ONES))


def test_a_param_that_moves() -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    optimizer = adaptk.SGD([param], lr=1.0)
    optimizer.step([grad])
    before, moved = param.view(param.shape), Exchange.put(7 * ONES)
    param.block, param.address, param._description = moved.block, moved.address, None
    optimizer.step([grad])
    assert_equal(moved.host(), 6 * ONES)
    assert_equal(before.host(), 0 * ONES)


def test_a_param_that_moves_in_a_lookahead() -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    optimizer = adaptk.RMSProp([param], nesterov=True, lr=1.0)
    optimizer.step([grad])
    want = param.host()
    with optimizer.lookahead():
        moved = Exchange.put(9 * ONES)
        param.block, param.address, param._description = moved.block, moved.address, None
    assert_equal(param.host(), want)


def test_params_that_move_to_the_cpu_and_back() -> None:
    class Moving(Exchange):
        pass

    param = Moving.put(ONES)
    optimizer = adaptk.SGD([param], lr=1.0, momentum=0.9)
    optimizer.step([Exchange.put(ONES)])
    host = np.ones(5, np.float32)
    param.fields.update(device_type=1, data=host.ctypes.data)
    param._description = None
    with pytest.raises(ValueError, match=r"momentum_buffer\[0\]: on cuda:0, expected cpu like its param"):
        optimizer.step([ONES])
    assert_equal(host, np.ones(5, np.float32))
    param.fields.clear()
    param._description = None
    optimizer.step([Exchange.put(ONES)])
    assert optimizer.step_count == 2


def test_copies_of_states_are_in_c_order() -> None:
    param = Exchange.put(np.asfortranarray(np.ones((3, 4), np.float32)))
    optimizer = adaptk.Adam([param])
    assert optimizer.state[0]["exp_avg"].strides == (1, 3)
    assert optimizer.state_dict()["state.0.exp_avg"].strides == (4, 1)


def test_states_where_a_library_cannot_make_arrays() -> None:
    class Bare:
        def __init__(self, array: Any) -> None:
            self.array = array

        @property
        def __cuda_array_interface__(self) -> Any:
            return self.array.__cuda_array_interface__

    param, grad = Interface.put(ONES), Interface.put(ONES)
    optimizer = adaptk.SGD([Bare(param)], lr=1.0)  # needs no states
    optimizer.step([Bare(grad)])
    assert_equal(param.host(), 0 * ONES)
    with pytest.raises(TypeError, match="__array_namespace__"):
        adaptk.Adam([Bare(param)])


# Streams


@pytest.mark.parametrize("kind", [Versioned, Legacy])
def test_exports_get_the_stream_of_the_work(kind: Any, stream: int, machine: Machine) -> None:
    param, grad = kind.put(ONES), kind.put(ONES)
    sgd(param, grad)
    # In DLPack's protocol 1 stands for the default stream.
    assert param.streams == grad.streams == [1]
    with adaptk.cuda.stream(stream):
        sgd(param, grad)
        adaptk.global_norm(param)
    assert param.streams == [1, stream, stream]
    assert grad.streams == [1, stream]
    assert machine.calls.streams("step") == [0, stream]
    assert machine.calls.streams("global_norm") == [stream]
    assert not machine.calls.orders()


def test_the_current_stream_of_the_params_library(
    stream: int, other: int, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    param, grad, foreign = Exchange.put(ONES), Exchange.put(ONES), Versioned.put(ONES)
    monkeypatch.setattr(Exchange, "current_stream", stream)
    sgd(param, grad)
    sgd(param, foreign)
    assert foreign.streams == [stream]
    monkeypatch.setattr(Exchange, "current_stream", other)
    sgd([param], [grad])
    assert machine.calls.streams("step") == [stream, stream, other]
    assert not machine.calls.orders()
    # The first buffer decides the stream. Exports that are given this stream need no wait; those with their own do.
    sgd(foreign, grad)
    assert foreign.streams == [stream, 1]
    assert machine.calls.streams("step")[-1] == 0
    assert machine.calls.orders() == [(other, 0), (0, other)]
    assert_equal(param.host(), -2 * ONES)


def test_a_named_stream_comes_first(stream: int, other: int, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    param, grad = Exchange.put(ONES), Exchange.put(ONES)
    monkeypatch.setattr(Exchange, "current_stream", other)
    with adaptk.cuda.stream(stream):
        sgd(param, grad)
    assert machine.calls.streams("step") == [stream]
    # It waits for the library's own stream, and that stream waits for it.
    assert machine.calls.orders() == [(other, stream), (stream, other)]
    kinds = [c[0] for c in machine.calls.made]
    assert kinds.index("order") < kinds.index("step") < len(kinds) - 1 - kinds[::-1].index("order")


def test_streams_of_interfaces(stream: int, other: int, machine: Machine) -> None:
    on_stream, on_other = interface(stream=stream), interface(stream=other)
    on_legacy_default, silent = interface(stream=1), interface(stream=None)
    sgd(on_stream.put(ONES), on_stream.put(ONES))
    assert machine.calls.streams("step") == [stream]
    assert not machine.calls.orders()
    sgd([on_stream.put(ONES)] * 1, [on_other.put(ONES)])
    assert machine.calls.orders() == [(other, stream), (stream, other)]
    machine.calls.reset()
    sgd(on_legacy_default.put(ONES), silent.put(ONES))
    sgd(silent.put(ONES), on_legacy_default.put(ONES))
    assert machine.calls.streams("step") == [0, 0]
    assert not machine.calls.orders()
    sgd(silent.put(ONES), on_other.put(ONES))
    assert machine.calls.orders() == [(other, 0), (0, other)]
    cudart().synchronize()


def test_an_optimizer_uses_the_stream_of_its_library(
    stream: int, other: int, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    param = Exchange.put(ONES)
    optimizer = adaptk.RMSProp([param], nesterov=True, skip_nonfinite=True)
    monkeypatch.setattr(Exchange, "current_stream", stream)
    info = optimizer.step([Exchange.put(ONES)])
    assert info.skipped is False
    with optimizer.lookahead():
        pass
    monkeypatch.setattr(Exchange, "current_stream", other)
    optimizer.step([Exchange.put(ONES)])
    assert optimizer.step_count == 2
    made = machine.calls
    assert made.streams("step") == [stream, other]
    # Reading the report and the counts waits for the ends of the steps, not for streams, which may not exist any more.
    assert len(made.streams("read_report")) == len(made.streams("read_counts")) == 1
    assert made.streams("add_scaled") == made.streams("save") == made.streams("restore") == [stream]
    with adaptk.cuda.stream(stream):
        optimizer.step([Versioned.put(ONES)])
    assert made.streams("step") == [stream, other, stream]
    assert made.orders() == [(other, stream), (stream, other)]


def test_a_lookahead_on_a_named_stream(
    stream: int, other: int, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = adaptk.RMSProp([Exchange.put(ONES)], nesterov=True)
    monkeypatch.setattr(Exchange, "current_stream", other)
    machine.calls.reset()
    with adaptk.cuda.stream(stream), optimizer.lookahead():
        before = [call for call in machine.calls.made if call[0] in ("save", "add_scaled", "order")]
        machine.calls.reset()
    after = [call for call in machine.calls.made if call[0] in ("restore", "order")]
    # Params are saved, moved and restored after earlier work of their library, and before later work.
    assert before[0] == after[0] == ("order", 0, other, stream)
    assert before[-1] == after[-1] == ("order", 0, stream, other)
    assert ("save", 0, stream) in before
    assert [call[0::2] for call in after[1:-1]] == [("restore", stream)]


def test_an_optimizer_over_arrays_that_name_no_stream(stream: int, machine: Machine) -> None:
    param = Versioned.put(ONES)
    optimizer = adaptk.SGD([param], clip_norm=1.0)
    grads = [Versioned.put(ONES) for _ in range(2)]
    optimizer.step(grads[:1])
    with adaptk.cuda.stream(stream):
        optimizer.step(grads[1:])
    assert [g.streams for g in grads] == [[1], [stream]]
    assert machine.calls.streams("step") == [0, stream]


class CudaStream:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


class TorchStream:
    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


class CupyStream:
    def __init__(self, handle: int) -> None:
        self.ptr = handle


@pytest.mark.parametrize("wrap", [int, CudaStream, TorchStream, CupyStream])
def test_forms_of_streams(wrap: Any, stream: int, machine: Machine) -> None:
    with adaptk.cuda.stream(wrap(stream)):
        sgd(Versioned.put(ONES), Versioned.put(ONES))
    assert machine.calls.streams("step") == [stream]


@pytest.mark.parametrize("bad", [None, -1, True, 1.5, "0", object()], ids=lambda x: type(x).__name__)
def test_invalid_streams(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"^stream: expected a CUDA stream"), adaptk.cuda.stream(bad):
        pass


def test_named_streams_nest_and_end(stream: int, other: int, machine: Machine) -> None:
    param, grad = Versioned.put(ONES), Versioned.put(ONES)
    with adaptk.cuda.stream(stream):
        with adaptk.cuda.stream(other):
            sgd(param, grad)
            with adaptk.cuda.stream(0):
                sgd(param, grad)
        with pytest.raises(KeyError), adaptk.cuda.stream(other):
            raise KeyError
        sgd(param, grad)
    sgd(param, grad)
    assert machine.calls.streams("step") == [other, 0, stream, 0]


def test_a_named_stream_of_another_device(stream: int, machine: Machine) -> None:
    with adaptk.cuda.stream(stream, device=1):
        sgd(Versioned.put(ONES), Versioned.put(ONES))
    with adaptk.cuda.stream(stream, device=0):
        sgd(Versioned.put(ONES), Versioned.put(ONES))
    assert machine.calls.streams("step") == [0, stream]


def test_a_named_stream_is_thread_local(stream: int, machine: Machine) -> None:
    def work() -> None:
        sgd(Versioned.put(ONES), Versioned.put(ONES))

    with adaptk.cuda.stream(stream):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert machine.calls.streams("step") == [0]


def test_default_streams_by_their_numbers(machine: Machine) -> None:
    # 1 and 0 are the legacy default stream; 2 is the per-thread default stream.
    for number in (0, 1, 2):
        with adaptk.cuda.stream(number):
            param = Versioned.put(ONES)
            sgd(param, Versioned.put(ONES))
            assert param.streams == [max(number, 1)]
    assert machine.calls.streams("step") == [0, 0, 2]


def test_numbers_on_the_device_are_ordered_too(
    stream: int, other: int, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exchange, "current_stream", other)
    rate, count = Exchange.put(np.array(1.0)), Versioned.put(np.array(1))
    with adaptk.cuda.stream(stream):
        sgd(Versioned.put(ONES), Versioned.put(ONES), lr=rate, step=count)
    assert machine.calls.orders() == [(other, stream), (stream, other)]
    assert count.streams == [stream]


# Devices


def test_numbers_on_the_device_with_params_on_the_cpu() -> None:
    class Number(Exchange):
        def __float__(self) -> float:
            return float(self.host())

        def __index__(self) -> int:
            return int(self.host())

    param = ONES.copy()
    sgd(param, ONES, lr=Number.put(np.array(0.5)), step=Number.put(np.array(3)))
    sgd([param], [ONES], lr=Number.put(np.array(0.25)))
    assert_equal(param, 0.25 * ONES)
    with pytest.raises(ValueError, match="lr: -1 is not in"):
        sgd(param, ONES, lr=Number.put(np.array(-1.0)))
    with pytest.raises(TypeError, match="lr: expected a number"):
        sgd(param, ONES, lr=Exchange.put(np.array(0.5)))
    optimizer = adaptk.SGD([param], lr=Number.put(np.array(0.25)))
    optimizer.step([ONES])
    assert_equal(param, 0 * ONES)


def test_the_device() -> None:
    assert adaptk.cuda.is_available() is True
    devices = adaptk.cuda.devices()
    assert [d.index for d in devices] == list(range(len(devices)))
    assert devices[0].name
    assert devices[0].compute_capability >= (7, 5)
    assert devices[0].multiprocessors > 0
    assert devices[0].memory > 2**28
    assert adaptk.cuda.devices() == devices


def test_the_build() -> None:
    info = adaptk.build_info()["cuda"]
    assert set(info) == {"toolkit", "architectures"}
    assert [part.isdigit() for part in info["toolkit"].split(".")] == [True, True]
    assert info["architectures"]


def test_a_large_list_of_each_library(library: Library) -> None:
    count = 60
    params = [library.put(np.full(i % 5, i, np.float32)) for i in range(count)]
    sgd(params, [library.put(np.full(i % 5, 1, np.float32)) for i in range(count)])
    assert_equal([library.get(p) for p in params], [np.full(i % 5, i - 1, np.float32) for i in range(count)])
