"""Problems that are large enough for blocked factorisations: the digits of Householder's QR, for any thread count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import solve
from solve_problems import Array, rosenbrock, rosenbrock_gradient

M, N = 700, 60  # M N^2 is above the threshold of the blocked factorisation


def conditioned(condition: float, m: int = M, n: int = N, seed: int = 0) -> Array:
    """A matrix with columns of about the same norm, which no scaling of columns helps."""
    g = np.random.default_rng(seed)
    u = np.linalg.qr(g.normal(size=(m, n)))[0]
    v = np.linalg.qr(g.normal(size=(n, n)))[0]
    return np.asarray((u * np.geomspace(1, 1 / condition, n)) @ v.T)


def triangle(a: Array, b: Array) -> tuple[Array, Array]:
    """R and Q'b by modified Gram-Schmidt of [a b] in extended precision."""
    rows = np.column_stack([a, b]).astype(np.longdouble)
    n = a.shape[1]
    r = np.zeros((n, n + 1), np.longdouble)
    for k in range(n):
        r[k, k] = np.sqrt(rows[:, k] @ rows[:, k])
        rows[:, k] /= r[k, k]
        r[k, k + 1 :] = rows[:, k] @ rows[:, k + 1 :]
        rows[:, k + 1 :] -= np.outer(rows[:, k], r[k, k + 1 :])
    return r[:, :n], r[:, n]


def divided(r: Array, b: Array) -> Array:
    """R^-1 b."""
    x = np.array(b, np.longdouble)
    for k in reversed(range(len(r))):
        x[k] = (x[k] - r[k, k + 1 :] @ x[k + 1 :]) / r[k, k]
    return x


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6, 1e9, 1e11])
def test_digits(condition: float, scaled: bool) -> None:
    """x has the digits that a stable solver of the same linear problem gives it, and so has x_std."""
    a = conditioned(condition)
    if scaled:
        a = a * np.geomspace(1e-8, 1e8, N)  # which the solver's own scaling undoes
    g = np.random.default_rng(1)
    d = np.linalg.norm(a, axis=0)
    b = a @ (g.normal(size=N) / d) + 1e-6 * g.normal(size=M)
    r, z = triangle(a, b)
    x = divided(r, z)
    mine = solve.levenberg_marquardt(lambda p: a @ p - b, np.zeros(N), jac=lambda p: a)
    assert mine.success, mine.message
    q, t = np.linalg.qr(a / d)
    stable = np.linalg.solve(t, q.T @ b)
    # The least error from rounding a and b: the residual enters with the square of the condition number.
    floor = np.finfo(float).eps * condition * (np.linalg.norm(d * x) + condition * np.linalg.norm(mine.fun))
    assert np.linalg.norm(d * (mine.x - x)) <= 4 * np.linalg.norm(stable - d * x) + floor
    sigma = np.sqrt(2 * mine.cost / (M - N)) * np.linalg.norm(divided(r, np.eye(N)), axis=1)
    np.testing.assert_allclose(
        mine.x_std, np.asarray(sigma, float), rtol=max(1e-8, 20 * condition * np.finfo(float).eps)
    )


def tall(m: int = M, n: int = N, dtype: type = float, noise: float = 0.1) -> tuple[Any, Any]:
    g = np.random.default_rng(3)
    a = (g.normal(size=(m, n)) / np.sqrt(n)).astype(dtype)
    y = (np.exp(a @ g.normal(size=n)) + noise * g.normal(size=m)).astype(dtype)
    return (lambda x: np.exp(a @ x) - y), (lambda x: np.exp(a @ x)[:, None] * a)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_precision(dtype: type) -> None:
    f, j = tall(dtype=dtype)
    r = solve.levenberg_marquardt(f, np.zeros(N, dtype), jac=j)
    assert r.success
    assert r.x.dtype == dtype
    jacobian, residuals = j(r.x).astype(float), f(r.x).astype(float)
    step = np.linalg.lstsq(jacobian, residuals, rcond=None)[0]
    assert np.linalg.norm(step) <= 1e3 * np.finfo(dtype).eps * np.linalg.norm(r.x)
    inverse = np.linalg.inv(jacobian.T @ jacobian) * (2 * float(r.cost) / (M - N))
    np.testing.assert_allclose(
        r.cov, inverse, rtol=0, atol=max(1e-10, 200 * np.finfo(dtype).eps) * np.abs(inverse).max()
    )


