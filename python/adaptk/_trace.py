"""Tracing: a rule's function is called with values that record operations as a program of the core."""

from __future__ import annotations

import linecache
import math
import os
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, NoReturn, cast

import numpy as np

from adaptk._names import hint

# The same limits and codes as in cpp/src/program.hpp.
_BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum")
_COMPARISONS = ("less", "less_equal", "equal", "not_equal")
_UNARY = ("negative", "absolute", "square_root", "sign")
_SCALARS = (
    "number",
    "hyper",
    "step",
    *_BINARY,
    *_COMPARISONS,
    "power",
    *_UNARY,
    "floor",
    "logarithm",
    "select",
    "cumulative_product",
    "reduced",
    "state",
    "shape",
)
_REDUCTIONS = ("norm", "sum", "mean", "max")
_OVER = ("tensor", "all", "rows", "columns", "matrix")
_LINES = ("rows", "columns", "matrix")  # reductions to one number for each row or column
PER = ("element", "tensor", "row", "column")
_SHAPE_NUMBERS = ("rows", "columns", "is_vector")
_ELEMENTS = (
    "scalar",
    "param",
    "grad",
    "state",
    "param_as_stored",
    *_BINARY,
    *_COMPARISONS,
    *_UNARY,
    "select",
    "reduced",
)
_SCALAR_OPS = {name: i for i, name in enumerate(_SCALARS)}
_ELEMENT_OPS = {name: i for i, name in enumerate(_ELEMENTS)}
_MAX_SCALARS, _MAX_ELEMENTS, _MAX_REDUCTIONS = 256, 512, 8
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

_LEAVES = ("number", "hyper", "step", "reduced", "shape", "scalar", "param", "grad", "state", "param_as_stored")
_ARITY = {
    **dict.fromkeys(_LEAVES, 0),
    **dict.fromkeys((*_UNARY, "floor", "logarithm", "cumulative_product"), 1),
    "select": 3,
}

Node = tuple[str, int, int, int, float]
Number = float | int


class RuleError(TypeError):
    """The function of a rule does something that a rule cannot do; the message names the line."""


