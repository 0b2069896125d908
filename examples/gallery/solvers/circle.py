r"""
A circle through points
=======================

The best circle through points minimises the sum of their squared distances from it,
:math:`r_i = \sqrt{(x_i - a)^2 + (y_i - b)^2} - R`. A circle is not a curve
:math:`y = f(x)`, so the residuals are passed to :func:`adaptk.solve.levenberg_marquardt`.
The start is Kåsa's circle (1976). It follows from a linear problem in :math:`a`, :math:`b`
and :math:`R^2 - a^2 - b^2`, and is too small if the points are on a short arc.
"""

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

# %%
# The data are forty points near an arc of 70 degrees.

rng = np.random.default_rng(1)
truth = np.array([1.0, -2.0, 5.0])
angle = rng.uniform(np.radians(50), np.radians(120), 40)
distance = truth[2] + rng.normal(scale=0.12, size=angle.size)
x, y = truth[0] + distance * np.cos(angle), truth[1] + distance * np.sin(angle)


def residuals(p):
    return np.hypot(x - p[0], y - p[1]) - p[2]


def jacobian(p):
    length = np.hypot(x - p[0], y - p[1])
    return np.column_stack([(p[0] - x) / length, (p[1] - y) / length, -np.ones_like(x)])


# %%
# First Kåsa's circle is computed, then the nearest one.

columns = np.column_stack([2 * x, 2 * y, np.ones_like(x)])
a, b, c = np.linalg.lstsq(columns, x**2 + y**2, rcond=None)[0]
start = np.array([a, b, np.sqrt(c + a**2 + b**2)])
fit = solve.levenberg_marquardt(residuals, start, jac=jacobian)
print("Kåsa    ", start.round(3))
print("nearest ", fit.x.round(3), "+-", fit.x_std.round(3))

# %%
# A short arc says little about how far away the centre is: the covariance of its coordinates
# is an ellipse that is elongated towards the arc. The figure shows the ellipse that contains
# 95% of a normal distribution.

values, vectors = np.linalg.eigh(fit.cov[:2, :2])
turn = np.linspace(0, 2 * np.pi, 200)
circle = np.stack([np.cos(turn), np.sin(turn)])
ellipse = fit.x[:2, None] + vectors @ (np.sqrt(5.991 * values)[:, None] * circle)

figure, ax = plt.subplots(figsize=(5.5, 5.5), layout="constrained")
ax.plot(x, y, "o", color="0.3", ms=4, label="points")
for name, p, style in (
    ("Kåsa", start, "--"),
    ("nearest", fit.x, "-"),
    ("truth", truth, ":"),
):
    (line,) = ax.plot(*(p[:2, None] + p[2] * circle), style, label=name)
    ax.plot(*p[:2], "+", color=line.get_color(), ms=9)
ax.fill(*ellipse, color="C2", alpha=0.3, lw=0, label="95% of the centre")
ax.set(aspect="equal", xlabel="x", ylabel="y")
ax.legend(loc="lower left")
plt.show()
