"""Compares updates on the device with the same updates on the CPU, bit for bit. All NaNs are equal.

``python bench/gpu/bits.py [--json FILE] [--slice] [--cpu]``

- functions: every rule with every pair of types and with options off their defaults, on adversarial
  numbers; aligned and misaligned; a few large tensors and hundreds of small ones; and the norm.
- rows: sparse gradients.
- initial values: what `adaptk.init` fills.
- optimizers: steps of the classes of `adaptk` and `adaptk.torch`, clipped.
- large: tensors of more than 2**31 elements. Windows around the ends and the boundary are compared with the CPU, and
  the whole tensor with the same update in pieces on the device.

``--slice`` runs a part that is quick under compute-sanitizer and needs no PyTorch. ``--cpu`` is a trial run, with the
CPU in place of the device.
"""

# ruff: noqa: E402  # modules of other folders are found first
from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import Record, find_modules, write_json

find_modules("tests", "bench")

import adaptk
import device_arrays
import numpy as np
from helpers import FLOATS, PAIRS, RULES, Array, arguments, call, copies, dtype_of

SIZES = (1, 255, 257, 1000, 70_001, 1_000_003)
SMALL_SIZES = (1, 31, 257, 8193)
MANY = [1 + 7 * i % 97 for i in range(120)]  # more tensors than fit into the parameters of a launch
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -1e-40, 1e-310, 3.4e38, -3.4e38, 65504.0, 6e-8, 2.0**-133)
OPTIONS: tuple[Record, ...] = (
    {"step": 3, "weight_decay": 0.1},
    {"step": 1, "lr": 0.5},
    {"step": 10_000_019, "weight_decay": 0.01, "decoupled": True, "grad_scale": -1 / 3},
    {"step": 7, "maximize": True, "weight_decay": 0.3},
)


class Host:
    """The CPU in place of a device."""

    name = "cpu"

    def put_all(self, buffers: Mapping[str, Any], offset: Callable[[str], int] = lambda name: 0) -> dict[str, Any]:
        return copies(buffers)

    def get_all(self, buffers: Mapping[str, Any]) -> dict[str, Any]:
        return dict(buffers)


class Numbers:
    """Arrays of numbers: slices of long arrays that are made once."""

    def __init__(self, length: int = 1 << 21, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=length)
        # Half are ordinary numbers, half come from the whole range of float32 and beyond, and some are special values.
        wide = rng.random(length) < 0.5
        x[wide] *= 10.0 ** rng.uniform(-46, 38, size=int(wide.sum()))
        special = rng.random(length) < 0.01
        finite = x.copy()
        x[special] = rng.choice(SPECIAL, size=int(special.sum()))
        self._rng = rng
        with np.errstate(all="ignore"):
            self._any = {name: x.astype(dtype) for name, dtype in FLOATS.items()}
            # The norm of infinite numbers is no test: these are finite in every type.
            self._finite = {name: np.clip(finite, -6e4, 6e4).astype(dtype) for name, dtype in FLOATS.items()}

    def __call__(self, size: int, dtype: str, positive: bool = False, finite: bool = False) -> Array:
        source = (self._finite if finite else self._any)[dtype]
        start = int(self._rng.integers(0, source.size - size + 1))
        x = source[start : start + size].copy()
        return np.abs(x) if positive else x

    def buffers(self, rule: str, sizes: Sequence[int], param: str, grad: str) -> dict[str, list[Array]]:
        """A list for every buffer of a rule. All states except the first one are positive, like sums of squares."""
        signed = ("param", "grad", *RULES[rule].states[:1])
        return {
            name: [self(n, dtype_of(name, param, grad).name, positive=name not in signed) for n in sizes]
            for name in arguments(rule)
        }


def difference(got: Any, want: Any) -> str | None:
    """A description of the difference, or None."""
    try:
        device_arrays.assert_equal(got, want)
    except AssertionError as e:
        return " ".join(str(e).split())[:300]
    return None


class Report:
    """The comparisons and their differences, written to a file after each part."""

    def __init__(self, path: Path | None, trial: bool) -> None:
        self._path = path
        self.record: Record = {"trial": trial, "complete": False, "parts": {}, "different": [], "left_out": {}}

    def part(self, name: str, cases: Iterator[tuple[str, str | None]]) -> None:
        """Run the cases of a part: pairs of a name and a difference."""
        start, count, before = time.perf_counter(), 0, len(self.record["different"])
        for what, found in cases:
            count += 1
            if found is not None:
                self.record["different"].append(f"{name}: {what}: {found}")
                print("different:", self.record["different"][-1], flush=True)
        seconds = time.perf_counter() - start
        self.record["parts"][name] = {"cases": count, "seconds": round(seconds, 2)}
        print(f"{name}: {count} cases, {len(self.record['different']) - before} different, {seconds:.1f} s", flush=True)
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        self.record["left_out"][what] = why
        print("left out:", what, "-", why, flush=True)

    def write(self) -> None:
        if self._path is not None:
            write_json(self._path, self.record)