def _line() -> str:
    """The current line of the user's code, as ``file.py, line 12: `source```."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "a rule"
    name, number = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(name, number, frame.f_globals).strip()
    return f"{os.path.basename(name)}, line {number}" + (f": `{source}`" if source else "")


def refuse(why: str) -> NoReturn:
    raise RuleError(f"{_line()}: {why}")


def arity(op: str) -> int:
    """The number of operands of an operation. Leaves have none: their `a` is an index."""
    return _ARITY.get(op, 2)


@dataclass
class Trace:
    """The nodes of one rule, without duplicates."""

    what: ClassVar[str] = "rule"
    max_scalars: ClassVar[int] = _MAX_SCALARS
    max_elements: ClassVar[int] = _MAX_ELEMENTS
    # Whether functions such as the logarithm are operations on elements.
    functions: ClassVar[bool] = False

    scalars: dict[Node, int] = field(default_factory=dict)
    elements: dict[Node, int] = field(default_factory=dict)
    # The kind, what it reduces over, and the element node, in the order in which they are first used.
    reductions: dict[tuple[str, str, int], int] = field(default_factory=dict)
    per: Sequence[str] = ()  # what each state has one number for
    # For each element node what it has one value for; "tensor" if it is the same for all elements.
    kinds: list[str] = field(default_factory=list)

    def add(self, element: bool, op: str, a: int = 0, b: int = 0, c: int = 0, value: float = 0.0) -> int:
        nodes, most = (self.elements, self.max_elements) if element else (self.scalars, self.max_scalars)
        # Numbers are compared by their bits, because 0.0 and -0.0 differ.
        node = (op, a, b, c, struct.unpack("<q", struct.pack("<d", value))[0])
        if node not in nodes and len(nodes) == most:
            what = "elements" if element else "hyperparameters and the step"
            refuse(f"more than {most} operations on {what}; does a loop unroll?")
        if element and node not in nodes:
            self.kinds.append(self._kind_of(op, a, b, c))
        return nodes.setdefault(node, len(nodes))

    def _kind_of(self, op: str, *operands: int) -> str:
        if op == "state":
            return self.per[operands[0]]
        if op == "reduced":
            _, over, element = list(self.reductions)[operands[0]]
            return {"rows": "row", "columns": "column"}.get(over) or self.kinds[element]
        if op in _LEAVES:
            return "tensor" if op == "scalar" else "element"
        kinds = {self.kinds[n] for n in operands[: arity(op)]} - {"tensor"}
        return "element" if len(kinds) > 1 else next(iter(kinds), "tensor")

    @property
    def shaped(self) -> bool:
        """Whether the rule depends on rows and columns, or has states that are not per element."""
        return (
            any(p != "element" for p in self.per)
            or any(over in _LINES for _, over, _ in self.reductions)
            or any(op == "shape" for op, *_ in self.scalars)
        )

    def reduce(self, what: str, over: str, element: int) -> int:
        """The node of a reduction: a scalar node, or an element node for reductions to rows or columns."""
        found = (what, over, element)
        if found not in self.reductions and len(self.reductions) == _MAX_REDUCTIONS:
            refuse(f"more than {_MAX_REDUCTIONS} reductions")
        return self.add(over in _LINES, "reduced", self.reductions.setdefault(found, len(self.reductions)))

    def depends_on(self, scalar: int, over: Sequence[str]) -> bool:
        """Whether a scalar node depends on a reduction over one of these, or on a state or the shape of a tensor."""
        nodes, reductions = list(self.scalars), list(self.reductions)
        rest = [scalar]
        while rest:
            op, *operands, _ = nodes[rest.pop()]
            if op in ("state", "shape") or (op == "reduced" and reductions[operands[0]][1] in over):
                return True
            rest += operands[: arity(op)]
        return False

    def value(self, element: bool, node: int, condition: bool = False) -> Value:
        return Value(self, element, node, condition)

    def number(self, x: float) -> Value:
        return self.value(False, self.add(False, "number", value=x))

    def pack_scalars(self) -> bytes:
        return b"".join(struct.pack("<BHHHq", _SCALAR_OPS[op], a, b, c, bits) for op, a, b, c, bits in self.scalars)

    def pack_reductions(self) -> bytes:
        return b"".join(
            struct.pack("<BBH", _REDUCTIONS.index(what), _OVER.index(over), element)
            for what, over, element in self.reductions
        )

    def pack_elements(self) -> bytes:
        return b"".join(struct.pack("<BHHH", _ELEMENT_OPS[op], a, b, c) for op, a, b, c, _ in self.elements)


def _is_number(x: Any) -> bool:
    return isinstance(x, (Real, np.bool_)) or (isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "fiub")


def _kind(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return f"an array of shape {x.shape}"
    return f"a {type(x).__name__}"


def _lift(trace: Trace, given: Any, element: bool) -> Value:
    """Convert a number or a value to a value of an element or of the step."""
    x: Value = given if isinstance(given, Value) else trace.number(float(given))
    if x._trace is not trace:
        refuse(f"a value of another {trace.what}, or of another call")
    if element and not x._element:
        return trace.value(True, trace.add(True, "scalar", x._node), x._condition)
    return x


def _apply(op: str, *operands: Any, condition: bool = False) -> Value:
    trace = next(x._trace for x in operands if isinstance(x, Value))
    for x in operands:
        if not isinstance(x, Value) and not _is_number(x):
            refuse(f"{_kind(x)} is not a number; a {trace.what} is made of numbers and of what it is called with")
    element = any(isinstance(x, Value) and x._element for x in operands)
    nodes = [_lift(trace, x, element)._node for x in operands]
    return trace.value(element, trace.add(element, op, *nodes), condition)


_UFUNCS = {
    np.add: "add",
    np.subtract: "subtract",
    np.multiply: "multiply",
    np.divide: "divide",
    np.less: "less",
    np.less_equal: "less_equal",
    np.equal: "equal",
    np.not_equal: "not_equal",
}
# The functions to use in a rule in place of NumPy's, Python's and PyTorch's.
_INSTEAD = {
    "absolute": "abs",
    "fabs": "abs",
    "maximum": "maximum",
    "fmax": "maximum",
    "minimum": "minimum",
    "fmin": "minimum",
    "negative": "-x",
    "power": "**, or products",
    "sign": "sign",
    "sqrt": "sqrt",
    "square": "x * x",
}
_SHAPES = (
    "shape",
    "size",
    "ndim",
    "T",
    "dtype",
    "reshape",
    "flatten",
    "mean",
    "sum",
    "norm",
    "max",
    "min",
    "any",
    "all",
)


class Value:
    """A traced value: of an element, or a number of the step."""

    __slots__ = ("_condition", "_element", "_node", "_trace")

    def __init__(self, trace: Trace, element: bool, node: int, condition: bool = False) -> None:
        self._trace = trace
        self._element = element
        self._node = node
        self._condition = condition

    # Arithmetic.

    def __add__(self, other: Any) -> Value:
        return _apply("add", self, other)

    def __radd__(self, other: Any) -> Value:
        return _apply("add", other, self)

    def __sub__(self, other: Any) -> Value:
        return _apply("subtract", self, other)

    def __rsub__(self, other: Any) -> Value:
        return _apply("subtract", other, self)

    def __mul__(self, other: Any) -> Value:
        return _apply("multiply", self, other)

    def __rmul__(self, other: Any) -> Value:
        return _apply("multiply", other, self)

    def __truediv__(self, other: Any) -> Value:
        return _apply("divide", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return _apply("divide", other, self)

    def __neg__(self) -> Value:
        return _apply("negative", self)

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return _apply("absolute", self)

    def __pow__(self, exponent: Any) -> Value:
        if not self._element and not (isinstance(exponent, Value) and exponent._element):
            return _apply("power", self, exponent)
        if _is_number(exponent) and float(exponent) == 2.0:
            return self * self
        if _is_number(exponent) and float(exponent) == 0.5:
            return _apply("square_root", self)
        refuse(
            "a power of an element other than ** 2 and ** 0.5; write products, adaptk.sqrt, or "
            "adaptk.exp(y * adaptk.log(x))"
        )

    def __rpow__(self, base: Any) -> Value:
        if self._element:
            refuse("a power whose exponent is an element")
        return _apply("power", base, self)

    # Comparisons.

    def __lt__(self, other: Any) -> Value:
        return _apply("less", self, other, condition=True)

    def __le__(self, other: Any) -> Value:
        return _apply("less_equal", self, other, condition=True)

    def __gt__(self, other: Any) -> Value:
        return _apply("less", other, self, condition=True)

    def __ge__(self, other: Any) -> Value:
        return _apply("less_equal", other, self, condition=True)

    def __eq__(self, other: Any) -> Value:  # type: ignore[override]
        return _apply("equal", self, other, condition=True)

    def __ne__(self, other: Any) -> Value:  # type: ignore[override]
        return _apply("not_equal", self, other, condition=True)

    __hash__ = None  # type: ignore[assignment]

    # Conditions are stored as 1 and 0.

    def _logical(self, other: Any, op: str, sign: str) -> Value:
        if not self._condition or not (isinstance(other, (bool, np.bool_)) or getattr(other, "_condition", False)):
            refuse(f"{sign} of what are not both conditions; it is for such as (g > 0) {sign} (m > 0)")
        return _apply(op, self, other, condition=True)

    def __and__(self, other: Any) -> Value:
        return self._logical(other, "multiply", "&")

    def __or__(self, other: Any) -> Value:
        return self._logical(other, "maximum", "|")

    def __xor__(self, other: Any) -> Value:
        return self._logical(other, "not_equal", "^")

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Value:
        if not self._condition:
            refuse("~ of what is not a condition")
        return _apply("equal", self, 0.0, condition=True)

    # Operations that no rule can use.

    def __bool__(self) -> NoReturn:
        what = "an element's value" if self._element else "a hyperparameter, the step or a reduction"
        refuse(
            f"a branch on {what}: if, and, or, not, max and min ask for its truth, which is not known when the rule is "
            "traced; use adaptk.where(condition, a, b), adaptk.maximum, adaptk.minimum, & and |"
        )

    def _no_number(self) -> NoReturn:
        refuse(
            "a function of Python's or another library's on a traced value; use adaptk.sqrt, abs, minimum, maximum, "
            "sign or where"
        )

    def __float__(self) -> NoReturn:
        self._no_number()

    def __int__(self) -> NoReturn:
        self._no_number()

    def __index__(self) -> NoReturn:
        self._no_number()

    def __round__(self, *_: Any) -> NoReturn:
        self._no_number()

    def __floordiv__(self, _: Any) -> NoReturn:
        refuse(f"// and % are no operations of a {self._trace.what}")

    __mod__ = __rmod__ = __rfloordiv__ = __floordiv__

    def __len__(self) -> NoReturn:
        self._no_shape()

    def __iter__(self) -> NoReturn:
        self._no_shape()

    def __getitem__(self, _: Any) -> NoReturn:
        self._no_shape()

    def __matmul__(self, _: Any) -> NoReturn:
        self._no_shape()

    __rmatmul__ = __matmul__

    def _no_shape(self) -> NoReturn:
        refuse("a value has no shape: a rule is called for one element, whatever the shape of the param")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._no_number()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Value:
        # Called for NumPy numbers on the left of an operator.
        op = _UFUNCS.get(ufunc)
        if op is not None and method == "__call__" and not kwargs:
            return _apply(op, *inputs, condition=op in _COMPARISONS)
        instead = _INSTEAD.get(ufunc.__name__)
        use = "" if instead is None else f"; use {instead if ' ' in instead or '-' in instead else f'adaptk.{instead}'}"
        refuse(f"np.{ufunc.__name__} on a traced value{use}")

    def __array_function__(self, function: Any, *_: Any) -> NoReturn:
        name = function.__name__
        use = ""
        if name in ("where", *_REDUCTIONS):
            use = f"; use adaptk.{name}"
        elif name == "clip":
            use = "; use adaptk.minimum and adaptk.maximum"
        refuse(f"np.{name} on a traced value{use}")

    def __getattr__(self, name: str) -> Any:
        if name in _SHAPES:
            self._no_shape()
        raise AttributeError(f"{_line()}: a traced value has no attribute {name!r}", name=name, obj=self)

    def __repr__(self) -> str:
        what = self._trace.what
        return f"<{'element' if self._element else 'number of the step'} {self._node} of a traced {what}>"


def stored(p: Value) -> Value:
    """The param before decoupled decay; for rules of the library."""
    return Value(p._trace, True, p._trace.add(True, "param_as_stored"))


def shape_of(t: Value, which: str) -> Value:
    """A number of the tensor's shape: "rows", "columns", "is_vector"; for rules of the library."""
    return Value(t._trace, False, t._trace.add(False, "shape", _SHAPE_NUMBERS.index(which)), which == "is_vector")


