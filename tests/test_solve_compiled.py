"""Compiled functions in the solvers."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from adaptk import solve
from solve_problems import (
    compiled,  # noqa: F401
    rosenbrock,
    rosenbrock_gradient,
    rosenbrock_hessian,
)

REAL = {np.float64: ctypes.c_double, np.float32: ctypes.c_float}


def pointers(real: Any) -> dict[str, Any]:
    p = ctypes.POINTER(real)
    return {
        "fun": ctypes.CFUNCTYPE(real, ctypes.c_int, p, ctypes.c_void_p),
        "jac": ctypes.CFUNCTYPE(None, ctypes.c_int, p, p, ctypes.c_void_p),
        "hessp": ctypes.CFUNCTYPE(None, ctypes.c_int, p, p, p, ctypes.c_void_p),
        "residuals": ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, p, p, ctypes.c_void_p),
    }


def test_compiled_functions(library: Any) -> None:
    start = np.array([-1.2, 1.0, 0.5], library.dtype)
    tolerance = 1e-6 if library.dtype is np.float64 else 2e-2
    c = library
    for r in (
        solve.newton(c.value, start, jac=c.gradient, hess=c.hessian),
        solve.newton(c.value, start, jac=c.gradient, hessp=c.product),
        solve.newton(c.value, start, jac=c.gradient),
        solve.newton(c.value, start, jac=rosenbrock_gradient, hess=c.hessian),
        solve.conjugate_gradient(c.value, start, jac=c.gradient),
        solve.conjugate_gradient(c.value, start, jac=c.gradient, history=True, callback=lambda x: None),
    ):
        assert r.success
        assert r.x.dtype == library.dtype
        np.testing.assert_allclose(r.x, 1, atol=tolerance)
    for jac in (c.jacobian, "2-point", "3-point"):
        r = solve.levenberg_marquardt(c.residuals, np.ones(2, library.dtype), jac=jac, m=20)
        assert r.success
        np.testing.assert_allclose(r.x, [2, 1.3], atol=tolerance)


def test_compiled_functions_match_python(library: Any) -> None:
    if library.dtype is np.float32:
        pytest.skip("the Python functions of this test compute in float64")
    start = np.array([-1.2, 1.0, 0.5])
    c = library
    mine = solve.newton(c.value, start, jac=c.gradient, hess=c.hessian)
    want = solve.newton(rosenbrock, start, jac=rosenbrock_gradient, hess=rosenbrock_hessian)
    np.testing.assert_allclose(mine.x, want.x, rtol=1e-12)
    assert (mine.nfev, mine.njev, mine.nhev) == (want.nfev, want.njev, want.nhev)


def test_low_level_callables(library: Any) -> None:
    scipy = pytest.importorskip("scipy", reason="SciPy is not installed")
    if library.dtype is np.float32:
        pytest.skip("the user data of this test is a double")
    offset = ctypes.c_double(5.0)
    data = ctypes.cast(ctypes.pointer(offset), ctypes.c_void_p)
    f = scipy.LowLevelCallable(library.value, data)
    r = solve.newton(f, [-1.2, 1.0], jac=scipy.LowLevelCallable(library.gradient), hess=library.hessian)
    assert r.fun == pytest.approx(5.0)
    np.testing.assert_allclose(r.x, 1, rtol=1e-9)


def test_signatures_are_checked(library: Any) -> None:
    scipy = pytest.importorskip("scipy", reason="SciPy is not installed")
    start = np.array([-1.2, 1.0], library.dtype)
    with pytest.raises(TypeError, match="fun: the signature of a compiled function must be"):
        solve.newton(library.gradient, start)
    with pytest.raises(TypeError, match="jac: the signature of a compiled function must be"):
        solve.newton(library.value, start, jac=library.value)
    other = np.float32 if library.dtype is np.float64 else np.float64
    with pytest.raises(TypeError, match="fun: the signature of a compiled function must be"):
        solve.newton(library.value, start.astype(other))
    with pytest.raises(TypeError, match="fun: the signature of a compiled function must be"):
        solve.newton(scipy.LowLevelCallable(library.residuals), start)
    unset = ctypes.CDLL(library._name).value
    with pytest.raises(TypeError, match="fun: set restype and argtypes of the ctypes function"):
        solve.newton(unset, start)
    with pytest.raises(TypeError, match="m: a compiled fun needs the number of residuals"):
        solve.levenberg_marquardt(library.residuals, start)
    with pytest.raises(TypeError, match="jac: 'cs' calls fun with complex numbers"):
        solve.levenberg_marquardt(library.residuals, start, jac="cs", m=20)
    with pytest.raises(TypeError, match="jac: True is for Python functions"):
        solve.newton(library.value, start, jac=True)
    with pytest.raises(ValueError, match="vectorized: is for"):
        solve.newton(library.value, start, vectorized=True)


def test_numba(library: Any) -> None:
    numba = pytest.importorskip("numba", reason="numba is not installed")
    types = numba.types

    @numba.cfunc(
        types.void(types.int32, types.int32, types.CPointer(types.double), types.CPointer(types.double), types.voidptr)
    )
    def residuals(m: int, n: int, x: Any, r: Any, user: Any) -> None:
        r[0] = 10 * (x[1] - x[0] * x[0])
        r[1] = 1 - x[0]

    r = solve.levenberg_marquardt(residuals, [-1.2, 1.0], m=2)
    assert r.success
    np.testing.assert_allclose(r.x, 1, rtol=1e-10)


def test_functions_that_call_back_into_python() -> None:
    """A ctypes callback acquires the GIL by itself."""
    kind = pointers(ctypes.c_double)
    f = kind["fun"](lambda n, x, user: (x[0] - 3) ** 2)

    def g(n: int, x: Any, out: Any, user: Any) -> None:
        out[0] = 2 * (x[0] - 3)

    r = solve.conjugate_gradient(f, [10.0], jac=kind["jac"](g))
    assert r.x[0] == pytest.approx(3)
