"""``python -m adaptk bench``: every rule against the ceiling that memory sets, measured in the same run.

An element-wise update can be no faster than memory moves its streams. The ceiling of a rule is a kernel that reads and
writes the same streams with one addition each, over the same buffers, on the same threads. Rule and ceiling take turns,
and what is printed is the median of their ratios: an absolute time says more about the machine's other tenants.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import adaptk
from adaptk import _core
from adaptk._registry import RULES, Rule

_UNITS = {"": 1, "k": 1000, "K": 1024, "M": 1024**2, "G": 1024**3}
_DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Result:
    """One line of the table. Times are medians of one step, in seconds."""

    rule: str
    dtype: str
    size: int
    isa: str
    threads: int
    bytes_per_parameter: int
    seconds: float
    ceiling_seconds: float
    of_ceiling: float
    spread: float


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kKMG]?)", text)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 64k or 64M")
    return int(match[1]) * _UNITS[match[2]]


def size_text(n: int) -> str:
    """A size as it is given on the command line."""
    for unit in ("G", "M", "K"):
        if n % _UNITS[unit] == 0:
            return f"{n // _UNITS[unit]}{unit}"
    return str(n)


def machine() -> dict[str, Any]:
    """What figures were taken on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), model)
    except OSError:
        pass
    return {"processor": model, "system": platform.system(), "python": platform.python_version(), **adaptk.build_info()}


