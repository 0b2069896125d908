"""Operations fused into a step: zeroing gradients, copies, averages. They have the bits of separate operations."""

from __future__ import annotations

import re
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import FLOATS, PAIRS, RULES, SOME_PAIRS, THREE_RULES, Array, arguments, call, copies, make, make_list

SIZE = 2 * 4096 + 3 * 256 + 77  # several blocks of the direct path, tiles, and a remainder


def lerp(a: Array, p: Array, decay: float) -> Array:
    """As documented, in the precision that a step of `p` computes in, rounded to the average's own type."""
    compute = np.float64 if p.dtype == np.float64 else np.float32
    x, y = a.astype(compute), p.astype(compute)
    w = compute(1.0 - decay)
    new = x + w * (y - x) if w < 0.5 else y - (y - x) * (compute(1) - w)
    return new.astype(a.dtype)


def narrow(p: Array, dtype: Any) -> Array:
    """A copy rounded to nearest."""
    return p.astype(np.float32).astype(dtype) if p.dtype != np.float64 else p.astype(dtype)


def equal(a: Any, b: Any) -> None:
    for x, y in zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]:
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


def numbers(n: int, seed: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(n).astype(dtype)


def check_all(rule: str, size: int, param: str, grad: str, copy: str, average: str, decay: float = 0.99) -> None:
    got = make(rule, size, param, grad)
    want = copies(got)
    copied, a = np.zeros(size, FLOATS[copy]), numbers(size, 7, FLOATS[average])
    before = a.copy()
    call(rule, got, zero_grad=True, copy_out=copied, ema=(a, decay))
    call(rule, want)
    grads = got.pop("grad")
    want.pop("grad")
    for name in want:
        equal(got[name], want[name])
    assert grads.tobytes() == bytes(grads.nbytes)
    equal(copied, narrow(want["param"], FLOATS[copy]))
    equal(a, lerp(before, want["param"], decay))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, isa: str) -> None:
    check_all(rule, SIZE, "float32", "float32", "float16", "float32")


@pytest.mark.parametrize("rule", THREE_RULES)
@pytest.mark.parametrize(("param", "grad"), PAIRS)
def test_every_pair_of_types(rule: str, param: str, grad: str) -> None:
    others = ["float64"] if param == "float64" else [name for name in FLOATS if name != "float64"]
    for beside in others:
        check_all(rule, 600, param, grad, beside, beside)


@pytest.mark.parametrize("rule", [r for r in RULES if r not in THREE_RULES])
@pytest.mark.parametrize(("param", "grad"), SOME_PAIRS)
def test_a_pair_of_every_rule(rule: str, param: str, grad: str) -> None:
    wide = "float64" if param == "float64" else "float32"
    check_all(rule, 600, param, grad, wide, wide)


@pytest.mark.parametrize("size", [0, 1, 3, 255, 256, 257, 4095, 4096, 4097, 8193])
@pytest.mark.parametrize("param", ["float32", "float64"])
def test_sizes(size: int, param: str) -> None:
    check_all("adam", size, param, param, param, param)


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.5, np.nextafter(0.5, 1), 0.9, 0.9999, 1.0])
@pytest.mark.parametrize("param", ["float32", "float64"])
def test_decays(decay: float, param: str, isa: str) -> None:
    check_all("sgd", 300, param, param, param, param, decay)


def test_an_average_equal_to_its_param_stays() -> None:
    w = numbers(1000, 0)
    for decay in (0.1, 0.5, 0.9, 0.9999):
        a = w.copy()
        adaptk.ops.sgd(w, np.zeros_like(w), step=1, ema=(a, decay))
        equal(a, w)
    a = numbers(1000, 1)
    adaptk.ops.sgd(w, np.zeros_like(w), step=1, ema=(a, 0.0))
    equal(a, w)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("copy", ["bfloat16", "float32"])
