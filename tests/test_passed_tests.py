"""The second run of the tests in .ci/run skips the tests that passed in the first one, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from passed_tests import Record, need_not_run

ROOT = Path(__file__).resolve().parent.parent


def report(nodeid: str, when: str, outcome: str, **more: object) -> SimpleNamespace:
    return SimpleNamespace(nodeid=nodeid, when=when, passed=outcome == "passed", **more)


def test_only_passed_tests_are_recorded(tmp_path: Path) -> None:
    record = Record(str(tmp_path / "passed.json"))
    outcomes = {
        "passed": ("passed", "passed", "passed"),
        "failed": ("passed", "failed", "passed"),
        "skipped in the test": ("passed", "skipped", "passed"),
        "skipped before": ("skipped", None, "passed"),
        "failed before": ("failed", None, "passed"),
        "failed after": ("passed", "passed", "failed"),
    }
    for name, phases in outcomes.items():
        for when, outcome in zip(("setup", "call", "teardown"), phases, strict=True):
            if outcome is not None:
                record.pytest_runtest_logreport(report(name, when, outcome))
    record.pytest_runtest_logreport(report("expected to fail", "call", "passed", wasxfail="reason"))
    record.pytest_sessionfinish()
    written = json.loads((tmp_path / "passed.json").read_text())
    assert written["passed"] == ["passed"]
    assert {"numpy", "pytest"} <= set(written["packages"])


def test_files_that_name_a_new_package_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = tmp_path / "passed.json"
    (tmp_path / "plain.py").write_text("import numpy  # and torches\n")
    (tmp_path / "names.py").write_text("pytest.importorskip('torch')\n")

    def item(file: str, name: str, obj: object = None) -> SimpleNamespace:
        return SimpleNamespace(nodeid=f"{file}::{name}", path=tmp_path / file, obj=obj)

    examples = SimpleNamespace(is_hypothesis_test=True)
    items = [item("plain.py", "a"), item("plain.py", "b"), item("names.py", "c"), item("plain.py", "d", examples)]
    passed.write_text(json.dumps({"packages": ["numpy"], "passed": [i.nodeid for i in items if "b" not in i.nodeid]}))

    def left_out() -> list[str]:
        return [i.nodeid for i in need_not_run(str(passed), items)]

    monkeypatch.setattr("passed_tests.packages_distributions", lambda: {"numpy": [], "torch": []})
    assert left_out() == ["plain.py::a"]
    # Without a new one nobody can name it.
    monkeypatch.setattr("passed_tests.packages_distributions", lambda: {"numpy": []})
    assert left_out() == ["plain.py::a", "names.py::c"]


@pytest.mark.full
@pytest.mark.parametrize("processes", ["0", "2"])
def test_two_runs(tmp_path: Path, processes: str) -> None:
    passed = tmp_path / "passed.json"

    def run(option: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-q", f"-n{processes}", "-p", "no:cacheprovider"]
        command += [f"{option}={passed}", "tests/test_helpers.py"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout

    status, text = run("--write-passed")
    assert status == 0, text
    names = json.loads(passed.read_text())["passed"]
    assert names
    status, text = run("--leave-out-passed")
    assert status == pytest.ExitCode.NO_TESTS_COLLECTED, text
    assert f"{len(names)} passed before" in text
    passed.write_text(json.dumps(json.loads(passed.read_text()) | {"passed": names[1:]}))
    status, text = run("--leave-out-passed")
    assert status == 0, text
    assert "1 passed" in text
