"""A rule made at run time, loaded from its bytes by the C interface."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_size_t
from typing import Any

import c_abi
import numpy as np
import pytest
from c_abi import lib
from helpers import RULES, same_bits
from traced_rules import traced


def loaded(data: bytes) -> Any:
    return lib.adaptk_rule_load(data, c_size_t(len(data)))


@pytest.mark.parametrize("rule", RULES)
def test_the_bits_of_the_compiled_rule(rule: str) -> None:
    with traced(rule) as made:
        found = loaded(made.to_bytes())
    info = found.contents
    name = info.name.decode()
    assert name == made.rule.key
    assert name.startswith(f"traced_{rule}@")
    assert (info.hyper_count, info.state_count) == (len(RULES[rule].hyperparameters), len(RULES[rule].states))
    assert lib.adaptk_rule_hyper(found, c_size_t(0)).contents.name == b"lr"
    assert lib.adaptk_rule_preset_count(found) == 0
    assert ctypes.addressof(loaded(made.to_bytes()).contents) == ctypes.addressof(info)
    assert ctypes.addressof(lib.adaptk_find_rule(info.name).contents) == ctypes.addressof(info)
    rng = np.random.default_rng(1)
    start = [rng.normal(size=n).astype(np.float32) for n in (1, 1000, 50_001)]
    runs = []
    for of in (rule, name):
        params = [p.copy() for p in start]
        states = c_abi.new_states(rule, params)
        plan = c_abi.Plan(of, params, states)
        for step in (1, 2):
            plan.step([p * np.float32(step) for p in start])
        runs.append([*params, *states])
    for a, b in zip(*runs, strict=True):
        assert same_bits(a, b)


def test_errors() -> None:
    with traced("adam") as made:
        data = made.to_bytes()
    assert not loaded(data[:-1])
    assert c_abi.error().startswith("bytes: they have changed")
    assert not loaded(b"")
    assert c_abi.error() == "bytes: they are not those of a rule"
    assert not lib.adaptk_rule_load(None, c_size_t(0))
    assert c_abi.error() == "bytes: NULL"
    assert not lib.adaptk_find_rule(b"traced_adam@99999")
    assert "unknown rule" in c_abi.error()
    assert not lib.adaptk_rule_at(c_size_t(len(RULES)))
    found = loaded(data)
    assert lib.adaptk_state_format(found, c_size_t(1), b"8bit").contents.name == b"uint8"
    assert not lib.adaptk_state_format(found, c_size_t(2), b"8bit")
    status = lib.adaptk_step(
        found.contents.name, None, c_size_t(0), c_int64(0), c_size_t(1), None, None, None, None, None
    )
    assert status == c_abi.INVALID_ARGUMENT
