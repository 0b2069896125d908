r"""
Easy examples first
===================

A curriculum (Bengio et al. 2009) begins with easy examples and adds harder ones. Whether
that helps depends on what makes an example hard. This page trains on two sets of digits:

- with the right labels, where a curriculum does not help;
- with random labels for 30% of the digits, where it does.

Two controls show the effect of the order: random examples with the same pacing, and the
hardest examples first.
"""

from importlib.resources import files

import adaptk
import matplotlib.pyplot as plt
import numpy as np
from adaptk import init
from adaptk.curriculum import Curriculum, pacing

plt.style.use("petroff10")

table = np.loadtxt(files("adaptk") / "data" / "digits.csv.gz", delimiter=",")
np.random.default_rng(0).shuffle(table)
images, labels = (table[:, :64] / 16).astype(np.float32), table[:, 64].astype(int)
test_x, test_y = images[:600], labels[:600]
train_x, right_y = images[600:1500], labels[600:1500]

rng = np.random.default_rng(1)
wrong = rng.random(len(right_y)) < 0.3
noisy_y = np.where(wrong, rng.integers(10, size=len(right_y)), right_y)

# %%
# A pacing function gives the share of the data that is available at each step. The root
# grows fast at first, so that each example is seen about equally often once it is available
# (Platanios et al. 2019).

STEPS = 600
ALL_AT_ONCE = pacing.step(1.0, total=1)
shares = {
    "linear": pacing.linear(0.3, total=STEPS),
    "root": pacing.root(0.3, total=STEPS),
    "exponential": pacing.exponential(0.3, every=150, factor=1.5),
    "step": pacing.step(0.3, total=300),
}
figure, ax = plt.subplots(figsize=(7.5, 3), layout="constrained")
t = np.arange(1, STEPS + 101)
for style, (name, share) in zip(("-", "--", "-.", ":"), shares.items(), strict=True):
    ax.plot(t, [share(n) for n in t], style, label=name, lw=2)
ax.set(xlabel="step", ylabel="share of the data", ylim=(0, 1.05))
ax.legend(loc="lower right")
plt.show()

# %%
# The model has one hidden layer. The difficulty of an example is the loss of another network
# of the same kind. This network must not have been trained on the example itself, or it would
# know the wrong labels too. So one network is trained on each half of the data, and scores
# the other half.


def new_weights(seed):
    w1, w2 = np.empty((64, 64), np.float32), np.empty((64, 10), np.float32)
    return {
        "w1": init.glorot_uniform(w1, seed=2 * seed),
        "b1": np.zeros(64, np.float32),
        "w2": init.glorot_uniform(w2, seed=2 * seed + 1),
        "b2": np.zeros(10, np.float32),
    }


def forward(p, x):
    hidden = np.tanh(x @ p["w1"] + p["b1"])
    z = hidden @ p["w2"] + p["b2"]
    z = z - z.max(axis=1, keepdims=True)
    return hidden, z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def losses(p, x, y):
    return -forward(p, x)[1][np.arange(len(y)), y]


def gradient(p, x, y):
    hidden, log_probability = forward(p, x)
    delta = np.exp(log_probability)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    back = (delta @ p["w2"].T) * (1 - hidden**2)
    return {
        "w1": x.T @ back,
        "b1": back.sum(axis=0),
        "w2": hidden.T @ delta,
        "b2": delta.sum(axis=0),
    }


def train(p, batches, x, y, steps):
    """The share of test digits that are right, every 20 steps."""
    opt = adaptk.SGD(p, lr=0.05, momentum=0.9)
    right = []
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        opt.step(gradient(p, x[batch], y[batch]))
        if step % 20 == 0:
            right.append(np.mean(forward(p, test_x)[1].argmax(axis=1) == test_y))
    return right


def scores(x, y):
    half = np.arange(len(y)) % 2 == 0
    difficulty = np.empty(len(y))
    for mine, other in ((half, ~half), (~half, half)):
        p = new_weights(seed=1000)
        whole = Curriculum(np.zeros(mine.sum()), ALL_AT_ONCE, batch_size=32, seed=0)
        train(p, whole, x[mine], y[mine], steps=300)
        difficulty[other] = losses(p, x[other], y[other])
    return difficulty


difficulty = {
    "right labels": (right_y, scores(train_x, right_y)),
    "30% random labels": (noisy_y, scores(train_x, noisy_y)),
}
hard = np.argsort(difficulty["30% random labels"][1])[-270:]
mislabelled = np.mean(noisy_y[hard] != right_y[hard])
print(f"of the 30% hardest examples {mislabelled:.0%} have a wrong label")

# %%
# Each order is run with eight seeds and :func:`adaptk.curriculum.pacing.root`. ``groups`` gives
# each part of the data the same share of every digit. "All at once" is plain training.

figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.8), sharey=True, layout="constrained")
steps = np.arange(20, STEPS + 1, 20)
orders = {
    "easy first": ("easy", shares["root"], "-"),
    "random": ("random", shares["root"], "--"),
    "hard first": ("hard", shares["root"], "-."),
    "all at once": ("random", ALL_AT_ONCE, ":"),
}
for ax, (data, (y, hardness)) in zip(axes, difficulty.items(), strict=True):
    for name, (order, share, style) in orders.items():
        runs = np.array(
            [
                train(
                    new_weights(seed),
                    Curriculum(hardness, share, 32, seed, order=order, groups=y),
                    train_x,
                    y,
                    STEPS,
                )
                for seed in range(8)
            ]
        )
        mean, spread = runs.mean(axis=0), runs.std(axis=0)
        (line,) = ax.plot(steps, mean, style, label=name)
        ax.fill_between(
            steps,
            mean - spread,
            mean + spread,
            color=line.get_color(),
            alpha=0.15,
            lw=0,
        )
        best = mean.argmax()
        print(
            f"{data}, {name}: {mean[-1]:.1%} at the end (standard deviation "
            f"{spread[-1]:.1%}), {mean[best]:.1%} at best, at step {steps[best]}"
        )
    ax.set(title=data, xlabel="step", ylim=(0.6, 1))
axes[0].set(ylabel="share of test digits right")
axes[1].legend(loc="lower right", fontsize=8)
plt.show()

# %%
# With right labels the curriculum stays behind: the easiest digits teach little, and to begin
# with the hardest is as good as to train on all digits at once. With wrong labels it is ahead
# by three percentage points until most of the mislabelled digits are available, and then loses
# this gain. So stop before that; a validation set tells you when.
