"""Offload: the bits of the class over float32 masters, however gradients arrive; copies from and to a fake device;
errors and failures."""

from __future__ import annotations

import copy
import ctypes
import gc
import math
import threading
import warnings
import weakref
from typing import Any

import adaptk
import pytest
from torch_cases import (
    Case,
    _seeded,  # noqa: F401
    at,
    every_class,
    torch,
)

from adaptk.torch import _offload  # isort: skip  # torch_cases skips if there is no PyTorch


def model(dtype: Any = torch.bfloat16) -> Any:
    torch.manual_seed(1)
    layers = [torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)]
    return torch.nn.Sequential(*layers).to(dtype)


def backward(net: Any, t: int, scale: float = 1.0) -> Any:
    dtype = next(net.parameters()).dtype
    x = torch.linspace(-1, 1 + t, 24).reshape(4, 6).to(dtype)
    loss = net(x).square().sum() * scale
    loss.backward()
    return loss


class Masters:
    """A reference for Offload in plain steps: the class steps float32 copies, which are rounded to the params."""

    def __init__(self, net: Any, make: Any) -> None:
        self.params = list(net.parameters())
        self.masters = [torch.nn.Parameter(p.detach().float()) for p in self.params]
        self.opt = make(self.masters)

    def step(self, grads: list[Any], **options: Any) -> None:
        for m, g in zip(self.masters, grads, strict=True):
            m.grad = g.float()
        self.opt.step(**options)
        with torch.no_grad():
            for p, m in zip(self.params, self.masters, strict=True):
                p.copy_(m)


def grads_of(net: Any) -> list[Any]:
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("grads", ["keep", "collect", "step"])
@every_class
def test_every_class(case: Case, grads: str) -> None:
    net, twin = model(), model()
    opt = at.Offload(net.parameters(), getattr(at, case.name), grads=grads, **case.options)
    plain = Masters(twin, case.ours)
    for t in range(3):
        twin.zero_grad()
        backward(twin, t)
        plain.step(grads_of(twin))
        opt.zero_grad()
        backward(net, t)
        assert all((p.grad is None) is (grads != "keep") for p in net.parameters())
        opt.step()
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
    for p, m in zip(net.parameters(), plain.masters, strict=True):
        assert torch.equal(opt.state[p]["master"], m)
        for name, value in plain.opt.state.get(m, {}).items():
            assert torch.equal(opt.state[p][name], value)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("grads", ["keep", "collect", "step"])
def test_other_dtypes(dtype: str, grads: str) -> None:
    net, twin = model(getattr(torch, dtype)), model(getattr(torch, dtype))
    opt = at.Offload(net.parameters(), at.AdamW, lr=0.1, grads=grads)
    if dtype == "float16":
        plain = Masters(twin, lambda p: at.AdamW(p, lr=0.1))
    else:
        own = at.AdamW(twin.parameters(), lr=0.1)
    for t in range(3):
        opt.zero_grad()
        twin.zero_grad()
        backward(net, t, 1e-2)
        opt.step()
        backward(twin, t, 1e-2)
        if dtype == "float16":
            plain.step(grads_of(twin))
        else:
            own.step()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert ("master" in opt.state[net[0].weight]) is (dtype == "float16")


def check_formats_of_states(grads: str, options: dict[str, Any]) -> None:
    net, twin = model(), model()
    opt = at.Offload(net.parameters(), at.AdamW, lr=0.1, grads=grads, **options)
    plain = Masters(twin, lambda p: at.AdamW(p, lr=0.1, **options))
    for t in range(4):
        twin.zero_grad()
        backward(twin, t)
        plain.step(grads_of(twin))
        opt.zero_grad()
        backward(net, t)
        opt.step()
        if t == 1:  # codes and scales are saved and loaded
            saved = opt.state_dict()
            opt.close()
            opt = at.Offload(net.parameters(), at.AdamW, lr=0.5, grads=grads, **options)
            opt.load_state_dict(saved)
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    for p, m in zip(net.parameters(), plain.masters, strict=True):
        for name, value in plain.opt.state[m].items():
            assert torch.equal(opt.state[p][name], value), name
    assert opt.state[net[0].weight]["exp_avg"].dtype in (torch.uint8, torch.int8, torch.bfloat16)
    scales = [name for name in opt.state[net[0].weight] if name.endswith(("scales", "absmax"))]
    assert len(scales) == (0 if "seed" in options else 2)


