// Buffers in any storage format, as a lane of a kernel sees them: loaded, decoded, encoded, stored. What is said of a
// format here is said of all that have its element size, or are of its kind (adaptk/format.hpp).
#pragma once

#include "adaptk/formats.hpp"
#include "adaptk/rounding.hpp"
#include "vectors.hpp"

#include <bit>
#include <concepts>
#include <type_traits>
#include <utility>

namespace adaptk::cuda {

// Lists of formats, and code for the one that a number means.

template <class F, class L> struct NumberOf;
template <class F, class... G> struct NumberOf<F, FormatList<G...>> {
    static constexpr std::uint8_t find() {
        std::uint8_t i = 0, found = 255;
        ((std::is_same_v<F, G> ? found = i++ : i++), ...);
        return found;
    }
};
// The number of a format (detail::Format): its place in the list.
template <class F> inline constexpr std::uint8_t number_of = NumberOf<F, Formats>::find();

template <class A, class B> struct Joined;
template <class... F, class... G> struct Joined<FormatList<F...>, FormatList<G...>> {
    using type = FormatList<F..., G...>;
};
template <template <class> class Wanted, class L> struct Chosen {
    using type = FormatList<>;
};
template <template <class> class Wanted, class F, class... Rest> struct Chosen<Wanted, FormatList<F, Rest...>> {
    using Own = std::conditional_t<Wanted<F>::value, FormatList<F>, FormatList<>>;
    using type = typename Joined<Own, typename Chosen<Wanted, FormatList<Rest...>>::type>::type;
};

// Gradients are of any format whose elements stand by themselves; they are converted to what is computed in.
template <class F> struct IsGradient : std::bool_constant<ElementFormat<F>> {};
using GradientFormats = typename Chosen<IsGradient, Formats>::type;

// What is computed in T.
template <class T> struct Computes {
    template <class F>
    struct OfStates : std::bool_constant<is_of_states<F>() && std::is_same_v<typename F::Compute, T>> {};
    template <class F>
    struct OfParams : std::bool_constant<!BlockFormat<F> && std::is_same_v<typename F::Compute, T>> {};
    template <class F> struct OfAny : std::bool_constant<ElementFormat<F> || std::is_same_v<typename F::Compute, T>> {};
    using States = typename Chosen<OfStates, Formats>::type;
    using Params = typename Chosen<OfParams, Formats>::type;
    using All = typename Chosen<OfAny, Formats>::type;
};

template <class F> struct Tag {
    using type = F;
};

// The first `Count` of a list, and the others.
template <std::size_t Count, class Before, class L> struct Split {
    using First = Before;
    using Last = L;
};
template <std::size_t Count, class... B, class F, class... Rest>
    requires(Count > 0)
struct Split<Count, FormatList<B...>, FormatList<F, Rest...>>
    : Split<Count - 1, FormatList<B..., F>, FormatList<Rest...>> {};

template <class F, class... Rest> ADAPTK_DEVICE bool is_before(FormatList<F, Rest...>, std::uint8_t number) {
    return number < number_of<F>;
}

// Calls run(Tag<F>{}) with the one of the list that has this number; the caller has checked that there is one. A search
// by halves.
template <class... F, class Run>
ADAPTK_DEVICE void with_format(FormatList<F...> list, std::uint8_t number, const Run& run) {
    if constexpr (sizeof...(F) == 1) {
        (run(Tag<F>{}), ...);
    } else {
        using Halves = Split<sizeof...(F) / 2, FormatList<>, decltype(list)>;
        if (is_before(typename Halves::Last{}, number)) {
            with_format(typename Halves::First{}, number, run);
        } else {
            with_format(typename Halves::Last{}, number, run);
        }
    }
}

template <class... F> ADAPTK_DEVICE bool is_one_of(FormatList<F...>, std::uint8_t number) {
    constexpr std::uint32_t all = ((1u << number_of<F>) | ...);
    return ((all >> number) & 1u) != 0;
}

// 0: half a byte.
template <class F> inline constexpr int element_bytes = packed_of<F>() == 1 ? int(sizeof(typename F::Element)) : 0;

// Twice the bytes of an element, as a power of two, by the format's number: three bits for each.
template <class L> inline constexpr std::uint64_t table_of_bytes = 0;
template <class... F>
inline constexpr std::uint64_t table_of_bytes<FormatList<F...>> =
    ((std::uint64_t(std::bit_width(unsigned(element_bytes<F>))) << (3 * number_of<F>)) | ...);
static_assert(3 * Formats::size <= 64);

ADAPTK_DEVICE int bytes_of(std::uint8_t number) {
    constexpr std::uint64_t table = table_of_bytes<Formats>;
    return (1 << (int(table >> (3 * number)) & 7)) >> 1;
}

template <int Bytes, class L> inline constexpr bool any_of_size = false;
template <int Bytes, class... F>
inline constexpr bool any_of_size<Bytes, FormatList<F...>> = ((element_bytes<F> == Bytes) || ...);

template <int Bytes, class L> inline constexpr bool any_smaller_than = false;
template <int Bytes, class... F>
inline constexpr bool any_smaller_than<Bytes, FormatList<F...>> = ((element_bytes<F> < Bytes) || ...);

// A lane's place: in the warp, and the elements of the tile that there are (all of them, but at a tensor's end).
struct Place {
    int lane;
    int left;
    bool full;  // all of them, and on multiples of 16 bytes
};

// Elements of `Bytes` in a lane's vectors: so many in each, so many vectors, and which of the tile the j-th begins at.
template <int Bytes> inline constexpr int in_vector = per_lane;  // of half a byte, and of one
template <int Bytes>
    requires(Bytes > 1)
inline constexpr int in_vector<Bytes> = 16 / Bytes;
template <int Bytes> inline constexpr int vectors_of = per_lane / in_vector<Bytes>;
template <int Bytes> ADAPTK_DEVICE int vector_at(int lane, int j) {
    constexpr int n = in_vector<Bytes>;
    return 16 * (lane / 2) + n * (lane % 2) + 2 * n * j;
}
// Which element of the tile a lane computes the k-th of its own: those of its vectors of the compute type.
template <class T> ADAPTK_DEVICE int element_at(int lane, int k) {
    constexpr int n = vector_size<T>;
    return vector_at<int(sizeof(T))>(lane, k / n) + k % n;
}

// Elements as words.

ADAPTK_DEVICE void load_bytes(Vector& v, int i, const std::uint8_t* p) {
    v.word[i / 4] |= std::uint32_t(__ldcg(reinterpret_cast<const unsigned char*>(p))) << (8 * (i % 4));
}
ADAPTK_DEVICE void load_bytes(Vector& v, int i, const std::uint16_t* p) {
    v.word[i / 2] |= std::uint32_t(__ldcg(reinterpret_cast<const unsigned short*>(p))) << (16 * (i % 2));
}
ADAPTK_DEVICE void load_bytes(Vector& v, int i, const float* p) { v.word[i] = to_bits(__ldcg(p)); }
ADAPTK_DEVICE void load_bytes(Vector& v, int i, const double* p) {
    const double x = __ldcg(p);
    v.word[2 * i] = std::uint32_t(__double2loint(x));
    v.word[2 * i + 1] = std::uint32_t(__double2hiint(x));
}
ADAPTK_DEVICE void store_bytes(const Vector& v, int i, std::uint8_t* p) {
    __stcg(reinterpret_cast<unsigned char*>(p), (unsigned char)(v.word[i / 4] >> (8 * (i % 4))));
}
ADAPTK_DEVICE void store_bytes(const Vector& v, int i, std::uint16_t* p) {
    __stcg(reinterpret_cast<unsigned short*>(p), (unsigned short)(v.word[i / 2] >> (16 * (i % 2))));
}
ADAPTK_DEVICE void store_bytes(const Vector& v, int i, float* p) { __stcg(p, from_bits(v.word[i])); }
ADAPTK_DEVICE void store_bytes(const Vector& v, int i, double* p) {
    __stcg(p, double_of(v.word[2 * i], v.word[2 * i + 1]));
}

template <int Bytes>
using Unit = std::conditional_t<
    Bytes == 8, double,
    std::conditional_t<Bytes == 4, float, std::conditional_t<Bytes == 2, std::uint16_t, std::uint8_t>>>;

// Elements in each of those units.
template <int Bytes> inline constexpr int in_unit = Bytes == 0 ? 2 : 1;

// What a lane loads of a tile, before any of it is used: loads that wait for nothing are under way together. `v` has
// room for vectors of T; a narrower type fills fewer of them.
template <int Bytes, int N>
ADAPTK_DEVICE void load_vectors(Vector (&v)[N], void* base, std::int64_t first, const Place& place) {
    constexpr int n = in_unit<Bytes>;
    auto* const tile_at = at<Unit<Bytes>>(base, first / n);
#pragma unroll
    for (int j = 0; j < vectors_of<Bytes>; ++j) {
        const int e = vector_at<Bytes>(place.lane, j);
        if (place.full) {
            if constexpr (Bytes == 0) {
                v[j] = {{__ldcg(reinterpret_cast<const unsigned*>(tile_at + e / n)), 0, 0, 0}};
            } else if constexpr (Bytes == 1) {
                const uint2 w = __ldcg(reinterpret_cast<const uint2*>(tile_at + e));
                v[j] = {{w.x, w.y, 0, 0}};
            } else {
                v[j] = load_vector(tile_at + e);
            }
        } else {
            v[j] = {};
#pragma unroll
            for (int i = 0; i < in_vector<Bytes>; i += n)
                if (e + i < place.left) load_bytes(v[j], i / n, tile_at + (e + i) / n);
        }
    }
}

template <int Bytes, int N>
ADAPTK_DEVICE void store_vectors(const Vector (&v)[N], void* base, std::int64_t first, const Place& place) {
    constexpr int n = in_unit<Bytes>;
    auto* const tile_at = at<Unit<Bytes>>(base, first / n);
#pragma unroll
    for (int j = 0; j < vectors_of<Bytes>; ++j) {
        const int e = vector_at<Bytes>(place.lane, j);
        if (place.full) {
            if constexpr (Bytes == 0) {
                __stcg(reinterpret_cast<unsigned*>(tile_at + e / n), unsigned(v[j].word[0]));
            } else if constexpr (Bytes == 1) {
                __stcg(reinterpret_cast<uint2*>(tile_at + e), uint2{v[j].word[0], v[j].word[1]});
            } else {
                store_vector(tile_at + e, v[j]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < in_vector<Bytes>; i += n)
                if (e + i < place.left) store_bytes(v[j], i / n, tile_at + (e + i) / n);
        }
    }
}

// Gradients in float64 beside float32 are rounded as they come: a lane has no room for their vectors.
template <int N> ADAPTK_DEVICE void load_wider(Vector (&v)[N], void* base, std::int64_t first, const Place& place) {
#pragma unroll
    for (int k = 0; k < per_lane; ++k) {
        const int e = element_at<float>(place.lane, k);
        set_element(v, k, e < place.left ? float(__ldcg(at<double>(base, first + e))) : 0.0f);
    }
}

// By the size of the format's elements alone, of those of at most `Bytes` that the list has.
template <class T, class List, int Bytes = 8>
ADAPTK_DEVICE void load(Vector (&v)[vectors<T>], void* base, int bytes, std::int64_t first, const Place& place) {
    if constexpr (!any_of_size<Bytes, List>) {
        load<T, List, Bytes / 2>(v, base, bytes, first, place);
    } else if (bytes == Bytes || !any_smaller_than<Bytes, List>) {
        if constexpr (Bytes > int(sizeof(T))) {
            load_wider(v, base, first, place);
        } else {
            load_vectors<Bytes>(v, base, first, place);
        }
    } else if constexpr (any_smaller_than<Bytes, List>) {
        load<T, List, Bytes / 2>(v, base, bytes, first, place);
    }
}

// Codes of up to two bytes, from the order that they are stored in to that of a lane's elements, and back.
template <class List> ADAPTK_DEVICE Vector exchange_codes(const Vector& v, int bytes, int lane) {
    if constexpr (!any_smaller_than<2, List>) {
        return exchange(v, lane);
    } else {
        if constexpr (any_of_size<0, List>)
            if (bytes == 0) return exchange_shortest(v, lane);
        return bytes == 2 ? exchange(v, lane) : exchange_short(v, lane);
    }
}

// The k-th of a lane's elements as the code that it is stored as, from vectors that have been exchanged.
template <class E> ADAPTK_DEVICE std::uint32_t code_of(const Vector& w, int k) {
    constexpr int bits = 8 * int(sizeof(E)), n = 32 / bits;
    const std::uint32_t word = w.word[k / n] >> (bits * (k % n));
    return std::is_signed_v<E> ? std::uint32_t(std::int32_t(E(word))) : word & ((1u << bits) - 1);
}

template <class F> ADAPTK_DEVICE std::uint32_t stored_code(const Vector& w, int k) {
    if constexpr (element_bytes<F> == 0) {
        return (w.word[0] >> (4 * (k ^ 1))) & 15u;
    } else {
        return code_of<typename F::Element>(w, k);
    }
}

template <class F> ADAPTK_DEVICE float decoded(std::uint32_t code, [[maybe_unused]] float scale) {
    if constexpr (BlockFormat<F>) {
        return F::template decode<OneLane>(code, scale);
    } else if constexpr (StochasticFormat<F>) {
        return F::template decode<OneLane>(code);
    } else {
        return float(F::decode(typename F::Element(code)));
    }
}

// Formats of a byte with a code for what is not finite: most blocks have none, and are decoded and encoded without
// asking each element.
template <class F> inline constexpr bool has_finite_blocks = requires(float scale) { F::factor_of_positive(scale); };

// Whether any of the four codes of a word is that of what is not finite. A byte of `z` is zero if so, and then the
// subtraction sets a highest bit that was not set (Warren, Hacker's Delight, section 6-1).
template <class F> ADAPTK_DEVICE bool any_not_finite(std::uint32_t word) {
    const std::uint32_t z = word ^ ((F::not_finite & 0xffu) * 0x01010101u);
    return ((z - 0x01010101u) & ~z & 0x80808080u) != 0;
}

// Lanes that share a block.
template <class F> inline constexpr int lanes_of = int(F::block) / per_lane;

// Formats of a list whose codes are decoded: those of less than four bytes.
template <class F> struct IsNarrow : std::bool_constant<(element_bytes<F> < 4)> {};
template <class L> using Narrow = typename Chosen<IsNarrow, L>::type;

// Words are exchanged, and vectors loaded and stored, by the size of a format's elements; only what is particular to a
// format is compiled for each of them.

template <class F> struct IsSplit : std::bool_constant<SplitFormat<F>> {};
template <class L> using Splits = typename Chosen<IsSplit, L>::type;

// What lies beside the elements of a param, if it is split.
struct Beside {
    void* of_buffer;
    std::int64_t first;
    const Place& place;
};
struct Nothing {};

// The lane's elements, in the order of its vectors of the compute type. `scale`: as load_scale() has it.
template <class List, class T, class Side = Nothing>
ADAPTK_DEVICE void unpack(T (&x)[per_lane], const Vector (&v)[vectors<T>], std::uint8_t format, float scale, int lane,
                          [[maybe_unused]] const Side& beside = {}) {
    const int bytes = bytes_of(format);
    if (bytes >= int(sizeof(T))) {
        // load_wider() has rounded what is wider.
#pragma unroll
        for (int k = 0; k < per_lane; ++k) x[k] = element(v, k, T{});
        return;
    }
    if constexpr (any_of_size<4, List> && sizeof(T) == 8) {
        if (bytes == 4) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const Vector w = exchange(v[j], lane);
#pragma unroll
                for (int i = 0; i < 4; ++i) x[4 * j + i] = T(from_bits(w.word[i]));
            }
            return;
        }
    }
    if constexpr (Narrow<List>::size > 0) {
        Vector w = v[0];
        // Loaded before anything is waited for.
        [[maybe_unused]] Vector lost[1] = {};
        if constexpr (Splits<List>::size > 0) {
            if (is_one_of(Splits<List>{}, format))
                with_format(Splits<List>{}, format, [&]<class F>(Tag<F>) {
                    load_vectors<int(sizeof(typename F::Side))>(lost, beside.of_buffer, beside.first, beside.place);
                });
        }
        // Vectors of float64 hold two elements, which a word of 16 bits holds too: the words that stay go first.
        if constexpr (sizeof(T) == 8) w = {{w.word[0], w.word[2], w.word[1], w.word[3]}};
        w = exchange_codes<List>(w, bytes, lane);
        with_format(Narrow<List>{}, format, [&]<class F>(Tag<F>) {
            if constexpr (SplitFormat<F>) {
                using S = typename F::Side;
                const Vector s = sizeof(S) == 2 ? exchange(lost[0], lane) : exchange_short(lost[0], lane);
#pragma unroll
                for (int k = 0; k < per_lane; ++k)
                    x[k] = F::template decode<OneLane>(code_of<typename F::Element>(w, k), code_of<S>(s, k));
                return;
            } else {
                float all = 0.0f;
                if constexpr (BlockFormat<F>) all = __shfl_sync(0xffffffffu, scale, lane / lanes_of<F> * lanes_of<F>);
                if constexpr (has_finite_blocks<F>) {
                    if (!any_not_finite<F>(w.word[0]) && !any_not_finite<F>(w.word[1])) {
#pragma unroll
                        for (int k = 0; k < per_lane; ++k)
                            x[k] = F::template decode<OneLane, true>(stored_code<F>(w, k), all);
                        return;
                    }
                }
#pragma unroll
                for (int k = 0; k < per_lane; ++k) x[k] = T(decoded<F>(stored_code<F>(w, k), all));
            }
        });
    }
}

