"""Errors in functions of adaptk.rule: the message names the line and the remedy."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest


def refused(match: str, function: Callable[..., Any], kind: type[Exception] = TypeError, **options: Any) -> None:
    """Asserts that the rule is refused and not registered; `match` is a pattern of the message."""
    before = list(adaptk.rules())
    with pytest.raises(kind, match=match):
        adaptk.rule(**{"lr": 0.1, **options})(function)
    assert list(adaptk.rules()) == before


def line_of(function: Callable[..., Any], text: str) -> str:
    """`test_rule_errors.py, line 12: `source``, of the line that has this text."""
    lines, first = inspect.getsourcelines(function)
    (at,) = (i for i, line in enumerate(lines) if text in line)
    return re.escape(f"test_rule_errors.py, line {first + at}: `{lines[at].strip()}`: ")


def test_a_branch_on_an_element() -> None:
    def branches(p, g, h, t):
        if g > 0:
            return p - h.lr
        return p

    refused(line_of(branches, "if g > 0") + "a branch on an element's value.*adaptk.where", branches)


@pytest.mark.parametrize(
    "expression",
    ["max(g, 0.0)", "min(g, p)", "g and p", "not g", "0 < g < 1", "g if p > 0 else p", "h.lr if t == 1 else g"],
)
def test_conversions_to_bool(expression: str) -> None:
    function = eval(f"lambda p, g, h, t: {expression}")
    refused("a branch on", function, name="some_rule")


@pytest.mark.parametrize(
    ("expression", "match"),
    [
        ("math.sqrt(g)", "a function of Python's or another library's.*adaptk.sqrt"),
        ("math.exp(h.lr)", "a function of Python's or another library's"),
        ("float(g)", "a function of Python's"),
        ("int(t)", "a function of Python's"),
        ("round(g)", "a function of Python's"),
        ("[1, 2][t]", "a function of Python's"),
        ("np.sqrt(g)", "np.sqrt on a traced value; use adaptk.sqrt"),
        ("np.exp(g)", "np.exp on a traced value$"),
        ("np.abs(g)", "np.absolute on a traced value; use adaptk.abs"),
        ("np.maximum(g, 0)", "np.maximum on a traced value; use adaptk.maximum"),
        ("np.where(g > 0, g, p)", "np.where on a traced value; use adaptk.where"),
        ("np.clip(g, -1, 1)", "np.clip on a traced value; use adaptk.minimum and adaptk.maximum"),
        ("np.asarray(g)", "a function of Python's"),
        ("g // 2", "// and % are no operations"),
        ("g % 2", "// and % are no operations"),
        ("g**3", "a power of an element"),
        ("g**p", "a power of an element"),
        ("2**g", "a power whose exponent is an element"),
        ("g[0]", "a value has no shape"),
        ("len(g)", "a value has no shape"),
        ("list(g)", "a value has no shape"),
        ("g @ g", "a value has no shape"),
        ("g.mean()", "a value has no shape"),
        ("g.shape", "a value has no shape"),
        ("g + np.ones(3)", "np.add on a traced value|not a number"),
        ("g * np.ones((2, 2))", "an array of shape .2, 2. is not a number"),
        ("g + None", "a NoneType is not a number"),
        ("g * 'a'", "a str is not a number"),
        ("adaptk.maximum(g, [1])", "a list is not a number"),
        ("g & p", "& of what are not both conditions"),
        ("~g", "~ of what is not a condition"),
        ("adaptk.where(g, g, p)", "where: the first argument is no condition"),
        ("adaptk.where(g > 0, g, None)", "a NoneType is not a number"),
        ("adaptk.cumprod(g)", "cumprod: expected an expression of h and t"),
        ("setattr(h, 'lr', 1)", "h.lr is assigned to"),
        ("h.weight_decay", "h.weight_decay acts before the rule"),
    ],
)
def test_unsupported_operations(expression: str, match: str) -> None:
    space = {"math": math, "np": np, "adaptk": adaptk}
    exec(f"def some_rule(p, g, h, t):\n    return {expression}\n", space)
    refused(rf"^<string>, line 2: .*({match})", space["some_rule"])


@pytest.mark.parametrize(
    ("expression", "match"),
    [("h.beta", "no hyperparameter 'beta'; it has lr"), ("g.abs", "no attribute 'abs'"), ("h.Lr", "mean 'lr'")],
)
def test_unknown_names(expression: str, match: str) -> None:
    refused(match, eval(f"lambda p, g, h, t: {expression}"), AttributeError, name="some_rule")


def test_functions_called_outside_of_a_rule() -> None:
    for call in (adaptk.sqrt, adaptk.abs, adaptk.sign):
        with pytest.raises(TypeError, match=r"inside a function of adaptk.rule"):
            call(np.ones(2))
    for two in (adaptk.minimum, adaptk.maximum):
        with pytest.raises(TypeError, match=r"inside a function of adaptk.rule"):
            two(1.0, "a")
    with pytest.raises(TypeError, match="expected a condition"):
        adaptk.where(1.0, 2.0, 3.0)
    assert math.isnan(adaptk.sqrt(-1.0))
    assert math.isnan(adaptk.maximum(1.0, math.nan))
    assert math.isnan(adaptk.minimum(math.nan, 1.0))
    assert (adaptk.sign(0.0), adaptk.where(np.bool_(False), 1, 2)) == (0.0, 2)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("return p - g", r"line 1: some_rule\(\) returns 1 value, expected 2: p, m; .* m is missing"),
        ("return p, m, g", r"returns 3 values, expected 2: p, m"),
        ("m = g", r"returns nothing, expected p, m"),
        ("return None, m", r"returns a NoneType as p, expected a number"),
        ("return p, np.ones(3)", r"returns an array of shape \(3,\) as m"),
        ("return {1: 2}", r"returns a dict"),
    ],
)
def test_wrong_return_values(text: str, match: str) -> None:
    space: dict[str, Any] = {"np": np}
    exec(f"def some_rule(p, g, m, h, t):\n    {text}\n", space)
    refused(match, space["some_rule"], states={"m": 0.0})


def test_arguments_of_the_function() -> None:
    match = r"expected some_rule\(p, g, a, b, h, t\)"
    for text in ("p, g, h, t", "p, g, b, a, h, t", "*args", "p, g, a, b, h, t, x", "p, g, a, b, h, *, t", "p, g"):
        space: dict[str, Any] = {}
        exec(f"def some_rule({text}):\n    return 1\n", space)
        refused(match, space["some_rule"], states={"a": 0.0, "b": 0.0})
    refused("expected a Python function, got builtin", len)


def plain(p, g, h, t):
    return p - h.lr * g


def test_options() -> None:
    for options, kind, match in [
        ({"name": "adam"}, ValueError, "'adam' is a rule of the library"),
        ({"name": "a b"}, ValueError, "not an identifier"),
        ({"name": "Ä"}, ValueError, "not an identifier"),
        ({"name": "annotations"}, ValueError, "adaptk.ops has something else"),
        ({"name": "x" * 65}, ValueError, "at most 64"),
        ({"lr": "a"}, TypeError, "lr: expected a number"),
        ({"lr": -1.0}, ValueError, "lr: its default is out of its range"),
        ({"lr": math.nan}, ValueError, "lr: its default is nan, not in"),
        ({"maximize": True}, TypeError, "maximize: every rule has it"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"step": 1.0}, ValueError, "step: a hyperparameter cannot be named like an argument"),
        ({"ranges": {"x": "[0, 1]"}}, ValueError, "ranges: 'x'"),
        ({"ranges": {"lr": "[0, 2]"}}, ValueError, r"'\[0, 2\]' is not one of"),
        ({"meanings": {"eps": "a"}}, ValueError, "meanings: 'eps'"),
        ({"nonnegative": ["v"]}, ValueError, "nonnegative: 'v' is not a state"),
        ({"states": ["m"]}, TypeError, "states: expected a dict"),
        ({f"h{i}": 1.0 for i in range(16)}, ValueError, "more than 16 hyperparameters"),
    ]:
        refused(match, plain, kind, **options)
    with pytest.raises(TypeError, match="lr among them"):
        adaptk.rule(plain)
    with pytest.raises(TypeError, match="a learning rate"):
        adaptk.rule(eps=1.0)(plain)
    with pytest.raises(TypeError, match="expected a function"):
        adaptk.rule(3)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("start", "kind", "match"),
    [
        ("params", ValueError, "did you mean 'param'"),
        (None, TypeError, "expected a number, 'param' or 'grad', got NoneType"),
        (True, TypeError, "got bool"),
        (math.inf, ValueError, "not finite"),
    ],
)
def test_wrong_initial_values(start: Any, kind: type[Exception], match: str) -> None:
    def some_rule(p, g, m, h, t):
        return p, m

    refused(match, some_rule, kind, states={"m": start})


def test_names_of_states() -> None:
    def some_rule(p, g, lr, h, t):
        return p, lr

    refused("the name 'lr' is taken", some_rule, ValueError, states={"lr": 0.0})


def test_too_many_states() -> None:
    def some_rule(p, g, a, b, c, d, e, f, h, t):
        return p, a, b, c, d, e, f

    refused("more than 5 states", some_rule, ValueError, states=dict.fromkeys("abcdef", 0.0))


def test_a_loop_that_unrolls() -> None:
    def long(p, g, h, t):
        for i in range(10_000):
            p = p - (h.lr + i) * g
        return p

    refused("line .*more than .* operations", long)


def test_values_of_another_call() -> None:
    kept = []

    def keeps(p, g, h, t):
        kept.append(g)
        return p

    def uses(p, g, h, t):
        return p - kept[0]

    adaptk.rule(lr=0.1)(keeps).unregister()
    refused(line_of(uses, "kept[0]") + "a value of another rule", uses)


def test_errors_of_the_function_propagate() -> None:
    def fails(p, g, h, t):
        return undefined_name  # noqa: F821

    refused("undefined_name", fails, NameError)


def test_defaults_out_of_range() -> None:
    def plain(p, g, h, t):
        return p - h.lr * g

    refused(r"^beta: its default is nan, not in \(-inf, inf\)$", plain, ValueError, beta=math.nan)
    refused(r"^weight_decay: its default is nan, not in \[0, inf\)$", plain, ValueError, weight_decay=math.nan)
    refused("^plain: lr: its default is out of its range$", plain, ValueError, lr=-1.0)
    for what in ("name", "class_name", "summary", "source"):
        refused(f"^{what}: expected a string, got int$", plain, **{what: 5})


def test_states_said_to_be_nonnegative() -> None:
    def kept(p, g, v, h, t):
        return p - h.lr * g, v

    refused(r"^states\['v'\]: starts as -1.0, and is named in", kept, ValueError, states={"v": -1.0}, nonnegative=["v"])
    refused("^nonnegative: expected a list of states, got the string 'v'", kept, states={"v": 0.0}, nonnegative="v")


def test_names_that_every_rule_has() -> None:
    """A hyperparameter of the name of an option would leave a rule whose optimizer class cannot be made."""

    def plain(p, g, h, t):
        return p - h.lr * g

    made = adaptk.rule(lr=0.1)(plain)
    try:
        names = {*inspect.signature(made.Optimizer).parameters, *inspect.signature(made).parameters}
        for function in ("adaptk.torch", "adaptk.jax"):
            try:
                found = made.torch if function == "adaptk.torch" else made.jax
            except ImportError:
                continue
            names |= {*inspect.signature(found).parameters}
    finally:
        made.unregister()
    own = {"lr", "weight_decay", "decoupled", "maximize", "grad_scale", "args", "kwargs"}
    assert {"state_dtype", "clip_norm"} <= names
    for name in names - own:
        refused(f"^{name}: a hyperparameter cannot be named like an argument", plain, ValueError, **{name: 0.5})
    refused("^lambda: a hyperparameter cannot be named like a keyword", plain, ValueError, **{"lambda": 0.5})
    refused("'class' is not an identifier", plain, ValueError, name="class")

    def swaps(p, g, ema, h, t):
        return p - h.lr * g, ema

    refused("^ema: a state cannot be named like an argument", swaps, ValueError, states={"ema": 0.0})
