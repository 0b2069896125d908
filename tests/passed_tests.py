"""Records the tests that passed in one run, so that the next run, with more packages, can skip them.

A test runs again if it did not pass, if its file names a new package (which may change it), and if it uses
Hypothesis, because the full tier has more examples.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest


class Record:
    """A plugin that writes the tests that passed, and the installed packages."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.outcomes: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        passed = report.passed and not hasattr(report, "wasxfail")
        if report.when == "call" or not passed:
            self.outcomes[report.nodeid] = passed and self.outcomes.get(report.nodeid, True)

    def pytest_sessionfinish(self) -> None:
        passed = [name for name, outcome in self.outcomes.items() if outcome]
        self.path.write_text(json.dumps({"packages": sorted(packages_distributions()), "passed": passed}))


def need_not_run(path: str, items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests that passed when `path` was written and need not run again."""
    before = json.loads(Path(path).read_text())
    passed = set(before["passed"])
    new = sorted(set(packages_distributions()) - set(before["packages"]))
    names = re.compile(rf"\b(?:{'|'.join(map(re.escape, new))})\b")

    @cache
    def names_a_new_one(file: Path) -> bool:
        return bool(new) and names.search(file.read_text(encoding="utf-8")) is not None

    def has_examples(item: pytest.Item) -> bool:
        return getattr(getattr(item, "obj", None), "is_hypothesis_test", False)

    return [i for i in items if i.nodeid in passed and not has_examples(i) and not names_a_new_one(i.path)]
