"""Threads, instruction sets, the environment, the build, and the cost of the import."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest

Array = np.ndarray[Any, Any]

# Enough elements for several threads.
LARGE = 200_003

# `build_info()` would load the CUDA kernels with a CUDA runtime before the simulated one is installed.
needs_openmp = pytest.mark.skipif(adaptk._core.openmp is None, reason="a build without OpenMP")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter whose only variables for threads and instruction sets are the given ones."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ADAPTK_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, timeout=120
    )


def output(code: str, **environment: str) -> str:
    done = run_python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def import_error(**environment: str) -> str:
    """The message of the ImportError of `import adaptk`."""
    done = run_python("import adaptk", **environment)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), done.stderr
    return last.removeprefix("ImportError: ")


def run_adam(steps: int = 3, size: int = LARGE, seed: int = 0) -> bytes:
    """A run with tensors of uneven sizes in float32 and float16, clipped."""
    rng = np.random.default_rng(seed)
    sizes = (1, size, 7, size // 3)
    params = [rng.normal(size=n).astype(np.float32 if i % 2 else np.float16) for i, n in enumerate(sizes)]
    optimizer = adaptk.AdamW(params, lr=0.01, clip_norm=1.0)
    norms = [optimizer.step([p * p.dtype.type(0.5) for p in params]).grad_norm for _ in range(steps)]
    states = [x.tobytes() for s in optimizer.state.values() for x in s.values()]
    return b"".join([*(p.tobytes() for p in params), *states, np.array(norms).tobytes()])


# Threads


@pytest.mark.usefixtures("restored")
def test_set_num_threads() -> None:
    assert adaptk.get_num_threads() >= 1
    adaptk.set_num_threads(1)
    assert adaptk.get_num_threads() == 1
    for n in (0, -1, 1025, 2**62):
        with pytest.raises(ValueError, match=rf"the number of threads must be in \[1, 1024\], got {n}"):
            adaptk.set_num_threads(n)
    for n in (1.5, "2", None):
        with pytest.raises(TypeError):
            adaptk.set_num_threads(n)  # type: ignore[arg-type]
    assert adaptk.get_num_threads() == 1


@pytest.mark.usefixtures("restored")
def test_more_threads_than_processors() -> None:
    adaptk.set_num_threads(1)
    want = run_adam()
    for n in (2, 3, 16, 1024):
        adaptk.set_num_threads(n)
        assert adaptk.get_num_threads() == n
        assert run_adam() == want


@pytest.mark.parametrize(
    ("environment", "n"),
    [
        ({"ADAPTK_NUM_THREADS": "3"}, 3),
        ({"ADAPTK_NUM_THREADS": "1", "OMP_NUM_THREADS": "5"}, 1),
        pytest.param({"OMP_NUM_THREADS": "5"}, 5, marks=needs_openmp),
        pytest.param({"ADAPTK_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5, marks=needs_openmp),
    ],
)
def test_threads_from_the_environment(environment: dict[str, str], n: int) -> None:
    assert output("import adaptk; print(adaptk.get_num_threads())", **environment) == str(n)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("many", "ADAPTK_NUM_THREADS: not a number: 'many'"),
        ("2.5", "ADAPTK_NUM_THREADS: not a number: '2.5'"),
        ("0", "ADAPTK_NUM_THREADS: the number of threads must be in [1, 1024], got 0"),
        ("-3", "ADAPTK_NUM_THREADS: the number of threads must be in [1, 1024], got -3"),
        ("99999999999999999999", "ADAPTK_NUM_THREADS: not a number: '99999999999999999999'"),
    ],
)
def test_invalid_number_of_threads(value: str, text: str) -> None:
    assert import_error(ADAPTK_NUM_THREADS=value) == text


# Instruction sets


@pytest.mark.usefixtures("restored")
def test_set_isa() -> None:
    available = adaptk.available_isas()
    assert available[0] == "portable"
    assert len(set(available)) == len(available)
    assert set(available) <= set(adaptk.build_info()["isas"])
    for name in available:
        adaptk.set_isa(name)
        assert adaptk.get_isa() == name
    with pytest.raises(ValueError, match="unknown instruction set 'avx9'; this machine has portable"):
        adaptk.set_isa("avx9")
    with pytest.raises(TypeError):
        adaptk.set_isa(4)  # type: ignore[arg-type]
    assert adaptk.get_isa() == available[-1]
    available.clear()
    assert adaptk.available_isas()


@pytest.mark.usefixtures("restored")
def test_every_instruction_set_gives_the_same_bits() -> None:
    results = set()
    for name in adaptk.available_isas():
        adaptk.set_isa(name)
        results.add(run_adam())
    assert len(results) == 1


@pytest.mark.parametrize("name", adaptk.available_isas())
def test_an_instruction_set_from_the_environment(name: str) -> None:
    assert output("import adaptk; print(adaptk.get_isa())", ADAPTK_ISA=name) == name


def test_the_best_instruction_set_is_the_default() -> None:
    for environment in ({}, {"ADAPTK_ISA": ""}):
        assert output("import adaptk; print(adaptk.get_isa())", **environment) == adaptk.available_isas()[-1]


def test_an_unknown_instruction_set_in_the_environment() -> None:
    usable = ", ".join(adaptk.available_isas())
    text = f"ADAPTK_ISA: unknown instruction set 'avx9'; this machine has {usable}"
    assert import_error(ADAPTK_ISA="avx9") == text


@pytest.mark.usefixtures("restored")
def test_unsupported_instruction_set() -> None:
    lacking = [name for name in adaptk.build_info()["isas"] if name not in adaptk.available_isas()]
    if not lacking:
        pytest.skip("this processor has every instruction set of the build")
    text = f"this processor does not have {lacking[0]}; it has {', '.join(adaptk.available_isas())}"
    assert import_error(ADAPTK_ISA=lacking[0]) == f"ADAPTK_ISA: {text}"
    with pytest.raises(ValueError, match=text):
        adaptk.set_isa(lacking[0])


# Processes and threads of other libraries


FORK = """
import multiprocessing, warnings
import numpy as np, adaptk

