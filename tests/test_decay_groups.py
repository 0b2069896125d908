"""``adaptk.decay_groups``: which params are decayed, by name or by shape and module."""

from __future__ import annotations

from typing import Any

import adaptk
import numpy as np
import pytest

ARRAYS = {
    "embed.weight": np.ones((4, 2)),
    "layer.weight": np.ones((2, 2)),
    "layer.bias": np.ones(2),
    "norm.weight": np.ones(2),
    "scale": np.ones(()),
}


def names(groups: list[dict[str, Any]]) -> list[tuple[list[str], float]]:
    return [(list(dict(g["params"])), g["weight_decay"]) for g in groups]


def test_excluded_params() -> None:
    matrices, rest = ["embed.weight", "layer.weight"], ["layer.bias", "norm.weight", "scale"]
    assert names(adaptk.decay_groups(ARRAYS, 0.1)) == [(matrices, 0.1), (rest, 0.0)]
    assert names(adaptk.decay_groups(ARRAYS.items(), 0.1)) == [(matrices, 0.1), (rest, 0.0)]
    by_name = adaptk.decay_groups(ARRAYS, 0.1, exclude=["*.bias", "embed.*"], lr=0.5)
    assert names(by_name) == [(["layer.weight", "norm.weight", "scale"], 0.1), (["embed.weight", "layer.bias"], 0.0)]
    assert [g["lr"] for g in by_name] == [0.5, 0.5]
    large = adaptk.decay_groups(ARRAYS, 0.1, exclude=lambda name, p: p.size > 1)
    assert names(large) == [(["scale"], 0.1), ([n for n in ARRAYS if n != "scale"], 0.0)]
    assert names(adaptk.decay_groups(ARRAYS, 0.1, exclude=())) == [(list(ARRAYS), 0.1)]
    assert names(adaptk.decay_groups(ARRAYS, 0.1, exclude="*")) == [(list(ARRAYS), 0.0)]


def test_a_step() -> None:
    params = {name: x.copy() for name, x in ARRAYS.items()}
    opt = adaptk.SGD(adaptk.decay_groups(params, 0.5), lr=1.0)
    opt.step({name: np.zeros_like(x) for name, x in params.items()})
    for name, x in params.items():
        assert (x == (0.5 if x.ndim == 2 else 1.0)).all(), name


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"^params: expected a module, a dict of params by name or pairs"):
        adaptk.decay_groups([np.ones(2)], 0.1)
    with pytest.raises(TypeError, match=r"^params: .* got int"):
        adaptk.decay_groups(3, 0.1)
    with pytest.raises(ValueError, match=r"^params: none"):
        adaptk.decay_groups({}, 0.1)
    with pytest.raises(ValueError, match=r"^exclude: '\*.biass' matches no name; there are embed.weight, "):
        adaptk.decay_groups(ARRAYS, 0.1, exclude="*.biass")
    with pytest.raises(TypeError, match=r"^exclude: expected patterns of names, got int"):
        adaptk.decay_groups(ARRAYS, 0.1, exclude=[3])


@pytest.mark.parametrize("module", ["adaptk.torch", "torch.optim"])
def test_modules_of_torch(torch: Any, module: str) -> None:
    import importlib

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 1))
    model[2].requires_grad_(False)
    groups = adaptk.decay_groups(model, 0.5)
    of_groups = [["0.weight"], ["0.bias", "1.weight", "1.bias"]]
    assert names(groups) == [(of_groups[0], 0.5), (of_groups[1], 0.0)]
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    opt = importlib.import_module(module).SGD(groups, lr=1.0)
    opt.step()
    assert [g["param_names"] for g in opt.param_groups] == of_groups
    assert (model[0].weight == 0.5).all()
    assert all(bool((p == 1.0).all()) for n, p in model.named_parameters() if n != "0.weight")
