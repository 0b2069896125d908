// The numbers that the kernels are tuned by, apart from the algorithms. The counting behind them, bytes and
// instructions a parameter, registers and occupancy, is bench/cuda.md, and the tests hold each kernel to the budgets
// here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace adaptk::cuda {

inline constexpr unsigned warp = 32;
inline constexpr unsigned block_threads = 128;
inline constexpr unsigned warps_per_block = block_threads / warp;

// What a lane has in registers at a time: 8 elements are one 16-byte vector of a 16-bit type, two of float32 and four
// of float64, so that each of them is moved by full vectors.
inline constexpr int per_lane = 8;
// The unit of work: what one warp updates at a time. Every tensor is cut into tiles from its first element on.
inline constexpr int tile = int(warp) * per_lane;

// Blocks that shall fit on a multiprocessor at once, which bounds the registers of a thread (65,536 in all) to 96, 128,
// 168 or 255: what the formulas need without spilling. A lane of Adam in float32 has 128 bytes under way, so that four
// blocks ask for 64 KiB at a time; by Little's law an H100 needs about 3.35e12 B/s * 0.8 us / 132 = 20 KiB of each.
constexpr int resident_blocks(std::size_t compute_bytes, std::size_t states) {
    if (compute_bytes == 8) return states <= 3 ? 3 : 2;
    return states <= 1 ? 5 : states <= 3 ? 4 : 3;
}

// With storage formats.
constexpr int stored_resident_blocks(std::size_t compute_bytes, std::size_t states) {
    return resident_blocks(compute_bytes, states <= 2 ? states : states + 1);
}

// Of the kernels beside the steps: enough for what they need. Left to itself, a compiler may spill to reach more.
inline constexpr int common_resident_blocks = 5;

// Of the passes of rules with reductions: the accumulators of two reductions take 32 registers of a thread.
inline constexpr int measure_resident_blocks = 3;

// What a lane of the norm loads before it uses any of it: so many 16-byte vectors, which are 4 rows of 256 elements in
// float64, 8 in float32 and 16 in a 16-bit type; of misaligned gradients so many rows element by element. A norm is
// nothing but loads, and with one row under way a warp would wait for memory 32 times in each leaf of 32 rows. Four
// blocks ask for 128 KiB at a time where an H100 needs 20 (see above), and few leaves take as long as their waits.
inline constexpr int norm_vectors = 16;
inline constexpr int norm_element_rows = 4;
inline constexpr int norm_resident_blocks = 4;

// Blocks of a launch: at most so many times as many as the device holds at once, by the runtime's word; they walk over
// the tiles, so that each finds its tensor and its coefficients once. 0: a block for every four tiles, whose start and
// end the hardware balances; which of the two is faster only a device can say (_cuda.set_waves, bench/cuda.md).
inline constexpr unsigned waves = 1;
inline constexpr std::int64_t most_blocks = 0x7fffffff;
// Of the small kernels that do not ask.
inline constexpr unsigned small_grid = 1024;

// One block sums up the leaves of a norm.
inline constexpr unsigned finish_threads = 1024;

// Kernel parameters: what is launched with a few tensors brings its tables along. Longer tables go to device memory by
// way of the parameters of an upload kernel, which needs no pinned memory, no copy engine and no synchronisation, and
// can be captured in a graph.
inline constexpr std::size_t parameter_bytes = 4096;
inline constexpr std::size_t upload_bytes = 30 * 1024;

// What the library's pool of device memory holds on to when it is synchronised: tables and sums of norms many times
// over, and not the copies of params that a look-ahead makes, whose memory others may want.
inline constexpr std::uint64_t pool_keeps = std::uint64_t{64} << 20;

}  // namespace adaptk::cuda
