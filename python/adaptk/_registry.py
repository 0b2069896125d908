"""The registry of rules in the compiled core, as Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from adaptk import _core
from adaptk._names import hint

#: The systems whose defaults, places of eps, momentum forms and initial states a rule can take.
CONVENTIONS = ("book", "torch", "keras", "tf1", "optax")


@dataclass(frozen=True)
class Hyperparameter:
    """A number or a flag that a rule takes.

    Attributes
    ----------
    name : str
    default : float or bool
        In the convention of the book; :meth:`Rule.defaults` returns the defaults of other conventions.
    range : str
        Valid values as an interval such as ``"[0, 1)"``, or ``"bool"``.
    meaning : str
    common : bool
        Whether all rules have it (weight decay, maximize, gradient scale).
    """

    name: str
    default: float | bool
    range: str
    meaning: str
    common: bool


@dataclass(frozen=True)
class State:
    """A state of a rule: for each param an array of its shape, or one number for each row, column, slice or tensor.

    Attributes
    ----------
    name : str
    initial : float
        The initial value, unless `initial_from` is given.
    initial_from : str or None
        The hyperparameter whose value is the initial value. For rules made at run time also ``"param"`` or ``"grad"``,
        if the state starts as a copy of the param or of the first gradient.
    option : str or None
        The argument of the optimizer classes that sets the initial value.
    nonnegative : bool
        Whether it is never below zero, as second moments are.
    per : str
        What the state has one number for. ``"element"``: the shape is that of the param; ``"tensor"``: a 0-d array;
        ``"row"``: shape ``(*param.shape[:-1], 1)``; ``"column"``: shape ``(*param.shape[:-2], 1, param.shape[-1])``;
        ``"slice"``: shape ``(param.shape[0],)``, for embedding tables. A param with fewer than two axes is one row,
        and a 0-d param is one slice. All states but those per element have the dtype of the computation.
    """

    name: str
    initial: float
    initial_from: str | None
    option: str | None
    nonnegative: bool
    per: str = "element"

    def shape_beside(self, param: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the state for a param of this shape.

        Examples
        --------
        >>> import adaptk
        >>> adaptk.rules()["novograd"].states[1].shape_beside((4, 3))
        ()
        """
        if self.per == "slice":
            return (*param[:1],) or (1,)
        axis = {"row": len(param) - 1, "column": len(param) - 2}.get(self.per, -1)
        return () if self.per == "tensor" else tuple(1 if i == axis else n for i, n in enumerate(param))


