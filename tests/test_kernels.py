"""Every kernel against the oracles, and against itself on every instruction set, thread count and partition, bit for
bit. All NaNs are equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import adaptk
import numpy as np
import oracles
import pytest
from helpers import FLOATS, PAIRS, RULES, THREE_RULES, Array, call, dtype_of, first_tier, make, same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ISAS = adaptk.available_isas()
COMMON = ("weight_decay", "decoupled", "maximize", "grad_scale")
# One vector of each width and its neighbours, a tile and its neighbours, primes.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 61, 127, 1021, 1023, 1024, 1025, 4099]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-40, -1e-42, 1e-310, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 1e-20, 65504.0, 6e-8]


def assert_equal(got: Array, want: Array, what: object) -> None:
    """The same bits; all NaNs are equal."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    unsigned = np.dtype(f"u{got.dtype.itemsize}")
    nan = np.isnan(got.astype(np.float64))
    wrong = (nan != np.isnan(want.astype(np.float64))) | (~nan & (got.view(unsigned) != want.view(unsigned)))
    assert not wrong.any(), (what, np.flatnonzero(wrong)[:5], got[wrong][:5], want[wrong][:5])


def start(rule: str, size: int, param: str, grad: str, seed: int, special: bool) -> tuple[Array, Array, list[Array]]:
    rng = np.random.default_rng(seed)

    def values(argument: str) -> Array:
        x = rng.normal(size=size) * 10.0 ** rng.uniform(-6, 2, size=size)
        if argument not in ("param", "grad", "momentum_buffer", "velocity", "bar", "exp_avg", "grad_avg", "prev"):
            x = np.abs(x)
        if special:
            at = rng.random(size) < 0.4
            x[at] = rng.choice(SPECIAL, size=int(at.sum()))
        with np.errstate(all="ignore"):
            return x.astype(dtype_of(argument, param, grad))

    return values("param"), values("grad"), [values(s.name) for s in RULES[rule].states]


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {k: v for k, v in values.items() if k not in COMMON}
    return own, {k: v for k, v in values.items() if k in COMMON}


def compare(
    rule: str, param: Array, grads: Sequence[Array], states: list[Array], first: int, hyper: Mapping[str, Any]
) -> None:
    own, common = split(hyper)
    want_p, want_s = param, tuple(states)
    got_p, got_s = param.copy(), [s.copy() for s in states]
    function = getattr(adaptk.ops, rule)
    for t, grad in enumerate(grads, first):
        want_p, want_s = oracles.step(rule, want_p, grad, want_s, step=t, hyper=own, **common)
        function(got_p, grad, *got_s, step=t, **hyper)
        what = (rule, t, dict(hyper))
        assert_equal(got_p, want_p, what)
        for state, got, want in zip(RULES[rule].states, got_s, want_s, strict=True):
            assert_equal(got, want, (state.name, *what))


def in_range(interval: str) -> st.SearchStrategy[Any]:
    """Values of a hyperparameter from its interval in the registry."""
    small = st.sampled_from([0.0, 1e-16, 1e-8, 1e-6, 1e-3, 0.1])
    return {
        "bool": st.booleans(),
        "(-inf, inf)": st.floats(-1e3, 1e3),
        "[0, inf)": small | st.floats(0, 1e3),
        "[0, 1)": st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999]) | st.floats(0, 1, exclude_max=True),
        "[0, 1]": st.floats(0, 1),
        "(0, 1)": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "(1, inf)": st.floats(1, 10, exclude_min=True),
        "[0, inf]": st.floats(1e3, 1e4) | st.just(np.inf),
    }[interval]


@st.composite
def hyperparameters(draw: st.DrawFn, rule: str) -> dict[str, Any]:
    return {h.name: draw(in_range(h.range)) for h in RULES[rule].hyperparameters}


