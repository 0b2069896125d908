"""Schedules for callers that count from 0: PyTorch's LambdaLR, optax, and functions under jax.jit."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import schedules

SCHEDULES = [
    schedules.constant(0.1),
    schedules.step_decay(0.1, every=3, gamma=0.3),
    schedules.cosine(0.1, total=10, warmup=3, end=0.001),
    schedules.warmup(schedules.polynomial(0.1, total=6), steps=2),
    schedules.chained([(0.5, 2), schedules.exponential(0.1, gamma=0.5)]),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@every_schedule
def test_from_zero(schedule: schedules.Schedule) -> None:
    shifted = schedule.from_zero()
    assert [shifted(n) for n in range(15)] == [schedule(n + 1) for n in range(15)]
    assert [shifted(n) for n in (0.0, np.int64(3), np.array(3), np.float32(3))] == [schedule(t) for t in (1, 4, 4, 4)]
    assert eval(repr(shifted), vars(schedules)) == shifted
    for other in (copy.deepcopy(shifted), pickle.loads(pickle.dumps(shifted))):
        assert other == shifted
        assert hash(other) == hash(shifted)
    assert shifted != schedule
    assert shifted != schedules.constant(9.0).from_zero()


@pytest.mark.parametrize(("n", "error"), [(-1, ValueError), (1.5, ValueError), (True, TypeError), ("1", TypeError)])
def test_no_number_of_steps(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^n must be"):
        schedules.constant(0.1).from_zero()(n)


def test_schedules_from_zero_are_refused_by_optimizers() -> None:
    """It would be a step ahead of the intended schedule."""
    shifted = schedules.cosine(0.1, total=10).from_zero()
    text = "lr: this schedule counts from 0, and steps count from 1 here; give it without from_zero()"
    with pytest.raises(TypeError, match=text.replace("(", r"\(").replace(")", r"\)")):
        adaptk.Adam([np.ones(2)], lr=shifted)
    with pytest.raises(TypeError, match="lr: this schedule counts from 0"):
        adaptk.Adam([np.ones(2)]).param_groups[0]["lr"] = shifted
    with pytest.raises(TypeError, match="schedule_or_lr: this schedule counts from 0"):
        schedules.warmup(shifted, steps=3)
    with pytest.raises(TypeError, match=r"pieces\[0\]\[0\]: this schedule counts from 0"):
        schedules.chained([(shifted, 3), 0.1])


# PyTorch


@every_schedule
def test_lambda_lr(schedule: schedules.Schedule) -> None:
    """Every step of torch's optimizer has the rate of the step with the same number."""
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.from_zero())
    taken = []
    for _ in range(15):
        before = w.item()
        w.grad = torch.ones_like(w)
        optimizer.step()
        scheduler.step()
        taken.append(before - w.item())
    assert taken == pytest.approx([schedule(t) for t in range(1, 16)], rel=1e-12)
    ours = np.zeros(1)
    stepper = adaptk.SGD([ours], lr=schedule)
    for _ in range(15):
        stepper.step([np.ones(1)])
    assert ours[0] == pytest.approx(w.item(), rel=1e-12)


def test_lambda_lr_refuses_a_schedule_that_counts_from_1() -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="got 0; for a caller that counts from 0, such as torch's LambdaLR"):
        torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULES[2])


def test_the_state_of_lambda_lr_is_plain_data() -> None:
    torch = pytest.importorskip("torch")

    def make() -> Any:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULES[2].from_zero())

    optimizer, scheduler = make()
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)
    again, other = make()
    other.load_state_dict(torch.load(file, weights_only=True))
    again.step()
    other.step()
    assert other.get_last_lr() == [SCHEDULES[2](6)]


# optax


def optax_rates(make: Any, n: int, jit: bool) -> list[float]:
    jax = pytest.importorskip("jax")
    optimizer = make(pytest.importorskip("optax"))
    params = jax.numpy.zeros(1)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    rates = []
    for _ in range(n):
        updates, state = update(jax.numpy.ones(1), state, params)
        rates.append(-float(updates[0]))
    return rates


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("way", ["sgd", "inject_hyperparams", "scale_by_schedule"])
@every_schedule
def test_optax(schedule: schedules.Schedule, way: str, jit: bool) -> None:
    shifted = schedule.from_zero()
    ways = {
        "sgd": lambda o: o.sgd(shifted),
        "inject_hyperparams": lambda o: o.inject_hyperparams(o.sgd)(learning_rate=shifted),
        "scale_by_schedule": lambda o: o.chain(o.scale_by_schedule(shifted), o.scale(-1.0)),
    }
    assert optax_rates(ways[way], 12, jit) == pytest.approx([schedule(t) for t in range(1, 13)], rel=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_optax_refuses_a_schedule_that_counts_from_1(jit: bool) -> None:
    jax = pytest.importorskip("jax")
    # Under jit the host raises it, which JAX wraps in its own error.
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=r"got 0; .* use schedule.from_zero\(\)"):
        optax_rates(lambda o: o.sgd(SCHEDULES[2]), 1, jit)


@every_schedule
def test_a_traced_step(schedule: schedules.Schedule) -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    steps = jnp.arange(1, 13)
    want = np.array([schedule(int(t)) for t in steps])
    assert np.array([jax.jit(schedule)(t) for t in steps]) == pytest.approx(want, rel=1e-6)
    assert np.asarray(jax.vmap(schedule)(steps)) == pytest.approx(want, rel=1e-6)
    assert np.asarray(jax.jit(jax.vmap(schedule.from_zero()))(steps - 1)) == pytest.approx(want, rel=1e-6)
    assert float(jax.jit(schedule)(3.0)) == pytest.approx(schedule(3), rel=1e-6)
    with jax.enable_x64(True):
        assert jax.jit(schedule)(jnp.asarray(7)).dtype == np.float64
        assert float(jax.jit(schedule)(jnp.asarray(7))) == schedule(7)


def test_adaptk_jax_accepts_both() -> None:
    """It passes a schedule the count that it needs."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("adaptk.jax")
    params = []
    for rate in (SCHEDULES[2], SCHEDULES[2].from_zero()):
        optimizer = adaptk.jax.sgd(rate)
        p = jax.numpy.zeros(3)
        state = optimizer.init(p)
        for _ in range(5):
            p, state = jax.jit(optimizer.apply)(p, jax.numpy.ones(3), state)
        params.append(np.asarray(p))
    assert params[0].tobytes() == params[1].tobytes()
    assert params[0][0] == pytest.approx(-sum(SCHEDULES[2](t) for t in range(1, 6)), rel=1e-6)