def decay_of(h: Hypers, t: Value) -> Value:
    """The weight of decoupled decay, 0 if it is coupled; for rules of the library that apply it themselves."""
    return cast(Value, where(common_of(h, t, 1) != 0, common_of(h, t, 0), 0.0))


def common_of(h: Hypers, t: Value, which: int) -> Value:
    """The common hyperparameter weight_decay (0) or decoupled (1)."""
    return Value(t._trace, False, t._trace.add(False, "hyper", len(h._values) + which))


class Hypers:
    """The argument `h`: a rule's hyperparameters by name."""

    __slots__ = ("_values",)
    _values: dict[str, Value]

    def __init__(self, values: dict[str, Value]) -> None:
        object.__setattr__(self, "_values", values)

    def __getattr__(self, name: str) -> Value:
        if name in self._values:
            return self._values[name]
        if name in ("weight_decay", "decoupled", "maximize", "grad_scale"):
            refuse(f"h.{name} acts before the rule, on p and g; a rule does not read it")
        raise AttributeError(
            f"{_line()}: the rule has no hyperparameter {name!r}{hint(name, self._values)}; it has "
            f"{', '.join(self._values)}",
            name=name,
            obj=self,
        )

    def __setattr__(self, name: str, _: Any) -> NoReturn:
        refuse(f"h.{name} is assigned to; hyperparameters are changed in the param groups")


