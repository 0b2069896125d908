"""Changes of params, gradients and states between the steps of adaptk.torch; layouts and dtypes."""

from __future__ import annotations

import copy
import gc
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import adaptk
import numpy as np
import pytest
from torch_cases import (
    Case,
    Tensor,
    _seeded,  # noqa: F401
    all_close,
    at,
    close,
    every_class,
    give,
    in_another_process,
    params,
    raw,
    same_bits,
    states_close,
    torch,
    twins,
)


class Calls:
    """Counts the native steps of an optimizer and their calls of Python functions."""

    def __init__(self, optimizer: Any) -> None:
        self.count = dict.fromkeys(("step", "_bind", "_fit", "_stand_in", "_copy_back"), 0)
        for name in self.count:
            if name != "step":
                setattr(optimizer, name, self.counted(name, getattr(optimizer, name)))
        optimizer._plan = adaptk._core.TorchPlan(Tensor, torch.nn.Parameter, at._private.face())
        plan = optimizer._plan

        class Counting:
            step = staticmethod(self.counted("step", plan.step))

        optimizer._plan = Counting()

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.count[name] += 1
            return function(*args)

        return call

    def since(self) -> dict[str, int]:
        """The calls since the last query."""
        found = {k: v for k, v in self.count.items() if v}
        self.count = dict.fromkeys(self.count, 0)
        return found


# What may change between steps


@every_class
def test_one_native_call_a_step(case: Case) -> None:
    p = params(shapes=[(3, 4), (5,), (2, 2)])
    opt = case.ours(p)
    calls = Calls(opt)
    give([p], 0)
    opt.step()
    assert calls.since() == {"step": 1, "_bind": 3}
    for t in range(1, 4):
        give([p], t, but=[t % 3])
        opt.step()
        assert calls.since() == {"step": 1}
    opt.param_groups[0]["lr"] = 0.5
    with torch.no_grad():
        for x in p:
            x.data = x.data.clone()
    give([p], 5)
    opt.step(clip_norm=1.0, skip_nonfinite=True)
    assert calls.since() == {"step": 1}


@every_class
def test_changes_of_params_and_states_between_steps(case: Case) -> None:
    """Applies each event to both optimizers in turn; torch reads everything again at each step."""
    a = params("float64", [(3, 4), (5,), ()])
    b = twins(a)
    ours, torchs = case.ours(a, lr=0.05), case.torchs(b, lr=0.05)

    def each(change: Callable[[Any, list[Any]], None]) -> Callable[[], None]:
        return lambda: [change(o, p) for o, p in ((ours, a), (torchs, b))] and None

    def move(o: Any, p: list[Any]) -> None:
        for x in p:
            x.data = x.data.clone()

    def turn(o: Any, p: list[Any]) -> None:
        p[0].data = p[0].data.t().contiguous().t()

    def stretch(o: Any, p: list[Any]) -> None:
        wide = torch.zeros(10, dtype=p[1].dtype)
        wide[::2] = p[1].data
        p[1].data = wide[::2]

    def replace_states(o: Any, p: list[Any]) -> None:
        for state in o.state.values():
            for name, value in state.items():
                state[name] = value.clone() if isinstance(value, Tensor) else value

    def fill_states(o: Any, p: list[Any]) -> None:
        for state in o.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and name != "step":
                    state[name] = torch.full_like(value, 0.5)

    def move_states(o: Any, p: list[Any]) -> None:
        for state in o.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.data = value.data.clone()

    def forget_one(o: Any, p: list[Any]) -> None:
        o.state.pop(p[1], None)

    def clear(o: Any, p: list[Any]) -> None:
        o.state.clear()
        if case.name == "Adagrad":  # torch creates its states in the constructor, so that a new param would have none
            return

    def reorder(o: Any, p: list[Any]) -> None:
        o.param_groups[0]["params"].reverse()

    def load(o: Any, p: list[Any]) -> None:
        o.load_state_dict(copy.deepcopy(o.state_dict()))

    def set_step(o: Any, p: list[Any]) -> None:
        for state in o.state.values():
            if "step" in state:
                state["step"] = torch.tensor(7.0)

    def remove(o: Any, p: list[Any]) -> None:
        o.param_groups[0]["params"] = [x for x in o.param_groups[0]["params"] if x is not p[2]]

    def append(o: Any, p: list[Any]) -> None:
        o.param_groups[0]["params"].append(p[2])

    def new_state(o: Any, p: list[Any]) -> None:
        old = o.state
        o.state = type(old)(dict)
        o.state.update({k: dict(v) for k, v in old.items()})

    events = (move, turn, stretch, replace_states, fill_states, move_states, forget_one, reorder, load)
    more = (set_step, remove, append, new_state, clear)
    for t, event in enumerate([*events, *more, move, load]):
        for s in range(2):
            give([a, b], 10 * t + s, but=[s] if t % 3 == 0 else [])
            ours.step()
            torchs.step()
            all_close(a, b)
        each(event)()


