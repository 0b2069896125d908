"""Steps of optimizer objects match the functions of adaptk.ops."""

from __future__ import annotations

import adaptk
import numpy as np
import pytest
from optim_cases import (
    DTYPES,
    RULES,
    Array,
    Case,
    Functions,
    all_bits,
    arrays,
    copies,
    every_case,
    every_dtype,
    every_rule,
    like,
    snapshot,
    state_bits,
)


def rates(n: int) -> list[float]:
    """Learning rates of n steps; consecutive ones differ."""
    return [1e-2 / (1 + 0.1 * (t % 7)) for t in range(n)]


# The same bits as the functions


@every_dtype
@every_case
def test_equals_the_functions(case: Case, dtype: str) -> None:
    start = arrays(dtype)
    lr = rates(200)
    reference = Functions(case.rule, start, {**case.hyper, "lr": lr[0]})
    params = copies(start)
    optimizer = case(params, lr=lr[0])
    assert optimizer.rules == (case.rule,)
    for t, rate in enumerate(lr):
        grads = like(params, t % 20)
        optimizer.param_groups[0]["lr"] = rate
        info = optimizer.step(grads)
        reference.step_all(grads, lr=rate)
        assert info == (None, False)
        assert all_bits(params) == all_bits(reference.params), t
    assert state_bits(optimizer) == reference.state_bits()
    assert optimizer.step_count == len(lr)


@every_rule
def test_optimizer_for_equals_the_functions(rule: str) -> None:
    start = arrays("float64")
    hyper = RULES[rule].defaults()
    reference = Functions(rule, start, {**hyper, "lr": 0.01})
    params = copies(start)
    optimizer = adaptk.optimizer_for(rule, params, 0.01)
    assert type(optimizer).__name__ == RULES[rule].class_names[0]
    for t in range(20):
        optimizer.step(like(params, t))
        reference.step(like(params, t))
    assert all_bits(params) == all_bits(reference.params)
    assert state_bits(optimizer) == reference.state_bits()


@every_case
def test_gradients_of_lower_precision(case: Case) -> None:
    start = arrays("float32")
    reference = Functions(case.rule, start, case.hyper)
    params = copies(start)
    optimizer = case(params)
    for t in range(5):
        grads = [g.astype(d) for g, d in zip(like(params, t), (np.float16, np.float32), strict=True)]
        optimizer.step(grads)
        reference.step(grads)
    assert all_bits(params) == all_bits(reference.params)


@every_case
def test_transposed_params_have_transposed_states(case: Case) -> None:
    start = arrays("float32", shapes=[(4, 3, 2)])
    plain = copies(start)
    turned = [np.ascontiguousarray(p.transpose(2, 0, 1)).transpose(1, 2, 0) for p in start]
    one, other = case(plain), case(turned)
    for t in range(5):
        grads = like(plain, t)
        one.step(grads)
        other.step([np.ascontiguousarray(g.transpose(2, 0, 1)).transpose(1, 2, 0) for g in grads])
    assert all_bits(turned) == all_bits(plain)
    assert state_bits(other) == state_bits(one)
    assert all(x.strides == turned[0].strides for s in other.state.values() for x in s.values())


def test_mixed_dtypes_in_one_step() -> None:
    start = [arrays(dtype)[0] for dtype in DTYPES]
    params = copies(start)
    reference = Functions("adam", start, RULES["adam"].defaults())
    optimizer = adaptk.Adam(params)
    for t in range(10):
        grads = like(params, t)
        optimizer.step(grads)
        reference.step(grads)
    assert all_bits(params) == all_bits(reference.params)
    want = [np.float64 if p.dtype == np.float64 else np.float32 for p in params]
    assert [s["exp_avg"].dtype for s in optimizer.state.values()] == want


def test_a_thousand_tensors() -> None:
    rng = np.random.default_rng(0)
    start = [rng.normal(size=int(n)) for n in rng.integers(0, 20, 1000)]
    params = copies(start)
    reference = Functions("adamw", start, RULES["adamw"].defaults())
    optimizer = adaptk.AdamW(params)
    for t in range(3):
        grads: list[Array | None] = [None if (i + t) % 5 == 0 else g for i, g in enumerate(like(params, t))]
        optimizer.step(grads)
        reference.step(grads)
    assert all_bits(params) == all_bits(reference.params)
    assert state_bits(optimizer) == reference.state_bits()


def test_empty_and_scalar_params() -> None:
    empty, scalar = np.zeros((0, 3)), np.array(2.0)
    optimizer = adaptk.SGD([empty, scalar], lr=0.5)
    optimizer.step([np.zeros((0, 3)), np.array(1.0)])
    assert scalar == 1.5
    optimizer.load_state_dict(optimizer.state_dict())


# Gradients that are None


@every_case
def test_none_leaves_a_param_and_its_step_count(case: Case) -> None:
    start = arrays(shapes=[(3,), (4,), (2,)])
    reference = Functions(case.rule, start, case.hyper)
    params = copies(start)
    optimizer = case(params)
    for t in range(12):
        grads: list[Array | None] = [g if t % (i + 1) == 0 else None for i, g in enumerate(like(params, t))]
        optimizer.step(grads)
        reference.step(grads)
    assert all_bits(params) == all_bits(reference.params)
    assert state_bits(optimizer) == reference.state_bits()
    saved = optimizer.state_dict()
    assert [int(saved[f"state.{i}.step"]) for i in range(3)] == reference.steps == [12, 6, 4]
    assert optimizer.step_count == 12


def test_none_for_all() -> None:
    params = arrays()
    optimizer = adaptk.Adam({"a": params[0], "b": params[1]})
    before = snapshot(optimizer, params)
    with pytest.warns(UserWarning, match="all gradients are None"):
        assert optimizer.step({"a": None, "b": None}, clip_norm=1.0) == (0.0, False)
    assert snapshot(optimizer, params) == {**before, "count": 1, "steps": {**before["steps"], "step": 1}}


# What is shown


def test_step_info() -> None:
    info = adaptk.SGD([np.zeros(2)]).step([np.array([3.0, 4.0])], clip_norm=1.0)
    assert info == adaptk.StepInfo(grad_norm=5.0, skipped=False)
    norm, skipped = info
    assert (norm, skipped) == (info.grad_norm, info.skipped)
    assert type(info.grad_norm) is float


def test_the_state_is_read_only_and_no_copy() -> None:
    params = arrays()
    optimizer = adaptk.Adam(params)
    with pytest.raises(TypeError):
        optimizer.state[0] = {}
    with pytest.raises(TypeError):
        optimizer.state[0]["exp_avg"] = np.zeros((3, 4), np.float32)
    optimizer.state[0]["exp_avg"][:] = 1.0
    assert optimizer.state[0]["exp_avg"][0, 0] == 1.0
    assert list(optimizer.state) == [0, 1]
    with pytest.raises(AttributeError):
        optimizer.step_count = 5


def test_repr() -> None:
    w = np.zeros(2)
    text = repr(adaptk.SGD([{"params": w}, {"params": [np.zeros(1), np.zeros(3)], "momentum": 0.5}], lr=0.25))
    lines = text.splitlines()
    assert lines[0] == "SGD("
    assert lines[1].startswith("  sgd: 1 params, lr=0.25, ")
    assert lines[2].startswith("  momentum: 2 params, lr=0.25, momentum=0.5, ")
    assert lines[3] == ")"
