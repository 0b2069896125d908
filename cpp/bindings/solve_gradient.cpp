// The solvers that have gradients alone, and linear systems.
#include "solve_run.hpp"

#include "adaptk/solve/cg.hpp"
#include "adaptk/solve/conjugate_gradient.hpp"
#include "adaptk/solve/steepest_descent.hpp"

namespace adaptk::bindings {
namespace {

using namespace adaptk::solve;

template <class T>
py::dict run_gradient(const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
                      const py::tuple& derivatives, int kind, int rule, const py::object& lower,
                      const py::object& upper, const py::tuple& options, const py::tuple& common) {
    const Vector<T> start = vector_of<T>(x0);
    Objective<T> f;
    f.fun = Function("fun", fun, args);
    f.jac = Function("jac", jac, args);
    set_up(f, int(start.size()), derivatives, start);
    set_bounds(f, lower, upper);
    const bool bounded = f.lower.size() > 0;
    f.prepare();
    if (!f.prime(start.data())) raise();
    Watch watch(common, f.compiled());
    ConjugateGradientWork<T> w;
    w.resize(f.n);
    w.x = start;
    if (bounded) {
        w.lower = f.lower;
        w.upper = f.upper;
    }
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
    if (bounded) put(d, keys().active_mask, active_mask(w.x, f.lower, f.upper));
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

}  // namespace

void register_gradient(py::module_& m) {
    m.def("descend", [](const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
                        const py::tuple& derivatives, int kind, int rule, const py::object& lower,
                        const py::object& upper, const py::tuple& options, const py::tuple& common) {
        auto* run = is_float(x0) ? run_gradient<float> : run_gradient<double>;
        return run(fun, x0, args, jac, derivatives, kind, rule, lower, upper, options, common);
    });
    m.def("cg", [](const py::object& a, const py::object& b, const py::object& x0, const py::object& precondition,
                   double rtol, double atol, std::int64_t maxiter, const py::tuple& common) {
        auto* run = is_float(b) ? run_cg<float> : run_cg<double>;
        return run(a, b, x0, precondition, rtol, atol, maxiter, common);
    });
}

}  // namespace adaptk::bindings
