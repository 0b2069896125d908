"""adaptk: fused update kernels for adaptive optimizers, with bitwise identical results on every machine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptk import _core, catalogue, cuda, formats, ops, optim, schedules
from adaptk._decay import decay_groups
from adaptk._machine import (
    accumulate,
    available_isas,
    build_info,
    get_cmake_dir,
    get_include,
    get_isa,
    get_num_threads,
    global_norm,
    set_isa,
    set_num_threads,
)
from adaptk._modify import modify
from adaptk._names import is_installed, no_attribute
from adaptk._registry import CONVENTIONS, Hyperparameter, Rule, State, rules
from adaptk._rule import TracedRule, load_rule, rule
from adaptk._trace import abs as abs
from adaptk._trace import atan2, cbrt, cumprod, exp, floor, log, maximum, mean, minimum, norm, sign, sqrt, where
from adaptk._trace import max as max
from adaptk._trace import sum as sum
from adaptk.optim import *  # noqa: F403  (the classes follow from the registry)

if TYPE_CHECKING:
    from adaptk import curriculum, hogwild, init, solve
    from adaptk._numpy_muon import Muon

__version__: str = _core.version


def __getattr__(name: str) -> Any:
    # Imported on first use: most programs do not need these modules, and some need PyTorch, JAX or an extension of
    # their own.
    if name in ("curriculum", "hogwild", "init", "jax", "keras", "solve", "torch"):
        return importlib.import_module(f"adaptk.{name}")
    if name in catalogue.CLASSES.values():
        return getattr(optim, name)
    if name == "Muon":
        return importlib.import_module("adaptk._numpy_muon").Muon
    raise no_attribute(__name__, name, __dir__())


def __dir__() -> list[str]:
    # A tool that looks at all names imports these modules, so only those are listed whose packages are installed.
    # adaptk.keras is not: whether it can be imported depends on the backend of Keras.
    return sorted([*__all__, "__version__", *catalogue.CLASSES.values(), *filter(is_installed, ("jax", "torch"))])


__all__ = [
    "CONVENTIONS",
    "Hyperparameter",
    "Muon",
    "Rule",
    "State",
    "accumulate",
    "TracedRule",
    "atan2",
    "available_isas",
    "build_info",
    "cbrt",
    "cuda",
    "cumprod",
    "curriculum",
    "decay_groups",
    "exp",
    "floor",
    "formats",
    "get_cmake_dir",
    "get_include",
    "get_isa",
    "get_num_threads",
    "global_norm",
    "hogwild",
    "init",
    "load_rule",
    "log",
    "maximum",
    "mean",
    "modify",
    "minimum",
    "norm",
    "ops",
    "optim",
    "rule",
    "rules",
    "schedules",
    "set_isa",
    "set_num_threads",
    "sign",
    "solve",
    "sqrt",
    "where",
]
# Without abs, max and sum: a star import would replace Python's.
__all__ += optim.__all__
