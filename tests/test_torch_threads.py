"""Threads, processes, references and memory of adaptk.torch."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from helpers import first_tier
from torch_cases import (
    OWN,
    TORCHS,
    _seeded,  # noqa: F401
    all_close,
    at,
    everything,
    give,
    in_another_process,
    params,
    same_bits,
    sparse_beyond,
    states_close,
    torch,
    twins,
)


@pytest.mark.full
def test_hogwild() -> None:
    """Processes that train one model in shared memory without locks."""
    out = in_another_process(
        """
import torch, adaptk.torch
from torch import multiprocessing

def train(model, opt, seed):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    for _ in range(40):
        x = torch.randn(8, 2)
        opt.zero_grad()
        (model(x) - x.sum(1, keepdim=True) - 1).square().mean().backward()
        opt.step()

torch.set_num_threads(1)
model = torch.nn.Linear(2, 1)
model.share_memory()
opt = adaptk.torch.Adagrad(model.parameters(), lr=0.3)
opt.share_memory()
for state in opt.state.values():
    state["step"].share_memory_()
start = [p.data_ptr() for p in model.parameters()]
context = multiprocessing.get_context("fork")
workers = [context.Process(target=train, args=(model, opt, i)) for i in range(2)]
for w in workers:
    w.start()
for w in workers:
    w.join()
    assert w.exitcode == 0
assert start == [p.data_ptr() for p in model.parameters()]
x = torch.randn(64, 2)
print(float((model(x) - x.sum(1, keepdim=True) - 1).square().mean().detach()))
print(min(float(s["step"]) for s in opt.state.values()))
train(model, opt, 3)
"""
    )
    loss, steps = map(float, out.split())
    assert loss < 0.05
    assert 40 <= steps <= 80


def test_states_moved_to_shared_memory() -> None:
    a = params()
    b = twins(a)
    ours, torchs = at.NAdam(a), torch.optim.NAdam(b, foreach=False)
    for t in range(4):
        give([a, b], t)
        ours.step()
        torchs.step()
        for x in [*a, *(v for s in ours.state.values() for v in s.values())]:
            x.share_memory_()
    all_close(a, b)
    states_close(ours, a, torchs, b)


# Threads and memory


def held_up(opt: Any) -> tuple[threading.Event, threading.Event]:
    """The optimizer's next step waits when it first binds a param. Yields events: (it has arrived, it may continue)."""
    there, go_on = threading.Event(), threading.Event()
    bind = opt._bind

    def wait(*args: Any) -> Any:
        there.set()
        assert go_on.wait(30)
        return bind(*args)

    opt._bind = wait
    return there, go_on


def test_two_threads_step_one_optimizer() -> None:
    a = params()
    b = twins(a)
    opt, alone = at.Adam(a), at.Adam(b)
    give([a, b], 0)
    there, go_on = held_up(opt)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            opt.step()
        except BaseException as e:  # for the other thread
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    assert there.wait(30)
    with pytest.raises(RuntimeError, match="being stepped by another thread"):
        opt.step()
    go_on.set()
    thread.join()
    assert not errors
    alone.step()
    assert same_bits(a, b)
    assert [float(opt.state[p]["step"]) for p in a] == [1.0] * len(a)
    give([a, b], 1)
    opt.step()
    alone.step()
    assert same_bits(a, b)


def test_a_step_inside_of_a_native_step_is_refused() -> None:
    p = params(shapes=[(3,)])
    opt = at.Adam(p)
    bind = opt._bind

    def again(*args: Any) -> Any:
        opt.step()
        return bind(*args)

    opt._bind = again
    give([p], 0)
    before = everything(opt)
    with pytest.raises(RuntimeError, match="called within its own step"):
        opt.step()
    assert everything(opt) == before
    opt._bind = bind
    opt.step()
    assert float(opt.state[p[0]]["step"]) == 1


