// The interpreter of programs (program.hpp): a part of each kernel object (kernels.cpp), and of nothing else.
//
// A block is eight vectors, which stay in registers from one instruction to the next. An instruction's other operands
// are read from memory; the param, the gradient and the states are not copied for this. So an instruction takes some
// eight operations and one jump per block. Wider blocks would spill registers; in narrower ones most time would go into
// jumps. Memory is prefetched, as in rule_loop.hpp: with 64M elements, steps had 0.7 of the compiled kernels' speed
// without prefetches and 0.95 with them.
#pragma once

#include "compiler.hpp"
#include "format_kernels.hpp"
#include "program.hpp"

#include "adaptk/math.hpp"

#include <cstring>
#include <limits>
#include <type_traits>

namespace adaptk::detail {
namespace {

#if defined(ADAPTK_GNU)
template <class T> struct Block {
    static constexpr size_t lanes = lane_bytes / sizeof(T);
    static constexpr size_t vectors = 8;
    typedef T V __attribute__((vector_size(lane_bytes)));
    using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    typedef Bits M __attribute__((vector_size(lane_bytes)));

    static ADAPTK_HD V load(const T* p) {
        V x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static ADAPTK_HD void store(T* p, V x) { std::memcpy(p, &x, sizeof x); }
    static ADAPTK_HD V all(T x) { return x - V{}; }  // not V{} + x: 0 + -0 is 0
    static ADAPTK_HD V truth(M m) { return m ? all(T(1)) : V{}; }
    static ADAPTK_HD V root(V x) {
#if defined(__AVX512F__)
        // Masked intrinsics, because GCC 12 warns about its own header in the others.
        if constexpr (sizeof(T) == 4) {
            return V(_mm512_maskz_sqrt_ps(0xffff, __m512(x)));
        } else {
            return V(_mm512_maskz_sqrt_pd(0xff, __m512d(x)));
        }
#elif defined(__AVX__)
        if constexpr (sizeof(T) == 4) {
            return V(_mm256_sqrt_ps(__m256(x)));
        } else {
            return V(_mm256_sqrt_pd(__m256d(x)));
        }
#elif defined(__SSE2__)
        if constexpr (sizeof(T) == 4) {
            return V(_mm_sqrt_ps(__m128(x)));
        } else {
            return V(_mm_sqrt_pd(__m128d(x)));
        }
#elif defined(__aarch64__)
        if constexpr (sizeof(T) == 4) {
            return V(vsqrtq_f32(float32x4_t(x)));
        } else {
            return V(vsqrtq_f64(float64x2_t(x)));
        }
#else
        for (size_t i = 0; i < lanes; ++i) x[i] = sqrt(x[i]);
        return x;
#endif
    }
    static ADAPTK_HD V absolute(V x) { return V(M(x) & (M{} + std::numeric_limits<Bits>::max())); }
};
#else
template <class T> struct Block {
    static constexpr size_t lanes = 1;
    static constexpr size_t vectors = 64;
    using V = T;
    static ADAPTK_HD V load(const T* p) { return *p; }
    static ADAPTK_HD void store(T* p, V x) { *p = x; }
    static ADAPTK_HD V all(T x) { return x; }
    static ADAPTK_HD V truth(bool m) { return m ? T(1) : T(0); }
    static ADAPTK_HD V root(V x) { return sqrt(x); }
    static ADAPTK_HD V absolute(V x) { return abs(x); }
};
#endif

constexpr size_t program_ahead_bytes = 2048;
template <class T> constexpr size_t block_elements = Block<T>::lanes * Block<T>::vectors;

// Adds the reduced buffers of n elements from `first` on, which is a block or its beginning.
template <class T> void add_block(const BlockSums& sums, T* const* slot, size_t first, size_t n) {
    for (size_t s = 0; s < sums.count; ++s) {
        const BufferSum& of = sums.sum[s];
        of.add(slot[of.buffer], n, (sums.phase + first) % reduction_width, sums.scale, of.sums);
    }
}

// Runs the step's code over `blocks` blocks. slot: addresses of the operands in the first block. Buffers that are not
// fixed advance from block to block. `whole`: the blocks are whole, so what is reduced is added.
template <class T> void run_blocks(const ProgramStep& step, T** slot, std::uint32_t ahead, size_t blocks, bool whole) {
    const Instruction* const code = step.code;
    const size_t buffers = step.buffers - (step.sums == nullptr ? 0 : step.sums->fixed);
    using B = Block<T>;
    using V = typename B::V;
    constexpr size_t lanes = B::lanes;
    constexpr size_t vectors = B::vectors;
    const V zero{};
    const V one = B::all(T(1));

// For each vector of the block. x is of the operand a and y of b.
#define ADAPTK_EACH(expression)                                                                                        \
    {                                                                                                                  \
        ADAPTK_UNROLL                                                                                                  \
        for (size_t u = 0; u < vectors; ++u) {                                                                         \
            r[u] = expression;                                                                                         \
        }                                                                                                              \
        break;                                                                                                         \
    }
// The same for an instruction with two words, which also stores its result.
#define ADAPTK_EACH_STORED(expression)                                                                                 \
    T* const to = slot[i->c];                                                                                          \
    ADAPTK_UNROLL                                                                                                      \
    for (size_t u = 0; u < vectors; ++u) {                                                                             \
        r[u] = expression;                                                                                             \
        B::store(to + u * lanes, r[u]);                                                                                \
    }                                                                                                                  \
    ++i;                                                                                                               \
    break;
#define ADAPTK_WITH_A(expression)                                                                                      \
    {                                                                                                                  \
        const T* const a = slot[i->a];                                                                                 \
        ADAPTK_UNROLL                                                                                                  \
        for (size_t u = 0; u < vectors; ++u) {                                                                         \
            const V x = B::load(a + u * lanes);                                                                        \
            r[u] = expression;                                                                                         \
        }                                                                                                              \
        break;                                                                                                         \
    }
// x is the constant a, and y is of the operand b.
#define ADAPTK_WITH_CONSTANT(expression)                                                                               \
    {                                                                                                                  \
        const V x = B::all(*slot[i->a]);                                                                               \
        const T* const b = slot[i->b];                                                                                 \
        ADAPTK_UNROLL                                                                                                  \
        for (size_t u = 0; u < vectors; ++u) {                                                                         \
            const V y = B::load(b + u * lanes);                                                                        \
            r[u] = expression;                                                                                         \
        }                                                                                                              \
        break;                                                                                                         \
    }
#define ADAPTK_WITH_CONSTANTS(expression)                                                                              \
    {                                                                                                                  \
        const V x = B::all(*slot[i->a]);                                                                               \
        [[maybe_unused]] const V y = B::all(*slot[i->b]);                                                              \
        ADAPTK_UNROLL                                                                                                  \
        for (size_t u = 0; u < vectors; ++u) {                                                                         \
            r[u] = expression;                                                                                         \
        }                                                                                                              \
        break;                                                                                                         \
    }
#define ADAPTK_WITH_AB(expression)                                                                                     \
    {                                                                                                                  \
        const T* const a = slot[i->a];                                                                                 \
        const T* const b = slot[i->b];                                                                                 \
        ADAPTK_UNROLL                                                                                                  \
        for (size_t u = 0; u < vectors; ++u) {                                                                         \
            const V x = B::load(a + u * lanes);                                                                        \
            const V y = B::load(b + u * lanes);                                                                        \
            r[u] = expression;                                                                                         \
        }                                                                                                              \
        break;                                                                                                         \
    }

    for (size_t block = 0; block < blocks; ++block) {
        V r[vectors];
        ADAPTK_UNROLL
        for (size_t u = 0; u < vectors; ++u) r[u] = V{};
        for (size_t b = 0; b < buffers; ++b)
            if ((ahead >> b & 1u) != 0)
                prefetch<CacheLevel::first>(slot[b], program_ahead_bytes, block_elements<T> * sizeof(T));
        for (const Instruction* i = code; i->op != Opcode::end; ++i) {
            switch (i->op) {
            case Opcode::end: break;
            case Opcode::load: ADAPTK_WITH_A(x)
            case Opcode::store: {
                T* const a = slot[i->a];
                ADAPTK_UNROLL
                for (size_t u = 0; u < vectors; ++u) B::store(a + u * lanes, r[u]);
                break;
            }
            case Opcode::add: ADAPTK_WITH_A(r[u] + x)
            case Opcode::subtract: ADAPTK_WITH_A(r[u] - x)
            case Opcode::subtract_from: ADAPTK_WITH_A(x - r[u])
            case Opcode::multiply: ADAPTK_WITH_A(r[u] * x)
            case Opcode::divide: ADAPTK_WITH_A(r[u] / x)
            case Opcode::divide_into: ADAPTK_WITH_A(x / r[u])
            case Opcode::maximum: ADAPTK_WITH_A(((r[u] > x) | (r[u] != r[u])) ? r[u] : x)
            case Opcode::maximum_with: ADAPTK_WITH_A(((x > r[u]) | (x != x)) ? x : r[u])
            case Opcode::minimum: ADAPTK_WITH_A(((r[u] < x) | (r[u] != r[u])) ? r[u] : x)
            case Opcode::minimum_with: ADAPTK_WITH_A(((x < r[u]) | (x != x)) ? x : r[u])
            case Opcode::less: ADAPTK_WITH_A(B::truth(r[u] < x))
            case Opcode::greater: ADAPTK_WITH_A(B::truth(x < r[u]))
            case Opcode::less_equal: ADAPTK_WITH_A(B::truth(r[u] <= x))
            case Opcode::greater_equal: ADAPTK_WITH_A(B::truth(x <= r[u]))
            case Opcode::equal: ADAPTK_WITH_A(B::truth(r[u] == x))
            case Opcode::not_equal: ADAPTK_WITH_A(B::truth(r[u] != x))
            case Opcode::negative: ADAPTK_EACH(-r[u])
            case Opcode::absolute: ADAPTK_EACH(B::absolute(r[u]))
            case Opcode::square_root: ADAPTK_EACH(B::root(r[u]))
            case Opcode::sign: {
                ADAPTK_UNROLL
                for (size_t u = 0; u < vectors; ++u) {
                    const V at_zero = r[u] == zero ? zero : r[u];
                    const V above = r[u] > zero ? one : at_zero;
                    r[u] = r[u] < zero ? -one : above;
                }
                break;
            }
            case Opcode::select: ADAPTK_WITH_AB(r[u] != zero ? x : y)
            case Opcode::keep_if: ADAPTK_WITH_AB(x != zero ? r[u] : y)
            case Opcode::keep_unless: ADAPTK_WITH_AB(x != zero ? y : r[u])
            case Opcode::load_add: ADAPTK_WITH_AB(x + y)
            case Opcode::load_subtract: ADAPTK_WITH_AB(x - y)
            case Opcode::load_multiply: ADAPTK_WITH_AB(x * y)
            case Opcode::add_product: ADAPTK_WITH_AB(r[u] + x * y)
            case Opcode::subtract_product: ADAPTK_WITH_AB(r[u] - x * y)
            case Opcode::product_subtract: ADAPTK_WITH_AB(x * y - r[u])
            case Opcode::product_divide: ADAPTK_WITH_AB(x * y / r[u])
            case Opcode::multiply_add: ADAPTK_WITH_AB(r[u] * x + y)
            case Opcode::square: ADAPTK_EACH(r[u] * r[u])
            case Opcode::load_square: ADAPTK_WITH_A(x * x)
            case Opcode::add_constant: ADAPTK_WITH_CONSTANTS(r[u] + x)
            case Opcode::multiply_constant: ADAPTK_WITH_CONSTANTS(r[u] * x)
            case Opcode::load_multiply_constant: ADAPTK_WITH_CONSTANT(x * y)
            case Opcode::add_product_constant: ADAPTK_WITH_CONSTANT(r[u] + x * y)
            case Opcode::subtract_product_constant: ADAPTK_WITH_CONSTANT(r[u] - x * y)
            case Opcode::product_subtract_constant: ADAPTK_WITH_CONSTANT(x * y - r[u])
            case Opcode::product_divide_constant: ADAPTK_WITH_CONSTANT(x * y / r[u])
            case Opcode::multiply_add_constants: ADAPTK_WITH_CONSTANTS(r[u] * x + y)
            case Opcode::average: {
                const V x = B::all(*slot[i->a]), y = B::all(*slot[i[1].a]);
                const T *const a = slot[i->b], *const b = slot[i[1].b];
                ADAPTK_EACH_STORED(y * B::load(b + u * lanes) + x * B::load(a + u * lanes))
            }
            case Opcode::average_square: {
                const V x = B::all(*slot[i->a]), y = B::all(*slot[i[1].a]);
                const T *const a = slot[i->b], *const b = slot[i[1].b];
                ADAPTK_EACH_STORED(B::load(b + u * lanes) * B::load(b + u * lanes) * y + x * B::load(a + u * lanes))
            }
            case Opcode::root_multiply_add: ADAPTK_WITH_CONSTANTS(B::root(r[u]) * x + y)
            case Opcode::step: {
                const V x = B::all(*slot[i->a]);
                const T *const p = slot[i->b], *const m = slot[i[1].b];
                ADAPTK_EACH_STORED(B::load(p + u * lanes) - x * B::load(m + u * lanes) / r[u])
            }
            case Opcode::step_decayed: {
                const V x = B::all(*slot[i->a]), decay = B::all(*slot[i[1].a]);
                const T *const p = slot[i->b], *const m = slot[i[1].b];
                ADAPTK_EACH_STORED(decay * B::load(p + u * lanes) - x * B::load(m + u * lanes) / r[u])
            }
            }
        }
        if (whole && step.sums != nullptr) add_block<T>(*step.sums, slot, block * block_elements<T>, block_elements<T>);
        for (size_t b = 0; b < buffers; ++b) slot[b] += block_elements<T>;
    }
#undef ADAPTK_EACH
#undef ADAPTK_EACH_STORED
#undef ADAPTK_WITH_A
#undef ADAPTK_WITH_AB
#undef ADAPTK_WITH_CONSTANT
#undef ADAPTK_WITH_CONSTANTS
}

// The StepKernel of programs: coefficients is a ProgramStep.
template <class T> void run_program(const void* coefficients, void* const* buffer, size_t n) {
    constexpr size_t width = block_elements<T>;
    const auto& step = *static_cast<const ProgramStep*>(coefficients);
    alignas(cache_line) T scratch[max_scratch][width];
    T* slot[max_program_buffers + max_constants + max_scratch];
    T** to = slot + step.buffers;
    // Kernels write to buffers and scratch only.
    for (size_t c = 0; c < step.constants; ++c)
        *to++ = const_cast<T*>(static_cast<const T*>(step.constant) + c * width);
    for (size_t c = 0; c < step.own_constants; ++c)
        *to++ = const_cast<T*>(static_cast<const T*>(step.own_constant) + c * width);
    for (size_t s = 0; s < max_scratch; ++s) *to++ = scratch[s];

    for (size_t b = 0; b < step.buffers; ++b) slot[b] = static_cast<T*>(buffer[b]);
    const size_t blocks = n / width;
    run_blocks<T>(step, slot, step.ahead, blocks, true);

    const size_t rest = n - blocks * width;
    if (rest == 0) return;
    alignas(cache_line) T last[max_program_buffers][width];
    for (size_t b = 0; b < step.buffers; ++b) {
        std::memset(last[b], 0, sizeof last[b]);
        if ((step.used >> b & 1u) != 0)
            std::memcpy(last[b], static_cast<T*>(buffer[b]) + blocks * width, rest * sizeof(T));
        slot[b] = last[b];
    }
    run_blocks<T>(step, slot, 0, 1, false);
    if (step.sums != nullptr) add_block<T>(*step.sums, slot, blocks * width, rest);
    for (size_t b = 0; b < step.buffers; ++b)
        if ((step.written >> b & 1u) != 0)
            std::memcpy(static_cast<T*>(buffer[b]) + blocks * width, last[b], rest * sizeof(T));
}

}  // namespace
}  // namespace adaptk::detail
