"""Errors of hyperparameters, flags, steps and of the call itself; no buffer has changed."""

from __future__ import annotations

import inspect

import adaptk
import numpy as np
import pytest
from error_cases import (
    ARGUMENTS,
    SIZES,
)
from helpers import (
    RULES,
    arguments,
    assert_same,
    call,
    inside,
    make,
    make_list,
    mentions,
    outside,
    refused,
)

HYPERS = [(rule, h) for rule in RULES for h in RULES[rule].hyperparameters]


NUMBERS = [pytest.param(rule, h, id=f"{rule}-{h.name}") for rule, h in HYPERS if h.range != "bool"]


FLAGS = [pytest.param(rule, h, id=f"{rule}-{h.name}") for rule, h in HYPERS if h.range == "bool"]


# Hyperparameters, flags and the step


@pytest.mark.parametrize(("rule", "hyper"), NUMBERS)
def test_number_out_of_range(rule: str, hyper: adaptk.Hyperparameter) -> None:
    buffers, lists = make(rule), make_list(rule, SIZES)
    bad = outside(hyper.range)
    assert any(np.isnan(x) for x in bad)
    for x in bad:
        for b in (buffers, lists):
            for number in (x, np.float64(x)):
                with refused(ValueError, hyper.name, unchanged=list(b.values())):
                    call(rule, b, **{hyper.name: number})
                with pytest.raises(ValueError) as error:
                    call(rule, b, **{hyper.name: number})
                assert hyper.range in str(error.value)


@pytest.mark.parametrize(("rule", "hyper"), NUMBERS)
def test_number_too_large_for_a_float(rule: str, hyper: adaptk.Hyperparameter) -> None:
    buffers = make(rule)
    for x in (10**400, -(10**400)):
        with refused(ValueError, hyper.name, unchanged=list(buffers.values())):
            call(rule, buffers, **{hyper.name: x})


@pytest.mark.parametrize(("rule", "hyper"), NUMBERS)
def test_number_in_range(rule: str, hyper: adaptk.Hyperparameter) -> None:
    # Keep bounds that a rule compares with each other far apart.
    names = {h.name for h in RULES[rule].hyperparameters}
    wide = {"eta_min": 0.0, "eta_max": np.inf, "step_min": 0.0, "step_max": np.inf}
    others = {name: x for name, x in wide.items() if name in names and name != hyper.name}
    for x in inside(hyper.range):
        call(rule, make(rule), **others, **{hyper.name: x})
        call(rule, make(rule), **others, **{hyper.name: np.float64(x)})
    if 1.0 in inside(hyper.range):
        call(rule, make(rule), **others, **{hyper.name: 1})


@pytest.mark.parametrize(("rule", "hyper"), NUMBERS + FLAGS)
def test_hyperparameter_of_another_type(rule: str, hyper: adaptk.Hyperparameter) -> None:
    buffers, lists = make(rule), make_list(rule, SIZES)
    for x in ("x", "0.1", b"1", None, [0.1], (0.1,), {}, 1j, object(), np.array([0.1, 0.2])):
        for b in (buffers, lists):
            with refused(TypeError, hyper.name, unchanged=list(b.values())):
                call(rule, b, **{hyper.name: x})


@pytest.mark.parametrize(("rule", "hyper"), FLAGS)
def test_flag(rule: str, hyper: adaptk.Hyperparameter) -> None:
    buffers = make(rule)
    for x in (0.5, 2, -1, np.nan, np.inf, 1 + 1e-15):
        with refused(ValueError, hyper.name, unchanged=list(buffers.values())):
            call(rule, buffers, **{hyper.name: x})
    for flag in (False, True):
        wanted = make(rule)
        call(rule, wanted, **{hyper.name: flag})
        for same in (int(flag), float(flag), np.bool_(flag), np.float64(flag)):
            got = make(rule)
            call(rule, got, **{hyper.name: same})
            assert_same(got, wanted)


@pytest.mark.parametrize(
    ("rule", "low", "high"), [("delta_bar_delta", "eta_min", "eta_max"), ("rprop", "step_min", "step_max")]
)
def test_incompatible_bounds(rule: str, low: str, high: str) -> None:
    buffers = make(rule)
    for a, b in ((1.0, 0.5), (1e-300, 0.0), (60.0, 50.0)):
        with refused(ValueError, low, high, unchanged=list(buffers.values())):
            call(rule, buffers, **{low: a, high: b})
    call(rule, buffers, **{low: 0.5, high: 0.5})


def test_exceptions_of_numbers_propagate() -> None:
    class Number:
        def __float__(self) -> float:
            raise ZeroDivisionError("no number")

    buffers = make("adam")
    with refused(ZeroDivisionError, unchanged=list(buffers.values())):
        call("adam", buffers, lr=Number())


