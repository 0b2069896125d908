// One byte for each element, in the dynamic map of bitsandbytes and torchao (Dettmers, arXiv 1511.04561 and
// 2110.02861), with the largest magnitude of each block of 256 as its float32 scale.
//
// The map has seven decades. Decade i ends at 10^(i-6) and has n numbers: the midpoints of n equal parts of [0.1, 1],
// times 10^(i-6). n doubles from decade to decade. The map also has 0 and 1. With a sign, n is 2^i, and each number
// except 1 has its negative; without a sign, n is 2^(i+1). Codes number the map in ascending order.
//
// So the exponent of m (without a sign, of m + 1) as a float gives the decade of the m-th number above 0, and the
// significand gives its position there. No table of the map is needed.
#pragma once

#include "adaptk/format.hpp"

#include <array>
#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

template <bool Signed> struct Dynamic8 {
    static constexpr DlpackType dlpack{dlpack_uint, 8};
    static constexpr std::size_t block = 256;
    static constexpr float least_scale = 0.0f;
    using Element = std::uint8_t;
    using Compute = float;

    // Numbers are counted so that those of a decade begin at its n. The number before all decades is 0, the one after
    // them 1.
    static constexpr std::int32_t first = Signed ? 1 : 2, zero = first - 1, one = first * 128;
    // The code of 0.
    static constexpr std::int32_t middle = Signed ? 127 : 0;

    static constexpr double tenths[8] = {1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7};
    template <int Decade> static constexpr double count = first << Decade;
    // From here on, numbers are nearer to this decade than to the one before it.
    template <int Decade> static constexpr float begin = float(tenths[7 - Decade] * (1 + 0.9 / count<Decade - 1>));
    static constexpr float begin_of_all = float(0.5e-6 * (0.1 + 0.45 / first));
    static constexpr float begin_of_one = float(1 - 0.225 / count<6>);
    // y = x * 10^(6-i) is in [0.1, 1], and 1 + (y - 0.1) / 0.9 = x * slope + 8/9 in [1, 2].
    template <int Decade> static constexpr float slope = float(1 / tenths[6 - Decade] / 0.9);
    static constexpr float intercept = float(8.0 / 9.0);
    // The shift from the bits of that significand to a number.
    template <int Decade> static constexpr std::uint32_t shift = 23u - (Signed ? 0u : 1u) - Decade;

    template <class L> using F = typename L::F;
    template <class L> using U = typename L::U;
    template <class L> using I = typename L::I;

    // 10^(i-6), indexed by the exponent of a number in decade i, modulo 8.
    static constexpr std::array<float, 8> powers = [] {
        std::array<float, 8> p{};
        for (int i = 0; i < 7; ++i) p[(127 + (Signed ? 0 : 1) + i) % 8] = float(tenths[6 - i]);
        return p;
    }();
    static constexpr std::array<float, 8> slopes = {slope<0>, slope<1>, slope<2>, slope<3>,
                                                    slope<4>, slope<5>, slope<6>};
    static constexpr std::array<float, 6> begins = {begin<1>, begin<2>, begin<3>, begin<4>, begin<5>, begin<6>};
    // Indexed by a quotient's exponent, modulo 32. A quotient is in `decade` if it is below `next`, the start of the
    // next decade; no two decades begin within an octave. Quotients below 2^-31 become 0, whatever is found here.
    struct Octaves {
        std::array<float, 32> next;
        std::array<std::uint32_t, 32> decade;
    };
    static constexpr Octaves octaves = [] {
        Octaves o{};
        std::uint32_t decade = 0;
        float from = 0x1p-30f;
        for (std::uint32_t exponent = 127 - 30; exponent <= 127; ++exponent, from *= 2.0f) {
            o.decade[exponent % 32] = decade;
            const bool within = decade < 6 && begins[decade] < 2.0f * from;
            o.next[exponent % 32] = within ? begins[decade++] : 2.0f;
        }
        return o;
    }();

    // 10^(i-6) for a number in decade i. The exponent of the number as a float gives i.
    template <class L> ADAPTK_HD static F<L> power(I<L> number, [[maybe_unused]] U<L> as_float) {
        if constexpr (has_lookup<L>) {
            return L::lookup(powers, as_float >> 23);
        } else {
            auto p = L::all(to_bits(1e-6f));
            p = L::select(number < I<L>(L::all(std::uint32_t(first << 1))), p, L::all(to_bits(1e-5f)));
            p = L::select(number < I<L>(L::all(std::uint32_t(first << 2))), p, L::all(to_bits(1e-4f)));
            p = L::select(number < I<L>(L::all(std::uint32_t(first << 3))), p, L::all(to_bits(1e-3f)));
            p = L::select(number < I<L>(L::all(std::uint32_t(first << 4))), p, L::all(to_bits(1e-2f)));
            p = L::select(number < I<L>(L::all(std::uint32_t(first << 5))), p, L::all(to_bits(1e-1f)));
            p = L::select(number < I<L>(L::all(std::uint32_t(first << 6))), p, L::all(to_bits(1.0f)));
            return L::real(p);
        }
    }

    // (0.1 + 0.9 * (j + 0.5) / n) * 10^(i-6), where 1 + j / n is the significand, and n follows from the exponent.
    template <class L, bool = false> ADAPTK_HD static F<L> decode(U<L> code, F<L> scale) {
        const auto from_zero = I<L>(code) - middle;
        const auto sign = U<L>(from_zero) & 0x80000000u;
        const auto number = L::larger(from_zero, -from_zero) + zero;
        const auto u = L::bits(L::converted(number));
        const auto half = L::real((253u << 23) - (u & 0x7f800000u));
        const auto place = (L::real((u & 0x007fffffu) | 0x3f800000u) - 1.0f) + half;
        auto x = L::bits((0.1f + 0.9f * place) * power<L>(number, u));
        x = L::select(number == I<L>(L::all(std::uint32_t(one))), L::all(to_bits(1.0f)), x);
        x = L::select(number == I<L>(L::all(std::uint32_t(zero))), L::all(0u), x);
        return L::real(x | sign) * scale;
    }

    // A block of zeros has the scale 0; its elements are divided by 1 instead.
    ADAPTK_HD static float factor(float scale) { return scale == 0.0f ? 1.0f : scale; }

    // Selects this decade if x is in it or above it.
    template <class L, int Decade> ADAPTK_HD static void advance(F<L> x, U<L>& slopes_of_x, U<L>& shifts) {
        const auto before = x < L::all(begin<Decade>);
        slopes_of_x = L::select(before, slopes_of_x, L::all(to_bits(slope<Decade>)));
        shifts = L::select(before, shifts, L::all(shift<Decade>));
    }
    template <class L> ADAPTK_HD static void find_decade(F<L> a, U<L>& slopes_of_a, U<L>& shifts) {
        if constexpr (has_lookup<L>) {
            U<L> decade;
            if constexpr (has_long_lookup<L>) {
                const auto exponent = L::bits(a) >> 23;
                decade = L::lookup(octaves.decade, exponent) - U<L>(a >= L::lookup(octaves.next, exponent));
            } else {
                decade = U<L>(L::all(0u));
                for (const float from : begins) decade -= U<L>(a >= L::all(from));
            }
            slopes_of_a = L::bits(L::lookup(slopes, decade));
            shifts = shift<0> - decade;
        } else {
            slopes_of_a = L::all(to_bits(slope<0>));
            shifts = L::all(shift<0>);
            advance<L, 1>(a, slopes_of_a, shifts);
            advance<L, 2>(a, slopes_of_a, shifts);
            advance<L, 3>(a, slopes_of_a, shifts);
            advance<L, 4>(a, slopes_of_a, shifts);
            advance<L, 5>(a, slopes_of_a, shifts);
            advance<L, 6>(a, slopes_of_a, shifts);
        }
    }

    // The nearest number, ties away from zero, up to the rounding of the quotient and of the two operations after it.
    template <class L, bool Finite = false> ADAPTK_HD static U<L> encode(F<L> x, F<L> scale, U<L>) {
        const auto y = x / scale;
        const auto a = Signed ? L::real(L::bits(y) & 0x7fffffffu) : y;
        U<L> slopes_of_a, shifts;
        find_decade<L>(a, slopes_of_a, shifts);
        // Between a decade's last number and the next decade, the last number is nearest.
        const auto t = a * L::real(slopes_of_a) + intercept;
        const auto within = L::select(t < L::all(2.0f), L::bits(t), L::all(0x3fffffffu));
        auto number = ((within & 0x007fffffu) | 0x00800000u) >> shifts;
        number = L::select(y < L::all(begin_of_one), number, L::all(std::uint32_t(one)));
        number = L::select(a < L::all(begin_of_all), L::all(std::uint32_t(zero)), number);
        const auto from_zero = number - std::uint32_t(zero);
        auto code = from_zero + std::uint32_t(middle);
        if constexpr (Signed) code = L::select(y < L::all(0.0f), std::uint32_t(middle) - from_zero, code);
        if constexpr (Finite) return code;
        return L::select((L::bits(x) & 0x7fffffffu) < L::all(0x7f800000u), code, L::all(std::uint32_t(middle)));
    }
};

struct DynamicSigned8 : Dynamic8<true> {
    static constexpr const char* name = "dynamic_signed";
};

struct DynamicUnsigned8 : Dynamic8<false> {
    static constexpr const char* name = "dynamic_unsigned";
};

ADAPTK_NAMESPACE_END
