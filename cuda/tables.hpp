// What the host hands to kernels: plain data, the same bytes on both sides.
#pragma once

#include "adaptk/rule.hpp"
#include "program.hpp"
#include "scalar_type.hpp"
#include "tuning.hpp"

#include <cstddef>
#include <cstdint>

namespace adaptk::cuda {

// A param, its gradient and the states of all rules of the list. With room for more, fewer tensors would fit into the
// parameters of a kernel. Rules with more states have the others in a second entry (MoreStates).
inline constexpr std::size_t table_states = 4, table_buffers = 2 + table_states;
inline constexpr std::size_t more_states = max_states - table_states;

// What a warp adds up of a reduction, in the order of cpp/src/reduce.hpp.
inline constexpr std::int64_t leaf_elements = 8192;

// One parameter with its gradient and states.
struct alignas(16) Tensor {
    void* buffer[table_buffers];
    std::int64_t size;
    std::int64_t first_tile;     // tiles of the tensors before it
    std::uint32_t coefficients;  // which are its own
    // One word, which kernels compare as a whole (EightBitStates).
    alignas(8) std::uint8_t aligned;     // every buffer lies on a multiple of 16 bytes
    std::uint8_t format[table_buffers];  // by the numbers of detail::Format
};
static_assert(sizeof(std::uint8_t) * (1 + table_buffers) <= sizeof(std::uint64_t));

// What lies beside the buffers of one parameter, if any of them has a format with scales, lost bits or random bits.
struct Side {
    void* of_buffer[table_buffers];
    // For random bits: of the parameter, and of its elements the one that the buffers begin with.
    std::uint32_t number;
    std::int64_t first;
};

// The states of one parameter behind the first table_states, and what lies beside them. Only the tables of rules with
// so many states have them: one entry for each tensor, behind the entries of all tensors.
struct alignas(16) MoreStates {
    void* buffer[more_states];
    std::uint8_t format[more_states];
};
struct MoreSides {
    void* of_buffer[more_states];
};
static_assert(sizeof(Tensor) == 80 && sizeof(Side) == 64, "rules with up to four states pay nothing for the others");

// The outcome of a norm, and what a later kernel makes of it. One for each step that computes a norm.
struct Control {
    double norm;        // of the scaled gradients
    double clip;        // factor that clipping calls for
    double pass_scale;  // of the values that the second pass squares
    std::uint32_t skip;
    std::uint32_t again;  // whether a second pass is needed: 0 or 1
};
inline constexpr std::uint32_t no_outcome = 0xffffffff;  // in `again`: nothing has been written yet

// Steps taken so far by one parameter, where the device counts them, and what its rule carries on between steps.
struct Count {
    std::int64_t steps;
    double memo[max_memo_bytes / sizeof(double)];
};

// A tensor as matrices, and what there is one number for each row, column or matrix of: states first, by their numbers,
// then reductions, by theirs. Of a tensor without elements nothing is.
struct LineTensor {
    void* line[max_states + detail::max_reductions];
    std::int64_t matrices, rows, columns;  // rows and columns of each matrix
    std::int64_t first_line;               // rows and columns of the tensors before
};

// Null pointers stand for tables inside the parameters: the coefficients first, the tensors behind them.
struct StepLaunch {
    const Tensor* tensors;
    const void* coefficients;
    const Control* control;     // null: nothing can call for a skip
    const Side* sides;          // null: no tensor has any
    const std::uint64_t* keys;  // beside each set of coefficients, for random bits; null where `sides` is
    const LineTensor* lines;    // beside the tensors, for rules with numbers of rows and columns
    std::int64_t tiles;
    std::uint32_t count;
    std::uint32_t tensors_at;
    alignas(16) std::byte inside[parameter_bytes - 64];
};
static_assert(sizeof(StepLaunch) == parameter_bytes);

struct alignas(16) NormTensor {
    const void* data;
    std::int64_t first;  // elements of the tensors before it
    double factor;       // of its values, before they are squared
    std::uint8_t format;
    std::uint8_t aligned;  // elements whose index over all tensors is a multiple of 8 lie on a multiple of 16 bytes
};

struct NormLaunch {
    const NormTensor* tensors;  // null: inside
    double* leaves;
    const Control* control;  // of the first pass; null in the first pass
    std::int64_t total;
    std::uint32_t count;
    alignas(16) std::byte inside[parameter_bytes - 48];
};
static_assert(sizeof(NormLaunch) == parameter_bytes);

// A gradient scale inside prepared coefficients that clipping changes.
struct Patch {
    double unclipped;
    std::uint32_t offset;  // bytes from the coefficients' beginning
    std::uint32_t f64;
};

struct FinishLaunch {
    double* leaves;
    std::int64_t count;
    Control* control;
    double outer;      // factor of all gradients that was not applied before they were squared
    double clip_norm;  // negative: no clipping
    std::byte* coefficients;
    const Patch* patches;
    std::uint32_t patch_count;
    bool second;      // the second pass
    bool rescalable;  // a second pass follows
    bool skip_nonfinite;
};

// What is reduced to one number: elements begin ... end - 1 of all tensors end to end.
struct ReductionPart {
    std::int64_t begin, end;
    std::int64_t first_leaf;
};

struct ReduceLaunch {
    const NormTensor* tensors;
    const ReductionPart* parts;
    double* leaves;
    double* sums;  // one for each part
    double scale;
    std::int64_t leaf_count, total;
    std::uint32_t tensor_count, part_count;
};

// Values in device memory that replace what the host knew when it made the tables.
struct Gather {
    const void* from;
    void* to;  // a double; or a Count, whose next step becomes the value
    detail::ScalarType type;
    bool is_count;
};

struct GatherLaunch {
    const Gather* entries;
    std::uint32_t count;
};

// Coefficients that the device computes, one StepCoefficients for each tensor.
struct CoefficientSlot {
    const double* hyper;
    Count* count;
    double grad_scale;   // before clipping
    std::uint64_t seed;  // of random bits
};

struct PrepareLaunch {
    const CoefficientSlot* slots;
    void* coefficients;
    std::uint64_t* keys;  // StepLaunch::keys; null: none are needed
    const Control* control;
    std::uint32_t count;
};

// A tensor of a rule with reductions: what its scalars are computed from, besides those.
inline constexpr int shape_numbers = int(detail::Shape::count);
struct MeasuredTensor {
    CoefficientSlot slot;
    double shape[shape_numbers];
    void* state[max_states];  // of those that it has one number for; null: no such state, or no element
};

// What a pass reduces: elements begin ... end - 1 of all tensors end to end, or rows or columns of a tensor.
//   scope  they become a number for each so many of them: all, a row, or the rows or columns of a matrix
//   rows   if not 0, a number for each element of such a row instead, of matrices of so many rows, which are added up
//          in blocks of `block`. A leaf is then 256 columns of a block
struct MeasuredPart {
    std::int64_t begin, end;
    std::int64_t first_leaf;
    std::int64_t scope, rows, block;
    std::int64_t first_sum;   // sums before it: one of each leaf, or one of each column of a block
    std::int64_t first_long;  // numbers before it that are made of several sums

