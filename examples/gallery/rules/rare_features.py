r"""
Rare features: AdaGrad and SGD
==============================

In text, clicks and recommendations, most features are absent from most examples. A feature
that occurs in one of a thousand examples gets a gradient once in a thousand steps. A learning
rate that suits frequent features hardly moves its weight. AdaGrad (Duchi, Hazan and Singer
2011; Algorithm 8.4 of the Deep Learning book) divides by the root of the sum of squared
gradients, which is small for a rare feature:

.. math:: r \leftarrow r + g \odot g, \qquad
          \theta \leftarrow \theta - \frac{\epsilon}{\delta + \sqrt r} \odot g .
"""

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")

# %%
# The problem is a logistic regression on forty features. The most frequent feature is in half
# of the examples, and the rarest in one of five hundred. All true weights are 1 or -1.

rng = np.random.default_rng(0)
frequency = np.geomspace(0.5, 0.002, 40)
truth = np.where(np.arange(40) % 2, 1.0, -1.0)


def examples(count):
    x = (rng.random((count, 40)) < frequency).astype(float)
    y = rng.random(count) < 1 / (1 + np.exp(-x @ truth))
    return x, y


def train(opt, w, steps=6000, batch=10):
    distances = []
    for _ in range(steps):
        x, y = examples(batch)
        p = 1 / (1 + np.exp(-x @ w))
        opt.step([x.T @ (p - y) / batch])
        distances.append(np.abs(w - truth))
    return np.array(distances)


weights = {name: np.zeros(40) for name in ("SGD", "AdaGrad")}
runs = {
    "SGD": train(adaptk.SGD([weights["SGD"]], lr=0.3), weights["SGD"]),
    "AdaGrad": train(adaptk.AdaGrad([weights["AdaGrad"]], lr=0.3), weights["AdaGrad"]),
}

# %%
# Both rules learn the frequent features at once. At the end, AdaGrad has learned all features,
# and SGD is halfway with the rarest ones.

figure, axes = plt.subplots(1, 2, figsize=(7.5, 4), layout="constrained")
groups = {"10 most frequent": slice(0, 10), "10 rarest": slice(30, 40)}
for i, (rule, distances) in enumerate(runs.items()):
    for (group, columns), style in zip(groups.items(), ("-", "--"), strict=True):
        mean = distances[:, columns].mean(axis=1)
        axes[0].plot(mean, style, color=f"C{i}", label=f"{rule}, {group}")
    axes[1].semilogx(frequency, weights[rule] * truth, "os"[i], ms=5, label=rule)
axes[0].set(xlabel="step", ylabel="mean distance from the true weights", ylim=(0, 1.7))
axes[0].legend(loc="upper right")
axes[1].axhline(1, color="0.5", ls=":", label="truth")
axes[1].set(xlabel="share of examples with the feature", ylabel="learned / true weight")
axes[1].legend(loc="lower right")
plt.show()
