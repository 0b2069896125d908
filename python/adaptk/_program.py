"""What is in the bytes of a rule (cpp/src/program.hpp)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from adaptk._trace import _ELEMENTS, _SCALARS

_LEAVES = ("number", "hyper", "step", "scalar", "param", "grad", "state", "param_as_stored")
_ARITY = {
    **dict.fromkeys(_LEAVES, 0),
    **dict.fromkeys(("negative", "absolute", "square_root", "sign", "floor", "logarithm", "cumulative_product"), 1),
    "select": 3,
}


class Node(NamedTuple):
    """One operation; its operands are nodes before it, but what leaves have in `a`."""

    op: str
    a: int
    b: int
    c: int
    value: float = 0.0

    @property
    def operands(self) -> tuple[int, ...]:
        return (self.a, self.b, self.c)[: _ARITY.get(self.op, 2)]


def read_program(program: bytes) -> tuple[list[Node], list[Node], list[int], list[tuple[int, int]]]:
    """The scalar nodes, the element nodes, the results and the carried numbers, which are at the end of the bytes."""
    _, states, scalars, elements, carried = struct.unpack_from("<5H", program, 12)
    carried_at = len(program) - 4 * carried
    results_at = carried_at - 2 * (1 + states)
    elements_at = results_at - 7 * elements
    scalars_at = elements_at - 15 * scalars
    scalar = [Node(_SCALARS[n[0]], *n[1:]) for n in struct.iter_unpack("<BHHHd", program[scalars_at:elements_at])]
    element = [Node(_ELEMENTS[n[0]], *n[1:]) for n in struct.iter_unpack("<BHHH", program[elements_at:results_at])]
    results = list(struct.unpack_from(f"<{1 + states}H", program, results_at))
    return scalar, element, results, list(struct.iter_unpack("<2H", program[carried_at:]))
