// Formats as data, for everything except the kernels.
#pragma once

#include "export.hpp"

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string_view>

namespace adaptk::detail {

// The index of a format in the list (formats.hpp). Only formats with a dtype in every library are named here.
enum class Format : std::uint8_t { float32, float64, bfloat16, float16 };
inline constexpr std::size_t max_formats = 32;

// How params of 16 and 8 bits are stored: the end of the format's name, as in "bfloat16_sr".
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
// The list itself, for use in loops.
ADAPTK_INTERNAL_API extern const FormatInfo* const format_table;

inline const FormatInfo& info_of(Format f) { return format_table[std::size_t(f)]; }
inline const char* name_of(Format f) { return info_of(f).name; }

inline std::size_t size_of(Format f) { return info_of(f).bytes; }

// The number of stored elements for n elements: fewer if several are packed into each.
inline std::int64_t stored_count(Format f, std::int64_t n) {
    const int bits = info_of(f).packed_bits;
    return (n + (std::int64_t{1} << bits) - 1) >> bits;
}
inline bool is_packed(Format f) { return info_of(f).packed_bits > 0; }

// Bytes of n elements. Packed elements begin at the start of a stored one.
inline std::size_t storage_bytes(Format f, std::int64_t n) { return std::size_t(stored_count(f, n)) * size_of(f); }

inline bool has_side(Format f) { return info_of(f).side_bits > 0; }
// The elements of the second buffer for n elements.
inline std::size_t side_count(Format f, std::int64_t n) {
    const std::size_t block = info_of(f).block;
    return (std::size_t(n) + block - 1) / block;
}
inline std::size_t side_bytes(Format f, std::int64_t n) { return side_count(f, n) * (info_of(f).side_bits / 8u); }

// Whether the format follows from the dtype alone and has no second buffer.
inline bool is_plain(Format f) { return !has_side(f) && !info_of(f).stochastic; }

// The compute type of a step, by the format of its param.
inline Format compute_format(Format param) { return info_of(param).compute; }

}  // namespace adaptk::detail
