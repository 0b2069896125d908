// The solvers' factorisations: small ones inline, large ones by the kernels of the instruction set in use.
#pragma once

#include "adaptk/solve/linalg.hpp"

#include <pybind11/pybind11.h>

#include <cstddef>
#include <vector>

namespace adaptk::bindings {

// Takes the thread count and the instruction set from adaptk._core. Once, at import.
void connect_linalg();

// The functions of DispatchedLinalg, for float and double; not Eigen's: those take 20 s to compile.
template <class T> int cholesky(T* a, int n);
template <class T> void cholesky_solve(const T* l, int n, T* b);
template <class T> void forward(const T* l, int n, T* b);
template <class T> void gram(const T* a, int m, int n, T* c, std::vector<T>& scratch);
template <class T> void product(const T* a, const T* b, int k, int m, int n, T* c);
template <class T> void gram_rows(const T* a, int m, int n, const T* x, T* c, T* out, std::vector<T>& scratch);
template <class T> void project(const T* a, int m, int n, const T* x, T* out);
template <class T> void project_rows(const T* a, int m, int n, const T* x, T* out, std::vector<T>& scratch);
template <class T> void divide(const T* l, int n, T* x, int m);
template <class T> void inverse(const T* l, int n, T* work, T* out);

// A policy as linalg.hpp describes it; see dense.hpp for what each function does.
struct DispatchedLinalg {
    static constexpr bool blocked = true;
    // From here on blocked_qr.hpp is faster than reflections.
    static bool blocked_fit(int m, int n) { return n >= 8 && m >= n && double(m) * n * n >= 1 << 20; }
    static bool blocked_order(int n) { return n >= 112; }

    template <class T> static bool cholesky(solve::Matrix<T>& a) {
        return bindings::cholesky(a.data(), int(a.rows())) == 0;
    }
    template <class T> static void cholesky_solve(const solve::Matrix<T>& l, solve::Vector<T>& b) {
        bindings::cholesky_solve(l.data(), int(l.rows()), b.data());
    }
    template <class T> static int cholesky(T* a, int n) { return bindings::cholesky(a, n); }
    template <class T> static void cholesky_solve(const T* l, int n, T* b) { bindings::cholesky_solve(l, n, b); }
    template <class T> static void forward(const T* l, int n, T* b) { bindings::forward(l, n, b); }
    template <class T> static void gram(const T* a, int m, int n, T* c, std::vector<T>& scratch) {
        bindings::gram(a, m, n, c, scratch);
    }
    template <class T> static void product(const T* a, const T* b, int k, int m, int n, T* c) {
        bindings::product(a, b, k, m, n, c);
    }
    template <class T> static void project(const T* a, int m, int n, const T* x, T* out) {
        bindings::project(a, m, n, x, out);
    }
    template <class T>
    static void gram_rows(const T* a, int m, int n, const T* x, T* c, T* out, std::vector<T>& scratch) {
        bindings::gram_rows(a, m, n, x, c, out, scratch);
    }
    template <class T> static void project_rows(const T* a, int m, int n, const T* x, T* out, std::vector<T>& scratch) {
        bindings::project_rows(a, m, n, x, out, scratch);
    }
    template <class T> static void divide(const T* l, int n, T* x, int m) { bindings::divide(l, n, x, m); }
    template <class T> static void inverse(const T* l, int n, T* work, T* out) { bindings::inverse(l, n, work, out); }
};

// to[j * rows + i] = from[i * columns + j].
template <class T> void transpose(const T* from, std::ptrdiff_t rows, std::ptrdiff_t columns, T* to);

// cholesky_solve(h, b): the step of the plain method by itself, for tests and benchmarks.
void register_linalg(pybind11::module_& m);

}  // namespace adaptk::bindings
