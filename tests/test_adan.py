"""Adan in other forms than the kernel's. test_oracles_second_source.py has those of its oracle."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import adaptk
import numpy as np
import pytest

STEPS = 60


def gradients(shape: tuple[int, ...] = (3, 5)) -> list[np.ndarray]:
    rng = np.random.default_rng(17)
    return [rng.normal(size=shape) * (1 + 0.3 * i) for i in range(STEPS)]


def weighted_mean(values: list[np.ndarray], decay: float) -> np.ndarray:
    """A corrected average: the mean of all values so far, each weighted `decay` times as much as the next one."""
    weights = decay ** np.arange(len(values))[::-1]
    return np.tensordot(weights, np.array(values), 1) / weights.sum()


def by_history(p: np.ndarray, grads: list[np.ndarray], lr: float, betas: tuple[float, float, float], eps: float):
    """The paper's Algorithm 1 without recursion, in the paper's betas, the weights of the new values."""
    new1, new2, new3 = betas
    differences = [np.zeros_like(p)] + [new - old for old, new in pairwise(grads)]
    squares = [(g + (1 - new2) * d) ** 2 for g, d in zip(grads, differences, strict=True)]
    for k in range(1, len(grads) + 1):
        m = weighted_mean(grads[:k], 1 - new1)
        v = weighted_mean(differences[:k], 1 - new2)
        n = weighted_mean(squares[:k], 1 - new3)
        p = p - lr / (np.sqrt(n) + eps) * (m + (1 - new2) * v)
    return p


def ours(p: np.ndarray, grads: list[np.ndarray], **options: Any) -> np.ndarray:
    p = p.copy()
    optimizer = adaptk.Adan([p], **options)
    for g in grads:
        optimizer.step([g])
    return p


def test_the_papers_algorithm_in_the_papers_betas() -> None:
    start, grads = np.linspace(-1, 1, 15).reshape(3, 5), gradients()
    want = by_history(start, grads, 0.01, (0.02, 0.08, 0.01), 1e-8)
    assert np.allclose(ours(start, grads, lr=0.01), want, rtol=1e-11, atol=1e-12)
    want = by_history(start, grads, 0.01, (0.3, 0.6, 0.05), 1e-3)
    got = ours(start, grads, lr=0.01, beta1=0.7, beta2=0.4, beta3=0.95, eps=1e-3)
    assert np.allclose(got, want, rtol=1e-11, atol=1e-12)


def test_optax_has_another_factor() -> None:
    """The difference between the two. test_conventions.py has whole trajectories in optax's convention."""
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    start, grads = np.linspace(-1, 1, 15).reshape(3, 5), gradients()
    with jax.enable_x64(True):
        peer = optax.adan(0.01)
        p = jax.numpy.asarray(start)
        state = peer.init(p)
        for g in grads:
            updates, state = peer.update(jax.numpy.asarray(g), state, p)
            p = optax.apply_updates(p, updates)
        want = np.asarray(p)
    assert np.allclose(ours(start, grads, lr=0.01, convention="optax"), want, rtol=1e-9, atol=1e-11)
    spelt = ours(start, grads, lr=0.01, eps_root=1e-8, decoupled=True, one_minus_beta2=True)
    assert np.array_equal(spelt, ours(start, grads, lr=0.01, convention="optax"))
    assert not np.allclose(ours(start, grads, lr=0.01), want, rtol=1e-3)


@pytest.mark.parametrize("betas", [(0.98, 0.92, 0.99), (0.7, 0.4, 0.95)])
def test_torch_optimi(betas: tuple[float, float, float]) -> None:
    optimi = pytest.importorskip("optimi", reason="torch-optimi is not installed")
    import adaptk.torch
    import torch

    start = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
    a, b = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine = adaptk.torch.Adan([a], lr=0.01, beta1=betas[0], beta2=betas[1], beta3=betas[2])
    peer = optimi.Adan([b], lr=0.01, betas=betas, weight_decay=0.0, eps=1e-8, foreach=False, triton=False)
    for g in gradients():
        a.grad, b.grad = torch.from_numpy(g), torch.from_numpy(g.copy())
        mine.step()
        peer.step()
    assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)