def dtype_of(name: str) -> np.dtype[Any]:
    """A NumPy dtype by name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise SystemExit("bench: bfloat16 arrays need the package ml_dtypes") from None
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def timed(call: Callable[[], object], calls: int) -> float:
    """Seconds for one of a number of calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def interleaved(calls: Sequence[Callable[[], object]], repeats: int, least: float = 2e-3) -> list[list[float]]:
    """Times of several calls, taken in turn.

    Returns
    -------
    list of list of float
        One list a call, of `repeats` times in seconds; short calls are repeated within a time until it takes `least`.
    """
    counts = [max(1, int(least / max(timed(call, 1), 1e-9))) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for i, call in enumerate(calls):
            times[i].append(timed(call, counts[i]))
    return times


class Streams:
    """The buffers of one rule, and the calls that are compared."""

    def __init__(self, rule: Rule, dtype: str, size: int) -> None:
        self.rule = rule
        storage = dtype_of(dtype)
        compute = np.dtype(np.float64 if dtype == "float64" else np.float32)
        # Positive everywhere, so that neither the rule nor the ceiling ever takes the root of a negative number.
        self.param = np.linspace(0.5, 1.5, size, dtype=np.float32).astype(storage)
        self.grad = np.linspace(1e-3, 2e-3, size, dtype=np.float32).astype(storage)
        self.states = [np.full(size, max(value, 1e-6), compute) for value in rule.initial_states().values()]
        written = storage.itemsize + len(self.states) * compute.itemsize
        self.bytes = 2 * written + storage.itemsize
        self._function = getattr(adaptk.ops, rule.name)
        streams = 2 + len(self.states)
        self._plain = storage == compute
        self._ceiling_buffers: list[Any] = []
        # 16-bit storage has no ceiling kernel of its own: the ceiling is the time of the same number of bytes.
        self.ceiling_factor = 1.0 if self._plain else self.bytes / (4 * (2 * streams - 1))

    def update(self) -> None:
        """One step of the rule."""
        self._function(self.param, self.grad, *self.states, step=10)

    def ceiling(self) -> None:
        """The same streams, one addition each."""
        if not self._ceiling_buffers:
            first: list[Any] = [self.param, self.grad]
            if not self._plain:
                first = [np.full(self.param.size, 0.5, np.float32) for _ in first]
            self._ceiling_buffers = [*first, *self.states]
        _core.ceiling(self._ceiling_buffers)


def measure(rule: Rule, dtype: str, size: int, repeats: int) -> Result:
    """One rule against its ceiling with the current threads and instruction set."""
    streams = Streams(rule, dtype, size)
    ceiling, update = interleaved([streams.ceiling, streams.update], repeats)
    ratios = [c * streams.ceiling_factor / u for c, u in zip(ceiling, update, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Result(
        rule=rule.name,
        dtype=dtype,
        size=size,
        isa=adaptk.get_isa(),
        threads=adaptk.get_num_threads(),
        bytes_per_parameter=streams.bytes,
        seconds=statistics.median(update),
        ceiling_seconds=statistics.median(ceiling) * streams.ceiling_factor,
        of_ceiling=statistics.median(ratios),
        spread=quartiles[2] - quartiles[0],
    )


def overhead(repeats: int) -> dict[str, float]:
    """Small calls in units of one ``numpy.add(a, b, out=a)`` on 64 float32 elements."""
    a, b = np.ones(64, np.float32), np.ones(64, np.float32)
    param, grad, m, v = (np.full(64, 0.5, np.float32) for _ in range(4))
    params = [np.full(64, 0.5, np.float32) for _ in range(1000)]
    grads = [np.full(64, 0.5, np.float32) for _ in range(1000)]
    optimizer = adaptk.Adam(params)
    add = np.add

    def adds() -> None:
        for p, g in zip(params, grads, strict=True):
            add(p, g, out=p)

    times = interleaved(
        [
            lambda: add(a, b, out=a),
            lambda: adaptk.ops.adam(param, grad, m, v, step=100, lr=1e-3),
            adds,
            lambda: optimizer.step(grads),
        ],
        repeats,
        least=2e-2,
    )
    one_add, one_adam, thousand_adds, thousand_adam = (statistics.median(t) for t in times)
    return {
        "ops.adam on 64 elements / numpy.add on 64 elements": one_adam / one_add,
        "Adam.step on 1000 x 64 / 1000 numpy.add on 64": thousand_adam / thousand_adds,
    }


def plot(results: Sequence[Result], path: str) -> None:
    """Bars: the share of the ceiling that each rule reaches."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    labels = [f"{r.rule}" for r in results]
    several = len({(r.dtype, r.size, r.isa, r.threads) for r in results}) > 1
    if several:
        labels = [f"{r.rule} {r.dtype} {size_text(r.size)} {r.isa} x{r.threads}" for r in results]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.26 * len(results)), layout="constrained")
    positions = np.arange(len(results))
    axes.barh(positions, [r.of_ceiling for r in results], color="#2f6f9f", height=0.7)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.axvline(0.95, color="black", linewidth=1, linestyle=":")
    axes.set_yticks(positions, labels)
    axes.invert_yaxis()
    axes.set_xlabel("speed as a share of the same-traffic ceiling (dotted: 0.95)")
    axes.margins(y=0.01)
    for y, r in enumerate(results):
        axes.text(r.of_ceiling - 0.01, y, f"{r.of_ceiling:.2f}", va="center", ha="right", color="white", fontsize=8)
    first = results[0]
    if not several:
        axes.set_title(f"{first.dtype}, {size_text(first.size)} elements, {first.isa}, {first.threads} threads")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m adaptk bench",
        description="Measure every rule against a kernel with the same memory traffic. 1.00 is the ceiling.",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rules", default="all", help="comma-separated names, default all")
    parser.add_argument("--sizes", default="64M", help="comma-separated, such as 64,1M,64M (M = 2**20)")
    parser.add_argument("--dtypes", default="float32", help=f"comma-separated, of {', '.join(_DTYPES)}")
    parser.add_argument("--isas", default="", help="comma-separated, default the current one; all for all available")
    parser.add_argument("--threads", default="", help="comma-separated numbers, default the current one")
    parser.add_argument("--repeats", type=int, default=11, help="interleaved repetitions, default 11")
    parser.add_argument("--overhead", action="store_true", help="small calls beside numpy.add instead")
    parser.add_argument("--json", metavar="FILE", help="write results as JSON; - for standard output, without a table")
    parser.add_argument("--plot", metavar="FILE", help="draw the shares of the ceiling (needs matplotlib)")
    return parser


def _choices(parser: argparse.ArgumentParser, option: str, text: str, known: Sequence[str]) -> list[str]:
    if text == "all":
        return list(known)
    chosen = [t for t in text.split(",") if t]
    for name in chosen:
        if name not in known:
            parser.error(f"{option}: {name!r} is not one of {', '.join(known)}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    rules = _choices(parser, "--rules", options.rules, list(RULES))
    dtypes = _choices(parser, "--dtypes", options.dtypes, _DTYPES)
    isas = _choices(parser, "--isas", options.isas, adaptk.available_isas()) or [adaptk.get_isa()]
    if options.repeats < 1:
        parser.error("--repeats: at least 1")
    try:
        sizes = [_size(t) for t in options.sizes.split(",")]
        threads = [int(t) for t in options.threads.split(",") if t] or [adaptk.get_num_threads()]
    except (argparse.ArgumentTypeError, ValueError) as e:
        parser.error(str(e))
    if options.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--plot: needs matplotlib (pip install matplotlib)")
    table = options.json != "-"
    report: dict[str, Any] = {"machine": machine()}
    if options.device == "cuda":
        if options.isas or options.threads or options.overhead or options.plot:
            parser.error("--isas, --threads, --overhead and --plot are about the CPU")
        from adaptk import _bench_cuda

        using = _bench_cuda.library()
        report["machine"]["devices"] = [asdict(device) for device in adaptk.cuda.devices()]
        on_device = _bench_cuda.run(rules, dtypes, sizes, options.repeats, table, using)
        report["results"] = [asdict(r) for r in on_device]
        _write(report, options.json)
        return 0

    before = (adaptk.get_isa(), adaptk.get_num_threads())
    try:
        if options.overhead:
            report["overhead"] = overhead(options.repeats)
            if table:
                for what, ratio in report["overhead"].items():
                    print(f"{ratio:6.2f}  {what}")
        else:
            results: list[Result] = []
            if table:
                print(
                    f"{'rule':<26}{'dtype':<10}{'size':>8} {'isa':<11}{'threads':>7}{'B/param':>9}"
                    f"{'of ceiling':>12}{'IQR':>7}"
                )
            for isa in isas:
                adaptk.set_isa(isa)
                for n in threads:
                    adaptk.set_num_threads(n)
                    for dtype in dtypes:
                        for size in sizes:
                            for name in rules:
                                if table and sys.stdout.isatty():
                                    print(f"{name} ...", end="\r", flush=True)
                                r = measure(RULES[name], dtype, size, options.repeats)
                                results.append(r)
                                if table:
                                    print(
                                        f"{r.rule:<26}{r.dtype:<10}{size_text(r.size):>8} {r.isa:<11}{r.threads:>7}"
                                        f"{r.bytes_per_parameter:>9}{r.of_ceiling:>12.2f}{r.spread:>7.2f}",
                                        flush=True,
                                    )
            report["results"] = [asdict(r) for r in results]
            if options.plot:
                plot(results, options.plot)
    finally:
        adaptk.set_isa(before[0])
        adaptk.set_num_threads(before[1])
    _write(report, options.json)
    return 0


def _write(report: dict[str, Any], to: str | None) -> None:
    if to == "-":
        print(json.dumps(report, indent=2))
    elif to:
        with open(to, "w", encoding="utf-8") as f:
            json.dump(report, f, indent=2)
            f.write("\n")
