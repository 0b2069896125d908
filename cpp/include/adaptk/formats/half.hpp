// The 16-bit formats, whose values rules compute with in float32. Conversions work on integers, so that they give the
// same bits everywhere; the hardware's conversion instructions give these bits too.
#pragma once

#include "adaptk/format.hpp"

#include <cstdint>

#if defined(__CUDA_ARCH__)
#include <cuda_fp16.h>
#endif

ADAPTK_NAMESPACE_BEGIN

#if defined(__CUDA_ARCH__)
ADAPTK_HD float decode_float16(std::uint16_t h) { return __half2float(__ushort_as_half(h)); }
ADAPTK_HD std::uint16_t encode_float16(float f) { return __half_as_ushort(__float2half_rn(f)); }
#else
// The exponent fields of float16 and float32 line up after a shift by 13. Their biases differ by 112, so the result is
// multiplied by 2^112, which is right for subnormal numbers too.
ADAPTK_HD float decode_float16(std::uint16_t h) {
    const std::uint32_t body = std::uint32_t(h & 0x7fffu) << 13;
    const std::uint32_t scaled = to_bits(from_bits(body) * 0x1p112f);
    const std::uint32_t special = body | 0x7f800000u;
    return from_bits(((h & 0x7fffu) >= 0x7c00u ? special : scaled) | (std::uint32_t(h & 0x8000u) << 16));
}

ADAPTK_HD std::uint16_t encode_float16(float f) {
    const std::uint32_t u = to_bits(f);
    const std::uint32_t a = u & 0x7fffffffu;
    const std::uint32_t normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
    // Below 2^-14 the last place is 2^-24, which is also the last place of 0.5 + x.
    const std::uint32_t subnormal = to_bits(from_bits(a) + 0.5f) - 0x3f000000u;
    std::uint32_t r = a < 0x38800000u ? subnormal : normal;
    r = a >= 0x477ff000u ? 0x7c00u : r;
    r = a > 0x7f800000u ? 0x7e00u : r;
    return std::uint16_t(r | ((u >> 16) & 0x8000u));
}
#endif

struct BFloat16 {
    static constexpr const char* name = "bfloat16";
    static constexpr DlpackType dlpack{dlpack_bfloat, 16};
    using Element = std::uint16_t;
    using Compute = float;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) { return L::real(code << 16); }
    // Round to nearest, ties to even: add half of the last kept place, less one bit if that place is already even.
    template <class L> ADAPTK_HD static typename L::U encode(typename L::F x) {
        const auto u = L::bits(x);
        return L::select(x != x, u | 0x400000u, u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    }
    ADAPTK_HD static float decode(Element x) { return decode<OneLane>(x); }
    ADAPTK_HD static Element encode(float x) { return Element(encode<OneLane>(x)); }
};

// bfloat16 with stochastic rounding: the lost bits are the probability of rounding away from zero, so that the mean of
// the stored values is the computed value, and small changes add up.
struct BFloat16Stochastic {
    static constexpr const char* name = "bfloat16_sr";
    static constexpr DlpackType dlpack{dlpack_bfloat, 16};
    static constexpr int random_bits = 16;
    using Element = std::uint16_t;
    using Compute = float;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) { return L::real(code << 16); }
    // A carry out of the largest finite numbers rounds to infinity; NaN stays NaN, and infinity has no lost bits.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::U encode(typename L::F x, typename L::U random) {
        const auto u = L::bits(x);
        if constexpr (Finite) return (u + random) >> 16;
        const auto magnitude = u & 0x7fffffffu;
        const auto special = L::select(magnitude > L::all(0x7f800000u), u | 0x400000u, u);
        return L::select(magnitude < L::all(0x7f800000u), u + random, special) >> 16;
    }
};

struct Float16 {
    static constexpr const char* name = "float16";
    static constexpr DlpackType dlpack{dlpack_float, 16};
    using Element = std::uint16_t;
    using Compute = float;
    ADAPTK_HD static float decode(Element x) { return decode_float16(x); }
    ADAPTK_HD static Element encode(float x) { return encode_float16(x); }
};

// float16, rounded as bfloat16_sr is, with 13 of the random bits: the probability of rounding away from zero is the
// lost part of the last place, for subnormal numbers to a multiple of 2^-13. Infinity does not depend on chance: values
// that round to nearest to a finite number are stored as finite, and those that round to nearest to infinity as
// infinity.
struct Float16Stochastic {
    static constexpr const char* name = "float16_sr";
    static constexpr DlpackType dlpack{dlpack_float, 16};
    static constexpr int random_bits = 16;
    using Element = std::uint16_t;
    using Compute = float;
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code) {
        const auto body = (code & 0x7fffu) << 13;
        const auto scaled = L::bits(L::real(body) * 0x1p112f);
        const auto magnitude = L::select(body < L::all(0x7c00u << 13), scaled, body | 0x7f800000u);
        return L::real(magnitude | ((code & 0x8000u) << 16));
    }
    // For x below 2^-14, 2^-14 + x has 13 bits below the last place of float16's subnormal numbers.
    template <class L, bool = false> ADAPTK_HD static typename L::U encode(typename L::F x, typename L::U random) {
        const auto u = L::bits(x);
        const auto magnitude = u & 0x7fffffffu;
        const auto subnormal = L::bits(L::real(magnitude) + 0x1p-14f) - (113u << 23);
        const auto fixed = L::select(magnitude < L::all(113u << 23), subnormal, magnitude - (112u << 23));
        auto code = (fixed + (random >> 3)) >> 13;
        code = L::select(code < L::all(0x7bffu), code, L::all(0x7bffu));
        code = L::select(magnitude < L::all(0x477ff000u), code, L::all(0x7c00u));
        code = L::select(x != x, L::all(0x7e00u), code);
        return code | ((u >> 16) & 0x8000u);
    }
};

ADAPTK_NAMESPACE_END