def test_narrow_features_far_from_zero() -> None:
    """Steps that are short relative to x but long relative to the feature must not reuse a factorisation."""
    g = np.random.default_rng(5)
    t = np.linspace(-12, 12, 17_000)
    far, width = 6e9, 3e3
    f = far + width * t

    def peaks(p: Array) -> tuple[Array, Array]:
        rows = [np.ones_like(t), t]
        value = p[6] + p[7] * t
        for a, c, w in (p[:3], p[3:6]):
            u = (f - c) / w
            shape = 1 / (1 + u * u)
            value = value + a * shape
            slope = 2 * a * u * shape**2 / w
            rows[-2:-2] = [shape, slope, slope * u]
        return value, np.column_stack(rows)

    y = peaks(np.array([1.0, far, width, 0.6, far + 3 * width, 2 * width, 0.2, 0.01]))[0] + 0.01 * g.normal(size=t.size)
    start = np.array([0.7, far - width, 2 * width, 0.9, far + 4 * width, width, 0, 0])
    r = solve.levenberg_marquardt(lambda p: peaks(p)[0] - y, start, jac=lambda p: peaks(p)[1])
    assert r.success, r.message
    j = peaks(r.x)[1]
    d = np.linalg.norm(j, axis=0)
    q, upper = np.linalg.qr(j / d)
    std = np.linalg.norm(np.linalg.inv(upper), axis=1) / d * np.sqrt(2 * r.cost / (t.size - 8))
    np.testing.assert_allclose(r.x_std, std, rtol=1e-5)
    # The effect of rounding x on the residuals: eps of 6e9 in a feature 3e3 wide.
    step = np.linalg.solve(upper, q.T @ r.fun) / d
    assert np.all(np.abs(step) <= 1e-4 * std)


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "arctan", "tukey"])
def test_losses(loss: Any) -> None:
    f, j = tall()
    r = solve.levenberg_marquardt(f, np.zeros(N), jac=j, loss=loss, f_scale=0.3)
    assert r.success
    z = (r.fun / 0.3) ** 2
    weight = {
        "huber": np.where(z > 1, 1 / np.sqrt(np.maximum(z, 1)), 1),
        "soft_l1": 1 / np.sqrt(1 + z),
        "cauchy": 1 / (1 + z),
        "arctan": 1 / (1 + z**2),
        "tukey": np.maximum(1 - z, 0) ** 2,
    }[loss]
    jacobian = j(r.x)
    gradient = jacobian.T @ (weight * r.fun)
    slope = {  # of rho' r
        "huber": np.where(z > 1, 0, 1),
        "soft_l1": (1 + z) ** -1.5,
        "cauchy": (1 - z) / (1 + z) ** 2,
        "arctan": (1 - 3 * z**2) / (1 + z**2) ** 2,
        "tukey": np.where(z < 1, (1 - z) * (1 - 5 * z), 0),
    }[loss]
    bread = np.linalg.inv(jacobian.T @ (slope[:, None] * jacobian))
    meat = jacobian.T @ (((weight * r.fun) ** 2)[:, None] * jacobian)
    want = bread @ meat @ bread * (M / (M - N))
    np.testing.assert_allclose(r.cov, want, rtol=0, atol=1e-6 * np.abs(want).max())
    assert np.abs(gradient).max() <= 1e-7 * np.linalg.norm(jacobian, axis=0).max() * np.linalg.norm(r.fun)


def test_bounds() -> None:
    f, j = tall()
    free = solve.levenberg_marquardt(f, np.zeros(N), jac=j).x
    upper = np.full(N, np.inf)
    upper[:5] = free[:5] - 0.1
    r = solve.levenberg_marquardt(f, np.minimum(np.zeros(N), upper - 0.1), jac=j, bounds=(-np.inf, upper))
    assert r.success
    assert (r.x <= upper).all()
    held = r.active_mask == 1
    assert held[:5].any()
    g = j(r.x).T @ f(r.x)
    scale = np.linalg.norm(j(r.x), axis=0) * np.linalg.norm(r.fun)
    assert (g[held] < 0).all()
    assert np.abs(g[~held] / scale[~held]).max() < 1e-6


