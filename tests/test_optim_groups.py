"""Param groups and schedules of optimizer objects."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from optim_cases import (
    RULES,
    Case,
    Functions,
    Params,
    all_bits,
    arrays,
    copies,
    every_case,
    like,
    optimizer_hyper,
    other_value,
    snapshot,
    state_bits,
)


def test_groups_with_options_and_rules_of_their_own() -> None:
    options: list[dict[str, Any]] = [
        {"lr": 0.1, "momentum": 0.0},
        {"lr": 0.2},
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.01},
        {"maximize": True, "weight_decay": 0.01, "decoupled": True},
    ]
    start = arrays("float64", shapes=[(3,)] * 4)
    alone, together = copies(start), copies(start)
    singles = [adaptk.SGD([p], **{"lr": 0.3, "momentum": 0.9, **o}) for p, o in zip(alone, options, strict=True)]
    groups = [{"params": [p], **o} for p, o in zip(together, options, strict=True)]
    optimizer = adaptk.SGD(groups, lr=0.3, momentum=0.9)
    assert optimizer.rules == ("sgd", "momentum", "nesterov", "momentum")
    for t in range(20):
        grads = like(together, t)
        optimizer.step(grads)
        for single, grad in zip(singles, grads, strict=True):
            single.step([grad])
    assert all_bits(together) == all_bits(alone)


def test_rmsprop_groups_with_different_states() -> None:
    options: list[dict[str, Any]] = [{}, {"centered": True}, {"momentum": 0.9}, {"centered": True, "momentum": 0.5}]
    start = arrays(shapes=[(3,)] * 4)
    alone, together = copies(start), copies(start)
    singles = [adaptk.RMSProp([p], **o) for p, o in zip(alone, options, strict=True)]
    optimizer = adaptk.RMSProp([{"params": p, **o} for p, o in zip(together, options, strict=True)])
    for t in range(20):
        grads = like(together, t)
        info = optimizer.step(grads, clip_norm=1e6)
        assert info.grad_norm is not None
        for single, grad in zip(singles, grads, strict=True):
            single.step([grad])
    assert all_bits(together) == all_bits(alone)
    assert [len(s) for s in optimizer.state.values()] == [1, 2, 2, 3]


def test_add_param_group() -> None:
    start = arrays("float64", shapes=[(3,), (2,)])
    params = copies(start)
    optimizer = adaptk.Adam(params[:1], lr=0.1)
    first, second = Functions("adam", start[:1], optimizer_hyper(optimizer)), None
    for t in range(10):
        if t == 4:
            optimizer.add_param_group({"params": params[1:], "lr": 0.2, "amsgrad": True})
            second = Functions("amsgrad", start[1:], {**RULES["amsgrad"].defaults(), "lr": 0.2})
        grads = like(params, t)
        optimizer.step(grads[: 1 if second is None else 2])
        first.step(grads[:1])
        if second is not None:
            second.step(grads[1:])
    assert second is not None
    assert all_bits(params) == all_bits([*first.params, *second.params])
    assert optimizer.rules == ("adam", "amsgrad")


BAD_GROUPS: dict[str, tuple[Callable[[Params], Any], type[Exception]]] = {
    "a list": (lambda ps: ps[1:], TypeError),
    "without params": (lambda ps: {"lr": 0.1}, TypeError),
    "empty": (lambda ps: {"params": []}, ValueError),
    "an unknown option": (lambda ps: {"params": ps[1:], "rho": 0.9}, TypeError),
    "an option out of range": (lambda ps: {"params": ps[1:], "lr": -1.0}, ValueError),
    "a param that is there": (lambda ps: {"params": [ps[1], ps[0][:1]]}, ValueError),
    "a param that does not work": (lambda ps: {"params": [ps[1], np.zeros(2, int)]}, TypeError),
    "named": (lambda ps: {"params": {"w": ps[1]}}, ValueError),
    "a schedule that fails": (lambda ps: {"params": ps[1:], "lr": lambda t: 1 / 0}, ZeroDivisionError),
}


@pytest.mark.parametrize("what", BAD_GROUPS)
def test_a_group_that_cannot_be_added_changes_nothing(what: str) -> None:
    make, error = BAD_GROUPS[what]
    params = arrays("float64")
    optimizer = adaptk.Adam(params[:1])
    optimizer.step(like(params[:1], 0))
    before = snapshot(optimizer, params)
    with pytest.raises(error):
        optimizer.add_param_group(make(params))
    assert snapshot(optimizer, params) == before
    optimizer.step(like(params[:1], 1))
    assert optimizer.step_count == 2


@every_case
def test_edits_of_param_groups_take_effect_at_the_next_step(case: Case) -> None:
    start = arrays()
    reference = Functions(case.rule, start, case.hyper)
    params = copies(start)
    optimizer = case(params)
    optimizer.step(like(params, 0))
    reference.step(like(params, 0))
    for h in RULES[case.rule].hyperparameters:
        value = other_value(h, case.hyper[h.name])
        optimizer.param_groups[0][h.name] = value
        reference.hyper[h.name] = value
        optimizer.step(like(params, 1))
        reference.step(like(params, 1))
        assert all_bits(params) == all_bits(reference.params), h.name
    assert state_bits(optimizer) == reference.state_bits()


@every_case
def test_edits_out_of_range_raise_and_change_nothing(case: Case) -> None:
    params = arrays()
    optimizer = case(params)
    optimizer.step(like(params, 0))
    before = snapshot(optimizer, params)
    for h in RULES[case.rule].hyperparameters:
        for value, error in ((math.nan, ValueError), ("1", TypeError), (None, TypeError)):
            kept = optimizer.param_groups[0][h.name]
            optimizer.param_groups[0][h.name] = value
            with pytest.raises(error, match=h.name):
                optimizer.step(like(params, 1))
            optimizer.param_groups[0][h.name] = kept
    assert snapshot(optimizer, params) == before


def test_numbers_of_other_types() -> None:
    params, want = arrays(), arrays()
    optimizer = adaptk.SGD(params, lr=np.float64(0.5), maximize=np.True_)
    optimizer.step(like(params, 0), clip_norm=np.float32(2.0), grad_scale=1, skip_nonfinite=np.True_)
    adaptk.SGD(want, lr=0.5, maximize=True).step(like(want, 0), clip_norm=2.0, grad_scale=1.0, skip_nonfinite=True)
    assert all_bits(params) == all_bits(want)


# Schedules


def test_a_schedule_is_called_with_the_step_that_is_taken() -> None:
    calls: list[Any] = []
    params = arrays()
    optimizer = adaptk.SGD(params, lr=lambda t: calls.append(t) or 0.1, skip_nonfinite=True)
    calls.clear()
    for t in range(3):
        optimizer.step(like(params, t))
    assert calls == [1, 2, 3]
    assert all(type(t) is int for t in calls)
    optimizer.step([np.full_like(p, np.inf) for p in params])
    with pytest.raises(ValueError, match="grads"):
        optimizer.step([])
    calls.clear()
    optimizer.step(like(params, 3))
    assert calls == [4]


@pytest.mark.parametrize("rule", ["sgd", "delta_bar_delta", "adam"])
def test_a_schedule_gives_the_rate_of_each_step(rule: str) -> None:
    schedule = adaptk.schedules.cosine(0.1, total=20, warmup=5)
    start = arrays()
    reference = Functions(rule, start, {**RULES[rule].defaults(), "lr": schedule(1)})
    params = copies(start)
    optimizer = adaptk.optimizer_for(rule, params, schedule)
    for t in range(25):
        optimizer.step(like(params, t))
        reference.step(like(params, t), lr=schedule(t + 1))
    assert all_bits(params) == all_bits(reference.params)
    assert optimizer.param_groups[0]["lr"] is schedule


def test_each_group_has_its_own_schedule() -> None:
    params = arrays("float64", shapes=[(2,), (2,), (2,)])
    start = copies(params)
    optimizer = adaptk.SGD(
        [{"params": params[0]}, {"params": params[1], "lr": lambda t: 10.0 * t}, {"params": params[2], "lr": 0.5}],
        lr=lambda t: float(t),
    )
    for _ in range(2):
        optimizer.step([np.ones(2)] * 3)
    assert [float(p[0] - s[0]) for p, s in zip(params, start, strict=True)] == pytest.approx([-3.0, -30.0, -1.0])


def test_a_schedule_can_replace_a_rate_and_be_replaced() -> None:
    w = np.zeros(1)
    optimizer = adaptk.SGD([w], lr=1.0)
    optimizer.step([np.ones(1)])
    optimizer.param_groups[0]["lr"] = lambda t: 10.0 * t
    optimizer.step([np.ones(1)])
    optimizer.param_groups[0]["lr"] = 100.0
    optimizer.step([np.ones(1)])
    assert w[0] == -121.0


SCHEDULED = {
    "adamw": ("beta1", "beta2", "eps", "weight_decay"),
    "momentum": ("momentum", "weight_decay", "grad_scale"),
    "rmsprop_centered": ("rho", "eps_in", "weight_decay"),
    "ademamix": ("alpha", "beta3"),
    "delta_bar_delta": ("lr", "kappa", "theta"),
}


@pytest.mark.parametrize("rule", SCHEDULED)
def test_any_number_can_be_a_schedule(rule: str) -> None:
    defaults = adaptk.rules()[rule].defaults()
    schedules = {
        name: (lambda t, d=float(defaults[name]): 0.5 * d + 0.01 / (1 + t) if d < 2 else d - 0.1 / t)
        for name in SCHEDULED[rule]
    }
    scheduled, by_hand = np.linspace(-1, 1, 40), np.linspace(-1, 1, 40)
    a = adaptk.optimizer_for(rule, [scheduled], **schedules)
    b = adaptk.optimizer_for(rule, [by_hand], **{name: s(1) for name, s in schedules.items()})
    for t in range(5):
        grad = np.cos(np.arange(40.0) + t)
        b.param_groups[0].update({name: s(t + 1) for name, s in schedules.items()})
        a.step([grad])
        b.step([grad])
        np.testing.assert_array_equal(scheduled, by_hand)
    assert all(a.param_groups[0][name] is s for name, s in schedules.items())
    saved = a.state_dict()
    assert not any(f"param_groups.0.{name}" in saved for name in schedules)
    again = adaptk.optimizer_for(rule, [by_hand], **schedules)
    again.load_state_dict(saved)
    for optimizer, param in ((a, scheduled), (again, by_hand)):
        optimizer.step([np.ones(40)])
        assert optimizer.step_count == 6
        np.testing.assert_array_equal(param, scheduled)
    constant = adaptk.optimizer_for(rule, [by_hand])
    with pytest.raises(ValueError, match=r"was saved with a schedule, and this optimizer has"):
        constant.load_state_dict(saved)
    constant.load_state_dict({**saved, **{f"param_groups.0.{n}": np.float64(defaults[n]) for n in schedules}})


def test_invalid_schedules() -> None:
    w = np.zeros(2)
    with pytest.raises(TypeError, match=r"^amsgrad: expected a bool"):
        adaptk.Adam([w], amsgrad=lambda t: True)
    with pytest.raises(TypeError, match=r"^maximize: expected a bool, got function"):
        adaptk.Adam([w], maximize=lambda t: True)
    with pytest.raises(TypeError, match=r"^weight_decay: this schedule counts from 0"):
        adaptk.AdamW([w], weight_decay=adaptk.schedules.constant(0.1).from_zero())
    for bad, error in ((lambda t: 1.5, ValueError), (lambda t: "x", TypeError)):
        opt = adaptk.Adam([w], beta1=bad)
        with pytest.raises(error, match=r"^beta1: "):
            opt.step([np.ones(2)])
        assert opt.step_count == 0
        np.testing.assert_array_equal(w, 0.0)
