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

// Of the kernels beside the steps: enough for what they need. Left to itself, a compiler may spill to reach more.
inline constexpr int common_resident_blocks = 5;

// Blocks of a launch: as many as the device holds at once; they walk over the tiles. Kernels that ask the runtime for
// the number that fits get it, and this is for the small ones that do not.
inline constexpr unsigned small_grid = 1024;

// One block sums up the leaves of a norm.
inline constexpr unsigned finish_threads = 1024;

// Kernel parameters: what is launched with a few tensors brings its tables along. Longer tables go to device memory by
// way of the parameters of an upload kernel, which needs no pinned memory, no copy engine and no synchronisation, and
// can be captured in a graph.
inline constexpr std::size_t parameter_bytes = 4096;
inline constexpr std::size_t upload_bytes = 30 * 1024;

}  // namespace adaptk::cuda
