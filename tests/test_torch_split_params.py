"""bfloat16 params with remainders or compensations in adaptk.torch: the bits of float32 params and of NumPy."""

from __future__ import annotations

import copy
import importlib.util
import io
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import adaptk.torch  # noqa: E402
from adaptk import formats  # noqa: E402
from split_params import BF16, SPLIT, bits_of  # noqa: E402
from torch_cases import in_another_process  # noqa: E402

NAMES = {"remainder16": "remainder", "remainder8": "remainder", "kahan": "compensation"}
SIZES = [(40, 30), (77,)]
OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("AdamW", {"lr": 0.01}),
    ("NAdam", {"lr": 0.01}),
    ("ASGD", {"lr": 0.1}),
]


def new_params(dtype: Any = torch.bfloat16) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, generator=generator).to(torch.bfloat16).to(dtype)) for n in SIZES]


def gradients(seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(torch.bfloat16) for n in SIZES]


def set_gradients(params: list[Any], seed: int) -> None:
    for p, g in zip(params, gradients(seed), strict=True):
        p.grad = g.to(p.dtype)


def numpy_of(t: Any) -> np.ndarray:
    t = t.detach().contiguous()
    return t.view(torch.int16).numpy().view(BF16) if t.dtype == torch.bfloat16 else t.numpy()


def values(opt: Any, params: list[Any], name: str) -> list[Any]:
    return [formats.join_param(p.detach(), opt.state[p][NAMES[name]], name) for p in params]


@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS)
@pytest.mark.parametrize("alone", [False, True], ids=["step", "step_param"])
def test_remainders_are_float32_params(cls: str, options: dict[str, Any], alone: bool) -> None:
    """The run is that of float32 params with the same gradients, bit for bit."""
    params, twins = new_params(), new_params(torch.float32)
    opt = getattr(adaptk.torch, cls)(params, param_format="remainder16", **options)
    wide = getattr(adaptk.torch, cls)(twins, **options)
    for seed in range(5):
        set_gradients(params, seed)
        set_gradients(twins, seed)
        if alone:
            for p in params:
                opt.step_param(p)
        else:
            opt.step()
        wide.step()
    for value, p, twin in zip(values(opt, params, "remainder16"), params, twins, strict=True):
        assert torch.equal(value, twin)
        assert opt.state[p]["remainder"].dtype == torch.int16
        assert (p.detach().float() - twin).abs().max() < twin.abs().max() * 2**-8


@pytest.mark.parametrize("name", SPLIT)
def test_the_bits_of_numpy(name: str) -> None:
    params = new_params()
    arrays = [numpy_of(p).copy() for p in params]
    opt = adaptk.torch.AdamW(params, lr=0.01, param_format=name, state_dtype="bfloat16")
    other = adaptk.AdamW(arrays, lr=0.01, param_format=name, state_dtype="bfloat16", convention="torch")
    for seed in range(3):
        set_gradients(params, seed)
        opt.step()
        other.step([numpy_of(p.grad) for p in params])
    for i, p in enumerate(params):
        np.testing.assert_array_equal(bits_of(numpy_of(p)), bits_of(arrays[i]))
        beside = opt.state[p][NAMES[name]]
        np.testing.assert_array_equal(bits_of(numpy_of(beside)), bits_of(other.state[i][NAMES[name]]))


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("how", ["loaded", "saved", "copied"])
def test_resuming_is_bit_exact(name: str, how: str) -> None:
    params = new_params()
    opt = adaptk.torch.AdamW(params, lr=0.01, param_format=name)
    for seed in range(2):
        set_gradients(params, seed)
        opt.step()
    later, second = copy.deepcopy((params, opt))
    if how != "copied":
        saved = opt.state_dict()
        if how == "saved":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file)
        second = adaptk.torch.AdamW(later, lr=0.5, param_format=name)
        second.load_state_dict(saved)
        assert second.state[later[0]][NAMES[name]].dtype in (torch.int16, torch.int8, torch.float32)
    for ps, o in ((params, opt), (later, second)):
        set_gradients(ps, 7)
        o.step()
    for p, q in zip(params, later, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(opt.state[p][NAMES[name]], second.state[q][NAMES[name]])


def test_splitting_a_float32_master() -> None:
    """float32 params of a checkpoint are split, and the run is that of float32."""
    master = torch.nn.Parameter(torch.linspace(-3, 3, 1000))
    param, remainder = formats.split_param(master.detach(), "remainder16")
    p = torch.nn.Parameter(param)
    opt, wide = adaptk.torch.Adam([p], param_format="remainder16"), adaptk.torch.Adam([master])
    opt.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros(1000), "exp_avg_sq": torch.zeros(1000)}
    opt.state[p]["remainder"] = remainder
    for _ in range(3):
        grad = torch.linspace(-1, 1, 1000).to(torch.bfloat16)
        p.grad, master.grad = grad, grad.float()
        opt.step()
        wide.step()
    assert torch.equal(formats.join_param(p.detach(), opt.state[p]["remainder"], "remainder16"), master.detach())


