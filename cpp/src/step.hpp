// The step: any number of tensors of any sizes and formats, in one parallel region.
#pragma once

#include "format.hpp"
#include "registry.hpp"
#include "scalar_type.hpp"

#include "adaptk/rounding.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace adaptk::detail {

struct KernelTable;
class RowUpdate;

// One buffer of a step.
struct Slot {
    void* data = nullptr;
    Format format = Format::float32;
    void* side = nullptr;  // scales or lost bits, of formats that have them
};

// A tensor as matrices, one after the other: see program.hpp.
struct Grid {
    std::int64_t matrices = 1, rows = 1, columns = 0;
    bool is_vector = true;
    std::int64_t all_rows() const { return matrices * rows; }
    std::int64_t all_columns() const { return matrices * columns; }
};

// One parameter with its gradient and states: buffers 0, 1 and from 2 on. Each member is an array of its own; there is
// no array of slots. So what a step over thousands of small tensors mostly reads lies together.
struct ParamUpdate {
    void* buffer[max_buffers] = {};
    std::int64_t size = 0;
    Format format[max_buffers] = {};
    std::uint32_t number = 0;  // of the tensor, for stochastic rounding: each has draws of its own
    void* side[max_buffers] = {};
    // The gradient, if it has values for some rows only (rows.hpp): it is then not a buffer. Else null.
    const RowUpdate* rows = nullptr;
    // If the rule keeps one number for each slice: the buffer of these numbers, and how many there are. Else 0.
    std::size_t row_buffer = 0;
    std::int64_t row_count = 0;
    // For rules with reductions over tensors, rows or columns.
    Grid grid;
    Per per[max_states] = {};  // of the states

    ParamUpdate() = default;
    // States have the format that is computed in.
    ParamUpdate(std::int64_t elements, Format param, Format grad) : size(elements) {
        set_formats(param, grad, compute_format(param));
    }
    void set_formats(Format param, Format grad, Format states) {
        format[0] = param;
        format[1] = grad;
        for (std::size_t b = 2; b < max_buffers; ++b) format[b] = states;
    }
    void set(std::size_t b, const Slot& s) {
        buffer[b] = s.data;
        format[b] = s.format;
        side[b] = s.side;
    }
    Slot slot(std::size_t b) const { return {buffer[b], format[b], side[b]}; }
    Format param() const { return format[0]; }
    Format grad() const { return format[1]; }
    // 1 if the rule computes in double, else 0.
    std::size_t compute() const { return compute_format(format[0]) == Format::float64 ? 1 : 0; }
    std::int64_t elements(std::size_t b) const {
        switch (b < 2 ? Per::element : per[b - 2]) {
        case Per::tensor: return 1;
        case Per::row: return grid.all_rows();
        case Per::column: return grid.all_columns();
        case Per::slice: return row_count;
        default: return size;
        }
    }
    std::size_t bytes(std::size_t b) const { return storage_bytes(format[b], elements(b)); }
    // The format that follows from the dtype of the param alone.
    Format dtype() const { return info_of(format[0]).dtype; }
};

// Sets what the rule needs to know about the shape.
ADAPTK_INTERNAL_API void set_shape(ParamUpdate& update, const RuleInfo& rule, std::int32_t ndim,
                                   const std::int64_t* shape);

// A number in device memory.
struct DeviceScalar {
    const void* data = nullptr;
    ScalarType type = ScalarType::i64;
};

// Consecutive tensors that the same rule updates, with the same hyperparameters at the same step.
struct Segment {
    const RuleInfo* rule;
    HyperValues hyper;
    std::int64_t step;
    std::size_t count;
    // The rule's Memo, if the caller knows more about earlier steps than the hyperparameters tell.
    bool has_memo = false;
    alignas(8) std::byte memo[max_memo_bytes] = {};
    DeviceScalar device_step = {};  // on a device, instead of `step`
    std::uint64_t seed = 0;         // of stochastic rounding

    // The step number for random bits, if it differs from `step`; else 0.
    std::int64_t drawn_step = 0;
    std::uint64_t key() const { return step_key(seed, drawn_step > 0 ? drawn_step : step); }
};

struct StepReport {
    double grad_norm = 0.0;  // of the scaled gradients, if the options need it
    bool has_norm = false;
    bool finite = true;  // whether all gradients are; their norm may be beyond float64 even so
    bool skipped = false;
    // The results of reductions over all tensors, for programs whose carried numbers depend on them.
    std::vector<std::pair<const Program*, std::vector<double>>> measured = {};
};