FORMATS: list[dict[str, Any]] = [
    *({"state_dtype": f, "min_8bit_size": 0} for f in ("8bit", "8bit_dynamic", "4bit")),
    {"state_dtype": "bfloat16_sr", "seed": 3},
]
every_way = pytest.mark.parametrize("grads", ["keep", "collect", "step"])
every_format = pytest.mark.parametrize("options", FORMATS, ids=[f["state_dtype"] for f in FORMATS])


@every_way
@every_format
def test_formats_of_states(grads: str, options: dict[str, Any]) -> None:
    check_formats_of_states(grads, options)


@pytest.mark.parametrize("name", ["AdaBound", "AMSBound"])
@every_way
def test_rules_that_hand_numbers_on(name: str, grads: str) -> None:
    """The first learning rate, which differs from that of later steps."""
    net, twin = model(), model()
    make = getattr(at, name)
    opt = at.Offload(net.parameters(), make, lr=0.25, grads=grads)
    plain = Masters(twin, lambda p: make(p, lr=0.25))
    for t in range(4):
        for o in (opt, plain.opt):
            o.param_groups[0]["lr"] = 0.25 / (t + 1)
        twin.zero_grad()
        backward(twin, t)
        plain.step(grads_of(twin))
        opt.zero_grad()
        backward(net, t)
        opt.step()
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
        if t == 1:
            saved = opt.state_dict()
            opt.close()
            opt = at.Offload(net.parameters(), make, lr=0.5, grads=grads)
            opt.load_state_dict(saved)
    assert opt.param_groups[0]["first_lr"] == plain.opt.param_groups[0]["first_lr"] == 0.25


def test_params_that_need_no_master() -> None:
    """With a param_format the masters have the dtype of the params, and are the params if these are on the CPU."""
    net, twin = model(), model()
    opt = at.Offload(net.parameters(), at.AdamW, lr=0.1, param_format="sr", seed=1)
    own = at.AdamW(twin.parameters(), lr=0.1, param_format="sr", seed=1)
    for t in range(3):
        for n, o in ((net, opt), (twin, own)):
            o.zero_grad()
            backward(n, t)
            o.step()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert "master" not in opt.state[net[0].weight]


# Clipping, and sums over backward passes.