// Codes of the lane's elements, as words. Codes are the last bytes of what code(k) is, or of those of one byte the
// one with number `Byte`.
template <class E, int Byte = 0, class Code> ADAPTK_DEVICE Vector packed(const Code& code) {
    Vector w = {};
    if constexpr (sizeof(E) == 2) {
#pragma unroll
        for (int k = 0; k < per_lane; k += 2) w.word[k / 2] = __byte_perm(code(k), code(k + 1), 0x5410);
    } else {
        constexpr unsigned both = unsigned(Byte) | (unsigned(Byte) + 4) << 4;
#pragma unroll
        for (int k = 0; k < per_lane; k += 4)
            w.word[k / 4] = __byte_perm(__byte_perm(code(k), code(k + 1), both),
                                        __byte_perm(code(k + 2), code(k + 3), both), 0x5410);
    }
    return w;
}

// The same of two in a byte, the first in its upper half.
template <class Code> ADAPTK_DEVICE Vector packed_in_halves(const Code& code) {
    Vector w = {};
#pragma unroll
    for (int k = 0; k < per_lane; ++k) w.word[0] |= (code(k) & 15u) << (4 * (k ^ 1));
    return w;
}

// What is known of a stored param or state beside its elements.
struct StateSide {
    void* of_buffer;     // the scales of the tensor's blocks, or lost bits
    std::uint64_t key;   // of its random bits
    std::int64_t first;  // the number of its first element, for those
};

