"""The arguments that the solvers share: checked here, before anything is called."""

from __future__ import annotations

import ctypes
import inspect
import math
import operator
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adaptk import _solve
from adaptk.solve._result import Result

Array: TypeAlias = npt.NDArray[Any]
# (address, user data) of a compiled function
Compiled: TypeAlias = tuple[int, int]

METHODS = {"2-point": 1, "3-point": 2, "cs": 3}
# The base of all function pointers, which ctypes does not name.
_FUNCTION_POINTER: Any = ctypes.CFUNCTYPE(None).__mro__[1]
# Kinds of callables that cannot be compiled functions.
_PYTHON = frozenset({types.FunctionType, types.MethodType, types.BuiltinFunctionType})
_FLOAT64 = np.dtype(np.float64)
_FLOAT32 = np.dtype(np.float32)


def start(x0: Any, name: str = "x0") -> Array:
    """A copy of the start: 1-D, float32 or float64, finite."""
    if (x := _solve.copy_of_plain_start(x0)) is not None:
        return x
    no_mask(x0, name)
    x = np.array(x0) if not isinstance(x0, np.ndarray) else x0
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if x.dtype not in (_FLOAT64, _FLOAT32):
        if x.dtype.kind not in "biu":
            what = f"dtype {x.dtype}" if x.dtype.kind != "O" else f"{type(x0).__name__} of objects"
            raise TypeError(f"{name}: expected real numbers (float32, float64 or integers), got {what}")
        x = x.astype(np.float64)
    if x.ndim > 1:
        raise ValueError(f"{name}: expected a 1-D array, got shape {x.shape}")
    x = np.array(x.ravel(), order="C")
    if x.size == 0:
        raise ValueError(f"{name}: is empty")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{name}: must be finite, got {x[~np.isfinite(x)][0]} at index {int(np.argmin(np.isfinite(x)))}"
        )
    return x


def no_mask(value: Any, name: str, remedy: str = "fill it or leave those elements out") -> None:
    """Refuse a masked array that has masked elements, which conversion would use as if they were not."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        raise ValueError(f"{name}: has masked elements; {remedy}")


def tuple_of(args: Any) -> tuple[Any, ...]:
    return args if isinstance(args, tuple) else (args,)


_SCALAR = {8: ctypes.c_double, 4: ctypes.c_float}


def _signatures(size: int, kind: str) -> tuple[Any, list[Any]]:
    """ctypes' return type and argument types of the documented signatures."""
    real = _SCALAR[size]
    p, i, v = ctypes.POINTER(real), ctypes.c_int, ctypes.c_void_p
    return {
        "fun": (real, [i, p, v]),
        "jac": (None, [i, p, p, v]),
        "hess": (None, [i, p, p, v]),
        "hessp": (None, [i, p, p, p, v]),
        "residuals": (None, [i, i, p, p, v]),
        "jacobian": (None, [i, i, p, p, v]),
    }[kind]


def _declaration(size: int, kind: str) -> str:
    real = "double" if size == 8 else "float"
    return {
        "fun": f"{real} (int n, const {real} *x, void *user)",
        "jac": f"void (int n, const {real} *x, {real} *g, void *user)",
        "hess": f"void (int n, const {real} *x, {real} *h, void *user)",
        "hessp": f"void (int n, const {real} *x, const {real} *v, {real} *hv, void *user)",
        "residuals": f"void (int m, int n, const {real} *x, {real} *r, void *user)",
        "jacobian": f"void (int m, int n, const {real} *x, {real} *j, void *user)",
    }[kind]


def _plain(c_type: Any) -> str:
    """One name for the spellings of a C type: pointers of any kind and untyped ones are the same to a caller."""
    if c_type is None:
        return "void"
    if c_type is ctypes.c_void_p or issubclass(c_type, ctypes._Pointer):
        return "pointer"
    return str(c_type._type_)


