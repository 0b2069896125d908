"""Local SGD: processes step independently, and their params are averaged every few steps.

torch's PostLocalSGDOptimizer takes any optimizer. Averaging replaces the memory of the params; the next step detects
this.
"""

from __future__ import annotations

import adaptk.torch
import torch
import torch.distributed as dist
from processes import PROCESSES, check, mean, minibatch, network, run, show
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer

STEPS = 60
PERIOD = 4


def train(folder: str) -> None:
    model = network()
    optimizer = PostLocalSGDOptimizer(
        adaptk.torch.SGD(model.parameters(), lr=0.1, momentum=0.9), PeriodicModelAverager(period=PERIOD)
    )
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
    check("losses against one process with all models", losses, one_process())


def one_process() -> list[float]:
    models = [network() for _ in range(PROCESSES)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in models]
    losses = []
    for step in range(STEPS):
        total = 0.0
        for i, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            x, y = minibatch(step, i, PROCESSES)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        if step % PERIOD == 0:
            with torch.no_grad():
                for same in zip(*(m.parameters() for m in models), strict=True):
                    average = torch.stack(same).mean(0)
                    for p in same:
                        p.copy_(average)
        losses.append(total / PROCESSES)
    return losses


if __name__ == "__main__":
    run(train)
