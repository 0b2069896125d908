"""Rules that are programs: read from the package's files when they are first asked for, and then rules like any others.

The names are those of :mod:`adaptk.ops`, :mod:`adaptk.jax` and :func:`adaptk.optimizer_for`; the classes are in
:mod:`adaptk` and :mod:`adaptk.torch`. Each is written as a function of :func:`adaptk.rule` in a module of this package;
``python -m adaptk.catalogue`` makes the files of them, which C programs read with ``adaptk_rule_load`` too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from adaptk.catalogue._index import CLASSES as CLASSES
from adaptk.catalogue._index import HELPERS

if TYPE_CHECKING:
    from adaptk._rule import TracedRule

#: The names of the rules, and of those that serve others.
NAMES = frozenset({*CLASSES, *HELPERS})
_RULE_OF = {class_name: name for name, class_name in CLASSES.items()}
_found: dict[str, TracedRule] = {}


def find(name: str) -> TracedRule | None:
    """The rule of this name, if the catalogue has one."""
    if name not in NAMES:
        return None
    found = _found.get(name)
    if found is None:
        from adaptk._rule import read_rule

        program = (Path(__file__).parent / "programs" / f"{name}.rule").read_bytes()
        found = _found.setdefault(name, read_rule(program))
    return found


def find_class(name: str) -> TracedRule | None:
    """The rule of this class, if the catalogue has one."""
    return find(_RULE_OF[name]) if name in _RULE_OF else None


def all_rules() -> Iterator[TracedRule]:
    """All of them, in the order of the catalogue."""
    for name in CLASSES:
        found = find(name)
        assert found is not None
        yield found
