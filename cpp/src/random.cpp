#include "random.hpp"

#include "dispatch.hpp"
#include "pool.hpp"
#include "threads.hpp"

#include "adaptk/power.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>
#include <vector>

namespace adaptk::detail {
namespace {

// The kernels of the current instruction set.
const RandomTable& random_table() {
    [[maybe_unused]] const std::string_view isa = current_isa().name;
#if defined(ADAPTK_X86_KERNELS)
#if !defined(ADAPTK_NO_V2_KERNELS)
    if (isa == "x86-64-v2") return random_v2();
#endif
    if (isa == "x86-64-v3") return random_v3();
#if !defined(ADAPTK_NO_V4_KERNELS)
    if (isa == "x86-64-v4") return random_v4();
#endif
#endif
    return random_portable();
}

// A few microseconds of work for each thread, as in a step.
constexpr std::int64_t fewest_random_elements = 16384;

template <class Body> void share_elements(std::int64_t elements, const Body& body) {
    const int threads = int(std::clamp<std::int64_t>(elements / fewest_random_elements, 1, num_threads()));
    run_on_threads(threads, [&](int k, int n) {
        const FloatingPointMode mode;
        body(k, n);
    });
}

template <class T> T narrowed(double value) {
    // The conversion is not defined for values that round to infinity.
    if constexpr (sizeof(T) == 4) {
        constexpr float infinite = std::numeric_limits<float>::infinity();
        if (std::abs(value) >= 0x1.ffffffp127) return value > 0 ? infinite : -infinite;
    }
    return T(value);
}

// n numbers of the compute type to memory at any address.
template <class T> void store(const RandomTable& k, const T* in, Format format, std::byte* out, std::size_t n) {
    if constexpr (sizeof(T) == 4) {
        if (format == Format::bfloat16 || format == Format::float16) {
            std::uint16_t encoded[max_random_elements];
            (format == Format::bfloat16 ? k.encode_bfloat16 : k.encode_float16)(in, encoded, n);
            std::memcpy(out, encoded, n * sizeof *encoded);
            return;
        }
        if (size_of(format) == 1) {
            const bool e5m2 = info_of(format).dlpack_code == dlpack_float8_e5m2;
            (e5m2 ? k.encode_e5m2 : k.encode_e4m3fn)(in, reinterpret_cast<std::uint8_t*>(out), n);
            return;
        }
    }
    std::memcpy(out, in, n * sizeof(T));
}

template <class T> const RandomKernel<T>& kernel_of(const RandomTable& k, Distributed kind) {
    if constexpr (sizeof(T) == 4) {
        return kind == Distributed::uniform  ? k.uniform_f32
               : kind == Distributed::normal ? k.normal_f32
                                             : k.truncated_f32;
    } else {
        return kind == Distributed::uniform  ? k.uniform_f64
               : kind == Distributed::normal ? k.normal_f64
                                             : k.truncated_f64;
    }
}

// Probabilities below the distribution's centre have the better relative precision.
template <class T> Distribution<T> distribution_of(const RandomFill& f) {
    Distribution<T> d{narrowed<T>(f.shift), narrowed<T>(f.scale)};
    if (f.kind != Distributed::truncated) return d;
    const bool mirrored = f.low > 0;
    const double a = mirrored ? -f.high : f.low, b = mirrored ? -f.low : f.high;
    d.below = normal_probability(a);
    d.between = normal_probability(b) - d.below;
    d.sign = mirrored ? -1 : 1;
    d.low = double(d.shift) + double(d.scale) * f.low;
    d.high = double(d.shift) + double(d.scale) * f.high;
    return d;
}

template <class T> void fill_as(const RandomFill& f, Format format, std::byte* data, std::int64_t size) {
    const RandomTable& table = random_table();
    const RandomKernel<T> kernel = kernel_of<T>(table, f.kind);
    const Distribution<T> d = distribution_of<T>(f);
    const RandomSource source{f.seed, f.stream};
    const std::size_t bytes = size_of(format);
    const auto whole = std::uint64_t(kernel.elements);
    const std::uint64_t end = f.offset + std::uint64_t(size);
    const std::uint64_t first_tile = f.offset / whole, tiles = (end + whole - 1) / whole - first_tile;
    const bool in_place = bytes == sizeof(T) && reinterpret_cast<std::uintptr_t>(data) % sizeof(T) == 0;
    share_elements(size, [&](int k, int n) {
        const std::uint64_t from = first_tile + tiles * std::uint64_t(k) / std::uint64_t(n);
        const std::uint64_t to = first_tile + tiles * std::uint64_t(k + 1) / std::uint64_t(n);
        alignas(64) T scratch[max_random_elements];
        for (std::uint64_t tile = from; tile < to; ++tile) {
            const std::uint64_t begin = std::max(f.offset, tile * whole), stop = std::min(end, (tile + 1) * whole);
            std::byte* const out = data + (begin - f.offset) * bytes;
            if (in_place && stop - begin == whole) {
                kernel.fill(source, d, tile, reinterpret_cast<T*>(out));
                continue;
            }
            kernel.fill(source, d, tile, scratch);
            store(table, scratch + (begin - tile * whole), format, out, std::size_t(stop - begin));
        }
    });
}

}  // namespace

Distribution<double> distribution_of(const RandomFill& f, Format format) {
    if (format == Format::float64) return distribution_of<double>(f);
    const Distribution<float> d = distribution_of<float>(f);
    return {d.shift, d.scale, d.below, d.between, d.sign, d.low, d.high};
}

void fill_random(const RandomFill& f, Format format, void* data, std::int64_t size) {
    if (size == 0) return;
    if (format == Format::float64) {
        fill_as<double>(f, format, static_cast<std::byte*>(data), size);
    } else {
        fill_as<float>(f, format, static_cast<std::byte*>(data), size);
    }
}

void fill_constant(double value, Format format, void* data, std::int64_t size) {
    constexpr std::int64_t run = 1024;
    alignas(64) std::byte pattern[run * sizeof(double)];
    const auto bytes = std::int64_t(size_of(format));
    const std::vector<double> values(std::size_t(run), value);
    store_elements(values.data(), format, pattern, bytes, run);
    share_elements(size, [&](int k, int n) {
        const std::int64_t runs = (size + run - 1) / run;
        for (std::int64_t r = runs * k / n; r < runs * (k + 1) / n; ++r)
            std::memcpy(static_cast<std::byte*>(data) + r * run * bytes, pattern,
                        std::size_t(std::min(run, size - r * run) * bytes));
    });
}

void store_elements(const double* values, Format format, std::byte* data, std::int64_t stride, std::int64_t size) {
    const RandomTable& table = random_table();
    const auto bytes = std::int64_t(size_of(format));
    constexpr std::int64_t run = 512;
    float narrow[run];
    std::byte encoded[run * sizeof(double)];
    for (std::int64_t i = 0; i < size; i += run) {
        const std::int64_t n = std::min(run, size - i);
        std::byte* const out = stride == bytes ? data + i * bytes : encoded;
        if (format == Format::float64) {
            store(table, values + i, format, out, std::size_t(n));
        } else {
            for (std::int64_t j = 0; j < n; ++j) narrow[j] = narrowed<float>(values[i + j]);
            store(table, narrow, format, out, std::size_t(n));
        }
        if (out == encoded)
            for (std::int64_t j = 0; j < n; ++j)
                std::memcpy(data + (i + j) * stride, encoded + j * bytes, std::size_t(bytes));
    }
}

void random_blocks_of(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, std::int64_t count,
                      std::uint32_t* out) {
    const RandomTable& table = random_table();
    alignas(64) std::uint32_t words[4 * random_blocks];
    const auto whole = std::uint64_t(random_blocks);
    for (std::int64_t done = 0; done < count;) {
        const std::uint64_t block = first + std::uint64_t(done);
        const std::uint64_t in_tile = block % whole;
        const std::int64_t n = std::min(count - done, std::int64_t(whole - in_tile));
        table.words({seed, stream}, block / whole, words);
        for (std::int64_t b = 0; b < n; ++b)
            for (std::size_t w = 0; w < 4; ++w)
                out[std::size_t(done + b) * 4 + w] = words[w * random_blocks + std::size_t(in_tile) + std::size_t(b)];
        done += n;
    }
}

// The product of reflections that turn normally distributed vectors of lengths rows, rows - 1 ... into multiples of the
// first unit vector. The QR factorisation of a normally distributed matrix would give the same distribution, but needs
// the matrix (G. W. Stewart, The efficient generation of random orthogonal matrices, SIAM J. Numer. Anal. 17, 1980).
// Columns change sign so that R's diagonal is positive, without which the matrices are not uniformly distributed (F.
// Mezzadri, How to generate random matrices from the classical compact groups, Notices of the AMS 54, 2007).
void random_orthogonal(std::uint64_t seed, std::int64_t rows, std::int64_t columns, double* out) {
    if (rows == 0 || columns == 0) return;
    // Reflection k: elements k ... rows - 1 of row k.
    std::vector<double> vectors(std::size_t(columns * rows)), factors, signs;
    RandomFill normal{Distributed::normal, seed};
    fill_random(normal, Format::float64, vectors.data(), columns * rows);
    {
        const FloatingPointMode mode;
        for (std::int64_t k = 0; k < columns; ++k) {
            double* const v = &vectors[std::size_t(k * rows)];
            double square = 0;
            for (std::int64_t i = k; i < rows; ++i) square += v[i] * v[i];
            const double norm = std::sqrt(square), first = v[k];
            const double sign = first < 0 ? -1.0 : 1.0;
            v[k] = first + sign * norm;
            // 2 / v'v. A vector of zeros, which is possible, is not reflected.
            factors.push_back(norm > 0 ? 1.0 / (norm * (norm + std::abs(first))) : 0.0);
            signs.push_back(norm > 0 ? -sign : 1.0);
        }
    }
    const RandomTable& table = random_table();
    constexpr auto width = std::int64_t(panel_columns);
    const std::int64_t panels = (columns + width - 1) / width;
    const bool small = double(rows) * double(columns) * double(columns) < 8.0 * fewest_random_elements;
    const int threads = small ? 1 : int(std::min<std::int64_t>(num_threads(), panels));
    std::vector<double> space(std::size_t(threads * rows * width));
    std::atomic<std::int64_t> next{0};
    run_on_threads(threads, [&](int thread, int) {
        const FloatingPointMode mode;
        double* const x = &space[std::size_t(thread * rows * width)];
        // The first columns take the least time. The last ones are done first, so that no thread waits for them at the
        // end.
        for (std::int64_t p = 0; (p = panels - 1 - next.fetch_add(1, std::memory_order_relaxed)) >= 0;) {
            const std::int64_t column = p * width, held = std::min(width, columns - column);
            std::fill(x, x + rows * width, 0.0);
            for (std::int64_t c = 0; c < held; ++c) x[(column + c) * width + c] = 1.0;
            for (std::int64_t k = column + held - 1; k >= 0; --k)
                table.reflect(&vectors[std::size_t(k * rows + k)], factors[std::size_t(k)], std::size_t(rows - k),
                              x + k * width);
            for (std::int64_t i = 0; i < rows; ++i)
                for (std::int64_t c = 0; c < held; ++c)
                    out[i * columns + column + c] = x[i * width + c] * signs[std::size_t(column + c)];
        }
    });
}

double normal_probability(double x) {
    const FloatingPointMode mode;
    if (x > 0) return 1.0 - normal_probability(-x);
    const double y = -x;
    if (y > 38) return 0;
    const double square = y * y;
    const double density =
        power_detail::exp({-square / 2, -power_detail::rest_of_product(y, y, square) / 2}) * 0.39894228040143267794;
    if (y < 2.5) {
        // 1/2 - density * (y + y^3/3 + y^5/(3 5) + ...)
        double term = y, sum = y;
        for (int k = 1; k < 60; ++k) {
            term = term * y * y / (2 * k + 1);
            sum += term;
        }
        return 0.5 - density * sum;
    }
    // density / (y + 1/(y + 2/(y + 3/(y + ...)))).
    double fraction = y;
    for (int k = 120; k >= 1; --k) fraction = y + k / fraction;
    return density / fraction;
}

}  // namespace adaptk::detail
