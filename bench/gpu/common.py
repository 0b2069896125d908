"""Shared by the programs of this folder: paths and result files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
Record: TypeAlias = dict[str, Any]


def find_modules(*folders: str) -> None:
    """Make modules of other folders of the repository, such as ``bench``, importable."""
    for folder in folders:
        if (path := str(ROOT / folder)) not in sys.path:
            sys.path.append(path)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Replace a file at once: if the program is stopped, the old file remains."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def read_json(path: Path) -> Record:
    """The results that a program has written, or None."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return record
