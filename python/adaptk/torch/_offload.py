"""Offload for PyTorch: see :class:`adaptk.torch.Offload`."""

from __future__ import annotations

import ctypes
import math
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adaptk import _core, get_num_threads
from adaptk._optimizer import StepInfo
from adaptk._registry import rule_of
from adaptk.torch import _private
from adaptk.torch._bind import Group
from adaptk.torch._dtensor import is_sharded, local_part, placed_like, shard_like, total_over
from adaptk.torch._fused import Fused
from adaptk.torch._muon import Muon
from adaptk.torch._options import check_params, of_groups, refuse_all_gradients
from adaptk.torch._tensors import in_layout_of, is_dense, is_wrapper, plain_copy
from adaptk.torch._undo import Undo, roll_back

_GRADS = ("keep", "collect", "step")


def allowed_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of_rank(environment: Mapping[str, str] = os.environ) -> int:
    """The threads of a process that shares its machine with others of one job: see `threads` of Offload."""
    if environment.get("ADAPTK_NUM_THREADS"):
        return get_num_threads()
    text = environment.get("LOCAL_WORLD_SIZE", "")
    ranks = max(int(text), 1) if text.isdecimal() else 1
    if ranks == 1:
        return get_num_threads()
    share = max(allowed_cores() // ranks, 1)
    openmp = environment.get("OMP_NUM_THREADS", "")
    if openmp.isdecimal() and int(openmp) > 1:
        return int(openmp)
    if openmp == "1" and share > 1:
        warnings.warn(
            f"OMP_NUM_THREADS=1 is what launchers such as torchrun set by default. Offload takes {share} threads, the "
            f"cores that this process may use divided by LOCAL_WORLD_SIZE={ranks}; give threads= or set "
            "ADAPTK_NUM_THREADS to choose",
            UserWarning,
            stacklevel=4,
        )
    return share


class _Cuda:
    """Copies from and to a device, on streams of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        streams: Any = torch.cuda
        self._from, self._to = streams.Stream(device), streams.Stream(device)
        self._events: dict[int, Any] = {}
        driver = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # makes the context
            if code := driver.cuCtxGetCurrent(ctypes.byref(context)):
                raise RuntimeError(f"the context of {device}: the device said {code}")
        names = {"enter": "cuCtxSetCurrent", "wait": "cuEventSynchronize", "send": "cuMemcpyHtoDAsync_v2"}
        #: What the queue calls: see DeviceCalls in cpp/bindings/work.hpp.
        self.calls = {to: ctypes.cast(getattr(driver, name), ctypes.c_void_p).value or 0 for to, name in names.items()}
        self.calls["context"] = context.value or 0

    def empty_like(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Host memory that the device copies from and to by itself."""
        return torch.empty_like(
            t, dtype=dtype, device="cpu", pin_memory=True, requires_grad=False, memory_format=torch.preserve_format
        )

    def fetch(self, grad: Tensor, into: Tensor) -> int:
        """Begin to copy; returns the event that stands for its end."""
        with torch.cuda.device(self._device):
            self._from.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._from):
                into.copy_(grad, non_blocking=True)
                grad.record_stream(self._from)
            if into.data_ptr() not in self._events:
                events: Any = torch.cuda
                self._events[into.data_ptr()] = events.Event()
            event = self._events[into.data_ptr()]
            event.record(self._from)
        return int(event.cuda_event)

    def send(self, param: Tensor, out: Tensor) -> tuple[int, int, int, int]:
        """What the queue is to copy at the end of a step."""
        return param.data_ptr(), out.data_ptr(), out.numel() * out.element_size(), int(self._to.cuda_stream)

    def join(self) -> None:
        """What the device does from now on comes after all copies to it."""
        with torch.cuda.device(self._device):
            torch.cuda.current_stream().wait_stream(self._to)


def _transfers_of(device: torch.device) -> Any:
    """How to copy from and to a device; None for the CPU."""
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        raise TypeError(f"params: on {device}, expected the CPU or a CUDA device")
    return _Cuda(device)