@dataclass(frozen=True)
class Rule:
    """One update rule: what it computes, what it takes and where it comes from.

    Attributes
    ----------
    name : str
        The name of the rule and of its function in :mod:`adaptk.ops`.
    class_names : tuple of str
        The optimizer classes that run it.
    variant : tuple of str
        The options of those classes that choose it, such as ``("centered",)``.
    summary, formula, source : str
        One line, the update, the paper.
    hyperparameters : tuple of Hyperparameter
    states : tuple of State
        In the order of the arguments in :mod:`adaptk.ops`.
    presets : mapping of str to mapping of str to float
        For each convention, the values that differ from those of the book.
    program : bytes or None
        The program of a rule that :func:`adaptk.rule` has made.
    carried : tuple of str
        The hyperparameters that each step updates for the next one; see `carried` of :func:`adaptk.rule`.
    evaluation : str
        The rule that computes the point to evaluate a model at, if that is not the param.
    reduces : str
        The reductions of a step before the update: ``"tensor"``, over each tensor; ``"all"``, over all tensors that it
        updates (and possibly also over each tensor, or its rows and columns); or ``""``, none.
    shaped : bool
        Whether the rule has states that are not per element, or depends on the rows and columns of a tensor.
    catch_up : str
        How rows without a gradient catch up (``sparse="catch_up"``): ``"exact"`` up to rounding; ``"approximate"`` if
        only the decay of the moments is applied, and the change of the param that they would have caused is left out;
        or ``""`` if the rule has no closed form.
    """

    name: str
    class_names: tuple[str, ...]
    variant: tuple[str, ...]
    summary: str
    formula: str
    source: str
    hyperparameters: tuple[Hyperparameter, ...]
    states: tuple[State, ...]
    presets: Mapping[str, Mapping[str, float]]
    program: bytes | None = None
    carried: tuple[str, ...] = ()
    evaluation: str = ""
    reduces: str = ""
    shaped: bool = False
    catch_up: str = ""
    _key: str = ""

    @property
    def key(self) -> str:
        """The rule's key in the core: its name, unless it was made at run time."""
        return self._key or self.name

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.summary}", *("    " + line for line in self.formula.splitlines())]
        lines += [f"  source  {self.source}", f"  class   {self.spelling}"]
        states = ", ".join(f"{s.name} = {s.initial_from or format(s.initial, 'g')}" for s in self.states)
        lines += [f"  states  {states or 'none'}", "  hyperparameters"]
        rows = [(h.name, f"{h.default!r}", h.range, h.meaning) for h in self.hyperparameters]
        return "\n".join([*lines, *("    " + line for line in _aligned(rows))])

    @property
    def spelling(self) -> str:
        """The class that runs the rule, with the options that choose it, such as ``RMSProp(centered=True)``."""
        options = ", ".join(f"{word}=..." if word == "momentum" else f"{word}=True" for word in self.variant)
        return f"{self.class_names[0]}({options})" if options else self.class_names[0]

    def __reduce__(self) -> Any:
        return (_rule_named, (self.name,)) if self.program is None else (rule_of_program, (self.program,))

    @cached_property
    def conventions(self) -> tuple[str, ...]:
        """The conventions that this rule can follow, the book's first."""
        return tuple(c for c in CONVENTIONS if c == "book" or c in self.presets)

    def _preset(self, convention: str) -> Mapping[str, float]:
        if convention not in CONVENTIONS:
            raise ValueError(
                f"convention: {convention!r} is not one of {', '.join(CONVENTIONS)}{hint(convention, CONVENTIONS)}"
            )
        if convention not in self.conventions:
            raise ValueError(
                f"convention: {self.name} has no convention {convention!r}; it has {', '.join(self.conventions)}"
            )
        return self.presets.get(convention, {})

    def defaults(self, convention: str = "book") -> dict[str, float | bool]:
        """The default of every hyperparameter under a convention.

        Raises
        ------
        ValueError
            If the rule does not have that convention.

        Examples
        --------
        >>> import adaptk
        >>> adaptk.rules()["rmsprop"].defaults("torch")["rho"]
        0.99
        """
        preset = self._preset(convention)
        values: dict[str, float | bool] = {}
        for h in self.hyperparameters:
            value = preset.get(h.name, h.default)
            values[h.name] = bool(value) if isinstance(h.default, bool) else float(value)
        return values

    def initial_states(
        self,
        convention: str = "book",
        hyperparameters: Mapping[str, float] | None = None,
        options: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """The initial value of each state.

        Parameters
        ----------
        convention : str
        hyperparameters : mapping, optional
            Values of hyperparameters, for states whose initial value is a hyperparameter.
        options : mapping, optional
            Initial values by the name of the option, such as ``initial_accumulator_value``.
        """
        preset = self._preset(convention)
        values = {**self.defaults(convention), **(hyperparameters or {})}
        initial: dict[str, float] = {}
        for s in self.states:
            if s.option is not None and options is not None and s.option in options:
                initial[s.name] = float(options[s.option])
            elif s.initial_from in ("param", "grad") and s.initial_from not in values:
                initial[s.name] = 0.0  # the first step sets it
            elif s.initial_from is not None:
                initial[s.name] = float(values[s.initial_from])
            else:
                initial[s.name] = float(preset.get(s.name, s.initial))
        return initial


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


class _Table(dict[str, Rule]):
    """Rules by name, printed as a table."""

    def __missing__(self, name: str) -> Rule:
        from adaptk.catalogue import find

        if name in ROW_WISE:
            return ROW_WISE[name]
        if (found := find(name)) is not None:
            return found.rule
        raise KeyError(name)

    def __repr__(self) -> str:
        rows = [(r.name, r.spelling, ", ".join(s.name for s in r.states) or "-") for r in self.values()]
        return "\n".join(_aligned([("rule", "class", "states"), *rows]))


def _rule_named(name: str) -> Rule:
    return ROW_WISE[name] if name in ROW_WISE else RULES[name]


def _made_of(r: dict[str, Any], program: bytes | None = None) -> Rule:
    presets: dict[str, dict[str, float]] = {}
    for convention, name, value in r["presets"]:
        values = presets.setdefault(convention, {})
        if name:
            values[name] = value
    return Rule(
        name=r["name"],
        class_names=tuple(r["class_name"].split()),
        variant=tuple(r["variant"].split()),
        summary=r["summary"],
        formula=r["formula"],
        source=r["source"],
        hyperparameters=tuple(Hyperparameter(**h) for h in r["hyperparameters"]),
        states=tuple(State(**s) for s in r["states"]),
        presets=MappingProxyType({c: MappingProxyType(v) for c, v in presets.items()}),
        program=program,
        carried=tuple(r["carried"]),
        evaluation=r["evaluation"],
        reduces=r["reduces"],
        shaped=r["shaped"],
        catch_up=r["catch_up"],
        _key=r["key"],
    )


_made_at_run_time: dict[str, Rule] = {}  # by key


def rule_of_program(program: bytes) -> Rule:
    """The rule of these bytes: always the same object.

    Raises
    ------
    ValueError
        If the bytes are not a rule.
    """
    described = _core.load_rule(program)
    key = described["key"]
    return _made_at_run_time.get(key) or _made_at_run_time.setdefault(key, _made_of(described, program))


# In the order of the core's list, then registered rules that were made at run time: see add() and remove().
_rules = {r["name"]: _made_of(r) for r in _core.registry()}
RULES: Mapping[str, Rule] = MappingProxyType(_rules)

#: The rules that keep one number for each row of a param: for NumPy, PyTorch and C, on the CPU and CUDA devices.
ROW_WISE: Mapping[str, Rule] = MappingProxyType({r["name"]: _made_of(r) for r in _core.row_wise_registry()})


def rule_of(key: str) -> Rule:
    """The rule with this key (:attr:`Rule.key`), registered or not."""
    return _made_at_run_time[key] if "@" in key else _rule_named(key)


def add(rule: Rule) -> None:
    """Register a rule that was made at run time, replacing one of the same name."""
    _rules[rule.name] = rule


def remove(rule: Rule) -> None:
    """Remove a rule, unless another one has replaced it."""
    if RULES.get(rule.name) is rule:
        del _rules[rule.name]


def rules(*, catalogue: bool = False) -> dict[str, Rule]:
    """The registry of update rules.

    Parameters
    ----------
    catalogue : bool
        Whether to include the rules of the catalogue, which are programs read from files of the package. Without this
        option the dict does not list them, but looking up a key still finds them, and also the row-wise rules
        (``rowwise_adagrad``, ``rowwise_adam``).

    Returns
    -------
    dict of str to Rule
        Rules by name, in the order of the registry. Each call returns a new dict.

    Examples
    --------
    >>> import adaptk
    >>> adam = adaptk.rules()["adam"]
    >>> [s.name for s in adam.states]
    ['exp_avg', 'exp_avg_sq']
    >>> adam.defaults()["beta2"]
    0.999
    >>> adaptk.rules()["ademamix"].class_names
    ('AdEMAMix',)
    """
    found = _Table(RULES)
    if catalogue:
        from adaptk.catalogue import all_rules

        for traced in all_rules():
            found.setdefault(traced.name, traced.rule)
    return found
