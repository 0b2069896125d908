"""Sparse gradients in adaptk.torch, against torch's own optimizers that support them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
at = pytest.importorskip("adaptk.torch")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]

ROWS, WIDTH = 50, 8


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Embedding(ROWS, WIDTH, sparse=True), torch.nn.Flatten(), torch.nn.Linear(3 * WIDTH, 1)
    )


def backward(net: Any, seed: int) -> None:
    net.zero_grad()
    batch = torch.randint(0, ROWS // 2, (7, 3), generator=torch.Generator().manual_seed(seed))
    net(batch).square().mean().backward()


def grads_are_sparse(net: Any) -> bool:
    return bool(net[0].weight.grad.is_sparse)


@pytest.mark.parametrize(("ours", "theirs", "options"), [
    # SparseAdam adds eps to the root before its correction, as eps_hat does.
        ("Adam", "SparseAdam", {"lr": 0.1, "eps": 1e-30}),
    ("Adagrad", "Adagrad", {"lr": 0.1, "lr_decay": 0.01}),
    ("SGD", "SGD", {"lr": 0.1}),
])  # fmt: skip
def test_matches_torch(ours: str, theirs: str, options: dict[str, Any]) -> None:
    a, b = model(), model()
    opt = getattr(at, ours)([a[0].weight], **options)
    ref = getattr(torch.optim, theirs)([b[0].weight], **options)
    for t in range(6):
        backward(a, t)
        backward(b, t)
        assert grads_are_sparse(a)
        opt.step()
        ref.step()
    np.testing.assert_allclose(a[0].weight.detach(), b[0].weight.detach(), rtol=2e-5, atol=1e-7)
    unused = torch.arange(ROWS) >= ROWS // 2
    assert torch.equal(a[0].weight.detach()[unused], model()[0].weight.detach()[unused])
    for name, state in ref.state[b[0].weight].items():
        if name != "step":  # a number of Python's in SparseAdam
            np.testing.assert_allclose(opt.state[a[0].weight][name], state, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("cls", ["Adam", "AdamW", "SGD", "RMSprop", "NAdam", "Rprop", "ASGD"])
def test_dense_mode_has_the_bits_of_dense_gradients(cls: str) -> None:
    a, b = model(), model()
    options = {"momentum": 0.9} if cls == "SGD" else {}
    opt = getattr(at, cls)(a.parameters(), lr=0.05, sparse="dense", **options)
    ref = getattr(at, cls)(b.parameters(), lr=0.05, **options)
    for t in range(4):
        backward(a, t)
        backward(b, t)
        # Duplicates are summed one by one in both.
        total = torch.zeros(ROWS, WIDTH)
        for i, v in zip(b[0].weight.grad._indices()[0], b[0].weight.grad._values(), strict=True):
            total[i] += v
        b[0].weight.grad = total
        for o in (opt, ref):
            o.step(clip_norm=0.1)
        assert opt.last_step == ref.last_step
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


def test_coalesced_empty_and_double() -> None:
    w = torch.nn.Parameter(torch.ones(4, 2, dtype=torch.float64))
    opt = at.SGD([w], lr=1.0)
    version = w._version
    w.grad = torch.sparse_coo_tensor([[1, 1]], [[1.0, 2.0], [3.0, 4.0]], (4, 2), dtype=torch.float64).coalesce()
    opt.step()
    assert w.tolist() == [[1, 1], [-3, -5], [1, 1], [1, 1]]
    assert w._version > version
    w.grad = torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0, 2), (4, 2)).double()
    opt.step()
    assert w.tolist() == [[1, 1], [-3, -5], [1, 1], [1, 1]]


def test_states_and_options() -> None:
    a = model()
    opt = at.Adam([a[0].weight], lr=0.1, state_dtype="bfloat16_sr")
    backward(a, 0)
    opt.step(clip_norm=1.0, ema=([torch.zeros(ROWS, WIDTH)], 0.5))
    assert opt.last_step.grad_norm > 0
    b = model()
    later = at.Adam([b[0].weight], lr=0.1, state_dtype="bfloat16_sr")
    later.load_state_dict(opt.state_dict())
    assert torch.equal(later.state[b[0].weight]["exp_avg"], opt.state[a[0].weight]["exp_avg"])


def test_errors() -> None:
    w = torch.nn.Parameter(torch.ones(4, 2))
    opt = at.Adam([w])
    good = torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (4, 2))
    cases = [
        (
            torch.sparse_coo_tensor([[1], [0]], [1.0], (4, 2)),
            ValueError,
            r"gradient of params\[0\]: 2 sparse dimensions",
        ),
    ]
    for grad, error, message in cases:
        w.grad = grad
        with pytest.raises(error, match=message):
            opt.step()
    w.grad = good
    with pytest.raises(ValueError, match=r"zero_grad: grads\[0\] has values for some rows alone"):
        opt.step(zero_grad=True)
    with pytest.raises(TypeError, match=r"params\[0\]: step_param\(\) with a sparse gradient"):
        opt.step_param(w)
    assert torch.equal(w.detach(), torch.ones(4, 2))
    assert not opt.state
    with pytest.raises(ValueError, match="sparse: 'eager' is not one of"):
        at.Adam([w], sparse="eager")
    opt.step()
    assert w[1, 0] < 1