def test_another_dtype() -> None:
    """After double() the states follow; torch refuses to mix them."""
    model = torch.nn.Linear(3, 2)
    opt = at.Adam(model.parameters(), lr=0.1)
    give([list(model.parameters())], 0)
    opt.step()
    model.double()
    wide = copy.deepcopy(opt)
    for state in wide.state.values():
        state.update({k: v.double() for k, v in state.items() if k != "step"})
    reference = torch.optim.Adam(wide.param_groups[0]["params"], lr=0.1)
    reference.state = wide.state
    other = wide.param_groups[0]["params"]
    for t in range(3):
        give([list(model.parameters()), other], t)
        opt.step()
        reference.step()
    all_close(list(model.parameters()), other)
    assert opt.state[model.weight]["exp_avg"].dtype == torch.float64
    model.to(torch.bfloat16)
    opt.zero_grad()
    give([list(model.parameters())], 7)
    opt.step()
    assert opt.state[model.weight]["exp_avg"].dtype == torch.float32


def test_complex_params_that_change_their_dtype() -> None:
    p = params("complex64", [(3,)])[0]
    opt = at.Adam([p], lr=0.1)
    give([[p]], 0)
    opt.step()
    p.data = p.data.to(torch.complex128)
    give([[p]], 1)
    opt.step()
    assert opt.state[p]["exp_avg"].dtype == torch.complex128
    p.data = p.data.real.clone().float()
    opt.state.clear()
    p.grad = torch.ones(3)
    opt.step()
    assert opt.state[p]["exp_avg"].dtype == torch.float32
    assert float(opt.state[p]["step"]) == 1


def test_many_dtypes_in_one_optimizer() -> None:
    names = ["float32", "float64", "bfloat16", "float16", "complex64", "complex128"]
    mixed = [params(name, [(4, 3)])[0] for name in names]
    alone = twins(mixed)
    one = at.AdamW(mixed, lr=0.1)
    several = [at.AdamW([p], lr=0.1) for p in alone]
    # A param in 16 bits is the one in float32, rounded after each step.
    wide = [mixed[i].detach().float().requires_grad_() for i in (2, 3)]
    torchs = torch.optim.AdamW(wide, lr=0.1, foreach=False)
    for t in range(5):
        give([mixed, alone], t)
        for p, q in zip(wide, (mixed[2], mixed[3]), strict=True):
            p.grad = q.grad.float()
        one.step()
        torchs.step()
        for o in several:
            o.step()
        with torch.no_grad():
            for p, dtype in zip(wide, (torch.bfloat16, torch.float16), strict=True):
                p.copy_(p.to(dtype))
    assert same_bits(mixed, alone)
    for p, q in zip(wide, (mixed[2], mixed[3]), strict=True):
        assert q.dtype in (torch.bfloat16, torch.float16)
        torch.testing.assert_close(q.detach().float(), p.detach(), rtol=2 * torch.finfo(q.dtype).eps, atol=0)
        close(one.state[q]["exp_avg_sq"], torchs.state[p]["exp_avg_sq"])