// Random bits for the k-th of a lane's elements; none for a format that rounds to nearest.
template <class F> struct Randomness {
    static constexpr int bits = random_bits_of<F>();
    static constexpr int n = elements_per_draw<bits>;
    static constexpr std::uint32_t mask = (1u << bits) - 1;
    Draws draws;
    std::uint32_t counter;  // of the 16 elements of a pair of lanes
    // A row of another tensor may begin in the middle of a draw, unless it begins with a block: its place there.
    static constexpr bool anywhere = n > 1 && !BlockFormat<F>;
    std::uint32_t within = 0;

    ADAPTK_DEVICE Randomness(const StateSide& side, std::int64_t first, int lane) {
        const std::int64_t of_pair = side.first + first + 16 * (lane / 2);
        draws = draws_from<bits>(side.key, of_pair);
        counter = draw_counter<bits>(of_pair);
        if constexpr (anywhere) within = std::uint32_t(of_pair) % n;
    }
    // All bits of the draw that serves element k.
    ADAPTK_DEVICE std::uint32_t word(int lane, int k) const {
        // Elements that share a draw lie in one vector: the compiler computes it once.
        const int in_pair = element_at<float>(lane, k - k % n) % 16;
        return draw(draws, counter + std::uint32_t(in_pair / n));
    }
    ADAPTK_DEVICE std::uint32_t operator()(int lane, int k) const {
        if constexpr (anywhere) {
            if (within != 0) {
                const std::uint32_t at = within + std::uint32_t(element_at<float>(lane, k) % 16);
                return (draw(draws, counter + at / n) >> (at % n * bits)) & mask;
            }
        }
        return (word(lane, k) >> (k % n * bits)) & mask;
    }
    static_assert(vector_size<float> % n == 0);
};
struct NoRandomness {
    ADAPTK_DEVICE NoRandomness(const StateSide&, std::int64_t, int) {}
    ADAPTK_DEVICE std::uint32_t operator()(int, int) const { return 0; }
};
template <class F> using RandomnessOf = std::conditional_t<(random_bits_of<F>() > 0), Randomness<F>, NoRandomness>;

