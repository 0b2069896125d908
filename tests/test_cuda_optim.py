"""Optimizer objects with params on a CUDA device: the same bits as with params on the CPU."""

from __future__ import annotations

import gc
import io
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import adaptk
import numpy as np
import pytest
from device_arrays import LIBRARIES, Library, Machine, assert_equal
from helpers import FLOATS, RULES, Array

pytestmark = pytest.mark.cuda

SHAPES = ((3, 4), (300,), (), (0,), (33,))
NARROW = "bfloat16" if "bfloat16" in FLOATS else "float16"


def cases() -> list[tuple[str, dict[str, Any], str]]:
    """Classes, the options that make them run a rule, and the rule."""
    found = []
    for rule in RULES.values():
        for name in rule.class_names:
            options: dict[str, Any] = dict.fromkeys(rule.variant, True)
            if "momentum" in options or (name, rule.variant) == ("SGD", ("nesterov",)):
                options["momentum"] = 0.9
            found.append((name, options, rule.name))
    return found


CASES = cases()
every_case = pytest.mark.parametrize(("name", "options", "rule"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])


def arrays(seed: int, shapes: Sequence[Any] = SHAPES, dtypes: Sequence[str] = ("float32",)) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(FLOATS[dtypes[i % len(dtypes)]]) for i, s in enumerate(shapes)]


class Pair:
    """An optimizer with params on the device, and a copy on the CPU."""

    def __init__(
        self, library: Library, make: Callable[[Any], adaptk.Optimizer], params: Sequence[Array], **of_device: Any
    ) -> None:
        self.library = library
        self.host_params = [p.copy(order="K") for p in params]
        self.params = [library.put(p) for p in params]
        self.host = make(self.host_params)
        self.device = make(self.params)
        self.seed = 0

    def grads(self, factor: float = 1.0) -> list[Array]:
        """Gradients with the params' layouts."""
        self.seed += 1
        rng = np.random.default_rng([1, self.seed])
        made = []
        for p in self.host_params:
            g = np.empty_like(p)
            with np.errstate(over="ignore"):
                g[...] = factor * rng.normal(size=p.shape)
            made.append(g)
        return made

    def step(self, grads: Sequence[Any] | None = None, **options: Any) -> tuple[adaptk.optim.StepInfo, Any]:
        """One step of both. Returns their reports, the device's first."""
        grads = self.grads() if grads is None else grads
        there = [None if g is None else self.library.put(g) for g in grads]
        return self.device.step(there, **options), self.host.step(grads, **options)

    def check(self) -> None:
        assert_equal([self.library.get(p) for p in self.params], [p.copy(order="C") for p in self.host_params])
        assert self.device.state.keys() == self.host.state.keys()
        for (key, got), want in zip(self.device.state.items(), self.host.state.values(), strict=True):
            got_arrays = {n: self.library.get(x) for n, x in got.items()}
            assert_equal(got_arrays, {n: np.array(x, order="C") for n, x in want.items()}, key)
        assert self.device.step_count == self.host.step_count
        assert self.steps(self.device) == self.steps(self.host)

    @staticmethod
    def steps(optimizer: adaptk.Optimizer) -> list[int]:
        return optimizer._plan.steps()

    def same(self, infos: tuple[Any, Any]) -> None:
        got, want = infos
        assert got == want, (got, want)
        assert got.skipped is want.skipped
        assert type(got.grad_norm) is type(want.grad_norm)


def made(name: str, **options: Any) -> Callable[[Any], adaptk.Optimizer]:
    return lambda params: getattr(adaptk, name)(params, **options)


# Every class


@every_case
def test_every_class(device: Library, name: str, options: dict[str, Any], rule: str) -> None:
    pair = Pair(device, made(name, **options), arrays(0, dtypes=("float32", "float64", NARROW, "float16")))
    assert pair.device.rules == (rule,)
    for t in range(2):
        pair.same(pair.step(grad_scale=0.5 if t % 2 else 1.0, clip_norm=(None, 1.0)[t]))
    pair.check()


@every_case
def test_every_class_with_counts_on_the_device(device: Library, name: str, options: dict[str, Any], rule: str) -> None:
    params = arrays(0, dtypes=("float32", "float64"))
    pair = Pair(device, made(name, **options, skip_nonfinite=True, weight_decay=0.01), params)
    for t in range(3):
        grads = pair.grads()
        if t == 1:
            grads[1][5] = np.inf
        if t == 2:
            grads[0] = None
        pair.same(pair.step(grads, clip_norm=2.0 if t == 2 else None))
    pair.check()
    assert pair.device.step_count == 2
    assert pair.steps(pair.device) == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("rule", RULES)
