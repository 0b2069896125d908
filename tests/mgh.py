"""The least-squares problems of More, Garbow and Hillstrom that MINPACK's driver runs, with their starts and minima.

Written from the formulas in J. J. More, B. S. Garbow and K. E. Hillstrom, Testing unconstrained optimization software,
ACM TOMS 7 (1981). Residuals take complex arguments, so that Jacobians by complex steps are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Problem:
    name: str
    n: int
    m: int
    residuals: Callable[[Array], Array]
    start: Array
    minimum: float  # of the sum of squares
    starts: int = 1  # times 1, 10, 100

    def jacobian(self, x: Array) -> Array:
        columns = []
        for k in range(self.n):
            z = x.astype(complex)
            h = 1e-30 * max(abs(x[k]), 1.0)
            z[k] += 1j * h
            columns.append(self.residuals(z).imag / h)
        return np.stack(columns, axis=1)


def linear_full_rank(m: int, n: int) -> Callable[[Array], Array]:
    def f(x: Array) -> Array:
        r = np.full(m, -2 * x.sum() / m - 1)
        r[:n] += x
        return r

    return f


def linear_rank_1(m: int, n: int) -> Callable[[Array], Array]:
    i, j = np.arange(1, m + 1), np.arange(1, n + 1)
    return lambda x: i * (j @ x) - 1


def linear_rank_1_zeros(m: int, n: int) -> Callable[[Array], Array]:
    i, j = np.arange(m), np.arange(1, n + 1)

    def f(x: Array) -> Array:
        r = i * (j[1:-1] @ x[1:-1]) - 1
        r[m - 1] = -1
        return r

    return f


def rosenbrock(x: Array) -> Array:
    return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def helical_valley(x: Array) -> Array:
    # The branch is by the sign of x1; arctan itself is analytic.
    turn = np.arctan(x[1] / x[0]) / (2 * np.pi) if x[0] != 0 else 0.25 * np.sign(x[1].real)
    if x[0].real < 0:
        turn = turn + 0.5
    radius = np.sqrt(x[0] ** 2 + x[1] ** 2)
    return np.array([10 * (x[2] - 10 * turn), 10 * (radius - 1), x[2]])


def powell_singular(x: Array) -> Array:
    return np.array([x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2])


def freudenstein_roth(x: Array) -> Array:
    return np.array([-13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1], -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]])


BARD = np.array([0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39])


def bard(x: Array) -> Array:
    u = np.arange(1, 16)
    v = 16 - u
    return BARD - (x[0] + u / (v * x[1] + np.minimum(u, v) * x[2]))


KOWALIK_Y = np.array([0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246])
KOWALIK_U = np.array([4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])


def kowalik_osborne(x: Array) -> Array:
    u = KOWALIK_U
    return KOWALIK_Y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


MEYER = np.array(
    [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872], float
)


def meyer(x: Array) -> Array:
    t = 45 + 5 * np.arange(1, 17)
    return x[0] * np.exp(x[1] / (t + x[2])) - MEYER


def watson(x: Array) -> Array:
    n = len(x)
    t = np.arange(1, 30)[:, None] / 29
    j = np.arange(n)
    value = (t**j) @ x
    slope = (j[1:] * t ** (j[1:] - 1)) @ x[1:]
    return np.concatenate([slope - value**2 - 1, [x[0], x[1] - x[0] ** 2 - 1]])


def box_3d(x: Array) -> Array:
    t = 0.1 * np.arange(1, 11)
    return np.exp(-t * x[0]) - np.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t))


def jennrich_sampson(x: Array) -> Array:
    i = np.arange(1, 11)
    return 2 + 2 * i - (np.exp(i * x[0]) + np.exp(i * x[1]))


def brown_dennis(x: Array) -> Array:
    t = np.arange(1, 21) / 5
    return (x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * np.sin(t) - np.cos(t)) ** 2


def chebyquad(m: int) -> Callable[[Array], Array]:
    def f(x: Array) -> Array:
        u = 2 * x - 1
        before, now = np.ones_like(u), u
        r = []
        for i in range(1, m + 1):
            integral = -1 / (i * i - 1) if i % 2 == 0 else 0.0
            r.append(now.mean() - integral)
            before, now = now, 2 * u * now - before
        return np.array(r)

    return f


def brown_almost_linear(x: Array) -> Array:
    n = len(x)
    r = x + x.sum() - (n + 1)
    r[-1] = np.prod(x) - 1
    return r


OSBORNE_1 = np.fromstring(
    "0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.850 0.818 0.784 0.751 0.718 0.685 0.658 0.628 0.603 0.580 0.558 0.538 "
    "0.522 0.506 0.490 0.478 0.467 0.457 0.448 0.438 0.431 0.424 0.420 0.414 0.411 0.406",
    sep=" ",
)


def osborne_1(x: Array) -> Array:
    t = 10 * np.arange(33)
    return OSBORNE_1 - (x[0] + x[1] * np.exp(-t * x[3]) + x[2] * np.exp(-t * x[4]))


OSBORNE_2 = np.fromstring(
    "1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608 0.655 0.616 0.606 0.602 0.626 0.651 "
    "0.724 0.649 0.649 0.694 0.644 0.624 0.661 0.612 0.558 0.533 0.495 0.500 0.423 0.395 0.375 0.372 0.391 0.396 0.405 "
    "0.428 0.429 0.523 0.562 0.607 0.653 0.672 0.708 0.633 0.668 0.645 0.632 0.591 0.559 0.597 0.625 0.739 0.710 0.729 "
    "0.720 0.636 0.581 0.428 0.292 0.162 0.098 0.054",
    sep=" ",
)


def osborne_2(x: Array) -> Array:
    t = np.arange(65) / 10
    return OSBORNE_2 - (
        x[0] * np.exp(-t * x[4])
        + x[1] * np.exp(-((t - x[8]) ** 2) * x[5])
        + x[2] * np.exp(-((t - x[9]) ** 2) * x[6])
        + x[3] * np.exp(-((t - x[10]) ** 2) * x[7])
    )


def _problems() -> Iterator[Problem]:
    for m in (10, 50):
        yield Problem("linear, full rank", 5, m, linear_full_rank(m, 5), np.ones(5), m - 5)
    for m in (10, 50):
        yield Problem("linear, rank 1", 5, m, linear_rank_1(m, 5), np.ones(5), m * (m - 1) / (2 * (2 * m + 1)))
    for m in (10, 50):
        minimum = (m * m + 3 * m - 6) / (2 * (2 * m - 3))
        yield Problem("linear, rank 1, zeros", 5, m, linear_rank_1_zeros(m, 5), np.ones(5), minimum)
    yield Problem("Rosenbrock", 2, 2, rosenbrock, np.array([-1.2, 1.0]), 0.0, 3)
    yield Problem("helical valley", 3, 3, helical_valley, np.array([-1.0, 0.0, 0.0]), 0.0, 3)
    yield Problem("Powell singular", 4, 4, powell_singular, np.array([3.0, -1.0, 0.0, 1.0]), 0.0, 3)
    yield Problem("Freudenstein and Roth", 2, 2, freudenstein_roth, np.array([0.5, -2.0]), 0.0, 3)
    yield Problem("Bard", 3, 15, bard, np.ones(3), 8.214877306578993e-3, 3)
    yield Problem("Kowalik and Osborne", 4, 11, kowalik_osborne, np.array([0.25, 0.39, 0.415, 0.39]), 3.0750560e-4, 3)
    yield Problem("Meyer", 3, 16, meyer, np.array([0.02, 4000.0, 250.0]), 87.9458551, 2)
    for n, minimum in ((6, 2.287670053e-3), (9, 1.399760138e-6), (12, 4.722381e-10)):
        yield Problem("Watson", n, 31, watson, np.zeros(n), minimum, 3)
    yield Problem("Box, three dimensions", 3, 10, box_3d, np.array([0.0, 10.0, 20.0]), 0.0, 1)
    yield Problem("Jennrich and Sampson", 2, 10, jennrich_sampson, np.array([0.3, 0.4]), 124.3621823, 1)
    yield Problem("Brown and Dennis", 4, 20, brown_dennis, np.array([25.0, 5.0, -5.0, -1.0]), 85822.20162, 3)
    for n, m, minimum, starts in (
        (1, 8, 3.5503912981, 3),
        (8, 8, 3.516873726e-3, 1),
        (9, 9, 0.0, 1),
        (10, 10, 4.772714e-3, 1),
    ):
        yield Problem("Chebyquad", n, m, chebyquad(m), np.arange(1, n + 1) / (n + 1), minimum, starts)
    for n, starts in ((10, 3), (30, 1), (40, 1)):
        yield Problem("Brown almost linear", n, n, brown_almost_linear, np.full(n, 0.5), 0.0, starts)
    yield Problem("Osborne 1", 5, 33, osborne_1, np.array([0.5, 1.5, -1.0, 0.01, 0.02]), 5.464894697e-5, 1)
    start = np.array([1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5])
    yield Problem("Osborne 2", 11, 65, osborne_2, start, 4.013773629e-2, 1)


PROBLEMS = list(_problems())


def runs() -> Iterator[tuple[Problem, Array]]:
    """MINPACK's 53 runs: a problem, and its start times 1, 10, 100."""
    for p in PROBLEMS:
        for factor in (1.0, 10.0, 100.0)[: p.starts]:
            # The driver replaces a start of zeros, which scaling does not change, by the factor itself.
            yield p, (p.start * factor if p.start.any() or factor == 1.0 else np.full(p.n, factor))


def reaches_minimum(p: Problem, x: Array) -> bool:
    with np.errstate(all="ignore"):
        f = float(np.sum(p.residuals(x) ** 2))
    return f <= p.minimum * (1 + 1e-6) + (1e-13 if p.minimum < 1e-9 else 1e-12)
