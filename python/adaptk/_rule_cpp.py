"""Rules that were made at run time as C++: structs for adaptk/run.hpp."""

from __future__ import annotations

import math
import re

from adaptk._program import Node, read_program
from adaptk._registry import Rule

_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """
        alignas alignof and and_eq asm auto bitand bitor bool break case catch char class co_await co_return co_yield
        compl concept const const_cast consteval constexpr constinit continue decltype default delete do double
        dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable namespace
        new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires
        return short signed sizeof static static_assert static_cast struct switch template this thread_local throw true
        try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq
        """,
    )
)
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
_COMPARED = {"less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!="}
_CALLS = {
    "maximum": "max",
    "minimum": "min",
    "square_root": "sqrt",
    "sign": "sign",
    "absolute": "abs",
    "logarithm": "logarithm",
}


def _member(name: str) -> str:
    return f"{name}_" if name in _KEYWORDS else name


def _literal(x: float) -> str:
    text = "std::sqrt(-1.0)" if math.isnan(x) else "HUGE_VAL" if math.isinf(x) else abs(x).hex()
    return f"-{text}" if math.copysign(1.0, x) < 0 and not math.isnan(x) else text


def _expression(node: Node, names: list[str], kind: str) -> str:
    x = [names[i] for i in node.operands]
    if node.op in _SIGNS:
        return f"{x[0]} {_SIGNS[node.op]} {x[1]}"
    if node.op in _COMPARED:
        return f"{x[0]} {_COMPARED[node.op]} {x[1]} ? {kind}(1) : {kind}(0)"
    if node.op == "negative":
        return f"-{x[0]}"
    if node.op == "select":
        return f"{x[0]} != {kind}(0) ? {x[1]} : {x[2]}"
    if node.op == "floor":
        return f"std::floor({x[0]})"
    return f"adaptk::{_CALLS[node.op]}({', '.join(x)})"


def _is_step_power(nodes: list[Node], node: Node) -> bool:
    """Whether it is a power by the number of the step, which has a function of its own."""
    return node.op == "power" and nodes[node.b].op == "step"


def _needed(nodes: list[Node], wanted: list[int]) -> list[int]:
    """The nodes that these are made of, and they themselves."""
    found: set[int] = set()
    rest = list(wanted)
    while rest:
        i = rest.pop()
        if i not in found:
            found.add(i)
            node = nodes[i]
            if _is_step_power(nodes, node):
                rest.append(node.a)
            elif node.op != "cumulative_product":  # it has a function of its own
                rest += node.operands
    return sorted(found)


def _scalar_lines(scalars: list[Node], wanted: list[int], hypers: list[str]) -> list[str]:
    names = [f"s{i}" for i in range(len(scalars))]
    lines = []
    for i in _needed(scalars, wanted):
        node = scalars[i]
        if node.op == "number":
            text = _literal(node.value)
        elif node.op == "hyper":
            text = f"h.{hypers[node.a]}"
        elif node.op == "step":
            text = "double(t)"
        elif node.op == "power":
            by_step = _is_step_power(scalars, node)
            text = f"adaptk::step_power({names[node.a]}, t)" if by_step else f"adaptk::any_power(s{node.a}, s{node.b})"
        elif node.op == "cumulative_product":
            text = f"product{i}(h, t)"
        else:
            text = _expression(node, names, "double")
        lines.append(f"const double s{i} = {text};")
    return lines


def _products(scalars: list[Node], hypers: list[str]) -> list[str]:
    lines = []
    for i, node in enumerate(scalars):
        if node.op == "cumulative_product":
            lines += [
                f"    ADAPTK_HOST_DEVICE static double factor{i}(const Hyper& h, [[maybe_unused]] std::int64_t t) {{",
                *(f"        {line}" for line in _scalar_lines(scalars, [node.a], hypers)),
                f"        return s{node.a};",
                "    }",
                f"    ADAPTK_HOST_DEVICE static double product{i}(const Hyper& h, std::int64_t t) {{",
                "        double product = 1.0;",
                "        for (std::int64_t k = 1; k <= t && !(std::fabs(product) < 0x1p-60); ++k)",
                f"            product *= factor{i}(h, k);",
                "        return std::fabs(product) < 0x1p-60 ? 0.0 : product;",
                "    }",
            ]
    return lines


