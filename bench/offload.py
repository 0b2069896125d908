"""An offloaded AdamW step on the host, compared with memory bandwidth, torchao, torch and DeepSpeed.

``python bench/offload.py [--size 64M] [--tensors 16] [--threads N] [--repeats N] [--json FILE] [--alone]``

``python -m adaptk bench --offload`` prints the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import adaptk
from adaptk._bench import _size, machine
from adaptk._bench_offload import measured, show
from adaptk._cli._parser import whole
from adaptk._cli._screen import Screen


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/offload.py", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=_size, default="64M", help="parameters; default: 64M")
    parser.add_argument("--tensors", type=whole(1), default=16, metavar="N", help="tensors; default: 16")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="default: the number of threads of a step")
    parser.add_argument("--repeats", type=whole(1), default=11, metavar="N", help="rounds; default: 11")
    parser.add_argument("--alone", action="store_true", help="leave out other libraries")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table")
    options = parser.parse_args(arguments)
    threads = options.threads or adaptk.get_num_threads()
    adaptk.set_num_threads(threads)
    rows = measured(options.size, threads, options.repeats, options.tensors, options.alone)
    show(Screen(), rows, options.size, threads)
    if options.json:
        report = {"size": options.size, "threads": threads, "machine": machine(), "rows": list(map(asdict, rows))}
        options.json.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
