r"""
Large and small initial weights
===============================

Before the first step a network is a random function. If its weights are too small, signals
shrink in each layer, and so do gradients on their way back. If they are too large, units
saturate. In between is the scale at which the outputs of a layer are as large as its inputs
(Glorot and Bengio 2010): the variance of the weights is about one over the number of inputs.
:func:`adaptk.init.glorot_normal` draws such weights.
"""

from importlib.resources import files

import adaptk
import matplotlib.pyplot as plt
import numpy as np
from adaptk import init

plt.style.use("petroff10")

table = np.loadtxt(files("adaptk") / "data" / "digits.csv.gz", delimiter=",")
np.random.default_rng(0).shuffle(table)
images, labels = (table[:, :64] / 16).astype(np.float32), table[:, 64].astype(int)
images -= images.mean(axis=0)
images /= images.std()
test_x, test_y = images[:600], labels[:600]
train_x, train_y = images[600:], labels[600:]

# %%
# The network has six layers of 64 tanh units and a layer of ten outputs. The weights are
# Glorot's, multiplied by a gain. Each layer has its own seed, so that the numbers of all
# layers are independent. Biases start at zero.

LAYERS = 6
GAINS = {"small: 0.3": 0.3, "Glorot's: 1": 1.0, "large: 4": 4.0}


def new_weights(gain, seed):
    shapes = [(64, 64)] * LAYERS + [(64, 10)]
    weights = {}
    for i, shape in enumerate(shapes):
        w = np.empty(shape, np.float32)
        weights[f"w{i}"] = init.glorot_normal(w, seed=100 * seed + i, gain=gain)
        weights[f"b{i}"] = init.zeros(np.empty(shape[1], np.float32))
    return weights


def forward(p, x):
    """The outputs of all layers; the last are log-probabilities."""
    layers = [x]
    for i in range(LAYERS):
        layers.append(np.tanh(layers[-1] @ p[f"w{i}"] + p[f"b{i}"]))
    z = layers[-1] @ p[f"w{LAYERS}"] + p[f"b{LAYERS}"]
    z = z - z.max(axis=1, keepdims=True)
    return [*layers, z - np.log(np.exp(z).sum(axis=1, keepdims=True))]


def backward(p, layers, y):
    """Gradients of the loss, and the size of those that reach each layer."""
    delta = np.exp(layers[-1])
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    grads, sizes = {}, []
    for i in range(LAYERS, -1, -1):
        grads[f"w{i}"], grads[f"b{i}"] = layers[i].T @ delta, delta.sum(axis=0)
        if i > 0:
            delta = (delta @ p[f"w{i}"].T) * (1 - layers[i] ** 2)
            sizes.insert(0, np.sqrt(np.mean(delta**2)))
    return grads, sizes


# %%
# With small weights, signals on their way forward and gradients on their way back fade by
# about the same factor in each layer. With large weights, half of the units are near 1 or -1,
# where tanh is flat. Through the others, gradients grow on their way back.

figure, axes = plt.subplots(1, 3, figsize=(7.5, 3.2), layout="constrained")
depth = np.arange(1, LAYERS + 1)
for style, (name, gain) in zip("osD", GAINS.items(), strict=True):
    p = new_weights(gain, seed=0)
    layers = forward(p, train_x)
    signals = [np.sqrt(np.mean(h**2)) for h in layers[1:-1]]
    saturated = [np.mean(np.abs(h) > 0.98) for h in layers[1:-1]]
    axes[0].semilogy(depth, signals, style + "-", ms=5)
    axes[1].plot(depth, saturated, style + "-", ms=5)
    axes[2].semilogy(
        depth, backward(p, layers, train_y)[1], style + "-", ms=5, label=name
    )
    print(
        f"{name}: size of the last layer {signals[-1]:.4f}, {saturated[-1]:.0%} saturated"
    )
axes[0].set(xlabel="layer", ylabel="root mean square of activations")
axes[1].set(xlabel="layer", ylabel="share of saturated units", ylim=(-0.03, 1))
axes[2].set(xlabel="layer", ylabel="root mean square of gradients")
axes[2].legend(title="gain", fontsize=8)
plt.show()

# %%
# The next figure shows the effect on training, for five seeds of each gain with the same
# batches. The lines are means, and the bands go from the best to the worst seed.

STEPS, EVERY = 600, 40


def train(gain, seed):
    p = new_weights(gain, seed)
    opt = adaptk.SGD(p, lr=0.05, momentum=0.9)
    rng = np.random.default_rng(seed)
    losses, right = [], []
    for step in range(STEPS):
        if step % EVERY == 0:
            on_train, on_test = forward(p, train_x)[-1], forward(p, test_x)[-1]
            losses.append(-np.mean(on_train[np.arange(len(train_y)), train_y]))
            right.append(np.mean(on_test.argmax(axis=1) == test_y))
        batch = rng.integers(len(train_y), size=32)
        grads, _ = backward(p, forward(p, train_x[batch]), train_y[batch])
        opt.step(grads)
    return losses, right


figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.6), layout="constrained")
steps = np.arange(0, STEPS, EVERY)
for style, (name, gain) in zip(("-", "--", "-."), GAINS.items(), strict=True):
    runs = np.array([train(gain, seed) for seed in range(1, 6)])
    for ax, curves in zip(axes, runs.transpose(1, 0, 2), strict=True):
        (line,) = ax.plot(steps, curves.mean(axis=0), style, label=name)
        ax.fill_between(
            steps,
            curves.min(axis=0),
            curves.max(axis=0),
            color=line.get_color(),
            alpha=0.2,
        )
    print(f"{name}: {runs[:, 1, -1].mean():.1%} of the test digits right at the end")
axes[0].set(xlabel="step", ylabel="loss on the training digits", yscale="log")
axes[1].set(xlabel="step", ylabel="share of test digits right")
axes[1].legend(title="gain", loc="lower right")
plt.show()

# %%
# The other schemes of :mod:`adaptk.init` have the same purpose:
#
# - He's is for units that are zero for half of their inputs, such as a ReLU.
# - LeCun's depends only on the number of inputs.
# - Orthogonal matrices keep the length of vectors.
#
# :doc:`/guide/initialisation` says which one to choose.