@pytest.mark.parametrize("passes", [1, 3, None])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_sums_and_clipping(passes: int | None, clip: float | None) -> None:
    """Sums are in float32, and the norm is that of all gradients."""
    net, twin = model(), model()
    opt = at.Offload(net.parameters(), at.AdamW, lr=0.1, clip_norm=clip, grads="collect", accumulation_steps=passes)
    plain = Masters(twin, lambda p: at.AdamW(p, lr=0.1))
    for t in range(3):
        sums = [torch.zeros(p.shape) for p in twin.parameters()]
        for k in range(passes or 2):
            twin.zero_grad()
            backward(twin, t + k)
            sums = [s + g.float() for s, g in zip(sums, grads_of(twin), strict=True)]
            backward(net, t + k)
        opt.step()
        if clip is None:
            plain.step(sums)
            continue
        expected = math.sqrt(sum(float(s.double().square().sum()) for s in sums))
        assert opt.last_step.grad_norm == pytest.approx(expected, rel=1e-14)
        assert expected > clip
        plain.step(sums, clip_norm=clip, grad_norm=opt.last_step.grad_norm)
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("grads", ["keep", "collect"])
def test_clipping_reads_each_gradient_once_more(grads: str, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the norm, in place, besides the step's own read; with 'collect' before step() is called. With several
    passes, each gradient is read once, by the sum that also computes the norm."""
    made: list[tuple[Any, Any]] = []
    real = _offload._core.GradSum

    def counted(into: Any, given: Any) -> Any:
        made.append((into, given))
        return real(into, given)

    def bytes_of(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    monkeypatch.setattr(_offload._core, "GradSum", counted)
    net = model()
    adds = grads == "collect" and passes > 1
    more = {"accumulation_steps": passes} if adds else {}
    opt = at.Offload(net.parameters(), at.AdamW, lr=0.1, clip_norm=0.5, grads=grads, **more)
    params = list(net.parameters())
    for t in range(2):
        made.clear()
        for k in range(passes):
            backward(net, t + k)
        before = len(made)
        read_by_step = [slot.grad for slot in opt._slots]
        opt.step()
        opt.zero_grad()
        assert opt.last_step.grad_norm > 0.5
        assert len(made) == before or grads == "keep"
        assert bytes_of(given for _, given in made) == bytes_of(params) * (passes if adds else 1)
        for into, given in made:
            assert given.dtype == torch.bfloat16
            assert (into is not None) == adds
        if grads == "collect" and not adds:
            # The memory that the step reads: nothing was copied.
            assert {given.data_ptr() for _, given in made} == {g.data_ptr() for g in read_by_step}


def test_steps_as_the_last_gradients_arrive() -> None:
    net, twin = model(), model()
    opt = at.Offload(net.parameters(), at.SGD, lr=0.01, grads="step", accumulation_steps=2)
    plain = Masters(twin, lambda p: at.SGD(p, lr=0.01))
    before = [p.detach().clone() for p in net.parameters()]
    backward(net, 0)
    opt.synchronize()
    assert all(map(torch.equal, net.parameters(), before))
    backward(net, 1)
    opt.synchronize()
    assert not any(map(torch.equal, net.parameters(), before))
    opt.step()
    sums = [torch.zeros(p.shape) for p in twin.parameters()]
    for t in range(2):
        twin.zero_grad()
        backward(twin, t)
        sums = [s + g.float() for s, g in zip(sums, grads_of(twin), strict=True)]
    plain.step(sums)
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("grads", ["keep", "collect"])
def test_nonfinite_gradients(grads: str) -> None:
    net = model()
    opt = at.Offload(net.parameters(), at.AdamW, grads=grads, skip_nonfinite=True, zero_grad=True)
    before = [p.detach().clone() for p in net.parameters()]
    backward(net, 0, math.inf)
    opt.step()
    assert opt.last_step.skipped
    assert all(map(torch.equal, net.parameters(), before))
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    assert float(opt.state[net[0].weight]["step"]) == 0
    backward(net, 1)
    opt.step()
    assert not opt.last_step.skipped
    assert float(opt.state[net[0].weight]["step"]) == 1


def test_schedulers() -> None:
    net, twin = model(torch.float32), model(torch.float32)
    opt, own = at.Offload(net.parameters(), at.SGD, lr=0.1), at.SGD(twin.parameters(), lr=0.1)
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 5, cycle_momentum=False) for o in (opt, own)]
    for t in range(4):
        for n, o, s in zip((net, twin), (opt, own), schedulers, strict=True):
            o.zero_grad()
            backward(n, t, 1e-2)
            o.step()
            s.step()
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


def test_grad_scaler() -> None:
    net, twin = model(torch.float32), model(torch.float32)
    opt = at.Offload(net.parameters(), at.AdamW, lr=0.1, clip_norm=1.0)
    own = at.AdamW(twin.parameters(), lr=0.1, clip_norm=1.0)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    for t in range(4):
        for n, o, scaler in zip((net, twin), (opt, own), scalers, strict=True):
            o.zero_grad()
            x = torch.linspace(-1, 1 + t, 24).reshape(4, 6)
            scaler.scale(n(x).square().sum() * (math.inf if t == 1 else 1.0)).backward()
            if t == 2:
                scaler.unscale_(o)
            scaler.step(o)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 512.0
    assert float(opt.state[net[0].weight]["step"]) == 3
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=0)
    taking = at.Offload(model().parameters(), at.AdamW, grads="collect")
    taking.grad_scale = torch.tensor(2.0)
    with pytest.raises(RuntimeError, match="GradScaler looks at gradients before the step"):
        taking.step()


# Saving.


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_saved_and_loaded(name: str) -> None:
    options = {"lr": 0.1} if name == "AdamW" else {"lr": 0.01, "momentum": 0.9}
    net = model()
    opt = at.Offload(net.named_parameters(), getattr(at, name), grads="step", **options)
    for t in range(3):
        backward(net, t)
        opt.step()
    saved, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(net.state_dict())
    other = model()
    resumed = at.Offload(other.named_parameters(), getattr(at, name), **options)
    resumed.load_state_dict(saved)
    other.load_state_dict(weights)  # in either order
    for t in range(3, 6):
        for n, o in ((net, opt), (other, resumed)):
            o.zero_grad()
            backward(n, t)
            o.step()
    assert all(map(torch.equal, net.parameters(), other.parameters()))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(opt.state[p]["master"], resumed.state[q]["master"])
    assert saved["state"][0]["master"].dtype == torch.float32


def test_states_of_the_class_and_of_torch() -> None:
    net, twin = model(torch.float32), model(torch.float32)
    torchs = torch.optim.AdamW(twin.parameters(), lr=0.05)
    backward(twin, 0)
    torchs.step()
    net.load_state_dict(twin.state_dict())
    opt = at.Offload(net.to(torch.bfloat16).parameters(), at.AdamW)
    opt.load_state_dict(torchs.state_dict())
    assert opt.param_groups[0]["lr"] == 0.05
    assert torch.equal(opt.state[net[0].weight]["exp_avg"], torchs.state[twin[0].weight]["exp_avg"])
    torchs.load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match="it seems to be another optimizer's"):
        at.Offload(model().parameters(), at.AdamW).load_state_dict(
            at.Offload(model().parameters(), at.SGD).state_dict()
        )
    wrong = copy.deepcopy(opt.state_dict())
    wrong["state"][0]["master"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"\['state'\]\[0\]\['master'\]: expected a tensor of shape \(5, 6\)"):
        opt.load_state_dict(wrong)


def test_params_that_others_write() -> None:
    """Their masters follow, except for unchanged elements, which keep their low bits."""
    w = torch.nn.Parameter(torch.full((3,), 1.0, dtype=torch.bfloat16))
    opt = at.Offload([w], at.SGD, lr=5e-4)
    for _ in range(2):
        w.grad = torch.ones_like(w)
        opt.step()
    assert w.tolist() == [1.0, 1.0, 1.0]  # changes too small for bfloat16
    with torch.no_grad():
        w[1] = 5.0
    w.grad = torch.zeros_like(w)
    opt.step()
    assert opt.state[w]["master"].tolist() == pytest.approx([0.999, 5.0, 0.999])


def test_distributed_checkpoint() -> None:
    pytest.importorskip("torch.distributed.checkpoint.state_dict")
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    net, other = model(), model()
    opt, resumed = (at.Offload(n.parameters(), at.AdamW, lr=0.1) for n in (net, other))
    backward(net, 0)
    opt.step()
    opt.zero_grad()
    weights, states = (copy.deepcopy(d) for d in get_state_dict(net, opt))
    assert set(states["state"]["0.weight"]) >= {"exp_avg", "exp_avg_sq", "step", "master"}
    set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=states)
    for n, o in ((net, opt), (other, resumed)):
        o.zero_grad()
        backward(n, 1)
        o.step()
    assert all(map(torch.equal, net.parameters(), other.parameters()))


# A device.


class Device:
    """A fake device: its memory is other tensors' memory, and copies are made when they are waited for."""

    def __init__(self) -> None:
        self.pending: dict[int, tuple[Any, Any]] = {}
        self.fails: set[str] = set()
        self.said: list[str] = []
        self.threads: set[int] = set()
        self.joined = 0
        kinds = {
            "enter": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p),
            "wait": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p),
            "send": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
        }
        self.kept = {name: kind(getattr(self, f"_{name}")) for name, kind in kinds.items()}
        self.calls = {name: ctypes.cast(f, ctypes.c_void_p).value for name, f in self.kept.items()} | {"context": 7}

    def _say(self, what: str) -> int:
        self.said.append(what)
        self.threads.add(threading.get_ident())
        return 700 if what in self.fails else 0

    def _enter(self, context: int) -> int:
        assert context == 7
        return self._say("enter")

    def _wait(self, event: int) -> int:
        code = self._say("wait")
        if code == 0 and event in self.pending:
            into, grad = self.pending.pop(event)
            into.copy_(grad)
        return code

    def _send(self, to: int, source: int, size: int, stream: int) -> int:
        assert stream == 9
        code = self._say("send")
        if code == 0:
            ctypes.memmove(to, source, size)
        return code

    def empty_like(self, t: Any, dtype: Any) -> Any:
        return torch.empty_like(t, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)

    def fetch(self, grad: Any, into: Any) -> int:
        into.fill_(float("nan"))
        self.pending[into.data_ptr()] = (into, grad.clone())
        return into.data_ptr()

    def send(self, param: Any, out: Any) -> tuple[int, int, int, int]:
        return param.data_ptr(), out.data_ptr(), out.numel() * out.element_size(), 9

    def join(self) -> None:
        self.joined += 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(_offload, "_transfers_of", lambda _: made)
    return made


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("grads", ["keep", "collect", "step"])
def test_on_a_device(device: Device, grads: str, clip: float | None, dtype: str) -> None:
    if grads == "step" and clip is not None:
        pytest.skip("nothing is clipped as gradients arrive")
    net, twin = model(getattr(torch, dtype)), model(getattr(torch, dtype))
    opt = at.Offload(net.parameters(), at.AdamW, lr=0.1, grads=grads, clip_norm=clip)
    plain = Masters(twin, lambda p: at.AdamW(p, lr=0.1))
    for t in range(3):
        twin.zero_grad()
        backward(twin, t)
        opt.zero_grad()
        backward(net, t)
        if grads == "keep" and t == 1:
            net[0].weight.grad.mul_(0.5)  # changed by hand since it was copied
            twin[0].weight.grad.mul_(0.5)
        opt.step()
        known = {} if clip is None else {"clip_norm": clip, "grad_norm": opt.last_step.grad_norm}
        plain.step(grads_of(twin), **known)
        assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert device.joined >= 3
    assert not device.pending
    assert device.said.count("send") == 3 * len(list(net.parameters()))
    assert threading.get_ident() not in device.threads
    for p, m in zip(net.parameters(), plain.masters, strict=True):
        assert torch.equal(opt.state_dict()["state"][0]["master"], plain.masters[0])
        assert opt.state[p]["master"].data_ptr() != p.data_ptr()
        assert torch.equal(opt.state[p]["master"], m)


