"""Models of batches from Python functions: a program of values and derivatives, traced by one call."""

from __future__ import annotations

import inspect
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from adaptk._trace import _COMPARISONS, _UFUNCS, Trace, Value, _apply, _is_number, _kind, _lift, arity, refuse, where

__all__ = ["MOST_INPUTS", "Program", "names_of", "trace_model"]

MOST_INPUTS = 4
# As in cpp/src/batch_program.hpp.
_OPS = (
    "add",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "less",
    "less_equal",
    "equal",
    "not_equal",
    "negative",
    "absolute",
    "square_root",
    "sign",
    "select",
    "exponential",
    "exponential_less_1",
    "logarithm",
    "sine",
    "cosine",
    "arc_tangent",
)
_CODES = {name: i for i, name in enumerate(_OPS)}
_MOST_FIXED, _MOST_SLOTS = 128, 48
_LEAVES = ("number", "parameter", "input", "scalar")
_ONE = ("exponential", "exponential_less_1", "sine", "cosine", "arc_tangent")
_MOST_POWER = 64


@dataclass(frozen=True)
class Program:
    """What a kernel runs. An operand is a place: numbers, then parameters, what follows from these alone, the inputs
    of a point, and slots that instructions write to."""

    parameters: int
    inputs: int
    numbers: tuple[float, ...]
    once: tuple[tuple[int, ...], ...]  # (op, to, a, b, c), for each trial point
    each: tuple[tuple[int, ...], ...]  # the same, for each point of the data
    outputs: tuple[int, ...]  # the derivatives, and the value

    def packed(self) -> tuple[Any, ...]:
        code = [np.array(part, dtype=np.uint16).reshape(-1, 5) for part in (self.once, self.each)]
        return (
            self.parameters,
            self.inputs,
            np.array(self.numbers, dtype=np.float64),
            *code,
            np.array(self.outputs, dtype=np.uint16),
        )


class _Model(Trace):
    what = "model"
    functions = True

    def value(self, element: bool, node: int, condition: bool = False) -> Value:
        return _Value(self, element, node, condition)

    def _kind_of(self, op: str, *operands: int) -> str:
        return "element"  # a model has no rows, and functions that rules do not have


