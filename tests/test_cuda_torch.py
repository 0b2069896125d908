"""The native step of `adaptk.torch` on a device against the CPU, with arrays in place of tensors."""

from __future__ import annotations

import copy
from typing import Any

import adaptk
import device_arrays
import numpy as np
import pytest
from adaptk import _core
from run_time_compiler import cache as cache
from run_time_compiler import needs_nvrtc
from sparse_cases import gradient

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

pytestmark = pytest.mark.cuda

Array = np.ndarray[Any, Any]
SIZES = [(3,), (), (64, 5), (0,), (1000,), (7, 1)]


class Tensor(device_arrays.Exchange):
    """An array on the device with the attributes of tensors that a step uses."""

    grad: Any = None
    is_sparse = False

    def item(self) -> float:
        return float(self.host())


class SparseGrad:
    """A sparse gradient."""

    is_sparse = True

    def __init__(self, indices: Tensor, values: Tensor) -> None:
        self.pair = indices, values


def from_numpy(array: Array) -> Any:
    """torch does not know ml_dtypes."""
    if array.dtype == np.float32:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)


class Owner:
    """The methods of `adaptk.torch`'s classes that the native step calls, for dense tensors."""

    def __init__(
        self, rule: str, put: Any, numbers: dict[str, Any], device_counts: bool = False, state_dtype: str | None = None
    ) -> None:
        self.rule = adaptk.rules()[rule]
        self.state_dtype = state_dtype
        self.put = put
        self.numbers = numbers
        self.device_counts = device_counts
        self.state: dict[Any, dict[str, Any]] = {}
        self.plan = _core.TorchPlan(Tensor if put is not from_numpy else torch.Tensor, torch.nn.Parameter, {})
        self.counted: list[int] = []
        self.fresh = False

    def _check_storage(self, tensor: Any, where: str) -> None:
        """The stand-ins for tensors have no storage that could be freed."""

    def _bind(self, p: Any, group: Any, name: str, where: str, undo: list[Any]) -> Any:
        assert name == self.rule.key
        if p not in self.state:
            shape = p.shape
            self.state[p] = {n: copy.copy(make()) for n, make in self.numbers.items()}
            for s in self.rule.states:
                value = s.initial if s.initial_from is None else group.get(s.initial_from)
                if s.initial_from == "param":
                    value = p.host() if isinstance(p, Tensor) else p.numpy()
                dtype = ml_dtypes.bfloat16 if self._stored(s) else np.float32
                self.state[p][s.name] = self.put(np.full(s.shape_beside(tuple(shape)), value, dtype))
        state = self.state[p]
        arrays = [
            (state[s.name], None, self.state_dtype) if self._stored(s) else state[s.name] for s in self.rule.states
        ]
        return state, (p, *arrays), tuple(state[n] for n in self.numbers), False, self.fresh, False

    def _stored(self, state: Any) -> bool:
        """One number per row is always float32."""
        return self.state_dtype is not None and state.per == "element"

    def _fit(self, p: Any, grad: Any, where: str) -> Any:
        return grad

    def _rows_of(self, p: Any, grad: Any, where: str, odd: bool) -> tuple[Any, Any]:
        return grad.pair if isinstance(grad, SparseGrad) else (grad._indices()[0].contiguous(), grad._values())

    def _count(self, steps: list[Any], by: int) -> None:
        self.counted.append(by)
        for step in steps:
            step.write(step.host() + np.float32(by))

    def _is_plain(self, p: Any) -> bool:
        return True

    def step(self, params: list[Any], values: dict[str, Any], **options: Any) -> Any:
        groups = [{"params": params, **values}]
        given = {"grad_scale": 1.0, "clip_norm": None, "skip_nonfinite": False, "undo": [], **options}
        done = self.plan.step(self, groups, [(self.rule.key, values)], self.state, **given)
        assert done[3:] == ([], [])  # nothing is left to PyTorch
        return done[:3]


def host_number(value: float) -> Any:
    return lambda: torch.tensor(value)


def device_number(value: float) -> Any:
    return lambda: Tensor.put(np.float32(value).reshape(()))


