"""ZeroRedundancyOptimizer: each process has the states of a part of the params, steps these params, and sends them to
the others.

``norm_group`` lets ``clip_norm`` see the gradients of all parts.
"""

from __future__ import annotations

import adaptk.torch
import torch
import torch.distributed as dist
from processes import PROCESSES, check, mean, minibatch, network, run, show
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

STEPS = 60
CLIP = 0.5


def train(folder: str) -> None:
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=adaptk.torch.Adam, lr=3e-3)
    losses = []
    for step in range(STEPS):
        x, y = minibatch(step, dist.get_rank(), PROCESSES)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step(clip_norm=CLIP, norm_group=dist.group.WORLD)
        losses.append(mean(loss))
        if step % 10 == 9:
            show(step, losses[-1])
    held = sum(v.numel() for s in optimizer.optim.state.values() for v in s.values() if v.ndim > 0)
    print(f"process {dist.get_rank()} keeps {held} numbers of state", flush=True)
    check("losses against one process", losses, one_process())


def one_process() -> list[float]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        x, y = minibatch(step)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
        for p in model.parameters():
            if p.grad is not None:
                p.grad *= min(1.0, CLIP / norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    run(train)
