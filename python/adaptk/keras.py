"""Optimizers for Keras 3: subclasses of ``keras.optimizers.Optimizer`` with a fused step.

Optimizers that Keras has (``Adam``, ``AdamW``, ``Nadam``, ``RMSprop``, ...) have the same names and defaults here. The
others (``Adan``, ``Yogi``, ...) have the names and defaults of this library. Arguments are named as in Keras, such as
`beta_1` and `epsilon`. Schedules, clipping, weight averaging, gradient accumulation, loss scaling and saving are those
of Keras. The step supports the backends torch, JAX and NumPy.

Differences from the classes of Keras:

- Weight decay, which is decoupled as everywhere in Keras, is part of the fused step instead of a separate pass.
- Variables in bfloat16 and float16 have float32 states, and their step computes in float32.
- A hyperparameter that is out of range raises an error when the optimizer is made.

Examples
--------
>>> import keras, adaptk.keras
>>> model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
>>> model.compile(optimizer=adaptk.keras.AdamW(1e-3), loss="mse")
>>> history = model.fit(keras.ops.ones((8, 4)), keras.ops.ones((8, 1)), verbose=0)
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptk import _core, catalogue
from adaptk._functions import function_of
from adaptk._names import face, not_installed, unexpected
from adaptk._optimizer import COMMON, evaluation_rule
from adaptk._registry import Rule, rule_of
from adaptk.optim import CLASSES, Optimizer

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    raise not_installed("adaptk.keras", "Keras", "keras") from None

_BACKENDS = ("torch", "jax", "numpy")
# Keras's classes, and this library's classes of the same rules.
_KERAS = {
    "Adadelta": "AdaDelta",
    "Adagrad": "AdaGrad",
    "Adam": "Adam",
    "AdamW": "AdamW",
    "Adamax": "AdaMax",
    "Lion": "Lion",
    "Nadam": "NAdam",
    "RMSprop": "RMSProp",
    "SGD": "SGD",
}
# The arguments of all Keras optimizers, except the learning rate.
_COMMON = tuple(
    name
    for name, p in inspect.signature(keras.optimizers.Optimizer.__init__).parameters.items()
    if p.kind is p.POSITIONAL_OR_KEYWORD and name not in ("self", "learning_rate")
)
# Hyperparameters that are options of Keras, or that its training loop handles.
_LEFT_OUT = ("lr", "weight_decay", "decoupled", "grad_scale")
_THEIRS = {"beta1": "beta_1", "beta2": "beta_2", "beta3": "beta_3", "eps": "epsilon"}


def _options_of(cls: type[Optimizer]) -> dict[str, str]:
    """The options of a class except the learning rate: Keras's names mapped to this library's."""
    names = [n for n in inspect.signature(cls).parameters if n not in ("params", *_GENERAL)]
    if "eps_in" in names:
        names.insert(names.index("eps_in"), "eps")
    return {_THEIRS.get(name, name): name for name in names if name not in _LEFT_OUT}


_GENERAL = (
    *("convention", "clip_norm", "skip_nonfinite", "capturable", "state_dtype", "min_8bit_size", "seed"),
    *("param_format", "sparse"),
)


def _words(cls: type[Optimizer]) -> list[str]:
    return list(dict.fromkeys(word for rule in cls._class_rules for word in rule.variant))


@cache
def _step_of(key: str) -> Any:
    return function_of(rule_of(key), "adaptk.ops")


class _Fused(keras.optimizers.Optimizer):  # type: ignore[misc, unused-ignore]
    """The base of all classes here."""

    _class: type[Optimizer]

    def __init__(self, learning_rate: Any = None, *, convention: str | None = None, **options: Any) -> None:
        name = type(self).__name__
        backend = keras.backend.backend()
        if backend not in _BACKENDS:
            raise RuntimeError(f"adaptk.keras.{name}: Keras's backend is {backend!r}, expected {', '.join(_BACKENDS)}")
        known = _options_of(self._class)
        common = {option: options.pop(option) for option in _COMMON if option in options}
        for option in options:
            if option not in known:
                raise unexpected(name, option, ["learning_rate", *known, "convention", *_COMMON])
        self_convention = convention or ("keras" if "keras" in self._class._class_rules[0].conventions else "book")
        # An optimizer of a single number chooses the rule and checks the options.
        given = {known[option]: value for option, value in options.items()}
        ahead = [r for r in self._class._class_rules if any(s.name == "velocity" for s in r.states)]
        if options.get("nesterov") and ahead:
            raise ValueError("nesterov: its gradients are taken at another point than the params, unlike Keras's")
        made = self._class([np.zeros(1, np.float32)], convention=self_convention, **given)
        (group,) = made.param_groups
        rule = made._group_rules[0]
        if learning_rate is None:
            learning_rate = float(group["lr"])
        if isinstance(learning_rate, int) and not isinstance(learning_rate, bool):
            learning_rate = float(learning_rate)
        if isinstance(learning_rate, float):
            _core.check_hyperparameters(rule.key, {**rule.defaults(), "lr": learning_rate})
        common.setdefault("weight_decay", 0.004 if self._class.__name__ == "AdamW" else None)
        if common["weight_decay"] is not None:
            _core.check_hyperparameters(rule.key, {**rule.defaults(), "weight_decay": common["weight_decay"]})
        super().__init__(learning_rate, **common)
        self.convention = self_convention
        self._rule_key = rule.key
        # Hyperparameters and the names of their attributes, in the rule's order.
        places = {ours: theirs for theirs, ours in known.items()}
        self._attributes: dict[str, str] = {}
        for h in rule.hyperparameters:
            if h.name not in (*_LEFT_OUT, *rule.carried):
                self._attributes[h.name] = places.get(h.name, h.name)
                setattr(self, self._attributes[h.name], group[h.name])
        of_states = {s.option: float(given[s.option]) for s in rule.states if s.option in given}
        self._initial = rule.initial_states(self_convention, {**group, "lr": self._first_rate()}, of_states)
        # The options that choose among the rules of the class, and the initial values of states.
        self._choices = {w: options.get(w, 0.0 if w == "momentum" else False) for w in _words(self._class)}
        self._choices.update({s.option: self._initial[s.name] for s in rule.states if s.option is not None})
        for name, value in self._choices.items():
            if name not in self._attributes.values():
                setattr(self, name, value)

    def _first_rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self._get_current_learning_rate()))

    @property
    def rule(self) -> Rule:
        """The rule that this optimizer runs."""
        return rule_of(self._rule_key)

    def build(self, var_list: Sequence[Any]) -> None:
        """Create the states of the variables."""
        if self.built:
            return
        super().build(var_list)
        self._states: list[list[Any] | None] = [
            None if self._overwrite_variable_with_gradient(v) else [self._new_state(v, s) for s in self.rule.states]
            for v in var_list
        ]
        # Each a float64, as two int32: JAX has arrays of the former only where that is switched on.
        self._carried = None
        if carried := self.rule.carried:
            self._carried = self.add_variable((len(carried), 2), initializer="zeros", dtype="int32", name="carried")
            self._carried.assign(_as_words([self.rule.defaults(self.convention)[c] for c in carried]))

    def _new_state(self, variable: Any, state: Any) -> Any:
        narrow = variable.dtype in ("bfloat16", "float16")
        path = getattr(variable, "path", variable.name).replace("/", "_")
        made = self.add_variable(
            shape=state.shape_beside(tuple(variable.shape)),
            initializer=keras.initializers.Constant(self._initial[state.name]),
            dtype="float32" if narrow else variable.dtype,
            layout=getattr(variable, "_layout", None) if state.per == "element" else None,
            name=f"{path}_{state.name}",
        )
        if state.initial_from == "param":
            # A copy: JAX donates the memory of each variable.
            made.assign(keras.ops.copy(keras.ops.cast(variable.value, made.dtype)))
        return made

    # Keras's training loop calls these methods. Weight decay is part of the step.

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        pass

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Take one step with one variable."""
        if self.rule.carried:
            raise RuntimeError(f"{type(self).__name__} hands numbers on from step to step; use apply()")
        if self.rule.reduces == "all":
            raise RuntimeError(f"{type(self).__name__} reduces all variables to numbers; use apply()")
        self._backend_update_step([gradient], [variable], learning_rate)

    def _backend_update_step(self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any) -> None:
        decayed = [bool(self.weight_decay) and self._use_weight_decay(v) for v in trainable_variables]
        states = [self._states[self._get_variable_index(v)] or [] for v in trainable_variables]
        values = {ours: getattr(self, theirs) for ours, theirs in self._attributes.items()}
        values.update(weight_decay=float(self.weight_decay or 0.0), decoupled=True)
        if keras.backend.backend() == "jax":
            self._step_in_jax(values, decayed, list(trainable_variables), states, list(grads), learning_rate)
            return
        values["lr"] = float(keras.ops.convert_to_numpy(learning_rate))
        step = int(keras.ops.convert_to_numpy(self.iterations)) + 1
        if self._carried is not None:
            numbers = np.array(keras.ops.convert_to_numpy(self._carried), np.int32).view(np.float64)[:, 0]
            values.update(zip(self.rule.carried, map(float, numbers), strict=True))
        if self.rule.reduces == "all":
            new = self._step_all(values, decayed, step, list(trainable_variables), states, list(grads))
            if self._carried is not None:
                self._carried.assign(_as_words([new[c] for c in self.rule.carried]))
            return
        for decay in (True, False):
            chosen = [i for i, d in enumerate(decayed) if d is decay]
            if chosen:
                of = {**values, "weight_decay": values["weight_decay"] if decay else 0.0}
                self._step_in_place(
                    of, step, [trainable_variables[i] for i in chosen], [states[i] for i in chosen],
                    [grads[i] for i in chosen],
                )  # fmt: skip
        if self._carried is not None:
            known = {**self.rule.defaults(), **values}
            new = _core.next_carried(self._rule_key, [float(known[h.name]) for h in self.rule.hyperparameters], step)
            self._carried.assign(_as_words([new[c] for c in self.rule.carried]))

    def _step_in_place(
        self, values: Mapping[str, Any], step: int, variables: list[Any], states: list[list[Any]], grads: list[Any]
    ) -> None:
        kept = [list(of) for of in zip(*([v, *s] for v, s in zip(variables, states, strict=True)), strict=True)]
        buffers = [[_own_buffer(v) for v in of] for of in kept]
        gradients = [_gradient(g) for g in grads]
        _step_of(self._rule_key)(buffers[0], gradients, *buffers[1:], step=step, **values)
        _put_back(kept, buffers)

    def _step_all(
        self,
        values: Mapping[str, Any],
        decayed: list[bool],
        step: int,
        variables: list[Any],
        states: list[list[Any]],
        grads: list[Any],
    ) -> Mapping[str, Any]:
        """A step of a rule that reduces all variables to numbers, and what it carries on. As groups of one step: each
        run of variables with weight decay, or without."""
        kept = [[v, *s] for v, s in zip(variables, states, strict=True)]
        buffers = [[_own_buffer(v) for v in of] for of in kept]
        plan = _core.Plan()
        groups: list[dict[str, Any]] = []
        for decay, run in groupby(range(len(variables)), decayed.__getitem__):
            chosen = [buffers[i] for i in run]
            labels = [f"[{i}]" for i in range(len(chosen))]
            plan.add_group(self._rule_key, [b[0] for b in chosen], [b[1:] for b in chosen], labels, None, "lazy", [])
            groups.append({**self.rule.defaults(), **values})
            if not decay:
                groups[-1]["weight_decay"] = 0.0
        if not groups:
            return values
        plan.set_steps([step - 1] * len(variables), step - 1)
        plan.step([_gradient(g) for g in grads], groups, 1.0, None, False, False, None, None, None)
        _put_back(kept, buffers)
        return groups[0]

    def _step_in_jax(
        self,
        values: Mapping[str, Any],
        decayed: list[bool],
        variables: list[Any],
        states: list[list[Any]],
        grads: list[Any],
        learning_rate: Any,
    ) -> None:
        import jax
        import jax.numpy as jnp

        from adaptk._jax_step import next_carried_arrays, step_arrays

        undecayed = tuple(i for i, d in enumerate(decayed) if not d)
        measures = self.rule.reduces == "all"
        words = None
        count = jnp.asarray(keras.ops.convert_to_tensor(self.iterations), jnp.int32)
        traced = {"lr": jnp.asarray(keras.ops.convert_to_tensor(learning_rate), jnp.float32)}
        if self._carried is not None:
            words = jax.lax.bitcast_convert_type(jnp.asarray(self._carried.value), jnp.uint32)
            if not measures:
                traced.update(zip(self.rule.carried, words, strict=True))
        kept = [[v.value for v in of] for of in zip(*states, strict=True)] if states[0] else []
        new, new_states, new_words = step_arrays(
            self._rule_key,
            values,
            undecayed,
            [v.value for v in variables],
            kept,
            count,
            [jnp.asarray(g) for g in grads],
            traced,
            words if measures else None,
        )
        for variable, value in zip(variables, new, strict=True):
            variable.assign(value)
        for of, now in zip(zip(*states, strict=True), new_states, strict=True):
            for variable, value in zip(of, now, strict=True):
                variable.assign(value)
        if self._carried is not None:
            if not measures:
                new_words = next_carried_arrays(self._rule_key, values, count, traced)
            self._carried.assign(jax.lax.bitcast_convert_type(new_words, jnp.int32))

    def evaluation_values(self, variables: Sequence[Any]) -> list[Any]:
        """The values to evaluate a model with, for rules that take gradients at other params (Schedule-Free).

        Parameters
        ----------
        variables : sequence of keras.Variable
            Variables of this optimizer, such as ``model.trainable_variables``.

        Returns
        -------
        list of numpy.ndarray
            In float32, or in float64 for variables in float64; ``variable.assign`` takes them.

        Raises
        ------
        ValueError
            If models are evaluated with the variables themselves.
        RuntimeError
            If the optimizer has not been built.
        """
        rule = evaluation_rule(self.rule)
        if rule is None:
            raise ValueError(f"{type(self).__name__}: models are evaluated with the variables themselves")
        if not self.built:
            raise RuntimeError(f"{type(self).__name__}: has no states yet; call build() or apply()")
        known = {h.name for h in rule.rule.hyperparameters} - {"lr", *COMMON}
        values = {ours: getattr(self, theirs) for ours, theirs in self._attributes.items() if ours in known}
        points = []
        for v in variables:
            wide = "float64" if v.dtype == "float64" else "float32"
            point = np.array(keras.ops.convert_to_numpy(keras.ops.cast(v.value, wide)), wide, order="C")
            points.append(point)
            if (states := self._states[self._get_variable_index(v)]) is not None:
                own = dict(zip((s.name for s in self.rule.states), states, strict=True))
                of = [np.array(keras.ops.convert_to_numpy(own[s.name]), order="C") for s in rule.rule.states]
                rule(point, point.copy(), *of, step=1, **values)
        return points

    def get_config(self) -> dict[str, Any]:
        """The config for :meth:`from_config`, with the current hyperparameters."""
        config: dict[str, Any] = super().get_config()
        config.update(self._choices)
        config.update({theirs: getattr(self, theirs) for theirs in self._attributes.values()})
        config["convention"] = self.convention
        return config


