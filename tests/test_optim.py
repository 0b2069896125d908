"""Optimizer objects against the functions of adaptk.ops, and what only objects have: groups, states, saving."""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import itertools
import math
import pickle
import pkgutil
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import adaptk
import numpy as np
import pytest

Array = np.ndarray[Any, Any]
Params = list[Any]

RULES = adaptk.rules()
SHAPES = ((3, 4), (5,))
DTYPES: dict[str, Any] = {"float32": np.float32, "float64": np.float64, "float16": np.float16}
if find_spec("ml_dtypes"):
    from ml_dtypes import bfloat16

    DTYPES["bfloat16"] = bfloat16


class Case(NamedTuple):
    """A class, the options that make it run a rule, and the hyperparameters that it has then."""

    name: str
    options: dict[str, Any]
    rule: str
    hyper: dict[str, Any]

    def __call__(self, params: Any, **options: Any) -> adaptk.Optimizer:
        return getattr(adaptk, self.name)(params, **{**self.options, **options})

    def given(self) -> dict[str, Any]:
        """The options that are hyperparameters of the rule."""
        return {k: v for k, v in self.options.items() if k in self.hyper}


def cases() -> list[Case]:
    found = []
    for rule in RULES.values():
        for name in rule.class_names:
            options: dict[str, Any] = dict.fromkeys(rule.variant, True)
            if "momentum" in options or (name, rule.variant) == ("SGD", ("nesterov",)):
                options["momentum"] = 0.9
            hyper = rule.defaults()
            if name == "AdamW":
                hyper.update(weight_decay=1e-2, decoupled=True)
            found.append(Case(name, options, rule.name, hyper))
    return found


CASES = cases()
BY_RULE = {case.rule: case for case in reversed(CASES)}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}-{c.rule}")
every_rule = pytest.mark.parametrize("rule", RULES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def arrays(dtype: str = "float32", seed: int = 0, shapes: Sequence[tuple[int, ...]] = SHAPES) -> Params:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(DTYPES[dtype]) for shape in shapes]


def like(params: Sequence[Any], seed: int) -> list[Array]:
    """Gradients for params."""
    rng = np.random.default_rng([1, seed])
    return [rng.normal(size=p.shape).astype(p.dtype) for p in params]


def copies(params: Sequence[Array]) -> list[Array]:
    return [p.copy() for p in params]


def bits(x: Any) -> bytes:
    """The elements of an array or a tensor in C order."""
    if isinstance(x, np.ndarray):
        return x.tobytes()
    import torch

    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def all_bits(several: Sequence[Any]) -> list[bytes]:
    return [bits(x) for x in several]


