// Products and triangular factorisations of large matrices, on the kernels of an instruction set and several threads.
// Matrices are stored without gaps, column after column unless a function says otherwise. No result depends on the
// number of threads.
#pragma once

#include "dense_kernels.hpp"

#include <string_view>
#include <vector>

namespace adaptk::detail {

// The kernels of an instruction set, by its name in dispatch.hpp.
const DenseTable& dense_table(std::string_view isa);

// The lower triangle of the n x n matrix becomes its Cholesky factor L; elements above the diagonal are lost. Returns
// 0, or the order k of the first leading minor that is not positive. Rows and columns before k, and row k, then have
// their part of L, and the diagonal element of row k is the pivot.
template <class T> int cholesky(const DenseKernels<T>& kernels, int threads, T* a, int n);

// The lower triangle of a'a for an m x n matrix. `scratch` keeps its memory from call to call.
template <class T>
void gram(const DenseKernels<T>& kernels, int threads, const T* a, int m, int n, T* c, std::vector<T>& scratch);

// c = a'b with a k x m and b k x n.
template <class T>
void product(const DenseKernels<T>& kernels, int threads, const T* a, const T* b, int k, int m, int n, T* c);

// out = a'x for an m x n matrix.
template <class T>
void project(const DenseKernels<T>& kernels, int threads, const T* a, int m, int n, const T* x, T* out);

// The lower triangle of a'a, and a'x, for an m x n matrix row after row.
template <class T>
void gram_rows(const DenseKernels<T>& kernels, int threads, const T* a, int m, int n, const T* x, T* c, T* out,
               std::vector<T>& scratch);

// out = a'x for an m x n matrix row after row.
template <class T>
void project_rows(const DenseKernels<T>& kernels, int threads, const T* a, int m, int n, const T* x, T* out,
                  std::vector<T>& scratch);

// x = x L^-T for m rows.
template <class T> void divide(const DenseKernels<T>& kernels, int threads, const T* l, int n, T* x, int m);

// The lower triangle of (L L')^-1; `work` is n x n, and becomes L^-T.
template <class T> void inverse(const DenseKernels<T>& kernels, int threads, const T* l, int n, T* work, T* out);

// to[j * rows + i] = from[i * columns + j].
template <class T> void transpose(int threads, const T* from, std::int64_t rows, std::int64_t columns, T* to);

}  // namespace adaptk::detail
