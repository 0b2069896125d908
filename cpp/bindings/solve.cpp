// The extension module adaptk._solve: the solvers behind adaptk.solve. Arguments have been checked in Python.
#include "solve_batch.hpp"
#include "solve_linalg.hpp"
#include "solve_run.hpp"

namespace adaptk::bindings {
namespace {

py::object copy_of_plain_start(PyObject* x0) {
    if (!is_plain_start(x0)) return py::none();
    const auto* a = py::detail::array_proxy(x0);
    PyObject* copy = fresh_array(reinterpret_cast<const double*>(a->data), a->dimensions[0]);
    if (copy == nullptr) raise();
    return py::reinterpret_steal<py::object>(copy);
}

}  // namespace
}  // namespace adaptk::bindings

PYBIND11_MODULE(_solve, m, pybind11::mod_gil_not_used()) {
    using namespace adaptk::bindings;
    m.doc() = "The solvers behind adaptk.solve.";
    keys();
    prepare_arrays();
    connect_linalg();
    m.def(
        "copy_of_plain_start", [](const py::object& x0) -> py::object { return copy_of_plain_start(x0.ptr()); },
        "A copy of a 1-D float64 array of finite numbers, at least one; None for anything else.");
    register_least_squares(m);
    register_newton(m);
    register_gradient(m);
    register_linalg(m);
    register_batch(m);
}
