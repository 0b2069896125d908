// Params in bfloat16, with a second buffer that has one element for each param element and holds the lost bits. The
// param is the value rounded to bfloat16, which a model can compute with. Param and second buffer together are the
// value.
//
// Remainders: the value is a float32, or its 24 upper bits, and its bits are split in two. The lower part is a signed
// integer. If it is negative, the upper part is rounded up, so that (upper << 16) + lower gives the bits again.
// TransformerEngine's FusedAdam stores params in the same way (store_param_remainders). Finite values that are nearer
// to 2^128 than to the largest bfloat16 have an upper part that reads as infinity. The lower part of a NaN is 0.
//
// Kahan: the value is the sum of the param and a compensation in bfloat16, which holds what rounding the param has
// lost. For finite values beyond the largest bfloat16, the param is the largest bfloat16, and the compensation is
// rounded towards zero so that the sum is finite.
#pragma once

#include "adaptk/format.hpp"
#include "adaptk/formats/half.hpp"

#include <cstdint>
#include <type_traits>

ADAPTK_NAMESPACE_BEGIN

template <int Bits> struct BFloat16Remainder {
    static constexpr DlpackType dlpack{dlpack_bfloat, 16};
    static constexpr DlpackType side_dlpack{dlpack_int, Bits};
    using Element = std::uint16_t;
    using Side = std::conditional_t<Bits == 16, std::int16_t, std::int8_t>;
    using Compute = float;
    static constexpr int lost = 16 - Bits;

    // No value is encoded as zero with a negative remainder. If there is one, the param was set to zero from outside,
    // and the remainder counts as 0.
    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code, typename L::U side) {
        const auto upper = code << 16;
        const auto positive = typename L::U(L::larger(typename L::I(side), typename L::I(L::all(0u))));
        return L::real(upper + (L::select((upper << 1) == L::all(0u), positive, side) << lost));
    }
    template <class L> ADAPTK_HD static SplitCode<L> encode(typename L::F x) {
        auto u = L::bits(x);
        // To nearest, ties to even. Bits below the last kept place are not cleared: the shift drops them.
        if constexpr (lost > 0) u = u + ((1u << (lost - 1)) - 1) + ((u >> lost) & 1u);
        u = L::select(x != x, (L::bits(x) & 0xffff0000u) | 0x400000u, u);
        return {(u + 0x8000u) >> 16, u >> lost};
    }
};

struct BFloat16Remainder16 : BFloat16Remainder<16> {
    static constexpr const char* name = "bfloat16_remainder16";
};

struct BFloat16Remainder8 : BFloat16Remainder<8> {
    static constexpr const char* name = "bfloat16_remainder8";
};

struct BFloat16Kahan {
    static constexpr const char* name = "bfloat16_kahan";
    static constexpr DlpackType dlpack{dlpack_bfloat, 16};
    static constexpr DlpackType side_dlpack{dlpack_bfloat, 16};
    using Element = std::uint16_t;
    using Side = std::uint16_t;
    using Compute = float;

    template <class L> ADAPTK_HD static typename L::F decode(typename L::U code, typename L::U side) {
        return L::real(code << 16) + L::real(side << 16);
    }
    // The difference is exact. If it is zero it gets the sign of x, so that the sum of two zeros has that sign.
    template <class L> ADAPTK_HD static SplitCode<L> encode(typename L::F x) {
        const auto u = L::bits(x);
        const auto magnitude = u & 0x7fffffffu;
        const auto beyond = (magnitude >> 15) == L::all(0x7f7f8000u >> 15);
        const auto code = L::select(beyond, u >> 16, BFloat16::encode<L>(x));
        const auto difference = x - L::real(code << 16);
        const auto exact = (L::bits(difference) << 1) == L::all(0u);
        const auto rounded = L::select(beyond, L::bits(difference) >> 16, BFloat16::encode<L>(difference));
        const auto side = L::select(exact, (u >> 16) & 0x8000u, rounded);
        return {code, L::select(magnitude < L::all(0x7f800000u), side, L::all(0u))};
    }
};

ADAPTK_NAMESPACE_END
