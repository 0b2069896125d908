"""Shared by the tests of errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from helpers import THREE_RULES, arguments

ARGUMENTS = [(rule, argument) for rule in THREE_RULES for argument in arguments(rule)]

SIZES = (5, 1, 7)


def replaced(buffers: Mapping[str, Any], argument: str, wrong: Callable[[Any], Any]) -> dict[str, Any]:
    return {**buffers, argument: wrong(buffers[argument])}


def in_list(buffers: Mapping[str, Any], argument: str, index: int, wrong: Callable[[Any], Any]) -> dict[str, Any]:
    changed = list(buffers[argument])
    changed[index] = wrong(changed[index])
    return {**buffers, argument: changed}
