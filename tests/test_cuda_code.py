"""What the CUDA compiler makes of the kernels, for a release's architectures: no GPU is needed to look.

Each check is a function from a kernel to what is wrong with it, and is shown kernels that are wrong on purpose.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import adaptk  # noqa: E402
import cuda_counts as code  # noqa: E402
from adaptk import _core  # noqa: E402
from cuda_counts import Kernel  # noqa: E402

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(code.find_tool("nvcc") is None, reason="needs nvcc"),
]


WHOLE = "90"  # that of most data centres, and of the figures in bench/cuda.md


def looked_at() -> dict[str, list[str]]:
    """Architectures of a release, and the parts of the rules that are looked at for each. One has every rule; the
    oldest and the newest a quarter of them each, which together have rules of every number of states: what differs
    between architectures is the number of registers and how memory is accessed, and states decide about these. The
    others have the instructions of one of these. Every rule of every architecture if ADAPTK_EVERY_ARCHITECTURE is set.
    """
    every = [*(f"part{n}" for n in range(code.parts())), "batch", "row_wise"]
    of_release = code.release_architectures()
    if os.environ.get("ADAPTK_EVERY_ARCHITECTURE"):
        return dict.fromkeys(of_release, every)
    return {of_release[0]: ["part0"], of_release[-1]: ["part2"]} | {a: every for a in of_release if a == WHOLE}


# Kernels of batches are counted where all rules are.
FITS = {"gaussian", "gaussian2d", "gaussian2delliptic", "gaussian2drotated", "lorentz", "exponentials"}
LOOKED_AT = looked_at() if code.find_tool("nvcc") else {WHOLE: []}
CONSTANTS = code.constants()
PER_LANE = CONSTANTS["per_lane"]
SIZE = {"f": 4, "d": 8}
STEPS = ("step", "stored_step")  # for tensors of the type that is computed in, and for others
OF_ROWS = ("row_leaves", "long_rows", "catch_up")
ROW_WISE = {"rowwiseadagrad", "rowwiseadam"}  # with a number for each row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module", params=LOOKED_AT)
def kernels(request: pytest.FixtureRequest, folder: Path) -> dict[str, Kernel]:
    """Architectures before 100 from one PTX, that of the oldest: see the next test. nvcc has another version of its
    compiler for the later ones."""
    arch = request.param
    ptx = arch if int(arch) >= 100 else next(iter(LOOKED_AT))
    return code.compile_kernels(arch, folder, parts=LOOKED_AT[arch], ptx=ptx)


def test_sources_are_the_same_for_every_architecture() -> None:
    """They ask whether they are compiled for a device, and never for which one: by one compiler, PTX differs in its
    `.target` alone."""
    sources = [p for name in ("cpp/include", "cpp/src", "cuda") for p in (ROOT / name).rglob("*") if p.is_file()]
    asked = [line.strip() for p in sources for line in p.read_text().splitlines() if "__CUDA_ARCH" in line]
    assert asked
    assert [line for line in asked if not re.fullmatch(r"#if defined\(__CUDA_ARCH__\)", line)] == []


FACTS = _core.formats()


@lru_cache
def states() -> dict[str, int]:
    return code.states_of_rules()


def opcodes(kernel: Kernel) -> Iterator[str]:
    """Those of the PTX, without predicates."""
    for line in kernel.ptx:
        if found := re.match(r"(?:@!?%\w+\s+)?([a-z][\w.:]*)", line):
            yield found[1]


# Checks


def memory_of_its_own(k: Kernel) -> list[str]:
    """Stack frames, spilled registers, arrays that the compiler could not keep in registers."""
    found = [f"{k.resources[name]} bytes of {name}" for name in ("stack", "spill stores", "spill loads", "local")
             if k.resources[name]]  # fmt: skip
    found += [line for line in k.ptx if re.search(r"\.local\b|__local_depot", line)]
    return found + [i.opcode for i in k.sass if i.base in ("LDL", "STL")]


def too_many_registers(k: Kernel, blocks: int, threads: int) -> list[str]:
    fit = code.blocks_that_fit(k.registers, threads, k.arch)
    return [f"{k.registers} registers let {fit} blocks in, not {blocks}"] if fit < blocks else []


def expected_accesses(k: Kernel, count: int) -> tuple[Counter[str], Counter[str]]:
    """How often the PTX loads and stores vectors and elements by their types: full tiles by vectors in every buffer and
    format, which are 16 bytes, or 8 of codes of a byte and 4 of two in each; the ends of tensors element by element."""
    letter, size = ("f32", 4) if k.type == "f" else ("f64", 8)
    loads: Counter[str] = Counter()
    stores: Counter[str] = Counter()

    def element(bytes: int) -> str:
        return {8: "f64", 4: "f32", 2: "u16", 1: "u8", 0: "u8"}[bytes]

    def vectors(bytes: int) -> Counter[str]:
        return Counter({{0: "u32", 1: "v2"}.get(bytes, "v4"): max(PER_LANE * bytes // 16, 1)})

    if k.kind == "step":
        for counter, buffers in ((loads, 2 + count), (stores, 1 + count)):
            counter.update({"v4": buffers * PER_LANE * size // 16, letter: buffers * PER_LANE})
        return loads, stores
    computed = [f for f in FACTS if f["compute"] == ("float32" if k.type == "f" else "float64")]
    params = [f for f in computed if f["block"] == 1]
    gradients = [f for f in FACTS if f["block"] == 1 and not f["stochastic"] and not f["split"]]
    stored = [f for f in computed if not f["split"]]
    seconds = gradients if k.rule != "combine" else [*gradients, *computed]
    # What lies beside params that are split.
    for formats, counters in ((params, (loads, stores)), (seconds, (loads,))):
        for f in formats:
            if f["split"]:
                beside = 1 if f["name"].endswith("8") else 2
                for counter in counters:
                    counter.update(vectors(beside))
                    counter[element(beside)] += PER_LANE
    # By the size of a format's elements alone.
    for formats in (params, seconds, *[stored] * count):
        for bytes in {f["bytes"] if f["packed"] == 1 else 0 for f in formats}:
            each = PER_LANE if bytes > 0 else PER_LANE // 2
            # Wider than what is computed in: one by one.
            loads.update(vectors(bytes) if bytes <= size else {})
            loads[element(bytes)] += each
            if formats is not seconds:
                stores.update(vectors(bytes))
                stores[element(bytes)] += each
        # Scales.
        blocks = {f["name"] for f in formats if f["block"] > 1}
        loads["f32"] += len(blocks)
        # Blocks in which all is finite have code of their own in these formats.
        twice = blocks & {"int8", "uint8", "uint8_nearest"}
        stores["f32"] += len(blocks) + len(twice) if formats is not seconds else 0
    if k.type == "f" and 2 <= count <= 4 and k.rule not in ROW_WISE:
        # The loop over full tiles with all states in 8 bits, and params and gradients in float32 or bfloat16.
        loads.update({"v4": 2 * 3, "v2": count, "f32": count})
        stores.update({"v4": 3, "v2": count, "f32": 2 * count})
    return loads, stores


def wrong_vectors(k: Kernel, count: int) -> list[str]:
    got: dict[str, Counter[str]] = {"ld": Counter(), "st": Counter()}
    for op in opcodes(k):
        if found := re.fullmatch(r"(ld|st)\.global\.cg\.(v[24]\.)?([busf])(\d+)", op):
            kind, vector, letter, bits = found.groups()
            name = vector[:2] if vector else f"{'u' if letter == 'b' else letter}{bits}"
            got[kind][name if not vector or bits == "32" else op] += 1
    found = []
    for kind, want in zip(("ld", "st"), expected_accesses(k, count), strict=True):
        for name in sorted(want | got[kind]):
            if got[kind][name] != want[name]:
                found.append(f"PTX: {kind}.{name} {got[kind][name]} times, not {want[name]}")
        seen = sum(i.base == {"ld": "LDG", "st": "STG"}[kind] and ".128" in i.opcode for i in k.sass)
        # The assembler may merge branches that end in the same way.
        least = want["v4"] if k.kind == "step" else (2 if kind == "ld" else 1) + count
        if k.sass and seen < least:
            found.append(f"{'LDG' if kind == 'ld' else 'STG'}.128 {seen} times, not {least}")
    return found


def generic_memory(k: Kernel) -> list[str]:
    """Loads and stores that do not say which memory they mean. Tables may lie among the parameters or in global memory,
    so they are read that way, in words of 8 bytes or two of these; elements never are, and nothing is written so."""
    found = [op for op in opcodes(k) if re.match(r"st\.(volatile\.|relaxed\.)?(v\d\.)?[busf]\d", op)]
    vectors = [op for op in opcodes(k) if re.match(r"ld\.v\d", op)]
    pairs = [op for op in vectors if re.fullmatch(r"ld\.v2\.[bu]64", op)]
    found += [op for op in vectors if op not in pairs and not op.endswith(".u8")]
    wide = [i.opcode for i in k.sass if i.base == "LD" and ".128" in i.opcode]
    return found + wide[len(pairs) :] + [i.opcode for i in k.sass if i.base == "ST"]


def doubles(k: Kernel) -> list[str]:
    """Arithmetic in float64, or conversions: for kernels of float32. If gradients may be of any format, those in
    float64 are loaded one by one, and rounded."""
    found = [op for op in opcodes(k) if ".f64" in op]
    sass = [i.opcode for i in k.sass if i.base in code.FP64 or ".F64" in i.opcode]
    rounded = [op for op in found if op == "cvt.rn.f32.f64"]
    loads = [op for op in found if op == "ld.global.cg.f64"]
    machine = [op for op in sass if op.startswith("F2F.F32.F64")]
    if max(len(rounded), len(loads), len(machine)) > (PER_LANE if k.kind == "stored_step" else 0):
        return found + sass
    return [op for op in found if op not in (*rounded, *loads)] + [op for op in sass if op not in machine]


def inexact(k: Kernel) -> list[str]:
    """Operations that are not rounded as written: contracted, approximated, or with subnormal numbers flushed. PTX
    without .rn leaves contraction to the assembler."""
    found = []
    for op in opcodes(k):
        name, *rest = op.split(".")
        is_float = (
            rest and rest[-1] in ("f32", "f64") and name in ("add", "sub", "mul", "div", "sqrt", "rcp", "fma", "mad")
        )
        if (is_float and "rn" not in rest) or {"approx", "ftz", "full", "sat"} & set(rest):
            found.append(op)
        if name in ("fma", "mad", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh") and rest[-1].startswith("f"):
            found.append(op)
    return found


def fused(k: Kernel, expansion: dict[str, tuple[int, int]]) -> list[str]:
    """Fused multiplications in the machine code beyond those that division and root are made of: for each PTX
    operation, so many at its place, and so many in the subroutine that all of its places share."""
    ptx = Counter(opcodes(k))
    allowed: Counter[str] = Counter()
    for op, (inline, shared) in expansion.items():
        allowed[op[-3:]] += ptx[op] * inline + (shared if ptx[op] else 0)
    found = []
    for base, bits in (("FFMA", "f32"), ("DFMA", "f64")):
        # The root of float64 takes a single fused operation of float32 nowhere, its division for a test of the range.
        limit = allowed[bits] + (ptx["div.rn.f64"] * 2 + 2 if base == "FFMA" and ptx["div.rn.f64"] else 0)
        seen = sum(i.base == base for i in k.sass)
        if seen > limit:
            found.append(f"{base} {seen} times, not {limit}")
    return found


def calls(k: Kernel) -> list[str]:
    """Calls in the PTX; in the machine code all but those into the kernel itself, where division and root have their
    slow paths."""
    found = [line for line in k.ptx if re.match(r"(@!?%\w+\s+)?call\b", line)]
    end = max((i.address for i in k.sass), default=0)
    inside = [i for i in k.sass if i.opcode.startswith("CALL.REL") and i.target is not None and 0 < i.target <= end]
    return found + [f"{i.opcode} {i.operands}" for i in k.sass if i.base in ("CALL", "JCAL") and i not in inside]


# Kernels that are wrong on purpose

WRONG = r"""
#include <cuda_runtime.h>
struct alignas(16) Pointers { float* x[8]; };

