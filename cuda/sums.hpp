// Parts of the fixed tree that all reductions have (cpp/src/reduce.hpp).
#pragma once

#include "device.hpp"
#include "program.hpp"
#include "tuning.hpp"

#include <bit>
#include <cstdint>

namespace adaptk::cuda {

inline constexpr double infinity = std::bit_cast<double>(std::uint64_t{0x7ff0000000000000});
inline constexpr double quiet_nan = std::bit_cast<double>(std::uint64_t{0x7ff8000000000000});

// How two numbers become one, and what changes no other number.
struct Sum {
    static constexpr double none = 0.0;
    static ADAPTK_DEVICE double of(double a, double b) { return a + b; }
};
struct Larger {
    static constexpr double none = -infinity;
    // A NaN comes out.
    static ADAPTK_DEVICE double of(double a, double b) { return b > a || b != b ? b : a; }
};

// What n numbers that came to `sum` are reduced to. Of the largest one NaN, and of zeros the positive one.
ADAPTK_DEVICE double reduced(detail::Reduce what, double sum, std::int64_t n) {
    return what == detail::Reduce::norm      ? sqrt(sum)
           : what == detail::Reduce::mean    ? sum / double(n)
           : what == detail::Reduce::largest ? (sum != sum ? quiet_nan : sum + 0.0)
                                             : sum;
}

// The last of `count` items whose begin is not behind `wanted`.
template <class Begin> ADAPTK_DEVICE std::uint32_t find_last(std::uint32_t count, std::int64_t wanted, Begin begin) {
    std::uint32_t first = 0;
    for (std::uint32_t end = count; end - first > 1;) {
        const std::uint32_t middle = first + (end - first) / 2;
        if (begin(middle) <= wanted) {
            first = middle;
        } else {
            end = middle;
        }
    }
    return first;
}

// Pairs of neighbours level by level, an odd last one going up as it is, until one value is left: 2048 leaves at a
// time, which are whole subtrees. The sums go to the front of the same memory, behind what has been read.
template <class Combine = Sum>
ADAPTK_DEVICE void sum_subtree(double* leaves, std::int64_t first, int n, double* out, double* level) {
    const int i = int(threadIdx.x);
    for (int k = i; k < n; k += int(finish_threads)) level[k] = leaves[first + k];
    __syncthreads();
    while (n > 1) {
        const double v = 2 * i + 1 < n ? Combine::of(level[2 * i], level[2 * i + 1]) : 2 * i < n ? level[2 * i] : 0.0;
        __syncthreads();
        if (2 * i < n) level[i] = v;
        __syncthreads();
        n = (n + 1) / 2;
    }
    if (i == 0) *out = level[0];
    __syncthreads();
}

// All of them; the whole block calls it, and only thread 0 has the sum.
template <class Combine = Sum> ADAPTK_DEVICE double sum_leaves(double* leaves, std::int64_t n, double* level) {
    constexpr int subtree = 2 * int(finish_threads);
    if (n == 0) return Combine::none;
    do {
        std::int64_t out = 0;
        for (std::int64_t first = 0; first < n; first += subtree, ++out)
            sum_subtree<Combine>(leaves, first, int(n - first < subtree ? n - first : subtree), leaves + out, level);
        n = out;
    } while (n > 1);
    return leaves[0];
}

}  // namespace adaptk::cuda