# ---- functions


def _function(name: str, op: str, x: Any, plain: Callable[[float], float]) -> Any:
    if isinstance(x, Value):
        return _apply(op, x)
    if _is_number(x):
        return plain(float(x))
    raise TypeError(f"adaptk.{name}: expected a number, or a value inside a function of adaptk.rule, got {_kind(x)}")


def sqrt(x: Any) -> Any:
    """The square root, correctly rounded, of a value in a function of :func:`adaptk.rule`.

    Raises
    ------
    TypeError
        If `x` is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.sqrt(2.25)
    1.5
    """
    return _function("sqrt", "square_root", x, lambda y: math.sqrt(y) if y >= 0.0 else math.nan)


def abs(x: Any) -> Any:
    """The magnitude of a value in a function of :func:`adaptk.rule`.

    Raises
    ------
    TypeError
        If `x` is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.abs(-2.0)
    2.0
    """
    return _function("abs", "absolute", x, math.fabs)


def sign(x: Any) -> Any:
    """-1, 0 or 1 by the sign of a value in a function of :func:`adaptk.rule`; NaN stays NaN.

    Raises
    ------
    TypeError
        If `x` is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.sign(-2.0)
    -1.0
    """
    return _function("sign", "sign", x, lambda y: y if y != y else float((y > 0.0) - (y < 0.0)))


