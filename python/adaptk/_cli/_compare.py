"""``adaptk compare``: how fast the rules converge on a set of small problems, each at its best learning rate.

Every rule has the same choice of learning rates, the same start, number of steps and minibatches. The problems are the
table ``PROBLEMS`` in ``_problems.py``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import adaptk
from adaptk import _demo, catalogue
from adaptk._cli._chart import chart
from adaptk._cli._parser import CommandError, Parser, add_json, check_files, names_among, program, whole, write_json
from adaptk._cli._problems import PROBLEMS, Task
from adaptk._cli._screen import Cell, Column, Progress, Screen, progress

Array: TypeAlias = npt.NDArray[Any]

# These rules need the diagonal of the Hessian, which the problems do not compute.
WITH_HESSIAN = ("sophia", "adahessian")
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
QUICK_RATES = (0.01, 0.1, 1.0)
# The fraction of the steps that --quick takes.
QUICK = 0.1
# A loss that counts as the minimum: a run ends there, and of two such runs the one with fewer steps is better.
SOLVED = 1e-12
# A run is stopped as diverged if its loss exceeds this multiple of the initial loss.
LOST = 1e6

# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One rule on one problem at one learning rate: losses at the start and at some steps after it."""

    rate: float
    at: list[int]
    losses: list[float]

    @property
    def final(self) -> float:
        """The last loss; inf if the run diverged or the loss is NaN."""
        return self.losses[-1] if math.isfinite(self.losses[-1]) else math.inf

    @property
    def solved(self) -> bool:
        """Whether the run reached the minimum."""
        return self.final <= SOLVED

    @property
    def order(self) -> tuple[float, int]:
        """The sort key, lower is better: the loss, or for runs that reached the minimum the number of steps."""
        return (SOLVED, self.at[-1]) if self.solved else (self.final, 0)


def train(rule: adaptk.Rule, task: Task, steps: int, rate: float, points: int = 50) -> Run:
    """Minimise a problem with a rule."""
    params = [p.copy() for p in task.start]
    optimizer = adaptk.optimizer_for(rule.name, params, lr=rate)
    interim = _demo.wants_lookahead(rule)
    at, losses = [0], [task.loss(params)]

    def loss() -> float:
        return task.loss(optimizer.evaluation_params() if rule.evaluation else params)

    often = max(1, math.ceil(steps / points))
    with np.errstate(all="ignore"):
        for step in range(steps):
            with optimizer.lookahead() if interim else nullcontext():
                grads = task.gradient(params, step)
            if rule.reduces:  # such rules have no sparse steps
                grads = [_dense(g, p) for g, p in zip(grads, params, strict=True)]
            if not all(math.isfinite(optimizer.param_groups[0][name]) for name in rule.carried):
                # A number that the rule carries from step to step has overflowed: the optimizer would refuse further
                # steps.
                if at[-1] < step:
                    at.append(step)
                    losses.append(math.inf)
                losses[-1] = math.inf
                break
            optimizer.step(grads)
            if (step + 1) % often == 0 or step + 1 == steps:
                at.append(step + 1)
                losses.append(loss())
                if not losses[-1] <= LOST * max(losses[0], 1.0):
                    losses[-1] = math.inf
                if not SOLVED < losses[-1] < math.inf:
                    break
    return Run(rate, at, losses)


def _dense(grad: Any, param: Any) -> Any:
    """A gradient that may be sparse, as a dense array."""
    if not isinstance(grad, tuple):
        return grad
    indices, values = grad
    whole = np.zeros_like(param)
    np.add.at(whole, indices, values)
    return whole


Results: TypeAlias = "dict[str, dict[str, list[Run]]]"


def known_rules() -> list[str]:
    """The rules that can be compared: first the compiled ones, then those of the catalogue."""
    return [*adaptk.rules(), *(name for name in catalogue.CLASSES if name not in WITH_HESSIAN)]


