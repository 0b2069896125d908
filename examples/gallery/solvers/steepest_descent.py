r"""
Steepest descent beside conjugate gradients
===========================================

Steepest descent with an exact line search turns by a right angle at every step, because
the new gradient is orthogonal to the last search direction. So in a valley it zig-zags, and
each step undoes part of the progress of the last one (Figure 8.6 of the Deep Learning book).

Conjugate gradients (Hestenes and Stiefel 1952; section 8.6.2) choose directions with
:math:`d_t^\mathsf{T} H d_{t-1} = 0`. Along these, no step undoes earlier progress, and a
quadratic needs one step for each dimension.
"""

import matplotlib.pyplot as plt
import numpy as np
from adaptk import solve

plt.style.use("petroff10")

# The curvature is five times as large in one direction as in the other.
hessian = np.array([[3.0, 2.0], [2.0, 3.0]])
start = np.array([10.0, -5.0])


def value(x):
    return x @ hessian @ x / 2


def gradient(x):
    return hessian @ x


# %%
# The solver calls ``callback`` with the point after each iteration.

zigzag = [start]
solve.steepest_descent(
    value, start, jac=gradient, line_search="exact", gtol=1e-3, callback=zigzag.append
)
conjugate = [start]
solve.cg(hessian, np.zeros(2), x0=start, atol=1e-9, callback=conjugate.append)

# %%
# Both paths are for the same quadratic, start and line search.

figure, axes = plt.subplots(1, 2, figsize=(7.5, 4.3), sharey=True, layout="constrained")
x, y = np.meshgrid(np.linspace(-12, 12, 201), np.linspace(-12, 12, 201))
z = (3 * x**2 + 4 * x * y + 3 * y**2) / 2
paths = {"steepest descent": zigzag, "conjugate gradients": conjugate}
for i, (ax, (name, points)) in enumerate(zip(axes, paths.items(), strict=True)):
    levels = np.geomspace(1, 700, 12)
    ax.contour(x, y, z, levels=levels, colors="0.8", linewidths=0.8)
    ax.plot(*np.array(points).T, "o-", color=f"C{2 * i}", ms=4)
    ax.plot(*start, "k*", ms=12)
    ax.set(title=f"{name}: {len(points) - 1} steps", aspect="equal", xlabel="x")
axes[0].set_ylabel("y")
plt.show()

# %%
# The difference grows with the condition number. ``conjugate_gradient`` uses a line search, so
# it also works for functions that are not quadratic. The figure shows the mean number of
# iterations for ten random quadratics in 50 dimensions.

rng = np.random.default_rng(0)
conditions = np.geomspace(2, 2000, 7)


def iterations(solver, condition, **options):
    counts = []
    for _ in range(10):
        axes, _ = np.linalg.qr(rng.standard_normal((50, 50)))
        h = axes * np.geomspace(1, condition, 50) @ axes.T
        x0 = rng.standard_normal(50)
        run = solver(
            lambda x, h=h: x @ h @ x / 2,
            x0,
            jac=lambda x, h=h: h @ x,
            gtol=1e-6,
            maxiter=20000,
            **options,
        )
        counts.append(run.nit)
    return np.mean(counts)


figure, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
for name, style, solver, options in (
    ("steepest descent", "o-", solve.steepest_descent, {"line_search": "exact"}),
    (
        "Barzilai and Borwein's steps",
        "^-.",
        solve.steepest_descent,
        {"line_search": "bb"},
    ),
    ("conjugate gradients", "s--", solve.conjugate_gradient, {}),
):
    ax.loglog(
        conditions,
        [iterations(solver, c, **options) for c in conditions],
        style,
        label=name,
    )
ax.set(xlabel="condition number of the Hessian", ylabel="iterations")
ax.legend(loc="upper left")
plt.show()
