"""Numbers that a step passes to the next one, and params for evaluation."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import same_bits


@pytest.fixture
def summed() -> Any:
    @adaptk.rule(carried={"total": 1.0}, lr=0.5)
    def summed(p, g, h, t):  # type: ignore[no-untyped-def]
        total = h.total + h.lr * t
        return p - total * g, total

    yield summed
    summed.unregister()


def test_carried_numbers_per_group_and_saved(summed: Any) -> None:
    a, b = np.zeros(2), np.zeros(2)
    opt = summed.Optimizer([{"params": [a]}, {"params": [b], "lr": 2.0}])
    for _ in range(3):
        opt.step([np.ones(2), np.ones(2)])
    assert [g["total"] for g in opt.param_groups] == [4.0, 13.0]
    assert (a[0], b[0]) == (-(1.5 + 2.5 + 4), -(3.0 + 7.0 + 13.0))
    later = summed.Optimizer([{"params": [a.copy()]}, {"params": [b.copy()], "lr": 2.0}])
    later.load_state_dict(opt.state_dict())
    assert [g["total"] for g in later.param_groups] == [4.0, 13.0]
    assert [g["total"] for g in pickle.loads(pickle.dumps(opt)).param_groups] == [4.0, 13.0]


def test_a_skipped_step_keeps_it(summed: Any) -> None:
    opt = summed.Optimizer([np.zeros(2)], skip_nonfinite=True)
    assert opt.step([np.array([np.inf, 0.0])]).skipped
    assert opt.param_groups[0]["total"] == 1.0


def test_functions_accept_it(summed: Any) -> None:
    p = np.zeros(1)
    summed(p, np.ones(1), step=3, total=2.0)
    assert p[0] == -3.5
    assert summed.rule.carried == ("total",)


def test_jax_with_a_schedule(summed: Any) -> None:
    jax = pytest.importorskip("jax")
    import adaptk.jax

    rate = adaptk.schedules.step_decay(1.0, every=2, gamma=0.5)
    p = np.zeros(2, np.float32)
    opt, other = summed.Optimizer([p], lr=rate), summed.jax(rate)
    w = [jax.numpy.zeros(2)]
    state = other.init(w)
    for _ in range(4):
        opt.step([np.ones(2, np.float32)])
        w, state = other.apply(w, [jax.numpy.ones(2)], state)
    assert same_bits(p, np.asarray(w[0]))
    with pytest.raises(TypeError, match="learning_rate: expected a number"):
        summed.jax(lambda n: 0.1)
    with pytest.raises(TypeError, match="total: it is carried"):
        summed.jax(0.1, total=3.0)


def test_carried_errors() -> None:
    with pytest.raises(TypeError, match="an element's value as x"):

        @adaptk.rule(carried={"x": 0.0}, lr=0.1)
        def elements(p, g, h, t):  # type: ignore[no-untyped-def]
            return p, g

    with pytest.raises(TypeError, match=r"every state and carried number is returned.*x is missing"):

        @adaptk.rule(carried={"x": 0.0}, lr=0.1)
        def missing(p, g, h, t):  # type: ignore[no-untyped-def]
            return p

    with pytest.raises(ValueError, match="carried: 'lr' is a hyperparameter too"):
        adaptk.rule(name="bad", carried={"lr": 0.0}, lr=0.1)(lambda p, g, h, t: p)
    with pytest.raises(ValueError, match="carried: 'x' is a hyperparameter too"):
        adaptk.rule(name="bad", carried={"x": 0.0}, x=0.1, lr=0.1)(lambda p, g, h, t: p)


# Params for evaluation.


def moved(opt: Any, p: np.ndarray) -> None:
    for t in range(4):
        opt.step([(p * (t + 1)).astype(p.dtype)])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_train_restores_the_bits(dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    p = np.asfortranarray(np.random.default_rng(1).normal(size=(30, 7))).astype(dtype)
    opt = adaptk.ScheduleFreeAdamW([p], lr=0.1)
    moved(opt, p)
    before = p.copy()
    (want,) = opt.evaluation_params()
    assert same_bits(p, before)
    opt.eval()
    opt.eval()
    assert same_bits(p, want)
    assert not same_bits(p, before)
    for refused in (lambda: opt.step([before]), opt.state_dict, opt.evaluation_params):
        with pytest.raises(RuntimeError, match="call train"):
            refused()
    opt.train()
    opt.train()
    assert same_bits(p, before)


def test_evaluation_point_is_the_average() -> None:
    p = np.random.default_rng(1).normal(size=50)
    q = p.copy()
    opt = adaptk.ScheduleFreeSGD({"w": p}, lr=0.1)
    x, z = p.copy(), p.copy()
    assert same_bits(opt.evaluation_params()["w"], p)
    for t in range(1, 6):
        g = 0.1 * q + t
        opt.step({"w": g})
        z = z - 0.1 * g
        x = x + (z - x) / t
        q = 0.1 * z + 0.9 * x
    out = {"w": np.empty_like(p)}
    assert opt.evaluation_params(out) is not None
    np.testing.assert_allclose(out["w"], x, rtol=1e-11)


def test_rules_without_evaluation_params() -> None:
    with pytest.raises(ValueError, match="adam: models are evaluated with the params themselves"):
        adaptk.Adam([np.ones(2)]).eval()
    made = adaptk.rule(name="lost", evaluation="nowhere", lr=0.1)(lambda p, g, h, t: p)
    made.unregister()
    opt = made.Optimizer([np.ones(2)])
    with pytest.raises(ValueError, match="no rule of the name 'nowhere'"):
        opt.eval()


def test_torch_evaluates_at_the_same_point() -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch

    p = np.random.default_rng(1).normal(size=50).astype(np.float32)
    w = torch.nn.Parameter(torch.from_numpy(p.copy()))
    opt, other = adaptk.ScheduleFreeAdamW([p]), adaptk.torch.ScheduleFreeAdamW([w])
    other.eval()
    other.train()
    for _ in range(3):
        opt.step([p.copy()])
        w.grad = w.detach().clone()
        other.step()
    before = w.detach().clone()
    opt.eval()
    other.eval()
    assert same_bits(p, w.detach().numpy())
    with pytest.raises(RuntimeError, match="call train"):
        other.step()
    other.train()
    assert torch.equal(w, before)
    with pytest.raises(RuntimeError, match="use step"):
        other.step_param(w)
    with pytest.raises(ValueError, match="AdEMAMix: models are evaluated with the params themselves"):
        adaptk.torch.AdEMAMix([w]).eval()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_states_of_later_rows_start_as_the_params(kind: str) -> None:
    """States that start as the param do so also for rows without a gradient in the first step."""
    p = np.arange(8.0).reshape(4, 2)
    rows = [(1, 0.5), (2, 0.25), (1, 1.0)]
    if kind == "torch":
        torch = pytest.importorskip("torch")
        w = torch.nn.Parameter(torch.from_numpy(p.copy()))
        other = importlib.import_module("adaptk.torch").MADGRAD([w], lr=0.5, sparse="lazy")
        for row, value in rows:
            values = torch.full((1, 2), value, dtype=torch.float64)
            w.grad = torch.sparse_coo_tensor([[row]], values, (4, 2), check_invariants=False)
            other.step()
        z = other.state[w]["x0"].numpy()
    else:
        opt = adaptk.MADGRAD([p.copy()], lr=0.5, sparse="lazy")
        for row, value in rows:
            opt.step([(np.array([row]), np.full((1, 2), value))])
        z = opt.state[0]["x0"]
    assert same_bits(z, p)


def test_errors_say_nan_without_a_sign() -> None:
    p = [np.ones(3)]
    opt = adaptk.DAdaptAdam(p)
    opt.step([np.full(3, np.inf)])  # infinity minus infinity is a negative NaN on x86
    with pytest.raises(ValueError, match=r": nan is not in \(-inf, inf\)"):
        opt.step([np.ones(3)])
