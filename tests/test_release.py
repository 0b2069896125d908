"""Releases: the Pythons and systems that pyproject.toml builds wheels for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PYTHONS = ["cp310", "cp311", "cp312", "cp313", "cp314", "cp314t"]
TAGS = {
    "linux": ["manylinux_x86_64", "manylinux_aarch64"],
    "macos": ["macosx_arm64"],
    "windows": ["win_amd64"],
}


@pytest.mark.parametrize("platform", TAGS)
def test_wheels(platform: str) -> None:
    if importlib.util.find_spec("cibuildwheel") is None:
        pytest.skip("needs cibuildwheel")
    if int(version("cibuildwheel").split(".")[0]) < 4:
        pytest.skip("needs cibuildwheel 4")
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {f"{python}-{tag}" for python in PYTHONS for tag in TAGS[platform]}
