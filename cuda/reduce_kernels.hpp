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
        const ReductionPart p = launch.parts[part];
        const std::int64_t end = part + 1 < launch.part_count ? launch.parts[part + 1].first_leaf : launch.leaf_count;
        for (std::uint32_t r = 0; r < launch.count; ++r) {
            double& scale = launch.scales[part * launch.count + r];
            if (launch.second && scale == 0.0) continue;
            const detail::Reduce what = launch.what[r];
            double* const leaves = launch.leaves + std::int64_t(r) * launch.leaf_count + p.first_leaf;
            const double sum = what == detail::Reduce::largest ? sum_leaves<Larger>(leaves, end - p.first_leaf, level)
                                                               : sum_leaves<Sum>(leaves, end - p.first_leaf, level);
            if (threadIdx.x == 0) {
                // As on the CPU: squares of float64 that overflow or vanish are taken once more of scaled values.
                const bool overflown = sum == infinity;
                const double size = p.end - p.begin > 1 ? double(p.end - p.begin) : 1.0;
                double x = sum;
                if (what == detail::Reduce::norm) x = launch.second ? sqrt(sum) / scale : sqrt(sum);
                if (what == detail::Reduce::mean) x = sum / size;
                // One NaN, and of zeros the positive one.
                if (what == detail::Reduce::largest) x = sum != sum ? quiet_nan : sum + 0.0;
                launch.reduced[part * launch.stride + launch.number[r]] = x;
                if (!launch.second)
                    scale = what != detail::Reduce::norm ? 0.0 : overflown ? 0x1p-600 : sum < 0x1p-900 ? 0x1p600 : 0.0;
            }
            __syncthreads();
        }
    }
}

}  // namespace adaptk::cuda
