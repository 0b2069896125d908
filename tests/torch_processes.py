"""Tasks for several processes for test_torch_distributed.py, and the job that runs them.

All tasks run in one job of four processes, which starts once. Each task returns the results of its first process, and
the tests compare them. Everything is in float64: the sums of a batch in one and several processes differ by 1e-16 only,
so any different step is visible.
"""

from __future__ import annotations

import copy
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import adaptk
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
ours = pytest.importorskip("adaptk.torch", reason="needs PyTorch")
dist = torch.distributed
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs a PyTorch with torch.distributed and gloo", allow_module_level=True)


PROCESSES = 4


LIMIT = 240.0  # seconds for the whole job; it takes a tenth of this on two cores


PATIENCE = timedelta(seconds=40)  # the timeout of communication between processes


BATCH = 24


STEPS = 6


FIRST = 3  # the number of these steps before the state is saved


# Names of classes and their arguments, including classes with more scalars in their state than a step count.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {"lr": 0.05, "weight_decay": 0.01}),
    "amsgrad": ("AdamW", {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}),
    "momentum": ("SGD", {"lr": 0.2, "momentum": 0.9}),
    "nesterov": ("SGD", {"lr": 0.2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
    "adagrad": ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.1}),
    "nadam": ("NAdam", {"lr": 0.02}),
    "asgd": ("ASGD", {"lr": 0.2, "t0": 2.0}),
    "lion": ("Lion", {"lr": 0.01, "weight_decay": 0.1, "decoupled": True}),
}


# Classes for which torch has no counterpart of the same accuracy.
OWN_RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "muon": ("Muon", {"lr": 0.05, "ns_dtype": "float64", "rest_options": {"lr": 0.05}}),
}


FEW = ("adam", "nesterov", "asgd", "lion")


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023, in plain tensor operations."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float, decoupled: bool) -> None:
        assert decoupled
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                m = state.setdefault("exp_avg", torch.zeros_like(p))
                state["step"] = state.get("step", torch.tensor(0.0)) + 1
                c = 0.9 * m + 0.1 * p.grad
                p.sub_(group["lr"] * (torch.sign(c) + group["weight_decay"] * p))
                m.copy_(0.99 * m + 0.01 * p.grad)


def plain(rule: str, params: Iterable[Any]) -> Any:
    """The reference optimizer."""
    name, options = RULES[rule]
    return (Lion if name == "Lion" else getattr(torch.optim, name))(params, **options)


def fused(rule: str, params: Iterable[Any]) -> Any:
    name, options = {**RULES, **OWN_RULES}[rule]
    return getattr(ours, name)(params, **options)


def network(hidden: int = 5) -> Any:
    """A network with sizes that 2 and 4 do not divide: with four processes, one has no row of the last layer."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 3)
    return torch.nn.Sequential(*layers).double()


def batch(seed: int = 1, size: int = BATCH) -> tuple[Any, Any]:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, generator=source, dtype=torch.float64)
    return x, torch.randn(size, 3, generator=source, dtype=torch.float64)


def loss_of(model: Any, x: Any, y: Any) -> Any:
    return (model(x) - y).square().mean()


def values(model: Any) -> dict[str, Any]:
    """The whole params, however they are sharded."""
    whole = {}
    for name, p in model.named_parameters():
        p = p.detach()
        whole[name.removeprefix("module.")] = p.full_tensor() if hasattr(p, "full_tensor") else p.clone()
    return whole


def clipped(params: Iterable[Any], limit: float) -> float:
    """Scale gradients like the step, and return their norm."""
    grads = [p.grad for p in params]
    norm = torch.cat([g.reshape(-1) for g in grads]).norm().item()
    for g in grads:
        g.mul_(min(1.0, limit / norm))
    return norm


# The tasks, as each process runs them


@dataclass(frozen=True)
class Task:
    kind: str
    world: int
    rule: str = "adam"
    clip: float | None = None
    source: int = 0  # the number of processes that saved the state to load

    @property
    def name(self) -> str:
        parts = (self.kind, self.world, self.rule, self.clip, self.source)
        return "-".join(str(p) for p in parts if p)


@dataclass
class Place:
    """The process of a task."""

    task: Task
    rank: int
    folder: Path
    shared: dict[str, Any]

    @property
    def world(self) -> int:
        return self.task.world

    def mesh(self, *shape: int) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        names = ("outer", "inner")[: len(shape)] if shape else ("all",)
        return init_device_mesh("cpu", shape or (self.world,), mesh_dim_names=names)

    def part(self, x: Any, y: Any) -> tuple[Any, Any]:
        return x.chunk(self.world)[self.rank], y.chunk(self.world)[self.rank]

    def mean(self, loss: Any) -> float:
        total = loss.detach().clone()
        dist.all_reduce(total)
        return total.item() / self.world

    def optimizer(self, model: Any) -> Any:
        return fused(self.task.rule, model.parameters())

    def train(self, model: Any, optimizer: Any, steps: int = STEPS, sync: Callable[[], None] = lambda: None) -> Any:
        """Train. Returns the losses on the whole batch, of which this process has a part, and the steps' norms."""
        x, y = self.part(*batch())
        options = {} if self.task.clip is None else {"clip_norm": self.task.clip}
        losses, norms = [], []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            sync()
            optimizer.step(**options)
            losses.append(self.mean(loss))
            norms.append(optimizer.last_step.grad_norm if options else None)
        return losses, norms

    def outcome(self, model: Any, trained: Any, **more: Any) -> dict[str, Any]:
        return {"losses": trained[0], "norms": trained[1], "params": values(model), **more}


