"""Offload of other packages with classes of adaptk.torch as their base."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from torch_cases import at, torch


class Stream:
    """Stands in for a device's: all is done at once."""

    def wait_stream(self, other: Any) -> None: ...
    def record_event(self) -> Stream:
        return self

    def synchronize(self) -> None: ...


@pytest.mark.filterwarnings("ignore")  # torchao's own, at import
def test_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CPUOffloadOptimizer makes an optimizer for each param; of a GPU it wants streams and pinned memory."""
    pytest.importorskip("torchao.optim", reason="needs torchao")
    from torchao.optim import cpu_offload

    plain = torch.empty_like
    monkeypatch.setattr(cpu_offload, "get_available_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch, "empty_like", lambda *a, pin_memory=False, **k: plain(*a, **k))
    net, twin = (torch.nn.Linear(80, 60).to(torch.bfloat16) for _ in range(2))
    twin.load_state_dict(net.state_dict())
    options: dict[str, Any] = {"lr": 0.01, "param_format": "remainder16"}
    opt = cpu_offload.CPUOffloadOptimizer(net.parameters(), at.AdamW, **options)
    own = at.AdamW(twin.parameters(), **options)
    for t in range(3):
        for n, o in ((net, opt), (twin, own)):
            n(torch.ones(4, 80, dtype=torch.bfloat16) * (t + 1)).square().mean().backward()
            o.step()
            for p in n.parameters():
                p.grad = None
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert opt.d_opt is not None  # the bias, which it keeps on the device
    assert len(opt.optim_dict) == 1
