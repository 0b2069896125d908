"""Rules of `adaptk.jax` that reduce over all params: the bits of `adaptk.optim`, and what they carry on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import Array, same_bits

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
pytest.importorskip("adaptk._jax", reason="this build was made without jaxlib's headers", exc_type=ImportError)

import adaptk.jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

NAMES = ["prodigy", "dadapt_adam", "dadapt_sgd", "dog", "dowg"]
# The estimates grow within the first steps.
OPTIONS: dict[str, dict[str, Any]] = {"prodigy": {"d0": 0.01}, "dadapt_adam": {"d0": 0.01}, "dadapt_sgd": {"d0": 0.01}}
SHAPES = [(300,), (7, 19), (), (0, 3), (3,)]


def arrays(seed: int, shapes: Any = SHAPES, dtype: Any = np.float32) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=s), dtype) for s in shapes]


def carried(state: Any) -> list[float]:
    return [float(x) for x in np.asarray(state.carried).view(np.float64)[:, 0]]


def check(got: Any, state: Any, host: list[Array], opt: Any) -> None:
    """Params, states and carried numbers; the latter of a group whose params have weight decay."""
    for p, x in zip(host, got, strict=True):
        assert same_bits(p, np.asarray(x))
    rule = adaptk.rules()[opt.rules[0]]
    for s in rule.states:
        for i, x in enumerate(getattr(state, s.name)):
            assert same_bits(opt.state[i][s.name], np.asarray(x)), s.name
    assert carried(state) == [opt.param_groups[0][c] for c in rule.carried]


@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_optim(name: str, jitted: bool) -> None:
    options = {"weight_decay": 0.1, **OPTIONS.get(name, {})}
    host = arrays(0)
    opt = adaptk.optimizer_for(name, host, lr=0.5, **options)
    made = getattr(adaptk.jax, name)(0.5, **options)
    apply = jax.jit(made.apply, donate_argnums=(0, 2)) if jitted else made.apply
    params = [jnp.array(p) for p in host]
    state = made.init(params)
    start = carried(state)
    for t in range(4):
        grads = arrays(1 + t)
        opt.step(grads)
        params, state = apply(params, [jnp.array(g) for g in grads], state)
        check(params, state, host, opt)
    assert carried(state) != start
    assert int(state.count) == 4


def test_formats() -> None:
    """Params in bfloat16 with states in 8 bits."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    given: dict[str, Any] = {"d0": 0.01, "state_dtype": "8bit", "min_8bit_size": 0, "seed": 5, "param_format": "sr"}
    host = arrays(0, dtype=ml_dtypes.bfloat16)
    opt = adaptk.Prodigy(host, lr=0.5, **given)
    made = adaptk.jax.prodigy(0.5, **given)
    params = [jnp.array(p) for p in host]
    state = made.init(params)
    for t in range(3):
        grads = arrays(1 + t)
        opt.step(grads)
        params, state = jax.jit(made.apply)(params, [jnp.array(g) for g in grads], state)
    for p, x in zip(host, params, strict=True):
        assert p.tobytes() == np.asarray(x).tobytes()
    assert carried(state) == [opt.param_groups[0][c] for c in adaptk.rules()["prodigy"].carried]