// The largest magnitude of the finite elements of the block that the lane's are in.
template <class F> ADAPTK_DEVICE float largest_finite(const float (&x)[per_lane]) {
    constexpr int lanes = lanes_of<F>;
    static_assert(lanes >= 2 && lanes <= int(warp) && (lanes & (lanes - 1)) == 0);
    std::uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < per_lane; ++k) {
        const std::uint32_t u = to_bits(x[k]) & 0x7fffffffu;
        if (u < 0x7f800000u && u > most) most = u;
    }
#pragma unroll
    for (int w = 1; w < lanes; w *= 2) {
        const std::uint32_t other = __shfl_xor_sync(0xffffffffu, most, w);
        if (other > most) most = other;
    }
    return from_bits(most);
}

// The largest magnitude of the block, as bits; of more than 0x7f7fffff if not all of its elements are finite.
template <class F> ADAPTK_DEVICE std::uint32_t largest_bits(const float (&x)[per_lane]) {
    std::uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < per_lane; ++k) most = max(most, to_bits(x[k]) & 0x7fffffffu);
#pragma unroll
    for (int w = 1; w < lanes_of<F>; w *= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, w));
    return most;
}

template <class F> inline constexpr bool draws_bytes = random_bits_of<F>() == 8;

// Of the smallest scale that elements can be divided by as they are.
template <class F> inline constexpr std::uint32_t least_bits = std::bit_cast<std::uint32_t>(F::least_scale);

