"""``bench/gpu/run.sh``: its stages, limits and tables. No measured value is asserted."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from device_arrays import Library
from helpers import copies

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / "bench" / "gpu"
pytestmark = pytest.mark.skipif(not GPU.is_dir(), reason="only in a checkout")

Record = dict[str, Any]


def module(name: str) -> ModuleType:
    if str(GPU) not in sys.path:
        sys.path.append(str(GPU))
    if name == "race":
        pytest.importorskip("torch", reason="the race is against torch")
    return importlib.import_module(name)


# Stages and limits


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    return module("run").Setting(tmp_path / "out", tmp_path / "work", False, "90-real")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_limits_of_all_stages_fit_into_nine_minutes() -> None:
    run = module("run")
    assert list(run.LIMITS) == list(run.STAGES)
    assert sum(run.limit(name, False) for name in run.STAGES) < run.LONGEST == 540
    assert run.limit("race", False) > run.NEW_RACES_UNTIL


def test_a_stage_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = module("run")
    stages = {
        "build": lambda _: [python("print('first'); raise SystemExit(3)"), python("print('never')")],
        "bits": lambda _: [["no-such-program"]],
        "memcheck": lambda _: [python("import time; print('begins', flush=True); time.sleep(60)")],
        "race": lambda _: [python("print('last')")],
    }
    monkeypatch.setattr(run, "STAGES", stages)
    monkeypatch.setattr(run, "LIMITS", dict.fromkeys(stages, 20) | {"memcheck": 2})
    assert run.main(["--stages", ",".join(stages), "--out", f"{tmp_path}/out", "--work", f"{tmp_path}/work"]) == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {s["name"]: s["result"] for s in results["stages"]}
    assert found == {"build": "failed (3)", "bits": "failed (127)", "memcheck": "timed out", "race": "passed"}
    logs = {name: (tmp_path / "out" / f"{name}.log").read_text() for name in stages}
    assert "first" in logs["build"]
    assert "print('never')" not in logs["build"]
    assert "no-such-program was not found" in logs["bits"]
    assert "begins" in logs["memcheck"]
    assert "last" in logs["race"]
    shown = capsys.readouterr().out
    last = shown[shown.index("stage  ") :]
    assert [line.split()[:2] for line in last.splitlines()[1:5]] == [[n, r.split()[0]] for n, r in found.items()]
    assert shown.index("first") < shown.index("stage  ")  # the end of the log of a failed stage is shown


def test_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = module("run")
    monkeypatch.setattr(run, "STAGES", {"race": lambda _: [python("pass")]})
    arguments = ["--stages", "race", "--out", f"{tmp_path}/out", "--work", f"{tmp_path}/work"]
    assert run.main(arguments) == 0
    missed = run.targets({})[0]
    missed.points = [(1.0, "")]
    monkeypatch.setattr(run, "targets", lambda results: [missed])
    assert run.main(arguments) == 0
    assert run.main([*arguments, "--check"]) == 1


def test_a_stage_ends_at_its_limit_with_all_its_processes(setting: Any, tmp_path: Path) -> None:
    """A program that ignores signals, and a child process of it."""
    run = module("run")
    deaf = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    inner = f"{deaf}; import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    ignoring = f"{deaf}; import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    begin = time.monotonic()
    stage = run.run_stage("bits", [python(ignoring)], setting.environment(), tmp_path / "log", 4)
    assert stage["result"] == "timed out"
    assert 2 <= time.monotonic() - begin < 15
    pid = int((tmp_path / "log").read_text().splitlines()[1])
    for _ in range(100):
        # Its parent has ended: it is a zombie until it is reaped.
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail("a process of the stage goes on")


def test_environment_of_the_stages(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module("run")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = setting.environment()
    assert environment["PYTHONPATH"] == f"{setting.site}{os.pathsep}/elsewhere"
    assert environment["ADAPTK_CUDA"] == "ON"
    assert environment["ADAPTK_CUDA_ARCHITECTURES"] == "90-real"
    commands = run.build(setting)
    (built,) = [c for c in commands if c[-1] == str(ROOT)]
    assert {"--no-index", "--no-deps", "--no-build-isolation", "--target"} <= set(built)
    for tool in ("memcheck", "racecheck"):
        (command,) = run.STAGES[tool](setting)
        assert command[:5] == ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    (command,) = run.STAGES["profile"](setting)
    assert command[:3] == ["ncu", "--clock-control", "none"]
    assert command[-1].endswith("profiled.py")
    (command,) = run.STAGES["tests"](setting)
    assert command[command.index("-m", 3) + 1] == "cuda"
    # Every file with tests that need a device.
    marked = {str(p) for p in (ROOT / "tests").glob("test_*.py") if "pytest.mark.cuda" in p.read_text(encoding="utf-8")}
    assert marked - {__file__} <= set(command)


def test_wheels_next_to_the_checkout_are_installed_first(
    setting: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = module("run")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert len(run.build(setting)) == 2
    (tmp_path / ".whl").mkdir()
    (tmp_path / ".whl" / "cmeel_eigen-3.4.1-0-py3-none-any.whl").touch()
    first, *_ = commands = run.build(setting)
    assert len(commands) == 3
    assert first[-1].endswith("any.whl")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages", "bits,nothing"], "'nothing' is not one of build, tests, bits"),
        (["--stages", ","], "names no stage"),
        (["--cpu", "--check"], "--check: a trial run measures nothing"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        module("run").main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_the_script_passes_its_arguments_on() -> None:
    done = subprocess.run(["bash", str(GPU / "run.sh"), "--help"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0
    assert "bash bench/gpu/run.sh" in done.stdout
    # From the top of the checkout, and with the folder of the environment.
    help_of = subprocess.run(
        [sys.executable, str(GPU / "run.py"), "--stages", "x"], capture_output=True, text=True, env={"OUT": os.devnull}
    )
    assert help_of.returncode == 2


def test_stages_fail_by_their_output(setting: Any) -> None:
    """A stage fails if its programs succeed but report nothing."""
    run = module("run")
    setting.work.mkdir()

    def stage(name: str) -> Record:
        return {"name": name, "result": "passed", "seconds": 1.0, "limit": 2, "note": ""}

    (setting.work / "tests.xml").write_text(
        '<testsuites><testsuite tests="2" failures="0" errors="0" skipped="2"/></testsuites>'
    )
    for name in ("tests", "memcheck", "racecheck", "profile"):
        result = stage(name)
        run.gathered(result, setting, "")
        assert result["result"] == "failed", name
        assert result["note"]
    result = stage("memcheck")
    assert run.gathered(result, setting, "========= ERROR SUMMARY: 0 errors") == {"memcheck": {"errors": 0}}
    assert result["result"] == "passed"
    (setting.work / "bits.json").write_text('{"complete": false}')
    result = stage("bits")
    run.gathered(result, setting, "")
    assert result["note"] == "not all of it"


FAKE_SANITIZER = """#!/bin/sh
[ "$1 $3 $4" = "--tool --error-exitcode 9" ] || exit 5
echo "========= COMPUTE-SANITIZER"
[ "$2" = memcheck ] && { echo "========= ERROR SUMMARY: 0 errors"; exit 0; }
echo "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"
exit 9
"""
FAKE_NCU = """#!/bin/sh
echo '==PROF== Connected'
echo '"ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"'
echo '"0","step_kernel","(132, 1, 1)","Duration","us","410.5"'
"""


def test_sanitizers_and_the_profiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With stand-ins for these programs: their output is part of the results."""
    run = module("run")
    for name, script in (("compute-sanitizer", FAKE_SANITIZER), ("ncu", FAKE_NCU)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    stages = "memcheck,racecheck,profile"
    assert run.main(["--stages", stages, "--out", f"{tmp_path}/out", "--work", f"{tmp_path}/work"]) == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [s["result"] for s in results["stages"]] == ["passed", "failed (9)", "passed"]
    assert [s["note"] for s in results["stages"]] == ["0 errors", "2 errors", "1 launches"]
    assert results["profile"][0]["metrics"] == {"duration": "410.5 us"}
    found = {t["what"]: t["state"] for t in results["targets"] if t["points"]}
    assert found == {"errors found by memcheck": "met", "errors found by racecheck": "missed"}


# Logs of other programs


def test_counts_of_tests(tmp_path: Path) -> None:
    report = module("report")
    path = tmp_path / "tests.xml"
    assert report.tests_found(path) is None
    path.write_text("<testsuites><testsuite")
    assert report.tests_found(path) is None
    path.write_text(
        '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1">'
        '<testcase classname="tests.a" name="x"><failure/></testcase>'
        '<testcase classname="tests.b" name="y"><error/></testcase><testcase classname="tests.b" name="z"/>'
        "</testsuite></testsuites>"
    )
    assert report.tests_found(path) == {
        "passed": 2,
        "failed": 2,
        "skipped": 1,
        "names": ["tests.a::x", "tests.b::y"],
    }


@pytest.mark.parametrize(
    ("log", "errors"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0),
        ("========= ERROR SUMMARY: 1 error\n", 1),
        ("========= RACECHECK SUMMARY: 12 hazards displayed (3 errors, 9 warnings)\n", 12),
        ("Traceback\n", None),
    ],
)
def test_errors_of_the_sanitizer(log: str, errors: int | None) -> None:
    assert module("report").sanitizer_errors(log) == errors


