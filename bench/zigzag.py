"""Figure 8.6 of the Deep Learning book: the zig-zag of steepest descent, and conjugate gradients.

``python bench/zigzag.py`` writes ``bench/zigzag.png``. The function is a quadratic whose curvature is five times as
large in one direction as in the other; both start at (10, -5) and search each line exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from adaptk import solve
from matplotlib.figure import Figure

HESSIAN = np.array([[3.0, 2.0], [2.0, 3.0]])
START = np.array([10.0, -5.0])


def value(x: Any) -> float:
    return float(x @ HESSIAN @ x) / 2


def gradient(x: Any) -> Any:
    return HESSIAN @ x


def main() -> None:
    paths: dict[str, list[Any]] = {"steepest descent": [START], "conjugate gradients": [START]}
    solve.steepest_descent(
        value, START, jac=gradient, line_search="exact", gtol=1e-3, callback=paths["steepest descent"].append
    )
    solve.cg(HESSIAN, np.zeros(2), x0=START, atol=1e-9, callback=paths["conjugate gradients"].append)
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained")
    grid = np.linspace(-12, 12, 201)
    x, y = np.meshgrid(grid, grid)
    z = (HESSIAN[0, 0] * x * x + 2 * HESSIAN[0, 1] * x * y + HESSIAN[1, 1] * y * y) / 2
    for ax, (name, path) in zip(figure.subplots(1, 2, sharey=True), paths.items(), strict=True):
        ax.contour(x, y, z, levels=np.geomspace(1, 700, 12), colors="0.8", linewidths=0.8)
        points = np.array(path)
        ax.plot(*points.T, color="#D55E00", marker="o", markersize=3, linewidth=1.4)
        ax.set_title(f"{name}: {len(path) - 1} steps", fontsize=11, loc="left")
        ax.set_aspect("equal")
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("zigzag.png"))


if __name__ == "__main__":
    main()
