"""The cache folder for code that was made at run time, shared between processes."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from adaptk import _core


def folder() -> Path:
    """``ADAPTK_CACHE``, or ``adaptk`` in the user's cache folder; created if it does not exist.

    Raises
    ------
    PermissionError
        If other users may write to it or to a folder above it, because its contents are executed.
    OSError
        If it cannot be created.
    """
    return Path(_core.cache_folder())


def file_of(name: str, make: Callable[[Path], None]) -> Path:
    """The cached file of this name. If it does not exist, `make` writes it elsewhere, and it is moved into the cache.

    So processes that make it at the same time all get a complete file.
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
