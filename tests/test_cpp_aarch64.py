"""The C++ tests, the hashes and the kernel objects of another processor, under emulation."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cpp import (
    Build,
    check_batches,
    check_coefficients,
    check_hashes,
    check_loops,
    check_random_kernels,
    check_symbols,
    dialects_of,
    find_tool,
    run,
)

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Build:
    compiler = find_tool("aarch64-linux-gnu-g++")
    emulator = find_tool("qemu-aarch64", "qemu-aarch64-static")
    # Shared programs, with the cross compiler's own libraries: a static one aborts now and then if threads of OpenMP
    # end while main() returns, for the tables by which their stacks are unwound are gone by then.
    loader = Path(run(compiler, "-print-file-name=ld-linux-aarch64.so.1").strip())
    if not loader.is_absolute():
        pytest.skip(f"{compiler} has no libraries of the other processor")
    libraries = loader.parents[1].resolve()
    build = Build(tmp_path_factory.mktemp("aarch64"), (emulator, "-L", str(libraries)), "aarch64-linux-gnu-")
    # Not the CUDA part: nvcc compiles that, and other builds run it on the host.
    programs = (f"test_{name}" for name in (*AARCH64, "step"))
    build.make(
        *["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}"],
        *[f"-DCMAKE_CROSSCOMPILING_EMULATOR={emulator};-L;{libraries}", "-DADAPTK_LIBRARY=OFF"],
        targets=("adaptk_batch", "hash_table", *programs),
    )
    return build


# Those whose results could depend on the processor.
AARCH64 = ["batch", "convert", "dense", "norm", "power", "solve"]


@pytest.mark.parametrize("test", AARCH64)
def test_aarch64(aarch64: Build, test: str) -> None:
    aarch64.program(f"test_{test}", quick=True)


@pytest.mark.parametrize("part", ["single tensors", "mixed list", "caller's modes"])
def test_aarch64_step(aarch64: Build, part: str) -> None:
    aarch64.program("test_step", part, quick=True)


def test_hashes_aarch64(aarch64: Build) -> None:
    check_hashes(aarch64, "neon")  # by another name the portable kernels, which every such processor can run


def test_symbols_aarch64(aarch64: Build) -> None:
    check_symbols(aarch64)


def test_coefficients_aarch64(aarch64: Build) -> None:
    check_coefficients(aarch64, {"portable"})


def test_batches_aarch64(aarch64: Build) -> None:
    check_batches(aarch64)
    check_random_kernels(aarch64)


def test_loops_aarch64(aarch64: Build) -> None:
    check_loops(aarch64, dialects_of(aarch64))
