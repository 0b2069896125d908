"""The C++ tests under sanitizers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_cpp import PROGRAMS, ROOT, SOME_RULES, Build, find_compiler

pytestmark = pytest.mark.full


def has_sanitizer(name: str, folder: Path) -> bool:
    """Whether a program that is built with it starts: its library may be missing, or refuse the address layout."""
    source = folder / "probe.cpp"
    source.write_text("int main() { return 0; }\n")
    build = [find_compiler(), f"-fsanitize={name}", str(source), "-o", str(folder / "probe")]
    return all(subprocess.run(c, capture_output=True).returncode == 0 for c in (build, [str(folder / "probe")]))


# The programs with emulated kernels, where there are any.
EMULATED = re.search(r"foreach\(name IN ITEMS (cuda .*)\)", (ROOT / "tests/cpp/CMakeLists.txt").read_text())[1].split()
OF_CUDA = [name for name in EMULATED if name != "cuda_batch"] if sys.platform.startswith("linux") else []


@pytest.mark.parametrize(
    ("sanitizers", "rules", "options", "programs"),
    [
        # v2's vectors are as wide as the portable ones. Fits in batches on a device run the templates of those on the
        # host, in which no memory is shared.
        ("address,undefined", SOME_RULES, ("-DADAPTK_X86_LEVELS=v3;v4",), (*PROGRAMS, *OF_CUDA)),
        # GCC's OpenMP library is not instrumented: threads are the test's and the library's own. What they share is the
        # same for every width.
        (
            "thread",
            ("sgd", "adam"),
            ("-DADAPTK_OPENMP=OFF", "-DADAPTK_X86_LEVELS=v3"),
            ("concurrent", "hogwild", "pool"),
        ),
    ],
    ids=["address-undefined", "thread"],
)
def test_sanitizers(
    tmp_path: Path, sanitizers: str, rules: tuple[str, ...], options: tuple[str, ...], programs: tuple[str, ...]
) -> None:
    if not has_sanitizer(sanitizers, tmp_path):
        pytest.skip(f"programs built with -fsanitize={sanitizers} do not start here")
    build = Build(tmp_path / "sources", rules=rules)
    build.make(f"-DADAPTK_SANITIZE={sanitizers}", *options, targets=tuple(f"test_{name}" for name in programs))
    build.test("--tests-regex", f"^({'|'.join(programs)})$", quick=True)
