// The loops that decode and encode buffers: a part of each kernel object (kernels.cpp), and of nothing else.
#pragma once

#include "compiler.hpp"
#include "kernel_table.hpp"

#include "adaptk/rounding.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__) || (defined(_MSC_VER) && defined(_M_X64))
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
// MSVC has no macro of its own for these instructions; every processor with AVX2 has them.
#if defined(__F16C__) || (defined(_MSC_VER) && defined(__AVX2__))
#define ADAPTK_F16C 1
#endif

namespace adaptk::detail {
namespace {

using std::size_t;

// Formats whose elements are stored one by one.
template <class F, class T> ADAPTK_HD void decode_elements(const typename F::Element* from, T* to, size_t n) {
    const auto* ADAPTK_RESTRICT x = from;
    auto* ADAPTK_RESTRICT y = to;
    for (size_t i = 0; i < n; ++i) y[i] = T(F::decode(x[i]));
}

template <class F> ADAPTK_HD void encode_elements(const typename F::Compute* from, typename F::Element* to, size_t n) {
    const auto* ADAPTK_RESTRICT x = from;
    auto* ADAPTK_RESTRICT y = to;
    for (size_t i = 0; i < n; ++i) y[i] = F::encode(x[i]);
}

#if defined(ADAPTK_GNU)
#if defined(__AVX512F__)
constexpr size_t lane_bytes = 64;
#elif defined(__AVX__)
constexpr size_t lane_bytes = 32;
#else
constexpr size_t lane_bytes = 16;
#endif

// Any number of searches for a byte, with one answer: whether one of them found it.
class ByteSearch {
  public:
    // n: a multiple of 64.
    ADAPTK_HD void look(const void* p, std::uint8_t byte, size_t n, std::uint8_t mask = 0xff) {
#if defined(__AVX512BW__)
        const __m512i wanted = _mm512_set1_epi8(char(byte)), bits = _mm512_set1_epi8(char(mask));
        for (size_t i = 0; i < n; i += 64) {
            const __m512i x = _mm512_loadu_si512(static_cast<const std::byte*>(p) + i);
            others_ = _mm512_mask_cmpneq_epi8_mask(others_, mask == 0xff ? x : _mm512_and_si512(x, bits), wanted);
        }
#else
        for (size_t i = 0; i < n; i += lane_bytes) {
            V x;
            std::memcpy(&x, static_cast<const std::byte*>(p) + i, sizeof x);
            found_ |= V((x & mask) == (V{} + byte));
        }
#endif
    }
    ADAPTK_HD bool found() const {
#if defined(__AVX512BW__)
        return ~others_ != 0;
#elif defined(__AVX2__) && !defined(__AVX512F__)
        return _mm256_movemask_epi8(__m256i(found_)) != 0;
#else
        std::uint64_t parts[lane_bytes / 8];
        std::memcpy(parts, &found_, sizeof parts);
        std::uint64_t any = 0;
        for (const std::uint64_t part : parts) any |= part;
        return any != 0;
#endif
    }

  private:
#if defined(__AVX512BW__)
    __mmask64 others_ = ~__mmask64{};
#else
    typedef std::uint8_t V __attribute__((vector_size(lane_bytes)));
    V found_{};
#endif
};

// A vector of elements, with the interface of OneLane.
struct Lanes {
    static constexpr size_t count = lane_bytes / 4;
    typedef float F __attribute__((vector_size(lane_bytes)));
    typedef std::uint32_t U __attribute__((vector_size(lane_bytes)));
    typedef std::int32_t I __attribute__((vector_size(lane_bytes)));
    template <class E> struct Packed {
        typedef E V __attribute__((vector_size(count * sizeof(E))));
    };

