"""Sparse Jacobians: differences of groups of columns, and steps by conjugate gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve
from adaptk.solve._sparsity import groups_of, pattern_of

Array = Any


def broyden(x: Array) -> Array:
    """Broyden's tridiagonal function (1965)."""
    left, right = np.concatenate([[0], x[:-1]]), np.concatenate([x[1:], [0]])
    return (3 - 2 * x) * x - left - 2 * right + 1


def broyden_jacobian(x: Array) -> Array:
    n = x.size
    return np.diag(3 - 4 * x) - np.diag(np.ones(n - 1), -1) - 2 * np.diag(np.ones(n - 1), 1)


def tridiagonal(n: int) -> Array:
    return np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= 1


class Operator:
    """Products alone."""

    def __init__(self, j: Array) -> None:
        self.shape, self.j = j.shape, j

    def matvec(self, v: Array) -> Array:
        return self.j @ v

    def rmatvec(self, u: Array) -> Array:
        return self.j.T @ u


@pytest.mark.parametrize("seed", range(5))
def test_columns_of_a_group_share_no_row(seed: int) -> None:
    g = np.random.default_rng(seed)
    pattern = g.random((40, 25)) < 0.1
    pattern[:, 3] = False
    m, rows, columns = pattern_of(pattern, 25)
    groups = groups_of(m, 25, rows, columns)
    for k in range(int(groups.max()) + 1):
        assert pattern[:, groups == k].sum(axis=1).max() <= 1
    assert len(np.unique(groups)) < 25


def test_three_groups_for_a_tridiagonal_matrix() -> None:
    assert groups_of(*(lambda m, r, c: (m, 50, r, c))(*pattern_of(tridiagonal(50), 50))).max() == 2


@pytest.mark.parametrize("jac", [None, "2-point", "3-point"])
@pytest.mark.parametrize("solver", [None, "qr", "cg"])
def test_differences_of_groups(jac: Any, solver: Any) -> None:
    calls = 0

    def f(x: Array) -> Array:
        nonlocal calls
        calls += 1
        return broyden(x)

    n = 60
    r = solve.levenberg_marquardt(f, -np.ones(n), jac=jac, jac_sparsity=tridiagonal(n), linear_solver=solver)
    assert r.success
    np.testing.assert_allclose(broyden(r.x), 0, atol=1e-9)
    assert r.nfev == calls < 150
    j = r.jac.toarray() if hasattr(r.jac, "toarray") else r.jac
    np.testing.assert_allclose(j, broyden_jacobian(r.x), atol=1e-5 if jac == "2-point" else 1e-8)


def test_groups_with_bounds_masks_and_fixed_parameters() -> None:
    n = 12
    pattern = tridiagonal(n)
    options: dict[str, Any] = {"bounds": (-1.5, -0.5), "fixed": {2: -0.6}, "mask": np.arange(n) == 7}
    want = solve.levenberg_marquardt(broyden, -np.ones(n), jac="3-point", **options)
    got = solve.levenberg_marquardt(broyden, -np.ones(n), jac_sparsity=pattern, **options)
    np.testing.assert_allclose(got.x, want.x, rtol=1e-6)
    np.testing.assert_array_equal(got.active_mask, want.active_mask)


def test_scipys_matrices_as_a_pattern() -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    n = 20
    pattern = sparse.csr_array(tridiagonal(n).astype(float))
    r = solve.levenberg_marquardt(broyden, -np.ones(n), jac_sparsity=pattern)
    np.testing.assert_allclose(broyden(r.x), 0, atol=1e-12)
    other = solve.levenberg_marquardt(broyden, -np.ones(n), jac_sparsity=pattern.toarray())
    np.testing.assert_array_equal(r.x, other.x)


