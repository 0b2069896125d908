"""The solvers beside SciPy's: all figures are ratios within one run, the sides take turns, and medians are compared.

``python bench/solve.py [--repeats N] [--quick] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk import _nist, _solve, solve
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import least_squares


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(repeats: int, *works: Callable[[], Any]) -> list[float]:
    """Median seconds of each."""
    times = [[seconds(work) for work in works] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


class Timed:
    """A function that adds up the time that its calls take."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.total = 0.0

    def __call__(self, x: Any) -> Any:
        start = time.perf_counter()
        value = self.function(x)
        self.total += time.perf_counter() - start
        return value


def outside(fit: Callable[[Any, Any], Any], problem: _nist.Problem) -> float:
    """Seconds of a fit that are not in the problem's own functions."""
    f, j = Timed(problem.residuals), Timed(problem.jacobian)
    total = seconds(lambda: fit(f, j))
    return total - f.total - j.total


def nist(repeats: int) -> dict[str, Any]:
    ours, theirs = [], []
    for _ in range(repeats):
        sums = [0.0, 0.0]
        for p in _nist.problems().values():
            for start in p.starts:
                sums[0] += outside(lambda f, j, x=start: solve.levenberg_marquardt(f, x, jac=j), p)
                try:
                    sums[1] += outside(lambda f, j, x=start: least_squares(f, x, jac=j, method="lm"), p)
                except ValueError:  # a Jacobian that is not finite: no time of SciPy's counts
                    continue
        ours.append(sums[0])
        theirs.append(sums[1])
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"overhead of the 54 NIST runs, least_squares(method='lm') / ours: {b / a:.1f} "
        f"({b * 1e3:.0f} / {a * 1e3:.0f} ms)"
    )
    fits = _nist.fits(peer=True)
    print(_nist.summary(fits))
    reached = {"ours": [d for fit in fits for d in fit.digits], "scipy": [d for fit in fits for d in fit.scipy or ()]}
    return {"ratio": b / a, "digits": reached}


def small(repeats: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    print("fits of small problems, least_squares(method='lm') / ours, by the same functions:")
    for m in (10, 50):
        t = np.linspace(0, 1, m)
        noise = 0.01 * rng.normal(size=m)

        def decay(p: Any, t: Any = t) -> Any:
            return p[0] * np.exp(-p[1] * t)

        def slope(p: Any, t: Any = t) -> Any:
            out = np.empty((len(t), 2))
            np.exp(-p[1] * t, out=out[:, 0])
            out[:, 1] = -p[0] * t * out[:, 0]
            return out

        y = decay([2.0, 3.0]) + noise
        residuals = lambda p, f=decay, y=y: f(p) - y  # noqa: E731
        for name, jac in (("exact Jacobian", slope), ("differences", None)):
            x0 = np.array([1.0, 1.0])
            a, b, c = in_turn(
                repeats * 5,
                lambda f=residuals, j=jac, x=x0: [solve.levenberg_marquardt(f, x, jac=j) for _ in range(20)],
                lambda f=residuals, j=jac, x=x0: [
                    least_squares(f, x, jac=j or "2-point", method="lm") for _ in range(20)
                ],
                lambda f=residuals, j=jac, x=x0: [least_squares(f, x, jac=j or "2-point") for _ in range(20)],
            )
            found.append({"m": m, "jacobian": name, "ratio": b / a, "default_ratio": c / a})
            print(
                f"  n = 2, m = {m}, {name}: {b / a:.1f} ({b / 20 * 1e6:.0f} / {a / 20 * 1e6:.0f} us); "
                f"its default method / ours: {c / a:.1f}"
            )
    few = [p for p in _nist.problems().values() if len(p.certified) <= 5 and p.residuals(p.starts[0]).size <= 50]
    for exact in (True, False):
        pairs = []
        for p in few:
            for x in p.starts:
                f, j = p.residuals, p.jacobian if exact else None
                try:
                    least_squares(f, x, jac=j or "2-point", method="lm")
                except ValueError:
                    continue
                pairs.append(
                    in_turn(
                        repeats,
                        lambda f=f, j=j, x=x: solve.levenberg_marquardt(f, x, jac=j),
                        lambda f=f, j=j, x=x: least_squares(f, x, jac=j or "2-point", method="lm"),
                    )
                )
        ratios = [b / a for a, b in pairs]
        print(
            f"  the {len(pairs)} NIST runs with n <= 5, m <= 50, {'exact Jacobians' if exact else 'differences'}: "
            f"{sum(b for _, b in pairs) / sum(a for a, _ in pairs):.1f} in all, median {statistics.median(ratios):.1f}"
        )
    return found


def newton_step(repeats: int, orders: tuple[int, ...]) -> dict[int, float]:
    rng = np.random.default_rng(0)
    found = {}
    for n in orders:
        a = rng.normal(size=(n, n))
        a = a @ a.T / n + np.eye(n)
        b = rng.normal(size=n)
        ours, theirs = in_turn(
            repeats * 3, lambda a=a, b=b: _solve.cholesky_solve(a, b), lambda a=a, b=b: cho_solve(cho_factor(a), b)
        )
        found[n] = theirs / ours
        print(
            f"Newton step, n = {n}, {adaptk.get_num_threads()} threads: "
            f"ours / cho_factor + cho_solve {ours / theirs:.2f} ({ours * 1e3:.1f} / {theirs * 1e3:.1f} ms)"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat, small systems: figures that mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios, SciPy's time / ours")
    options = parser.parse_args()
    repeats, orders = (1, (50,)) if options.quick else (options.repeats, (200, 1000, 2000))
    report: dict[str, Any] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        report["nist"] = nist(repeats)
        report["small"] = small(repeats)
    report["newton"] = newton_step(repeats, orders)
    if options.json:
        options.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
