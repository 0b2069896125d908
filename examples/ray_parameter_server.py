"""A parameter server as an actor of Ray: it has the params and an optimizer of adaptk, and other actors compute
gradients.

    python examples/ray_parameter_server.py

The driver passes each gradient to the server as soon as it is ready. Workers need not wait for one another, as long as
the staleness is below a bound. With bound 0 all gradients of a round are averaged: this is synchronous training, and is
checked against one process.
"""

from __future__ import annotations

import sys
from typing import Any

import adaptk
import numpy as np
import numpy.typing as npt
import ray

WORKERS, ROUNDS, BATCH, LR = 2, 100, 64, 0.5
Array = npt.NDArray[np.float64]


def digits() -> tuple[Array, Array]:
    from importlib.resources import files

    table = np.loadtxt(str(files("adaptk") / "data" / "digits.csv.gz"), delimiter=",")
    table = np.random.default_rng(0).permutation(table)
    return table[:, :-1] / 16, np.eye(10)[table[:, -1].astype(int)]


def loss_and_gradient(weight: Array, x: Array, y: Array) -> tuple[float, Array]:
    """Loss and gradient of softmax regression."""
    z = x @ weight
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return float(-np.log((p * y).sum(axis=1)).mean()), x.T @ (p - y) / len(x)


def minibatch(x: Array, y: Array, step: int, worker: int) -> tuple[Array, Array]:
    part = np.arange((step * WORKERS + worker) * BATCH, (step * WORKERS + worker + 1) * BATCH) % len(x)
    return x[part], y[part]


@ray.remote
class Server:
    def __init__(self, compensate: bool) -> None:
        self.weight = np.zeros((64, 10))
        self.optimizer = adaptk.SGD([self.weight], lr=LR)
        self.version, self.compensate = 0, compensate

    def pull(self) -> tuple[int, Array]:
        return self.version, self.weight

    def push(self, gradient: Array, version: int) -> int:
        staleness = self.version - version
        self.optimizer.param_groups[0]["lr"] = LR / (1 + staleness) if self.compensate else LR
        self.optimizer.step([np.array(gradient)])  # a copy, because Ray's arrays are read-only
        self.version += 1
        return staleness


@ray.remote
class Worker:
    def __init__(self, number: int) -> None:
        self.number = number
        self.x, self.y = digits()

    def gradient(self, step: int, pulled: tuple[int, Array]) -> tuple[Array, int]:
        version, weight = pulled
        return loss_and_gradient(weight, *minibatch(self.x, self.y, step, self.number))[1], version


def train(bound: int, compensate: bool = False) -> tuple[Array, list[int]]:
    server: Any = Server.remote(compensate)
    workers: list[Any] = [Worker.remote(k) for k in range(WORKERS)]
    staleness: list[int] = []
    if bound == 0:
        for step in range(ROUNDS):
            pulled = server.pull.remote()
            made = ray.get([w.gradient.remote(step, pulled) for w in workers])
            mean = sum(g for g, _ in made) / WORKERS
            staleness.append(ray.get(server.push.remote(mean, made[0][1])))
        return ray.get(server.pull.remote())[1], staleness
    done = [0] * WORKERS
    at_work: dict[Any, int] = {}
    while min(done) < ROUNDS:
        for k, worker in enumerate(workers):
            if k not in at_work.values() and done[k] < ROUNDS and done[k] - min(done) <= bound:
                at_work[worker.gradient.remote(done[k], server.pull.remote())] = k
        ready, _ = ray.wait(list(at_work), num_returns=1)
        gradient, version = ray.get(ready[0])
        # Each is the mean over a part of the minibatch of a synchronous step.
        staleness.append(ray.get(server.push.remote(gradient / WORKERS, version)))
        done[at_work.pop(ready[0])] += 1
    return ray.get(server.pull.remote())[1], staleness


def one_process() -> Array:
    x, y = digits()
    weight = np.zeros((64, 10))
    for step in range(ROUNDS):
        weight -= LR * sum(loss_and_gradient(weight, *minibatch(x, y, step, k))[1] for k in range(WORKERS)) / WORKERS
    return weight


def main() -> None:
    ray.init(num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False)
    x, y = digits()
    synchronous = one_process()
    wanted = loss_and_gradient(synchronous, x, y)[0]
    right = True
    for bound, compensate in ((0, False), (1, False), (4, False), (4, True)):
        weight, staleness = train(bound, compensate)
        loss = loss_and_gradient(weight, x, y)[0]
        print(
            f"bound {bound}{' compensated' if compensate else ''}: loss on all digits {loss:.4f}, "
            f"one process {wanted:.4f}, "
            f"mean staleness {np.mean(staleness):.2f}, largest {max(staleness)}",
            flush=True,
        )
        if bound == 0:
            right &= bool(np.allclose(weight, synchronous, rtol=1e-9, atol=1e-12)) and max(staleness) == 0
        right &= loss < 1.3 * wanted if not compensate else loss < 2 * wanted
        right &= max(staleness) <= (2 * bound + 1) * (WORKERS - 1)
    ray.shutdown()
    if not right:
        sys.exit("WRONG: the workers have not learnt what they should, or were further behind")


if __name__ == "__main__":
    main()
