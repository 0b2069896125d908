// The kernels around a rule: any number of tensors of any sizes, one launch. A warp takes a tile of 256 elements at a
// time, 8 in each lane. One kernel is for tensors whose buffers are all of the type that is computed in, the other one
// for tensors with any in another storage format.
#pragma once

#include "adaptk/rule.hpp"
#include "device.hpp"
#include "line_numbers.hpp"
#include "stored.hpp"
#include "tables.hpp"

#include <utility>

namespace adaptk::cuda {

// What is computed on a lane's elements.
template <class R, class T, class Lines, std::size_t... I, std::size_t N>
ADAPTK_DEVICE void update(const StepCoefficients<R, T>& c, [[maybe_unused]] const Lines& lines, T (&p)[per_lane],
                          T (&g)[per_lane], T (&s)[N][per_lane], std::index_sequence<I...>) {
    [[maybe_unused]] T stored[per_lane];
    if constexpr (requires { R::needs_stored_param; }) {
#pragma unroll
        for (int i = 0; i < per_lane; ++i) stored[i] = p[i];
    }
    if (c.common.coupled) {
#pragma unroll
        for (int i = 0; i < per_lane; ++i) apply_common<true>(c.common, p[i], g[i]);
    } else {
#pragma unroll
        for (int i = 0; i < per_lane; ++i) apply_common<false>(c.common, p[i], g[i]);
    }
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
        const auto run = [&](const auto&... beside) { R::update(c.rule, beside..., p[i], g[i], s[I][i]...); };
        if constexpr (has_lines<R> && requires { R::needs_stored_param; }) {
            run(lines(i), stored[i]);
        } else if constexpr (has_lines<R>) {
            run(lines(i));
        } else if constexpr (requires { R::needs_stored_param; }) {
            run(stored[i]);
        } else {
            run();
        }
    }
}

// A lane's elements of buffers of the compute type: vectors a row of 32 apart in full tiles. The ends of tensors, and
// tensors that lie on no multiple of 16 bytes, are taken element by element, a row of 32 at a time.
template <class T> ADAPTK_DEVICE void load_direct(Vector (&v)[vectors<T>], void* base, std::int64_t first, int lane) {
#pragma unroll
    for (int j = 0; j < vectors<T>; ++j)
        v[j] = load_vector(at<T>(base, first + vector_size<T> * (lane + int(warp) * j)));
}

template <class T> ADAPTK_DEVICE void unpack_direct(T (&x)[per_lane], const Vector (&v)[vectors<T>]) {
#pragma unroll
    for (int k = 0; k < per_lane; ++k) x[k] = element(v, k, T{});
}

template <class T> ADAPTK_DEVICE void store_direct(const T (&x)[per_lane], void* base, std::int64_t first, int lane) {
#pragma unroll
    for (int j = 0; j < vectors<T>; ++j) {
        Vector v[vectors<T>];
#pragma unroll
        for (int k = 0; k < per_lane; ++k) set_element(v, k, x[k]);
        store_vector(at<T>(base, first + vector_size<T> * (lane + int(warp) * j)), v[j]);
    }
}

template <class T> ADAPTK_DEVICE void load_part(T (&x)[per_lane], void* base, std::int64_t first, int lane, int left) {
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
        const int e = lane + int(warp) * i;
        x[i] = e < left ? __ldcg(at<T>(base, first + e)) : T(0);
    }
}

template <class T>
ADAPTK_DEVICE void store_part(const T (&x)[per_lane], void* base, std::int64_t first, int lane, int left) {
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
        const int e = lane + int(warp) * i;
        if (e < left) __stcg(at<T>(base, first + e), x[i]);
    }
}

// The second entry of a tensor in the tables, for kernels that read or write more than table_states states; in its
// place nothing, for all others.
struct OtherStates {
    const MoreStates* states;
    const MoreSides* sides;  // null: no tensor has any
};
struct NoOtherStates {};

