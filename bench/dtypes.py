"""Steps of 16-bit params and gradients compared with float32 ones of the same size, timed alternately.

Prints float32's median time over the other's: above 1, the other is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from adaptk._bench import Streams, _size, interleaved, size_text
from adaptk._registry import RULES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rules", default="all")
    parser.add_argument("--size", default="64M")
    parser.add_argument("--dtypes", default="bfloat16,float16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios")
    options = parser.parse_args()
    dtypes = options.dtypes.split(",")
    size = _size(options.size)
    print(f"{'rule':<26}" + "".join(f"{'float32 / ' + d:>22}" for d in dtypes) + f"   ({size_text(size)})")
    ratios: dict[str, dict[str, float]] = {}
    for name in RULES if options.rules == "all" else options.rules.split(","):
        streams = [Streams(RULES[name], d, size) for d in ("float32", *dtypes)]
        times = [statistics.median(t) for t in interleaved([s.update for s in streams], options.repeats)]
        ratios[name] = {d: times[0] / t for d, t in zip(dtypes, times[1:], strict=True)}
        print(f"{name:<26}" + "".join(f"{ratio:>22.2f}" for ratio in ratios[name].values()), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"size": size, "ratios": ratios}))


if __name__ == "__main__":
    main()