def test_conventions(device: Library, rule: str) -> None:
    for convention in RULES[rule].conventions:
        pair = Pair(device, lambda p, c=convention: adaptk.optimizer_for(rule, p, convention=c), arrays(1, [(5,), ()]))
        for _ in range(2):
            pair.step()
        pair.check()


# The order of warps does not depend on the library: each of the two with one of the other.
@pytest.mark.parametrize(("library", "schedule"), [(name, i % 3) for i, name in enumerate(LIBRARIES)], indirect=True)
def test_every_library(library: Library, schedule: int) -> None:
    dtypes = [d for d in ("float32", "float64", NARROW) if library.has(d)]
    pair = Pair(library, made("AdamW", lr=0.1, clip_norm=3.0), arrays(2, dtypes=dtypes))
    for _ in range(3):
        pair.same(pair.step())
    pair.check()
    kinds = {type(x) for s in pair.device.state.values() for x in s.values()}
    assert kinds == {type(pair.params[0])}


@pytest.mark.parametrize(("name", "skip"), [("Adam", False), ("NAdam", True), ("RAdam", True), ("ASGD", False)])
def test_many_steps(device: Library, name: str, skip: bool) -> None:
    pair = Pair(device, made(name, lr=0.05, skip_nonfinite=skip), arrays(3, [(40,), (3,)], ("float32", "float64")))
    for t in range(24):
        grads = pair.grads()
        if skip and t % 5 == 1:
            grads[1][0] = np.nan
        pair.step(grads)
    pair.check()
    assert pair.device.step_count == (19 if skip else 24)


def test_nadam_counts_per_param(device: Library) -> None:
    # Its schedule is a product over all steps: the device must keep one for each param.
    pair = Pair(device, made("NAdam", skip_nonfinite=True), arrays(4, [(4,), (5,), (6,)]))
    for t in range(14):
        grads: list[Any] = pair.grads()
        if t % 3 == 1:
            grads[1] = None
        if t % 4 == 3:
            grads[2] = None
        if t == 6:
            pair.device.load_state_dict(pair.host.state_dict())
        pair.step(grads)
    pair.check()
    assert len(set(pair.steps(pair.device))) == 3


def test_layouts(library: Library) -> None:
    params = [np.asfortranarray(arrays(5, [(6, 7)])[0]), arrays(6, [(3, 4, 5)])[0].transpose(2, 0, 1)]
    pair = Pair(library, made("Adam"), params)
    for _ in range(2):
        pair.same(pair.step(clip_norm=1.0))
    pair.check()


@pytest.mark.parametrize("count", [50, 150])
def test_many_params(device: Library, count: int) -> None:
    params = arrays(7, [((1,), (200,), (0,), (3, 3))[i % 4] for i in range(count)], ("float32", "float64"))
    pair = Pair(device, made("AdamW", clip_norm=1.0), params)
    for skip in (False, True, True):
        pair.same(pair.step(skip_nonfinite=skip))
    pair.check()


# Groups, names, schedules


def groups(params: Any) -> list[dict[str, Any]]:
    return [
        {"params": params[:2], "lr": 0.1},
        {"params": params[2:3], "lr": lambda t: 0.5 / t, "momentum": 0.5, "weight_decay": 0.1},
        {"params": params[3:], "maximize": True, "grad_scale": -0.5, "nesterov": True, "momentum": 0.9},
    ]


@pytest.mark.parametrize("skip", [False, True])
def test_groups_of_several_rules(device: Library, skip: bool) -> None:
    params = arrays(8, dtypes=("float32", "float64", "float16"))
    pair = Pair(device, lambda p: adaptk.SGD(groups(p), clip_norm=4.0, skip_nonfinite=skip), params)
    assert pair.device.rules == ("sgd", "momentum", "nesterov")
    for t in range(4):
        grads: list[Any] = pair.grads()
        if t == 1:
            grads[2] = None
        if t == 2:
            grads[0] = grads[1] = None
        pair.same(pair.step(grads))
        if t == 2:
            for optimizer in (pair.device, pair.host):
                optimizer.param_groups[0]["lr"] = 0.25
    pair.check()