// Of tensor i, which the table has at `t`.
template <std::size_t States>
ADAPTK_DEVICE auto other_states_of([[maybe_unused]] const Tensor& t, [[maybe_unused]] const Side* sides,
                                   [[maybe_unused]] std::uint32_t count, [[maybe_unused]] std::uint32_t i) {
    if constexpr (States > table_states) {
        const auto* const more = reinterpret_cast<const MoreStates*>(&t + (count - i)) + i;
        return OtherStates{more, sides != nullptr ? reinterpret_cast<const MoreSides*>(sides + count) + i : nullptr};
    } else {
        return NoOtherStates{};
    }
}

// Buffer b, its format and what lies beside it. In an unrolled loop b is known, and so is which entry it is in.
ADAPTK_DEVICE void* buffer_of(const Tensor& t, NoOtherStates, int b) { return t.buffer[b]; }
ADAPTK_DEVICE void* buffer_of(const Tensor& t, const OtherStates& other, int b) {
    return b < int(table_buffers) ? t.buffer[b] : other.states->buffer[b - int(table_buffers)];
}
ADAPTK_DEVICE std::uint8_t format_of(const Tensor& t, NoOtherStates, int b) { return t.format[b]; }
ADAPTK_DEVICE std::uint8_t format_of(const Tensor& t, const OtherStates& other, int b) {
    return b < int(table_buffers) ? t.format[b] : other.states->format[b - int(table_buffers)];
}
ADAPTK_DEVICE void* beside_of(const Side* side, NoOtherStates, int b) { return side->of_buffer[b]; }
ADAPTK_DEVICE void* beside_of(const Side* side, const OtherStates& other, int b) {
    return b < int(table_buffers) ? side->of_buffer[b] : other.sides->of_buffer[b - int(table_buffers)];
}

template <class R, class T, class Other, std::size_t... I>
ADAPTK_DEVICE void run_direct_tile(const StepCoefficients<R, T>& c, const Tensor& t, const Other& other,
                                   const LineTensor* lines, std::int64_t first, int lane,
                                   std::index_sequence<I...> states) {
    constexpr std::size_t n = sizeof...(I) > 0 ? sizeof...(I) : 1;
    const std::int64_t rest = t.size - first;
    const int left = rest < tile ? int(rest) : tile;
    T p[per_lane];
    T g[per_lane];
    T s[n][per_lane];
    if (t.aligned != 0 && left == tile) {
        Vector of_p[vectors<T>];
        Vector of_g[vectors<T>];
        [[maybe_unused]] Vector of_s[n][vectors<T>];
        load_direct<T>(of_p, t.buffer[0], first, lane);
        load_direct<T>(of_g, t.buffer[1], first, lane);
        (load_direct<T>(of_s[I], buffer_of(t, other, 2 + I), first, lane), ...);
        unpack_direct(p, of_p);
        unpack_direct(g, of_g);
        (unpack_direct(s[I], of_s[I]), ...);
        update<R>(c, lines_of_tile<R, T>(lines, first, lane, left, Layout::direct), p, g, s, states);
        store_direct(p, t.buffer[0], first, lane);
        (store_direct(s[I], buffer_of(t, other, 2 + I), first, lane), ...);
    } else {
        load_part(p, t.buffer[0], first, lane, left);
        load_part(g, t.buffer[1], first, lane, left);
        (load_part(s[I], buffer_of(t, other, 2 + I), first, lane, left), ...);
        update<R>(c, lines_of_tile<R, T>(lines, first, lane, left, Layout::part), p, g, s, states);
        store_part(p, t.buffer[0], first, lane, left);
        (store_part(s[I], buffer_of(t, other, 2 + I), first, lane, left), ...);
    }
}

// What takes the place of the gradient: gradients, but for rules that add a state to a param.
template <class R, class T> struct SecondBuffer {
    using Formats = GradientFormats;
};

// The formats of a tensor's buffers, as the tables have them.
template <class R, class T, class Other> struct TableFormats {
    using Params = typename Computes<T>::Params;
    using Second = typename SecondBuffer<R, T>::Formats;
    const Tensor& t;
    const Other& other;
    ADAPTK_DEVICE std::uint8_t operator()(int b) const { return format_of(t, other, b); }
    ADAPTK_DEVICE std::uint64_t key(const Side& side, std::uint64_t of_step, int b) const {
        return buffer_key(of_step, side.number, std::uint32_t(b));
    }
};