def layouts() -> dict[str, Callable[[], Any]]:
    def gaps() -> Any:
        return torch.randn(4, 12)[:, ::2]

    return {
        "transposed": lambda: torch.randn(6, 4).t(),
        "channels_last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "permuted": lambda: torch.randn(3, 4, 5).permute(1, 2, 0),
        "gaps": gaps,
        "gaps-transposed": lambda: gaps().t(),
        "row-of-a-matrix": lambda: torch.randn(5, 6)[2],
        "column-of-a-matrix": lambda: torch.randn(5, 6)[:, 2],
        "real-parts": lambda: torch.randn(5, dtype=torch.complex64).real,
        "negative": lambda: torch.randn(5, dtype=torch.complex64).conj().imag,
        "one-negative": lambda: torch.randn(1, dtype=torch.complex64).conj().imag,
        "conjugate": lambda: torch.randn(5, dtype=torch.complex64).conj(),
        "complex-gaps": lambda: torch.randn(8, dtype=torch.complex64)[::2],
        "sizes-of-one": lambda: torch.randn(3, 1, 4, 1).transpose(1, 2),
        "scalar": lambda: torch.randn(()),
    }


@pytest.mark.parametrize("layout", layouts())
@every_class
def test_layouts_of_params(case: Case, layout: str) -> None:
    a = [layouts()[layout]()]
    b = [a[0].detach().clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()]
    before = a[0].stride(), a[0].data_ptr()
    if case.name == "SGD":
        case = Case("SGD", {"momentum": 0.9})
    ours, torchs = case.ours(a), case.torchs(b)
    for t in range(4):
        give([a, b], t)
        ours.step()
        torchs.step()
        all_close(a, b)
    assert (a[0].stride(), a[0].data_ptr()) == before


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", ["SGD", "Adam", "Rprop"])
def test_layouts_of_gradients(name: str, layout: str) -> None:
    grads = [layouts()[layout]() for _ in range(3)]
    a = [torch.randn(grads[0].shape, dtype=grads[0].dtype)]
    b = twins(a)
    ours, torchs = Case(name, {}).ours(a), Case(name, {}).torchs(b)
    for g in grads:
        a[0].grad = g
        b[0].grad = g.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
        ours.step()
        torchs.step()
        all_close(a, b)


def test_expanded_gradients() -> None:
    a = params(shapes=[(4, 3)])
    b = twins(a)
    ours, torchs = at.Adam(a), torch.optim.Adam(b, foreach=False)
    for grad in (torch.tensor(2.0).expand(4, 3), torch.randn(3).expand(4, 3), torch.randn(4, 1).expand(4, 3)):
        a[0].grad = b[0].grad = grad
        ours.step()
        torchs.step()
    all_close(a, b)


def test_states_of_another_layout() -> None:
    a = params(shapes=[(4, 3)])
    b = twins(a)
    ours, torchs = at.Adam(a), torch.optim.Adam(b, foreach=False)
    for t in range(4):
        give([a, b], t)
        ours.step()
        torchs.step()
        for o in (ours, torchs):
            state = next(iter(o.state.values()))
            state["exp_avg"] = state["exp_avg"].t().contiguous().t()
    all_close(a, b)
    states_close(ours, a, torchs, b)


def test_nothing_to_do() -> None:
    p = params(shapes=[(0,), (2, 0), ()])
    opt = at.Adam(p)
    opt.step()
    assert not opt.state
    assert opt.last_step.skipped is False
    give([p], 0, but=[2])
    opt.step(clip_norm=1.0)
    assert opt.last_step.grad_norm == 0.0
    assert [float(opt.state[x]["step"]) for x in p[:2]] == [1, 1]


