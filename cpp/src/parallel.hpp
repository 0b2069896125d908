// Work over many tensors, divided among threads.
#pragma once

#include "compiler.hpp"
#include "pool.hpp"
#include "step.hpp"
#include "threads.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace adaptk::detail {

// The elements of a tile. Buffers that are not updated in place are decoded tile by tile into scratch memory, updated
// there and encoded back. Tiles are small, so that memory is not idle while a stage works in the cache. Measured with
// RMSProp, AdaDelta and AdaGrad on bfloat16, 64M elements, two cores: 256 ran at 0.93 to 1.1 times float32's speed; 64
// and 128 varied from 0.75 to 1.2, and 1024 reached 0.6.
inline constexpr std::size_t tile = 256;

// With fewer elements for each thread, waking another one costs more time than it saves: some microseconds if it is
// spinning and some tens if it sleeps. A heavy rule takes 10 us for this many elements in the cache.
inline constexpr std::int64_t min_work = 32768;

// The shares of threads begin at multiples of this within a tensor, so that two threads never write the same cache
// line, and tiles, blocks of formats and rows of accumulators are not divided.
inline constexpr std::int64_t cut_grain = 1024;

inline int threads_for(std::int64_t elements) {
    const std::int64_t useful = elements / min_work;
    return int(std::clamp<std::int64_t>(useful, 1, num_threads()));
}

// run_on_threads in the floating-point mode that the library guarantees. The caller's thread is in it already.
template <class Body> void in_parallel(int threads, const Body& body) {
    if (threads <= 1) {
        body(0, 1);
        return;
    }
    run_on_threads(threads, [&](int k, int n) {
        const FloatingPointMode mode;
        body(k, n);
    });
}

inline std::int64_t total_size(std::span<const ParamUpdate> tensors) {
    std::int64_t n = 0;
    for (const ParamUpdate& t : tensors) n += t.size;
    return n;
}

template <class T> constexpr Format native_format = sizeof(T) == 8 ? Format::float64 : Format::float32;

inline bool aligned(const void* p, std::size_t to) { return reinterpret_cast<std::uintptr_t>(p) % to == 0; }

inline std::byte* at(const Slot& s, std::int64_t element) {
    return static_cast<std::byte*>(s.data) + storage_bytes(s.format, element);
}
inline std::byte* at(const ParamUpdate& t, std::size_t buffer, std::int64_t element) {
    return at(t.slot(buffer), element);
}

// Kernels that draw random bits begin at a multiple of this.
inline constexpr std::int64_t draw_alignment = 64;

// Elements first ... first + n - 1 of a buffer in the compute type T, n <= tile; `first` begins a block.
template <class T> void decode_tile(const KernelTable& k, const Slot& s, std::int64_t first, std::size_t n, T* out) {
    const FormatInfo& f = info_of(s.format);
    const auto decode = k.format[std::size_t(f.id)].decode[sizeof(T) == 8 ? 1 : 0];
    if (aligned(s.data, f.alignment)) {
        decode(at(s, first), s.side, first, out, n);
        return;
    }
    alignas(cache_line) std::byte moved[tile * sizeof(double)];
    std::memcpy(moved, at(s, first), storage_bytes(f.id, std::int64_t(n)));
    decode(moved, s.side, first, out, n);
}
template <class T>
void decode_tile(const KernelTable& k, const ParamUpdate& t, std::size_t b, std::int64_t first, std::size_t n, T* out) {
    decode_tile(k, t.slot(b), first, n, out);
}

// `buffer_key`: of the buffer's draws, if the format is rounded stochastically.
template <class T>
void encode_tile(const KernelTable& k, const T* in, const Slot& s, std::int64_t first, std::size_t n,
                 std::uint64_t buffer_key) {
    const FormatInfo& f = info_of(s.format);
    const auto encode = k.format[std::size_t(f.id)].encode[sizeof(T) == 8 ? 1 : 0];
    // Rows may begin anywhere, and elements share their draws in groups.
    if (const auto skipped = std::size_t(first % draw_alignment); f.stochastic && skipped > 0) {
        alignas(cache_line) T padded[tile + draw_alignment] = {};
        alignas(cache_line) std::byte encoded[(tile + draw_alignment) * sizeof(T)];
        std::memcpy(padded + skipped, in, n * sizeof(T));
        encode(padded, encoded, s.side, first - std::int64_t(skipped), skipped + n, buffer_key);
        std::memcpy(at(s, first), encoded + skipped * f.bytes, n * f.bytes);
        return;
    }
    if (aligned(s.data, f.alignment)) {
        encode(in, at(s, first), s.side, first, n, buffer_key);
        return;
    }
    alignas(cache_line) std::byte moved[tile * sizeof(double)];
    encode(in, moved, s.side, first, n, buffer_key);
    std::memcpy(at(s, first), moved, storage_bytes(f.id, std::int64_t(n)));
}
template <class T>
void encode_tile(const KernelTable& k, const T* in, const ParamUpdate& t, std::size_t b, std::int64_t first,
                 std::size_t n, std::uint64_t buffer_key) {
    encode_tile(k, in, t.slot(b), first, n, buffer_key);
}

}  // namespace adaptk::detail
