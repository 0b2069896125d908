"""Fused update functions on buffers, one per rule.

``adaptk.ops.<rule>(param, grad, *states, step=..., **hyperparameters)`` updates `param` and the states in place and
returns ``None``. Every array argument is one buffer, or a list or tuple of buffers of the same length: many tensors are
updated in one multithreaded call. A buffer is a NumPy array or any object with ``__dlpack__``, on the CPU or on a CUDA
device; none is ever copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptk import _core
from adaptk._docs import function_doc, function_signature
from adaptk._names import face
from adaptk._registry import RULES, Rule

__all__ = list(RULES)


def _make(rule: Rule) -> Any:
    return _core.make_function(rule.name, f"{function_signature(rule)}\n--\n\n{function_doc(rule)}", __name__)


globals().update({rule.name: _make(rule) for rule in RULES.values()})

if not TYPE_CHECKING:
    __getattr__, __dir__ = face(__name__, __all__)