def _of_two(name: str, op: str, a: Any, b: Any, first: Callable[[float, float], bool]) -> Any:
    if isinstance(a, Value) or isinstance(b, Value):
        return _apply(op, a, b)
    for x in (a, b):
        if not _is_number(x):
            raise TypeError(
                f"adaptk.{name}: expected numbers, or values inside a function of adaptk.rule, got {_kind(x)}"
            )
    a, b = float(a), float(b)
    return a if first(a, b) or a != a else b


def maximum(a: Any, b: Any) -> Any:
    """The larger of two values in a function of :func:`adaptk.rule`. If one of them is NaN, the result is NaN.

    If they are equal, the result is `b`, also for two zeros of different sign.

    Raises
    ------
    TypeError
        If one is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.maximum(1.0, 2.0)
    2.0
    """
    return _of_two("maximum", "maximum", a, b, lambda x, y: x > y)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two values in a function of :func:`adaptk.rule`. If one of them is NaN, the result is NaN.

    If they are equal, the result is `b`, also for two zeros of different sign.

    Raises
    ------
    TypeError
        If one is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.minimum(1.0, 2.0)
    1.0
    """
    return _of_two("minimum", "minimum", a, b, lambda x, y: x < y)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` if the condition holds, else `b`, in a function of :func:`adaptk.rule`.

    Both are computed. The condition may be about elements, such as ``g > 0``, or about the step, such as ``t == 1``.

    Raises
    ------
    TypeError
        If one is neither a traced value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.where(True, 1.0, 2.0)
    1.0
    """
    if isinstance(condition, Value):
        if not condition._condition:
            refuse("where: the first argument is no condition, such as g > 0")
        return _apply("select", condition, a, b)
    if not isinstance(condition, (bool, np.bool_)):
        raise TypeError(f"adaptk.where: expected a condition inside a function of adaptk.rule, got {_kind(condition)}")
    chosen = a if condition else b
    # The result's kind must not depend on the condition.
    of = [x for x in (a, b) if isinstance(x, Value)]
    return _lift(of[0]._trace, chosen, any(x._element for x in of)) if of else chosen


def floor(x: Any) -> Any:
    """The largest integer not above `x`, an expression of `h` and `t` in a function of :func:`adaptk.rule`.

    Raises
    ------
    TypeError
        If `x` is neither such an expression nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.floor(2.5)
    2.0
    """
    if isinstance(x, Value) and x._element and not x._trace.functions:
        refuse("floor: expected an expression of h and t, got one of elements")
    return _function("floor", "floor", x, lambda y: float(math.floor(y)) if math.isfinite(y) else y)


def log(x: Any) -> Any:
    """The natural logarithm of a value in a function of :func:`adaptk.rule`.

    The result is the same on every machine. For expressions of `h` and `t` it is computed in double-double arithmetic
    and rounded once. For elements it is computed by a fixed sequence of about a hundred quotients, products, sums and
    comparisons, each rounded; the error is at most 4 last places. It is NaN below 0, and minus infinity at 0.

    Raises
    ------
    TypeError
        If `x` is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.log(1.0)
    0.0
    """
    if isinstance(x, Value) and x._element and not x._trace.functions:
        return _log_of_elements(x)
    return _function("log", "logarithm", x, _log)


def _log_of_elements(x: Any) -> Any:
    # Scale subnormal numbers up, and take 1/y for y below 1/2: its logarithm has the opposite sign.
    tiny = x < 2.0**-100
    y = where(tiny, x * 2.0**54, x)
    small = y < 0.5
    y = where(small, 1 / y, y)
    exponent: Any = 0.0
    for bit in range(9, -1, -1):
        power = 2**bit
        above = y >= 2.0**power
        y = where(above, y / 2.0**power, y)
        exponent = exponent + where(above, float(power), 0.0)
    low, high = y < math.sqrt(0.5), y > math.sqrt(2.0)
    y = where(low, y * 2, where(high, y / 2, y))
    exponent = exponent + where(low, -1.0, where(high, 1.0, 0.0))
    # log y = 2 artanh f, with |f| < 0.172.
    f = (y - 1) / (y + 1)
    square = f * f
    series: Any = 1 / 21
    for n in range(19, 0, -2):
        series = 1 / n + square * series
    rest = (f + f) * series
    rest = where(small, -rest, rest)
    exponent = where(small, -exponent, exponent) + where(tiny, -54.0, 0.0)
    # log 2 as a sum of two numbers: an integer times the first is exact in float32.
    first = 355 / 512
    result = exponent * first + (exponent * (math.log(2) - first) + rest)
    return where(x > 0, where(x < math.inf, result, x), where(x == 0, -math.inf, math.nan))


