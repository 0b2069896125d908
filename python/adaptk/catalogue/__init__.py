"""The catalogue: rules that are programs, which are read from files of the package on first use.

They are used like all other rules: by name in :mod:`adaptk.ops`, :mod:`adaptk.jax` and :func:`adaptk.optimizer_for`,
and as classes in :mod:`adaptk` and :mod:`adaptk.torch`. Each rule is written as a function for :func:`adaptk.rule` in a
module of this package. ``python -m adaptk.catalogue`` writes the files, which C programs can read with
``adaptk_rule_load``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from adaptk.catalogue._index import CLASSES as CLASSES
from adaptk.catalogue._index import HELPERS

if TYPE_CHECKING:
    from adaptk._rule import TracedRule

#: The names of the rules, and of auxiliary rules that others use.
NAMES = frozenset({*CLASSES, *HELPERS})
_RULE_OF = {class_name: name for name, class_name in CLASSES.items()}
_found: dict[str, TracedRule] = {}


def find(name: str) -> TracedRule | None:
    """The rule of this name, or None."""
    if name not in NAMES:
        return None
    found = _found.get(name)
    if found is None:
        from adaptk._rule import read_rule

        program = (Path(__file__).parent / "programs" / f"{name}.rule").read_bytes()
        found = _found.setdefault(name, read_rule(program))
    return found


def find_class(name: str) -> TracedRule | None:
    """The rule of this class, or None."""
    return find(_RULE_OF[name]) if name in _RULE_OF else None


def all_rules() -> Iterator[TracedRule]:
    """All rules, in the order of the catalogue."""
    for name in CLASSES:
        found = find(name)
        assert found is not None
        yield found
