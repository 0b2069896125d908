"""``adaptk.jax`` like optax: names, masks, integer and complex leaves, updates without params, exports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
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

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.arange(4.0)}
GRADS = {"w": jnp.linspace(2.0, -1.0, 12).reshape(3, 4), "b": jnp.ones(4)}


def copy(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def run(opt: Any, params: Any = PARAMS, grads: Any = GRADS, steps: int = 3) -> Any:
    params = copy(params)
    state = opt.init(params)
    for _ in range(steps):
        params, state = opt.apply(params, copy(grads), state)
    return params, state


# Names


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("adam", {"b1": 0.8, "b2": 0.95}), ("adam", {"beta1": 0.8, "beta2": 0.95})),
        (("adan", {"b1": 0.9, "b2": 0.8, "b3": 0.7}), ("adan", {"beta1": 0.9, "beta2": 0.8, "beta3": 0.7})),
        (("rmsprop", {"decay": 0.8}), ("rmsprop", {"rho": 0.8})),
        (("rmsprop", {"decay": 0.8, "centered": True}), ("rmsprop_centered", {"rho": 0.8})),
        (("rmsprop", {"momentum": 0.5}), ("rmsprop_momentum", {"momentum": 0.5})),
        (
            ("rmsprop", {"centered": True, "momentum": 0.5, "nesterov": False}),
            ("rmsprop_centered_momentum", {"momentum": 0.5}),
        ),
        (("sgd", {"momentum": 0.8}), ("momentum", {"momentum": 0.8})),
        (("sgd", {"momentum": 0.8, "nesterov": True}), ("nesterov", {"momentum": 0.8})),
        (("sgd", {"momentum": None, "nesterov": False}), ("sgd", {})),
        (
            ("rprop_delayed", {"min_step_size": 0.2, "max_step_size": 0.3}),
            ("rprop_delayed", {"step_min": 0.2, "step_max": 0.3}),
        ),
    ],
)
def test_names_of_optax(theirs: tuple[str, dict[str, Any]], ours: tuple[str, dict[str, Any]]) -> None:
    for convention in ({"convention": "book"}, {"convention": "optax"}):
        if ours[0] not in adaptk.rules():  # rules of the catalogue have no names in optax
            convention = {}
        a, b = (getattr(adaptk.jax, name)(0.1, **convention, **options) for name, options in (theirs, ours))
        assert a.rule == b.rule == ours[0]
        same(run(a), run(b))


def test_conflicting_names() -> None:
    with pytest.raises(TypeError, match=r"^b1: it is beta1 here, which is given too"):
        adaptk.jax.adam(b1=0.9, beta1=0.9)
    with pytest.raises(TypeError, match=r"^rmsprop: there is no form of it with momentum and nesterov"):
        adaptk.jax.rmsprop(momentum=0.9, nesterov=True)  # optax's method differs from Algorithm 8.6
    with pytest.raises(TypeError, match=r"^nesterov: it needs a momentum"):
        adaptk.jax.sgd(nesterov=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nesterov'"):
        adaptk.jax.adam(nesterov=True)
    with pytest.raises(TypeError, match=r"^centered: expected a bool, got float"):
        adaptk.jax.rmsprop(centered=1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {"b1": 0.8, "b2": 0.95}),
        ("rmsprop", {"decay": 0.8, "centered": True, "momentum": 0.5}),
        ("sgd", {"momentum": 0.8, "nesterov": True}),
        ("amsgrad", {"b1": 0.8, "b2": 0.5, "eps_root": 1e-3}),
        ("radam", {"b1": 0.8, "b2": 0.8, "eps_root": 1e-3, "threshold": 4.5}),
        ("rprop", {"eta_plus": 1.5, "min_step_size": 0.01, "max_step_size": 0.12}),
    ],
)
def test_calls_of_optax_run_here(name: str, options: dict[str, Any]) -> None:
    optax = pytest.importorskip("optax")
    theirs = getattr(optax, name)(0.1, **options)
    # Rules with another form in optax than in PyTorch.
    own_name = {"amsgrad": "amsgrad_corrected", "radam": "radam_corrected", "rprop": "rprop_delayed"}.get(name)
    ours = getattr(adaptk.jax, own_name or name)(0.1, **({} if own_name else {"convention": "optax"}), **options)
    a, b = copy(PARAMS), copy(PARAMS)
    at, bt = theirs.init(a), ours.init(b)
    for t in range(6):
        grads = jax.tree.map(lambda g: g * (-1.0) ** (t // 2), GRADS)  # noqa: B023
        updates, at = theirs.update(grads, at, a)
        a = optax.apply_updates(a, updates)
        b, bt = ours.apply(b, copy(grads), bt)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-6)


# Masks


MASKS = {"tree": {"w": True, "b": False}, "callable": lambda p: jax.tree.map(lambda x: x.ndim > 1, p)}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_keeps_params_from_decay(mask: str, traced: bool, packed: bool) -> None:
    decay = jnp.float32(0.25) if traced else 0.25
    opt = adaptk.jax.adamw(0.1, weight_decay=decay, mask=MASKS[mask], packed=packed)
    params, _ = run(opt)
    for name, weight_decay in (("w", 0.25), ("b", 0.0)):
        alone, _ = run(adaptk.jax.adamw(0.1, weight_decay=weight_decay), PARAMS[name], GRADS[name])
        np.testing.assert_array_equal(params[name], alone)


def test_a_mask_above_the_params_and_under_jit() -> None:
    params = {"body": copy(PARAMS), "norm": jnp.ones(3)}
    grads = {"body": copy(GRADS), "norm": jnp.ones(3)}
    by_prefix = adaptk.jax.adamw(0.1, weight_decay=0.25, mask={"body": True, "norm": False})
    by_leaf = adaptk.jax.adamw(
        0.1, weight_decay=0.25, mask={"body": {"w": True, "b": True}, "norm": np.bool_(False)}, convention="book"
    )
    same(run(by_prefix, params, grads), run(by_leaf, params, grads))
    stepped, _ = jax.jit(by_prefix.apply)(copy(params), grads, by_prefix.init(params))
    same(stepped, run(by_prefix, params, grads, steps=1)[0])
    optax = pytest.importorskip("optax")
    theirs = optax.adamw(0.1, weight_decay=0.25, mask={"body": True, "norm": False})
    updates, _ = theirs.update(grads, theirs.init(params), params)
    for x, y in zip(jax.tree.leaves(optax.apply_updates(params, updates)), jax.tree.leaves(stepped), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_mismatched_masks() -> None:
    for mask, error, said in (
        ({"w": True}, ValueError, "^mask: expected bools in the structure of the params"),
        ({"w": 1, "b": True}, TypeError, r"^mask\['w'\]: int, expected a bool"),
    ):
        opt = adaptk.jax.adamw(0.1, mask=mask)
        with pytest.raises(error, match=said):
            opt.apply(copy(PARAMS), GRADS, opt.init(PARAMS))


# Leaves that are not real


def test_integers_are_passed_on() -> None:
    counted = {**PARAMS, "steps": jnp.int32(7), "on": jnp.array([True, False])}
    for of_steps in (jnp.int32(0), np.zeros((), jax.dtypes.float0)):
        grads = {**GRADS, "steps": of_steps, "on": jnp.array([False, False])}
        for opt in (adaptk.jax.adam(0.1), adaptk.jax.adam(0.1, packed=True)):
            state = opt.init(counted)
            new, after = opt.apply(copy(counted), grads, state)
            assert int(new["steps"]) == 7
            assert new["on"].tolist() == [True, False]
            same({k: new[k] for k in PARAMS}, run(opt, steps=1)[0])
            assert jax.tree.structure(after) == jax.tree.structure(state)
            state = opt.init(counted)
            updates, _ = opt.update(grads, state, counted)
            assert updates["steps"].dtype == jnp.int32
            assert int(updates["steps"]) == 0
    optax = pytest.importorskip("optax")
    opt = adaptk.jax.adam(0.1)
    grads = {**GRADS, "steps": jnp.int32(0), "on": jnp.array([False, False])}
    new = optax.apply_updates(counted, opt.update(grads, opt.init(counted), counted)[0])
    assert int(new["steps"]) == 7
    jitted, _ = jax.jit(opt.apply)(counted, grads, opt.init(counted))
    assert int(jitted["steps"]) == 7


def test_gradients_of_integers_from_jax() -> None:
    params = {"w": jnp.ones(3), "n": jnp.int32(2)}
    grads = jax.grad(lambda p: (p["w"] ** 2).sum() * p["n"], allow_int=True)(params)
    opt = adaptk.jax.sgd(0.25)
    new, _ = opt.apply(params, grads, opt.init(params))
    assert new["w"].tolist() == [0.0, 0.0, 0.0]
    assert int(new["n"]) == 2


@pytest.mark.parametrize("name", ["sgd", "adamw", "adagrad", "lion"])
def test_complex_leaves_are_pairs_of_real_ones(name: str) -> None:
    """As in PyTorch and optax.contrib.split_real_and_imaginary."""
    rng = np.random.default_rng(3)
    p, g = (jnp.asarray(rng.standard_normal((4, 3)) + 1j * rng.standard_normal((4, 3)), jnp.complex64) for _ in "pg")
    opt = getattr(adaptk.jax, name)(0.1, convention="optax" if name == "adagrad" else "book")
    mixed, state = run(opt, {"c": p, "r": PARAMS["w"]}, {"c": g, "r": GRADS["w"]})
    parts, of_parts = run(opt, [p.real, p.imag, PARAMS["w"]], [g.real, g.imag, GRADS["w"]])
    assert mixed["c"].dtype == jnp.complex64
    np.testing.assert_array_equal(mixed["c"].real, parts[0])
    np.testing.assert_array_equal(mixed["c"].imag, parts[1])
    np.testing.assert_array_equal(mixed["r"], parts[2])
    for field, of_field in zip(state[1:], of_parts[1:], strict=True):
        np.testing.assert_array_equal(field["c"].real, of_field[0])
        np.testing.assert_array_equal(field["c"].imag, of_field[1])
    jitted, _ = jax.jit(opt.apply)(p, g, opt.init(p))
    np.testing.assert_array_equal(jitted, run(opt, p, g, steps=1)[0])
    with pytest.raises(TypeError, match=r"^grads\['r'\]: dtype complex64, "):
        opt.apply({"r": PARAMS["w"].T}, {"r": g}, opt.init({"r": PARAMS["w"].T}))


def test_complex_leaves_as_optax_splits_them() -> None:
    optax = pytest.importorskip("optax")
    p, g = jnp.array([1 + 2j, -1j]), jnp.array([0.5 - 1j, 2 + 1j])
    theirs = optax.contrib.split_real_and_imaginary(optax.adam(0.1))
    updates, _ = theirs.update(g, theirs.init(p), p)
    ours, _ = run(adaptk.jax.adam(0.1), p, g, steps=1)
    np.testing.assert_allclose(p + updates, ours, rtol=1e-6)


def test_unsupported_leaves() -> None:
    with pytest.raises(TypeError, match=r"^params\['k'\]: dtype key<fry>, expected float32"):
        adaptk.jax.adam().init({"k": jax.random.key(0)})


@pytest.mark.parametrize(("param", "grad"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16")])
def test_gradients_of_another_width(param: str, grad: str) -> None:
    p, g = jnp.ones(5, param), jnp.full(5, 0.123456789, grad)
    opt = adaptk.jax.adam(0.1)
    new, state = opt.apply(p, g, opt.init(p))
    assert (new.dtype, state.exp_avg.dtype) == (jnp.dtype(param), jnp.float32)
    wide = np.ones(5, np.float32)
    beside = adaptk.Adam([wide], lr=0.1)
    beside.step([np.asarray(g, np.float32)])
    np.testing.assert_array_equal(np.asarray(new), np.asarray(jnp.asarray(wide, param)))
    np.testing.assert_array_equal(state.exp_avg, beside.state[0]["exp_avg"])


@pytest.mark.full
def test_float64_gradients_of_float32_params() -> None:
    program = """
