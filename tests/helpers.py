"""Buffers for every rule, exact comparison of memory, and hand-written DLPack producers."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import adaptk
import numpy as np
import pytest

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

Array = np.ndarray[Any, Any]


def first_tier(values: Iterable[Any], *these: Any) -> list[Any]:
    """Values of a test parameter: the default tier runs only the first ones. See CONTRIBUTING.md."""
    return [v if v in these else pytest.param(v, marks=pytest.mark.full) for v in values]


RULES = adaptk.rules()
# For code that is the same for all rules: rules with no, two and three states.
THREE_RULES = ("sgd", "adam", "rmsprop_centered_momentum")
FLOATS: dict[str, Any] = {"float32": np.float32, "float64": np.float64, "float16": np.float16}
if bfloat16 is not None:
    FLOATS["bfloat16"] = bfloat16
PRECISION = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def state_dtype(param: str) -> str:
    """The type of the states for a param of this type."""
    return "float64" if param == "float64" else "float32"


# All pairs of types of a param and its gradient.
PAIRS = [(param, grad) for param in FLOATS for grad in FLOATS]
# Pairs in which each type occurs once as a param and once as a gradient, never with itself.
SOME_PAIRS = list(zip(FLOATS, [*list(FLOATS)[1:], *list(FLOATS)[:1]], strict=True))


def arguments(rule: str) -> list[str]:
    """The names of the buffers of a rule, in the order of its function."""
    return ["param", "grad", *(s.name for s in RULES[rule].states)]


def dtype_of(argument: str, param: str, grad: str | None = None) -> np.dtype[Any]:
    """The dtype of an argument, for a param (and a gradient) of these types."""
    name = param if argument == "param" else (grad or param) if argument == "grad" else state_dtype(param)
    return np.dtype(FLOATS[name])


def values(argument: str, n: int, seed: int) -> Array:
    """Numbers for the buffers of a rule: states are positive, like sums of squares and step sizes."""
    rng = np.random.default_rng([seed, *argument.encode()])
    return rng.normal(size=n) if argument in ("param", "grad") else rng.uniform(0.1, 1.0, size=n)


def make(
    rule: str, shape: int | Sequence[int] = 5, param: str = "float32", grad: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """New C-ordered arrays for every buffer of a rule, by name."""
    n = int(np.prod(shape))
    return {name: values(name, n, seed).astype(dtype_of(name, param, grad)).reshape(shape) for name in arguments(rule)}


def make_list(rule: str, sizes: Iterable[int], param: str = "float32", grad: str | None = None) -> dict[str, list[Any]]:
    """Lists of new arrays for every buffer of a rule, by name."""
    tensors = [make(rule, n, param, grad, seed=i) for i, n in enumerate(sizes)]
    return {name: [t[name] for t in tensors] for name in arguments(rule)}


def call(rule: str, buffers: Mapping[str, Any], **hyper: Any) -> None:
    """Call the function of a rule with its buffers by position, by default at step 3."""
    function = getattr(adaptk.ops, rule)
    assert function(*(buffers[name] for name in arguments(rule)), **{"step": 3, **hyper}) is None


def call_by_keyword(rule: str, buffers: Mapping[str, Any], **hyper: Any) -> None:
    """Call the function of a rule with its buffers by keyword, in reverse order."""
    function = getattr(adaptk.ops, rule)
    assert function(**{"step": 3, **hyper}, **dict(reversed(buffers.items()))) is None


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays have the same shape, dtype and bits, element by element; all NaNs are equal."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.tobytes() == b.tobytes():
        return True
    if a.dtype.kind in "biu":
        return False
    # The bits of a NaN may differ between instruction sets, as the README says.
    nan = np.isnan(a)
    return bool((nan == np.isnan(b)).all()) and a[~nan].tobytes() == b[~nan].tobytes()


def copies(buffers: Mapping[str, Any]) -> dict[str, Any]:
    """C-ordered copies of arrays, or of lists of them."""
    return {
        name: [np.array(a, order="C") for a in b] if isinstance(b, (list, tuple)) else np.array(b, order="C")
        for name, b in buffers.items()
    }


def assert_same(got: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    """Assert that arrays, or lists of them, have the same bits."""
    assert got.keys() == want.keys()
    for name in want:
        several = isinstance(want[name], (list, tuple))
        pairs = zip(got[name], want[name], strict=True) if several else [(got[name], want[name])]
        for i, (a, b) in enumerate(pairs):
            assert same_bits(a, b), (name, i)


# Errors


def arrays_in(x: Any) -> Iterator[Array]:
    """The base arrays (whole blocks of memory) of the arrays in a buffer argument."""
    if isinstance(x, (list, tuple)):
        for y in x:
            yield from arrays_in(y)
    elif isinstance(x, np.ndarray):
        while isinstance(x.base, np.ndarray):
            x = x.base
        yield x


def memory(x: Any) -> list[bytes]:
    """All bytes of the arrays in `x`, including those of the blocks that they are views of."""
    return [np.asarray(a).tobytes() for a in arrays_in(x)]


def mentions(message: str, label: str) -> bool:
    """Whether a message contains an argument's name as a whole word."""
    return re.search(rf"(?<![\w.]){re.escape(label)}(?![\w\[])", message) is not None


