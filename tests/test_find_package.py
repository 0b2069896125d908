"""Programs that find the installed package with CMake or pkg-config, and the examples: built outside the tree."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import adaptk
import c_abi
import numpy as np
import pytest
from source_copies import ROOT, copy_sources

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs are built with the compilers of POSIX systems")

CONSUMERS = ROOT / "tests" / "find_package"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
# These builds may use a compiler cache, if there is one.
ENVIRONMENT = {
    k: v for k, v in os.environ.items() if not k.startswith(("ADAPTK_", "CMAKE_")) or k.endswith("_COMPILER_LAUNCHER")
} | {"PATH": PATH}


def tool(*names: str) -> str:
    found = next(filter(None, (shutil.which(name, path=PATH) for name in names)), None)
    if found is None:
        pytest.skip(f"needs {' or '.join(names)}")
    return found


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], env=ENVIRONMENT | environment, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()
        pytest.fail("\n".join([" ".join(map(str, command)), *lines[-60:]]), pytrace=False)
    return done.stdout


def build(sources: Path, folder: Path, *options: str, targets: tuple[str, ...] = ("all",)) -> Path:
    """A copy of the sources, built in its own folder, with little optimisation: it only must compile, link and run."""
    tool("cc", "gcc", "clang")
    cmake = tool("cmake")
    shutil.copytree(sources, folder / "source")
    generator = ["-GNinja"] if shutil.which("ninja", path=PATH) else []
    run(
        *(cmake, "-S", folder / "source", "-B", folder / "build", *generator),
        *("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS_RELEASE=-O1", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"),
        *("-DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF", *options),
    )
    run(cmake, "--build", folder / "build", "--parallel", "2", "--target", *targets)
    return folder / "build"


EXAMPLES = ROOT / "examples"
IN_PACKAGE = f"-Dadaptk_DIR={adaptk.get_cmake_dir()}"
WARNINGS = "-Wall -Wextra -Werror"


# The package inside the Python package


def test_package_location() -> None:
    for option, want in (("--cmake-dir", adaptk.get_cmake_dir()), ("--include-dir", adaptk.get_include())):
        done = subprocess.run(
            [sys.executable, "-m", "adaptk", "info", option], capture_output=True, text=True, check=True
        )
        assert done.stdout == want + "\n"
    assert (Path(adaptk.get_cmake_dir()) / "adaptk-config.cmake").is_file()
    for name in ("adaptk.h", "adaptk.hpp", "rules.hpp", "run.hpp", "rules/adam.hpp", "solve/newton.hpp"):
        assert (Path(adaptk.get_include()) / "adaptk" / name).is_file()


def test_no_duplicate_files() -> None:
    """A wheel holds copies instead of links."""
    libraries = sorted(p.name for p in Path(adaptk.get_cmake_dir()).parent.parent.glob("*adaptk*") if p.is_file())
    assert len(libraries) == len({name.split(".")[0] for name in libraries})


@pytest.mark.full
def test_c(tmp_path: Path) -> None:
    folder = build(CONSUMERS / "c", tmp_path, IN_PACKAGE)
    assert run(folder / "consumer").startswith(f"{adaptk.__version__}, ")


@pytest.mark.full
def test_cpp(tmp_path: Path) -> None:
    folder = build(CONSUMERS / "cpp", tmp_path, IN_PACKAGE, "-DCMAKE_CXX_FLAGS_RELEASE=-O3")
    for name in ("linked", "header_only", "both"):
        run(folder / name)


@pytest.mark.full
def test_another_version_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(p LANGUAGES NONE)\n"
        "find_package(adaptk ${wanted} CONFIG REQUIRED)\n"
    )
    cmake = tool("cmake")
    for wanted, found in (("0.2", True), ("0.2.0", True), ("0.3", False), ("1.0", False), ("0.1.0", False)):
        command = [cmake, "-S", tmp_path, "-B", tmp_path / wanted, IN_PACKAGE, f"-Dwanted={wanted}"]
        done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True)
        assert (done.returncode == 0) == found, (wanted, done.stderr)


def by_pkg_config(folder: Path, out: Path, **environment: str) -> None:
    """The program in C, built with the flags from pkg-config for the package in this folder."""
    config = tool("pkg-config", "pkgconf")
    flags = run(config, "--cflags", "--libs", "adaptk", PKG_CONFIG_PATH=str(folder)).split()
    source = CONSUMERS / "c" / "main.c"
    run(tool("cc", "gcc", "clang"), source, "-o", out / "consumer", *flags, "-lm")
    run(out / "consumer", **environment)


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="no pkg-config")
def test_pkg_config(tmp_path: Path) -> None:
    by_pkg_config(Path(adaptk.get_cmake_dir()).parent.parent / "pkgconfig", tmp_path)


@pytest.mark.full
def test_cuda(tmp_path: Path) -> None:
    """Compiled if there is an nvcc, and run if there is a device."""
    nvcc = tool("nvcc")
    folder = build(CONSUMERS / "cuda", tmp_path, IN_PACKAGE, f"-DCMAKE_CUDA_COMPILER={nvcc}")
    done = subprocess.run([folder / "consumer"], env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("compiled, and there is no CUDA device to run it on")
    assert done.returncode == 0, done.stderr


# The examples


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples in C++ whose matrix libraries are installed."""
    options = [IN_PACKAGE, f"-DCMAKE_CXX_FLAGS={WARNINGS}"]
    for place in map(Path, sys.path):  # the wheel of Eigen
        config = place / "cmeel.prefix" / "share" / "eigen3" / "cmake"
        if config.is_dir():
            options.append(f"-DEigen3_DIR={config}")
            break
    return build(EXAMPLES / "cpp", tmp_path_factory.mktemp("examples"), *options)


