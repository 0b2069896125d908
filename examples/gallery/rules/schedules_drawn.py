r"""
Schedules, drawn
================

A schedule is the learning rate as a function of the step number, counted from 1. Every
optimizer accepts a schedule as ``lr``. A schedule has no state, so a checkpoint does not
contain it. ``schedule.from_zero()`` is the same schedule for libraries that count steps
from 0. :mod:`adaptk.schedules` lists the sources.
"""

import adaptk
import matplotlib.pyplot as plt
import numpy as np
from adaptk import schedules

plt.style.use("petroff10")

TOTAL = 1000
drawn = {
    "constant": schedules.constant(1.0),
    "step_decay": schedules.step_decay(1.0, every=250, gamma=0.5),
    "exponential": schedules.exponential(1.0, gamma=0.995),
    "inverse_time": schedules.inverse_time(1.0, decay=0.01),
    "polynomial": schedules.polynomial(1.0, total=TOTAL, power=2),
    "cosine": schedules.cosine(1.0, total=TOTAL, warmup=100),
    "one_cycle": schedules.one_cycle(1.0, total=TOTAL),
    "warmup": schedules.warmup(schedules.inverse_time(1.0, decay=0.01), steps=200),
    "chained": schedules.chained(
        [
            (schedules.cosine(1.0, total=400), 400),
            (schedules.cosine(0.5, total=300), 300),
            schedules.cosine(0.25, total=300),
        ]
    ),
}

# %%
# The figure shows all schedules over a thousand steps. The largest rate is 1.

figure, axes = plt.subplots(
    3, 3, figsize=(7.5, 6), sharex=True, sharey=True, layout="constrained"
)
steps = np.arange(1, TOTAL + 1)
for ax, (name, schedule) in zip(axes.flat, drawn.items(), strict=True):
    ax.plot(steps, [schedule(t) for t in steps], lw=2)
    ax.set_title(name, family="monospace")
    ax.set_ylim(-0.03, 1.06)
figure.supxlabel("step")
figure.supylabel("learning rate")
plt.show()

# %%
# The next figure shows why the learning rate should fall. With noisy gradients of a quadratic
# and a constant rate, the distance from the minimum falls to a level that depends on the rate,
# and stays there. Robbins and Monro (1951) proved convergence for rates that fall slowly
# enough.

rng = np.random.default_rng(0)
noise = rng.standard_normal((TOTAL, 100))
figure, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
for style, name in zip(
    ("-", "--", "-."), ("constant", "inverse_time", "cosine"), strict=True
):
    x = np.full(100, 10.0)
    opt = adaptk.SGD([x], lr=lambda t, schedule=drawn[name]: 0.2 * schedule(t))
    distances = []
    for sample in noise:
        opt.step([x + sample])
        distances.append(np.sqrt(np.mean(x**2)))
    ax.semilogy(distances, style, label=name)
ax.set(xlabel="step", ylabel="distance from the minimum")
ax.legend()
plt.show()
