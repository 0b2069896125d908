// Four bits for each element, two elements in a byte, the first in the high half. The float32 scale of each block of
// 128 is its largest magnitude. Codes and maps are the same as for torchao's 4-bit states, which follow Li and others
// (arXiv 2309.01507) without the normalisation by rows and columns.
//
// With a sign, codes number the dynamic map of 16 numbers (dynamic.hpp) with three decades: 0, seven magnitudes of
// either sign, and 1. Without a sign, they are the multiples of 1/16 from 1/16 to 1. There is no zero, so steps never
// divide by a second moment of zero.
#pragma once

#include "adaptk/format.hpp"

#include <array>
#include <bit>
#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

struct FourBit {
    static constexpr DlpackType dlpack{dlpack_uint, 8};
    static constexpr std::size_t block = 128, packed = 2;
    static constexpr float least_scale = 0.0f;
    using Element = std::uint8_t;
    using Compute = float;

    // A block of zeros has the scale 0; its elements are divided by 1 instead.
    ADAPTK_HD static float factor(float scale) { return scale == 0.0f ? 1.0f : scale; }
};

struct FourBitSigned : FourBit {
    static constexpr const char* name = "4bit_signed";
    // The code of 0, and the map from 0 on.
    static constexpr std::uint32_t middle = 7;
    static constexpr float map[9] = {0.0f, 0.0055f, 0.0325f, 0.0775f, 0.2125f, 0.4375f, 0.6625f, 0.8875f, 1.0f};
    template <int Number> static constexpr float magnitude = map[Number];
    // The smallest float that is at least as near to the next number of the map as to this one.
    template <int Number>
    static constexpr float end = [] {
        const double middle_of_both = (double(map[Number]) + double(map[Number + 1])) / 2;
        const auto nearest = float(middle_of_both);
        return nearest < middle_of_both ? std::bit_cast<float>(std::bit_cast<std::uint32_t>(nearest) + 1) : nearest;
    }();

    // The map, indexed by code.
    static constexpr std::array<float, 16> numbers = [] {
        std::array<float, 16> all{};
        for (std::uint32_t i = 0; i < 16; ++i) all[i] = i < middle ? -map[middle - i] : map[i - middle];
        return all;
    }();

    template <class L, bool = false> ADAPTK_HD static typename L::F decode(typename L::U code, typename L::F scale) {
        if constexpr (requires { L::lookup(numbers, code); }) {
            return L::lookup(numbers, code) * scale;
        } else {
            const auto from_zero = typename L::I(code) - std::int32_t(middle);
            const auto sign = typename L::U(from_zero) & 0x80000000u;
            const auto number = typename L::U(L::larger(from_zero, -from_zero));
            auto x = L::all(0u);
            x = advance<L, 1>(number, x);
            x = advance<L, 2>(number, x);
            x = advance<L, 3>(number, x);
            x = advance<L, 4>(number, x);
            x = advance<L, 5>(number, x);
            x = advance<L, 6>(number, x);
            x = advance<L, 7>(number, x);
            x = advance<L, 8>(number, x);
            return L::real(x | sign) * scale;
        }
    }
    // The nearest number, ties away from zero.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::U encode(typename L::F x, typename L::F scale, typename L::U) {
        const auto y = x / scale;
        const auto a = L::real(L::bits(y) & 0x7fffffffu);
        auto number = L::all(0u);
        number = pass<L, 0>(a, number);
        number = pass<L, 1>(a, number);
        number = pass<L, 2>(a, number);
        number = pass<L, 3>(a, number);
        number = pass<L, 4>(a, number);
        number = pass<L, 5>(a, number);
        number = pass<L, 6>(a, number);
        auto code = L::select(y < L::all(0.0f), middle - number, middle + number);
        code = L::select(y < L::all(end<7>), code, L::all(15u));
        if constexpr (Finite) return code;
        return L::select((L::bits(x) & 0x7fffffffu) < L::all(0x7f800000u), code, L::all(middle));
    }

  private:
    template <class L, int Number> ADAPTK_HD static typename L::U advance(typename L::U number, typename L::U x) {
        return L::select(number < L::all(std::uint32_t(Number)), x, L::all(to_bits(magnitude<Number>)));
    }
    template <class L, int Number> ADAPTK_HD static typename L::U pass(typename L::F a, typename L::U number) {
        return L::select(a < L::all(end<Number>), number, L::all(std::uint32_t(Number + 1)));
    }
};

struct FourBitUnsigned : FourBit {
    static constexpr const char* name = "4bit_unsigned";

    template <class L, bool = false> ADAPTK_HD static typename L::F decode(typename L::U code, typename L::F scale) {
        return (L::converted(typename L::I(code + 1u)) * 0.0625f) * scale;
    }
    // To nearest, ties to even multiples. Adding 1.5 * 2^23 leaves the nearest integer in the last bits; values that
    // are negative or nearest to zero get the smallest number. Quotients are at most 1, that of the largest element.
    template <class L, bool Finite = false>
    ADAPTK_HD static typename L::U encode(typename L::F x, typename L::F scale, typename L::U) {
        const auto nearest = L::bits((x / scale) * 16.0f + 12582912.0f) - (0x4b400000u + 1u);
        const auto code = typename L::U(L::larger(typename L::I(nearest), typename L::I(L::all(0u))));
        if constexpr (Finite) return code;
        return L::select((L::bits(x) & 0x7fffffffu) < L::all(0x7f800000u), code, L::all(0u));
    }
};

ADAPTK_NAMESPACE_END