def test_metrics_of_ncu() -> None:
    log = """==PROF== Connected to process 1
Adam float32 clip_norm=1.0
"ID","Process ID","Kernel Name","Grid Size","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","step_kernel(A, B)","(132, 1, 1)","SpeedOfLight","Duration","us","410.5"
"0","1","step_kernel(A, B)","(132, 1, 1)","SpeedOfLight","Memory Throughput","%","91.2"
"0","1","step_kernel(A, B)","(132, 1, 1)","MemoryWorkloadAnalysis","Memory Throughput","Tbyte/s","4.1"
"1","1","norm_kernel","(264, 1, 1)","Occupancy","Achieved Occupancy","%","78"
==PROF== Disconnected
"""
    assert module("report").profiled_kernels(log) == [
        {"kernel": "step_kernel(A, B)", "grid": "(132, 1, 1)", "metrics": {"duration": "410.5 us", "memory": "91.2 %"}},
        {"kernel": "norm_kernel", "grid": "(264, 1, 1)", "metrics": {"occupancy": "78 %"}},
    ]
    assert module("report").profiled_kernels("==ERROR== no counters\n") == []


# Targets


def steps(rule: str, case: str, dtype: str, **medians: float) -> Record:
    return {
        "rule": rule,
        "case": case,
        "dtype": dtype,
        "compiled": "compiled" in medians,
        "in_torch": rule != "lion",
        "times": {name: {"median": m} for name, m in medians.items()},
        "host": {"adaptk": 10e-6, "fused": 80e-6},
        "bytes": 10**12,
    }


