"""The options that all classes have beside PyTorch's, and their checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adaptk import _core
from adaptk._names import unexpected
from adaptk.torch import _private
from adaptk.torch._bind import Group

# What is given for all groups, and may differ between them.
STORAGE = {"state_dtype": None, "min_8bit_size": 4096, "seed": 0, "param_format": None, "sparse": "lazy"}


# What step() goes by if it is called without it. One step has one value of each, so that all groups must agree.
STEP = {"clip_norm": None, "skip_nonfinite": False, "zero_grad": False}


def check_params(name: str, params: Any, lr: Any) -> None:
    """The first two arguments of a constructor."""
    if isinstance(params, torch.nn.Module):
        kind = type(params).__name__
        raise TypeError(f"params: expected tensors, got {kind}; give its parameters: {name}(model.parameters())")
    if callable(params) and not isinstance(params, Tensor):
        raise TypeError(f"params: expected tensors, got {type(params).__name__}; call it: model.parameters()")
    if isinstance(params, (set, frozenset)):
        raise TypeError("params: expected a list; the order of a set changes from run to run")
    check_lr(name, lr)


def check_lr(name: str, lr: Any) -> None:
    if callable(lr) and not isinstance(lr, Tensor):
        raise TypeError(
            f"lr: expected a number, got {type(lr).__name__}; a schedule of adaptk.schedules is for "
            f"{name}(params, lr=1.0) and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.from_zero())"
        )
    if not isinstance(lr, (Real, Tensor)):
        raise TypeError(f"lr: expected a number or a tensor of one, got {lr!r}")


def given_parameters() -> list[inspect.Parameter]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(option, keyword, default=default) for option, default in {**STORAGE, **STEP}.items()]


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that names what is not the params, the learning rate or the options that it wants."""
    parameters = list(inspect.signature(init).parameters.values())[2:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters]

    @wraps(init)
    def __init__(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        _private.check_release()
        name = type(self).__name__
        check_params(name, params, args[0] if args else kwargs.get("lr", 0.0))
        given = {option: kwargs.pop(option) for option in (*STORAGE, *STEP) if option in kwargs}
        self._given = {option: value for option, value in given.items() if value is not None}
        for option in kwargs:
            if not takes_any and option not in known:
                raise unexpected(name, option, [*known, *STORAGE, *STEP])
        init(self, params, *args, **kwargs)
        # PyTorch 2.10's Adagrad does not.
        self._step_supports_amp_scaling = bool(self.defaults.get("fused"))

    own = list(inspect.signature(init).parameters.values())
    rest = [p for p in own if p.kind is p.VAR_KEYWORD]
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(p for p in own if p not in rest), *given_parameters(), *rest]
    )
    return __init__


def of_groups(groups: list[Group], option: str) -> Any:
    """The value of one of STEP, which all groups must agree on."""
    default = STEP[option]
    value = groups[0].get(option, default) if groups else default
    for k, group in enumerate(groups):
        if (other := group.get(option, default)) != value:
            raise ValueError(
                f"{option}: param_groups[0] has {value!r} and param_groups[{k}] has {other!r}; it is one for all "
                "gradients of a step, so give all groups the same"
            )
    return value


def check_step_options(group: Group) -> None:
    _core.check_clip_norm(group.get("clip_norm"))
    for option in ("skip_nonfinite", "zero_grad"):
        if not isinstance(group.get(option, False), bool):
            raise TypeError(f"{option}: expected a bool, got {type(group[option]).__name__}")


def refuse_all_gradients(groups: list[Group], where: str) -> None:
    for option in ("clip_norm", "skip_nonfinite"):
        if of_groups(groups, option) not in (None, False):
            raise ValueError(
                f"{option}: {where} takes gradients one by one, and nobody sees all of them; set it to "
                f"{STEP[option]} in the param groups, or take steps of all params"
            )