def rule_named(name: str) -> adaptk.Rule:
    """The rule of this name among known_rules()."""
    found = adaptk.rules().get(name)
    if found is None:
        traced = catalogue.find(name)
        assert traced is not None
        found = traced.rule
    return found


def steps_of(options: argparse.Namespace, name: str) -> int:
    """The number of steps of each run on a problem."""
    if options.steps is not None:
        return int(options.steps)
    return math.ceil(PROBLEMS[name].steps * (QUICK if options.quick else 1))


def run_all(options: argparse.Namespace, bar: Progress) -> Results:
    """Run each problem with each rule and learning rate. Problems whose data are missing are left out."""
    results: Results = {}
    threads = adaptk.get_num_threads()
    adaptk.set_num_threads(1)
    try:
        for name in options.problems:
            problem = PROBLEMS[name]
            steps = steps_of(options, name)
            task = problem.make(options.seed, steps)
            if task is None:
                bar.advance(len(options.rules) * len(options.rates))
                continue
            results[name] = {}
            for rule in options.rules:
                bar.describe(f"{name}: {rule}")
                if problem.minibatches and _demo.wants_full_batch(rule_named(rule)):
                    bar.advance(len(options.rates))
                    continue
                results[name][rule] = []
                for rate in options.rates:
                    results[name][rule].append(train(rule_named(rule), task, steps, rate, problem.points))
                    bar.advance()
    finally:
        adaptk.set_num_threads(threads)
    return results


def best(runs: Sequence[Run]) -> Run:
    """The best run; of equal ones the one with the lowest rate."""
    return min(runs, key=lambda run: (run.order, run.rate))


def ranked(runs: dict[str, list[Run]]) -> list[str]:
    """The rules of one problem, the best first."""
    return sorted(runs, key=lambda rule: best(runs[rule]).order)


