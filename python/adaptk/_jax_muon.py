"""Muon for JAX: see :func:`adaptk.jax.muon`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptk._jax_step import GradientTransformation, make_function
from adaptk._muon import COEFFICIENTS, adjustment, check_options, orthogonalize
from adaptk._registry import RULES

_adamw, _momentum, _nesterov, _sgd = (make_function(RULES[name]) for name in ("adamw", "momentum", "nesterov", "sgd"))


class MuonState(NamedTuple):
    """The state of :func:`adaptk.jax.muon`: the states of its three rules, each for a list of params.

    The state of a rule without params is None.
    """

    momentum: Any
    matrices: Any
    rest: Any


class _Steps:
    """Muon's options, and the rules that its steps consist of."""

    def __init__(self, **options: Any) -> None:
        check_options(options)
        rest = _adamw() if options["rest"] is None else options["rest"]
        if not isinstance(rest, GradientTransformation):
            raise TypeError(f"rest: expected a transformation of adaptk.jax, got {type(rest).__name__}")
        self.made_of, self.rest, self.use_muon = options, rest, options["use_muon"]
        decay = float(options["momentum"])
        average = _nesterov if options["nesterov"] else _momentum
        # With a rate of 1 and a param of 0 this rule returns -u, so the step after it maximizes.
        self.average = average(1.0, momentum=decay, velocity=False, grad_scale=1.0 - decay)
        self.step = _sgd(options["learning_rate"], weight_decay=options["weight_decay"], decoupled=True, maximize=True)

    def _split(self, params: Any) -> tuple[list[bool], list[Any], Any]:
        leaves, tree = jax.tree_util.tree_flatten(params)
        if self.use_muon is None:
            return [jnp.ndim(x) == 2 for x in leaves], leaves, tree
        given = self.use_muon(params) if callable(self.use_muon) else self.use_muon
        chosen: list[Any]
        structure: Any
        chosen, structure = jax.tree_util.tree_flatten(given)
        if structure != tree:
            raise ValueError(f"use_muon: its structure is {structure}, expected that of the params, {tree}")
        for i, (use, x) in enumerate(zip(chosen, leaves, strict=True)):
            if not isinstance(use, bool):
                raise TypeError(f"use_muon: leaf {i} is a {type(use).__name__}, expected a bool")
            if use and jnp.ndim(x) != 2:
                raise ValueError(f"use_muon: leaf {i} of the params has shape {jnp.shape(x)}, expected two dimensions")
        return chosen, leaves, tree

    def _blank(self, x: Any) -> Any:
        """Zeros that the momentum is written to, in the dtype of the iteration if the param's dtype allows it."""
        wide = jnp.result_type(x) == jnp.float64
        name = self.made_of["ns_dtype"]
        return jnp.zeros(jnp.shape(x), "float64" if wide else "float32" if name == "float64" else name)

    def _orthogonal(self, update: Any) -> Any:
        o = self.made_of
        matrix = orthogonalize(update.astype(o["ns_dtype"]), o["ns_coefficients"], o["ns_steps"], o["eps"])
        inputs, outputs = matrix.shape
        return matrix.astype(update.dtype) * adjustment(o["adjust_lr_fn"], outputs, inputs)

    def init(self, params: Any) -> MuonState:
        chosen, leaves, _ = self._split(params)
        matrices = [x for x, use in zip(leaves, chosen, strict=True) if use]
        others = [x for x, use in zip(leaves, chosen, strict=True) if not use]
        return MuonState(
            self.average.init(matrices) if matrices else None,
            self.step.init(matrices) if matrices else None,
            self.rest.init(others) if others else None,
        )

    def _take(self, params: Any, grads: Any, state: Any, in_place: bool) -> tuple[Any, MuonState]:
        if not isinstance(state, MuonState):
            raise TypeError(f"state: expected what init has returned, got {type(state).__name__}")
        chosen, leaves, tree = self._split(params)
        gradients, structure = jax.tree_util.tree_flatten(grads)
        if structure != tree:
            raise ValueError(f"grads: their structure is {structure}, expected that of the params, {tree}")
        results: list[Any] = [None] * len(leaves)
        momentum, matrices, rest = state

        def of(values: list[Any], kind: bool) -> list[Any]:
            return [x for x, use in zip(values, chosen, strict=True) if use is kind]

        def step(part: Any, params: list[Any], grads: list[Any], state: Any) -> Any:
            return part.apply(params, grads, state) if in_place else part.update(grads, state, params)

        if any(chosen):
            updates, momentum = step(
                self.average, [self._blank(x) for x in of(leaves, True)], of(gradients, True), momentum
            )
            directions = [self._orthogonal(u) for u in updates]
            new, matrices = step(self.step, of(leaves, True), directions, matrices)
            for i, x in zip([i for i, use in enumerate(chosen) if use], new, strict=True):
                results[i] = x
        if not all(chosen):
            new, rest = step(self.rest, of(leaves, False), of(gradients, False), rest)
            for i, x in zip([i for i, use in enumerate(chosen) if not use], new, strict=True):
                results[i] = x
        return jax.tree_util.tree_unflatten(tree, results), MuonState(momentum, matrices, rest)

    def apply(self, params: Any, grads: Any, state: Any) -> tuple[Any, MuonState]:
        return self._take(params, grads, state, True)

    def update(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, MuonState]:
        """The updates of the params, for ``optax.apply_updates``, and the new state."""
        if params is None:
            raise ValueError("params: the update needs them, update(grads, state, params)")
        return self._take(params, grads, state, False)


