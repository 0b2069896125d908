"""adaptk.hogwild on one and two threads, scikit-learn's SGDClassifier and Vowpal Wabbit, timed alternately.

``python bench/hogwild.py [--rows 400k] [--passes 10] [--threads 2] [--repeats 3] [--rule sgd] [--bounds]``

The data have the shape of RCV1: 47,236 features whose frequencies follow a power law, and rows with 76 features and
norm 1. Each contender trains from scratch for the same number of passes, with logistic loss, in float32. Ratios are
medians over the rounds. "loss" is the mean over the rounds of the objective on all rows after the last pass. Each round
has its own order of the examples, the same for all contenders, and "spread" is the standard deviation of the losses: a
difference is only significant if it is well above the spread. The step size of sgd is halved after each pass. With a
reduction by a tenth the objective depends on the last examples: it varied by a tenth between orders, even on one
thread.

``--bounds`` adds two upper bounds of the speed: one model per thread, each with its own weights and a part of the
examples, which is the limit of the machine; and threads that publish their copies of the weights once a round, which is
the speed without exchange. 100,000 ratings of MovieLens come from the wheel of recbole 1.2.1, if pip can download it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from adaptk._bench import _size, machine
from adaptk.hogwild import MatrixFactorization, SGDClassifier

Array = npt.NDArray[Any]
FEATURES, PER_ROW, ALPHA = 47_236, 76, 1e-6


def rcv1_shaped(rows: int, features: int = FEATURES, per_row: int = PER_ROW, seed: int = 0) -> tuple[Any, Array]:
    """Rows like RCV1's as (data, indices, indptr, shape), and labels."""
    rng = np.random.default_rng(seed)
    frequency = np.cumsum(1.0 / np.arange(1, features + 1))
    number = rng.permutation(features)  # the feature of each frequency rank
    truth = rng.normal(size=features)
    data = np.empty((rows, per_row), np.float32)
    indices = np.empty((rows, per_row), np.int32)
    scores = np.empty(rows)
    step, drawn = 20_000, 3 * per_row
    for begin in range(0, rows, step):
        n = min(step, rows - begin)
        rank = np.searchsorted(frequency, rng.random((n, drawn)) * frequency[-1]).clip(0, features - 1)
        # Keep the first distinct features of each row.
        place = np.arange(drawn)
        order = np.argsort(rank, axis=1, kind="stable")
        by_rank = np.take_along_axis(rank, order, axis=1)
        again = np.zeros_like(by_rank, bool)
        again[:, 1:] = by_rank[:, 1:] == by_rank[:, :-1]
        when = np.where(again, drawn, place[order])
        chosen = np.argsort(when, axis=1, kind="stable")[:, :per_row]
        if (np.take_along_axis(when, chosen, axis=1) == drawn).any():
            raise ValueError(f"features: {features} are too few for {per_row} different ones a row")
        part = np.sort(number[np.take_along_axis(by_rank, chosen, axis=1)], axis=1)
        values = np.exp(0.7 * rng.normal(size=part.shape))
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        indices[begin : begin + n], data[begin : begin + n] = part, values
        scores[begin : begin + n] = (values * truth[part]).sum(axis=1)
    labels = (scores + 0.5 * rng.normal(size=rows) > 0).astype(np.int64)
    starts = np.arange(rows + 1, dtype=np.int64) * per_row
    if starts[-1] < 2**31:
        starts = starts.astype(np.int32)
    return (data.reshape(-1), indices.reshape(-1), starts, (rows, features)), labels


def ratings(entries: int, rows: int, columns: int, rank: int = 8, seed: int = 0) -> tuple[Array, Array, Array]:
    """Entries of a noisy low-rank matrix, in which some columns are frequent."""
    rng = np.random.default_rng(seed)
    i = rng.integers(0, rows, entries, dtype=np.int32)
    j = (columns ** rng.random(entries) - 1).astype(np.int32)
    a, b = (rng.normal(size=(n, rank)).astype(np.float32) / rank**0.5 for n in (rows, columns))
    values = 3.5 + np.einsum("ij,ij->i", a[i], b[j]) + 0.3 * rng.normal(size=entries)
    return i, j, values.astype(np.float32)


def movielens() -> tuple[Array, Array, Array]:
    """100,000 ratings of films, from a wheel that contains them; raises OSError if it is not available."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "recbole==1.2.1"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError((done.stderr.strip().splitlines() or ["pip download failed"])[-1])
        (wheel,) = Path(folder).glob("recbole-*.whl")
        text = zipfile.ZipFile(wheel).read("recbole/dataset_example/ml-100k/ml-100k.inter").decode()
    table = np.array([line.split("\t")[:3] for line in text.splitlines()[1:]], dtype=np.float32)
    people, films = (np.unique(table[:, k], return_inverse=True)[1].astype(np.int32) for k in (0, 1))
    return people, films, table[:, 2].copy()


def at_a_time(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of several calls, each in its own thread."""
    found: list[Any] = [None] * len(works)

    def run(k: int) -> None:
        found[k] = works[k]()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(works))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found


