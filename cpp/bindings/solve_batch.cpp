// levenberg_marquardt_batch. Arguments have been checked in Python: arrays are C-ordered, of one type and of the right
// shapes; what is None is absent.
#include "solve_batch.hpp"

#include "batch.hpp"
#include "batch_options.hpp"
#include "machine.hpp"

#include <pybind11/numpy.h>

namespace adaptk::bindings {

namespace py = pybind11;

namespace {

const detail::Machine* batch_machine = nullptr;

template <class T> const detail::BatchKernels<T>& batch_kernels() {
    const detail::BatchTable& table = detail::batch_table(batch_machine->isa());
    if constexpr (sizeof(T) == 4) {
        return table.f32;
    } else {
        return table.f64;
    }
}

template <class T> const T* data_of(const py::object& a) {
    return a.is_none() ? nullptr : static_cast<const T*>(py::reinterpret_borrow<py::array>(a).data());
}
// The distance between the rows of an array with one row for each problem; 0 for a single row of `dimensions`.
std::int64_t stride_of(const py::object& a, py::ssize_t dimensions) {
    if (a.is_none()) return 0;
    const auto array = py::reinterpret_borrow<py::array>(a);
    std::int64_t size = 1;
    for (py::ssize_t i = array.ndim() - dimensions; i < array.ndim(); ++i) size *= std::int64_t(array.shape(i));
    return array.ndim() > dimensions ? size : 0;
}

bool go(void*) {
    const py::gil_scoped_acquire held;
    return PyErr_CheckSignals() == 0;
}

// (model, size, inputs, degree, program), whose arrays it borrows.
class Choice {
  public:
    explicit Choice(const py::tuple& model) {
        choice_ = batch_choice(model);
        if (model[4].is_none()) return;
        // Program.packed() of adaptk/solve/_expression.py.
        const py::tuple parts = model[4].cast<py::tuple>();
        const auto array = [&](int i) { return parts[i].cast<py::array>(); };
        const auto code = [&](int i) { return static_cast<const detail::BatchInstruction*>(array(i).data()); };
        program_.parameters = parts[0].cast<int>();
        program_.inputs = parts[1].cast<int>();
        program_.numbers = int(array(2).size());
        program_.number = static_cast<const double*>(array(2).data());
        program_.once_count = int(array(3).shape(0));
        program_.once = code(3);
        program_.each_count = int(array(4).shape(0));
        program_.each = code(4);
        program_.outputs = static_cast<const std::uint16_t*>(array(5).data());
        choice_.program = &program_;
    }
    Choice(const Choice&) = delete;
    Choice& operator=(const Choice&) = delete;
    const detail::BatchChoice& operator*() const { return choice_; }

  private:
    detail::BatchChoice choice_;
    detail::BatchProgram program_;
};

template <class T>
py::dict run(const py::tuple& model, const py::array& x0, const py::array& data, const py::array& coordinates,
             const py::object& weights, const py::object& lower, const py::object& upper, const py::object& fixed,
             const py::object& loss_scale, const py::tuple& options, bool covariance) {
    const Choice chosen(model);
    const detail::BatchChoice& choice = *chosen;
    const py::ssize_t k = data.shape(0), n = choice.size;
    solve::BatchProblem<T> problem;
    problem.count = std::int64_t(k);
    problem.points = int(data.shape(1));
    problem.data = data_of<T>(data);
    problem.start = data_of<T>(x0);
    problem.start_stride = stride_of(x0, 1);
    problem.coordinates = data_of<T>(coordinates);
    problem.coordinates_stride = stride_of(coordinates, 2);
    problem.weights = data_of<T>(weights);
    problem.weights_stride = stride_of(weights, 1);
    problem.lower = data_of<T>(lower);
    problem.upper = data_of<T>(upper);
    problem.bounds_stride = stride_of(lower, 1);
    problem.fixed = data_of<bool>(fixed);
    problem.fixed_stride = stride_of(fixed, 1);
    problem.loss_scale = data_of<T>(loss_scale);
    problem.loss_scale_stride = stride_of(loss_scale, 0);
    solve::BatchOptions<T> o;
    take_batch_options(options, o);
    py::array_t<T> x({k, n}), cost(k), cov, deviation;
    py::array_t<int> status(k), nit(k);
    problem.x = x.mutable_data();
    problem.cost = cost.mutable_data();
    problem.status = status.mutable_data();
    problem.iterations = nit.mutable_data();
    if (covariance) {
        cov = py::array_t<T>({k, n, n});
        problem.covariance = cov.mutable_data();
        deviation = py::array_t<T>({k, n});
        problem.deviation = deviation.mutable_data();
    }
    const detail::BatchTable& table = detail::batch_table(batch_machine->isa());
    const int threads = batch_machine->threads();
    bool whole;
    {
        const py::gil_scoped_release released;
        whole = detail::solve_batch<T>(table, threads, choice, problem, o, {go, nullptr});
    }
    if (!whole) throw py::error_already_set();
    py::dict d;
    d["x"] = x;
    d["cost"] = cost;
    d["status"] = status;
    d["nit"] = nit;
    if (covariance) {
        d["cov"] = cov;
        d["x_std"] = deviation;
    }
    return d;
}

template <class T> py::tuple evaluate(const py::tuple& model, const py::array& p, const py::array& coordinates) {
    const Choice chosen(model);
    const detail::BatchChoice& choice = *chosen;
    const py::ssize_t m = coordinates.shape(0);
    py::array_t<T> value(m), slope({m, py::ssize_t(choice.size)});
    batch_kernels<T>().model(choice, int(m), data_of<T>(p), data_of<T>(coordinates), value.mutable_data(),
                             slope.mutable_data());
    return py::make_tuple(value, slope);
}

template <class T> py::array exponential(const py::array& x) {
    py::array_t<T> y(x.size());
    batch_kernels<T>().exp(std::int64_t(x.size()), data_of<T>(x), y.mutable_data());
    return y;
}

bool is_float(const py::array& a) { return a.dtype().itemsize() == 4; }

}  // namespace

void register_batch(py::module_& m) {
    const py::capsule capsule = py::module_::import("adaptk._core").attr("machine");
    batch_machine = static_cast<const detail::Machine*>(PyCapsule_GetPointer(capsule.ptr(), detail::machine_capsule));
    if (batch_machine == nullptr) throw py::error_already_set();
    m.def("levenberg_marquardt_batch", [](const py::tuple& model, const py::array& x0, const py::array& data,
                                          const py::array& coordinates, const py::object& weights,
                                          const py::object& lower, const py::object& upper, const py::object& fixed,
                                          const py::object& loss_scale, const py::tuple& options, bool covariance) {
        auto* chosen = is_float(data) ? run<float> : run<double>;
        return chosen(model, x0, data, coordinates, weights, lower, upper, fixed, loss_scale, options, covariance);
    });
    m.def("batch_model", [](const py::tuple& model, const py::array& p, const py::array& coordinates) {
        return is_float(p) ? evaluate<float>(model, p, coordinates) : evaluate<double>(model, p, coordinates);
    });
    m.def("batch_exp", [](const py::array& x) { return is_float(x) ? exponential<float>(x) : exponential<double>(x); });
}

}  // namespace adaptk::bindings
