#include "solve_linalg.hpp"

#include <pybind11/numpy.h>

namespace adaptk::bindings {

namespace py = pybind11;

void connect_linalg() {}
bool large_cholesky(float* a, int n) {
    Eigen::Map<solve::Matrix<float>> m(a, n, n);
    Eigen::Ref<solve::Matrix<float>> r(m);
    return Eigen::LLT<Eigen::Ref<solve::Matrix<float>>>(r).info() == Eigen::Success;
}
bool large_cholesky(double* a, int n) {
    Eigen::Map<solve::Matrix<double>> m(a, n, n);
    Eigen::Ref<solve::Matrix<double>> r(m);
    return Eigen::LLT<Eigen::Ref<solve::Matrix<double>>>(r).info() == Eigen::Success;
}
template <class T> void solve_with(const T* l, int n, T* b) {
    Eigen::Map<const solve::Matrix<T>> m(l, n, n);
    Eigen::Map<solve::Vector<T>> v(b, n);
    m.template triangularView<Eigen::Lower>().solveInPlace(v);
    m.transpose().template triangularView<Eigen::Upper>().solveInPlace(v);
}
void large_cholesky_solve(const float* l, int n, float* b) { solve_with(l, n, b); }
void large_cholesky_solve(const double* l, int n, double* b) { solve_with(l, n, b); }
void register_linalg(py::module_&) {}

}  // namespace adaptk::bindings