def snapshot(optimizer: adaptk.Optimizer, params: Sequence[Any]) -> dict[str, Any]:
    """Everything that a step may change."""
    saved = optimizer.state_dict()
    return {
        "params": all_bits(params),
        "states": {(k, n): bits(x) for k, s in optimizer.state.items() for n, x in s.items()},
        "steps": {k: int(v) for k, v in saved.items() if k.split(".")[-1] == "step"},
        "count": optimizer.step_count,
        "groups": [{k: repr(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
    }


def state_bits(optimizer: adaptk.Optimizer) -> list[bytes]:
    return [bits(x) for s in optimizer.state.values() for x in s.values()]


def in_another_process(code: str) -> None:
    """For what would end this one if it went wrong."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


class Functions:
    """The same updates by the function of the rule: the states in lists, the steps counted here."""

    def __init__(self, rule: str, params: Sequence[Array], hyper: Mapping[str, Any], convention: str = "book") -> None:
        self.function = getattr(adaptk.ops, rule)
        self.params = copies(params)
        self.hyper = dict(hyper)
        self.steps = [0] * len(params)
        initial = RULES[rule].initial_states(convention, self.hyper)
        self.states = {
            name: [np.full(p.shape, value, np.float64 if p.dtype == np.float64 else np.float32) for p in params]
            for name, value in initial.items()
        }

    def step(self, grads: Sequence[Array | None], **hyper: Any) -> None:
        for i, grad in enumerate(grads):
            if grad is not None:
                self.steps[i] += 1
                states = [s[i] for s in self.states.values()]
                self.function(self.params[i], grad, *states, step=self.steps[i], **{**self.hyper, **hyper})

    def step_all(self, grads: Sequence[Array], **hyper: Any) -> None:
        """All tensors in one call."""
        self.steps = [t + 1 for t in self.steps]
        self.function(self.params, list(grads), *self.states.values(), step=self.steps[0], **{**self.hyper, **hyper})

    def state_bits(self) -> list[bytes]:
        return [bits(s[i]) for i in range(len(self.params)) for s in self.states.values()]


def rates(n: int) -> list[float]:
    """Learning rates of n steps, no two in a row alike."""
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


# Forms of params and gradients


FORMS: dict[str, Callable[[Params], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda ps: (p for p in ps),
    "iterator": iter,
    "dict": lambda ps: {f"p{i}": p for i, p in enumerate(ps)},
    "groups": lambda ps: [{"params": [p]} for p in ps],
    "group of a generator": lambda ps: [{"params": (p for p in ps)}],
    "groups of single buffers": lambda ps: [{"params": p} for p in ps],
    "generator of groups": lambda ps: ({"params": [p]} for p in ps),
    "named groups": lambda ps: [{"params": {f"p{i}": p}} for i, p in enumerate(ps)],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_params(form: str) -> None:
    want = arrays()
    adaptk.Adam(want).step(like(want, 0))
    got = arrays()
    adaptk.Adam(FORMS[form](got)).step(like(got, 0))
    assert all_bits(got) == all_bits(want)


def test_a_single_buffer() -> None:
    want, got = arrays()[0], arrays()[0]
    adaptk.Adam([want]).step(like([want], 0))
    adaptk.Adam(got).step(like([got], 0))
    assert bits(got) == bits(want)


@pytest.mark.parametrize("form", ["list", "tuple", "generator", "iterator"])
def test_forms_of_gradients(form: str) -> None:
    want = arrays()
    adaptk.Adam(want).step(like(want, 0))
    got = arrays()
    adaptk.Adam(got).step(FORMS[form](like(got, 0)))
    assert all_bits(got) == all_bits(want)


@pytest.mark.parametrize("form", ["dict", "named groups"])
def test_named_gradients_come_in_any_order(form: str) -> None:
    want = arrays()
    adaptk.Adam(want).step(like(want, 0))
    got = arrays()
    optimizer = adaptk.Adam(FORMS[form](got))
    grads = like(got, 0)
    optimizer.step({"p1": grads[1], "p0": grads[0]})
    assert all_bits(got) == all_bits(want)
    assert list(optimizer.state) == ["p0", "p1"]
    adaptk.Adam(FORMS[form](got)).step(grads)


def test_named_gradients_have_the_names_of_the_params() -> None:
    params = arrays()
    grads = like(params, 0)
    optimizer = adaptk.Adam({"w": params[0], "b": params[1]})
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=re.escape("grads: missing ['b'], unexpected ['c']")):
        optimizer.step({"w": grads[0], "c": grads[1]})
    with pytest.raises(ValueError, match=re.escape("grads['b']: shape (6,), expected (5,)")):
        optimizer.step({"w": grads[0], "b": np.zeros(6, np.float32)})
    with pytest.raises(TypeError, match="grads: a dict, but the params were given without names"):
        adaptk.Adam(params).step({"w": grads[0], "b": grads[1]})
    assert snapshot(optimizer, params) == before


@pytest.mark.parametrize("grads", [None, 1.0, np.zeros(5, np.float32)], ids=["None", "number", "buffer"])
def test_gradients_that_are_no_collection(grads: Any) -> None:
    with pytest.raises(TypeError, match="grads: expected a list or a dict"):
        adaptk.SGD([np.zeros(5, np.float32)]).step(grads)


BAD_PARAMS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nothing": (list, ValueError, "params: an empty list"),
    "an empty dict": (dict, ValueError, "params: an empty list"),
    "a number": (lambda: 1.0, TypeError, "params: expected buffers"),
    "a list of numbers": (lambda: [1.0], TypeError, "params[0]: float is not a buffer"),
    "NumPy scalars": (lambda: [np.zeros(2), np.float32(1.0)], TypeError, "params[1]: numpy.float32 is not a buffer"),
    "integers": (lambda: [np.zeros(2), np.zeros(2, int)], TypeError, "params[1]: dtype int64"),
    "read-only": (lambda: {"w": np.broadcast_to(1.0, ())}, ValueError, "params['w']: read-only"),
    "strided": (lambda: [np.zeros(4)[::2]], ValueError, "params[0]: not contiguous"),
    "twice the same": (lambda: [np.zeros(4)] * 2, ValueError, "params[0] and params[1] overlap"),
    "a group without params": (lambda: [{"lr": 0.1}], TypeError, "the key 'params'"),
    "an empty group": (lambda: [{"params": [np.zeros(2)]}, {"params": []}], ValueError, "params of group 1: an empty"),
    "a name that is no string": (lambda: {1: np.zeros(2)}, TypeError, "names of params must be strings"),
    "the name of another group": (
        lambda: [{"params": {"w": np.zeros(2)}}, {"params": {"w": np.zeros(2)}}],
        ValueError,
        "the names w are taken",
    ),
    "names in one group only": (
        lambda: [{"params": {"w": np.zeros(2)}}, {"params": [np.zeros(2)]}],
        ValueError,
        "either all groups have named params or none has",
    ),
}


@pytest.mark.parametrize("what", BAD_PARAMS)
def test_params_that_do_not_work(what: str) -> None:
    make, error, text = BAD_PARAMS[what]
    with pytest.raises(error, match=re.escape(text)):
        adaptk.Adam(make())


def test_the_base_class_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match="Optimizer is the base of the optimizers"):
        adaptk.Optimizer([np.zeros(2)])
    assert all(issubclass(c, adaptk.Optimizer) for c in adaptk.optim.CLASSES.values())


def test_optimizer_for_takes_the_options_of_its_rule_only() -> None:
    with pytest.raises(ValueError, match=r"rule: 'sdg' is not one of sgd, momentum"):
        adaptk.optimizer_for("sdg", [np.zeros(2)])
    assert adaptk.optimizer_for("momentum", [np.zeros(2)], momentum=0.5).param_groups[0]["momentum"] == 0.5
    for rule, options in (("sgd", {"momentum": 0.9}), ("adam", {"amsgrad": True}), ("rmsprop", {"centered": False})):
        with pytest.raises(TypeError, match=next(iter(options))):
            adaptk.optimizer_for(rule, [np.zeros(2)], **options)


def test_a_subclass() -> None:
    class Mine(adaptk.SGD):
        pass

    assert Mine([np.zeros(2)], momentum=0.9).rules == ("momentum",)
    with pytest.raises(ValueError, match="nesterov: needs a momentum"):
        Mine([np.zeros(2)], nesterov=True)


# Groups


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


def optimizer_hyper(optimizer: adaptk.Optimizer, group: int = 0) -> dict[str, Any]:
    return {k: v for k, v in optimizer.param_groups[group].items() if k != "params"}


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


def other_value(h: adaptk.Hyperparameter, value: float | bool) -> float | bool:
    """A valid value of a hyperparameter that is not `value`."""
    if h.range == "bool":
        return not value
    low, high = map(float, h.range[1:-1].split(", "))
    candidates = [value * 1.5, value / 2, 0.5, 3.0]
    return next(float(x) for x in candidates if low < x < high and x != value)


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


def test_numbers_of_other_types_are_numbers() -> None:
    params, want = arrays(), arrays()
    optimizer = adaptk.SGD(params, lr=np.float64(0.5), maximize=np.True_)
    optimizer.step(like(params, 0), clip_norm=np.float32(2.0), grad_scale=1, skip_nonfinite=np.True_)
    adaptk.SGD(want, lr=0.5, maximize=True).step(like(want, 0), clip_norm=2.0, grad_scale=1.0, skip_nonfinite=True)
    assert all_bits(params) == all_bits(want)


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
    assert optimizer.step({"a": None, "b": None}, clip_norm=1.0) == (0.0, False)
    assert snapshot(optimizer, params) == {**before, "count": 1, "steps": {**before["steps"], "step": 1}}


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


def test_only_the_rate_can_be_a_schedule() -> None:
    with pytest.raises(TypeError, match="beta1"):
        adaptk.Adam([np.zeros(2)], beta1=lambda t: 0.9)


# Options


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


def test_a_convention_that_is_not_there() -> None:
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
    text = rf"{case.name}\(\) got an unexpected keyword argument 'learning_rate'; it takes .*\blr\b"
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


def test_variants_that_do_not_go_together() -> None:
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
def test_maximize_turns_the_gradient(case: Case) -> None:
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


# The norm of gradients


def norm_of(grads: Sequence[Array]) -> float:
    return math.sqrt(math.fsum(float(x) * float(x) for g in grads for x in g.astype(np.float64).ravel()))


@every_dtype
@pytest.mark.parametrize("grad_scale", [1.0, 0.25, -2.0])
def test_clipping_is_the_formula(dtype: str, grad_scale: float) -> None:
    start = arrays(dtype)
    grads = like(start, 0)
    norm = abs(grad_scale) * norm_of(grads)
    for clip in (norm / 3, norm * 3):
        params = copies(start)
        info = adaptk.SGD(params, lr=0.5).step(grads, clip_norm=clip, grad_scale=grad_scale)
        assert info.grad_norm == pytest.approx(norm, rel=1e-14)
        assert info.skipped is False
        factor = grad_scale * min(1.0, clip / info.grad_norm)
        kind = np.float64 if dtype == "float64" else np.float32
        scaled = [kind(factor) * g.astype(kind) for g in grads]
        want = [(p.astype(kind) - kind(0.5) * g).astype(p.dtype) for p, g in zip(start, scaled, strict=True)]
        assert all_bits(params) == all_bits(want)


@every_case
def test_clipping_equals_scaled_gradients(case: Case) -> None:
    start = arrays()
    reference = Functions(case.rule, start, case.hyper)
    params = copies(start)
    optimizer = case(params, clip_norm=0.5)
    for t in range(10):
        grads = like(params, t)
        norm = adaptk.global_norm(grads)
        assert optimizer.step(grads) == (norm, False)
        reference.step(grads, grad_scale=0.5 / norm)
    assert all_bits(params) == all_bits(reference.params)


def test_the_clip_of_a_step_comes_before_the_optimizers_own() -> None:
    w = np.zeros(2)
    optimizer = adaptk.SGD([w], lr=1.0, clip_norm=1.0)
    grad = np.array([3.0, 4.0])
    optimizer.step([grad], clip_norm=math.inf)
    assert w.tolist() == [-3.0, -4.0]
    optimizer.step([grad], clip_norm=2.5)
    assert w.tolist() == [-4.5, -6.0]
    optimizer.clip_norm = None
    assert optimizer.step([grad]).grad_norm is None
    optimizer.clip_norm = -1.0
    with pytest.raises(ValueError, match="clip_norm"):
        optimizer.step([grad])


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_a_clip_out_of_range(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        adaptk.SGD([np.zeros(2)], clip_norm=clip_norm)


def test_the_norm_is_of_gradients_scaled_by_their_group() -> None:
    grads = [np.array([6.0]), np.array([8.0])]
    params = [np.zeros(1), np.zeros(1)]
    assert adaptk.SGD(params, lr=1.0, grad_scale=0.5).step(grads, clip_norm=1.0).grad_norm == 5.0
    assert [float(p[0]) for p in params] == [-3.0 * 0.2, -4.0 * 0.2]
    groups = [{"params": params[0], "grad_scale": 0.5}, {"params": params[1], "grad_scale": -0.5}]
    assert adaptk.SGD(groups).step(grads, clip_norm=1.0, grad_scale=2.0).grad_norm == 10.0
    groups[1]["grad_scale"] = 0.0
    assert adaptk.SGD(groups).step(grads, clip_norm=1.0).grad_norm == 3.0


@pytest.fixture(scope="module")
def long_gradients() -> dict[str, Array]:
    rng = np.random.default_rng(3)
    flat = rng.normal(size=100_003) * 10.0 ** rng.integers(-3, 3, 100_003)
    return {dtype: flat.astype(kind) for dtype, kind in DTYPES.items()}


@every_dtype
@pytest.mark.usefixtures("restored")
def test_the_norm_has_the_same_bits_everywhere(long_gradients: dict[str, Array], dtype: str) -> None:
    grad = long_gradients[dtype]
    rng = np.random.default_rng(4)
    cuts = [
        [],
        [1],
        [50_000],
        sorted(rng.integers(0, grad.size, 40)),
        sorted({*range(0, 3000, 7)}),
        [1024 * i for i in range(1, 97)],
    ]
    results = set()
    for isa, n, cut in itertools.product(adaptk.available_isas(), [1, 2, 3, 8], cuts):
        adaptk.set_isa(isa)
        adaptk.set_num_threads(n)
        pieces = np.split(grad, cut)
        params = [np.zeros_like(g) for g in pieces]
        info = adaptk.SGD(params).step(pieces, clip_norm=10.0)
        assert adaptk.global_norm(pieces) == info.grad_norm
        results.add((info.grad_norm, np.concatenate(params).tobytes()))
    assert len(results) == 1
    assert next(iter(results))[0] == pytest.approx(norm_of([grad]), rel=1e-13)


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1e200, 4e307])
def test_the_norm_of_values_whose_squares_are_out_of_range(size: float) -> None:
    grads = [np.full(3, 2 * size), np.full(4, size), np.zeros(2, np.float32)]
    assert adaptk.global_norm(grads) == 4 * size
    params = [np.zeros_like(g) for g in grads]
    assert adaptk.SGD(params).step(grads, clip_norm=math.inf, grad_scale=-1.0).grad_norm == 4 * size


# Gradients that are not finite


@every_dtype
@every_case
def test_a_step_that_is_skipped_changes_nothing(case: Case, dtype: str) -> None:
    params = arrays(dtype)
    optimizer = case(params, skip_nonfinite=True)
    optimizer.step(like(params, 0))
    before = snapshot(optimizer, params)
    for value in (math.inf, -math.inf, math.nan):
        grads = like(params, 1)
        grads[-1][-1] = value
        info = optimizer.step(grads)
        assert info.skipped is True
        assert info.grad_norm is not None
        assert not math.isfinite(info.grad_norm)
        assert snapshot(optimizer, params) == before
    info = optimizer.step(like(params, 1))
    assert info.skipped is False
    assert optimizer.step_count == 2


def test_skipping_can_be_chosen_for_each_step() -> None:
    w = np.zeros(2)
    bad = [np.array([1.0, np.nan])]
    optimizer = adaptk.SGD([w], lr=1.0)
    assert optimizer.step(bad, skip_nonfinite=True).skipped
    assert w.tolist() == [0.0, 0.0]
    assert not optimizer.step(bad).skipped
    assert w[0] == -1.0
    assert np.isnan(w[1])
    optimizer.skip_nonfinite = True
    assert optimizer.step(bad).skipped
    assert not optimizer.step(bad, skip_nonfinite=False).skipped


def test_a_gradient_without_one_is_not_skipped() -> None:
    for dtype, kind in DTYPES.items():
        largest = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "float64": 1.7e308}[dtype]
        params = [np.zeros(64, kind)]
        info = adaptk.SGD(params, lr=0.0).step([np.full(64, largest).astype(kind)], skip_nonfinite=True)
        assert not info.skipped, dtype
    info = adaptk.SGD([np.zeros(2)]).step([np.array([np.inf, 0.0])], skip_nonfinite=True, grad_scale=0.0)
    assert info.skipped


@every_case
def test_grad_scale_of_a_step(case: Case) -> None:
    start = arrays()
    reference = Functions(case.rule, start, case.hyper)
    params = copies(start)
    optimizer = case(params)
    for t in range(5):
        grads = [g * np.float32(1024) for g in like(params, t)]
        assert optimizer.step(grads, grad_scale=1 / 1024).grad_norm is None
        reference.step(grads, grad_scale=1 / 1024)
    assert all_bits(params) == all_bits(reference.params)
    both, product = arrays(), arrays()
    case(both, grad_scale=0.5).step(like(both, 0), grad_scale=3.0)
    case(product).step(like(product, 0), grad_scale=1.5)
    assert all_bits(both) == all_bits(product)


# After a failure everything is as before


def quietly(change: Callable[[], None]) -> None:
    """NumPy deprecates setting an array's shape in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        change()


class World:
    """An optimizer over groups with different rules, in the middle of its work, and a twin that nothing happens to."""

    def __init__(self) -> None:
        self.params, self.optimizer = self.make()
        self.others, self.twin = self.make()

    @staticmethod
    def make() -> tuple[list[Array], adaptk.Optimizer]:
        params = [*arrays("float32"), *arrays("float64"), np.ones((2, 3), np.float16)]
        groups = [{"params": params[:2]}, {"params": params[2:], "centered": True, "momentum": 0.9}]
        optimizer = adaptk.RMSProp(groups, lr=0.01)
        for t in range(3):
            optimizer.step(like(params, t))
        return params, optimizer

    def grads(self) -> list[Any]:
        return like(self.params, 100)

    def refuses(self, error: type[Exception], text: str, grads: Any = None, **options: Any) -> None:
        before = snapshot(self.optimizer, self.params)
        with pytest.raises(error, match=text):
            self.optimizer.step(self.grads() if grads is None else grads, **options)
        assert snapshot(self.optimizer, self.params) == before

    def goes_on(self) -> None:
        for t in range(3):
            self.optimizer.step(like(self.params, t))
            self.twin.step(like(self.others, t))
        assert snapshot(self.optimizer, self.params) == snapshot(self.twin, self.others)


@pytest.fixture
def world() -> Iterator[World]:
    """What a test breaks, it mends: the optimizer then works as if nothing had been tried."""
    w = World()
    yield w
    w.goes_on()


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (np.zeros((3, 2), np.float16), ValueError, r"grads\[4\]: shape \(3, 2\), expected \(2, 3\)"),
        (np.zeros((2, 3), np.float32), TypeError, r"grads\[4\]: dtype float32, expected float16"),
        (np.zeros((3, 2), np.float16).T, ValueError, r"grads\[4\]: strides"),
        (np.zeros((2, 3), int), TypeError, r"grads\[4\]: dtype int64"),
        ([[0.0] * 3] * 2, TypeError, r"grads\[4\]: list is not a buffer"),
    ],
    ids=["shape", "dtype", "strides", "integers", "list"],
)
def test_a_last_gradient_that_does_not_fit(world: World, bad: Any, error: type[Exception], text: str) -> None:
    world.refuses(error, text, [*world.grads()[:4], bad])


def test_gradients_in_the_memory_of_params_and_states(world: World) -> None:
    grads = world.grads()
    world.refuses(ValueError, r"grads\[4\] and params\[4\] overlap", [*grads[:4], world.params[4]])
    state = world.optimizer.state[3]["grad_avg"]
    world.refuses(ValueError, r"grads\[3\] and grad_avg\[3\] overlap", [*grads[:3], state, grads[4]])


@pytest.mark.parametrize("n", [0, 4, 6])
def test_a_wrong_number_of_gradients(world: World, n: int) -> None:
    world.refuses(ValueError, f"grads: {n} gradients, expected 5", (world.grads() * 2)[:n])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"clip_norm": math.nan}, ValueError),
        ({"clip_norm": 0.0}, ValueError),
        ({"clip_norm": -1.0}, ValueError),
        ({"clip_norm": "1"}, TypeError),
        ({"grad_scale": math.nan}, ValueError),
        ({"grad_scale": math.inf}, ValueError),
        ({"grad_scale": None}, TypeError),
    ],
)
def test_options_of_a_step_out_of_range(world: World, options: dict[str, Any], error: type[Exception]) -> None:
    world.refuses(error, next(iter(options)), **options)


