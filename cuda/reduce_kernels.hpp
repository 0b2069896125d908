// Reductions over parts of tensors: the same fixed tree as on the CPU (cpp/src/reduce.hpp), so that the same bits come
// out. A warp sums a leaf: each lane has every 32nd of the 256 accumulators. A block sums a part's leaves.
#pragma once

#include "norm_kernels.hpp"

namespace adaptk::cuda {

struct SquareTerm {
    static ADAPTK_DEVICE double of(double v) { return v * v; }
};
struct ValueTerm {
    static ADAPTK_DEVICE double of(double v) { return v; }
};

template <class Term>
__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    reduce_kernel(const __grid_constant__ ReduceLaunch launch) {
    const int lane = int(threadIdx.x % warp);
    for (std::int64_t leaf = std::int64_t(blockIdx.x) * warps_per_block + threadIdx.x / warp; leaf < launch.leaf_count;
         leaf += std::int64_t(gridDim.x) * warps_per_block) {
        const ReductionPart part =
            launch
                .parts[find_last(launch.part_count, leaf, [&](std::uint32_t i) { return launch.parts[i].first_leaf; })];
        const std::int64_t from = part.begin + (leaf - part.first_leaf) * std::int64_t(detail::reduction_leaf);
        const std::int64_t to = part.end - from < std::int64_t(detail::reduction_leaf)
                                    ? part.end
                                    : from + std::int64_t(detail::reduction_leaf);
        double sum[per_lane] = {};
        std::uint32_t i =
            find_last(launch.tensor_count, from, [&](std::uint32_t k) { return launch.tensors[k].first; });
        for (; i < launch.tensor_count && launch.tensors[i].first < to; ++i) {
            const NormTensor t = launch.tensors[i];
            const std::int64_t next = i + 1 < launch.tensor_count ? launch.tensors[i + 1].first : launch.total;
            const Piece p{t, t.first < from ? from : t.first, next < to ? next : to, from};
            const double scale = launch.scale * t.factor;
            for (int row = p.rows_from; row < p.rows_to; ++row) {
#pragma unroll
                for (int j = 0; j < per_lane; ++j) {
                    const std::int64_t e = from + tile * row + int(warp) * j + lane;
                    if (e >= p.begin && e < p.end) sum[j] = sum[j] + Term::of(scale * norm_value(t, e - t.first));
                }
            }
        }
        const double total = sum_lanes(sum, false);
        if (lane == 0) launch.leaves[leaf] = total;
    }
}

// One block for each part.
__global__ void __launch_bounds__(finish_threads) sum_parts_kernel(const __grid_constant__ ReduceLaunch launch) {
    constexpr int subtree = 2 * int(finish_threads);
    __shared__ double level[subtree];
    for (std::uint32_t part = blockIdx.x; part < launch.part_count; part += gridDim.x) {
        const std::int64_t first = launch.parts[part].first_leaf;
        const std::int64_t end = part + 1 < launch.part_count ? launch.parts[part + 1].first_leaf : launch.leaf_count;
        const double sum = sum_leaves(launch.leaves + first, end - first, level);
        if (threadIdx.x == 0) launch.sums[part] = sum;
        __syncthreads();
    }
}

// What the leaves of a pass of a rule with reductions come to. One block for each part; for all of the pass's
// reductions.
__global__ void __launch_bounds__(finish_threads) finish_pass_kernel(const __grid_constant__ FinishPassLaunch launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    constexpr int subtree = 2 * int(finish_threads);
    __shared__ double level[subtree];
    for (std::uint32_t part = blockIdx.x; part < launch.part_count; part += gridDim.x) {
        const MeasuredPart p = launch.parts[part];
        const std::int64_t end = part + 1 < launch.part_count ? launch.parts[part + 1].first_leaf : launch.leaf_count;
        for (std::uint32_t r = 0; r < launch.count; ++r) {
            double& scale = launch.scales[part * launch.count + r];
            if (launch.second && scale == 0.0) continue;
            const detail::Reduce what = launch.what[r];
            double* const leaves = launch.sums + std::int64_t(r) * launch.sum_count + p.first_sum;
            const double sum = what == detail::Reduce::largest ? sum_leaves<Larger>(leaves, end - p.first_leaf, level)
                                                               : sum_leaves<Sum>(leaves, end - p.first_leaf, level);
            if (threadIdx.x == 0) {
                // As on the CPU: squares of float64 that overflow or vanish are taken once more of scaled values.
                const bool overflown = sum == infinity;
                double x = reduced(what, sum, p.end - p.begin > 1 ? p.end - p.begin : 1);
                if (what == detail::Reduce::norm && launch.second) x = x / scale;
                launch.reduced[part * launch.stride + launch.number[r]] = x;
                if (!launch.second)
                    scale = what != detail::Reduce::norm ? 0.0 : overflown ? 0x1p-600 : sum < 0x1p-900 ? 0x1p600 : 0.0;
            }
            __syncthreads();
        }
    }
}

ADAPTK_DEVICE void write_number(const FinishLinesLaunch& launch, std::uint32_t r, const LineTensor& t,
                                std::int64_t line, double sum, std::int64_t n) {
    const double x = reduced(launch.what[r], sum, n);
    void* const to = t.line[max_states + launch.number[r]];
    if (launch.wide != 0) {
        static_cast<double*>(to)[line] = x;
    } else {
        static_cast<float*>(to)[line] = float(x);
    }
}

// Of scopes with several leaves each. A block for each number.
__global__ void __launch_bounds__(finish_threads)
    finish_scopes_kernel(const __grid_constant__ FinishLinesLaunch launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    constexpr int subtree = 2 * int(finish_threads);
    __shared__ double level[subtree];
    for (std::int64_t at = blockIdx.x; at < launch.long_count; at += gridDim.x) {
        const std::uint32_t tensor =
            find_last(launch.part_count, at, [&](std::uint32_t i) { return launch.parts[i].first_long; });
        const MeasuredPart part = launch.parts[tensor];
        const std::int64_t line = at - part.first_long, leaves = part.leaves_of_scope();
        for (std::uint32_t r = 0; r < launch.count; ++r) {
            if (launch.skipped[r] != 0) continue;
            double* const sums = launch.sums + std::int64_t(r) * launch.sum_count + part.first_sum + line * leaves;
            const double sum = launch.what[r] == detail::Reduce::largest ? sum_leaves<Larger>(sums, leaves, level)
                                                                         : sum_leaves<Sum>(sums, leaves, level);
            if (threadIdx.x == 0) write_number(launch, r, launch.lines[tensor], line, sum, part.scope);
            __syncthreads();
        }
    }
}

// Of columns with several blocks of rows, which are at most 64. A thread for each number.
template <class Combine> ADAPTK_DEVICE double sum_blocks(double* sums, std::int64_t n, std::int64_t stride) {
    for (; n > 1; n = (n + 1) / 2) {
        for (std::int64_t i = 0; i < n / 2; ++i)
            sums[i * stride] = Combine::of(sums[2 * i * stride], sums[(2 * i + 1) * stride]);
        if (n % 2 != 0) sums[n / 2 * stride] = sums[(n - 1) * stride];
    }
    return sums[0];
}

__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    finish_columns_kernel(const __grid_constant__ FinishLinesLaunch launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    for (std::int64_t at = std::int64_t(blockIdx.x) * block_threads + threadIdx.x; at < launch.long_count;
         at += std::int64_t(gridDim.x) * block_threads) {
        const std::uint32_t tensor =
            find_last(launch.part_count, at, [&](std::uint32_t i) { return launch.parts[i].first_long; });
        const MeasuredPart part = launch.parts[tensor];
        const std::int64_t line = at - part.first_long, columns = part.all_columns(), blocks = part.blocks();
        for (std::uint32_t r = 0; r < launch.count; ++r) {
            if (launch.skipped[r] != 0) continue;
            double* const sums = launch.sums + std::int64_t(r) * launch.sum_count + part.first_sum + line;
            const double sum = launch.what[r] == detail::Reduce::largest ? sum_blocks<Larger>(sums, blocks, columns)
                                                                         : sum_blocks<Sum>(sums, blocks, columns);
            write_number(launch, r, launch.lines[tensor], line, sum, part.rows);
        }
    }
}

}  // namespace adaptk::cuda