__global__ void __launch_bounds__(1024, 2) spills_kernel(const float4* x, float4* y) {
    float4 v[16];
    for (int i = 0; i < 16; ++i) v[i] = x[threadIdx.x + 1024 * i];
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 16; ++j) { v[i].x += v[j].w * v[j].y; v[i].z += v[j].x / v[(i + j) % 16].y; }
        __syncthreads();
    }
    for (int i = 0; i < 16; ++i) y[threadIdx.x + 1024 * i] = v[i];
}
__global__ void indexed_kernel(float* x, int n) {
    float v[32];
    for (int i = 0; i < 32; ++i) v[i] = x[i];
    for (int i = 0; i < n; ++i) v[i % 32] += v[(i * 7) % 32];
    for (int i = 0; i < 32; ++i) x[i] = v[i];
}
__global__ void __launch_bounds__(128) greedy_kernel(const float* x, float* y) {
    float v[160];
#pragma unroll
    for (int i = 0; i < 160; ++i) v[i] = x[threadIdx.x + 128 * i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 160; ++i) y[threadIdx.x + 128 * i] = v[i] * v[(i * 7 + 3) % 160] + v[159 - i];
}
__global__ void generic_kernel(const __grid_constant__ Pointers inside, const float4* from, int n, float4* to) {
    __shared__ float4 s[4];
    const float4* p = n > 0 ? from : reinterpret_cast<const float4*>(&inside);
    float4* q = n > 1 ? to : s;
    q[threadIdx.x] = p[threadIdx.x];
    __syncthreads();
    if (n > 2) to[n] = s[n % 4];
}
__global__ void doubles_kernel(float* x) { x[0] = float(double(x[0]) + 0.1); }
__global__ void contracted_kernel(float* x) { x[0] = x[1] * x[2] + x[3]; }
__global__ void fused_kernel(float* x, double* y) { x[0] = fmaf(x[1], x[2], x[3]); y[0] = fma(y[1], y[2], y[3]); }
__global__ void approximate_kernel(float* x) { x[0] = __fdividef(x[1], x[2]) + __frsqrt_rn(x[3]) + __expf(x[4]); }
__device__ __noinline__ float elsewhere(float x) { return x < 1 ? x : x * 0.5f; }
__global__ void calls_kernel(float* x) { x[0] = elsewhere(x[0]); }
namespace adaptk::cuda {
template <class R, class T> __global__ void step_kernel(T* p, const T* g) {
    for (unsigned i = threadIdx.x; i < 256; i += 32) __stcg(p + i, __ldcg(p + i) - __ldcg(g + i));
}
namespace base { struct Sgd; }
template __global__ void step_kernel<base::Sgd, float>(float*, const float*);
}
"""

# One division or root, and two: the difference is what stands at each place.
EXPANSIONS = r"""
#include <cuda_runtime.h>
#define KERNELS(name, T, op)                                                                       \
    __global__ void name##_once_kernel(T* x) { x[0] = op(x[1], x[2]); }                            \
    __global__ void name##_twice_kernel(T* x) { x[0] = op(x[1], x[2]); x[3] = op(x[4], x[5]); }