    // Not x + F{}: this sum would be computed, since -0 + 0 is 0.
    static ADAPTK_HD F all(float x) { return x - F{}; }
    static ADAPTK_HD U all(std::uint32_t x) { return U{} + x; }
    static ADAPTK_HD U bits(F x) { return U(x); }
    static ADAPTK_HD F real(U u) { return F(u); }
    static ADAPTK_HD F converted(I i) { return __builtin_convertvector(i, F); }
    static ADAPTK_HD U select(I which, U a, U b) { return which ? a : b; }
    // Intrinsics, because GCC 12 compiles a maximum with a constant to a comparison and a blend.
    static ADAPTK_HD I larger(I a, I b) {
#if defined(__AVX512F__)
        return I(_mm512_maskz_max_epi32(0xffff, __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
        return I(_mm256_max_epi32(__m256i(a), __m256i(b)));
#else
        return a < b ? b : a;
#endif
    }
    static ADAPTK_HD U larger(U a, U b) {
#if defined(__AVX512F__)
        return U(_mm512_maskz_max_epu32(0xffff, __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
        return U(_mm256_max_epu32(__m256i(a), __m256i(b)));
#else
        return a < b ? b : a;
#endif
    }
#if defined(__AVX2__)
    // Returns the largest lane of a and the largest lane of b in its first two lanes. Both take as many instructions as
    // one.
    static ADAPTK_HD __m128i largest_of_both(U a, U b) {
#if defined(__AVX512F__)
        const __m512i x = _mm512_maskz_unpacklo_epi32(0xffff, __m512i(a), __m512i(b));
        const __m512i y = _mm512_maskz_unpackhi_epi32(0xffff, __m512i(a), __m512i(b));
        const __m512i sixteen = _mm512_maskz_max_epu32(0xffff, x, y);
        const __m256i eight = _mm256_max_epu32(_mm512_maskz_extracti64x4_epi64(0xf, sixteen, 0),
                                               _mm512_maskz_extracti64x4_epi64(0xf, sixteen, 1));
#else
        const __m256i x = _mm256_unpacklo_epi32(__m256i(a), __m256i(b));
        const __m256i y = _mm256_unpackhi_epi32(__m256i(a), __m256i(b));
        const __m256i eight = _mm256_max_epu32(x, y);
#endif
        const __m128i four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        return _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    }
#endif
    static ADAPTK_HD std::uint32_t largest(U x) {
#if defined(__AVX2__)
        return std::uint32_t(_mm_cvtsi128_si32(largest_of_both(x, x)));
#else
        std::uint32_t m[count];
        std::memcpy(m, &x, sizeof m);
        for (size_t w = count / 2; w > 0; w /= 2)
            for (size_t k = 0; k < w; ++k) m[k] = m[k] < m[k + w] ? m[k + w] : m[k];
        return m[0];
#endif
    }
    // Whether one of n bytes equals `byte` in the bits of the mask. n is a multiple of 64.
    static ADAPTK_HD bool any_byte(const void* p, std::uint8_t byte, size_t n, std::uint8_t mask = 0xff) {
        ByteSearch search;
        search.look(p, byte, n, mask);
        return search.found();
    }
    static ADAPTK_HD F load(const float* p) {
        F x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static ADAPTK_HD void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
    // Codes of one or two bytes. In some of these cases, GCC moves them one by one unless intrinsics are used.
    template <class E> static ADAPTK_HD U load(const E* p) {
        typename Packed<E>::V x;
        std::memcpy(&x, p, sizeof x);
#if defined(__AVX512F__)
        // Masked intrinsics, because GCC 12 warns about its own header in the others.
        if constexpr (sizeof(E) == 1)
            return U(std::is_signed_v<E> ? _mm512_maskz_cvtepi8_epi32(0xffff, __m128i(x))
                                         : _mm512_maskz_cvtepu8_epi32(0xffff, __m128i(x)));
        if constexpr (sizeof(E) == 2)
            return U(std::is_signed_v<E> ? _mm512_maskz_cvtepi16_epi32(0xffff, __m256i(x))
                                         : _mm512_maskz_cvtepu16_epi32(0xffff, __m256i(x)));
#elif defined(__AVX2__)
        if constexpr (sizeof(E) == 1) {
            const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
            return U(std::is_signed_v<E> ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
        }
        if constexpr (sizeof(E) == 2)
            return U(std::is_signed_v<E> ? _mm256_cvtepi16_epi32(__m128i(x)) : _mm256_cvtepu16_epi32(__m128i(x)));
#endif
        if constexpr (std::is_signed_v<E>) {
            return U(__builtin_convertvector(x, I));
        } else {
            return __builtin_convertvector(x, U);
        }
    }
    template <class E> static ADAPTK_HD void store(E* p, U x) {
#if defined(__AVX512F__)
        if constexpr (sizeof(E) == 1) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, __m512i(x)));
            return;
        }
        if constexpr (sizeof(E) == 2) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, __m512i(x)));
            return;
        }
#elif defined(__AVX2__)
        // The lowest bytes of the elements are moved to the beginning of each half.
        if constexpr (sizeof(E) == 1) {
            const __m256i first = _mm256_set1_epi32(0x0c080400);
            const __m256i bytes = _mm256_shuffle_epi8(__m256i(x), first);
            const __m128i all = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(p), all);
            return;
        }
        if constexpr (sizeof(E) == 2) {
            const __m256i first = _mm256_set1_epi64x(0x0d0c090805040100);
            const __m256i words = _mm256_shuffle_epi8(__m256i(x), first);
            const __m128i all = _mm_unpacklo_epi64(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p), all);
            return;
        }
#elif defined(__SSE2__)
        if constexpr (sizeof(E) == 1) {
            x &= 0xffu;
            const __m128i halves = _mm_packs_epi32(__m128i(x), __m128i(x));
            const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(halves, halves));
            std::memcpy(p, &bytes, sizeof bytes);
            return;
        }
#endif
        const auto v = __builtin_convertvector(x, typename Packed<std::make_unsigned_t<E>>::V);
        std::memcpy(p, &v, sizeof v);
    }
#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define ADAPTK_PACKS 1
    // Packs two vectors of signed integers into one of integers that are half as wide, with saturation: elements to
    // words of 16 bits, or words to bytes. Each group of 16 bytes has its part of the first vector and then of the
    // second.
#if defined(__AVX512BW__)
    using Register = __m512i;
    static ADAPTK_HD U signed_words(U a, U b) { return U(_mm512_packs_epi32(Register(a), Register(b))); }
    static ADAPTK_HD U unsigned_words(U a, U b) { return U(_mm512_packus_epi32(Register(a), Register(b))); }
    static ADAPTK_HD U signed_bytes(U a, U b) { return U(_mm512_packs_epi16(Register(a), Register(b))); }
    static ADAPTK_HD U unsigned_bytes(U a, U b) { return U(_mm512_packus_epi16(Register(a), Register(b))); }
    // Unpacks unsigned bytes to words.
    static ADAPTK_HD U first_words(U x) { return U(_mm512_maskz_unpacklo_epi8(~__mmask64{}, Register(x), Register{})); }
    static ADAPTK_HD U last_words(U x) { return U(_mm512_maskz_unpackhi_epi8(~__mmask64{}, Register(x), Register{})); }
    static ADAPTK_HD U rounded(F x) { return U(_mm512_maskz_cvtps_epi32(0xffff, __m512(x))); }
#else
    using Register = __m256i;
    static ADAPTK_HD U signed_words(U a, U b) { return U(_mm256_packs_epi32(Register(a), Register(b))); }
    static ADAPTK_HD U unsigned_words(U a, U b) { return U(_mm256_packus_epi32(Register(a), Register(b))); }
    static ADAPTK_HD U signed_bytes(U a, U b) { return U(_mm256_packs_epi16(Register(a), Register(b))); }
    static ADAPTK_HD U unsigned_bytes(U a, U b) { return U(_mm256_packus_epi16(Register(a), Register(b))); }
    static ADAPTK_HD U first_words(U x) { return U(_mm256_unpacklo_epi8(Register(x), Register{})); }
    static ADAPTK_HD U last_words(U x) { return U(_mm256_unpackhi_epi8(Register(x), Register{})); }
    static ADAPTK_HD U rounded(F x) { return U(_mm256_cvtps_epi32(__m256(x))); }