FIELD = ("adam", "adamw", "rmsprop", "lion")


@pytest.fixture
def reached() -> Record:
    """A run that meets every target: Adam, which torch fuses, RMSprop, which it does not, and Lion."""
    rows = []
    for case in ("64M", "1000x64"):
        for dtype in ("float32", "bfloat16"):
            times = {"adaptk": 1.0, "copy": 0.95, "clip": 1.08}
            rows += [steps(r, case, dtype, fused=1.1, foreach=2.0, **times) for r in ("adam", "adamw")]
            rows += [steps("rmsprop", case, dtype, foreach=3.5, **times), steps("lion", case, dtype, **times)]
    rows.append(steps("rmsprop", "64M", "float32", adaptk=1.0, copy=0.95, compiled=1.2))
    return {
        "trial": False,
        "stages": [{"name": "race", "result": "passed", "seconds": 9.0, "limit": 10, "note": "all"}],
        "race": {
            "rules": list(FIELD),
            "complete": True,
            "left_out": {},
            "failed": {},
            "launches": [{"rule": r, "dtype": t, "launches": 1} for r in FIELD for t in ("float32", "bfloat16")],
            "steps": rows,
            "machine": {"torch": "2.11", "native step": True, "devices": [{"name": "GPU"}]},
        },
        "bits": {"complete": True, "different": [], "left_out": {}, "parts": {"functions": {"cases": 7}}},
        "run_time": {
            "size": 64,
            "complete": True,
            "first_step_seconds": 0.5,
            "reducing": [
                {"rule": "adafactor", "shape": [8, 8], "seconds": 0.5, "copy_seconds": 0.25, "equal": True},
            ],
        },
        "fits": {"count": 100, "complete": True, "of_published": 5.5},
        "rows": {
            "complete": True,
            "rows": [
                {"rule": rule, "rows": 1000, "width": 64, "times": {n: {"median": t} for n, t in times.items()}}
                for rule, times in (
                    ("adam", {"adaptk": 1.0, "copy": 0.5, "torch": 4.0}),
                    ("rowwise_adagrad", {"adaptk": 1.0, "copy": 0.5}),
                )
            ],
        },
        "offload": {
            "complete": True,
            "cases": 14,
            "different": [],
            "times": {"size": 64, "step": 1.0, "host": 0.8, "copies": 0.3},
            "rows": [{"work": "ceiling", "of_ceiling": 1.0}, {"work": "Offload", "of_ceiling": 0.95}],
        },
        "memcheck": {"errors": 0},
        "racecheck": {"errors": 0},
    }


