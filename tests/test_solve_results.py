"""Callbacks, progress, history and the result of the solvers; SciPy's interface; documentation."""

from __future__ import annotations

import io
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from adaptk import solve
from solve_problems import (
    MATRIX,
    PROBLEMS,
    RIGHT,
    SOLVERS,
    Array,
    rosenbrock,
    rosenbrock_gradient,
    rosenbrock_hessian,
)


@pytest.mark.parametrize("solver", SOLVERS)
def test_callbacks_stop_it(solver: str) -> None:
    f, g, h = rosenbrock, rosenbrock_gradient, rosenbrock_hessian
    for how in ("raise", "return"):
        count = 0

        def callback(x: Array, how: str = how) -> bool | None:
            nonlocal count
            count += 1
            if count < 3:
                return None
            if how == "raise":
                raise StopIteration
            return True

        r = SOLVERS[solver](f, [-1.2, 1.0], g, h, callback=callback)
        assert (r.status, r.success, r.nit, count) == (-1, False, 3, 3)


def test_callbacks_with_an_intermediate_result() -> None:
    seen: list[Any] = []

    def callback(intermediate_result: Any) -> None:
        seen.append(intermediate_result)

    r = solve.newton(rosenbrock, [-1.2, 1.0], jac=rosenbrock_gradient, hess=rosenbrock_hessian, callback=callback)
    assert len(seen) == r.nit
    for k, s in enumerate(seen):
        assert s.fun == rosenbrock(s.x)
        assert s.nit == k + 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_history(solver: str) -> None:
    f, g, h = PROBLEMS["quadratic"][:3]
    r = SOLVERS[solver](f, [5.0, 5.0, 5.0], g, h, history=True)
    assert set(r.history) == {"fun", "step", "gradient"}
    assert all(len(v) == r.nit + 1 for v in r.history.values())
    assert r.history["fun"][0] == f(np.full(3, 5.0))
    assert r.history["gradient"][0] == np.abs(g(np.full(3, 5.0))).max()
    assert np.isnan(r.history["step"][0])
    assert (r.history["step"][1:] > 0).all()
    assert "history" not in SOLVERS[solver](f, [5.0, 5.0, 5.0], g, h)


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    solve.newton(rosenbrock, [-1.2, 1.0], jac=rosenbrock_gradient, hess=rosenbrock_hessian, disp=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("newton: iteration ")
    assert "A minimum" in captured.err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    solve.cg(MATRIX, RIGHT, disp=True)
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.count("\r") >= 2


def test_plot() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    runs = {
        "newton": solve.newton(rosenbrock, [-1.2, 1.0], jac=rosenbrock_gradient, hess=rosenbrock_hessian, history=True),
        "cg": solve.conjugate_gradient(rosenbrock, [-1.2, 1.0], jac=rosenbrock_gradient, history=True),
    }
    figure = solve.plot(runs)
    assert pyplot.gcf() is figure
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines) == 2
    assert solve.plot(runs["cg"]) is not None
    assert solve.plot(list(runs.values())) is not None
    with pytest.raises(ValueError, match="result: has no history; call the solver with history=True"):
        solve.plot(solve.cg(MATRIX, RIGHT))
    pyplot.close("all")


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="plot needs matplotlib, which is not installed: pip install matplotlib"):
        solve.plot(solve.cg(MATRIX, RIGHT, history=True))


# The result, and SciPy


def test_the_result_is_a_dict_with_attributes() -> None:
    r = solve.cg(MATRIX, RIGHT)
    assert isinstance(r, dict)
    assert r["x"] is r.x
    r.note = 3
    assert r["note"] == 3
    del r.note
    with pytest.raises(AttributeError, match="note"):
        _ = r.note
    with pytest.raises(AttributeError, match="note"):
        del r.note
    assert "x" in dir(r)
    assert "success: True" in repr(r)
    assert repr(solve.Result()) == "Result()"
    copy = pickle.loads(pickle.dumps(r))
    assert type(copy) is solve.Result
    np.testing.assert_array_equal(copy.x, r.x)


@pytest.mark.filterwarnings("ignore:.*does not use.*")
def _decays(p: Array) -> Array:
    t = np.arange(8.0)
    return p[0] * np.exp(-p[1] * t) - 2 * np.exp(-0.4 * t) - 0.01 * np.cos(5 * t)


def _decays_jacobian(p: Array) -> Array:
    t = np.arange(8.0)
    e = np.exp(-p[1] * t)
    return np.stack([e, -p[0] * t * e], axis=1)