import jax; jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, adaptk.jax
opt = adaptk.jax.adam(0.1)
p = jnp.ones(5, jnp.float32)
new, state = opt.apply(p, jnp.full(5, 0.3, jnp.float64), opt.init(jnp.ones(5, jnp.float32)))
same, _ = opt.apply(jnp.ones(5, jnp.float32), jnp.full(5, 0.3, jnp.float32), opt.init(jnp.ones(5, jnp.float32)))
assert new.dtype == jnp.float32 and bool((new == same).all())
g = jnp.full(5, 0.3, jnp.float64)
for width in (jnp.float32, jnp.float64):
    state = opt.init(jnp.ones(5, width))
    updates, after = opt.update(g, state)
    assert after.exp_avg.dtype == width, after
    wanted, _ = opt.update(g, state, jnp.zeros(5, width))
    assert bool((updates == wanted).all())
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# Updates without params


WITHOUT = ["sgd", "momentum", "adam", "adamax", "lion", "rmsprop_centered", "adagrad", "yogi", "adan", "rprop", "nadam"]


@pytest.mark.parametrize("name", WITHOUT)
def test_updates_without_params(name: str) -> None:
    opt = getattr(adaptk.jax, name)(0.125)
    state = at_zero = opt.init(PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for _ in range(2):
        updates, state = opt.update(GRADS, state)
        wanted, at_zero = opt.update(GRADS, at_zero, zeros)
        same((updates, state), (wanted, at_zero))
    near, _ = opt.update(GRADS, opt.init(PARAMS), PARAMS)
    first, _ = opt.update(GRADS, opt.init(PARAMS))
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(near), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    same(jax.jit(opt.update)(GRADS, opt.init(PARAMS))[0], first)


def test_updates_that_need_params() -> None:
    for opt in (
        adaptk.jax.asgd(0.1),
        adaptk.jax.adamw(0.1),
        adaptk.jax.sgd(0.1, weight_decay=0.1),
        adaptk.jax.sgd(0.1, weight_decay=jnp.float32(0.0)),
        adaptk.jax.madgrad(0.1),
    ):
        with pytest.raises(ValueError, match=rf"^params: the update of {opt.rule} needs them here"):
            opt.update(GRADS, opt.init(PARAMS))


# Wrappers, exports, devices


def test_optimistix() -> None:
    optimistix = pytest.importorskip("optimistix")
    solver = optimistix.OptaxMinimiser(adaptk.jax.adam(0.1), rtol=1e-5, atol=1e-5)
    found = optimistix.minimise(lambda y, _: jnp.sum((y - 3.0) ** 2), solver, jnp.zeros(2), max_steps=2000)
    np.testing.assert_allclose(found.value, [3.0, 3.0], atol=1e-2)


DATA, TARGETS = jnp.linspace(-1, 1, 32).reshape(8, 4), jnp.linspace(0, 1, 8).reshape(8, 1)


def squared(found: Any) -> Any:
    return jnp.square(found - TARGETS).mean()


def by_flax(tx: Any) -> Any:
    nnx = pytest.importorskip("flax.nnx", reason="needs Flax")

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        optimizer.update(model, nnx.grad(lambda m: squared(m(DATA)))(model))

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=rngs), jnp.tanh, nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(5):
        step(model, optimizer)
    return nnx.state(model, nnx.Param)