class Pair:
    """The same params on the device and, as tensors of PyTorch, on the CPU."""

    def __init__(
        self, rule: str, numbers: dict[str, float], device_counts: bool = False, state_dtype: str | None = None
    ) -> None:
        self.rng = np.random.default_rng(5)
        start = [np.asarray(self.rng.normal(size=s), np.float32) for s in SIZES]
        self.device = [Tensor.put(a) for a in start]
        self.host = [torch.from_numpy(a.copy()) for a in start]
        on_device = {n: (device_number if device_counts else host_number)(v) for n, v in numbers.items()}
        on_host = {n: host_number(v) for n, v in numbers.items()}
        self.on_device = Owner(rule, Tensor.put, on_device, device_counts, state_dtype)
        self.on_host = Owner(rule, from_numpy, on_host, state_dtype=state_dtype)

    def set_grads(self, absent: int | None = None, bad: bool = False) -> None:
        for i, (d, h) in enumerate(zip(self.device, self.host, strict=True)):
            g = np.asarray(self.rng.normal(size=h.shape), np.float32)
            if bad and i == 4:
                g[17] = np.inf
            d.grad = None if i == absent else Tensor.put(g)
            h.grad = None if i == absent else torch.from_numpy(g.copy())

    def check(self) -> None:
        for d, h in zip(self.device, self.host, strict=True):
            device_arrays.assert_equal(d.host(), h.detach().numpy())
            of_d, of_h = self.on_device.state.get(d), self.on_host.state.get(h)
            assert (of_d is None) == (of_h is None)
            for name, x in (of_d or {}).items():
                got = x.host() if isinstance(x, Tensor) else x.numpy()
                device_arrays.assert_equal(np.asarray(got, np.float32), of_h[name].float().numpy(), name)


COUNTED = {"nadam": {"step": 0.0, "mu_product": 1.0}, "asgd": {"step": 0.0, "eta": 1e-2, "mu": 1.0}, "sgd": {}}


@pytest.mark.parametrize("rule", ["adam", "sgd", "nadam", "asgd", "rprop", "delta_bar_delta"])
def test_steps(rule: str) -> None:
    pair = Pair(rule, COUNTED.get(rule, {"step": 0.0}))
    for t in range(4):
        pair.set_grads(absent=2 if t == 1 else None)
        values = {"lr": 0.01 / (1 + t), "weight_decay": 0.1 * (t % 2)}
        assert len(pair.on_device.step(pair.device, values)[0]) == len(SIZES) - (t == 1)
        pair.on_host.step(pair.host, values)
        pair.check()


# Over tensors, rows, columns and all params, with carried numbers; states with one number for each.
REDUCED = ["lamb", "novograd", "adam_mini_tensor", "sm3_momentum", "prodigy", "dowg"]


def carried(rule: str) -> dict[str, float]:
    return {n: adaptk.rules()[rule].defaults()[n] for n in adaptk.rules()[rule].carried}


@needs_nvrtc
@pytest.mark.parametrize("rule", REDUCED)
def test_reductions(rule: str) -> None:
    pair, of = Pair(rule, {"step": 0.0}), adaptk.rules()[rule]
    values = {"lr": 0.01, "weight_decay": 0.1, **carried(rule)}
    for t in range(3):
        pair.set_grads(absent=2 if t == 1 else None)
        options = {"clip_norm": 0.5} if t == 2 else {}
        pair.on_device.step(pair.device, values, **options)
        pair.on_host.step(pair.host, values, **options)
        pair.check()
        if not of.carried:
            continue
        measured = pair.on_device.plan.measured(of.key)
        assert measured == pair.on_host.plan.measured(of.key)
        assert any(measured)
        values.update(
            _core.next_carried(of.key, [float(x) for x in {**of.defaults(), **values}.values()], t + 1, measured)
        )


@needs_nvrtc
@pytest.mark.parametrize("rule", ["lamb", "novograd", "sm3"])
def test_reductions_if_the_device_counts(rule: str, machine: device_arrays.Machine) -> None:
    """The first step compiles and allocates memory, so that the others may be captured."""
    pair = Pair(rule, {"step": 0.0}, device_counts=True)
    for t in range(3):
        pair.set_grads()
        machine.calls.is_capturing = t > 0
        pair.on_device.step(pair.device, {"lr": 0.01})
        machine.calls.is_capturing = False
        pair.on_host.step(pair.host, {"lr": 0.01})
        pair.check()


