// What a step of a rule computes once: compiled for processors that have a multiply-add of their own, and for all
// others.
#pragma once

#include "program.hpp"

#include "adaptk/row_wise.hpp"
#include "adaptk/rules.hpp"

#include <cstddef>
#include <cstdint>

namespace adaptk::detail {

// Of any rule of the list, and of any program as a compiled rule.
inline constexpr std::size_t max_coefficients_bytes =
    sizeof(CommonCoefficients<double>) + max_constants * sizeof(double);

// Writes the StepCoefficients<R, T> of step t, from the rule's own hyperparameters followed by the common ones:
// step_coefficients. A memo that the caller keeps (see rule.hpp; a copy of R::Memo) stands for the steps before t;
// without one they are taken as the values say.
using PrepareCoefficients = void (*)(const double* hyper, double grad_scale, std::int64_t t, void* coefficients,
                                     const void* memo);

// Writes the values of nodes first ... last - 1, but of those that reductions have.
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
