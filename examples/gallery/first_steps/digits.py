r"""
From zero: a network that reads digits
======================================

This tutorial trains a network with NumPy and adaptk. You will write a model and its
gradient, check the gradient, train with an optimizer, add a learning rate schedule and
gradient clipping, and resume a run from a checkpoint. Basic NumPy is enough to follow.

The data
--------

The package contains 1,797 handwritten digits (Alpaydin and Kaynak 1998): images of 8 by 8
pixels with values from 0 to 16, and a label for each image. A fifth of the images is kept
for testing.
"""

import tempfile
from importlib.resources import files
from pathlib import Path

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")
# sphinx_gallery_thumbnail_number = 2

rng = np.random.default_rng(0)
table = np.loadtxt(files("adaptk") / "data" / "digits.csv.gz", delimiter=",")
rng.shuffle(table)
images, labels = (table[:, :64] / 16).astype(np.float32), table[:, 64].astype(int)
test_x, test_y = images[:360], labels[:360]
train_x, train_y = images[360:], labels[360:]

figure, axes = plt.subplots(2, 8, figsize=(7.5, 2.3), layout="constrained")
for ax, image, label in zip(axes.flat, train_x, train_y, strict=False):
    ax.imshow(image.reshape(8, 8), cmap="gray_r")
    ax.set(xticks=[], yticks=[])
    ax.set_title(label, fontsize=10)
plt.show()

# %%
# The model
# ---------
#
# The network has a layer of 64 hidden units and a layer of 10 outputs, one for each digit.
# The parameters are NumPy arrays in a dict. The initial weights are random, so that units
# differ, and small, so that units are not saturated. Biases start at zero.


def new_parameters():
    rng = np.random.default_rng(1)
    return {
        "weight1": rng.normal(scale=64**-0.5, size=(64, 64)).astype(np.float32),
        "bias1": np.zeros(64, np.float32),
        "weight2": rng.normal(scale=64**-0.5, size=(64, 10)).astype(np.float32),
        "bias2": np.zeros(10, np.float32),
    }


def forward(p, x):
    """The hidden units and the log-probabilities of the digits."""
    hidden = np.tanh(x @ p["weight1"] + p["bias1"])
    logits = hidden @ p["weight2"] + p["bias2"]
    logits = logits - logits.max(axis=1, keepdims=True)
    return hidden, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def loss(p, x, y):
    """The mean of -log(probability of the right digit)."""
    return -np.mean(forward(p, x)[1][np.arange(len(y)), y])


def accuracy(p, x, y):
    return np.mean(forward(p, x)[1].argmax(axis=1) == y)


# %%
# The gradient
# ------------
#
# The gradient follows from the chain rule, applied from the loss back to the first layer.
# It is a dict with the same names and shapes as the parameters.


def gradient(p, x, y):
    hidden, log_probability = forward(p, x)
    delta = np.exp(log_probability)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    back = (delta @ p["weight2"].T) * (1 - hidden**2)
    return {
        "weight1": x.T @ back,
        "bias1": back.sum(axis=0),
        "weight2": hidden.T @ delta,
        "bias2": delta.sum(axis=0),
    }


# %%
# A network with a mistake in its gradient often still learns, but less well. So check the
# gradient before training: compare it with finite differences of the loss along a random
# direction, in float64.

exact = {name: value.astype(float) for name, value in new_parameters().items()}
direction = {name: rng.standard_normal(value.shape) for name, value in exact.items()}


def loss_along(h):
    moved = {name: value + h * direction[name] for name, value in exact.items()}
    return loss(moved, train_x[:50], train_y[:50])


numerical = (loss_along(1e-5) - loss_along(-1e-5)) / 2e-5
grads = gradient(exact, train_x[:50], train_y[:50])
analytical = sum(np.sum(grads[name] * direction[name]) for name in exact)
print(f"by differences {numerical:.8f}, by the chain rule {analytical:.8f}")
assert abs(numerical - analytical) < 1e-6 * abs(numerical)

# %%
# The first steps
# ---------------
#
# Pass the parameters to the optimizer once. Each ``step`` takes their gradients and updates
# the parameters in place. The gradient over a minibatch of 32 digits estimates the gradient
# over all digits at a 45th of the cost.

params = new_parameters()
opt = adaptk.Adam(params, lr=3e-3)
print(f"before: loss {loss(params, train_x, train_y):.3f}")
for _ in range(100):
    batch = rng.integers(len(train_y), size=32)
    opt.step(gradient(params, train_x[batch], train_y[batch]))
print(f"after {opt.step_count} steps: loss {loss(params, train_x, train_y):.3f}")

# %%
# A training loop
# ---------------
#
# In each epoch the data are shuffled and split into minibatches. The minibatches depend only
# on the number of the epoch, so a resumed run gets the same ones.


