// The loops that decode and encode buffers: a part of each kernel object (kernels.cpp), and of nothing else.
#pragma once

#include "compiler.hpp"
#include "kernel_table.hpp"

#include "adaptk/rounding.hpp"

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

// With the processor's own conversion of float16 as far as it goes; the number of elements that are done.
size_t decode_vectors([[maybe_unused]] const std::uint16_t* x, [[maybe_unused]] float* y, [[maybe_unused]] size_t n) {
    size_t i = 0;
#if defined(ADAPTK_F16C)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
#elif defined(__aarch64__)
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
#endif
    return i;
}

size_t encode_vectors([[maybe_unused]] const float* x, [[maybe_unused]] std::uint16_t* y, [[maybe_unused]] size_t n) {
    size_t i = 0;
#if defined(ADAPTK_F16C)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__aarch64__)
    for (; i + 4 <= n; i += 4) vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
#endif
    return i;
}

#if defined(ADAPTK_GNU)
#if defined(__AVX512F__)
constexpr size_t lane_bytes = 64;
#elif defined(__AVX__)
constexpr size_t lane_bytes = 32;
#else
constexpr size_t lane_bytes = 16;
#endif

// A vector of elements (OneLane).
struct Lanes {
    static constexpr size_t count = lane_bytes / 4;
    typedef float F __attribute__((vector_size(lane_bytes)));
    typedef std::uint32_t U __attribute__((vector_size(lane_bytes)));
    typedef std::int32_t I __attribute__((vector_size(lane_bytes)));
    template <class E> struct Packed {
        typedef E V __attribute__((vector_size(count * sizeof(E))));
    };

    static ADAPTK_HD F all(float x) { return F{} + x; }
    static ADAPTK_HD U all(std::uint32_t x) { return U{} + x; }
    static ADAPTK_HD U bits(F x) { return U(x); }
    static ADAPTK_HD F real(U u) { return F(u); }
    static ADAPTK_HD F converted(I i) { return __builtin_convertvector(i, F); }
    static ADAPTK_HD U select(I which, U a, U b) { return which ? a : b; }

    static ADAPTK_HD F load(const float* p) {
        F x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static ADAPTK_HD void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
    // Codes of one or two bytes, which GCC moves one by one in some of these cases unless it is told.
    template <class E> static ADAPTK_HD U load(const E* p) {
        typename Packed<E>::V x;
        std::memcpy(&x, p, sizeof x);
#if defined(__AVX512F__)
        // With masks: GCC 12 warns of its own header otherwise.
        if constexpr (sizeof(E) == 1)
            return U(std::is_signed_v<E> ? _mm512_maskz_cvtepi8_epi32(0xffff, __m128i(x))
                                         : _mm512_maskz_cvtepu8_epi32(0xffff, __m128i(x)));
#elif defined(__AVX2__)
        if constexpr (sizeof(E) == 1) {
            const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
            return U(std::is_signed_v<E> ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
        }
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
#elif defined(__SSE2__)
        if constexpr (sizeof(E) == 1) {
            x &= 0xffu;
#if defined(__AVX2__)
            const __m256i halves = _mm256_packs_epi32(__m256i(x), __m256i(x));
            const __m256i bytes = _mm256_packus_epi16(halves, halves);
            const __m128i all = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(p), all);
#else
            const __m128i halves = _mm_packs_epi32(__m128i(x), __m128i(x));
            const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(halves, halves));
            std::memcpy(p, &bytes, sizeof bytes);
#endif
            return;
        }
#endif
        const auto v = __builtin_convertvector(x, typename Packed<std::make_unsigned_t<E>>::V);
        std::memcpy(p, &v, sizeof v);
    }
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
    static ADAPTK_HD U iota() { return 0; }
};
#endif

