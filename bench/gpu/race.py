"""Times of steps on the device: every rule of adaptk.torch, a device copy and torch's own optimizers.

``python bench/gpu/race.py [--json FILE] [--seconds 150] [--cpu]``

The contenders are timed alternately. A time is the device's own, between two events around a burst of steps, and
medians are compared. The copy moves as many bytes as the step, half of them read and half of them written. Host times
are those until a call returns. The most important measurements come first; those that do not fit into `--seconds` are
left out and listed. ``--cpu`` is a trial run with small tensors on the CPU; its figures mean nothing.
"""

# ruff: noqa: E402  # modules of other folders are found first
from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import Record, find_modules, write_json

find_modules("bench")

import adaptk
from adaptk._bench import machine, size_text, timed
from adaptk._bench_cuda import Call, Library, Torch, in_turns
from adaptk._registry import RULES
from racing.contenders import RACES, Compiled, attempt, first_line, forward_count, torch_optimizer

# By name of the case: the number and size of tensors, and those in a trial run.
CASES = {
    "64M": ((1, 64 << 20), (1, 1 << 14)),
    "1M": ((1, 1 << 20), (1, 1 << 12)),
    "1000x64": ((1000, 64), (20, 64)),
    "200x4096": ((200, 4096), (5, 256)),
}
DTYPES = ("float32", "bfloat16")
REPEATS = 5
# Compiling for more tensors takes minutes.
COMPILE_TENSORS = 200
COMPILE_SECONDS = 15.0
HOST_SECONDS = 3e-3  # the time of a burst of 3 to 20 calls without synchronisation
NO_TIME = "no time was left"


class OnHost(Torch):
    """Tensors on the CPU, and the CPU's clock, for a trial run."""

    def full(self, size: int, value: float, dtype: str) -> Any:
        return self._torch.full((size,), value, dtype=getattr(self._torch, dtype))

    def seconds(self, call: Call, calls: int) -> float:
        return timed(call, calls)


@dataclasses.dataclass
class Setting:
    """The settings of all measurements of a run."""

    using: Library
    device: str
    repeats: int
    burst: float

    @property
    def trial(self) -> bool:
        return self.device == "cpu"

    def synchronize(self) -> None:
        if not self.trial:
            import torch

            torch.cuda.synchronize()


@dataclasses.dataclass(frozen=True)
class Item:
    """One measurement to be made."""

    case: str
    rule: str
    dtype: str
    compiled: bool = False


def plan(trial: bool) -> list[Item]:
    """The measurements in the order of importance: uncompiled steps, then compiled ones."""
    items = [Item(case, rule, dtype) for case in CASES for dtype in DTYPES for rule in RACES]
    if trial:
        few = [i for i in items if i.case == "64M" or i.rule in ("adam", "rmsprop", "lion")]
        return [*few, Item("64M", "rmsprop", "float32", compiled=True)]
    in_torch = [rule for rule, race in RACES.items() if race.in_torch]
    # First the rules that torch does not fuse.
    in_torch.sort(key=lambda rule: RACES[rule].fused)
    items += [Item("64M", rule, "float32", compiled=True) for rule in in_torch]
    items += [Item(case, "adam", "float32", compiled=True) for case in ("1M", "200x4096")]
    items += [Item("64M", rule, "bfloat16", compiled=True) for rule in in_torch]
    return items


def bytes_per_parameter(rule: str, dtype: str) -> int:
    """The bytes moved: param and gradient are read, the param written, and each float32 state read and written."""
    return 3 * (2 if dtype == "bfloat16" else 4) + 8 * len(RULES[rule].states)


def launches(rule: str, dtype: str, setting: Setting) -> Record:
    """The number of kernels, copies and fills that a step of many small tensors starts on the device."""
    import torch

    count, size = CASES["1000x64"][setting.trial]
    params = [
        torch.nn.Parameter(torch.ones(size, device=setting.device, dtype=getattr(torch, dtype))) for _ in range(count)
    ]
    for p in params:
        p.grad = torch.ones_like(p)
    step = torch_optimizer("adaptk", RACES[rule], params).step
    for _ in range(3):
        step()
    setting.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    return {"rule": rule, "dtype": dtype, "launches": on_device(trace)}


