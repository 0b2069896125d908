"""The targets, and all results as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from racing.cases import LOOPS, PARTS, Record, case_shapes, case_title
from racing.contenders import LIBRARIES, RACES, eager, packages


def number(x: float) -> str:
    """Three significant digits, or all digits before the decimal point."""
    return f"{x:.2f}" if x < 9.995 else f"{x:.1f}" if x < 99.95 else f"{x:,.0f}"


def threads_text(n: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{n} thread{'s' * (n != 1)}"


# ---------------------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------------------


def fastest(record: Record, names: Sequence[str]) -> float | None:
    """The shortest time of several libraries over adaptk's; of whole training steps for loops."""
    there = [record["contenders"].get(name, {}) for name in names]
    times = [c.get("total", c) for c in there]
    return min((t["speedup"] for t in times if "speedup" in t), default=None)


def over(*names: str) -> Callable[[Record], float | None]:
    """The shortest time of several libraries over adaptk's."""
    return lambda record: fastest(record, names)


@dataclass(frozen=True)
class Target:
    """A ratio that each of the rules must reach on one case."""

    what: str
    least: float
    case: str
    rules: tuple[str, ...]
    ratio: Callable[[Record], float | None]


_FUSED = {"Adam": ("adam",), "AdamW": ("adamw",), "SGD": ("sgd", "momentum"), "Adagrad": ("adagrad",)}
_UNFUSED = ("rmsprop", "adadelta", "nadam", "radam", "adamax", "rprop", "asgd")
_EVERY = tuple(RACES)

TARGETS: tuple[Target, ...] = (
    *(Target(f"{name}, 64M / torch fused", 1.0, "64M", rules, over("fused")) for name, rules in _FUSED.items()),
    *(Target(f"{name}, 1M / torch fused", 1.2, "1M", rules, over("fused")) for name, rules in _FUSED.items()),
    *(
        Target(f"{RACES[rule].torch}, 64M / torch's best, not compiled", 4.0, "64M", (rule,), over(*eager()))
        for rule in _UNFUSED
    ),
    Target("Adam, 200 x 4096 / torch fused", 7.0, "200x4096", ("adam",), over("fused")),
    Target("Adam, 1000 x 64 / torch fused", 20.0, "1000x64", ("adam",), over("fused")),
    Target("digits network, whole loop / with torch's fused Adam", 1.5, "digits", ("adam",), over("fused")),
    Target("every rule, 64M, share of the ceiling", 0.95, "64M", _EVERY, lambda record: record["of_ceiling"]),
    Target("every rule, 64M / optax", 1.0, "64M", _EVERY, over("optax")),
    Target("RMSprop, 64M / optax", 1.5, "64M", ("rmsprop",), over("optax")),
    Target("Adadelta, 64M / optax", 5.0, "64M", ("adadelta",), over("optax")),
    Target("AdamW, 200 x 4096 / bitsandbytes' 8-bit AdamW", 20.0, "200x4096", ("adamw",), over("bitsandbytes")),
    Target("every rule, 64M / DeepSpeed", 1.0, "64M", _EVERY, over("deepspeed")),
)


@dataclass(frozen=True)
class Outcome:
    """The lowest measured ratio of a target, and its rule."""

    what: str
    least: float
    value: float | None
    worst: str

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.value >= self.least


def outcomes(records: Sequence[Record]) -> list[Outcome]:
    """All targets, for the measurements with the most threads and kept gradients."""
    most = max((r["threads"] for r in records), default=0)
    chosen = [r for r in records if r["threads"] == most and not r.get("shrunk") and r.get("gradients") != "fresh"]

    def outcome(t: Target) -> Outcome:
        found = [
            (value, r["rule"])
            for r in chosen
            if r["case"] == t.case and r["rule"] in t.rules and (value := t.ratio(r)) is not None
        ]
        value, rule = min(found, default=(None, ""))
        return Outcome(t.what, t.least, value, rule)

    return [outcome(t) for t in TARGETS]


# ---------------------------------------------------------------------------------------------------------------------
# Markdown
# ---------------------------------------------------------------------------------------------------------------------


def _cell(entry: Record | None) -> str:
    if entry is None or "speedup" not in entry:
        return "-"
    low, high = entry["quartiles"]
    return f"{number(entry['speedup'])} ({number(low)} to {number(high)})"


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"

    return [line(rows[0]), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows[1:])]


