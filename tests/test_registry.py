"""The registry against headers, functions, classes, stubs, references, oracles and the README."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _core, _reference, _stubs, catalogue
from adaptk._registry import ROW_WISE
from oracles import ORACLES

ROOT = Path(__file__).parents[1]
PACKAGE = Path(adaptk.__file__).parent
HEADERS = ROOT / "cpp" / "include" / "adaptk"
RULES = adaptk.rules()
COMMON = ("weight_decay", "decoupled", "maximize", "grad_scale")
CONVENTIONS = [(name, convention) for name, rule in RULES.items() for convention in rule.conventions]

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_convention = pytest.mark.parametrize(("name", "convention"), CONVENTIONS)


def own(rule: adaptk.Rule) -> list[str]:
    return [h.name for h in rule.hyperparameters if not h.common]


# The registry itself


def test_rules_returns_a_fresh_dict_of_frozen_rules() -> None:
    first = adaptk.rules()
    first.clear()
    assert adaptk.rules() == RULES
    assert adaptk.rules() is not adaptk.rules()
    rule = RULES["adam"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        rule.presets["torch"]["lr"] = 1.0  # type: ignore[index]
    values = rule.defaults()
    values["lr"] = 7.0
    assert rule.defaults()["lr"] == 1e-3
    assert all(name == rule.name for name, rule in RULES.items())


@every_rule
def test_descriptions_of_rules(rule: adaptk.Rule) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", rule.name)
    assert rule.summary.endswith(".")
    assert rule.formula
    assert re.search(r"\b(1|2)\d{3}\b|book", rule.source) or rule.name == "sgd"
    assert rule.class_names
    names = [*own(rule), *(s.name for s in rule.states)]
    assert len(set(names)) == len(names)
    assert not {"param", "grad", "step", "params"} & set(names)
    for h in rule.hyperparameters:
        assert h.meaning
        assert isinstance(h.default, bool) == (h.range == "bool")
    assert rule.hyperparameters[0].name == "lr"
    assert tuple(h.name for h in rule.hyperparameters if h.common) == COMMON
    for s in rule.states:
        assert s.initial_from is None or s.initial_from in own(rule)


@every_convention
def test_defaults_are_in_range(name: str, convention: str) -> None:
    rule = RULES[name]
    values = rule.defaults(convention)
    assert list(values) == [h.name for h in rule.hyperparameters]
    for h in rule.hyperparameters:
        value = values[h.name]
        assert type(value) is type(h.default)
        if h.range != "bool":
            low, high = map(float, h.range[1:-1].split(", "))
            assert low < value < high or (h.range[0] == "[" and value == low) or (h.range[-1] == "]" and value == high)
    _core.check_hyperparameters(name, values)
    assert convention != "book" or values == {h.name: h.default for h in rule.hyperparameters}


@every_convention
def test_presets_name_hyperparameters_and_states(name: str, convention: str) -> None:
    rule = RULES[name]
    known = {h.name for h in rule.hyperparameters} | {s.name for s in rule.states}
    assert set(rule.presets.get(convention, {})) <= known
    initial = rule.initial_states(convention)
    assert list(initial) == [s.name for s in rule.states]
    assert all(np.isfinite(x) and x >= 0.0 for x in initial.values())


def test_initial_values_of_states() -> None:
    for rule in RULES.values():
        for s in rule.states:
            if s.initial_from is not None:
                assert rule.initial_states("book", {s.initial_from: 0.375})[s.name] == 0.375
            elif s.option is not None:
                assert rule.initial_states("book", None, {s.option: 0.375})[s.name] == 0.375
            else:
                assert rule.initial_states()[s.name] == s.initial


@every_rule
def test_conventions(rule: adaptk.Rule) -> None:
    assert rule.conventions[0] == "book"
    assert set(rule.conventions) == {"book", *rule.presets}
    assert list(rule.conventions) == [c for c in adaptk.CONVENTIONS if c in rule.conventions]
    for method in (rule.defaults, rule.initial_states):
        with pytest.raises(ValueError, match="convention: 'pytorch' is not one of book, torch, keras, tf1, optax"):
            method("pytorch")
        for missing in set(adaptk.CONVENTIONS) - set(rule.conventions):
            with pytest.raises(ValueError, match=f"{rule.name} has no convention '{missing}'; it has book"):
                method(missing)


# Headers


def test_headers_name_the_rules() -> None:
    headers = list((HEADERS / "rules").glob("*.hpp"))
    names = {h.stem: re.findall(r'\bname = "(\w+)";', h.read_text()) for h in headers}
    assert Counter(n for several in names.values() for n in several) == Counter(RULES.keys())
    # A header is named after its first rule; its other rules are variants.
    assert all(several[0] == stem for stem, several in names.items())


def test_the_list_of_rules_includes_every_header() -> None:
    text = (HEADERS / "rules.hpp").read_text()
    for header in (HEADERS / "rules").glob("*.hpp"):
        assert f'#include "adaptk/rules/{header.name}"' in text


# Functions and classes


def test_functions() -> None:
    names = [*RULES, *ROW_WISE]
    assert sorted(adaptk.ops.__all__) == sorted(names)
    for name in names:
        function = getattr(adaptk.ops, name)
        assert function.__name__ == name
        assert function.__module__ == "adaptk.ops"
    assert {n for n in vars(adaptk.ops) if inspect.isbuiltin(getattr(adaptk.ops, n))} == set(names)


def test_classes() -> None:
    classes = {**adaptk.optim.CLASSES, **adaptk.optim.ROW_WISE_CLASSES}
    assert set(classes) == {name for rule in (*RULES.values(), *ROW_WISE.values()) for name in rule.class_names}
    for name, made in classes.items():
        assert re.fullmatch(r"[A-Z][A-Za-z]*", name)
        assert getattr(adaptk, name) is getattr(adaptk.optim, name) is made
        assert made.__name__ == made.__qualname__ == name
        assert made.__module__ == "adaptk.optim"
        assert issubclass(made, adaptk.Optimizer)
        assert name in adaptk.__all__
    assert len(set(adaptk.__all__)) == len(adaptk.__all__)
    assert all(hasattr(adaptk, name) for name in adaptk.__all__)


def test_a_class_has_one_rule_for_each_choice() -> None:
    for name in adaptk.optim.CLASSES:
        variants = [frozenset(r.variant) for r in RULES.values() if name in r.class_names]
        assert len(set(variants)) == len(variants)
        assert frozenset() in variants


# Stubs


@pytest.mark.parametrize("name", ["ops", "optim", "jax", "torch/_catalogue"])
def test_stubs_are_up_to_date(name: str) -> None:
    made = {
        "ops": _stubs.ops_stub,
        "optim": _stubs.optim_stub,
        "jax": _stubs.jax_stub,
        "torch/_catalogue": _stubs.torch_catalogue_stub,
    }
    assert (PACKAGE / f"{name}.pyi").read_text() == made[name]()
    assert (PACKAGE / "py.typed").exists()


def definitions(path: Path) -> dict[str, Any]:
    tree = ast.parse(path.read_text())
    return {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


@every_rule
def test_the_stub_of_a_function(rule: adaptk.Rule) -> None:
    stub = definitions(PACKAGE / "ops.pyi")[rule.name]
    signature = inspect.signature(getattr(adaptk.ops, rule.name))
    by_kind = {
        kind: [p.name for p in signature.parameters.values() if p.kind == kind]
        for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    assert [a.arg for a in stub.args.args] == by_kind[inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert [a.arg for a in stub.args.kwonlyargs] == by_kind[inspect.Parameter.KEYWORD_ONLY]
    required = [a.arg for a, d in zip(stub.args.kwonlyargs, stub.args.kw_defaults, strict=True) if d is None]
    assert required == ["step"]


@pytest.mark.parametrize("name", adaptk.optim.CLASSES)
def test_the_stub_of_a_class(name: str) -> None:
    stub = definitions(PACKAGE / "optim.pyi")[name]
    (init,) = (n for n in stub.body if isinstance(n, ast.FunctionDef))
    arguments = [a.arg for a in (*init.args.args, *init.args.kwonlyargs)]
    signature = set(inspect.signature(getattr(adaptk, name)).parameters)
    assert arguments[:3] == ["self", "params", "lr"]
    assert set(arguments) - {"self", "eps"} == signature - {"eps"}
    options = {h.name for r in RULES.values() if name in r.class_names for h in r.hyperparameters}
    assert ("eps" in arguments) == bool({"eps", "eps_in"} & options)


def test_stubs_have_no_other_names() -> None:
    assert set(definitions(PACKAGE / "ops.pyi")) == {*RULES, *ROW_WISE, *catalogue.CLASSES}
    of_catalogue = set(catalogue.CLASSES.values())
    classes = {*adaptk.optim.CLASSES, *adaptk.optim.ROW_WISE_CLASSES}
    assert set(definitions(PACKAGE / "optim.pyi")) == {"optimizer_for", *classes} | of_catalogue


def test_the_stub_of_the_core() -> None:
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    stubbed = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    stubbed |= {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert stubbed == {n for n in vars(_core) if not n.startswith("_")}
    (plan,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Plan")
    methods = {n.name for n in plan.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}
    assert methods == {n for n in vars(_core.Plan) if not n.startswith("_")}


# References and oracles


@every_rule
def test_the_reference_of_a_rule(rule: adaptk.Rule) -> None:
    values = rule.defaults()
    p = np.ones(3)
    states = _reference.initial_states(rule.name, p, values)
    assert [float(s[0]) for s in states] == list(rule.initial_states().values())
    new, after = _reference.update(rule.name, p, np.full(3, 0.5), states, 1, values)
    buffers = [np.ones(3), np.full(3, 0.5), *(s.copy() for s in states)]
    getattr(adaptk.ops, rule.name)(*buffers, step=1)
    for got, want in zip([new, *after], [buffers[0], *buffers[2:]], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_there_are_references_and_oracles_of_rules_only() -> None:
    assert set(_reference.FORMULAS) == set(RULES)
    assert set(ORACLES) == set(RULES)


@every_rule
def test_the_oracle_of_a_rule(rule: adaptk.Rule) -> None:
    parameters = inspect.signature(ORACLES[rule.name]).parameters.values()
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    assert len(positional) == 2 + len(rule.states)
    assert set(keywords) == {"t", *own(rule)}
    values = rule.defaults()
    arrays = [np.ones(3), np.full(3, 0.5), *(np.full(3, x) for x in rule.initial_states().values())]
    want = ORACLES[rule.name](*arrays, t=1, **{name: values[name] for name in own(rule)})
    # Oracles have no weight decay.
    getattr(adaptk.ops, rule.name)(*arrays, step=1, weight_decay=0.0)
    assert [x.tobytes() for x in want] == [x.tobytes() for x in (arrays[0], *arrays[2:])]


# The README


def test_the_readme_lists_every_rule() -> None:
    text = re.sub(r"<!-- figures: begin.*figures: end -->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    cells = re.findall(r"^\|\s*`(\w+)`\s*\|", text, flags=re.MULTILINE)
    listed = [cell for cell in cells if cell in RULES]
    assert sorted(listed) == sorted(RULES)
