"""What ``adaptk.torch`` uses of PyTorch beyond its public interface, and what it does in releases that lack it.

Everything is looked up here, when the module is imported or the first optimizer steps, so that a name that has gone can
neither break the import nor stop a step that has begun.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import sys
import sysconfig
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Method = TypeVar("Method", bound=Callable[..., Any])

OLDEST = (2, 10)


def check_release() -> None:
    """Refuse releases whose tensors the step cannot read."""
    release = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if release is not None and (int(release[1]), int(release[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RuntimeError(
            f"adaptk.torch needs PyTorch {oldest} or later, and this is {torch.__version__}: "
            f'pip install --upgrade "torch>={oldest}"'
        )


# ---------------------------------------------------------------------------------------------------------------------
# What stands around a step
# ---------------------------------------------------------------------------------------------------------------------


def _always() -> bool:
    return True


# Whether a profiler runs: if PyTorch does not tell, ranges are always opened.
profiler_enabled: Callable[[], bool] = getattr(getattr(torch._C, "_autograd", None), "_profiler_enabled", _always)


def without_dynamo(method: Method) -> Method:
    """Keep torch.compile out of a method, if PyTorch has a way that does not import its compiler at once."""
    disabled: Method = getattr(torch, "_disable_dynamo", lambda m: m)(method)
    return disabled


class Hooks(NamedTuple):
    """The hooks around the steps of all optimizers."""

    pre: Mapping[Any, Callable[..., Any]]
    post: Mapping[Any, Callable[..., Any]]


class _Bare(torch.optim.Optimizer):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise NotImplementedError

    step.hooked = True  # type: ignore[attr-defined]  # PyTorch does not wrap it


def _find_hooks() -> Hooks | None:
    module = sys.modules[torch.optim.Optimizer.__module__]
    pre = getattr(module, "_global_optimizer_pre_hooks", None)
    post = getattr(module, "_global_optimizer_post_hooks", None)
    # As it is unpickled: the constructor imports torch._dynamo.
    bare = object.__new__(_Bare)
    try:
        bare.__setstate__({"defaults": {}, "state": {}, "param_groups": []})
    except Exception:
        return None
    own = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_optimizer_step_code")
    if pre is None or post is None or not all(hasattr(bare, name) for name in own):
        return None
    return Hooks(pre, post)


#: None if not all hooks around a step are where they are expected: PyTorch's own wrapper calls them then.
hooks = _find_hooks()


def check_captured(optimizer: torch.optim.Optimizer) -> None:
    """PyTorch's own check of what a CUDA graph captures, by either of its names; the native step has more."""
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if (check := getattr(optimizer, name, None)) is not None:
            check()
            return


# ---------------------------------------------------------------------------------------------------------------------
# torch.compile
# ---------------------------------------------------------------------------------------------------------------------

_handles = itertools.count(1)
_by_handle: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_IN_GRAPH = ("closure", "clip_norm", "skip_nonfinite", "zero_grad")


def know(optimizer: Any) -> None:
    """Bring up to date what compiled functions know of an optimizer: a number, and the params in all groups.

    They do not look at the groups, whose learning rates they would take for constants.
    """
    if _by_handle.get(optimizer.__dict__.get("_handle", 0)) is not optimizer:
        optimizer._handle = next(_handles)
        _by_handle[optimizer._handle] = optimizer
    optimizer._known_params = _params_of(optimizer)