// Codes of finite elements, with a factor of a scale that is not zero.
template <class F>
ADAPTK_DEVICE Vector finite_codes(const float (&x)[per_lane], float factor, const RandomnessOf<F>& random, int lane) {
    using E = typename F::Element;
    if constexpr (requires { F::summand_above; }) {
        return packed<E, 3>([&](int k) {
            std::uint32_t added = F::summand_above;
            if constexpr (draws_bytes<F>) {
                added = __byte_perm(random.word(lane, k), added, 0x7054u | unsigned(k % 4) << 8);
            }
            return F::template encode_above<OneLane>(x[k], factor, added);
        });
    } else {
        return packed<E>([&](int k) { return F::template encode<OneLane, true>(x[k], factor, 0u); });
    }
}

// The scale of the block that a lane's elements are in.
template <class F> ADAPTK_DEVICE float* scale_at(void* scales, std::int64_t first, const Place& place) {
    return static_cast<float*>(scales) + (first + 16 * (place.lane / 2)) / std::int64_t(F::block);
}

// Scales are loaded by the lanes that will write them, and shared with the others of the block when they are needed.
template <class F>
ADAPTK_DEVICE float load_scale([[maybe_unused]] void* scales, std::int64_t first, const Place& place) {
    if constexpr (BlockFormat<F>) {
        if (place.lane % lanes_of<F> == 0 && 16 * (place.lane / 2) < place.left)
            return __ldcg(scale_at<F>(scales, first, place));
    }
    return 0.0f;
}

