// Formats as data: what everything but the kernels knows of them.
#pragma once

#include "export.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace adaptk::detail {

// The place of a format in the list (formats.hpp). Those that dtypes have names for in every library are named here.
enum class Format : std::uint8_t { float32, float64, bfloat16, float16 };

struct FormatInfo {
    Format id;
    const char* name;
    std::uint8_t dlpack_code, dlpack_bits;
    std::uint8_t precision;     // bits of the significand: what "of lower precision" compares
    Format compute;             // float32 or float64: what rules compute in beside params of this format
    std::uint16_t block;        // elements that are stored together
    std::uint16_t block_bytes;  // of the buffer
    std::uint16_t side_bytes;   // of each block's part of a second buffer; 0: there is none
    std::uint16_t alignment;    // of the buffer, for kernels that read it in place
};

ADAPTK_INTERNAL_API std::span<const FormatInfo> formats();
// The list itself, for what is asked for in loops.
ADAPTK_INTERNAL_API extern const FormatInfo* const format_table;

inline const FormatInfo& info_of(Format f) { return format_table[std::size_t(f)]; }
inline const char* name_of(Format f) { return info_of(f).name; }
inline int precision(Format f) { return info_of(f).precision; }

// Bytes of a buffer's first n elements, which are whole blocks or all of it.
inline std::size_t storage_bytes(Format f, std::int64_t n) {
    const FormatInfo& i = info_of(f);
    if (i.block == 1) return std::size_t(n) * i.block_bytes;
    return (std::size_t(n) + i.block - 1) / i.block * i.block_bytes;
}

// Of the formats whose elements are stored one by one, as those of every params and gradient are.
inline std::size_t size_of(Format f) { return info_of(f).block_bytes; }

// What a step computes in, by the format of its param.
inline Format compute_format(Format param) { return info_of(param).compute; }

}  // namespace adaptk::detail
