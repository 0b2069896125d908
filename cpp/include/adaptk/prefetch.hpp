// Prefetches of memory that will be used soon.
#pragma once

#include "adaptk/config.hpp"

#include <cstddef>
#include <cstdint>

#if defined(_MSC_VER) && !defined(ADAPTK_GNU) && defined(_M_X64)
#include <xmmintrin.h>
#endif

ADAPTK_NAMESPACE_BEGIN

inline constexpr std::size_t cache_line = 64;

enum class CacheLevel { first, second };

// Prefetches `bytes` bytes at the address p + ahead. It is computed as an integer, because it may lie beyond the array:
// a prefetch may go there, a pointer may not. Does nothing if the compiler has no such builtin.
template <CacheLevel Level>
ADAPTK_HD void prefetch([[maybe_unused]] const void* p, [[maybe_unused]] std::size_t ahead,
                        [[maybe_unused]] std::size_t bytes) {
#if defined(ADAPTK_GNU)
    constexpr int locality = Level == CacheLevel::first ? 3 : 2;
    const auto at = reinterpret_cast<std::uintptr_t>(p) + ahead;
    for (std::size_t i = 0; i < bytes; i += cache_line)
        __builtin_prefetch(reinterpret_cast<const void*>(at + i), 0, locality);
#elif defined(_MSC_VER) && defined(_M_X64)
    constexpr auto hint = Level == CacheLevel::first ? _MM_HINT_T0 : _MM_HINT_T1;
    const auto at = reinterpret_cast<std::uintptr_t>(p) + ahead;
    for (std::size_t i = 0; i < bytes; i += cache_line) _mm_prefetch(reinterpret_cast<const char*>(at + i), hint);
#endif
}

ADAPTK_NAMESPACE_END
