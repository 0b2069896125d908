// What the solvers call: the user's functions, written in Python or compiled, and differences of them.
#pragma once

#include "adaptk/solve/differences.hpp"
#include "adaptk/solve/linalg.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <complex>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace adaptk::bindings {

namespace py = pybind11;

// NumPy's objects of the types here, made at import: see interned() of locks.hpp.
void prepare_arrays();
PyObject* float64_descriptor();

// A new 1-D (or 2-D, row after row) array with a copy of the values, where x is not null.
template <class S> PyObject* fresh_array(const S* x, Py_ssize_t n);
template <class S> PyObject* fresh_array(const S* x, Py_ssize_t rows, Py_ssize_t columns);

// Whether a start is a 1-D float64 array of finite numbers, at least one.
bool is_plain_start(PyObject* x0);

// One of the user's functions. A Python callable is called with the arrays and then `args`; a compiled one is an
// address with the signature that the documentation of adaptk.solve gives.
class Function {
  public:
    Function() = default;
    // None, a callable, or a tuple (address, user data) of a compiled function.
    Function(const char* name, py::handle function, const py::tuple& args);

    explicit operator bool() const { return callable_ || address_ != nullptr; }
    bool compiled() const { return address_ != nullptr; }
    const char* name() const { return name_; }

    // The returned object, or null with a Python error. Steals the references to the arrays, which may be null.
    PyObject* call(PyObject* first, PyObject* second = nullptr);
    template <class Signature, class... A> auto run(A... a) const {
        return reinterpret_cast<Signature*>(address_)(a..., user_);
    }

  private:
    const char* name_ = "";
    py::object callable_;
    py::tuple args_;
    std::vector<PyObject*> slots_;  // borrowed: room for self, the arrays, and args
    void* address_ = nullptr;
    void* user_ = nullptr;
};

// The values of what a function returned, checked; false with a Python error that names the function. `real` types
// take any real numbers. Steal the reference.
template <class S> bool take_scalar(PyObject* result, const char* name, S& value);
template <class S> bool take_vector(PyObject* result, const char* name, S* values, Py_ssize_t n);
// rows x columns; `values` row after row.
template <class S> bool take_matrix(PyObject* result, const char* name, S* values, Py_ssize_t rows, Py_ssize_t columns);
// The length of a vector of residuals, or -1 with a Python error.
Py_ssize_t vector_length(PyObject* result, const char* name);

// The GIL, where it is not held already.
class Held {
  public:
    explicit Held(bool released) {
        if (released) gil_.emplace();
    }

  private:
    std::optional<py::gil_scoped_acquire> gil_;
};

// A function that is called and not kept: what takes one is compiled once, and not for each.
template <class Signature> class FunctionRef;
template <class R, class... A> class FunctionRef<R(A...)> {
  public:
    template <class F>
        requires(!std::is_same_v<F, FunctionRef>)
    FunctionRef(const F& f)
        : object_(&f), call_([](const void* o, A... a) -> R { return (*static_cast<const F*>(o))(a...); }) {}
    R operator()(A... a) const { return call_(object_, a...); }

  private:
    const void* object_;
    R (*call_)(const void*, A...);
};

struct Differencing {
    solve::Difference gradient = solve::Difference::none;  // also: Jacobian
    solve::Difference hessian = solve::Difference::none;
    bool vectorized = false;
};

