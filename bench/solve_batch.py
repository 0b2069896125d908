"""Batches of small fits, a plain C++ loop and a Python loop over SciPy: images of 5 x 5 pixels with a Gaussian spot.

The problems are those of Gpufit's published test (Przybylski et al., Scientific Reports 7, 2017): five parameters,
tolerance 1e-4, at most 10 iterations. The sides are timed alternately; medians of the time per fit are compared. The
C++ loop is bench/scalar_batch.cpp, built here with the compiler `c++` or $CXX.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
from adaptk.solve import levenberg_marquardt_batch

SIDE, ITERATIONS, TOLERANCE = 5, 10, 1e-4
START = (9.0, 2.0, 2.0, 1.0, 1.5)
HERE = Path(__file__).resolve().parent


def images(count: int, dtype: Any) -> np.ndarray[Any, Any]:
    """Images of spots near the middle, with Poisson noise."""
    rng = np.random.default_rng(1)
    y, x = np.indices((SIDE, SIDE))
    center = 2 + rng.uniform(-0.5, 0.5, (2, count, 1, 1))
    sigma = rng.uniform(0.8, 1.2, (count, 1, 1))
    clean = 10 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * sigma**2)) + 2
    return (rng.poisson(50 * clean) / 50).astype(dtype)


def scalar_loop(folder: str, flags: list[str]) -> Any:
    library = Path(folder) / f"scalar{len(flags)}.so"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++20", "-O3", *flags, "-shared", "-fPIC", str(HERE / "scalar_batch.cpp")]
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def run_scalar(library: Any, data: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    k = len(data)
    name, c_type = ("fit_float", ctypes.c_float) if data.dtype == np.float32 else ("fit_double", ctypes.c_double)
    x = np.empty((k, 5), data.dtype)
    status, trials = np.empty(k, np.int32), np.empty(k, np.int32)
    start = (c_type * 5)(*START)
    tolerances = (c_type * 3)(TOLERANCE, 0.0, 0.0)
    getattr(library, name)(
        ctypes.c_long(k), SIDE, data.ctypes, start, x.ctypes, tolerances, ITERATIONS, status.ctypes, trials.ctypes
    )
    return x, status, trials


def spot(x: Any, a: Any, cx: Any, cy: Any, s: Any, o: Any) -> Any:
    return a * np.exp(-((x[0] - cx) ** 2 + (x[1] - cy) ** 2) / (2 * s**2)) + o


def run_batch(data: np.ndarray[Any, Any], model: Any = "gaussian_2d") -> Any:
    return levenberg_marquardt_batch(
        model, START, data, ftol=TOLERANCE, xtol=0, gtol=0, max_iterations=ITERATIONS, polish=False
    )


def run_scipy(data: np.ndarray[Any, Any]) -> None:
    from scipy.optimize import curve_fit

    y, x = np.indices((SIDE, SIDE))
    points = (x.ravel(), y.ravel())

    for image in data:
        curve_fit(spot, points, image.ravel(), START, ftol=TOLERANCE, xtol=TOLERANCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scipy-count", type=int, default=200)
    parser.add_argument("--no-scipy", action="store_true")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the time per fit of each side over the batch's"
    )
    options = parser.parse_args()
    most = adaptk.get_num_threads()
    print(f"{options.count} fits of {SIDE} x {SIDE} pixels; {adaptk.get_isa()}, {most} threads")
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, native = scalar_loop(folder, []), scalar_loop(folder, ["-march=native"])
        for dtype in (np.float32, np.float64):
            data = images(options.count, dtype)
            few = data[: options.scipy_count].astype(np.float64)

            def batch(threads: int, data: Any = data, model: Any = "gaussian_2d") -> None:
                adaptk.set_num_threads(threads)
                run_batch(data.reshape(-1, SIDE, SIDE), model)

            part = data[: options.count // 5]
            sides: dict[str, tuple[Callable[[], Any], int]] = {
                "batch": (lambda: batch(most), options.count),
                "batch, one thread": (lambda: batch(1), options.count),
                "batch, the model a function": (lambda: batch(most, model=spot), options.count),
                "scalar C++, -O3": (lambda part=part: run_scalar(plain, part), len(part)),
                "scalar C++, -O3 -march=native": (lambda part=part: run_scalar(native, part), len(part)),
            }
            if not options.no_scipy:
                sides["scipy.optimize.curve_fit"] = (lambda few=few: run_scipy(few), len(few))
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(options.repeats):
                for name, (work, count) in sides.items():
                    begin = time.perf_counter()
                    work()
                    times[name].append((time.perf_counter() - begin) / count)
            ours, theirs = run_batch(part), run_scalar(plain, part)
            apart = float(np.median(np.abs(ours.x - theirs[0]).max(axis=1)))
            print(
                f"\n{np.dtype(dtype).name}: {ours.nit.mean():.2f} trial points a fit, scalar {theirs[2].mean():.2f}; "
                f"{(ours.status == theirs[1]).mean():.2%} end alike; results {apart:.1g} apart (median)"
            )
            reference = statistics.median(times["batch"])
            report[np.dtype(dtype).name] = {name: statistics.median(each) / reference for name, each in times.items()}
            for name, each in times.items():
                median = statistics.median(each)
                print(f"  {name:<31} {1 / median:>12,.0f} fits/s   batch is {median / reference:>7.1f}x as fast")
    if options.json:
        options.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