def shares(x: Any, y: Array, count: int) -> list[tuple[Any, Array]]:
    """Divide the examples into parts."""
    data, indices, starts, (rows, features) = x
    parts = []
    for k in range(count):
        first, last = rows * k // count, rows * (k + 1) // count
        within = slice(starts[first], starts[last])
        own_starts = starts[first : last + 1] - starts[first]
        parts.append(((data[within], indices[within], own_starts, (last - first, features)), y[first:last]))
    return parts


APART, ONCE = "nothing shared", "shared once a round"


def objective(model: Any, x: Any, y: Array) -> float:
    """The objective of logistic regression at a contender's weights."""
    scorer = SGDClassifier("log_loss")
    scorer.classes_, scorer.n_features_in_ = np.array([0, 1]), x[3][1]
    scorer.coef_, scorer.intercept_ = np.asarray(model.coef_), np.asarray(model.intercept_)
    scores = scorer.decision_function(x)
    losses = np.logaddexp(0.0, np.where(y == 1, -scores, scores))
    return float(losses.mean() + ALPHA / 2 * np.square(model.coef_, dtype=np.float64).sum())


def own(
    x: Any, y: Array, rule: str, passes: int, threads: int, seed: int, publish_every: int | None = None
) -> SGDClassifier:
    model = SGDClassifier("log_loss", rule=rule, alpha=ALPHA, max_iter=passes, tol=None, n_jobs=threads)
    model.set_params(random_state=seed)
    if publish_every is not None:
        model.set_params(publish_every=publish_every)
    if rule == "sgd":
        model.set_params(learning_rate="decay", eta0=2.0, decay=0.5)
    return model.fit(x, y)


def of_sklearn(x: Any, y: Array, passes: int, seed: int) -> Any:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import SGDClassifier as Theirs

    model = Theirs(
        "log_loss", alpha=ALPHA, max_iter=passes, tol=None, learning_rate="constant", eta0=0.5, random_state=seed
    )
    return model.fit(csr_matrix(x[:3], shape=x[3]), y)


class VowpalWabbit:
    """Vowpal Wabbit, training from its cache format; the first pass, which reads text, is not timed."""

    def __init__(self, x: Any, y: Array) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.text = Path(self.folder.name) / "rows.txt"
        data, indices, starts, _ = x
        with self.text.open("w") as file:
            for k, label in enumerate(y):
                row = slice(starts[k], starts[k + 1])
                features = " ".join(f"{u}:{v:.6g}" for u, v in zip(indices[row], data[row], strict=True))
                file.write(f"{1 if label else -1} | {features}\n")
        self.train(1)

    def train(self, passes: int) -> float:
        from vowpalwabbit import Workspace

        begin = time.perf_counter()
        # --holdout_off: train on all rows in all passes, like the others.
        Workspace(
            f"-d {self.text} -c --passes {passes} --loss_function logistic --l2 {ALPHA} -b 18 --holdout_off --quiet"
        ).finish()
        return time.perf_counter() - begin

    def seconds(self, passes: int) -> float:
        return (self.train(passes + 1) - self.train(1)) / passes


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def linear(options: argparse.Namespace) -> dict[str, Any]:
    """The time of a pass in seconds, by contender and round, and the objectives."""
    x, y = rcv1_shaped(options.rows, options.features, options.per_row)
    passes, rule = options.passes, options.rule
    # Each is called with the seed of the round.
    contenders: dict[str, Callable[[int], Any]] = {
        "one thread": lambda seed: own(x, y, rule, passes, 1, seed),
        f"{options.threads} threads": lambda seed: own(x, y, rule, passes, options.threads, seed),
        # Without copies of frequent weights, as in the paper.
        f"{options.threads} threads, direct": lambda seed: own(x, y, rule, passes, options.threads, seed, 1),
    }
    apart: dict[str, Callable[[int], Any]] = {}
    if options.bounds:
        contenders[f"{options.threads} threads, {ONCE}"] = lambda seed: own(
            x, y, rule, passes, options.threads, seed, 2**30
        )
        parts = shares(x, y, options.threads)
        apart[f"{options.threads} threads, {APART}"] = lambda seed: at_a_time(
            [partial(own, *part, rule, passes, 1, seed) for part in parts]
        )
    if importlib.util.find_spec("sklearn") is not None:
        contenders["scikit-learn"] = lambda seed: of_sklearn(x, y, passes, seed)
    else:
        print("scikit-learn: not installed")
    times: dict[str, list[float]] = {name: [] for name in (*contenders, *apart)}
    losses: dict[str, list[float]] = {name: [] for name in contenders}
    wabbit = None
    if importlib.util.find_spec("vowpalwabbit") is not None:
        wabbit = VowpalWabbit(x, y)
        times["Vowpal Wabbit"] = []
    else:
        print("Vowpal Wabbit: vowpalwabbit is not installed")
    for seed in range(options.repeats):
        for name, work in contenders.items():
            seconds, model = seconds_of(partial(work, seed))
            times[name].append(seconds / passes)
            losses[name].append(objective(model, x, y))
        for name, work in apart.items():
            times[name].append(seconds_of(partial(work, seed))[0] / passes)
        if wabbit is not None:
            times["Vowpal Wabbit"].append(wabbit.seconds(passes))
    return {"seconds": times, "losses": losses, "rows": options.rows}


