"""adaptk.torch against torch.optim, and the rules that torch lacks against adaptk.optim."""

from __future__ import annotations

import copy
import doctest
import gc
import importlib.util
import inspect
import io
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import adaptk
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
at = pytest.importorskip("adaptk.torch")

Tensor = torch.Tensor
RULES = adaptk.rules()
TORCHS = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
OWN = {
    "DeltaBarDelta": "delta_bar_delta",
    "Lion": "lion",
    "AdaBelief": "adabelief",
    "Yogi": "yogi",
    "Adan": "adan",
    "RMSpropNesterov": "rmsprop_nesterov",
}


class Case(NamedTuple):
    """A class of torch's and options for it."""

    name: str
    options: dict[str, Any]

    def ours(self, params: Any, **more: Any) -> Any:
        return getattr(at, self.name)(params, **{**self.options, **more})

    def torchs(self, params: Any, **more: Any) -> Any:
        return getattr(torch.optim, self.name)(params, **{"foreach": False, **self.options, **more})

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])


CASES = [
    Case(name, options)
    for name, several in {
        "Adadelta": [{}, {"lr": 0.3, "rho": 0.95, "eps": 1e-4, "weight_decay": 0.1}, {"maximize": True}],
        "Adagrad": [
            {"lr": 0.1},
            {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-3},
            {"maximize": True},
        ],
        "Adam": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
            {"amsgrad": True, "lr": 0.1, "betas": (0.5, 0.5)},
            {"maximize": True, "amsgrad": True, "weight_decay": 0.1},
            {"decoupled_weight_decay": True, "weight_decay": 0.1, "lr": 0.1},
        ],
        "AdamW": [{}, {"lr": 0.05, "weight_decay": 0.5}, {"amsgrad": True, "maximize": True}],
        "Adamax": [{}, {"lr": 0.1, "betas": (0.7, 0.9), "eps": 1e-2, "weight_decay": 0.1}, {"maximize": True}],
        "ASGD": [
            {},
            {"lr": 0.1, "lambd": 0.1, "alpha": 0.6, "t0": 4, "weight_decay": 0.1},
            {"maximize": True, "t0": 0.0},
        ],
        "NAdam": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.95), "momentum_decay": 0.1, "weight_decay": 0.1},
            {"decoupled_weight_decay": True, "weight_decay": 0.1, "maximize": True},
        ],
        "RAdam": [
            {},
            {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.1},
            {"decoupled_weight_decay": True, "weight_decay": 0.1, "maximize": True},
        ],
        "RMSprop": [
            {},
            {"momentum": 0.9, "weight_decay": 0.1, "alpha": 0.9},
            {"centered": True, "eps": 1e-2},
            {"centered": True, "momentum": 0.5, "maximize": True, "eps": 1e-2},
        ],
        "Rprop": [{}, {"lr": 0.1, "etas": (0.3, 1.7), "step_sizes": (1e-3, 0.5)}, {"maximize": True}],
        "SGD": [
            {},
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
            {"lr": 0.1, "momentum": 0.8, "dampening": 0.3},
            {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
            {"maximize": True, "momentum": 0.5},
        ],
    }.items()
    for options in several
]
PLAIN = [next(c for c in CASES if c.name == name) for name in TORCHS]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_class = pytest.mark.parametrize("case", PLAIN, ids=lambda c: c.name)
every_own = pytest.mark.parametrize("name", OWN)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])

SHAPES = ((3, 4), (5,), (), (2, 0, 3), (1,))
# Of the largest number among those that are compared: sums may cancel. A few units in the last place of float32.
TOLERANCE = {"float32": 2e-6, "float64": 1e-12, "complex64": 2e-6, "complex128": 1e-12}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20)


def params(dtype: str = "float32", shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Any]:
    return [torch.nn.Parameter(torch.randn(shape, dtype=getattr(torch, dtype))) for shape in shapes]


def twins(several: Sequence[Any]) -> list[Any]:
    """Copies that keep their layout."""
    return [p.detach().clone().requires_grad_(p.requires_grad) for p in several]


def give(several: Sequence[Sequence[Any]], seed: int, scale: float = 1.0, but: Sequence[int] = ()) -> None:
    """The same random gradients for each list of params; those with a number in `but` get none."""
    generator = torch.Generator().manual_seed(seed)
    for i, same in enumerate(zip(*several, strict=True)):
        grad = torch.randn(same[0].shape, dtype=same[0].dtype, generator=generator) * scale
        for p in same:
            p.grad = None if i in but else grad.clone()


def size(several: Sequence[Any]) -> float:
    return max((float(x.detach().abs().max()) for x in several if x.numel() > 0), default=0.0)


def close(a: Any, b: Any, what: Any = "", tolerance: float | None = None, scale: float | None = None) -> None:
    a, b = a.detach(), b.detach()
    if tolerance is None:
        tolerance = TOLERANCE[str(a.dtype).removeprefix("torch.")]
    bound = tolerance * (size([b]) if scale is None else scale)
    torch.testing.assert_close(a, b, rtol=0, atol=bound, equal_nan=True, msg=lambda m: f"{what}: {m}")


def all_close(a: Sequence[Any], b: Sequence[Any], tolerance: float | None = None) -> None:
    scale = size(b)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        close(x, y, f"params[{i}]", tolerance, scale)


def states_close(ours: Any, a: Sequence[Any], torchs: Any, b: Sequence[Any], tolerance: float | None = None) -> None:
    scale = {
        name: size([s[name] for s in torchs.state.values() if name in s]) for s in torchs.state.values() for name in s
    }
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        assert (p in ours.state) == (q in torchs.state), i
        if p in ours.state:
            assert list(ours.state[p]) == list(torchs.state[q])
            for name, value in torchs.state[q].items():
                mine = ours.state[p][name]
                assert mine.dtype == value.dtype, name
                assert mine.shape == value.shape, name
                close(mine, value, f"{name} of params[{i}]", tolerance, scale[name])