def _as_words(numbers: Sequence[float]) -> Any:
    """float64s as pairs of int32."""
    return np.array(numbers, np.float64)[:, None].view(np.int32)


def _own_buffer(variable: Any) -> Any:
    """The buffer for a step: the variable's memory, or a copy if a stateless scope has replaced its tensor."""
    value: Any = variable.value
    if keras.backend.backend() == "torch":
        kept = value is getattr(variable, "_value", None)
        value = value.detach() if kept else value.detach().clone()
        return value if value.is_contiguous() else value.contiguous()
    writable = isinstance(value, np.ndarray) and value.flags.writeable and value.flags.c_contiguous
    return value if writable and value is getattr(variable, "_value", None) else np.array(value, order="C")


def _is_of(value: Any, variable: Any) -> bool:
    """Whether a buffer is the variable's memory."""
    now: Any = variable.value
    if keras.backend.backend() == "torch":
        return bool(value.data_ptr() == now.data_ptr() and value.numel() > 0)
    return value is now


def _put_back(kept: Sequence[Sequence[Any]], buffers: Sequence[Sequence[Any]]) -> None:
    """Hand stepped buffers to their variables, which may be the memory of these."""
    for of, now in zip(kept, buffers, strict=True):
        for variable, value in zip(of, now, strict=True):
            if not _is_of(value, variable):
                variable.assign(value)
    if keras.backend.backend() == "torch":
        import torch

        torch.autograd.graph.increment_version([b for of in buffers for b in of])


