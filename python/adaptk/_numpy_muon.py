"""Muon for NumPy arrays: see :class:`adaptk.Muon`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np

import adaptk
from adaptk import _core, formats, ops
from adaptk._muon import ADJUSTMENTS, COEFFICIENTS, adjustment, check_options, orthogonalize
from adaptk._names import hint
from adaptk._optimizer import _NOT_GIVEN, Optimizer, StepInfo
from adaptk._registry import RULES, Hyperparameter, Rule
from adaptk._typing import Number
from adaptk.schedules import refuse_from_zero

_DTYPES = ("float32", "float64")
# The options of a group that are numbers; the others are saved as codes.
_NUMBERS = (
    Hyperparameter("lr", 1e-3, "[0, inf)", "learning rate", False),
    Hyperparameter("weight_decay", 0.1, "[0, inf)", "decoupled weight decay", False),
    Hyperparameter("momentum", 0.95, "[0, 1)", "decay of the momentum", False),
    Hyperparameter("nesterov", True, "bool", "Nesterov's form of it", False),
    Hyperparameter("eps", 1e-7, "[0, inf)", "the smallest norm that an update is divided by", False),
    Hyperparameter("ns_steps", 5.0, "[0, 100)", "iterations", False),
)
_OPTIONS = (*(h.name for h in _NUMBERS), "ns_coefficients", "adjust_lr_fn", "ns_dtype")


def _muon(base: str) -> Rule:
    """The step of a group of matrices: the momentum by an existing rule, and then Muon's update."""
    return dataclasses.replace(
        RULES[base], name="muon", hyperparameters=_NUMBERS, catch_up="", class_names=("Muon",), _key=base
    )


# By `nesterov`.
_RULES = {True: _muon("nesterov"), False: _muon("momentum")}


def _new_rest(rest: Any, options: Any) -> Optimizer:
    """An optimizer of a dummy array, with the options of the params that are not matrices."""
    if isinstance(rest, str):
        name, rest = rest, getattr(adaptk, rest, None)
        if rest is None:
            raise ValueError(f"rest: adaptk has no class {name!r}{hint(name, dir(adaptk))}")
    if not isinstance(rest, type) or not issubclass(rest, Optimizer) or issubclass(rest, Muon):
        raise TypeError(f"rest: {rest!r}, expected another class of adaptk, or its name")
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(
            f"rest_options: expected a dict of the options of {rest.__name__}, got {type(options).__name__}"
        )
    try:
        made = rest([np.zeros(1)], **(options or {}))
    except (TypeError, ValueError) as error:
        raise type(error)(f"rest_options: {error}") from None
    if any(r.evaluation for r in made._group_rules):
        raise ValueError(f"rest: {rest.__name__} has other params to evaluate with; give it an optimizer of its own")
    if made.clip_norm is not None or made.skip_nonfinite or made.capturable:
        raise ValueError("rest_options: clip_norm, skip_nonfinite and capturable are of all params; give them to Muon")
    return made


def _among(values: tuple[str | None, ...], place: Any, name: str) -> str | None:
    if place.shape or place.dtype.kind not in "iu" or not 0 <= place < len(values):
        raise ValueError(f"state_dict[{name!r}]: {place!r}, expected a whole number below {len(values)}")
    return values[int(place)]


def _is_list(params: Any) -> bool:
    return isinstance(params, Iterable) and not isinstance(params, (np.ndarray, str, bytes, set, frozenset))


def _listed(params: Any) -> list[Any]:
    return list(params) if _is_list(params) else [params]