#endif
    // Stores the bytes that four vectors were packed to, in the order of their elements.
    static ADAPTK_HD void store_mixed(void* p, U x) {
#if defined(__AVX512BW__)
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_storeu_si512(p, _mm512_maskz_permutexvar_epi32(0xffff, order, __m512i(x)));
#else
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(__m256i(x), order));
#endif
    }
#endif
    // Stores four vectors of codes. Bits above those of E are dropped.
    template <class E> static ADAPTK_HD void store_four(E* p, const U (&x)[4]) {
#if defined(ADAPTK_PACKS)
        if constexpr (sizeof(E) == 1) {
            store_mixed(p, unsigned_bytes(unsigned_words(x[0] & 0xffu, x[1] & 0xffu),
                                          unsigned_words(x[2] & 0xffu, x[3] & 0xffu)));
            return;
        }
#endif
        for (size_t k = 0; k < 4; ++k) store(p + k * count, x[k]);
    }
#if defined(__AVX512F__)
    static ADAPTK_HD F lookup(const std::array<float, 8>& table, U index) {
        const __m256 half = _mm256_loadu_ps(table.data());
        const __m512 both = _mm512_maskz_broadcast_f32x8(0xffff, half);
        return F(_mm512_maskz_permutexvar_ps(0xffff, __m512i(index), both));
    }
    static ADAPTK_HD F lookup(const std::array<float, 32>& table, U index) {
        return F(_mm512_maskz_permutex2var_ps(0xffff, _mm512_loadu_ps(table.data()), __m512i(index),
                                              _mm512_loadu_ps(table.data() + 16)));
    }
    static ADAPTK_HD U lookup(const std::array<std::uint32_t, 32>& table, U index) {
        return U(_mm512_maskz_permutex2var_epi32(0xffff, _mm512_loadu_si512(table.data()), __m512i(index),
                                                 _mm512_loadu_si512(table.data() + 16)));
    }
    static ADAPTK_HD F lookup(const std::array<float, 16>& table, U index) {
        return F(_mm512_maskz_permutexvar_ps(0xffff, __m512i(index), _mm512_loadu_ps(table.data())));
    }
#elif defined(__AVX2__)
    static ADAPTK_HD F lookup(const std::array<float, 8>& table, U index) {
        return F(_mm256_permutevar8x32_ps(_mm256_loadu_ps(table.data()), __m256i(index)));
    }
    static ADAPTK_HD F lookup(const std::array<float, 16>& table, U index) {
        const __m256 first = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.data()), __m256i(index));
        const __m256 last = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.data() + 8), __m256i(index));
        return F(_mm256_blendv_ps(first, last, _mm256_castsi256_ps(_mm256_slli_epi32(__m256i(index), 28))));
    }
#endif
    static ADAPTK_HD U iota() {
        U x{};
        for (size_t i = 0; i < count; ++i) x[i] = std::uint32_t(i);
        return x;
    }
};
#else
struct Lanes : OneLane {
    static constexpr size_t count = 1;
    static ADAPTK_HD F load(const float* p) { return *p; }
    static ADAPTK_HD void store(float* p, F x) { *p = x; }
    template <class E> static ADAPTK_HD U load(const E* p) { return U(I(*p)); }
    template <class E> static ADAPTK_HD void store(E* p, U x) { *p = E(x); }
    template <class E> static ADAPTK_HD void store_four(E* p, const U (&x)[4]) {
        for (size_t k = 0; k < 4; ++k) p[k] = E(x[k]);
    }
    static ADAPTK_HD std::uint32_t largest(U x) { return x; }
    static ADAPTK_HD bool any_byte(const void* p, std::uint8_t byte, size_t n, std::uint8_t mask = 0xff) {
        const auto* const x = static_cast<const std::uint8_t*>(p);
        bool any = false;
        for (size_t i = 0; i < n; ++i) any = any || (x[i] & mask) == byte;
        return any;
    }
    static ADAPTK_HD U iota() { return 0; }
};
#endif

#if defined(ADAPTK_PACKS)
// A vector of draws, each for several elements of Bits bits. Their order is such that unpacking gives each element its
// own bits: each group of 16 bytes has the draws of this group of the first vector of elements, then those of the
// second.
//
// It takes little more than half the time of draw() and has the same results. The first counter is a multiple of their
// number, so counters differ only in their lowest bits. The other bits are hashed once, and the first product is the
// sum of theirs and of one from a table.
template <int Bits> class MixedDraws {
    static constexpr std::size_t count = Lanes::count;

  public:
    static constexpr std::size_t elements = count * elements_per_draw<Bits>;

    static ADAPTK_HD Lanes::U draw(const Draws& d, std::uint32_t counter) {
        const std::uint32_t seeded = counter ^ d.before, mixed = seeded ^ (seeded >> 16);
        Lanes::U x;
        std::memcpy(&x, products[mixed % std::uint32_t(count)], sizeof x);
        x += (mixed - mixed % std::uint32_t(count)) * factor;
        x ^= x >> 15;
        x *= 0x846ca68bu;
        x ^= x >> 16;
        return x + d.after;
    }

  private:
    static constexpr std::uint32_t factor = 0x7feb352du;

    static constexpr std::uint32_t counter_at(std::size_t i) {
        constexpr std::size_t of_quarter = Bits / 8, of_vector = count * Bits / 32;
        const std::size_t quarter = i / 4, vector = i % 4 / of_quarter;
        return std::uint32_t(vector * of_vector + quarter * of_quarter + i % of_quarter);
    }
    struct Products {
        std::uint32_t row[count][count];
        const std::uint32_t* operator[](std::size_t i) const { return row[i]; }
    };
    static constexpr Products all_products() {
        Products p{};
        for (std::size_t bits = 0; bits < count; ++bits)
            for (std::size_t i = 0; i < count; ++i) p.row[bits][i] = (std::uint32_t(bits) ^ counter_at(i)) * factor;
        return p;
    }
    alignas(lane_bytes) static constexpr Products products = all_products();
};
#endif

