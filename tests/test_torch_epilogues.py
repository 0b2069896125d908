"""Steps of adaptk.torch that set gradients to zero, copy and average: the bits of separate operations."""

from __future__ import annotations

import copy
from typing import Any

import adaptk
import pytest
from torch_cases import (
    Case,
    _seeded,  # noqa: F401
    every_class,
    give,
    params,
    same_bits,
    torch,
    twins,
)


def lerp(a: Any, p: Any, decay: float) -> Any:
    """As documented, each operation rounded."""
    w = torch.tensor(1.0 - decay, dtype=p.dtype)
    one = torch.ones((), dtype=p.dtype)
    return a + w * (p - a) if w < 0.5 else p - (p - a) * (one - w)


def zeros(several: list[Any], dtype: Any = None) -> list[Any]:
    return [torch.zeros_like(p.detach(), dtype=dtype) for p in several]


@pytest.mark.parametrize("decay", [0.99, 0.25])
@every_class
def test_every_class(case: Case, decay: float) -> None:
    a = params()
    b = twins(a)
    first, second = case.ours(a), case.ours(b)
    halves, means = zeros(a, torch.bfloat16), zeros(a)
    wanted = zeros(a)
    for t in range(3):
        give([a, b], t)
        if t == 1:
            a[0].grad = b[0].grad = None
        first.step(zero_grad=True, copy_out=halves, ema=(means, decay))
        second.step()
        wanted = [lerp(m, p.detach(), decay) for m, p in zip(wanted, b, strict=True)]
        assert all(p.grad is None or not p.grad.any() for p in a)
    assert same_bits(a, b)
    assert same_bits(means, wanted)
    assert same_bits(halves, [p.detach().to(torch.bfloat16) for p in b])


def test_the_loop_of_torch() -> None:
    """Against clip_grad_norm_, a step, zero_grad and an average, to the precision of their sums."""
    a = params()
    b = twins(a)
    ours, torchs = adaptk.torch.AdamW(a, lr=0.01), torch.optim.AdamW(b, lr=0.01, fused=True)
    means, wanted = zeros(a), zeros(b)
    for t in range(5):
        give([a, b], t)
        ours.step(clip_norm=0.5, zero_grad=True, ema=(means, 0.9))
        norm = torch.nn.utils.clip_grad_norm_(b, 0.5)
        torchs.step()
        torchs.zero_grad(set_to_none=False)
        torch._foreach_lerp_(wanted, [p.detach() for p in b], 0.1)
        assert ours.last_step.grad_norm == pytest.approx(float(norm), rel=1e-5)
        for x, y in zip([*a, *means], [*b, *wanted], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
        assert not any(p.grad.any() for p in [*a, *b])


def test_version_counters_are_incremented() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    mean, half = torch.zeros(3), torch.zeros(3, dtype=torch.float16)
    w.grad = torch.ones(3)
    grad = w.grad
    before = [t._version for t in (w, grad, mean, half)]
    adaptk.torch.SGD([w], lr=0.5).step(zero_grad=True, ema=([mean], 0.5), copy_out=[half])
    assert w.grad is grad
    assert all(t._version > v for t, v in zip((w, grad, mean, half), before, strict=True))


@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_with_a_graph_are_detached() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    (w**3).sum().backward(create_graph=True)
    assert w.grad.grad_fn is not None
    adaptk.torch.SGD([w], lr=0.5).step(zero_grad=True)
    assert w.grad.grad_fn is None
    assert not w.grad.any()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("kind", ["layout", "negated", "wide", "complex", "gaps"])
def test_gradients_that_are_copied_for_the_step(kind: str) -> None:
    """They are set to zero in place."""
    p = torch.nn.Parameter(torch.ones(4, 3))
    grad = torch.arange(12.0).reshape(4, 3) + 1
    if kind == "layout":
        grad = grad.t().contiguous().t()
    elif kind == "negated":
        grad = torch.complex(torch.zeros_like(grad), -grad).conj().imag
        assert grad.is_neg()
    elif kind == "wide":
        p, grad = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16)), grad.bfloat16()
    elif kind == "complex":
        p, grad = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.complex64)), grad.to(torch.complex64)
    elif kind == "gaps":
        p = torch.nn.Parameter(torch.ones(4, 6)[:, ::2])
    p.grad = grad
    same = torch.nn.Parameter(p.detach().clone())
    same.grad = grad.clone()
    mean = torch.zeros_like(p.detach())
    half = torch.zeros_like(p.detach())
    opt, other = adaptk.torch.Adam([p], lr=0.1), adaptk.torch.Adam([same], lr=0.1)
    for _ in range(2):
        opt.step(zero_grad=True, ema=([mean], 0.5), copy_out=[half])
        assert not p.grad.any()
        p.grad.add_(1)
        other.step()
        same.grad.fill_(1)
    torch.testing.assert_close(p, same)
    torch.testing.assert_close(half, same.detach())


