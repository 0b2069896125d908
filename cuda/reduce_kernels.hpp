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

// The last of `count` items whose begin is not behind `wanted`.
template <class Begin> ADAPTK_DEVICE std::uint32_t find_last(std::uint32_t count, std::int64_t wanted, Begin begin) {
    std::uint32_t first = 0;
    for (std::uint32_t end = count; end - first > 1;) {
        const std::uint32_t middle = first + (end - first) / 2;
        if (begin(middle) <= wanted) {
            first = middle;
        } else {
            end = middle;
        }
    }
    return first;
}

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

}  // namespace adaptk::cuda