def by_flax_linen(tx: Any) -> Any:
    linen = pytest.importorskip("flax.linen", reason="needs Flax")
    from flax.training.train_state import TrainState

    model = linen.Sequential([linen.Dense(8), jnp.tanh, linen.Dense(1)])
    state = TrainState.create(apply_fn=model.apply, params=model.init(jax.random.key(0), DATA), tx=tx)

    @jax.jit
    def step(state: Any) -> Any:
        return state.apply_gradients(grads=jax.grad(lambda p: squared(model.apply(p, DATA)))(state.params))

    for _ in range(5):
        state = step(state)
    return state.params


def by_equinox(tx: Any) -> Any:
    """Its trees have None in the place of what is no array."""
    eqx = pytest.importorskip("equinox", reason="needs Equinox")

    @eqx.filter_jit
    def step(model: Any, state: Any) -> Any:
        grads = eqx.filter_grad(lambda m: squared(jax.vmap(m)(DATA)))(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    model = eqx.nn.MLP(4, 1, 8, 2, key=jax.random.key(0))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(5):
        model, state = step(model, state)
    return eqx.filter(model, eqx.is_inexact_array)


def by_haiku(tx: Any) -> Any:
    hk = pytest.importorskip("haiku", reason="needs Haiku")
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 1])(x)))
    params = model.init(jax.random.key(0), DATA)
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update(jax.grad(lambda p: squared(model.apply(p, DATA)))(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.full
@pytest.mark.parametrize("framework", [by_flax, by_flax_linen, by_equinox, by_haiku])
def test_frameworks(framework: Callable[[Any], Any]) -> None:
    optax = pytest.importorskip("optax")
    ours = jax.tree.leaves(framework(adaptk.jax.adamw(0.05, weight_decay=0.1, convention="optax")))
    theirs = jax.tree.leaves(framework(optax.adamw(0.05, weight_decay=0.1)))
    unmoved = jax.tree.leaves(framework(optax.set_to_zero()))
    for p, q, start in zip(ours, theirs, unmoved, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-4)
        assert np.abs(p - start).max() > 0.05


def test_an_exported_step() -> None:
    from jax import export

    opt = adaptk.jax.adamw(0.1, weight_decay=0.25, state_dtype="8bit", min_8bit_size=0)
    state = opt.init(PARAMS)
    exported = export.export(jax.jit(opt.apply))(PARAMS, GRADS, state)
    same(exported.call(PARAMS, GRADS, state), jax.jit(opt.apply)(PARAMS, GRADS, state))
    pytest.importorskip("flatbuffers")
    again = export.deserialize(exported.serialize())
    same(again.call(PARAMS, GRADS, state), jax.jit(opt.apply)(PARAMS, GRADS, state))
    split = adaptk.jax.sgd(0.1, param_format="remainder16")
    half = jnp.ones(4, jnp.bfloat16)
    exported = export.export(jax.jit(split.apply))(half, half, split.init(half))
    same(export.deserialize(exported.serialize()).call(half, half, split.init(half)), run(split, half, half, 1))


_AUTOMATIC = """
import jax, jax.numpy as jnp, numpy as np, adaptk.jax
from jax.sharding import NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
cuts = {"w": P("x", "y"), "v": P(None, "x"), "b": P("y"), "whole": P(), "s": P()}
shapes = {"w": (8, 4), "v": (2, 6, ), "b": (4,), "whole": (3, 3), "s": ()}
place = {k: NamedSharding(mesh, cut) for k, cut in cuts.items()}
rng = np.random.default_rng(0)
host = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
grads = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
put = lambda tree: {k: jax.device_put(x, place[k]) for k, x in tree.items()}
for opt in (
    adaptk.jax.adamw(0.1, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    adaptk.jax.sgd(jnp.float32(0.1)),
    adaptk.jax.adam(adaptk.schedules.cosine(0.1, total=10)),
):
    params, state = put(host), jax.jit(opt.init)(put(host))
    state = type(state)(state[0], *(put(t) for t in state[1:]))
    compiled = jax.jit(opt.apply, donate_argnums=(0, 2)).lower(params, put(grads), state).compile()
    text = compiled.as_text()
    for word in ("all-gather", "all-to-all", "collective-permute"):
        assert word not in text, (word, text)
    # A schedule's rate comes from one device's callback; nothing else is sent.
    assert all("= u32[2]" in line for line in text.splitlines() if " all-reduce(" in line), text
    new, after = compiled(params, put(grads), state)
    alone, of_alone = opt.apply(*(jax.tree.map(jnp.asarray, t) for t in (host, grads)), opt.init(host))
    for k in shapes:
        assert new[k].sharding.is_equivalent_to(place[k], len(shapes[k])), (k, new[k].sharding)
        np.testing.assert_array_equal(np.asarray(new[k]), np.asarray(alone[k]))
    for t, u in zip(after[1:], of_alone[1:]):
        for k in shapes:
            np.testing.assert_array_equal(np.asarray(t[k]), np.asarray(u[k]))

# Gradients computed within, and a batch of runs over the same arrays.
opt = adaptk.jax.adam(0.1)
w = jax.device_put(host["w"], place["w"])
@jax.jit
def train(w, state):
    return opt.apply(w, jax.grad(lambda w: (w * w).sum())(w), state)
new, _ = train(w, opt.init(w))
alone, _ = opt.apply(jnp.asarray(host["w"]), 2 * jnp.asarray(host["w"]), opt.init(jnp.asarray(host["w"])))
np.testing.assert_array_equal(np.asarray(new), np.asarray(alone))
batch = jnp.stack([jnp.asarray(host["w"]), 2 * jnp.asarray(host["w"])])
several = jax.jit(jax.vmap(lambda w: opt.apply(w, 2 * w, opt.init(w))[0]))(batch)
np.testing.assert_array_equal(np.asarray(several[0]), np.asarray(alone))
# What does not go by element is stepped whole.
coded = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
whole = jax.jit(coded.apply)(w, w, coded.init(jnp.asarray(host["w"])))[0]
np.testing.assert_array_equal(
    np.asarray(whole),
    np.asarray(coded.apply(jnp.asarray(host["w"]), jnp.asarray(host["w"]), coded.init(jnp.asarray(host["w"])))[0]),
)
lamb = adaptk.jax.lamb(0.1)
stepped = jax.jit(lamb.apply)(w, w, lamb.init(jnp.asarray(host["w"])))[0]
alone = lamb.apply(jnp.asarray(host["w"]), jnp.asarray(host["w"]), lamb.init(jnp.asarray(host["w"])))[0]
np.testing.assert_array_equal(np.asarray(stepped), np.asarray(alone))
for shardy in (False,):
    jax.config.update("jax_use_shardy_partitioner", shardy)
    jax.clear_caches()
    sgd = adaptk.jax.sgd(0.1)
    compiled = jax.jit(sgd.apply).lower(put(host), put(grads), sgd.init(host)).compile()
    assert "all-gather" not in compiled.as_text()
    again, _ = compiled(put(host), put(grads), sgd.init(host))
    np.testing.assert_array_equal(np.asarray(again["w"]), host["w"] - np.float32(0.1) * grads["w"])
"""


@pytest.mark.full
def test_jit_over_a_mesh_with_automatic_axes() -> None:
    """Each device steps its part: nothing is gathered, and the bits are those of one device."""
    import os

    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", _AUTOMATIC], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
