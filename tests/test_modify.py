"""Options that any rule can have."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import RULES, same_bits


def start(size: int = 150) -> np.ndarray:
    return np.random.default_rng(3).normal(size=size)


def gradients(p: np.ndarray, t: int) -> np.ndarray:
    return 0.3 * p + np.sin(np.arange(p.size) + 2.0 * t)


def path(rule: Any, steps: int = 12, p: Any = None, **options: Any) -> list[np.ndarray]:
    p = start() if p is None else p.copy()
    opt = rule.Optimizer([p], **options) if isinstance(rule, adaptk.TracedRule) else None
    opt = opt or adaptk.optimizer_for(rule, [p], **options)
    found = []
    for t in range(1, steps + 1):
        opt.step([gradients(p, t)])
        found.append(p.copy())
    return found


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


def stepped(rule: str, p: np.ndarray, decay: Any, change: Any, **options: Any) -> list[np.ndarray]:
    """A rule without decay, between NumPy's operations on the param."""
    own = p.copy()
    opt = adaptk.optimizer_for(rule, [own], **options)
    found = []
    for t in range(1, 13):
        g = gradients(own, t)
        before = own.copy()
        own[:] = decay(own)
        opt.step([g])
        own[:] = change(before, own.copy(), g, t)
        found.append(own.copy())
    return found


def test_amsgrad_and_mars_are_the_rules_of_these_names() -> None:
    assert same(path(adaptk.modify("adam", amsgrad=True)), path("amsgrad"))
    mars = adaptk.modify("adamw", filter="mars")
    options = {"beta1": 0.95, "beta2": 0.99, "lr": 3e-3, "weight_decay": 0.1}
    assert same(path(mars, mars_gamma=0.1, **options), path("mars_adamw", gamma=0.1, **options))


@pytest.mark.parametrize("rule", RULES)
def test_every_compiled_rule_keeps_its_bits_under_an_option_that_does_nothing(rule: str) -> None:
    made = adaptk.modify(rule, decay="cautious")
    for options in ({"weight_decay": 0.0}, {"weight_decay": 0.1, "decoupled": False}):
        assert same(path(made, **options), path(rule, **options))


@pytest.mark.parametrize("rule", ["sgd", "adamw", "lion", "ademamix"])
def test_cautious(rule: str) -> None:
    want = stepped(
        rule,
        start(),
        lambda p: p,
        lambda old, new, g, t: np.where((old - new) * g > 0, new, old),
        weight_decay=0.0,
    )
    assert same(path(adaptk.modify(rule, cautious=True), weight_decay=0.0), want)


@pytest.mark.parametrize("rule", ["momentum", "adamw", "adopt"])
def test_decays(rule: str) -> None:
    w, lr = 0.3, 0.05
    plain = {"weight_decay": 0.0, "lr": lr}
    own = {"weight_decay": w, "lr": lr}

    def cautious(old: Any, new: Any, g: Any, t: int) -> Any:
        return new - np.where((old - new) * old >= 0, lr * w * old, 0.0)

    def huber(old: Any, new: Any, g: Any, t: int) -> Any:
        return new - lr * w * np.clip(old, -0.1, 0.1)

    def both(old: Any, new: Any, g: Any, t: int) -> Any:
        return new - np.where((old - new) * old >= 0, lr * lr / 0.2 * w * np.clip(old, -0.1, 0.1), 0.0)

    assert same(
        path(adaptk.modify(rule, decay="cautious"), **own), stepped(rule, start(), lambda p: p, cautious, **plain)
    )
    assert same(path(adaptk.modify(rule, decay="huber"), **own), stepped(rule, start(), lambda p: p, huber, **plain))
    every = adaptk.modify(rule, decay=["cautious", "corrected", "huber"])
    np.testing.assert_allclose(
        path(every, max_lr=0.2, **own), stepped(rule, start(), lambda p: p, both, **plain), rtol=1e-12, atol=1e-14
    )
    # Coupled decay does not change.
    coupled = {**own, "decoupled": False}
    assert same(path(adaptk.modify(rule, decay="cautious"), **coupled), path(rule, **coupled))


def test_corrected_decay_follows_the_square_of_the_rate() -> None:
    made = adaptk.modify("adamw", decay="corrected")
    assert same(path(made, lr=0.1, max_lr=0.1, weight_decay=0.25), path("adamw", lr=0.1, weight_decay=0.25))
    half = stepped(
        "adamw", start(), lambda p: p * (1 - 0.05**2 / 0.1 * 0.25), lambda o, n, g, t: n, lr=0.05, weight_decay=0.0
    )
    np.testing.assert_allclose(path(made, lr=0.05, max_lr=0.1, weight_decay=0.25), half, rtol=1e-13)


def test_grokfast() -> None:
    p = start()
    q, a = p.copy(), None
    opt = adaptk.modify("adam", filter="grokfast").Optimizer([p], grokfast_decay=0.9, grokfast_gain=0.5)
    other = adaptk.Adam([q])
    for t in range(1, 8):
        g = gradients(p, t)
        a = 0.9 * (g if a is None else a) + (1 - 0.9) * g
        opt.step([g])
        other.step([g + 0.5 * a])
    assert same_bits(p, q)


