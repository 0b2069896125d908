"""Gradients of rows for rules that are programs, including FTRL-proximal."""

from __future__ import annotations

import adaptk
import numpy as np
import pytest
from sparse_cases import dense, equal, gradient, touched


@pytest.mark.parametrize("name", ["FTRL", "AdEMAMix"])
@pytest.mark.parametrize("mode", ["lazy", "dense"])
def test_rows_of_the_catalogue(name: str, mode: str) -> None:
    cls = getattr(adaptk, name)
    shape = (20, 12)
    start = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    p, q = start.copy(), start.copy()
    opt, ref = cls([p], sparse=mode), cls([q])
    indices, values = gradient(20, (12,), 15, 3)
    for _ in range(3 if mode == "dense" else 1):
        opt.step([(indices, values)])
        ref.step([dense(indices, values, shape)])
    inside = touched(indices, 20) | (mode == "dense")
    equal(p[inside], q[inside])
    equal(p[~inside], start[~inside])


def test_ftrl_keeps_zeros_of_rows_without_a_gradient() -> None:
    """The sparse step of the paper: weights of rare and unseen features stay exactly 0."""
    w = np.zeros((1000, 1), np.float32)
    opt = adaptk.FTRL([w], lr=0.5)
    for seed in range(5):
        opt.step([gradient(30, (1,), 50, seed)])
    assert not w[30:].any()
    assert w[:30].any()


def test_a_rule_made_at_run_time() -> None:
    @adaptk.rule(name="sparse_signs", lr=0.1)
    def signs(p, g, h, t):  # type: ignore[no-untyped-def]
        return p - h.lr * adaptk.sign(g)

    p = np.zeros((3, 2))
    signs.Optimizer([p]).step([(np.array([1, 1]), np.array([[1.0, -3.0], [-2.0, 1.0]]))])
    np.testing.assert_allclose(p, [[0, 0], [0.1, 0.1], [0, 0]])
    signs.unregister()
