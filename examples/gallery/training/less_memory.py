r"""
States in fewer bits
====================

Adam keeps two numbers for each parameter. They can be stored in 16 or in 8 bits, if rounding
does not lose their small changes. This page shows what is lost if they are rounded to the
nearest number, and what that means for a training run.
"""

from importlib.resources import files

import adaptk
import matplotlib.pyplot as plt
import numpy as np
from adaptk import formats, init

plt.style.use("petroff10")

STYLES = {"bfloat16": "-.", "bfloat16_sr": "-", "8bit": "--", "8bit_nearest": ":"}


def numbers(state):
    """A state as float32."""
    if isinstance(state, formats.Stored):
        return formats.dequantize(state)
    return state.astype(np.float32)


# %%
# In this experiment, gradients are noise. After 1,000 steps, the gradients of every other
# parameter fall to a tenth, and the root of their second moments should fall with them. The
# figure shows the median of this root, relative to the median with float32 states.

STEPS, FALL, SIZE = 5000, 1000, 4096


def roots(state_dtype):
    rng = np.random.default_rng(0)
    scale = np.ones(SIZE, np.float32)
    opt = adaptk.Adam([np.zeros(SIZE, np.float32)], state_dtype=state_dtype, seed=0)
    found = []
    for step in range(1, STEPS + 1):
        if step == FALL:
            scale[::2] = 0.1
        opt.step([scale * rng.standard_normal(SIZE, dtype=np.float32)])
        if step % 50 == 0:
            v = numbers(opt.state[0]["exp_avg_sq"])
            found.append(np.sqrt(np.median(v[::2])))
    return np.array(found)


exact = roots("float32")
figure, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
ax.axhspan(0.9, 1.1, color="0.9", label="within 10%")
for name, style in STYLES.items():
    ratio = roots(name) / exact
    ax.plot(np.arange(50, STEPS + 1, 50), ratio, style, label=name, lw=2)
    print(f"{name}: {ratio[-1]:.2f} times float32's root after {STEPS - FALL} steps")
ax.set(xlabel="step", ylabel="median root / float32's", yscale="log")
ax.set_yticks([1, 2, 4, 6], ["1", "2", "4", "6"])
ax.minorticks_off()
ax.legend()
plt.show()

# %%
# With rounding to nearest, a second moment stops changing, because each step changes it by
# less than half of the distance to the next number. With stochastic rounding it follows the
# gradients.

# %%
# First moments change faster. Rounding to nearest stops them only if they are small compared
# with others in their block: in 8 bits, a block of 128 numbers has one scale, with 127 steps
# from 0 to its largest number.
#
# In the next experiment, every other gradient is a hundredth of its neighbours. The noise is
# as large as the gradients themselves, and after 1,000 steps all of them change sign. The
# figure shows the mean of the params with small gradients. Float32 Adam moves them as far as
# the others, down and up again.


def path(state_dtype):
    rng = np.random.default_rng(0)
    scale = np.ones(SIZE, np.float32)
    scale[::2] = 0.01
    p = np.zeros(SIZE, np.float32)
    opt = adaptk.Adam([p], lr=1e-3, state_dtype=state_dtype, seed=0)
    found = []
    for step in range(1, 2001):
        sign = np.float32(1 if step <= 1000 else -1)
        opt.step([scale * (sign + rng.standard_normal(SIZE, dtype=np.float32))])
        found.append(p[::2].mean())
    return np.array(found)


figure, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
for (label, state_dtype), style in zip(
    {
        "float32": "float32",
        "8bit": "8bit",
        "bfloat16, second moments 8bit": {"exp_avg": "bfloat16", "exp_avg_sq": "8bit"},
        "bfloat16_sr": "bfloat16_sr",
    }.items(),
    ("-", "--", ":", "-."),
    strict=True,
):
    moved = path(state_dtype)
    ax.plot(moved, style, label=label, lw=2)
    print(
        f"{label}: {moved[999]:.2f}, and {moved[-1] - moved[999]:+.2f} after the change of sign"
    )
