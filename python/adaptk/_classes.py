"""Optimizer classes, made from rules."""

from __future__ import annotations

from typing import Any

from adaptk._docs import class_doc, class_signature
from adaptk._optimizer import Optimizer
from adaptk._registry import Rule


def make_class(name: str, class_rules: list[Rule], module: str, base: type[Optimizer] = Optimizer) -> type[Optimizer]:
    """The optimizer class of these rules; the first rule is the one without options."""
    return type(
        name,
        (base,),
        {
            "__module__": module,
            "__doc__": class_doc(name, class_rules),
            "__signature__": class_signature(class_rules),
            "_class_rules": tuple(class_rules),
        },
    )


class MadeOptimizer(Optimizer):
    """Base of the classes of rules that were made at run time. No module has them, so the rule is pickled instead."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        (rule,) = self._class_rules
        if type(self) is not class_of_made(rule):
            return super().__reduce_ex__(protocol)
        return _empty_optimizer, (rule,), self.__getstate__()


def _empty_optimizer(rule: Rule) -> Optimizer:
    return object.__new__(class_of_made(rule))


_classes_of_made: dict[str, type[Optimizer]] = {}


def class_of_made(rule: Rule) -> type[Optimizer]:
    """The optimizer class of a rule that was made at run time: always the same object."""
    found = _classes_of_made.get(rule.key)
    if found is None:
        found = _classes_of_made.setdefault(rule.key, make_class(rule.class_names[0], [rule], "adaptk", MadeOptimizer))
    return found