def test_copies_of_large_steps(copy: str, threads: int) -> None:
    """From 2M elements on copies are written with non-temporal stores of 16 bytes, if they are aligned."""
    size, edge = 2**21 + 77, 16
    before = adaptk.get_num_threads()
    p, g = numbers(size, 1), numbers(size, 2)
    want = p.copy()
    adaptk.ops.sgd(want, g, step=1, lr=0.5)
    try:
        adaptk.set_num_threads(threads)
        for first in (0, 1):
            whole = np.full(size + 2 * edge, 7.0, FLOATS[copy])
            got, copied = p.copy(), whole[edge + first :][:size]
            adaptk.ops.sgd(got, g, step=1, lr=0.5, copy_out=copied)
            equal(got, want)
            equal(copied, narrow(want, FLOATS[copy]))
            for beside in (whole[: edge + first], whole[edge + first + size :]):
                equal(beside, np.full(beside.size, 7.0, FLOATS[copy]))
    finally:
        adaptk.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_lists(threads: int) -> None:
    sizes = [100_003, 0, 1, 70_000, 513]
    results = []
    before = adaptk.get_num_threads()
    try:
        for n in (1, threads):
            adaptk.set_num_threads(n)
            got = make_list("adam", sizes)
            copied = [np.zeros(s, np.float16) for s in sizes]
            a = [numbers(s, s) for s in sizes]
            call("adam", got, zero_grad=True, copy_out=copied, ema=(a, 0.9))
            results.append([*got["param"], *got["grad"], *copied, *a])
    finally:
        adaptk.set_num_threads(before)
    equal(*results)
    assert not any(g.any() for g in got["grad"])


def test_thousands_of_tensors() -> None:
    sizes = [i % 9 for i in range(3000)]
    got = make_list("rmsprop", sizes)
    want = copies(got)
    a = [numbers(s, s) for s in sizes]
    averages = [x.copy() for x in a]
    for step in (1, 2):
        for g in got["grad"]:
            g[:] = step
        for g in want["grad"]:
            g[:] = step
        call("rmsprop", got, step=step, zero_grad=True, ema=(a, 0.9))
        call("rmsprop", want, step=step)
        averages = [lerp(x, p, 0.9) for x, p in zip(averages, want["param"], strict=True)]
    equal(got["param"], want["param"])
    equal(a, averages)
    assert not any(g.any() for g in got["grad"])


def odd(n: int, dtype: Any, values: Array) -> Array:
    """Memory that is not aligned to the item size."""
    at = np.zeros(n * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype)
    at[:] = values
    return at


def test_unaligned_memory() -> None:
    n = 1000
    grad, a = numbers(n, 1), numbers(n, 2)
    want, plain = numbers(n, 0), a.copy()
    p, g, moved = odd(n, np.float32, want), odd(n, np.float32, grad), odd(n, np.float32, a)
    half = odd(n, np.float16, np.zeros(n))
    adaptk.ops.sgd(p, g, step=1, zero_grad=True, copy_out=half, ema=(moved, 0.75))
    adaptk.ops.sgd(want, grad, step=1)
    equal(p, want)
    equal(half, want.astype(np.float16))
    equal(moved, lerp(plain, want, 0.75))
    assert not g.any()


@pytest.mark.parametrize("name", ["int8", "uint8", "bfloat16_sr"])
def test_coded_states(name: str) -> None:
    w, grad = numbers(1000, 0), numbers(1000, 1)
    want, a, half = w.copy(), numbers(1000, 2), np.zeros(1000, np.float16)
    before = a.copy()
    m = [formats.quantize(np.zeros(1000, np.float32), name) for _ in range(2)]
    v = [formats.quantize(np.zeros(1000, np.float32), name) for _ in range(2)]
    adaptk.ops.adam(want, grad, m[0], v[0], step=1, seed=3)
    adaptk.ops.adam(w, grad, m[1], v[1], step=1, seed=3, zero_grad=True, copy_out=half, ema=(a, 0.9))
    equal(w, want)
    equal(np.asarray(m[1].data), np.asarray(m[0].data))
    equal(half, want.astype(np.float16))
    equal(a, lerp(before, want, 0.9))
    assert not grad.any()


