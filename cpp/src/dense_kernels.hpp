// What an object of dense kernels (dense_kernels.cpp, compiled once for each instruction set) provides to dense.cpp.
// Matrices are stored column after column, with `ld` elements from one column to the next. If a function says so, they
// are stored row after row, with `ld` from one row to the next.
#pragma once

#include <cstdint>

namespace adaptk::detail {

// Rows and columns of a tile of update() and its largest depth; the width of a block that is solved at once; rows and
// columns of a tile of gram(). A tile's packed operands lie on the stack, in L2.
inline constexpr int dense_tile = 96;
inline constexpr int dense_depth = 128;
inline constexpr int dense_block = 32;
inline constexpr int gram_tile = 144;

template <class T> struct DenseKernels {
    // c -= a b' with c rows x columns, a rows x depth, b columns x depth, none larger than a tile. `lower`: elements
    // above the diagonal of c may have any values.
    void (*update)(const T* a, std::int64_t lda, const T* b, std::int64_t ldb, int rows, int columns, int depth, T* c,
                   std::int64_t ldc, bool lower);
    // c += a'b with c rows x columns, at most gram_tile each, a depth x rows, b depth x columns. `lower` as above.
    void (*gram)(const T* a, const T* b, std::int64_t ld, int rows, int columns, int depth, T* c, std::int64_t ldc,
                 bool lower);
    // The same for a and b stored row after row.
    void (*gram_rows)(const T* a, const T* b, std::int64_t ld, int rows, int columns, int depth, T* c, std::int64_t ldc,
                      bool lower);
    // out = a'x, a being depth x columns.
    void (*project)(const T* a, std::int64_t ld, int depth, int columns, const T* x, T* out);
    // out += a'x for a stored row after row.
    void (*project_rows)(const T* a, std::int64_t ld, int depth, int columns, const T* x, T* out);
    // The Cholesky factor of the lower triangle of an n x n block, n <= dense_block: 0, or the order of the first
    // leading minor that is not positive, whose pivot is then on the diagonal.
    int (*factor)(T* a, std::int64_t ld, int n);
    // x = x L^-T for a block of rows, L being n x n, n <= dense_block.
    void (*solve_rows)(const T* l, std::int64_t ldl, int n, T* x, std::int64_t ldx, int rows);
    // b = L^-1 b and b = L^-T b.
    void (*forward)(const T* l, std::int64_t ld, int n, T* b);
    void (*backward)(const T* l, std::int64_t ld, int n, T* b);
};

struct DenseTable {
    DenseKernels<float> f32;
    DenseKernels<double> f64;
};

const DenseTable& dense_portable();
const DenseTable& dense_v2();
const DenseTable& dense_v3();
const DenseTable& dense_v4();

}  // namespace adaptk::detail
