"""Docstrings and signatures of all classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from adaptk._registry import RULES, Rule, rule_of
from adaptk.torch._classes import TORCHS
from adaptk.torch._options import given_parameters
from adaptk.torch._own import OWN, ROW_WISE, Own, betas_of


def _example(name: str) -> str:
    return "\n".join(
        [
            "Examples",
            "--------",
            ">>> import torch, adaptk.torch",
            ">>> model = torch.nn.Linear(3, 1)",
            f">>> opt = adaptk.torch.{name}(model.parameters(), lr=0.01)",
            ">>> model(torch.ones(1, 3)).sum().backward()",
            ">>> opt.step()",
            "",
        ]
    )


def _own_signature(rule: Rule) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("params", positional)]
    values: Mapping[str, Any] = rule.defaults()
    parameters.append(inspect.Parameter("lr", positional, default=values["lr"]))
    if names := betas_of(rule):
        parameters.append(inspect.Parameter("betas", positional, default=tuple(values[n] for n in names)))
    parameters.append(inspect.Parameter("convention", keyword, default="book"))
    parameters.append(inspect.Parameter("fused", keyword, default=None))
    for name, value in values.items():
        if name not in ("lr", "grad_scale"):
            parameters.append(inspect.Parameter(name, keyword, default=value))
    starts = {s.option: s.initial for s in rule.states if s.option is not None}
    parameters += [inspect.Parameter(name, keyword, default=value) for name, value in starts.items()]
    return inspect.Signature([*parameters, *given_parameters()])


# What each class runs, by its options.
_RULES_OF: Mapping[str, tuple[str, ...]] = {
    "Adadelta": ("adadelta",),
    "Adagrad": ("adagrad",),
    "Adam": ("adam", "amsgrad"),
    "AdamW": ("adamw", "amsgrad"),
    "Adamax": ("adamax",),
    "ASGD": ("asgd",),
    "NAdam": ("nadam",),
    "RAdam": ("radam",),
    "RMSprop": ("rmsprop", "rmsprop_centered", "rmsprop_momentum", "rmsprop_centered_momentum"),
    "Rprop": ("rprop",),
    "SGD": ("sgd", "momentum", "nesterov"),
}
_GIVEN_DOC = [
    "state_dtype : str or dict from state to str, optional",
    "    The storage format of states: 'float32', 'bfloat16', 'float16', 'bfloat16_sr', '8bit', '8bit_nearest',",
    "    '8bit_dynamic', 'fp8_e4m3' or '4bit' (:mod:`adaptk.formats`). The step computes in float32. States of float64",
    "    and complex params have the dtype of the param. The optimizer's state has the scales under separate names:",
    "    for the state ``exp_avg``, ``exp_avg_absmax`` with '8bit_dynamic', ``exp_avg_fp8_scales`` with 'fp8_e4m3',",
    "    ``exp_avg_4bit_scales`` with '4bit', else ``exp_avg_scales``. 4-bit codes are a flat array of bytes, with two",
    "    codes in a byte.",
    "min_8bit_size : int",
    "    Params with fewer elements have float32 states if `state_dtype` is an 8-bit or 4-bit format.",
    "seed : int",
    "    The seed of stochastic rounding, in [0, 2**63).",
    "param_format : {'sr'}, optional",
    "    'sr' rounds params in bfloat16 stochastically, so that changes of less than half of a last place add up.",
    "    Params in float32 and float64 are not affected; those in float16 are refused.",
    "sparse : {'lazy', 'dense', 'catch_up'}",
    "    What happens to rows without values in a sparse gradient, as in ``torch.nn.Embedding(sparse=True)``. 'lazy':",
    "    nothing, like ``torch.optim.SparseAdam``. 'dense': the update for a gradient of 0. 'catch_up': nothing until",
    "    a row has values again; it then first catches up with the steps that it has missed, as in",
    "    :class:`adaptk.Optimizer`.",
    "clip_norm : float, optional",
    "    The default of the argument of :meth:`step`, for wrappers that call ``step()``. All groups must have the same",
    "    value.",
    "skip_nonfinite, zero_grad : bool",
    "    Likewise.",
]
_RAISES = [
    "Raises",
    "------",
    "TypeError, ValueError",
    "    For params that cannot be updated in place, and options that are unknown, out of range or refused here.",
    "",
]


def _formula(rule: Rule) -> list[str]:
    return [f"`{rule.name}`, {rule.source}::", "", *("    " + line for line in rule.formula.splitlines()), ""]


_PARAMS = [
    "Parameters",
    "----------",
    "params : iterable of torch.Tensor or of param groups",
    "    Any shapes; float32, float64, bfloat16, float16, complex64 or complex128. They may be DTensors.",
]


_ROW_WISE_PARAMS = [
    *_PARAMS[:3],
    "    Any shapes, in C order; float32, float64, bfloat16 or float16. A row is a slice along the first axis. The",
    "    state with one number for each row is float32, or float64 for float64 params.",
]


def document_own(own: type[Own]) -> None:
    rule = rule_of(own._name)
    lines = [rule.summary, "", *_formula(rule), *(_ROW_WISE_PARAMS if own in ROW_WISE else _PARAMS)]
    if names := betas_of(rule):
        lines += [
            f"betas : tuple of {len(names)} floats, optional",
            f"    {', '.join(names)}. Param groups have this tuple too.",
        ]
    lines += ["convention : {'book', 'torch', 'keras', 'tf1', 'optax'}", "    Whose defaults to use."]
    lines += ["fused : bool, optional", "    Whether GradScaler leaves the unscaling of gradients to the step."]
    for h in rule.hyperparameters:
        if h.name != "grad_scale":
            kind = "bool" if h.range == "bool" else f"float in {h.range}"
            lines += [f"{h.name} : {kind}, default {h.default!r}", f"    {h.meaning[:1].upper()}{h.meaning[1:]}."]
    own.__doc__ = "\n".join([*lines, *_GIVEN_DOC, "", *_RAISES, _example(own.__name__)])
    own.__signature__ = _own_signature(rule)  # type: ignore[attr-defined]


def document_all() -> None:
    for cls in TORCHS:
        name = cls.__name__
        lines = [f":class:`torch.optim.{name}` with a fused step: the same arguments, param groups and states.", ""]
        for rule_name in _RULES_OF[name]:
            lines += _formula(RULES[rule_name])
        lines += [*_PARAMS, "others"]
        lines += [f"    As in :class:`torch.optim.{name}`; see :mod:`adaptk.torch` for the differences."]
        lines += [*_GIVEN_DOC, ""]
        cls.__doc__ = "\n".join([*lines, *_RAISES, _example(name)])
    for own in (*OWN, *ROW_WISE):
        document_own(own)
