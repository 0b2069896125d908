"""Data parallelism: every process has the whole model and a part of the batch, and gradients are averaged.

The optimizer needs no changes: DistributedDataParallel leaves the same averaged gradients in all processes, so
``clip_norm`` computes the same norm in all of them.
"""

from __future__ import annotations

import adaptk.torch
import torch
import torch.distributed as dist
from processes import PROCESSES, alone, check, mean, minibatch, network, run, show
from torch.nn.parallel import DistributedDataParallel

STEPS = 60


def train(folder: str) -> None:
    model = DistributedDataParallel(network())
    optimizer = adaptk.torch.AdamW(model.parameters(), lr=3e-3, amsgrad=True)
    losses = []
    for step in range(STEPS):
        x, y = minibatch(step, dist.get_rank(), PROCESSES)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(mean(loss))
        if step % 10 == 9:
            show(step, losses[-1])
    expected = alone(lambda params: torch.optim.AdamW(params, lr=3e-3, amsgrad=True), STEPS)
    check("losses against one process", losses, expected)


if __name__ == "__main__":
    run(train)
