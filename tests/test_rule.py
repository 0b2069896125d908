"""Rules that adaptk.rule makes from functions behave like built-in rules."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import same_bits


@contextmanager
def made_of(function: Callable[..., Any], **options: Any) -> Iterator[adaptk.TracedRule]:
    made = adaptk.rule(**{"lr": 0.1, **options})(function)
    try:
        yield made
    finally:
        made.unregister()


def heavy_ball(p, g, m, h, t):
    """A heavy ball.

    And more.
    """
    m = h.beta * m + g
    return p - h.lr * m, m


def test_registration() -> None:
    with made_of(heavy_ball, states={"m": 0.0}, beta=0.9, source="me", meanings={"beta": "decay"}) as made:
        rule = adaptk.rules()["heavy_ball"]
        assert made.rule is rule
        assert (rule.summary, rule.source, rule.class_names) == ("A heavy ball.", "me", ("HeavyBall",))
        assert rule.formula == "m = h.beta * m + g\nreturn p - h.lr * m, m"
        assert [(s.name, s.initial) for s in rule.states] == [("m", 0.0)]
        assert rule.defaults()["beta"] == 0.9
        assert [h.name for h in rule.hyperparameters][:2] == ["lr", "beta"]
        assert adaptk.ops.heavy_ball is made._run
        assert "heavy_ball" in dir(adaptk.ops)
        assert "A heavy ball." in repr(made)
        assert "beta : float in (-inf, inf), default 0.9\n    Decay." in (made.__doc__ or "")
        assert list(inspect.signature(made).parameters)[:4] == ["param", "grad", "m", "step"]
        assert list(inspect.signature(made.Optimizer).parameters)[:2] == ["params", "lr"]
        assert made.__wrapped__ is heavy_ball
    assert "heavy_ball" not in adaptk.rules()
    assert not hasattr(adaptk.ops, "heavy_ball")
    assert "heavy_ball" not in dir(adaptk.ops)


def test_the_function_checks_its_arguments() -> None:
    with made_of(heavy_ball, states={"m": 0.0}, beta=0.9) as made:
        w, m = np.ones(3), np.zeros(3)
        with pytest.raises(TypeError, match=r"heavy_ball\(\) missing required argument 'm'"):
            made(w, w.copy(), step=1)
        with pytest.raises(ValueError, match="m: shape"):
            made(w, w.copy(), np.zeros(2), step=1)
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'gamma'.*beta"):
            made(w, w.copy(), m, step=1, gamma=1)
        with pytest.raises(ValueError, match="overlap"):
            made(w, w.copy(), w, step=1)
        with pytest.raises(ValueError, match="beta"):
            made(w, w.copy(), m, step=1, beta=np.nan)
        assert (w == 1).all()
        assert made(w, np.ones(3), m, step=1, lr=0.5, beta=0.0) is None
        assert (w == 0.5).all()


def test_the_optimizer_class() -> None:
    with made_of(heavy_ball, states={"m": 0.0}, beta=0.9) as made:
        w = {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)}
        opt = made.Optimizer(w, lr=lambda t: 1 / t, clip_norm=1.0)
        assert type(opt) is made.Optimizer is type(adaptk.optimizer_for("heavy_ball", w))
        assert isinstance(opt, adaptk.Optimizer)
        assert opt.rules == ("heavy_ball",)
        opt.step({k: v.copy() for k, v in w.items()})
        again = made.Optimizer({k: v.copy() for k, v in w.items()}, lr=lambda t: 1 / t, clip_norm=1.0)
        again.load_state_dict(opt.state_dict())
        grads = {k: np.full_like(v, 0.25) for k, v in w.items()}
        opt.step(grads)
        again.step(grads)
        for k in w:
            assert same_bits(w[k], again.param_groups[0]["params"]["ab".index(k)])
        with pytest.raises(TypeError, match=r"HeavyBall\(\) got an unexpected keyword argument 'gamma'"):
            made.Optimizer(w, gamma=1)
        with pytest.raises(ValueError, match=r"this optimizer runs 'sgd' there; make it by that rule's .Optimizer"):
            adaptk.SGD(w).load_state_dict(opt.state_dict())


class Mine(adaptk.Optimizer):
    """Replaced by test_pickles."""


def test_pickles() -> None:
    global Mine
    with made_of(heavy_ball, states={"m": 0.0}, beta=0.9) as made:
        Mine = type("Mine", (made.Optimizer,), {"__module__": __name__})  # type: ignore[misc]
        for cls in (made.Optimizer, Mine):
            opt = cls([np.ones(3)])
            opt.step([np.ones(3)])
            for other in (pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)):
                assert type(other) is cls
                assert other.step_count == 1
                other.step([np.ones(3)])
                assert other.state[0]["m"][0] == 1.9
        data = pickle.dumps(made.Optimizer([np.ones(3)]))
    # It contains its rule.
    assert "heavy_ball" not in adaptk.rules()
    opt = pickle.loads(data)
    opt.step([np.ones(3)])
    assert opt.state[0]["m"][0] == 1.0
    adaptk.load_rule(made.to_bytes()).unregister()


def test_a_second_rule_of_the_same_name() -> None:
    with made_of(heavy_ball, states={"m": 0.0}, beta=0.9) as first:
        old = first.Optimizer([np.ones(1)])
        data = pickle.dumps(old)
        with made_of(lambda p, g, h, t: p - h.lr, name="heavy_ball") as second:
            assert adaptk.rules()["heavy_ball"] is second.rule
            assert adaptk.ops.heavy_ball is second._run
            first.unregister()  # does nothing: the name is the other's
            assert adaptk.ops.heavy_ball is second._run
            for opt in (old, pickle.loads(data), copy.deepcopy(old)):
                opt.step([np.ones(1)])
                assert opt.state[0]["m"][0] == 1.0
            assert adaptk.rules()["heavy_ball"] is second.rule
        assert "heavy_ball" not in adaptk.rules()
        first.register()
        assert adaptk.rules()["heavy_ball"] is first.rule


def one_step(made: adaptk.TracedRule, p: Any, g: Any, *states: Any, step: int = 1, **hyper: Any) -> list[Any]:
    buffers = [np.array(x, np.float64, ndmin=1) for x in (p, g, *states)]
    made(*buffers, step=step, **hyper)
    return [b[0] for b in (buffers[0], *buffers[2:])]


def test_initial_values_of_states() -> None:
    def starts(p, g, a, b, c, d, h, t):
        return p - h.lr * g, a + g, b, c + 0 * g, d

    states = {"a": "grad", "b": "param", "c": 2.0, "d": "lr"}
    with made_of(starts, states=states) as made:
        for options in ({}, {"weight_decay": 0.5}, {"weight_decay": 0.5, "decoupled": True}):
            w = np.array([3.0])
            opt = made.Optimizer([w], lr=0.25, **options)
            opt.step([np.array([1.0])])
            g = 1.0 + (1.5 if options == {"weight_decay": 0.5} else 0.0)
            assert {k: v[0] for k, v in opt.state[0].items()} == {"a": 2 * g, "b": 3.0, "c": 2.0, "d": 0.25}
            opt.step([np.array([0.0])])
            assert opt.state[0]["b"] == 3.0
        # The initial values at the first step.
        assert one_step(made, 3.0, 1.0, np.nan, np.inf, 0.0, 0.0)[1:] == [2.0, 3.0, 0.0, 0.0]


def test_states_can_be_swapped() -> None:
    def rotates(p, g, a, b, c, h, t):
        return a, b, c, p

    with made_of(rotates, states={"a": 0.0, "b": 0.0, "c": 0.0}) as made:
        assert one_step(made, 1.0, 0.0, 2.0, 3.0, 4.0) == [2.0, 3.0, 4.0, 1.0]

    def swaps(p, g, a, b, h, t):
        return p + g, b, a

    with made_of(swaps, states={"a": 0.0, "b": 0.0}) as made:
        assert one_step(made, 1.0, 5.0, 2.0, 3.0) == [6.0, 3.0, 2.0]


def test_new_values_are_shared() -> None:
    def shares(p, g, a, b, c, h, t):
        x = p * g
        return x, x, x + a, g

    with made_of(shares, states={"a": 0.0, "b": 0.0, "c": 0.0}) as made:
        assert one_step(made, 2.0, 5.0, 1.0, 0.0, 0.0) == [10.0, 10.0, 11.0, 5.0]


def test_unchanged_and_constant_results() -> None:
    with made_of(lambda p, g, a, h, t: (p, 3), name="idle", states={"a": 0.0}) as made:
        assert one_step(made, 2.0, 5.0, 1.0) == [2.0, 3.0]
        assert one_step(made, 2.0, 5.0, 1.0, weight_decay=0.5, decoupled=True, lr=1.0) == [1.0, 3.0]


def test_conditions() -> None:
    def conditions(p, g, h, t):
        both = (g > 0) & (p > 0) | ~(g >= -1) ^ (t == 2)
        return adaptk.where(both, 1, adaptk.where(g != p, 2, 3))

    with made_of(conditions) as made:
        for p in (-1.0, 1.0):
            for g in (-2.0, -1.0, 1.0):
                for t in (1, 2):
                    both = (g > 0 and p > 0) or ((not g >= -1) != (t == 2))
                    assert one_step(made, p, g, step=t) == [1.0 if both else 2.0 if g != p else 3.0], (p, g, t)


def test_numbers_of_numpy_on_either_side() -> None:
    two = np.float32(2)

    def numbers(p, g, h, t):
        return two * g + g * two + np.float64(1) - np.int64(3) / (g + 1) + np.array(0.5) * (np.float64(0) < g)

    with made_of(numbers) as made:
        g = 3.0
        assert one_step(made, 0.0, g) == [2 * g + g * 2 + 1 - 3 / (g + 1) + 0.5]


def test_numbers_of_the_step() -> None:
    """Expressions of only h and t are evaluated in float64 and rounded once."""

    def scalars(p, g, h, t):
        x = (-h.a + abs(h.a) * 3 - adaptk.minimum(h.a, t) / adaptk.maximum(2, t)) ** 2
        return g * (x + adaptk.sign(h.a - 2) + 2**t + t ** (-1) + adaptk.where(t <= 3, adaptk.sqrt(h.a), 0.25))

    def plain(a: float, t: int) -> float:
        x = (-a + abs(a) * 3 - min(a, t) / max(2, t)) ** 2
        return x + float(np.sign(a - 2)) + 2.0**t + 1 / t + (a**0.5 if t <= 3 else 0.25)

    with made_of(scalars, a=1.7) as made:
        for t in (1, 2, 3, 4, 100):
            p = np.zeros(1, np.float32)
            made(p, np.ones(1, np.float32), step=t)
            assert p[0] == np.float32(plain(1.7, t))


POWERS = [
    *("-2,3", "-2,2", "-2,0.5", "0,2", "0,-1", "-0.0,-1", "2,-1", "1.5,0.5", "5,0", "-8,0.25"),
    *("inf,2", "inf,-1", "0.5,inf", "2,inf", "1,inf"),
]


@pytest.mark.parametrize(("base", "exponent"), [tuple(map(float, x.split(","))) for x in POWERS])
def test_powers(base: float, exponent: float) -> None:
    ranges = {"base": "[0, inf]"} if np.isinf(base) else {}
    ranges |= {"exponent": "[0, inf]"} if np.isinf(exponent) else {}
    function = lambda p, g, h, t: g * h.base**h.exponent  # noqa: E731
    with made_of(function, name="powers", base=1.0, exponent=1.0, ranges=ranges) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (got,) = one_step(made, 0.0, 1.0, base=base, exponent=exponent)
        assert same_bits(got, np.float64(base) ** exponent)


def test_cumulative_products() -> None:
    def product(p, g, h, t):
        return g * adaptk.cumprod(h.a * t)

    with made_of(product, a=1.0) as made:
        want = 1.0
        for t in range(1, 20):
            want *= 0.5 * t
            assert one_step(made, 0.0, 1.0, step=t, a=0.5) == [want]
        # Steps in any order, with different hyperparameters.
        assert one_step(made, 0.0, 1.0, step=3, a=0.5) == [0.75]
        assert one_step(made, 0.0, 1.0, step=4, a=1.0) == [24.0]
        assert one_step(made, 0.0, 1.0, step=4, a=-0.5) == [1.5]
        assert one_step(made, 0.0, 1.0, step=1000, a=1e-30) == [0.0]


def test_random_rounding_clipping_and_skipping() -> None:
    with made_of(heavy_ball, states={"m": 0.0}, beta=0.9) as made:
        w = np.ones(4)
        opt = made.Optimizer([w], skip_nonfinite=True)
        assert opt.step([np.array([np.nan, 1, 1, 1])]).skipped
        assert (w == 1).all()
        assert opt.step([np.full(4, 2.0)], clip_norm=1.0).grad_norm == 4.0
        assert opt.state[0]["m"][0] == 0.5
        with pytest.raises(ValueError, match=r"rmsprop_nesterov|look"), opt.lookahead():
            pass


def test_works_after_unregister() -> None:
    with made_of(heavy_ball, states={"m": 0.0}, beta=0.9) as made:
        pass
    w = np.ones(1)
    made(w, np.ones(1), np.zeros(1), step=1)
    opt = made.Optimizer([w])
    opt.step([np.ones(1)])
    made.unregister()
    assert w[0] == pytest.approx(0.8)