@pytest.mark.skipif("bfloat16" not in FLOATS, reason="NumPy's bfloat16 is in ml_dtypes")
def test_the_average_uses_the_stored_param() -> None:
    """A param in bfloat16 is rounded first, also stochastically."""
    grad = numbers(1000, 1)
    w, want = (numbers(1000, 0, FLOATS["bfloat16"]) for _ in range(2))
    a = numbers(1000, 2)
    before, copied = a.copy(), np.zeros(1000, np.float32)
    options: dict[str, Any] = {"step": 1, "seed": 5, "param_format": "sr"}
    adaptk.ops.sgd(w, grad, zero_grad=True, copy_out=copied, ema=(a, 0.9), **options)
    adaptk.ops.sgd(want, numbers(1000, 1), **options)
    equal(w, want)
    equal(copied, want.astype(np.float32))
    equal(a, lerp(before, want, 0.9))


@pytest.mark.skipif("bfloat16" not in FLOATS, reason="NumPy's bfloat16 is in ml_dtypes")
def test_averages_include_remainders(isa: str) -> None:
    """Their value is the float32 sum of both parts."""
    parts = [(numbers(SIZE, 0, FLOATS["bfloat16"]), np.zeros(SIZE, np.int16)) for _ in range(2)]
    options: dict[str, Any] = {"step": 1, "lr": 1e-3, "param_format": "remainder16"}
    grad, a, copied = numbers(SIZE, 1), numbers(SIZE, 2), np.zeros(SIZE, np.float32)
    before = a.copy()
    adaptk.ops.sgd(parts[1], grad, **options)
    adaptk.ops.sgd(parts[0], grad, zero_grad=True, copy_out=copied, ema=(a, 0.9), **options)
    equal(list(parts[0]), list(parts[1]))
    upper, lower = parts[1][0].view(np.uint16).astype(np.uint32) << 16, parts[1][1].astype(np.uint32)
    value = (upper + lower).view(np.float32)
    equal(copied, value)
    equal(a, lerp(before, value, 0.9))
    assert lower.any()
    assert not grad.any()


def test_a_rule_from_a_function(isa: str) -> None:
    @adaptk.rule(lr=0.1, beta=0.9, states={"m": 0.0})
    def heavy_ball(p: Any, g: Any, m: Any, h: Any, t: Any) -> Any:
        m = h.beta * m + g
        return p - h.lr * m, m

    try:
        w, same, grad = numbers(SIZE, 0), numbers(SIZE, 0), numbers(SIZE, 1)
        m, n = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
        a, half = numbers(SIZE, 2), np.zeros(SIZE, np.float16)
        before = a.copy()
        heavy_ball(same, grad, n, step=1)
        heavy_ball(w, grad, m, step=1, zero_grad=True, copy_out=half, ema=(a, 0.9))
        equal([w, m], [same, n])
        equal(half, same.astype(np.float16))
        equal(a, lerp(before, same, 0.9))
        assert not grad.any()
    finally:
        heavy_ball.unregister()


# ---- objects


def groups(dtype: Any = np.float32) -> tuple[list[Array], list[Array]]:
    sizes = [5, 300, 70_000]
    return [numbers(s, s, dtype) for s in sizes], [numbers(s, s + 1, dtype) for s in sizes]


@pytest.mark.parametrize("clip", [None, 1.0])
def test_objects(clip: float | None) -> None:
    params, grads = groups()
    wanted, same = groups()
    opt, other = (
        adaptk.AdamW([{"params": p[:1]}, {"params": p[1:], "lr": 0.1}], clip_norm=clip) for p in (params, wanted)
    )
    copied = [np.zeros(p.size, np.float16) for p in params]
    a = [numbers(p.size, 3) for p in params]
    averages = [x.copy() for x in a]
    for k in range(3):
        for g, s in zip(grads, same, strict=True):
            g[:] = s[:] = numbers(g.size, 10 + k)
        info = opt.step(grads, zero_grad=True, copy_out=copied, ema=(a, 0.9))
        assert info == other.step(same)
        assert not any(g.any() for g in grads)
        averages = [lerp(x, p, 0.9) for x, p in zip(averages, wanted, strict=True)]
    equal(params, wanted)
    equal(copied, [p.astype(np.float16) for p in wanted])
    equal(a, averages)


