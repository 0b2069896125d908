"""adaptk.jax with states that have codes, scales or stochastic rounding: the bits of adaptk.ops; trees; errors."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import Array, first_tier, same_bits

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
pytest.importorskip("adaptk._jax", reason="this build was made without jaxlib's headers", exc_type=ImportError)

import adaptk.jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

RULES = adaptk.rules()
WITH_STATES = [name for name, rule in RULES.items() if rule.states]
STATE_DTYPES = ["8bit", "8bit_nearest", "bfloat16_sr", "float16_sr", "8bit_dynamic", "fp8_e4m3", "4bit"]
Stored = adaptk.jax.Stored

SHAPES = {"a": (7,), "b": [(70, 3), (), (0,)], "c": (64, 67)}
DONATE = (0, 2)
WAYS: dict[str, Callable[[Any], Any]] = {
    "eager": lambda opt: opt.apply,
    "jit": lambda opt: jax.jit(opt.apply),
    "donated": lambda opt: jax.jit(opt.apply, donate_argnums=DONATE),
}


def is_stored(x: Any) -> bool:
    return isinstance(x, formats.Stored)


def leaves(tree: Any) -> list[Any]:
    """The leaves of params, or of states with each Stored as one leaf."""
    found: list[Any] = jax.tree.leaves(tree, is_leaf=is_stored)
    return found


def randoms(seed: int, shapes: Any = SHAPES) -> Any:
    rng = np.random.default_rng(seed)
    make = partial(rng.standard_normal, dtype=np.float32)
    return jax.tree.map(lambda s: np.asarray(make(s)), shapes, is_leaf=lambda s: isinstance(s, tuple))


def on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.array, tree)


def starts(rule: str, params: Sequence[Array], state_dtype: Any, size: int, lr: float) -> list[list[Any]]:
    initial = RULES[rule].initial_states("book", {"lr": lr})
    dtypes = formats.check_state_dtype(state_dtype, RULES[rule].states)
    return [
        [
            formats.full_like(p, initial[s.name], formats.format_of(dtypes.get(s.name, "float32"), s, p.size, size))
            for p in params
        ]
        for s in RULES[rule].states
    ]


def by_ops(
    rule: str, params: Any, grads: Sequence[Any], state_dtype: Any, *, size: int = 0, seed: int = 0, lr: float = 0.0123
) -> list[list[Any]]:
    """Params and states after a step of adaptk.ops for each of the gradients."""
    arrays = [np.array(x) for x in leaves(params)]
    states = starts(rule, arrays, state_dtype, size, lr)
    for t, g in enumerate(grads, start=1):
        getattr(adaptk.ops, rule)(arrays, leaves(g), *states, step=t, lr=lr, seed=seed)
    return [arrays, *states]


def assert_equal(params: Any, state: Any, want: list[list[Any]]) -> None:
    got = [leaves(params), *(leaves(s) for s in state[1:])]
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert is_stored(a) == is_stored(b)
            if is_stored(a):
                assert isinstance(a, Stored)
                assert a.format == b.format
                assert same_bits(a.data, b.data)
                assert (a.scales is None) == (b.scales is None)
                assert a.scales is None or same_bits(a.scales, b.scales)
            else:
                assert same_bits(a, b)


def run(opt: Any, params: Any, grads: Sequence[Any], step: Callable[..., Any] | None = None) -> tuple[Any, Any]:
    params = on_device(params)
    state = opt.init(params)
    for g in grads:
        params, state = (step or opt.apply)(params, on_device(g), state)
    return params, state


# The same bits


def some_formats(rule: str) -> list[str]:
    """Two formats per rule, which vary, and all formats with one rule: for code that does not depend on the rule."""
    at = WITH_STATES.index(rule)
    return STATE_DTYPES if rule == "adam" else [STATE_DTYPES[(at + i) % len(STATE_DTYPES)] for i in (0, 3)]


# Every rule and format in place; the other interfaces, which end in the same call, with some formats per rule.
@pytest.mark.parametrize(
    ("way", "state_dtype", "rule"),
    [
        pytest.param(way, kind, rule, marks=() if way == "donated" else pytest.mark.full)
        for way in WAYS
        for kind in STATE_DTYPES
        for rule in WITH_STATES
        if way == "donated" or kind in some_formats(rule)
    ],
)
def test_steps_match_ops(rule: str, state_dtype: str, way: str) -> None:
    opt = getattr(adaptk.jax, rule)(0.0123, state_dtype=state_dtype, min_8bit_size=0, seed=11)
    params, grads = randoms(0), [randoms(1 + t) for t in range(4)]
    got, state = run(opt, params, grads, WAYS[way](opt))
    assert_equal(got, state, by_ops(rule, params, grads, state_dtype, seed=11))
    assert int(state.count) == 4


def test_a_rule_without_states() -> None:
    opt = adaptk.jax.sgd(0.0123, state_dtype="8bit", seed=2)
    params, grads = randoms(0), [randoms(1)]
    got, state = run(opt, params, grads)
    assert_equal(got, state, by_ops("sgd", params, grads, {}))


def test_steps_match_the_objects() -> None:
    """Tensors are numbered like the leaves, and small ones stay in float32."""
    params, grads = randoms(0), [randoms(1 + t) for t in range(3)]
    opt = adaptk.jax.adamw(0.01, state_dtype="8bit", seed=5)
    got, state = run(opt, params, grads)
    assert [is_stored(x) for x in leaves(state.exp_avg)] == [False, False, False, False, True]
    arrays = [np.array(x) for x in leaves(params)]
    theirs = adaptk.AdamW(arrays, 0.01, state_dtype="8bit", seed=5)
    for g in grads:
        theirs.step(leaves(g))
    states = [[theirs.state[i][name] for i in range(len(arrays))] for name in ("exp_avg", "exp_avg_sq")]
    assert_equal(got, state, [arrays, *states])


@pytest.mark.parametrize("size", [0, 210, 211, 4288, 4289])
def test_the_least_size(size: int) -> None:
    params, grads = randoms(0), [randoms(1), randoms(2)]
    opt = adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=size)
    got, state = run(opt, params, grads)
    assert [is_stored(x) for x in leaves(state.exp_avg_sq)] == [x.size >= size for x in leaves(params)]
    assert_equal(got, state, by_ops("adam", params, grads, "8bit", size=size))


@pytest.mark.parametrize(
    "state_dtype",
    [{"exp_avg": "bfloat16_sr", "exp_avg_sq": "8bit"}, {"exp_avg_sq": "8bit_nearest"}, {"exp_avg": "bfloat16"}, {}],
    ids=str,
)
def test_a_format_for_each_state(state_dtype: dict[str, str]) -> None:
    params, grads = randoms(0), [randoms(1), randoms(2)]
    got, state = run(adaptk.jax.adam(0.0123, state_dtype=state_dtype, min_8bit_size=0), params, grads)
    assert_equal(got, state, by_ops("adam", params, grads, state_dtype))


@pytest.mark.parametrize("packed", [False, True], ids=["tree", "packed"])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "float16", "bfloat16_sr", "float16_sr"])
def test_formats_without_scales(state_dtype: str, packed: bool) -> None:
    """Also packed, with each tensor's own random bits."""
    params, grads = randoms(0), [randoms(1), randoms(2)]
    opt = adaptk.jax.adam(0.0123, state_dtype=state_dtype, packed=packed, seed=4)
    got, state = run(opt, params, grads, WAYS["donated"](opt))
    want = by_ops("adam", params, grads, state_dtype, seed=4)
    if not packed:
        assert_equal(got, state, want)
        return
    assert all(same_bits(a, b) for a, b in zip(leaves(got), want[0], strict=True))
    for mine, theirs in zip(state[1:], want[1:], strict=True):
        (flat,) = leaves(mine)
        assert is_stored(flat) == (state_dtype in ("bfloat16_sr", "float16_sr"))
        rest = np.asarray(flat.data if is_stored(flat) else flat)
        for x in theirs:
            x = np.asarray(x.data if is_stored(x) else x)
            assert same_bits(rest[: x.size], x.ravel())
            rest = rest[-(-x.size // 16) * 16 :]
        assert rest.size == 0


@pytest.mark.parametrize("packed", [False, True], ids=["tree", "packed"])
def test_wide_params_keep_wide_states_and_their_numbers(packed: bool) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params, grads = ([rng.normal(size=300).astype(t) for t in ("f8", "f4", "f8", "f4")] for _ in range(2))
        opt = adaptk.jax.adam(0.01, state_dtype="bfloat16_sr", packed=packed, seed=9)
        got, state = run(opt, params, [grads, grads])
        want = [np.array(x) for x in params]
        theirs = adaptk.Adam(want, 0.01, state_dtype="bfloat16_sr", seed=9)
        for _ in range(2):
            theirs.step(grads)
        assert all(same_bits(a, b) for a, b in zip(got, want, strict=True))
        found = {str(x.dtype) for x in jax.tree.leaves(state[1:])}
        assert found == {"float64", "bfloat16"}


@pytest.mark.parametrize("state_dtype", first_tier(STATE_DTYPES, "8bit"))
def test_more_arrays_than_one_call_takes(state_dtype: str) -> None:
    """A call updates at most 192 arrays, and the numbering of tensors continues in the next one."""
    rng = np.random.default_rng(0)
    shapes = [(int(n),) for n in rng.integers(0, 40, size=90)]
    params, grads = randoms(0, shapes), [randoms(1, shapes), randoms(2, shapes)]
    opt = adaptk.jax.adam(0.0123, state_dtype=state_dtype, min_8bit_size=20, seed=1)
    got, state = run(opt, params, grads, WAYS["donated"](opt))
    assert_equal(got, state, by_ops("adam", params, grads, state_dtype, size=20, seed=1))
    lowered = jax.jit(opt.apply).lower(got, params, state).as_text()
    arrays = len(jax.tree.leaves((got, state[1:])))
    assert lowered.count("@adaptk_step") == -(-arrays // 192) > 1


def test_threads(threads: int) -> None:
    shapes = [(300_000,), (300_001,)]
    params, grads = randoms(0, shapes), [randoms(1, shapes), randoms(2, shapes)]
    opt = adaptk.jax.adam(0.0123, state_dtype="8bit", seed=3)
    got, state = run(opt, params, grads)
    assert_equal(got, state, by_ops("adam", params, grads, "8bit", seed=3))


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_seeds(seed: int) -> None:
    params, grads = randoms(0), [randoms(1), randoms(2)]
    got, state = run(adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0, seed=seed), params, grads)
    assert_equal(got, state, by_ops("adam", params, grads, "8bit", seed=seed))
    _, other = run(adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0, seed=7), params, grads)
    assert not same_bits(state.exp_avg_sq["c"].data, other.exp_avg_sq["c"].data)
    assert same_bits(state.exp_avg["c"].data, other.exp_avg["c"].data)


def test_param_and_gradient_dtypes() -> None:
    for param in (jnp.bfloat16, jnp.float16):
        params = jax.tree.map(lambda x: x.astype(param), on_device(randoms(0)))  # noqa: B023
        grads = randoms(1)
        opt = adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0)
        want = by_ops("adam", params, [grads], "8bit")
        got, state = opt.apply(params, on_device(grads), opt.init(params))
        assert_equal(got, state, want)


