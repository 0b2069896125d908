// Rules beside buffers that are stored in 16 bits or as `8bit` says: a part of each kernel object (kernels.cpp) with
// wide vectors.
//
// Decoding, updating and encoding in one loop over few elements cost less than one after the other over many: the
// processor waits for divisions and roots in most rules, and converts what is beside them in the meantime, as far as it
// looks ahead: some hundred instructions. With 64 elements bfloat16 cost Adam 0.1 ns a parameter in the cache beside
// float32's 0.5, with 256 it cost 0.3 (AVX-512).
//
// The scale of a block of 8-bit codes is known when all of it is updated; so what is encoded beside a block is the
// block before.
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

constexpr size_t stored_block = 128;
// Elements that are decoded, updated and encoded together: a multiple of those that share their draws.
constexpr size_t stored_part = 64;
// How many elements memory is asked for before it is used.
constexpr size_t stored_ahead = 512;
static_assert(stored_part % draw_group<8> == 0 && stored_part % draw_group<16> == 0 && stored_block % stored_part == 0);

template <class R, size_t I>
using CodesOf = std::conditional_t<R::states[I].nonnegative, LogarithmicStochastic8, Linear8>;

template <class R, class States> struct StoredRule;

template <class R, size_t... I> struct StoredRule<R, std::index_sequence<I...>> {
    static constexpr size_t states = sizeof...(I);
    static constexpr size_t arrays = states > 0 ? states : 1;
    using Coefficients = StepCoefficients<R, float>;
    using Block = float[arrays][stored_block];
    static_assert(((CodesOf<R, I>::block == stored_block) && ...));

    const bool coupled;
    const StoredPiece& piece;

    const StoredBuffer& param() const { return piece.buffer[0]; }
    const StoredBuffer& grad() const { return piece.buffer[1]; }
    const StoredBuffer& state(size_t s) const { return piece.buffer[2 + s]; }
    std::uint8_t* codes(size_t s, size_t at) const { return static_cast<std::uint8_t*>(state(s).data) + at; }
    float* scale(size_t s, size_t at) const {
        return static_cast<float*>(state(s).side) + std::size_t(element(at)) / stored_block;
    }
    std::int64_t element(size_t at) const { return piece.first + std::int64_t(at); }

    // Asks for the part that follows so many elements behind. Each in as few instructions as it can be: the more of
    // them are between two parts, the less of the next one is under way beside this one's divisions.
    template <size_t Bytes> ADAPTK_HD static void ask_for_memory(const void* p) {
        prefetch<CacheLevel::second>(p, stored_ahead * Bytes, stored_part * Bytes);
    }

    // Part of a buffer as float: where it is, or decoded into `scratch`.
    ADAPTK_HD float* decode_part(const StoredBuffer& b, size_t at, float* scratch) const {
        const auto* const half = static_cast<const std::uint16_t*>(b.data) + at;
        switch (b.as) {
        case StoredAs::float32: {
            auto* const x = static_cast<float*>(b.data) + at;
            ask_for_memory<4>(x);
            return x;
        }
        case StoredAs::bfloat16:
        case StoredAs::bfloat16_sr:
            ask_for_memory<2>(half);
            for (size_t i = 0; i < stored_part; i += pair) decode_pair(half + i, scratch + i);
            break;
        case StoredAs::float16:
            ask_for_memory<2>(half);
            decode_vectors<Float16>(half, scratch, stored_part);
            break;
        default: decode_other(b, at, scratch, stored_part);
        }
        return scratch;
    }
    // `x` is what decode_part returned.
    ADAPTK_HD void encode_part(const StoredBuffer& b, size_t at, const float* x) const {
        auto* const half = static_cast<std::uint16_t*>(b.data) + at;
        switch (b.as) {
        case StoredAs::bfloat16:
            for (size_t i = 0; i < stored_part; i += pair)
                if (!encode_pair(x + i, half + i)) return encode_other(b, at, x, stored_part);
            break;
        case StoredAs::bfloat16_sr: {
            static_assert(pair == Lanes::count * elements_per_draw<16>);
            const Draws d = draws_from<16>(b.key, element(at));
            const std::uint32_t counter = draw_counter<16>(element(at));
            for (size_t i = 0; i < stored_part; i += pair) {
                const Lanes::U random = draw(d, Lanes::iota() + (counter + std::uint32_t(i / elements_per_draw<16>)));
                if (!encode_pair(x + i, half + i, random)) return encode_other(b, at, x, stored_part);
            }
            break;
        }
        case StoredAs::float32: break;
        default: encode_other(b, at, x, stored_part);
        }
    }
    // The same of a param, which may have its lost bits beside it.
    std::int16_t* lost(size_t at) const { return static_cast<std::int16_t*>(param().side) + element(at); }
    ADAPTK_HD float* decode_param(size_t at, float* scratch) const {
        if (param().as != StoredAs::remainder16) return decode_part(param(), at, scratch);
        const auto* const half = static_cast<const std::uint16_t*>(param().data) + at;
        const std::int16_t* const beside = lost(at);
        ask_for_memory<2>(half);
        ask_for_memory<2>(beside);
        for (size_t i = 0; i < stored_part; i += Lanes::count)
            Lanes::store(scratch + i,
                         BFloat16Remainder16::decode<Lanes>(Lanes::load(half + i), Lanes::load(beside + i)));
        return scratch;
    }
    ADAPTK_HD void encode_param(size_t at, const float* x) const {
        if (param().as != StoredAs::remainder16) return encode_part(param(), at, x);
        auto* const half = static_cast<std::uint16_t*>(param().data) + at;
        std::int16_t* const beside = lost(at);
        for (size_t i = 0; i < stored_part; i += Lanes::count) {
            const auto split = BFloat16Remainder16::encode<Lanes>(Lanes::load(x + i));
            Lanes::store(half + i, split.code);
            Lanes::store(beside + i, split.side);
        }
    }
    // Any elements of any format.
    void decode_other(const StoredBuffer& b, size_t at, float* x, size_t n) const {
        b.decode(b.at(at), b.side, element(at), x, n);
    }
    void encode_other(const StoredBuffer& b, size_t at, const float* x, size_t n) const {
        b.encode(x, b.at(at), b.side, element(at), n, b.key);
    }

    ADAPTK_HD void update(const Coefficients& c, size_t n, float* p, const float* g, float* const (&s)[arrays]) const {
        if (coupled) {
            rule_run<R, float, true, I...>(c, n, p, g, s[I]...);
        } else {
            rule_run<R, float, false, I...>(c, n, p, g, s[I]...);
        }
    }

    template <size_t S> ADAPTK_HD void draw_for(std::int64_t first, std::uint8_t* random) const {
        if constexpr (random_bits_of<CodesOf<R, S>>() > 0) {
            if (!state(S).stochastic) return;
            const Draws d = draws_from<8>(state(S).key, first);
            const std::uint32_t counter = draw_counter<8>(first);
            for (size_t i = 0; i < 16; i += Lanes::count) {
                const Lanes::U r = draw(d, Lanes::iota() + (counter + std::uint32_t(i)));
                std::memcpy(random + 4 * i, &r, sizeof r);
            }
        }
    }

    template <size_t S>
    ADAPTK_HD static void encode_codes(const float* x, std::uint8_t* y, float of_block, Lanes::U added,
                                       const std::uint8_t* random) {
        const Lanes::F factor = Lanes::all(of_block);
        for (size_t i = 0; i < stored_part; i += 4 * Lanes::count) {
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

    // States of 16 bits or of float32.
    void run_halves(const Coefficients c) const {
        alignas(64) float params[stored_part], grads[stored_part];
        [[maybe_unused]] alignas(64) float scratch[arrays][stored_part];
        for (size_t at = 0; at < piece.n; at += stored_part) {
            float* const p = decode_param(at, params);
            const float* const g = decode_part(grad(), at, grads);
            float* const x[arrays] = {decode_part(state(I), at, scratch[I])...};
            update(c, stored_part, p, g, x);
            (encode_part(state(I), at, x[I]), ...);
            encode_param(at, p);
        }
    }

    // A block of codes by itself: the slow way.
    template <size_t S> void encode_alone(const float* x, size_t at) const {
        encode_other(state(S), at, x, stored_block);
    }
    void alone(const Coefficients& c, size_t at, Block& x) const {
        alignas(64) float params[stored_block], grads[stored_block];
        (decode_other(state(I), at, x[I], stored_block), ...);
        for (size_t i = 0; i < stored_block; i += stored_part) {
            float* const p = decode_param(at + i, params);
            float* const all[arrays] = {x[I] + i...};
            update(c, stored_part, p, decode_part(grad(), at + i, grads), all);
            encode_param(at + i, p);
        }
        (encode_alone<I>(x[I], at), ...);
    }

    // States of codes. The coefficients by value: what is stored to may not be they.
    void run_codes(const Coefficients c) const {
        // What rounds, beside random bits: halves, of what is rounded to nearest.
        const Lanes::U added[arrays] = {
            Lanes::all((state(I).stochastic ? 0x800u : 0u) - LogarithmicStochastic8::smallest_bits)...};
        alignas(64) std::uint8_t random[arrays][stored_part];
        std::memset(random, 0x80, sizeof random);
        alignas(64) float params[stored_part], grads[stored_part];
        alignas(64) Block scratch[2];
        alignas(64) std::uint8_t unused[stored_block];
        float factor[arrays] = {};
        bool pending = false;  // whether the block before has to be encoded
        bool rare[arrays] = {};
        for (size_t at = 0; at < piece.n; at += stored_block) {
            Block& now = scratch[at / stored_block % 2];
            Block& last = scratch[(at / stored_block + 1) % 2];
            // Non-finite elements have codes of their own.
            const bool special =
                (Lanes::any_byte(codes(I, at), std::uint8_t(CodesOf<R, I>::not_finite), stored_block) || ...);
            if (special) {
                if (pending) (encode_alone<I>(last[I], at - stored_block), ...);
                pending = false;
                alone(c, at, now);
                continue;
            }
            if (!pending) std::memset(last, 0, sizeof last);
            Lanes::I most[arrays] = {};
            std::uint8_t* const target[arrays] = {(pending ? codes(I, at - stored_block) : unused)...};
            const std::uint8_t* const from[arrays] = {codes(I, at)...};
            const Lanes::F scales[arrays] = {Lanes::all(*scale(I, at))...};
            for (size_t i = 0; i < stored_block; i += stored_part) {
                (ask_for_memory<1>(from[I] + i), ...);
                (draw_for<I>(element(at) - std::int64_t(stored_block) + std::int64_t(i), random[I]), ...);
                for (size_t k = i; k < i + stored_part; k += Lanes::count)
                    (Lanes::store(now[I] + k,
                                  CodesOf<R, I>::template decode<Lanes, true>(load_codes<I>(from[I] + k), scales[I])),
                     ...);
                float* const p = decode_param(at + i, params);
                const float* const g = decode_part(grad(), at + i, grads);
                float* const parts[arrays] = {now[I] + i...};
                update(c, stored_part, p, g, parts);
                encode_param(at + i, p);
                for (size_t k = i; k < i + stored_part; k += Lanes::count)
                    ((most[I] = Lanes::larger(most[I], Lanes::I(Lanes::bits(Lanes::load(now[I] + k)) & 0x7fffffffu))),
                     ...);
                (encode_codes<I>(last[I] + i, target[I] + i, factor[I], added[I], random[I]), ...);
            }
            if (pending) ((rare[I] ? encode_alone<I>(last[I], at - stored_block) : void()), ...);
            ((factor[I] = measure<I>(Lanes::largest(most[I]), *scale(I, at), rare[I])), ...);
            pending = true;
        }
        if (pending) (encode_alone<I>(scratch[(piece.n / stored_block + 1) % 2][I], piece.n - stored_block), ...);
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

template <class R> void run_stored(const void* coefficients, bool coupled, const StoredPiece& piece) {
    const StoredRule<R, std::make_index_sequence<R::states.size()>> rule{coupled, piece};
    const auto& c = *static_cast<const StepCoefficients<R, float>*>(coefficients);
    if constexpr (R::states.size() > 0)
        if (piece.buffer[2].as == StoredAs::codes) return rule.run_codes(c);
    rule.run_halves(c);
}

template <class R> constexpr StoredKernel stored_kernel_of() {
    using K = kernel_of_t<R>;
    static_assert(std::equal(R::states.begin(), R::states.end(), K::states.begin(), K::states.end(),
                             [](const State& a, const State& b) { return a.nonnegative == b.nonnegative; }));
    return run_stored<K>;
}
#else
template <class R> constexpr StoredKernel stored_kernel_of() { return nullptr; }
#endif

}  // namespace
}  // namespace adaptk::detail
