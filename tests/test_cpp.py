"""The C++ tests, built and run plain; and what the kernel objects hold.

`tests/cpp` has the tests themselves. Here are a build they run in, the comparison of every instruction set's results
with stored hashes, and a look into the objects: one exported symbol each, and packed instructions in every rule's loop.
The other builds are in `test_cpp_aarch64.py`, `test_cpp_sanitizers.py` and `test_portable.py`: files run beside one
another.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import adaptk
import pytest
from source_copies import ROOT, copy_sources

pytestmark = pytest.mark.full

PROGRAMS = (
    *("batch", "concurrent", "convert", "dense", "hogwild", "norm", "overlap", "plan"),
    *("pool", "power", "program", "random", "reduce", "registry", "solve", "step"),
)
INCLUDE = ROOT / "cpp" / "include" / "adaptk"
JOBS = "2"

# Settings of the caller's must not reach the tests; a finding of a sanitizer ends the program.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTK_")}
ENVIRONMENT |= {
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
    "OMP_WAIT_POLICY": "passive",
}


def find_tool(*names: str) -> str:
    """The first of these programs, on the path or beside Python; the test is skipped where there is none."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    pytest.skip(f"needs {' or '.join(names)}")


def find_compiler() -> str:
    return find_tool(*filter(None, [os.environ.get("CXX")]), "c++", "g++", "clang++")


def run(*command: str | Path, quick: bool = False) -> str:
    """Its output. A command that fails takes the test with it, and says why."""
    environment = ENVIRONMENT | ({"ADAPTK_TEST_QUICK": "1"} if quick else {})
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).splitlines()
        pytest.fail("\n".join([" ".join(map(str, command)), *lines[-80:]]), pytrace=False)
    return done.stdout


# Rules of 0 to 4 states, among them one that looks ahead, one with a memo and one with another's kernels: for builds
# whose point is what is around a formula, which is the same for all rules of as many states.
SOME_RULES = ("sgd", "momentum", "rmsprop_nesterov", "adam", "amsgrad", "adamw", "nadam", "adan")


@dataclass
class Build:
    """A build of the C++ tests, of a copy of the sources."""

    sources: Path
    emulator: tuple[str, ...] = ()
    binutils: str = ""
    suffix: str = ""  # of programs
    rules: tuple[str, ...] = ()  # all if empty

    @property
    def folder(self) -> Path:
        return self.sources / "build" / "tests"

    def make(self, *options: str, targets: tuple[str, ...] = ("all",)) -> None:
        cmake = find_tool("cmake")
        copy_sources(self.sources)
        generator = ["-GNinja"] if shutil.which("ninja", path=str(Path(cmake).parent)) or shutil.which("ninja") else []
        common = ["-DADAPTK_PYTHON=OFF", "-DADAPTK_TESTS=ON", "-DADAPTK_WERROR=ON", "-DCMAKE_BUILD_TYPE=Release"]
        common += [f"-DPython_EXECUTABLE={sys.executable}"]  # beside which Eigen's headers are
        common += [f"-DADAPTK_RULES={';'.join(self.rules)}"] if self.rules else []
        run(cmake, "-S", self.sources, "-B", self.folder, *generator, *common, *options)
        run(cmake, "--build", self.folder, "--parallel", JOBS, "--target", *targets)

    def test(self, *options: str, quick: bool = False) -> None:
        run(
            *[find_tool("ctest"), "--test-dir", self.folder, "--output-on-failure", "--no-tests=error"],
            *["--parallel", JOBS, "--timeout", "1200", *options],
            quick=quick,
        )

    def program(self, name: str, *arguments: str, quick: bool = False) -> str:
        return run(*self.emulator, self.folder / "tests" / "cpp" / f"{name}{self.suffix}", *arguments, quick=quick)

    def objects(self, kind: str = "kernels", source: str = "kernels") -> dict[str, Path]:
        """Each target's kernel object."""
        found = self.folder.glob(f"cpp/CMakeFiles/adaptk_{kind}_*.dir/src/{source}.cpp.o*")
        return {re.search(rf"adaptk_{kind}_(\w+)\.dir", str(path))[1]: path for path in sorted(found)}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Build:
    find_compiler()
    build = Build(tmp_path_factory.mktemp("release"))
    build.make(targets=("all", "adaptk_batch"))
    return build


