"""``adaptk bench --device cuda``: every rule compared with a device copy, its memory traffic, and other optimizers.

Times are the device's own, between two events on the stream, measured alternately; the median of the ratios is printed.
The copy moves as many bytes as the update: half of them are read and half are written.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import adaptk
from adaptk import _core
from adaptk._cli._screen import Cell, Column, Screen, progress
from adaptk._registry import RULES, Rule

Call = Callable[[], object]


class Library(Protocol):
    """The library that makes the arrays and times the device."""

    name: str

    def full(self, size: int, value: float, dtype: str) -> Any: ...
    def copy(self, target: Any, source: Any) -> None: ...
    def seconds(self, call: Call, calls: int) -> float:
        """The device's mean time of `number` calls."""
        ...


class Torch:
    """Arrays and events of PyTorch."""

    name = "torch"

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")

    def full(self, size: int, value: float, dtype: str) -> Any:
        return self._torch.full((size,), value, dtype=getattr(self._torch, dtype), device="cuda")

    def copy(self, target: Any, source: Any) -> None:
        target.copy_(source)

    def seconds(self, call: Call, calls: int) -> float:
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / calls


class CuPy:
    """Arrays and events of CuPy."""

    name = "cupy"

    def __init__(self) -> None:
        self._cupy: Any = importlib.import_module("cupy")

    def full(self, size: int, value: float, dtype: str) -> Any:
        if dtype == "bfloat16":
            raise SystemExit("bench: bfloat16 on a device needs torch")
        return self._cupy.full(size, value, dtype=dtype)

    def copy(self, target: Any, source: Any) -> None:
        self._cupy.copyto(target, source)

    def seconds(self, call: Call, calls: int) -> float:
        begin, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(begin, end)) * 1e-3 / calls


def library() -> Library:
    """The library that is installed and finds a device.

    Raises
    ------
    SystemExit
        If there is no device or no library; the message has the reason.
    """
    if not adaptk.cuda.is_available():
        built = adaptk.build_info()["cuda"] is not None
        raise SystemExit(
            "bench: no CUDA device answers" if built else "bench: this build has no CUDA kernels; see the README"
        )
    for name, make in (("torch", Torch), ("cupy", CuPy)):
        if importlib.util.find_spec(name) is not None:
            return make()
    raise SystemExit("bench: --device cuda takes its arrays from torch or CuPy, and neither is installed")


@dataclass(frozen=True)
class CudaResult:
    """One line of the table. Times are medians of one step, in seconds; a ratio is another time over adaptk's."""

    rule: str
    dtype: str
    size: int
    bytes_per_parameter: int
    seconds: float
    of_copy: float
    of_ceiling: float | None
    peers: dict[str, float]


def _torch_peers(rule: Rule, param: Any, grad: Any) -> Iterator[tuple[str, Call]]:
    """The optimizers of torch, apex and TransformerEngine that compute this rule."""
    import torch

    classes: dict[str, tuple[str, dict[str, Any]]] = {
        "sgd": ("SGD", {}),
        "momentum": ("SGD", {"momentum": 0.9}),
        "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
        "adagrad": ("Adagrad", {}),
        "rmsprop": ("RMSprop", {}),
        "rmsprop_centered": ("RMSprop", {"centered": True}),
        "rmsprop_momentum": ("RMSprop", {"momentum": 0.9}),
        "rmsprop_centered_momentum": ("RMSprop", {"centered": True, "momentum": 0.9}),
        "adadelta": ("Adadelta", {}),
        "adam": ("Adam", {}),
        "amsgrad": ("Adam", {"amsgrad": True}),
        "adamw": ("AdamW", {}),
        "adamax": ("Adamax", {}),
        "nadam": ("NAdam", {}),
        "radam": ("RAdam", {}),
        "rprop": ("Rprop", {}),
        "asgd": ("ASGD", {}),
    }
    others = {"sgd": "FusedSGD", "momentum": "FusedSGD", "adagrad": "FusedAdagrad", "adam": "FusedAdam"}

    def ready(make: Callable[[], Any]) -> Call | None:
        try:
            optimizer = make()
            optimizer.step()
        except (AttributeError, ImportError, RuntimeError, TypeError, ValueError):
            return None  # this version has no such optimizer, or does not support these tensors
        step: Call = optimizer.step
        return step

    leaf = torch.nn.Parameter(param.detach())
    leaf.grad = grad
    if rule.name in classes:
        name, options = classes[rule.name]
        for kind in ("fused", "foreach"):
            call = ready(lambda kind=kind: getattr(torch.optim, name)([leaf], **options, **{kind: True}))  # type: ignore[misc]
            if call is not None:
                yield f"torch {kind}", call
    if rule.name in others:
        options = {"lr": 1e-3, "momentum": 0.9} if rule.name == "momentum" else {"lr": 1e-3}
        modules = {"apex": "apex.optimizers", "TransformerEngine": "transformer_engine.pytorch.optimizers"}
        for label, module in modules.items():
            try:
                found = getattr(importlib.import_module(module), others[rule.name])
            except (ImportError, AttributeError):
                continue
            call = ready(lambda found=found: found([leaf], **options))  # type: ignore[misc]
            if call is not None:
                yield label, call


