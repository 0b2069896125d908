"""The demo's part with sparse gradients: which package is a text from? AdaGrad and SGD on word counts, most of them
rare.

A softmax regression on bags of words, in one pass. The gradient of a minibatch is nonzero only for the words that occur
in it, and each step gets only those rows.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import adaptk
from adaptk._cli._screen import Column, Screen
from adaptk._cli._texts import Passages, passages

Array: TypeAlias = npt.NDArray[Any]

RULES = ("sgd", "adagrad")
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
LINES, MOST, TEST = 12, 300, 0.25
BATCH = 4
# A word is rare if it occurs in fewer than one of this many passages.
RARE = 100
DENSE_REPEATS = 21


@dataclass
class Run:
    """A rule at its best learning rate. Accuracies are those on the test passages."""

    rule: str
    rate: float
    losses: list[float] = field(default_factory=list)  # of each minibatch, before its step
    right: float = math.nan
    right_by_rare: float = math.nan  # with the rare words alone
    step_seconds: float = math.nan
    dense_step_seconds: float = math.nan

    @property
    def loss(self) -> float:
        """The mean loss over the pass."""
        return float(np.mean(self.losses))

    @property
    def ratio(self) -> float:
        """The time of a step with a dense gradient over that of a step with a sparse one."""
        return self.dense_step_seconds / self.step_seconds


def _log_softmax(scores: Array) -> Array:
    shifted: Array = scores - scores.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def scores(weights: Array, text: Passages, which: Array, words: Array | None = None) -> Array:
    """The scores of some passages for all packages. `words` is a mask: only these words are used."""
    row, word, value = text.rows(which)
    if words is not None:
        value = np.where(words[word], value, np.float32(0))
    result = np.zeros((len(which), weights.shape[1]), weights.dtype)
    # The elements of a passage are adjacent.
    begins = np.flatnonzero(np.diff(row, prepend=-1))
    if len(row):
        result[row[begins]] = np.add.reduceat(value[:, None] * weights[word], begins, axis=0)
    return result


def loss(weights: Array, text: Passages, which: Array) -> float:
    """Mean cross-entropy."""
    logs = _log_softmax(scores(weights, text, which))
    return -float(np.mean(logs[np.arange(len(which)), text.labels[which]], dtype=np.float64))


def _share_right(weights: Array, text: Passages, which: Array, words: Array | None) -> float:
    return float(np.mean(scores(weights, text, which, words).argmax(axis=1) == text.labels[which]))


def gradient(weights: Array, text: Passages, which: Array) -> tuple[Array, Array]:
    """The gradient of the loss: row indices and values. A word of several passages occurs several times."""
    delta = np.exp(_log_softmax(scores(weights, text, which)))
    delta[np.arange(len(which)), text.labels[which]] -= 1
    delta /= np.float32(len(which))
    row, word, value = text.rows(which)
    return word, value[:, None] * delta[row]


def _train(rule: str, rate: float, text: Passages, seed: int) -> tuple[Run, Array, list[tuple[Array, Array]]]:
    weights = np.zeros((len(text.words), len(text.packages)), np.float32)
    optimizer = adaptk.optimizer_for(rule, [weights], lr=rate)
    run, times, grads = Run(rule, rate), [], []
    order = np.random.default_rng(seed).permutation(text.train)
    for begin in range(0, text.train - BATCH + 1, BATCH):
        batch = order[begin : begin + BATCH]
        run.losses.append(loss(weights, text, batch))
        grads.append(gradient(weights, text, batch))
        start = time.perf_counter()
        optimizer.step(grads[-1:])
        times.append(time.perf_counter() - start)
    run.step_seconds = statistics.median(times)
    return run, weights, grads


def _dense_seconds(rule: str, text: Passages, grads: Sequence[tuple[Array, Array]]) -> float:
    """The time of a step with a dense gradient, which is 0 for all other words."""
    weights = np.zeros((len(text.words), len(text.packages)), np.float32)
    optimizer = adaptk.optimizer_for(rule, [weights])
    dense = np.zeros_like(weights)
    times = []
    for index, values in grads[:DENSE_REPEATS]:
        dense[:] = 0
        np.add.at(dense, index, values)
        start = time.perf_counter()
        optimizer.step([dense])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_passages(seed: int) -> Passages | None:
    """The text of this part; None if the standard library's sources are not installed."""
    return passages(LINES, MOST, TEST, seed)


def run_all(text: Passages, seed: int) -> list[Run]:
    """Run each rule with each rate, from the same start, on the same minibatches; keep the lowest loss of each rule."""
    new = np.arange(text.train, len(text.labels))
    rare = text.counts * RARE < text.train
    runs = []
    for rule in RULES:
        tried = [_train(rule, rate, text, seed) for rate in RATES]
        run, weights, grads = min(tried, key=lambda t: t[0].loss)
        run.right, run.right_by_rare = (
            float(np.mean(scores(weights, text, new, words).argmax(axis=1) == text.labels[new]))
            for words in (None, rare)
        )
        run.dense_step_seconds = _dense_seconds(rule, text, grads)
        runs.append(run)
    return runs


def show(screen: Screen, text: Passages, runs: Sequence[Run]) -> None:
    """Print the result and then the table."""
    rare = int((text.counts * RARE < text.train).sum())
    screen.text(
        f"Sparse gradients: {text.train:,} passages of {len(text.packages)} packages of Python's standard library, as "
        f"bags of {len(text.words):,} words and pairs of words, {rare / len(text.words):.0%} of which are in fewer "
        "than 1% of the passages. One pass; then: which package is a new passage from?"
    )
    screen.line()
    best = max(run.right for run in runs)
    screen.table(
        [
            Column("rule", left=True, style="cyan"),
            Column("best lr"),
            Column("loss in the pass"),
            Column("new passages right"),
            Column("by rare words alone"),
            Column("sparse step", drop=1),
            Column("dense step", drop=2),
            Column("speedup", style="bold"),
        ],
        [
            [
                run.rule,
                f"{run.rate:g}",
                f"{run.loss:.3f}",
                (f"{run.right:.1%}", "green" if run.right == best else ""),
                f"{run.right_by_rare:.1%}",
                f"{run.step_seconds * 1e6:.1f} us",
                f"{run.dense_step_seconds * 1e6:.1f} us",
                f"{run.ratio:.1f}x",
            ]
            for run in runs
        ],
    )


def as_data(text: Passages | None, runs: Sequence[Run]) -> dict[str, Any] | None:
    """For JSON; None if there was no text."""
    if text is None:
        return None
    return {
        "packages": text.packages,
        "words": len(text.words),
        "train": text.train,
        "test": len(text.labels) - text.train,
        "batch": BATCH,
        "rates": list(RATES),
        "rules": {
            run.rule: {
                "lr": run.rate,
                "loss": run.loss,
                "test_accuracy": run.right,
                "test_accuracy_by_rare_words": run.right_by_rare,
                "step_seconds": run.step_seconds,
                "dense_step_seconds": run.dense_step_seconds,
                "ratio": run.ratio,
            }
            for run in runs
        },
    }
