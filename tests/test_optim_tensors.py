"""Tensors of PyTorch in optimizer objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import adaptk
import numpy as np
import pytest
from optim_cases import (
    DTYPES,
    SHAPES,
    Case,
    Params,
    all_bits,
    arrays,
    every_case,
    like,
    snapshot,
    state_bits,
    through_npz,
    through_read_only,
)


def tensors(torch: Any, dtype: str = "float32", shapes: Sequence[tuple[int, ...]] = SHAPES) -> Params:
    wide = [torch.from_numpy(p) for p in arrays("float64", shapes=shapes)]
    return [torch.nn.Parameter(p.to(getattr(torch, dtype))) for p in wide]


def tensors_like(torch: Any, params: Params, seed: int) -> Params:
    rng = np.random.default_rng([1, seed])
    return [torch.from_numpy(rng.normal(size=tuple(p.shape))).to(p.dtype) for p in params]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@every_case
def test_tensors_equal_arrays(torch: Any, case: Case, dtype: str) -> None:
    if dtype not in DTYPES:
        pytest.skip("NumPy's bfloat16 is in ml_dtypes, which is not installed")
    plain = arrays(dtype)
    params = tensors(torch, dtype)
    assert all_bits(params) == all_bits(plain)
    one, other = case(params), case(plain)
    for t in range(10):
        one.step(tensors_like(torch, params, t), clip_norm=3.0)
        other.step(like(plain, t), clip_norm=3.0)
    assert all_bits(params) == all_bits(plain)
    assert state_bits(one) == state_bits(other)
    want = torch.float64 if dtype == "float64" else torch.float32
    for states in one.state.values():
        for x in states.values():
            assert type(x) is torch.Tensor
            assert x.dtype == want
            assert not x.requires_grad


def test_gradients_of_backward(torch: Any) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = adaptk.SGD(dict(model.named_parameters()), lr=0.1)
    want = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step({n: p.grad for n, p in model.named_parameters()})
    for n, p in model.named_parameters():
        assert torch.equal(p, want[n] - torch.tensor(0.1) * p.grad)


def test_tensors_in_any_dense_layout(torch: Any) -> None:
    plain = arrays(shapes=[(2, 3, 4, 5)])
    images = [torch.from_numpy(plain[0].copy()).to(memory_format=torch.channels_last)]
    one, other = adaptk.Adam(images), adaptk.Adam(plain)
    for t in range(3):
        grads = like(plain, t)
        one.step([torch.from_numpy(grads[0]).to(memory_format=torch.channels_last)])
        other.step(grads)
    assert all_bits(images) == all_bits(plain)
    assert one.state[0]["exp_avg"].stride() == images[0].stride()


def test_params_that_move(torch: Any) -> None:
    params, plain = tensors(torch), arrays()
    one, other = adaptk.Adam(params, lr=0.1), adaptk.Adam(plain, lr=0.1)
    for t in range(6):
        if t % 2:
            for p, a in zip(params, plain, strict=True):
                p.data = p.data * 0.5
                a *= np.float32(0.5)
        one.step(tensors_like(torch, params, t))
        other.step(like(plain, t))
        assert all_bits(params) == all_bits(plain)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda torch, p: p.view(4, 3), ValueError, r"exp_avg\[0\]: shape \(3, 4\), expected \(4, 3\)"),
        (lambda torch, p: torch.ones(12), ValueError, r"exp_avg\[0\]: shape \(3, 4\), expected \(12,\)"),
        (lambda torch, p: torch.ones(4, 3).T, ValueError, r"exp_avg\[0\]: strides"),
        (lambda torch, p: torch.ones(3, 4, dtype=torch.float64), TypeError, r"exp_avg\[0\]: dtype float32"),
        (lambda torch, p: torch.ones(3, 8)[:, ::2], ValueError, r"params\[0\]: not contiguous"),
    ],
    ids=["view", "shape", "strides", "dtype", "not dense"],
)
def test_mismatched_data(torch: Any, change: Any, error: type[Exception], text: str) -> None:
    params = tensors(torch)
    optimizer = adaptk.Adam(params)
    optimizer.step(tensors_like(torch, params, 0))
    before = snapshot(optimizer, params)
    grads = tensors_like(torch, params, 1)
    kept = params[0].data
    params[0].data = change(torch, kept)
    for _ in range(2):
        with pytest.raises(error, match=text):
            optimizer.step(grads)
    params[0].data = kept
    assert snapshot(optimizer, params) == before
    optimizer.step(grads)
    assert optimizer.step_count == 2


def test_params_that_later_share_memory(torch: Any) -> None:
    params = tensors(torch, shapes=[(5,), (5,)])
    optimizer = adaptk.SGD(params)
    grads = tensors_like(torch, params, 0)
    kept = params[1].data
    params[1].data = params[0].data
    for _ in range(2):
        with pytest.raises(ValueError, match=r"params\[0\] and params\[1\] are the same buffer"):
            optimizer.step(grads)
    params[1].data = kept
    optimizer.step(grads)
    with pytest.raises(ValueError, match=r"grads\[0\] and params\[1\] overlap"):
        optimizer.step([params[1].data, grads[1]])
    assert optimizer.step_count == 1


def test_the_look_ahead_follows_tensors_that_move(torch: Any) -> None:
    params = tensors(torch)
    optimizer = adaptk.RMSProp(params, nesterov=True)
    optimizer.step(tensors_like(torch, params, 0))
    before = all_bits(params)
    old = params[0].data
    with optimizer.lookahead():
        params[0].data = old.clone()
    assert all_bits(params) == before
    assert params[0].data_ptr() != old.data_ptr()


def test_states_of_tensors_are_saved_as_tensors(torch: Any, tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    shapes = [(4, 3), (), (2, 3, 4, 5)]

    def make() -> Params:
        params = tensors(torch, shapes=shapes)
        params[0] = params[0].detach().T
        params[2] = params[2].detach().to(memory_format=torch.channels_last)
        return params

    def grads(params: Params, t: int) -> Params:
        return [torch.empty_like(p).copy_(g) for p, g in zip(params, tensors_like(torch, params, t), strict=True)]

    def with_torch(saved: Any) -> Any:
        torch.save(saved, tmp_path / "saved.pt")
        return torch.load(tmp_path / "saved.pt", weights_only=True)

    def with_numpy(saved: Any) -> Any:
        return through_npz({k: v.numpy() for k, v in saved.items()})

    straight = make()
    one = adaptk.Adam(straight, amsgrad=True)
    for t in range(4):
        one.step(grads(straight, t))
    for through in (lambda s: safetensors.load(safetensors.save(s)), with_torch, with_numpy, through_read_only):
        params = make()
        first = adaptk.Adam(params, amsgrad=True)
        for t in range(2):
            first.step(grads(params, t))
        saved = first.state_dict()
        assert all(type(v) is torch.Tensor for v in saved.values())
        second = adaptk.Adam(params, amsgrad=True)
        second.load_state_dict(through(saved))
        for t in range(2, 4):
            second.step(grads(params, t))
        assert snapshot(second, params) == snapshot(one, straight)
    halved = {k: v.bfloat16() if k.startswith("state.2.exp") else v for k, v in one.state_dict().items()}
    one.load_state_dict(halved)
    assert torch.equal(one.state[2]["exp_avg"], halved["state.2.exp_avg"].float())
