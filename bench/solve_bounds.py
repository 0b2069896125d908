"""Minimisation within bounds: evaluations until the minimum, by our methods and by SciPy's.

``python bench/solve_bounds.py [--digits 6]``

For each problem and method: the number of calls of the value (which the methods make together with the gradient, or
nearly so) until a point has the digits of the lowest value that any method found, relative to the value at the start.
A dash: not reached. Derivatives are exact to rounding, from complex steps, and not counted. Hessians are given to
newton (also as products, by hessp) and trust-constr. Only points within the bounds count: trust-constr evaluates others
too. The counts do not depend on the machine.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from adaptk import solve

Array = Any
inf = np.inf


def rosenbrock(x: Array) -> Any:
    return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def wood(x: Array) -> Any:
    a, b, c, d = x
    return (
        100 * (b - a * a) ** 2
        + (1 - a) ** 2
        + 90 * (d - c * c) ** 2
        + (1 - c) ** 2
        + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2)
        + 19.8 * (b - 1) * (d - 1)
    )


def hs5(x: Array) -> Any:
    return np.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1


def hs25(x: Array) -> Any:
    i = np.arange(1, 100)
    u = 25 + (-50 * np.log(0.01 * i)) ** (2 / 3)
    return np.sum((np.exp(-((u - x[1]) ** x[2]) / x[0]) - 0.01 * i) ** 2)


def hs110(x: Array) -> Any:
    return np.sum(np.log(x - 2) ** 2 + np.log(10 - x) ** 2) - np.prod(x) ** 0.2


def quadratic(n: int, condition: float, seed: int) -> tuple[Callable[[Array], Any], Array, Array, Array]:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    a = (q * np.geomspace(1, condition, n)) @ q.T
    b = a @ rng.normal(size=n)
    return (lambda x: np.sum(x * (a @ x)) / 2 - np.sum(b * x)), np.full(n, -0.5), np.full(n, 0.5), np.zeros(n)


def obstacle(n: int) -> tuple[Callable[[Array], Any], Array, Array, Array]:
    """A string over an obstacle, with a load: the discrete energy."""
    t = np.linspace(0, 1, n + 2)[1:-1]

    def energy(x: Array) -> Any:
        full = np.concatenate([[0], x, [0]])
        return (n + 1) / 2 * np.sum(np.diff(full) ** 2) + 10 * np.sum(x) / (n + 1)

    low = 0.3 - 4 * (t - 0.5) ** 2
    return energy, low, np.full(n, inf), np.maximum(low, 0.0)


def logistic(n: int, seed: int) -> tuple[Callable[[Array], Any], Array, Array, Array]:
    """Logistic regression with weights that must not be negative."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(20 * n, n))
    label = np.where(rows @ rng.normal(size=n) + rng.normal(size=20 * n) > 0, 1.0, -1.0)
    return (
        (lambda x: np.sum(np.log(1 + np.exp(-label * (rows @ x)))) + np.sum(x * x) / 100),
        np.zeros(n),
        np.full(n, inf),
        np.full(n, 0.5),
    )


def pair(low: Any, high: Any, x0: Any) -> tuple[Array, Array, Array]:
    start = np.array(x0, dtype=float)
    return np.broadcast_to(low, start.shape) * 1.0, np.broadcast_to(high, start.shape) * 1.0, start