# The tests in their builds


def test_release(release: Build) -> None:
    release.test()


def test_objects_outlive_reinstalls(release: Build) -> None:
    """scikit-build-core deletes the main folder's CMakeFiles before each build by pip: no object may be there."""
    assert release.objects()
    assert not [path for path in (release.folder / "CMakeFiles").rglob("*.o*") if "CompilerId" not in str(path)]


# The same bits everywhere


def check_hashes(build: Build, isa: str) -> None:
    stored = (ROOT / "tests" / "cpp" / "hashes.txt").read_text().splitlines()
    wanted = [line for line in stored if not build.rules or line.split()[0] in build.rules]
    assert wanted
    got = build.program("hash_table", isa).splitlines()
    differ = [f"{b} (stored: {a})" for a, b in zip(wanted, got, strict=False) if a != b]
    assert not differ, "\n".join(differ[:20])
    assert len(got) == len(wanted)


@pytest.mark.parametrize("isa", adaptk.available_isas())
def test_hashes(release: Build, isa: str) -> None:
    check_hashes(release, isa)


def test_hashes_name_every_rule() -> None:
    lines = [line.split() for line in (ROOT / "tests" / "cpp" / "hashes.txt").read_text().splitlines()]
    names = set(adaptk.rules())
    assert {(line[0], line[1]) for line in lines} == {
        (name, dtype) for name in names for dtype in ("float32", "float64", "bfloat16", "float16")
    }
    assert len({tuple(line[:4]) for line in lines}) == len(lines)


# What a rule's loop must hold, from the text of its header


@dataclass
class Formula:
    """One rule's struct."""

    name: str
    kernel: str  # the rule whose kernel it uses
    needs: set[str] = field(default_factory=set)  # of "root", "divide", "select"


def block_after(text: str, at: int) -> str:
    """The text between the braces that open at or after `at`."""
    start = text.index("{", at)
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i]
    raise ValueError("unbalanced braces")


def strip_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|\"[^\"\n]*\"", "", text)


@lru_cache
def read_formulas() -> dict[str, Formula]:
    headers = [strip_comments(path.read_text()) for path in sorted(INCLUDE.rglob("*.hpp"))]
    text = "\n".join(headers)
    # The functions that formulas may call, other than the root, which is an instruction of its own.
    functions: dict[str, str] = {}
    for match in re.finditer(r"ADAPTK_HD (?:static )?\w+ (\w+)\([^)]*\) \{", text):
        if match[1] not in ("sqrt", "abs", "update", "apply_common"):
            functions[match[1]] = functions.get(match[1], "") + block_after(text, match.start())

    def needs(body: str, seen: frozenset[str] = frozenset()) -> set[str]:
        found = set()
        if re.search(r"\bsqrt\(", body):
            found.add("root")
        if re.search(r"[^/*]/[^/*]", body):
            found.add("divide")
        # A choice by a scalar of the step (c.first ? a : b, c.first != T(0) ? a : b) is taken once, outside the loop.
        if body.count("?") > len(re.findall(r"\bc\.\w+(?: != T\(0\))? \?", body)):
            found.add("select")
        for name in set(re.findall(r"\b(\w+)\(", body)) & functions.keys() - seen:
            found |= needs(functions[name], seen | {name})
        return found

    listed = re.search(r"using Rules = RuleList<([^>]*)>", text)
    assert listed
    formulas = {}
    for name in re.findall(r"\w+", listed[1]):
        match = re.search(rf"struct {name} \{{", text)
        assert match, f"no struct {name}"
        struct = block_after(text, match.start())
        other = re.search(r"using Kernel = (\w+);", struct)
        update = re.search(r"static void update\(", struct)
        assert update, f"{name} has no update"
        formulas[name] = Formula(name, other[1] if other else name, needs(block_after(struct, update.start())))
    return formulas