def states(results: Record) -> dict[str, str]:
    return {t.what: t.state for t in module("report").targets(results)}


def test_met_targets(reached: Record) -> None:
    found = states(reached)
    assert len(found) == 18
    assert set(found.values()) == {"met"}


def _slow(results: Record, rule: str, name: str, by: float, case: str = "64M") -> None:
    for row in results["race"]["steps"]:
        if row["rule"] == rule and row["case"] == case and name in row["times"]:
            row["times"][name]["median"] *= by


MISSED: dict[str, Callable[[Record], Any]] = {
    "cases with other bits": lambda r: r["bits"]["different"].append("functions: adam"),
    "copy / step, float32": lambda r: r["race"]["steps"][3]["times"]["copy"].update(median=0.91),
    "copy / step, bfloat16": lambda r: r["race"]["steps"][7]["times"]["copy"].update(median=0.84),
    "torch fused / Adam": lambda r: _slow(r, "adamw", "fused", 0.9, "1000x64"),
    "torch's best uncompiled": lambda r: _slow(r, "rmsprop", "foreach", 0.8),
    "torch compiled": lambda r: _slow(r, "rmsprop", "compiled", 0.8),
    "launches": lambda r: r["race"]["launches"][1].update(launches=2),
    "host time": lambda r: r["race"]["steps"][8]["host"].update(adaptk=17e-6),
    "clip + step": lambda r: _slow(r, "adam", "clip", 1.02),
    "seconds to trace": lambda r: r["run_time"].update(first_step_seconds=0.51),
    "rules with reductions": lambda r: r["run_time"]["reducing"][0].update(equal=False),
    "fits a second": lambda r: r["fits"].update(of_published=4.9),
    "torch's sparse optimizers": lambda r: r["rows"]["rows"][0]["times"]["torch"].update(median=0.9),
    "ways of an offloaded step": lambda r: r["offload"]["different"].append("grads=step"),
    "offloaded step /": lambda r: r["offload"]["times"].update(copies=0.1),
    "copy / the host's part": lambda r: r["offload"]["rows"][1].update(of_ceiling=0.8),
    "errors found by memcheck": lambda r: r["memcheck"].update(errors=1),
    "errors found by racecheck": lambda r: r["racecheck"].update(errors=3),
}


@pytest.mark.parametrize("what", MISSED)
def test_missed_targets(reached: Record, what: str) -> None:
    MISSED[what](reached)
    found = states(reached)
    assert [t for t, state in found.items() if state == "missed"] == [t for t in found if t.startswith(what)]
    assert list(found.values()).count("met") == len(found) - 1


def test_targets_with_missing_measurements(reached: Record) -> None:
    race = reached["race"]
    race["steps"] = [r for r in race["steps"] if (r["rule"], r["dtype"]) != ("lion", "float32") and not r["compiled"]]
    race["complete"] = False
    reached["bits"]["left_out"] = {"adam": "needs 90 GB"}
    found = states(reached)
    assert found["copy / step, float32, 64M"] == "met as far as measured"
    assert found["copy / step, bfloat16, 64M"] == "met"
    assert found["cases with other bits than the CPU's"] == "met as far as measured"
    assert found["torch compiled / rules that it does not fuse, 64M"] == "not measured"


def test_nothing_was_measured() -> None:
    assert set(states({}).values()) == {"not measured"}
    # An incomplete comparison without a difference is not a result.
    bits = {"complete": False, "different": [], "left_out": {}, "parts": {}}
    assert set(states({"bits": bits}).values()) == {"not measured"}


def test_the_table(reached: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = module("report")
    reached["race"]["steps"][3]["times"]["copy"]["median"] = 0.91
    reached["bits"]["different"] = [f"functions: case {i}" for i in range(40)]
    reached["tests"] = {"passed": 1, "failed": 1, "skipped": 0, "names": ["tests.a::x"]}
    reached["profile"] = [{"kernel": "step_kernel", "grid": "(1, 1, 1)", "metrics": {"duration": "4 us"}}]
    reached["targets"] = [t.record() for t in report.targets(reached)]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(reached))
    assert report.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 47
    assert lines[0] == "GPU; torch 2.11, native step"
    (missed,) = [line for line in lines if line.startswith("copy / step, float32")]
    assert " ".join(missed.split()).endswith("0.91 >= 0.92 missed, 3 of 4; worst: lion 64M float32")
    (share,) = [t for t in reached["targets"] if t["what"].startswith("copy / step, float32")]
    assert [p["met"] for p in share["points"]] == [True, True, True, False]
    assert "adafactor, 8 x 8: 0.50 of a copy's bandwidth" in lines
    assert "step_kernel: duration 4 us" in lines
    assert "a copy of the bytes of Adam's step, 64M: 1.05 TB/s" in lines
    assert "failed test: tests.a::x" in lines
    assert lines[-1] == "... and 29 more"
    assert report.main([]) == report.main([str(tmp_path / "nothing")]) == 2


