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
    for (int b = 0; b < int(table_buffers); ++b) {
        void* at = static_cast<std::byte*>(rows.whole.buffer[b]) + place * rows.row_bytes[b];
        if (b == 1) at = gradient;
        if (b == 0 || b != rows.number) addresses |= reinterpret_cast<std::uintptr_t>(at);
        out->buffer[b] = at;
        out->format[b] = rows.whole.format[b];
    }
    out->size = rows.row_size;
    out->first_tile = (rows.row_size + tile - 1) / tile * std::int64_t(i);
    out->coefficients = rows.number != 0 ? i : 0;
    if (rows.sides != nullptr) {
        Side* const side = rows.sides + i;
#pragma unroll
        for (int b = 0; b < int(table_buffers); ++b) {
            void* const at = static_cast<std::byte*>(rows.beside.of_buffer[b]) + place * rows.side_bytes[b];
            // Scales are taken one by one, and lost bits as vectors: their addresses count for params alone.
            if (b == 0) addresses |= reinterpret_cast<std::uintptr_t>(at);
            side->of_buffer[b] = at;
        }
        side->number = rows.beside.number;
        side->first = place * rows.row_size;
    }
    out->aligned = addresses % 16 == 0 && !rows.unaligned ? 1 : 0;
}

__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    row_tables_kernel(const __grid_constant__ RowTablesLaunch launch) {
    const RowTables& rows = launch.rows;
    for (std::uint32_t i = blockIdx.x * block_threads + threadIdx.x; i < launch.count; i += gridDim.x * block_threads) {
        const std::int64_t place = launch.first + std::int64_t(i);
        make_tensor(rows, i, place, static_cast<std::byte*>(rows.whole.buffer[1]) + place * rows.row_bytes[1]);
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
            make_tensor(launch.rows, leaf.row, std::int64_t(key >> launch.place_bits),
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

}  // namespace adaptk::cuda
