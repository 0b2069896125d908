// One byte an element, float8_e4m3fn: sign, 4 bits of exponent and 3 of significand, no infinity, and NaN where all
// bits but the sign's are set. A block of 256 has a float32 scale, its largest magnitude divided by 448, the largest
// number of the format, but no less than the smallest normal float. Elements are divided by the scale and rounded to
// nearest, ties to even. These are the codes and scales of torchao's 8-bit floating-point states; torchao bounds the
// largest magnitude by 1e-12 from below instead of the scale.
#pragma once

#include "adaptk/format.hpp"

#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

struct Float8E4M3 {
    static constexpr const char* name = "fp8_e4m3";
    static constexpr DlpackType dlpack{dlpack_uint, 8};
    static constexpr std::size_t block = 256;
    static constexpr float least_scale = 0.0f;
    using Element = std::uint8_t;
    using Compute = float;
    static constexpr std::uint32_t not_finite = 0x7f;  // and with the sign
    // Exponents are biased by 7, those of float by 127.
    static constexpr std::uint32_t bias = (127u - 7u) << 23;

    ADAPTK_HD static float scale_of(float largest) {
        const float scale = largest / 448.0f;
        return scale < 0x1p-126f ? 0x1p-126f : scale;
    }
    ADAPTK_HD static float factor(float scale) { return scale; }

    // Subnormal numbers are multiples of 2^-9.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::F decode(typename L::U code, typename L::F scale) {
        const auto magnitude = code & 0x7fu;
        const auto subnormal = L::bits(L::converted(typename L::I(magnitude)) * 0x1p-9f);
        const auto body = L::select(magnitude < L::all(8u), subnormal, (magnitude << 20) + bias);
        const auto x = L::real(body | ((code & 0x80u) << 24)) * scale;
        if constexpr (Finite) return x;
        return L::real(L::select(magnitude == L::all(not_finite), L::all(0x7fc00000u), L::bits(x)));
    }
    // 2^14 + x, whose last place is 2^-9, has a subnormal number's code in its last bits. Nothing rounds to more than
    // the largest number: a quotient is at most 448 and an ulp or two.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::U encode(typename L::F x, typename L::F scale, typename L::U) {
        const auto u = L::bits(x / scale);
        const auto magnitude = u & 0x7fffffffu;
        const auto normal = (magnitude - bias + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
        const auto subnormal = L::bits(L::real(magnitude) + 0x1p14f) - 0x46800000u;
        const auto code = L::select(magnitude < L::all((127u - 6u) << 23), subnormal, normal) | ((u >> 24) & 0x80u);
        if constexpr (Finite) return code;
        return L::select(magnitude < L::all(0x7f800000u), code, L::all(not_finite));
    }
};

ADAPTK_NAMESPACE_END