def ddp(at: Place) -> dict[str, Any]:
    # Gradients are then views of the buckets, which are replaced after the first step.
    model = torch.nn.parallel.DistributedDataParallel(network(), gradient_as_bucket_view=True)
    return at.outcome(model, at.train(model, at.optimizer(model)))


def zero(at: Place, views: bool = False) -> dict[str, Any]:
    """ZeRO; half-way the state is gathered in one process and distributed again."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    name, options = RULES[at.task.rule]
    model = torch.nn.parallel.DistributedDataParallel(network())

    def optimizer() -> Any:
        kind = getattr(ours, name)
        return ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=kind, parameters_as_bucket_view=views, **options
        )

    first = optimizer()
    losses, norms = at.train(model, first, FIRST)
    first.consolidate_state_dict(to=0)
    saved = [copy.deepcopy(first.state_dict()) if at.rank == 0 else None]
    dist.broadcast_object_list(saved)
    second = optimizer()
    second.load_state_dict(copy.deepcopy(saved[0]))
    more = at.train(model, second, STEPS - FIRST)
    held = sum(len(s) > 0 for s in second.optim.state.values())
    return at.outcome(model, (losses + more[0], norms + more[1]), state=saved[0], held=held)


def zero_views(at: Place) -> dict[str, Any]:
    return zero(at, views=True)


def zero_clip(at: Place) -> dict[str, Any]:
    """Each process steps its own params with the norm over all."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    name, options = RULES[at.task.rule]
    model = torch.nn.parallel.DistributedDataParallel(network())
    kind = getattr(ours, name)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, **options)
    x, y = at.part(*batch())
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step(clip_norm=at.task.clip, norm_group=dist.group.WORLD)
        losses.append(at.mean(loss))
        norms.append(optimizer.optim.last_step.grad_norm)
    return at.outcome(model, (losses, norms))


def sharded(at: Place, *shape: int) -> Any:
    """FSDP2 over all processes, or with copies along the first dimension of a mesh."""
    from torch.distributed.fsdp import fully_shard

    model, mesh = network(), at.mesh(*shape)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def checkpoint(at: Place, rule: str, world: int) -> str:
    return str(at.folder / f"checkpoint-{rule}-{world}")