// What a step writes besides the buffers of a tensor, in the same pass over memory. Null data: nothing.
struct Epilogue {
    Slot copy;     // the param, rounded to nearest
    Slot average;  // a <- lerp(a, param, 1 - average_decay): see StepOptions
};

struct StepOptions {
    double grad_scale = 1.0;  // multiplies each segment's own
    double clip_norm = -1.0;  // negative: no clipping
    bool skip_nonfinite = false;
    bool want_norm = false;
    double clipped_by = 1.0;  // the clipping factor, if the caller has computed it
    // The norm of the gradients before any scale, as accumulate() returned it, if it is known: then the gradients are
    // not read for it. All groups must have the same grad_scale.
    bool has_norm = false;
    double known_norm = 0.0;

    // Set gradients to zero after the rule, also if the step is skipped.
    bool zero_grad = false;
    // One for each tensor, or none at all. A step that is skipped writes none of them.
    std::span<const Epilogue> epilogues = {};
    // In [0, 1]. With w = 1 - decay, rounded to the compute type: a + w*(p - a) if w < 0.5, else p - (p - a)*(1 - w).
    double average_decay = 0.0;

    bool has_epilogue() const { return zero_grad || !epilogues.empty(); }

    bool needs_norm() const { return clip_norm >= 0.0 || skip_nonfinite || want_norm; }
    // Applies a known norm to the options, which then need none. True if the step is to be skipped.
    bool apply_known_norm(const StepReport& norm) {
        if (skip_nonfinite && !norm.finite) return true;
        clipped_by = clip_factor(norm.grad_norm);
        clip_norm = -1.0;
        skip_nonfinite = want_norm = false;
        return false;
    }
    // The factor by which gradients of this norm are clipped. A NaN norm makes all of them NaN.
    double clip_factor(double norm) const { return clip_norm >= 0.0 && !(norm <= clip_norm) ? clip_norm / norm : 1.0; }
};

// The caller has checked everything: sizes, formats, overlap, ranges. The segments' counts add up to the tensors'.
// Throws std::bad_alloc only, before anything is written unless a rule has reductions: their passes allocate memory,
// and the last one may have written states.
ADAPTK_INTERNAL_API StepReport run_step(std::span<const ParamUpdate> tensors, std::span<const Segment> segments,
                                        const StepOptions& options);

// Runs the kernel that writes the given number of streams over the same work list. Benchmarks compare run_step with it.
// Tensors are float32 or float64 throughout.
ADAPTK_INTERNAL_API void run_bandwidth_probe(std::span<const ParamUpdate> tensors, std::size_t written);
// The bitwise or of the 64-bit words of `count` aligned cache lines.
ADAPTK_INTERNAL_API std::uint64_t run_read_probe(const void* lines, std::int64_t count);

// Writes the epilogues of tensors that no step updates: `options` has one for each of them.
ADAPTK_INTERNAL_API void run_epilogues(std::span<const ParamUpdate> tensors, const StepOptions& options);

// Sets the gradients to zero.
ADAPTK_INTERNAL_API void zero_grads(std::span<const ParamUpdate> tensors);

// sqrt(sum of squares) of scale * g over all gradients, and whether all of them are finite.
ADAPTK_INTERNAL_API StepReport global_norm(std::span<const ParamUpdate> tensors, double scale);

// A state's initial value, rounded to its format in the caller's mode (FloatingPointMode).
void fill(const Slot& state, std::int64_t size, double value);

// Encodes float32 numbers in any format whose compute type is float32, and decodes them. `buffer_key`: of stochastic
// rounding.
ADAPTK_INTERNAL_API void encode(const float* from, const Slot& to, std::int64_t size, std::uint64_t buffer_key);
ADAPTK_INTERNAL_API void decode(const Slot& from, float* to, std::int64_t size);

// p <- p + factor * x, buffers 0 and 1.
ADAPTK_INTERNAL_API void add_scaled(std::span<const ParamUpdate> tensors, double factor);
// The same for elements of one tensor, on the calling thread.
void add_scaled(const KernelTable& k, const ParamUpdate& t, std::int64_t first, std::int64_t n, double factor);

// add_scaled() that also returns the norm of the new buffers 0, for a step that has them as gradients.
ADAPTK_INTERNAL_API StepReport accumulate(std::span<const ParamUpdate> tensors, double scale);

// Whether the groups multiply their gradients by the same factor, as StepOptions::known_norm requires.
ADAPTK_INTERNAL_API bool one_grad_scale(std::span<const Segment> segments);
StepReport report_of_known_norm(std::span<const Segment> segments, const StepOptions& options);

}  // namespace adaptk::detail
