"""The ABI: the types, values and functions of adaptk.h are those recorded in tests/abi-N.txt.

``python tests/test_abi.py > tests/abi-N.txt`` records new lines. A line that changes or is removed breaks compiled
programs: then ADAPTK_ABI_VERSION must be incremented, and the record is a new file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
INCLUDE = TESTS.parent / "cpp" / "include"
HEADER = INCLUDE / "adaptk" / "adaptk.h"

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def source() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)


def version() -> int:
    return int(re.search(r"#define ADAPTK_ABI_VERSION (\d+)", source())[1])


def interface(compiler: str, folder: Path) -> list[str]:
    """A line for each function, value, structure and member, with the compiler's layout."""
    text = source()
    lines = []
    for declaration in re.findall(r"^ADAPTK_API ([^;]*);", text, re.M):
        head, arguments = " ".join(declaration.split()).rstrip(")").split("(")
        types = [re.sub(r"(?<=[\w*] )\w+$|(?<=\*)\w+$", "", a.strip()).strip() for a in arguments.split(",")]
        lines.append(f"{head}({', '.join(types)})")
    program = ["#include <adaptk/adaptk.h>", "#include <stdio.h>", "int main(void) {"]
    values = re.findall(r"^ +(ADAPTK_\w+) = ", text, re.M)
    program += [f'    printf("{name} = %d\\n", (int){name});' for name in values]
    for name, members in re.findall(r"^typedef struct (\w+) \{(.*?)^\} \1;", text, re.M | re.DOTALL):
        program.append(f'    printf("{name}: %zu bytes\\n", sizeof({name}));')
        for members_of_type in re.findall(r"^ +\w[^;]*;", members, re.M):
            for member in re.findall(r"(\w+)(?=[,;])", members_of_type):
                at = f"offsetof({name}, {member}), sizeof((({name}*)0)->{member})"
                program.append(f'    printf("{name}.{member}: at %zu, %zu bytes\\n", {at});')
    (folder / "abi.c").write_text("\n".join([*program, "    return 0;", "}", ""]))
    command = [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-I", str(INCLUDE), "abi.c", "-o", "abi"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = subprocess.run([folder / "abi"], capture_output=True, text=True, check=True).stdout
    return sorted(lines + printed.splitlines())


@pytest.mark.skipif(COMPILER is None or sys.maxsize < 2**32, reason="needs a C compiler for 64 bits")
def test_interface_is_the_recorded_one(tmp_path: Path) -> None:
    now = interface(COMPILER, tmp_path)
    assert len(now) > 90
    recorded = (TESTS / f"abi-{version()}.txt").read_text(encoding="utf-8").splitlines()
    gone = sorted(set(recorded) - set(now))
    assert gone == [], "programs that were built before rely on these: raise ADAPTK_ABI_VERSION"
    assert now == recorded, "record what is new: see the beginning of this file"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print("\n".join(interface(COMPILER, Path(made))))
