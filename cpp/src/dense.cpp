#include "dense.hpp"

#include "pool.hpp"

#include <algorithm>
#include <atomic>

namespace adaptk::detail {

const DenseTable& dense_table([[maybe_unused]] std::string_view isa) {
#if defined(ADAPTK_X86_KERNELS)
#if !defined(ADAPTK_NO_V2_KERNELS)
    if (isa == "x86-64-v2") return dense_v2();
#endif
    if (isa == "x86-64-v3") return dense_v3();
    if (isa == "x86-64-v4") return dense_v4();
#elif defined(ADAPTK_NEON_KERNELS)
    if (isa == "neon") return dense_neon();
#endif
    return dense_portable();
}

namespace {

// Calls work(i) for all i < count; who does which does not matter to the result.
template <class Work> void share(int threads, int count, const Work& work) {
    std::atomic<int> next{0};
    run_on_threads(std::min(threads, count), [&](int, int) {
        for (int i = 0; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
    });
}

int tiles_of(int n) { return (n + dense_tile - 1) / dense_tile; }

}  // namespace

// Panels of dense_depth columns: the block on the diagonal, then the rows below it, tile by tile, then the rest of the
// lower triangle, tile by tile. Two waits for the other threads a panel.
template <class T> bool cholesky(const DenseKernels<T>& kernels, int threads, T* a, int n) {
    const std::int64_t ld = n;
    const auto at = [&](int i, int j) { return a + j * ld + i; };
    for (int k = 0; k < n; k += dense_depth) {
        const int end = std::min(k + dense_depth, n);
        // Rows [first, first + rows) of the panel's columns j ... brought up to date by the columns before, and solved.
        const auto solve = [&](int first, int rows, int j) {
            const int width = std::min(dense_block, end - j);
            if (j > k) kernels.update(at(first, k), at(j, k), ld, rows, width, j - k, at(first, j));
            kernels.solve_rows(at(j, j), ld, width, at(first, j), rows);
        };
        for (int j = k; j < end; j += dense_block) {
            const int width = std::min(dense_block, end - j), next = j + width;
            if (j > k) kernels.update(at(j, k), at(j, k), ld, width, width, j - k, at(j, j));
            if (!kernels.factor(at(j, j), ld, width)) return false;
            if (next < end) solve(next, end - next, j);
        }
        const int tiles = tiles_of(n - end);
        share(threads, tiles, [&](int tile) {
            const int first = end + tile * dense_tile;
            for (int j = k; j < end; j += dense_block) solve(first, std::min(dense_tile, n - first), j);
        });
        share(threads, tiles * (tiles + 1) / 2, [&](int index) {
            // Column after column of the triangle of tiles.
            int column = 0;
            while (index >= tiles - column) index -= tiles - column++;
            const int i = end + (column + index) * dense_tile, j = end + column * dense_tile;
            kernels.update(at(i, k), at(j, k), ld, std::min(dense_tile, n - i), std::min(dense_tile, n - j), end - k,
                           at(i, j));
        });
    }
    return true;
}

template bool cholesky(const DenseKernels<float>&, int, float*, int);
template bool cholesky(const DenseKernels<double>&, int, double*, int);

}  // namespace adaptk::detail
