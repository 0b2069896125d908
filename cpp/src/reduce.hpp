// Reductions over tensors with the same bits for any instruction set, number of threads, partition and device.
//
// The elements of a scope (all tensors end to end, those of a group, a tensor, a row) are divided into leaves of 8192.
// A leaf adds element i to accumulator i % 256, in the order of i, and then adds the 256 accumulators pairwise. The
// leaves' sums are added pairwise, level by level; an odd last one is passed on to the next level. All sums are
// float64.
#pragma once

#include "step.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace adaptk::detail {

enum class Scope : std::uint8_t { all, group, tensor, row };

struct Reduction {
    Term term = Term::square;
    Scope scope = Scope::all;
    std::size_t buffer = 1;                    // which buffer of the tensors
    double scale = 1.0;                        // of the values, before the term is taken
    std::span<const double> factors = {};      // of each tensor, if they differ
    std::span<const std::size_t> groups = {};  // tensors in each group: scope `group`
    std::span<const std::int64_t> row_sizes =
        {};  // elements in a row of each tensor, a divisor of its size: scope `row`
};

// A part that is reduced to one number.
struct ReductionPart {
    std::size_t tensor;  // in which it begins
    std::int64_t first;  // its first element in that tensor
    std::int64_t begin;  // the same element in the order of all tensors
    std::int64_t size;
    std::int64_t first_leaf;
};
ADAPTK_INTERNAL_API std::vector<ReductionPart> reduction_parts(std::span<const ParamUpdate> tensors,
                                                               const Reduction& what);

inline std::int64_t leaves_of(std::int64_t elements) {
    return (elements + std::int64_t(reduction_leaf) - 1) / std::int64_t(reduction_leaf);
}

// A column is summed in blocks of rows_of_column_block() rows of a matrix. A block is at most this wide.
inline constexpr std::int64_t widest_column_block = 8 * std::int64_t(reduction_leaf);
inline std::int64_t rows_of_column_block(std::int64_t rows, std::int64_t columns) {
    constexpr std::int64_t min_elements = 1 << 18, max_blocks = 64;
    const std::int64_t width = std::min(columns, widest_column_block);
    return std::min(rows, std::max((rows + max_blocks - 1) / max_blocks, (min_elements + width - 1) / width));
}

// One sum for all, each group, each tensor, or each row of each tensor, in their order. An empty scope's sum is 0.
// Throws std::bad_alloc only.
ADAPTK_INTERNAL_API std::vector<double> reduce(std::span<const ParamUpdate> tensors, const Reduction& what);

// sqrt(sum of squares) of scale * factor * g over all gradients. If squares of float64 overflow or underflow, the sum
// is computed again with values scaled by a power of two, which is exact.
StepReport norm_of_gradients(std::span<const ParamUpdate> tensors, double scale, std::span<const double> factors);

}  // namespace adaptk::detail