def test_masks_are_groups() -> None:
    """Params without weight decay have a part in the same sums, in the order of the tree."""
    host = arrays(0)
    mask = [True, False, False, True, True]
    groups = [{"params": [p], "weight_decay": 0.25 if m else 0.0} for p, m in zip(host, mask, strict=True)]
    opt = adaptk.Prodigy(groups, lr=0.5, d0=0.01)
    made = adaptk.jax.prodigy(0.5, d0=0.01, weight_decay=0.25, mask=mask)
    params = [jnp.array(p) for p in host]
    state = made.init(params)
    for t in range(3):
        grads = arrays(1 + t)
        opt.step(grads)
        params, state = jax.jit(made.apply)(params, [jnp.array(g) for g in grads], state)
        check(params, state, host, opt)
    # The weight decay itself may be known at run time only.
    first = [jnp.array(p) for p in arrays(0)]
    traced = jax.jit(
        lambda w, p, g: adaptk.jax.prodigy(0.5, d0=0.01, weight_decay=w, mask=mask).apply(p, g, made.init(first))
    )(np.float32(0.25), first, first)
    want = made.apply([*first], [x.copy() for x in first], made.init(first))
    for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(want), strict=True):
        assert same_bits(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("schedule", [True, False])
def test_learning_rates_of_each_step(schedule: bool) -> None:
    rates = [0.5, 0.25, 1.0]
    host = arrays(0)
    opt = adaptk.DAdaptAdam(host, lr=rates[0], d0=0.01)
    of_step = adaptk.schedules.step_decay(0.5, every=1, gamma=0.5) if schedule else None
    params = [jnp.array(p) for p in host]
    state = adaptk.jax.dadapt_adam(d0=0.01).init(params)

    @jax.jit
    def step(params: Any, grads: Any, state: Any, lr: Any) -> Any:
        return adaptk.jax.dadapt_adam(of_step if of_step is not None else lr, d0=0.01).apply(params, grads, state)

    for t, lr in enumerate(rates):
        opt.param_groups[0]["lr"] = of_step(t + 1) if of_step is not None else lr
        grads = arrays(1 + t)
        opt.step(grads)
        params, state = step(params, [jnp.array(g) for g in grads], state, np.float32(lr))
        check(params, state, host, opt)


def test_loops() -> None:
    made = adaptk.jax.prodigy(1.0, d0=0.01)
    params = [jnp.array(p) for p in arrays(0)]
    state = made.init(params)

    def body(held: Any, _: Any) -> Any:
        p, s = held
        return made.apply(p, p, s), s.count

    (looped, of_loop), _ = jax.jit(lambda p, s: jax.lax.scan(body, (p, s), None, length=3))(params, state)
    for _ in range(3):
        params, state = jax.jit(lambda p, s: made.apply(p, p, s))(params, state)
    for a, b in zip(jax.tree.leaves((looped, of_loop)), jax.tree.leaves((params, state)), strict=True):
        assert same_bits(np.asarray(a), np.asarray(b))


def test_many_params() -> None:
    """One call of more arrays than XLA compiles fast, unless it has side effects; those must not forbid anything."""
    shapes = [(k % 5, 3) for k in range(60)]
    made = adaptk.jax.prodigy(1.0, d0=0.01)
    host = arrays(0, shapes)
    opt = adaptk.Prodigy(host, lr=1.0, d0=0.01)
    first = [jnp.array(p) for p in host]
    start = made.init(first)
    text = jax.jit(made.apply).lower(first, first, start).as_text()
    assert text.count("custom_call @adaptk_step") == 1
    assert ("has_side_effect = true" in text) == (jax.device_count() == 1)
    grads = [arrays(1 + t, shapes) for t in range(3)]
    stacked = [jnp.stack(g) for g in zip(*grads, strict=True)]

    def steps(params: Any, state: Any, gradients: Any) -> Any:
        return jax.lax.scan(lambda c, g: (made.apply(c[0], g, c[1]), None), (params, state), gradients)[0]

    params, state = jax.jit(steps)(first, start, stacked)
    batched = jax.vmap(steps, in_axes=(None, None, 0))(first, start, [jnp.stack([g, 2 * g]) for g in stacked])
    kept = jax.jit(jax.checkpoint(steps))(first, start, stacked)
    for g in grads:
        opt.step(g)
    check(params, state, host, opt)
    for x, y, z in zip(*(jax.tree.leaves(t) for t in ((params, state), batched, kept)), strict=True):
        assert same_bits(np.asarray(x), np.asarray(y[0]))
        assert same_bits(np.asarray(x), np.asarray(z))


def test_members_of_a_batch_have_sums_of_their_own() -> None:
    made = adaptk.jax.dog(0.5, weight_decay=0.1, mask=[True, False, True, True, False])
    members = [[jnp.array(p) for p in arrays(k)] for k in range(3)]
    states = [made.init(m)._replace(count=jnp.int32(k)) for k, m in enumerate(members)]
    p, s = jax.tree.map(lambda *x: jnp.stack(x), *zip(members, states, strict=True))
    g = jax.tree.map(lambda x: 2 * x, p)
    for _ in range(2):
        p, s = jax.jit(jax.vmap(made.apply))(p, g, s)
    for k in range(3):
        grads = [2 * x for x in members[k]]
        want = members[k], states[k]
        for _ in range(2):
            want = jax.jit(made.apply)(want[0], grads, want[1])
        for a, b in zip(jax.tree.leaves((p, s)), jax.tree.leaves(want), strict=True):
            assert same_bits(np.asarray(a[k]), np.asarray(b))


def test_all_params_are_in_one_call() -> None:
    """More than the arrays of a call of other rules."""
    host = arrays(0, [(3,)] * 100)
    opt = adaptk.DoG(host, lr=0.5)
    made = adaptk.jax.dog(0.5)
    params = [jnp.array(p) for p in host]
    state = made.init(params)
    for t in range(2):
        grads = arrays(1 + t, [(3,)] * 100)
        opt.step(grads)
        params, state = made.apply(params, [jnp.array(g) for g in grads], state)
    check(params, state, host, opt)


@pytest.fixture
def scaled() -> Iterator[adaptk.TracedRule]:
    """Sums over all params, and nothing that is carried on."""
    made = adaptk.rule(name="scaled_by_all", lr=0.5)(lambda p, g, h, t: p - h.lr * g / (1 + adaptk.norm(g, over="all")))
    yield made
    made.unregister()


def test_without_carried_numbers(scaled: adaptk.TracedRule) -> None:
    host = arrays(0)
    params = [jnp.array(p) for p in host]
    made = scaled.jax(0.5, weight_decay=0.1, mask=[True, False, True, True, True])
    state = made.init(params)
    assert state._fields == ("count",)
    groups = [{"params": [p], "weight_decay": 0.0 if i == 1 else 0.1} for i, p in enumerate(host)]
    opt = scaled.Optimizer(groups, lr=0.5)
    grads = arrays(1)
    opt.step(grads)
    params, state = made.apply(params, [jnp.array(g) for g in grads], state)
    for p, x in zip(host, params, strict=True):
        assert same_bits(p, np.asarray(x))


def test_trees_without_params() -> None:
    made = adaptk.jax.prodigy()
    _, state = made.apply({}, {}, made.init({}))
    assert int(state.count) == 1
    assert carried(state) == [0.0, 0.0, 0.0]


def test_updates() -> None:
    made = adaptk.jax.dog(0.5)
    params = [jnp.array(p) for p in arrays(0)]
    state = made.init(params)
    updates, after = made.update(params, state, params)
    new, want = jax.jit(made.apply)(params, params, state)
    assert carried(after) == carried(want)
    for u, p, n in zip(updates, params, new, strict=True):
        assert same_bits(np.asarray(u), np.asarray(n - p))
    with pytest.raises(ValueError, match="params: the update of dog needs them here"):
        made.update(params, state)


def test_what_is_refused() -> None:
    params = [jnp.ones(4)]
    made = adaptk.jax.prodigy()
    state = made.init(params)
    with pytest.raises(ValueError, match="packed: prodigy reduces all tensors to one number"):
        adaptk.jax.prodigy(packed=True)
    with pytest.raises(TypeError, match="d: it is carried from step to step, and begins with the rule's own value"):
        adaptk.jax.prodigy(d=0.1)
    for wrong in (jnp.zeros((2, 2), jnp.uint32), jnp.zeros((3, 2), jnp.float32)):
        with pytest.raises(TypeError, match=r"state.carried: \w+ of shape \(\d, 2\), expected uint32 of \(3, 2\)"):
            made.apply(params, params, state._replace(carried=wrong))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))
    cut = [jax.device_put(params[0], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))]
    with pytest.raises(ValueError, match="cut into parts over several devices, and prodigy reduces whole tensors"):
        made.apply(cut, params, state)
    whole = [jnp.ones(4, jnp.complex64)]
    with pytest.raises(TypeError, match="complex, whose real and imaginary parts are tensors of their own"):
        made.apply(whole, whole, made.init(whole))


