// Arithmetic on lanes: one vector register holds the same quantity of several independent problems.
//
// A formula is written once, on a type V that is either Lanes<T> (a vector of GCC and Clang, a single number elsewhere)
// or T itself: the operators
// + - * / and comparisons, `c ? a : b` (both sides are computed), and the functions below. Numbers are written T(2) or
// lane<V>(2). Every operation is rounded on its own, so a lane has the same bits as the scalar code, at any width.
#pragma once

#include "adaptk/config.hpp"

#include <math.h>

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
// A thread of a CUDA kernel works on single numbers.
#elif defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// For functions and loops that a kernel inlines and unrolls completely, so that arrays of a known size are in
// registers. Elsewhere the compiler decides.
#if defined(__CUDA_ARCH__)
#define ADAPTK_KERNEL_UNROLL _Pragma("unroll")
#else
#define ADAPTK_KERNEL_UNROLL
#endif
#if defined(__CUDACC__)
#undef ADAPTK_UNROLL
#define ADAPTK_UNROLL ADAPTK_KERNEL_UNROLL
#define ADAPTK_KERNEL_TOO __host__ __device__ __forceinline__
#else
#define ADAPTK_KERNEL_TOO
#endif

namespace adaptk::solve {
inline namespace ADAPTK_TARGET {

#if defined(__AVX512F__)
constexpr int lane_bytes = 64;
#elif defined(__AVX__)
constexpr int lane_bytes = 32;
#else
constexpr int lane_bytes = 16;
#endif

#if defined(ADAPTK_GNU) && !defined(__CUDACC__)
template <class T> struct LaneType {
    typedef T Vector __attribute__((vector_size(lane_bytes)));
};
#else
template <class T> struct LaneType {
    using Vector = T;
};
#endif
template <class T> using Lanes = typename LaneType<T>::Vector;
template <class T> constexpr int lane_count = int(sizeof(Lanes<T>) / sizeof(T));

template <class V> struct LaneOf {
    using Element = std::remove_cvref_t<decltype(std::declval<V&>()[0])>;
    using Mask = decltype(std::declval<V>() < std::declval<V>());
    using Integer = Mask;
};
template <> struct LaneOf<float> {
    using Element = float;
    using Mask = bool;
    using Integer = std::int32_t;
};
template <> struct LaneOf<double> {
    using Element = double;
    using Mask = bool;
    using Integer = std::int64_t;
};
template <class V> using Element = typename LaneOf<std::remove_cv_t<V>>::Element;
template <class V> using Mask = typename LaneOf<V>::Mask;

// Constants, since kernels may not call functions of the standard library.
template <class T> inline constexpr T infinity = std::numeric_limits<T>::infinity();
template <class T> inline constexpr T not_a_number = std::numeric_limits<T>::quiet_NaN();
template <class T> inline constexpr T smallest_normal = std::numeric_limits<T>::min();

// Lane l, to read and to write. (The compilers let vectors alias their elements.)
template <class V>
    requires(!std::is_const_v<V>)
ADAPTK_HD Element<V>& at(V& v, int l) {
    return reinterpret_cast<Element<V>*>(&v)[l];
}
template <class V> ADAPTK_HD Element<V> at(const V& v, int l) { return reinterpret_cast<const Element<V>*>(&v)[l]; }

// The same number in every lane.
template <class V> ADAPTK_HD V lane(Element<V> x) { return V{} + x; }

template <class V> ADAPTK_HD V absolute(V x) { return x < lane<V>(0) ? -x : x; }
// b if they cannot be compared.
template <class V> ADAPTK_HD V greater_of(V a, V b) { return a > b ? a : b; }
template <class V> ADAPTK_HD V lesser_of(V a, V b) { return a < b ? a : b; }

template <class V> ADAPTK_HD bool any(V mask) {
    if constexpr (std::is_same_v<V, bool>) {
        return mask;
    } else {
        Element<V> all = 0;
        for (unsigned i = 0; i < sizeof(V) / sizeof(all); ++i) all |= mask[i];
        return all != 0;
    }
}

template <class V> ADAPTK_HD V sqrt(V x) {
    using T = Element<V>;
    if constexpr (!std::is_same_v<V, T>) {
#if !defined(__CUDACC__)
#if defined(__AVX512F__)
        // Masked, since GCC 12 warns of the undefined register behind the plain one.
        if constexpr (sizeof(V) == 64 && sizeof(T) == 8) return V(_mm512_maskz_sqrt_pd(__mmask8(0xff), __m512d(x)));
        if constexpr (sizeof(V) == 64 && sizeof(T) == 4) return V(_mm512_maskz_sqrt_ps(__mmask16(0xffff), __m512(x)));
#endif
#if defined(__AVX__)
        if constexpr (sizeof(V) == 32 && sizeof(T) == 8) return V(_mm256_sqrt_pd(__m256d(x)));
        if constexpr (sizeof(V) == 32 && sizeof(T) == 4) return V(_mm256_sqrt_ps(__m256(x)));
#endif
#if defined(__SSE2__)
        if constexpr (sizeof(V) == 16 && sizeof(T) == 8) return V(_mm_sqrt_pd(__m128d(x)));
        if constexpr (sizeof(V) == 16 && sizeof(T) == 4) return V(_mm_sqrt_ps(__m128(x)));
#endif
#if defined(__aarch64__)
        if constexpr (sizeof(V) == 16 && sizeof(T) == 8) return V(vsqrtq_f64(float64x2_t(x)));
        if constexpr (sizeof(V) == 16 && sizeof(T) == 4) return V(vsqrtq_f32(float32x4_t(x)));
#endif
#endif
        V y = x;
        for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) y[i] = sqrt<T>(x[i]);
        return y;
    } else {
#if defined(__CUDA_ARCH__)
        if constexpr (sizeof(T) == 4)
            return __fsqrt_rn(x);
        else
            return __dsqrt_rn(x);
#elif defined(ADAPTK_GNU)
        if constexpr (sizeof(T) == 4)
            return __builtin_sqrtf(x);
        else
            return __builtin_sqrt(x);
#else
        if constexpr (sizeof(T) == 4)
            return ::sqrtf(x);
        else
            return ::sqrt(x);
#endif
    }
}

namespace detail {

template <class V> ADAPTK_HD auto bits(V x) {
    using I = typename LaneOf<V>::Integer;
    if constexpr (std::is_same_v<V, Element<V>>)
        return __builtin_bit_cast(I, x);
    else
        return I(x);
}
template <class V> ADAPTK_HD V from_bits(typename LaneOf<V>::Integer i) {
    if constexpr (std::is_same_v<V, Element<V>>)
        return __builtin_bit_cast(V, i);
    else
        return V(i);
}

template <class T> struct Format;
template <> struct Format<double> {
    static constexpr int digits = 52;
    static constexpr double round = 0x1.8p52;  // added and taken away again, it rounds to a whole number
    static constexpr double bias = 1023;
    // ln 2 in two parts, the first with so few digits that its multiples by exponents are exact.
    static constexpr double high = 0x1.62e42feep-1, low = 0x1.a39ef35793c76p-33;
    // exp is 0 below and infinite above.
    static constexpr double least = -746, most = 710, step = 1000;
    // (e^r - 1 - r) / r^2 from its values at the Chebyshev points of |r| <= ln(2)/2: exp's relative error is 2^-55.8.
    struct Exp {
        static constexpr double value[] = {0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553d63p-5,
                                           0x1.11111111109b3p-7,  0x1.6c16c1788bd90p-10, 0x1.a01a01a7c41d5p-13,
                                           0x1.a019b90d2ae7ap-16, 0x1.71de0dae63bb3p-19, 0x1.289185613a3d6p-22,
                                           0x1.af38a9b0ec855p-26};
    };
    // (2 artanh(s) / s - 2) / s^2 in s^2, from its values at the Chebyshev points of e^(2 artanh |s|) <= sqrt(2):
    // the error of 2 artanh(s) is 2^-57.6 of it.
    struct Log {
        static constexpr double value[] = {0x1.5555555555558p-1, 0x1.99999999952e2p-2, 0x1.2492492df148dp-2,
                                           0x1.c71c62e5800a1p-3, 0x1.7462b4ab2ef6bp-3, 0x1.39fe606542ddep-3,
                                           0x1.2b584aae78a57p-3};
    };
    static constexpr double half_root = 0x1.6a09e667f3bcdp-1, whole = 0x1p52, above_subnormal = 0x1p54;
    // (atan(u) / u - 1) / u^2 in u^2, likewise for |u| <= sqrt(2) - 1: 2^-57.6.
    struct Atan {
        static constexpr double value[] = {-0x1.5555555555555p-2, 0x1.999999999934cp-3,  -0x1.2492492436201p-3,
                                           0x1.c71c71853d7fap-4,  -0x1.745d0b28a7e37p-4, 0x1.3b1263064f6b9p-4,
                                           -0x1.10fa77b1a6d57p-4, 0x1.dfe6497e96323p-5,  -0x1.a0999c632b6edp-5,
                                           0x1.4162c02b1dda3p-5,  -0x1.3a31b1c0fd3b7p-6};
    };
    static constexpr double right_angle = 0x1.921fb54442d18p+0, right_angle_rest = 0x1.1a62633145c07p-54;
    // pi/2 in three parts.
    static constexpr double quarter[] = {0x1.921fb544p+0, 0x1.0b4611a6p-34, 0x1.3198a2e037073p-69};
};
template <> struct Format<float> {
    static constexpr int digits = 23;
    static constexpr float round = 0x1.8p23f;
    static constexpr float bias = 127;
    static constexpr float high = 0x1.63p-1f, low = -0x1.bd0106p-13f;
    static constexpr float least = -104, most = 89, step = 100;
    // As above: 2^-26.5.
    struct Exp {
        static constexpr float value[] = {0x1p-1f, 0x1.5554dcp-3f, 0x1.555518p-5f, 0x1.120be2p-7f, 0x1.6d117cp-10f};
    };
    struct Log {
        static constexpr float value[] = {0x1.55555cp-1f, 0x1.997c3p-2f, 0x1.2ee61p-2f};
    };  // as above: 2^-28.4
    static constexpr float half_root = 0x1.6a09e6p-1f, whole = 0x1p23f, above_subnormal = 0x1p25f;
    struct Atan {
        static constexpr float value[] = {-0x1.555554p-2f, 0x1.999730p-3f, -0x1.242036p-3f, 0x1.b81030p-4f,
                                          -0x1.08455ep-4f};
    };  // 2^-28.7
    static constexpr float right_angle = 0x1.921fb6p+0f, right_angle_rest = -0x1.777a5cp-25f;
    static constexpr float quarter[] = {0x1.92p+0f, 0x1.fb4p-12f, 0x1.4442d2p-24f};
};

// value[i] + x (value[i + 1] + x (...)), with the values as constants in the code: a kernel has no memory for tables.
template <class Table, int i = 0, class V> ADAPTK_HD V polynomial(V x) {
    constexpr Element<V> value = Table::value[i];
    if constexpr (i + 1 == int(sizeof(Table::value) / sizeof(value)))
        return lane<V>(value);
    else
        return polynomial<Table, i + 1>(x) * x + value;
}

// 2^k for an integer k that is the exponent of a normal number.
template <class V> ADAPTK_HD V power_of_two(V k) {
    using F = Format<Element<V>>;
    return from_bits<V>(bits(V(k + (F::round + F::bias))) << F::digits);
}

}  // namespace detail

// Within one unit in the last place (tested), subnormal results included.
template <class V> ADAPTK_HD V exp(V x) {
    using T = Element<V>;
    using F = detail::Format<T>;
    const V low = lane<V>(F::least), high = lane<V>(F::most), step = lane<V>(F::step);
    x = x < low ? low : x;  // NaN stays
    x = x > high ? high : x;
    const V k = (x * T(1.44269504088896340736) + F::round) - F::round;
    const V r = (x - k * F::high) - k * F::low;
    V p = detail::polynomial<typename F::Exp>(r);
    p = T(1) + (r + r * r * p);
    // In two steps: 2^k alone may leave the range.
    V part = k < -step ? -step : k;
    part = part > step ? step : part;
    return p * detail::power_of_two<V>(part) * detail::power_of_two<V>(k - part);
}

// e^x - 1 within a few units in the last place, also for x near 0.
template <class V> ADAPTK_HD V expm1(V x) {
    using T = Element<V>;
    using F = detail::Format<T>;
    const V low = lane<V>(F::least), high = lane<V>(F::most), step = lane<V>(F::step);
    V y = x < low ? low : x;
    y = y > high ? high : y;
    const V k = (y * T(1.44269504088896340736) + F::round) - F::round;
    const V r = (y - k * F::high) - k * F::low;
    V p = detail::polynomial<typename F::Exp>(r);
    const V q = r + r * r * p;  // e^r - 1
    V part = k < -step ? -step : k;
    part = part > step ? step : part;
    const V first = detail::power_of_two<V>(part), second = detail::power_of_two<V>(k - part);
    const V large = (T(1) + q) * first * second, scale = first * second;
    const V result = k > T(F::digits + 4) ? large : q * scale + (scale - T(1));
    return x == T(0) ? x : result;
}

// The natural logarithm within one unit in the last place (tested); NaN below 0.
template <class V> ADAPTK_HD V log(V x) {
    using T = Element<V>;
    using F = detail::Format<T>;
    using I = typename LaneOf<T>::Integer;
    // x = 2^k m with m in [sqrt(1/2), sqrt(2)).
    constexpr I root = __builtin_bit_cast(I, F::half_root), one = __builtin_bit_cast(I, T(1));
    constexpr I whole = __builtin_bit_cast(I, F::whole);
    constexpr T least = smallest_normal<T>, up = F::above_subnormal;
    const auto small = x < least;
    const V y = small ? x * up : x;
    const auto shifted = detail::bits(y) + (one - root);
    const V biased = detail::from_bits<V>((shifted >> F::digits) | whole) - F::whole;
    const V k = biased - (small ? lane<V>(F::bias + F::digits + 2) : lane<V>(F::bias));
    const V m = detail::from_bits<V>((shifted & ((I(1) << F::digits) - 1)) + root);
    // log(1 + f) = 2 artanh(s) = f - (f^2/2 - s (f^2/2 + z P(z))).
    const V f = m - T(1), s = f / (f + T(2)), z = s * s, half = f * f * T(0.5);
    const V p = detail::polynomial<typename F::Log>(z);
    V result = k * F::high - ((half - (s * (half + z * p) + k * F::low)) - f);
    result = x == lane<V>(infinity<T>) ? x : result;
    result = x == T(0) ? lane<V>(-infinity<T>) : result;
    return x >= T(0) ? result : lane<V>(not_a_number<T>);
}

// log(1 + x), also for x near 0: the factor has the same rounding error of 1 + x (Goldberg 1991, theorem 4).
template <class V> ADAPTK_HD V log1p(V x) {
    using T = Element<V>;
    const V u = x + T(1), step = u - T(1);
    const auto none = step == T(0);
    const V result = log(u) * (x / (none ? lane<V>(1) : step));
    return none ? x : (x == lane<V>(infinity<T>) ? x : result);
}

// Within one unit in the last place (tested).
template <class V> ADAPTK_HD V atan(V x) {
    using T = Element<V>;
    using F = detail::Format<T>;
    constexpr T eighth = T(0.41421356237309504880);  // tan(pi/8)
    const V a = absolute(x);
    const auto steep = a > T(1) / eighth, middle = a > eighth;
    // atan(a) is a multiple of pi/4 and atan(u).
    const V above = steep ? lane<V>(-1) : (middle ? a - T(1) : a);
    const V below = steep ? a : (middle ? a + T(1) : lane<V>(1));
    const V u = above / below, w = u * u;
    const V share = steep ? lane<V>(1) : (middle ? lane<V>(T(0.5)) : V{});
    const V p = detail::polynomial<typename F::Atan>(w);
    const V result = share * F::right_angle + (u + (u * w * p + share * F::right_angle_rest));
    return x < T(0) ? -result : result;
}

// Sine and cosine within a few units in the last place for |x| < 1e5 (1e3 in float32), by their series on |r| <= pi/4.
template <class V> ADAPTK_HD void sine_cosine(V x, V& sine, V& cosine) {
    using T = Element<V>;
    using F = detail::Format<T>;
    const V t = x * T(0.63661977236758134308) + F::round;
    const V k = t - F::round;
    constexpr T first = F::quarter[0], second = F::quarter[1], third = F::quarter[2];
    const V r = ((x - k * first) - k * second) - k * third;
    const V z = r * r;
    V s = lane<V>(1), c = lane<V>(1);
    ADAPTK_UNROLL
    for (int i = 16; i >= 2; i -= 2) {
        s = T(1) - s * z * (T(1) / T(i * (i + 1)));
        c = T(1) - c * z * (T(1) / T(i * (i - 1)));
    }
    s = s * r;
    const auto turn = detail::bits(t);
    const auto odd = (turn & 1) != 0;
    const auto sine_negative = (turn & 2) != 0;
    const auto cosine_negative = ((turn + 1) & 2) != 0;
    sine = odd ? c : s;
    cosine = odd ? s : c;
    sine = sine_negative ? -sine : sine;
    cosine = cosine_negative ? -cosine : cosine;
}

}  // namespace ADAPTK_TARGET
}  // namespace adaptk::solve
