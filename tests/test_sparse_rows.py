"""Gradients of rows in adaptk.ops: every rule, dtype, format, instruction set and number of threads gives the bits of a
dense gradient, in all rows or in those that have values."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import PAIRS, RULES, SOME_PAIRS, Array, arguments, call, copies, first_tier, make
from sparse_cases import FLOATS, compute_type, dense, equal, gradient, touched

ROW_SHAPES = [(), (1,), (3,), (8,), (9,), (16,), (64,), (5, 60), (1100,)]


def check(
    rule: str, shape: tuple[int, ...], count: int, param: str = "float32", grad: str = "float32", step: int = 3
) -> None:
    start = make(rule, shape, param, grad)
    indices, values = gradient(shape[0], shape[1:], count, 1, FLOATS[grad])
    want = copies(start) | {"grad": dense(indices, values, shape, compute_type(param))}
    call(rule, want, step=step)
    inside = touched(indices, shape[0])
    for mode in ("lazy", "dense"):
        for integer in (np.int32, np.int64):
            got = copies(start) | {"grad": (indices.astype(integer), values)}
            call(rule, got, step=step, sparse=mode)
            for name in arguments(rule):
                if name == "grad":
                    continue
                rows = np.ones(shape[0], bool) if mode == "dense" else inside
                equal(got[name][rows], want[name][rows])
                equal(got[name][~rows], start[name][~rows])


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, isa: str) -> None:
    check(rule, (40, 16), 100)


@pytest.mark.parametrize("row", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_sizes_of_rows(rule: str, row: tuple[int, ...]) -> None:
    check(rule, (30, *row), 200)


@pytest.mark.parametrize("pair", first_tier(PAIRS, *SOME_PAIRS), ids="-".join)
def test_types(pair: tuple[str, str]) -> None:
    for row in ((3,), (40,), (300,)):
        check("adagrad", (20, *row), 90, *pair)


@pytest.mark.parametrize(
    ("count", "rows"), [(0, 5), (1, 1), (1, 1 << 20), (63, 9), (64, 1 << 20), (5000, 3), (5000, 70000)]
)
def test_numbers_of_indices(count: int, rows: int) -> None:
    check("adagrad", (rows, 2), count)


def test_rows_without_elements() -> None:
    param = np.zeros((7, 0), np.float32)
    adaptk.ops.sgd(param, (np.array([3, 3, 6]), np.zeros((3, 0), np.float32)), step=1)


def test_no_rows() -> None:
    param = np.zeros((0, 3), np.float32)
    adaptk.ops.sgd(param, (np.array([], np.int64), np.zeros((0, 3), np.float32)), step=1)
    with pytest.raises(ValueError, match=r"expected in \[0, 0\)"):
        adaptk.ops.sgd(param, (np.array([0]), np.zeros((1, 3), np.float32)), step=1)


@pytest.mark.parametrize(("shape", "count"), [((3000, 64), 9000), ((5, 40000), 6), ((200000, 1), 150000)], ids=str)
@pytest.mark.parametrize("mode", ["lazy", "dense", "catch_up"])
def test_threads(mode: str, shape: tuple[int, ...], count: int) -> None:
    before = adaptk.get_num_threads()
    indices, values = gradient(shape[0], shape[1:], count, 4)
    results = []
    try:
        for threads in (1, 2, 5):
            adaptk.set_num_threads(threads)
            t = make("rmsprop_momentum", shape)
            last = {"last_step": np.zeros(shape[0], np.int64)} if mode == "catch_up" else {}
            for step in (1, 2):
                call(
                    "rmsprop_momentum",
                    t | {"grad": (indices[:: -1 if step == 2 else 1].copy(), values)},
                    step=step,
                    sparse=mode,
                    **last,
                )
            results.append([t["param"].tobytes(), t["square_avg"].tobytes(), t["momentum_buffer"].tobytes()])
    finally:
        adaptk.set_num_threads(before)
    assert results[0] == results[1] == results[2]


STORED = ["bfloat16", "float16", "bfloat16_sr", "8bit", "8bit_dynamic", "fp8_e4m3", "4bit"]


@pytest.mark.parametrize("form", STORED)
@pytest.mark.parametrize("row", [7, 100, 256])
def test_formats_of_states(form: str, row: int) -> None:
    rng = np.random.default_rng(0)
    rule, shape = RULES["adam"], (20, row)
    indices, values = gradient(20, (row,), 50, 2)
    start = [rng.standard_normal(shape).astype(np.float32), np.abs(rng.standard_normal(shape)).astype(np.float32)]

    def states() -> list[Any]:
        if form in FLOATS:
            return [x.astype(FLOATS[form]) for x in start]
        return [
            formats.quantize(x, formats.format_of(form, s, x.size, 0)) for x, s in zip(start, rule.states, strict=True)
        ]

    def codes(s: list[Any]) -> list[Array]:
        # A row of 4-bit codes may end within a byte; then only whole tensors can be stepped.
        arrays = [np.asarray(x.data if isinstance(x, formats.Stored) else x) for x in s]
        return [x.reshape(20 if x.size % 20 == 0 else 1, -1) for x in arrays]

    def stepped(grad: object, mode: str) -> list[Array]:
        param, s = np.ones(shape, np.float32), states()
        adaptk.ops.adam(param, grad, *s, step=5, seed=3, sparse=mode)
        return [param, *codes(s)]

    want = stepped(dense(indices, values, shape), "lazy")
    for g, w in zip(stepped((indices, values), "dense"), want, strict=True):
        equal(g, w)
    if getattr(states()[0], "scales", None) is not None and row % 256 != 0:
        with pytest.raises(ValueError, match=r"exp_avg: stored as .* rows cannot be stepped one by one"):
            stepped((indices, values), "lazy")
        return
    inside = touched(indices, 20)
    before = [np.ones(shape, np.float32), *codes(states())]
    for g, w, b in zip(stepped((indices, values), "lazy"), want, before, strict=True):
        equal(g[inside], w[inside])
        equal(g[~inside], b[~inside])


@pytest.mark.skipif("bfloat16" not in FLOATS, reason="no ml_dtypes")
@pytest.mark.parametrize("form", ["sr", "remainder16", "remainder8", "kahan"])
@pytest.mark.parametrize("row", [5, 70])
def test_formats_of_params(form: str, row: int) -> None:
    rng = np.random.default_rng(1)
    shape = (30, row)
    indices, values = gradient(30, (row,), 60, 2)
    start = rng.standard_normal(shape).astype(np.float32)

    def stepped(grad: object, mode: str) -> list[Array]:
        given = start.astype(FLOATS["bfloat16"]) if form == "sr" else formats.split_param(start, form)
        r = np.ones(shape, np.float32)
        adaptk.ops.adagrad(given, grad, r, step=5, seed=3, param_format=form, sparse=mode)
        return [*(np.asarray(x) for x in (given if isinstance(given, tuple) else [given])), r]

    want = stepped(dense(indices, values, shape), "lazy")
    inside = touched(indices, 30)
    for d, z, w in zip(stepped((indices, values), "dense"), stepped((indices, values), "lazy"), want, strict=True):
        equal(d, w)
        equal(z[inside], w[inside])


def test_lists_mix_rows_and_dense_gradients() -> None:
    t = [make("adam", (9, 4), seed=i) for i in range(3)]
    want = [copies(x) for x in t]
    indices, values = gradient(9, (4,), 20, 3)
    grads = [t[0]["grad"], (indices, values), t[2]["grad"]]
    columns = {name: [x[name] for x in t] for name in arguments("adam")} | {"grad": grads}
    adaptk.ops.adam(*columns.values(), step=2, sparse="dense")
    want[1]["grad"] = dense(indices, values, (9, 4))
    for got, w in zip(t, want, strict=True):
        call("adam", w, step=2)
        equal(got["param"], w["param"])


def test_unaligned_buffers() -> None:
    raw = np.zeros(1 + 4 * 9 * 20, np.uint8)
    param = raw[1:].view(np.float32).reshape(9, 20)
    want = np.zeros((9, 20), np.float32)
    indices, values = gradient(9, (20,), 20, 3)
    adaptk.ops.sgd(param, (indices, values), step=1)
    adaptk.ops.sgd(want, dense(indices, values, (9, 20)), step=1)
    equal(param, want)


def test_epilogues() -> None:
    indices, values = gradient(9, (20,), 8, 3)
    got, want = np.ones((9, 20), np.float32), np.ones((9, 20), np.float32)
    out, average = np.zeros((9, 20), np.float16), np.zeros((9, 20), np.float32)
    for mode in ("lazy", "dense"):
        adaptk.ops.sgd(got, (indices, values), step=1, sparse=mode, copy_out=out, ema=(average, 0.25))
        adaptk.ops.sgd(want, dense(indices, values, (9, 20)), step=1)
        equal(got, want)
        equal(out, want.astype(np.float16))
    assert np.all(average != 0)


# catch_up


def replay(rule: str, steps: int, seed: int, **hyper: float) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """The same gradients with 'catch_up', brought up to date, and as dense gradients."""
    shape = (12, 4)
    got = {k: v.astype(np.float64) for k, v in make(rule, shape, "float64").items()}
    want = copies(got)
    last = np.zeros(12, np.int64)
    rng = np.random.default_rng(seed)
    for t in range(1, steps + 1):
        indices = rng.integers(0, 12, 3)
        values = rng.standard_normal((3, 4))
        if t == steps:
            indices, values = np.arange(12), rng.standard_normal((12, 4))
        call(rule, got | {"grad": (indices, values)}, step=t, sparse="catch_up", last_step=last, **hyper)
        call(rule, want | {"grad": dense(indices, values, shape, np.float64)}, step=t, **hyper)
    assert (last == steps).all()
    return got, want, last


@pytest.mark.parametrize("rule", [r for r in RULES if RULES[r].catch_up == "exact"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_exact_catch_up_matches_dense(rule: str, decay: float) -> None:
    got, want, _ = replay(rule, 9, 2, weight_decay=decay, decoupled=True, lr=0.05)
    for name in arguments(rule):
        if name != "grad":
            np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("rule", [r for r in RULES if RULES[r].catch_up == "approximate"])
def test_approximate_catch_up(rule: str) -> None:
    got, want, _ = replay(rule, 9, 2, lr=0.05)
    assert np.abs(got["param"] - want["param"]).max() > 1e-6
    np.testing.assert_allclose(got["exp_avg"], want["exp_avg"], rtol=1e-12)


@pytest.mark.parametrize("rule", ["adam", "adamw", "amsgrad", "nadam", "radam"])
def test_second_moments_match_dense(rule: str) -> None:
    got, want, _ = replay(rule, 9, 2, lr=0.05)
    np.testing.assert_allclose(got["exp_avg_sq"], want["exp_avg_sq"], rtol=1e-12)


def test_a_dense_gradient_after_rows_that_lag() -> None:
    p, q = np.ones((4, 3)), np.ones((4, 3))
    b, c = np.full((4, 3), 0.5), np.full((4, 3), 0.5)
    last = np.zeros(4, np.int64)
    for t, grad in enumerate([(np.array([1]), np.ones((1, 3))), (np.array([2]), np.ones((1, 3))), np.ones((4, 3))], 1):
        adaptk.ops.momentum(p, grad, b, step=t, sparse="catch_up", last_step=last)
        full = dense(*grad, (4, 3), np.float64) if isinstance(grad, tuple) else grad
        adaptk.ops.momentum(q, full, c, step=t)
    np.testing.assert_allclose(p, q, rtol=1e-13)
    assert last.tolist() == [3, 3, 3, 3]


def test_rules_without_a_closed_form() -> None:
    t = make("asgd", (4, 3))
    with pytest.raises(ValueError, match="sparse: 'catch_up': asgd has no closed form"):
        call("asgd", t | {"grad": (np.array([1]), np.ones((1, 3)))}, sparse="catch_up", last_step=np.zeros(4, np.int64))
    with pytest.raises(ValueError, match=r"sgd has no closed form .* coupled weight decay"):
        adaptk.ops.sgd(
            t["param"],
            (np.array([1]), np.ones((1, 3))),
            step=1,
            weight_decay=0.1,
            sparse="catch_up",
            last_step=np.zeros(4, np.int64),
        )


# Errors, before anything is written

IDX, VAL = np.array([0, 4]), np.ones((2, 3), np.float32)
REFUSED = [
    ((np.array([0, 9]), VAL), ValueError, r"grad, indices: number 1 is 9, expected in \[0, 5\), the rows of the param"),
    ((np.array([-1, 0]), VAL), ValueError, r"grad, indices: number 0 is -1, expected in \[0, 5\)"),
    ((np.array([0, -(2**62)]), VAL), ValueError, "number 1 is -4611686018427387904"),
    ((np.array([0.0, 1.0]), VAL), TypeError, "grad, indices: dtype float64, expected int32 or int64"),
    ((np.array([True, False]), VAL), TypeError, "grad, indices: dtype bool"),
    ((np.array([1, 2], np.uint8), VAL), TypeError, "grad, indices: dtype uint8"),
    ((np.array([1, 2], ">i8"), VAL), TypeError, "grad, indices: dtype >i8"),
    (([0, 1], VAL), TypeError, r"grad, indices: expected an array .* got list; pass np.asarray"),
    ((np.array([[0, 1]]), VAL), ValueError, "grad, indices: 2 axes, expected one"),
    ((np.arange(4)[::2], VAL), ValueError, "grad, indices: not contiguous"),
    ((IDX, np.ones((3, 3), np.float32)), ValueError, r"grad, values: shape \(3, 3\), expected \(2, 3\) for 2 indices"),
    ((IDX, np.ones(2, np.float32)), ValueError, r"grad, values: shape \(2,\), expected \(2, 3\)"),
    ((IDX, np.ones((2, 3), np.int64)), TypeError, "grad, values: dtype int64"),
    ((IDX, np.ones((3, 2), np.float32).T), ValueError, "grad, values: not in C order"),
    ((IDX, [1.0, 2.0]), TypeError, "grad, values"),
    ((IDX, VAL, VAL), TypeError, "grad"),
]


@pytest.mark.parametrize(("grad", "error", "message"), REFUSED)
def test_errors(grad: object, error: type[Exception], message: str) -> None:
    param, m, v = np.ones((5, 3), np.float32), np.zeros((5, 3), np.float32), np.zeros((5, 3), np.float32)
    for mode in ("lazy", "dense"):
        with pytest.raises(error, match=message):
            adaptk.ops.adam(param, grad, m, v, step=1, sparse=mode)
    with pytest.raises(error, match=message.replace("grad", r"grad\[1\]", 1)):
        adaptk.ops.adam([param.copy(), param], [VAL[:0].sum() + param, grad], [m.copy(), m], [v.copy(), v], step=1)
    assert (param == 1).all()
    assert not m.any()
    assert not v.any()


def test_refused_params_and_options() -> None:
    ok = (IDX, VAL)
    scalar, fortran, p = np.ones((), np.float32), np.ones((5, 3), np.float32, order="F"), np.ones((5, 3), np.float32)
    cases = [
        (scalar, ok, {}, ValueError, "grad: a gradient of rows, but the param has no axes"),
        (fortran, ok, {}, ValueError, "the param is not in C order"),
        (p, ok, {"zero_grad": True}, ValueError, "zero_grad: grad has values for some rows alone"),
        (p, ok, {"sparse": "eager"}, ValueError, "sparse: 'eager' is not one of 'lazy', 'dense', 'catch_up'"),
        (p, ok, {"sparse": 1}, TypeError, "sparse: expected a string, got int"),
        (p, ok, {"sparse": "catch_up"}, TypeError, "last_step: sparse='catch_up' needs it"),
        (p, ok, {"last_step": np.zeros(5, np.int64)}, TypeError, "last_step: is for sparse='catch_up' alone"),
    ]
    for last, error, message in [
        (np.zeros(4, np.int64), ValueError, "last_step: 4 numbers, expected 5"),
        (np.zeros(5, np.int32), TypeError, "last_step: dtype int32, expected int64"),
        (np.zeros(5), TypeError, "last_step: dtype float64"),
    ]:
        cases.append((p, ok, {"sparse": "catch_up", "last_step": last}, error, message))
    read_only = np.zeros(5, np.int64)
    read_only.flags.writeable = False
    cases.append((p, ok, {"sparse": "catch_up", "last_step": read_only}, ValueError, "last_step: read-only"))
    for param, grad, options, error, message in cases:
        with pytest.raises(error, match=message):
            adaptk.ops.sgd(param, grad, step=1, **options)
    assert (p == 1).all()


def test_overlap() -> None:
    memory = np.zeros((10, 3), np.float32)
    with pytest.raises(ValueError, match=r"param and grad overlap|grad and param overlap"):
        adaptk.ops.sgd(memory[:5], (IDX, memory[4:6]), step=1)
    with pytest.raises(ValueError, match="overlap"):
        adaptk.ops.sgd([memory[:5], memory[5:]], [(IDX, VAL), (IDX, memory[:2])], step=1)
    shared = np.zeros(20, np.int64)
    with pytest.raises(ValueError, match="overlap"):
        adaptk.ops.sgd(shared.view(np.float32)[:12].reshape(4, 3), (shared[:2], VAL), step=1)
    with pytest.raises(ValueError, match="last_step and param overlap"):
        adaptk.ops.sgd(
            shared.view(np.float32)[:12].reshape(4, 3), (IDX % 4, VAL), step=1, sparse="catch_up", last_step=shared[1:5]
        )
    assert not memory.any()
    assert not shared.any()
