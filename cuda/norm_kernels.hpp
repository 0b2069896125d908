// The global norm: the same fixed tree as on the CPU (cpp/src/step.cpp), so that the same bits come out. All gradients
// are one row of elements; leaves are runs of 8192 of them; a leaf has 256 lanes, each of which adds up its squares in
// order; lanes are added in halves, leaves in pairs.
#pragma once

#include "kernel_table.hpp"
#include "step_kernel.hpp"

namespace adaptk::cuda {

inline constexpr int norm_rows = int(detail::norm_leaf / detail::norm_lanes);
static_assert(detail::norm_lanes == std::size_t(tile));

struct Piece {
    NormTensor tensor;
    std::int64_t begin, end;  // over all tensors
};

ADAPTK_DEVICE double norm_value(const NormTensor& t, std::int64_t i) {
    auto* data = const_cast<void*>(t.data);
    return t.type == type_f64 ? __ldcg(at<double>(data, i)) : double(load_one<float>(data, t.type, i));
}

ADAPTK_DEVICE void add_square(double& lane, double scale, double x) {
    const double v = scale * x;
    lane = lane + v * v;
}

// Eight neighbouring lanes of the tree in each thread: full vectors where the tensors lie so.
ADAPTK_DEVICE void add_vectors(double (&sum)[per_lane], const Piece& p, double scale, std::int64_t leaf, int lane) {
    const std::int64_t first = leaf + per_lane * lane;
    auto* data = const_cast<void*>(p.tensor.data);
#pragma unroll 4
    for (int row = 0; row < norm_rows; ++row) {
        const std::int64_t i = first + tile * row;
        const std::int64_t own = i - p.tensor.first;
        if (i >= p.begin && i + per_lane <= p.end) {
            if (p.tensor.type == type_f32) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const Vector v = load_vector(at<float>(data, own + 4 * j));
#pragma unroll
                    for (int k = 0; k < 4; ++k) add_square(sum[4 * j + k], scale, double(from_bits(v.word[k])));
                }
            } else if (p.tensor.type == type_f64) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const Vector v = load_vector(at<double>(data, own + 2 * j));
#pragma unroll
                    for (int k = 0; k < 2; ++k)
                        add_square(sum[2 * j + k], scale, double_of(v.word[2 * k], v.word[2 * k + 1]));
                }
            } else {
                const Vector v = load_vector(at<std::uint16_t>(data, own));
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    add_square(sum[2 * k], scale, double(widen(p.tensor.type, v.word[k] & 0xffffu)));
                    add_square(sum[2 * k + 1], scale, double(widen(p.tensor.type, v.word[k] >> 16)));
                }
            }
        } else if (i < p.end && i + per_lane > p.begin) {
#pragma unroll
            for (int j = 0; j < per_lane; ++j)
                if (i + j >= p.begin && i + j < p.end) add_square(sum[j], scale, norm_value(p.tensor, own + j));
        }
    }
}

// Every 32nd lane of the tree in a thread: a warp reads 32 neighbouring elements at a time, wherever they lie.
ADAPTK_DEVICE void add_elements(double (&sum)[per_lane], const Piece& p, double scale, std::int64_t leaf, int lane) {
    for (int row = 0; row < norm_rows; ++row) {
#pragma unroll
        for (int j = 0; j < per_lane; ++j) {
            const std::int64_t i = leaf + tile * row + int(warp) * j + lane;
            if (i >= p.begin && i < p.end) add_square(sum[j], scale, norm_value(p.tensor, i - p.tensor.first));
        }
    }
}

// lanes[i] += lanes[i + w] for w = 128, 64, ..., 1, where thread `t` has the lanes 8t ... 8t + 7, or t, t + 32, ...
ADAPTK_DEVICE double sum_lanes(double (&sum)[per_lane], bool neighbouring) {
    if (!neighbouring) {
#pragma unroll
        for (int w = per_lane / 2; w > 0; w /= 2) {
#pragma unroll
            for (int j = 0; j < w; ++j) sum[j] = sum[j] + sum[j + w];
        }
        for (int w = int(warp) / 2; w > 0; w /= 2) sum[0] = sum[0] + __shfl_down_sync(0xffffffffu, sum[0], unsigned(w));
        return sum[0];
    }
    for (int w = int(warp) / 2; w > 0; w /= 2) {
#pragma unroll
        for (int j = 0; j < per_lane; ++j) sum[j] = sum[j] + __shfl_down_sync(0xffffffffu, sum[j], unsigned(w));
    }
#pragma unroll
    for (int w = per_lane / 2; w > 0; w /= 2) {
#pragma unroll
        for (int j = 0; j < w; ++j) sum[j] = sum[j] + sum[j + w];
    }
    return sum[0];
}

