r"""
Every rule on four surfaces
===========================

For a function of two variables, the path of a rule can be drawn. Four classic surfaces show
the strengths and weaknesses of the rules:

- a **saddle** between two minima;
- a **ravine** that lies across the axes;
- Rosenbrock's bent **valley** (Rosenbrock 1960);
- Beale's **plateau** with steep walls (Beale 1958).

All rules start at the same point. Each has the learning rate that suits it best on the
surface, out of ten from :math:`10^{-4}` to 3. Of the rates whose path stays in the picture,
this is the one with the lowest mean logarithm of the height above the minimum. The other
hyperparameters have their defaults, except for the growth of delta-bar-delta's rates.
"""

from contextlib import nullcontext

import adaptk
import matplotlib.pyplot as plt
import numpy as np

plt.style.use("petroff10")
STEPS = 150
# sphinx_gallery_thumbnail_number = 3

# %%
# Each surface has a function, its gradient, a start, the lowest value and the range to draw.


class Saddle:
    start, lowest, view = (1.3, 0.01), -1.0, (-1.6, 1.6, -2.0, 2.0)

    def value(self, x, y):
        return x**2 - y**2 + y**4 / 4

    def gradient(self, x, y):
        return np.array([2 * x, y**3 - 2 * y])


class Ravine:
    start, lowest, view = (-2.6, 0.6), 0.0, (-4.2, 2.6, -3.6, 3.2)

    def value(self, x, y):
        along, across = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
        return (along**2 + 40 * across**2) / 2

    def gradient(self, x, y):
        return np.array([20.5 * x - 19.5 * y, 20.5 * y - 19.5 * x])


class Rosenbrock:
    start, lowest, view = (-1.2, 1.0), 0.0, (-1.8, 1.8, -0.7, 2.2)

    def value(self, x, y):
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2

    def gradient(self, x, y):
        return np.array([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])


class Beale:
    start, lowest, view = (0.6, 1.4), 0.0, (-0.5, 4.2, -1.2, 2.0)
    terms = (1.5, 1), (2.25, 2), (2.625, 3)

    def value(self, x, y):
        return sum((c - x + x * y**k) ** 2 for c, k in self.terms)

    def gradient(self, x, y):
        residuals = [
            (c - x + x * y**k, y**k - 1, k * x * y ** (k - 1)) for c, k in self.terms
        ]
        return 2 * np.array(
            [
                sum(r * dx for r, dx, _ in residuals),
                sum(r * dy for r, _, dy in residuals),
            ]
        )


# %%
# One optimizer runs all rates at once: each rate has a parameter group, whose parameter is a
# row of one array. RMSProp with Nesterov momentum (Algorithm 8.6 of the Deep Learning book)
# needs the gradient at an interim point, to which ``lookahead`` moves the parameters.

RATES = 10 ** np.linspace(-4, 0.5, 10)


def paths(surface, name):
    """The points of each rate, of shape (steps + 1, rates, 2)."""
    x = np.tile(surface.start, (len(RATES), 1))
    groups = [{"params": [row], "lr": lr} for row, lr in zip(x, RATES, strict=True)]
    if name == "delta_bar_delta":  # whose rates grow by kappa a step
        groups = [{**group, "kappa": 0.1 * group["lr"]} for group in groups]
    opt = adaptk.optimizer_for(name, groups)
    points = [x.copy()]
    for _ in range(STEPS):
        with opt.lookahead() if name == "rmsprop_nesterov" else nullcontext():
            gradients = np.ascontiguousarray(surface.gradient(*x.T).T)
        opt.step(list(gradients))
        points.append(x.copy())
    return np.array(points)


def best_path(surface, name):
    left, right, bottom, top = surface.view
    with np.errstate(all="ignore"):  # rates that are too large overflow
        points = paths(surface, name)
        x, y = points[..., 0], points[..., 1]
        inside = ((left < x) & (x < right) & (bottom < y) & (y < top)).all(axis=0)
        score = np.mean(np.log(surface.value(x, y) - surface.lowest + 1e-9), axis=0)
    best = np.argmin(np.where(inside, score, np.inf))
    return points[:, best], RATES[best]


# %%
# Each figure has a panel for each of five families of rules. The last panel shows how far above
# the minimum each rule ends (no bar: below 1e-12).

FAMILIES = {
    "Gradient descent": ("sgd", "momentum", "nesterov", "asgd"),
    "A rate for each parameter": ("delta_bar_delta", "rprop", "adagrad", "adadelta"),
    "RMSProp": (
        "rmsprop",
        "rmsprop_centered",
        "rmsprop_momentum",
        "rmsprop_centered_momentum",
        "rmsprop_nesterov",
    ),
    "Adam": ("adam", "amsgrad", "adamw", "adamax", "nadam"),
}
named = {name for family in FAMILIES.values() for name in family}
FAMILIES["After Adam"] = [name for name in adaptk.rules() if name not in named]
COLORS = "C0", "C1", "C2", "C4", "0.1"
STYLES = "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))


def draw(surface):
    figure, axes = plt.subplots(3, 2, figsize=(7.5, 12), layout="constrained")
    *panels, bars = axes.flat
    left, right, bottom, top = surface.view
    grid = np.linspace(left, right, 301), np.linspace(bottom, top, 301)
    height = np.log10(surface.value(*np.meshgrid(*grid)) - surface.lowest + 1e-2)
    shades = {"levels": 14, "cmap": "Greys", "vmin": -2, "vmax": 2 * height.max() + 2}
    ends = {}
    for ax, (family, names) in zip(panels, FAMILIES.items(), strict=True):
        ax.contourf(*grid, height, **shades)
        for i, name in enumerate(names):
            points, lr = best_path(surface, name)
            color, style = COLORS[i % 5], STYLES[i % 5]
            ax.plot(*points.T, lw=1.7, color=color, ls=style, label=f"{name}, {lr:.1g}")
            ax.plot(*points[-1], "o", ms=7, color=color, mec="white")
            ends[name] = surface.value(*points[-1]) - surface.lowest, color
        ax.plot(*surface.start, "k*", ms=11)
        ax.set(
            title=family, xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[]
        )
        below = {"loc": "upper left", "bbox_to_anchor": (0, 0)}
        ax.legend(**below, fontsize=8.5, frameon=False, labelspacing=0.2)
    heights, colors = zip(*ends.values(), strict=True)
    bars.barh(list(ends), np.maximum(heights, 1e-12), color=colors)
    bars.set(xscale="log", xlim=(1e-12, None), title=f"height after {STEPS} steps")
    bars.yaxis.tick_right()
    bars.tick_params(axis="y", labelsize=7, length=0)
    bars.invert_yaxis()
    name = type(surface).__name__
    figure.suptitle(f"{name}: from the star, with rule and rate in the legends")
    plt.show()


# %%
# **Saddle.** The slope away from the saddle is 130 times as small as the slope towards it.
# To rules that divide each coordinate by the size of its gradient, both slopes are the same:
# they leave along the diagonal at once. Gradient descent first goes to the saddle, and is slow
# there.

draw(Saddle())

# %%
# **Ravine.** The steep direction lies between the axes, so a rate for each coordinate helps
# less.

draw(Ravine())

# %%
# **Rosenbrock's valley** bends, so an average of slopes at one place is wrong at the next.

draw(Rosenbrock())

# %%
# **Beale's function** is flat around its minimum at (3, 0.5) and steep at the corners. The
# rates that suit the plateau are too large for the walls.

draw(Beale())
