// Cholesky factorisation of large matrices, on the kernels of an instruction set and several threads.
#pragma once

#include "dense_kernels.hpp"

#include <string_view>

namespace adaptk::detail {

// The kernels of the instruction set of this name, as dispatch.hpp names them.
const DenseTable& dense_table(std::string_view isa);

// The lower triangle of the n x n matrix becomes its factor; false where it has none, and then a is in pieces. What is
// above the diagonal is lost. The result does not depend on the number of threads.
template <class T> bool cholesky(const DenseKernels<T>& kernels, int threads, T* a, int n);

extern template bool cholesky(const DenseKernels<float>&, int, float*, int);
extern template bool cholesky(const DenseKernels<double>&, int, double*, int);

}  // namespace adaptk::detail
