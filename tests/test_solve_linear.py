"""Conjugate gradients, and systems that are large."""

from __future__ import annotations

import math
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import _solve, solve


@pytest.mark.parametrize("form", ["array", "list", "function", "fortran", "float32"])
def test_cg(form: str) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(30, 30))
    a = a @ a.T + 5 * np.eye(30)
    a = (a + a.T) / 2
    b = rng.normal(size=30)
    given: Any = {
        "array": a,
        "list": a.tolist(),
        "function": lambda v: a @ v,
        "fortran": np.asfortranarray(a),
        "float32": a.astype(np.float32),
    }[form]
    r = solve.cg(given, b.astype(np.float32) if form == "float32" else b, rtol=1e-5 if form == "float32" else 1e-12)
    assert r.success, r.message
    assert r.x.dtype == (np.float32 if form == "float32" else np.float64)
    np.testing.assert_allclose(
        r.x, np.linalg.solve(a, b), rtol=1e-3 if form == "float32" else 1e-9, atol=1e-5 if form == "float32" else 1e-12
    )
    assert r.fun == pytest.approx(float(r.x @ a @ r.x / 2 - b @ r.x), rel=1e-3)


def test_cg_ends_after_as_many_steps_as_there_are_eigenvalues() -> None:
    d = np.repeat([1.0, 10.0, 100.0], 20)
    r = solve.cg(np.diag(d), np.ones(60), rtol=1e-10)
    assert r.nit == 3
    assert solve.cg(np.diag(d), np.ones(60), M=np.diag(1 / d)).nit == 1
    assert solve.cg(np.diag(d), np.ones(60), M=lambda v: v / d).nit == 1
    assert solve.cg(np.diag(d), np.zeros(60)).nit == 0
    assert solve.cg(np.diag(d), np.ones(60), x0=1 / d).nit == 0


def test_cg_accepts_linear_operators() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="SciPy is not installed")
    sparse = pytest.importorskip("scipy.sparse")
    a = sparse.diags_array([np.full(9, -1.0), np.full(10, 3.0), np.full(9, -1.0)], offsets=[-1, 0, 1]).tocsr()
    want = np.linalg.solve(a.toarray(), np.ones(10))
    np.testing.assert_allclose(solve.cg(a, np.ones(10)).x, want, rtol=1e-6)
    np.testing.assert_allclose(solve.cg(linalg.aslinearoperator(a), np.ones(10)).x, want, rtol=1e-6)


# Large matrices


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 5, 31, 96, 111, 112, 113, 127, 128, 129, 160, 257, 300, 401])
def test_cholesky(n: int, dtype: Any) -> None:
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, n))
    a = (a @ a.T + n * np.eye(n)).astype(dtype)
    a = (a + a.T) / 2
    x = rng.normal(size=n).astype(dtype)
    got = _solve.cholesky_solve(a, (a.astype(np.float64) @ x).astype(dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, x, rtol=0, atol=200 * np.finfo(dtype).eps * np.abs(x).max() * math.sqrt(n))
    for bad in (0, n // 2, n - 1):
        spoilt = a.copy()
        spoilt[bad, bad] = -1
        assert _solve.cholesky_solve(spoilt, x) is None
        spoilt[bad, bad] = math.nan
        assert _solve.cholesky_solve(spoilt, x) is None


@pytest.mark.usefixtures("restored")
def test_threads_change_no_bit() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 500))
    a = a @ a.T + 500 * np.eye(500)
    b = rng.normal(size=500)
    results = set()
    for threads in (1, 2, 3):
        adaptk.set_num_threads(threads)
        results.add(_solve.cholesky_solve(a, b).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("n", [20, 140, 300])
def test_newton_on_large_quadratics(n: int) -> None:
    rng = np.random.default_rng(n)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    d = np.geomspace(0.5, 50, n)
    a = (q * d) @ q.T
    b = rng.normal(size=n)
    r = solve.newton(lambda x: float(x @ a @ x / 2 - b @ x), np.zeros(n), jac=lambda x: a @ x - b, hess=lambda x: a)
    assert r.success
    assert r.nit <= 2
    np.testing.assert_allclose(r.x, np.linalg.solve(a, b), rtol=1e-9, atol=1e-10)
    assert r.lambda_min == pytest.approx(0.5, rel=1e-5)
