"""The README: its examples run as pasted, its commands are those of the checks."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import adaptk
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="only in a checkout")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_examples_run_in_order(tmp_path: Path) -> None:
    examples = blocks("python")
    assert len(examples) >= 5
    if importlib.util.find_spec("torch") is None:
        examples = [e for e in examples if "torch." not in e]
    if any(importlib.util.find_spec(name) is None for name in ("jax", "adaptk._jax")):
        examples = [e for e in examples if "jax." not in e]
    program = tmp_path / "examples.py"
    program.write_text("\n".join(examples), encoding="utf-8")
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_test_command_matches_ci() -> None:
    (commands,) = blocks("sh")
    run, test = (line.split("#")[0].strip() for line in commands.splitlines())
    assert run == "pip install . && python -m adaptk demo"
    install, call = test.split(" && ")
    checked = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"{install.replace('pip install', 'pip install -q')} && {call}\n" in checked


def test_the_numbers_of_rules() -> None:
    text = README.read_text(encoding="utf-8")
    compiled, every = len(adaptk.rules()), len(adaptk.rules(catalogue=True))
    assert f"{compiled} compiled rules, {every - compiled} more from a catalogue" in text
    assert f"| rules with a fused CPU step | **{every}** |" in text
    assert f"{every - compiled} more rules are made this way" in text
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"A catalogue of {every - compiled} more rules" in changes


def test_the_table_matches_the_registry() -> None:
    section = README.read_text(encoding="utf-8").split("\n## Rules\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    assert [name for name, *_ in rows] == list(adaptk.rules())
    for name, classes, states, source in rows:
        rule = adaptk.rules()[name]
        assert all(f"`{c}`" in classes for c in (*rule.class_names, *rule.variant))
        assert re.findall(r"`(\w+)`", states) == [s.name for s in rule.states]
        assert source == rule.source
