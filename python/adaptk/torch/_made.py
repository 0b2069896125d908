"""Classes of rules that were made at run time: those of the catalogue, and the user's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adaptk import _core, catalogue
from adaptk._optimizer import COMMON, evaluation_rule
from adaptk._registry import Rule, rule_of
from adaptk.torch._docs import document_own
from adaptk.torch._dtensor import local_part
from adaptk.torch._options import checked
from adaptk.torch._own import Own


class Made(Own):
    """Base of their classes, which no module has a name for."""

    def _update_carried(self) -> None:
        rule = rule_of(self._name)
        if not rule.carried:
            return
        measured: Sequence[float] = ()
        if rule.reduces == "all":
            measured = self._native_plan().measured(rule.key)
            if not measured:  # no param took part
                return
        for group in self.param_groups:
            # All params of a group take the steps that count.
            steps = [int(self.state[p]["step"]) for p in group["params"] if "step" in self.state.get(p, ())]
            if steps:
                values = [float(x) for x in self._values(group).values()]
                group.update(_core.next_carried(rule.key, values, max(steps), measured))

    def step_param(self, param: Tensor) -> None:
        if rule_of(self._name).carried:
            raise RuntimeError(f"step_param(): {type(self).__name__} hands numbers on from step to step; use step()")
        super().step_param(param)

    @torch.no_grad()
    def evaluation_params(self) -> list[Tensor]:
        """The params to evaluate a model with, as new tensors, for rules that take gradients at other params.

        Raises
        ------
        ValueError
            If the rule takes its gradients at the params themselves, or its states are stored as codes.
        """
        rule = evaluation_rule(rule_of(self._name))
        if rule is None:
            raise ValueError(f"{type(self).__name__}: models are evaluated with the params themselves")
        if self._kept is not None:
            raise RuntimeError("evaluation_params() between eval() and train(): call train()")
        points = []
        for group in self.param_groups:
            known = {h.name for h in rule.rule.hyperparameters} - {"lr", *COMMON}
            values = {n: v for n, v in self._values(group).items() if n in known}
            for param in group["params"]:
                points.append(param.detach().clone())
                state = self.state.get(param, {})
                if "step" not in state:
                    continue
                tensors = [points[-1], param.detach(), *(state[s.name] for s in rule.rule.states)]
                if not all(t.is_floating_point() or t.is_complex() for t in tensors):
                    raise ValueError(f"{type(self).__name__}: its states are stored in 8 bits")
                real = [torch.view_as_real(t) if t.is_complex() else t for t in map(local_part, tensors)]
                rule(*real, step=1, **values)
        return points

    @torch.no_grad()
    def eval(self) -> None:
        """Move the params to the point to evaluate a model at, until :meth:`train`.

        Does nothing if the params are there already.
        """
        if self._kept is None:
            points = self.evaluation_params()
            params = [p for group in self.param_groups for p in group["params"]]
            self._kept = [p.detach().clone() for p in params]
            for param, point in zip(params, points, strict=True):
                param.copy_(point)

    @torch.no_grad()
    def train(self) -> None:
        """Undo :meth:`eval`: move the params back, bit for bit. Does nothing without a preceding :meth:`eval`."""
        params = [p for group in self.param_groups for p in group["params"]]
        for param, kept in zip(params, self._kept or (), strict=False):
            param.copy_(kept)
        self._kept = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        rule = rule_of(self._name)
        if type(self) is not class_of_made(rule):
            return super().__reduce_ex__(protocol)
        return _empty_optimizer, (rule,), self.__getstate__()


def _empty_optimizer(rule: Rule) -> Made:
    return object.__new__(class_of_made(rule))


_classes_of_made: dict[str, type[Made]] = {}


def class_of_made(rule: Rule) -> type[Made]:
    """The class of a rule, always the same one."""
    found = _classes_of_made.get(rule.key)
    if found is None:
        made = type(rule.class_names[0], (Made,), {"__module__": "adaptk.torch", "_name": rule.key})
        made.__init__ = checked(made.__init__)  # type: ignore[misc]
        document_own(made)
        found = _classes_of_made.setdefault(rule.key, made)
    return found


def class_of_catalogue(name: str) -> type[Made]:
    found = catalogue.find_class(name)
    assert found is not None
    return class_of_made(found.rule)