def test_named_params(device: Library) -> None:
    host = dict(zip("abcd", arrays(9), strict=False))
    on_device = {k: device.put(v) for k, v in host.items()}
    a, b = adaptk.Adam(on_device), adaptk.Adam(host)
    grads = {k: np.full_like(v, 0.5) for k, v in reversed(host.items())}
    a.step({k: device.put(g) for k, g in grads.items()})
    b.step(grads)
    assert_equal({k: device.get(v) for k, v in on_device.items()}, host)
    assert list(a.state) == list("abcd")
    with pytest.raises(ValueError, match=r"missing \['d'\]"):
        a.step({k: device.put(g) for k, g in grads.items() if k != "d"})


@pytest.mark.parametrize("skip", [False, True])
def test_a_schedule(device: Library, skip: bool) -> None:
    seen: list[list[int]] = [[], []]

    def make(params: Any) -> adaptk.Optimizer:
        mine = seen.pop(0)
        seen.append(mine)
        return adaptk.Adam(params, lr=lambda t: mine.append(t) or 1.0 / t, skip_nonfinite=skip)

    pair = Pair(device, make, arrays(10))
    for t in range(4):
        grads = pair.grads()
        if skip and t == 1:
            grads[0][0, 0] = np.nan
        pair.step(grads)
    pair.check()
    assert seen[0] == seen[1] == ([1, 1, 2, 2, 3] if skip else [1, 1, 2, 3, 4])


def test_a_group_added_later(device: Library) -> None:
    for skip in (False, True):
        pair = Pair(device, made("Adam", skip_nonfinite=skip), arrays(11))
        pair.step()
        pair.step()
        more = arrays(12, [(7,), (2, 2)], ("float64",))
        pair.host_params += more
        pair.params += [device.put(p) for p in more]
        pair.host.add_param_group({"params": more, "lr": 0.5})
        pair.device.add_param_group({"params": pair.params[-2:], "lr": 0.5})
        for _ in range(3):
            pair.same(pair.step(clip_norm=1.0))
        pair.check()
        assert pair.steps(pair.device) == [5] * 5 + [3] * 2


# Clipping and skipping


@pytest.mark.parametrize("dtype", FLOATS)
def test_clipping(device: Library, dtype: str) -> None:
    for clip_norm in (1e-3, 1.0, 1e6, np.inf):
        pair = Pair(device, made("Adam", clip_norm=clip_norm), arrays(13, dtypes=(dtype,)))
        pair.same(pair.step())
        pair.same(pair.step(grad_scale=-0.25))
        pair.check()


def test_clipping_of_values_whose_squares_are_out_of_range(device: Library) -> None:
    for factor in (1e-200, 1e200, 1e300):
        pair = Pair(device, made("SGD", lr=0.5), arrays(14, dtypes=("float64",)))
        pair.same(pair.step(pair.grads(factor), clip_norm=1.0))
        pair.same(pair.step(pair.grads(factor), clip_norm=1.0, skip_nonfinite=True))
        pair.check()


def test_clipping_of_nonfinite_gradients(device: Library) -> None:
    for special in (np.inf, np.nan):
        pair = Pair(device, made("Adam", clip_norm=1.0), arrays(15))
        grads = pair.grads()
        grads[1][7] = special
        got, want = pair.step(grads)
        assert np.isnan(got.grad_norm) == np.isnan(want.grad_norm)
        assert not np.isfinite(got.grad_norm)
        assert got.skipped is False
        pair.check()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan], ids=str)
def test_a_skipped_step_changes_nothing(device: Library, dtype: str, special: float) -> None:
    pair = Pair(device, made("NAdam", skip_nonfinite=True), arrays(16, dtypes=(dtype,)))
    pair.step()
    before = [device.get(p) for p in pair.params], pair.steps(pair.device)
    states = [device.get(x) for s in pair.device.state.values() for x in s.values()]
    for i in (0, 1, 4):
        grads = pair.grads()
        grads[i].reshape(-1)[-1] = special
        info, want = pair.step(grads)
        assert info.skipped is True
        assert want.skipped
        assert not np.isfinite(info.grad_norm)
    assert_equal([device.get(p) for p in pair.params], before[0])
    assert_equal([device.get(x) for s in pair.device.state.values() for x in s.values()], states)
    assert pair.steps(pair.device) == before[1] == [1] * 5
    assert pair.device.step_count == 1
    pair.same(pair.step())
    pair.check()


