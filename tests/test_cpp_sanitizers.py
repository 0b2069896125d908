"""The C++ tests under sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_cpp import Build, find_compiler

pytestmark = pytest.mark.full


def has_sanitizer(name: str, folder: Path) -> bool:
    """Whether a program that is built with it starts: its library may be missing, or refuse the address layout."""
    source = folder / "probe.cpp"
    source.write_text("int main() { return 0; }\n")
    build = [find_compiler(), f"-fsanitize={name}", str(source), "-o", str(folder / "probe")]
    return all(subprocess.run(c, capture_output=True).returncode == 0 for c in (build, [str(folder / "probe")]))


# Rules of 0 to 4 states, among them one that looks ahead, one with a memo and one with another's kernels. What is
# around a formula, in which there is no memory to overrun, is the same for all rules of as many states.
SOME_RULES = "-DADAPTK_RULES=sgd;momentum;rmsprop_nesterov;adam;amsgrad;adamw;nadam;adan"


@pytest.mark.parametrize(
    ("sanitizers", "options", "targets", "tests"),
    [
        # v2's vectors are as wide as the portable ones.
        ("address,undefined", ("-DADAPTK_X86_LEVELS=v3;v4",), ("all",), "."),
        # GCC's OpenMP library is not instrumented: threads are the test's and the library's own. What they share is the
        # same for every width.
        (
            "thread",
            ("-DADAPTK_OPENMP=OFF", "-DADAPTK_X86_LEVELS=v3"),
            ("test_concurrent", "test_hogwild", "test_pool"),
            "^(concurrent|hogwild|pool)$",
        ),
    ],
    ids=["address-undefined", "thread"],
)
def test_sanitizers(
    tmp_path: Path, sanitizers: str, options: tuple[str, ...], targets: tuple[str, ...], tests: str
) -> None:
    if not has_sanitizer(sanitizers, tmp_path):
        pytest.skip(f"programs built with -fsanitize={sanitizers} do not start here")
    build = Build(tmp_path / "sources")
    build.make(f"-DADAPTK_SANITIZE={sanitizers}", SOME_RULES, *options, targets=targets)
    build.test("--tests-regex", tests, quick=True)