// Conversions between two vectors of float32 and one vector of their upper halves: for bfloat16 they are faster than
// conversions with two vectors of codes. Random bits, 16 for each element, are a vector of MixedDraws<16>.
#if defined(ADAPTK_GNU) && defined(__AVX512BW__)
#define ADAPTK_BFLOAT16_PAIRS 1
constexpr size_t pair = 32;

// Each of these instructions uses one of the two ports for vectors of this width. A permutation of 16-bit integers
// would use both.
ADAPTK_HD void decode_pair(const std::uint16_t* x, float* y) {
    // The eighths are reordered so that interleaving the halves gives the order of the elements.
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), zero{};
    const __m512i mixed = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_loadu_si512(x));
    _mm512_storeu_si512(y, _mm512_maskz_unpacklo_epi16(~__mmask32{}, zero, mixed));
    _mm512_storeu_si512(y + 16, _mm512_maskz_unpackhi_epi16(~__mmask32{}, zero, mixed));
}

// A vector of 16-bit integers, widened to two vectors of elements.
struct SixteenBits {
    __m512i first, last;
};
ADAPTK_HD SixteenBits halves_of(Lanes::U random) {
    const __m512i x = __m512i(random), zero{};
    return {_mm512_maskz_unpacklo_epi16(~__mmask32{}, x, zero), _mm512_maskz_unpackhi_epi16(~__mmask32{}, x, zero)};
}

// n is a multiple of `pair`.
ADAPTK_HD bool any_nan(const float* x, size_t n) {
    __mmask16 numbers = 0xffff;
    for (size_t i = 0; i < n; i += pair)
        numbers = _mm512_mask_cmp_ps_mask(numbers, _mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i + 16), _CMP_ORD_Q);
    return numbers != 0xffff;
}

// Stores the upper halves of the elements of a and b.
ADAPTK_HD void store_upper(std::uint16_t* y, __m512i a, __m512i b) {
    const __m512i order = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24,
                                           22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i upper = _mm512_set4_epi32(0x0f0e, 0x0b0a, 0x0706, 0x0302);
    const __m512i mixed = _mm512_mask_shuffle_epi8(b, 0x3333333333333333, a, upper);
    _mm512_storeu_si512(y, _mm512_maskz_permutexvar_epi16(0xffffffff, order, mixed));
}

// x contains no NaN.
ADAPTK_HD void encode_pair(const float* x, std::uint16_t* y) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const __m512i half = _mm512_set1_epi32(0x7fff), odd = _mm512_set1_epi32(0x10000), one = _mm512_set1_epi32(1);
    const auto rounded = [&](__m512 v) {
        const __m512i u = _mm512_castps_si512(v);
        const __m512i t = _mm512_add_epi32(u, half);
        return _mm512_mask_add_epi32(t, _mm512_test_epi32_mask(u, odd), t, one);
    };
    store_upper(y, rounded(a), rounded(b));
}

// The same, with random bits added, 16 for each element.
ADAPTK_HD void encode_pair(const float* x, std::uint16_t* y, Lanes::U random) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const SixteenBits bits = halves_of(random);
    store_upper(y, _mm512_add_epi32(_mm512_castps_si512(a), bits.first),
                _mm512_add_epi32(_mm512_castps_si512(b), bits.last));
}
#elif defined(ADAPTK_GNU) && defined(__AVX2__)
#define ADAPTK_BFLOAT16_PAIRS 1
constexpr size_t pair = 16;

ADAPTK_HD void decode_pair(const std::uint16_t* x, float* y) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    // The quarters are reordered so that interleaving the halves gives the order of the elements.
    const __m256i mixed = _mm256_permute4x64_epi64(codes, 0xd8);
    const __m256i zero = _mm256_setzero_si256();
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_unpacklo_epi16(zero, mixed));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 8), _mm256_unpackhi_epi16(zero, mixed));
}

struct SixteenBits {
    __m256i first, last;
};
ADAPTK_HD SixteenBits halves_of(Lanes::U random) {
    const __m256i x = __m256i(random), zero{};
    return {_mm256_unpacklo_epi16(x, zero), _mm256_unpackhi_epi16(x, zero)};
}

ADAPTK_HD void store_upper(std::uint16_t* y, __m256i a, __m256i b) {
    const __m256i mixed = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_permute4x64_epi64(mixed, 0xd8));
}

ADAPTK_HD bool any_nan(const float* x, size_t n) {
    __m256 found = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += pair)
        found = _mm256_or_ps(found, _mm256_cmp_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(x + i + 8), _CMP_UNORD_Q));
    return _mm256_movemask_ps(found) != 0;
}

ADAPTK_HD void encode_pair(const float* x, std::uint16_t* y) {
    const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
    const __m256i half = _mm256_set1_epi32(0x7fff), one = _mm256_set1_epi32(1);
    const auto rounded = [&](__m256 v) {
        const __m256i u = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), one);
        return _mm256_add_epi32(u, _mm256_add_epi32(odd, half));
    };
    store_upper(y, rounded(a), rounded(b));
}

ADAPTK_HD void encode_pair(const float* x, std::uint16_t* y, Lanes::U random) {
    const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
    const SixteenBits bits = halves_of(random);
    store_upper(y, _mm256_add_epi32(_mm256_castps_si256(a), bits.first),
                _mm256_add_epi32(_mm256_castps_si256(b), bits.last));
}
#endif