class _Slot:
    """A param, what is kept of it in host memory, and its gradient between its arrival and the end of the step."""

    def __init__(self, param: Tensor, label: str, group: int) -> None:
        self.param, self.label, self.group = param, label, group
        self.master: Tensor
        self.is_alias = False  # the master is the param's own memory
        self.transfers: Any = None
        self.out: Tensor | None = None  # pinned memory that is sent to the device
        self.staging: Tensor | None = None  # pinned memory that gradients arrive in
        self.total: Tensor | None = None  # the sum of gradients
        self.version: int | None = None  # of the param as this optimizer has left it
        self.grad: Tensor | None = None
        self.event = 0
        self.fetched: tuple[Any, int] | None = None  # which gradient the staging holds
        self.arrived = 0
        self.sums: list[Any] = []
        self.again: list[Tensor] = []  # gradients whose sums have failed
        self.part: Any = None
        self.is_stepped = False  # with this round's gradient
        self.needs_send = False

    def forget_grad(self) -> None:
        self.grad, self.event, self.fetched, self.arrived = None, 0, None, 0
        self.sums.clear()
        self.again.clear()

    @property
    def local(self) -> Tensor:
        return local_part(self.param).detach()

    def refresh(self) -> None:
        """Elements of the param that others have written since are the master's too."""
        local = self.local
        if self.is_alias:
            if local.data_ptr() != self.master.data_ptr():
                self.master.data = local
            return
        if local._version == self.version:
            return
        now = local.to("cpu")
        changed = self.master.to(now.dtype) != now
        if bool(changed.any()):
            self.master.copy_(torch.where(changed, now.to(self.master.dtype), self.master))
        self.version = local._version

    def count_version(self) -> None:
        """Autograd is to know that the param changes."""
        local = self.local
        if not local.is_inference():
            torch.autograd.graph.increment_version([local if is_sharded(self.param) else self.param])
        self.version = self.local._version


