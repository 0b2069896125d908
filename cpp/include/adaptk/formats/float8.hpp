// 8-bit floats: storage of params and gradients, in the dtypes of other libraries, and of states.
#pragma once

#include "adaptk/format.hpp"

#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

constexpr float exact_power(int exponent) {
    float x = 1.0f;
    for (; exponent > 0; --exponent) x *= 2.0f;
    for (; exponent < 0; ++exponent) x *= 0.5f;
    return x;
}

// A sign, an exponent and `Digits` bits of significand; 2^Least is the smallest normal number. Codes are handled as the
// upper bits of a float with another exponent bias.
template <int Digits, int Least> struct EightBits {
    static constexpr int shift = 23 - Digits;
    static constexpr std::uint32_t bias = std::uint32_t(126 + Least) << 23;
    static constexpr std::uint32_t least_normal = std::uint32_t(127 + Least) << 23;
    static constexpr float smallest_normal = exact_power(Least);
    static constexpr float last_place = exact_power(Least - Digits);
    static constexpr float aligned = exact_power(Least - Digits + 23);

    // The value of a code that is neither infinity nor NaN.
    template <class L> ADAPTK_HD static typename L::F finite_value(typename L::U code) {
        const auto magnitude = code & 0x7fu;
        const auto subnormal = L::bits(L::converted(typename L::I(magnitude)) * last_place);
        const auto body = L::select(magnitude < L::all(1u << Digits), subnormal, (magnitude << shift) + bias);
        return L::real(body | ((code & 0x80u) << 24));
    }
    // Rounds to nearest, ties to even, without the sign; beyond the largest number, results are codes that do not
    // exist. Subnormal numbers are added to a float with the same last place, which then has their code in its last
    // bits.
    template <class L> ADAPTK_HD static typename L::U nearest(typename L::U magnitude) {
        const auto normal = (magnitude - bias + ((1u << (shift - 1)) - 1) + ((magnitude >> shift) & 1u)) >> shift;
        const auto subnormal =
            L::bits(L::real(magnitude) + aligned) - std::uint32_t(127 + Least - Digits + 23) * (1u << 23);
        return L::select(magnitude < L::all(least_normal), subnormal, normal);
    }
    // The probability of rounding away from zero is the lost part of the last place, to a multiple of 2^-16. For x
    // below 2^Least, 2^Least + x has as many bits below the last place of subnormal numbers as normal numbers have
    // below theirs.
    template <class L> ADAPTK_HD static typename L::U stochastic(typename L::U magnitude, typename L::U random) {
        const auto subnormal = L::bits(L::real(magnitude) + smallest_normal) - least_normal;
        const auto fixed = L::select(magnitude < L::all(least_normal), subnormal, magnitude - bias);
        return (fixed + (random << (shift - 16))) >> shift;
    }
};

// No infinity, and NaN if all bits except the sign are set. Values that round to nearest beyond 448 become NaN, as in
// the conversions of ml_dtypes and JAX; those of PyTorch today end at 448.
struct E4M3 : EightBits<3, -6> {
    static constexpr std::uint32_t beyond = 0x7f, nan = 0x7f;
    static constexpr std::uint32_t first_beyond = 0x43e80001u;  // the next float after 464, which rounds to 448
    template <class L> ADAPTK_HD static typename L::F value(typename L::U code, typename L::F finite) {
        return L::real(L::select((code & 0x7fu) == L::all(nan), L::all(0x7fc00000u), L::bits(finite)));
    }
};

// The upper half of a float16.
struct E5M2 : EightBits<2, -14> {
    static constexpr std::uint32_t beyond = 0x7c, nan = 0x7e;
    static constexpr std::uint32_t first_beyond = 0x47700000u;  // 61440
    template <class L> ADAPTK_HD static typename L::F value(typename L::U code, typename L::F finite) {
        const auto magnitude = code & 0x7fu;
        const auto special = L::select(magnitude == L::all(beyond), L::all(0x7f800000u), L::all(0x7fc00000u));
        const auto signed_special = special | ((code & 0x80u) << 24);
        return L::real(L::select(magnitude < L::all(beyond), L::bits(finite), signed_special));
    }
};