@pytest.mark.parametrize(
    "jac", [None, _decays_jacobian, lambda p: -_decays_jacobian(p), lambda p: np.full((8, 2), np.nan)]
)
@pytest.mark.parametrize("x0", [[1.0, 1.0], [2.0, 0.4], [np.nan, 1.0], [1e200, 1e-5]])
def test_calls_without_options(jac: Any, x0: list[float]) -> None:
    """They have a faster code path in the extension."""

    def kinds(r: Any) -> dict[str, Any]:
        return {k: (type(v), getattr(v, "dtype", None), getattr(v, "shape", None), repr(v)) for k, v in r.items()}

    start = np.array(x0)
    if np.isnan(start).any():
        for more in ({}, {"max_nfev": 600}):
            with pytest.raises(ValueError, match="x0: must be finite, got nan at index 0"):
                solve.levenberg_marquardt(_decays, start, jac=jac, **more)
        return
    with np.errstate(all="ignore"):
        plain = solve.levenberg_marquardt(_decays, start, jac=jac)
        other = solve.levenberg_marquardt(_decays, start, jac=jac, max_nfev=600)
    assert type(plain) is type(other) is solve.Fit
    assert kinds(plain) == kinds(other)
    assert sorted(plain) == sorted(other)
    with pytest.raises(KeyError):
        solve.levenberg_marquardt(lambda p: {}[0], start, jac=jac)


def test_methods_of_scipys_minimize() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    start = [-1.2, 1.0, 0.5]
    f, g, h = optimize.rosen, optimize.rosen_der, optimize.rosen_hess
    options = {"maxiter": 500}
    seen: list[Any] = []
    r = optimize.minimize(f, start, jac=g, hess=h, method=solve.newton, callback=seen.append, options=options)
    assert r.success
    assert len(seen) == r.nit
    np.testing.assert_allclose(r.x, 1, rtol=1e-10)
    for method in (solve.newton, solve.conjugate_gradient):
        for jac in (g, None, "2-point", "3-point"):
            r = optimize.minimize(f, start, jac=jac, method=method, options=options, tol=1e-9)
            np.testing.assert_allclose(r.x, 1, atol=1e-3)
    both = optimize.minimize(lambda x: (f(x), g(x)), start, jac=True, method=solve.conjugate_gradient)
    np.testing.assert_allclose(both.x, 1, rtol=1e-6)
    r = optimize.minimize(f, start, jac=g, hessp=optimize.rosen_hess_prod, method=solve.newton)
    np.testing.assert_allclose(r.x, 1, rtol=1e-6)
    with_args = optimize.minimize(
        lambda x, a: float((x[0] - a) ** 2), [0.0], args=(3.0,), jac=lambda x, a: 2 * (x - a), method=solve.newton
    )
    assert with_args.x[0] == pytest.approx(3)
    with pytest.raises(ValueError, match=r"bounds: expected a pair .*; for a pair for each variable write"):
        optimize.minimize(f, start, jac=g, method=solve.newton, bounds=[(0, 2)] * 3)


def test_fewer_evaluations_than_steepest_descent_needs() -> None:
    """Figure 8.6 of the Deep Learning book: the cost of the zigzag."""
    scale = np.array([1.0, 50.0])

    def f(x: Array) -> float:
        return float(x @ (scale * x)) / 2

    slow = solve.steepest_descent(f, [50.0, 1.0], jac=lambda x: scale * x, line_search="exact", gtol=1e-6)
    fast = solve.conjugate_gradient(f, [50.0, 1.0], jac=lambda x: scale * x, gtol=1e-6)
    # From this start exact steepest descent converges by a factor of (50 - 1) / (50 + 1) per step.
    assert slow.nit == pytest.approx(math.log(1e6) / math.log(51 / 49), rel=0.05)
    assert fast.nit < 10


def test_the_import_is_lazy() -> None:
    code = (
        "import sys, adaptk\n"
        "assert 'adaptk._solve' not in sys.modules and 'adaptk.solve' not in sys.modules\n"
        "assert 'solve' in adaptk.__all__\n"
        "adaptk.solve.newton\n"
        "assert 'adaptk._solve' in sys.modules\n"
        "assert not {'scipy', 'matplotlib', 'numba', 'torch'} & set(sys.modules)\n"
        "try:\n"
        "    adaptk.nothing\n"
        "except AttributeError as e:\n"
        "    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "module 'adaptk' has no attribute 'nothing'"


def test_docstrings_run() -> None:
    import doctest
    import importlib

    tried = 0
    for name in ("_gradient", "_least_squares", "_linear", "_newton", "_plot", "_result"):
        results = doctest.testmod(importlib.import_module(f"adaptk.solve.{name}"))
        assert results.failed == 0
        tried += results.attempted
    assert tried > 15
