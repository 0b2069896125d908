#include "solve_linalg.hpp"

#include "dense.hpp"
#include "machine.hpp"
#include "solve_objective.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

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

// Below it a factorisation for the baseline takes less than 50 us, and dispatch has little to win.
constexpr int large_order = 112;

// y -= the sum of columns, each times its factor; four of them at a time.
template <class T> void subtract_columns(T* y, int count, const T* columns, int stride, const T* factors, int n) {
    int k = 0;
    for (; k + 4 <= n; k += 4, columns += 4 * std::ptrdiff_t(stride), factors += 4 * std::ptrdiff_t(stride)) {
        const T *c0 = columns, *c1 = c0 + stride, *c2 = c1 + stride, *c3 = c2 + stride;
        const T f0 = factors[0], f1 = factors[stride], f2 = factors[2 * stride], f3 = factors[3 * stride];
        for (int i = 0; i < count; ++i) y[i] -= (c0[i] * f0 + c1[i] * f1) + (c2[i] * f2 + c3[i] * f3);
    }
    for (; k < n; ++k, columns += stride, factors += stride) {
        const T f = *factors;
        for (int i = 0; i < count; ++i) y[i] -= columns[i] * f;
    }
}

// Column after column, each from those before it (Golub and Van Loan, Matrix Computations, 4.2).
template <class T> int small_cholesky(T* a, int n) {
    for (int j = 0; j < n; ++j) {
        T* column = a + std::ptrdiff_t(j) * n + j;
        subtract_columns(column, n - j, a + j, n, a + j, j);
        const T pivot = column[0];
        // NaN fails too.
        if (!(pivot > 0) || pivot == std::numeric_limits<T>::infinity()) return j + 1;
        const T root = std::sqrt(pivot);
        column[0] = root;
        for (int i = 1; i < n - j; ++i) column[i] /= root;
    }
    return 0;
}

template <class T> void small_solve(const T* l, int n, T* b) {
    for (int j = 0; j < n; ++j) {
        const T* column = l + std::ptrdiff_t(j) * n;
        const T x = b[j] /= column[j];
        for (int i = j + 1; i < n; ++i) b[i] -= column[i] * x;
    }
    for (int j = n - 1; j >= 0; --j) {
        const T* column = l + std::ptrdiff_t(j) * n;
        T sum[4] = {};
        int i = j + 1;
        for (; i + 4 <= n; i += 4)
            for (int k = 0; k < 4; ++k) sum[k] += column[i + k] * b[i + k];
        for (; i < n; ++i) sum[0] += column[i] * b[i];
        b[j] = (b[j] - ((sum[0] + sum[1]) + (sum[2] + sum[3]))) / column[j];
    }
}

template <class T> py::object solve_once(const py::array& h, const py::array& b) {
    const auto n = int(b.size());
    const auto* values = static_cast<const T*>(h.data());
    std::vector<T> l(values, values + h.size());
    if (cholesky(l.data(), n) != 0) return py::none();
    const auto* right = static_cast<const T*>(b.data());
    std::vector<T> x(right, right + n);
    cholesky_solve(l.data(), n, x.data());
    return py::reinterpret_steal<py::object>(fresh_array(x.data(), n));
}

}  // namespace

void connect_linalg() {
    const py::capsule capsule = py::module_::import("adaptk._core").attr("machine");
    machine = static_cast<const detail::Machine*>(PyCapsule_GetPointer(capsule.ptr(), detail::machine_capsule));
    if (machine == nullptr) throw py::error_already_set();
}

template <class T> int cholesky(T* a, int n) {
    if (n < large_order) return small_cholesky(a, n);
    const Release release(n);
    return detail::cholesky(kernels<T>(), machine->threads(), a, n);
}
template <class T> void cholesky_solve(const T* l, int n, T* b) {
    if (n < large_order) return small_solve(l, n, b);
    const Release release(n);
    kernels<T>().forward(l, n, n, b);
    kernels<T>().backward(l, n, n, b);
}
template <class T> void forward(const T* l, int n, T* b) { kernels<T>().forward(l, n, n, b); }
template <class T> void gram(const T* a, int m, int n, T* c, std::vector<T>& scratch) {
    detail::gram(kernels<T>(), machine->threads(), a, m, n, c, scratch);
}
template <class T> void product(const T* a, const T* b, int k, int m, int n, T* c) {
    detail::product(kernels<T>(), machine->threads(), a, b, k, m, n, c);
}
template <class T> void project(const T* a, int m, int n, const T* x, T* out) {
    detail::project(kernels<T>(), machine->threads(), a, m, n, x, out);
}
template <class T> void gram_rows(const T* a, int m, int n, const T* x, T* c, T* out, std::vector<T>& scratch) {
    detail::gram_rows(kernels<T>(), machine->threads(), a, m, n, x, c, out, scratch);
}
template <class T> void project_rows(const T* a, int m, int n, const T* x, T* out, std::vector<T>& scratch) {
    detail::project_rows(kernels<T>(), machine->threads(), a, m, n, x, out, scratch);
}
template <class T> void divide(const T* l, int n, T* x, int m) {
    detail::divide(kernels<T>(), machine->threads(), l, n, x, m);
}
template <class T> void inverse(const T* l, int n, T* work, T* out) {
    detail::inverse(kernels<T>(), machine->threads(), l, n, work, out);
}
template <class T> void transpose(const T* from, std::ptrdiff_t rows, std::ptrdiff_t columns, T* to) {
    detail::transpose(machine->threads(), from, rows, columns, to);
}

#define ADAPTK_INSTANTIATE(T)                                                                                          \
    template int cholesky(T*, int);                                                                                    \
    template void cholesky_solve(const T*, int, T*);                                                                   \
    template void forward(const T*, int, T*);                                                                          \
    template void gram(const T*, int, int, T*, std::vector<T>&);                                                       \
    template void product(const T*, const T*, int, int, int, T*);                                                      \
    template void project(const T*, int, int, const T*, T*);                                                           \
    template void gram_rows(const T*, int, int, const T*, T*, T*, std::vector<T>&);                                    \
    template void project_rows(const T*, int, int, const T*, T*, std::vector<T>&);                                     \
    template void divide(const T*, int, T*, int);                                                                      \
    template void inverse(const T*, int, T*, T*);                                                                      \
    template void transpose(const T*, std::ptrdiff_t, std::ptrdiff_t, T*);
ADAPTK_INSTANTIATE(float)
ADAPTK_INSTANTIATE(double)

void register_linalg(py::module_& m) {
    m.def("cholesky_solve", [](const py::array& h, const py::array& b) {
        // Symmetric, dense and of one type; by its callers.
        return py::isinstance<py::array_t<float>>(b) ? solve_once<float>(h, b) : solve_once<double>(h, b);
    });
}

}  // namespace adaptk::bindings
