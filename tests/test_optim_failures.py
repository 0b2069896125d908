"""A failed step of an optimizer object changes nothing."""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import adaptk
import numpy as np
import pytest
from optim_cases import (
    Array,
    all_bits,
    arrays,
    in_another_process,
    like,
    snapshot,
    state_bits,
)


def quietly(change: Callable[[], None]) -> None:
    """Suppress NumPy's deprecation warning for setting an array's shape in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        change()


class World:
    """An optimizer of groups with different rules after some steps, and a reference copy."""

    def __init__(self) -> None:
        self.params, self.optimizer = self.make()
        self.others, self.twin = self.make()

    @staticmethod
    def make() -> tuple[list[Array], adaptk.Optimizer]:
        params = [*arrays("float32"), *arrays("float64"), np.ones((2, 3), np.float16)]
        groups = [{"params": params[:2]}, {"params": params[2:], "centered": True, "momentum": 0.9}]
        optimizer = adaptk.RMSProp(groups, lr=0.01)
        for t in range(3):
            optimizer.step(like(params, t))
        return params, optimizer

    def grads(self) -> list[Any]:
        return like(self.params, 100)

    def refuses(self, error: type[Exception], text: str, grads: Any = None, **options: Any) -> None:
        before = snapshot(self.optimizer, self.params)
        with pytest.raises(error, match=text):
            self.optimizer.step(self.grads() if grads is None else grads, **options)
        assert snapshot(self.optimizer, self.params) == before

    def goes_on(self) -> None:
        for t in range(3):
            self.optimizer.step(like(self.params, t))
            self.twin.step(like(self.others, t))
        assert snapshot(self.optimizer, self.params) == snapshot(self.twin, self.others)


@pytest.fixture
def world() -> Iterator[World]:
    """Each test undoes its error: the optimizer then continues like the reference copy."""
    w = World()
    yield w
    w.goes_on()


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (np.zeros((3, 2), np.float16), ValueError, r"grads\[4\]: shape \(3, 2\), expected \(2, 3\)"),
        (np.zeros((3, 2), np.float16).T, ValueError, r"grads\[4\]: strides"),
        (np.zeros((2, 3), int), TypeError, r"grads\[4\]: dtype int64"),
        ([[0.0] * 3] * 2, TypeError, r"grads\[4\]: list is not a buffer"),
    ],
    ids=["shape", "strides", "integers", "list"],
)
def test_a_mismatched_last_gradient(world: World, bad: Any, error: type[Exception], text: str) -> None:
    world.refuses(error, text, [*world.grads()[:4], bad])


def test_gradients_in_the_memory_of_params_and_states(world: World) -> None:
    grads = world.grads()
    world.refuses(ValueError, r"grads\[4\] and params\[4\] overlap", [*grads[:4], world.params[4]])
    state = world.optimizer.state[3]["grad_avg"]
    world.refuses(ValueError, r"grads\[3\] and grad_avg\[3\] overlap", [*grads[:3], state, grads[4]])


@pytest.mark.parametrize("n", [0, 4, 6])
def test_a_wrong_number_of_gradients(world: World, n: int) -> None:
    world.refuses(ValueError, f"grads: {n} gradients, expected 5", (world.grads() * 2)[:n])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"clip_norm": math.nan}, ValueError),
        ({"clip_norm": 0.0}, ValueError),
        ({"clip_norm": -1.0}, ValueError),
        ({"clip_norm": "1"}, TypeError),
        ({"grad_scale": math.nan}, ValueError),
        ({"grad_scale": math.inf}, ValueError),
        ({"grad_scale": None}, TypeError),
    ],
)
def test_options_of_a_step_out_of_range(world: World, options: dict[str, Any], error: type[Exception]) -> None:
    world.refuses(error, next(iter(options)), **options)


@pytest.mark.parametrize(
    ("lr", "error", "text"),
    [
        (math.nan, ValueError, "lr: nan is not in"),
        (-0.1, ValueError, "lr: -0.1"),
        (lambda t: math.nan, ValueError, "lr: nan is not in"),
        (lambda t: "0.1", TypeError, "lr: expected a number, got str"),
        (lambda t: 1 / 0, ZeroDivisionError, "division by zero"),
    ],
    ids=["NaN", "negative", "schedule of NaN", "schedule of text", "schedule that raises"],
)
def test_invalid_rates(world: World, lr: Any, error: type[Exception], text: str) -> None:
    kept = world.optimizer.param_groups[-1]["lr"]
    world.optimizer.param_groups[-1]["lr"] = lr
    if callable(lr):
        before = all_bits(world.params), state_bits(world.optimizer), world.optimizer.step_count
        with pytest.raises(error, match=text):
            world.optimizer.step(world.grads())
        assert (all_bits(world.params), state_bits(world.optimizer), world.optimizer.step_count) == before
    else:
        world.refuses(error, text)
    world.optimizer.param_groups[-1]["lr"] = kept


def test_incomplete_param_groups(world: World) -> None:
    groups = world.optimizer.param_groups
    kept = groups[1].pop("rho")
    with pytest.raises(KeyError, match="no 'rho' in a group"):
        world.optimizer.step(world.grads())
    groups[1]["rho"] = kept
    last = groups.pop()
    with pytest.raises(ValueError, match="param_groups: 1 groups, expected 2"):
        world.optimizer.step(world.grads())
    groups.append([])
    with pytest.raises(TypeError, match="param_groups: expected a dict, got list"):
        world.optimizer.step(world.grads())
    groups[1] = last


def test_a_param_that_became_read_only(world: World) -> None:
    for buffer, name in ((world.params[4], "params"), (world.optimizer.state[4]["momentum_buffer"], "momentum_buffer")):
        buffer.setflags(write=False)
        world.refuses(ValueError, rf"{name}\[4\]: read-only")
        buffer.setflags(write=True)


@pytest.mark.parametrize("shape", [(4, 3), (12,), (3, 2, 2)])
def test_a_param_that_was_reshaped(world: World, shape: tuple[int, ...]) -> None:
    w = world.params[0]
    quietly(lambda: setattr(w, "shape", shape))
    for _ in range(2):
        world.refuses(ValueError, r"square_avg\[0\]: shape \(3, 4\), expected \(")
    quietly(lambda: setattr(w, "shape", (3, 4)))


@pytest.mark.parametrize("n", [3, 5000])
def test_a_param_that_was_resized(world: World, n: int) -> None:
    w = world.params[1]
    kept = w.copy()
    w.resize(n, refcheck=False)
    grads = world.grads()
    for _ in range(2):
        world.refuses(ValueError, r"square_avg\[1\]: shape \(5,\), expected \(", grads)
    w.resize(5, refcheck=False)
    w[:] = kept


def test_a_step_inside_a_step(world: World) -> None:
    errors: list[Exception] = []

    def attempt(work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:
            errors.append(error)

    saved = world.optimizer.state_dict()
    before = snapshot(world.optimizer, world.params)

    def schedule(t: int) -> float:
        attempt(lambda: world.optimizer.step(world.grads()))
        for work in (
            lambda: world.optimizer.step(world.grads()),
            lambda: world.optimizer.load_state_dict({**saved, "step": np.array(99)}),
            lambda: world.optimizer.add_param_group({"params": np.zeros(2)}),
        ):
            thread = threading.Thread(target=attempt, args=(work,))
            thread.start()
            thread.join()
        raise LookupError

    world.optimizer.param_groups[1]["lr"] = schedule
    with pytest.raises(LookupError):
        world.optimizer.step(world.grads())
    world.optimizer.param_groups[1]["lr"] = 0.01
    assert len(errors) == 4
    assert snapshot(world.optimizer, world.params) == before


def test_gradients_that_change_while_they_are_read() -> None:
    code = """
