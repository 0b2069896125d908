r"""
Momentum on an ill-conditioned quadratic
========================================

If the curvature is :math:`\kappa` times as large in one direction as in another, the steep
direction limits the rate of gradient descent, which is then too small for the flat one.
Momentum (Polyak 1964; Algorithm 8.2 of the Deep Learning book) adds up gradients that agree
and cancels those that do not. Nesterov's form (Nesterov 1983; Sutskever et al. 2013;
Algorithm 8.3) first looks ahead along the momentum.

For a quadratic, the best constants are known (Polyak 1964). With curvatures from 1 to
:math:`\kappa`, each step multiplies the distance from the minimum, in the long run, by

.. math:: \frac{\kappa-1}{\kappa+1} \text{ for gradient descent,} \qquad
          \frac{\sqrt\kappa-1}{\sqrt\kappa+1} \text{ with momentum.}
"""

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")

KAPPA = 50.0
curvature = np.array([1.0, KAPPA])
root = np.sqrt(KAPPA)
optimizers = {
    "gradient descent": {"lr": 2 / (1 + KAPPA)},
    "momentum": {"lr": 4 / (1 + root) ** 2, "momentum": ((root - 1) / (root + 1)) ** 2},
    "Nesterov": {
        "lr": 1 / KAPPA,
        "momentum": (root - 1) / (root + 1),
        "nesterov": True,
    },
}


def path(options, steps=120):
    x = np.array([10.0, 1.0])
    opt = adaptk.SGD([x], **options)
    points = [x.copy()]
    for _ in range(steps):
        opt.step([curvature * x])
        points.append(x.copy())
    return np.array(points)


paths = {name: path(options) for name, options in optimizers.items()}

# %%
# On the left are the first forty steps of each rule from the same point. On the right is the
# value over all steps; the dotted lines are the rates from theory for the first two rules.
# Momentum oscillates widely at first but converges fastest. Nesterov's form oscillates less,
# and is somewhat slower here.

figure, axes = plt.subplot_mosaic("AD;BD;CD", figsize=(7.5, 5), layout="constrained")
x, y = np.meshgrid(np.linspace(-4.5, 10.5, 300), np.linspace(-5, 5, 200))
for i, (key, (name, points)) in enumerate(zip("ABC", paths.items(), strict=True)):
    ax = axes[key]
    value = (x**2 + KAPPA * y**2) / 2
    ax.contour(
        x, y, value, levels=np.geomspace(0.5, 600, 11), colors="0.75", linewidths=0.8
    )
    ax.plot(*points[:41].T, "o-", color=f"C{i}", ms=3, lw=1.2)
    ax.plot(0, 0, "k+", ms=10)
    ax.set(title=name, ylim=(-5, 5))
    values = (points**2 @ curvature) / 2
    axes["D"].semilogy(values, color=f"C{i}", ls=("-", "--", "-.")[i], label=name)
steps = np.arange(121)
for i, shrink in enumerate(((KAPPA - 1) / (KAPPA + 1), (root - 1) / (root + 1))):
    axes["D"].semilogy(75 * shrink ** (2 * steps), ":", color=f"C{i}")
axes["D"].set(xlabel="step", ylabel="value", ylim=(1e-16, 1e3))
axes["D"].legend(loc="lower left")
plt.show()
