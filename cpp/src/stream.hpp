// Non-temporal stores, which write memory without reading it first.
#pragma once

#include "adaptk/config.hpp"

#include <cstddef>
#include <cstring>

#if defined(__SSE2__) || (defined(_MSC_VER) && defined(_M_X64))
#include <emmintrin.h>
#endif

namespace adaptk::detail {

#if defined(__SSE2__) || (defined(_MSC_VER) && defined(_M_X64))

inline constexpr bool can_stream = true;
inline constexpr std::size_t stream_alignment = sizeof(__m128i);

// Copies bytes past the cache; both addresses are aligned to stream_alignment. An ordinary store reads the line that it
// writes into first. Other threads may read the copy once end_streams has been called.
inline void stream(std::byte* to, const std::byte* from, std::size_t bytes) {
    const std::size_t whole = bytes / stream_alignment * stream_alignment;
    for (std::size_t i = 0; i < whole; i += stream_alignment)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
    std::memcpy(to + whole, from + whole, bytes - whole);
}
inline void end_streams() { _mm_sfence(); }

#else

inline constexpr bool can_stream = false;
inline constexpr std::size_t stream_alignment = 1;
inline void stream(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
inline void end_streams() {}

#endif

}  // namespace adaptk::detail