def _gradient(grad: Any) -> Any:
    if keras.backend.backend() == "torch":
        return grad.detach().contiguous()
    return np.asarray(grad, order="C")


def _signature(name: str, cls: type[Optimizer]) -> inspect.Signature:
    """The arguments of Keras's class in its order, if there is one, and then the additional ones."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    keyword = inspect.Parameter.KEYWORD_ONLY
    ours = inspect.signature(cls).parameters
    options = _options_of(cls)
    rule = cls._class_rules[0]
    convention = "keras" if "keras" in rule.conventions else "book"
    values = rule.defaults(convention)
    parameters = [inspect.Parameter("learning_rate", kind, default=float(values["lr"]))]
    if name in _KERAS:
        theirs = inspect.signature(getattr(keras.optimizers, name).__init__).parameters
        parameters = [p.replace(annotation=p.empty) for n, p in theirs.items() if n != "self" and p.kind is kind]
    taken = {p.name for p in parameters}
    for option, own in options.items():
        if option not in taken and own != "eps":
            default = values.get(own, ours[own].default)
            parameters.append(inspect.Parameter(option, keyword, default=default))
        elif option not in taken:
            parameters.append(inspect.Parameter(option, keyword, default=None))
    parameters.append(inspect.Parameter("convention", keyword, default=convention))
    common = inspect.signature(keras.optimizers.Optimizer.__init__).parameters
    parameters += [
        inspect.Parameter(n, keyword, default=0.004 if n == "weight_decay" and name == "AdamW" else common[n].default)
        for n in _COMMON
        if n not in taken
    ]
    return inspect.Signature(parameters)


def _document(name: str, cls: type[Optimizer]) -> str:
    lines = [cls._class_rules[0].summary, ""]
    for rule in cls._class_rules:
        lines += [f"`{rule.name}`, {rule.source}::", "", *("    " + line for line in rule.formula.splitlines()), ""]
    known = f":class:`keras.optimizers.{name}`" if name in _KERAS else "the optimizers of Keras"
    lines += [
        "Parameters",
        "----------",
        "learning_rate : float, keras.optimizers.schedules.LearningRateSchedule or callable",
        "    As in all optimizers of Keras.",
        "weight_decay : float, optional",
        "    Decoupled: ``variable -= learning_rate * weight_decay * variable``, before the step.",
        f"{', '.join(_COMMON[1:])}",
        "    As in :class:`keras.optimizers.Optimizer`.",
        f"{', '.join(_options_of(cls))}",
        f"    Hyperparameters, named as in {known}; see :class:`adaptk.{cls.__name__}` for their meaning.",
        "convention : {'keras', 'book', 'torch', 'tf1', 'optax'}",
        "    Whose defaults, place of epsilon and form of momentum to use.",
        "",
        "Raises",
        "------",
        "RuntimeError",
        "    If Keras's backend is not torch, JAX or NumPy.",
        "TypeError, ValueError",
        "    If an argument is unknown or out of range.",
        "",
        "Examples",
        "--------",
        ">>> import keras, numpy as np, adaptk.keras",
        ">>> w = keras.Variable(np.ones(3, 'float32'))",
        f">>> opt = adaptk.keras.{name}(learning_rate=0.01)",
        ">>> opt.apply([keras.ops.ones(3)], [w])",
        ">>> int(opt.iterations)",
        "1",
        "",
    ]
    return "\n".join(lines)


def _make(name: str, cls: type[Optimizer]) -> type[_Fused]:
    signature = _signature(name, cls)
    base_init = _Fused.__init__
    positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(positional):
            raise TypeError(f"{name}() takes {len(positional)} arguments by position and {len(args)} were given")
        for option, value in zip(positional, args, strict=False):
            if option in kwargs:
                raise TypeError(f"{name}() got multiple values for argument {option!r}")
            kwargs[option] = value
        if name in _KERAS:
            # Keras's defaults, also for rules without a "keras" convention.
            placed = "eps_in" in kwargs or "eps_out" in kwargs  # as in a config; epsilon would be passed twice
            for option in positional:
                if option == "epsilon" and placed:
                    continue
                if option not in kwargs and signature.parameters[option].default is not None:
                    kwargs[option] = signature.parameters[option].default
        base_init(self, **kwargs)

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *signature.parameters.values()]
    )
    made = type(
        name,
        (_Fused,),
        {"__module__": __name__, "__doc__": _document(name, cls), "__init__": __init__, "_class": cls},
    )
    keras.saving.register_keras_serializable("adaptk", name)(made)
    return made


def _all() -> dict[str, type[_Fused]]:
    theirs = {ours: name for name, ours in _KERAS.items()}
    return {theirs.get(name, name): _make(theirs.get(name, name), cls) for name, cls in CLASSES.items()}


_made = _all()
globals().update(_made)

__all__ = [*_made]
_of_catalogue: dict[str, type[_Fused]] = {}


def _class_of_catalogue(name: str) -> type[_Fused]:
    found = catalogue.find_class(name)
    assert found is not None
    if name not in _of_catalogue:
        _of_catalogue[name] = _make(name, found.Optimizer)
    return _of_catalogue[name]


if not TYPE_CHECKING:
    __getattr__, __dir__ = face(__name__, __all__, more=catalogue.CLASSES.values(), find=_class_of_catalogue)
