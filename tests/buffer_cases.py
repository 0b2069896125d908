"""Shared by the tests of buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from helpers import (
    DeviceUnknown,
    Exchanged,
    ExchangedByExport,
    ExchangedLater,
    ExchangedUnknown,
    Export,
    OldProducer,
    Producer,
    assert_same,
    call,
    copies,
    make,
)


def check(rule: str, buffers: Mapping[str, Any], **hyper: Any) -> None:
    """The updates of arrays have the same bits as those of C-ordered copies."""
    wanted = copies(buffers)
    call(rule, buffers, **hyper)
    call(rule, wanted, **hyper)
    assert_same(buffers, wanted)


def check_wrapped(rule: str, wrap: Callable[[Any], Any], argument: str | None = None, **options: Any) -> list[Any]:
    """Objects that wrap arrays are updated like the arrays: all or one of the arguments, single and in a list."""
    wrapped: list[Any] = []

    def around(name: str, a: Any) -> Any:
        if argument not in (None, name):
            return a
        wrapped.append(wrap(a))
        return wrapped[-1]

    arrays, wanted = make(rule, **options), make(rule, **options)
    call(rule, {name: around(name, a) for name, a in arrays.items()})
    call(rule, wanted)
    assert_same(arrays, wanted)
    call(rule, {name: [around(name, a)] for name, a in arrays.items()}, step=4)
    call(rule, wanted, step=4)
    assert_same(arrays, wanted)
    return wrapped


# NumPy's array interface


class Interface:
    """An object that has only __array_interface__."""

    def __init__(self, a: Any, **changes: Any) -> None:
        self.kept = a
        self.interface = {**a.__array_interface__, **changes}

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.interface


# torch


def tensors_of(torch: Any, buffers: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors that share the memory of arrays."""

    def wrap(a: Any) -> Any:
        if a.dtype.name == "bfloat16":
            return torch.from_numpy(a.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(a)

    return {name: wrap(b) for name, b in buffers.items()}


# DLPack


PRODUCERS: dict[str, Callable[..., Any]] = {
    "versioned": Producer,
    "unversioned": lambda a, **fields: Producer(a, versioned=False, **fields),
    "without max_version": OldProducer,
    "without a device": DeviceUnknown,
    "described": Exchanged,
    "exported": ExchangedByExport,
    "described, later table": ExchangedLater,
    "later table only": ExchangedUnknown,
}


@pytest.fixture(autouse=True)
def no_exports() -> None:
    """Clears exports, so that those of a failed test do not make other tests fail."""
    Export.live.clear()


class Raises:
    """An object whose export raises an error, or whose __dlpack_device__ already does."""

    def __init__(self, error: type[BaseException], device: Any = (1, 0)) -> None:
        self.error, self.device = error, device

    def __dlpack__(self, **_: Any) -> Any:
        raise self.error("not today")

    def __dlpack_device__(self) -> Any:
        if self.device == "raises":
            raise self.error("not today")
        return self.device


class Returns:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __dlpack__(self, *, max_version: Any = None) -> Any:
        return self.value
