// 8-bit floats: as storage of params and gradients, in the dtypes that libraries have for them, and of states.
#pragma once

#include "adaptk/format.hpp"

#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

// Sign, 4 bits of exponent and 3 of significand, no infinity, and NaN where all bits but the sign's are set. Exponents
// are biased by 7, those of float by 127; subnormal numbers are multiples of 2^-9. The largest number is 448.
struct E4M3 {
    static constexpr std::uint32_t not_finite = 0x7f;  // and with the sign
    static constexpr std::uint32_t bias = (127u - 7u) << 23;

    // Of a code that is not NaN's.
    template <class L> ADAPTK_HD static typename L::F finite_value(typename L::U code) {
        const auto magnitude = code & 0x7fu;
        const auto subnormal = L::bits(L::converted(typename L::I(magnitude)) * 0x1p-9f);
        const auto body = L::select(magnitude < L::all(8u), subnormal, (magnitude << 20) + bias);
        return L::real(body | ((code & 0x80u) << 24));
    }
    template <class L> ADAPTK_HD static typename L::F value(typename L::U code, typename L::F finite) {
        return L::real(L::select((code & 0x7fu) == L::all(not_finite), L::all(0x7fc00000u), L::bits(finite)));
    }
    // To nearest, ties to even, without the sign; above the largest number it goes on with codes that do not exist.
    // 2^14 + x, whose last place is 2^-9, has a subnormal number's code in its last bits.
    template <class L> ADAPTK_HD static typename L::U nearest(typename L::U magnitude) {
        const auto normal = (magnitude - bias + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
        const auto subnormal = L::bits(L::real(magnitude) + 0x1p14f) - 0x46800000u;
        return L::select(magnitude < L::all((127u - 6u) << 23), subnormal, normal);
    }
};

// What nearest rounding would take beyond 448 is NaN, as in ml_dtypes' and JAX's conversions; PyTorch's of today end at
// 448.
struct Float8E4M3FN {
    static constexpr const char* name = "float8_e4m3fn";
    static constexpr DlpackType dlpack{dlpack_float8_e4m3fn, 8};
    static constexpr bool of_states = false;
    using Element = std::uint8_t;
    using Compute = float;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) {
        return E4M3::value<L>(code, E4M3::finite_value<L>(code));
    }
    template <class L> ADAPTK_HD static typename L::U encode(typename L::F x) {
        const auto u = L::bits(x);
        const auto code = E4M3::nearest<L>(u & 0x7fffffffu);
        return L::select(code < L::all(E4M3::not_finite), code, L::all(E4M3::not_finite)) | ((u >> 24) & 0x80u);
    }
    ADAPTK_HD static float decode(Element x) { return decode<OneLane>(x); }
    ADAPTK_HD static Element encode(float x) { return Element(encode<OneLane>(x)); }
};

// Rounded as float16_sr is: the chance of rounding away from zero is the lost part of the last place, to a multiple of
// 2^-16. NaN is no matter of chance: it is what nearest rounding takes to NaN.
struct Float8E4M3FNStochastic {
    static constexpr const char* name = "float8_e4m3fn_sr";
    static constexpr DlpackType dlpack{dlpack_float8_e4m3fn, 8};
    static constexpr bool of_states = false;
    static constexpr int random_bits = 16;
    using Element = std::uint8_t;
    using Compute = float;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) {
        return Float8E4M3FN::decode<L>(code);
    }
    // 2^-6 + x, of x below it, has 20 bits below the last place of subnormal numbers, as normal numbers have.
    template <class L, bool = false> ADAPTK_HD static typename L::U encode(typename L::F x, typename L::U random) {
        const auto u = L::bits(x);
        const auto magnitude = u & 0x7fffffffu;
        const auto subnormal = L::bits(L::real(magnitude) + 0x1p-6f) - (121u << 23);
        const auto fixed = L::select(magnitude < L::all(121u << 23), subnormal, magnitude - E4M3::bias);
        auto code = (fixed + (random << 4)) >> 20;
        code = L::select(code < L::all(0x7eu), code, L::all(0x7eu));
        code = L::select(magnitude <= L::all(0x43e80000u), code, L::all(E4M3::not_finite));  // 464
        return code | ((u >> 24) & 0x80u);
    }
};

// The upper half of a float16: 5 bits of exponent and 2 of significand, with infinities.
struct Float8E5M2 {
    static constexpr const char* name = "float8_e5m2";
    static constexpr DlpackType dlpack{dlpack_float8_e5m2, 8};
    static constexpr bool of_states = false;
    static constexpr std::uint32_t bias = (127u - 15u) << 23;
    static constexpr std::uint32_t infinity = 0x7c, nan = 0x7e;
    using Element = std::uint8_t;
    using Compute = float;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) {
        const auto magnitude = code & 0x7fu;
        const auto scaled = L::bits(L::real(magnitude << 21) * 0x1p112f);
        const auto special = L::select(magnitude == L::all(infinity), L::all(0x7f800000u), L::all(0x7fc00000u));
        return L::real(L::select(magnitude < L::all(infinity), scaled, special) | ((code & 0x80u) << 24));
    }
    // 2^7 + x, whose last place is 2^-16, has a subnormal number's code in its last bits.
    template <class L> ADAPTK_HD static typename L::U encode(typename L::F x) {
        const auto u = L::bits(x);
        const auto magnitude = u & 0x7fffffffu;
        const auto normal = (magnitude - bias + 0xfffffu + ((magnitude >> 21) & 1u)) >> 21;
        const auto subnormal = L::bits(L::real(magnitude) + 0x1p7f) - 0x43000000u;
        auto code = L::select(magnitude < L::all(113u << 23), subnormal, normal);
        code = L::select(code < L::all(infinity), code, L::all(infinity));
        code = L::select(magnitude <= L::all(0x7f800000u), code, L::all(nan));
        return code | ((u >> 24) & 0x80u);
    }
    ADAPTK_HD static float decode(Element x) { return decode<OneLane>(x); }
    ADAPTK_HD static Element encode(float x) { return Element(encode<OneLane>(x)); }
};

struct Float8E5M2Stochastic {
    static constexpr const char* name = "float8_e5m2_sr";
    static constexpr DlpackType dlpack{dlpack_float8_e5m2, 8};
    static constexpr bool of_states = false;
    static constexpr int random_bits = 16;
    using Element = std::uint8_t;
    using Compute = float;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) { return Float8E5M2::decode<L>(code); }
    // 2^-14 + x, of x below it, has 21 bits below the last place of subnormal numbers.
    template <class L, bool = false> ADAPTK_HD static typename L::U encode(typename L::F x, typename L::U random) {
        using Nearest = Float8E5M2;
        const auto u = L::bits(x);
        const auto magnitude = u & 0x7fffffffu;
        const auto subnormal = L::bits(L::real(magnitude) + 0x1p-14f) - (113u << 23);
        const auto fixed = L::select(magnitude < L::all(113u << 23), subnormal, magnitude - Nearest::bias);
        auto code = (fixed + (random << 5)) >> 21;
        code = L::select(code < L::all(Nearest::infinity - 1), code, L::all(Nearest::infinity - 1));
        code = L::select(magnitude < L::all(0x47700000u), code, L::all(Nearest::infinity));  // 61440
        code = L::select(magnitude <= L::all(0x7f800000u), code, L::all(Nearest::nan));
        return code | ((u >> 24) & 0x80u);
    }
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
    static constexpr std::uint32_t not_finite = E4M3::not_finite;

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
    // Nothing rounds to more than the largest number: a quotient is at most 448 and an ulp or two.
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