def test_names_and_params_without_a_gradient() -> None:
    """Averages and copies include all params; those without a gradient are not stepped."""
    w = {"a": np.ones(3, np.float32), "b": np.full(2, 2, np.float32)}
    opt = adaptk.SGD(w, lr=1.0)
    a = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}
    half = {"b": np.zeros(2, np.float16), "a": None}
    opt.step({"b": None, "a": np.ones(3, np.float32)}, ema=(a, 0.75), copy_out=half)
    equal(a["a"], np.zeros(3, np.float32))
    equal(a["b"], np.full(2, 0.5, np.float32))
    equal(half["b"], np.full(2, 2, np.float16))
    assert opt.state_dict()["state.b.step"] == 0
    with pytest.warns(UserWarning, match="all gradients are None"):
        opt.step({"b": None, "a": None}, ema=(a, 0.75))
    equal(a["b"], np.full(2, 0.875, np.float32))


def test_a_skipped_step_sets_gradients_to_zero_and_nothing_else() -> None:
    w, grad = np.ones(40_000, np.float32), np.ones(40_000, np.float32)
    grad[-1] = np.inf
    a, half = np.zeros_like(w), np.zeros(40_000, np.float16)
    opt = adaptk.SGD([w], skip_nonfinite=True)
    assert opt.step([grad], zero_grad=True, ema=([a], 0.5), copy_out=[half]).skipped
    assert (w == 1).all()
    assert not a.any()
    assert not half.any()
    assert not grad.any()
    assert opt.step_count == 0
    grad[-1] = np.nan
    assert opt.step([grad]).skipped
    assert np.isnan(grad[-1])


# ---- errors: nothing is written


def refused(error: type[Exception], message: str, **options: Any) -> None:
    """Refused by the function, for one tensor and in a list, and by an object."""
    w, grad = np.ones(4, np.float32), np.ones(4, np.float32)
    ready = {k: v(w, grad) if callable(v) else v for k, v in options.items()}
    with pytest.raises(error, match=message):
        adaptk.ops.sgd(w, grad, step=1, **ready)
    listed = dict(ready)
    if "copy_out" in listed:
        listed["copy_out"] = [listed["copy_out"]]
    if "ema" in listed and isinstance(listed["ema"], tuple) and len(listed["ema"]) == 2:
        listed["ema"] = ([listed["ema"][0]], listed["ema"][1])
    with pytest.raises(error, match=message):
        adaptk.ops.sgd([w], [grad], step=1, **listed)
    opt = adaptk.SGD([w])
    with pytest.raises(error, match=message):
        opt.step([grad], **listed)
    assert opt.step_count == 0
    assert (w == 1).all()
    assert (grad == 1).all()


def read_only(_w: Array, _g: Array) -> Array:
    x = np.zeros(4, np.float32)
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (np.zeros(3, np.float32), ValueError, r"shape \(3,\)"),
        (np.zeros(4, np.float64), TypeError, "dtype float64"),
        (np.zeros(4, np.int32), TypeError, "dtype int32"),
        (np.zeros(8, np.float32)[::2], ValueError, "strides"),
        (read_only, ValueError, "read-only"),
        ("text", TypeError, "str"),
        (lambda w, g: w, ValueError, "overlap"),
        (lambda w, g: g, ValueError, "overlap"),
        (lambda w, g: w.view(np.float16)[:4], ValueError, "overlap"),
    ],
)
def test_wrong_buffers(wrong: Any, error: type[Exception], message: str) -> None:
    refused(error, message, copy_out=wrong)
    refused(error, message, ema=((lambda w, g: (wrong(w, g), 0.5)) if callable(wrong) else (wrong, 0.5)))


@pytest.mark.parametrize(
    ("ema", "error", "message"),
    [
        (np.zeros(4, np.float32), TypeError, "ema: expected a pair"),
        ((np.zeros(4, np.float32),), TypeError, "ema: expected a pair .* a tuple of 1"),
        ((np.zeros(4, np.float32), "x"), TypeError, "ema: expected a number as the decay"),
        ((np.zeros(4, np.float32), 1.5), ValueError, r"ema: the decay 1.5 is not in \[0, 1\]"),
        ((np.zeros(4, np.float32), -0.1), ValueError, "ema: the decay"),
        ((np.zeros(4, np.float32), float("nan")), ValueError, "ema: the decay"),
    ],
)
def test_wrong_averages(ema: Any, error: type[Exception], message: str) -> None:
    refused(error, message, ema=ema)


def test_wrong_flags() -> None:
    refused(TypeError, "zero_grad: expected a bool, got int", zero_grad=1)