// Decodes as many elements as fill whole vectors, and returns their number. float16 has hardware instructions.
template <class F> ADAPTK_HD size_t decode_vectors(const typename F::Element* x, float* y, size_t n) {
    size_t i = 0;
    if constexpr (LaneFormat<F>) {
#if defined(ADAPTK_BFLOAT16_PAIRS)
        if constexpr (std::is_same_v<F, BFloat16>)
            for (; i + pair <= n; i += pair) decode_pair(x + i, y + i);
#endif
        for (; i + Lanes::count <= n; i += Lanes::count)
            Lanes::store(y + i, F::template decode<Lanes>(Lanes::load(x + i)));
    } else if constexpr (std::is_same_v<F, Float16>) {
#if defined(__AVX512F__)
        for (; i + 16 <= n; i += 16)
            _mm512_storeu_ps(
                y + i, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i))));
#elif defined(ADAPTK_F16C)
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
#elif defined(__aarch64__)
        for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
#endif
    }
    return i;
}

template <class F> size_t encode_vectors(const float* x, typename F::Element* y, size_t n) {
    size_t i = 0;
    if constexpr (LaneFormat<F>) {
#if defined(ADAPTK_BFLOAT16_PAIRS)
        if constexpr (std::is_same_v<F, BFloat16>)
            for (; i + pair <= n; i += pair) {
                if (!any_nan(x + i, pair)) {
                    encode_pair(x + i, y + i);
                    continue;
                }
                for (size_t k = i; k < i + pair; k += Lanes::count)
                    Lanes::store(y + k, F::template encode<Lanes>(Lanes::load(x + k)));
            }
#endif
        for (; i + Lanes::count <= n; i += Lanes::count)
            Lanes::store(y + i, F::template encode<Lanes>(Lanes::load(x + i)));
    } else if constexpr (std::is_same_v<F, Float16>) {
#if defined(__AVX512F__)
        for (; i + 16 <= n; i += 16)
            _mm256_storeu_si256(
                reinterpret_cast<__m256i*>(y + i),
                _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(ADAPTK_F16C)
        for (; i + 8 <= n; i += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__aarch64__)
        for (; i + 4 <= n; i += 4) vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
#endif
    }
    return i;
}

// How many elements have their draws computed together: a multiple of every vector's elements, and a divisor of the
// tile's.
template <int Bits> inline constexpr size_t draw_group = 16 * elements_per_draw<Bits>;

// Calls encode(index in the group, random bits) for a group of elements, a vector at a time.
template <int Bits, class Encode>
ADAPTK_HD void for_draws(std::uint64_t buffer_key, std::int64_t first, const Encode& encode) {
    using Part = std::conditional_t<Bits == 8, std::uint8_t, std::uint16_t>;
    static_assert(Bits == 8 * sizeof(Part));
    // In memory, an element's random bits are at its index. This needs little-endian order.
    static_assert(std::endian::native == std::endian::little);
    const Draws d = draws_from<Bits>(buffer_key, first);
    const std::uint32_t counter = draw_counter<Bits>(first);
    alignas(64) Part parts[draw_group<Bits>];
    for (size_t i = 0; i < 16; i += Lanes::count) {
        const Lanes::U r = draw(d, Lanes::iota() + (counter + std::uint32_t(i)));
        std::memcpy(parts + i * elements_per_draw<Bits>, &r, sizeof r);
    }
    for (size_t i = 0; i < draw_group<Bits>; i += Lanes::count) encode(i, Lanes::load(parts + i));
}

inline constexpr std::uint32_t infinity_bits = 0x7f800000u;

// The largest magnitude of a block, as the bits of a float: the same in any order. At least infinity_bits if an element
// is not finite.
template <size_t Block> ADAPTK_HD std::uint32_t largest_magnitude(const float* x) {
    Lanes::I most = Lanes::I(Lanes::all(0u));
    for (size_t i = 0; i < Block; i += Lanes::count)
        most = Lanes::larger(most, Lanes::I(Lanes::bits(Lanes::load(x + i)) & 0x7fffffffu));
    return Lanes::largest(Lanes::U(most));
}

// Encodes N elements, in whole groups, with stochastic rounding.
template <class F, bool Finite, size_t N>
ADAPTK_HD void encode_groups(const float* x, typename F::Element* y, std::int64_t first, std::uint64_t buffer_key) {
    constexpr size_t group = draw_group<F::random_bits>;
    for (size_t g = 0; g < N; g += group)
        for_draws<F::random_bits>(buffer_key, first + std::int64_t(g), [=](size_t i, Lanes::U random) {
            Lanes::store(y + g + i, F::template encode<Lanes, Finite>(Lanes::load(x + g + i), random));
        });
}

#if defined(ADAPTK_GNU) && defined(ADAPTK_F16C)
constexpr int towards_zero = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
// Numbers of this magnitude and beyond are rounded to infinity.
constexpr std::uint32_t float16_overflow = 0x477ff000u;

// Encodes two vectors as float16_sr, with 16 random bits for each element. The bits that the conversion would round are
// set to 0 before it. Returns false, and what it has stored is invalid, if there are infinities, NaN or numbers that
// are rounded to infinity.
#if defined(__AVX512F__)
ADAPTK_HD bool encode_float16_pair(const float* x, std::uint16_t* y, Lanes::U random) {
    const SixteenBits bits = halves_of(Lanes::U(_mm512_maskz_srli_epi16(0xffffffff, __m512i(random), 3)));
    const __m512 least = _mm512_set1_ps(0x1p-14f);
    const __m512i most = _mm512_set1_epi32(int(float16_overflow) - 1), magnitudes = _mm512_set1_epi32(0x7fffffff);
    __mmask16 beyond = 0;
    const auto half = [&](const float* from, std::uint16_t* to, __m512i lost) {
        const __m512i u = _mm512_loadu_si512(from);
        const __m512i magnitude = _mm512_and_si512(u, magnitudes);
        const __mmask16 below = _mm512_cmplt_epi32_mask(magnitude, __m512i(least));
        beyond |= _mm512_cmpgt_epi32_mask(magnitude, most);
        const __m512 fixed = _mm512_mask_add_ps(__m512(magnitude), below, __m512(magnitude), least);
        const __m512i cut =
            _mm512_maskz_andnot_epi32(0xffff, _mm512_set1_epi32(0x1fff), _mm512_add_epi32(__m512i(fixed), lost));
        const __m512 rounded = _mm512_mask_sub_ps(__m512(cut), below, __m512(cut), least);
        // The sign of u, and all other bits of `rounded`.
        const __m512i all = _mm512_ternarylogic_epi32(magnitudes, __m512i(rounded), u, 0xca);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(0xffff, __m512(all), towards_zero));
    };
    half(x, y, bits.first);
    half(x + 16, y + 16, bits.last);
    return beyond == 0;
}
#else
ADAPTK_HD bool encode_float16_pair(const float* x, std::uint16_t* y, Lanes::U random) {
    const SixteenBits bits = halves_of(Lanes::U(_mm256_srli_epi16(__m256i(random), 3)));
    const __m256i zero = _mm256_setzero_si256(), magnitudes = _mm256_set1_epi32(0x7fffffff);
    const __m256i least = __m256i(_mm256_set1_ps(0x1p-14f)), most = _mm256_set1_epi32(int(float16_overflow) - 1);
    __m256i beyond = zero;
    const auto half = [&](const float* from, std::uint16_t* to, __m256i lost) {
        const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        const __m256i magnitude = _mm256_and_si256(u, magnitudes);
        const __m256 added = __m256(_mm256_and_si256(_mm256_cmpgt_epi32(least, magnitude), least));
        beyond = _mm256_or_si256(beyond, _mm256_cmpgt_epi32(magnitude, most));
        const __m256i fixed = _mm256_add_epi32(__m256i(_mm256_add_ps(__m256(magnitude), added)), lost);
        const __m256i cut = _mm256_andnot_si256(_mm256_set1_epi32(0x1fff), fixed);
        const __m256i sign = _mm256_andnot_si256(magnitudes, u);
        const __m256i all = _mm256_or_si256(__m256i(_mm256_sub_ps(__m256(cut), added)), sign);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(__m256(all), towards_zero));
    };
    half(x, y, bits.first);
    half(x + 8, y + 8, bits.last);
    return _mm256_testz_si256(beyond, beyond) != 0;
}
#endif
#endif