def test_nesterov() -> None:
    p = start()
    q, m = p.copy(), np.zeros_like(p)
    opt = adaptk.modify("signum", nesterov=True).Optimizer([p], lr=0.1)
    for t in range(1, 8):
        g = gradients(p, t)
        m = 0.9 * m + (1 - 0.9) * g
        opt.step([g])
        q -= 0.1 * np.sign(0.9 * m + (1 - 0.9) * g)
        assert same_bits(opt.state[0]["exp_avg"], m)
    assert same_bits(p, q)


def test_lookahead() -> None:
    slow = start()

    def change(old: Any, new: Any, g: Any, t: int) -> Any:
        if t % 3:
            return new
        slow[:] = slow + 0.25 * (new - slow)
        return slow.copy()

    want = stepped("adam", start(), lambda p: p, change, lr=0.1)
    made = adaptk.modify("adam", lookahead=True)
    assert same(path(made, lr=0.1, lookahead_steps=3, lookahead_rate=0.25), want)


def test_combined_options_in_every_interface() -> None:
    made = adaptk.modify("nadam", cautious=True, decay="cautious", filter="grokfast", nesterov=True, amsgrad=True)
    assert made.name == "nadam_grokfast_nesterov_amsgrad_cautious_cautious_decay"
    assert made.rule.class_names == ("NAdamGrokfastNesterovAmsgradCautiousCautiousDecay",)
    assert [s.name for s in made.rule.states] == ["exp_avg", "exp_avg_sq", "grokfast_avg", "amsgrad_max"]
    assert made.rule.defaults()["decoupled"] is True
    assert adaptk.load_rule(made.to_bytes()) is made
    made.unregister()
    assert adaptk.modify("nadam", name="own", lookahead=True).name == "own"
    twice = adaptk.modify(adaptk.modify("adam", filter="mars"), cautious=True)
    assert twice.name == "adam_mars_cautious"
    free = adaptk.modify("schedule_free_adamw", cautious=True)
    opt = free.Optimizer([start()])
    opt.step([start()])
    opt.eval()
    opt.train()
    assert opt.param_groups[0]["weight_sum"] > 0


@pytest.mark.parametrize(
    ("rule", "options", "match"),
    [
        ("adam", {}, "no option is given"),
        ("adem", {"cautious": True}, r"rule: 'adem' is not one of .*did you mean 'adam"),
        ("adam", {"decay": "cautios"}, r"decay: 'cautios' is not one of cautious, corrected, huber"),
        ("adam", {"filter": "grok"}, r"filter: 'grok' is not one of"),
        ("sgd", {"nesterov": True}, "nesterov: sgd has no state exp_avg"),
        ("lion", {"amsgrad": True}, "amsgrad: lion has no state exp_avg_sq or square_avg"),
        ("schedule_free_sgd", {"decay": "cautious"}, "decay: schedule_free_sgd has a decay of its own"),
        ("adan", {"lookahead": True, "filter": "grokfast"}, "more than 5 states"),
    ],
)
def test_errors(rule: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        adaptk.modify(rule, **options)


def test_types() -> None:
    with pytest.raises(TypeError, match="cautious: expected a bool, got int"):
        adaptk.modify("adam", cautious=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rule: expected a rule or its name, got int"):
        adaptk.modify(3, cautious=True)  # type: ignore[arg-type]
    made = adaptk.modify("adam", filter="mars")
    with pytest.raises(ValueError, match="an option is given twice"):
        adaptk.modify(made, filter="mars")


@pytest.mark.parametrize("rule", ["sgd", "adamw", "lion"])
def test_cautious_steps_rescale_for_masked_elements(rule: str) -> None:
    def change(old: Any, new: Any, g: Any, t: int) -> Any:
        moves = (old - new) * g > 0
        return old - np.where(moves, (old - new) / max(moves.mean(), 1e-3), 0.0)

    want = stepped(rule, start(), lambda p: p, change, weight_decay=0.0)
    made = adaptk.modify(rule, cautious="scaled")
    assert made.name == f"{rule}_cautious_scaled"
    np.testing.assert_allclose(path(made, weight_decay=0.0), want, rtol=1e-12, atol=1e-14)


def test_mars_with_clipping() -> None:
    p, before = start(), None
    q = p.copy()
    opt = adaptk.modify("adam", filter="mars_clipped").Optimizer([p], mars_clip=0.5, mars_gamma=0.1, mars_beta=0.9)
    other = adaptk.Adam([q])
    for t in range(1, 8):
        g = gradients(p, t)
        c = g if before is None else g + 0.1 * 0.9 / (1 - 0.9) * (g - before)
        before = g
        opt.step([g])
        other.step([c * min(1.0, 0.5 / np.linalg.norm(c))])
        np.testing.assert_allclose(p, q, rtol=1e-12)
