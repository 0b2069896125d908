"""Signatures and docstrings of the functions and classes that are made from the registry."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from adaptk._registry import Rule

_DTYPES = "float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2"
_NOTES = [
    "All buffers must be on the CPU or on one CUDA device. On a device the update is enqueued asynchronously, and",
    "`step` and numeric hyperparameters may be one-element buffers on that device: they are read on the device",
    "and not validated on the host.",
]
_ROW_WISE_NOTES = [
    "The squares of a row are summed in parts of 256 elements: each part in 16 partial sums, which are added",
    "pairwise. The sums of the parts are then added in float64, in order.",
]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def function_signature(rule: Rule) -> str:
    arguments = ["param", "grad", *(s.name for s in rule.states), "*", "step", "seed=0", "param_format=None"]
    arguments += ["zero_grad=False", "copy_out=None", "ema=None", "sparse='lazy'", "last_step=None"]
    arguments += [f"{h.name}={h.default!r}".replace("=inf", "=float('inf')") for h in rule.hyperparameters]
    # A signature that inspect can parse contains only literals.
    return f"{rule.name}({', '.join(arguments)})".replace("float('inf')", "1e999")


def _example(rule: Rule) -> list[str]:
    names = [s.name for s in rule.states]
    lines = [
        ">>> import numpy as np, adaptk",
        ">>> param, grad = np.ones(3, np.float32), np.full(3, 0.5, np.float32)",
    ]
    for name, value in rule.initial_states().items():
        lines.append(f">>> {name} = np.full(3, {value!r}, np.float32)")
    call = ", ".join(["param", "grad", *names, "step=1"])
    lines += [f">>> adaptk.ops.{rule.name}({call})", ">>> bool((param < 1).all())", "True"]
    return lines


def function_doc(rule: Rule) -> str:
    row_wise = any(s.per == "slice" for s in rule.states)
    layout = "in C order" if row_wise else "dense in memory"
    lines = [rule.summary, "", "Updates `param` and the states in place. ::", ""]
    lines += ["    " + line for line in rule.formula.splitlines()]
    lines += [
        "",
        "Parameters",
        "----------",
        "param : buffer or sequence of buffers",
        f"    Any shape, {layout}; {_DTYPES}. The update of a narrow param is computed in float32.",
        "grad : as param",
        f"    The shape and strides of its param; {_DTYPES}, whatever the param's dtype. A gradient of some rows only",
        "    is a pair (indices, values) of shapes ``[k]``, int32 or int64, and ``[k, *param.shape[1:]]``. Indices may",
        "    be in any order; values of the same row are summed first. Or it is a SciPy sparse matrix: rows with",
        "    entries have a gradient, the others have none.",
    ]
    for s in rule.states:
        start = s.initial_from if s.initial_from else f"{s.initial:g}"
        if s.per != "element":
            shape = {
                "tensor": "()",
                "row": "(*param.shape[:-1], 1)",
                "column": "(*param.shape[:-2], 1, columns)",
                "slice": "param.shape[:1]",
            }
            lines += [
                f"{s.name} : as param",
                f"    State, initially {start}: one number for each {s.per}, of shape ``{shape[s.per]}``;",
                "    float64 if the param is float64, else float32.",
            ]
            continue
        lines += [
            f"{s.name} : as param",
            f"    State, initially {start}; float64 if the param is float64, else float32, bfloat16 or float16, or an",
            "    ``adaptk.formats.Stored`` or pair (codes, scales).",
        ]
    lines += ["step : int", "    The step number, counted from 1."]
    lines += ["seed : int", "    The seed of stochastic rounding, in [0, 2**64)."]
    lines += [
        "param_format : {'sr', 'remainder16', 'remainder8', 'kahan'}, optional",
        "    How narrow params are stored (:mod:`adaptk.formats`). With the last three, bfloat16 params are pairs:",
        "    ``(param, remainder)`` or ``(param, compensation)``.",
    ]
    lines += [
        "zero_grad : bool",
        "    Set `grad` to zero once it has been read.",
        "copy_out : as param, optional",
        "    Receives a copy of the new param, rounded to the buffer's dtype: float64 for float64 params, else",
        "    float32, bfloat16 or float16.",
        "ema : (as param, float), optional",
        "    Averages of the params, with the same dtypes as `copy_out`, and a decay in [0, 1]. An average `a` becomes",
        "    ``a + (1 - decay)*(p - a)``; see :meth:`adaptk.Optimizer.step`.",
        "sparse : {'lazy', 'dense', 'catch_up'}",
        "    What happens to rows without a gradient if `grad` has some rows only. ``'lazy'``: nothing. ``'dense'``:",
        "    the update for a gradient of 0. ``'catch_up'``: nothing until the row has a gradient again; it then first",
        "    catches up with the steps that it has missed.",
        "last_step : buffer or sequence of buffers, optional",
        "    For ``'catch_up'``: int64, for each row of the param the last step that it has taken. Initially 0;",
        "    updated in place.",
    ]
    for h in rule.hyperparameters:
        kind = "bool" if h.range == "bool" else f"float in {h.range}"
        lines += [f"{h.name} : {kind}, default {h.default!r}", f"    {h.meaning[:1].upper()}{h.meaning[1:]}."]
    lines += [
        "",
        "Raises",
        "------",
        "TypeError",
        "    If an argument is not a buffer, has an unsupported dtype, or is unknown to the rule.",
        "ValueError",
        "    If shapes or list lengths differ, a buffer is read-only, overlaps another one or is not dense, a",
        "    hyperparameter is out of range, or step is below 1. Nothing is modified in this case.",
        "BufferError",
        "    If a buffer's owner cannot export it.",
        "RuntimeError, MemoryError",
        "    If a call of the CUDA runtime fails; the message names the call.",
        "",
        "Notes",
        "-----",
        *_NOTES,
        *(_ROW_WISE_NOTES if row_wise else []),
        "",
        "Source",
        "------",
        rule.source,
        "",
        "Examples",
        "--------",
        *_example(rule),
        "",
    ]
    return "\n".join(lines)


def class_options(class_rules: Sequence[Rule]) -> list[tuple[str, Any, str]]:
    """A class's options with the defaults and meanings of its first rule that has them."""
    found: dict[str, tuple[Any, str]] = {}
    words = [w for r in class_rules for w in r.variant]
    for rule in class_rules:
        for h in rule.hyperparameters:
            default = 0.0 if h.name == "momentum" and "momentum" in words else h.default
            found.setdefault(h.name, (default, h.meaning))
    for word in words:
        by = _quoted([r.name for r in class_rules if word in r.variant])
        found.setdefault(word, (False, f"run {by}"))
    for rule in class_rules:
        for s in rule.states:
            if s.option is not None:
                found.setdefault(s.option, (s.initial, f"initial value of `{s.name}`"))
    return [(name, default, meaning) for name, (default, meaning) in found.items()]


