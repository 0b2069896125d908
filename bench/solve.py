"""The solvers compared with SciPy's. All figures are ratios of medians within one run; the sides are timed alternately.

``python bench/solve.py [--repeats N] [--quick] [--large | --quasi-newton] [--json FILE]``

``--large`` compares large problems only, and takes minutes, most of them in SciPy. ``--quasi-newton`` compares
``lbfgs`` only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk import _nist, _solve, solve
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import least_squares, minimize, rosen, rosen_der


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(repeats: int, *works: Callable[[], Any]) -> list[float]:
    """The median time of each call, in seconds."""
    times = [[seconds(work) for work in works] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


class Timed:
    """A function that adds up the time of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.total = 0.0
        self.calls = 0

    def __call__(self, x: Any) -> Any:
        start = time.perf_counter()
        value = self.function(x)
        self.total += time.perf_counter() - start
        self.calls += 1
        return value


def outside(fit: Callable[[Any, Any], Any], problem: _nist.Problem) -> float:
    """The time of a fit outside of the problem's own functions, in seconds."""
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
                except ValueError:  # a Jacobian that is not finite: there is no time of SciPy
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
            fit = solve.levenberg_marquardt(residuals, x0, jac=jac)

            def calls(f: Any = residuals, j: Any = jac, x: Any = x0, r: Any = fit) -> None:
                for _ in range(20):
                    for _ in range(r.nfev):
                        f(x)
                    for _ in range(r.njev if j else 0):
                        j(x)

            a, b, c, functions = in_turn(
                repeats * 5,
                lambda f=residuals, j=jac, x=x0: [solve.levenberg_marquardt(f, x, jac=j) for _ in range(20)],
                lambda f=residuals, j=jac, x=x0: [
                    least_squares(f, x, jac=j or "2-point", method="lm") for _ in range(20)
                ],
                lambda f=residuals, j=jac, x=x0: [least_squares(f, x, jac=j or "2-point") for _ in range(20)],
                calls,
            )
            own = (a - functions) / 20 * 1e6
            found.append({"m": m, "jacobian": name, "ratio": b / a, "default_ratio": c / a, "own_us": own})
            print(
                f"  n = 2, m = {m}, {name}: {b / a:.1f} ({b / 20 * 1e6:.0f} / {a / 20 * 1e6:.0f} us); "
                f"its default method / ours: {c / a:.1f}; ours without the calls of the functions {own:.1f} us"
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


def rosenbrock_hessian(x: Any) -> Any:
    h = np.zeros((len(x), len(x)))
    i = np.arange(len(x) - 1)
    h[i, i] = 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    h[i + 1, i + 1] += 200
    h[i, i + 1] = h[i + 1, i] = -400 * x[:-1]
    return h


def full_hessian(x: Any) -> Any:
    """The same matrix with elements in its corners, so that it is not banded."""
    h = rosenbrock_hessian(x)
    h[0, -1] = h[-1, 0] = 1e-300
    return h


def tall(m: int, n: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Residuals exp(A x) - y with noise, and their Jacobian."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(m, n)) / np.sqrt(n)
    y = np.exp(a @ rng.normal(size=n)) + 0.1 * rng.normal(size=m)
    return (lambda x: np.exp(a @ x) - y), (lambda x: np.exp(a @ x)[:, None] * a)


def large_fits(repeats: int, shapes: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    """Exact methods only: SciPy's tr_solver="lsmr" stops about 1e-6 from the minimum.

    Ours iterates to full precision, which takes two to four more Jacobians; SciPy stops at its tolerances of 1e-8. So
    ours is also run with these tolerances and without the polishing step: then the largest elements of the gradients
    are similar.
    """
    found = []
    alike = {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-8, "polish": False}
    for m, n in shapes:
        f, j = tall(m, n)
        x0 = np.zeros(n)
        methods = ("trf", "dogbox", "lm")
        ours, to_tolerance, *theirs = in_turn(
            repeats,
            lambda f=f, j=j, x0=x0: solve.levenberg_marquardt(f, x0, jac=j),
            lambda f=f, j=j, x0=x0: solve.levenberg_marquardt(f, x0, jac=j, **alike),
            *(
                lambda f=f, j=j, x0=x0, method=method: least_squares(
                    f, x0, jac=j, method=method, **({} if method == "lm" else {"tr_solver": "exact"})
                )
                for method in methods
            ),
        )
        ratios = {method: t / ours for method, t in zip(methods, theirs, strict=True)}
        same = {method: t / to_tolerance for method, t in zip(methods, theirs, strict=True)}
        found.append({"m": m, "n": n, "ours_s": ours, **ratios, "to_the_same_tolerance": same})
        for what, t, of in (("all digits", ours, ratios), ("SciPy's tolerances", to_tolerance, same)):
            print(
                f"least squares, m = {m}, n = {n}, to {what}: ours {t:.2f} s; least_squares / ours: "
                + ", ".join(f"{method} {ratio:.1f}" for method, ratio in of.items())
            )
    return found


def large_newton(repeats: int, n: int) -> dict[str, Any]:
    """Rosenbrock's function, with a tridiagonal and with a full Hessian.

    Compared are whole runs, and the time of a step with that of a factorisation of the full Hessian.
    """
    start = np.random.default_rng(0).uniform(0, 2, n)

    def theirs() -> None:
        minimize(rosen, start, jac=rosen_der, hess=rosenbrock_hessian, method="trust-exact", options={"gtol": 1e-8})

    a, full, b = in_turn(
        repeats,
        lambda: solve.newton(rosen, start, jac=rosen_der, hess=rosenbrock_hessian),
        lambda: solve.newton(rosen, start, jac=rosen_der, hess=full_hessian),
        theirs,
    )
    found: dict[str, Any] = {"n": n, "trust_exact": b / a, "trust_exact_full": b / full}
    print(
        f"newton, Rosenbrock n = {n} to the minimum: trust-exact / ours {b / a:.1f} ({b:.2f} / {a:.2f} s), "
        f"by a full Hessian {b / full:.1f} ({full:.2f} s)"
    )
    standard = np.ones(n)
    standard[::2] = -1.2
    for name, x0 in (("standard start", standard), ("random start", np.random.default_rng(0).normal(size=n) * 2)):
        steps, factors = [], []
        for _ in range(repeats):
            functions = [Timed(f) for f in (rosen, rosen_der, full_hessian)]
            f, g, h = functions
            results: list[Any] = []
            total = seconds(
                lambda f=f, g=g, h=h, x0=x0, results=results: results.append(
                    solve.newton(f, x0, jac=g, hess=h, maxiter=40)
                )
            )
            steps.append((total - sum(one.total for one in functions)) / results[0].nit)
            hessian = full_hessian(results[0].x) + 1e4 * np.eye(n)
            factors.append(statistics.median(seconds(lambda h=hessian: cho_factor(h)) for _ in range(5)))
        ratio = statistics.median(steps) / statistics.median(factors)
        found[name] = ratio
        print(
            f"newton, {name}, the first 40 steps: a step / cho_factor {ratio:.2f} "
            f"({statistics.median(steps) * 1e3:.1f} / {statistics.median(factors) * 1e3:.1f} ms)"
        )
    return found


def large_gradient(repeats: int, n: int) -> list[dict[str, Any]]:
    """conjugate_gradient and L-BFGS-B: the time per evaluation of value and gradient, in 40 iterations."""
    d = np.linspace(1, 100, n)

    def quartic(x: Any) -> Any:
        t = x - 1
        g = t * t
        g *= t
        f = 0.25 * (g @ t)
        h = d * t
        g += h
        return f + 0.5 * (h @ t), g

    def valley(x: Any) -> Any:
        a, b = x[0::2], x[1::2]
        t, u = b - a * a, 1 - a
        g = np.empty_like(x)
        g[1::2] = 200 * t
        g[0::2] = -400 * a * t - 2 * u
        return 100 * (t @ t) + u @ u, g

    found = []
    for name, f, x0 in (("quartic", quartic, np.zeros(n)), ("Rosenbrock pairs", valley, np.tile([-1.2, 1.0], n // 2))):
        counts = [0, 0]

        def ours(f: Any = f, x0: Any = x0, counts: list[int] = counts) -> None:
            counts[0] = solve.conjugate_gradient(f, x0, jac=True, maxiter=40).nfev

        def theirs(f: Any = f, x0: Any = x0, counts: list[int] = counts) -> None:
            counts[1] = minimize(f, x0, jac=True, method="L-BFGS-B", options={"maxiter": 40}).nfev

        a, b = in_turn(repeats, ours, theirs)
        per = a / counts[0], b / counts[1]
        found.append({"n": n, "function": name, "ours_over_lbfgsb": per[0] / per[1]})
        print(
            f"conjugate_gradient, n = {n}, {name}: an evaluation / L-BFGS-B's {per[0] / per[1]:.2f} "
            f"({per[0] * 1e3:.1f} / {per[1] * 1e3:.1f} ms; {counts[0]} / {counts[1]} evaluations)"
        )
    return found


def quasi_newton(repeats: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """lbfgs and L-BFGS-B: MINPACK's 53 runs as sums of squares, and Rosenbrock's function of many variables."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import mgh

    reached, evaluations, ten_digits = [0, 0], [0, 0], [0, 0]
    for p, x in mgh.runs():
        values: list[float] = []

        def f(z: Any, p: Any = p, values: list[float] = values) -> tuple[float, Any]:
            r = p.residuals(z)
            values.append(float(r @ r))
            return values[-1], 2 * p.jacobian(z).T @ r

        options = {"maxiter": 500, "maxfun": 5000, "ftol": 1e-15, "gtol": 1e-9}
        both = solve.lbfgs(f, x, jac=True, maxiter=500), minimize(f, x, jac=True, method="L-BFGS-B", options=options)
        ends = [mgh.reaches_minimum(p, r.x) for r in both]
        split = both[0].nfev
        for side, own in enumerate((values[:split], values[split:])):
            reached[side] += ends[side]
            if all(ends):
                evaluations[side] += both[side].nfev
                enough = min(values) + 1e-10 * (values[0] - min(values))
                ten_digits[side] += 1 + next(k for k, value in enumerate(own) if value <= enough)
    print(
        f"lbfgs / L-BFGS-B on MINPACK's 53 runs: {reached[0]} / {reached[1]} reach the minimum; where both do, "
        f"{evaluations[0]} / {evaluations[1]} evaluations, and {ten_digits[0]} / {ten_digits[1]} until the value has "
        "fallen by all but 1e-10 of its fall"
    )
    found: dict[str, Any] = {"reached": reached, "evaluations": evaluations, "ten_digits": ten_digits}
    for n in sizes:
        x0 = np.tile([-1.2, 1.0], n // 2)
        ours, theirs = in_turn(
            repeats,
            lambda x0=x0: solve.lbfgs(rosen, x0, jac=rosen_der, maxiter=200),
            lambda x0=x0: minimize(rosen, x0, jac=rosen_der, method="L-BFGS-B", options={"maxiter": 200}),
        )
        found[str(n)] = theirs / ours
        print(
            f"  200 iterations, n = {n}: L-BFGS-B / lbfgs {theirs / ours:.2f} "
            f"({theirs * 1e3:.1f} / {ours * 1e3:.1f} ms)"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="one repeat and small systems, to see that everything works"
    )
    parser.add_argument("--large", action="store_true", help="large problems only")
    parser.add_argument("--quasi-newton", action="store_true", help="lbfgs and L-BFGS-B only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios, SciPy's time / ours")
    options = parser.parse_args()
    repeats, orders = (1, (50,)) if options.quick else (options.repeats, (200, 1000, 2000))
    report: dict[str, Any] = {}
    if options.quasi_newton:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            report["quasi_newton"] = quasi_newton(repeats, (10,) if options.quick else (10, 100, 10_000, 100_000))
    elif options.large:
        shapes = ((300, 60),) if options.quick else ((20_000, 200), (3_000, 1_000))
        report["large_fits"] = large_fits(repeats, shapes)
        report["large_newton"] = large_newton(repeats, 120 if options.quick else 1000)
        report["large_gradient"] = large_gradient(repeats, 1000 if options.quick else 1_000_000)
    else:
        small_problems(report, repeats, orders)
    if options.json:
        options.json.write_text(json.dumps(report))


def small_problems(report: dict[str, Any], repeats: int, orders: tuple[int, ...]) -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        report["nist"] = nist(repeats)
        report["small"] = small(repeats)
    report["newton"] = newton_step(repeats, orders)


if __name__ == "__main__":
    main()
