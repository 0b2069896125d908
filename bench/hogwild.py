"""adaptk.hogwild on two threads and on one, beside scikit-learn's SGDClassifier and Vowpal Wabbit, taken in turn.

``python bench/hogwild.py [--rows 400k] [--passes 10] [--threads 2] [--repeats 3] [--rule sgd] [--json FILE] [--smoke]``

The data have the shape of RCV1: 47,236 features whose frequencies follow a power law, 76 a row of length 1.
Each contender trains anew for the same number of passes, logistic loss, float32. A ratio is the median over the rounds;
"loss" is the mean over the rounds of the objective on all rows after the last pass. Each round has its own order of the
examples, the same for all contenders, and "spread" is the standard deviation of the losses: threads change a loss only
if the difference is well above that. The step size of sgd is halved after each pass. If it shrinks by a tenth, the
objective depends on where the last examples have led: it varied by a tenth from order to order, on one thread, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
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
    """(data, indices, indptr, shape) and labels."""
    rng = np.random.default_rng(seed)
    frequency = np.cumsum(1.0 / np.arange(1, features + 1))
    number = rng.permutation(features)  # of the features by frequency
    truth = rng.normal(size=features)
    data = np.empty((rows, per_row), np.float32)
    indices = np.empty((rows, per_row), np.int32)
    scores = np.empty(rows)
    step, drawn = 20_000, 3 * per_row
    for begin in range(0, rows, step):
        n = min(step, rows - begin)
        rank = np.searchsorted(frequency, rng.random((n, drawn)) * frequency[-1]).clip(0, features - 1)
        # The first different ones of each row.
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
    """Entries of a noisy matrix of low rank; some columns are popular."""
    rng = np.random.default_rng(seed)
    i = rng.integers(0, rows, entries, dtype=np.int32)
    j = (columns ** rng.random(entries) - 1).astype(np.int32)
    a, b = (rng.normal(size=(n, rank)).astype(np.float32) / rank**0.5 for n in (rows, columns))
    values = 3.5 + np.einsum("ij,ij->i", a[i], b[j]) + 0.3 * rng.normal(size=entries)
    return i, j, values.astype(np.float32)


def objective(model: Any, x: Any, y: Array) -> float:
    """Of logistic regression, by the weights that a contender has found."""
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
    """Passes over a cache, as it likes its data best; the first pass, which reads text, is not counted."""

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
        # --holdout_off: all rows in all passes, as the others do.
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
    """Seconds of a pass by contender and round, and their objectives."""
    x, y = rcv1_shaped(options.rows, options.features, options.per_row)
    passes, rule = options.passes, options.rule
    # Each gets the round's seed.
    contenders: dict[str, Callable[[int], Any]] = {
        "one thread": lambda seed: own(x, y, rule, passes, 1, seed),
        f"{options.threads} threads": lambda seed: own(x, y, rule, passes, options.threads, seed),
        # Without copies of frequent weights, as in the paper.
        f"{options.threads} threads, direct": lambda seed: own(x, y, rule, passes, options.threads, seed, 1),
    }
    if importlib.util.find_spec("sklearn") is not None:
        contenders["scikit-learn"] = lambda seed: of_sklearn(x, y, passes, seed)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, list[float]] = {name: [] for name in contenders}
    wabbit = None
    if importlib.util.find_spec("vowpalwabbit") is not None:
        wabbit = VowpalWabbit(x, y)
        times["Vowpal Wabbit"] = []
    for seed in range(options.repeats):
        for name, work in contenders.items():
            seconds, model = seconds_of(partial(work, seed))
            times[name].append(seconds / passes)
            losses[name].append(objective(model, x, y))
        if wabbit is not None:
            times["Vowpal Wabbit"].append(wabbit.seconds(passes))
    return {"seconds": times, "losses": losses, "rows": options.rows}


def factors(options: argparse.Namespace) -> dict[str, Any]:
    """The same for matrix factorisation."""
    n = options.entries
    shape = (max(n // 30, 10), max(n // 200, 10))
    i, j, values = ratings(n, *shape)
    times: dict[str, list[float]] = {"one thread": [], f"{options.threads} threads": []}
    losses: dict[str, list[float]] = {name: [] for name in times}
    for seed in range(options.repeats):
        for name, threads in (("one thread", 1), (f"{options.threads} threads", options.threads)):
            model = MatrixFactorization(options.rank, max_iter=options.passes, n_jobs=threads, random_state=seed)
            seconds, _ = seconds_of(partial(model.fit, i, j, values, shape))
            times[name].append(seconds / options.passes)
            losses[name].append(model.loss_curve_[-1])
    return {"seconds": times, "losses": losses, "rows": n}


def ratio(found: dict[str, Any], slow: str, fast: str) -> float:
    pairs = zip(found["seconds"][slow], found["seconds"][fast], strict=True)
    return statistics.median(a / b for a, b in pairs)


def show(what: str, found: dict[str, Any], several: str) -> dict[str, float]:
    print(f"{what}, {found['rows']:,} examples")
    for name, seconds in found["seconds"].items():
        nanoseconds = statistics.median(seconds) / found["rows"] * 1e9
        line = f"  {name:<18} {nanoseconds:8.1f} ns an example"
        if name in found["losses"]:
            loss = statistics.mean(found["losses"][name])
            line += f"   loss {loss:.5f}"
            if len(seconds) > 1:
                line += f", spread {statistics.stdev(found['losses'][name]) / loss:.2%}"
        print(line)
    ratios = {"one thread / " + several: ratio(found, "one thread", several)}
    if several + ", direct" in found["seconds"]:
        ratios[f"one thread / {several}, direct"] = ratio(found, "one thread", several + ", direct")
    for peer in ("scikit-learn", "Vowpal Wabbit"):
        if peer in found["seconds"]:
            ratios[f"{peer} / one thread"] = ratio(found, peer, "one thread")
    for name, value in ratios.items():
        print(f"  {name:<30} {value:.2f}")
    difference = statistics.mean(found["losses"][several]) / statistics.mean(found["losses"]["one thread"]) - 1
    print(f"  loss of {several} over that of one: {difference:+.2%}", flush=True)
    return {**ratios, "loss difference": difference}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=_size, default=400_000)
    parser.add_argument("--entries", type=_size, default=4_000_000, help="of the matrix that is factorised")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rule", default="sgd", choices=["sgd", "adagrad", "adam", "ftrl"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times, in seconds")
    parser.add_argument("--smoke", action="store_true", help="a size that takes no time and says nothing")
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
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "threads": options.threads, **results}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