def test_switching_skipping_on_and_off(device: Library) -> None:
    pair = Pair(device, made("NAdam"), arrays(17))
    for t, skip in enumerate((False, False, True, True, False, True, False)):
        grads = pair.grads()
        if t in (3, 5):
            grads[1][0] = np.inf
        pair.same(pair.step(grads, skip_nonfinite=skip))
    pair.check()
    assert pair.device.step_count == 5


def test_no_gradient_at_all(device: Library) -> None:
    for options in ({}, {"skip_nonfinite": True}, {"clip_norm": 1.0}):
        pair = Pair(device, made("Adam", **options), arrays(18))
        with pytest.warns(UserWarning, match="all gradients are None"):
            pair.same(pair.step([None] * 5))
        pair.same(pair.step())
        pair.check()
        assert pair.device.step_count == 2
        assert pair.steps(pair.device) == [1] * 5


# What a step reports


def test_the_report_is_read_on_access(device: Library, machine: Machine) -> None:
    pair = Pair(device, made("SGD", clip_norm=1.0), arrays(19))
    infos = [pair.step() for _ in range(5)]
    assert not machine.calls.streams("read_report")
    for i in (3, 0, 4, 2, 1):
        pair.same(infos[i])
    assert len(machine.calls.streams("read_report")) == 5
    assert tuple(infos[2][0]) == tuple(infos[2][1])
    norm, skipped = infos[1][0]
    assert norm == infos[1][1].grad_norm
    assert skipped is False
    assert infos[0][0] != infos[1][0]
    assert repr(infos[0][0]) == repr(infos[0][1])
    assert infos[0][0] != (0.0, False)
    assert len(machine.calls.streams("read_report")) == 5


def test_a_step_without_a_norm_reports_nothing(device: Library, machine: Machine) -> None:
    pair = Pair(device, made("SGD"), arrays(20))
    info, _ = pair.step()
    assert (info.grad_norm, info.skipped) == (None, False)
    assert not machine.calls.streams("read_report")


def test_more_reports_than_slots(device: Library, machine: Machine) -> None:
    on_device, host = [device.put(np.ones(3, np.float32))], [np.ones(3, np.float32)]
    a, b = adaptk.SGD(on_device, clip_norm=1.0), adaptk.SGD(host, clip_norm=1.0)
    kept = []
    for t in range(1, 262):
        grad = np.full(3, t, np.float32)
        kept.append((a.step([device.put(grad)]), b.step([grad])))
    # Slots are reused after 256 steps: reports that are still referenced are read before.
    assert len(machine.calls.streams("read_report")) == 5
    assert all(got == want for got, want in kept)
    assert len(machine.calls.streams("read_report")) == 261


def test_a_report_outlives_its_optimizer(device: Library) -> None:
    pair = Pair(device, made("SGD", clip_norm=1.0), arrays(21))
    infos = pair.step()
    del pair.device
    gc.collect()
    pair.same(infos)


# Look-ahead


@pytest.mark.parametrize("dtype", FLOATS)
def test_lookahead(device: Library, dtype: str) -> None:
    pair = Pair(device, made("RMSProp", nesterov=True, momentum=0.75, lr=0.1), arrays(22, dtypes=(dtype,)))
    for _ in range(3):
        before = [device.get(p) for p in pair.params]
        with pair.device.lookahead(), pair.host.lookahead():
            assert_equal([device.get(p) for p in pair.params], pair.host_params)
            moved = [p.copy() for p in pair.host_params]
        assert_equal([device.get(p) for p in pair.params], before)
        pair.same(pair.step(clip_norm=2.0))
    assert (moved[1] != before[1]).any()
    pair.check()


def test_lookahead_of_groups(library: Library) -> None:
    def make(p: Any) -> adaptk.Optimizer:
        return adaptk.RMSProp([{"params": p[:1]}, {"params": p[1:], "momentum": 0.25}], nesterov=True)

    pair = Pair(library, make, arrays(23, dtypes=("float32", "float64")))
    pair.step()
    with pytest.raises(KeyError), pair.device.lookahead():
        raise KeyError
    with pair.device.lookahead(), pair.host.lookahead():
        assert_equal([library.get(p) for p in pair.params], pair.host_params)
        with pytest.raises(RuntimeError, match="inside lookahead"):
            pair.device.step([library.put(g) for g in pair.grads()])
    pair.step()
    pair.check()


# Capturable


