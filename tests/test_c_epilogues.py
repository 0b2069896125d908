"""Epilogues and sums of gradients in C: the bits of the functions and the objects in Python."""

from __future__ import annotations

from ctypes import byref, c_double, c_size_t
from typing import Any

import adaptk
import c_abi
import numpy as np
import pytest
from c_abi import INVALID_ARGUMENT, INVALID_TYPE, OK, CError, Options, Plan, lib

SIZES = (1, 130, 0, 70_001)


def arrays(seed: int, dtype: Any = np.float32, sizes: Any = SIZES) -> list[np.ndarray]:
    return [np.random.default_rng([seed, n]).standard_normal(n).astype(dtype) for n in sizes]


def beside(halves: Any, means: Any, **values: Any) -> Any:
    return c_abi.options(
        copy_out=None if halves is None else c_abi.tensors(halves),
        ema=None if means is None else c_abi.tensors(means),
        **values,
    )


def same(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.tobytes() == y.tobytes()


def zeros(dtype: Any = np.float32) -> list[np.ndarray]:
    return [np.zeros(n, dtype) for n in SIZES]


def test_steps() -> None:
    p, q, g, h = arrays(0), arrays(0), arrays(1), arrays(1)
    m, v, n, w = zeros(), zeros(), zeros(), zeros()
    halves, copied, means, a = zeros(np.float16), zeros(np.float16), arrays(3), arrays(3)
    states = [s for pair in zip(m, v, strict=True) for s in pair]
    given = beside(halves, means, ema_decay=0.75, zero_grad=1)
    c_abi.step("adam", p, g, states, 1, {"lr": 0.1}, given)
    adaptk.ops.adam(q, h, n, w, step=1, lr=0.1, zero_grad=True, copy_out=copied, ema=(a, 0.75))
    for x, y in ((p, q), (g, h), (m, n), (v, w), (halves, copied), (means, a)):
        same(x, y)
    assert not any(x.any() for x in g)


def test_plans() -> None:
    """A NULL leaves a param out; params without a gradient are copied and averaged."""
    p, q = arrays(0), arrays(0)
    halves, copied, means, a = zeros(np.float16), zeros(np.float16), arrays(3), arrays(3)
    halves[1] = copied[1] = None
    plan, opt = Plan("sgd", p, [], lr=0.5), adaptk.SGD(q, lr=0.5)
    for step in range(2):
        g, h = arrays(1 + step), arrays(1 + step)
        g[3] = h[3] = None
        plan.step(g, beside(halves, means, ema_decay=0.75, zero_grad=1))
        opt.step(h, zero_grad=True, copy_out=copied, ema=(a, 0.75))
        same(p, q)
        same(means, a)
        same([x for x in halves if x is not None], [x for x in copied if x is not None])
        assert not any(x is not None and x.any() for x in g)
    assert not np.array_equal(halves[3], np.zeros(SIZES[3], np.float16))
    plan.step([None] * 4, beside(None, means, ema_decay=0.75))
    with pytest.warns(UserWarning, match="None"):
        opt.step([None] * 4, ema=(a, 0.75))
    same(means, a)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("grad", [np.float16, np.float32])
def test_accumulated_gradients(dtype: Any, grad: Any) -> None:
    p, q = arrays(0, dtype), arrays(0, dtype)
    into, sums = zeros(dtype), zeros(dtype)
    plan, opt = Plan("sgd", p, [], lr=0.5), adaptk.SGD(q, lr=0.5)
    norm = c_double()
    for step in range(3):
        g = arrays(step + 1, grad)
        args = (c_size_t(4), c_abi.tensors(into), c_abi.tensors(g), c_double(0.3), None)
        assert lib.adaptk_accumulate(*args, byref(norm) if step != 1 else None) == OK
        wanted = adaptk.accumulate(sums, g, 0.3, norm=True)
        assert step == 1 or norm.value == wanted
    same(into, sums)
    plan.step(into, c_abi.options(clip_norm=0.1, grad_norm=norm.value, zero_grad=1))
    opt.step(sums, clip_norm=0.1)
    same(p, q)
    assert plan.report().grad_norm == norm.value
    assert not any(x.any() for x in into)


def test_structs_of_older_programs() -> None:
    """They end before these members: nothing is zeroed, and no norm is known."""
    p, g = [np.ones(3, np.float32)], [np.full(3, 2, np.float32)]
    old = Options(size=Options.copy_out.offset, grad_scale=1.0, zero_grad=1, grad_norm=100.0, clip_norm=1.0)
    c_abi.step("sgd", p, g, [], 1, {"lr": 1.0}, byref(old))
    assert (g[0] == 2).all()
    want = np.ones(3, np.float32)
    adaptk.SGD([want], lr=1.0).step(g, clip_norm=1.0)
    same(p, [want])
    for end in ("ema", "ema_decay", "grad_norm", "zero_grad"):
        part = Options(size=getattr(Options, end).offset, grad_scale=1.0, grad_norm=-1.0, zero_grad=1)
        c_abi.step("sgd", p, g, [], 1, {}, byref(part))
        assert (g[0] == 2).all()


@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (lambda p, g: beside([np.zeros(2, np.float32)], None), INVALID_ARGUMENT, "options.copy_out[0]: shape (2,)"),
        (lambda p, g: beside([np.zeros(3)], None), INVALID_TYPE, "options.copy_out[0]: dtype float64"),
        (lambda p, g: beside(None, [p]), INVALID_ARGUMENT, "overlap"),
        (lambda p, g: beside([g], None), INVALID_ARGUMENT, "options.copy_out[0]"),
        (lambda p, g: beside([g], None, zero_grad=1), INVALID_ARGUMENT, "overlap"),
        (lambda p, g: c_abi.options(ema_decay=1.5), INVALID_ARGUMENT, "options: ema_decay: 1.5"),
        (lambda p, g: c_abi.options(ema_decay=float("nan")), INVALID_ARGUMENT, "options: ema_decay"),
    ],
)
def test_errors(make: Any, status: int, message: str) -> None:
    p, g = np.ones(3, np.float32), np.ones(3, np.float32)
    plan = Plan("sgd", [p], [])
    for call in (lambda o: c_abi.step("sgd", [p], [g], [], 1, {}, o), lambda o: plan.step([g], o)):
        with pytest.raises(CError) as error:
            call(make(p, g))
        assert error.value.status == status
        assert message in str(error.value)
    assert (p == 1).all()
    assert (g == 1).all()


