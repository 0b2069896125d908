"""The list of measurements, and the processes that make them: one for each number of threads."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import adaptk
from adaptk._bench import machine

from racing.cases import LOOPS, MODELS, Record, case_shapes
from racing.contenders import RACES, USUAL, packages
from racing.measure import Effort, Setting, race_loop, race_steps
from racing.report import number, threads_text

COMMAND = Path(__file__).resolve().parents[1] / "torch_race.py"


@dataclass(frozen=True)
class Item:
    """One measurement to make."""

    case: str
    rule: str
    gradients: str


def plan(options: argparse.Namespace, threads: int, all_threads: int) -> list[Item]:
    """The measurements for a number of threads, the large ones last."""

    def rules(usual: bool) -> Sequence[str]:
        if options.rules is not None:
            return list(options.rules)
        return USUAL if usual else list(RACES)

    fewer = threads != all_threads
    items = [Item(case, "adam", "fresh") for case in options.cases if case in LOOPS]
    items += [Item(size, rule, "kept") for size in options.sizes for rule in rules(fewer)]
    for case in options.cases:
        if case not in LOOPS:
            for gradients in options.gradients:
                usual = fewer or gradients == "fresh" or (case in MODELS and MODELS[case].usual)
                items += [Item(case, rule, gradients) for rule in rules(usual)]
    return items


class Progress:
    """Progress on stderr: one line that is overwritten on a terminal, else one line per item."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._live = sys.stderr.isatty()
        self._start = time.monotonic()

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{minutes}:{seconds:02d}"

    def begins(self, what: str) -> None:
        if self._live:
            line = f"[{self._done + 1}/{self._total}, {self._clock()}] {what} ..."
            sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()

    def done(self, what: str) -> None:
        self._done += 1
        if self._live:
            sys.stderr.write("\r\x1b[K")
        print(f"[{self._done}/{self._total}, {self._clock()}] {what}", file=sys.stderr, flush=True)


def short_result(record: Record) -> str:
    """The contenders' ratios in one line."""
    there = {name: c["total"] if record["kind"] == "loop" else c for name, c in record["contenders"].items()}
    parts = [f"{name} {number(c['speedup'])}" for name, c in there.items() if "speedup" in c and name != "adaptk"]
    if record.get("of_ceiling"):
        parts.append(f"of ceiling {record['of_ceiling']:.2f}")
    return ", ".join(parts) or "; ".join(sorted(set(record["skipped"].values())))


def work(options: argparse.Namespace, items: Sequence[Item], threads: int, path: Path) -> None:
    """Measure in this process and append each result to a file, one JSON document per line."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import torch

    torch.set_num_threads(threads)
    adaptk.set_num_threads(threads)
    setting = Setting(
        threads=threads,
        libraries=list(options.contenders),
        effort=Effort(options.repeats, options.seconds, *([0.0, 0.0] if options.quick else [])),
        compile_tensors=options.compile_tensors,
        quick=options.quick,
    )
    progress = Progress(len(items))
    with path.open("a", encoding="utf-8") as file:
        for item in items:
            what = f"{threads_text(threads)}, {item.case}, {item.rule}"
            if item.case not in LOOPS and item.gradients == "fresh":
                what += ", fresh gradients"
            progress.begins(what)
            if item.case in LOOPS:
                record = race_loop(setting, item.case)
            else:
                shapes = case_shapes(item.case, setting.quick)
                record = race_steps(setting, item.case, item.rule, item.gradients, shapes)
            file.write(json.dumps(record) + "\n")
            file.flush()
            progress.done(f"{what}: {short_result(record)}")
            # A garbage collection with torch and JAX loaded takes longer than many of the small cases.
            if record.get("elements", 0) >= 2**20:
                gc.collect()
                if (jax := sys.modules.get("jax")) is not None:
                    jax.clear_caches()


def described_machine() -> Record:
    """The machine on which the figures are measured."""
    about = machine()
    about["cores"] = os.cpu_count()
    with contextlib.suppress(AttributeError):
        about["cores_for_us"] = len(os.sched_getaffinity(0))
    with contextlib.suppress(AttributeError, ValueError, OSError):
        about["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    with contextlib.suppress(OSError):
        caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
        found = {int((c / "level").read_text()): (c / "size").read_text().strip() for c in sorted(caches)}
        about["caches"] = ", ".join(f"L{level} {size}" for level, size in sorted(found.items()))
    about["kernel"] = platform.release()
    about["isa"] = adaptk.get_isa()
    about.update({package: _version(package) for package in packages()})
    return about


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def load_average() -> list[float] | None:
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def measured(options: argparse.Namespace, arguments: Sequence[str]) -> tuple[list[Record], bool]:
    """Run a process for each number of threads. Returns their results, and whether all of them finished."""
    records: list[Record] = []
    complete = True
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results"
        path.touch()
        for n in options.threads:
            # The only way to set the number of threads of JAX, and of DeepSpeed's OpenMP.
            environment["OMP_NUM_THREADS"] = environment["NPROC"] = str(n)
            command = [sys.executable, str(COMMAND), *arguments]
            command += ["--threads", f"{n},{max(options.threads)}", "--worker", f"{n}:{path}"]
            try:
                # Some libraries log to standard output, which is for the tables.
                status = subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode
            except KeyboardInterrupt:
                print("interrupted; this is what was measured until then", file=sys.stderr)
                complete = False
                break
            if status != 0:
                print(f"torch_race: the process with {threads_text(n)} ended with {status}", file=sys.stderr)
                complete = False
        records += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return records, complete