template <class F>
ADAPTK_DEVICE Vector encoded(const float (&x)[per_lane], const StateSide& side, std::int64_t first,
                             const Place& place) {
    using E = typename F::Element;
    const int lane = place.lane;
    if constexpr (BlockFormat<F>) {
        // A block that the tensor ends in is as if zeros followed.
        float y[per_lane];
#pragma unroll
        for (int k = 0; k < per_lane; ++k) y[k] = element_at<float>(lane, k) < place.left ? x[k] : 0.0f;
        const bool writes_scale = lane % lanes_of<F> == 0 && 16 * (lane / 2) < place.left;
        const RandomnessOf<F> random(side, first, lane);
        if constexpr (has_finite_blocks<F>) {
            // Decided by all lanes of the warp together, because what follows exchanges words between them.
            const std::uint32_t most = largest_bits<F>(y);
            if (__all_sync(0xffffffffu, most - least_bits<F> < 0x7f800000u - least_bits<F>)) {
                const float scale = from_bits(most);
                if (writes_scale) __stcg(scale_at<F>(side.of_buffer, first, place), scale);
                return finite_codes<F>(y, F::factor_of_positive(scale), random, lane);
            }
        }
        const float largest = largest_finite<F>(y), scale = scale_of<F>(largest);
        float lifted = scale;
        if constexpr (F::least_scale > 0.0f) {
            if (largest < F::least_scale && largest != 0.0f) {
                lifted = scale * scale_lift;
#pragma unroll
                for (int k = 0; k < per_lane; ++k) y[k] = y[k] * scale_lift;
            }
        }
        if (writes_scale) __stcg(scale_at<F>(side.of_buffer, first, place), scale);
        const float factor = F::factor(lifted);
        const auto code = [&](int k) { return F::template encode<OneLane>(y[k], factor, random(lane, k)); };
        if constexpr (element_bytes<F> == 0) {
            return packed_in_halves(code);
        } else {
            return packed<E>(code);
        }
    } else if constexpr (SplitFormat<F>) {
        using Side = typename F::Side;
        SplitCode<OneLane> split[per_lane];
#pragma unroll
        for (int k = 0; k < per_lane; ++k) split[k] = F::template encode<OneLane>(x[k]);
        Vector beside[1] = {packed<Side>([&](int k) { return split[k].side; })};
        beside[0] = sizeof(Side) == 2 ? exchange(beside[0], place.lane) : exchange_short(beside[0], place.lane);
        store_vectors<int(sizeof(Side))>(beside, side.of_buffer, first, place);
        return packed<E>([&](int k) { return split[k].code; });
    } else if constexpr (StochasticFormat<F>) {
        const RandomnessOf<F> random(side, first, lane);
        return packed<E>([&](int k) { return F::template encode<OneLane>(x[k], random(lane, k)); });
    } else {
        return packed<E>([&](int k) { return std::uint32_t(F::encode(x[k])); });
    }
}

