"""Sums of gradients in wider buffers, and the norm that comes with them."""

from __future__ import annotations

import itertools
import re
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import FLOATS, Array

SIZES = [5, 0, 8192, 70_001, 1, 300]


def numbers(n: int, seed: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng([seed, n]).standard_normal(n).astype(dtype)


def added(into: Array, grad: Array, scale: float) -> Array:
    t = into.dtype.type
    return into + t(scale) * grad.astype(t)


@pytest.mark.parametrize("grad", FLOATS)
@pytest.mark.parametrize("into", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, -0.3])
def test_sums_and_norm(into: Any, grad: str, scale: float, isa: str) -> None:
    sums, grads = [numbers(n, 0, into) for n in SIZES], [numbers(n, 1, FLOATS[grad]) for n in SIZES]
    want = [added(a, g, scale) for a, g in zip(sums, grads, strict=True)]
    without = [a.copy() for a in sums]
    held = [g.tobytes() for g in grads]
    norm = adaptk.accumulate(sums, grads, scale, norm=True)
    assert adaptk.accumulate(without, grads, scale) is None
    for a, b, c in zip(sums, without, want, strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes()
    assert norm == adaptk.global_norm(sums)
    assert held == [g.tobytes() for g in grads]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(threads: int) -> None:
    before = adaptk.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            adaptk.set_num_threads(n)
            sums = [numbers(size, 0) for size in SIZES]
            norm = adaptk.accumulate(sums, [numbers(size, 1, np.float16) for size in SIZES], norm=True)
            results.append([norm, *(a.tobytes() for a in sums)])
    finally:
        adaptk.set_num_threads(before)
    assert results[0] == results[1]


def test_one_buffer_and_memory_that_is_not_aligned() -> None:
    n = 20_000
    sums = np.zeros(4 * n + 1, np.uint8)[1:].view(np.float32)
    grad = np.zeros(2 * n + 1, np.uint8)[1:].view(np.float16)
    grad[:] = numbers(n, 1)
    want = added(np.zeros(n, np.float32), grad, 0.5)
    assert adaptk.accumulate(sums, grad, 0.5, norm=True) == adaptk.global_norm(want)
    np.testing.assert_array_equal(sums, want)
    assert adaptk.accumulate([], [], norm=True) == 0.0


def test_squares_out_of_range() -> None:
    """They are added once, although they are squared twice."""
    for size in (1e200, 1e-200):
        sums = np.full(3, size)
        norm = adaptk.accumulate(sums, np.full(3, size), norm=True)
        np.testing.assert_array_equal(sums, np.full(3, 2 * size))
        assert norm == adaptk.global_norm(sums)
        assert norm == pytest.approx(2 * size * np.sqrt(3))


# ---- the step that uses the sums


def params() -> list[Array]:
    return [numbers(n, 2) for n in SIZES]


@pytest.mark.parametrize("rule", ["SGD", "Adam", "AdaDelta"])
@pytest.mark.parametrize("clip", [0.5, 1e9])
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_clipping_by_a_known_norm(rule: str, clip: float, scale: float) -> None:
    """The bits of a step that computes the norm itself."""
    found, wanted = params(), params()
    opt, other = (getattr(adaptk, rule)(p, lr=0.1, grad_scale=0.75) for p in (found, wanted))
    sums = [np.zeros(n, np.float32) for n in SIZES]
    for step in range(3):
        grads = [numbers(n, 3 + step, np.float16) for n in SIZES]
        norm = adaptk.accumulate(sums, grads, norm=True)
        same = [a.copy() for a in sums]
        info = opt.step(sums, clip_norm=clip, grad_scale=scale, grad_norm=norm, zero_grad=True)
        assert info == other.step(same, clip_norm=clip, grad_scale=scale)
        assert info.grad_norm is not None
        for p, q in itertools.zip_longest(found, wanted):
            assert p.tobytes() == q.tobytes()
        assert not any(a.any() for a in sums)


def test_the_gradients_are_not_read_for_the_norm() -> None:
    w = np.zeros(2)
    opt = adaptk.SGD([w], lr=1.0)
    assert opt.step([np.array([3.0, 4.0])], clip_norm=1.0, grad_norm=10.0) == (10.0, False)
    np.testing.assert_array_equal(w, -np.array([3.0, 4.0]) * (1.0 / 10.0))


@pytest.mark.parametrize("norm", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_skips(norm: float) -> None:
    w, grad = np.ones(3), np.ones(3)
    opt = adaptk.SGD([w], skip_nonfinite=True)
    assert opt.step([grad], grad_norm=norm, zero_grad=True).skipped
    assert (w == 1).all()
    assert not grad.any()
    assert not opt.step([np.ones(3)], grad_norm=1.0).skipped


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        ("x", TypeError, "grad_norm: expected a number or None"),
        (-1.0, ValueError, r"grad_norm: -1.0 is not in \[0, inf\]"),
    ],
)
def test_wrong_norms(norm: Any, error: type[Exception], message: str) -> None:
    w = np.ones(3)
    with pytest.raises(error, match=message):
        adaptk.SGD([w]).step([w.copy()], clip_norm=1.0, grad_norm=norm)
    assert (w == 1).all()


