"""Conventions and options of optimizer objects."""

from __future__ import annotations

import math
from typing import Any

import adaptk
import numpy as np
import pytest
from optim_cases import (
    BY_RULE,
    DTYPES,
    RULES,
    Case,
    all_bits,
    arrays,
    copies,
    every_case,
    like,
    optimizer_hyper,
    other_value,
)

PAIRS = [(name, convention) for name, rule in RULES.items() for convention in rule.conventions]


@pytest.mark.parametrize(("rule", "convention"), PAIRS)
def test_a_convention_sets_defaults_and_states(rule: str, convention: str) -> None:
    optimizer = BY_RULE[rule]([np.zeros(2)], convention=convention)
    assert optimizer_hyper(optimizer) == {**RULES[rule].defaults(convention), **BY_RULE[rule].given()}
    initial = RULES[rule].initial_states(convention)
    assert {name: float(x[0]) for name, x in optimizer.state[0].items()} == initial


@pytest.mark.parametrize(("rule", "convention"), PAIRS)
def test_explicit_arguments_win(rule: str, convention: str) -> None:
    values = RULES[rule].defaults(convention)
    for h in RULES[rule].hyperparameters:
        value = other_value(h, values[h.name])
        for optimizer in (
            BY_RULE[rule]([np.zeros(2)], convention=convention, **{h.name: value}),
            BY_RULE[rule]([{"params": np.zeros(2), h.name: value}], convention=convention),
            adaptk.optimizer_for(rule, [np.zeros(2)], convention=convention, **{h.name: value}),
        ):
            assert optimizer.rules == (rule,)
            assert optimizer.param_groups[0][h.name] == value, h.name


def test_unknown_conventions() -> None:
    with pytest.raises(ValueError, match="convention: 'jax' is not one of book, torch, keras, tf1, optax"):
        adaptk.Adam([np.zeros(2)], convention="jax")
    with pytest.raises(ValueError, match="delta_bar_delta has no convention 'torch'; it has book"):
        adaptk.DeltaBarDelta([np.zeros(2)], convention="torch")


@pytest.mark.parametrize(
    ("make", "convention", "place"),
    [
        *((adaptk.AdaGrad, c, p) for c, p in zip(adaptk.CONVENTIONS, ("out", "out", "in", "out", "in"), strict=True)),
        *((adaptk.RMSProp, c, p) for c, p in zip(adaptk.CONVENTIONS, ("in", "out", "in", "in", "in"), strict=True)),
    ],
)
def test_eps_goes_where_the_convention_has_it(make: Any, convention: str, place: str) -> None:
    other = "eps_out" if place == "in" else "eps_in"
    default = optimizer_hyper(make([np.zeros(2)], convention=convention))
    for params, options in (([np.zeros(2)], {"eps": 0.5}), ([{"params": np.zeros(2), "eps": 0.5}], {"eps": 0.25})):
        got = optimizer_hyper(make(params, convention=convention, **options))
        assert got == {**default, f"eps_{place}": 0.5}
    for options in ({"eps": 0.5, other: 0.25}, {other: 0.25, "eps": 0.5}):
        got = optimizer_hyper(make([np.zeros(2)], convention=convention, **options))
        assert got == {**default, f"eps_{place}": 0.5, other: 0.25}
    with pytest.raises(TypeError, match=f"eps_{place} here, which is given too"):
        make([np.zeros(2)], convention=convention, eps=0.5, **{f"eps_{place}": 0.25})
    with pytest.raises(ValueError, match=f"eps_{place}: -1 is not in"):
        make([np.zeros(2)], convention=convention, eps=-1.0)


