"""The time of `import adaptk` after `import numpy`, in fresh interpreters, alternately, with cached bytecode."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def seconds(code: str, cache: str) -> float:
    """The time of the last line of `code` in a fresh interpreter, with bytecode in the folder `cache`."""
    *before, last = code.split("; ")
    script = "; ".join([*before, "import time", "t = time.perf_counter()", last, "print(time.perf_counter() - t)"])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPYCACHEPREFIX": cache
    }
    command = [sys.executable, "-c", script]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians, in seconds")
    options = parser.parse_args()
    numpy, beyond = [], []
    with tempfile.TemporaryDirectory() as cache:
        seconds("import numpy; import adaptk", cache)
        for _ in range(options.repeats):
            numpy.append(seconds("import numpy", cache))
            beyond.append(seconds("import numpy; import adaptk", cache))
    medians = {"numpy": statistics.median(numpy), "adaptk": statistics.median(beyond)}
    print(f"import numpy               {medians['numpy'] * 1e3:6.1f} ms")
    print(f"import adaptk after numpy  {medians['adaptk'] * 1e3:6.1f} ms")
    if options.json:
        options.json.write_text(json.dumps(medians))


if __name__ == "__main__":
    main()
