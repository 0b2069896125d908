"""Changes of states that a step takes back if it comes to nothing."""

from __future__ import annotations

from typing import Any

# (mapping, key, the value that was there).
Undo = list[tuple[Any, Any, Any]]

_MISSING = object()


def put(mapping: Any, key: Any, value: Any, undo: Undo) -> None:
    undo.append((mapping, key, mapping.get(key, _MISSING)))
    mapping[key] = value


def drop(mapping: Any, key: Any, undo: Undo) -> None:
    undo.append((mapping, key, mapping.pop(key)))


def roll_back(undo: Undo) -> None:
    for mapping, key, value in reversed(undo):
        if value is _MISSING:
            mapping.pop(key, None)
        else:
            mapping[key] = value
