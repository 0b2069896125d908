// Rules beside states that are all stored as `8bit` says: a part of each kernel object (kernels.cpp) with wide vectors.
//
// Decoding, updating and encoding in one loop cost less than one after the other: the processor waits for divisions and
// roots in most rules, and encodes in the meantime. The scale of a block is known when all of it is updated; so what is
// encoded beside a block is the block before.
#pragma once

#include "format_kernels.hpp"
#include "kernel_table.hpp"

#include "adaptk/rule_loop.hpp"
#include "adaptk/rules.hpp"

#include <algorithm>
#include <utility>

namespace adaptk::detail {
namespace {

#if defined(ADAPTK_GNU) && defined(__AVX2__)
#define ADAPTK_CODED_KERNELS 1

constexpr size_t coded_block = 128;
// Elements that share their draws.
constexpr size_t coded_part = draw_group<8>;

template <class R, size_t I>
using CodesOf = std::conditional_t<R::states[I].nonnegative, LogarithmicStochastic8, Linear8>;

template <class R, class States> struct CodedRule;

template <class R, size_t... I> struct CodedRule<R, std::index_sequence<I...>> {
    static constexpr size_t states = sizeof...(I);
    using Coefficients = StepCoefficients<R, float>;
    using Block = float[states][coded_block];
    static_assert(((CodesOf<R, I>::block == coded_block) && ...));

    const bool coupled;
    const CodedPiece& piece;

    std::uint8_t* codes(size_t s, size_t at) const { return static_cast<std::uint8_t*>(piece.state[s].codes) + at; }
    float* scale(size_t s, size_t at) const { return piece.state[s].scales + at / coded_block; }
    std::int64_t element(size_t at) const { return piece.first + std::int64_t(at); }

    // Params and gradients of a block in float: where they are, or decoded.
    struct Floats {
        float* p;
        const float* g;
        alignas(64) float params[coded_block], grads[coded_block];
    };
    ADAPTK_HD void decode_block_of_floats(size_t at, Floats& f) const {
        f.p = static_cast<float*>(piece.param.at(at));
        f.g = static_cast<const float*>(piece.grad.at(at));
        if (piece.param.decode != nullptr) {
            piece.param.decode(f.p, piece.param.side, element(at), f.params, coded_block);
            f.p = f.params;
        }
        if (piece.grad.decode != nullptr) {
            piece.grad.decode(f.g, piece.grad.side, element(at), f.grads, coded_block);
            f.g = f.grads;
        }
    }
    ADAPTK_HD void encode_block_of_floats(size_t at, const Floats& f) const {
        if (piece.param.encode != nullptr)
            piece.param.encode(f.params, piece.param.at(at), piece.param.side, element(at), coded_block,
                               piece.param.key);
    }
    ADAPTK_HD void update(const Coefficients& c, size_t n, float* p, const float* g, float* const (&s)[states]) const {
        if (coupled) {
            rule_run<R, float, true, I...>(c, n, p, g, s[I]...);
        } else {
            rule_run<R, float, false, I...>(c, n, p, g, s[I]...);
        }
    }

    template <size_t S> ADAPTK_HD void draw_for(std::int64_t first, std::uint8_t* random) const {
        if constexpr (random_bits_of<CodesOf<R, S>>() > 0) {
            if (!piece.state[S].stochastic) return;
            const Draws d = draws_from<8>(piece.state[S].key, first);
            const std::uint32_t counter = draw_counter<8>(first);
            for (size_t i = 0; i < 16; i += Lanes::count) {
                const Lanes::U r = draw(d, Lanes::iota() + (counter + std::uint32_t(i)));
                std::memcpy(random + 4 * i, &r, sizeof r);
            }
        }
    }

    template <size_t S>
    ADAPTK_HD static void encode_part(const float* x, std::uint8_t* y, float of_block, Lanes::U added,
                                      const std::uint8_t* random) {
        const Lanes::F factor = Lanes::all(of_block);
        for (size_t i = 0; i < coded_part; i += 4 * Lanes::count) {
            Lanes::U out[4];
            for (size_t k = 0; k < 4; ++k) {
                const size_t j = i + k * Lanes::count;
                if constexpr (random_bits_of<CodesOf<R, S>>() > 0) {
                    out[k] = CodesOf<R, S>::template encode_finite<Lanes>(Lanes::load(x + j), factor, added,
                                                                          Lanes::load(random + j) << 12);
                } else {
                    out[k] = Linear8::encode<Lanes, true>(Lanes::load(x + j), factor, Lanes::all(0u));
                }
            }
            Lanes::store_four(y + i, out);
        }
    }

    // Any block by itself: the slow way.
    template <size_t S> void encode_alone(const float* x, size_t at) const {
        using F = CodesOf<R, S>;
        const CodedState& s = piece.state[S];
        if (random_bits_of<F>() > 0 && !s.stochastic) {
            encode<LogarithmicNearest8>(x, codes(S, at), s.scales - piece.first / std::int64_t(coded_block),
                                        element(at), coded_block, s.key);
        } else {
            encode<F>(x, codes(S, at), s.scales - piece.first / std::int64_t(coded_block), element(at), coded_block,
                      s.key);
        }
    }
    template <size_t S> void decode_alone(float* x, size_t at) const {
        decode<CodesOf<R, S>, float>(codes(S, at), piece.state[S].scales - piece.first / std::int64_t(coded_block),
                                     element(at), x, coded_block);
    }
    void alone(const Coefficients& c, size_t at, Block& x) const {
        Floats f;
        decode_block_of_floats(at, f);
        (decode_alone<I>(x[I], at), ...);
        float* const all[states] = {x[I]...};
        update(c, coded_block, f.p, f.g, all);
        encode_block_of_floats(at, f);
        (encode_alone<I>(x[I], at), ...);
    }

    // By value: what is stored to may not be the coefficients.
    void run(const Coefficients c) const {
        // What rounds, beside random bits: halves, of what is rounded to nearest.
        const Lanes::U added[states] = {
            Lanes::all((piece.state[I].stochastic ? 0x800u : 0u) - LogarithmicStochastic8::smallest_bits)...};
        alignas(64) std::uint8_t random[states][coded_part];
        std::memset(random, 0x80, sizeof random);
        alignas(64) Block scratch[2];
        alignas(64) std::uint8_t unused[coded_block];
        float factor[states] = {};
        bool pending = false;  // whether the block before has to be encoded
        bool rare[states] = {};
        for (size_t at = 0; at < piece.n; at += coded_block) {
            Block& now = scratch[at / coded_block % 2];
            Block& last = scratch[(at / coded_block + 1) % 2];
            piece.ask_for_memory(at, coded_block);
            // Non-finite elements have codes of their own.
            const bool special =
                (Lanes::any_byte(codes(I, at), std::uint8_t(CodesOf<R, I>::not_finite), coded_block) || ...);
            if (special || !pending) {
                if (pending) (encode_alone<I>(last[I], at - coded_block), ...);
                pending = false;
            }
            if (special) {
                alone(c, at, now);
                continue;
            }
            if (!pending) std::memset(last, 0, sizeof last);
            Lanes::I most[states] = {};
            std::uint8_t* const target[states] = {(pending ? codes(I, at - coded_block) : unused)...};
            Floats f;
            decode_block_of_floats(at, f);
            const std::uint8_t* const from[states] = {codes(I, at)...};
            const Lanes::F scales[states] = {Lanes::all(*scale(I, at))...};
            for (size_t i = 0; i < coded_block; i += coded_part) {
                (draw_for<I>(element(at) - std::int64_t(coded_block) + std::int64_t(i), random[I]), ...);
                for (size_t k = i; k < i + coded_part; k += Lanes::count)
                    (Lanes::store(now[I] + k,
                                  CodesOf<R, I>::template decode<Lanes, true>(load_codes<I>(from[I] + k), scales[I])),
                     ...);
                float* const parts[states] = {now[I] + i...};
                update(c, coded_part, f.p + i, f.g + i, parts);
                for (size_t k = i; k < i + coded_part; k += Lanes::count)
                    ((most[I] = Lanes::larger(most[I], Lanes::I(Lanes::bits(Lanes::load(now[I] + k)) & 0x7fffffffu))),
                     ...);
                (encode_part<I>(last[I] + i, target[I] + i, factor[I], added[I], random[I]), ...);
            }
            encode_block_of_floats(at, f);
            if (pending) ((rare[I] ? encode_alone<I>(last[I], at - coded_block) : void()), ...);
            ((factor[I] = measure<I>(Lanes::largest(most[I]), *scale(I, at), rare[I])), ...);
            pending = true;
        }
        if (!pending) return;
        Block& last = scratch[(piece.n / coded_block + 1) % 2];
        (encode_alone<I>(last[I], piece.n - coded_block), ...);
    }

  private:
    template <size_t S> ADAPTK_HD static Lanes::U load_codes(const std::uint8_t* x) {
        return Lanes::load(reinterpret_cast<const typename CodesOf<R, S>::Element*>(x));
    }
    // The factor of a block; or `rare`, if it has to be encoded alone, with its scale.
    template <size_t S> ADAPTK_HD static float measure(std::uint32_t most, float& scale, bool& rare) {
        const float magnitude = from_bits(most);
        rare = !(most < infinity_bits && (magnitude >= CodesOf<R, S>::least_scale || most == 0));
        if (rare) return 0.0f;
        scale = magnitude;
        return CodesOf<R, S>::factor(magnitude);
    }
};

template <class R> void run_coded(const void* coefficients, bool coupled, const CodedPiece& piece) {
    const CodedRule<R, std::make_index_sequence<R::states.size()>> rule{coupled, piece};
    rule.run(*static_cast<const StepCoefficients<R, float>*>(coefficients));
}

template <class R> constexpr CodedKernel coded_kernel_of() {
    using K = kernel_of_t<R>;
    static_assert(std::equal(R::states.begin(), R::states.end(), K::states.begin(), K::states.end(),
                             [](const State& a, const State& b) { return a.nonnegative == b.nonnegative; }));
    if constexpr (K::states.size() > 0) {
        return run_coded<K>;
    } else {
        return nullptr;
    }
}
#else
template <class R> constexpr CodedKernel coded_kernel_of() { return nullptr; }
#endif

}  // namespace
}  // namespace adaptk::detail
