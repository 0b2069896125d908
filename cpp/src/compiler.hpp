// Features that compilers have under different names, or not at all.
#pragma once

#include "adaptk/prefetch.hpp"

#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

// Sums and products of counts, which are not negative: true if int64 cannot hold the result.
ADAPTK_HD bool sum_overflows(std::int64_t a, std::int64_t b, std::int64_t& sum) {
#if defined(ADAPTK_GNU)
    return __builtin_add_overflow(a, b, &sum);
#else
    if (a > INT64_MAX - b) return true;
    sum = a + b;
    return false;
#endif
}

ADAPTK_HD bool product_overflows(std::int64_t a, std::int64_t b, std::int64_t& product) {
#if defined(ADAPTK_GNU)
    return __builtin_mul_overflow(a, b, &product);
#else
    if (b != 0 && a > INT64_MAX / b) return true;
    product = a * b;
    return false;
#endif
}

ADAPTK_NAMESPACE_END
