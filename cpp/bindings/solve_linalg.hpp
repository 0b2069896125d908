// newton's factorisations: small ones inline, large ones by the kernels of the instruction set in use.
#pragma once

#include "adaptk/solve/linalg.hpp"

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

// Takes the thread count and the instruction set from adaptk._core. Once, at import.
void connect_linalg();

// InlineLinalg's two functions on an n x n matrix. Not Eigen's: those take 20 s to compile.
bool cholesky(float* a, int n);
bool cholesky(double* a, int n);
void cholesky_solve(const float* l, int n, float* b);
void cholesky_solve(const double* l, int n, double* b);

struct DispatchedLinalg {
    template <class T> static bool cholesky(solve::Matrix<T>& a) { return bindings::cholesky(a.data(), int(a.rows())); }
    template <class T> static void cholesky_solve(const solve::Matrix<T>& l, solve::Vector<T>& b) {
        bindings::cholesky_solve(l.data(), int(l.rows()), b.data());
    }
};

// cholesky_solve(h, b): the step of the plain method by itself, for tests and benchmarks.
void register_linalg(pybind11::module_& m);

}  // namespace adaptk::bindings