__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    norm_kernel(const __grid_constant__ NormLaunch launch) {
    if (launch.control != nullptr && launch.control->again == 0) return;
    const double pass_scale = launch.control != nullptr ? launch.control->pass_scale : 1.0;
    const auto* tensors =
        launch.tensors != nullptr ? launch.tensors : reinterpret_cast<const NormTensor*>(launch.inside);
    const int lane = int(threadIdx.x % warp);
    const std::int64_t size = std::int64_t(detail::norm_leaf);
    const std::int64_t leaves = (launch.total + size - 1) / size;
    for (std::int64_t leaf = std::int64_t(blockIdx.x) * warps_per_block + threadIdx.x / warp; leaf < leaves;
         leaf += std::int64_t(gridDim.x) * warps_per_block) {
        const std::int64_t from = leaf * size;
        const std::int64_t to = launch.total - from < size ? launch.total : from + size;
        std::uint32_t first = 0;
        for (std::uint32_t end = launch.count; end - first > 1;) {
            const std::uint32_t middle = first + (end - first) / 2;
            if (tensors[middle].first <= from) {
                first = middle;
            } else {
                end = middle;
            }
        }
        std::uint32_t behind = first;  // the first tensor behind the leaf
        bool aligned = true;
        while (behind < launch.count && tensors[behind].first < to) aligned = tensors[behind++].aligned != 0 && aligned;
        double sum[per_lane] = {};
        for (std::uint32_t i = first; i < behind; ++i) {
            const std::int64_t next = i + 1 < launch.count ? tensors[i + 1].first : launch.total;
            const Piece p{tensors[i], tensors[i].first < from ? from : tensors[i].first, next < to ? next : to};
            const double scale = pass_scale * p.tensor.factor;
            if (aligned) {
                add_vectors(sum, p, scale, from, lane);
            } else {
                add_elements(sum, p, scale, from, lane);
            }
        }
        const double total = sum_lanes(sum, aligned);
        if (lane == 0) launch.leaves[leaf] = total;
    }
}

// Pairs of neighbours level by level, an odd last one going up as it is, until one value is left: 2048 leaves at a
// time, which are whole subtrees. The sums go to the front of the same memory, behind what has been read.
ADAPTK_DEVICE void sum_subtree(double* leaves, std::int64_t first, int n, double* out, double* level) {
    const int i = int(threadIdx.x);
    for (int k = i; k < n; k += int(finish_threads)) level[k] = leaves[first + k];
    __syncthreads();
    while (n > 1) {
        const double v = 2 * i + 1 < n ? level[2 * i] + level[2 * i + 1] : 2 * i < n ? level[2 * i] : 0.0;
        __syncthreads();
        if (2 * i < n) level[i] = v;
        __syncthreads();
        n = (n + 1) / 2;
    }
    if (i == 0) *out = level[0];
    __syncthreads();
}

__global__ void __launch_bounds__(finish_threads) finish_kernel(const __grid_constant__ FinishLaunch launch) {
    constexpr int subtree = 2 * int(finish_threads);
    __shared__ double level[subtree];
    __shared__ Control shared;
    Control& control = *launch.control;
    const bool wanted = !launch.second || control.again != 0;
    __syncthreads();
    if (wanted) {
        std::int64_t n = launch.count;
        do {
            std::int64_t out = 0;
            for (std::int64_t first = 0; first < n; first += subtree, ++out)
                sum_subtree(launch.leaves, first, int(n - first < subtree ? n - first : subtree), launch.leaves + out,
                            level);
            n = out;
        } while (n > 1);
        if (threadIdx.x == 0) {
            // As on the CPU: squares of float64 that overflow or vanish are taken once more of scaled values.
            const double sum = launch.count > 0 ? launch.leaves[0] : 0.0;
            const bool finite = sum - sum == 0.0;
            Control c = {};
            c.again = !launch.second && launch.rescalable && !(finite && sum >= 0x1p-900) ? 1 : 0;
            c.pass_scale = launch.second ? control.pass_scale : sum < 1.0 ? 0x1p600 : 0x1p-600;
            const double norm = launch.second ? root(sum) / c.pass_scale : root(sum);
            c.norm = magnitude(launch.outer) * norm;
            c.clip = 1.0;
            if (launch.clip_norm >= 0.0 && !(c.norm <= launch.clip_norm)) c.clip = launch.clip_norm / c.norm;
            c.skip = launch.skip_nonfinite && !finite ? 1 : 0;
            control = c;
            shared = c;
        }
    } else if (threadIdx.x == 0) {
        shared = control;
    }
    __syncthreads();
    for (std::uint32_t i = threadIdx.x; i < launch.patch_count; i += finish_threads) {
        const Patch p = launch.patches[i];
        const double scale = p.unclipped * shared.clip;
        if (p.f64 != 0) {
            *reinterpret_cast<double*>(launch.scalars + p.offset) = scale;
        } else {
            *reinterpret_cast<float*>(launch.scalars + p.offset) = float(scale);
        }
    }
}

}  // namespace adaptk::cuda
