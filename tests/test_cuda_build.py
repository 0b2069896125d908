"""The build with and without a CUDA compiler: from wheels alone, without one, and with one that does not work.

Every build uses a copy of the sources and its own environment, with no nvcc on the path but the test's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_copies import ROOT, copy_sources

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into ELF files"),
]

BUILD = ["scikit-build-core", "pybind11>=3.0", "cmake", "ninja", "cmeel-eigen"]


def documented() -> str:
    """The command of bench/cuda.md that installs the compiler."""
    return re.search(r'^pip install ("cuda-toolkit.*")$', (ROOT / "bench" / "cuda.md").read_text(), re.M)[1].strip('"')


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The programs of this machine without nvcc."""
    folder = tmp_path_factory.mktemp("bin")
    hidden = ("nvcc", "python", "pip", "cmake", "ninja", "ctest")
    for place in reversed(os.environ.get("PATH", os.defpath).split(os.pathsep)):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            if not program.name.startswith(hidden) and os.access(program, os.X_OK):
                link = folder / program.name
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return str(folder)


def environment(path: str, **more: str) -> dict[str, str]:
    removed = ("ADAPTK_", "CUDA", "CMAKE_", "NVCC", "SKBUILD_", "VIRTUAL_ENV", "PYTHONPATH", "LIBRARY_PATH")
    # These builds may use a compiler cache for their C++, if there is one.
    same = ("CMAKE_CXX_COMPILER_LAUNCHER", "ADAPTK_WERROR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(removed) or name in same}
    return {**kept, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **more}


def new_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def install(python: Path, *packages: str) -> None:
    command = [python, "-m", "pip", "install", "-q", "--no-compile", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"pip cannot install {' '.join(packages)} here: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what the build needs, and no nvcc."""
    python = new_environment(tmp_path_factory.mktemp("plain"))
    install(python, *BUILD, "numpy")
    return python


def configure(python: Path, sources: Path, build: Path, path: str, *options: str, **variables: str) -> tuple[int, str]:
    """CMake's exit status and output."""
    bin_folder = python.parent
    where = subprocess.run([python, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True)
    command = [bin_folder / "cmake", "-GNinja", "-S", sources, "-B", build, f"-DPython_EXECUTABLE={python}"]
    command += [f"-Dpybind11_DIR={where.stdout.strip()}", *options]
    done = subprocess.run(
        list(map(str, command)),
        env=environment(f"{bin_folder}{os.pathsep}{path}", **variables),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def one_line(text: str) -> str:
    """Joins the lines of CMake's errors."""
    return " ".join(text.split())


def modules(python: Path) -> set[str]:
    """The extension modules of the package in this Python; it must work."""
    code = (
        "import numpy, adaptk, pathlib; p = numpy.ones(3); adaptk.ops.sgd(p, numpy.ones(3), lr=0.5, step=1);"
        "assert p.tolist() == [0.5] * 3;"
        "print(*[f.name.split('.')[0] for f in pathlib.Path(adaptk.__file__).parent.glob('*.so')])"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/", env=environment(os.defpath))
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_auto_without_nvcc(plain: Path, sources: Path, path: str) -> None:
    """What `pip install .` does on a machine without CUDA."""
    command = [plain, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-v", str(sources)]
    where = f"{plain.parent}{os.pathsep}{path}"
    done = subprocess.run(command, env=environment(where), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "No CUDA kernels" in done.stdout + done.stderr
    assert modules(plain) == {"_core", "_solve"}


def test_on_without_nvcc(plain: Path, sources: Path, path: str, tmp_path: Path) -> None:
    status, text = configure(plain, sources, tmp_path, path, "-DADAPTK_CUDA=ON")
    assert status != 0
    assert "ADAPTK_CUDA=ON, but no working nvcc was found: no nvcc on the path or beside Python" in one_line(text)


def broken(folder: Path, script: str) -> Path:
    """A folder with an nvcc that is this script."""
    folder.mkdir()
    program = folder / "nvcc"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return folder


# One that fails, one that always succeeds, one that only prints its version.
BROKEN = {
    "fails": "echo 'unsupported GNU version! gcc versions later than 3 are not supported!' >&2; exit 1",
    "makes nothing": "exit 0",
    "knows its version": 'case "$*" in *--version*) echo "release 13.0, V13.0.88";; *) exit 2;; esac',
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("named", [False, True], ids=["on the path", "named"])
def test_auto_with_a_broken_nvcc(plain: Path, sources: Path, path: str, tmp_path: Path, kind: str, named: bool) -> None:
    folder = broken(tmp_path / "nvcc", BROKEN[kind])
    where = path if named else f"{folder}{os.pathsep}{path}"
    variables = {"CUDACXX": str(folder / "nvcc")} if named else {}
    status, text = configure(plain, sources, tmp_path / "build", where, **variables)
    assert status == 0, text
    assert "No CUDA kernels" in text
    assert f"{folder / 'nvcc'} does not work" in text
    targets = subprocess.run(
        [plain.parent / "ninja", "-C", tmp_path / "build", "-t", "targets", "all"], capture_output=True, text=True
    )
    assert "_core" in targets.stdout
    assert "adaptk_cuda" not in targets.stdout


def test_on_with_a_broken_nvcc(plain: Path, sources: Path, path: str, tmp_path: Path) -> None:
    folder = broken(tmp_path / "nvcc", BROKEN["fails"])
    given = f"-DCMAKE_CUDA_COMPILER={folder / 'nvcc'}"
    status, text = configure(plain, sources, tmp_path / "build", path, "-DADAPTK_CUDA=ON", given)
    assert status != 0
    assert "gcc versions later than 3 are not supported" in one_line(text)
    status, text = configure(plain, sources, tmp_path / "other", path, given)
    assert status == 0, text
    assert "No CUDA kernels" in text


def test_from_wheels_alone(sources: Path, path: str, tmp_path: Path) -> None:
    """The documented command, in a new environment; and the module that it makes."""
    python = new_environment(tmp_path / "venv")
    install(python, documented(), *BUILD, "numpy")
    # With isolation the build would download its requirements once more; nvcc is found in the same way.
    command = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-v", str(sources)]
    # This only checks that the compiler works; test_cuda_code.py checks the kernels.
    variables = {"ADAPTK_CUDA": "ON", "ADAPTK_CUDA_ARCHITECTURES": "90-virtual", "CUDAFLAGS": "-Ofc=max"}
    done = subprocess.run(
        command,
        env=environment(f"{python.parent}{os.pathsep}{path}", **variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"CUDA kernels: {python.parent.parent}" in done.stdout + done.stderr
    assert modules(python) == {"_core", "_cuda", "_solve"}
    (library,) = (tmp_path / "venv").glob("lib/python*/site-packages/adaptk/lib/libadaptk_cuda.so*")
    # The runtime is linked statically; it loads the driver when a device is requested.
    if readelf := shutil.which("readelf"):
        dynamic = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.*?)\]", dynamic)
        assert needed
        assert [name for name in needed if "cuda" in name.lower()] == []
        assert "libadaptk.so.0" in needed
        symbols = subprocess.run(
            [readelf, "-W", "--dyn-syms", library], capture_output=True, text=True, check=True
        ).stdout
        assert re.findall(r"DEFAULT +[0-9]+ (\w+)", symbols) == ["adaptk_cuda_backend"]
        assert re.findall(r"UND (_*(?:cuda|cu[A-Z])\w+)", symbols) == []
    code = (
        "import sys, adaptk; assert 'adaptk._cuda' not in sys.modules; import adaptk._cuda as c;"
        "print(c.architectures, c.toolkit)"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/", env=environment(os.defpath))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "90-virtual"