def class_doc(name: str, class_rules: Sequence[Rule]) -> str:
    lines = [class_rules[0].summary, ""]
    for rule in class_rules:
        chosen = f" ({', '.join(rule.variant)})" if rule.variant else ""
        lines += [f"`{rule.name}`{chosen}, {rule.source}::", ""]
        lines += ["    " + line for line in rule.formula.splitlines()]
        lines += [""]
    if any(s.per == "slice" for r in class_rules for s in r.states):
        lines += ["Params must be in C order. A row is a slice along the first axis.", ""]
    lines += [
        "Parameters",
        "----------",
        "params, convention, clip_norm, skip_nonfinite, capturable",
        "    As in :class:`Optimizer`.",
        "state_dtype, min_8bit_size, seed, param_format, sparse",
        "    As in :class:`Optimizer`.",
    ]
    for option, default, meaning in class_options(class_rules):
        initial = any(option == s.option for r in class_rules for s in r.states)
        kind = "bool" if isinstance(default, bool) else "float" if initial else "float or schedule"
        lines += [f"{option} : {kind}, default {default!r}", f"    {meaning[:1].upper()}{meaning[1:]}."]
    arguments = "lr=0.1" if any(h.name == "lr" for h in class_rules[0].hyperparameters) else ""
    lines += [
        "",
        "Raises",
        "------",
        "TypeError, ValueError",
        "    If params cannot be updated in place, or an option is unknown or out of range.",
        "",
        "Examples",
        "--------",
        ">>> import numpy as np, adaptk",
        ">>> w = np.ones(3, dtype=np.float32)",
        f">>> opt = adaptk.{name}([w], {arguments})",
        ">>> info = opt.step([2 * w])",
        ">>> bool((w < 1).all())",
        "True",
        "",
    ]
    return "\n".join(lines)


