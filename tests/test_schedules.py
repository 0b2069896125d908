"""Schedules against torch's and optax's schedulers, against closed forms, and by their properties."""

from __future__ import annotations

import copy
import doctest
import itertools
import math
import pickle
import warnings

import adaptk
import numpy as np
import pytest
from adaptk import schedules
from adaptk.schedules import (
    chained,
    constant,
    cosine,
    exponential,
    inverse_time,
    one_cycle,
    polynomial,
    step_decay,
    warmup,
)

REL = 1e-12

EXAMPLES = [
    constant(0.1),
    step_decay(0.1, every=7, gamma=0.3),
    exponential(0.1, gamma=0.97),
    inverse_time(0.1, decay=0.5, every=3, staircase=True),
    polynomial(0.1, total=20, power=2.0, end=0.01),
    cosine(0.1, total=20, warmup=5, end=0.001),
    one_cycle(0.1, total=20, anneal="linear", three_phase=True),
    warmup(step_decay(0.1, every=7), steps=5, start=0.01),
    warmup(0.1, steps=3),
    chained([(constant(0.1), 5), (cosine(0.2, total=9), 9), 0.01]),
]


def rates(schedule, n):
    return [schedule(t) for t in range(1, n + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# The installed systems
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_rates():
    torch = pytest.importorskip("torch")

    def run(lr, make, n):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about steps past the end, and SequentialLR's own use of step(epoch)
            scheduler = make(torch.optim.lr_scheduler, optimizer)
            values = []
            for _ in range(n):
                values.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
        return values

    return run


@pytest.fixture
def optax_rates():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    try:
        x64 = jax.enable_x64
    except AttributeError:
        from jax.experimental import enable_x64 as x64

    def run(make, n):
        with x64(True):
            schedule = make(optax)
            return [float(schedule(jax.numpy.asarray(i))) for i in range(n)]

    return run


def test_step_decay_matches_torch(torch_rates):
    want = torch_rates(0.3, lambda m, o: m.StepLR(o, step_size=7, gamma=0.3), 100)
    assert rates(step_decay(0.3, every=7, gamma=0.3), 100) == pytest.approx(want, rel=REL)


def test_exponential_matches_torch_and_optax(torch_rates, optax_rates):
    schedule = exponential(0.3, gamma=0.9)
    want = torch_rates(0.3, lambda m, o: m.ExponentialLR(o, gamma=0.9), 200)
    assert rates(schedule, 200) == pytest.approx(want, rel=REL)
    want = optax_rates(lambda m: m.exponential_decay(0.3, transition_steps=1, decay_rate=0.9), 200)
    assert rates(schedule, 200) == pytest.approx(want, rel=REL)


def test_step_decay_matches_optax(optax_rates):
    want = optax_rates(lambda m: m.exponential_decay(0.3, transition_steps=9, decay_rate=0.5, staircase=True), 100)
    assert rates(step_decay(0.3, every=9, gamma=0.5), 100) == pytest.approx(want, rel=REL)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_matches_torch_and_optax(torch_rates, optax_rates, power):
    want = torch_rates(0.3, lambda m, o: m.PolynomialLR(o, total_iters=50, power=power), 60)
    # torch multiplies the factors of all steps, and a power below 1 amplifies the rounding of the last ones.
    assert rates(polynomial(0.3, total=50, power=power), 60) == pytest.approx(want, rel=REL, abs=REL * 0.3)
    want = optax_rates(lambda m: m.polynomial_schedule(0.3, 0.01, power, 50), 60)
    assert rates(polynomial(0.3, total=50, power=power, end=0.01), 60) == pytest.approx(want, rel=REL)


@pytest.mark.parametrize("end", [0.0, 0.01])
def test_cosine_matches_torch_and_optax(torch_rates, optax_rates, end):
    # torch's recursion accumulates rounding errors, and rises again after T_max: optax checks the last rates and those
    # past the end.
    want = torch_rates(0.3, lambda m, o: m.CosineAnnealingLR(o, T_max=100, eta_min=end), 101)
    assert rates(cosine(0.3, total=100, end=end), 101) == pytest.approx(want, rel=REL, abs=REL * 0.3)
    want = optax_rates(lambda m: m.cosine_decay_schedule(0.3, decay_steps=100, alpha=end / 0.3), 120)
    assert rates(cosine(0.3, total=100, end=end), 120) == pytest.approx(want, rel=REL, abs=1e-17)


def test_cosine_with_warmup_matches_torch(torch_rates):
    def make(m, o):
        ramp = m.LinearLR(o, start_factor=1 / 10, total_iters=9)
        return m.SequentialLR(o, [ramp, m.CosineAnnealingLR(o, T_max=90)], milestones=[10])

    want = torch_rates(0.3, make, 100)
    assert rates(cosine(0.3, total=100, warmup=10), 100) == pytest.approx(want, rel=REL, abs=REL * 0.3)


def test_cosine_with_warmup_matches_optax_after_the_ramp(optax_rates):
    want = optax_rates(lambda m: m.warmup_cosine_decay_schedule(0.0, 0.3, 10, 100, end_value=0.01), 120)
    schedule = cosine(0.3, total=100, warmup=10, end=0.01)
    assert rates(schedule, 120)[10:] == pytest.approx(want[10:], rel=REL)
    # The ramp is the same in optax, one step later: its first rate is 0.
    assert rates(schedule, 10) == pytest.approx(want[1:11], rel=REL)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize(("total", "pct_start"), [(100, 0.3), (37, 0.25), (10, 0.1), (10, 0.0), (2, 0.3), (5, 0.5)])
def test_one_cycle_matches_torch(torch_rates, anneal, three_phase, total, pct_start):
    def make(m, o):
        return m.OneCycleLR(
            o,
            0.3,
            total_steps=total,
            pct_start=pct_start,
            anneal_strategy=anneal,
            cycle_momentum=False,
            div_factor=10.0,
            final_div_factor=1e3,
            three_phase=three_phase,
        )

    schedule = one_cycle(
        0.3,
        total=total,
        pct_start=pct_start,
        div_factor=10.0,
        final_div_factor=1e3,
        anneal=anneal,
        three_phase=three_phase,
    )
    try:
        want = torch_rates(0.3, make, total)
    except ZeroDivisionError:
        # A rise of no steps: torch divides by its length at x = 0.
        assert pct_start * total == 1.0
        assert schedule(1) == pytest.approx(0.3, rel=REL)
        return
    assert rates(schedule, total) == pytest.approx(want, rel=REL)


def test_one_cycle_defaults_match_torch(torch_rates):
    want = torch_rates(0.3, lambda m, o: m.OneCycleLR(o, 0.3, total_steps=50, cycle_momentum=False), 50)
    assert rates(one_cycle(0.3, total=50), 50) == pytest.approx(want, rel=REL)


@pytest.mark.parametrize("start", [0.0, 0.06])
def test_warmup_matches_torch(torch_rates, start):
    def make(m, o):
        first = (start + (0.3 - start) / 8) / 0.3
        ramp = m.LinearLR(o, start_factor=first, total_iters=7)
        return m.SequentialLR(o, [ramp, m.ExponentialLR(o, gamma=0.9)], milestones=[8])

    want = torch_rates(0.3, make, 60)
    assert rates(warmup(exponential(0.3, gamma=0.9), steps=8, start=start), 60) == pytest.approx(want, rel=REL)


def test_chained_matches_torch_and_optax(torch_rates, optax_rates):
    schedule = chained([(0.3, 5), (exponential(0.3, gamma=0.9), 20), step_decay(0.3, every=4, gamma=0.5)])

    def in_torch(m, o):
        parts = [m.ConstantLR(o, factor=1.0), m.ExponentialLR(o, gamma=0.9), m.StepLR(o, step_size=4, gamma=0.5)]
        return m.SequentialLR(o, parts, milestones=[5, 25])

    def in_optax(m):
        parts = [
            m.constant_schedule(0.3),
            m.exponential_decay(0.3, 1, 0.9),
            m.exponential_decay(0.3, 4, 0.5, staircase=True),
        ]
        return m.join_schedules(parts, [5, 25])

    assert rates(schedule, 80) == pytest.approx(torch_rates(0.3, in_torch, 80), rel=REL)
    assert rates(schedule, 80) == pytest.approx(optax_rates(in_optax, 80), rel=REL)


def test_an_optax_schedule_can_be_wrapped():
    optax = pytest.importorskip("optax")
    schedule = warmup(optax.constant_schedule(0.5), steps=2)
    assert rates(schedule, 3) == [0.25, 0.5, 0.5]
    assert all(type(x) is float for x in rates(schedule, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", range(1, 40))
def test_closed_forms(t):
    assert constant(0.3)(t) == 0.3
    assert step_decay(0.3, every=5, gamma=0.5)(t) == pytest.approx(0.3 * 0.5 ** math.floor((t - 1) / 5), rel=REL)
    assert exponential(0.3, gamma=0.9)(t) == pytest.approx(0.3 * math.exp((t - 1) * math.log(0.9)), rel=REL)
    assert inverse_time(0.3, decay=0.2)(t) == pytest.approx(0.3 / (1 + 0.2 * (t - 1)), rel=REL)
    assert inverse_time(0.3, decay=0.2, every=4)(t) == pytest.approx(0.3 / (1 + 0.05 * (t - 1)), rel=REL)
    stairs = inverse_time(0.3, decay=0.2, every=4, staircase=True)
    assert stairs(t) == pytest.approx(0.3 / (1 + 0.2 * math.floor((t - 1) / 4)), rel=REL)
    x = min((t - 1) / 30, 1.0)
    assert polynomial(0.3, total=30, power=3, end=0.1)(t) == pytest.approx(0.1 + 0.2 * (1 - x) ** 3, rel=REL)
    assert cosine(0.3, total=30, end=0.1)(t) == pytest.approx(0.1 + 0.2 * math.cos(math.pi * x / 2) ** 2, rel=REL)


def test_end_values_hold():
    assert rates(polynomial(0.3, total=4, end=0.1), 8)[4:] == [0.1] * 4
    assert rates(cosine(0.3, total=4, end=0.1), 8)[4:] == [0.1] * 4
    assert rates(cosine(0.3, total=6, warmup=2, end=0.1), 9)[6:] == [0.1] * 3
    cycle = one_cycle(0.3, total=10)
    assert cycle(10) == cycle(11) == cycle(10**9) == pytest.approx(0.3 / 25 / 1e4, rel=REL)
    assert chained([(0.1, 2), 0.2])(10**9) == 0.2


def test_first_and_last_rate_of_a_ramp():
    for schedule in (cosine(0.3, total=50, warmup=10), warmup(cosine(0.3, total=40), steps=10)):
        assert rates(schedule, 10) == pytest.approx([0.03 * t for t in range(1, 11)], rel=REL)
        assert schedule(10) == schedule(11) == 0.3
    assert rates(warmup(0.3, steps=4, start=0.1), 5) == pytest.approx([0.15, 0.2, 0.25, 0.3, 0.3], rel=REL)
    assert rates(warmup(exponential(0.3, gamma=0.5), steps=0), 3) == rates(exponential(0.3, gamma=0.5), 3)


def test_a_rise_that_takes_all_steps():
    cycle = one_cycle(0.3, total=10, pct_start=1.0)
    assert cycle(10) == cycle(11) == 0.3
    assert one_cycle(0.3, total=1)(1) == pytest.approx(0.3 / 25 / 1e4)
    assert one_cycle(0.3, total=1, pct_start=1.0)(1) == 0.3


# ---------------------------------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------------------------------

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

lrs = st.floats(1e-6, 1e3)
steps = st.integers(1, 500)


def falling(schedule, n):
    # Each rate is rounded on its own, so neighbours that are equal in exact arithmetic may differ in the last places.
    values = rates(schedule, n)
    return all(b <= a * (1 + 1e-12) + 1e-300 for a, b in itertools.pairwise(values))


@hypothesis.given(lrs, st.integers(1, 60), st.floats(0.0, 1.0))
def test_decays_are_monotonic_and_in_bounds(lr, every, gamma):
    for schedule in (
        step_decay(lr, every=every, gamma=gamma),
        exponential(lr, gamma=gamma),
        inverse_time(lr, decay=gamma, every=every),
        inverse_time(lr, decay=gamma, every=every, staircase=True),
    ):
        values = rates(schedule, 100)
        assert values[0] == lr
        assert all(0.0 <= x <= lr for x in values)
        assert falling(schedule, 100)


@hypothesis.given(lrs, steps, st.floats(0.1, 5.0), st.floats(0.0, 1.0))
def test_decays_to_an_end_value_are_monotonic_and_in_bounds(lr, total, power, share):
    end = lr * share
    for schedule in (polynomial(lr, total=total, power=power, end=end), cosine(lr, total=total, end=end)):
        values = rates(schedule, total + 3)
        assert values[0] == lr
        assert values[total:] == [end] * 3
        assert all(end * (1 - REL) <= x <= lr * (1 + REL) for x in values)
        assert falling(schedule, total + 3)


@hypothesis.given(lrs, steps, st.integers(0, 500), st.floats(0.0, 1.0))
def test_cosine_with_warmup_is_warmup_of_cosine_to_the_bit(lr, decay, ramp, share):
    one = cosine(lr, total=decay + ramp, warmup=ramp, end=lr * share)
    two = warmup(cosine(lr, total=decay, end=lr * share), steps=ramp)
    assert rates(one, decay + ramp + 2) == rates(two, decay + ramp + 2)


@hypothesis.given(
    lrs, steps, st.floats(0.0, 0.5), st.floats(1.0, 100.0), st.floats(1.0, 1e5), st.sampled_from(["cos", "linear"])
)
def test_one_cycle_rises_falls_and_stays_in_bounds(lr, total, pct, div, final, anneal):
    for three in (False, True):
        schedule = one_cycle(
            lr, total=total, pct_start=pct, div_factor=div, final_div_factor=final, anneal=anneal, three_phase=three
        )
        values = rates(schedule, total + 2)
        # Interpolation rounds relative to the larger rate.
        assert all(lr / div / final - lr * REL <= x <= lr * (1 + REL) for x in values)
        assert all(x >= 0.0 for x in values)
        assert values[total - 1 :] == pytest.approx([lr / div / final] * 3, rel=0, abs=lr * REL)
        top = values.index(max(values))
        assert all(a <= b + lr * REL for a, b in itertools.pairwise(values[: top + 1]))
        assert all(a + lr * REL >= b for a, b in itertools.pairwise(values[top:]))


@hypothesis.given(lrs, st.integers(0, 300), st.floats(0.0, 1.0))
def test_warmup_rises_to_the_first_rate(lr, ramp, share):
    schedule = warmup(exponential(lr, gamma=0.99), steps=ramp, start=lr * share)
    values = rates(schedule, ramp)
    assert all(0.0 < x <= lr * (1 + REL) for x in values)
    assert all(a <= b * (1 + REL) for a, b in itertools.pairwise(values))
    assert values[-1:] == pytest.approx([lr][:ramp], rel=REL)
    assert schedule(ramp + 1) == lr


@hypothesis.given(st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(1, 9)), max_size=5), st.integers(1, 60))
def test_chained_restarts_each_piece(pieces, t):
    schedule = chained([(lambda t, a=a: a + t, n) for a, n in pieces] + [lambda t: -t])
    want = [a + i for a, n in pieces for i in range(1, n + 1)] + [float(-i) for i in range(1, 61)]
    assert schedule(t) == want[t - 1]


# ---------------------------------------------------------------------------------------------------------------------
# The objects
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
class TestObjects:
    def test_pickle_and_copy(self, schedule):
        for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
            assert other == schedule
            assert hash(other) == hash(schedule)
            assert rates(other, 50) == rates(schedule, 50)

    def test_repr_is_the_call(self, schedule):
        assert eval(repr(schedule), vars(schedules)) == schedule

    def test_immutable(self, schedule):
        with pytest.raises(AttributeError):
            schedule.lr = 1.0

    def test_rates_are_python_floats(self, schedule):
        assert {type(x) for x in rates(schedule, 50)} == {float}
        assert isinstance(schedule, schedules.Schedule)

    def test_step_0(self, schedule):
        for zero in (0, 0.0, np.int64(0), np.array(0)):
            with pytest.raises(ValueError, match=r"steps count from 1, got 0; .* use schedule\.from_zero\(\)"):
                schedule(zero)

    @pytest.mark.parametrize("t", [np.int32(7), np.int64(7), np.array(7), np.float32(7.0), 7.0])
    def test_other_integers(self, schedule, t):
        assert schedule(t) == schedule(7)

    @pytest.mark.parametrize("t", [-1, -1.0, np.int64(-3), 1.5, math.nan, math.inf, -math.inf, np.float32("nan")])
    def test_invalid_steps(self, schedule, t):
        with pytest.raises(ValueError, match=r"^t must be"):
            schedule(t)

    @pytest.mark.parametrize("t", ["1", None, 1j, [1], True])
    def test_wrong_types_of_steps(self, schedule, t):
        with pytest.raises(TypeError, match=r"^t must be an integer"):
            schedule(t)


def test_reprs():
    assert repr(constant(0.1)) == "constant(0.1)"
    assert repr(cosine(1e-3, total=1000, warmup=100)) == "cosine(0.001, total=1000, warmup=100, end=0.0)"
    assert repr(step_decay(1, every=2)) == "step_decay(1.0, every=2, gamma=0.1)"
    assert repr(warmup(0.1, steps=3)) == "warmup(constant(0.1), steps=3, start=0.0)"
    assert repr(chained([(0.1, 3), 0.2])) == "chained([(constant(0.1), 3), constant(0.2)])"


BAD_RATES = [(-1e-9, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("0.1", TypeError), (None, TypeError)]
BAD_COUNTS = [(0, ValueError), (-3, ValueError), (2.0, TypeError), (math.nan, TypeError), (True, TypeError)]


@pytest.mark.parametrize(("value", "error"), BAD_RATES)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("lr", lambda x: constant(x)),
        ("lr", lambda x: step_decay(x, every=2)),
        ("lr", lambda x: exponential(x, gamma=0.9)),
        ("lr", lambda x: inverse_time(x, decay=0.1)),
        ("lr", lambda x: polynomial(x, total=9)),
        ("lr", lambda x: cosine(x, total=9)),
        ("max_lr", lambda x: one_cycle(x, total=9)),
        ("schedule_or_lr", lambda x: warmup(x, steps=9)),
        (r"pieces\[0\]\[0\]", lambda x: chained([(x, 3), 0.1])),
        (r"pieces\[1\]", lambda x: chained([(0.1, 3), x])),
        ("gamma", lambda x: step_decay(0.1, every=2, gamma=x)),
        ("gamma", lambda x: exponential(0.1, gamma=x)),
        ("decay", lambda x: inverse_time(0.1, decay=x)),
        ("power", lambda x: polynomial(0.1, total=9, power=x)),
        ("end", lambda x: polynomial(0.1, total=9, end=x)),
        ("end", lambda x: cosine(0.1, total=9, end=x)),
        ("pct_start", lambda x: one_cycle(0.1, total=9, pct_start=x)),
        ("div_factor", lambda x: one_cycle(0.1, total=9, div_factor=x)),
        ("final_div_factor", lambda x: one_cycle(0.1, total=9, final_div_factor=x)),
        ("start", lambda x: warmup(0.1, steps=9, start=x)),
    ],
)
def test_bad_numbers(name, make, value, error):
    with pytest.raises(error, match=f"^{name} must be"):
        make(value)


@pytest.mark.parametrize(("value", "error"), BAD_COUNTS)
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("every", lambda n: step_decay(0.1, every=n)),
        ("every", lambda n: inverse_time(0.1, decay=0.1, every=n)),
        ("total", lambda n: polynomial(0.1, total=n)),
        ("total", lambda n: cosine(0.1, total=n)),
        ("total", lambda n: one_cycle(0.1, total=n)),
        (r"pieces\[0\]\[1\]", lambda n: chained([(0.1, n), 0.1])),
    ],
)
def test_bad_counts(name, make, value, error):
    with pytest.raises(error, match=f"^{name} must be"):
        make(value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cosine(0.1, total=9, warmup=9), ValueError, "total must be > warmup"),
        (lambda: cosine(0.1, total=9, warmup=-1), ValueError, "warmup must be >= 0"),
        (lambda: warmup(0.1, steps=-1), ValueError, "steps must be >= 0"),
        (lambda: warmup(0.1, steps=1.5), TypeError, "steps must be an integer"),
        (lambda: polynomial(0.1, total=9, power=0.0), ValueError, "power must be a finite number > 0"),
        (lambda: one_cycle(0.1, total=9, div_factor=0), ValueError, "div_factor must be a finite number > 0"),
        (lambda: one_cycle(0.1, total=9, pct_start=1.1), ValueError, "pct_start must be .* <= 1, got 1.1"),
        (lambda: one_cycle(0.1, total=9, pct_start=0.6, three_phase=True), ValueError, "pct_start must be .* <= 0.5"),
        (lambda: one_cycle(0.1, total=9, anneal="cosine"), ValueError, "anneal must be 'cos' or 'linear'"),
        (lambda: constant(np.ones(2)), TypeError, "lr must be a number"),
        (lambda: chained([]), ValueError, r"pieces must be a list .* got an empty one"),
        (lambda: chained(0.1), TypeError, "pieces must be a list"),
        (lambda: chained("ab"), TypeError, "pieces must be a list"),
        (lambda: chained([(0.1, 3)]), TypeError, "the last one stands alone"),
        (lambda: chained([0.1, 0.2]), TypeError, r"pieces\[0\] must be a pair"),
        (lambda: chained([(0.1, 2, 3), 0.2]), TypeError, r"pieces\[0\] must be a pair"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("schedule", [exponential(1.0, gamma=2.0), step_decay(1.0, every=1, gamma=2.0)])
def test_overflow_is_an_error(schedule):
    assert schedule(1000) == 2.0**999
    for t in (1025, 5000):
        with pytest.raises(OverflowError, match=f"step {t} is too large"):
            schedule(t)


def test_examples_in_the_docs():
    result = doctest.testmod(schedules)
    assert result.attempted >= len(schedules.__all__) - 1
    assert result.failed == 0


def test_an_optimizer_takes_one():
    schedule = cosine(0.5, total=4, warmup=2, end=0.125)
    param = np.zeros(3)
    optimizer = adaptk.SGD([param], lr=schedule)
    for t in range(1, 7):
        before = param.copy()
        optimizer.step([np.ones(3)])
        np.testing.assert_array_equal(param, before - schedule(t))
