"""adaptk.cbrt, exp, atan2, log and floor in rules."""

from __future__ import annotations

import math
from typing import Any

import adaptk
import numpy as np
import pytest


@pytest.fixture
def roots() -> Any:
    @adaptk.rule(lr=1.0)
    def roots(p, g, h, t):  # type: ignore[no-untyped-def]
        return adaptk.cbrt(g)

    yield roots
    roots.unregister()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cube_roots(roots: Any, dtype: Any) -> None:
    info = np.finfo(dtype)
    x = np.exp2(np.linspace(info.minexp, info.maxexp - 0.01, 5001)).astype(dtype)
    x = np.concatenate([x, -x, [8.0, -27.0, info.smallest_subnormal, info.max]]).astype(dtype)
    p = np.zeros_like(x)
    roots(p, x, step=1)
    want = np.cbrt(x.astype(np.longdouble))
    assert np.abs((p - want) / want).max() < 2 * info.eps
    assert (np.sign(p) == np.sign(x)).all()


def test_cube_roots_at_extreme_values(roots: Any) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan])
    p = np.ones_like(x)
    roots(p, x, step=1)
    np.testing.assert_array_equal(p, [0.0, 0.0, np.inf, -np.inf, np.nan])
    assert [adaptk.cbrt(v) for v in (0.0, math.inf, -8.0)] == pytest.approx([0.0, math.inf, -2.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponentials(dtype: Any) -> None:
    info = np.finfo(dtype)
    ends = np.log(info.tiny), np.log(info.max)
    x = np.concatenate([np.linspace(*ends, 5001), np.linspace(-2, 2, 999), [0.0, -0.0]]).astype(dtype)
    with_ends = np.array([np.inf, -np.inf, np.nan, 2000.0, -2000.0], dtype)
    made = adaptk.rule(name="exponentials", lr=1.0)(lambda p, g, h, t: adaptk.exp(g))
    try:
        p, at_ends = np.zeros_like(x), np.zeros_like(with_ends)
        made(p, x, step=1)
        want = np.exp(x.astype(np.longdouble))
        normal = want <= info.max
        assert (np.abs((p - want) / want)[normal] <= 16 * info.eps).all()
        assert p[-1] == p[-2] == 1
        made(at_ends, with_ends, step=1)
        np.testing.assert_array_equal(at_ends, [np.inf, 0.0, np.nan, np.inf, 0.0])
    finally:
        made.unregister()
    assert adaptk.exp(-1.5) == pytest.approx(math.exp(-1.5), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_angles(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    y, x = (rng.normal(size=4000) * np.exp2(rng.integers(-60, 60, 4000)) for _ in range(2))
    y, x = (np.concatenate([a, b]).astype(dtype) for a, b in ((y, [0, 0, 1, -1, 3, 3]), (x, [0, 1, 0, 0, 3, -3])))
    y[:1000], x[:1000] = rng.normal(size=(2, 1000))
    ends = [(np.inf, np.inf), (1.0, np.inf), (-np.inf, 1.0), (np.nan, 1.0), (1.0, np.nan), (-2.0, -np.inf)]
    made = adaptk.rule(name="angles", lr=1.0)(lambda p, g, h, t: adaptk.atan2(g, p))
    try:
        p = x.copy()
        made(p, y, step=1)
        want = np.arctan2(y.astype(np.longdouble), x.astype(np.longdouble))
        tiny = np.abs(want) < np.finfo(dtype).tiny
        assert (np.abs(p - want) <= 8 * np.finfo(dtype).eps * np.abs(want))[~tiny].all()
        at_ends, of = (np.array(a, dtype) for a in zip(*ends, strict=True))
        made(of, at_ends, step=1)
        np.testing.assert_allclose(of, np.arctan2(*(np.array(a, dtype) for a in zip(*ends, strict=True))), rtol=1e-6)
    finally:
        made.unregister()
    assert adaptk.atan2(-1.0, -2.0) == pytest.approx(math.atan2(-1.0, -2.0), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logarithms(dtype: Any) -> None:
    info = np.finfo(dtype)
    every = np.exp2(np.linspace(info.minexp - info.nmant, info.maxexp - 0.01, 5001))  # subnormal numbers too
    x = np.concatenate([every, np.linspace(0.4, 2.2, 4001), 1 + np.linspace(-1e-3, 1e-3, 999)]).astype(dtype)
    x = x[(x > 0) & (x != 1)]
    with_ends = np.array([1.0, 0.0, -0.0, np.inf, -1.0, -np.inf, np.nan], dtype)
    made = adaptk.rule(name="logarithms", lr=1.0)(lambda p, g, h, t: adaptk.log(g))
    try:
        p, at_ends = np.zeros_like(x), np.zeros_like(with_ends)
        made(p, x, step=1)
        want = np.log(x.astype(np.longdouble))
        assert (np.abs(p - want) <= 4 * np.spacing(np.abs(want).astype(dtype))).all()
        made(at_ends, with_ends, step=1)
        np.testing.assert_array_equal(at_ends, [0.0, -np.inf, -np.inf, np.inf, np.nan, np.nan, np.nan])
    finally:
        made.unregister()


def test_logarithms_and_floors_of_the_step() -> None:
    @adaptk.rule(lr=1.0, shift=0.0)
    def logs(p, g, h, t):  # type: ignore[no-untyped-def]
        return p * 0 + adaptk.log(t + h.shift) + 100 * adaptk.floor(t / 3)

    try:
        for step, shift in [(1, 0.0), (2, 0.0), (7, 1e-3), (100, 1e300), (5, -5.0), (5, -7.0)]:
            p = np.ones(1)
            logs(p, p.copy(), step=step, shift=shift)
            x = step + shift
            want = (math.log(x) if x > 0 else -math.inf if x == 0 else math.nan) + 100 * (step // 3)
            np.testing.assert_allclose(p, want, rtol=4e-16)
    finally:
        logs.unregister()


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="floor: expected an expression of h and t"):
        adaptk.rule(name="elements", lr=0.1)(lambda p, g, h, t: adaptk.floor(p))
    for name in ("floor", "log"):
        with pytest.raises(TypeError, match=f"adaptk.{name}: expected a number"):
            getattr(adaptk, name)("x")
    with pytest.raises(TypeError, match=r"adaptk.cbrt: expected a number"):
        adaptk.cbrt("x")
    with pytest.raises(TypeError, match=r"adaptk.exp: expected a number"):
        adaptk.exp("x")
    with pytest.raises(TypeError, match=r"adaptk.atan2: expected a number, .* got a list"):
        adaptk.atan2(1.0, [2.0])
    assert (adaptk.floor(-0.5), adaptk.log(0.0)) == (-1.0, -math.inf)
