"""Muon for PyTorch: see :class:`adaptk.torch.Muon`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

try:
    from torch.optim import Muon as _TorchMuon
except ImportError:  # before 2.9, where optimizers refuse to be constructed
    _TorchMuon = torch.optim.Optimizer  # type: ignore[assignment, misc]

import adaptk.torch as classes
from adaptk import _core, ops
from adaptk._muon import COEFFICIENTS, adjustment, check_options, orthogonalize
from adaptk._names import hint
from adaptk._optimizer import StepInfo
from adaptk._registry import rule_of
from adaptk.torch import _private
from adaptk.torch._bind import Group
from adaptk.torch._dtensor import is_sharded, local_part, part_of_whole, placed_like, shard_like
from adaptk.torch._fused import Fused
from adaptk.torch._hooks import with_hooks
from adaptk.torch._norm import sharded_norm
from adaptk.torch._options import STEP, check_params, check_step_options, of_groups, refuse_all_gradients
from adaptk.torch._tensors import (
    detached,
    full_like,
    in_layout_of,
    is_captured,
    is_dense,
    is_wrapper,
    overlaps_itself,
    plain_copy,
)
from adaptk.torch._undo import Undo, put, roll_back

# Without the hooks of all optimizers, which are called for the whole step.
_step_of_rest: Callable[..., Any] = inspect.unwrap(Fused.step)


def _multiply_add(beta: float, x: Tensor, alpha: float, a: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(x, a, b, beta=beta, alpha=alpha)


def _norm(x: Tensor) -> Tensor:
    # As torch has it, but for squares out of range.
    length: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return length if x.dtype == torch.float16 else length.to(x.dtype)


def _new_rest(rest: Any, options: Any) -> Fused:
    """The optimizer of the params that are no matrices, which has none yet."""
    if isinstance(rest, str):
        name, rest = rest, getattr(classes, rest, None)
        if rest is None:
            raise ValueError(f"rest: adaptk.torch has no class {name!r}{hint(name, dir(classes))}")
    if not isinstance(rest, type) or not issubclass(rest, Fused) or issubclass(rest, Muon):
        raise TypeError(f"rest: {rest!r}, expected another class of adaptk.torch, or its name")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(
            f"rest_options: expected a dict of the options of {rest.__name__}, got {type(options).__name__}"
        )
    try:
        made = rest([torch.zeros(1)], **(options or {}))
    except (TypeError, ValueError) as error:
        raise type(error)(f"rest_options: {error}") from None
    if rule_of(made._rule(made.param_groups[0])[0]).evaluation:
        raise ValueError(f"rest: {rest.__name__} has other params to evaluate with; give it an optimizer of its own")
    made.param_groups.clear()
    return made


def _param_of(item: Any) -> Any:
    """The tensor of an item of a list of params, or of a pair (name, tensor)."""
    return item[1] if isinstance(item, tuple) and len(item) == 2 else item


class Muon(Fused, _TorchMuon):
    """:class:`torch.optim.Muon` with a fused step, and another rule for params that are not matrices.

    Jordan et al. 2024; Liu et al. 2025 (Moonlight)::

        m = momentum*m + (1 - momentum)*g
        u = (1 - momentum)*g + momentum*m if nesterov else m
        o = u / max(norm(u), eps), and ns_steps times:  o = a*o + (b*(o o^T) + c*(o o^T)^2) o
        p = (1 - lr*weight_decay)*p - lr*adjustment*o

    The momentum takes one pass over memory, and weight decay and step another. The matrix products between them are
    those of PyTorch.

    Parameters
    ----------
    params : iterable of torch.Tensor or of param groups
        Real params in float32, float64, bfloat16 or float16. They may be DTensors, whose updates are gathered and
        orthogonalized in every process. Params with two dimensions are updated by Muon, and all others by `rest`. A
        group with both kinds is split into two groups. A group with ``use_muon=False`` is updated by `rest`; use this
        for embeddings and the last layer. In a group with ``use_muon=True``, params with more than two dimensions,
        such as convolution weights, are flattened to matrices after the first dimension.
    lr : float or Tensor, default 1e-3
        Learning rate of the matrices.
    weight_decay : float in [0, inf), default 0.1
        Decoupled weight decay of the matrices. It is multiplied by `lr` without the factor of `adjust_lr_fn`.
    momentum : float in [0, 1), default 0.95
        Decay of the momentum.
    nesterov : bool, default True
        Whether to use Nesterov momentum.
    ns_coefficients : three floats, default (3.4445, -4.775, 2.0315)
        a, b and c of the Newton-Schulz iteration.
    eps : float in [0, inf), default 1e-7
        The lower bound of the norm that an update is divided by.
    ns_steps : int in [0, 100), default 5
        The number of iterations.
    adjust_lr_fn : {'original', 'match_rms_adamw'}, optional
        The factor of `lr` for a matrix with m rows and n columns: ``sqrt(max(1, m/n))``, by default, or
        ``0.2*sqrt(max(m, n))``, with which you can use learning rates and weight decays of AdamW.
    ns_dtype : {'bfloat16', 'float16', 'float32', 'float64'}
        The dtype of the iteration; torch's is bfloat16.
    rest : type or str, default 'AdamW'
        The optimizer class of this module for the other params.
    rest_options : dict, optional
        Options of that class, such as `lr`. Options that are not given have the defaults of the class, whatever is
        given for Muon.
    clip_norm : float, optional
        The default of the argument of :meth:`step`, for wrappers that call ``step()``. All groups must have the same
        value.
    skip_nonfinite, zero_grad : bool
        Likewise.

    Raises
    ------
    TypeError, ValueError
        For params that cannot be updated in place, groups with both kinds of params and options of their own, and
        options that are unknown or out of range.

    Notes
    -----
    Each group has `use_muon` and the options of its rule. Learning-rate schedulers and ``state_dict`` include all
    groups. States saved by ``torch.optim.Muon`` can be loaded. The momentum of 16-bit params is float32.

    The step is as exact as the matrix products. Unlike in the other classes, its bits differ between devices.

    Examples
    --------
    >>> import torch, adaptk.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "use_muon": False}]
    >>> opt = adaptk.torch.Muon(groups, lr=0.02, rest="AdamW", rest_options={"lr": 3e-4})
    >>> [(g["use_muon"], g["lr"], len(g["params"])) for g in opt.param_groups]
    [(True, 0.02, 1), (False, 0.0003, 1), (False, 0.0003, 2)]
    >>> model(torch.ones(1, 4)).square().sum().backward()
    >>> opt.step()
    """

    # GradScaler unscales the gradients before the step.
    _step_supports_amp_scaling = False
    _rest: Fused

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str = "bfloat16",
        rest: type[torch.optim.Optimizer] | str = "AdamW",
        rest_options: Mapping[str, Any] | None = None,
        clip_norm: float | None = None,
        skip_nonfinite: bool = False,
        zero_grad: bool = False,
    ) -> None:
        _private.check_release()
        check_params("Muon", params, lr)
        given = {"clip_norm": clip_norm, "skip_nonfinite": skip_nonfinite, "zero_grad": zero_grad}
        self._given = {option: value for option, value in given.items() if value is not STEP[option]}
        self._rest = _new_rest(rest, rest_options)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "ns_dtype": ns_dtype,
        }
        # torch.optim.Muon's own refuses what is not a matrix.
        torch.optim.Optimizer.__init__(self, params, defaults)

    # Groups.

    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        if not group["use_muon"]:
            return self._rest._rule(group)
        values = {"lr": 1.0, "momentum": group["momentum"], "dampening": 0.0, "velocity": False}
        return "nesterov" if group["nesterov"] else "momentum", values

    def _check_group(self, group: Group) -> None:
        """A group of matrices."""
        check_options(group)
        steps = {name: detached(group[name]) for name in ("lr", "weight_decay")}
        _core.check_hyperparameters("sgd", {**rule_of("sgd").defaults(), **steps})
        for i, p in enumerate(group["params"]):
            if p.is_complex() or not p.is_floating_point():
                raise TypeError(f"params[{i}]: dtype {p.dtype}, expected real floating point numbers")
            if is_wrapper(local_part(p)):
                raise TypeError(f"params[{i}]: a {type(p).__name__}, which has no memory of its own; Muon takes none")
            if p.ndim < 2:
                raise ValueError(
                    f"params[{i}]: shape {tuple(p.shape)} with use_muon=True, expected at least two dimensions"
                )

    def add_param_group(self, param_group: Group) -> None:
        """Add a param group with its own options, like torch's method. The dict is copied.

        If a group without ``use_muon`` has both matrices and other params, it is split into two groups, and must not
        have options.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group: expected a dict, got {type(param_group).__name__}")
        params = param_group["params"]
        if isinstance(params, (set, frozenset)):
            raise TypeError("params: expected a list; the order of a set changes from run to run")
        params = [params] if isinstance(params, Tensor) else list(params)
        use_muon = param_group.get("use_muon")
        if use_muon is not None and not isinstance(use_muon, bool):
            raise TypeError(f"use_muon: expected a bool, got {type(use_muon).__name__}")
        parts: list[tuple[bool, list[Any]]]
        if use_muon is not None:
            parts = [(use_muon, params)]
        else:
            is_matrix = [getattr(_param_of(x), "ndim", 2) == 2 for x in params]
            parts = [
                (kind, [x for x, of in zip(params, is_matrix, strict=True) if of is kind]) for kind in (True, False)
            ]
            parts = [part for part in parts if part[1]]
            own = [name for name in param_group if name not in ("params", "use_muon")]
            if len(parts) > 1 and own:
                raise ValueError(
                    f"params: a group with options of its own ({', '.join(own)}) has matrices and others; make two "
                    "groups of it, with use_muon=True and use_muon=False"
                )
        before = len(self.param_groups)
        try:
            for kind, members in parts:
                self._add({**param_group, "params": members, "use_muon": kind})
        except BaseException:
            del self.param_groups[before:]
            raise
        _private.know(self)

    def _add(self, group: Group) -> None:
        for option, given in self._given.items():
            group.setdefault(option, given)
        if group["use_muon"]:
            torch.optim.Optimizer.add_param_group(self, group)
            self._check_group(self.param_groups[-1])
            check_step_options(self.param_groups[-1])
            return
        rest = self._linked_rest()
        del group["use_muon"]
        rest.add_param_group(group)
        added = rest.param_groups[-1]
        mine = {id(p) for g in self.param_groups for p in g["params"]}
        if any(id(p) in mine for p in added["params"]):
            raise ValueError("some parameters appear in more than one parameter group")
        added["use_muon"] = False
        self.param_groups.append(added)

    def _linked_rest(self) -> Fused:
        """The optimizer of the others, over the groups and states as they are now."""
        self._rest.param_groups = [g for g in self.param_groups if not g["use_muon"]]
        self._rest.state = self.state
        return self._rest

    # Saving.

    def __getstate__(self) -> dict[str, Any]:
        rest = object.__new__(type(self._rest))
        rest.__setstate__({"defaults": self._rest.defaults, "state": {}, "param_groups": []})
        rest._given = dict(self._rest._given)
        return {**super().__getstate__(), "_rest": rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if group.setdefault("use_muon", True):
                group.setdefault("ns_dtype", "bfloat16")  # saved by torch.optim.Muon
        self._rest.__dict__.pop("_plan", None)

    def _defaults_of(self, group: Group) -> Group:
        return self.defaults if group["use_muon"] else self._rest.defaults

    def _saved_names(self, group: Group, rule: str, arrays: list[str]) -> list[str]:
        return arrays if group["use_muon"] else self._rest._saved_names(group, rule, arrays)

    def _check_loaded(self, saved: Mapping[str, Any]) -> None:
        for k, (loaded, own) in enumerate(zip(saved.get("param_groups", ()), self.param_groups, strict=False)):
            if loaded.get("use_muon", True) is not own["use_muon"]:
                raise ValueError(
                    f"state_dict['param_groups'][{k}]: use_muon={not own['use_muon']}, and here it is "
                    f"{own['use_muon']}; make the groups as those that were saved"
                )
        super()._check_loaded(saved)

    # Steps.

    @with_hooks
    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        clip_norm: float | None = None,
        skip_nonfinite: bool | None = None,
        zero_grad: bool | None = None,
    ) -> Any:
        """Take one step.

        Parameters
        ----------
        closure : callable, optional
            A function that computes the gradients again and returns the loss.
        clip_norm : float, optional
            Scale the gradients of all params, matrices and others, by ``min(1, clip_norm / norm)``. The defaults of
            `clip_norm`, `skip_nonfinite` and `zero_grad` are in the param groups.
        skip_nonfinite : bool, optional
            Change nothing if a gradient contains inf or NaN; ``last_step.skipped`` is then True.
        zero_grad : bool, optional
            Set each gradient to zero at the end, also if the step is skipped.

        Returns
        -------
        The value that the closure returned, or ``None``.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            For params, gradients, states and options that the step does not support. Nothing is changed in this case.

        Examples
        --------
        >>> import torch, adaptk.torch
        >>> w = torch.nn.Parameter(torch.zeros(2, 3))
        >>> opt = adaptk.torch.Muon([w], lr=0.1)
        >>> w.grad = torch.ones(2, 3)
        >>> opt.step(clip_norm=1.0)
        >>> opt.last_step.grad_norm
        2.4494898319244385
        """
        if clip_norm is None:
            clip_norm = of_groups(self.param_groups, "clip_norm")
        if skip_nonfinite is None:
            skip_nonfinite = of_groups(self.param_groups, "skip_nonfinite")
        if zero_grad is None:
            zero_grad = of_groups(self.param_groups, "zero_grad")
        _core.check_clip_norm(clip_norm)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        norm, scale = None, 1.0
        if clip_norm is not None or skip_nonfinite:
            params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
            if any(p.grad.layout != torch.strided for p in params):
                raise TypeError("clip_norm, skip_nonfinite: a gradient is sparse; clip it before the step")
            norm, finite = sharded_norm(params, None)
            if skip_nonfinite and not finite:
                self.last_step = StepInfo(norm, True)
                if zero_grad:
                    self._zero_grads()
                return loss
            if clip_norm is not None and norm > clip_norm:
                scale = clip_norm / norm
        rest = self._linked_rest()
        undo: Undo = []
        try:
            todo = [x for i, g in enumerate(self.param_groups) if g["use_muon"] for x in self._bound(g, i, undo)]
            if rest.param_groups:
                _step_of_rest(rest, clip_norm=clip_norm, grad_norm=norm, skip_nonfinite=False, zero_grad=False)
        except BaseException:
            roll_back(undo)
            raise
        for param, buffer, grad, group in todo:
            self._step_matrix(param, buffer, grad, group, scale)
        if zero_grad:
            self._zero_grads()
        self.last_step = StepInfo(norm, False)
        return loss

    @torch.no_grad()
    def step_param(self, param: Tensor) -> None:
        """Take one step with a single param and its ``grad``, like the other classes."""
        refuse_all_gradients(self.param_groups, "step_param()")
        for i, group in enumerate(self.param_groups):
            if group["use_muon"] and any(p is param for p in group["params"]):
                if param.grad is None:
                    raise ValueError("param: step_param() of a param without a gradient")
                undo: Undo = []
                try:
                    (bound,) = self._bound({**group, "params": [param]}, i, undo)
                except BaseException:
                    roll_back(undo)
                    raise
                self._step_matrix(*bound, 1.0)
                return
        self._linked_rest().step_param(param)

    def _bound(self, group: Group, at: int, undo: Undo) -> Iterable[tuple[Tensor, Tensor, Tensor, Group]]:
        """The matrices of a group that have gradients, with their momenta, made if they are missing; checked."""
        self._check_group(group)
        found = []
        for i, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            where = f"param_groups[{at}]['params'][{i}]"
            if p.grad.layout != torch.strided:
                raise RuntimeError(f"gradient of {where}: layout {p.grad.layout}, expected torch.strided")
            if overlaps_itself(local_part(p)):
                raise RuntimeError(f"{where}: several of its elements are at one address, as in an expanded tensor")
            if is_captured(p):
                raise RuntimeError(f"{where}: step() while its stream is captured in a graph; Muon takes no such steps")
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            state = self.state.get(p)
            if state is None:
                state = {}
                put(self.state, p, state, undo)
            if state.get("momentum_buffer") is None:
                put(state, "momentum_buffer", full_like(p, 0.0, dtype), undo)
            odd = is_sharded(p) or not is_dense(p)
            buffer = self._array(state, "momentum_buffer", p, dtype, where, odd, undo)
            grad = local_part(placed_like(p.grad, p))
            if is_wrapper(grad):
                grad = plain_copy(grad, f"gradient of {where}")
            self._check_storage(local_part(p), where)
            self._check_storage(grad, f"gradient of {where}")
            found.append((p, buffer, grad, group))
        return found

    @staticmethod
    def _step_matrix(param: Any, buffer: Tensor, grad: Tensor, group: Group, scale: float) -> None:
        local, m = local_part(param).detach(), local_part(buffer)
        p = local if is_dense(local) else local.resolve_neg().contiguous()
        if grad.stride() != p.stride() or not is_dense(grad):
            grad = in_layout_of(grad, p, grad.dtype)
        momentum = m if m.stride() == p.stride() and is_dense(m) else in_layout_of(m, p, m.dtype)
        compute = getattr(torch, group["ns_dtype"])
        # The kernels round to the dtype of the iteration, except that float64 goes with float64.
        wide = p.dtype == torch.float64
        update = full_like(p, 0.0, torch.float64 if wide else torch.float32 if compute == torch.float64 else compute)
        # With lr=1 these rules make -u of 0: the step that follows has the opposite sign.
        decay = float(group["momentum"])
        average: dict[str, Any] = {"lr": 1.0, "momentum": decay, "velocity": False, "grad_scale": (1.0 - decay) * scale}
        (ops.nesterov if group["nesterov"] else ops.momentum)(update, grad, momentum, step=1, **average)
        if momentum is not m:
            m.copy_(momentum)
        whole: Any = update.to(compute)
        if is_sharded(param):
            whole = shard_like(whole, param).full_tensor()
        matrix = whole.flatten(1)
        size = tuple(matrix.shape)
        result: Any = orthogonalize(
            matrix, group["ns_coefficients"], group["ns_steps"], group["eps"], _norm, _multiply_add
        ).reshape(whole.shape)
        if is_sharded(param):
            result = part_of_whole(result, param)
        if result.stride() != p.stride() or not is_dense(result):
            result = in_layout_of(result, p, result.dtype)
        ops.sgd(
            p,
            result,
            step=1,
            lr=float(detached(group["lr"])),
            weight_decay=float(detached(group["weight_decay"])),
            decoupled=True,
            maximize=True,
            grad_scale=adjustment(group["adjust_lr_fn"], *size),
        )
        if p is not local:
            local.copy_(p)
        torch.autograd.graph.increment_version([param, buffer])