// Calls encode(place in the group, random bits) for a group of elements that share their draws, a vector at a time.
template <int Bits, class Encode>
ADAPTK_HD void for_draws(std::uint64_t buffer_key, std::int64_t first, const Encode& encode) {
    const Draws d = draws_from<Bits>(buffer_key, first);
    const std::uint32_t counter = draw_counter<Bits>(first);
    for (size_t i = 0; i < draw_row; i += Lanes::count) {
        const Lanes::U r = draw(d, Lanes::iota() + (counter + std::uint32_t(i)));
        for (int row = 0; row < 32 / Bits; ++row)
            encode(size_t(row) * draw_row + i, (r >> (row * Bits)) & ((1u << Bits) - 1));
    }
}

// One group of elements, rounded stochastically.
template <class F>
ADAPTK_HD void encode_group(const float* x, typename F::Element* y, std::int64_t first, std::uint64_t buffer_key) {
    for_draws<F::random_bits>(buffer_key, first, [=](size_t i, Lanes::U random) {
        Lanes::store(y + i, F::template encode<Lanes>(Lanes::load(x + i), random));
    });
}

// The largest magnitude of the finite elements of a block, as the bits of a float: the same in any order.
template <size_t Block> ADAPTK_HD float largest_finite(const float* x) {
    Lanes::U most = Lanes::all(0u);
    for (size_t i = 0; i < Block; i += Lanes::count) {
        const Lanes::U u = Lanes::bits(Lanes::load(x + i)) & 0x7fffffffu;
        const Lanes::U finite = Lanes::select(u < Lanes::all(0x7f800000u), u, Lanes::all(0u));
        most = Lanes::select(most < finite, finite, most);
    }
    std::uint32_t m[Lanes::count];
    std::memcpy(m, &most, sizeof m);
    for (size_t w = Lanes::count / 2; w > 0; w /= 2)
        for (size_t k = 0; k < w; ++k) m[k] = m[k] < m[k + w] ? m[k + w] : m[k];
    return from_bits(m[0]);
}

template <class F>
ADAPTK_HD void encode_codes(const float* x, typename F::Element* y, float scale, std::int64_t first,
                            std::uint64_t buffer_key) {
    const Lanes::F inverse = Lanes::all(scale == 0.0f ? 0.0f : F::inverse(scale));
    if constexpr (random_bits_of<F>() > 0) {
        for (size_t g = 0; g < F::block; g += draw_group<F::random_bits>)
            for_draws<F::random_bits>(buffer_key, first + std::int64_t(g), [=](size_t i, Lanes::U random) {
                Lanes::store(y + g + i, F::template encode<Lanes>(Lanes::load(x + g + i), inverse, random));
            });
    } else {
        for (size_t i = 0; i < F::block; i += Lanes::count)
            Lanes::store(y + i, F::template encode<Lanes>(Lanes::load(x + i), inverse, Lanes::all(0u)));
    }
}

template <class F>
void encode_block(const float* x, typename F::Element* y, float& scale, std::int64_t first, std::uint64_t buffer_key) {
    scale = largest_finite<F::block>(x);
    if (scale >= least_scale || scale == 0.0f) {
        encode_codes<F>(x, y, scale, first, buffer_key);
        return;
    }
    // Below it a reciprocal may be infinite, so all is lifted first, which is exact.
    float lifted[F::block];
    for (size_t i = 0; i < F::block; ++i) lifted[i] = x[i] * scale_lift;
    encode_codes<F>(lifted, y, scale * scale_lift, first, buffer_key);
}

template <class F, size_t Block>
ADAPTK_HD void decode_block(const typename F::Element* x, float* y, [[maybe_unused]] float scale) {
    const Lanes::F all = Lanes::all(scale);
    for (size_t i = 0; i < Block; i += Lanes::count) {
        if constexpr (BlockFormat<F>) {
            Lanes::store(y + i, F::template decode<Lanes>(Lanes::load(x + i), all));
        } else {
            Lanes::store(y + i, F::template decode<Lanes>(Lanes::load(x + i)));
        }
    }
}

