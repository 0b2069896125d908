r"""
Newton's method at a saddle
===========================

Newton's method steps to the stationary point of the local quadratic model
(Deep Learning book, equation 8.27; Algorithm 8.8):

.. math:: \theta^* = \theta_0 - H^{-1} \nabla_\theta J(\theta_0) .

Near a saddle, this point is near the saddle. Regularisation adds a multiple of the identity
to the Hessian (equation 8.28). The sum is positive definite if :math:`\alpha` outweighs the
most negative eigenvalue:

.. math:: \theta^* = \theta_0 - (H + \alpha I)^{-1} \nabla_\theta J(\theta_0) .
"""

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

# %%
# The function has a saddle at the origin, between minima at (0, 1) and (0, -1).


def value(p):
    x, y = p
    return x**2 / 2 + y**4 / 4 - y**2 / 2


def gradient(p):
    x, y = p
    return np.array([x, y**3 - y])


def hessian(p):
    return np.array([[1.0, 0.0], [0.0, 3 * p[1] ** 2 - 1]])


# %%
# First equation 8.27 is computed by hand. Then the solver is called with each kind of damping:
#
# - ``None`` takes full steps. It ends with an error status here, because the Hessian is not
#   positive definite.
# - ``"levenberg"`` adapts the :math:`\alpha` of 8.28.
# - ``"trust-region"``, the default, finds the :math:`\alpha` whose step has a given length
#   (Moré and Sorensen 1983), and tells a saddle from a minimum by the smallest eigenvalue.

start = np.array([1.6, 0.3])
p = start.copy()
paths = {"8.27, by hand": [start]}
for _ in range(6):
    p = p - np.linalg.solve(hessian(p), gradient(p))
    paths["8.27, by hand"].append(p)
print(f"8.27, by hand: ends at {p.round(6)}, a saddle")

for damping in (None, "levenberg", "trust-region"):
    points = [start]
    result = solve.newton(
        value,
        start,
        jac=gradient,
        hess=hessian,
        damping=damping,
        callback=points.append,
    )
    print(f"damping={damping!r}: status {result.status}, {result.nit} iterations,")
    print(f"    x = {result.x.round(6)}, {result.message}")
    if damping:
        paths[f'damping="{damping}"'] = points

# %%
# The undamped path ends at the saddle after a few steps. The damped ones end in a minimum.

figure, ax = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
x, y = np.meshgrid(np.linspace(-1, 2, 301), np.linspace(-1.5, 2, 301))
z = value((x, y))
filled = ax.contourf(x, y, z, levels=20, cmap="Greys", alpha=0.55)
figure.colorbar(filled, label="value")
for marker, (name, points) in zip("s^o", paths.items(), strict=True):
    ax.plot(*np.array(points).T, f"{marker}-", ms=6, label=name)
ax.plot(0, 0, "kx", ms=10, mew=2)
ax.annotate("saddle", (0, 0), (-0.12, -0.02), ha="right", va="center")
for minimum in (1, -1):
    ax.plot(0, minimum, "k+", ms=12, mew=2)
    ax.annotate("minimum", (0, minimum), (-0.12, minimum), ha="right", va="center")
ax.set(xlabel="x", ylabel="y")
ax.legend(loc="lower right")
plt.show()
