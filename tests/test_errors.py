"""Every error of the functions: its type, the argument it names, and that no buffer has changed."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import (
    FLOATS,
    PAIRS,
    PRECISION,
    RULES,
    arguments,
    assert_same,
    call,
    call_by_keyword,
    copies,
    grad_dtypes,
    inside,
    make,
    make_list,
    mentions,
    outside,
    refused,
    same_bits,
    state_dtype,
)
from numpy.lib.stride_tricks import as_strided

ARGUMENTS = [(rule, argument) for rule in RULES for argument in arguments(rule)]
HYPERS = [(rule, h) for rule in RULES for h in RULES[rule].hyperparameters]
NUMBERS = [pytest.param(rule, h, id=f"{rule}-{h.name}") for rule, h in HYPERS if h.range != "bool"]
FLAGS = [pytest.param(rule, h, id=f"{rule}-{h.name}") for rule, h in HYPERS if h.range == "bool"]
SIZES = (5, 1, 7)

# These take an array that would be right and return what is not.
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


def replaced(buffers: Mapping[str, Any], argument: str, wrong: Callable[[Any], Any]) -> dict[str, Any]:
    return {**buffers, argument: wrong(buffers[argument])}


def in_list(buffers: Mapping[str, Any], argument: str, index: int, wrong: Callable[[Any], Any]) -> dict[str, Any]:
    changed = list(buffers[argument])
    changed[index] = wrong(changed[index])
    return {**buffers, argument: changed}


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


# What is no buffer, or of another type


@pytest.mark.parametrize("kind", NOT_BUFFERS)
@pytest.mark.parametrize("rule", RULES)
def test_not_a_buffer(rule: str, kind: str) -> None:
    for argument in arguments(rule):
        if (kind, argument) != ("list", "param"):
            refused_everywhere(TypeError, rule, argument, NOT_BUFFERS[kind])


@pytest.mark.parametrize("rule", RULES)
def test_a_list_of_floats_as_the_first_argument_is_a_list_of_buffers(rule: str) -> None:
    buffers = make(rule)
    with refused(TypeError, "grad", "param", unchanged=list(buffers.values())):
        call(rule, {**buffers, "param": [1.0]})
    with refused(TypeError, "param[0]", unchanged=list(buffers.values())):
        call(rule, {**{name: [b] for name, b in buffers.items()}, "param": [1.0]})


@pytest.mark.parametrize("kind", NOT_FLOATS)
@pytest.mark.parametrize("rule", RULES)
def test_not_a_float_dtype(rule: str, kind: str) -> None:
    if kind == "longdouble" and np.dtype(np.longdouble) == np.dtype(np.float64):
        pytest.skip("longdouble is float64 here")
    for argument in arguments(rule):
        refused_everywhere(TypeError, rule, argument, NOT_FLOATS[kind])


def test_other_small_floats() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4):
        for argument in arguments("adam"):
            refused_everywhere(TypeError, "adam", argument, lambda a, dtype=dtype: a.astype(dtype))


@pytest.mark.parametrize("kind", ["float64", "longdouble", "float16"])
def test_both_byte_orders_are_told_apart(kind: str) -> None:
    other = np.dtype(kind).newbyteorder()
    p = np.ones(3, other)
    with refused(TypeError, "param", unchanged=[p]):
        adaptk.ops.sgd(p, np.ones(3, other), step=1)


@pytest.mark.parametrize(
    ("rule", "param", "grad"),
    [(r, p, g) for r in RULES for p in FLOATS for g in FLOATS if g not in grad_dtypes(p)],
)
def test_grad_of_higher_or_other_precision(rule: str, param: str, grad: str) -> None:
    assert PRECISION[grad] >= PRECISION[param]
    refused_everywhere(TypeError, rule, "grad", lambda a: a.astype(FLOATS[grad]), param=param)


@pytest.mark.parametrize(("rule", "argument"), [(r, s.name) for r in RULES for s in RULES[r].states])
def test_state_of_another_float_dtype(rule: str, argument: str) -> None:
    for param, state in itertools.product(FLOATS, FLOATS):
        if state != state_dtype(param):
            refused_everywhere(TypeError, rule, argument, lambda a, state=state: a.astype(FLOATS[state]), param=param)


def test_dtype_messages_say_what_is_wanted() -> None:
    b = make("adam")
    with pytest.raises(TypeError, match=r"grad: dtype float64.*float32") as error:
        call("adam", replaced(b, "grad", lambda a: a.astype(np.float64)))
    assert "lower precision" in str(error.value)
    with pytest.raises(TypeError, match=r"exp_avg: dtype float64, expected float32"):
        call("adam", replaced(b, "exp_avg", lambda a: a.astype(np.float64)))
    with pytest.raises(TypeError, match=r"param: dtype int32, expected float32, float64, bfloat16 or float16"):
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
def test_read_only_grads_are_fine(rule: str) -> None:
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
@pytest.mark.parametrize("rule", RULES)
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
@pytest.mark.parametrize("rule", RULES)
def test_shape(rule: str, kind: str) -> None:
    for argument in arguments(rule):
        # A param sets the shape, and the grad is the first that does not have it.
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
@pytest.mark.parametrize("rule", RULES)
def test_not_contiguous(rule: str, kind: str) -> None:
    for argument in arguments(rule):
        refused_everywhere(ValueError, rule, argument, NOT_DENSE[kind], shape=(2, 3))


@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("rule", RULES)
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


# Lists


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_lengths_differ(rule: str, argument: str, kind: type[Any]) -> None:
    # A param sets the number, and the grad is the first that does not have it.
    named = "grad" if argument == "param" else argument
    for change in (lambda b: b[:-1], lambda b: [*b, b[-1].copy()], lambda b: []):
        buffers = make_list(rule, SIZES)
        wrong = {name: kind(change(b)) if name == argument else kind(b) for name, b in buffers.items()}
        with refused(ValueError, "param" if not wrong["param"] else named, unchanged=list(buffers.values())):
            call(rule, wrong)


@pytest.mark.parametrize("rule", RULES)
def test_empty_lists(rule: str) -> None:
    for kind in (list, tuple):
        with refused(ValueError, "param"):
            call(rule, {name: kind() for name in arguments(rule)})


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_a_list_for_one_argument_only(rule: str, argument: str, kind: type[Any]) -> None:
    buffers = make(rule)
    # Where only the param is a list, the grad is the first that is none.
    with refused(TypeError, "grad" if argument == "param" else argument, unchanged=list(buffers.values())):
        call(rule, replaced(buffers, argument, lambda b: kind([b])))
    if argument != "param":
        wrapped = {name: kind([b]) for name, b in buffers.items()}
        with refused(TypeError, argument, unchanged=list(buffers.values())):
            call(rule, {**wrapped, argument: buffers[argument]})


def test_lists_in_lists() -> None:
    p, g = np.ones(3, np.float32), np.ones(3, np.float32)
    with refused(TypeError, "param[0]", unchanged=[p, g]):
        adaptk.ops.sgd([[p]], [[g]], step=1)
    with refused(TypeError, "grad[1]", unchanged=[p, g]):
        adaptk.ops.sgd([p, p.copy()], [g, [g]], step=1)


@pytest.mark.parametrize("rule", RULES)
def test_the_last_of_many_is_wrong(rule: str) -> None:
    buffers = make_list(rule, range(1, 60))
    last = arguments(rule)[-1]
    buffers = in_list(buffers, last, 58, lambda a: a.astype(np.int32))
    with refused(TypeError, f"{last}[58]", unchanged=list(buffers.values())):
        call(rule, buffers)


# Overlap


def laid_out(rule: str, param: str, grad: str, first: str, second: str, how: str, n: int = 16) -> dict[str, Any]:
    """Buffers of which two share memory."""
    buffers = make(rule, n, param, grad)
    a, b = buffers[first], buffers[second]
    room = np.zeros(4 * n * 8, np.uint8)
    starts = {
        "same": (0, 0),
        "last element": (0, a.nbytes - a.itemsize),
        "last byte": (0, a.nbytes - 1),
        "before": (b.nbytes - 1, 0),
        "inside": (8 + max(b.nbytes - a.nbytes, 0) // 2, 8 + max(a.nbytes - b.nbytes, 0) // 2),
    }[how]
    for name, start in zip((first, second), starts, strict=True):
        old = buffers[name]
        buffers[name] = room[start : start + old.nbytes].view(old.dtype)
    return buffers


OVERLAPS = ["same", "last element", "last byte", "before", "inside"]


@pytest.mark.parametrize("how", OVERLAPS)
@pytest.mark.parametrize("rule", RULES)
def test_overlap_in_one_tensor(rule: str, how: str) -> None:
    for first, second in itertools.permutations(arguments(rule), 2):
        for param, grad in PAIRS:
            buffers = laid_out(rule, param, grad, first, second, how)
            with refused(ValueError, first, second, unchanged=list(buffers.values())):
                call(rule, buffers)
            with refused(ValueError, f"{first}[0]", f"{second}[0]", unchanged=list(buffers.values())):
                call(rule, {name: [b] for name, b in buffers.items()})


@pytest.mark.parametrize("rule", RULES)
def test_the_same_array_twice(rule: str) -> None:
    for first, second in itertools.permutations(arguments(rule), 2):
        buffers = make(rule)
        buffers[second] = buffers[first]
        with refused(ValueError, first, second, unchanged=list(buffers.values())):
            call(rule, buffers)


@pytest.mark.parametrize("rule", RULES)
def test_overlap_across_tensors(rule: str) -> None:
    good = make_list(rule, [6] * 8)
    for first, second in itertools.product(arguments(rule), repeat=2):
        if (first, second) == ("grad", "grad"):
            continue
        for i, j in ((0, 7), (7, 0), (3, 4), (6, 2)):
            for length in (6, 3, 1):
                buffers = {name: list(b) for name, b in good.items()}
                room = np.zeros(12, np.float32)
                buffers[first][i] = room[:6]
                buffers[second][j] = room[6 - length : 12 - length]
                with refused(ValueError, f"{first}[{i}]", f"{second}[{j}]", unchanged=list(buffers.values())):
                    call(rule, buffers)


def test_an_array_twice_in_a_list() -> None:
    for rule in RULES:
        for argument in arguments(rule):
            buffers = make_list(rule, [4, 4])
            buffers[argument][1] = buffers[argument][0]
            if argument == "grad":
                wanted = copies(buffers)
                call(rule, buffers)
                call(rule, wanted)
                assert_same(buffers, wanted)
            else:
                with refused(ValueError, f"{argument}[0]", f"{argument}[1]", unchanged=list(buffers.values())):
                    call(rule, buffers)


def test_grads_that_overlap_each_other_are_fine() -> None:
    room = np.arange(12, dtype=np.float32)
    params = [np.ones(8, np.float32), np.ones(8, np.float32), np.ones(12, np.float32)]
    grads = [room[:8], room[4:], room]
    adaptk.ops.sgd(params, grads, step=1, lr=0.5)
    for p, g in zip(params, grads, strict=True):
        assert same_bits(p, np.float32(1) - np.float32(0.5) * g)


@pytest.mark.parametrize("rule", RULES)
def test_neighbours_in_memory_are_fine(rule: str) -> None:
    for param, grad in PAIRS:
        wanted = make_list(rule, [3, 1, 8], param, grad)
        room = np.zeros(4096, np.uint8)
        end = 0
        buffers: dict[str, list[Any]] = {name: [] for name in wanted}
        for name, arrays in wanted.items():
            for a in arrays:
                home = room[end : end + a.nbytes].view(a.dtype)
                home[:] = a
                buffers[name].append(home)
                end += a.nbytes
        call(rule, buffers)
        call(rule, wanted)
        assert_same(buffers, wanted)


def test_overlap_is_found_again_after_an_error_and_after_other_lists() -> None:
    good = make_list("adam", [4, 4, 4])
    bad = {**good, "grad": [good["grad"][0], good["exp_avg"][2], good["grad"][2]]}
    worse = {**good, "exp_avg": [good["exp_avg"][0], good["param"][0], good["exp_avg"][2]]}
    for _ in range(3):
        call("adam", good)
        with refused(ValueError, "grad[1]", "exp_avg[2]", unchanged=list(good.values())):
            call("adam", bad)
        for _ in range(2):
            with refused(ValueError, "exp_avg[1]", "param[0]", unchanged=list(good.values())):
                call("adam", worse)


def test_empty_arrays_overlap_with_nothing() -> None:
    room = np.ones(8, np.float32)
    p, g = room.copy(), room.copy()
    adaptk.ops.momentum([p, room[4:4]], [g, room[4:4]], [room, room[4:4]], step=2)
    assert same_bits(room, np.float32(0.9) * np.ones(8, np.float32) - np.float32(0.01))


# Hyperparameters, flags and the step


@pytest.mark.parametrize(("rule", "hyper"), NUMBERS)
def test_number_out_of_range(rule: str, hyper: adaptk.Hyperparameter) -> None:
    buffers, lists = make(rule), make_list(rule, SIZES)
    bad = outside(hyper.range)
    assert any(np.isnan(x) for x in bad)
    for x in bad:
        for b in (buffers, lists):
            for number in (x, np.float64(x)):
                with refused(ValueError, hyper.name, unchanged=list(b.values())):
                    call(rule, b, **{hyper.name: number})
                with pytest.raises(ValueError) as error:
                    call(rule, b, **{hyper.name: number})
                assert hyper.range in str(error.value)


@pytest.mark.parametrize(("rule", "hyper"), NUMBERS)
def test_number_too_large_for_a_float(rule: str, hyper: adaptk.Hyperparameter) -> None:
    buffers = make(rule)
    for x in (10**400, -(10**400)):
        with refused(ValueError, hyper.name, unchanged=list(buffers.values())):
            call(rule, buffers, **{hyper.name: x})


@pytest.mark.parametrize(("rule", "hyper"), NUMBERS)
def test_number_in_range(rule: str, hyper: adaptk.Hyperparameter) -> None:
    # Bounds that a rule compares with each other, far apart.
    names = {h.name for h in RULES[rule].hyperparameters}
    wide = {"eta_min": 0.0, "eta_max": np.inf, "step_min": 0.0, "step_max": np.inf}
    others = {name: x for name, x in wide.items() if name in names and name != hyper.name}
    for x in inside(hyper.range):
        call(rule, make(rule), **others, **{hyper.name: x})
        call(rule, make(rule), **others, **{hyper.name: np.float64(x)})
    if 1.0 in inside(hyper.range):
        call(rule, make(rule), **others, **{hyper.name: 1})


@pytest.mark.parametrize(("rule", "hyper"), NUMBERS + FLAGS)
def test_hyperparameter_of_another_type(rule: str, hyper: adaptk.Hyperparameter) -> None:
    buffers, lists = make(rule), make_list(rule, SIZES)
    for x in ("x", "0.1", b"1", None, [0.1], (0.1,), {}, 1j, object(), np.array([0.1, 0.2])):
        for b in (buffers, lists):
            with refused(TypeError, hyper.name, unchanged=list(b.values())):
                call(rule, b, **{hyper.name: x})


@pytest.mark.parametrize(("rule", "hyper"), FLAGS)
def test_flag(rule: str, hyper: adaptk.Hyperparameter) -> None:
    buffers = make(rule)
    for x in (0.5, 2, -1, np.nan, np.inf, 1 + 1e-15):
        with refused(ValueError, hyper.name, unchanged=list(buffers.values())):
            call(rule, buffers, **{hyper.name: x})
    for flag in (False, True):
        wanted = make(rule)
        call(rule, wanted, **{hyper.name: flag})
        for same in (int(flag), float(flag), np.bool_(flag), np.float64(flag)):
            got = make(rule)
            call(rule, got, **{hyper.name: same})
            assert_same(got, wanted)


@pytest.mark.parametrize(
    ("rule", "low", "high"), [("delta_bar_delta", "eta_min", "eta_max"), ("rprop", "step_min", "step_max")]
)
def test_bounds_that_do_not_go_together(rule: str, low: str, high: str) -> None:
    buffers = make(rule)
    for a, b in ((1.0, 0.5), (1e-300, 0.0), (60.0, 50.0)):
        with refused(ValueError, low, high, unchanged=list(buffers.values())):
            call(rule, buffers, **{low: a, high: b})
    call(rule, buffers, **{low: 0.5, high: 0.5})


def test_an_exception_of_a_number_passes() -> None:
    class Number:
        def __float__(self) -> float:
            raise ZeroDivisionError("no number")

    buffers = make("adam")
    with refused(ZeroDivisionError, unchanged=list(buffers.values())):
        call("adam", buffers, lr=Number())


@pytest.mark.parametrize("rule", RULES)
def test_step(rule: str) -> None:
    for buffers in (make(rule), make_list(rule, SIZES)):
        unchanged = list(buffers.values())
        for step in (0, -1, -(2**70), 2**63, 2**70, np.int64(0)):
            with refused(ValueError, "step", unchanged=unchanged):
                call(rule, buffers, step=step)
        for step in (1.5, 1.0, True, False, np.bool_(True), "1", None, [1], 1j, np.float64(1), np.array([1])):
            with refused(TypeError, "step", unchanged=unchanged):
                call(rule, buffers, step=step)
    for step in (1, 2, 2**31, 2**62, 2**63 - 1, np.int8(3), np.uint64(3), np.array(3)):
        call(rule, make(rule), step=step)


def test_steps_come_to_an_end() -> None:
    params, grads = [np.ones(3)], [np.ones(3)]
    opt = adaptk.Adam(params)
    opt.step(grads)
    saved = opt.state_dict()
    last = np.array(2**63 - 1)
    with refused(ValueError, unchanged=params):
        opt.load_state_dict({**saved, "step": last, "state.0.step": last})
        opt.step(grads)
    assert opt.step_count > 0


@pytest.mark.parametrize("rule", RULES)
def test_missing_step(rule: str) -> None:
    buffers = make(rule)
    with refused(TypeError, "step", unchanged=list(buffers.values())):
        getattr(adaptk.ops, rule)(*buffers.values())


# The call itself


@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_missing_argument(rule: str, argument: str) -> None:
    buffers = make(rule)
    function = getattr(adaptk.ops, rule)
    rest = {name: b for name, b in buffers.items() if name != argument}
    with refused(TypeError, argument, unchanged=list(buffers.values())):
        function(**rest, step=1)
    with refused(TypeError, arguments(rule)[-1], unchanged=list(buffers.values())):
        function(*list(buffers.values())[:-1], step=1)
    with refused(TypeError, "param", unchanged=list(buffers.values())):
        function(step=1)


@pytest.mark.parametrize("rule", RULES)
def test_unknown_keyword(rule: str) -> None:
    buffers = make(rule)
    unknown = {"learning_rate", "Lr", "lr_", "params", "", "naïve", "exp_avg"}
    for name in sorted(unknown - set(arguments(rule))):
        with refused(TypeError, unchanged=list(buffers.values())):
            call(rule, buffers, **{name: 0.1})
    with pytest.raises(TypeError) as error:
        call(rule, buffers, learning_rate=0.1)
    assert mentions(str(error.value), "learning_rate")
    for known in ["step", *(h.name for h in RULES[rule].hyperparameters)]:
        assert mentions(str(error.value), known)


@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_argument_given_twice(rule: str, argument: str) -> None:
    buffers = make(rule)
    with refused(TypeError, argument, unchanged=list(buffers.values())):
        call(rule, buffers, **{argument: buffers[argument]})


@pytest.mark.parametrize("rule", RULES)
def test_too_many_positionals(rule: str) -> None:
    buffers = make(rule)
    function = getattr(adaptk.ops, rule)
    for extra in ([1], [1, 0.1], [buffers["param"]]):
        with refused(TypeError, unchanged=list(buffers.values())):
            function(*buffers.values(), *extra, step=1)
        with pytest.raises(TypeError, match=f"{rule}.*takes {len(buffers)} positional"):
            function(*buffers.values(), *extra, step=1)


def test_unknown_keyword_that_is_no_text() -> None:
    buffers = make("adam")
    with refused(TypeError, unchanged=list(buffers.values())):
        call("adam", buffers, **{"\ud800": 0.1})


class Name(str):
    pass


def test_keywords_of_a_subclass_of_str() -> None:
    got, wanted = make("adam"), make("adam")
    adaptk.ops.adam(**{Name(k): b for k, b in got.items()}, **{Name("step"): 2, Name("lr"): 0.5})
    adaptk.ops.adam(**wanted, step=2, lr=0.5)
    assert_same(got, wanted)


@pytest.mark.parametrize("rule", RULES)
def test_signature_is_what_the_function_takes(rule: str) -> None:
    parameters = inspect.signature(getattr(adaptk.ops, rule)).parameters
    hypers = [h.name for h in RULES[rule].hyperparameters]
    assert list(parameters) == [*arguments(rule), "step", *hypers]
    for h in RULES[rule].hyperparameters:
        assert parameters[h.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[h.name].default == h.default
    assert parameters["step"].default is inspect.Parameter.empty


# Optimizer objects: an error leaves params, states and the count of steps


def optimizer_memory(opt: adaptk.Optimizer) -> list[bytes]:
    return [np.asarray(v).tobytes() for v in opt.state_dict().values()]


@pytest.mark.parametrize("rule", RULES)
def test_optimizer_step_is_all_or_nothing(rule: str) -> None:
    params = [np.ones((2, 3), np.float32), np.ones(4, np.float64), np.ones(2, np.float16)]
    grads = [np.full_like(p, 0.5) for p in params]
    opt = adaptk.optimizer_for(rule, params)
    opt.step(grads)
    state = next(iter(opt.state[1].values()), params[0])
    wrong: list[tuple[Any, type[Exception], str]] = [
        ([grads[0], grads[1], None][:2], ValueError, "grads"),
        ([grads[0], grads[1], grads[2], grads[2]], ValueError, "grads"),
        ([grads[0], grads[1], grads[1]], TypeError, "grads[2]"),
        ([grads[0], grads[1], "x"], TypeError, "grads[2]"),
        ([grads[0], grads[1][:3], grads[2]], ValueError, "grads[1]"),
        ([np.asfortranarray(grads[0]), grads[1], grads[2]], ValueError, "grads[0]"),
        ([grads[0], grads[1], params[2]], ValueError, "grads[2]"),
        ([params[0], grads[1], grads[2]], ValueError, "grads[0]"),
        (5, TypeError, "grads"),
    ]
    if state is not params[0]:
        wrong.append(([grads[0], state, grads[2]], ValueError, "grads[1]"))
    for bad, exception, label in wrong:
        before = optimizer_memory(opt)
        with refused(exception, label, unchanged=params):
            opt.step(bad)
        assert opt.step_count == 1
        assert optimizer_memory(opt) == before
    for options in ({"grad_scale": np.nan}, {"clip_norm": -1.0}, {"clip_norm": np.nan}):
        before = optimizer_memory(opt)
        with refused(ValueError, next(iter(options)), unchanged=params):
            opt.step(grads, **options)
        assert optimizer_memory(opt) == before
    for value, exception in ((-1.0, ValueError), ("x", TypeError), (np.nan, ValueError)):
        opt.param_groups[0]["lr"] = value
        with refused(exception, "lr", unchanged=params):
            opt.step(grads)
        opt.param_groups[0]["lr"] = 0.1
    opt.step(grads)
    assert opt.step_count == 2


def test_optimizer_notices_params_that_became_read_only() -> None:
    params = [np.ones(3), np.ones(3)]
    opt = adaptk.Adam(params)
    params[1].flags.writeable = False
    with refused(ValueError, "params[1]", unchanged=params):
        opt.step([np.ones(3), np.ones(3)])
    assert opt.step_count == 0
    params[1].flags.writeable = True
    opt.step([np.ones(3), np.ones(3)])
    assert opt.step_count == 1


def test_optimizer_notices_params_of_another_shape() -> None:
    for shape in ((3, 2), (6,), (1, 2, 3), (2, 300), (1,), (0,), (1, 1, 1, 1, 6)):
        params = [np.ones(4), np.ones((2, 3))]
        grads = [np.ones(4), np.ones((2, 3))]
        opt = adaptk.Adam(params)
        opt.step(grads)
        params[1].resize(shape, refcheck=False)
        for grad in (grads[1], np.ones(shape)):
            with refused(ValueError, unchanged=params):
                opt.step([grads[0], grad])
        assert opt.step_count == 1
        assert same_bits(opt.state[1]["exp_avg"], opt.state[1]["exp_avg"].flat[0] * np.ones((2, 3)))
        params[1].resize((2, 3), refcheck=False)
        opt.step(grads)
        assert opt.step_count == 2


def test_optimizer_refuses_params_that_share_memory() -> None:
    room = np.ones(6)
    with refused(ValueError, "params[0]", "params[1]", unchanged=[room]):
        adaptk.Adam([room[:4], room[3:]])
    opt = adaptk.Adam([room[:3]])
    with refused(ValueError, "params[0]", "params[1]", unchanged=[room]):
        opt.add_param_group({"params": [room[2:]]})
    opt.add_param_group({"params": [room[3:]]})
    opt.step([np.ones(3), np.ones(3)])
    assert same_bits(room[:3], room[3:])


# Threads


def stepped(rule: str, n: int, steps: int, seed: int) -> dict[str, Any]:
    buffers = make(rule, n, seed=seed)
    for t in range(1, steps + 1):
        call(rule, buffers, step=t)
    return buffers


@pytest.mark.parametrize("n", [40, 40_000])
@pytest.mark.parametrize("rule", ["sgd", "adam", "adan"])
def test_calls_from_several_threads(rule: str, n: int) -> None:
    wanted = [stepped(rule, n, 20, seed) for seed in range(4)]
    start = threading.Barrier(4)

    def work(seed: int) -> dict[str, Any]:
        start.wait()
        return stepped(rule, n, 20, seed)

    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(work, range(4)), wanted, strict=True):
            assert_same(got, want)


def test_lists_from_several_threads() -> None:
    sizes = [30_000, 3, 20_000, 0, 1]

    def work(seed: int) -> dict[str, Any]:
        buffers = make_list("adam", sizes)
        for b in buffers["grad"]:
            b *= seed + 1
        for t in range(1, 11):
            call("adam", buffers, step=t)
        return buffers

    wanted = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(work, range(4)), wanted, strict=True):
            assert_same(got, want)


def test_errors_from_several_threads() -> None:
    good = [make("adam", 20_000, seed=i) for i in range(4)]
    wanted = [stepped("adam", 20_000, 20, seed=i) for i in range(4)]

    def work(i: int) -> None:
        for t in range(1, 21):
            with refused(ValueError, "exp_avg", unchanged=list(good[i].values())):
                call("adam", {**good[i], "exp_avg": good[i]["exp_avg"][:-1]})
            call("adam", good[i], step=t)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for got, want in zip(good, wanted, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("n", [10, 200_000])
def test_two_threads_step_one_optimizer(n: int) -> None:
    params, grad = [np.ones(n, np.float32)], np.linspace(-1, 1, n, dtype=np.float32)
    opt = adaptk.Adam(params, lr=0.01)
    start = threading.Barrier(2)

    def step() -> str:
        try:
            opt.step([grad])
        except RuntimeError as error:
            return str(error)
        return ""

    def work(_: int) -> list[str]:
        start.wait()
        return [step() for _ in range(60)]

    with ThreadPoolExecutor(2) as pool:
        messages = [m for of_thread in pool.map(work, range(2)) for m in of_thread]
    assert len(messages) == 120
    assert all("thread" in m for m in messages if m)
    done = messages.count("")
    assert opt.step_count == done > 0
    alone = [np.ones(n, np.float32)]
    reference = adaptk.Adam(alone, lr=0.01)
    for _ in range(done):
        reference.step([grad])
    assert same_bits(params[0], alone[0])
    for name, state in reference.state[0].items():
        assert same_bits(opt.state[0][name], state)


def test_a_step_inside_a_step_is_refused() -> None:
    params, grads = [np.ones(3)], [np.ones(3)]
    inner: list[str] = []

    def schedule(t: int) -> float:
        if opts:
            with pytest.raises(RuntimeError) as error:
                opts[0].step(grads)
            inner.append(str(error.value))
        return 0.5

    opts: list[adaptk.Optimizer] = []
    opts.append(adaptk.SGD(params, lr=schedule))
    opts[0].step(grads)
    assert len(inner) == 1
    assert opts[0].step_count == 1
    assert same_bits(params[0], np.full(3, 0.5))


def test_a_failing_schedule_leaves_all_as_it_was() -> None:
    params, grads = [np.ones(3)], [np.ones(3)]

    def schedule(t: int) -> Any:
        if t == 2:
            raise ZeroDivisionError("schedule")
        return 0.5 if t == 1 else "x"

    opt = adaptk.SGD(params, lr=schedule)
    opt.step(grads)
    for _ in range(2):
        with refused(ZeroDivisionError, unchanged=params):
            opt.step(grads)
    assert opt.step_count == 1


@pytest.mark.parametrize("name", ["adam", "optimizer", "global_norm"])
def test_lists_changed_by_another_thread(name: str) -> None:
    """A call keeps to the arrays that were in its lists when it began."""
    buffers = make("adam", 200_000)
    alone = copies(buffers)
    lists = {k: [b] for k, b in buffers.items()}
    opt, reference = adaptk.Adam(lists["param"]), adaptk.Adam([alone["param"]])
    norms: list[float] = []
    stop = threading.Event()

    def shuffle() -> None:
        while not stop.is_set():
            for k, b in lists.items():
                b.clear()
                b.append(buffers[k])

    def attempt(t: int) -> bool:
        try:
            if name == "adam":
                adaptk.ops.adam(*lists.values(), step=t)
            elif name == "optimizer":
                opt.step(lists["grad"])
            else:
                norms.append(adaptk.global_norm(lists["grad"]))
        except ValueError:
            # A list was empty at that moment. The other thread goes on from there.
            time.sleep(1e-4)
            return False
        return True

    thread = threading.Thread(target=shuffle)
    thread.start()
    try:
        steps = 0
        for _ in range(1000):
            steps += attempt(steps + 1)
            if steps == 20:
                break
    finally:
        stop.set()
        thread.join()
    for t in range(1, steps + 1):
        if name == "adam":
            adaptk.ops.adam(*alone.values(), step=t)
        elif name == "optimizer":
            reference.step([alone["grad"]])
    assert steps > 0
    assert_same(buffers, alone)
    # An empty list has the norm 0.
    assert set(norms) <= {adaptk.global_norm([alone["grad"]]), 0.0}


class Watched(np.ndarray):
    """An array that a weak reference can watch."""


class Clears:
    """A buffer whose export empties lists and looks whether the other buffers of the call are still there."""

    def __init__(self, array: Any, lists: list[list[Any]], watched: list[weakref.ref[Any]]) -> None:
        self.array, self.lists, self.watched = array, lists, watched
        self.alive: list[bool] = []

    def __dlpack__(self, **options: Any) -> Any:
        for x in self.lists:
            x.clear()
        self.alive = [w() is not None for w in self.watched]
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def watched_arrays() -> tuple[list[Any], list[weakref.ref[Any]]]:
    arrays = [np.ones(4, np.float32).view(Watched) for _ in range(3)]
    return arrays, [weakref.ref(a) for a in arrays]


def test_lists_emptied_while_they_are_read() -> None:
    params, watched = watched_arrays()
    grads, more = watched_arrays()
    clears = Clears(np.ones(4, np.float32), [params, grads], watched + more)
    del watched[1], more[1]
    clears.watched = watched + more
    grads[1] = clears
    adaptk.ops.sgd(params, grads, step=1)
    assert clears.alive == [True] * 4
    assert (params, grads) == ([], [])


def test_norm_of_a_list_emptied_while_it_is_read() -> None:
    grads, watched = watched_arrays()
    grads.pop()
    watched.pop()
    clears = Clears(np.ones(4, np.float32), [grads], watched)
    grads.append(clears)
    assert adaptk.global_norm(grads) == np.sqrt(12.0)
    assert clears.alive == [True, True]


EMPTIED_BY_A_SCHEDULE = """
import adaptk, numpy as np
params = [np.ones(3) for _ in range(50)]
grads = [np.ones(3) for _ in range(50)]
def schedule(t):
    if ready:
        grads.clear()
    return 0.5
ready = []
opt = adaptk.SGD(params, lr=schedule)
ready.append(1)
try:
    opt.step(grads)
except (ValueError, RuntimeError):
    assert opt.step_count == 0 and all((p == 1.0).all() for p in params)
else:
    assert opt.step_count == 1 and all((p == 0.5).all() for p in params)
"""


def test_grads_emptied_by_a_schedule() -> None:
    # In a process of its own, since what could go wrong is a crash.
    done = subprocess.run([sys.executable, "-c", EMPTIED_BY_A_SCHEDULE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