def test_an_infinite_gradient_affects_its_element_only() -> None:
    params = {"a": np.ones(300, np.float32)}
    bad = {"a": np.ones(300, np.float32)}
    bad["a"][7] = np.inf
    got, state = run(adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0), params, [bad, bad])
    assert np.flatnonzero(np.isnan(np.asarray(got["a"]))).tolist() == [7]
    assert np.isfinite(np.asarray(state.exp_avg["a"].scales)).all()


# Buffers


def pointers(*trees: Any) -> list[int]:
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(trees) if x.size]


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("way", ["eager", "donated"])
def test_the_step_is_in_place(way: str, state_dtype: str) -> None:
    opt = adaptk.jax.adam(0.1, state_dtype=state_dtype, min_8bit_size=0)
    step = WAYS[way](opt)
    params, grads = on_device(randoms(0)), on_device(randoms(1))
    state = opt.init(params)
    old = jax.tree.leaves((params, state))
    before = pointers(params, state[1:])
    for _ in range(3):
        params, state = step(params, grads, state)
        assert pointers(params, state[1:]) == before
    assert all(x.is_deleted() for x in old)
    assert not any(x.is_deleted() for x in jax.tree.leaves(grads))


def test_arrays_that_are_not_donated_stay() -> None:
    params, grads = on_device(randoms(0)), on_device(randoms(1))
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
    state = opt.init(params)
    before = [np.array(x) for x in jax.tree.leaves((params, state))]
    for step in (jax.jit(opt.apply), lambda p, g, s: opt.update(g, s, p)):
        step(params, grads, state)
        assert all(same_bits(a, b) for a, b in zip(jax.tree.leaves((params, state)), before, strict=True))


