// Rules with reductions to one number, of a tensor or of all: the passes over the elements before the update, in the
// same fixed tree as on the CPU (cpp/src/reduce.hpp), and what is computed from the reductions between them. The terms
// of a pass are what a rule of its own, that writes nothing, has in the place of more states.
#pragma once

#include "adaptk/rounding.hpp"
#include "program.hpp"
#include "step_kernel.hpp"
#include "sums.hpp"

namespace adaptk::cuda {

// Which lane has element q of a tile, and as which of its own: element_at() turned round.
template <class T> ADAPTK_DEVICE int lane_of_element(int q) {
    constexpr int n = vector_size<T>;
    return 2 * (q / 16) + q / n % 2;
}
template <class T> ADAPTK_DEVICE int place_of_element(int q) {
    constexpr int n = vector_size<T>;
    return q % 16 / (2 * n) * n + q % n;
}

// What is in the tile's element (e - offset) % 256, for each element e that a lane has: the leaf's order, where tensors
// do not begin on a row of a leaf.
template <class T> ADAPTK_DEVICE void rotate(T (&x)[per_lane], int offset, int lane) {
    T y[per_lane];
#pragma unroll
    for (int k = 0; k < per_lane; ++k) {
        const int q = (element_at<T>(lane, k) - offset) & (tile - 1);
        const int from = lane_of_element<T>(q), place = place_of_element<T>(q);
        y[k] = x[0];
#pragma unroll
        for (int i = 0; i < per_lane; ++i) {
            const T v = __shfl_sync(0xffffffffu, x[i], from);
            y[k] = place == i ? v : y[k];
        }
    }
#pragma unroll
    for (int k = 0; k < per_lane; ++k) x[k] = y[k];
}

// lanes[i] += lanes[i + w] for w = 128, 64, ..., 1, where a thread has the elements of element_at().
template <class Combine, class T> ADAPTK_DEVICE double fold_elements(double (&sum)[per_lane]) {
    constexpr int n = vector_size<T>;
    const auto over_lanes = [&](unsigned w) {
#pragma unroll
        for (int k = 0; k < per_lane; ++k) sum[k] = Combine::of(sum[k], __shfl_down_sync(0xffffffffu, sum[k], w));
    };
    const auto own = [&](int w) {
#pragma unroll
        for (int k = 0; k < per_lane; ++k)
            if ((k & w) == 0) sum[k] = Combine::of(sum[k], sum[k | w]);
    };
    for (unsigned w = warp / 2; w > 1; w /= 2) over_lanes(w);
#pragma unroll
    for (int w = per_lane / 2; w >= n; w /= 2) own(w);
    over_lanes(1);
#pragma unroll
    for (int w = n / 2; w > 0; w /= 2) own(w);
    return sum[0];
}

// The terms of a tile's elements. M::own: the states that are read; the terms are those behind them.
template <class M, class T, std::size_t N>
ADAPTK_DEVICE void load_direct_tile(T (&p)[per_lane], T (&g)[per_lane], T (&s)[N][per_lane], const Tensor& t,
                                    std::int64_t first, const Place& place) {
    const auto take = [&](T(&x)[per_lane], int b) {
        Vector v[vectors<T>] = {};
        if ((M::used >> b & 1) != 0) load_vectors<int(sizeof(T))>(v, t.buffer[b], first, place);
        unpack_direct(x, v);
    };
    take(p, 0);
    take(g, 1);
#pragma unroll
    for (int i = 0; i < M::own; ++i) take(s[i], 2 + i);
}

template <class M, class T, bool Stored> ADAPTK_DEVICE void measure(const MeasureLaunch& launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    constexpr std::size_t buffers = state_count<M> > 0 ? state_count<M> : 1;
    const int lane = int(threadIdx.x % warp);
    const auto* coefficients = static_cast<const StepCoefficients<M, T>*>(launch.coefficients);
    for (std::int64_t leaf = std::int64_t(blockIdx.x) * warps_per_block + threadIdx.x / warp; leaf < launch.leaf_count;
         leaf += std::int64_t(gridDim.x) * warps_per_block) {
        const std::uint32_t number =
            find_last(launch.part_count, leaf, [&](std::uint32_t i) { return launch.parts[i].first_leaf; });
        const ReductionPart part = launch.parts[number];
        // The second pass is for squares that overflow or vanish.
        double scale[M::count];
        bool any = !launch.second;
#pragma unroll
        for (int r = 0; r < M::count; ++r) {
            scale[r] = launch.second ? launch.scales[number * std::uint32_t(M::count) + std::uint32_t(r)] : 1.0;
            any = any || scale[r] != 0.0;
        }
        if (!any) continue;
        const std::int64_t from = part.begin + (leaf - part.first_leaf) * leaf_elements;
        const std::int64_t to = part.end - from < leaf_elements ? part.end : from + leaf_elements;
        double sum[M::count][per_lane];
#pragma unroll
        for (int r = 0; r < M::count; ++r) {
#pragma unroll
            for (int k = 0; k < per_lane; ++k) sum[r][k] = M::what[r] == detail::Reduce::largest ? Larger::none : 0.0;
        }
        std::uint32_t i = find_last(launch.count, from, [&](std::uint32_t k) { return launch.first[k]; });
        for (; i < launch.count && launch.first[i] < to; ++i) {
            const Tensor& t = launch.tensors[i];
            const std::int64_t begin = launch.first[i];
            const std::int64_t end = begin + t.size < to ? begin + t.size : to;
            const StepCoefficients<M, T>& c = coefficients[t.coefficients];
            // Tiles of the tensor, the first and the last of which may have elements of other leaves too.
            for (std::int64_t at = begin < from ? (from - begin) / tile * tile : 0; begin + at < end; at += tile) {
                const std::int64_t rest = t.size - at;
                const int left = rest < tile ? int(rest) : tile;
                const Place place{lane, left, left + int(t.aligned) > tile};
                T p[per_lane];
                T g[per_lane];
                T s[buffers][per_lane];
                if constexpr (Stored) {
                    load_stored_tile<T, M::own>(p, g, s, t, launch.sides != nullptr ? launch.sides + i : nullptr, at,
                                                place);
                } else {
                    load_direct_tile<M>(p, g, s, t, at, place);
                }
                update<M>(c, p, g, s, std::make_index_sequence<state_count<M>>{});
                const int offset = int((begin + at - from) & (tile - 1));
#pragma unroll
                for (int k = M::own; k < int(state_count<M>); ++k)
                    if (offset != 0) rotate(s[k], offset, lane);
#pragma unroll
                for (int k = 0; k < per_lane; ++k) {
                    const int q = (element_at<T>(lane, k) - offset) & (tile - 1);
                    const std::int64_t e = begin + at + q;
                    if (q >= left || e < from || e >= to) continue;
#pragma unroll
                    for (int r = 0; r < M::count; ++r) {
                        const double v = scale[r] * double(s[M::own + M::term_of[r]][k]);
                        sum[r][k] = M::what[r] == detail::Reduce::largest ? Larger::of(sum[r][k], v)
                                    : M::what[r] == detail::Reduce::norm  ? sum[r][k] + v * v
                                                                          : sum[r][k] + v;
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < M::count; ++r) {
            const double all = M::what[r] == detail::Reduce::largest ? fold_elements<Larger, T>(sum[r])
                                                                     : fold_elements<Sum, T>(sum[r]);
            if (lane == 0 && scale[r] != 0.0) launch.leaves[r * launch.leaf_count + leaf] = all;
        }
    }
}

// Of each tensor, what its scalars are as far as its reductions are known: its coefficients, and in the end the states
// that it has one number for.
template <class R, class T> ADAPTK_DEVICE void compute_scalars(const ScalarsLaunch& launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    const double clip = launch.control != nullptr ? launch.control->clip : 1.0;
    auto* coefficients = static_cast<StepCoefficients<R, T>*>(launch.coefficients);
    for (unsigned i = blockIdx.x * block_threads + threadIdx.x; i < launch.count; i += gridDim.x * block_threads) {
        const MeasuredTensor& of = launch.tensors[i];
        Count& count = *of.slot.count;
        const std::int64_t t = count.steps + 1;
        typename R::Memo known = {};
        for (int r = 0; r < R::reductions; ++r) {
            known.own[r] = launch.reduced[std::size_t(i) * R::reductions + std::size_t(r)];
            known.all[r] = launch.reduced[std::size_t(launch.count) * R::reductions + std::size_t(r)];
        }
        for (int s = 0; s < int(max_states); ++s)
            if (of.state[s] != nullptr) known.state[s] = double(__ldcg(static_cast<const T*>(of.state[s])));
        for (int s = 0; s < shape_numbers; ++s) known.shape[s] = of.shape[s];
        coefficients[i] = step_coefficients<R, T>(of.slot.hyper, of.slot.grad_scale * clip, t, known);
        if (launch.last == 0) continue;
        for (int s = 0; s < int(max_states); ++s)
            if (of.state[s] != nullptr) __stcg(static_cast<T*>(of.state[s]), T(known.state[s]));
        if (launch.keys != nullptr) launch.keys[i] = step_key(of.slot.seed, t);
        count.steps = t;
    }
}

}  // namespace adaptk::cuda
