// One byte for each element, with a float32 scale for each block of 128.
//
// First moments and other signed states have a linear code: rint(127 x / scale). Second moments and other states that
// are never negative span many orders of magnitude within a block, and a linear code would keep only two of them. Their
// code is logarithmic: the leading bits of x / scale itself, of its exponent and its significand, 8 codes per octave
// over 31 octaves. It has no zero: the smallest code is 2^-31.75 of the scale.
//
// A second moment that is rounded to nearest stops moving, since a step changes it by less than half the distance of
// two codes (1 - beta2 = 0.001 against 1/16). So it is rounded stochastically unless the format is uint8_nearest.
#pragma once

#include "adaptk/format.hpp"
#include "adaptk/formats/half.hpp"

#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

inline constexpr std::uint32_t quiet_nan = 0x7fc00000u;

struct Linear8 {
    static constexpr const char* name = "int8";
    static constexpr DlpackType dlpack{dlpack_int, 8};
    static constexpr std::size_t block = 128;
    static constexpr float least_scale = 0x1p-100f;
    using Element = std::int8_t;
    using Compute = float;
    static constexpr std::uint32_t not_finite = std::uint32_t(-128);

    // 127 times the float nearest to 1 / 127 rounds to 1: a block's largest element is kept exactly.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::F decode(typename L::U code, typename L::F scale) {
        const auto x = (L::converted(typename L::I(code)) * (1.0f / 127.0f)) * scale;
        if constexpr (Finite) return x;
        return L::real(L::select(code == L::all(not_finite), L::all(quiet_nan), L::bits(x)));
    }
    ADAPTK_HD static float factor_of_positive(float scale) { return 127.0f / scale; }
    ADAPTK_HD static float factor(float scale) { return scale == 0.0f ? 0.0f : factor_of_positive(scale); }
    // Adding 1.5 * 2^23 leaves the nearest integer in the last bits.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::U encode(typename L::F x, typename L::F factor, typename L::U) {
        const auto y = x * factor;
        if constexpr (Finite) return L::bits(y + 12582912.0f);
        return L::select((L::bits(y) & 0x7fffffffu) < L::all(0x7f800000u), L::bits(y + 12582912.0f),
                         L::all(not_finite));
    }
};
static_assert(127.0f * (1.0f / 127.0f) == 1.0f);

template <bool Stochastic> struct Logarithmic8 {
    static constexpr DlpackType dlpack{dlpack_uint, 8};
    static constexpr std::size_t block = 128;
    static constexpr float least_scale = 0x1p-100f;
    using Element = std::uint8_t;
    using Compute = float;
    static constexpr std::uint32_t largest = 254, not_finite = 255;
    // The bits of the value of the smallest code; the bits of 1 are 1016 << 20.
    static constexpr std::uint32_t smallest_bits = (1016u - largest) << 20;

    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::F decode(typename L::U code, typename L::F scale) {
        const auto x = L::real((code << 20) + smallest_bits) * scale;
        if constexpr (Finite) return x;
        return L::real(L::select(code == L::all(not_finite), L::all(quiet_nan), L::bits(x)));
    }
    ADAPTK_HD static float factor_of_positive(float scale) { return 1.0f / scale; }
    ADAPTK_HD static float factor(float scale) { return scale == 0.0f ? 0.0f : factor_of_positive(scale); }
    // encode<L, true> with the summand for rounding as two arguments: `added`, which includes - smallest_bits, and
    // `more`.
    template <class L>
    ADAPTK_HD static typename L::U encode_finite(typename L::F x, typename L::F factor, typename L::U added,
                                                 typename L::U more) {
        const auto u = L::bits(x * factor);
        const auto at_least = typename L::U(L::larger(typename L::I(u), typename L::I(L::all(smallest_bits))));
        return (at_least + added + more) >> 20;
    }
    // encode<L, true> four bits further up: the code is the highest byte, so that instructions for bytes can take it.
    // `added` is summand_above, with 8 random bits in its third byte, which is zero, if the rounding is stochastic.
    static constexpr std::uint32_t summand_above = (Stochastic ? 0x8000u : 0x800000u) - (smallest_bits << 4);
    static_assert(!Stochastic || ((summand_above >> 16) & 0xffu) == 0);
    template <class L>
    ADAPTK_HD static typename L::U encode_above(typename L::F x, typename L::F factor, typename L::U added) {
        const auto u = L::bits(x * factor);
        const auto at_least = typename L::U(L::larger(typename L::I(u), typename L::I(L::all(smallest_bits))));
        return (at_least << 4) + added;
    }
    // Rounds by adding half of the last kept place, or 8 random bits and half of their last place. Negative numbers, as
    // integers, are below the smallest. Finite numbers are at most 1, since a float times its own reciprocal is within
    // 2^-24 of 1, and neither rounding takes 1 to the next code.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::U encode(typename L::F x, typename L::F factor,
                                          [[maybe_unused]] typename L::U random) {
        const auto u = L::bits(x * factor);
        const auto at_least = typename L::U(L::larger(typename L::I(u), typename L::I(L::all(smallest_bits))));
        // One constant, to which the random bits are added.
        constexpr std::uint32_t last = (Stochastic ? 0x800u : 0x80000u) - smallest_bits;
        typename L::U code = at_least + last;
        if constexpr (Stochastic) code += random << 12;
        code = code >> 20;
        if constexpr (Finite) return code;
        const auto within = L::select(code < L::all(largest), code, L::all(largest));
        return L::select((u & 0x7fffffffu) < L::all(0x7f800000u), within, L::all(not_finite));
    }
};

struct LogarithmicStochastic8 : Logarithmic8<true> {
    static constexpr const char* name = "uint8";
    static constexpr int random_bits = 8;
};

struct LogarithmicNearest8 : Logarithmic8<false> {
    static constexpr const char* name = "uint8_nearest";
};

ADAPTK_NAMESPACE_END
