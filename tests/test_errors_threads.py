"""Errors and calls from several threads, and lists that another thread changes."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import (
    assert_same,
    call,
    copies,
    make,
    make_list,
    refused,
    same_bits,
)


def stepped(rule: str, n: int, steps: int, seed: int) -> dict[str, Any]:
    buffers = make(rule, n, seed=seed)
    for t in range(1, steps + 1):
        call(rule, buffers, step=t)
    return buffers


@pytest.mark.parametrize("n", [40, 40_000])
@pytest.mark.parametrize("rule", ["sgd", "adam", "adan"])
def test_calls_from_several_threads(rule: str, n: int) -> None:
    wanted = [stepped(rule, n, 20, seed) for seed in range(4)]
    start = threading.Barrier(4)

    def work(seed: int) -> dict[str, Any]:
        start.wait()
        return stepped(rule, n, 20, seed)

    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(work, range(4)), wanted, strict=True):
            assert_same(got, want)


def test_lists_from_several_threads() -> None:
    sizes = [30_000, 3, 20_000, 0, 1]

    def work(seed: int) -> dict[str, Any]:
        buffers = make_list("adam", sizes)
        for b in buffers["grad"]:
            b *= seed + 1
        for t in range(1, 11):
            call("adam", buffers, step=t)
        return buffers

    wanted = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(work, range(4)), wanted, strict=True):
            assert_same(got, want)


def test_errors_from_several_threads() -> None:
    good = [make("adam", 20_000, seed=i) for i in range(4)]
    wanted = [stepped("adam", 20_000, 20, seed=i) for i in range(4)]

    def work(i: int) -> None:
        for t in range(1, 21):
            with refused(ValueError, "exp_avg", unchanged=list(good[i].values())):
                call("adam", {**good[i], "exp_avg": good[i]["exp_avg"][:-1]})
            call("adam", good[i], step=t)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for got, want in zip(good, wanted, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("n", [10, 200_000])
def test_two_threads_step_one_optimizer(n: int) -> None:
    params, grad = [np.ones(n, np.float32)], np.linspace(-1, 1, n, dtype=np.float32)
    opt = adaptk.Adam(params, lr=0.01)
    start = threading.Barrier(2)

    def step() -> str:
        try:
            opt.step([grad])
        except RuntimeError as error:
            return str(error)
        return ""

    def work(_: int) -> list[str]:
        start.wait()
        return [step() for _ in range(60)]

    with ThreadPoolExecutor(2) as pool:
        messages = [m for of_thread in pool.map(work, range(2)) for m in of_thread]
    assert len(messages) == 120
    assert all("thread" in m for m in messages if m)
    done = messages.count("")
    assert opt.step_count == done > 0
    alone = [np.ones(n, np.float32)]
    reference = adaptk.Adam(alone, lr=0.01)
    for _ in range(done):
        reference.step([grad])
    assert same_bits(params[0], alone[0])
    for name, state in reference.state[0].items():
        assert same_bits(opt.state[0][name], state)


@pytest.mark.parametrize("name", ["adam", "optimizer", "global_norm"])
def test_lists_changed_by_another_thread(name: str) -> None:
    """A call uses the arrays that were in its lists when it began."""
    buffers = make("adam", 200_000)
    alone = copies(buffers)
    lists = {k: [b] for k, b in buffers.items()}
    opt, reference = adaptk.Adam(lists["param"]), adaptk.Adam([alone["param"]])
    norms: list[float] = []
    stop = threading.Event()

    def shuffle() -> None:
        while not stop.is_set():
            for k, b in lists.items():
                b.clear()
                b.append(buffers[k])

    def attempt(t: int) -> bool:
        try:
            if name == "adam":
                adaptk.ops.adam(*lists.values(), step=t)
            elif name == "optimizer":
                opt.step(lists["grad"])
            else:
                norms.append(adaptk.global_norm(lists["grad"]))
        except ValueError:
            # A list was empty at that moment; the other thread continues.
            time.sleep(1e-4)
            return False
        return True

    thread = threading.Thread(target=shuffle)
    thread.start()
    try:
        steps = 0
        for _ in range(1000):
            steps += attempt(steps + 1)
            if steps == 20:
                break
    finally:
        stop.set()
        thread.join()
    for t in range(1, steps + 1):
        if name == "adam":
            adaptk.ops.adam(*alone.values(), step=t)
        elif name == "optimizer":
            reference.step([alone["grad"]])
    assert steps > 0
    assert_same(buffers, alone)
    # An empty list has the norm 0.
    assert set(norms) <= {adaptk.global_norm([alone["grad"]]), 0.0}


class Watched(np.ndarray):
    """An array that supports weak references."""


class Clears:
    """A buffer whose export empties lists and checks that the other buffers of the call are still alive."""

    def __init__(self, array: Any, lists: list[list[Any]], watched: list[weakref.ref[Any]]) -> None:
        self.array, self.lists, self.watched = array, lists, watched
        self.alive: list[bool] = []

    def __dlpack__(self, **options: Any) -> Any:
        for x in self.lists:
            x.clear()
        self.alive = [w() is not None for w in self.watched]
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def watched_arrays() -> tuple[list[Any], list[weakref.ref[Any]]]:
    arrays = [np.ones(4, np.float32).view(Watched) for _ in range(3)]
    return arrays, [weakref.ref(a) for a in arrays]


def test_lists_emptied_while_they_are_read() -> None:
    params, watched = watched_arrays()
    grads, more = watched_arrays()
    clears = Clears(np.ones(4, np.float32), [params, grads], watched + more)
    del watched[1], more[1]
    clears.watched = watched + more
    grads[1] = clears
    adaptk.ops.sgd(params, grads, step=1)
    assert clears.alive == [True] * 4
    assert (params, grads) == ([], [])


def test_norm_of_a_list_emptied_while_it_is_read() -> None:
    grads, watched = watched_arrays()
    grads.pop()
    watched.pop()
    clears = Clears(np.ones(4, np.float32), [grads], watched)
    grads.append(clears)
    assert adaptk.global_norm(grads) == np.sqrt(12.0)
    assert clears.alive == [True, True]


EMPTIED_BY_A_SCHEDULE = """
import adaptk, numpy as np
params = [np.ones(3) for _ in range(50)]
grads = [np.ones(3) for _ in range(50)]
def schedule(t):
    if ready:
        grads.clear()
    return 0.5
ready = []
opt = adaptk.SGD(params, lr=schedule)
ready.append(1)
try:
    opt.step(grads)
except (ValueError, RuntimeError):
    assert opt.step_count == 0 and all((p == 1.0).all() for p in params)
else:
    assert opt.step_count == 1 and all((p == 0.5).all() for p in params)
"""


def test_grads_emptied_by_a_schedule() -> None:
    # In its own process, because a failure would be a crash.
    done = subprocess.run([sys.executable, "-c", EMPTIED_BY_A_SCHEDULE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
