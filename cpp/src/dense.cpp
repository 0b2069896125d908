#include "dense.hpp"

#include <algorithm>

namespace adaptk::detail {

const DenseTable& dense_table([[maybe_unused]] std::string_view isa) {
#if defined(ADAPTK_X86_KERNELS)
    if (isa == "x86-64-v2") return dense_v2();
    if (isa == "x86-64-v3") return dense_v3();
    if (isa == "x86-64-v4") return dense_v4();
#elif defined(ADAPTK_NEON_KERNELS)
    if (isa == "neon") return dense_neon();
#endif
    return dense_portable();
}

namespace {

// Calls work(i) for all i < count; who does which does not matter to the result.
template <class Work> void share([[maybe_unused]] int threads, int count, const Work& work) {
#if defined(_OPENMP)
    if (threads > 1 && count > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(std::min(threads, count))
        for (int i = 0; i < count; ++i) work(i);
        return;
    }
#endif
    for (int i = 0; i < count; ++i) work(i);
}

int tiles_of(int n) { return (n + dense_tile - 1) / dense_tile; }

}  // namespace

// Panels of dense_depth columns: inside, blocks of dense_block columns, each brought up to date by those before it;
// then the rest of the lower triangle, tile by tile.
template <class T> bool cholesky(const DenseKernels<T>& kernels, int threads, T* a, int n) {
    const long ld = n;
    const auto at = [&](int i, int j) { return a + j * ld + i; };
    for (int k = 0; k < n; k += dense_depth) {
        const int end = std::min(k + dense_depth, n);
        for (int j = k; j < end; j += dense_block) {
            const int width = std::min(dense_block, end - j), depth = j - k;
            if (depth > 0) kernels.update(at(j, k), at(j, k), ld, width, width, depth, at(j, j));
            if (!kernels.factor(at(j, j), ld, width)) return false;
            const int first = j + width;
            share(threads, tiles_of(n - first), [&](int tile) {
                const int i = first + tile * dense_tile, rows = std::min(dense_tile, n - i);
                if (depth > 0) kernels.update(at(i, k), at(j, k), ld, rows, width, depth, at(i, j));
                kernels.solve_rows(at(j, j), ld, width, at(i, j), rows);
            });
        }
        const int tiles = tiles_of(n - end);
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
