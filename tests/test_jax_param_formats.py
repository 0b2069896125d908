"""adaptk.jax with param_format: the bits of adaptk.ops; trees; errors."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import first_tier, same_bits

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
ml_dtypes = pytest.importorskip("ml_dtypes")
pytest.importorskip("adaptk._jax", reason="this build was made without jaxlib's headers", exc_type=ImportError)

import adaptk.jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

BF16 = np.dtype(ml_dtypes.bfloat16)
SPLIT = list(formats.SIDES)
# Also params without a format.
SHAPES = {"a": ((7,), BF16), "b": [((70, 3), BF16), ((5,), np.float32), ((), BF16), ((0,), BF16)]}
WAYS: dict[str, Callable[[Any], Any]] = {
    "eager": lambda opt: opt.apply,
    "jit": lambda opt: jax.jit(opt.apply),
    "donated": lambda opt: jax.jit(opt.apply, donate_argnums=(0, 2)),
}


def randoms(seed: int, dtype: Any = None) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(rng.standard_normal(x[0])).astype(dtype or x[1]),
        SHAPES,
        is_leaf=lambda x: type(x) is tuple,
    )


def on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.array, tree)


def by_ops(rule: str, params: Any, grads: Sequence[Any], param_format: str, seed: int) -> tuple[list[Any], ...]:
    """Params, their remainders, and states after a step of adaptk.ops for each of the gradients."""
    arrays = [np.array(x) for x in jax.tree.leaves(params)]
    sides = [formats.new_side(x, x.dtype.name, param_format) for x in arrays]
    pairs = [(x, *s.values()) if s else x for x, s in zip(arrays, sides, strict=True)]
    start = adaptk.rules()[rule].initial_states("book", {"lr": 0.0123})
    states = [[np.full(x.shape, value, np.float32) for x in arrays] for value in start.values()]
    for t, g in enumerate(grads, start=1):
        options = {"step": t, "lr": 0.0123, "seed": seed, "param_format": param_format}
        getattr(adaptk.ops, rule)(pairs, jax.tree.leaves(g), *states, **options)
    return arrays, [x for s in sides for x in s.values()], *states


def run(opt: Any, params: Any, grads: Sequence[Any], step: Callable[..., Any] | None = None) -> tuple[Any, Any]:
    params = on_device(params)
    state = opt.init(params)
    for g in grads:
        params, state = (step or opt.apply)(params, on_device(g), state)
    return params, state


def assert_equal(params: Any, state: Any, want: tuple[list[Any], ...]) -> None:
    if isinstance(state, adaptk.jax.SplitState):
        sides, own = jax.tree.leaves(state.side), state.state
    else:
        sides, own = [], state
    got = [jax.tree.leaves(params), sides, *(jax.tree.leaves(s) for s in own[1:])]
    for mine, theirs in zip(got, want, strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("rule", ["sgd", "adam", "yogi"])
@pytest.mark.parametrize("param_format", formats.PARAM_FORMATS)
@pytest.mark.parametrize("way", first_tier(WAYS, "donated"))
def test_steps_match_ops(rule: str, param_format: str, way: str) -> None:
    opt = getattr(adaptk.jax, rule)(0.0123, param_format=param_format, seed=11)
    params, grads = randoms(0), [randoms(1 + t, np.float32) for t in range(3)]
    got, state = run(opt, params, grads, WAYS[way](opt))
    assert_equal(got, state, by_ops(rule, params, grads, param_format, 11))


def test_remainders_make_exact_float32_params() -> None:
    """In bfloat16 a step of this size would be lost."""
    opt = adaptk.jax.sgd(0.5e-3, param_format="remainder16")
    params, state = jnp.ones(9, jnp.bfloat16), opt.init(jnp.ones(9, jnp.bfloat16))
    want = np.ones(9, np.float32)
    for t in range(50):
        params, state = opt.apply(params, -jnp.ones(9), state)
        adaptk.ops.sgd(want, -np.ones(9, np.float32), step=1 + t, lr=0.5e-3)
    master = formats.join_param(np.array(params), np.array(state.side), "remainder16")
    assert same_bits(master, want)
    assert int(state.state.count) == 50


@pytest.mark.parametrize("param_format", ["sr", "remainder8"])
def test_packed_states_and_codes(param_format: str) -> None:
    params, grads = randoms(0), [randoms(1, np.float32), randoms(2, BF16)]
    packed = adaptk.jax.adam(0.0123, packed=True, state_dtype="bfloat16_sr", param_format=param_format, seed=3)
    plain = adaptk.jax.adam(0.0123, state_dtype="bfloat16_sr", param_format=param_format, seed=3)
    coded = adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0, param_format=param_format, seed=3)
    (a, one), (b, other) = run(packed, params, grads), run(plain, params, grads)
    assert all(same_bits(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    if param_format != "sr":
        assert all(same_bits(x, y) for x, y in zip(jax.tree.leaves(one.side), jax.tree.leaves(other.side), strict=True))
    c, _ = run(coded, params, grads)
    theirs = [np.array(x) for x in jax.tree.leaves(params)]
    objects = adaptk.Adam(theirs, 0.0123, state_dtype="8bit", min_8bit_size=0, param_format=param_format, seed=3)
    for g in grads:
        objects.step(jax.tree.leaves(g))
    assert all(same_bits(x, y) for x, y in zip(jax.tree.leaves(c), theirs, strict=True))


@pytest.mark.parametrize("param_format", formats.PARAM_FORMATS)
def test_vmap(param_format: str) -> None:
    """Each member has the bits of a separate step."""
    opt = adaptk.jax.adam(0.0123, param_format=param_format, seed=5)
    members = [randoms(10 * k) for k in range(3)]
    grads = [randoms(10 * k + 1, np.float32) for k in range(3)]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    states = stack([opt.init(on_device(p)) for p in members])
    params, states = jax.vmap(opt.apply)(stack(members), stack(grads), states)
    for k in range(3):
        got = jax.tree.map(lambda x, k=k: x[k], (params, states))
        assert_equal(*got, by_ops("adam", members[k], [grads[k]], param_format, 5))


def test_parts_over_devices() -> None:
    """A mesh of one device runs the same code as one of many."""
    mesh = Mesh(np.array(jax.devices()[:1]), "x")
    place = NamedSharding(mesh, PartitionSpec("x"))
    start, gradient = np.linspace(-1, 1, 64).astype(BF16), np.linspace(1, 2, 64, dtype=np.float32)
    opt = adaptk.jax.adam(0.0123, param_format="remainder16")
    cut = jax.device_put(start, place)
    state = opt.init(cut)
    assert state.side.sharding.is_equivalent_to(place, 1)
    got, state = opt.apply(cut, jax.device_put(gradient, place), state)
    want, other = opt.apply(jnp.array(start), jnp.array(gradient), opt.init(jnp.array(start)))
    assert same_bits(got, want)
    assert same_bits(state.side, other.side)
    rounded = adaptk.jax.adam(0.0123, param_format="sr")
    cut = jax.device_put(jnp.ones(64, jnp.bfloat16), place)
    with pytest.raises(ValueError, match="param_format: sr, and params that are cut into parts"):
        rounded.apply(cut, jax.device_put(gradient, place), rounded.init(cut))


def test_pickle_and_repr() -> None:
    opt = adaptk.jax.adam(0.1, param_format="kahan")
    assert (
        repr(pickle.loads(pickle.dumps(opt))) == repr(opt) == "adaptk.jax.adam(learning_rate=0.1, param_format='kahan')"
    )
    state = pickle.loads(pickle.dumps(opt.init(jnp.ones(3, jnp.bfloat16))))
    assert isinstance(state, adaptk.jax.SplitState)
    assert state.side.dtype == jnp.bfloat16


def test_errors() -> None:
    with pytest.raises(ValueError, match="param_format: 'remainder' is unknown"):
        adaptk.jax.adam(param_format="remainder")
    opt = adaptk.jax.adam(param_format="remainder16")
    p = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}
    g = jax.tree.map(jnp.ones_like, p)
    with pytest.raises(TypeError, match=r"params\['w'\]: dtype float16 cannot be stored as 'remainder16'"):
        opt.init({"w": jnp.ones(3, jnp.float16)})
    state = opt.init(p)
    with pytest.raises(ValueError, match=r"param_format: 'remainder16' has no updates .* use apply"):
        opt.update(g, state, p)
    with pytest.raises(TypeError, match="state: expected a SplitState of init, got AdamState"):
        opt.apply(p, g, state.state)
    for side, error, text in [
        ({"w": None, "b": None}, TypeError, r"state.side\['w'\]: NoneType, expected an array of int16"),
        ({"w": jnp.zeros(3, jnp.int8), "b": None}, TypeError, r"state.side\['w'\]: dtype int8, expected int16"),
        ({"w": jnp.zeros(4, jnp.int16), "b": None}, ValueError, r"state.side\['w'\]: shape \(4,\), expected \(3,\)"),
        ({"w": jnp.zeros(3, jnp.int16), "b": jnp.zeros(2)}, TypeError, r"state.side\['b'\]: .* expected None"),
        ({"w": jnp.zeros(3, jnp.int16)}, ValueError, "state.side: its tree is"),
    ]:
        with pytest.raises(error, match=text):
            opt.apply(p, g, adaptk.jax.SplitState(state.state, side))
    kahan = adaptk.jax.adam(param_format="kahan")
    q = {"w": jnp.zeros(3, jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"state.side\['w'\]: the array is params\['w'\] too"):
        kahan.apply(q, {"w": g["w"]}, adaptk.jax.SplitState(kahan.init(q).state, q))