def _log(x: float) -> float:
    return math.log(x) if x > 0.0 else -math.inf if x == 0.0 else math.nan


def cbrt(x: Any) -> Any:
    """The cube root of a value in a function of :func:`adaptk.rule`.

    It is computed by a fixed sequence of square roots, products and divisions, each rounded, so that the result is the
    same on every machine. For normal numbers the error is at most two last places. The root of 0 is 0, and that of
    infinity is infinity.

    Raises
    ------
    TypeError
        If `x` is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> round(adaptk.cbrt(-27.0), 12)
    -3.0
    """
    if not isinstance(x, Value) and not _is_number(x):
        raise TypeError(f"adaptk.cbrt: expected a number, or a value inside a function of adaptk.rule, got {_kind(x)}")
    a = abs(x)
    # The cube root is the fixed point of y <- (a y)^(1/4), which divides the error of log y by 4: after five iterations
    # y is within 30% for every float64. Newton's steps then square the error.
    half = sqrt(a)
    y = sqrt(half)
    for _ in range(4):
        y = sqrt(half * sqrt(y))
    for _ in range(5):
        y = where(y > 0, y - (y - a / where(y > 0, y * y, 1.0)) / 3, y)
    return where(a < math.inf, sign(x) * y, x)


def _check_function(name: str, *operands: Any) -> None:
    for x in operands:
        if isinstance(x, Value):
            if x._trace.functions:
                refuse(f"{name}: it is for rules; a {x._trace.what} is made of NumPy's functions")
        elif not _is_number(x):
            raise TypeError(
                f"adaptk.{name}: expected a number, or a value inside a function of adaptk.rule, got {_kind(x)}"
            )


def exp(x: Any) -> Any:
    """The exponential of a value in a function of :func:`adaptk.rule`.

    It is computed by a fixed sequence of about a hundred sums, products and comparisons, each rounded, so that the
    result is the same on every machine. If the exact result is a normal number, the error is at most 16 last places.

    Raises
    ------
    TypeError
        If `x` is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.exp(0.0)
    1.0
    >>> round(adaptk.exp(-1.0), 12) == round(math.exp(-1.0), 12)
    True
    """
    _check_function("exp", x)
    positive = x > 0
    rest = minimum(abs(x), 1023.0)
    product: Any = 1.0
    # |x| is a sum of powers of two and a rest below 1/4.
    for power in range(9, -3, -1):
        part = 2.0**power
        above = part <= rest
        factor = where(positive, math.exp(part) if part < 700 else math.inf, math.exp(-part))
        product = product * where(above, factor, 1.0)
        rest = rest - where(above, part, 0.0)
    rest = where(positive, rest, -rest)
    series: Any = 0.0
    for n in range(13, -1, -1):
        series = 1 / math.factorial(n) + rest * series
    return series * product


def atan2(y: Any, x: Any) -> Any:
    """The angle between the point (x, y) and the first axis, in a function of :func:`adaptk.rule`.

    It is computed by a fixed sequence of square roots, quotients, products and comparisons, each rounded, so that the
    result is the same on every machine. The error is at most 8 last places. The sign of zeros is ignored: the angle of
    (0, 0) is 0.

    Raises
    ------
    TypeError
        If `y` or `x` is neither such a value nor a number.

    Examples
    --------
    >>> import adaptk
    >>> adaptk.atan2(1.0, 1.0) == math.pi / 4
    True
    """
    _check_function("atan2", y, x)
    height, width = abs(y), abs(x)
    most, least = maximum(height, width), minimum(height, width)
    tangent = where(least < most, least / where(most > 0, most, 1.0), where(most > 0, 1.0, most))
    # Halve the angle three times, so that the series converges quickly.
    for _ in range(3):
        tangent = tangent / (1 + sqrt(1 + tangent * tangent))
    square = tangent * tangent
    series: Any = 1 / 17
    for n in range(15, 0, -2):
        series = 1 / n - square * series
    angle = 8 * (tangent * series)
    angle = where(width < height, math.pi / 2 - angle, angle)
    angle = where(x < 0, math.pi - angle, angle)
    return where(y < 0, -angle, angle)


