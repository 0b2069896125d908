"""The report of a run: its stages, and each figure with its target.

``python bench/gpu/report.py build/gpu/results.json`` prints the table of a run again. Needs nothing but Python.
"""

from __future__ import annotations

import csv
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import Record, read_json

# ---------------------------------------------------------------------------------------------------------------------
# Logs of other programs
# ---------------------------------------------------------------------------------------------------------------------


def tests_found(path: Path) -> Record | None:
    """The counts of pytest's JUnit file, and the names of the tests that failed."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    counts = {name: sum(int(s.get(name, 0)) for s in root.iter("testsuite")) for name in
              ("tests", "failures", "errors", "skipped")}  # fmt: skip
    failed = [
        f"{case.get('classname', '')}::{case.get('name', '')}"
        for case in root.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    bad = counts["failures"] + counts["errors"]
    passed = counts["tests"] - bad - counts["skipped"]
    return {"passed": passed, "failed": bad, "skipped": counts["skipped"], "names": failed}


def sanitizer_errors(log: str) -> int | None:
    """The error count that compute-sanitizer (memcheck or racecheck) prints at its end; None if there is none."""
    found = re.findall(r"ERROR SUMMARY: (\d+) error", log) + re.findall(r"RACECHECK SUMMARY: (\d+) hazard", log)
    return int(found[-1]) if found else None


METRICS = {
    "Duration": "duration",
    "DRAM Throughput": "dram",
    "Memory Throughput": "memory",
    "Achieved Occupancy": "occupancy",
    "Registers Per Thread": "registers",
    "Warp Cycles Per Issued Instruction": "stall",
}


def profiled_kernels(log: str) -> list[Record]:
    """Chosen metrics of each launch in ncu's CSV output, with their units."""
    lines = log.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    kernels: dict[str, Record] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"], "grid": row["Grid Size"], "metrics": {}})
        name, unit = row.get("Metric Name") or "", row.get("Metric Unit") or ""
        if name in METRICS and (name != "Memory Throughput" or unit == "%"):
            kernel["metrics"][METRICS[name]] = f"{row['Metric Value']} {unit}".strip()
    return list(kernels.values())