def test_memory_of_a_compiled_step() -> None:
    opt = adaptk.jax.adam(0.1, state_dtype="8bit")
    params = jnp.ones((512, 512))
    state = opt.init(params)
    assert sum(x.nbytes for x in jax.tree.leaves(state[1:])) == (2 + 8 / 128) * params.size
    memory = jax.jit(opt.apply, donate_argnums=DONATE).lower(params, params, state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 3000


def test_an_array_donated_twice() -> None:
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
    params = {"a": jnp.ones(3)}
    state = opt.init(params)
    shared = Stored(state.exp_avg_sq["a"].data, state.exp_avg["a"].scales, "uint8")
    with pytest.raises(ValueError, match=r"state\.exp_avg_sq\['a'\]: the array is state\.exp_avg\['a'\] too"):
        opt.apply(params, {"a": jnp.ones(3)}, state._replace(exp_avg_sq={"a": shared}))
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, state)))


# Updates, loops, vmap


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_updates_have_the_states_of_the_step(state_dtype: str) -> None:
    opt = adaptk.jax.adam(0.0123, state_dtype=state_dtype, min_8bit_size=0, seed=3)
    params = on_device(randoms(0))
    state = opt.init(params)
    for t in range(3):
        grads = on_device(randoms(1 + t))
        stepped, after = jax.jit(opt.apply)(params, grads, state)
        updates, state = jax.jit(opt.update)(grads, state, params)
        assert_equal(params, state, [leaves(params), *(leaves(s) for s in after[1:])])
        for u, new, old in zip(leaves(updates), leaves(stepped), leaves(params), strict=True):
            assert same_bits(u, new - old)
        params = stepped