def class_signature(class_rules: Sequence[Rule]) -> inspect.Signature:
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("params", positional)]
    options = class_options(class_rules)
    for name, default, _ in options:
        if name == "lr":
            parameters.append(inspect.Parameter(name, positional, default=default))
    parameters.append(inspect.Parameter("convention", keyword, default="book"))
    for name, default, _ in options:
        if name != "lr":
            parameters.append(inspect.Parameter(name, keyword, default=default))
    parameters.append(inspect.Parameter("clip_norm", keyword, default=None))
    parameters.append(inspect.Parameter("skip_nonfinite", keyword, default=False))
    parameters.append(inspect.Parameter("capturable", keyword, default=False))
    storage = {"state_dtype": None, "min_8bit_size": 4096, "seed": 0, "param_format": None, "sparse": "lazy"}
    for option, default in storage.items():
        parameters.append(inspect.Parameter(option, keyword, default=default))
    return inspect.Signature(parameters)


def state_name(rule: Rule) -> str:
    """The name of the named tuple that a rule's state is in JAX."""
    return "".join(word.capitalize() for word in rule.name.split("_")) + "State"


def jax_options(rule: Rule) -> list[tuple[str, Any, str]]:
    """Keyword arguments of a function of adaptk.jax, except the convention: names, defaults and meanings."""
    options: dict[str, tuple[Any, str]] = {
        h.name: (h.default, h.meaning) for h in rule.hyperparameters if h.name != "lr"
    }
    if "eps_in" in options:
        options["eps"] = (None, "`eps_in` or `eps_out`, whichever the convention has")
    for s in rule.states:
        if s.option is not None:
            options.setdefault(s.option, (s.initial, f"initial value of `{s.name}`"))
    return [(name, default, meaning) for name, (default, meaning) in options.items()]


def jax_signature(rule: Rule) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    (lr,) = (h for h in rule.hyperparameters if h.name == "lr")
    parameters = [
        inspect.Parameter("learning_rate", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=lr.default),
        inspect.Parameter("convention", keyword, default="book"),
        inspect.Parameter("packed", keyword, default=False),
    ]
    parameters += [inspect.Parameter(name, keyword, default=default) for name, default, _ in jax_options(rule)]
    own = ("state_dtype", "min_8bit_size", "seed", "param_format", "mask")
    parameters += [inspect.Parameter(name, keyword, default=None) for name in own]
    return inspect.Signature(parameters)


