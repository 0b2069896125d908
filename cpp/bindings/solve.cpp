// The extension module adaptk._solve: the solvers behind adaptk.solve. Arguments have been checked in Python.
#include "locks.hpp"
#include "solve_batch.hpp"
#include "solve_linalg.hpp"
#include "solve_objective.hpp"

#include "adaptk/solve.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

namespace adaptk::bindings {
namespace {

using namespace adaptk::solve;
using Clock = std::chrono::steady_clock;

// Thrown where a Python error is set.
[[noreturn]] void raise() { throw py::error_already_set(); }

// Called once an iteration: history, progress, time limit, Ctrl-C and the user's callback.
// common: (callback or None, report or None, history, max_seconds)
class Watch {
  public:
    // The interpreter looks after signals while it runs functions in Python.
    Watch(const py::tuple& common, bool compiled)
        : compiled_(compiled), callback_(common[0]), report_(common[1]), history_(common[2].cast<bool>()),
          start_(Clock::now()) {
        const double seconds = common[3].cast<double>();
        if (seconds < 1e9)
            deadline_ = start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    }
    bool needs_python() const { return !callback_.is_none() || !report_.is_none(); }

    template <class T> Signal operator()(const Progress<T>& p) {
        if (history_) {
            values_.push_back(double(p.value));
            steps_.push_back(double(p.step));
            gradients_.push_back(double(p.gradient));
        }
        const bool python = needs_python();
        Clock::time_point now{};
        const bool look = compiled_ || (++calls_ & 15) == 0;  // a callable of C code does not look either
        if (deadline_ || look) now = Clock::now();
        if (python || (look && now - looked_ > std::chrono::milliseconds(50))) {
            looked_ = now;
            py::gil_scoped_acquire held;
            if (PyErr_CheckSignals() != 0) return Signal::abort;
            if (python)
                if (const Signal signal = ask(p); signal != Signal::go) return signal;
        }
        return deadline_ && now > *deadline_ ? Signal::time : Signal::go;
    }

    void put(py::dict& result) const {
        if (!history_) return;
        const auto array = [](const std::vector<double>& v) {
            return py::array_t<double>(py::ssize_t(v.size()), v.data());
        };
        py::dict h;
        h["fun"] = array(values_);
        h["step"] = array(steps_);
        h["gradient"] = array(gradients_);
        result["history"] = h;
    }

  private:
    template <class T> Signal ask(const Progress<T>& p) {
        if (!report_.is_none()) {
            py::object done = py::reinterpret_steal<py::object>(PyObject_CallFunction(
                report_.ptr(), "lddd", p.nit, double(p.value), double(p.step), double(p.gradient)));
            if (!done) return Signal::abort;
        }
        if (callback_.is_none() || p.nit == 0) return Signal::go;
        py::object x = py::reinterpret_steal<py::object>(fresh_array(p.x, p.n));
        if (!x) return Signal::abort;
        py::object f = py::reinterpret_steal<py::object>(PyFloat_FromDouble(double(p.value)));
        py::object nit = py::reinterpret_steal<py::object>(PyLong_FromLong(p.nit));
        PyObject* const arguments[3] = {x.ptr(), f.ptr(), nit.ptr()};
        py::object answer =
            py::reinterpret_steal<py::object>(PyObject_Vectorcall(callback_.ptr(), arguments, 3, nullptr));
        if (!answer) {
            if (!PyErr_ExceptionMatches(PyExc_StopIteration)) return Signal::abort;
            PyErr_Clear();
            return Signal::stop;
        }
        return answer.ptr() == Py_True ? Signal::stop : Signal::go;
    }

