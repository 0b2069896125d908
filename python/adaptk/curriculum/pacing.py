"""Pacing functions: how much of the data is available at each step.

A pacing function is called with the number ``t`` of the next step, counted from 1 as in :mod:`adaptk.schedules`, and
returns the fraction of the examples to draw from, in (0, 1]. It depends only on ``t``, is immutable, compares by value,
can be pickled, and has the call that makes it as its ``repr``. Any other function of the step number that returns such
a fraction may be used instead.

Arguments of the wrong type raise ``TypeError``, and arguments out of range ``ValueError``, when the function is made.
The message names the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, SupportsFloat, SupportsIndex

from adaptk._names import face, known_names_only
from adaptk._numbers import count, number
from adaptk.schedules import step_number

__all__ = ["Pacing", "exponential", "linear", "root", "step"]


@dataclass(frozen=True)
class Pacing:
    """The type that all functions of this module return: an immutable ``pacing(t) -> float``."""

    start: float

    def __call__(self, t: SupportsIndex | float) -> float:
        """The fraction of the data at step ``t``, counted from 1."""
        return min(1.0, self._at(step_number(t) - 1))

    def _at(self, n: int) -> float:
        """The fraction after ``n`` steps, before it is limited to 1."""
        raise NotImplementedError

    def __repr__(self) -> str:
        head, *options = [(f.name, getattr(self, f.name)) for f in fields(self)]
        arguments = [repr(head[1]), *(f"{name}={value!r}" for name, value in options)]
        return f"{type(self).__name__[1:].lower()}({', '.join(arguments)})"


# repr=False keeps the repr of the base class, which prints the call of the factory.
@dataclass(frozen=True, repr=False)
class _Root(Pacing):
    total: int
    power: float

    def _at(self, n: int) -> float:
        if n >= self.total:
            return 1.0
        first = self.start**self.power
        return float((first + (1.0 - first) * (n / self.total)) ** (1.0 / self.power))


@dataclass(frozen=True, repr=False)
class _Linear(Pacing):
    total: int

    def _at(self, n: int) -> float:
        return 1.0 if n >= self.total else self.start + (1.0 - self.start) * (n / self.total)


@dataclass(frozen=True, repr=False)
class _Exponential(Pacing):
    every: int | tuple[int, ...]
    factor: float

    def _at(self, n: int) -> float:
        if isinstance(self.every, int):
            rises = n // self.every
        else:
            rises, end = 0, 0
            for length in self.every:
                end += length
                rises += n >= end
        try:
            return float(self.start * self.factor**rises)
        except OverflowError:
            return 1.0


@dataclass(frozen=True, repr=False)
class _Step(Pacing):
    total: int

    def _at(self, n: int) -> float:
        return self.start if n < self.total else 1.0


def _start(start: SupportsFloat) -> float:
    return number("start", start, high=1.0, open_low=True)


def linear(start: SupportsFloat, *, total: SupportsIndex) -> Pacing:
    """Grow the fraction linearly.

    Parameters
    ----------
    start
        Fraction at the first step, in (0, 1].
    total
        Number of steps of the growth, >= 1: step ``total + 1`` is the first with all data.

    Returns
    -------
    Pacing
        ``pacing(t) = start + (1 - start) * (t - 1) / total``, and 1 for ``t > total``.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: the linear competence of Platanios et al. 2019.

    Examples
    --------
    >>> from adaptk.curriculum import pacing
    >>> share = pacing.linear(0.2, total=4)
    >>> [round(share(t), 2) for t in range(1, 7)]
    [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    """
    return _Linear(_start(start), count("total", total, 1))


def root(start: SupportsFloat, *, total: SupportsIndex, power: SupportsFloat = 2.0) -> Pacing:
    """Grow the fraction along a root: fast at first, and more slowly the more examples are available.

    Parameters
    ----------
    start
        Fraction at the first step, in (0, 1].
    total
        Number of steps of the growth, >= 1: step ``total + 1`` is the first with all data.
    power
        The degree of the root, finite, > 0; 2 is the square root, and 1 the same as :func:`linear`.

    Returns
    -------
    Pacing
        ``pacing(t) = (start**power + (1 - start**power) * (t - 1) / total)**(1 / power)``, and 1 for ``t > total``.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: the root competence of Platanios et al. 2019.

    Examples
    --------
    >>> from adaptk.curriculum import pacing
    >>> share = pacing.root(0.2, total=4)
    >>> [round(share(t), 2) for t in range(1, 7)]
    [0.2, 0.53, 0.72, 0.87, 1.0, 1.0]
    """
    return _Root(_start(start), count("total", total, 1), number("power", power, open_low=True))


def exponential(
    start: SupportsFloat, *, every: SupportsIndex | Sequence[SupportsIndex], factor: SupportsFloat = 2.0
) -> Pacing:
    """Multiply the fraction by a factor every few steps, until all data are available.

    Parameters
    ----------
    start
        Fraction at the first step, in (0, 1].
    every
        Number of steps between two changes, >= 1; or a list of such numbers, one for each stage. After the last stage
        of a list the fraction no longer changes.
    factor
        The factor, finite, > 1.

    Returns
    -------
    Pacing
        ``pacing(t) = start * factor**((t - 1) // every)``, at most 1. For a list, the exponent is the number of
        completed stages.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: the fixed and the varied exponential pacing of Hacohen and Weinshall 2019.

    Examples
    --------
    >>> from adaptk.curriculum import pacing
    >>> share = pacing.exponential(0.25, every=2)
    >>> [share(t) for t in range(1, 7)]
    [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    >>> share = pacing.exponential(0.25, every=[1, 3])
    >>> [share(t) for t in range(1, 7)]
    [0.25, 0.5, 0.5, 0.5, 1.0, 1.0]
    """
    stages: int | tuple[int, ...]
    if isinstance(every, Sequence) and not isinstance(every, (str, bytes)):
        if not every:
            raise ValueError("every: an empty list, expected a number of steps for each stage")
        stages = tuple(count(f"every[{i}]", n, 1) for i, n in enumerate(every))
    else:
        stages = count("every", every, 1)  # type: ignore[arg-type]  # anything else is refused there
    grow = number("factor", factor)
    if grow <= 1.0:
        raise ValueError(f"factor must be > 1, got {grow:g}")
    return _Exponential(_start(start), stages, grow)


def step(start: SupportsFloat, *, total: SupportsIndex) -> Pacing:
    """Use a part of the data at first, and then all data.

    Parameters
    ----------
    start
        Fraction in the first ``total`` steps, in (0, 1].
    total
        Number of steps with this fraction, >= 1.

    Returns
    -------
    Pacing
        ``pacing(t) = start`` for ``t <= total``, and 1 from then on.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: Bengio et al. 2009; the single-step pacing of Hacohen and Weinshall 2019.

    Examples
    --------
    >>> from adaptk.curriculum import pacing
    >>> share = pacing.step(0.3, total=2)
    >>> [share(t) for t in range(1, 5)]
    [0.3, 0.3, 1.0, 1.0]
    """
    return _Step(_start(start), count("total", total, 1))


if not TYPE_CHECKING:
    for _name in __all__[1:]:
        globals()[_name] = known_names_only(globals()[_name], {})
    __getattr__, __dir__ = face(__name__, __all__)