def fsdp(at: Place) -> dict[str, Any]:
    """The state is saved halfway, and training continues."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, get_state_dict

    model = sharded(at)
    optimizer = at.optimizer(model)
    losses, norms = at.train(model, optimizer, FIRST)
    weights, state = get_state_dict(model, optimizer)
    # A copy, because later steps change the arrays in it.
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=checkpoint(at, at.task.rule, at.world))
    more = at.train(model, optimizer, STEPS - FIRST)
    whole = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    return at.outcome(model, (losses + more[0], norms + more[1]), state=whole)


def fsdp_clip(at: Place) -> dict[str, Any]:
    model = sharded(at)
    return at.outcome(model, at.train(model, at.optimizer(model)))


def offloaded(at: Place, model: Any, **options: Any) -> Any:
    name, own = RULES[at.task.rule]
    return ours.Offload(model.parameters(), getattr(ours, name), threads=1, **own, **options)


def offload_ddp(at: Place) -> dict[str, Any]:
    model = torch.nn.parallel.DistributedDataParallel(network(), gradient_as_bucket_view=True)
    result = at.outcome(model, at.train(model, offloaded(at, model)))
    # Without DDP, whose buckets are left incomplete by an error in the backward pass.
    other = network()
    taking = offloaded(at, other, grads="collect")
    try:
        loss_of(other, *batch()).backward()
    except RuntimeError as error:
        result["refused"] = str(error)
    taking.close()
    return result


def offload_fsdp(at: Place) -> dict[str, Any]:
    """FSDP2 with params offloaded to the CPU; another optimizer continues half-way."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    model, mesh = network(), at.mesh()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    first = offloaded(at, model, grads="collect")
    losses, norms = at.train(model, first, FIRST)
    state = copy.deepcopy(get_optimizer_state_dict(model, first))
    first.close()
    second = offloaded(at, model)
    set_optimizer_state_dict(model, second, state)
    more = at.train(model, second, STEPS - FIRST)
    return at.outcome(model, (losses + more[0], norms + more[1]))


def resume(at: Place) -> dict[str, Any]:
    """Continues from a state that another number of processes has saved; a single process has unsharded params."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model = sharded(at) if at.world > 1 else network()
    optimizer = at.optimizer(model)
    weights, state = get_state_dict(model, optimizer)
    both = {"model": weights, "optimizer": state}
    dcp.load(both, checkpoint_id=checkpoint(at, at.task.rule, at.task.source))
    set_state_dict(model, optimizer, model_state_dict=both["model"], optim_state_dict=both["optimizer"])
    return at.outcome(model, at.train(model, optimizer, STEPS - FIRST))


def adopt(at: Place) -> dict[str, Any]:
    """Continues from the state of torch's optimizer in a single process."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    weights: dict[str, Any] = {}
    state: dict[str, Any] = {}
    if at.rank == 0:
        alone = network()
        optimizer = plain(at.task.rule, alone.parameters())
        steps_of(alone, optimizer, FIRST)
        weights, state = alone.state_dict(), get_optimizer_state_dict(alone, optimizer)
        if at.task.rule == "lion":  # the reference has fewer hyperparameters
            rest = fused("lion", network().parameters()).param_groups[0]
            state["param_groups"][0].update({k: v for k, v in rest.items() if k != "params"})
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    model = sharded(at)
    ours_ = at.optimizer(model)
    set_model_state_dict(model, weights, options=options)
    set_optimizer_state_dict(model, ours_, state, options=options)
    return at.outcome(model, at.train(model, ours_, STEPS - FIRST))


