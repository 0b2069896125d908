r"""
A decay with outliers
=====================

In a least-squares fit, a few outliers can pull the curve far away. With a robust loss
:math:`\rho`, large residuals have less weight: the solver minimises
:math:`\tfrac12\sum_i C^2\rho(r_i^2/C^2)`. For residuals below the scale :math:`C`, this is
half the sum of squares (Huber 1964).
"""

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

# %%
# The data are an exponential decay with noise of 0.05. An eighth of the points are outliers,
# all on the same side.

rng = np.random.default_rng(2)
t = np.linspace(0, 6, 80)


def decay(t, amplitude, rate, offset):
    return amplitude * np.exp(-rate * t) + offset


truth = np.array([2.0, 0.9, 0.3])
data = decay(t, *truth) + rng.normal(scale=0.05, size=t.size)
wild = rng.choice(t.size, 10, replace=False)
data[wild] += rng.uniform(0.5, 2, wild.size)

# %%
# ``f_scale="mad"`` computes the scale from the median of the absolute residuals, on which
# outliers have little influence. The losses differ in how strongly residuals far above C still
# pull the curve:
#
# - ``"huber"``: as strongly as residuals of size C;
# - ``"cauchy"``: less and less with the distance;
# - ``"tukey"``: not at all.

losses = "linear", "huber", "cauchy", "tukey"
fits = {}
for loss in losses:
    scale = {} if loss == "linear" else {"f_scale": "mad"}
    start = [1, 1, 0] if loss == "linear" else fits["linear"].popt
    fits[loss] = solve.curve_fit(decay, t, data, p0=start, loss=loss, **scale)
    values = ", ".join(
        f"{value:.3f} +- {error:.3f}"
        for value, error in zip(fits[loss].popt, fits[loss].x_std, strict=True)
    )
    print(f"{loss:7} {values}")

# %%
# The standard deviations of the robust fits are from the sandwich covariance, so outliers do
# not make them larger.

figure, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
clean = np.setdiff1d(np.arange(t.size), wild)
ax.plot(t[clean], data[clean], "o", color="0.3", ms=4, label="data")
ax.plot(t[wild], data[wild], "x", color="C3", ms=7, label="outliers")
for loss, style in zip(losses, ("--", "-", "-", "-"), strict=True):
    ax.plot(t, decay(t, *fits[loss].popt), style, label=loss)
ax.plot(t, decay(t, *truth), ":", color="0.1", label="truth")
ax.set(xlabel="time", ylabel="signal")
ax.legend(ncols=2)
plt.show()
