// What a storage format is: how the elements of a buffer are stored between steps. Rules compute in float or double;
// a buffer in any other format is decoded tile by tile before the rule runs, and encoded after it.
//
// A format is a struct with
//   name          "bfloat16"
//   dlpack        the dtype that a buffer of this format has in DLPack
//   Element       what one element is stored as
//   Compute       float or double: what rules compute in beside params of this format
//   decode, encode
// and of_states = false if it is for params and gradients alone. There are four kinds:
//
// 1. Elements one by one: decode(Element) is exact, to float or double; encode(Compute) rounds to nearest, ties to
//    even. The same functions may be written for lanes (below) too: decode<L>(codes), encode<L>(x).
// 2. The same, rounded stochastically, only for lanes: decode<L>(codes) and encode<L>(x, random), where the lowest
//    `random_bits` bits of `random` are random and the others zero. encode<L, true> is for finite elements, with the
//    same results.
// 3. Blocks of `block` consecutive elements, from the tensor's first element on, with one scale for each block in a
//    second buffer of float32. `block` divides the tile of 256; the last block may be shorter. The scale is the largest
//    magnitude of the finite elements, or scale_of() of it. decode<L>(codes, scale), encode<L>(x, factor, random),
//    where factor(scale) is computed once per block. A non-finite element does not affect others: it is stored as NaN,
//    or as 0 by a format with no code for NaN. If a format has one code for NaN, not_finite, or two that differ in the
//    sign, its decode<L, true> is for blocks without NaN. encode<L, true> is for finite elements. Both have the same
//    results as without `true`. Blocks whose largest magnitude is below least_scale are multiplied by scale_lift, a
//    power of two, before they are encoded, so that reciprocals stay finite. Formats of less than a byte have `packed`
//    elements in each Element, the first of them in its upper bits; the buffer is then a 1-D array of Elements,
//    whatever the shape of the param, and the last one is padded with codes of 0.
// 4. Params that are split in two: each element has a second one of type `Side`, in a second buffer whose dtype is
//    side_dlpack. decode<L>(codes, second codes) and encode<L>(x), which returns a SplitCode<L>.
//
// Codes are the bits of an Element as an unsigned integer. Signed elements are sign-extended when they are loaded, and
// truncated when they are stored.
#pragma once

#include "adaptk/config.hpp"

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

struct DlpackType {
    std::uint8_t code, bits;
};
inline constexpr std::uint8_t dlpack_int = 0;
inline constexpr std::uint8_t dlpack_uint = 1;
inline constexpr std::uint8_t dlpack_float = 2;
inline constexpr std::uint8_t dlpack_bfloat = 4;
inline constexpr std::uint8_t dlpack_float8_e4m3fn = 10;
inline constexpr std::uint8_t dlpack_float8_e5m2 = 12;

template <class F>
concept ElementFormat = requires(typename F::Element x, typename F::Compute y) {
    F::decode(x);
    { F::encode(y) } -> std::same_as<typename F::Element>;
};

union FloatBits {
    float f;
    std::uint32_t u;
};

ADAPTK_HD float from_bits(std::uint32_t u) {
    FloatBits b;
    b.u = u;
    return b.f;
}

ADAPTK_HD std::uint32_t to_bits(float f) {
    FloatBits b;
    b.f = f;
    return b.u;
}

// The lanes for which formulas are written: one element here, or a vector of elements in each kernel object.
struct OneLane {
    using F = float;
    using U = std::uint32_t;
    using I = std::int32_t;
    ADAPTK_HD static F all(float x) { return x; }
    ADAPTK_HD static U all(std::uint32_t x) { return x; }
    ADAPTK_HD static U bits(F x) { return to_bits(x); }
    ADAPTK_HD static F real(U u) { return from_bits(u); }
    ADAPTK_HD static F converted(I i) { return float(i); }
    ADAPTK_HD static U select(bool which, U a, U b) { return which ? a : b; }
    ADAPTK_HD static I larger(I a, I b) { return a < b ? b : a; }
};

// Vectors may also have lookups: F lookup(array of 8 floats, U), with the index modulo 8, and the same for 16 and 32.
template <class L>
inline constexpr bool has_lookup = requires(std::array<float, 8> t, typename L::U i) { L::lookup(t, i); };
template <class L>
inline constexpr bool has_long_lookup = requires(std::array<float, 32> t, typename L::U i) { L::lookup(t, i); };

template <class F>
concept LaneFormat = requires(float x) {
    F::template decode<OneLane>(std::uint32_t{});
    F::template encode<OneLane>(x);
};

template <class F>
concept StochasticFormat = requires(float x) {
    F::template decode<OneLane>(std::uint32_t{});
    F::template encode<OneLane>(x, std::uint32_t{});
    F::random_bits;
};

template <class F>
concept BlockFormat = requires(float x) {
    F::template decode<OneLane>(std::uint32_t{}, x);
    F::template encode<OneLane>(x, x, std::uint32_t{});
    F::factor(x);
    F::least_scale;
    F::block;
};

template <class L> struct SplitCode {
    typename L::U code, side;
};

template <class F>
concept SplitFormat = requires(float x) {
    F::template decode<OneLane>(std::uint32_t{}, std::uint32_t{});
    { F::template encode<OneLane>(x) } -> std::same_as<SplitCode<OneLane>>;
    F::side_dlpack;
};

inline constexpr float scale_lift = 0x1p100f;

// The stored scale of a block, from the largest magnitude of its finite elements.
template <class F> ADAPTK_HD float scale_of(float largest) {
    if constexpr (requires { F::scale_of(largest); }) {
        return F::scale_of(largest);
    } else {
        return largest;
    }
}

template <class F> constexpr std::size_t block_of() {
    if constexpr (BlockFormat<F>) {
        return F::block;
    } else {
        return 1;
    }
}
// The number of elements in each stored Element.
template <class F> constexpr std::size_t packed_of() {
    if constexpr (requires { F::packed; }) {
        return F::packed;
    } else {
        return 1;
    }
}
// The number of random bits that encode() takes; 0: none.
template <class F> constexpr int random_bits_of() {
    if constexpr (requires { F::random_bits; }) {
        return F::random_bits;
    } else {
        return 0;
    }
}

// Whether states may have this format.
template <class F> constexpr bool is_of_states() {
    if constexpr (requires { F::of_states; }) {
        return F::of_states;
    } else {
        return !SplitFormat<F>;
    }
}

template <class... F> struct FormatList {
    static constexpr std::size_t size = sizeof...(F);
};

ADAPTK_NAMESPACE_END
