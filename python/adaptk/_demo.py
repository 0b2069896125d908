"""``adaptk demo``: rules train a small network on handwritten digits, and are compared with NumPy in speed.

The models are a softmax regression and a network with one hidden layer, with gradients in plain NumPy. All rules start
from the same weights and see the same minibatches; rules whose documentation asks for full-batch gradients get them.
Each step is also computed with the formula in plain NumPy (``_reference.py``), on a separate copy and with the same
gradients. The two are timed alternately, each on one thread. A part with sparse gradients follows
(``_cli/_rare_words.py``).
"""

from __future__ import annotations

import argparse
import functools
import gzip
import importlib.resources
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import adaptk
from adaptk import _nist, _reference
from adaptk._cli import _rare_words
from adaptk._cli._chart import chart
from adaptk._cli._parser import Parser, add_json, check_files, names_among, program, whole, write_json
from adaptk._cli._screen import Cell, Column, Progress, Screen, progress
from adaptk._cli._texts import Passages

Array: TypeAlias = npt.NDArray[Any]
#: The text of the sparse part (None if it is not available), and its runs.
RareWords: TypeAlias = tuple[Passages | None, list[_rare_words.Run]]

# The sizes of the layers. Without a hidden layer the network is a softmax regression.
MODELS = {"softmax": (64, 10), "mlp": (64, 128, 10)}
TITLES = {"softmax": "Softmax regression", "mlp": "Two-layer network"}
# One rule of each kind; --rules all adds the others.
RULES = ("momentum", "adagrad", "rmsprop", "adam", "lion")
BATCH = 32
TEST = 360
EPOCHS = 40
# With one full-batch gradient per epoch, the full-batch rules would take 1/44 of the steps of the others.
FULL_BATCH_STEPS = 5
LARGE = 1_000_000
LARGE_REPEATS = 9

# The defaults suit deep networks and long runs. These networks are shallow, their inputs lie in [0, 1], and there are
# only about 1,800 steps (200 for the full-batch rules). The values are round numbers from a coarse search; no rule is
# finely tuned.
HYPERPARAMETERS: dict[str, dict[str, float]] = {
    # Stable up to about 1, with momentum 0.9 up to about 0.3.
    "sgd": {"lr": 0.3},
    "asgd": {"lr": 0.3},
    "momentum": {"lr": 0.1},
    "nesterov": {"lr": 0.1},
    # Rates grow by kappa in each step: from 0.01 in steps of 0.001 they would stay small for all 200 steps.
    "delta_bar_delta": {"lr": 0.1, "kappa": 0.05},
    # When the network's loss is close to 0, its gradients keep their signs: steps would grow to 50 and destroy the
    # result.
    "rprop": {"step_max": 0.1},
    # Its rate decreases with the square root of the number of steps.
    "adagrad": {"lr": 0.1},
    # A step moves every element by about lr, and 1,800 steps of 1e-3 (1e-4 for Lion) are not enough. The variants of
    # RMSProp with momentum 0.9 move ten times as far with the default rate, and Yogi's default is 0.01.
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

# The panels of the plot. All other rules go into one more, "Others".
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
    """The digits, with pixels scaled to [0, 1], shuffled and split."""
    packed = importlib.resources.files("adaptk") / "data" / "digits.csv.gz"
    with packed.open("rb") as file, gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.int64)
    table = np.random.default_rng(seed).permutation(table)
    x, y = (table[:, :-1] / 16).astype(np.float32), table[:, -1]
    return Data(x[TEST:], y[TEST:], x[:TEST], y[:TEST])


def initial_parameters(layers: Sequence[int], seed: int) -> list[Array]:
    """Weight and bias of each layer in turn: normal with variance 1 / inputs, and zeros."""
    rng = np.random.default_rng(seed)
    parameters: list[Array] = []
    for inputs, outputs in itertools.pairwise(layers):
        weights = rng.standard_normal((inputs, outputs)) / math.sqrt(inputs)
        parameters += [weights.astype(np.float32), np.zeros(outputs, np.float32)]
    return parameters


