"""Rules that keep one number for each row, in C."""

from __future__ import annotations

import adaptk
import numpy as np
import pytest
from c_abi import DENSE, INVALID_ARGUMENT, INVALID_TYPE, LAZY, CError, Plan, lib, rows, step, step_rows
from helpers import same_bits
from row_wise_oracles import PER_ROW, RULES, STATES, new_states
from sparse_cases import gradient

SHAPE = (30, 9)
every_rule = pytest.mark.parametrize("rule", RULES)


@every_rule
def test_steps_and_plans(rule: str) -> None:
    start = new_states(rule, SHAPE)
    indices, values = gradient(30, (9,), 40, 1)
    whole = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    for mode, name in ((LAZY, "lazy"), (DENSE, "dense")):
        got, want = ({n: x.copy() for n, x in start.items()} for _ in range(2))
        p, q = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
        step_rows(rule, [p], [rows(indices, values)], list(got.values()), 3, mode, lr=0.1)
        step(rule, [p], [whole], list(got.values()), 4, {"lr": 0.1})
        function = getattr(adaptk.ops, rule)
        function(q, (indices, values), *want.values(), step=3, lr=0.1, sparse=name)
        function(q, whole, *want.values(), step=4, lr=0.1)
        assert same_bits(p, q)
        assert all(same_bits(got[n], want[n]) for n in STATES[rule])
    p, q = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    states = [np.full(30 if n == PER_ROW[rule] else SHAPE, np.nan, np.float32) for n in STATES[rule]]
    plan = Plan(rule, [p], states, lr=0.1)
    plan.init_states()
    opt = adaptk.optimizer_for(rule, [q], lr=0.1)
    for _ in range(2):
        plan.step([whole])
        opt.step([whole])
    assert same_bits(p, q)
    assert all(same_bits(x, opt.state[0][n]) for x, n in zip(states, STATES[rule], strict=True))


@every_rule
def test_which_states_have_a_number_for_each_row(rule: str) -> None:
    found = lib.adaptk_find_rule(rule.encode())
    assert [lib.adaptk_rule_state_per_row(found, i) for i in range(len(STATES[rule]))] == [
        int(n == PER_ROW[rule]) for n in STATES[rule]
    ]
    assert lib.adaptk_rule_state_per_row(lib.adaptk_find_rule(b"adam"), 1) == 0
    assert lib.adaptk_rule_state_per_row(found, 9) == 0
    assert b"index: 9" in lib.adaptk_last_error()


@every_rule
def test_refused(rule: str) -> None:
    p, grad = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    at = STATES[rule].index(PER_ROW[rule])
    for state, status, message in (
        (np.zeros(SHAPE, np.float32), INVALID_ARGUMENT, "shape (30, 9), expected (30,): one number for each row"),
        (np.zeros(30), INVALID_TYPE, "dtype float64, expected float32 beside a float32 param"),
        (p.ravel()[:30], INVALID_ARGUMENT, "overlap"),
    ):
        states = list(new_states(rule, SHAPE).values())
        states[at] = state
        with pytest.raises(CError) as raised:
            step(rule, [p], [grad], states, 1)
        assert raised.value.status == status
        assert message in str(raised.value)
    turned = np.ones((9, 30), np.float32).T
    states = [np.ones((9, 30), np.float32).T if x.ndim == 2 else x for x in new_states(rule, SHAPE).values()]
    with pytest.raises(CError, match="expected C order, where rows lie one behind the other"):
        step(rule, [turned], [turned.copy(order="K")], states, 1)
    assert (p == 1).all()
