"""Options for any rule: :func:`modify` makes a new rule from an existing one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adaptk import catalogue
from adaptk._names import hint
from adaptk._program import Node, read_program
from adaptk._registry import RULES, Rule
from adaptk._rule import TracedRule, _Parts, _Texts, build, read_rule
from adaptk._trace import (
    _SHAPE_NUMBERS,
    _apply,
    _lift,
    _reduce,
    common_of,
    decay_of,
    floor,
    maximum,
    mean,
    minimum,
    norm,
    shape_of,
    stored,
    where,
)

_DECAYS = ("cautious", "corrected", "huber")
_FILTERS = ("grokfast", "mars", "mars_clipped")
# What options add: hyperparameters with default, range and meaning, and states with initial values.
_HYPERS: dict[str, dict[str, tuple[float, str, str]]] = {
    "corrected": {"max_lr": (0.0, "[0, inf)", "the largest learning rate of the run, which the decay is relative to")},
    "huber": {"huber_delta": (0.1, "(0, inf)", "the magnitude from which on params decay by a constant")},
    "grokfast": {
        "grokfast_decay": (0.98, "[0, 1)", "decay of the gradients' average"),
        "grokfast_gain": (2.0, "(-inf, inf)", "weight of the average that is added to the gradient"),
    },
    "mars": {
        "mars_gamma": (0.025, "(-inf, inf)", "weight of the change of the gradient"),
        "mars_beta": (0.95, "[0, 1)", "decay of the first moment that the weight is relative to"),
    },
    "mars_clipped": {
        "mars_gamma": (0.025, "(-inf, inf)", "weight of the change of the gradient"),
        "mars_beta": (0.95, "[0, 1)", "decay of the first moment that the weight is relative to"),
        "mars_clip": (1.0, "(0, inf)", "the largest norm of what a tensor's gradient becomes"),
    },
    "lookahead": {
        "lookahead_steps": (5.0, "(0, inf)", "steps from one move of the slow params to the next"),
        "lookahead_rate": (0.5, "[0, 1]", "how far the slow params move"),
    },
}
_STATES: dict[str, dict[str, float | str]] = {
    "grokfast": {"grokfast_avg": "grad"},
    "mars": {"mars_prev_grad": "grad"},
    "mars_clipped": {"mars_prev_grad": "grad"},
    "amsgrad": {"amsgrad_max": 0.0},
    "lookahead": {"slow_param": "param"},
}
_FORMULAS = {
    "grokfast": "a = grokfast_decay*a + (1 - grokfast_decay)*g;  g += grokfast_gain*a",
    "mars": "g = g + mars_gamma*mars_beta/(1 - mars_beta)*(g - g_prev)",
    "mars_clipped": "g = c*min(1, mars_clip/|c|),  c = g + mars_gamma*mars_beta/(1 - mars_beta)*(g - g_prev)",
    "nesterov": "p by the first moment of a step later",
    "amsgrad": "p by the largest second moment so far",
    "cautious": "p only where p_old - p has the sign of g",
    "scaled": "p_old - p divided by the share of such elements in the tensor, at least 0.001",
    "lookahead": "every lookahead_steps: slow += lookahead_rate*(p - slow);  p = slow",
}
_SOURCES = {
    "grokfast": "Lee et al. 2024",
    "mars": "Yuan et al. 2024",
    "mars_clipped": "Yuan et al. 2024",
    "scaled": "Liang et al. 2024",
    "nesterov": "Dozat 2016",
    "amsgrad": "Reddi et al. 2018",
    "cautious": "Liang et al. 2024",
    "cautious_decay": "Chen et al. 2025",
    "corrected_decay": "Defazio 2025",
    "huber_decay": "Guo, Fan 2025",
    "lookahead": "Zhang et al. 2019",
}
_FIRST = ("exp_avg",)
_SECOND = ("exp_avg_sq", "square_avg")


class _Formula:
    """A rule's program, which can be traced again with other values in place of its own."""

    def __init__(self, rule: Rule, program: bytes) -> None:
        self.scalars, self.elements, self.results, self.carried, self.reductions = read_program(program)
        self.own = [h.name for h in rule.hyperparameters if not h.common]
        self.states = [s.name for s in rule.states]
        self.per = [s.per for s in rule.states]

    def at(self, state: str) -> int:
        """The node of a state's new value."""
        return self.results[1 + self.states.index(state)]

    def __call__(
        self, p: Any, g: Any, states: Sequence[Any], h: Any, t: Any, swap: dict[int, Any] | None = None
    ) -> tuple[list[Any], list[Any]]:
        """The new param and states, and the carried numbers; `swap` maps nodes to the values that replace them."""
        leaves = {"param": p, "grad": g, "param_as_stored": stored(t)}
        numbers: dict[int, Any] = {}
        values: dict[int, Any] = {}
        # Each pass evaluates the nodes up to the next reductions.
        for _ in range(len(self.reductions) + 2):
            for i, n in enumerate(self.scalars):
                if i in numbers or (n.op == "reduced" and self.reductions[n.a][2] not in values):
                    continue
                if all(k in numbers for k in n.operands):
                    numbers[i] = self._number(n, numbers, values, states, h, t)
            for i, n in enumerate(self.elements):
                if i in values or (n.op == "scalar" and n.a not in numbers):
                    continue
                if n.op == "reduced" and self.reductions[n.a][2] not in values:
                    continue
                if swap is not None and i in swap:
                    values[i] = swap[i]
                elif n.op == "scalar":
                    values[i] = _lift(t._trace, numbers[n.a], True)
                elif n.op == "state":
                    values[i] = states[n.a]
                elif n.op == "reduced":
                    what, over, element = self.reductions[n.a]
                    values[i] = _reduce(what, values[element], over)
                elif n.op in leaves:
                    values[i] = leaves[n.op]
                elif all(k in values for k in n.operands):
                    values[i] = _apply(n.op, *(values[k] for k in n.operands))
        of = ("element", *self.per)
        return [(numbers if s == "tensor" else values)[i] for i, s in zip(self.results, of, strict=True)], [
            numbers[i] for _, i in self.carried
        ]

    def _number(
        self, n: Node, numbers: Mapping[int, Any], values: Mapping[int, Any], states: Sequence[Any], h: Any, t: Any
    ) -> Any:
        if n.op == "state":
            return states[n.a]
        if n.op == "shape":
            return shape_of(t, _SHAPE_NUMBERS[n.a])
        if n.op == "number":
            return t._trace.number(n.value)
        if n.op == "step":
            return t
        if n.op == "hyper":
            return getattr(h, self.own[n.a]) if n.a < len(self.own) else common_of(h, t, n.a - len(self.own))
        if n.op == "reduced":
            what, over, element = self.reductions[n.a]
            return _reduce(what, values[element], over)
        return _apply(n.op, *(numbers[k] for k in n.operands))


