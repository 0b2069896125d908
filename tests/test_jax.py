"""adaptk.jax against adaptk.ops, bit for bit; its buffers; JAX's transformations; optax's protocol; errors."""

from __future__ import annotations

import copy
import doctest
import inspect
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk._registry import ROW_WISE
from helpers import FLOATS, PAIRS, THREE_RULES, Array, first_tier, same_bits, state_dtype

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
pytest.importorskip("adaptk._jax", reason="this build was made without jaxlib's headers", exc_type=ImportError)

import adaptk.jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from adaptk import _jax, schedules  # noqa: E402

RULES = adaptk.rules()
COMPILED = {**RULES, **ROW_WISE}
every_rule = pytest.mark.parametrize("rule", RULES)
both_layouts = pytest.mark.parametrize("packed", [False, True], ids=["tree", "packed"])
some_rules = pytest.mark.parametrize("rule", first_tier(RULES, *THREE_RULES))

# The errors that JAX raises if a step fails at run time: one in a first call, the other later.
REFUSED = (jax.errors.JaxRuntimeError, ValueError)

SHAPES = {"bias": (3,), "layers": [(4, 5), (), (0,), (70, 3)], "none": None, "scale": (1, 1)}


def tree_of(shapes: Any, make: Callable[[tuple[int, ...]], Any]) -> Any:
    return jax.tree.map(make, shapes, is_leaf=lambda s: isinstance(s, tuple))


def randoms(seed: int, dtype: str = "float32", shapes: Any = SHAPES) -> Any:
    rng = np.random.default_rng(seed)
    return tree_of(shapes, lambda s: rng.normal(size=s).astype(FLOATS[dtype]))


def on_device(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.array(x, dtype=x.dtype), tree)


def in_numpy(
    rule: str, params: Any, grads: Sequence[Any], lrs: Sequence[float], *, initial: Any = None, **hyper: Any
) -> list[list[Array]]:
    """Params and states after a step of adaptk.ops for each of the gradients."""
    leaves = [np.array(x) for x in jax.tree.leaves(params)]
    wide = [np.dtype(state_dtype(x.dtype.name)) for x in leaves]
    if initial is None:
        initial = RULES[rule].initial_states("book", {"lr": lrs[0], **hyper})
    states = [[np.full(x.shape, v, w) for x, w in zip(leaves, wide, strict=True)] for v in initial.values()]
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        getattr(adaptk.ops, rule)(leaves, [np.asarray(x) for x in jax.tree.leaves(g)], *states, step=t, lr=lr, **hyper)
    return [leaves, *states]