def raw(t: Any) -> bytes:
    return t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def everything(optimizer: Any) -> Any:
    """All that a step may change, bit for bit."""
    every = [p for g in optimizer.param_groups for p in g["params"]]
    state = {
        i: {k: (raw(v), id(v)) if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
        for i, p in enumerate(every)
        if p in optimizer.state
    }
    groups = [{k: repr(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return [raw(p) for p in every], [p._version for p in every], state, groups


def same_bits(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return [raw(x) for x in a] == [raw(x) for x in b]


class Calls:
    """Counts the native steps of an optimizer, and what they ask of Python."""

    def __init__(self, optimizer: Any) -> None:
        self.count = dict.fromkeys(("step", "_bind", "_fit", "_stand_in", "_put_back"), 0)
        for name in self.count:
            if name != "step":
                setattr(optimizer, name, self.counted(name, getattr(optimizer, name)))
        optimizer._plan = adaptk._core.TorchPlan(Tensor, torch.nn.Parameter, at._face())
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
        """What has been called since the last question."""
        found = {k: v for k, v in self.count.items() if v}
        self.count = dict.fromkeys(self.count, 0)
        return found


def in_another_process(code: str, timeout: float = 120) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Names


def test_there_is_a_class_for_each_rule() -> None:
    assert set(at.__all__) == {*TORCHS, *OWN}
    names = {c.lower() for r in RULES.values() for c in r.class_names}
    assert names == {c.lower() for c in at.__all__} - {"rmspropnesterov"}


def test_importing_adaptk_does_not_import_torch() -> None:
    in_another_process("import adaptk, sys; assert 'torch' not in sys.modules")


@every_class
def test_signature_and_defaults_are_torchs(case: Case) -> None:
    ours, torchs = getattr(at, case.name), getattr(torch.optim, case.name)
    assert issubclass(ours, torchs)
    assert ours.__name__ == torchs.__name__
    assert inspect.signature(ours) == inspect.signature(torchs)
    assert "closure" in inspect.signature(ours.step).parameters
    p = params()
    a, b = ours(p), torchs(p)
    assert a.defaults == b.defaults
    assert [list(g) for g in a.param_groups] == [list(g) for g in b.param_groups]
    assert [{k: v for k, v in g.items() if k != "params"} for g in a.param_groups] == [
        {k: v for k, v in g.items() if k != "params"} for g in b.param_groups
    ]
    assert repr(a) == repr(b)


def test_examples_of_the_documentation() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [t for t in finder.find(at, "adaptk.torch") if t.examples]
    assert {f"adaptk.torch.{name}" for name in at.__all__} <= {t.name for t in tests}
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


# Trajectories


@every_dtype
@every_case
def test_trajectory_is_torchs(case: Case, dtype: str) -> None:
    a = params(dtype)
    b = twins(a)
    ours, torchs = case.ours(a), case.torchs(b)
    for t in range(25):
        # Some params have no gradient at first, others now and then.
        but = [i for i in range(len(a)) if (i == 1 and t < 3) or (t + 2 * i) % 5 == 4]
        give([a, b], t, scale=10.0 ** (t % 3 - 1), but=but)
        ours.step()
        torchs.step()
        all_close(a, b)
        states_close(ours, a, torchs, b)


@every_dtype
@every_case
def test_trajectory_with_options_that_change(case: Case, dtype: str) -> None:
    a = params(dtype)
    b = twins(a)
    late_a = params(dtype, [(2, 3), (4,)])
    late_b = twins(late_a)
    ours, torchs = case.ours(a), case.torchs(b)
    for t in range(20):
        for optimizer, late in ((ours, late_a), (torchs, late_b)):
            if t == 8:
                optimizer.add_param_group({"params": late, "lr": 0.01, "maximize": True})
            first = optimizer.param_groups[0]
            first["lr"] = 0.02 / (1 + t)
            first["weight_decay"] = 0.1 * (t % 2) if "weight_decay" in first else 0.0
            if "betas" in first:
                first["betas"] = (0.9 - 0.02 * t, 0.99 - 0.01 * t)
            if first.get("momentum", 0) > 0:
                first["momentum"] = 0.9 - 0.02 * t
            if t == 12:
                first["maximize"] = not first["maximize"]
        give([a, b], t)
        if t >= 8:
            give([late_a, late_b], 100 + t)
        ours.step()
        torchs.step()
        all_close(a + late_a, b + late_b)
        states_close(ours, a + late_a, torchs, b + late_b)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@every_case
def test_complex_params_are_pairs_of_real_ones(case: Case, dtype: str) -> None:
    a = [*params(dtype, [(3, 4), (), (0,)]), *(p.detach().t() for p in params(dtype, [(4, 3)]))]
    b = twins(a)
    # NaN where torch takes the square root of what rounding has made negative is no part of this.
    more = {"eps": 0.1} if case.options.get("centered") else {}
    ours, torchs = case.ours(a, **more), case.torchs(b, **more)
    for t in range(12):
        give([a, b], t)
        ours.step()
        torchs.step()
    all_close(a, b)
    states_close(ours, a, torchs, b)


def test_momentum_switched_off_and_on() -> None:
    a = params()
    b = twins(a)
    case = Case("SGD", {"lr": 0.1, "momentum": 0.9})
    ours, torchs = case.ours(a), case.torchs(b)
    for t, momentum in enumerate([0.9, 0.9, 0, 0, 0.5, 0.5]):
        for optimizer in (ours, torchs):
            optimizer.param_groups[0]["momentum"] = momentum
        give([a, b], t)
        ours.step()
        torchs.step()
        all_close(a, b)
        states_close(ours, a, torchs, b)


def test_named_parameters() -> None:
    model = torch.nn.Linear(2, 2)
    opt = at.Adam(model.named_parameters())
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
    model(torch.ones(1, 2)).sum().backward()
    opt.step()
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


# Options


@pytest.mark.parametrize("impl", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}], ids=str)
@every_class
def test_implementations_of_torchs_change_nothing(case: Case, impl: dict[str, Any]) -> None:
    if not impl.keys() <= inspect.signature(getattr(torch.optim, case.name)).parameters.keys():
        pytest.skip("torch's class has no such option")
    a = params()
    b = twins(a)
    first, second = case.ours(a), case.ours(b, **impl)
    for t in range(3):
        give([a, b], t)
        first.step()
        second.step()
    assert same_bits(a, b)
    assert all(g[k] == v for g in second.param_groups for k, v in impl.items())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@every_class
def test_learning_rate_in_a_tensor(case: Case, shape: tuple[int, ...]) -> None:
    a = params("float64")
    b = twins(a)
    lr = torch.full(shape, 0.05, dtype=torch.float64)
    ours, torchs = case.ours(a, lr=lr), case.torchs(b, lr=lr.clone())
    for t in range(6):
        give([a, b], t)
        ours.step()
        torchs.step()
        # A new number in the same tensor counts from the next step on.
        ours.param_groups[0]["lr"].mul_(0.5)
        torchs.param_groups[0]["lr"].mul_(0.5)
    assert ours.param_groups[0]["lr"] is lr
    all_close(a, b)


def test_learning_rate_with_a_graph() -> None:
    for name in (*TORCHS, *OWN):
        lr = torch.tensor(0.5, requires_grad=True)
        p, q = params(shapes=[(3,)]), params(shapes=[(3,)])
        q[0].data.copy_(p[0])
        give([p, q], 0)
        getattr(at, name)(p, lr=lr * 1.0).step()
        getattr(at, name)(q, lr=0.5).step()
        assert same_bits(p, q), name
        assert p[0].grad_fn is None


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_betas_in_tensors(name: str, shape: tuple[int, ...]) -> None:
    a = params("float64")
    b = twins(a)
    betas = tuple(torch.full(shape, x, dtype=torch.float64) for x in (0.8, 0.9))
    ours, torchs = Case(name, {"betas": betas}).ours(a), Case(name, {"betas": betas}).torchs(b)
    for t in range(5):
        give([a, b], t)
        ours.step()
        torchs.step()
    all_close(a, b)


def test_weight_decay_in_a_tensor() -> None:
    a = params("float64")
    b = twins(a)
    case = Case("SGD", {"weight_decay": torch.tensor(0.1, dtype=torch.float64)})
    ours, torchs = case.ours(a), case.torchs(b)
    give([a, b], 0)
    ours.step()
    torchs.step()
    all_close(a, b)


@every_class
def test_a_step_for_autograd_is_refused(case: Case) -> None:
    p = params()
    with pytest.raises(ValueError, match=rf"^differentiable: .*torch\.optim\.{case.name}\("):
        case.ours(p, differentiable=True)
    opt = case.ours(p)
    give([p], 0)
    opt.param_groups[0]["differentiable"] = True
    before = everything(opt)
    with pytest.raises(ValueError, match=r"^differentiable: "):
        opt.step()
    assert everything(opt) == before
    with pytest.raises(ValueError, match=r"^differentiable: "):
        opt.add_param_group({"params": params(), "differentiable": True})
    assert len(opt.param_groups) == 1


@every_class
def test_capturable_is_refused_on_the_cpu(case: Case) -> None:
    if "capturable" not in inspect.signature(getattr(torch.optim, case.name)).parameters:
        pytest.skip("torch's class has no such option")
    p = params()
    with pytest.raises(ValueError, match=r"^capturable: params on the CPU"):
        case.ours(p, capturable=True)
    opt = case.ours(p)
    give([p], 0)
    opt.param_groups[0]["capturable"] = True
    before = everything(opt)
    with pytest.raises(ValueError, match=r"^capturable: "):
        opt.step()
    assert everything(opt) == before


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("SGD", {"momentum": 0.5, "dampening": -1}, "dampening"),
        ("RMSprop", {"alpha": 1.5}, "alpha"),
        ("Adadelta", {"rho": 1.0}, "rho"),
        ("ASGD", {"lambd": -1e-3}, "lambd"),
        ("Rprop", {"step_sizes": (-1, 1)}, r"step_sizes\[0\]"),
        ("Adam", {"lr": float("inf")}, "lr"),
        ("Adam", {"eps": float("inf")}, "eps"),
        ("Lion", {"lr": -1.0}, "lr"),
        ("Adan", {"beta3": 1.0}, "beta3"),
    ],
)
def test_values_that_torch_takes_and_the_kernels_do_not(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}: .* is not in "):
        getattr(at, name)(params(), **options)
    opt = getattr(at, name)(params())
    with pytest.raises(ValueError, match=f"^{said}: "):
        opt.add_param_group({"params": params(), **options})
    assert len(opt.param_groups) == 1


def test_unknown_options() -> None:
    for name in (*TORCHS, *OWN):
        with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
            getattr(at, name)(params(), bogus=1)


# The rules that torch lacks


def numpy_of(t: Any) -> Any:
    if t.dtype == torch.bfloat16:
        return t.detach().view(torch.int16).numpy().view(pytest.importorskip("ml_dtypes").bfloat16)
    return t.detach().numpy()


def in_numpy(case: Case, arrays: list[Any]) -> adaptk.Optimizer:
    """The class of the same rule in adaptk.optim."""
    rule = RULES[OWN[case.name]]
    options = dict.fromkeys(rule.variant, True)
    if "nesterov" in options:
        options["momentum"] = rule.defaults()["momentum"]
    return getattr(adaptk, rule.class_names[0])(arrays, **{**options, **case.options})


OWN_OPTIONS: Mapping[str, list[dict[str, Any]]] = {
    "DeltaBarDelta": [{}, {"lr": 0.1, "kappa": 0.01, "phi": 0.2, "theta": 0.5, "eta_max": 0.2}, {"maximize": True}],
    "Lion": [{}, {"lr": 0.01, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.1}],
    "AdaBelief": [{}, {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1, "decoupled": True}],
    "Yogi": [{}, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}],
    "Adan": [{}, {"lr": 0.01, "beta3": 0.9, "weight_decay": 0.1, "decoupled": True}],
    "RMSpropNesterov": [{}, {"lr": 0.01, "momentum": 0.5, "rho": 0.8, "weight_decay": 0.1}],
}
OWN_CASES = [Case(name, options) for name, several in OWN_OPTIONS.items() for options in several]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("case", OWN_CASES, ids=str)
def test_own_rules_are_those_of_adaptk_optim(case: Case, dtype: str) -> None:
    mine = params(dtype, SHAPES)
    arrays = [numpy_of(p).copy() for p in mine]
    opt = case.ours(mine)
    other = in_numpy(case, arrays)
    for t in range(10):
        give([mine], t, but=[] if t % 3 else [1])
        if t == 5:
            opt.param_groups[0]["lr"] = other.param_groups[0]["lr"] = 0.003
        opt.step()
        other.step([None if p.grad is None else numpy_of(p.grad) for p in mine])
        assert [numpy_of(p).tobytes() for p in mine] == [a.tobytes() for a in arrays]
    saved = other.state_dict()
    for i, p in enumerate(mine):
        for name, value in opt.state[p].items():
            want = saved[f"state.{i}.{name}"]
            if name == "step":
                assert float(value) == float(want)
            else:
                assert value.numpy().tobytes() == np.ascontiguousarray(want).tobytes(), name


