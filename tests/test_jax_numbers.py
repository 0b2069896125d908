"""adaptk.jax with states of one number for each tensor, row, column or slice."""

from __future__ import annotations

import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import first_tier, same_bits

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
import adaptk.jax  # noqa: E402

NAMES = [
    *("novograd", "adam_mini_tensor", "adam_mini", "adafactor", "adafactor_momentum", "came", "sm3", "sm3_momentum"),
    *("rowwise_adagrad", "rowwise_adam"),
]
every_rule = pytest.mark.parametrize("name", first_tier(NAMES, "adafactor", "rowwise_adam"))
SHAPES = [(40, 300), (3, 5, 7), (11,), (), (1, 1), (0, 4), (300, 30)]


def numbers(shapes: Any, dtype: str, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=s), dtype) for s in shapes]


@every_rule
@pytest.mark.parametrize("dtype", first_tier(["float32", "float64"], "float32"))
def test_the_bits_of_the_class(name: str, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        arrays = numbers(SHAPES, dtype, 0)
        params = [jnp.asarray(p) for p in arrays]
        opt, made = adaptk.optimizer_for(name, arrays, lr=0.1), getattr(adaptk.jax, name)(0.1)
        state = made.init(params)
        step = jax.jit(made.apply, donate_argnums=(0, 2))
        for t in (1, 2, 3):
            grads = numbers(SHAPES, dtype, t)
            opt.step(grads)
            params, state = step(params, [jnp.asarray(g) for g in grads], state)
        for i, (a, b) in enumerate(zip(arrays, params, strict=True)):
            assert same_bits(a, np.asarray(b))
            for s in adaptk.rules()[name].states:
                x = np.asarray(getattr(state, s.name)[i])
                assert x.shape == s.shape_beside(a.shape)
                assert same_bits(np.asarray(opt.state[i][s.name]), x)
        assert pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))._fields == state._fields


@every_rule
def test_vmap_steps_each_member(name: str) -> None:
    made = getattr(adaptk.jax, name)(0.1)
    params, grads = (np.stack(numbers([(2, 4, 6)] * 3, "float32", seed)) for seed in (1, 2))
    many = jax.vmap(jax.vmap(made.init))(params)
    new = params
    for _ in range(2):
        new, many = jax.jit(jax.vmap(jax.vmap(made.apply)))(new, grads, many)
    for at in np.ndindex(3, 2):
        one, state = jnp.asarray(params[at]), made.init(params[at])
        for _ in range(2):
            one, state = made.apply(one, jnp.asarray(grads[at]), state)
        assert same_bits(np.asarray(one), np.asarray(new)[at])
        for a, b in zip(state[1:], many[1:], strict=True):
            assert same_bits(np.asarray(a), np.asarray(b)[at])


def test_bfloat16_params_and_updates() -> None:
    made = adaptk.jax.adafactor(0.1, state_dtype=None)
    p = jnp.ones((3, 5), jnp.bfloat16)
    state = made.init(p)
    assert state.exp_avg_sq_row.dtype == jnp.float32
    changes, _ = made.update(p, state, p)
    new, _ = made.apply(p + 0, p, state)
    assert changes.dtype == new.dtype == jnp.bfloat16
    assert (np.asarray(new, np.float32) < 1).all()


def test_updates_without_params() -> None:
    made = adaptk.jax.sm3(0.1)
    grad = jnp.ones((3, 5))
    changes, _ = made.update(grad, made.init(grad))
    want, _ = made.apply(jnp.zeros((3, 5)), grad, made.init(grad))
    assert same_bits(np.asarray(changes), np.asarray(want))
    with pytest.raises(ValueError, match="the update of adafactor needs them"):
        adaptk.jax.adafactor().update(grad, adaptk.jax.adafactor().init(grad))


def test_errors() -> None:
    made = adaptk.jax.adafactor(0.1)
    p = jnp.ones((3, 5))
    state = made.init([p])
    for field, wrong, error, message in (
        ("exp_avg_sq_row", jnp.zeros((3, 5)), ValueError, r"row\[0\]: shape \(3, 5\), expected \(3, 1\) beside"),
        ("exp_avg_sq_col", jnp.zeros((3, 1)), ValueError, r"col\[0\]: shape \(3, 1\), expected \(1, 5\) beside"),
        ("exp_avg_sq_row", jnp.zeros((3, 1), jnp.bfloat16), TypeError, r"row\[0\]: dtype bfloat16, expected float32"),
    ):
        with pytest.raises(error, match=message):
            made.apply([p], [p], state._replace(**{field: [wrong]}))
    with pytest.raises(ValueError, match="packed: adafactor has states of other shapes"):
        adaptk.jax.adafactor(0.1, packed=True)
    with pytest.raises(ValueError, match="'exp_avg_sq_row' has one number for each row"):
        adaptk.jax.adafactor(0.1, state_dtype={"exp_avg_sq_row": "bfloat16"})
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    cut = jax.device_put(p, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x")))
    for name in ("adafactor", "rowwise_adagrad"):
        made = getattr(adaptk.jax, name)(0.1)
        with pytest.raises(ValueError, match=f"cut into parts over several devices, and {name} reduces whole tensors"):
            made.apply([cut], [p], made.init([p]))
    whole = [jnp.ones((2, 2), jnp.complex64)]
    with pytest.raises(TypeError, match="complex, whose real and imaginary parts"):
        made.apply(whole, whole, made.init(whole))