def test_thousands_of_params() -> None:
    a = params(shapes=[(n % 5 + 1,) for n in range(3000)])
    b = twins(a)
    ours, torchs = at.AdamW(a), torch.optim.AdamW(b, foreach=True)
    for t in range(3):
        give([a, b], t, but=range(t, 3000, 7))
        ours.step()
        torchs.step()
    all_close(a, b)


class EveryCall(torch.overrides.TorchFunctionMode):
    """Counts calls of Python and extension functions, and tensor operations, including comparisons."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))

    def of(self, work: Callable[[], Any]) -> int:
        def see(frame: Any, event: str, arg: Any) -> None:
            self.count += event in ("call", "c_call")

        self.count = 0
        gc.disable()
        sys.setprofile(see)
        try:
            with self:
                work()
        finally:
            sys.setprofile(None)
            gc.enable()
        return self.count


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_work_is_linear_in_the_number_of_params(name: str) -> None:
    """The first step, saving, loading and the next step: the number of calls is linear in the number of params."""
    options = {"momentum": 0.9} if name == "SGD" else {}

    def counts(n: int, of: Callable[[Callable[[], Any]], Any]) -> list[Any]:
        a = params(shapes=[(3,)] * n)
        b = twins(a)
        give([a, b], 0)
        ours, other = (getattr(at, name)(p, lr=0.1, **options) for p in (a, b))
        saved: dict[str, Any] = {}
        phases: list[Callable[[], Any]] = [
            ours.step,
            lambda: saved.update(ours.state_dict()),
            lambda: other.load_state_dict(saved),
            other.step,
            other.step,
        ]
        return [of(phase) for phase in phases]

    counts(3, lambda phase: phase())  # one-time imports and caches
    few, more, most = (counts(n, EveryCall().of) for n in (20, 40, 80))
    for phase, (x, y, z) in enumerate(zip(few, more, most, strict=True)):
        assert z - y == 2 * (y - x), phase


def test_the_same_bits_with_any_number_of_threads(restored: None) -> None:
    results = []
    for threads in (1, 4):
        adaptk.set_num_threads(threads)
        torch.manual_seed(3)
        p = params(shapes=[(301, 201), (17,)])
        opt = at.Adam(p, lr=0.1)
        for t in range(2):
            give([p], t)
            opt.step(clip_norm=1.0)
        results.append([raw(x) for x in p])
    assert results[0] == results[1]


@pytest.fixture
def many() -> list[Any]:
    return params(shapes=[(2,)] * 50)


def test_param_lists_that_change(many: list[Any]) -> None:
    b = twins(many)
    ours, torchs = at.Adam(many), torch.optim.Adam(b, foreach=False)
    generator = np.random.default_rng(0)
    for t in range(30):
        chosen = sorted(generator.choice(50, size=int(generator.integers(1, 50)), replace=False))
        order = list(generator.permutation(chosen))
        for o, p in ((ours, many), (torchs, b)):
            o.param_groups[0]["params"] = [p[i] for i in order]
        give([many, b], t, but=order[::4])
        ours.step()
        torchs.step()
    all_close(many, b)
    states_close(ours, many, torchs, b)


def test_subclasses_of_tensors() -> None:
    class Mine(Tensor):
        pass

    p = torch.randn(4).as_subclass(Mine)
    q = torch.randn(3)
    a = twins([p, q])
    ours, torchs = at.Adam([p, q]), torch.optim.Adam(a, foreach=False)
    for _ in range(3):
        g = torch.randn(4), torch.randn(3)
        p.grad, a[0].grad = g[0].as_subclass(Mine), g[0].clone()
        q.grad, a[1].grad = g[1].as_subclass(Mine), g[1].clone()
        ours.step()
        torchs.step()
    close(p.as_subclass(Tensor), a[0].as_subclass(Tensor))
    close(q, a[1])


class Halves(Tensor):
    """A wrapper like quantized weights: two tensors whose sum is its value, and copy_ in both directions."""

    refused: ClassVar[set[str]] = set()

    @staticmethod
    def __new__(cls, numbers: Any) -> Any:
        made = Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=numbers.dtype)
        made.parts = [numbers.detach() / 2, numbers.detach() / 2]
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in cls.refused:
            raise NotImplementedError(f"no {name}")
        if name in ("detach", "clone"):
            return Halves(sum(args[0].parts))
        if name == "copy_":
            target, source = args[:2]
            numbers = sum(source.parts) if isinstance(source, Halves) else source
            if not isinstance(target, Halves):
                return target.copy_(numbers)
            target.parts[0].copy_(numbers / 2)
            target.parts[1].copy_(numbers / 2)
            return target
        if name == "zero_":
            args[0].parts = [p.zero_() for p in args[0].parts]
            return args[0]
        raise NotImplementedError(f"no {name}")

    __torch_function__ = torch._C._disabled_torch_function_impl


@pytest.mark.parametrize("name", ["Adam", "SGD", "Lion", "ASGD"])
def test_wrapper_subclasses(name: str) -> None:
    values = torch.randn(4, 3), torch.randn(3), torch.empty(0), torch.randn(5)
    a = [Halves(v) for v in values[:3]] + [values[3].clone()]
    b = twins(values)
    ours, plain = getattr(at, name)(a, lr=0.25), getattr(at, name)(b, lr=0.25)
    means = [torch.zeros(4, 3), None, None, None]
    for t in range(3):
        give([b], t)
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            p.grad = None
            if i != 1 or t != 1:
                p.grad = q.grad.clone() if i == t else Halves(q.grad)
            else:
                q.grad = None
        ours.step(clip_norm=1.0, zero_grad=t == 2, ema=(means, 0.5))
        plain.step(clip_norm=1.0)
    assert ours.last_step == plain.last_step
    assert same_bits([sum(p.parts) for p in a[:3]] + a[3:], b)
    assert all(type(s) is Tensor for of in ours.state.values() for s in of.values())
    assert not sum(a[0].grad.parts).any()
    assert means[0].any()
    saved = ours.state_dict()
    again = getattr(at, name)(a, lr=0.25)
    again.load_state_dict(saved)
    again.step()


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (
            "copy_",
            r"^params\[0\]: a Halves, which has no memory of its own, and a plain tensor cannot copy_\(\) from it",
        ),
        ("clone", r"^params\[0\]: a Halves, which has no memory of its own and cannot copy_\(\) from a plain tensor"),
    ],
)
def test_wrappers_without_copy(monkeypatch: pytest.MonkeyPatch, refused: str, said: str) -> None:
    p, plain = Halves(torch.ones(2)), torch.ones(2)
    p.grad = plain.grad = torch.ones(2)
    opt = at.Adam([p])
    monkeypatch.setattr(Halves, "refused", {refused})
    with pytest.raises(TypeError, match=said):
        opt.step()
    assert not opt.state
    assert (sum(p.parts) == 1.0).all()
    if refused == "copy_":
        other = at.Adam([plain])
        plain.grad = Halves(torch.ones(2))
        with pytest.raises(TypeError, match=r"^gradient of params\[0\]: a Halves, which has no memory of its own"):
            other.step()
        assert (plain == 1.0).all()
        assert not other.state


def test_optimizers_that_refuse_wrappers() -> None:
    p = Halves(torch.ones(2, 3))
    p.grad = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"^params\[0\]: a Halves, and state_dtype='8bit' is for dense tensors"):
        at.Adam([p], state_dtype="8bit", min_8bit_size=0).step()
    with pytest.raises(TypeError, match=r"^params\[0\]: a Halves, which has no memory of its own; Muon takes none"):
        at.Muon([p]).step()
    with pytest.raises(TypeError, match=r"a Halves, which has no memory of its own; Offload takes plain tensors"):
        at.Offload([p], at.Adam)


def test_wrapped_gradients_of_muon_and_offload() -> None:
    for make in (at.Muon, lambda several, **options: at.Offload(several, at.Adam, **options)):
        a = params(shapes=[(4, 3), (3,)])
        b = twins(a)
        ours, plain = make(a, lr=0.1), make(b, lr=0.1)
        give([b], 0)
        for p, q in zip(a, b, strict=True):
            p.grad = Halves(q.grad)
        ours.step()
        plain.step()
        assert same_bits(a, b)


def test_gradients_of_collectives_under_way() -> None:
    collectives = pytest.importorskip(
        "torch.distributed._functional_collectives", reason="this PyTorch has no functional collectives"
    )
    a = params()
    b = twins(a)
    ours, plain = at.AdamW(a, lr=0.1), at.AdamW(b, lr=0.1)
    for t in range(2):
        give([b], t)
        for p, q in zip(a, b, strict=True):
            p.grad = collectives.AsyncCollectiveTensor(q.grad.clone())
        ours.step(clip_norm=1.0)
        plain.step(clip_norm=1.0)
        assert same_bits(a, b)


@pytest.mark.full
def test_torchaos_float8_weights() -> None:
    """The wrapper of weights for float8 training with FSDP2, which all-gathers in float8."""
    utils = pytest.importorskip("torchao.float8.fsdp_utils", reason="torchao is not installed")
    config = pytest.importorskip("torchao.float8.config")
    mm = pytest.importorskip("torchao.float8.float8_training_tensor").LinearMMConfig()
    value = torch.randn(16, 32)
    dtype = config.e4m3_dtype
    weight = torch.nn.Parameter(utils.WeightWithDynamicFloat8CastTensor(value.clone(), mm, dtype))
    plain = torch.nn.Parameter(value.clone())
    ours, other = at.AdamW([weight], lr=0.1), at.AdamW([plain], lr=0.1)
    for t in range(3):
        give([[plain]], t)
        weight.grad = plain.grad.clone()
        ours.step()
        other.step()
    assert same_bits([weight._tensor], [plain])


@pytest.mark.full
def test_sharded_params_of_one_process() -> None:
    if importlib.util.find_spec("torch.distributed.tensor") is None:
        pytest.skip("this PyTorch has no distributed tensors")
    in_another_process(
        """
