"""adaptk.torch beside torch's own optimizers, DeepSpeed's and optax's, on the CPU and in one run.

``python bench/torch_race.py [--json FILE] [--plot FILE.png] [--check]``

The contenders take turns. What is printed is the median time of each over adaptk's, "3.1" meaning that adaptk takes a
3.1th of the time, with the quartiles of the same ratio round by round: an absolute time says more about the machine's
other tenants. Each number of threads has a process of its own, because thread pools do not shrink.

Three things are measured: steps of one tensor, from 64 to 64M elements; steps of many tensors, among them the params
of ResNet-50, of GPT-2 and of BERT-base; and whole training loops, where the optimizer is a part of what is waited for.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import gzip
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import adaptk
import numpy as np
from adaptk._bench import _size, machine, size_text
from adaptk._registry import RULES

Shape: TypeAlias = tuple[int, ...]
Record: TypeAlias = dict[str, Any]
Started = TypeVar("Started")

# From here on a step is bound by memory and not by caches and calls, and the ceiling means something.
CEILING_FROM = 4 * 1024**2

# ---------------------------------------------------------------------------------------------------------------------
# Rules and contenders
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Race:
    """One rule: what it is called in each library, with the same options where they have the same meaning."""

    torch: str  # the class in adaptk.torch
    options: dict[str, Any] = field(default_factory=dict)
    in_torch: bool = True  # whether torch.optim has it too
    fused: bool = False  # and whether it is fused there on the CPU
    optax: str | None = None
    optax_options: dict[str, Any] = field(default_factory=dict)
    deepspeed: str | None = None
    deepspeed_options: dict[str, Any] = field(default_factory=dict)


_RMS = {"decay": 0.99}
RACES: dict[str, Race] = {
    "sgd": Race("SGD", fused=True, optax="sgd"),
    "momentum": Race("SGD", {"momentum": 0.9}, fused=True, optax="sgd", optax_options={"momentum": 0.9}),
    "nesterov": Race(
        "SGD",
        {"momentum": 0.9, "nesterov": True},
        fused=True,
        optax="sgd",
        optax_options={"momentum": 0.9, "nesterov": True},
    ),
    "adagrad": Race("Adagrad", fused=True, optax="adagrad", deepspeed="adagrad.DeepSpeedCPUAdagrad"),
    "adam": Race(
        "Adam",
        fused=True,
        optax="adam",
        deepspeed="adam.DeepSpeedCPUAdam",
        deepspeed_options={"adamw_mode": False},
    ),
    "amsgrad": Race("Adam", {"amsgrad": True}, fused=True, optax="amsgrad"),
    "adamw": Race("AdamW", fused=True, optax="adamw", deepspeed="adam.DeepSpeedCPUAdam"),
    "adamax": Race("Adamax", optax="adamax"),
    "nadam": Race("NAdam", optax="nadam"),
    "radam": Race("RAdam", optax="radam"),
    "adadelta": Race("Adadelta", optax="adadelta"),
    "rmsprop": Race("RMSprop", optax="rmsprop", optax_options=_RMS),
    "rmsprop_centered": Race("RMSprop", {"centered": True}, optax="rmsprop", optax_options={**_RMS, "centered": True}),
    "rmsprop_momentum": Race("RMSprop", {"momentum": 0.9}, optax="rmsprop", optax_options={**_RMS, "momentum": 0.9}),
    "rmsprop_centered_momentum": Race(
        "RMSprop",
        {"centered": True, "momentum": 0.9},
        optax="rmsprop",
        optax_options={**_RMS, "centered": True, "momentum": 0.9},
    ),
    "rprop": Race("Rprop", optax="rprop"),
    "asgd": Race("ASGD"),
    "lion": Race("Lion", in_torch=False, optax="lion", deepspeed="lion.DeepSpeedCPULion"),
    "adabelief": Race("AdaBelief", in_torch=False, optax="adabelief"),
    "yogi": Race("Yogi", in_torch=False, optax="yogi"),
    "adan": Race("Adan", in_torch=False, optax="adan"),
    "delta_bar_delta": Race("DeltaBarDelta", in_torch=False),
    "rmsprop_nesterov": Race("RMSpropNesterov", in_torch=False),
}
# Where a case is long or one of many variants, these stand for all.
USUAL = ("momentum", "adam", "adamw", "adagrad", "rmsprop", "nadam", "adadelta")

CONTENDERS = {
    "adaptk": "adaptk.torch",
    "fused": "torch, fused=True",
    "foreach": "torch, foreach=True",
    "single": "torch, one tensor after another",
    "compiled": "torch.compile of the step",
    "deepspeed": "DeepSpeed",
    "optax": "optax, jax.jit, donated buffers",
}
EAGER = ("fused", "foreach", "single")
LR = 1e-3


class NotHere(Exception):
    """Why a contender does not take part."""


@dataclass
class Contender:
    """Something whose steps are timed."""

    step: Callable[[], object]
    wait: Callable[[], object] = lambda: None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _forward_count(optimizer: Any) -> None:
    """As after a hundred steps: the first ones of some rules are others than the rest."""
    import torch

    for state in optimizer.state.values():
        count = state.get("step")
        if isinstance(count, torch.Tensor):
            count.fill_(100.0)


def torch_optimizer(name: str, race: Race, params: Sequence[Any], lr: float = LR) -> Any:
    """An optimizer of torch's interface by the contender's name."""
    import torch

    if name == "adaptk":
        import adaptk.torch

        return getattr(adaptk.torch, race.torch)(params, lr=lr, **race.options)
    if name == "deepspeed":
        if race.deepspeed is None:
            raise NotHere("DeepSpeed has no such rule for the CPU")
        try:
            module, cls = race.deepspeed.split(".")
            found = getattr(importlib.import_module(f"deepspeed.ops.{module}"), cls)
        except ImportError as e:
            raise NotHere(f"not installed ({_first_line(e)})") from None
        try:
            return found(params, lr=lr, **race.deepspeed_options)
        except Exception as e:  # it compiles its kernel here, which fails in many ways
            raise NotHere(f"its kernel cannot be had ({_first_line(e)})") from None
    if not race.in_torch:
        raise NotHere("torch has no such rule")
    how: dict[str, Any] = {"foreach": name == "foreach"}
    if name == "fused":
        if not race.fused:
            raise NotHere("torch does not fuse this rule on the CPU")
        how = {"fused": True}
    return getattr(torch.optim, race.torch)(params, lr=lr, **race.options, **how)


class Compiled:
    """A step under torch.compile, which says when it does not stay compiled."""

    def __init__(self, optimizer: Any, tensors: int, most: int) -> None:
        import torch

        if tensors > most:
            raise NotHere(f"would compile for minutes: {tensors} tensors, --compile-tensors {most}")
        torch._dynamo.reset()
        torch._logging.set_logs(all=50)
        self._optimizer = optimizer
        self.step = torch.compile(optimizer.step, dynamic=False)
        try:
            self.step()
            _forward_count(optimizer)
            for _ in range(3):
                self.step()
        except Exception as e:
            raise NotHere(f"does not compile ({_first_line(e)})") from None
        self._graphs = self._count()

    @staticmethod
    def _count() -> int:
        import torch

        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def stayed(self) -> bool:
        """Whether what has run since was compiled before."""
        return self._count() == self._graphs


class Optax:
    """An optax update of arrays of its own, which each step gives up for the next ones."""

    def __init__(self, race: Race, shapes: Sequence[Shape]) -> None:
        if race.optax is None:
            raise NotHere("optax has no such rule")
        try:
            import jax
            import optax
        except ImportError as e:
            raise NotHere(f"not installed ({_first_line(e)})") from None
        rule = getattr(optax, race.optax)(LR, **race.optax_options)
        device = jax.devices("cpu")[0]
        self._jax = jax
        self._grads = [jax.device_put(_line(s, 1e-3, 2e-3), device) for s in shapes]
        self._params = [jax.device_put(_line(s, 0.5, 1.5), device) for s in shapes]

        def init(params: Any) -> Any:
            # Where several states start as the same zeros they would be one array, which cannot be given up twice.
            return jax.tree.map(lambda a: jax.numpy.array(a, copy=True), rule.init(params))

        def update(params: Any, grads: Any, state: Any) -> Any:
            changes, state = rule.update(grads, state, params)
            return optax.apply_updates(params, changes), state

        self._state = init(self._params)
        self._update = jax.jit(update, donate_argnums=(0, 2))

    def step(self) -> None:
        self._params, self._state = self._update(self._params, self._grads, self._state)

    def wait(self) -> None:
        self._jax.block_until_ready((self._params, self._state))


def _line(shape: Shape, low: float, high: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    # All of one sign and far from zero, so that no state of any rule decays into subnormal numbers.
    return np.linspace(low, high, math.prod(shape), dtype=np.float32).reshape(shape)


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------


def resnet50() -> list[Shape]:
    """The params of ResNet-50 (He et al. 2015, table 1), stride in the 3x3 convolutions, 1000 classes."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for out, into, kernel in ((width, channels, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, into, kernel, kernel), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def gpt2() -> list[Shape]:
    """The params of GPT-2 with 12 layers (Radford et al. 2019); the output shares the embedding's weights."""
    vocabulary, positions, width = 50257, 1024, 768
    shapes: list[Shape] = [(vocabulary, width), (positions, width)]
    for _ in range(12):
        shapes += [(width,), (width,)]
        shapes += [(width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += [(width,), (width,)]
        shapes += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*shapes, (width,), (width,)]


def bert_base() -> list[Shape]:
    """The params of BERT-base, uncased (Devlin et al. 2018): embeddings, 12 layers and the pooler."""
    vocabulary, positions, segments, width = 30522, 512, 2, 768
    shapes: list[Shape] = [(vocabulary, width), (positions, width), (segments, width), (width,), (width,)]
    for _ in range(12):
        shapes += [(width, width), (width,)] * 4
        shapes += [(width,), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
        shapes += [(width,), (width,)]
    return [*shapes, (width, width), (width,)]


MODELS: dict[str, Callable[[], list[Shape]]] = {"resnet50": resnet50, "gpt2": gpt2, "bert": bert_base}
MODEL_TITLES = {"resnet50": "ResNet-50", "gpt2": "GPT-2 (124M)", "bert": "BERT-base"}
LOOPS = {"digits": "digits network", "transformer": "character transformer"}
CASES = ("1000x64", "200x4096", *MODELS, *LOOPS)


def case_shapes(case: str, shrink: bool = False) -> list[Shape]:
    """The shapes of the params of a case: a size, a count of tensors times a size, or a model."""
    if case in MODELS:
        shapes = MODELS[case]()
        return [tuple(max(1, n // 16) for n in s) for s in shapes] if shrink else shapes
    count, _, size = case.rpartition("x")
    return [(_size(size),)] * (int(count) if count else 1)


def case_title(case: str, shapes: Sequence[Shape]) -> str:
    total = sum(math.prod(s) for s in shapes)
    if case in MODELS:
        return f"{MODEL_TITLES[case]}: {len(shapes)} tensors, {total:,} elements"
    if len(shapes) == 1:
        return f"one tensor of {size_text(total)} elements"
    return f"{len(shapes)} tensors of {size_text(math.prod(shapes[0]))} elements"


# ---------------------------------------------------------------------------------------------------------------------
# Measuring steps
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds until there are `repeats`, or until `seconds` have passed and there are three."""

    repeats: int
    seconds: float
    # A burst of short steps is timed as a whole, and there are untimed ones before it: the threads of the contender
    # that had its turn before spin for some milliseconds while they wait for more work.
    burst: float = 5e-3
    settle: float = 4e-3

    def rounds(self) -> Iterator[int]:
        start = time.perf_counter()
        for i in range(self.repeats):
            if i >= 3 and time.perf_counter() - start > self.seconds:
                return
            yield i


def in_turn(
    contenders: Mapping[str, Contender], effort: Effort, renew: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Seconds a step of each contender, one number a round.

    `renew` is called before every single step, outside of what is timed.
    """

    def burst(c: Contender, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            c.step()
        c.wait()
        return (time.perf_counter() - start) / calls

    def one(c: Contender) -> float:
        if renew is not None:
            renew()
        return burst(c, 1)

    about = {name: max(min(one(c), one(c)), 1e-7) for name, c in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in effort.rounds():
        # Another one goes first in each round.
        for name in names[i % len(names) :] + names[: i % len(names)]:
            c, calls = contenders[name], max(1, int(effort.burst / about[name]))
            if renew is None:
                if about[name] < effort.settle:
                    burst(c, max(1, int(effort.settle / about[name])))
                times[name].append(burst(c, calls))
            else:
                one(c)
                times[name].append(statistics.fmean(one(c) for _ in range(min(calls, 10))))
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third."""
    if len(values) < 2:
        return [values[0], values[0]]
    q = statistics.quantiles(values, n=4, method="inclusive")
    return [q[0], q[2]]


def compared(times: Mapping[str, Sequence[float]], to: str) -> dict[str, Record]:
    """Medians, and ratios to one of the contenders: above 1, that one is the faster."""
    base = statistics.median(times[to]) if to in times else None
    result: dict[str, Record] = {}
    for name, seconds in times.items():
        median = statistics.median(seconds)
        result[name] = {"seconds": list(seconds), "median": median}
        if base is not None:
            result[name]["speedup"] = median / base
            result[name]["quartiles"] = quartiles([t / a for t, a in zip(seconds, times[to], strict=True)])
    return result


def attempt(name: str, start: Callable[[str], Started], skipped: dict[str, str]) -> Started | None:
    """What a contender starts with, or None and the reason among those skipped."""
    try:
        return start(name)
    except NotHere as e:
        skipped[name] = str(e)
    except Exception as e:  # another's failure is no reason to lose all figures
        if name == "adaptk":
            raise
        skipped[name] = _first_line(e)
    return None


def available_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def memory_needed(rule: str, elements: int, names: Sequence[str]) -> int:
    """Bytes, from above."""
    states = len(RULES[rule].states)
    arrays = 2 + states * len([n for n in names if n not in ("optax", "compiled")])
    arrays += 2 + states if elements >= CEILING_FROM else 0
    arrays += 2 + 2 * states + 2 if "optax" in names else 0
    arrays += states + 2 if "compiled" in names else 0
    return 4 * elements * (arrays + 3)


@dataclass
class Setting:
    """What all measurements of a process have in common."""

    threads: int
    contenders: list[str]
    effort: Effort
    compile_tensors: int
    quick: bool


def race_steps(setting: Setting, case: str, rule: str, gradients: str, shapes: Sequence[Shape]) -> Record:
    """One rule on one case."""
    import torch

    race = RACES[rule]
    record: Record = {
        "kind": "steps",
        "threads": setting.threads,
        "case": case,
        "rule": rule,
        "gradients": gradients,
        "tensors": len(shapes),
        "elements": sum(math.prod(s) for s in shapes),
        "shrunk": setting.quick and case in MODELS,
        "bytes_per_parameter": 4 * (3 + 2 * len(RULES[rule].states)),
        "contenders": {},
        "skipped": {},
        "ceiling": None,
        "of_ceiling": None,
    }
    skipped: dict[str, str] = record["skipped"]
    total: int = record["elements"]
    there = available_memory()
    if there is not None and (needed := memory_needed(rule, total, setting.contenders)) > 0.9 * there:
        skipped.update(dict.fromkeys(setting.contenders, f"needs {needed >> 30} GiB of memory"))
        return record

    # All of torch's kind step the same params by the same gradients, so that a case fits into memory.
    params = [torch.nn.Parameter(torch.from_numpy(_line(s, 0.5, 1.5))) for s in shapes]
    grads = [torch.from_numpy(_line(s, 1e-3, 2e-3)) for s in shapes]

    def keep() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g

    def renew() -> None:
        # As a backward pass leaves them: new tensors that Python has not seen.
        for p in params:
            p.grad = None
        torch.autograd.backward(params, grads)

    fresh = gradients == "fresh"
    (renew if fresh else keep)()
    compiled: list[Compiled] = []

    def entered(name: str) -> Contender:
        if name == "optax":
            if fresh:
                raise NotHere("gradients of JAX are new arrays in any case")
            if setting.quick and len(shapes) > 8:
                raise NotHere("compiles longer than a smoke run is to take")
            arrays = Optax(race, shapes)
            return Contender(arrays.step, arrays.wait)
        if name == "compiled":
            if fresh:
                raise NotHere("compiles anew for other gradients")
            compiled.append(Compiled(torch_optimizer("single", race, params), len(params), setting.compile_tensors))
            return Contender(compiled[0].step)
        optimizer = torch_optimizer(name, race, params)
        optimizer.step()
        _forward_count(optimizer)
        return Contender(optimizer.step)

    starting = {name: attempt(name, entered, skipped) for name in setting.contenders}
    field_of = {name: c for name, c in starting.items() if c is not None}
    if total >= CEILING_FROM and not fresh:
        # numpy.full would leave its pages to another allocator than that of the params.
        streams = [torch.full((total,), 0.5).numpy() for _ in range(2 + len(RULES[rule].states))]
        field_of["ceiling"] = Contender(lambda: adaptk._core.ceiling(streams))
    times = in_turn(field_of, setting.effort, renew if fresh else None)
    if "compiled" in times and not compiled[0].stayed():
        del times["compiled"]
        skipped["compiled"] = "does not stay compiled from step to step"
    ceiling = times.pop("ceiling", None)
    record["contenders"] = compared(times, "adaptk")
    if ceiling is not None:
        record["ceiling"] = {"seconds": ceiling, "median": statistics.median(ceiling)}
        if "adaptk" in times:
            record["of_ceiling"] = record["ceiling"]["median"] / record["contenders"]["adaptk"]["median"]
    return record


# ---------------------------------------------------------------------------------------------------------------------
# Measuring training loops
# ---------------------------------------------------------------------------------------------------------------------


def digits() -> tuple[Any, Any]:
    """The digits that come with the package: pixels in [0, 1], and labels."""
    import torch

    packed = importlib.resources.files("adaptk") / "data" / "digits.csv.gz"
    with packed.open("rb") as file, gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.int64)
    table = np.random.default_rng(0).permutation(table)
    return torch.from_numpy((table[:, :-1] / 16).astype(np.float32)), torch.from_numpy(table[:, -1].copy())


def digits_network() -> tuple[list[Any], Callable[[int], Any]]:
    """The demo's network and batch; the loss of a step by the step's number."""
    import torch

    x, y = digits()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 10))
    batches = list(zip(x.split(32), y.split(32), strict=True))

    def loss(step: int) -> Any:
        inputs, labels = batches[step % len(batches)]
        return torch.nn.functional.cross_entropy(model(inputs), labels)

    return list(model.parameters()), loss


def source_text() -> str:
    """Text that is wherever Python is: the source of some of its modules."""
    names = ("argparse", "ast", "difflib", "inspect", "textwrap", "typing")
    text = "".join(inspect.getsource(importlib.import_module(name)) for name in names)
    return "".join(c for c in text if c in "\n" or " " <= c <= "~")


def transformer() -> tuple[list[Any], Callable[[int], Any]]:
    """A small transformer that predicts the next character of the source text."""
    import torch
    from torch import nn

    width, heads, layers, context, batch = 64, 4, 2, 64, 8
    letters = {c: i for i, c in enumerate(["\n", *map(chr, range(32, 127))])}
    text = torch.tensor([letters[c] for c in source_text()])

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(b, t, width))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    torch.manual_seed(0)
    token, place = nn.Embedding(len(letters), width), nn.Embedding(context, width)
    blocks = nn.Sequential(*(Block() for _ in range(layers)), nn.LayerNorm(width), nn.Linear(width, len(letters)))
    positions = torch.arange(context)
    starts = np.random.default_rng(0).integers(0, len(text) - context - 1, size=(256, batch))

    def loss(step: int) -> Any:
        rows = torch.stack([text[s : s + context + 1] for s in starts[step % len(starts)]])
        logits = blocks(token(rows[:, :-1]) + place(positions))
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    return [*token.parameters(), *place.parameters(), *blocks.parameters()], loss


NETWORKS = {"digits": digits_network, "transformer": transformer}
LOOP_STEPS = {"digits": 100, "transformer": 12}


class Training:
    """A network and its optimizer, with what each part of a training step takes."""

    def __init__(self, case: str, name: str, compile_tensors: int) -> None:
        import torch

        self.params, self._loss = NETWORKS[case]()
        self.steps = 0
        self.loss = math.nan
        race = RACES["adam"]
        if name == "compiled":
            # Gradients that are kept, which is what a compiled step wants.
            self.optimizer = torch_optimizer("single", race, self.params)
            before = [p.detach().clone() for p in self.params]
            self._loss(0).backward()
            self._step: Callable[[], object] = Compiled(self.optimizer, len(self.params), compile_tensors).step
        else:
            self.optimizer = torch_optimizer(name, race, self.params)
            self._step = self.optimizer.step
            before = []
        # What was stepped only to have it compiled does not count.
        with torch.no_grad():
            for p, value in zip(self.params, before, strict=False):
                p.copy_(value)
                for state in self.optimizer.state[p].values():
                    state.zero_()
        self._to_none = name != "compiled"

    def run(self, steps: int) -> Record:
        """Seconds a step of the whole, of the optimizer's step, and of forward and backward."""
        clock = time.perf_counter
        of_step = of_network = 0.0
        start = clock()
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=self._to_none)
            begin = clock()
            loss = self._loss(self.steps)
            loss.backward()
            middle = clock()
            self._step()
            end = clock()
            of_network += middle - begin
            of_step += end - middle
            self.steps += 1
        total = clock() - start
        self.loss = loss.item()
        return {"total": total / steps, "optimizer": of_step / steps, "forward_backward": of_network / steps}


PARTS = ("total", "optimizer", "forward_backward")


def race_loop(setting: Setting, case: str) -> Record:
    """Adam trains a network, with each contender a network of its own."""
    record: Record = {
        "kind": "loop",
        "threads": setting.threads,
        "case": case,
        "rule": "adam",
        "contenders": {},
        "skipped": {},
    }
    steps = 3 if setting.quick else LOOP_STEPS[case]

    def entered(name: str) -> Training:
        if name == "optax":
            raise NotHere("the network is torch's")
        training = Training(case, name, setting.compile_tensors)
        training.run(2)
        return training

    starting = {name: attempt(name, entered, record["skipped"]) for name in setting.contenders}
    runs = {name: training for name, training in starting.items() if training is not None}
    if not runs:
        return record
    record["tensors"] = len(next(iter(runs.values())).params)
    record["elements"] = sum(p.numel() for p in next(iter(runs.values())).params)
    times: dict[str, dict[str, list[float]]] = {part: {name: [] for name in runs} for part in PARTS}
    names = list(runs)
    for i in setting.effort.rounds():
        for name in names[i % len(names) :] + names[: i % len(names)]:
            runs[name].run(3)
            for part, seconds in runs[name].run(steps).items():
                times[part][name].append(seconds)
    parts = {part: compared(times[part], "adaptk") for part in PARTS}
    for name, training in runs.items():
        record["contenders"][name] = {part: parts[part][name] for part in PARTS}
        record["contenders"][name].update(loss=training.loss, steps=training.steps)
    return record


# ---------------------------------------------------------------------------------------------------------------------
# The plan, and the process that follows it
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One measurement to be made."""

    case: str
    rule: str
    gradients: str


def plan(options: argparse.Namespace, threads: int, all_threads: int) -> list[Item]:
    """What to measure with a number of threads, the large ones last."""

    def rules(usual: bool) -> Sequence[str]:
        if options.rules is not None:
            return list(options.rules)
        return USUAL if usual else list(RACES)

    fewer = threads != all_threads
    items = [Item(case, "adam", "fresh") for case in options.cases if case in LOOPS]
    items += [Item(size, rule, "kept") for size in options.sizes for rule in rules(fewer)]
    for case in options.cases:
        if case not in LOOPS:
            for gradients in options.gradients:
                usual = fewer or gradients == "fresh" or case in ("gpt2", "bert")
                items += [Item(case, rule, gradients) for rule in rules(usual)]
    return items


class Progress:
    """What is being done, on stderr: one line that is overwritten on a terminal, a line an item elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._live = sys.stderr.isatty()
        self._start = time.monotonic()

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{minutes}:{seconds:02d}"

    def begins(self, what: str) -> None:
        if self._live:
            line = f"[{self._done + 1}/{self._total}, {self._clock()}] {what} ..."
            sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()

    def done(self, what: str) -> None:
        self._done += 1
        if self._live:
            sys.stderr.write("\r\x1b[K")
        print(f"[{self._done}/{self._total}, {self._clock()}] {what}", file=sys.stderr, flush=True)


def short_result(record: Record) -> str:
    """The contenders' ratios in one line."""
    there = {name: c["total"] if record["kind"] == "loop" else c for name, c in record["contenders"].items()}
    parts = [f"{name} {number(c['speedup'])}" for name, c in there.items() if "speedup" in c and name != "adaptk"]
    if record.get("of_ceiling"):
        parts.append(f"of ceiling {record['of_ceiling']:.2f}")
    return ", ".join(parts) or "; ".join(sorted(set(record["skipped"].values())))


def work(options: argparse.Namespace, items: Sequence[Item], threads: int, path: Path) -> None:
    """Measure in this process; results go to a file, one JSON document a line."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import torch

    torch.set_num_threads(threads)
    adaptk.set_num_threads(threads)
    setting = Setting(
        threads=threads,
        contenders=list(options.contenders),
        effort=Effort(options.repeats, options.seconds, *([0.0, 0.0] if options.quick else [])),
        compile_tensors=options.compile_tensors,
        quick=options.quick,
    )
    progress = Progress(len(items))
    with path.open("a", encoding="utf-8") as file:
        for item in items:
            what = f"{threads} thread{'s' * (threads != 1)}, {item.case}, {item.rule}"
            if item.case not in LOOPS and item.gradients == "fresh":
                what += ", fresh gradients"
            progress.begins(what)
            if item.case in LOOPS:
                record = race_loop(setting, item.case)
            else:
                shapes = case_shapes(item.case, setting.quick)
                record = race_steps(setting, item.case, item.rule, item.gradients, shapes)
            file.write(json.dumps(record) + "\n")
            file.flush()
            progress.done(f"{what}: {short_result(record)}")
            # Looking through all that torch and JAX have made takes longer than many of the small cases.
            if record.get("elements", 0) >= 2**20:
                gc.collect()
                if (jax := sys.modules.get("jax")) is not None:
                    jax.clear_caches()


def described_machine() -> Record:
    """What the figures are taken on."""
    about = machine()
    about["cores"] = os.cpu_count()
    with contextlib.suppress(AttributeError):
        about["cores_for_us"] = len(os.sched_getaffinity(0))
    with contextlib.suppress(AttributeError, ValueError, OSError):
        about["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    with contextlib.suppress(OSError):
        caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
        found = {int((c / "level").read_text()): (c / "size").read_text().strip() for c in sorted(caches)}
        about["caches"] = ", ".join(f"L{level} {size}" for level, size in sorted(found.items()))
    about["kernel"] = platform.release()
    about["isa"] = adaptk.get_isa()
    about.update({package: _version(package) for package in ("torch", "jax", "optax", "deepspeed", "numpy")})
    return about


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def load_average() -> list[float] | None:
    try:
        return [round(x, 2) for x in os.getloadavg()]
    except (AttributeError, OSError):
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached: the worst of those that were measured, by the rules that it is about."""

    what: str
    least: float
    value: float | None
    worst: str

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.value >= self.least


def targets(records: Sequence[Record]) -> list[Target]:
    """The targets, looked up among what was measured with the most threads."""
    most = max((r["threads"] for r in records), default=0)
    steps = [r for r in records if r["kind"] == "steps" and r["threads"] == most and not r["shrunk"]]

    def over(names: Sequence[str], record: Record) -> float | None:
        """The fastest of some contenders over adaptk."""
        there = [record["contenders"][n]["speedup"] for n in names if "speedup" in record["contenders"].get(n, {})]
        return min(there, default=None)

    def worst(what: str, least: float, case: str, rules: Iterable[str], of: Callable[[Record], float | None]) -> Target:
        chosen = set(rules)
        found = [
            (value, r["rule"])
            for r in steps
            if r["case"] == case and r["rule"] in chosen and r["gradients"] == "kept" and (value := of(r)) is not None
        ]
        value, rule = min(found, default=(None, ""))
        return Target(what, least, value, rule)

    fused = ("adam", "adamw", "sgd", "momentum", "adagrad")
    unfused = ("rmsprop", "adadelta", "nadam", "radam", "adamax", "rprop", "asgd")
    result = [
        worst(
            f"{names}, {case} / torch fused", least, case, (rule,) if rule != "sgd" else ("sgd", "momentum"), by_fused
        )
        for case, least in (("64M", 1.0), ("1M", 1.2))
        for rule, names in (("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("adagrad", "Adagrad"))
        for by_fused in [lambda r: over(("fused",), r)]
    ]
    result += [
        worst(f"{RACES[rule].torch}, 64M / torch's best, not compiled", 4.0, "64M", (rule,), lambda r: over(EAGER, r))
        for rule in unfused
    ]
    result += [
        worst("Adam, 200 x 4096 / torch fused", 7.0, "200x4096", ("adam",), lambda r: over(("fused",), r)),
        worst("Adam, 1000 x 64 / torch fused", 20.0, "1000x64", ("adam",), lambda r: over(("fused",), r)),
    ]
    loops = [
        r["contenders"]["fused"]["total"]["speedup"]
        for r in records
        if r["kind"] == "loop" and r["case"] == "digits" and r["threads"] == most and "fused" in r["contenders"]
    ]
    result.append(Target("digits network, whole loop / with torch's fused Adam", 1.5, min(loops, default=None), ""))
    result += [
        worst("every rule, 64M, share of the ceiling", 0.95, "64M", RACES, lambda r: r["of_ceiling"]),
        worst("every rule, 64M / optax", 1.0, "64M", RACES, lambda r: over(("optax",), r)),
        worst("RMSprop, 64M / optax", 1.5, "64M", ("rmsprop",), lambda r: over(("optax",), r)),
        worst("Adadelta, 64M / optax", 5.0, "64M", ("adadelta",), lambda r: over(("optax",), r)),
        worst("every rule, 64M / DeepSpeed", 1.0, "64M", {*fused, "lion"}, lambda r: over(("deepspeed",), r)),
    ]
    return result


# ---------------------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------------------


def number(x: float) -> str:
    """Three digits, or as many as stand before the point."""
    return f"{x:.2f}" if x < 9.995 else f"{x:.1f}" if x < 99.95 else f"{x:,.0f}"


def _cell(entry: Record | None) -> str:
    if entry is None or "speedup" not in entry:
        return "-"
    low, high = entry["quartiles"]
    return f"{number(entry['speedup'])} ({number(low)} to {number(high)})"


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"

    return [line(rows[0]), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows[1:])]


def _grouped(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        groups.setdefault(tuple(r[k] for k in keys), []).append(r)
    return groups


def _machine_lines(report: Record) -> list[str]:
    about = report["machine"]
    packages = [f"{p} {about[p]}" for p in ("torch", "jax", "optax", "deepspeed", "numpy") if about.get(p)]
    lines = [
        f"- {about['processor']}, {about['cores']} cores, {about.get('caches') or 'caches unknown'}, "
        f"{about.get('memory_gib', '?')} GiB of memory, {about['system']} {about['kernel']}",
        f"- adaptk {about['version']} ({about['isa']}, {about['compiler']}), Python {about['python']}, "
        + ", ".join(packages),
        f"- threads: {', '.join(map(str, report['options']['threads']))}; "
        f"load average before {report['load_before']}, after {report['load_after']}",
    ]
    load = report["load_before"]
    if load is not None and load[0] > 0.3:
        lines.append("- **Other programs were running when this began: take no figures from it.**")
    if report["options"]["quick"]:
        lines.append("- **A smoke run: none of the figures mean anything.**")
    return lines


def _targets_lines(report: Record) -> list[str]:
    rows = [["what, of adaptk.torch", "at least", "measured", "met"]]
    for t in report["targets"]:
        worst = f" ({t['worst']})" if t["worst"] and t["what"].startswith(("every", "SGD")) else ""
        value = "not measured" if t["value"] is None else f"{number(t['value'])}{worst}"
        rows.append([t["what"], f"{t['least']:g}", value, {True: "yes", False: "**no**", None: "-"}[t["met"]]])
    return _rows(rows)


def _threads_text(n: int) -> str:
    return f"{n} thread{'s' * (n != 1)}"


def _summary_lines(report: Record) -> list[str]:
    """Torch's best over adaptk: rules down, cases across."""
    lines: list[str] = []
    kept = [r for r in report["steps"] if r["gradients"] == "kept"]
    for (threads,), records in _grouped(kept, "threads").items():
        cases = list(dict.fromkeys(r["case"] for r in records))
        at = {(r["rule"], r["case"]): r for r in records}
        rows = [["rule", *cases]]
        for rule in dict.fromkeys(r["rule"] for r in records):
            cells = [rule]
            for case in cases:
                there = at.get((rule, case), {}).get("contenders", {})
                ratios = [there[n]["speedup"] for n in EAGER if "speedup" in there.get(n, {})]
                cells.append(number(min(ratios)) if ratios else "-")
            if len(set(cells[1:])) > 1 or cells[1] != "-":
                rows.append(cells)
        if len(rows) > 1:
            lines += [f"### torch's best optimizer, not compiled / adaptk.torch, {_threads_text(threads)}", ""]
            lines += [*_rows(rows), ""]
    return lines


def _steps_lines(report: Record) -> list[str]:
    lines: list[str] = []
    contenders = [c for c in report["options"]["contenders"] if c != "adaptk"]
    for (threads, case, gradients), records in _grouped(report["steps"], "threads", "case", "gradients").items():
        title = case_title(case, case_shapes(case, records[0]["shrunk"]))
        if len(case_shapes(case, True)) > 1:
            title += ", gradients new at each step" if gradients == "fresh" else ", gradients kept"
        shown = [c for c in contenders if any(c in r["contenders"] for r in records)]
        ceiling = any(r["of_ceiling"] is not None for r in records)
        rows = [["rule", *(CONTENDERS[c] for c in shown), *(["of the ceiling"] if ceiling else [])]]
        for r in records:
            row = [r["rule"], *(_cell(r["contenders"].get(c)) for c in shown)]
            if ceiling:
                row.append("-" if r["of_ceiling"] is None else f"{r['of_ceiling']:.2f}")
            if set(row[1:]) - {"-"}:
                rows.append(row)
        if len(rows) == 1:
            continue
        lines += [f"### {title}, {_threads_text(threads)}", "", *_rows(rows), ""]
    return lines


def _loops_lines(report: Record) -> list[str]:
    lines: list[str] = []
    for r in report["loops"]:
        if not r["contenders"]:
            continue
        head = ["contender", "whole step", "optimizer", "forward and backward", "optimizer's share", "loss"]
        rows = [head]
        for name, c in r["contenders"].items():
            share = c["optimizer"]["median"] / c["total"]["median"]
            cells = [_cell(c[part]) if name != "adaptk" else "1" for part in PARTS]
            rows.append([CONTENDERS[name], *cells, f"{share:.0%}", f"{c['loss']:.4f}"])
        title = f"{LOOPS[r['case']]}: {r['tensors']} tensors, {r['elements']:,} elements, Adam"
        lines += [f"### {title}, {_threads_text(r['threads'])}", "", *_rows(rows), ""]
    return lines


def _skipped_lines(report: Record) -> list[str]:
    where: dict[tuple[str, str], dict[str, None]] = {}
    for r in [*report["steps"], *report["loops"]]:
        for name, reason in r["skipped"].items():
            about_rule = "such rule" in reason or "this rule" in reason
            reason = re.sub(r"\d+ tensors", "many tensors", reason)
            where.setdefault((name, reason), {})[r["rule"] if about_rule else r["case"]] = None
    return [f"- {CONTENDERS[name]}: {reason}: {', '.join(places)}" for (name, reason), places in sorted(where.items())]


def markdown(report: Record) -> str:
    """All of it, for readers."""
    lines = ["# adaptk.torch beside its peers", "", *_machine_lines(report), ""]
    lines += [
        "Every figure is the other's time over adaptk.torch's in the same run, medians, with the quartiles of the",
        "ratio round by round in brackets: above 1, adaptk.torch is the faster. The ceiling is a kernel that reads and",
        "writes the same arrays with one addition each.",
        "",
    ]
    lines += ["## Targets", "", *_targets_lines(report), ""]
    if report["loops"]:
        lines += ["## Training loops", "", *_loops_lines(report)]
    if report["steps"]:
        lines += ["## Steps", "", *_summary_lines(report), *_steps_lines(report)]
    if skipped := _skipped_lines(report):
        lines += ["## Who did not take part, where", "", *skipped, ""]
    return "\n".join(lines)


INK, FAINT, PAPER = "#24292f", "#6e7781", "#fdfdfc"
# Okabe and Ito's colours, which any colour vision tells apart.
FUSED, UNFUSED, SHARE, NETWORK = "#0072B2", "#D55E00", "#009E73", "#c9ced4"


def _largest(records: Sequence[Record], case: Callable[[Record], bool]) -> list[Record]:
    """Of the records with gradients that are kept and the most threads, those of the case with the most elements."""
    chosen = [r for r in records if r["gradients"] == "kept" and case(r) and r["contenders"]]
    most = max(((r["threads"], r["elements"]) for r in chosen), default=None)
    return [r for r in chosen if (r["threads"], r["elements"]) == most]


def plot(report: Record, path: str) -> None:
    """Bars: how many times as fast as torch's best, the share of the ceiling, and whole training steps."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    one = _largest(report["steps"], lambda r: r["tensors"] == 1)
    many = _largest(report["steps"], lambda r: r["case"] == "1000x64")
    many = many or _largest(report["steps"], lambda r: r["tensors"] > 1)
    if not one and not many:
        raise SystemExit("torch_race: --plot: no steps were measured")
    rules = list(dict.fromkeys(r["rule"] for r in [*one, *many]))
    most = max(r["threads"] for r in [*one, *many])
    loops = [r for r in report["loops"] if r["contenders"] and r["threads"] == most]
    upper = 0.235 * len(rules) + 0.75
    lower = 0.235 * sum(len([n for n in ("adaptk", "fused", "single") if n in r["contenders"]]) for r in loops)
    lower += 0.75 if loops else 0.0
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06)
    figure = Figure(figsize=(8, upper + lower + 0.75), dpi=200, layout=layout, facecolor=PAPER)
    parts = figure.subfigures(2 if loops else 1, 1, height_ratios=[upper, lower] if loops else [1], squeeze=False)
    for part in parts.flat:
        part.set_facecolor(PAPER)
    grid = parts[0, 0].subplots(1, 3, sharey=True, width_ratios=[1.0, 1.0, 0.8])
    places = {rule: i for i, rule in enumerate(rules)}

    def prepared(axes: Any, title: str) -> None:
        axes.set_facecolor(PAPER)
        axes.set_title(title, fontsize=9.5, fontweight="bold", color=INK, loc="left", pad=6)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(FAINT)
        axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#e4e7ea", linewidth=0.8)

    for axes, records, what in ((grid[0], one, "torch's best / adaptk"), (grid[1], many, "torch's best / adaptk")):
        title = "not measured"
        if records:
            shapes = case_shapes(records[0]["case"], records[0]["shrunk"])
            title = case_title(records[0]["case"], shapes).replace("one tensor of ", "1 tensor of ")
            title = title.replace(" elements", "") if len(shapes) > 1 else title
        prepared(axes, title)
        axes.set_xscale("log")
        longest = 1.0
        for r in records:
            y, there = places[r["rule"]], r["contenders"]
            ratios = {n: there[n]["speedup"] for n in EAGER if "speedup" in there.get(n, {})}
            if not ratios:
                axes.text(1.04, y, "not in torch", va="center", fontsize=7.5, color=FAINT, style="italic")
                continue
            ratio = min(ratios.values())
            longest = max(longest, ratio)
            axes.barh(y, ratio - 1, left=1, height=0.68, color=FUSED if "fused" in ratios else UNFUSED)
            axes.text(
                max(ratio, 1) * 1.05, y, number(ratio), va="center", fontsize=8.5, color=INK, fontfamily="DejaVu Sans"
            )
        axes.axvline(1, color=INK, linewidth=1)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0.9, longest * 2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if longest > 30 else (1, 2, 5), numticks=6))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        axes.set_xlabel(f"{what} (log scale)", fontsize=8.5, color=FAINT)
    shares = [r for r in one if r["of_ceiling"] is not None]
    prepared(grid[2], f"of the ceiling, {size_text(one[0]['elements'])}" if one else "of the ceiling")
    grid[2].barh([places[r["rule"]] for r in shares], [r["of_ceiling"] for r in shares], height=0.68, color=SHARE)
    for r in shares:
        grid[2].text(
            min(r["of_ceiling"], 1.2) - 0.03,
            places[r["rule"]],
            f"{r['of_ceiling']:.2f}",
            va="center",
            ha="right",
            fontsize=8.5,
            color="white",
        )
    if not shares:
        grid[2].text(0.5, 0.5, "too small to ask", transform=grid[2].transAxes, ha="center", fontsize=8.5, color=FAINT)
    grid[2].axvline(1, color=INK, linewidth=1)
    grid[2].set_xlim(0, 1.25)
    grid[2].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    grid[2].set_xlabel("memory's speed = 1", fontsize=8.5, color=FAINT)
    grid[0].set_yticks(range(len(rules)), rules)
    grid[0].set_ylim(len(rules) - 0.4, -0.6)
    figure.suptitle(
        f"adaptk.torch on the CPU, {_threads_text(most)}, float32", fontsize=11.5, fontweight="bold", color=INK
    )
    squares = [Patch(color=FUSED, label="torch fuses this rule"), Patch(color=UNFUSED, label="torch does not")]
    _legend(parts[0, 0], squares, "upper center")
    if loops:
        _plot_loops(parts[1, 0], loops, prepared)
    figure.savefig(path, facecolor=PAPER)


def _plot_loops(part: Any, loops: Sequence[Record], prepared: Callable[[Any, str], None]) -> None:
    """Training steps, split into the optimizer and the rest."""
    from matplotlib.patches import Patch

    names = {"adaptk": "adaptk.torch", "fused": "torch, fused", "single": "torch, default"}
    grid = part.subplots(1, len(loops), squeeze=False)[0]
    for i, (axes, r) in enumerate(zip(grid, loops, strict=True)):
        prepared(axes, f"{LOOPS[r['case']]}, {r['elements'] / 1000:,.0f}k params")
        there = [n for n in names if n in r["contenders"]]
        unit = r["contenders"]["adaptk"]["total"]["median"] if "adaptk" in r["contenders"] else 1.0
        longest = 0.0
        for y, name in enumerate(there):
            c = r["contenders"][name]
            total, step = c["total"]["median"] / unit, c["optimizer"]["median"] / unit
            longest = max(longest, total)
            axes.barh(y, total - step, height=0.68, color=NETWORK)
            axes.barh(y, step, left=total - step, height=0.68, color=FUSED)
            axes.text(total + 0.03, y, f"{total:.2f}", va="center", fontsize=8.5, color=INK)
        axes.set_yticks(range(len(there)), [names[n] for n in there] if i == 0 else [""] * len(there))
        axes.set_ylim(len(there) - 0.4, -0.6)
        axes.set_xlim(0, max(1.0, longest) * 1.18)
        axes.set_xlabel("time of a training step, with adaptk.torch = 1", fontsize=8.5, color=FAINT)
    squares = [Patch(color=NETWORK, label="forward and backward"), Patch(color=FUSED, label="optimizer")]
    _legend(part, squares, "upper center")


def _legend(part: Any, squares: Sequence[Any], where: str) -> None:
    part.legend(
        handles=squares,
        loc=f"outside {where}",
        ncols=len(squares),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=2.5,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    among = list(known)

    def parse(text: str) -> list[str]:
        if text == "all":
            return among
        chosen = [t.strip() for t in text.split(",") if t.strip()]
        for name in chosen:
            if name not in among:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(among)}")
        return list(dict.fromkeys(chosen))

    return parse


def _sizes(text: str) -> list[str]:
    return [size_text(_size(t)) for t in text.split(",") if t]


def _cases(text: str) -> list[str]:
    chosen = [t.strip() for t in text.split(",") if t.strip()]
    for case in chosen:
        if case in (*MODELS, *LOOPS):
            continue
        count, by, size = case.partition("x")
        if not by or not count.isdigit() or int(count) < 2:
            raise argparse.ArgumentTypeError(f"{case!r} is not one of {', '.join(CASES)}, nor such as 500x1k")
        _size(size)
    return list(dict.fromkeys(chosen))


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python bench/torch_race.py",
        description="adaptk.torch beside torch's optimizers, DeepSpeed and optax. Ratios in one run, on the CPU.",
        epilog=f"By default all rules are measured; {', '.join(USUAL)} stand for them where gradients are fresh, in "
        "the two language models and with fewer threads than all.",
    )
    of = "comma-separated, of "
    result.add_argument("--rules", type=_names(RACES), help=f"{of}{', '.join(RACES)}, or all of them everywhere")
    result.add_argument("--sizes", type=_sizes, help="elements of one tensor, default 64,4K,64K,1M,16M,64M")
    result.add_argument("--cases", type=_cases, help=f"{of}{', '.join(CASES)}; also such as 500x1k; default all")
    result.add_argument("--gradients", type=_names(("kept", "fresh")), help=f"{of}kept, fresh (many tensors); both")
    result.add_argument("--contenders", type=_names(CONTENDERS), help=f"{of}{', '.join(CONTENDERS)}; default all")
    result.add_argument("--threads", help="comma-separated numbers, default 1 and all")
    result.add_argument("--repeats", type=_whole, help="rounds, default 11")
    result.add_argument("--seconds", type=float, help="no more rounds than three after so long, default 15")
    result.add_argument("--compile-tensors", type=_whole, default=32, help="most tensors to compile for, default 32")
    result.add_argument("--json", metavar="FILE", help="write everything, with the times of each round")
    result.add_argument("--markdown", metavar="FILE", help="write the tables there instead of to standard output")
    result.add_argument("--plot", metavar="FILE", help="draw the ratios (needs matplotlib)")
    result.add_argument("--from", dest="given", metavar="FILE", help="measure nothing; show what --json has written")
    result.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    result.add_argument("--quick", action="store_true", help="only see that everything works, in seconds")
    result.add_argument("--worker", help=argparse.SUPPRESS)
    return result


def _completed(command: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Defaults, which a smoke run has others of."""
    quick = options.quick
    defaults: dict[str, Any] = {
        "sizes": ["64", "4K"] if quick else ["64", "4K", "64K", "1M", "16M", "64M"],
        "cases": list(CASES),
        "gradients": ["kept", "fresh"],
        # torch.compile takes longer than all else in a smoke run together.
        "contenders": [c for c in CONTENDERS if not (quick and c == "compiled")],
        "repeats": 2 if quick else 11,
        "seconds": 0.1 if quick else 15.0,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if quick and options.rules is None:
        options.rules = ["adam", "rmsprop", "lion"]
    if quick and options.check:
        command.error("--check: a smoke run measures nothing")
    if options.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            command.error("--plot: needs matplotlib (pip install matplotlib)")
    everything = adaptk.get_num_threads()
    try:
        given = [int(t) for t in (options.threads or "").split(",") if t]
    except ValueError:
        command.error(f"--threads: {options.threads!r} are not numbers")
    if any(n < 1 for n in given):
        command.error("--threads: at least 1")
    # The most threads first: most of what is asked about is there. A smoke run has one, because threads that wait for
    # one another take their time where other programs run.
    options.threads = sorted(set(given or ([1] if quick else [1, everything])), reverse=True)


def measured(options: argparse.Namespace, arguments: Sequence[str]) -> tuple[list[Record], bool]:
    """Run a process for each number of threads; what they found, and whether all came to their end."""
    records: list[Record] = []
    complete = True
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results"
        path.touch()
        for n in options.threads:
            # The only way to tell JAX, and the OpenMP that DeepSpeed brings.
            environment["OMP_NUM_THREADS"] = environment["NPROC"] = str(n)
            command = [sys.executable, str(Path(__file__).resolve()), *arguments]
            command += ["--threads", f"{n},{max(options.threads)}", "--worker", f"{n}:{path}"]
            try:
                # Some peers log to standard output, which is the tables'.
                status = subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode
            except KeyboardInterrupt:
                print("interrupted; this is what was measured until then", file=sys.stderr)
                complete = False
                break
            if status != 0:
                print(f"torch_race: the process with {_threads_text(n)} ended with {status}", file=sys.stderr)
                complete = False
        records += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return records, complete


def main(argv: Sequence[str] | None = None) -> int:
    """Run the race; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = parser()
    options = command.parse_args(arguments)
    _completed(command, options)
    if importlib.util.find_spec("torch") is None:
        command.error("torch is not installed")
    if options.worker:
        threads, _, path = options.worker.partition(":")
        try:
            items = plan(options, int(threads), max(options.threads))
            work(options, items, int(threads), Path(path))
        except KeyboardInterrupt:
            return 130
        return 0
    complete = True
    if options.given:
        report: Record = json.loads(Path(options.given).read_text(encoding="utf-8"))
    else:
        report = {
            "machine": described_machine(),
            "load_before": load_average(),
            "options": {k: v for k, v in vars(options).items() if k not in ("worker", "given")},
        }
        records, complete = measured(options, arguments)
        report["load_after"] = load_average()
        report["steps"] = [r for r in records if r["kind"] == "steps"]
        report["loops"] = [r for r in records if r["kind"] == "loop"]
    found = targets([*report["steps"], *report["loops"]])
    report["targets"] = [{**asdict(t), "met": t.met} for t in found]
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    if options.markdown:
        Path(options.markdown).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    if options.plot:
        plot(report, options.plot)
    if not complete:
        return 1
    if options.check:
        missed = [t for t in found if t.met is False]
        for t in missed:
            print(f"missed: {t.what}: {number(t.value or 0.0)}, at least {t.least:g}", file=sys.stderr)
        if all(t.met is None for t in found):
            print("missed: no target was measured", file=sys.stderr)
        return int(bool(missed) or all(t.met is None for t in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
