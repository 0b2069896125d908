r"""
Peaks on a background
=====================

A spectrum is a sum of peaks on a background. Often something is known about the peaks: lines
of one element have a known distance, and peaks from one instrument have the same width. With
:func:`adaptk.solve.curve_fit`, parameters can be fixed, or tied to others. Only the free
parameters are then fitted, and the standard deviations of tied ones follow by propagation.
"""

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

# %%
# The data are counts: three peaks on a background that falls exponentially. The second and
# third peak overlap.

rng = np.random.default_rng(5)
x = np.linspace(0, 10, 200)


def spectrum(x, a1, c1, a2, c2, a3, c3, width, b, fall):
    background = b * np.exp(-x / fall)
    peaks = zip((a1, a2, a3), (c1, c2, c3), strict=True)
    return background + sum(a * np.exp(-0.5 * ((x - c) / width) ** 2) for a, c in peaks)


truth = [60, 2.5, 90, 6.0, 50, 7.0, 0.45, 100, 4]
counts = rng.poisson(spectrum(x, *truth))
sigma = np.sqrt(np.maximum(counts, 1))
start = [50, 2.4, 80, 5.8, 40, 7.2, 0.5, 80, 5]

# %%
# The first fit has all parameters free. The second uses the distance of the second and third
# peak and the ratio of their heights, as if these were known from another source.

options = {"sigma": sigma, "absolute_sigma": True}
free = solve.curve_fit(spectrum, x, counts, start, **options)
tied = solve.curve_fit(
    spectrum,
    x,
    counts,
    start,
    ties={"c3": lambda c2: c2 + 1, "a3": lambda a2: a2 * 5 / 9},
    **options,
)
print(tied)
gain = free.x_std / tied.x_std
for name, factor in zip(free.names, gain, strict=True):
    print(f"{name:5} known {factor:.2f} times as well with the ties")

# %%
# The upper figure shows each peak above the background, and the lower one the residuals.

figure, (ax, below) = plt.subplots(
    2, 1, figsize=(7.5, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained"
)
p = dict(zip(tied.names, tied.popt, strict=True))
background = p["b"] * np.exp(-x / p["fall"])
ax.plot(x, counts, ".", color="0.5", label="counts")
ax.plot(x, background, "--", color="C1", label="background")
for k in "123":
    one = p | {f"a{j}": 0 for j in "123" if j != k}
    ax.fill_between(x, background, spectrum(x, **one), alpha=0.4, lw=0)
ax.plot(x, spectrum(x, *tied.popt), color="C0", label="fit")
ax.set(ylabel="counts")
ax.legend()
below.axhline(0, color="0.6", lw=1)
below.plot(x, (counts - spectrum(x, *tied.popt)) / sigma, ".", color="0.3")
below.set(xlabel="energy", ylabel="(data - fit)/sigma")
plt.show()
