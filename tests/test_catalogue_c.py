"""The catalogue's files through the C interface."""

from __future__ import annotations

from ctypes import c_size_t
from pathlib import Path

import adaptk
import c_abi
import numpy as np
import pytest
from adaptk import catalogue
from c_abi import lib
from helpers import first_tier, same_bits

PROGRAMS = Path(catalogue.__file__).parent / "programs"
PER = ["element", "tensor", "row", "column", "slice"]


@pytest.mark.parametrize("name", ["ademamix", "madgrad", "schedule_free_adamw", "adabound"])
def test_plans_have_the_same_bits_and_carry_numbers(name: str) -> None:
    data = (PROGRAMS / f"{name}.rule").read_bytes()
    key = lib.adaptk_rule_load(data, c_size_t(len(data))).contents.name.decode()
    rule = adaptk.rules()[name]
    assert key == rule.key
    p, q = (np.linspace(-1, 1, 300, dtype=np.float32) for _ in range(2))
    opt = adaptk.optimizer_for(name, [p], lr=0.1)
    states = [s.copy() for s in opt.state[0].values()]
    plan = c_abi.Plan(key, [q], states, lr=0.1)
    for step in range(4):
        for carried in rule.carried:
            assert plan.get(carried) == opt.param_groups[0][carried]
        grad = np.cos(np.arange(300, dtype=np.float32) + step)
        opt.step([grad])
        plan.step([grad])
    assert same_bits(p, q)
    assert all(same_bits(a, b) for a, b in zip(opt.state[0].values(), states, strict=True))


REDUCED = [
    "lamb", "novograd", "adam_mini_tensor", "adam_mini", "adafactor", "adafactor_momentum", "came", "sm3", "prodigy",
]  # fmt: skip
SHAPES = [(40, 300), (3, 5, 7), (11,), (), (1, 1), (0, 4), (70_000,), (300, 300)]


def loaded(name: str) -> str:
    data = (PROGRAMS / f"{name}.rule").read_bytes()
    return lib.adaptk_rule_load(data, c_size_t(len(data))).contents.name.decode()


@pytest.mark.parametrize("dtype", first_tier([np.float32, np.float64], np.float32))
@pytest.mark.parametrize("name", first_tier(REDUCED, "came", "novograd", "prodigy"))
def test_states_of_tensors_rows_and_columns(name: str, dtype: type) -> None:
    key, rule = loaded(name), adaptk.rules()[name]
    found = lib.adaptk_find_rule(key.encode())
    assert [PER[lib.adaptk_rule_state_per(found, s)] for s in range(len(rule.states))] == [s.per for s in rule.states]
    assert not any(lib.adaptk_rule_state_per_row(found, s) for s in range(len(rule.states)))
    rng = np.random.default_rng(1)
    params = [np.asarray(rng.normal(size=s), dtype) for s in SHAPES]
    own = [p.copy() for p in params]
    opt = adaptk.optimizer_for(name, params, lr=0.1)
    states = [np.full(s.shape_beside(p.shape), np.nan, dtype) for p in own for s in rule.states]
    plan = c_abi.Plan(key, own, states, lr=0.1)
    plan.init_states()
    by_step = [p.copy() for p in own], [s.copy() for s in states]
    for number in (1, 2, 3):
        grads = [np.asarray(rng.normal(size=s), dtype) for s in SHAPES]
        opt.step(grads)
        plan.step(grads)
        if not rule.carried:
            c_abi.step(key, by_step[0], grads, by_step[1], number, {"lr": 0.1})
    wanted = [opt.state[i][s.name] for i in range(len(own)) for s in rule.states]
    assert all(map(same_bits, own + states, params + wanted))
    if not rule.carried:
        assert all(map(same_bits, by_step[0] + by_step[1], params + wanted))


def test_errors_of_such_states() -> None:
    key = loaded("adafactor")
    p, grad = np.ones((4, 6), np.float32), np.ones((4, 6), np.float32)
    row, col = np.zeros((4, 1), np.float32), np.zeros((1, 6), np.float32)
    for of, status, message in (
        ([col, row], c_abi.INVALID_ARGUMENT, r"shape (1, 6), expected (4, 1): one number for each row"),
        ([row, row], c_abi.INVALID_ARGUMENT, r"shape (4, 1), expected (1, 6): one number for each column"),
        ([row.astype(np.float64), col], c_abi.INVALID_TYPE, "dtype float64, expected float32"),
        ([p[:, :1], col], c_abi.INVALID_ARGUMENT, "expected C order"),
        ([p.ravel()[:4].reshape(4, 1), col], c_abi.INVALID_ARGUMENT, "overlap"),
    ):
        with pytest.raises(c_abi.CError) as raised:
            c_abi.step(key, [p], [grad], of, 1)
        assert raised.value.status == status
        assert message in str(raised.value)
        assert "params[0]" in str(raised.value)
    turned = np.ones((6, 4), np.float32).T
    with pytest.raises(c_abi.CError, match="C order"):
        c_abi.step(key, [turned], [turned.copy(order="K")], [row, col], 1)
    assert (p == 1).all()
    assert not row.any()
    assert not col.any()
    assert PER[lib.adaptk_rule_state_per(lib.adaptk_find_rule(b"adam"), 9)] == "element"
    assert c_abi.error() == "index: 9, expected less than 2"
