// Which model a batch has. Plain data.
#pragma once

#include "batch_program.hpp"

namespace adaptk::detail {

enum class BatchModel : int {
    gaussian,
    gaussian_2d,
    gaussian_2d_elliptic,
    gaussian_2d_rotated,
    lorentz,
    exponential,
    double_exponential,
    triple_exponential,
    polynomial,
    rational,
    program,
};

inline constexpr int max_batch_parameters = 10;

struct BatchChoice {
    BatchModel model = BatchModel::gaussian;
    int size = 0;    // parameters
    int inputs = 1;  // coordinates of a point
    int degree = 0;  // of a rational function's numerator
    const BatchProgram* program = nullptr;
};

}  // namespace adaptk::detail