@contextlib.contextmanager
def refused(
    exception: type[Exception] | tuple[type[Exception], ...], *labels: str, unchanged: Any = ()
) -> Iterator[None]:
    """Asserts that the block raises one of these exceptions, names the arguments, and does not change the buffers."""
    before = memory(unchanged)
    with pytest.raises(exception) as info:
        yield
    message = str(info.value)
    for label in labels:
        assert mentions(message, label), f"no {label!r} in {message!r}"
    assert memory(unchanged) == before, "a buffer changed"


# Hyperparameters


def interval(text: str) -> tuple[float, float, bool, bool]:
    """The ends of an interval such as "[0, 1)", and whether they belong to it."""
    low, high = text[1:-1].split(", ")
    return float(low), float(high), text[0] == "[", text[-1] == "]"


def outside(text: str) -> list[float]:
    """Numbers just outside an interval and far from it, and NaN."""
    low, high, has_low, has_high = interval(text)
    candidates = [np.nan, -np.inf, np.inf, -1e300, 1e300, low, high]
    candidates += [np.nextafter(low, -np.inf), np.nextafter(high, np.inf)]
    return [x for x in map(float, candidates) if not inside_of(x, low, high, has_low, has_high)]


def inside(text: str) -> list[float]:
    """Numbers at the ends of an interval and between them."""
    low, high, has_low, has_high = interval(text)
    candidates = [low, high, np.nextafter(low, np.inf), np.nextafter(high, -np.inf), low + 0.5, -0.0]
    return [x for x in map(float, candidates) if inside_of(x, low, high, has_low, has_high)]


def inside_of(x: float, low: float, high: float, has_low: bool, has_high: bool) -> bool:
    return (low < x or (has_low and x == low)) and (x < high or (has_high and x == high))


# Memory


def aligned_to(offset: int, shape: int | Sequence[int], dtype: Any) -> Array:
    """An array in a bytearray, `offset` bytes after a multiple of 64. It and its margins are filled with 0xAA."""
    dtype = np.dtype(dtype)
    n = int(np.prod(shape))
    raw = bytearray(b"\xaa" * (n * dtype.itemsize + 192))
    start = -np.frombuffer(raw, np.uint8).ctypes.data % 64 + offset
    flat = np.frombuffer(raw, np.uint8)[start : start + n * dtype.itemsize]
    return flat.view(dtype).reshape(shape)


def margins(a: Array) -> tuple[bytes, bytes]:
    """The bytes before and after an array of `aligned_to`."""
    (whole,) = arrays_in(a)
    start = a.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return whole[:start].tobytes(), whole[start + a.nbytes :].tobytes()


