"""Directives whose text is made while the pages are built: from the registry of rules, and from adaptk.h."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk import catalogue
from adaptk._registry import ROW_WISE
from docutils import nodes
from docutils.statemachine import StringList
from math_core import LatexToMathML
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

HEADER = Path(__file__).parents[1] / "cpp" / "include" / "adaptk" / "adaptk.h"


class Made(SphinxDirective):
    """Stands for text in the markup of the page that it is on."""

    def text(self) -> list[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        parent = nodes.Element()
        source, _ = self.get_source_info()
        self.state.nested_parse(StringList(self.text(), source=source), self.content_offset, parent)
        return parent.children


# The registry


def _value(x: float | bool) -> str:
    return str(x) if isinstance(x, bool) else f"{x:g}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines), ""]


def _conventions(rule: adaptk.Rule) -> list[str]:
    """What differs between the conventions of a rule."""
    have = {c: {**rule.defaults(c), **rule.initial_states(c)} for c in rule.conventions}
    book = have["book"]
    # A state that starts as a hyperparameter differs where that does.
    states = {s.name for s in rule.states if s.initial_from is None}
    names = [n for n in book if n in states or n not in {s.name for s in rule.states}]
    rows = [
        [f"`{n}`" + (" at the start" if n in states else ""), *(_value(values[n]) for values in have.values())]
        for n in names
        if any(values[n] != book[n] for values in have.values())
    ]
    if rows:
        return _table(["convention", *have], rows)
    others = ", ".join(f"`{c}`" for c in rule.conventions[1:])
    return ["", f"Convention {others}: the same values." if others else "No convention but the book's.", ""]


class RuleFacts(Made):
    """Everything about one rule that the registry has. The page is in Markdown."""

    required_arguments = 1

    def text(self) -> list[str]:
        rule = adaptk.rules()[self.arguments[0]]
        classes = " and ".join(f"{{py:class}}`adaptk.{name}`" for name in rule.class_names)
        chosen = f" with {', '.join(f'`{word}`' for word in rule.variant)}" if rule.variant else ""
        usual = {h.name: h.default for h in adaptk.rules()["sgd"].hyperparameters}
        own = [h for h in rule.hyperparameters if not h.common or h.default != usual[h.name]]
        lines = [f"Function {{py:func}}`adaptk.ops.{rule.name}`, class {classes}{chosen}. As it is computed:", ""]
        lines += ["```text", *rule.formula.splitlines(), "```"]
        lines += _table(
            ["hyperparameter", "default", "valid", "meaning"],
            [
                # A range stays on one line.
                [
                    f"`{h.name}`",
                    _value(h.default),
                    f"`{h.range}`".replace(" ", "\N{NO-BREAK SPACE}"),
                    h.meaning.replace("*", r"\*"),
                ]
                for h in own
            ],
        )
        if rule.states:
            starts = [f"`{s.initial_from}`" if s.initial_from else f"{s.initial:g}" for s in rule.states]
            options = [f"`{s.option}`" if s.option else "" for s in rule.states]
            rows = [[f"`{s.name}`", start, o] for s, start, o in zip(rule.states, starts, options, strict=True)]
            lines += _table(["state", "at the start", "option of the class"], rows)
        return lines + _conventions(rule)


class RuleCosts(Made):
    """What a parameter of each rule costs, by the states of the registry. The page is in Markdown."""

    def text(self) -> list[str]:
        head = ["rule", "states", "bytes of states", "bytes moved per step", "source"]
        rows = []
        for rule in adaptk.rules().values():
            count = len(rule.states)
            states = ", ".join(f"`{s.name}`" for s in rule.states) or "none"
            # A step reads parameter, gradient and states, and writes all of them but the gradient.
            rows.append([f"[`{rule.name}`](../rules.md#{rule.name})", states, f"{4 * count}"])
            rows[-1] += [f"{4 * (3 + 2 * count)}", rule.source]
        return _table(head, rows)


class SparseModes(Made):
    """What rows without a gradient do under each rule, found by steps of each kind. The page is in Markdown."""

    def text(self) -> list[str]:
        rows = []
        for rule in (*adaptk.rules().values(), *ROW_WISE.values()):
            dense = self.run_steps(rule, "dense")
            lazy = "equal" if np.allclose(self.run_steps(rule, "lazy"), dense, rtol=1e-9) else "differs"
            late = "refused"
            if rule.catch_up:
                late = "equal" if np.allclose(self.run_steps(rule, "catch_up"), dense, rtol=1e-9) else rule.catch_up
            name = f"`{rule.name}`" if rule.name in ROW_WISE else f"[`{rule.name}`](../rules.md#{rule.name})"
            rows.append([name, lazy, late])
        return _table(["rule", "`lazy` and `dense`", "`catch_up` and `dense`"], rows)

    @staticmethod
    def run_steps(rule: adaptk.Rule, mode: str) -> Any:
        """A param and its states after a row had gradients, then others, then it again."""
        w = np.full((2, 1), 0.5)
        opt = adaptk.optimizer_for(rule.name, [w], weight_decay=0.0, sparse=mode)
        for row in (0, 1, 1, 0, 1):
            opt.step([(np.array([row]), np.array([[0.25 + 0.125 * row]]))])
        opt.catch_up()
        return np.concatenate([w.ravel(), *(opt.state[0][s.name].ravel() for s in rule.states)])


class Catalogue(Made):
    """The rules that are programs, with their formulas. The page is in Markdown."""

    def text(self) -> list[str]:
        lines: list[str] = []
        for rule in adaptk.rules(catalogue=True).values():
            if rule.name not in catalogue.NAMES:
                continue
            common = {"weight_decay": 0.0, "decoupled": False, "maximize": False, "grad_scale": 1.0}
            own = [h for h in rule.hyperparameters if h.default != common.get(h.name)]
            defaults = ", ".join(f"`{h.name}` {_value(h.default)}" for h in own)
            states = ", ".join(f"`{s.name}`" for s in rule.states) or "none"
            lines += [f"**`{rule.name}`**, class `adaptk.{rule.class_names[0]}`. {rule.summary} {rule.source}.", ""]
            lines += ["```text", *rule.formula.splitlines(), "```", ""]
            lines += [f"States: {states}. Hyperparameters and their defaults: {defaults}.", ""]
        return lines


class Optimizers(Made):
    """The optimizer classes, by the names that programs use. The page is in reStructuredText."""

    def text(self) -> list[str]:
        lines: list[str] = []
        for name in adaptk.optim.__all__:
            if isinstance(getattr(adaptk, name), type):
                lines += [f".. autoclass:: adaptk.{name}", "   :members:", ""]
            else:
                lines += [f".. autofunction:: adaptk.{name}", ""]
        return lines


class Needs(Made):
    """What can be documented only where a module of adaptk can be imported."""

    has_content = True
    modules: tuple[str, ...]
    library: str

    def text(self) -> list[str]:
        if all(find_spec(name) is not None for name in self.modules):
            return list(self.content)
        return [f"{self.library} was not there when these pages were built."]


class NeedsTorch(Needs):
    modules, library = ("torch",), "PyTorch"


class NeedsJax(Needs):
    modules, library = ("jax", "adaptk._jax"), "The module for JAX"


# The header

SECTION = re.compile(r"^/\* -{4} (.+?) -+ \*/$", re.MULTILINE)
ITEM = re.compile(
    r"""
      /\*(?P<comment>.*?)\*/\n
    | typedef\ struct\ (?P<struct>\w+)\ \{\n(?P<fields>.*?)\n\}\ \w+;\n
    | typedef\ enum\ (?P<enum>\w+)\ \{\n(?P<values>.*?)\n\}\ \w+;\n
    | enum\ \{\n(?P<constants>.*?)\n\};\n
    | typedef\ struct\ (?P<opaque>\w+)\ \w+;\n
    | static\ inline\ (?P<inline>[^{]*?)\ \{\n.*?^\}\n
    | ADAPTK_API\ (?P<function>[^;]*?);\n
    | \#define\ (?P<macro>ADAPTK_(?!API\b)[A-Z_]+)\ [^\n]+\n
    | (?P<nothing>\n)
    | (?P<other>[^\n]+\n)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
PART = re.compile(r"^ +(?P<what>.+?)[;,]?(?: +/\* (?P<meaning>.+?) \*/)?$", re.MULTILINE)


def header_sections() -> dict[str, str]:
    """The text of adaptk.h under each of its headings; what stands before the first one is under Version."""
    before, *rest = SECTION.split(HEADER.read_text(encoding="utf-8"))
    return {"Version": before, **dict(zip(rest[::2], rest[1::2], strict=True))}


def _prose(comment: str) -> list[str]:
    """A comment of the header as reStructuredText: paragraphs, and a list of the arguments that it explains."""
    lines: list[str] = []
    for raw in comment.strip("\n").splitlines():
        line = re.sub(r"^ (?:\* ?)?", "", raw)
        text = line.strip().replace("*", r"\*")
        text = re.sub(r"\b(adaptk_\w+(?:\(\))?|ADAPTK_\w+)", r"``\1``", text)
        argument = re.match(r"  (\w[\w, ]*?) {2,}(.+)", line)
        if argument:
            names = ", ".join(f"``{name}``" for name in argument[1].split(", "))
            lines += ["", names, "   " + text[len(argument[1]) :].strip()]
        elif line.startswith("   "):
            lines.append("   " + text)
        else:
            if lines and lines[-1].startswith("   "):
                lines.append("")
            lines.append(text)
    return lines


def _object(kind: str, signatures: list[str], body: list[str]) -> list[str]:
    head = f".. c:{kind}:: "
    lines = [head + signatures[0], *(" " * len(head) + s for s in signatures[1:]), ""]
    return [*lines, *("   " + line if line else "" for line in body), ""]


def _parts(kind: str, text: str) -> list[str]:
    lines: list[str] = []
    for part in PART.finditer(text):
        lines += ["", *_object(kind, [part["what"]], _prose(part["meaning"] or ""))]
    return lines


def _items(text: str) -> Iterator[list[str]]:
    comment = ""
    functions: list[str] = []
    for item in ITEM.finditer(text):
        if functions and not item["function"]:
            yield _object("function", functions, _prose(comment))
            functions, comment = [], ""
        if item["comment"] is not None:
            if "clang-format" not in item["comment"]:
                comment = item["comment"]
            continue
        if item["function"]:
            functions.append(" ".join(item["function"].split()))
            continue
        if item["struct"]:
            yield _object("struct", [item["struct"]], _prose(comment) + _parts("member", item["fields"]))
        elif item["enum"]:
            yield _object("enum", [item["enum"]], _prose(comment) + _parts("enumerator", item["values"]))
        elif item["constants"]:
            yield [*_prose(comment), "", *_parts("enumerator", item["constants"])]
        elif item["opaque"]:
            yield _object("struct", [item["opaque"]], _prose(comment))
        elif item["inline"]:
            yield _object("function", [" ".join(item["inline"].split())], _prose(comment))
        elif item["macro"]:
            yield _object("macro", [item["macro"]], _prose(comment))
        elif item["other"]:
            continue  # of the preprocessor: what a comment says goes on
        comment = ""


class Header(Made):
    """One section of adaptk.h, item by item. The page is in reStructuredText."""

    required_arguments = 1
    final_argument_whitespace = True

    def text(self) -> list[str]:
        self.env.note_dependency(str(HEADER))
        return [line for item in _items(header_sections()[self.arguments[0]]) for line in item]


# The gallery

ORDER = (
    "surfaces.py",
    "momentum.py",
    "rare_features.py",
    "effective_rates.py",
    "bias_correction.py",
    "lookahead.py",
    "individual_rates.py",
    "schedules_drawn.py",
    "initial_weights.py",
    "curriculum.py",
    "hogwild.py",
    "staleness.py",
    "less_memory.py",
    "curve_fit.py",
    "profile.py",
    "spots.py",
    "steepest_descent.py",
    "newton_at_a_saddle.py",
)


class GalleryOrder:
    """The order of the examples of a section: those of ORDER first, the others by name."""

    def __init__(self, folder: str) -> None:
        pass

    def __call__(self, name: str) -> tuple[int, str]:
        return (ORDER.index(name) if name in ORDER else len(ORDER), name)


_filters = warnings.catch_warnings()


def strict_warnings(settings: dict[str, Any], example: str | None, when: str) -> None:
    """Makes the warnings of an example of the gallery errors, which fail the build."""
    global _filters
    if when == "before":
        _filters = warnings.catch_warnings()
        _filters.__enter__()
        warnings.simplefilter("error")
        # Of show(), which is for readers who run the example.
        warnings.filterwarnings("ignore", r"FigureCanvasAgg is non-interactive", UserWarning)
    else:
        _filters.__exit__(None, None, None)


# Formulas

_MATHML = LatexToMathML()


def _visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_MATHML.convert_with_local_state(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def _visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(_MATHML.convert_with_local_state(node.astext(), displaystyle=True))
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    app.add_directive("rule-facts", RuleFacts)
    app.add_directive("rule-costs", RuleCosts)
    app.add_directive("sparse-modes", SparseModes)
    app.add_directive("catalogue", Catalogue)
    app.add_directive("optimizers", Optimizers)
    app.add_directive("needs-torch", NeedsTorch)
    app.add_directive("needs-jax", NeedsJax)
    app.add_directive("c-header", Header)
    return {"version": adaptk.__version__, "parallel_read_safe": True}