class _Value(Value):
    """A value at a point, or one that depends only on the parameters, while a model is traced."""

    __slots__ = ()

    def __pow__(self, exponent: Any) -> Value:
        value: Value = _power(self, exponent)
        return value

    def __rpow__(self, base: Any) -> Value:
        value: Value = _power(base, self)
        return value

    def __bool__(self) -> NoReturn:
        refuse(
            "a branch on a value: if, and, or, not, max and min ask for its truth, which is not known when the model "
            "is traced; use np.where(condition, a, b), np.maximum, np.minimum, & and |"
        )

    def _no_number(self) -> NoReturn:
        refuse(f"a function on a traced value that a model of a batch does not have; it has {_known()}")

    def _no_shape(self) -> NoReturn:
        refuse(
            "a value has no shape: the model is called for one point, with x as a number, or as a tuple of the "
            "coordinates where there are several"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Value:
        if method != "__call__" or kwargs:
            refuse(f"np.{ufunc.__name__} with options, or another method of it than a call")
        op = _UFUNCS.get(ufunc)
        if op is not None:
            return _apply(op, *inputs, condition=op in _COMPARISONS)
        function = _FUNCTIONS.get(ufunc.__name__)
        if function is None:
            refuse(f"{ufunc.__name__} is no function that a model of a batch has; it has {_known()}")
        value: Value = function(*inputs)
        return value

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        known = _NO_UFUNCS.get(function.__name__)
        if known is None or kwargs or (known is where and len(args) != 3):
            refuse(f"np.{function.__name__} is no function that a model of a batch has; it has {_known()}")
        return known(*args)


def _known() -> str:
    return ", ".join(sorted([*_FUNCTIONS, *_NO_UFUNCS]))


# ---- functions, of the operations that kernels have


def _unary(op: str) -> Callable[[Any], Any]:
    return lambda x: _apply(op, x)


_exp, _expm1, _log, _sqrt, _absolute, _sign, _negative = map(
    _unary, ("exponential", "exponential_less_1", "logarithm", "square_root", "absolute", "sign", "negative")
)
_sin, _cos, _arctan = map(_unary, ("sine", "cosine", "arc_tangent"))


def _log1p(x: Any) -> Any:
    # The factor has the same rounding error of 1 + x (Goldberg 1991, theorem 4).
    u = 1 + x
    return where(u == 1, x, _log(u) * (x / where(u == 1, 1.0, u - 1)))


def _odd(half: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An odd function, from its formula for x >= 0."""

    def function(x: Any) -> Any:
        # Not with sign and absolute, whose derivatives at 0 are 0: so would be that of the function.
        sign = where(x < 0, -1.0, 1.0)
        return sign * half(sign * x)

    return function


@_odd
def _tanh(x: Any) -> Any:
    t = _expm1(-2 * x)
    return -t / (t + 2)


@_odd
def _sinh(x: Any) -> Any:
    t = _expm1(x)
    return (t + t / (t + 1)) / 2


@_odd
def _arcsinh(x: Any) -> Any:
    # Beyond 1e8 the square of x adds nothing to the digits of either dtype, but might overflow.
    return where(x > 1e8, _log(x) + math.log(2), _log1p(x + x * x / (1 + _sqrt(1 + x * x))))


@_odd
def _arctanh(x: Any) -> Any:
    return _log1p(2 * x / (1 - x)) / 2


def _arcsin(x: Any) -> Any:
    return _arctan(x / _sqrt((1 - x) * (1 + x)))


def _arccos(x: Any) -> Any:
    return 2 * _arctan(_sqrt((1 - x) / (1 + x)))


def _logaddexp(a: Any, b: Any) -> Any:
    d = a - b
    first = d > 0
    return b + where(first, d, 0.0) + _log1p(_exp(where(first, -1.0, 1.0) * d))


def _sinc(x: Any) -> Any:
    z = math.pi * x
    safe = where(z == 0, 1.0, z)
    return where(z == 0, 1.0, _sin(safe) / safe)


def _clip(x: Any, low: Any = None, high: Any = None) -> Any:
    for op, limit in (("maximum", low), ("minimum", high)):
        x = x if limit is None else _apply(op, x, limit)
    return x


def _cosh(x: Any) -> Any:
    e = _exp(_absolute(x))
    return (e + 1 / e) / 2


def _power(base: Any, exponent: Any) -> Any:
    if _is_number(exponent):
        c = float(exponent)
        if c == math.floor(c) and abs(c) <= _MOST_POWER:
            return _whole_power(base, int(c))
        if c == math.floor(c * 2) / 2 and abs(c) <= _MOST_POWER:
            root = _sqrt(base) * _whole_power(base, math.floor(abs(c)))
            return root if c > 0 else 1 / root
        return _power_of_any(base, c, 0.0 if c > 0 else math.inf)
    if _is_number(base):
        if not float(base) > 0:
            refuse("a power of a number that is not positive, with a value as the exponent")
        return _exp(math.log(float(base)) * exponent)
    return _power_of_any(base, exponent, where(exponent > 0, 0.0, where(exponent < 0, math.inf, 1.0)))


def _power_of_any(base: Any, exponent: Any, of_zero: Any) -> Any:
    # For a base of 0 the derivatives are 0, like those of (x / p) ** q at x = 0, and not the NaN of 0 / 0.
    none = base == 0
    return where(none, of_zero, _exp(exponent * _log(where(none, 1.0, base))))


def _whole_power(x: Any, n: int) -> Any:
    if n < 0:
        return 1 / _whole_power(x, -n)
    result, square = None, x
    while n:
        if n & 1:
            result = square if result is None else result * square
        n >>= 1
        square = square * square if n else square
    return 1.0 if result is None else result


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "absolute": _absolute,
    "fabs": _absolute,
    "negative": _negative,
    "positive": lambda x: x,
    "sign": _sign,
    "sqrt": _sqrt,
    "square": lambda x: x * x,
    "reciprocal": lambda x: 1 / x,
    "power": _power,
    "float_power": _power,
    "maximum": lambda a, b: _apply("maximum", a, b),
    "minimum": lambda a, b: _apply("minimum", a, b),
    "exp": _exp,
    "exp2": lambda x: _exp(math.log(2) * x),
    "expm1": _expm1,
    "log": _log,
    "log2": lambda x: _log(x) * (1 / math.log(2)),
    "log10": lambda x: _log(x) * (1 / math.log(10)),
    "log1p": _log1p,
    "sin": _sin,
    "cos": _cos,
    "tan": lambda x: _sin(x) / _cos(x),
    "arcsin": _arcsin,
    "arccos": _arccos,
    "arctan": _arctan,
    "deg2rad": lambda x: x * (math.pi / 180),
    "radians": lambda x: x * (math.pi / 180),
    "rad2deg": lambda x: x * (180 / math.pi),
    "degrees": lambda x: x * (180 / math.pi),
    "sinh": _sinh,
    "cosh": _cosh,
    "tanh": _tanh,
    "arcsinh": _arcsinh,
    "arctanh": _arctanh,
    "logaddexp": _logaddexp,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "logical_and": operator.and_,
    "logical_or": operator.or_,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "logical_not": operator.invert,
    "invert": operator.invert,
    "hypot": lambda a, b: _sqrt(a * a + b * b),
}


# NumPy's functions of arrays.
_NO_UFUNCS: dict[str, Callable[..., Any]] = {"where": where, "clip": _clip, "sinc": _sinc}

# ---- derivatives, by going through the operations backwards

# A sum's terms are values, the numbers 0.0 and 1.0 without an operation, or what holds on one side of a condition.
Term = Any


@dataclass(frozen=True)
class _Side:
    """`term` where the condition equals `holds`, else 0, even if `term` is NaN there."""

    condition: Value
    holds: bool
    term: Term


def _times(a: Term, b: Term) -> Term:
    if isinstance(a, _Side):
        return _Side(a.condition, a.holds, _times(a.term, b))
    if isinstance(b, _Side):
        return _times(b, a)
    for x, y in ((a, b), (b, a)):
        if isinstance(x, float) and x in (0.0, 1.0):
            return y if x else 0.0
        if isinstance(x, float) and x == -1.0:
            return -y
    return a * b


def _value(term: Term) -> Any:
    if not isinstance(term, _Side):
        return term
    value = _value(term.term)
    return where(term.condition, *((value, 0.0) if term.holds else (0.0, value)))


def _sum(terms: list[Term]) -> Term:
    terms = [t for t in terms if not (isinstance(t, float) and t == 0.0)]
    if not terms:
        return 0.0
    if len(terms) == 1:
        return terms[0]
    # What holds for all terms stays outside of the sum: it may be multiplied by the infinite derivative of a branch
    # that is not taken, which is NaN if the sum is 0 by then.
    common = [side for side in _sides(terms[0]) if all(side in _sides(term) for term in terms[1:])]
    total = _value(_without(terms[0], common))
    for term in terms[1:]:
        total = total + _value(_without(term, common))
    for key in common:
        total = _Side(_sides(terms[0])[key], key[2], total)
    return total


def _sides(term: Term) -> dict[tuple[bool, int, bool], Value]:
    """The conditions of a term, by their places in the record and whether they hold."""
    found = {}
    while isinstance(term, _Side):
        found[term.condition._element, term.condition._node, term.holds] = term.condition
        term = term.term
    return found


def _without(term: Term, sides: list[tuple[bool, int, bool]]) -> Term:
    if not isinstance(term, _Side):
        return term
    inner = _without(term.term, sides)
    key = term.condition._element, term.condition._node, term.holds
    return inner if key in sides else _Side(term.condition, term.holds, inner)


def _pull(op: str, value: Value, x: Sequence[Value], along: Term) -> list[Term]:
    """The derivatives by each operand, given those by the result."""
    if op == "add":
        return [along, along]
    if op == "subtract":
        return [along, _times(along, -1.0)]
    if op == "multiply":
        return [_times(along, x[1]), _times(along, x[0])]
    if op == "divide":
        first = _times(along, 1 / x[1])
        return [first, _times(first, -value)]
    if op in ("maximum", "minimum"):
        first = x[0] > x[1] if op == "maximum" else x[0] < x[1]
        return [_Side(first, True, along), _Side(first, False, along)]
    if op == "negative":
        return [_times(along, -1.0)]
    if op == "absolute":
        return [_times(along, _sign(x[0]))]
    if op == "square_root":
        # Of 0 as powers are.
        return [_Side(value != 0, True, _times(along, 0.5 / value))]
    if op == "select":
        condition = x[0]._trace.value(x[0]._element, x[0]._node, True)
        return [0.0, _Side(condition, True, along), _Side(condition, False, along)]
    if op == "exponential":
        return [_times(along, value)]
    if op == "exponential_less_1":
        return [_times(along, value + 1)]
    if op == "logarithm":
        return [_times(along, 1 / x[0])]
    if op == "sine":
        return [_times(along, _cos(x[0]))]
    if op == "cosine":
        return [_times(along, -_sin(x[0]))]
    if op == "arc_tangent":
        return [_times(along, 1 / (1 + x[0] * x[0]))]
    return [0.0] * len(x)  # comparisons and signs


def _gradient(trace: Trace, element: bool, root: int, leaf: str) -> dict[int, Term]:
    """The gradient by the leaves of this kind, indexed by their first operand."""
    nodes = list(trace.elements if element else trace.scalars)
    terms: dict[int, list[Term]] = defaultdict(list)
    terms[root].append(1.0)
    found = {}
    for i in range(root, -1, -1):
        if i not in terms:
            continue
        op, *operands, _ = nodes[i]
        if op in _LEAVES:
            if op == leaf:
                found[operands[0]] = _sum(terms[i])
            continue
        operands = operands[: _arity(op)]
        along = _sum(terms[i])
        if isinstance(along, float) and along == 0.0:
            continue
        x = [trace.value(element, k) for k in operands]
        for k, term in zip(operands, _pull(op, trace.value(element, i), x, along), strict=True):
            terms[k].append(term)
    return found


def _arity(op: str) -> int:
    return 0 if op in _LEAVES else 1 if op in _ONE else arity(op)


# ---- tracing


def names_of(model: Callable[..., Any], n: int) -> tuple[str, ...]:
    """The parameters' names; none if the signature does not have n of them."""
    try:
        given = list(inspect.signature(model).parameters.values())[1:]
    except (TypeError, ValueError):
        return ()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in given[:n]) if len(given) >= n and all(p.kind in plain for p in given[:n]) else ()


def trace_model(model: Callable[..., Any], n: int, inputs: int) -> Program:
    """Call ``model(x, p_0, ..., p_{n-1})`` once; x is a value, or a tuple of `inputs` of them."""
    trace = _Model()
    parameters = [trace.value(False, trace.add(False, "parameter", j)) for j in range(n)]
    x = tuple(trace.value(True, trace.add(True, "input", c)) for c in range(inputs))
    returned = model(x[0] if inputs == 1 else x, *parameters)
    if not isinstance(returned, Value) and not _is_number(returned):
        name = getattr(model, "__name__", "model")
        raise TypeError(f"model: {name}() returns {_kind(returned)} for one point, expected a number")
    value = _lift(trace, returned, True)
    by_scalar = _gradient(trace, True, value._node, "scalar")
    slopes: list[list[Term]] = [[] for _ in range(n)]
    for k, along in by_scalar.items():
        for j, factor in _gradient(trace, False, k, "parameter").items():
            slopes[j].append(_times(along, factor))
    outputs = [_lift(trace, _value(_sum(terms)), True)._node for terms in slopes]
    return _program(trace, n, inputs, [*outputs, value._node])


def _program(trace: Trace, n: int, inputs: int, outputs: list[int]) -> Program:
    elements, scalars = list(trace.elements), list(trace.scalars)

    def reached(nodes: Sequence[Any], roots: Sequence[int]) -> list[int]:
        """The nodes that the roots depend on, in order."""
        seen = set(roots)
        for i in range(len(nodes) - 1, -1, -1):
            if i in seen:
                op, *operands, _ = nodes[i]
                seen.update(operands[: _arity(op)])
        return sorted(seen)

    needed = reached(elements, outputs)
    from_scalars = reached(scalars, [elements[i][1] for i in needed if elements[i][0] == "scalar"])
    numbers = [i for i in from_scalars if scalars[i][0] == "number"]
    place = {i: k for k, i in enumerate(numbers)}
    place.update({i: len(numbers) + scalars[i][1] for i in from_scalars if scalars[i][0] == "parameter"})
    once: list[tuple[int, ...]] = []
    for i in from_scalars:
        op, *operands, _ = scalars[i]
        if op in _LEAVES:
            continue
        place[i] = len(numbers) + n + len(once)
        used = [place[k] for k in operands[: _arity(op)]]
        once.append((_CODES[op], place[i], *used, *[0] * (3 - len(used))))
    first_input = len(numbers) + n + len(once)
    if first_input > _MOST_FIXED:
        raise TypeError(f"model: more than {_MOST_FIXED} numbers, parameters and operations on these alone")
    where_is = {}
    for i in needed:
        if elements[i][0] in ("scalar", "input"):
            op, a = elements[i][:2]
            where_is[i] = place[a] if op == "scalar" else first_input + a
    last = {k: i for i in needed for k in elements[i][1 : 1 + _arity(elements[i][0])]}
    last.update(dict.fromkeys(outputs, len(elements)))
    free, slots = [], 0
    each = []
    for i in needed:
        op, *operands, _ = elements[i]
        if op in _LEAVES:
            continue
        operands = operands[: _arity(op)]
        used = [where_is[k] for k in operands]
        # An element of the result depends only on the same element of the operands, so it may overwrite them.
        free += [where_is[k] for k in dict.fromkeys(operands) if last[k] == i and elements[k][0] not in _LEAVES]
        if not free:
            free.append(first_input + inputs + slots)
            slots += 1
        where_is[i] = free.pop()
        each.append((_CODES[op], where_is[i], *used, *[0] * (3 - len(used))))
    if slots > _MOST_SLOTS:
        raise TypeError(f"model: more than {_MOST_SLOTS} values of a point are needed at a time")
    bits = np.array([scalars[i][4] for i in numbers], dtype=np.int64).view(np.float64)
    return Program(n, inputs, tuple(map(float, bits)), tuple(once), tuple(each), tuple(where_is[i] for i in outputs))