def factors(options: argparse.Namespace) -> dict[str, Any]:
    """The same for matrix factorisation."""
    n = options.entries
    shape = (max(n // 30, 10), max(n // 200, 10))
    return factorised(options, ratings(n, *shape), shape, options.passes)


def factorised(
    options: argparse.Namespace, entries: tuple[Array, Array, Array], shape: tuple[int, int], passes: int
) -> dict[str, Any]:
    several = f"{options.threads} threads"
    times: dict[str, list[float]] = {"one thread": [], several: []}
    losses: dict[str, list[float]] = {name: [] for name in times}

    def fit(threads: int, seed: int, part: slice = slice(None)) -> MatrixFactorization:
        model = MatrixFactorization(options.rank, max_iter=passes, n_jobs=threads, random_state=seed)
        return model.fit(*(a[part] for a in entries), shape)

    n = len(entries[0])
    parts = [slice(n * k // options.threads, n * (k + 1) // options.threads) for k in range(options.threads)]
    if options.bounds:
        times[f"{several}, {APART}"] = []
    for seed in range(options.repeats):
        for name, threads in (("one thread", 1), (several, options.threads)):
            seconds, model = seconds_of(partial(fit, threads, seed))
            times[name].append(seconds / passes)
            losses[name].append(model.loss_curve_[-1])
        if options.bounds:
            seconds, _ = seconds_of(lambda seed=seed: at_a_time([partial(fit, 1, seed, part) for part in parts]))
            times[f"{several}, {APART}"].append(seconds / passes)
    return {"seconds": times, "losses": losses, "rows": n}


def ratio(found: dict[str, Any], slow: str, fast: str) -> float:
    pairs = zip(found["seconds"][slow], found["seconds"][fast], strict=True)
    return statistics.median(a / b for a, b in pairs)


def show(what: str, found: dict[str, Any], several: str) -> dict[str, float]:
    print(f"{what}, {found['rows']:,} examples")
    for name, seconds in found["seconds"].items():
        nanoseconds = statistics.median(seconds) / found["rows"] * 1e9
        line = f"  {name:<30} {nanoseconds:8.1f} ns an example"
        if name in found["losses"]:
            loss = statistics.mean(found["losses"][name])
            line += f"   loss {loss:.5f}"
            if len(seconds) > 1:
                line += f", spread {statistics.stdev(found['losses'][name]) / loss:.2%}"
        print(line)
    ratios = {"one thread / " + several: ratio(found, "one thread", several)}
    for way in ("direct", ONCE, APART):
        if f"{several}, {way}" in found["seconds"]:
            ratios[f"one thread / {several}, {way}"] = ratio(found, "one thread", f"{several}, {way}")
    for peer in ("scikit-learn", "Vowpal Wabbit"):
        if peer in found["seconds"]:
            ratios[f"{peer} / one thread"] = ratio(found, peer, "one thread")
    for name, value in ratios.items():
        print(f"  {name:<45} {value:.2f}")
    difference = statistics.mean(found["losses"][several]) / statistics.mean(found["losses"]["one thread"]) - 1
    print(f"  loss of {several} over that of one: {difference:+.2%}", flush=True)
    return {**ratios, "loss difference": difference}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=_size, default=400_000)
    parser.add_argument("--entries", type=_size, default=4_000_000, help="entries of the matrix that is factorised")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rule", default="sgd", choices=["sgd", "adagrad", "adam", "ftrl"])
    parser.add_argument("--bounds", action="store_true", help="also measure upper bounds of the speed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times, in seconds")
    parser.add_argument("--smoke", action="store_true", help="a small size, to see that everything works")
    options = parser.parse_args(arguments)
    options.features, options.per_row = FEATURES, PER_ROW
    if options.smoke:
        options.rows, options.entries, options.rank, options.passes, options.repeats = 1500, 3000, 4, 2, 2
        options.features, options.per_row = 2000, 40
    several = f"{options.threads} threads"
    if options.threads < 2:
        parser.error("--threads must be >= 2")
    results = {}
    for what, run in (("linear model", linear), ("matrix factorisation", factors)):
        found = run(options)
        results[what] = {**found, "ratios": show(what, found, several)}
    if not options.smoke:
        try:
            people, films, stars = movielens()
        except OSError as e:
            print(f"MovieLens: {e}")
        else:
            shape = (int(people.max()) + 1, int(films.max()) + 1)
            found = factorised(options, (people, films, stars), shape, 10 * options.passes)
            results["MovieLens"] = {**found, "ratios": show("MovieLens", found, several)}
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "threads": options.threads, **results}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
