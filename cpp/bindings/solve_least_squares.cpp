// levenberg_marquardt.
#include "solve_run.hpp"

#include "solve_linalg.hpp"

#include "adaptk/solve/covariance.hpp"
#include "adaptk/solve/levenberg_marquardt.hpp"

#include <memory>

namespace adaptk::bindings {
namespace {

using namespace adaptk::solve;

template <class T> py::object symmetric_to(const Matrix<T>& m) {
    PyObject* a = fresh_array(m.data(), m.rows(), m.cols());
    if (a == nullptr) raise();
    return py::reinterpret_steal<py::object>(a);
}

// A workspace that a thread's next run of small size finds with its memory, some thirty allocations; a run inside a
// run has its own.
template <class W> class Lent {
  public:
    Lent() : w_(spare() ? std::move(spare()) : std::make_unique<W>()) {}
    ~Lent() {
        if (std::int64_t(w_->m) * w_->n <= 4096) spare() = std::move(w_);
    }
    Lent(const Lent&) = delete;
    Lent& operator=(const Lent&) = delete;
    W& operator*() const { return *w_; }

  private:
    static std::unique_ptr<W>& spare() {
        thread_local std::unique_ptr<W> kept;
        return kept;
    }
    std::unique_ptr<W> w_;
};

// What a result is: adaptk.solve's class and its messages by status, given at import; and all keys of a plain fit's
// result, because a dict that is filled key by key grows several times.
struct ResultType {
    py::handle type, messages, finish, keys;
};
ResultType& result_type() {
    static auto& only = *new ResultType;
    return only;
}

py::dict new_result() {
    PyObject* const made = PyObject_CallNoArgs(result_type().type.ptr());
    if (made == nullptr) raise();
    return py::reinterpret_steal<py::dict>(made);
}

// What a run is asked for, beside its functions.
template <class T> struct Request {
    Vector<T> start, scale;  // scale: the sizes of the variables; empty: by the Jacobian's columns
    LevenbergMarquardtOptions<T> options;
    bool known_variance = false;
    int m = 0;  // of a compiled function
};

// `f` has its functions, bounds and differences. The result lacks success, message and dof.
template <class T> py::dict run(Objective<T>& f, Request<T>& q, Watch& watch, py::dict d = {}) {
    LevenbergMarquardtOptions<T>& o = q.options;
    o.fixed_scale = q.scale.size() > 0;
    o.bounded = f.lower.size() > 0;
    if (f.fun.compiled()) {
        f.m = q.m;
    } else if (!f.first_residuals(q.start.data())) {
        raise();
    }
    o.noise = f.noise;
    f.prepare();
    const Lent<LevenbergMarquardtWork<T>> lent;
    LevenbergMarquardtWork<T>& w = *lent;
    w.resize(f.m, f.n);
    w.x = q.start;
    if (o.fixed_scale) w.d = q.scale.cwiseInverse();
    if (o.bounded) {
        w.lower = f.lower;
        w.upper = f.upper;
    }
    const bool large = double(f.m) * f.n * f.n >= 1 << 20;
    const Summary<T> s = solve_with(f, large, [&] { return levenberg_marquardt<T, DispatchedLinalg>(f, o, w, watch); });
    check(s);
    const Keys& k = keys();
    d = to_dict(s, f, watch, std::move(d));
    put(d, k.x, vector_to(w.x));
    put(d, k.fun, vector_to(w.r));
    put(d, k.cost, number(s.value));
    put(d, k.optimality, number(s.gradient));
    if (!std::isnan(s.gradient)) {
        put(d, k.jac, f.jacobian_array());
        put(d, k.grad, vector_to(w.g));
        Matrix<T> cov(f.n, f.n);
        Vector<T> deviation(f.n);
        without_python(large, [&] {
            Covariance<T, DispatchedLinalg>(w, o.loss, o.loss_scale).compute(q.known_variance, cov, deviation);
        });
        put(d, k.cov, symmetric_to(cov));
        put(d, k.x_std, vector_to(deviation));
    } else {
        const T nan = std::numeric_limits<T>::quiet_NaN();
        const Vector<T> unknown = Vector<T>::Constant(f.n, nan);
        put(d, k.jac, py::none());
        put(d, k.grad, vector_to(unknown));
        put(d, k.cov, symmetric_to(Matrix<T>(Matrix<T>::Constant(f.n, f.n, nan))));
        put(d, k.x_std, vector_to(unknown));
    }
    put(d, k.active_mask, active_mask(w.x, w.lower, w.upper));
    return d;
}

template <class T>
py::dict run_with(const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
                  const py::tuple& derivatives, int m, const py::object& lower, const py::object& upper,
                  const py::tuple& options, const py::tuple& common) {
    Request<T> q;
    q.start = vector_of<T>(x0);
    q.m = m;
    Objective<T> f;
    f.fun = Function("fun", fun, args);
    f.jac = Function("jac", jac, args);
    set_up(f, int(q.start.size()), derivatives, q.start);
    set_bounds(f, lower, upper);
    // options: (ftol, xtol, gtol, max_nfev, factor, loss, loss_scale, accelerate, polish, scale, absolute_sigma)
    LevenbergMarquardtOptions<T>& o = q.options;
    o.max_evaluations = options[3].cast<std::int64_t>();
    o.loss = Loss(options[5].cast<int>());
    o.loss_scale = T(options[6].cast<double>());
    o.accelerate = options[7].cast<int>();
    o.polish = options[8].cast<bool>();
    q.scale = vector_of<T>(options[9]);
    q.known_variance = options[10].cast<bool>();
    const auto given = [&](int i, T& value) {
        if (options[i].is_none()) return false;
        value = T(options[i].cast<double>());
        return true;
    };
    o.keep_ftol = given(0, o.ftol);
    o.keep_xtol = given(1, o.xtol);
    o.keep_gtol = given(2, o.gtol);
    given(4, o.factor);
    Watch watch(common, f.compiled());
    return run(f, q, watch, new_result());
}

// A function that cannot be a compiled one.
bool is_python_function(PyObject* f) {
    return PyFunction_Check(f) || PyMethod_Check(f) || Py_IS_TYPE(f, &PyCFunction_Type);
}

// The whole call of Python's levenberg_marquardt where nothing but fun, x0 and jac is given and these are what most
// callers have, for small fits: of those, checks of arguments one by one take as long as the fit. None for any other
// call, and where the result needs more words.
py::object plain_fit(const py::tuple& arguments, const py::dict& keywords) {
    if (arguments.size() != 2 || keywords.size() > 1 || !result_type().type) return py::none();
    const Keys& k = keys();
    const py::handle fun = PyTuple_GET_ITEM(arguments.ptr(), 0), x0 = PyTuple_GET_ITEM(arguments.ptr(), 1);
    py::object jac = py::none();
    if (keywords.size() == 1) {
        jac = value_of(keywords.ptr(), k.jac.ptr());
        if (!jac) return py::none();
    }
    if (!is_python_function(fun.ptr()) || !(jac.is_none() || is_python_function(jac.ptr())) ||
        !is_plain_start(x0.ptr()))
        return py::none();
    const auto* const at = py::detail::array_proxy(x0.ptr());
    Request<double> q;
    q.start = Eigen::Map<const Vector<double>>(reinterpret_cast<const double*>(at->data), at->dimensions[0]);
    q.options.max_evaluations = 200 * (q.start.size() + 1);
    Objective<double> f;
    f.n = int(q.start.size());
    f.fun = Function("fun", fun, py::tuple());
    f.jac = Function("jac", jac, py::tuple());
    if (jac.is_none()) {
        f.differences.gradient = Difference::two_point;
        set_typical(f, q.start);
    }
    Watch watch;
    py::dict d = new_result();
    if (PyDict_Merge(d.ptr(), result_type().keys.ptr(), 1) != 0) raise();
    d = run(f, q, watch, std::move(d));
    put(d, k.dof, number(double(f.m - f.n)));
    const py::object status = value_of(d.ptr(), k.status.ptr());
    const long number_of = PyLong_AsLong(status.ptr());
    if (number_of == long(Status::derivative)) {
        d = result_type().finish(d, "least_squares", py::none());
    } else {
        put(d, k.success, py::bool_(number_of > 0));
        put(d, k.message, value_of(result_type().messages.ptr(), status.ptr()));
    }
    // The call, as Python's function remembers it.
    const py::object call = py::reinterpret_steal<py::object>(PyTuple_Pack(2, arguments.ptr(), keywords.ptr()));
    if (!call || PyObject_GenericSetAttr(d.ptr(), k.call.ptr(), call.ptr()) != 0) raise();
    return d;
}

}  // namespace

void register_least_squares(py::module_& m) {
    m.def("levenberg_marquardt",
          [](const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
             const py::tuple& derivatives, int residuals, const py::object& lower, const py::object& upper,
             const py::tuple& options, const py::tuple& common) {
              auto* run = is_float(x0) ? run_with<float> : run_with<double>;
              return run(fun, x0, args, jac, derivatives, residuals, lower, upper, options, common);
          });
    m.def("plain_fit", plain_fit);
    m.def("set_result_type", [](const py::object& type, const py::dict& messages, const py::object& finish) {
        const Keys& k = keys();
        py::dict all;
        for (const py::handle key : {k.status, k.nit, k.nfev, k.njev, k.nhev, k.x, k.fun, k.cost, k.optimality, k.jac,
                                     k.grad, k.cov, k.x_std, k.active_mask, k.dof, k.success, k.message})
            all[key] = py::none();
        result_type() = {py::object(type).release(), py::object(messages).release(), py::object(finish).release(),
                         all.release()};
    });
}

}  // namespace adaptk::bindings