    bool compiled_;
    int calls_ = 0;
    py::object callback_, report_;
    bool history_;
    Clock::time_point start_, looked_{};
    std::optional<Clock::time_point> deadline_;
    std::vector<double> values_, steps_, gradients_;
};

template <class T> Vector<T> vector_of(const py::handle& h) {
    if (h.is_none()) return {};
    const auto a = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(h);
    if (!a) raise();
    return Eigen::Map<const Vector<T>>(a.data(), a.size());
}

template <class T> py::object vector_to(const Vector<T>& v) {
    PyObject* a = fresh_array(v.data(), v.size());
    if (a == nullptr) raise();
    return py::reinterpret_steal<py::object>(a);
}

// A C-ordered array from a matrix stored column after column.
template <class T> py::object matrix_to(const Matrix<T>& m) {
    PyObject* a = fresh_array<T>(nullptr, m.rows(), m.cols());
    if (a == nullptr) raise();
    transpose(m.data(), m.cols(), m.rows(), reinterpret_cast<T*>(py::detail::array_proxy(a)->data));
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

template <class Work> auto without_python(bool release, const Work& work) {
    if (!release) return work();
    py::gil_scoped_release released;
    return work();
}

// Compiled functions run without the GIL. With functions in Python it is away between their calls where the linear
// algebra there takes so long, a millisecond or more, that other threads should not wait for it.
template <class T, class Work> auto solve_with(Objective<T>& f, bool large, const Work& work) {
    f.without_gil = large && !f.compiled();
    return without_python(large || f.compiled(), work);
}

template <class T> void check(const Summary<T>& s) {
    if (s.status != Status::aborted) return;
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "a function failed without an exception");
    raise();
}

// The keys of results.
struct Keys {
    py::handle status = interned("status");
    py::handle nit = interned("nit");
    py::handle nfev = interned("nfev");
    py::handle njev = interned("njev");
    py::handle nhev = interned("nhev");
    py::handle x = interned("x");
    py::handle fun = interned("fun");
    py::handle jac = interned("jac");
    py::handle hess = interned("hess");
    py::handle cost = interned("cost");
    py::handle optimality = interned("optimality");
    py::handle cov = interned("cov");
    py::handle x_std = interned("x_std");
    py::handle active_mask = interned("active_mask");
    py::handle grad = interned("grad");
    py::handle lambda_min = interned("lambda_min");
};

const Keys& keys() {
    static const auto& all = *new Keys;
    return all;
}

template <class T> py::dict to_dict(const Summary<T>& s, const Objective<T>& f, const Watch& watch) {
    const Keys& k = keys();
    py::dict d;
    d[k.status] = int(s.status);
    d[k.nit] = s.nit;
    d[k.nfev] = f.fun_calls;
    d[k.njev] = f.jac_calls;
    d[k.nhev] = f.hess_calls;
    if (s.status == Status::derivative)
        d["disagreement"] = py::make_tuple(s.disagreement.variable, double(s.disagreement.claimed),
                                           double(s.disagreement.found), bool(f.jac) || f.fun_returns_gradient);
    watch.put(d);
    return d;
}

template <class T> py::object number(T value) {
    // float32 results keep their type.
    if constexpr (sizeof(T) == 4) {
        const Vector<T> one = Vector<T>::Constant(1, value);
        return vector_to(one)[py::int_(0)];
    } else {
        return py::float_(value);
    }
}

struct Derivatives {
    int gradient, hessian;
    bool vectorized, fun_returns_gradient;
};

template <class T> void set_up(Objective<T>& f, int n, const py::tuple& options, const Vector<T>& x0) {
    // options: (gradient method, hessian method, vectorized, jac is True, rel_step, typical)
    f.n = n;
    f.differences.gradient = Difference(options[0].cast<int>());
    f.differences.hessian = Difference(options[1].cast<int>());
    f.differences.vectorized = options[2].cast<bool>();
    f.fun_returns_gradient = options[3].cast<bool>();
    f.relative = vector_of<T>(options[4]);
    f.typical = vector_of<T>(options[5]);
    if (f.typical.size() == 0) {
        // The start's own size; 1 where that is 0, which says nothing.
        f.typical.resize(n);
        for (int i = 0; i < n; ++i) f.typical[i] = x0[i] != 0 ? std::abs(x0[i]) : T(1);
    }
}

template <class T>
py::dict run_levenberg_marquardt(const py::object& fun, const py::object& x0, const py::tuple& args,
                                 const py::object& jac, const py::tuple& derivatives, int m, const py::object& lower,
                                 const py::object& upper, const py::tuple& options, const py::tuple& common) {
    const Vector<T> start = vector_of<T>(x0);
    Objective<T> f;
    f.fun = Function("fun", fun, args);
    f.jac = Function("jac", jac, args);
    set_up(f, int(start.size()), derivatives, start);
    LevenbergMarquardtOptions<T> o;
    // options: (ftol, xtol, gtol, max_nfev, factor, loss, loss_scale, accelerate, polish, scale, absolute_sigma)
    o.max_evaluations = options[3].cast<std::int64_t>();
    o.loss = Loss(options[5].cast<int>());
    o.loss_scale = T(options[6].cast<double>());
    o.accelerate = options[7].cast<int>();
    o.polish = options[8].cast<bool>();
    o.fixed_scale = !options[9].is_none();
    if (!lower.is_none()) {
        o.bounded = true;
        f.lower = vector_of<T>(lower);
        f.upper = vector_of<T>(upper);
    }
    if (f.fun.compiled()) {
        f.m = m;
    } else if (!f.first_residuals(start.data())) {
        raise();
    }
    o.noise = f.noise;
    const auto given = [&](int i, T& value) {
        if (options[i].is_none()) return false;
        value = T(options[i].cast<double>());
        return true;
    };
    o.keep_ftol = given(0, o.ftol);
    o.keep_xtol = given(1, o.xtol);
    o.keep_gtol = given(2, o.gtol);
    given(4, o.factor);
    f.prepare();
    const Lent<LevenbergMarquardtWork<T>> lent;
    LevenbergMarquardtWork<T>& w = *lent;
    w.resize(f.m, f.n);
    w.x = start;
    if (o.fixed_scale) w.d = vector_of<T>(options[9]).cwiseInverse();
    if (o.bounded) {
        w.lower = f.lower;
        w.upper = f.upper;
    }
    Watch watch(common, f.compiled());
    const bool large = double(f.m) * f.n * f.n >= 1 << 20;
    const Summary<T> s = solve_with(f, large, [&] { return levenberg_marquardt<T, DispatchedLinalg>(f, o, w, watch); });
    check(s);
    const Keys& k = keys();
    py::dict d = to_dict(s, f, watch);
    d[k.x] = vector_to(w.x);
    d[k.fun] = vector_to(w.r);
    d[k.cost] = number(s.value);
    d[k.optimality] = number(s.gradient);
    d[k.jac] = py::none();
    if (!std::isnan(s.gradient)) {
        d[k.jac] = matrix_to(w.j);
        d[k.grad] = vector_to(w.g);
        Matrix<T> cov(f.n, f.n);
        Vector<T> deviation(f.n);
        const bool known = options[10].cast<bool>();
        without_python(
            large, [&] { Covariance<T, DispatchedLinalg>(w, o.loss, o.loss_scale).compute(known, cov, deviation); });
        d[k.cov] = matrix_to(cov);
        d[k.x_std] = vector_to(deviation);
    } else {
        const T nan = std::numeric_limits<T>::quiet_NaN();
        const Vector<T> unknown = Vector<T>::Constant(f.n, nan);
        d[k.grad] = vector_to(unknown);
        d[k.cov] = matrix_to(Matrix<T>(Matrix<T>::Constant(f.n, f.n, nan)));
        d[k.x_std] = vector_to(unknown);
    }
    PyObject* const mask = fresh_array<std::int64_t>(nullptr, f.n);
    if (mask == nullptr) raise();
    auto* const held = reinterpret_cast<std::int64_t*>(py::detail::array_proxy(mask)->data);
    for (int i = 0; i < f.n; ++i) held[i] = w.x[i] <= w.lower[i] ? -1 : w.x[i] >= w.upper[i] ? 1 : 0;
    d[k.active_mask] = py::reinterpret_steal<py::object>(mask);
    return d;
}

template <class T> void put_point(py::dict& d, const Summary<T>& s, const Vector<T>& x_, const Vector<T>& g) {
    const Keys& k = keys();
    d[k.x] = vector_to(x_);
    d[k.fun] = number(s.value);
    d[k.jac] = vector_to(g);
}

template <class T>
py::dict run_newton(const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
                    const py::object& hess, const py::object& hessp, const py::tuple& derivatives, int damping,
                    const py::tuple& options, const py::tuple& common) {
    const Vector<T> start = vector_of<T>(x0);
    Objective<T> f;
    f.fun = Function("fun", fun, args);
    f.jac = Function("jac", jac, args);
    f.hess = Function("hess", hess, args);
    f.hessp = Function("hessp", hessp, args);
    set_up(f, int(start.size()), derivatives, start);
    f.prepare();
    if (!f.prime(start.data())) raise();
    NewtonOptions<T> o;
    // options: (gtol, xtol, radius, maxiter)
    o.keep_gtol = !options[0].is_none();
    if (o.keep_gtol) o.gtol = T(options[0].cast<double>());
    if (!options[1].is_none()) o.xtol = T(options[1].cast<double>());
    if (!options[2].is_none()) o.radius = T(options[2].cast<double>());
    o.max_iterations = options[3].cast<std::int64_t>();
    o.damping = Damping(damping);
    Watch watch(common, f.compiled());
    const Keys& k = keys();
    if (f.hessp) {
        NewtonCgWork<T> w;
        w.resize(f.n);
        w.x = start;
        const Summary<T> s = solve_with(f, f.n >= 1 << 14, [&] { return newton_cg<T>(f, o, w, watch); });
        check(s);
        py::dict d = to_dict(s, f, watch);
        put_point(d, s, w.x, w.g);
        d[k.lambda_min] = number(s.lambda_min);
        return d;
    }
    NewtonWork<T> w;
    w.resize(f.n);
    w.x = start;
    const Summary<T> s = solve_with(f, f.n >= 128, [&] { return newton<T, DispatchedLinalg>(f, o, w, watch); });
    check(s);
    py::dict d = to_dict(s, f, watch);
    put_point(d, s, w.x, w.g);
    // Symmetric: rows are columns.
    PyObject* const second = fresh_array(w.h.data(), f.n, f.n);
    if (second == nullptr) raise();
    d[k.hess] = py::reinterpret_steal<py::object>(second);
    d[k.lambda_min] = number(s.lambda_min);
    return d;
}

template <class T>
py::dict run_gradient(const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
                      const py::tuple& derivatives, int kind, int rule, const py::tuple& options,
                      const py::tuple& common) {
    const Vector<T> start = vector_of<T>(x0);
    Objective<T> f;
    f.fun = Function("fun", fun, args);
    f.jac = Function("jac", jac, args);
    set_up(f, int(start.size()), derivatives, start);
    f.prepare();
    if (!f.prime(start.data())) raise();
    Watch watch(common, f.compiled());
    ConjugateGradientWork<T> w;
    w.resize(f.n);
    w.x = start;
    // Before the GIL may go.
    const std::int64_t most = options[1].cast<std::int64_t>();
    const double gtol = options[0].is_none() ? -1.0 : options[0].cast<double>();
    const Summary<T> s = solve_with(f, f.n >= 1 << 18, [&] {
        if (kind == 0) {
            ConjugateGradientOptions<T> o;
            o.beta = Beta(rule);
            o.max_iterations = most;
            o.keep_gtol = gtol >= 0;
            if (o.keep_gtol) o.gtol = T(gtol);
            return conjugate_gradient<T>(f, o, w, watch);
        }
        SteepestDescentOptions<T> o;
        o.rule = StepRule(rule);
        o.max_iterations = most;
        o.keep_gtol = gtol >= 0;
        if (o.keep_gtol) o.gtol = T(gtol);
        return steepest_descent<T>(f, o, w, watch);
    });
    check(s);
    py::dict d = to_dict(s, f, watch);
    put_point(d, s, w.x, w.g);
    return d;
}

// A dense matrix, or a function.
template <class T> struct LinearSystem {
    Function a, m;
    const T *dense_a = nullptr, *dense_m = nullptr;
    int n = 0;

    static bool multiply(const T* dense, const T* v, T* out, int n) {
        const Eigen::Map<const Matrix<T>> matrix(dense, n, n);
        // Stored row after row, seen column after column: the transpose, which is the same matrix.
        Eigen::Map<Vector<T>>(out, n).noalias() = matrix.transpose() * Eigen::Map<const Vector<T>>(v, n);
        return true;
    }
    bool product(const T* v, T* av) {
        if (dense_a) return multiply(dense_a, v, av, n);
        return take_vector(a.call(fresh_array(v, n)), a.name(), av, n);
    }
    bool preconditioned() const { return bool(m) || dense_m != nullptr; }
    bool precondition(const T* r, T* z) {
        if (dense_m) return multiply(dense_m, r, z, n);
        return take_vector(m.call(fresh_array(r, n)), m.name(), z, n);
    }
};

template <class T>
py::dict run_cg(const py::object& a, const py::object& b, const py::object& x0, const py::object& m, double rtol,
                double atol, std::int64_t maxiter, const py::tuple& common) {
    CgWork<T> w;
    const Vector<T> right = vector_of<T>(b);
    w.resize(int(right.size()));
    w.b = right;
    w.x = vector_of<T>(x0);
    LinearSystem<T> system;
    system.n = int(right.size());
    const auto bind = [](const py::object& o, const char* name, Function& f, const T*& dense) {
        if (py::isinstance<py::array>(o)) {
            dense = static_cast<const T*>(py::reinterpret_borrow<py::array>(o).data());
        } else {
            f = Function(name, o, py::tuple());
        }
    };
    bind(a, "A", system.a, system.dense_a);
    bind(m, "M", system.m, system.dense_m);
    CgOptions<T> o;
    if (!std::isnan(rtol)) o.rtol = T(rtol);
    o.atol = T(atol);
    o.max_iterations = maxiter;
    const bool python = bool(system.a) || bool(system.m);
    Watch watch(common, !python);
    const Summary<T> s = without_python(!python && system.n >= 256, [&] { return cg<T>(system, o, w, watch); });
    check(s);
    py::dict d;
    d["x"] = vector_to(w.x);
    d["fun"] = number(s.value);
    d["residual"] = number(s.gradient);
    d["jac"] = vector_to(Vector<T>(-w.r));
    d["status"] = int(s.status);
    d["nit"] = s.nit;
    d["nmatvec"] = s.nhev;
    watch.put(d);
    return d;
}

py::object copy_of_plain_start(PyObject* x0) {
    const auto& api = py::detail::npy_api::get();
    if (Py_TYPE(x0) != api.PyArray_Type_) return py::none();
    const auto* a = py::detail::array_proxy(x0);
    constexpr int wanted = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if (a->nd != 1 || a->dimensions[0] == 0 || a->descr != float64_descriptor() || (a->flags & wanted) != wanted)
        return py::none();
    const auto* x = reinterpret_cast<const double*>(a->data);
    const std::ptrdiff_t n = a->dimensions[0];
    if (!std::all_of(x, x + n, [](double v) { return std::isfinite(v); })) return py::none();
    PyObject* copy = fresh_array(x, n);
    if (copy == nullptr) raise();
    return py::reinterpret_steal<py::object>(copy);
}

bool is_float(const py::object& x0) { return py::isinstance<py::array_t<float>>(x0); }

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
    m.def("levenberg_marquardt",
          [](const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
             const py::tuple& derivatives, int residuals, const py::object& lower, const py::object& upper,
             const py::tuple& options, const py::tuple& common) {
              auto* run = is_float(x0) ? run_levenberg_marquardt<float> : run_levenberg_marquardt<double>;
              return run(fun, x0, args, jac, derivatives, residuals, lower, upper, options, common);
          });
    m.def("newton", [](const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
                       const py::object& hess, const py::object& hessp, const py::tuple& derivatives, int damping,
                       const py::tuple& options, const py::tuple& common) {
        auto* run = is_float(x0) ? run_newton<float> : run_newton<double>;
        return run(fun, x0, args, jac, hess, hessp, derivatives, damping, options, common);
    });
    m.def("descend",
          [](const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
             const py::tuple& derivatives, int kind, int rule, const py::tuple& options, const py::tuple& common) {
              auto* run = is_float(x0) ? run_gradient<float> : run_gradient<double>;
              return run(fun, x0, args, jac, derivatives, kind, rule, options, common);
          });
    m.def("cg", [](const py::object& a, const py::object& b, const py::object& x0, const py::object& precondition,
                   double rtol, double atol, std::int64_t maxiter, const py::tuple& common) {
        auto* run = is_float(b) ? run_cg<float> : run_cg<double>;
        return run(a, b, x0, precondition, rtol, atol, maxiter, common);
    });
    register_linalg(m);
    register_batch(m);
}