def hybrid(at: Place) -> dict[str, Any]:
    """Two copies of a model on two processes each."""
    model = sharded(at, 2, at.world // 2)
    return at.outcome(model, at.train(model, at.optimizer(model)))


def tensor_parallel(at: Place) -> dict[str, Any]:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = parallelize_module(network(8), at.mesh(), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizer = at.optimizer(model)
    options = {} if at.task.clip is None else {"clip_norm": at.task.clip}
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, *batch())
        loss.backward()
        optimizer.step(**options)
        losses.append(loss.item())
        norms.append(optimizer.last_step.grad_norm if options else None)
    return at.outcome(model, (losses, norms))


def two_dimensional(at: Place) -> dict[str, Any]:
    """Tensor parallel in pairs, sharded over pairs: the shards of the first layer are strided."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = at.mesh(2, at.world // 2)
    model = parallelize_module(network(8), mesh["inner"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["outer"])
    optimizer = at.optimizer(model)
    x, y = batch()
    row = mesh["outer"].get_local_rank()
    options = {} if at.task.clip is None else {"clip_norm": at.task.clip}
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, x.chunk(2)[row], y.chunk(2)[row])
        loss.backward()
        optimizer.step(**options)
        losses.append(at.mean(loss))
        norms.append(optimizer.last_step.grad_norm if options else None)
    return at.outcome(model, (losses, norms))


def partial_sums(at: Place) -> dict[str, Any]:
    """Replicated params and a sharded batch: autograd gives each process its partial sum of the gradient."""
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    mesh = at.mesh()
    model = distribute_module(network(), mesh)
    x, y = (distribute_tensor(t, mesh, [Shard(0)]) for t in batch())
    optimizer = at.optimizer(model)
    options = {} if at.task.clip is None else {"clip_norm": at.task.clip}
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step(**options)
        losses.append(loss.full_tensor().item())
        norms.append(optimizer.last_step.grad_norm if options else None)
    partial = any(p.grad.placements[0].is_partial() for p in model.parameters())
    return at.outcome(model, (losses, norms), partial=partial)


def mixed(at: Place) -> dict[str, Any]:
    """One optimizer over a layer that is sharded and one that is not, whose gradients are summed by hand."""
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model[0], mesh=at.mesh())

    def sync() -> None:
        for p in model[2].parameters():
            dist.all_reduce(p.grad)
            p.grad /= at.world

    return at.outcome(model, at.train(model, at.optimizer(model), sync=sync))


def nonfinite(at: Place) -> dict[str, Any]:
    """One process has a NaN at the second step, which all must skip."""
    model = sharded(at)
    optimizer = at.optimizer(model)
    x, y = at.part(*batch())
    losses, skipped = [], []
    for i in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        (loss * float("nan") if i == 1 and at.rank == 1 else loss).backward()
        optimizer.step(skip_nonfinite=True)
        losses.append(at.mean(loss))
        skipped.append(optimizer.last_step.skipped)
    return at.outcome(model, (losses, []), skipped=skipped)


def scaler(at: Place) -> dict[str, Any]:
    """The same with GradScaler, which leaves unscaling to the step."""
    model = sharded(at)
    optimizer = at.optimizer(model)
    scale = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    x, y = at.part(*batch())
    losses, scales = [], []
    for i in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        scale.scale(loss * float("inf") if i == 1 and at.rank == 1 else loss).backward()
        scale.step(optimizer)
        scale.update()
        losses.append(at.mean(loss))
        scales.append(scale.get_scale())
    return at.outcome(model, (losses, []), scales=scales)


def uneven(at: Place, *joined: Any) -> list[float]:
    """Trains on 2, 3, ... batches in each process: those that are done join the others' communication."""
    from torch.distributed.algorithms.join import Join

    model, optimizer = joined
    losses = []
    with Join([j for j in joined if hasattr(j, "join_hook")]):
        for i in range(2 + at.rank):
            optimizer.zero_grad()
            loss = loss_of(model, *batch(100 * at.rank + i))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def join(at: Place) -> dict[str, Any]:
    model = torch.nn.parallel.DistributedDataParallel(network())
    return at.outcome(model, (uneven(at, model, at.optimizer(model)), []))


def join_zero(at: Place) -> dict[str, Any]:
    """A process that is done continues to step its params with its last gradient."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    name, options = RULES[at.task.rule]
    found = []
    for module in (ours, torch.optim):
        model = torch.nn.parallel.DistributedDataParallel(network())
        kind = getattr(module, name)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, **options)
        found.append(at.outcome(model, (uneven(at, model, optimizer), [])))
    return {"ours": found[0], "torch": found[1]}


WARM_UP, PERIOD = 2, 3


def local_sgd(at: Place) -> dict[str, Any]:
    """Two synchronous steps, then separate steps with the params averaged at every third."""
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    model = torch.nn.parallel.DistributedDataParallel(network())
    alone = PostLocalSGDState(
        process_group=None, subgroup=None, start_localSGD_iter=WARM_UP, post_local_gradient_allreduce=False
    )
    model.register_comm_hook(alone, post_localSGD_hook)

    def optimizer() -> Any:
        return PostLocalSGDOptimizer(at.optimizer(model), PeriodicModelAverager(period=PERIOD, warmup_steps=WARM_UP))

    x, y = at.part(*batch())
    losses, current = [], optimizer()
    for i in range(2 * STEPS):
        if i == STEPS:
            saved = copy.deepcopy(current.state_dict())
            current = optimizer()
            current.load_state_dict(saved)
        current.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        current.step()
        losses.append(loss.item())
    return at.outcome(model, (losses, []))


def sixteen_bits(at: Place) -> dict[str, Any]:
    """States of bfloat16 params are float32, also when they have been saved and loaded."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    def shards() -> Any:
        return fully_shard(network().to(torch.bfloat16), mesh=at.mesh())

    def advance(model: Any, optimizer: Any) -> None:
        x, y = at.part(*batch())
        optimizer.zero_grad()
        loss_of(model, x.to(torch.bfloat16), y.to(torch.bfloat16)).backward()
        optimizer.step()

    model = shards()
    optimizer = at.optimizer(model)
    for _ in range(FIRST):
        advance(model, optimizer)
    where = checkpoint(at, "bfloat16", at.world)
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=where)
    again = shards()
    again.load_state_dict(model.state_dict())
    loaded = at.optimizer(again)
    state = get_optimizer_state_dict(again, loaded)
    dcp.load(state, checkpoint_id=where)
    set_optimizer_state_dict(again, loaded, state)
    arrays = [
        tuple(o.state[p][s].full_tensor() for o, p in ((optimizer, p), (loaded, q)))
        for p, q in zip(model.parameters(), again.parameters(), strict=True)
        for s in ("exp_avg", "exp_avg_sq")
    ]
    advance(model, optimizer)
    advance(again, loaded)
    return {"arrays": arrays, "before": values(model), "after": values(again)}