def test_capturable_counts_on_the_device(device: Library) -> None:
    host = [np.ones(5, np.float32), np.ones(300)]
    on_device = [device.put(p) for p in host]
    a, b = adaptk.NAdam(on_device, capturable=True), adaptk.NAdam(host)
    for t in range(5):
        grads: list[Any] = [np.full(5, t, np.float32), np.full(300, -t, np.float64)]
        if t == 3:
            grads[0] = None
        a.step([None if g is None else device.put(g) for g in grads])
        b.step(grads)
    assert a.step_count == 5
    assert a._plan.steps() == b._plan.steps() == [4, 5]
    assert_equal([device.get(p) for p in on_device], host)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hyperparameters_on_the_device(device: Library, dtype: Any, shape: Any, capturable: bool) -> None:
    host = arrays(24, [(33,), (3,)], ("float32", "float64"))
    on_device = [device.put(p) for p in host]
    numbers = {"lr": 0.5, "beta1": 0.75, "weight_decay": 0.125}
    buffers = {k: device.put(np.full(shape, v, dtype)) for k, v in numbers.items()}
    a, b = adaptk.AdamW(on_device, **buffers, capturable=capturable), adaptk.AdamW(host, **numbers)
    for t in range(1, 5):
        for name, buffer in buffers.items():
            new = np.asarray(numbers[name] / t, dtype)
            library_write(device, buffer, np.broadcast_to(new, shape))
            b.param_groups[0][name] = float(new)
        grads = [np.full_like(p, t) for p in host]
        a.step([device.put(g) for g in grads], clip_norm=3.0 if t == 2 else None)
        b.step(grads, clip_norm=3.0 if t == 2 else None)
    assert_equal([device.get(p) for p in on_device], host)
    saved = a.state_dict()
    assert {n: float(saved[f"param_groups.0.{n}"]) for n in numbers} == {n: b.param_groups[0][n] for n in numbers}
    assert "lr=" in repr(a)


def library_write(library: Library, x: Any, array: Array) -> None:
    """Writes new numbers to an array in place."""
    source = library.put(np.array(array, order="C"))
    if library.name == "torch":
        x.copy_(source)
    else:
        x[...] = source


def test_rates_on_the_device_of_some_groups(device: Library) -> None:
    rate = device.put(np.array(0.25))
    host = arrays(25, [(5,), (6,), (7,)])
    on_device = [device.put(p) for p in host]
    a = adaptk.Adam([{"params": on_device[:1]}, {"params": on_device[1:2], "lr": rate}, {"params": on_device[2:]}])
    b = adaptk.Adam([{"params": host[:1]}, {"params": host[1:2], "lr": 0.25}, {"params": host[2:]}])
    for t in range(4):
        grads: list[Any] = [np.full_like(p, 1 + t) for p in host]
        if t == 1:
            grads[0] = None
        if t == 2:
            grads[1] = None
        a.step([None if g is None else device.put(g) for g in grads])
        b.step(grads)
    assert_equal([device.get(p) for p in on_device], host)


def test_initial_states_from_a_rate_on_the_device(device: Library) -> None:
    param = device.put(np.ones(4, np.float32))
    optimizer = adaptk.RProp([param], lr=device.put(np.array([0.125])))
    assert_equal(device.get(optimizer.state[0]["step_size"]), np.full(4, 0.125, np.float32))


def test_a_schedule_that_returns_a_number_on_the_device(device: Library) -> None:
    rates = [device.put(np.array(1.0 / t)) for t in (1, 2, 3)]
    pair = Pair(device, made("Adam"), arrays(26, [(9,)]))
    pair.device.param_groups[0]["lr"] = lambda t: rates[t - 1]
    pair.host.param_groups[0]["lr"] = lambda t: 1.0 / t
    for _ in range(3):
        pair.step()
    pair.check()


# Saving


def through_npz(saved: Mapping[str, Any]) -> Any:
    file = io.BytesIO()
    np.savez(file, **saved)
    file.seek(0)
    return dict(np.load(file))


