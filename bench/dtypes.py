"""Steps of 16-bit params and gradients beside float32 ones of the same number of elements, taken in turn.

Prints float32's median time over the other's: above 1, the other is the faster one.
"""

from __future__ import annotations

import argparse
import statistics

from adaptk._bench import Streams, _size, interleaved, size_text
from adaptk._registry import RULES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", default="all")
    parser.add_argument("--size", default="64M")
    parser.add_argument("--dtypes", default="bfloat16,float16")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    dtypes = options.dtypes.split(",")
    size = _size(options.size)
    print(f"{'rule':<26}" + "".join(f"{'float32 / ' + d:>22}" for d in dtypes) + f"   ({size_text(size)})")
    for name in RULES if options.rules == "all" else options.rules.split(","):
        streams = [Streams(RULES[name], d, size) for d in ("float32", *dtypes)]
        times = [statistics.median(t) for t in interleaved([s.update for s in streams], options.repeats)]
        print(f"{name:<26}" + "".join(f"{times[0] / t:>22.2f}" for t in times[1:]), flush=True)


if __name__ == "__main__":
    main()
