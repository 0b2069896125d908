"""Calls the handlers of adaptk._jax like XLA, with arrays in any memory."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import Array

_DTYPES = {
    "int8": 2,
    "int16": 3,
    "int32": 4,
    "int64": 5,
    "uint8": 6,
    "uint32": 8,
    "float16": 10,
    "float32": 11,
    "float64": 12,
    "bfloat16": 16,
}
_PRED, _ARRAY, _SCALAR, _STRING = 1, 1, 3, 4


class HandlerError(Exception):
    """An error that XLA would report."""


class Memory(NamedTuple):
    """The memory of a call's arrays, and copies to and from it."""

    put: Callable[[bytes], int]
    get: Callable[[int, int], bytes]


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("name", ctypes.c_char_p),
        ("size", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
    )


class _Array(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    )


@cache
def _library() -> ctypes.CDLL:
    import jax

    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("needs a C compiler")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jax_handler.so"
        source = Path(__file__).with_suffix(".c")
        flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-isystem", jax.ffi.include_dir()]
        subprocess.run([compiler, *flags, str(source), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    library.last_message.restype = ctypes.c_char_p
    return library


def _handler(platform: str) -> ctypes.c_void_p:
    from adaptk import _jax

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return ctypes.c_void_p(pointer(_jax.handlers[platform], None))


def _attributes(given: Mapping[str, Any], kept: list[Any]) -> Any:
    """The attributes in the order of their names, as XLA passes them."""
    made = []
    for name in sorted(given):
        value = given[name]
        if isinstance(value, str):
            data = ctypes.create_string_buffer(value.encode())
            kept.append(data)
            made.append(_Attribute(_STRING, 0, name.encode(), len(value), ctypes.addressof(data)))
            continue
        array = np.array(value)
        kept.append(array)
        dtype = _PRED if array.dtype == bool else _DTYPES[array.dtype.name]
        made.append(_Attribute(_ARRAY if array.ndim else _SCALAR, dtype, name.encode(), array.size, array.ctypes.data))
    return (_Attribute * len(made))(*made)


def _arrays(addresses: Sequence[int], arrays: Sequence[Array], kept: list[Any]) -> Any:
    made = []
    for address, x in zip(addresses, arrays, strict=True):
        dims = (ctypes.c_int64 * x.ndim)(*x.shape)
        kept.append(dims)
        made.append(_Array(_DTYPES[x.dtype.name], x.ndim, address, dims))
    return (_Array * len(made))(*made)


def call(
    platform: str,
    memory: Memory,
    operands: Sequence[Array],
    kept: int,
    attributes: Mapping[str, Any],
    *,
    in_place: bool = True,
    stream: int = 0,
) -> list[Array]:
    """The first `kept` operands after a step, in place or in other memory."""
    hold: list[Any] = []
    operands = [np.ascontiguousarray(x).reshape(x.shape) for x in operands]
    given = [memory.put(x.tobytes()) for x in operands]
    results = given[:kept] if in_place else [memory.put(bytes(x.nbytes)) for x in operands[:kept]]
    a, r = _arrays(given, operands, hold), _arrays(results, operands[:kept], hold)
    attrs = _attributes(attributes, hold)
    library = _library()
    code = library.call_handler(
        _handler(platform),
        ctypes.c_void_p(stream),
        *(x for array in (a, r, attrs) for x in (array, ctypes.c_int64(len(array)))),
    )
    if code != 0:
        raise HandlerError(library.last_message().decode())
    pairs = zip(results, operands[:kept], strict=True)
    return [np.frombuffer(memory.get(at, x.nbytes), x.dtype).reshape(x.shape) for at, x in pairs]


def route(monkeypatch: pytest.MonkeyPatch, step: Callable[..., list[Array]]) -> None:
    """Replaces XLA's calls by ``step(operands, kept, attributes)``; under vmap, operands have its axes."""
    import jax

    def ffi_call(
        target: str, results: Any, *, vmap_method: str, input_output_aliases: Any, has_side_effect: bool
    ) -> Callable[..., Any]:
        assert input_output_aliases == {i: i for i in range(len(results))}

        def run(*operands: Any, **attributes: Any) -> Any:
            def on_host(*arrays: Any) -> list[Array]:
                return step([np.asarray(x) for x in arrays], len(results), attributes)

            types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results]
            return jax.pure_callback(on_host, types, *operands, vmap_method=vmap_method)

        return run

    monkeypatch.setattr(jax.ffi, "ffi_call", ffi_call)
