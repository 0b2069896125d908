"""Shapes, orders of axes, strides and offsets of buffers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import adaptk
import numpy as np
import pytest
from buffer_cases import (
    check,
    no_exports,  # noqa: F401
)
from helpers import (
    PAIRS,
    RULES,
    Producer,
    aligned_to,
    arguments,
    assert_same,
    call,
    copies,
    dtype_of,
    make,
    make_list,
    margins,
    mentions,
    refused,
    same_bits,
)
from numpy.lib.stride_tricks import as_strided


@pytest.mark.parametrize("rule", RULES)
def test_no_axes(rule: str) -> None:
    for param, grad in PAIRS:
        check(rule, make(rule, (), param, grad))
        buffers = make_list(rule, [3, 2], param, grad)
        for name, b in make(rule, (), param, grad).items():
            buffers[name].insert(1, b)
        check(rule, buffers)


@pytest.mark.parametrize("rule", RULES)
def test_no_elements(rule: str) -> None:
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 4)):
        for param, grad in PAIRS:
            check(rule, make(rule, shape, param, grad))
    for sizes in ([0], [0, 0, 0], [0, 4, 0, 0, 3, 0], [5, 0], [0, 5]):
        for param, grad in PAIRS:
            check(rule, make_list(rule, sizes, param, grad))


def test_no_elements_of_one_array() -> None:
    room = np.ones((4, 3), np.float32)
    empty = room[2:2]
    adaptk.ops.adam(empty, empty, empty, empty, step=1)
    adaptk.ops.adam([empty] * 2, [empty] * 2, [empty] * 2, [empty] * 2, step=1)
    assert same_bits(room, np.ones((4, 3), np.float32))


def permuted(a: Any, axes: Sequence[int]) -> Any:
    """The same array with a different order of the axes in memory."""
    return np.ascontiguousarray(a.transpose(axes)).transpose(np.argsort(axes))


@pytest.mark.parametrize("rule", RULES)
def test_orders_of_axes(rule: str) -> None:
    for shape in ((3, 4), (2, 3, 4), (2, 1, 3, 2)):
        for axes in itertools.permutations(range(len(shape))):
            for param, grad in (("float32", "float32"), ("float32", "float16"), ("float64", "float32")):
                buffers = {name: permuted(b, axes) for name, b in make(rule, shape, param, grad).items()}
                check(rule, buffers)


def test_orders_of_axes_may_differ_within_a_list() -> None:
    shape = (2, 3, 4)
    orders = list(itertools.permutations(range(3)))
    buffers: dict[str, list[Any]] = {name: [] for name in arguments("adam")}
    for i, axes in enumerate(orders):
        for name, b in make("adam", shape, seed=i).items():
            buffers[name].append(permuted(b, axes))
    check("adam", buffers)


def test_dense_slices() -> None:
    for cut in (np.s_[1:3], np.s_[2:], np.s_[1:2, :, :], np.s_[3], np.s_[2, 1:]):
        check("adam", {name: b[cut] for name, b in make("adam", (4, 3, 5)).items()})


def test_axes_of_size_one_may_have_any_stride() -> None:
    odd = [4, 0, -4, 12345, 1 << 40]
    for i, (name, _) in itertools.product(range(len(odd)), make("adam").items()):
        buffers = make("adam", (1, 5))
        buffers[name] = as_strided(buffers[name], (1, 5), (odd[i], 4))
        check("adam", buffers)
    turned = {name: as_strided(b, (3, 1, 4), (4, 77 * i, 12)) for i, (name, b) in enumerate(make("adam", 12).items())}
    check("adam", turned)
    producers = {
        name: Producer(b, shape=(3, 1, 4, 1), strides=(1, 77 * i, 3, -i))
        for i, (name, b) in enumerate(make("adam", 12).items())
    }
    arrays, wanted = {name: p.array for name, p in producers.items()}, make("adam", 12)
    call("adam", producers)
    call("adam", wanted)
    assert_same(arrays, wanted)


# Where the bytes are


@pytest.mark.parametrize(("param", "grad"), PAIRS)
def test_every_offset(param: str, grad: str, isa: str) -> None:
    for offset in range(1, 64):
        for rule, n in (("sgd", 1), ("sgd", 37), ("adam", 37), ("adam", 1100)):
            wanted = make(rule, n, param, grad)
            buffers = {}
            for i, (name, b) in enumerate(wanted.items()):
                buffers[name] = aligned_to((offset + 5 * i) % 64 or 1, n, b.dtype)
                buffers[name][...] = b
            around = [margins(b) for b in buffers.values()]
            call(rule, buffers)
            call(rule, wanted)
            assert_same(buffers, wanted)
            assert [margins(b) for b in buffers.values()] == around


@pytest.mark.parametrize("rule", RULES)
def test_rules_at_odd_addresses(rule: str) -> None:
    for offset, (param, grad) in itertools.product((1, 2, 4), PAIRS):
        wanted = make(rule, (3, 19), param, grad)
        buffers = {name: aligned_to(offset, b.shape, b.dtype) for name, b in wanted.items()}
        for name, b in buffers.items():
            b[...] = wanted[name]
        lists = {name: [b] for name, b in buffers.items()}
        for t in (1, 2, 3):
            call(rule, buffers if t % 2 else lists, step=t)
            call(rule, wanted, step=t)
        assert_same(buffers, wanted)


@pytest.mark.parametrize("param", ["float32", "float64", "float16"])
def test_odd_addresses_on_several_threads(param: str, threads: int) -> None:
    wanted = make_list("adam", [70_001, 3, 4096], param)
    buffers: dict[str, list[Any]] = {name: [] for name in wanted}
    for i, (name, arrays) in enumerate(wanted.items()):
        for a in arrays:
            buffers[name].append(aligned_to(2 * i + 1, a.shape, a.dtype))
            buffers[name][-1][...] = a
    call("adam", buffers)
    call("adam", wanted)
    assert_same(buffers, wanted)


def test_one_odd_address_among_aligned_ones() -> None:
    for odd in arguments("adam"):
        wanted = make("adam", 2100)
        buffers = copies(wanted)
        buffers[odd] = aligned_to(3, 2100, np.float32)
        buffers[odd][...] = wanted[odd]
        call("adam", buffers)
        call("adam", wanted)
        assert_same(buffers, wanted)


def test_helpers() -> None:
    assert mentions("exp_avg: x", "exp_avg")
    assert not mentions("exp_avg_sq: x", "exp_avg")
    assert not mentions("grad[10]: x", "grad[1]")
    assert not mentions("grad[1]: x", "grad")
    assert dtype_of("exp_avg", "float16") == np.float32
    assert not same_bits(np.float32(0.0), np.float32(-0.0))
    a = np.zeros(8, np.float32)

    def change_and_fail() -> None:
        a[7] = -0.0
        raise ValueError

    with pytest.raises(AssertionError, match="changed"), refused(ValueError, unchanged=[a[2:4]]):
        change_and_fail()
