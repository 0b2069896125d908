"""Optimizers for JAX: optax's gradient transformations, with a step in place.

One function a rule, ``adaptk.jax.adam(learning_rate=1e-3, ...)``. What it returns is an optax
``GradientTransformation``, and has ``apply(params, grads, state) -> (params, state)``: one pass over memory for all
arrays together, in place where their buffers are donated, bit for bit what :mod:`adaptk.ops` computes. optax is used
where it is installed and not needed.

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

from adaptk._docs import state_name
from adaptk._jax_step import STATES, GradientTransformation, make_function
from adaptk._registry import RULES

globals().update({name: make_function(rule) for name, rule in RULES.items()})
globals().update({state_name(RULES[name]): state for name, state in STATES.items()})

__all__ = ["GradientTransformation", *RULES, *map(state_name, RULES.values())]
