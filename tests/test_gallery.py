"""The examples of the gallery: programs that run, draw, and use only the public interface."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import adaptk
import pytest

GALLERY = Path(__file__).resolve().parents[1] / "examples" / "gallery"
EXAMPLES = sorted(path.relative_to(GALLERY).as_posix() for path in GALLERY.rglob("*.py"))

pytestmark = pytest.mark.skipif(not GALLERY.is_dir(), reason="only in a checkout")

# Counts and closes figures instead of showing them.
SHOW = """
import sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
drawn = []
def show():
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
        plt.close(number)
        drawn.append(number)
plt.show = show
exec(compile(open(sys.argv[1], encoding="utf-8").read(), sys.argv[1], "exec"), {"__name__": "__main__"})
assert drawn and not plt.get_fignums()
"""


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 10


@pytest.mark.full
@pytest.mark.parametrize("name", EXAMPLES)
def test_runs(name: str, tmp_path: Path) -> None:
    """Without warnings, and without leaving files in its folder."""
    pytest.importorskip("matplotlib", "3.10")  # which has the style
    folder = tmp_path / "empty"
    folder.mkdir()
    command = [sys.executable, "-W", "error", "-c", SHOW, str(GALLERY / name)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any(folder.iterdir())


def dotted(node: ast.AST) -> list[str]:
    """The names of ``a.b.c``; empty for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return [*left, node.attr]
    return []


@pytest.mark.parametrize("name", EXAMPLES)
def test_public_names_only(name: str) -> None:
    tree = ast.parse((GALLERY / name).read_text(encoding="utf-8"))
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "adaptk":
            public: Any = importlib.import_module(node.module)
            assert {alias.name for alias in node.names} <= {*public.__all__, "schedules", "solve"}
            found += 1
        elif isinstance(node, ast.Attribute) and (names := dotted(node))[:1] == ["adaptk"]:
            assert not any(part.startswith("_") for part in names), names
            value: Any = adaptk
            for part in names[1:]:
                value = getattr(value, part)
            found += 1
    assert found
