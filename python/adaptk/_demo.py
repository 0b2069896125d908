"""``python -m adaptk demo``: every rule trains two small networks on handwritten digits, and is timed beside NumPy.

A softmax regression and a network with one hidden layer, gradients in plain NumPy. All rules start from the same
weights and see the same minibatches; those whose docs ask for full-batch gradients get them. Each step is also made
with the formula in plain NumPy (``_reference.py``), on a copy of its own and with the same gradients, and the two are
timed in turn, each on one thread.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import gzip
import importlib.resources
import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt

import adaptk
from adaptk import _nist, _reference

Array: TypeAlias = npt.NDArray[Any]

# The sizes of the layers. With no hidden layer the network is softmax regression.
MODELS = {"softmax": (64, 10), "mlp": (64, 128, 10)}
TITLES = {"softmax": "Softmax regression", "mlp": "Two-layer network"}
BATCH = 32
TEST = 360
EPOCHS = 40
# One full-batch gradient an epoch would leave the full-batch rules with a 44th of the steps of the others.
FULL_BATCH_STEPS = 5
LARGE = 1_000_000
LARGE_REPEATS = 9

# Instead of the defaults, which suit deep networks and long runs: these networks are shallow, their inputs lie in
# [0, 1], and there are only some 1,800 steps (200 for the full-batch rules). The values are round ones from a coarse
# search; no rule is tuned finely.
HYPERPARAMETERS: dict[str, dict[str, float]] = {
    # Stable up to about 1, with momentum 0.9 up to about 0.3.
    "sgd": {"lr": 0.3},
    "asgd": {"lr": 0.3},
    "momentum": {"lr": 0.1},
    "nesterov": {"lr": 0.1},
    # Rates grow by kappa a step: from 0.01 by 0.001 they stay small for all of the 200 steps.
    "delta_bar_delta": {"lr": 0.1, "kappa": 0.05},
    # Once the network's loss is next to 0, its gradients keep their signs: steps would grow to 50 and spoil it.
    "rprop": {"step_max": 0.1},
    # Its rate only falls, with the root of the number of steps.
    "adagrad": {"lr": 0.1},
    # A step moves every element by about lr, and 1,800 steps of 1e-3 (of 1e-4 for Lion) do not get far enough. The
    # variants of RMSProp with momentum 0.9 move ten times as far with the default, and Yogi's default is 0.01.
    "rmsprop": {"lr": 0.01},
    "rmsprop_centered": {"lr": 0.01},
    "adam": {"lr": 0.01},
    "amsgrad": {"lr": 0.01},
    "adamw": {"lr": 0.01},
    "adamax": {"lr": 0.01},
    "nadam": {"lr": 0.01},
    "radam": {"lr": 0.01},
    "adabelief": {"lr": 0.01},
    "adan": {"lr": 0.01},
    "lion": {"lr": 0.001},
}

# The panels of the plot. A rule that is in none of them goes to one more, "Others".
FAMILIES = {
    "Gradient descent": ("sgd", "momentum", "nesterov", "asgd"),
    "A rate for each parameter": ("delta_bar_delta", "rprop", "adagrad", "adadelta"),
    "RMSProp": (
        "rmsprop",
        "rmsprop_centered",
        "rmsprop_momentum",
        "rmsprop_centered_momentum",
        "rmsprop_nesterov",
    ),
    "Adam": ("adam", "adamw", "amsgrad", "adamax", "nadam"),
    "After Adam": ("radam", "adabelief", "yogi", "adan", "lion"),
}


class DemoError(Exception):
    """What ends the demo with a message and the exit status 1."""


# ---------------------------------------------------------------------------------------------------------------------
# Data and networks
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


def load_digits(seed: int) -> Data:
    """The digits with pixels in [0, 1], shuffled and split."""
    packed = importlib.resources.files("adaptk") / "data" / "digits.csv.gz"
    with packed.open("rb") as file, gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.int64)
    table = np.random.default_rng(seed).permutation(table)
    x, y = (table[:, :-1] / 16).astype(np.float32), table[:, -1]
    return Data(x[TEST:], y[TEST:], x[:TEST], y[:TEST])


def initial_parameters(layers: Sequence[int], seed: int) -> list[Array]:
    """Weight and bias of each layer in turn: normal weights of variance 1 / inputs, and zeros."""
    rng = np.random.default_rng(seed)
    parameters: list[Array] = []
    for inputs, outputs in itertools.pairwise(layers):
        weights = rng.standard_normal((inputs, outputs)) / math.sqrt(inputs)
        parameters += [weights.astype(np.float32), np.zeros(outputs, np.float32)]
    return parameters


def forward(parameters: Sequence[Array], x: Array) -> list[Array]:
    """The input of each layer, and the logits at the end."""
    values = [x]
    for i in range(0, len(parameters), 2):
        if i > 0:
            # Not ReLU: the moments of its dead units decay into denormal numbers, and their slowness would be timed.
            values[-1] = np.tanh(values[-1])
        values.append(values[-1] @ parameters[i] + parameters[i + 1])
    return values


def log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def mean_loss(parameters: Sequence[Array], x: Array, y: Array) -> float:
    """Mean cross-entropy."""
    return -float(np.mean(log_softmax(forward(parameters, x)[-1])[np.arange(len(y)), y], dtype=np.float64))


def accuracy(parameters: Sequence[Array], x: Array, y: Array) -> float:
    return float(np.mean(forward(parameters, x)[-1].argmax(axis=1) == y))


def gradients(parameters: Sequence[Array], x: Array, y: Array) -> list[Array]:
    """The gradient of ``mean_loss``, in the order of the parameters."""
    *inputs, logits = forward(parameters, x)
    delta = np.exp(log_softmax(logits))
    delta[np.arange(len(y)), y] -= 1
    delta /= np.float32(len(y))
    grads: list[Array] = []
    for layer in reversed(range(len(inputs))):
        grads[:0] = [inputs[layer].T @ delta, delta.sum(axis=0)]
        if layer > 0:
            delta = (delta @ parameters[2 * layer].T) * (1 - inputs[layer] ** 2)
    return grads


# ---------------------------------------------------------------------------------------------------------------------
# Training and timing
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One rule on one model. Times are sums over all steps, in seconds; those of NumPy are None without a formula."""

    rule: str
    hyperparameters: dict[str, float]
    full_batch: bool
    steps: int = 0
    losses: list[float] = field(default_factory=list)  # on the training set, before the first epoch and after each
    test_accuracy: float = math.nan
    fused_seconds: float = 0.0
    numpy_seconds: float | None = None
    large_ratio: float | None = None  # of the times at LARGE elements

    @property
    def ratio(self) -> float | None:
        """How many times as fast the fused steps were."""
        return None if self.numpy_seconds is None else self.numpy_seconds / self.fused_seconds


