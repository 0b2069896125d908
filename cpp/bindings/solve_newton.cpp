// newton, with Hessians and with their products.
#include "solve_run.hpp"

#include "solve_linalg.hpp"

#include "adaptk/solve/newton.hpp"
#include "adaptk/solve/newton_cg.hpp"

namespace adaptk::bindings {
namespace {

using namespace adaptk::solve;

template <class T>
py::dict run_newton(const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
                    const py::object& hess, const py::object& hessp, const py::tuple& derivatives, int damping,
                    const py::object& lower, const py::object& upper, const py::tuple& options,
                    const py::tuple& common) {
    const Vector<T> start = vector_of<T>(x0);
    Objective<T> f;
    f.fun = Function("fun", fun, args);
    f.jac = Function("jac", jac, args);
    f.hess = Function("hess", hess, args);
    f.hessp = Function("hessp", hessp, args);
    set_up(f, int(start.size()), derivatives, start);
    set_bounds(f, lower, upper);
    const bool bounded = f.lower.size() > 0;
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
        if (bounded) {
            w.lower = f.lower;
            w.upper = f.upper;
        }
        const Summary<T> s = solve_with(f, f.n >= 1 << 14, [&] { return newton_cg<T>(f, o, w, watch); });
        check(s);
        py::dict d = to_dict(s, f, watch);
        put_point(d, s, w.x, w.g);
        d[k.lambda_min] = number(s.lambda_min);
        if (bounded) put(d, k.active_mask, active_mask(w.x, f.lower, f.upper));
        return d;
    }
    NewtonWork<T> w;
    w.resize(f.n);
    w.x = start;
    if (bounded) {
        w.lower = f.lower;
        w.upper = f.upper;
    }
    const Summary<T> s = solve_with(f, f.n >= 128, [&] { return newton<T, DispatchedLinalg>(f, o, w, watch); });
    check(s);
    py::dict d = to_dict(s, f, watch);
    put_point(d, s, w.x, w.g);
    // Symmetric: rows are columns.
    PyObject* const second = fresh_array(w.h.data(), f.n, f.n);
    if (second == nullptr) raise();
    d[k.hess] = py::reinterpret_steal<py::object>(second);
    d[k.lambda_min] = number(s.lambda_min);
    if (bounded) put(d, k.active_mask, active_mask(w.x, f.lower, f.upper));
    return d;
}

}  // namespace

void register_newton(py::module_& m) {
    m.def("newton",
          [](const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
             const py::object& hess, const py::object& hessp, const py::tuple& derivatives, int damping,
             const py::object& lower, const py::object& upper, const py::tuple& options, const py::tuple& common) {
              auto* run = is_float(x0) ? run_newton<float> : run_newton<double>;
              return run(fun, x0, args, jac, hess, hessp, derivatives, damping, lower, upper, options, common);
          });
}

}  // namespace adaptk::bindings
