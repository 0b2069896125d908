"""The class for PyTorch of a rule that was made at run time."""

from __future__ import annotations

import copy
import io
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import same_bits
from traced_rules import traced

torch = pytest.importorskip("torch")
import adaptk.torch  # noqa: E402

OWN = {c._name: c for c in adaptk.torch.OWN}


def trained(cls: Any, dtype: Any = torch.float32, steps: int = 4, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n, dtype=torch.float64).to(dtype)) for n in (3, 5000, 70_001)]
    opt = cls(params, **options)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, dtype=torch.float64).to(dtype)
        opt.step()
    return params, opt


def assert_equal(a: tuple[Any, Any], b: tuple[Any, Any]) -> None:
    for p, q in zip(a[0], b[0], strict=True):
        assert torch.equal(p, q)
        assert a[1].state[p].keys() == b[1].state[q].keys()
        for name, x in a[1].state[p].items():
            assert torch.equal(x, b[1].state[q][name]), name


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "decoupled": True}, {"state_dtype": "8bit", "seed": 5}])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("rule", [name for name in OWN if name != "rmsprop_nesterov"])
def test_the_bits_of_the_compiled_rule(rule: str, dtype: str, options: dict[str, Any]) -> None:
    with traced(rule) as made:
        kind = getattr(torch, dtype)
        # Options of initial values are the library's own.
        start = {s.option: s.initial for s in adaptk.rules()[rule].states if s.option is not None}
        assert_equal(trained(OWN[rule], kind, **options, **start), trained(made.torch, kind, **options))


def test_same_interface_as_built_in_rules() -> None:
    with traced("adam") as made:
        cls = made.torch
        assert cls is made.torch
        assert issubclass(cls, torch.optim.Optimizer)
        assert cls.__name__ == "TracedAdam"
        assert "lr : float in [0, inf)" in cls.__doc__
        w = torch.nn.Parameter(torch.ones(3))
        with pytest.raises(TypeError, match=r"TracedAdam\(\) got an unexpected keyword argument 'beta'"):
            cls([w], beta=1)
        with pytest.raises(ValueError, match="lr"):
            cls([w], lr=-1.0)
        opt = cls([{"params": [w], "lr": 0.5}], clip_norm=1.0) if "clip_norm" in str(cls) else cls([w], lr=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
        w.sum().backward()
        opt.step()
        scheduler.step()
        assert opt.param_groups[0]["lr"] == 0.25
        assert w[0].item() == 0.5


def test_states_are_saved_and_loaded() -> None:
    with traced("adam") as made:
        params, opt = trained(made.torch, lr=0.01)
        twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
        loaded = made.torch(twins, lr=1.0)
        loaded.load_state_dict(opt.state_dict())
        file = io.BytesIO()
        torch.save((params, opt), file)
        file.seek(0)
        saved_params, saved = torch.load(file, weights_only=False)
        copied_params, copied = copy.deepcopy((params, opt))
        assert type(saved) is type(copied) is made.torch
        pairs = [(params, opt), (twins, loaded), (saved_params, saved), (copied_params, copied)]
        for of, optimizer in pairs:
            for p in of:
                p.grad = torch.full_like(p, 0.5)
            optimizer.step()
        for pair in pairs[1:]:
            assert_equal(pairs[0], pair)


def test_tensors_in_the_function_and_the_object() -> None:
    with traced("lion") as made:
        w, g, m = torch.ones(100), torch.randn(100), torch.zeros(100)
        twin = [x.numpy().copy() for x in (w, g, m)]
        made(w, g, m, step=1)
        adaptk.ops.lion(*twin, step=1)
        assert same_bits(w.numpy(), twin[0])
        opt = made.Optimizer([w])
        opt.step([g])
        assert np.isfinite(w.numpy()).all()


def test_works_after_unregister() -> None:
    with traced("lion") as made:
        params, opt = trained(made.torch)
    for p in params:
        p.grad = torch.ones_like(p)
    opt.step()
    made.torch(params, state_dtype="bfloat16").step()
