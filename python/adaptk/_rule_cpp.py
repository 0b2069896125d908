"""C++ source of rules that were made at run time, written by the core."""

from __future__ import annotations

from adaptk import _core
from adaptk._registry import Rule


def to_kernel(rule: Rule, suffix: str) -> str:
    """The source of the rule's step kernels for a compiled library: ``StepKernel`` of cpp/src/kernel_table.hpp."""
    lines = [
        "#include <adaptk/logarithm.hpp>",
        "#include <adaptk/math.hpp>",
        "#include <adaptk/rule_loop.hpp>",
        f"namespace {{ namespace rule{suffix} {{",
        _core.source_of_struct(rule.key, "Rule"),
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
    """The source of a header with the rule as a struct."""
    if rule.reduces:
        raise ValueError(
            f"{rule.name}: it has reductions, such as a tensor's norm, and a struct updates one element; "
            "C++ programs run it as a program: adaptk_rule_load"
        )
    if _core.reads_decay(rule.key):
        raise ValueError(f"{rule.name}: it reads weight_decay, which acts before a struct sees the param")
    lines = [
        f"// {rule.name}, made by adaptk.rule.",
        "#pragma once",
        "",
        "#include <adaptk/logarithm.hpp>",
        "#include <adaptk/math.hpp>",
        "#include <adaptk/power.hpp>",
        "#include <adaptk/run.hpp>",
        "",
        "#include <array>",
        "#include <cmath>",
        "#include <cstdint>",
        "",
        _core.source_of_struct(rule.key, rule.class_names[0]),
    ]
    return "\n".join(lines)
