r"""
Bias correction in Adam's first steps
=====================================

Adam's averages start at zero, so they are too small at first. Divided by
:math:`1-\beta^t`, they have the right mean from the first step on (Kingma and Ba 2015,
section 3; Algorithm 8.7 of the Deep Learning book):

.. math:: \hat m_t = \frac{m_t}{1-\beta_1^t}, \qquad \hat v_t = \frac{v_t}{1-\beta_2^t} .

Without the corrections the first step is
:math:`(1-\beta_1)/\sqrt{1-\beta_2} \approx 3.2` times the learning rate, and the steps
grow to six times as much before they settle.
"""

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")

# %%
# The gradients have mean 1. ``adaptk.ops.adam`` takes one step on arrays, with the step number
# as an argument. For a very high step number, the corrections are 1. This shows what the rule
# does without them.

rng = np.random.default_rng(0)
steps = np.arange(1, 3001)
gradients = 1 + 0.3 * rng.standard_normal(len(steps))


def run(corrected):
    theta, m, v = np.zeros(1), np.zeros(1), np.zeros(1)
    sizes, averages = [], []
    for t, gradient in zip(steps, gradients, strict=True):
        before = theta[0]
        number = t if corrected else 1_000_000
        adaptk.ops.adam(theta, np.array([gradient]), m, v, step=number, lr=1.0)
        sizes.append(before - theta[0])
        averages.append((m[0], v[0]))
    return np.array(sizes), np.array(averages)


corrected, averages = run(True)
plain, _ = run(False)

# %%
# On the left are both averages, before correction (dashed) and after it. Without correction,
# the average of the squares takes some thousand steps to reach its mean. On the right is the
# size of the steps in units of the learning rate.

figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.6), layout="constrained")
for i, (name, beta) in enumerate((("m", 0.9), ("v", 0.999))):
    left.semilogx(steps, averages[:, i], "--", color=f"C{i}")
    hat = averages[:, i] / (1 - beta**steps)
    left.semilogx(
        steps, hat, color=f"C{i}", label=rf"$\hat {name}$ and ${name}$ (dashed)"
    )
left.set(xlabel="step", ylabel="average", ylim=(-0.05, 1.7))
left.legend(loc="upper left")
right.semilogx(steps, plain, "--", color="C2", label="without correction")
right.semilogx(steps, corrected, color="C0", label="Adam")
right.set(xlabel="step", ylabel="step / learning rate", ylim=(0, None))
right.legend(loc="upper right")
plt.show()
