// The kernel around a rule: any number of tensors of any sizes and storage types, one launch.
//
// A warp takes a tile of 256 elements at a time, 8 in each lane. Memory is moved by 16 bytes: where all buffers are of
// the compute type, a lane's vectors lie a row of 32 vectors apart, so that a warp reads whole lines. A 16-byte vector
// of a narrower type holds more neighbouring elements than one of the compute type, so beside one, two neighbouring
// lanes share the elements of two such vectors and interleave their own vectors by 16 bytes:
//
//     elements of the pair's 16    0..3    4..7    8..11   12..15       (compute type float32)
//     wide vectors                 even    odd     even    odd          every access of a warp fills 32-byte sectors
//     16-bit vectors               even    even    odd     odd          one exchange of 8 bytes in the pair
#pragma once

#include "adaptk/formats.hpp"
#include "adaptk/rule.hpp"
#include "device.hpp"
#include "tables.hpp"

#include <utility>

namespace adaptk::cuda {

template <class T> inline constexpr std::uint8_t native_format = format_float32;
template <> inline constexpr std::uint8_t native_format<double> = format_float64;

template <class T> inline constexpr int vector_size = int(16 / sizeof(T));    // elements of a 16-byte vector
template <class T> inline constexpr int vectors = per_lane / vector_size<T>;  // of a lane

struct Lane {
    int index;  // in the warp
    int first;  // element of the tile that the lane's first vector of the compute type begins at
    int step;   // from one such vector to the next
};

template <class T> ADAPTK_DEVICE Lane lane_of(int index, bool narrow) {
    constexpr int u = vector_size<T>;
    if (narrow) return {index, 16 * (index / 2) + u * (index % 2), 2 * u};
    return {index, u * index, int(warp) * u};
}

struct Vector {
    std::uint32_t word[4];
};

// No element is read twice, so nothing is gained by keeping it in the first-level cache.
ADAPTK_DEVICE Vector load_vector(const void* p) {
    const uint4 v = __ldcg(static_cast<const uint4*>(p));
    return {{v.x, v.y, v.z, v.w}};
}

ADAPTK_DEVICE void store_vector(void* p, const Vector& v) {
    __stcg(static_cast<uint4*>(p), uint4{v.word[0], v.word[1], v.word[2], v.word[3]});
}

template <class X> ADAPTK_DEVICE X* at(void* p, std::int64_t i) { return static_cast<X*>(p) + i; }

ADAPTK_DEVICE double double_of(std::uint32_t low, std::uint32_t high) { return __hiloint2double(int(high), int(low)); }

// The even lane of a pair keeps its first half and gets the odd one's first half as its second; the odd lane keeps its
// second half and gets the even one's second half as its first. Its own inverse.
ADAPTK_DEVICE Vector exchange(const Vector& v, int lane) {
    const bool odd = lane % 2 != 0;
    const std::uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? v.word[0] : v.word[2], 1);
    const std::uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? v.word[1] : v.word[3], 1);
    if (odd) return {{a, b, v.word[2], v.word[3]}};
    return {{v.word[0], v.word[1], a, b}};
}

ADAPTK_DEVICE float decode_half(std::uint8_t type, std::uint32_t bits) {
    return type == format_bfloat16 ? decode_bfloat16(std::uint16_t(bits)) : decode_float16(std::uint16_t(bits));
}

ADAPTK_DEVICE std::uint32_t encode_half(std::uint8_t type, float x) {
    return type == format_bfloat16 ? encode_bfloat16(x) : encode_float16(x);
}

// What a lane loads of a full tile, before any of it is used: loads that wait for nothing are under way together.
// Fewer vectors of a narrower type than of the compute type, and the rest left as it is.
template <class T>
ADAPTK_DEVICE void load_vectors(Vector (&v)[vectors<T>], void* base, std::uint8_t type, std::int64_t first,
                                const Lane& lane) {
    if (type == native_format<T>) {
#pragma unroll
        for (int j = 0; j < vectors<T>; ++j) v[j] = load_vector(at<T>(base, first + lane.first + j * lane.step));
    } else if (sizeof(T) == 8 && type == format_float32) {
        // Gradients in float32 beside float64: the pair's 16 elements are four of their vectors, two a lane.
#pragma unroll
        for (int j = 0; j < 2; ++j)
            v[j] = load_vector(at<float>(base, first + 16 * (lane.index / 2) + 4 * (lane.index % 2) + 8 * j));
    } else {
        v[0] = load_vector(at<std::uint16_t>(base, first + per_lane * lane.index));
    }
}

// The lane's elements, in the order of its vectors of the compute type.
ADAPTK_DEVICE void unpack_wide(float (&x)[per_lane], const Vector (&v)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[4 * j + i] = from_bits(v[j].word[i]);
    }
}