class Muon(Optimizer):
    """Muon for weight matrices, and another rule for the other params, on NumPy arrays.

    Jordan et al. 2024; Liu et al. 2025 (Moonlight)::

        m = momentum*m + (1 - momentum)*g
        u = (1 - momentum)*g + momentum*m if nesterov else m
        o = u / max(norm(u), eps), and ns_steps times:  o = a*o + (b*(o o^T) + c*(o o^T)^2) o
        p = (1 - lr*weight_decay)*p - lr*adjustment*o

    The momentum takes one pass over memory, in the same parallel region as the steps of the other params, and weight
    decay and step another. The matrix products between them are those of NumPy. Each matrix needs an array of its size
    for the update, in addition to its momentum.

    Parameters
    ----------
    params : arrays
        NumPy arrays or param groups, as in the other classes. Params with two dimensions are updated by Muon, and all
        others by `rest`. A group with both kinds is split into two groups, the matrices first. A group with
        ``use_muon=False`` is updated by `rest`; use this for embeddings and the last layer. In a group with
        ``use_muon=True``, arrays with more than two dimensions, such as convolution weights, are flattened to matrices
        after the first dimension.
    lr : float or callable, default 1e-3
        Learning rate of the matrices, or a schedule.
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
    ns_dtype : {'float32', 'float64'}, optional
        The dtype of the iteration; by default float64 for float64 params, else float32. NumPy's matrix products of
        16-bit numbers are slow.
    rest : type or str, default 'AdamW'
        The optimizer class for the other params.
    rest_options : dict, optional
        Options of that class, such as `lr`. Options that are not given have the defaults of the class, whatever is
        given for Muon.
    clip_norm, skip_nonfinite
        As in the other classes, for all params together.

    Raises
    ------
    TypeError, ValueError
        For params that are not NumPy arrays, cannot be updated in place or overlap, groups with both kinds of params
        and options of their own, and options that are unknown or out of range.

    Notes
    -----
    Each group has `use_muon` and the options of its rule. The momentum of 16-bit params is float32. The step is as
    exact as NumPy's matrix products: its bits depend on the BLAS library of NumPy.

    Examples
    --------
    >>> import numpy as np, adaptk
    >>> w, b = np.eye(3), np.zeros(3)
    >>> opt = adaptk.Muon([w, b], lr=0.1, weight_decay=0.0, rest="AdamW", rest_options={"lr": 0.01})
    >>> [(g["use_muon"], g["lr"], len(g["params"])) for g in opt.param_groups]
    [(True, 0.1, 1), (False, 0.01, 1)]
    >>> info = opt.step([np.eye(3), np.ones(3)])
    >>> b.round(2)
    array([-0.01, -0.01, -0.01])
    """

    _marks = ("use_muon",)
    # For each param the array for its update; None for those that `rest` steps.
    _updates: list[Any]
    # For each param its index among those that were passed: a group that was split has the matrices first.
    _place: list[int]

    def __init__(
        self,
        params: Any,
        lr: Number | Callable[[int], float] = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str | None = None,
        rest: type[Optimizer] | str = "AdamW",
        rest_options: Mapping[str, Any] | None = None,
        clip_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        self._rest = _new_rest(rest, rest_options)
        self._updates = []
        self._place: list[int] = []
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "eps": eps,
            "ns_steps": ns_steps,
            "ns_coefficients": ns_coefficients,
            "adjust_lr_fn": adjust_lr_fn,
            "ns_dtype": ns_dtype,
        }
        self._begin(params, None, "book", clip_norm, skip_nonfinite, False, (None, 4096, 0, None, "lazy"), options)

    # Groups.

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a param group with its own options, like the other classes.

        If a group without ``use_muon`` has both matrices and other params, it is split into two groups, and must not
        have options. The order of the gradients remains that in which the params were given.
        """
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError("param group: expected a dict with the key 'params'")
        use_muon = group.get("use_muon")
        if use_muon is not None and not isinstance(use_muon, bool):
            raise TypeError(f"use_muon: expected a bool, got {type(use_muon).__name__}")
        params = group["params"]
        named = isinstance(params, Mapping)
        # Anything that is not a collection is refused below.
        items: Any = list(params.items()) if named else list(enumerate(params)) if _is_list(params) else None
        parts: list[tuple[bool, Any, list[int]]]
        if items is None:
            parts = [(np.ndim(params) == 2 if use_muon is None else use_muon, params, [0])]
        else:
            is_muon = [getattr(x, "ndim", 2) == 2 if use_muon is None else use_muon for _, x in items]
            parts = []
            for kind in (True, False):
                at = [k for k, of in enumerate(is_muon) if of is kind]
                chosen: Any = dict(items[k] for k in at) if named else [items[k][1] for k in at]
                if at or (kind and not items):
                    parts.append((kind, chosen, at))
            own = [name for name in group if name not in ("params", "use_muon")]
            if len(parts) > 1 and own:
                raise ValueError(
                    f"params: a group with options of its own ({', '.join(own)}) has matrices and others; make two "
                    "groups of it, with use_muon=True and use_muon=False"
                )
        for kind, chosen, _ in parts:
            if kind:
                if storage := [name for name in ("state_dtype", "param_format", "sparse") if name in group]:
                    raise TypeError(f"{storage[0]}: not an option of matrices")
                for key, p in chosen.items() if isinstance(chosen, dict) else enumerate(_listed(chosen)):
                    if np.ndim(p) < 2 and isinstance(p, np.ndarray):
                        raise ValueError(
                            f"params[{key!r}]: shape {p.shape} with use_muon=True, expected at least two dimensions"
                        )
            for key, p in chosen.items() if isinstance(chosen, dict) else enumerate(_listed(chosen)):
                if not isinstance(p, np.ndarray):
                    raise TypeError(
                        f"params[{key!r}]: expected a NumPy array, got {type(p).__name__}; adaptk.torch.Muon and "
                        "adaptk.jax.muon are for other arrays"
                    )
        with self._lock:
            before = len(self._params), len(self.param_groups)
            try:
                for kind, chosen, at in parts:
                    self._place += [before[0] + k for k in at]
                    super().add_param_group({**group, "params": chosen, "use_muon": kind})
                self._check_apart()
            except BaseException:
                self._forget_after(*before)
                raise

    def _forget_after(self, params: int, groups: int) -> None:
        """Remove the groups that were added, after an error."""
        added = len(self.param_groups) > groups
        for of_params in (self._params, self._states, self._labels, self._updates, self._place):
            del of_params[params:]
        if self._names is not None:
            self._names = self._names[:params] or None
        for of_groups in (self.param_groups, self._own_groups, self._group_rules, self._param_formats):
            del of_groups[groups:]
        del self._sparse_modes[groups:]
        if added:
            steps, count = self._plan.steps()[:params], self.step_count
            self._make_plan(steps, count)

    def _places(self, first: int, count: int) -> Sequence[int]:
        return self._place[first : first + count]

    def _of_group(self, group: Mapping[str, Any]) -> Optimizer:
        return self if group["use_muon"] else self._rest

    def _resolve(self, group_options: Mapping[str, Any]) -> tuple[Rule, dict[str, Any], dict[str, float]]:
        for name in group_options:
            if name not in _OPTIONS:
                raise TypeError(
                    f"Muon() got an unexpected keyword argument {name!r}{hint(name, _OPTIONS)}; "
                    f"it takes {', '.join(_OPTIONS)}"
                )
        values = {**self._options, **group_options}
        self._check_options(values)
        return _RULES[values["nesterov"]], values, {}

    def _check_options(self, values: Mapping[str, Any], step: int = 1) -> float:
        """Check the options of matrices; return their learning rate at a step."""
        if values["ns_dtype"] not in (None, *_DTYPES):
            raise ValueError(f"ns_dtype: {values['ns_dtype']!r} is not one of {', '.join(_DTYPES)}, None")
        check_options({**values, "ns_dtype": "float32"})
        refuse_from_zero("lr", values["lr"])
        lr = values["lr"](step) if callable(values["lr"]) else values["lr"]
        checked = {"lr": lr, "weight_decay": values["weight_decay"], "decoupled": True}
        _core.check_hyperparameters("sgd", {**RULES["sgd"].defaults(), **checked})
        return float(lr)

    def _check_values(self, rule: Rule, values: dict[str, Any]) -> None:
        if rule.name != "muon":
            super()._check_values(rule, values)
            return
        if values["ns_steps"] == int(values["ns_steps"]):
            values["ns_steps"] = int(values["ns_steps"])
        self._check_options({**values, "nesterov": bool(values["nesterov"])})

    def _add_to_plan(
        self,
        rule: Rule,
        params: Sequence[Any],
        states: Sequence[Mapping[str, Any]],
        labels: list[str],
        param_format: str | None,
        sparse: str,
    ) -> None:
        if rule.name != "muon":
            super()._add_to_plan(rule, params, states, labels, param_format, sparse)
            self._updates += [None] * len(params)
            return
        updates = [formats.full_like(p, 0.0, "float64" if p.dtype == np.float64 else "float32") for p in params]
        momenta = [[s["momentum_buffer"]] for s in states]
        self._plan.add_group(rule.key, updates, momenta, labels, None, "lazy", [])
        self._updates += updates

    def _make_plan(self, steps: list[int], count: int) -> None:
        self._updates = []
        super()._make_plan(steps, count)

    def _groups_of_plan(self) -> list[dict[str, Any]]:
        """The options with which each group of the plan is stepped."""
        found = []
        for rule, group in zip(self._group_rules, self.param_groups, strict=True):
            if rule.name != "muon":
                found.append(group)
                continue
            # With lr=1 and a param of 0 this rule returns -u, so the step after it has the opposite sign.
            decay = float(group["momentum"])
            average = {"lr": 1.0, "momentum": decay, "velocity": False, "grad_scale": 1.0 - decay}
            found.append({**RULES[rule.key].defaults(), **average})
        return found

    def _check_apart(self) -> None:
        """Refuse matrices that overlap other params: the plan has only their updates, so it cannot see this."""
        extents = []
        for p, label in zip(self._params, self._labels, strict=True):
            if p.size:
                extents.append((p.ctypes.data, p.ctypes.data + p.nbytes, label))  # dense, as has been checked
        for (_, end, a), (begin, _, b) in pairwise(sorted(extents)):
            if begin < end:
                raise ValueError(f"params{b} overlaps params{a}")

    # Steps.

    # The plan writes copies and averages in its step, but that step does not move the matrices.
    def step(  # type: ignore[override]
        self,
        grads: Any = _NOT_GIVEN,
        *,
        clip_norm: float | None = None,
        grad_scale: float = 1.0,
        skip_nonfinite: bool | None = None,
        zero_grad: bool = False,
    ) -> StepInfo:
        """Take one step, in place.

        Parameters
        ----------
        grads : sequence or mapping of buffers
            One gradient per param, in the order in which the params were given; a dict by name if they are named.
            ``None`` leaves a param and its states unchanged. Gradients of matrices must be dense.
        clip_norm : float, optional
            Scale all gradients by ``min(1, clip_norm / norm)``, where norm is their global norm after `grad_scale`.
            Defaults to the option of the optimizer.
        grad_scale : float
            Factor for all gradients.
        skip_nonfinite : bool, optional
            Change nothing if a gradient contains inf or NaN. Defaults to the option of the optimizer.
        zero_grad : bool
            Set each gradient to zero once it has been read, also if the step is skipped.

        Returns
        -------
        StepInfo
            ``grad_norm`` (``None`` if it was not computed) and ``skipped``.

        Raises
        ------
        TypeError, ValueError, BufferError
            If gradients do not match the params, or an option in `param_groups` is out of range. Params, states and
            step counts are then unchanged.

        Examples
        --------
        >>> import numpy as np, adaptk
        >>> w = np.zeros((2, 3))
        >>> opt = adaptk.Muon([w], lr=0.1)
        >>> opt.step([np.ones((2, 3))], clip_norm=1.0).grad_norm
        2.449489742783178
        """
        _core.check_clip_norm(clip_norm)
        with self._lock:
            given = self._ordered(grads)
            if self._names is None and len(given) == len(self._params):
                given = [given[k] for k in self._place]
            rates = self._check_step(given)
            norm, factor = None, grad_scale
            limit = self.clip_norm if clip_norm is None else clip_norm
            skip = self.skip_nonfinite if skip_nonfinite is None else skip_nonfinite
            if limit is not None or skip:
                dense = [g for g in given if g is not None]
                if any(isinstance(g, tuple) or hasattr(g, "tocsr") for g in dense):
                    raise TypeError("clip_norm, skip_nonfinite: a gradient is sparse; clip it before the step")
                norm = adaptk.global_norm(dense, grad_scale) if dense else 0.0
                # The plan skips such a step too; it checks and zeroes the gradients.
                skip = skip and not np.isfinite(norm)
                if limit is not None and not skip and not norm <= limit:
                    factor = grad_scale * (limit / norm)
            for update in self._updates:
                if update is not None:
                    update.fill(0.0)
            _, skipped = self._plan.step(
                given, self._groups_of_plan(), factor, None, bool(skip), zero_grad, None, None, None
            )
            if not skipped:
                self._step_matrices(given, rates)
            return StepInfo(norm, skipped)

    def _check_step(self, grads: Sequence[Any]) -> list[float]:
        """Make the checks that the plan cannot make; return the learning rate of each group, 0 without matrices."""
        if self.param_groups != self._own_groups:
            self._check_groups()
        rates, first = [], 0
        changed = False
        for i, (rule, group) in enumerate(zip(self._group_rules, self.param_groups, strict=True)):
            last = first + len(self._own_groups[i]["params"])
            if group["use_muon"] is not (rule.name == "muon"):
                raise ValueError(
                    f"param_groups[{i}]: use_muon={group['use_muon']!r}, and its states are those of {rule.name}; make "
                    "a new optimizer"
                )
            if rule.name != "muon":
                rates.append(0.0)
                first = last
                continue
            rates.append(self._check_options(group, self.step_count + 1))
            changed = changed or rule is not _RULES[group["nesterov"]]
            for p, g, label in zip(self._params[first:last], grads[first:last], self._labels[first:last], strict=False):
                if isinstance(g, np.ndarray) and np.may_share_memory(p, g):
                    raise ValueError(f"grads{label} overlaps params{label}")
            first = last
        if changed:
            self._group_rules = [
                _RULES[g["nesterov"]] if r.name == "muon" else r
                for r, g in zip(self._group_rules, self.param_groups, strict=True)
            ]
            self._make_plan(self._plan.steps(), self.step_count)
        return rates

    def _step_matrices(self, grads: Sequence[Any], rates: Sequence[float]) -> None:
        first = 0
        for group, lr in zip(self.param_groups, rates, strict=True):
            last = first + len(group["params"])
            for i in range(first, last) if group["use_muon"] else ():
                if grads[i] is None or self._params[i].size == 0:
                    continue
                p, update = self._params[i], self._updates[i]
                matrix = update.reshape(len(update), -1).astype(group["ns_dtype"] or update.dtype, copy=False)
                # No warnings: as in the other rules, values that are not finite reach the param.
                with np.errstate(all="ignore"):
                    o = orthogonalize(matrix, group["ns_coefficients"], group["ns_steps"], group["eps"])
                update[...] = o.reshape(update.shape)
                ops.sgd(
                    p,
                    update,
                    step=1,
                    lr=lr,
                    weight_decay=float(group["weight_decay"]),
                    decoupled=True,
                    maximize=True,
                    grad_scale=adjustment(group["adjust_lr_fn"], *matrix.shape),
                )
            first = last

    def catch_up(self) -> None:
        """Let all rows of the other params catch up, like :meth:`Optimizer.catch_up`."""
        self._plan.catch_up(self._groups_of_plan())

    def lookahead(self) -> NoReturn:
        """Raise an error: neither Muon nor the rules for other params have an interim point."""
        raise ValueError("lookahead(): Muon has no interim point")

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume later, like :meth:`Optimizer.state_dict`.

        For matrices, options that are not numbers are saved as their index among the possible values, and
        `ns_coefficients` as an array of three numbers.
        """
        with self._lock:
            saved = super().state_dict()
            for i, group in enumerate(self.param_groups):
                if group["use_muon"]:
                    at = f"param_groups.{i}."
                    saved[at + "ns_coefficients"] = np.array(group["ns_coefficients"], np.float64)
                    saved[at + "adjust_lr_fn"] = np.array((None, *ADJUSTMENTS).index(group["adjust_lr_fn"]))
                    saved[at + "ns_dtype"] = np.array((None, *_DTYPES).index(group["ns_dtype"]))
            return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned, like :meth:`Optimizer.load_state_dict`."""
        with self._lock:
            loaded = []
            for i, group in enumerate(self.param_groups):
                at = f"param_groups.{i}."
                names = [at + name for name in ("ns_coefficients", "adjust_lr_fn", "ns_dtype")]
                # Missing entries are reported below.
                if group["use_muon"] and isinstance(state_dict, Mapping) and all(n in state_dict for n in names):
                    coefficients, how, dtype = (np.asarray(state_dict[n]) for n in names)
                    values = {
                        "ns_coefficients": tuple(map(float, coefficients.reshape(-1))),
                        "adjust_lr_fn": _among((None, *ADJUSTMENTS), how, names[1]),
                        "ns_dtype": _among((None, *_DTYPES), dtype, names[2]),
                    }
                    self._check_options({**group, **values})
                    loaded.append((group, values))
            super().load_state_dict(state_dict)
            for group, values in loaded:
                group.update(values)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_updates"]
        # Rules are saved by name, and Muon is not in the registry.
        state["_group_rules"] = [None if r.name == "muon" else r for r in self._group_rules]
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        rules = [
            _RULES[group["nesterov"]] if rule is None else rule
            for rule, group in zip(state["_group_rules"], state["param_groups"], strict=True)
        ]
        super().__setstate__({**state, "_group_rules": rules})