def test_wrappers_of_optax() -> None:
    optax = pytest.importorskip("optax")
    make = partial(adaptk.jax.adam, state_dtype="8bit")
    params, grads = on_device(randoms(0)), on_device(randoms(1))
    plain, _ = make(0.1).update(grads, make(0.1).init(params), params)
    chained = optax.chain(optax.scale(1.0), make(0.1))
    every = optax.MultiSteps(make(0.1), every_k_schedule=1)
    injected = optax.inject_hyperparams(make)(learning_rate=0.1)
    for opt in (chained, every, injected):
        updates, state = jax.jit(opt.update)(grads, opt.init(params), params)
        np.testing.assert_allclose(updates["c"], plain["c"], rtol=1e-5)
        assert [x.format for x in leaves(state) if is_stored(x)] == ["int8", "uint8"]
    masked = optax.masked(make(0.1), {"a": False, "b": [True, False, False], "c": True})
    updates, state = jax.jit(masked.update)(grads, masked.init(params), params)
    np.testing.assert_allclose(updates["c"], plain["c"], rtol=1e-5)
    assert same_bits(updates["a"], grads["a"])
    static = optax.inject_hyperparams(adaptk.jax.adam, static_args=("seed", "min_8bit_size"))
    opt = static(learning_rate=0.1, state_dtype="8bit", seed=3, min_8bit_size=10_000)
    assert not any(is_stored(x) for x in leaves(opt.init(params)))


def test_loops_of_jax() -> None:
    opt = adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0, seed=3)
    params, grads = randoms(0), [randoms(1 + t) for t in range(5)]
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)

    @partial(jax.jit, donate_argnums=0)
    def train(params: Any) -> Any:
        return jax.lax.scan(lambda c, g: (opt.apply(c[0], g, c[1]), None), (params, opt.init(params)), stacked)[0]

    got, state = train(on_device(params))
    assert_equal(got, state, by_ops("adam", params, grads, "8bit", seed=3))


def stacked(seeds: Sequence[int], shapes: Any = SHAPES) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *(randoms(s, shapes) for s in seeds))


def member(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(np.asarray(x)[i]), tree)


