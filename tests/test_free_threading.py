"""Many threads at once: separate objects give the same bits, operations on shared objects are atomic.

On free-threaded interpreters the library uses its own locks; with the GIL the same must hold.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import solve
from helpers import (
    RULES,
    Array,
    Exchanged,
    ExchangedByExport,
    assert_same,
    bfloat16,
    call,
    copies,
    make,
    make_list,
    same_bits,
)

FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
THREADS = 4
BUSY = "this optimizer is being stepped by another thread"


@pytest.fixture(autouse=True)
def _switching() -> Iterator[None]:
    """With the GIL, threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def together(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of these functions, run concurrently in separate threads."""
    start = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            start.wait()
            results[i] = works[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    if errors:
        raise errors[0]
    return results


def while_others(work: Callable[[], Any], others: Sequence[Callable[[], Any]]) -> Any:
    """The result of `work` while the others run in a loop."""
    done = threading.Event()

    def again(other: Callable[[], Any]) -> None:
        while not done.is_set():
            other()

    def watched() -> Any:
        try:
            return work()
        finally:
            done.set()

    return together([watched, *(lambda other=other: again(other) for other in others)])[0]


def in_a_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Import


@pytest.mark.skipif(not FREE, reason="an interpreter with the GIL")
def test_no_extension_enables_the_gil() -> None:
    code = """
import importlib, sys
import adaptk, adaptk.solve
found = []
for name in ("_core", "_solve", "_cuda", "_jax"):
    try:
        importlib.import_module(f"adaptk.{name}")
    except ModuleNotFoundError:
        continue
    found.append(name)
assert {"_core", "_solve"} <= set(found), found
print(sys._is_gil_enabled())
"""
    assert in_a_process(code) == "False"


FIRST_USE = """
import hashlib, threading
import numpy as np
try:
    from ml_dtypes import bfloat16 as small
except ImportError:
    small = np.float16
start = threading.Barrier(8)
results, errors = [], []

def work():
    try:
        start.wait()
        import adaptk
        from adaptk import solve
        out = []
        for dtype in (np.float32, small):
            p, g, m, v = np.ones(50, dtype), np.full(50, 0.5, dtype), *np.zeros((2, 50), np.float32)
            adaptk.ops.adam(p, g, m, v, step=1, lr=0.1)
            adaptk.ops.adam([p], [g], [m], [v], step=2, lr=0.1)
            opt = adaptk.NAdam([p])
            opt.step([g])
            out += [p.tobytes(), m.tobytes(), opt.state_dict()["state.0.exp_avg"].tobytes()]
        out.append(solve.newton(lambda x: float(((x - 1) ** 4).sum()), [3.0, 2.0]).x.tobytes())
        out.append(solve.levenberg_marquardt(lambda x: x * x - [4.0, 9.0], [1.0, 1.0]).x.tobytes())
        results.append(hashlib.sha256(b"".join(out)).hexdigest())
    except BaseException as error:
        errors.append(error)

threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert not errors, errors
assert len(results) == 8
print(*set(results))
"""


def test_first_use_in_many_threads() -> None:
    alone = in_a_process(FIRST_USE.replace("8", "1"))
    assert len(alone.split()) == 1
    for _ in range(3):
        assert in_a_process(FIRST_USE) == alone


# Buffers of each thread's own


@pytest.mark.parametrize("size", [5, 40000])
def test_functions_on_separate_buffers(size: int) -> None:
    """All rules at once, with gradients that all threads read; caches between steps are per thread."""
    grads = {rule: make(rule, size)["grad"] for rule in RULES}

    def train(seed: int) -> list[dict[str, Any]]:
        rules = list(RULES)
        done = {}
        for rule in rules[seed:] + rules[:seed]:
            buffers = done[rule] = {**make(rule, size, seed=seed), "grad": grads[rule]}
            for t in (1, 2, 3, 2 + seed):
                call(rule, buffers, step=t)
        return [done[rule] for rule in rules]

    want = [train(seed) for seed in range(THREADS)]
    for _ in range(3 if size < 100 else 1):
        got = together([lambda seed=seed: train(seed) for seed in range(THREADS)])
        for a, b in zip(got, want, strict=True):
            for x, y in zip(a, b, strict=True):
                assert_same(x, y)


@pytest.mark.parametrize("dtype", ["float32", "float64", *(["bfloat16"] if bfloat16 is not None else [])])
def test_separate_lists(dtype: str) -> None:
    def train(seed: int) -> dict[str, Any]:
        buffers = make_list("adan", [1, 30, 7, 500 + seed], dtype)
        for t in range(1, 20):
            call("adan", buffers, step=t)
        return buffers

    want = [train(seed) for seed in range(THREADS)]
    for a, b in zip(together([lambda seed=seed: train(seed) for seed in range(THREADS)]), want, strict=True):
        assert_same(a, b)


def test_concurrent_first_use_of_a_type() -> None:
    """One thread finds out about a type's DLPack exchange while others wait for it."""

    def train(types: Sequence[type]) -> list[Array]:
        params = []
        for kind in types:
            p = np.ones(6, np.float32)
            for t in (1, 2):
                adaptk.ops.sgd(kind(p), kind(np.full(6, 0.25, np.float32)), step=t, lr=1.0)
            params.append(p)
        return params

    for _ in range(5):
        types = [type(f"Type{i}", (base,), {}) for i in range(10) for base in (Exchanged, ExchangedByExport)]
        turns = [types[k:] + types[:k] for k in range(0, len(types), len(types) // THREADS)]
        for params in together([lambda some=some: train(some) for some in turns]):
            assert all((p == 0.5).all() for p in params)


def made(name: str, seed: int, size: int) -> tuple[Any, list[Array]]:
    rng = np.random.default_rng(seed)
    params = [rng.normal(size=n).astype(np.float32) for n in (size, 3, 1)]
    return getattr(adaptk, name)(params, clip_norm=1.0 if seed % 2 else None), params


@pytest.mark.parametrize("size", [4, 20000])
def test_separate_optimizers(size: int) -> None:
    names = [c for c in adaptk.optim.CLASSES if adaptk.optim.CLASSES[c]._class_rules]

    def train(seed: int) -> list[Any]:
        found = []
        for name in names[seed:] + names[:seed]:
            optimizer, params = made(name, seed, size)
            rng = np.random.default_rng(seed)
            for _ in range(5):
                optimizer.step([rng.normal(size=p.size).astype(np.float32) for p in params])
            found.append((name, params, optimizer.state_dict()))
        return found

    want = [train(seed) for seed in range(THREADS)]
    got = together([lambda seed=seed: train(seed) for seed in range(THREADS)])
    for a, b in zip(got, want, strict=True):
        for (name, params, state), (also, expected, saved) in zip(a, b, strict=True):
            assert name == also
            assert all(same_bits(p, q) for p, q in zip(params, expected, strict=True)), name
            assert_same(state, saved)


def test_concurrent_changes_of_settings(restored: None) -> None:
    isas = adaptk.available_isas()
    most = 3 if adaptk.build_info()["openmp"] is not None else 1
    start = make("yogi", 20000)

    def train() -> dict[str, Any]:
        buffers = copies(start)
        for t in range(1, 40):
            call("yogi", buffers, step=t)
        return buffers

    want = train()
    turn = [0]

    def change() -> None:
        turn[0] += 1
        adaptk.set_isa(isas[turn[0] % len(isas)])
        adaptk.set_num_threads(1 + turn[0] % most)

    assert_same(while_others(train, [change]), want)


# Objects that are shared


def attempt(work: Callable[[], Any], unless: str = BUSY) -> bool:
    """Whether it succeeded; if not, it must fail for this reason."""
    try:
        work()
    except (RuntimeError, ValueError) as error:
        reason = str(error)
    else:
        return True
    assert re.search(unless, reason), reason
    return False


@pytest.mark.parametrize("size", [3, 30000])
def test_one_optimizer_in_many_threads(size: int) -> None:
    """Each step is applied completely or refused, whatever else the threads do with the optimizer; short ones wait."""
    params = [np.zeros(n) for n in (size, 1, 2)]
    optimizer = adaptk.SGD(params, lr=1.0, momentum=0.0)
    tries = 5000 if size < 100 else 200

    def work() -> int:
        grads = [np.full(p.shape, -1.0) for p in params]
        return sum(attempt(lambda: optimizer.step(grads)) for _ in range(tries))

    def look() -> None:
        count = optimizer.step_count
        saved = optimizer.state_dict()
        assert set(saved) == keys
        assert count <= saved["step"] <= optimizer.step_count
        assert repr(optimizer) == text
        assert len(optimizer.state) == 3

    keys, text = set(optimizer.state_dict()), repr(optimizer)
    taken = while_others(lambda: sum(together([work] * THREADS)), [look])
    # The interpreter may suspend a thread within a step, which another thread can then observe.
    assert taken > (0 if size > 100 else 0.99 * THREADS * tries)
    assert optimizer.step_count == taken
    assert [int(optimizer.state_dict()[f"state.{i}.step"]) for i in range(3)] == [taken] * 3
    assert all((p == taken).all() for p in params)


def test_loading_during_steps() -> None:
    params = [np.zeros(20000)]
    optimizer = adaptk.Adam(params, lr=0.0)
    saved = optimizer.state_dict()
    grads = [np.ones(20000)]

    def work() -> None:
        for _ in range(300):
            attempt(lambda: optimizer.step(grads))

    while_others(work, [lambda: attempt(lambda: optimizer.load_state_dict(saved))])
    assert 0 <= optimizer.step_count <= 300
    optimizer.load_state_dict(saved)
    assert optimizer.step_count == 0


def test_groups_added_by_many_threads() -> None:
    """The plan and the object agree on the params of each group."""
    for _ in range(10):
        optimizer = adaptk.SGD([np.zeros(1)], lr=1.0, momentum=0.9)

        def add(k: int, optimizer: adaptk.Optimizer = optimizer) -> None:
            for _ in range(5):
                optimizer.add_param_group({"params": [np.zeros(2 + k)]})

        together([lambda k=k: add(k) for k in range(THREADS)])
        params = [p for group in optimizer.param_groups for p in group["params"]]
        assert len(params) == len(optimizer.state) == 1 + 5 * THREADS
        optimizer.step([np.full(p.shape, 1.0 + i) for i, p in enumerate(params)])
        for i, p in enumerate(params):
            assert (p == -(1.0 + i)).all()
            assert (optimizer.state[i]["momentum_buffer"] == -(1.0 + i)).all()
            assert optimizer.state[i]["momentum_buffer"].shape == p.shape


def test_a_schedule_that_reads_its_optimizer() -> None:
    p = np.zeros(2)

    def schedule(t: int) -> float:
        assert optimizer.step_count == t - 1
        assert int(optimizer.state_dict()["step"]) == t - 1
        return 1.0

    optimizer = adaptk.SGD([p])
    optimizer.param_groups[0]["lr"] = schedule
    grads = [np.full(2, -1.0)]

    def work() -> int:
        return sum(attempt(lambda: optimizer.step(grads)) for _ in range(100))

    taken = sum(together([work] * THREADS))
    assert taken > 0
    assert optimizer.step_count == taken
    assert (p == taken).all()


def test_look_ahead_in_many_threads() -> None:
    p = np.ones(500)
    optimizer = adaptk.RMSProp([p], nesterov=True, lr=0.0, momentum=0.5)
    optimizer.state[0]["velocity"][:] = 1.0
    optimizer.step([np.zeros(500)])
    before = p.copy()
    inside = threading.Lock()

    def look() -> bool:
        begin = partial(optimizer._plan.begin_lookahead, optimizer.param_groups)
        if not attempt(begin, BUSY + r"|lookahead\(\) inside lookahead\(\)"):
            return False
        assert inside.acquire(blocking=False), "two threads in one block"
        inside.release()
        while not attempt(optimizer._plan.end_lookahead):
            pass
        return True

    assert sum(together([lambda: sum(look() for _ in range(300))] * THREADS)) > 0
    assert same_bits(p, before)


# What the caller changes while a call reads it


@pytest.mark.parametrize("how", ["step", "function", "norm"])
def test_lists_changed_by_other_threads(how: str) -> None:
    """Items are added and removed; each call sees a consistent list or refuses it."""
    n = 50
    params = [np.zeros(2) for _ in range(n)]
    grads = [np.ones(2) for _ in range(n)]
    optimizer = adaptk.SGD(params, lr=0.0)

    def norm() -> None:
        assert round(adaptk.global_norm(grads) ** 2) in (2 * n - 2, 2 * n)

    calls = {
        "step": lambda: optimizer.step(grads),
        "function": lambda: adaptk.ops.sgd(params, grads, step=1, lr=0.0),
        "norm": norm,
    }

    def work() -> int:
        return sum(attempt(calls[how], r"grads?: (49|changed size)") for _ in range(1500))

    def replace() -> None:
        for i in range(n - 1):
            grads[i] = np.ones(2)

    def cut() -> None:
        last = grads.pop()
        grads.append(last)

    assert while_others(work, [replace, replace, cut]) > 0
    assert len(grads) == n


def test_hyperparameters_changed_by_other_threads() -> None:
    p = np.zeros(4)
    optimizer = adaptk.SGD([p], lr=1.0, weight_decay=0.0)
    group = optimizer.param_groups[0]
    seen = iter(range(10**9))

    def replace() -> None:
        group["lr"] = 1.0 + next(seen) % 2
        group["weight_decay"] = 0.0 * next(seen)
        dict.__setitem__(group, f"extra{next(seen) % 50}", [1.0])  # the group itself takes no other keys

    def cut() -> None:
        optimizer.param_groups.append({})
        optimizer.param_groups.pop()

    def work() -> int:
        return sum(
            attempt(lambda: optimizer.step([np.full(4, -1.0)]), "2 groups, expected 1|no '.*' in a group")
            for _ in range(3000)
        )

    done = while_others(work, [replace, cut])
    assert done > 0
    assert done == optimizer.step_count
    assert (p == p[0]).all()
    assert done <= p[0] <= 2 * done


# Solvers


def fits(seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, 30)
    y = np.exp(-2.0 * t) + 0.01 * rng.normal(size=30)
    start = rng.normal(size=3) + 2.0
    matrix = np.diag([2.0, 3.0, 4.0]) + 0.1
    seen: list[bytes] = []
    found = [
        solve.levenberg_marquardt(lambda p: p[0] * np.exp(-p[1] * t) - y, [1.0, 1.0]),
        solve.newton(lambda x: float(((x - 1) ** 4).sum() + x[0] ** 2), start),
        solve.conjugate_gradient(
            lambda x: float(x @ matrix @ x - x.sum()), start, callback=lambda x: seen.append(x.tobytes())
        ),
        solve.steepest_descent(lambda x: float(x @ matrix @ x), start, jac=lambda x: 2 * matrix @ x, maxiter=20),
        solve.cg(matrix, start),
        solve.newton(lambda x: x @ x, np.ones(150), jac=lambda x: 2 * x, hess=lambda x: 2 * np.eye(150)),
    ]
    batch = solve.levenberg_marquardt_batch("exponential", [1.0, 1.0, 0.0], np.stack([y, y + 0.1]), coordinates=t)
    return [(r.x.tobytes(), np.asarray(r.fun).tobytes(), r.nit) for r in found] + [batch.x.tobytes()] + seen


def test_solvers_in_many_threads() -> None:
    want = [fits(seed) for seed in range(THREADS)]
    for _ in range(3):
        assert together([lambda seed=seed: fits(seed) for seed in range(THREADS)]) == want


def test_points_belong_to_the_function_that_keeps_them() -> None:
    """An array that a function passes to another thread is not written again."""
    kept: list[tuple[Array, bytes]] = []

    def f(x: Array) -> float:
        kept.append((x, x.tobytes()))
        return float(((x - 3.0) ** 2).sum())

    def check() -> None:
        for x, was in kept[:]:
            assert x.tobytes() == was

    while_others(lambda: [solve.newton(f, [0.0, 1.0]) for _ in range(20)], [check])
    check()
