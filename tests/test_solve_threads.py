"""Solvers in threads and nested solvers; signals; memory."""

from __future__ import annotations

import gc
import math
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from adaptk import _nist, solve
from solve_problems import (
    MATRIX,
    NOISY,
    TRUTH,
    Array,
    Refused,
    compiled,  # noqa: F401
    decay,
    gradient,
    hessian,
    rosenbrock,
    rosenbrock_gradient,
    rosenbrock_hessian,
)


def run_all(seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    y = decay(TRUTH) + 0.05 * rng.normal(size=40)
    start = rng.normal(size=4) + 1.5
    return [
        solve.levenberg_marquardt(lambda p: decay(p) - y, [1.0, 1.0, 0.0]).x.tobytes(),
        solve.newton(rosenbrock, start, jac=rosenbrock_gradient, hess=rosenbrock_hessian).x.tobytes(),
        solve.conjugate_gradient(rosenbrock, start, jac=rosenbrock_gradient).x.tobytes(),
        solve.cg(MATRIX, rng.normal(size=3)).x.tobytes(),
    ]


def test_many_threads() -> None:
    want = [run_all(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(run_all, range(8))) == want


def test_compiled_functions_in_many_threads(library: Any) -> None:
    c = library

    def run(seed: int) -> bytes:
        start = np.random.default_rng(seed).normal(size=5).astype(c.dtype)
        return solve.newton(c.value, start, jac=c.gradient, hess=c.hessian).x.tobytes()

    want = [run(seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(16))) == want


def test_solvers_inside_solvers() -> None:
    """The outer function's value is a minimum that an inner solver finds, with the same functions."""

    def inner(x: Array) -> Array:
        r = solve.levenberg_marquardt(lambda p: decay(np.array([p[0], x[0], p[1]])) - NOISY, [1.0, 0.0])
        return r.fun

    r = solve.levenberg_marquardt(inner, [1.0])
    want = solve.levenberg_marquardt(lambda p: decay(p) - NOISY, [1.0, 1.0, 0.0])
    assert r.x[0] == pytest.approx(want.x[1], rel=1e-6)

    depth = 0

    def f(x: Array) -> float:
        nonlocal depth
        if depth == 0:
            depth = 1
            assert abs(solve.newton(f, [9.0], jac=gradient, hess=hessian).x[0]) < 1e-12
            depth = 0
        return float(x @ x)

    assert abs(solve.newton(f, [3.0], jac=gradient, hess=hessian).x[0]) < 1e-12


def test_the_lock_is_released_for_compiled_functions(library: Any) -> None:
    """Another thread runs during a compiled run, although threads do not switch by themselves."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    count = 0
    stop = threading.Event()

    def counter() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0)

    thread = threading.Thread(target=counter)
    thread.start()
    try:
        c = library
        start = np.full(60, 1.7, c.dtype)
        for _ in range(200):
            before = count
            solve.newton(c.value, start, jac=c.gradient, hess=c.hessian)
            if count > before:
                break
        else:
            raise AssertionError("no other thread ran")
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


class Switchless:
    """A counting thread that runs only when the thread under test releases the GIL: threads are not preempted."""

    def __enter__(self) -> Switchless:
        self.interval = sys.getswitchinterval()
        sys.setswitchinterval(1000.0)
        self.count = 0
        self.left = math.nan  # the count when the solver was last given control, in this run
        self.seen = 0  # how often it has increased before the solver returned control
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self) -> None:
        while not self.stop.is_set():
            self.count += 1
            time.sleep(0)

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with reads of the count before and after, between which NumPy may release the GIL too."""
        self.left = math.nan

        def watched(*args: Any) -> Any:
            self.seen += self.count > self.left
            value = function(*args)
            self.left = self.count
            return value

        return watched

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        sys.setswitchinterval(self.interval)


def large_fit(w: Callable[..., Any]) -> solve.Result:
    g = np.random.default_rng(0)
    a, b = g.normal(size=(500, 300)), g.normal(size=500)
    return solve.levenberg_marquardt(
        w(lambda x: a @ x + 0.01 * np.sin(a @ x) - b),
        np.zeros(300),
        jac=w(lambda x: (1 + 0.01 * np.cos(a @ x))[:, None] * a),
    )


def large_saddle(w: Callable[..., Any]) -> solve.Result:
    """Of an order at which the Cholesky factorisation alone keeps the GIL."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(200, 200)))[0]

    def f(x: Array) -> float:
        y = q @ x
        return float(np.sum((y**2 - 1) ** 2))

    def hessian(x: Array) -> Array:
        return q.T @ ((12 * (q @ x) ** 2 - 4)[:, None] * q)

    start = q.T @ np.full(200, 0.1)
    return solve.newton(w(f), start, jac=w(lambda x: q.T @ (4 * (q @ x) * ((q @ x) ** 2 - 1))), hess=w(hessian))


@pytest.mark.parametrize("problem", [large_fit, large_saddle])
def test_the_lock_is_released_in_the_linear_algebra_of_large_problems(problem: Callable[..., Any]) -> None:
    with Switchless() as other:
        for _ in range(20):
            r = problem(other.watch)
            assert r.success, r.message
            if other.seen > 0:
                break
    assert other.seen > 0


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="a free-threaded interpreter")
def test_small_problems_keep_the_lock() -> None:
    """Reacquiring the GIL may have to wait for another thread."""
    p = _nist.problems()["Thurber"]
    with Switchless() as other:
        for _ in range(5):
            assert solve.levenberg_marquardt(other.watch(p.residuals), p.starts[1], jac=other.watch(p.jacobian)).success
    assert other.seen == 0


def test_callbacks_and_errors_without_the_lock() -> None:
    a = np.random.default_rng(0).normal(size=(300, 256))
    seen: list[int] = []

    def residuals(x: Array) -> Array:
        return a @ x + 0.1 * np.sin(x).sum() - 1

    def failing(x: Array) -> Array:
        seen.append(len(seen))
        if len(seen) == 5:
            raise KeyError("five")
        return residuals(x)

    with pytest.raises(KeyError, match="five"):
        solve.levenberg_marquardt(failing, np.zeros(256), jac="2-point")
    assert len(seen) == 5
    jacobian = lambda x: a + 0.1 * np.cos(x)  # noqa: E731
    r = solve.levenberg_marquardt(residuals, np.zeros(256), jac=jacobian, callback=lambda x: True, history=True)
    assert (r.status, r.nit, len(r.history["fun"])) == (-1, 1, 2)
    plain = solve.levenberg_marquardt(residuals, np.zeros(256), jac=jacobian)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: solve.levenberg_marquardt(residuals, np.zeros(256), jac=jacobian), range(4)))
    for other in both:
        np.testing.assert_array_equal(other.x, plain.x)


INTERRUPT = """
import ctypes, os, signal, sys, threading, time
import numpy as np
from adaptk import solve
kind, path = sys.argv[1:3]
# Never at an end: it falls for ever.
if kind == "python":
    def f(x): return -float(x[0])
    def g(x): return -np.ones(1)
else:
    library = ctypes.CDLL(path)
    p = ctypes.POINTER(ctypes.c_double)
    f, g = library.value, library.gradient
    f.restype, f.argtypes = ctypes.c_double, [ctypes.c_int, p, ctypes.c_void_p]
    g.restype, g.argtypes = None, [ctypes.c_int, p, p, ctypes.c_void_p]
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        solve.steepest_descent(f, [0.1], jac=g, gtol=0, maxiter=10**9)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="a system without these signals")
@pytest.mark.parametrize("kind", ["python", "compiled"])
def test_ctrl_c(kind: str, tmp_path: Any) -> None:
    import shutil

    path = tmp_path / "f.so"
    if kind == "compiled":
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler")
        # Each call takes a millisecond, and the function has no end.
        (tmp_path / "f.c").write_text(
            "#include <time.h>\n"
            "static void rest(void) { struct timespec t = {0, 1000000}; nanosleep(&t, 0); }\n"
            "double value(int n, const double *x, void *u) { rest(); return -x[0]; }\n"
            "void gradient(int n, const double *x, double *g, void *u) { rest(); g[0] = -1; }\n"
        )
        subprocess.run([compiler, "-shared", "-fPIC", "f.c", "-o", "f.so"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, kind, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "interrupted"


def test_nothing_leaks() -> None:
    class Token:
        pass

    token = Token()
    big = np.zeros(1000)

    def failing(x: Array) -> float:
        raise Refused

    def once() -> None:
        run_all(0)
        solve.levenberg_marquardt(lambda p, t: decay(p) - NOISY, [1.0, 1.0, 0.0], (token,), history=True)
        solve.newton(
            lambda x, t, b: float(x @ x), [1.0], (token, big), jac=lambda x, t, b: 2 * x, callback=lambda x: None
        )
        for bad in (failing, lambda x: None, lambda x: 1j, lambda x: np.ones(3)):
            with pytest.raises((Refused, TypeError, ValueError)):
                solve.conjugate_gradient(bad, [1.0, 2.0], (), jac=gradient)
        with pytest.raises(ValueError):
            solve.levenberg_marquardt(lambda x: np.ones((2, 2)), [1.0])

    for _ in range(3):
        once()
    gc.collect()
    references = sys.getrefcount(token), sys.getrefcount(big), sys.getrefcount(None)
    tracemalloc.start()
    try:
        # A free-threaded interpreter frees some memory later, up to a bound.
        for _ in range(50):
            once()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(50):
            once()
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert sys.getrefcount(token) == references[0]
    assert sys.getrefcount(big) == references[1]
    assert abs(sys.getrefcount(None) - references[2]) < 50 or sys.version_info >= (3, 12)
    # An array leaked by each run would be at least 50 times 100 bytes, and each run has a hundred.
    assert after - before < 20_000
