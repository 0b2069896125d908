"""The GPU architectures of a build, with an nvcc that only answers queries."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from test_cpp import ROOT, find_tool

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the nvcc here is a shell script")

KNOWN = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)


def architectures(folder: Path, wanted: str, gpus: tuple[int, ...], known: tuple[int, ...] = KNOWN) -> str:
    nvcc = folder / "nvcc"
    listed = " ".join(f"sm_{number}" for number in known)
    native = "; ".join(f"echo '#$ cicc -arch sm_{n}' >&2; echo '#$ ptxas -arch=sm_{n}' >&2" for n in gpus)
    if not gpus:
        native = (
            "echo \"nvcc warning : Cannot find valid GPU for '-arch=native', default arch is used\" >&2;"
            f"echo '#$ ptxas -arch=sm_{known[0]}' >&2"
        )
    nvcc.write_text(
        f'#!/bin/sh\ncase "$*" in *--list-gpu-code*) echo {listed};; *-arch=native*) {native};; *) exit 1;; esac\n'
    )
    nvcc.chmod(0o755)
    script = folder / "ask.cmake"
    script.write_text(
        # Scripts have the oldest policies otherwise.
        "cmake_minimum_required(VERSION 3.24)\n"
        f'include("{ROOT}/cuda/nvcc.cmake")\n'
        f'adaptk_cuda_architectures("{nvcc}" "{wanted}" found)\n'
        'file(WRITE found.txt "${found}")\n'
    )
    subprocess.run([find_tool("cmake"), "-P", script], cwd=folder, check=True, capture_output=True)
    return (folder / "found.txt").read_text()


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        # Everything later compiles the PTX; Ada runs Ampere's binaries.
        ((), "80-virtual"),
        ((80,), "80-virtual;80-real"),
        ((86,), "80-virtual;80-real"),
        ((86, 89), "80-virtual;80-real"),
        ((90,), "80-virtual;90-real"),
        ((120, 90), "80-virtual;90-real;120-real"),
        ((75,), "75-virtual;75-real"),
        ((75, 120), "75-virtual;75-real;120-real"),
    ],
)
def test_default(tmp_path: Path, gpus: tuple[int, ...], expected: str) -> None:
    assert architectures(tmp_path, "default", gpus) == expected


def test_default_without_ampere(tmp_path: Path) -> None:
    """Compilers drop old architectures."""
    assert architectures(tmp_path, "default", (), (100, 110)) == "100-virtual"
    assert architectures(tmp_path, "default", (110,), (100, 110)) == "100-virtual;110-real"


def test_release(tmp_path: Path) -> None:
    wanted = "75-real;80-real;86-real;90-real;100-real;103-real;110-real;120"
    assert architectures(tmp_path, "release", ()) == wanted
    assert architectures(tmp_path, "release", (86,)) == wanted
    assert architectures(tmp_path, "release", (), (80, 90)) == "80-real;90"


@pytest.mark.parametrize(("gpus", "expected"), [((), "80-real"), ((86,), "86-real"), ((120, 90), "90-real")])
def test_development(tmp_path: Path, gpus: tuple[int, ...], expected: str) -> None:
    assert architectures(tmp_path, "development", gpus) == expected


def test_an_explicit_list_is_kept(tmp_path: Path) -> None:
    assert architectures(tmp_path, "86-real;90", (120,)) == "86-real;90"
