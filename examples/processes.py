"""Shared by the examples of training in several processes: the digits, a network, and starting the processes."""

from __future__ import annotations

import gzip
import importlib.resources
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

PROCESSES = 2
BATCH = 64


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 handwritten digits of 8 x 8 pixels in [0, 1], shuffled."""
    packed = importlib.resources.files("adaptk") / "data" / "digits.csv.gz"
    with packed.open("rb") as file, gzip.open(file, "rt") as text:
        table = np.random.default_rng(0).permutation(np.loadtxt(text, delimiter=","))
    return torch.tensor(table[:, :-1] / 16), torch.tensor(table[:, -1], dtype=torch.long)


def network() -> torch.nn.Sequential:
    """A network with the same weights in every process. It is float64, so that rounding is far below any mistake."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)).double()


def minibatch(step: int, part: int = 0, parts: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """One of equal parts of a step's minibatch."""
    x, y = DIGITS
    chosen = torch.arange(step * BATCH, (step + 1) * BATCH) % len(x)
    mine = chosen.chunk(parts)[part]
    return x[mine], y[mine]


DIGITS = digits()


def alone(make: Callable[[Any], torch.optim.Optimizer], steps: int) -> list[float]:
    """Losses of the same training on whole minibatches in one process, with torch's optimizer."""
    model = network()
    optimizer = make(model.parameters())
    losses = []
    for step in range(steps):
        x, y = minibatch(step)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mean(loss: torch.Tensor) -> float:
    """The mean over the processes."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def show(step: int, loss: float) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"step {step + 1:3}  loss {loss:.6f}", flush=True)


def check(what: str, found: list[float], expected: list[float], tolerance: float = 1e-9) -> None:
    """Ends the process with the status 1 if the two differ by more than rounding."""
    worst = max(abs(f - e) / abs(e) for f, e in zip(found, expected, strict=True))
    right = worst <= tolerance
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"{what}: differs by {worst:.1e}, {'as rounding does' if right else 'WRONG'}", flush=True)
    if not right:
        sys.exit(1)


def run(train: Callable[[str], None], processes: int = PROCESSES) -> None:
    """Runs ``train(folder)`` in processes that can communicate and share the folder."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _enter, (train, folder, processes), nprocs=processes, start_method="spawn"
        )


def _enter(rank: int, train: Callable[[str], None], folder: str, processes: int) -> None:
    torch.set_num_threads(1)
    # All processes are on this machine.
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    store = dist.FileStore(os.path.join(folder, "store"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    train(folder)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    # gloo's threads sometimes abort the process if they still run when the interpreter exits.
    os._exit(0)
