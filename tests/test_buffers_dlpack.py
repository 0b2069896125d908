"""Buffers by DLPack, down to its structures."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import adaptk
import numpy as np
import pytest
from buffer_cases import (
    PRODUCERS,
    Raises,
    Returns,
    check_wrapped,
    no_exports,  # noqa: F401
)
from helpers import (
    CUDA,
    CUDA_HOST,
    INT,
    IS_COPIED,
    PAIRS,
    READ_ONLY,
    THREE_RULES,
    Export,
    OldProducer,
    Producer,
    arguments,
    assert_same,
    call,
    copies,
    exchange_capsule,
    make,
    refused,
    same_bits,
)

VERSIONED = ["versioned", "without a device", "exported", "later table only"]


@pytest.mark.parametrize("rule", THREE_RULES)
@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack(rule: str, kind: str) -> None:
    for argument in [None, *arguments(rule)]:
        for param, grad in PAIRS if argument is None else PAIRS[:1]:
            producers = check_wrapped(rule, PRODUCERS[kind], argument, param=param, grad=grad)
            assert producers
            assert all(p.closed() for p in producers)
    assert not Export.live


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_shapes(kind: str) -> None:
    make_producer = PRODUCERS[kind]
    for shape in ((), 0, (3, 4), (2, 0), (2, 3, 4)):
        assert all(p.closed() for p in check_wrapped("adam", make_producer, shape=shape))
        no_strides = check_wrapped("adam", lambda a: make_producer(a, strides=None), shape=shape)
        assert all(p.closed() for p in no_strides)
    arrays = {name: np.asfortranarray(b) for name, b in make("adam", (3, 4), "float64", "float16").items()}
    wanted = copies(arrays)
    call("adam", {name: make_producer(a) for name, a in arrays.items()})
    call("adam", wanted)
    assert_same(arrays, wanted)
    assert not Export.live


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_byte_offset(kind: str) -> None:
    for offset in (4, 8, 1, 3, 62):
        arrays, wanted = make("adam", 9), make("adam", 9)
        rooms = {name: np.zeros(128, np.uint8) for name in arrays}
        producers = {}
        for name, room in rooms.items():
            room[offset : offset + 36] = arrays[name].view(np.uint8)
            fields = {"data": room.__array_interface__["data"][0], "byte_offset": offset}
            producers[name] = PRODUCERS[kind](arrays[name], **fields)
        call("adam", producers)
        call("adam", wanted)
        for name, room in rooms.items():
            assert room[offset : offset + 36].tobytes() == wanted[name].tobytes()
            assert not room[:offset].any()
            assert not room[offset + 36 :].any()


def test_dlpack_requested_version() -> None:
    p = Producer(np.ones(3, np.float32))
    adaptk.ops.sgd(p, np.ones(3, np.float32), step=1)
    ((major, minor),) = p.max_versions
    assert major == 1
    assert minor >= 0


def test_dlpack_later_minor_version() -> None:
    p = Producer(np.ones(3, np.float32), minor=99, flags=1 << 40)
    adaptk.ops.sgd(p, np.ones(3, np.float32), step=1, lr=0.5)
    assert p.array.tolist() == [0.5] * 3


def test_dlpack_memory_pinned_for_a_device() -> None:
    check_wrapped("adam", lambda a: Producer(a, device_type=CUDA_HOST))


def test_dlpack_without_a_deleter() -> None:
    for kind in (Producer, OldProducer):
        producers = check_wrapped("adam", lambda a, kind=kind: kind(a, deleter=None))
        for p in producers:
            for e in p.exports:
                assert e.deletions == 0
                del Export.live[e.address]


def refused_export(
    exception: type[Exception] | tuple[type[Exception], ...],
    kind: str,
    *labels: str,
    arguments_: Sequence[str] = ("param", "grad", "exp_avg", "exp_avg_sq"),
    array_: Any = None,
    **fields: Any,
) -> None:
    """A bad export as each argument: the error names it, nothing changes, and every export is deleted once."""
    for argument in arguments_:
        buffers = make("adam", 4)
        if array_ is not None:
            buffers[argument] = array_
        for several in (False, True):
            good = {name: Producer(b) for name, b in buffers.items()}
            producers = {**good, argument: PRODUCERS[kind](buffers[argument], **fields)}
            given = {name: [p] for name, p in producers.items()} if several else producers
            with refused(exception, argument + "[0]" * several, *labels, unchanged=list(buffers.values())):
                call("adam", given)
            assert all(p.closed() for p in producers.values())
    assert not Export.live


@pytest.mark.parametrize("kind", VERSIONED)
def test_dlpack_read_only(kind: str) -> None:
    refused_export(ValueError, kind, arguments_=("param", "exp_avg", "exp_avg_sq"), flags=READ_ONLY)
    check_wrapped("adam", lambda a: PRODUCERS[kind](a, flags=READ_ONLY), "grad")


@pytest.mark.parametrize("kind", VERSIONED)
def test_dlpack_copies(kind: str) -> None:
    refused_export(BufferError, kind, flags=IS_COPIED)
    refused_export(BufferError, kind, flags=IS_COPIED | READ_ONLY)


@pytest.mark.parametrize("kind", VERSIONED)
def test_dlpack_other_major_version(kind: str) -> None:
    for major in (0, 2, 1 << 31):
        refused_export(BufferError, kind, major=major)


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_on_a_gpu(kind: str) -> None:
    for device in (CUDA, 4, 7, 10, 14):
        refused_export(ValueError, kind, "device", device_type=device)


def test_dlpack_on_a_gpu_is_never_exported() -> None:
    p = Producer(np.ones(3, np.float32), device_type=CUDA)
    with refused(ValueError, "param", unchanged=[p.array]):
        adaptk.ops.sgd(p, np.ones(3, np.float32), step=1)
    assert p.exports == []


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_dtypes(kind: str) -> None:
    for fields in (
        {"lanes": 2},
        {"lanes": 0},
        {"code": INT},
        {"code": 200},
        {"code": 6, "bits": 8},
        {"bits": 8},
        {"bits": 128},
        {"bits": 0},
        {"code": 4, "bits": 32},
        {"code": 5, "bits": 64},
    ):
        refused_export(TypeError, kind, **fields)
    with refused(TypeError, "param"):
        adaptk.ops.sgd(PRODUCERS[kind](np.ones(2, np.complex64)), np.ones(2, np.float32), step=1)


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_invalid_shapes(kind: str) -> None:
    refused_export(ValueError, kind, data=None)
    for shape in ((-1,), (-4,), (2, -2), (-2, -2), (1 << 62,), (1 << 32, 1 << 32), (1 << 62, 1 << 62), (-(1 << 63),)):
        refused_export(ValueError, kind, shape=shape, strides=None)
        refused_export(ValueError, kind, shape=shape, strides=(1,) * len(shape))
    refused_export((ValueError, BufferError), kind, ndim=-1)
    refused_export((ValueError, BufferError), kind, shape=None, ndim=1)


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_null_data_of_empty_tensors(kind: str) -> None:
    check_wrapped("adam", lambda a: PRODUCERS[kind](a, data=None), shape=0)
    check_wrapped("adam", lambda a: PRODUCERS[kind](a, data=None, strides=None), shape=(3, 0))


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_strides(kind: str) -> None:
    for strides in ((2,), (0,), (-1,), (1 << 61,), (-(1 << 63),), ((1 << 62) + 1,)):
        refused_export(ValueError, kind, strides=strides)
    for shape, strides in (((2, 2), (4, 1)), ((2, 2), (1, 1)), ((2, 2), (0, 1)), ((2, 2), (2, -1))):
        with refused(ValueError, "param"):
            room = np.ones(16, np.float32)
            adaptk.ops.sgd(
                PRODUCERS[kind](room, shape=shape, strides=strides),
                PRODUCERS[kind](room, shape=shape, strides=strides),
                step=1,
            )
    assert not Export.live


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_errors_delete_exports(kind: str) -> None:
    def exports(buffers: Mapping[str, Any]) -> dict[str, Any]:
        return {name: PRODUCERS[kind](b) for name, b in buffers.items()}

    good = make("adam", 4)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"exp_avg_sq": np.ones(3, np.float32)}, ValueError, "exp_avg_sq"),
        ({"exp_avg_sq": np.ones(4, np.float64)}, TypeError, "exp_avg_sq"),
        ({"exp_avg_sq": good["param"]}, ValueError, "exp_avg_sq"),
        ({"grad": good["exp_avg"]}, ValueError, "grad"),
    ]
    for changes, exception, label in wrong:
        given = exports({**good, **changes})
        with refused(exception, label, unchanged=list(good.values())):
            call("adam", given)
        assert all(p.closed() for p in given.values())
        lists = [exports(make("adam", 4, seed=1)), exports({**good, **changes}), exports(make("adam", 4, seed=2))]
        with refused(exception, f"{label}[1]", unchanged=list(good.values())):
            call("adam", {name: [x[name] for x in lists] for name in good})
        assert all(p.closed() for x in lists for p in x.values())
    given = {**exports(good), "exp_avg_sq": None}
    with refused(TypeError, "exp_avg_sq", unchanged=list(good.values())):
        call("adam", given)
    assert not Export.live


def whole_message(error: BaseException | None) -> str:
    return "" if error is None else f"{error} {whole_message(error.__cause__)}"


@pytest.mark.parametrize("error", [BufferError, ZeroDivisionError, TypeError, KeyboardInterrupt])
def test_dlpack_exceptions_of_the_producer(error: type[BaseException]) -> None:
    for argument in arguments("adam"):
        buffers = make("adam", 4)
        before = copies(buffers)
        good = {name: Producer(b) for name, b in buffers.items()}
        for raises in (Raises(error), Raises(error, "raises")):
            with pytest.raises(error) as info:
                call("adam", {**good, argument: raises})
            assert "not today" in whole_message(info.value)
            assert_same(buffers, before)
            assert all(p.closed() for p in good.values())


def test_dlpack_returns_something_else() -> None:
    p = np.ones(4, np.float32)
    used = Producer(p).__dlpack__()
    adaptk.ops.sgd(Returns(used), np.ones(4, np.float32), step=1)
    for value in (None, 5, "dltensor", p, [], exchange_capsule(describe=True), used):
        with refused(BufferError, "param", unchanged=[p]):
            adaptk.ops.sgd(Returns(value), np.ones(4, np.float32), step=1)
    assert not Export.live


def test_dlpack_invalid_devices() -> None:
    p = np.ones(4, np.float32)
    for device in (None, 5, (), ("cpu", 0), (1 << 40, 0), (1.5, 0), object()):
        with refused((TypeError, ValueError, BufferError), "grad", unchanged=[p]):
            adaptk.ops.sgd(p, Raises(BufferError, device), step=1)


def test_dlpack_unconsumed_capsule() -> None:
    p = Producer(np.ones(3, np.float32))
    capsule = p.__dlpack__()
    del capsule
    assert p.closed()


def test_dlpack_overlap() -> None:
    room = np.ones(8, np.float32)
    for first, second in itertools.product(PRODUCERS.values(), repeat=2):
        with refused(ValueError, "param", "grad", unchanged=[room]):
            adaptk.ops.sgd(first(room[:5]), second(room[3:]), step=1)
        with refused(ValueError, "param[1]", "grad[0]", unchanged=[room]):
            p = np.ones(5, np.float32)
            adaptk.ops.sgd([p, first(room[:5])], [second(room[3:]), np.ones(5, np.float32)], step=1)
    assert not Export.live


@pytest.mark.parametrize("kind", PRODUCERS)
def test_dlpack_in_an_optimizer(kind: str) -> None:
    params, alone = [np.ones(4, np.float32), np.ones((2, 3))], [np.ones(4, np.float32), np.ones((2, 3))]
    producers = [PRODUCERS[kind](p) for p in params]
    opt, reference = adaptk.Adam(producers), adaptk.Adam(alone)
    for _ in range(3):
        grads = [PRODUCERS[kind](np.full_like(p, 0.5)) for p in params]
        opt.step(grads)
        reference.step([np.full_like(p, 0.5) for p in params])
        assert all(g.closed() for g in grads)
        late = [PRODUCERS[kind](np.full_like(p, 0.5)) for p in params]
        with refused(ValueError, "grads[1]", unchanged=params):
            opt.step([late[0], PRODUCERS[kind](np.ones((3, 2)))])
        assert late[0].closed(), "an export outlives a failed step"
    for p, q in zip(params, alone, strict=True):
        assert same_bits(p, q)
    del opt
    gc.collect()
    assert all(p.closed() for p in producers)
    assert not Export.live
