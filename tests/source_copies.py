"""Copies of the sources for the builds of tests.

Each is built in a folder within its folder `build`, as `pip install` does. So the relative paths from builds to sources
are the same, and builds with the same options share cached objects: see .ci/run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# .gitignore says what scikit-build-core leaves out of a wheel.
FILES = [".gitignore", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"]
FOLDERS = ["cpp", "cuda", "python", "tests/cpp"]


def copy_sources(folder: Path) -> Path:
    """Copy all files that a build needs to the folder, without the results of earlier builds."""
    left = shutil.ignore_patterns("__pycache__", "*.so", "*.so.*", "*.pyc")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=left)
    for name in FILES:
        shutil.copy2(ROOT / name, folder / name)
    return folder
