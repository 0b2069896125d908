r"""
Intervals by profile likelihood
===============================

Confidence intervals from the covariance hold for a model that is linearised at the solution.
If the data determine a parameter poorly, they can be far off. :meth:`Fit.conf_interval
<adaptk.solve.Fit.conf_interval>` moves one parameter and fits the others again, until the sum
of squares has risen as far as the confidence level allows (Bates and Watts 1988, chapter 6).

The data are Marske's: the biochemical oxygen demand of a sample after one to seven days.
"""

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

days = np.array([1.0, 2, 3, 4, 5, 7])
demand = np.array([8.3, 10.3, 19.0, 16.0, 15.6, 19.8])


def model(t, limit, rate):
    return limit * (1 - np.exp(-rate * t))


fit = solve.curve_fit(model, days, demand, [20.0, 0.5])
print(fit)

# %%
# Compare both kinds of intervals. The limit of the demand may be far above the six
# measurements, which the linearised model does not show.

for name, linear, profiled in zip(
    fit.names, fit.confidence_intervals(0.95), fit.conf_interval(0.95), strict=True
):
    print(f"{name:6} covariance {linear.round(2)}  profile {profiled.round(2)}")

# %%
# On the left is the profile :math:`\tau`, which is a straight line for a linear model. On the
# right are the fits at both ends of the interval: each is the best fit with that limit.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
one = fit.profile("limit", 0.95)
left.plot(one.value, one.tau, label="profile")
left.plot(
    one.value,
    (one.value - fit.popt[0]) / fit.x_std[0],
    "--",
    color="C2",
    label="linear model",
)
for level in (-2.776, 2.776):
    left.axhline(level, color="0.6", lw=1)
left.set(xlabel="limit", ylabel=r"$\tau$", ylim=(-4, 8))
left.legend(frameon=False)

t = np.linspace(0, 12, 200)
right.plot(days, demand, "o", color="0.2", label="data")
right.plot(t, model(t, *fit.popt), label="fit")
for end, style in zip((one.x[0], one.x[-1]), ("--", ":"), strict=True):
    right.plot(t, model(t, *end), style, color="C1", label=f"limit {end[0]:.1f}")
right.set(xlabel="days", ylabel="oxygen demand")
right.legend(frameon=False)
plt.show()
