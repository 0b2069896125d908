#include "dense.hpp"

#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace adaptk::detail {

const DenseTable& dense_table([[maybe_unused]] std::string_view isa) {
#if defined(ADAPTK_X86_KERNELS)
#if !defined(ADAPTK_NO_V2_KERNELS)
    if (isa == "x86-64-v2") return dense_v2();
#endif
    if (isa == "x86-64-v3") return dense_v3();
#if !defined(ADAPTK_NO_V4_KERNELS)
    if (isa == "x86-64-v4") return dense_v4();
#endif
#endif
    return dense_portable();
}

namespace {

// Calls work(i) for all i < count; the result does not depend on which thread calls which. Not with OpenMP, which waits
// for each of its threads at each call: these wait for a processor while threads of NumPy's linear algebra spin.
template <class Work> void share(int threads, int count, const Work& work) {
    threads = std::min(threads, count);
    if (threads <= 1) {
        for (int i = 0; i < count; ++i) work(i);
        return;
    }
    std::atomic<int> next{0};
    run_in_pool(threads, [&](int, int) {
        for (int i = 0; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
    });
}

int parts_of(int n, int part) { return (n + part - 1) / part; }

struct Tile {
    int i, j;
};

// The tiles of the lower triangle are numbered column after column.
Tile tile_of(int index, int tiles) {
    int column = 0;
    while (index >= tiles - column) index -= tiles - column++;
    return {column + index, column};
}

// The rows of a part with its own sums, if m rows are divided into about `parts`.
int rows_of_part(int m, int parts) {
    constexpr int fewest = 8 * dense_depth;
    return std::max(fewest, parts_of(parts_of(m, std::max(1, parts)), dense_depth) * dense_depth);
}

// Adds the lower triangles of `count` matrices, at a distance of `apart`, to c, each element in the order of the
// matrices.
template <class T> void add_parts(int threads, T* c, int n, const T* more, std::int64_t apart, int count) {
    if (count == 0) return;
    share(threads, parts_of(n, 16), [&](int block) {
        for (int j = block * 16; j < std::min(n, (block + 1) * 16); ++j)
            for (int k = 0; k < count; ++k) {
                T* const sum = c + std::int64_t(j) * n;
                const T* const column = more + k * apart + std::int64_t(j) * n;
                for (int i = j; i < n; ++i) sum[i] += column[i];
            }
    });
}

// The bandwidth below the diagonal of the lower triangle if it is at most `most`, else n.
template <class T> int bandwidth(const T* a, int n, int most) {
    for (int j = 0; j + most + 1 < n; ++j) {
        const T* const column = a + std::int64_t(j) * n;
        // From the corner on: nearly all full matrices are recognised at once.
        for (int i = n - 1; i > j + most; --i)
            if (!(column[i] == 0)) return n;
    }
    int band = 0;
    for (int j = 0; j < n; ++j)
        for (int i = std::min(n - 1, j + most); i > j + band; --i)
            if (!(a[std::int64_t(j) * n + i] == 0)) band = i - j;
    return band;
}

// Column after column; elements beyond the band are zero.
template <class T> int banded_cholesky(T* a, int n, int band) {
    for (int k = 0; k < n; ++k) {
        T* const column = a + std::int64_t(k) * n;
        if (!(column[k] > 0)) return k + 1;
        const int end = std::min(n, k + band + 1);
        const T root = std::sqrt(column[k]), inverse = T(1) / root;
        column[k] = root;
        for (int i = k + 1; i < end; ++i) column[i] *= inverse;
        for (int j = k + 1; j < end; ++j) {
            const T factor = column[j];
            T* const other = a + std::int64_t(j) * n;
            for (int i = j; i < end; ++i) other[i] -= factor * column[i];
        }
    }
    return 0;
}

}  // namespace

// Band matrices, as of chains of variables, have an algorithm of their own if it is faster. Others are factored in
// panels of dense_depth columns: the block on the diagonal, then the rows below it, tile by tile, then the rest of the
// lower triangle, tile by tile. Threads wait for one another twice per panel.
template <class T> int cholesky(const DenseKernels<T>& kernels, int threads, T* a, int n) {
    const std::int64_t ld = n;
    const auto at = [&](int i, int j) { return a + j * ld + i; };
    if (const int band = bandwidth(a, n, n / 16); band < n) return banded_cholesky(a, n, band);
    for (int k = 0; k < n; k += dense_depth) {
        const int end = std::min(k + dense_depth, n);
        // Updates rows [first, first + rows) of the panel's columns j ... with the columns before, and solves them.
        const auto solve = [&](int first, int rows, int j) {
            const int width = std::min(dense_block, end - j);
            if (j > k) kernels.update(at(first, k), ld, at(j, k), ld, rows, width, j - k, at(first, j), ld, false);
            kernels.solve_rows(at(j, j), ld, width, at(first, j), ld, rows);
        };
        for (int j = k; j < end; j += dense_block) {
            const int width = std::min(dense_block, end - j), next = j + width;
            if (j > k) kernels.update(at(j, k), ld, at(j, k), ld, width, width, j - k, at(j, j), ld, true);
            if (const int order = kernels.factor(at(j, j), ld, width); order > 0) return j + order;
            for (int first = next; first < end; first += dense_tile) solve(first, std::min(dense_tile, end - first), j);
        }
        const int tiles = parts_of(n - end, dense_tile);
        share(threads, tiles, [&](int tile) {
            const int first = end + tile * dense_tile;
            for (int j = k; j < end; j += dense_block) solve(first, std::min(dense_tile, n - first), j);
        });
        share(threads, tiles * (tiles + 1) / 2, [&](int index) {
            const Tile tile = tile_of(index, tiles);
            const int i = end + tile.i * dense_tile, j = end + tile.j * dense_tile;
            kernels.update(at(i, k), ld, at(j, k), ld, std::min(dense_tile, n - i), std::min(dense_tile, n - j),
                           end - k, at(i, j), ld, i == j);
        });
    }
    return 0;
}

// Work is divided into tiles of c and, if these are few, parts of the rows of a, which have their own sums. The number
// of parts depends on m and n alone.
template <class T>
void gram(const DenseKernels<T>& kernels, int threads, const T* a, int m, int n, T* c, std::vector<T>& scratch) {
    constexpr int enough = 24;
    const std::int64_t size = std::int64_t(n) * n;
    // Tiles of nearly equal width, a multiple of the kernels' own.
    const int across = parts_of(n, gram_tile), width = parts_of(parts_of(n, across), 24) * 24,
              pairs = across * (across + 1) / 2;
    const int depth = rows_of_part(m, enough / pairs), parts = std::max(1, parts_of(m, depth));
    if (scratch.size() < std::size_t((parts - 1) * size)) scratch.resize(std::size_t((parts - 1) * size));
    share(threads, pairs * parts, [&](int index) {
        const int part = index / pairs;
        const Tile tile = tile_of(index % pairs, across);
        const int i = tile.i * width, j = tile.j * width, first = part * depth;
        const int rows = std::min(width, n - i), columns = std::min(width, n - j);
        T* const sums = (part == 0 ? c : scratch.data() + (part - 1) * size) + std::int64_t(j) * n + i;
        for (int k = 0; k < columns; ++k) std::fill_n(sums + std::int64_t(k) * n, rows, T(0));
        kernels.gram(a + std::int64_t(i) * m + first, a + std::int64_t(j) * m + first, m, rows, columns,
                     std::min(depth, m - first), sums, n, i == j);
    });
    add_parts(threads, c, n, scratch.data(), size, parts - 1);
}

// Parts of the rows have their own sums. If c is small, a thread computes all of it, so that it reads a once. Else
// there are tiles, as above.
template <class T>
void gram_rows(const DenseKernels<T>& kernels, int threads, const T* a, int m, int n, const T* x, T* c, T* out,
               std::vector<T>& scratch) {
    const std::int64_t size = std::int64_t(n) * n, both = size + n;
    const int across = parts_of(n, gram_tile), width = parts_of(parts_of(n, across), 24) * 24,
              pairs = across * (across + 1) / 2;
    const bool whole = across <= 2;
    const int groups = whole ? 1 : pairs, depth = rows_of_part(m, whole ? 16 : 24 / pairs), parts = parts_of(m, depth);
    if (scratch.size() < std::size_t((parts - 1) * both)) scratch.resize(std::size_t((parts - 1) * both));
    share(threads, groups * parts, [&](int index) {
        const int part = index / groups, last = std::min(m, (part + 1) * depth);
        const int first_tile = whole ? 0 : index % groups, last_tile = whole ? pairs : first_tile + 1;
        T* const sums = part == 0 ? c : scratch.data() + (part - 1) * both;
        T* const along = part == 0 ? out : sums + size;
        for (int t = first_tile; t < last_tile; ++t) {
            const Tile tile = tile_of(t, across);
            const int i = tile.i * width, j = tile.j * width;
            for (int k = j; k < std::min(j + width, n); ++k)
                std::fill_n(sums + std::int64_t(k) * n + i, std::min(width, n - i), T(0));
            if (i == j) std::fill_n(along + i, std::min(width, n - i), T(0));
        }
        for (int k = part * depth; k < last; k += dense_depth) {
            const T* const rows = a + std::int64_t(k) * n;
            const int count = std::min(dense_depth, last - k);
            // In the order of memory, and before the rest: this brings these rows into the cache.
            if (whole) kernels.project_rows(rows, n, count, n, x + k, along);
            for (int t = first_tile; t < last_tile; ++t) {
                const Tile tile = tile_of(t, across);
                const int i = tile.i * width, j = tile.j * width;
                const int high = std::min(width, n - i), wide = std::min(width, n - j);
                if (!whole && i == j) kernels.project_rows(rows + i, n, count, high, x + k, along + i);
                kernels.gram_rows(rows + i, rows + j, n, high, wide, count, sums + std::int64_t(j) * n + i, n, i == j);
            }
        }
    });
    add_parts(threads, c, n, scratch.data(), both, parts - 1);
    for (int part = 1; part < parts; ++part)
        for (int j = 0; j < n; ++j) out[j] += scratch[std::size_t((part - 1) * both + size + j)];
}

template <class T>
void project_rows(const DenseKernels<T>& kernels, int threads, const T* a, int m, int n, const T* x, T* out,
                  std::vector<T>& scratch) {
    const int depth = rows_of_part(m, 16), parts = parts_of(m, depth);
    if (scratch.size() < std::size_t(parts) * std::size_t(n)) scratch.resize(std::size_t(parts) * std::size_t(n));
    share(threads, parts, [&](int part) {
        const int first = part * depth;
        T* const sums = scratch.data() + std::int64_t(part) * n;
        std::fill_n(sums, n, T(0));
        kernels.project_rows(a + std::int64_t(first) * n, n, std::min(depth, m - first), n, x + first, sums);
    });
    std::fill_n(out, n, T(0));
    for (int part = 0; part < parts; ++part)
        for (int j = 0; j < n; ++j) out[j] += scratch[std::size_t(part) * std::size_t(n) + std::size_t(j)];
}

template <class T>
void product(const DenseKernels<T>& kernels, int threads, const T* a, const T* b, int k, int m, int n, T* c) {
    const int down = parts_of(m, gram_tile), across = parts_of(n, gram_tile);
    share(threads, down * across, [&](int index) {
        const int i = index % down * gram_tile, j = index / down * gram_tile;
        const int rows = std::min(gram_tile, m - i), columns = std::min(gram_tile, n - j);
        T* const to = c + std::int64_t(j) * m + i;
        for (int q = 0; q < columns; ++q) std::fill_n(to + std::int64_t(q) * m, rows, T(0));
        kernels.gram(a + std::int64_t(i) * k, b + std::int64_t(j) * k, k, rows, columns, k, to, m, false);
    });
}

template <class T>
void project(const DenseKernels<T>& kernels, int threads, const T* a, int m, int n, const T* x, T* out) {
    share(threads, parts_of(n, 8), [&](int block) {
        const int j = block * 8;
        kernels.project(a + std::int64_t(j) * m, m, m, std::min(8, n - j), x, out + j);
    });
}

namespace {

// Rows [first, first + rows) of x = x L^-T, which are zero before column `start`.
template <class T>
void divide_rows(const DenseKernels<T>& kernels, const T* l, int n, T* x, std::int64_t ldx, int first, int rows,
                 int start) {
    const std::int64_t ld = n;
    const auto at = [&](int j) { return x + j * ldx + first; };
    const auto factor = [&](int i, int j) { return l + j * ld + i; };
    for (int k = start; k < n; k += dense_depth) {
        const int end = std::min(k + dense_depth, n);
        for (int j = k; j < end; j += dense_block) {
            const int width = std::min(dense_block, end - j);
            if (j > k) kernels.update(at(k), ldx, factor(j, k), ld, rows, width, j - k, at(j), ldx, false);
            kernels.solve_rows(factor(j, j), ld, width, at(j), ldx, rows);
        }
        for (int j = end; j < n; j += dense_tile) {
            const int width = std::min(dense_tile, n - j);
            kernels.update(at(k), ldx, factor(j, k), ld, rows, width, end - k, at(j), ldx, false);
        }
    }
}

}  // namespace

template <class T> void divide(const DenseKernels<T>& kernels, int threads, const T* l, int n, T* x, int m) {
    share(threads, parts_of(m, dense_tile), [&](int tile) {
        const int first = tile * dense_tile;
        divide_rows(kernels, l, n, x, m, first, std::min(dense_tile, m - first), 0);
    });
}

// W = L^-T is upper triangular, and the inverse is W W'.
template <class T> void inverse(const DenseKernels<T>& kernels, int threads, const T* l, int n, T* work, T* out) {
    const std::int64_t ld = n, size = ld * n;
    std::fill_n(work, size, T(0));
    std::fill_n(out, size, T(0));
    for (int i = 0; i < n; ++i) work[i * ld + i] = T(1);
    const int tiles = parts_of(n, dense_tile);
    share(threads, tiles, [&](int tile) {
        const int first = tile * dense_tile;
        divide_rows(kernels, l, n, work, ld, first, std::min(dense_tile, n - first), first);
    });
    share(threads, tiles * (tiles + 1) / 2, [&](int index) {
        const Tile tile = tile_of(index, tiles);
        const int i = tile.i * dense_tile, j = tile.j * dense_tile;
        const int rows = std::min(dense_tile, n - i), columns = std::min(dense_tile, n - j);
        T* const to = out + j * ld + i;
        for (int k = i; k < n; k += dense_depth) {
            const int depth = std::min(dense_depth, n - k);
            kernels.update(work + k * ld + i, ld, work + k * ld + j, ld, rows, columns, depth, to, ld, i == j);
        }
        for (int q = 0; q < columns; ++q)
            for (int p = 0; p < rows; ++p) to[q * ld + p] = -to[q * ld + p];
    });
}

// In square tiles, so that both sides use whole cache lines.
template <class T> void transpose(int threads, const T* from, std::int64_t rows, std::int64_t columns, T* to) {
    constexpr std::int64_t tile = 32, strip = 512;
    const auto strips = int((rows + strip - 1) / strip);
    share(rows * columns < 1 << 16 ? 1 : threads, strips, [&](int index) {
        const std::int64_t last = std::min(rows, (index + 1) * strip);
        for (std::int64_t j0 = 0; j0 < columns; j0 += tile)
            for (std::int64_t i0 = index * strip; i0 < last; i0 += tile)
                for (std::int64_t j = j0; j < std::min(columns, j0 + tile); ++j)
                    for (std::int64_t i = i0; i < std::min(last, i0 + tile); ++i)
                        to[j * rows + i] = from[i * columns + j];
    });
}

#define ADAPTK_INSTANTIATE(T)                                                                                          \
    template int cholesky(const DenseKernels<T>&, int, T*, int);                                                       \
    template void gram(const DenseKernels<T>&, int, const T*, int, int, T*, std::vector<T>&);                          \
    template void product(const DenseKernels<T>&, int, const T*, const T*, int, int, int, T*);                         \
    template void gram_rows(const DenseKernels<T>&, int, const T*, int, int, const T*, T*, T*, std::vector<T>&);       \
    template void project(const DenseKernels<T>&, int, const T*, int, int, const T*, T*);                              \
    template void project_rows(const DenseKernels<T>&, int, const T*, int, int, const T*, T*, std::vector<T>&);        \
    template void divide(const DenseKernels<T>&, int, const T*, int, T*, int);                                         \
    template void inverse(const DenseKernels<T>&, int, const T*, int, T*, T*);                                         \
    template void transpose(int, const T*, std::int64_t, std::int64_t, T*);
ADAPTK_INSTANTIATE(float)
ADAPTK_INSTANTIATE(double)

}  // namespace adaptk::detail