// All states in 8 bits, in the formats that "8bit" chooses, with params and gradients in float32 or bfloat16. The
// formats of states are known when the kernel is compiled, so that no instructions choose what to do with them. Keys of
// random bits are computed once for all tiles. Rules with one state have 96 registers a thread, and spilled.
template <class R, class T> struct EightBitStates {
    using Params = FormatList<Float32, BFloat16>;
    using Second = Params;
    static constexpr int states = int(state_count<R>);
    static constexpr std::uint64_t all_nonnegative() {
        std::uint64_t found = 0;
        if constexpr (requires { R::states[0].nonnegative; })
            for (int i = 0; i < states; ++i) found |= std::uint64_t(R::states[std::size_t(i)].nonnegative) << i;
        return found;
    }
    static constexpr std::uint64_t nonnegative = all_nonnegative();
    static constexpr bool exist = requires { R::states[0].nonnegative; } && std::is_same_v<T, float> && states >= 2 &&
                                  states <= int(table_states) && !has_lines<R>;
    ADAPTK_HD static constexpr std::uint8_t of_state(int i) {
        return ((nonnegative >> i) & 1u) != 0 ? number_of<LogarithmicStochastic8> : number_of<Linear8>;
    }

    const Tensor& t;
    std::uint64_t keys[states > 0 ? states : 1];
    ADAPTK_DEVICE EightBitStates(const Tensor& tensor, const Side& side, std::uint64_t of_step) : t(tensor) {
#pragma unroll
        for (int i = 0; i < states; ++i) keys[i] = buffer_key(of_step, side.number, std::uint32_t(2 + i));
    }
    ADAPTK_DEVICE std::uint8_t operator()(int b) const { return b < 2 ? t.format[b] : of_state(b - 2); }
    // Params in these formats have no random bits.
    ADAPTK_DEVICE std::uint64_t key(const Side&, std::uint64_t, int b) const { return b < 2 ? 0 : keys[b - 2]; }

    // Words of a tensor's table entry: what is asked for, and of which bytes.
    ADAPTK_HD static constexpr std::uint64_t word() {
        std::uint64_t w = 1;  // aligned
        for (int i = 0; i < states; ++i) w |= std::uint64_t(of_state(i)) << (8 * (i + 3));
        return w;
    }
    ADAPTK_HD static constexpr std::uint64_t mask() {
        std::uint64_t m = 0xff;
        for (int i = 0; i < states; ++i) m |= std::uint64_t{0xff} << (8 * (i + 3));
        return m;
    }
    // Whether an aligned tensor has these formats.
    ADAPTK_DEVICE static bool are_of(const Tensor& t) {
        constexpr std::uint64_t wanted = word(), asked = mask();
        std::uint64_t found = 0;
        __builtin_memcpy(&found, reinterpret_cast<const std::byte*>(&t) + offsetof(Tensor, aligned), sizeof found);
        return (found & asked) == wanted && is_one_of(Params{}, t.format[0]) && is_one_of(Second{}, t.format[1]);
    }
};