#define DIVIDE(a, b) a / b
#define ROOT_F(a, b) __fsqrt_rn(a)
#define ROOT_D(a, b) __dsqrt_rn(a)
#define INVERSE_F(a, b) 1.0f / a
#define INVERSE_D(a, b) 1.0 / a
KERNELS(div_f32, float, DIVIDE)
KERNELS(div_f64, double, DIVIDE)
KERNELS(sqrt_f32, float, ROOT_F)
KERNELS(sqrt_f64, double, ROOT_D)
KERNELS(rcp_f32, float, INVERSE_F)
KERNELS(rcp_f64, double, INVERSE_D)
"""


def compile_text(text: str, arch: str, folder: Path, *flags: str) -> dict[str, Kernel]:
    source = folder / "text.cu"
    source.write_text(text)
    compiled = code.compile_source(source, arch, folder, ["-std=c++20", *flags], "text")
    return {k.kind if k.rule is None else "step": k for k in compiled}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    return compile_text(WRONG, WHOLE if WHOLE in LOOKED_AT else next(iter(LOOKED_AT)), tmp_path_factory.mktemp("wrong"))


def expansions(arch: str, folder: Path) -> dict[str, tuple[int, int]]:
    compiled = compile_text(EXPANSIONS, arch, folder, "--fmad=false")
    found = {}
    for op in ("div.rn.f32", "div.rn.f64", "sqrt.rn.f32", "sqrt.rn.f64", "rcp.rn.f32", "rcp.rn.f64"):
        name, _, bits = op.split(".")
        base = "FFMA" if bits == "f32" else "DFMA"
        once, twice = (
            sum(i.base == base for i in compiled[f"{name}_{bits}_{times}"].sass) for times in ("once", "twice")
        )
        assert opcodes_of(compiled[f"{name}_{bits}_once"], op) == 1
        found[op] = (twice - once, 2 * once - twice)
    return found


def opcodes_of(kernel: Kernel, op: str) -> int:
    return Counter(opcodes(kernel))[op]


def test_the_checks_see_what_is_wrong(wrong: dict[str, Kernel]) -> None:
    assert any("spill" in line for line in memory_of_its_own(wrong["spills"]))
    assert any("stack" in line for line in memory_of_its_own(wrong["indexed"]))
    assert any(".local" in line for line in memory_of_its_own(wrong["indexed"]))
    assert too_many_registers(wrong["greedy"], 5, 128)
    assert any("ld.v4 0 times" in line for line in wrong_vectors(wrong["step"], 0))
    assert generic_memory(wrong["generic"])
    assert doubles(wrong["doubles"])
    assert inexact(wrong["contracted"])
    assert inexact(wrong["fused"])
    assert len(set(inexact(wrong["approximate"]))) >= 3
    assert calls(wrong["calls"])


def test_the_checks_of_machine_code_see_what_is_wrong(wrong: dict[str, Kernel]) -> None:
    if not wrong["calls"].sass:
        pytest.skip("needs cuobjdump and nvdisasm")
    assert any(line.startswith(("LDL", "STL")) for line in memory_of_its_own(wrong["spills"]))
    assert any("LDG.128 0 times" in line for line in wrong_vectors(wrong["step"], 0))
    assert {"ST", "LD"} <= {line.split(".")[0] for line in generic_memory(wrong["generic"])}
    assert any(line.startswith("DADD") for line in doubles(wrong["doubles"]))
    assert fused(wrong["contracted"], {}) == ["FFMA 1 times, not 0"]
    assert len(fused(wrong["fused"], {})) == 2


# The kernels


def findings(kernels: dict[str, Kernel], check: object, *kinds: str) -> list[str]:
    chosen = [k for k in kernels.values() if not kinds or k.kind in kinds]
    assert chosen
    return [f"{k.kind} {k.rule} {k.type} sm_{k.arch}: {line}" for k in chosen for line in check(k)[:4]]  # type: ignore[operator]


# One rule has another's formula, and its kernels.
SAME = {"adamw": "adam"}


def rules_of(parts: list[str]) -> set[str]:
    """In the order of the table of kernels, whose places are divided among the parts."""
    names = [name.replace("_", "") for name in adaptk.rules()]
    table = [*names, *(f"streams_{n}" for n in range(5)), "combine"]
    return {rule for rule in table if f"part{table.index(SAME.get(rule, rule)) % code.parts()}" in parts}


def test_parts_have_every_number_of_states() -> None:
    partial = [parts for parts in LOOKED_AT.values() if len(parts) < code.parts()]
    together = set().union(*map(rules_of, partial))
    assert not partial or {states()[r] for r in together if r in states()} == set(states().values())


def test_every_kernel_is_there(kernels: dict[str, Kernel]) -> None:
    arch = next(iter(kernels.values())).arch
    rules = rules_of(LOOKED_AT[arch])
    row_wise = ROW_WISE if "row_wise" in LOOKED_AT[arch] else set()
    own = rules - SAME.keys() | row_wise
    steps = {(k.rule, k.type) for k in kernels.values() if k.kind == "step"}
    assert steps == {(rule, t) for rule in own for t in "fd"}
    stored = {(k.rule, k.type) for k in kernels.values() if k.kind == "stored_step"}
    assert stored == {(rule, t) for rule in own for t in "fd" if not rule.startswith("streams_")}
    prepares = {(k.rule, k.type) for k in kernels.values() if k.kind == "prepare"}
    names = {name.replace("_", "") for name in adaptk.rules()}
    assert prepares == {(name, t) for name in rules & names | row_wise for t in "fd"}
    fits = [k.rule for k in kernels.values() if k.kind == "fit"]
    assert set(fits) == (FITS if "batch" in LOOKED_AT[arch] else set())
    assert len(fits) in (0, 8)
    rest = Counter(
        k.kind for k in kernels.values() if k.kind not in (*STEPS, "prepare", "fit", "check_fits", "row_factors")
    )
    factors = {(k.rule, k.type) for k in kernels.values() if k.kind == "row_factors"}
    assert factors == {(rule, t) for rule in row_wise for t in "fd"}
    twice = ["reduce", *OF_ROWS]
    assert rest == Counter(
        [
            "norm",
            "finish",
            "finish_pass",
            "finish_scopes",
            "finish_columns",
            "upload",
            "gather",
            "sum_parts",
            "row_tables",
            "stored_rows",
            *twice,
            *twice,
            *["random"] * 6,
            *["constant"] * 4,
        ]
    )


def test_no_memory_of_their_own(kernels: dict[str, Kernel]) -> None:
    """But for fits of more than five parameters, whose numbers are more than a thread's 255 registers."""

    def check(k: Kernel) -> list[str]:
        large = k.kind == "fit" and code.FIT_MODELS[code.fit_model(k)] > 5
        return [] if large else memory_of_its_own(k)

    assert findings(kernels, check) == []