def decay_fit(m: int, n: int) -> tuple[Any, Any, Array]:
    g = np.random.default_rng(5)
    a = g.normal(size=(m, n)) / np.sqrt(n)
    y = np.exp(a @ g.normal(size=n)) + 0.05 * g.normal(size=m)
    return (lambda x: np.exp(a @ x) - y), (lambda x: np.exp(a @ x)[:, None] * a), np.zeros(n)


def layouts(jac: Any, m: int, n: int) -> dict[str, Any]:
    """The same Jacobian in arrays of all kinds, some of which the caller changes."""
    buffer, kept = np.empty((m, n)), []

    def reused(x: Array) -> Array:
        buffer[...] = jac(x)
        return buffer

    def view(x: Array) -> Array:
        whole = np.full((m, n + 3), np.nan)
        whole[:, :n] = jac(x)
        return whole[:, :n]

    def remembered(x: Array) -> Array:
        for old in kept:
            old.fill(np.nan)
        kept.append(jac(x))
        return kept[-1]

    def remembered_by_a_view(x: Array) -> Array:
        return remembered(x).reshape(m, n)

    def read_only(x: Array) -> Array:
        j = jac(x)
        j.flags.writeable = False
        return j

    return {
        "by columns": lambda x: np.asfortranarray(jac(x)),
        "flat": lambda x: jac(x).ravel().reshape(m, n),
        "reused": reused,
        "view": view,
        "remembered": remembered,
        "remembered by a view": remembered_by_a_view,
        "read only": read_only,
        "swapped": lambda x: jac(x).astype(">f8"),
        "nested": lambda x: jac(x).tolist(),
    }


@pytest.mark.parametrize("shape", [(40, 5), (M, N)])
def test_jacobians_in_any_layout(shape: tuple[int, int]) -> None:
    f, jac, x0 = decay_fit(*shape)
    want = solve.levenberg_marquardt(f, x0, jac=jac)
    assert want.success
    np.testing.assert_allclose(want.jac, jac(want.x), rtol=1e-6)
    for name, kind in layouts(jac, *shape).items():
        got = solve.levenberg_marquardt(f, x0, jac=kind)
        np.testing.assert_array_equal(got.x, want.x, err_msg=name)
        np.testing.assert_array_equal(got.jac, want.jac, err_msg=name)
        np.testing.assert_array_equal(got.cov, want.cov, err_msg=name)
        assert got.jac.flags.c_contiguous
        assert got.jac.flags.writeable


@pytest.mark.parametrize("shape", [(40, 5), (M, N)])
def test_a_jacobian_overwritten_by_fun(shape: tuple[int, int]) -> None:
    """One function computes values and derivatives, and stores the derivatives of its last point."""
    f, jac, x0 = decay_fit(*shape)
    buffer = np.empty(shape)

    def both(x: Array) -> Array:
        buffer[...] = jac(x)
        return np.asarray(f(x))

    def last(x: Array) -> Array:
        both(x)
        return buffer

    want = solve.levenberg_marquardt(f, x0, jac=jac)
    np.testing.assert_array_equal(solve.levenberg_marquardt(both, x0, jac=last).x, want.x)
    assert solve.levenberg_marquardt(both, x0, jac=last).jac is not buffer


@pytest.mark.parametrize("loss", ["linear", "huber"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(40, 5), (M, N)])
def test_a_jacobian_that_is_not_finite(shape: tuple[int, int], bad: float, loss: str) -> None:
    f, jac, x0 = decay_fit(*shape)
    calls = 0

    def spoilt(x: Array) -> Array:
        nonlocal calls
        calls += 1
        j = np.asarray(jac(x))
        if calls == after:
            j[-1, -2] = bad
        return j

    for after in (1, 2, solve.levenberg_marquardt(f, x0, jac=jac, loss=loss).njev):
        calls = 0
        r = solve.levenberg_marquardt(f, x0, jac=spoilt, loss=loss)
        assert r.status == -3
        assert r.njev == after
        assert r.jac is None
        for name in ("grad", "cov", "x_std", "optimality"):
            assert np.isnan(r[name]).all()
        assert np.array_equal(r.fun, f(r.x))