@pytest.fixture(params=["face", "DLPack"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether tensors are read without Python; then their states are kept for one step longer."""
    if request.param == "DLPack":
        monkeypatch.setattr(at._private, "face", dict)
    elif not at._private.face():
        pytest.skip("the native step does not know this PyTorch")
    return request.param == "face"


def test_states_replaced_by_another_thread_during_a_step(face: bool) -> None:
    """The step uses the states that it began with; the next one uses the new states."""
    p = params(shapes=[(100,), (3,)])
    opt = at.Adam(p)
    give([p], 0, but=[1])
    opt.step()
    give([p], 1)
    old = weakref.ref(opt.state[p[0]]["exp_avg"])
    there, go_on = held_up(opt)
    thread = threading.Thread(target=opt.step)
    thread.start()
    assert there.wait(30)
    opt.state[p[0]] = {}
    gc.collect()
    assert old() is not None
    go_on.set()
    thread.join()
    assert (old() is not None) == face
    assert opt.state[p[0]] == {}
    assert float(opt.state[p[1]]["step"]) == 1
    del opt._bind
    give([p], 2)
    opt.step()
    assert old() is None
    assert float(opt.state[p[0]]["step"]) == 1
    assert float(opt.state[p[1]]["step"]) == 2


def test_two_optimizers_in_two_threads() -> None:
    lists = [params(shapes=[(200, 200), (7,)]) for _ in range(2)]
    copies = [twins(p) for p in lists]
    optimizers = [at.AdamW(p, lr=0.1) for p in lists]

    def train(opt: Any, p: list[Any]) -> None:
        for t in range(20):
            give([p], t)
            opt.step(clip_norm=1.0)

    threads = [threading.Thread(target=train, args=x) for x in zip(optimizers, lists, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for p, q in zip(lists, copies, strict=True):
        train(at.AdamW(q, lr=0.1), q)
        assert same_bits(p, q)


@pytest.mark.parametrize("name", first_tier([*TORCHS, *OWN], "Adam", "ASGD", "Lion"))
def test_nothing_is_kept_alive(name: str) -> None:
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    p = [*params(), torch.zeros(8)[::2], torch.zeros(3, dtype=torch.complex64)]
    opt = getattr(at, name)(p, **options)
    for t in range(3):
        give([p], t)
        opt.step()
    alive = [weakref.ref(x) for x in p] + [weakref.ref(x.grad) for x in p]
    alive += [weakref.ref(v) for s in opt.state.values() for v in s.values()]
    alive += [weakref.ref(opt), weakref.ref(opt._plan)]
    del p, opt
    gc.collect()
    assert [r() for r in alive] == [None] * len(alive)


def test_states_are_freed_when_they_are_replaced(face: bool) -> None:
    """At once with DLPack, so that a loop can move them off a device between steps; otherwise by the next step."""
    p = [*params(shapes=[(3,), (4,)]), torch.zeros(8)[::2], torch.zeros(3, dtype=torch.complex64)]
    opt = at.Adam(p)
    for t in range(3):
        give([p], t)
        opt.step()
    gc.disable()
    try:
        old = [weakref.ref(v) for s in opt.state.values() for v in s.values()]
        for state in opt.state.values():
            for name in list(state):
                state[name] = state[name].clone()
        del state
        assert face or not any(r() is not None for r in old)
        grads = [weakref.ref(x.grad) for x in p]
        opt.zero_grad()
        assert not any(r() is not None for r in grads)
        give([p], 4)
        opt.step()
        assert not any(r() is not None for r in old)
        old = [weakref.ref(v) for s in opt.state.values() for v in s.values()]
        opt.state.clear()
        assert face or not any(r() is not None for r in old)
        opt.step()
        assert not any(r() is not None for r in old)
    finally:
        gc.enable()
    assert [float(s["step"]) for s in opt.state.values()] == [1.0] * 4


def test_states_at_the_addresses_of_old_ones() -> None:
    """New objects often reuse addresses; what a step caches of the old ones must not be used."""
    a = params("float64", [(3,), (4,)])
    b = twins(a)
    ours, torchs = at.Adam(a), torch.optim.Adam(b, foreach=False)
    for t in range(50):
        for o in (ours, torchs):
            for state in o.state.values():
                for name in list(state):
                    dtype = state[name].dtype
                    values = state.pop(name).tolist()
                    state[name] = torch.tensor(values, dtype=dtype)
        give([a, b], t)
        ours.step()
        torchs.step()
    all_close(a, b)
    for junk in (None, 3, "x", [1.0], np.zeros(3)):
        state = ours.state[a[0]]
        del state["exp_avg"]
        state["exp_avg"] = junk
        with pytest.raises(KeyError if junk is None else TypeError, match="exp_avg"):
            ours.step()


def test_an_optimizer_in_a_cycle_is_collected() -> None:
    """A param may refer to the optimizer that holds it; torch's own class is freed with such a cycle."""
    alive = []
    for module in (torch.optim, at):
        (p,) = params(shapes=[(3,)])
        opt = module.Adam([p])
        p.optimizer = opt
        give([[p]], 0)
        opt.step()
        assert float(opt.state[p]["step"]) == 1
        alive += [weakref.ref(p), weakref.ref(opt)]
    alive.append(weakref.ref(opt._plan))
    del p, opt
    gc.collect()
    assert [r() for r in alive] == [None] * len(alive)


def test_reference_counts_do_not_grow() -> None:
    p = [*params(shapes=[(3,), (4,)]), torch.zeros(8)[::2], torch.zeros(3, dtype=torch.complex64)]
    opt = at.NAdam(p, lr=0.123)
    give([p], 0)

    def counts() -> list[int]:
        objects = [*p, *(x.grad for x in p), *(v for s in opt.state.values() for v in s.values())]
        objects += [*opt.state.values(), opt, opt._plan, opt.param_groups, opt.param_groups[0], opt.state]
        return [sys.getrefcount(x) for x in objects]

    def steps(n: int) -> None:
        for i in range(n):
            opt.step(skip_nonfinite=i % 2 == 0)
            if i % 100 == 0:
                p[0].grad[0] = float("nan")
                opt.step(skip_nonfinite=True)
                p[0].grad[0] = 1.0
                opt.param_groups[0]["lr"] = -1.0
                with pytest.raises(ValueError, match="lr"):
                    opt.step()
                opt.param_groups[0]["lr"] = 0.123

    steps(10)
    gc.collect()
    before, objects = counts(), len(gc.get_objects())
    steps(1000)
    gc.collect()
    assert counts() == before
    assert abs(len(gc.get_objects()) - objects) < 50


def test_a_failed_step_leaks_nothing() -> None:
    p = params(shapes=[(3,), (4,)])
    opt = at.Adam(p)
    give([p], 0)
    p[1].grad = sparse_beyond((4,))
    for _ in range(5):
        with pytest.raises(ValueError, match="indices"):
            opt.step()
    assert not opt.state
    grads = [weakref.ref(x.grad) for x in p]
    opt.zero_grad()
    gc.collect()
    assert [g() for g in grads] == [None, None]


@pytest.mark.parametrize("size", [64, 1 << 18])
def test_gradients_replaced_by_another_thread_during_steps(size: int) -> None:
    """A step uses the gradient that it began with or the next one, never a freed one. Long steps release
    the GIL."""
    p = [torch.nn.Parameter(torch.zeros(size)) for _ in range(3)]
    opt = at.SGD(p, lr=1.0)
    for x in p:
        x.grad = torch.ones_like(x)
    done = threading.Event()

    def replace() -> None:
        while not done.is_set():
            for x in p:
                x.grad = torch.ones_like(x)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(50):
            opt.step()
    finally:
        done.set()
        thread.join()
    assert all(torch.equal(x.detach(), torch.full_like(x, -50.0)) for x in p)
