// What a kernel object (kernels.cpp, compiled once for each instruction set) hands to the step driver: plain function
// pointers, so that nothing else of it needs a name outside.
#pragma once

#include "adaptk/rules.hpp"

#include <cstddef>
#include <cstdint>

namespace adaptk::detail {

// Sums of squares: leaves of this many elements with this many lanes each (see step.cpp).
inline constexpr std::size_t norm_leaf = 8192;
inline constexpr std::size_t norm_lanes = 256;

// The streams that the largest rule writes: a parameter and its states.
inline constexpr std::size_t max_written = 1 + max_states;

// scalars: a StepScalars<R, T>; buffer: the parameter, the gradient, the states, all of type T and aligned for it.
using StepKernel = void (*)(const void* scalars, void* const* buffer, std::size_t n);
using WidenHalf = void (*)(const void* from, float* to, std::size_t n);
using NarrowHalf = void (*)(const float* from, void* to, std::size_t n);
using WidenFloat = void (*)(const float* from, double* to, std::size_t n);

struct KernelTable {
    StepKernel step[Rules::size][2][2];  // [rule][0 float, 1 double][coupled decay]
    // What bounds a rule that writes w streams: the same streams, one addition each. [w - 1][0 float, 1 double]
    StepKernel ceiling[max_written][2];
    WidenHalf widen_bf16, widen_f16;
    NarrowHalf narrow_bf16, narrow_f16;
    WidenFloat widen_f32;
    // lanes[(phase + i) % norm_lanes] += (scale * x[i])^2 for i = 0 ... n-1 in this order.
    void (*squares_f32)(const float* x, std::size_t n, std::size_t phase, double scale, double* lanes);
    void (*squares_f64)(const double* x, std::size_t n, std::size_t phase, double scale, double* lanes);
};

// Defined by the kernel objects that the build has for this architecture.
const KernelTable& kernels_portable();
const KernelTable& kernels_v2();
const KernelTable& kernels_v3();
const KernelTable& kernels_v4();
const KernelTable& kernels_neon();

}  // namespace adaptk::detail
