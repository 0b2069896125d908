"""The C interface through ctypes: the declarations of adaptk.h, and tensors of NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint8, c_uint16, c_uint64
from ctypes import c_void_p as pointer
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from helpers import RULES, Array

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "cpp" / "include" / "adaptk" / "adaptk.h"
# A DLL is in the folder of the module that needs it.
PACKAGE = Path(adaptk._core.__file__).parent
LIBRARY = next(path for pattern in ("lib/libadaptk.*", "adaptk-*.dll") for path in PACKAGE.glob(pattern))

OK, INVALID_ARGUMENT, INVALID_TYPE, UNKNOWN_NAME, BUSY, UNSUPPORTED = range(6)
CODES = {"float32": (2, 32), "float64": (2, 64), "float16": (2, 16), "bfloat16": (4, 16)}
CODES |= {"float8_e4m3fn": (10, 8), "float8_e5m2": (12, 8)}
CODES |= {"int8": (0, 8), "uint8": (1, 8), "int16": (0, 16), "int32": (0, 32), "int64": (0, 64)}


class Device(ctypes.Structure):
    _fields_ = (("device_type", c_int32), ("device_id", c_int32))


class DataType(ctypes.Structure):
    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", pointer),
        ("device", Device),
        ("ndim", c_int32),
        ("dtype", DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class Stored(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("data", POINTER(Tensor)), ("scales", POINTER(Tensor)), ("format", c_char_p))


class Rows(ctypes.Structure):
    _fields_ = (
        *(("size", c_size_t), ("indices", POINTER(Tensor)), ("values", POINTER(Tensor))),
        ("last_step", pointer),
    )


class Format(ctypes.Structure):
    _fields_ = (
        *(("name", c_char_p), ("dtype", DataType), ("bytes", c_size_t), ("block", c_size_t)),
        *(("stochastic", c_int), ("packed", c_size_t)),
    )


class Rule(ctypes.Structure):
    _fields_ = (
        *((name, c_char_p) for name in ("name", "summary", "formula", "source")),
        *(("hyper_count", c_size_t), ("state_count", c_size_t)),
    )


class HyperInfo(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("value", c_double), ("range", c_char_p), ("meaning", c_char_p))


class StateInfo(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("initial", c_double), ("initial_from", c_char_p))


class Preset(ctypes.Structure):
    _fields_ = (("convention", c_char_p), ("name", c_char_p), ("value", c_double))


class Hyper(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("value", c_double))


class Options(ctypes.Structure):
    _fields_ = (
        *(("size", c_size_t), ("grad_scale", c_double), ("clip_norm", c_double)),
        *(("skip_nonfinite", c_int), ("want_norm", c_int), ("stream", pointer)),
        ("stochastic_params", c_int),
        *(("copy_out", POINTER(POINTER(Tensor))), ("ema", POINTER(POINTER(Tensor)))),
        *(("ema_decay", c_double), ("grad_norm", c_double), ("zero_grad", c_int)),
        *(("param_format", c_char_p), ("param_sides", POINTER(POINTER(Tensor)))),
    )


class Report(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("grad_norm", c_double), ("has_norm", c_int), ("skipped", c_int))


lib = ctypes.CDLL(str(LIBRARY))
for _name, _type in {
    **dict.fromkeys(["last_error", "status_name", "version", "isa_at", "get_isa"], c_char_p),
    **dict.fromkeys(["isa_count", "rule_count", "rule_preset_count", "format_count", "scale_count"], c_size_t),
    **dict.fromkeys(["rule_at", "find_rule", "rule_load"], POINTER(Rule)),
    **dict.fromkeys(["format_at", "find_format", "state_format"], POINTER(Format)),
    "rule_hyper": POINTER(HyperInfo),
    "rule_state": POINTER(StateInfo),
    "rule_preset": POINTER(Preset),
    "rule_state_per": c_int,
}.items():
    getattr(lib, f"adaptk_{_name}").restype = _type


def error() -> str:
    """The error message of this thread's last call."""
    return lib.adaptk_last_error().decode()


class CError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(error())
        self.status = status


def check(status: int) -> None:
    if status != OK:
        raise CError(status)


