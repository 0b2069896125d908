"""Errors of arrays: types, access, shapes and layouts; no buffer has changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from error_cases import (
    ARGUMENTS,
    in_list,
    replaced,
)
from helpers import (
    FLOATS,
    PRECISION,
    RULES,
    THREE_RULES,
    arguments,
    assert_same,
    call,
    call_by_keyword,
    copies,
    make,
    refused,
    state_dtype,
)
from numpy.lib.stride_tricks import as_strided

# These turn a valid array into an invalid one.
NOT_BUFFERS: dict[str, Callable[[Any], Any]] = {
    "None": lambda a: None,
    "list": lambda a: [float(x) for x in a.ravel()],
    "str": lambda a: "param",
    "number": lambda a: 1.0,
    "numpy scalar": lambda a: np.float32(1),
    "dict": lambda a: {"param": a},
    "object": lambda a: object(),
    "generator": lambda a: iter([a]),
    "bytearray": lambda a: bytearray(a.tobytes()),
    "memoryview": lambda a: memoryview(bytearray(a.tobytes())),
}


NOT_FLOATS: dict[str, Callable[[Any], Any]] = {
    "int8": lambda a: a.astype(np.int8),
    "int32": lambda a: a.astype(np.int32),
    "uint64": lambda a: np.abs(a).astype(np.uint64),
    "bool": lambda a: a.astype(bool),
    "complex64": lambda a: a.astype(np.complex64),
    "complex128": lambda a: a.astype(np.complex128),
    "longdouble": lambda a: a.astype(np.longdouble),
    "object": lambda a: a.astype(object),
    "str": lambda a: a.astype("U5"),
    "bytes": lambda a: a.astype("S5"),
    "datetime64": lambda a: a.astype(np.int64).astype("M8[s]"),
    "structured": lambda a: a.view([("x", a.dtype)]),
    "record": lambda a: a.view([("x", a.dtype)]).view(np.recarray),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
}


def refused_everywhere(
    exception: type[Exception],
    rule: str,
    argument: str,
    wrong: Callable[[Any], Any],
    *,
    named: str | None = None,
    shape: Any = 6,
    param: str = "float32",
    grad: str | None = None,
) -> None:
    """One wrong buffer by position, by keyword, and at each index of lists and tuples."""
    named = named or argument
    buffers = replaced(make(rule, shape, param, grad), argument, wrong)
    for how in (call, call_by_keyword):
        with refused(exception, named, unchanged=list(buffers.values())):
            how(rule, buffers)
    tensors = [make(rule, shape, param, grad, seed=i) for i in range(3)]
    lists: dict[str, Any] = {name: [t[name] for t in tensors] for name in arguments(rule)}
    for index in range(3):
        buffers = in_list(lists, argument, index, wrong)
        for how, kind in ((call, list), (call_by_keyword, tuple)):
            with refused(exception, f"{named}[{index}]", unchanged=list(buffers.values())):
                how(rule, {name: kind(b) for name, b in buffers.items()})


# Objects that are not buffers, and wrong dtypes


# Every argument of every function is checked; the message does not depend on the rule.
@pytest.mark.parametrize(
    ("rule", "kind"), [(r, k) for r in RULES for k in NOT_BUFFERS if r in THREE_RULES or k == "None"]
)
def test_not_a_buffer(rule: str, kind: str) -> None:
    for argument in arguments(rule):
        if (kind, argument) != ("list", "param"):
            refused_everywhere(TypeError, rule, argument, NOT_BUFFERS[kind])


@pytest.mark.parametrize("rule", THREE_RULES)
def test_a_list_of_floats_as_the_first_argument_is_a_list_of_buffers(rule: str) -> None:
    buffers = make(rule)
    with refused(TypeError, "grad", "param", unchanged=list(buffers.values())):
        call(rule, {**buffers, "param": [1.0]})
    with refused(TypeError, "param[0]", unchanged=list(buffers.values())):
        call(rule, {**{name: [b] for name, b in buffers.items()}, "param": [1.0]})


@pytest.mark.parametrize("kind", NOT_FLOATS)
@pytest.mark.parametrize("rule", THREE_RULES)
def test_not_a_float_dtype(rule: str, kind: str) -> None:
    if kind == "longdouble" and np.dtype(np.longdouble) == np.dtype(np.float64):
        pytest.skip("longdouble is float64 here")
    for argument in arguments(rule):
        refused_everywhere(TypeError, rule, argument, NOT_FLOATS[kind])


def test_other_small_floats() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e3m4, ml_dtypes.int4):
        for argument in arguments("adam"):
            refused_everywhere(TypeError, "adam", argument, lambda a, dtype=dtype: a.astype(dtype))


@pytest.mark.parametrize("kind", ["float64", "longdouble", "float16"])
def test_foreign_byte_order(kind: str) -> None:
    other = np.dtype(kind).newbyteorder()
    p = np.ones(3, other)
    with refused(TypeError, "param", unchanged=[p]):
        adaptk.ops.sgd(p, np.ones(3, other), step=1)


@pytest.mark.parametrize(("rule", "argument"), [(r, s.name) for r in THREE_RULES for s in RULES[r].states])
def test_state_of_another_float_dtype(rule: str, argument: str) -> None:
    for param, state in itertools.product(FLOATS, FLOATS):
        # 16-bit types are allowed instead of float32.
        if state != state_dtype(param) and not (state_dtype(param) == "float32" and PRECISION[state] < 24):
            refused_everywhere(TypeError, rule, argument, lambda a, state=state: a.astype(FLOATS[state]), param=param)


def test_dtype_messages_name_the_expected_dtype() -> None:
    b = make("adam")
    with pytest.raises(
        TypeError,
        match=r"grad: dtype int16, expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2",
    ):
        call("adam", replaced(b, "grad", lambda a: a.astype(np.int16)))
    with pytest.raises(TypeError, match=r"exp_avg: dtype float64, expected float32"):
        call("adam", replaced(b, "exp_avg", lambda a: a.astype(np.float64)))
    with pytest.raises(
        TypeError,
        match=r"param: dtype int32, expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2",
    ):
        call("adam", replaced(b, "param", lambda a: a.astype(np.int32)))
    with pytest.raises(ValueError, match=r"exp_avg_sq: shape \(5, 1\), expected \(5,\)"):
        call("adam", replaced(b, "exp_avg_sq", lambda a: a[:, None]))


# Access


def locked(a: Any) -> Any:
    view = a[...]
    view.flags.writeable = False
    return view


@pytest.mark.parametrize("rule", RULES)
def test_read_only(rule: str) -> None:
    for argument in arguments(rule):
        if argument != "grad":
            refused_everywhere(ValueError, rule, argument, locked)


@pytest.mark.parametrize("rule", RULES)
def test_read_only_grads_are_accepted(rule: str) -> None:
    buffers = make(rule)
    wanted = copies(buffers)
    call(rule, replaced(buffers, "grad", locked))
    call(rule, wanted)
    assert_same(buffers, wanted)


def test_read_only_base_and_bytes() -> None:
    grad = np.ones(4, np.float32)
    read_only = np.frombuffer(b"\0" * 16, np.float32)
    for p in (read_only, read_only[:], np.broadcast_to(np.ones(4, np.float32), (4,))):
        with refused(ValueError, "param", unchanged=[p, grad]):
            adaptk.ops.sgd(p, grad, step=1)


class Masked(np.ma.MaskedArray):
    pass


@pytest.mark.parametrize("kind", [np.ma.MaskedArray, Masked])
@pytest.mark.parametrize("rule", THREE_RULES)
def test_masked_array(rule: str, kind: type[Any]) -> None:
    def masked(a: Any) -> Any:
        return a.view(kind)

    assert isinstance(masked(np.ones(2)), np.ma.MaskedArray)
    for argument in arguments(rule):
        refused_everywhere(TypeError, rule, argument, masked)


# Shape and layout


SHAPES: dict[str, Callable[[Any], Any]] = {
    "one less": lambda a: a.ravel()[:-1].copy(),
    "one more": lambda a: np.append(a.ravel(), a.ravel()[:1]),
    "zero-size": lambda a: a.ravel()[:0].copy(),
    "0-d": lambda a: a.ravel()[0:1].reshape(()).copy(),
    "an axis more": lambda a: a.reshape(*a.shape, 1),
    "an axis before": lambda a: a.reshape(1, *a.shape),
    "flat": lambda a: a.reshape(-1),
    "turned": lambda a: a.reshape(a.shape[::-1]),
    "other factors": lambda a: a.reshape(1, 6),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("rule", THREE_RULES)
def test_shape(rule: str, kind: str) -> None:
    for argument in arguments(rule):
        # The param sets the shape, and the grad is the first that differs.
        named = "grad" if argument == "param" else argument
        refused_everywhere(ValueError, rule, argument, SHAPES[kind], named=named, shape=(2, 3))


def strided(a: Any) -> Any:
    room = np.zeros((*a.shape[:-1], a.shape[-1] * 2), a.dtype)
    room[..., ::2] = a
    return room[..., ::2]


def padded(a: Any) -> Any:
    room = np.zeros((*a.shape[:-1], a.shape[-1] + 1), a.dtype)
    room[..., :-1] = a
    return room[..., :-1]


NOT_DENSE: dict[str, Callable[[Any], Any]] = {
    "strided": strided,
    "padded rows": padded,
    "reversed": lambda a: a[..., ::-1],
    "reversed rows": lambda a: a[::-1],
    "all reversed": lambda a: a[::-1, ::-1],
    "broadcast row": lambda a: as_strided(a, a.shape, (0, a.itemsize)),
    "broadcast element": lambda a: as_strided(a, a.shape, (0, 0)),
    "window": lambda a: as_strided(a, a.shape, (a.itemsize, a.itemsize)),
    "bytes apart": lambda a: as_strided(a.view(np.uint8)[:, :-4].view(a.dtype), (2, 3), (1, a.itemsize)),
}


@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("rule", THREE_RULES)
def test_not_contiguous(rule: str, kind: str) -> None:
    for argument in arguments(rule):
        refused_everywhere(ValueError, rule, argument, NOT_DENSE[kind], shape=(2, 3))


@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("rule", THREE_RULES)
def test_all_not_contiguous(rule: str, kind: str) -> None:
    buffers = {name: NOT_DENSE[kind](b) for name, b in make(rule, (2, 3)).items()}
    with refused(ValueError, "param", unchanged=list(buffers.values())):
        call(rule, buffers)
    with refused(ValueError, "param[0]", unchanged=list(buffers.values())):
        call(rule, {name: [b] for name, b in buffers.items()})


@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_layouts_differ(rule: str, argument: str) -> None:
    named = "grad" if argument == "param" else argument
    refused_everywhere(ValueError, rule, argument, np.asfortranarray, named=named, shape=(2, 3))
    fortran = {name: np.asfortranarray(b) for name, b in make(rule, (2, 3)).items()}
    buffers = replaced(fortran, argument, np.ascontiguousarray)
    with refused(ValueError, named, unchanged=list(buffers.values())):
        call(rule, buffers)


def test_layouts_differ_in_some_axes() -> None:
    for a, b in itertools.permutations(itertools.permutations(range(3)), 2):
        p = np.zeros((2, 3, 4), np.float32).transpose(a)
        g = np.ones(24, np.float16).reshape([p.shape[i] for i in b]).transpose(np.argsort(b))
        same = p.strides == tuple(2 * s for s in g.strides)
        if not same:
            with refused(ValueError, "grad", unchanged=[p, g]):
                adaptk.ops.sgd(p, g, step=1)
