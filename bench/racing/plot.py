"""The plot: speed-up over torch's fastest, the fraction of the ceiling, and whole training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adaptk._bench import size_text

from racing.cases import LOOPS, Record, case_shapes, case_title
from racing.contenders import RACES, eager
from racing.report import fastest, number, threads_text

INK, FAINT, PAPER = "#24292f", "#6e7781", "#fdfdfc"
# The palette of Okabe and Ito, for all kinds of colour vision.
FUSED, UNFUSED, SHARE, NETWORK = "#0072B2", "#D55E00", "#009E73", "#c9ced4"
IN_LOOPS = {"adaptk": "adaptk.torch", "fused": "torch, fused", "single": "torch, default"}
BAR, TEXT = 0.68, 8.5  # bar height relative to its row, and font size in points
ROW, MARGIN = 0.235, 0.75  # inches


def _largest(records: Sequence[Record], case: Callable[[Record], bool]) -> list[Record]:
    """The records of the largest case, with kept gradients and the most threads."""
    chosen = [r for r in records if r["gradients"] == "kept" and case(r) and r["contenders"]]
    most = max(((r["threads"], r["elements"]) for r in chosen), default=None)
    return [r for r in chosen if (r["threads"], r["elements"]) == most]


def _in_loop(record: Record) -> list[str]:
    return [name for name in IN_LOOPS if name in record["contenders"]]


def plot(report: Record, path: str) -> None:
    """Draw a report to a file: bars of steps above, those of training loops below."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    one = _largest(report["steps"], lambda r: r["tensors"] == 1)
    many = _largest(report["steps"], lambda r: r["case"] == "1000x64")
    many = many or _largest(report["steps"], lambda r: r["tensors"] > 1)
    if not one and not many:
        raise SystemExit("torch_race: --plot: no steps were measured")
    rules = list(dict.fromkeys(r["rule"] for r in [*one, *many]))
    most = max(r["threads"] for r in [*one, *many])
    loops = [r for r in report["loops"] if r["contenders"] and r["threads"] == most]
    heights = [ROW * len(rules) + MARGIN]
    if loops:
        heights.append(ROW * sum(len(_in_loop(r)) for r in loops) + MARGIN)
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06)
    figure = Figure(figsize=(8, sum(heights) + 0.75), dpi=200, layout=layout, facecolor=PAPER)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part in parts:
        part.set_facecolor(PAPER)
    _plot_steps(parts[0], one, many, rules)
    if loops:
        _plot_loops(parts[1], loops)
    title = f"adaptk.torch on the CPU, {threads_text(most)}, float32"
    figure.suptitle(title, fontsize=11.5, fontweight="bold", color=INK)
    figure.savefig(path, facecolor=PAPER)


def _plot_steps(part: Any, one: Sequence[Record], many: Sequence[Record], rules: Sequence[str]) -> None:
    """One row per rule: torch's fastest over adaptk, for one tensor and for many, and the fraction of the ceiling."""
    grid = part.subplots(1, 3, sharey=True, width_ratios=[1.0, 1.0, 0.8])
    rows = {rule: i for i, rule in enumerate(rules)}
    _plot_ratios(grid[0], one, rows)
    _plot_ratios(grid[1], many, rows)
    _plot_shares(grid[2], one, rows)
    grid[0].set_yticks(range(len(rules)), rules)
    grid[0].set_ylim(len(rules) - 0.4, -0.6)
    _legend(part, {"torch fuses this rule": FUSED, "torch does not": UNFUSED})


def _plot_ratios(axes: Any, records: Sequence[Record], rows: Mapping[str, int]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    title = "not measured"
    if records:
        shapes = case_shapes(records[0]["case"], records[0]["shrunk"])
        title = case_title(records[0]["case"], shapes).replace("one tensor of ", "1 tensor of ")
        title = title.replace(" elements", "") if len(shapes) > 1 else title
    _prepare(axes, title)
    axes.set_xscale("log")
    longest = 1.0
    for r in records:
        y, ratio = rows[r["rule"]], fastest(r, eager())
        if ratio is None:
            axes.text(1.04, y, "not in torch", va="center", fontsize=7.5, color=FAINT, style="italic")
            continue
        longest = max(longest, ratio)
        color = FUSED if RACES[r["rule"]].fused else UNFUSED
        axes.barh(y, ratio - 1, left=1, height=BAR, color=color)
        axes.text(max(ratio, 1) * 1.05, y, number(ratio), va="center", fontsize=TEXT, color=INK)
    axes.axvline(1, color=INK, linewidth=1)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0.9, longest * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if longest > 30 else (1, 2, 5), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.set_xlabel("torch's best / adaptk (log scale)", fontsize=TEXT, color=FAINT)


def _plot_shares(axes: Any, records: Sequence[Record], rows: Mapping[str, int]) -> None:
    shares = {rows[r["rule"]]: r["of_ceiling"] for r in records if r["of_ceiling"] is not None}
    _prepare(axes, f"of the ceiling, {size_text(records[0]['elements'])}" if records else "of the ceiling")
    axes.barh(list(shares), list(shares.values()), height=BAR, color=SHARE)
    for y, share in shares.items():
        axes.text(min(share, 1.2) - 0.03, y, f"{share:.2f}", va="center", ha="right", fontsize=TEXT, color="white")
    if not shares:
        axes.text(0.5, 0.5, "too small to ask", transform=axes.transAxes, ha="center", fontsize=TEXT, color=FAINT)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xlim(0, 1.25)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_xlabel("memory's speed = 1", fontsize=TEXT, color=FAINT)


def _plot_loops(part: Any, loops: Sequence[Record]) -> None:
    """Training steps, divided into the optimizer and the rest."""
    grid = part.subplots(1, len(loops), squeeze=False)[0]
    for i, (axes, r) in enumerate(zip(grid, loops, strict=True)):
        _prepare(axes, f"{LOOPS[r['case']].title}, {r['elements'] / 1000:,.0f}k params")
        there = _in_loop(r)
        unit = r["contenders"]["adaptk"]["total"]["median"] if "adaptk" in there else 1.0
        longest = 0.0
        for y, name in enumerate(there):
            c = r["contenders"][name]
            total, step = c["total"]["median"] / unit, c["optimizer"]["median"] / unit
            longest = max(longest, total)
            axes.barh(y, total - step, height=BAR, color=NETWORK)
            axes.barh(y, step, left=total - step, height=BAR, color=FUSED)
            axes.text(total + 0.03, y, f"{total:.2f}", va="center", fontsize=TEXT, color=INK)
        axes.set_yticks(range(len(there)), [IN_LOOPS[n] if i == 0 else "" for n in there])
        axes.set_ylim(len(there) - 0.4, -0.6)
        axes.set_xlim(0, max(1.0, longest) * 1.18)
        axes.set_xlabel("time of a training step, with adaptk.torch = 1", fontsize=TEXT, color=FAINT)
    _legend(part, {"forward and backward": NETWORK, "optimizer": FUSED})


def _prepare(axes: Any, title: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(title, fontsize=9.5, fontweight="bold", color=INK, loc="left", pad=6)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    axes.tick_params(length=0, labelsize=TEXT, labelcolor=INK)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e4e7ea", linewidth=0.8)


def _legend(part: Any, colors: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    part.legend(
        handles=[Patch(color=color, label=label) for label, color in colors.items()],
        loc="outside upper center",
        ncols=len(colors),
        frameon=False,
        fontsize=TEXT,
        labelcolor=INK,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=2.5,
    )