def batches(epoch):
    order = np.random.default_rng(epoch).permutation(len(train_y))
    return np.array_split(order, len(order) // 32)


def train(params, opt, epochs, clip_norm=None):
    """Train, and return the loss after each epoch and the norm at each step."""
    losses, norms = [], []
    for epoch in epochs:
        for batch in batches(epoch):
            grads = gradient(params, train_x[batch], train_y[batch])
            info = opt.step(grads, clip_norm=clip_norm)
            norms.append(info.grad_norm)
        losses.append(loss(params, train_x, train_y))
    return losses, norms


# %%
# A schedule and clipping
# -----------------------
#
# A large learning rate makes fast progress at first, but the parameters then keep jumping
# around the minimum. So pass a schedule as the learning rate instead of a number: with
# :func:`adaptk.schedules.cosine` and a warm-up, the rate rises over the first steps and
# falls to zero at the end.
#
# ``clip_norm`` limits the norm of the gradient over all parameters, so that one bad
# minibatch cannot ruin the run. The step returns the norm before clipping.

EPOCHS = 15
steps = EPOCHS * len(batches(0))
schedule = adaptk.schedules.cosine(0.05, total=steps, warmup=66)
runs = {}
for name, lr, clip_norm in (
    ("constant", 0.05, np.inf),
    ("cosine", schedule, np.inf),
    ("cosine, clipped", schedule, 0.5),
):
    params = new_parameters()
    opt = adaptk.AdamW(params, lr=lr, weight_decay=0.01)
    losses, norms = train(params, opt, range(EPOCHS), clip_norm)
    runs[name] = losses, norms
    print(f"{name}: loss {losses[-1]:.5f}, test {accuracy(params, test_x, test_y):.1%}")

figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.6), layout="constrained")
for style, (name, (losses, _)) in zip(("-", "--", "-."), runs.items(), strict=True):
    left.semilogy(range(1, EPOCHS + 1), losses, style, label=name)
left.set(xlabel="epoch", ylabel="loss on the training digits")
left.legend(loc="lower left")
right.semilogy(runs["cosine"][1], ".", ms=3, color="C1", label="cosine")
right.axhline(0.5, color="C2", label="clip_norm of the third run")
right.set(xlabel="step", ylabel="norm of the gradient", ylim=(5e-4, 30))
right.legend(loc="upper right", markerscale=3)
plt.show()

# %%
# A checkpoint
# ------------
#
# ``state_dict`` is a flat dict of arrays: the moments, the step counts and the
# hyperparameters. Save it together with the parameters to resume an interrupted run
# exactly. A schedule is code and is not saved: pass it to the constructor again.


def new_optimizer(params):
    schedule = adaptk.schedules.cosine(0.02, total=steps)
    return adaptk.AdamW(params, lr=schedule, weight_decay=0.01)


straight = new_parameters()
train(straight, new_optimizer(straight), range(10))

params = new_parameters()
opt = new_optimizer(params)
train(params, opt, range(5))

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
np.savez(folder / "checkpoint.npz", **opt.state_dict())
np.savez(folder / "parameters.npz", **params)

# %%
# Later, in another process:

params = dict(np.load(folder / "parameters.npz"))
opt = new_optimizer(params)
opt.load_state_dict(np.load(folder / "checkpoint.npz"))
temporary.cleanup()
print(f"resumed after {opt.step_count} steps")
train(params, opt, range(5, 10))
same = all(np.array_equal(params[name], straight[name]) for name in params)
print(f"bitwise equal to the run without a break: {same}")
assert same

# %%
# The digits it got wrong
# -----------------------
#
# Train the resumed model to the end, and test it on the test digits.

train(params, opt, range(10, EPOCHS))
guess = forward(params, test_x)[1].argmax(axis=1)
wrong = np.flatnonzero(guess != test_y)
print(f"{len(wrong)} of {len(test_y)} test digits are wrong")
figure, axes = plt.subplots(1, 8, figsize=(7.5, 1.6), layout="constrained")
for ax in axes:
    ax.set_axis_off()
for ax, i in zip(axes, wrong, strict=False):
    ax.imshow(test_x[i].reshape(8, 8), cmap="gray_r")
    ax.set_title(f"{test_y[i]} as {guess[i]}", fontsize=9)
plt.show()

# %%
# Where to go on
# --------------
#
# - Replace ``AdamW`` with any other rule: :doc:`/guide/choosing_a_rule` helps to choose, and
#   :doc:`/gallery/rules/surfaces` shows how they differ.
# - ``python -m adaptk demo`` trains this kind of network with every rule.
# - :doc:`/guide/pytorch` and :doc:`/guide/jax` do the same with PyTorch and JAX models.