# Bits


class Flipped:
    """A device that gets one bit wrong."""

    def put_all(self, buffers: Record, offset: Any = None) -> Record:
        return copies(buffers)

    def get_all(self, buffers: Record) -> Record:
        x = buffers["param"][-1]
        x[-1:].view(f"u{x.itemsize}")[...] ^= 1
        return buffers


def test_a_flipped_bit_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bits = module("bits")
    numbers = bits.Numbers(1 << 14)
    # In the last element of a list that is not a NaN.
    found = [f is not None for _, f in bits.functions(Flipped(), numbers, small=True)]
    assert sum(found) > 0.9 * len(found)
    assert not any(f for _, f in bits.functions(bits.Host(), numbers, small=True))
    assert all(f for what, f in bits.optimizers(Flipped(), numbers) if what.endswith("step 1"))
    assert sum(f is not None for _, f in bits.initial_values(Flipped(), small=True)) > 0
    assert not any(f for _, f in bits.initial_values(bits.Host(), small=True))
    assert not any(f for _, f in bits.rows(bits.Host(), numbers, small=True))
    monkeypatch.setattr(bits, "Host", Flipped)
    path = tmp_path / "bits.json"
    assert bits.main(["--cpu", "--slice", "--json", str(path)]) == 1
    record = json.loads(path.read_text())
    assert record["complete"]
    assert record["parts"]["functions"]["cases"] == len(found)
    assert record["different"][0].startswith("functions: sgd float32 float32")


def test_norms_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = module("bits")
    exact = bits.adaptk.global_norm
    calls: list[None] = []

    def every_other(grads: Any) -> float:
        calls.append(None)
        return float(np.nextafter(exact(grads), np.inf)) if len(calls) % 2 else exact(grads)

    monkeypatch.setattr(bits.adaptk, "global_norm", every_other)
    found = dict(bits.norms(bits.Host(), bits.Numbers(1 << 14), small=True))
    assert all(f is not None for what, f in found.items() if "finite True" in what)


def test_elements_beyond_the_boundary_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="large tensors are torch's")
    bits = module("bits")
    exact, boundary = bits.call, 5000

    def short(rule: str, buffers: Record, **hyper: Any) -> None:
        """As if indices had too few bits: elements beyond the boundary do not change."""
        exact(rule, {name: x[:boundary] for name, x in buffers.items()}, **hyper)

    report = bits.Report(None, trial=True)
    assert not any(f for _, f in bits.large("cpu", boundary, report))
    monkeypatch.setattr(bits, "call", short)
    found = dict(bits.large("cpu", boundary, report))
    # The window around the boundary, and the whole against its parts.
    assert [f for what, f in found.items() if "to 6,037" in what or "beside" in what].count(None) == 0


