"""The base of the optimizer objects: groups, states, the step, saving and loading."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import numpy as np

from adaptk import _backend, _core, _sparse, catalogue, formats
from adaptk._names import hint
from adaptk._registry import ROW_WISE, RULES, Rule
from adaptk._typing import Number
from adaptk.schedules import refuse_from_zero


class StepInfo:
    """The result of a step.

    A step on a CUDA device is enqueued asynchronously; reading an attribute waits for it.

    Attributes
    ----------
    grad_norm : float or None
        The global norm of the scaled gradients before clipping, if the step computed it (`clip_norm` or
        `skip_nonfinite`), else ``None``.
    skipped : bool
        Whether the step was skipped because a gradient was not finite.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> opt = adaptk.SGD([np.zeros(2)], skip_nonfinite=True)
    >>> opt.step([np.array([1.0, np.inf])]).skipped
    True
    """

    __slots__ = ("_norm", "_skipped")

    def __init__(self, grad_norm: float | _core.Report | None, skipped: bool) -> None:
        self._norm = grad_norm
        self._skipped = skipped

    def _known(self) -> tuple[float | None, bool]:
        if isinstance(self._norm, _core.Report):
            return self._norm.read()
        return self._norm, self._skipped

    @property
    def grad_norm(self) -> float | None:
        return self._known()[0]

    @property
    def skipped(self) -> bool:
        return self._known()[1]

    def __iter__(self) -> Iterator[float | bool | None]:
        return iter(self._known())

    def __eq__(self, other: object) -> bool:
        return self._known() == (other._known() if isinstance(other, StepInfo) else other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return StepInfo, self._known()

    def __repr__(self) -> str:
        norm, skipped = self._known()
        return f"StepInfo(grad_norm={norm!r}, skipped={skipped!r})"


class ParamGroup(dict[str, Any]):
    """A dict with fixed keys: the params of a group, which cannot be replaced, and its hyperparameters, which can."""

    __slots__ = ("_names", "_params")

    def __init__(self, params: tuple[Any, ...], values: Mapping[str, Any]) -> None:
        super().__init__({"params": params, **values})
        self._names = tuple(values)
        self._params = params

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._names and name != "params":
            raise KeyError(
                f"param_groups: no hyperparameter {name!r}{hint(name, self._names)}; there are {', '.join(self._names)}"
            )
        if name == "params" and value is not self._params:
            raise ValueError(
                "param_groups: the params of a group stay what they are, for they have states; "
                "add params with add_param_group(), or make a new optimizer"
            )
        if name == "lr":
            refuse_from_zero("lr", value)
        super().__setitem__(name, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override, misc]
        self.update(other)
        return self

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default  # raises
        return self[name]

    def __reduce_ex__(self, _: Any) -> Any:
        return dict, (dict(self),)


_NOT_GIVEN = object()
# The keys of a group that are not options of its rule.
_GROUP_OPTIONS = ("params", "state_dtype", "param_format", "sparse")
# Classes whose names in torch differ.
_TORCH_NAMES = {
    "AdaDelta": "Adadelta",
    "AdaGrad": "Adagrad",
    "AdaMax": "Adamax",
    "RMSProp": "RMSprop",
    "RProp": "Rprop",
}


def _few(names: Sequence[str]) -> str:
    """A list of names; of many names only the first ones."""
    if len(names) <= 3:
        return str(list(names))
    return f"[{', '.join(map(repr, names[:3]))}, ...] ({len(names)} keys)"


COMMON = ("weight_decay", "decoupled", "maximize", "grad_scale")


def evaluation_rule(rule: Rule) -> Any:
    """The TracedRule that computes the params to evaluate with; None if they are the params themselves."""
    if not rule.evaluation:
        return None
    from adaptk._rule import find_rule

    return find_rule(rule.evaluation)


def _clip_norm(value: float | None) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"clip_norm: expected a number or None, got {type(value).__name__}")
    if not value > 0.0:
        raise ValueError(f"clip_norm: {value!r} is not in (0, inf]")
    return value


def _is_buffer(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        return True
    return any(hasattr(x, name) for name in ("__dlpack__", "__array_interface__", "__cuda_array_interface__"))


def _no_params(params: Any, where: str) -> NoReturn:
    remedy = ""
    if isinstance(params, (set, frozenset)):
        remedy = "; the order of a set changes from run to run: give a list"
    elif callable(getattr(params, "parameters", None)):
        remedy = "; give its parameters: model.parameters()"
    elif callable(params):
        remedy = "; call it"
    raise TypeError(
        f"{where}: expected buffers, a dict of buffers or param groups, got {type(params).__name__}{remedy}"
    )


def _is_collection(params: Any) -> bool:
    if isinstance(params, (str, bytes, set, frozenset)) or callable(getattr(params, "parameters", None)):
        return False
    return isinstance(params, Iterable)


def _named(params: Any, where: str) -> tuple[list[str] | None, list[Any]]:
    """The names (if it is a mapping) and the buffers of one group's params."""
    if _is_buffer(params):
        return None, [params]
    if isinstance(params, Mapping):
        for name in params:
            if not isinstance(name, str):
                raise TypeError(f"{where}: names of params must be strings, got {type(name).__name__}")
        return list(params), list(params.values())
    if not _is_collection(params):
        _no_params(params, where)
    return None, list(params)


def _groups(params: Any) -> list[dict[str, Any]]:
    if not isinstance(params, Mapping) and not _is_buffer(params):
        if not _is_collection(params):
            _no_params(params, "params")
        params = list(params)
        if params and all(isinstance(g, Mapping) for g in params):
            return [dict(g) for g in params]
    return [{"params": params}]


def _how_to_create(rule: str) -> str:
    """How to make the optimizer that a state belongs to."""
    found = RULES.get(rule) or ROW_WISE.get(rule)
    if found is None and rule in catalogue.CLASSES:
        return f"make it as the one that was saved: adaptk.{catalogue.CLASSES[rule]}"
    if found is None:
        return "no rule of this version has that name"
    if found.program is not None:
        return f"make it by that rule's .Optimizer, adaptk.optimizer_for({rule!r}, ...)"
    return f"make it as the one that was saved: adaptk.{found.spelling}"