def cumprod(x: Any) -> Any:
    """The product of the values of `x` at steps 1, 2, ..., `t`, in a function of :func:`adaptk.rule`.

    For momenta that change from step to step, as in NAdam. `x` is an expression of `h` and `t`; all factors use the
    hyperparameters of the current step. A product whose magnitude is below 2^-60 becomes 0.

    Raises
    ------
    TypeError
        If `x` is not an expression of `h` and `t`.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> @adaptk.rule(states={}, lr=0.5)
    ... def slower(p, g, h, t):
    ...     return p - adaptk.cumprod(h.lr + 0 * t) * g
    >>> p = np.zeros(1)
    >>> slower(p, np.ones(1), step=3)
    >>> p
    array([-0.125])
    >>> slower.unregister()
    """
    if not isinstance(x, Value) or x._element:
        refuse("cumprod: expected an expression of h and t")
    if x._trace.depends_on(x._node, _OVER):
        refuse("cumprod: expected an expression of h and t alone, got one of a reduction")
    return _apply("cumulative_product", x)


# ---- reductions


def _reduce(name: str, x: Any, over: str) -> Value:
    if over not in _OVER:
        raise ValueError(f"adaptk.{name}: over: {over!r} is not one of {', '.join(_OVER)}{hint(over, _OVER)}")
    if not isinstance(x, Value):
        raise TypeError(f"adaptk.{name}: expected a value inside a function of adaptk.rule, got {_kind(x)}")
    if not x._element:
        refuse(f"{name}: expected elements, got what is the same for all of them")
    kind = x._trace.kinds[x._node]
    if over in ("rows", "columns") and kind != "element":
        refuse(f"{name} over {over}: expected elements, got one number for each {kind}")
    if over == "matrix" and kind not in ("row", "column"):
        refuse(f"{name} over the matrix: expected one number for each row or each column, got one for each {kind}")
    return Value(x._trace, over in _LINES, x._trace.reduce(name, over, x._node))


def norm(x: Any, over: str = "tensor") -> Any:
    """The Euclidean norm of a value's elements, in a function of :func:`adaptk.rule`.

    Parameters
    ----------
    x : value
        An expression of elements. It is computed in the precision of the rule, float32 or float64. The squares are
        summed in float64, in an order that depends only on the size of the tensor.
    over : {"tensor", "all", "rows", "columns", "matrix"}
        ``"tensor"``: one number for each tensor. ``"all"``: one number for all tensors of the step that the rule
        updates. ``"rows"``: one number for each row, along the last axis. ``"columns"``: one number for each column,
        along the axis before the last. A tensor with more than two axes is a stack of matrices, and a tensor with fewer
        is one row. ``"matrix"``: reduces an expression with one number for each row of a matrix to one number for all
        its rows; likewise for columns.

    Returns
    -------
    value
        A number, like those of `h` and `t`. Over rows, columns or the matrix it is one number for each row or column,
        which operations treat like an element. Everything that depends on it is computed after a pass over the
        elements. Over rows and columns, sums of squares may overflow float64.

    Raises
    ------
    TypeError, ValueError
        If `x` is not an expression of elements, or `over` is unknown.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> @adaptk.rule(lr=1.0)
    ... def normalized(p, g, h, t):
    ...     return p - h.lr / adaptk.norm(g) * g
    >>> p = np.zeros(2)
    >>> normalized(p, np.array([3.0, 4.0]), step=1)
    >>> p
    array([-0.6, -0.8])
    >>> normalized.unregister()
    """
    return _reduce("norm", x, over)


def sum(x: Any, over: str = "tensor") -> Any:
    """The sum of a value's elements, in a function of :func:`adaptk.rule`; see :func:`norm`.

    Raises
    ------
    TypeError, ValueError
        If `x` is not an expression of elements, or `over` is unknown.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> @adaptk.rule(lr=1.0)
    ... def towards(p, g, h, t):
    ...     return p - h.lr * adaptk.sum(p * g) * g
    >>> p = np.ones(2)
    >>> towards(p, np.array([0.5, 0.0]), step=1)
    >>> p
    array([0.75, 1.  ])
    >>> towards.unregister()
    """
    return _reduce("sum", x, over)


