"""Offload optimizers of other packages with classes of adaptk.torch as their base."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

import pytest
from torch_cases import at, in_another_process, torch


class Stream:
    """A fake stream: all work is synchronous."""

    def wait_stream(self, other: Any) -> None: ...
    def record_event(self) -> Stream:
        return self

    def synchronize(self) -> None: ...


@pytest.mark.filterwarnings("ignore")  # torchao's own warning, at import
def test_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its CPUOffloadOptimizer makes an optimizer for each param; from a GPU it needs streams and pinned memory."""
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


DEEPSPEED = """
import os, socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
of_one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
os.environ.update(of_one, DS_ACCELERATOR="cpu")
import torch, deepspeed, adaptk.torch

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

net, twin = model(), model().bfloat16()
engine, _, _, _ = deepspeed.initialize(
    model=net,
    optimizer=adaptk.torch.AdamW(net.parameters(), lr=0.05),
    config={
        "train_micro_batch_size_per_gpu": 4,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": STAGE, "offload_optimizer": {"device": "cpu"}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    },
)
# The same by hand: masters in float32, which begin as the params in bfloat16.
masters = [p.detach().float().requires_grad_() for p in twin.parameters()]
own = adaptk.torch.AdamW(masters, lr=0.05)
x = torch.linspace(-1, 1, 16).reshape(4, 4).bfloat16()
for t in range(4):
    loss = engine(x * (t + 1)).float().square().mean()
    engine.backward(loss)
    engine.step()
    twin.zero_grad()
    want = twin(x * (t + 1)).float().square().mean()
    want.backward()
    assert loss.item() == want.item(), (t, loss.item(), want.item())
    for m, p in zip(masters, twin.parameters()):
        m.grad = p.grad.float()
    own.step()
    with torch.no_grad():
        for m, p in zip(masters, twin.parameters()):
            p.copy_(m)
opt = engine.optimizer.optimizer
assert isinstance(opt, adaptk.torch.AdamW), type(opt)
assert {s["step"].item() for s in opt.state.values()} == {4.0}
print("the same losses")
"""


@pytest.mark.full
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed(stage: int) -> None:
    """ZeRO-Offload with our class as the client's optimizer: float32 masters in flat partitions on the host."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed")
    assert "the same losses" in in_another_process(DEEPSPEED.replace("STAGE", str(stage)), 600)
