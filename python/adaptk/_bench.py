"""``adaptk bench``: every rule compared with the limit set by memory bandwidth, measured in the same run.

An element-wise update cannot be faster than the memory traffic of its arrays. The ceiling of a rule is a kernel that
reads and writes the same arrays with one addition each, in the same buffers, on the same threads. Rule and ceiling are
timed alternately, and the median of their ratios is printed: absolute times depend too much on what else runs on the
machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import adaptk
from adaptk import _core
from adaptk._cli import _figures
from adaptk._cli._figures import STUDIES
from adaptk._cli._parser import CommandError, Parser, add_json, check_files, names_among, program, whole, write_json
from adaptk._cli._screen import Cell, Column, Screen, progress
from adaptk._registry import RULES, Rule, rules
from adaptk.catalogue import CLASSES

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
    """The machine on which the figures were measured."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), model)
    except OSError:
        pass
    return {"processor": model, "system": platform.system(), "python": platform.python_version(), **adaptk.build_info()}


def dtype_of(name: str) -> np.dtype[Any]:
    """A NumPy dtype by name; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise CommandError("bfloat16 arrays need the package ml_dtypes: pip install ml_dtypes") from None
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def timed(call: Callable[[], object], calls: int) -> float:
    """The mean time of `number` calls, in seconds."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def interleaved(calls: Sequence[Callable[[], object]], repeats: int, least: float = 2e-3) -> list[list[float]]:
    """Times of several calls, measured alternately.

    Returns
    -------
    list of list of float
        One list for each call, of `repeats` times in seconds. Short calls are repeated until one measurement takes
        `least`.
    """
    counts = [max(1, int(least / max(timed(call, 1), 1e-9))) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for i, call in enumerate(calls):
            times[i].append(timed(call, counts[i]))
    return times


class Streams:
    """The buffers of one rule, and the two calls to compare."""

    def __init__(self, rule: Rule, dtype: str, size: int) -> None:
        self.rule = rule
        storage = dtype_of(dtype)
        compute = np.dtype(np.float64 if dtype == "float64" else np.float32)
        # All positive, so that no rule takes the root of a negative number.
        self.param = np.linspace(0.5, 1.5, size, dtype=np.float32).astype(storage)
        self.grad = np.linspace(1e-3, 2e-3, size, dtype=np.float32).astype(storage)
        self.states = [np.full(size, max(value, 1e-6), compute) for value in rule.initial_states().values()]
        written = storage.itemsize + len(self.states) * compute.itemsize
        self.bytes = 2 * written + storage.itemsize
        self._function = getattr(adaptk.ops, rule.name)
        streams = 2 + len(self.states)
        self._plain = storage == compute
        self._ceiling_buffers: list[Any] = []
        # There is no ceiling kernel for 16-bit storage: its ceiling is the time for the same number of bytes in
        # float32.
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
        _core.bandwidth_probe(self._ceiling_buffers)


def measure(rule: Rule, dtype: str, size: int, repeats: int) -> Result:
    """Compare one rule with its ceiling, on the current threads and instruction set."""
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
    """Times of small calls, relative to ``numpy.add(a, b, out=a)`` on 64 float32 elements."""
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
    """A bar chart of the fraction of the ceiling that each rule reaches."""
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


LEGEND = (
    "of ceiling: speed beside a kernel that reads and writes the same memory with one addition each, in turns, median. "
    "1.00 is as fast as memory allows; more is chance or caches. IQR: interquartile range of that ratio. "
    "B/param: bytes that a step moves for each parameter."
)
SMALL_LEGEND = "time of the call / time of the other: below 1.00 it is the faster one. Medians, in turns."


def _sizes(text: str) -> list[int]:
    return [_size(t) for t in text.split(",") if t]


def _numbers(text: str) -> list[int]:
    return [whole(1)(t) for t in text.split(",") if t]


def _parser() -> Parser:
    name = program()
    parser = Parser(
        prog=f"{name} bench",
        description="Measure the speed of every rule relative to a kernel with the same memory traffic: 1.00 is as "
        "fast as memory allows. Takes about a minute.",
        examples=[
            (f"{name} bench --rules adam,lion --sizes 4K,1M,64M", "two rules at three sizes"),
            (f"{name} bench --isas all --threads 1,2", "every instruction set, two numbers of threads"),
            (f"{name} bench --overhead", "what a small call costs"),
            (f"{name} bench --readme --write README.md", "every figure of the README"),
            (f"{name} bench --offload --sizes 64M", "AdamW with states in host memory (needs torch)"),
            (f"{name} bench --device cuda", "on a GPU, compared with the optimizers of torch and others"),
        ],
    )
    isas = adaptk.available_isas()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--rules",
        type=names_among("rule", [*RULES, *CLASSES]),
        default=list(RULES),
        metavar="A,B",
        help="comma-separated names; default: all compiled rules",
    )
    parser.add_argument(
        "--sizes",
        type=_sizes,
        default="64M",
        metavar="N,N",
        help="numbers of elements, such as 64,1M (M = 2**20); default: 64M",
    )
    parser.add_argument(
        "--dtypes",
        type=names_among("dtype", _DTYPES),
        default="float32",
        metavar="A,B",
        help=f"some of {', '.join(_DTYPES)}; default: float32",
    )
    parser.add_argument(
        "--isas",
        type=names_among("instruction set", isas),
        metavar="A,B",
        help=f"some of {', '.join(isas)}; default: best",
    )
    parser.add_argument("--threads", type=_numbers, metavar="N,N", help="numbers of threads; default: that of a step")
    parser.add_argument("--repeats", type=whole(1), default=11, metavar="N", help="number of repetitions; default: 11")
    parser.add_argument("--overhead", action="store_true", help="instead, compare small calls with numpy.add")
    parser.add_argument("--offload", action="store_true", help="instead, compare offloaded steps with other libraries")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the relative speeds to FILE (needs matplotlib)")
    add_json(parser)
    readme = parser.add_argument_group(
        "the figures of the README",
        "In a checkout, run every benchmark whose requirements are installed (about 12 minutes on an idle machine), "
        "and print the block of figures in the README. Results are stored in bench/figures.json, or in the FILE of "
        "--json. --plot compares adaptk with other libraries.",
    )
    readme.add_argument("--readme", action="store_true", help="measure and print these figures")
    readme.add_argument("--write", type=Path, metavar="FILE", help="replace the block between the markers in FILE")
    readme.add_argument(
        "--quick", action="store_true", help="only check that everything runs: the figures are meaningless"
    )
    readme.add_argument(
        "--only", type=names_among("study", list(STUDIES)), metavar="A,B", help=f"some of {', '.join(STUDIES)}"
    )
    readme.add_argument(
        "--from", dest="given", type=Path, metavar="FILE", help="read results from FILE, except the studies of --only"
    )
    return parser