@pytest.mark.parametrize("one", [True, False])
def test_gradients_that_are_set_to_zero(one: bool) -> None:
    """Each must have its own writable memory."""
    w, grad = np.ones(4, np.float32), np.ones(4, np.float32)
    grad.flags.writeable = False
    listed = (lambda x: x) if one else (lambda x: [x])
    name = "grad" if one else re.escape("grad[0]")
    with pytest.raises(ValueError, match=f"{name}: read-only, but zero_grad=True"):
        adaptk.ops.sgd(listed(w), listed(grad), step=1, zero_grad=True)
    with pytest.raises(ValueError, match=re.escape("grads[0]: read-only, but zero_grad=True")):
        adaptk.SGD([w]).step([grad], zero_grad=True)
    assert (w == 1).all()
    adaptk.SGD([w], lr=1.0).step([grad])
    assert (w == 0).all()


def test_shared_gradients() -> None:
    w, shared = [np.ones(4, np.float32), np.ones(4, np.float32)], np.ones(6, np.float32)
    for grads in ([shared[:4], shared[:4]], [shared[:4], shared[2:]]):
        with pytest.raises(ValueError, match=r"grad\[[01]\] and grad\[[01]\] overlap"):
            adaptk.ops.sgd(w, grads, step=1, zero_grad=True)
        opt = adaptk.SGD(w, lr=1.0)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"grads\[[01]\] and grads\[[01]\] overlap"):
                opt.step(grads, zero_grad=True)
        assert all((x == 1).all() for x in w)
    assert (shared == 1).all()
    adaptk.ops.sgd(w, grads, step=1, lr=1.0)
    assert not any(x.any() for x in w)


def test_buffers_that_overlap_each_other() -> None:
    w, grads = [np.ones(4, np.float32) for _ in range(2)], [np.ones(4, np.float32) for _ in range(2)]
    a = np.zeros(4, np.float32)
    opt = adaptk.SGD(w, momentum=0.9)
    states = [opt.state[i]["momentum_buffer"] for i in range(2)]
    for copied, ema in (([a, a], None), (None, [a, a]), ([a, None], [None, a]), ([states[1], None], None)):
        for zero_grad in (False, True):
            for _ in range(2):
                with pytest.raises(ValueError, match="overlap in memory"):
                    opt.step(grads, copy_out=copied, ema=None if ema is None else (ema, 0.5), zero_grad=zero_grad)
    assert opt.step_count == 0
    assert all((x == 1).all() for x in [*w, *grads])


@pytest.mark.parametrize("name", ["copy_out", "ema"])
def test_wrong_lists(name: str) -> None:
    w = [np.ones(2, np.float32), np.ones(2, np.float32)]

    def given(x: Any) -> Any:
        return {name: x if name == "copy_out" else (x, 0.5)}

    opt = adaptk.SGD(w)
    for few in ([np.zeros(2, np.float32)], []):
        with pytest.raises(ValueError, match=f"{name}: {len(few)} buffers, expected 2"):
            opt.step(w[::-1], **given(few))
        with pytest.raises(ValueError, match=f"{name}: {len(few)} buffers, expected 2"):
            adaptk.ops.sgd(w, [x.copy() for x in w], step=1, **given(few))
    with pytest.raises(TypeError, match=f"{name}: expected a list or"):
        adaptk.ops.sgd(w, [x.copy() for x in w], step=1, **given(np.zeros(2, np.float32)))
    with pytest.raises(TypeError, match=f"{name}: a dict, but the params were given without names"):
        opt.step([x.copy() for x in w], **given({}))
    with pytest.raises(TypeError, match=f"{name}: expected a list or a dict of"):
        opt.step([x.copy() for x in w], **given(3))
    assert all((x == 1).all() for x in w)


def test_arguments_by_name_in_any_order() -> None:
    """Keywords that are not interned are found by their text."""
    w, grad = np.ones(4, np.float32), np.ones(4, np.float32)
    options = {"".join(["zero", "_grad"]): True, "".join(["st", "ep"]): 1, "".join(["l", "r"]): 1.0}
    adaptk.ops.sgd(param=w, grad=grad, **options)
    assert not w.any()
    assert not grad.any()
    assert arguments("sgd") == ["param", "grad"]