def test_formulas_are_read() -> None:
    """The reader of headers, on formulas that it must understand."""
    formulas = read_formulas()
    assert len(formulas) == len(adaptk.rules())
    assert formulas["Sgd"].needs == set()
    assert formulas["Momentum"].needs == set()
    assert formulas["Adam"].needs == {"root", "divide"}
    assert formulas["AdamW"].kernel == "Adam"
    assert formulas["AmsGrad"].needs == {"root", "divide", "select"}
    assert formulas["AdaMax"].needs == {"divide", "select"}
    assert formulas["RmsPropCentered"].needs == {"root", "divide", "select"}
    assert formulas["Lion"].needs == {"select"}
    assert formulas["DeltaBarDelta"].needs == {"select"}


# The objects


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str
    target: int | None  # of a jump


@dataclass(frozen=True)
class Dialect:
    """How an instruction set spells what is looked for."""

    register: str  # a full vector
    packed: str  # arithmetic
    scalar: str  # arithmetic and comparisons
    root: str
    divide: str
    compare: str
    select: str
    jump: str
    always: str  # jumps that never fall through

    def is_packed(self, i: Instruction, pattern: str) -> bool:
        return bool(re.fullmatch(pattern, i.name) and re.search(self.register, i.operands))


def x86(register: str) -> Dialect:
    return Dialect(
        register=register,
        packed=r"v?(add|sub|mul|div|sqrt)p[sd]",
        scalar=r"v?(add|sub|mul|div|sqrt|u?comi)s[sd]",
        root=r"v?sqrtp[sd]",
        divide=r"v?divp[sd]",
        # A minimum or maximum compares and selects.
        compare=r"v?(cmp\w*|min|max)p[sd]",
        select=r"v?blend\w+|v?p?(and|andn|or)(p[sd]|[dq])?|vpternlog[dq]|v?(min|max)p[sd]|v(mov|add|sub|mul)\w+",
        jump=r"j\w+",
        always=r"jmp\w*|ret\w*",
    )


NEON = Dialect(
    register=r"\bv\d+\.(4s|2d|16b)",
    packed=r"f(add|sub|mul|div|sqrt)",
    scalar=r"f(add|sub|mul|div|sqrt|cmpe?)",
    root=r"fsqrt",
    divide=r"fdiv",
    compare=r"fcm\w+|fmax|fmin",
    select=r"bsl|bit|bif|and|bic|orr|fmax|fmin",
    jump=r"b(\.\w+)?|cbn?z|tbn?z",
    always=r"b|ret",
)

X86 = {"portable": x86("%xmm"), "v2": x86("%xmm"), "v3": x86("%ymm"), "v4": x86("%zmm")}
DIALECTS = {"": X86, "aarch64-linux-gnu-": {"portable": NEON}}

# Fused, approximate: what the arithmetic contract rules out.
FORBIDDEN = r"v?fn?m(add|sub|addsub|subadd)\d+\w*|v?(rcp|rsqrt)\w*|f(n?m(add|sub)|ml[as])|f(recp|rsqrt)\w+"
# Sums of squares of numbers of at most 26 bits: the square is exact, and a fused operation rounds as the two would.
# Squares of doubles and of numbers that are scaled first are not exact.
EXACT_SQUARES = (
    r"::add_scaled_terms<[^<>]*::Square, false, (float|[^<>]*::BFloat16Bits)>"
    r"|::add_whole_rows<[^<>]*::Square, false(, float)?>"
)
EXACT = r"vfmadd\d+pd|vfmadd\d+sd|fmadd|fmla"


def allowed(function: str, instruction: str) -> bool:
    """Whether the arithmetic contract allows this instruction there."""
    if not re.fullmatch(FORBIDDEN, instruction):
        return True
    return re.search(EXACT_SQUARES, function) is not None and re.fullmatch(EXACT, instruction) is not None