# Python warns of forks of processes with threads.
warnings.simplefilter("ignore", DeprecationWarning)

def work():
    params = [np.linspace(-1, 1, 300_000, dtype=np.float32)]
    optimizer = adaptk.Adam(params, lr=0.1)
    for _ in range(3):
        optimizer.step([params[0] * 2], clip_norm=1.0)
    return params[0].tobytes()

def child(queue, parents):
    try:
        adaptk.set_num_threads(2)
        error = ""
    except RuntimeError as e:
        error = str(e)
    adaptk.set_num_threads(1)
    queue.put((adaptk.get_num_threads(), error, work() == parents))

context = multiprocessing.get_context("fork")
adaptk.set_num_threads(4)
mine = work()
queue = context.Queue()
process = context.Process(target=child, args=(queue, mine))
process.start()
threads, error, same = queue.get(timeout=60)
process.join(60)
assert process.exitcode == 0, process.exitcode
assert threads == 1, threads
assert "forked child works on one thread" in error, error
assert same
assert adaptk.get_num_threads() == 4
assert work() == mine
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_steps_after_fork() -> None:
    assert output(FORK) == "done"


@pytest.mark.usefixtures("restored")
def test_optimizers_in_many_threads() -> None:
    want = [run_adam(seed=i) for i in range(4)]
    adaptk.set_num_threads(3)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert list(pool.map(lambda i: run_adam(seed=i), range(4))) == want


@pytest.fixture(scope="module")
def parallel_region(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], None]:
    """A function that calls another one from inside a parallel region of OpenMP that is not adaptk's."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("region")
    source, library = folder / "region.c", folder / "region.so"
    source.write_text(
        "#include <omp.h>\n"
        "int region(void (*work)(void)) {\n"
        "    int team = 0;\n"
        "    #pragma omp parallel num_threads(2)\n"
        "    {\n"
        "        #pragma omp single\n"
        "        { team = omp_get_num_threads(); work(); }\n"
        "    }\n"
        "    return team;\n"
        "}\n"
    )
    command = [compiler, "-shared", "-fPIC", "-fopenmp", str(source), "-o", str(library)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a C compiler without OpenMP")
    loaded = ctypes.CDLL(str(library))
    callback = ctypes.CFUNCTYPE(None)

    def region(work: Callable[[], None]) -> None:
        assert loaded.region(callback(work)) == 2

    return region


@pytest.mark.usefixtures("restored")
def test_a_step_inside_a_parallel_region(parallel_region: Callable[[Any], None]) -> None:
    adaptk.set_num_threads(4)
    want = run_adam()
    got: list[bytes] = []
    for _ in range(3):
        parallel_region(lambda: got.append(run_adam()))
    assert got == [want] * 3


@pytest.fixture
def uninterrupted() -> Iterator[None]:
    """A thread keeps the GIL until it releases it by itself."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="a Python without a GIL")
