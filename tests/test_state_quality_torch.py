"""A small transformer with states in fewer bits reaches the loss of float32 states."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXT = Path(__file__).resolve().parents[1] / "docs" / "rules.md"
pytestmark = [pytest.mark.full, pytest.mark.skipif(not TEXT.is_file(), reason="only in a checkout")]
torch = pytest.importorskip("torch")
CONTEXT, WIDTH, STEPS, SEEDS = 32, 48, 80, 4


@functools.cache
def characters() -> tuple[Any, int]:
    text = TEXT.read_text(encoding="utf-8")
    known = sorted(set(text))
    return torch.tensor([known.index(c) for c in text]), len(known)


def new_network(kinds: int) -> Any:
    block = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0, batch_first=True, norm_first=True)
    names = {"embedding": torch.nn.Embedding(kinds, WIDTH), "place": torch.nn.Embedding(CONTEXT, WIDTH)}
    names |= {"block": block, "out": torch.nn.Linear(WIDTH, kinds)}
    return torch.nn.ModuleDict(names)


def loss(network: Any, starts: Any) -> Any:
    text, kinds = characters()
    windows = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    x, y = windows[:, :-1], windows[:, 1:]
    hidden = network["embedding"](x) + network["place"](torch.arange(CONTEXT))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT)
    hidden = network["block"](hidden, src_mask=mask, is_causal=True)
    return torch.nn.functional.cross_entropy(network["out"](hidden).reshape(-1, kinds), y.reshape(-1))


def final_loss(state_dtype: Any, seed: int) -> float:
    import adaptk.torch

    text, kinds = characters()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = new_network(kinds)
        opt = adaptk.torch.AdamW(network.parameters(), lr=3e-3, state_dtype=state_dtype, min_8bit_size=0, seed=seed)
        for _ in range(STEPS):
            opt.zero_grad()
            loss(network, torch.randint(len(text) - CONTEXT, (16,))).backward()
            opt.step()
    with torch.no_grad():
        return float(loss(network, torch.arange(0, len(text) - CONTEXT, 97)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The network is too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def float32_losses() -> np.ndarray:
    return np.array([final_loss("float32", seed) for seed in range(SEEDS)])


@pytest.mark.parametrize("state_dtype", ["8bit", "bfloat16_sr", {"exp_avg": "bfloat16", "exp_avg_sq": "8bit"}], ids=str)
def test_characters(state_dtype: Any) -> None:
    """The mean over seeds is off by less than the standard deviation over seeds."""
    exact = float32_losses()
    losses = np.array([final_loss(state_dtype, seed) for seed in range(SEEDS)])
    assert abs(losses.mean() - exact.mean()) < exact.std()