def test_shared_gradients_and_different_scales() -> None:
    p, shared = arrays(0, sizes=(4, 4)), np.ones(6, np.float32)
    grads = [shared[:4], shared[2:]]
    with pytest.raises(CError, match=r"grads\[[01]\] and grads\[[01]\] overlap"):
        c_abi.step("sgd", p, grads, [], 1, {}, c_abi.options(zero_grad=1))
    plan = Plan("sgd", p[:1], [])
    plan.add_group("sgd", p[1:], [], grad_scale=2.0)
    with pytest.raises(CError, match="grad_norm: the groups have different grad_scale"):
        plan.step(grads, c_abi.options(clip_norm=1.0, grad_norm=1.0))


def test_wrong_sums() -> None:
    one, norm = c_size_t(1), c_double(7.0)
    a, g = np.ones(3, np.float32), np.ones(3, np.float32)

    def call(into: Any, grads: Any, scale: float = 1.0) -> None:
        given = (None if x is None else c_abi.tensors([x]) for x in (into, grads))
        c_abi.check(lib.adaptk_accumulate(one, *given, c_double(scale), None, byref(norm)))

    frozen = np.ones((3, 2), np.float32)[:, 0]
    for into, grads, scale, message in [
        (None, g, 1.0, "into: NULL"),
        (a, None, 1.0, "grads: NULL"),
        (a, g, float("inf"), "scale: inf is not in"),
        (np.ones(3, np.float16), g, 1.0, r"into\[0\]: dtype float16, expected float32 or float64"),
        (frozen, g, 1.0, r"into\[0\]: not contiguous"),
        (a, g[:2], 1.0, r"grads\[0\]: shape"),
        (a, a, 1.0, r"grads\[0\] and into\[0\] overlap"),
    ]:
        with pytest.raises(CError, match=message):
            call(into, grads, scale)
    assert lib.adaptk_accumulate(c_size_t(0), None, None, c_double(1), None, None) == INVALID_ARGUMENT
    assert norm.value == 7.0
    assert (a == 1).all()
