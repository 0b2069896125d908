"""``adaptk.torch`` under ``torch.compile``: a step is one operator of the graph, with the bits of a step outside."""

from __future__ import annotations

import contextlib
import copy
import gc
import subprocess
import sys
from typing import Any

import pytest
from helpers import first_tier
from torch_cases import (
    _seeded,  # noqa: F401
    at,
    give,
    params,
    same_bits,
    torch,
    twins,
)

# Warnings of PyTorch's compiler about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
BACKENDS = first_tier(["eager", "aot_eager", "inductor"], "aot_eager")


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    torch.compiler.reset()


def compiled(function: Any, backend: str) -> Any:
    """Compiled with graph breaks as errors."""
    return torch.compile(function, fullgraph=True, backend=backend)


class Counted:
    """A backend that counts graphs and the operators in them."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        calls = [n for n in graph.graph.nodes if n.op.startswith("call")]
        self.graphs.append([str(n.target) for n in calls])
        return graph.forward


def states(optimizer: Any) -> list[Any]:
    return [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", first_tier(["AdamW", "SGD", "Lion", "Muon", "ADOPT"], "AdamW"))
def test_a_compiled_step(name: str, backend: str) -> None:
    a = params(shapes=[(3, 4), (5,), (0,), (2,)])
    b = twins(a)
    ours, plain = getattr(at, name)(a, lr=0.1), getattr(at, name)(b, lr=0.1)
    seen: list[str] = []
    ours.register_step_post_hook(lambda *_: seen.append("step"))
    step = compiled(lambda: ours.step(), backend)
    for t in range(4):
        ours.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = 0.1 / (1 + t)
        give([a, b], t, but=[3])
        step()
        plain.step()
        assert same_bits(a, b)
    assert same_bits(states(ours), states(plain))
    assert len(seen) == 4


def test_contents_of_the_graph() -> None:
    """Only the operator; another learning rate does not recompile, another param with a gradient does."""
    backend = Counted()
    a = params()
    b = twins(a)
    ours, plain = at.AdamW(a, lr=0.1), at.AdamW(b, lr=0.1)
    # A scheduler replaces ours.step by a function that Dynamo does not trace.
    step = torch.compile(lambda: type(ours).step(ours, clip_norm=1.0), fullgraph=True, backend=backend)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (ours, plain)]
    for t in range(12):
        give([a, b], t, but=[1] if t < 6 else [])
        step()
        plain.step(clip_norm=1.0)
        for schedule in schedules:
            schedule.step()
        assert same_bits(a, b)
    assert ours.last_step == plain.last_step
    assert len(backend.graphs) == 2
    for calls in backend.graphs:
        assert [c for c in calls if "set_grad_enabled" not in c] == ["adaptk.optimizer_step"], calls


@pytest.mark.full
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_operations_around_a_step(backend: str) -> None:
    a = params(shapes=[(3, 4), (5,)])
    b = twins(a)
    ours, plain = at.AdamW(a, lr=0.1), at.AdamW(b, lr=0.1)

    def train(opt: Any, several: list[Any]) -> Any:
        before = several[0].detach().clone()
        with torch.no_grad():
            for p in several:
                p.mul_(0.5)
        opt.step()
        between = several[0].detach() * 2.0
        opt.step(clip_norm=0.1, zero_grad=True)
        return before, between, several[0].detach() + 1.0, several[1].grad + 0.0

    step = compiled(lambda: train(ours, a), backend)
    for t in range(3):
        give([a, b], t)
        found, want = step(), train(plain, b)
        assert same_bits(found, want)
        assert same_bits(a, b)
        assert same_bits([p.grad for p in a], [p.grad for p in b])
        assert not any(p.grad.any() for p in a)
    assert same_bits(states(ours), states(plain))


@pytest.mark.full
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_gradients_that_the_graph_computes(backend: str) -> None:
    models = [torch.nn.Linear(4, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [at.AdamW(m.parameters(), lr=0.1) for m in models]
    x = torch.arange(12.0).reshape(3, 4) / 8

    def train(model: Any, opt: Any) -> None:
        # The gradients of the mean of the squared outputs, by hand.
        with torch.no_grad():
            out = 2.0 * (x @ model.weight.t() + model.bias) / 6
            model.weight.grad = out.t() @ x
            model.bias.grad = out.sum(0)
        opt.step()

    step = compiled(lambda: train(models[0], optimizers[0]), backend)
    for _ in range(3):
        step()
        train(models[1], optimizers[1])
        torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()))
    torch.testing.assert_close(models[0].weight.grad, models[1].weight.grad)


def training_step(whole: bool, backend: str) -> None:
    config = torch._dynamo.config
    models = [torch.nn.Linear(4, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [at.AdamW(m.parameters(), lr=0.1) for m in models]
    x = torch.ones(3, 4)

    def train(model: Any, opt: Any) -> Any:
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    step = torch.compile(train, backend=backend, fullgraph=whole)
    with config.patch(trace_autograd_ops=True) if whole else contextlib.nullcontext():
        for _ in range(3):
            torch.testing.assert_close(step(models[0], optimizers[0]), train(models[1], optimizers[1]))
    torch.testing.assert_close(list(models[0].parameters()), list(models[1].parameters()))


@pytest.mark.full
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_training_step(whole: bool, backend: str) -> None:
    """A backward pass breaks the graph unless PyTorch traces it; the results are the same."""
    config = pytest.importorskip("torch._dynamo.config")
    if not whole:
        training_step(whole, backend)
    elif not hasattr(config, "trace_autograd_ops"):
        pytest.skip("this PyTorch traces no backward passes")
    else:
        # In its own process: PyTorch 2.13 cannot compile steps of other optimizers afterwards.
        command = [sys.executable, __file__, backend]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr


def test_a_step_that_fails_changes_nothing() -> None:
    a = params()
    ours = at.AdamW(a, lr=0.1)
    step = compiled(lambda: ours.step(), "aot_eager")
    give([a], 0)
    step()
    before = [p.detach().clone() for p in a]
    grads = [p.grad for p in a]
    ours.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        step()
    assert same_bits(a, before)
    assert all(p.grad is g for p, g in zip(a, grads, strict=True))
    ours.param_groups[0]["lr"] = 0.1
    ours.param_groups[0]["zero_grad"] = True
    with pytest.raises(RuntimeError, match=r"^zero_grad: a compiled function has to know of it"):
        step()
    ours.param_groups[0]["zero_grad"] = False
    ours.param_groups[0]["params"] = a[:-1]
    with pytest.raises(RuntimeError, match=r"^params: the lists in param_groups have been changed by hand"):
        step()
    assert same_bits(a, before)


@pytest.mark.full
def test_groups_that_are_added() -> None:
    a = params()
    b = twins(a)
    ours, plain = at.AdamW(a[:2], lr=0.1), at.AdamW(b[:2], lr=0.1)
    step = compiled(lambda: ours.step(), "aot_eager")
    for t in range(2):
        give([a, b], t)
        step()
        plain.step()
        ours.add_param_group({"params": a[2 + t], "lr": 0.5})
        plain.add_param_group({"params": b[2 + t], "lr": 0.5})
        assert same_bits(a, b)


@pytest.mark.full
def test_unsupported_options_break_the_graph() -> None:
    a = params()
    b = twins(a)
    means = [[p.detach().clone() for p in several] for several in (a, b)]
    ours, plain = at.AdamW(a, lr=0.1), at.AdamW(b, lr=0.1)
    step = torch.compile(lambda: ours.step(ema=(means[0], 0.5)), backend="eager")
    for t in range(2):
        give([a, b], t)
        step()
        plain.step(ema=(means[1], 0.5))
    assert same_bits([*a, *means[0]], [*b, *means[1]])


def test_the_operator_of_a_step() -> None:
    a = params()
    b = twins(a)
    ours, plain = at.AdamW(a, lr=0.1), at.AdamW(b, lr=0.1)
    give([a, b], 0)
    grads = [p.grad for p in a]
    a[0].grad = None
    # With copies of the params, which it writes to: those of the optimizer do not change.
    copies, before = twins(a), twins(a)
    more = None, None, False
    torch.ops.adaptk.optimizer_step(copies[1:], grads[1:], [*range(1, len(a))], ours._handle, *more)
    assert a[0].grad is None
    assert all(p.grad is g for p, g in zip(a[1:], grads[1:], strict=True))
    b[0].grad = None
    plain.step()
    assert same_bits(copies, b)
    assert same_bits(a, before)
    assert copy.deepcopy(ours)._handle != ours._handle
    gone = at.SGD(params(), lr=0.1)
    handle = gone._handle
    del gone
    gc.collect()
    with pytest.raises(RuntimeError, match="an optimizer that is no longer there"):
        torch.ops.adaptk.optimizer_step([], [], [], handle, *more)


if __name__ == "__main__":
    training_step(True, sys.argv[1])