@pytest.mark.parametrize(
    ("lr", "error", "text"),
    [
        (math.nan, ValueError, "lr: nan is not in"),
        (-0.1, ValueError, "lr: -0.1"),
        (lambda t: math.nan, ValueError, "lr: nan is not in"),
        (lambda t: "0.1", TypeError, "lr: expected a number, got str"),
        (lambda t: 1 / 0, ZeroDivisionError, "division by zero"),
    ],
    ids=["NaN", "negative", "schedule of NaN", "schedule of text", "schedule that raises"],
)
def test_a_rate_that_does_not_work(world: World, lr: Any, error: type[Exception], text: str) -> None:
    kept = world.optimizer.param_groups[-1]["lr"]
    world.optimizer.param_groups[-1]["lr"] = lr
    if callable(lr):
        before = all_bits(world.params), state_bits(world.optimizer), world.optimizer.step_count
        with pytest.raises(error, match=text):
            world.optimizer.step(world.grads())
        assert (all_bits(world.params), state_bits(world.optimizer), world.optimizer.step_count) == before
    else:
        world.refuses(error, text)
    world.optimizer.param_groups[-1]["lr"] = kept


def test_param_groups_that_lack_something(world: World) -> None:
    groups = world.optimizer.param_groups
    kept = groups[1].pop("rho")
    with pytest.raises(KeyError, match="no 'rho' in a group"):
        world.optimizer.step(world.grads())
    groups[1]["rho"] = kept
    last = groups.pop()
    with pytest.raises(ValueError, match="param_groups: 1 groups, expected 2"):
        world.optimizer.step(world.grads())
    groups.append([])
    with pytest.raises(TypeError, match="param_groups: expected a dict, got list"):
        world.optimizer.step(world.grads())
    groups[1] = last


