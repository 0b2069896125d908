"""The documentation: its programs print what it says, and it has every rule. test_docs_html.py builds it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import adaptk
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only in a checkout")

PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    line: int  # of its first line in the page
    language: str
    text: str


def blocks(page: str, *languages: str) -> list[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    found = [Block(text.count("\n", 0, m.start(2)) + 1, m[1], m[2]) for m in FENCE.finditer(text)]
    return [block for block in found if block.language in languages]


def needs(*modules: str) -> None:
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


# Programs


def test_pages_have_programs() -> None:
    """The patterns below match something."""
    assert not any(blocks(page, "py", "pycon", "c++") for page in PAGES)  # languages that would not be run
    have = {page: {block.language for block in blocks(page, "python", "c", "cpp", "cuda", "cmake")} for page in PAGES}
    assert {page.removeprefix("guide/"): sorted(have[page]) for page in PAGES if have[page]} == {
        "index.md": ["python"],
        "catalogue.md": ["python"],
        "sparse.md": ["python"],
        "adding_a_rule.md": ["cmake", "cpp"],
        "c.md": ["c", "cmake"],
        "choosing_a_rule.md": ["python"],
        "cpp.md": ["cmake", "cpp"],
        "cuda.md": ["cmake", "cuda", "python"],
        "curriculum.md": ["python"],
        "distributed.md": ["python"],
        "frameworks.md": ["python"],
        "hogwild.md": ["python"],
        "initialisation.md": ["python"],
        "jax.md": ["python"],
        "less_memory.md": ["python"],
        "numpy.md": ["python"],
        "offload.md": ["python"],
        "pytorch.md": ["python"],
        "your_own_rule.md": ["python"],
        "migrate/optax.md": ["python"],
        "migrate/scipy.md": ["python"],
        "migrate/torch.md": ["python"],
    }


def pages_with_programs() -> Iterator[Any]:
    """The pages with programs, by the libraries that they import, as importing those takes longer than the programs."""
    for page in PAGES:
        if text := "".join(block.text for block in blocks(page, "python")):
            full = re.search(
                r"^ *(?:import|from) (?:torch|jax|optax|scipy|adaptk\.torch|adaptk\.jax)\b", text, re.MULTILINE
            )
            yield pytest.param(page, marks=[pytest.mark.full] if full else [])


@pytest.mark.parametrize("page", list(pages_with_programs()))
def test_python(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page are one program with the page's line numbers; it prints what its comments say."""
    program = ""
    for block in blocks(page, "python"):
        program += "\n" * (block.line - 1 - program.count("\n")) + block.text
    if "import torch" in program:
        needs("torch")
    if "bfloat16_sr" in program:
        needs("ml_dtypes")  # NumPy's bfloat16
    if "import jax" in program:
        needs("jax", "adaptk._jax")
    if "import keras" in program:
        needs("keras", "torch")
        monkeypatch.setenv("KERAS_BACKEND", "torch")
    if "import optax" in program:
        needs("optax")
    if "from scipy" in program:
        needs("scipy")
    script = tmp_path / "guide.py"
    script.write_text(program, encoding="utf-8")
    # PyTorch uses its own deprecated functions at import.
    # The last one is of Keras, which converts PyTorch tensors to NumPy arrays.
    known = ("ignore::DeprecationWarning:torch.jit._script", "ignore:__array__ implementation:DeprecationWarning")
    command = [sys.executable, "-W", "error", *(word for k in known for word in ("-W", k)), str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    assert len(expected) == len(re.findall(r"^ *print\(", program, re.MULTILINE))
    assert expected
    assert done.stdout.splitlines() == expected


def sources(page: str, *languages: str) -> dict[str, str]:
    """The files of a page: blocks that begin with a comment naming a file, and blocks that continue its main."""
    files: dict[str, str] = {}
    name = ""
    for block in blocks(page, *languages):
        begin = re.match(r"(?:// |/\* )(\w+\.\w+)(?: \*/)?\n", block.text)
        # Compiler messages have the line numbers of the page.
        place = f'#line {block.line} "{page}"\n'
        if begin:
            name = begin[1]
            files[name] = place + block.text
        else:
            rest, end, _ = files[name].rpartition("    return 0;\n}\n")
            assert end, f"{name} does not end with return 0"
            files[name] = rest + place + block.text + end
    return files


def built(page: str, folder: Path, *languages: str, options: tuple[str, ...] = ()) -> dict[str, Path]:
    """The programs of a page, built with the CMakeLists.txt that it shows against the package that is imported here."""
    if os.name != "posix":
        pytest.skip("programs are built with the compilers of POSIX systems")
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ADAPTK_", "CMAKE_"))} | {"PATH": paths}
    cmake = shutil.which("cmake", path=paths)
    if cmake is None or not any(shutil.which(name, path=paths) for name in ("cc", "gcc", "clang")):
        pytest.skip("needs cmake and a compiler")
    (description,) = blocks(page, "cmake")
    files = sources(page, *languages)
    for name, text in {**files, "CMakeLists.txt": description.text}.items():
        (folder / name).write_text(text, encoding="utf-8")
    generator = ["-GNinja"] if shutil.which("ninja", path=paths) else []
    configure = [cmake, "-S", str(folder), "-B", str(folder / "build"), *generator, *options]
    configure += ["-DCMAKE_BUILD_TYPE=Release", f"-Dadaptk_DIR={adaptk.get_cmake_dir()}"]
    for command in (configure, [cmake, "--build", str(folder / "build")]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    programs = {name for name, text in files.items() if "int main(" in text}
    made = dict(re.findall(r"^add_executable\((\w+) (\w+\.\w+)\)$", description.text, re.MULTILINE))
    assert set(made.values()) == programs
    return {source: folder / "build" / target for target, source in made.items()}


def prints(program: Path, text: str) -> None:
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{program.name}: {done.stdout}{done.stderr}"
    expected = re.findall(r"printf\(\".*\);\s+(?:// |/\* )(.*?)(?: \*/)?$", text, re.MULTILINE)
    assert [line.strip() for line in done.stdout.splitlines()] == expected


@pytest.mark.full
@pytest.mark.parametrize(
    ("page", "language", "warnings"),
    [
        ("guide/c.md", "c", "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror"),
        ("guide/cpp.md", "cpp", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"),
        ("guide/adding_a_rule.md", "cpp", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"),
    ],
)
def test_compiled(page: str, language: str, warnings: str, tmp_path: Path) -> None:
    programs = built(page, tmp_path, language, options=(warnings,))
    assert len(programs) == (4 if page == "guide/c.md" else 2)
    for name, program in programs.items():
        prints(program, sources(page, language)[name])


@pytest.mark.full
def test_cuda(tmp_path: Path) -> None:
    """Compiled if there is an nvcc, and run if there is a device."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    page = "guide/cuda.md"
    programs = built(page, tmp_path, "cuda", options=(f"-DCMAKE_CUDA_COMPILER={nvcc}",))
    assert len(programs) == (4 if page == "guide/c.md" else 2)
    if not adaptk.cuda.is_available():
        pytest.skip("compiled, and there is no CUDA device to run them on")
    for name, program in programs.items():
        prints(program, sources(page, "cuda")[name])


# The contents of the pages


def sections() -> dict[str, str]:
    """The text of each rule, by the name in its heading."""
    text = (DOCS / "rules.md").read_text(encoding="utf-8")
    parts = re.split(r"^(#{2,3} .*)$", text, flags=re.MULTILINE)
    named = zip(parts[1::2], parts[2::2], strict=True)
    return {heading[5:-1]: body for heading, body in named if heading.startswith("### `")}


def test_every_rule_has_a_section() -> None:
    assert sorted(sections()) == sorted(adaptk.rules())


@pytest.mark.parametrize("name", adaptk.rules())
def test_the_mathematics_of_a_rule(name: str) -> None:
    """Its formula, its source, a symbol for each hyperparameter and state, and the facts of the registry."""
    rule = adaptk.rules()[name]
    text = " ".join(sections()[name].split())
    assert any(re.search(r"(\\theta|\bw)_t &?= ", formula) for formula in text.split("$$")[1::2])
    for source in rule.source.split("; "):
        assert source in text
    own = [h.name for h in rule.hyperparameters if not h.common]
    for word in (*own, *(s.name for s in rule.states)):
        assert re.search(rf"`{word}[`=]", text), word
    assert re.findall(r"```{rule-facts} (\w+)", text) == [name]


def test_every_source_is_in_the_list_of_papers() -> None:
    papers = (DOCS / "rules.md").read_text(encoding="utf-8").split("## Papers")[1]
    entries = [" ".join(entry.split()) for entry in re.split(r"^- ", papers, flags=re.MULTILINE)[1:]]
    for rule in adaptk.rules().values():
        for author, year in re.findall(r"(\w+)(?: et al\.|[\w, ]*?)? (\d{4})", rule.source):
            assert any(author in entry and entry.endswith(f"{year}.") for entry in entries), (author, year)


# Sections of solvers.md and the function whose docstring has the statuses.
SOLVERS = {
    "Newton's method": "newton",
    "Levenberg and Marquardt's method": "levenberg_marquardt",
    "Batches of fits": "levenberg_marquardt_batch",
    "Nonlinear conjugate gradients": "conjugate_gradient",
    "Linear conjugate gradients": "cg",
}


@pytest.mark.parametrize("heading", SOLVERS)
def test_the_statuses_of_a_solver(heading: str) -> None:
    text = (DOCS / "solvers.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    function = getattr(adaptk.solve, SOLVERS[heading])
    assert f"adaptk.solve.{SOLVERS[heading]}" in section
    rows = re.findall(r"^\| (-?\d) \| \S", section, re.MULTILINE)
    assert rows
    _, table, _ = re.split(r"^ +== =+$", function.__doc__, flags=re.MULTILINE)
    assert rows == re.findall(r"^ +(-?\d) +\S", table, re.MULTILINE)
