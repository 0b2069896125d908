"""adaptk.jax.muon against optax's and a formula in NumPy."""

from __future__ import annotations

import copy
import doctest
import pickle
from typing import Any

import numpy as np
import pytest
from muon_cases import newton_schulz

jax = pytest.importorskip("jax")
import adaptk.jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

muon = adaptk.jax.muon
SHAPES = {"wide": (4, 6), "tall": (6, 4), "bias": (5,), "conv": (2, 3, 2)}


def tree(seed: int, dtype: str = "float32") -> dict[str, Any]:
    source = np.random.default_rng(seed)
    return {name: jnp.asarray(source.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    for x, y in zip(jax.tree_util.tree_leaves(a), jax.tree_util.tree_leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=tolerance, atol=tolerance)


def train(opt: Any, steps: int = 4, jit: bool = True, dtype: str = "float32") -> Any:
    params = tree(0, dtype)
    state = opt.init(params)
    step = jax.jit(opt.apply, donate_argnums=(0, 2)) if jit else opt.apply
    for t in range(steps):
        params, state = step(params, tree(1 + t, dtype), state)
    return params, state


OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": False, "momentum": 0.5, "weight_decay": 0.0},
    {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.5, "ns_steps": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_match_the_formula(options: dict[str, Any]) -> None:
    found, _ = train(muon(0.1, ns_dtype="float32", **options))
    mu, decay = options.get("momentum", 0.95), options.get("weight_decay", 0.1)
    for name in ("wide", "tall"):
        p = np.asarray(tree(0)[name], np.float64)
        m = np.zeros_like(p)
        inputs, outputs = p.shape
        ratio = np.sqrt(max(1, outputs / inputs))
        if "adjust_lr_fn" in options:
            ratio = 0.2 * np.sqrt(max(inputs, outputs))
        for t in range(4):
            g = np.asarray(tree(1 + t)[name], np.float64)
            m = mu * m + (1 - mu) * g
            u = (1 - mu) * g + mu * m if options.get("nesterov", True) else m
            p = (1 - 0.1 * decay) * p - 0.1 * ratio * newton_schulz(u, steps=options.get("ns_steps", 5))
        np.testing.assert_allclose(found[name], p, rtol=1e-3, atol=1e-3)


def test_the_first_step_matches_optax() -> None:
    """Later ones differ: optax corrects the bias of the momentum, which changes the direction of Nesterov's sum."""
    optax = pytest.importorskip("optax")
    contrib = pytest.importorskip("optax.contrib")
    ours, theirs = muon(0.1, ns_dtype="float32"), contrib.muon(0.1, weight_decay=0.1)
    params, grads = ({k: tree(seed)[k] for k in ("wide", "tall")} for seed in (0, 1))
    changes, state = jax.jit(ours.update)(grads, ours.init(params), params)
    close(changes, theirs.update(grads, theirs.init(params), params)[0], 1e-4)
    assert int(state.matrices.count) == 1
    assert isinstance(ours, optax.GradientTransformation)


def test_the_example() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(muon, "muon", module=False, globs={})
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.full
def test_the_rest_and_the_ways_to_step() -> None:
    rest = adaptk.jax.lion(0.01)
    opt = muon(0.05, rest=rest)
    params, state = train(opt)
    close(train(opt, jit=False)[0], params, 0.02)  # in bfloat16
    for name in ("bias", "conv"):
        alone, of = tree(0)[name], rest.init(tree(0)[name])
        for t in range(4):
            alone, of = rest.apply(alone, tree(1 + t)[name], of)
        assert jnp.array_equal(alone, params[name])
    assert [len(s) for s in (state.momentum.momentum_buffer, state.rest.exp_avg)] == [2, 2]
    before = tree(0)
    changes, _ = opt.update(tree(1), opt.init(before), before)
    after, _ = opt.apply(tree(0), tree(1), opt.init(before))
    close(jax.tree_util.tree_map(jnp.add, before, changes), after, 0.02)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits(dtype: str) -> None:
    params, state = train(muon(0.05, ns_dtype=dtype), dtype=dtype)
    assert {x.dtype.name for x in params.values()} == {dtype}
    assert {x.dtype.name for x in state.momentum.momentum_buffer} == {"float32"}
    close(params, train(muon(0.05, ns_dtype="float32"))[0], 0.1)


def test_selection_of_params() -> None:
    mask = {"wide": True, "tall": False, "bias": False, "conv": False}
    for use in (mask, lambda params: {k: k == "wide" for k in params}):
        state = muon(use_muon=use).init(tree(0))
        assert len(state.momentum.momentum_buffer) == 1
    nothing = dict.fromkeys(mask, False)
    state = muon(use_muon=nothing).init(tree(0))
    assert state.momentum is state.matrices is None
    assert muon().init({"w": jnp.ones((2, 2))}).rest is None


@pytest.mark.full
def test_schedules() -> None:
    rate = adaptk.schedules.cosine(0.1, total=4)
    params, _ = train(muon(rate, ns_dtype="float32"))
    by_hand, state = tree(0), muon().init(tree(0))
    for t in range(4):
        by_hand, state = muon(rate(t + 1), ns_dtype="float32").apply(by_hand, tree(1 + t), state)
    close(params, by_hand, 1e-3)


@pytest.mark.full
def test_copies() -> None:
    opt = muon(0.1, ns_dtype="float32", rest=adaptk.jax.lion(0.01))
    assert repr(opt).startswith("adaptk.jax.muon(learning_rate=0.1, weight_decay=0.1, momentum=0.95")
    assert opt.rule == "muon"
    for again in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)):
        close(train(again)[0], train(opt)[0], 0.0)
    other = opt._replace(init=len)
    assert repr(other).startswith("MuonTransformation(init=<built-in")
    with pytest.raises(TypeError, match="init or update is another function"):
        other.apply(None, None, None)
    _, state = train(opt)
    assert type(pickle.loads(pickle.dumps(state))) is adaptk.jax.MuonState


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: muon(-1.0), ValueError, "^learning_rate: -1"),
        (lambda: muon(weight_decay=-1.0), ValueError, "^weight_decay: -1"),
        (lambda: muon(momentum=1.0), ValueError, "^momentum: 1.0"),
        (lambda: muon(ns_steps=-1), ValueError, "^ns_steps: -1"),
        (lambda: muon(rest=3), TypeError, "^rest: expected a transformation of adaptk.jax, got int"),
        (lambda: muon(use_muon={"a": True}).init(tree(0)), ValueError, "^use_muon: its structure is"),
        (lambda: muon(use_muon={**tree(0)}).init(tree(0)), TypeError, "^use_muon: leaf 0 is a .*expected a bool"),
        (lambda: muon(use_muon=lambda p: dict.fromkeys(p, True)).init(tree(0)), ValueError, "^use_muon: leaf 0 of the"),
        (lambda: muon().apply(tree(0), tree(0), None), TypeError, "^state: expected what init has returned"),
        (lambda: muon().apply(tree(0), {}, muon().init(tree(0))), ValueError, "^grads: their structure is"),
        (lambda: muon().update(tree(0), muon().init(tree(0))), ValueError, "^params: the update needs them"),
    ],
)
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