ax.set(xlabel="step", ylabel="mean of params with small gradients")
ax.legend()
plt.show()

# %%
# In 8 bits, the moments of small gradients are lost among large ones. Their params move less
# far: after the change of sign, a quarter as far. So store first moments in 16 bits if
# gradients within a tensor differ much in size.
#
# Whether this matters depends on the gradients. Below, a network with one hidden layer learns
# digits, with five seeds for each format. ``min_8bit_size=0`` stores small tensors in 8 bits
# too.

table = np.loadtxt(files("adaptk") / "data" / "digits.csv.gz", delimiter=",")
np.random.default_rng(0).shuffle(table)
images, labels = (table[:, :64] / 16).astype(np.float32), table[:, 64].astype(int)
test_x, test_y, train_x, train_y = (
    images[:600],
    labels[:600],
    images[600:],
    labels[600:],
)


def forward(p, x):
    hidden = np.tanh(x @ p["w1"] + p["b1"])
    z = hidden @ p["w2"] + p["b2"]
    z = z - z.max(axis=1, keepdims=True)
    return hidden, z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def loss(p, x, y):
    return -forward(p, x)[1][np.arange(len(y)), y].mean()


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


EPOCHS, BATCH = 30, 32


def train(state_dtype, seed):
    """The losses on training and test digits after each epoch, and the median second moment."""
    w1, w2 = np.empty((64, 128), np.float32), np.empty((128, 10), np.float32)
    p = {
        "w1": init.glorot_uniform(w1, seed=2 * seed),
        "b1": np.zeros(128, np.float32),
        "w2": init.glorot_uniform(w2, seed=2 * seed + 1),
        "b2": np.zeros(10, np.float32),
    }
    opt = adaptk.Adam(p, lr=2e-3, state_dtype=state_dtype, min_8bit_size=0, seed=seed)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(EPOCHS):
        order = rng.permutation(len(train_y))
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            opt.step(gradient(p, train_x[batch], train_y[batch]))
        found.append((loss(p, train_x, train_y), loss(p, test_x, test_y)))
    return np.array(found), np.median(numbers(opt.state["w1"]["exp_avg_sq"]))


choices = {"float32": "-", **STYLES}
del choices["bfloat16"]
runs, moments = {}, {}
for name in choices:
    results = [train(name, seed) for seed in range(5)]
    runs[name] = np.array([losses for losses, _ in results])
    moments[name] = np.sqrt([median for _, median in results])
    ratio = (moments[name] / moments["float32"]).mean()
    print(f"{name}: median root of a second moment {ratio:.2f} times float32's")
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.6), sharey=True, layout="constrained")
for i, (ax, data) in enumerate(zip(axes, ("training", "test"), strict=True)):
    for name, style in choices.items():
        mean, spread = runs[name][:, :, i].mean(axis=0), runs[name][:, :, i].std(axis=0)
        epochs = np.arange(1, EPOCHS + 1)
        (line,) = ax.plot(epochs, mean, style, label=name)
        ax.fill_between(
            epochs,
            mean - spread,
            mean + spread,
            color=line.get_color(),
            alpha=0.15,
            lw=0,
        )
        print(f"{data}, {name}: {mean[-1]:.4f} (standard deviation {spread[-1]:.4f})")
    ax.set(title=f"{data} digits", xlabel="epoch", yscale="log")
axes[0].set(ylabel="loss")
axes[0].legend()
plt.show()

# %%
# Here it does not matter: training is alike with all four formats. States that are rounded to
# nearest even reach a lower loss on the training digits: their second moments also stop on the
# way up and stay too small, so steps become longer.
#
# The final loss of a short run does not tell good formats from bad ones. Gradients whose size
# changes, as in the first two figures, do.
