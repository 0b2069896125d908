"""``python -m adaptk info | demo | bench``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import adaptk

_COMMANDS = {
    "info": "how this copy was built, and what it runs on",
    "demo": "train on handwritten digits with every rule",
    "bench": "measure every rule against the memory's ceiling",
}


def _info(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m adaptk info", description=_COMMANDS["info"])
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--json", action="store_true", help="print JSON")
    only.add_argument("--cmake-dir", action="store_true", help="print where the CMake package is, and nothing else")
    only.add_argument("--include-dir", action="store_true", help="print where the C and C++ headers are")
    options = parser.parse_args(argv)
    if options.cmake_dir or options.include_dir:
        print(adaptk.get_cmake_dir() if options.cmake_dir else adaptk.get_include())
        return 0
    info = {
        **adaptk.build_info(),
        "isa": adaptk.get_isa(),
        "available_isas": adaptk.available_isas(),
        "threads": adaptk.get_num_threads(),
        "rules": list(adaptk.rules()),
    }
    if options.json:
        print(json.dumps(info, indent=2))
        return 0
    for key, value in info.items():
        print(f"{key:<15} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; the arguments after its name are its own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m adaptk",
        description="Fused update kernels of adaptive optimizers.",
        epilog="\n".join(f"{name:<8} {what}" for name, what in _COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"adaptk {adaptk.__version__}")
    parser.add_argument("command", choices=_COMMANDS)
    # What follows the command is its own business, --help included.
    command = parser.parse_args(arguments[:1]).command
    rest = arguments[1:]
    if command == "info":
        return _info(rest)
    if command == "demo":
        from adaptk._demo import main as demo

        return demo(rest)
    from adaptk._bench import main as bench

    return bench(rest)


if __name__ == "__main__":
    sys.exit(main())
