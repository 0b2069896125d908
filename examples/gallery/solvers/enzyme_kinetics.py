r"""
Enzyme kinetics
===============

The rate of a reaction after Michaelis and Menten is :math:`v = V c/(K + c)`. Plotted as
:math:`1/v` over :math:`1/c` it is a straight line, and has long been fitted as one
(Lineweaver and Burk 1934). But in such a fit the smallest rates, which have the largest
relative errors, have the largest weight. :func:`adaptk.solve.curve_fit` fits the curve
itself.
"""

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

# %%
# The rate is measured twice for each of eight concentrations, always with the same error.

rng = np.random.default_rng(4)
concentration = np.repeat([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8], 2)


def rate(c, V, K):
    return V * c / (K + c)


truth = 2.0, 0.9
measured = rate(concentration, *truth) + rng.normal(scale=0.05, size=concentration.size)

# %%
# The fit prints the parameters with their standard deviations and intervals.

fit = solve.curve_fit(rate, concentration, measured, p0=[1, 1])
print(fit)

# %%
# For comparison, fit the line in the reciprocals to the same data. Its slope is K/V, and its
# intercept is 1/V.

slope, start = np.polyfit(1 / concentration, 1 / measured, 1)
line = 1 / start, slope / start
print(f"by the line: V = {line[0]:.3f}, K = {line[1]:.3f}")

# %%
# Now repeat both estimates for a thousand experiments. ``levenberg_marquardt_batch`` fits all
# curves in one call. It calls the model only once, with objects that record the operations on
# them.

noise = rng.normal(scale=0.05, size=(1000, concentration.size))
many = np.maximum(rate(concentration, *truth) + noise, 0.01)
batch = solve.levenberg_marquardt_batch(
    rate, [1.0, 1.0], many, coordinates=concentration
)
lines = np.polyfit(1 / concentration, 1 / many.T, 1)
by_line = lines[0] / lines[1]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
grid = np.linspace(0, 13, 300)
low, high = fit.predict(grid, 0.95)[1:]
left.fill_between(grid, low, high, color="C0", alpha=0.3, lw=0, label="95%")
left.plot(grid, rate(grid, *fit.popt), color="C0", label="curve")
left.plot(grid, rate(grid, *line), "--", color="C1", label="line in the reciprocals")
left.plot(concentration, measured, "o", color="0.2", ms=4)
left.set(xlabel="concentration", ylabel="rate", ylim=(0, 2.4))
left.legend(loc="lower right")
bins = np.linspace(0.4, 1.6, 61)
right.hist(batch.x[:, 1], bins, color="C0", alpha=0.7, label="curve")
right.hist(by_line, bins, color="C1", alpha=0.6, label="line in the reciprocals")
right.axvline(truth[1], color="0.2", ls=":", label="truth")
right.set(xlabel="K, of a thousand experiments", ylabel="experiments")
right.legend()
plt.show()
