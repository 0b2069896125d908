"""adaptk.jax's handler for CUDA devices: the bits of the CPU's. XLA has no such device here, so tests call it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import adaptk
import numpy as np
import pytest
from device_arrays import Machine, SimulatedMachine, cudart
from helpers import Array, same_bits
from run_time_compiler import cache as cache
from run_time_compiler import needs_nvrtc

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax = pytest.importorskip("jax")
pytest.importorskip("adaptk._jax", reason="this build was made without jaxlib's headers", exc_type=ImportError)

import adaptk.jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax_handler  # noqa: E402
from jax_handler import HandlerError, Memory  # noqa: E402

pytestmark = pytest.mark.cuda

SHAPES = {"a": (300,), "b": [(7, 19), (), (0,)], "c": (3,)}
FORMATS: list[Any] = [None, "bfloat16", "bfloat16_sr", "8bit", "8bit_nearest"]


@pytest.fixture
def memory(machine: Machine) -> Iterator[Memory]:
    assert adaptk.cuda.is_available()  # which passes the table of the device's functions
    runtime = cudart()
    used: list[int] = []

    def put(data: bytes) -> int:
        if not data:
            return 0
        used.append(runtime.allocate(len(data)))
        runtime.write(used[-1], data)
        return used[-1]

    yield Memory(put, lambda at, nbytes: runtime.read(at, nbytes) if nbytes else b"")
    for address in used:
        runtime.free(address)


Route = Callable[..., Any]


@pytest.fixture
def on_device(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Route:
    """A JAX function whose steps run on the device."""

    def routed(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with monkeypatch.context() as patched:
                jax_handler.route(patched, partial(jax_handler.call, "CUDA", memory, **options))
                # A new function each time: JAX caches traced functions.
                return jax.block_until_ready(jax.jit(lambda *x: function(*x))(*arguments))

        return run

    return routed


def randoms(seed: int, shapes: Any = SHAPES, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.array(rng.normal(size=s), dtype), shapes, is_leaf=lambda s: isinstance(s, tuple))


def assert_same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert same_bits(a, b)


def steps(apply: Callable[..., Any], opt: Any, params: Any) -> Any:
    state = opt.init(params)
    for t in range(2):
        params, state = apply(params, randoms(1 + t), state)
    return params, state


# Every rule has its own kernel, and every format has its own path through the handler, the same for all rules.
@pytest.mark.parametrize(
    ("rule", "state_dtype"),
    [
        *((rule, None) for rule, r in adaptk.rules().items() if r.states),
        *((rule, name) for rule in ("adam", "yogi", "rmsprop_centered_momentum") for name in FORMATS[1:]),
    ],
    ids=str,
)
def test_steps_match_the_cpu(on_device: Route, rule: str, state_dtype: Any) -> None:
    opt = getattr(adaptk.jax, rule)(0.0123, state_dtype=state_dtype, min_8bit_size=0, seed=5)
    params = randoms(0)
    assert_same(steps(on_device(opt.apply), opt, params), steps(jax.jit(opt.apply), opt, params))


@needs_nvrtc
@pytest.mark.parametrize("rule", ["lamb", "lars", "stable_adamw", "novograd", "adam_mini_tensor", "sm3_momentum"])
def test_reductions(on_device: Route, rule: str) -> None:
    opt = getattr(adaptk.jax, rule)(0.0123, weight_decay=0.1)
    params = randoms(0)
    assert_same(steps(on_device(opt.apply), opt, params), steps(jax.jit(opt.apply), opt, params))


@needs_nvrtc
@pytest.mark.parametrize("state_dtype", [None, "8bit_nearest"], ids=str)
def test_five_states(on_device: Route, state_dtype: Any) -> None:
    opt = adaptk.jax.cocob(weight_decay=0.1, state_dtype=state_dtype, min_8bit_size=0)
    params = randoms(0)
    assert_same(steps(on_device(opt.apply), opt, params), steps(jax.jit(opt.apply), opt, params))


@needs_nvrtc
@pytest.mark.parametrize("rule", ["prodigy", "dog"])
def test_reductions_over_all_params(on_device: Route, rule: str) -> None:
    """Numbers that are carried on are read from the device, and written to it."""
    options = {"d0": 0.01} if rule == "prodigy" else {}
    mask = {"a": True, "b": False, "c": True}
    opt = getattr(adaptk.jax, rule)(0.5, weight_decay=0.1, mask=mask, **options)
    params = randoms(0)
    assert_same(steps(on_device(opt.apply), opt, params), steps(jax.jit(opt.apply), opt, params))


@needs_nvrtc
def test_vmap_of_reductions_over_all_params(on_device: Route) -> None:
    opt = adaptk.jax.dog(0.5)
    members = [randoms(k) for k in range(2)]
    states = [opt.init(m)._replace(count=jnp.int32(k)) for k, m in enumerate(members)]
    p, s = jax.tree.map(lambda *x: jnp.stack(x), *zip(members, states, strict=True))
    got = on_device(jax.vmap(opt.apply))(p, p, s)
    for k in range(2):
        want = jax.jit(opt.apply)(members[k], members[k], states[k])
        assert_same(jax.tree.map(lambda x: x[k], got), want)  # noqa: B023


@needs_nvrtc
def test_vmap_of_reductions(on_device: Route) -> None:
    """Each member has its own norms, state and rate."""

    def step(params: Any, grads: Any, state: Any, lr: Any) -> Any:
        return adaptk.jax.novograd(lr).apply(params, grads, state)

    members = [randoms(k) for k in range(3)]
    states = [adaptk.jax.novograd().init(m)._replace(count=jnp.int32(k)) for k, m in enumerate(members)]
    p, s = jax.tree.map(lambda *x: jnp.stack(x), *zip(members, states, strict=True))
    lrs = jnp.array([0.1, 0.2, 0.4])
    got = on_device(jax.vmap(step))(p, p, s, lrs)
    for k in range(3):
        want = jax.jit(step)(members[k], members[k], states[k], lrs[k])
        assert_same(jax.tree.map(lambda x: x[k], got), want)  # noqa: B023


@pytest.mark.parametrize("state_dtype", [None, "bfloat16_sr"], ids=str)
def test_packed_states(on_device: Route, state_dtype: Any) -> None:
    opt = adaptk.jax.adam(0.0123, state_dtype=state_dtype, packed=True, seed=5)
    params = randoms(0)
    assert_same(steps(on_device(opt.apply), opt, params), steps(jax.jit(opt.apply), opt, params))


def test_results_out_of_place(on_device: Route) -> None:
    """Memory that was not donated is copied on the device first."""
    opt = adaptk.jax.adam(0.0123, state_dtype="8bit", min_8bit_size=0)
    params = randoms(0, dtype=jnp.bfloat16)
    got = steps(on_device(opt.apply, in_place=False), opt, params)
    assert_same(got, steps(jax.jit(opt.apply), opt, params))


@pytest.mark.parametrize("state_dtype", FORMATS, ids=str)
def test_vmap(on_device: Route, state_dtype: Any) -> None:
    """Members with their own steps and rates; codes begin at any byte, and scales at any multiple of 4."""

    def step(params: Any, grads: Any, state: Any, lr: Any) -> Any:
        return adaptk.jax.adam(lr, state_dtype=state_dtype, min_8bit_size=0, seed=5).apply(params, grads, state)

    opt = adaptk.jax.adam(state_dtype=state_dtype, min_8bit_size=0)
    params, grads = ([randoms(s) for s in seeds] for seeds in ((0, 1, 2), (3, 4, 5)))
    states = [opt.init(p)._replace(count=jnp.int32(i)) for i, p in enumerate(params)]
    p, g, s = (jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in (params, grads, states))
    lrs = jnp.array([0.1, 0.2, 0.4])
    got = on_device(jax.vmap(step))(p, g, s, lrs)
    for i in range(3):
        want = jax.jit(step)(params[i], grads[i], states[i], lrs[i])
        assert_same(jax.tree.map(lambda x: x[i], got), want)  # noqa: B023


@pytest.mark.parametrize("param_format", adaptk.formats.PARAM_FORMATS)
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "beside"])
def test_param_formats(on_device: Route, param_format: str, in_place: bool) -> None:
    opt = adaptk.jax.adam(0.0123, param_format=param_format, seed=5)
    params = randoms(0, dtype=jnp.bfloat16)
    got = steps(on_device(opt.apply, in_place=in_place), opt, params)
    assert_same(got, steps(jax.jit(opt.apply), opt, params))


def test_vmap_of_split_params(on_device: Route) -> None:
    opt = adaptk.jax.adam(0.0123, param_format="remainder8", seed=5)
    members = [randoms(k, dtype=jnp.bfloat16) for k in range(3)]
    p, s = jax.tree.map(lambda *x: jnp.stack(x), *[(m, opt.init(m)) for m in members])
    got = on_device(jax.vmap(opt.apply))(p, p, s)
    for k in range(3):
        want = jax.jit(opt.apply)(members[k], members[k], opt.init(members[k]))
        assert_same(jax.tree.map(lambda x: x[k], got), want)  # noqa: B023


def test_the_stream_is_xlas(on_device: Route, machine: Machine) -> None:
    runtime = cudart()
    stream = runtime.new_stream()
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
    params = randoms(0)
    machine.calls.reset()
    on_device(opt.apply, stream=stream, in_place=False)(params, params, opt.init(params))
    assert machine.calls.streams("step") == [stream]
    assert set(machine.calls.streams("copy")) == {stream}
    runtime.end_stream(stream)


def test_no_elements(on_device: Route, machine: Machine) -> None:
    opt = adaptk.jax.adam(0.1, state_dtype="8bit", min_8bit_size=0)
    params = {"a": jnp.ones((0, 3))}
    machine.calls.reset()
    _, state = on_device(opt.apply)(params, params, opt.init(params))
    assert int(state.count) == 1
    assert machine.calls.streams("step") == []


def operands() -> tuple[list[Array], int, dict[str, Any]]:
    """The operands of adaptk.jax for a step of sgd with a traced scale of gradients."""
    found: list[Any] = []
    values = adaptk.rules()["sgd"].defaults()
    traced = [int(name == "grad_scale") for name in values]
    found += [np.ones(3, np.float32), np.ones(3, np.float32), np.array(1, np.int32), np.array(0.5, np.float32)]
    attributes = {
        "rule": "sgd",
        "packed": np.array(False),
        "values": np.array([float(v) for v in values.values()]),
        "traced": np.array(traced, np.int32),
        "numbers": np.zeros(1, np.int32),
        "decayed": np.ones(1, np.int32),
        "formats": "",
        "param_format": "",
        "seed": np.int64(0),
    }
    return found, 1, attributes


def test_errors(memory: Memory, simulator: SimulatedMachine) -> None:
    arrays, kept, attributes = operands()
    with pytest.raises(HandlerError, match="grad_scale: a number that is traced, which steps on a CUDA device do not"):
        jax_handler.call("CUDA", memory, arrays, kept, attributes)
    attributes["traced"][:] = 0
    with simulator.calls.failing("step"), pytest.raises(HandlerError, match="step: unspecified launch failure"):
        jax_handler.call("CUDA", memory, arrays[:3], kept, attributes)
    (param,) = jax_handler.call("CUDA", memory, arrays[:3], kept, attributes)
    want = np.ones(3, np.float32)
    adaptk.ops.sgd(want, np.ones(3, np.float32), step=1)
    assert same_bits(param, want)
