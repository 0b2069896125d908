"""Cases and comparisons of the tests of optimizer objects."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import adaptk
import numpy as np
import pytest

Array = np.ndarray[Any, Any]


Params = list[Any]


RULES = adaptk.rules()


SHAPES = ((3, 4), (5,))


DTYPES: dict[str, Any] = {"float32": np.float32, "float64": np.float64, "float16": np.float16}


if find_spec("ml_dtypes"):
    from ml_dtypes import bfloat16

    DTYPES["bfloat16"] = bfloat16


class Case(NamedTuple):
    """A class, the options that choose a rule, and the resulting hyperparameters."""

    name: str
    options: dict[str, Any]
    rule: str
    hyper: dict[str, Any]

    def __call__(self, params: Any, **options: Any) -> adaptk.Optimizer:
        return getattr(adaptk, self.name)(params, **{**self.options, **options})

    def given(self) -> dict[str, Any]:
        """The options that are hyperparameters of the rule."""
        return {k: v for k, v in self.options.items() if k in self.hyper}


def cases() -> list[Case]:
    found = []
    for rule in RULES.values():
        for name in rule.class_names:
            options: dict[str, Any] = dict.fromkeys(rule.variant, True)
            if "momentum" in options or (name, rule.variant) == ("SGD", ("nesterov",)):
                options["momentum"] = 0.9
            hyper = rule.defaults()
            if name == "AdamW":
                hyper.update(weight_decay=1e-2, decoupled=True)
            found.append(Case(name, options, rule.name, hyper))
    return found


CASES = cases()


BY_RULE = {case.rule: case for case in reversed(CASES)}


every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}-{c.rule}")


every_rule = pytest.mark.parametrize("rule", RULES)


every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def arrays(dtype: str = "float32", seed: int = 0, shapes: Sequence[tuple[int, ...]] = SHAPES) -> Params:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(DTYPES[dtype]) for shape in shapes]


def like(params: Sequence[Any], seed: int) -> list[Array]:
    """Gradients for params."""
    rng = np.random.default_rng([1, seed])
    return [rng.normal(size=p.shape).astype(p.dtype) for p in params]


def copies(params: Sequence[Array]) -> list[Array]:
    return [p.copy() for p in params]


def bits(x: Any) -> bytes:
    """The elements of an array or a tensor in C order."""
    if isinstance(x, np.ndarray):
        return x.tobytes()
    import torch

    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def all_bits(several: Sequence[Any]) -> list[bytes]:
    return [bits(x) for x in several]


def snapshot(optimizer: adaptk.Optimizer, params: Sequence[Any]) -> dict[str, Any]:
    """Everything that a step may change."""
    saved = optimizer.state_dict()
    return {
        "params": all_bits(params),
        "states": {(k, n): bits(x) for k, s in optimizer.state.items() for n, x in s.items()},
        "steps": {k: int(v) for k, v in saved.items() if k.split(".")[-1] == "step"},
        "count": optimizer.step_count,
        "groups": [{k: repr(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
    }


def state_bits(optimizer: adaptk.Optimizer) -> list[bytes]:
    return [bits(x) for s in optimizer.state.values() for x in s.values()]


def in_another_process(code: str) -> None:
    """Run in another process, for tests whose failure could end this one."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


class Functions:
    """The same updates by the function of the rule: the states in lists, the steps counted here."""

    def __init__(self, rule: str, params: Sequence[Array], hyper: Mapping[str, Any], convention: str = "book") -> None:
        self.function = getattr(adaptk.ops, rule)
        self.params = copies(params)
        self.hyper = dict(hyper)
        self.steps = [0] * len(params)
        initial = RULES[rule].initial_states(convention, self.hyper)
        self.states = {
            name: [np.full(p.shape, value, np.float64 if p.dtype == np.float64 else np.float32) for p in params]
            for name, value in initial.items()
        }

    def step(self, grads: Sequence[Array | None], **hyper: Any) -> None:
        for i, grad in enumerate(grads):
            if grad is not None:
                self.steps[i] += 1
                states = [s[i] for s in self.states.values()]
                self.function(self.params[i], grad, *states, step=self.steps[i], **{**self.hyper, **hyper})

    def step_all(self, grads: Sequence[Array], **hyper: Any) -> None:
        """All tensors in one call."""
        self.steps = [t + 1 for t in self.steps]
        self.function(self.params, list(grads), *self.states.values(), step=self.steps[0], **{**self.hyper, **hyper})

    def state_bits(self) -> list[bytes]:
        return [bits(s[i]) for i in range(len(self.params)) for s in self.states.values()]


# Forms of params and gradients


FORMS: dict[str, Callable[[Params], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": lambda ps: (p for p in ps),
    "iterator": iter,
    "dict": lambda ps: {f"p{i}": p for i, p in enumerate(ps)},
    "groups": lambda ps: [{"params": [p]} for p in ps],
    "group of a generator": lambda ps: [{"params": (p for p in ps)}],
    "groups of single buffers": lambda ps: [{"params": p} for p in ps],
    "generator of groups": lambda ps: ({"params": [p]} for p in ps),
    "named groups": lambda ps: [{"params": {f"p{i}": p}} for i, p in enumerate(ps)],
}


def optimizer_hyper(optimizer: adaptk.Optimizer, group: int = 0) -> dict[str, Any]:
    return {k: v for k, v in optimizer.param_groups[group].items() if k != "params"}


def other_value(h: adaptk.Hyperparameter, value: float | bool) -> float | bool:
    """A valid value of a hyperparameter that is not `value`."""
    if h.range == "bool":
        return not value
    low, high = map(float, h.range[1:-1].split(", "))
    candidates = [value * 1.5, value / 2, 0.5, 3.0]
    return next(float(x) for x in candidates if low < x < high and x != value)


# Saving and loading


def through_npz(saved: Mapping[str, Any]) -> Any:
    file = io.BytesIO()
    np.savez(file, **saved)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return dict(loaded)


def through_read_only(saved: Mapping[str, Any]) -> Any:
    frozen = {k: np.asarray(v).copy() for k, v in saved.items()}
    for v in frozen.values():
        v.setflags(write=False)
    return frozen


# Tensors
