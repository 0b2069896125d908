"""Owners of the memory of buffers, lists of buffers, and NumPy's array interface."""

from __future__ import annotations

import itertools
import mmap
import sys
from array import array
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from buffer_cases import (
    Interface,
    check,
    check_wrapped,
    no_exports,  # noqa: F401
)
from helpers import (
    PAIRS,
    RULES,
    THREE_RULES,
    arguments,
    assert_same,
    call,
    copies,
    make,
    make_list,
    refused,
    same_bits,
)


@pytest.mark.parametrize("mode", ["r+", "w+", "c"])
def test_memmap(tmp_path: Path, mode: str) -> None:
    wanted = make("adam", (3, 7))
    buffers = {}
    for name, b in wanted.items():
        b.tofile(tmp_path / name)
        buffers[name] = np.memmap(tmp_path / name, b.dtype, mode, shape=b.shape)
        buffers[name][...] = b
    before = (tmp_path / "param").read_bytes()
    call("adam", buffers)
    call("adam", wanted)
    assert_same(buffers, wanted)
    for m in buffers.values():
        m.flush()
    after = (tmp_path / "param").read_bytes()
    assert after == (before if mode == "c" else wanted["param"].tobytes())
    buffers["param"] = np.memmap(tmp_path / "param", np.float32, "r", shape=(3, 7))
    with refused(ValueError, "param", unchanged=list(buffers.values())):
        call("adam", buffers)


def test_memory_of_other_objects() -> None:
    wanted = make("adam", 8)
    room = mmap.mmap(-1, 4096)
    buffers = {
        "param": np.frombuffer(bytearray(32), np.float32),
        "grad": np.frombuffer(bytes(wanted["grad"].tobytes()), np.float32),
        "exp_avg": np.frombuffer(array("f", wanted["exp_avg"]), np.float32),
        "exp_avg_sq": np.frombuffer(room, np.float32, 8, 64),
    }
    buffers["param"][:] = wanted["param"]
    buffers["exp_avg_sq"][:] = wanted["exp_avg_sq"]
    call("adam", buffers)
    call("adam", wanted)
    assert_same(buffers, wanted)


class Labelled(np.ndarray):
    """A subclass with an attribute and its own slicing, which updates ignore."""

    label: str

    def __array_finalize__(self, other: Any) -> None:
        self.label = getattr(other, "label", "none")

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("nobody should look")


def test_subclasses() -> None:
    for rule in RULES:
        check_wrapped(rule, lambda a: a.view(Labelled))
    r = np.recarray(4, dtype=[("x", "f4"), ("y", "f4")]).view(np.ndarray)
    with refused(ValueError, "param", unchanged=[r]):
        adaptk.ops.sgd(r["x"], np.ones(4, np.float32), step=1)


def test_explicit_native_byte_order() -> None:
    order = "<" if sys.byteorder == "little" else ">"
    for dtype in ("f2", "f4", "f8"):
        p, q = np.ones(3, order + dtype), np.ones(3, dtype)
        adaptk.ops.sgd(p, p.copy(), step=1)
        adaptk.ops.sgd(q, q.copy(), step=1)
        assert same_bits(p, q)


def test_dtype_with_metadata() -> None:
    p = np.ones(3, np.dtype("f4", metadata={"unit": "m"}))
    adaptk.ops.sgd(p, np.ones(3, np.float32), step=1, lr=0.5)
    assert p.tolist() == [0.5] * 3


def test_bfloat16_of_ml_dtypes() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    p = np.ones(3, bfloat16)
    adaptk.ops.sgd(p, np.array([0.5, 1.0, 2.0], bfloat16), step=1, lr=0.5)
    assert p.tolist() == [0.75, 0.5, 0.0]
    adaptk.ops.sgd(p, np.array([0.25, 0.5, 0.0], np.float16), step=1, lr=1.0)
    assert p.tolist() == [0.5, 0.0, 0.0]
    half = np.ones(3, np.float16)
    adaptk.ops.sgd(half, np.array([0.5, 1.0, 2.0], bfloat16), step=1, lr=0.5)
    assert half.tolist() == [0.75, 0.5, 0.0]


# Lists


@pytest.mark.parametrize("rule", THREE_RULES)
def test_dtypes_may_differ_within_a_list(rule: str) -> None:
    buffers: dict[str, list[Any]] = {name: [] for name in arguments(rule)}
    for i, (param, grad) in enumerate(PAIRS * 2):
        for name, b in make(rule, i % 4 * 9, param, grad, seed=i).items():
            buffers[name].append(b)
    one_by_one = copies(buffers)
    check(rule, buffers)
    for i in range(len(buffers["param"])):
        call(rule, {name: b[i] for name, b in one_by_one.items()})
    assert_same(buffers, one_by_one)


def test_lists_and_tuples() -> None:
    class Several(list[Any]):
        pass

    wanted = make_list("adam", [3, 4])
    call("adam", wanted)
    for kinds in itertools.product([list, tuple, Several], repeat=4):
        buffers = make_list("adam", [3, 4])
        call("adam", {name: kind(b) for kind, (name, b) in zip(kinds, buffers.items(), strict=True)})
        assert_same(buffers, wanted)


@pytest.mark.parametrize("rule", THREE_RULES)
def test_many_small_tensors(rule: str, threads: int) -> None:
    sizes = [i * 37 % 211 for i in range(400)]
    buffers = make_list(rule, sizes)
    flat = {name: np.concatenate(b) for name, b in buffers.items()}
    call(rule, buffers)
    call(rule, flat)
    for name, b in buffers.items():
        assert same_bits(np.concatenate(b), flat[name])


class InterfaceWithDtype(Interface):
    """An array of another library, which also has dtype and shape."""

    @property
    def dtype(self) -> Any:
        return self.kept.dtype

    @property
    def shape(self) -> Any:
        return self.kept.shape


@pytest.mark.parametrize("kind", [Interface, InterfaceWithDtype])
def test_array_interface(kind: type[Interface]) -> None:
    for argument in [None, *arguments("adam")]:
        check_wrapped("adam", kind, argument)
        check_wrapped("adam", kind, argument, shape=(3, 4))
        check_wrapped("adam", kind, argument, shape=())
    buffers = {name: np.asfortranarray(b) for name, b in make("adam", (3, 4)).items()}
    wanted = copies(buffers)
    call("adam", {name: kind(b) for name, b in buffers.items()})
    call("adam", wanted)
    assert_same(buffers, wanted)


def test_array_interface_refused() -> None:
    p, g = np.ones(4, np.float32), np.ones(4, np.float32)
    pointer = p.__array_interface__["data"][0]
    with refused(ValueError, "param", unchanged=[p, g]):
        adaptk.ops.sgd(Interface(p, data=(pointer, True)), g, step=1)
    with refused(TypeError, "param", unchanged=[p, g]):
        adaptk.ops.sgd(Interface(p, typestr="<i4"), g, step=1)
    with refused(TypeError, "param", unchanged=[p, g]):
        adaptk.ops.sgd(Interface(p, typestr=">f4"), g, step=1)
    with refused(ValueError, "grad[0]", unchanged=[p, g]):
        adaptk.ops.sgd([p], [Interface(g, strides=(8,), shape=(2,))], step=1)
    with refused(ValueError, "param", "grad", unchanged=[p, g]):
        adaptk.ops.sgd(Interface(p), p, step=1)
    readable = Interface(g, data=(g.__array_interface__["data"][0], True))
    adaptk.ops.sgd(p, readable, step=1, lr=0.5)
    assert p.tolist() == [0.5] * 4
