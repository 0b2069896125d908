// Formats as data: what everything but the kernels knows of them.
#pragma once

#include "export.hpp"

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string_view>

namespace adaptk::detail {

// The place of a format in the list (formats.hpp). Those that dtypes have names for in every library are named here.
enum class Format : std::uint8_t { float32, float64, bfloat16, float16 };
inline constexpr std::size_t max_formats = 32;

// How params of 16 and 8 bits are stored, by the end of their format's name: "bfloat16_sr".
enum class ParamFormat : std::uint8_t { plain, sr, remainder16, remainder8, kahan };
inline constexpr const char* param_format_names[] = {"", "sr", "remainder16", "remainder8", "kahan"};
inline constexpr std::size_t param_format_count = std::size(param_format_names);

struct FormatInfo {
    Format id;
    const char* name;
    std::uint8_t dlpack_code, dlpack_bits;
    Format compute;       // float32 or float64: what rules compute in beside params of this format
    std::uint16_t bytes;  // of an element; of a row's, if several are packed into each
    std::uint16_t block;  // elements that share one of a second buffer, the side; 1: each has its own, or none
    std::uint8_t side_code, side_bits;  // the side's dtype in DLPack: scales in float32, or lost bits; 0 bits: no side
    std::uint8_t packed_bits;           // 2 to the power of it elements are packed into each that is stored
    std::uint16_t alignment;            // of the buffer, for kernels that read it in place
    bool stochastic;                    // rounding needs random bits
    bool split;                         // the side has an element for each: params alone are stored so
    bool of_states;                     // states may be stored so
    Format dtype;  // the format that a buffer with these elements has if nothing but its dtype is known
    Format as_param[param_format_count];  // that of params of this dtype; itself if there is no such format
};

ADAPTK_INTERNAL_API std::span<const FormatInfo> formats();
ADAPTK_INTERNAL_API const FormatInfo* find_format(std::string_view name);
// The list itself, for what is asked for in loops.
ADAPTK_INTERNAL_API extern const FormatInfo* const format_table;

inline const FormatInfo& info_of(Format f) { return format_table[std::size_t(f)]; }
inline const char* name_of(Format f) { return info_of(f).name; }

inline std::size_t size_of(Format f) { return info_of(f).bytes; }

// What n elements are stored as: so many of a row's, if several are packed into each, else as many.
inline std::int64_t stored_count(Format f, std::int64_t n) {
    const int bits = info_of(f).packed_bits;
    return (n + (std::int64_t{1} << bits) - 1) >> bits;
}
inline bool is_packed(Format f) { return info_of(f).packed_bits > 0; }

// Bytes of n elements. Elements that are packed are counted from a whole one.
inline std::size_t storage_bytes(Format f, std::int64_t n) { return std::size_t(stored_count(f, n)) * size_of(f); }

inline bool has_side(Format f) { return info_of(f).side_bits > 0; }
// Of n elements.
inline std::size_t side_count(Format f, std::int64_t n) {
    const std::size_t block = info_of(f).block;
    return (std::size_t(n) + block - 1) / block;
}
inline std::size_t side_bytes(Format f, std::int64_t n) { return side_count(f, n) * (info_of(f).side_bits / 8u); }

// Whether a dtype of its own says that a buffer has this format, and nothing has to lie beside it.
inline bool is_plain(Format f) { return !has_side(f) && !info_of(f).stochastic; }

// What a step computes in, by the format of its param.
inline Format compute_format(Format param) { return info_of(param).compute; }

}  // namespace adaptk::detail
