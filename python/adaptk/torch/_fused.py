"""The base of all classes: a ``torch.optim.Optimizer`` whose step is one native call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from adaptk import _core, _sparse, formats
from adaptk._names import misspelt
from adaptk._optimizer import StepInfo
from adaptk._registry import rule_of
from adaptk.torch import _private
from adaptk.torch._bind import Binding, Group, numbers_beside, storage_of
from adaptk.torch._dtensor import is_sharded
from adaptk.torch._hooks import with_hooks
from adaptk.torch._load import Ids, check_loaded, in_own_order
from adaptk.torch._norm import sharded_norm
from adaptk.torch._options import STEP, STORAGE, check_lr, check_step_options, of_groups, refuse_all_gradients
from adaptk.torch._tensors import detached, is_wrapper, plain_copy
from adaptk.torch._undo import Undo, roll_back

with suppress(ImportError):  # before 2.1, where optimizers refuse to be constructed
    from torch.autograd.graph import increment_version


def _tensors(given: Any, name: str) -> list[Any]:
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a list of tensors, one for each param, got {type(given).__name__}")
    return list(given)


class Fused(Binding):
    """The step of all classes here."""

    # Whether GradScaler leaves the scale and what it has found to the step. Loops that clip after unscale_() refuse
    # optimizers that say so, hence only those that were made with fused=True do.
    _step_supports_amp_scaling = False
    #: What the last step found out; see :class:`adaptk.StepInfo`.
    last_step: StepInfo | None = None
    # What the constructor was given of STORAGE and STEP, for groups that have none of their own.
    _given: Mapping[str, Any] = MappingProxyType({})
    # Whether gradients are released: see release_gradients().
    _releases: bool = False
    # Copies of the params while they are at the point to evaluate at.
    _kept: list[Tensor] | None = None
    # What compiled functions know of it: see _private.know().
    _known_params: list[Tensor]
    _handle: int

    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        """The rule that a group runs, and its hyperparameters by the library's names."""
        raise NotImplementedError

    def _seeded_rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        """The same, with the options of stochastic rounding."""
        name, values = self._rule(group)
        options = ("seed", "param_format", "sparse")
        given = {option: group[option] for option in options if group.get(option) is not None}
        return name, {**values, **given} if given else values

    def _check_modes(self, group: Group) -> None:
        if group.get("differentiable"):
            raise ValueError(
                "differentiable: a fused step is not recorded by autograd; "
                f"use torch.optim.{type(self).__name__}(differentiable=True)"
            )
        if group.get("capturable") and any(p.device.type == "cpu" for p in group["params"]):
            raise ValueError("capturable: params on the CPU, where there are no graphs to capture")

    # What torch calls the library's hyperparameters.
    _torchs_names: Mapping[str, str] = {
        "beta1": "betas[0]",
        "beta2": "betas[1]",
        "eps_out": "eps",
        "eta_minus": "etas[0]",
        "eta_plus": "etas[1]",
        "step_min": "step_sizes[0]",
        "step_max": "step_sizes[1]",
    }

    def _check_values(self, group: Group) -> None:
        """Ranges are narrower here and there than those that torch's constructors refuse by themselves."""
        rule, values = self._rule(group)
        try:
            known = rule_of(rule).defaults()
            for name in known:
                if callable(value := values.get(name)) and not isinstance(value, Tensor):
                    raise TypeError(f"{self._torchs_names.get(name, name)}: expected a number, got {value!r}")
            _core.check_hyperparameters(rule, {k: detached(values.get(k, default)) for k, default in known.items()})
        except ValueError as e:
            name, colon, rest = str(e).partition(":")
            raise ValueError(self._torchs_names.get(name, name) + colon + rest) from None

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group with its own options, like torch's method. The dict is copied.

        In addition to the options of torch, a group may have ``state_dtype``, ``min_8bit_size``, ``seed``,
        ``param_format``, ``sparse``, ``clip_norm``, ``skip_nonfinite`` and ``zero_grad``, like the constructor. Other
        keys are kept, as torch keeps them. If one resembles the name of an option, a warning says so.
        """
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            options = [*self.defaults, *STORAGE, *STEP]
            for key in param_group:
                if key not in options and (meant := misspelt(key, options)):
                    warnings.warn(
                        f"{type(self).__name__}: param group: {key!r} is no option; did you mean {meant!r}?",
                        stacklevel=2,
                    )
            if "lr" in param_group:
                check_lr(type(self).__name__, param_group["lr"])
            for option, given in self._given.items():
                param_group.setdefault(option, given)
        super().add_param_group(param_group)
        try:
            self._check_modes(self.param_groups[-1])
            self._check_values(self.param_groups[-1])
            self._check_storage_options(self.param_groups[-1])
            check_step_options(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        _private.know(self)

    def _check_storage_options(self, group: Group) -> None:
        if group.get("state_dtype") is not None:
            formats.check_state_dtype(group["state_dtype"], rule_of(self._rule(group)[0]).states)
        formats.check_min_8bit_size(group.get("min_8bit_size", 0))
        formats.check_seed(group.get("seed", 0))
        param_format = formats.check_param_format(group.get("param_format"))
        _sparse.check_mode(group.get("sparse", "lazy"), rule_of(self._rule(group)[0]))
        for i, p in enumerate(group["params"]):
            formats.check_param_dtype(str(p.dtype).removeprefix("torch."), param_format, f"params[{i}]")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._step_supports_amp_scaling = bool(self.defaults.get("fused"))
        for group in self.param_groups:  # torch's states say nothing of it
            for option, given in self._given.items():
                group.setdefault(option, given)
        self.__dict__.pop("_plan", None)
        _private.know(self)

    @_private.without_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of the class of torch with the same name.

        There are four differences from torch's method. States are copied, so that the dict, and other optimizers that
        load it, share no memory with this optimizer. States of 16-bit params are float32. The dict is checked. If both
        optimizers were made from ``named_parameters()`` with the same names, states are matched by name instead of the
        order of the params. The options of groups are always matched by the order of the groups.

        Raises
        ------
        ValueError
            Under the same conditions as torch's method, and if options or states are missing (for example in the dict
            of another optimizer), if the shape of a state does not match its param, or if a step count is negative or
            not an integer. Nothing is changed in this case.

        Examples
        --------
        >>> import torch, adaptk.torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> opt = adaptk.torch.Adam([w])
        >>> w.square().sum().backward()
        >>> opt.step()
        >>> snapshot = opt.state_dict()
        >>> opt.load_state_dict(snapshot)
        >>> opt.state[w]["exp_avg"] is snapshot["state"][0]["exp_avg"]
        False
        """
        given: dict[str, Any] = {}

        def see(_: torch.optim.Optimizer, final: dict[str, Any]) -> dict[str, Any]:
            final = in_own_order(self, final)
            self._check_loaded(final)
            given.update(final)
            # torch looks for each state's id in the lists of all groups.
            return {**final, "param_groups": [{**g, "params": Ids(g["params"])} for g in final["param_groups"]]}

        def copy(_: torch.optim.Optimizer) -> None:
            ids = chain.from_iterable(g["params"] for g in given["param_groups"])
            params = chain.from_iterable(g["params"] for g in self.param_groups)
            for i, p in zip(ids, params, strict=True):
                for name, value in given["state"].get(i, {}).items():
                    loaded = self.state[p].get(name)
                    if not isinstance(value, Tensor) or not isinstance(loaded, Tensor):
                        continue
                    if name == "last_step":
                        # torch has brought it into the param's dtype.
                        self.state[p][name] = value.detach().to(device="cpu", dtype=torch.int64, copy=True)
                    elif p.dtype in (torch.bfloat16, torch.float16) and loaded.dtype == p.dtype:
                        # torch has rounded it to the param's dtype.
                        dtype = value.dtype if name == "remainder" else torch.float32
                        self.state[p][name] = value.detach().to(device=p.device, dtype=dtype, copy=True)
                    elif loaded is value:
                        # torch copies only what it converts.
                        self.state[p][name] = value.detach().clone()

        # Behind the hooks that make another dict of it, and before those that look at what has been loaded.
        before = self.register_load_state_dict_pre_hook(see)
        after = self.register_load_state_dict_post_hook(copy, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _check_loaded(self, saved: Mapping[str, Any]) -> None:
        check_loaded(self, saved)

    def _defaults_of(self, group: Group) -> Group:
        """What options a saved group must have."""
        return self.defaults

    def _saved_names(self, group: Group, rule: str, arrays: list[str]) -> list[str]:
        """What a saved state that is not empty must have."""
        return [*numbers_beside(rule), *arrays]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all params to None or zero, like PyTorch's method."""
        if set_to_none and torch.compiler.is_dynamo_compiling():
            for p in self._known_params:
                p.grad = None
            return
        if not set_to_none or _private.profiler_enabled():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @with_hooks
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        clip_norm: float | None = None,
        skip_nonfinite: bool | None = None,
        norm_group: Any = None,
        zero_grad: bool | None = None,
        copy_out: Iterable[Tensor | None] | None = None,
        ema: tuple[Iterable[Tensor | None], float] | None = None,
        grad_norm: float | None = None,
    ) -> Any:
        """Take one step.

        Parameters
        ----------
        closure : callable, optional
            A function that computes the gradients again and returns the loss.
        clip_norm : float, optional
            Scale the gradients by ``min(1, clip_norm / norm)`` inside the step, where norm is their global norm. The
            ``grad`` tensors are not changed. The defaults of `clip_norm`, `skip_nonfinite` and `zero_grad` are in the
            param groups.
        skip_nonfinite : bool, optional
            Change nothing if a gradient contains inf or NaN; ``last_step.skipped`` is then True.
        norm_group : torch.distributed.ProcessGroup, optional
            Use this if the params are divided among the optimizers of several processes, as under
            ``ZeroRedundancyOptimizer``: the norm is computed over all processes of the group. All must take the step.
            Not needed for DTensors.
        zero_grad : bool, optional
            Set each gradient to zero once it has been read, also if the step is skipped, like
            ``zero_grad(set_to_none=False)`` after the step.
        copy_out : iterable of tensors, optional
            One tensor per param, in the order of the params over all groups. It receives a copy of the new param,
            rounded to the dtype of the tensor. Use ``None`` for a param without a copy.
        ema : (iterable of tensors, float), optional
            Averages of the params, in the same order, and a decay in [0, 1]. The step is followed by
            ``average.lerp_(param, 1 - decay)``, as in ``torch.optim.swa_utils.get_ema_multi_avg_fn``. Params without a
            gradient are averaged and copied too. A skipped step writes no averages and no copies.
        grad_norm : float, optional
            The norm of the gradients, returned by :func:`adaptk.accumulate` for the same tensors in the same order.
            `clip_norm` and `skip_nonfinite` then use it, so that the gradients are read only once.

        Returns
        -------
        The value that the closure returned, or ``None``.

        Raises
        ------
        RuntimeError
            During the capture of a CUDA graph, for steps that a replay would not repeat correctly: steps counted on
            the host (without ``capturable=True``), a first step, and steps with ``skip_nonfinite``.
        TypeError, ValueError
            For params, states and options that the step does not support. Nothing is changed in this case.

        Notes
        -----
        For dense params on the CPU, `zero_grad`, `copy_out` and `ema` work on each part of a param while it is in the
        cache. For other params, PyTorch operations follow the step.

        Examples
        --------
        >>> import torch, adaptk.torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> opt = adaptk.torch.SGD([w], lr=1.0)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> opt.step(clip_norm=1.0)
        >>> w.detach()
        tensor([0.4000, 0.2000])
        >>> average = torch.zeros(2)
        >>> opt.step(zero_grad=True, ema=([average], 0.5))
        >>> average, w.grad
        (tensor([-1.3000, -1.9000]), tensor([0., 0.]))
        """
        if self._kept is not None:
            raise RuntimeError("step() between eval() and train(), where the params are for evaluation: call train()")
        groups = self.param_groups
        if clip_norm is None:
            clip_norm = of_groups(groups, "clip_norm")
        if skip_nonfinite is None:
            skip_nonfinite = of_groups(groups, "skip_nonfinite")
        if zero_grad is None:
            zero_grad = of_groups(groups, "zero_grad")
        if self._releases and (clip_norm is not None or skip_nonfinite):
            raise ValueError(
                "clip_norm, skip_nonfinite: gradients are released as they arrive (release_gradients), and nobody sees "
                "all of them; remove the hooks to clip"
            )
        if "capturable" in self.defaults and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            _private.check_captured(self)
        if not isinstance(zero_grad, bool):
            raise TypeError(f"zero_grad: expected a bool, got {type(zero_grad).__name__}")
        copies = None if copy_out is None else _tensors(copy_out, "copy_out")
        averages = ema
        if isinstance(ema, tuple) and len(ema) == 2:
            averages = (_tensors(ema[0], "ema"), ema[1])
        loss = None
        if closure is not None:
            if not callable(closure):
                raise TypeError(
                    f"closure: expected a function, got {type(closure).__name__}; gradients are read from `.grad`"
                )
            with torch.enable_grad():
                loss = closure()
        # GradScaler leaves these two behind; the gradients are still scaled then.
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and float(found_inf) != 0.0:
            self.last_step = StepInfo(None, True)
            if zero_grad:
                self._zero_grads()
            return loss
        grad_scale = getattr(self, "grad_scale", None)
        scale = 1.0 if grad_scale is None else 1.0 / float(grad_scale)
        for group in groups:
            if group.get("differentiable") or group.get("capturable"):
                self._check_modes(group)
        norm: float | _core.Report | None = None
        clip = clip_norm
        if (clip is not None or skip_nonfinite) and grad_norm is None:
            params = [p for g in groups for p in g["params"] if p.grad is not None]
            if norm_group is not None or any(is_sharded(p.grad) for p in params):
                # No process sees all of a sharded gradient.
                length, finite = sharded_norm(params, norm_group)
                length *= abs(scale)
                norm = length
                if skip_nonfinite and not finite:
                    self.last_step = StepInfo(length, True)
                    if zero_grad:
                        self._zero_grads()
                    return loss
                _core.check_clip_norm(clip)
                if clip is not None and length > clip:
                    scale *= clip / length
                clip, skip_nonfinite = None, False
        plan = self._native_plan()
        rules = [self._seeded_rule(g) for g in groups]
        undo: Undo = []
        try:
            beside = (zero_grad, copies, averages, grad_norm)
            updated, found, skipped, nonzero, others = plan.step(
                self, groups, rules, self.state, scale, clip, skip_nonfinite, undo, *beside
            )
        except BaseException:
            roll_back(undo)
            raise
        if skipped:
            roll_back(undo)
        if updated:
            increment_version(updated)
        if zero_grad:
            self._zero_grads(nonzero)
        if not skipped and (copies is not None or averages is not None):
            self._finish_epilogues(copies, averages, others)
        if not skipped:
            self._update_carried()
        self.last_step = StepInfo(found if norm is None else norm, skipped)
        return loss

    def _update_carried(self) -> None:
        """After a step: what its rules hand on to the next one."""

    @torch.no_grad()
    def _zero_grads(self, nonzero: list[Tensor] | None = None) -> None:
        """What PyTorch is to know of gradients that the step has set to zero, and zeros for the others, or for all."""
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        for p in params:
            # As torch.optim.Optimizer.zero_grad.
            if p.grad.grad_fn is not None:
                p.grad.detach_()
            elif p.grad.requires_grad:
                p.grad.requires_grad_(False)
        left = {id(p) for p in (params if nonzero is None else nonzero)}
        _private.zero_all([p.grad for p in params if id(p) in left])
        done = [p.grad for p in params if id(p) not in left and not p.grad.is_inference()]
        if done:
            increment_version(done)

    @torch.no_grad()
    def _finish_epilogues(self, copies: list[Any] | None, averages: Any, others: list[int]) -> None:
        """What PyTorch is to know of tensors that the step has written, and the same for the other params."""
        params = [p for g in self.param_groups for p in g["params"]]
        means, decay = averages if averages is not None else (None, 0.0)
        left = set(others)
        written: list[Tensor] = []
        for of in (copies, means):
            for i, t in enumerate(of or ()):
                if t is None:
                    continue
                if i not in left:
                    if not t.is_inference():
                        written.append(t)
                    continue
                p = params[i]
                if is_wrapper(p):
                    p = plain_copy(p, f"params[{i}]")
                if of is copies:
                    t.copy_(p)
                else:
                    t.lerp_(p.to(t.dtype), 1.0 - decay)
        if written:
            increment_version(written)

    def step_param(self, param: Tensor) -> None:
        """Take one step with a single param and its ``grad``.

        The cost does not depend on the number of other params, and several threads may step different params at the
        same time. Use it in hooks that run as soon as a gradient is available; see :func:`release_gradients`. Clipping
        and skipping need all gradients, so groups with ``clip_norm`` or ``skip_nonfinite`` are refused. The gradient is
        not changed, and the hooks of :meth:`step` are not called.

        Parameters
        ----------
        param : torch.Tensor
            One of the optimizer's params: dense, real and on the CPU.

        Raises
        ------
        RuntimeError
            If another step of this param, or of all params, is running.
        TypeError, ValueError
            For a tensor that is not among the params, has no gradient, or does not support a single step. Nothing is
            changed in this case.

        Examples
        --------
        >>> import torch, adaptk.torch
        >>> w, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(1))
        >>> opt = adaptk.torch.SGD([w, b], lr=0.5)
        >>> w.grad = torch.tensor([1.0, 2.0])
        >>> opt.step_param(w)
        >>> w.detach()
        tensor([0.5000, 0.0000])
        """
        if not isinstance(param, Tensor):
            raise TypeError(f"param: {type(param).__name__}, expected a torch.Tensor")
        refuse_all_gradients(self.param_groups, "step_param()")
        undo: Undo = []
        try:
            updated = self._native_plan().step_param(self, self.param_groups, param, self.state, undo)
        except BaseException:
            roll_back(undo)
            raise
        if updated:
            increment_version([param])

    def catch_up(self) -> None:
        """Let all rows catch up with the steps that they have missed, as a row does when it has a gradient again.

        For ``sparse="catch_up"``, before the params are evaluated or exported; for other params it does nothing.

        Raises
        ------
        TypeError, ValueError
            For states and options that the step does not support. Nothing is changed in this case.

        Examples
        --------
        >>> import torch, adaptk.torch
        >>> words = torch.nn.Embedding(2, 1, sparse=True)
        >>> with torch.no_grad():
        ...     _ = words.weight.fill_(1.0)
        >>> opt = adaptk.torch.AdamW(words.parameters(), lr=0.5, weight_decay=0.5, sparse="catch_up")
        >>> words(torch.tensor([1])).sum().backward()
        >>> opt.step()
        >>> opt.catch_up()
        >>> words.weight.detach()
        tensor([[0.7500],
                [0.2500]])
        """
        if self._kept is not None:
            raise RuntimeError("catch_up() between eval() and train(), where the params are for evaluation")
        rules = [self._seeded_rule(g) for g in self.param_groups]
        undo: Undo = []
        try:
            updated = self._native_plan().catch_up(self, self.param_groups, rules, self.state, undo)
        except BaseException:
            roll_back(undo)
            raise
        if updated:
            increment_version(updated)

    def _native_plan(self) -> _core.TorchPlan:
        storage = [storage_of(g) for g in self.param_groups]
        known = self.__dict__.get("_storage_now")
        if storage != known:
            for group in self.param_groups:
                self._check_storage_options(group)
            if known is not None:
                self.__dict__.pop("_plan", None)  # it has bound the states as they were
            self.__dict__["_storage_now"] = storage
        plan = self.__dict__.get("_plan")
        if plan is None:
            _private.check_release()  # of an optimizer that was copied or unpickled
            # One for all threads: it is what refuses a second step at the same time.
            plan = self.__dict__.setdefault("_plan", _core.TorchPlan(Tensor, torch.nn.Parameter, _private.face()))
        return plan  # type: ignore[no-any-return]
