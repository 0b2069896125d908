"""A CUDA device for the tests, real or simulated, and arrays on it: our own, exported like those of other libraries,
and those of other libraries."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import glob
import hashlib
import importlib
import importlib.util
import mmap
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import adaptk
import numpy as np
import pytest
from helpers import CUDA, FLOATS, READ_ONLY, Array, DLTensor, ExchangeTable, Export
from source_copies import ROOT, copy_sources

SIMULATOR = os.environ.get("ADAPTK_PTX_SIMULATOR")
LIBRARY = "libadaptk_cuda.so.0"  # the kernels, beside the module
MISSING = "needs a CUDA device, or ADAPTK_PTX_SIMULATOR: a folder with the package ptxsim, a PTX simulator"

_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# Capsules keep pointers to their names.
_BACKEND, _EXCHANGE = b"adaptk.cuda_backend", b"dlpack_exchange_api"


# The interface between the library and its CUDA part


class CudaError(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int), ("out_of_memory", ctypes.c_bool), ("text", ctypes.c_char * 256))


class CudaStep(ctypes.Structure):
    """The first members of the library's struct."""

    _fields_ = (("device", ctypes.c_int), ("stream", ctypes.c_void_p))


_FUNCTIONS = [
    *[
        "device_count",
        "describe",
        "device_of",
        "step",
        "global_norm",
        "reduce",
        "bandwidth_probe",
        "add_scaled",
        "zero_grads",
        "copy",
    ],
    *["new_counts", "write_counts", "read_counts", "new_reports", "read_report", "save", "restore", "release"],
    *["new_workspace", "release_workspace", "order", "capturing", "set_waves", "can_run"],
    *["fill_random", "fill_constant", "write", "read", "catch_up"],
    *["has_batch_kernel", "fit_batch"],
]


class Backend(ctypes.Structure):
    """cpp/src/cuda_backend.hpp"""

    _fields_ = (
        ("version", ctypes.c_uint32),
        ("sizes", ctypes.c_uint32 * 15),
        ("runtime", ctypes.c_int),
        ("architectures", ctypes.c_char_p),
        *((name, ctypes.c_void_p) for name in _FUNCTIONS),
    )


