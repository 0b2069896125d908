"""The folder in which code that was made at run time is kept from process to process."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from adaptk import _core


def folder() -> Path:
    """``ADAPTK_CACHE``, or ``adaptk`` in the user's folder for caches; made if it is not there.

    Raises
    ------
    PermissionError
        If others may write to it, or to a folder above it: what it holds is run.
    OSError
        If it cannot be made.
    """
    return Path(_core.cache_folder())


def file_of(name: str, make: Callable[[Path], None]) -> Path:
    """The file of this name, which `make` has written: to another place, from which it is moved here.

    Processes that make it at the same time all get a whole one.
    """
    where = folder()
    path = where / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=where, prefix="making-") as work:
            made = Path(work) / name
            make(made)
            made.chmod(0o500)
            made.replace(path)
    s = path.lstat()
    if not stat.S_ISREG(s.st_mode) or s.st_uid != os.getuid() or s.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path}: not a file of this user's alone; delete it")
    return path