def test_a_param_that_became_read_only(world: World) -> None:
    for buffer, name in ((world.params[4], "params"), (world.optimizer.state[4]["momentum_buffer"], "momentum_buffer")):
        buffer.setflags(write=False)
        world.refuses(ValueError, rf"{name}\[4\]: read-only")
        buffer.setflags(write=True)


@pytest.mark.parametrize("shape", [(4, 3), (12,), (3, 2, 2)])
def test_a_param_that_was_reshaped(world: World, shape: tuple[int, ...]) -> None:
    w = world.params[0]
    quietly(lambda: setattr(w, "shape", shape))
    for _ in range(2):
        world.refuses(ValueError, r"square_avg\[0\]: shape \(3, 4\), expected \(")
    quietly(lambda: setattr(w, "shape", (3, 4)))


@pytest.mark.parametrize("n", [3, 5000])
def test_a_param_that_was_resized(world: World, n: int) -> None:
    w = world.params[1]
    kept = w.copy()
    w.resize(n, refcheck=False)
    grads = world.grads()
    for _ in range(2):
        world.refuses(ValueError, r"square_avg\[1\]: shape \(5,\), expected \(", grads)
    w.resize(5, refcheck=False)
    w[:] = kept


def test_a_step_inside_a_step(world: World) -> None:
    errors: list[Exception] = []

    def attempt(work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:
            errors.append(error)

    saved = world.optimizer.state_dict()
    before = snapshot(world.optimizer, world.params)

    def schedule(t: int) -> float:
        attempt(lambda: world.optimizer.step(world.grads()))
        for work in (
            lambda: world.optimizer.step(world.grads()),
            lambda: world.optimizer.load_state_dict({**saved, "step": np.array(99)}),
            lambda: world.optimizer.add_param_group({"params": np.zeros(2)}),
        ):
            thread = threading.Thread(target=attempt, args=(work,))
            thread.start()
            thread.join()
        raise LookupError

    world.optimizer.param_groups[1]["lr"] = schedule
    with pytest.raises(LookupError):
        world.optimizer.step(world.grads())
    world.optimizer.param_groups[1]["lr"] = 0.01
    assert len(errors) == 4
    assert snapshot(world.optimizer, world.params) == before


def test_gradients_that_change_while_they_are_read() -> None:
    code = """
import numpy as np, adaptk
grads = [np.ones(3) for _ in range(1000)]
params = [np.zeros(3) for _ in grads]
def schedule(t):
    grads.clear()
    return 1.0
optimizer = adaptk.SGD(params)
optimizer.param_groups[0]["lr"] = schedule
try:
    optimizer.step(grads)
except ValueError:
    assert not any(p.any() for p in params)
else:
    assert all((p == -1).all() for p in params)
"""
    in_another_process(code)


@pytest.mark.parametrize("seed", range(3))
def test_a_param_that_was_reshaped_and_back(seed: int) -> None:
    w = np.zeros((3, 4), np.float32)
    optimizer = adaptk.SGD([w], lr=1.0)
    grad = np.ones((3, 4), np.float16)
    optimizer.step([grad])
    quietly(lambda: setattr(w, "shape", (12,)))
    others = [np.zeros((5,) * n) for n in (1, 2, 3) for _ in range(2000)] + [b"\7" * 32 for _ in range(2000)]
    quietly(lambda: setattr(w, "shape", (3, 4)))
    optimizer.step([grad])
    assert (w == -2).all()
    assert others


def test_a_failed_step_keeps_no_gradient() -> None:
    class Exported:
        def __init__(self, array: Array) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    grad = np.ones(2)
    references = sys.getrefcount(grad)
    optimizer = adaptk.SGD([np.zeros(2), np.zeros(2)])
    with pytest.raises(ValueError, match=r"grads\[1\]"):
        optimizer.step([Exported(grad), np.ones(3)])
    assert sys.getrefcount(grad) == references


# The look-ahead of Algorithm 8.6


@every_dtype
def test_the_interim_point_is_exact(dtype: str) -> None:
    params = arrays(dtype)
    optimizer = adaptk.RMSProp(params, lr=0.1, nesterov=True, momentum=0.7)
    kind = np.float64 if dtype == "float64" else np.float32
    for t in range(4):
        before = snapshot(optimizer, params)
        velocity = [s["velocity"] for s in optimizer.state.values()]
        want = [(p.astype(kind) + kind(0.7) * v).astype(p.dtype) for p, v in zip(params, velocity, strict=True)]
        with optimizer.lookahead():
            assert all_bits(params) == all_bits(want)
        assert snapshot(optimizer, params) == before
        optimizer.step(like(params, t))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_algorithm_8_6(dtype: str) -> None:
    kind = DTYPES[dtype]
    lr, rho, rest, eps, alpha = map(kind, (0.01, 0.9, 1 - 0.9, 1e-6, 0.9))
    (w,) = arrays(dtype, shapes=[(6,)])
    p, r, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    optimizer = adaptk.RMSProp(w, lr=0.01, nesterov=True)
    for _ in range(100):
        with optimizer.lookahead():
            grad = kind(2) * w
        optimizer.step([grad])
        g = kind(2) * (p + alpha * v)
        r = rho * r + rest * (g * g)
        v = alpha * v - lr * g / np.sqrt(r + eps)
        p = p + v
    assert bits(w) == bits(p)
    assert np.abs(w).max() < np.abs(arrays(dtype, shapes=[(6,)])[0]).max()


def moving(dtype: str = "float32") -> tuple[list[Array], adaptk.Optimizer]:
    params = arrays(dtype)
    optimizer = adaptk.RMSProp(params, nesterov=True)
    for t in range(2):
        optimizer.step(like(params, t))
    return params, optimizer


@every_dtype
def test_params_come_back_whatever_happens_in_the_block(dtype: str) -> None:
    params, optimizer = moving(dtype)
    before = snapshot(optimizer, params)
    with optimizer.lookahead():
        assert all_bits(params) != before["params"]
    assert snapshot(optimizer, params) == before
    with pytest.raises(LookupError), optimizer.lookahead():
        raise LookupError
    assert snapshot(optimizer, params) == before
    with pytest.raises(RuntimeError, match=r"step\(\) inside lookahead"), optimizer.lookahead():
        optimizer.step(like(params, 5))
    assert snapshot(optimizer, params) == before
    with pytest.raises(RuntimeError, match=r"lookahead\(\) inside lookahead"), optimizer.lookahead():  # noqa: SIM117
        with optimizer.lookahead():
            pass
    assert snapshot(optimizer, params) == before
    with optimizer.lookahead():
        params[0][:] = math.nan
    assert snapshot(optimizer, params) == before
    optimizer.step(like(params, 2))
    assert optimizer.step_count == 3


def test_a_param_that_becomes_read_only_in_the_block_comes_back() -> None:
    params, optimizer = moving()
    want = all_bits(params)
    with optimizer.lookahead():
        params[1].setflags(write=False)
    assert all_bits(params) == want


def test_a_param_that_is_resized_in_the_block() -> None:
    code = """
import numpy as np, adaptk
w, v = np.arange(4.0), np.arange(5.0)
optimizer = adaptk.RMSProp([w, v], nesterov=True)
optimizer.step([w + 1, v + 1])
want = v.copy()
try:
    with optimizer.lookahead():
        assert (v != want).all()
        w.resize(100_000, refcheck=False)
except RuntimeError as error:
    assert "params[0]: its shape, layout or dtype changed inside lookahead()" in str(error), error
else:
    raise AssertionError("no error")
assert (v == want).all()
"""
    in_another_process(code)


def test_no_group_is_added_inside_the_block() -> None:
    code = """
import numpy as np, adaptk
w = np.ones(4)
optimizer = adaptk.RMSProp([w], nesterov=True)
try:
    with optimizer.lookahead():
        optimizer.add_param_group({"params": [np.zeros(100_000)]})
except RuntimeError as error:
    assert "inside lookahead" in str(error), error
else:
    raise AssertionError
assert len(optimizer.param_groups) == 1
optimizer.step([w + 1])
"""
    in_another_process(code)


def test_the_momentum_of_each_group() -> None:
    params = [np.zeros(1), np.zeros(1)]
    groups = [{"params": p, "momentum": m} for p, m in zip(params, (0.5, 0.25), strict=True)]
    optimizer = adaptk.RMSProp(groups, nesterov=True)
    for s in optimizer.state.values():
        s["velocity"][:] = 1.0
    with optimizer.lookahead():
        assert [p[0] for p in params] == [0.5, 0.25]
    optimizer.param_groups[0]["momentum"] = 2.0
    with optimizer.lookahead():
        assert [p[0] for p in params] == [2.0, 0.25]
    optimizer.param_groups[1]["momentum"] = math.nan
    with pytest.raises(ValueError, match="momentum"), optimizer.lookahead():
        pass
    assert [p[0] for p in params] == [0.0, 0.0]


@pytest.mark.parametrize("case", [c for c in CASES if c.rule != "rmsprop_nesterov"], ids=lambda c: c.rule)
def test_other_rules_have_no_interim_point(case: Case) -> None:
    params = arrays()
    optimizer = case(params)
    with pytest.raises(ValueError, match=f"a group here runs {case.rule}"), optimizer.lookahead():
        raise AssertionError("the block ran")
    assert all_bits(params) == all_bits(arrays())


def test_no_interim_point_where_one_group_has_none() -> None:
    params = arrays()
    groups = [{"params": params[0]}, {"params": params[1], "nesterov": False}]
    optimizer = adaptk.RMSProp(groups, nesterov=True)
    with pytest.raises(ValueError, match="a group here runs rmsprop"), optimizer.lookahead():
        pass
    assert all_bits(params) == all_bits(arrays())


# Saving and loading


def through_npz(saved: Mapping[str, Any]) -> Any:
    file = io.BytesIO()
    np.savez(file, **saved)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return dict(loaded)


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


def through_read_only(saved: Mapping[str, Any]) -> Any:
    frozen = {k: np.asarray(v).copy() for k, v in saved.items()}
    for v in frozen.values():
        v.setflags(write=False)
    return frozen


def through_numbers(saved: Mapping[str, Any]) -> Any:
    return {k: v.item() if v.ndim == 0 and k.split(".")[0] != "state" else v for k, v in saved.items()}


WAYS = {
    f.__name__.removeprefix("through_"): f
    for f in (through_npz, through_npz_file, through_pickle, through_safetensors, through_read_only, through_numbers)
}


def half_way(case: Case, dtype: str, through: Callable[[Mapping[str, Any]], Any]) -> None:
    """A run that is saved and loaded in the middle against one that is not."""
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
def test_a_run_that_is_saved_in_the_middle(case: Case, dtype: str) -> None:
    half_way(case, dtype, dict)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", ["sgd", "rmsprop_centered_momentum", "adan"])
def test_ways_to_save(rule: str, way: str) -> None:
    half_way(BY_RULE[rule], "float32", WAYS[way])


def test_a_state_dict_is_flat_plain_and_a_copy() -> None:
    params = {"a.b": np.zeros((2, 3), np.float32).T, "c": np.zeros(2)}
    optimizer = adaptk.Adam(params, lr=0.25)
    optimizer.step([np.ones((2, 3), np.float32).T, np.ones(2)])
    saved = optimizer.state_dict()
    hyper = {f"param_groups.0.{h.name}" for h in RULES["adam"].hyperparameters}
    states = {f"state.{k}.{s}" for k in params for s in ("step", "exp_avg", "exp_avg_sq")}
    assert set(saved) == {"step", *states, *hyper}
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
    fixed = adaptk.SGD(first, 0.3)
    fixed.load_state_dict(saved)
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
    "a missing hyperparameter": ({}, ("param_groups.0.eps_in",), "missing ['param_groups.0.eps_in']"),
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
    for other in (adaptk.Adam(arrays(), amsgrad=True), adaptk.SGD(arrays()), adaptk.Adam(FORMS["dict"](arrays()))):
        with pytest.raises(ValueError, match="state_dict: missing"):
            other.load_state_dict(saved)
    with pytest.raises(TypeError, match="state_dict: expected a mapping, got list"):
        adaptk.Adam(arrays()).load_state_dict(list(saved))


# Tensors


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def tensors(torch: Any, dtype: str = "float32", shapes: Sequence[tuple[int, ...]] = SHAPES) -> Params:
    wide = [torch.from_numpy(p) for p in arrays("float64", shapes=shapes)]
    return [torch.nn.Parameter(p.to(getattr(torch, dtype))) for p in wide]


def tensors_like(torch: Any, params: Params, seed: int) -> Params:
    rng = np.random.default_rng([1, seed])
    return [torch.from_numpy(rng.normal(size=tuple(p.shape))).to(p.dtype) for p in params]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@every_case
def test_tensors_equal_arrays(torch: Any, case: Case, dtype: str) -> None:
    if dtype not in DTYPES:
        pytest.skip("NumPy's bfloat16 is in ml_dtypes, which is not installed")
    plain = arrays(dtype)
    params = tensors(torch, dtype)
    assert all_bits(params) == all_bits(plain)
    one, other = case(params), case(plain)
    for t in range(10):
        one.step(tensors_like(torch, params, t), clip_norm=3.0)
        other.step(like(plain, t), clip_norm=3.0)
    assert all_bits(params) == all_bits(plain)
    assert state_bits(one) == state_bits(other)
    want = torch.float64 if dtype == "float64" else torch.float32
    for states in one.state.values():
        for x in states.values():
            assert type(x) is torch.Tensor
            assert x.dtype == want
            assert not x.requires_grad


def test_a_step_takes_what_backward_leaves(torch: Any) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = adaptk.SGD(dict(model.named_parameters()), lr=0.1)
    want = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step({n: p.grad for n, p in model.named_parameters()})
    for n, p in model.named_parameters():
        assert torch.equal(p, want[n] - torch.tensor(0.1) * p.grad)


def test_tensors_in_any_dense_layout(torch: Any) -> None:
    plain = arrays(shapes=[(2, 3, 4, 5)])
    images = [torch.from_numpy(plain[0].copy()).to(memory_format=torch.channels_last)]
    one, other = adaptk.Adam(images), adaptk.Adam(plain)
    for t in range(3):
        grads = like(plain, t)
        one.step([torch.from_numpy(grads[0]).to(memory_format=torch.channels_last)])
        other.step(grads)
    assert all_bits(images) == all_bits(plain)
    assert one.state[0]["exp_avg"].stride() == images[0].stride()


def test_params_that_get_other_memory(torch: Any) -> None:
    params, plain = tensors(torch), arrays()
    one, other = adaptk.Adam(params, lr=0.1), adaptk.Adam(plain, lr=0.1)
    for t in range(6):
        if t % 2:
            for p, a in zip(params, plain, strict=True):
                p.data = p.data * 0.5
                a *= np.float32(0.5)
        one.step(tensors_like(torch, params, t))
        other.step(like(plain, t))
        assert all_bits(params) == all_bits(plain)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda torch, p: p.view(4, 3), ValueError, r"exp_avg\[0\]: shape \(3, 4\), expected \(4, 3\)"),
        (lambda torch, p: torch.ones(12), ValueError, r"exp_avg\[0\]: shape \(3, 4\), expected \(12,\)"),
        (lambda torch, p: torch.ones(4, 3).T, ValueError, r"exp_avg\[0\]: strides"),
        (lambda torch, p: torch.ones(3, 4, dtype=torch.float64), TypeError, r"exp_avg\[0\]: dtype float32"),
        (lambda torch, p: torch.ones(3, 8)[:, ::2], ValueError, r"params\[0\]: not contiguous"),
    ],
    ids=["view", "shape", "strides", "dtype", "not dense"],
)
def test_data_that_does_not_fit(torch: Any, change: Any, error: type[Exception], text: str) -> None:
    params = tensors(torch)
    optimizer = adaptk.Adam(params)
    optimizer.step(tensors_like(torch, params, 0))
    before = snapshot(optimizer, params)
    grads = tensors_like(torch, params, 1)
    kept = params[0].data
    params[0].data = change(torch, kept)
    for _ in range(2):
        with pytest.raises(error, match=text):
            optimizer.step(grads)
    params[0].data = kept
    assert snapshot(optimizer, params) == before
    optimizer.step(grads)
    assert optimizer.step_count == 2


