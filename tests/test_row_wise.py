"""Rules that keep one number for each row of a param, against the formulas that others document."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import FLOATS, Array, aligned_to, first_tier, same_bits
from row_wise_oracles import PER_ROW, RULES, STATES, from_history, mean_square, new_states, step
from sparse_cases import dense, gradient, touched

SHAPES = [(30, 9), (7, 64), (5, 300), (3, 2, 5), (40,), (6, 1), (2, 1030), (1, 513)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled": True, "maximize": True, "grad_scale": 0.5},
]
every_rule = pytest.mark.parametrize("rule", RULES)


def start(rule: str, shape: tuple[int, ...], dtype: Any = np.float32) -> dict[str, Array]:
    """The param and the states, by name."""
    param = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    return {"param": param, **new_states(rule, shape, np.float64 if dtype == np.float64 else np.float32)}


def run(rule: str, buffers: dict[str, Array], grad: Any, **hyper: Any) -> None:
    getattr(adaptk.ops, rule)(buffers["param"], grad, *(buffers[s] for s in STATES[rule]), **{"step": 3, **hyper})


def equal(got: dict[str, Array], want: dict[str, Array], rows: Any = slice(None)) -> None:
    for name in want:
        assert same_bits(got[name][rows], want[name][rows]), name


def test_the_mean_of_squares() -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    assert mean_square(x) == pytest.approx(np.mean(x * x), rel=1e-14)
    assert mean_square(x.astype(np.float32)) == pytest.approx(np.mean(x * x), rel=1e-6)


@every_rule
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=len)
def test_dense_gradients(rule: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    for dtype in (np.float32, np.float64):
        got = start(rule, shape, dtype)
        want = copy.deepcopy(got)
        for t in (1, 2, 9):
            grad = np.random.default_rng(t).standard_normal(shape).astype(dtype)
            run(rule, got, grad, step=t, **options)
            step(rule, want["param"], grad, {n: want[n] for n in STATES[rule]}, t, **options)
        equal(got, want)


@every_rule
def test_every_instruction_set(rule: str, isa: str) -> None:
    for shape in ((9, 16), (9, 17), (3, 700)):
        got = start(rule, shape)
        want = copy.deepcopy(got)
        grad = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        run(rule, got, grad, weight_decay=0.01)
        step(rule, want["param"], grad, {n: want[n] for n in STATES[rule]}, 3, weight_decay=0.01)
        equal(got, want)


@every_rule
@pytest.mark.parametrize("shape", [(30, 9), (30,), (30, 64), (30, 300), (30, 2, 300)], ids=str)
def test_gradients_of_rows(rule: str, shape: tuple[int, ...]) -> None:
    indices, values = gradient(30, shape[1:], 70, 1)
    grad = dense(indices, values, shape)
    inside = touched(indices, 30)
    for mode in ("lazy", "dense"):
        got = start(rule, shape)
        want = copy.deepcopy(got)
        run(rule, got, (indices, values), sparse=mode, weight_decay=0.1)
        run(rule, want, grad, weight_decay=0.1)
        if mode == "lazy":
            equal(got, want, inside)
            equal(got, start(rule, shape), ~inside)
            assert not inside.all()
        else:
            equal(got, want)


@every_rule
@pytest.mark.parametrize("pair", first_tier([(p, g) for p in FLOATS for g in FLOATS], ("float16", "float32")), ids=str)
def test_types(rule: str, pair: tuple[str, str]) -> None:
    for row in ((5,), (300,)):
        indices, values = gradient(20, row, 60, 1, FLOATS[pair[1]])
        compute = np.float64 if pair[0] == "float64" else np.float32
        got = start(rule, (20, *row), FLOATS[pair[0]])
        wide = {n: x.astype(compute) for n, x in got.items()}
        grad = dense(indices, values, (20, *row), compute)
        run(rule, got, (indices, values), sparse="dense")
        step(rule, wide["param"], grad, {n: wide[n] for n in STATES[rule]}, 3)
        equal(got, wide | {"param": wide["param"].astype(FLOATS[pair[0]])})


@every_rule
def test_threads(rule: str) -> None:
    shape = (3000, 48)
    indices, values = gradient(3000, (48,), 5000, 1)
    grads = {"lazy": (indices, values), "dense": (indices, values), "whole": dense(indices, values, shape)}
    before = adaptk.get_num_threads()
    try:
        for mode, grad in grads.items():
            results = []
            for threads in (1, 2, 5):
                adaptk.set_num_threads(threads)
                got = start(rule, shape)
                run(rule, got, grad, sparse="lazy" if mode == "whole" else mode)
                results.append(got)
            equal(results[1], results[0])
            equal(results[2], results[0])
    finally:
        adaptk.set_num_threads(before)


@every_rule
def test_unaligned_buffers(rule: str) -> None:
    for row in ((7,), (64,), (300,)):
        indices, values = gradient(20, row, 50, 1)
        want = start(rule, (20, *row))
        got = {}
        for name, x in want.items():
            got[name] = aligned_to(1, x.shape, x.dtype)
            got[name][...] = x
        grad = aligned_to(1, values.shape, values.dtype)
        grad[...] = values
        run(rule, got, (indices, grad))
        run(rule, want, (indices, values))
        equal(got, want)


@every_rule
def test_special_values_and_no_elements(rule: str) -> None:
    for x in (np.nan, np.inf, 1e30, 1e-30, 0.0):
        got = start(rule, (3, 20))
        want = copy.deepcopy(got)
        grad = np.full((3, 20), x, np.float32)
        run(rule, got, grad)
        step(rule, want["param"], grad, {n: want[n] for n in STATES[rule]}, 3)
        equal(got, want)
    for shape in ((0, 4), (4, 0)):
        got = start(rule, shape)
        run(rule, got, np.zeros(shape, np.float32))
        equal(got, start(rule, shape))
    scalar = start(rule, ())
    run(rule, scalar, np.array(2.0, np.float32))
    row = start(rule, ())
    row = {n: x.reshape(1) for n, x in row.items()}
    run(rule, row, np.full(1, 2.0, np.float32))
    assert scalar["param"] == row["param"][0] != start(rule, ())["param"]


@every_rule
def test_closed_formula_from_all_gradients(rule: str) -> None:
    rng = np.random.default_rng(3)
    grads = [rng.standard_normal((6, 2, 5)) for _ in range(9)]
    p = rng.standard_normal((6, 2, 5))
    want = from_history(rule, p, grads, 0.05, 0.3)
    opt = adaptk.optimizer_for(rule, [p], lr=0.05, weight_decay=0.3, decoupled=True)
    for g in grads:
        opt.step([g])
    np.testing.assert_allclose(p, want, rtol=1e-12)


# Optimizer objects


def make(rule: str, params: Any, **options: Any) -> Any:
    cls = adaptk.RowWiseAdaGrad if rule == "rowwise_adagrad" else adaptk.RowWiseAdam
    return cls(params, **options)


@every_rule
def test_objects(rule: str) -> None:
    params = [np.ones((30, 9), np.float32), np.ones(4, np.float64), np.ones((2, 2), np.float16)]
    opt = make(rule, params, lr=0.1)
    assert opt.rules == (rule,)
    state = opt.state[0][PER_ROW[rule]]
    assert state.shape == (30,)
    assert state.dtype == np.float32
    assert opt.state[1][PER_ROW[rule]].dtype == np.float64
    want = {"param": params[0].copy(), **{n: np.zeros_like(opt.state[0][n]) for n in STATES[rule]}}
    for t in (1, 2):
        indices, values = gradient(30, (9,), 40, t)
        info = opt.step([(indices, values), np.full(4, t, np.float64), np.ones((2, 2), np.float16)], clip_norm=1e9)
        assert info.grad_norm > 0
        run(rule, want, (indices, values), step=t, lr=0.1)
    equal({"param": params[0], **opt.state[0]}, want)
    saved = opt.state_dict()
    others = [p.copy() for p in params]
    later = make(rule, others, lr=0.5)
    later.load_state_dict(saved)
    both = copy.deepcopy((params, opt)), pickle.loads(pickle.dumps((params, opt))), (others, later)
    grads = [np.full(p.shape, 0.5, p.dtype) for p in params]
    opt.step(grads)
    for copied, other in both:
        other.step(grads)
        for p, q in zip(params, copied, strict=True):
            assert same_bits(p, q)


@every_rule
def test_epilogues(rule: str) -> None:
    for grad in (np.ones((30, 5), np.float32), (np.array([3, 3, 9]), np.ones((3, 5), np.float32))):
        p = np.ones((30, 5), np.float32)
        opt = make(rule, [p], lr=0.1)
        out, average = np.zeros((30, 5), np.float16), np.zeros((30, 5), np.float32)
        opt.step([grad], copy_out=[out], ema=([average], 0.5))
        assert same_bits(out, p.astype(np.float16))
        assert same_bits(average, p - p * np.float32(0.5))
    grad = np.ones((30, 5), np.float32)
    opt.step([grad], zero_grad=True)
    assert not grad.any()


@pytest.mark.parametrize("decay", [0.0, 0.25])
@every_rule
def test_catch_up(rule: str, decay: float) -> None:
    options = {"lr": 0.1, "weight_decay": decay, "decoupled": True}
    tables = {mode: np.ones((12, 300)) for mode in ("dense", "catch_up")}
    made = {mode: make(rule, [w], sparse=mode, **options) for mode, w in tables.items()}
    for t in range(6):
        indices, values = gradient(12 if t == 3 else 4, (300,), 6, t, np.float64)
        for opt in made.values():
            opt.step([(indices, values)])
    if rule == "rowwise_adagrad":
        assert not np.allclose(tables["dense"], tables["catch_up"]) or decay == 0
    for opt in made.values():
        opt.catch_up()
        opt.step([np.ones((12, 300))])
    states = [opt.state[0][PER_ROW[rule]] for opt in made.values()]
    np.testing.assert_allclose(states[1], states[0], rtol=1e-12)
    if rule == "rowwise_adagrad":
        np.testing.assert_allclose(tables["catch_up"], tables["dense"], rtol=1e-12)
    else:
        np.testing.assert_allclose(made["catch_up"].state[0]["exp_avg"], made["dense"].state[0]["exp_avg"], rtol=1e-12)


def test_formats_of_the_other_states() -> None:
    p = np.ones((40, 256), np.float32)
    opt = adaptk.RowWiseAdam([p], state_dtype="8bit", lr=0.1)
    assert opt.state[0]["exp_avg"].data.dtype == np.int8
    assert opt.state[0]["exp_avg_sq"].dtype == np.float32
    wide = np.ones((40, 256), np.float32)
    ref = adaptk.RowWiseAdam([wide], lr=0.1)
    for t in range(3):
        grad = np.random.default_rng(t).standard_normal((40, 256)).astype(np.float32)
        for o in (opt, ref):
            o.step([grad])
    np.testing.assert_allclose(p, wide, atol=0.05)
    assert same_bits(opt.state[0]["exp_avg_sq"], ref.state[0]["exp_avg_sq"])
    with pytest.raises(ValueError, match="state_dtype: 'exp_avg_sq' has one number for each slice"):
        adaptk.RowWiseAdam([p], state_dtype={"exp_avg_sq": "bfloat16"})
    with pytest.raises(ValueError, match=r"params\[0\], exp_avg: stored as int8, its elements share a scale"):
        adaptk.RowWiseAdam([np.ones((100, 100), np.float32)], state_dtype="8bit")


def test_registry() -> None:
    for rule in RULES:
        found = adaptk.rules()[rule]
        assert rule not in list(adaptk.rules())
        assert [s.name for s in found.states if s.per == "slice"] == [PER_ROW[rule]]
        assert pickle.loads(pickle.dumps(found)) is found
        with pytest.raises(ValueError, match="is a rule of the library"):
            adaptk.rule(lr=0.1, name=rule)(lambda p, g, h, t: p)
    assert adaptk.rules()["rowwise_adagrad"].defaults("torch")["eps_out"] == 1e-10


@every_rule
def test_errors(rule: str) -> None:
    name = PER_ROW[rule]
    good = start(rule, (4, 6))
    grad = np.ones((4, 6), np.float32)
    cases: list[tuple[str, Any, Any, str]] = [
        (name, np.ones((4, 6), np.float32), ValueError, rf"{name}: shape \(4, 6\), expected \(4,\): one number for"),
        (name, np.ones(5, np.float32), ValueError, rf"{name}: shape \(5,\), expected \(4,\)"),
        (name, np.ones(4), TypeError, f"{name}: dtype float64, expected float32 beside a float32 param"),
        (name, np.ones(8, np.float32)[::2], ValueError, f"{name}: strides"),
        (name, (np.ones(4, np.int8), np.ones(1, np.float32)), TypeError, f"{name}: a pair, expected an array"),
        (name, np.broadcast_to(np.float32(1), (4,)), ValueError, f"{name}: (read-only|strides)"),
        ("param", np.asfortranarray(np.ones((4, 6), np.float32)), ValueError, r"(param|grad|exp_avg): strides"),
    ]
    for argument, value, error, message in cases:
        buffers = {**copy.deepcopy(good), argument: value}
        before = copy.deepcopy(buffers)
        with pytest.raises(error, match=message):
            run(rule, buffers, grad)
        assert all(same_bits(buffers[n], before[n]) for n in good if n != argument)
    fortran = {n: np.asfortranarray(x) for n, x in good.items()}
    with pytest.raises(ValueError, match=r"param: strides .* expected C order, where rows lie one behind the other"):
        run(rule, fortran, np.asfortranarray(grad))
    shared = np.ones(28, np.float32)
    with pytest.raises(ValueError, match=f"(param|{name}) and (param|{name}) overlap"):
        run(rule, good | {"param": shared[:24].reshape(4, 6), name: shared[20:24]}, grad)
    opt = make(rule, [np.ones((4, 6), np.float32)])
    with pytest.raises(ValueError, match=rf"state_dict\['state.0.{name}'\]: shape \(4, 6\), expected \(4,\)"):
        opt.load_state_dict({**opt.state_dict(), f"state.0.{name}": np.ones((4, 6), np.float32)})
    made = make(rule, [np.ones((4, 6))], weight_decay=0.1, sparse="catch_up")
    with pytest.raises(ValueError, match=r"no closed form .* coupled weight decay"):
        made.step([(np.array([1]), np.ones((1, 6)))])


def test_elements_without_scales() -> None:
    codes = formats.quantize(np.ones((4, 256), np.float32), "int8")
    p, v = np.ones((4, 256), np.float32), np.ones(4, np.float32)
    adaptk.ops.rowwise_adam(p, np.ones((4, 256), np.float32), codes, v, step=2)
    assert (p < 1).all()
