"""Optimizers for PyTorch: subclasses of the classes of ``torch.optim`` whose step is one native call.

For each optimizer of torch there is a subclass with the same name. Arguments, defaults, param groups, states and
``state_dict`` are those of torch; only the step differs. Rules that torch does not have are provided in the same way
under the names of this library. Gradients are read without a copy, a step is one pass over memory, and its result does
not depend on threads or processors.

Differences from the classes of torch:

- Params in bfloat16 and float16 have float32 states.
- ``differentiable=True`` is refused, and so is ``capturable=True`` for params on the CPU.
- All classes accept sparse gradients (``torch.sparse_coo``, such as those of ``nn.Embedding(sparse=True)``). The option
  `sparse` says what happens to rows without values. On a CUDA device a step waits for the indices.
- ``foreach`` is accepted and ignored. ``fused=True`` tells GradScaler to leave the unscaling to the step, as for the
  classes of torch; the step itself does not change. The rules that torch does not have accept it too.
- Some values that torch accepts are out of range: ``dampening`` outside [0, 1], ``alpha`` of RMSprop and ``rho`` of
  Adadelta from 1 on, and negative ``lambd``, ``alpha``, ``t0`` and ``step_sizes``.
- A NaN in a gradient makes the param NaN, also under Rprop, whereas Rprop of torch leaves the param unchanged.
- Loaded states are copied, and matched by the names of the params if both optimizers were made from named params. The
  dicts of added param groups are copied.
- Params that overlap in memory are refused, and so is a param that occurs twice in a group.
- A step that fails or is skipped changes nothing, and does not create states either.
- ``step`` also accepts ``clip_norm``, ``skip_nonfinite``, ``norm_group``, ``zero_grad``, ``copy_out``, ``ema`` and
  ``grad_norm``. For wrappers that call ``step()``, the constructors and param groups accept ``clip_norm``,
  ``skip_nonfinite`` and ``zero_grad``.
- Params and gradients of wrapper subclasses, which store their numbers in other tensors (such as quantized weights, and
  pending results of collectives), are copied to plain tensors, and back with ``copy_``. Their states are plain tensors.
- Under ``torch.compile`` a step is one operator, without a graph break for ``fullgraph=True``: a step without
  arguments, or with a closure, ``clip_norm``, ``skip_nonfinite`` and ``zero_grad``.

Examples
--------
>>> import torch, adaptk.torch
>>> model = torch.nn.Linear(4, 1)
>>> opt = adaptk.torch.AdamW(model.parameters(), lr=1e-3)
>>> model(torch.ones(2, 4)).square().sum().backward()
>>> opt.step(clip_norm=1.0)
>>> opt.last_step.skipped
False
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import chain, count, takewhile
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adaptk._names import face, misspelt, not_installed, unexpected

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise not_installed("adaptk.torch", "PyTorch", "torch") from None
from torch import Tensor
from torch.autograd.profiler import record_function

from adaptk import _core, _sparse, _torch_private, catalogue, formats
from adaptk._dtensor import is_cut, is_sharded, local_part, placed_like, total_over
from adaptk._optimizer import COMMON, StepInfo, evaluation_rule
from adaptk._registry import RULES, Rule, State, rule_of
from adaptk._torch_private import face as _face

with suppress(ImportError):  # before 2.1, where optimizers refuse to be constructed
    from torch.autograd.graph import increment_version

Group = dict[str, Any]


def _is_wrapper(t: Tensor) -> bool:
    """Whether its class keeps the numbers elsewhere, in other tensors as a rule, and answers operations by itself."""
    if type(t).__torch_dispatch__ is Tensor.__torch_dispatch__ or is_sharded(t):
        return False
    try:
        return t.numel() == 0 or t.data_ptr() == 0
    except RuntimeError:  # it has no storage
        return True


def _numbers_of(t: Tensor, where: str) -> Tensor:
    """A plain copy of a wrapper."""
    plain = torch.empty(t.shape, dtype=t.dtype, device=t.device)
    try:
        plain.copy_(t)
    except Exception as error:
        raise TypeError(
            f"{where}: a {type(t).__name__}, which has no memory of its own, and a plain tensor cannot copy_() from "
            f"it: {error}"
        ) from error
    return plain


def _check_wrapper(p: Tensor, where: str) -> None:
    """What a step does to a wrapper is tried on a copy of it, or else with the numbers that it has."""
    numbers = _numbers_of(p, where)
    try:
        twin = p.detach().clone()
        (twin if type(twin) is type(p) else p.detach()).copy_(numbers)
    except Exception as error:
        raise TypeError(
            f"{where}: a {type(p).__name__}, which has no memory of its own and cannot copy_() from a plain tensor: "
            f"{error}"
        ) from error


def _is_dense(t: Tensor) -> bool:
    expected = 1
    if not t.is_contiguous():
        axes = zip(t.stride(), t.shape, strict=True)
        for stride, size in sorted((stride, size) for stride, size in axes if size != 1):
            if stride != expected and t.numel() > 0:
                return False
            expected *= size
    return not (t.is_neg() or t.is_conj())


def _state_format(p: Tensor, state: State, group: Group) -> torch.dtype | str:
    """What a state is stored as: a dtype (float64 beside float64, complex beside complex), or a format with codes."""
    if p.dtype in (torch.float64, torch.complex128, torch.complex64):
        return p.dtype
    given = group.get("state_dtype")
    if given is None or state.per != "element":
        return torch.float32
    chosen = given.get(state.name, "float32") if isinstance(given, Mapping) else given or "float32"
    name = formats.format_of(chosen, state, p.numel(), group.get("min_8bit_size", 4096))
    return getattr(torch, name) if formats.is_plain(name) else name


def _storage_of(group: Group) -> tuple[Any, Any]:
    """What a group says of the formats of its states, as it is now."""
    given = group.get("state_dtype")
    if given is not None and not isinstance(given, str) and isinstance(given, Mapping):
        given = tuple(given.items())  # a dict may change too
    return given, group.get("min_8bit_size")


def _in_memory_order(t: Tensor) -> Tensor:
    """The elements of a dense tensor in one row."""
    return t.detach().as_strided((t.numel(),), (1,))


def _row_shape(p: Tensor) -> tuple[int, ...]:
    """That of a state with one number for each row."""
    return (p.shape[0] if p.ndim > 0 else 1,)


_STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _full_like(p: Tensor, value: float, dtype: torch.dtype) -> Tensor:
    # PyTorch steps the real and the imaginary parts of complex params as numbers of their own.
    fill = complex(value, value) if p.is_complex() else value
    if _is_wrapper(p):
        return torch.full(p.shape, fill, dtype=dtype, device=p.device)
    if value == 0.0:
        return torch.zeros_like(p, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)
    return torch.full_like(p, fill, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)


def _new_numbers(p: Tensor, state: State, value: float) -> Tensor:
    dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
    return torch.full(state.shape_beside(tuple(p.shape)), value, dtype=dtype, device=p.device)


def _in_layout_of(t: Tensor, p: Tensor, dtype: torch.dtype) -> Tensor:
    if _is_wrapper(p):
        return torch.empty(p.shape, dtype=dtype, device=p.device).copy_(t)
    return torch.empty_like(p, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format).copy_(t)


def _is_captured(p: Tensor) -> bool:
    """Whether what is done to a tensor goes into a CUDA graph and not to the device."""
    return p.is_cuda and torch.cuda.is_current_stream_capturing()


def _plain(x: Any) -> Any:
    """A hyperparameter without the graph that it may belong to, about which PyTorch warns."""
    return x.detach() if isinstance(x, Tensor) else x


def _new_number(value: float, device: torch.device | None) -> Tensor:
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.full((), value, dtype=dtype, device=device)


def _usual_states(rule: str) -> tuple[State, ...] | None:
    """The states of a rule that makes them all alike, as the numbers that _starts() has beside them."""
    states = rule_of(rule).states
    alike = all(s.per == "element" and s.initial_from is None for s in states)
    # These make theirs as gradients come, none at all, or of the learning rate.
    return states if alike and rule not in ("sgd", "momentum", "nesterov", "asgd") else None


def _in_torchs_order(states: tuple[State, ...]) -> list[State]:
    """Of what is in a state: that of centered RMSprop has the mean of the gradients last."""
    return sorted(states, key=lambda s: s.name == "grad_avg")


def _starts(rule: str) -> dict[str, float]:
    """The numbers that a rule has beside its state arrays, and what they start at; ASGD's eta at its learning rate."""
    others = {"nadam": {"mu_product": 1.0}, "asgd": {"eta": 0.0, "mu": 1.0}}
    return {"step": 0.0, **others.get(rule, {})}


def _draws(p: Tensor, rule: Rule, group: Group) -> bool:
    """Whether a step of this param needs random bits."""
    if group.get("param_format") == "sr" and p.dtype in (torch.bfloat16, torch.float16):
        return True
    if group.get("state_dtype") is None:
        return False
    stored = [_state_format(p, s, group) for s in rule.states]
    return any(isinstance(name, str) and formats.is_stochastic(name) for name in stored)


def _check_count(value: Any, where: str) -> None:
    """A number of steps that a state has: whole, and not negative."""
    if isinstance(value, Tensor):
        value = local_part(value)
        if value.numel() != 1 or value.is_meta:
            return  # looked at when the step needs it
    step = float(value)
    if not (step >= 0.0 and step.is_integer()):
        raise ValueError(f"{where}: {step:g} is no count of steps, expected a whole number from 0 on")