def _update_lines(rule: Rule, elements: list[Node], results: list[int], constants: list[int]) -> list[str]:
    """The struct's members but for what computes the coefficients."""
    states = [f"{s.name}_" for s in rule.states]
    needed = _needed(elements, results)
    stored = any(elements[i].op == "param_as_stored" for i in needed)
    lines = ["    template <class T> struct Coefficients {", *(f"        T c{i};" for i in constants), "    };"]
    if stored:
        lines += ["    static constexpr bool needs_stored_param = true;"]
    parameters = ["[[maybe_unused]] const Coefficients<T>& c", *(["T stored"] if stored else []), "T& p"]
    parameters += ["[[maybe_unused]] T g", *(f"T& {s}" for s in states)]
    lines += ["    template <class T>", f"    ADAPTK_HD static void update({', '.join(parameters)}) {{"]
    names = [f"e{i}" for i in range(len(elements))]
    leaves = {"param": "p", "grad": "g", "param_as_stored": "stored"}
    for i in needed:
        node = elements[i]
        if node.op == "scalar":
            text = f"c.c{node.a}"
        elif node.op == "state":
            text = states[node.a]
        else:
            text = leaves[node.op] if node.op in leaves else _expression(node, names, "T")
        lines.append(f"        const T e{i} = {text};")
    lines += [f"        {target} = e{result};" for target, result in zip(["p", *states], results, strict=True)]
    return [*lines, "    }"]


def to_kernel(rule: Rule, suffix: str) -> str:
    """The text of functions that are its steps for a compiled library: ``StepKernel`` of cpp/src/kernel_table.hpp.

    The struct has no hyperparameters: its coefficients are all numbers that elements use, in the order that
    ``Program::coefficients`` of cpp/src/rule_program.hpp writes them in.
    """
    assert rule.program is not None
    _, elements, results, _ = read_program(rule.program)
    constants = list(dict.fromkeys(n.a for n in elements if n.op == "scalar"))
    lines = [
        "#include <adaptk/math.hpp>",
        "#include <adaptk/rule_loop.hpp>",
        f"namespace {{ namespace rule{suffix} {{",
        "struct Rule {",
        f"    static constexpr std::array<int, {len(rule.states)}> states{{}};",
        *_update_lines(rule, elements, results, constants),
        "};",
        "} }",
    ]
    for k in range(4):
        kind, coupled = ("float", "double")[k // 2], ("false", "true")[k % 2]
        lines += [
            f'extern "C" __attribute__((visibility("default"))) void adaptk_step{suffix}_{k}(',
            "    const void* coefficients, void* const* buffer, std::size_t n) {",
            f"    adaptk::detail::step<rule{suffix}::Rule, {kind}, {coupled}>(coefficients, buffer, n);",
            "}",
        ]
    return "\n".join([*lines, ""])


def to_cpp(rule: Rule) -> str:
    """The text of a header with the rule as a struct."""
    assert rule.program is not None
    scalars, elements, results, _ = read_program(rule.program)
    hypers = [_member(h.name) for h in rule.hyperparameters if not h.common]
    if any(n.op == "hyper" and n.a >= len(hypers) for n in scalars):
        raise ValueError(f"{rule.name}: it reads weight_decay, which acts before a struct sees the param")
    constants = sorted({elements[i].a for i in _needed(elements, results) if elements[i].op == "scalar"})
    lines = [
        f"// {rule.name}, made by adaptk.rule.",
        "#pragma once",
        "",
        "#include <adaptk/logarithm.hpp>",
        "#include <adaptk/math.hpp>",
        "#include <adaptk/power.hpp>",
        "#include <adaptk/run.hpp>",
        "",
        "#include <cmath>",
        "#include <cstdint>",
        "",
        f"struct {rule.class_names[0]} {{",
        "    struct Hyper {",
    ]
    for name, h in zip(hypers, rule.hyperparameters, strict=False):
        lines.append(f"        double {name} = {_literal(float(h.default))};")
    lines += ["    };", *_update_lines(rule, elements, results, constants), *_products(scalars, hypers)]
    lines += [
        "    template <class T>",
        "    ADAPTK_HOST_DEVICE static Coefficients<T> coefficients([[maybe_unused]] const Hyper& h,",
        "                                                           [[maybe_unused]] std::int64_t t) {",
        *(f"        {line}" for line in _scalar_lines(scalars, constants, hypers)),
        f"        return {{{', '.join(f'T(s{i})' for i in constants)}}};",
        "    }",
        "};",
        "",
    ]
    return "\n".join(lines)
