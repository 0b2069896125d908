// What a kernel object (kernels.cpp, compiled once for each instruction set) provides to the step: plain function
// pointers, so that nothing else in it needs external linkage.
#pragma once

#include "compiler.hpp"
#include "program.hpp"

#include "adaptk/formats.hpp"
#include "adaptk/rules.hpp"

#include <cstddef>
#include <cstdint>

namespace adaptk::detail {

// Reductions: the elements of a leaf, and the accumulators that it is summed into (see reduce.hpp).
inline constexpr std::size_t reduction_leaf = 8192;
inline constexpr std::size_t reduction_width = 256;

// The largest number of streams that a rule of the list writes: the parameter and its states.
inline constexpr std::size_t max_written = 5;

// A program reads values of rows and columns from buffers after those of the rule. If it has reductions, it writes the
// values to be reduced to further buffers.
inline constexpr std::size_t max_program_buffers = max_buffers + max_operands + max_reductions;

// coefficients: a StepCoefficients<R, T>; buffer: the parameter, the gradient, the states, all of type T and aligned
// for it.
using StepKernel = void (*)(const void* coefficients, void* const* buffer, std::size_t n);

// How a buffer is stored that is decoded, updated and encoded in one loop (stored_kernels.hpp). float32 is updated in
// place.
enum class StoredAs : std::uint8_t {
    float32,
    bfloat16,
    bfloat16_sr,
    float16,      // or float16_sr
    remainder16,  // of a param
    other,        // of a param or a gradient
    codes,        // of all states, in the formats of `8bit`, or of none
};

struct StoredBuffer {
    void* data;         // of the part's first element
    std::size_t bytes;  // of an element
    StoredAs as;
    bool stochastic;  // or codes are rounded to nearest, as linear ones always are
    // Not for float32.
    void (*decode)(const void* data, const void* side, std::int64_t first, void* out, std::size_t n);
    void (*encode)(const void* in, void* data, void* side, std::int64_t first, std::size_t n, std::uint64_t buffer_key);
    void* side;  // of the whole buffer
    std::uint64_t key;

    void* at(std::size_t element) const { return static_cast<std::byte*>(data) + element * bytes; }
};

// Part of a tensor: whole blocks of the formats of `8bit`.
struct StoredPiece {
    StoredBuffer buffer[max_buffers];
    std::size_t buffers;
    std::int64_t first;  // in the tensor
    std::size_t n;
};
using StoredKernel = void (*)(const void* coefficients, bool coupled, const StoredPiece& piece);

struct RuleKernels {
    StepKernel step[2][2];  // [0 float, 1 double][coupled decay]
    StoredKernel stored;    // null if there is none
};

// Converts elements `first` ... first + n - 1 of a buffer to and from the compute type: [0 float, 1 double]. Null if
// there is no such conversion. `data` is the address of element `first`, a multiple of the block and of 64; `side` is
// that of the whole buffer.
struct FormatKernels {
    void (*decode[2])(const void* data, const void* side, std::int64_t first, void* out, std::size_t n);
    void (*encode[2])(const void* in, void* data, void* side, std::int64_t first, std::size_t n,
                      std::uint64_t buffer_key);
};

// [0 float, 1 double, 2 bfloat16 or null]
struct ReductionKernels {
    AddTerms add[3];
};
enum class Term : std::uint8_t { square, value, largest };
inline constexpr std::size_t term_count = 3;
// The larger of two numbers, or NaN if one of them is NaN.
ADAPTK_HD double larger(double a, double b) { return ((b > a) | (b != b)) ? b : a; }

// average <- lerp(average, values, weight), see StepOptions. [0 float, 1 double]
using AddToAverage = void (*)(void* average, const void* values, double weight, std::size_t n);

struct KernelTable {
    RuleKernels rule[Rules::size];
    FormatKernels format[Formats::size];
    ReductionKernels reduction[term_count];
    // An upper bound on the speed of a rule that writes w streams: the same streams with one addition each. [w - 1][0
    // float, 1 double]
    StepKernel bandwidth_probe[max_written][2];
    // The bitwise or of the 64-bit words of `count` cache lines. It shows what reading alone takes.
    std::uint64_t (*read_probe)(const void* lines, std::size_t count);
    // p <- p + *static_cast<const double*>(coefficients) * g
    StepKernel add_scaled[2];
    AddToAverage add_to_average[2];
    // Runs a program: coefficients is a ProgramStep. program_block: the elements of a block, and of each constant.
    StepKernel program[2];
    std::size_t program_block[2];
};

// Defined by the kernel objects that the build has for this architecture.
const KernelTable& kernels_portable();
const KernelTable& kernels_v2();
const KernelTable& kernels_v3();
const KernelTable& kernels_v4();

}  // namespace adaptk::detail
