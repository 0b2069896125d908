// What a storage format is: how the elements of a buffer are stored between steps. Rules compute in float or double;
// a buffer in any other format is decoded tile by tile before the rule runs, and encoded after it.
//
// A format is a struct with
//   name              "bfloat16"
//   dlpack            the dtype that a buffer of this format has in DLPack
//   precision         bits of the significand
//   Element           what one element is stored as
//   Compute           float or double: what rules compute in beside params of this format
//   decode(Element)   exact, to float or double
//   encode(Compute)   rounded to nearest, ties to even
//
// Formats that store several elements together have, in the place of Element, decode and encode,
//   block             elements of a block, a divisor or a multiple of the tile of 256; the last block may be partial
//   block_bytes       of the buffer
//   side_bytes        of the block in a second buffer, for what the block's elements share; 0: no such buffer
//   decode(data, side, first, out, n), encode(in, data, side, first, n)
// for elements `first` ... first + n - 1 of the tensor, where `first` is a multiple of `block`.
#pragma once

#include "adaptk/config.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

struct DlpackType {
    std::uint8_t code, bits;
};
inline constexpr std::uint8_t dlpack_float = 2;
inline constexpr std::uint8_t dlpack_bfloat = 4;

template <class F>
concept ElementFormat = requires(typename F::Element x, typename F::Compute y) {
    F::decode(x);
    { F::encode(y) } -> std::same_as<typename F::Element>;
};

template <class F> constexpr std::size_t block_of() {
    if constexpr (ElementFormat<F>) {
        return 1;
    } else {
        return F::block;
    }
}
template <class F> constexpr std::size_t block_bytes_of() {
    if constexpr (ElementFormat<F>) {
        return sizeof(typename F::Element);
    } else {
        return F::block_bytes;
    }
}
template <class F> constexpr std::size_t side_bytes_of() {
    if constexpr (ElementFormat<F>) {
        return 0;
    } else {
        return F::side_bytes;
    }
}

template <class... F> struct FormatList {
    static constexpr std::size_t size = sizeof...(F);
};

ADAPTK_NAMESPACE_END
