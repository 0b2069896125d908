"""Errors of lists, and memory that overlaps; no buffer has changed."""

from __future__ import annotations

import itertools
from typing import Any

import adaptk
import numpy as np
import pytest
from error_cases import (
    ARGUMENTS,
    SIZES,
    in_list,
    replaced,
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


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_lengths_differ(rule: str, argument: str, kind: type[Any]) -> None:
    # The param sets the length, and the grad is the first that differs.
    named = "grad" if argument == "param" else argument
    for change in (lambda b: b[:-1], lambda b: [*b, b[-1].copy()], lambda b: []):
        buffers = make_list(rule, SIZES)
        wrong = {name: kind(change(b)) if name == argument else kind(b) for name, b in buffers.items()}
        with refused(ValueError, "param" if not wrong["param"] else named, unchanged=list(buffers.values())):
            call(rule, wrong)


@pytest.mark.parametrize("rule", THREE_RULES)
def test_empty_lists(rule: str) -> None:
    for kind in (list, tuple):
        with refused(ValueError, "param"):
            call(rule, {name: kind() for name in arguments(rule)})


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_a_list_for_one_argument_only(rule: str, argument: str, kind: type[Any]) -> None:
    buffers = make(rule)
    # If only the param is a list, the grad is the first that is not.
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
@pytest.mark.parametrize("rule", THREE_RULES)
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


@pytest.mark.parametrize("rule", THREE_RULES)
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


def test_overlapping_grads_are_accepted() -> None:
    room = np.arange(12, dtype=np.float32)
    params = [np.ones(8, np.float32), np.ones(8, np.float32), np.ones(12, np.float32)]
    grads = [room[:8], room[4:], room]
    adaptk.ops.sgd(params, grads, step=1, lr=0.5)
    for p, g in zip(params, grads, strict=True):
        assert same_bits(p, np.float32(1) - np.float32(0.5) * g)


@pytest.mark.parametrize("rule", RULES)
def test_adjacent_memory_is_accepted(rule: str) -> None:
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