def every_class(at: Place) -> dict[str, Any]:
    """Each class saves its sharded state and loads it into a new optimizer; both continue."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    found = {}
    for name in (n for n in ours.__all__ if n not in NO_RULES):
        model, again = sharded(at), sharded(at)
        optimizer, loaded = (getattr(ours, name)(m.parameters(), lr=0.01) for m in (model, again))
        at.train(model, optimizer, FIRST)
        start = values(again)
        # If there is no state yet, torch takes a step with zero gradients and rate to create it.
        get_optimizer_state_dict(again, loaded)
        untouched = values(again)
        again.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
        state = get_optimizer_state_dict(model, optimizer)
        copies = {
            "state": {k: {n: v.clone() for n, v in s.items()} for k, s in state["state"].items()},
            "param_groups": state["param_groups"],
        }
        set_optimizer_state_dict(again, loaded, copies)
        one, other = at.train(model, optimizer, 2), at.train(again, loaded, 2)
        found[name] = {"start": start, "untouched": untouched, "losses": (one[0], other[0])}
        found[name].update(before=values(model), after=values(again))
    return found


def refused(at: Place) -> dict[str, Any]:
    """An unsharded state of a sharded param is refused; nothing is changed."""
    model = sharded(at)
    optimizer = at.optimizer(model)
    alone = network()
    whole = fused(at.task.rule, alone.parameters())
    steps_of(alone, whole, 1)
    optimizer.load_state_dict(whole.state_dict())
    loss_of(model, *at.part(*batch())).backward()
    before = values(model)
    try:
        optimizer.step()
    except TypeError as e:
        return {"error": str(e), "before": before, "after": values(model)}
    return {"error": None}


# Two processes step with gradients that may be some steps old: momentum is unstable with the rate above.
RACE_RATES = {"momentum": 0.02, "adam": 0.01, "rmsprop": 0.002, "adagrad": 0.5, "lion": 0.002}


def hogwild_race(at: Place) -> dict[str, Any]:
    """Both processes step the same params whenever they have a gradient, without locks."""
    model = at.shared[f"race-{at.task.rule}"]
    optimizer = at.optimizer(model)
    optimizer.param_groups[0]["lr"] = RACE_RATES[at.task.rule]
    for i in range(400):
        x, _ = batch(1000 * at.rank + i, 8)
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return {}


def hogwild_alone(at: Place) -> dict[str, Any]:
    """Each process has gradients for one layer only: there is no race, and the states are in shared memory too."""
    model, optimizer = at.shared[f"alone-{at.task.rule}"]
    for i in range(STEPS):
        optimizer.zero_grad()
        alone_loss(model, at.rank, i).backward()
        optimizer.step()
    return {}


def alone_loss(model: Any, rank: int, i: int) -> Any:
    x, _ = batch(1000 * rank + i, 8)
    return (model[rank](x) - x.sum(1, keepdim=True)).square().mean()


KINDS: dict[str, Callable[[Place], dict[str, Any]]] = {
    f.__name__: f
    for f in (
        *(ddp, zero, zero_views, zero_clip, fsdp, fsdp_clip, resume, adopt, hybrid, tensor_parallel, two_dimensional),
        *(partial_sums, mixed, nonfinite, scaler, join, join_zero, local_sgd, sixteen_bits, every_class, refused),
        *(hogwild_race, hogwild_alone, offload_ddp, offload_fsdp),
    )
}


PLAIN_RUNS = [Task(k, 2, r) for k in ("ddp", "zero", "fsdp", "tensor_parallel") for r in RULES]


PLAIN_RUNS += [Task(k, 2, r) for k in ("zero_views", "mixed", "partial_sums") for r in FEW]


PLAIN_RUNS += [Task(k, 4, r) for k in ("ddp", "zero", "fsdp", "tensor_parallel", "hybrid") for r in FEW]


PLAIN_RUNS += [Task(k, 4) for k in ("two_dimensional", "mixed", "partial_sums")]


PLAIN_RUNS += [Task(k, 2, r) for k in ("offload_ddp", "offload_fsdp") for r in FEW]


CLIPPED = [
    Task(k, 2, r, 0.3)
    for k in ("ddp", "zero_clip", "fsdp_clip", "tensor_parallel", "partial_sums", "mixed")
    for r in ("adam", "momentum")
]


CLIPPED += [
    Task(k, 4, "momentum", 0.3)
    for k in ("zero_clip", "fsdp_clip", "hybrid", "tensor_parallel", "two_dimensional", "partial_sums", "mixed")
]


CLIPPED += [Task(k, 2, r, 0.3) for k in ("offload_ddp", "offload_fsdp") for r in ("adam", "momentum")]


# Names of adaptk.torch that are not rules, or not for sharded params.
NO_RULES = ("Offload", "ReleasedGradients", "release_gradients", "RowWiseAdaGrad", "RowWiseAdam")


RESUMED = [Task("resume", to, r, source=by) for to, by in ((4, 2), (2, 4), (1, 2)) for r in FEW]


RESUMED += [Task("adopt", 2, r) for r in RULES] + [Task("adopt", 4)]


SKIPPED = [Task(k, w) for k in ("nonfinite", "scaler") for w in (2, 4)]


JOINED = [Task("join", w, r) for w in (2, 4) for r in ("adam", "momentum")]


JOINED_ZERO = [Task("join_zero", w, r) for w in (2, 4) for r in ("adam", "momentum")]


LOCAL = [Task("local_sgd", 2, r) for r in RULES] + [Task("local_sgd", 4)]


OTHERS = [Task("sixteen_bits", 2), Task("every_class", 2), Task("refused", 2)]


RACES = [Task("hogwild_race", 2, r) for r in RACE_RATES]


ALONE = [Task("hogwild_alone", 2, r) for r in FEW]


MUON = [Task(k, 2, "muon") for k in ("ddp", "fsdp", "tensor_parallel", "partial_sums", "mixed")]


MUON += [Task("fsdp", 4, "muon"), Task("two_dimensional", 4, "muon"), Task("fsdp_clip", 2, "muon", 0.3)]


TASKS = MUON + PLAIN_RUNS + CLIPPED + RESUMED + SKIPPED + JOINED + JOINED_ZERO + LOCAL + OTHERS + RACES + ALONE


# Grouped by number of processes, each task after the one that it loads from.
TASKS.sort(key=lambda t: (t.kind == "resume" and t.source > t.world, t.kind == "resume", t.world))


def work(rank: int, folder: Path, shared: dict[str, Any]) -> None:
    """One process. A task that fails closes the connections, so that no process waits indefinitely."""
    warnings.simplefilter("error")
    with warnings.catch_warnings():
        # torch scripts its functional optimizers here, which it deprecates itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        import torch.distributed.optim
    # The output of a row-parallel layer is such a view; nothing modifies it in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    torch.set_num_threads(1)
    adaptk.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = next(n for _, n in socket.if_nameindex() if n.startswith("lo"))
    notes = dist.FileStore(str(folder / "notes"), PROCESSES)
    notes.set_timeout(2 * PATIENCE)
    connected = 0
    for task in TASKS:
        if rank >= task.world:
            continue
        try:
            if connected != task.world:
                if connected:
                    dist.destroy_process_group()
                store = dist.FileStore(str(folder / f"group-{task.name}"), task.world)
                connected = task.world
                dist.init_process_group("gloo", store=store, rank=rank, world_size=task.world, timeout=PATIENCE)
                dist.barrier()
            outcome: Any = KINDS[task.kind](Place(task, rank, folder, shared))
        except Exception:
            outcome = f"process {rank}:\n{traceback.format_exc()}"
        failed = isinstance(outcome, str)
        if failed and dist.is_initialized():
            dist.destroy_process_group()
        torch.save(outcome, folder / f"{task.name}.{rank}.new")
        os.rename(folder / f"{task.name}.{rank}.new", folder / f"{task.name}.{rank}")
        notes.set(f"{task.name}.{rank}", "failed" if failed else "done")
        if any(notes.get(f"{task.name}.{r}") == b"failed" for r in range(task.world)):
            if dist.is_initialized():
                dist.destroy_process_group()
            connected = 0
    # Threads of gloo may crash at interpreter exit.
    os._exit(0)


def steps_of(
    model: Any,
    optimizer: Any,
    steps: int = STEPS,
    *,
    clip: float | None = None,
    without: Iterable[int] = (),
) -> tuple[list[float], list[float]]:
    """Losses and norms of training on the whole batch, in one process."""
    losses, norms = [], []
    for i in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, *batch())
        loss.backward()
        if clip is not None:
            norms.append(clipped(model.parameters(), clip))
        if i not in without:
            optimizer.step()
        losses.append(loss.item())
    return losses, norms


# The job


@dataclass
class Job:
    folder: Path
    shared: dict[str, Any]
    end: str  # how it ended

    def outcomes(self, task: Task) -> list[Any]:
        """What each process has given back."""
        found = []
        for rank in range(task.world):
            path = self.folder / f"{task.name}.{rank}"
            found.append(torch.load(path, weights_only=False) if path.exists() else f"process {rank}: {self.end}")
        if failures := [o for o in found if isinstance(o, str)]:
            pytest.fail("\n".join(failures), pytrace=False)
        return found

    def outcome(self, task: Task) -> Any:
        return self.outcomes(task)[0]


def shared_models() -> dict[str, Any]:
    """What the Hogwild tasks train."""
    shared: dict[str, Any] = {}
    for task in RACES:
        torch.manual_seed(3)
        shared[f"race-{task.rule}"] = torch.nn.Linear(6, 1).double().share_memory()
    for task in ALONE:
        model = two_columns().share_memory()
        optimizer = fused(task.rule, model.parameters())
        alone_start(model, optimizer)
        for state in optimizer.state.values():
            for value in state.values():
                value.share_memory_()
        shared[f"alone-{task.rule}"] = model, optimizer
    return shared


def two_columns() -> Any:
    torch.manual_seed(4)
    return torch.nn.ModuleList([torch.nn.Linear(6, 1), torch.nn.Linear(6, 1)]).double()


def alone_start(model: Any, optimizer: Any) -> None:
    """A first step, which makes the states."""
    (alone_loss(model, 0, 50) + alone_loss(model, 1, 50)).backward()
    optimizer.step()


@pytest.fixture(scope="module", name="job")
def run_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("processes")
    shared = shared_models()
    deadline = time.monotonic() + LIMIT
    running = torch.multiprocessing.start_processes(
        work, (folder, shared), nprocs=PROCESSES, join=False, start_method="spawn"
    )
    end = "did not get that far"
    try:
        while not running.join(timeout=1.0):
            if time.monotonic() > deadline:
                end = f"not done after {LIMIT} s"
                break
    except Exception as e:
        end = str(e)
    finally:
        for process in running.processes:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
    return Job(folder, shared, end)


def names(tasks: list[Task]) -> list[str]:
    return [t.name for t in tasks]


def assert_same(found: dict[str, Any], expected: dict[str, Any], rel: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rel, atol=1e-3 * rel, msg=lambda m, n=name: f"{n}: {m}")
