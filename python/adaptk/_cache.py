"""The folder in which code that was made at run time is kept from process to process."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def folder() -> Path:
    """``ADAPTK_CACHE``, or ``adaptk`` in the user's folder for caches; made if it is not there.

    Raises
    ------
    PermissionError
        If others may write to it: what it holds is run.
    OSError
        If it cannot be made.
    """
    named = os.environ.get("ADAPTK_CACHE")
    if named:
        path = Path(named)
    elif sys.platform == "darwin":
        path = Path.home() / "Library" / "Caches" / "adaptk"
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adaptk"
    path = path.absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(path)
    return path


def _check(path: Path) -> None:
    """That nobody but this user and the system's can change the path, as far as its permissions say."""
    for at in (path, *path.parents):
        s = at.stat()
        others = s.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if at == path else 0))
        kept_apart = at != path and s.st_mode & stat.S_ISVTX  # as /tmp: files there are their owners'
        if s.st_uid not in (os.getuid(), 0) or (at == path and s.st_uid != os.getuid()) or (others and not kept_apart):
            raise PermissionError(
                f"ADAPTK_CACHE: {at} is not this user's alone, and what {path} holds is run; name another folder by "
                "ADAPTK_CACHE, or take the others' right to write from it"
            )


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