@pytest.mark.full
def test_example_in_c(tmp_path: Path) -> None:
    folder = build(EXAMPLES / "c", tmp_path, IN_PACKAGE, f"-DCMAKE_C_FLAGS={WARNINGS} -Wconversion -pedantic")
    assert "400 of 400 points right" in run(folder / "train")
    assert "16 of 16 cases right" in run(folder / "ggml_style")


@pytest.mark.full
def test_example_in_rust(tmp_path: Path) -> None:
    rustc = tool("rustc")
    library = Path(adaptk.get_cmake_dir()).parents[1]
    (name,) = [p.name for p in library.iterdir() if p.name.startswith(("libadaptk.so", "libadaptk.0.dylib"))]
    link = f"link-args={library / name} -Wl,-rpath,{library}"
    program = tmp_path / "train"
    run(rustc, "--edition", "2021", "-D", "warnings", "-O", "-C", link, "-o", program, EXAMPLES / "rust" / "train.rs")
    shown = run(program)
    assert "refused: grads[0]: shape (3,), expected (2,)" in shown
    assert "slope 3.000, intercept -1.000" in shown


@pytest.mark.full
def test_example_in_julia() -> None:
    julia = tool("julia")
    library = Path(adaptk.get_cmake_dir()).parents[1]
    (name,) = [p.name for p in library.iterdir() if p.name.startswith(("libadaptk.so", "libadaptk.0.dylib"))]
    assert run(julia, EXAMPLES / "julia" / "train.jl", ADAPTK_LIBRARY=str(library / name)).split() == ["found"]


JULIA_TYPES: dict[str, Any] = {
    "Cint": ctypes.c_int,
    "Csize_t": ctypes.c_size_t,
    "Cstring": ctypes.c_char_p,
    "Float64": ctypes.c_double,
    "Int32": ctypes.c_int32,
    "Int64": ctypes.c_int64,
    "UInt64": ctypes.c_uint64,
    "UInt8": ctypes.c_uint8,
    "UInt16": ctypes.c_uint16,
}


def test_declarations_of_the_example_in_julia() -> None:
    """Its structs and the arguments of its call against the header's, because few machines have Julia."""
    text = (EXAMPLES / "julia" / "train.jl").read_text()
    types = dict(JULIA_TYPES)
    same: dict[str, Any] = {"Device": c_abi.Device, "DType": c_abi.DataType}
    same |= {"Tensor": c_abi.Tensor, "Hyper": c_abi.Hyper}
    for struct, body in re.findall(r"^struct (\w+)\n(.*?)^end", text, re.M | re.S):
        fields = re.findall(r"^    (\w+)::(\S+)$", body, re.M)
        typed = [(name, ctypes.c_void_p if of.startswith("Ptr{") else types[of]) for name, of in fields]
        ours, theirs = type(struct, (ctypes.Structure,), {"_fields_": typed}), same.pop(struct)
        assert [name for name, _ in fields] == [name for name, *_ in theirs._fields_]
        for name, _ in fields:
            a, b = getattr(ours, name), getattr(theirs, name)
            assert (a.offset, a.size) == (b.offset, b.size), (struct, name)
        assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)
        types[struct] = ours
    assert not same
    (declared,) = re.findall(r"adaptk_status adaptk_step\((.*?)\);", c_abi.HEADER.read_text(), re.S)
    in_julia = {
        "const char*": "Cstring",
        "const adaptk_hyper*": "Ptr{Hyper}",
        "size_t": "Csize_t",
        "int64_t": "Int64",
        "const adaptk_tensor* const*": "Ptr{Ptr{Tensor}}",
        # NULL in the example.
        "const adaptk_step_options*": "Ptr{Cvoid}",
        "adaptk_step_report*": "Ptr{Cvoid}",
    }
    expected = [in_julia[" ".join(argument.split()[:-1])] for argument in declared.split(",")]
    (called,) = re.findall(r"ccall\(\(:adaptk_step, library\), Cint,\s*\((.*?)\),\n", text, re.S)
    assert re.split(r",\s*", called) == expected


