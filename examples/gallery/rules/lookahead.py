r"""
RMSProp with Nesterov momentum: Algorithm 8.6
=============================================

Algorithm 8.6 of the Deep Learning book does not compute the gradient at the parameters, but
at the point to which the momentum is about to carry them:

.. math::

   \tilde\theta = \theta + \alpha v, \quad g = \nabla f(\tilde\theta), \quad
   r \leftarrow \rho r + (1-\rho)\, g \odot g, \quad
   v \leftarrow \alpha v - \frac{\epsilon}{\sqrt r} \odot g, \quad
   \theta \leftarrow \theta + v .

The block ``with opt.lookahead():`` moves the parameters to :math:`\tilde\theta`, and restores
them exactly at its end. Compute the gradient inside the block, and take the step after it.
"""

from contextlib import nullcontext

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")


hessian = np.array([[20.5, -19.5], [-19.5, 20.5]])  # a ravine across the axes


def run(nesterov, steps=100):
    x = np.array([-2.6, 0.6])
    opt = adaptk.RMSProp([x], lr=0.1, momentum=0.9, nesterov=nesterov)
    here, interim = [x.copy()], []
    for _ in range(steps):
        with opt.lookahead() if nesterov else nullcontext():
            interim.append(x.copy())
            gradient = hessian @ x
        opt.step([gradient])
        here.append(x.copy())
    return np.array(here), np.array(interim)


momentum, _ = run(False)
ahead, interim = run(True)

# %%
# Both rules have the same learning rate and the same momentum. On the left are the first
# thirteen steps of Algorithm 8.6: the interim point (square) is already on the other side of
# the ravine, and its gradient turns the velocity. Without the look-ahead (right), the
# parameters swing further.


def value(x, y):
    return (20.5 * x**2 - 39 * x * y + 20.5 * y**2) / 2


figure, axes = plt.subplot_mosaic("AB;CC", figsize=(7.5, 6.5), layout="constrained")
x, y = np.meshgrid(np.linspace(-3.2, 1.6, 200), np.linspace(-3.2, 1.8, 200))
for ax in (axes["A"], axes["B"]):
    levels = np.geomspace(0.1, 300, 10)
    ax.contour(x, y, value(x, y), levels=levels, colors="0.8", linewidths=0.8)
    ax.plot(-2.6, 0.6, "k*", ms=12)
    ax.plot(0, 0, "k+", ms=10)
    ax.set(xlim=(-3.2, 1.6), ylim=(-3.2, 1.8), xlabel="x")
few = slice(0, 14)
axes["A"].plot(*ahead[few].T, "o-", color="C0", label=r"parameters $\theta$")
axes["A"].plot(
    *interim[few].T, "s", color="C2", mfc="none", label=r"interim $\tilde\theta$"
)
for start, end in zip(ahead[few], interim[few], strict=True):
    axes["A"].plot(*np.array([start, end]).T, color="C2", lw=0.8)
axes["A"].set(title="Nesterov (8.6)", ylabel="y")
axes["A"].legend(loc="lower right", fontsize=9)
axes["B"].plot(*momentum[few].T, "o-", color="C1")
axes["B"].set(title="momentum")
axes["C"].semilogy(value(*momentum.T), "--", color="C1", label="momentum")
axes["C"].semilogy(value(*ahead.T), color="C0", label="Nesterov (8.6)")
axes["C"].set(xlabel="step", title="value")
axes["C"].legend()
plt.show()