def step_by_rows(pair: Pair, steps: int) -> None:
    """With sparse and dense gradients, and indices on the device."""
    for t in range(steps):
        pair.set_grads()
        for i, absent in ((2, False), (4, t == 1)):
            shape = SIZES[i]
            indices, values = gradient(shape[0], shape[1:], 0 if absent else 90, t)
            pair.device[i].grad = SparseGrad(Tensor.put(indices), Tensor.put(values))
            pair.host[i].grad = torch.sparse_coo_tensor(indices[None], values, shape, check_invariants=True)
        options = {"clip_norm": 0.5} if t == 2 else {}
        pair.on_device.step(pair.device, {"lr": 0.01}, **options)
        pair.on_host.step(pair.host, {"lr": 0.01}, **options)
        pair.check()


@pytest.mark.parametrize("device_counts", [False, True])
@pytest.mark.parametrize("rule", ["adam", "sgd", "rprop", "rowwise_adam"])
def test_sparse_gradients(rule: str, device_counts: bool) -> None:
    if device_counts and rule == "sgd":
        pytest.skip("sgd counts no steps")
    step_by_rows(Pair(rule, COUNTED.get(rule, {"step": 0.0}), device_counts), 3)


@pytest.mark.parametrize("rule", ["adam", "rowwise_adam"])
def test_sparse_gradients_and_stochastic_states(rule: str) -> None:
    pair = Pair(rule, {"step": 0.0}, state_dtype="bfloat16_sr")
    step_by_rows(pair, 2)
    stored = next(iter(pair.on_host.state.values()))
    assert torch.bfloat16 in {x.dtype for x in stored.values()}


def test_the_device_counts() -> None:
    pair = Pair("adam", {"step": 0.0}, device_counts=True)
    lr = Tensor.put(np.float32(0.01).reshape(()))
    for t in range(5):
        pair.set_grads(absent=3 if t == 1 else None)
        lr.write(np.float32(0.01 * (t + 1)))
        pair.on_device.step(pair.device, {"lr": lr})
        pair.on_host.step(pair.host, {"lr": float(np.float32(0.01 * (t + 1)))})
        pair.check()
    assert pair.on_device.counted == [1] * 5


def test_clipping_and_skipping() -> None:
    pair = Pair("adam", {"step": 0.0})
    for bad in (False, True, False):
        pair.set_grads(bad=bad)
        (updated, found, skipped), (_, norm, of_host) = (
            o.step(p, {"lr": 0.01}, clip_norm=0.5, grad_scale=0.25, skip_nonfinite=True)
            for o, p in ((pair.on_device, pair.device), (pair.on_host, pair.host))
        )
        assert (skipped, bool(updated)) == (of_host, not bad) == (bad, not bad)
        np.testing.assert_array_equal(found.read()[0], norm)
        pair.check()


@pytest.mark.parametrize("known", [False, True])
def test_epilogues(known: bool) -> None:
    """Zeros, copies and averages; a skipped step only sets gradients to zero."""
    pair = Pair("adam", {"step": 0.0})
    means, halves = (
        [np.asarray(pair.rng.normal(size=s), np.float32) for s in SIZES],
        [np.zeros(s, np.float16) for s in SIZES],
    )
    beside_device = [[Tensor.put(x) for x in of] for of in (means, halves)]
    beside_host = [[torch.from_numpy(x.copy()) for x in of] for of in (means, halves)]
    for bad in (False, True, False):
        pair.set_grads(bad=bad)
        norm = adaptk.global_norm([h.grad for h in pair.host]) if known else None
        for owner, params, (a, c) in (
            (pair.on_device, pair.device, beside_device),
            (pair.on_host, pair.host, beside_host),
        ):
            options = {"clip_norm": 0.5, "skip_nonfinite": True, "zero_grad": True, "grad_norm": norm}
            assert owner.step(params, {"lr": 0.01}, **options, ema=(a, 0.75), copy_out=c)[2] == bad
        pair.check()
        for d, h in zip(beside_device, beside_host, strict=True):
            for x, y in zip(d, h, strict=True):
                device_arrays.assert_equal(x.host(), y.numpy())
        assert not any(d.grad.host().any() for d in pair.device)


