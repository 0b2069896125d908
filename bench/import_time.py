"""What `import adaptk` takes beyond `import numpy`, in fresh interpreters, taken in turn."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys


def seconds(code: str) -> float:
    """Time of the last line of `code` in a fresh interpreter."""
    *before, last = code.split("; ")
    script = "; ".join([*before, "import time", "t = time.perf_counter()", last, "print(time.perf_counter() - t)"])
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    numpy, beyond = [], []
    for _ in range(options.repeats):
        numpy.append(seconds("import numpy"))
        beyond.append(seconds("import numpy; import adaptk"))
    print(f"import numpy               {statistics.median(numpy) * 1e3:6.1f} ms")
    print(f"import adaptk after numpy  {statistics.median(beyond) * 1e3:6.1f} ms")


if __name__ == "__main__":
    main()
