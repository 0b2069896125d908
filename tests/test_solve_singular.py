"""Nearly singular linear systems, extreme scales, and Newton's method near a maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve


def definite(n: int, condition: float, seed: int = 0) -> Any:
    g = np.random.default_rng(seed)
    q, _ = np.linalg.qr(g.normal(size=(n, n)))
    a = (q * np.geomspace(1 / condition, 1, n)) @ q.T
    return (a + a.T) / 2


@pytest.mark.parametrize("condition", [10.0, 1e4, 1e8])
def test_the_residual_is_the_true_one(condition: float) -> None:
    a = definite(20, condition)
    b = np.random.default_rng(1).normal(size=20)
    r = solve.cg(a, b, rtol=0, maxiter=10**5)
    assert r.status == 5
    np.testing.assert_allclose(r.residual, np.linalg.norm(b - a @ r.x), rtol=0.5)
    assert r.residual > 1e-18
    assert np.linalg.norm(r.residual) <= 1e-13 * (np.linalg.norm(r.x) + np.linalg.norm(b))
    np.testing.assert_allclose(r.jac, a @ r.x - b, rtol=0, atol=1e-14 * np.linalg.norm(r.x))


@pytest.mark.parametrize("power", [-900, -660, 600, 900])
def test_cg_does_not_depend_on_powers_of_two(power: int) -> None:
    a = definite(12, 1e3)
    b = np.random.default_rng(2).normal(size=12)
    seen: list[Any] = []
    want = solve.cg(a, b, rtol=1e-12)
    got = solve.cg(a, b * 2.0**power, rtol=1e-12, callback=lambda x: seen.append(x))
    assert (got.status, got.nit) == (want.status, want.nit) == (1, got.nit)
    np.testing.assert_array_equal(got.x / 2.0**power, want.x)
    assert got.residual / 2.0**power == want.residual
    np.testing.assert_array_equal(seen[-1], got.x)


@pytest.mark.parametrize("condition", [1e6, 1e10, 1e12])
@pytest.mark.parametrize("seed", range(5))
def test_rounding_does_not_make_a_definite_matrix_indefinite(condition: float, seed: int) -> None:
    a = definite(20, condition, seed)
    for rtol in (0.0, 1e-12):
        r = solve.cg(a, np.random.default_rng(seed).normal(size=20), rtol=rtol, maxiter=10**6)
        assert r.status in (0, 1, 5), r.message


@pytest.mark.parametrize("n", [8, 12, 16])
def test_a_numerically_singular_matrix(n: int) -> None:
    """The Hilbert matrix: with 12 rows its condition number is 1e16."""
    hilbert = 1 / (np.arange(n)[:, None] + np.arange(n) + 1.0)
    r = solve.cg(hilbert, np.random.default_rng(n).normal(size=n), rtol=0, maxiter=10**6)
    assert r.status == 5 or "singular within rounding" in r.message
    assert r.residual <= 10.0


@pytest.mark.parametrize("seed", range(20))
def test_a_singular_system_ends_at_the_best_point(seed: int) -> None:
    g = np.random.default_rng(seed)
    q, _ = np.linalg.qr(g.normal(size=(10, 10)))
    d = np.concatenate([np.zeros(3), np.geomspace(1e-3, 1, 7)])
    a = (q * d) @ q.T
    a = (a + a.T) / 2
    b = g.normal(size=10)  # not in the range of A
    lengths = [float(np.linalg.norm(b))]
    r = solve.cg(a, b, maxiter=500, callback=lambda x: lengths.append(float(np.linalg.norm(b - a @ x))))
    assert not r.success
    true = np.linalg.norm(b - a @ r.x)
    assert true == pytest.approx(r.residual)
    assert true <= 1.0001 * min(lengths)
    assert np.linalg.norm(r.x) < 1e8


def test_an_indefinite_matrix_is_named() -> None:
    r = solve.cg(np.diag([1.0, -1.0, 3.0]), [1.0, 1.0, 1.0])
    assert r.status == -7
    assert r.residual == pytest.approx(np.linalg.norm([1.0, 1.0, 1.0] - np.diag([1.0, -1.0, 3.0]) @ r.x))


@pytest.mark.parametrize("how", ["trust-region", "levenberg", "hessp"])
@pytest.mark.parametrize("start", [1e-9, -1e-12, 1e-5, 2 * np.pi + 1e-9])
def test_newton_leaves_a_maximum_near_the_start(how: str, start: float) -> None:
    second: Any = {"hessp": lambda x, v: -np.cos(x) * v} if how == "hessp" else {"hess": lambda x: -np.cos(x)[None]}
    if how != "hessp":
        second["damping"] = how
    r = solve.newton(lambda x: float(np.cos(x[0])), [start], jac=lambda x: -np.sin(x), **second)
    assert r.success, r.message
    assert r.fun == pytest.approx(-1.0)
