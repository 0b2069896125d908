// Random bits for stochastic rounding. They depend only on (seed, step, tensor, buffer, element), so they are the same
// for any number of threads, partition of the work, instruction set and device.
#pragma once

#include "adaptk/config.hpp"

#include <cstdint>

ADAPTK_NAMESPACE_BEGIN

// The finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
ADAPTK_HD std::uint64_t mix_bits(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// The key of all draws of a step.
ADAPTK_HD std::uint64_t step_key(std::uint64_t seed, std::int64_t step) {
    return mix_bits(mix_bits(seed + 0x9e3779b97f4a7c15u) + std::uint64_t(step) * 0x9e3779b97f4a7c15u);
}

// The key of the draws for one buffer of one tensor.
ADAPTK_HD std::uint64_t buffer_key(std::uint64_t step_key, std::uint32_t tensor, std::uint32_t buffer) {
    return mix_bits(step_key + (std::uint64_t(tensor) * 8 + buffer + 1) * 0xd1342543de82ef95u);
}

struct Draws {
    std::uint32_t before, after;  // combined with a counter before and after it is hashed
};

// 32 random bits for a counter: a hash with two multiplications and little bias (Wellons, hash-prospector, lowbias32).
// Philox with ten rounds took three times as long as the step. U is one counter, or a vector of counters.
template <class U> ADAPTK_HD U draw(const Draws& d, U counter) {
    U x = counter ^ d.before;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x + d.after;
}

// With `bits` for each element, a draw serves n = 32 / bits consecutive elements:
//   counter = element / n,  shift = element % n * bits
template <int Bits> inline constexpr std::uint32_t elements_per_draw = 32 / Bits;

// Counters have 32 bits; the upper bits of a longer one change the hash.
template <int Bits> ADAPTK_HD Draws draws_from(std::uint64_t buffer_key, std::int64_t element) {
    const auto high = std::uint32_t(std::uint64_t(element) / elements_per_draw<Bits> >> 32);
    return {std::uint32_t(buffer_key) ^ (high * 0x9e3779b9u), std::uint32_t(buffer_key >> 32)};
}
template <int Bits> ADAPTK_HD std::uint32_t draw_counter(std::int64_t element) {
    return std::uint32_t(std::uint64_t(element) / elements_per_draw<Bits>);
}

ADAPTK_NAMESPACE_END
