"""Params in bfloat16 that are rounded stochastically, in adaptk.torch: the bits of the NumPy optimizers."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is in ml_dtypes")

import adaptk.torch  # noqa: E402

SIZES = (5, 130, 700)


def as_numpy(t: Any) -> np.ndarray:
    return t.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def tensors(seed: int, dtype: Any = torch.bfloat16) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype) for n in SIZES]


@pytest.mark.parametrize("alone", [False, True], ids=["step", "step_param"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam", "ASGD"])
def test_bits(name: str, alone: bool) -> None:
    params = [torch.nn.Parameter(t) for t in tensors(0)]
    beside = [as_numpy(t).copy() for t in tensors(0)]
    opt = getattr(adaptk.torch, name)(params, lr=1e-3, seed=7, param_format="sr")
    other = getattr(adaptk, name)(beside, lr=1e-3, seed=7, param_format="sr", convention="torch")
    nearest = getattr(adaptk, name)([b.copy() for b in beside], lr=1e-3, convention="torch")
    for step in range(1, 4):
        for p, g in zip(params, tensors(step), strict=True):
            p.grad = g
        if alone:
            for p in params:
                opt.step_param(p)
        else:
            opt.step()
        grads = [as_numpy(g) for g in tensors(step)]
        other.step(grads)
        nearest.step(grads)
    for p, b in zip(params, beside, strict=True):
        np.testing.assert_array_equal(as_numpy(p).view(np.uint16), b.view(np.uint16))
    same = [np.array_equal(b, n) for b, n in zip(beside, nearest.param_groups[0]["params"], strict=True)]
    assert not all(same)


def test_groups_and_saved_states() -> None:
    """The option of a group, which a saved state includes like every option of a group."""
    params = [torch.nn.Parameter(t) for t in tensors(0)]
    opt = adaptk.torch.AdamW([{"params": params[:1]}, {"params": params[1:], "param_format": "sr"}], seed=3)
    assert [g.get("param_format") for g in opt.param_groups] == [None, "sr"]
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = adaptk.torch.AdamW([{"params": again[:1]}, {"params": again[1:]}])
    other.load_state_dict(opt.state_dict())
    for p, q, g in zip(params, again, tensors(1), strict=True):
        p.grad, q.grad = g, g.clone()
    opt.step()
    other.step()
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)
    opt.param_groups[1]["param_format"] = None  # from the next step on
    before = [p.detach().clone() for p in params]
    plain = adaptk.torch.AdamW([torch.nn.Parameter(b) for b in before])
    plain.load_state_dict(
        {"state": opt.state_dict()["state"], "param_groups": [{**plain.state_dict()["param_groups"][0]}]}
    )
    for p, q, g in zip(params, plain.param_groups[0]["params"], tensors(2), strict=True):
        p.grad, q.grad = g, g.clone()
    opt.step()
    plain.step()
    for p, q in zip(params, plain.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("dtype", "value", "error", "message"),
    [
        (torch.bfloat16, "x", ValueError, "param_format: 'x' is unknown"),
        (torch.bfloat16, 3, TypeError, "param_format: expected a str or None, got int"),
        (torch.float16, "kahan", TypeError, r"params\[0\]: dtype float16 cannot be stored as 'kahan', which is for"),
    ],
)
def test_errors(dtype: Any, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adaptk.torch.SGD([torch.nn.Parameter(torch.ones(3, dtype=dtype))], lr=0.1, param_format=value)


def test_wider_params_are_unchanged() -> None:
    a, b = (torch.nn.Parameter(torch.ones(300)) for _ in range(2))
    for p, options in ((a, {"param_format": "sr"}), (b, {})):
        opt = adaptk.torch.SGD([p], lr=0.1, **options)
        p.grad = torch.linspace(-1, 1, 300)
        opt.step()
    assert torch.equal(a, b)


def test_rules_without_a_count_use_new_random_bits() -> None:
    """torch's SGD counts no steps: its state has a count here, otherwise small changes would never add up."""
    p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    opt = adaptk.torch.SGD([p], lr=2.0**-7 / 8, seed=5, param_format="sr")
    for _ in range(200):
        p.grad = torch.full((4096,), -1.0, dtype=torch.bfloat16)
        opt.step()
    assert opt.state[p]["step"] == 200
    moved = (p.detach().double() - 1) * 2**7
    # 200 steps with a probability of 1/8: mean 25, variance 21.9.
    assert abs(moved.mean() - 25) < 5 * (21.9 / 4096) ** 0.5
    assert abs(moved.var() - 21.9) < 5 * 21.9 * (2 / 4096) ** 0.5


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_buffers(nesterov: bool) -> None:
    """The bits of the NumPy optimizer, also after a state is loaded in the middle."""
    start = tensors(0, torch.float32)
    params, beside = [torch.nn.Parameter(t.clone()) for t in start], [t.clone().numpy() for t in start]
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "seed": 8}
    opt = adaptk.torch.SGD(params, state_dtype="bfloat16_sr", **options)
    numpy = adaptk.SGD(beside, state_dtype="bfloat16_sr", convention="torch", **options)
    for step in range(6):
        if step == 3:
            saved = opt.state_dict()
            opt = adaptk.torch.SGD(params, state_dtype="bfloat16_sr", **options)
            opt.load_state_dict(saved)
        for p, g in zip(params, tensors(step, torch.float32), strict=True):
            p.grad = g
        opt.step()
        numpy.step([g.numpy() for g in tensors(step, torch.float32)])
        for p, b in zip(params, beside, strict=True):
            np.testing.assert_array_equal(p.detach().numpy(), b)
    for p, states in zip(params, numpy.state.values(), strict=True):
        np.testing.assert_array_equal(
            opt.state[p]["momentum_buffer"].view(torch.int16).numpy().view(np.uint16),
            np.asarray(states["momentum_buffer"].data).view(np.uint16),
        )


def test_a_momentum_buffer_saved_without_a_count() -> None:
    """It has taken one step: the next ones are the second and the third, each with its own random bits."""
    p = torch.nn.Parameter(torch.ones(300))
    plain = adaptk.torch.SGD([p], lr=0.1, momentum=0.9)
    p.grad = tensors(1, torch.float32)[2][:300]
    plain.step()
    opt = adaptk.torch.SGD([p], lr=0.1, momentum=0.9, state_dtype="bfloat16_sr")
    saved = plain.state_dict()
    saved["param_groups"][0].update(opt.state_dict()["param_groups"][0])
    opt.load_state_dict(saved)
    for step in (2, 3):
        opt.step()
        assert opt.state[p]["step"] == step
