"""An error of an optimizer object does not change params, states or the step count."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import (
    RULES,
    refused,
    same_bits,
)


def optimizer_memory(opt: adaptk.Optimizer) -> list[bytes]:
    return [np.asarray(v).tobytes() for v in opt.state_dict().values()]


@pytest.mark.parametrize("rule", RULES)
def test_optimizer_step_is_all_or_nothing(rule: str) -> None:
    params = [np.ones((2, 3), np.float32), np.ones(4, np.float64), np.ones(2, np.float16)]
    grads = [np.full_like(p, 0.5) for p in params]
    opt = adaptk.optimizer_for(rule, params)
    opt.step(grads)
    state = next(iter(opt.state[1].values()), params[0])
    wrong: list[tuple[Any, type[Exception], str]] = [
        ([grads[0], grads[1], None][:2], ValueError, "grads"),
        ([grads[0], grads[1], grads[2], grads[2]], ValueError, "grads"),
        ([grads[0], grads[1], np.ones(2, int)], TypeError, "grads[2]"),
        ([grads[0], grads[1], "x"], TypeError, "grads[2]"),
        ([grads[0], grads[1][:3], grads[2]], ValueError, "grads[1]"),
        ([np.asfortranarray(grads[0]), grads[1], grads[2]], ValueError, "grads[0]"),
        ([grads[0], grads[1], params[2]], ValueError, "grads[2]"),
        ([params[0], grads[1], grads[2]], ValueError, "grads[0]"),
        (5, TypeError, "grads"),
    ]
    if state is not params[0]:
        wrong.append(([grads[0], state, grads[2]], ValueError, "grads[1]"))
    for bad, exception, label in wrong:
        before = optimizer_memory(opt)
        with refused(exception, label, unchanged=params):
            opt.step(bad)
        assert opt.step_count == 1
        assert optimizer_memory(opt) == before
    for options in ({"grad_scale": np.nan}, {"clip_norm": -1.0}, {"clip_norm": np.nan}):
        before = optimizer_memory(opt)
        with refused(ValueError, next(iter(options)), unchanged=params):
            opt.step(grads, **options)
        assert optimizer_memory(opt) == before
    for value, exception in ((-1.0, ValueError), ("x", TypeError), (np.nan, ValueError)):
        opt.param_groups[0]["lr"] = value
        with refused(exception, "lr", unchanged=params):
            opt.step(grads)
        opt.param_groups[0]["lr"] = 0.1
    opt.step(grads)
    assert opt.step_count == 2


def test_optimizer_notices_params_that_became_read_only() -> None:
    params = [np.ones(3), np.ones(3)]
    opt = adaptk.Adam(params)
    params[1].flags.writeable = False
    with refused(ValueError, "params[1]", unchanged=params):
        opt.step([np.ones(3), np.ones(3)])
    assert opt.step_count == 0
    params[1].flags.writeable = True
    opt.step([np.ones(3), np.ones(3)])
    assert opt.step_count == 1


def test_optimizer_notices_params_of_another_shape() -> None:
    for shape in ((3, 2), (6,), (1, 2, 3), (2, 300), (1,), (0,), (1, 1, 1, 1, 6)):
        params = [np.ones(4), np.ones((2, 3))]
        grads = [np.ones(4), np.ones((2, 3))]
        opt = adaptk.Adam(params)
        opt.step(grads)
        params[1].resize(shape, refcheck=False)
        for grad in (grads[1], np.ones(shape)):
            with refused(ValueError, unchanged=params):
                opt.step([grads[0], grad])
        assert opt.step_count == 1
        assert same_bits(opt.state[1]["exp_avg"], opt.state[1]["exp_avg"].flat[0] * np.ones((2, 3)))
        params[1].resize((2, 3), refcheck=False)
        opt.step(grads)
        assert opt.step_count == 2


def test_optimizer_refuses_params_that_share_memory() -> None:
    room = np.ones(6)
    with refused(ValueError, "params[0]", "params[1]", unchanged=[room]):
        adaptk.Adam([room[:4], room[3:]])
    opt = adaptk.Adam([room[:3]])
    with refused(ValueError, "params[0]", "params[1]", unchanged=[room]):
        opt.add_param_group({"params": [room[2:]]})
    opt.add_param_group({"params": [room[3:]]})
    opt.step([np.ones(3), np.ones(3)])
    assert same_bits(room[:3], room[3:])


def test_a_step_inside_a_step_is_refused() -> None:
    params, grads = [np.ones(3)], [np.ones(3)]
    inner: list[str] = []

    def schedule(t: int) -> float:
        if opts:
            with pytest.raises(RuntimeError) as error:
                opts[0].step(grads)
            inner.append(str(error.value))
        return 0.5

    opts: list[adaptk.Optimizer] = []
    opts.append(adaptk.SGD(params, lr=schedule))
    opts[0].step(grads)
    assert len(inner) == 1
    assert opts[0].step_count == 1
    assert same_bits(params[0], np.full(3, 0.5))


def test_a_failing_schedule_changes_nothing() -> None:
    params, grads = [np.ones(3)], [np.ones(3)]

    def schedule(t: int) -> Any:
        if t == 2:
            raise ZeroDivisionError("schedule")
        return 0.5 if t == 1 else "x"

    opt = adaptk.SGD(params, lr=schedule)
    opt.step(grads)
    for _ in range(2):
        with refused(ZeroDivisionError, unchanged=params):
            opt.step(grads)
    assert opt.step_count == 1