def unpacked(state: Any, params: Any) -> list[list[Array]]:
    """Packed states as lists of arrays."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(params)]
    narrow = [i for i, x in enumerate(leaves) if x.dtype != np.float64]
    order = narrow + [i for i in range(len(leaves)) if i not in narrow]
    out = []
    for arrays in state[1:]:
        flat: dict[int, Array] = {}
        pieces = iter(np.asarray(a) for a in arrays)
        rest: Array = np.empty(0)
        for i in order:
            if rest.size == 0 and leaves[i].size > 0:
                rest = next(pieces)
            size = leaves[i].size
            flat[i] = rest[:size].reshape(leaves[i].shape).astype(state_dtype(leaves[i].dtype.name))
            rest = rest[-(-size // 16) * 16 :]
        out.append([flat[i] for i in range(len(leaves))])
    return out


def assert_equal(params: Any, state: Any, want: list[list[Array]], packed: bool = False) -> None:
    states = unpacked(state, params) if packed else [jax.tree.leaves(s) for s in state[1:]]
    got = [jax.tree.leaves(params), *states]
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert same_bits(a, b)


def run(opt: Any, params: Any, grads: Sequence[Any], step: Callable[..., Any] | None = None) -> tuple[Any, Any]:
    params = on_device(params)
    state = opt.init(params)
    for g in grads:
        params, state = (step or opt.apply)(params, on_device(g), state)
    return params, state


def donating(opt: Any) -> Callable[..., Any]:
    return jax.jit(opt.apply, donate_argnums=(0, 2))


WAYS: dict[str, Callable[[Any], Any]] = {
    "eager": lambda opt: opt.apply,
    "jit": lambda opt: jax.jit(opt.apply),
    "donated": donating,
}


def output(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The same bits


@every_rule
@pytest.mark.parametrize("way", first_tier(WAYS, "jit"))
@pytest.mark.parametrize("packed", first_tier([False, True], False), ids=["tree", "packed"])
def test_steps_match_ops(rule: str, way: str, packed: bool) -> None:
    opt = getattr(adaptk.jax, rule)(0.0123, packed=packed)
    params, grads = randoms(0), [randoms(1 + t) for t in range(5)]
    got, state = run(opt, params, grads, WAYS[way](opt))
    assert_equal(got, state, in_numpy(rule, params, grads, [0.0123] * 5), packed)
    assert int(state.count) == 5
    assert jax.tree.structure(got) == jax.tree.structure(params)


@some_rules
def test_hyperparameters_are_exact(rule: str) -> None:
    """None of them is exact in float32."""
    hyper: dict[str, Any] = {
        h.name: h.default * (1 + 2**-40)
        for h in RULES[rule].hyperparameters
        if not isinstance(h.default, bool) and h.name != "lr" and 0.0 < h.default < 1.0
    }
    hyper |= {"grad_scale": 1 / 3, "maximize": True}
    params, grads = randoms(0), [randoms(1), randoms(2)]
    for decay in ({"weight_decay": 0.0}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled": True}):
        values = hyper | decay
        opt = getattr(adaptk.jax, rule)(1 / 3, **values)
        got, state = run(opt, params, grads, donating(opt))
        want = in_numpy(rule, params, grads, [1 / 3] * 2, **values)
        assert_equal(got, state, want)


@pytest.mark.parametrize("rule", first_tier(THREE_RULES, "adam"))
@pytest.mark.parametrize(("param", "grad"), PAIRS)
@both_layouts
def test_dtypes(rule: str, param: str, grad: str, packed: bool) -> None:
    with jax.enable_x64(True):
        opt = getattr(adaptk.jax, rule)(0.01, packed=packed)
        params, grads = randoms(0, param), [randoms(1, grad), randoms(2, grad)]
        got, state = run(opt, params, grads, donating(opt))
        assert_equal(got, state, in_numpy(rule, params, grads, [0.01] * 2), packed)


@both_layouts
@pytest.mark.parametrize("count", first_tier([1, 64, 65, 200], 1))
def test_many_tensors_of_several_dtypes(count: int, packed: bool) -> None:
    names = list(FLOATS)
    with jax.enable_x64(True):
        rng = np.random.default_rng(count)
        params, grads = (
            [rng.normal(size=int(n)).astype(FLOATS[names[i % len(names)]]) for i, n in enumerate(range(count))]
            for _ in range(2)
        )
        opt = adaptk.jax.adam(0.01, packed=packed)
        got, state = run(opt, params, [grads], donating(opt))
        assert_equal(got, state, in_numpy("adam", params, [grads], [0.01]), packed)


def test_threads(threads: int) -> None:
    params, grads = randoms(0, shapes=[(300_000,)]), [randoms(1, shapes=[(300_000,)])]
    opt = adaptk.jax.adam(0.01)
    got, state = run(opt, params, grads, donating(opt))
    assert_equal(got, state, in_numpy("adam", params, grads, [0.01]))


@both_layouts
def test_states_in_sixteen_bits(packed: bool) -> None:
    """The rounded step of the decoded states, as in the functions on NumPy arrays."""
    opt = adaptk.jax.adam(0.01, packed=packed)
    params = on_device(randoms(1))
    state = opt.init(params)
    state = state._replace(
        exp_avg=jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.exp_avg),
        exp_avg_sq=jax.tree.map(lambda x: x.astype(jnp.float16), state.exp_avg_sq),
    )
    want = [[np.array(x) for x in jax.tree.leaves(params)]]
    want += [[np.zeros(p.shape, t) for p in want[0]] for t in (jnp.bfloat16, np.float16)]
    for step in (1, 2, 3):
        grads = randoms(10 + step)
        params, state = opt.apply(params, on_device(grads), state)
        for p, g, m, v in zip(want[0], jax.tree.leaves(grads), want[1], want[2], strict=True):
            adaptk.ops.adam(p, np.array(g), m, v, step=step, lr=0.01)
    if packed:  # whose parts assert_equal compares as float32
        want[1:] = [[x.astype(np.float32) for x in arrays] for arrays in want[1:]]
    assert_equal(params, state, want, packed)


def test_subnormal_numbers_are_kept() -> None:
    tiny = {"p": np.full(40, 1e-40, np.float32)}
    opt = adaptk.jax.sgd(0.25)
    got, state = run(opt, tiny, [tiny], donating(opt))
    assert_equal(got, state, in_numpy("sgd", tiny, [tiny], [0.25]))
    assert float(got["p"][0]) > 0.0


def test_no_tensors() -> None:
    for packed in (False, True):
        opt = adaptk.jax.adam(0.1, packed=packed)
        params, state = opt.apply({"a": None}, {"a": None}, opt.init({"a": None}))
        assert params == {"a": None}
        assert int(state.count) == 1


def test_loops_of_jax() -> None:
    opt = adaptk.jax.adam(schedules.cosine(0.1, total=6))
    params, grads = randoms(0), [randoms(1 + t) for t in range(6)]
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)

    @partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, state: Any) -> Any:
        return jax.lax.scan(lambda c, g: (opt.apply(c[0], g, c[1]), None), (params, state), stacked)[0]

    got, state = train(on_device(params), opt.init(on_device(params)))
    rate = schedules.cosine(0.1, total=6)
    assert_equal(got, state, in_numpy("adam", params, grads, [rate(t) for t in range(1, 7)]))


# Learning rates, and other numbers that are traced


@pytest.mark.parametrize("way", WAYS)
def test_schedules_are_float64(way: str) -> None:
    rate = schedules.warmup(schedules.cosine(1 / 3, total=4), steps=2)
    opt = adaptk.jax.adam(rate)
    params, grads = randoms(0), [randoms(1 + t) for t in range(6)]
    got, state = run(opt, params, grads, WAYS[way](opt))
    assert_equal(got, state, in_numpy("adam", params, grads, [rate(t) for t in range(1, 7)]))


@pytest.mark.parametrize("way", WAYS)
def test_schedules_count_from_zero(way: str) -> None:
    opt = adaptk.jax.momentum(lambda count: 0.5 / (count + 1))
    params, grads = randoms(0), [randoms(1 + t) for t in range(4)]
    got, state = run(opt, params, grads, WAYS[way](opt))
    lrs = [float(np.float32(0.5) / np.float32(t + 1)) for t in range(4)]
    assert_equal(got, state, in_numpy("momentum", params, grads, lrs))


def test_a_function_may_return_a_plain_number() -> None:
    opt = adaptk.jax.sgd(lambda count: 1 / 3)
    params, grads = randoms(0), [randoms(1)]
    for way in WAYS.values():
        got, state = run(opt, params, grads, way(opt))
        assert_equal(got, state, in_numpy("sgd", params, grads, [1 / 3]))


@some_rules
def test_arrays_as_hyperparameters(rule: str) -> None:
    """One compiled function for all values."""
    names = [h.name for h in RULES[rule].hyperparameters if not isinstance(h.default, bool) and np.isfinite(h.default)]
    params, grads = randoms(0), [randoms(1), randoms(2)]
    compiled = 0

    @jax.jit
    def train(params: Any, values: dict[str, Any]) -> Any:
        nonlocal compiled
        compiled += 1
        values = dict(values)
        opt = getattr(adaptk.jax, rule)(values.pop("lr"), **values)
        state = opt.init(params)
        for g in grads:
            params, state = opt.apply(params, on_device(g), state)
        return params, state

    for lr in (0.01, 0.02):
        values = {n: float(np.float32(RULES[rule].defaults()[n])) for n in names}
        values |= {"lr": float(np.float32(lr)), "weight_decay": 0.25, "grad_scale": 0.5}
        got, state = train(on_device(params), {n: jnp.float32(v) for n, v in values.items()})
        values.pop("lr")
        assert_equal(got, state, in_numpy(rule, params, grads, [float(np.float32(lr))] * 2, **values))
    assert compiled == 1


def test_arrays_of_other_types() -> None:
    params, grads = randoms(0), [randoms(1)]
    with jax.enable_x64(True):
        for value in (jnp.float64(1 / 3), jnp.bfloat16(0.5), jnp.int32(2), np.float64(1 / 3), np.array(0.1)):
            opt = adaptk.jax.sgd(value)
            got, state = run(opt, params, grads)
            assert_equal(got, state, in_numpy("sgd", params, grads, [float(value)]))


def test_a_rate_that_is_out_of_range_when_it_runs() -> None:
    params = jnp.ones(3)
    for value in (-1.0, float("nan"), float("inf")):
        opt = adaptk.jax.sgd(jnp.float32(value))
        with pytest.raises(REFUSED, match=r"learning_rate: .* is not in \[0, inf\)"):
            jax.block_until_ready(opt.apply(params + 0, params, opt.init(params)))
    opt = adaptk.jax.adam(beta1=jnp.float32(1.0))
    with pytest.raises(REFUSED, match=r"beta1: 1 is not in \[0, 1\)"):
        jax.block_until_ready(opt.apply(params + 0, params, opt.init(params)))


def test_the_count() -> None:
    opt = adaptk.jax.adam(0.1)
    params = jnp.ones(3)
    state = opt.init(params)
    assert state.count.dtype == jnp.int32
    most = np.iinfo(np.int32).max
    _, late = opt.apply(params + 0, params, opt.init(params)._replace(count=jnp.int32(most - 1)))
    assert int(late.count) == most
    _, later = opt.apply(params + 0, params, opt.init(params)._replace(count=late.count))
    assert int(later.count) == most
    with pytest.raises(REFUSED, match="step: steps are counted from 1, got -4"):
        jax.block_until_ready(opt.apply(params + 0, params, state._replace(count=jnp.int32(-5))))


# Buffers


def pointers(*trees: Any) -> list[int]:
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(trees) if x.size]


@both_layouts
@pytest.mark.parametrize("way", ["eager", "donated"])
def test_the_step_is_in_place(way: str, packed: bool) -> None:
    opt = adaptk.jax.adam(0.1, packed=packed)
    step = WAYS[way](opt)
    shapes = {"a": (64, 64), "b": [(300,), (16,)]}
    params, grads = on_device(randoms(0, shapes=shapes)), on_device(randoms(1, shapes=shapes))
    state = opt.init(params)
    old = jax.tree.leaves((params, state))
    before = pointers(params, state[1:])
    for _ in range(3):
        params, state = step(params, grads, state)
        assert pointers(params, state[1:]) == before
    assert all(x.is_deleted() for x in old)
    assert not any(x.is_deleted() for x in jax.tree.leaves(grads))


def test_donated_arrays_are_not_copied() -> None:
    opt = adaptk.jax.adam(0.1)
    params = on_device(randoms(0, shapes=[(1000,), (2000,)]))
    state = opt.init(params)
    compiled = donating(opt).lower(params, params, state).compile()
    assert not re.search(r"= f32\S* copy\(", compiled.as_text())
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * 3000 * 4
    assert memory.temp_size_in_bytes < 3000


def test_arrays_that_are_not_donated_stay() -> None:
    params, grads = randoms(0), randoms(1)
    given, gradients = on_device(params), on_device(grads)
    opt = adaptk.jax.adam(0.1)
    state = opt.init(given)
    for step in (jax.jit(opt.apply), lambda p, g, s: opt.update(g, s, p)):
        _, after = step(given, gradients, state)
        assert int(after.count) == 1
        assert int(state.count) == 0
        for a, b in zip(jax.tree.leaves((given, gradients)), jax.tree.leaves((params, grads)), strict=True):
            assert same_bits(a, b)
        assert all(not np.asarray(x).any() for x in jax.tree.leaves(state[1:]))


@pytest.mark.parametrize("donated", [(), (0,)])
def test_one_array_in_several_places(donated: tuple[int, ...]) -> None:
    """States that start as the same constant, gradients that are the params."""

    @partial(jax.jit, donate_argnums=donated)
    def train(params: Any) -> Any:
        opt = adaptk.jax.adan(0.1)
        return opt.apply(params, params, opt.init(params))

    params = randoms(0)
    got, state = train(on_device(params))
    assert_equal(got, state, in_numpy("adan", params, [params], [0.1]))


def test_an_array_donated_twice() -> None:
    opt = adaptk.jax.adam(0.1)
    params = {"a": jnp.ones(3), "b": jnp.ones(3)}
    state = opt.init(params)
    shared = {"a": jnp.zeros(3), "b": params["b"]}
    with pytest.raises(ValueError, match=r"grads\['b'\]: the array is params\['b'\] too, which the step gives away"):
        opt.apply(params, shared, state)
    with pytest.raises(ValueError, match=r"state\.exp_avg_sq\['a'\]: the array is state\.exp_avg\['a'\] too"):
        opt.apply(params, {"a": jnp.zeros(3), "b": jnp.zeros(3)}, state._replace(exp_avg_sq=state.exp_avg))
    with pytest.raises(ValueError, match=r"params\['b'\]: the array is params\['a'\] too"):
        opt.apply({"a": params["a"], "b": params["a"]}, state.exp_avg, state)
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, state)))


def test_numpy_arrays_are_taken_as_values() -> None:
    params, grads = randoms(0), randoms(1)
    kept = copy.deepcopy(params)
    opt = adaptk.jax.adam(0.1)
    got, state = opt.apply(params, grads, opt.init(params))
    assert_equal(got, state, in_numpy("adam", kept, [grads], [0.1]))
    assert all(same_bits(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(kept), strict=True))


# vmap, derivatives, shard_map


def stacked(seeds: Sequence[int], shapes: Any = SHAPES) -> Any:
    return jax.tree.map(lambda *x: np.stack(x), *(randoms(s, shapes=shapes) for s in seeds))


def member(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[i], tree)


@some_rules
def test_vmap_steps_each_member(rule: str) -> None:
    opt = getattr(adaptk.jax, rule)(0.01)
    params, grads = stacked(range(3)), [stacked(range(3, 6)), stacked(range(6, 9))]
    state = jax.vmap(opt.init)(params)
    got: Any = params
    for g in grads:
        got, state = jax.jit(jax.vmap(opt.apply))(got, g, state)
    assert state.count.tolist() == [2, 2, 2]
    for i in range(3):
        want = in_numpy(rule, member(params, i), [member(g, i) for g in grads], [0.01] * 2)
        assert_equal(member(got, i), member(state, i), want)


def test_vmap_over_learning_rates_and_counts() -> None:
    params, grads = stacked(range(3)), [randoms(7), randoms(8)]
    rate = schedules.exponential(0.5, gamma=0.9)

    def train(params: Any, lr: Any, packed: bool) -> Any:
        for opt in (adaptk.jax.adam(lr, packed=packed), adaptk.jax.adam(rate, packed=packed)):
            state = opt.init(params)
            for g in grads:
                params, state = opt.apply(params, on_device(g), state)
        return params, state

    lrs = np.array([0.1, 0.2, 0.4], np.float32)
    for packed in (False, True):
        got, state = jax.vmap(partial(train, packed=packed))(on_device(params), lrs)
        for i in range(3):
            first = in_numpy("adam", member(params, i), grads, [float(lrs[i])] * 2)
            want = in_numpy("adam", first[0], grads, [rate(1), rate(2)])
            assert_equal(member(got, i), member(state, i), want, packed)


def test_vmap_within_vmap_and_along_other_axes() -> None:
    opt = adaptk.jax.adam(0.1)
    rng = np.random.default_rng(0)
    params, grads = (rng.normal(size=(2, 5, 3)).astype(np.float32) for _ in range(2))

    def one(p: Any, g: Any) -> Any:
        return opt.apply(p, g, opt.init(p))[0]

    got = jax.vmap(jax.vmap(one, in_axes=(1, 1), out_axes=1))(params, grads)
    want, _ = opt.apply(jnp.array(params), grads, opt.init(params))
    assert same_bits(got, want)
    # One gradient for all members, and members without elements.
    got = jax.vmap(one, in_axes=(0, None))(params, grads[0])
    want, _ = opt.apply(jnp.array(params), np.stack([grads[0]] * 2), opt.init(params))
    assert same_bits(got, want)
    assert jax.vmap(one)(params[:, :0], grads[:, :0]).shape == (2, 0, 3)


def test_derivatives_are_refused() -> None:
    opt = adaptk.jax.adam(0.1)

    def unrolled(params: Any) -> Any:
        return opt.apply(params, params, opt.init(params))[0].sum()

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        with pytest.raises(TypeError, match=r"adaptk\.jax\.adam: a step has no derivative here"):
            derivative(unrolled)(jnp.ones(3))
    # A step is allowed next to differentiated code.
    step = jax.jit(unrolled)
    value, slope = jax.value_and_grad(lambda p: (p**2).sum() + step(jax.lax.stop_gradient(p)))(jnp.ones(3))
    assert slope.tolist() == [2.0] * 3
    assert value < 6.0


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, adaptk, adaptk.jax
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

assert len(jax.devices()) == 4
shapes = {"w": (8, 6), "b": (6,), "deep": [(4, 4), ()]}
specs = {"w": P("x"), "b": P(), "deep": [P(None, "x"), P()]}
rng = np.random.default_rng(0)
is_shape = lambda s: isinstance(s, tuple)
params, grads = ([jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=is_shape)
                 for _ in range(n)] for n in (1, 3))
rates = {"number": 0.1, "schedule": adaptk.schedules.cosine(0.1, total=5), "function": lambda t: 0.1 / (t + 1),
         "array": jnp.float32(0.1)}

def same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()

for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    put = lambda tree: jax.tree.map(lambda x, s: jax.device_put(np.array(x), NamedSharding(mesh, s)), tree, specs)
    for rate in rates.values():
        for rule in ("adam", "sgd", "delta_bar_delta"):
            opt = getattr(adaptk.jax, rule)(rate)
            p = jax.tree.map(jnp.array, params[0])
            s = opt.init(p)
            for g in grads:
                p, s = opt.apply(p, g, s)
            want = p, s
            layout = opt.init(p)._replace(count=P(), **{f: specs for f in s._fields[1:]})
            steps = {"arrays": opt.apply}
            for check in (True, False):
                mapped = jax.shard_map(opt.apply, mesh=mesh, in_specs=(specs, specs, layout), out_specs=(specs, layout),
                                       check_vma=check)
                steps[f"shard_map {check}"] = jax.jit(mapped, donate_argnums=(0, 2))
            if kind == AxisType.Explicit:
                steps["jit"] = jax.jit(opt.apply, donate_argnums=(0, 2))
            for name, step in steps.items():
                p = put(params[0])
                s = opt.init(p)
                for t, g in enumerate(grads):
                    p, s = step(p, put(g), s)
                    if t == 0:
                        places = [shard.data.unsafe_buffer_pointer() for shard in p["w"].addressable_shards]
                same((p, s), want)
                # Each device keeps its part, where it is.
                assert p["w"].sharding.spec[0] == "x" and p["deep"][0].sharding.spec[1] == "x", name
                assert places == [shard.data.unsafe_buffer_pointer() for shard in p["w"].addressable_shards], name

opt = adaptk.jax.adam(0.1, packed=True)
p = put(params[0])
try:
    opt.apply(p, put(grads[0]), opt.init(p))
except ValueError as error:
    print(error)
"""


