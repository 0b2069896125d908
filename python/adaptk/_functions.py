"""The functions of adaptk.ops, made from rules."""

from __future__ import annotations

from typing import Any

from adaptk import _core
from adaptk._docs import function_doc, function_signature
from adaptk._registry import Rule


def function_of(rule: Rule, module: str) -> Any:
    """A function of the core, with the rule's signature and docstring."""
    return _core.make_function(rule.key, f"{function_signature(rule)}\n--\n\n{function_doc(rule)}", module)