@pytest.mark.cuda
@pytest.mark.parametrize("rule", ["adam", "asgd"])
def test_bits_on_a_device(device: Library, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    bits = module("bits")
    monkeypatch.setattr(bits, "RULES", {rule: bits.RULES[rule]})
    monkeypatch.setattr(bits, "PAIRS", [("float32", "float32"), ("bfloat16", "bfloat16")])
    monkeypatch.setattr(bits, "SIZES", (1, 257, 1000))
    numbers = bits.Numbers(1 << 14)
    found = list(bits.functions(device, numbers, small=False))
    assert len(found) == 2 * len(bits.OPTIONS)
    assert not any(f for _, f in found)


# Times


def test_every_rule_is_timed_on_every_case() -> None:
    race = module("race")
    items = race.plan(trial=False)
    plain = [i for i in items if not i.compiled]
    assert {(i.case, i.rule, i.dtype) for i in plain} == {
        (case, rule, dtype) for case in race.CASES for rule in race.RACES for dtype in race.DTYPES
    }
    # Cases with targets come first, and those that compile come last.
    assert all(i.case == "64M" for i in plain[: 2 * len(race.RACES)])
    assert items[: len(plain)] == plain
    compiled = [i.rule for i in items if i.compiled and (i.case, i.dtype) == ("64M", "float32")]
    assert set(compiled) == {rule for rule, r in race.RACES.items() if r.in_torch}
    assert [race.RACES[rule].fused for rule in compiled] == sorted(race.RACES[rule].fused for rule in compiled)


@pytest.fixture
def one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_failing_case_is_named_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    race = module("race")
    setting = race.Setting(race.OnHost(), "cpu", repeats=1, burst=0.0)
    items = [race.Item("1M", rule, "float32") for rule in ("adam", "rmsprop", "lion")]
    original = race.race

    def breaking(item: Any, setting: Any) -> Record:
        if item.rule == "rmsprop":
            raise RuntimeError("CUDA error: an illegal memory access")
        return original(item, setting)

    monkeypatch.setattr(race, "race", breaking)
    (_, adam), (what, failed), (_, lion) = race.measured(items, setting, time.monotonic() + 100)
    assert what == "rmsprop, 1M, float32"
    assert failed == "RuntimeError: CUDA error: an illegal memory access"
    assert set(adam["times"]) == {"adaptk", "clip", "fused", "foreach", "copy"}
    assert adam["bytes"] == 28 * adam["elements"]
    assert set(lion["times"]) == {"adaptk", "clip", "copy"}
    assert lion["skipped"] == dict.fromkeys(("fused", "foreach"), "torch has no such rule")
    assert "of copy" in race.line_of(lion)
    assert list(race.measured(items, setting, time.monotonic())) == [
        (f"{i.rule}, 1M, float32", "no time was left") for i in items
    ]


def test_count_of_device_operations() -> None:
    events = [
        {"cat": c} for c in ("kernel", "gpu_user_annotation", "cuda_runtime", "gpu_memcpy", "cpu_op", "gpu_memset")
    ]
    assert module("race").on_device({"traceEvents": [*events, {"name": "process_name"}]}) == 3


def test_parts_that_fail_do_not_end_the_race(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    race = module("race")

    def failing(*arguments: Any) -> None:
        raise RuntimeError("no counters")

    monkeypatch.setattr(race, "norm", failing)
    monkeypatch.setattr(race, "race", failing)
    path = tmp_path / "race.json"
    assert race.main(["--cpu", "--json", str(path)]) == 1
    record = json.loads(path.read_text())
    assert not record["complete"]
    assert set(record["failed"].values()) == {"RuntimeError: no counters"}
    assert len(record["failed"]) == 4 + len(race.plan(trial=True))


def test_bytes_of_a_step() -> None:
    race = module("race")
    assert [race.bytes_per_parameter(r, "float32") for r in ("sgd", "momentum", "adam", "adan")] == [12, 20, 28, 44]
    assert [race.bytes_per_parameter(r, "bfloat16") for r in ("sgd", "momentum", "adam")] == [6, 14, 22]


# All of it


@pytest.mark.full
def test_a_trial_run_of_all_stages(tmp_path: Path) -> None:
    """Built without a network, in an environment without rich, which such a machine may not have."""
    pytest.importorskip("torch", reason="the race is against torch")
    for name in ("scikit_build_core", "pybind11"):
        pytest.importorskip(name, reason="builds without a network")
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "rich.py").write_text("raise ImportError('rich is absent')\n")
    out = tmp_path / "out"
    environment = {k: v for k, v in os.environ.items() if k not in ("ADAPTK_PTX_SIMULATOR", "PYTHONPATH")}
    done = subprocess.run(
        ["bash", str(GPU / "run.sh"), "--cpu", "--work", str(tmp_path / "work")],
        env=environment | {"OUT": str(out), "PYTHONPATH": str(absent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = module("run")
    assert sorted(p.name for p in out.iterdir()) == sorted(["results.json", *(f"{name}.log" for name in run.STAGES)])
    results = json.loads((out / "results.json").read_text())
    assert [(s["name"], s["result"]) for s in results["stages"]] == [(name, "passed") for name in run.STAGES]
    assert results["bits"]["complete"]
    assert not results["bits"]["different"]
    assert results["race"]["complete"]
    assert results["race"]["machine"]["cuda"] is None  # what was built here, and not another adaptk
    assert {t["state"] for t in results["targets"]} == {"trial"}
    table = done.stdout[done.stdout.index("A trial run on the CPU") :]
    assert all(name in table for name in run.STAGES)
