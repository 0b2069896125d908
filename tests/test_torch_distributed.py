"""Optimizers of adaptk.torch in several processes, against torch's own on the whole batch in this process."""

from __future__ import annotations

from typing import Any

import pytest
from torch_processes import (
    ALONE,
    CLIPPED,
    FIRST,
    JOINED,
    JOINED_ZERO,
    LOCAL,
    MUON,
    NO_RULES,
    PERIOD,
    PLAIN_RUNS,
    RACES,
    RESUMED,
    SKIPPED,
    STEPS,
    WARM_UP,
    Job,
    Task,
    alone_loss,
    alone_start,
    assert_same,
    batch,
    fused,
    loss_of,
    names,
    network,
    ours,
    plain,
    run_job,  # noqa: F401
    steps_of,
    torch,
    two_columns,
    values,
)

pytestmark = pytest.mark.full


def reloaded(rule: str) -> float:
    """The accuracy of a run whose state has been loaded.

    torch casts loaded states, except for step counts, to the param's dtype: the numbers that NAdam and ASGD keep in
    float32 are then no longer rounded to float32.
    """
    return 1e-6 if rule.lower() in ("nadam", "asgd") else 1e-9


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def hidden_of(task: Task) -> int:
    return 8 if task.kind in ("tensor_parallel", "two_dimensional") else 5


# Training


@pytest.mark.parametrize("task", PLAIN_RUNS, ids=names(PLAIN_RUNS))
def test_same_as_one_process(job: Job, task: Task) -> None:
    model = network(hidden_of(task))
    losses, _ = steps_of(model, plain(task.rule, model.parameters()))
    assert losses[-1] < losses[0]
    for outcome in job.outcomes(task):
        assert outcome["losses"] == pytest.approx(losses, rel=1e-9)
        assert_same(outcome["params"], values(model))


@pytest.mark.parametrize("task", CLIPPED, ids=names(CLIPPED))
def test_clipping_by_the_norm_over_all_processes(job: Job, task: Task) -> None:
    model = network(hidden_of(task))
    losses, norms = steps_of(model, plain(task.rule, model.parameters()), clip=task.clip)
    assert task.clip is not None
    assert max(norms) > task.clip
    for outcome in job.outcomes(task):
        assert outcome["norms"] == pytest.approx(norms, rel=1e-9)
        assert outcome["losses"] == pytest.approx(losses, rel=1e-9)
        assert_same(outcome["params"], values(model))


def test_offload_refuses_gradients_before_averaging(job: Job) -> None:
    for task in PLAIN_RUNS:
        if task.kind == "offload_ddp":
            assert "before DistributedDataParallel has averaged them" in job.outcome(task)["refused"]


@pytest.mark.parametrize("task", MUON, ids=names(MUON))
def test_muon_orthogonalizes_whole_matrices(job: Job, task: Task) -> None:
    model = network(hidden_of(task))
    losses, _ = steps_of(model, fused(task.rule, model.parameters()), **({"clip": task.clip} if task.clip else {}))
    assert losses[-1] < losses[0]
    for outcome in job.outcomes(task):
        assert outcome["losses"] == pytest.approx(losses, rel=1e-9)
        assert_same(outcome["params"], values(model))


def test_partial_sums_were_partial(job: Job) -> None:
    for task in PLAIN_RUNS + CLIPPED:
        if task.kind == "partial_sums":
            assert job.outcome(task)["partial"]


@pytest.mark.parametrize("task", SKIPPED, ids=names(SKIPPED))
def test_one_process_makes_all_skip(job: Job, task: Task) -> None:
    model = network()
    losses, _ = steps_of(model, plain(task.rule, model.parameters()), without=[1])
    for outcome in job.outcomes(task):
        assert outcome["losses"] == pytest.approx(losses, rel=1e-9)
        assert_same(outcome["params"], values(model))
        if task.kind == "nonfinite":
            assert outcome["skipped"] == [i == 1 for i in range(STEPS)]
        else:
            assert outcome["scales"] == [1024.0, 512.0, 512.0, 1024.0, 1024.0, 2048.0]


@pytest.mark.parametrize("task", JOINED, ids=names(JOINED))
def test_join(job: Job, task: Task) -> None:
    model = network()
    optimizer = plain(task.rule, model.parameters())
    losses: list[list[float]] = [[] for _ in range(task.world)]
    for i in range(1 + task.world):
        optimizer.zero_grad()
        for rank in range(task.world):
            if i < 2 + rank:
                loss = loss_of(model, *batch(100 * rank + i))
                # DDP still divides by the initial number of processes.
                (loss / task.world).backward()
                losses[rank].append(loss.item())
        optimizer.step()
    for rank, outcome in enumerate(job.outcomes(task)):
        assert outcome["losses"] == pytest.approx(losses[rank], rel=1e-9)
        assert_same(outcome["params"], values(model))


@pytest.mark.parametrize("task", JOINED_ZERO, ids=names(JOINED_ZERO))
def test_join_with_sharded_states(job: Job, task: Task) -> None:
    for rank, outcome in enumerate(job.outcomes(task)):
        assert len(outcome["ours"]["losses"]) == 2 + rank
        assert outcome["ours"]["losses"] == pytest.approx(outcome["torch"]["losses"], rel=1e-9)
        assert_same(outcome["ours"]["params"], outcome["torch"]["params"])