def test_the_state_goes_through_files() -> None:
    """Restored, steps go on where they were."""
    import pickle

    made = adaptk.jax.prodigy(1.0, d0=0.01)
    params = [jnp.array(p) for p in arrays(0)]
    params, state = jax.jit(made.apply)(params, params, made.init(params))
    again, restored = pickle.loads(pickle.dumps((params, state)))
    a, b = (jax.jit(made.apply)(p, p, s) for p, s in ((params, state), (again, restored)))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert same_bits(np.asarray(x), np.asarray(y))


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, adaptk.jax
from jax.sharding import NamedSharding, PartitionSpec as P

assert len(jax.devices()) == 4
rng = np.random.default_rng(0)
shapes = [(8, 5), (4,), (12,)]
host, *grads = [[rng.normal(size=s).astype(np.float32) for s in shapes] for _ in range(4)]
mesh = jax.sharding.Mesh(np.array(jax.devices()), "d")
cut = lambda x: jax.device_put(x, NamedSharding(mesh, P("d")))
for name in NAMES:
    made = getattr(adaptk.jax, name)(0.5)
    found = []
    for put in (jnp.asarray, cut):
        apply = jax.jit(made.apply)
        p = [put(x) for x in host]
        s = made.init(p)
        for g in grads:
            p, s = apply(p, [put(x) for x in g], s)
        found.append([np.asarray(x).tobytes() for x in jax.tree.leaves((p, s))])
    whole = jax.shard_map(made.apply, mesh=mesh, in_specs=P(), out_specs=P())
    p = [jnp.asarray(x) for x in host]
    s = made.init(p)
    for g in grads:
        p, s = jax.jit(whole)(p, [jnp.asarray(x) for x in g], s)
    found.append([np.asarray(x).tobytes() for x in jax.tree.leaves((p, s))])
    assert found[0] == found[1] == found[2], name
print("same bits")
"""


@pytest.mark.full
def test_several_devices() -> None:
    """Params that are cut into parts under `jit`, or whole on every device: the bits of one device."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = f"NAMES = {[*NAMES, 'adafactor', 'lamb']}\n{DEVICES}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "same bits\n", done.stderr[-3000:]
