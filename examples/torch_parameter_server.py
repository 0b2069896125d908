"""A parameter server with bounded staleness (Ho et al. 2013): one process has the params and an optimizer of adaptk,
and workers send it gradients at any time.

    python examples/torch_parameter_server.py [--bound 4] [--compensate] [--workers 2]

Bound 0 is synchronous training: the server waits for all workers, and steps with the mean of their gradients. This is
checked against one process. With a bound s > 0 it steps with each gradient when it arrives, and no worker may get more
than s steps ahead of the slowest one. The results depend on the order of arrival, so only the trained network is
checked. Without arguments all of these run. `--compensate` divides the learning rate by 1 + staleness. The staleness of
a gradient is the number of steps that the server has taken since it sent the params to the worker.
"""

from __future__ import annotations

import argparse
import sys
import time

import adaptk.torch
import torch
import torch.distributed as dist
from processes import DIGITS, PROCESSES, alone, check, minibatch, network, run

ROUNDS = 100  # steps of each worker
LR = 0.1


class Server:
    """The params, the optimizer, and the state of the workers."""

    def __init__(self, workers: int, bound: int, compensate: bool) -> None:
        self.model = network()
        self.params = list(self.model.parameters())
        self.optimizer = adaptk.torch.SGD(self.params, lr=LR, momentum=0.9)
        self.workers, self.bound, self.compensate = workers, bound, compensate
        self.done = [0] * workers  # the number of steps of each worker
        self.version = 0
        self.staleness: list[int] = []
        self.losses: list[float] = []

    def step(self, gradient: torch.Tensor, staleness: int) -> None:
        at = 0
        for p in self.params:
            p.grad = gradient[at : at + p.numel()].view_as(p).clone()
            at += p.numel()
        self.optimizer.param_groups[0]["lr"] = LR / (1 + staleness) if self.compensate else LR
        self.optimizer.step()
        self.version += 1

    def answer(self, worker: int) -> None:
        flat = torch.cat([p.detach().flatten() for p in self.params])
        dist.send(torch.cat([torch.tensor([float(self.version)], dtype=flat.dtype), flat]), worker + 1)

    def run(self) -> None:
        size = sum(p.numel() for p in self.params)
        message = torch.empty(size + 2, dtype=torch.float64)  # the version of the params, the loss, and the gradient
        waiting: dict[int, torch.Tensor] = {}
        while min(self.done) < ROUNDS:
            worker = dist.recv(message) - 1  # from the first one that sends
            self.done[worker] += 1
            waiting[worker] = message.clone()
            if self.bound == 0:
                if len(waiting) < self.workers:
                    continue
                sent = torch.stack([waiting[w] for w in range(self.workers)]).mean(0)
                self.losses.append(sent[1].item())
                self.step(sent[2:], 0)
                self.staleness.append(0)
            else:
                staleness = self.version - int(message[0])
                self.staleness.append(staleness)
                self.losses.append(message[1].item())
                # Each is the gradient of one part of a minibatch.
                self.step(message[2:] / self.workers, staleness)
            slowest = min(self.done)
            for w in list(waiting):
                if self.done[w] < ROUNDS and (self.bound == 0 or self.done[w] - slowest <= self.bound):
                    self.answer(w)
                    del waiting[w]


def work(worker: int, workers: int) -> None:
    model = network()
    params = list(model.parameters())
    version = 0.0
    answer = torch.empty(1 + sum(p.numel() for p in params), dtype=torch.float64)
    for step in range(ROUNDS):
        x, y = minibatch(step, worker, workers)
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        gradients = [p.grad.flatten() for p in params if p.grad is not None]
        dist.send(torch.cat([torch.tensor([version, loss.item()], dtype=torch.float64), *gradients]), 0)
        if step == ROUNDS - 1:
            return
        dist.recv(answer, 0)
        version = answer[0].item()
        at = 1
        with torch.no_grad():
            for p in params:
                p.copy_(answer[at : at + p.numel()].view_as(p))
                at += p.numel()


def train(folder: str) -> None:
    options = parse()
    settings = [(options.bound, options.compensate)]
    if options.bound is None:
        settings = [(0, False), (1, False), (4, False), (4, True)]
    workers = dist.get_world_size() - 1
    for bound, compensate in settings:
        dist.barrier()
        begin = time.perf_counter()
        if dist.get_rank() > 0:
            work(dist.get_rank() - 1, workers)
            continue
        server = Server(workers, bound, compensate)
        server.run()
        seconds = time.perf_counter() - begin
        x, y = DIGITS
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(server.model(x), y).item()
        mean, most = sum(server.staleness) / len(server.staleness), max(server.staleness)
        print(
            f"bound {bound}{' compensated' if compensate else ''}: loss on all digits {loss:.3f}, "
            f"{server.version} steps, staleness {mean:.2f}, at most {most}, {seconds:.2f} s",
            flush=True,
        )
        if bound == 0:
            check("losses against one process", server.losses, alone(sgd, ROUNDS))
        # The largest number of steps that other workers can take during one step of a worker.
        right = loss < 0.5 and most <= (2 * bound + 1) * (workers - 1)
        if not right:
            print("WRONG: the workers have not learnt what they should, or were further behind", flush=True)
            sys.exit(1)


def sgd(params: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=LR, momentum=0.9)  # type: ignore[arg-type]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bound", type=int, help="bound of the staleness, >= 0")
    parser.add_argument("--compensate", action="store_true", help="divide the learning rate by 1 + staleness")
    parser.add_argument("--workers", type=int, default=PROCESSES)
    options = parser.parse_args()
    if options.workers < 1 or (options.bound or 0) < 0:
        parser.error("--workers must be >= 1 and --bound >= 0")
    return options


if __name__ == "__main__":
    run(train, parse().workers + 1)
