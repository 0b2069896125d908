r"""
Stale gradients
===============

In asynchronous training, a parameter server takes a step with each gradient as it arrives.
But while a worker computes its gradient, the gradients of other workers change the weights.
The number of steps in between is the *staleness* of the gradient. This page trains on digits
with simulated workers, each of which takes a random time for a gradient. It shows what
waiting costs and what staleness costs. ``examples/torch_parameter_server.py`` and
``examples/ray_parameter_server.py`` do the same with real processes and actors.
"""

import heapq
from importlib.resources import files

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")

table = np.loadtxt(files("adaptk") / "data" / "digits.csv.gz", delimiter=",")
np.random.default_rng(0).shuffle(table)
x, y = table[:, :64] / 16, np.eye(10)[table[:, 64].astype(int)]


def loss_and_gradient(weight, chosen):
    """The loss and the gradient of softmax regression."""
    z = x[chosen] @ weight
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return -np.log((p * y[chosen]).sum(axis=1)).mean(), x[chosen].T @ (
        p - y[chosen]
    ) / len(chosen)


# %%
# A worker waits only if it is more than ``bound`` of its own steps ahead of the slowest one
# (Ho et al. 2013). The time of a gradient is exponentially distributed with mean 1, so now
# and then a worker is slow. With ``compensate=True`` the learning rate of a gradient is
# ``lr / (1 + staleness)``, so that stale gradients count less.

GRADIENTS = 1200


def train(workers, bound, lr=0.5, compensate=False, seed=0):
    """The time of all gradients, the loss on all digits after them, and the mean staleness."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((64, 10))
    optimizer = adaptk.SGD([weight], lr=lr, momentum=0.9)
    done, idle, version, staleness, now = [0] * workers, set(range(workers)), 0, [], 0.0
    at_work = []
    while version < GRADIENTS:
        for k in sorted(idle):
            if done[k] - min(done) <= bound:
                idle.remove(k)
                gradient = loss_and_gradient(weight, rng.integers(len(x), size=16))[1]
                heapq.heappush(at_work, (now + rng.exponential(), k, version, gradient))
        now, k, of, gradient = heapq.heappop(at_work)
        staleness.append(version - of)
        optimizer.param_groups[0]["lr"] = lr / (1 + staleness[-1]) if compensate else lr
        optimizer.step([gradient])
        version += 1
        done[k] += 1
        idle.add(k)
    return now, loss_and_gradient(weight, np.arange(len(x)))[0], np.mean(staleness)


# %%
# With a bound of 0, all workers wait for the slowest one in each round. With a larger bound
# they wait less, and gradients get staler. The learning rate is large on purpose.

bounds = [0, 1, 2, 4, 8, 16]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained")
for workers in (2, 4, 8, 16):
    found = np.array(
        [np.mean([train(workers, b, seed=s) for s in range(2)], axis=0) for b in bounds]
    )
    left.plot(range(len(bounds)), found[:, 0], "o-", label=f"{workers} workers")
    right.plot(found[:, 2], found[:, 1], "o-", label=f"{workers} workers")
left.set(
    xlabel="bound of the staleness",
    ylabel=f"time of {GRADIENTS} gradients",
    yscale="log",
)
left.set_xticks(range(len(bounds)), bounds)
right.set(xlabel="mean staleness", ylabel="loss on all digits", yscale="log")
left.legend()
plt.show()

# %%
# The next figure compares training with and without the division of the learning rate by
# 1 + staleness. The division helps if stale gradients spoil training. If they do not, the
# smaller steps only slow it down.

counts = [1, 2, 4, 8, 16]
figure, ax = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for lr, color in ((0.1, "C0"), (0.5, "C1")):
    for compensate in (False, True):
        losses = [
            np.mean([train(n, 16, lr, compensate, seed=s)[1] for s in range(2)])
            for n in counts
        ]
        label = f"lr {lr}{' / (1 + staleness)' if compensate else ''}"
        ax.plot(counts, losses, "--s" if compensate else "-o", color=color, label=label)
ax.set(xlabel="workers", ylabel="loss on all digits", yscale="log", xscale="log")
ax.set_xticks(counts, counts)
ax.legend()
plt.show()