class NumPyTwin:
    """The same rule in plain NumPy, on copies of the parameters."""

    def __init__(self, rule: str, parameters: Sequence[Array], hyper: dict[str, float]) -> None:
        self.rule = rule
        self.hyper = hyper
        self.parameters = [p.copy() for p in parameters]
        self.states = [_reference.initial_states(rule, p, hyper) for p in parameters]
        self.t = 0

    def step(self, grads: Sequence[Array]) -> None:
        self.t += 1
        for i, g in enumerate(grads):
            self.parameters[i], self.states[i] = _reference.update(
                self.rule, self.parameters[i], g, self.states[i], self.t, self.hyper
            )


def wants_full_batch(rule: adaptk.Rule) -> bool:
    return "full-batch gradients only" in rule.summary.lower()


def wants_lookahead(rule: adaptk.Rule) -> bool:
    """Whether the rule's gradient is taken at an interim point (Algorithm 8.6 of the Deep Learning book)."""
    return rule.formula.startswith("g is the gradient at")


def timed(step: Callable[[Sequence[Array]], object], grads: Sequence[Array]) -> float:
    start = time.perf_counter()
    step(grads)
    return time.perf_counter() - start


def batches(count: int, seed: int) -> Iterator[list[Array]]:
    """For each epoch the minibatches, as indices; a last one of other size is left out."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield [order[i : i + BATCH] for i in range(0, count - BATCH + 1, BATCH)]


def train(
    rule: adaptk.Rule, layers: Sequence[int], data: Data, epochs: int, seed: int, report: Callable[[Run], None]
) -> Run:
    chosen: dict[str, Any] = HYPERPARAMETERS.get(rule.name, {})
    hyper = {**rule.defaults(), **chosen}
    parameters = initial_parameters(layers, seed)
    optimizer = adaptk.optimizer_for(rule.name, parameters, **chosen)
    twin = NumPyTwin(rule.name, parameters, hyper) if rule.name in _reference.FORMULAS else None
    interim = wants_lookahead(rule)
    run = Run(rule.name, hyper, wants_full_batch(rule))
    fused = plain = 0.0
    run.losses.append(mean_loss(parameters, data.train_x, data.train_y))
    for order in itertools.islice(batches(len(data.train_y), seed), epochs):
        for batch in [slice(None)] * FULL_BATCH_STEPS if run.full_batch else order:
            with optimizer.lookahead() if interim else nullcontext():
                grads = gradients(parameters, data.train_x[batch], data.train_y[batch])
            run.steps += 1
            # Who goes first finds the gradients in the cache as the network left them, so they take turns.
            if run.steps % 2:
                fused += timed(optimizer.step, grads)
                plain += timed(twin.step, grads) if twin else 0.0
            else:
                plain += timed(twin.step, grads) if twin else 0.0
                fused += timed(optimizer.step, grads)
        run.fused_seconds = fused
        run.numpy_seconds = plain if twin else None
        run.losses.append(mean_loss(parameters, data.train_x, data.train_y))
        report(run)
    run.test_accuracy = accuracy(parameters, data.test_x, data.test_y)
    return run


def large_ratio(rule: adaptk.Rule, seed: int) -> float | None:
    """Time in plain NumPy over that of the fused step, for one tensor of ``LARGE`` elements.

    The best of some steps each, since what else runs on the machine only ever adds to a time.
    """
    if rule.name not in _reference.FORMULAS:
        return None
    rng = np.random.default_rng(seed)
    parameters = [rng.standard_normal(LARGE, dtype=np.float32)]
    grads = [rng.standard_normal(LARGE, dtype=np.float32)]
    twin = NumPyTwin(rule.name, parameters, rule.defaults())
    optimizer = adaptk.optimizer_for(rule.name, parameters)
    times = [(timed(optimizer.step, grads), timed(twin.step, grads)) for _ in range(LARGE_REPEATS)]
    return min(plain for _, plain in times) / min(fused for fused, _ in times)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------------------------------


class Progress:
    """One line that is overwritten on a terminal; elsewhere a line for each run that is done."""

    def __init__(self, stream: TextIO, total: int, epochs: int) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self.total = total
        self.epochs = epochs
        self.done = 0
        self.shown = -math.inf

    def epoch(self, model: str, run: Run) -> None:
        now = time.monotonic()
        if not self.live or now - self.shown < 0.1:
            return
        self.shown = now
        self._overwrite(
            f"[{self.done + 1}/{self.total}] {model} {run.rule}: "
            f"epoch {len(run.losses) - 1}/{self.epochs}, loss {run.losses[-1]:.2e}"
        )

    def measuring(self, rule: str) -> None:
        if self.live:
            self._overwrite(f"[{self.done + 1}/{self.total}] {rule}: timing {LARGE:,} elements")

    def finished(self, model: str, run: Run) -> None:
        self.done += 1
        if not self.live:
            print(
                f"[{self.done}/{self.total}] {model} {run.rule}: "
                f"loss {run.losses[-1]:.2e}, test accuracy {run.test_accuracy:.1%}",
                file=self.stream,
                flush=True,
            )

    def clear(self) -> None:
        if self.live:
            self._overwrite("")

    def _overwrite(self, line: str) -> None:
        # Without the last column: a full line would make some terminals scroll.
        width = shutil.get_terminal_size().columns - 1
        self.stream.write(f"\r\x1b[K{line[:width]}")
        self.stream.flush()


def as_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"x{ratio:.1f}"


def table(model: str, data: Data, runs: Sequence[Run]) -> str:
    layers = MODELS[model]
    count = sum(n * m + m for n, m in itertools.pairwise(layers))
    rows = [("rule", "loss", "test accuracy", "steps", "fused", "NumPy", "ratio", f"at {LARGE:,}")]
    rows += [
        (
            run.rule + (" *" if run.full_batch else ""),
            f"{run.losses[-1]:.2e}",
            f"{run.test_accuracy:.1%}",
            str(run.steps),
            f"{run.fused_seconds * 1e3:.1f} ms",
            "-" if run.numpy_seconds is None else f"{run.numpy_seconds * 1e3:.1f} ms",
            as_ratio(run.ratio),
            as_ratio(run.large_ratio),
        )
        for run in runs
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    shape = "-".join(map(str, layers))
    examples = f"{len(data.train_y):,} training and {len(data.test_y)} test digits"
    return "\n".join([f"{TITLES[model]} ({shape}, {count:,} float32 parameters; {examples})", "", *lines])


def notes(isa: str) -> str:
    rows = [
        ("loss", "mean cross-entropy on the training set after the last epoch"),
        ("fused", "time of all opt.step(grads) of the run"),
        ("NumPy", "time of the same formula in plain NumPy, on the same gradients and a copy of the parameters;"),
        ("", "the two make each step in turn, and computing the gradients is in neither time"),
        ("ratio", "NumPy / fused: how many times as fast the fused steps are"),
        (
            f"at {LARGE:,}",
            f"the same ratio for one tensor of so many elements: best of {LARGE_REPEATS} steps each, in turn",
        ),
        ("*", f"full-batch gradients, {FULL_BATCH_STEPS} steps an epoch; the others take minibatches of {BATCH}"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {text}" for name, text in rows]
    lines.append(f"Timed on this machine just now, adaptk ({isa}) on one thread, as NumPy runs these formulas.")
    return "\n".join(lines)


def as_json(results: dict[str, list[Run]], data: Data, epochs: int, seed: int) -> str:
    def finite(x: float | None) -> float | None:
        return x if x is not None and math.isfinite(x) else None

    models: dict[str, Any] = {}
    for model, runs in results.items():
        models[model] = {"layers": list(MODELS[model]), "rules": {}}
        for run in runs:
            models[model]["rules"][run.rule] = {
                # An upper bound may be infinite, which JSON has no number for.
                "hyperparameters": {k: v if math.isfinite(v) else str(v) for k, v in run.hyperparameters.items()},
                "full_batch": run.full_batch,
                "steps": run.steps,
                "loss": [finite(x) for x in run.losses],
                "test_accuracy": finite(run.test_accuracy),
                "fused_seconds": run.fused_seconds,
                "numpy_seconds": run.numpy_seconds,
                "ratio": run.ratio,
                "large_ratio": run.large_ratio,
            }
    document = {
        "adaptk": adaptk.__version__,
        "numpy": np.__version__,
        "threads": 1,
        "isa": adaptk.get_isa(),
        "seed": seed,
        "epochs": epochs,
        "batch": BATCH,
        "train": len(data.train_y),
        "test": len(data.test_y),
        "large": LARGE,
        "models": models,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


LOWEST = 1e-6  # of the plotted losses: what is below says no more than "learnt by heart"
# Okabe and Ito's colours, which any colour vision tells apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)), (0, (8, 3)))


def plot(results: dict[str, list[Run]], path: Path) -> None:
    """Loss over epochs: a row for each model, a column for each family, the other families in grey behind."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    trained = [run.rule for run in next(iter(results.values()))]
    families = {title: [r for r in rules if r in trained] for title, rules in FAMILIES.items()}
    families["Others"] = [r for r in trained if not any(r in rules for rules in FAMILIES.values())]
    families = {title: rules for title, rules in families.items() if rules}
    rows, columns = len(results), len(families)
    figure = Figure(figsize=(max(3.1 * columns + 0.7, 7.5), 2.9 * rows + 2.3), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey="row", squeeze=False)
    for row, (model, runs) in enumerate(results.items()):
        # What a logarithmic axis has no place for, a loss of 0 or one that is not finite, leaves a gap.
        curves = {run.rule: np.array([x if 0.0 < x < math.inf else math.nan for x in run.losses]) for run in runs}
        label = {run.rule: run.rule + (" (full batch)" if run.full_batch else "") for run in runs}
        for column, (title, rules) in enumerate(families.items()):
            axes = grid[row, column]
            for rule, curve in curves.items():
                if rule not in rules:
                    axes.plot(curve, color="0.87", linewidth=0.8, zorder=1)
            for i, rule in enumerate(rules):
                # Wide solid lines below, thin dashed ones above: where curves coincide, each still shows.
                axes.plot(
                    curves[rule],
                    color=COLOURS[i % len(COLOURS)],
                    linestyle=DASHES[i % len(DASHES)],
                    linewidth=max(3.0 - 0.4 * i, 1.4),
                    label=label[rule],
                    zorder=3 + i,
                )
            axes.set_yscale("log")
            axes.set_xlim(0, max(len(curve) for curve in curves.values()) - 1)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
            axes.grid(True, which="major", color="0.93", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color("0.6")
            axes.tick_params(which="both", labelsize=9, color="0.6")
            if row == 0:
                axes.set_title(title, fontsize=12, fontweight="bold", loc="left", pad=10)
            if row == rows - 1:
                axes.set_xlabel("epoch", fontsize=10)
                axes.legend(
                    loc="upper left",
                    bbox_to_anchor=(-0.03, -0.2),
                    frameon=False,
                    fontsize=9.5,
                    handlelength=3.4,
                    borderaxespad=0.0,
                )
        lowest = min((x for run in runs for x in run.losses if x > 0.0), default=LOWEST)
        grid[row, 0].set_ylim(bottom=max(lowest * 0.7, LOWEST))
        shape = "-".join(map(str, MODELS[model]))
        grid[row, 0].set_ylabel(f"{TITLES[model]} ({shape})\ntraining loss", fontsize=10)
    figure.suptitle(
        f"{len(trained)} update rules on handwritten digits: same start, same data. In grey: all the others.",
        fontsize=13,
        x=0.008,
        horizontalalignment="left",
    )
    figure.savefig(path)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def names_among(what: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for argparse: names with commas between them, each one of ``known``."""

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(name for name in (part.strip() for part in text.split(",")) if name))
        if not names:
            raise argparse.ArgumentTypeError(f"no {what} given; there are {', '.join(known)}")
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, 3)
                hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
                raise argparse.ArgumentTypeError(f"no {what} {name!r}; {hint}")
        return names

    return parse


def whole(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            n = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if n < low:
            raise argparse.ArgumentTypeError(f"{n} is less than {low}")
        return n

    return parse


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m adaptk demo",
        description="Train softmax regression and a small network on handwritten digits with every rule, and time the "
        "fused steps beside the same formulas in plain NumPy.",
    )
    rules = list(adaptk.rules())
    result.add_argument("--epochs", type=whole(1), default=EPOCHS, metavar="N", help="default: %(default)s")
    result.add_argument("--rules", type=names_among("rule", rules), default=rules, metavar="A,B", help="default: all")
    result.add_argument(
        "--models",
        type=names_among("model", list(MODELS)),
        default=list(MODELS),
        metavar="A,B",
        help=f"of {', '.join(MODELS)}; default: all",
    )
    result.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of split, start and minibatches; default: %(default)s"
    )
    result.add_argument("--plot", type=Path, metavar="FILE", help="draw the training losses (needs matplotlib)")
    result.add_argument("--no-fits", action="store_true", help="leave out the least-squares fits of NIST's sets")
    result.add_argument("--json", type=Path, metavar="FILE", help="write all figures, with the losses of every epoch")
    return result


def check_plot(path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DemoError("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise DemoError(f"--plot {path}: the name must end in one of .{', .'.join(known)}")


def check_folder(option: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise DemoError(f"{option} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise DemoError(f"{option} {path}: that is a folder")


def run_all(options: argparse.Namespace, data: Data) -> dict[str, list[Run]]:
    registry = adaptk.rules()
    progress = Progress(sys.stderr, len(options.models) * len(options.rules), options.epochs)
    large: dict[str, float | None] = {}
    results: dict[str, list[Run]] = {model: [] for model in options.models}
    # NumPy's element-wise operations have one thread; with more here the ratios would count cores, not fusion.
    threads = adaptk.get_num_threads()
    adaptk.set_num_threads(1)
    try:
        for model, name in itertools.product(options.models, options.rules):
            if name not in large:
                progress.measuring(name)
                large[name] = large_ratio(registry[name], options.seed)
            report = functools.partial(progress.epoch, model)
            run = train(registry[name], MODELS[model], data, options.epochs, options.seed, report)
            run.large_ratio = large[name]
            results[model].append(run)
            progress.finished(model, run)
    finally:
        adaptk.set_num_threads(threads)
        progress.clear()
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit status: 0, or 1 with a message; wrong arguments exit with 2 as argparse does."""
    options = parser().parse_args(argv)
    try:
        # Before the training, so that nobody waits for a plot that cannot be drawn.
        if options.plot is not None:
            check_plot(options.plot)
            check_folder("--plot", options.plot)
        if options.json is not None:
            check_folder("--json", options.json)
        data = load_digits(options.seed)
        results = run_all(options, data)
        for model, runs in results.items():
            print(table(model, data, runs), end="\n\n")
        print(notes(adaptk.get_isa()))
        if not options.no_fits:
            print("\n" + _nist.report())
        if options.json is not None:
            options.json.write_text(as_json(results, data, options.epochs, options.seed), encoding="utf-8")
        if options.plot is not None:
            plot(results, options.plot)
    except (DemoError, OSError) as error:
        print(f"adaptk demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("adaptk demo: interrupted", file=sys.stderr)
        return 130
    return 0