def jax_doc(rule: Rule) -> str:
    (lr,) = (h for h in rule.hyperparameters if h.name == "lr")
    lines = [rule.summary, "", "::", ""]
    lines += ["    " + line for line in rule.formula.splitlines()]
    lines += [
        "",
        "Each numeric argument below may be a 0-d JAX array, traced or not, in float32, or in float64 if JAX has it",
        "enabled; each step reads its value. On a CUDA device `grad_scale` must be a Python number.",
        "",
        "Parameters",
        "----------",
        f"learning_rate : float, schedule, callable or array, default {lr.default!r}",
        "    A schedule of :mod:`adaptk.schedules` is evaluated in float64, under ``jit`` by a callback to the host. A",
        "    callable is traced, like optax's schedules; its argument is the number of steps taken so far, from 0 on.",
        'convention : {"book", "torch", "keras", "tf1", "optax"}',
        "    Whose defaults, place of eps, form of momentum and initial states to use. Explicit arguments take",
        "    precedence.",
        "packed : bool, default False",
        "    Keep each state in a few flat arrays instead of a tree like the params. JAX needs about a microsecond",
        "    for every array that it passes to or from a compiled function, which is most of the time of a step over",
        "    many small params. Not supported for sharded params, for rules with states whose shapes are not those of",
        "    the params, and for rules that reduce over all params.",
    ]
    ranges = {h.name: h.range for h in rule.hyperparameters}
    for name, default, meaning in jax_options(rule):
        interval = ranges.get(name, "[0, inf)")
        kind = "bool" if interval == "bool" else f"float in {interval}"
        lines += [f"{name} : {kind}, default {default!r}", f"    {meaning[:1].upper()}{meaning[1:]}."]
    lines += [
        "state_dtype : str or dict from state to str, optional",
        '    The storage of the states that ``init`` makes: ``"float32"`` (default), ``"bfloat16"``, ``"float16"``,',
        '    ``"bfloat16_sr"``, ``"8bit"``, ``"8bit_nearest"``, ``"8bit_dynamic"``, ``"fp8_e4m3"`` or ``"4bit"``;',
        "    see :mod:`adaptk.formats`.",
        "min_8bit_size : int, optional",
        "    Params with fewer elements, 4096 by default, have float32 states if `state_dtype` is an 8-bit or 4-bit",
        "    format.",
        "seed : int, optional",
        "    The seed of stochastic rounding, in [0, 2**63), default 0. The random bits also depend on the index of",
        "    the param among the leaves. Under ``jax.vmap`` each member of the batch has the random bits that it would",
        "    have alone.",
        'param_format : {"sr", "remainder16", "remainder8", "kahan"}, optional',
        "    How narrow params are stored, see :mod:`adaptk.formats`. With the last three, for bfloat16, the state",
        "    is a :class:`SplitState`, and steps must be taken with ``apply``: ``update`` cannot express them.",
        "mask : tree of bool or callable, optional",
        "    Which params have weight decay, as in optax: a tree of bools with the structure of the params or a prefix",
        "    of it, or a function of the params that returns such a tree.",
    ]
    states = _quoted([s.name for s in rule.states]) or "nothing else"
    numbers = {s.per: [t.name for t in rule.states if t.per == s.per] for s in rule.states if s.per != "element"}
    lines += [
        "",
        "Returns",
        "-------",
        "GradientTransformation",
        f"    Its state is a :class:`{state_name(rule)}` with `count` and {states}.",
        *(
            f"    One number for each {per} (see `per` of :func:`adaptk.rule`): {_quoted(names)}."
            for per, names in numbers.items()
        ),
        *(
            [
                f"    `carried` has the float64 numbers {_quoted(rule.carried)}, as two uint32 each:",
                "    ``np.asarray(state.carried).view(np.float64)[:, 0]``.",
            ]
            if rule.carried and rule.reduces == "all"
            else []
        ),
        "",
        "Raises",
        "------",
        "TypeError, ValueError",
        "    If an argument is unknown, has a wrong type or is out of range.",
        "",
        "Source",
        "------",
        rule.source,
        "",
        "Examples",
        "--------",
        ">>> import jax.numpy as jnp, adaptk.jax",
        f">>> opt = adaptk.jax.{rule.name}(0.1)",
        ">>> state = opt.init(jnp.ones(3))",
        ">>> params, state = opt.apply(jnp.ones(3), jnp.full(3, 0.5), state)",
        ">>> bool((params < 1).all()), int(state.count)",
        "(True, 1)",
        "",
    ]
    return "\n".join(lines)
