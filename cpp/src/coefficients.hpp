// The coefficients of a step: compiled for processors with fused multiply-add, and for all others.
#pragma once

#include "program.hpp"

#include "adaptk/row_wise.hpp"
#include "adaptk/rules.hpp"

#include <cstddef>
#include <cstdint>

namespace adaptk::detail {

// For any rule of the list, and for any program as a compiled rule.
inline constexpr std::size_t max_coefficients_bytes =
    sizeof(CommonCoefficients<double>) + max_constants * sizeof(double);

// Writes the StepCoefficients<R, T> of step t, from the rule's own hyperparameters followed by the common ones:
// step_coefficients. A memo that the caller keeps (see rule.hpp; a copy of R::Memo) represents the steps before t.
// Without one, they are assumed to have had these hyperparameters.
using PrepareCoefficients = void (*)(const double* hyper, double grad_scale, std::int64_t t, void* coefficients,
                                     const void* memo);

// Writes the values of nodes first ... last - 1, except of those that are reductions.
using EvaluateScalars = void (*)(const ScalarNode* nodes, std::size_t first, std::size_t last, const double* hyper,
                                 std::size_t hypers, std::int64_t t, double* values);

struct CoefficientTable {
    PrepareCoefficients prepare[Rules::size][2];  // [rule][0 float, 1 double]
    PrepareCoefficients prepare_row_wise[RowWiseRules::size][2];
    EvaluateScalars evaluate;
};

const CoefficientTable& coefficients_portable();
const CoefficientTable& coefficients_v3();

}  // namespace adaptk::detail