@pytest.mark.parametrize(
    ("rule", "state_dtype"),
    [
        pytest.param(rule, kind, marks=() if rule in ("adam", "delta_bar_delta") else pytest.mark.full)
        for rule in WITH_STATES
        for kind in some_formats(rule)
    ],
)
def test_vmap_steps_each_member_as_if_it_were_alone(rule: str, state_dtype: str) -> None:
    """Each member has its own blocks, also if its elements do not fill the last one, and its own random bits."""
    opt = getattr(adaptk.jax, rule)(0.0123, state_dtype=state_dtype, min_8bit_size=0, seed=6)
    params, grads = stacked(range(3)), [stacked(range(3, 6)), stacked(range(6, 9))]
    state = jax.vmap(opt.init)(params)
    got: Any = params
    for g in grads:
        got, state = jax.jit(jax.vmap(opt.apply))(got, g, state)
    assert state.count.tolist() == [2, 2, 2]
    for i in range(3):
        want = by_ops(rule, member(params, i), [member(g, i) for g in grads], state_dtype, seed=6)
        assert_equal(member(got, i), member(state, i), want)


def test_vmap_of_members_at_different_steps() -> None:
    opt = adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0, seed=6)
    params, grads = randoms(0), [randoms(1), randoms(2)]
    one = run(opt, params, grads[:1])
    two = run(opt, params, grads)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two)
    got, state = jax.vmap(opt.apply, in_axes=(0, None, 0))(both[0], grads[0], both[1])
    for i, before in enumerate((grads[:1], grads)):
        want = by_ops("adam", params, [*before, grads[0]], "8bit", seed=6)
        assert_equal(member(got, i), member(state, i), want)


def test_nested_vmap_and_no_members() -> None:
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
    rng = np.random.default_rng(0)
    params, grads = (rng.normal(size=(2, 3, 130)).astype(np.float32) for _ in range(2))

    def one(p: Any, g: Any) -> Any:
        return opt.apply(p, g, opt.init(p))

    got, state = jax.vmap(jax.vmap(one))(params, grads)
    assert state.exp_avg.scales.shape == (2, 3, 2)
    for i in range(2):
        for j in range(3):
            want, alone = one(jnp.array(params[i, j]), grads[i, j])
            assert same_bits(got[i, j], want)
            assert same_bits(state.exp_avg_sq.data[i, j], alone.exp_avg_sq.data)
            assert same_bits(state.exp_avg_sq.scales[i, j], alone.exp_avg_sq.scales)
    empty, state = jax.vmap(one)(jnp.ones((2, 0)), jnp.ones((2, 0)))
    assert empty.shape == (2, 0)
    assert state.exp_avg.scales.shape == (2, 0)


def test_derivatives_are_refused() -> None:
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
    with pytest.raises(TypeError, match=r"adaptk\.jax\.adam: a step has no derivative here"):
        jax.grad(lambda p: opt.apply(p, p, opt.init(p))[0].sum())(jnp.ones(3))


# Initial values


def test_nonzero_initial_values() -> None:
    params = {"a": jnp.ones(300)}
    for rate in (0.25, jnp.float32(0.25), lambda count: 0.25 + count, adaptk.schedules.constant(0.25)):
        opt = adaptk.jax.delta_bar_delta(rate, state_dtype="8bit", min_8bit_size=0)
        for state in (opt.init(params), jax.jit(opt.init)(params)):
            eta = jax.tree.map(np.array, state.eta["a"])
            assert eta.format == "uint8"
            assert formats.dequantize(eta).tolist() == [0.25] * 300
    packed = adaptk.jax.delta_bar_delta(0.25, state_dtype="bfloat16_sr", packed=True).init(params)
    assert packed.eta[0].data.tolist() == [0.25] * 304


@pytest.mark.parametrize("packed", [False, True], ids=["tree", "packed"])
def test_initial_values_that_are_traced(packed: bool) -> None:
    params = {"a": jnp.ones(300)}

    def start(lr: Any, state_dtype: Any) -> Any:
        return adaptk.jax.delta_bar_delta(lr, state_dtype=state_dtype, packed=packed).init(params)

    message = "state_dtype: eta starts as lr, which is traced here, and a traced number is not encoded"
    with pytest.raises(TypeError, match=message):
        jax.jit(partial(start, state_dtype="bfloat16_sr"))(0.25)
    state = jax.jit(partial(start, state_dtype={"bar": "bfloat16_sr"}))(0.25)
    assert jax.tree.leaves(state.eta)[0][:300].tolist() == [0.25] * 300


def test_states_are_on_the_devices_of_their_params() -> None:
    device = jax.devices()[0]
    params = jax.device_put(jnp.ones(300), device)
    state = adaptk.jax.adam(state_dtype="8bit", min_8bit_size=0).init(params)
    for x in jax.tree.leaves(state[1:]):
        assert x.committed
        assert x.devices() == {device}
    assert not any(x.committed for x in jax.tree.leaves(adaptk.jax.adam(state_dtype="8bit").init(jnp.ones(5000))))