import os, torch, adaptk.torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
if not dist.is_available() or not dist.is_gloo_available():
    raise SystemExit(0)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
torch.manual_seed(0)
a = [torch.randn(6, 4), torch.randn(5)]
b = [x.clone().requires_grad_() for x in a]
sharded = [torch.nn.Parameter(distribute_tensor(x, mesh, [Shard(0)])) for x in a]
ours, torchs = adaptk.torch.AdamW(sharded, lr=0.1), torch.optim.AdamW(b, lr=0.1, foreach=False)
for t in range(4):
    for p, q in zip(sharded, b):
        g = torch.randn(q.shape)
        q.grad = g.clone()
        p.grad = distribute_tensor(g, mesh, [Shard(0) if t % 2 else Replicate()])
    ours.step(clip_norm=1e9 if t == 2 else None)
    torchs.step()
assert isinstance(ours.state[sharded[0]]["exp_avg"], DTensor)
for p, q in zip(sharded, b):
    torch.testing.assert_close(p.full_tensor(), q, rtol=2e-6, atol=1e-7)
dist.destroy_process_group()
"""
    )


def test_tensors_without_data() -> None:
    p = torch.nn.Parameter(torch.ones(3, device="meta"))
    p.grad = torch.ones(3, device="meta")
    opt = at.AdamW([p])
    with pytest.raises(TypeError, match=r"^params\[0\]: on the device meta, which holds no numbers to step"):
        opt.step()
    assert not opt.state
    fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")
    with fake_tensor.FakeTensorMode():
        q = torch.nn.Parameter(torch.ones(3))
        q.grad = torch.ones(3)
        fake = at.SGD([q], lr=0.1)
        with pytest.raises(TypeError, match=r"^params\[0\]: a fake tensor, which holds no numbers to step"):
            fake.step()