def test_groups_choose_and_may_change() -> None:
    params = new_params()
    opt = adaptk.torch.SGD([{"params": params[:1], "param_format": "kahan"}, {"params": params[1:]}], lr=0.1)
    set_gradients(params, 0)
    opt.step()
    assert list(opt.state[params[0]]) == ["compensation"]
    opt.param_groups[1]["param_format"] = "remainder8"
    set_gradients(params, 1)
    opt.step()
    assert opt.state[params[1]]["remainder"].dtype == torch.int8
    # Without it there is no remainder any more: the step is that of plain bfloat16.
    opt.param_groups[0]["param_format"] = None
    want = params[0].detach().clone()
    set_gradients(params, 2)
    opt.step()
    want = (want.float() - 0.1 * gradients(2)[0].float()).to(torch.bfloat16)
    assert torch.equal(params[0].detach(), want)


def test_layouts_and_moved_buffers() -> None:
    """A remainder that moves, or has another layout than the param, is used."""
    p = torch.nn.Parameter(torch.randn(4, 3, 5, 6).to(torch.bfloat16).to(memory_format=torch.channels_last))
    twin = torch.nn.Parameter(p.detach().float())
    opt, wide = adaptk.torch.SGD([p], lr=0.1, param_format="remainder16"), adaptk.torch.SGD([twin], lr=0.1)
    for step in range(4):
        p.grad = torch.randn(4, 3, 5, 6).to(torch.bfloat16)
        twin.grad = p.grad.float()
        opt.step()
        wide.step()
        if step == 0:
            opt.state[p]["remainder"] = opt.state[p]["remainder"].clone()
        if step == 1:
            opt.state[p]["remainder"] = opt.state[p]["remainder"].contiguous()
    dense = p.detach().contiguous(), opt.state[p]["remainder"].contiguous()
    assert torch.equal(formats.join_param(*dense, "remainder16"), twin.detach().contiguous())


def test_params_that_are_not_dense() -> None:
    whole = torch.randn(40, 6).to(torch.bfloat16)
    p = torch.nn.Parameter(whole[:, ::2])
    twin = torch.nn.Parameter(p.detach().float().contiguous())
    opt, wide = adaptk.torch.AdamW([p], param_format="remainder16"), adaptk.torch.AdamW([twin])
    for _ in range(3):
        p.grad = torch.randn(40, 3).to(torch.bfloat16)
        twin.grad = p.grad.float()
        opt.step()
        wide.step()
    assert torch.equal(
        formats.join_param(p.detach().contiguous(), opt.state[p]["remainder"], "remainder16"), twin.detach()
    )


def test_wider_params_are_unchanged() -> None:
    p = torch.nn.Parameter(torch.ones(5))
    opt = adaptk.torch.SGD([p], lr=0.1, param_format="remainder16")
    p.grad = torch.ones(5)
    opt.step()
    assert not opt.state[p]
    assert torch.equal(p.detach(), torch.full((5,), 1 - 0.1))


