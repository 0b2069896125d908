// The loops around the generator and the distributions of random.hpp. Like kernels.cpp, this file is compiled once for
// each instruction set; all loops are internal, and one function is exported.
#include "random_kernels.hpp"

#include "adaptk/formats/float8.hpp"
#include "adaptk/formats/half.hpp"
#include "adaptk/random.hpp"

#define ADAPTK_CONCAT2(a, b) a##b
#define ADAPTK_CONCAT(a, b) ADAPTK_CONCAT2(a, b)

namespace adaptk::detail {
namespace {

using std::size_t;

constexpr size_t blocks = random_blocks;

// A separate loop: together with the distribution there would not be enough registers.
struct Words {
    alignas(64) std::uint32_t word[4][blocks];
};

ADAPTK_HD void draw(const RandomSource& source, std::uint64_t tile, std::uint32_t* w) {
    const std::uint64_t first = tile * blocks;
    std::uint32_t* ADAPTK_RESTRICT w0 = w;
    std::uint32_t* ADAPTK_RESTRICT w1 = w + blocks;
    std::uint32_t* ADAPTK_RESTRICT w2 = w + 2 * blocks;
    std::uint32_t* ADAPTK_RESTRICT w3 = w + 3 * blocks;
    const auto low = std::uint32_t(first), high = std::uint32_t(first >> 32);
    // The lower half of the counter does not carry within a tile.
    ADAPTK_INDEPENDENT
    for (std::uint32_t b = 0; b < std::uint32_t(blocks); ++b) {
        const RandomWords r = random_words(source.seed, source.stream, std::uint64_t(high) << 32 | (low + b));
        w0[b] = r.w0;
        w1[b] = r.w1;
        w2[b] = r.w2;
        w3[b] = r.w3;
    }
}

void words(const RandomSource& source, std::uint64_t tile, std::uint32_t* out) { draw(source, tile, out); }

void uniform_f32(const RandomSource& source, const Distribution<float>& d, std::uint64_t tile, float* out) {
    Words w;
    draw(source, tile, w.word[0]);
    const std::uint32_t* ADAPTK_RESTRICT from = w.word[0];
    float* ADAPTK_RESTRICT x = out;
    const float shift = d.shift, scale = d.scale;
    ADAPTK_INDEPENDENT
    for (size_t i = 0; i < 4 * blocks; ++i) x[i] = shift + scale * uniform_from(from[i]);
}

void uniform_f64(const RandomSource& source, const Distribution<double>& d, std::uint64_t tile, double* out) {
    Words w;
    draw(source, tile, w.word[0]);
    const double shift = d.shift, scale = d.scale;
    for (size_t half = 0; half < 2; ++half) {
        const std::uint32_t* ADAPTK_RESTRICT high = w.word[2 * half];
        const std::uint32_t* ADAPTK_RESTRICT low = w.word[2 * half + 1];
        double* ADAPTK_RESTRICT x = out + half * blocks;
        ADAPTK_INDEPENDENT
        for (size_t i = 0; i < blocks; ++i) x[i] = shift + scale * uniform_from(high[i], low[i]);
    }
}

void normal_f32(const RandomSource& source, const Distribution<float>& d, std::uint64_t tile, float* out) {
    Words w;
    draw(source, tile, w.word[0]);
    const float shift = d.shift, scale = d.scale;
    for (size_t half = 0; half < 2; ++half) {
        const std::uint32_t* ADAPTK_RESTRICT radius = w.word[2 * half];
        const std::uint32_t* ADAPTK_RESTRICT angle = w.word[2 * half + 1];
        float* ADAPTK_RESTRICT x = out + 2 * half * blocks;
        float* ADAPTK_RESTRICT y = x + blocks;
        ADAPTK_INDEPENDENT
        for (size_t i = 0; i < blocks; ++i) {
            const NormalPair<float> z = normal_pair(radius[i], angle[i]);
            x[i] = shift + scale * z.first;
            y[i] = shift + scale * z.second;
        }
    }
}

void normal_f64(const RandomSource& source, const Distribution<double>& d, std::uint64_t tile, double* out) {
    Words w;
    draw(source, tile, w.word[0]);
    const double shift = d.shift, scale = d.scale;
    const std::uint32_t* ADAPTK_RESTRICT w0 = w.word[0];
    const std::uint32_t* ADAPTK_RESTRICT w1 = w.word[1];
    const std::uint32_t* ADAPTK_RESTRICT w2 = w.word[2];
    const std::uint32_t* ADAPTK_RESTRICT w3 = w.word[3];
    double* ADAPTK_RESTRICT x = out;
    double* ADAPTK_RESTRICT y = out + blocks;
    ADAPTK_INDEPENDENT
    for (size_t i = 0; i < blocks; ++i) {
        const NormalPair<double> z = normal_pair(RandomWords{w0[i], w1[i], w2[i], w3[i]});
        x[i] = shift + scale * z.first;
        y[i] = shift + scale * z.second;
    }
}

// Computed in double for all types: for float, the same numbers are rounded.
template <class T> void truncated(const RandomSource& source, const Distribution<T>& d, std::uint64_t tile, T* out) {
    Words w;
    draw(source, tile, w.word[0]);
    const double shift = d.shift, scale = d.scale, below = d.below, between = d.between, sign = d.sign;
    const double least = d.low, most = d.high;
    for (size_t half = 0; half < 2; ++half) {
        const std::uint32_t* ADAPTK_RESTRICT high = w.word[2 * half];
        const std::uint32_t* ADAPTK_RESTRICT low = w.word[2 * half + 1];
        T* ADAPTK_RESTRICT x = out + half * blocks;
        ADAPTK_INDEPENDENT
        for (size_t i = 0; i < blocks; ++i)
            x[i] = T(truncated_normal_from(high[i], low[i], shift, scale, below, between, sign, least, most));
    }
}

template <class Code, class Encode>
ADAPTK_HD void encode(const float* from, Code* to, size_t n, const Encode& element) {
    const float* ADAPTK_RESTRICT x = from;
    Code* ADAPTK_RESTRICT y = to;
    ADAPTK_INDEPENDENT
    for (size_t i = 0; i < n; ++i) y[i] = element(x[i]);
}

void encode_bfloat16_tile(const float* in, std::uint16_t* out, size_t n) {
    encode(in, out, n, [](float x) { return BFloat16::encode(x); });
}

void encode_float16_tile(const float* in, std::uint16_t* out, size_t n) {
    encode(in, out, n, [](float x) { return encode_float16(x); });
}

void encode_e4m3fn_tile(const float* in, std::uint8_t* out, size_t n) {
    encode(in, out, n, [](float x) { return Float8E4M3FN::encode(x); });
}

void encode_e5m2_tile(const float* in, std::uint8_t* out, size_t n) {
    encode(in, out, n, [](float x) { return Float8E5M2::encode(x); });
}

// Every column has its own sum over the rows in order, so its bits do not depend on the width of vectors.
void reflect(const double* v, double factor, size_t rows, double* x) {
    double sum[panel_columns] = {};
    for (size_t i = 0; i < rows; ++i) {
        const double* ADAPTK_RESTRICT row = x + i * panel_columns;
        ADAPTK_UNROLL
        for (size_t c = 0; c < panel_columns; ++c) sum[c] += v[i] * row[c];
    }
    for (size_t c = 0; c < panel_columns; ++c) sum[c] *= factor;
    for (size_t i = 0; i < rows; ++i) {
        double* ADAPTK_RESTRICT row = x + i * panel_columns;
        for (size_t c = 0; c < panel_columns; ++c) row[c] -= v[i] * sum[c];
    }
}

constexpr RandomTable table{words,
                            {uniform_f32, 4 * blocks},
                            {normal_f32, 4 * blocks},
                            {truncated<float>, 2 * blocks},
                            {uniform_f64, 2 * blocks},
                            {normal_f64, 2 * blocks},
                            {truncated<double>, 2 * blocks},
                            encode_bfloat16_tile,
                            encode_float16_tile,
                            encode_e4m3fn_tile,
                            encode_e5m2_tile,
                            reflect};

}  // namespace

const RandomTable& ADAPTK_CONCAT(random_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
