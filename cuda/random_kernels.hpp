// Random numbers and constants into memory: the numbers of cpp/src/random_kernels.cpp, in the same places. A thread has
// a block of the generator at a time, whose numbers lie 256 elements apart, so that a warp writes neighbours.
#pragma once

#include "adaptk/formats/float8.hpp"
#include "adaptk/formats/half.hpp"
#include "adaptk/random.hpp"
#include "device.hpp"
#include "random_launch.hpp"
#include "tuning.hpp"

namespace adaptk::cuda {

template <detail::Distributed Kind, class T, std::size_t N>
ADAPTK_DEVICE void draw_numbers(const detail::Distribution<double>& d, const RandomWords& w, T (&x)[N]) {
    using detail::Distributed;
    const T shift = T(d.shift), scale = T(d.scale);
    if constexpr (Kind == Distributed::truncated) {
        x[0] = T(truncated_normal_from(w.w0, w.w1, d.shift, d.scale, d.below, d.between, d.sign, d.low, d.high));
        x[1] = T(truncated_normal_from(w.w2, w.w3, d.shift, d.scale, d.below, d.between, d.sign, d.low, d.high));
    } else if constexpr (Kind == Distributed::normal && sizeof(T) == 8) {
        const NormalPair<double> z = normal_pair(w);
        x[0] = shift + scale * z.first;
        x[1] = shift + scale * z.second;
    } else if constexpr (Kind == Distributed::normal) {
        const NormalPair<float> y = normal_pair(w.w0, w.w1);
        const NormalPair<float> z = normal_pair(w.w2, w.w3);
        x[0] = shift + scale * y.first;
        x[1] = shift + scale * y.second;
        x[2] = shift + scale * z.first;
        x[3] = shift + scale * z.second;
    } else if constexpr (sizeof(T) == 8) {
        x[0] = shift + scale * uniform_from(w.w0, w.w1);
        x[1] = shift + scale * uniform_from(w.w2, w.w3);
    } else {
        x[0] = shift + scale * uniform_from(w.w0);
        x[1] = shift + scale * uniform_from(w.w1);
        x[2] = shift + scale * uniform_from(w.w2);
        x[3] = shift + scale * uniform_from(w.w3);
    }
}

ADAPTK_DEVICE void store_number(double x, std::uint64_t i, const RandomLaunch& to) {
    __stcg(static_cast<double*>(to.data) + i, x);
}
ADAPTK_DEVICE void store_number(float x, std::uint64_t i, const RandomLaunch& to) {
    if (to.format == detail::Format::float32) {
        __stcg(static_cast<float*>(to.data) + i, x);
    } else if (to.float8 != 0) {
        const std::uint8_t code = to.float8 == dlpack_float8_e5m2 ? Float8E5M2::encode(x) : Float8E4M3FN::encode(x);
        __stcg(static_cast<unsigned char*>(to.data) + i, code);
    } else {
        const std::uint16_t code = to.format == detail::Format::bfloat16 ? BFloat16::encode(x) : Float16::encode(x);
        __stcg(static_cast<unsigned short*>(to.data) + i, code);
    }
}

template <detail::Distributed Kind, class T>
inline constexpr std::uint64_t numbers_each = numbers_of_block(Kind, sizeof(T));

template <detail::Distributed Kind, class T>
__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    random_kernel(const __grid_constant__ RandomLaunch launch) {
    constexpr std::uint64_t count = numbers_each<Kind, T>, blocks = detail::random_blocks;
    const std::uint64_t stride = std::uint64_t(gridDim.x) * block_threads;
    for (std::uint64_t i = std::uint64_t(blockIdx.x) * block_threads + threadIdx.x; i < launch.block_count;
         i += stride) {
        const std::uint64_t block = launch.first_block + i;
        T x[count];
        draw_numbers<Kind>(launch.distribution, random_words(launch.seed, launch.stream, block), x);
        const std::uint64_t first = block / blocks * (blocks * count) + block % blocks;
#pragma unroll
        for (int j = 0; j < int(count); ++j) {
            const std::uint64_t e = first + blocks * std::uint64_t(j);
            if (e >= launch.begin && e < launch.end) store_number(x[j], e - launch.begin, launch);
        }
    }
}

template <class E>
__global__ void __launch_bounds__(block_threads, common_resident_blocks)
    constant_kernel(const __grid_constant__ ConstantLaunch launch) {
    const std::int64_t stride = std::int64_t(gridDim.x) * block_threads;
    for (std::int64_t i = std::int64_t(blockIdx.x) * block_threads + threadIdx.x; i < launch.size; i += stride)
        __stcg(static_cast<E*>(launch.data) + i, E(launch.bits));
}

}  // namespace adaptk::cuda