@pytest.mark.parametrize("rule", RULES)
def test_step(rule: str) -> None:
    for buffers in (make(rule), make_list(rule, SIZES)):
        unchanged = list(buffers.values())
        for step in (0, -1, -(2**70), 2**63, 2**70, np.int64(0)):
            with refused(ValueError, "step", unchanged=unchanged):
                call(rule, buffers, step=step)
        for step in (1.5, 1.0, True, False, np.bool_(True), "1", None, [1], 1j, np.float64(1), np.array([1])):
            with refused(TypeError, "step", unchanged=unchanged):
                call(rule, buffers, step=step)
    for step in (1, 2, 2**31, 2**62, 2**63 - 1, np.int8(3), np.uint64(3), np.array(3)):
        call(rule, make(rule), step=step)


def test_largest_step_count() -> None:
    params, grads = [np.ones(3)], [np.ones(3)]
    opt = adaptk.Adam(params)
    opt.step(grads)
    saved = opt.state_dict()
    last = np.array(2**63 - 1)
    with refused(ValueError, unchanged=params):
        opt.load_state_dict({**saved, "step": last, "state.0.step": last})
        opt.step(grads)
    assert opt.step_count > 0


@pytest.mark.parametrize("rule", RULES)
def test_missing_step(rule: str) -> None:
    buffers = make(rule)
    with refused(TypeError, "step", unchanged=list(buffers.values())):
        getattr(adaptk.ops, rule)(*buffers.values())


# The call itself


@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_missing_argument(rule: str, argument: str) -> None:
    buffers = make(rule)
    function = getattr(adaptk.ops, rule)
    rest = {name: b for name, b in buffers.items() if name != argument}
    with refused(TypeError, argument, unchanged=list(buffers.values())):
        function(**rest, step=1)
    with refused(TypeError, arguments(rule)[-1], unchanged=list(buffers.values())):
        function(*list(buffers.values())[:-1], step=1)
    with refused(TypeError, "param", unchanged=list(buffers.values())):
        function(step=1)


@pytest.mark.parametrize("rule", RULES)
def test_unknown_keyword(rule: str) -> None:
    buffers = make(rule)
    unknown = {"learning_rate", "Lr", "lr_", "params", "", "naïve", "exp_avg"}
    for name in sorted(unknown - set(arguments(rule))):
        with refused(TypeError, unchanged=list(buffers.values())):
            call(rule, buffers, **{name: 0.1})
    with pytest.raises(TypeError) as error:
        call(rule, buffers, learning_rate=0.1)
    assert mentions(str(error.value), "learning_rate")
    for known in ["step", *(h.name for h in RULES[rule].hyperparameters)]:
        assert mentions(str(error.value), known)


@pytest.mark.parametrize(("rule", "argument"), ARGUMENTS)
def test_argument_given_twice(rule: str, argument: str) -> None:
    buffers = make(rule)
    with refused(TypeError, argument, unchanged=list(buffers.values())):
        call(rule, buffers, **{argument: buffers[argument]})


@pytest.mark.parametrize("rule", RULES)
def test_too_many_positionals(rule: str) -> None:
    buffers = make(rule)
    function = getattr(adaptk.ops, rule)
    for extra in ([1], [1, 0.1], [buffers["param"]]):
        with refused(TypeError, unchanged=list(buffers.values())):
            function(*buffers.values(), *extra, step=1)
        with pytest.raises(TypeError, match=f"{rule}.*takes {len(buffers)} positional"):
            function(*buffers.values(), *extra, step=1)


def test_keywords_that_are_not_strings() -> None:
    buffers = make("adam")
    with refused(TypeError, unchanged=list(buffers.values())):
        call("adam", buffers, **{"\ud800": 0.1})


class Name(str):
    pass


def test_keywords_of_a_subclass_of_str() -> None:
    got, wanted = make("adam"), make("adam")
    adaptk.ops.adam(**{Name(k): b for k, b in got.items()}, **{Name("step"): 2, Name("lr"): 0.5})
    adaptk.ops.adam(**wanted, step=2, lr=0.5)
    assert_same(got, wanted)


@pytest.mark.parametrize("rule", RULES)
def test_signature(rule: str) -> None:
    parameters = inspect.signature(getattr(adaptk.ops, rule)).parameters
    hypers = [h.name for h in RULES[rule].hyperparameters]
    assert list(parameters) == [
        *arguments(rule),
        "step",
        "seed",
        "param_format",
        "zero_grad",
        "copy_out",
        "ema",
        "sparse",
        "last_step",
        *hypers,
    ]
    for h in RULES[rule].hyperparameters:
        assert parameters[h.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[h.name].default == h.default
    assert parameters["step"].default is inspect.Parameter.empty