def test_which_fused_operations_are_allowed() -> None:
    space = "adaptk::detail::(anonymous namespace)::"
    for function, exact in {
        f"add_scaled_terms<{space}Square, false, float>": True,
        f"add_scaled_terms<{space}Square, false, {space}BFloat16Bits>": True,
        f"add_whole_rows<{space}Square, false, float>": True,
        f"add_whole_rows<{space}Square, false>": True,
        f"add_scaled_terms<{space}Square, true, float>": False,
        f"add_scaled_terms<{space}Square, true, {space}BFloat16Bits>": False,
        f"add_scaled_terms<{space}Square, false, double>": False,
        f"add_scaled_terms<{space}Value, false, float>": False,
        f"add_whole_rows<{space}Square, true, float>": False,
        f"add_whole_rows<{space}Square, true>": False,
        f"add_whole_rows<{space}Square, false, double>": False,
        f"add_terms<{space}Square, float>": False,
        "step<adaptk::rules::Adam, float, false>": False,
    }.items():
        assert allowed(f"void {space}{function}(float const*)", "vfmadd231pd") is exact, function
        assert allowed(f"void {space}{function}(float const*)", "fmla") is exact, function
        assert not allowed(f"void {space}{function}(float const*)", "vfmadd231ps")
        assert not allowed(f"void {space}{function}(float const*)", "vfnmadd213pd")
        assert not allowed(f"void {space}{function}(float const*)", "vrcp14ps")
        assert allowed(f"void {space}{function}(float const*)", "vmulpd")


def disassemble(objdump: str, path: Path) -> dict[str, list[Instruction]]:
    functions: dict[str, list[Instruction]] = {}
    name = ""
    for line in run(objdump, "-dC", "--no-show-raw-insn", path).splitlines():
        if match := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            name = match[1]
            functions[name] = []
        elif match := re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line):
            target = re.search(r"\b([0-9a-f]+) <", match[3]) if re.match(r"j|b|cb|tb", match[2]) else None
            functions[name].append(
                Instruction(int(match[1], 16), match[2], match[3], int(target[1], 16) if target else None)
            )
    return functions


class Graph:
    """The flow of control within a function, instruction by instruction."""

    def __init__(self, code: list[Instruction], dialect: Dialect) -> None:
        at = {instruction.address: i for i, instruction in enumerate(code)}
        self.code = code
        self.after: list[list[int]] = [[] for _ in code]
        self.before: list[list[int]] = [[] for _ in code]
        for i, instruction in enumerate(code):
            if re.fullmatch(dialect.jump, instruction.name) and instruction.target in at:
                self.after[i].append(at[instruction.target])
            if i + 1 < len(code) and not re.fullmatch(dialect.always, instruction.name):
                self.after[i].append(i + 1)
        for i, following in enumerate(self.after):
            for j in following:
                self.before[j].append(i)
        # A jump closes a loop where every way to it leads through its target. (Code that was moved out of the way jumps
        # back too.)
        self.closing = {
            (i, head)
            for i, following in enumerate(self.after)
            for head in following
            if head <= i and i not in self.closure(0, self.after, stop=head) - {head}
        }
        self.forward = [[j for j in following if (i, j) not in self.closing] for i, following in enumerate(self.after)]

    @staticmethod
    def closure(start: int, edges: list[list[int]], stop: int = -1) -> set[int]:
        seen = {start}
        todo = [start]
        while todo:
            i = todo.pop()
            if i == stop:
                continue
            for j in edges[i]:
                if j not in seen:
                    seen.add(j)
                    todo.append(j)
        return seen

    def innermost_loops(self) -> list[set[int]]:
        by_head: dict[int, set[int]] = {}
        for i, head in self.closing:
            by_head.setdefault(head, set()).update(self.closure(i, self.before, stop=head))
        entered = self.closure(0, self.after)  # all but padding
        loops = [loop & entered for loop in by_head.values()]
        return [loop for loop in loops if not any(other < loop for other in loops)]