_Error = ctypes.POINTER(CudaError)
# A span goes by value, as a pointer and a length.
_SPAN = (ctypes.c_void_p, ctypes.c_size_t)
_INTERCEPTED: dict[str, Any] = {
    "device_count": (ctypes.POINTER(ctypes.c_int),),
    "step": (ctypes.POINTER(CudaStep),),
    "global_norm": (ctypes.c_int, ctypes.c_void_p, *_SPAN, ctypes.c_double, ctypes.c_void_p),
    "add_scaled": (ctypes.c_int, ctypes.c_void_p, *_SPAN, ctypes.c_double),
    "copy": (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
    "new_counts": (ctypes.c_int, *_SPAN, ctypes.c_void_p),
    "read_counts": (ctypes.c_void_p, *_SPAN),
    "new_reports": (ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p),
    "read_report": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
    "save": (ctypes.c_int, ctypes.c_void_p, *_SPAN, ctypes.c_void_p),
    "restore": (ctypes.c_void_p, ctypes.c_void_p, *_SPAN),
    "order": (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
    "capturing": (ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_bool)),
    "can_run": (ctypes.c_void_p,),
    "fill_random": (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint8, ctypes.c_void_p, ctypes.c_int64),
    "fill_constant": (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_double, ctypes.c_uint8),
        *(ctypes.c_void_p, ctypes.c_int64),
    ),
    **dict.fromkeys(
        ("write", "read"), (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    ),
}


def device_count(module: ModuleType) -> int:
    """Calls the CUDA part directly: the library would load its function table and keep it."""
    table = Backend.from_buffer_copy(
        ctypes.string_at(_capsule_pointer(module.backend, _BACKEND), ctypes.sizeof(Backend))
    )
    count = ctypes.c_int()
    ask = ctypes.CFUNCTYPE(ctypes.c_bool, *_INTERCEPTED["device_count"], _Error)(table.device_count)
    return count.value if ask(ctypes.pointer(count), ctypes.pointer(CudaError())) else 0


class Calls:
    """The table of the CUDA part's functions. It records calls, and can make them fail or return something else.

    It must be installed before the library loads the table, which stays until the process ends.
    """

    _installed: ClassVar[list[Calls]] = []

    def __init__(self, module: ModuleType) -> None:
        real = _capsule_pointer(module.backend, _BACKEND)
        self._table = Backend.from_buffer_copy(ctypes.string_at(real, ctypes.sizeof(Backend)))
        assert self._table.sizes[0] == ctypes.sizeof(Backend), "cpp/src/cuda_backend.hpp has other members"
        self._kept = [self._intercept(name, types) for name, types in _INTERCEPTED.items()]
        module.backend = _capsule_new(ctypes.addressof(self._table), _BACKEND, None)
        Calls._installed.append(self)
        self.reset()

    def reset(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.failures: dict[str, tuple[str, bool]] = {}
        self.devices: int | None = None
        self.is_capturing = False
        self._threads: set[int] | None = None

    def _intercept(self, name: str, types: Sequence[Any]) -> Any:
        prototype = ctypes.CFUNCTYPE(ctypes.c_bool, *types, _Error)
        real = prototype(getattr(self._table, name))

        def call(*arguments: Any) -> bool:
            if name in self.failures:
                text, out_of_memory = self.failures[name]
                arguments[-1][0].text = text.encode()
                arguments[-1][0].out_of_memory = out_of_memory
                return False
            if name == "step":
                self.made.append((name, arguments[0][0].device, arguments[0][0].stream or 0))
            elif name != "device_count":
                self.made.append((name, *(x or 0 for x in arguments[: 3 if name == "order" else 2])))
            done = bool(real(*arguments))
            if name == "capturing" and self.is_capturing:
                arguments[2][0] = True
            if name == "device_count" and self.devices is not None:
                arguments[0][0] = self.devices
            return done

        function = prototype(call)
        setattr(self._table, name, ctypes.cast(function, ctypes.c_void_p))
        return function

    @contextlib.contextmanager
    def failing(self, name: str, text: str = "", out_of_memory: bool = False) -> Iterator[None]:
        """Calls of this function fail, as if a function of the CUDA runtime had failed."""
        self.failures[name] = (text or f"{name}: unspecified launch failure (cudaErrorLaunchFailure)", out_of_memory)
        try:
            yield
        finally:
            del self.failures[name]

    def streams(self, name: str) -> list[int]:
        """The streams of the calls of this function."""
        return [call[2] for call in self.made if call[0] == name]

    def orders(self) -> list[tuple[int, int]]:
        """The waits between streams: (the stream that is waited for, the waiting stream)."""
        return [call[2:] for call in self.made if call[0] == "order"]


# Devices


class Cudart:
    """The functions of the CUDA runtime that the arrays need."""

    TO_DEVICE, TO_HOST = 1, 2

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def _call(self, name: str, *arguments: Any) -> None:
        if (code := getattr(self._library, name)(*arguments)) != 0:
            raise RuntimeError(f"{name}: error {code}")

    def allocate(self, nbytes: int) -> int:
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(nbytes))
        return address.value or 0

    def free(self, address: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(address))

    def write(self, address: int, data: bytes) -> None:
        self.synchronize()
        self._call("cudaMemcpy", ctypes.c_void_p(address), data, ctypes.c_size_t(len(data)), self.TO_DEVICE)

    def read(self, address: int, nbytes: int) -> bytes:
        self.synchronize()
        data = ctypes.create_string_buffer(nbytes)
        self._call("cudaMemcpy", data, ctypes.c_void_p(address), ctypes.c_size_t(nbytes), self.TO_HOST)
        return data.raw

    def synchronize(self) -> None:
        self._call("cudaDeviceSynchronize")

    def new_stream(self) -> int:
        """A stream that waits for no other."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), 1)
        return stream.value or 0

    def end_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))


class Machine:
    """The device that the tests run on."""

    calls: Calls
    cudart: Cudart | None = None
    simulated = False
    name: str

    def begin(self, test: str) -> None:
        self.calls.reset()
        self._kept = set(Export.live)  # of a failed test, whose traceback holds its arrays

    def without_kernels(self) -> contextlib.AbstractContextManager[None]:
        """Launches may do nothing within this block."""
        return contextlib.nullcontext()

    def end(self) -> list[str]:
        """The leaks and errors of a test."""
        gc.collect()
        kept = Export.live.keys() - self._kept
        return [f"{len(kept)} exports were not deleted"] if kept else []


class RealMachine(Machine):
    def __init__(self) -> None:
        try:
            module = importlib.import_module("adaptk._cuda")
        except ModuleNotFoundError:
            pytest.skip(f"{MISSING}; this build has no CUDA kernels")
        if device_count(module) == 0:
            pytest.skip(MISSING)
        self.calls = Calls(module)
        self.name = adaptk.cuda.devices()[0].name
        self.cudart = next(self._libraries(), None)

    @staticmethod
    def _libraries() -> Iterator[Cudart]:
        names = ["libcudart.so", *(f"libcudart.so.{major}" for major in (13, 12, "11.0"))]
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            names += sorted(glob.glob(f"{folder}/nvidia/*/lib/libcudart.so*"))
        for name in names:
            with contextlib.suppress(OSError):
                yield Cudart(ctypes.CDLL(name))


# The simulator runs everything synchronously, has no memory pools and no graphs, and only knows the kernels that a
# program was built with: SimulatedMachine passes on those that are loaded at run time.
MORE_OF_RUNTIME = """
#include <stdint.h>
#include <stddef.h>
int cudaMallocAsync(void**, size_t, void*);
int cudaEventRecord(void*, void*);
int cudaMemPoolCreate(void** pool, const void* wanted) { static char one; *pool = &one; return 0; }
int cudaMemPoolSetAttribute(void* pool, int attribute, void* value) { return 0; }
int cudaMallocFromPoolAsync(void** out, size_t n, void* pool, void* stream) { return cudaMallocAsync(out, n, stream); }
int cudaEventRecordWithFlags(void* event, void* stream, unsigned flags) { return cudaEventRecord(event, stream); }
int cudaThreadExchangeStreamCaptureMode(int* mode) { return 0; }
int (*load_code)(uintptr_t* library, const char* code);
int (*get_kernel)(uintptr_t* kernel, uintptr_t library, const char* name);
int cudaLibraryLoadData(uintptr_t* library, const void* code, void* options, void* values, unsigned count,
                        void* library_options, void* library_values, unsigned library_count) {
    return load_code(library, code);
}
int cudaLibraryGetKernel(uintptr_t* kernel, uintptr_t library, const char* name) {
    return get_kernel(kernel, library, name);
}
"""


ENTRY = re.compile(r"^\.(?:visible |weak )?\.?entry (\w+)\(", re.M)
BRACE = re.compile("[{}]")


def kernels_of(text: str) -> Iterator[tuple[str, int, int]]:
    """The kernels in PTX: name, begin and end."""
    for entry in ENTRY.finditer(text):
        depth = 0
        for brace in BRACE.finditer(text, entry.end()):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                yield entry[1], entry.start(), brace.end()
                break


def parse_kernels_lazily(api: ModuleType) -> None:
    """Makes the simulator parse a kernel at its first use: no test uses all of them, and parsing the PTX of all takes
    most of a minute in every process."""

    class Module(api.Module):  # type: ignore[name-defined,misc]
        def __init__(self, text: str, device: Any = None) -> None:
            self._unread = {name: text[begin:end] for name, begin, end in kernels_of(text)}
            self._head = "".join(re.findall(r"^\.(?:version|target|address_size) .*\n", text, re.M))
            rest, at = [], 0
            for _, begin, end in kernels_of(text):
                rest.append(text[at:begin])
                at = end
            super().__init__("".join([*rest, text[at:]]), device)

        @property
        def kernels(self) -> list[str]:
            return [*super().kernels, *self._unread]

        def find(self, name: str) -> str:
            if body := self._unread.pop(name, None):
                functions = api.parser.parse(self._head + body).funcs
                assert not [v for f in functions.values() for v in f.vars if v.space in ("global", "const")]
                self.ast.funcs.update(functions)
            return super().find(name)

    api.Module = Module


def make_race_map_sparse(api: ModuleType) -> None:
    """Makes the simulator's map of accesses to global memory sparse: only the pages that a launch uses are allocated.
    Otherwise it would fill 32 times the memory ever allocated at each launch, most of the time of many tests."""

    class RaceMap(api.RaceMap):  # type: ignore[name-defined,misc]
        def __init__(self, nbytes: int) -> None:
            self.base, self.found = 0, {}
            # Zero means "by no thread", so that new pages of the system need no initialization.
            pages = np.frombuffer(mmap.mmap(-1, 32 * nbytes), np.int64).reshape(4, nbytes)
            self.writers, self.we, self.readers, self.re = pages
            self.w, self.r = ShiftedThreads(self.writers), ShiftedThreads(self.readers)

    class ShiftedThreads:
        """Thread indices; -1 is none, -2 is several."""

        def __init__(self, kept: Array) -> None:
            self.kept = kept

        def __getitem__(self, at: Any) -> Array:
            return self.kept[at] - 1

        def __setitem__(self, at: Any, threads: Any) -> None:
            self.kept[at] = np.asarray(threads) + 1

    api.RaceMap = RaceMap


class SimulatedMachine(Machine):
    """One device whose kernels a PTX simulator interprets. It reports races and invalid accesses.

    The first launch of a kernel in a test runs warps and blocks in random order if it has few threads; in tests of
    schedules (`seed`) every launch does. The order differs between tests.
    """

    simulated = True
    name = "simulated"
    FEW_THREADS = 512

    def __init__(self, folder: str) -> None:
        if "adaptk._cuda" in sys.modules:
            pytest.fail("the CUDA kernels are loaded already", pytrace=False)
        sys.path.insert(0, folder)
        from ptxsim import api, cudart, memory

        self._cudart, self._api, self._memory = cudart, api, memory
        parse_kernels_lazily(api)
        make_race_map_sparse(api)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self.cudart = Cudart(cudart.install())
        self._more = self._add_to_runtime()
        self._load_at_run_time()
        path = self._build()
        # The library that the module is linked with, for the C interface.
        os.environ["ADAPTK_CUDA_LIBRARY"] = str(path.parent / "lib" / LIBRARY)
        self.calls = Calls(self._load(path))
        self._arena = api.default_device().arena
        self._lock = threading.RLock()
        self._launch, api.launch_grid = api.launch_grid, self._launch_grid
        self._allocate, self._arena.alloc = self._arena.alloc, self._alloc
        self._free, self._arena.free = self._arena.free, self._release
        self._top = self._arena.top
        self.begin("")

    def begin(self, test: str) -> None:
        super().begin(test)
        self.seed: int | None = None
        self._first_seed = zlib.crc32(test.encode())
        self.room: int | None = None  # bytes that may still be allocated
        self.broken: Exception | None = None  # the error of every launch
        self._idle = False
        self._launched: set[str] = set()
        self._cudart.log.clear()
        self._left = set(self._arena.ends)
        # The simulator's programs are many objects: collecting garbage after each test would take seconds.
        gc.freeze()

    def end(self) -> list[str]:
        found = super().end()
        found += [f"{r.kernel}: {w}" for r in self._cudart.log for w in r.warnings]
        if self._cudart.error is not None:
            found.append(f"{type(self._cudart.error).__name__}: {self._cudart.error}")
        self._cudart.reset_error()
        if left := self._arena.ends.keys() - self._left:
            found.append(f"{len(left)} allocations are left on the device")
        if not self._arena.ends:
            # The checks take time proportional to all memory ever used.
            self._arena.top = self._top
            self._arena.free_lists.clear()
        return found

    @contextlib.contextmanager
    def without_kernels(self) -> Iterator[None]:
        self._idle = True
        yield
        self._idle = False

    def forgive(self) -> None:
        """Clears an error that a test has provoked."""
        self.broken = None
        self._cudart.reset_error()

    def break_launches(self, sticky: bool) -> None:
        """Makes launches fail: with a sticky error, such as an illegal access, or with one per launch."""
        self.broken = self._memory.MemoryFault("provoked") if sticky else ValueError("provoked")

    def _launch_grid(self, program: Any, arena: Any, grid: Any, block: Any, params: Any, shared: int = 0) -> Any:
        with self._lock:
            if self.broken is not None:
                raise self.broken
            if self._idle:
                return SimpleNamespace(kernel="none", printed="", warnings=[])
            few = np.prod(grid) * np.prod(block) <= self.FEW_THREADS and program.name not in self._launched
            self._launched.add(program.name)
            return self._launch(
                *(program, arena, grid, block, params, shared),
                racecheck=True,
                shuffle=self.seed is not None or bool(few),
                seed=self._first_seed if self.seed is None else self.seed,
            )

    def _alloc(self, nbytes: int, *fill: int) -> int:
        with self._lock:
            if self.room is not None:
                if nbytes > self.room:
                    raise MemoryError
                self.room -= nbytes
            return self._allocate(nbytes, *fill)

    def _release(self, address: int) -> None:
        with self._lock:
            self._free(address)

    def _load_at_run_time(self) -> None:
        """Loads kernels that the library compiles at run time: the simulator reads PTX and no machine code."""
        invalid_image, invalid_name = 200, 500
        self.loaded: list[str] = []  # PTX
        to_number = ctypes.POINTER(ctypes.c_size_t)

        def load_code(library: Any, code: int) -> int:
            if ctypes.string_at(code, 4) == b"\x7fELF":
                return invalid_image
            ptx = ctypes.string_at(code).decode()
            module = self._cudart._Lazy([ptx])
            try:
                module.get()
            except Exception:  # whatever the simulator finds wrong
                return invalid_image
            self._left.update(self._arena.ends)  # the module's own
            self.loaded.append(ptx)
            self._cudart._modules.append(module)
            library[0] = len(self._cudart._modules)
            return 0

        def get_kernel(kernel: Any, library: int, name: bytes) -> int:
            if name.decode() not in self._cudart._modules[library - 1].get().kernels:
                return invalid_name
            # An address that differs from those of all functions.
            handle = ctypes.create_string_buffer(1)
            self._handles.append(handle)
            kernel[0] = ctypes.addressof(handle)
            self._cudart._functions[kernel[0]] = (library - 1, name.decode())
            return 0

        self._handles: list[Any] = []
        load = ctypes.CFUNCTYPE(ctypes.c_int, to_number, ctypes.c_void_p)(load_code)
        get = ctypes.CFUNCTYPE(ctypes.c_int, to_number, ctypes.c_size_t, ctypes.c_char_p)(get_kernel)
        self._handles += [load, get]
        for pointer, function in (("load_code", load), ("get_kernel", get)):
            ctypes.c_void_p.in_dll(self._more, pointer).value = ctypes.cast(function, ctypes.c_void_p).value

    @staticmethod
    def _add_to_runtime() -> ctypes.CDLL:
        """Implements functions that the simulator's runtime lacks with those that it has."""
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            pytest.fail("the simulated device needs a C compiler", pytrace=False)
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "more.c", Path(folder) / "more.so"
            source.write_text(MORE_OF_RUNTIME)
            subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
            return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)

    @staticmethod
    def _load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location("adaptk._cuda", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["adaptk._cuda"] = module
        spec.loader.exec_module(module)
        return module

    @staticmethod
    def _build() -> Path:
        """The CUDA module with the shared runtime and with PTX, built once for these sources and this Python."""
        import fcntl

        import pybind11

        sources = [ROOT / "CMakeLists.txt", *(p for folder in ("cpp", "cuda") for p in (ROOT / folder).rglob("*"))]
        digest = hashlib.sha256(f"{sys.version} {pybind11.__version__}".encode())
        for path in sorted(p for p in sources if p.is_file()):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
        name = "_cuda" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
        kept = Path(tempfile.gettempdir()) / f"adaptk-tests-{os.getuid()}" / digest.hexdigest()[:16]
        if (kept / name).exists():
            return kept / name
        tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        cmake = shutil.which("cmake", path=tools)
        if cmake is None:
            pytest.fail("the simulated device needs cmake", pytrace=False)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ADAPTK_")} | {"PATH": tools}
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(kept / "lock", "w") as lock, tempfile.TemporaryDirectory(dir=kept) as folder:
            # One process builds; the others wait.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (kept / name).exists():
                return kept / name
            copy = copy_sources(Path(folder))
            build = copy / "build" / "simulated"
            configure = [cmake, "-S", str(copy), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", "-DADAPTK_CUDA=ON"]
            if shutil.which("ninja", path=tools):
                configure.append("-GNinja")
            configure += ["-DADAPTK_CUDA_RUNTIME=Shared", "-DADAPTK_CUDA_ARCHITECTURES=80-virtual"]
            configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
            configure.append(f"-DADAPTK_WERROR={os.environ.get('ADAPTK_WERROR', 'OFF')}")
            for command in (configure, [cmake, "--build", str(build), "--target", "_cuda", "--parallel", "2"]):
                done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
                if done.returncode != 0:
                    lines = (done.stdout + done.stderr).splitlines()
                    pytest.fail("\n".join([" ".join(command), *lines[-60:]]), pytrace=False)
            # The module comes last: its presence means that the build is complete.
            (kept / "lib").mkdir(exist_ok=True)
            os.replace(build / LIBRARY, kept / "lib" / LIBRARY)
            os.replace(next(build.rglob(name)), kept / name)
        return kept / name


_machine: Machine | None = None


def start(simulated: bool) -> str | None:
    """Finds the device of this process before the library looks for one. Returns why there is none, if that is no
    error."""
    global _machine
    try:
        _machine = SimulatedMachine(SIMULATOR) if simulated and SIMULATOR else RealMachine()
    except pytest.skip.Exception as e:
        return str(e)
    except pytest.fail.Exception as e:
        # Each test would fail in the same way.
        pytest.exit(str(e), returncode=1)
    return None


def machine() -> Machine:
    assert _machine is not None, "start() comes first"
    return _machine


def cudart() -> Cudart:
    found = machine().cudart
    if found is None:
        pytest.skip("needs libcudart")
    return found


# Arrays

CUDA_MANAGED = 13
MARGIN = 64  # bytes


class Block:
    """Device memory, initially all 0xAA."""

    def __init__(self, nbytes: int) -> None:
        self.cudart = cudart()
        self.address = self.cudart.allocate(nbytes)
        self.nbytes = nbytes
        self.cudart.write(self.address, b"\xaa" * nbytes)

    def __del__(self) -> None:
        self.cudart.free(self.address)


class HostExport(Export):
    """An export of an array, which lives as long as it does."""

    def __init__(self, array: Array) -> None:
        super().__init__(array, True, {})
        self.owner = array


class DeviceExport(Export):
    """An export of device memory, which lives as long as it does."""

    def __init__(self, array: DeviceArray, versioned: bool) -> None:
        fields = {
            "data": array.address if array.size > 0 else None,
            "device_type": CUDA,
            "device_id": array.device_id,
            "shape": array.shape,
            "strides": array.strides,
            **array.fields,
        }
        if array.read_only and versioned:
            fields.setdefault("flags", READ_ONLY)
        super().__init__(np.empty(0, array.dtype), versioned, fields)
        self.owner = array.block


class Namespace:
    """The functions of the array API that create states."""

    float32 = np.dtype(np.float32)
    float64 = np.dtype(np.float64)
    float16 = np.dtype(np.float16)
    int8 = np.dtype(np.int8)
    uint8 = np.dtype(np.uint8)
    int16 = np.dtype(np.int16)
    int32 = np.dtype(np.int32)
    bfloat16 = FLOATS.get("bfloat16")

    def __init__(self, kind: type[DeviceArray]) -> None:
        self._kind = kind

    def full(self, shape: Sequence[int], value: float, *, dtype: Any, device: str) -> DeviceArray:
        assert device == "cuda:0"
        return self._kind.put(np.full(shape, value, dtype))

    def asarray(self, x: Any, *, copy: bool | None = None, device: str | None = None) -> DeviceArray:
        assert copy or device == "cuda:0"
        return self._kind.put(x.host() if isinstance(x, DeviceArray) else x)

    def permute_dims(self, x: DeviceArray, axes: Sequence[int]) -> DeviceArray:
        return x.transpose(axes)


class DeviceArray:
    """An array of a library of the tests. The classes below define how it is exported."""

    dtypes: ClassVar[tuple[str, ...]] = tuple(FLOATS)

    def __init__(
        self, block: Block, address: int, shape: Sequence[int], strides: Sequence[int], dtype: Any, whole: bool = False
    ) -> None:
        self.block = block
        self.address = address
        self.shape = tuple(map(int, shape))
        self.strides = tuple(map(int, strides))  # in elements
        self.dtype = np.dtype(dtype)
        self.whole = whole  # the rest of its block must not change
        self.device_id = 0
        self.read_only = False
        self.fields: dict[str, Any] = {}  # members of the exported structure to replace
        self.streams: list[Any] = []  # the streams requested by consumers
        self._description: Export | None = None

    @classmethod
    def put(cls, array: Array, offset: int = 0) -> Any:
        """A copy of an array with its layout, `offset` elements behind a multiple of 64 bytes."""
        dense = array.copy(order="K")
        start = MARGIN + offset * array.itemsize
        block = Block(start + array.nbytes + MARGIN)
        strides = [s // array.itemsize for s in dense.strides]
        new = cls(block, block.address + start, array.shape, strides, array.dtype, whole=True)
        new.write(array)
        return new

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def write(self, array: Array) -> None:
        """Sets the values of a contiguous array."""
        order = sorted(range(len(self.shape)), key=lambda i: (-self.strides[i], self.shape[i]))
        self.block.cudart.write(self.address, array.transpose(order).tobytes())

    def host(self) -> Array:
        """A copy on the host, in C order. The memory around the array must not have changed."""
        raw = self.block.cudart.read(self.block.address, self.block.nbytes)
        start = self.address - self.block.address
        if self.whole:
            assert set(raw[:start] + raw[start + self.nbytes :]) <= {0xAA}, "memory around an array changed"
        strides = [s * self.dtype.itemsize for s in self.strides]
        return np.ndarray(self.shape, self.dtype, raw, start, strides).copy(order="C")

    def view(self, shape: Sequence[int], strides: Sequence[int] | None = None, start: int = 0) -> Any:
        """Other elements of the same memory, from the array's `start`-th on."""
        if strides is None:
            strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        return type(self)(self.block, self.address + start * self.dtype.itemsize, shape, strides, self.dtype)

    def like(self, kind: type[DeviceArray]) -> Any:
        """The same memory as an array of another library."""
        return kind(self.block, self.address, self.shape, self.strides, self.dtype)

    def transpose(self, axes: Sequence[int]) -> Any:
        strides = [self.strides[i] for i in axes]
        return type(self)(self.block, self.address, [self.shape[i] for i in axes], strides, self.dtype)

    @property
    def device(self) -> str:
        return f"cuda:{self.device_id}"

    def __array_namespace__(self, **_: Any) -> Namespace:
        return Namespace(type(self))

    def __setitem__(self, key: Any, value: DeviceArray) -> None:
        assert key is Ellipsis
        assert (value.shape, value.dtype) == (self.shape, self.dtype)
        self.write(value.host())

    def __gt__(self, number: float) -> DeviceArray:
        return type(self).put(self.host() > number)

    def export(self, versioned: bool) -> DeviceExport:
        return DeviceExport(self, versioned)

    def to_host(self) -> Any:
        """The result of `__dlpack__` if the CPU is requested."""
        return HostExport(self.host()).capsule()


class Versioned(DeviceArray):
    """With `__dlpack__` of DLPack 1."""

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        if dl_device is not None:
            assert dl_device == (1, 0)
            return self.to_host()
        assert max_version >= (1, 0)
        self.streams.append(stream)
        return self.export(versioned=True).capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.fields.get("device_type", CUDA), self.fields.get("device_id", self.device_id)


class Legacy(DeviceArray):
    """With the `__dlpack__` from before versions and devices; copies on the host are made in another way."""

    def get(self) -> Array:
        return self.host()

    def __dlpack__(self, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.export(versioned=False).capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device_id


_INTERFACE_TYPES = ("float32", "float64", "float16")


class Interface(DeviceArray):
    """With only `__cuda_array_interface__`, which says nothing about streams."""

    dtypes = _INTERFACE_TYPES
    entries: ClassVar[Mapping[str, Any]] = {}  # entries to replace; None removes one

    def get(self) -> Array:
        return self.host()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = None
        if self.view(self.shape).strides != self.strides:
            strides = tuple(s * self.dtype.itemsize for s in self.strides)
        found = {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.size > 0 else 0, self.read_only),
            "strides": strides,
            "version": 3,
            **self.entries,
        }
        return {k: v for k, v in found.items() if k not in self.entries or v is not None}


class InterfaceOnStream(Interface):
    """One whose stream is the default stream."""

    entries: ClassVar[Mapping[str, Any]] = {"stream": 1}


def interface(**entries: Any) -> type[Interface]:
    """One with some entries replaced."""
    return type("Odd", (Interface,), {"entries": entries})


_Exported = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(ctypes.c_void_p))
_Described = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))
_Stream = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))


