// The natural logarithm for the coefficients of a step, with the same bits on every machine.
#pragma once

#include "adaptk/power.hpp"

#include <cmath>

ADAPTK_NAMESPACE_BEGIN

// Computed in double-double arithmetic and rounded once. NaN below 0.
ADAPTK_HOST_DEVICE inline double logarithm(double x) {
    if (x == 0.0) return -HUGE_VAL;
    if (!(x > 0.0)) return std::sqrt(-1.0);
    if (x == HUGE_VAL) return x;
    const power_detail::Pair l = power_detail::log(x);
    return l.hi + l.lo;
}

ADAPTK_NAMESPACE_END