def in_turns(
    calls: Mapping[str, Call], repeats: int, using: Library, burst: float = 2e-3, most: int = 100
) -> dict[str, list[float]]:
    """The device's times of several calls, measured alternately, in bursts of about `burst` seconds."""
    counts = {}
    for name, call in calls.items():
        using.seconds(call, 2)  # loads modules, fills pools
        counts[name] = max(1, min(most, int(burst / max(using.seconds(call, 1), 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(using.seconds(call, counts[name]))
    return times


def measure(rule: Rule, dtype: str, size: int, repeats: int, using: Library) -> CudaResult:
    """Compare one rule with everything that is installed."""
    compute = "float64" if dtype == "float64" else "float32"
    item = {"float64": 8, "float32": 4}.get(dtype, 2)
    wide = {"float64": 8, "float32": 4}[compute]
    param, grad = using.full(size, 1.0, dtype), using.full(size, 1e-3, dtype)
    states = [using.full(size, max(value, 1e-6), compute) for value in rule.initial_states().values()]
    moved = 3 * item + 2 * len(states) * wide
    half = using.full(-(-size * moved // 8), 0.0, "float32")
    other = using.full(-(-size * moved // 8), 0.0, "float32")
    function = getattr(adaptk.ops, rule.name)
    calls: dict[str, Call] = {
        "update": lambda: function(param, grad, *states, step=10),
        "copy": lambda: using.copy(other, half),
    }
    if dtype == compute:
        calls["ceiling"] = lambda: _core.bandwidth_probe([param, grad, *states])
    if using.name == "torch":
        calls.update(_torch_peers(rule, param, grad))
    times = in_turns(calls, repeats, using)

    def over(name: str) -> float:
        return statistics.median(t / u for t, u in zip(times[name], times["update"], strict=True))

    return CudaResult(
        rule=rule.name,
        dtype=dtype,
        size=size,
        bytes_per_parameter=moved,
        seconds=statistics.median(times["update"]),
        of_copy=over("copy"),
        of_ceiling=over("ceiling") if "ceiling" in calls else None,
        peers={name: over(name) for name in calls if name not in ("update", "copy", "ceiling")},
    )


LEGEND = (
    "Times of the device, medians of ratios. of copy: a copy of as many bytes, over the step: 1.00 is as fast as the "
    "device copies. of ceiling: a kernel that reads and writes the same arrays. Others: their time over adaptk's; "
    "above 1, adaptk is faster. B/param: bytes that a step moves for each parameter."
)


def run(
    rules: Sequence[str], dtypes: Sequence[str], sizes: Sequence[int], repeats: int, using: Library
) -> list[CudaResult]:
    """Measure and print everything."""
    combinations = list(itertools.product(dtypes, sizes, rules))
    results = []
    with progress(len(combinations)) as bar:
        for dtype, size, name in combinations:
            bar.describe(f"{name} {dtype} {size}")
            results.append(measure(RULES[name], dtype, size, repeats, using))
            bar.advance()
    return results


def show(screen: Screen, results: Sequence[CudaResult]) -> None:
    """Print the table, with a column for each other optimizer."""
    from adaptk._bench import size_text

    peers = list(dict.fromkeys(name for r in results for name in r.peers))
    columns = [
        Column("rule", left=True, style="cyan"),
        Column("dtype", left=True, drop=1),
        Column("size", drop=1),
        Column("B/param", drop=3),
        Column("of copy", style="bold"),
        Column("of ceiling", drop=2),
        *(Column(name) for name in peers),
    ]

    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows: list[list[Cell]] = [
        [
            r.rule,
            r.dtype,
            size_text(r.size),
            str(r.bytes_per_parameter),
            ratio(r.of_copy),
            ratio(r.of_ceiling),
            *(ratio(r.peers.get(name)) for name in peers),
        ]
        for r in results
    ]
    screen.table(columns, rows)
    screen.line()
    screen.note(LEGEND)