@pytest.mark.parametrize("rule", RULES)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_hyperparameters(rule: str, data: st.DataObject) -> None:
    hyper = data.draw(hyperparameters(rule))
    param, grad = data.draw(st.sampled_from(PAIRS))
    size = data.draw(st.sampled_from(SIZES[:17]))
    first = data.draw(st.sampled_from([1, 2, 5, 100, 12_345, 10_000_019]))
    if rule == "nadam" and hyper["beta1"] > 0.999:
        first = min(
            first, 12_345
        )  # the oracle multiplies as many momenta, each a power with 60 digits, until the product vanishes
    seed = data.draw(st.integers(0, 2**32))
    p, g, states = start(rule, size, param, grad, seed, special=data.draw(st.booleans()))
    before = adaptk.get_isa()
    adaptk.set_isa(data.draw(st.sampled_from(ISAS)))
    try:
        compare(rule, p, [g, g[::-1].copy(), g], states, first, hyper)
    finally:
        adaptk.set_isa(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_every_convention_over_hundreds_of_steps(rule: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    grads = [(rng.normal(size=37) * 10.0 ** rng.uniform(-8, 1, size=37)).astype(dtype) for _ in range(300)]
    for convention in RULES[rule].conventions:
        hyper = RULES[rule].defaults(convention)
        states = [np.full(37, v, dtype) for v in RULES[rule].initial_states(convention).values()]
        compare(rule, rng.normal(size=37).astype(dtype), grads, states, 1, hyper)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.03},
    {"weight_decay": 0.03, "decoupled": True},
    {"maximize": True},
    {"maximize": True, "weight_decay": 0.2, "grad_scale": 1 / 3},
    {"grad_scale": -2.5, "decoupled": True, "weight_decay": 1e-4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("param", "grad"), PAIRS)
@pytest.mark.parametrize("rule", RULES)
def test_every_type_and_option(rule: str, param: str, grad: str, options: dict[str, Any]) -> None:
    hyper = {**RULES[rule].defaults(), **options}
    for special in (False, True):
        p, g, states = start(rule, 133, param, grad, 3, special)
        compare(rule, p, [g, g * g.dtype.type(0.5)] if not special else [g], states, 1, hyper)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES)
def test_every_size_and_instruction_set(rule: str, isa: str, restored: None) -> None:
    adaptk.set_isa(isa)
    hyper = RULES[rule].defaults()
    for param, grad in [("float32", "float32"), ("float64", "float64"), *[(t, t) for t in FLOATS if "16" in t]]:
        for size in SIZES:
            p, g, states = start(rule, size, param, grad, size, special=True)
            compare(rule, p, [g], states, 2, hyper)


def run(rule: str, arrays: Sequence[Any], **hyper: Any) -> None:
    getattr(adaptk.ops, rule)(*arrays, step=4, **hyper)


@pytest.mark.parametrize(("param", "grad"), [("float32", "float32"), ("float64", "float32"), ("float16", "float16")])
@pytest.mark.parametrize("rule", RULES)
def test_threads_and_partitions(rule: str, param: str, grad: str, restored: None) -> None:
    """One and several threads, one tensor and the same data split into many, with elements for several threads."""
    size = 150_001
    p, g, states = start(rule, size, param, grad, 11, special=True)
    hyper = {"weight_decay": 0.01}
    adaptk.set_num_threads(1)
    want = [p.copy(), g, *(s.copy() for s in states)]
    run(rule, want, **hyper)
    for threads in (2, 3, 7):
        adaptk.set_num_threads(threads)
        got = [p.copy(), g, *(s.copy() for s in states)]
        run(rule, got, **hyper)
        for a, b in zip(got, want, strict=True):
            assert_equal(a, b, (rule, threads))
        cuts = np.sort(np.random.default_rng(threads).integers(0, size, 300))
        got = [p.copy(), g, *(s.copy() for s in states)]
        run(rule, [np.split(a, cuts) for a in got], **hyper)
        for a, b in zip(got, want, strict=True):
            assert_equal(a, b, (rule, threads, "cut"))


@pytest.mark.parametrize("rule", first_tier(RULES, *THREE_RULES))
def test_thousands_of_tensors(rule: str) -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(0, 40, 3000)
    pieces = [start(rule, int(n), "float32", "float32", i, special=False) for i, n in enumerate(sizes)]
    want = [(p.copy(), g, *(s.copy() for s in states)) for p, g, states in pieces]
    for w in want:
        run(rule, w)
    got = [[p, g, *states] for p, g, states in pieces]
    run(rule, list(map(list, zip(*got, strict=True))))
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y, (rule, i))


