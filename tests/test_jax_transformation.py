"""``adaptk.jax``'s transformation in optax and JAX: a pair of functions that is copied, mapped and wrapped."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax", reason="adaptk.jax needs JAX")
import jax
import jax.numpy as jnp

try:
    import adaptk.jax
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)


def stepped(opt: Any) -> Any:
    p = jnp.arange(1.0, 5.0)
    return opt.apply(p, jnp.ones(4), opt.init(p))[0]


COPIES = {
    "tree.map": lambda opt: jax.tree.map(lambda f: f, opt),
    "flatten": lambda opt: jax.tree.unflatten(jax.tree.structure(opt), jax.tree.leaves(opt)),
    "_replace": lambda opt: opt._replace(init=opt.init),
    "_make": lambda opt: type(opt)._make(opt),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_step_like_the_original(how: str) -> None:
    opt = adaptk.jax.adamw(0.5, weight_decay=0.25)
    twin = COPIES[how](opt)
    assert type(twin) is type(opt)
    assert (twin.rule, repr(twin)) == ("adamw", repr(opt))
    np.testing.assert_array_equal(stepped(twin), stepped(opt))


def test_replaced_functions() -> None:
    """optax's wrappers replace one function; there is no in-place step then."""
    opt = adaptk.jax.sgd(0.5)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        return opt.update(jax.tree.map(jnp.negative, grads), state, params)

    wrapped = opt._replace(update=update)
    p = jnp.ones(2)
    updates, _ = wrapped.update(jnp.ones(2), wrapped.init(p), p)
    np.testing.assert_array_equal(updates, [0.5, 0.5])
    assert repr(wrapped).startswith("GradientTransformation(init=")
    for other in (wrapped, opt._replace(init=adaptk.jax.sgd(0.25).init)):
        with pytest.raises(TypeError, match="what apply would be is not known"):
            other.apply(p, p, opt.init(p))


def test_extra_arguments() -> None:
    optax = pytest.importorskip("optax")
    opt = adaptk.jax.adam(0.5)
    assert isinstance(opt, optax.GradientTransformationExtraArgs)
    assert optax.with_extra_args_support(opt) is opt
    p = jnp.ones(2)
    updates, _ = opt.update(jnp.ones(2), opt.init(p), p, value=1.0)
    np.testing.assert_allclose(updates, [-0.5, -0.5], rtol=1e-6)
    chain = optax.chain(optax.clip_by_global_norm(1.0), opt)
    updates, _ = chain.update(jnp.ones(2), chain.init(p), p, value=1.0)
    np.testing.assert_allclose(updates, [-0.5, -0.5], rtol=1e-6)
