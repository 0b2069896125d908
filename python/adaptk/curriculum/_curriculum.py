"""Batches in an order of difficulty, and selection by loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from adaptk._names import hint
from adaptk._numbers import count, number

__all__ = ["Curriculum", "SelfPaced"]

Indices: TypeAlias = npt.NDArray[np.int64]
Order: TypeAlias = Literal["easy", "hard", "random"]

_ORDERS = ("easy", "hard", "random")
# Keys of the generator: for the order of examples, for each pass over them, and for the first batch of a pass.
_OF_ORDER = 2**64 - 1
_OF_FIRST_BATCHES = 2**63
# A pass over fewer examples than this is shuffled at once.
_SMALL = 4096


def _raw(seed: int, key: int, n: int) -> npt.NDArray[np.uint64]:
    """Raw output of a bit generator, the same in every release of NumPy. Its distributions may change."""
    generator = np.random.Philox(key=np.array([seed, key], np.uint64))
    return np.asarray(generator.random_raw(n), np.uint64)


def _permutation(seed: int, key: int, n: int) -> Indices:
    return np.argsort(_raw(seed, key, n), kind="stable").astype(np.int64, copy=False)


def _scores(name: str, scores: Any) -> npt.NDArray[np.float64]:
    """Check scores: a float64 copy, one number for each example, without NaN."""
    try:
        array = np.array(scores)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: dtype {array.dtype}, expected one real number for each example")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: shape {array.shape}, expected one number for each example, (n,) with n >= 1")
    result = array.astype(np.float64)
    if np.isnan(result).any():
        raise ValueError(f"{name}: NaN at example {int(np.flatnonzero(np.isnan(result))[0])}")
    return result


def _groups(groups: Any, n: int) -> Indices | None:
    if groups is None:
        return None
    array = np.asarray(groups)
    if array.shape != (n,):
        raise ValueError(f"groups: shape {array.shape}, expected {(n,)}, one group for each example")
    return np.unique(array, return_inverse=True)[1].reshape(n)


def _in_groups(order: Indices, groups: Indices) -> Indices:
    """An order in which every leading part has the same fraction of each group, up to rounding."""
    place = np.empty(len(order))
    for g in range(int(groups.max()) + 1):
        members = order[groups[order] == g]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Ties keep the original order.
    return order[np.argsort(place[order], kind="stable")]


class Curriculum:
    """Batches of indices from a growing part of the data, in an order of difficulty.

    An endless iterator: each ``next`` is one training step. At step ``t`` the first ``ceil(pacing(t) * n)`` examples in
    the order of difficulty are available. Batches are drawn in passes over the available examples, in random order and
    without repetition. A new pass begins when all available examples were drawn, or when their number has changed. Once
    all data are available, a pass is an epoch.

    Parameters
    ----------
    difficulty
        One real number for each example, larger for harder ones, of shape ``(n,)``. NaN raises an error. Examples with
        the same difficulty are in random order.
    pacing
        The fraction of the data at each step: a function of :mod:`adaptk.curriculum.pacing`, or any other function of
        the step number, counted from 1, that returns a number in (0, 1].
    batch_size
        Number of examples in a batch, >= 1. Batches are smaller at the end of a pass, and if fewer examples are
        available.
    seed
        An integer in [0, 2**64).
    order
        ``"easy"`` begins with the easiest examples, ``"hard"`` with the hardest, and ``"random"`` has a random order.
    groups
        The class of each example, of shape ``(n,)``. Each available part of the data then has the same fraction of each
        class. Without `groups`, the easiest examples may come from a few classes only.
    drop_last
        Leave out the last batch of a pass if it is smaller than the others.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type or out of range, or, when a batch is drawn, ``pacing`` returned something else
        than a number in (0, 1].

    Notes
    -----
    Source: Bengio et al. 2009; Platanios et al. 2019, who call the fraction competence; Hacohen and Weinshall 2019, who
    balance classes. A batch follows from ``seed``, the number of the pass and the position in it, so the state is only
    the difficulties and a few numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from adaptk.curriculum import Curriculum, pacing
    >>> difficulty = np.array([0.9, 0.1, 0.5, 0.2, 0.8, 0.4])
    >>> batches = Curriculum(difficulty, pacing.linear(1 / 3, total=4), batch_size=2, seed=0)
    >>> sorted(next(batches).tolist())  # the two easiest
    [1, 3]
    >>> for step, batch in zip(range(5), batches):
    ...     pass  # gradients of x[batch], and a step of the optimizer
    >>> batches.step, batches.available
    (6, 6)
    """

    def __init__(
        self,
        difficulty: npt.ArrayLike,
        pacing: Callable[[int], float],
        batch_size: SupportsIndex,
        seed: SupportsIndex,
        *,
        order: Order = "easy",
        groups: npt.ArrayLike | None = None,
        drop_last: bool = False,
    ) -> None:
        self._difficulty = _scores("difficulty", difficulty)
        if not callable(pacing):
            raise TypeError(
                f"pacing must be a function of the step, such as those of adaptk.curriculum.pacing, got {pacing!r}"
            )
        self._pacing = pacing
        self._batch_size = count("batch_size", batch_size, 1)
        self._seed = count("seed", seed, 0)
        if self._seed >= 2**64:
            raise ValueError(f"seed must be < 2**64, got {self._seed}")
        if order not in _ORDERS:
            raise ValueError(f"order must be 'easy', 'hard' or 'random', got {order!r}{hint(order, _ORDERS)}")
        self._order: Order = order
        self._groups = _groups(groups, len(self._difficulty))
        self._drop_last = bool(drop_last)
        self._step = 0
        self._pass = -1
        self._position = 0
        self._available = 0
        self._shuffled: Indices | None = None
        self._sort()

    def _sort(self) -> None:
        n = len(self._difficulty)
        order = _permutation(self._seed, _OF_ORDER, n)
        if self._order != "random":
            keys = self._difficulty[order]
            order = order[np.argsort(keys if self._order == "easy" else -keys, kind="stable")]
        self._ordered = order if self._groups is None else _in_groups(order, self._groups)

    @property
    def step(self) -> int:
        """The number of batches that have been drawn."""
        return self._step

    @property
    def available(self) -> int:
        """The number of examples that the last batch was drawn from; 0 before the first."""
        return self._available

    @property
    def ordered(self) -> Indices:
        """All examples in the order in which they become available."""
        return self._ordered.copy()

    @property
    def difficulty(self) -> npt.NDArray[np.float64]:
        """A copy of the scores. Assign new scores, such as current losses, to change the order of later batches."""
        return self._difficulty.copy()

    @difficulty.setter
    def difficulty(self, scores: npt.ArrayLike) -> None:
        new = _scores("difficulty", scores)
        if new.shape != self._difficulty.shape:
            raise ValueError(f"difficulty: {len(new)} examples, expected {len(self._difficulty)} as before")
        self._difficulty = new
        self._sort()
        # The available examples have changed, even if their number is the same: begin a new pass.
        self._available = self._position = 0

    def _share(self, t: int) -> float:
        try:
            share = float(self._pacing(t))
        except TypeError as error:
            raise TypeError(f"pacing: of step {t}: {error}") from error
        if not 0.0 < share <= 1.0:
            raise ValueError(f"pacing: returned {share!r} for step {t}, expected a number in (0, 1]")
        return share

    def _draw(self, begin: int, end: int) -> Indices:
        """Positions begin ... end - 1 of the current pass, as positions in the order."""
        n, size = self._available, end - begin
        if self._shuffled is None:
            if begin == 0 and n > max(_SMALL, 8 * size):
                return self._first(size)
            self._shuffled = _permutation(self._seed, self._pass, n)
            if n > max(_SMALL, 8 * self._batch_size):
                first = self._first(self._batch_size)
                rest = np.ones(n, bool)
                rest[first] = False
                self._shuffled = np.concatenate([first, self._shuffled[rest[self._shuffled]]])
        return self._shuffled[begin:end]

    def _first(self, size: int) -> Indices:
        """The first batch of a pass, which is often the only one, in a time independent of the number of examples."""
        draws = _raw(self._seed, _OF_FIRST_BATCHES + self._pass, 2 * size + 64) % np.uint64(self._available)
        places = np.sort(np.unique(draws, return_index=True)[1])
        chosen: Indices = draws[places][:size].astype(np.int64)
        # The batch is at most an eighth of the examples, so there are enough distinct ones, except with a probability
        # below 1e-30.
        return chosen if len(chosen) == size else _permutation(self._seed, self._pass, self._available)[:size]

    def __iter__(self) -> Iterator[Indices]:
        return self

    def __next__(self) -> Indices:
        n = len(self._difficulty)
        # Rounding may leave a fraction slightly above a multiple of 1 / n.
        available = min(n, max(1, math.ceil(self._share(self._step + 1) * n - 1e-9)))
        size = min(self._batch_size, available)
        left = available - self._position
        if available != self._available or left < (size if self._drop_last else 1):
            self._available = available
            self._pass += 1
            self._position = 0
            self._shuffled = None
            left = available
        end = self._position + min(size, left)
        batch = self._ordered[self._draw(self._position, end)]
        self._position = end
        self._step += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The state that another object with the same arguments needs to continue with the next batch.

        Returns
        -------
        dict
            Integers and the copy of an array. ``np.savez``, ``pickle`` and ``torch.save`` can store it.

        Examples
        --------
        >>> from adaptk.curriculum import Curriculum, pacing
        >>> batches = Curriculum([3.0, 1.0, 2.0], pacing.step(0.4, total=2), batch_size=1, seed=0)
        >>> first = next(batches)
        >>> sorted(batches.state_dict())
        ['available', 'batch_size', 'difficulty', 'pass', 'position', 'seed', 'step']
        """
        return {
            "step": self._step,
            "pass": self._pass,
            "position": self._position,
            "available": self._available,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "difficulty": self._difficulty.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state: the next batch is the one that would have followed when the state was saved.

        Parameters
        ----------
        state
            From :meth:`state_dict` of an object with the same number of examples, seed and batch size. Numbers may be
            0-d arrays, as ``np.load`` returns them.

        Raises
        ------
        KeyError, TypeError, ValueError
            The state is incomplete, or from another curriculum. Nothing is changed in this case.

        Examples
        --------
        >>> from adaptk.curriculum import Curriculum, pacing
        >>> batches, resumed = (
        ...     Curriculum([3.0, 1.0, 2.0], pacing.step(0.4, total=2), batch_size=1, seed=0) for _ in range(2)
        ... )
        >>> first = next(batches)
        >>> resumed.load_state_dict(batches.state_dict())
        >>> next(resumed) == next(batches)
        array([ True])
        """
        names = ("step", "pass", "position", "available", "seed", "batch_size")
        missing = [name for name in (*names, "difficulty") if name not in state]
        if missing:
            raise KeyError(f"state: no {missing[0]!r}; expected what state_dict() returned")
        numbers = {name: count(f"state[{name!r}]", _plain(state[name]), -1 if name == "pass" else 0) for name in names}
        difficulty = _scores("state['difficulty']", state["difficulty"])
        if difficulty.shape != self._difficulty.shape:
            raise ValueError(
                f"state['difficulty']: {len(difficulty)} examples, expected {len(self._difficulty)} as here"
            )
        for name, own in (("seed", self._seed), ("batch_size", self._batch_size)):
            if numbers[name] != own:
                raise ValueError(f"state[{name!r}]: {numbers[name]}, expected {own} as here")
        if not numbers["position"] <= numbers["available"] <= len(difficulty):
            raise ValueError("state['position'] must be <= state['available'], and that <= the number of examples")
        self._difficulty = difficulty
        self._step, self._pass = numbers["step"], numbers["pass"]
        self._position, self._available = numbers["position"], numbers["available"]
        self._shuffled = None
        self._sort()

    def __repr__(self) -> str:
        return (
            f"<Curriculum of {len(self._difficulty)} examples, pacing={self._pacing!r}, batch_size={self._batch_size}, "
            f"seed={self._seed}, order={self._order!r}, after step {self._step}>"
        )


def _plain(value: Any) -> Any:
    """A number, also from a 0-d array."""
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


class SelfPaced:
    """Self-paced learning: select the examples whose loss does not exceed a threshold that rises from round to round.

    Parameters
    ----------
    start
        Fraction of the examples that the first round selects, in (0, 1]. The threshold of this round is the quantile of
        the losses for this fraction.
    growth
        Factor of the threshold from one round to the next, finite, > 1.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: Kumar, Packer and Koller 2010. The threshold is 1/K in their notation. Between two rounds, train on the
    selected examples.

    Examples
    --------
    >>> from adaptk.curriculum import SelfPaced
    >>> paced = SelfPaced(0.5, growth=2.0)
    >>> paced.select([0.3, 1.0, 0.1, 0.7])
    array([0, 2])
    >>> paced.select([0.2, 0.8, 0.1, 0.5])  # after training on these two; the threshold is 0.6 now
    array([0, 2, 3])
    """

    def __init__(self, start: SupportsFloat = 0.5, *, growth: SupportsFloat = 1.3) -> None:
        self._start = number("start", start, high=1.0, open_low=True)
        self._growth = number("growth", growth)
        if self._growth <= 1.0:
            raise ValueError(f"growth must be > 1, got {self._growth:g}")
        self._threshold: float | None = None
        self._round = 0

    @property
    def threshold(self) -> float | None:
        """The threshold of the last round; ``None`` before the first."""
        return self._threshold

    @property
    def round(self) -> int:
        """The number of rounds so far."""
        return self._round

    def select(self, losses: npt.ArrayLike) -> Indices:
        """Begin a round and select its examples.

        Parameters
        ----------
        losses
            The current loss of each example, >= 0, of shape ``(n,)``. Infinite ones are not selected.

        Returns
        -------
        ndarray of int64
            The sorted indices of the examples whose loss does not exceed the threshold. If there are none, because the
            losses have grown, the threshold is set as in the first round.

        Raises
        ------
        TypeError, ValueError
            The losses are not as described, or all of them are infinite. No round begins in this case.

        Examples
        --------
        >>> from adaptk.curriculum import SelfPaced
        >>> SelfPaced(0.25).select([4.0, 2.0, 1.0, 3.0])
        array([2])
        """
        values = _scores("losses", losses)
        if (values < 0).any():
            raise ValueError(f"losses: must be >= 0, got {values.min():g} at example {int(values.argmin())}")
        if not np.isfinite(values).any():
            raise ValueError("losses: all of them are infinite")
        threshold = None if self._threshold is None else min(self._threshold * self._growth, np.finfo(float).max)
        if threshold == 0.0 and (values > 0).any():  # no factor can raise a threshold of 0
            threshold = float(values[values > 0].min())
        if threshold is None or not (values <= threshold).any():
            finite = np.sort(values[np.isfinite(values)])
            threshold = float(finite[min(len(finite), math.ceil(self._start * len(values))) - 1])
        self._threshold = threshold
        self._round += 1
        return np.flatnonzero(values <= threshold).astype(np.int64, copy=False)

    def state_dict(self) -> dict[str, Any]:
        """The state that another object with the same arguments needs to continue with the next round.

        Returns
        -------
        dict
            The threshold, NaN before the first round, and the number of rounds.

        Examples
        --------
        >>> from adaptk.curriculum import SelfPaced
        >>> SelfPaced().state_dict()
        {'threshold': nan, 'round': 0}
        """
        return {"threshold": math.nan if self._threshold is None else self._threshold, "round": self._round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state: the next round is the one that would have followed when the state was saved.

        Parameters
        ----------
        state
            From :meth:`state_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            ``state`` is not a valid state. Nothing is changed in this case.

        Examples
        --------
        >>> from adaptk.curriculum import SelfPaced
        >>> paced = SelfPaced()
        >>> paced.load_state_dict({"threshold": 0.5, "round": 3})
        >>> paced.threshold
        0.5
        """
        for name in ("threshold", "round"):
            if name not in state:
                raise KeyError(f"state: no {name!r}; expected what state_dict() returned")
        rounds = count("state['round']", _plain(state["round"]), 0)
        value = _plain(state["threshold"])
        begun = not (isinstance(value, float) and math.isnan(value))
        threshold = number("state['threshold']", value) if begun else None
        if begun != (rounds > 0):
            raise ValueError("state: a threshold belongs to at least one round, and NaN to none")
        self._threshold, self._round = threshold, rounds

    def __repr__(self) -> str:
        return f"<SelfPaced({self._start!r}, growth={self._growth!r}) after round {self._round}>"
