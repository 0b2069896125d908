// What the bindings of the solvers have in common. Each family has a file of its own, which compile beside one another:
// the solvers are templates, and take most of the module's time.
#pragma once

#include "locks.hpp"
#include "solve_objective.hpp"

#include "adaptk/solve/result.hpp"

#include <chrono>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

namespace adaptk::bindings {

// Adds levenberg_marquardt; newton; descend and cg.
void register_least_squares(py::module_& m);
void register_newton(py::module_& m);
void register_gradient(py::module_& m);

using solve::Difference;
using solve::Progress;
using solve::Signal;
using solve::Status;
using solve::Summary;
using solve::Vector;
using Clock = std::chrono::steady_clock;

// Thrown where a Python error is set.
[[noreturn]] inline void raise() { throw py::error_already_set(); }

// Called once an iteration: history, progress, time limit, Ctrl-C and the user's callback.
// common: (callback or None, report or None, history, max_seconds)
class Watch {
  public:
    // Of functions in Python, during which the interpreter looks after signals.
    Watch() = default;
    Watch(const py::tuple& common, bool compiled)
        : compiled_(compiled), callback_(common[0]), report_(common[1]), history_(common[2].cast<bool>()),
          start_(Clock::now()) {
        const double seconds = common[3].cast<double>();
        if (seconds < 1e9)
            deadline_ = start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    }
    bool needs_python() const { return asks() || reports(); }

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
    bool asks() const { return callback_ && !callback_.is_none(); }
    bool reports() const { return report_ && !report_.is_none(); }
    template <class T> Signal ask(const Progress<T>& p) {
        if (reports()) {
            py::object done = py::reinterpret_steal<py::object>(PyObject_CallFunction(
                report_.ptr(), "lddd", p.nit, double(p.value), double(p.step), double(p.gradient)));
            if (!done) return Signal::abort;
        }
        if (!asks() || p.nit == 0) return Signal::go;
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

    bool compiled_ = false;
    int calls_ = 0;
    py::object callback_, report_;
    bool history_ = false;
    Clock::time_point start_{}, looked_{};
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
    py::handle success = interned("success");
    py::handle message = interned("message");
    py::handle dof = interned("dof");
    py::handle call = interned("_call");
};

inline const Keys& keys() {
    static const auto& all = *new Keys;
    return all;
}

// Without what pybind11's items cost beside it.
inline void put(const py::dict& d, py::handle key, const py::object& value) {
    if (!value || PyDict_SetItem(d.ptr(), key.ptr(), value.ptr()) != 0) raise();
}
inline void put(const py::dict& d, py::handle key, std::int64_t value) {
    put(d, key, py::reinterpret_steal<py::object>(PyLong_FromLongLong(value)));
}

// Into `d`, which is new.
template <class T> py::dict to_dict(const Summary<T>& s, const Objective<T>& f, const Watch& watch, py::dict d = {}) {
    const Keys& k = keys();
    put(d, k.status, std::int64_t(s.status));
    put(d, k.nit, s.nit);
    put(d, k.nfev, f.fun_calls);
    put(d, k.njev, f.jac_calls);
    put(d, k.nhev, f.hess_calls);
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

// The start's own size; 1 where that is 0, which says nothing.
template <class T> void set_typical(Objective<T>& f, const Vector<T>& x0) {
    f.typical.resize(x0.size());
    for (int i = 0; i < int(x0.size()); ++i) f.typical[i] = x0[i] != 0 ? std::abs(x0[i]) : T(1);
}

template <class T> void set_up(Objective<T>& f, int n, const py::tuple& options, const Vector<T>& x0) {
    // options: (gradient method, hessian method, vectorized, jac is True, rel_step, typical)
    f.n = n;
    f.differences.gradient = Difference(options[0].cast<int>());
    f.differences.hessian = Difference(options[1].cast<int>());
    f.differences.vectorized = options[2].cast<bool>();
    f.fun_returns_gradient = options[3].cast<bool>();
    f.relative = vector_of<T>(options[4]);
    f.typical = vector_of<T>(options[5]);
    if (f.typical.size() == 0) set_typical(f, x0);
}

template <class T> void put_point(py::dict& d, const Summary<T>& s, const Vector<T>& x_, const Vector<T>& g) {
    const Keys& k = keys();
    d[k.x] = vector_to(x_);
    d[k.fun] = number(s.value);
    d[k.jac] = vector_to(g);
}

// Bounds, before prepare(): None, or arrays.
template <class T> void set_bounds(Objective<T>& f, const py::object& lower, const py::object& upper) {
    f.lower = vector_of<T>(lower);
    f.upper = vector_of<T>(upper);
}

// -1 and 1 for a variable at its lower and its upper bound.
template <class T> py::object active_mask(const Vector<T>& x, const Vector<T>& lower, const Vector<T>& upper) {
    PyObject* const mask = fresh_array<std::int64_t>(nullptr, x.size());
    if (mask == nullptr) raise();
    auto* const held = reinterpret_cast<std::int64_t*>(py::detail::array_proxy(mask)->data);
    for (int i = 0; i < int(x.size()); ++i) held[i] = x[i] <= lower[i] ? -1 : x[i] >= upper[i] ? 1 : 0;
    return py::reinterpret_steal<py::object>(mask);
}

inline bool is_float(const py::object& x0) { return py::isinstance<py::array_t<float>>(x0); }

}  // namespace adaptk::bindings