def forward(parameters: Sequence[Array], x: Array) -> list[Array]:
    """The input of each layer, and then the logits."""
    values = [x]
    for i in range(0, len(parameters), 2):
        if i > 0:
            # Not ReLU: the moments of dead units decay to subnormal numbers, whose slow arithmetic would be timed.
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
    """One rule on one model. Times are medians of one step, in seconds; NumPy's is None if there is no formula."""

    rule: str
    hyperparameters: dict[str, float]
    full_batch: bool
    steps: int = 0
    losses: list[float] = field(default_factory=list)  # on the training set, before the first epoch and after each
    test_accuracy: float = math.nan
    step_seconds: float = math.nan
    numpy_step_seconds: float | None = None
    large_ratio: float | None = None  # of the times for LARGE elements

    @property
    def ratio(self) -> float | None:
        """NumPy's time over that of the fused step."""
        return None if self.numpy_step_seconds is None else self.numpy_step_seconds / self.step_seconds


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
    """The minibatches of each epoch, as indices; an incomplete last one is left out."""
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
    # Medians are taken of these, not sums: other programs on the machine make some steps slow.
    fused: list[float] = []
    plain: list[float] = []
    run.losses.append(mean_loss(parameters, data.train_x, data.train_y))
    for order in itertools.islice(batches(len(data.train_y), seed), epochs):
        for batch in [slice(None)] * FULL_BATCH_STEPS if run.full_batch else order:
            with optimizer.lookahead() if interim else nullcontext():
                grads = gradients(parameters, data.train_x[batch], data.train_y[batch])
            run.steps += 1
            sides: list[tuple[Callable[[Sequence[Array]], object], list[float]]] = [(optimizer.step, fused)]
            if twin is not None:
                sides.append((twin.step, plain))
            # They alternate, because the first one finds the gradients in a different part of the cache.
            for step, times in sides if run.steps % 2 else reversed(sides):
                times.append(timed(step, grads))
        run.losses.append(mean_loss(parameters, data.train_x, data.train_y))
        report(run)
    run.step_seconds = statistics.median(fused)
    run.numpy_step_seconds = statistics.median(plain) if plain else None
    run.test_accuracy = accuracy(parameters, data.test_x, data.test_y)
    return run


