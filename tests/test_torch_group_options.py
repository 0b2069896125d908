"""Options of the step as arguments of the constructor and keys of param groups, for wrappers that call step()."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch_cases import (
    Case,
    _seeded,  # noqa: F401
    at,
    every_class,
    give,
    params,
    same_bits,
    torch,
    twins,
)


@every_class
def test_the_same_as_arguments_of_the_step(case: Case) -> None:
    a = params()
    b = twins(a)
    by_groups, by_arguments = case.ours(a, clip_norm=0.5, skip_nonfinite=True, zero_grad=True), case.ours(b)
    for t in range(3):
        give([a, b], t)
        if t == 1:
            a[0].grad[0] = b[0].grad[0] = float("nan")
        by_groups.step()
        by_arguments.step(clip_norm=0.5, skip_nonfinite=True, zero_grad=True)
        assert by_groups.last_step.skipped is by_arguments.last_step.skipped is (t == 1)
        assert all(p.grad is None or not p.grad.any() for p in a)
    assert same_bits(a, b)


def parameters(*values: float) -> list[Any]:
    made = [torch.nn.Parameter(torch.full((2,), v)) for v in values]
    for p in made:
        p.grad = torch.tensor([3.0, 4.0])
    return made


def test_changes_in_groups_take_effect() -> None:
    (w,) = parameters(0.0)
    opt = at.SGD([w], lr=1.0)
    assert "clip_norm" not in opt.param_groups[0]
    opt.step()
    assert w.tolist() == [-3.0, -4.0]
    opt.param_groups[0]["clip_norm"] = 2.5
    opt.step()
    assert w.tolist() == [-4.5, -6.0]
    opt.step(clip_norm=5.0)  # arguments of the call take precedence
    assert w.tolist() == [-7.5, -10.0]


def test_muon() -> None:
    a = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3))]
    b = twins(a)
    by_groups = at.Muon(a, clip_norm=0.1, skip_nonfinite=True, zero_grad=True)
    by_arguments = at.Muon(b)
    assert all(g["clip_norm"] == 0.1 for g in by_groups.param_groups)
    for t in range(3):
        give([a, b], t)
        by_groups.step()
        by_arguments.step(clip_norm=0.1, skip_nonfinite=True, zero_grad=True)
        assert by_groups.last_step.grad_norm == by_arguments.last_step.grad_norm > 0.1
    assert same_bits(a, b)
    assert not any(p.grad.any() for p in a)
    with pytest.raises(ValueError, match="clip_norm: step_param"):
        by_groups.step_param(a[1])


def test_groups_that_differ() -> None:
    a, b = parameters(1.0, 2.0)
    opt = at.Adam([{"params": [a], "clip_norm": 1.0}, {"params": [b]}])
    with pytest.raises(ValueError, match=r"clip_norm: param_groups\[0\] has 1.0 and param_groups\[1\] has None"):
        opt.step()
    assert not opt.state
    opt.step(clip_norm=1.0)
    opt.param_groups[1]["clip_norm"] = 1.0
    opt.step()
    assert opt.last_step.grad_norm == pytest.approx(50.0**0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_norm": -1.0}, ValueError, "clip_norm"),
        ({"clip_norm": "1"}, TypeError, "clip_norm"),
        ({"skip_nonfinite": 1}, TypeError, "skip_nonfinite: expected a bool, got int"),
        ({"zero_grad": "no"}, TypeError, "zero_grad: expected a bool, got str"),
        ({"clip_nrom": 1.0}, TypeError, "clip_norm"),
    ],
)
@pytest.mark.parametrize("name", ["AdamW", "Lion", "SGD", "Muon"])
def test_errors(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    if name == "Muon" and "clip_nrom" in options:
        message = "clip_nrom"
    with pytest.raises(error, match=message):
        getattr(at, name)(parameters(1.0), **options)


def test_gradients_as_the_closure_are_refused() -> None:
    params = parameters(1.0)
    with pytest.raises(TypeError, match="closure: expected a function, got list; gradients are read from"):
        at.AdamW(params).step([p.grad for p in params])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_misspelt_options_of_groups(name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name}: param group: 'weight_deacy' is no option; did you mean 'weight_dec"):
        opt = getattr(at, name)([{"params": parameters(1.0), "weight_deacy": 0.1}])
    assert opt.param_groups[0]["weight_deacy"] == 0.1
    own = {"max_momentum": 0.9, "base_momentum": 0.8, "initial_lr": 1.0, "max_lr": 2.0, "name": "head", "lr_scale": 0.5}
    opt.add_param_group({"params": parameters(1.0), **own})  # warnings are errors
    assert own.items() <= opt.param_groups[1].items()


def test_one_param_alone_is_refused() -> None:
    net = torch.nn.Linear(2, 1)
    opt = at.AdamW(net.parameters(), skip_nonfinite=True)
    net.weight.grad = torch.ones_like(net.weight)
    with pytest.raises(ValueError, match=r"skip_nonfinite: step_param\(\) takes gradients one by one"):
        opt.step_param(net.weight)
    with pytest.raises(ValueError, match=r"skip_nonfinite: release_gradients\(\) takes gradients one by one"):
        at.release_gradients(net, opt)
    opt.param_groups[0]["skip_nonfinite"] = False
    opt.step_param(net.weight)


def test_they_are_saved_and_kept() -> None:
    opt = at.AdamW(parameters(1.0, 2.0), clip_norm=0.5)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    assert saved["param_groups"][0]["clip_norm"] == 0.5
    other = at.AdamW(parameters(1.0, 2.0))
    other.load_state_dict(saved)
    other.step()
    assert other.last_step.grad_norm == pytest.approx(50.0**0.5)
    # States of torch do not have them.
    torchs = torch.optim.AdamW(parameters(1.0, 2.0))
    torchs.step()
    opt.load_state_dict(torchs.state_dict())
    assert opt.param_groups[0]["clip_norm"] == 0.5
    torchs.load_state_dict(saved)
    torchs.step()


def test_zero_redundancy_and_schedulers_leave_them() -> None:
    (w,) = parameters(0.0)
    opt = at.SGD([w], lr=1.0, clip_norm=5.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    opt.step()
    scheduler.step()
    opt.step()
    assert w.tolist() == [-4.5, -6.0]


def test_accelerate() -> None:
    """Its wrapper calls step() without arguments."""
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(net)
    data = torch.randn(8, 3)
    opt, plain = at.AdamW(net.parameters(), lr=0.1, clip_norm=0.01), at.AdamW(twin.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    wrapped, wrapped_opt, wrapped_scheduler = accelerator.prepare(net, opt, scheduler)
    for t in range(4):
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(data * (t + 1)).square().mean())
            wrapped_opt.step()
            wrapped_scheduler.step()
            wrapped_opt.zero_grad()
        (twin(data * (t + 1)).square().mean() / 2).backward()
        if t % 2:
            plain.step(clip_norm=0.01)
            plain.param_groups[0]["lr"] *= 0.9
            plain.zero_grad()
    assert opt.last_step.grad_norm > 0.01
    assert opt.param_groups[0]["lr"] == pytest.approx(plain.param_groups[0]["lr"])
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=0)
