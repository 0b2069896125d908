"""The picture of ``bench --readme``: adaptk beside torch, JAX and others, from the results of the block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptk._cli._figures import TORCH_BEST, Raw, armadillo_ratios, number, raw_results, speedup, torch_results
from adaptk._cli._parser import CommandError

INK, FAINT, PAPER = "#24292f", "#6e7781", "#ffffff"
# The palette of Okabe and Ito, for all kinds of colour vision.
COLOURS = {
    "torch": "#D55E00",
    "optax": "#0072B2",
    "DeepSpeed": "#56B4E9",
    "Armadillo": "#009E73",
    "SciPy": "#CC79A7",
    "C++": "#E69F00",
}


@dataclass(frozen=True)
class Bar:
    """One other library at one task: its time over adaptk's."""

    peer: str
    how: str
    ratio: float


def _steps(raw: dict[str, Any], rule: str, many: bool) -> Iterator[Bar]:
    """The bars of one rule, on the largest tensor or on the most tensors."""
    found = [r for r in raw["torch"] if r["rule"] == rule and (r["tensors"] > 1) == many]
    record = max(found, key=lambda r: r["tensors"] if many else r["elements"], default=None)
    if record is not None:
        best = min(TORCH_BEST, key=lambda name: speedup(record, (name,)) or math.inf)
        hows = {"fused": "fused=True", "foreach": "foreach=True", "single": "one by one"}
        for name, peer, how in (
            (best, "torch", hows[best]),
            ("deepspeed", "DeepSpeed", "CPU kernel"),
            ("optax", "optax", "jax.jit, donated"),
        ):
            ratio = speedup(record, (name,))
            if ratio is not None:
                yield Bar(peer, how, ratio)
    if not many and "cpp" in raw:
        size = max(raw["cpp"]["results"], key=lambda r: r["seconds"]["adaptk"])["size"]
        ratio = armadillo_ratios(raw["cpp"], size).get(rule)
        if ratio is not None:
            yield Bar("Armadillo", "expressions", ratio)
    if many and rule == "adam" and "jax" in raw:
        seconds = raw["jax"]["results"][-1]["seconds"]
        yield Bar("optax", "beside adaptk.jax", seconds["optax"] / seconds["adaptk"])


def tasks(report: Raw) -> dict[str, list[Bar]]:
    """The bars by task, without empty tasks."""
    raw = raw_results(report)
    raw["torch"] = torch_results(report)["steps"]
    large = max((r for r in raw["torch"] if r["tensors"] == 1), key=lambda r: r["elements"], default=None)
    size = large["case"] if large is not None else "many"
    most = max((r["tensors"] for r in raw["torch"]), default=0)
    found = {
        f"Adam, {size} parameters": list(_steps(raw, "adam", False)),
        f"Adam, {most:,} small tensors": list(_steps(raw, "adam", True)),
        f"RMSProp, {size} parameters": list(_steps(raw, "rmsprop", False)),
    }
    if "solve" in raw:
        default = [r["ratio"] for r in raw["solve"]["small"] if r["jacobian"] == "differences"]
        found["Curve fit, 2 parameters"] = [Bar("SciPy", "least_squares(lm)", min(default))]
    if "solve_batch" in raw:
        found["Many small fits"] = [Bar("C++", "plain loop", raw["solve_batch"]["float32"]["scalar C++, -O3"])]
    return {task: bars for task, bars in found.items() if bars}


def plot(report: Raw, path: Path) -> None:
    """Draw a horizontal bar for each library and task, on a logarithmic axis that begins at adaptk's time."""
    groups = tasks(report)
    if not groups:
        raise CommandError("--plot: none of the studies that the picture shows has results")
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    bars = [bar for each in groups.values() for bar in each]
    # A fixed salt, so that the same results give the same file.
    with mpl.rc_context({"svg.hashsalt": "adaptk", "font.family": "sans-serif"}):
        height = 0.27 * (len(bars) + 1.3 * len(groups)) + 0.9
        figure = Figure(figsize=(8, height), dpi=150, layout="constrained", facecolor=PAPER)
        axes = figure.subplots()
        axes.set_facecolor(PAPER)
        axes.set_xscale("log")
        lowest, highest = min(0.9, *(b.ratio for b in bars)), max(2.0, *(b.ratio for b in bars))
        y = 0.0
        labels: list[tuple[float, str]] = []
        for task, each in groups.items():
            labels.append((y, task))
            y += 1.0
            for bar in each:
                axes.barh(y, bar.ratio - 1, left=1, height=0.72, color=COLOURS[bar.peer])
                axes.text(max(bar.ratio, 1.0) * 1.04, y, f"{number(bar.ratio)}x", va="center", fontsize=9.5, color=INK)
                labels.append((y, f"{bar.peer}, {bar.how}"))
                y += 1.0
            y += 0.3
        axes.set_yticks([place for place, _ in labels], [text for _, text in labels], fontsize=9.5, color=INK)
        for text in axes.get_yticklabels():
            if text.get_text() in groups:
                text.set_fontweight("bold")
        axes.set_ylim(y - 0.5, -0.6)
        axes.set_xlim(lowest * 0.95, highest * 1.35)
        axes.axvline(1, color=INK, linewidth=1.2)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(highest)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "adaptk" if x == 1 else f"{x:g}x"))
        axes.tick_params(length=0, labelsize=9.5, labelcolor=INK)
        axes.grid(axis="x", color="#e4e7ea", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        about = report["machine"]
        axes.set_xlabel(
            f"{about['processor']}, {about['threads']} threads, {report['date']}; log scale", fontsize=8.5, color=FAINT
        )
        figure.suptitle(
            "Time that others take for the same, adaptk = 1"
            + (" (a smoke run: means nothing)" if report["quick"] else ""),
            fontsize=12.5,
            fontweight="bold",
            color=INK,
        )
        options: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, facecolor=PAPER, **options)


def _ticks(highest: float) -> Sequence[float]:
    each = (1, 2, 5, 10, 20, 50) if highest < 60 else (1, 10, 100, 1000, 10000)
    return [t for t in each if t <= highest * 1.3]
