r"""
Stale gradients
===============

Asynchronous training does not wait: a parameter server steps with each gradient as it
comes, and by then other workers have moved the weights that the gradient is of. How many
steps lie between is its staleness. This page trains on digits with simulated workers, of
which each needs a random time for a gradient, and draws what waiting costs and what
staleness costs. ``examples/torch_parameter_server.py`` and
``examples/ray_parameter_server.py`` are the same with processes and actors.
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
    """Of softmax regression."""
    z = x[chosen] @ weight
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return -np.log((p * y[chosen]).sum(axis=1)).mean(), x[chosen].T @ (
        p - y[chosen]
    ) / len(chosen)


# %%
# The server keeps no worker waiting unless it is more than ``bound`` of its own steps ahead
# of the slowest one (Ho et al. 2013). A gradient takes a time of 1 on average, exponentially
# distributed: now and then somebody is slow. ``lr / (1 + staleness)`` is the option that
# makes late gradients count less.

GRADIENTS = 1200


def train(workers, bound, lr=0.5, compensate=False, seed=0):
    """The time of all gradients, the loss on all digits behind them, and the mean staleness."""
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
# With a bound of 0 all wait for the slowest worker of each round. The larger the bound, the
# less they wait, and the staler gradients get. The step size is large on purpose.

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
# The same with the learning rate divided by 1 + staleness. Where staleness spoils training
# it is rescued; where it does not, smaller steps cost progress.

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