def test_skipped_steps_set_gradients_to_zero_alone() -> None:
    for how in ("nonfinite", "scaler"):
        w = torch.nn.Parameter(torch.ones(3))
        w.grad = torch.tensor([1.0, float("inf"), 1.0])
        mean = torch.zeros(3)
        opt = adaptk.torch.SGD([w], lr=0.5)
        if how == "scaler":
            opt.found_inf = torch.tensor(1.0)
        opt.step(zero_grad=True, skip_nonfinite=how == "nonfinite", ema=([mean], 0.5))
        assert opt.last_step.skipped
        assert not w.grad.any()
        assert not mean.any()
        assert (w == 1).all()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_accumulated_gradients(scale: float) -> None:
    """bfloat16 gradients summed in float32; the norm is computed with the last of them."""
    a = params()
    b = twins(a)
    first, second = adaptk.torch.AdamW(a, lr=0.01), adaptk.torch.AdamW(b, lr=0.01)
    for x, y in zip(a, b, strict=True):
        x.grad, y.grad = torch.zeros_like(x), torch.zeros_like(y)
    for _ in range(3):
        for k in range(2):
            parts = [torch.randn_like(p).bfloat16() for p in a]
            norm = adaptk.accumulate([p.grad for p in a], parts, scale, norm=k == 1)
            for p, g in zip(b, parts, strict=True):
                p.grad.add_(g.float() * scale)
        first.step(clip_norm=0.1, grad_norm=norm, zero_grad=True)
        second.step(clip_norm=0.1)
        assert first.last_step == second.last_step
        assert same_bits(a, b)
        second.zero_grad(set_to_none=False)


def test_a_model_that_is_averaged() -> None:
    """Like AveragedModel with get_ema_multi_avg_fn, whose average starts as a copy."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    other = copy.deepcopy(model)
    mean = copy.deepcopy(model).requires_grad_(False)
    torchs = torch.optim.swa_utils.AveragedModel(other, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    torchs.update_parameters(other)
    first, second = (adaptk.torch.AdamW(m.parameters(), lr=0.01) for m in (model, other))
    for _ in range(5):
        x = torch.randn(8, 3)
        for m in (model, other):
            m.zero_grad()
            m(x).square().mean().backward()
        first.step(ema=(mean.parameters(), 0.9))
        second.step()
        torchs.update_parameters(other)
    for p, q in zip(mean.parameters(), torchs.module.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"zero_grad": 1}, TypeError, "zero_grad: expected a bool"),
        ({"copy_out": torch.zeros(3)}, TypeError, "copy_out: expected a list of tensors"),
        ({"copy_out": []}, ValueError, "copy_out: 0 tensors, expected 1"),
        ({"copy_out": [torch.zeros(2)]}, ValueError, r"copy_out\[0\]: shape"),
        ({"copy_out": [torch.zeros(3, dtype=torch.int32)]}, TypeError, r"copy_out\[0\]: dtype int32"),
        ({"ema": [torch.zeros(3)]}, TypeError, "ema: expected a pair"),
        ({"ema": ([torch.zeros(3)], 2.0)}, ValueError, "ema: the decay 2.0"),
        ({"ema": ([torch.zeros(3, dtype=torch.float64)], 0.5)}, TypeError, r"ema\[0\]: dtype float64"),
        ({"ema": (["x"], 0.5)}, TypeError, r"ema\[0\]"),
        ({"grad_norm": "x", "clip_norm": 1.0}, TypeError, "grad_norm: expected a number"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    w = torch.nn.Parameter(torch.ones(3))
    w.grad = torch.ones(3)
    opt = adaptk.torch.Adam([w])
    with pytest.raises(error, match=message):
        opt.step(**options)
    assert (w == 1).all()
    assert (w.grad == 1).all()
    assert not opt.state


def test_overlap() -> None:
    w = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    shared = torch.ones(4)
    opt = adaptk.torch.SGD(w, lr=0.5)
    w[0].grad, w[1].grad = shared[:3], shared[1:]
    with pytest.raises(ValueError, match=r"the gradient of params.* and the gradient of params.* overlap"):
        opt.step(zero_grad=True)
    opt.step()
    w[1].grad = None
    mean = torch.zeros(3)
    for given in ([mean, mean], [w[0].detach(), None], [None, w[1].detach()], [w[0].grad, None]):
        with pytest.raises(ValueError, match="overlap"):
            opt.step(ema=(given, 0.5))
    assert all((p == 0.5).all() for p in w)


@pytest.mark.parametrize("threads", [1, 4])
def test_thousands_of_tensors(threads: int) -> None:
    a = [torch.nn.Parameter(torch.full((k % 7, 3), float(k))) for k in range(2000)]
    b = twins(a)
    first, second = adaptk.torch.AdamW(a), adaptk.torch.AdamW(b)
    means, wanted = zeros(a), zeros(b)
    before = adaptk.get_num_threads()
    try:
        adaptk.set_num_threads(threads)
        for t in range(3):
            give([a, b], t)
            first.step(zero_grad=True, ema=(means, 0.75))
            second.step()
            wanted = [lerp(m, p.detach(), 0.75) for m, p in zip(wanted, b, strict=True)]
    finally:
        adaptk.set_num_threads(before)
    assert same_bits(a, b)
    assert same_bits(means, wanted)
    assert not any(p.grad.any() for p in a)
