"""Helpers for the modules of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Function = Callable[..., Any]


class Entry(NamedTuple):
    """The source of a rule: a function and the arguments of :func:`adaptk.rule`."""

    name: str
    function: Function
    states: Mapping[str, float | str]
    hyperparameters: Mapping[str, Any]
    carried: Mapping[str, float]
    nonnegative: Sequence[str]
    ranges: Mapping[str, str]
    meanings: Mapping[str, str]
    class_name: str
    formula: str
    source: str
    evaluation: str
    per: Mapping[str, str]


ENTRIES: dict[str, Entry] = {}

# The meanings of hyperparameters with these names, unless a rule has another one.
MEANINGS = {
    "lr": "learning rate",
    "beta1": "decay of the first moment",
    "beta2": "decay of the second moment",
    "eps": "small constant that is added to the root",
    "momentum": "decay of the momentum",
}
RANGES = {"beta1": "[0, 1)", "beta2": "[0, 1)", "beta3": "[0, 1)", "eps": "[0, inf)", "momentum": "[0, 1)"}


def entry(
    class_name: str,
    *,
    formula: str,
    source: str,
    states: Mapping[str, float | str] | None = None,
    carried: Mapping[str, float] | None = None,
    nonnegative: Sequence[str] = (),
    ranges: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
    evaluation: str = "",
    per: Mapping[str, str] | None = None,
    name: str | None = None,
    **hyperparameters: float | bool,
) -> Callable[[Function], Function]:
    """Add a function as a rule. Without a class name it is an auxiliary rule for others."""

    def keep(function: Function) -> Function:
        own = {h: r for h, r in {**RANGES, **(ranges or {})}.items() if h in hyperparameters}
        said = {
            h: m for h, m in {**MEANINGS, **(meanings or {})}.items() if h in hyperparameters or h in (carried or {})
        }
        key = name or function.__name__
        assert key not in ENTRIES, key
        ENTRIES[key] = Entry(
            key, function, states or {}, hyperparameters, carried or {}, nonnegative, own, said, class_name, formula,
            source, evaluation, per or {},
        )  # fmt: skip
        return function

    return keep


def average(x: Any, new: Any, beta: Any) -> Any:
    """An exponential moving average."""
    return beta * x + (1 - beta) * new