@_Exported
def _export(array: Exchange, out: Any) -> int:
    out[0] = array.export(versioned=True).address
    return 0


@_Described
def _describe(array: Exchange, out: Any) -> int:
    if array._description is None:
        array._description = array.export(versioned=True)
        Export.live.pop(array._description.address)
    ctypes.memmove(out, ctypes.addressof(array._description.managed.tensor), ctypes.sizeof(DLTensor))
    return 0


@_Stream
def _current_stream(device_type: int, device: int, out: Any) -> int:
    assert device_type in (CUDA, CUDA_MANAGED)
    out[0] = Exchange.current_stream or None
    return 0


_tables: list[ExchangeTable] = []


def _exchange(describe: bool, stream: bool = True) -> Any:
    table = ExchangeTable(major=1, minor=3, export=ctypes.cast(_export, ctypes.c_void_p))
    if describe:
        table.describe = ctypes.cast(_describe, ctypes.c_void_p)
    if stream:
        table.stream = ctypes.cast(_current_stream, ctypes.c_void_p)
    _tables.append(table)
    return _capsule_new(ctypes.addressof(table), _EXCHANGE, None)


class Exchange(Versioned):
    """With DLPack's exchange API, like PyTorch: a table of functions on the type."""

    current_stream: ClassVar[int] = 0
    __dlpack_c_exchange_api__ = _exchange(describe=True)

    def __dlpack__(self, *, dl_device: Any = None, **_: Any) -> Any:
        assert dl_device == (1, 0), "the exchange API is there"
        return self.to_host()