#if defined(ADAPTK_BFLOAT16_PAIRS)
// Encodes formats of 16 bits with stochastic rounding, two vectors at a time.
template <class F, size_t N>
ADAPTK_HD void encode_pairs(const float* x, std::uint16_t* y, std::int64_t first, std::uint64_t buffer_key) {
    static_assert(pair == MixedDraws<16>::elements);
    const Draws d = draws_from<16>(buffer_key, first);
    const std::uint32_t counter = draw_counter<16>(first);
    bool done = !std::is_same_v<F, BFloat16Stochastic> || !any_nan(x, N);
    for (size_t i = 0; done && i < N; i += pair) {
        const Lanes::U random = MixedDraws<16>::draw(d, counter + std::uint32_t(i / elements_per_draw<16>));
        if constexpr (std::is_same_v<F, BFloat16Stochastic>) {
            encode_pair(x + i, y + i, random);
        } else {
            done = encode_float16_pair(x + i, y + i, random);
        }
    }
    if (!done) encode_groups<F, false, N>(x, y, first, buffer_key);
}
#endif

// Encodes N elements, in whole groups, with stochastic rounding and in the fastest way for the format.
template <class F, size_t N>
ADAPTK_HD void encode_several(const float* x, typename F::Element* y, std::int64_t first, std::uint64_t buffer_key) {
#if defined(ADAPTK_BFLOAT16_PAIRS)
    if constexpr (sizeof(typename F::Element) == 2) {
        encode_pairs<F, N>(x, y, first, buffer_key);
        return;
    } else
#endif
        if (largest_magnitude<N>(x) < infinity_bits) {
        encode_groups<F, true, N>(x, y, first, buffer_key);
    } else {
        encode_groups<F, false, N>(x, y, first, buffer_key);
    }
}

// The largest magnitude of a block's finite elements.
template <size_t Block> float largest_finite(const float* x) {
    std::uint32_t most = 0;
    for (size_t i = 0; i < Block; ++i) {
        const std::uint32_t u = to_bits(x[i]) & 0x7fffffffu;
        most = u < infinity_bits && u > most ? u : most;
    }
    return from_bits(most);
}

template <class F, bool Finite>
ADAPTK_HD void encode_codes(const float* x, typename F::Element* y, float scale, std::int64_t first,
                            std::uint64_t buffer_key) {
    const Lanes::F factor = Lanes::all(F::factor(scale));
    if constexpr (random_bits_of<F>() > 0) {
        for (size_t g = 0; g < F::block; g += draw_group<F::random_bits>)
            for_draws<F::random_bits>(buffer_key, first + std::int64_t(g), [=](size_t i, Lanes::U random) {
                Lanes::store(y + g + i, F::template encode<Lanes, Finite>(Lanes::load(x + g + i), factor, random));
            });
    } else {
        constexpr size_t four = 4 * Lanes::count;
        for (size_t i = 0; i < F::block; i += four) {
            Lanes::U codes[4];
            for (size_t k = 0; k < 4; ++k)
                codes[k] =
                    F::template encode<Lanes, Finite>(Lanes::load(x + i + k * Lanes::count), factor, Lanes::all(0u));
            Lanes::store_four(y + i, codes);
        }
    }
}