def large_ratio(rule: adaptk.Rule, seed: int) -> float | None:
    """NumPy's time over that of the fused step, for one tensor of ``LARGE`` elements.

    The shortest times of several steps are used, because other programs on the machine only add to a time.
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
# Output
# ---------------------------------------------------------------------------------------------------------------------


def count_of_parameters(model: str) -> int:
    return sum(n * m + m for n, m in itertools.pairwise(MODELS[model]))


def as_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x"


def between(values: Sequence[float]) -> str:
    """The range of the ratios, as part of a sentence."""
    low, high = (f"{x:.1f}" if x < 9.95 else f"{x:.0f}" for x in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def headline(results: dict[str, list[Run]], data: Data, epochs: int) -> str:
    """The heading: what is compared."""
    runs = next(iter(results.values()))
    networks = " and ".join(f"a {TITLES[m].lower()} of {count_of_parameters(m):,} parameters" for m in results)
    who = f"{len(runs)} optimizers train" if len(runs) > 1 else f"{runs[0].rule} trains"
    digits, epochs_text = len(data.train_y), f"{epochs} epoch{'s' * (epochs != 1)}"
    return f"{who} {networks} to read {digits:,} handwritten digits, {epochs_text} from the same start."


def result(results: dict[str, list[Run]], data: Data) -> str:
    """The result in words."""
    everything = [run for runs in results.values() for run in runs]
    lines = []
    ratios = [run.ratio for run in everything if run.ratio is not None]
    if ratios:
        large = [run.large_ratio for run in everything if run.large_ratio is not None]
        beyond = f", and {between(large)} times at {LARGE:,} parameters" if large else ""
        lines.append(f"A fused step is {between(ratios)} times as fast as the same formula in NumPy{beyond}.")
    best = max(run.test_accuracy for run in everything)
    who = ", ".join(dict.fromkeys(run.rule for run in everything if run.test_accuracy == best))
    lines.append(f"Best on {len(data.test_y)} digits that no network has seen: {who}, {best:.1%}.")
    return " ".join(lines)


def microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.0f} us" if seconds < 1e-2 else f"{seconds * 1e3:.0f} ms"


def show_table(screen: Screen, runs: Sequence[Run]) -> None:
    columns = [
        Column("rule", left=True, style="cyan"),
        Column("loss"),
        Column("new digits read"),
        Column("steps", drop=3),
        Column("adaptk", drop=1),
        Column("NumPy", drop=2),
        Column("speedup", style="bold"),
        Column("speedup at 1M", drop=4),
    ]
    best = max(run.test_accuracy for run in runs)
    rows: list[list[Cell]] = [
        [
            run.rule + (" *" if run.full_batch else ""),
            f"{run.losses[-1]:.2e}",
            (f"{run.test_accuracy:.1%}", "green" if run.test_accuracy == best else ""),
            str(run.steps),
            microseconds(run.step_seconds),
            microseconds(run.numpy_step_seconds),
            as_ratio(run.ratio),
            as_ratio(run.large_ratio),
        ]
        for run in runs
    ]
    screen.table(columns, rows)


def notes(runs: Sequence[Run]) -> list[str]:
    """The meaning of the columns."""
    lines = [
        "loss: mean cross-entropy on the training digits at the end. adaptk, NumPy: median time of one step over all "
        f"parameters, on one thread ({adaptk.get_isa()}). The time to compute gradients is not included. Runs of the "
        f"two alternate. speedup at 1M: for one array of {LARGE:,} parameters.",
    ]
    if any(run.full_batch for run in runs):
        lines.append(
            f"*: full-batch gradients, {FULL_BATCH_STEPS} steps an epoch; the others take minibatches of {BATCH}."
        )
    return lines


def show(
    screen: Screen,
    options: argparse.Namespace,
    data: Data,
    results: dict[str, list[Run]],
    sparse: RareWords | None,
    fits: Sequence[_nist.Fit],
) -> None:
    """Print everything, beginning with the result."""
    screen.headline(headline(results, data, options.epochs))
    screen.text(result(results, data))
    for model, runs in results.items():
        screen.line()
        if len(results) > 1:
            screen.line((f"{TITLES[model]} ({'-'.join(map(str, MODELS[model]))})", "bold"))
        show_table(screen, runs)
        screen.line()
        # Six curves are as many as one can distinguish, so only the best are drawn.
        drawn = sorted(runs, key=lambda run: run.losses[-1])[:6] if len(runs) > 6 else runs
        chart(
            screen,
            {run.rule: run.losses for run in drawn},
            title="training loss" + (f", the best {len(drawn)} of {len(runs)}" if len(drawn) < len(runs) else ""),
            below="epoch",
            lowest=LOWEST,
        )
    screen.line()
    for line in notes([run for runs in results.values() for run in runs]):
        screen.note(line)
    if sparse is not None:
        screen.line()
        if sparse[0] is None:
            screen.note("Sparse gradients: the sources of the standard library, which this part reads, are not there.")
        else:
            _rare_words.show(screen, sparse[0], sparse[1])
    if fits:
        screen.line()
        screen.text("Curve fitting: " + _nist.summary(fits) + ("" if options.nist else " (--nist: the table)"))
        if options.nist:
            head, lines = _nist.rows(fits)
            screen.line()
            screen.table([Column(title, left=i < 2) for i, title in enumerate(head)], lines)
    screen.line()
    more = [] if len(options.rules) == len(adaptk.rules()) else ["--rules all"]
    more += [] if len(options.models) == len(MODELS) else ["--models all"]
    if options.plot is None:
        more.append("--plot curves.png")
        screen.note(f"More: {program()} demo {' '.join(more)}; {program()} compare")
    else:
        screen.text(f"Picture: {options.plot}")


def as_json(
    results: dict[str, list[Run]],
    data: Data,
    epochs: int,
    seed: int,
    sparse: RareWords | None = None,
    fits: Sequence[_nist.Fit] = (),
) -> str:
    def finite(x: float | None) -> float | None:
        return x if x is not None and math.isfinite(x) else None

    models: dict[str, Any] = {}
    for model, runs in results.items():
        models[model] = {"layers": list(MODELS[model]), "rules": {}}
        for run in runs:
            models[model]["rules"][run.rule] = {
                # Upper bounds may be infinite, for which JSON has no number.
                "hyperparameters": {k: v if math.isfinite(v) else str(v) for k, v in run.hyperparameters.items()},
                "full_batch": run.full_batch,
                "steps": run.steps,
                "loss": [finite(x) for x in run.losses],
                "test_accuracy": finite(run.test_accuracy),
                "step_seconds": run.step_seconds,
                "numpy_step_seconds": run.numpy_step_seconds,
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
        "sparse": None if sparse is None else _rare_words.as_data(*sparse),
        "nist": {
            fit.problem.name: {"digits": fit.digits, "deviations": fit.deviations, "scipy": fit.scipy} for fit in fits
        },
    }
    return json.dumps(document, indent=1, allow_nan=False)


LOWEST = 1e-6  # of the plotted losses: smaller ones only mean that the training set is memorised
# The palette of Okabe and Ito, for all kinds of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)), (0, (8, 3)))


def panels(results: dict[str, list[Run]]) -> dict[str, list[str]]:
    """The rules by panel: a single panel for few rules, else one for each family."""
    trained = [run.rule for run in next(iter(results.values()))]
    if len(trained) <= len(COLOURS):
        return {"": trained}
    families = {title: [r for r in rules if r in trained] for title, rules in FAMILIES.items()}
    families["Others"] = [r for r in trained if not any(r in rules for rules in FAMILIES.values())]
    return {title: rules for title, rules in families.items() if rules}


def plot(results: dict[str, list[Run]], path: Path) -> None:
    """Plot loss over epochs: a row for each model, a column for each family, with the other families in grey."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    families = panels(results)
    rows, columns = len(results), len(families)
    size = (8.0, 4.2 * rows + 0.5) if columns == 1 else (max(3.1 * columns + 0.7, 7.5), 3.4 * rows + 0.6)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey="row", squeeze=False)
    for row, (model, runs) in enumerate(results.items()):
        # A loss of 0 and one that is not finite have no place on a logarithmic axis: they leave a gap.
        curves = {run.rule: np.array([x if 0.0 < x < math.inf else math.nan for x in run.losses]) for run in runs}
        label = {run.rule: run.rule + (" (full batch)" if run.full_batch else "") for run in runs}
        for column, (title, rules) in enumerate(families.items()):
            axes = grid[row, column]
            for rule, curve in curves.items():
                if rule not in rules:
                    axes.plot(curve, color="0.87", linewidth=0.8, zorder=1)
            for i, rule in enumerate(rules):
                # Wide solid lines below thin dashed ones, so that coinciding curves are all visible.
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
            # Losses decrease, so the upper right corner is free for the legend.
            axes.legend(
                loc="upper right",
                frameon=False,
                fontsize=10 if columns == 1 else 8.5,
                handlelength=3.0,
                labelspacing=0.3,
            )
            if row == 0 and title:
                axes.set_title(title, fontsize=12, fontweight="bold", loc="left", pad=10)
            if row == rows - 1:
                axes.set_xlabel("epoch", fontsize=10)
        known = [x for run in runs for x in run.losses if 0.0 < x < math.inf]
        lowest, highest = min(known, default=LOWEST), max(known, default=1.0)
        # Space for the legends above the curves.
        lowest = max(lowest * 0.7, LOWEST)
        grid[row, 0].set_ylim(lowest, highest * (highest / lowest) ** (0.1 if columns == 1 else 0.5))
        shape = "-".join(map(str, MODELS[model]))
        grid[row, 0].set_ylabel(f"{TITLES[model]} ({shape})\ntraining loss", fontsize=10)
    count = sum(map(len, families.values()))
    figure.suptitle(
        f"{count} update rules on handwritten digits: same start, same data"
        + (". In grey: all the others." if columns > 1 else ""),
        fontsize=13,
        x=0.008,
        horizontalalignment="left",
    )
    figure.savefig(path)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def parser() -> Parser:
    name = program()
    parser = Parser(
        prog=f"{name} demo",
        description="Train a small network on handwritten digits with several rules, and compare the time of a step "
        "with the same formulas in plain NumPy. Also train a sparse model on words. Takes about 15 seconds.",
        examples=[
            (f"{name} demo --rules all --models all", "every rule on both networks"),
            (f"{name} demo --rules adam,lion --plot curves.png", "plot two rules"),
            (f"{name} demo --nist", "the fits of NIST's reference data sets, compared with SciPy"),
        ],
    )
    rules, models = list(adaptk.rules()), list(MODELS)
    parser.add_argument(
        "--rules",
        type=names_among("rule", rules),
        default=list(RULES),
        metavar="A,B",
        help=f"comma-separated names, or all; default: {','.join(RULES)}",
    )
    parser.add_argument(
        "--models",
        type=names_among("model", models),
        default=["mlp"],
        metavar="A,B",
        help="some of softmax, mlp; default: mlp",
    )
    parser.add_argument(
        "--epochs", type=whole(1), default=EPOCHS, metavar="N", help="number of epochs; default: %(default)s"
    )
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="seed of split, start and minibatches; default: %(default)s",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the training losses to FILE (needs matplotlib)")
    fits = parser.add_mutually_exclusive_group()
    fits.add_argument(
        "--nist", action="store_true", help="show every least-squares fit of NIST's data sets, and SciPy's"
    )
    fits.add_argument("--no-fits", action="store_true", help="leave the least-squares fits out")
    parser.add_argument("--no-sparse", action="store_true", help="leave the part with sparse gradients out")
    add_json(parser, "all figures, with the loss of every epoch,")
    return parser


