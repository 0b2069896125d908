// The kernels as functions that the driver calls: they are compiled in several files, each with a share of the rules.
#pragma once

#include "adaptk/row_wise.hpp"
#include "adaptk/rules.hpp"
#include "device.hpp"
#include "kernel_table.hpp"
#include "step_kernel.hpp"
#include "tables.hpp"

#include <array>

namespace adaptk::cuda {

// Kernels of one rule, as the runtime knows them, for float [0] and double [1]; those of a step for tensors whose
// buffers are all of that type [0], and for any formats [1].
struct RuleKernels {
    const void* step[2][2];  // take a StepLaunch
    const void* prepare[2];  // take a PrepareLaunch
    std::size_t coefficients_bytes[2];
    std::size_t place;  // in the table of kernels
};

// A rule of its own with `States` states that adds the gradient to everything: the streams without the arithmetic, that
// a rule is compared with in benchmarks.
template <std::size_t States> struct Streams {
    static constexpr std::array<int, States> states{};
    template <class T> struct Coefficients {};
    template <class T, class... S> ADAPTK_HD static void update(const Coefficients<T>&, T& p, T g, S&... s) {
        p = p + g;
        ((s = s + g), ...);
    }
};

// What is done to a buffer with another one, beside the rules.
enum class Combination : int {
    add,          // p <- p + factor * x
    near_lerp,    // p <- p + factor * (x - p)
    far_lerp,     // p <- x - (x - p) * rest
    assign,       // p <- x
    set_to_zero,  // p <- 0
};
struct Combine {
    static constexpr std::array<int, 0> states{};
    template <class T> struct Coefficients {
        T factor, rest;  // rest: 1 - factor
        Combination how;
    };
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T x) {
        const T sum = p + c.factor * x;
        const T near_lerp = p + c.factor * (x - p);
        const T far_lerp = x - (x - p) * c.rest;
        T out = c.how == Combination::add ? sum : near_lerp;
        out = c.how == Combination::far_lerp ? far_lerp : out;
        out = c.how == Combination::assign ? x : out;
        p = c.how == Combination::set_to_zero ? T(0) : out;
    }
};
// What is combined may be a state or a param, too.
template <class T> struct SecondBuffer<Combine, T> {
    using Formats = typename Computes<T>::All;
};

// The rules, then Streams<0>, Streams<1>, ..., then Combine.
inline constexpr std::size_t stream_rules = detail::max_written;
inline constexpr std::size_t combine_place = Rules::size + stream_rules;
inline constexpr std::size_t kernel_count = combine_place + 1;

// The files that the kernels are compiled in.
inline constexpr std::size_t parts = 4;
using KernelTable = std::array<RuleKernels, kernel_count>;
template <std::size_t Part> void add_kernels(KernelTable& table);  // see rule_kernels.cu

// Of a rule that keeps one number for each row. The steps are those of its elements.
struct RowWiseKernels {
    RuleKernels rule;
    const void* factors[2];       // take a RowFactorsLaunch
    std::size_t bytes_of_row[2];  // of the coefficients that they make of a row
};
using RowWiseTable = std::array<RowWiseKernels, RowWiseRules::size>;
const RowWiseTable& row_wise_kernels();

void launch_norm(const NormLaunch&, unsigned blocks, cudaStream_t);
const void* norm_symbol();
void launch_finish(const FinishLaunch&, cudaStream_t);
void launch_reduce(const ReduceLaunch&, detail::Term, unsigned blocks, cudaStream_t);
void launch_finish_pass(const FinishPassLaunch&, cudaStream_t);
void launch_finish_scopes(const FinishLinesLaunch&, cudaStream_t);
void launch_finish_columns(const FinishLinesLaunch&, unsigned blocks, cudaStream_t);
void launch_upload(const UploadLaunch&, cudaStream_t);
void launch_gather(const GatherLaunch&, unsigned blocks, cudaStream_t);

}  // namespace adaptk::cuda
