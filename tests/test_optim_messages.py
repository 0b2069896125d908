"""Messages for calls that other libraries' optimizers have: what to use instead."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest


def test_one_param_accepts_its_gradient_alone() -> None:
    for params in (lambda w: w, lambda w: [w]):
        w, v = np.ones(3), np.ones(3)
        one, other = adaptk.Adam(params(w)), adaptk.Adam([v])
        one.step(2 * w)
        other.step([2 * v])
        np.testing.assert_array_equal(w, v)
        pickle.loads(pickle.dumps(one)).step(w)
    for given, text in (([w, v], "2 params"), ({"w": w}, "1 param with a name")):
        with pytest.raises(
            TypeError, match=f"grads: expected a list or a dict of gradients, got one buffer for {text}"
        ):
            adaptk.Adam(given).step(w)
    with pytest.raises(ValueError, match="shape"):
        adaptk.Adam(w).step(np.ones(2))


@pytest.mark.parametrize(("name", "theirs"), [("AdamW", "AdamW"), ("RMSProp", "RMSprop"), ("AdaGrad", "Adagrad")])
def test_calls_of_torch_optimizers(name: str, theirs: str) -> None:
    torch = pytest.importorskip("torch")
    adaptk_torch = pytest.importorskip("adaptk.torch")
    assert hasattr(adaptk_torch, theirs)
    opt = getattr(adaptk, name)([torch.ones(2)])
    remedy = f"; adaptk.torch.{theirs} reads the gradients that tensors have"
    with pytest.raises(AttributeError, match="'zero_grad': gradients are arguments of step.*" + remedy):
        opt.zero_grad()
    with pytest.raises(TypeError, match=r"step\(\) needs the gradients: step\(grads\)" + remedy):
        opt.step()
    with pytest.raises(TypeError, match=r"step\(\) needs the gradients: step\(grads\)$"):
        getattr(adaptk, name)([np.ones(2)]).step()
    with pytest.raises(AttributeError, match=r"gradients are arguments of step.* and are not kept$"):
        getattr(adaptk, name)([np.ones(2)]).zero_grad()


def test_all_names_of_torchs_classes() -> None:
    torch = pytest.importorskip("torch")
    adaptk_torch = pytest.importorskip("adaptk.torch")
    for name in adaptk.optim.__all__:
        cls = getattr(adaptk.optim, name)
        if cls is adaptk.Optimizer or not isinstance(cls, type) or not issubclass(cls, adaptk.Optimizer):
            continue
        with pytest.raises(AttributeError) as raised:
            cls([torch.ones(2)]).zero_grad()
        assert hasattr(adaptk_torch, str(raised.value).partition("adaptk.torch.")[2].partition(" ")[0])


def test_hyperparameters_are_in_the_groups() -> None:
    opt = adaptk.AdamW([np.ones(2)])
    for name, meant in (("lr", "lr"), ("learning_rate", "lr"), ("beta1", "beta1")):
        remedy = rf"has no attribute '{name}': hyperparameters .* opt.param_groups\[0\]\['{meant}'\]"
        with pytest.raises(AttributeError, match=remedy):
            setattr(opt, name, 0.1)
        with pytest.raises(AttributeError, match=remedy):
            getattr(opt, name)
    opt.note = 3
    opt.clip_norm = 1.0
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert (twin.note, twin.clip_norm) == (3, 1.0)
    with pytest.raises(AttributeError, match=r"^'AdamW' object has no attribute 'colour'"):
        opt.colour  # noqa: B018

    class Mine(adaptk.SGD):
        def __init__(self, params: Any, lr: float) -> None:
            self.lr = lr
            super().__init__(params, lr)
            self.lr *= 2

    assert Mine([np.ones(2)], 0.5).lr == 1.0


def test_the_signature_of_step_has_the_gradients() -> None:
    assert inspect.signature(adaptk.Adam.step).parameters["grads"].default is inspect.Parameter.empty


def test_invalid_state_dicts() -> None:
    opt = adaptk.AdamW([np.ones(2)])
    saved = opt.state_dict()
    with pytest.raises(ValueError, match="state_dict: is empty, expected what state_dict"):
        opt.load_state_dict({})
    with pytest.raises(ValueError, match=r"^state_dict: missing \['.*', '.*', '.*', ...\] \(\d+ keys\)$") as raised:
        opt.load_state_dict({"step": saved["step"]})
    assert len(str(raised.value)) < 160
    with pytest.raises(ValueError, match=r"^state_dict: unexpected \['colour'\]$"):
        opt.load_state_dict({**saved, "colour": np.ones(2)})
    with pytest.raises(
        ValueError, match=r"state_dict: it is that of an optimizer of torch.optim or adaptk.torch; load"
    ):
        opt.load_state_dict({"state": {}, "param_groups": []})
