// Reductions over tensors that give the same bits for any instruction set, number of threads, partition and device.
//
// The elements of a scope (all tensors end to end, a group's, a tensor, a row) are cut into leaves of 8192. A leaf adds
// element i to accumulator i % 256, in the order of i, and then the 256 accumulators pairwise; the leaves' sums are
// added pairwise, level by level, an odd last one going up as it is. All in float64.
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

// What is reduced to one number.
struct ReductionPart {
    std::size_t tensor;  // that it begins in
    std::int64_t first;  // element of that tensor
    std::int64_t begin;  // the same among all tensors' elements
    std::int64_t size;
    std::int64_t first_leaf;
};
ADAPTK_INTERNAL_API std::vector<ReductionPart> reduction_parts(std::span<const ParamUpdate> tensors,
                                                               const Reduction& what);

inline std::int64_t leaves_of(std::int64_t elements) {
    return (elements + std::int64_t(reduction_leaf) - 1) / std::int64_t(reduction_leaf);
}

// A column is added up in blocks of so many rows of a matrix. The widest part of a row that such a block is of.
inline constexpr std::int64_t widest_column_block = 8 * std::int64_t(reduction_leaf);
inline std::int64_t rows_of_column_block(std::int64_t rows, std::int64_t columns) {
    constexpr std::int64_t least_elements = 1 << 18, most_blocks = 64;
    const std::int64_t width = std::min(columns, widest_column_block);
    return std::min(rows, std::max((rows + most_blocks - 1) / most_blocks, (least_elements + width - 1) / width));
}

// One sum for all, each group, each tensor, or each row of each tensor, in their order. An empty scope's sum is 0.
// Throws std::bad_alloc only.
ADAPTK_INTERNAL_API std::vector<double> reduce(std::span<const ParamUpdate> tensors, const Reduction& what);

// sqrt(sum of squares) of scale * factor * g over all gradients. Squares of float64 that overflow or vanish are taken
// once more of values scaled by a power of two, which changes no digit.
StepReport norm_of_gradients(std::span<const ParamUpdate> tensors, double scale, std::span<const double> factors);

}  // namespace adaptk::detail