// What a lane needs of a tile: the param, what takes the place of the gradient, and the states. `side`: for formats
// with scales or lost bits; without any, null.
template <class T, int States, class FormatOf, class Other, std::size_t N>
ADAPTK_DEVICE void load_stored_tile(T (&p)[per_lane], T (&g)[per_lane], T (&s)[N][per_lane], const Tensor& t,
                                    const Other& other, const FormatOf& format, const Side* side, std::int64_t first,
                                    const Place& place) {
    constexpr int n = States > 0 ? States : 1;
    using Params = typename FormatOf::Params;
    using Second = typename FormatOf::Second;
    using OfStates = typename Computes<T>::States;
    Vector of_p[vectors<T>];
    Vector of_g[vectors<T>];
    [[maybe_unused]] Vector of_s[n][vectors<T>];
    const auto scale_of = [&](int b, auto formats) {
        float scale = 0.0f;
        if (side == nullptr) return scale;
        with_format(formats, format(b),
                    [&]<class F>(Tag<F>) { scale = load_scale<F>(beside_of(side, other, b), first, place); });
        return scale;
    };
    float scale[2 + n] = {0.0f, scale_of(1, Second{})};
#pragma unroll
    for (int i = 0; i < States; ++i) scale[2 + i] = scale_of(2 + i, OfStates{});
    load<T, Params>(of_p, t.buffer[0], bytes_of(format(0)), first, place);
    load<T, Second>(of_g, t.buffer[1], bytes_of(format(1)), first, place);
#pragma unroll
    for (int i = 0; i < States; ++i)
        load<T, OfStates>(of_s[i], buffer_of(t, other, 2 + i), bytes_of(format(2 + i)), first, place);
    const auto beside = [&](int b) {
        return Beside{side == nullptr ? nullptr : beside_of(side, other, b), first, place};
    };
    unpack<Params>(p, of_p, format(0), 0.0f, place.lane, beside(0));
    unpack<Second>(g, of_g, format(1), scale[1], place.lane, beside(1));
#pragma unroll
    for (int i = 0; i < States; ++i) unpack<OfStates>(s[i], of_s[i], format(2 + i), scale[2 + i], place.lane);
}

// `key`: for formats with random bits; without any, 0.
template <class R, class T, class Other, class FormatOf>
ADAPTK_DEVICE void run_stored_tile(const StepCoefficients<R, T>& c, const Tensor& t, const Other& other,
                                   const FormatOf& format, const LineTensor* lines, const Side* side, std::uint64_t key,
                                   std::int64_t first, const Place& place) {
    constexpr int states = int(state_count<R>);
    constexpr int n = states > 0 ? states : 1;
    using Params = typename FormatOf::Params;
    using States = typename Computes<T>::States;
    T p[per_lane];
    T g[per_lane];
    T s[n][per_lane];
    load_stored_tile<T, states>(p, g, s, t, other, format, side, first, place);
    update<R>(c, lines_of_tile<R, T>(lines, first, place.lane, place.left, Layout::stored), p, g, s,
              std::make_index_sequence<state_count<R>>{});
    const auto side_of = [&](int b) {
        if (side == nullptr) return StateSide{nullptr, 0, 0};
        return StateSide{beside_of(side, other, b), format.key(*side, key, b), side->first};
    };
    store<Params>(p, t.buffer[0], format(0), side_of(0), first, place);
#pragma unroll
    for (int i = 0; i < states; ++i)
        store<States>(s[i], buffer_of(t, other, 2 + i), format(2 + i), side_of(2 + i), first, place);
}

// The tensor that a tile belongs to: the last one whose first tile is not behind it. Not before tensor i.
ADAPTK_DEVICE std::uint32_t find_tensor(const Tensor* tensors, std::uint32_t count, std::uint32_t i,
                                        std::int64_t wanted) {
    std::uint32_t end = count;
    while (end - i > 1) {
        const std::uint32_t middle = i + (end - i) / 2;
        if (tensors[middle].first_tile <= wanted) {
            i = middle;
        } else {
            end = middle;
        }
    }
    return i;
}

// Calls run(coefficients, tensor, its number, first element) for each tile that is a warp's turn. Of each tensor whose
// tiles begin, run_all(coefficients, tensor, its number, tile, stride) may do some before, and returns the first that
// is left.
template <class R, class T, class Run, class RunAll>
ADAPTK_DEVICE void for_tiles(const StepLaunch& launch, const Run& run, const RunAll& run_all) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    const auto* tensors =
        launch.tensors != nullptr ? launch.tensors : reinterpret_cast<const Tensor*>(launch.inside + launch.tensors_at);
    const auto* coefficients = static_cast<const StepCoefficients<R, T>*>(
        launch.coefficients != nullptr ? launch.coefficients : static_cast<const void*>(launch.inside));
    const std::int64_t stride = std::int64_t(gridDim.x) * warps_per_block;
    std::uint32_t i = 0;
    std::int64_t end = 0;  // the first tile behind the tensor
    const Tensor* t = tensors;
    std::int64_t at = std::int64_t(blockIdx.x) * warps_per_block + threadIdx.x / warp;
    while (at < launch.tiles) {
        if (at >= end) {
            i = find_tensor(tensors, launch.count, i, at);
            t = tensors + i;
            end = i + 1 < launch.count ? tensors[i + 1].first_tile : launch.tiles;
            at = run_all(coefficients[t->coefficients], *t, i, at, stride);
            if (at >= end) continue;
        }
        run(coefficients[t->coefficients], *t, i, (at - t->first_tile) * tile);
        at += stride;
    }
}