# What a step that comes to nothing takes back: (mapping, key, the value that was there).
Undo = list[tuple[Any, Any, Any]]
# What _bind() returns.
_Bound = tuple[dict[str, Any] | None, tuple[Any, ...], tuple[Tensor, ...], bool, bool, bool]

_PLAIN = (Tensor, torch.nn.Parameter)
_USUAL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_UNUSUAL_OPTIONS = ("capturable", "sparse", "param_format", "state_dtype")
_MISSING = object()


def _put(mapping: Any, key: Any, value: Any, undo: Undo) -> None:
    undo.append((mapping, key, mapping.get(key, _MISSING)))
    mapping[key] = value


def _drop(mapping: Any, key: Any, undo: Undo) -> None:
    undo.append((mapping, key, mapping.pop(key)))


def _take_back(undo: Undo) -> None:
    for mapping, key, value in reversed(undo):
        if value is _MISSING:
            mapping.pop(key, None)
        else:
            mapping[key] = value


def _check_storage(t: Tensor, where: str) -> None:
    """Storage may be freed, or made smaller, under a tensor that keeps its shape."""
    if t.numel() == 0 or t.is_meta or _is_wrapper(t):
        return
    end = t.storage_offset() + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
    bytes_now = t.untyped_storage().nbytes()
    if end * t.element_size() > bytes_now:
        raise ValueError(
            f"{where}: its storage holds {bytes_now} bytes, but shape {tuple(t.shape)} of {t.dtype} reaches to "
            f"{end * t.element_size()}; it was freed or made smaller (untyped_storage().resize_)"
        )