def mean(x: Any, over: str = "tensor") -> Any:
    """The mean of a value's elements, in a function of :func:`adaptk.rule`; see :func:`norm`.

    Raises
    ------
    TypeError, ValueError
        If `x` is not an expression of elements, or `over` is unknown.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> @adaptk.rule(lr=1.0)
    ... def centered(p, g, h, t):
    ...     return p - h.lr * (g - adaptk.mean(g))
    >>> p = np.zeros(2)
    >>> centered(p, np.array([1.0, 3.0]), step=1)
    >>> p
    array([ 1., -1.])
    >>> centered.unregister()
    """
    return _reduce("mean", x, over)


def max(x: Any, over: str = "tensor") -> Any:
    """The largest of a value's elements, in a function of :func:`adaptk.rule`; see :func:`norm`.

    The result is NaN if an element is NaN, and the positive zero if the largest elements are zeros of both signs. The
    largest magnitude is ``adaptk.max(adaptk.abs(x))``.

    Raises
    ------
    TypeError, ValueError
        If `x` is not an expression of elements, or `over` is unknown.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> @adaptk.rule(lr=1.0)
    ... def longest(p, g, h, t):
    ...     return p - h.lr / adaptk.max(adaptk.abs(g)) * g
    >>> p = np.zeros(2)
    >>> longest(p, np.array([1.0, -4.0]), step=1)
    >>> p
    array([-0.25,  1.  ])
    >>> longest.unregister()
    """
    return _reduce("max", x, over)


# ---- tracing


def trace_rule(
    function: Callable[..., Any],
    names: Sequence[str],
    starts: dict[str, str],
    hyperparameters: Sequence[str],
    carried: Sequence[str] = (),
    per: Sequence[str] | None = None,
) -> tuple[Trace, list[int]]:
    """Call a rule's function once. Returns the trace and the nodes of the results.

    `starts` has the states that start as a copy of the param ("param") or of the first gradient ("grad"). The nodes of
    the carried numbers come last; these and the nodes of states per tensor are scalar nodes.
    """
    per = per or ["element"] * len(names)
    trace = Trace(per=per)
    step = Value(trace, False, trace.add(False, "step"))
    hypers = Hypers({h: Value(trace, False, trace.add(False, "hyper", i)) for i, h in enumerate(hyperparameters)})
    param = Value(trace, True, trace.add(True, "param"))
    grad = Value(trace, True, trace.add(True, "grad"))
    states = [Value(trace, s != "tensor", trace.add(s != "tensor", "state", i)) for i, s in enumerate(per)]
    for i, name in enumerate(names):
        if name in starts:
            first = grad if starts[name] == "grad" else Value(trace, True, trace.add(True, "param_as_stored"))
            states[i] = where(step == 1, first, states[i])
    returned = function(param, grad, *states, hypers, step)
    wanted = ["p", *names, *carried]
    results = [returned] if isinstance(returned, Value) or _is_number(returned) else returned
    where_from = f"{os.path.basename(function.__code__.co_filename)}, line {function.__code__.co_firstlineno}"
    who = f"{where_from}: {function.__name__}() returns"
    text = ", ".join(wanted)
    if not isinstance(results, (tuple, list)):
        raise RuleError(f"{who} {_kind(returned) if returned is not None else 'nothing'}, expected {text}")
    if len(results) < len(wanted):
        missing = ", ".join(wanted[len(results) :])
        raise RuleError(
            f"{who} {len(results)} value{'s' if len(results) != 1 else ''}, expected {len(wanted)}: {text}; "
            f"every state{' and carried number' if carried else ''} is returned, changed or not: {missing} is missing"
        )
    if len(results) > len(wanted):
        raise RuleError(f"{who} {len(results)} values, expected {len(wanted)}: {text}")
    nodes = []
    for name, x, of in zip(wanted, results, ["element", *per, *("" for _ in carried)], strict=True):
        if not isinstance(x, Value) and not _is_number(x):
            raise RuleError(f"{who} {_kind(x)} as {name}, expected a number")
        if of not in ("element", "") and isinstance(x, Value) and x._element:
            kind = trace.kinds[x._node]
            if of == "tensor" or kind not in (of, "tensor"):
                raise RuleError(f"{who} one number for each {kind} as {name}, which has one for each {of}")
        if name in carried and isinstance(x, Value) and x._element:
            raise RuleError(f"{who} an element's value as {name}; what is carried is an expression of h and t")
        if name in carried and isinstance(x, Value) and trace.depends_on(x._node, ("tensor",)):
            raise RuleError(f"{who} a reduction over one tensor as {name}; what is carried is the same for all of them")
        nodes.append(_lift(trace, x, of not in ("tensor", ""))._node)
    return trace, nodes
