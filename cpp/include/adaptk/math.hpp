// The arithmetic that rules are written in: IEEE operations that are correctly rounded on every target, and selects
// that vectorise. Nothing here may be contracted, approximated or reordered.
#pragma once

#include "adaptk/config.hpp"

#include <math.h>

#include <cmath>

ADAPTK_NAMESPACE_BEGIN

// Builtins, or C's functions, not std::sqrt: a library wrapper that is not inlined would leave a weak symbol in a
// kernel object.
#if defined(__CUDA_ARCH__)
ADAPTK_HD float sqrt(float x) { return __fsqrt_rn(x); }
ADAPTK_HD double sqrt(double x) { return __dsqrt_rn(x); }
ADAPTK_HD float abs(float x) { return fabsf(x); }
ADAPTK_HD double abs(double x) { return fabs(x); }
#elif defined(ADAPTK_GNU)
ADAPTK_HD float sqrt(float x) { return __builtin_sqrtf(x); }
ADAPTK_HD double sqrt(double x) { return __builtin_sqrt(x); }
ADAPTK_HD float abs(float x) { return __builtin_fabsf(x); }
ADAPTK_HD double abs(double x) { return __builtin_fabs(x); }
#else
ADAPTK_HD float sqrt(float x) { return ::sqrtf(x); }
ADAPTK_HD double sqrt(double x) { return ::sqrt(x); }
ADAPTK_HD float abs(float x) { return ::fabsf(x); }
ADAPTK_HD double abs(double x) { return ::fabs(x); }
#endif

// NaN if either argument is NaN, unlike IEEE maxNum and std::max.
template <class T> ADAPTK_HD T max(T a, T b) { return (a > b || a != a) ? a : b; }
template <class T> ADAPTK_HD T min(T a, T b) { return (a < b || a != a) ? a : b; }

// x limited to [lo, hi]. NaN is passed through.
template <class T> ADAPTK_HD T clamp(T x, T lo, T hi) {
    const T y = x < lo ? lo : x;
    return y > hi ? hi : y;
}

// -1, +0 or 1. NaN is passed through.
template <class T> ADAPTK_HD T sign(T x) {
    const T y = x > T(0) ? T(1) : (x == T(0) ? T(0) : x);
    return x < T(0) ? T(-1) : y;
}

ADAPTK_NAMESPACE_END