def _overlaps_itself(t: Tensor) -> bool:
    """Whether two elements lie at one address, as in an expanded tensor."""
    axes = sorted((stride, size) for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1)
    if t.numel() == 0:
        return False
    reach = 0
    for stride, size in axes:
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False
    if any(stride == 0 for stride, _ in axes):
        return True
    places = torch.zeros((), dtype=torch.int64)
    for stride, size in axes:
        places = (places.unsqueeze(-1) + stride * torch.arange(size)).flatten()
    return len(set(places.tolist())) < t.numel()


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` between its hooks, as every step of ``torch.optim`` is.

    PyTorch's own wrapper opens a range for profilers each time, which takes longer than a small step; this one does so
    where a profiler runs.
    """

    known = [name for name in inspect.signature(step).parameters if name != "self"]
    hooks, profiler_enabled = _torch_private.hooks, _torch_private.profiler_enabled
    is_traced = torch.compiler.is_dynamo_compiling

    def check(self: _Fused, kwargs: Mapping[str, Any]) -> None:
        for name in kwargs:
            if name not in known:
                raise unexpected(f"{type(self).__name__}.step", name, known)

    @wraps(step)
    def unhooked(*args: Any, **kwargs: Any) -> Any:
        check(args[0], kwargs)
        return step(*args, **kwargs)

    if hooks is None:
        return unhooked  # PyTorch's own wrapper goes around it

    @wraps(step)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        self = args[0]
        if is_traced():
            if type(self).step is hooked and _torch_private.goes_into_graph(self, kwargs):
                return _torch_private.step_in_graph(*args, **kwargs)
            return untraced(*args, **kwargs)
        if type(self).step is not hooked:  # what overrides it has been wrapped by PyTorch
            return unhooked(*args, **kwargs)
        if not profiler_enabled():
            return between_hooks(self, args, kwargs)
        with record_function(f"Optimizer.step#{type(self).__name__}.step"):
            return between_hooks(self, args, kwargs)

    def between_hooks(self: _Fused, args: Any, kwargs: Any) -> Any:
        for pre in (*hooks.pre.values(), *self._optimizer_step_pre_hooks.values()):
            changed = pre(self, args, kwargs)
            if changed is None:
                continue
            if not isinstance(changed, tuple) or len(changed) != 2:
                raise RuntimeError(f"step: a pre-hook must return None or (args, kwargs), got {changed!r}")
            args, kwargs = changed
        check(self, kwargs)
        result = step(*args, **kwargs)
        self._optimizer_step_code()
        for post in (*self._optimizer_step_post_hooks.values(), *hooks.post.values()):
            post(self, args, kwargs)
        return result

    untraced = _torch_private.without_dynamo(hooked)
    hooked.hooked = True  # type: ignore[attr-defined]  # where PyTorch looks for its own wrapper
    return hooked


class _Ids(list[Any]):
    """A list that finds out in constant time whether something is in it."""

    def __contains__(self, x: object) -> bool:
        if "known" not in self.__dict__:
            self.known = set(self)
        return x in self.known


class _Watched(dict[str, Any]):
    """A param group that finds out which of the options that a class reads are absent."""

    def __init__(self, group: Group, defaults: Group) -> None:
        super().__init__(group)
        self.defaults = defaults
        self.absent: list[str] = []

    def __missing__(self, option: str) -> Any:
        self.absent.append(option)
        return self.defaults[option]


def _tensors(given: Any, name: str) -> list[Any]:
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: expected a list of tensors, one for each param, got {type(given).__name__}")
    return list(given)


def _norm_of_scaled(params: list[Tensor], group: Any, scale: float) -> float:
    """See _Fused._sharded_norm()."""
    parts: dict[Any, list[Tensor]] = {}
    for p in params:
        grad = placed_like(p.grad, p)
        how = (grad.device_mesh, tuple(x.is_replicate() for x in grad.placements)) if is_sharded(grad) else None
        local = local_part(grad)
        real = torch.view_as_real(local.resolve_conj()) if local.is_complex() else local
        parts.setdefault((how, real.device), []).append(real)
    squares, unsharded = 0.0, 0.0
    for (how, _), grads in parts.items():
        if scale != 1.0:
            grads = [g.double() * scale for g in grads]
        total = torch.stack(list(_torch_private.norms(grads))).square().sum()
        if how is None:
            unsharded += float(total)
            continue
        mesh, copies = how
        squares += total_over(mesh, copies, total)
    if group is None:
        return math.sqrt(squares + unsharded)
    everyones = [0.0] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyones, unsharded, group=group)
    return math.sqrt(squares + sum(everyones))


class _Fused(torch.optim.Optimizer):
    """The step of all classes here."""

    # Whether GradScaler leaves the scale and what it has found to the step. Loops that clip after unscale_() refuse
    # optimizers that say so, hence only those that were made with fused=True do.
    _step_supports_amp_scaling = False
    #: What the last step found out; see :class:`adaptk.StepInfo`.
    last_step: StepInfo | None = None
    # What the constructor was given of _STORAGE and _STEP, for groups that have none of their own.
    _given: Mapping[str, Any] = MappingProxyType({})
    # Whether gradients are released: see release_gradients().
    _releases: bool = False
    # Copies of the params while they are at the point to evaluate at.
    _kept: list[Tensor] | None = None
    # What compiled functions know of it: see _torch_private.know().
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

    def _initial(self, name: str, group: Group) -> float:
        """The value that a state starts with."""
        return 0.0

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
            _core.check_hyperparameters(rule, {k: _plain(values.get(k, default)) for k, default in known.items()})
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
            options = [*self.defaults, *_STORAGE, *_STEP]
            for key in param_group:
                if key not in options and (meant := misspelt(key, options)):
                    warnings.warn(
                        f"{type(self).__name__}: param group: {key!r} is no option; did you mean {meant!r}?",
                        stacklevel=2,
                    )
            if "lr" in param_group:
                _check_lr(type(self).__name__, param_group["lr"])
            for option, given in self._given.items():
                param_group.setdefault(option, given)
        super().add_param_group(param_group)
        try:
            self._check_modes(self.param_groups[-1])
            self._check_values(self.param_groups[-1])
            self._check_storage_options(self.param_groups[-1])
            _check_step_options(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        _torch_private.know(self)

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
        _torch_private.know(self)

    @_torch_private.without_dynamo
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
            final = self._in_own_order(final)
            self._check_loaded(final)
            given.update(final)
            # torch looks for each state's id in the lists of all groups.
            return {**final, "param_groups": [{**g, "params": _Ids(g["params"])} for g in final["param_groups"]]}

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

    def _in_own_order(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Groups with the ids that this optimizer's params have by their names, if both know the same names."""
        groups = saved.get("param_groups", ())
        if len(groups) != len(self.param_groups):
            return saved
        ids = [i for g in groups for i in g["params"]]
        theirs, own = ([n for g in of for n in g.get("param_names", ())] for of in (groups, self.param_groups))
        known = dict(zip(theirs, ids, strict=False))
        if theirs == own or len(theirs) != len(ids) or len(known) != len(ids) or sorted(theirs) != sorted(own):
            return saved
        of_own = [[known[name] for name in g["param_names"]] for g in self.param_groups]
        names = [list(g["param_names"]) for g in self.param_groups]
        changed = [{**g, "params": i, "param_names": n} for g, i, n in zip(groups, of_own, names, strict=True)]
        return {**saved, "param_groups": changed}

    def _check_loaded(self, saved: Mapping[str, Any]) -> None:
        """What is to be loaded has all that this class needs, in the shapes of the params."""
        remedy = (
            f", which {type(self).__name__} needs; it seems to be another optimizer's: "
            "load it into one of the class that has saved it"
        )
        for key in ("state", "param_groups"):
            if key not in saved:
                raise ValueError(f"state_dict: no {key!r}, expected what state_dict() of an optimizer has returned")
        # Saved by another version of PyTorch, groups lack options that __setstate__ adds.
        filled = object.__new__(type(self))
        filled.__setstate__(
            {**self.__dict__, "state": {}, "param_groups": [{**g, "params": []} for g in saved["param_groups"]]}
        )
        if [len(g["params"]) for g in saved["param_groups"]] != [len(g["params"]) for g in self.param_groups]:
            return  # which torch refuses
        for k, (group, loaded, own) in enumerate(
            zip(filled.param_groups, saved["param_groups"], self.param_groups, strict=True)
        ):
            defaults = self._defaults_of(group)
            for option, default in defaults.items():
                value = group.get(option, default)
                if isinstance(default, tuple) and (not isinstance(value, (tuple, list)) or len(value) != len(default)):
                    raise ValueError(
                        f"state_dict['param_groups'][{k}][{option!r}] is {value!r}, and not {len(default)} numbers"
                        f"{remedy}"
                    )
            watched = _Watched(group, defaults)
            rule = self._rule(watched)[0]
            if watched.absent:
                raise ValueError(
                    f"state_dict['param_groups'][{k}] has no {', '.join(map(repr, watched.absent))}{remedy}"
                )
            arrays = [] if rule == "sgd" else [s.name for s in rule_of(rule).states]
            expected = self._saved_names(group, rule, arrays)
            per = {s.name: s for s in rule_of(rule).states}
            for i, p in zip(loaded["params"], own["params"], strict=True):
                state = saved["state"].get(i)
                if not isinstance(state, dict) or not state:
                    continue
                where = f"state_dict['state'][{i!r}]"
                if absent := [repr(n) for n in expected if state.get(n) is None]:
                    raise ValueError(f"{where} has no {', '.join(absent)} beside {', '.join(map(repr, state))}{remedy}")
                if "step" in state:
                    _check_count(state["step"], f"{where}['step']")
                for n in arrays:
                    wanted, like = tuple(p.shape), "like its param"
                    if per[n].per != "element":
                        wanted, like = per[n].shape_beside(wanted), f"beside a param of shape {wanted}"
                    if f"{n}_4bit_scales" in state:
                        wanted = formats.stored_shape(formats.format_of_saved("4bit_scales", n), p.shape)
                        like = f"of 4-bit codes for the {p.numel()} elements of its param"
                    if isinstance(state.get(n), Tensor) and state[n].shape != wanted:
                        raise ValueError(f"{where}[{n!r}]: shape {tuple(state[n].shape)}, expected {wanted} {like}")

    def _defaults_of(self, group: Group) -> Group:
        """What options a saved group must have."""
        return self.defaults

    def _saved_names(self, group: Group, rule: str, arrays: list[str]) -> list[str]:
        """What a saved state that is not empty must have."""
        return [*_starts(rule), *arrays]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all params to None or zero, like PyTorch's method."""
        if set_to_none and torch.compiler.is_dynamo_compiling():
            for p in self._known_params:
                p.grad = None
            return
        if not set_to_none or _torch_private.profiler_enabled():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @_hooked
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
            clip_norm = _of_groups(groups, "clip_norm")
        if skip_nonfinite is None:
            skip_nonfinite = _of_groups(groups, "skip_nonfinite")
        if zero_grad is None:
            zero_grad = _of_groups(groups, "zero_grad")
        if self._releases and (clip_norm is not None or skip_nonfinite):
            raise ValueError(
                "clip_norm, skip_nonfinite: gradients are released as they arrive (release_gradients), and nobody sees "
                "all of them; remove the hooks to clip"
            )
        if "capturable" in self.defaults and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            _torch_private.check_captured(self)
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
                length, finite = self._sharded_norm(params, norm_group)
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
            _take_back(undo)
            raise
        if skipped:
            _take_back(undo)
        if updated:
            increment_version(updated)
        if zero_grad:
            self._zero_grads(nonzero)
        if not skipped and (copies is not None or averages is not None):
            self._write_beside(copies, averages, others)
        if not skipped:
            self._carry_on()
        self.last_step = StepInfo(found if norm is None else norm, skipped)
        return loss

    def _carry_on(self) -> None:
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
        _torch_private.zero_all([p.grad for p in params if id(p) in left])
        done = [p.grad for p in params if id(p) not in left and not p.grad.is_inference()]
        if done:
            increment_version(done)

    @torch.no_grad()
    def _write_beside(self, copies: list[Any] | None, averages: Any, others: list[int]) -> None:
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
                if _is_wrapper(p):
                    p = _numbers_of(p, f"params[{i}]")
                if of is copies:
                    t.copy_(p)
                else:
                    t.lerp_(p.to(t.dtype), 1.0 - decay)
        if written:
            increment_version(written)

    @staticmethod
    def _is_plain(p: Tensor) -> bool:
        return not (is_sharded(p) or _is_wrapper(p) or p.is_complex() or not _is_dense(p))

    @staticmethod
    def _check_beside(p: Tensor, t: Any, where: str) -> None:
        """A tensor that PyTorch copies or averages a param into."""
        if not isinstance(t, Tensor):
            raise TypeError(f"{where}: {type(t).__name__}, expected a torch.Tensor")
        if t.shape != p.shape:
            raise ValueError(f"{where}: shape {tuple(t.shape)}, expected {tuple(p.shape)} like its param")
        if t.is_complex() != p.is_complex() or not (t.is_complex() or t.is_floating_point()):
            raise TypeError(f"{where}: dtype {t.dtype}, which does not go with {p.dtype}")
        if t.device != p.device or is_sharded(t) != is_sharded(p):
            raise ValueError(f"{where}: expected a tensor that is placed like its param")

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
        _refuse_all_gradients(self.param_groups, "step_param()")
        undo: Undo = []
        try:
            updated = self._native_plan().step_param(self, self.param_groups, param, self.state, undo)
        except BaseException:
            _take_back(undo)
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
            _take_back(undo)
            raise
        if updated:
            increment_version(updated)

    def _native_plan(self) -> _core.TorchPlan:
        storage = [_storage_of(g) for g in self.param_groups]
        known = self.__dict__.get("_storage_now")
        if storage != known:
            for group in self.param_groups:
                self._check_storage_options(group)
            if known is not None:
                self.__dict__.pop("_plan", None)  # it has bound the states as they were
            self.__dict__["_storage_now"] = storage
        plan = self.__dict__.get("_plan")
        if plan is None:
            _torch_private.check_release()  # of an optimizer that was copied or unpickled
            # One for all threads: it is what refuses a second step at the same time.
            plan = self.__dict__.setdefault("_plan", _core.TorchPlan(Tensor, torch.nn.Parameter, _face()))
        return plan  # type: ignore[no-any-return]

    @staticmethod
    @torch.no_grad()
    def _sharded_norm(params: list[Tensor], group: Any) -> tuple[float, bool]:
        """The norm of gradients some of which are sharded, and whether all gradients are finite.

        Those that are not sharded are the same in all processes; where there is a group, they are others in each of its
        processes. Finite gradients may have a norm beyond float64, as in the native step.
        """
        norm = _norm_of_scaled(params, group, 1.0)
        if not math.isinf(norm):
            return norm, math.isfinite(norm)
        # Squares of float64 that overflow are taken once more of smaller values.
        smaller = _norm_of_scaled(params, group, 2.0**-600)
        return smaller * 2.0**600, math.isfinite(smaller)

    # What the native step asks for where it meets a param for the first time, or one that it cannot take as it is.

    def _bind(self, p: Tensor, group: Group, name: str, where: str, undo: Undo) -> _Bound:
        """The state of a param, made where it is missing: (state, (param, *states), numbers, odd, fresh, counts_rows).

        A param that is split is a pair: (param, remainder). `counts_rows`: whether the state has the last step of each
        row.
        """
        if self._is_usual(p, group) and (states := _usual_states(name)) is not None and self.state.get(p) is None:
            return self._bind_new(p, group, states, _starts(name), undo)
        with torch.no_grad():
            return self._bind_any(p, group, name, where, undo)

    @staticmethod
    def _is_usual(p: Tensor, group: Group) -> bool:
        """Whether nothing about a param needs a closer look: most are like this, and a model may have thousands."""
        return (
            type(p) in _PLAIN
            and p.dtype in _USUAL_DTYPES
            and p.is_cpu
            and p.layout is torch.strided
            and p.is_contiguous()
            and not (p.is_neg() or p.is_inference())
            and (p.grad is None or p.grad.layout is torch.strided)
            and not any(map(group.get, _UNUSUAL_OPTIONS))
        )

    def _bind_new(
        self, p: Tensor, group: Group, states: tuple[State, ...], starts: dict[str, float], undo: Undo
    ) -> _Bound:
        """The same of a usual param that has no state yet."""
        cpu = torch.device("cpu")
        state: dict[str, Any] = {key: _new_number(start, cpu) for key, start in starts.items()}
        numbers = tuple(state.values())
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        for s in _in_torchs_order(states):
            state[s.name] = _full_like(p, self._initial(s.name, group), dtype)
        _put(self.state, p, state, undo)
        return state, (p, *(state[s.name] for s in states)), numbers, False, False, False

    def _bind_any(self, p: Tensor, group: Group, name: str, where: str, undo: Undo) -> _Bound:
        """The same of any param."""
        if not isinstance(p, Tensor):
            raise TypeError(f"{where}: {type(p).__name__}, expected a torch.Tensor")
        if p.layout != torch.strided:
            raise TypeError(f"{where}: {p.layout}, expected torch.strided")
        if p.is_meta or _torch_private.is_fake(p):
            kind = "a fake tensor" if _torch_private.is_fake(p) else "on the device meta"
            raise TypeError(f"{where}: {kind}, which holds no numbers to step")
        if not p.is_floating_point() and not p.is_complex():
            raise TypeError(f"{where}: dtype {p.dtype}, expected floating point or complex numbers")
        if p.dtype == torch.complex32:
            raise TypeError(f"{where}: dtype torch.complex32, expected complex64 or complex128")
        if p.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(f"{where}: an inference tensor, which is not updated outside of torch.inference_mode()")
        if p.grad is not None and p.grad.layout not in (torch.strided, torch.sparse_coo):
            raise RuntimeError(
                f"{where}: a gradient of layout {p.grad.layout}, expected torch.strided or torch.sparse_coo"
            )
        rule = rule_of(name)
        subclass = type(p) not in _PLAIN
        wraps = subclass and _is_wrapper(local_part(p))
        odd = wraps or p.is_complex() or (subclass and is_sharded(p)) or not _is_dense(p)
        if rule.reduces and is_cut(p):
            raise TypeError(
                f"{where}: a DTensor that is cut into parts, and {rule.name} reduces whole tensors to numbers, such as "
                "a norm; no process has a whole one"
            )
        if rule.shaped and odd:
            raise TypeError(
                f"{where}: a DTensor, complex or not dense, and {rule.name} has numbers for a tensor, a row or a "
                "column: it is for plain dense real params"
            )
        if odd and _overlaps_itself(local_part(p)):
            raise RuntimeError(f"{where}: several of its elements are at one address, as in an expanded tensor")
        if wraps:
            _check_wrapper(local_part(p), where)
        in_rows = not odd and p.is_contiguous()
        if any(s.per == "slice" for s in rule.states) and not (in_rows and p.device.type == "cpu"):
            raise TypeError(
                f"{where}: {rule.name} keeps one number for each row, of plain dense real params in C order on the CPU"
            )
        late = in_rows and p.ndim > 0 and group.get("sparse") == "catch_up" and p.device.type in ("cpu", "cuda")
        if late and group.get("capturable"):
            raise NotImplementedError(
                f"{where}: sparse='catch_up' with capturable=True; rows catch up by steps that the host counts"
            )
        draws = _draws(p, rule, group)
        side = formats.SIDES.get(group.get("param_format") or "") if p.dtype == torch.bfloat16 else None
        if name == "sgd" and not draws and side is None and not late:
            return None, (p,), (), odd, False, False
        if _is_captured(p):
            raise RuntimeError(
                f"{where}: step() while its stream is captured in a graph: its state is not known yet, and one that is "
                "made now would be made anew at each replay; take one step before"
            )
        state = self.state.get(p)
        if state is None:
            state = {}
            _put(self.state, p, state, undo)
        param = p if side is None else (p, self._side(state, *side, p, where, odd, undo))
        count: tuple[Tensor, ...] = ()
        if (draws or late) and name in ("sgd", "momentum", "nesterov"):
            # torch counts no steps here, and random bits depend on their number, as do steps that rows have missed.
            device = p.device if group.get("capturable") else None
            if name != "sgd" and state.get("momentum_buffer") is None:
                _put(state, "step", _new_number(0.0, device), undo)
            count = (self._number(state, "step", 0.0, p, device, where, undo),)
        if name in ("sgd", "momentum", "nesterov"):
            self._bind_last_step(state, p, late, where, undo)
        if name == "sgd":
            return state, (param,), count, odd, False, late
        if name in ("momentum", "nesterov"):
            # As torch has it, the buffer is in the state once it has seen a gradient.
            fresh = state.get("momentum_buffer") is None
            stored = self._check_format(p, rule.states[0], group, where, odd)
            if fresh and isinstance(stored, str):
                self._new_coded(state, "momentum_buffer", p, 0.0, stored, undo)
            if fresh and not isinstance(stored, str):
                return state, (param, _full_like(p, 0.0, stored)), count, odd, True, late
            buffer = self._state_array(state, rule.states[0], p, stored, where, odd, undo)
            return state, (param, buffer), count, odd, fresh, late
        starts = _starts(name)
        if name == "asgd":
            starts["eta"] = float(_plain(group["lr"]))
        expected = [*starts, *(s.name for s in rule.states)]
        missing = [n for n in expected if state.get(n) is None]
        if missing and len(missing) < len(expected):
            # As torch: what began at its initial value in the middle of a run would be a wrong step.
            raise KeyError(
                f"state of {where}: no {', '.join(map(repr, missing))} beside {', '.join(map(repr, state))}; "
                "load the whole state, or delete it (del optimizer.state[param]) to begin anew"
            )
        # The host looks at all of several numbers, and torch may have left them on the device of the params.
        device = p.device if group.get("capturable") else torch.device("cpu") if len(starts) > 1 else None
        numbers = [self._number(state, key, start, p, device, where, undo) for key, start in starts.items()]
        formats_of = {s.name: self._check_format(p, s, group, where, odd) for s in rule.states}
        for s in _in_torchs_order(rule.states):
            if state.get(s.name) is None:
                stored = formats_of[s.name]
                if s.per != "element":
                    _put(state, s.name, _new_numbers(p, s, self._initial(s.name, group)), undo)
                elif isinstance(stored, str):
                    self._new_coded(state, s.name, p, self._initial(s.name, group), stored, undo)
                else:
                    _put(state, s.name, _full_like(p, self._initial(s.name, group), stored), undo)
                    if s.initial_from == "param":
                        state[s.name].copy_(p.detach())
        arrays = [
            self._state_array(state, s, p, formats_of[s.name], where, odd, undo)
            if s.per == "element"
            else self._state_numbers(state, s, p, where, undo)
            for s in rule.states
        ]
        self._bind_last_step(state, p, late, where, undo)
        return state, (param, *arrays), tuple(numbers), odd, False, late

    @staticmethod
    def _bind_last_step(state: dict[str, Any], p: Tensor, late: bool, where: str, undo: Undo) -> None:
        """The last step of each row, made if it is missing, for rows have missed none then; none if not `late`."""
        value = state.get("last_step")
        if not late:
            if value is not None:
                _drop(state, "last_step", undo)
            return
        if value is None:
            _put(state, "last_step", torch.full(_row_shape(p), int(state["step"]), dtype=torch.int64), undo)
            return
        if not isinstance(value, Tensor):
            raise TypeError(f"state['last_step'] of {where}: {type(value).__name__}, expected a torch.Tensor")
        if value.shape != _row_shape(p):
            raise ValueError(
                f"state['last_step'] of {where}: shape {tuple(value.shape)}, expected {_row_shape(p)}: one number for "
                "each row of its param"
            )
        if value.dtype != torch.int64 or value.device.type != "cpu" or not value.is_contiguous():
            _put(state, "last_step", value.detach().to(device="cpu", dtype=torch.int64).contiguous(), undo)

    def _side(
        self, state: dict[str, Any], name: str, dtype: str, p: Tensor, where: str, odd: bool, undo: Undo
    ) -> Tensor:
        """What lies beside a param that is split, made where it is missing: the param has lost nothing then."""
        wanted: torch.dtype = getattr(torch, dtype)
        if state.get(name) is None:
            _put(state, name, _full_like(p, 0.0, wanted), undo)
        value = state[name]
        if name == "remainder" and isinstance(value, Tensor) and value.dtype != wanted:
            raise TypeError(f"state[{name!r}] of {where}: dtype {value.dtype}, expected {wanted} by its param_format")
        return self._array(state, name, p, wanted, where, odd, undo)

    @staticmethod
    def _number(
        state: dict[str, Any], name: str, start: float, p: Tensor, device: torch.device | None, where: str, undo: Undo
    ) -> Tensor:
        """A number beside the states: on a device, or else on the CPU or where the param is."""
        value = state.get(name)
        if not isinstance(value, Tensor):
            value = _new_number(start if value is None else float(value), device)
            _put(state, name, value, undo)
        value = local_part(value)
        if value.numel() != 1:
            raise ValueError(f"state[{name!r}] of {where}: {value.numel()} numbers, expected one")
        if name == "step" and value.device.type == "cpu":
            _check_count(value, f"state['step'] of {where}")
        if device is None:
            device = value.device if value.device == p.device else torch.device("cpu")
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        if name in ("eta", "mu") and torch.get_default_dtype() != torch.float64:
            # torch computes them as numbers of the default dtype, however wide the tensor is that it writes them to.
            dtype = torch.float32
        if value.dtype != dtype or value.ndim != 0 or value.device != device:
            value = value.detach().reshape(()).to(device=device, dtype=dtype)
            _put(state, name, value, undo)
        return value

    @staticmethod
    def _check_format(p: Tensor, state: State, group: Group, where: str, odd: bool) -> torch.dtype | str:
        stored = _state_format(p, state, group)
        if isinstance(stored, str) and odd:
            what = "a DTensor" if is_sharded(p) else f"a {type(p).__name__}" if _is_wrapper(p) else "not dense"
            raise TypeError(
                f"{where}: {what}, and state_dtype={group['state_dtype']!r} is for dense tensors; "
                "use float32, bfloat16 or float16"
            )
        return stored

    @staticmethod
    def _new_coded(state: dict[str, Any], name: str, p: Tensor, value: float, stored: str, undo: Undo) -> None:
        made = formats.full_like(p.detach(), value, stored)
        _put(state, name, made.data, undo)
        if made.scales is not None:
            _put(state, f"{name}_{formats.scales_name(stored)}", made.scales, undo)

    @staticmethod
    def _state_numbers(state: dict[str, Any], spec: State, p: Tensor, where: str, undo: Undo) -> Tensor:
        """A state that is not for each element, brought into the dtype, device and layout that the step takes."""
        value = state[spec.name]
        if not isinstance(value, Tensor):
            raise TypeError(f"state[{spec.name!r}] of {where}: {type(value).__name__}, expected a torch.Tensor")
        wanted = spec.shape_beside(tuple(p.shape))
        if tuple(value.shape) != wanted:
            raise ValueError(
                f"state[{spec.name!r}] of {where}: shape {tuple(value.shape)}, expected {wanted} beside a param of "
                f"shape {tuple(p.shape)}"
            )
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        if (
            value.dtype != dtype
            or value.device != p.device
            or value.requires_grad
            or not value.is_contiguous()
            or value.is_neg()
        ):
            _check_storage(value, f"state[{spec.name!r}] of {where}")
            value = value.detach().to(device=p.device, dtype=dtype).contiguous().clone()
            _put(state, spec.name, value, undo)
        return value

    def _state_array(
        self,
        state: dict[str, Any],
        spec: State,
        p: Tensor,
        stored: torch.dtype | str,
        where: str,
        odd: bool,
        undo: Undo,
    ) -> Tensor | formats.Stored:
        """A state, brought into the format that the step takes."""
        name = spec.name
        own = formats.scales_name(stored) if isinstance(stored, str) else None
        saved = next((s for s in formats.SAVED_SCALES if f"{name}_{s}" in state), None)
        if saved is not None and saved != own:
            # Saved in 8 bits, or in others of them.
            of = formats.format_of_saved(saved, name)
            coded = self._codes(state[name], spec, p, of, where), self._scales(state, f"{name}_{saved}", where)
            # Loaded once; codes are converted on the CPU.
            dense = formats.dequantize([*(x.cpu() for x in coded), of], (p.numel(),)).to(p.device)
            _put(state, name, dense.as_strided(p.shape, p.stride()), undo)
            _drop(state, f"{name}_{saved}", undo)
        if not isinstance(stored, str):
            return self._array(state, name, p, stored, where, odd, undo)
        if own is None:
            dtype = getattr(torch, formats.STORED_DTYPES[stored])
            return formats.Stored(self._array(state, name, p, dtype, where, odd, undo), None, stored)
        scales_name = f"{name}_{own}"
        if scales_name in state:
            scales = self._scales(state, scales_name, where)
            if scales is not state[scales_name]:
                _put(state, scales_name, scales, undo)
            if formats.is_packed(stored):
                codes = self._codes(state[name], spec, p, stored, where)
                if codes is not state[name]:
                    _put(state, name, codes, undo)
                return formats.Stored(codes, scales, stored)
            dtype = getattr(torch, formats.STORED_DTYPES[stored])
            return formats.Stored(self._array(state, name, p, dtype, where, odd, undo), scales, stored)
        dense = self._array(state, name, p, torch.float32, where, odd, undo)
        made = formats.quantize(_in_memory_order(dense).cpu(), stored)
        codes = made.data.to(p.device)
        _put(state, name, codes if formats.is_packed(stored) else codes.as_strided(p.shape, p.stride()), undo)
        _put(state, scales_name, made.scales.to(p.device), undo)
        return formats.Stored(state[name], state[scales_name], stored)

    @staticmethod
    def _codes(codes: Any, spec: State, p: Tensor, format: str, where: str) -> Tensor:
        """Codes in a row, in the order of memory and the dtype that they were saved in."""
        wanted = formats.stored_shape(format, p.shape)
        if not isinstance(codes, Tensor) or tuple(codes.shape) != wanted:
            like = f"for the {p.numel()} elements of its param" if formats.is_packed(format) else "like its param"
            raise ValueError(f"state[{spec.name!r}] of {where}: expected codes of shape {wanted} {like}")
        # torch may have brought them into the dtype of the param, which holds them exactly.
        if formats.is_packed(format):
            plain = codes.dtype == torch.uint8 and codes.device == p.device and codes.is_contiguous()
            return codes if plain else codes.detach().to(device=p.device, dtype=torch.uint8).contiguous()
        return _in_memory_order(_in_layout_of(codes, p, getattr(torch, formats.STORED_DTYPES[format])))

    @staticmethod
    def _scales(state: dict[str, Any], name: str, where: str) -> Tensor:
        scales = state[name]
        if not isinstance(scales, Tensor):
            raise TypeError(f"state[{name!r}] of {where}: {type(scales).__name__}, expected a torch.Tensor")
        plain = scales.dtype == torch.float32 and scales.device.type == "cpu" and scales.is_contiguous()
        return scales if plain else scales.detach().to(device="cpu", dtype=torch.float32).contiguous()

    def _array(
        self, state: dict[str, Any], name: str, p: Tensor, dtype: torch.dtype, where: str, odd: bool, undo: Undo
    ) -> Tensor:
        """A state array, brought into the dtype, device and layout that the step takes."""
        value: Tensor = state[name]
        if not isinstance(value, Tensor):
            raise TypeError(f"state[{name!r}] of {where}: {type(value).__name__}, expected a torch.Tensor")
        if value.shape != p.shape:
            raise ValueError(
                f"state[{name!r}] of {where}: shape {tuple(value.shape)}, expected {tuple(p.shape)} like its param"
            )
        same = value.dtype == dtype and value.device == p.device and not value.requires_grad
        if same and not odd and type(value) is Tensor and value.stride() == p.stride():
            return value
        if is_sharded(value) != is_sharded(p):
            raise TypeError(
                f"state[{name!r}] of {where}: only one of the two is a DTensor; "
                "torch.distributed.checkpoint.state_dict.set_optimizer_state_dict loads states as params are sharded"
            )
        placed = placed_like(value, p)
        if placed is not value:
            value = placed
            _put(state, name, value, undo)
        same = value.dtype == dtype and value.device == p.device and not value.requires_grad
        if not same or (not odd and value.stride() != p.stride()):
            _check_storage(value, f"state[{name!r}] of {where}")
            value = _in_layout_of(value, p, dtype)
            _put(state, name, value, undo)
        return value

    @staticmethod
    @torch.no_grad()
    def _fit(p: Tensor, grad: Tensor, where: str) -> Tensor:
        """A gradient in the layout of its param."""
        if not isinstance(grad, Tensor):
            raise TypeError(f"gradient of {where}: {type(grad).__name__}, expected a torch.Tensor")
        if grad.layout != torch.strided:
            raise RuntimeError(f"gradient of {where}: layout {grad.layout}, expected torch.strided or torch.sparse_coo")
        grad = local_part(grad)
        if _is_wrapper(grad):
            grad = _numbers_of(grad, f"gradient of {where}")
        if grad.stride() == p.stride() and not grad.is_neg() and grad.device == p.device:
            return grad
        if grad.shape != p.shape:
            raise ValueError(
                f"gradient of {where}: shape {tuple(grad.shape)}, expected {tuple(p.shape)} like its param"
            )
        if grad.device != p.device:
            raise ValueError(f"gradient of {where}: on {grad.device}, expected {p.device} like its param")
        _check_storage(grad, f"gradient of {where}")
        return _in_layout_of(grad, p, grad.dtype)

    _check_storage = staticmethod(_check_storage)

    @staticmethod
    @torch.no_grad()
    def _rows_of(p: Tensor, grad: Tensor, where: str, odd: bool) -> tuple[Tensor, Tensor]:
        """The indices and the values of a sparse gradient, which need not be coalesced."""
        if grad.shape != p.shape:
            raise ValueError(
                f"gradient of {where}: shape {tuple(grad.shape)}, expected {tuple(p.shape)} like its param"
            )
        if odd:
            raise TypeError(
                f"{where}: a sparse gradient is for plain dense real params in C order; give it a dense one"
            )
        if grad.sparse_dim() != 1:
            raise ValueError(
                f"gradient of {where}: {grad.sparse_dim()} sparse dimensions, expected 1, as nn.Embedding(sparse=True) "
                "gives; pass its to_dense()"
            )
        if grad.device != p.device:
            raise ValueError(f"gradient of {where}: on {grad.device}, expected {p.device} like its param")
        return grad._indices()[0].contiguous(), grad._values().detach().contiguous()

    @staticmethod
    @torch.no_grad()
    def _stand_in(
        buffers: tuple[Any, ...], grad: Tensor, where: str
    ) -> tuple[list[Any], list[tuple[Tensor, Tensor]]] | None:
        """Plain dense real tensors in the place of others, and which of them have to be copied back.

        None where the tensors are no longer what they were when they were bound.
        """
        if grad.layout != torch.strided:
            raise RuntimeError(f"gradient of {where}: layout {grad.layout}, expected torch.strided")
        whole, *beside = buffers[0] if isinstance(buffers[0], tuple) else (buffers[0],)
        p, *states = (local_part(b) for b in (whole, *beside, *buffers[1:]))
        grad = local_part(placed_like(grad, whole))
        wraps = _is_wrapper(p)
        if not (is_sharded(whole) or wraps or p.is_complex() or not _is_dense(p)):
            return None
        dtypes = (p.dtype,) if p.is_complex() or p.dtype == torch.float64 else _STATE_DTYPES
        if any(s.dtype not in dtypes for s in states[len(beside) :]):
            return None
        if any(s.shape != p.shape or s.device != p.device for s in states):
            return None
        for b, name in ((p, where), (grad, f"gradient of {where}"), *((s, f"a state of {where}") for s in states)):
            _check_storage(b, name)
        copies: list[tuple[Tensor, Tensor]] = []
        dense = p
        if wraps:
            dense = _numbers_of(p, where)
            copies.append((p, dense))
        elif not _is_dense(p):
            dense = p.resolve_conj().resolve_neg().contiguous()
            copies.append((p, dense))
        used = []
        for s in states:
            fits = s.stride() == dense.stride() and _is_dense(s) and not _is_wrapper(s)
            used.append(s if fits else _in_layout_of(s, dense, s.dtype))
            if not fits:
                copies.append((s, used[-1]))
        if _is_wrapper(grad):
            grad = _numbers_of(grad, f"gradient of {where}")
        fits = grad.stride() == dense.stride() and _is_dense(grad)
        stand_in = [dense, grad if fits else _in_layout_of(grad, dense, grad.dtype), *used]
        if dense.is_complex():
            stand_in = [torch.view_as_real(t) for t in stand_in]
        if beside:
            return [(dense, used[0]), stand_in[1], *used[1:]], copies
        return stand_in, copies

    @staticmethod
    @torch.no_grad()
    def _put_back(copies: list[tuple[Tensor, Tensor]]) -> None:
        for target, source in copies:
            target.copy_(source)

    @staticmethod
    @torch.no_grad()
    def _count(steps: list[Tensor], by: int) -> None:
        _torch_private.add_to_all(steps, by)


def _adam(group: Group) -> tuple[str, dict[str, Any]]:
    beta1, beta2 = group["betas"]
    return "amsgrad" if group["amsgrad"] else "adam", {
        "lr": group["lr"],
        "beta1": beta1,
        "beta2": beta2,
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "decoupled": group["decoupled_weight_decay"],
        "maximize": group["maximize"],
    }


class Adam(_Fused, torch.optim.Adam):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return _adam(group)


class AdamW(_Fused, torch.optim.AdamW):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return _adam(group)


class NAdam(_Fused, torch.optim.NAdam):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        beta1, beta2 = group["betas"]
        return "nadam", {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "momentum_decay": group["momentum_decay"],
            "weight_decay": group["weight_decay"],
            "decoupled": group["decoupled_weight_decay"],
            "maximize": group["maximize"],
        }


class RAdam(_Fused, torch.optim.RAdam):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        beta1, beta2 = group["betas"]
        return "radam", {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "decoupled": group["decoupled_weight_decay"],
            "maximize": group["maximize"],
        }


class Adamax(_Fused, torch.optim.Adamax):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        beta1, beta2 = group["betas"]
        return "adamax", {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }


class Adagrad(_Fused, torch.optim.Adagrad):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return "adagrad", {
            "lr": group["lr"],
            "lr_decay": group["lr_decay"],
            "eps_in": 0.0,
            "eps_out": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }

    def _initial(self, name: str, group: Group) -> float:
        # As torch has it, of the constructor and not of the group.
        return float(self.defaults["initial_accumulator_value"])


class Adadelta(_Fused, torch.optim.Adadelta):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return "adadelta", {
            "lr": group["lr"],
            "rho": group["rho"],
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }


class RMSprop(_Fused, torch.optim.RMSprop):
    _torchs_names: Mapping[str, str] = {**_Fused._torchs_names, "rho": "alpha"}

    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        name = "rmsprop_centered" if group["centered"] else "rmsprop"
        values = {
            "lr": group["lr"],
            "rho": group["alpha"],
            "eps_in": 0.0,
            "eps_out": group["eps"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }
        if group["momentum"] > 0:
            name += "_momentum"
            values.update(momentum=group["momentum"], lr_inside=False)
        return name, values


class Rprop(_Fused, torch.optim.Rprop):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        eta_minus, eta_plus = group["etas"]
        step_min, step_max = group["step_sizes"]
        return "rprop", {
            "lr": group["lr"],
            "eta_minus": eta_minus,
            "eta_plus": eta_plus,
            "step_min": step_min,
            "step_max": step_max,
            "maximize": group["maximize"],
        }

    def _initial(self, name: str, group: Group) -> float:
        return float(_plain(group["lr"])) if name == "step_size" else 0.0


class ASGD(_Fused, torch.optim.ASGD):
    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        return "asgd", {
            "lr": group["lr"],
            "lambd": group["lambd"],
            "alpha": group["alpha"],
            "t0": group["t0"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }


class SGD(_Fused, torch.optim.SGD):
    def _saved_names(self, group: Group, rule: str, arrays: list[str]) -> list[str]:
        return []  # as torch has it, the momentum is in the state once it has seen a gradient

    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        values = {
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "maximize": group["maximize"],
        }
        if group["momentum"] == 0:
            return "sgd", values
        values.update(momentum=group["momentum"], dampening=group["dampening"], velocity=False, dampen_first=False)
        return "nesterov" if group["nesterov"] else "momentum", values


def _betas_of(rule: Rule) -> list[str]:
    """The decays that torch's classes take together, as ``betas``: beta1, beta2 and so on, if there are several."""
    names = {h.name for h in rule.hyperparameters}
    betas = list(takewhile(names.__contains__, (f"beta{i}" for i in count(1))))
    return betas if len(betas) > 1 else []


class _Own(_Fused):
    """A rule that torch does not have, with the library's names, and ``betas`` as torch has them."""

    _name: str

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in (self.defaults, *self.param_groups):
            self._gather_betas(group)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        betas: tuple[float, ...] | None = None,
        *,
        convention: str = "book",
        fused: bool | None = None,
        **options: Any,
    ):
        rule = rule_of(self._name)
        defaults: Group = {k: v for k, v in rule.defaults(convention).items() if k != "grad_scale"}
        preset = rule.initial_states(convention)
        defaults.update({s.option: preset[s.name] for s in rule.states if s.option is not None})
        known = [*defaults, "convention", "fused", *_STORAGE, *_STEP]
        if lr is not None:
            options["lr"] = lr
        if unknown := options.keys() - defaults.keys():
            raise unexpected(type(self).__name__, min(unknown), known)
        names = _betas_of(rule)
        if betas is not None:
            if not names:
                raise unexpected(type(self).__name__, "betas", known)
            if twice := options.keys() & set(names):
                raise TypeError(f"betas: {min(twice)} is given too")
            options.update(zip(names, self._checked_betas(betas), strict=True))
        defaults = {**defaults, **options}
        self._gather_betas(defaults)
        super().__init__(params, {**defaults, "fused": fused})
        self._step_supports_amp_scaling = bool(fused)

    def _checked_betas(self, betas: Any) -> tuple[Any, ...]:
        count = len(_betas_of(rule_of(self._name)))
        if not isinstance(betas, (tuple, list)):
            raise TypeError(f"betas: expected a tuple of {count} numbers, got {betas!r}")
        if len(betas) != count:
            raise ValueError(f"betas: expected {count} numbers, got {len(betas)}: {betas!r}")
        return tuple(betas)

    def _gather_betas(self, group: Group, betas: tuple[float, ...] = ()) -> None:
        """Put decays that a group has by the library's names where torch has them, in the place of `betas`."""
        names = _betas_of(rule_of(self._name))
        if not any(name in group for name in names):
            return
        now = list(group["betas"] if "betas" in group else betas or (0.0 for _ in names))
        for i, name in enumerate(names):
            if name in group:
                now[i] = group.pop(name)
        group["betas"] = tuple(now)

    def add_param_group(self, param_group: Group) -> None:
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            if "betas" in param_group and (twice := param_group.keys() & set(_betas_of(rule_of(self._name)))):
                raise TypeError(f"betas: {min(twice)} is given too")
            self._gather_betas(param_group, self.defaults.get("betas", ()))
        super().add_param_group(param_group)

    add_param_group.__doc__ = _Fused.add_param_group.__doc__

    _torchs_names: Mapping[str, str] = {f"beta{i + 1}": f"betas[{i}]" for i in range(9)}

    def _rule(self, group: Group) -> tuple[str, dict[str, Any]]:
        if names := _betas_of(rule_of(self._name)):
            self._gather_betas(group)
            return self._name, {**group, **dict(zip(names, self._checked_betas(group["betas"]), strict=True))}
        return self._name, group

    def _values(self, group: Group) -> dict[str, Any]:
        """The hyperparameters of a group by the library's names."""
        given = self._rule(group)[1]
        return {h.name: _plain(given.get(h.name, h.default)) for h in rule_of(self._name).hyperparameters}

    def _initial(self, name: str, group: Group) -> float:
        rule = rule_of(self._name)
        values = {name: float(value) for name, value in self._values(group).items()}
        options = {s.option: float(group[s.option]) for s in rule.states if s.option in group}
        return rule.initial_states("book", values, options)[name]


class DeltaBarDelta(_Own):
    _name = "delta_bar_delta"


class Lion(_Own):
    _name = "lion"


class AdaBelief(_Own):
    _name = "adabelief"


class Yogi(_Own):
    _name = "yogi"


class Adan(_Own):
    _name = "adan"


class RowWiseAdaGrad(_Own):
    _name = "rowwise_adagrad"


class RowWiseAdam(_Own):
    _name = "rowwise_adam"


class RMSpropNesterov(_Own):
    _name = "rmsprop_nesterov"

    @contextmanager
    def lookahead(self) -> Iterator[None]:
        """Move the params to the interim point ``p + momentum * velocity`` while a ``with`` block runs.

        Compute the gradient inside the block. Leaving the block restores every param bit for bit.

        Examples
        --------
        >>> import torch, adaptk.torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> opt = adaptk.torch.RMSpropNesterov([w])
        >>> with opt.lookahead():
        ...     w.square().sum().backward()
        >>> opt.step()
        """
        saved = []
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    velocity = self.state[p].get("velocity") if p in self.state else None
                    if velocity is not None:
                        saved.append((p, p.detach().clone()))
                        p.add_(velocity, alpha=float(group["momentum"]))
        try:
            yield
        finally:
            with torch.no_grad():
                for p, before in saved:
                    p.copy_(before)


def _check_params(name: str, params: Any, lr: Any) -> None:
    """The first two arguments of a constructor."""
    if isinstance(params, torch.nn.Module):
        kind = type(params).__name__
        raise TypeError(f"params: expected tensors, got {kind}; give its parameters: {name}(model.parameters())")
    if callable(params) and not isinstance(params, Tensor):
        raise TypeError(f"params: expected tensors, got {type(params).__name__}; call it: model.parameters()")
    if isinstance(params, (set, frozenset)):
        raise TypeError("params: expected a list; the order of a set changes from run to run")
    _check_lr(name, lr)


def _check_lr(name: str, lr: Any) -> None:
    if callable(lr) and not isinstance(lr, Tensor):
        raise TypeError(
            f"lr: expected a number, got {type(lr).__name__}; a schedule of adaptk.schedules is for "
            f"{name}(params, lr=1.0) and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.from_zero())"
        )
    if not isinstance(lr, (Real, Tensor)):
        raise TypeError(f"lr: expected a number or a tensor of one, got {lr!r}")


def _checked(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that names what is not the params, the learning rate or the options that it wants."""
    parameters = list(inspect.signature(init).parameters.values())[2:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters]

    @wraps(init)
    def __init__(self: Any, params: Any, *args: Any, **kwargs: Any) -> None:
        _torch_private.check_release()
        name = type(self).__name__
        _check_params(name, params, args[0] if args else kwargs.get("lr", 0.0))
        given = {option: kwargs.pop(option) for option in (*_STORAGE, *_STEP) if option in kwargs}
        self._given = {option: value for option, value in given.items() if value is not None}
        for option in kwargs:
            if not takes_any and option not in known:
                raise unexpected(name, option, [*known, *_STORAGE, *_STEP])
        init(self, params, *args, **kwargs)

    own = list(inspect.signature(init).parameters.values())
    rest = [p for p in own if p.kind is p.VAR_KEYWORD]
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(p for p in own if p not in rest), *_given_parameters(), *rest]
    )
    return __init__


# What is given for all groups, and may differ between them.
_STORAGE = {"state_dtype": None, "min_8bit_size": 4096, "seed": 0, "param_format": None, "sparse": "lazy"}


# What step() goes by if it is called without it. One step has one value of each, so that all groups must agree.
_STEP = {"clip_norm": None, "skip_nonfinite": False, "zero_grad": False}


def _given_parameters() -> list[inspect.Parameter]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(option, keyword, default=default) for option, default in {**_STORAGE, **_STEP}.items()]


def _of_groups(groups: list[Group], option: str) -> Any:
    """The value of one of _STEP, which all groups must agree on."""
    default = _STEP[option]
    value = groups[0].get(option, default) if groups else default
    for k, group in enumerate(groups):
        if (other := group.get(option, default)) != value:
            raise ValueError(
                f"{option}: param_groups[0] has {value!r} and param_groups[{k}] has {other!r}; it is one for all "
                "gradients of a step, so give all groups the same"
            )
    return value


def _check_step_options(group: Group) -> None:
    _core.check_clip_norm(group.get("clip_norm"))
    for option in ("skip_nonfinite", "zero_grad"):
        if not isinstance(group.get(option, False), bool):
            raise TypeError(f"{option}: expected a bool, got {type(group[option]).__name__}")


def _refuse_all_gradients(groups: list[Group], where: str) -> None:
    for option in ("clip_norm", "skip_nonfinite"):
        if _of_groups(groups, option) not in (None, False):
            raise ValueError(
                f"{option}: {where} takes gradients one by one, and nobody sees all of them; set it to "
                f"{_STEP[option]} in the param groups, or take steps of all params"
            )


class ReleasedGradients:
    """The hooks that :func:`release_gradients` has installed. :meth:`remove` removes them."""

    def __init__(self, model: torch.nn.Module, optimizer: _Fused) -> None:
        if optimizer._releases:
            raise RuntimeError("optimizer: its gradients are being released already")
        _refuse_all_gradients(optimizer.param_groups, "release_gradients()")
        of_model = set(model.parameters())
        if any(p not in of_model for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer: some of its params are not the model's")
        self._optimizer = optimizer
        self._handles = [
            p.register_post_accumulate_grad_hook(self._step)
            for group in optimizer.param_groups
            for p in group["params"]
            if p.requires_grad
        ]
        optimizer._releases = True

    def _step(self, param: Tensor) -> None:
        self._optimizer.step_param(param)
        param.grad = None

    def remove(self) -> None:
        """Remove the hooks. Gradients are kept again, for steps with all params."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._optimizer._releases = False


def release_gradients(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> ReleasedGradients:
    """Step each param as soon as its gradient has been computed in a backward pass, and then free the gradient.

    The gradients of a model are then never in memory all at once. Each backward pass is a step: do not call
    `optimizer.step()`. Gradients cannot be accumulated over several backward passes. The options ``clip_norm`` and
    ``skip_nonfinite``, which need all gradients at once, are refused. Learning-rate schedulers work as before.

    Parameters
    ----------
    model : torch.nn.Module
        The model whose backward passes become steps.
    optimizer : torch.optim.Optimizer
        An optimizer of this module, for params of the model that are dense, real and on the CPU.

    Returns
    -------
    ReleasedGradients
        Call its ``remove()`` to remove the hooks.

    Raises
    ------
    TypeError, ValueError
        If the optimizer is not of this module, or has params that are not those of the model.
    RuntimeError
        If gradients of the optimizer are already released.

    Examples
    --------
    >>> import torch, adaptk.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> opt = adaptk.torch.AdamW(model.parameters(), lr=1e-3)
    >>> hooks = adaptk.torch.release_gradients(model, opt)
    >>> model(torch.ones(2, 3)).sum().backward()  # a step, too
    >>> model.weight.grad is None
    True
    >>> hooks.remove()
    """
    if not isinstance(optimizer, _Fused):
        raise TypeError(f"optimizer: {type(optimizer).__name__}, expected one of adaptk.torch")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: {type(model).__name__}, expected a torch.nn.Module")
    return ReleasedGradients(model, optimizer)


_OWN: tuple[type[_Own], ...] = (DeltaBarDelta, Lion, AdaBelief, Yogi, Adan, RMSpropNesterov)
_ROW_WISE: tuple[type[_Own], ...] = (RowWiseAdaGrad, RowWiseAdam)
_TORCHS: tuple[type[_Fused], ...] = (
    *(Adadelta, Adagrad, Adam, AdamW, Adamax, ASGD, NAdam, RAdam, RMSprop, Rprop, SGD),
)


for _class in (*_TORCHS, *_OWN, *_ROW_WISE):
    _class.__init__ = _checked(_class.__init__)  # type: ignore[method-assign]


def _example(name: str) -> str:
    return "\n".join(
        [
            "Examples",
            "--------",
            ">>> import torch, adaptk.torch",
            ">>> model = torch.nn.Linear(3, 1)",
            f">>> opt = adaptk.torch.{name}(model.parameters(), lr=0.01)",
            ">>> model(torch.ones(1, 3)).sum().backward()",
            ">>> opt.step()",
            "",
        ]
    )


def _own_signature(rule: Rule) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("params", positional)]
    values: Mapping[str, Any] = rule.defaults()
    parameters.append(inspect.Parameter("lr", positional, default=values["lr"]))
    if names := _betas_of(rule):
        parameters.append(inspect.Parameter("betas", positional, default=tuple(values[n] for n in names)))
    parameters.append(inspect.Parameter("convention", keyword, default="book"))
    parameters.append(inspect.Parameter("fused", keyword, default=None))
    for name, value in values.items():
        if name not in ("lr", "grad_scale"):
            parameters.append(inspect.Parameter(name, keyword, default=value))
    starts = {s.option: s.initial for s in rule.states if s.option is not None}
    parameters += [inspect.Parameter(name, keyword, default=value) for name, value in starts.items()]
    return inspect.Signature([*parameters, *_given_parameters()])


# What each class runs, by its options.
_RULES_OF: Mapping[str, tuple[str, ...]] = {
    "Adadelta": ("adadelta",),
    "Adagrad": ("adagrad",),
    "Adam": ("adam", "amsgrad"),
    "AdamW": ("adamw", "amsgrad"),
    "Adamax": ("adamax",),
    "ASGD": ("asgd",),
    "NAdam": ("nadam",),
    "RAdam": ("radam",),
    "RMSprop": ("rmsprop", "rmsprop_centered", "rmsprop_momentum", "rmsprop_centered_momentum"),
    "Rprop": ("rprop",),
    "SGD": ("sgd", "momentum", "nesterov"),
}
_GIVEN_DOC = [
    "state_dtype : str or dict from state to str, optional",
    "    The storage format of states: 'float32', 'bfloat16', 'float16', 'bfloat16_sr', '8bit', '8bit_nearest',",
    "    '8bit_dynamic', 'fp8_e4m3' or '4bit' (:mod:`adaptk.formats`). The step computes in float32. States of float64",
    "    and complex params have the dtype of the param. The optimizer's state has the scales under separate names:",
    "    for the state ``exp_avg``, ``exp_avg_absmax`` with '8bit_dynamic', ``exp_avg_fp8_scales`` with 'fp8_e4m3',",
    "    ``exp_avg_4bit_scales`` with '4bit', else ``exp_avg_scales``. 4-bit codes are a flat array of bytes, with two",
    "    codes in a byte.",
    "min_8bit_size : int",
    "    Params with fewer elements have float32 states if `state_dtype` is an 8-bit or 4-bit format.",
    "seed : int",
    "    The seed of stochastic rounding, in [0, 2**63).",
    "param_format : {'sr'}, optional",
    "    'sr' rounds params in bfloat16 stochastically, so that changes of less than half of a last place add up.",
    "    Params in float32 and float64 are not affected; those in float16 are refused.",
    "sparse : {'lazy', 'dense', 'catch_up'}",
    "    What happens to rows without values in a sparse gradient, as in ``torch.nn.Embedding(sparse=True)``. 'lazy':",
    "    nothing, like ``torch.optim.SparseAdam``. 'dense': the update for a gradient of 0. 'catch_up': nothing until",
    "    a row has values again; it then first catches up with the steps that it has missed, as in",
    "    :class:`adaptk.Optimizer`.",
    "clip_norm : float, optional",
    "    The default of the argument of :meth:`step`, for wrappers that call ``step()``. All groups must have the same",
    "    value.",
    "skip_nonfinite, zero_grad : bool",
    "    Likewise.",
]
_RAISES = [
    "Raises",
    "------",
    "TypeError, ValueError",
    "    For params that cannot be updated in place, and options that are unknown, out of range or refused here.",
    "",
]


def _formula(rule: Rule) -> list[str]:
    return [f"`{rule.name}`, {rule.source}::", "", *("    " + line for line in rule.formula.splitlines()), ""]


_PARAMS = [
    "Parameters",
    "----------",
    "params : iterable of torch.Tensor or of param groups",
    "    Any shapes; float32, float64, bfloat16, float16, complex64 or complex128. They may be DTensors.",
]


_ROW_WISE_PARAMS = [
    *_PARAMS[:3],
    "    Any shapes, in C order; float32, float64, bfloat16 or float16. A row is a slice along the first axis. The",
    "    state with one number for each row is float32, or float64 for float64 params.",
]


def _document_own(own: type[_Own]) -> None:
    rule = rule_of(own._name)
    lines = [rule.summary, "", *_formula(rule), *(_ROW_WISE_PARAMS if own in _ROW_WISE else _PARAMS)]
    if names := _betas_of(rule):
        lines += [
            f"betas : tuple of {len(names)} floats, optional",
            f"    {', '.join(names)}. Param groups have this tuple too.",
        ]
    lines += ["convention : {'book', 'torch', 'keras', 'tf1', 'optax'}", "    Whose defaults to use."]
    lines += ["fused : bool, optional", "    Whether GradScaler leaves the unscaling of gradients to the step."]
    for h in rule.hyperparameters:
        if h.name != "grad_scale":
            kind = "bool" if h.range == "bool" else f"float in {h.range}"
            lines += [f"{h.name} : {kind}, default {h.default!r}", f"    {h.meaning[:1].upper()}{h.meaning[1:]}."]
    own.__doc__ = "\n".join([*lines, *_GIVEN_DOC, "", *_RAISES, _example(own.__name__)])
    own.__signature__ = _own_signature(rule)  # type: ignore[attr-defined]


def _document() -> None:
    for cls in _TORCHS:
        name = cls.__name__
        lines = [f":class:`torch.optim.{name}` with a fused step: the same arguments, param groups and states.", ""]
        for rule_name in _RULES_OF[name]:
            lines += _formula(RULES[rule_name])
        lines += [*_PARAMS, "others"]
        lines += [f"    As in :class:`torch.optim.{name}`; see :mod:`adaptk.torch` for the differences."]
        lines += [*_GIVEN_DOC, ""]
        cls.__doc__ = "\n".join([*lines, *_RAISES, _example(name)])
    for own in (*_OWN, *_ROW_WISE):
        _document_own(own)


_document()


# Rules that were made at run time (adaptk.rule).


class _Made(_Own):
    """Base of their classes, which no module has a name for."""

    def _carry_on(self) -> None:
        rule = rule_of(self._name)
        if not rule.carried:
            return
        measured: Sequence[float] = ()
        if rule.reduces == "all":
            measured = self._native_plan().measured(rule.key)
            if not measured:  # no param took part
                return
        for group in self.param_groups:
            # All params of a group take the steps that count.
            steps = [int(self.state[p]["step"]) for p in group["params"] if "step" in self.state.get(p, ())]
            if steps:
                values = [float(x) for x in self._values(group).values()]
                group.update(_core.carry_on(rule.key, values, max(steps), measured))

    def step_param(self, param: Tensor) -> None:
        if rule_of(self._name).carried:
            raise RuntimeError(f"step_param(): {type(self).__name__} hands numbers on from step to step; use step()")
        super().step_param(param)

    @torch.no_grad()
    def evaluation_params(self) -> list[Tensor]:
        """The params to evaluate a model with, as new tensors, for rules that take gradients at other params.

        Raises
        ------
        ValueError
            If the rule takes its gradients at the params themselves, or its states are stored as codes.
        """
        rule = evaluation_rule(rule_of(self._name))
        if rule is None:
            raise ValueError(f"{type(self).__name__}: models are evaluated with the params themselves")
        if self._kept is not None:
            raise RuntimeError("evaluation_params() between eval() and train(): call train()")
        points = []
        for group in self.param_groups:
            known = {h.name for h in rule.rule.hyperparameters} - {"lr", *COMMON}
            values = {n: v for n, v in self._values(group).items() if n in known}
            for param in group["params"]:
                points.append(param.detach().clone())
                state = self.state.get(param, {})
                if "step" not in state:
                    continue
                tensors = [points[-1], param.detach(), *(state[s.name] for s in rule.rule.states)]
                if not all(t.is_floating_point() or t.is_complex() for t in tensors):
                    raise ValueError(f"{type(self).__name__}: its states are stored in 8 bits")
                real = [torch.view_as_real(t) if t.is_complex() else t for t in map(local_part, tensors)]
                rule(*real, step=1, **values)
        return points

    @torch.no_grad()
    def eval(self) -> None:
        """Move the params to the point to evaluate a model at, until :meth:`train`.

        Does nothing if the params are there already.
        """
        if self._kept is None:
            points = self.evaluation_params()
            params = [p for group in self.param_groups for p in group["params"]]
            self._kept = [p.detach().clone() for p in params]
            for param, point in zip(params, points, strict=True):
                param.copy_(point)

    @torch.no_grad()
    def train(self) -> None:
        """Undo :meth:`eval`: move the params back, bit for bit. Does nothing without a preceding :meth:`eval`."""
        params = [p for group in self.param_groups for p in group["params"]]
        for param, kept in zip(params, self._kept or (), strict=False):
            param.copy_(kept)
        self._kept = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        rule = rule_of(self._name)
        if type(self) is not class_of_made(rule):
            return super().__reduce_ex__(protocol)
        return _empty_optimizer, (rule,), self.__getstate__()


def _empty_optimizer(rule: Rule) -> _Made:
    return object.__new__(class_of_made(rule))


_classes_of_made: dict[str, type[_Made]] = {}


def class_of_made(rule: Rule) -> type[_Made]:
    """The class of a rule, always the same one."""
    found = _classes_of_made.get(rule.key)
    if found is None:
        made = type(rule.class_names[0], (_Made,), {"__module__": __name__, "_name": rule.key})
        made.__init__ = _checked(made.__init__)  # type: ignore[misc]
        _document_own(made)
        found = _classes_of_made.setdefault(rule.key, made)
    return found


def _of_catalogue(name: str) -> type[_Made]:
    found = catalogue.find_class(name)
    assert found is not None
    return class_of_made(found.rule)


from adaptk._torch_muon import Muon as Muon  # noqa: E402  (it is made of what is above)
from adaptk._torch_offload import Offload as Offload  # noqa: E402

__all__ = [c.__name__ for c in (*_TORCHS, *_OWN, *_ROW_WISE)]
__all__ += ["Muon", "Offload", "ReleasedGradients", "release_gradients"]

if TYPE_CHECKING:
    from adaptk._torch_catalogue import *  # noqa: F403
else:
    __getattr__, __dir__ = face(__name__, __all__, more=catalogue.CLASSES.values(), find=_of_catalogue)