ADAPTK_DEVICE void unpack_wide(double (&x)[per_lane], const Vector (&v)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        x[2 * j] = double_of(v[j].word[0], v[j].word[1]);
        x[2 * j + 1] = double_of(v[j].word[2], v[j].word[3]);
    }
}

ADAPTK_DEVICE void unpack(float (&x)[per_lane], const Vector (&v)[2], std::uint8_t type, const Lane& lane) {
    if (type == format_float32) {
        unpack_wide(x, v);
        return;
    }
    const Vector w = exchange(v[0], lane.index);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = decode_half(type, w.word[i] & 0xffffu);
        x[2 * i + 1] = decode_half(type, w.word[i] >> 16);
    }
}

ADAPTK_DEVICE void unpack(double (&x)[per_lane], const Vector (&v)[4], std::uint8_t type, const Lane& lane) {
    if (type == format_float64) {
        unpack_wide(x, v);
    } else if (type == format_float32) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const Vector w = exchange(v[j], lane.index);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[4 * j + i] = double(from_bits(w.word[i]));
        }
    } else {
        // Vectors of float64 hold two elements, which a word of 16-bit storage holds too: the words that stay go first.
        const Vector& h = v[0];
        const Vector w = exchange({{h.word[0], h.word[2], h.word[1], h.word[3]}}, lane.index);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[2 * i] = double(decode_half(type, w.word[i] & 0xffffu));
            x[2 * i + 1] = double(decode_half(type, w.word[i] >> 16));
        }
    }
}

ADAPTK_DEVICE void store_wide(const float (&x)[per_lane], float* tile_at, const Lane& lane) {
#pragma unroll
    for (int j = 0; j < vectors<float>; ++j) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 4; ++i) v.word[i] = to_bits(x[4 * j + i]);
        store_vector(tile_at + lane.first + j * lane.step, v);
    }
}

ADAPTK_DEVICE void store_wide(const double (&x)[per_lane], double* tile_at, const Lane& lane) {
#pragma unroll
    for (int j = 0; j < vectors<double>; ++j) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            v.word[2 * i] = std::uint32_t(__double2loint(x[2 * j + i]));
            v.word[2 * i + 1] = std::uint32_t(__double2hiint(x[2 * j + i]));
        }
        store_vector(tile_at + lane.first + j * lane.step, v);
    }
}

// To 16-bit storage: the lane's vector holds the tile's elements 8 * lane ... 8 * lane + 7.
ADAPTK_DEVICE void store_half(const float (&x)[per_lane], std::uint16_t* tile_at, std::uint8_t type, const Lane& lane) {
    Vector v;
#pragma unroll
    for (int i = 0; i < 4; ++i) v.word[i] = encode_half(type, x[2 * i]) | (encode_half(type, x[2 * i + 1]) << 16);
    store_vector(tile_at + per_lane * lane.index, exchange(v, lane.index));
}

ADAPTK_DEVICE void store_full(const float (&x)[per_lane], void* base, std::uint8_t type, std::int64_t first,
                              const Lane& lane) {
    if (type == format_float32) {
        store_wide(x, at<float>(base, first), lane);
    } else {
        store_half(x, at<std::uint16_t>(base, first), type, lane);
    }
}

ADAPTK_DEVICE void store_full(const double (&x)[per_lane], void* base, std::uint8_t, std::int64_t first,
                              const Lane& lane) {
    store_wide(x, at<double>(base, first), lane);
}

// The ends of tensors, and tensors that lie on no multiple of 16 bytes: element by element, a row of 32 at a time.
// Gradients alone may be wider than what is computed in.
template <class T, bool Gradient = false> ADAPTK_DEVICE T load_one(void* base, std::uint8_t type, std::int64_t i) {
    if (type == native_format<T>) return __ldcg(at<T>(base, i));
    if (sizeof(T) == 8 && type == format_float32) return T(__ldcg(at<float>(base, i)));
    if (Gradient && sizeof(T) == 4 && type == format_float64) return T(__ldcg(at<double>(base, i)));
    return T(decode_half(type, __ldcg(at<unsigned short>(base, i))));
}

ADAPTK_DEVICE void store_one(float x, void* base, std::uint8_t type, std::int64_t i) {
    if (type == format_float32) {
        __stcg(at<float>(base, i), x);
    } else {
        __stcg(at<unsigned short>(base, i), (unsigned short)(encode_half(type, x)));
    }
}

ADAPTK_DEVICE void store_one(double x, void* base, std::uint8_t, std::int64_t i) { __stcg(at<double>(base, i), x); }

template <bool Gradient = false, class T>
ADAPTK_DEVICE void load_part(T (&x)[per_lane], void* base, std::uint8_t type, std::int64_t first, int lane, int left) {
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
        const int e = lane + int(warp) * i;
        x[i] = e < left ? load_one<T, Gradient>(base, type, first + e) : T(0);
    }
}

