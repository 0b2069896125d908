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
    raw,
    same_bits,
    torch,
    twins,
)


@pytest.mark.parametrize("impl", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}], ids=str)
@every_class
def test_implementation_flags_change_nothing(case: Case, impl: dict[str, Any]) -> None:
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
        # A new number in the same tensor takes effect at the next step.
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
        ("Adan", {"beta3": 1.0}, r"betas\[2\]"),
        ("Adan", {"betas": (0.9, 1.5, 0.9)}, r"betas\[1\]"),
    ],
)
def test_values_that_only_torch_accepts(name: str, options: dict[str, Any], said: str) -> None:
    # PyTorch 2.15 refuses a negative `lambd` too, and first.
    with pytest.raises(ValueError, match=f"^{said}: .* is not in |^Invalid {said} value: "):
        getattr(at, name)(params(), **options)
    opt = getattr(at, name)(params())
    with pytest.raises(ValueError, match=f"^{said}: "):
        opt.add_param_group({"params": params(), **options})
    assert len(opt.param_groups) == 1


def test_unknown_options() -> None:
    for name in (*TORCHS, *OWN):
        with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
            getattr(at, name)(params(), bogus=1)


# The rules that torch lacks, with torch's interface


WITH_BETAS = {"Lion": 2, "AdaBelief": 2, "Yogi": 2, "Adan": 3, "AdEMAMix": 3}


@pytest.mark.parametrize("name", WITH_BETAS)
def test_betas_are_given_together_or_one_by_one(name: str) -> None:
    betas = (0.7, 0.8, 0.85)[: WITH_BETAS[name]]
    names = [f"beta{i + 1}" for i in range(len(betas))]
    cls = getattr(at, name)
    several = [params() for _ in range(5)]
    for p in several[1:]:
        for x, y in zip(several[0], p, strict=True):
            y.data.copy_(x.data)
    first, second = several[:2]
    optimizers = [
        cls(first, 0.01, betas),
        cls(second, lr=0.01, **dict(zip(names, betas, strict=True))),
        cls([{"params": several[2], "betas": list(betas)}], lr=0.01),
        cls([{"params": several[3], **dict(zip(names, betas, strict=True))}], lr=0.01),
        cls(several[4], lr=0.01),
    ]
    optimizers[4].param_groups[0].update(dict(zip(names, betas, strict=True)))
    for t in range(4):
        give(several, t)
        for opt in optimizers:
            opt.step()
    for opt, p in zip(optimizers, several, strict=True):
        assert tuple(opt.param_groups[0]["betas"]) == betas
        assert not set(names) & opt.param_groups[0].keys()
        assert same_bits(first, p)
    assert optimizers[0].defaults["betas"] == betas
    one = cls(params(), beta2=0.5)
    assert one.defaults["betas"][1] == 0.5
    assert one.defaults["betas"][0] == cls(params()).defaults["betas"][0]


def test_invalid_betas() -> None:
    with pytest.raises(ValueError, match=r"^betas: expected 3 numbers, got 2: \(0.9, 0.99\)"):
        at.Adan(params(), betas=(0.9, 0.99))
    with pytest.raises(TypeError, match=r"^betas: expected a tuple of 2 numbers, got 0.9"):
        at.Lion(params(), betas=0.9)
    with pytest.raises(TypeError, match=r"^betas: beta1 is given too"):
        at.Lion(params(), betas=(0.9, 0.99), beta1=0.5)
    opt = at.Lion(params())
    with pytest.raises(TypeError, match=r"^betas: beta2 is given too"):
        opt.add_param_group({"params": params(), "betas": (0.9, 0.99), "beta2": 0.5})
    with pytest.raises(TypeError, match="unexpected keyword argument 'betas'"):
        at.DeltaBarDelta(params(), betas=(0.9, 0.99))
    p = params()
    opt = at.Lion(p)
    give([p], 0)
    opt.param_groups[0]["betas"] = (0.9,)
    before = everything(opt)
    with pytest.raises(ValueError, match=r"^betas: expected 2 numbers, got 1"):
        opt.step()
    assert everything(opt) == before


def test_states_with_separate_betas() -> None:
    """As saved by versions before betas."""
    p, q = params(), params()
    for x, y in zip(p, q, strict=True):
        y.data.copy_(x.data)
    a, b = at.Adan(p, betas=(0.9, 0.8, 0.7)), at.Adan(q)
    give([p, q], 0)
    a.step()
    saved = a.state_dict()
    (group,) = saved["param_groups"]
    group.update(zip(("beta1", "beta2", "beta3"), group.pop("betas"), strict=True))
    b.load_state_dict(saved)
    for x, y in zip(p, q, strict=True):
        y.data.copy_(x.data)
    assert b.param_groups[0]["betas"] == (0.9, 0.8, 0.7)
    give([p, q], 1)
    a.step()
    b.step()
    assert same_bits(p, q)


@pytest.mark.parametrize("name", ["Lion", "Adan", "AdamW", "RMSpropNesterov"])
@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
def test_schedulers_cycle_the_momentum(name: str, kind: str) -> None:
    from torch.optim import lr_scheduler

    p = params()
    opt = getattr(at, name)(p, lr=0.1)
    rest = opt.param_groups[0].get("betas", (0.0,))[1:]
    if kind == "OneCycleLR":
        rate = lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=10, base_momentum=0.6, max_momentum=0.9)
    else:
        rate = lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=3, base_momentum=0.6, max_momentum=0.9)
    seen = []
    for t in range(8):
        give([p], t)
        opt.step()
        rate.step()
        group = opt.param_groups[0]
        seen.append(group["momentum"] if "momentum" in group else group["betas"][0])
        assert group.get("betas", (0.0,))[1:] == rest
    assert max(seen) > 0.8
    assert min(seen) < 0.65


@pytest.mark.parametrize("lr", [None, "0.1", [0.1]])
def test_invalid_learning_rates(lr: Any) -> None:
    for name in (*TORCHS, *OWN, "Muon"):
        with pytest.raises(TypeError, match=r"^lr: expected a number or a tensor of one, got "):
            getattr(at, name)(params(shapes=[(2, 2)]), lr=lr)
        with pytest.raises(TypeError, match=r"^lr: expected a number"):
            getattr(at, name)([{"params": params(shapes=[(2, 2)]), "lr": lr}])
        p = params(shapes=[(2, 2)])
        opt = getattr(at, name)(p)
        give([p], 0)
        opt.param_groups[0]["lr"] = lr
        before = raw(p[0])
        with pytest.raises(TypeError, match="lr: "):
            opt.step()
        assert raw(p[0]) == before