@pytest.mark.full
def test_several_devices() -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    printed = output(SHARDED, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    assert printed == "packed: the params are cut into parts over several devices; use packed=False"


def test_the_step_is_lowered_for_cuda() -> None:
    """Checked in the lowered module, without a device."""
    opt = adaptk.jax.adam(0.1)
    params = jnp.ones(3)
    traced = jax.jit(opt.apply).trace(params, params, opt.init(params))
    for platform in ("cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("@adaptk_step") == 1
        assert "output_operand_alias" in text
    assert set(_jax.handlers) == {"cpu", "CUDA"}


# optax


@pytest.fixture
def optax() -> Any:
    return pytest.importorskip("optax")


@some_rules
def test_updates_match_optax(optax: Any, rule: str) -> None:
    opt = getattr(adaptk.jax, rule)(0.01)
    assert isinstance(opt, optax.GradientTransformation)
    params, grads = randoms(0), [randoms(1), randoms(2)]

    @jax.jit
    def step(params: Any, g: Any, state: Any) -> Any:
        updates, state = opt.update(g, state, params)
        return optax.apply_updates(params, updates), state

    got, _ = run(opt, params, grads, step)
    want = in_numpy(rule, params, grads, [0.01] * 2)[0]
    for a, b in zip(jax.tree.leaves(got), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert a.dtype == b.dtype


def test_updates_have_the_params_dtypes() -> None:
    for name in ("float32", "bfloat16", "float16"):
        params, grads = on_device(randoms(0, name)), on_device(randoms(1, name))
        opt = adaptk.jax.adam(0.1)
        updates, _ = opt.update(grads, opt.init(params), params)
        assert {x.dtype.name for x in jax.tree.leaves(updates)} == {name}


def test_an_infinite_param_stays() -> None:
    opt = adaptk.jax.sgd(0.1)
    params = jnp.array([np.inf, -np.inf, 1.0])
    updates, _ = opt.update(jnp.ones(3), opt.init(params), params)
    assert updates[:2].tolist() == [0.0, 0.0]


def test_chains_of_optax(optax: Any) -> None:
    mine = optax.chain(optax.clip_by_global_norm(0.5), adaptk.jax.adam(0.1, convention="optax"))
    theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1))
    shapes = {"a": (5, 3), "b": (7,)}
    outcome = []
    for chain in (mine, theirs):
        params = on_device(randoms(0, shapes=shapes))
        state = chain.init(params)
        for t in range(4):
            updates, state = jax.jit(chain.update)(on_device(randoms(1 + t, shapes=shapes)), state, params)
            params = optax.apply_updates(params, updates)
        outcome.append(jax.tree.leaves(params))
    for a, b in zip(*outcome, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_wrappers_of_optax(optax: Any) -> None:
    params, grads = on_device(randoms(0)), on_device(randoms(1))
    masked = optax.masked(adaptk.jax.adam(0.1), {"bias": True, "layers": False, "none": True, "scale": True})
    updates, _ = masked.update(grads, masked.init(params), params)
    assert same_bits(updates["layers"][0], grads["layers"][0])
    assert not same_bits(updates["bias"], grads["bias"])

    every = optax.MultiSteps(adaptk.jax.adam(0.1), every_k_schedule=2)
    state = every.init(params)
    updates, state = every.update(grads, state, params)
    assert not any(np.asarray(u).any() for u in jax.tree.leaves(updates))
    updates, state = every.update(grads, state, params)
    assert np.asarray(updates["bias"]).all()

    rate = optax.cosine_decay_schedule(0.1, 10)
    got, _ = run(adaptk.jax.sgd(rate), randoms(0), [randoms(1), randoms(2)])
    want = in_numpy("sgd", randoms(0), [randoms(1), randoms(2)], [float(rate(jnp.int32(t))) for t in range(2)])[0]
    for a, b in zip(jax.tree.leaves(got), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)

    injected = optax.inject_hyperparams(adaptk.jax.adam)(learning_rate=0.1)
    updates, _ = jax.jit(injected.update)(grads, injected.init(params), params)
    plain, _ = adaptk.jax.adam(0.1).update(grads, adaptk.jax.adam(0.1).init(params), params)
    np.testing.assert_allclose(updates["bias"], plain["bias"], rtol=1e-5)


def test_without_optax() -> None:
    code = """
import sys
sys.modules["optax"] = None
import jax.numpy as jnp, adaptk.jax
opt = adaptk.jax.adam(0.1)
init, update = opt
state = init(jnp.ones(3))
updates, state = update(jnp.ones(3), state, jnp.ones(3))
print(isinstance(opt, tuple), opt._fields, [round(float(u), 3) for u in updates], int(state.count))
"""
    assert output(code) == "True ('init', 'update') [-0.1, -0.1, -0.1] 1"


def test_the_objects() -> None:
    opt = adaptk.jax.adam(0.1, beta1=0.8, convention="torch", packed=True)
    assert repr(opt) == "adaptk.jax.adam(learning_rate=0.1, convention='torch', packed=True, beta1=0.8)"
    assert opt.rule == "adam"
    params, grads = randoms(0), randoms(1)
    want, state = opt.apply(params, grads, opt.init(params))
    for other in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)):
        got, _ = other.apply(params, grads, other.init(params))
        assert all(same_bits(a, b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    assert type(pickle.loads(pickle.dumps(state))) is adaptk.jax.AdamState
    plain = adaptk.jax.adam(0.1).init(params)
    assert plain._fields == ("count", "exp_avg", "exp_avg_sq")
    assert jax.tree.structure(plain.exp_avg) == jax.tree.structure(params)


# Conventions and arguments


@pytest.mark.parametrize(
    ("rule", "convention"), [(r.name, c) for r in RULES.values() for c in r.conventions if c != "book"]
)
def test_conventions_match_the_objects(rule: str, convention: str) -> None:
    params, grads = randoms(0), [randoms(1), randoms(2)]
    got, _ = run(getattr(adaptk.jax, rule)(0.01, convention=convention), params, grads)
    want = [np.array(x) for x in jax.tree.leaves(params)]
    opt = adaptk.optimizer_for(rule, want, 0.01, convention=convention)
    for g in grads:
        opt.step(jax.tree.leaves(g))
    assert all(same_bits(a, b) for a, b in zip(jax.tree.leaves(got), want, strict=True))


def test_options_of_the_objects() -> None:
    params, grads = randoms(0), [randoms(1), randoms(2)]
    for convention in ("book", "torch", "keras"):
        options = {"eps": 1e-3, "initial_accumulator_value": 0.25}
        got, _ = run(adaptk.jax.adagrad(0.1, convention=convention, **options), params, grads)
        want = [np.array(x) for x in jax.tree.leaves(params)]
        opt = adaptk.AdaGrad(want, 0.1, convention=convention, **options)
        for g in grads:
            opt.step(jax.tree.leaves(g))
        assert all(same_bits(a, b) for a, b in zip(jax.tree.leaves(got), want, strict=True))


def test_states_that_start_as_the_learning_rate() -> None:
    params = {"a": jnp.ones(3)}
    rates = [0.25, jnp.float32(0.25), lambda count: 0.25 + count, schedules.exponential(0.25, gamma=0.5)]
    for rate in rates:
        assert adaptk.jax.delta_bar_delta(rate).init(params).eta["a"].tolist() == [0.25] * 3
    packed = adaptk.jax.delta_bar_delta(0.25, packed=True).init(params)
    assert packed.eta[0].tolist() == [0.25] * 16


@every_rule
def test_signatures_and_docstrings(rule: str) -> None:
    function = getattr(adaptk.jax, rule)
    parameters = inspect.signature(function).parameters
    hyper = {h.name for h in RULES[rule].hyperparameters} - {"lr"}
    assert list(parameters)[:3] == ["learning_rate", "convention", "packed"]
    assert hyper <= set(parameters)
    assert parameters["learning_rate"].default == RULES[rule].defaults()["lr"]
    assert RULES[rule].source in function.__doc__
    (test,) = doctest.DocTestFinder(recurse=False).find(function, rule, module=False, globs={})
    printed: list[str] = []
    failed, tried = doctest.DocTestRunner().run(test, out=printed.append)
    assert not failed, "".join(printed)
    assert tried


def test_examples_of_the_module() -> None:
    for thing in (adaptk.jax, adaptk.jax.SplitState, adaptk.jax.Stored, adaptk.jax.GradientTransformation.apply):
        finder = doctest.DocTestFinder(recurse=False)
        (test,) = finder.find(thing, "adaptk.jax", module=False, globs={})
        assert doctest.DocTestRunner().run(test).failed == 0
        assert test.examples
    assert adaptk.jax.__all__ == [
        "GradientTransformation",
        "SplitState",
        "Stored",
        *COMPILED,
        *(type_.__name__ for type_ in state_types()),
        *("MuonState", "MuonTransformation", "muon"),
    ]


def state_types() -> list[Any]:
    return [type(getattr(adaptk.jax, rule)().init(jnp.ones(1))) for rule in COMPILED]


# Errors


WRONG_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"learning_rate": -1.0}, ValueError, r"learning_rate: -1 is not in \[0, inf\)"),
    ({"learning_rate": "fast"}, TypeError, "learning_rate: expected a number, got str"),
    ({"beta1": 1.0}, ValueError, r"beta1: 1 is not in \[0, 1\)"),
    ({"decoupled": 2}, ValueError, "decoupled: 2 is not a bool"),
    ({"beta3": 0.5}, TypeError, r"adam\(\) got an unexpected keyword argument 'beta3' .*; it takes learning_rate, "),
    ({"convention": "mine"}, ValueError, "convention: 'mine' is not one of"),
    ({"packed": 1}, TypeError, "packed: expected a bool, got int"),
    ({"grad_scale": 1 + np.inf}, ValueError, r"grad_scale: inf is not in \(-inf, inf\)"),
]


