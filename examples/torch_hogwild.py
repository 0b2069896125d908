"""Hogwild (Niu et al. 2011): processes step the same params in shared memory at any time, without a lock.

The results depend on the order of the steps. So the example does not check each loss, but the trained network: the
processes together must do as well as one process that sees all their minibatches in turn.
"""

from __future__ import annotations

import sys

import adaptk.torch
import torch
import torch.multiprocessing as mp
from processes import DIGITS, PROCESSES, minibatch, network

STEPS = 150


def train(rank: int, model: torch.nn.Module) -> None:
    torch.set_num_threads(1)
    optimizer = adaptk.torch.SGD(model.parameters(), lr=0.2)
    for step in range(STEPS):
        x, y = minibatch(PROCESSES * step + rank)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"process {rank}  step {step + 1:3}  loss {loss.item():.6f}", flush=True)


def one_process() -> torch.nn.Module:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for step in range(PROCESSES * STEPS):
        x, y = minibatch(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@torch.no_grad()
def loss_on_all(model: torch.nn.Module) -> float:
    x, y = DIGITS
    return torch.nn.functional.cross_entropy(model(x), y).item()


def main() -> None:
    model = network().share_memory()
    before = loss_on_all(model)
    mp.start_processes(train, (model,), nprocs=PROCESSES, start_method="spawn")
    together, alone = loss_on_all(model), loss_on_all(one_process())
    right = together < 0.25 * before and together < 1.5 * alone
    print(f"loss on all digits: {before:.3f} before, {together:.3f} after, {alone:.3f} with one process")
    if not right:
        sys.exit("WRONG: the processes together have not learnt what one learns")


if __name__ == "__main__":
    main()