class ExchangeByExport(Exchange):
    """One that can only be exported, and says nothing about streams."""

    __dlpack_c_exchange_api__ = _exchange(describe=False, stream=False)


def assert_equal(got: Any, want: Any, what: Any = "") -> None:
    """Arrays, or lists and dicts of them, have the same bits; all NaNs are equal."""
    if isinstance(want, Mapping):
        assert list(got) == list(want)
        for name in want:
            assert_equal(got[name], want[name], (what, name))
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want)
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_equal(a, b, (what, i))
    else:
        assert (got.dtype, got.shape) == (want.dtype, want.shape), what
        unsigned = np.dtype(f"u{want.dtype.itemsize}")
        got, want = np.ravel(got), np.ravel(want)
        wrong = got.view(unsigned) != want.view(unsigned)
        wrong &= ~(np.isnan(got) & np.isnan(want))
        assert not wrong.any(), (what, np.flatnonzero(wrong)[:5], got[wrong][:5], want[wrong][:5])


# Libraries


class Library:
    """Copies between the host and one library's arrays on the device."""

    def __init__(self, name: str, kind: type[DeviceArray]) -> None:
        self.name = name
        self.kind = kind

    def has(self, dtype: str) -> bool:
        return dtype in self.kind.dtypes

    def put(self, array: Array, offset: int = 0) -> Any:
        return self.kind.put(array, offset)

    def get(self, x: Any) -> Array:
        return x.host()

    def part(self, x: Any, start: int, shape: Sequence[int]) -> Any:
        """A contiguous part of a one-dimensional array, in the same memory."""
        return x.view(shape, start=start)

    def put_all(self, buffers: Mapping[str, Any], offset: Callable[[str], int] = lambda name: 0) -> dict[str, Any]:
        """Copies of arrays by name, or of lists of them."""
        return {
            name: [self.put(a, offset(name)) for a in x] if isinstance(x, list) else self.put(x, offset(name))
            for name, x in buffers.items()
        }

    def get_all(self, buffers: Mapping[str, Any]) -> dict[str, Any]:
        return {name: [*map(self.get, x)] if isinstance(x, list) else self.get(x) for name, x in buffers.items()}


