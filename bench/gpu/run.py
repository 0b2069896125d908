"""Runs all stages: build, tests, bits, times, Offload, compute-sanitizer, a profile. Then it prints one short table.

Started by ``bench/gpu/run.sh``. It needs only Python; packages for the stages are on the machine or in ``.whl/``. It
writes a log for each stage and ``results.json`` to the folder ``$OUT`` or ``--out``.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import profiled
from common import ROOT, Record, read_json, write_json
from report import profiled_kernels, sanitizer_errors, table, targets, tests_found

HERE = Path(__file__).resolve().parent
# Seconds. Each stage has its own limit, so that a stage that hangs does not use up the time of the others.
LIMITS = {"build": 110, "tests": 100, "bits": 60, "run_time": 25, "fits": 19, "rows": 15, "race": 90, "offload": 20}
LIMITS |= {"memcheck": 30, "racecheck": 30, "profile": 40}
LONGEST = 540
GRACE = 3.0  # between the request to end and the kill
TRIAL_FACTOR = 20  # factor of the limits in a trial run, for slow machines
NEW_RACES_UNTIL = 25  # no new measurement begins in the last seconds of its stage
WORKERS = 8  # processes for the tests
NCU_SECTIONS = ("SpeedOfLight", "Occupancy", "WarpStateStats", "LaunchStats", "MemoryWorkloadAnalysis")


@dataclass
class Setting:
    """The settings of all stages of a run."""

    out: Path
    work: Path
    trial: bool
    architectures: str

    @property
    def site(self) -> Path:
        """The folder in which the build is installed."""
        return self.work / "site"

    def environment(self) -> dict[str, str]:
        path = [str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        found = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
            "ADAPTK_CUDA": "OFF" if self.trial else "ON",
            "ADAPTK_CUDA_ARCHITECTURES": self.architectures,
            "ADAPTK_JAX": "OFF",
        }
        if self.trial:
            # Threads that spin while waiting are slow if other programs run.
            found["OMP_NUM_THREADS"] = "1"
        return found


Command = list[str]


def _python(*arguments: object) -> Command:
    return [sys.executable, *map(str, arguments)]


def _cpu(setting: Setting) -> list[str]:
    return ["--cpu"] if setting.trial else []


def build(setting: Setting) -> list[Command]:
    """Build and install into a separate folder, which comes first on the path of the other stages."""
    pip = _python("-m", "pip", "install", "--verbose", "--no-index", "--no-deps", "--no-compile")
    pip += ["--target", str(setting.site)]
    wheels = sorted(glob.glob(str(ROOT / ".whl" / "*.whl")))
    look = "import adaptk; print(adaptk.build_info(), adaptk.cuda.devices())"
    if not setting.trial:
        look += "; assert adaptk.cuda.is_available(), 'no CUDA device answers'"
    return [
        *([[*pip, *wheels]] if wheels else []),
        [*pip, "--no-build-isolation", "--config-settings", f"build-dir={setting.work / 'build'}", str(ROOT)],
        _python("-c", look),
    ]


def tests(setting: Setting) -> list[Command]:
    """The tests marked `cuda`; in a trial run a few other tests."""
    chosen: list[object] = ["-m", "cuda", *sorted((ROOT / "tests").glob("test_cuda*.py"))]
    if setting.trial:
        chosen = ["-m", "not cuda", ROOT / "tests" / "test_cuda_bench.py"]
    elif importlib.util.find_spec("xdist") is not None:
        chosen += ["-n", WORKERS]
    junit = setting.work / "tests.xml"
    return [_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=40", f"--junit-xml={junit}", *chosen)]


def bits(setting: Setting) -> list[Command]:
    return [_python(HERE / "bits.py", "--json", setting.work / "bits.json", *_cpu(setting))]


def run_time(setting: Setting) -> list[Command]:
    return [_python(HERE / "run_time.py", "--json", setting.work / "run_time.json", *_cpu(setting))]


def fits(setting: Setting) -> list[Command]:
    return [_python(HERE / "fits.py", "--json", setting.work / "fits.json", *_cpu(setting))]


def rows(setting: Setting) -> list[Command]:
    return [_python(HERE / "rows.py", "--json", setting.work / "rows.json", *_cpu(setting))]


def race(setting: Setting) -> list[Command]:
    seconds = limit("race", setting.trial) - NEW_RACES_UNTIL
    return [_python(HERE / "race.py", "--json", setting.work / "race.json", "--seconds", seconds, *_cpu(setting))]


def offload(setting: Setting) -> list[Command]:
    return [_python(HERE / "offload.py", "--json", setting.work / "offload.json", *_cpu(setting))]


def sanitizer(tool: str) -> Callable[[Setting], list[Command]]:
    """A part of the bitwise comparison, under a tool of compute-sanitizer."""

    def commands(setting: Setting) -> list[Command]:
        compared = _python(HERE / "bits.py", "--slice", *_cpu(setting))
        return [
            compared if setting.trial else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *compared]
        ]

    return commands


def profile(setting: Setting) -> list[Command]:
    from_ncu = ["ncu", "--clock-control", "none", "--csv", "--page", "details", "--kernel-name-base", "function"]
    from_ncu += ["--kernel-name", profiled.KERNELS, "--launch-count", str(profiled.LAUNCHES)]
    from_ncu += [word for section in NCU_SECTIONS for word in ("--section", section)]
    steps = _python(HERE / "profiled.py", *_cpu(setting))
    return [steps if setting.trial else [*from_ncu, *steps]]


STAGES: dict[str, Callable[[Setting], list[Command]]] = {
    "build": build,
    "tests": tests,
    "bits": bits,
    "run_time": run_time,
    "fits": fits,
    "rows": rows,
    "race": race,
    "offload": offload,
    "memcheck": sanitizer("memcheck"),
    "racecheck": sanitizer("racecheck"),
    "profile": profile,
}


def limit(stage: str, trial: bool) -> int:
    """The time limit of a stage, in seconds."""
    return LIMITS[stage] * (TRIAL_FACTOR if trial else 1)


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def run_one(command: Command, environment: dict[str, str], log: Path, until: float) -> int | None:
    """Run one command. Returns its exit status, or None after the time limit. No process of its group is left."""
    with log.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            file.write(f"{command[0]} was not found\n")
            return 127
        process = subprocess.Popen(
            [program, *command[1:]], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )

        def end(with_signal: int, seconds: float) -> bool:
            try:
                os.killpg(process.pid, with_signal)
            except ProcessLookupError:
                return True
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            return True

        left = until - time.monotonic()
        grace = min(GRACE, left / 2)
        try:
            return process.wait(max(0.0, left - grace))
        except subprocess.TimeoutExpired:
            # On an interrupt pytest and the other programs print their results so far.
            end(signal.SIGINT, max(0.0, grace))
            return None
        finally:
            end(signal.SIGKILL, GRACE)


def run_stage(name: str, commands: Sequence[Command], environment: dict[str, str], log: Path, seconds: float) -> Record:
    """Run the commands of a stage in order until one fails."""
    log.write_text("", encoding="utf-8")
    begin = time.monotonic()
    result = "passed"
    for command in commands:
        status = run_one(command, environment, log, begin + seconds)
        if status is None:
            result = "timed out"
        elif status != 0:
            result = f"failed ({status})"
        if status != 0:
            break
    return {"name": name, "result": result, "seconds": round(time.monotonic() - begin, 1), "limit": seconds, "note": ""}


def fail(stage: Record, why: str) -> None:
    """Mark a stage as failed because of its output, although its commands succeeded."""
    stage["note"] = why
    if stage["result"] == "passed":
        stage["result"] = "failed"


def gathered(stage: Record, setting: Setting, log: str) -> Record:
    """The output of a stage; adds a note to its result."""
    name = stage["name"]
    if name == "tests":
        found = tests_found(setting.work / "tests.xml")
        if found is None:
            return {}
        stage["note"] = f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped"
        if found["passed"] == 0:
            fail(stage, f"{stage['note']}: nothing was tested")
        return {"tests": found}
    if name in ("bits", "run_time", "fits", "rows", "race", "offload"):
        record = read_json(setting.work / f"{name}.json")
        if record and not record["complete"]:
            stage["note"] = "not all of it"
        return {name: record}
    if name in ("memcheck", "racecheck") and not setting.trial:
        errors = sanitizer_errors(log)
        if errors is None:
            fail(stage, "no summary of compute-sanitizer")
        else:
            stage["note"] = f"{errors} errors"
        return {name: {"errors": errors}}
    if name == "profile" and not setting.trial:
        kernels = profiled_kernels(log)
        if not kernels:
            fail(stage, "no kernel was profiled")
        else:
            stage["note"] = f"{len(kernels)} launches"
        return {"profile": kernels}
    return {}


def run(names: Sequence[str], setting: Setting) -> Record:
    """Run all stages. Results are written after each of them."""
    setting.out.mkdir(parents=True, exist_ok=True)
    setting.work.mkdir(parents=True, exist_ok=True)
    if "build" in names:
        shutil.rmtree(setting.site, ignore_errors=True)
    environment = setting.environment()
    results: Record = {"trial": setting.trial, "stages": []}
    for name in names:
        for left in (f"{name}.json", f"{name}.xml"):
            (setting.work / left).unlink(missing_ok=True)
        seconds = limit(name, setting.trial)
        print(f"== {name}, at most {seconds} s", flush=True)
        log = setting.out / f"{name}.log"
        stage = run_stage(name, STAGES[name](setting), environment, log, seconds)
        text = log.read_text(encoding="utf-8", errors="replace")
        results["stages"].append(stage)
        results |= gathered(stage, setting, text)
        if stage["result"] != "passed":
            print("\n".join(line[:160] for line in text.splitlines()[-12:]))
        print(f"{name}: {stage['result']}, {stage['seconds']} s. {stage['note']}", flush=True)
        results["targets"] = [t.record() | ({"state": "trial"} if setting.trial else {}) for t in targets(results)]
        write_json(setting.out / "results.json", results)
    return results


def _stages(text: str) -> list[str]:
    chosen = [t.strip() for t in text.split(",") if t.strip()]
    for name in chosen:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(STAGES)}")
    if not chosen:
        raise argparse.ArgumentTypeError("names no stage")
    return [name for name in STAGES if name in chosen]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="bash bench/gpu/run.sh",
        description="Build, test, compare, time, sanitize and profile on a GPU, in less than nine minutes.",
        epilog="The exit status is 1 if a stage failed, and with --check if a target was missed.",
    )
    result.add_argument("--cpu", action="store_true", help="a trial run of all stages without a GPU, on small tensors")
    result.add_argument("--stages", type=_stages, default=list(STAGES), help=f"comma-separated, of {', '.join(STAGES)}")
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu")
    result.add_argument(
        "--out", type=Path, default=out, help="folder of logs and results.json; default $OUT, build/gpu"
    )
    work = ROOT / "build" / "gpu-work"
    result.add_argument("--work", type=Path, default=work, help="build folder, which a second run reuses")
    result.add_argument(
        "--architectures", default="90-real", help="CMake's names of the GPU's architectures; default 90-real"
    )
    result.add_argument("--check", action="store_true", help="fail also if a target is missed")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages. Returns the exit status."""
    command = parser()
    options = command.parse_args(argv)
    if options.check and options.cpu:
        command.error("--check: a trial run measures nothing")
    setting = Setting(options.out.resolve(), options.work.resolve(), options.cpu, options.architectures)
    results = run(options.stages, setting)
    print(f"\n{table(results)}\n\nLogs and results.json: {setting.out}")
    failed = any(stage["result"] != "passed" for stage in results["stages"])
    return int(failed or (options.check and any(t["state"] == "missed" for t in results["targets"])))


if __name__ == "__main__":
    sys.exit(main())
