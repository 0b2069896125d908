"""A second `pip install` compiles nothing: headers keep their paths and modification times."""

from __future__ import annotations

import subprocess
from pathlib import Path

from test_cpp import ROOT, find_tool

PROJECT = f"""cmake_minimum_required(VERSION 3.24)
project(kept LANGUAGES NONE)
include("{ROOT.as_posix()}/cpp/cmake/keep_headers.cmake")
add_library(kept::headers INTERFACE IMPORTED)
set_target_properties(kept::headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${{FOLDERS}}")
adaptk_keep_headers(kept::headers)
get_target_property(folders kept::headers INTERFACE_INCLUDE_DIRECTORIES)
file(WRITE "${{PROJECT_BINARY_DIR}}/folders.txt" "${{folders}}")
add_library(kept::nothing INTERFACE IMPORTED)
adaptk_keep_headers(kept::nothing)
"""


def configure(tmp_path: Path, *folders: Path) -> list[Path]:
    """The include folders that replace these ones of a target."""
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    command = [find_tool("cmake"), "-S", tmp_path, "-B", tmp_path / "build"]
    command.append("-DFOLDERS=" + ";".join(folder.as_posix() for folder in folders))
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Path(name) for name in (tmp_path / "build" / "folders.txt").read_text().split(";")]


def environment(folder: Path, text: str) -> Path:
    (folder / "library" / "detail").mkdir(parents=True)
    (folder / "library" / "main.hpp").write_text(text)
    (folder / "library" / "detail" / "part").write_text("part")
    return folder


def test_headers_of_a_temporary_environment(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.mkdir()
    (python / "Python.h").write_text("")
    first = environment(tmp_path / "one", "text")
    kept, same = configure(tmp_path, first, python)
    assert same == python
    assert kept.is_relative_to(tmp_path / "build")
    main, part = kept / "library" / "main.hpp", kept / "library" / "detail" / "part"
    assert main.read_text() == "text"
    times = main.stat().st_mtime_ns, part.stat().st_mtime_ns
    # Another environment with the same package: nothing changes.
    second = environment(tmp_path / "two", "text")
    assert configure(tmp_path, second, python) == [kept, same]
    assert (main.stat().st_mtime_ns, part.stat().st_mtime_ns) == times
    # With another version: only the differing files change.
    third = environment(tmp_path / "three", "other")
    assert configure(tmp_path, third, python) == [kept, same]
    assert main.read_text() == "other"
    assert main.stat().st_mtime_ns > times[0]
    assert part.stat().st_mtime_ns == times[1]
