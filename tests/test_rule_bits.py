"""Rules made at run time have the bits of built-in rules, for every rule of the library."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import FLOATS, RULES, copies, inside, make, make_list, same_bits
from traced_rules import FUNCTIONS, traced

SIZES = (0, 1, 7, 31, 32, 33, 64, 127, 128, 129, 1000, 5003)
ENDS = {(name, value) for name in ("eta_min", "step_min") for value in inside("[0, inf)") if value > 50}
ENDS |= {(name, value) for name in ("eta_max", "step_max") for value in inside("[0, inf]") if value < 1e-3}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.03},
    {"weight_decay": 0.03, "decoupled": True},
    {"maximize": True, "weight_decay": 0.2, "grad_scale": 1 / 3},
    {"grad_scale": -2.5, "decoupled": True, "weight_decay": 1e-4},
]


def special(buffers: dict[str, Any]) -> dict[str, Any]:
    """The same numbers, some replaced by infinities, NaNs, zeros of both signs and subnormal numbers."""
    rng = np.random.default_rng(5)
    for name, a in buffers.items():
        if a.size:
            odd = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-42, -1e-42], a.dtype)
            which = rng.random(a.size) < 0.2
            a[which] = rng.choice(odd[3:] if name not in ("param", "grad") else odd, which.sum())
    return buffers


def compare(rule: str, made: adaptk.TracedRule, buffers: dict[str, Any], steps: Any = (1, 2, 3), **hyper: Any) -> None:
    a, b = copies(buffers), copies(buffers)
    for step in steps:
        getattr(adaptk.ops, rule)(*a.values(), step=step, **hyper)
        made(*b.values(), step=step, **hyper)
    for name in a:
        several = isinstance(a[name], list)
        for i, (x, y) in enumerate(zip(a[name], b[name], strict=True) if several else [(a[name], b[name])]):
            assert same_bits(x, y), (rule, name, i, hyper)


def test_every_rule_is_covered() -> None:
    assert FUNCTIONS.keys() == RULES.keys()


@pytest.mark.parametrize("rule", RULES)
def test_every_size_type_and_instruction_set(rule: str, isa: str) -> None:
    with traced(rule) as made:
        for dtype in FLOATS:
            for size in SIZES:
                compare(rule, made, make(rule, size, dtype, seed=size))
            compare(rule, made, special(make(rule, 777, dtype)))


@pytest.mark.parametrize("rule", RULES)
def test_options(rule: str) -> None:
    with traced(rule) as made:
        for options in OPTIONS:
            for dtype in ("float32", "float64"):
                compare(rule, made, special(make(rule, 333, dtype)), **options)
                compare(rule, made, make(rule, 333, dtype), (999, 1000), **options)


@pytest.mark.parametrize("rule", RULES)
def test_hyperparameters(rule: str) -> None:
    """Each at the ends of its range and inside; the others at their defaults or random."""
    own = [h for h in RULES[rule].hyperparameters if not h.common]
    rng = np.random.default_rng(3)
    buffers = make(rule, 70)
    with traced(rule) as made:
        for h in own:
            for value in [True, False] if h.range == "bool" else inside(h.range):
                # The library's rules refuse values that are incompatible.
                if (h.name, value) not in ENDS:
                    compare(rule, made, buffers, (1, 2, 7, 1234567), **{h.name: value})
        for _ in range(30):
            hyper = {
                h.name: bool(rng.integers(2)) if h.range == "bool" else float(rng.choice(inside(h.range)))
                for h in own
                if h.name not in ("eta_min", "eta_max", "step_min", "step_max")
            }
            compare(rule, made, buffers, (1, 2, 7, 300), **hyper)


@pytest.mark.parametrize("rule", RULES)
def test_hundreds_of_steps_in_every_convention(rule: str) -> None:
    with traced(rule) as made:
        for convention in RULES[rule].conventions:
            compare(rule, made, make(rule, 37), range(1, 200), **RULES[rule].defaults(convention))


@pytest.mark.parametrize("rule", RULES)
def test_threads_and_lists(rule: str, threads: int) -> None:
    with traced(rule) as made:
        compare(rule, made, make(rule, 150_001))
        compare(rule, made, make_list(rule, [3, 100_001, 0, 1, 50_000]))


@pytest.mark.parametrize("state_dtype", ["bfloat16", "bfloat16_sr", "8bit", "8bit_dynamic", "fp8_e4m3", "4bit"])
@pytest.mark.parametrize("rule", RULES)
def test_formats_of_states(rule: str, state_dtype: str, threads: int) -> None:
    if not RULES[rule].states:
        pytest.skip("no states")
    pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    w = rng.normal(size=70_001).astype(np.float32)
    options: dict[str, Any] = {"state_dtype": state_dtype, "seed": 3}
    with traced(rule) as made:
        a, b = w.copy(), w.copy()
        one = adaptk.optimizer_for(rule, [a], **options)
        two = made.Optimizer([b], **options)
        for _ in range(5):
            g = rng.normal(size=w.size).astype(np.float32)
            one.step([g], clip_norm=1.0)
            two.step([g], clip_norm=1.0)
        assert same_bits(a, b)
        for x, y in zip(one.state[0].values(), two.state[0].values(), strict=True):
            for s, t in [(x, y)] if isinstance(x, np.ndarray) else [(x.data, y.data), (x.scales, y.scales)]:
                assert same_bits(s, t) if s is not None else t is None


def test_a_signaling_nan_becomes_quiet(isa: str) -> None:
    """As in the product with 1, which programs omit if arithmetic follows."""

    @adaptk.rule(states={"last": 0.0}, lr=1.0)
    def carried(p: Any, g: Any, last: Any, h: Any, t: Any) -> Any:
        return adaptk.where(g > 0, p - h.lr * g, p), g

    signaling = np.array([0x7FA00001, 0x3F800000], np.uint32)
    p, g, last = signaling.view(np.float32), signaling.view(np.float32)[::-1].copy(), np.zeros(2, np.float32)
    g[0] = -1.0
    carried(p, g, last, step=1)
    carried.unregister()
    assert p.view(np.uint32)[0] == 0x7FE00001
    assert last.view(np.uint32)[1] == 0x7FE00001
