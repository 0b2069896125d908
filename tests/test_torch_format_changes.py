"""adaptk.torch: if `state_dtype` changes during a run or by loading, the next step converts the states."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from adaptk import formats

NAMES = ["8bit", "8bit_nearest", "8bit_dynamic", "fp8_e4m3", "4bit", "bfloat16_sr", "bfloat16", None]
SIZE = 5000


def make(torch: Any, start: np.ndarray, dtype: Any, state_dtype: str | None) -> tuple[Any, Any]:
    import adaptk.torch as at

    p = torch.nn.Parameter(torch.from_numpy(start).to(dtype))
    return p, at.Adam([p], lr=0.01, state_dtype=state_dtype, seed=2)


def step(torch: Any, p: Any, opt: Any, grad: np.ndarray) -> None:
    p.grad = torch.from_numpy(grad).to(p.dtype)
    opt.step()


def in_float32(opt: Any, p: Any, name: str) -> Any:
    found = formats._saved(opt.state[p], name, p.shape)
    if isinstance(found, formats.Stored):
        return torch_of(formats.dequantize([x.numpy() for x in found[:2]] + [found.format], p.shape))
    return found.float()


def torch_of(x: np.ndarray) -> Any:
    return __import__("torch").from_numpy(x)


def converted(torch: Any, x: Any, name: str, to: str | None) -> dict[str, Any]:
    """A state in its storage format, by name."""
    if to not in formats.CHOICES:
        return {name: x.to(torch.bfloat16) if to is not None else x.clone()}
    stored = formats.quantize(x.numpy(), formats.CHOICES[to][1 if name == "exp_avg" else 0])
    suffix = {"8bit_dynamic": "absmax", "fp8_e4m3": "fp8_scales", "4bit": "4bit_scales"}.get(to, "scales")
    return {name: torch_of(stored.data), f"{name}_{suffix}": torch_of(stored.scales)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["in a run", "after loading"])
@pytest.mark.parametrize(("of", "to"), [(a, b) for a in NAMES for b in NAMES if a != b])
def test_states_are_converted(torch: Any, of: str | None, to: str | None, way: str, dtype: str) -> None:
    """The step matches an optimizer whose states have been encoded by hand."""
    kind = getattr(torch, dtype)
    rng = np.random.default_rng(5)
    start = rng.standard_normal(SIZE).astype(np.float32)
    grads = rng.standard_normal((3, SIZE)).astype(np.float32)
    p, opt = make(torch, start, kind, of)
    for g in grads[:2]:
        step(torch, p, opt, g)
    q, twin = make(torch, p.detach().float().numpy(), kind, to)
    twin.state[q]["step"] = torch.tensor(2.0)
    for name in ("exp_avg", "exp_avg_sq"):
        twin.state[q].update(converted(torch, in_float32(opt, p, name), name, to))
    if way == "after loading":
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        p, opt = make(torch, p.detach().float().numpy(), kind, None)
        opt.load_state_dict(torch.load(file))
    opt.param_groups[0]["state_dtype"] = to
    step(torch, p, opt, grads[2])
    step(torch, q, twin, grads[2])
    assert torch.equal(p, q)
    assert set(opt.state[p]) == set(twin.state[q])
    for name, value in opt.state[p].items():
        assert value.dtype == twin.state[q][name].dtype
        assert torch.equal(value, twin.state[q][name]), name


def test_invalid_group_options(torch: Any) -> None:
    """The step raises before anything changes, and works again after a correction."""
    p, opt = make(torch, np.ones(SIZE, np.float32), torch.float32, "8bit")
    grad = np.ones(SIZE, np.float32)
    group = opt.param_groups[0]
    wrongs: list[tuple[str, Any, type[Exception], str]] = [
        ("state_dtype", "9bit", ValueError, "state_dtype: '9bit', expected 'float32'"),
        ("state_dtype", {"m": "8bit"}, ValueError, "state_dtype: no state 'm'"),
        ("state_dtype", ["8bit"], TypeError, "state_dtype: expected a dtype's name"),
        ("min_8bit_size", -1, ValueError, "min_8bit_size: -1 is below 0"),
    ]
    for steps in (0, 1):
        for key, wrong, error, message in wrongs:
            before, was = p.detach().clone(), group.get(key, 4096)
            group[key] = wrong
            for call in (lambda: step(torch, p, opt, grad), lambda: opt.step_param(p)):
                with pytest.raises(error, match=message):
                    call()
            assert torch.equal(p, before)
            group[key] = was
        step(torch, p, opt, grad)
        assert opt.state[p]["step"] == steps + 1


def test_a_dict_that_changes(torch: Any) -> None:
    p, opt = make(torch, np.ones(SIZE, np.float32), torch.float32, None)
    chosen = opt.param_groups[0]["state_dtype"] = {"exp_avg": "8bit"}
    step(torch, p, opt, np.ones(SIZE, np.float32))
    assert set(opt.state[p]) == {"step", "exp_avg", "exp_avg_scales", "exp_avg_sq"}
    chosen["exp_avg"] = "fp8_e4m3"
    step(torch, p, opt, np.ones(SIZE, np.float32))
    assert set(opt.state[p]) == {"step", "exp_avg", "exp_avg_fp8_scales", "exp_avg_sq"}
    opt.param_groups[0]["min_8bit_size"] = SIZE + 1
    opt.step_param(p)
    assert set(opt.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