def test_a_skipped_step_is_not_counted_on_the_device() -> None:
    pair = Pair("adam", {"step": 0.0}, device_counts=True)
    for bad in (False, True, False):
        pair.set_grads(bad=bad)
        assert pair.on_device.step(pair.device, {"lr": 0.01}, skip_nonfinite=True)[2] == bad
        pair.on_host.step(pair.host, {"lr": 0.01}, skip_nonfinite=True)
        pair.check()
    assert pair.on_device.counted == [1, 1, -1, 1]


@needs_nvrtc
def test_reductions_on_two_devices() -> None:
    """Reductions of a tensor run on its device; those over all params must be on one device."""
    for rule in ("lamb", "prodigy"):
        pair = Pair(rule, {"step": 0.0})
        both = Owner(rule, None, {})

        def bind(p: Any, *rest: Any) -> Any:
            return (pair.on_device if isinstance(p, Tensor) else pair.on_host)._bind(p, *rest)  # noqa: B023

        both._bind = bind  # type: ignore[method-assign]
        pair.set_grads()
        values = {"lr": 0.01, **carried(rule)}
        if rule == "lamb":
            both.step(pair.device + pair.host, values)
            pair.check()
            continue
        before = [p.numpy().copy() for p in pair.host]
        with pytest.raises(RuntimeError, match="prodigy has reductions over all params, which have to be on one"):
            both.step(pair.device + pair.host, values)
        for d, h, p in zip(pair.device, pair.host, before, strict=True):
            device_arrays.assert_equal(d.host(), p)
            device_arrays.assert_equal(h.numpy(), p)


def test_params_on_the_cpu_and_on_a_device_in_one_step() -> None:
    """One norm over both, and the same update as in two steps with that norm."""
    pair = Pair("adam", {"step": 0.0})
    both = Owner("adam", None, {})

    def bind(p: Any, *rest: Any) -> Any:
        return (pair.on_device if isinstance(p, Tensor) else pair.on_host)._bind(p, *rest)

    both._bind = bind  # type: ignore[method-assign]
    twins = Pair("adam", {"step": 0.0})
    for _ in range(2):
        pair.set_grads()
        both.state = {**pair.on_device.state, **pair.on_host.state}
        _, norm, _ = both.step(pair.device + pair.host, {"lr": 0.01}, clip_norm=0.5)
        square = sum(float((h.grad.double() ** 2).sum()) for h in pair.host)
        assert norm == pytest.approx(np.sqrt(2 * square), rel=1e-6)
        for d, h, g in zip(twins.device, twins.host, pair.host, strict=True):
            d.grad, h.grad = Tensor.put(g.grad.numpy()), g.grad.clone()
        for owner, params in ((twins.on_device, twins.device), (twins.on_host, twins.host)):
            owner.step(params, {"lr": 0.01}, grad_scale=0.5 / norm)
        pair.check()
        for a, b in zip(pair.host, twins.host, strict=True):
            device_arrays.assert_equal(a.numpy(), b.numpy())


def test_the_current_stream(machine: device_arrays.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = device_arrays.cudart()
    stream = cudart.new_stream()
    p = Tensor.put(np.ones((3, 2), np.float32))
    owner = Owner("sgd", Tensor.put, {})
    p.grad = Tensor.put(np.ones((3, 2), np.float32))
    owner.step([p], {"lr": 0.5})
    monkeypatch.setattr(device_arrays.Exchange, "current_stream", stream)
    owner.step([p], {"lr": 0.5})
    with adaptk.cuda.stream(0):
        owner.step([p], {"lr": 0.5}, clip_norm=100.0)
    assert machine.calls.streams("step") == [0, stream, 0]
    assert machine.calls.orders() == [(stream, 0), (0, stream)]
    device_arrays.assert_equal(p.host(), np.full((3, 2), -0.5, np.float32))
    cudart.synchronize()
    cudart.end_stream(stream)


def test_a_gradient_on_another_device() -> None:
    p = Tensor.put(np.ones(3, np.float32))
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"grads\[0\]: on cpu, expected cuda:0"):
        Owner("sgd", Tensor.put, {}).step([p], {"lr": 0.1})
    device_arrays.assert_equal(p.host(), np.ones(3, np.float32))