@pytest.mark.parametrize("task", LOCAL, ids=names(LOCAL))
def test_local_sgd(job: Job, task: Task) -> None:
    models = [network() for _ in range(task.world)]
    optimizers = [plain(task.rule, m.parameters()) for m in models]
    x, y = (t.chunk(task.world) for t in batch())
    losses: list[list[float]] = [[] for _ in models]
    for i in range(2 * STEPS):
        for rank, model in enumerate(models):
            model.zero_grad()
            loss = loss_of(model, x[rank], y[rank])
            loss.backward()
            losses[rank].append(loss.item())
        if i < WARM_UP:
            average([[p.grad for p in m.parameters()] for m in models])
        for optimizer in optimizers:
            optimizer.step()
        if i >= WARM_UP and (i - WARM_UP) % PERIOD == 0:
            average([[p.data for p in m.parameters()] for m in models])
    for rank, outcome in enumerate(job.outcomes(task)):
        assert outcome["losses"] == pytest.approx(losses[rank], rel=reloaded(task.rule))
        assert_same(outcome["params"], values(models[rank]), reloaded(task.rule))


def average(tensors: list[list[Any]]) -> None:
    for same in zip(*tensors, strict=True):
        mean = torch.stack(same).mean(0)
        for t in same:
            t.copy_(mean)


# States


@pytest.mark.parametrize("task", RESUMED, ids=names(RESUMED))
def test_going_on_with_another_number_of_processes(job: Job, task: Task) -> None:
    if task.kind == "resume":
        job.outcomes(Task("fsdp", task.source, task.rule))
    model = network()
    losses, _ = steps_of(model, plain(task.rule, model.parameters()))
    for outcome in job.outcomes(task):
        assert outcome["losses"] == pytest.approx(losses[FIRST:], rel=reloaded(task.rule))
        assert_same(outcome["params"], values(model), reloaded(task.rule))


def states_of(task: Task, steps: int) -> tuple[Any, Any]:
    model = network()
    optimizer = plain(task.rule, model.parameters())
    steps_of(model, optimizer, steps)
    return model, optimizer


FULL_STATES = [t for t in PLAIN_RUNS if t.kind in ("fsdp", "zero")]


@pytest.mark.parametrize("task", FULL_STATES, ids=names(FULL_STATES))
def test_states_match_one_process(job: Job, task: Task) -> None:
    outcome = job.outcome(task)
    model, optimizer = states_of(task, FIRST if task.kind == "zero" else STEPS)
    found = outcome["state"]["state"]
    named = {n: optimizer.state[p] for n, p in model.named_parameters()}
    expected = dict(enumerate(named.values())) if task.kind == "zero" else named
    assert found.keys() == expected.keys()
    for key, state in expected.items():
        assert_same(found[key], state)


def test_zero_partitions_the_states(job: Job) -> None:
    for task in PLAIN_RUNS:
        if task.kind == "zero":
            held = [o["held"] for o in job.outcomes(task)]
            assert sum(held) == 4, task.name
            assert max(held) < 4, task.name


def test_states_of_16_bit_params_are_saved_in_32(job: Job) -> None:
    for outcome in job.outcomes(Task("sixteen_bits", 2)):
        assert len(outcome["arrays"]) == 8
        for before, after in outcome["arrays"]:
            assert after.dtype == torch.float32
            assert torch.equal(before, after)
            assert not torch.equal(before, before.to(torch.bfloat16).to(torch.float32))
        assert_equal(outcome["after"], outcome["before"])


@pytest.mark.parametrize("name", [n for n in ours.__all__ if n not in NO_RULES])
def test_every_class_saves_and_loads(job: Job, name: str) -> None:
    for outcome in job.outcomes(Task("every_class", 2)):
        found = outcome[name]
        assert_equal(found["untouched"], found["start"])
        if reloaded(name) < 1e-6:
            assert found["losses"][0] == found["losses"][1]
            assert_equal(found["after"], found["before"])
        assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-6)
        assert_same(found["after"], found["before"], rel=1e-6)
        assert any(not torch.equal(found["after"][k], v) for k, v in found["start"].items())


def test_plain_state_of_a_sharded_param_is_refused(job: Job) -> None:
    for outcome in job.outcomes(Task("refused", 2)):
        assert outcome["error"] is not None
        assert "DTensor" in outcome["error"]
        assert "set_optimizer_state_dict" in outcome["error"]
        assert_equal(outcome["after"], outcome["before"])


# Hogwild


@pytest.mark.parametrize("task", RACES, ids=names(RACES))
def test_hogwild_converges(job: Job, task: Task) -> None:
    job.outcomes(task)
    model = job.shared[f"race-{task.rule}"]
    torch.manual_seed(3)
    start = torch.nn.Linear(6, 1).double()
    x, _ = batch(7, 200)
    with torch.no_grad():
        before, after = ((m(x) - x.sum(1, keepdim=True)).square().mean().item() for m in (start, model))
    # No noise in the data: all minibatches have the same minimum, whatever the order of the steps.
    assert after < 0.02 * before


@pytest.mark.parametrize("task", ALONE, ids=names(ALONE))
def test_hogwild_with_shared_states(job: Job, task: Task) -> None:
    job.outcomes(task)
    model, optimizer = job.shared[f"alone-{task.rule}"]
    expected = two_columns()
    reference = plain(task.rule, expected.parameters())
    alone_start(expected, reference)
    for i in range(STEPS):
        reference.zero_grad()
        (alone_loss(expected, 0, i) + alone_loss(expected, 1, i)).backward()
        reference.step()
    assert_same(values(model), values(expected))
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert_same(optimizer.state[p], reference.state[q])