def resident_bytes() -> int | None:
    """The resident memory of this process, or None if it is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def available_bytes() -> int | None:
    """The available memory, or None if it is not known."""
    limits = []
    with contextlib.suppress(OSError), open("/proc/meminfo") as f:
        limits += [int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable:")]
    control = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limits.append(int((control / "memory.max").read_text()) - int((control / "memory.current").read_text()))
    return min(limits, default=None)


def growth(work: Callable[[], None], warm_up: Callable[[], None]) -> int | None:
    """The growth of the process in bytes during `work`. `warm_up` runs first, so that one-time allocations do not
    count."""
    warm_up()
    gc.collect()
    before = resident_bytes()
    work()
    gc.collect()
    after = resident_bytes()
    return None if before is None or after is None else after - before


# DLPack

CPU, CUDA, CUDA_HOST = 1, 2, 3
INT, UINT, FLOAT, BFLOAT, COMPLEX = 0, 1, 2, 4, 5
FLOAT8_E4M3FN, FLOAT8_E5M2 = 10, 12
READ_ONLY, IS_COPIED = 1, 2


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_capsule_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# A capsule keeps a pointer to its name, so the names must stay alive.
_VERSIONED, _UNVERSIONED = b"dltensor_versioned", b"dltensor"


class Export:
    """The structures of one export, and the number of times its consumer has deleted it."""

    live: ClassVar[dict[int, Export]] = {}

    def __init__(self, array: Array, versioned: bool, fields: Mapping[str, Any]) -> None:
        self.deletions = 0
        fields = dict(fields)
        shape = fields.pop("shape", array.shape)
        strides = fields.pop("strides", tuple(s // array.itemsize for s in array.strides))
        self.shape = None if shape is None else (ctypes.c_int64 * max(len(shape), 1))(*shape)
        self.strides = None if strides is None else (ctypes.c_int64 * max(len(strides), 1))(*strides)
        self.managed: Any = ManagedVersioned(major=1, minor=1) if versioned else Managed()
        self.managed.deleter = ctypes.cast(_deleter, ctypes.c_void_p)
        for name in ("major", "minor", "flags", "deleter"):
            if name in fields:
                setattr(self.managed, name, fields.pop(name))
        kinds = {"bfloat16": BFLOAT, "float8_e4m3fn": FLOAT8_E4M3FN, "float8_e5m2": FLOAT8_E5M2}
        kind = kinds.get(array.dtype.name) or {"f": FLOAT, "c": COMPLEX, "i": INT, "u": UINT}[array.dtype.kind]
        described = {
            "data": array.__array_interface__["data"][0],
            "device_type": CPU,
            "ndim": len(shape or ()),
            "code": kind,
            "bits": array.itemsize * 8,
            "lanes": 1,
            **fields,
        }
        for name, value in described.items():
            setattr(self.managed.tensor, name, value)
        self.managed.tensor.shape = self.shape
        self.managed.tensor.strides = self.strides
        self.address = ctypes.addressof(self.managed)
        self.live[self.address] = self

    def capsule(self) -> Any:
        name = _VERSIONED if isinstance(self.managed, ManagedVersioned) else _UNVERSIONED
        return _capsule_new(self.address, name, ctypes.cast(_capsule_gone, ctypes.c_void_p))


def _delete(managed: int) -> None:
    """The deleter, which consumers call. A second deletion is a KeyError, which pytest reports."""
    Export.live.pop(managed).deletions += 1


def _destroy_capsule(capsule: int) -> None:
    """Deletes exports that were not consumed."""
    for name in (_VERSIONED, _UNVERSIONED):
        if _capsule_is_valid(capsule, name):
            _delete(_capsule_pointer(capsule, name))


_deleter = _Destructor(_delete)
_capsule_gone = _Destructor(_destroy_capsule)


class Producer:
    """An object with __dlpack__ that shares the memory of an array; `fields` replace members of the structures."""

    def __init__(self, array: Array, *, versioned: bool = True, **fields: Any) -> None:
        self.array = array
        self.versioned = versioned
        self.fields = fields
        self.exports: list[Export] = []
        self.max_versions: list[Any] = []

    def export(self) -> Export:
        self.exports.append(Export(self.array, self.versioned, self.fields))
        return self.exports[-1]

    def __dlpack__(self, *, max_version: Any = None) -> Any:
        self.max_versions.append(max_version)
        return self.export().capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.fields.get("device_type", CPU), 0

    def closed(self) -> bool:
        """Whether every export was deleted exactly once."""
        return all(e.deletions == 1 for e in self.exports)


class DeviceUnknown:
    """A producer without __dlpack_device__."""

    def __init__(self, array: Array, **fields: Any) -> None:
        self.producer = Producer(array, **fields)

    def __dlpack__(self, *, max_version: Any = None) -> Any:
        return self.producer.__dlpack__(max_version=max_version)

    def closed(self) -> bool:
        return self.producer.closed()


class OldProducer(Producer):
    """A producer from before versioned DLPack: its method does not know `max_version`."""

    def __init__(self, array: Array, **fields: Any) -> None:
        super().__init__(array, versioned=False, **fields)

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.export().capsule()


# The exchange API: a table of functions on the type instead of a method


class ExchangeTable(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("export", ctypes.c_void_p),
        ("wrap", ctypes.c_void_p),
        ("describe", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


_ExportFunction = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
_DescribeFunction = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))


@_ExportFunction
def _export(producer: Producer, out: Any) -> int:
    out[0] = producer.export().address
    return 0


@_DescribeFunction
def _describe(producer: Producer, out: Any) -> int:
    export = producer.export()
    _delete(export.address)
    ctypes.memmove(out, ctypes.addressof(export.managed.tensor), ctypes.sizeof(DLTensor))
    return 0


_EXCHANGE = b"dlpack_exchange_api"
_tables: list[ExchangeTable] = []


def exchange_capsule(describe: bool, major: int = 1, previous: bool = False) -> Any:
    """A capsule with a table of the exchange API; with `previous`, of a later version that points to this one."""
    table = ExchangeTable(major=major, minor=3, export=ctypes.cast(_export, ctypes.c_void_p))
    if describe:
        table.describe = ctypes.cast(_describe, ctypes.c_void_p)
    _tables.append(table)
    if previous:
        later = ExchangeTable(major=major + 1, previous=ctypes.addressof(table))
        _tables.append(later)
        table = later
    return _capsule_new(ctypes.addressof(table), _EXCHANGE, None)


class _Exchanged(Producer):
    def __dlpack__(self, *, max_version: Any = None) -> Any:
        raise AssertionError("the exchange API is there")


class Exchanged(_Exchanged):
    """A type whose exchange API can describe tensors without an export."""

    __dlpack_c_exchange_api__ = exchange_capsule(describe=True)


class ExchangedByExport(_Exchanged):
    """A type whose exchange API can only export."""

    __dlpack_c_exchange_api__ = exchange_capsule(describe=False)


class ExchangedLater(_Exchanged):
    """A type whose exchange API has a later version and points to one of version 1."""

    __dlpack_c_exchange_api__ = exchange_capsule(describe=True, previous=True)


class ExchangedUnknown(Producer):
    """A type whose exchange API has only a later version, so that __dlpack__ must be used."""

    __dlpack_c_exchange_api__ = exchange_capsule(describe=True, major=2)