def _show(screen: Screen, results: Sequence[Result]) -> None:
    columns = [
        Column("rule", left=True, style="cyan"),
        Column("dtype", left=True, drop=2),
        Column("size", drop=1),
        Column("isa", left=True, drop=4),
        Column("threads", drop=3),
        Column("B/param", drop=6),
        Column("step", drop=1),
        Column("of ceiling", style="bold"),
        Column("IQR", drop=5),
    ]
    rows: list[list[Cell]] = [
        [
            r.rule,
            r.dtype,
            size_text(r.size),
            r.isa,
            str(r.threads),
            str(r.bytes_per_parameter),
            f"{r.seconds * 1e3:.3g} ms" if r.seconds >= 1e-3 else f"{r.seconds * 1e6:.3g} us",
            f"{r.of_ceiling:.2f}",
            f"{r.spread:.2f}",
        ]
        for r in results
    ]
    screen.table(columns, rows)
    screen.line()
    screen.note(LEGEND)


def _measured(options: argparse.Namespace, results: list[Result]) -> None:
    """Append each result to `results` at once, so that an interrupt loses none."""
    before = (adaptk.get_isa(), adaptk.get_num_threads())
    isas, threads = options.isas or before[:1], options.threads or before[1:]
    combinations = list(itertools.product(isas, threads, options.dtypes, options.sizes, options.rules))
    try:
        with progress(len(combinations)) as bar:
            for isa, n, dtype, size, rule in combinations:
                bar.describe(f"{rule} {dtype} {size_text(size)} {isa}, {n} threads")
                adaptk.set_isa(isa)
                adaptk.set_num_threads(n)
                results.append(measure(rules()[rule], dtype, size, options.repeats))
                bar.advance()
    finally:
        adaptk.set_isa(before[0])
        adaptk.set_num_threads(before[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.readme:
        if options.device == "cuda" or options.overhead or options.offload:
            parser.error("--readme: --device, --overhead and --offload are for other measurements")
        if options.quick and options.write is not None:
            parser.error("--quick: its figures mean nothing, so that they are not written to a file")
        check_files(options)
        return _figures.run(options)
    if options.write or options.quick or options.only or options.given:
        parser.error("--write, --quick, --only and --from belong to --readme")
    if options.device == "cuda" and (options.isas or options.threads or options.overhead or options.plot):
        parser.error("--isas, --threads, --overhead and --plot are about the CPU")
    if options.offload and (options.device == "cuda" or options.overhead or options.isas or options.plot):
        parser.error("--offload: --device, --overhead, --isas and --plot are for other measurements")
    check_files(options)
    screen = None if options.json == "-" else Screen()
    report: dict[str, Any] = {"machine": machine()}
    if options.device == "cuda":
        from adaptk import _bench_cuda

        using = _bench_cuda.library()
        report["machine"]["devices"] = [asdict(device) for device in adaptk.cuda.devices()]
        on_device = _bench_cuda.run(options.rules, options.dtypes, options.sizes, options.repeats, using)
        report["results"] = [asdict(r) for r in on_device]
        if screen is not None:
            _bench_cuda.show(screen, on_device)
    elif options.offload:
        from adaptk import _bench_offload

        report["offload"] = []
        for size, threads in itertools.product(options.sizes, options.threads or [adaptk.get_num_threads()]):
            of_offload = _bench_offload.measured(size, threads, options.repeats)
            report["offload"] += [{"size": size, "threads": threads, **asdict(row)} for row in of_offload]
            if screen is not None:
                _bench_offload.show(screen, of_offload, size, threads)
    elif options.overhead:
        report["overhead"] = overhead(options.repeats)
        if screen is not None:
            columns = [Column("ratio", style="bold"), Column("call / other", left=True)]
            screen.table(columns, [[f"{ratio:.2f}", what] for what, ratio in report["overhead"].items()])
            screen.line()
            screen.note(SMALL_LEGEND)
    else:
        results: list[Result] = []
        try:
            _measured(options, results)
        finally:
            report["results"] = [asdict(r) for r in results]
            if screen is not None and results:
                _show(screen, results)
        if options.plot is not None:
            plot(results, str(options.plot))
    write_json(json.dumps(report, indent=2), options.json)
    return 0