template <class List>
ADAPTK_DEVICE void store(const float (&x)[per_lane], void* base, std::uint8_t format, const StateSide& side,
                         std::int64_t first, const Place& place) {
    Vector v[vectors<float>];
    const int bytes = bytes_of(format);
    if (bytes == 4) {
#pragma unroll
        for (int k = 0; k < per_lane; ++k) set_element(v, k, x[k]);
        store_vectors<4>(v, base, first, place);
        return;
    }
    with_format(Narrow<List>{}, format, [&]<class F>(Tag<F>) { v[0] = encoded<F>(x, side, first, place); });
    v[0] = exchange_codes<List>(v[0], bytes, place.lane);
    if constexpr (any_of_size<0, List>) {
        if (bytes == 0) {
            store_vectors<0>(v, base, first, place);
            return;
        }
    }
    if constexpr (any_of_size<1, List>) {
        if (bytes == 1) {
            store_vectors<1>(v, base, first, place);
            return;
        }
    }
    store_vectors<2>(v, base, first, place);
}

template <class List>
ADAPTK_DEVICE void store(const double (&x)[per_lane], void* base, std::uint8_t, const StateSide&, std::int64_t first,
                         const Place& place) {
    static_assert(!any_smaller_than<8, List>);
    Vector v[vectors<double>];
#pragma unroll
    for (int k = 0; k < per_lane; ++k) set_element(v, k, x[k]);
    store_vectors<8>(v, base, first, place);
}

}  // namespace adaptk::cuda
