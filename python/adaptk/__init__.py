"""adaptk: fused update kernels of adaptive optimizers, the same bits on every machine."""

from __future__ import annotations

from adaptk import _core, cuda, ops, optim, schedules
from adaptk._machine import (
    available_isas,
    build_info,
    get_isa,
    get_num_threads,
    global_norm,
    set_isa,
    set_num_threads,
)
from adaptk._registry import CONVENTIONS, Hyperparameter, Rule, State, rules
from adaptk.optim import *  # noqa: F403  (the classes follow from the registry)

__version__: str = _core.version


__all__ = [
    "CONVENTIONS",
    "Hyperparameter",
    "Rule",
    "State",
    "available_isas",
    "build_info",
    "cuda",
    "get_isa",
    "get_num_threads",
    "global_norm",
    "ops",
    "optim",
    "rules",
    "schedules",
    "set_isa",
    "set_num_threads",
]
__all__ += optim.__all__