def test_registers_let_the_blocks_in(kernels: dict[str, Kernel]) -> None:
    def check(k: Kernel) -> list[str]:
        if k.kind in STEPS:
            n = states()[k.rule]
            blocks = code.resident_blocks(SIZE[k.type], n + (k.kind == "stored_step" and n > 2))
        elif k.kind == "stored_rows":
            blocks = code.resident_blocks(4, 2)
        else:
            named = {"norm": "norm_resident_blocks"} | dict.fromkeys(
                ("prepare", "reduce", *OF_ROWS, "row_tables", "row_factors", "random", "constant"),
                "common_resident_blocks",
            )
            blocks = CONSTANTS[named[k.kind]] if k.kind in named else 1
        threads = CONSTANTS["finish_threads"] if k.kind in ("finish", "sum_parts") else CONSTANTS["block_threads"]
        return too_many_registers(k, blocks, threads)

    assert findings(kernels, check) == []


def test_shared_memory(kernels: dict[str, Kernel]) -> None:
    """What every device has without being asked; and none where it would cost blocks."""
    assert findings(kernels, lambda k: [str(k.resources["shared"])] * (k.resources["shared"] > 48 * 1024)) == []
    assert findings(kernels, lambda k: [str(k.resources["shared"])] * (k.resources["shared"] > 0), *STEPS, "norm") == []


