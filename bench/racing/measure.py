"""The measurements: a rule's step on one case, and a training loop, alternating between the libraries."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import adaptk
from adaptk._registry import RULES

from racing.cases import LOOPS, MODELS, PARTS, Record, Shape
from racing.contenders import (
    LIBRARIES,
    RACES,
    Compiled,
    Contender,
    Unavailable,
    attempt,
    contender,
    line,
    torch_optimizer,
)

# From this size on a step is limited by memory, not by caches and calls, so that the ceiling is meaningful.
CEILING_FROM = 4 * 1024**2

# ---------------------------------------------------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """How long to measure: for `repeats` rounds, or until `seconds` have passed after at least three rounds."""

    repeats: int
    seconds: float
    # Short steps are timed in bursts, after untimed ones, because the threads of the previous contender spin for some
    # milliseconds while they wait for more work.
    burst: float = 5e-3
    settle: float = 4e-3

    def rounds(self) -> Iterator[int]:
        start = time.perf_counter()
        for i in range(self.repeats):
            if i >= 3 and time.perf_counter() - start > self.seconds:
                return
            yield i


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The order in a round: each round begins with another one."""
    first = by % len(names) if names else 0
    return [*names[first:], *names[:first]]


def in_turn(
    contenders: Mapping[str, Contender], effort: Effort, renew: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """The time per step of each contender in seconds, one number per round.

    `renew` is called before every step, outside of the timed part.
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
    for i in effort.rounds():
        for name in rotated(list(contenders), i):
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
    """The first and the third quartile."""
    if len(values) < 2:
        return [values[0], values[0]]
    q = statistics.quantiles(values, n=4, method="inclusive")
    return [q[0], q[2]]


def compared(times: Mapping[str, Sequence[float]], to: str) -> dict[str, Record]:
    """Medians, and ratios to one of the contenders: above 1, that one is faster."""
    base = statistics.median(times[to]) if to in times else None
    result: dict[str, Record] = {}
    for name, seconds in times.items():
        median = statistics.median(seconds)
        result[name] = {"seconds": list(seconds), "median": median}
        if base is not None:
            result[name]["speedup"] = median / base
            result[name]["quartiles"] = quartiles([t / a for t, a in zip(seconds, times[to], strict=True)])
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """The settings of all measurements of a process."""

    threads: int
    libraries: list[str]
    effort: Effort
    compile_tensors: int
    quick: bool


def available_memory() -> int | None:
    """The available memory in bytes, or None if it is not known."""
    try:
        for text in Path("/proc/meminfo").read_text().splitlines():
            if text.startswith("MemAvailable:"):
                return int(text.split()[1]) * 1024
    except OSError:
        pass
    return None


def memory_needed(rule: str, elements: int, names: Sequence[str]) -> int:
    """An upper bound in bytes."""
    states = len(RULES[rule].states)
    arrays = 2 + sum(LIBRARIES[name].memory(states) for name in names)
    arrays += 2 + states if elements >= CEILING_FROM else 0
    return 4 * elements * (arrays + 3)


def race_steps(setting: Setting, case: str, rule: str, gradients: str, shapes: Sequence[Shape]) -> Record:
    """Measure one rule on one case."""
    import torch

    race = RACES[rule]
    total = sum(math.prod(s) for s in shapes)
    skipped: dict[str, str] = {}
    record: Record = {
        "kind": "steps",
        "threads": setting.threads,
        "case": case,
        "rule": rule,
        "gradients": gradients,
        "tensors": len(shapes),
        "elements": total,
        "shrunk": setting.quick and case in MODELS,
        "bytes_per_parameter": 4 * (3 + 2 * len(RULES[rule].states)),
        "contenders": {},
        "skipped": skipped,
        "ceiling": None,
        "of_ceiling": None,
    }
    available = available_memory()
    if available is not None and (needed := memory_needed(rule, total, setting.libraries)) > 0.9 * available:
        skipped.update(dict.fromkeys(setting.libraries, f"needs {needed >> 30} GiB of memory"))
        return record

    # All libraries with torch's interface step the same params with the same gradients, so that a case fits into
    # memory.
    params = [torch.nn.Parameter(torch.from_numpy(line(s, 0.5, 1.5))) for s in shapes]
    grads = [torch.from_numpy(line(s, 1e-3, 2e-3)) for s in shapes]
    fresh = gradients == "fresh"

    def keep() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g

    def renew() -> None:
        # As after a backward pass: new tensors without Python objects.
        for p in params:
            p.grad = None
        torch.autograd.backward(params, grads)

    def start(name: str) -> Contender:
        library = LIBRARIES[name]
        if fresh and library.no_fresh:
            raise Unavailable(library.no_fresh)
        if setting.quick and len(shapes) > library.smoke_tensors:
            raise Unavailable("compiles for longer than a smoke run may last")
        return contender(name, race, params, setting.compile_tensors)

    (renew if fresh else keep)()
    starting = {name: attempt(name, start, skipped) for name in setting.libraries}
    field = {name: c for name, c in starting.items() if c is not None}
    if total >= CEILING_FROM and not fresh:
        # Not numpy.full: its pages would come from another allocator than the params.
        streams = [torch.full((total,), 0.5).numpy() for _ in range(2 + len(RULES[rule].states))]
        field["ceiling"] = Contender(lambda: adaptk._core.bandwidth_probe(streams))
    times = in_turn(field, setting.effort, renew if fresh else None)
    for name, c in field.items():
        if (reason := c.invalid()) is not None:
            del times[name]
            skipped[name] = reason
    ceiling = times.pop("ceiling", None)
    record["contenders"] = compared(times, "adaptk")
    if ceiling is not None:
        record["ceiling"] = {"seconds": ceiling, "median": statistics.median(ceiling)}
        if "adaptk" in times:
            record["of_ceiling"] = record["ceiling"]["median"] / record["contenders"]["adaptk"]["median"]
    return record


# ---------------------------------------------------------------------------------------------------------------------
# Training loops
# ---------------------------------------------------------------------------------------------------------------------


class Training:
    """A network and its optimizer, with the time of each part of a training step."""

    def __init__(self, case: str, name: str, compile_tensors: int) -> None:
        library = LIBRARIES[name]
        self.params, self._loss = LOOPS[case].network()
        self.steps = 0
        self.loss = math.nan
        self.optimizer = torch_optimizer(name, RACES["adam"], self.params)
        self._step: Callable[[], object] = self.optimizer.step
        # A compiled step needs gradients that stay the same tensors.
        self._to_none = not library.compiled
        if library.compiled:
            self._compile(compile_tensors)

    def _compile(self, most: int) -> None:
        """Take steps so that they are compiled, and then restore everything."""
        import torch

        before = [p.detach().clone() for p in self.params]
        self._loss(0).backward()
        self._step = Compiled(self.optimizer, len(self.params), most).step
        with torch.no_grad():
            for p, value in zip(self.params, before, strict=True):
                p.copy_(value)
                for state in self.optimizer.state[p].values():
                    state.zero_()

    def run(self, steps: int) -> Record:
        """The time per step in seconds: the total, the optimizer's step, and forward and backward."""
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


def race_loop(setting: Setting, case: str) -> Record:
    """Measure the training of a network by Adam; each library has its own copy of the network."""
    record: Record = {
        "kind": "loop",
        "threads": setting.threads,
        "case": case,
        "rule": "adam",
        "contenders": {},
        "skipped": {},
    }
    steps = 3 if setting.quick else LOOPS[case].steps

    def start(name: str) -> Training:
        if reason := LIBRARIES[name].no_loops:
            raise Unavailable(reason)
        training = Training(case, name, setting.compile_tensors)
        training.run(2)
        return training

    starting = {name: attempt(name, start, record["skipped"]) for name in setting.libraries}
    runs = {name: training for name, training in starting.items() if training is not None}
    if not runs:
        return record
    params = next(iter(runs.values())).params
    record["tensors"] = len(params)
    record["elements"] = sum(p.numel() for p in params)
    times: dict[str, dict[str, list[float]]] = {part: {name: [] for name in runs} for part in PARTS}
    for i in setting.effort.rounds():
        for name in rotated(list(runs), i):
            runs[name].run(3)
            for part, seconds in runs[name].run(steps).items():
                times[part][name].append(seconds)
    parts = {part: compared(times[part], "adaptk") for part in PARTS}
    for name, training in runs.items():
        record["contenders"][name] = {part: parts[part][name] for part in PARTS}
        record["contenders"][name].update(loss=training.loss, steps=training.steps)
    return record