template <class F, class T>
void decode(const void* data, [[maybe_unused]] const float* scales, [[maybe_unused]] std::int64_t first, void* out,
            size_t n) {
    auto* const y = static_cast<T*>(out);
    const auto* const x = static_cast<const typename F::Element*>(data);
    if constexpr (BlockFormat<F> || StochasticFormat<F>) {
        // The last one may have fewer elements.
        constexpr size_t block = block_of<F>() > 1 ? block_of<F>() : size_t{128};
        for (size_t b = 0; b < n; b += block) {
            const size_t m = n - b < block ? n - b : block;
            float scale = 0.0f;
            if constexpr (BlockFormat<F>) scale = scales[(first + std::int64_t(b)) / std::int64_t(block)];
            if constexpr (sizeof(T) == 4) {
                if (m == block) {
                    decode_block<F, block>(x + b, y + b, scale);
                    continue;
                }
            }
            typename F::Element codes[block] = {};
            float values[block];
            std::memcpy(codes, x + b, m * sizeof codes[0]);
            decode_block<F, block>(codes, values, scale);
            for (size_t i = 0; i < m; ++i) y[b + i] = T(values[i]);
        }
    } else if constexpr (std::is_same_v<F, Float16> && sizeof(T) == 4) {
        const size_t done = decode_vectors(x, y, n);
        decode_elements<F>(x + done, y + done, n - done);
    } else if constexpr (std::is_same_v<F, Float16>) {
        // By way of float: the vectors' conversion ends there.
        constexpr size_t part = 256;
        float widened[part];
        for (size_t i = 0; i < n; i += part) {
            const size_t m = n - i < part ? n - i : part;
            const size_t done = decode_vectors(x + i, widened, m);
            decode_elements<F>(x + i + done, widened + done, m - done);
            for (size_t k = 0; k < m; ++k) y[i + k] = T(widened[k]);
        }
    } else {
        decode_elements<F>(x, y, n);
    }
}

template <class F>
void encode(const void* in, void* data, [[maybe_unused]] float* scales, [[maybe_unused]] std::int64_t first, size_t n,
            [[maybe_unused]] std::uint64_t buffer_key) {
    const auto* const x = static_cast<const typename F::Compute*>(in);
    auto* const y = static_cast<typename F::Element*>(data);
    if constexpr (BlockFormat<F>) {
        float* scale = scales + first / std::int64_t(F::block);
        size_t i = 0;
        for (; i + F::block <= n; i += F::block)
            encode_block<F>(x + i, y + i, *scale++, first + std::int64_t(i), buffer_key);
        if (i == n) return;
        // The last block of a tensor: as if zeros followed.
        float padded[F::block] = {};
        typename F::Element codes[F::block];
        std::memcpy(padded, x + i, (n - i) * sizeof(float));
        encode_block<F>(padded, codes, *scale, first + std::int64_t(i), buffer_key);
        std::memcpy(y + i, codes, (n - i) * sizeof codes[0]);
    } else if constexpr (StochasticFormat<F>) {
        constexpr size_t group = draw_group<F::random_bits>;
        size_t i = 0;
        for (; i + group <= n; i += group) encode_group<F>(x + i, y + i, first + std::int64_t(i), buffer_key);
        if (i == n) return;
        float padded[group] = {};
        typename F::Element codes[group];
        std::memcpy(padded, x + i, (n - i) * sizeof(float));
        encode_group<F>(padded, codes, first + std::int64_t(i), buffer_key);
        std::memcpy(y + i, codes, (n - i) * sizeof codes[0]);
    } else {
        size_t done = 0;
        if constexpr (std::is_same_v<F, Float16>) done = encode_vectors(x, y, n);
        encode_elements<F>(x + done, y + done, n - done);
    }
}

// Every format holds what its Compute type can be rounded to, and decodes to either type; float64 is rounded to float.
template <class F> constexpr FormatKernels kernels_of() {
    FormatKernels k{};
    k.decode[0] = decode<F, float>;
    k.decode[1] = decode<F, double>;
    k.encode[sizeof(typename F::Compute) == 4 ? 0 : 1] = encode<F>;
    return k;
}

}  // namespace
}  // namespace adaptk::detail