# ---------------------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """A bound, and all figures that it applies to."""

    what: str
    bound: float
    at_least: bool = True  # False: at most
    points: list[tuple[float, str]] = field(default_factory=list)
    complete: bool = True  # none of its figures was left out

    def meets(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def worst(self) -> tuple[float, str] | None:
        if not self.points:
            return None
        return min(self.points) if self.at_least else max(self.points)

    @property
    def state(self) -> str:
        """ "missed" if any number misses it; "met" only if nothing is missing."""
        if self.worst is None:
            return "not measured"
        if not self.meets(self.worst[0]):
            return "missed"
        return "met" if self.complete else "met as far as measured"

    def record(self) -> Record:
        points = [{"value": v, "where": w, "met": self.meets(v)} for v, w in self.points]
        return {
            "what": self.what,
            "bound": self.bound,
            "at_least": self.at_least,
            "state": self.state,
            "points": points,
        }


UNCOMPILED = ("fused", "foreach")


def targets(results: Record) -> list[Target]:
    """The targets, with the measured figures."""
    race: Record = results.get("race") or {}
    rows: list[Record] = race.get("steps", [])
    plain = [r for r in rows if not r["compiled"]]
    rules: list[str] = race.get("rules", [])

    def median(row: Record, name: str) -> float:
        return float(row["times"][name]["median"])

    def over(row: Record, name: str, to: str = "adaptk") -> float:
        return median(row, name) / median(row, to)

    def where(row: Record, name: str = "") -> str:
        return " ".join(filter(None, (row["rule"], row["case"], row["dtype"], name)))

    def at(case: str, dtype: str, among: Iterable[Record] = plain) -> list[Record]:
        return [r for r in among if r["case"] == case and r["dtype"] == dtype]

    def of(chosen: Iterable[Record], value: Callable[[Record], float | None]) -> list[tuple[float, str]]:
        return [(v, where(r)) for r in chosen if (v := value(r)) is not None]

    def share(what: str, bound: float, dtype: str) -> Target:
        chosen = at("64M", dtype)
        complete = bool(rules) and {r["rule"] for r in chosen} == set(rules)
        return Target(what, bound, points=of(chosen, lambda r: over(r, "copy")), complete=complete)

    def best_uncompiled(row: Record) -> float | None:
        return min((over(row, n) for n in UNCOMPILED if n in row["times"]), default=None)

    whole = bool(race.get("complete"))
    unfused = {r["rule"] for r in plain if r["in_torch"] and "fused" not in r["times"]}
    in_torch = {r["rule"] for r in plain if r["in_torch"]}
    compiled = [r for r in rows if r["compiled"] and r["rule"] in unfused]
    clipped = [r for r in at("64M", "float32") + at("64M", "bfloat16") if r["rule"] in ("adam", "adamw")]
    launched: list[Record] = race.get("launches", [])
    many = [r for r in plain if r["case"] == "1000x64"]
    bits: Record = results.get("bits") or {}
    differences = Target("cases with other bits than the CPU's", 0, False, complete=not bits.get("left_out"))
    if bits.get("complete") or bits.get("different"):
        differences.points = [(len(bits["different"]), f"of {sum(p['cases'] for p in bits['parts'].values())}")]
    result = [
        differences,
        share("copy / step, float32, 64M", 0.92, "float32"),
        share("copy / step, bfloat16, 64M", 0.85, "bfloat16"),
        Target(
            "torch fused / Adam, AdamW",
            1.0,
            points=of(
                (r for r in plain if r["rule"] in ("adam", "adamw")),
                lambda r: over(r, "fused") if "fused" in r["times"] else None,
            ),
            complete=whole,
        ),
        Target(
            "torch's best uncompiled / rules that it does not fuse, 64M",
            3.0,
            points=of((r for r in plain if r["rule"] in unfused and r["case"] == "64M"), best_uncompiled),
            complete=whole,
        ),
        Target(
            "torch compiled / rules that it does not fuse, 64M",
            1.0,
            points=of(
                (r for r in compiled if r["case"] == "64M"),
                lambda r: over(r, "compiled") if "compiled" in r["times"] else None,
            ),
            complete=unfused <= {r["rule"] for r in compiled if "compiled" in r["times"] and r["dtype"] == "float32"},
        ),
        Target(
            "launches of a step, 1000 x 64",
            1,
            False,
            [(x["launches"], f"{x['rule']} {x['dtype']}") for x in launched],
            complete=len(launched) == 2 * len(rules),
        ),
        Target(
            "host time of a step / torch fused's, 1000 x 64",
            0.2,
            False,
            of(many, lambda r: r["host"]["adaptk"] / r["host"]["fused"] if "fused" in r["host"] else None),
            complete=whole,
        ),
        Target(
            "clip + step / copy of the step's bytes, Adam, AdamW, 64M",
            1.15,
            False,
            of(clipped, lambda r: over(r, "clip", "copy")),
            complete=len(clipped) == 4,
        ),
    ]
    made: Record = results.get("run_time") or {}
    first = [(made["first_step_seconds"], f"{made['size']} elements")] if made.get("complete") else []
    result.append(Target("seconds to trace, compile and step a rule from a function", 0.5, False, first))
    reducing: list[Record] = made.get("reducing", [])
    other = [r["rule"] for r in reducing if not r["equal"]]
    counted = [(float(len(other)), ", ".join(other))] if made.get("complete") else []
    result.append(Target("rules with reductions that have other bits than the CPU's", 0, False, counted))
    batches: Record = results.get("fits") or {}
    fitted = [(batches["of_published"], f"{batches['count']} fits")] if batches.get("complete") else []
    result.append(Target("fits a second / Gpufit's published 3 million", 5.0, points=fitted))
    sparse: Record = results.get("rows") or {}
    faster = [
        (r["times"]["torch"]["median"] / r["times"]["adaptk"]["median"], f"{r['rule']} {r['rows']:,} x {r['width']}")
        for r in sparse.get("rows", [])
        if "torch" in r["times"]
    ]
    known = bool(sparse.get("complete"))
    result.append(Target("torch's sparse optimizers / steps of rows", 1.0, points=faster, complete=known))
    moved: Record = results.get("offload") or {}
    others = Target("ways of an offloaded step with other values than on the CPU", 0, False)
    if "different" in moved:
        others.points = [(len(moved["different"]), f"of {moved['cases']}")]
    parts = moved.get("times")
    overlap = [(parts["step"] / (parts["host"] + parts["copies"]), f"{parts['size']} params")] if parts else []
    on_host = [(row["of_ceiling"], row["work"]) for row in moved.get("rows", []) if row["work"] == "Offload"]
    result += [
        others,
        Target("offloaded step / the host's step and the copies, in turn", 1.0, False, overlap),
        Target("copy / the host's part of an offloaded step", 0.9, points=on_host),
    ]
    for tool in ("memcheck", "racecheck"):
        errors = (results.get(tool) or {}).get("errors")
        result.append(Target(f"errors found by {tool}", 0, False, [] if errors is None else [(errors, "")]))
    assert in_torch >= unfused
    return result


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def number(x: float) -> str:
    return f"{x:g}" if x == int(x) else f"{x:.2f}" if abs(x) < 99.95 else f"{x:,.0f}"


def shortened(lines: Sequence[str], most: int, width: int = 150) -> list[str]:
    shown = [line if len(line) <= width else line[: width - 3] + "..." for line in lines[:most]]
    return shown + ([f"... and {len(lines) - most} more"] if len(lines) > most else [])


def table(results: Record) -> str:
    """Stages, targets, and the first errors."""
    race = results.get("race") or {}
    machine = race.get("machine") or {}
    devices = [d["name"] for d in machine.get("devices", [])]
    lines = []
    if results["trial"]:
        lines.append("A trial run on the CPU: no number below is a measurement.")
    if machine:
        native = "native step" if machine.get("native step") else "no native step"
        lines.append(f"{', '.join(devices) or machine['processor']}; torch {machine['torch']}, {native}")
    lines += ["", f"{'stage':<11}{'result':<14}{'seconds':>8}{'limit':>7}"]
    for s in results["stages"]:
        lines.append(f"{s['name']:<11}{s['result']:<14}{s['seconds']:>8.0f}{s['limit']:>7}  {s['note']}".rstrip())
    if race:
        adam = [
            r["bytes"] / r["times"]["copy"]["median"]
            for r in race["steps"]
            if (r["rule"], r["case"]) == ("adam", "64M")
        ]
        if adam:
            lines.append(f"a copy of the bytes of Adam's step, 64M: {adam[0] / 1e12:.2f} TB/s")
        lines += ["", f"{len(race['steps'])} races, {len(race['left_out'])} left out, {len(race['failed'])} failed"]
    lines += ["", f"{'target':<60}{'worst':>8}{'bound':>8}  state"]
    for t in results["targets"]:
        points = sorted(t["points"], key=lambda p: p["value"], reverse=not t["at_least"])
        worst = number(points[0]["value"]) if points else ""
        missed = [p["where"] for p in points if not p["met"]]
        note = f"{t['state']}" if not points else f"{t['state']}, {len(points) - len(missed)} of {len(points)}"
        if points and points[0]["where"]:
            note += f"; worst: {points[0]['where']}"
        bound = f"{'>=' if t['at_least'] else '<='} {t['bound']:g}"
        lines.append(f"{t['what']:<60}{worst:>8}{bound:>8}  {note}")
    for r in (results.get("rows") or {}).get("rows", []):
        own, copy = (r["times"][name]["median"] for name in ("adaptk", "copy"))
        lines.append(f"{r['rule']} of rows, {r['rows']:,} x {r['width']}: {copy / own:.2f} of a copy's bandwidth")
    for r in (results.get("run_time") or {}).get("reducing", []):
        speed = r["copy_seconds"] / r["seconds"]
        lines.append(f"{r['rule']}, {' x '.join(map(str, r['shape']))}: {speed:.2f} of a copy's bandwidth")
    for kernel in results.get("profile") or []:
        metrics = ", ".join(f"{name} {value}" for name, value in kernel["metrics"].items())
        lines += shortened([f"{kernel['kernel'][:60]}: {metrics}"], 1, 200)
    wrong = [f"failed test: {name}" for name in (results.get("tests") or {}).get("names", [])]
    wrong += [f"other bits: {text}" for text in (results.get("bits") or {}).get("different", [])]
    wrong += [f"left out of the bits: {k}: {v}" for k, v in (results.get("bits") or {}).get("left_out", {}).items()]
    wrong += [f"offloaded otherwise: {text}" for text in (results.get("offload") or {}).get("different", [])]
    wrong += [f"failed race: {k}: {v}" for k, v in race.get("failed", {}).items()]
    if wrong:
        lines += ["", *shortened(wrong, 12)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of a file of results."""
    arguments: list[Any] = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1 or not (results := read_json(Path(arguments[0]))):
        print("usage: python bench/gpu/report.py RESULTS.json", file=sys.stderr)
        return 2
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