# Trees


def test_trees() -> None:
    stored = Stored(jnp.zeros(300, jnp.int8), jnp.ones(3), "int8")
    assert isinstance(stored, formats.Stored)
    flat, tree = jax.tree.flatten(stored)
    assert [x.shape for x in flat] == [(300,), (3,)]
    again = jax.tree.unflatten(tree, flat)
    assert type(again) is Stored
    assert again.format == "int8"
    assert tree != jax.tree.structure(stored._replace(format="uint8"))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path({"w": stored})[0]]
    assert paths == ["['w'].data", "['w'].scales"]
    assert len(jax.tree.leaves(Stored(jnp.zeros(3, jnp.bfloat16), None, "bfloat16_sr"))) == 1
    for other in (pickle.loads(pickle.dumps(stored)), copy.deepcopy(stored)):
        assert type(other) is Stored
        assert same_bits(other.data, stored.data)


def test_resuming_is_bit_exact() -> None:
    """The leaves from an .npz file, the tree from init."""
    opt = adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0, seed=8)
    params, grads = randoms(0), [randoms(1 + t) for t in range(4)]
    half = run(opt, params, grads[:2])
    saved = [np.array(x) for x in jax.tree.leaves(half)]
    like = jax.eval_shape(lambda p: (p, opt.init(p)), on_device(params))
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(like)] == [(x.shape, x.dtype) for x in saved]
    got, state = jax.tree.unflatten(jax.tree.structure(like), saved)
    for g in grads[2:]:
        got, state = opt.apply(got, g, state)
    assert_equal(got, state, by_ops("adam", params, grads, "8bit", seed=8))
    both = pickle.loads(pickle.dumps(half))
    got, state = both
    for g in grads[2:]:
        got, state = opt.apply(got, g, state)
    assert_equal(got, state, by_ops("adam", params, grads, "8bit", seed=8))


def test_a_step_keeps_the_formats_of_its_states() -> None:
    """States from formats.quantize, with an optimizer that would create others."""
    x = randoms(0)
    numpys = [np.array(v) for v in leaves(x)]
    states = [[formats.quantize(np.array(np.abs(v)), name) for v in numpys] for name in ("int8", "uint8_nearest")]
    tree = jax.tree.structure(x)
    opt = adaptk.jax.adam(0.0123, seed=2)
    for wrap in (lambda s: s, lambda s: Stored(*s)):
        given = [jax.tree.unflatten(tree, [wrap(s) for s in copy.deepcopy(of)]) for of in states]
        got, state = opt.apply(on_device(x), on_device(x), adaptk.jax.AdamState(jnp.int32(0), *given))
        want = [[np.array(v) for v in numpys], *copy.deepcopy(states)]
        adaptk.ops.adam(want[0], numpys, *want[1:], step=1, lr=0.0123, seed=2)
        assert_equal(got, state, want)


def test_the_objects() -> None:
    opt = adaptk.jax.adam(0.1, state_dtype={"exp_avg": "8bit"}, min_8bit_size=7, seed=3)
    assert repr(opt).endswith("adam(learning_rate=0.1, state_dtype={'exp_avg': '8bit'}, min_8bit_size=7, seed=3)")
    other = pickle.loads(pickle.dumps(opt))
    assert is_stored(other.init(jnp.ones(7)).exp_avg)
    assert not is_stored(other.init(jnp.ones(6)).exp_avg)
    assert not is_stored(other.init(jnp.ones(7)).exp_avg_sq)


# Errors


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"state_dtype": "9bit"}, ValueError, "state_dtype: '9bit', expected 'float32', 'bfloat16'"),
        ({"state_dtype": {"v": "8bit"}}, ValueError, "state_dtype: no state 'v'; there are exp_avg, exp_avg_sq"),
        ({"state_dtype": 8}, TypeError, "state_dtype: expected a dtype's name .*, got 8"),
        ({"min_8bit_size": -1}, ValueError, "min_8bit_size: -1 is below 0"),
        ({"min_8bit_size": 1.5}, TypeError, "min_8bit_size: expected an int, got float"),
        ({"seed": 2**63}, ValueError, r"seed: 9223372036854775808 is not in \[0, 2\*\*63\)"),
        ({"seed": -1}, ValueError, "seed: -1 is not in"),
        ({"seed": "1"}, TypeError, "seed: expected an int, got str"),
        ({"seed": jnp.int32(1)}, TypeError, "seed: expected an int, got ArrayImpl"),
        (
            {"state_dtype": {"exp_avg_sq": "8bit"}, "packed": True},
            ValueError,
            "packed: states in 8 bits have scales, which are not packed; use packed=False",
        ),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        adaptk.jax.adam(**options)


