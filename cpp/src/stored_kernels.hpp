// Steps of rules whose buffers are stored in 16 bits or in the formats of `8bit`: a part of each kernel object
// (kernels.cpp) with wide vectors.
//
// Decoding, updating and encoding few elements at a time is faster than three loops over many. In most rules the
// processor waits for divisions and roots. Meanwhile it executes conversions out of order, but only those among the
// next hundred instructions or so. In the cache, bfloat16 cost Adam 0.1 ns per parameter with 64 elements at a time,
// beside float32's 0.5, and 0.3 ns with 256 (AVX-512).
//
// The scale of a block of 8-bit codes is known only after the whole block is updated. So while one block is updated,
// the block before it is encoded.
#pragma once

#include "format_kernels.hpp"
#include "kernel_table.hpp"

#include "adaptk/rule_loop.hpp"
#include "adaptk/rules.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

namespace adaptk::detail {
namespace {

#if defined(ADAPTK_GNU) && defined(__AVX2__)

constexpr size_t stored_block = 128;
// Elements that are decoded, updated and encoded together: a multiple of those that share their draws.
constexpr size_t stored_part = 64;
// The distance of prefetches, in elements.
constexpr size_t stored_ahead = 1024;
static_assert(stored_part % draw_group<8> == 0 && stored_part % draw_group<16> == 0 && stored_block % stored_part == 0);

template <class R, size_t I>
using CodesOf = std::conditional_t<R::states[I].nonnegative, LogarithmicStochastic8, Linear8>;

template <class R, class States> struct StoredRule;

template <class R, size_t... I> struct StoredRule<R, std::index_sequence<I...>> {
    static constexpr size_t states = sizeof...(I);
    static constexpr size_t arrays = states > 0 ? states : 1;
    using Coefficients = StepCoefficients<R, float>;
    using Block = float[arrays][stored_block];
    typedef std::uint16_t Words __attribute__((vector_size(lane_bytes)));
    template <size_t S> static constexpr bool linear = std::is_same_v<CodesOf<R, S>, Linear8>;
    static_assert(((CodesOf<R, I>::block == stored_block) && ...));

    const bool coupled;
    const float scale_of_grad, decay;  // if coupled
    const StoredPiece& piece;

    const StoredBuffer& param() const { return piece.buffer[0]; }
    const StoredBuffer& grad() const { return piece.buffer[1]; }
    const StoredBuffer& state(size_t s) const { return piece.buffer[2 + s]; }
    std::uint8_t* codes(size_t s, size_t at) const { return static_cast<std::uint8_t*>(state(s).data) + at; }
    float* scale(size_t s, size_t at) const {
        return static_cast<float*>(state(s).side) + std::size_t(element(at)) / stored_block;
    }
    std::int64_t element(size_t at) const { return piece.first + std::int64_t(at); }

    // Prefetches the part at this distance, in as few instructions as possible: the more instructions lie between two
    // parts, the less of the next one is executed while divisions of this one run.
    template <size_t Bytes> ADAPTK_HD static void prefetch_ahead(const void* p) {
        prefetch<CacheLevel::second>(p, stored_ahead * Bytes, stored_part * Bytes);
    }

    // A part of a buffer as floats: in place if it is float32, else decoded into `scratch`.
    ADAPTK_HD float* decode_part(const StoredBuffer& b, size_t at, float* scratch) const {
        const auto* const half = static_cast<const std::uint16_t*>(b.data) + at;
        switch (b.as) {
        case StoredAs::float32: {
            auto* const x = static_cast<float*>(b.data) + at;
            prefetch_ahead<4>(x);
            return x;
        }
        case StoredAs::bfloat16:
        case StoredAs::bfloat16_sr:
            prefetch_ahead<2>(half);
            for (size_t i = 0; i < stored_part; i += pair) decode_pair(half + i, scratch + i);
            break;
        case StoredAs::float16:
            prefetch_ahead<2>(half);
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
            if (any_nan(x, stored_part)) return encode_other(b, at, x, stored_part);
            for (size_t i = 0; i < stored_part; i += pair) encode_pair(x + i, half + i);
            break;
        case StoredAs::bfloat16_sr: {
            if (any_nan(x, stored_part)) return encode_other(b, at, x, stored_part);
            static_assert(pair == MixedDraws<16>::elements);
            const Draws d = draws_from<16>(b.key, element(at));
            const std::uint32_t counter = draw_counter<16>(element(at));
            for (size_t i = 0; i < stored_part; i += pair)
                encode_pair(x + i, half + i,
                            MixedDraws<16>::draw(d, counter + std::uint32_t(i / elements_per_draw<16>)));
            break;
        }
        case StoredAs::float32: break;
        default: encode_other(b, at, x, stored_part);
        }
    }
    // The same for the param, which may have its lost bits in a second buffer.
    std::int16_t* lost(size_t at) const { return static_cast<std::int16_t*>(param().side) + element(at); }
    ADAPTK_HD float* decode_param(size_t at, float* scratch) const {
        if (param().as != StoredAs::remainder16) return decode_part(param(), at, scratch);
        const auto* const half = static_cast<const std::uint16_t*>(param().data) + at;
        const std::int16_t* const beside = lost(at);
        prefetch_ahead<2>(half);
        prefetch_ahead<2>(beside);
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
    // Any number of elements of any format.
    void decode_other(const StoredBuffer& b, size_t at, float* x, size_t n) const {
        b.decode(b.at(at), b.side, element(at), x, n);
    }
    void encode_other(const StoredBuffer& b, size_t at, const float* x, size_t n) const {
        b.encode(x, b.at(at), b.side, element(at), n, b.key);
    }

    // A part of the gradient. Coupled decay is added here and not in the loops, so that each loop contains the formula
    // once. The gradient is then scaled here too; the loops multiply by 1, which changes no bit.
    ADAPTK_HD const float* decode_grad(size_t at, const float* p, float* scratch) const {
        const float* const g = decode_part(grad(), at, scratch);
        if (!coupled) return g;
        for (size_t i = 0; i < stored_part; ++i) scratch[i] = scale_of_grad * g[i] + decay * p[i];
        return scratch;
    }
    ADAPTK_HD static void update(const Coefficients& c, size_t n, float* p, const float* g, float* const (&s)[arrays]) {
        rule_run<R, float, false, I...>(c, n, p, g, s[I]...);
    }

    // What the parts of a block have in common when they are encoded.
    template <size_t S> struct Encoder {
        bool stochastic;
        Lanes::F factor;
        // Added before bits are dropped: for stochastic rounding, half of the random bits' last place. Logarithmic
        // codes are counted from the smallest one, so its bits are subtracted.
        Lanes::U added;

        ADAPTK_HD Encoder(const StoredBuffer& state, float of_block)
            : stochastic(!linear<S> && state.stochastic), factor(Lanes::all(of_block)),
              added(Lanes::all((stochastic ? 0x800u : 0u) - LogarithmicStochastic8::smallest_bits)) {}

        // A vector of finite elements before packing: linear codes, or logarithmic ones with 8 more bits, to which the
        // random bits are added. Elements with logarithmic codes are not negative; packing makes negative numbers 0.
        ADAPTK_HD Lanes::U operator()(const float* x) const {
            const Lanes::F scaled = Lanes::load(x) * factor;
            return linear<S> ? Lanes::rounded(scaled) : Lanes::U(Lanes::I(Lanes::bits(scaled) + added) >> 12);
        }
    };
    template <size_t S>
    ADAPTK_HD void store_codes(std::uint8_t* y, const Lanes::U (&x)[4], bool stochastic, std::int64_t first) const {
        if constexpr (linear<S>) {
            Lanes::store_mixed(y,
                               Lanes::signed_bytes(Lanes::signed_words(x[0], x[1]), Lanes::signed_words(x[2], x[3])));
        } else {
            Lanes::U random = Lanes::all(0x80808080u);
            if (stochastic) random = MixedDraws<8>::draw(draws_from<8>(state(S).key, first), draw_counter<8>(first));
            const auto code = [](Lanes::U words, Lanes::U bits) { return Lanes::U((Words(words) + Words(bits)) >> 8); };
            Lanes::store_mixed(
                y, Lanes::unsigned_bytes(code(Lanes::unsigned_words(x[0], x[1]), Lanes::first_words(random)),
                                         code(Lanes::unsigned_words(x[2], x[3]), Lanes::last_words(random))));
        }
    }

    // Steps with states of 16 bits or float32.
    void run_halves(const Coefficients c) const {
        alignas(64) float params[stored_part], grads[stored_part];
        [[maybe_unused]] alignas(64) float scratch[arrays][stored_part];
        for (size_t at = 0; at < piece.n; at += stored_part) {
            float* const p = decode_param(at, params);
            const float* const g = decode_grad(at, p, grads);
            float* const x[arrays] = {decode_part(state(I), at, scratch[I])...};
            update(c, stored_part, p, g, x);
            (encode_part(state(I), at, x[I]), ...);
            encode_param(at, p);
        }
    }

    // Updates a block by itself, which is slower. It has its own copy of the coefficients: if it had the address of the
    // loop's, the compiler would have to reload those.
    template <size_t S> void encode_alone(const float* x, size_t at) const {
        encode_other(state(S), at, x, stored_block);
    }
    [[gnu::noinline]] void alone(const Coefficients c, size_t at, Block& x) const {
        alignas(64) float params[stored_block], grads[stored_block];
        (decode_other(state(I), at, x[I], stored_block), ...);
        for (size_t i = 0; i < stored_block; i += stored_part) {
            float* const p = decode_param(at + i, params);
            const float* const g = decode_grad(at + i, p, grads);
            void* const all[] = {p, const_cast<float*>(g), x[I] + i...};
            step<R, float, false>(&c, all, stored_part);
            encode_param(at + i, p);
        }
        (encode_alone<I>(x[I], at), ...);
    }

    // Steps with states of codes. The coefficients are passed by value, so that stores cannot change them.
    void run_codes(const Coefficients c) const {
        alignas(64) float params[stored_part], grads[stored_part];
        alignas(64) Block scratch[2];
        alignas(64) std::uint8_t unused[stored_block];
        Factors factors{};
        bool pending = false;  // whether the block before is still to be encoded
        for (size_t at = 0; at < piece.n; at += stored_block) {
            Block& now = scratch[at / stored_block % 2];
            Block& last = scratch[(at / stored_block + 1) % 2];
            // A block that contains the code of a non-finite element is updated by itself.
            ByteSearch special;
            (special.look(codes(I, at), std::uint8_t(CodesOf<R, I>::not_finite), stored_block), ...);
            if (special.found()) {
                if (pending) (encode_alone<I>(last[I], at - stored_block), ...);
                pending = false;
                alone(c, at, now);
                continue;
            }
            if (!pending) std::memset(last, 0, sizeof last);
            Lanes::U most[arrays] = {};
            std::uint8_t* const target[arrays] = {(pending ? codes(I, at - stored_block) : unused)...};
            const std::uint8_t* const from[arrays] = {codes(I, at)...};
            const Lanes::F scales[arrays] = {Lanes::all(*scale(I, at))...};
            const auto encoders = std::make_tuple(Encoder<I>(state(I), factors[I])...);
            for (size_t i = 0; i < stored_block; i += stored_part) {
                (prefetch_ahead<1>(from[I] + i), ...);
                float* const p = decode_param(at + i, params);
                const float* const g = decode_grad(at + i, p, grads);
                for (size_t k = i; k < i + stored_part; k += 4 * Lanes::count) {
                    Lanes::U out[arrays][4];
                    ADAPTK_UNROLL
                    for (size_t q = 0; q < 4; ++q) {
                        const size_t j = k + q * Lanes::count;
                        alignas(64) float x[arrays][Lanes::count];
                        (Lanes::store(
                             x[I], CodesOf<R, I>::template decode<Lanes, true>(load_codes<I>(from[I] + j), scales[I])),
                         ...);
                        float* const vectors[arrays] = {x[I]...};
                        update(c, Lanes::count, p + (j - i), g + (j - i), vectors);
                        ((most[I] = Lanes::larger(most[I], magnitude<I>(Lanes::load(x[I])))), ...);
                        ((out[I][q] = std::get<I>(encoders)(last[I] + j)), ...);
                        (Lanes::store(now[I] + j, Lanes::load(x[I])), ...);
                    }
                    (store_codes<I>(target[I] + k, out[I], std::get<I>(encoders).stochastic,
                                    element(at) + std::int64_t(k) - std::int64_t(stored_block)),
                     ...);
                }
                encode_param(at + i, p);
            }
            pending = measure(most, at, factors);
            if (!pending) (encode_alone<I>(now[I], at), ...);
        }
        if (pending) (encode_alone<I>(scratch[(piece.n / stored_block + 1) % 2][I], piece.n - stored_block), ...);
    }

  private:
    template <size_t S> ADAPTK_HD static Lanes::U load_codes(const std::uint8_t* x) {
        return Lanes::load(reinterpret_cast<const typename CodesOf<R, S>::Element*>(x));
    }
    // The bits of a number's magnitude. States with logarithmic codes keep the sign bit: a negative number then counts
    // as not finite.
    template <size_t S> ADAPTK_HD static Lanes::U magnitude(Lanes::F x) {
        return linear<S> ? Lanes::bits(x) & 0x7fffffffu : Lanes::bits(x);
    }

    // Sets the scales and the factors of a block from its largest magnitudes. False if the block must be encoded by
    // itself.
    struct alignas(16) Factors {
        float of[4];
        ADAPTK_HD float operator[](size_t i) const { return of[i]; }
    };
    ADAPTK_HD bool measure(const Lanes::U (&most)[arrays], size_t at, Factors& factors) const {
        static_assert(arrays <= 4);
        constexpr size_t last = arrays - 1;
        __m128i largest = Lanes::largest_of_both(most[0], most[std::min<size_t>(1, last)]);
        if constexpr (arrays > 2) largest = _mm_unpacklo_epi64(largest, Lanes::largest_of_both(most[2], most[last]));
        const __m128i zero = _mm_cmpeq_epi32(largest, _mm_setzero_si128());
        alignas(16) constexpr float greatest[4] = {(linear<I> ? 127.0f : 1.0f)...};
        const __m128 divisor =
            _mm_or_ps(_mm_castsi128_ps(largest), _mm_and_ps(_mm_castsi128_ps(zero), _mm_set1_ps(1.0f)));
        const __m128 quotients = _mm_div_ps(_mm_load_ps(greatest), divisor);
        _mm_store_ps(factors.of, _mm_andnot_ps(_mm_castsi128_ps(zero), quotients));
        alignas(16) std::uint32_t magnitudes[4];
        _mm_store_si128(reinterpret_cast<__m128i*>(magnitudes), largest);
        const std::uint32_t least = to_bits(Linear8::least_scale);
        bool usual = true;
        ((usual = usual && (magnitudes[I] == 0 || magnitudes[I] - least < infinity_bits - least)), ...);
        if (usual) (std::memcpy(scale(I, at), &magnitudes[I], sizeof magnitudes[I]), ...);
        return usual;
    }
};

template <class R> void run_stored(const void* coefficients, bool coupled, const StoredPiece& piece) {
    auto c = *static_cast<const StepCoefficients<R, float>*>(coefficients);
    const StoredRule<R, std::make_index_sequence<R::states.size()>> rule{coupled, c.common.grad_scale, c.common.decay,
                                                                         piece};
    if (coupled) c.common.grad_scale = c.common.shrink = 1.0f;
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
