"""FSDP2: params, gradients and states are sharded over the processes.

Half-way the run is saved with torch.distributed.checkpoint and continued by another model and optimizer. Any number of
processes could load the same folder.
"""

from __future__ import annotations

import os

import adaptk.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import PROCESSES, alone, check, mean, minibatch, network, run, show
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

STEPS = 60
SAVED = 30


def sharded() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    mesh = init_device_mesh("cpu", (PROCESSES,))
    model = network()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model, adaptk.torch.Adam(model.parameters(), lr=3e-3)


def train(folder: str) -> None:
    where = os.path.join(folder, "checkpoint")
    model, optimizer = sharded()
    losses = []
    for step in range(STEPS):
        if step == SAVED:
            weights, state = get_state_dict(model, optimizer)
            dcp.save({"model": weights, "optimizer": state}, checkpoint_id=where)
            model, optimizer = sharded()
            weights, state = get_state_dict(model, optimizer)
            loaded = {"model": weights, "optimizer": state}
            dcp.load(loaded, checkpoint_id=where)
            set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        x, y = minibatch(step, dist.get_rank(), PROCESSES)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(mean(loss))
        if step % 10 == 9:
            show(step, losses[-1])
    expected = alone(lambda params: torch.optim.Adam(params, lr=3e-3), STEPS)
    check("losses against one process", losses, expected)


if __name__ == "__main__":
    run(train)
