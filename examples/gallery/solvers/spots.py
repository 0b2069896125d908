r"""
Ten thousand spots in one call
==============================

Localisation microscopy, star catalogues and particle tracking fit the same small model to
many thousands of small images. :func:`adaptk.solve.levenberg_marquardt_batch` does this in one
call. It solves one problem in each lane of the vector registers, and the result of a problem
does not depend on the others. Some models and their derivatives are built in. You can also
pass a function.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

# %%
# The data are ten thousand images of 11 by 11 pixels. Each has a Gaussian spot on a
# background, with the noise of counted photons.

rng = np.random.default_rng(0)
count, size = 10_000, 11
centre = rng.uniform(4, 6, size=(count, 2))
brightness = rng.uniform(20, 200, size=count)
rows, columns = np.mgrid[:size, :size]
squares = (columns - centre[:, 0, None, None]) ** 2
squares += (rows - centre[:, 1, None, None]) ** 2
images = rng.poisson(10 + brightness[:, None, None] * np.exp(-squares / (2 * 1.3**2)))

# %%
# The start is rough: the spot is in the middle of the image, and its height is the difference
# of the brightest and the darkest pixel. Counts have a Poisson distribution, for which
# ``loss="poisson"`` finds the most likely parameters.

flat = images.reshape(count, -1)
start = np.column_stack(
    [
        np.ptp(flat, axis=1),
        np.full(count, 5.0),
        np.full(count, 5.0),
        np.full(count, 1.5),
        flat.min(axis=1),
    ]
)
began = time.perf_counter()
fits = solve.levenberg_marquardt_batch(
    "gaussian_2d",
    start,
    images,
    loss="poisson",
    covariance=True,
)
seconds = time.perf_counter() - began
print(
    f"{fits.success.sum()} of {count} fits converged, {1e6 * seconds / count:.0f} us each"
)

# %%
# ``x_std`` has the standard deviations of the parameters, from the Fisher information. If
# errors had a normal distribution, 95.4% of them would be within two standard deviations.

error = fits.x[:, 1] - centre[:, 0]
figure, axes = plt.subplot_mosaic(
    [["a", "b", "c", "scatter"], ["d", "e", "f", "scatter"]],
    figsize=(7.5, 3.6),
    width_ratios=(1, 1, 1, 3),
    layout="constrained",
)
for key, i in zip("abcdef", np.argsort(brightness)[:: count // 6], strict=False):
    axes[key].imshow(images[i], cmap="gray")
    axes[key].plot(*fits.x[i, 1:3], "x", color="C1", ms=9, mew=2)
    axes[key].set(xticks=[], yticks=[])
    axes[key].set_title(f"a = {fits.x[i, 0]:.0f}", fontsize=9)
ax = axes["scatter"]
ax.plot(brightness, error, ".", color="C0", ms=1, alpha=0.5, label="fitted - true x")
order = np.argsort(brightness)
window = np.ones(500) / 500
stated = np.convolve(fits.x_std[order, 1], window, mode="valid")
middle = np.convolve(brightness[order], window, mode="valid")
for sign in (-2, 2):
    label = "two standard deviations" if sign > 0 else None
    ax.plot(middle, sign * stated, color="C2", label=label)
inside = np.mean(np.abs(error) < 2 * fits.x_std[:, 1])
ax.set(
    xlabel="brightness (photons at the peak)", ylabel="error (pixels)", ylim=(-0.5, 0.5)
)
ax.set_title(
    f"{inside:.1%} of the errors are within two standard deviations", fontsize=10
)
ax.legend(loc="lower right")
plt.show()
