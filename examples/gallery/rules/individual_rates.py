r"""
Delta-bar-delta: a learning rate for each parameter
===================================================

Jacobs (1988) gave each parameter its own learning rate. While the gradient keeps the sign of
its average :math:`\bar\delta`, the rate grows by the constant :math:`\kappa`; when the sign
changes, it shrinks by the factor :math:`1-\phi`:

.. math::

   \epsilon_t = \epsilon_{t-1} + \begin{cases} \kappa & \bar\delta_{t-1}\,\delta_t > 0 \\
   -\phi\,\epsilon_{t-1} & \bar\delta_{t-1}\,\delta_t < 0 \end{cases}

The rule is meant for gradients over the whole data. With minibatches, noise determines the
signs.
"""

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")

# %%
# The problem is a linear regression on four features of very different scales. The best rate
# of a weight is inversely proportional to the square of the scale of its feature. All rates
# start at the same value. They are a state of the optimizer, in ``opt.state``.

rng = np.random.default_rng(0)
scale = np.array([3.0, 1.0, 0.3, 0.1])
features = rng.standard_normal((200, 4)) * scale
target = features @ (1 / scale) + 0.1 * rng.standard_normal(200)
best = np.linalg.lstsq(features, target, rcond=None)[0]


def train(make, steps=300):
    w = np.zeros(4)
    opt = make(w)
    losses, rates = [], []
    for _ in range(steps):
        opt.step([features.T @ (features @ w - target) / 200])
        losses.append(np.mean((features @ (w - best)) ** 2) / 2)
        if "eta" in opt.state[0]:
            rates.append(opt.state[0]["eta"].copy())
    return losses, np.array(rates)


losses, rates = train(lambda w: adaptk.DeltaBarDelta([w], lr=0.02, kappa=0.05, phi=0.1))
plain, _ = train(lambda w: adaptk.SGD([w], lr=0.2))

# %%
# Gradient descent diverges in a direction of curvature h if its rate is above 2 / h. The
# dotted lines are these limits, for each weight alone. With delta-bar-delta, each rate grows
# until sign changes of the gradient keep it near its limit. Gradient descent has one rate for
# all weights, which the largest feature limits: 0.2 is nine tenths of the largest stable
# rate.

curvature = np.mean(features**2, axis=0)
figure, axes = plt.subplots(1, 2, figsize=(7.5, 4), layout="constrained")
for i, (size, h) in enumerate(zip(scale, curvature, strict=True)):
    axes[0].semilogy(rates[:, i], color=f"C{i}", label=f"scale {size:g}")
    axes[0].axhline(2 / h, color=f"C{i}", ls=":", lw=1.5)
axes[0].set(xlabel="step", ylabel="rate", ylim=(0.01, 5e3))
axes[0].legend(loc="upper left", ncols=2, fontsize=9)
axes[1].semilogy(losses, color="C0", label="delta-bar-delta")
axes[1].semilogy(plain, "--", color="C2", label="gradient descent, rate 0.2")
axes[1].set(xlabel="step", ylabel="loss above its minimum", ylim=(1e-25, 10))
axes[1].legend(loc="lower left")
plt.show()