def to_host(library: Library, saved: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with its arrays copied to the host."""
    return {
        k: v if isinstance(v, np.ndarray) or (library.name == "torch" and v.device.type == "cpu") else library.get(v)
        for k, v in saved.items()
    }


@pytest.mark.parametrize("skip", [False, True])
def test_from_device_to_cpu_and_back(library: Library, skip: bool) -> None:
    pair = Pair(library, made("NAdam", lr=0.1, skip_nonfinite=skip), arrays(27, dtypes=("float32", "float64")))
    for _ in range(3):
        pair.step()
    on_device, on_host = pair.device.state_dict(), pair.host.state_dict()
    assert on_device.keys() == on_host.keys()
    for key, value in to_host(library, on_device).items():
        assert_equal(np.asarray(value), np.asarray(on_host[key]), key)
    # Each resumes from the state that the other has saved.
    other = Pair(library, made("NAdam", skip_nonfinite=skip), pair.host_params)
    other.seed = pair.seed
    other.device.load_state_dict(on_host)
    other.host.load_state_dict(on_device)
    for _ in range(2):
        pair.step()
        other.step()
    pair.check()
    other.check()
    assert_equal(other.host_params, pair.host_params)
    assert other.device.step_count == 5


def test_saved_states_are_copies(device: Library) -> None:
    pair = Pair(device, made("Adam"), arrays(28, [(6,)]))
    pair.step()
    saved = to_host(device, pair.device.state_dict())
    kept = pair.device.state_dict()
    pair.step()
    assert_equal(device.get(kept["state.0.exp_avg"]), saved["state.0.exp_avg"])
    assert (device.get(pair.device.state[0]["exp_avg"]) != saved["state.0.exp_avg"]).any()


def test_through_files(device: Library) -> None:
    params = [np.asfortranarray(arrays(29, [(6, 7)])[0]), np.ones(3)]
    pair = Pair(device, made("Adam"), params)
    pair.step()
    saved = to_host(device, pair.device.state_dict())
    for way in (through_npz, lambda s: pickle.loads(pickle.dumps(s))):
        later = Pair(device, made("Adam"), pair.host_params)
        later.device.load_state_dict(way(saved))
        later.host.load_state_dict(pair.host.state_dict())
        later.step()
        later.check()


def test_loading_rewrites_rates_on_the_device(device: Library) -> None:
    rate = device.put(np.array([0.25], np.float32))
    params = [device.put(np.ones(3, np.float32))]
    optimizer = adaptk.Adam(params, lr=rate, capturable=True)
    optimizer.step([device.put(np.ones(3, np.float32))])
    saved = optimizer.state_dict()
    library_write(device, rate, np.array([0.5], np.float32))
    optimizer.step([device.put(np.ones(3, np.float32))])
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] is rate
    assert_equal(device.get(rate), np.array([0.25], np.float32))
    assert optimizer.step_count == 1


def test_a_mismatched_state_dict_changes_nothing(device: Library) -> None:
    pair = Pair(device, made("Adam", skip_nonfinite=True), arrays(30))
    pair.step()
    saved = pair.host.state_dict()
    bad: list[tuple[str, Any]] = [
        ("state.1.exp_avg", np.zeros(4)),
        ("state.1.exp_avg", np.zeros(300, complex)),
        ("step", np.array(-1)),
        ("param_groups.0.beta1", np.array(1.5)),
    ]
    for key, value in bad:
        with pytest.raises(ValueError):
            pair.device.load_state_dict({**saved, key: value})
    with pytest.raises(ValueError, match=r"missing \['state.0.step'\]"):
        pair.device.load_state_dict({k: v for k, v in saved.items() if k != "state.0.step"})
    pair.check()


# Several at a time


def test_two_threads(device: Library) -> None:
    pairs = [Pair(device, made("AdamW", clip_norm=1.0, skip_nonfinite=i == 1), arrays(31 + i)) for i in range(2)]
    grads = [[pair.grads() for _ in range(6)] for pair in pairs]
    there = [[[device.put(g) for g in step] for step in of_pair] for of_pair in grads]
    norms: list[list[Any]] = [[], []]
    errors = []

    def work(i: int) -> None:
        try:
            for step in there[i]:
                norms[i].append(pairs[i].device.step(step))
            norms[i] = [info.grad_norm for info in norms[i]]
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for i, pair in enumerate(pairs):
        assert norms[i] == [pair.host.step(step).grad_norm for step in grads[i]]
        pair.check()


def test_a_step_inside_a_step(device: Library) -> None:
    param = device.put(np.ones(3, np.float32))
    optimizer = adaptk.SGD([param], lr=1.0)
    seen = []

    def schedule(t: int) -> float:
        with pytest.raises(RuntimeError, match="within its own step") as info:
            optimizer.step([device.put(np.ones(3, np.float32))])
        seen.append(str(info.value))
        return 0.5

    optimizer.param_groups[0]["lr"] = schedule
    optimizer.step([device.put(np.ones(3, np.float32))])
    assert len(seen) == 1
    assert_equal(device.get(param), np.full(3, 0.5, np.float32))
    assert optimizer.step_count == 1
