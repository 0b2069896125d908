"""``sparse="catch_up"`` in adaptk.torch: rows apply missed steps when they have a gradient again."""

from __future__ import annotations

import copy
from typing import Any

import adaptk
import numpy as np
import pytest

torch = pytest.importorskip("torch")
at = pytest.importorskip("adaptk.torch")
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

ROWS, WIDTH = 12, 5
# Of adaptk.torch, of adaptk, and options of both.
CLASSES: list[tuple[str, str, dict[str, Any]]] = [
    ("SGD", "SGD", {}),
    ("AdamW", "AdamW", {"weight_decay": 0.1}),
    ("Adam", "Adam", {}),
    ("Adagrad", "AdaGrad", {"convention": "torch"}),
    ("RMSprop", "RMSProp", {"convention": "torch"}),
    ("NAdam", "NAdam", {}),
    ("Lion", "Lion", {"weight_decay": 0.1, "decoupled": True}),
    ("RowWiseAdaGrad", "RowWiseAdaGrad", {}),
    ("RowWiseAdam", "RowWiseAdam", {"weight_decay": 0.1, "decoupled": True}),
]


def table() -> Any:
    return torch.nn.Parameter(torch.linspace(-1, 1, ROWS * WIDTH).double().reshape(ROWS, WIDTH))


def gradient(t: int) -> Any:
    generator = torch.Generator().manual_seed(t)
    rows = torch.randint(0, ROWS if t % 3 == 0 else 4, (1, 5), generator=generator)
    return torch.sparse_coo_tensor(rows, torch.rand(5, WIDTH, generator=generator).double(), (ROWS, WIDTH))


def pair(grad: Any) -> tuple[Any, Any]:
    return grad._indices()[0].numpy(), grad._values().numpy()


@pytest.mark.parametrize(("theirs", "ours", "options"), CLASSES, ids=[c[0] for c in CLASSES])
def test_the_bits_of_the_optimizer_objects(theirs: str, ours: str, options: dict[str, Any]) -> None:
    w = table()
    array = w.detach().numpy().copy()
    of_torch = {k: v for k, v in options.items() if k != "convention"}
    opt = getattr(at, theirs)([w], lr=0.05, sparse="catch_up", **of_torch)
    ref = getattr(adaptk, ours)([array], lr=0.05, sparse="catch_up", **options)
    for t in range(7):
        w.grad = torch.ones(ROWS, WIDTH).double() if t == 4 else gradient(t)
        ref.step([w.grad.numpy() if t == 4 else pair(w.grad)])
        opt.step()
        assert opt.state[w]["last_step"].tolist() == ref.state[0]["last_step"].tolist()
    assert opt.state[w]["last_step"].dtype == torch.int64
    if theirs == "NAdam":  # torch keeps the product of its momenta in float32
        np.testing.assert_allclose(w.detach(), array, rtol=1e-5)
        return
    assert w.detach().numpy().tobytes() == array.tobytes()
    version = w._version
    opt.catch_up()
    ref.catch_up()
    assert w._version > version
    assert w.detach().numpy().tobytes() == array.tobytes()
    assert opt.state[w]["last_step"].tolist() == [7] * ROWS
    opt.catch_up()
    assert w.detach().numpy().tobytes() == array.tobytes()


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_matches_dense_gradients(nesterov: bool) -> None:
    a, b = table(), table()
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov}
    opt, ref = at.SGD([a], sparse="catch_up", **options), torch.optim.SGD([b], **options)
    a.grad = b.grad = torch.ones(ROWS, WIDTH).double()  # torch's first step is different
    for t in range(8):
        if t > 0:
            a.grad = gradient(t)
            b.grad = a.grad.to_dense()
        opt.step()
        ref.step()
    assert not torch.allclose(a, b)
    opt.catch_up()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert opt.state[a]["step"] == 8


def test_saving() -> None:
    w = table()
    opt = at.AdamW([w], sparse="catch_up")
    for t in range(4):
        w.grad = gradient(t)
        opt.step()
    for dtype in (torch.float64, torch.bfloat16):
        v = torch.nn.Parameter(w.detach().to(dtype))
        later = at.AdamW([v], sparse="catch_up")
        later.load_state_dict(copy.deepcopy(opt.state_dict()))
        assert later.state[v]["last_step"].dtype == torch.int64
        assert torch.equal(later.state[v]["last_step"], opt.state[w]["last_step"])
        assert later.state[v]["last_step"] is not opt.state[w]["last_step"]
    v = torch.nn.Parameter(w.detach().clone())
    later = at.AdamW([v], sparse="catch_up")
    later.load_state_dict(opt.state_dict())
    for o, p in ((opt, w), (later, v)):
        p.grad = gradient(9)
        o.step()
        o.catch_up()
    assert torch.equal(w, v)


def test_the_mode_may_change() -> None:
    w = table()
    opt = at.AdamW([w], weight_decay=0.5, lr=0.1)
    w.grad = gradient(1)
    opt.step()
    assert "last_step" not in opt.state[w]
    opt.param_groups[0]["sparse"] = "catch_up"
    opt.step()
    # No row has missed a step before.
    assert opt.state[w]["last_step"].tolist() == [2 if r in w.grad._indices() else 1 for r in range(ROWS)]
    opt.param_groups[0]["sparse"] = "lazy"
    opt.step()
    assert "last_step" not in opt.state[w]
    before = w.detach().clone()
    opt.catch_up()
    assert torch.equal(w, before)


def test_other_params_and_failed_steps() -> None:
    w, scalar, turned = table(), torch.nn.Parameter(torch.ones(())), torch.nn.Parameter(torch.ones(3, 2).t())
    opt = at.AdamW([w, scalar, turned], sparse="catch_up")
    opt.catch_up()
    assert not opt.state
    w.grad, scalar.grad, turned.grad = gradient(1), torch.ones(()), torch.ones(2, 3)
    opt.step()
    assert "last_step" not in opt.state[scalar]
    assert "last_step" not in opt.state[turned]
    before = copy.deepcopy(opt.state_dict()), w.detach().clone()
    w.grad = torch.sparse_coo_tensor([[1]], torch.full((1, WIDTH), float("nan")).double(), (ROWS, WIDTH))
    opt.step(skip_nonfinite=True)
    assert opt.last_step.skipped
    assert torch.equal(opt.state[w]["last_step"], before[0]["state"][0]["last_step"])
    assert torch.equal(w, before[1])


def test_errors() -> None:
    w = table()
    with pytest.raises(ValueError, match="sparse: 'catch_up': asgd has no closed form"):
        at.ASGD([w], sparse="catch_up")
    opt = at.Adam([w], weight_decay=0.1, sparse="catch_up")
    w.grad = gradient(1)
    before = w.detach().clone()
    with pytest.raises(ValueError, match=r"sparse: 'catch_up': adam has no closed form .* coupled weight decay"):
        opt.step()
    assert torch.equal(w, before)
    assert not opt.state
    opt = at.Adam([w], sparse="catch_up")
    opt.step()
    w.grad = torch.ones_like(w)
    with pytest.raises(TypeError, match=r"params\[0\]: step_param\(\) with sparse='catch_up'"):
        opt.step_param(w)
    opt.state[w]["last_step"] = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"state\['last_step'\] of params\[0\]: shape \(3,\), expected \(12,\)"):
        opt.step()
    opt.state[w]["last_step"] = np.zeros(12)
    with pytest.raises(TypeError, match=r"state\['last_step'\] of params\[0\]: ndarray, expected a torch.Tensor"):
        opt.catch_up()