class Torch(Library):
    def __init__(self) -> None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs PyTorch with CUDA")
        self._torch = torch
        self.name = "torch"

    def has(self, dtype: str) -> bool:
        return True

    def put(self, array: Array, offset: int = 0) -> Any:
        dense = array.copy(order="K")
        bits = np.array(array, order="C")
        narrow = bits.dtype.name == "bfloat16"
        host = self._torch.from_numpy(bits.view(np.int16) if narrow else bits)
        host = host.view(self._torch.bfloat16) if narrow else host
        base = self._torch.empty(offset + array.size, dtype=host.dtype, device="cuda")
        strides = [s // array.itemsize for s in dense.strides]
        return base.as_strided(array.shape, strides, offset).copy_(host)

    def part(self, x: Any, start: int, shape: Sequence[int]) -> Any:
        return x[start : start + int(np.prod(shape))].reshape(shape)

    def get(self, x: Any) -> Array:
        self._torch.cuda.synchronize()
        host = x.detach().cpu().contiguous()
        if x.dtype == self._torch.bfloat16:
            return host.view(self._torch.int16).numpy().view(FLOATS["bfloat16"])
        return host.numpy()


class Cupy(Library):
    def __init__(self) -> None:
        self._cupy = pytest.importorskip("cupy")
        self.name = "cupy"

    def has(self, dtype: str) -> bool:
        return dtype in _INTERFACE_TYPES

    def put(self, array: Array, offset: int = 0) -> Any:
        dense = array.copy(order="K")
        base = self._cupy.empty(offset + max(array.size, 1), array.dtype)
        new = self._cupy.ndarray(array.shape, array.dtype, base.data + offset * array.itemsize, dense.strides)
        new[...] = self._cupy.asarray(np.array(array, order="C"))
        return new

    def part(self, x: Any, start: int, shape: Sequence[int]) -> Any:
        return x[start : start + int(np.prod(shape))].reshape(shape)

    def get(self, x: Any) -> Array:
        self._cupy.cuda.Device().synchronize()
        return x.get(order="C")


KINDS: dict[str, type[DeviceArray]] = {
    "exchange": Exchange,
    "exchange by export": ExchangeByExport,
    "versioned": Versioned,
    "legacy": Legacy,
    "interface": Interface,
    "interface on a stream": InterfaceOnStream,
}
LIBRARIES = [*KINDS, "torch", "cupy"]


def library(name: str) -> Library:
    """A library by name. The test is skipped if it is not installed."""
    if name in KINDS:
        cudart()
        return Library(name, KINDS[name])
    if machine().simulated:
        pytest.skip(f"needs a real CUDA device for {name}")
    return Torch() if name == "torch" else Cupy()


def main_library() -> Library:
    """The one that most tests use."""
    for name in ("exchange", "torch", "cupy"):
        with contextlib.suppress(pytest.skip.Exception):
            return library(name)
    pytest.skip("needs libcudart, PyTorch or CuPy")
