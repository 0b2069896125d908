#include "solve_linalg.hpp"

#include "dense.hpp"
#include "machine.hpp"
#include "solve_objective.hpp"

#include <cmath>

namespace adaptk::bindings {

namespace py = pybind11;

namespace {

const detail::Machine* machine = nullptr;

template <class T> const detail::DenseKernels<T>& kernels() {
    const detail::DenseTable& table = detail::dense_table(machine->isa());
    if constexpr (sizeof(T) == 4) {
        return table.f32;
    } else {
        return table.f64;
    }
}

// Others may run while a long factorisation does. Under it the GIL may already be away: compiled functions.
class Release {
  public:
    explicit Release(int n) {
        if (n >= 256 && PyGILState_Check()) state_ = PyEval_SaveThread();
    }
    ~Release() {
        if (state_ != nullptr) PyEval_RestoreThread(state_);
    }
    Release(const Release&) = delete;
    Release& operator=(const Release&) = delete;

  private:
    PyThreadState* state_ = nullptr;
};

template <class T> bool cholesky(T* a, int n) {
    const Release release(n);
    return detail::cholesky(kernels<T>(), machine->threads(), a, n);
}
template <class T> void cholesky_solve(const T* l, int n, T* b) {
    const Release release(n);
    kernels<T>().forward(l, n, n, b);
    kernels<T>().backward(l, n, n, b);
}

template <class T> py::object solve_once(const py::array& h, const py::array& b) {
    const auto n = int(b.size());
    solve::Matrix<T> l = Eigen::Map<const solve::Matrix<T>>(static_cast<const T*>(h.data()), n, n);
    solve::Vector<T> x = Eigen::Map<const solve::Vector<T>>(static_cast<const T*>(b.data()), n);
    if (!DispatchedLinalg::cholesky(l)) return py::none();
    DispatchedLinalg::cholesky_solve(l, x);
    return py::reinterpret_steal<py::object>(fresh_array(x.data(), n));
}

}  // namespace

void connect_linalg() {
    const py::capsule capsule = py::module_::import("adaptk._core").attr("machine");
    machine = static_cast<const detail::Machine*>(PyCapsule_GetPointer(capsule.ptr(), detail::machine_capsule));
    if (machine == nullptr) throw py::error_already_set();
}

bool large_cholesky(float* a, int n) { return cholesky(a, n); }
bool large_cholesky(double* a, int n) { return cholesky(a, n); }
void large_cholesky_solve(const float* l, int n, float* b) { cholesky_solve(l, n, b); }
void large_cholesky_solve(const double* l, int n, double* b) { cholesky_solve(l, n, b); }

void register_linalg(py::module_& m) {
    m.def("cholesky_solve", [](const py::array& h, const py::array& b) {
        // Symmetric, dense and of one type; by its callers.
        return py::isinstance<py::array_t<float>>(b) ? solve_once<float>(h, b) : solve_once<double>(h, b);
    });
}

}  // namespace adaptk::bindings