def test_groups_whose_scales_differ() -> None:
    w = [np.ones(2), np.ones(2)]
    opt = adaptk.SGD([{"params": w[:1]}, {"params": w[1:], "grad_scale": 2.0}])
    with pytest.raises(ValueError, match="grad_norm: the groups have different grad_scale"):
        opt.step([np.ones(2), np.ones(2)], clip_norm=1.0, grad_norm=2.0)
    assert all((x == 1).all() for x in w)
    opt.step([np.ones(2), np.ones(2)], clip_norm=1.0)


# ---- errors: nothing is written


def frozen() -> Array:
    x = np.ones(4, np.float32)
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("into", "grads", "error", "message"),
    [
        (np.ones(4, np.float16), np.ones(4, np.float16), TypeError, "into: dtype float16, expected float32 or float64"),
        (np.ones(4, np.int32), np.ones(4, np.float32), TypeError, "into: dtype int32"),
        (np.ones(4, np.float32), np.ones(4, np.int32), TypeError, "grads: dtype int32"),
        (np.ones(4, np.float32), np.ones(3, np.float32), ValueError, r"grads: shape \(3,\)"),
        (np.ones(8, np.float32)[::2], np.ones(4, np.float32), ValueError, "into: not contiguous"),
        (frozen(), np.ones(4, np.float32), ValueError, "into: read-only"),
        ([np.ones(4, np.float32)], np.ones(4, np.float32), TypeError, "grads: expected a list or tuple like into"),
        (np.ones(4, np.float32), [np.ones(4, np.float32)], TypeError, "grads: expected a buffer like into"),
        ([np.ones(4, np.float32)], [], ValueError, "grads: 0 buffers, expected 1 as in into"),
        (["x"], [np.ones(4, np.float32)], TypeError, re.escape("into[0]")),
    ],
)
def test_wrong_buffers(into: Any, grads: Any, error: type[Exception], message: str) -> None:
    for norm in (False, True):
        with pytest.raises(error, match=message):
            adaptk.accumulate(into, grads, norm=norm)
    if isinstance(into, np.ndarray):
        assert (into == 1).all()


def test_overlap() -> None:
    x = np.ones(6, np.float32)
    for norm in (False, True):
        with pytest.raises(ValueError, match="grads and into overlap"):
            adaptk.accumulate(x, x, norm=norm)
        with pytest.raises(ValueError, match=r"into\[[01]\] and into\[[01]\] overlap"):
            adaptk.accumulate([x[:4], x[2:]], [np.ones(4, np.float32)] * 2, norm=norm)
        with pytest.raises(ValueError, match=r"grads\[1\] and into\[0\] overlap"):
            adaptk.accumulate([x[:3], np.ones(3, np.float32)], [np.ones(3, np.float32), x[1:4]], norm=norm)
    assert (x == 1).all()


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [("x", TypeError, "scale: expected a number"), (float("inf"), ValueError, r"scale: inf is not in \(-inf, inf\)")],
)
def test_wrong_scales(scale: Any, error: type[Exception], message: str) -> None:
    x = np.ones(2, np.float32)
    with pytest.raises(error, match=message):
        adaptk.accumulate(x, np.ones(2, np.float32), scale)
    assert (x == 1).all()