def test_initial_accumulator_value() -> None:
    for make in (adaptk.AdaGrad, adaptk.RMSProp):
        w, v = np.zeros(2), np.zeros(3)
        optimizer = make([{"params": w}, {"params": v, "initial_accumulator_value": 0.25}], initial_accumulator_value=2)
        assert [float(next(iter(s.values()))[0]) for s in optimizer.state.values()] == [2.0, 0.25]
        for bad in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="initial_accumulator_value"):
                make([w], initial_accumulator_value=bad)
    with pytest.raises(TypeError, match="initial_accumulator_value"):
        adaptk.Adam([np.zeros(2)], initial_accumulator_value=0.1)


@every_case
def test_an_unknown_option(case: Case) -> None:
    text = rf"{case.name}\(\) got an unexpected keyword argument 'learning_rate' \(did you mean 'lr'\?\); it takes lr, "
    with pytest.raises(TypeError, match=text):
        case([np.zeros(2)], learning_rate=0.1)


@pytest.mark.parametrize(
    ("make", "options", "name"),
    [
        (adaptk.SGD, {"dampening": 0.1}, "dampening"),
        (adaptk.SGD, {"momentum": 0.0, "velocity": True}, "velocity"),
        (adaptk.RMSProp, {"lr_inside": True}, "lr_inside"),
        (adaptk.RMSProp, {"nesterov": True, "lr_inside": False}, "lr_inside"),
    ],
)
def test_an_option_of_another_variant(make: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: {make.__name__} does not take it in its"):
        make([np.zeros(2)], **options)


def test_incompatible_variants() -> None:
    w = [np.zeros(2)]
    for momentum in ({}, {"momentum": 0.0}):
        with pytest.raises(ValueError, match="nesterov: needs a momentum"):
            adaptk.SGD(w, nesterov=True, **momentum)
    with pytest.raises(ValueError, match="RMSProp has no rule that is centered and nesterov"):
        adaptk.RMSProp(w, centered=True, nesterov=True)
    for make, name in ((adaptk.RMSProp, "centered"), (adaptk.Adam, "amsgrad"), (adaptk.SGD, "nesterov")):
        with pytest.raises(TypeError, match=f"{name}: expected a bool, got int"):
            make(w, **{name: 1})
    assert adaptk.SGD(w, momentum=0.0).rules == ("sgd",)
    assert adaptk.RMSProp(w, nesterov=True).rules == ("rmsprop_nesterov",)
    assert adaptk.RMSProp(w, nesterov=True, momentum=0.5).param_groups[0]["momentum"] == 0.5
    assert adaptk.RMSProp(w, centered=False, momentum=0, nesterov=False).rules == ("rmsprop",)


def test_amsgrad_of_adamw_decays_decoupled() -> None:
    params, want = arrays("float64"), arrays("float64")
    adamw, adam = adaptk.AdamW(params, lr=0.1, amsgrad=True), adaptk.Adam(want, lr=0.1, amsgrad=True)
    assert adamw.rules == adam.rules == ("amsgrad",)
    for t in range(3):
        grads = like(params, t)
        for p in want:
            p *= 1 - 0.1 * 0.01
        adamw.step(grads)
        adam.step(grads)
    assert all_bits(params) == all_bits(want)


@every_case
def test_maximize(case: Case) -> None:
    up, down = arrays(), arrays()
    one, other = case(up, maximize=True), case(down)
    for t in range(5):
        grads = like(up, t)
        one.step([-g for g in grads])
        other.step(grads)
    assert all_bits(up) == all_bits(down)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weight_decay(dtype: str) -> None:
    kind = DTYPES[dtype]
    lr, decay, shrink = kind(0.1), kind(0.3), kind(1 - 0.1 * 0.3)
    for decoupled in (False, True):
        params = arrays(dtype)
        want = copies(params)
        optimizer = adaptk.SGD(params, lr=0.1, weight_decay=0.3, decoupled=decoupled)
        for t in range(3):
            grads = like(params, t)
            optimizer.step(grads)
            for i, g in enumerate(grads):
                p = want[i]
                want[i] = p * shrink - lr * g if decoupled else p - lr * (g + decay * p)
        assert all_bits(params) == all_bits(want)