// What both kinds of rounding share: the codes of values that are not finite or round beyond the largest number.
template <class B> struct Float8Codes {
    static constexpr bool of_states = false;
    using Element = std::uint8_t;
    using Compute = float;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) {
        return B::template value<L>(code, B::template finite_value<L>(code));
    }
    template <class L> ADAPTK_HD static typename L::U with_specials(typename L::U code, typename L::F x) {
        const auto u = L::bits(x);
        const auto not_nan = (u & 0x7fffffffu) <= L::all(0x7f800000u);
        return L::select(not_nan, code, L::all(B::nan)) | ((u >> 24) & 0x80u);
    }
};

template <class B> struct Float8Nearest : Float8Codes<B> {
    using Codes = Float8Codes<B>;
    using typename Codes::Element;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) {
        return Codes::template decode<L>(code);
    }
    template <class L> ADAPTK_HD static typename L::U encode(typename L::F x) {
        const auto code = B::template nearest<L>(L::bits(x) & 0x7fffffffu);
        return Codes::template with_specials<L>(L::select(code < L::all(B::beyond), code, L::all(B::beyond)), x);
    }
    ADAPTK_HD static float decode(Element x) { return decode<OneLane>(x); }
    ADAPTK_HD static Element encode(float x) { return Element(encode<OneLane>(x)); }
};

// Values that are nearest to a finite number are stored as finite, as in float16_sr.
template <class B> struct Float8Stochastic : Float8Codes<B> {
    using Codes = Float8Codes<B>;
    static constexpr int random_bits = 16;
    template <class L, bool = false> ADAPTK_HD static typename L::U encode(typename L::F x, typename L::U random) {
        const auto magnitude = L::bits(x) & 0x7fffffffu;
        auto code = B::template stochastic<L>(magnitude, random);
        code = L::select(code < L::all(B::beyond - 1), code, L::all(B::beyond - 1));
        code = L::select(magnitude < L::all(B::first_beyond), code, L::all(B::beyond));
        return Codes::template with_specials<L>(code, x);
    }
};

struct Float8E4M3FN : Float8Nearest<E4M3> {
    static constexpr const char* name = "float8_e4m3fn";
    static constexpr DlpackType dlpack{dlpack_float8_e4m3fn, 8};
};
struct Float8E5M2 : Float8Nearest<E5M2> {
    static constexpr const char* name = "float8_e5m2";
    static constexpr DlpackType dlpack{dlpack_float8_e5m2, 8};
};
struct Float8E4M3FNStochastic : Float8Stochastic<E4M3> {
    static constexpr const char* name = "float8_e4m3fn_sr";
    static constexpr DlpackType dlpack{dlpack_float8_e4m3fn, 8};
};
struct Float8E5M2Stochastic : Float8Stochastic<E5M2> {
    static constexpr const char* name = "float8_e5m2_sr";
    static constexpr DlpackType dlpack{dlpack_float8_e5m2, 8};
};

// States in E4M3. A block of 256 has a float32 scale, its largest magnitude divided by 448, the largest number of the
// format, but no less than the smallest normal float. Elements are divided by the scale and rounded to nearest, ties
// to even. These are the codes and scales of torchao's 8-bit floating-point states; torchao bounds the largest
// magnitude by 1e-12 from below instead of the scale.
struct Float8E4M3 {
    static constexpr const char* name = "fp8_e4m3";
    static constexpr DlpackType dlpack{dlpack_uint, 8};
    static constexpr std::size_t block = 256;
    static constexpr float least_scale = 0.0f;
    using Element = std::uint8_t;
    using Compute = float;
    static constexpr std::uint32_t not_finite = E4M3::nan;

    ADAPTK_HD static float scale_of(float largest) {
        const float scale = largest / 448.0f;
        return scale < 0x1p-126f ? 0x1p-126f : scale;
    }
    ADAPTK_HD static float factor(float scale) { return scale; }

    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::F decode(typename L::U code, typename L::F scale) {
        const auto x = E4M3::finite_value<L>(code) * scale;
        if constexpr (Finite) return x;
        return E4M3::value<L>(code, x);
    }
    // Nothing rounds to more than the largest number: a quotient is at most 448 plus an ulp or two.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::U encode(typename L::F x, typename L::F scale, typename L::U) {
        const auto u = L::bits(x / scale);
        const auto magnitude = u & 0x7fffffffu;
        const auto code = E4M3::nearest<L>(magnitude) | ((u >> 24) & 0x80u);
        if constexpr (Finite) return code;
        return L::select(magnitude < L::all(0x7f800000u), code, L::all(not_finite));
    }
};

ADAPTK_NAMESPACE_END
