// Rules with reductions: the passes over the elements before the update, in the same fixed tree as on the CPU
// (cpp/src/reduce.hpp, lines.hpp), and what is computed from the reductions between them. The terms of a pass are what
// a rule of its own, that writes nothing, has in the place of more states. Rows, columns and what a matrix has of them
// are more parts to reduce; their elements are gone through once for rows and once for columns.
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
template <class M, class T, class Other, std::size_t N>
ADAPTK_DEVICE void load_direct_tile(T (&p)[per_lane], T (&g)[per_lane], T (&s)[N][per_lane], const Tensor& t,
                                    const Other& other, std::int64_t first, const Place& place) {
    const auto take = [&](T(&x)[per_lane], int b) {
        Vector v[vectors<T>] = {};
        if ((M::used >> b & 1) != 0) load_vectors<int(sizeof(T))>(v, buffer_of(t, other, b), first, place);
        unpack_direct(x, v);
    };
    take(p, 0);
    take(g, 1);
#pragma unroll
    for (int i = 0; i < M::own; ++i) take(s[i], 2 + i);
}

// What a warp adds up: elements from ... to - 1, and as many of each of `rows` rows below them.
struct Leaf {
    std::int64_t from, to, rows;
    std::int64_t line;   // the number that it is a part of
    std::int64_t sum;    // where what it comes to is among the part's sums
    std::int64_t count;  // sums of a number
};
ADAPTK_DEVICE Leaf leaf_of(const MeasuredPart& part, std::int64_t leaf) {
    if (part.rows == 0) {
        const std::int64_t leaves = part.leaves_of_scope();
        const std::int64_t line = leaf / leaves, end = part.begin + (line + 1) * part.scope;
        const std::int64_t from = end - part.scope + leaf % leaves * leaf_elements;
        return {from, end - from < leaf_elements ? end : from + leaf_elements, 1, line, leaf, leaves};
    }
    const std::int64_t blocks = part.blocks(), tiles = part.tiles_of_row();
    const std::int64_t first = leaf % tiles * tile, block = leaf / tiles % blocks, matrix = leaf / tiles / blocks;
    const std::int64_t row = block * part.block, rest = part.rows - row, line = matrix * part.scope + first;
    const std::int64_t from = part.begin + (matrix * part.rows + row) * part.scope + first;
    return {from,
            from + (part.scope - first < tile ? part.scope - first : tile),
            rest < part.block ? rest : part.block,
            line,
            block * part.all_columns() + line,
            blocks};
}

// Of the reductions of a pass, what a lane has of a leaf.
template <class M> struct LaneSums {
    double of[M::count][per_lane];

    ADAPTK_DEVICE LaneSums() {
#pragma unroll
        for (int r = 0; r < M::count; ++r) {
#pragma unroll
            for (int k = 0; k < per_lane; ++k) of[r][k] = M::what[r] == detail::Reduce::largest ? Larger::none : 0.0;
        }
    }
    // `alone`: nothing is added to it.
    template <class T, std::size_t N>
    ADAPTK_DEVICE void add(const T (&s)[N][per_lane], int k, const double (&scale)[M::count], bool columns,
                           bool alone) {
#pragma unroll
        for (int r = 0; r < M::count; ++r) {
            if (M::of_columns[r] != columns) continue;
            const double v = scale[r] * double(s[M::own + M::term_of[r]][k]);
            double& to = of[r][k];
            if (alone) {
                to = M::what[r] == detail::Reduce::norm ? fabs(v) : v;
            } else {
                to = M::what[r] == detail::Reduce::largest ? Larger::of(to, v)
                     : M::what[r] == detail::Reduce::norm  ? to + v * v
                                                           : to + v;
            }
        }
    }
};

// Calls add(terms, which of a lane's) for elements from ... to - 1, the first one of which is at place 0.
template <class M, class T, bool Stored, class Add>
ADAPTK_DEVICE void for_elements(const MeasureLaunch& launch, std::int64_t from, std::int64_t to, const Add& add) {
    constexpr std::size_t buffers = state_count<M> > 0 ? state_count<M> : 1;
    const int lane = int(threadIdx.x % warp);
    const auto* coefficients = static_cast<const StepCoefficients<M, T>*>(launch.coefficients);
    std::uint32_t i = find_last(launch.count, from, [&](std::uint32_t k) { return launch.first[k]; });
    for (; i < launch.count && launch.first[i] < to; ++i) {
        const Tensor& t = launch.tensors[i];
        const auto other = other_states_of<std::size_t(M::own)>(t, launch.sides, launch.count, i);
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
                load_stored_tile<T, M::own>(p, g, s, t, other, TableFormats<M, T, decltype(other)>{t, other},
                                            launch.sides != nullptr ? launch.sides + i : nullptr, at, place);
            } else {
                load_direct_tile<M>(p, g, s, t, other, at, place);
            }
            update<M>(c, lines_of_tile<M, T>(lines_of<M>(launch.lines, i), at, lane, left, Layout::stored), p, g, s,
                      std::make_index_sequence<state_count<M>>{});
            const int offset = int((begin + at - from) & (tile - 1));
#pragma unroll
            for (int k = M::own; k < int(state_count<M>); ++k)
                if (offset != 0) rotate(s[k], offset, lane);
#pragma unroll
            for (int k = 0; k < per_lane; ++k) {
                const int q = (element_at<T>(lane, k) - offset) & (tile - 1);
                const std::int64_t e = begin + at + q;
                if (q < left && e >= from && e < to) add(s, k);
            }
        }
    }
}