def run_sparse(seed: int) -> RareWords:
    """Run the part with sparse gradients."""
    text = _rare_words.read_passages(seed)
    return text, [] if text is None else _rare_words.run_all(text, seed)


def run_all(options: argparse.Namespace, data: Data, bar: Progress) -> tuple[dict[str, list[Run]], RareWords | None]:
    """Run both parts: digits and words."""
    registry = adaptk.rules()
    large: dict[str, float | None] = {}
    results: dict[str, list[Run]] = {model: [] for model in options.models}
    # NumPy's element-wise operations use one thread; with more here the ratios would measure cores, not fusion.
    threads = adaptk.get_num_threads()
    adaptk.set_num_threads(1)

    def report(model: str, run: Run) -> None:
        bar.describe(f"{model} {run.rule}: loss {run.losses[-1]:.2e}")
        bar.advance()

    try:
        for model, name in itertools.product(options.models, options.rules):
            bar.describe(f"{model} {name}")
            if name not in large:
                large[name] = large_ratio(registry[name], options.seed)
            one = functools.partial(report, model)
            run = train(registry[name], MODELS[model], data, options.epochs, options.seed, one)
            run.large_ratio = large[name]
            results[model].append(run)
        sparse = None
        if not options.no_sparse:
            bar.describe("sparse gradients")
            sparse = run_sparse(options.seed)
    finally:
        adaptk.set_num_threads(threads)
    return results, sparse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    options = parser().parse_args(argv)
    check_files(options)
    data = load_digits(options.seed)
    with progress(len(options.models) * len(options.rules) * options.epochs) as bar:
        results, sparse = run_all(options, data, bar)
        fits = [] if options.no_fits or adaptk.build_info()["eigen"] is None else _nist.fits(peer=options.nist)
    if options.plot is not None:
        plot(results, options.plot)
    if options.json != "-":
        show(Screen(), options, data, results, sparse, fits)
    write_json(as_json(results, data, options.epochs, options.seed, sparse, fits), options.json)
    return 0
