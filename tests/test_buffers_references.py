"""References to buffers, and leaks."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import adaptk
import numpy as np
import pytest
from buffer_cases import (
    PRODUCERS,
    Interface,
    Raises,
    Returns,
    no_exports,  # noqa: F401
    tensors_of,
)
from helpers import (
    IS_COPIED,
    Export,
    Producer,
    call,
    growth,
    make,
)


@pytest.fixture
def frozen() -> Iterator[None]:
    """Excludes existing objects from garbage collection, which makes it fast."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def references(objects: Sequence[Any]) -> list[int]:
    gc.collect()
    return [sys.getrefcount(x) for x in objects]


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("kind", ["numpy", "torch", "interface", *PRODUCERS])
def test_references(kind: str) -> None:
    arrays = make("adam", 4)
    if kind == "torch":
        buffers = tensors_of(pytest.importorskip("torch"), arrays)
    else:
        wrap = {"numpy": lambda a: a, "interface": Interface, **PRODUCERS}[kind]
        buffers = {name: wrap(a) for name, a in arrays.items()}
    lists = {name: [b] for name, b in buffers.items()}
    step, lr, beta1 = 10**15 + 1, 0.0123, np.float64(0.8)
    hyper = {"step": step, "lr": lr, "beta1": beta1}
    objects = [*arrays.values(), *buffers.values(), *lists.values(), step, lr, beta1, adaptk.ops.adam]
    calls: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
        (buffers, {}, True),
        (lists, {}, True),
        (buffers, {"lr": -1.0}, False),
        (buffers, {"nonsense": lr}, False),
        ({**buffers, "exp_avg": buffers["param"]}, {}, False),
        ({**lists, "exp_avg": lists["param"]}, {}, False),
        ({**buffers, "exp_avg_sq": arrays["exp_avg"]}, {}, False),
        ({**buffers, "exp_avg_sq": None}, {}, False),
        ({**lists, "exp_avg_sq": [lr]}, {}, False),
        ({**lists, "grad": []}, {}, False),
    ]
    for given, changes, fine in calls:
        arguments_ = {**hyper, **changes}
        call("adam", buffers, **hyper)
        before = references(objects)
        for _ in range(5):
            if fine:
                call("adam", given, **arguments_)
            else:
                with pytest.raises((TypeError, ValueError)):
                    call("adam", given, **arguments_)
        assert references(objects) == before


def no_leak(work: Callable[[int], None], times: int) -> None:
    """Asserts that neither blocks of Python's allocator nor memory of the process leak."""
    work(times // 50)
    blocks = sys.getallocatedblocks()
    grown = growth(lambda: work(times), lambda: work(times // 50))
    assert sys.getallocatedblocks() - blocks < 500
    assert grown is None or grown < 4 << 20


@pytest.mark.usefixtures("frozen")
def test_a_million_calls_leak_nothing() -> None:
    b = make("adam", 3)
    p, g, m, v = b.values()
    lists = [[x] for x in b.values()]
    adam = adaptk.ops.adam

    def one(n: int) -> None:
        for t in range(1, n + 1):
            adam(p, g, m, v, step=t, lr=1e-9)

    def several(n: int) -> None:
        for t in range(1, n + 1):
            adam(*lists, step=t, lr=1e-9)

    no_leak(one, 700_000)
    no_leak(several, 300_000)


@pytest.mark.usefixtures("frozen")
def test_calls_by_dlpack_leak_nothing() -> None:
    class Wrapped:
        def __init__(self, a: Any) -> None:
            self.a = a

        def __dlpack__(self, **options: Any) -> Any:
            return self.a.__dlpack__(**options)

    class Plain:
        def __init__(self, a: Any) -> None:
            self.a = a

        def __dlpack__(self) -> Any:
            return self.a.__dlpack__()

    for kind in (Wrapped, Plain, Interface):
        b = [kind(x) for x in make("sgd", 3).values()]

        def work(n: int, b: list[Any] = b) -> None:
            for _ in range(n):
                adaptk.ops.sgd(*b, step=1)

        no_leak(work, 20_000)


@pytest.mark.usefixtures("frozen")
def test_calls_with_torch_leak_nothing(torch: Any) -> None:
    p, g = torch.ones(3), torch.ones(3)

    def work(n: int) -> None:
        for _ in range(n):
            adaptk.ops.sgd(p, g, step=1)

    no_leak(work, 200_000)


@pytest.mark.usefixtures("frozen")
def test_steps_of_an_optimizer_leak_nothing() -> None:
    opt, grads = adaptk.Adam([np.ones(3), np.ones(2)]), [np.ones(3), np.ones(2)]

    def work(n: int) -> None:
        for _ in range(n):
            opt.step(grads)

    no_leak(work, 100_000)


@pytest.mark.usefixtures("frozen")
def test_a_hundred_thousand_errors_leak_nothing() -> None:
    b = make("adam", 3)
    p, g, m, v = b.values()
    adam = adaptk.ops.adam
    no_export = Raises(BufferError)
    not_now = Returns(None)
    bad: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((p, g, m, None), {"step": 1}),
        ((p, g, m, m), {"step": 1}),
        ((p, g, m, v), {"step": 0}),
        ((p, g, m, v), {"step": 1, "lr": -1.0}),
        ((p, g, m, v), {"step": 1, "lr": "x"}),
        ((p, g, m, v), {"step": 1, "nonsense": 1}),
        ((p, g, m), {"step": 1}),
        ((p, g[:2], m, v), {"step": 1}),
        (([p, p], [g, g], [m, m], [v, v]), {"step": 1}),
        (([p], [g], [m], [no_export]), {"step": 1}),
        ((p, g, m, not_now), {"step": 1}),
        ((p, g, m, Interface(v, typestr="<i4")), {"step": 1}),
    ]

    def work(n: int) -> None:
        for i in range(n):
            args, options = bad[i % len(bad)]
            try:
                adam(*args, **options)
            except (TypeError, ValueError, BufferError):
                continue
            raise AssertionError(f"call {i % len(bad)} succeeded")

    no_leak(work, 100_000)


@pytest.mark.usefixtures("frozen")
def test_exports_with_errors_leak_nothing() -> None:
    def work(n: int) -> None:
        for i in range(n):
            p = Producer(np.ones(4, np.float32), flags=IS_COPIED * (i % 2))
            with pytest.raises((ValueError, BufferError)) as info:
                adaptk.ops.sgd(p, np.ones(3, np.float32), step=1)
            del info
            assert p.closed()

    no_leak(work, 2_000)
    assert not Export.live
