"""Fused update functions on buffers, one a rule.

``adaptk.ops.<rule>(param, grad, *states, step=..., **hyperparameters)`` updates `param` and the states in place and
returns ``None``. Every array argument is one buffer, or a list or tuple of buffers of the same length: many tensors are
one call and one parallel region. A buffer is a NumPy array or any object with ``__dlpack__`` in the memory of the CPU;
none is ever copied.
"""

from __future__ import annotations

from typing import Any

from adaptk import _core
from adaptk._registry import RULES, Rule

__all__ = list(RULES)

_DTYPES = "float32, float64, bfloat16 or float16"


def _signature(rule: Rule) -> str:
    arguments = ["param", "grad", *(s.name for s in rule.states), "*", "step"]
    arguments += [f"{h.name}={h.default!r}".replace("=inf", "=float('inf')") for h in rule.hyperparameters]
    # A signature that inspect can read holds literals only.
    return f"{rule.name}({', '.join(arguments)})".replace("float('inf')", "1e999")


def _example(rule: Rule) -> list[str]:
    names = [s.name for s in rule.states]
    lines = [
        ">>> import numpy as np, adaptk",
        ">>> param, grad = np.ones(3, np.float32), np.full(3, 0.5, np.float32)",
    ]
    for name, value in rule.initial_states().items():
        lines.append(f">>> {name} = np.full(3, {value!r}, np.float32)")
    call = ", ".join(["param", "grad", *names, "step=1"])
    lines += [f">>> adaptk.ops.{rule.name}({call})", ">>> bool((param < 1).all())", "True"]
    return lines


def _doc(rule: Rule) -> str:
    lines = [rule.summary, "", "Updates `param` and the states in place. ::", ""]
    lines += ["    " + line for line in rule.formula.splitlines()]
    lines += [
        "",
        "Parameters",
        "----------",
        "param : buffer or sequence of buffers",
        f"    Of any shape, dense in memory; {_DTYPES}. 16-bit params are computed in float32.",
        "grad : as param",
        "    Of the shape and layout of its param; of its dtype, or of a dtype of lower precision.",
    ]
    for s in rule.states:
        start = s.initial_from if s.initial_from else f"{s.initial:g}"
        lines += [
            f"{s.name} : as param",
            f"    State, {start} at the start; float64 beside a float64 param, else float32.",
        ]
    lines += ["step : int", "    The number of this step, counted from 1."]
    for h in rule.hyperparameters:
        kind = "bool" if h.range == "bool" else f"float in {h.range}"
        lines += [f"{h.name} : {kind}, default {h.default!r}", f"    {h.meaning[0].upper()}{h.meaning[1:]}."]
    lines += [
        "",
        "Raises",
        "------",
        "TypeError",
        "    For what is not a buffer, a wrong dtype, an argument that the rule does not take.",
        "ValueError",
        "    For shapes or list lengths that differ, read-only, overlapping or not dense buffers, a hyperparameter out",
        "    of its range, a step below 1. Nothing is written then.",
        "BufferError",
        "    Where a buffer's owner cannot export it.",
        "",
        "Source",
        "------",
        rule.source,
        "",
        "Examples",
        "--------",
        *_example(rule),
        "",
    ]
    return "\n".join(lines)


def _make(rule: Rule) -> Any:
    return _core.make_function(rule.name, f"{_signature(rule)}\n--\n\n{_doc(rule)}", __name__)


globals().update({rule.name: _make(rule) for rule in RULES.values()})
