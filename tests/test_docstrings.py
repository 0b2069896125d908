"""Signatures, documentation and its examples."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import sys
from typing import Any

import adaptk
import pytest
from adaptk.curriculum import pacing
from optim_cases import (
    CASES,
    RULES,
    every_rule,
)

PUBLIC: dict[str, Any] = {
    **{name: getattr(adaptk, name) for name in adaptk.__all__ if callable(getattr(adaptk, name))},
    **{f"ops.{name}": getattr(adaptk.ops, name) for name in adaptk.ops.__all__},
    **{f"schedules.{name}": getattr(adaptk.schedules, name) for name in adaptk.schedules.__all__},
    **{f"formats.{name}": getattr(adaptk.formats, name) for name in adaptk.formats.__all__ if name != "Stored"},
    **{f"init.{name}": getattr(adaptk.init, name) for name in adaptk.init.__all__},
    **{f"curriculum.{name}": getattr(adaptk.curriculum, name) for name in ("Curriculum", "SelfPaced")},
    **{f"curriculum.pacing.{name}": getattr(pacing, name) for name in pacing.__all__ if name != "Pacing"},
    **{f"cuda.{name}": getattr(adaptk.cuda, name) for name in adaptk.cuda.__all__},
    **{
        f"Optimizer.{name}": member
        for name, member in vars(adaptk.Optimizer).items()
        if inspect.isfunction(member) and not name.startswith("_")
    },
}


# The types of results in examples.
RETURNED = {"Hyperparameter", "State", "Rule", "schedules.Schedule"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_function_and_class_has_documentation(name: str) -> None:
    assert len(inspect.getdoc(PUBLIC[name]) or "") > 40


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in RETURNED])
def test_every_example_runs(name: str) -> None:
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
    defaults = {"seed": 0, "param_format": None, "zero_grad": False, "copy_out": None, "ema": None}
    defaults |= {"sparse": "lazy", "last_step": None}
    defaults |= {h.name: h.default for h in RULES[rule].hyperparameters}
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
    known |= {"state_dtype", "min_8bit_size", "seed", "param_format", "sparse"}
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
