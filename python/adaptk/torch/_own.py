"""Rules that PyTorch does not have, with the library's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count, takewhile
from typing import Any

import torch
from torch import Tensor

from adaptk._names import unexpected
from adaptk._registry import Rule, rule_of
from adaptk.torch._bind import Group
from adaptk.torch._fused import Fused
from adaptk.torch._options import STEP, STORAGE
from adaptk.torch._tensors import detached


def betas_of(rule: Rule) -> list[str]:
    """The decays that torch's classes take together, as ``betas``: beta1, beta2 and so on, if there are several."""
    names = {h.name for h in rule.hyperparameters}
    betas = list(takewhile(names.__contains__, (f"beta{i}" for i in count(1))))
    return betas if len(betas) > 1 else []


class Own(Fused):
    """A rule that torch does not have, with the library's names, and ``betas`` as torch has them."""

    _name: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in (self.defaults, *self.param_groups):
            self._gather_betas(group)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        betas: tuple[float, ...] | None = None,
        *,
        convention: str = "book",
        fused: bool | None = None,
        **options: Any,
    ):
        rule = rule_of(self._name)
        defaults: Group = {k: v for k, v in rule.defaults(convention).items() if k != "grad_scale"}
        preset = rule.initial_states(convention)
        defaults.update({s.option: preset[s.name] for s in rule.states if s.option is not None})
        known = [*defaults, "convention", "fused", *STORAGE, *STEP]
        if lr is not None:
            options["lr"] = lr
        if unknown := options.keys() - defaults.keys():
            raise unexpected(type(self).__name__, min(unknown), known)
        names = betas_of(rule)
        if betas is not None:
            if not names:
                raise unexpected(type(self).__name__, "betas", known)
            if twice := options.keys() & set(names):
                raise TypeError(f"betas: {min(twice)} is given too")
            options.update(zip(names, self._checked_betas(betas), strict=True))
        defaults = {**defaults, **options}
        self._gather_betas(defaults)
        super().__init__(params, {**defaults, "fused": fused})

    def _checked_betas(self, betas: Any) -> tuple[Any, ...]:
        count = len(betas_of(rule_of(self._name)))
        if not isinstance(betas, (tuple, list)):
            raise TypeError(f"betas: expected a tuple of {count} numbers, got {betas!r}")
        if len(betas) != count:
            raise ValueError(f"betas: expected {count} numbers, got {len(betas)}: {betas!r}")
        return tuple(betas)

    def _gather_betas(self, group: Group, betas: tuple[float, ...] = ()) -> None:
        """Put decays that a group has by the library's names where torch has them, in the place of `betas`."""
        names = betas_of(rule_of(self._name))
        if not any(name in group for name in names):
            return
        now = list(group["betas"] if "betas" in group else betas or (0.0 for _ in names))
        for i, name in enumerate(names):
            if name in group:
                now[i] = group.pop(name)
        group["betas"] = tuple(now)

    def add_param_group(self, param_group: Group) -> None:
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            if "betas" in param_group and (twice := param_group.keys() & set(betas_of(rule_of(self._name)))):
                raise TypeError(f"betas: {min(twice)} is given too")
            self._gather_betas(param_group, self.defaults.get("betas", ()))
        super().add_param_group(param_group)

    add_param_group.__doc__ = Fused.add_param_group.__doc__

    _torchs_names: Mapping[str, str] = {f"beta{i + 1}": f"betas[{i}]" for i in range(9)}

    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        if names := betas_of(rule_of(self._name)):
            self._gather_betas(group)
            return self._name, {**group, **dict(zip(names, self._checked_betas(group["betas"]), strict=True))}
        return self._name, group

    def _values(self, group: Group) -> dict[str, Any]:
        """The hyperparameters of a group by the library's names."""
        given = self._rule(group)[1]
        return {h.name: detached(given.get(h.name, h.default)) for h in rule_of(self._name).hyperparameters}

    def _initial(self, name: str, group: Group) -> float:
        rule = rule_of(self._name)
        values = {name: float(value) for name, value in self._values(group).items()}
        options = {s.option: float(group[s.option]) for s in rule.states if s.option in group}
        return rule.initial_states("book", values, options)[name]


class DeltaBarDelta(Own):
    _name = "delta_bar_delta"


class Lion(Own):
    _name = "lion"


class AdaBelief(Own):
    _name = "adabelief"


class Yogi(Own):
    _name = "yogi"


class Adan(Own):
    _name = "adan"


class RowWiseAdaGrad(Own):
    _name = "rowwise_adagrad"


class RowWiseAdam(Own):
    _name = "rowwise_adam"


class RMSpropNesterov(Own):
    _name = "rmsprop_nesterov"

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """Move the params to the interim point ``p + momentum * velocity`` while a ``with`` block runs.

        Compute the gradient inside the block. Leaving the block restores every param bit for bit.

        Examples
        --------
        >>> import torch, adaptk.torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> opt = adaptk.torch.RMSpropNesterov([w])
        >>> with opt.lookahead():
        ...     w.square().sum().backward()
        >>> opt.step()
        """
        saved = []
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    velocity = self.state[p].get("velocity") if p in self.state else None
                    if velocity is not None:
                        saved.append((p, p.detach().clone()))
                        p.add_(velocity, alpha=float(group["momentum"]))
        try:
            yield
        finally:
            with torch.no_grad():
                for p, before in saved:
                    p.copy_(before)


OWN: tuple[type[Own], ...] = (DeltaBarDelta, Lion, AdaBelief, Yogi, Adan, RMSpropNesterov)
ROW_WISE: tuple[type[Own], ...] = (RowWiseAdaGrad, RowWiseAdam)
