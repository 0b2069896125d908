// How a warp moves a tile of 256 elements, 8 in each lane: by 16 bytes at a time.
//
// If all buffers are of the compute type, a lane's vectors lie a row of 32 vectors apart, so that a warp reads whole
// lines. A vector of a narrower type holds more neighbouring elements than one of the compute type, so beside one, two
// neighbouring lanes share 16 elements, and their vectors alternate:
//
//     elements of the pair's 16    0..3    4..7    8..11   12..15       (compute type float32)
//     wide vectors                 even    odd     even    odd          every access of a warp fills 32-byte sectors
//     16-bit vectors               even    even    odd     odd          one exchange of 8 bytes in the pair
//     codes of a byte              even    even    odd     odd          8 bytes a lane, one exchange of 4
//     codes of half a byte         even    even    odd     odd          4 bytes a lane, one exchange of 2
#pragma once

#include "adaptk/format.hpp"
#include "device.hpp"
#include "tuning.hpp"

#include <cstdint>

namespace adaptk::cuda {

template <class T> inline constexpr int vector_size = int(16 / sizeof(T));    // elements of a 16-byte vector
template <class T> inline constexpr int vectors = per_lane / vector_size<T>;  // of a lane

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

// Words of the compute type's vectors, and back.
ADAPTK_DEVICE float element(const Vector (&v)[2], int k, float) { return from_bits(v[k / 4].word[k % 4]); }
ADAPTK_DEVICE double element(const Vector (&v)[4], int k, double) {
    return double_of(v[k / 2].word[2 * (k % 2)], v[k / 2].word[2 * (k % 2) + 1]);
}
ADAPTK_DEVICE void set_element(Vector (&v)[2], int k, float x) { v[k / 4].word[k % 4] = to_bits(x); }
ADAPTK_DEVICE void set_element(Vector (&v)[4], int k, double x) {
    v[k / 2].word[2 * (k % 2)] = std::uint32_t(__double2loint(x));
    v[k / 2].word[2 * (k % 2) + 1] = std::uint32_t(__double2hiint(x));
}

// The even lane of a pair keeps its first half and gets the odd one's first half as its second; the odd lane keeps its
// second half and gets the even one's second half as its first. Its own inverse.
ADAPTK_DEVICE Vector exchange(const Vector& v, int lane) {
    const bool odd = lane % 2 != 0;
    const std::uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? v.word[0] : v.word[2], 1);
    const std::uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? v.word[1] : v.word[3], 1);
    if (odd) return {{a, b, v.word[2], v.word[3]}};
    return {{v.word[0], v.word[1], a, b}};
}

// The same of vectors that are 8 bytes long.
ADAPTK_DEVICE Vector exchange_short(const Vector& v, int lane) {
    const bool odd = lane % 2 != 0;
    const std::uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? v.word[0] : v.word[1], 1);
    if (odd) return {{a, v.word[1], 0, 0}};
    return {{v.word[0], a, 0, 0}};
}

// The same of vectors that are 4 bytes long.
ADAPTK_DEVICE Vector exchange_shortest(const Vector& v, int lane) {
    const bool odd = lane % 2 != 0;
    const std::uint32_t own = v.word[0];
    const std::uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? own & 0xffffu : own >> 16, 1);
    return {{odd ? (own & 0xffff0000u) | a : (own & 0xffffu) | (a << 16), 0, 0, 0}};
}

template <class X> ADAPTK_DEVICE X load_element(const X* p) { return __ldcg(p); }
template <> ADAPTK_DEVICE std::uint16_t load_element(const std::uint16_t* p) {
    return __ldcg(reinterpret_cast<const unsigned short*>(p));
}
template <> ADAPTK_DEVICE std::uint8_t load_element(const std::uint8_t* p) {
    return __ldcg(reinterpret_cast<const unsigned char*>(p));
}

}  // namespace adaptk::cuda