def faults_of(code: list[Instruction], needs: set[str], dialect: Dialect) -> Iterator[str]:
    """What is wrong with a rule's function."""
    graph = Graph(code, dialect)
    loops = graph.innermost_loops()

    def holds(loop: set[int], pattern: str) -> bool:
        return any(dialect.is_packed(code[i], pattern) for i in loop)

    packed = [loop for loop in loops if holds(loop, dialect.packed)]
    if not packed:
        yield "no loop with packed arithmetic"
        return

    def has_scalar(loop: set[int]) -> bool:
        return any(
            re.fullmatch(dialect.scalar, code[i].name) and not dialect.is_packed(code[i], dialect.scalar) for i in loop
        )

    if any(has_scalar(loop) for loop in packed):
        yield "scalar arithmetic in a packed loop"
    # What a vector leaves over may be done one by one, but after a packed loop and nowhere else.
    after_packed = set().union(*(graph.closure(i, graph.forward) for loop in packed for i in loop))
    scalar = [loop for loop in loops if loop not in packed and has_scalar(loop)]
    if any(not loop <= after_packed for loop in scalar):
        yield "a scalar loop that no packed loop comes before"
    if len(scalar) > len(packed):
        yield f"{len(scalar)} scalar loops beside {len(packed)} packed ones"
    wanted = {
        "root": [dialect.root],
        "divide": [dialect.divide],
        "select": [dialect.compare, dialect.select],
    }
    patterns = [pattern for need in needs for pattern in wanted[need]]
    if not any(all(holds(loop, pattern) for pattern in patterns) for loop in packed):
        yield f"no packed loop that holds {' and '.join(sorted(needs))}"


def check_loops(build: Build, dialects: dict[str, Dialect]) -> None:
    objdump = find_tool(f"{build.binutils}objdump")
    faults = []
    for target, path in build.objects().items():
        functions = disassemble(objdump, path)
        steps, loops = {}, {}
        for name, code in functions.items():
            if match := re.search(r"::(step|rule_loop)<adaptk::\w+::(\w+), (\w+), (\w+)[,>]", name):
                (steps if match[1] == "step" else loops)[match.groups()[1:]] = code
            faults += [f"{target}: {i.name} in {name}" for i in code if not allowed(name, i.name)]
        # Sums of squares keep to functions of their own, in which those that are not exact are looked at.
        for scaled, kind in itertools.product(("false", "true"), ("float", "double", ".*BFloat16Bits")):
            wanted = rf"::add_scaled_terms<[^<>]*::Square, {scaled}, {kind}>"
            if not any(re.search(wanted, name) for name in functions):
                faults.append(f"{target}: no function that is {wanted}")
        for formula in read_formulas().values():
            if formula.kernel != formula.name:
                continue
            for dtype in ("float", "double"):
                for coupled in ("false", "true"):
                    key = formula.name, dtype, coupled
                    code = steps.get(key, [])
                    # A loop that kernels of stored formats share with the step may be a function of its own.
                    if any(i.name in ("call", "jmp", "bl", "b") and "::rule_loop<" in i.operands for i in code):
                        code = loops[key]
                    found = faults_of(code, formula.needs, dialects[target]) if code else ["no such function"]
                    faults += [f"{target}: {formula.name}, {dtype}, coupled decay {coupled}: {f}" for f in found]
    assert not faults, "\n".join(faults)


def check_symbols(build: Build, kind: str = "kernels", source: str = "kernels", function: str = "") -> None:
    nm = find_tool(f"{build.binutils}nm")
    objects = build.objects(kind, source)
    assert "portable" in objects
    for target, path in objects.items():
        symbols = [line.split(maxsplit=2)[-2:] for line in run(nm, "-C", path).splitlines()]
        kinds = {kind for kind, _ in symbols}
        assert not kinds & set("WwVvuiC"), f"{target}: weak or common symbols"
        exported = [name for kind, name in symbols if kind.isupper() and kind != "U"]
        assert exported == [f"adaptk::detail::{function or kind}_{target}()"]
        # What the compiler may ask of the C library; a call of anything else could stand in a loop.
        undefined = {name for kind, name in symbols if kind == "U"}
        assert undefined <= {"_GLOBAL_OFFSET_TABLE_", "memcpy", "memset", "memmove"}, target


