"""Rules that keep one number for each row of a param, in adaptk.torch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from row_wise_oracles import PER_ROW, RULES, STATES

torch = pytest.importorskip("torch")
at = pytest.importorskip("adaptk.torch")
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

CLASSES = {"rowwise_adagrad": "RowWiseAdaGrad", "rowwise_adam": "RowWiseAdam"}
every_rule = pytest.mark.parametrize("rule", RULES)


def embedding(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Embedding(20, 12, sparse=True, **options)


def backward(table: Any, seed: int) -> None:
    table.weight.grad = None
    batch = torch.randint(0, 10, (7, 3), generator=torch.Generator().manual_seed(seed))
    table(batch).square().sum().backward()


@every_rule
def test_the_bits_of_the_functions(rule: str) -> None:
    table, bias = embedding(), torch.nn.Parameter(torch.ones(5, 2, 3))
    opt = getattr(at, CLASSES[rule])([table.weight, bias], lr=0.1)
    want = table.weight.detach().numpy().copy()
    wide = np.ones((5, 2, 3), np.float32)
    states = {n: np.zeros(20 if n == PER_ROW[rule] else want.shape, np.float32) for n in STATES[rule]}
    of_bias = {n: np.zeros(5 if n == PER_ROW[rule] else wide.shape, np.float32) for n in STATES[rule]}
    for t in (1, 2, 3):
        backward(table, t)
        grad = table.weight.grad
        bias.grad = torch.full((5, 2, 3), float(t))
        indices, values = grad._indices()[0].numpy(), grad._values().numpy()
        opt.step()
        function = getattr(adaptk.ops, rule)
        function(want, (indices, values), *states.values(), step=t, lr=0.1)
        function(wide, bias.grad.numpy(), *of_bias.values(), step=t, lr=0.1)
    assert table.weight.detach().numpy().tobytes() == want.tobytes()
    assert bias.detach().numpy().tobytes() == wide.tobytes()
    for name, state in states.items():
        assert opt.state[table.weight][name].numpy().tobytes() == state.tobytes()
    assert opt.state[table.weight][PER_ROW[rule]].shape == (20,)


class Reference(torch.optim.Optimizer):
    """torchrec's RowWiseAdagrad and PartialRowWiseAdam as described there, in PyTorch operations."""

    def __init__(self, params: Any, rule: str, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.rule = rule

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            state, lr = self.state[p], self.param_groups[0]["lr"]
            state["step"] = state.get("step", 0) + 1
            square = p.grad.pow(2).mean(dim=1, keepdim=True)
            if self.rule == "rowwise_adagrad":
                state["sum"] = state.get("sum", torch.zeros(len(p), 1, dtype=p.dtype)) + square
                p.addcdiv_(p.grad, state["sum"].sqrt().add(1e-8).expand_as(p), value=-lr)
                continue
            m = state.setdefault("m", torch.zeros_like(p))
            v = state.setdefault("v", torch.zeros(len(p), 1, dtype=p.dtype))
            m.lerp_(p.grad, 0.1)
            v.mul_(0.999).add_(square, alpha=0.001)
            root = v.div(1 - 0.999 ** state["step"]).sqrt().add(1e-8)
            p.addcdiv_(m, root.expand_as(p), value=-lr / (1 - 0.9 ** state["step"]))


@every_rule
def test_matches_torchrec(rule: str) -> None:
    a, b = (torch.nn.Parameter(torch.linspace(-1, 1, 60).double().reshape(6, 10)) for _ in range(2))
    opt, ref = getattr(at, CLASSES[rule])([a], lr=0.05), Reference([b], rule, 0.05)
    for t in range(8):
        a.grad = torch.sin(torch.arange(60.0).double() * (t + 1)).reshape(6, 10)
        b.grad = a.grad.clone()
        opt.step()
        ref.step()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@every_rule
def test_saving_and_copying(rule: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        table = embedding(dtype=dtype)
        opt = getattr(at, CLASSES[rule])(table.parameters(), lr=0.1)
        for t in range(2):
            backward(table, t)
            opt.step()
        other = embedding(dtype=dtype)
        other.load_state_dict(table.state_dict())
        later = getattr(at, CLASSES[rule])(other.parameters(), lr=0.3)
        later.load_state_dict(opt.state_dict())
        state = later.state[other.weight][PER_ROW[rule]]
        assert state.shape == (20,)
        assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        copied = copy.deepcopy((table, opt)), pickle.loads(pickle.dumps((table, opt))), (other, later)
        backward(table, 5)
        opt.step()
        for module, optimizer in copied:
            backward(module, 5)
            optimizer.step()
            assert torch.equal(module.weight, table.weight)


@every_rule
def test_options(rule: str) -> None:
    cls = getattr(at, CLASSES[rule])
    table = embedding()
    opt = cls([{"params": table.weight, "weight_decay": 0.1}], lr=0.1, state_dtype="bfloat16", fused=True)
    backward(table, 0)
    opt.step(clip_norm=1.0)
    assert opt.last_step.grad_norm > 1.0
    assert opt.state[table.weight][PER_ROW[rule]].dtype == torch.float32
    before = table.weight.detach().clone()
    table.weight.grad = torch.full((20, 12), float("nan"))
    opt.step(skip_nonfinite=True)
    assert torch.equal(before, table.weight)
    table.weight.grad = torch.ones(20, 12)
    opt.step_param(table.weight)
    assert not torch.equal(before, table.weight)
    if rule == "rowwise_adam":
        assert cls([table.weight], betas=(0.8, 0.9)).param_groups[0]["betas"] == (0.8, 0.9)


@every_rule
def test_errors(rule: str) -> None:
    cls, name = getattr(at, CLASSES[rule]), PER_ROW[rule]
    for p in (torch.ones(4, 6).t(), torch.ones(4, 6, dtype=torch.complex64), torch.ones(4, 12)[:, ::2]):
        w = torch.nn.Parameter(p)
        w.grad = torch.ones_like(w)
        opt = cls([w])
        with pytest.raises(TypeError, match=rf"params\[0\]: {rule} keeps one number for each row, of plain dense"):
            opt.step()
        assert not opt.state
    w = torch.nn.Parameter(torch.ones(4, 6))
    w.grad = torch.ones_like(w)
    opt = cls([w])
    opt.step()
    opt.state[w][name] = torch.ones(4, 6)
    with pytest.raises(ValueError, match=rf"state\['{name}'\] of params\[0\]: shape \(4, 6\), expected \(4,\)"):
        opt.step()
    saved = opt.state_dict()
    with pytest.raises(
        ValueError, match=rf"\['{name}'\]: shape \(4, 6\), expected \(4,\) beside a param of shape \(4, 6\)"
    ):
        opt.load_state_dict(saved)