CODES, SCALES = np.zeros((4, 64), np.int8), np.zeros(2, np.float32)
WRONG: list[tuple[Any, type[Exception], str]] = [
    (Stored(CODES, SCALES, "int9"), ValueError, r": format 'int9', expected 'bfloat16_sr', 'float16_sr', 'int8'"),
    (Stored(CODES, SCALES, "bfloat16"), ValueError, r": format 'bfloat16', expected 'bfloat16_sr'"),
    (Stored(CODES, SCALES, "uint8"), TypeError, r"\.data: dtype int8, expected uint8 for uint8"),
    (Stored(CODES, SCALES, "bfloat16_sr"), TypeError, r"\.data: dtype int8, expected bfloat16 for bfloat16_sr"),
    (Stored("x", SCALES, "int8"), TypeError, r"\.data: expected an array, got str"),
    (Stored(None, SCALES, "int8"), TypeError, r"\.data: expected an array, got NoneType"),
    (Stored(CODES[:3], SCALES, "int8"), ValueError, r"\.data: shape \(3, 64\), expected \(4, 64\)"),
    (Stored(CODES, None, "int8"), TypeError, r"\.scales: None, expected float32 of shape \(2,\) for int8"),
    (Stored(CODES, "x", "int8"), TypeError, r"\.scales: expected an array, got str"),
    (Stored(CODES, SCALES.astype(np.float16), "int8"), TypeError, r"\.scales: dtype float16, expected float32"),
    (Stored(CODES, SCALES[:1], "int8"), ValueError, r"\.scales: shape \(1,\), expected \(2,\): one for each 128"),
    (Stored(CODES, SCALES[None], "int8"), ValueError, r"\.scales: shape \(1, 2\), expected \(2,\)"),
    (
        Stored(jnp.zeros((4, 64), jnp.bfloat16), SCALES, "bfloat16_sr"),
        TypeError,
        r"\.scales: an array, but bfloat16_sr has no scales; expected None",
    ),
    (CODES, TypeError, r": dtype int8, expected float32 beside a float32 param, or bfloat16 or float16, or an adaptk"),
]


@pytest.mark.parametrize(("given", "exception", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_mismatched_states(given: Any, exception: type[Exception], message: str) -> None:
    params = {"w": jnp.ones((4, 64))}
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
    state = opt.init(params)
    with pytest.raises(exception, match=r"state\.exp_avg\['w'\]" + message):
        opt.apply(params, {"w": jnp.ones((4, 64))}, state._replace(exp_avg={"w": given}))
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, state)))


def test_states_with_codes_of_wide_params() -> None:
    with jax.enable_x64(True):
        params = jnp.ones(3, jnp.float64)
        opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
        state = opt.init(params)
        assert state.exp_avg.dtype == jnp.float64
        stored = Stored(jnp.zeros(3, jnp.int8), jnp.ones(1), "int8")
        with pytest.raises(TypeError, match=r"state\.exp_avg: int8, expected float64 beside a float64 param"):
            opt.apply(params, params + 0, state._replace(exp_avg=stored))


def test_mismatched_packed_states() -> None:
    opt = adaptk.jax.adam(0.1, state_dtype="bfloat16_sr", packed=True)
    params = jnp.ones(300)
    state = opt.init(params)
    coded = Stored(jnp.zeros(304, jnp.int8), jnp.ones(3), "int8")
    with pytest.raises(ValueError, match=r"state\.exp_avg\[0\]: int8 has scales, which are not packed"):
        opt.apply(params, params + 0, state._replace(exp_avg=(coded,)))
    with pytest.raises(ValueError, match=r"state\.exp_avg\[0\]\.data: shape \(300,\), expected \(304,\)"):
        opt.apply(params, params + 0, state._replace(exp_avg=(state.exp_avg[0]._replace(data=state[1][0].data[:300]),)))
    with pytest.raises(ValueError, match=r"state\.exp_avg: expected 1 packed arrays"):
        opt.apply(params, params + 0, state._replace(exp_avg=state.exp_avg[0]))


