"""adaptk: fused update kernels of adaptive optimizers, the same bits on every machine."""

from __future__ import annotations

from typing import Any

from adaptk import _core, cuda, ops, optim, schedules
from adaptk._registry import CONVENTIONS, Hyperparameter, Rule, State, rules
from adaptk._core import (
    available_isas,
    get_isa,
    get_num_threads,
    global_norm,
    set_isa,
    set_num_threads,
)
from adaptk.optim import CLASSES, Optimizer, StepInfo, optimizer_for

globals().update(CLASSES)

__version__: str = _core.version


def build_info() -> dict[str, Any]:
    """How this copy of adaptk was built.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``isas`` (of the build), ``openmp`` (the date of the specification, or ``None``),
        ``eigen`` (the version whose headers were found, or ``None``) and ``cuda`` (toolkit and architectures, or
        ``None``).

    Examples
    --------
    >>> import adaptk
    >>> adaptk.build_info()["version"] == adaptk.__version__
    True
    """
    return {
        "version": _core.version,
        "compiler": _core.compiler,
        "isas": list(_core.built_isas()),
        "openmp": _core.openmp,
        "eigen": _core.eigen,
        "cuda": None,
    }


__all__ = [
    "CONVENTIONS",
    "Hyperparameter",
    "Optimizer",
    "Rule",
    "State",
    "StepInfo",
    "available_isas",
    "build_info",
    "cuda",
    "get_isa",
    "get_num_threads",
    "global_norm",
    "ops",
    "optim",
    "optimizer_for",
    "rules",
    "schedules",
    "set_isa",
    "set_num_threads",
    *CLASSES,
]