@every_own
def test_own_rules_names_and_defaults(name: str) -> None:
    rule = RULES[OWN[name]]
    p = params()
    opt = getattr(at, name)(p)
    starts = {s.option for s in rule.states if s.option is not None}
    assert set(opt.param_groups[0]) == {"params", *rule.defaults(), *starts} - {"grad_scale"}
    assert {k: opt.defaults[k] for k in rule.defaults() if k != "grad_scale"} == {
        k: v for k, v in rule.defaults().items() if k != "grad_scale"
    }
    signature = inspect.signature(getattr(at, name))
    assert set(signature.parameters) == {"params", "convention", *opt.defaults}
    for option, value in opt.defaults.items():
        assert signature.parameters[option].default == value, option
    give([p], 0)
    opt.step()
    assert list(opt.state[p[0]]) == ["step", *(s.name for s in rule.states)]
    for convention in rule.conventions:
        assert getattr(at, name)(params(), convention=convention).defaults["lr"] == rule.defaults(convention)["lr"]
    with pytest.raises(ValueError, match="convention"):
        getattr(at, name)(params(), convention="nobody")


@every_own
def test_own_rules_state_dict(name: str) -> None:
    a = params()
    b = twins(a)
    one, two = getattr(at, name)(a, lr=0.02), getattr(at, name)(b)
    for t in range(3):
        give([a], t)
        one.step()
    saved = copy.deepcopy(one.state_dict())
    del saved["param_groups"][0]["maximize"]
    two.load_state_dict(saved)
    assert two.param_groups[0]["maximize"] is False
    for p, q in zip(a, b, strict=True):
        q.data.copy_(p)
    give([a, b], 3)
    one.step()
    two.step()
    assert same_bits(a, b)


def test_lookahead() -> None:
    (w,) = params(shapes=[(4,)])
    opt = at.RMSpropNesterov([w], lr=0.1, momentum=0.5)
    for _ in range(3):
        before, velocity = raw(w), opt.state[w].get("velocity")
        with opt.lookahead():
            interim = w.detach().clone()
            opt.zero_grad()
            w.square().sum().backward()
        assert raw(w) == before
        if velocity is not None:
            torch.testing.assert_close(interim, w.detach() + 0.5 * velocity)
        torch.testing.assert_close(w.grad, 2 * interim)
        opt.step()
        assert raw(w) != before


