r"""
Effective learning rates over time
==================================

Adaptive rules multiply the gradient by a rate that depends on the gradients so far. To see
this rate for any rule, divide each step by its gradient:

.. math:: \eta_t = \frac{\theta_{t-1} - \theta_t}{g_t} .

The experiment has one parameter, whose gradients have size 1, with noise. After 400 steps
they become ten times as large, and after 800 steps as small as at first.
"""

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")

rng = np.random.default_rng(1)
size = np.where((np.arange(1200) >= 400) & (np.arange(1200) < 800), 10.0, 1.0)
gradients = size * (1 + 0.1 * rng.standard_normal(1200))

# %%
# The learning rates are chosen so that the first phase is comparable.

rules = {
    "AdaGrad": (adaptk.AdaGrad, {"lr": 0.1}),
    "RMSProp": (adaptk.RMSProp, {"lr": 0.01, "rho": 0.99}),
    "AdaDelta": (adaptk.AdaDelta, {"lr": 1.0, "rho": 0.95}),
    "Adam": (adaptk.Adam, {"lr": 0.01, "beta2": 0.99}),
}


def rates(cls, options):
    theta = np.zeros(1)
    opt = cls([theta], **options)
    result = []
    for gradient in gradients:
        before = theta[0]
        opt.step([np.array([gradient])])
        result.append((before - theta[0]) / gradient)
    return result


# %%
# The figure shows how the rules differ:
#
# - AdaGrad (Duchi, Hazan and Singer 2011): its sum only grows, so its rate only falls, and
#   stays small after the large gradients.
# - RMSProp (Tieleman and Hinton 2012) averages over about the last hundred squares, so its
#   rate recovers. In the long run its step, which is the rate times the gradient, is about
#   0.01 in every phase.
# - Adam (Kingma and Ba 2015) has the same average but corrects its bias, so its first steps
#   are no larger than the others. The peak at step 800 is the momentum of the large gradients.
# - AdaDelta (Zeiler 2012) uses the size of its own last steps instead of a learning rate, so
#   it reacts weakly.

figure, (above, ax) = plt.subplots(
    2, 1, figsize=(7.5, 5.5), sharex=True, height_ratios=(1, 3), layout="constrained"
)
above.plot(gradients, color="0.4", lw=0.8)
above.set(ylabel="gradient", yscale="log")
for style, (name, (cls, options)) in zip(
    ("-", "--", ":", "-."), rules.items(), strict=True
):
    ax.plot(rates(cls, options), style, lw=2, label=name)
ax.set(xlabel="step", ylabel="step / gradient", yscale="log", ylim=(3e-4, 0.15))
ax.legend(loc="upper right", ncols=4)
plt.show()