def gcc_or_clang_objects(build: Build) -> None:
    if not build.objects():
        pytest.skip("the kernel objects are not where GCC and Clang builds have them")
    if build.binutils == "" and os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip(f"no table of {os.uname().machine} instructions")


def dialects_of(build: Build) -> dict[str, Dialect]:
    native = build.binutils == "" and os.uname().machine == "aarch64"
    return DIALECTS["aarch64-linux-gnu-" if native else build.binutils]


def test_symbols(release: Build) -> None:
    gcc_or_clang_objects(release)
    check_symbols(release)


def check_coefficients(build: Build, targets: set[str]) -> None:
    """What a step computes once calls the C library, and shares nothing between its objects either."""
    nm = find_tool(f"{build.binutils}nm")
    objects = build.objects("coefficients", "coefficients")
    assert set(objects) == targets
    for target, path in objects.items():
        symbols = [line.strip().split(maxsplit=2)[-2:] for line in run(nm, "-C", path).splitlines()]
        shared = [name for kind, name in symbols if kind in "WwVvuiC"]
        # The object of another processor has other names.
        assert [name for name in shared if f"adaptk::{target}::" not in name] == []
        exported = [name for kind, name in symbols if kind.isupper() and kind not in "UWV"]
        assert exported == [f"adaptk::detail::coefficients_{target}()"]
        undefined = {name for kind, name in symbols if kind == "U"}
        assert not [name for name in undefined if "::" in name], f"{target}: {undefined}"
        assert ("fma" in undefined) == (target == "portable" and not build.emulator), target


def test_coefficients(release: Build) -> None:
    gcc_or_clang_objects(release)
    check_coefficients(release, {"portable", "v3"} if "v3" in release.objects() else {"portable"})


def check_contract(build: Build, kind: str, source: str, function: str) -> None:
    """The same of objects without rules, which keep to the arithmetic contract too."""
    check_symbols(build, kind, source, function)
    objdump = find_tool(f"{build.binutils}objdump")
    for target, path in build.objects(kind, source).items():
        for name, code in disassemble(objdump, path).items():
            assert not [i.name for i in code if re.fullmatch(FORBIDDEN, i.name)], f"{target}: {name}"


def check_batches(build: Build) -> None:
    check_contract(build, "batch", "batch_kernels", "batch")


def test_batches(release: Build) -> None:
    gcc_or_clang_objects(release)
    check_batches(release)


def check_random_kernels(build: Build) -> None:
    check_contract(build, "kernels", "random_kernels", "random")
    check_contract(build, "kernels", "row_kernels", "row_wise")


def test_random_kernels(release: Build) -> None:
    gcc_or_clang_objects(release)
    check_random_kernels(release)


def check_dense_symbols(build: Build) -> None:
    """The solvers' dense kernels: no symbol of one object can stand in for another one's."""
    nm = find_tool(f"{build.binutils}nm")
    objects = sorted(build.folder.glob("cpp/CMakeFiles/adaptk_dense_*.dir/src/dense_kernels.cpp.o*"))
    assert len(objects) == len(build.objects())
    for path in objects:
        target = re.search(r"adaptk_dense_(\w+)\.dir", str(path))[1]
        symbols = [line.split(maxsplit=2)[-2:] for line in run(nm, "-C", path).splitlines()]
        assert not {kind for kind, _ in symbols} & set("WwVvuiC"), f"{target}: weak or common symbols"
        exported = [name for kind, name in symbols if kind.isupper() and kind != "U"]
        assert exported == [f"adaptk::detail::dense_{target}()"]


def test_dense_symbols(release: Build) -> None:
    gcc_or_clang_objects(release)
    check_dense_symbols(release)


def test_loops(release: Build) -> None:
    gcc_or_clang_objects(release)
    check_loops(release, dialects_of(release))