def _program_of(rule: Rule) -> bytes:
    if rule.program is not None:
        return rule.program
    from adaptk.catalogue.compiled import FUNCTIONS

    own = [h for h in rule.hyperparameters if not h.common]
    texts = _Texts(f"compiled_{rule.name}", None, rule.summary, rule.formula, rule.source, "")
    states = {s.name: s.initial_from or s.initial for s in rule.states}
    parts = _Parts(states, {h.name: h.default for h in own}, {}, (), {h.name: h.range for h in own}, {}, {})
    return build(texts, parts, FUNCTIONS[rule.name])


def _state_among(names: Sequence[str], rule: Rule, option: str) -> str:
    found = next((s.name for s in rule.states if s.name in names), None)
    if found is None:
        raise ValueError(f"{option}: {rule.name} has no state {' or '.join(names)}")
    return found


def modify(
    rule: str | TracedRule | Rule,
    *,
    name: str | None = None,
    cautious: bool | str = False,
    decay: str | Iterable[str] = (),
    filter: str | None = None,
    nesterov: bool = False,
    amsgrad: bool = False,
    lookahead: bool = False,
) -> TracedRule:
    """Make a variant of a rule with options that are not in its paper.

    Parameters
    ----------
    rule : str, TracedRule or Rule
        Any rule: a name in :func:`rules` or the catalogue, or a rule made by :func:`rule`.
    name : str, optional
        The name of the new rule; by default made from the name of the rule and the options.
    cautious : bool or "scaled"
        Change an element only if the change goes against the gradient (Liang et al. 2024). With ``"scaled"``, the
        changes are divided by the fraction of elements that change, in each tensor, or by 0.001 if that is larger.
    decay : {"cautious", "corrected", "huber"} or several of them
        A variant of decoupled weight decay, ``p -= lr * weight_decay * p``, which becomes the default. ``"cautious"``:
        applied only to elements whose step goes towards zero (Chen et al. 2025). ``"corrected"``: multiplied by
        ``lr / max_lr`` (Defazio 2025). ``"huber"``: with `p` clipped to ``[-huber_delta, huber_delta]`` (Guo, Fan
        2025).
    filter : {"grokfast", "mars", "mars_clipped"}, optional
        A filter for the gradient before the rule. ``"grokfast"`` adds the average of the gradients (Lee et al. 2024).
        ``"mars"`` adds the change of the gradient (Yuan et al. 2024, without clipping). ``"mars_clipped"`` also clips
        the norm of the sum in each tensor.
    nesterov : bool
        Replace the first moment, `exp_avg`, by its value one step later with the same gradient.
    amsgrad : bool
        Divide by the largest second moment so far (Reddi et al. 2018).
    lookahead : bool
        Keep slow params. Every few steps, move them towards the params, and continue from there (Zhang et al. 2019).

    Returns
    -------
    TracedRule
        A program, even if the rule is compiled, with additional hyperparameters and states for the options. Everything
        else is bitwise identical to the rule. The defaults are those of the convention of the book. The new rule is
        not registered.

    Raises
    ------
    TypeError, ValueError
        If the rule or an option is unknown, or the rule does not have the state that an option needs.

    Notes
    -----
    The options are applied in this order: `filter`, the rule with `nesterov` and `amsgrad`, `cautious`, `decay`,
    `lookahead`. For averages of the params over time, use the argument `ema` of :meth:`Optimizer.step`.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> careful = adaptk.modify("adamw", cautious=True, decay="cautious")
    >>> careful.name
    'adamw_cautious_cautious_decay'
    >>> w = np.ones(2)
    >>> opt = careful.Optimizer([w], lr=0.1, weight_decay=0.1)
    >>> info = opt.step([np.array([1.0, -1.0])])
    >>> w.round(3)
    array([0.89, 1.1 ])
    """
    of = _rule_of(rule)
    decays = (decay,) if isinstance(decay, str) else tuple(decay)
    for given, known, what in ((decays, _DECAYS, "decay"), ((filter,) if filter else (), _FILTERS, "filter")):
        for option in given:
            if option not in known:
                raise ValueError(f"{what}: {option!r} is not one of {', '.join(known)}{hint(option, known)}")
    if isinstance(cautious, str) and cautious != "scaled":
        raise ValueError(f"cautious: {cautious!r} is not True, False or 'scaled'")
    scaled = cautious == "scaled"
    flags = {"nesterov": nesterov, "amsgrad": amsgrad, "cautious": scaled or cautious, "lookahead": lookahead}
    for option, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{option}: expected a bool, got {type(value).__name__}")
    chosen = [*(() if filter is None else (filter,)), *(o for o, on in flags.items() if on)]
    if scaled:
        chosen.insert(chosen.index("cautious") + 1, "scaled")
    words = [*chosen, *(f"{d}_decay" for d in dict.fromkeys(decays))]
    if not words:
        raise ValueError("modify: no option is given")
    formula = _Formula(of, _program_of(of))
    if decays and any(n.op == "hyper" and n.a >= len(formula.own) for n in formula.scalars):
        raise ValueError(f"decay: {of.name} has a decay of its own")
    added: dict[str, float | str] = {}
    extra: dict[str, tuple[float, str, str]] = {}
    for option in (*chosen, *decays):
        added.update(_STATES.get(option, {}))
        extra.update(_HYPERS.get(option, {}))
    if clash := added.keys() & set(formula.states) | extra.keys() & set(formula.own):
        raise ValueError(f"{of.name} has {min(clash)} already: an option is given twice")
    if added and any(s != "element" for s in formula.per):
        raise ValueError(f"{of.name} has states that are not for each element, and no options that add states")
    first = _state_among(_FIRST, of, "nesterov") if nesterov else ""
    second = _state_among(_SECOND, of, "amsgrad") if amsgrad else ""
    count = len(formula.states)

    def function(p: Any, g: Any, *rest: Any) -> Any:
        *states, h, t = rest
        inner, new = states[:count], dict(zip(added, states[count:], strict=True))
        amount: Any = 0.0
        if decays:
            amount = (h.lr * h.lr / h.max_lr if "corrected" in decays else h.lr) * decay_of(h, t)
            p = stored(t) if {"cautious", "huber"} & set(decays) else stored(t) * (1 - amount)
        gradient = g
        if filter == "grokfast":
            new["grokfast_avg"] = h.grokfast_decay * new["grokfast_avg"] + (1 - h.grokfast_decay) * g
            gradient = g + h.grokfast_gain * new["grokfast_avg"]
        elif filter is not None:
            gradient = g + h.mars_gamma * (h.mars_beta / (1 - h.mars_beta)) * (g - new["mars_prev_grad"])
            if filter == "mars_clipped":
                gradient = gradient * minimum(1.0, h.mars_clip / norm(gradient))
            new["mars_prev_grad"] = g
        results, carried = formula(p, gradient, inner, h, t)
        swap = {}
        if nesterov:
            k = formula.states.index(first)
            again = [*inner[:k], results[1 + k], *inner[k + 1 :]]
            swap[formula.at(first)] = formula(p, gradient, again, h, t)[0][1 + k]
        if amsgrad:
            new["amsgrad_max"] = maximum(new["amsgrad_max"], results[1 + formula.states.index(second)])
            swap[formula.at(second)] = new["amsgrad_max"]
        to, *results = formula(p, gradient, inner, h, t, swap)[0][:1] + results[1:] if swap else results
        if cautious:
            moves = ((to < p) & (g > 0)) | ((to > p) & (g < 0))
            if scaled:
                to = p - where(moves, (p - to) * (1 / maximum(mean(where(moves, 1.0, 0.0)), 1e-3)), 0.0)
            else:
                to = where(moves, to, p)
        if {"cautious", "huber"} & set(decays):
            part = minimum(maximum(p, -h.huber_delta), h.huber_delta) if "huber" in decays else p
            less = amount * part
            if "cautious" in decays:
                less = where(((p >= to) & (p >= 0)) | ((p <= to) & (p <= 0)), less, 0.0)
            to = to - less
        if lookahead:
            moves = t - h.lookahead_steps * floor(t / h.lookahead_steps) == 0
            slow = new["slow_param"] + h.lookahead_rate * (to - new["slow_param"])
            new["slow_param"] = where(moves, slow, new["slow_param"])
            to = where(moves, slow, to)
        return (to, *results, *new.values(), *carried)

    return read_rule(build(*_described(of, name, words, formula, added, extra, bool(decays)), function))


