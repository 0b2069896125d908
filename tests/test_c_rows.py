"""Gradients of rows in C."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import formats
from c_abi import (
    CATCH_UP,
    DENSE,
    INVALID_ARGUMENT,
    INVALID_TYPE,
    LAZY,
    CError,
    options,
    report,
    rows,
    step_rows,
    step_stored,
    tensor,
    tensors,
)
from helpers import RULES, arguments, call, copies, make
from sparse_cases import dense, equal, gradient, touched

SHAPE = (30, 9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", [LAZY, DENSE])
def test_every_rule(rule: str, mode: int) -> None:
    start = make(rule, SHAPE)
    indices, values = gradient(30, (9,), 40, 1)
    want = copies(start) | {"grad": dense(indices, values, SHAPE)}
    call(rule, want)
    got = copies(start)
    states = [got[n] for n in arguments(rule)[2:]]
    step_rows(rule, [got["param"]], [rows(indices.astype(np.int32), values)], states, 3, mode)
    inside = touched(indices, 30) | (mode == DENSE)
    for name in arguments(rule):
        if name != "grad":
            equal(got[name][inside], want[name][inside])
            equal(got[name][~inside], start[name][~inside])


def test_several_params_formats_and_options() -> None:
    grads = [gradient(30, (9,), 40, s) for s in (1, 2)]
    results = []
    for of_rows in (True, False):
        params = [np.ones(SHAPE, np.float32), np.ones(SHAPE)]
        out, copy = report(), np.zeros(SHAPE, np.float16)
        m, v = (formats.quantize(np.zeros(SHAPE, np.float32), n) for n in ("bfloat16_sr", "uint8"))
        states = [m, v, np.zeros(SHAPE), np.zeros(SHAPE)]
        given = options(clip_norm=0.5, copy_out=tensors([copy, None]))
        if of_rows:
            step_rows("adam", params, [rows(*g) for g in grads], states, 1, DENSE, 7, given, out, lr=0.1)
            assert out.grad_norm > 0.5
        else:
            full = [dense(*grads[0], SHAPE), dense(*grads[1], SHAPE, np.float64)]
            step_stored("adam", params, full, states, 1, 7, given, lr=0.1)
        results.append([*params, copy, np.asarray(m.data), np.asarray(v.data)])
    for a, b in zip(*results, strict=True):
        equal(a, b)


def test_catch_up() -> None:
    p, q = np.ones(SHAPE), np.ones(SHAPE)
    last = np.zeros(30, np.int64)
    every = np.arange(30), np.ones(SHAPE)
    s, r = np.full(SHAPE, 0.5), np.full(SHAPE, 0.5)
    for t, (indices, values) in enumerate([gradient(30, (9,), 4, 1, np.float64), every], 1):
        step_rows("rmsprop", [p], [rows(indices, values, last)], [s], t, CATCH_UP)
    indices, values = gradient(30, (9,), 4, 1, np.float64)
    step_stored("rmsprop", [q], [dense(indices, values, SHAPE, np.float64)], [r], 1)
    step_stored("rmsprop", [q], [np.ones(SHAPE)], [r], 2)
    np.testing.assert_allclose(p, q, rtol=1e-13)
    np.testing.assert_allclose(s, r, rtol=1e-13)
    assert (last == 2).all()


IDX, VAL = np.array([0, 4]), np.ones((2, 9), np.float32)
BAD: list[tuple[Any, int, str]] = [
    (lambda: None, INVALID_ARGUMENT, "grads[0]: NULL"),
    (lambda: rows(None, VAL), INVALID_ARGUMENT, "grads[0].indices: NULL"),
    (lambda: rows(IDX, None), INVALID_ARGUMENT, "grads[0].values: NULL"),
    (lambda: rows(IDX, VAL, size=3), INVALID_ARGUMENT, "grads[0]"),
    (lambda: rows(IDX.astype(np.float32), VAL), INVALID_TYPE, "grads[0].indices: dtype float32"),
    (lambda: rows(IDX[None], VAL), INVALID_ARGUMENT, "grads[0].indices: 2 axes"),
    (lambda: rows(np.arange(4)[::2], VAL), INVALID_ARGUMENT, "grads[0].indices: not contiguous"),
    (lambda: rows(tensor(IDX, data=None), VAL), INVALID_ARGUMENT, "grads[0].indices: has no memory"),
    (lambda: rows(tensor(IDX, device_type=2), VAL), INVALID_ARGUMENT, "grads[0].indices: expected memory of the CPU"),
    (lambda: rows(tensor(IDX, byte_offset=3), VAL), INVALID_ARGUMENT, "grads[0].indices: not aligned"),
    (lambda: rows(np.array([0, 30]), VAL), INVALID_ARGUMENT, "number 1 is 30, expected in [0, 30)"),
    (lambda: rows(np.array([-1, 0]), VAL), INVALID_ARGUMENT, "number 0 is -1"),
    (lambda: rows(IDX, VAL[:1]), INVALID_ARGUMENT, "grads[0].values: shape (1, 9)"),
    (lambda: rows(IDX, VAL[:, :3]), INVALID_ARGUMENT, "grads[0].values: shape (2, 3)"),
    (lambda: rows(IDX, np.ones((9, 2), np.float32).T), INVALID_ARGUMENT, "grads[0].values: not in C order"),
]


@pytest.mark.parametrize("bad", range(len(BAD)))
def test_refused(bad: int) -> None:
    make_grad, status, message = BAD[bad]
    p = np.ones(SHAPE, np.float32)
    with pytest.raises(CError) as raised:
        step_rows("sgd", [p], [make_grad()], [], 1)
    assert raised.value.status == status
    assert message in str(raised.value)
    assert (p == 1).all()


def test_refused_options() -> None:
    p, good = np.ones(SHAPE, np.float32), lambda: rows(IDX, VAL)
    cases: list[tuple[Any, str]] = [
        (lambda: step_rows("sgd", [p], [good()], [], 1, 3), "mode: 3"),
        (lambda: step_rows("sgd", [p], [good()], [], 1, CATCH_UP), "grads[0].last_step: NULL"),
        (lambda: step_rows("sgd", [p], [good()], [], 1, given=options(zero_grad=1)), "options: zero_grad"),
        (lambda: step_rows("sgd", [np.ones((), np.float32)], [good()], [], 1), "the param has no axes"),
        (lambda: step_rows("sgd", [np.ones((9, 30), np.float32).T], [good()], [], 1), "not in C order"),
        (lambda: step_rows("sgd", [p], [rows(IDX, p[:2])], [], 1), "overlap"),
        (
            lambda: step_rows("asgd", [p], [rows(IDX, VAL, np.zeros(30, np.int64))], [p.copy()], 1, CATCH_UP),
            "asgd has no closed form",
        ),
        (
            lambda: step_rows("adagrad", [p], [good()], [formats.quantize(np.zeros(SHAPE, np.float32), "uint8")], 1),
            "sum",
        ),
    ]
    for run, message in cases:
        with pytest.raises(CError) as raised:
            run()
        assert message in str(raised.value)
    assert (p == 1).all()
