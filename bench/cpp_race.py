"""A C++ program that links adaptk, compared with the same updates as expressions of Armadillo, in one run.

``python bench/cpp_race.py [--quick] [--no-openmp] [--markdown]``. The program is bench/consumer.cpp, built here against
the installed package with the compiler `c++` or $CXX, with -O3 -march=native, and with or without OpenMP, which
Armadillo uses too. It needs Armadillo's headers (Debian: libarmadillo-dev). Steps are timed alternately and medians are
compared. The overhead is the time of one step of a plan with 64 elements, minus that of adaptk::run, which computes the
step's coefficients and runs the kernel in the program's own code, and minus that of the loop over the elements alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import adaptk

HERE = Path(__file__).resolve().parent
SIZES = {"1M": 1 << 20, "64M": 64 << 20}
QUICK = {"4k": 4096, "64k": 65536}


def build(folder: Path, openmp: bool) -> Path:
    library = next((Path(adaptk.get_cmake_dir()).parents[1]).glob("libadaptk.so*"))
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-DNDEBUG"]
    command += ["-fopenmp"] if openmp else []
    command += ["-fno-math-errno", "-DARMA_DONT_USE_WRAPPER", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{adaptk.get_include()}", str(HERE / "consumer.cpp"), str(library)]
    command += [f"-Wl,-rpath,{library.parent}", "-o", str(folder / "consumer")]
    subprocess.run(command, check=True)
    return folder / "consumer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and little time, to see that everything works"
    )
    parser.add_argument(
        "--no-openmp", action="store_true", help="compile the program (and Armadillo in it) without OpenMP"
    )
    parser.add_argument("--markdown", action="store_true", help="print a table for the README")
    parser.add_argument("--sizes", default="1M,64M", help="comma-separated, from 1M, 64M; default both")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds for each rule, type and size, default 8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians, in seconds")
    arguments = parser.parse_args()
    if unknown := set(arguments.sizes.split(",")) - set(SIZES):
        parser.error(f"--sizes: {', '.join(sorted(unknown))}: not of {', '.join(SIZES)}")
    sizes = QUICK if arguments.quick else {name: SIZES[name] for name in arguments.sizes.split(",")}
    rounds, seconds = ("3", "0.05") if arguments.quick else ("301", str(arguments.seconds))
    with tempfile.TemporaryDirectory() as folder:
        command = [str(build(Path(folder), not arguments.no_openmp)), rounds, seconds, *map(str, sizes.values())]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for line in printed.splitlines():
        what, dtype, size, side, value = line.split()
        found.setdefault((what, dtype, int(size)), {})[side] = float(value)
    small = {side: 1e9 * value for side, value in found.pop(("overhead", "float", 64)).items()}
    call = small.pop("nothing")
    loop = small["loop"] - call
    rest = ", ".join(f"{side} {value - call:.0f} ns" for side, value in small.items())
    beyond = (
        f"{small['plan'] - small['run']:.0f} ns beyond adaptk::run, {small['plan'] - call - loop:.0f} beyond the loop"
    )
    print(f"64 elements, Adam: a plan's step {beyond} ({rest})")
    rules = list(dict.fromkeys(rule for rule, _, _ in found))
    if arguments.json:
        of_size = {size: name for name, size in sizes.items()}
        results = [{"rule": r, "dtype": d, "size": of_size[n], "seconds": c} for (r, d, n), c in found.items()]
        over = {"beyond_run": small["plan"] - small["run"], "beyond_loop": small["plan"] - call - loop}
        arguments.json.write_text(
            json.dumps({"openmp": not arguments.no_openmp, "nanoseconds": over, "results": results})
        )
    if arguments.markdown:
        columns = [(dtype, name) for name in sizes for dtype in ("float", "double")]
        print(f"| Armadillo / adaptk | {' | '.join(f'{name}, {dtype}' for dtype, name in columns)} |")
        print(f"|---|{'---|' * len(columns)}")
    for rule in rules:
        if arguments.markdown:
            medians = [found[rule, dtype, sizes[name]] for dtype, name in columns]
            print(f"| {rule} | {' | '.join(format(m['armadillo'] / m['adaptk'], '.1f') for m in medians)} |")
            continue
        for name, size in sizes.items():
            for dtype in ("float", "double"):
                c = found[rule, dtype, size]
                times = ", ".join(f"{side} {value * 1e3:.3f} ms" for side, value in c.items())
                print(f"{rule:9} {dtype:6} {name:4} armadillo / adaptk {c['armadillo'] / c['adaptk']:.2f}   ({times})")


if __name__ == "__main__":
    main()