# Saving


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("back", [False, True], ids=["into-torch", "from-torch"])
@every_dtype
@every_case
def test_state_dicts_go_both_ways(case: Case, dtype: str, back: bool) -> None:
    make = (case.torchs, case.ours) if back else (case.ours, case.torchs)
    a = params(dtype)
    b = twins(a)
    first, reference = make[0](a), case.torchs(b)
    for t in range(4):
        give([a, b], t, but=[0] if t == 0 else [])
        first.step()
        reference.step()
    saved = through_file(first.state_dict())
    wanted = reference.state_dict()
    assert [list(g) for g in saved["param_groups"]] == [list(g) for g in wanted["param_groups"]]
    assert {k: list(v) for k, v in saved["state"].items()} == {k: list(v) for k, v in wanted["state"].items()}
    c = twins(a)
    second = make[1](c)
    second.load_state_dict(saved)
    reference.load_state_dict(through_file(wanted))
    for t in range(4, 9):
        give([c, b], t)
        second.step()
        reference.step()
    all_close(c, b)
    for p, q in zip(c, b, strict=True):
        for name in reference.state[q]:
            # Moments near zero are sums of gradients that are not: their error is that of the larger ones.
            scale = size([state[name] for state in reference.state.values()])
            close(second.state[p][name].to(reference.state[q][name].dtype), reference.state[q][name], name, scale=scale)


@every_case
def test_state_dict_of_an_older_version(case: Case) -> None:
    a = params()
    source = case.torchs(a)
    for t in range(3):
        give([a], t)
        source.step()
    old = source.state_dict()
    for group in old["param_groups"]:
        for key in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
            if group.get(key) is not True:
                group.pop(key, None)
    for state in old["state"].values():
        for name in ("step", "mu_product", "eta", "mu"):
            if name in state:
                number = state[name].item()
                state[name] = int(number) if name == "step" else number
    b, c = twins(a), twins(a)
    ours, torchs = case.ours(b), case.torchs(c)
    ours.load_state_dict(copy.deepcopy(old))
    torchs.load_state_dict(copy.deepcopy(old))
    assert [list(g) for g in ours.param_groups] == [list(g) for g in torchs.param_groups]
    for t in range(3, 7):
        give([b, c], t)
        ours.step()
        torchs.step()
    all_close(b, c)


def test_state_dict_of_a_capturable_optimizer() -> None:
    a = params()
    source = torch.optim.Adam(a)
    give([a], 0)
    source.step()
    saved = source.state_dict()
    saved["param_groups"][0]["capturable"] = True
    b = twins(a)
    ours = at.Adam(b)
    ours.load_state_dict(saved)
    give([b], 1)
    with pytest.raises(ValueError, match="capturable"):
        ours.step()
    ours.param_groups[0]["capturable"] = False
    ours.step()
    assert float(ours.state[b[0]]["step"]) == 2


def test_state_dict_of_a_fused_optimizer() -> None:
    a = params(shapes=[(3, 4), (5,)])
    b = twins(a)
    fused, ours = torch.optim.AdamW(a, fused=True), at.AdamW(b, fused=True)
    for t in range(3):
        give([a, b], t)
        fused.step()
        ours.step()
        fused.load_state_dict(through_file(ours.state_dict()))
        ours.load_state_dict(through_file(fused.state_dict()))
        assert ours.state[b[0]]["step"].dtype == fused.state[a[0]]["step"].dtype == torch.float32
    all_close(b, a)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_states_beside_16_bits_stay_wide_when_loaded(dtype: str) -> None:
    a = params(dtype)
    b = twins(a)
    one, two = at.NAdam(a), at.NAdam(b)
    for t in range(3):
        give([a], t)
        one.step()
    saved = through_file(one.state_dict())
    seen = []
    two.register_load_state_dict_post_hook(lambda o: seen.extend(s["exp_avg"].dtype for s in o.state.values()))
    two.load_state_dict(saved)
    assert set(seen) == {torch.float32}
    for p, q in zip(a, b, strict=True):
        q.data.copy_(p)
        assert all(raw(two.state[q][name]) == raw(value) for name, value in one.state[p].items())
    give([a, b], 9)
    one.step()
    two.step()
    assert same_bits(a, b)
    # Into torch's class as well, which rounds them.
    torchs = torch.optim.NAdam(twins(a))
    torchs.load_state_dict(saved)
    assert next(iter(torchs.state.values()))["exp_avg"].dtype == getattr(torch, dtype)


def test_hooks_that_make_another_state_dict_of_it() -> None:
    a = params("bfloat16", [(3,), (4,)])
    one = at.Adam(a)
    give([a], 0)
    one.step()
    saved = one.state_dict()
    saved["state"] = {i + 10: s for i, s in saved["state"].items()}
    saved["param_groups"][0]["params"] = [10, 11]
    b = twins(a)[:1]
    two = at.Adam(b)

    def first_only(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        groups = [{**given["param_groups"][0], "params": [10]}]
        return {"state": {10: given["state"][10]}, "param_groups": groups}

    two.register_load_state_dict_pre_hook(first_only)
    two.load_state_dict(saved)
    assert raw(two.state[b[0]]["exp_avg"]) == raw(one.state[a[0]]["exp_avg"])
    assert two.state[b[0]]["exp_avg"].dtype == torch.float32
    with pytest.raises(ValueError, match="different number of parameter groups"):
        at.Adam([{"params": b}, {"params": params()}]).load_state_dict(saved)
    assert len(two._optimizer_load_state_dict_pre_hooks) == 1
    assert len(two._optimizer_load_state_dict_post_hooks) == 0


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@every_class
def test_copies_of_an_optimizer(case: Case, way: str) -> None:
    model = torch.nn.Linear(3, 2)
    opt = case.ours(model.parameters())
    give([list(model.parameters())], 0)
    opt.step(skip_nonfinite=True)
    if way == "deepcopy":
        model2, opt2 = copy.deepcopy((model, opt))
    elif way == "pickle":
        model2, opt2 = pickle.loads(pickle.dumps((model, opt)))
    else:
        file = io.BytesIO()
        torch.save((model, opt), file)
        file.seek(0)
        model2, opt2 = torch.load(file, weights_only=False)
    assert type(opt2) is type(opt)
    a, b = list(model.parameters()), list(model2.parameters())
    assert opt2.param_groups[0]["params"][0] is b[0]
    for t in range(3):
        give([a, b], 1 + t)
        opt.step()
        opt2.step()
    assert same_bits(a, b)
    assert opt2.last_step.skipped is False


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
def test_what_may_happen_to_params_and_states(case: Case) -> None:
    """Each event, in turn, to both; torch reads everything anew at each step."""
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
        if case.name == "Adagrad":  # torch makes its states in the constructor, and no buffer is there for a new one
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


# Steps that fail


def sparse(shape: tuple[int, ...]) -> Any:
    return torch.ones(shape).to_sparse()


def bad_lr(opt: Any, p: list[Any]) -> None:
    opt.param_groups[0]["lr"] = -1.0


def bad_type(opt: Any, p: list[Any]) -> None:
    opt.param_groups[0]["lr"] = "0.1"


def no_number(opt: Any, p: list[Any]) -> None:
    opt.param_groups[0]["lr"] = float("nan")


def sparse_grad(opt: Any, p: list[Any]) -> None:
    p[1].grad = sparse((5,))


def state_shape(opt: Any, p: list[Any]) -> None:
    name = next(k for k, v in opt.state[p[1]].items() if v.ndim > 0)
    opt.state[p[1]][name] = torch.zeros(4)


def state_type(opt: Any, p: list[Any]) -> None:
    name = next(k for k, v in opt.state[p[1]].items() if v.ndim > 0)
    opt.state[p[1]][name] = "zeros"


def bad_step(opt: Any, p: list[Any]) -> None:
    opt.state[p[1]]["step"] = torch.tensor(float("nan"))


def two_steps(opt: Any, p: list[Any]) -> None:
    opt.state[p[1]]["step"] = torch.ones(2)


def overlap(opt: Any, p: list[Any]) -> None:
    p[1].data = p[0].data.view(-1)[2:7]


def grad_overlap(opt: Any, p: list[Any]) -> None:
    p[1].grad = p[0].data.view(-1)[2:7]


def complex_overlap(opt: Any, p: list[Any]) -> None:
    z = torch.randn(8, dtype=torch.complex64)
    p[0].data, p[1].data = z[:5], z[3:]
    p[0].grad, p[1].grad = torch.ones_like(z[:5]), torch.ones_like(z[3:])
    opt.state.clear()


def expanded(opt: Any, p: list[Any]) -> None:
    p[1].data = torch.ones(1).expand(5)


def woven(opt: Any, p: list[Any]) -> None:
    p[1].data = torch.ones(9).as_strided((5, 2), (1, 1))
    p[1].grad = torch.ones(5, 2)
    opt.state.pop(p[1])


def float8(opt: Any, p: list[Any]) -> None:
    p[1].grad = None
    p[1].data = torch.ones(5).to(torch.float8_e5m2)
    p[1].grad = torch.ones(5).to(torch.float8_e5m2)


FAILURES = {
    bad_lr: (ValueError, "lr: -1"),
    bad_type: (TypeError, "lr: expected a number"),
    no_number: (ValueError, "lr: nan"),
    sparse_grad: (RuntimeError, r"sparse gradients.*params\[1\]"),
    state_shape: (ValueError, r"params\[1\]: shape \(4,\), expected \(5,\)"),
    state_type: (TypeError, r"params\[1\]: str, expected a torch.Tensor"),
    bad_step: (ValueError, r"state\['step'\] of params\[1\]: nan is no count of steps"),
    two_steps: (ValueError, r"state\['step'\] of params\[1\]: 2 numbers, expected one"),
    overlap: (ValueError, r"params\[0\] and params\[1\] overlap"),
    grad_overlap: (ValueError, r"the gradient of params\[1\] and params\[0\] overlap"),
    complex_overlap: (ValueError, r"params\[0\] and params\[1\] overlap"),
    expanded: (RuntimeError, r"params\[1\]: several of its elements are at one address"),
    woven: (RuntimeError, r"params\[1\]: several of its elements are at one address"),
    float8: (TypeError, r"params\[1\]: dtype"),
}


@pytest.mark.parametrize("fresh", [False, True], ids=["later", "first-step"])
@pytest.mark.parametrize("cause", FAILURES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["Adam", "SGD", "NAdam", "Rprop"])
def test_a_step_that_fails_changes_nothing(name: str, cause: Callable[[Any, list[Any]], None], fresh: bool) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}
    p = params(shapes=[(3, 4), (5,), (2,)])
    opt = getattr(at, name)(p, **options)
    if not fresh:
        give([p], 0, but=[2])  # so that a state is to be made at the step that fails
        opt.step()
    give([p], 1)
    try:
        cause(opt, p)
    except (KeyError, StopIteration):
        pytest.skip("this needs a state, or a count of steps")
    if cause is bad_step and name == "SGD":
        pytest.skip("no count of steps")
    if cause is two_steps and name == "SGD":
        pytest.skip("no count of steps")
    before = everything(opt)
    exception, message = FAILURES[cause]
    for _ in range(2):
        with pytest.raises(exception, match=message):
            opt.step(clip_norm=1.0)
        assert everything(opt) == before


