"""What the programs of this folder share: paths, and files of results."""

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
    """Modules of other folders of the repository, such as ``bench``, can be imported from now on."""
    for folder in folders:
        if (path := str(ROOT / folder)) not in sys.path:
            sys.path.append(path)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a file as a whole: a program that ends in the middle leaves the one before."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def read_json(path: Path) -> Record:
    """What a program has written until it ended, or nothing."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return record
