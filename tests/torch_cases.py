"""Cases and comparisons of the tests of adaptk.torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
at = pytest.importorskip("adaptk.torch")
Tensor = torch.Tensor


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
    """A class of torch and options for it."""

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


every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


SHAPES = ((3, 4), (5,), (), (2, 0, 3), (1,))


# A few units in the last place of float32, relative to the largest compared number, because sums may cancel.
TOLERANCE = {"float32": 2e-6, "float64": 1e-12, "complex64": 2e-6, "complex128": 1e-12}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20)


def params(dtype: str = "float32", shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Any]:
    return [torch.nn.Parameter(torch.randn(shape, dtype=getattr(torch, dtype))) for shape in shapes]


def twins(several: Sequence[Any]) -> list[Any]:
    """Copies with the same layout."""
    return [p.detach().clone().requires_grad_(p.requires_grad) for p in several]


def give(several: Sequence[Sequence[Any]], seed: int, scale: float = 1.0, but: Sequence[int] = ()) -> None:
    """Set the same random gradients for each list of params, except for the indices in `but`."""
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
    """All arrays that a step may change, bit for bit."""
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


def in_another_process(code: str, timeout: float = 120) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Steps that fail


def sparse_beyond(shape: tuple[int, ...]) -> Any:
    """A sparse gradient with an index out of range."""
    return torch.sparse_coo_tensor(torch.tensor([[7]]), torch.ones(1), shape, check_invariants=False)