class Offload(torch.optim.Optimizer):
    """An optimizer with master weights and states in host memory, whose step overlaps with copies to and from a device.

    Params may be on a CUDA device, in bfloat16 or another dtype. Params and gradients keep their dtype, and the host
    has a float32 master copy of each param. The step reads the gradient in its own dtype, updates the master copy and
    the states, and writes the rounded param, all in one pass over memory, in a thread that never waits for Python.
    Params on the CPU work the same way, without copies.

    Parameters
    ----------
    params : iterable of torch.Tensor or of param groups
        Dense and real; they may be DTensors, as in FSDP2.
    cls : type
        The class of :mod:`adaptk.torch` that updates the master copies. Refused are :class:`Muon`, rules that evaluate
        a model at other params, and rules that estimate a step size from all gradients.
    grads : {'keep', 'collect', 'step'}
        What happens to gradients.

        'keep': they stay in ``grad`` until :meth:`step`, as in other optimizers. Copies from the device start as soon
        as a gradient is computed. Use this with GradScaler, DistributedDataParallel and everything else that reads
        gradients before the step.

        'collect': each gradient is moved to the host as soon as it is computed, and ``grad`` is None. The norm is
        known when :meth:`step` is called.

        'step': like 'collect', but each param is updated as soon as its gradient is complete, during the backward pass;
        :meth:`step` waits for the remaining params. Clipping and skipping are not possible, and options of groups must
        be set before the backward pass.
    accumulation_steps : int or None, default 1
        With 'collect' and 'step': the number of backward passes per step; their gradients are added in float32 on the
        host. With 1, a second backward pass is an error. 'collect' also accepts None, for any number.
    threads : int, optional
        The number of threads for a step; by default :func:`adaptk.get_num_threads`. But if a launcher has set
        ``LOCAL_WORLD_SIZE``, ``ADAPTK_NUM_THREADS`` is not set, and ``OMP_NUM_THREADS`` is not set or 1, the default is
        the number of cores that this process may use, divided by ``LOCAL_WORLD_SIZE``.
    **options
        Options of `cls`, such as ``lr``, ``state_dtype``, ``clip_norm`` and ``skip_nonfinite``. With ``param_format``
        the master copies have the dtype of the params.

    Raises
    ------
    TypeError, ValueError
        For params that cannot be updated in host memory, and options that are unknown or out of range.

    Notes
    -----
    If a param is not float32 on the CPU, its ``state`` has a ``master`` in addition to the states of `cls`. If other
    code changes a param, for example ``load_state_dict`` of a model, the master copy follows the param.

    Examples
    --------
    >>> import torch, adaptk.torch
    >>> model = torch.nn.Linear(4, 1).to(torch.bfloat16)
    >>> opt = adaptk.torch.Offload(model.parameters(), adaptk.torch.AdamW, lr=1e-3, clip_norm=1.0, grads="collect")
    >>> model(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    >>> model.weight.grad is None
    True
    >>> opt.step()
    >>> opt.state[model.weight]["master"].dtype
    torch.float32
    """

    # GradScaler leaves the scale and what it has found to the step.
    _step_supports_amp_scaling = True
    #: What the last step found out; see :class:`adaptk.StepInfo`.
    last_step: StepInfo | None = None

    def __init__(
        self,
        params: Any,
        cls: type[torch.optim.Optimizer],
        *,
        grads: str = "keep",
        accumulation_steps: int | None = 1,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        _private.check_release()
        check_params("Offload", params, options.get("lr", 1.0))
        if not isinstance(cls, type) or not issubclass(cls, Fused) or issubclass(cls, Muon):
            raise TypeError(f"cls: {cls!r}, expected a class of adaptk.torch other than Muon")
        name = getattr(cls, "_name", None)
        if name is not None and rule_of(name).reduces == "all":
            raise TypeError(
                f"cls: {cls.__name__}, whose step of each param depends on the gradients of all; Offload steps them "
                "one by one"
            )
        if grads not in _GRADS:
            raise ValueError(f"grads: {grads!r}, expected one of {', '.join(map(repr, _GRADS))}")
        _check_number("accumulation_steps", accumulation_steps, 2**31 - 1)
        _check_number("threads", threads, 1024)
        if accumulation_steps is None and grads == "step":
            raise ValueError("accumulation_steps: None, but grads='step' has to know when a gradient is whole")
        self._cls, self._options, self._grads, self._passes = cls, options, grads, accumulation_steps
        self._inner: Fused | None = None
        self._slots: list[_Slot] = []
        self._transfers: dict[torch.device, Any] = {}
        self._handles: list[Any] = []
        self._snapshot: dict[int, Group] = {}
        self._queue: Any = None
        self._threads = threads_of_rank() if threads is None else threads
        super().__init__(params, {})

    # Params.

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group with its own options, like torch's method. The dict is copied."""
        super().add_param_group(dict(param_group) if isinstance(param_group, dict) else param_group)
        added = self.param_groups[-1]
        slots: list[_Slot] = []
        try:
            for p in added["params"]:
                slot = _Slot(p, f"params[{len(self._slots) + len(slots)}]", len(self.param_groups) - 1)
                self._check_param(slot)
                slots.append(slot)
                self._make_master(slot, added.get("param_format", self._options.get("param_format")))
            options = {k: v for k, v in added.items() if k not in ("params", "param_names")}
            group = {**options, "params": [slot.master for slot in slots]}
            if self._inner is None:
                self._inner = self._cls([group], **self._options)
            else:
                self._inner.add_param_group(group)
            if rule_of(self._inner._rule(self._inner.param_groups[-1])[0]).evaluation:
                raise ValueError(f"cls: {self._cls.__name__} has other params to evaluate with, and they are not sent")
            self._make_states(slots)
        except BaseException:
            self.param_groups.pop()
            if self._inner is not None and len(self._inner.param_groups) > len(self.param_groups):
                for p in self._inner.param_groups.pop()["params"]:
                    self._inner.state.pop(p, None)
            raise
        added.update({k: v for k, v in self._inner.param_groups[-1].items() if k != "params"})
        self.defaults = self._inner.defaults
        self._slots += slots
        if self._grads == "step":
            refuse_all_gradients(self.param_groups, "grads='step'")
        for slot in slots:
            self._link_state(slot)
            if slot.param.requires_grad and (self._grads != "keep" or slot.transfers is not None):
                param: Any = slot.param
                self._handles.append(param.register_post_accumulate_grad_hook(_hook_of(self, slot)))

    @staticmethod
    def _check_param(slot: _Slot) -> None:
        p = slot.local
        if not p.is_floating_point() or p.layout != torch.strided:
            raise TypeError(f"{slot.label}: {p.dtype} and {p.layout}, expected dense floating point numbers")
        if is_wrapper(p):
            raise TypeError(
                f"{slot.label}: a {type(p).__name__}, which has no memory of its own; Offload takes plain tensors and "
                "DTensors of them"
            )
        if not is_dense(p):
            raise TypeError(f"{slot.label}: strides {tuple(p.stride())} leave gaps; give a contiguous tensor")

    def _make_master(self, slot: _Slot, param_format: str | None) -> None:
        p = slot.local
        if p.device not in self._transfers:
            self._transfers[p.device] = _transfers_of(p.device)
            if sum(t is not None for t in self._transfers.values()) > 1:
                raise ValueError(f"{slot.label}: on {p.device}, and others on another device; make an Offload for each")
        slot.transfers = transfers = self._transfers[p.device]
        narrow = p.dtype in (torch.bfloat16, torch.float16) and param_format is None
        dtype = torch.float32 if narrow else p.dtype
        slot.is_alias = transfers is None and not narrow
        if slot.is_alias:
            master = p
        elif transfers is None:
            master = in_layout_of(p, p, dtype)
        else:
            master = transfers.empty_like(p, dtype).copy_(p)
            slot.out = transfers.empty_like(p, p.dtype) if narrow else master
            slot.staging = transfers.empty_like(p, p.dtype)
        slot.master = torch.nn.Parameter(master, requires_grad=False)
        slot.version = p._version
        if self._grads != "keep" and self._passes != 1:
            slot.total = torch.zeros_like(
                slot.master, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32, requires_grad=False
            )

    def _make_states(self, slots: list[_Slot]) -> None:
        """All memory is there before the first step."""
        inner = self._rule_of_masters()
        group = inner.param_groups[-1]
        name = inner._rule(group)[0]
        for slot in slots:
            inner._bind(slot.master, group, name, slot.label, [])

    def _rule_of_masters(self) -> Fused:
        if self._inner is None:
            raise RuntimeError("Offload: it has no params")
        return self._inner

    def _link_state(self, slot: _Slot) -> None:
        """What ``state`` has of a param: the very dict of its master, or one of DTensors for a DTensor."""
        state = self._rule_of_masters().state.get(slot.master)
        if state is None:  # a rule without states
            state = {}
        if not slot.is_alias:
            state["master"] = slot.master.detach()
        if not state:
            return
        if is_sharded(slot.param):
            state = {k: self._shard_of(slot, v) for k, v in state.items()}
        self.state[slot.param] = state

    @staticmethod
    def _shard_of(slot: _Slot, value: Any) -> Any:
        p: Any = slot.param
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape != slot.master.shape:
            return value
        return shard_like(value, p)

    def _follow_groups(self, groups: Iterable[int]) -> None:
        """The masters' groups say what the params' groups say."""
        inner = self._rule_of_masters()
        for k in groups:
            own = {n: v for n, v in self.param_groups[k].items() if n not in ("params", "param_names")}
            inner.param_groups[k].update(own)

    # Gradients.

    def _tasks(self) -> Any:
        if self._queue is None:
            if self._threads is None:
                raise RuntimeError("this Offload has been closed")
            calls: dict[str, int] = next((t.calls for t in self._transfers.values() if t is not None), {})
            self._queue = _core.TaskQueue(self._threads, calls)
        return self._queue

    def _is_late(self, slot: _Slot) -> bool:
        """Whether a gradient is not there yet when its hook is called: FSDP2 copies it to the CPU meanwhile."""
        p: Any = slot.param
        return is_sharded(p) and p.device_mesh.device_type != local_part(p).device.type

    @torch.no_grad()
    def _arrive(self, slot: _Slot) -> None:
        """A gradient has been accumulated."""
        grad = slot.param.grad
        if grad is None or self._threads is None or self._is_late(slot):
            return
        reduced = torch.distributed.is_available() and torch.distributed.is_initialized()
        reduced = reduced and torch.distributed.get_world_size() > 1 and not is_sharded(slot.param)
        if self._grads == "keep":
            if not reduced and slot.transfers is not None:
                self._fetch(slot, grad)
            return
        if reduced:
            raise RuntimeError(
                f"{slot.label}: grads={self._grads!r} takes gradients before DistributedDataParallel has averaged them "
                "over the processes; use grads='keep'"
            )
        if self._grads == "step":
            refuse_all_gradients(self.param_groups, "grads='step'")
        if slot.part is not None or slot.is_stepped or (self._passes is not None and slot.arrived >= self._passes):
            raise RuntimeError(
                f"{slot.label}: gradient number {slot.arrived + 1} since the last step, and accumulation_steps is "
                f"{self._passes}; call step() after each {self._passes} backward passes, or zero_grad() to drop these"
            )
        self._take(slot, grad)
        slot.param.grad = None
        if self._grads == "step" and slot.arrived == self._passes:
            self._snapshot.setdefault(slot.group, _values_of(self.param_groups[slot.group]))
            self._begin(slot)

    def _checked_grad(self, slot: _Slot, grad: Tensor) -> Tensor:
        if grad.layout != torch.strided:
            raise TypeError(f"gradient of {slot.label}: layout {grad.layout}, expected torch.strided")
        local = local_part(placed_like(grad, slot.param)).detach()
        if local.shape != slot.master.shape or local.device != slot.local.device:
            raise ValueError(
                f"gradient of {slot.label}: shape {tuple(local.shape)} on {local.device}, expected "
                f"{tuple(slot.master.shape)} on {slot.local.device} like its param"
            )
        if is_wrapper(local):
            local = plain_copy(local, f"gradient of {slot.label}")
        if local.stride() != slot.master.stride() or not is_dense(local):
            local = in_layout_of(local, slot.master, local.dtype)
        return local

    def _fetch(self, slot: _Slot, grad: Tensor) -> None:
        """Begin to copy a gradient from its device."""
        local = self._checked_grad(slot, grad)
        if slot.staging is None or slot.staging.dtype != local.dtype:
            slot.staging = slot.transfers.empty_like(slot.master, local.dtype)
        slot.event = slot.transfers.fetch(local, slot.staging)
        slot.fetched = (weakref.ref(grad), grad._version)

    def _take(self, slot: _Slot, grad: Tensor) -> None:
        """A gradient that is whole, or one of several to add."""
        if slot.transfers is None:
            given = self._checked_grad(slot, grad)
        else:
            if slot.sums:
                slot.sums[-1][0].wait()  # it reads what the next one is copied to
            if slot.fetched is None or slot.fetched[0]() is not grad or slot.fetched[1] != grad._version:
                self._fetch(slot, grad)
            slot.fetched = None
            assert slot.staging is not None
            given = slot.staging
        slot.arrived += 1
        slot.grad = given if slot.total is None else slot.total
        if slot.total is not None or self._wants_norm():
            self._start_sum(slot, given)

    def _start_sum(self, slot: _Slot, given: Tensor) -> None:
        added = _core.GradSum(slot.total, given)
        added.start(self._tasks(), slot.event)
        slot.sums.append((added, given))

    def _wants_norm(self) -> bool:
        return of_groups(self.param_groups, "clip_norm") is not None or bool(
            of_groups(self.param_groups, "skip_nonfinite")
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all params, including those already moved to the host.

        Raises
        ------
        RuntimeError
            With ``grads='step'`` between the backward pass and :meth:`step`, because params have already been updated.
        """
        if any(slot.part is not None or slot.is_stepped for slot in self._slots):
            raise RuntimeError("zero_grad() before step(): params have been stepped as their gradients arrived")
        self._drop_grads()
        super().zero_grad(set_to_none)

    def _drop_grads(self) -> None:
        if any(slot.sums for slot in self._slots):
            self._tasks().wait()
        for slot in self._slots:
            if slot.total is not None and slot.arrived:
                slot.total.zero_()
            slot.forget_grad()

    # Steps.

    def _begin(self, slot: _Slot, scale: float = 1.0, clip: float | None = None, norm: float | None = None) -> None:
        """Give a param's step to the queue."""
        inner = self._rule_of_masters()
        if self._snapshot:  # else all have been followed
            self._follow_groups([slot.group])
        slot.refresh()
        out, send = slot.out, None
        local = slot.local
        if slot.transfers is not None:
            assert out is not None
            send = slot.transfers.send(local, out)
            out = None if out.dtype == slot.master.dtype else out
        elif not slot.is_alias:
            out = local
        undo: Undo = []
        try:
            part = inner._native_plan().begin_part(
                inner,
                inner.param_groups,
                slot.master,
                slot.grad,
                inner.state,
                undo,
                scale,
                clip,
                norm,
                slot.total is not None,
                out,
            )
        except BaseException:
            roll_back(undo)
            raise
        part.start(self._tasks(), 0 if slot.sums else slot.event, send)
        slot.part = part
        slot.count_version()

    def _finish(self) -> None:
        """Wait for the queue; what has failed stays to be stepped again."""
        failed: list[str] = []
        if self._queue is not None:
            self._queue.wait()
        for slot in self._slots:
            part, slot.part = slot.part, None
            if part is not None:
                part.finish()
                if part.error:
                    failed.append(f"{slot.label}: {part.error}")
                if part.succeeded:
                    slot.needs_send = bool(part.error)
                    slot.is_stepped = True
                    slot.forget_grad()
            for done, given in slot.sums:
                if done.error:
                    failed.append(f"gradient of {slot.label}: {done.error}")
                    slot.again.append(given)
            if slot.again:
                slot.sums.clear()
        for transfers in self._transfers.values():
            if transfers is not None:
                transfers.join()
        if failed:
            raise RuntimeError(
                f"{'; '.join(failed)}. The other params are as they should be; step() again takes what is left"
            )

    def synchronize(self) -> None:
        """Wait for all work that has been started.

        Raises
        ------
        RuntimeError
            If the work on a param has failed. The message names the param and the reason. Its gradient is kept, and
            :meth:`step` tries the update again.
        """
        self._finish()

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        clip_norm: float | None = None,
        skip_nonfinite: bool | None = None,
    ) -> Any:
        """Take one step, or wait for the step that the backward pass has started.

        Params without a gradient are not changed. When it returns, the work of the host is done, and later work on the
        device sees the new params.

        Parameters
        ----------
        closure : callable, optional
            A function that computes the gradients again and returns the loss.
        clip_norm : float, optional
            Scale the gradients by ``min(1, clip_norm / norm)``, where norm is their global norm, over all shards of
            DTensors. The defaults of `clip_norm` and `skip_nonfinite` are in the param groups. If the groups have one
            of these options, the norms are computed as gradients arrive with ``grads='collect'``.
        skip_nonfinite : bool, optional
            Change nothing if a gradient contains inf or NaN; ``last_step.skipped`` is then True.

        Returns
        -------
        The value that the closure returned, or ``None``.

        Raises
        ------
        RuntimeError
            If the work on a param has failed (its gradient is kept for the next :meth:`step`); if a gradient was set by
            hand although one was already moved to the host; with GradScaler unless ``grads='keep'``; and with
            ``grads='step'`` if options have changed since the backward pass.
        TypeError, ValueError
            For gradients and options that the step does not support. Nothing is changed in this case.

        Examples
        --------
        >>> import torch, adaptk.torch
        >>> w = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        >>> opt = adaptk.torch.Offload([w], adaptk.torch.SGD, lr=0.5)
        >>> w.grad = torch.ones_like(w)
        >>> opt.step()
        >>> w.tolist()
        [0.5, 0.5]
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step_all(clip_norm, skip_nonfinite)
        return loss

    def _step_all(self, clip: float | None, skip: bool | None) -> None:
        self._tasks()
        if clip is None:
            clip = of_groups(self.param_groups, "clip_norm")
        if skip is None:
            skip = of_groups(self.param_groups, "skip_nonfinite")
        if self._grads == "step" and (clip is not None or skip):
            raise ValueError("clip_norm, skip_nonfinite: grads='step' takes gradients one by one; use 'collect'")
        _core.check_clip_norm(clip)
        found_inf, grad_scale = (getattr(self, n, None) for n in ("found_inf", "grad_scale"))
        if grad_scale is not None and self._grads != "keep":
            raise RuntimeError(f"GradScaler looks at gradients before the step; grads={self._grads!r} has taken them")
        by_hand = [slot for slot in self._slots if slot.param.grad is not None]
        if self._grads == "keep":
            by_hand = [slot for slot in by_hand if not slot.is_stepped]
        for slot in by_hand:
            if self._grads == "keep":
                slot.arrived = 0  # one that has failed is taken again
                slot.sums.clear()
            elif slot.arrived or slot.is_stepped or slot.part is not None:
                raise RuntimeError(
                    f"{slot.label}: a gradient was set by hand, and one was taken as it arrived; zero_grad() drops both"
                )
        begun = [slot for slot in self._slots if slot.part is not None or slot.is_stepped]
        changed = [k for k, before in self._snapshot.items() if before != _values_of(self.param_groups[k])]
        self._finish()
        for slot in self._slots:
            for given in slot.again:
                self._start_sum(slot, given)
            slot.again.clear()
            if slot.needs_send and slot.out is not None:
                slot.local.copy_(slot.out)
                slot.needs_send = False
        if found_inf is not None and float(found_inf) != 0.0:
            self._end(StepInfo(None, True))
            return
        for slot in by_hand:
            assert slot.param.grad is not None
            self._take(slot, slot.param.grad)
        ready = [slot for slot in self._slots if slot.grad is not None]
        scale = 1.0 if grad_scale is None else 1.0 / float(grad_scale)
        norm = None
        if clip is not None or skip:
            norm = self._norm(ready)
            if skip and not math.isfinite(norm):
                self._end(StepInfo(abs(scale) * norm, True))
                return
        self._snapshot.clear()
        self._follow_groups(range(len(self.param_groups)))
        for slot in ready:
            self._begin(slot, scale, clip, norm)
        self._finish()
        if ready or begun:
            self._update_carried()
        self._end(StepInfo(None if norm is None else abs(scale) * norm, False))
        if changed:
            raise RuntimeError(
                f"param_groups[{changed[0]}]: options have changed between the backward pass and step(), and params "
                "have been stepped by the old ones as their gradients arrived; change them before the backward pass, "
                "or use grads='collect'"
            )

    def _end(self, info: StepInfo) -> None:
        """The round is over."""
        self._snapshot.clear()
        self._drop_grads()
        zero = of_groups(self.param_groups, "zero_grad")
        for slot in self._slots:
            slot.is_stepped = False
            if zero and slot.param.grad is not None:
                slot.param.grad = torch.zeros_like(slot.param.grad)
        self.last_step = info

    def _update_carried(self) -> None:
        """What the rule hands on to the next step, and states that the first one has made."""
        inner = self._rule_of_masters()
        inner._update_carried()
        for own, group in zip(self.param_groups, inner.param_groups, strict=True):
            own.update({k: v for k, v in group.items() if k != "params"})
        for slot in self._slots:
            made = inner.state.get(slot.master)
            if made is not None and len(self.state.get(slot.param, ())) != len(made):
                self._link_state(slot)

    def _norm(self, slots: list[_Slot]) -> float:
        """The norm of all gradients, over all processes that have parts of them."""
        for slot in slots:
            if not slot.sums and slot.grad is not None:
                self._start_sum(slot, slot.grad)
        self._finish()
        parts: dict[Any, list[float]] = {}
        for slot in slots:
            p: Any = slot.param
            how = (p.device_mesh, tuple(x.is_replicate() for x in p.placements)) if is_sharded(p) else None
            parts.setdefault(how, []).append(slot.sums[-1][0].norm)
        lengths: list[float] = []
        for how, norms in parts.items():
            length = _length(norms)
            if how is not None:
                mesh, copies = how
                square = torch.tensor(length * length, dtype=torch.float64, device=mesh.device_type)
                length = math.sqrt(total_over(mesh, copies, square))
            lengths.append(length)
        return _length(lengths)

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """Like torch's method. The states of params with a master copy also have the entry ``master``."""
        self.synchronize()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of an Offload of the same class, of that class itself, or of the class of torch.

        Master copies that were not saved are made from the params.

        Raises
        ------
        ValueError
            As in :meth:`adaptk.torch.Adam.load_state_dict`, and for a master copy of another shape. Nothing is changed
            in this case.
        """
        self.synchronize()
        given = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            given = pre_hook(self, given) or given
        saved_ids = [i for g in given.get("param_groups", ()) for i in g["params"]]
        slot_of = dict(zip(saved_ids, self._slots, strict=False))
        masters: dict[_Slot, Tensor] = {}
        states: dict[Any, Any] = {}
        for i, state in given.get("state", {}).items():
            if not isinstance(state, dict):
                states[i] = state
                continue
            states[i] = {k: local_part(v) if isinstance(v, Tensor) else v for k, v in state.items() if k != "master"}
            if not states[i]:
                del states[i]
            master = state.get("master")
            slot = slot_of.get(i)
            if master is None or slot is None or slot.is_alias:
                continue
            if not isinstance(master, Tensor) or local_part(master).shape != slot.master.shape:
                raise ValueError(
                    f"state_dict['state'][{i!r}]['master']: expected a tensor of shape {tuple(slot.master.shape)}"
                )
            masters[slot] = local_part(master)
        passed = {**given}
        if "state" in given:
            passed["state"] = states
        if "param_groups" in given:
            passed["param_groups"] = [{k: v for k, v in g.items() if k != "param_names"} for g in given["param_groups"]]
        inner = self._rule_of_masters()
        inner.load_state_dict(passed)
        self._drop_grads()
        for own, group in zip(self.param_groups, inner.param_groups, strict=True):
            own.update({k: v for k, v in group.items() if k != "params"})
        self.state.clear()
        for slot in self._slots:
            if slot in masters:
                slot.master.copy_(masters[slot])
            slot.version = None  # the param says what is new
            group = inner.param_groups[slot.group]
            inner._bind(slot.master, group, inner._rule(group)[0], slot.label, [])
            self._link_state(slot)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("Offload: it has a thread of its own, and is not copied or pickled; save its state_dict()")

    def close(self) -> None:
        """Wait for all work, and remove the hooks. A closed optimizer cannot take steps.

        Raises
        ------
        RuntimeError
            As in :meth:`synchronize`. The optimizer is closed in this case too.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        try:
            self._finish()
        finally:
            self._queue, self._threads = None, None  # type: ignore[assignment]


def _check_number(name: str, value: Any, most: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not 1 <= value <= most:
        raise ValueError(f"{name}: {value}, expected a number in [1, {most}]")


def _hook_of(optimizer: Offload, slot: _Slot) -> Callable[[Tensor], None]:
    """Params do not keep the optimizer."""
    of, at = weakref.ref(optimizer), weakref.ref(slot)

    def hook(_: Tensor) -> None:
        owner, slot = of(), at()
        if owner is not None and slot is not None:
            owner._arrive(slot)

    return hook


def _values_of(group: Group) -> Group:
    return {k: float(v) if isinstance(v, Tensor) else v for k, v in group.items() if k not in ("params", "param_names")}


def _length(norms: list[float]) -> float:
    """sqrt(sum of squares), where no square is out of range."""
    largest = max(norms, default=0.0)
    if largest == 0.0 or not all(map(math.isfinite, norms)):
        return math.sqrt(sum(n * n for n in norms))
    unit = 2.0 ** -math.frexp(largest)[1] if largest > 1e-290 else 2.0**1000
    return math.sqrt(math.fsum((n * unit) ** 2 for n in norms)) / unit