def _check_ctypes(function: Any, name: str, size: int, kind: str) -> None:
    want_result, want_arguments = _signatures(size, kind)
    if function.argtypes is None:
        raise TypeError(f"{name}: set restype and argtypes of the ctypes function: {_declaration(size, kind)}")
    got = [_plain(function.restype), *map(_plain, function.argtypes)]
    if got != [_plain(want_result), *map(_plain, want_arguments)]:
        raise TypeError(f"{name}: the signature of a compiled function must be {_declaration(size, kind)}")
    for has, want in zip(function.argtypes, want_arguments, strict=True):
        if issubclass(has, ctypes._Pointer) and issubclass(want, ctypes._Pointer) and has._type_ is not want._type_:
            raise TypeError(f"{name}: the signature of a compiled function must be {_declaration(size, kind)}")


def _normal(signature: str) -> str:
    return "".join(signature.replace("const", " ").split())


def _types_only(size: int, kind: str) -> str:
    """The declaration as SciPy spells signatures: types without names."""
    real = "double" if size == 8 else "float"
    return {
        "fun": f"{real}(int,{real}*,void*)",
        "jac": f"void(int,{real}*,{real}*,void*)",
        "hess": f"void(int,{real}*,{real}*,void*)",
        "hessp": f"void(int,{real}*,{real}*,{real}*,void*)",
        "residuals": f"void(int,int,{real}*,{real}*,void*)",
        "jacobian": f"void(int,int,{real}*,{real}*,void*)",
    }[kind]


def _capsule(capsule: Any) -> tuple[int, int, str]:
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_GetContext.restype = ctypes.c_void_p
    api.PyCapsule_GetContext.argtypes = [ctypes.py_object]
    name = api.PyCapsule_GetName(capsule)
    pointer = api.PyCapsule_GetPointer(capsule, name)
    return pointer or 0, api.PyCapsule_GetContext(capsule) or 0, (name or b"").decode()


def compiled(function: Any, name: str, size: int, kind: str) -> Compiled | None:
    """Address and user data if `function` is compiled (ctypes, numba, scipy.LowLevelCallable), else None."""
    if function is None or inspect.isroutine(function):
        return None
    if isinstance(function, _FUNCTION_POINTER):
        _check_ctypes(function, name, size, kind)
        return ctypes.cast(function, ctypes.c_void_p).value or 0, 0
    kinds = type(function).__mro__
    if any(k.__name__ == "LowLevelCallable" and k.__module__.startswith("scipy.") for k in kinds):
        pointer, user, signature = _capsule(tuple.__getitem__(function, 0))
        if signature and _normal(signature) != _types_only(size, kind):
            raise TypeError(
                f"{name}: the signature of a compiled function must be {_declaration(size, kind)}, got {signature}"
            )
        return pointer, user
    if any(k.__name__ == "CFunc" and k.__module__.startswith("numba.") for k in kinds):
        _check_ctypes(function.ctypes, name, size, kind)
        return int(function.address), 0
    return None


def function(f: Any, name: str, size: int, kind: str, *, optional: bool = False) -> Any:
    """A callable or the address of a compiled function."""
    if f is None and optional:
        return None
    if type(f) in _PYTHON:
        return f
    address = compiled(f, name, size, kind)
    if address is not None:
        return address
    if not callable(f):
        raise TypeError(f"{name}: expected a callable or a compiled function, got {type(f).__name__}")
    return f


def real(value: Any, name: str, *, low: float = 0.0, open_low: bool = False) -> float:
    """A number in [low, inf), or (low, inf); infinity counts as one."""
    if type(value) is float and low < value:
        return value
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        number = float(value)
    except TypeError:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not (number > low or (number == low and not open_low)):
        raise ValueError(f"{name}: must be {'>' if open_low else '>='} {low:g}, got {number:g}")
    return number


def tolerance(value: Any, name: str) -> float | None:
    return None if value is None else real(value, name)