import numpy as np, adaptk
grads = [np.ones(3) for _ in range(1000)]
params = [np.zeros(3) for _ in grads]
def schedule(t):
    grads.clear()
    return 1.0
optimizer = adaptk.SGD(params)
optimizer.param_groups[0]["lr"] = schedule
try:
    optimizer.step(grads)
except ValueError:
    assert not any(p.any() for p in params)
else:
    assert all((p == -1).all() for p in params)
"""
    in_another_process(code)


@pytest.mark.parametrize("seed", range(3))
def test_a_param_that_was_reshaped_and_back(seed: int) -> None:
    w = np.zeros((3, 4), np.float32)
    optimizer = adaptk.SGD([w], lr=1.0)
    grad = np.ones((3, 4), np.float16)
    optimizer.step([grad])
    quietly(lambda: setattr(w, "shape", (12,)))
    others = [np.zeros((5,) * n) for n in (1, 2, 3) for _ in range(2000)] + [b"\7" * 32 for _ in range(2000)]
    quietly(lambda: setattr(w, "shape", (3, 4)))
    optimizer.step([grad])
    assert (w == -2).all()
    assert others


def test_a_failed_step_keeps_no_gradient() -> None:
    class Exported:
        def __init__(self, array: Array) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    grad = np.ones(2)
    references = sys.getrefcount(grad)
    optimizer = adaptk.SGD([np.zeros(2), np.zeros(2)])
    with pytest.raises(ValueError, match=r"grads\[1\]"):
        optimizer.step([Exported(grad), np.ones(3)])
    assert sys.getrefcount(grad) == references
