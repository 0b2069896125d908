"""Steps of adaptk.torch that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch_cases import (
    Case,
    _seeded,  # noqa: F401
    all_close,
    at,
    every_class,
    everything,
    give,
    params,
    sparse_beyond,
    torch,
    twins,
)


def bad_lr(opt: Any, p: list[Any]) -> None:
    opt.param_groups[0]["lr"] = -1.0


def bad_type(opt: Any, p: list[Any]) -> None:
    opt.param_groups[0]["lr"] = "0.1"


def no_number(opt: Any, p: list[Any]) -> None:
    opt.param_groups[0]["lr"] = float("nan")


def sparse_grad(opt: Any, p: list[Any]) -> None:
    p[1].grad = sparse_beyond((5,))


def state_shape(opt: Any, p: list[Any]) -> None:
    name = next(k for k, v in opt.state[p[1]].items() if v.ndim > 0)
    opt.state[p[1]][name] = torch.zeros(4)


def state_type(opt: Any, p: list[Any]) -> None:
    name = next(k for k, v in opt.state[p[1]].items() if v.ndim > 0)
    opt.state[p[1]][name] = "zeros"


def bad_step(opt: Any, p: list[Any]) -> None:
    opt.state[p[1]]["step"].fill_(float("nan"))


def two_steps(opt: Any, p: list[Any]) -> None:
    opt.state[p[1]]["step"].resize_(2).fill_(1.0)


def overlap(opt: Any, p: list[Any]) -> None:
    p[1].data = p[0].data.view(-1)[2:7]


def grad_overlap(opt: Any, p: list[Any]) -> None:
    p[1].grad = p[0].data.view(-1)[2:7]


def complex_overlap(opt: Any, p: list[Any]) -> None:
    z = torch.randn(8, dtype=torch.complex64)
    p[0].data, p[1].data = z[:5], z[3:]
    p[0].grad, p[1].grad = torch.ones_like(z[:5]), torch.ones_like(z[3:])
    opt.state.clear()


def expanded(opt: Any, p: list[Any]) -> None:
    p[1].data = torch.ones(1).expand(5)


def woven(opt: Any, p: list[Any]) -> None:
    p[1].data = torch.ones(9).as_strided((5, 2), (1, 1))
    p[1].grad = torch.ones(5, 2)
    opt.state.pop(p[1])


def float8(opt: Any, p: list[Any]) -> None:
    p[1].grad = None
    p[1].data = torch.ones(5).to(torch.float8_e5m2fnuz)
    p[1].grad = torch.ones(5).to(torch.float8_e5m2fnuz)


FAILURES = {
    bad_lr: (ValueError, "lr: -1"),
    bad_type: (TypeError, "lr: expected a number"),
    no_number: (ValueError, "lr: nan"),
    sparse_grad: (ValueError, r"grads\[1\], indices: number 0 is 7, expected in \[0, 5\)"),
    state_shape: (ValueError, r"params\[1\]: shape \(4,\), expected \(5,\)"),
    state_type: (TypeError, r"params\[1\]: str, expected a torch.Tensor"),
    bad_step: (ValueError, r"state\['step'\] of params\[1\]: nan is no count of steps"),
    two_steps: (ValueError, r"state\['step'\] of params\[1\]: 2 numbers, expected one"),
    overlap: (ValueError, r"params\[0\] and params\[1\] overlap"),
    grad_overlap: (ValueError, r"the gradient of params\[1\] and params\[0\] overlap"),
    complex_overlap: (ValueError, r"params\[0\] and params\[1\] overlap"),
    expanded: (RuntimeError, r"params\[1\]: several of its elements are at one address"),
    woven: (RuntimeError, r"params\[1\]: several of its elements are at one address"),
    float8: (TypeError, r"params\[1\]: dtype"),
}


@pytest.mark.parametrize("fresh", [False, True], ids=["later", "first-step"])
@pytest.mark.parametrize("cause", FAILURES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["Adam", "SGD", "NAdam", "Rprop"])
def test_a_step_that_fails_changes_nothing(name: str, cause: Callable[[Any, list[Any]], None], fresh: bool) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    p = params(shapes=[(3, 4), (5,), (2,)])
    opt = getattr(at, name)(p, **options)
    if not fresh:
        give([p], 0, but=[2])  # so that the failing step has to create a state
        opt.step()
    give([p], 1)
    try:
        cause(opt, p)
    except (KeyError, StopIteration):
        pytest.skip("this needs a state, or a count of steps")
    if cause is bad_step and name == "SGD":
        pytest.skip("no count of steps")
    if cause is two_steps and name == "SGD":
        pytest.skip("no count of steps")
    before = everything(opt)
    exception, message = FAILURES[cause]
    for _ in range(2):
        with pytest.raises(exception, match=message):
            opt.step(clip_norm=1.0)
        assert everything(opt) == before


@every_class
def test_a_failed_step_does_not_affect_later_ones(case: Case) -> None:
    """States are initialized from the options at their first step: Rprop's from the learning rate."""
    a = params(shapes=[(3,), (4,)])
    b = twins(a)
    ours, torchs = case.ours(a, lr=0.3), case.torchs(b, lr=0.3)
    give([a], 0)
    a[1].grad = sparse_beyond((4,))
    with pytest.raises(ValueError, match=r"grads\[1\], indices: number 0 is 7"):
        ours.step()
    give([a], 0)
    a[1].grad[2] = float("inf")
    ours.step(skip_nonfinite=True)
    assert ours.last_step.skipped
    assert case.name == "Adagrad" or not any(ours.state.values())
    for o in (ours, torchs):
        o.param_groups[0]["lr"] = 0.1
    for t in range(3):
        give([a, b], t)
        ours.step()
        torchs.step()
    all_close(a, b)


def test_params_without_memory() -> None:
    real, p = torch.ones(2), torch.ones(3, device="meta")
    real.grad, p.grad = torch.ones(2), torch.ones(3, device="meta")
    opt = at.Adam([real, p])
    with pytest.raises(TypeError, match=r"params\[1\]: on the device meta"):
        opt.step()
    assert not opt.state
    assert real.tolist() == [1.0, 1.0]


def test_inference_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    if at._private.face is not dict:  # also in this mode
        monkeypatch.setattr(at._private, "face", at._private.face.__wrapped__)
    with torch.inference_mode():
        p = torch.ones(3)
        p.grad = torch.ones(3)
        opt = at.SGD([p], lr=0.5)
        opt.step()
        assert p.tolist() == [0.5] * 3
    other = at.SGD([p], lr=0.5)
    with pytest.raises(RuntimeError, match="inference tensor"):
        other.step()
    assert p.tolist() == [0.5] * 3


def test_invalid_clip_norm() -> None:
    p = params()
    opt = at.SGD(p)
    give([p], 0)
    before = everything(opt)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="clip_norm"):
            opt.step(clip_norm=bad)
    assert everything(opt) == before
