"""Learning-rate schedules: plain functions of the step number.

A schedule is called with the number ``t`` of the next step, counted from 1 like the ``step=`` argument of
``adaptk.ops``, and returns the learning rate of that step as a float. Pass it instead of a learning rate::

    adaptk.Adam(params, lr=adaptk.schedules.cosine(1e-3, total=1000, warmup=100))

PyTorch's ``LambdaLR``, optax and others count from 0. Give them :meth:`Schedule.from_zero`, the same schedule for steps
``0, 1, 2, ...``::

    opt = torch.optim.SGD(model.parameters(), lr=1.0)  # LambdaLR multiplies this rate
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, schedule.from_zero())

    optax.sgd(schedule.from_zero())
    optax.inject_hyperparams(optax.sgd)(learning_rate=schedule.from_zero())

At steps ``1, 2, 3, ...`` a schedule returns the rates that the corresponding scheduler in ``torch.optim.lr_scheduler``
or ``optax`` has at ``0, 1, 2, ...``.

Every schedule

- depends only on ``t``: it has no state, may be shared between param groups, and needs nothing to resume;
- accepts any integer ``t >= 1`` (NumPy integers and floats with an integral value too). Other numbers raise
  ``ValueError``, anything else ``TypeError``. Under ``jax.jit`` a traced ``t`` is accepted too: the rate is then
  computed by a callback to the host, and is an array of JAX's default float type;
- keeps its last value after its end;
- is immutable, compares by value, can be pickled, and has the call that makes it as its ``repr``.

Rates are finite and >= 0. Arguments of the wrong type raise ``TypeError``, and arguments out of range ``ValueError``,
when the schedule is made. The message names the argument.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias, cast

from adaptk._names import face, known_names_only
from adaptk._numbers import count as _count
from adaptk._numbers import number as _number

__all__ = [
    "Schedule",
    "chained",
    "constant",
    "cosine",
    "exponential",
    "inverse_time",
    "one_cycle",
    "polynomial",
    "step_decay",
    "warmup",
]

Rate: TypeAlias = float | Callable[[int], float]


def step_number(t: SupportsIndex | float) -> int:
    if isinstance(t, Real) and not hasattr(t, "__index__"):
        x = float(t)
        if not x.is_integer():  # NaN and the infinities are not
            raise ValueError(f"t must be the number of a step, an integer >= 1, got {t!r}")
        return step_number(int(x))
    if hasattr(t, "__index__") and not isinstance(t, bool) and operator.index(t) == 0:
        raise ValueError(
            "t: steps count from 1, got 0; for a caller that counts from 0, such as torch's LambdaLR or optax, use "
            "schedule.from_zero()"
        )
    return _count("t", cast(SupportsIndex, t), 1)


def _is_traced(t: Any) -> bool:
    core = sys.modules.get("jax.core")
    return core is not None and isinstance(t, core.Tracer)


def _traced(function: Callable[[Any], float], t: Any) -> Any:
    """The rate of a step whose number is traced by JAX: a callback to the host computes it."""
    import jax
    import numpy as np

    dtype = jax.numpy.result_type(float)
    struct: Any = jax.ShapeDtypeStruct

    def rates(counts: Any) -> Any:
        steps = np.asarray(counts)
        return np.array([function(n) for n in steps.ravel().tolist()], dtype).reshape(steps.shape)

    return jax.pure_callback(rates, struct(t.shape, dtype), t, vmap_method="expand_dims")


def _rate(name: str, rate: Rate) -> Callable[[int], float]:
    """A function of the step, from a schedule, another function or a constant rate."""
    refuse_from_zero(name, rate)
    if callable(rate):
        return rate
    return _Constant(_number(name, rate))


@dataclass(frozen=True)
class Schedule:
    """The type that all functions of this module return: an immutable ``schedule(t) -> float``."""

    def __call__(self, t: SupportsIndex | float) -> float:
        """The learning rate of step ``t``, counted from 1."""
        if _is_traced(t):
            return cast(float, _traced(self, t))
        return self._at(step_number(t))

    def from_zero(self) -> FromZero:
        """This schedule for a caller that counts from 0: ``schedule.from_zero()(n) == schedule(n + 1)``.

        For PyTorch's ``LambdaLR``, optax's optimizers and ``inject_hyperparams``, also under ``jax.jit``. Optimizers of
        adaptk count from 1 and refuse it.

        Returns
        -------
        callable
            A function of the number of steps taken so far. It can be pickled, and has no state that a PyTorch scheduler
            would save.

        Examples
        --------
        >>> from adaptk import schedules
        >>> rate = schedules.step_decay(1.0, every=2, gamma=0.5).from_zero()
        >>> [rate(n) for n in range(4)]
        [1.0, 1.0, 0.5, 0.5]
        """
        return FromZero(self)

    def _at(self, t: int) -> float:
        raise NotImplementedError

    def __repr__(self) -> str:
        head, *options = [(f.name, getattr(self, f.name)) for f in fields(self)]
        arguments = [repr(head[1]), *(f"{name}={value!r}" for name, value in options)]
        factory = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__.lstrip("_")).lower()
        return f"{factory}({', '.join(arguments)})"


class FromZero:
    """A schedule that counts from 0, as :meth:`Schedule.from_zero` returns it."""

    # LambdaLR saves the __dict__ of a callable object. It stays empty, so that the saved state is plain data.
    __slots__ = ("__dict__", "schedule")

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, n: SupportsIndex | float) -> float:
        """The learning rate after ``n`` steps, that of step ``n + 1``."""
        if _is_traced(n):
            return cast(float, _traced(self, n))
        if isinstance(n, Real) and not hasattr(n, "__index__"):
            if not float(n).is_integer():
                raise ValueError(f"n must be a number of steps, an integer >= 0, got {n!r}")
            n = int(n)
        return self.schedule(_count("n", cast(SupportsIndex, n), 0) + 1)

    def __eq__(self, other: object) -> bool:
        return self.schedule == other.schedule if isinstance(other, FromZero) else NotImplemented

    def __hash__(self) -> int:
        return hash((FromZero, self.schedule))

    def __reduce__(self) -> Any:
        return FromZero, (self.schedule,)

    def __repr__(self) -> str:
        return f"{self.schedule!r}.from_zero()"


def refuse_from_zero(name: str, rate: object) -> None:
    """Refuse a schedule that counts from 0, for uses that count from 1."""
    if isinstance(rate, FromZero):
        raise TypeError(
            f"{name}: this schedule counts from 0, and steps count from 1 here; give it without from_zero()"
        )


# repr=False keeps the repr of the base class, which prints the call of the factory.
@dataclass(frozen=True, repr=False)
class _Constant(Schedule):
    lr: float

    def _at(self, t: int) -> float:
        return self.lr


@dataclass(frozen=True, repr=False)
class _StepDecay(Schedule):
    lr: float
    every: int
    gamma: float

    def _at(self, t: int) -> float:
        return _scaled(self.lr, self.gamma, (t - 1) // self.every, t)


@dataclass(frozen=True, repr=False)
class _Exponential(Schedule):
    lr: float
    gamma: float

    def _at(self, t: int) -> float:
        return _scaled(self.lr, self.gamma, t - 1, t)


def _scaled(lr: float, gamma: float, n: int, t: int) -> float:
    try:
        rate = float(lr * gamma**n)
    except OverflowError:
        rate = math.inf
    if rate == math.inf:
        raise OverflowError(f"the learning rate {lr!r} * {gamma!r}**{n} of step {t} is too large for a float")
    return rate


@dataclass(frozen=True, repr=False)
class _InverseTime(Schedule):
    lr: float
    decay: float
    every: int
    staircase: bool

    def _at(self, t: int) -> float:
        age = (t - 1) // self.every if self.staircase else (t - 1) / self.every
        return self.lr / (1.0 + self.decay * age)


@dataclass(frozen=True, repr=False)
class _Polynomial(Schedule):
    lr: float
    total: int
    power: float
    end: float

    def _at(self, t: int) -> float:
        if t == 1:  # because (lr - end) + end may be rounded
            return self.lr
        left = 1.0 - min(t - 1, self.total) / self.total
        return (self.lr - self.end) * math.pow(left, self.power) + self.end


@dataclass(frozen=True, repr=False)
class _Cosine(Schedule):
    lr: float
    total: int
    warmup: int
    end: float

    def _at(self, t: int) -> float:
        if t <= self.warmup:
            return self.lr * t / self.warmup
        past = min(t - 1, self.total) - self.warmup
        if past == 0:  # because end + (lr - end) may be rounded
            return self.lr
        return self.end + (self.lr - self.end) * (1.0 + math.cos(math.pi * past / (self.total - self.warmup))) / 2.0


@dataclass(frozen=True, repr=False)
class _OneCycle(Schedule):
    max_lr: float
    total: int
    pct_start: float
    div_factor: float
    final_div_factor: float
    anneal: Literal["cos", "linear"]
    three_phase: bool

    def _at(self, t: int) -> float:
        initial = self.max_lr / self.div_factor
        final = initial / self.final_div_factor
        last = self.total - 1
        peak = self.pct_start * self.total - 1.0
        # Positions with their rates. A position may be fractional or lie before the first step.
        points = [(0.0, initial), (peak, self.max_lr), (float(last), final)]
        if self.three_phase:
            points.insert(2, (2.0 * peak, initial))
        position = min(t - 1, last)
        (start, low), (end, high) = next(phase for phase in pairwise(points) if position <= phase[1][0])
        share = (position - start) / (end - start) if end > start else 1.0
        if self.anneal == "linear":
            return (high - low) * share + low
        return high + (low - high) / 2.0 * (math.cos(math.pi * share) + 1.0)


@dataclass(frozen=True, repr=False)
class _Warmup(Schedule):
    schedule: Callable[[int], float]
    steps: int
    start: float

    def _at(self, t: int) -> float:
        if t > self.steps:
            return float(self.schedule(t - self.steps))
        peak = float(self.schedule(1))
        # The same operations as in cosine(warmup=...), so that both have the same bits.
        return peak * t / self.steps if self.start == 0.0 else self.start + (peak - self.start) * t / self.steps


@dataclass(frozen=True, repr=False)
class _Chained(Schedule):
    pieces: tuple[tuple[Callable[[int], float], int], ...]
    last: Callable[[int], float]

    def _at(self, t: int) -> float:
        for schedule, steps in self.pieces:
            if t <= steps:
                return float(schedule(t))
            t -= steps
        return float(self.last(t))

    def __repr__(self) -> str:
        return f"chained({[*self.pieces, self.last]!r})"


def constant(lr: float) -> Schedule:
    """The same rate at every step.

    Parameters
    ----------
    lr
        The learning rate, finite, >= 0.

    Returns
    -------
    Schedule
        ``schedule(t) = lr``.

    Raises
    ------
    TypeError, ValueError
        ``lr`` is not a number, or out of range.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedules.constant(0.1)(1000)
    0.1
    """
    return _Constant(_number("lr", lr))


def step_decay(lr: float, *, every: int, gamma: float = 0.1) -> Schedule:
    """Multiply the rate by ``gamma`` every ``every`` steps.

    Parameters
    ----------
    lr
        Rate of the first ``every`` steps, finite, >= 0.
    every
        Number of steps between two changes, >= 1.
    gamma
        The factor, finite, >= 0.

    Returns
    -------
    Schedule
        ``schedule(t) = lr * gamma**((t - 1) // every)``. It has no end.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.
    OverflowError
        When called, if ``gamma > 1`` makes the rate larger than the largest float.

    Notes
    -----
    Source: ``torch.optim.lr_scheduler.StepLR``.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedule = schedules.step_decay(1.0, every=2, gamma=0.5)
    >>> [schedule(t) for t in range(1, 6)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return _StepDecay(_number("lr", lr), _count("every", every, 1), _number("gamma", gamma))


def exponential(lr: float, *, gamma: float) -> Schedule:
    """Multiply the rate by ``gamma`` after each step.

    Parameters
    ----------
    lr
        Rate of the first step, finite, >= 0.
    gamma
        The factor, finite, >= 0. Above 1 the rate grows, which a search for the largest usable rate needs.

    Returns
    -------
    Schedule
        ``schedule(t) = lr * gamma**(t - 1)``. It has no end.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.
    OverflowError
        When called, if ``gamma > 1`` makes the rate larger than the largest float.

    Notes
    -----
    Source: ``torch.optim.lr_scheduler.ExponentialLR``.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedule = schedules.exponential(1.0, gamma=0.5)
    >>> [schedule(t) for t in (1, 2, 3)]
    [1.0, 0.5, 0.25]
    """
    return _Exponential(_number("lr", lr), _number("gamma", gamma))


def inverse_time(lr: float, *, decay: float, every: int = 1, staircase: bool = False) -> Schedule:
    """Decay the rate in inverse proportion to the number of steps.

    Parameters
    ----------
    lr
        Rate of the first step, finite, >= 0.
    decay
        How much the denominator grows in ``every`` steps, finite, >= 0.
    every
        Number of steps that ``decay`` refers to, >= 1.
    staircase
        Change the rate only every ``every`` steps.

    Returns
    -------
    Schedule
        ``schedule(t) = lr / (1 + decay * (t - 1) / every)``; with ``staircase``, ``(t - 1) / every`` is rounded down.
        It has no end.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: Robbins and Monro 1951, whose conditions this rate meets; ``keras.optimizers.schedules.InverseTimeDecay``.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedule = schedules.inverse_time(1.0, decay=1.0, every=2)
    >>> [schedule(t) for t in (1, 3, 5, 7)]
    [1.0, 0.5, 0.3333333333333333, 0.25]
    """
    return _InverseTime(_number("lr", lr), _number("decay", decay), _count("every", every, 1), bool(staircase))


def polynomial(lr: float, *, total: int, power: float = 1.0, end: float = 0.0) -> Schedule:
    """From ``lr`` to ``end`` along a power of the fraction of remaining steps; ``power=1`` is linear.

    Parameters
    ----------
    lr
        Rate of the first step, finite, >= 0.
    total
        Number of steps of the decay, >= 1: step ``total + 1`` is the first with the rate ``end``.
    power
        The exponent, finite, > 0.
    end
        The last rate, finite, >= 0.

    Returns
    -------
    Schedule
        ``schedule(t) = (lr - end) * (1 - (t - 1) / total)**power + end``, and ``end`` for ``t > total``.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: ``optax.polynomial_schedule``; ``torch.optim.lr_scheduler.PolynomialLR`` if ``end`` is 0.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedule = schedules.polynomial(1.0, total=4)
    >>> [schedule(t) for t in range(1, 7)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    return _Polynomial(
        _number("lr", lr), _count("total", total, 1), _number("power", power, open_low=True), _number("end", end)
    )


def cosine(lr: float, *, total: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """From ``lr`` to ``end`` along half a period of a cosine, after an optional linear ramp up to ``lr``.

    Parameters
    ----------
    lr
        The largest rate, finite, >= 0.
    total
        Number of steps including the warmup, > ``warmup``: step ``total + 1`` is the first with the rate ``end``.
    warmup
        Number of steps of the ramp, >= 0. Its first step has the rate ``lr / warmup``, its last step ``lr``.
    end
        The last rate, finite, >= 0.

    Returns
    -------
    Schedule
        ``schedule(t) = lr * t / warmup`` for ``t <= warmup``, then
        ``end + (lr - end) * (1 + cos(pi * (t - 1 - warmup) / (total - warmup))) / 2``, and ``end`` for ``t > total``.
        The same as ``warmup(cosine(lr, total=total - warmup, end=end), steps=warmup)``.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: Loshchilov and Hutter 2017, without restarts; ``torch.optim.lr_scheduler.CosineAnnealingLR``,
    ``optax.warmup_cosine_decay_schedule``. The ramp is the same as in torch's
    ``SequentialLR([LinearLR(start_factor=1 / warmup, total_iters=warmup - 1), CosineAnnealingLR(...)])``: no step has
    the rate 0, unlike in optax with ``init_value=0``.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedule = schedules.cosine(1.0, total=6, warmup=2)
    >>> [round(schedule(t), 3) for t in range(1, 9)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    total, warmup = _count("total", total, 1), _count("warmup", warmup, 0)
    if warmup >= total:
        raise ValueError(f"total must be > warmup, whose steps it includes, got total={total} and warmup={warmup}")
    return _Cosine(_number("lr", lr), total, warmup, _number("end", end))


def one_cycle(
    max_lr: float,
    *,
    total: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal: Literal["cos", "linear"] = "cos",
    three_phase: bool = False,
) -> Schedule:
    """Up from a small rate to ``max_lr``, then down to a much smaller one.

    Parameters
    ----------
    max_lr
        The largest rate, finite, >= 0.
    total
        Number of steps, >= 1: step ``total`` has the last rate.
    pct_start
        Fraction of the steps in which the rate rises, in [0, 1]; in [0, 0.5] with ``three_phase``.
    div_factor
        The first rate is ``max_lr / div_factor``; finite, > 0.
    final_div_factor
        The last rate is the first one divided by this; finite, > 0.
    anneal
        ``"cos"`` or ``"linear"``: the shape of the curve between two rates.
    three_phase
        Fall to the first rate in as many steps as the rise took, and only then to the last rate.

    Returns
    -------
    Schedule
        With ``x = t - 1``, the rate goes from ``max_lr / div_factor`` at ``x = 0`` to ``max_lr`` at
        ``peak = pct_start * total - 1`` and to ``max_lr / div_factor / final_div_factor`` at ``total - 1``; with
        ``three_phase`` it passes through ``max_lr / div_factor`` at ``2 * peak``. Between two of these points
        ``(a, r), (b, s)`` it is ``s + (r - s) / 2 * (1 + cos(pi * (x - a) / (b - a)))``, or a straight line. For
        ``t > total`` the rate stays at its last value.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: Smith and Topin 2018; ``torch.optim.lr_scheduler.OneCycleLR`` without the cycle of the momentum.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedule = schedules.one_cycle(1.0, total=10, anneal="linear")
    >>> [round(schedule(t), 3) for t in (1, 2, 3, 4, 9, 10, 11)]
    [0.04, 0.52, 1.0, 0.857, 0.143, 0.0, 0.0]
    """
    if anneal not in ("cos", "linear"):
        raise ValueError(f"anneal must be 'cos' or 'linear', got {anneal!r}")
    return _OneCycle(
        _number("max_lr", max_lr),
        _count("total", total, 1),
        _number("pct_start", pct_start, high=0.5 if three_phase else 1.0),
        _number("div_factor", div_factor, open_low=True),
        _number("final_div_factor", final_div_factor, open_low=True),
        anneal,
        bool(three_phase),
    )


def warmup(schedule_or_lr: Rate, *, steps: int, start: float = 0.0) -> Schedule:
    """A linear ramp to the first rate of a schedule, and then the schedule.

    Parameters
    ----------
    schedule_or_lr
        What follows the ramp: a schedule, any other function of the step (counted from 1), or a constant rate.
    steps
        Number of steps of the ramp, >= 0; 0 means no ramp.
    start
        The rate at step 0, before the ramp, finite, >= 0. The first step already has the rate
        ``start + (peak - start) / steps``, which is not 0.

    Returns
    -------
    Schedule
        ``schedule(t) = start + (peak - start) * t / steps`` for ``t <= steps``, where ``peak`` is the rate of the
        wrapped schedule at its step 1. Step ``steps`` has the rate ``peak``. For ``t > steps`` it is the wrapped
        schedule, from its step 1 on: ``wrapped(t - steps)``.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    Source: Goyal et al. 2017. The wrapped schedule counts its own steps. So its ``total`` does not include the steps of
    the ramp, unlike the ``total`` of ``cosine(..., warmup=...)``.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedule = schedules.warmup(schedules.step_decay(1.0, every=2, gamma=0.5), steps=4)
    >>> [schedule(t) for t in range(1, 10)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return _Warmup(_rate("schedule_or_lr", schedule_or_lr), _count("steps", steps, 0), _number("start", start))


def chained(pieces: Sequence[tuple[Rate, int] | Rate]) -> Schedule:
    """One schedule after another.

    Parameters
    ----------
    pieces
        ``[(schedule, steps), ..., last]``. Each pair is used for its number of steps, >= 1, and ``last``, without a
        number of steps, for all later steps. Each schedule may also be any other function of the step (counted from 1),
        or a constant rate.

    Returns
    -------
    Schedule
        The pieces one after another; each piece counts its own steps from 1.

    Raises
    ------
    TypeError, ValueError
        ``pieces`` is empty or has another structure, or an item is of the wrong type or out of range.

    Notes
    -----
    Source: ``torch.optim.lr_scheduler.SequentialLR``, ``optax.join_schedules``; their boundaries are cumulative sums of
    ``steps``.

    Examples
    --------
    >>> from adaptk import schedules
    >>> schedule = schedules.chained([(schedules.constant(1.0), 2), (schedules.exponential(0.5, gamma=0.5), 2), 0.125])
    >>> [schedule(t) for t in range(1, 7)]
    [1.0, 1.0, 0.5, 0.25, 0.125, 0.125]
    """
    wanted = "pieces must be a list [(schedule, steps), ..., last_schedule]"
    if not isinstance(pieces, Sequence) or isinstance(pieces, (str, bytes)):
        raise TypeError(f"{wanted}, got {pieces!r} ({type(pieces).__name__})")
    if not pieces:
        raise ValueError(f"{wanted}, got an empty one")
    *first, last = pieces
    if isinstance(last, (tuple, list)):
        raise TypeError(f"{wanted}: the last one stands alone, without a number of steps, got {last!r}")
    pairs = []
    for i, piece in enumerate(first):
        if not isinstance(piece, (tuple, list)) or len(piece) != 2:
            raise TypeError(f"{wanted}: pieces[{i}] must be a pair (schedule, steps), got {piece!r}")
        pairs.append((_rate(f"pieces[{i}][0]", piece[0]), _count(f"pieces[{i}][1]", piece[1], 1)))
    return _Chained(tuple(pairs), _rate(f"pieces[{len(first)}]", last))


def _one_by_position(factory: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """A factory whose error for a second positional argument names the argument."""
    first, *others = inspect.signature(factory).parameters

    @wraps(factory)
    def checked(*args: Any, **kwargs: Any) -> Schedule:
        if len(args) > 1:
            name = factory.__name__
            remedy = f"; give the others by name: {name}({first}, {others[0]}={args[1]!r})" if others else ""
            raise TypeError(f"{name}() accepts {first} by position and {len(args) - 1} more were given{remedy}")
        return factory(*args, **kwargs)

    return checked


if not TYPE_CHECKING:
    for _name in __all__[1:]:
        globals()[_name] = _one_by_position(known_names_only(globals()[_name], {}))
    __getattr__, __dir__ = face(__name__, __all__)