def functions(place: Any, numbers: Numbers, small: bool) -> Iterator[tuple[str, str | None]]:
    """Every rule, type and option; large sizes only once for each type."""
    pairs = [(t, t) for t in ("float32", "bfloat16") if t in FLOATS] if small else PAIRS
    for rule, (param, grad) in itertools.product(RULES, pairs):
        defaults = {h.name for h in RULES[rule].hyperparameters}
        for i, options in enumerate(OPTIONS[: 1 if small else None]):
            sizes: Sequence[int] = SMALL_SIZES if small or i > 0 else SIZES
            if i == 1:
                sizes = MANY
            hyper = {k: v for k, v in options.items() if k == "step" or k in defaults}
            host = numbers.buffers(rule, sizes, param, grad)
            # The second and the fourth buffer begin in the middle of a vector.
            on_device = place.put_all(host, lambda name, i=i: i % 2)
            call(rule, on_device, **hyper)
            call(rule, host, **hyper)
            yield f"{rule} {param} {grad} {hyper}", difference(place.get_all(on_device), host)


def norms(place: Any, numbers: Numbers, small: bool) -> Iterator[tuple[str, str | None]]:
    for dtype in FLOATS:
        for sizes in (SMALL_SIZES, MANY, *([] if small else [SIZES])):
            for finite in (True, False):
                host = {"grad": [numbers(n, dtype, finite=finite) for n in sizes]}
                got = adaptk.global_norm(place.put_all(host)["grad"])
                want = adaptk.global_norm(host["grad"])
                found = difference(np.float64(got), np.float64(want))
                yield f"norm of {dtype}, {len(sizes)} tensors, finite {finite}", found


def rows(place: Any, numbers: Numbers, small: bool) -> Iterator[tuple[str, str | None]]:
    """Sparse gradients, some rows occurring hundreds of times, with indices on the device."""
    rng = np.random.default_rng(1)
    table, count = (500, 2000) if small else (100_000, 8192)
    for rule, width, mode in itertools.product(RULES, (1, 16, 64, 300), ("lazy", "dense")):
        made = numbers.buffers(rule, [8193], "float32", "float32")
        host = {name: np.resize(x[0], (table, width)) for name, x in made.items() if name != "grad"}
        beside = {
            "indices": np.minimum(rng.zipf(1.3, count) - 1, table - 1),
            "values": np.resize(numbers(8193, "float32", finite=True), (count, width)),
        }
        on_device, there = place.put_all(host), place.put_all(beside)
        call(rule, {**on_device, "grad": (there["indices"], there["values"])}, sparse=mode)
        call(rule, {**host, "grad": (beside["indices"], beside["values"])}, sparse=mode)
        yield f"rows of {width}, {rule}, {mode}", difference(place.get_all(on_device), host)


def initial_values(place: Any, small: bool) -> Iterator[tuple[str, str | None]]:
    from test_init import ALL

    for (name, fill), dtype in itertools.product(ALL.items(), FLOATS):
        shape = (37, 51) if small or name in ("orthogonal", "sparse") else (3001, 1007)
        host = {"param": np.ones(shape, FLOATS[dtype])}
        on_device = place.put_all(host)
        fill(on_device["param"], 5)
        fill(host["param"], 5)
        yield f"{name} {dtype}", difference(place.get_all(on_device), host)


def optimizers(place: Any, numbers: Numbers) -> Iterator[tuple[str, str | None]]:
    """Steps of optimizer objects, whose tables, reports and counts are kept between steps."""
    for name in ("SGD", "Adam", "RMSProp", "Lion"):
        cls = getattr(adaptk, name)
        params = {"param": [numbers(n, "float32", finite=True) for n in MANY]}
        on_device = place.put_all(params)
        sides = [cls(x["param"], clip_norm=1.0, skip_nonfinite=True) for x in (on_device, params)]
        for step in range(3):
            grads = {"grad": [numbers(n, "float32", finite=step != 1) for n in MANY]}
            infos = [o.step(g) for o, g in zip(sides, (place.put_all(grads)["grad"], grads["grad"]), strict=True)]
            # NaN equals NaN here.
            told = [(np.float64(info.grad_norm), np.bool_(info.skipped)) for info in infos]
            found = difference(place.get_all(on_device), params) or difference(*told)
            yield f"{name}, step {step + 1}", found


