"""``adaptk bench --readme``: every figure of the README, measured by the scripts of a checkout, as a Markdown block.

Each study runs in its own process, which returns its results as JSON. Studies that cannot run here are listed with the
reason, and a failure does not affect the results of other studies.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import adaptk
from adaptk._cli._parser import CommandError
from adaptk._cli._screen import Progress, Screen, is_terminal, progress

Raw: TypeAlias = dict[str, Any]

BEGIN = "<!-- figures: begin"
BEGIN_LINE = f"{BEGIN} (python -m adaptk bench --readme --write README.md) -->"
END = "<!-- figures: end -->"
#: The file of the results in a checkout.
KEPT = Path("bench") / "figures.json"
PACKAGES = ("numpy", "torch", "jax", "optax", "scipy", "deepspeed")
# A study is stopped if it exceeds this multiple of the expected time, and this number of seconds.
PATIENCE, MIN_PATIENCE = 5.0, 600.0


def checkout() -> Path:
    """The root of the checkout that the command was called in."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "bench" / "torch_race.py").is_file() and (folder / "pyproject.toml").is_file():
            return folder
    raise CommandError(
        "--readme runs the scripts in bench/, which are in a checkout of the repository and not in the installed "
        "package: change to the checkout's folder"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Requirements of studies
# ---------------------------------------------------------------------------------------------------------------------

#: A function that returns the reason why a study cannot run here, or None.
Need: TypeAlias = Callable[[], "str | None"]


def package(name: str) -> Need:
    return lambda: None if importlib.util.find_spec(name) else f"needs {name}: pip install {name}"


def built(module: str, what: str) -> Need:
    return lambda: None if importlib.util.find_spec(f"adaptk.{module}") else f"this build of adaptk has no {what}"


def compiler() -> str | None:
    name = os.environ.get("CXX", "c++")
    return None if shutil.which(name) else f"needs a C++ compiler: there is no {name}; CXX names another"


def armadillo() -> str | None:
    if (missing := compiler()) is not None:
        return missing
    command = [os.environ.get("CXX", "c++"), "-x", "c++", "-std=c++20", "-E", "-o", os.devnull, "-"]
    done = subprocess.run(command, input="#include <armadillo>\n", text=True, capture_output=True, check=False)
    return None if done.returncode == 0 else "needs Armadillo's headers (Debian: libarmadillo-dev)"


# ---------------------------------------------------------------------------------------------------------------------
# Studies, and the lines of the README about each
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One line of the table."""

    what: str
    figure: str


def number(x: float) -> str:
    """Three significant digits, or all digits before the decimal point."""
    return f"{x:.2f}" if x < 9.995 else f"{x:.1f}" if x < 99.95 else f"{x:,.0f}"


def span(values: Sequence[float]) -> str:
    """The range of several figures."""
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _bench(raw: Raw) -> list[Claim]:
    from adaptk._bench import size_text

    shares = [r["of_ceiling"] for r in raw["results"]]
    size = size_text(raw["results"][0]["size"])
    return [Claim(f"share of the memory ceiling: each of {len(shares)} rules, float32, {size} elements", span(shares))]


def _overhead(raw: Raw) -> list[Claim]:
    one, thousand = raw["overhead"].values()
    return [
        Claim("`numpy.add(a, b, out=a)` / one call of `ops.adam`, 64 elements", number(1 / one)),
        Claim("1,000 calls of `numpy.add` / one `Adam.step`, 1,000 arrays of 64", number(1 / thousand)),
    ]


def _dtypes(raw: Raw) -> list[Claim]:
    from adaptk._bench import size_text

    claims = []
    for dtype in next(iter(raw["ratios"].values())):
        ratios = {rule: each[dtype] for rule, each in raw["ratios"].items()}
        below = [f"{rule} {number(r)}" for rule, r in sorted(ratios.items(), key=lambda item: item[1]) if r < 0.95]
        if len(below) > 3:
            below = [f"{len(below)} of {len(ratios)} rules"]
        text = f"a step in float32 / the same in {dtype}, {size_text(raw['size'])} elements"
        claims.append(
            Claim(text, span(list(ratios.values())) + (f" (below 0.95: {', '.join(below)})" if below else ""))
        )
    return claims


def _solve(raw: Raw) -> list[Claim]:
    ours, theirs = ([sum(d >= 10 for d in raw["nist"]["digits"][side])] for side in ("ours", "scipy"))
    count = len(raw["nist"]["digits"]["ours"])
    claims = [
        Claim(
            "fits of NIST's reference sets that reach 10 of the 11 certified digits (SciPy's)",
            f"{ours[0]} of {count} ({theirs[0]})",
        ),
        Claim(
            "SciPy's `least_squares(method='lm')` / `levenberg_marquardt`: those fits, time outside the residuals",
            number(raw["nist"]["ratio"]),
        ),
    ]
    for jacobian, text in (("differences", "default arguments"), ("exact Jacobian", "exact Jacobian")):
        ratios = [r["ratio"] for r in raw["small"] if r["jacobian"] == jacobian]
        claims.append(Claim(f"the same, fits of 2 parameters, {text}, whole time", span(ratios)))
    for n, ratio in raw["newton"].items():
        claims.append(Claim(f"SciPy's `cho_factor` and `cho_solve` / a Newton step's solution, n = {n}", number(ratio)))
    return claims


def _batch(raw: Raw) -> list[Claim]:
    claims = []
    for side, text in (
        ("scalar C++, -O3", "plain C++ loop"),
        ("scalar C++, -O3 -march=native", "the same with -march=native"),
        ("scipy.optimize.curve_fit", "Python loop over SciPy's `curve_fit`"),
    ):
        if side in raw["float32"]:
            figure = f"{number(raw['float32'][side])} ({number(raw['float64'][side])})"
            fits = "2-D Gaussians on 5 x 5 pixels, float32 (float64)"
            claims.append(Claim(f"{text} / `levenberg_marquardt_batch`, {fits}", figure))
    return claims


def _jax(raw: Raw) -> list[Claim]:
    claims = []
    for r in raw["results"]:
        optax, ours, packed = (r["seconds"][side] for side in ("optax", "adaptk", "packed"))
        text = f"optax / `adaptk.jax`'s `apply`, both jitted, {r['rule']}, {r['size']} (`packed=True`)"
        claims.append(Claim(text, f"{number(optax / ours)} ({number(optax / packed)})"))
    return claims


def armadillo_ratios(raw: Raw, size: str) -> dict[str, float]:
    return {
        r["rule"]: r["seconds"]["armadillo"] / r["seconds"]["adaptk"]
        for r in raw["results"]
        if r["size"] == size and r["dtype"] == "float"
    }


def _cpp(raw: Raw) -> list[Claim]:
    sizes = list(dict.fromkeys(r["size"] for r in raw["results"]))
    how = "" if raw["openmp"] else ", compiled without OpenMP, so that Armadillo has one thread"
    claims = []
    for size in sizes:
        ratios = armadillo_ratios(raw, size)
        text = f"Armadillo's expressions / `plan.step` in C++, {size} floats{how}: {', '.join(ratios)}"
        claims.append(Claim(text, ", ".join(map(number, ratios.values()))))
    if raw["openmp"]:
        ns = raw["nanoseconds"]
        text = "`plan.step` in C++ on 64 elements, in ns more than `adaptk::run` (more than the loop alone)"
        claims.append(Claim(text, f"{ns['beyond_run']:.0f} ({ns['beyond_loop']:.0f})"))
    return claims


def _import(raw: Raw) -> list[Claim]:
    text = f"`import adaptk` after NumPy, in ms (`import numpy`: {raw['numpy'] * 1e3:.0f})"
    return [Claim(text, f"{raw['adaptk'] * 1e3:.0f}")]


def _torch(raw: Raw) -> list[Claim]:
    claims = []
    for r in raw["loops"]:
        there = r["contenders"]
        if "fused" in there and "speedup" in there["fused"]["total"]:
            text = f"training step of the {r['case']} network with torch's fused Adam / with `adaptk.torch.Adam`"
            claims.append(Claim(text, number(there["fused"]["total"]["speedup"])))
    return claims


@dataclass(frozen=True)
class Study:
    """One script and its arguments."""

    command: tuple[str, ...]
    quick: tuple[str, ...]
    claims: Callable[[Raw], list[Claim]]
    seconds: float  # approximate time on two cores
    needs: tuple[Need, ...] = ()
    # The command line in the table, without arguments that only save time.
    shown: str = ""


_TORCH = (
    *("bench/torch_race.py", "--gradients", "kept", "--threads", "{threads}", "--seconds", "2"),
    *("--rules", "sgd,momentum,adagrad,adam,adamw,rmsprop,adadelta,nadam,radam,adamax,rprop,asgd"),
)
# Without optax, which for many tensors takes longer to compile than to step; bench/jax_race.py measures it.
_TORCH_SMALL = ("--sizes", "1M", "--cases", "1000x64,200x4096,digits", "--contenders", "adaptk,fused,foreach,single")
_TORCH_LARGE = (*("--sizes", "64M", "--cases", "", "--contenders", "adaptk,fused,foreach,single,deepspeed,optax"),)
_TORCH_QUICK = ("--quick", "--rules", "adam,rmsprop")

STUDIES: dict[str, Study] = {
    "ceiling": Study(
        ("-m", "adaptk", "bench", "--repeats", "7"),
        ("--sizes", "4K", "--repeats", "2"),
        _bench,
        60,
        shown="python -m adaptk bench",
    ),
    "overhead": Study(
        ("-m", "adaptk", "bench", "--overhead"),
        ("--repeats", "1"),
        _overhead,
        5,
        shown="python -m adaptk bench --overhead",
    ),
    "dtypes": Study(
        ("bench/dtypes.py", "--repeats", "5"),
        ("--size", "4K", "--repeats", "2"),
        _dtypes,
        90,
        (package("ml_dtypes"),),
    ),
    "solve": Study(("bench/solve.py",), ("--quick",), _solve, 40, (package("scipy"), built("_solve", "solvers"))),
    "solve_batch": Study(
        ("bench/solve_batch.py", "--repeats", "5"),
        ("--count", "500", "--repeats", "1", "--scipy-count", "2"),
        _batch,
        30,
        (compiler, package("scipy"), built("_solve", "solvers")),
    ),
    "jax": Study(
        ("bench/jax_race.py", "--rules", "adam", "--seconds", "6"),
        ("--quick",),
        _jax,
        45,
        (package("jax"), package("optax"), built("_jax", "adaptk.jax")),
    ),
    "cpp": Study(("bench/cpp_race.py", "--seconds", "3"), ("--quick",), _cpp, 75, (armadillo,)),
    "cpp_one_thread": Study(
        ("bench/cpp_race.py", "--no-openmp", "--sizes", "1M", "--seconds", "2"),
        ("--quick",),
        _cpp,
        45,
        (armadillo,),
        shown="python bench/cpp_race.py --no-openmp",
    ),
    "import": Study(("bench/import_time.py",), ("--repeats", "2"), _import, 10),
    "torch_small": Study(
        (*_TORCH, *_TORCH_SMALL),
        (*_TORCH_QUICK, "--sizes", "64", "--cases", "50x64,digits"),
        _torch,
        120,
        (package("torch"),),
    ),
    "torch_large": Study((*_TORCH, *_TORCH_LARGE), (*_TORCH_QUICK, "--sizes", "4K"), _torch, 150, (package("torch"),)),
}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def machine() -> Raw:
    """The machine on which the figures are measured."""
    from adaptk import _bench

    about = _bench.machine()
    about["cores"] = os.cpu_count()
    about["isa"], about["threads"] = adaptk.get_isa(), adaptk.get_num_threads()
    about["system"] = f"{about['system']} {platform.release()}"
    versions = {name: _version(name) for name in PACKAGES}
    about["packages"] = {name: version for name, version in versions.items() if version is not None}
    return about


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def without_rounds(value: Any) -> Any:
    """Remove the times of single rounds, which are not used again; medians and quartiles remain."""
    if isinstance(value, dict):
        return {k: without_rounds(v) for k, v in value.items() if not (k == "seconds" and isinstance(v, list))}
    return [without_rounds(v) for v in value] if isinstance(value, list) else value


def run_study(study: Study, root: Path, quick: bool, bar: Progress) -> Raw:
    """The results of a study, or the reason why there are none."""
    for need in study.needs:
        if (reason := need()) is not None:
            bar.advance(study.seconds)
            return {"left_out": reason}
    arguments = [*study.command, *(study.quick if quick else ())]
    arguments = [a.format(threads=adaptk.get_num_threads()) for a in arguments]
    start = time.monotonic()
    limit = max(PATIENCE * study.seconds, MIN_PATIENCE)
    shown = 0.0
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder) / "results.json", Path(folder) / "errors"
        with errors.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, *arguments, "--json", str(results)],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
            try:
                while process.poll() is None:
                    time.sleep(0.05 if quick else 0.5)
                    done = min(time.monotonic() - start, 0.98 * study.seconds)
                    bar.advance(done - shown)
                    shown = done
                    if time.monotonic() - start > limit:
                        return {"left_out": f"failed: stopped after {limit / 60:.0f} minutes"}
            finally:
                bar.advance(study.seconds - shown)
                if process.poll() is None:
                    process.kill()
                process.wait()
        said = [line.strip() for line in errors.read_text(encoding="utf-8", errors="replace").splitlines()]
        if process.returncode != 0:
            last = next((line for line in reversed(said) if line), "no message")
            return {"left_out": f"failed with status {process.returncode}: {last[:200]}"}
        try:
            raw = without_rounds(json.loads(results.read_text(encoding="utf-8")))
            study.claims(raw)
        except (OSError, ValueError, LookupError, TypeError) as error:
            return {"left_out": f"failed: no results that can be read ({type(error).__name__}: {error})"}
        return {"seconds": round(time.monotonic() - start, 1), "raw": raw}


def measure(names: Sequence[str], root: Path, quick: bool, keep: Path | None, given: Raw | None = None) -> Raw:
    """Run the studies. After each one the results so far are written to `keep`."""
    about = machine()
    if given is not None and (given["machine"] != about or given["quick"] != quick):
        raise CommandError("--from: those results are of another machine or other versions; measure all of it again")
    load = _load()
    report: Raw = {
        "date": datetime.date.today().isoformat(),
        "machine": about,
        "quick": quick,
        "load_before": load,
        "studies": dict(given["studies"]) if given is not None else {},
    }
    if load is not None and load > 0.5 * (about["cores"] or 1):
        print(f"adaptk bench: other programs are running (load {load}): take no figures from this", file=sys.stderr)
    with progress(sum(STUDIES[name].seconds for name in names)) as bar:
        for i, name in enumerate(names):
            bar.describe(f"{i + 1}/{len(names)} {name}")
            found = run_study(STUDIES[name], root, quick, bar)
            report["studies"][name] = found
            if not is_terminal(sys.stderr):
                text = found.get("left_out") or f"{found['seconds']:.0f} s"
                print(f"[{i + 1}/{len(names)}] {name}: {text}", file=sys.stderr, flush=True)
            if keep is not None:
                keep.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


# ---------------------------------------------------------------------------------------------------------------------
# The block
# ---------------------------------------------------------------------------------------------------------------------

TORCH_BEST = ("fused", "foreach", "single")


def speedup(record: Raw, names: Sequence[str]) -> float | None:
    """The shortest time of several contenders over adaptk's."""
    there = [record["contenders"][n]["speedup"] for n in names if "speedup" in record["contenders"].get(n, {})]
    return min(there, default=None)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _case_title(case: str) -> str:
    return re.sub(r"^(\d+)x", r"\1 x ", case)


def _torch_table(raw: Raw) -> list[str]:
    steps = raw["steps"]
    cases = list(dict.fromkeys(r["case"] for r in steps))
    at = {(r["rule"], r["case"]): r for r in steps}
    # Of the runs with one tensor, the largest.
    large = max((r for r in steps if r["tensors"] == 1), key=lambda r: r["elements"], default=None)
    extra = {"optax": "optax, jitted", "deepspeed": "DeepSpeed"} if large is not None else {}
    extra = {name: title for name, title in extra.items() if any(name in r["contenders"] for r in steps)}
    head = ["rule", *map(_case_title, cases), *(f"{title}, {large['case']}" for title in extra.values() if large)]
    lines = [_row(head), "|" + "---|" * len(head)]
    for rule in dict.fromkeys(r["rule"] for r in steps):
        ratios = [speedup(at[rule, c], TORCH_BEST) if (rule, c) in at else None for c in cases]
        ratios += [speedup(at[rule, large["case"]], (name,)) if large else None for name in extra]
        lines.append(_row([f"`{rule}`", *("" if r is None else number(r) for r in ratios)]))
    return lines


def raw_results(report: Raw) -> dict[str, Any]:
    """Results by study."""
    return {name: found["raw"] for name, found in report["studies"].items() if "raw" in found}


def torch_results(report: Raw) -> Raw:
    """The comparisons with torch, from both studies."""
    parts = [raw for name, raw in raw_results(report).items() if name.startswith("torch")]
    return {key: [record for part in parts for record in part[key]] for key in ("steps", "loops")}


def left_out(report: Raw) -> list[str]:
    """The libraries that are not in the block, with the reasons."""
    lines = [f"{name}: {found['left_out']}" for name, found in report["studies"].items() if "left_out" in found]
    skipped = {r["skipped"]["deepspeed"] for r in torch_results(report)["steps"] if "deepspeed" in r["skipped"]}
    lines += [f"DeepSpeed: {reason}" for reason in sorted(skipped) if "no such rule" not in reason]
    return lines


def block(report: Raw) -> str:
    """The Markdown block with its markers."""
    about = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [
        BEGIN_LINE,
        "",
        f"Measured on {report['date']}: {about['processor']}, {about['cores']} cores, {about['system']}; adaptk "
        f"{about['version']} ({about['isa']}, {about['threads']} threads, {about['compiler']}), Python "
        f"{about['python']}, {packages}. `python -m adaptk bench --readme` measures it again. `A / B` is the time "
        "of A over the time of B, adaptk's: above 1, adaptk is faster. Both take turns in one run, and the figure "
        "is a ratio of medians. The memory ceiling is a kernel that reads and writes the same arrays with one addition "
        "each.",
        "",
    ]
    if report["quick"]:
        lines += ["**A smoke run: none of these figures mean anything.**", ""]
    lines += [_row(["what", "figure", "command"]), "|---|---|---|"]
    for name, study in STUDIES.items():
        raw = raw_results(report).get(name)
        if raw is not None:
            command = study.shown or f"python {study.command[0]}"
            lines += [_row([claim.what, claim.figure, f"`{command}`"]) for claim in study.claims(raw)]
    torch = torch_results(report)
    if torch["steps"]:
        text = (
            "`adaptk.torch` on the CPU beside torch's best of `fused`, `foreach` and neither, by elements of one "
            "tensor or tensors x elements (`python bench/torch_race.py`):"
        )
        lines += ["", text, "", *_torch_table(torch)]
    missing = left_out(report)
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    return "\n".join([*lines, "", END])


def between_markers(text: str) -> tuple[int, int]:
    """The position of the block in a document.

    Raises
    ------
    CommandError
        Unless each of the two markers occurs once, in the right order.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise CommandError(f"--write: the file must have the line {BEGIN_LINE} once and, below it, {END}")
    return begin, end + len(END)


def written(text: str, new: str) -> str:
    """The document with the new block."""
    begin, end = between_markers(text)
    return text[:begin] + new + text[end:]


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def load(path: Path) -> Raw:
    """The results that an earlier run has written."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        block(report)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CommandError(f"--from {path}: no results of bench --readme ({type(error).__name__}: {error})") from None
    result: Raw = report
    return result


def run(options: argparse.Namespace) -> int:
    """Run ``bench --readme`` with its options, whose files have been checked."""
    given = load(options.given) if options.given is not None else None
    document = options.write.read_text(encoding="utf-8") if options.write is not None else ""
    if options.write is not None:
        between_markers(document)
    names = options.only or list(STUDIES)
    keep = None if options.json in (None, "-") else Path(options.json)
    if given is None or options.only:
        root = checkout()
        if keep is None and options.json is None and not options.quick:
            keep = root / KEPT
        report = measure(names, root, options.quick, keep, given)
    else:
        report = given
    text = block(report)
    if options.plot is not None:
        from adaptk._cli._speed import plot

        plot(report, options.plot)
    if options.write is not None:
        options.write.write_text(written(document, text), encoding="utf-8")
    if options.json == "-":
        print(json.dumps(report, indent=1))
    elif options.write is None:
        print(text)
    else:
        screen = Screen()
        screen.text(f"{options.write}: {text.count(chr(10) + '|')} lines of tables written")
        for line in left_out(report):
            screen.text(f"Not measured: {line}")
    failed = [name for name, found in report["studies"].items() if found.get("left_out", "").startswith("failed")]
    if failed:
        print(f"adaptk bench: failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))
