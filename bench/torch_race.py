"""adaptk.torch compared with the optimizers of torch, DeepSpeed and optax, on the CPU and in one run.

``python bench/torch_race.py [--json FILE] [--plot FILE.png] [--check]``

The contenders are timed alternately. The median time of each over adaptk's is printed (3.1 means that adaptk is 3.1
times as fast), with the quartiles of the ratios of single rounds. Absolute times depend too much on what else runs on
the machine. Each number of threads has its own process, because thread pools do not shrink.

There are three kinds of measurements: steps of one tensor, from 64 to 64M elements; steps of many tensors, such as the
params of ResNet-50, GPT-2 and BERT-base; and whole training loops, in which the optimizer is a part of the time.

The parts are in ``bench/racing``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import adaptk
from adaptk._bench import _size, size_text
from racing.cases import CASES, LOOPS, MODELS, SIZES, Record
from racing.contenders import LIBRARIES, RACES, USUAL
from racing.plot import plot
from racing.report import markdown, number, outcomes
from racing.runner import described_machine, load_average, measured, plan, work


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
    result.add_argument(
        "--rules", type=_names(RACES), help=f"{of}{', '.join(RACES)}, or all, which then run in all cases"
    )
    result.add_argument("--sizes", type=_sizes, help=f"elements of one tensor, default {','.join(SIZES)}")
    result.add_argument("--cases", type=_cases, help=f"{of}{', '.join(CASES)}; or such as 500x1k; default all")
    result.add_argument(
        "--gradients", type=_names(("kept", "fresh")), help=f"{of}kept, fresh (many tensors); default both"
    )
    result.add_argument("--contenders", type=_names(LIBRARIES), help=f"{of}{', '.join(LIBRARIES)}; default all")
    result.add_argument("--threads", help="comma-separated numbers, default 1 and all")
    result.add_argument("--repeats", type=_whole, help="rounds, default 11")
    result.add_argument("--seconds", type=float, help="time after which three rounds are enough, default 15")
    result.add_argument(
        "--compile-tensors", type=_whole, default=32, help="largest number of tensors to compile for, default 32"
    )
    result.add_argument("--json", metavar="FILE", help="write everything, with the times of each round")
    result.add_argument("--markdown", metavar="FILE", help="write the tables there instead of to standard output")
    result.add_argument("--plot", metavar="FILE", help="draw the ratios (needs matplotlib)")
    result.add_argument("--from", dest="given", metavar="FILE", help="measure nothing; show a file of --json")
    result.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    result.add_argument("--quick", action="store_true", help="only see that everything works; takes seconds")
    result.add_argument("--worker", help=argparse.SUPPRESS)
    return result


def _completed(command: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fill in the defaults, which differ in a smoke run."""
    quick = options.quick
    defaults: dict[str, Any] = {
        "sizes": list(SIZES[:2] if quick else SIZES),
        "cases": list(CASES),
        "gradients": ["kept", "fresh"],
        # torch.compile would take longer than the rest of a smoke run.
        "contenders": [name for name, library in LIBRARIES.items() if not (quick and library.compiled)],
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
    # The largest number of threads first, because most targets are for it. A smoke run has one thread, because threads
    # that wait for one another are slow if other programs run.
    options.threads = sorted(set(given or ([1] if quick else [1, everything])), reverse=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
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
            "options": {
                k: v for k, v in vars(options).items() if k not in ("worker", "given", "json", "markdown", "plot")
            },
        }
        records, complete = measured(options, arguments)
        report["load_after"] = load_average()
        report["steps"] = [r for r in records if r["kind"] == "steps"]
        report["loops"] = [r for r in records if r["kind"] == "loop"]
    found = outcomes([*report["steps"], *report["loops"]])
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