def _rule_of(rule: str | TracedRule | Rule) -> Rule:
    if isinstance(rule, str):
        known = [*RULES, *catalogue.CLASSES]
        found = catalogue.find(rule) if rule in catalogue.CLASSES else RULES.get(rule)
        if found is None:
            raise ValueError(f"rule: {rule!r} is not one of {', '.join(known)}{hint(rule, known)}")
        rule = found
    if isinstance(rule, TracedRule):
        rule = rule.rule
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a rule or its name, got {type(rule).__name__}")
    if any(s.per == "slice" for s in rule.states):
        raise ValueError(f"rule: {rule.name} keeps one number for each slice; options are for formulas of an element")
    return rule


def _described(
    of: Rule,
    name: str | None,
    words: Sequence[str],
    formula: _Formula,
    added: dict[str, float | str],
    extra: dict[str, tuple[float, str, str]],
    decays: bool,
) -> tuple[_Texts, _Parts]:
    defaults = of.defaults()
    if "max_lr" in extra:
        _, _interval, meaning = extra["max_lr"]
        extra = {**extra, "max_lr": (float(defaults["lr"]), "(0, inf)", meaning)}
    own = {h.name: h for h in of.hyperparameters if not h.common}
    carried = {c: float(own[c].default) for c in of.carried}
    hypers: dict[str, Any] = {n: h.default for n, h in own.items() if n not in carried}
    hypers.update({n: value for n, (value, _, _) in extra.items()})
    hypers["weight_decay"] = defaults["weight_decay"]
    hypers["decoupled"] = True if decays else defaults["decoupled"]
    title = "".join(part.capitalize() for word in words for part in word.split("_"))
    lines = [of.formula, *(_FORMULAS[w] if w in _FORMULAS else f"{w.replace('_', ' ')} of p" for w in words)]
    texts = _Texts(
        "_".join([of.name, *words]) if name is None else name,
        of.class_names[0] + title if name is None else None,
        f"{of.summary.rstrip('.')}; with {', '.join(w.replace('_', ' ') for w in words)}.",
        "\n".join(lines),
        "; ".join([of.source, *(_SOURCES[w] for w in words)]),
        of.evaluation,
    )
    states = {s.name: s.initial_from or s.initial for s in of.states}
    parts = _Parts(
        {**states, **added},
        hypers,
        carried,
        [s.name for s in of.states if s.nonnegative] + [s for s in added if s == "amsgrad_max"],
        {**{n: h.range for n, h in own.items()}, **{n: interval for n, (_, interval, _) in extra.items()}},
        {**{n: h.meaning for n, h in own.items()}, **{n: meaning for n, (_, _, meaning) in extra.items()}},
        {s.name: s.per for s in of.states},
    )
    return texts, parts