def mean_ranks(results: Results) -> dict[str, float]:
    """The mean rank of each rule over its problems, where 1 is best. Equal runs get the mean of their ranks."""
    ranks: dict[str, list[float]] = {}
    for runs in results.values():
        orders = {rule: best(each).order for rule, each in runs.items()}
        for rule, order in orders.items():
            below = sum(other < order for other in orders.values())
            equal = sum(other == order for other in orders.values())
            ranks.setdefault(rule, []).append(below + (equal + 1) / 2)
    return {rule: sum(each) / len(each) for rule, each in ranks.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------------------------------


def rate_text(run: Run, rates: Sequence[float]) -> str:
    """The learning rate, marked if it is the lowest or highest one, beyond which there may be a better one."""
    ends = {min(rates): "-", max(rates): "+"} if len(rates) > 1 else {}
    return f"{run.rate:g}{ends.get(run.rate, '')}"


def end_text(run: Run) -> str:
    """The end of a run: the number of steps to the minimum, or the loss."""
    return f"{run.at[-1]} steps" if run.solved else f"{run.final:.1e}"


def _cell(runs: dict[str, list[Run]], rule: str, rates: Sequence[float]) -> Cell:
    if rule not in runs:
        return ("full-batch only", "dim")
    run = best(runs[rule])
    if not run.final < run.losses[0]:
        return ("-", "dim")
    return (f"{end_text(run)} {rate_text(run, rates):>7}", "bold green" if rule == ranked(runs)[0] else "")


def show(screen: Screen, options: argparse.Namespace, results: Results) -> None:
    """Print the result and then the table, in parts if the terminal is narrow."""
    rates = options.rates
    ranks = mean_ranks(results)
    rules = sorted(ranks, key=lambda rule: ranks[rule])
    some = f"{len(rules)} rule{'s' * (len(rules) != 1)} on {len(results)} problem{'s' * (len(results) != 1)}"
    rates_text = f"{len(rates)} learning rates from {min(rates):g} to {max(rates):g}" if len(rates) > 1 else "one rate"
    screen.headline(f"{some}, each with the best of {rates_text}.")
    first_of = {name: ranked(runs)[0] for name, runs in results.items()}
    winners = [f"{rule} on {name} ({end_text(best(results[name][rule]))})" for name, rule in first_of.items()]
    screen.text(f"Best: {', '.join(winners)}.")
    cells = {name: [_cell(runs, rule, rates) for rule in rules] for name, runs in results.items()}
    first = [Column("rule", left=True, style="cyan"), Column("mean rank")]
    room = (screen.width or math.inf) - max(len(r) for r in rules) - 15
    across = max(1, int(min(len(results), room // 18)))
    names = list(results)
    for i in range(0, len(names), across):
        part = names[i : i + across]
        screen.line()
        columns = [*first, *(Column(f"{name}      lr") for name in part)]
        screen.table(
            columns,
            [[rule, f"{ranks[rule]:.1f}", *(cells[name][j] for name in part)] for j, rule in enumerate(rules)],
        )
    if len(results) == 1:
        ((name, runs),) = results.items()
        drawn = {rule: best(runs[rule]) for rule in ranked(runs)[:6]}
        screen.line()
        chart(
            screen,
            {rule: run.losses for rule, run in drawn.items()},
            title=f"{name}: loss, the best {len(drawn)} of {len(runs)}",
            below="step",
            last=str(max(run.at[-1] for run in drawn.values())),
            lowest=SOLVED,
        )
    screen.line()
    for name in (name for name in options.problems if name not in results):
        screen.note(f"{name}: left out; the sources of the standard library are not there")
    for name in names:
        problem = PROBLEMS[name]
        screen.note(f"{name}: {problem.title}; {steps_of(options, name)} steps")
    screen.note(
        f"Loss at the end, or the steps after which it was below {SOLVED:g}. lr: the best learning rate; with + or - "
        "it is the last one tried on that side. -: no lower than at the start. Same start, steps and minibatches for "
        "all."
    )
    if options.plot is not None:
        screen.text(f"Picture: {options.plot}")


def as_json(options: argparse.Namespace, results: Results) -> str:
    """All runs, with the curve of the best run of each rule."""

    def finite(x: float) -> float | None:
        return x if math.isfinite(x) else None

    ranks = mean_ranks(results)
    problems: dict[str, Any] = {}
    for name, runs in results.items():
        rules = {}
        for rule, each in runs.items():
            run = best(each)
            rules[rule] = {
                "lr": run.rate,
                "at_end_of_rates": len(options.rates) > 1 and run.rate in (min(options.rates), max(options.rates)),
                "loss": finite(run.final),
                "solved_after": run.at[-1] if run.solved else None,
                "loss_by_rate": [finite(r.final) for r in each],
                "steps": run.at,
                "losses": [finite(x) for x in run.losses],
            }
        problems[name] = {"title": PROBLEMS[name].title, "rules": rules}
    document = {
        "adaptk": adaptk.__version__,
        "seed": options.seed,
        "rates": list(options.rates),
        "mean_rank": ranks,
        "problems": problems,
    }
    return json.dumps(document, indent=1, allow_nan=False)


def plot(results: Results, path: Path) -> None:
    """Plot a panel for each problem: the five best rules in colour, the others in grey."""
    from matplotlib.figure import Figure

    columns = min(3, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(max(4.2 * columns, 6.0), 3.6 * rows + 0.5), dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in list(grid.flat)[len(results) :]:
        axes.set_visible(False)
    for axes, (name, runs) in zip(grid.flat, results.items(), strict=False):
        order = ranked(runs)
        # Values that a logarithmic axis cannot show leave a gap.
        shown = {r: [x if 0 < x < math.inf else math.nan for x in best(runs[r]).losses] for r in order}
        for rule in order[5:]:
            axes.plot(best(runs[rule]).at, shown[rule], color="0.87", linewidth=0.8, zorder=1)
        for i, rule in enumerate(order[:5]):
            axes.plot(
                best(runs[rule]).at,
                shown[rule],
                color=_demo.COLOURS[i],
                linestyle=_demo.DASHES[i],
                linewidth=max(2.6 - 0.3 * i, 1.4),
                label=f"{rule}, lr {best(runs[rule]).rate:g}",
                zorder=8 - i,
            )
        finite = [x for each in shown.values() for x in each if math.isfinite(x)]
        if finite:
            low = max(min(x for r in order[:5] for x in [*shown[r], max(finite)] if math.isfinite(x)), SOLVED)
            top = max(shown[order[0]][0] if math.isfinite(shown[order[0]][0]) else 1.0, low * 2)
            axes.set_ylim(low * 0.5, top * (top / low) ** 0.35 * 1.5)
        axes.set_yscale("log")
        axes.set_title(name, fontsize=11.5, fontweight="bold", loc="left")
        axes.set_xlabel("step", fontsize=9.5)
        axes.grid(True, which="major", color="0.93", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("0.6")
        axes.tick_params(which="both", labelsize=9, color="0.6")
        axes.legend(loc="upper right", frameon=False, fontsize=8.5, handlelength=2.8, labelspacing=0.3)
    figure.suptitle(
        "Loss over steps, each rule at its best learning rate; in grey: the other rules",
        fontsize=12.5,
        x=0.008,
        horizontalalignment="left",
    )
    figure.savefig(path)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def _rates(text: str) -> list[float]:
    try:
        rates = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers with commas between them") from None
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"{text!r}: learning rates are above 0 and finite, and there is one at least")
    return rates


def parser() -> Parser:
    name = program()
    problems, rules = list(PROBLEMS), known_rules()
    lines = [f"  {key:<11} {problem.title}, {problem.steps} steps" for key, problem in PROBLEMS.items()]
    parser = Parser(
        prog=f"{name} compare",
        description="Try every rule with the same set of learning rates on each problem, and report the lowest final "
        "loss and the rate that reached it. Takes some minutes.",
        examples=[
            (f"{name} compare --plot compare.png", "plot the curves"),
            (f"{name} compare --problems rosenbrock --steps 5000", "one problem, more steps"),
            (f"{name} compare --rules adam,lion --rates 0.001,0.002,0.005", "two rules, other rates"),
            (f"{name} compare --rules all --problems transformer", "the rules of the catalogue, too"),
            (f"{name} compare --quick", "a tenth of the steps, three rates"),
        ],
        epilog="\n".join(["problems:", *lines]),
    )
    parser.add_argument(
        "--problems",
        type=names_among("problem", problems),
        default=problems,
        metavar="A,B",
        help="comma-separated names, see below; default: all",
    )
    parser.add_argument(
        "--rules",
        type=names_among("rule", rules),
        default=list(adaptk.rules()),
        metavar="A,B",
        help=f"comma-separated names, or all (including the catalogue); default: the compiled rules, which "
        f"'{name} info' lists",
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps and rates, to check that it works")
    parser.add_argument(
        "--rates",
        type=_rates,
        metavar="X,Y",
        help=f"learning rates to try with each rule; default: {','.join(f'{r:g}' for r in RATES)}",
    )
    parser.add_argument("--steps", type=whole(1), metavar="N", help="number of steps; default: depends on the problem")
    parser.add_argument(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="seed of data, start and minibatches; default: %(default)s",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the curves to FILE (needs matplotlib)")
    add_json(parser, "all runs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parser().parse_args(argv)
    check_files(options)
    if options.rates is None:
        options.rates = list(QUICK_RATES if options.quick else RATES)
    with progress(len(options.problems) * len(options.rules) * len(options.rates)) as bar:
        found = run_all(options, bar)
        results = {name: runs for name, runs in found.items() if runs}
    if not found:
        raise CommandError(f"{', '.join(options.problems)}: the sources of Python's standard library are not there")
    if not results:
        raise CommandError(
            f"{', '.join(options.rules)}: full-batch gradients only, and {', '.join(options.problems)} has minibatches"
        )
    if options.plot is not None:
        plot(results, options.plot)
    if options.json != "-":
        show(Screen(), options, results)
    write_json(as_json(options, results), options.json)
    return 0