def _params_of(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def is_traceable_step(optimizer: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a step with these arguments can be one operator, while torch.compile traces it."""
    known = all(name in _IN_GRAPH for name in arguments)
    return known and all(type(p) in (Tensor, torch.nn.Parameter) for p in optimizer._known_params)


def step_in_graph(
    optimizer: Any,
    closure: Callable[[], Any] | None = None,
    clip_norm: float | None = None,
    skip_nonfinite: bool | None = None,
    zero_grad: bool | None = None,
) -> Any:
    """A step while torch.compile traces: one operator, which writes to the params."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    every = optimizer._known_params
    numbers = [i for i, p in enumerate(every) if p.grad is not None]
    params = [every[i] for i in numbers]
    grads = [p.grad for p in params]
    with torch.no_grad():
        torch.ops.adaptk.optimizer_step(
            params, grads, numbers, optimizer._handle, clip_norm, skip_nonfinite, zero_grad is not None
        )
        if zero_grad:
            for grad in grads:
                grad.zero_()
    return loss


@torch.library.custom_op(
    "adaptk::optimizer_step",
    mutates_args=("params",),
    schema="(Tensor(a!)[] params, Tensor[] grads, int[] numbers, int optimizer, float? clip_norm, "
    "bool? skip_nonfinite, bool zeroes) -> ()",
)
def _optimizer_step(
    params: Any,
    grads: Any,
    numbers: Any,
    optimizer: int,
    clip_norm: float | None,
    skip_nonfinite: bool | None,
    zeroes: bool,
) -> None:
    """The whole step, with hooks and states, as it is outside of a graph; what `zeroes` is about follows in it."""
    found = _by_handle.get(optimizer)
    if found is None:
        raise RuntimeError("a compiled function steps an optimizer that is no longer there; compile it again")
    every = _params_of(found)
    known = found._known_params
    if len(every) != len(known) or any(p is not q for p, q in zip(every, known, strict=True)):
        raise RuntimeError(
            "params: the lists in param_groups have been changed by hand, which a compiled step does not see; use "
            "add_param_group()"
        )
    if not zeroes and any(group.get("zero_grad") for group in found.param_groups):
        raise RuntimeError(
            "zero_grad: a compiled function has to know of it when it is compiled; say step(zero_grad=True) in it"
        )
    held = [p.grad for p in every]
    given: list[Any] = [None] * len(every)
    for i, grad in zip(numbers, grads, strict=True):
        given[i] = held[i] if held[i] is not None and _same_memory(held[i], grad) else grad
    # The params may be copies: of them the graph goes on, and the optimizer's own are to stay until it is done.
    copies = [(p, every[i]) for p, i in zip(params, numbers, strict=True) if not _same_memory(p, every[i])]
    kept = [(p, p.detach().clone()) for _, p in copies]
    try:
        for p, grad in zip(every, given, strict=True):
            p.grad = grad
        with torch.no_grad():
            for copy, p in copies:
                p.copy_(copy)
            found.step(clip_norm=clip_norm, skip_nonfinite=skip_nonfinite, zero_grad=False)
            for copy, p in copies:
                copy.copy_(p)
    finally:
        with torch.no_grad():
            for p, value in kept:
                p.copy_(value)
        for p, grad, before in zip(every, given, held, strict=True):
            if p.grad is grad:  # and no hook has another one there
                p.grad = before


def _same_memory(a: Tensor, b: Tensor) -> bool:
    same_layout = a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    return same_layout and a.device == b.device and a.data_ptr() == b.data_ptr()


def is_fake(t: Tensor) -> bool:
    """Whether it is one of those that torch.compile traces with."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(t, module.FakeTensor)


# ---------------------------------------------------------------------------------------------------------------------
# Many tensors at once
# ---------------------------------------------------------------------------------------------------------------------

_foreach_add: Callable[[list[Tensor], float], Any] | None = getattr(torch, "_foreach_add_", None)
_foreach_zero: Callable[[list[Tensor]], Any] | None = getattr(torch, "_foreach_zero_", None)
_foreach_norm: Callable[..., Sequence[Tensor]] | None = getattr(torch, "_foreach_norm", None)


def add_to_all(tensors: list[Tensor], value: float) -> None:
    """Add a number to each tensor in place."""
    if _foreach_add is not None:
        _foreach_add(tensors, value)
        return
    for t in tensors:
        t.add_(value)


def zero_all(tensors: list[Tensor]) -> None:
    """Set each tensor to zero in place."""
    together = [t for t in tensors if type(t) is Tensor and t.is_cuda and not t.is_neg() and not t.is_conj()]
    done = set()
    if _foreach_zero is not None and together:
        _foreach_zero(together)
        done = {id(t) for t in together}
    for t in tensors:
        if id(t) not in done:
            t.zero_()


def norms(tensors: list[Tensor]) -> Sequence[Tensor]:
    """The Euclidean norm of each tensor, summed in float64: squares of 16-bit numbers soon are out of their range."""
    if _foreach_norm is not None:
        return _foreach_norm(tensors, 2, dtype=torch.float64)
    return [torch.linalg.vector_norm(t, 2, dtype=torch.float64) for t in tensors]


# ---------------------------------------------------------------------------------------------------------------------
# Tensors without Python
# ---------------------------------------------------------------------------------------------------------------------

# Of the C interface that PyTorch has for compiled models.
_GETTERS = (
    *("data_ptr", "numel", "dim", "sizes", "strides", "dtype", "layout", "device_type"),
    *("storage_size", "storage_offset"),
)


class _Memory:
    """Words of this process's memory, read by the kernel: an address that is not mapped is an error, and no crash."""

    def __enter__(self) -> _Memory:
        self._pipe = os.pipe()
        self._write = ctypes.CDLL(None, use_errno=True).write
        self._write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        self._write.restype = ctypes.c_ssize_t
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._pipe:
            os.close(end)

    def word(self, address: int | None) -> int:
        if self._write(self._pipe[1], address, 8) != 8:
            raise OSError(ctypes.get_errno(), "no memory at this address")
        return int.from_bytes(os.read(self._pipe[0], 8), sys.byteorder)

    def words(self, address: int | None, count: int) -> list[int]:
        return [self.word((address or 0) + 8 * i) for i in range(count)]


class _Trial:
    """The functions that the native step calls, tried on tensors whose properties Python knows."""

    def __init__(self, memory: _Memory) -> None:
        folder = Path(torch.__file__).parent / "lib"
        library, core = (ctypes.CDLL(str(folder / name)) for name in ("libtorch_cpu.so", "libc10.so"))
        self.functions = {name: library[f"aoti_torch_get_{name}"] for name in _GETTERS}
        self.functions["assign_tensors"] = library["aoti_torch_assign_tensors"]
        self._free = library["aoti_torch_delete_tensor_object"]
        self.functions["grad"] = core["_ZNK3c1010TensorImpl4gradEv"]
        self.functions["grad"].restype = ctypes.c_void_p
        self.functions["bump_version"] = library["_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"]
        self._memory = memory
        self._handle_of = torch._C._aoti.unsafe_alloc_void_ptr_from_tensor  # type: ignore[attr-defined]
        self._pointer = ctypes.pythonapi.PyCapsule_GetPointer
        self._pointer.restype, self._pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        self._offset = object.__basicsize__  # of the at::Tensor in a Python tensor

    def face(self) -> dict[str, int]:
        """Addresses by name, or nothing if any answer is another than expected."""
        bare, param = (torch.nn.Parameter(torch.zeros(n, device="cpu")) for n in (2, 3))
        param.grad = torch.ones_like(param)
        view = torch.zeros((4, 6), dtype=torch.float64, device="cpu")[1:, ::2]
        if not all(self._is_where_expected(t) for t in (bare, param, param.grad, view)):
            return {}
        if not all(self._answers(t) for t in (param, param.grad, view)):
            return {}
        if self._get("dtype", param) != self._get("dtype", bare) or self._get("dtype", param) == self._get(
            "dtype", view
        ):
            return {}
        undefined = self._grad(bare)
        if undefined == 0 or self._grad(param) != self._impl(param.grad):
            return {}
        if not all(self._holds(t, undefined) for t in (param, param.grad, view)):
            return {}
        before = param._version
        self.functions["bump_version"](self._tensor(param))
        param.grad = None
        if param._version != before + 1 or self._grad(param) != undefined:
            return {}
        addresses = {n: ctypes.cast(f, ctypes.c_void_p).value or 0 for n, f in self.functions.items()}
        return addresses | {"offset": self._offset, "undefined": undefined}

    def _tensor(self, t: Tensor) -> ctypes.c_void_p:
        return ctypes.c_void_p(id(t) + self._offset)

    def _impl(self, t: Tensor) -> int:
        """What the at::Tensor of a Python tensor holds, as PyTorch tells it."""
        handle = self._pointer(self._handle_of(t), None)
        try:
            return self._memory.word(handle)
        finally:
            self._free(ctypes.c_void_p(handle))

    def _grad(self, t: Tensor) -> int:
        return self._memory.word(self.functions["grad"](ctypes.c_void_p(self._impl(t))))

    def _get(self, name: str, t: Tensor) -> int:
        out = ctypes.c_int64(0)
        if self.functions[name](self._tensor(t), ctypes.byref(out)) != 0:
            raise ValueError(name)
        return out.value

    def _is_where_expected(self, t: Tensor) -> bool:
        room = Tensor.__basicsize__ >= self._offset + 8
        return room and self._memory.word(self._tensor(t).value) == self._impl(t)

    def _answers(self, t: Tensor) -> bool:
        expected = {
            "data_ptr": t.data_ptr(),
            "numel": t.numel(),
            "dim": t.dim(),
            "layout": 0,  # strided
            "device_type": 0,  # the CPU
            "storage_size": t.untyped_storage().nbytes(),
            "storage_offset": t.storage_offset(),
        }
        shape, strides = (self._memory.words(self._get(name, t), t.dim()) for name in ("sizes", "strides"))
        same = all(self._get(name, t) == value for name, value in expected.items())
        return same and shape == list(t.shape) and strides == list(t.stride())

    def _holds(self, t: Tensor, undefined: int) -> bool:
        """Whether an ``at::Tensor`` that is assigned this one is a pointer that counts as a reference, until it is
        assigned an undefined tensor."""
        nothing, held = ctypes.c_void_p(undefined), ctypes.c_void_p(undefined)
        count = self._impl(t) + 8
        before = self._memory.word(count)
        if self.functions["assign_tensors"](self._tensor(t), ctypes.byref(held)) != 0 or held.value != self._impl(t):
            return False  # what it is, and how it is freed, is unknown
        during = self._memory.word(count)
        if self.functions["assign_tensors"](ctypes.byref(nothing), ctypes.byref(held)) != 0:
            return False
        return held.value == undefined and (during - before, self._memory.word(count) - before) == (1, 0)


@cache
@torch.inference_mode(False)
def face() -> dict[str, int]:
    """What the native step needs to look at tensors without Python; nothing if any of it is not as expected.

    The functions of PyTorch's C interface for compiled models; from its C++ interface ``c10::TensorImpl::grad`` and
    ``torch::autograd::impl::bump_version``; where a Python tensor has its ``at::Tensor``, and what an undefined one of
    those holds. They are tried out on tensors here. Without them the step goes by DLPack and attributes, as it does in
    free-threaded interpreters: what it borrows there, other threads could free.
    """
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.platform != "linux":
        return {}
    try:
        with _Memory() as memory:
            return _Trial(memory).face()
    except (AttributeError, OSError, TypeError, ValueError):
        return {}
