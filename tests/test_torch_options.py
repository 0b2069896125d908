"""Options of torch.optim's classes in adaptk.torch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from torch_cases import (
    OWN,
    TORCHS,
    Case,
    _seeded,  # noqa: F401
    all_close,
    at,
    every_class,
    everything,
    give,
    params,
    same_bits,
    torch,
    twins,
)


@pytest.mark.parametrize("impl", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}], ids=str)
@every_class
def test_implementations_of_torchs_change_nothing(case: Case, impl: dict[str, Any]) -> None:
    if not impl.keys() <= inspect.signature(getattr(torch.optim, case.name)).parameters.keys():
        pytest.skip("torch's class has no such option")
    a = params()
    b = twins(a)
    first, second = case.ours(a), case.ours(b, **impl)
    for t in range(3):
        give([a, b], t)
        first.step()
        second.step()
    assert same_bits(a, b)
    assert all(g[k] == v for g in second.param_groups for k, v in impl.items())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@every_class
def test_learning_rate_in_a_tensor(case: Case, shape: tuple[int, ...]) -> None:
    a = params("float64")
    b = twins(a)
    lr = torch.full(shape, 0.05, dtype=torch.float64)
    ours, torchs = case.ours(a, lr=lr), case.torchs(b, lr=lr.clone())
    for t in range(6):
        give([a, b], t)
        ours.step()
        torchs.step()
        # A new number in the same tensor counts from the next step on.
        ours.param_groups[0]["lr"].mul_(0.5)
        torchs.param_groups[0]["lr"].mul_(0.5)
    assert ours.param_groups[0]["lr"] is lr
    all_close(a, b)


def test_learning_rate_with_a_graph() -> None:
    for name in (*TORCHS, *OWN):
        lr = torch.tensor(0.5, requires_grad=True)
        p, q = params(shapes=[(3,)]), params(shapes=[(3,)])
        q[0].data.copy_(p[0])
        give([p, q], 0)
        getattr(at, name)(p, lr=lr * 1.0).step()
        getattr(at, name)(q, lr=0.5).step()
        assert same_bits(p, q), name
        assert p[0].grad_fn is None


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_betas_in_tensors(name: str, shape: tuple[int, ...]) -> None:
    a = params("float64")
    b = twins(a)
    betas = tuple(torch.full(shape, x, dtype=torch.float64) for x in (0.8, 0.9))
    ours, torchs = Case(name, {"betas": betas}).ours(a), Case(name, {"betas": betas}).torchs(b)
    for t in range(5):
        give([a, b], t)
        ours.step()
        torchs.step()
    all_close(a, b)


def test_weight_decay_in_a_tensor() -> None:
    a = params("float64")
    b = twins(a)
    case = Case("SGD", {"weight_decay": torch.tensor(0.1, dtype=torch.float64)})
    ours, torchs = case.ours(a), case.torchs(b)
    give([a, b], 0)
    ours.step()
    torchs.step()
    all_close(a, b)


@every_class
def test_a_step_for_autograd_is_refused(case: Case) -> None:
    p = params()
    with pytest.raises(ValueError, match=rf"^differentiable: .*torch\.optim\.{case.name}\("):
        case.ours(p, differentiable=True)
    opt = case.ours(p)
    give([p], 0)
    opt.param_groups[0]["differentiable"] = True
    before = everything(opt)
    with pytest.raises(ValueError, match=r"^differentiable: "):
        opt.step()
    assert everything(opt) == before
    with pytest.raises(ValueError, match=r"^differentiable: "):
        opt.add_param_group({"params": params(), "differentiable": True})
    assert len(opt.param_groups) == 1


@every_class
def test_capturable_is_refused_on_the_cpu(case: Case) -> None:
    if "capturable" not in inspect.signature(getattr(torch.optim, case.name)).parameters:
        pytest.skip("torch's class has no such option")
    p = params()
    with pytest.raises(ValueError, match=r"^capturable: params on the CPU"):
        case.ours(p, capturable=True)
    opt = case.ours(p)
    give([p], 0)
    opt.param_groups[0]["capturable"] = True
    before = everything(opt)
    with pytest.raises(ValueError, match=r"^capturable: "):
        opt.step()
    assert everything(opt) == before


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("SGD", {"momentum": 0.5, "dampening": -1}, "dampening"),
        ("RMSprop", {"alpha": 1.5}, "alpha"),
        ("Adadelta", {"rho": 1.0}, "rho"),
        ("ASGD", {"lambd": -1e-3}, "lambd"),
        ("Rprop", {"step_sizes": (-1, 1)}, r"step_sizes\[0\]"),
        ("Adam", {"lr": float("inf")}, "lr"),
        ("Adam", {"eps": float("inf")}, "eps"),
        ("Lion", {"lr": -1.0}, "lr"),
        ("Adan", {"beta3": 1.0}, "beta3"),
    ],
)
def test_values_that_torch_takes_and_the_kernels_do_not(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}: .* is not in "):
        getattr(at, name)(params(), **options)
    opt = getattr(at, name)(params())
    with pytest.raises(ValueError, match=f"^{said}: "):
        opt.add_param_group({"params": params(), **options})
    assert len(opt.param_groups) == 1


def test_unknown_options() -> None:
    for name in (*TORCHS, *OWN):
        with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
            getattr(at, name)(params(), bogus=1)