# Several devices

SHARDED = """
import jax, jax.numpy as jnp, numpy as np, adaptk, adaptk.jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

assert len(jax.devices()) == 4
rng = np.random.default_rng(0)
p0, *grads = (rng.normal(size=(8, 96)).astype(np.float32) for _ in range(3))
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    cut = NamedSharding(mesh, P("x"))
    for state_dtype in ("8bit", "bfloat16_sr"):
        opt = adaptk.jax.adam(0.1, state_dtype=state_dtype, min_8bit_size=0, seed=3)
        p = jax.device_put(p0, cut)
        whole = opt.init(jnp.array(p0))
        refused = [lambda: opt.init(p), lambda: opt.apply(p, jax.device_put(grads[0], cut), whole)]
        if kind == AxisType.Explicit:
            refused += [lambda: jax.jit(opt.init)(p), lambda: jax.jit(opt.apply)(p, jax.device_put(p0, cut), whole)]
        for call in refused:
            try:
                call()
            except ValueError as error:
                assert "cut into parts over several devices; call init and apply within jax.shard_map" in str(error)
            else:
                raise AssertionError
        layout = jax.tree.map(lambda x: P("x") if x.ndim else P(), whole)
        for check in (True, False):
            init = jax.jit(jax.shard_map(opt.init, mesh=mesh, in_specs=P("x"), out_specs=layout, check_vma=check))
            step = jax.jit(jax.shard_map(opt.apply, mesh=mesh, in_specs=(P("x"), P("x"), layout),
                                         out_specs=(P("x"), layout), check_vma=check), donate_argnums=(0, 2))
            p = jax.device_put(p0, cut)
            s = init(p)
            for t, g in enumerate(grads):
                p, s = step(p, jax.device_put(g, cut), s)
                if t == 0:
                    places = [x.data.unsafe_buffer_pointer() for x in p.addressable_shards]
            assert places == [x.data.unsafe_buffer_pointer() for x in p.addressable_shards]
            # Each part is stepped as if it were alone.
            for k, shard in enumerate(p.addressable_shards):
                w = jnp.array(p0[2 * k : 2 * k + 2])
                alone = opt.init(w)
                for g in grads:
                    w, alone = opt.apply(w, g[2 * k : 2 * k + 2], alone)
                mine = [x.addressable_shards[k].data for x in jax.tree.leaves(s[1:])]
                for a, b in zip([shard.data, *mine], [w, *jax.tree.leaves(alone[1:])], strict=True):
                    assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), (kind, state_dtype, check, k)
    # Whole copies on every device.
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
    everywhere = NamedSharding(mesh, P(None, None))
    p = jax.device_put(p0, everywhere)
    s = opt.init(p)
    assert s.exp_avg.scales.sharding.device_set == p.sharding.device_set
    w = jnp.array(p0)
    alone = opt.init(w)
    for g in grads:
        p, s = opt.apply(p, jax.device_put(g, everywhere), s)
        w, alone = opt.apply(w, g, alone)
    for a, b in zip(jax.tree.leaves((p, s)), jax.tree.leaves((w, alone)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
other = jax.device_put(p0, jax.devices()[2])
s = adaptk.jax.adam(state_dtype="8bit", min_8bit_size=0).init(other)
assert all(x.devices() == {jax.devices()[2]} for x in jax.tree.leaves(s[1:]))
print("done")
"""


@pytest.mark.full
def test_several_devices() -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


def test_the_step_is_lowered_for_cuda() -> None:
    """Checked in the lowered module, without a device: one call, with the scales after the states, all in place."""
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0, seed=5)
    params = [jnp.ones(300), jnp.ones(200)]
    traced = jax.jit(opt.apply).trace(params, params, opt.init(params))
    for platform in ("cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        (call,) = (line for line in text.splitlines() if "@adaptk_step" in line)
        assert call.count("#stablehlo.output_operand_alias<") == 10
        assert 'formats = "int8,int8,uint8,uint8"' in call
        assert "numbers = dense<[0, 1]>" in call or "numbers = array<i32: 0, 1>" in call
        assert "seed = 5 : i64" in call