def test_float16_is_rounded_stochastically() -> None:
    start = torch.randn(300).to(torch.float16)
    p, array = torch.nn.Parameter(start.clone()), start.numpy().copy()
    opt = adaptk.torch.AdamW([p], lr=0.01, param_format="sr", seed=5)
    other = adaptk.AdamW([array], lr=0.01, param_format="sr", seed=5, convention="torch")
    for seed in range(3):
        p.grad = torch.randn(300, generator=torch.Generator().manual_seed(seed))[:300].to(torch.float16)
        opt.step()
        other.step([p.grad.numpy()])
    np.testing.assert_array_equal(p.detach().view(torch.int16).numpy(), array.view(np.int16))


def test_states_in_float16_rounded_stochastically() -> None:
    start = torch.randn(300)
    p, array = torch.nn.Parameter(start.clone()), start.numpy().copy()
    opt = adaptk.torch.SGD([p], lr=0.01, momentum=0.9, state_dtype="float16_sr", seed=5)
    other = adaptk.SGD([array], lr=0.01, momentum=0.9, state_dtype="float16_sr", seed=5, convention="torch")
    for seed in range(3):
        p.grad = torch.randn(300, generator=torch.Generator().manual_seed(seed))
        opt.step()
        other.step([p.grad.numpy()])
    np.testing.assert_array_equal(p.detach().numpy(), array)


def test_errors() -> None:
    params = new_params()
    opt = adaptk.torch.SGD(params, lr=0.1, param_format="remainder16")
    set_gradients(params, 0)
    opt.step()
    before = [p.detach().clone() for p in params]
    opt.param_groups[0]["param_format"] = "remainder8"
    set_gradients(params, 1)
    with pytest.raises(TypeError, match=r"state\['remainder'\] of params\[0\]: dtype torch.int16, expected torch.int8"):
        opt.step()
    opt.param_groups[0]["param_format"] = "remainder16"
    opt.state[params[0]]["remainder"] = torch.zeros(3, dtype=torch.int16)
    with pytest.raises(ValueError, match=r"state\['remainder'\] of params\[0\]: shape \(3,\), expected \(40, 30\)"):
        opt.step()
    for p, b in zip(params, before, strict=True):
        assert torch.equal(p.detach(), b)
    half = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"params\[0\]: dtype float16 cannot be stored as 'remainder8'"):
        adaptk.torch.SGD([half], lr=0.1, param_format="remainder8")


@pytest.mark.full
def test_sharded_params() -> None:
    """The remainder of a DTensor is a DTensor; a loaded state resumes."""
    if importlib.util.find_spec("torch.distributed.tensor") is None:
        pytest.skip("this PyTorch has no distributed tensors")
    in_another_process(
        """
import os, torch, adaptk.torch
from adaptk import formats
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
if not dist.is_available() or not dist.is_gloo_available():
    raise SystemExit(0)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
torch.manual_seed(0)
a = [torch.randn(6, 4).to(torch.bfloat16), torch.randn(5).to(torch.bfloat16)]
wide = [x.float().requires_grad_() for x in a]
sharded = [torch.nn.Parameter(distribute_tensor(x, mesh, [Shard(0)])) for x in a]
ours = adaptk.torch.AdamW(sharded, lr=0.1, param_format="remainder16")
theirs = adaptk.torch.AdamW(wide, lr=0.1)
for t in range(4):
    for p, q in zip(sharded, wide):
        g = torch.randn(q.shape).to(torch.bfloat16)
        q.grad = g.float()
        p.grad = distribute_tensor(g, mesh, [Shard(0)])
    ours.step()
    theirs.step()
    if t == 1:
        saved = ours.state_dict()
        ours = adaptk.torch.AdamW(sharded, lr=0.1, param_format="remainder16")
        ours.load_state_dict(saved)
for p, q in zip(sharded, wide):
    remainder = ours.state[p]["remainder"]
    assert isinstance(remainder, DTensor) and remainder.dtype == torch.int16
    joined = formats.join_param(p.full_tensor().detach(), remainder.full_tensor(), "remainder16")
    assert torch.equal(joined, q.detach())
dist.destroy_process_group()
"""
    )
