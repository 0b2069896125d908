"""Curves of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptk.solve._result import Result

_TITLES = {
    "fun": "f above its lowest value",
    "gradient": "largest element of the gradient",
    "step": "length of the step",
}


def plot(result: Result | Mapping[str, Result] | Sequence[Result], axes: Any = None) -> Any:
    """Plot the history of a run: value, gradient and step over the iterations.

    Parameters
    ----------
    result : Result, or several in a dict by name or in a sequence
        Results of solvers that were called with ``history=True``.
    axes : sequence of three matplotlib Axes, optional
        Where to draw. A new figure of pyplot by default, which `matplotlib.pyplot.show` and `savefig` know.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If a result has no history.

    Examples
    --------
    >>> import adaptk
    >>> r = adaptk.solve.cg([[2.0, 0.0], [0.0, 5.0]], [1.0, 1.0], history=True)
    >>> figure = adaptk.solve.plot(r)  # doctest: +SKIP
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("plot needs matplotlib, which is not installed: pip install matplotlib") from None
    named: dict[str, Result]
    if isinstance(result, Mapping) and "history" not in result and "x" not in result:
        named = dict(result)
    elif isinstance(result, Mapping):
        named = {"": result}  # type: ignore[dict-item]
    else:
        named = {str(i): r for i, r in enumerate(result)}
    for name, r in named.items():
        if "history" not in r:
            raise ValueError(f"result{f' {name!r}' if name else ''}: has no history; call the solver with history=True")
    if axes is None:
        figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    else:
        figure = axes[0].figure
    lowest = min((float(np.nanmin(r["history"]["fun"])) for r in named.values()), default=0.0)
    for ax, (what, title) in zip(axes, _TITLES.items(), strict=True):
        for name, r in named.items():
            values = np.array(r["history"][what])
            if what == "fun":
                values = values - lowest
            # A logarithmic axis cannot show 0.
            values[~(values > 0)] = np.nan
            ax.plot(np.arange(len(values)), values, marker=".", markersize=4, linewidth=1.2, label=name or None)
        if any(np.isfinite(line.get_ydata()).any() for line in ax.lines):
            ax.set_yscale("log")
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel("iteration")
        ax.grid(True, color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
    if any(named):
        axes[0].legend(frameon=False)
    return figure
