"""Steps of single params, and gradients that are released as they arrive."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
import adaptk.torch as at  # noqa: E402
from torch_cases import CASES, Case  # noqa: E402

STEPS = 4


def model() -> Any:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3), torch.nn.Linear(3, 1))


def loss(net: Any, k: int) -> Any:
    return net(torch.linspace(-1, 1 + k, 24).reshape(4, 6)).square().sum()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_step(case: Case) -> None:
    released, whole = model(), model()
    ours, other = case.ours(released.parameters()), case.ours(whole.parameters())
    hooks = at.release_gradients(released, ours)
    for k in range(STEPS):
        loss(released, k).backward()
        assert all(p.grad is None for p in released.parameters())
        other.zero_grad()
        loss(whole, k).backward()
        other.step()
    for p, q in zip(released.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)
        assert ours.state[p].keys() == other.state[q].keys()
        assert all(torch.equal(ours.state[p][n], other.state[q][n]) for n in ours.state[p])
    # Steps of all params continue from there.
    hooks.remove()
    for net, opt in ((released, ours), (whole, other)):
        opt.zero_grad()
        loss(net, STEPS).backward()
        opt.step()
    assert all(map(torch.equal, released.parameters(), whole.parameters()))


def test_versions_and_schedulers() -> None:
    net = model()
    opt = at.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    p = net[0].weight
    p.grad = torch.ones_like(p)
    version, start = p._version, p.detach().clone()
    opt.step_param(p)
    assert p._version == version + 1
    assert torch.equal(p, start - 0.1)
    opt.step()
    scheduler.step()
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    opt.step_param(p)
    assert torch.equal(p, before - 0.05)


def test_params_that_are_added_later() -> None:
    net = model()
    first, *rest = net.parameters()
    opt = at.Adam([first])
    first.grad = torch.ones_like(first)
    opt.step_param(first)
    opt.add_param_group({"params": rest, "lr": 0.5})
    rest[-1].grad = torch.ones_like(rest[-1])
    start = rest[-1].detach().clone()
    opt.step_param(rest[-1])
    assert torch.allclose(start - rest[-1], torch.tensor(0.5))
    assert float(opt.state[first]["step"]) == 1


def test_other_threads_step_other_params() -> None:
    params = [torch.nn.Parameter(torch.zeros(600_000)) for _ in range(6)]
    opt = at.Adam(params, lr=0.1)
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, float(i + 1))
    failures: list[BaseException] = []

    def run(i: int) -> None:
        try:
            for _ in range(5):
                opt.step_param(params[i])
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(params))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    alone = [torch.nn.Parameter(torch.zeros(600_000)) for _ in range(6)]
    other = at.Adam(alone, lr=0.1)
    for _ in range(5):
        for i, p in enumerate(alone):
            p.grad = torch.full_like(p, float(i + 1))
        other.step()
    assert all(map(torch.equal, params, alone))
    opt.step()
    assert float(opt.state[params[0]]["step"]) == 6


def test_nothing_is_kept() -> None:
    net = model()
    opt = at.Adam(net.parameters())
    p = net[0].weight
    p.grad = torch.ones_like(p)
    gone = weakref.ref(p.grad)
    opt.step_param(p)
    p.grad = None
    gc.collect()
    assert gone() is None


def overlapping(p: Any) -> None:
    p.grad = p.data


REFUSED = {
    "not a tensor": (lambda net, opt: opt.step_param("w"), TypeError, "param: str, expected a torch.Tensor"),
    "not its param": (lambda net, opt: opt.step_param(torch.zeros(2)), ValueError, "not among this optimizer's params"),
    "no gradient": (lambda net, opt: opt.step_param(net[0].weight), ValueError, r"params\[0\]: .* without a gradient"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_errors(kind: str) -> None:
    net = model()
    opt = at.Adam(net.parameters())
    act, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        act(net, opt)
    assert not opt.state


def test_refused_steps_create_no_state() -> None:
    w = torch.nn.Parameter(torch.ones(4, dtype=torch.complex64))
    v = torch.nn.Parameter(torch.ones(4))
    opt = at.Adam([w, v])
    w.grad = torch.ones_like(w)
    with pytest.raises(TypeError, match="plain dense tensors"):
        opt.step_param(w)
    assert not opt.state
    overlapping(v)
    with pytest.raises(ValueError, match=r"the gradient of params\[1\] overlaps the param"):
        opt.step_param(v)
    assert not opt.state
    v.grad = torch.ones(4)
    opt.step_param(v)
    assert list(opt.state) == [v]


def test_within_a_step() -> None:
    net = model()
    opt = at.SGD(net.parameters(), lr=0.1)
    loss(net, 0).backward()
    seen: list[str] = []

    def hook(*_: Any) -> None:
        try:
            opt.step_param(net[0].weight)
        except RuntimeError as e:
            seen.append(str(e))

    opt.register_step_pre_hook(hook)
    opt.step()  # hooks run outside of the native step, so that a step of one param is allowed
    assert not seen


def test_clipping_is_refused() -> None:
    net = model()
    opt = at.Adam(net.parameters())
    hooks = at.release_gradients(net, opt)
    for options in ({"clip_norm": 1.0}, {"skip_nonfinite": True}):
        with pytest.raises(ValueError, match="gradients are released as they arrive"):
            opt.step(**options)
    with pytest.raises(RuntimeError, match="released already"):
        at.release_gradients(net, opt)
    hooks.remove()
    loss(net, 0).backward()
    opt.step(clip_norm=1.0)
    with pytest.raises(TypeError, match=r"expected one of adaptk\.torch"):
        at.release_gradients(net, torch.optim.SGD(net.parameters()))
    with pytest.raises(TypeError, match="model: list"):
        at.release_gradients([], opt)
    with pytest.raises(ValueError, match="not the model's"):
        at.release_gradients(model(), opt)