def on_device(trace: Record) -> int:
    """The kernels, copies and fills in a trace of Kineto."""
    return sum(e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") for e in trace["traceEvents"])


def host_times(calls: Mapping[str, Call], about: Mapping[str, float], setting: Setting) -> dict[str, float]:
    """The time until each call returns, in seconds, beginning with an idle device."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(setting.repeats):
        for name, call in calls.items():
            setting.synchronize()
            times[name].append(timed(call, max(3, min(20, int(HOST_SECONDS / max(about[name], 1e-7))))))
    setting.synchronize()
    return {name: statistics.median(t) for name, t in times.items()}


def uncapped(call: Call) -> Call:
    """The same with unlimited grids; see bench/cuda.md."""
    from adaptk import _cuda

    def run() -> object:
        before = _cuda.set_waves(0)
        try:
            return call()
        finally:
            _cuda.set_waves(before)

    return run


def race(item: Item, setting: Setting) -> Record:
    """Measure one rule on one case."""
    import torch

    count, size = CASES[item.case][setting.trial]
    dtype = getattr(torch, item.dtype)
    # torch raises an error for rules that it does not fuse on this device.
    entry = dataclasses.replace(RACES[item.rule], fused=True)

    def line(low: float, high: float) -> Any:
        # All of one sign and far from zero, so that no state becomes subnormal.
        return torch.linspace(low, high, size, device=setting.device).to(dtype)

    params = [torch.nn.Parameter(line(0.5, 1.5)) for _ in range(count)]
    for p in params:
        p.grad = line(1e-3, 2e-3)
    moved = count * size * bytes_per_parameter(item.rule, item.dtype)
    record: Record = {
        **dataclasses.asdict(item),
        "tensors": count,
        "elements": count * size,
        "bytes": moved,
        "in_torch": entry.in_torch,
        "skipped": {},
    }
    compiled: list[Compiled] = []

    def entered(name: str) -> Call:
        if name == "compiled":
            optimizer = torch_optimizer("foreach", entry, params)
            compiled.append(Compiled(optimizer, count, COMPILE_TENSORS))
            step: Call = compiled[0].step
            return step
        optimizer = torch_optimizer("adaptk" if name in ("clip", "uncapped") else name, entry, params)
        optimizer.step()
        forward_count(optimizer)
        if name == "clip":
            return lambda: optimizer.step(clip_norm=1.0)
        own: Call = optimizer.step
        return uncapped(own) if name == "uncapped" else own

    names = ["adaptk", "compiled"] if item.compiled else ["adaptk", "clip", "fused", "foreach"]
    if not item.compiled and not setting.trial:
        names.append("uncapped")
    starting = {name: attempt(name, entered, record["skipped"]) for name in names}
    calls: dict[str, Call] = {name: call for name, call in starting.items() if call is not None}
    source, target = (setting.using.full(-(-moved // 8), 0.0, "float32") for _ in range(2))
    calls["copy"] = lambda: setting.using.copy(target, source)
    times = in_turns(calls, setting.repeats, setting.using, setting.burst)
    if "compiled" in times and (reason := compiled[0].invalid()) is not None:
        del times["compiled"]
        record["skipped"]["compiled"] = reason
    record["times"] = {name: {"seconds": t, "median": statistics.median(t)} for name, t in times.items()}
    if not item.compiled:
        steps = {name: call for name, call in calls.items() if name not in ("copy", "uncapped")}
        record["host"] = host_times(steps, {name: statistics.median(t) for name, t in times.items()}, setting)
    return record


def norm(size: int, dtype: str, setting: Setting) -> Record:
    """The norm alone, which waits for its result, compared with torch's and with a copy of as many bytes."""
    import torch

    grad = torch.linspace(0.5, 1.5, size, device=setting.device).to(getattr(torch, dtype))
    moved = size * grad.element_size()
    source, target = (setting.using.full(-(-moved // 8), 0.0, "float32") for _ in range(2))
    calls: dict[str, Call] = {
        "adaptk": lambda: adaptk.global_norm([grad]),
        "torch": lambda: torch.linalg.vector_norm(grad).item(),
        "copy": lambda: setting.using.copy(target, source),
    }
    if not setting.trial:
        calls["uncapped"] = uncapped(calls["adaptk"])
    times = in_turns(calls, setting.repeats, setting.using, setting.burst)
    medians = {name: {"seconds": t, "median": statistics.median(t)} for name, t in times.items()}
    return {"elements": size, "dtype": dtype, "bytes": moved, "times": medians}


def line_of(record: Record) -> str:
    """A line of the log: times relative to adaptk's."""
    times = {name: t["median"] for name, t in record["times"].items()}
    own = times["adaptk"]
    others = [f"{name} {t / own:.2f}" for name, t in times.items() if name not in ("adaptk", "copy")]
    others += [f"host {name} {t * 1e6:.0f} us" for name, t in record.get("host", {}).items() if name != "clip"]
    what = f"{record.get('rule', 'norm'):<26}{record.get('case', size_text(record['elements'])):>9}"
    return f"{what}{record['dtype']:>10}{own * 1e6:10.1f} us  of copy {times['copy'] / own:.2f}  {'  '.join(others)}"


def tried(call: Callable[..., Record], *arguments: Any) -> Record | str:
    """The result of a measurement, or its error: one failure must not lose all figures."""
    try:
        return call(*arguments)
    except Exception as e:
        return first_line(e)


def measured(items: Sequence[Item], setting: Setting, until: float) -> Iterator[tuple[str, Record | str]]:
    """The rows, and the measurements that are left out, with the reason."""
    for item in items:
        what = f"{item.rule}, {item.case}, {item.dtype}{', compiled' if item.compiled else ''}"
        if time.monotonic() + (COMPILE_SECONDS if item.compiled and not setting.trial else 0) > until:
            yield what, NO_TIME
            continue
        yield what, tried(race, item, setting)


def described(setting: Setting) -> Record:
    """The machine, torch, and how adaptk.torch accesses tensors."""
    import adaptk.torch
    import torch

    found = machine() | {"torch": torch.__version__, "native step": bool(adaptk.torch._private.face())}
    if not setting.trial:
        found["devices"] = [dataclasses.asdict(d) for d in adaptk.cuda.devices()]
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python bench/gpu/race.py", description="adaptk.torch beside a device copy and torch's optimizers."
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything, with the times of each round")
    result.add_argument(
        "--seconds", type=float, default=150.0, help="begin no measurement after this time, default 150"
    )
    result.add_argument("--cpu", action="store_true", help="a trial run with small tensors on the CPU")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Returns 1 if a measurement failed."""
    begin = time.monotonic()
    options = parser().parse_args(argv)
    if not options.cpu and not adaptk.cuda.is_available():
        print("race: no CUDA device answers", file=sys.stderr)
        return 1
    setting = Setting(OnHost(), "cpu", repeats=1, burst=0.0) if options.cpu else Setting(Torch(), "cuda", REPEATS, 2e-3)
    report: Record = {"trial": options.cpu, "complete": False, "machine": described(setting)}
    report |= {"rules": list(RACES), "steps": [], "norms": [], "launches": [], "left_out": {}, "failed": {}}
    print(json.dumps(report["machine"]), flush=True)

    last_written = 0.0

    def written(every: float = 0.0) -> None:
        nonlocal last_written
        if options.json is not None and time.monotonic() - last_written >= every:
            write_json(options.json, report)
            last_written = time.monotonic()

    def entered(kind: str, what: str, found: Record | str) -> None:
        if isinstance(found, str):
            report["left_out" if found == NO_TIME else "failed"][what] = found
            print(f"{what}: {found}", flush=True)
        else:
            report[kind].append(found)
            print(line_of(found) if "times" in found else f"{what}: {found}", flush=True)
        written(every=2.0)

    for dtype in DTYPES:
        for case in ("64M", "1M"):
            size = math.prod(CASES[case][options.cpu])
            entered("norms", f"norm, {case}, {dtype}", tried(norm, size, dtype, setting))
    items = plan(options.cpu)
    until = begin + options.seconds
    for what, found in measured([i for i in items if not i.compiled], setting, until):
        entered("steps", what, found)
    # After the host times, because a profiler may change these for the rest of the process.
    if not options.cpu:
        for rule, dtype in itertools.product(RACES, DTYPES):
            what = f"launches of {rule}, 1000x64, {dtype}"
            found = tried(launches, rule, dtype, setting) if time.monotonic() < until else NO_TIME
            entered("launches", what, found)
    for what, found in measured([i for i in items if i.compiled], setting, until):
        entered("steps", what, found)
    report["complete"] = not report["failed"] and not report["left_out"]
    written()
    return int(bool(report["failed"]))


if __name__ == "__main__":
    sys.exit(main())