def test_full_tiles_are_moved_by_vectors(kernels: dict[str, Kernel]) -> None:
    assert findings(kernels, lambda k: wrong_vectors(k, states()[k.rule]), *STEPS) == []


def test_memory_is_global(kernels: dict[str, Kernel]) -> None:
    assert findings(kernels, generic_memory, *STEPS) == []
    # The norm copies an entry of its table by vectors.
    assert findings(kernels, lambda k: [op for op in generic_memory(k) if op[:2].lower() != "ld"], "norm") == []
    (norm,) = (k for k in kernels.values() if k.kind == "norm")
    # A row across tensors is two vectors of float32, four of float64 or one of either 16-bit type; a leaf inside one
    # tensor is loaded by so many at a time, in each of the four types.
    loads = sum(re.fullmatch(r"ld\.global\.cg\.v4\.[bu]32", op) is not None for op in opcodes(norm))
    assert loads == 2 + 4 + 1 + 1 + 4 * CONSTANTS["norm_vectors"]


def test_rows_of_a_norm_are_loaded_before_any_is_used(kernels: dict[str, Kernel]) -> None:
    (norm,) = (k for k in kernels.values() if k.kind == "norm")
    if not norm.sass:
        pytest.skip("needs cuobjdump and nvdisasm")
    if norm.arch not in ("90", "100"):
        # Elsewhere the loops branch; the loads in the PTX of every architecture are counted above.
        pytest.skip("the order of loads is checked where bandwidth is counted: sm_90 and sm_100")
    loops = code.norm_loops(norm)
    assert set(loops) == {"float16", "bfloat16", "float32", "float64"}
    for name, way in loops.items():
        # Of 16-bit values, whose vectors take four times their registers, a compiler may put off some of the loads.
        waits, most = way.phases()
        assert waits == 1 or (name in ("float16", "bfloat16") and waits <= 3), name
        assert way.vectors("LDG") == CONSTANTS["norm_vectors"]
        assert most >= 16 * 7


def test_float32_stays_float32(kernels: dict[str, Kernel]) -> None:
    assert findings(kernels, lambda k: doubles(k) if k.type == "f" else [], *STEPS) == []


def test_operations_are_rounded_as_written(kernels: dict[str, Kernel]) -> None:
    # Powers are taken in double-double arithmetic, which is made of fused operations that are written as such.
    assert findings(kernels, inexact, *STEPS, "norm", "finish", *OF_ROWS, "row_factors", "random") == []
    assert findings(kernels, lambda k: [op for op in inexact(k) if op != "fma.rn.f64"], "prepare", "gather") == []


def test_nothing_is_fused_in_machine_code(kernels: dict[str, Kernel], tmp_path: Path) -> None:
    first = next(iter(kernels.values()))
    if not first.sass:
        pytest.skip("needs cuobjdump and nvdisasm")
    expansion = expansions(first.arch, tmp_path)
    assert findings(kernels, lambda k: fused(k, expansion), *STEPS, "norm", *OF_ROWS, "random") == []


def test_no_calls(kernels: dict[str, Kernel]) -> None:
    assert findings(kernels, calls) == []
