// Kernels that put tables into device memory, and numbers from device memory into tables.
#pragma once

#include "device.hpp"
#include "tables.hpp"

namespace adaptk::cuda {

__global__ void __launch_bounds__(block_threads) upload_kernel(const __grid_constant__ UploadLaunch launch) {
    const auto* from = reinterpret_cast<const uint4*>(launch.data);
    auto* to = reinterpret_cast<uint4*>(launch.to);
    for (unsigned i = blockIdx.x * block_threads + threadIdx.x; i < launch.bytes / 16; i += gridDim.x * block_threads)
        to[i] = from[i];
}

__global__ void __launch_bounds__(block_threads) gather_kernel(const __grid_constant__ GatherLaunch launch) {
    using Scalar = detail::ScalarType;
    for (unsigned i = blockIdx.x * block_threads + threadIdx.x; i < launch.count; i += gridDim.x * block_threads) {
        const Gather g = launch.entries[i];
        const bool whole = g.type == Scalar::i64 || g.type == Scalar::i32;
        std::int64_t n = 0;
        double x = 0.0;
        if (g.type == Scalar::f32) x = double(*static_cast<const float*>(g.from));
        if (g.type == Scalar::f64) x = *static_cast<const double*>(g.from);
        if (g.type == Scalar::i32) n = *static_cast<const int*>(g.from);
        if (g.type == Scalar::i64) n = *static_cast<const std::int64_t*>(g.from);
        if (g.is_count) {
            *static_cast<Count*>(g.to) = Count{(whole ? n : std::int64_t(x)) - 1, {}};
        } else {
            *static_cast<double*>(g.to) = whole ? double(n) : x;
        }
    }
}

}  // namespace adaptk::cuda
