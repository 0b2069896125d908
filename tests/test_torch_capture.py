"""Errors of `adaptk.torch` while a CUDA graph is captured, without a device: PyTorch's functions are mocked."""

from __future__ import annotations

import types
import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import adaptk.torch  # noqa: E402


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes PyTorch report a device whose current stream is captured."""
    stream = types.SimpleNamespace(is_capturing=lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_: stream)


def param() -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    return p


CAPTURABLE = [c for c in adaptk.torch.__all__ if hasattr(torch.optim, c) and c != "Muon"]  # which has matrices


@pytest.mark.parametrize("name", CAPTURABLE)
def test_pytorchs_own_check(name: str, capturing: None) -> None:
    p, twin = param(), param()
    optimizer = getattr(adaptk.torch, name)([p], lr=0.1)
    theirs = getattr(torch.optim, name)([twin], lr=0.1, foreach=False)
    if "capturable" not in optimizer.defaults:
        optimizer.step()
        theirs.step()
        return
    for one in (optimizer, theirs):
        with pytest.raises(RuntimeError, match=r"graph capture.*capturable is False"):
            one.step()
    assert p.tolist() == [1.0] * 3
    assert not optimizer.state


def test_a_step_outside_of_a_capture(monkeypatch: pytest.MonkeyPatch, capturing: None) -> None:
    p = param()
    optimizer = adaptk.torch.Adam([p], lr=0.1)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_: types.SimpleNamespace(is_capturing=bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert p.tolist() == pytest.approx([0.9] * 3)


def test_states_are_not_made_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptk.torch._bind, "is_captured", lambda p: True)
    for name in ("Adam", "Lion", "SGD"):
        p = param()
        options = {"momentum": 0.9} if name == "SGD" else {}
        optimizer = getattr(adaptk.torch, name)([p], lr=0.1, **options)
        # Like a param on a device, which is checked more thoroughly than one on the CPU.
        monkeypatch.setattr(type(optimizer), "_is_usual", staticmethod(lambda p, group: False))
        with pytest.raises(RuntimeError, match=r"params\[0\]: step\(\) while.*captured.*take one step before"):
            optimizer.step()
        assert p.tolist() == [1.0] * 3
        assert not optimizer.state
    p = param()
    adaptk.torch.SGD([p], lr=0.5).step()
    assert p.tolist() == [0.5] * 3


def test_a_tensor_on_the_cpu_is_not_captured(capturing: None) -> None:
    assert not adaptk.torch._tensors.is_captured(torch.ones(2))
    assert adaptk.torch._tensors.is_captured(types.SimpleNamespace(is_cuda=True))