@pytest.mark.parametrize("offset", range(1, 64))
def test_offsets(offset: int) -> None:
    """Memory at any byte offset: kernels see aligned elements or an aligned copy of a tile."""
    for param, grad in [("float32", "float32"), ("float64", "float64"), ("float16", "float16"), ("float64", "float16")]:
        for rule in ("adam", "delta_bar_delta", "adan"):
            p, g, states = start(rule, 1100, param, grad, offset, special=True)
            want = [p.copy(), g, *(s.copy() for s in states)]
            run(rule, want)
            got = []
            for a in (p, g, *states):
                memory = np.zeros(a.nbytes + 64, np.uint8)
                moved = memory[offset : offset + a.nbytes].view(a.dtype)
                moved[...] = a
                got.append(moved)
            run(rule, got)
            for a, b in zip(got, want, strict=True):
                assert_equal(np.array(a), b, (rule, offset, param))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("isa", ISAS)
def test_global_norm(isa: str, dtype: str, restored: None) -> None:
    adaptk.set_isa(isa)
    rng = np.random.default_rng(1)
    for sizes in ([0], [1], [7, 0, 5], [8191, 8193], [100_003], [300, 70_000, 1, 12_000, 255, 257], [3] * 4000):
        grads = [rng.normal(size=n).astype(FLOATS[dtype]) for n in sizes]
        want = oracles.global_norm(grads, -0.3)
        for threads in (1, 2, 5):
            adaptk.set_num_threads(threads)
            assert adaptk.global_norm(grads, -0.3) == want
            assert adaptk.global_norm([np.concatenate(grads)], -0.3) == want
        exact = np.sqrt(np.sum(np.concatenate(grads).astype(np.float64) ** 2)) * 0.3
        assert want == pytest.approx(exact, rel=1e-13)


def test_global_norm_of_extreme_float64() -> None:
    for scale in (1e200, 1e-200, 1e300, 5e-324):
        grads = [np.full(10_000, scale), np.array([scale], np.float64)]
        assert adaptk.global_norm(grads) == pytest.approx(np.sqrt(10_001.0) * scale, rel=1e-12)
    assert adaptk.global_norm([np.array([1e200]), np.array([2.0], np.float32)]) == pytest.approx(1e200)
    assert adaptk.global_norm([np.array([np.inf]), np.array([1e200])]) == np.inf
    assert np.isnan(adaptk.global_norm([np.array([np.nan, 1.0])]))
    assert np.isnan(adaptk.global_norm([np.array([np.inf, np.nan])]))


def test_clipping_uses_the_norm_of_the_oracle() -> None:
    rng = np.random.default_rng(2)
    params = [rng.normal(size=n).astype(np.float32) for n in (5000, 3, 20_000)]
    grads = [rng.normal(size=p.size).astype(np.float32) for p in params]
    for clip in (1e-3, 1.0, 1e9):
        norm = oracles.global_norm(grads, 0.5)
        scale = oracles.clip_scale(norm, clip, 0.5)
        want = []
        for p, g in zip(params, grads, strict=True):
            states = (np.zeros_like(p), np.zeros_like(p))
            own, common = split(RULES["adam"].defaults())
            common["grad_scale"] = scale
            want.append(oracles.step("adam", p, g, states, step=1, hyper=own, **common)[0])
        got = [p.copy() for p in params]
        info = adaptk.Adam(got).step(grads, clip_norm=clip, grad_scale=0.5)
        assert info.grad_norm == norm
        for a, b in zip(got, want, strict=True):
            assert_equal(a, b, clip)


@pytest.mark.parametrize("rule", RULES)
def test_scalars_of_every_instruction_set(rule: str, restored: None) -> None:
    """Powers and roots that a step computes once: the same bits with and without hardware FMA."""
    steps = (1, 2, 3, 7, 100, 1023, 12345, 10**6, 2**40)
    found: dict[str, list[Array]] = {}
    for isa in ISAS:
        adaptk.set_isa(isa)
        found[isa] = []
        for step in steps:
            for dtype in ("float32", "float64"):
                buffers = make(rule, 5, dtype, seed=step % 1000)
                call(rule, buffers, step=step)
                found[isa] += buffers.values()
    for isa in ISAS[1:]:
        for a, b in zip(found[ISAS[0]], found[isa], strict=True):
            assert same_bits(a, b)