@every_class
def test_a_failed_step_leaves_no_trace_in_later_ones(case: Case) -> None:
    """States begin with what their options are when they are first needed: Rprop's with the learning rate."""
    a = params(shapes=[(3,), (4,)])
    b = twins(a)
    ours, torchs = case.ours(a, lr=0.3), case.torchs(b, lr=0.3)
    give([a], 0)
    a[1].grad = sparse((4,))
    with pytest.raises(RuntimeError, match="sparse"):
        ours.step()
    give([a], 0)
    a[1].grad[2] = float("inf")
    ours.step(skip_nonfinite=True)
    assert ours.last_step.skipped
    assert case.name == "Adagrad" or not any(ours.state.values())
    for o in (ours, torchs):
        o.param_groups[0]["lr"] = 0.1
    for t in range(3):
        give([a, b], t)
        ours.step()
        torchs.step()
    all_close(a, b)


def test_params_without_memory() -> None:
    real, p = torch.ones(2), torch.ones(3, device="meta")
    real.grad, p.grad = torch.ones(2), torch.ones(3, device="meta")
    opt = at.Adam([real, p])
    with pytest.raises(BufferError, match=r"params\[1\]"):
        opt.step()
    assert not opt.state
    assert real.tolist() == [1.0, 1.0]


def test_inference_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    if at._face is not dict:  # found in this mode too
        monkeypatch.setattr(at, "_face", at._face.__wrapped__)
    with torch.inference_mode():
        p = torch.ones(3)
        p.grad = torch.ones(3)
        opt = at.SGD([p], lr=0.5)
        opt.step()
        assert p.tolist() == [0.5] * 3
    other = at.SGD([p], lr=0.5)
    with pytest.raises(RuntimeError, match="inference tensor"):
        other.step()
    assert p.tolist() == [0.5] * 3


def test_clip_norm_that_is_none() -> None:
    p = params()
    opt = at.SGD(p)
    give([p], 0)
    before = everything(opt)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="clip_norm"):
            opt.step(clip_norm=bad)
    assert everything(opt) == before


# The loop around a step


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("Adam", "SGD", "Rprop")], ids=str)
def test_grad_scaler(case: Case) -> None:
    a = params()
    b = twins(a)
    ours, torchs = case.ours(a), case.torchs(b)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3) for _ in range(2)]
    for t in range(12):
        skipped = t in (0, 5, 6)
        for scaler, opt, p in zip(scalers, (ours, torchs), (a, b), strict=True):
            scaler.scale(torch.zeros(()))
            give([p], t, scale=float(scaler.get_scale()))
            if skipped:
                p[1].grad[3] = float("nan") if t == 5 else float("inf")
            if t == 8:
                scaler.unscale_(opt)
        grads, before = [raw(p.grad) for p in a], everything(ours)
        for scaler, opt in zip(scalers, (ours, torchs), strict=True):
            scaler.step(opt)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert [raw(p.grad) for p in a] == grads
        assert ours.last_step.skipped is skipped
        if skipped:
            assert everything(ours) == before
        all_close(a, b)
    assert not hasattr(ours, "grad_scale")


def test_grad_scaler_with_clipping() -> None:
    (a,), (b,) = params(shapes=[(50,)]), params(shapes=[(50,)])
    b.data.copy_(a)
    ours, torchs = at.SGD([a], lr=1.0), torch.optim.SGD([b], lr=1.0)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**12) for _ in range(2)]
    for t in range(3):
        for s in scalers:
            s.scale(torch.zeros(()))
        give([[a], [b]], t, scale=2.0**14)
        scalers[0].step(ours, clip_norm=0.5)
        scalers[1].unscale_(torchs)
        norm = torch.nn.utils.clip_grad_norm_([b], 0.5)
        scalers[1].step(torchs)
        for s in scalers:
            s.update()
        assert ours.last_step.grad_norm == pytest.approx(float(norm), rel=1e-6)
        close(a, b)