// Blocks with elements that are not finite, or with a scale so small that its reciprocal may be infinite. In the second
// case all elements are multiplied by scale_lift first, which is exact.
template <class F>
float encode_rare_block(const float* x, typename F::Element* y, std::int64_t first, std::uint64_t buffer_key) {
    const float largest = largest_finite<F::block>(x), scale = scale_of<F>(largest);
    if (largest >= F::least_scale || largest == 0.0f) {
        encode_codes<F, false>(x, y, scale, first, buffer_key);
        return scale;
    }
    float lifted[F::block];
    for (size_t i = 0; i < F::block; ++i) lifted[i] = x[i] * scale_lift;
    encode_codes<F, false>(lifted, y, scale * scale_lift, first, buffer_key);
    return scale;
}

template <class F>
ADAPTK_HD void encode_block(const float* x, typename F::Element* y, float& scale, std::int64_t first,
                            std::uint64_t buffer_key) {
    const std::uint32_t most = largest_magnitude<F::block>(x);
    const float magnitude = from_bits(most);
    if (most < infinity_bits && (magnitude >= F::least_scale || most == 0)) {
        scale = scale_of<F>(magnitude);
        encode_codes<F, true>(x, y, scale, first, buffer_key);
    } else {
        scale = encode_rare_block<F>(x, y, first, buffer_key);
    }
}

#if defined(ADAPTK_GNU) && defined(ADAPTK_F16C)
// fp8_e4m3 without NaN. The exponent bias of float16 is greater by 8, so the fields of a code, read as those of a
// float16, are 2^-8 of its value.
ADAPTK_HD Lanes::F decode_float8(const std::uint8_t* x, Lanes::F scale) {
#if defined(__AVX512F__)
    const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    const __m256i halves = _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16(short(0xbf80)));
    return Lanes::F(_mm512_maskz_cvtph_ps(0xffff, halves)) * 0x1p8f * scale;
#else
    const __m128i words = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
    const __m128i halves = _mm_and_si128(_mm_slli_epi16(words, 7), _mm_set1_epi16(short(0xbf80)));
    return Lanes::F(_mm256_cvtph_ps(halves)) * 0x1p8f * scale;
#endif
}
#endif

template <class F, size_t Block, bool Finite = false>
ADAPTK_HD void decode_block(const typename F::Element* x, float* y, [[maybe_unused]] float scale) {
#if defined(__AVX512F__) || defined(ADAPTK_F16C) || defined(__aarch64__)
    if constexpr (std::is_same_v<F, Float16Stochastic>) {
        decode_vectors<Float16>(x, y, Block);
        return;
    }
#endif
    if constexpr (std::is_same_v<F, BFloat16Stochastic>) {
        decode_vectors<BFloat16>(x, y, Block);
        return;
    }
    const Lanes::F all = Lanes::all(scale);
#if defined(ADAPTK_GNU) && defined(ADAPTK_F16C)
    if constexpr (std::is_same_v<F, Float8E4M3> && Finite) {
        for (size_t i = 0; i < Block; i += Lanes::count) Lanes::store(y + i, decode_float8(x + i, all));
        return;
    }
#endif
    for (size_t i = 0; i < Block; i += Lanes::count) {
        if constexpr (BlockFormat<F>) {
            Lanes::store(y + i, F::template decode<Lanes, Finite>(Lanes::load(x + i), all));
        } else {
            Lanes::store(y + i, F::template decode<Lanes>(Lanes::load(x + i)));
        }
    }
}

// Unpacks codes of half a byte to one code in each E, and packs them.
template <class E> ADAPTK_HD void unpack_codes(const E* packed, E* codes, size_t pairs) {
    const auto* ADAPTK_RESTRICT x = packed;
    auto* ADAPTK_RESTRICT y = codes;
    for (size_t i = 0; i < pairs; ++i) {
        y[2 * i] = E(x[i] >> 4);
        y[2 * i + 1] = E(x[i] & 15);
    }
}
template <class E> ADAPTK_HD void pack_codes(const E* codes, E* packed, size_t pairs) {
    const auto* ADAPTK_RESTRICT x = codes;
    auto* ADAPTK_RESTRICT y = packed;
    for (size_t i = 0; i < pairs; ++i) y[i] = E(x[2 * i] << 4 | x[2 * i + 1]);
}

// The bits that distinguish a code for NaN.
template <class F> inline constexpr std::uint8_t not_finite_mask = 0xff;
template <> inline constexpr std::uint8_t not_finite_mask<Float8E4M3> = 0x7f;