PROBLEMS: dict[str, tuple[Callable[[Array], Any], Array, Array, Array]] = {
    "Hock-Schittkowski 1": (rosenbrock, *pair([-inf, -1.5], inf, [-2, 1])),
    "Hock-Schittkowski 2": (rosenbrock, *pair([-inf, 1.5], inf, [2, 3])),
    "Hock-Schittkowski 3": (lambda x: x[1] + 1e-5 * (x[1] - x[0]) ** 2, *pair([-inf, 0], inf, [10, 1])),
    "Hock-Schittkowski 4": (lambda x: (x[0] + 1) ** 3 / 3 + x[1], *pair([1, 0], inf, [1.125, 0.125])),
    "Hock-Schittkowski 5": (hs5, *pair([-1.5, -3], [4, 3], [0, 0])),
    "Hock-Schittkowski 25": (hs25, *pair([0.1, 0, 0], [100, 25.6, 5], [60, 22, 1.4])),
    "Hock-Schittkowski 38": (wood, *pair(-10, 10, [-3, -1, -3, -1])),
    "Hock-Schittkowski 45": (lambda x: 2 - np.prod(x) / 120, *pair(0, [1, 2, 3, 4, 5], [1, 2, 2, 2, 2])),
    "Hock-Schittkowski 110": (hs110, *pair(2.001, 9.999, [9] * 10)),
    "Rosenbrock, a bound across the valley": (rosenbrock, *pair([-2, -2], [0.5, 2], [-1.2, 1])),
    "Rosenbrock": (
        rosenbrock,
        *pair(
            np.where(np.arange(25) % 2 == 0, 0.3, -inf),
            np.where(np.arange(25) % 3 == 0, 0.9, inf),
            np.clip(np.full(25, -1.2), np.where(np.arange(25) % 2 == 0, 0.3, -inf), inf),
        ),
    ),
    "Quadratic, condition 100": quadratic(50, 1e2, 0),
    "Quadratic, condition 1e6": quadratic(50, 1e6, 1),
    "String over an obstacle": obstacle(50),
    "Logistic, weights >= 0": logistic(20, 2),
}


class Counted:
    """Values, and the lowest so far within the bounds after each call."""

    def __init__(self, f: Callable[[Array], Any], low: Array, high: Array) -> None:
        self.f, self.low, self.high = f, low, high
        self.lowest: list[float] = []

    def __call__(self, x: Array) -> float:
        value = float(self.f(x))
        counts = ((x >= self.low) & (x <= self.high)).all() and not np.isnan(value)
        before = self.lowest[-1] if self.lowest else inf
        self.lowest.append(min(value, before) if counts else before)
        return value


def gradient_of(f: Callable[[Array], Any]) -> Callable[[Array], Array]:
    def g(x: Array) -> Array:
        return np.array([f(x + 1e-30j * e).imag / 1e-30 for e in np.eye(len(x))])

    return g


def hessian_of(g: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def h(x: Array) -> Array:
        step = 1e-5 * np.maximum(np.abs(x), 1e-2)
        rows = [(g(x + d * e) - g(x - d * e)) / (2 * d) for d, e in zip(step, np.eye(len(x)), strict=True)]
        return (np.array(rows) + np.array(rows).T) / 2

    return h


def runs(g: Any, h: Any, low: Array, high: Array, x0: Array) -> dict[str, Callable[[Counted], Any]]:
    from scipy import optimize

    box = optimize.Bounds(low, high)
    tight = {"L-BFGS-B": {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 20000, "maxfun": 20000}, "TNC": {"maxfun": 20000}}
    return {
        "newton": lambda c: solve.newton(c, x0, jac=g, hess=h, bounds=(low, high)),
        "newton, hessp": lambda c: solve.newton(c, x0, jac=g, hessp=lambda x, v: h(x) @ v, bounds=(low, high)),
        "conjugate_gradient": lambda c: solve.conjugate_gradient(c, x0, jac=g, bounds=(low, high)),
        "lbfgs": lambda c: solve.lbfgs(c, x0, jac=g, bounds=(low, high)),
        "L-BFGS-B": lambda c: optimize.minimize(c, x0, jac=g, method="L-BFGS-B", bounds=box, options=tight["L-BFGS-B"]),
        "TNC": lambda c: optimize.minimize(c, x0, jac=g, method="TNC", bounds=box, options=tight["TNC"]),
        "trust-constr": lambda c: optimize.minimize(
            c, x0, jac=g, hess=h, method="trust-constr", bounds=box, options={"maxiter": 2000, "gtol": 1e-10}
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--digits", type=int, default=6)
    digits = parser.parse_args().digits
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    header: list[str] = []
    for name, (f, low, high, x0) in PROBLEMS.items():
        g = gradient_of(f)
        h = hessian_of(g)
        counts: dict[str, list[float]] = {}
        for method, run in runs(g, h, low, high, x0).items():
            counted = Counted(f, low, high)
            run(counted)
            counts[method] = counted.lowest
        if not header:
            header = list(counts)
            print(f"| problem | n | {' | '.join(header)} |\n|---|{'---|' * (len(header) + 1)}")
        best, first = min(v[-1] for v in counts.values()), float(f(x0))
        target = best + 10.0**-digits * (first - best)
        cells = [str(1 + next((i for i, v in enumerate(counts[m]) if v <= target), -1) or "-") for m in header]
        print(f"| {name} | {len(x0)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