template <class T>
ADAPTK_DEVICE void store_part(const T (&x)[per_lane], void* base, std::uint8_t type, std::int64_t first, int lane,
                              int left) {
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
        const int e = lane + int(warp) * i;
        if (e < left) store_one(x[i], base, type, first + e);
    }
}

template <class R, class T, std::size_t... I>
ADAPTK_DEVICE void run_tile(const StepCoefficients<R, T>& c, const Tensor& t, std::int64_t first, int index,
                            std::index_sequence<I...>) {
    constexpr std::size_t states = sizeof...(I);
    const Lane lane = lane_of<T>(index, t.native == 0);
    const std::int64_t rest = t.size - first;
    const int left = rest < tile ? int(rest) : tile;
    const bool full = t.aligned != 0 && left == tile;
    T p[per_lane];
    T g[per_lane];
    T s[states > 0 ? states : 1][per_lane];
    // Beside float64 only gradients are stored otherwise.
    const auto format = [&](std::size_t b) { return sizeof(T) == 8 && b != 1 ? format_float64 : t.format[b]; };
    if (full) {
        Vector of_p[vectors<T>];
        Vector of_g[vectors<T>];
        [[maybe_unused]] Vector of_s[states > 0 ? states : 1][vectors<T>];
        load_vectors<T>(of_p, t.buffer[0], format(0), first, lane);
        load_vectors<T>(of_g, t.buffer[1], format(1), first, lane);
        (load_vectors<T>(of_s[I], t.buffer[2 + I], format(2 + I), first, lane), ...);
        unpack(p, of_p, format(0), lane);
        unpack(g, of_g, format(1), lane);
        (unpack(s[I], of_s[I], format(2 + I), lane), ...);
    } else {
        load_part(p, t.buffer[0], format(0), first, index, left);
        load_part<true>(g, t.buffer[1], format(1), first, index, left);
        (load_part(s[I], t.buffer[2 + I], format(2 + I), first, index, left), ...);
    }
    if (c.common.coupled) {
#pragma unroll
        for (int i = 0; i < per_lane; ++i) apply_common<true>(c.common, p[i], g[i]);
    } else {
#pragma unroll
        for (int i = 0; i < per_lane; ++i) apply_common<false>(c.common, p[i], g[i]);
    }
#pragma unroll
    for (int i = 0; i < per_lane; ++i) R::update(c.rule, p[i], g[i], s[I][i]...);
    if (full) {
        store_full(p, t.buffer[0], format(0), first, lane);
        (store_full(s[I], t.buffer[2 + I], format(2 + I), first, lane), ...);
    } else {
        store_part(p, t.buffer[0], format(0), first, index, left);
        (store_part(s[I], t.buffer[2 + I], format(2 + I), first, index, left), ...);
    }
}

// The tensor that a tile belongs to: the last one whose first tile is not behind it. Not before tensor i.
ADAPTK_DEVICE std::uint32_t find_tensor(const Tensor* tensors, std::uint32_t count, std::uint32_t i,
                                        std::int64_t wanted) {
    std::uint32_t end = count;
    while (end - i > 1) {
        const std::uint32_t middle = i + (end - i) / 2;
        if (tensors[middle].first_tile <= wanted) {
            i = middle;
        } else {
            end = middle;
        }
    }
    return i;
}

template <class R, class T>
__global__ void __launch_bounds__(block_threads, resident_blocks(sizeof(T), state_count<R>))
    step_kernel(const __grid_constant__ StepLaunch launch) {
    if (launch.control != nullptr && launch.control->skip != 0) return;
    const auto* tensors =
        launch.tensors != nullptr ? launch.tensors : reinterpret_cast<const Tensor*>(launch.inside + launch.tensors_at);
    const auto* coefficients = static_cast<const StepCoefficients<R, T>*>(
        launch.coefficients != nullptr ? launch.coefficients : static_cast<const void*>(launch.inside));
    const int lane = int(threadIdx.x % warp);
    const std::int64_t stride = std::int64_t(gridDim.x) * warps_per_block;
    std::uint32_t i = 0;
    std::int64_t end = 0;  // the first tile behind the tensor
    const Tensor* t = tensors;
    for (std::int64_t at = std::int64_t(blockIdx.x) * warps_per_block + threadIdx.x / warp; at < launch.tiles;
         at += stride) {
        if (at >= end) {
            i = find_tensor(tensors, launch.count, i, at);
            t = tensors + i;
            end = i + 1 < launch.count ? tensors[i + 1].first_tile : launch.tiles;
        }
        run_tile<R, T>(coefficients[t->coefficients], *t, (at - t->first_tile) * tile, lane,
                       std::make_index_sequence<state_count<R>>{});
    }
}

}  // namespace adaptk::cuda