@pytest.mark.parametrize(("options", "exception", "message"), WRONG_ARGUMENTS)
def test_wrong_arguments(options: dict[str, Any], exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        adaptk.jax.adam(**options)


def test_numbers_that_cannot_be_traced() -> None:
    with pytest.raises(TypeError, match="maximize: expected a bool, got"):
        adaptk.jax.adam(maximize=jnp.array(True))
    with pytest.raises(TypeError, match="eps: it is eps_in here, which is given too"):
        adaptk.jax.rmsprop(eps=1e-3, eps_in=1e-3)
    for rate, message in (
        (jnp.ones(2), r"learning_rate: an array of shape \(2,\), expected one number"),
        (lambda count: jnp.array(True), "learning_rate: dtype bool, expected a number"),
    ):
        opt = adaptk.jax.sgd(rate)
        with pytest.raises(TypeError, match=message):
            opt.apply(jnp.ones(2), jnp.ones(2), opt.init(jnp.ones(2)))


def wrong_trees() -> Iterator[tuple[str, Any, Any, Any, type[Exception], str]]:
    params = {"w": jnp.ones((2, 3)), "b": [jnp.ones(4)]}
    state = adaptk.jax.adam().init(params)
    other = {"w": jnp.ones((2, 3)), "b": [jnp.ones(5)]}
    ints = {"w": jnp.ones((2, 3)), "b": [jnp.ones(4, int)]}
    text = {"w": jnp.ones((2, 3)), "b": ["four"]}
    float32 = "expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2"
    shape = r"shape \(5,\), expected \(4,\) like its param"
    keys = {"w": jnp.ones((2, 3)), "b": [jax.random.key(0)]}
    yield "param key", keys, params, state, TypeError, r"params\['b'\]\[0\]: dtype key<fry>, expected float32, float64"
    yield "param str", text, params, state, TypeError, r"params\['b'\]\[0\]: expected an array, got str"
    yield "grad str", params, text, state, TypeError, r"grads\['b'\]\[0\]: expected an array, got str"
    yield "grad shape", params, other, state, ValueError, rf"grads\['b'\]\[0\]: {shape}"
    yield "grad tree", params, {"w": params["w"]}, state, ValueError, "grads: its tree is .*, expected that of params"
    yield "grad int", params, ints, state, TypeError, rf"grads\['b'\]\[0\]: dtype int32, {float32}"
    yield "state type", params, params, (1, 2, 3), TypeError, "state: expected a AdamState of init, got tuple"
    sgd = adaptk.jax.sgd().init(params)
    yield "state rule", params, params, sgd, TypeError, "state: expected a AdamState of init, got SgdState"
    wrong = state._replace(exp_avg=other)
    yield "state shape", params, params, wrong, ValueError, rf"state\.exp_avg\['b'\]\[0\]: {shape}"
    wrong = state._replace(exp_avg_sq=jax.tree.map(lambda x: x.astype(jnp.int32), params))
    message = r"state\.exp_avg_sq\['.'\].*: dtype int32, expected float32 beside a float32 param, or bfloat16"
    yield "state dtype", params, params, wrong, TypeError, message
    wrong = state._replace(exp_avg=jnp.ones(3))
    yield "state tree", params, params, wrong, ValueError, r"state\.exp_avg: its tree is"
    wrong = state._replace(count=jnp.zeros(2, jnp.int32))
    yield "count shape", params, params, wrong, TypeError, r"state\.count: int32 of shape \(2,\), expected one integer"
    wrong = state._replace(count=jnp.float32(1))
    yield "count dtype", params, params, wrong, TypeError, r"state\.count: float32 of shape \(\), expected one integer"


@pytest.mark.parametrize("case", list(wrong_trees()), ids=lambda case: case[0])
def test_mismatched_trees(case: tuple[str, Any, Any, Any, type[Exception], str]) -> None:
    _, params, grads, state, exception, message = case
    opt = adaptk.jax.adam()
    with pytest.raises(exception, match=message):
        opt.apply(params, grads, state)
    with pytest.raises(exception, match=message):
        opt.update(grads, state, params)
    arrays = jax.tree.leaves((params, grads, state))
    if not any(isinstance(x, (str, int)) for x in arrays):
        with pytest.raises(exception, match=message):
            jax.jit(opt.apply)(params, grads, state)
    assert not any(x.is_deleted() for x in arrays if isinstance(x, jax.Array))


def test_mismatched_packed_states() -> None:
    opt = adaptk.jax.adam(packed=True)
    params = jnp.ones(20)
    state = opt.init(params)
    assert [x.shape for x in state.exp_avg] == [(32,)]
    for wrong, message in (
        ((), r"state\.exp_avg: expected 1 packed arrays"),
        ((jnp.zeros(20),), r"state\.exp_avg\[0\]: float32 of shape \(20,\), expected float32 of shape \(32,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            opt.apply(params, params, state._replace(exp_avg=wrong))


def test_updates_need_params() -> None:
    opt = adaptk.jax.adamw()
    with pytest.raises(
        ValueError, match=r"params: the update of adamw needs them here, update\(grads, state, params\)"
    ):
        opt.update(jnp.ones(3), opt.init(jnp.ones(3)))


# Missing packages


def test_without_jax() -> None:
    code = """
import sys
sys.modules["jax"] = None
import adaptk
try:
    adaptk.jax
except ImportError as error:
    print(type(error).__name__, "jax" in str(error))
"""
    assert output(code) == "ModuleNotFoundError True"


def test_a_build_without_the_module() -> None:
    code = """
import sys
sys.modules["adaptk._jax"] = None
import adaptk
try:
    import adaptk.jax
except ImportError as error:
    print(error)
"""
    assert output(code).startswith("adaptk.jax: this build of adaptk has no module for JAX, for jaxlib's headers")


# The benchmark


@pytest.mark.full
@pytest.mark.parametrize("options", [["--quick"], ["--quick", "--markdown"]], ids=" ".join)
def test_bench_against_optax(options: list[str]) -> None:
    pytest.importorskip("optax", reason="the benchmark compares with optax")
    script = Path(__file__).parents[1] / "bench" / "jax_race.py"
    command = [sys.executable, str(script), "--rules", "adam,sgd", *options]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    if "--markdown" in options:
        assert [line.count("|") for line in lines] == [4] * 6
    else:
        assert [line.split()[0] for line in lines] == ["adam", "adam", "sgd", "sgd"]
        assert all("optax / adaptk, packed:" in line for line in lines)
