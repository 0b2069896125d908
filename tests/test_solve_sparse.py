"""Sparse Jacobians: differences of groups of columns, and steps by conjugate gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import solve
from adaptk.solve import _losses as losses
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
    """An operator with only products."""

    def __init__(self, j: Array) -> None:
        self.shape, self.j = j.shape, j

    def matvec(self, v: Array) -> Array:
        return self.j @ v

    def rmatvec(self, u: Array) -> Array:
        return self.j.conj().T @ u


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
    for key in ("cov", "x_std"):
        assert key in r
    assert "message: " in repr(r) or "x[29]" in repr(r)


@pytest.mark.parametrize(("name", "kind"), KINDS[2:])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fixed": {3: -0.7}},
        {"mask": np.arange(30) == 4},
        {"loss": "huber"},
        {"loss": lambda z: np.stack([z, np.ones_like(z), np.zeros_like(z)])},
        {"bounds": (-2, -0.4)},
        {"starts": 1},
        {"check_derivatives": True},
    ],
    ids=lambda v: next(iter(v), "plain"),
)
def test_the_solver_is_chosen_by_the_jacobian(name: str, kind: Any, options: dict[str, Any]) -> None:
    """As SciPy's least_squares chooses "lsmr"."""
    if isinstance(kind, str):
        sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
        kind = sparse.linalg.aslinearoperator if kind == "LinearOperator" else getattr(sparse, kind)

    def jac(x: Array) -> Any:
        return kind(broyden_jacobian(x))

    x0 = np.full(30, -0.7)
    want = solve.levenberg_marquardt(broyden, x0, jac=jac, linear_solver="cg", **options)
    got = solve.levenberg_marquardt(broyden, x0, jac=jac, **options)
    np.testing.assert_array_equal(got.x, want.x)
    assert got.success
    with pytest.raises(TypeError, match=r"linear_solver: jac returns .*, for which it must be 'cg', or left out"):
        solve.levenberg_marquardt(broyden, x0, jac=jac, linear_solver="qr", **options)


def test_intervals_without_a_covariance() -> None:
    """Fits of many parameters by products have no standard deviations, but their profiles are those of any fit."""
    t = np.linspace(0, 2, 30)
    y = 2 * np.exp(-1.3 * t) + 0.05 * np.random.default_rng(0).normal(size=30)

    def residuals(p: Array) -> Array:
        return p[0] * np.exp(-p[1] * t) - y

    def jac(p: Array) -> Array:
        return np.stack([np.exp(-p[1] * t), -p[0] * t * np.exp(-p[1] * t)], axis=1)

    want = solve.levenberg_marquardt(residuals, [1.0, 1.0], jac=jac)
    got = solve.levenberg_marquardt(residuals, [1.0, 1.0], jac=lambda p: Operator(jac(p)))
    np.testing.assert_allclose(got.conf_interval(), want.conf_interval(), rtol=1e-5)
    np.testing.assert_allclose(got.profile(0, points=5).tau, want.profile(0, points=5).tau, atol=1e-4)
    del got["x_std"]
    with pytest.raises(ValueError, match="the fit has no standard deviations: there are more than 2048 parameters"):
        got.confidence_intervals()


def test_operators_with_many_columns_have_no_covariance() -> None:
    n = 257
    r = solve.levenberg_marquardt(lambda x: x - 1, np.zeros(n), jac=lambda x: Operator(np.eye(n)))
    assert r.success
    assert "cov" not in r
    with pytest.raises(ValueError, match="or more than 256 and jac returned an operator"):
        r.confidence_intervals()
    with pytest.raises(ValueError, match="covariance: there is none for more than 256 parameters if jac returns op"):
        solve.levenberg_marquardt(
            lambda x: x - 1, np.zeros(n), jac=lambda x: Operator(np.eye(n)), covariance="sandwich"
        )  # fmt: skip