class MuonTransformation(GradientTransformation):
    """The transformation that :func:`adaptk.jax.muon` returns: a :class:`GradientTransformation` of two rules."""

    __slots__ = ()

    @property
    def _steps(self) -> Any:
        steps = getattr(self.init, "__self__", None)
        if not isinstance(steps, _Steps) or getattr(self.update, "__self__", None) is not steps:
            raise TypeError("init or update is another function than Muon's, and what apply would be is not known")
        return steps

    @property
    def rule(self) -> str:
        """``"muon"``."""
        return "muon"

    def __repr__(self) -> str:
        try:
            options = self._steps.made_of
        except TypeError:
            return f"MuonTransformation(init={self.init!r}, update={self.update!r})"
        return f"adaptk.jax.muon({', '.join(f'{n}={v!r}' for n, v in options.items())})"

    def __reduce__(self) -> Any:
        return _muon_of, (self._steps.made_of,)


def _muon_of(options: dict[str, Any]) -> MuonTransformation:
    return muon(**options)


def muon(
    learning_rate: Any = 1e-3,
    *,
    weight_decay: Any = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    ns_dtype: str = "bfloat16",
    rest: GradientTransformation | None = None,
    use_muon: Any | Callable[[Any], Any] | None = None,
) -> MuonTransformation:
    """Muon for matrices, and another rule for other params, like :class:`adaptk.torch.Muon`.

    Parameters
    ----------
    learning_rate : float, array or schedule, default 1e-3
        Learning rate of the matrices, as in the other functions of this module.
    weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, ns_dtype
        As in :class:`adaptk.torch.Muon`.
    adjust_lr_fn : {'original', 'match_rms_adamw'}, optional
        The factor of the learning rate for a matrix of shape (in, out), as in Flax: ``sqrt(max(1, out/in))``, by
        default, or ``0.2*sqrt(max(in, out))``.
    rest : GradientTransformation, optional
        A transformation of this module for the other params; by default ``adaptk.jax.adamw()``.
    use_muon : tree of bool or callable, optional
        Which params Muon updates: a tree with the structure of the params, or a function of the params that returns
        such a tree. By default all params with two dimensions. Exclude embeddings and the last layer.

    Returns
    -------
    MuonTransformation
        With ``init``, ``update`` and ``apply``. The state is a named tuple of the states of its parts.

    Raises
    ------
    TypeError, ValueError
        For options that are unknown or out of range, and trees whose structure does not match.

    Examples
    --------
    >>> import jax.numpy as jnp, adaptk.jax
    >>> params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3)}
    >>> opt = adaptk.jax.muon(0.02, rest=adaptk.jax.adamw(3e-4))
    >>> params, state = opt.apply(params, {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}, opt.init(params))
    >>> int(state.matrices.count)
    1
    """
    steps = _Steps(
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        ns_coefficients=ns_coefficients,
        eps=eps,
        ns_steps=ns_steps,
        adjust_lr_fn=adjust_lr_fn,
        ns_dtype=ns_dtype,
        rest=rest,
        use_muon=use_muon,
    )
    return MuonTransformation(steps.init, steps.update)


for _public in (muon, MuonState, MuonTransformation):
    _public.__module__ = "adaptk.jax"
