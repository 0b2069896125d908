"""``adaptk info``: how this installation was built, what it runs on, and where its headers are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import adaptk
from adaptk._cli._parser import Parser, add_json, check_files, program, write_json
from adaptk._cli._screen import Screen


def folders() -> dict[str, str]:
    """The folders in which a C or C++ build finds this installation."""
    cmake = adaptk.get_cmake_dir()
    return {
        "include_dir": adaptk.get_include(),
        "cmake_dir": cmake,
        "pkgconfig_dir": os.path.join(os.path.dirname(os.path.dirname(cmake)), "pkgconfig"),
    }


def described() -> dict[str, Any]:
    """All entries, by name."""
    return {
        **adaptk.build_info(),
        "isa": adaptk.get_isa(),
        "available_isas": adaptk.available_isas(),
        "threads": adaptk.get_num_threads(),
        "rules": list(adaptk.rules()),
        **folders(),
    }


# The dates by which compilers identify the specifications.
_OPENMP = {
    200505: "2.5",
    200805: "3.0",
    201107: "3.1",
    201307: "4.0",
    201511: "4.5",
    201811: "5.0",
    202011: "5.1",
    202111: "5.2",
    202411: "6.0",
}


def openmp_version(date: int) -> str:
    """The OpenMP version of this date, or the newest one before it."""
    known = [version for when, version in _OPENMP.items() if when <= date]
    return known[-1] if known else str(date)


def cuda_text(toolkit: str, architectures: Sequence[str]) -> str:
    """The toolkit, and the devices with code: machine code (real), or PTX for newer devices (virtual)."""
    kinds: dict[str, list[str]] = {}
    for architecture in architectures:
        number, _, kind = architecture.partition("-")
        digits = number.rstrip("af")  # suffixes for features of one device or family
        capability = f"{digits[:-1]}.{digits[-1]}{number[len(digits) :]}"
        both = ["machine code", "PTX"] if not kind else ["PTX"] if kind == "virtual" else ["machine code"]
        kinds.setdefault(capability, []).extend(both)
    texts = [f"{capability} ({' and '.join(sorted(set(code), key=str.lower))})" for capability, code in kinds.items()]
    return f"{toolkit}, compute capability {', '.join(texts)}"


def _rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    cuda = info["cuda"]
    openmp = info["openmp"]
    return [
        ("adaptk", info["version"]),
        ("compiler", info["compiler"]),
        ("instruction set", f"{info['isa']} (this machine has {', '.join(info['available_isas'])})"),
        (
            "threads",
            f"{info['threads']} ({'threads of its own' if openmp is None else f'OpenMP {openmp_version(openmp)}'})",
        ),
        ("CUDA", cuda_text(cuda["toolkit"], cuda["architectures"]) if cuda else "not built"),
        ("solvers", f"Eigen {info['eigen']}" if info["eigen"] else "not built"),
        ("rules", f"{len(info['rules'])}: {', '.join(info['rules'])}"),
        ("headers", info["include_dir"]),
        ("CMake package", info["cmake_dir"]),
        ("pkg-config", info["pkgconfig_dir"]),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    name = program()
    parser = Parser(
        prog=f"{name} info",
        description="Show how this copy of adaptk was built, what it runs on, and where its headers are.",
        examples=[
            (f"cmake -Dadaptk_DIR=$({name} info --cmake-dir) ...", "for find_package(adaptk)"),
            (f"PKG_CONFIG_PATH=$({name} info --pkgconfig-dir) pkg-config --cflags --libs adaptk", ""),
        ],
    )
    only = parser.add_mutually_exclusive_group()
    add_json(only, "everything")
    for option, what in (
        ("include_dir", "the folder of the C and C++ headers"),
        ("cmake_dir", "the folder of the CMake package"),
        ("pkgconfig_dir", "the folder of adaptk.pc"),
    ):
        only.add_argument(f"--{option.replace('_', '-')}", action="store_true", help=f"print {what}, and nothing else")
    options = parser.parse_args(argv)
    for option, folder in folders().items():
        if getattr(options, option):
            print(folder)
            return 0
    check_files(options)
    info = described()
    if options.json != "-":
        Screen().pairs(_rows(info))
    write_json(json.dumps(info, indent=2), options.json)
    return 0