def test_params_that_come_to_share_memory(torch: Any) -> None:
    params = tensors(torch, shapes=[(5,), (5,)])
    optimizer = adaptk.SGD(params)
    grads = tensors_like(torch, params, 0)
    kept = params[1].data
    params[1].data = params[0].data
    for _ in range(2):
        with pytest.raises(ValueError, match=r"params\[0\] and params\[1\] overlap"):
            optimizer.step(grads)
    params[1].data = kept
    optimizer.step(grads)
    with pytest.raises(ValueError, match=r"grads\[0\] and params\[1\] overlap"):
        optimizer.step([params[1].data, grads[1]])
    assert optimizer.step_count == 1


def test_the_look_ahead_follows_tensors_that_move(torch: Any) -> None:
    params = tensors(torch)
    optimizer = adaptk.RMSProp(params, nesterov=True)
    optimizer.step(tensors_like(torch, params, 0))
    before = all_bits(params)
    old = params[0].data
    with optimizer.lookahead():
        params[0].data = old.clone()
    assert all_bits(params) == before
    assert params[0].data_ptr() != old.data_ptr()


def test_states_of_tensors_are_saved_as_tensors(torch: Any, tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    shapes = [(4, 3), (), (2, 3, 4, 5)]

    def make() -> Params:
        params = tensors(torch, shapes=shapes)
        params[0] = params[0].detach().T
        params[2] = params[2].detach().to(memory_format=torch.channels_last)
        return params

    def grads(params: Params, t: int) -> Params:
        return [torch.empty_like(p).copy_(g) for p, g in zip(params, tensors_like(torch, params, t), strict=True)]

    def with_torch(saved: Any) -> Any:
        torch.save(saved, tmp_path / "saved.pt")
        return torch.load(tmp_path / "saved.pt", weights_only=True)

    def with_numpy(saved: Any) -> Any:
        return through_npz({k: v.numpy() for k, v in saved.items()})

    straight = make()
    one = adaptk.Adam(straight, amsgrad=True)
    for t in range(4):
        one.step(grads(straight, t))
    for through in (lambda s: safetensors.load(safetensors.save(s)), with_torch, with_numpy, through_read_only):
        params = make()
        first = adaptk.Adam(params, amsgrad=True)
        for t in range(2):
            first.step(grads(params, t))
        saved = first.state_dict()
        assert all(type(v) is torch.Tensor for v in saved.values())
        second = adaptk.Adam(params, amsgrad=True)
        second.load_state_dict(through(saved))
        for t in range(2, 4):
            second.step(grads(params, t))
        assert snapshot(second, params) == snapshot(one, straight)
    halved = {k: v.bfloat16() if k.startswith("state.2.exp") else v for k, v in one.state_dict().items()}
    one.load_state_dict(halved)
    assert torch.equal(one.state[2]["exp_avg"], halved["state.2.exp_avg"].float())


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


# Signatures and documentation


PUBLIC: dict[str, Any] = {
    **{name: getattr(adaptk, name) for name in adaptk.__all__ if callable(getattr(adaptk, name))},
    **{f"ops.{name}": getattr(adaptk.ops, name) for name in adaptk.ops.__all__},
    **{f"schedules.{name}": getattr(adaptk.schedules, name) for name in adaptk.schedules.__all__},
    **{f"cuda.{name}": getattr(adaptk.cuda, name) for name in adaptk.cuda.__all__},
    **{
        f"Optimizer.{name}": member
        for name, member in vars(adaptk.Optimizer).items()
        if inspect.isfunction(member) and not name.startswith("_")
    },
}
# What functions return, shown in their examples.
RETURNED = {"Hyperparameter", "State", "Rule", "schedules.Schedule"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_function_and_class_has_documentation(name: str) -> None:
    assert len(inspect.getdoc(PUBLIC[name]) or "") > 40


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in RETURNED])
def test_every_function_and_class_has_an_example_that_runs(name: str) -> None:
    module = sys.modules[PUBLIC[name].__module__]
    (test,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, module=False, globs=dict(vars(module)))
    assert test.examples
    output: list[str] = []
    failed, _ = doctest.DocTestRunner().run(test, out=output.append)
    assert failed == 0, "".join(output)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.walk_packages(adaptk.__path__, "adaptk.") if m.name.split(".")[-1] != "__main__"]
)
def test_the_examples_of_modules(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


@every_rule
def test_signatures_of_functions(rule: str) -> None:
    parameters = inspect.signature(getattr(adaptk.ops, rule)).parameters
    buffers = ["param", "grad", *(s.name for s in RULES[rule].states)]
    defaults = {h.name: h.default for h in RULES[rule].hyperparameters}
    assert list(parameters) == [*buffers, "step", *defaults]
    for name, p in parameters.items():
        assert p.kind == (p.POSITIONAL_OR_KEYWORD if name in buffers else p.KEYWORD_ONLY)
        assert p.default == defaults.get(name, p.empty)
        assert type(p.default) is type(defaults.get(name, p.empty))


@pytest.mark.parametrize("name", adaptk.optim.CLASSES)
def test_signatures_of_classes(name: str) -> None:
    parameters = inspect.signature(getattr(adaptk, name)).parameters
    mine = [c for c in CASES if c.name == name]
    known = {"params", "convention", "clip_norm", "skip_nonfinite", "capturable"}
    for case in mine:
        rule = RULES[case.rule]
        known |= {h.name for h in rule.hyperparameters} | {*rule.variant}
        known |= {s.option for s in rule.states if s.option is not None}
        for option in case.options:
            assert parameters[option].default in (False, 0.0)
    assert set(parameters) - {"eps"} == known - {"eps"}
    assert list(parameters)[:2] == ["params", "lr"]
    first = mine[0] if not mine[0].options else next(c for c in mine if not c.options)
    for h in RULES[first.rule].hyperparameters:
        if h.name not in {w for c in mine for w in c.options}:
            assert parameters[h.name].default == first.hyper[h.name], h.name
    for parameter in parameters:
        assert re.search(rf"\b{parameter}\b", inspect.getdoc(getattr(adaptk, name)) or ""), parameter
