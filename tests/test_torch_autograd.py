"""adaptk.torch with autograd and torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch_cases import (
    Case,
    _seeded,  # noqa: F401
    all_close,
    at,
    every_class,
    give,
    in_another_process,
    params,
    torch,
)


@every_class
def test_versions_of_params(case: Case) -> None:
    p = [*params(shapes=[(3,), (4,), ()]), torch.zeros(3, dtype=torch.complex64), torch.zeros(8)[::2]]
    opt = case.ours(p)
    for t in range(2):
        give([p], t, but=[1])
        before = [x._version for x in p]
        opt.step()
        assert [x._version > v for x, v in zip(p, before, strict=True)] == [True, False, True, True, True]
    give([p], 5)
    p[0].grad[1] = float("nan")
    before = [x._version for x in p]
    opt.step(skip_nonfinite=True)
    assert [x._version for x in p] == before
    give([p], 6)
    opt.step(skip_nonfinite=True)
    assert all(x._version > v for x, v in zip(p, before, strict=True))


def test_a_stale_backward_raises() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    opt = at.SGD([w], lr=0.1)
    w.grad = torch.ones(3)
    y = (w * w).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    opt.zero_grad()
    y = (w * w).sum()
    opt.step()  # nothing to do
    y.backward()
    w.grad[0] = float("inf")
    y = (w * w).sum()
    opt.step(skip_nonfinite=True)
    y.backward()
    assert w.grad is not None


def test_a_step_in_the_backward_pass() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).double()
    other = copy.deepcopy(model)
    optimizers = {p: at.Adam([p], lr=0.1) for p in model.parameters()}

    def at_once(p: Any) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(at_once)
    torchs = torch.optim.Adam(other.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(5, 3).double()
        model(x).square().sum().backward()
        torchs.zero_grad()
        other(x).square().sum().backward()
        torchs.step()
    all_close(list(model.parameters()), list(other.parameters()))


@pytest.mark.full
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_models(backend: str) -> None:
    in_another_process(
        f"""
import copy, torch, adaptk.torch
torch.manual_seed(0)
plain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
model = copy.deepcopy(plain)
compiled = torch.compile(model, backend={backend!r})
a, b = adaptk.torch.AdamW(compiled.parameters(), lr=0.05), torch.optim.AdamW(plain.parameters(), lr=0.05)
for t in range(5):
    x = torch.randn(16, 4)
    for m, o in ((compiled, a), (plain, b)):
        o.zero_grad()
        m(x).square().mean().backward()
        o.step()
for p, q in zip(model.parameters(), plain.parameters()):
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)

# A step inside of what is compiled breaks the graph and runs as it is.
w = torch.nn.Parameter(torch.ones(3))
o = adaptk.torch.SGD([w], lr=0.5)

@torch.compile(backend={backend!r})
def train(x):
    (w * x).sum().backward()
    o.step()
    o.zero_grad()

train(torch.ones(3))
train(torch.ones(3))
assert w.tolist() == [0.0] * 3, w
""",
        600,
    )
