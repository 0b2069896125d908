"""Curricula as samplers of PyTorch's loaders: order, shards, workers and states."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from adaptk.curriculum import Curriculum, TorchSampler, pacing  # noqa: E402

DATA = torch.utils.data.TensorDataset(torch.arange(50))


def new(batch_size: int = 6, **options: Any) -> Curriculum:
    return Curriculum(np.arange(50)[::-1], pacing.linear(0.2, total=12), batch_size, 3, **options)


def wanted(n: int, **options: Any) -> list[list[int]]:
    return [batch.tolist() for batch in itertools.islice(new(**options), n)]


def loaded(sampler: TorchSampler, **options: Any) -> list[list[int]]:
    return [x.tolist() for (x,) in torch.utils.data.DataLoader(DATA, batch_sampler=sampler, **options)]


def test_iterations_continue() -> None:
    sampler = TorchSampler(new(), steps=5)
    assert isinstance(sampler, torch.utils.data.Sampler)
    assert len(sampler) == 5
    assert [*loaded(sampler), *loaded(sampler), *loaded(sampler)] == wanted(15)
    # An iteration that is left early has ended.
    assert next(iter(sampler)) == wanted(16)[15]
    assert loaded(sampler) == wanted(21)[16:]


@pytest.mark.full
def test_workers() -> None:
    sampler = TorchSampler(new(), steps=5)
    # Not fork(): other loaded libraries have threads and warn about it.
    assert loaded(sampler, num_workers=2, multiprocessing_context="spawn") == wanted(5)


@pytest.mark.parametrize("replicas", [1, 2, 4, 7])
def test_shards(replicas: int) -> None:
    """Together the batches of one process; batches that do not divide evenly are padded from their start."""
    shards = [loaded(TorchSampler(new(), 20, num_replicas=replicas, rank=r)) for r in range(replicas)]
    for step, batch in enumerate(wanted(20)):
        parts = [shard[step] for shard in shards]
        assert {len(p) for p in parts} == {-(-len(batch) // replicas)}
        joined = [x for group in zip(*parts, strict=True) for x in group]
        assert joined[: len(batch)] == batch
        assert joined[len(batch) :] == [batch[i % len(batch)] for i in range(len(joined) - len(batch))]


def test_shards_of_a_process_group() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert loaded(TorchSampler(new(), 4)) == wanted(4)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("at", [0, 1, 3, 5, 6, 12])
def test_resuming(at: int) -> None:
    """Within an iteration or between two; the rest of the iteration comes first."""
    sampler = TorchSampler(new(), steps=5)
    batches: list[list[int]] = []
    while len(batches) < at:
        for batch in sampler:
            batches.append(batch)
            if len(batches) == at:
                state = sampler.state_dict()
    if at == 0:
        state = sampler.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    resumed = TorchSampler(new(), steps=5)
    resumed.load_state_dict(torch.load(file, weights_only=False))
    rest = list(resumed)
    assert len(rest) == 5 - at % 5
    assert rest == wanted(at + len(rest))[at:]
    assert list(resumed) == wanted(at + len(rest) + 5)[-5:]


def test_states_with_a_prefetching_loader() -> None:
    sampler = TorchSampler(new(), steps=5)
    loaded(sampler)
    iterator = iter(sampler)
    batches = [next(iterator) for _ in range(4)]
    assert batches == wanted(9)[5:]
    for had in range(5):
        resumed = TorchSampler(new(), steps=5)
        resumed.load_state_dict(sampler.state_dict(batches=had))
        assert list(resumed) == wanted(10)[5 + had :]
    # Reading the state did not change it, and a state within a resumed iteration counts from its start.
    assert next(iterator) == wanted(10)[9]
    resumed = TorchSampler(new(), steps=5)
    resumed.load_state_dict(sampler.state_dict(batches=2))
    first = list(itertools.islice(iter(resumed), 2))
    assert first == wanted(9)[7:]
    again = TorchSampler(new(), steps=5)
    again.load_state_dict(resumed.state_dict(batches=1))
    assert list(again) == wanted(10)[8:]
    with pytest.raises(ValueError, match="batches: 3, but 2 were asked for in this iteration"):
        resumed.state_dict(batches=3)


def test_errors() -> None:
    for arguments, error, text in (
        ({"curriculum": [1, 2]}, TypeError, "curriculum must be an adaptk.curriculum.Curriculum, got list"),
        ({"steps": 0}, ValueError, "steps must be >= 1, got 0"),
        ({"rank": 0}, ValueError, "num_replicas and rank belong together"),
        ({"num_replicas": 2}, ValueError, "num_replicas and rank belong together"),
        ({"num_replicas": 2, "rank": 2}, ValueError, "rank must be < num_replicas, got rank=2 and num_replicas=2"),
        ({"num_replicas": 0, "rank": 0}, ValueError, "num_replicas must be >= 1"),
    ):
        with pytest.raises(error, match=text):
            TorchSampler(**{"curriculum": new(), "steps": 2, **arguments})
    sampler = TorchSampler(new(), 3)
    state = sampler.state_dict()
    for change, error, text in (
        ({"left": None}, KeyError, "no 'left'"),
        ({"left": 4}, ValueError, r"state\['left'\]: 4, expected at most the 3 steps"),
        ({"left": 0}, ValueError, r"state\['left'\] must be >= 1"),
        ({"seed": 4}, ValueError, r"state\['seed'\]: 4, expected 3"),
    ):
        wrong = {k: v for k, v in {**state, **change}.items() if v is not None}
        with pytest.raises(error, match=text):
            sampler.load_state_dict(wrong)
    assert list(sampler) == wanted(3)