// The kernels' bodies, which have other names where they are compiled at run time.
template <class R, class T> ADAPTK_DEVICE void step_tiles(const StepLaunch& launch) {
    const int lane = int(threadIdx.x % warp);
    const auto run = [&](const StepCoefficients<R, T>& c, const Tensor& t, std::uint32_t i, std::int64_t first) {
        run_direct_tile<R, T>(c, t, other_states_of<state_count<R>>(t, nullptr, launch.count, i),
                              lines_of<R>(launch.lines, i), first, lane, std::make_index_sequence<state_count<R>>{});
    };
    for_tiles<R, T>(launch, run,
                    [](const auto&, const Tensor&, std::uint32_t, std::int64_t at, std::int64_t) { return at; });
}

// The full tiles of a tensor with states in 8 bits, from `at` on.
template <class R>
ADAPTK_DEVICE std::int64_t step_eight_bit_tiles(const StepCoefficients<R, float>& c, const Tensor& t, const Side& side,
                                                std::uint64_t key, std::int64_t at, std::int64_t stride) {
    const Place place{int(threadIdx.x % warp), tile, true};
    const EightBitStates<R, float> formats(t, side, key);
    std::int64_t first = (at - t.first_tile) * tile;
    for (; first <= t.size - tile; first += stride * tile)
        run_stored_tile<R, float>(c, t, NoOtherStates{}, formats, nullptr, &side, key, first, place);
    return t.first_tile + first / tile;
}

template <class R, class T> ADAPTK_DEVICE void step_stored_tiles(const StepLaunch& launch) {
    const int lane = int(threadIdx.x % warp);
    const auto key_of = [&](const Tensor& t) {
        return launch.keys != nullptr ? launch.keys[t.coefficients] : std::uint64_t{0};
    };
    const auto run = [&](const StepCoefficients<R, T>& c, const Tensor& t, std::uint32_t i, std::int64_t first) {
        const Side* const side = launch.sides != nullptr ? launch.sides + i : nullptr;
        const auto other = other_states_of<state_count<R>>(t, launch.sides, launch.count, i);
        const std::int64_t rest = t.size - first;
        const int left = rest < tile ? int(rest) : tile;
        // One comparison, for a whole tile that is aligned: of two the compiler makes branches in branches.
        run_stored_tile<R, T>(c, t, other, TableFormats<R, T, decltype(other)>{t, other}, lines_of<R>(launch.lines, i),
                              side, key_of(t), first, Place{lane, left, left + int(t.aligned) > tile});
    };
    const auto run_all = [&](const StepCoefficients<R, T>& c, const Tensor& t, std::uint32_t i, std::int64_t at,
                             std::int64_t stride) {
        if constexpr (EightBitStates<R, T>::exist)
            if (EightBitStates<R, T>::are_of(t))
                return step_eight_bit_tiles<R>(c, t, launch.sides[i], key_of(t), at, stride);
        return at;
    };
    for_tiles<R, T>(launch, run, run_all);
}

template <class R, class T>
__global__ void __launch_bounds__(block_threads, resident_blocks(sizeof(T), state_count<R>))
    step_kernel(const __grid_constant__ StepLaunch launch) {
    step_tiles<R, T>(launch);
}

template <class R, class T>
__global__ void __launch_bounds__(block_threads, stored_resident_blocks(sizeof(T), state_count<R>))
    stored_step_kernel(const __grid_constant__ StepLaunch launch) {
    step_stored_tiles<R, T>(launch);
}

}  // namespace adaptk::cuda