def test_loop_of_the_example_in_julia() -> None:
    """Its steps, of matrices in the same order, reach what it prints."""
    text = (EXAMPLES / "julia" / "train.jl").read_text()
    (rows,) = re.findall(r"^target = Float32\[(.*)\]$", text, re.M)
    target = np.array([row.split() for row in rows.split(";")], np.float32, order="F")
    (count,) = re.findall(r"^for t in 1:(\d+)$", text, re.M)
    called = r'step!\("(\w+)", weights, weights - target, \(m, v\); step=t, lr=(\S+) / sqrt\(t\)\)$'
    ((rule, rate),) = re.findall(called, text, re.M)
    (limit,) = re.findall(r"maximum\(abs, weights - target\) < (\S+) \?", text)
    weights, m, v = (np.zeros_like(target) for _ in range(3))
    for t in range(1, int(count) + 1):
        c_abi.step(rule, [weights], [weights - target], [m, v], t, {"lr": float(rate) / t**0.5})
    assert np.abs(weights - target).max() < float(limit)


@pytest.mark.full
def test_example_with_libtorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch, whose package has libtorch's headers")
    options = [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", f"-DCMAKE_CXX_FLAGS={WARNINGS}"]
    folder = build(EXAMPLES / "libtorch", tmp_path, IN_PACKAGE, *options)
    shown = run(folder / "train")
    assert "saved, loaded and trained on: the same" in shown
    assert "lr: -1 is not in [0, inf)" in shown


@pytest.mark.full
@pytest.mark.parametrize(("name", "needs"), [("eigen", "Eigen"), ("armadillo", "Armadillo")])
def test_examples_in_cpp(examples: Path, name: str, needs: str) -> None:
    if not (examples / name).exists():
        pytest.skip(f"{needs} is not installed where CMake finds it")
    assert run(examples / name)


# The library alone, installed under a prefix


@pytest.mark.full
def test_prefix(tmp_path: Path) -> None:
    cmake = tool("cmake")
    generator = ["-GNinja"] if shutil.which("ninja", path=PATH) else []
    sources = copy_sources(tmp_path / "sources")
    library = sources / "build" / "library"
    options = ("-DADAPTK_PYTHON=OFF", "-DADAPTK_WERROR=ON", f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'first'}")
    run(cmake, "-S", sources, "-B", library, *generator, *options)
    run(cmake, "--build", library, "--parallel", "2")
    run(cmake, "--install", library)
    # The prefix can be moved.
    (tmp_path / "first").rename(tmp_path / "prefix")
    option = f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"
    folder = build(CONSUMERS / "c", tmp_path / "c", option)
    run(folder / "consumer")
    # The headers are the same as in the package.
    folder = build(CONSUMERS / "cpp", tmp_path / "cpp", option, targets=("linked",))
    run(folder / "linked")
    (config,) = (tmp_path / "prefix").rglob("adaptk.pc")
    by_pkg_config(config.parent, tmp_path, LD_LIBRARY_PATH=str(config.parent.parent))


# The benchmark


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module bench/cpp_race.py, whose program is built once."""
    compiler = tool("c++", "g++", "clang++")
    probe = [compiler, "-x", "c++", "-std=c++20", "-fsyntax-only", "-fopenmp", "-"]
    if subprocess.run(
        probe, input="#include <armadillo>\n#include <omp.h>\n", text=True, capture_output=True
    ).returncode:
        pytest.skip("needs Armadillo's headers and OpenMP")
    spec = importlib.util.spec_from_file_location("cpp_race", ROOT / "bench" / "cpp_race.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program = module.build(tmp_path_factory.mktemp("race"), True)
    module.build = lambda folder, openmp: program
    return module


@pytest.mark.full
@pytest.mark.parametrize("options", [["--quick"], ["--quick", "--markdown"]], ids=" ".join)
def test_bench_beside_armadillo(
    race: Any, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program builds, both sides reach the same params, and the table has every cell."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(sys, "argv", ["cpp_race.py", *options])
    race.main()
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.search(r"-?\d+ ns beyond adaptk::run, -?\d+ beyond the loop", first)
    if "--markdown" in options:
        assert len(lines) == 6
        assert all(line.count("|") == 6 for line in lines)
    else:
        assert len(lines) == 16
        assert all("armadillo / adaptk" in line for line in lines)