def _grouped(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        groups.setdefault(tuple(r[k] for k in keys), []).append(r)
    return groups


def _machine_lines(report: Record) -> list[str]:
    about = report["machine"]
    versions = [f"{p} {about[p]}" for p in packages() if about.get(p)]
    lines = [
        f"- {about['processor']}, {about['cores']} cores, {about.get('caches') or 'caches unknown'}, "
        f"{about.get('memory_gib', '?')} GiB of memory, {about['system']} {about['kernel']}",
        f"- adaptk {about['version']} ({about['isa']}, {about['compiler']}), Python {about['python']}, "
        + ", ".join(versions),
        f"- threads: {', '.join(map(str, report['options']['threads']))}; "
        f"load average before {report['load_before']}, after {report['load_after']}",
    ]
    load = report["load_before"]
    if load is not None and load[0] > 0.3:
        lines.append("- **Other programs were running when this began: take no figures from it.**")
    if report["options"]["quick"]:
        lines.append("- **A smoke run: none of the figures mean anything.**")
    return lines


def _targets_lines(report: Record) -> list[str]:
    rows = [["what, of adaptk.torch", "at least", "measured", "met"]]
    for t in report["targets"]:
        worst = f" ({t['worst']})" if t["worst"] and t["what"].startswith(("every", "SGD")) else ""
        value = "not measured" if t["value"] is None else f"{number(t['value'])}{worst}"
        rows.append([t["what"], f"{t['least']:g}", value, {True: "yes", False: "**no**", None: "-"}[t["met"]]])
    return _rows(rows)


def _summary_lines(report: Record) -> list[str]:
    """Torch's fastest over adaptk's: a row per rule, a column per case."""
    lines: list[str] = []
    kept = [r for r in report["steps"] if r["gradients"] == "kept"]
    for (threads,), records in _grouped(kept, "threads").items():
        cases = list(dict.fromkeys(r["case"] for r in records))
        at = {(r["rule"], r["case"]): r for r in records}
        rows = [["rule", *cases]]
        for rule in dict.fromkeys(r["rule"] for r in records):
            cells = [rule]
            for case in cases:
                record = at.get((rule, case))
                ratio = None if record is None else fastest(record, eager())
                cells.append("-" if ratio is None else number(ratio))
            if len(set(cells[1:])) > 1 or cells[1] != "-":
                rows.append(cells)
        if len(rows) > 1:
            lines += [f"### torch's best optimizer, not compiled / adaptk.torch, {threads_text(threads)}", ""]
            lines += [*_rows(rows), ""]
    return lines


def _steps_lines(report: Record) -> list[str]:
    lines: list[str] = []
    contenders = [c for c in report["options"]["contenders"] if c != "adaptk"]
    for (threads, case, gradients), records in _grouped(report["steps"], "threads", "case", "gradients").items():
        title = case_title(case, case_shapes(case, records[0]["shrunk"]))
        if len(case_shapes(case, True)) > 1:
            title += ", gradients new at each step" if gradients == "fresh" else ", gradients kept"
        shown = [c for c in contenders if any(c in r["contenders"] for r in records)]
        ceiling = any(r["of_ceiling"] is not None for r in records)
        rows = [["rule", *(LIBRARIES[c].title for c in shown), *(["of the ceiling"] if ceiling else [])]]
        for r in records:
            row = [r["rule"], *(_cell(r["contenders"].get(c)) for c in shown)]
            if ceiling:
                row.append("-" if r["of_ceiling"] is None else f"{r['of_ceiling']:.2f}")
            if set(row[1:]) - {"-"}:
                rows.append(row)
        if len(rows) == 1:
            continue
        lines += [f"### {title}, {threads_text(threads)}", "", *_rows(rows), ""]
    return lines


def _loops_lines(report: Record) -> list[str]:
    lines: list[str] = []
    for r in report["loops"]:
        if not r["contenders"]:
            continue
        head = ["contender", "whole step", "optimizer", "forward and backward", "optimizer's share", "loss"]
        rows = [head]
        for name, c in r["contenders"].items():
            share = c["optimizer"]["median"] / c["total"]["median"]
            cells = [_cell(c[part]) if name != "adaptk" else "1" for part in PARTS]
            rows.append([LIBRARIES[name].title, *cells, f"{share:.0%}", f"{c['loss']:.4f}"])
        title = f"{LOOPS[r['case']].title}: {r['tensors']} tensors, {r['elements']:,} elements, Adam"
        lines += [f"### {title}, {threads_text(r['threads'])}", "", *_rows(rows), ""]
    return lines


def _skipped_lines(report: Record) -> list[str]:
    where: dict[tuple[str, str], dict[str, None]] = {}
    for r in [*report["steps"], *report["loops"]]:
        for name, reason in r["skipped"].items():
            about_rule = "such rule" in reason or "this rule" in reason
            reason = re.sub(r"\d+ tensors", "many tensors", reason)
            where.setdefault((name, reason), {})[r["rule"] if about_rule else r["case"]] = None
    return [f"- {LIBRARIES[n].title}: {reason}: {', '.join(places)}" for (n, reason), places in sorted(where.items())]


def markdown(report: Record) -> str:
    """The whole report as Markdown."""
    lines = ["# adaptk.torch beside its peers", "", *_machine_lines(report), ""]
    lines += [
        "Every figure is the other's time over adaptk.torch's in the same run, medians, with the quartiles of the",
        "ratio round by round in brackets: above 1, adaptk.torch is the faster. The ceiling is a kernel that reads and",
        "writes the same arrays with one addition each.",
        "",
    ]
    lines += ["## Targets", "", *_targets_lines(report), ""]
    if report["loops"]:
        lines += ["## Training loops", "", *_loops_lines(report)]
    if report["steps"]:
        lines += ["## Steps", "", *_summary_lines(report), *_steps_lines(report)]
    if skipped := _skipped_lines(report):
        lines += ["## Who did not take part, and in what", "", *skipped, ""]
    return "\n".join(lines)
