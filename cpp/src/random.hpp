// Fills memory with random numbers, with the kernels of the current instruction set and the library's threads. The bits
// depend on neither.
#pragma once

#include "export.hpp"
#include "format.hpp"
#include "random_kernels.hpp"

#include <cstddef>
#include <cstdint>

namespace adaptk::detail {

enum class Distributed { uniform, normal, truncated };

struct RandomFill {
    Distributed kind;
    std::uint64_t seed = 0;
    std::uint64_t stream = 0;
    // The position of the first element in the stream; offset + size < 2^63.
    std::uint64_t offset = 0;
    // uniform: shift + scale * [0, 1); normal: mean and standard deviation; truncated: also the ends, in standard
    // deviations from the mean.
    double shift = 0, scale = 1;
    double low = 0, high = 0;
};

// The distribution for the kernels of a format, with its numbers in the format's compute type.
ADAPTK_INTERNAL_API Distribution<double> distribution_of(const RandomFill& fill, Format format);

// Memory of the CPU, at any address.
ADAPTK_INTERNAL_API void fill_random(const RandomFill& fill, Format format, void* data, std::int64_t size);
ADAPTK_INTERNAL_API void fill_constant(double value, Format format, void* data, std::int64_t size);

// `size` elements that lie `stride` bytes apart, rounded from doubles.
ADAPTK_INTERNAL_API void store_elements(const double* values, Format format, std::byte* data, std::int64_t stride,
                                        std::int64_t size);

// Blocks first ... first + count - 1 of the generator, four words each.
ADAPTK_INTERNAL_API void random_blocks_of(std::uint64_t seed, std::uint64_t stream, std::uint64_t first,
                                          std::int64_t count, std::uint32_t* out);

// A matrix of `rows` rows and `columns` <= rows orthonormal columns, in C order, uniformly distributed over all such
// matrices.
ADAPTK_INTERNAL_API void random_orthogonal(std::uint64_t seed, std::int64_t rows, std::int64_t columns, double* out);

// The standard normal distribution function, for x <= 0 with full relative precision.
ADAPTK_INTERNAL_API double normal_probability(double x);

}  // namespace adaptk::detail
