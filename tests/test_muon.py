"""Muon: its iteration, and adaptk.torch.Muon against a formula in NumPy and against torch.optim.Muon."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
from adaptk._muon import adjustment, orthogonalize
from muon_cases import OPTIONS, newton_schulz, oracle

torch = pytest.importorskip("torch")
import adaptk.torch as at  # noqa: E402

SHAPES = ((6, 4), (4, 7), (5, 5), (1, 3), (3, 1))


def params(shapes: Any = SHAPES, dtype: Any = None, seed: int = 0) -> list[Any]:
    made = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=made).to(dtype or torch.float32)) for s in shapes]


def give(given: list[Any], t: int) -> None:
    made = torch.Generator().manual_seed(100 + t)
    for p in given:
        p.grad = torch.randn(p.shape, generator=made).to(p.dtype)


def train(optimizer: Any, given: list[Any], steps: int = 4, first: int = 0) -> None:
    for t in range(first, first + steps):
        give(given, t)
        optimizer.step()


def assert_equal(a: list[Any], b: list[Any]) -> None:
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e30, 1e-30])
def test_the_iteration(shape: tuple[int, int], scale: float) -> None:
    x = np.random.default_rng(1).standard_normal(shape) * scale
    for options in ({}, {"steps": 0}, {"steps": 9, "coefficients": (1.5, -0.5, 0.0)}):
        wanted = newton_schulz(x, **options) if scale > 1e-6 else None
        for one, rtol in ((x, 1e-9), (x.astype(np.float32), 1e-4)):
            found = orthogonalize(one, **options)
            assert found.dtype == one.dtype
            if wanted is None:
                assert np.abs(found).max() < 1e-15  # eps bounds the norm
            else:
                np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol)
        if wanted is not None:
            of_torch = orthogonalize(torch.from_numpy(x), **options)
            np.testing.assert_allclose(of_torch.numpy(), wanted, rtol=1e-9, atol=1e-9)


def test_the_iteration_on_jax_and_at_the_edges() -> None:
    assert not orthogonalize(np.zeros((3, 2))).any()
    assert orthogonalize(np.zeros((3, 0))).shape == (3, 0)
    assert np.isnan(orthogonalize(np.full((2, 2), np.nan))).all()
    jax = pytest.importorskip("jax")
    x = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(orthogonalize)(x), newton_schulz(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_match_the_formula(dtype: str, options: dict[str, Any]) -> None:
    given = params((*SHAPES, (3, 2, 2)), getattr(torch, dtype))
    wanted = []
    for i, p in enumerate(given):
        grads = []
        for t in range(4):
            give(given, t)
            grads.append(given[i].grad.numpy())
        wanted.append(oracle(p.detach().numpy(), grads, options))
    optimizer = at.Muon([{"params": given, "use_muon": True}], ns_dtype=dtype, **options)
    train(optimizer, given)
    tolerance = 1e-9 if dtype == "float64" else 2e-4
    for p, w in zip(given, wanted, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "options"), [*(("float32", o) for o in OPTIONS), ("float64", {}), ("bfloat16", {})], ids=str
)
def test_steps_match_torch(dtype: str, options: dict[str, Any]) -> None:
    """Small matrices, because products in bfloat16 are slow on the CPU."""
    ours, torchs = (params(((6, 4), (3, 5)), getattr(torch, dtype)) for _ in range(2))
    a, b = at.Muon(ours, **options), torch.optim.Muon(torchs, **options)
    assert isinstance(a, torch.optim.Muon)
    train(a, ours)
    train(b, torchs)
    # bfloat16 has 8 significant bits, and the iteration amplifies their rounding.
    for p, q in zip(ours, torchs, strict=True):
        largest = 4 * a.param_groups[0]["lr"] * adjustment(options.get("adjust_lr_fn"), *p.shape)
        torch.testing.assert_close(p, q, rtol=2e-2 if dtype == "bfloat16" else 1e-6, atol=0.06 * largest)
        mine, theirs = a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"]
        assert mine.dtype == (torch.float64 if dtype == "float64" else torch.float32)
        torch.testing.assert_close(mine.to(theirs.dtype), theirs, rtol=1e-5, atol=1e-2 if dtype == "bfloat16" else 1e-6)


def test_loading_the_state_of_torch() -> None:
    ours, torchs = params(), params()
    a, b = at.Muon(ours), torch.optim.Muon(torchs, lr=0.25)
    train(b, torchs)
    a.load_state_dict(b.state_dict())
    assert a.param_groups[0]["lr"] == 0.25
    for p, q in zip(ours, torchs, strict=True):
        assert torch.equal(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"])
    train(a, ours, 1)


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 3))


@pytest.mark.parametrize("rest", ["AdamW", "SGD", at.Lion, "QHAdam"])
def test_other_params_use_the_rest_optimizer(rest: Any) -> None:
    model, twin = network(), network()
    optimizer = at.Muon(model.parameters(), ns_dtype="float32", rest=rest, rest_options={"lr": 0.05})
    cls = getattr(at, rest) if isinstance(rest, str) else rest
    alone = cls([p for p in twin.parameters() if p.ndim != 2], lr=0.05)
    matrices = at.Muon([p for p in twin.parameters() if p.ndim == 2], ns_dtype="float32")
    assert [(g["use_muon"], len(g["params"])) for g in optimizer.param_groups] == [(True, 2), (False, 4)]
    rates = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    twins = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (alone, matrices)]
    for t in range(3):
        give(list(model.parameters()), t)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.clone()
        for one in (optimizer, rates, alone, matrices, *twins):
            one.step()
    assert_equal(list(model.parameters()), list(twin.parameters()))


def test_use_muon_of_groups() -> None:
    table, weight, bias = params(((5, 3), (3, 2), (3,)))
    groups = [{"params": [table], "use_muon": False, "lr": 0.5}, {"params": [weight], "lr": 0.2}, {"params": bias}]
    optimizer = at.Muon(groups, rest_options={"betas": (0.5, 0.5)})
    assert [(g["use_muon"], g["lr"]) for g in optimizer.param_groups] == [(False, 0.5), (True, 0.2), (False, 1e-3)]
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.5)
    assert "betas" not in optimizer.param_groups[1]
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert list(optimizer.state) == [weight]  # the others have no gradients
    optimizer.zero_grad()
    assert weight.grad is None
    named = at.Muon([("a", params(((2, 2),))[0]), ("b", params(((2,),))[0])])
    assert [g["param_names"] for g in named.param_groups] == [["a"], ["b"]]


@pytest.mark.parametrize("how", ["state_dict", "file", "deepcopy"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resuming_is_bit_exact(dtype: str, how: str) -> None:
    shapes = ((4, 3), (3, 5), (3,))
    given = params(shapes, getattr(torch, dtype))
    optimizer = at.Muon(given, lr=0.1, ns_dtype="float32", rest="Lion", rest_options={"lr": 0.01})
    train(optimizer, given)
    if how == "deepcopy":
        others, again = copy.deepcopy((given, optimizer))
    elif how == "file":
        file = io.BytesIO()
        torch.save((given, optimizer), file)
        file.seek(0)
        others, again = torch.load(file, weights_only=False)
    else:
        others = [torch.nn.Parameter(p.detach().clone()) for p in given]
        again = at.Muon(others, rest="Lion")
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file))
    train(optimizer, given, 3, 4)
    train(again, others, 3, 4)
    assert_equal(given, others)
    assert [g["lr"] for g in again.param_groups] == [0.1, 0.01]


def test_layouts() -> None:
    plain = params(((6, 4), (6, 4)))
    transposed = torch.nn.Parameter(plain[0].detach().T.contiguous().T)
    strided = torch.nn.Parameter(torch.zeros(6, 8)[:, ::2].copy_(plain[1].detach()))
    others = [transposed, strided]
    assert not others[1].is_contiguous()
    train(at.Muon(plain, ns_dtype="float32"), plain)
    train(at.Muon(others, ns_dtype="float32"), others)
    for p, q in zip(plain, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_clipping_and_skipping_use_all_gradients() -> None:
    model, twin = network(), network()
    a, b = (at.Muon(m.parameters(), ns_dtype="float32", rest="SGD", rest_options={"lr": 1.0}) for m in (model, twin))
    give(list(model.parameters()), 0)
    give(list(twin.parameters()), 0)
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    a.step(clip_norm=0.5, zero_grad=True)
    b.step()
    assert a.last_step is not None
    assert a.last_step.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert not any(p.grad.any() for p in model.parameters())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    before = [p.detach().clone() for p in model.parameters()]
    give(list(model.parameters()), 1)
    model[1].bias.grad[0] = torch.nan
    a.step(skip_nonfinite=True)
    assert a.last_step.skipped
    assert_equal(before, list(model.parameters()))


def test_closures_and_gradients_that_are_released() -> None:
    model, twin = network(), network()
    a, b = (at.Muon(m.parameters(), lr=0.1, ns_dtype="float32") for m in (model, twin))
    x = torch.randn(5, 4)

    def closure() -> Any:
        a.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    hooks = at.release_gradients(twin, b)
    for _ in range(3):
        loss = a.step(closure)
        twin_loss = twin(x).square().mean()
        twin_loss.backward()
        assert torch.equal(loss, twin_loss)
    hooks.remove()
    assert_equal(list(model.parameters()), list(twin.parameters()))


def whole(shape: tuple[int, ...] = (2, 2), dtype: Any = None) -> Any:
    return torch.ones(shape, dtype=dtype or torch.float32)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: at.Muon([whole()], lr=-1.0), ValueError, r"^lr: -1"),
        (lambda: at.Muon([whole()], weight_decay=-1.0), ValueError, r"^weight_decay: -1"),
        (lambda: at.Muon([whole()], momentum=1.5), ValueError, r"^momentum: 1.5"),
        (lambda: at.Muon([whole()], nesterov=1), TypeError, r"^nesterov: expected a bool"),
        (lambda: at.Muon([whole()], ns_coefficients=(1.0, 2.0)), ValueError, r"^ns_coefficients: expected three"),
        (lambda: at.Muon([whole()], ns_coefficients=(1.0, "2", 3.0)), TypeError, r"^ns_coefficients\[1\]: expected a"),
        (lambda: at.Muon([whole()], ns_coefficients=(1.0, np.inf, 3.0)), ValueError, r"^ns_coefficients\[1\]: inf"),
        (lambda: at.Muon([whole()], ns_coefficients=2.0), TypeError, r"^ns_coefficients: expected three"),
        (lambda: at.Muon([whole()], eps=-1.0), ValueError, r"^eps: -1"),
        (lambda: at.Muon([whole()], eps="1"), TypeError, r"^eps: expected a number"),
        (lambda: at.Muon([whole()], ns_steps=2.5), TypeError, r"^ns_steps: expected an int"),
        (lambda: at.Muon([whole()], ns_steps=100), ValueError, r"^ns_steps: 100 is not"),
        (lambda: at.Muon([whole()], adjust_lr_fn="moonlight"), ValueError, r"^adjust_lr_fn: 'moonlight' is not one"),
        (lambda: at.Muon([whole()], ns_dtype="int8"), ValueError, r"^ns_dtype: 'int8' is not one"),
        (lambda: at.Muon([whole()], rest="AdamX"), ValueError, r"^rest: adaptk.torch has no class 'AdamX' \(did you"),
        (lambda: at.Muon([whole()], rest=torch.optim.AdamW), TypeError, r"^rest: <class 'torch.optim"),
        (lambda: at.Muon([whole()], rest="Muon"), TypeError, r"^rest: <class 'adaptk.torch.Muon"),
        (lambda: at.Muon([whole()], rest="ScheduleFreeAdamW"), ValueError, r"^rest: ScheduleFreeAdamW has other"),
        (lambda: at.Muon([whole()], rest_options={"beta": 1}), TypeError, r"^rest_options: AdamW\(\) got an unexp"),
        (lambda: at.Muon([whole()], rest_options={"lr": -1}), ValueError, r"^rest_options: .*-1"),
        (lambda: at.Muon([whole()], rest_options=3), TypeError, r"^rest_options: expected a dict"),
        (lambda: at.Muon([]), ValueError, r"empty parameter list"),
        (lambda: at.Muon({whole()}), TypeError, r"^params: expected a list"),
        (lambda: at.Muon(network()), TypeError, r"^params: .* give its parameters: Muon\(model.parameters\(\)\)"),
        (lambda: at.Muon([{"params": {whole()}}]), TypeError, r"^params: expected a list"),
        (lambda: at.Muon([{"params": [whole()], "use_muon": 1}]), TypeError, r"^use_muon: expected a bool"),
        (lambda: at.Muon([{"params": [whole((2,))], "use_muon": True}]), ValueError, r"^params\[0\]: shape \(2,\)"),
        (lambda: at.Muon([whole(dtype=torch.complex64)]), TypeError, r"^params\[0\]: dtype torch.complex64"),
        (lambda: at.Muon([whole(dtype=torch.int32)]), TypeError, r"^params\[0\]: dtype torch.int32"),
        (
            lambda: at.Muon([{"params": [whole(), whole((2,))], "lr": 1.0}]),
            ValueError,
            r"^params: a group with options of its own \(lr\) has matrices and others; make two groups",
        ),
    ],
)
def test_invalid_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_invalid_params() -> None:
    a, b = params(((2, 2), (2,)))
    optimizer = at.Muon([a])
    for group in ({"params": [a]}, {"params": [a], "use_muon": False}, {"params": [b, a]}):
        with pytest.raises(ValueError, match="more than one parameter group"):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    with pytest.raises(TypeError, match="param_group: expected a dict"):
        optimizer.add_param_group([b])  # type: ignore[arg-type]


def test_a_step_that_fails_changes_nothing() -> None:
    a, b = params(((2, 2), (3,)))
    optimizer = at.Muon([a, b])
    give([a, b], 0)
    a.grad = a.grad.to_sparse()
    before = [p.detach().clone() for p in (a, b)]
    with pytest.raises(RuntimeError, match=r"^gradient of param_groups\[0\]\['params'\]\[0\]: layout torch.sparse_coo"):
        optimizer.step()
    with pytest.raises(TypeError, match=r"^clip_norm, skip_nonfinite: a gradient is sparse"):
        optimizer.step(clip_norm=1.0)
    give([a, b], 0)
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    with pytest.raises(ValueError, match="clip_norm"):
        optimizer.step(clip_norm=-1.0)
    with pytest.raises(TypeError, match=r"Muon.step\(\) got an unexpected keyword argument 'clip'"):
        optimizer.step(clip=1.0)
    with pytest.raises(ValueError, match="not among this optimizer's params"):
        optimizer.step_param(torch.nn.Parameter(whole()))
    assert_equal(before, [a, b])
    assert not optimizer.state
    a.grad = None
    with pytest.raises(ValueError, match="param: step_param\\(\\) of a param without a gradient"):
        optimizer.step_param(a)
    expanded = torch.zeros(1, 3).expand(2, 3).requires_grad_()
    expanded.grad = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="several of its elements are at one address"):
        at.Muon([expanded]).step()


def test_invalid_states() -> None:
    a, b = params(((2, 2), (3,)))
    optimizer = at.Muon([a, b])
    train(optimizer, [a, b])
    saved = optimizer.state_dict()
    other = at.Muon([{"params": [a], "use_muon": False}, {"params": [b]}])
    with pytest.raises(ValueError, match=r"\['param_groups'\]\[0\]: use_muon=True, and here it is False"):
        other.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"\['param_groups'\]\[1\] has no 'momentum'"):
        at.Muon([a, b], rest="SGD").load_state_dict(saved)
    del saved["state"][0]["momentum_buffer"]
    saved["state"][0]["other"] = 1
    with pytest.raises(ValueError, match=r"\['state'\]\[0\] has no 'momentum_buffer'"):
        optimizer.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"\['param_groups'\]\[0\] has no 'momentum'"):
        at.Muon([a]).load_state_dict(at.AdamW([a]).state_dict())
