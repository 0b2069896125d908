"""The cost of the compiled CUDA kernels, counted in their machine code. Nothing is run.

`--write` writes the tables to bench/cuda.md. Needs nvcc, cuobjdump and nvdisasm
(pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import argparse
import glob
import heapq
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "cuda"
FLAGS = ["-std=c++20", "--fmad=false", *(f"-I{ROOT / folder}" for folder in ("cpp/include", "cpp/src", "cuda"))]


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: next to the compiler that is set, on the path, or in an installed wheel."""
    if name == "nvcc" and (named := shutil.which(os.environ.get("CUDACXX", ""))):
        return named
    places = [*sys.path, sysconfig.get_path("platlib")]
    wheels = [folder for p in places for folder in sorted(glob.glob(f"{p}/nvidia/cu[1-9]*/bin"), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(wheels))


def constants() -> dict[str, int]:
    """The integer constants of tuning.hpp."""
    text = (CUDA / "tuning.hpp").read_text()
    found = re.findall(r"inline constexpr (?:unsigned|int|std::size_t) (\w+) = (\d+);", text)
    return {name: int(value) for name, value in found}


def resident_blocks(compute_bytes: int, states: int) -> int:
    """The function of this name in tuning.hpp."""
    body = re.search(r"constexpr int resident_blocks\(.*?\) \{(.*?)\n\}", (CUDA / "tuning.hpp").read_text(), re.S)
    assert body
    for line in filter(None, map(str.strip, body[1].splitlines())):
        condition, value = re.fullmatch(r"(?:if \((.*?)\) )?return (.*);", line).groups()
        names = {"compute_bytes": compute_bytes, "states": states}
        if condition is not None:
            assert re.fullmatch(r"compute_bytes == \d", condition), condition
            if names["compute_bytes"] != int(condition.split()[-1]):
                continue
        *choices, last = value.split(" : ")
        for choice in choices:
            test, result = choice.split(" ? ")
            left, comparison, right = test.split()
            if {"<=": names[left] <= int(right), "==": names[left] == int(right)}[comparison]:
                return int(result)
        return int(last)
    raise AssertionError("resident_blocks() returns nothing")


# Multiprocessors: the unit in which registers are allocated to a warp, and the number of warps.
REGISTERS, REGISTER_UNIT, PARTITIONS = 65536, 256, 4
WARPS = {"75": 32, "80": 64, "86": 48, "89": 48, "90": 64, "100": 64, "103": 64, "110": 48, "120": 48}


def blocks_that_fit(registers: int, threads: int, arch: str) -> int:
    """The number of blocks of a kernel on a multiprocessor, as limited by registers and warps."""
    warps = -(-threads // 32)
    unit = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    return min(REGISTERS // PARTITIONS // unit * PARTITIONS // warps, WARPS[arch] // warps)


@dataclass
class Instruction:
    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def is_short_vector(self) -> bool:
        """Whether it loads or stores 8 bytes of elements: these bypass the first-level cache, and tables do not."""
        return self.base in ("LDG", "STG") and ".64" in self.opcode and "STRONG" in self.opcode

    @property
    def target(self) -> int | None:
        found = re.search(r"(?:^|[\s,])0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if found else None


@dataclass
class Kernel:
    name: str
    arch: str
    ptx: list[str]
    registers: int
    resources: dict[str, int]
    sass: list[Instruction] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return re.match(r"_Z(?:N6adaptk4cuda)?\d+([a-z_]\w*?)_kernel", self.name)[1]

    @property
    def rule(self) -> str | None:
        """The name of the rule's struct in lower case, streams_N, or combine."""
        if found := re.search(r"StreamsILm(\d+)E", self.name):
            return f"streams_{found[1]}"
        if "7CombineE" in self.name:
            return "combine"
        found = re.search(r"_kernelIN\w*?4base(\d+)(\w+)", self.name)
        return found[2][: int(found[1])].lower() if found else None

    @property
    def type(self) -> str | None:
        found = re.search(r"E([fd])EEv", self.name)
        return found and found[1]


def rule_names() -> dict[str, str]:
    """The registry's names, by the lower-case names of the rules' structs."""
    import adaptk

    return {name.replace("_", ""): name for name in adaptk.rules()}


def states_of_rules() -> dict[str, int]:
    """Number of states, by the lower-case name of the rule's struct."""
    import adaptk
    from adaptk._registry import ROW_WISE

    counts = {name: len(adaptk.rules()[rule].states) for name, rule in rule_names().items()}
    counts |= {f"streams_{n}": n for n in range(5)} | {"combine": 0}
    # The size of their elements in bytes.
    return counts | {name.replace("_", ""): len(rule.states) - 1 for name, rule in ROW_WISE.items()}


def read_ptx(text: str) -> dict[str, list[str]]:
    """The lines of each kernel's body: instructions and everything else."""
    kernels = {}
    for name, body in re.findall(r"^\.(?:visible |weak )?\.?entry (\w+)\(.*?^\{(.*?)^\}", text, re.S | re.M):
        lines = (line.strip() for line in body.splitlines())
        kernels[name] = [line for line in lines if line and not line.startswith(("//", "$"))]
    return kernels


def read_resources(log: str) -> dict[str, dict[str, int]]:
    """The output of ptxas -v for each kernel."""
    found = {}
    for name, text in re.findall(r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", log, re.S):
        number = {
            "stack": r"(\d+) bytes stack frame",
            "spill stores": r"(\d+) bytes spill stores",
            "spill loads": r"(\d+) bytes spill loads",
            "registers": r"Used (\d+) registers",
            "shared": r"(\d+) bytes smem",
            "local": r"(\d+) bytes lmem",
        }
        hits = {key: re.search(pattern, text) for key, pattern in number.items()}
        found[name] = {key: int(hit[1]) if hit else 0 for key, hit in hits.items()}
    return found


def read_sass(text: str) -> dict[str, list[Instruction]]:
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if found := re.match(r"\s*Function : (\S+)", line):
            current = kernels.setdefault(found[1], [])
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", line):
            current.append(Instruction(int(found[1], 16), (found[2] or "").strip(), found[3], found[4]))
    return kernels


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


def disassemble(cubin: Path) -> dict[str, list[Instruction]] | None:
    """Machine code, or None without the tools for it."""
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_tool("nvdisasm")
    if cuobjdump is None or nvdisasm is None:
        return None
    return read_sass(run(cuobjdump, "-sass", cubin).stdout)


def compile_ptx(source: Path, arch: str, folder: Path, flags: Iterable[str], name: str) -> Path:
    ptx = folder / f"{name}.{arch}.ptx"
    if not ptx.exists():
        run(find_tool("nvcc"), *flags, f"-arch=compute_{arch}", "-ptx", source, "-o", ptx)
    return ptx


def assemble(ptx: Path, arch: str) -> list[Kernel]:
    cubin = ptx.with_suffix(f".sm_{arch}.cubin")
    log = run(find_tool("nvcc"), f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v", ptx, "-o", cubin).stderr
    bodies, sass = read_ptx(ptx.read_text()), disassemble(cubin) or {}
    kernels = []
    for kernel, resources in read_resources(log).items():
        kernels.append(Kernel(kernel, arch, bodies[kernel], resources["registers"], resources, sass.get(kernel, [])))
    return kernels


def compile_source(
    source: Path, arch: str, folder: Path, flags: Iterable[str], name: str, ptx: str | None = None
) -> list[Kernel]:
    return assemble(compile_ptx(source, ptx or arch, folder, flags, name), arch)


def rule_sources() -> dict[str, tuple[Path, list[str]]]:
    """The source and the options of each part of the rules' kernels."""
    return {f"part{n}": (CUDA / "rule_kernels.cu", [*FLAGS, f"-DADAPTK_PART={n}"]) for n in range(parts())}


def compile_kernels(
    arch: str, folder: Path, jobs: int = 2, parts: Collection[str] | None = None, ptx: str | None = None
) -> dict[str, Kernel]:
    """Kernels of the project for one architecture, by symbol; of rules and batches all or only these parts. They are
    assembled from PTX for the architecture `ptx`, which must not be later, and which the folder may already have."""
    sources = rule_sources() | {name: (CUDA / f"{name}_kernels.cu", FLAGS) for name in ("batch", "row_wise")}
    chosen = {name: source for name, source in sources.items() if parts is None or name in parts}
    work = [*chosen.items(), ("common", (CUDA / "common_kernels.cu", FLAGS))]
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(lambda w: compile_source(w[1][0], arch, folder, w[1][1], w[0], ptx), work)
        return {kernel.name: kernel for kernels in done for kernel in kernels}


def parts() -> int:
    return int(re.search(r"parts = (\d+);", (CUDA / "kernels.hpp").read_text())[1])


def release_architectures() -> list[str]:
    """The architectures of nvcc.cmake that this nvcc knows."""
    named = re.findall(r"set\(numbers ([\d ]+)\)", (CUDA / "nvcc.cmake").read_text())
    known = re.findall(r"sm_(\d+)\b", run(find_tool("nvcc"), "--list-gpu-code").stdout)
    return [arch for arch in max(named, key=len).split() if arch in known]


# The path of a full tile through the machine code


@dataclass
class Way:
    instructions: list[Instruction]

    def count(self, *bases: str) -> int:
        return sum(i.base in bases for i in self.instructions)

    def vectors(self, base: str) -> int:
        return sum(i.base == base and ".128" in i.opcode for i in self.instructions)

    def short_vectors(self, base: str) -> int:
        return sum(i.base == base and i.is_short_vector for i in self.instructions)

    def phases(self) -> tuple[int, int]:
        """The number of waits for loads of elements, and the largest number of bytes that a lane waits for at once."""
        pending: set[str] = set()
        phases, under_way, most = 0, 0, 0
        for i in self.instructions:
            operands = [o.strip() for o in i.operands.split(",")]
            words = 0 if i.base != "LDG" else 4 if ".128" in i.opcode else 2 if i.is_short_vector else 0
            sources = operands if i.base == "STG" else operands[1:]
            if pending & set(itertools.chain(*map(registers_in, sources))):
                pending, under_way, phases = set(), 0, phases + 1
            if words:
                first = int(re.search(r"R(\d+)", operands[0])[1])
                pending |= {f"R{first + k}" for k in range(words)}
                under_way += 4 * words
                most = max(most, under_way)
        return phases, most


def registers_in(operand: str) -> Iterator[str]:
    for number, wide in re.findall(r"\bR(\d+)((?:\.\w+)*)", operand):
        yield f"R{number}"
        if ".64" in wide:
            yield f"R{int(number) + 1}"


@dataclass(frozen=True)
class Wanted:
    """The instructions that identify the path of a full tile."""

    loads: int  # vectors of 16 bytes
    stores: int
    short: int = 0  # loads and stores of 8 bytes
    exchanges: int = 0  # words between pairs of lanes
    scales: int = 0  # numbers that one lane passes to others
    draws: int = 0  # draws of random bits
    known: bool = False  # formats that the kernel was compiled for: it reads none from the tables


# The first multiplication of a draw, and the number of 8-bit codes that one draw is used for (adaptk/rounding.hpp).
DRAW = "0x7feb352d"
CODES_PER_DRAW = 4


# In the tables, the formats of a tensor's states.
FORMAT_BYTES = re.compile(r"\+0x4[b-e]\]")


def loops_that_store(kernel: Kernel) -> dict[int, set[int]]:
    """For the place of each first instruction, the places of the jumps back to it."""
    at = {i.address: n for n, i in enumerate(kernel.sass)}
    store = [i.address for i in kernel.sass if i.base == "STG"]
    loops: dict[int, set[int]] = {}
    for n, i in enumerate(kernel.sass):
        back = i.base == "BRA" and i.target in at and i.target < i.address
        if back and any(i.target < s < i.address for s in store):
            loops.setdefault(at[i.target], set()).add(n)
    return loops


def shortest_way(kernel: Kernel, wanted: Wanted) -> Way | None:
    """The shortest path around a loop over tiles with these instructions.

    It is the path of a full tile, without the slow paths of division and root and without coupled decay.
    """
    loops = loops_that_store(kernel)
    if not loops:
        return None
    if not wanted.known:
        head = min(loops)
        return shortest_way_around(kernel, wanted, head, loops[head])
    # The loop over the tiles of a tensor with these formats is inside the one over all tiles, and behind other code.
    for head in sorted(loops, reverse=True):
        if way := shortest_way_around(kernel, wanted, head, loops[head]):
            return way
    return None


def shortest_way_around(kernel: Kernel, wanted: Wanted, head: int, ends: Collection[int]) -> Way | None:
    limits = (wanted.loads, wanted.stores, wanted.short, wanted.short, wanted.exchanges, wanted.scales, wanted.draws)
    code = kernel.sass
    at = {i.address: n for n, i in enumerate(code)}
    start: tuple[int, ...] = (head, *[0] * len(limits))
    queue: list[tuple[int, tuple[int, ...]]] = [(0, start)]
    before: dict[tuple[int, ...], tuple[int, ...] | None] = {start: None}
    best = {start: 0}
    while queue:
        cost, state = heapq.heappop(queue)
        if cost > best[state]:
            continue
        n, *seen = state
        i = code[n]
        if wanted.known and i.opcode == "LD.E.U8" and FORMAT_BYTES.search(i.operands):
            continue
        is_load, is_store = i.base == "LDG", i.base == "STG"
        vector, short = ".128" in i.opcode, i.is_short_vector
        met = (is_load and vector, is_store and vector, is_load and short, is_store and short)
        others = (i.opcode.startswith("SHFL.BFLY"), i.opcode.startswith("SHFL.IDX"), DRAW in i.operands)
        seen = [old + new for old, new in zip(seen, (*met, *others), strict=True)]
        if any(s > limit for s, limit in zip(seen, limits, strict=True)):
            continue
        if n in ends and tuple(seen) == limits:
            way = []
            step: tuple[int, ...] | None = state
            while step is not None:
                way.append(code[step[0]])
                step = before[step]
            return Way(way[::-1])
        scalar = (is_load or is_store) and "STRONG" in i.opcode and not vector and not short
        price = 1000 if i.base in ("CALL", "WARPSYNC") or scalar else 1
        following = []
        if i.base == "BRA" and i.target in at:
            if "DIV" not in i.opcode:
                following.append(at[i.target])
            conditional = i.guard or re.match(r"!?U?P\d", i.operands) or "DIV" in i.opcode
            if conditional:
                following.append(n + 1)
        elif i.base in ("EXIT", "RET") and not i.guard:
            continue
        else:
            following.append(n + 1)
        for m in following:
            if m >= len(code):
                continue
            further = (m, *seen)
            if cost + price < best.get(further, 1 << 30):
                best[further] = cost + price
                before[further] = state
                heapq.heappush(queue, (cost + price, further))
    return None


# The performance model


@dataclass(frozen=True)
class Machine:
    """An H100 SXM. Rates are warp instructions per cycle of one multiprocessor."""

    multiprocessors: int = 132
    clock: float = 1.755e9
    copy: float = 3.0e12  # bytes per second, read and written, as measured for copies; 3.35e12 by the data sheet
    latency: float = 0.8e-6  # seconds of a load under load
    arch: str = "90"
    issue: float = 4.0
    fp32: float = 4.0
    fp64: float = 2.0
    special: float = 0.5  # reciprocals, roots, conversions from and to float64 and float16
    vectors: float = 0.25  # of 16 bytes per lane
    dependent: float = 6.0  # cycles from an instruction to one that depends on its result

    @property
    def bytes_a_cycle(self) -> float:
        return self.copy / self.multiprocessors / self.clock


FP64 = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX")
FP32 = ("FADD", "FMUL", "FFMA", "FSETP", "FMNMX", "FSEL", "FCHK", "IMAD")
SPECIAL = ("MUFU", "F2F", "F2I", "I2F")


@dataclass
class Figures:
    rule: str
    types: str
    bytes_moved: float  # per parameter
    instructions: float  # per lane and parameter
    registers: int
    warps: int
    phases: int
    in_flight: float  # bytes per multiprocessor
    shares: dict[str, float]  # the fraction of the copy bandwidth that each unit could sustain


def figures(kernel: Kernel, types: str, moved: float, held: int, way: Way, elements: int, m: Machine) -> Figures:
    """The figures of a path with so many elements per lane, of `moved` bytes each, of which `held` are loaded."""
    k = constants()
    warps = blocks_that_fit(kernel.registers, k["block_threads"], m.arch) * (k["block_threads"] // k["warp"])
    phases, lane_bytes = way.phases()
    # The cycles that the memory needs, at one multiprocessor's share of the bandwidth.
    memory = moved * k["warp"] * elements / m.bytes_a_cycle
    n = len(way.instructions)
    alone = phases * m.latency * m.clock + n * m.dependent
    cycles = {
        "issue": n / m.issue,
        "fp32": way.count(*FP32) / m.fp32,
        "fp64": way.count(*FP64) / m.fp64,
        "special": way.count(*SPECIAL) / m.special,
        "vectors": sum(way.vectors(b) + way.short_vectors(b) / 2 for b in ("LDG", "STG")) / m.vectors,
        "latency": alone / warps,
    }
    shares = {name: memory / c if c else float("inf") for name, c in cycles.items()}
    in_flight = min(lane_bytes, held * elements) * k["warp"] * warps
    return Figures(
        kernel.rule or kernel.kind, types, moved, n / elements, kernel.registers, warps, phases, in_flight, shares
    )


def straight_loops(kernel: Kernel) -> Iterator[Way]:
    """The bodies of loops that contain no branch."""
    at = {i.address: n for n, i in enumerate(kernel.sass)}
    for n, i in enumerate(kernel.sass):
        if i.base == "BRA" and i.target in at and i.target < i.address:
            body = kernel.sass[at[i.target] : n + 1]
            if not any(other.base in ("BRA", "EXIT", "CALL", "RET") for other in body[:-1]):
                yield Way(body)


def norm_loops(kernel: Kernel) -> dict[str, Way]:
    """The loops over rows of leaves within one aligned tensor, by the type of the gradient."""
    found: dict[str, Way] = {}
    k = constants()
    for way in straight_loops(kernel):
        if way.vectors("LDG") == 0:
            continue
        if way.count("DADD") == way.vectors("LDG") * 2:
            name = "float64"
        elif way.count("DADD") == way.vectors("LDG") * 4:
            name = "float32"
        else:
            # Of the two 16-bit types, only float16 has instructions for conversion.
            name = "float16" if way.count("HADD2", "F2F") > way.count("DADD") else "bfloat16"
        assert name not in found, f"two loops over rows of {name}"
        found[name] = way
    assert all(way.vectors("LDG") <= k["norm_vectors"] for way in found.values())
    return found


def norm_figures(kernels: dict[str, Kernel], m: Machine) -> Iterator[Figures]:
    """The figures of the rows of a leaf that are loaded at once, without the beginning and the end of the leaf."""
    (kernel,) = (kernel for kernel in kernels.values() if kernel.kind == "norm")
    ways = norm_loops(kernel)
    for types, width in (("float32", 4), ("bfloat16", 2), ("float64", 8)):
        yield figures(kernel, types, width, width, ways[types], ways[types].count("DADD"), m)


def row_wise_rules() -> set[str]:
    from adaptk._registry import ROW_WISE

    return {name.replace("_", "") for name in ROW_WISE}


def ways_of_a_tile(kernel: Kernel, states: int, drawn: int) -> Iterator[tuple[str, Wanted, tuple[float, float, float]]]:
    """The types of (param, gradient, states), the instructions on their path, and their bytes.

    If states have 8 bits, `drawn` of them are rounded stochastically.
    """
    s = states
    if kernel.type == "d":
        if kernel.kind == "step":
            yield "float64", Wanted(8 + 4 * s, 4 + 4 * s), (8, 8, 8)
    elif kernel.kind == "step":
        yield "float32", Wanted(4 + 2 * s, 2 + 2 * s), (4, 4, 4)
    else:
        # Pairs of lanes exchange words of params and gradients.
        yield "bfloat16", Wanted(2 + 2 * s, 1 + 2 * s, exchanges=6), (2, 2, 4)
        # In the loop for all formats, a random draw for one state cannot be told from those of other formats.
        if s >= 2 or (s == 1 and drawn == 0):
            # For each state: its codes when loaded and stored, and the largest magnitude of 16 lanes.
            draws = constants()["per_lane"] // CODES_PER_DRAW * drawn
            known = s >= 2 and kernel.rule not in row_wise_rules()
            wanted = Wanted(4, 2, short=s, exchanges=6 * s, scales=s, draws=draws, known=known)
            yield "float32, 8-bit states", wanted, (4, 4, 1 + 4 / 128)


def all_figures(kernels: dict[str, Kernel], m: Machine) -> Iterator[Figures]:
    import adaptk

    counts = states_of_rules()
    drawn = {
        name: sum(state.nonnegative for state in adaptk.rules()[rule].states) for name, rule in rule_names().items()
    }
    order = list(counts)
    steps = [k for k in kernels.values() if k.kind in ("step", "stored_step") and k.rule != "combine"]
    for kernel in sorted(steps, key=lambda k: (order.index(k.rule), k.type != "f", k.kind)):
        s = counts[kernel.rule]
        for types, wanted, (param, grad, state) in ways_of_a_tile(kernel, s, drawn.get(kernel.rule, 0)):
            # If predicates choose between loads, those of the other types are on the path too.
            more = range(wanted.loads, 14 + 4 * s + 1)
            way = next(filter(None, (shortest_way(kernel, replace(wanted, loads=n)) for n in more)), None)
            if way is None:
                raise RuntimeError(f"no way of a full tile through {kernel.name} ({types})")
            moved, held = 2 * param + grad + 2 * state * s, param + grad + state * s
            yield figures(kernel, types, moved, held, way, constants()["per_lane"], m)


# Batches of fits


@dataclass
class Fits:
    """An upper bound of the cost of a problem, and lower bounds of the number per second."""

    model: str
    registers: int
    threads: int  # per multiprocessor
    trial: int  # instructions per trial point: all outside of the loops over points, counted once
    point: int  # instructions per data point: the bodies of all these loops
    issue: float  # fits per second, limited only by the issue of instructions
    latency: float  # fits per second if every instruction waits for the one before


# Gpufit's published test, as in solve_batch.py: 5 x 5 pixels, the start and up to 10 trial points.
FIT_POINTS, FIT_TRIALS = 25, 11
SHARED_MEMORY = 227 * 1024  # per multiprocessor of an H100; a block takes 1 KiB more than it requests
# For each model, by the lower-case name of its struct, the number of parameters and the rows per block.
FIT_MODELS = {
    "gaussian": 4,
    "gaussian2d": 5,
    "gaussian2delliptic": 6,
    "gaussian2drotated": 7,
    "lorentz": 4,
    "exponentials 1": 3,
    "exponentials 2": 5,
    "exponentials 3": 7,
}
FIT_ROWS = 32


def fit_model(kernel: Kernel) -> str:
    terms = re.search(r"ExponentialsILi(\d)E", kernel.name)
    return f"exponentials {terms[1]}" if terms else str(kernel.rule)


def fit_threads(kernel: Kernel) -> int:
    """The threads of a block, as limited by the shared memory of its rows."""
    return kernel.resources["shared"] // (FIT_ROWS * (FIT_MODELS[fit_model(kernel)] + 1) * 4)


def loops_over_rows(kernel: Kernel) -> list[range]:
    """Addresses of the innermost loops that access shared memory, which holds the rows of the Jacobian."""
    at = {i.address for i in kernel.sass}
    found = {
        range(i.target, i.address + 1)
        for i in kernel.sass
        if i.base == "BRA" and i.target in at and i.target < i.address
    }
    inner = [r for r in found if not any(r != o and r.start <= o.start and o.stop <= r.stop for o in found)]
    touched = [i.address for i in kernel.sass if i.base in ("LDS", "STS")]
    return sorted((r for r in inner if any(t in r for t in touched)), key=lambda r: r.start)


def fits(kernel: Kernel, m: Machine) -> Fits:
    loops = loops_over_rows(kernel)
    point = sum(any(i.address in r for r in loops) for i in kernel.sass)
    trial = len(kernel.sass) - point
    warps = fit_threads(kernel) // constants()["warp"]
    most = SHARED_MEMORY // (kernel.resources["shared"] + 1024)
    held = min(blocks_that_fit(kernel.registers, fit_threads(kernel), m.arch), most) * warps
    all_threads = m.multiprocessors * m.clock * constants()["warp"] / (FIT_TRIALS * (trial + FIT_POINTS * point))
    issued = min(m.issue, held / m.dependent)
    return Fits(
        fit_model(kernel), kernel.registers, held * constants()["warp"], trial, point, all_threads * m.issue,
        all_threads * issued,
    )  # fmt: skip


def fits_table(kernels: dict[str, Kernel], m: Machine) -> list[str]:
    lines = [
        "| model | registers | threads | a trial point | a point | issue | latency |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [fits(k, m) for k in kernels.values() if k.kind == "fit"]
    for r in sorted(rows, key=lambda r: list(FIT_MODELS).index(r.model)):
        speeds = f"{r.issue / 1e6:.0f} | {r.latency / 1e6:.0f}"
        lines.append(f"| {r.model} | {r.registers} | {r.threads} | {r.trial} | {r.point} | {speeds} |")
    return lines


def table(rows: list[Figures], m: Machine) -> list[str]:
    need = m.bytes_a_cycle * m.clock * m.latency
    names = rule_names()
    lines = [
        "| rule | types | bytes | instructions | registers | warps | waits | in flight | over Little | issue | fp64 | "
        "special | latency | share |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        held = f"{r.in_flight / 1024:.0f} KiB | {r.in_flight / need:.1f}"
        shown = ["∞" if r.shares[n] > 99 else f"{r.shares[n]:.1f}" for n in ("issue", "fp64", "special", "latency")]
        share = min(1.0, *r.shares.values())
        lines.append(
            f"| {names.get(r.rule, r.rule)} | {r.types} | {r.bytes_moved:g} | {r.instructions:.0f} | {r.registers} "
            f"| {r.warps} | {r.phases} | {held} | {' | '.join(shown)} | {share:.0%} |"
        )
    return lines


def other_kernels(kernels: dict[str, Kernel]) -> list[str]:
    lines = ["| kernel | registers | shared memory | instructions in all |", "|---|---|---|---|"]
    others = [k for k in kernels.values() if k.kind not in ("step", "stored_step", "prepare", "fit")]
    return lines + [f"| {k.kind} | {k.registers} | {k.resources['shared']} | {len(k.sass)} |" for k in others]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables to bench/cuda.md")
    parser.add_argument("--fits", action="store_true", help="only the table of batches of fits")
    options = parser.parse_args()
    missing = [name for name in ("nvcc", "cuobjdump", "nvdisasm") if find_tool(name) is None]
    if missing:
        print(f"nothing counted: {', '.join(missing)} not found")
        return 0
    m = Machine()
    with tempfile.TemporaryDirectory() as folder:
        kernels = compile_kernels(m.arch, Path(folder), parts=["batch"] if options.fits else None)
    tables = {"fits": fits_table(kernels, m)}
    if not options.fits:
        tables["counted"] = [
            *table([*all_figures(kernels, m), *norm_figures(kernels, m)], m), "", *other_kernels(kernels)
        ]  # fmt: skip
    if options.write:
        path = ROOT / "bench" / "cuda.md"
        for name, lines in tables.items():
            before, rest = path.read_text().split(f"<!-- {name} -->\n", 1)
            after = rest.split("<!-- end -->", 1)[1]
            path.write_text(f"{before}<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- end -->{after}")
    else:
        print("\n\n".join("\n".join(lines) for lines in tables.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
