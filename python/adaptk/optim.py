"""Optimizer objects with fused steps, one class for each family of rules.

:class:`Optimizer` is the base of all classes. The options of a class choose among its rules, for example
``RMSProp(centered=True)``. The classes are made from the registry, so each rule that is added to the core gets one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptk import catalogue
from adaptk._classes import class_of_made, make_class
from adaptk._names import face, hint
from adaptk._optimizer import Optimizer, StepInfo
from adaptk._registry import ROW_WISE, RULES, Rule
from adaptk._typing import Number


def optimizer_for(
    rule: str,
    params: Any,
    lr: Number | Callable[[int], float] | None = None,
    *,
    convention: str = "book",
    clip_norm: float | None = None,
    skip_nonfinite: bool = False,
    capturable: bool = False,
    state_dtype: str | Mapping[str, str] | None = None,
    min_8bit_size: int = 4096,
    seed: int = 0,
    param_format: str | None = None,
    sparse: str = "lazy",
    **options: Any,
) -> Optimizer:
    """Make an optimizer for a rule given by name.

    Parameters
    ----------
    rule : str
        A key of :func:`adaptk.rules`.
    params, lr, convention, clip_norm, skip_nonfinite, capturable, state_dtype, min_8bit_size, seed
        As in :class:`Optimizer`.
    param_format, sparse, **options
        As in :class:`Optimizer`; the options are hyperparameters of the rule.

    Raises
    ------
    ValueError
        If there is no such rule.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> adaptk.optimizer_for("rmsprop_centered", [np.zeros(2)]).rules
    ('rmsprop_centered',)
    """
    found = RULES.get(rule) or ROW_WISE.get(rule) or _of_catalogue(rule)
    if found is None:
        known = [*RULES, *ROW_WISE, *catalogue.CLASSES]
        raise ValueError(f"rule: {rule!r} is not one of {', '.join(known)}{hint(rule, known)}")
    if lr is not None:
        options["lr"] = lr
    made = found.program is not None
    classes = {**CLASSES, **ROW_WISE_CLASSES}
    optimizer = object.__new__(class_of_made(found) if made else classes[found.class_names[0]])
    storage = (state_dtype, min_8bit_size, seed, param_format, sparse)
    optimizer._begin(params, found, convention, clip_norm, skip_nonfinite, capturable, storage, options)
    return optimizer


def _of_catalogue(rule: str) -> Rule | None:
    found = catalogue.find(rule) if rule in catalogue.CLASSES else None
    return None if found is None else found.rule


def _class_of_catalogue(name: str) -> type[Optimizer]:
    found = catalogue.find_class(name)
    assert found is not None
    return found.Optimizer


def _make_classes(rules: Mapping[str, Rule]) -> dict[str, type[Optimizer]]:
    by_class: dict[str, list[Rule]] = {}
    for rule in rules.values():
        for name in rule.class_names:
            by_class.setdefault(name, []).append(rule)
    classes: dict[str, type[Optimizer]] = {}
    for name, class_rules in by_class.items():
        # The first rule is the one without options: the class has its defaults.
        class_rules.sort(key=lambda r: len(r.variant))
        classes[name] = make_class(name, class_rules, __name__)
    return classes


CLASSES: Mapping[str, type[Optimizer]] = MappingProxyType(_make_classes(RULES))
# The rules that keep one number for each row.
ROW_WISE_CLASSES: Mapping[str, type[Optimizer]] = MappingProxyType(_make_classes(ROW_WISE))
globals().update({**CLASSES, **ROW_WISE_CLASSES})

__all__ = ["Optimizer", "StepInfo", "optimizer_for", *CLASSES, *ROW_WISE_CLASSES]

if not TYPE_CHECKING:
    __getattr__, __dir__ = face(__name__, __all__, more=catalogue.CLASSES.values(), find=_class_of_catalogue)
