"""Text that every installation of Python has: the sources of its standard library."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

#: Packages with several files of some hundred lines each, in all releases of Python.
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "urllib", "xml")
_WORD = re.compile(r"[A-Za-z][a-z]+|[A-Z]{2,}")


def sources(package: str) -> str:
    """The source of all modules of a package; empty if there are none."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = ((Path(place), file) for place in places for file in Path(place).rglob("*.py"))
    # Some systems install tests with the modules, and others do not.
    files = sorted(file for place, file in found if "test" not in str(file.relative_to(place)))
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def _features(line: str, without: str) -> set[str]:
    """The words of a line, and its pairs of adjacent words."""
    words = [w for w in (w.lower() for w in _WORD.findall(line)) if w != without]
    return {*words, *map(" ".join, pairwise(words))}


@dataclass(frozen=True)
class Passages:
    """Bags of words and pairs of words.

    Row i of the matrix has the column indices ``indices[starts[i] : starts[i + 1]]``, and the values at these
    positions.
    """

    labels: Array  # the index of each passage's package
    packages: list[str]
    words: list[str]
    starts: Array
    indices: Array
    values: Array
    counts: Array  # for each word the number of training passages with it
    train: int  # the number of training passages, which come first

    def rows(self, which: Array) -> tuple[Array, Array, Array]:
        """For each element of some passages: the index of the passage among these, the word and the value."""
        lengths = self.starts[which + 1] - self.starts[which]
        row = np.repeat(np.arange(len(which)), lengths)
        place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + self.starts[which][row]
        return row, self.indices[place], self.values[place]


def passages(lines: int, most: int, test: float, seed: int, packages: Sequence[str] = PACKAGES) -> Passages | None:
    """Passages of the standard library as bags of words and pairs of words, labelled by their packages.

    A word counts once per passage, and the values of a passage are scaled to norm 1. Words and pairs must occur in at
    least two training passages.

    Parameters
    ----------
    lines : int
        The length of a passage.
    most : int
        The largest number of passages of one package.
    test : float
        The fraction of the passages that are for testing.

    Returns
    -------
    Passages, or None if there are no sources, as in installations with compiled modules only.
    """
    rng = np.random.default_rng(seed)
    bags: list[list[str]] = []
    labels: list[int] = []
    found: list[str] = []
    for package in packages:
        text = sources(package).splitlines()
        whole = [text[i : i + lines] for i in range(0, len(text) - lines + 1, lines)]
        # _features removes the package's own name, with which a passage would be too easy.
        parts = [sorted(set().union(*(_features(line, package) for line in part))) for part in whole]
        parts = [part for part in parts if part]
        if not parts:
            continue
        chosen = rng.permutation(len(parts))[:most].tolist()
        bags += [parts[i] for i in chosen]
        labels += [len(found)] * len(chosen)
        found.append(package)
    if len(found) < 2:
        return None
    order = rng.permutation(len(bags)).tolist()
    bags, labels = [bags[i] for i in order], [labels[i] for i in order]
    train = len(bags) - int(test * len(bags))
    counts = Counter(word for bag in bags[:train] for word in bag)
    words = sorted(word for word, count in counts.items() if count >= 2)
    number = {word: i for i, word in enumerate(words)}
    rows = [[number[word] for word in bag if word in number] for bag in bags]
    lengths = np.array([len(row) for row in rows])
    return Passages(
        labels=np.array(labels),
        packages=found,
        words=words,
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        indices=np.array([i for row in rows for i in row], np.int64),
        values=np.repeat(np.maximum(lengths, 1) ** -0.5, lengths).astype(np.float32),
        counts=np.array([counts[word] for word in words]),
        train=train,
    )
