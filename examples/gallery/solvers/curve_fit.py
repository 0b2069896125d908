r"""
A curve fit with confidence bands
=================================

:func:`adaptk.solve.levenberg_marquardt` fits a model to data by least squares and returns
the covariance of the parameters, :math:`C = s^2 (J^\mathsf{T} J)^{-1}` with
:math:`s^2 = |r|^2/(m-n)`. To first order, the variance of the fitted curve is

.. math:: \operatorname{var} f(t) = \nabla_p f(t)^\mathsf{T}\, C\; \nabla_p f(t) .

This gives a confidence band around the curve (Seber and Wild 2003, chapter 5).
"""

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

# %%
# The data are forty measurements of a damped oscillation.

rng = np.random.default_rng(3)
t = np.sort(rng.uniform(0, 10, 40))
names = "amplitude", "decay", "frequency", "phase"
truth = np.array([2.0, 0.25, 2.1, 0.4])


def model(p, t):
    amplitude, decay, frequency, phase = p
    return amplitude * np.exp(-decay * t) * np.cos(frequency * t + phase)


data = model(truth, t) + rng.normal(scale=0.15, size=t.size)


def residuals(p):
    return model(p, t) - data


fit = solve.levenberg_marquardt(residuals, [1.0, 0.1, 2.0, 0.0])
print(fit)

# %%
# These are the 95% confidence intervals of the four parameters.

for name, (low, high), true in zip(
    names, fit.confidence_intervals(0.95), truth, strict=True
):
    print(f"{name:10} {low:7.4f} to {high:7.4f}   (true: {true})")

# %%
# The band needs two things:
#
# - the derivatives of the model with respect to the parameters at each point, here computed
#   by central differences;
# - the quantile of Student's t distribution, here computed as half the width of the interval
#   of a parameter, divided by its standard deviation.
#
# The wider band is for a new measurement, and includes the noise of the data.

low, high = fit.confidence_intervals(0.95)[0]
student = (high - low) / (2 * fit.x_std[0])
grid = np.linspace(0, 13, 400)
curve = model(fit.x, grid)
steps = 1e-5 * np.eye(4)
derivatives = np.array(
    [(model(fit.x + h, grid) - model(fit.x - h, grid)) / 2e-5 for h in steps]
)
variance = np.einsum("it,ij,jt->t", derivatives, fit.cov, derivatives)
noise = 2 * fit.cost / fit.dof

figure, (ax, below) = plt.subplots(
    2, 1, figsize=(7.5, 5.5), sharex=True, height_ratios=(3, 1), layout="constrained"
)
for total, label, alpha in (
    (variance + noise, "95% for a new measurement", 0.2),
    (variance, "95% for the curve", 0.5),
):
    half = student * np.sqrt(total)
    ax.fill_between(
        grid, curve - half, curve + half, color="C0", alpha=alpha, lw=0, label=label
    )
ax.plot(grid, curve, color="C0", label="fit")
ax.plot(grid, model(truth, grid), "--", color="C2", label="truth")
ax.plot(t, data, "o", color="0.2", ms=4, label="data")
ax.set(ylabel="signal", ylim=(-2.2, 2.6))
ax.legend(ncols=3, loc="upper right", fontsize=9)
below.axhline(0, color="0.6", lw=1)
below.plot(t, -fit.fun, "o", color="0.2", ms=4)
below.set(xlabel="time", ylabel="data - fit")
plt.show()
