"""Fused update functions on buffers, one per rule.

``adaptk.ops.<rule>(param, grad, *states, step=..., **hyperparameters)`` updates `param` and the states in place and
returns ``None``. Each array argument is one buffer, or a list or tuple of buffers, all of the same length, to update
many tensors in one multithreaded call. A buffer is a NumPy array or any object with ``__dlpack__``, on the CPU or on a
CUDA device. Buffers are never copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptk import catalogue
from adaptk._functions import function_of
from adaptk._names import face
from adaptk._registry import ROW_WISE, RULES

__all__ = [*RULES, *ROW_WISE]


globals().update({rule.name: function_of(rule, __name__) for rule in (*RULES.values(), *ROW_WISE.values())})


def _of_catalogue(name: str) -> Any:
    found = catalogue.find(name)
    assert found is not None
    return found.function


if not TYPE_CHECKING:
    __getattr__, __dir__ = face(__name__, __all__, more=catalogue.NAMES, find=_of_catalogue)
