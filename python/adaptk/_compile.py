"""Compiles rules that were made at run time, with the C++ compiler of this machine."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from adaptk import _cache, _core
from adaptk._machine import get_include
from adaptk._registry import Rule
from adaptk._rule_cpp import to_kernel

# The same flags as in cpp/CMakeLists.txt for the kernels of each instruction set, and in CMakeLists.txt for the
# library.
_OF_ISA = {
    "portable": ["-DADAPTK_TARGET=portable"],
    "x86-64-v2": ["-DADAPTK_TARGET=v2", "-march=x86-64-v2"],
    "x86-64-v3": ["-DADAPTK_TARGET=v3", "-march=x86-64-v3"],
    "x86-64-v4": ["-DADAPTK_TARGET=v4", "-march=x86-64-v4", "-mprefer-vector-width=512"],
    "neon": ["-DADAPTK_TARGET=neon"],
}
_FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_FLAGS += ["-shared", "-fPIC", "-fvisibility=hidden", "-w"]
_libraries: list[ctypes.CDLL] = []  # kept, so that they stay loaded


def compiler() -> list[str]:
    """The command of the C++ compiler: the value of the environment variable ``CXX``, or the first one that is found.

    Raises
    ------
    RuntimeError
        If there is none.
    """
    if os.name != "posix":
        raise RuntimeError("compile: rules are compiled on Linux and macOS only, by GCC or Clang")
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        found = shutil.which(candidate[0])
        if found is not None:
            return [found, *candidate[1:]]
    missing = f"CXX names {named[0]!r}, which is no program" if named else "no c++, g++ or clang++ is on PATH"
    raise RuntimeError(f"compile: needs GCC or Clang: {missing}")


@functools.cache
def _version(command: tuple[str, ...], changed: int) -> bytes:
    return subprocess.run([*command, "--version"], check=True, capture_output=True).stdout


@functools.cache
def _headers(folder: str) -> bytes:
    """The text of the headers: part of the key of a cached library."""
    all_of_them = sorted(p for p in Path(folder, "adaptk").glob("*.hpp") if p.name in _INCLUDED)
    return b"".join(p.read_bytes() for p in all_of_them)


_INCLUDED = ("config.hpp", "logarithm.hpp", "math.hpp", "power.hpp", "prefetch.hpp", "rule.hpp", "rule_loop.hpp")


def compile_rules(rules: Sequence[Rule]) -> None:
    """Compile rules into one library for the current instruction set, which then runs in place of the interpreter.

    Raises
    ------
    RuntimeError
        If there is no compiler, or it fails.
    OSError
        If there is no folder for the library.
    """
    isa = _core.get_isa()
    if measuring := [r.name for r in rules if r.reduces]:
        raise RuntimeError(f"compile: {measuring[0]} has reductions, such as a tensor's norm, and is interpreted")
    rules = [r for r in rules if isa not in _core.compiled_for(r.key)]
    if not rules:
        return
    command = compiler()
    text = "".join(to_kernel(r, f"_{i}") for i, r in enumerate(rules)).encode()
    arguments = [*_FLAGS, *_OF_ISA[isa], f"-I{get_include()}"]
    seen = hashlib.sha256()
    identity = [text, _core.version.encode(), _headers(get_include()), "\0".join([*command, *arguments]).encode()]
    for part in [*identity, _version(tuple(command), os.stat(command[0]).st_mtime_ns)]:
        seen.update(len(part).to_bytes(8, "little") + part)
    names = " ".join(r.name for r in rules)

    def make(out: Path) -> None:
        source = out.with_suffix(".cpp")
        source.write_bytes(text)
        done = subprocess.run([*command, *arguments, str(source), "-o", str(out)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"compile: {command[0]} could not compile {names}:\n{done.stderr[-4000:]}")

    path = _cache.file_of(f"{seen.hexdigest()[:40]}.so", make)
    library = ctypes.CDLL(str(path))
    _libraries.append(library)
    for i, r in enumerate(rules):
        steps = [getattr(library, f"adaptk_step_{i}_{k}") for k in range(4)]
        _core.use_compiled(r.key, isa, [ctypes.cast(s, ctypes.c_void_p).value or 0 for s in steps])