template <class F, class T>
void decode(const void* data, [[maybe_unused]] const void* side, [[maybe_unused]] std::int64_t first, void* out,
            size_t n) {
    auto* const y = static_cast<T*>(out);
    const auto* const x = static_cast<const typename F::Element*>(data);
    if constexpr (SplitFormat<F>) {
        const auto* const beside = static_cast<const typename F::Side*>(side) + first;
        for (size_t i = 0; i < n; i += Lanes::count) {
            const size_t m = n - i < Lanes::count ? n - i : Lanes::count;
            if (sizeof(T) == 4 && m == Lanes::count) {
                Lanes::store(static_cast<float*>(out) + i,
                             F::template decode<Lanes>(Lanes::load(x + i), Lanes::load(beside + i)));
                continue;
            }
            typename F::Element codes[Lanes::count] = {};
            typename F::Side sides[Lanes::count] = {};
            float values[Lanes::count];
            std::memcpy(codes, x + i, m * sizeof codes[0]);
            std::memcpy(sides, beside + i, m * sizeof sides[0]);
            Lanes::store(values, F::template decode<Lanes>(Lanes::load(codes), Lanes::load(sides)));
            for (size_t k = 0; k < m; ++k) y[i + k] = T(values[k]);
        }
    } else if constexpr (BlockFormat<F> || StochasticFormat<F>) {
        // The last block may have fewer elements.
        constexpr size_t block = block_of<F>() > 1 ? block_of<F>() : size_t{128};
        for (size_t b = 0; b < n; b += block) {
            const size_t m = n - b < block ? n - b : block;
            float scale = 0.0f;
            if constexpr (BlockFormat<F>)
                scale = static_cast<const float*>(side)[(first + std::int64_t(b)) / std::int64_t(block)];
            if constexpr (packed_of<F>() > 1) {
                static_assert(packed_of<F>() == 2);
                typename F::Element some[block / 2] = {}, codes[block];
                std::memcpy(some, x + b / 2, (m + 1) / 2);
                unpack_codes(some, codes, block / 2);
                float values[block];
                decode_block<F, block, true>(codes, values, scale);
                for (size_t i = 0; i < m; ++i) y[b + i] = T(values[i]);
                continue;
            } else if constexpr (sizeof(T) == 4) {
                if (m == block) {
                    bool finite = false;
                    if constexpr (requires { F::not_finite; })
                        finite = !Lanes::any_byte(x + b, std::uint8_t(F::not_finite), block, not_finite_mask<F>);
                    if (finite) {
                        decode_block<F, block, true>(x + b, y + b, scale);
                    } else {
                        decode_block<F, block>(x + b, y + b, scale);
                    }
                    continue;
                }
            }
            typename F::Element codes[block] = {};
            float values[block];
            std::memcpy(codes, x + b, m * sizeof codes[0]);
            decode_block<F, block>(codes, values, scale);
            for (size_t i = 0; i < m; ++i) y[b + i] = T(values[i]);
        }
    } else if constexpr (sizeof(typename F::Element) <= 2 && sizeof(T) == 4) {
        const size_t done = decode_vectors<F>(x, y, n);
        decode_elements<F>(x + done, y + done, n - done);
    } else if constexpr (std::is_same_v<F, Float16>) {
        // By way of float, because the vector instructions convert to float only.
        constexpr size_t part = 256;
        float widened[part];
        for (size_t i = 0; i < n; i += part) {
            const size_t m = n - i < part ? n - i : part;
            const size_t done = decode_vectors<F>(x + i, widened, m);
            decode_elements<F>(x + i + done, widened + done, m - done);
            for (size_t k = 0; k < m; ++k) y[i + k] = T(widened[k]);
        }
    } else {
        decode_elements<F>(x, y, n);
    }
}

template <class F>
void encode(const void* in, void* data, [[maybe_unused]] void* side, [[maybe_unused]] std::int64_t first, size_t n,
            [[maybe_unused]] std::uint64_t buffer_key) {
    const auto* const x = static_cast<const typename F::Compute*>(in);
    auto* const y = static_cast<typename F::Element*>(data);
    if constexpr (SplitFormat<F>) {
        auto* const beside = static_cast<typename F::Side*>(side) + first;
        size_t i = 0;
        for (; i + Lanes::count <= n; i += Lanes::count) {
            const auto split = F::template encode<Lanes>(Lanes::load(x + i));
            Lanes::store(y + i, split.code);
            Lanes::store(beside + i, split.side);
        }
        if (i == n) return;
        float padded[Lanes::count] = {};
        typename F::Element codes[Lanes::count];
        typename F::Side sides[Lanes::count];
        std::memcpy(padded, x + i, (n - i) * sizeof(float));
        const auto split = F::template encode<Lanes>(Lanes::load(padded));
        Lanes::store(codes, split.code);
        Lanes::store(sides, split.side);
        std::memcpy(y + i, codes, (n - i) * sizeof codes[0]);
        std::memcpy(beside + i, sides, (n - i) * sizeof sides[0]);
    } else if constexpr (BlockFormat<F>) {
        constexpr size_t packed = packed_of<F>();
        float* scale = static_cast<float*>(side) + first / std::int64_t(F::block);
        typename F::Element codes[F::block];
        size_t i = 0;
        for (; i + F::block <= n; i += F::block) {
            auto* const to = packed > 1 ? codes : y + i;
            encode_block<F>(x + i, to, *scale++, first + std::int64_t(i), buffer_key);
            if constexpr (packed > 1) pack_codes(codes, y + i / packed, F::block / packed);
        }
        if (i == n) return;
        // The last block of a tensor is padded with zeros.
        float padded[F::block] = {};
        std::memcpy(padded, x + i, (n - i) * sizeof(float));
        encode_block<F>(padded, codes, *scale, first + std::int64_t(i), buffer_key);
        if constexpr (packed > 1) {
            pack_codes(codes, y + i / packed, (n - i + packed - 1) / packed);
        } else {
            std::memcpy(y + i, codes, (n - i) * sizeof codes[0]);
        }
    } else if constexpr (StochasticFormat<F>) {
        constexpr size_t group = draw_group<F::random_bits>;
        size_t i = 0;
        constexpr size_t several = 64;
        for (; i + several <= n; i += several)
            encode_several<F, several>(x + i, y + i, first + std::int64_t(i), buffer_key);
        for (; i + group <= n; i += group)
            encode_groups<F, false, group>(x + i, y + i, first + std::int64_t(i), buffer_key);
        if (i == n) return;
        float padded[group] = {};
        typename F::Element codes[group];
        std::memcpy(padded, x + i, (n - i) * sizeof(float));
        encode_groups<F, false, group>(padded, codes, first + std::int64_t(i), buffer_key);
        std::memcpy(y + i, codes, (n - i) * sizeof codes[0]);
    } else {
        size_t done = 0;
        if constexpr (sizeof(typename F::Element) <= 2) done = encode_vectors<F>(x, y, n);
        encode_elements<F>(x + done, y + done, n - done);
    }
}

// A format is encoded from its Compute type, and decoded to float or double; float64 is rounded to float.
template <class F> constexpr FormatKernels kernels_of() {
    FormatKernels k{};
    k.decode[0] = decode<F, float>;
    k.decode[1] = decode<F, double>;
    k.encode[sizeof(typename F::Compute) == 4 ? 0 : 1] = encode<F>;
    return k;
}

}  // namespace
}  // namespace adaptk::detail