@every_class
def test_closures(case: Case) -> None:
    a = params(shapes=[(3,)])
    b = twins(a)
    ours, torchs = case.ours(a), case.torchs(b)

    def closure(opt: Any, p: list[Any]) -> Any:
        def evaluate() -> Any:
            assert torch.is_grad_enabled()
            opt.zero_grad()
            loss = (p[0] - 1).square().sum()
            loss.backward()
            return loss

        return evaluate

    with torch.no_grad():
        for _ in range(4):
            close(ours.step(closure(ours, a)), torchs.step(closure(torchs, b)))
    all_close(a, b)
    assert ours.step(closure=lambda: 5) == 5
    give([a], 1)
    before = everything(ours)
    with pytest.raises(ZeroDivisionError):
        ours.step(lambda: 1 / 0)
    assert everything(ours) == before


def test_hooks() -> None:
    p = params(shapes=[(2,)])
    opt = at.SGD(p, lr=1.0)
    seen: list[Any] = []

    def before(o: Any, args: Any, kwargs: Any) -> Any:
        seen.append(("pre", raw(p[0]), dict(kwargs)))
        return args, {**kwargs, "clip_norm": 1.0}

    def after(o: Any, args: Any, kwargs: Any) -> None:
        seen.append(("post", raw(p[0]), dict(kwargs)))

    handles = [opt.register_step_pre_hook(before), opt.register_step_post_hook(after)]
    start = raw(p[0])
    p[0].grad = torch.tensor([3.0, 4.0])
    opt.step()
    assert opt.last_step.grad_norm == 5.0
    assert seen == [("pre", start, {}), ("post", raw(p[0]), {"clip_norm": 1.0})]
    for h in handles:
        h.remove()
    opt.step()
    assert len(seen) == 2
    assert opt.last_step.grad_norm is None
    from torch.optim.optimizer import register_optimizer_step_post_hook

    several: list[str] = []
    handle = register_optimizer_step_post_hook(lambda o, *_: several.append(type(o).__name__))
    opt.step()
    at.Lion(p).step()
    handle.remove()
    assert several == ["SGD", "Lion"]


def test_hooks_of_a_class_that_overrides_step() -> None:
    calls: list[str] = []

    class Mine(at.Adam):  # type: ignore[name-defined, misc]
        def step(self, closure: Any = None) -> Any:
            calls.append("mine")
            return super().step(closure)

    p = params(shapes=[(3,)])
    at.Adam(p)
    opt = Mine(p)
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))
    give([p], 0)
    opt.step()
    assert calls == ["before", "mine", "after"]


def test_pre_hooks_change_the_arguments() -> None:
    p = params(shapes=[(3,)])
    opt = at.SGD(p)
    give([p], 0)
    opt.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 7.0), kwargs))
    assert opt.step() == 7.0
    opt.register_step_pre_hook(lambda *_: 3)
    with pytest.raises(RuntimeError, match="pre-hook"):
        opt.step()


def test_profilers_see_the_step() -> None:
    p = params(shapes=[(3,)])
    opt = at.Adam(p)
    give([p], 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        opt.step()
    assert "Optimizer.step#Adam.step" in {e.key for e in seen.key_averages()}
    with torch.autograd.profiler.profile() as seen_by_the_older_one:
        opt.step()
    assert "Optimizer.step#Adam.step" in {e.key for e in seen_by_the_older_one.key_averages()}


def test_hooks_that_step() -> None:
    """A step inside a hook or a closure is a step of its own, as with torch's."""
    results = []
    for module in (at, torch.optim):
        torch.manual_seed(4)
        p = params("float64", [(3,)])
        opt = module.Adam(p, lr=0.1)
        depth = [0]

        def again(o: Any, *_: Any, depth: list[int] = depth) -> None:
            depth[0] += 1
            if depth[0] < 3:
                o.step()
            depth[0] -= 1

        def closure(o: Any = opt) -> None:
            o.step()

        give([p], 0)
        opt.register_step_post_hook(again)
        opt.step()
        opt.step(closure)
        results.append((p[0].detach(), float(opt.state[p[0]]["step"])))
    assert results[0][1] == results[1][1] == 9
    close(results[0][0], results[1][0])


@pytest.mark.parametrize("kind", ["StepLR", "OneCycleLR", "OneCycleLR-betas", "ReduceLROnPlateau", "LambdaLR"])
def test_schedulers(kind: str) -> None:
    from torch.optim import lr_scheduler

    case = Case("AdamW", {}) if kind == "OneCycleLR-betas" else Case("SGD", {"lr": 0.1, "momentum": 0.9})
    a = params("float64")
    b = twins(a)
    ours, torchs = case.ours(a), case.torchs(b)

    def scheduler(opt: Any) -> Any:
        if kind == "StepLR":
            return lr_scheduler.StepLR(opt, step_size=3, gamma=0.5)
        if kind.startswith("OneCycleLR"):
            return lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=16, cycle_momentum=True)
        if kind == "ReduceLROnPlateau":
            return lr_scheduler.ReduceLROnPlateau(opt, patience=1, factor=0.3)
        return lr_scheduler.LambdaLR(opt, lambda t: 1 / (t + 1))

    pair = [scheduler(ours), scheduler(torchs)]
    rates = set()
    for t in range(12):
        give([a, b], t)
        ours.step()
        torchs.step()
        for s in pair:
            s.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
        assert ours.param_groups[0]["lr"] == torchs.param_groups[0]["lr"]
        rates.add(ours.param_groups[0]["lr"])
    all_close(a, b)
    assert len(rates) > 2


@pytest.mark.parametrize("bound", [0.01, 1.0, 1e6, float("inf")])
def test_clipping_is_torchs(bound: float) -> None:
    a = params("float64", [(30, 4), (5,), ()])
    b = twins(a)
    ours, torchs = at.SGD(a, lr=1.0), torch.optim.SGD(b, lr=1.0)
    for t in range(3):
        give([a, b], t, scale=3.0)
        grads = [raw(p.grad) for p in a]
        ours.step(clip_norm=bound)
        norm = float(torch.nn.utils.clip_grad_norm_(b, bound)) if bound != float("inf") else None
        assert [raw(p.grad) for p in a] == grads
        if norm is not None:
            assert ours.last_step.grad_norm == pytest.approx(norm, rel=1e-14)
            if norm > bound:  # torch divides by a norm that is 1e-6 larger
                for p in b:
                    p.grad *= (norm + 1e-6) / norm
        torchs.step()
        all_close(a, b)


