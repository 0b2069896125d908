"""Reads the bytes of a rule (cpp/src/program.hpp)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from adaptk._trace import _ELEMENTS, _OVER, _REDUCTIONS, _SCALARS, arity


class Node(NamedTuple):
    """One operation. Its operands are earlier nodes, but in leaves `a` is an index."""

    op: str
    a: int
    b: int
    c: int
    value: float = 0.0

    @property
    def operands(self) -> tuple[int, ...]:
        return (self.a, self.b, self.c)[: arity(self.op)]


class Program(NamedTuple):
    """The computation of a rule."""

    scalars: list[Node]
    elements: list[Node]
    results: list[int]  # element nodes of the new param and states; for a state per tensor the scalar node
    carried: list[tuple[int, int]]  # hyperparameters, and the scalar nodes of their next values
    reductions: list[tuple[str, str, int]]  # the kind, what it reduces over, and the element node


def read_program(program: bytes) -> Program:
    """Read the program, which is at the end of a rule's bytes."""
    _, states, scalars, elements, carried, *rest = struct.unpack_from("<6H", program, 12)
    reductions_at = len(program) - (4 * rest[0] if program[7] >= 2 else 0)
    carried_at = reductions_at - 4 * carried
    results_at = carried_at - 2 * (1 + states)
    elements_at = results_at - 7 * elements
    scalars_at = elements_at - 15 * scalars
    return Program(
        [Node(_SCALARS[n[0]], *n[1:]) for n in struct.iter_unpack("<BHHHd", program[scalars_at:elements_at])],
        [Node(_ELEMENTS[n[0]], *n[1:]) for n in struct.iter_unpack("<BHHH", program[elements_at:results_at])],
        list(struct.unpack_from(f"<{1 + states}H", program, results_at)),
        list(struct.iter_unpack("<2H", program[carried_at:reductions_at])),
        [(_REDUCTIONS[r[0]], _OVER[r[1]], r[2]) for r in struct.iter_unpack("<BBH", program[reductions_at:])],
    )