    ADAPTK_HOST_DEVICE std::int64_t leaves_of_scope() const { return parts_of(scope, leaf_elements); }
    ADAPTK_HOST_DEVICE std::int64_t tiles_of_row() const { return parts_of(scope, tile); }
    ADAPTK_HOST_DEVICE std::int64_t blocks() const { return parts_of(rows, block); }
    ADAPTK_HOST_DEVICE std::int64_t all_columns() const { return (end - begin) / rows; }
    ADAPTK_HOST_DEVICE static std::int64_t parts_of(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }
};

// A pass over the elements of such tensors; of each leaf it writes what its reductions come to. A number for each row,
// column or matrix that is of one leaf is written where it belongs.
struct MeasureLaunch {
    const Tensor* tensors;
    const void* coefficients;
    const Side* sides;  // null: no tensor has any
    const Control* control;
    const std::int64_t* first;  // of each tensor: elements of the tensors before it
    const LineTensor* lines;
    const MeasuredPart* parts;  // of rows and columns: the rows of each tensor, and then the columns of each
    double* sums;               // sum_count of each reduction
    const double* scales;       // of each part, of its reductions' values in the second pass; 0: nothing to do
    std::int64_t leaf_count, sum_count;
    std::uint32_t count, part_count;
    bool second;
};

struct FinishPassLaunch {
    double* sums;
    const MeasuredPart* parts;
    double* reduced;  // `stride` numbers of each part
    double* scales;
    const Control* control;
    std::int64_t leaf_count, sum_count;
    std::uint32_t part_count, count, stride;
    bool second;
    detail::Reduce what[detail::max_reductions];
    std::uint8_t number[detail::max_reductions];
};

// The numbers of rows, columns and matrices that several sums have a part in.
struct FinishLinesLaunch {
    double* sums;
    const MeasuredPart* parts;
    const LineTensor* lines;
    const Control* control;
    std::int64_t long_count, sum_count;
    std::uint32_t part_count, count;
    std::uint32_t wide;  // they are float64
    detail::Reduce what[detail::max_reductions];
    std::uint8_t number[detail::max_reductions];
    std::uint8_t skipped[detail::max_reductions];  // those of the other parts of the pass
};

// The states that there is one number for each row or column of, behind a step of the elements.
struct LinesLaunch {
    const LineTensor* tensors;
    const void* coefficients;
    const Control* control;
    std::int64_t line_count;
    std::uint32_t count;
};

struct ScalarsLaunch {
    const MeasuredTensor* tensors;
    void* coefficients;
    const double* reduced;  // of each tensor all reductions, and behind them those over all tensors
    std::uint64_t* keys;    // StepLaunch::keys; null: none are needed
    const Control* control;
    std::uint32_t count;
    std::uint32_t last;  // whether everything is known
};

struct UploadLaunch {
    std::byte* to;
    std::uint32_t bytes;  // a multiple of 16
    alignas(16) std::byte data[upload_bytes];
};

}  // namespace adaptk::cuda
