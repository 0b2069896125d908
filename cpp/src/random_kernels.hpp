// What an object of random kernels (random_kernels.cpp, compiled once for each instruction set) provides to random.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adaptk::detail {

// The numbers of a stream are in tiles of this many blocks of the generator. If a block gives k numbers, number j of
// block b of a tile is element 256 j + b of the tile: neighbours in memory are neighbours in a vector.
inline constexpr std::size_t random_blocks = 256;
inline constexpr std::size_t max_random_elements = 4 * random_blocks;

struct RandomSource {
    std::uint64_t seed, stream;
};

// The numbers of a distribution: low + width * uniform, or mean + std * normal. A truncated normal one also has the
// probability below the interval and that of the interval, its sign (-1: mirrored) and the bounds of its values.
template <class T> struct Distribution {
    T shift, scale;
    double below = 0, between = 0, sign = 1, low = 0, high = 0;
};

// Fills one whole tile, of `elements`.
template <class T> struct RandomKernel {
    void (*fill)(const RandomSource& source, const Distribution<T>& d, std::uint64_t tile, T* out);
    std::size_t elements;
};

// Columns of a panel of reflect().
inline constexpr std::size_t panel_columns = 32;

struct RandomTable {
    // The four words of each block of a tile, word by word.
    void (*words)(const RandomSource& source, std::uint64_t tile, std::uint32_t* out);
    RandomKernel<float> uniform_f32, normal_f32, truncated_f32;
    RandomKernel<double> uniform_f64, normal_f64, truncated_f64;
    void (*encode_bfloat16)(const float* in, std::uint16_t* out, std::size_t n);
    void (*encode_float16)(const float* in, std::uint16_t* out, std::size_t n);
    void (*encode_e4m3fn)(const float* in, std::uint8_t* out, std::size_t n);
    void (*encode_e5m2)(const float* in, std::uint8_t* out, std::size_t n);
    // x <- (I - factor v v') x for a panel of `rows` rows, each of panel_columns.
    void (*reflect)(const double* v, double factor, std::size_t rows, double* x);
};

const RandomTable& random_portable();
const RandomTable& random_v2();
const RandomTable& random_v3();
const RandomTable& random_v4();

}  // namespace adaptk::detail
