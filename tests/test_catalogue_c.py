"""The catalogue's files by way of the C interface."""

from __future__ import annotations

from ctypes import c_size_t
from pathlib import Path

import adaptk
import c_abi
import numpy as np
import pytest
from adaptk import catalogue
from c_abi import lib
from helpers import same_bits

PROGRAMS = Path(catalogue.__file__).parent / "programs"


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
