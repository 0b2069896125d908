// The kernels of the rules that keep one number for each row (row_wise.hpp), of one instruction set.
#pragma once

#include "kernel_table.hpp"

#include "adaptk/row_wise.hpp"

#include <cstddef>

namespace adaptk::detail {

// The squares of a row are summed in parts of this many elements: each part into 16 accumulators in the compute type,
// which a tree adds up. The sums of the parts are added in double, in order.
inline constexpr std::size_t row_part = 256;

// coefficients: a StepCoefficients<R, T>; buffers: those of a StepKernel, except that the row's state has one number.
struct RowWiseKernels {
    // A row of at most row_part elements.
    StepKernel step;
    // Longer rows are updated in parts: the sum of squares of each part, the factor of the row from the mean, and the
    // update of each part.
    double (*square_sum)(const void* coefficients, const void* p, const void* g, std::size_t n);
    double (*factor)(const void* coefficients, double mean, void* number);
    void (*update)(const void* coefficients, double factor, void* const* buffer, std::size_t n);
};

struct RowWiseTable {
    RowWiseKernels rule[RowWiseRules::size][2][2];  // [0 float, 1 double][coupled decay]
};

const RowWiseTable& row_wise_portable();
const RowWiseTable& row_wise_v2();
const RowWiseTable& row_wise_v3();
const RowWiseTable& row_wise_v4();

}  // namespace adaptk::detail