@pytest.mark.parametrize("kind", ["zero", "copy", "sum"])
def test_zero_columns(kind: str) -> None:
    f, j = tall()
    rest = slice(1, None)
    change = np.zeros((N - 1, N))
    change[:, rest] = np.eye(N - 1)
    if kind == "copy":
        change[0, 0] = 1
    elif kind == "sum":
        change[:, 0] = np.random.default_rng(0).normal(size=N - 1)
    small_f = lambda x: f(np.append(change @ x, 0))  # noqa: E731
    small_j = lambda x: j(np.append(change @ x, 0))[:, :-1] @ change  # noqa: E731
    r = solve.levenberg_marquardt(small_f, np.zeros(N), jac=small_j)
    want = solve.levenberg_marquardt(
        lambda x: f(np.append(x, 0)), np.zeros(N - 1), jac=lambda x: j(np.append(x, 0))[:, :-1]
    )
    assert r.success
    assert r.cost == pytest.approx(want.cost, rel=1e-9)
    assert np.isinf(r.x_std).all()


@pytest.mark.parametrize("power", [-500, -400, 400])
def test_columns_whose_squares_overflow(power: int) -> None:
    f, j = tall()
    plain = solve.levenberg_marquardt(f, np.zeros(N), jac=j)
    unit = np.ones(N)
    unit[3] = 2.0**power
    r = solve.levenberg_marquardt(lambda x: f(x * unit), np.zeros(N), jac=lambda x: j(x * unit) * unit)
    assert r.success
    np.testing.assert_allclose(r.x * unit, plain.x, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(r.x_std * unit, plain.x_std, rtol=1e-7)


@pytest.fixture
def threads() -> Any:
    before = adaptk.get_num_threads()
    yield adaptk.set_num_threads
    adaptk.set_num_threads(before)


def everything() -> list[bytes]:
    """Products with one part and several, Cholesky's factor with and without orthogonal columns, the damped systems."""
    found = []
    for m, n in ((M, N), (5000, 30), (400, 160)):
        f, j = tall(m, n)
        r = solve.levenberg_marquardt(f, np.zeros(n), jac=j)
        found += [r.x.tobytes(), r.cov.tobytes(), r.fun.tobytes()]
    a = conditioned(1e7)
    b = np.random.default_rng(1).normal(size=M)
    r = solve.levenberg_marquardt(
        lambda p: np.tanh(a @ p) - b, np.ones(N), jac=lambda p: a / np.cosh(a @ p)[:, None] ** 2
    )
    return [*found, r.x.tobytes(), r.cov.tobytes()]


def test_threads(threads: Callable[[int], None]) -> None:
    threads(1)
    want = everything()
    for count in (2, 3, 5):
        threads(count)
        assert everything() == want


ORDER = 150  # newton factors shifted matrices from 112 on


def subproblem(values: Array, g: Array, radius: float) -> float:
    """The least of g'p + p'diag(values)p/2 in |p| <= radius, by bisection of lambda."""
    low = max(0.0, -values.min())
    length = lambda s: np.linalg.norm(g[g != 0] / (values[g != 0] + s))  # noqa: E731
    if low == 0 and length(0) <= radius:
        return float(-(g**2 / values).sum() / 2)
    edge = low + 1e-13 * np.abs(values).max()
    shift = edge
    if length(edge) > radius:
        high = low + np.linalg.norm(g) / radius
        low = edge
        for _ in range(200):
            shift = (low + high) / 2
            low, high = (shift, high) if length(shift) > radius else (low, shift)
    p = np.where(g != 0, -g / (values + shift), 0)
    p[values.argmin()] += np.sqrt(max(0, radius**2 - p @ p))  # in the hard case
    return float(g @ p + values @ p**2 / 2)


@pytest.mark.parametrize("radius", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("kind", ["definite", "indefinite", "nearly hard", "hard", "late"])
def test_trust_region_step(kind: str, radius: float) -> None:
    """One step achieves the fraction of the best reduction that More and Sorensen's conditions guarantee."""
    rng = np.random.default_rng(5)
    values = np.linspace(0.5, 40, ORDER)
    g = rng.normal(size=ORDER)
    if kind == "late":
        values[-1] = -3
    elif kind != "definite":
        values[: ORDER // 3] = np.linspace(-9, -1, ORDER // 3)
    if kind == "hard":
        g[values < -8.5] = 0
    elif kind == "nearly hard":
        g[0] = 1e-9
    q = np.eye(ORDER) if kind == "late" else np.linalg.qr(rng.normal(size=(ORDER, ORDER)))[0]
    h = (q * values) @ q.T
    h = (h + h.T) / 2
    slope = q @ g
    r = solve.newton(
        lambda x: float(slope @ x + x @ h @ x / 2),
        np.zeros(ORDER),
        jac=lambda x: slope + h @ x,
        hess=lambda x: h,
        initial_trust_radius=radius,
        maxiter=1,
    )
    assert np.linalg.norm(r.x) <= 1.26 * radius
    assert r.fun <= 0.75 * subproblem(values, g, radius)
    assert r.lambda_min == pytest.approx(values.min(), rel=1e-6)


def test_saddle_points() -> None:
    """Coordinates that are 0 at the start have no gradient: only eigenvectors lead away from there."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(ORDER, ORDER)))[0]
    y = np.random.default_rng(1).normal(size=ORDER)
    y[::3] = 0

    def hessian(x: Array) -> Array:
        return np.asarray(q.T @ ((12 * (q @ x) ** 2 - 4)[:, None] * q))

    for start in (q.T @ y, np.zeros(ORDER)):
        r = solve.newton(
            lambda x: float(np.sum(((q @ x) ** 2 - 1) ** 2)),
            start,
            jac=lambda x: q.T @ (4 * (q @ x) * ((q @ x) ** 2 - 1)),
            hess=hessian,
        )
        assert r.success, r.message
        assert r.fun < 1e-20
        assert r.lambda_min == pytest.approx(8, rel=1e-6)


def fast_hessian(x: Array) -> Array:
    h = np.zeros((len(x), len(x)), x.dtype)
    i = np.arange(len(x) - 1)
    h[i, i] = 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    h[i + 1, i + 1] += 200
    h[i, i + 1] = h[i + 1, i] = -400 * x[:-1]
    return h


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("zeros", np.float64), ("random", np.float64), ("far", np.float64), ("zeros", np.float32), ("random", np.float32)],
)
def test_rosenbrock(kind: str, dtype: type) -> None:
    start = {
        "zeros": np.zeros(ORDER),
        "random": np.random.default_rng(0).normal(size=ORDER) * 2,
        "far": np.full(ORDER, -30.0),
    }[kind].astype(dtype)
    r = solve.newton(rosenbrock, start, jac=rosenbrock_gradient, hess=fast_hessian)
    assert r.success, r.message
    assert r.lambda_min > 0
    assert r.fun < 1e-6 or abs(r.fun - 3.98662385) < 1e-4  # the two minima


def test_newton_threads(threads: Callable[[int], None]) -> None:
    start = np.random.default_rng(0).normal(size=ORDER) * 2

    def run() -> tuple[bytes, int]:
        r = solve.newton(rosenbrock, start, jac=rosenbrock_gradient, hess=fast_hessian, maxiter=40)
        return r.x.tobytes(), r.nfev

    threads(1)
    want = run()
    for count in (2, 3):
        threads(count)
        assert run() == want


@pytest.mark.parametrize("isa", adaptk.available_isas())
def test_instruction_sets(isa: str) -> None:
    """Edges of tiles and vectors differ between them; digits do not."""
    before = adaptk.get_isa()
    adaptk.set_isa(isa)
    try:
        for m, n in ((M, N), (401, 163), (20_001, 9)):
            f, j = tall(m, n)
            r = solve.levenberg_marquardt(f, np.zeros(n), jac=j)
            jacobian = j(r.x)
            assert np.linalg.norm(np.linalg.lstsq(jacobian, r.fun, rcond=None)[0]) <= 1e-11 * np.linalg.norm(r.x)
            want = np.linalg.inv(jacobian.T @ jacobian) * (2 * r.cost / (m - n))
            np.testing.assert_allclose(r.cov, want, rtol=0, atol=1e-9 * np.abs(want).max())
        a, b = conditioned(1e9), np.random.default_rng(1).normal(size=M)
        r = solve.levenberg_marquardt(lambda p: a @ p - b, np.zeros(N), jac=lambda p: a)
        assert np.linalg.norm(a.T @ r.fun) <= np.finfo(float).eps * np.linalg.norm(r.x)
    finally:
        adaptk.set_isa(before)
