// Powers for the coefficients of a step, with the same bits on every machine. The last bit of pow differs between C
// libraries (and, in glibc, between processors with and without FMA), and 1 - beta^t carries this difference into every
// parameter. So powers are computed here in double-double arithmetic, with about 100 bits, from IEEE operations alone,
// and rounded once. The result is correctly rounded, except for the rare value within 2^-40 ulp of a tie and for
// results below 1e-290, which do not change a sum with 1.
//
// Double-double products and sums: T. J. Dekker, A floating-point technique for extending the available precision,
// Numerische Mathematik 18, 1971; with FMA as in Y. Hida, X. S. Li, D. H. Bailey, ARITH-15, 2001.
#pragma once

#include "adaptk/config.hpp"

#include <cmath>
#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

namespace power_detail {

struct Pair {
    double hi, lo;
};

// Exact for |a| >= |b| (or a = 0).
ADAPTK_HOST_DEVICE inline Pair fast_sum(double a, double b) {
    const double s = a + b;
    return {s, b - (s - a)};
}

ADAPTK_HOST_DEVICE inline Pair add(Pair a, Pair b) {
    const double s = a.hi + b.hi;
    const double t = s - a.hi;
    const double e = (a.hi - (s - t)) + (b.hi - t);
    return fast_sum(s, e + (a.lo + b.lo));
}

// a * b - p, exactly, for p = a * b rounded.
ADAPTK_HOST_DEVICE inline double rest_of_product(double a, double b, double p) {
#if defined(__MINGW32__)
    // The fma of MinGW-w64's C library rounds twice, so factors are split into halves of 26 bits, whose products are
    // exact (Dekker, Veltkamp).
    const double over_a = 0x8000001p0 * a, over_b = 0x8000001p0 * b;
    const double a1 = over_a - (over_a - a), b1 = over_b - (over_b - b);
    const double a2 = a - a1, b2 = b - b1;
    return ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2;
#else
    return std::fma(a, b, -p);
#endif
}

ADAPTK_HOST_DEVICE inline Pair multiply(Pair a, Pair b) {
    const double p = a.hi * b.hi;
    const double e = rest_of_product(a.hi, b.hi, p);
    return fast_sum(p, e + (a.hi * b.lo + a.lo * b.hi));
}

ADAPTK_HOST_DEVICE inline Pair divide(Pair a, Pair b) {
    const double q = a.hi / b.hi;
    const Pair r = add(a, multiply({-q, 0.0}, b));
    const double q2 = r.hi / b.hi;
    const Pair r2 = add(r, multiply({-q2, 0.0}, b));
    return add(fast_sum(q, q2), {r2.hi / b.hi, 0.0});
}

// ln 2 to 107 bits.
inline constexpr Pair ln2{0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56};

// x = m * 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh s, s = (m-1)/(m+1). Its series gains 5 bits per term.
ADAPTK_HOST_DEVICE inline Pair log(double x) {
    int e = 0;
    double m = std::frexp(x, &e);
    if (m < 0.70710678118654752) {
        m *= 2.0;
        --e;
    }
    const Pair s = divide({m - 1.0, 0.0}, add({m, 0.0}, {1.0, 0.0}));
    const Pair square = multiply(s, s);
    Pair sum{0.0, 0.0};
    for (int k = 43; k >= 1; k -= 2) sum = add(divide({1.0, 0.0}, {double(k), 0.0}), multiply(sum, square));
    const Pair l = multiply(multiply(sum, s), {2.0, 0.0});
    return add(multiply({double(e), 0.0}, ln2), l);
}

// x = k ln 2 + 2^9 r: a short Taylor series for expm1(r), then nine doublings expm1(2r) = a*(a + 2), which keep the
// relative accuracy that squaring exp(r) would lose.
ADAPTK_HOST_DEVICE inline double exp(Pair x) {
    const double k = std::nearbyint(x.hi / ln2.hi);
    Pair r = add(x, multiply({-k, 0.0}, ln2));
    r = {r.hi * 0x1p-9, r.lo * 0x1p-9};
    Pair sum{1.0, 0.0};
    for (int n = 11; n >= 2; --n) {
        sum = add({1.0, 0.0}, divide(multiply(sum, r), {double(n), 0.0}));
    }
    Pair a = multiply(sum, r);
    for (int i = 0; i < 9; ++i) a = multiply(a, add(a, {2.0, 0.0}));
    const Pair y = add(a, {1.0, 0.0});
    return std::ldexp(y.hi, int(k)) + std::ldexp(y.lo, int(k));
}

}  // namespace power_detail

// base^n for 0 <= base <= 1, n >= 0, by binary powering.
ADAPTK_HOST_DEVICE inline double power(double base, std::int64_t n) {
    using power_detail::Pair;
    Pair result{1.0, 0.0};
    Pair square{base, 0.0};
    for (auto bits = static_cast<std::uint64_t>(n); bits != 0; bits >>= 1) {
        if ((bits & 1) != 0) result = power_detail::multiply(result, square);
        // Below 2^-500, any further factor makes the result so small that it does not change a sum with 1.
        if (square.hi < 0x1p-500) return (bits >> 1) == 0 ? result.hi : 0.0;
        square = power_detail::multiply(square, square);
    }
    return result.hi;
}

// base^exponent for base > 0.
ADAPTK_HOST_DEVICE inline double power(double base, double exponent) {
    if (exponent == 0.0 || base == 1.0) return 1.0;
    if (base == HUGE_VAL) return exponent > 0.0 ? HUGE_VAL : 0.0;
    const power_detail::Pair l = power_detail::log(base);
    // Beyond the range of float64, where the lower half of the double-double product may not be finite.
    if (l.hi * exponent > 710.0) return HUGE_VAL;
    if (l.hi * exponent < -746.0) return 0.0;
    return power_detail::exp(power_detail::multiply(l, {exponent, 0.0}));
}

// The same for any base, with the special cases of C's pow.
ADAPTK_HOST_DEVICE inline double any_power(double base, double exponent) {
    if (exponent == 0.0 || base == 1.0) return 1.0;
    // The C library's results are exact here.
    if (base == 0.0 || !std::isfinite(base) || !std::isfinite(exponent)) return std::pow(base, exponent);
    if (base > 0.0) return power(base, exponent);
    if (exponent != std::nearbyint(exponent)) return std::sqrt(-1.0);  // a NaN
    const double half = exponent * 0.5;
    const double magnitude = power(-base, exponent);
    return half == std::nearbyint(half) ? magnitude : -magnitude;
}

// base^t for the number t of a step, as in the bias corrections of the rules.
ADAPTK_HOST_DEVICE inline double step_power(double base, std::int64_t t) {
    return base >= 0.0 && base <= 1.0 ? power(base, t) : any_power(base, double(t));
}

ADAPTK_NAMESPACE_END