def tensor(array: Array, **fields: Any) -> Tensor:
    """The DLTensor of an array; `fields` replace its contents."""
    code, bits = CODES[array.dtype.name]
    t = Tensor(
        data=array.ctypes.data,
        device=Device(1, 0),
        ndim=array.ndim,
        dtype=DataType(code, bits, 1),
        shape=(c_int64 * max(array.ndim, 1))(*array.shape),
        strides=(c_int64 * max(array.ndim, 1))(*(s // array.itemsize for s in array.strides)),
    )
    t.kept = array  # keeps the memory that it points to
    for name, value in fields.items():
        if name in ("shape", "strides") and value is not None:
            value = (c_int64 * max(len(value), 1))(*value)
        if name in ("code", "bits", "lanes"):
            setattr(t.dtype, name, value)
        elif name in ("device_type", "device_id"):
            setattr(t.device, name, value)
        else:
            setattr(t, name, value)
    return t


def tensors(items: Sequence[Array | Tensor | None]) -> Any:
    """An array of pointers to tensors; None is NULL."""
    made = [t if t is None or isinstance(t, Tensor) else tensor(t) for t in items]
    out = (POINTER(Tensor) * max(len(made), 1))()
    for i, t in enumerate(made):
        if t is not None:
            out[i] = ctypes.pointer(t)
    out.kept = made
    return out


def stored(state: Any, **fields: Any) -> Stored:
    """A state in any format, from an array or a result of adaptk.formats.quantize(); `fields` replace its contents."""
    data, scales, name = state if isinstance(state, tuple) else (state, None, None)
    parts = [x if x is None or isinstance(x, Tensor) else tensor(x) for x in (data, scales)]
    parts = [fields.pop(part, x) for part, x in zip(("data", "scales"), parts, strict=True)]
    given = {"size": ctypes.sizeof(Stored), "format": None if name is None else name.encode(), **fields}
    s = Stored(data=None, scales=None, **given)
    for part, x in zip(("data", "scales"), parts, strict=True):
        if x is not None:
            setattr(s, part, ctypes.pointer(x))
    s.kept = parts
    return s


def all_stored(items: Sequence[Any]) -> Any:
    """An array of pointers to states; None is NULL."""
    made = [s if s is None or isinstance(s, Stored) else stored(s) for s in items]
    out = (POINTER(Stored) * max(len(made), 1))()
    for i, s in enumerate(made):
        if s is not None:
            out[i] = ctypes.pointer(s)
    out.kept = made
    return out


def hypers(values: Mapping[str, Any]) -> tuple[Any, c_size_t]:
    made = (Hyper * max(len(values), 1))(*(Hyper(name.encode(), float(v)) for name, v in values.items()))
    return made, c_size_t(len(values))


def options(**values: Any) -> Any:
    return byref(Options(**{"size": ctypes.sizeof(Options), "grad_scale": 1.0, "grad_norm": -1.0, **values}))


def report() -> Report:
    return Report(size=ctypes.sizeof(Report))


def state_arrays(rule: str, states: Mapping[str, Sequence[Array]]) -> list[Array]:
    """All states in the order of the C functions' arguments."""
    names = [s.name for s in RULES[rule].states]
    return [states[name][i] for i in range(len(next(iter(states.values()), []))) for name in names]


def step(
    rule: str,
    params: Sequence[Any],
    grads: Sequence[Any],
    states: Sequence[Any],
    number: int,
    hyper: Mapping[str, Any] | None = None,
    given: Any = None,
    out: Report | None = None,
) -> None:
    check(
        lib.adaptk_step(
            *(rule.encode(), *hypers(hyper or {}), c_int64(number), c_size_t(len(params))),
            *(tensors(params), tensors(grads), tensors(states), given, None if out is None else byref(out)),
        )
    )


def step_stored(
    rule: str,
    params: Sequence[Any],
    grads: Sequence[Any],
    states: Sequence[Any],
    number: int,
    seed: int = 0,
    given: Any = None,
    **hyper: Any,
) -> None:
    check(
        lib.adaptk_step_stored(
            *(rule.encode(), *hypers(hyper), c_int64(number), c_uint64(seed), c_size_t(len(params))),
            *(tensors(params), tensors(grads), all_stored(states), given, None),
        )
    )


LAZY, DENSE, CATCH_UP = range(3)


def rows(indices: Any, values: Any, last_step: Array | None = None, **fields: Any) -> Rows:
    """A sparse gradient; `fields` replace its contents."""
    parts = [x if x is None or isinstance(x, Tensor) else tensor(x) for x in (indices, values)]
    r = Rows(**{"size": ctypes.sizeof(Rows), **fields})
    for name, x in zip(("indices", "values"), parts, strict=True):
        if x is not None:
            setattr(r, name, ctypes.pointer(x))
    if last_step is not None:
        r.last_step = last_step.ctypes.data
    r.kept = [parts, last_step]
    return r


def step_rows(
    rule: str,
    params: Sequence[Any],
    grads: Sequence[Rows | None],
    states: Sequence[Any],
    number: int,
    mode: int = LAZY,
    seed: int = 0,
    given: Any = None,
    out: Report | None = None,
    **hyper: Any,
) -> None:
    given_rows = (POINTER(Rows) * max(len(grads), 1))()
    for i, g in enumerate(grads):
        if g is not None:
            given_rows[i] = ctypes.pointer(g)
    check(
        lib.adaptk_step_rows(
            *(rule.encode(), *hypers(hyper), c_int64(number), c_uint64(seed), c_size_t(len(params))),
            *(tensors(params), given_rows, all_stored(states), c_int(mode), given),
            None if out is None else byref(out),
        )
    )


class Plan:
    """A plan, which is destroyed with the object."""

    def __init__(self, rule: str, params: Sequence[Any], states: Sequence[Any], **hyper: Any) -> None:
        self.handle = pointer()
        self.size = len(params)
        check(
            lib.adaptk_plan_create(
                *(rule.encode(), *hypers(hyper), c_size_t(len(params))),
                *(tensors(params), tensors(states), byref(self.handle)),
            )
        )

    def __del__(self) -> None:
        assert lib.adaptk_plan_destroy(self.handle) == OK

    def add_group(self, rule: str, params: Sequence[Any], states: Sequence[Any], **hyper: Any) -> None:
        check(
            lib.adaptk_plan_add_group(
                *(self.handle, rule.encode(), *hypers(hyper), c_size_t(len(params))),
                *(tensors(params), tensors(states)),
            )
        )
        self.size += len(params)

    def init_states(self) -> None:
        check(lib.adaptk_plan_init_states(self.handle))

    @property
    def seed(self) -> int:
        value = c_uint64()
        check(lib.adaptk_plan_get_seed(self.handle, c_size_t(0), byref(value)))
        return value.value

    @seed.setter
    def seed(self, value: int) -> None:
        check(lib.adaptk_plan_set_seed(self.handle, c_size_t(0), c_uint64(value)))

    def set(self, group: int = 0, **hyper: Any) -> None:
        check(lib.adaptk_plan_set_hypers(self.handle, c_size_t(group), *hypers(hyper)))

    def get(self, name: str, group: int = 0) -> float:
        value = c_double()
        check(lib.adaptk_plan_get_hyper(self.handle, c_size_t(group), name.encode(), byref(value)))
        return value.value

    def step(self, grads: Sequence[Any], given: Any = None) -> None:
        check(lib.adaptk_plan_step(self.handle, c_size_t(len(grads)), tensors(grads), given))

    def report(self) -> Report:
        out = report()
        check(lib.adaptk_plan_report(self.handle, byref(out)))
        return out

    @property
    def steps(self) -> list[int]:
        out = (c_int64 * self.size)()
        check(lib.adaptk_plan_get_steps(self.handle, c_size_t(self.size), out))
        return list(out)

    @steps.setter
    def steps(self, values: Sequence[int]) -> None:
        check(lib.adaptk_plan_set_steps(self.handle, c_size_t(len(values)), (c_int64 * len(values))(*values)))


class StoredPlan(Plan):
    """A plan whose states have any format."""

    def __init__(self, rule: str, params: Sequence[Any], states: Sequence[Any], **hyper: Any) -> None:
        self.handle = pointer()
        self.size = len(params)
        check(
            lib.adaptk_plan_create_stored(
                *(rule.encode(), *hypers(hyper), c_size_t(len(params))),
                *(tensors(params), all_stored(states), byref(self.handle)),
            )
        )

    def add_group(self, rule: str, params: Sequence[Any], states: Sequence[Any], **hyper: Any) -> None:
        check(
            lib.adaptk_plan_add_group_stored(
                *(self.handle, rule.encode(), *hypers(hyper), c_size_t(len(params))),
                *(tensors(params), all_stored(states)),
            )
        )
        self.size += len(params)


def new_states(rule: str, params: Sequence[Array]) -> list[Array]:
    """Arrays for the states of all params, filled with values that must be overwritten before use."""
    count = len(RULES[rule].states)
    wide = [np.float64 if p.dtype == np.float64 else np.float32 for p in params]
    return [np.full_like(p, np.nan, dtype=t) for p, t in zip(params, wide, strict=True) for _ in range(count)]
