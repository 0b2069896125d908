"""Other compilers and systems: the library and its tests are built for them, and run if there is an emulator.

Every build must give the hashes of `tests/cpp/hashes.txt`, which GCC's build for Linux gives.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import adaptk
import pytest
from test_c_abi import declared
from test_cpp import PROGRAMS, ROOT, SOME_RULES, Build, check_hashes, find_compiler, find_tool, run

pytestmark = pytest.mark.full

CONSUMERS = ROOT / "tests" / "find_package"
ISAS = adaptk.available_isas()
# v2 is like the portable kernels of another compiler: loops, with vectors of the same width.
WIDE = [isa for isa in ISAS if isa != "x86-64-v2"]
# Those whose results could depend on the compiler: arithmetic, not the order of calls or threads.
ARITHMETIC = ("batch", "convert", "dense", "norm", "power", "program", "random", "reduce", "solve", "step")


# Clang


def least(compiler: str) -> str:
    """The oldest version that CMake accepts."""
    text = (ROOT / "cpp" / "cmake" / "compiler.cmake").read_text()
    return re.search(rf"set\(adaptk_least_{compiler} ([\d.]+)\)", text)[1]


def find_clang() -> str:
    compiler = find_tool("clang++", *(f"clang++-{version}" for version in range(30, 10, -1)))
    version = re.search(r"version (\d+)", run(compiler, "--version"))[1]
    if int(version) < int(least("Clang")):
        pytest.skip(f"{compiler} is Clang {version}, and {least('Clang')} is the oldest that can build the library")
    return compiler


@pytest.fixture(scope="module")
def clang(tmp_path_factory: pytest.TempPathFactory) -> Build:
    compiler = find_clang()
    build = Build(tmp_path_factory.mktemp("clang"), rules=SOME_RULES)
    # With the library's own threads: the other builds use OpenMP.
    options = (f"-DCMAKE_CXX_COMPILER={compiler}", "-DADAPTK_OPENMP=OFF", "-DADAPTK_X86_LEVELS=v3;v4")
    # nvcc compiles the CUDA part; other builds run it on the host.
    programs = (f"test_{name}" for name in ARITHMETIC)
    build.make(*options, targets=("adaptk", "adaptk_batch_portable", "hash_table", *programs))
    return build


def test_clang(clang: Build) -> None:
    clang.test("--tests-regex", f"^({'|'.join(ARITHMETIC)})$", quick=True)


def test_clang_takes_every_rule() -> None:
    """Also the loops, without code generation."""
    source = ROOT / "cpp" / "src" / "kernels.cpp"
    options = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-DADAPTK_TARGET=portable"]
    folders = [f"-I{ROOT / 'cpp' / name}" for name in ("include", "src")]
    run(find_clang(), *options, *folders, source)


@pytest.mark.parametrize("isa", WIDE)
def test_hashes_clang(clang: Build, isa: str) -> None:
    check_hashes(clang, isa)


def test_clang_cl_takes_the_options(tmp_path: Path) -> None:
    """clang-cl ignores unknown options with a warning: contraction into FMA would stay enabled."""
    compiler = find_clang()
    (tmp_path / "empty.cpp").write_text("")
    files = ("CMakeLists.txt", "cpp/CMakeLists.txt", "cpp/cmake/contraction.cmake")
    text = "".join((ROOT / name).read_text() for name in files)
    options = sorted(set(re.findall(r"/clang:[\w=-]+", text)) - {"/clang:-ffp-contract=fast"})
    assert "/clang:-ffp-contract=off" in options
    isas = re.findall(r"adaptk_kernels\(v\d (-march=[^)]*)\)", text)
    assert len(isas) == 3
    for isa in isas:
        command = [compiler, "--driver-mode=cl", "--target=x86_64-pc-windows-msvc", "-###", "/c", "/std:c++20"]
        command += ["/W4", "/WX", "/bigobj", "/utf-8", *options, isa.split()[0]]
        # Paths may begin like options: /W.
        command += ["--", str(tmp_path / "empty.cpp")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0
        assert "warning:" not in done.stderr
        assert "error:" not in done.stderr
        assert '"-ffp-contract=off"' in done.stderr
        assert '"-fmath-errno"' not in done.stderr
        assert f'"{isa.split()[0].removeprefix("-march=")}"' in done.stderr


@pytest.mark.parametrize(
    ("compiler", "version", "accepted"),
    [
        ("GNU", "10.5.0", False),
        ("GNU", "11.1.0", True),
        ("Clang", "13.0.1", False),
        ("Clang", "14.0.6", True),
        ("AppleClang", "13.1.6", False),
        ("AppleClang", "15.0.0", True),
        ("MSVC", "19.29.30154", False),
        ("MSVC", "19.30.30705", True),
        ("IntelLLVM", "2024.0.0", True),
    ],
)
def test_old_compilers_are_refused(tmp_path: Path, compiler: str, version: str, accepted: bool) -> None:
    script = tmp_path / "check.cmake"
    script.write_text(
        f'include("{ROOT.as_posix()}/cpp/cmake/compiler.cmake")\nadaptk_check_compiler({compiler} {version})\n'
    )
    done = subprocess.run([find_tool("cmake"), "-P", script], capture_output=True, text=True)
    assert (done.returncode == 0) == accepted
    if not accepted:
        text = " ".join(done.stderr.split())
        assert f"The C++ compiler is {compiler} {version}: name another one in the environment variable CXX" in text
        assert f"GCC {least('GNU')}, Clang {least('Clang')}, AppleClang {least('AppleClang')} or" in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-DADAPTK_PYTHON=OFF", "-DADAPTK_RULES=sgd;lionn"), "no such rule: lionn; there are sgd, momentum, "),
        (("-DADAPTK_RULES=sgd",), "the Python package has all rules. Set ADAPTK_PYTHON=OFF"),
    ],
)
def test_invalid_choices_of_rules(tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    find_compiler()
    command = [find_tool("cmake"), "-S", ROOT, "-B", tmp_path, "-DADAPTK_CUDA=OFF", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert reason in " ".join(done.stderr.split())


# The code for compilers without GCC's builtins and vectors, with the compiler of this machine


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Build:
    find_compiler()
    build = Build(tmp_path_factory.mktemp("standard"), rules=SOME_RULES)
    tests = ("adaptk_batch_portable", "hash_table", *(f"test_{name}" for name in STANDARD))
    # This code is the same on every instruction set; v3 also has intrinsics, unlike the portable kernels. With little
    # optimisation, which differs between compilers anyway.
    options = ("-DADAPTK_OPENMP=OFF", "-DADAPTK_X86_LEVELS=v3", "-DADAPTK_OPTIMIZATION=-O1")
    build.make("-DCMAKE_CXX_FLAGS=-DADAPTK_STANDARD_CXX", *options, targets=tests)
    return build


# The tests of this code.
STANDARD = ("batch", "convert", "dense", "norm", "pool", "registry", "step")


@pytest.mark.parametrize("test", STANDARD)
def test_standard(standard: Build, test: str) -> None:
    standard.program(f"test_{test}", quick=True)


@pytest.mark.parametrize("isa", [isa for isa in WIDE if isa != "x86-64-v4"])
def test_hashes_standard(standard: Build, isa: str) -> None:
    check_hashes(standard, isa)


# Windows, by MinGW-w64 and Wine


@dataclass
class Windows:
    build: Build
    options: tuple[str, ...]

    def configure(self, source: Path, folder: Path, *options: str) -> None:
        cmake = find_tool("cmake")
        run(cmake, "-S", source, "-B", folder, "-GNinja", *self.options, *options)
        run(cmake, "--build", folder)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    # The variant with POSIX threads has std::thread; on some systems the plain name is the other variant.
    compiler = find_tool("x86_64-w64-mingw32-g++-posix", "x86_64-w64-mingw32-g++")
    wine = find_tool("wine", "wine64")
    find_tool("ninja")
    prefix = tmp_path_factory.mktemp("wine") / "prefix"
    emulator = ("env", f"WINEPREFIX={prefix}", "WINEDEBUG=-all", wine)
    options = (
        *("-DCMAKE_SYSTEM_NAME=Windows", "-DCMAKE_SYSTEM_PROCESSOR=AMD64", "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_C_COMPILER={compiler.replace('g++', 'gcc')}"),
        # Wine does not find the compiler's own DLLs.
        *("-DCMAKE_EXE_LINKER_FLAGS=-static", "-DCMAKE_SHARED_LINKER_FLAGS=-static"),
    )
    build = Build(tmp_path_factory.mktemp("windows"), emulator, "x86_64-w64-mingw32-", ".exe")
    build.make(*options)
    return Windows(build, options)


@pytest.mark.parametrize("test", PROGRAMS)
def test_windows(windows: Windows, test: str) -> None:
    windows.build.program(f"test_{test}", quick=True)


@pytest.mark.parametrize("isa", ISAS)
def test_hashes_windows(windows: Windows, isa: str) -> None:
    check_hashes(windows.build, isa)


def test_exports_windows(windows: Windows) -> None:
    objdump = find_tool("x86_64-w64-mingw32-objdump")
    text = run(objdump, "-p", windows.build.folder / "adaptk-0.dll")
    table = text[text.index("[Ordinal/Name Pointer] Table") :]
    names = set(re.findall(r"^\s*\[\s*\d+\](?: \+base\[\s*\d+\]\s+[0-9a-f]+)? (\w+)$", table, re.M))
    assert {name for name in names if name.startswith("adaptk_")} == declared()
    assert all(name.startswith(("adaptk_", "_ZN6adaptk6detail", "_ZNK6adaptk6detail")) for name in names)


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_installed_on_windows(windows: Windows, tmp_path: Path, language: str) -> None:
    """Programs that find the package under its prefix, with the DLL in their folder."""
    prefix = tmp_path / "prefix"
    run(find_tool("cmake"), "--install", windows.build.folder, "--prefix", prefix)
    assert (prefix / "bin" / "adaptk-0.dll").is_file()
    assert not list((prefix / "lib").glob("*.dll"))
    # Wine would not find OpenMP's DLL either.
    options = (f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON")
    windows.configure(CONSUMERS / language, tmp_path / "build", *options)
    for program in ("consumer",) if language == "c" else ("linked", "header_only", "both"):
        run(*windows.build.emulator, tmp_path / "build" / f"{program}.exe")


# macOS, with the compiler and libraries of the package ziglang: built and linked, not run


def test_macos(tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs ziglang")
    wrappers = {"c++": "c++ -target aarch64-macos.13.3", "ar": "ar", "ranlib": "ranlib"}
    for name, command in wrappers.items():
        path = tmp_path / f"zig-{name}"
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {command} "$@"\n')
        path.chmod(0o755)
    build = Build(tmp_path / "sources")
    build.make(
        *("-DCMAKE_SYSTEM_NAME=Darwin", "-DCMAKE_SYSTEM_PROCESSOR=arm64", f"-DCMAKE_CXX_COMPILER={tmp_path}/zig-c++"),
        *(f"-DCMAKE_AR={tmp_path}/zig-ar", f"-DCMAKE_RANLIB={tmp_path}/zig-ranlib"),
        f"-DCMAKE_INSTALL_NAME_TOOL={shutil.which('true')}",
        targets=("adaptk", "test_step", "test_solve"),
    )
    library = build.folder / "libadaptk.0.dylib"
    data = library.read_bytes()
    assert data[:8] == b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01"  # 64 bits, arm64
    assert b"@rpath/libadaptk.0.dylib" in data
    nm = find_tool("llvm-nm", *(f"llvm-nm-{version}" for version in range(23, 13, -1)))
    names = {line.split()[-1] for line in run(nm, "--extern-only", "--defined-only", library).splitlines()}
    assert {name[1:] for name in names if name.startswith("_adaptk_")} == declared()