@pytest.mark.usefixtures("uninterrupted")
@pytest.mark.parametrize("what", ["optimizer", "function", "list", "norm"])
def test_a_long_step_releases_the_gil(what: str) -> None:
    param, grad = np.zeros(4_000_000, np.float16), np.zeros(4_000_000, np.float16)
    optimizer = adaptk.SGD([param])
    work: dict[str, Callable[[], Any]] = {
        "optimizer": lambda: optimizer.step([grad]),
        "function": lambda: adaptk.ops.sgd(param, grad, step=1),
        "list": lambda: adaptk.ops.sgd([param], [grad], step=1),
        "norm": lambda: adaptk.global_norm([grad]),
    }
    count = 0
    stop = threading.Event()

    def counter() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0)

    thread = threading.Thread(target=counter)
    thread.start()
    try:
        # The other thread runs between the two readings only if the step releases the GIL.
        for _ in range(200):
            before = count
            work[what]()
            if count > before:
                break
        else:
            raise AssertionError("no other thread ran during 200 steps")
    finally:
        stop.set()
        thread.join()


def test_flushing_subnormal_numbers_changes_nothing() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed, and it is what switches the mode here")

    # Made beforehand: NumPy would flush them.
    types = ((np.float16, 6e-8), (np.float32, 1e-44), (np.float64, 1e-311))
    arrays = [
        [np.full(n, k * tiny, dtype) for n, k in ((LARGE, 1), (3, 50), (LARGE, 7), (3, 7))] for dtype, tiny in types
    ]

    def run() -> list[bytes]:
        results = []
        for *grads, first, second in arrays:
            results.append(np.float64(adaptk.global_norm(grads[1:])).tobytes())
            for rule in ("sgd", "momentum", "adam", "rmsprop"):
                params = [first.copy(), second.copy()]
                optimizer = adaptk.optimizer_for(rule, params, 0.25)
                for _ in range(2):
                    info = optimizer.step(grads, clip_norm=1.0)
                results += [x.tobytes() for s in optimizer.state.values() for x in s.values()]
                results += [p.tobytes() for p in params]
                results.append(np.float64(info.grad_norm).tobytes())
        return results

    want = run()
    got: list[list[bytes]] = []
    flushed: list[bool] = []

    def flushing() -> None:
        # The mode belongs to the thread and ends with it.
        if torch.set_flush_denormal(True):
            flushed.append(float(np.float64(5e-323) * 1.0) == 0.0)
            got.append(run())
            flushed.append(float(np.float64(5e-323) * 1.0) == 0.0)

    thread = threading.Thread(target=flushing)
    thread.start()
    thread.join()
    if not got:
        pytest.skip("a processor that cannot flush subnormal numbers")
    assert flushed == [True, True]
    assert got == [want]


# The import and the build


def test_the_import_loads_no_optional_package() -> None:
    code = """
import sys, adaptk
optional = ("torch", "jax", "matplotlib", "ml_dtypes", "scipy", "cupy", "optax", "keras", "safetensors", "rich")
optional += ("ctypes.util", "adaptk._cli")
print([name for name in optional if name in sys.modules])
"""
    assert output(code) == "[]"


def test_the_time_of_the_import() -> None:
    code = """
import time
import numpy
start = time.perf_counter()
import adaptk
print(time.perf_counter() - start)
"""
    seconds = float(output(code))
    print(f"import adaptk, after NumPy: {seconds * 1e3:.1f} ms")
    assert seconds > 0.0


def test_build_info() -> None:
    info = adaptk.build_info()
    assert set(info) == {"version", "compiler", "isas", "openmp", "eigen", "cuda"}
    assert info["version"] == adaptk.__version__
    assert all(part.isdigit() for part in info["version"].split("."))
    assert info["compiler"]
    assert info["isas"][0] == "portable"
    assert info["openmp"] is None or info["openmp"] >= 201107
    assert info["eigen"] is None or isinstance(info["eigen"], str)
    assert info["cuda"] is None or isinstance(info["cuda"], dict)
    info["isas"].clear()
    assert adaptk.build_info()["isas"]


def test_the_version_is_the_projects() -> None:
    project = Path(__file__).parents[1] / "CMakeLists.txt"
    assert f"project(adaptk VERSION {adaptk.__version__} " in project.read_text()


# CUDA: messages of a build without it, and of a machine without a device. Tests marked `cuda` have the rest.


WITHOUT_CUDA = """
import sys
sys.modules["adaptk._cuda"] = None
import adaptk, numpy as np
"""