def torch_optimizers(device: str, sizes: Sequence[int]) -> Iterator[tuple[str, str | None]]:
    """Steps of adaptk.torch's classes."""
    import adaptk.torch
    import torch
    from racing.contenders import RACES

    def taken(x: Any) -> Array:
        x = x.detach().cpu().contiguous()
        bits: Array = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()
        return bits.view(FLOATS["bfloat16"]) if x.dtype == torch.bfloat16 else bits

    generator = torch.Generator().manual_seed(0)
    for rule, dtype in itertools.product(RACES, (torch.float32, torch.bfloat16)):
        race = RACES[rule]
        start = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
        sides = [[torch.nn.Parameter(x.clone().to(where)) for x in start] for where in (device, "cpu")]
        steps = [getattr(adaptk.torch, race.torch)(params, lr=1e-2, **race.options) for params in sides]
        for step in range(3):
            grads = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
            for params in sides:
                for p, g in zip(params, grads, strict=True):
                    p.grad = g.to(p.device, copy=True)
            for o in steps:
                o.step(clip_norm=1.0 if step else None)
        got, want = (
            [[taken(x) for x in (p, *filter(torch.is_tensor, o.state[p].values()))] for p in params]
            for o, params in zip(steps, sides, strict=True)
        )
        yield f"adaptk.torch.{race.torch} {race.options} {str(dtype)[6:]}", difference(got, want)


def large(device: str, boundary: int, report: Report) -> Iterator[tuple[str, str | None]]:
    """Tensors with a few more elements than `boundary`."""
    import torch

    size, piece, edge = boundary + 1037, boundary // 2, min(100_003, boundary // 4)
    windows = [slice(0, edge), slice(boundary - edge, size)]
    starts = range(0, size, piece)
    generator = torch.Generator(device).manual_seed(0)

    def same(a: Any, b: Any) -> bool:
        bits = {2: torch.int16, 4: torch.int32}[a.element_size()]
        # In parts, because the result of a comparison is a tensor too.
        return all(torch.equal(x.view(bits), y.view(bits)) for x, y in zip(a.split(piece), b.split(piece), strict=True))

    for rule, dtype in (("sgd", "bfloat16"), ("momentum", "bfloat16"), ("adam", "float32")):
        what = f"{rule} {dtype}, {size:,} elements"
        types = {name: getattr(torch, dtype_of(name, dtype).name) for name in arguments(rule)}
        if device != "cpu":
            torch.cuda.empty_cache()
            needed = int(1.05 * size * sum(t.itemsize * (1 if name == "grad" else 2) for name, t in types.items()))
            if (free := torch.cuda.mem_get_info()[0]) < needed:
                report.leave_out(what, f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
                continue
        whole = {
            name: torch.empty(size, dtype=t, device=device).normal_(generator=generator) for name, t in types.items()
        }
        for s in RULES[rule].states[1:]:
            whole[s.name].abs_()
        parts = {name: x if name == "grad" else x.clone() for name, x in whole.items()}
        on_cpu = [{name: x[w].to("cpu", copy=True) for name, x in whole.items()} for w in windows]
        call(rule, whole)
        for start in starts:
            call(rule, {name: x[start : start + piece] for name, x in parts.items()})
        for w, host in zip(windows, on_cpu, strict=True):
            call(rule, host)
            wrong = [name for name, x in host.items() if not same(whole[name][w].cpu(), x)]
            yield f"{what}, those from {w.start:,} to {w.stop:,}", f"{wrong}" if wrong else None
        wrong = [name for name, x in parts.items() if not same(whole[name], x)]
        yield f"{what}, all beside the same in pieces", f"{wrong}" if wrong else None
        grad = whole["grad"]
        norm, of_pieces = adaptk.global_norm([grad]), adaptk.global_norm(list(grad.split(piece)))
        yield f"{what}, norm in pieces", None if norm == of_pieces else f"{norm!r}, in pieces {of_pieces!r}"
        if rule == "sgd":  # only once, because it copies much
            on_host = adaptk.global_norm([grad.cpu()])
            yield f"{what}, norm on the CPU", None if norm == on_host else f"{norm!r}, on the CPU {on_host!r}"
        del whole, parts, grad


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python bench/gpu/bits.py", description="The device's bits beside the CPU's, for every rule and type."
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the comparisons and their differences")
    result.add_argument("--slice", action="store_true", help="a small part, for compute-sanitizer")
    result.add_argument("--cpu", action="store_true", help="a trial run with the CPU in place of the device")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Compare. Returns 1 if anything differs."""
    options = parser().parse_args(argv)
    report = Report(options.json, options.cpu)
    if options.cpu:
        place: Any = Host()
    else:
        if (reason := device_arrays.start()) is not None:
            print(f"bits: {reason}", file=sys.stderr)
            return 1
        place = device_arrays.main_library() if options.slice else device_arrays.library("torch")
    small = options.slice or options.cpu
    numbers = Numbers(1 << 17 if small else 1 << 21)
    report.part("functions", functions(place, numbers, small))
    report.part("norms", norms(place, numbers, small))
    report.part("rows", rows(place, numbers, small))
    report.part("initial values", initial_values(place, small))
    report.part("optimizers", optimizers(place, numbers))
    if not options.slice:
        device = "cpu" if options.cpu else "cuda"
        report.part("adaptk.torch", torch_optimizers(device, (3, 257, 70_001) if not options.cpu else (3, 257)))
        report.part("large", large(device, 5000 if options.cpu else 2**31, report))
    report.record["complete"] = True
    report.write()
    return int(bool(report.record["different"]))


if __name__ == "__main__":
    sys.exit(main())