template <class T> class Objective {
  public:
    Function fun, jac, hess, hessp;
    bool fun_returns_gradient = false;
    Differencing differences;
    int m = 0, n = 0;
    solve::Vector<T> lower, upper;  // empty: none
    solve::Vector<T> relative, typical;
    // Whether the solver runs without the GIL, which each call of a function then takes.
    bool without_gil = false;
    std::int64_t fun_calls = 0, jac_calls = 0, hess_calls = 0;
    T rounding = solve::epsilon<T>;  // what values are exact to: float32 where fun computes in it, whatever x is
    T noise = solve::epsilon<T>;     // the same for differences: more where values are large beside their changes

    void prepare();  // once n, m and the members above are set
    bool compiled() const;

    bool value(const T* x, T& f);
    bool gradient(const T* x, T* g);
    bool hessian(const T* x, T* h);
    bool product(const T* x, const T* v, T* hv);
    bool residuals(const T* x, T* r);
    // In the array that jac returned, if nobody else holds that, or one of its own.
    T* jacobian_in_place(const T* x, const T* r);
    // The array with the last one, for the run's result.
    const py::object& jacobian_array() const { return jacobian_; }
    // Central differences from here on, and of a function's values longer and longer ones; false where something better
    // is in use already, or nothing is left.
    bool can_refine() const {
        constexpr T longest = T(1e-6);
        return differences.gradient == solve::Difference::two_point ||
               (m == 0 && differences.gradient == solve::Difference::three_point && noise < longest);
    }
    bool refine();

    T value_error() const { return rounding; }
    // What gradients by differences can reach, in units of the largest one: their error is near this.
    T gradient_error() const;
    // The step of one-sided differences of f, or 0.
    T gradient_step(const T* x, int k) const;
    // The relative error of Hessians by differences, of gradients or of values.
    T hessian_error() const;

    // The first call, which tells the precision of the values where differences are taken of them.
    bool prime(const T* x);
    // The first call, which tells m.
    bool first_residuals(const T* x);

  private:
    bool evaluate(const T* x, T& f);
    bool base_value(const T* x, T& f);
    // A function's own precision, from the first thing that it returns.
    void learn(PyObject* result, T& exact, bool& known) const;
    // A new array for a call, or the last call's where only this object still holds it.
    PyObject* point(const T* x);
    bool alive();  // looks after Ctrl-C while no Python code runs
    bool plain_gradient(const T* x, T* g);
    bool hessian_of_values(const T* x, T* h);
    bool second_of_values() const;
    // out (rows x n, column after column) by differences of `f`, which has `rows` values, around x with values `at`.
    using Evaluate = FunctionRef<bool(const T* x, T* values)>;
    using EvaluateComplex = FunctionRef<bool(PyObject* x, std::complex<T>* values)>;
    bool difference(Evaluate f, solve::Difference method, T exact, const T* x, const T* at, int rows, T* out);
    struct Quotient {
        bool central = false;
        bool moved = false;                // whether any value changed
        T width = 0, slope = 0, bend = 0;  // of the step; norms of the first and (central) second difference
    };
    // One column; `at` may be null, for a value that is not known.
    bool quotient(Evaluate f, solve::Difference method, T exact, const T* x, int k, const T* at, int rows, T* column,
                  Quotient& q);
    bool measure(Evaluate f, T exact, const T* x, int k, T* column);
    bool lengthen(Evaluate f, T exact, const T* x, int k, const T* at, int rows, T* column);
    bool shorten(Evaluate f, T exact, const T* x, int k, const T* at, int rows, T* column, Quotient q);
    bool complex_difference(EvaluateComplex f, const T* x, int rows, T* out);
    bool stack(const T* x, solve::Difference method, int rows, const T* at, T* out);
    T step(int k, const T* x, solve::Difference method, T exact, bool& central) const;

    py::object at_;
    std::vector<T> cached_x_, cached_g_;
    bool cached_ = false;
    // The solver's last point: one-sided differences start from its value.
    std::vector<T> last_x_;
    T last_value_ = 0;
    bool have_last_ = false;
    bool primed_ = false;  // nobody has asked for that value yet
    T gradient_noise_ = solve::epsilon<T>;
    bool noise_known_ = false, gradient_noise_known_ = false;
    std::vector<T> first_;
    bool have_first_ = false;
    std::vector<T> point_, low_, high_, columns_;
    py::object jacobian_, room_;
    T* room();  // the array of its own; null with a Python error
    // Of differences: how much longer than by default each variable's step is, whether it has no say here, the last
    // step over which its value had to be measured, or 0, and the largest residuals so far.
    std::vector<T> stretch_;
    std::vector<bool> silent_;
    std::vector<T> seen_;
    T reach_ = 0;
    std::vector<std::complex<T>> complex_point_, complex_value_;
    std::chrono::steady_clock::time_point last_look_{};
    std::int64_t quiet_calls_ = 0;
};

extern template class Objective<float>;
extern template class Objective<double>;

}  // namespace adaptk::bindings
