"""The library's rules, made at run time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import adaptk
from adaptk.catalogue.compiled import FUNCTIONS


@contextmanager
def traced(name: str) -> Iterator[adaptk.TracedRule]:
    """The library's rule of this name, made at run time."""
    rule = adaptk.rules()[name]
    own = [h for h in rule.hyperparameters if not h.common]
    common = {h.name: h.default for h in rule.hyperparameters if h.name in ("weight_decay", "decoupled")}
    made = adaptk.rule(
        states={s.name: s.initial_from or s.initial for s in rule.states},
        name=f"traced_{name}",
        nonnegative=[s.name for s in rule.states if s.nonnegative],
        ranges={h.name: h.range for h in own},
        **{h.name: h.default for h in own},
        **common,
    )(FUNCTIONS[name])
    try:
        yield made
    finally:
        made.unregister()
