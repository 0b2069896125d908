"""The workflows of .github: their commands name existing things, and no job has more permissions than it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli", reason="needs Python 3.11 or tomli")

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".github" / "workflows"
if not FOLDER.is_dir():
    pytest.skip("needs a checkout: source distributions have no workflows", allow_module_level=True)
FILES = sorted(FOLDER.glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(path.read_text())["jobs"]


def commands(path: Path) -> list[str]:
    return [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]


def test_there_are_workflows() -> None:
    assert {path.stem for path in FILES} == {"tests", "nightly", "wheels", "docs"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_job_has_a_limit_and_few_rights(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        assert job["timeout-minutes"] <= 120, name
        extra = job.get("permissions", {})
        assert set(extra) <= {"id-token", "pages"}, name
        # Jobs that may publish only run actions, no commands.
        if extra:
            assert all("uses" in step for step in job["steps"]), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_name_existing_things(path: Path) -> None:
    found = 0
    for command in commands(path):
        for extra in re.findall(r"\.\[([a-z,]+)\]", command):
            for name in extra.split(","):
                assert name in PROJECT["project"]["optional-dependencies"], command
                found += 1
        for file in re.findall(r"bash (\S+)", command):
            assert (ROOT / file).is_file(), command
            found += 1
        for folder in re.findall(r"sphinx .* -b html (\S+)", command):
            assert (ROOT / folder / "conf.py").is_file(), command
            found += 1
        found += "cibuildwheel" in command
    assert found


def test_the_tested_pythons_are_the_oldest_and_the_newest_that_get_wheels() -> None:
    tested = jobs(FOLDER / "tests.yml")["tests"]["strategy"]["matrix"]["python"]
    built = re.findall(r"cp3(\d+)-", PROJECT["tool"]["cibuildwheel"]["build"])
    assert tested == [f"3.{min(built, key=int)}", f"3.{max(built, key=int)}"]
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"


def test_wheels_are_built_by_the_version_that_the_configuration_is_for() -> None:
    wanted = re.search(r"cibuildwheel (\d+): python -m cibuildwheel", (ROOT / "pyproject.toml").read_text())
    assert wanted
    installs = [command for command in commands(FOLDER / "wheels.yml") if "pip install" in command]
    assert f'"cibuildwheel>={wanted[1]},<{int(wanted[1]) + 1}"' in " ".join(installs)


def test_only_a_tag_publishes() -> None:
    publish = jobs(FOLDER / "wheels.yml")["publish"]
    assert publish["if"] == "github.event_name == 'push' && startsWith(github.ref, 'refs/tags/v')"
    assert set(publish["needs"]) == {"wheels", "source"}
    assert publish["permissions"] == {"id-token": "write"}


def test_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r"project\(adaptk VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    assert version
    assert str(citation["version"]) == version[1]
    assert citation["license"] == PROJECT["project"]["license"]


def test_the_changelog_has_the_version() -> None:
    version = re.search(r"project\(adaptk VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    assert version
    assert re.search(rf"^## {re.escape(version[1])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_issue_forms_are_complete() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) >= 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"], path
        assert form["description"], path
        names = [item["id"] for item in form["body"]]
        assert len(names) == len(set(names)), path
        assert any(item.get("validations", {}).get("required") for item in form["body"]), path


def test_actionlint() -> None:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("needs actionlint")
    done = subprocess.run([actionlint, *map(str, FILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