def whole(value: Any, name: str, *, low: int = 0) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        if isinstance(value, float) and value.is_integer():
            number = int(value)
        else:
            raise TypeError(f"{name}: expected a whole number, got {value!r}") from None
    if number < low:
        raise ValueError(f"{name}: must be >= {low}, got {number}")
    return number


def choice(value: Any, name: str, known: Mapping[Any, int]) -> int:
    try:
        return known[value]
    except (KeyError, TypeError):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}") from None


def per_variable(value: Any, name: str, x: Array, *, zero: bool = False) -> Array | None:
    """None, or a positive number for each variable."""
    if value is None:
        return None
    try:
        array = np.asarray(value, dtype=x.dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number or one for each variable") from None
    if array.shape not in ((), (1,), x.shape):
        raise ValueError(f"{name}: expected a number or shape {x.shape}, got shape {array.shape}")
    if not (np.isfinite(array).all() and ((array > 0).all() or (zero and (array >= 0).all()))):
        raise ValueError(f"{name}: must be finite and {'>= 0' if zero else 'positive'}")
    return np.array(np.broadcast_to(array, x.shape))


def method(value: Any, name: str) -> int:
    return choice(value, name, METHODS)


def derivatives(
    gradient: int, hessian: int, vectorized: bool, pair: bool, rel_step: Any, typical: Any, x: Array
) -> tuple[Any, ...]:
    if rel_step is None and typical is None:
        return gradient, hessian, vectorized, pair, None, None
    return (
        gradient,
        hessian,
        vectorized,
        pair,
        per_variable(rel_step, "rel_step", x),
        per_variable(typical, "typical", x),
    )


class _Progress:
    """One line on standard error that is overwritten; if it is not a terminal, only the last state."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stream = sys.stderr
        self.live = self.stream.isatty()
        self.shown = -math.inf
        self.line = ""

    def __call__(self, nit: int, value: float, step: float, gradient: float) -> None:
        shown_step = "" if math.isnan(step) else f"  step {step:.2e}"
        self.line = f"{self.name}: iteration {nit}  f {value:.8e}  gradient {gradient:.2e}{shown_step}"
        now = time.monotonic()
        if self.live and now - self.shown > 0.05:
            self.shown = now
            self.stream.write(f"\r\x1b[K{self.line}")
            self.stream.flush()

    def close(self, status: str) -> None:
        self.stream.write(f"{chr(13) + chr(27) + '[K' if self.live else ''}{self.line}  {status}\n")
        self.stream.flush()


def _takes_result(callback: Callable[..., Any]) -> bool:
    """SciPy's rule: a callback whose only parameter is named intermediate_result is called with that keyword."""
    try:
        parameters = inspect.signature(callback).parameters
    except (TypeError, ValueError):
        return False
    return set(parameters) == {"intermediate_result"}


def _is_true(answer: Any) -> bool:
    """Whether the answer is Python's or NumPy's True; other true objects, such as arrays, are not a request to stop."""
    return answer is True or (isinstance(answer, np.bool_) and bool(answer))


_NONE = (None, None, False, math.inf)


def common(
    name: str, callback: Any, disp: bool, history: bool, max_seconds: Any
) -> tuple[tuple[Any, ...], _Progress | None]:
    """The arguments of the iteration's monitor, and the progress line to close at the end."""
    if callback is None and not disp and not history and max_seconds is None:
        return _NONE, None
    wrapped: Callable[[Array, float, int], Any] | None = None
    if callback is not None:
        if not callable(callback):
            raise TypeError(f"callback: expected a callable, got {type(callback).__name__}")
        if _takes_result(callback):

            def wrapped(x: Array, fun: float, nit: int) -> bool:
                return _is_true(callback(intermediate_result=Result(x=x, fun=fun, nit=nit)))
        else:

            def wrapped(x: Array, fun: float, nit: int) -> bool:
                return _is_true(callback(x))

    seconds = math.inf if max_seconds is None else real(max_seconds, "max_seconds")
    progress = _Progress(name) if disp else None
    return (wrapped, progress, bool(history), seconds), progress


def unconstrained(constraints: Any) -> None:
    """Refuse constraints, which scipy.optimize.minimize passes to every custom method."""
    if constraints is not None and not (isinstance(constraints, Sequence) and len(constraints) == 0):
        raise ValueError("constraints: this method has none")


def gradient_options(fun: Any, jac: Any, x: Array, vectorized: bool) -> tuple[Any, Any, int, bool]:
    """fun, jac, the method of differences, and whether fun returns (value, gradient)."""
    size = x.dtype.itemsize
    f = function(fun, "fun", size, "fun")
    pair = jac is True
    differences = 0
    if jac is None or jac is False:
        differences = METHODS["2-point"]
    elif isinstance(jac, str):
        differences = method(jac, "jac")
    g = None if pair or differences else function(jac, "jac", size, "jac")
    is_compiled = isinstance(f, tuple)
    if pair and is_compiled:
        raise TypeError("jac: True is for Python functions that return (value, gradient); give the gradient's address")
    if differences == METHODS["cs"] and is_compiled:
        raise TypeError("jac: 'cs' calls fun with complex numbers, which a compiled function does not take")
    if vectorized and (is_compiled or not differences or differences == METHODS["cs"]):
        raise ValueError("vectorized: is for 2-point and 3-point differences of a Python function")
    return f, g, differences, pair


def transposed(bounds: Any, n: int) -> str:
    """A hint for bounds that are a pair for each variable, as in some solvers of SciPy."""
    try:
        pairs = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        return ""
    if pairs.shape != (n, 2) or not (pairs[:, 0] <= pairs[:, 1]).all():
        return ""
    lower, upper = pairs.T.tolist()
    return f"; for a pair for each variable write bounds=({lower}, {upper}), which is zip(*bounds)"


def bounds(bounds: Any, x: Array, name: str = "x0", *, fixed: bool = False) -> tuple[Any, Any]:
    """Lower and upper bounds of each variable of the start `x`; (None, None) if there are none.

    `fixed`: whether equal ones may hold a variable.
    """
    if bounds is None:
        return None, None
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        # SciPy's Bounds makes arrays of numbers.
        bounds = [b.reshape(()) if np.shape(b) == (1,) else b for b in (bounds.lb, bounds.ub)]
    if isinstance(bounds, (list, tuple)) and any(
        b is None or (isinstance(b, (list, tuple)) and any(v is None for v in b)) for b in bounds
    ):
        raise ValueError("bounds: None is not a bound; write -np.inf or np.inf")
    try:
        pair = [np.asarray(b, dtype=x.dtype) for b in bounds]
        if any(b.shape not in ((), x.shape) for b in pair):
            raise ValueError
        low, high = (np.array(np.broadcast_to(b, x.shape)) for b in pair)
    except (TypeError, ValueError):
        wanted = f"bounds: expected a pair (lower, upper) of numbers or of shape {x.shape}"
        raise ValueError(wanted + transposed(bounds, x.size)) from None
    if np.isnan(low).any() or np.isnan(high).any():
        raise ValueError("bounds: hold NaN")
    ordered = (low <= high) if fixed else (low < high)
    if not ordered.all():
        k = int(np.argmin(ordered))
        relation = "not be greater" if fixed else "be less"
        raise ValueError(
            f"bounds: lower must {relation} than upper, got {low[k]} and {high[k]} for variable {k}"
            + ("; fixed keeps a variable at its value" if low[k] == high[k] else "")
            + transposed(bounds, x.size)
        )
    outside = (x < low) | (x > high)
    if outside.any():
        k = int(np.argmax(outside))
        raise ValueError(f"{name}: variable {k} is {x[k]}, outside its bounds [{low[k]}, {high[k]}]")
    if not np.isfinite(low).any() and not np.isfinite(high).any():
        return None, None
    return low, high


def warn_unused(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            warnings.warn(f"{name} is not used by this method", RuntimeWarning, stacklevel=3)