# Steps that are captured in a graph


def one_param(rule: str, device_counts: bool = False) -> tuple[Owner, Any]:
    numbers: dict[str, Any] = {}
    if rule not in ("sgd", "momentum"):
        numbers["step"] = device_number(0.0) if device_counts else host_number(0.0)
    owner = Owner(rule, Tensor.put, numbers, device_counts)
    p = Tensor.put(np.ones(4, np.float32))
    p.grad = Tensor.put(np.ones(4, np.float32))
    return owner, p


def refuse(machine: device_arrays.Machine, owner: Owner, p: Any, match: str, **options: Any) -> None:
    """A captured step is refused: nothing is changed, counted or launched."""
    before, counted = p.host(), list(owner.counted)
    machine.calls.reset()
    machine.calls.is_capturing = True
    with pytest.raises(RuntimeError, match=match):
        owner.step([p], {"lr": 0.5}, **options)
    made = [call[0] for call in machine.calls.made]
    assert not {"step", "new_reports", "read_report", "new_counts"} & set(made)
    machine.calls.is_capturing = False
    device_arrays.assert_equal(p.host(), before)
    assert owner.counted == counted


def test_steps_that_the_host_counts_are_not_captured(machine: device_arrays.Machine) -> None:
    for rule in ("adam", "adagrad", "lion"):
        owner, p = one_param(rule)
        for _ in range(2):
            refuse(machine, owner, p, "captured in a graph: capturable is False")
            owner.step([p], {"lr": 0.5})
        assert float(owner.state[p]["step"]) == 2.0


def test_a_step_whose_steps_the_device_counts_is_captured(machine: device_arrays.Machine) -> None:
    owner, p = one_param("adam", device_counts=True)
    refuse(machine, owner, p, "clip_norm needs memory.*take one step before", clip_norm=1.0)
    owner.step([p], {"lr": 0.5})
    refuse(machine, owner, p, "skip_nonfinite waits", skip_nonfinite=True)
    machine.calls.reset()
    machine.calls.is_capturing = True
    found = owner.step([p], {"lr": 0.5}, clip_norm=1.0)[1]
    assert "new_reports" not in [call[0] for call in machine.calls.made]
    machine.calls.is_capturing = False
    assert found.read() == (2.0, False)


def test_a_rule_without_counts_is_captured(machine: device_arrays.Machine) -> None:
    owner, p = one_param("sgd")
    machine.calls.is_capturing = True
    owner.step([p], {"lr": 0.5})
    machine.calls.is_capturing = False
    device_arrays.assert_equal(p.host(), np.full(4, 0.5, np.float32))


def test_a_momentum_buffer_does_not_begin_in_a_graph(machine: device_arrays.Machine) -> None:
    owner, p = one_param("momentum")
    owner.fresh = True
    refuse(machine, owner, p, "momentum buffer begins with the first step")
    owner.step([p], {"lr": 0.5})
    machine.calls.is_capturing = True
    owner.step([p], {"lr": 0.5})


def test_outcomes_are_not_waited_for_in_a_capture(machine: device_arrays.Machine) -> None:
    owner, p = one_param("sgd")
    # Their results do not matter here, and the simulator would take minutes for 256 steps.
    with machine.without_kernels():
        wanted = [owner.step([p], {"lr": 0.0}, clip_norm=1.0)[1] for _ in range(256)]
    refuse(machine, owner, p, "outcomes of 256 steps", clip_norm=1.0)
    del wanted[3]
    machine.calls.reset()
    machine.calls.is_capturing = True
    owner.step([p], {"lr": 0.0}, clip_norm=1.0)
    assert not machine.calls.streams("read_report")


def test_memory_for_outcomes_is_made_before_it_is_needed(machine: device_arrays.Machine) -> None:
    owner, p = one_param("sgd")
    machine.calls.reset()
    for _ in range(2):
        owner.step([p], {"lr": 0.0})
    assert [call[0] for call in machine.calls.made].count("new_reports") == 1