@every_way
@every_format
def test_formats_of_states_on_a_device(device: Device, grads: str, options: dict[str, Any]) -> None:
    check_formats_of_states(grads, options)
    assert device.said.count("send") == 4 * 4


@pytest.mark.parametrize("passes", [2, None])
def test_sums_on_a_device(device: Device, passes: int | None) -> None:
    net, twin = model(), model()
    opt = at.Offload(net.parameters(), at.SGD, lr=0.01, grads="collect", accumulation_steps=passes, clip_norm=0.1)
    plain = Masters(twin, lambda p: at.SGD(p, lr=0.01))
    sums = [torch.zeros(p.shape) for p in twin.parameters()]
    for t in range(2):
        twin.zero_grad()
        backward(twin, t)
        sums = [s + g.float() for s, g in zip(sums, grads_of(twin), strict=True)]
        backward(net, t)
    opt.step()
    plain.step(sums, clip_norm=0.1, grad_norm=opt.last_step.grad_norm)
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("what", ["wait", "send", "enter"])
@pytest.mark.parametrize("grads", ["keep", "collect", "step"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_work_that_fails(device: Device, grads: str, what: str, clip: float | None) -> None:
    """The error is raised by the wait, and the next step does the remaining work: nothing is lost or done twice."""
    if grads == "step" and clip is not None:
        pytest.skip("nothing is clipped as gradients arrive")
    net, twin = model(), model()
    opt = at.Offload(net.parameters(), at.AdamW, lr=0.1, grads=grads, clip_norm=clip)
    plain = Masters(twin, lambda p: at.AdamW(p, lr=0.1))
    device.fails.add(what)
    backward(twin, 0)
    backward(net, 0)
    with pytest.raises(RuntimeError, match=r"params\[0\]: .*the device said 700"):
        opt.step()
    device.fails.clear()
    opt.step()
    known = {} if clip is None else {"clip_norm": clip, "grad_norm": opt.last_step.grad_norm}
    plain.step(grads_of(twin), **known)
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert all(float(opt.state[p]["step"]) == 1 for p in net.parameters())
    opt.zero_grad()
    backward(net, 1)
    opt.step()


# Errors.


def test_steps_without_gradients() -> None:
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    for grads in ("keep", "collect", "step"):
        opt = at.Offload(net.parameters(), at.AdamW, grads=grads)
        opt.step()
        opt.step()
        assert all(map(torch.equal, net.parameters(), before))
        opt.close()
    w, v = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    opt = at.Offload([w, v], at.SGD, lr=1.0, grads="collect")
    w.sum().backward()
    opt.step()
    assert (w.tolist(), v.tolist()) == ([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("grads", ["collect", "step"])
def test_a_second_backward_pass(grads: str) -> None:
    net = model()
    opt = at.Offload(net.parameters(), at.AdamW, grads=grads)
    backward(net, 0)
    with pytest.raises(RuntimeError, match=r"gradient number \d since the last step, and accumulation_steps is 1"):
        backward(net, 1)
    if grads == "step":
        with pytest.raises(RuntimeError, match="have been stepped as their gradients arrived"):
            opt.zero_grad()
        net.zero_grad()
        opt.step()
    else:
        opt.zero_grad()
    backward(net, 2)
    opt.step()


@pytest.mark.parametrize("grads", ["collect", "step"])
def test_gradients_set_by_hand(grads: str) -> None:
    net = model()
    opt = at.Offload(net.parameters(), at.SGD, lr=0.5, grads=grads)
    p = net[0].bias
    start = p.detach().clone()
    p.grad = torch.ones_like(p)
    opt.step()
    assert torch.equal(p, start - 0.5)
    p.grad = None
    backward(net, 0)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"params\[1\]: a gradient was set by hand, and one was taken"):
        opt.step()
    p.grad = None
    opt.step()


def test_options_changed_after_the_backward_pass() -> None:
    net = model()
    opt = at.Offload(net.parameters(), at.SGD, lr=0.5, grads="step")
    backward(net, 0)
    opt.param_groups[0]["lr"] = 0.1
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]: options have changed between"):
        opt.step()
    backward(net, 1)
    opt.step()
    opt.param_groups[0]["clip_norm"] = 1.0
    with pytest.raises(ValueError, match="clip_norm: grads='step' takes gradients one by one"):
        backward(net, 2)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "class": (lambda p: at.Offload(p, torch.optim.AdamW), TypeError, "cls: .*expected a class of adaptk.torch"),
    "Muon": (lambda p: at.Offload(p, at.Muon), TypeError, "other than Muon"),
    "grads": (lambda p: at.Offload(p, at.AdamW, grads="all"), ValueError, "grads: 'all', expected one of 'keep'"),
    "passes": (lambda p: at.Offload(p, at.AdamW, accumulation_steps=0), ValueError, "accumulation_steps: 0"),
    "no int": (lambda p: at.Offload(p, at.AdamW, accumulation_steps=1.5), TypeError, "accumulation_steps: expected"),
    "when": (
        lambda p: at.Offload(p, at.AdamW, grads="step", accumulation_steps=None),
        ValueError,
        "has to know when a gradient is whole",
    ),
    "clip": (lambda p: at.Offload(p, at.AdamW, grads="step", clip_norm=1.0), ValueError, "clip_norm: grads='step'"),
    "option": (lambda p: at.Offload(p, at.AdamW, weight_decoy=1.0), TypeError, "weight_decay"),
    "threads": (lambda p: at.Offload(p, at.AdamW, threads=0), ValueError, "threads: 0, expected a number in"),
    "no number": (lambda p: at.Offload(p, at.AdamW, threads="2"), TypeError, "threads: expected an int, got str"),
    "complex": (
        lambda p: at.Offload([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], at.AdamW),
        TypeError,
        r"params\[0\]: torch.complex64",
    ),
    "gaps": (
        lambda p: at.Offload([torch.nn.Parameter(torch.ones(4, 4)[:, ::2])], at.AdamW),
        TypeError,
        r"params\[0\]: strides .* leave gaps",
    ),
    "no params": (lambda p: at.Offload([], at.AdamW), ValueError, "empty parameter list"),
    "all": (lambda p: at.Offload(p, at.Prodigy), TypeError, "cls: Prodigy, whose step of each param depends on"),
    "twice": (lambda p: at.Offload([{"params": p}, {"params": p}], at.AdamW), ValueError, "more than one parameter"),
    "pickle": (lambda p: copy.deepcopy(at.Offload(p, at.AdamW)), TypeError, "not copied or pickled"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_errors(kind: str) -> None:
    act, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        act(list(model().parameters()))


def test_a_gradient_that_does_not_fit() -> None:
    w = torch.nn.Parameter(torch.ones(4))
    opt = at.Offload([w], at.SGD, lr=1.0)
    w.grad = torch.ones(4).to_sparse()
    with pytest.raises(TypeError, match=r"gradient of params\[0\]: layout torch.sparse_coo"):
        opt.step()
    w.grad = w.data
    with pytest.raises(ValueError, match="overlaps the param"):
        opt.step()
    assert w.tolist() == [1.0] * 4
    w.grad = torch.ones(4)
    opt.step()
    assert w.tolist() == [0.0] * 4


def test_groups_that_are_added() -> None:
    net = model()
    first, *rest = net.parameters()
    opt = at.Offload([first], at.SGD, lr=0.0, grads="step")
    with pytest.raises(ValueError, match="lr"):
        opt.add_param_group({"params": rest, "lr": -1.0})
    assert len(opt.param_groups) == len(opt._inner.param_groups) == 1
    opt.add_param_group({"params": rest, "lr": 0.5})
    before = [p.detach().clone() for p in net.parameters()]
    backward(net, 0)
    opt.step()
    assert [torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)] == [True, False, False, False]


def test_closing() -> None:
    net = model()
    opt = at.Offload(net.parameters(), at.SGD, lr=0.5, grads="step")
    backward(net, 0)
    opt.close()
    opt.close()
    net.zero_grad()
    backward(net, 1)
    assert net[0].weight.grad is not None
    with pytest.raises(RuntimeError, match="has been closed"):
        opt.step()


@pytest.mark.parametrize("grads", ["keep", "step"])
def test_it_is_freed(grads: str) -> None:
    net = model()
    opt = at.Offload(net.parameters(), at.SGD, lr=0.5, grads=grads)
    backward(net, 0)
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None
    net.zero_grad()
    backward(net, 1)
    assert net[0].weight.grad is not None


def test_bits_do_not_depend_on_threads() -> None:
    results = []
    for threads in (1, 3):
        w = torch.nn.Parameter(torch.linspace(-1, 1, 200_003).to(torch.bfloat16))
        opt = at.Offload([w], at.AdamW, lr=0.1, clip_norm=0.5, threads=threads)
        assert opt._tasks().threads == threads
        for t in range(2):
            w.grad = torch.linspace(-2, 3 + t, w.numel()).to(torch.bfloat16)
            opt.step()
        results.append((w.detach().clone(), opt.last_step.grad_norm))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_threads_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = _offload.threads_of_rank
    monkeypatch.setattr(_offload, "allowed_cores", lambda: 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert threads({}) == threads({"LOCAL_WORLD_SIZE": "1"}) == adaptk.get_num_threads()
        assert threads({"LOCAL_WORLD_SIZE": "4"}) == 3
        assert threads({"LOCAL_WORLD_SIZE": "100"}) == 1
        assert threads({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "5"}) == 5
        assert threads({"LOCAL_WORLD_SIZE": "4", "ADAPTK_NUM_THREADS": "2"}) == adaptk.get_num_threads()
    with pytest.warns(UserWarning, match=r"OMP_NUM_THREADS=1 is what launchers .* Offload takes 3 threads"):
        assert threads({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}) == 3
