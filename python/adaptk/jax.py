"""Optimizers for JAX: optax gradient transformations with an in-place step.

There is one function per rule, such as ``adaptk.jax.adam(learning_rate=1e-3, ...)``. It returns an optax
``GradientTransformation`` with an additional method ``apply(params, grads, state) -> (params, state)``. ``apply`` takes
the step in one pass over memory for all arrays, in place if their buffers are donated, and is bitwise identical to
:mod:`adaptk.ops`. optax is optional.

Examples
--------
>>> import jax, jax.numpy as jnp, adaptk.jax
>>> from functools import partial
>>> opt = adaptk.jax.adam(0.1)
>>> @partial(jax.jit, donate_argnums=(0, 1))
... def train(params, state):
...     grads = jax.grad(lambda p: (p["w"] ** 2).sum())(params)
...     return opt.apply(params, grads, state)
>>> params = {"w": jnp.ones(3)}
>>> params, state = train(params, opt.init(params))
>>> int(state.count)
1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptk import catalogue
from adaptk._docs import state_name
from adaptk._names import face, not_installed

try:
    from adaptk._jax_muon import MuonState, MuonTransformation, muon
    from adaptk._jax_step import COMPILED, STATES, GradientTransformation, SplitState, Stored, make_function
except ModuleNotFoundError as error:
    if error.name != "jax":
        raise
    raise not_installed("adaptk.jax", "JAX", "jax") from None

globals().update({name: make_function(rule) for name, rule in COMPILED.items()})
globals().update({state_name(COMPILED[name]): state for name, state in STATES.items()})

__all__ = ["GradientTransformation", "SplitState", "Stored", *STATES, *(state_name(COMPILED[name]) for name in STATES)]
__all__ += ["MuonState", "MuonTransformation", "muon"]


def _of_catalogue(name: str) -> Any:
    found = catalogue.find(name)
    assert found is not None
    return found.jax


if not TYPE_CHECKING:
    __getattr__, __dir__ = face(__name__, __all__, more=catalogue.CLASSES, find=_of_catalogue)