def test_clipping_of_complex_gradients() -> None:
    a = params("complex128", [(30,)]) + params("float64", [(4,)])
    b = twins(a)
    ours, torchs = at.SGD(a, lr=1.0), torch.optim.SGD(b, lr=1.0)
    give([a, b], 0)
    ours.step(clip_norm=0.5)
    norm = float(torch.nn.utils.clip_grad_norm_(b, 0.5))
    torchs.step()
    assert ours.last_step.grad_norm == pytest.approx(norm, rel=1e-14)
    all_close(a, b, 1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_class
def test_skipped_steps_change_nothing(case: Case, bad: float) -> None:
    p = params(shapes=[(3, 4), (5,)])
    opt = case.ours(p)
    for t in range(3):
        give([p], t)
        if t != 1:
            p[1].grad[2] = bad
            before = everything(opt)
            opt.step(skip_nonfinite=True)
            assert opt.last_step.skipped
            assert everything(opt) == before
        else:
            opt.step(skip_nonfinite=True)
            assert not opt.last_step.skipped
            assert opt.last_step.grad_norm > 0


def test_zero_grad() -> None:
    p = params()
    opt = at.Adam(p)
    give([p], 0)
    opt.step()
    opt.zero_grad(set_to_none=False)
    assert all(bool((x.grad == 0).all()) for x in p)
    opt.step()
    opt.zero_grad()
    assert all(x.grad is None for x in p)
    before = everything(opt)
    opt.step()
    assert everything(opt) == before


# Autograd


@every_class
def test_versions_of_params(case: Case) -> None:
    p = [*params(shapes=[(3,), (4,), ()]), torch.zeros(3, dtype=torch.complex64), torch.zeros(8)[::2]]
    opt = case.ours(p)
    for t in range(2):
        give([p], t, but=[1])
        before = [x._version for x in p]
        opt.step()
        assert [x._version > v for x, v in zip(p, before, strict=True)] == [True, False, True, True, True]
    give([p], 5)
    p[0].grad[1] = float("nan")
    before = [x._version for x in p]
    opt.step(skip_nonfinite=True)
    assert [x._version for x in p] == before
    give([p], 6)
    opt.step(skip_nonfinite=True)
    assert all(x._version > v for x, v in zip(p, before, strict=True))


def test_a_stale_backward_raises() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    opt = at.SGD([w], lr=0.1)
    w.grad = torch.ones(3)
    y = (w * w).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    opt.zero_grad()
    y = (w * w).sum()
    opt.step()  # nothing to do
    y.backward()
    w.grad[0] = float("inf")
    y = (w * w).sum()
    opt.step(skip_nonfinite=True)
    y.backward()
    assert w.grad is not None


def test_a_step_in_the_backward_pass() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).double()
    other = copy.deepcopy(model)
    optimizers = {p: at.Adam([p], lr=0.1) for p in model.parameters()}

    def at_once(p: Any) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(at_once)
    torchs = torch.optim.Adam(other.parameters(), lr=0.1)
    for _ in range(3):
        x = torch.randn(5, 3).double()
        model(x).square().sum().backward()
        torchs.zero_grad()
        other(x).square().sum().backward()
        torchs.step()
    all_close(list(model.parameters()), list(other.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_models(backend: str) -> None:
    in_another_process(
        f"""
import copy, torch, adaptk.torch
torch.manual_seed(0)
plain = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
model = copy.deepcopy(plain)
compiled = torch.compile(model, backend={backend!r})
a, b = adaptk.torch.AdamW(compiled.parameters(), lr=0.05), torch.optim.AdamW(plain.parameters(), lr=0.05)
for t in range(5):
    x = torch.randn(16, 4)
    for m, o in ((compiled, a), (plain, b)):
        o.zero_grad()
        m(x).square().mean().backward()
        o.step()
for p, q in zip(model.parameters(), plain.parameters()):
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)

# A step inside of what is compiled breaks the graph and runs as it is.
w = torch.nn.Parameter(torch.ones(3))
o = adaptk.torch.SGD([w], lr=0.5)

@torch.compile(backend={backend!r})
def train(x):
    (w * x).sum().backward()
    o.step()
    o.zero_grad()

train(torch.ones(3))
train(torch.ones(3))
assert w.tolist() == [0.0] * 3, w
""",
        600,
    )


def test_hogwild() -> None:
    """Processes that train one model in shared memory, without a lock."""
    out = in_another_process(
        """
import torch, adaptk.torch
from torch import multiprocessing

def train(model, opt, seed):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    for _ in range(40):
        x = torch.randn(8, 2)
        opt.zero_grad()
        (model(x) - x.sum(1, keepdim=True) - 1).square().mean().backward()
        opt.step()

torch.set_num_threads(1)
model = torch.nn.Linear(2, 1)
model.share_memory()
opt = adaptk.torch.Adagrad(model.parameters(), lr=0.3)
opt.share_memory()
for state in opt.state.values():
    state["step"].share_memory_()
start = [p.data_ptr() for p in model.parameters()]
context = multiprocessing.get_context("fork")
workers = [context.Process(target=train, args=(model, opt, i)) for i in range(2)]
for w in workers:
    w.start()
for w in workers:
    w.join()
    assert w.exitcode == 0
assert start == [p.data_ptr() for p in model.parameters()]
x = torch.randn(64, 2)
print(float((model(x) - x.sum(1, keepdim=True) - 1).square().mean().detach()))
print(min(float(s["step"]) for s in opt.state.values()))
train(model, opt, 3)
"""
    )
    loss, steps = map(float, out.split())
    assert loss < 0.05
    assert 40 <= steps <= 80


def test_states_that_move_into_shared_memory() -> None:
    a = params()
    b = twins(a)
    ours, torchs = at.NAdam(a), torch.optim.NAdam(b, foreach=False)
    for t in range(4):
        give([a, b], t)
        ours.step()
        torchs.step()
        for x in [*a, *(v for s in ours.state.values() for v in s.values())]:
            x.share_memory_()
    all_close(a, b)
    states_close(ours, a, torchs, b)


# Threads and memory


def held_up(opt: Any) -> tuple[threading.Event, threading.Event]:
    """The optimizer's next step waits where it meets a param for the first time: (it is there, it may go on)."""
    there, go_on = threading.Event(), threading.Event()
    bind = opt._bind

    def wait(*args: Any) -> Any:
        there.set()
        assert go_on.wait(30)
        return bind(*args)

    opt._bind = wait
    return there, go_on


def test_two_threads_step_one_optimizer() -> None:
    a = params()
    b = twins(a)
    opt, alone = at.Adam(a), at.Adam(b)
    give([a, b], 0)
    there, go_on = held_up(opt)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            opt.step()
        except BaseException as e:  # for the other thread to look at
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    assert there.wait(30)
    with pytest.raises(RuntimeError, match="being stepped by another thread"):
        opt.step()
    go_on.set()
    thread.join()
    assert not errors
    alone.step()
    assert same_bits(a, b)
    assert [float(opt.state[p]["step"]) for p in a] == [1.0] * len(a)
    give([a, b], 1)
    opt.step()
    alone.step()
    assert same_bits(a, b)


def test_a_step_inside_of_a_native_step_is_refused() -> None:
    p = params(shapes=[(3,)])
    opt = at.Adam(p)
    bind = opt._bind

    def again(*args: Any) -> Any:
        opt.step()
        return bind(*args)

    opt._bind = again
    give([p], 0)
    before = everything(opt)
    with pytest.raises(RuntimeError, match="being stepped"):
        opt.step()
    assert everything(opt) == before
    opt._bind = bind
    opt.step()
    assert float(opt.state[p[0]]["step"]) == 1


@pytest.fixture(params=["face", "DLPack"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether tensors are looked at without Python; their states are kept for a step longer then."""
    if request.param == "DLPack":
        monkeypatch.setattr(at, "_face", dict)
    elif not at._face():
        pytest.skip("the native step does not know this PyTorch")
    return request.param == "face"


def test_states_replaced_by_another_thread_during_a_step(face: bool) -> None:
    """The step ends with what it began with; the next one finds the new states."""
    p = params(shapes=[(100,), (3,)])
    opt = at.Adam(p)
    give([p], 0, but=[1])
    opt.step()
    give([p], 1)
    old = weakref.ref(opt.state[p[0]]["exp_avg"])
    there, go_on = held_up(opt)
    thread = threading.Thread(target=opt.step)
    thread.start()
    assert there.wait(30)
    opt.state[p[0]] = {}
    gc.collect()
    assert old() is not None
    go_on.set()
    thread.join()
    assert (old() is not None) == face
    assert opt.state[p[0]] == {}
    assert float(opt.state[p[1]]["step"]) == 1
    del opt._bind
    give([p], 2)
    opt.step()
    assert old() is None
    assert float(opt.state[p[0]]["step"]) == 1
    assert float(opt.state[p[1]]["step"]) == 2


def test_two_optimizers_in_two_threads() -> None:
    lists = [params(shapes=[(200, 200), (7,)]) for _ in range(2)]
    copies = [twins(p) for p in lists]
    optimizers = [at.AdamW(p, lr=0.1) for p in lists]

    def train(opt: Any, p: list[Any]) -> None:
        for t in range(20):
            give([p], t)
            opt.step(clip_norm=1.0)

    threads = [threading.Thread(target=train, args=x) for x in zip(optimizers, lists, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for p, q in zip(lists, copies, strict=True):
        train(at.AdamW(q, lr=0.1), q)
        assert same_bits(p, q)


@pytest.mark.parametrize("name", [*TORCHS, *OWN])
def test_nothing_is_kept_alive(name: str) -> None:
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    p = [*params(), torch.zeros(8)[::2], torch.zeros(3, dtype=torch.complex64)]
    opt = getattr(at, name)(p, **options)
    for t in range(3):
        give([p], t)
        opt.step()
    alive = [weakref.ref(x) for x in p] + [weakref.ref(x.grad) for x in p]
    alive += [weakref.ref(v) for s in opt.state.values() for v in s.values()]
    alive += [weakref.ref(opt), weakref.ref(opt._plan)]
    del p, opt
    gc.collect()
    assert [r() for r in alive] == [None] * len(alive)


def test_states_are_freed_when_they_are_replaced(face: bool) -> None:
    """At once where DLPack is asked, so that a loop can take them off a device between steps; by the next step else."""
    p = [*params(shapes=[(3,), (4,)]), torch.zeros(8)[::2], torch.zeros(3, dtype=torch.complex64)]
    opt = at.Adam(p)
    for t in range(3):
        give([p], t)
        opt.step()
    gc.disable()
    try:
        old = [weakref.ref(v) for s in opt.state.values() for v in s.values()]
        for state in opt.state.values():
            for name in list(state):
                state[name] = state[name].clone()
        del state
        assert face or not any(r() is not None for r in old)
        grads = [weakref.ref(x.grad) for x in p]
        opt.zero_grad()
        assert not any(r() is not None for r in grads)
        give([p], 4)
        opt.step()
        assert not any(r() is not None for r in old)
        old = [weakref.ref(v) for s in opt.state.values() for v in s.values()]
        opt.state.clear()
        assert face or not any(r() is not None for r in old)
        opt.step()
        assert not any(r() is not None for r in old)
    finally:
        gc.enable()
    assert [float(s["step"]) for s in opt.state.values()] == [1.0] * 4


def test_states_at_the_addresses_of_old_ones() -> None:
    """New objects are often where others were; what a step remembers of those is not to be believed."""
    a = params("float64", [(3,), (4,)])
    b = twins(a)
    ours, torchs = at.Adam(a), torch.optim.Adam(b, foreach=False)
    for t in range(50):
        for o in (ours, torchs):
            for state in o.state.values():
                for name in list(state):
                    dtype = state[name].dtype
                    values = state.pop(name).tolist()
                    state[name] = torch.tensor(values, dtype=dtype)
        give([a, b], t)
        ours.step()
        torchs.step()
    all_close(a, b)
    for junk in (None, 3, "x", [1.0], np.zeros(3)):
        state = ours.state[a[0]]
        del state["exp_avg"]
        state["exp_avg"] = junk
        if junk is None:
            ours.step()
        else:
            with pytest.raises(TypeError, match="exp_avg"):
                ours.step()


def test_an_optimizer_in_a_cycle_is_collected() -> None:
    """A param may refer to the optimizer that holds it: torch's own class goes with such a cycle."""
    alive = []
    for module in (torch.optim, at):
        (p,) = params(shapes=[(3,)])
        opt = module.Adam([p])
        p.optimizer = opt
        give([[p]], 0)
        opt.step()
        assert float(opt.state[p]["step"]) == 1
        alive += [weakref.ref(p), weakref.ref(opt)]
    alive.append(weakref.ref(opt._plan))
    del p, opt
    gc.collect()
    assert [r() for r in alive] == [None] * len(alive)


def test_reference_counts_do_not_grow() -> None:
    p = [*params(shapes=[(3,), (4,)]), torch.zeros(8)[::2], torch.zeros(3, dtype=torch.complex64)]
    opt = at.NAdam(p, lr=0.123)
    give([p], 0)

    def counts() -> list[int]:
        objects = [*p, *(x.grad for x in p), *(v for s in opt.state.values() for v in s.values())]
        objects += [*opt.state.values(), opt, opt._plan, opt.param_groups, opt.param_groups[0], opt.state]
        return [sys.getrefcount(x) for x in objects]

    def steps(n: int) -> None:
        for i in range(n):
            opt.step(skip_nonfinite=i % 2 == 0)
            if i % 100 == 0:
                p[0].grad[0] = float("nan")
                opt.step(skip_nonfinite=True)
                p[0].grad[0] = 1.0
                opt.param_groups[0]["lr"] = -1.0
                with pytest.raises(ValueError, match="lr"):
                    opt.step()
                opt.param_groups[0]["lr"] = 0.123

    steps(10)
    gc.collect()
    before, objects = counts(), len(gc.get_objects())
    steps(1000)
    gc.collect()
    assert counts() == before
    assert abs(len(gc.get_objects()) - objects) < 50


def test_a_failed_step_leaks_nothing() -> None:
    p = params(shapes=[(3,), (4,)])
    opt = at.Adam(p)
    give([p], 0)
    p[1].grad = sparse((4,))
    for _ in range(5):
        with pytest.raises(RuntimeError, match="sparse"):
            opt.step()
    assert not opt.state
    grads = [weakref.ref(x.grad) for x in p]
    opt.zero_grad()
    gc.collect()
    assert [g() for g in grads] == [None, None]


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


@pytest.mark.slow
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


def test_the_native_step_knows_the_pytorch_that_is_tested_here() -> None:
    known = sys.platform == "linux" and ".".join(torch.__version__.split(".")[:2]) in at._KNOWN_RELEASES
    assert bool(at._face()) == known or at._face is dict


def test_gradients_replaced_by_another_thread_during_long_steps() -> None:
    """A step without the GIL ends with the gradient that it began with, or takes the next one: never a freed one."""
    p = [torch.nn.Parameter(torch.zeros(1 << 18)) for _ in range(3)]
    opt = at.SGD(p, lr=1.0)
    for x in p:
        x.grad = torch.ones_like(x)
    done = threading.Event()

    def replace() -> None:
        while not done.is_set():
            for x in p:
                x.grad = torch.ones_like(x)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(50):
            opt.step()
    finally:
        done.set()
        thread.join()
    assert all(torch.equal(x.detach(), torch.full_like(x, -50.0)) for x in p)
