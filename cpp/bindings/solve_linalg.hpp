// newton's factorisations: small ones inline, large ones by the kernels of the instruction set in use.
#pragma once

#include "adaptk/solve/linalg.hpp"

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

// Takes the thread count and the instruction set from adaptk._core. Once, at import.
void connect_linalg();

bool large_cholesky(float* a, int n);
bool large_cholesky(double* a, int n);
void large_cholesky_solve(const float* l, int n, float* b);
void large_cholesky_solve(const double* l, int n, double* b);

// Below it a factorisation takes less than 50 us with Eigen compiled for the baseline, and dispatch has little to win.
inline constexpr int large_order = 112;

struct DispatchedLinalg {
    template <class T> static bool cholesky(solve::Matrix<T>& a) {
        if (a.rows() < large_order) return solve::InlineLinalg::cholesky(a);
        return large_cholesky(a.data(), int(a.rows()));
    }
    template <class T> static void cholesky_solve(const solve::Matrix<T>& l, solve::Vector<T>& b) {
        if (l.rows() < large_order) return solve::InlineLinalg::cholesky_solve(l, b);
        large_cholesky_solve(l.data(), int(l.rows()), b.data());
    }
};

// cholesky_solve(h, b): the step of the plain method by itself, for tests and benchmarks.
void register_linalg(pybind11::module_& m);

}  // namespace adaptk::bindings
