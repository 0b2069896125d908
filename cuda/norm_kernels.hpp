// The global norm: the same fixed tree as on the CPU (cpp/src/step.cpp), so that the same bits come out. All gradients
// are one row of elements; leaves are runs of 8192 of them; a leaf has 256 lanes, each of which adds up its squares in
// order; lanes are added in halves, leaves in pairs.
#pragma once

#include "kernel_table.hpp"
#include "stored.hpp"
#include "sums.hpp"
#include "tables.hpp"

namespace adaptk::cuda {

inline constexpr int norm_rows = int(detail::reduction_leaf / detail::reduction_width);
static_assert(detail::reduction_width == std::size_t(tile));

// What a leaf has of a tensor.
struct Piece {
    NormTensor tensor;
    std::int64_t begin, end;  // over all tensors
    int rows_from, rows_to;   // of the leaf, that any of it is in

    ADAPTK_DEVICE Piece(const NormTensor& t, std::int64_t b, std::int64_t e, std::int64_t leaf)
        : tensor(t), begin(b), end(e), rows_from(int(b - leaf) / tile), rows_to((int(e - leaf) + tile - 1) / tile) {}
};

template <class F> ADAPTK_DEVICE double value_of(typename F::Element x) { return double(F::decode(x)); }

// As many elements as a lane's vector holds; those of one byte fill half of it.
template <class X> ADAPTK_DEVICE Vector load_elements(const X* p) {
    if constexpr (sizeof(X) == 1) {
        const uint2 w = __ldcg(reinterpret_cast<const uint2*>(p));
        return {{w.x, w.y, 0, 0}};
    } else {
        return load_vector(p);
    }
}
template <class X> inline constexpr int elements_of = in_vector<int(sizeof(X))>;

ADAPTK_DEVICE double norm_value(const NormTensor& t, std::int64_t i) {
    double x = 0.0;
    with_format(GradientFormats{}, t.format, [&]<class F>(Tag<F>) {
        x = value_of<F>(load_element(static_cast<const typename F::Element*>(t.data) + i));
    });
    return x;
}

ADAPTK_DEVICE void add_square(double& lane, double scale, double x) {
    const double v = scale * x;
    lane = lane + v * v;
}

// The k-th element of a vector.
template <class F> ADAPTK_DEVICE double value_in(const Vector& v, int k) {
    if constexpr (element_bytes<F> == 8) {
        return double_of(v.word[2 * k], v.word[2 * k + 1]);
    } else if constexpr (element_bytes<F> == 4) {
        return double(from_bits(v.word[k]));
    } else {
        return value_of<F>(typename F::Element(code_of<typename F::Element>(v, k)));
    }
}

// Eight neighbouring lanes of the tree in each thread: full vectors where the tensors lie so.
ADAPTK_DEVICE void add_vectors(double (&sum)[per_lane], const Piece& p, double scale, std::int64_t leaf, int lane) {
    const std::int64_t first = leaf + per_lane * lane;
    auto* data = const_cast<void*>(p.tensor.data);
#pragma unroll 1
    for (int row = p.rows_from; row < p.rows_to; ++row) {
        const std::int64_t i = first + tile * row;
        const std::int64_t own = i - p.tensor.first;
        if (i >= p.begin && i + per_lane <= p.end) {
            with_format(GradientFormats{}, p.tensor.format, [&]<class F>(Tag<F>) {
                using X = typename F::Element;
#pragma unroll
                for (int j = 0; j < per_lane / elements_of<X>; ++j) {
                    const Vector v = load_elements(at<X>(data, own + elements_of<X> * j));
#pragma unroll
                    for (int k = 0; k < elements_of<X>; ++k)
                        add_square(sum[elements_of<X> * j + k], scale, value_in<F>(v, k));
                }
            });
        } else if (i < p.end && i + per_lane > p.begin) {
#pragma unroll
            for (int j = 0; j < per_lane; ++j)
                if (i + j >= p.begin && i + j < p.end) add_square(sum[j], scale, norm_value(p.tensor, own + j));
        }
    }
}

// Leaves inside one tensor, which most are: several rows are loaded before any of them is used, so that a warp has not
// just one row under way (tuning.hpp). The same additions in the same order as above and below.
template <class F>
ADAPTK_DEVICE void add_leaf_of_vectors(double (&sum)[per_lane], const void* leaf, double scale, int lane) {
    using X = typename F::Element;
    constexpr int n = per_lane / elements_of<X>;
    constexpr int rows = norm_vectors / n;
    static_assert(norm_rows % rows == 0);
    // A pointer that moves on, and offsets that the compiler knows: addresses of their own would take its registers.
    const X* p = static_cast<const X*>(leaf) + per_lane * lane;
#pragma unroll 1
    for (int row = 0; row < norm_rows; row += rows, p += rows * tile) {
        Vector v[rows][n];
#pragma unroll
        for (int r = 0; r < rows; ++r) {
#pragma unroll
            for (int j = 0; j < n; ++j) v[r][j] = load_elements(p + tile * r + elements_of<X> * j);
        }
#pragma unroll
        for (int r = 0; r < rows; ++r) {
#pragma unroll
            for (int k = 0; k < per_lane; ++k)
                add_square(sum[k], scale, value_in<F>(v[r][k / elements_of<X>], k % elements_of<X>));
        }
    }
}

template <class F>
ADAPTK_DEVICE void add_leaf_of_elements(double (&sum)[per_lane], const void* leaf, double scale, int lane) {
    using X = typename F::Element;
    constexpr int rows = sizeof(X) == 8 ? norm_element_rows / 2 : norm_element_rows;
    static_assert(norm_rows % rows == 0);
    const X* p = static_cast<const X*>(leaf) + lane;
#pragma unroll 1
    for (int row = 0; row < norm_rows; row += rows, p += rows * tile) {
        X x[rows][per_lane];
#pragma unroll
        for (int r = 0; r < rows; ++r) {
#pragma unroll
            for (int j = 0; j < per_lane; ++j) x[r][j] = load_element(p + tile * r + int(warp) * j);
        }
#pragma unroll
        for (int r = 0; r < rows; ++r) {
#pragma unroll
            for (int j = 0; j < per_lane; ++j) add_square(sum[j], scale, value_of<F>(x[r][j]));
        }
    }
}

template <class F>
ADAPTK_DEVICE void add_leaf(double (&sum)[per_lane], const NormTensor& t, double scale, std::int64_t leaf, int lane,
                            bool aligned) {
    auto* const first = at<typename F::Element>(const_cast<void*>(t.data), leaf - t.first);
    if (aligned) {
        add_leaf_of_vectors<F>(sum, first, scale, lane);
    } else {
        add_leaf_of_elements<F>(sum, first, scale, lane);
    }
}

// Every 32nd lane of the tree in a thread: a warp reads 32 neighbouring elements at a time, wherever they lie.
ADAPTK_DEVICE void add_elements(double (&sum)[per_lane], const Piece& p, double scale, std::int64_t leaf, int lane) {
    for (int row = p.rows_from; row < p.rows_to; ++row) {
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

__global__ void __launch_bounds__(block_threads, norm_resident_blocks)
    norm_kernel(const __grid_constant__ NormLaunch launch) {
    if (launch.control != nullptr && launch.control->again == 0) return;
    const double pass_scale = launch.control != nullptr ? launch.control->pass_scale : 1.0;
    const auto* tensors =
        launch.tensors != nullptr ? launch.tensors : reinterpret_cast<const NormTensor*>(launch.inside);
    const int lane = int(threadIdx.x % warp);
    const std::int64_t size = std::int64_t(detail::reduction_leaf);
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
        const bool inside = behind - first == 1 && tensors[first].first <= from && to - from == size;
        if (inside) {
            const NormTensor t = tensors[first];
            const double scale = pass_scale * t.factor;
            with_format(GradientFormats{}, t.format,
                        [&]<class F>(Tag<F>) { add_leaf<F>(sum, t, scale, from, lane, aligned); });
        }
        for (std::uint32_t i = first; i < behind && !inside; ++i) {
            const std::int64_t next = i + 1 < launch.count ? tensors[i + 1].first : launch.total;
            const Piece p{tensors[i], tensors[i].first < from ? from : tensors[i].first, next < to ? next : to, from};
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

__global__ void __launch_bounds__(finish_threads) finish_kernel(const __grid_constant__ FinishLaunch launch) {
    constexpr int subtree = 2 * int(finish_threads);
    __shared__ double level[subtree];
    __shared__ Control shared;
    Control& control = *launch.control;
    const bool wanted = !launch.second || control.again != 0;
    __syncthreads();
    if (wanted) {
        const double sum = sum_leaves(launch.leaves, launch.count, level);
        if (threadIdx.x == 0) {
            // As on the CPU: squares of float64 that overflow or vanish are taken once more of scaled values. Not NaN,
            // which stays what it is.
            const bool finite = sum - sum == 0.0;
            Control c = {};
            const bool beyond = !(finite && sum >= 0x1p-900) && sum == sum;
            c.again = !launch.second && launch.rescalable && beyond ? 1 : 0;
            c.pass_scale = launch.second ? control.pass_scale : sum < 1.0 ? 0x1p600 : 0x1p-600;
            const double norm = launch.second ? sqrt(sum) / c.pass_scale : sqrt(sum);
            c.norm = abs(launch.outer) * norm;
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
            *reinterpret_cast<double*>(launch.coefficients + p.offset) = scale;
        } else {
            *reinterpret_cast<float*>(launch.coefficients + p.offset) = float(scale);
        }
    }
}

}  // namespace adaptk::cuda