def test_sparse_derivatives_are_checked() -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    x0 = np.full(6, -0.7)
    for kind in (Operator, sparse.csr_array):
        assert solve.check_derivatives(broyden, x0, jac=lambda x, kind=kind: kind(broyden_jacobian(x))).success
        with pytest.raises(ValueError, match="check_derivatives: jac"):
            solve.levenberg_marquardt(
                broyden, x0, jac=lambda x, kind=kind: kind(broyden_jacobian(x) * 1.1), check_derivatives=True
            )


def growth(x: Array) -> Array:
    """Three residuals for each of four parameters and a common one."""
    t = np.array([0.5, 1.0, 2.0])
    noise = 0.1 * np.random.default_rng(0).normal(size=(4, 3))
    return (np.exp(np.outer(x[:4], t)) * x[4] - 2 * np.exp(np.outer([0.1, -0.3, 0.2, -0.5], t)) - noise).ravel()


def growth_jacobian(x: Array) -> Array:
    t = np.array([0.5, 1.0, 2.0])
    e = np.exp(np.outer(x[:4], t))
    j = np.zeros((4, 3, 5))
    j[np.arange(4), :, np.arange(4)] = e * x[4] * t
    j[:, :, 4] = e
    return j.reshape(12, 5)


@pytest.mark.parametrize("kind", ["array", "operator", "csr_array"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"absolute_sigma": True},
        {"covariance": "sandwich"},
        {"covariance": "sandwich", "absolute_sigma": True},
        {"loss": "huber", "f_scale": 0.1},
        {"loss": "cauchy", "f_scale": 0.1},
        {"loss": losses.NAMED["soft_l1"], "f_scale": 0.1},
        {"fixed": {4: 2.0}},
        {"ties": {1: lambda x: x[0] / 3}},
        {"mask": np.arange(12) == 3},
        {"bounds": ([-1.0, -1.0, 0.25, -1.0, 0.0], 5.0)},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_the_covariance_matches_the_direct_solver(kind: str, options: dict[str, Any]) -> None:
    make: Any = np.asarray if kind == "array" else Operator
    if kind == "csr_array":
        make = getattr(pytest.importorskip("scipy.sparse", reason="SciPy is not installed"), kind)
    x0 = np.array([0.0, 0.0, 0.3, 0.0, 1.0])
    want = solve.levenberg_marquardt(growth, x0, jac=growth_jacobian, **options)
    got = solve.levenberg_marquardt(growth, x0, jac=lambda x: make(growth_jacobian(x)), linear_solver="cg", **options)
    assert got.success
    np.testing.assert_allclose(got.x, want.x, atol=1e-6)
    assert np.isfinite(want.x_std).all()
    np.testing.assert_allclose(got.x_std, want.x_std, rtol=1e-4)
    np.testing.assert_allclose(got.cov, want.cov, atol=1e-4 * want.x_std.max() ** 2)
    assert "95% interval" in repr(got)


def test_undetermined_parameters_have_no_covariance() -> None:
    options: dict[str, Any] = {"linear_solver": "cg"}
    twice = lambda x: np.array([x[0] + x[1] - 1, x[0] + x[1] - 2, x[0] + x[1] - 4])  # noqa: E731
    r = solve.levenberg_marquardt(twice, [0.0, 0.0], jac=lambda x: np.ones((3, 2)), **options)
    assert np.isinf(r.x_std).all()
    square = solve.levenberg_marquardt(broyden, -np.ones(4), jac=broyden_jacobian, **options)
    assert np.isinf(square.cov).all()
    known = solve.levenberg_marquardt(broyden, -np.ones(4), jac=broyden_jacobian, absolute_sigma=True, **options)
    assert np.isfinite(known.cov).all()
    bad = solve.levenberg_marquardt(broyden, -np.ones(4), jac=lambda x: broyden_jacobian(x) * np.nan, **options)
    assert bad.status == -3
    assert bad.jac is None
    assert all(np.isnan(bad[key]).all() for key in ("cov", "x_std", "grad"))
    n = 2049
    many = solve.levenberg_marquardt(lambda x: x - 1, np.zeros(n), jac=lambda x: Operator(np.eye(n)), **options)
    assert "cov" not in many
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    many = solve.levenberg_marquardt(lambda x: x - 1, np.zeros(n), jac=lambda x: sparse.eye_array(n), **options)
    assert "cov" not in many


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


def test_statuses() -> None:
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
            "covariance: expected None or 'sandwich', got 'white'",
            {"linear_solver": "cg", "jac": broyden_jacobian, "covariance": "white"},
        ),
        (
            ValueError,
            "loss: expected one of 'linear', 'huber'",
            {"linear_solver": "cg", "jac": broyden_jacobian, "loss": "hubert"},
        ),
        (
            ValueError,
            "x0: variable 0 is -1.0, outside its bounds",
            {"linear_solver": "cg", "jac": broyden_jacobian, "bounds": (0, 2)},
        ),
        (
            ValueError,
            r"jac must return 4 rows, as fun did at x0; got shape \(3, 4\)",
            {"linear_solver": "cg", "jac": lambda x: Operator(np.ones((3, 4))), "nan_policy": "omit"},
        ),
        (
            ValueError,
            "check_derivatives: ",
            {"linear_solver": "cg", "jac": lambda x: Operator(np.ones((4, 4))), "check_derivatives": True},
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


def peaks(noise: float = 0.02, outliers: int = 6) -> tuple[Any, Any, Array]:
    """Two peaks on a slope, with outliers: residuals, their Jacobian, and a start."""
    g = np.random.default_rng(3)
    t = np.linspace(0, 10, 120)

    def parts(p: Array) -> tuple[Array, Array]:
        return np.exp(-((t - 3) ** 2) / p[1] ** 2), np.exp(-((t - p[3]) ** 2))

    def model(p: Array) -> Array:
        a, b = parts(p)
        return p[0] * a + p[2] * b + p[4] + p[5] * t

    def jacobian(p: Array) -> Array:
        a, b = parts(p)
        columns = [a, p[0] * a * 2 * (t - 3) ** 2 / p[1] ** 3, b, p[2] * b * 2 * (t - p[3])]
        return np.stack([*columns, np.ones_like(t), t], axis=1)

    y = model(np.array([2.0, 0.8, 1.0, 7.0, 0.5, 0.1])) + noise * g.normal(size=t.size)
    y[g.choice(t.size, outliers, replace=False)] += 1.5
    return lambda p: model(p) - y, jacobian, np.array([1.8, 0.9, 0.9, 6.9, 0.45, 0.08])


def product_of(jacobian: Any) -> Any:
    return lambda p: Operator(jacobian(p))


LOSSES = ["huber", "soft_l1", "cauchy", "arctan", "tukey"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("products", [False, True])
def test_robust_losses(loss: str, products: bool) -> None:
    f, jacobian, x0 = peaks()
    options: dict[str, Any] = {"loss": loss, "f_scale": 0.2}
    want = solve.levenberg_marquardt(f, x0, jac=jacobian, **options)
    jac = product_of(jacobian) if products else jacobian
    got = solve.levenberg_marquardt(f, x0, jac=jac, linear_solver="cg", **options)
    assert got.success
    assert got.cost == pytest.approx(want.cost, rel=1e-8)
    np.testing.assert_allclose(got.x, want.x, rtol=1e-4)
    np.testing.assert_allclose(got.grad, 0, atol=1e-4)
    assert got.optimality == np.abs(got.grad).max()
    plain = solve.levenberg_marquardt(f, x0, jac=jac, linear_solver="cg")
    assert np.abs(plain.x - want.x).max() > 10 * np.abs(got.x - want.x).max()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_by_name_and_as_functions(loss: str) -> None:
    z = np.array([0.0, 1e-12, 0.3, 0.999, 1.001, 4.0, 1e6])
    f = losses.NAMED[loss]
    rho, first, second = f(z)
    h = 1e-6 * (z + 1e-6)
    inside = z > 0
    np.testing.assert_allclose(first[inside], ((f(z + h)[0] - f(z - h)[0]) / (2 * h))[inside], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(second[inside], ((f(z + h)[1] - f(z - h)[1]) / (2 * h))[inside], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(rho[:2], z[:2], rtol=1e-11)
    residuals, jacobian, x0 = peaks()
    options: dict[str, Any] = {"jac": jacobian, "f_scale": 0.2, "linear_solver": "cg"}
    by_name = solve.levenberg_marquardt(residuals, x0, loss=loss, **options)
    np.testing.assert_array_equal(solve.levenberg_marquardt(residuals, x0, loss=f, **options).x, by_name.x)


def test_the_scale_of_a_loss_from_the_data() -> None:
    f, jacobian, x0 = peaks()
    options: dict[str, Any] = {"jac": jacobian, "loss": "soft_l1", "f_scale": "mad"}
    want = solve.levenberg_marquardt(f, x0, **options)
    got = solve.levenberg_marquardt(f, x0, linear_solver="cg", **options)
    assert got.f_scale == pytest.approx(want.f_scale, rel=1e-5)
    np.testing.assert_allclose(got.x, want.x, rtol=1e-4)


def test_tukeys_loss_beyond_its_scale() -> None:
    f, jacobian, x0 = peaks()
    r = solve.levenberg_marquardt(f, x0 + 100, jac=jacobian, loss="tukey", f_scale=1e-3, linear_solver="cg")
    assert r.status == -4
    assert not r.success


BOUNDS = (np.array([0, 0, 0, 6.0, 0.6, -1]), np.array([9, 0.7, 9, 9, 9, 9.0]))


@pytest.mark.parametrize("loss", ["linear", "huber"])
@pytest.mark.parametrize("products", [False, True])
def test_bounds(loss: str, products: bool) -> None:
    f, jacobian, x0 = peaks()
    start = np.clip(x0, *BOUNDS)
    points = []

    def counted(p: Array) -> Array:
        points.append(p)
        return f(p)

    want = solve.levenberg_marquardt(f, start, jac=jacobian, bounds=BOUNDS, loss=loss, f_scale=0.2)
    jac = product_of(jacobian) if products else jacobian
    got = solve.levenberg_marquardt(counted, start, jac=jac, bounds=BOUNDS, loss=loss, f_scale=0.2, linear_solver="cg")
    assert got.success
    assert all((p >= BOUNDS[0]).all() and (p <= BOUNDS[1]).all() for p in points)
    assert got.nfev == len(points)
    assert got.cost == pytest.approx(want.cost, rel=1e-8)
    np.testing.assert_allclose(got.x, want.x, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(got.active_mask, want.active_mask)
    assert (got.active_mask != 0).any()
    assert got.optimality == np.abs(got.grad[got.active_mask == 0]).max()


@pytest.mark.parametrize("products", [False, True])
def test_a_start_on_bounds_with_an_outward_step(products: bool) -> None:
    # At (0, 0) the undamped step leaves the quadrant, and the gradient points along its edge.
    a = np.array([[1.0, 0.9], [0.9, 1.0], [0.0, 0.1]])
    b = np.array([1.0, 0.2, 0.0])
    jac = product_of(lambda x: a) if products else lambda x: a
    r = solve.levenberg_marquardt(lambda x: a @ x - b, np.zeros(2), jac=jac, bounds=(0, 5), linear_solver="cg")
    assert r.success
    np.testing.assert_allclose(r.x, [a[:, 0] @ b / (a[:, 0] @ a[:, 0]), 0], rtol=1e-6)
    np.testing.assert_array_equal(r.active_mask, [0, -1])


@pytest.mark.parametrize("loss", ["linear", "soft_l1"])
@pytest.mark.parametrize("bounded", [False, True])
def test_the_same_minimum_as_scipys_lsmr(loss: str, bounded: bool) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    n = 200
    bounds = (np.where(np.arange(n) % 7 == 0, -0.6, -9.0), np.full(n, 9.0))

    def f(x: Array) -> Array:
        return np.concatenate([broyden(x), 0.1 * (x - np.sin(np.arange(n)))])

    def jacobian(x: Array) -> Any:
        return sparse.vstack([sparse.csr_array(broyden_jacobian(x)), 0.1 * sparse.eye_array(n)], format="csr")

    start = -0.5 * np.ones(n)
    more: dict[str, Any] = {"bounds": bounds} if bounded else {}
    theirs = optimize.least_squares(
        f, start, jac=jacobian, tr_solver="lsmr", loss=loss, f_scale=0.1, ftol=1e-12, xtol=1e-12, gtol=1e-12, **more
    )
    ours = solve.levenberg_marquardt(f, start, jac=jacobian, loss=loss, f_scale=0.1, linear_solver="cg", **more)
    assert ours.success
    assert ours.cost <= theirs.cost * (1 + 1e-8)
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-4)


def make_sparse(j: Array) -> Any:
    return pytest.importorskip("scipy.sparse", reason="SciPy is not installed").coo_array(j)


@pytest.mark.parametrize("kind", [np.asarray, Operator, make_sparse])
@pytest.mark.parametrize("ties", [None, {5: lambda x: 0.1 + x[4] / 50}])
def test_fixed_parameters_and_masked_rows(kind: Any, ties: Any) -> None:
    f, jacobian, x0 = peaks()
    mask = np.arange(120) % 11 == 4
    options: dict[str, Any] = {"fixed": {3: 7.0}, "ties": ties, "mask": mask}
    want = solve.levenberg_marquardt(f, x0, jac=jacobian, **options)
    got = solve.levenberg_marquardt(f, x0, jac=lambda p: kind(jacobian(p)), linear_solver="cg", **options)
    assert got.success
    np.testing.assert_allclose(got.x, want.x, rtol=1e-4)
    np.testing.assert_array_equal(got.fixed, want.fixed)
    np.testing.assert_array_equal(got.mask, mask)
    assert got.dof == want.dof
    assert got.jac.shape == want.jac.shape == (mask.size - mask.sum(), 6)
    v = np.arange(1.0, 7.0)
    products = got.jac.matvec(v) if hasattr(got.jac, "matvec") else got.jac @ v
    np.testing.assert_allclose(products, want.jac @ v, rtol=1e-3, atol=1e-3)
    u = np.cos(np.arange(got.jac.shape[0]))
    back = got.jac.rmatvec(u) if hasattr(got.jac, "rmatvec") else got.jac.T @ u
    np.testing.assert_allclose(back, want.jac.T @ u, rtol=1e-3, atol=1e-3)
    assert back[3] == 0


@pytest.mark.parametrize("kind", [np.asarray, Operator, make_sparse])
def test_complex_residuals(kind: Any) -> None:
    t = np.linspace(0, 2, 40)

    def f(p: Array) -> Array:
        return p[0] * np.exp((1j * p[1] - p[2]) * t) - 1.5 * np.exp((3j - 0.5) * t)

    def jacobian(p: Array) -> Array:
        e = np.exp((1j * p[1] - p[2]) * t)
        return np.stack([e, 1j * p[0] * t * e, -p[0] * t * e], axis=1)

    got = solve.levenberg_marquardt(
        f, [1.0, 2.5, 0.2], jac=lambda p: kind(jacobian(p)), linear_solver="cg", complex_residuals=True
    )
    assert got.success
    np.testing.assert_allclose(got.x, [1.5, 3.0, 0.5], rtol=1e-6)


def test_history_of_products() -> None:
    f, jacobian, x0 = peaks()
    r = solve.levenberg_marquardt(f, x0, jac=jacobian, linear_solver="cg", history=True)
    assert r.history["fun"][0] == pytest.approx(0.5 * (f(x0) @ f(x0)))
    assert (np.diff(r.history["fun"]) <= 0).all()
    assert np.isnan(r.history["step"][0])
    assert r.history["gradient"][0] == pytest.approx(np.abs(jacobian(x0).T @ f(x0)).max())
    assert len(r.history["fun"]) in (r.nit, r.nit + 1)