class Optimizer:
    """Base of all optimizers: parameters, their state arrays, and a fused in-place step.

    Parameters
    ----------
    params : buffers
        Arrays to optimize: an iterable of buffers, a dict of buffers by name, or an iterable of param groups. A group
        is a dict with the key ``"params"`` and options of its own. Buffers are NumPy arrays or tensors, all on the CPU
        or all on one CUDA device; float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2, dense in memory.
        They are updated in place and never copied.
    lr : float, callable or buffer, optional
        The learning rate, or a schedule: a function of the step number, counted from 1
        (:mod:`adaptk.schedules`). Other numeric hyperparameters, such as `weight_decay`, may be schedules too. For
        params on a CUDA device, `lr` and other numeric hyperparameters may be one-element buffers of float32 or
        float64 on that device. Each step reads the value there; its range is not validated.
    convention : {"book", "torch", "keras", "tf1", "optax"}
        Whose defaults, place of eps, form of momentum and initial states to use. Explicit arguments take precedence.
    clip_norm : float, optional
        Clip gradients to this global norm at every step.
    skip_nonfinite : bool
        Skip steps whose gradients contain inf or NaN.
    capturable : bool
        For params on a CUDA device: count the steps on the device, so that a step captured in a CUDA graph has the
        right step number at each replay. Hyperparameters that change between replays must be buffers on the device.
    state_dtype : str or dict from state to str, optional
        The storage format of all states, or a dict with the formats of some states by name: ``"float32"``,
        ``"bfloat16"``, ``"float16"``, ``"bfloat16_sr"`` (rounded stochastically), ``"8bit"``, ``"8bit_nearest"``,
        ``"8bit_dynamic"``, ``"fp8_e4m3"`` or ``"4bit"`` (:mod:`adaptk.formats`). The step still computes in float32.
        States that are rounded to nearest lose small changes. States of float64 params are float64. NumPy arrays of
        bfloat16 need the package ``ml_dtypes``.
    min_8bit_size : int
        Params with fewer elements have float32 states if `state_dtype` is an 8-bit or 4-bit format.
    seed : int
        The seed of stochastic rounding, in [0, 2**63).
    param_format : {"sr", "remainder16", "remainder8", "kahan"}, optional
        How narrow params are stored, so that changes of less than half of a last place add up. ``"sr"``: rounded
        stochastically. The others are for bfloat16, and keep what rounding loses as ``"remainder"`` or
        ``"compensation"`` in :attr:`state`. With ``"remainder16"`` the step works on float32 params, bit for bit
        (:mod:`adaptk.formats`). Params in float32 and float64 are not affected.
    sparse : {"lazy", "dense", "catch_up"}
        What happens to rows without a gradient if a gradient has some rows only. ``"lazy"``: nothing. ``"dense"``:
        the update for a gradient of 0. ``"catch_up"``: nothing until the row has a gradient again; it then first
        catches up with the steps that it has missed (`last_step` in :attr:`state`), with the closed form of the rule
        (:attr:`Rule.catch_up`) and the hyperparameters of the current step.
    **options
        Hyperparameters of the rule, by name; the options that choose among the rules of the class; the initial
        values of states.

    Raises
    ------
    TypeError, ValueError
        For params that cannot be updated in place and for options that are unknown or out of range.

    Notes
    -----
    `param_groups` is a list of dicts, one for each group. Hyperparameters may be changed there between steps. Setting
    an unknown key or replacing the params raises an error. Optimizers can be pickled and deep-copied, and their params
    are copied with them. Copy or pickle a model and its optimizer together (``copy.deepcopy((model, opt))``), so that
    the new optimizer updates the params of the new model.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> w = np.array([1.0, -2.0], dtype=np.float32)
    >>> opt = adaptk.Adam([w], lr=0.1)
    >>> info = opt.step([2 * w])
    >>> w
    array([ 0.9, -1.9], dtype=float32)
    """

    _class_rules: ClassVar[tuple[Rule, ...]] = ()
    # Keys of each group besides its options. The group keeps their values.
    _marks: ClassVar[tuple[str, ...]] = ()
    _rule: Rule | None = None
    # Copies of the params while they hold the values to evaluate with.
    _kept: list[Any] | None = None

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] | None = None,
        *positional: Any,
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
    ) -> None:
        if not self._class_rules:
            raise TypeError("Optimizer is the base of the optimizers: use adaptk.Adam or another class")
        if positional:
            raise TypeError(
                f"{type(self).__name__}() takes params and lr by position and {len(positional)} more were given; "
                f"give the others by name: {', '.join(self._options_of(self._class_rules[0]))}"
            )
        if lr is not None:
            options["lr"] = lr
        storage = (state_dtype, min_8bit_size, seed, param_format, sparse)
        self._begin(params, None, convention, clip_norm, skip_nonfinite, capturable, storage, options)

    def _begin(
        self,
        params: Any,
        rule: Rule | None,
        convention: str,
        clip_norm: float | None,
        skip_nonfinite: bool,
        capturable: bool,
        storage: tuple[str | Mapping[str, str] | None, int, int, str | None, str],
        options: dict[str, Any],
    ) -> None:
        self.clip_norm = _clip_norm(clip_norm)
        self.skip_nonfinite = bool(skip_nonfinite)
        self.param_groups: list[dict[str, Any]] = []
        self._rule = rule
        self._convention = convention
        self._options = options
        self._state_dtype = storage[0]
        self._min_8bit_size = formats.check_min_8bit_size(storage[1])
        self._seed = formats.check_seed(storage[2])
        self._param_format = formats.check_param_format(storage[3])
        self._param_formats: list[str | None] = []  # one for each group
        self._sparse = _sparse.check_mode(storage[4])
        self._sparse_modes: list[str] = []  # one for each group
        self.capturable = bool(capturable)
        # For the attributes below, whose lists must change together. Steps use the plan's own lock.
        self._lock = threading.RLock()
        self._plan = _core.Plan(self.capturable)
        self._names: list[str] | None = None
        self._labels: list[str] = []
        self._params: list[Any] = []
        self._states: list[dict[str, Any]] = []
        self._group_rules: list[Rule] = []
        self._own_groups: list[ParamGroup] = []
        self._ahead = False
        self._resolve({})
        for group in _groups(params):
            self.add_param_group(group)
        if not self._params:
            raise ValueError("params: an empty list")

    # The rule of a group.

    def _choose(self, options: Mapping[str, Any]) -> Rule:
        if self._rule is not None:
            return self._rule
        wanted = set()
        for word in {w for r in self._class_rules for w in r.variant}:
            value = options.get(word, False)
            if word != "momentum" and not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"{word}: expected a bool, got {type(value).__name__}")
            if value:
                wanted.add(word)
        if "nesterov" in wanted:
            # Nesterov's methods are separate rules, which always have momentum.
            if self._class_rules[0].name == "sgd" and "momentum" not in wanted:
                raise ValueError("nesterov: needs a momentum, such as momentum=0.9")
            wanted.discard("momentum")
        for rule in self._class_rules:
            if set(rule.variant) == wanted:
                return rule
        raise ValueError(f"{type(self).__name__} has no rule that is {' and '.join(sorted(wanted))}")

    def _resolve(self, group_options: Mapping[str, Any]) -> tuple[Rule, dict[str, Any], dict[str, float]]:
        """The rule of a group, its hyperparameters, and the initial values of its states."""
        given = {**self._options, **group_options}
        rule = self._choose(given)
        values: dict[str, Any] = rule.defaults(self._convention)
        if self._class_rules and rule is not self._class_rules[0]:
            # AdamW(amsgrad=True) decays its weights as AdamW does.
            base = self._class_rules[0].defaults(self._convention)
            values.update({h.name: base[h.name] for h in rule.hyperparameters if h.common})
        initial_options = {s.option for s in rule.states if s.option is not None}
        # These options choose among the rules of a class. If the rule is named, there is nothing to choose.
        words = {w for r in self._class_rules for w in r.variant} if self._rule is None else set()
        # eps sets the one that is not 0 in the convention, or if both are 0, the one of the book.
        eps_place = ""
        if "eps_in" in values:
            places = values if values["eps_in"] or values["eps_out"] else rule.defaults()
            eps_place = "eps_in" if places["eps_in"] else "eps_out"
            for options in (self._options, group_options):
                if "eps" in options and eps_place in options:
                    raise TypeError(f"eps: it is {eps_place} here, which is given too")
        initial: dict[str, float] = {}
        for name, value in given.items():
            if name in values:
                values[name] = value
            elif name == "eps" and eps_place:
                values[eps_place] = value
            elif name in initial_options:
                initial[name] = float(value)
                if not np.isfinite(initial[name]) or initial[name] < 0.0:
                    raise ValueError(f"{name}: {value!r} is not in [0, inf)")
            elif name not in words and name not in self._known_options():
                known = self._options_of(rule)
                raise TypeError(
                    f"{type(self).__name__}() got an unexpected keyword argument {name!r}{hint(name, known)}; "
                    f"it takes {', '.join(known)}"
                )
            elif name not in words:
                chosen = " ".join(rule.variant) or "plain"
                raise TypeError(f"{name}: {type(self).__name__} does not take it in its {chosen} form ({rule.name})")
        for name, value in values.items():
            refuse_from_zero(name, value)
        _core.check_hyperparameters(rule.key, values)
        return rule, values, initial

    def _options_of(self, rule: Rule) -> list[str]:
        """The keyword arguments of the constructor for this rule."""
        names = [h.name for h in rule.hyperparameters]
        if "eps_in" in names:
            names.insert(names.index("eps_in"), "eps")
        if self._rule is None:
            names += [w for r in self._class_rules for w in r.variant]
        names += [s.option for s in rule.states if s.option is not None]
        return list(
            dict.fromkeys(
                [
                    *names,
                    "convention",
                    "clip_norm",
                    "skip_nonfinite",
                    "capturable",
                    "state_dtype",
                    "min_8bit_size",
                    "seed",
                    "param_format",
                    "sparse",
                ]
            )
        )

    def _known_options(self) -> set[str]:
        rules = self._class_rules or (self._rule,)
        names = {h.name for r in rules if r is not None for h in r.hyperparameters}
        return names | {s.option for r in rules if r is not None for s in r.states if s.option is not None}

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of params with its own options.

        Parameters
        ----------
        group : mapping
            ``{"params": buffers, **options}``. The options may include ``state_dtype``, ``param_format`` and
            ``sparse``.

        Raises
        ------
        TypeError, ValueError
            Under the same conditions as the constructor. The optimizer is then unchanged.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> opt = adaptk.SGD([np.zeros(2)], lr=0.1)
        >>> opt.add_param_group({"params": [np.zeros(3)], "lr": 0.01})
        >>> [group["lr"] for group in opt.param_groups]
        [0.1, 0.01]
        """
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError("param group: expected a dict with the key 'params'")
        with self._lock:
            where = "params" if not self._params else f"params of group {len(self.param_groups)}"
            names, params = _named(group["params"], where)
            if not params:
                raise ValueError(f"{where}: an empty list")
            if self._params and (names is None) != (self._names is None):
                raise ValueError(f"{where}: either all groups have named params or none has")
            if names is not None and (clash := set(names) & set(self._names or ())):
                raise ValueError(f"{where}: the names {', '.join(sorted(clash))} are taken")
            given = {k: v for k, v in group.items() if k not in (*_GROUP_OPTIONS, *self._marks)}
            of = self._of_group(group)
            rule, values, options = of._resolve(given)
            dtypes: dict[str, str] = {}
            if (state_dtype := group.get("state_dtype", of._state_dtype)) is not None:
                dtypes = formats.check_state_dtype(state_dtype, rule.states)
            param_format = formats.check_param_format(group.get("param_format", of._param_format))
            sparse = _sparse.check_mode(group.get("sparse", of._sparse), rule)
            firsts = {n: v(1) if callable(v) else v for n, v in values.items()}
            numbers = {
                s.initial_from: _backend.to_numpy(firsts[s.initial_from]).item()
                for s in rule.states
                if s.initial_from in firsts
            }
            initial = rule.initial_states(of._convention, {**firsts, **numbers}, options)
            first = len(self._params)
            keys = names if names is not None else self._places(first, len(params))
            labels = [f"[{key!r}]" for key in keys]
            for label, param in zip(labels, params, strict=True):
                _core.check_param(param, f"params{label}")
            states = [of._new_states(p, rule, initial, dtypes, param_format) for p in params]
            if sparse == "catch_up":
                for p, s in zip(params, states, strict=True):
                    s.update(_sparse.new_last_step(p))
            self._add_to_plan(rule, params, states, labels, param_format, sparse)
            self._params += params
            self._states += states
            self._labels += labels
            self._group_rules.append(rule)
            if names is not None:
                self._names = (self._names or []) + names
            self._param_formats.append(param_format)
            self._sparse_modes.append(sparse)
            marks = {name: group[name] for name in self._marks}
            self._own_groups.append(ParamGroup(tuple(params), {**marks, **values}))
            self.param_groups.append(self._own_groups[-1])
            self._plan.set_seed(self._seed)

    def _places(self, first: int, count: int) -> Sequence[int]:
        """The keys of params without names: their indices among the gradients."""
        return range(first, first + count)

    def _of_group(self, group: Mapping[str, Any]) -> Optimizer:
        """The optimizer whose options a new group has."""
        return self

    def _check_values(self, rule: Rule, values: dict[str, Any]) -> None:
        """Check hyperparameters that are loaded for a group."""
        _core.check_hyperparameters(rule.key, values)

    def _add_to_plan(
        self,
        rule: Rule,
        params: Sequence[Any],
        states: Sequence[Mapping[str, Any]],
        labels: list[str],
        param_format: str | None,
        sparse: str,
    ) -> None:
        side = formats.SIDES.get(param_format or "", ("", ""))[0]
        pairs = [(p, s[side]) if side in s else p for p, s in zip(params, states, strict=True)]
        of_rule = [[s[state.name] for state in rule.states] for s in states]
        last_steps = [s.get("last_step") for s in states] if sparse == "catch_up" else []
        self._plan.add_group(rule.key, pairs, of_rule, labels, param_format, sparse, last_steps)

    def _new_states(
        self,
        param: Any,
        rule: Rule,
        initial: Mapping[str, float],
        dtypes: Mapping[str, str],
        param_format: str | None,
    ) -> dict[str, Any]:
        shape, _, dtype, _ = _core.layout(param, "params")
        states = {}
        for s in rule.states:
            if s.per != "element":
                states[s.name] = _backend.full(param, s.shape_beside(tuple(shape)), initial[s.name])
                continue
            name = formats.format_of(dtypes.get(s.name, "float32"), s, math.prod(shape), self._min_8bit_size)
            states[s.name] = formats.full_like(param, initial[s.name], "float32" if dtype == "float64" else name)
            # The first step does this too, but not for rows that have no gradient then.
            if s.initial_from == "param" and not isinstance(states[s.name], formats.Stored):
                _backend.assign(states[s.name], _backend.to_numpy(param))
        return {**states, **formats.new_side(param, dtype, param_format)}

    # The step.

    def _ordered(self, buffers: Any, name: str = "grads", what: str = "gradients") -> Sequence[Any]:
        if name == "grads" and len(self._params) == 1 and self._names is None and _sparse.is_of_rows(buffers):
            return [buffers]
        if isinstance(buffers, (list, tuple)) and self._names is None:
            return buffers
        if _is_buffer(buffers):
            if len(self._params) == 1 and self._names is None:
                return [buffers]
            raise TypeError(
                f"{name}: expected a list or a dict of {what}, got one buffer for {len(self._params)} "
                f"param{'s' if len(self._params) > 1 else ' with a name'}"
            )
        if isinstance(buffers, Mapping):
            if self._names is None:
                raise TypeError(f"{name}: a dict, but the params were given without names")
            missing = [n for n in self._names if n not in buffers]
            extra = [n for n in buffers if n not in self._names]
            if missing or extra:
                raise ValueError(f"{name}: missing {missing}, unexpected {extra}")
            return [buffers[n] for n in self._names]
        if isinstance(buffers, (set, frozenset)):
            raise TypeError(f"{name}: a set has no order; give a list, or a dict by name")
        if isinstance(buffers, Iterable) and self._names is not None:
            names = ", ".join(map(repr, self._names[:3])) + (", ..." if len(self._names) > 3 else "")
            raise TypeError(
                f"{name}: a {type(buffers).__name__}, but the params have names; give a dict by name: {names}"
            )
        if isinstance(buffers, Iterable):
            return list(buffers)
        if buffers is _NOT_GIVEN:
            raise TypeError(f"step() needs the gradients: step(grads){self._torch_remedy()}")
        raise TypeError(f"{name}: expected a list or a dict of {what}, got {type(buffers).__name__}")

    def _ordered_ema(self, ema: Any) -> Any:
        if not isinstance(ema, tuple) or len(ema) != 2:
            return ema  # the plan raises the error
        return self._ordered(ema[0], "ema", "averages"), ema[1]

    def _torch_remedy(self) -> str:
        """A hint for users who expect the step to read the gradients of tensors, as in torch."""
        if not any(_backend.is_torch(p) for p in self._params):
            return ""
        cls = _TORCH_NAMES.get(type(self).__name__, type(self).__name__)
        return f"; adaptk.torch.{cls} reads the gradients that tensors have (.grad), as torch.optim does"

    # Errors for missing attributes.

    def __getattr__(self, name: str) -> Any:
        error = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name == "zero_grad":
            raise AttributeError(
                f"{error}: gradients are arguments of step() and are not kept{self._torch_remedy()}",
                name=name,
                obj=self,
            )
        if remedy := self._in_groups(name):
            raise AttributeError(error + remedy, name=name, obj=self)
        raise AttributeError(error, name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__ and (remedy := self._in_groups(name)):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}{remedy}", name=name, obj=self
            )
        super().__setattr__(name, value)

    def _in_groups(self, name: str) -> str:
        """A hint where a hyperparameter is."""
        name = "lr" if name == "learning_rate" else name
        if not any(name in group for group in self.__dict__.get("param_groups", ())):
            return ""
        return f": hyperparameters are in the param groups, such as opt.param_groups[0][{name!r}]"

    def _check_groups(self) -> None:
        """Check groups that were assigned in place of others."""
        for i, (group, own) in enumerate(zip(self.param_groups, self._own_groups, strict=False)):
            if group is own or not isinstance(group, dict):
                continue  # the step refuses anything that is not a dict
            if unknown := group.keys() - {"params", *(h.name for h in self._group_rules[i].hyperparameters)}:
                names = [h.name for h in self._group_rules[i].hyperparameters]
                raise KeyError(
                    f"param_groups[{i}]: no hyperparameter {min(unknown)!r}{hint(min(unknown), names)}; "
                    f"there are {', '.join(names)}"
                )
            params = own["params"]
            given = group.get("params", params)
            if len(given) != len(params) or any(a is not b for a, b in zip(given, params, strict=True)):
                raise ValueError(
                    f"param_groups[{i}]: its params are not those of group {i}, which stay what they are; "
                    "add params with add_param_group(), or make a new optimizer"
                )

    def step(
        self,
        grads: Any = _NOT_GIVEN,
        *,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        skip_nonfinite: bool | None = None,
        zero_grad: bool = False,
        copy_out: Any = None,
        ema: tuple[Any, float] | None = None,
        grad_norm: float | None = None,
    ) -> StepInfo:
        """Take one step, in place.

        Parameters
        ----------
        grads : sequence or mapping of buffers
            One gradient per param, with the shape and strides of the param, in the order of the params over all
            groups; a dict by name if the params are named; one buffer if there is one param. ``None`` leaves a param
            and its states unchanged. A gradient of some rows only is a pair (indices, values) of shapes ``[k]``, int32
            or int64, and ``[k, *param.shape[1:]]``, or a SciPy sparse matrix, whose rows without entries have no
            gradient. Indices may be in any order. Values of the same row are summed first: in groups of 32, in the
            order given, and then the sums of the groups. The option `sparse` of the optimizer says what happens to the
            other rows.
        clip_norm : float, optional
            Scale all gradients by ``min(1, clip_norm / norm)``, where norm is their global norm after `grad_scale`.
            Defaults to the option of the optimizer.
        grad_scale : float
            Factor for all gradients, for example the reciprocal of a loss scale.
        skip_nonfinite : bool, optional
            Change nothing if a gradient contains inf or NaN. Defaults to the option of the optimizer.
        zero_grad : bool
            Set each gradient to zero once it has been read, also if the step is skipped, so that the next accumulation
            starts at zero.
        copy_out : sequence or mapping of buffers, optional
            One buffer per param, given like `grads`. It receives a copy of the new param, rounded to the buffer's
            dtype: float64 for float64 params, else bfloat16, float16 or float32. Use ``None`` for a param without a
            copy.
        ema : (sequence or mapping of buffers, float), optional
            Averages of the params, given like `copy_out`, and a decay in [0, 1]. With ``w = 1 - decay``, rounded to the
            param's precision, an average `a` becomes ``a + w*(p - a)`` if ``w < 0.5``, else ``p - (p - a)*(1 - w)``,
            the formula of ``torch.lerp``; `p` is the param as it is stored. Params without a gradient are averaged and
            copied like the others.
        grad_norm : float, optional
            The norm of the gradients before `grad_scale`, returned by :func:`adaptk.accumulate` for the same buffers
            in the same order. `clip_norm` and `skip_nonfinite` then use it, so that the gradients are read only once.

        Returns
        -------
        StepInfo
            ``grad_norm`` (``None`` if it was not computed) and ``skipped``.

        Raises
        ------
        TypeError, ValueError, BufferError
            If gradients do not match the params, or a hyperparameter in `param_groups` is out of range. Params, states
            and step counts are then unchanged.

        Notes
        -----
        `zero_grad`, `copy_out` and `ema` work on each part of a param while it is in the cache. The results are bitwise
        identical to the same operations after the step. A skipped step writes no copies and no averages. The buffers of
        copies and averages must not overlap each other, a param, a state or a gradient. With `zero_grad`, gradients
        must not overlap each other.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> w = np.zeros(2)
        >>> opt = adaptk.SGD([w], lr=1.0)
        >>> opt.step([np.array([3.0, 4.0])], clip_norm=1.0)
        StepInfo(grad_norm=5.0, skipped=False)
        >>> w
        array([-0.6, -0.8])
        >>> grad, average = np.array([1.0, 1.0]), np.zeros(2)
        >>> info = opt.step([grad], zero_grad=True, ema=([average], 0.75))
        >>> grad, average
        (array([0., 0.]), array([-0.4 , -0.45]))
        >>> table = np.ones((4, 2))
        >>> rows = adaptk.SGD([table], lr=1.0)
        >>> info = rows.step([(np.array([2, 0, 2]), np.full((3, 2), 0.25))])
        >>> table[:, 0]
        array([0.75, 1.  , 0.5 , 1.  ])
        """
        if self._kept is not None:
            self._refuse_evaluated("step()")
        try:
            # Fast, because identical objects compare equal without a look at their contents.
            replaced = self.param_groups != self._own_groups
        except ValueError:  # comparing two arrays
            replaced = True
        if replaced:
            self._check_groups()
        return StepInfo(
            *self._plan.step(
                self._ordered(grads),
                self.param_groups,
                grad_scale,
                self.clip_norm if clip_norm is None else clip_norm,
                self.skip_nonfinite if skip_nonfinite is None else skip_nonfinite,
                zero_grad,
                None if copy_out is None else self._ordered(copy_out, "copy_out", "buffers"),
                None if ema is None else self._ordered_ema(ema),
                grad_norm,
            )
        )

    def catch_up(self) -> None:
        """Let all rows catch up with the steps that they have missed, as a row does when it has a gradient again.

        For ``sparse="catch_up"``, before the params are evaluated or exported; for other params it does nothing.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> table = np.ones((2, 2))
        >>> opt = adaptk.SGD([table], lr=0.5, weight_decay=0.5, decoupled=True, sparse="catch_up")
        >>> info = opt.step([(np.array([1]), np.ones((1, 2)))])
        >>> opt.catch_up()
        >>> table
        array([[0.75, 0.75],
               [0.25, 0.25]])
        """
        if self._kept is not None:
            self._refuse_evaluated("catch_up()")
        self._plan.catch_up(self.param_groups)

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """Move the params to the interim point ``p + alpha*v`` of Algorithm 8.6 while a block runs.

        Compute the gradient inside the block. Leaving the block restores every param bit for bit; then :meth:`step`
        applies the update. For ``RMSProp(nesterov=True)``.

        Raises
        ------
        ValueError
            If a group's rule takes its gradients at the params themselves.
        RuntimeError
            If look-aheads are nested, or a step is taken inside the block.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> w = np.array([1.0])
        >>> opt = adaptk.RMSProp([w], nesterov=True)
        >>> with opt.lookahead():
        ...     grad = 2 * w
        >>> info = opt.step([grad])
        """
        self._plan.begin_lookahead(self.param_groups)
        self._ahead = True
        try:
            yield
        finally:
            self._ahead = False
            self._plan.end_lookahead()

    # Values to evaluate with.

    def evaluation_params(self, out: Any = None) -> Any:
        """The params to evaluate a model with, for rules that take gradients at other params (Schedule-Free rules).

        Parameters
        ----------
        out : sequence or mapping of buffers, optional
            Buffers for the result: one per param, with the shape and dtype of the param. By default new arrays.

        Returns
        -------
        list or dict of buffers
            `out`, or the new arrays: a dict if the params are named. Params of groups with other rules are copied.

        Raises
        ------
        ValueError
            If no group has such a rule.
        RuntimeError
            Between :meth:`eval` and :meth:`train`.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> w = np.ones(2)
        >>> opt = adaptk.ScheduleFreeSGD([w], lr=0.5)
        >>> for _ in range(2):
        ...     info = opt.step([w.copy()])
        >>> w, opt.evaluation_params()[0]
        (array([0.3625, 0.3625]), array([0.375, 0.375]))
        """
        with self._lock:
            if self._kept is not None:
                self._refuse_evaluated("evaluation_params()")
            given = None if out is None else list(self._ordered(out, "out", "buffers"))
            if given is not None and len(given) != len(self._params):
                raise ValueError(f"out: {len(given)} buffers, expected {len(self._params)} as there are params")
            rules = [evaluation_rule(r) for r in self._group_rules]
            if not any(rules):
                raise ValueError(
                    f"{', '.join(dict.fromkeys(self.rules))}: models are evaluated with the params themselves"
                )
            points = [formats.full_like(p, 0.0, _core.layout(p, "params")[2]) for p in self._params]
            points = points if given is None else given
            for point, param in zip(points, self._params, strict=True):
                _backend.assign(point, _backend.to_numpy(param))
            steps = self._plan.steps()
            first = 0
            for rule, group in zip(rules, self.param_groups, strict=True):
                last = first + len(group["params"])
                # A param that has not been stepped has its initial value.
                moved = [i for i in range(first, last) if steps[i] > 0]
                if rule is not None and moved:
                    values = {h.name: group[h.name] for h in rule.rule.hyperparameters if h.name in group}
                    values = {n: v for n, v in values.items() if n != "lr" and n not in COMMON}
                    values = {n: v(self.step_count) if callable(v) else v for n, v in values.items()}
                    states = ([self._states[i][s.name] for i in moved] for s in rule.rule.states)
                    rule([points[i] for i in moved], [self._params[i] for i in moved], *states, step=1, **values)
                first = last
            return points if self._names is None else dict(zip(self._names, points, strict=True))

    def eval(self) -> None:
        """Move the params to the point to evaluate a model at, until :meth:`train`.

        For rules that take gradients at other params, such as the Schedule-Free rules. Does nothing if the params are
        there already.

        Raises
        ------
        ValueError
            If no group has such a rule.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> w = np.ones(2)
        >>> opt = adaptk.ScheduleFreeSGD([w], lr=0.5)
        >>> for _ in range(2):
        ...     info = opt.step([w.copy()])
        >>> opt.eval()
        >>> w
        array([0.375, 0.375])
        >>> opt.train()
        >>> w
        array([0.3625, 0.3625])
        """
        with self._lock:
            if self._kept is not None:
                return
            points = self.evaluation_params()
            kept = [_backend.copy(p) for p in self._params]
            for param, point in zip(self._params, self._ordered(points, "params", "buffers"), strict=True):
                _backend.assign(param, _backend.to_numpy(point))
            self._kept = kept

    def train(self) -> None:
        """Undo :meth:`eval`: move the params back, bit for bit. Does nothing without a preceding :meth:`eval`.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> w = np.ones(2)
        >>> opt = adaptk.ScheduleFreeSGD([w])
        >>> opt.eval()
        >>> opt.train()
        >>> w
        array([1., 1.])
        """
        with self._lock:
            for param, kept in zip(self._params, self._kept or (), strict=False):
                _backend.assign(param, _backend.to_numpy(kept))
            self._kept = None

    def _refuse_evaluated(self, what: str) -> NoReturn:
        raise RuntimeError(
            f"{what} between eval() and train(), where the params are those to evaluate with: call train()"
        )

    # State.

    @property
    def rules(self) -> tuple[str, ...]:
        """The names of the rules that the groups run."""
        return tuple(r.name for r in self._group_rules)

    @property
    def step_count(self) -> int:
        """The number of steps taken. Skipped ones do not count."""
        return int(self._plan.step_count)

    @property
    def state(self) -> Mapping[int | str, Mapping[str, Any]]:
        """The state arrays, not copies: ``state[param's index or name][name of the state]``."""
        with self._lock:
            keys: Sequence[int | str] = self._names if self._names is not None else self._places(0, len(self._params))
            return MappingProxyType({k: MappingProxyType(s) for k, s in zip(keys, self._states, strict=True)})

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume later, as a flat dict of arrays.

        Returns
        -------
        dict of str to array
            Copies of the states (``"state.<param>.<state>"``); step counts and hyperparameters as 0-d arrays; the name
            of each group's rule (``"param_groups.<group>.rule"``) as its ASCII codes. NumPy arrays, or tensors if the
            params are tensors. ``np.savez``, ``pickle`` and ``safetensors`` all accept it. Hyperparameters that are
            schedules are not included: give them to the constructor again when you resume.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> opt = adaptk.SGD({"w": np.zeros(2)}, momentum=0.9)
        >>> sorted(opt.state_dict())[-3:]
        ['state.w.momentum_buffer', 'state.w.step', 'step']
        """
        with self._lock:
            if self._kept is not None:
                self._refuse_evaluated("state_dict()")
            like = self._params[0]
            saved: dict[str, Any] = {"step": _backend.scalar(self.step_count, like)}
            if self._draws():
                saved["seed"] = _backend.scalar(self._seed, like)
            for key, states, step in zip(self.state, self._states, self._plan.steps(), strict=True):
                saved[f"state.{key}.step"] = _backend.scalar(step, like)
                for name, array in states.items():
                    if not isinstance(array, formats.Stored):
                        saved[f"state.{key}.{name}"] = _backend.copy(array)
                        continue
                    saved[f"state.{key}.{name}"] = _backend.copy(array.data)
                    if array.scales is not None:
                        saved[f"state.{key}.{name}.{formats.scales_name(array.format)}"] = _backend.copy(array.scales)
            for i, (rule, group) in enumerate(zip(self._group_rules, self.param_groups, strict=True)):
                saved[f"param_groups.{i}.rule"] = _backend.text(rule.name, like)
                for h in rule.hyperparameters:
                    value = group[h.name]
                    if not callable(value):
                        value = _backend.to_numpy(value).item()
                        saved[f"param_groups.{i}.{h.name}"] = _backend.scalar(
                            int(value) if h.range == "bool" else float(value), like
                        )
            return saved

    def _draws(self) -> bool:
        """Whether any state or param is rounded stochastically."""
        if "sr" in self._param_formats:
            return True
        return any(
            isinstance(array, formats.Stored) and formats.is_stochastic(array.format)
            for states in self._states
            for array in states.values()
        )

    def _in_own_formats(self, have: dict[str, Any]) -> None:
        """Convert saved states with codes to the formats of this optimizer."""
        for key, param, states in zip(self.state, self._params, self._states, strict=True):
            for name, array in states.items():
                at = f"state.{key}.{name}"
                if at not in have:
                    continue
                own = formats.scales_name(array.format) if isinstance(array, formats.Stored) else None
                saved = next((s for s in formats.SAVED_SCALES if f"{at}.{s}" in have), None)
                coded = saved is not None and have[at].dtype.name in ("int8", "uint8")
                if coded and saved == own and have[at].dtype == _backend.to_numpy(array.data).dtype:
                    continue
                if coded and saved is not None:
                    codes, scales = (np.ascontiguousarray(x) for x in (have[at], have.pop(f"{at}.{saved}")))
                    of = formats.format_of_saved(saved, name, codes.dtype.name)
                    shape = _core.layout(param, "params")[0] if formats.is_packed(of) else codes.shape
                    if formats.stored_shape(of, shape) != codes.shape:
                        wanted = formats.stored_shape(of, shape)
                        raise ValueError(f"state_dict[{at!r}]: shape {codes.shape}, expected {wanted} in {of}")
                    have[at] = formats.dequantize((codes, scales, of), shape)
                if own is not None and have[at].dtype.kind == "f":
                    values = np.ascontiguousarray(have[at], np.float32)
                    have[at], have[f"{at}.{own}"], _ = formats.quantize(values, array.format, seed=self._seed)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned.

        Parameters
        ----------
        state_dict : mapping of str to array
            From an optimizer with the same rules over params of the same shapes. Arrays are copied. Hyperparameters
            are loaded too, except those for which this optimizer has a schedule.

        Raises
        ------
        TypeError, ValueError
            If keys are missing or unexpected, rules, shapes or dtypes differ, step counts or hyperparameters are out of
            range, or the state was saved with a schedule and this optimizer has none. Nothing is changed in this case.

        Notes
        -----
        To continue at a constant learning rate from a state that was saved with a schedule, add the rate to the dict:
        ``opt.load_state_dict({**saved, "param_groups.0.lr": 1e-4})``. States saved by adaptk 0.1 do not name their
        rules; they are loaded if all keys and shapes match.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> w = np.zeros(2)
        >>> opt = adaptk.Adam([w])
        >>> info = opt.step([np.ones(2)])
        >>> later = adaptk.Adam([w.copy()])
        >>> later.load_state_dict(opt.state_dict())
        >>> later.step_count
        1
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: expected a mapping, got {type(state_dict).__name__}")
        with self._lock:
            if self._kept is not None:
                self._refuse_evaluated("load_state_dict()")
            if not state_dict:
                raise ValueError("state_dict: is empty, expected what state_dict() of an optimizer has returned")
            if "param_groups" in state_dict and "state" in state_dict:
                raise ValueError(
                    "state_dict: it is that of an optimizer of torch.optim or adaptk.torch; load it into "
                    "adaptk.torch's class of the same name"
                )
            want = self.state_dict()
            have = {str(k): _backend.to_numpy(_backend.named_again(v)) for k, v in state_dict.items()}
            for i, rule in enumerate(self._group_rules):
                want.pop(f"param_groups.{i}.rule")
                named = have.pop(f"param_groups.{i}.rule", None)
                if named is not None and (name := _backend.read_text(named)) != rule.name:
                    raise ValueError(
                        f"state_dict: group {i} was saved by the rule {name!r}, and this optimizer runs {rule.name!r} "
                        f"there; {_how_to_create(name)}"
                    )
            self._in_own_formats(have)
            seed = formats.check_seed(int(have.pop("seed"))) if "seed" in have else self._seed
            want.pop("seed", None)
            scheduled = {
                f"param_groups.{i}.{h.name}"
                for i, rule in enumerate(self._group_rules)
                for h in rule.hyperparameters
                if h.range != "bool"
            }
            missing = sorted(set(want) - set(have) - scheduled)
            unexpected = sorted(set(have) - set(want) - scheduled)
            if missing or unexpected:
                found = [("missing", missing), ("unexpected", unexpected)]
                raise ValueError("state_dict: " + ", ".join(f"{what} {_few(keys)}" for what, keys in found if keys))
            for key in sorted(scheduled - have.keys()):
                _, number, name = key.split(".")
                if not callable(value := self.param_groups[int(number)][name]):
                    why = ", for it was" if name == "lr" else ": it is missing, or was"
                    raise ValueError(
                        f"state_dict: no {key!r}{why} saved with a schedule, and this optimizer has "
                        f"{name}={value!r}; give its constructor the schedule again, or add the "
                        f"{'rate' if name == 'lr' else 'number'} to the dict to go on without one"
                    )
            for key, value in want.items():
                if key not in have:
                    continue
                wanted = _backend.to_numpy(value)
                if have[key].shape != wanted.shape:
                    raise ValueError(f"state_dict[{key!r}]: shape {have[key].shape}, expected {wanted.shape}")
                # Codes and remainders of another width have another meaning.
                casting: Any = "no" if wanted.dtype.name in ("int8", "uint8", "int16") else "same_kind"
                if have[key].dtype.kind not in "fiub" or not np.can_cast(have[key].dtype, wanted.dtype, casting):
                    raise ValueError(f"state_dict[{key!r}]: dtype {have[key].dtype}, expected {wanted.dtype}")
            steps = [int(have[f"state.{key}.step"]) for key in self.state]
            count = int(have["step"])
            if min(steps) < 0 or count < 0:
                raise ValueError("state_dict: a step count below 0")
            groups = []
            # Hyperparameters that are buffers remain the same objects.
            on_device: list[dict[str, Any]] = []
            for i, (rule, group) in enumerate(zip(self._group_rules, self.param_groups, strict=True)):
                loaded = dict(group)
                for h in rule.hyperparameters:
                    key = f"param_groups.{i}.{h.name}"
                    if key in have and not callable(group[h.name]):
                        loaded[h.name] = float(have[key])
                self._check_values(rule, loaded)
                loaded.update({h.name: bool(loaded[h.name]) for h in rule.hyperparameters if h.range == "bool"})
                on_device.append({h.name: group[h.name] for h in rule.hyperparameters if _core.on_cuda(group[h.name])})
                groups.append(loaded)
            self._plan.set_steps(steps, count)  # first, because it raises an error while a step runs
            for param, states in zip(self.state, self._states, strict=True):
                for name, array in states.items():
                    if not isinstance(array, formats.Stored):
                        _backend.assign(array, have[f"state.{param}.{name}"])
                        continue
                    _backend.assign(array.data, have[f"state.{param}.{name}"])
                    if array.scales is not None:
                        at = f"state.{param}.{name}.{formats.scales_name(array.format)}"
                        _backend.assign(array.scales, have[at])
            self._seed = seed
            self._plan.set_seed(seed)
            for group, loaded, buffers in zip(self.param_groups, groups, on_device, strict=True):
                for name, buffer in buffers.items():
                    _backend.assign(buffer, np.reshape(np.float64(loaded[name]), _core.layout(buffer, name)[0]))
                group.update({**loaded, **buffers})

    # Copies.

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            if self._ahead:
                raise RuntimeError("an optimizer inside lookahead() cannot be copied or pickled: leave the block first")
            state = {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_plan", "_own_groups")}
            state["_steps"] = self._plan.steps(), self.step_count
            return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        rest = dict(state)
        steps, count = rest.pop("_steps")
        groups = rest.pop("param_groups")
        self.__dict__.update(rest)
        self.__dict__.setdefault("_sparse", "lazy")  # saved by adaptk 0.1
        self.__dict__.setdefault("_sparse_modes", ["lazy"] * len(self._group_rules))
        self._lock = threading.RLock()
        self._own_groups = [
            ParamGroup(tuple(group["params"]), {k: v for k, v in group.items() if k != "params"}) for group in groups
        ]
        self.param_groups = list(self._own_groups)
        self._make_plan(steps, count)

    def _make_plan(self, steps: list[int], count: int) -> None:
        """Make a plan of all groups, with the numbers of steps that they have taken."""
        self._plan = _core.Plan(self.capturable)
        first = 0
        for i, (rule, group) in enumerate(zip(self._group_rules, self._own_groups, strict=True)):
            params = group["params"]
            last = first + len(params)
            self._add_to_plan(
                rule,
                params,
                self._states[first:last],
                self._labels[first:last],
                self._param_formats[i],
                self._sparse_modes[i],
            )
            first = last
        self._plan.set_steps(steps, count)
        self._plan.set_seed(self._seed)

    def __copy__(self) -> NoReturn:
        raise TypeError("a shallow copy of an optimizer would share its states; use copy.deepcopy")

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for rule, group in zip(self._group_rules, self.param_groups, strict=True):
            values = ", ".join(f"{h.name}={group[h.name]!r}" for h in rule.hyperparameters)
            lines.append(f"  {rule.name}: {len(group['params'])} params, {values}")
        return "\n".join([*lines, ")"])


_signature = inspect.signature(Optimizer.step)
Optimizer.step.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[p.replace(default=p.empty) if p.name == "grads" else p for p in _signature.parameters.values()]
)
# Without arguments that exist only for a clear error.
Optimizer.__signature__ = inspect.signature(Optimizer).replace(  # type: ignore[attr-defined]
    parameters=[p for p in inspect.signature(Optimizer).parameters.values() if p.kind is not p.VAR_POSITIONAL]
)
