// What kernels that fill memory are given.
#pragma once

#include "device.hpp"
#include "random.hpp"

#include <cstddef>
#include <cstdint>

namespace adaptk::cuda {

struct RandomLaunch {
    void* data;
    std::uint64_t seed, stream;
    std::uint64_t begin, end;                // elements of the stream: data holds `begin` first
    std::uint64_t first_block, block_count;  // of the generator: those of whole tiles (random_kernels.hpp)
    detail::Distribution<double> distribution;
    detail::Format format;
    std::uint8_t float8;  // DLPack's code of a format of one byte, else 0
};

struct ConstantLaunch {
    void* data;
    std::int64_t size;
    std::uint64_t bits;  // of an element
};

// Numbers that a block of the generator gives, of float or of double.
constexpr std::size_t numbers_of_block(detail::Distributed kind, std::size_t bytes) {
    return kind == detail::Distributed::truncated || bytes == sizeof(double) ? 2 : 4;
}

void launch_random(const RandomLaunch&, detail::Distributed, unsigned blocks, cudaStream_t);
void launch_constant(const ConstantLaunch&, std::size_t bytes, unsigned blocks, cudaStream_t);  // of an element

}  // namespace adaptk::cuda