KINDS = [
    ("array", lambda j: j),
    ("list", lambda j: j.tolist()),
    ("operator", Operator),
    *((name, name) for name in ("csr_array", "csc_matrix", "coo_array", "LinearOperator")),
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jacobians_of_any_kind(name: str, kind: Any, dtype: Any) -> None:
    if isinstance(kind, str):
        sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
        make = sparse.linalg.aslinearoperator if kind == "LinearOperator" else getattr(sparse, kind)
    else:
        make = kind
    start = -np.ones(30, dtype)
    r = solve.levenberg_marquardt(
        lambda x: broyden(x).astype(dtype), start, jac=lambda x: make(broyden_jacobian(x).astype(dtype)),
        linear_solver="cg",
    )  # fmt: skip
    assert r.success
    assert r.x.dtype == r.grad.dtype == dtype
    np.testing.assert_allclose(broyden(r.x), 0, atol=1e-9 if dtype == np.float64 else 1e-5)
    assert "cov" not in r
    assert "x_std" not in r
    assert "message: " in repr(r)


def test_residuals_that_do_not_vanish() -> None:
    t = np.linspace(0, 3, 50)
    y = 2 * np.exp(-1.5 * t) + 0.3 + 0.1 * np.cos(9 * t)

    def f(p: Array) -> Array:
        return p[0] * np.exp(-p[1] * t) + p[2] - y

    def jacobian(p: Array) -> Array:
        e = np.exp(-p[1] * t)
        return np.stack([e, -p[0] * t * e, np.ones_like(t)], axis=1)

    want = solve.levenberg_marquardt(f, [1.0, 1.0, 0.0], jac=jacobian)
    for make in (np.asarray, Operator):
        got = solve.levenberg_marquardt(
            f, [1.0, 1.0, 0.0], jac=lambda p, make=make: make(jacobian(p)), linear_solver="cg"
        )
        assert got.success
        assert got.cost == pytest.approx(want.cost, rel=1e-9)
        np.testing.assert_allclose(got.x, want.x, rtol=1e-4)
        np.testing.assert_allclose(got.grad, jacobian(got.x).T @ got.fun, atol=1e-12)
    assert got.dof == 47


def test_a_hundred_thousand_parameters() -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    n = 100_000
    ones = np.ones(n - 1)

    def jacobian(x: Array) -> Any:
        return sparse.diags_array([-ones, 3 - 4 * x, -2 * ones], offsets=[-1, 0, 1], format="csr")

    r = solve.levenberg_marquardt(broyden, -np.ones(n), jac=jacobian, linear_solver="cg")
    assert r.success
    np.testing.assert_allclose(broyden(r.x), 0, atol=1e-8)


def test_what_ends_it() -> None:
    n = 30
    options: dict[str, Any] = {"jac": broyden_jacobian, "linear_solver": "cg"}
    assert solve.levenberg_marquardt(broyden, -np.ones(n), max_nfev=2, **options).status == 0
    assert solve.levenberg_marquardt(broyden, -np.ones(n), callback=lambda x: True, **options).status == -1
    assert solve.levenberg_marquardt(broyden, -np.ones(n), max_seconds=0.0, **options).status == -2
    assert solve.levenberg_marquardt(lambda x: broyden(x) * np.nan, -np.ones(n), **options).status == -3

    def fails(x: Array) -> Array:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        solve.levenberg_marquardt(broyden, -np.ones(n), jac=fails, linear_solver="cg")


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, r"jac_sparsity: expected shape \(m, 4\), got \(4, 3\)", {"jac_sparsity": np.ones((4, 3))}),
        (TypeError, "jac_sparsity: expected a matrix", {"jac_sparsity": np.ones(4)}),
        (ValueError, "jac_sparsity: is for differences", {"jac_sparsity": np.eye(4), "jac": broyden_jacobian}),
        (ValueError, "fun must return 5 residuals, as jac_sparsity has rows", {"jac_sparsity": np.ones((5, 4))}),
        (ValueError, "vectorized: does not go with jac_sparsity", {"jac_sparsity": np.eye(4), "vectorized": True}),
        (ValueError, "linear_solver: expected None, 'qr' or 'cg', got 'lsmr'", {"linear_solver": "lsmr"}),
        (ValueError, "jac: with linear_solver='cg' give a function", {"linear_solver": "cg"}),
        (
            ValueError,
            "linear_solver: 'cg' does not go with bounds",
            {"linear_solver": "cg", "jac": broyden_jacobian, "bounds": (-2, 0)},
        ),
        (
            ValueError,
            "linear_solver: 'cg' is for real residuals and loss='linear'",
            {"linear_solver": "cg", "jac": broyden_jacobian, "loss": "huber"},
        ),
        (
            ValueError,
            r"jac must return shape \(4, 4\), got \(4, 3\)",
            {"linear_solver": "cg", "jac": lambda x: np.ones((4, 3))},
        ),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        solve.levenberg_marquardt(broyden, -np.ones(4), **options)


def test_products_keep_no_history() -> None:
    with pytest.raises(ValueError, match="linear_solver: 'cg' does not go with history"):
        solve.levenberg_marquardt(
            lambda p: p - 1, np.zeros(3), jac=lambda p: np.eye(3), linear_solver="cg", history=True
        )