// The same for a tensor's rows, or its columns.
template <class M, class T, std::size_t... I, class Add>
ADAPTK_DEVICE void for_lines(const MeasureLaunch& launch, std::uint32_t tensor, bool columns, std::int64_t from,
                             std::int64_t to, std::index_sequence<I...>, const Add& add) {
    const LineTensor& t = launch.lines[tensor];
    const auto& c = static_cast<const StepCoefficients<M, T>*>(launch.coefficients)[tensor].rule;
    for (std::int64_t at = from; at < to; at += tile) {
#pragma unroll
        for (int k = 0; k < per_lane; ++k) {
            const std::int64_t line = at + element_at<T>(int(threadIdx.x % warp), k);
            if (line >= to) continue;
            T s[sizeof...(I)][per_lane];
            M::update(c, columns ? numbers_of_column<T>(t, line) : numbers_of_row<T>(t, line), s[I][k]...);
            add(s, k);
        }
    }
}

template <class M, class T, bool Stored> ADAPTK_DEVICE void measure(const MeasureLaunch& launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    constexpr bool to_lines = M::over == detail::Over::rows || M::over == detail::Over::matrix;
    const int lane = int(threadIdx.x % warp);
    for (std::int64_t at = std::int64_t(blockIdx.x) * warps_per_block + threadIdx.x / warp; at < launch.leaf_count;
         at += std::int64_t(gridDim.x) * warps_per_block) {
        const std::uint32_t number =
            find_last(launch.part_count, at, [&](std::uint32_t i) { return launch.parts[i].first_leaf; });
        const MeasuredPart part = launch.parts[number];
        const Leaf leaf = leaf_of(part, at - part.first_leaf);
        const std::uint32_t tensor = number % launch.count;
        const bool columns = to_lines && number >= launch.count;
        // The second pass is for squares that overflow or vanish.
        double scale[M::count];
        bool any = !launch.second;
#pragma unroll
        for (int r = 0; r < M::count; ++r) {
            scale[r] = launch.second ? launch.scales[number * std::uint32_t(M::count) + std::uint32_t(r)] : 1.0;
            any = any || scale[r] != 0.0;
        }
        if (!any) continue;
        LaneSums<M> sums;
        const bool alone = to_lines && part.rows == 1;
        const auto add = [&](const auto& terms, int k) { sums.add(terms, k, scale, columns, alone); };
        if constexpr (M::over == detail::Over::matrix) {
            for_lines<M, T>(launch, tensor, columns, leaf.from, leaf.to, std::make_index_sequence<state_count<M>>{},
                            add);
        } else {
            for (std::int64_t row = 0; row < leaf.rows; ++row)
                for_elements<M, T, Stored>(launch, leaf.from + row * part.scope, leaf.to + row * part.scope, add);
        }
#pragma unroll
        for (int r = 0; r < M::count; ++r) {
            if (M::of_columns[r] != columns || scale[r] == 0.0) continue;
            double* const out = launch.sums + r * launch.sum_count + part.first_sum + leaf.sum;
            [[maybe_unused]] T* const own =
                to_lines ? static_cast<T*>(launch.lines[tensor].line[int(max_states) + M::number[r]]) + leaf.line
                         : nullptr;
            if (to_lines && part.rows > 0) {
#pragma unroll
                for (int k = 0; k < per_lane; ++k) {
                    const int q = element_at<T>(lane, k);
                    if (q >= leaf.to - leaf.from) continue;
                    if (leaf.count > 1) {
                        out[q] = sums.of[r][k];
                    } else {
                        own[q] = T(alone ? sums.of[r][k] : reduced(M::what[r], sums.of[r][k], part.rows));
                    }
                }
                continue;
            }
            const double all = M::what[r] == detail::Reduce::largest ? fold_elements<Larger, T>(sums.of[r])
                                                                     : fold_elements<Sum, T>(sums.of[r]);
            if (lane != 0) continue;
            if (to_lines && leaf.count == 1) {
                *own = T(reduced(M::what[r], all, part.scope));
            } else {
                *out = all;
            }
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

// What the states of each row and each column become.
template <class R, class T> ADAPTK_DEVICE void step_lines(const LinesLaunch& launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    const auto* coefficients = static_cast<const StepCoefficients<R, T>*>(launch.coefficients);
    for (std::int64_t at = std::int64_t(blockIdx.x) * block_threads + threadIdx.x; at < launch.line_count;
         at += std::int64_t(gridDim.x) * block_threads) {
        const std::uint32_t i =
            find_last(launch.count, at, [&](std::uint32_t k) { return launch.tensors[k].first_line; });
        const LineTensor& t = launch.tensors[i];
        const std::int64_t line = at - t.first_line, rows = t.matrices * t.rows;
        if (line < rows) {
            R::update_rows(coefficients[i].rule, numbers_of_row<T>(t, line));
        } else {
            R::update_columns(coefficients[i].rule, numbers_of_column<T>(t, line - rows));
        }
    }
}

}  // namespace adaptk::cuda
