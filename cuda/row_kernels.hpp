// Gradients of rows: the values of each row are added up in the order of cpp/src/rows.hpp, and the row becomes a tensor
// that the step's kernels know how to update. No kernel here knows a rule. A thread has one column of a leaf, or of a
// row: neighbouring threads read neighbouring values.
#pragma once

#include "norm_kernels.hpp"
#include "row_launch.hpp"

namespace adaptk::cuda {

// Loads that wait for nothing are under way together.
inline constexpr int rows_under_way = 8;

// value(first) + value(first + 1) + ..., one after the other.
template <class T, class Value>
ADAPTK_DEVICE T sum_in_order(std::uint32_t first, std::uint32_t end, const Value& value) {
    T sum = value(first);
    std::uint32_t i = first + 1;
    for (; end - i >= std::uint32_t(rows_under_way); i += rows_under_way) {
        T x[rows_under_way];
#pragma unroll
        for (int k = 0; k < rows_under_way; ++k) x[k] = value(i + std::uint32_t(k));
#pragma unroll
        for (int k = 0; k < rows_under_way; ++k) sum = sum + x[k];
    }
    for (; i < end; ++i) sum = sum + value(i);
    return sum;
}

template <class T> ADAPTK_DEVICE T* place_of_sum(const RowsLaunch& launch, std::uint32_t row, std::uint64_t key) {
    const std::int64_t at = launch.for_all_rows ? std::int64_t(key >> launch.place_bits) : std::int64_t(row);
    return static_cast<T*>(launch.sums) + at * launch.rows.row_size;
}

// The i-th of the tensors, from the row at this place.
ADAPTK_DEVICE void make_tensor(const RowTables& rows, std::uint32_t i, std::int64_t place, void* gradient) {
    Tensor* const out = rows.tensors + i;
    std::uintptr_t addresses = 0;
#pragma unroll
    for (int b = 0; b < int(max_buffers); ++b) {
        const bool first = b < int(table_buffers);
        if (!first && rows.more == nullptr) break;
        void* at = static_cast<std::byte*>(rows.buffer[b]) + place * rows.row_bytes[b];
        if (b == 1) at = gradient;
        if (b == 0 || b != rows.number) addresses |= reinterpret_cast<std::uintptr_t>(at);
        (first ? out->buffer[b] : rows.more[i].buffer[b - int(table_buffers)]) = at;
        (first ? out->format[b] : rows.more[i].format[b - int(table_buffers)]) = rows.format[b];
    }
    out->size = rows.row_size;
    out->first_tile = (rows.row_size + tile - 1) / tile * std::int64_t(i);
    out->coefficients = rows.number != 0 ? i : 0;
    if (rows.sides != nullptr) {
        Side* const side = rows.sides + i;
#pragma unroll
        for (int b = 0; b < int(max_buffers); ++b) {
            const bool first = b < int(table_buffers);
            if (!first && rows.more_sides == nullptr) break;
            void* const at = static_cast<std::byte*>(rows.side[b]) + place * rows.side_bytes[b];
            // Scales are taken one by one, and lost bits as vectors: their addresses count for params alone.
            if (b == 0) addresses |= reinterpret_cast<std::uintptr_t>(at);
            (first ? side->of_buffer[b] : rows.more_sides[i].of_buffer[b - int(table_buffers)]) = at;
        }
        side->number = rows.tensor;
        side->first = place * rows.row_size;
    }
    out->aligned = addresses % 16 == 0 && !rows.unaligned ? 1 : 0;
}

__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    row_tables_kernel(const __grid_constant__ RowTablesLaunch launch) {
    const RowTables& rows = launch.rows;
    for (std::uint32_t i = blockIdx.x * block_threads + threadIdx.x; i < launch.count; i += gridDim.x * block_threads) {
        const std::int64_t place = launch.first + std::int64_t(i);
        make_tensor(rows, i, place, static_cast<std::byte*>(rows.buffer[1]) + place * rows.row_bytes[1]);
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    row_leaves_kernel(const __grid_constant__ RowsLaunch launch) {
    const std::int64_t size = launch.rows.row_size, count = std::int64_t(launch.leaf_count) * size;
    const std::uint64_t places = (std::uint64_t{1} << launch.place_bits) - 1;
    for (std::int64_t e = std::int64_t(blockIdx.x) * block_threads + threadIdx.x; e < count;
         e += std::int64_t(gridDim.x) * block_threads) {
        const std::int64_t l = e / size, column = e - l * size;
        const RowLeaf leaf = launch.leaves[l];
        const std::uint64_t key = launch.keys[leaf.first];
        T sum = T(0);
        with_format(GradientFormats{}, launch.values_format, [&]<class F>(Tag<F>) {
            sum = sum_in_order<T>(leaf.first, launch.leaves[l + 1].first, [&](std::uint32_t o) {
                const auto* const values = static_cast<const typename F::Element*>(launch.values) + column;
                return T(F::decode(load_element(values + std::int64_t(launch.keys[o] & places) * size)));
            });
        });
        if (leaf.partial != no_partial) {
            __stcg(static_cast<T*>(launch.partials) + std::int64_t(leaf.partial) * size + column, sum);
        } else {
            __stcg(place_of_sum<T>(launch, leaf.row, key) + column, sum);
        }
        const bool first_leaf = l == 0 || launch.leaves[l - 1].row != leaf.row;
        if (launch.rows.tensors != nullptr && column == 0 && first_leaf)
            make_tensor(launch.rows, leaf.row,
                        launch.rows.gathered ? std::int64_t(leaf.row) : std::int64_t(key >> launch.place_bits),
                        place_of_sum<T>(launch, leaf.row, key));
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    long_rows_kernel(const __grid_constant__ RowsLaunch launch) {
    const std::int64_t size = launch.rows.row_size, count = std::int64_t(launch.long_count) * size;
    for (std::int64_t e = std::int64_t(blockIdx.x) * block_threads + threadIdx.x; e < count;
         e += std::int64_t(gridDim.x) * block_threads) {
        const std::int64_t n = e / size, column = e - n * size;
        const LongRow row = launch.long_rows[n];
        const auto* const partials = static_cast<const T*>(launch.partials) + column;
        const T sum = sum_in_order<T>(row.partial, row.partial + row.count,
                                      [&](std::uint32_t k) { return __ldcg(partials + std::int64_t(k) * size); });
        __stcg(place_of_sum<T>(launch, row.row, launch.keys[row.first]) + column, sum);
    }
}

// The steps that rows have missed, in their closed form: as cpp/src/rows.cpp has it.
template <class T>
__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    catch_up_kernel(const __grid_constant__ CatchUpLaunch launch) {
    const std::int64_t size = launch.row_size, count = launch.count * size;
    for (std::int64_t e = std::int64_t(blockIdx.x) * block_threads + threadIdx.x; e < count;
         e += std::int64_t(gridDim.x) * block_threads) {
        const std::int64_t n = e / size;
        const MissedRow row = launch.rows[n];
        const IdleFactors<T>& f = static_cast<const IdleFactors<T>*>(launch.factors)[row.factors];
        const std::int64_t at = row.row * size + (e - n * size);
        T p = __ldcg(static_cast<const T*>(launch.buffer[0]) + at);
        if (f.param != T(1)) p = f.param * p;
#pragma unroll
        for (int i = 0; i < int(max_states); ++i) {
            if (i >= launch.states) break;
            const bool is_number = i == launch.number;
            if (is_number && e != n * size) continue;
            T* const state = static_cast<T*>(launch.buffer[2 + i]) + (is_number ? row.row : at);
            const T s = __ldcg(static_cast<const T*>(state));
            if (f.from_state[i] != T(0)) p = p + f.from_state[i] * s;
            if (f.state[i] != T(1)) __stcg(state, f.state[i] * s);
        }
        __stcg(static_cast<T*>(launch.buffer[0]) + at, p);
    }
}

// A tile of a row is a warp's, with the param and one state at a time. What is computed in float64 is stored in it.
__global__ void __launch_bounds__(block_threads, stored_resident_blocks(sizeof(float), 2))
    stored_rows_kernel(const __grid_constant__ StoredRowsLaunch launch) {
    const CatchUpLaunch& rows = launch.rows;
    const int lane = int(threadIdx.x % warp);
    const std::int64_t size = rows.row_size, tiles = (size + tile - 1) / tile, count = rows.count * tiles;
    const bool moves = launch.moved[0] != nullptr;
    for (std::int64_t i = std::int64_t(blockIdx.x) * warps_per_block + threadIdx.x / warp; i < count;
         i += std::int64_t(gridDim.x) * warps_per_block) {
        const std::int64_t n = i / tiles, column = (i - n * tiles) * tile;
        const MissedRow row = rows.rows[n];
        const IdleFactors<float>& f = static_cast<const IdleFactors<float>*>(rows.factors)[row.factors];
        const std::int64_t stored = row.row * size + column, moved = n * size + column;
        const int left = size - column < tile ? int(size - column) : tile;
        // 32 elements of half a byte are 16 bytes.
        const Place of_stored{lane, left, left == tile && launch.aligned && stored % 32 == 0};
        const Place of_moved{lane, left, left == tile && moved % 4 == 0};
        const auto take = [&](auto list, int b, float (&x)[per_lane]) {
            Vector v[vectors<float>];
            if (launch.back) {
                load_vectors<4>(v, launch.moved[b], moved, of_moved);
#pragma unroll
                for (int k = 0; k < per_lane; ++k) x[k] = element(v, k, 0.0f);
                return;
            }
            using List = decltype(list);
            const std::uint8_t format = launch.format[b];
            float scale = 0.0f;
            with_format(list, format,
                        [&]<class F>(Tag<F>) { scale = load_scale<F>(launch.side[b], stored, of_stored); });
            load<float, List>(v, rows.buffer[b], bytes_of(format), stored, of_stored);
            unpack<List>(x, v, format, scale, lane, Beside{launch.side[b], stored, of_stored});
        };
        const auto put = [&](auto list, int b, const float (&x)[per_lane]) {
            if (moves && !launch.back) {
                Vector v[vectors<float>];
#pragma unroll
                for (int k = 0; k < per_lane; ++k) set_element(v, k, x[k]);
                store_vectors<4>(v, launch.moved[b], moved, of_moved);
                return;
            }
            const StateSide side{launch.side[b], buffer_key(launch.key, launch.tensor, std::uint32_t(b)), 0};
            store<decltype(list)>(x, rows.buffer[b], launch.format[b], side, stored, of_stored);
        };
        using Params = typename Computes<float>::Params;
        using States = typename Computes<float>::States;
        float p[per_lane];
        take(Params{}, 0, p);
        if (!launch.back && f.param != 1.0f)
#pragma unroll
            for (int k = 0; k < per_lane; ++k) p[k] = f.param * p[k];
        for (int s = 0; s < rows.states; ++s) {
            if (s == rows.number) {
                if (column != 0 || lane != 0) continue;
                float* const own = static_cast<float*>(rows.buffer[2 + s]) + row.row;
                float* const other = moves ? static_cast<float*>(launch.moved[2 + s]) + n : own;
                const float number = __ldcg(launch.back ? other : own);
                __stcg(launch.back ? own : other, launch.back ? number : f.state[s] * number);
                continue;
            }
            float x[per_lane];
            take(States{}, 2 + s, x);
            if (!launch.back) {
                if (f.from_state[s] != 0.0f)
#pragma unroll
                    for (int k = 0; k < per_lane; ++k) p[k] = p[k] + f.from_state[s] * x[k];
                if (f.state[s] != 1.0f)
#pragma unroll
                    for (int k = 0; k < per_lane; ++k) x[k] = f.state[s] * x[k];
            }
            put(States{}, 2 + s, x);
        }
        put(Params{}, 0, p);
    }
}

}  // namespace adaptk::cuda
