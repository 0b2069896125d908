// The step driver: any number of tensors of any sizes and types, in one parallel region.
#pragma once

#include "dtype.hpp"
#include "registry.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace adaptk::detail {

inline constexpr std::size_t max_buffers = 2 + max_states;

// One parameter with its gradient and states: buffer[0], buffer[1], buffer[2...]. States are of the compute type.
struct TensorStep {
    void* buffer[max_buffers];
    std::int64_t size;
    DType param;
    DType grad;
};

// Consecutive tensors that take the same rule with the same hyperparameters at the same step.
struct Segment {
    const RuleInfo* rule;
    HyperValues hyper;
    std::int64_t step;
    std::size_t count;
    // The rule's Memo, where the caller knows the steps before better than the hyperparameters tell.
    bool has_memo = false;
    alignas(8) std::byte memo[max_memo_bytes] = {};
};

struct StepOptions {
    double grad_scale = 1.0;  // multiplies each segment's own
    double clip_norm = -1.0;  // negative: no clipping
    bool skip_nonfinite = false;
    bool want_norm = false;
};

struct StepReport {
    double grad_norm =
        0.0;  // of the scaled gradients; computed where clip_norm, skip_nonfinite or want_norm ask for it
    bool has_norm = false;
    bool finite = true;  // whether all gradients are; their norm may be beyond float64 even so
    bool skipped = false;
};

// The caller has checked everything: sizes, types, overlap, ranges. The segments' counts add up to the tensors'.
// Throws std::bad_alloc only, before anything is written.
ADAPTK_INTERNAL_API StepReport run_step(std::span<const TensorStep> tensors, std::span<const Segment> segments,
                                        const StepOptions& options);

// The same work list through the ceiling kernel that writes the given number of streams: what run_step is compared
// with in benchmarks. Tensors are float32 or float64 throughout.
ADAPTK_INTERNAL_API void run_ceiling(std::span<const TensorStep> tensors, std::size_t written);

// sqrt(sum of squares) of scale * g over all gradients, and whether all of them are finite.
ADAPTK_INTERNAL_API StepReport global_norm(std::span<const TensorStep> tensors, double scale);

// A state's initial value, rounded to its type in the caller's mode (FloatingPointMode).
void fill(void* state, std::int64_t size, DType type, double value);

// p <- p + factor * x (x a state of the compute type), for the look-ahead of Nesterov's methods.
ADAPTK_INTERNAL_API void add_scaled(std::span<const TensorStep> tensors, double factor);

}  // namespace adaptk::detail
