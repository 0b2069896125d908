"""Releases of PyTorch other than the installed one: removed names, and another release itself."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import adaptk.torch as at  # noqa: E402
import cuda_stand_ins  # noqa: E402
from adaptk.torch import _private as private  # noqa: E402
from torch_cases import OWN, TORCHS  # noqa: E402

HERE = Path(__file__).parent
LINUX = sys.platform == "linux"

# Names that `adaptk.torch` looks up, and without which the step has another code path.
HOOKS = (
    *("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"),
    *("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_step_code"),
)
CHECKS = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")
NATIVE = ("torch._C._aoti.unsafe_alloc_void_ptr_from_tensor", "torch._C._aoti")
ALL = (
    *("_disable_dynamo", "hooked", *HOOKS, *CHECKS, *NATIVE[1:]),
    *("torch._C._autograd._profiler_enabled", "torch._foreach_add_", "torch._foreach_norm"),
)


def program(names: Sequence[str], path: Sequence[Path] = ()) -> dict[str, Any]:
    """What tests/torch_release.py finds without these names."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *sys.path])}
    command = [sys.executable, str(HERE / "torch_release.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return program([])


@pytest.mark.full
def test_the_release_that_is_installed(expected: dict[str, Any]) -> None:
    assert expected["native"] == LINUX
    assert expected["hooked"]
    for case, found in expected["trained"].items():
        own = ["before", "after"]
        assert found["calls"] == 3 * ["all: before", *own, "all: after"] + own, case
        assert len(found["ranges"]) == 2
    said = ["error" if "unexpected keyword argument 'clip'" in x else x for x in expected["misused"]]
    assert said == ["after", "error", "own", "after", "own", "error", "[0.0, 0.0]"]
    assert expected["many"] == [[1.0, 2.0], pytest.approx(14.675**0.5, rel=1e-3)]
    assert "capturable is False" in expected["capture"]
    needs = [s.partition(":")[0] for s in expected["too_old"][:2]]
    assert needs == 2 * ["adaptk.torch needs PyTorch 2.10 or later, and this is 2.9.1"]
    assert expected["too_old"][2] == "[0.0, 0.0]"


# Names that are used together, and one of each kind alone; each one alone if exhaustive.
GONE = [(HOOKS[0],), (NATIVE[0],), CHECKS, ALL]
ALONE = [(name,) for name in (*HOOKS, *NATIVE) if (name,) not in GONE]


@pytest.mark.full
@pytest.mark.parametrize(
    "gone", [*GONE, *(pytest.param(names, marks=pytest.mark.exhaustive) for names in ALONE)], ids=" ".join
)
def test_without_names(gone: tuple[str, ...], expected: dict[str, Any]) -> None:
    """The same results, to the bit, of an import, construction, steps, hooks, a profiler and saved states."""
    found = program(gone)
    for key in ("trained", "many", "too_old"):
        assert found[key] == expected[key]
    said = list(expected["misused"])
    if not found["hooked"]:
        # As with PyTorch's classes, the hooks of one that overrides `step` are called for the step that it calls too.
        said.insert(4, "after")
    assert found["misused"] == said
    assert found["native"] == (expected["native"] and not set(gone) & set(NATIVE))
    assert found["hooked"] == (not set(gone) & set(HOOKS))
    if set(CHECKS) <= set(gone):
        # Only the native step's own checks are left, and these params are on the CPU.
        assert json.loads(found["capture"]) == pytest.approx([-1e-3] * 2)
    else:
        assert found["capture"] == expected["capture"]


@pytest.mark.parametrize("version", ["2.9.1", "2.9.0+cpu", "1.13.1", "2.8.0a0+git1"])
def test_releases_that_are_too_old(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    for name in (*TORCHS, *OWN):
        with pytest.raises(RuntimeError, match=r"needs PyTorch 2.10 or later") as refused:
            getattr(at, name)([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        assert version in str(refused.value)


@pytest.mark.full
def test_import_in_a_release_that_is_too_old() -> None:
    gone = [*ALL, "increment_version"]
    code = f"""
import torch_release
torch_release.without({gone})
import torch
torch.__version__ = "2.0.1"
import adaptk.torch
print(torch_release.refusal(lambda: adaptk.torch.Lion([torch.nn.Parameter(torch.ones(2))])))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("adaptk.torch needs PyTorch 2.10 or later, and this is 2.0.1"), done.stderr


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0a0+git1", "2.14.1+cu130", "2.100.0", "3.0.0", "unknown"])
def test_supported_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    at.SGD([p], lr=0.5).step()
    assert p.tolist() == [0.5, 0.5]


# The self-test of what the native step calls


@pytest.fixture
def native() -> Callable[[], dict[str, int]]:
    if not at._private.face():
        pytest.skip("the native step does without Python on Linux, in interpreters with a GIL")
    return private.face.__wrapped__


def functions() -> list[str]:
    return [*private._GETTERS, "assign_tensors", "grad", "bump_version"]


@pytest.mark.parametrize("name", functions())
def test_missing_functions(name: str, native: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    find = ctypes.CDLL.__getitem__
    symbol = {"grad": "TensorImpl4grad", "bump_version": "12bump_version"}.get(name, f"_{name}")

    def missing(self: ctypes.CDLL, wanted: Any) -> Any:
        if isinstance(wanted, str) and symbol in wanted:
            raise AttributeError(wanted)
        return find(self, wanted)

    assert set(functions()) < set(native())
    monkeypatch.setattr(ctypes.CDLL, "__getitem__", missing)
    assert native() == {}


POINTER = ctypes.c_void_p
ANSWERS = {
    "fails": ctypes.CFUNCTYPE(ctypes.c_int, POINTER, POINTER)(lambda tensor, out: 1),
    "says nothing": ctypes.CFUNCTYPE(ctypes.c_int, POINTER, POINTER)(lambda tensor, out: 0),
    "says what it should not": ctypes.CFUNCTYPE(ctypes.c_int, POINTER, POINTER)(
        lambda tensor, out: setattr(ctypes.c_int64.from_address(out), "value", 24) or 0
    ),
}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (name, answer)
        for name in functions()
        for answer in ANSWERS
        if name not in ("grad", "bump_version")
        # For these two a null result, which is 0, is right.
        and (name, answer) not in {("layout", "says nothing"), ("device_type", "says nothing")}
    ],
)
def test_functions_with_other_results(
    name: str, answer: str, native: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _replaced(monkeypatch, name, ANSWERS[answer])
    assert native() == {}


@pytest.mark.parametrize("address", [0, 24, 2**47])
def test_gradients_at_another_offset(
    address: int, native: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading there without a check would crash the process."""
    _replaced(monkeypatch, "grad", ctypes.CFUNCTYPE(POINTER, POINTER)(lambda impl: address))
    assert native() == {}


def test_versions_that_do_not_change(native: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    _replaced(monkeypatch, "bump_version", ctypes.CFUNCTYPE(None, POINTER)(lambda tensor: None))
    assert native() == {}


def test_tensors_at_another_offset(native: Callable[[], dict[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    init = private._Trial.__init__

    def further(self: Any, memory: Any) -> None:
        init(self, memory)
        self._offset += 8

    monkeypatch.setattr(private._Trial, "__init__", further)
    assert native() == {}


def _replaced(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    init = private._Trial.__init__

    def other(self: Any, memory: Any) -> None:
        init(self, memory)
        self.functions[name] = function

    monkeypatch.setattr(private._Trial, "__init__", other)


# Another release: the first of these that is not the installed one and that pip finds
OTHERS = ("2.15.0", "2.14.1", "2.13.0")


@pytest.fixture(scope="module")
def another() -> Iterator[Path]:
    """A folder with another release of PyTorch; a build for CUDA has stand-ins for CUDA's libraries."""
    if not LINUX or shutil.which("readelf") is None or shutil.which("cc") is None:
        pytest.skip("needs Linux, readelf and cc")
    installed = ".".join(torch.__version__.split(".")[:2])
    with tempfile.TemporaryDirectory() as folder:
        for release in OTHERS:
            if release.rpartition(".")[0] == installed:
                continue
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
            command += ["--target", folder, f"torch=={release}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            pytest.skip(f"pip cannot install any of {', '.join(OTHERS)} here: {done.stderr.strip().splitlines()[-1]}")
        cuda_stand_ins.build(Path(folder) / "torch" / "lib")
        yield Path(folder)


@pytest.mark.full
def test_another_release(another: Path, expected: dict[str, Any]) -> None:
    """The same bits, and the tests of training loops."""
    found = program([], [another])
    assert found.pop("torch").split("+")[0] != torch.__version__.split("+")[0]
    assert found == {key: value for key, value in expected.items() if key != "torch"}
    assert program(ALL, [another])["trained"] == expected["trained"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(another), *sys.path])}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(HERE / "test_torch_loop.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
