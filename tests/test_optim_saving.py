"""State dicts of optimizer objects."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import adaptk
import numpy as np
import pytest
from optim_cases import (
    BY_RULE,
    FORMS,
    RULES,
    Array,
    Case,
    all_bits,
    arrays,
    bits,
    copies,
    every_case,
    every_dtype,
    like,
    optimizer_hyper,
    snapshot,
    through_npz,
    through_read_only,
)


def through_npz_file(saved: Mapping[str, Any]) -> Any:
    file = io.BytesIO()
    np.savez_compressed(file, **saved)
    file.seek(0)
    return np.load(file, allow_pickle=False)


def through_pickle(saved: Mapping[str, Any]) -> Any:
    return pickle.loads(pickle.dumps(saved))


def through_safetensors(saved: Mapping[str, Any]) -> Any:
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    return safetensors.load(safetensors.save(dict(saved)))


def through_numbers(saved: Mapping[str, Any]) -> Any:
    return {k: v.item() if v.ndim == 0 and k.split(".")[0] != "state" else v for k, v in saved.items()}


WAYS = {
    f.__name__.removeprefix("through_"): f
    for f in (through_npz, through_npz_file, through_pickle, through_safetensors, through_read_only, through_numbers)
}


def half_way(case: Case, dtype: str, through: Callable[[Mapping[str, Any]], Any]) -> None:
    """A run that is saved and loaded halfway, against one that is not."""
    straight = arrays(dtype, shapes=[(4, 3), (5,), ()])
    one = case(straight, lr=0.05)
    first = copies(straight)
    saved = case(first, lr=0.05)
    for t in range(6):
        grads: list[Array | None] = list(like(straight, t))
        if t % 2:
            grads[0] = None
        one.step(grads)
        if t < 3:
            saved.step(grads)
    second = copies(first)
    loaded = case(second, lr=123.0)
    loaded.load_state_dict(through(saved.state_dict()))
    assert snapshot(loaded, second) == snapshot(saved, first)
    for t in range(3, 6):
        grads = list(like(straight, t))
        if t % 2:
            grads[0] = None
        loaded.step(grads)
    assert snapshot(loaded, second) == snapshot(one, straight)


@every_dtype
@every_case
def test_resuming_is_bit_exact(case: Case, dtype: str) -> None:
    half_way(case, dtype, dict)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", ["sgd", "rmsprop_centered_momentum", "adan"])
def test_file_formats(rule: str, way: str) -> None:
    half_way(BY_RULE[rule], "float32", WAYS[way])


def test_a_state_dict_is_flat_plain_and_a_copy() -> None:
    params = {"a.b": np.zeros((2, 3), np.float32).T, "c": np.zeros(2)}
    optimizer = adaptk.Adam(params, lr=0.25)
    optimizer.step({"a.b": np.ones((2, 3), np.float32).T, "c": np.ones(2)})
    saved = optimizer.state_dict()
    hyper = {f"param_groups.0.{h.name}" for h in RULES["adam"].hyperparameters}
    states = {f"state.{k}.{s}" for k in params for s in ("step", "exp_avg", "exp_avg_sq")}
    assert set(saved) == {"step", "param_groups.0.rule", *states, *hyper}
    assert all(type(v) is np.ndarray for v in saved.values())
    assert saved["param_groups.0.lr"] == 0.25
    assert saved["step"].dtype == saved["state.c.step"].dtype == np.int64
    assert saved["state.a.b.exp_avg"].shape == (3, 2)
    before = snapshot(optimizer, list(params.values()))
    for v in saved.values():
        v[...] = 7
    assert snapshot(optimizer, list(params.values())) == before
    arrays_before = {(k, n): x for k, s in optimizer.state.items() for n, x in s.items()}
    given = {**optimizer.state_dict(), "state.c.exp_avg": np.full(2, 0.5)}
    optimizer.load_state_dict(given)
    given["state.c.exp_avg"][:] = 0.0
    assert optimizer.state["c"]["exp_avg"].tolist() == [0.5, 0.5]
    assert all(optimizer.state[k][n] is x for (k, n), x in arrays_before.items())


def test_hyperparameters_are_loaded_into_their_groups() -> None:
    def make(**second: Any) -> adaptk.Optimizer:
        return adaptk.SGD([{"params": np.zeros(2)}, {"params": np.zeros(3), "momentum": 0.5, **second}], lr=0.1)

    saved, loaded = make(lr=0.7, maximize=True, weight_decay=0.01), make()
    loaded.load_state_dict(saved.state_dict())
    assert [optimizer_hyper(loaded, i) for i in range(2)] == [optimizer_hyper(saved, i) for i in range(2)]
    assert loaded.param_groups[1]["maximize"] is True
    assert type(loaded.param_groups[1]["lr"]) is float


def test_a_schedule_is_left_alone() -> None:
    schedule = adaptk.schedules.exponential(0.1, gamma=0.9)
    straight, first = arrays(), arrays()
    one, scheduled = adaptk.SGD(straight, schedule), adaptk.SGD(first, schedule)
    for t in range(4):
        one.step(like(straight, t))
    for t in range(2):
        scheduled.step(like(first, t))
    saved = scheduled.state_dict()
    assert "param_groups.0.lr" not in saved
    again = adaptk.SGD(first, schedule)
    again.load_state_dict(saved)
    assert again.param_groups[0]["lr"] is schedule
    for t in range(2, 4):
        again.step(like(first, t))
    assert all_bits(first) == all_bits(straight)
    fixed = adaptk.SGD(first, 0.1)
    fixed.load_state_dict({**saved, "param_groups.0.lr": 0.3})
    assert fixed.param_groups[0]["lr"] == 0.3
    again.load_state_dict(fixed.state_dict())
    assert again.param_groups[0]["lr"] is schedule


def test_states_of_another_precision() -> None:
    wide = arrays("float64")
    double = adaptk.Adam(wide)
    for t in range(3):
        double.step(like(wide, t))
    narrow = arrays("float32")
    single = adaptk.Adam(narrow)
    single.load_state_dict(double.state_dict())
    for i in range(2):
        assert bits(single.state[i]["exp_avg"]) == bits(double.state[i]["exp_avg"].astype(np.float32))
    double.load_state_dict(single.state_dict())
    assert bits(double.state[0]["exp_avg"]) == bits(single.state[0]["exp_avg"].astype(np.float64))
    single.load_state_dict({**single.state_dict(), "state.1.exp_avg": np.full(5, 1e300)})
    assert np.isposinf(single.state[1]["exp_avg"]).all()


BAD_STATES: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "a missing state": ({}, ("state.1.sum",), "missing ['state.1.sum']"),
    "a missing step": ({}, ("step",), "missing ['step']"),
    "a missing hyperparameter": (
        {},
        ("param_groups.0.eps_in",),
        "no 'param_groups.0.eps_in': it is missing, or was saved with a schedule",
    ),
    "an unexpected key": ({"state.2.sum": np.zeros(2)}, (), "unexpected ['state.2.sum']"),
    "a wrong shape": ({"state.1.sum": np.zeros(4)}, (), "state_dict['state.1.sum']: shape (4,), expected (5,)"),
    "a broadcast": ({"state.1.sum": np.zeros(1)}, (), "state_dict['state.1.sum']: shape (1,), expected (5,)"),
    "a step of a wrong shape": ({"state.1.step": np.zeros(2, int)}, (), "state_dict['state.1.step']: shape (2,)"),
    "a complex state": ({"state.1.sum": np.zeros(5, complex)}, (), "state_dict['state.1.sum']: dtype complex128"),
    "a state of text": ({"state.1.sum": np.full(5, "a")}, (), "state_dict['state.1.sum']: dtype <U1"),
    "a step that is no integer": ({"step": np.array(1.5)}, (), "state_dict['step']: dtype float64, expected int64"),
    "a negative step": ({"state.1.step": np.array(-1)}, (), "a step count below 0"),
    "a negative count": ({"step": np.array(-1)}, (), "a step count below 0"),
    "a rate of NaN": ({"param_groups.0.lr": np.array(math.nan)}, (), "lr: nan is not in"),
    "a decay out of range": ({"param_groups.0.lr_decay": np.array(-1.0)}, (), "lr_decay: -1 is not in"),
    "a flag of 2": ({"param_groups.0.maximize": np.array(2)}, (), "maximize: 2 is not a bool"),
}


@pytest.mark.parametrize("what", BAD_STATES)
def test_a_state_that_cannot_be_loaded_changes_nothing(what: str) -> None:
    changes, without, text = BAD_STATES[what]
    params = arrays()
    optimizer = adaptk.AdaGrad(params)
    optimizer.step(like(params, 0))
    saved = {**optimizer.state_dict(), "state.0.sum": np.full((3, 4), 9.0), **changes}
    for key in without:
        del saved[key]
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=re.escape(text)):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer, params) == before


def test_states_of_other_optimizers() -> None:
    saved = adaptk.Adam(arrays()).state_dict()
    with pytest.raises(ValueError, match="state_dict: missing"):
        adaptk.Adam(FORMS["dict"](arrays())).load_state_dict(saved)
    for key in list(saved):
        if key.endswith("rule"):  # as an older version saved it
            del saved[key]
    for other in (adaptk.Adam(arrays(), amsgrad=True), adaptk.SGD(arrays())):
        with pytest.raises(ValueError, match=r"state_dict: (missing|unexpected)"):
            other.load_state_dict(saved)
    with pytest.raises(TypeError, match="state_dict: expected a mapping, got list"):
        adaptk.Adam(arrays()).load_state_dict(list(saved))
