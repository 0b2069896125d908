// levenberg_marquardt.
#include "solve_run.hpp"

#include "solve_linalg.hpp"

#include "adaptk/solve/covariance.hpp"
#include "adaptk/solve/levenberg_marquardt.hpp"

#include <memory>

namespace adaptk::bindings {
namespace {

using namespace adaptk::solve;

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

}  // namespace

void register_least_squares(py::module_& m) {
    m.def("levenberg_marquardt",
          [](const py::object& fun, const py::object& x0, const py::tuple& args, const py::object& jac,
             const py::tuple& derivatives, int residuals, const py::object& lower, const py::object& upper,
             const py::tuple& options, const py::tuple& common) {
              auto* run = is_float(x0) ? run_levenberg_marquardt<float> : run_levenberg_marquardt<double>;
              return run(fun, x0, args, jac, derivatives, residuals, lower, upper, options, common);
          });
}

}  // namespace adaptk::bindings