# An array that says that it is on a device.
ON_CUDA = """
class OnCuda:
    def __dlpack_device__(self): return 2, 0
    def __dlpack__(self, **_): raise AssertionError("nobody can look at it")
class OldOnCuda:
    __cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (4096, False), "version": 3}
p = np.ones(3, np.float32)
def refused(call):
    try:
        call()
    except Exception as e:
        print(type(e).__name__ + ": " + str(e))
for array in (OnCuda(), OldOnCuda()):
    refused(lambda: adaptk.ops.sgd(p, array, step=1))
    refused(lambda: adaptk.global_norm([array]))
    refused(lambda: adaptk.Adam([array]))
refused(lambda: adaptk.Adam([p], capturable=True))
assert p.tolist() == [1, 1, 1]
"""


def test_a_build_without_cuda() -> None:
    code = WITHOUT_CUDA + "print(adaptk.cuda.is_available(), adaptk.cuda.devices(), adaptk.build_info()['cuda'])"
    assert output(code) == "False [] None"
    reason = "on the device cuda:0, but this build has no CUDA kernels (adaptk.build_info()['cuda'] is None)"
    assert output(WITHOUT_CUDA + ON_CUDA).splitlines() == [
        *[f"ValueError: {name}: {reason}" for name in ("grad", "grads[0]", "params[0]")] * 2,
        "ValueError: capturable: params[0] is on cpu, expected a CUDA device",
    ]


def test_the_package_without_its_cuda_module(tmp_path: Path) -> None:
    folder = Path(adaptk.__file__).parent
    shutil.copytree(folder, tmp_path / "adaptk", ignore=shutil.ignore_patterns("_cuda*", "__pycache__"))
    core = Path(adaptk._core.__file__)
    # In a separate folder in some editable installations.
    shutil.copytree(core.parent / "lib", tmp_path / "adaptk" / "lib", dirs_exist_ok=True)
    for module in core.parent.glob(f"*{core.suffix}"):
        if not module.name.startswith("_cuda"):
            shutil.copy(module, tmp_path / "adaptk")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += f"import adaptk; assert adaptk.__file__.startswith({str(tmp_path)!r})\n"
    code += "print(adaptk.build_info()['cuda'], adaptk.cuda.devices())"
    assert output(code) == "None []"


def test_a_machine_without_a_device() -> None:
    if adaptk.build_info()["cuda"] is None:
        pytest.skip("a build without CUDA kernels")
    # A device, if there is one, is hidden.
    hidden = {"CUDA_VISIBLE_DEVICES": "-1"}
    code = "import adaptk, numpy as np\n"
    assert output(code + "print(adaptk.cuda.is_available(), adaptk.cuda.devices())", **hidden) == "False []"
    lines = output(code + ON_CUDA, **hidden).splitlines()
    for line, name in zip(lines, ["grad", "grads[0]", "params[0]"] * 2, strict=False):
        assert line.startswith(f"ValueError: {name}: on the device cuda:0, but "), line
        assert "cudaGetDeviceCount: " in line or "there are 0 CUDA devices here" in line, line
    assert lines[6:] == ["ValueError: capturable: params[0] is on cpu, expected a CUDA device"]


def test_a_cuda_module_of_another_build() -> None:
    code = """
import ctypes, sys, types
import adaptk, numpy as np
new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
size = ctypes.c_size_t(8)
module = types.ModuleType("adaptk._cuda")
module.backend = new(ctypes.addressof(size), b"adaptk.cuda_backend", None)
sys.modules["adaptk._cuda"] = module
for _ in range(2):
    try:
        adaptk.cuda.devices()
    except ImportError as e:
        print(e)
"""
    assert output(code).splitlines() == ["adaptk._cuda is of another build than adaptk._core"] * 2


def test_build_info_of_cuda() -> None:
    info = adaptk.build_info()["cuda"]
    if info is None:
        pytest.skip("a build without CUDA kernels")
    assert set(info) == {"toolkit", "architectures"}
    assert [part.isdigit() for part in info["toolkit"].split(".")] == [True, True]
    assert info["architectures"]
    assert all(name.split("-")[0].rstrip("af").isdigit() for name in info["architectures"])


def test_a_named_stream_without_a_device() -> None:
    before = np.zeros(2)
    with adaptk.cuda.stream(0), adaptk.cuda.stream(5, device=1):
        adaptk.ops.sgd(before, np.ones(2), step=1, lr=1.0)
    assert before.tolist() == [-1, -1]
