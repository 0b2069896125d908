#include "solve_objective.hpp"

#include "solve_linalg.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace adaptk::bindings {

using solve::Difference;

namespace {

template <class S> PyObject* descriptor() {
    static PyObject* const d = py::dtype::of<S>().release().ptr();
    return d;
}

template <class S> PyObject* new_array(int dimensions, const Py_intptr_t* shape) {
    auto& api = py::detail::npy_api::get();
    PyObject* d = descriptor<S>();
    Py_INCREF(d);
    return api.PyArray_NewFromDescr_(api.PyArray_Type_, d, dimensions, shape, nullptr, nullptr, 0, nullptr);
}

PyTypeObject* array_type() {
    static auto* const type = reinterpret_cast<PyTypeObject*>(py::detail::npy_api::get().PyArray_Type_);
    return type;
}

bool is_array(PyObject* o) { return py::detail::npy_api::get().PyArray_Check_(o); }

// Exactly that type: a subclass may mean more than its values, as masked arrays do.
bool is_plain_array(PyObject* o) { return Py_IS_TYPE(o, array_type()); }

// Whether two values of a function differ by more than `times` their rounding.
template <class T> bool beyond_rounding(T a, T b, T times) {
    return !(std::abs(a - b) <= times * solve::epsilon<T> * std::max(std::abs(a), std::abs(b)));
}

const char* type_name(PyObject* o) { return Py_TYPE(o)->tp_name; }

bool refuse(PyObject* kind, const char* name, const std::string& text) {
    PyErr_SetString(kind, (std::string(name) + text).c_str());
    return false;
}

// False with an error for a masked array of NumPy that has masked elements.
bool refuse_masked(PyObject* result, const char* name) {
    if (!is_array(result) || is_plain_array(result)) return true;
    const py::object module = py::reinterpret_steal<py::object>(PyImport_ImportModule("numpy.ma"));
    if (!module) return false;
    const py::object answer =
        py::reinterpret_steal<py::object>(PyObject_CallMethod(module.ptr(), "is_masked", "O", result));
    if (!answer) return false;
    if (answer.ptr() != Py_True) return true;
    return refuse(PyExc_ValueError, name, " must return no masked elements: leave them out, or fill them");
}

template <class S> constexpr const char* wanted_numbers() {
    return std::is_floating_point_v<S> ? "real numbers" : "numbers";
}

// As an array of S; null with an error where that would lose an imaginary part or is no number.
template <class S> PyObject* as_array(PyObject* result, const char* name) {
    if (!refuse_masked(result, name)) return nullptr;
    if (result == Py_None) {
        refuse(PyExc_TypeError, name, std::string(" must return ") + wanted_numbers<S>() + ", got None");
        return nullptr;
    }
    auto& api = py::detail::npy_api::get();
    PyObject* any = api.PyArray_FromAny_(result, nullptr, 0, 0, 0, nullptr);
    if (any == nullptr) return nullptr;
    py::object holder = py::reinterpret_steal<py::object>(any);
    const char kind = py::reinterpret_borrow<py::array>(any).dtype().kind();
    const bool good =
        kind == 'f' || kind == 'i' || kind == 'u' || kind == 'b' || (kind == 'c' && !std::is_floating_point_v<S>);
    if (!good) {
        std::string got = py::str(py::reinterpret_borrow<py::array>(any).dtype());
        if (kind == 'O') got = std::string("object (") + type_name(result) + ")";
        refuse(PyExc_TypeError, name, std::string(" must return ") + wanted_numbers<S>() + ", got dtype " + got);
        return nullptr;
    }
    PyObject* d = descriptor<S>();
    Py_INCREF(d);
    return api.PyArray_FromAny_(any, d, 0, 0, py::detail::npy_api::NPY_ARRAY_FORCECAST_, nullptr);
}

std::string shape_text(const py::array& a) {
    std::string s = "(";
    for (py::ssize_t i = 0; i < a.ndim(); ++i)
        s += std::to_string(a.shape(i)) + (a.ndim() == 1 || i + 1 < a.ndim() ? ", " : "");
    if (a.ndim() == 1) s.pop_back();
    return s + ")";
}

}  // namespace

void prepare_arrays() {
    descriptor<float>();
    descriptor<double>();
    descriptor<std::complex<float>>();
    descriptor<std::complex<double>>();
    descriptor<std::int64_t>();
    array_type();
}

PyObject* float64_descriptor() { return descriptor<double>(); }

bool is_plain_start(PyObject* x0) {
    if (!is_plain_array(x0)) return false;
    const auto* a = py::detail::array_proxy(x0);
    constexpr int wanted = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if (a->nd != 1 || a->dimensions[0] == 0 || a->descr != float64_descriptor() || (a->flags & wanted) != wanted)
        return false;
    const auto* x = reinterpret_cast<const double*>(a->data);
    return std::all_of(x, x + a->dimensions[0], [](double v) { return std::isfinite(v); });
}

template <class S> PyObject* fresh_array(const S* x, Py_ssize_t n) {
    const Py_intptr_t shape[1] = {n};
    PyObject* a = new_array<S>(1, shape);
    if (a != nullptr && x != nullptr) std::memcpy(py::detail::array_proxy(a)->data, x, std::size_t(n) * sizeof(S));
    return a;
}
template <class S> PyObject* fresh_array(const S* x, Py_ssize_t rows, Py_ssize_t columns) {
    const Py_intptr_t shape[2] = {rows, columns};
    PyObject* a = new_array<S>(2, shape);
    if (a != nullptr && x != nullptr)
        std::memcpy(py::detail::array_proxy(a)->data, x, std::size_t(rows * columns) * sizeof(S));
    return a;
}
template PyObject* fresh_array(const std::int64_t*, Py_ssize_t);
template PyObject* fresh_array(const float*, Py_ssize_t);
template PyObject* fresh_array(const double*, Py_ssize_t);
template PyObject* fresh_array(const float*, Py_ssize_t, Py_ssize_t);
template PyObject* fresh_array(const double*, Py_ssize_t, Py_ssize_t);

Function::Function(const char* name, py::handle function, const py::tuple& args) : name_(name), args_(args) {
    if (function.is_none()) return;
    if (PyTuple_CheckExact(function.ptr())) {
        const py::tuple pair = py::reinterpret_borrow<py::tuple>(function);
        address_ = PyLong_AsVoidPtr(pair[0].ptr());
        user_ = PyLong_AsVoidPtr(pair[1].ptr());
        if (PyErr_Occurred()) throw py::error_already_set();
        return;
    }
    callable_ = py::reinterpret_borrow<py::object>(function);
    slots_.resize(3 + args_.size());
}

PyObject* Function::call(PyObject* first, PyObject* second) {
    if (first == nullptr || PyErr_Occurred()) {
        Py_XDECREF(first);
        Py_XDECREF(second);
        return nullptr;
    }
    // The first slot is the callee's to use for `self`.
    std::size_t count = 1;
    slots_[count++] = first;
    if (second != nullptr) slots_[count++] = second;
    const auto extra = Py_ssize_t(args_.size());
    for (Py_ssize_t i = 0; i < extra; ++i) slots_[count++] = PyTuple_GET_ITEM(args_.ptr(), i);
    PyObject* result =
        PyObject_Vectorcall(callable_.ptr(), slots_.data() + 1, (count - 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
    Py_DECREF(first);
    Py_XDECREF(second);
    return result;
}

template <class S> bool take_scalar(PyObject* result, const char* name, S& value) {
    if (result == nullptr) return false;
    py::object holder = py::reinterpret_steal<py::object>(result);
    if constexpr (std::is_floating_point_v<S>) {
        if (PyFloat_Check(result)) {
            value = S(PyFloat_AS_DOUBLE(result));
            return true;
        }
    }
    PyObject* array = as_array<S>(result, name);
    if (array == nullptr) return false;
    py::array a = py::reinterpret_steal<py::array>(array);
    if (a.size() != 1)
        return refuse(PyExc_ValueError, name, " must return one number, got an array of shape " + shape_text(a));
    value = *static_cast<const S*>(a.data());
    return true;
}

namespace {

// Row after row. Vectors have one column, and one dimension.
template <class S>
bool take(PyObject* result, const char* name, S* values, Py_ssize_t rows, Py_ssize_t columns, bool vector) {
    if (result == nullptr) return false;
    py::object holder = py::reinterpret_steal<py::object>(result);
    py::object converted;
    PyObject* array = result;
    if (!is_plain_array(result) || py::detail::array_proxy(result)->descr != descriptor<S>()) {
        array = as_array<S>(result, name);
        if (array == nullptr) return false;
        converted = py::reinterpret_steal<py::object>(array);
    }
    const auto* a = py::detail::array_proxy(array);
    const auto flags = a->flags;
    // Misaligned or byte-swapped arrays are not the native descriptor or lack the flag.
    if ((flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_) == 0) {
        PyObject* copy = PyObject_CallMethod(array, "copy", nullptr);
        if (copy == nullptr) return false;
        converted = py::reinterpret_steal<py::object>(copy);
        a = py::detail::array_proxy(copy);
    }
    Py_ssize_t row_stride = 0, column_stride = 0;
    bool fits = false;
    const Py_ssize_t count = rows * columns;
    if (a->nd == 2) {
        fits = a->dimensions[0] == rows && a->dimensions[1] == columns;
        row_stride = a->strides[0];
        column_stride = a->strides[1];
    } else if (a->nd == 1 && (rows == 1 || columns == 1)) {
        fits = a->dimensions[0] == count;
        row_stride = column_stride = a->strides[0];
    } else if (a->nd == 0) {
        fits = count == 1;
    }
    if (vector && a->nd == 2) fits = false;
    if (!fits) {
        const std::string want = vector ? "(" + std::to_string(rows) + ",)"
                                        : "(" + std::to_string(rows) + ", " + std::to_string(columns) + ")";
        return refuse(PyExc_ValueError, name,
                      " must return an array of shape " + want + ", got one of shape " +
                          shape_text(py::reinterpret_borrow<py::array>(converted ? converted.ptr() : array)));
    }
    constexpr Py_ssize_t size = sizeof(S);
    if ((columns == 1 || column_stride == size) && (rows == 1 || row_stride == columns * size)) {
        std::memcpy(values, a->data, std::size_t(count * size));
        return true;
    }
    // Small ones take less time than the sharing of it.
    if constexpr (std::is_floating_point_v<S>) {
        if (count >= 1 << 12 && row_stride == size && column_stride == rows * size) {
            transpose(reinterpret_cast<const S*>(a->data), columns, rows, values);
            return true;
        }
    }
    for (Py_ssize_t i = 0; i < rows; ++i)
        for (Py_ssize_t k = 0; k < columns; ++k)
            values[i * columns + k] = *reinterpret_cast<const S*>(a->data + i * row_stride + k * column_stride);
    return true;
}

}  // namespace

template <class S> bool take_vector(PyObject* result, const char* name, S* values, Py_ssize_t n) {
    return take(result, name, values, n, 1, true);
}
template <class S>
bool take_matrix(PyObject* result, const char* name, S* values, Py_ssize_t rows, Py_ssize_t columns) {
    return take(result, name, values, rows, columns, false);
}

Py_ssize_t vector_length(PyObject* result, const char* name) {
    if (is_plain_array(result) && py::detail::array_proxy(result)->nd == 1)
        return Py_ssize_t(py::detail::array_proxy(result)->dimensions[0]);
    py::object any = py::reinterpret_steal<py::object>(
        py::detail::npy_api::get().PyArray_FromAny_(result, nullptr, 0, 0, 0, nullptr));
    if (!any) return -1;
    const auto* a = py::detail::array_proxy(any.ptr());
    if (a->nd > 1) {
        refuse(PyExc_ValueError, name,
               " must return a 1-D array of residuals, got one of shape " +
                   shape_text(py::reinterpret_borrow<py::array>(any)));
        return -1;
    }
    return a->nd == 0 ? 1 : Py_ssize_t(a->dimensions[0]);
}

// ---------------------------------------------------------------------------------------------------------------------

template <class T> bool Objective<T>::compiled() const {
    for (const Function* f : {&fun, &jac, &hess, &hessp})
        if (*f && !f->compiled()) return false;
    return bool(fun);
}

template <class T> void Objective<T>::prepare() {
    if (m > 0 && jac) {  // no differences
        if (jac.compiled()) room();
        return;
    }
    point_.resize(std::size_t(n));
    const auto longest = std::size_t(std::max(m, n));
    low_.resize(longest);
    high_.resize(longest);
    if (relative.size() == 0) relative.setConstant(n, T(0));
    stretch_.assign(std::size_t(n), T(1));
    silent_.assign(std::size_t(n), false);
    seen_.assign(std::size_t(n), T(0));
    if (lower.size() == 0) {
        lower.setConstant(n, -std::numeric_limits<T>::infinity());
        upper.setConstant(n, std::numeric_limits<T>::infinity());
    }
    if (differences.gradient == Difference::complex_step || differences.hessian == Difference::complex_step) {
        complex_point_.resize(std::size_t(n));
        complex_value_.resize(longest);
    }
    if (m == 0 && differences.gradient != Difference::none) last_x_.resize(std::size_t(n));
    if (fun_returns_gradient) {
        cached_x_.resize(std::size_t(n));
        cached_g_.resize(std::size_t(n));
    }
    if (m == 0) return;
    columns_.resize(std::size_t(m) * std::size_t(n));
    room();
}

template <class T> PyObject* Objective<T>::point(const T* x) {
#ifndef Py_GIL_DISABLED
    // Nobody kept the last one, or changed what it is.
    constexpr int wanted = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_ |
                           py::detail::npy_api::NPY_ARRAY_WRITEABLE_ | py::detail::npy_api::NPY_ARRAY_OWNDATA_;
    if (at_ && Py_REFCNT(at_.ptr()) == 1) {
        const auto* a = py::detail::array_proxy(at_.ptr());
        if (a->nd == 1 && a->dimensions[0] == n && (a->flags & wanted) == wanted && a->descr == descriptor<T>()) {
            std::memcpy(a->data, x, std::size_t(n) * sizeof(T));
            return Py_NewRef(at_.ptr());
        }
    }
#endif
    at_ = py::reinterpret_steal<py::object>(fresh_array(x, n));
    return at_.inc_ref().ptr();
}

template <class T> bool Objective<T>::alive() {
    if ((++quiet_calls_ & 15) != 0) return true;
    const auto now = std::chrono::steady_clock::now();
    if (now - last_look_ < std::chrono::milliseconds(50)) return true;
    last_look_ = now;
    py::gil_scoped_acquire held;
    return PyErr_CheckSignals() == 0;
}

template <class T> void Objective<T>::learn(PyObject* result, T& exact, bool& known) const {
    if (known || result == nullptr || PyFloat_Check(result)) return;
    known = true;
    PyObject* any = py::detail::npy_api::get().PyArray_FromAny_(result, nullptr, 0, 0, 0, nullptr);
    if (any == nullptr) return PyErr_Clear();
    const py::dtype d = py::reinterpret_steal<py::array>(any).dtype();
    if (d.kind() != 'f' || d.itemsize() >= py::ssize_t(sizeof(T))) return;
    exact = d.itemsize() == 2 ? T(1.0 / 1024) : T(solve::epsilon<float>);
}

template <class T> T Objective<T>::step(int k, const T* x, Difference method, T exact, bool& central) const {
    const T scale = relative[k] > 0 ? relative[k] : solve::difference_scale<T>(method, exact);
    central = method == Difference::three_point;
    // Without room on one side, as exact as the other methods: three points on the same side would leave the bounds
    // too.
    return solve::difference_step(x[k], scale * stretch_[std::size_t(k)], typical[k], lower[k], upper[k], central);
}

template <class T> bool Objective<T>::value(const T* x, T& f) {
    const Held held(without_gil);
    if (primed_) {
        primed_ = false;
        f = last_value_;
        return true;
    }
    if (!evaluate(x, f)) return false;
    if (!last_x_.empty()) {
        std::copy(x, x + n, last_x_.begin());
        last_value_ = f;
        have_last_ = true;
    }
    return true;
}

template <class T> bool Objective<T>::evaluate(const T* x, T& f) {
    ++fun_calls;
    if (fun.compiled()) {
        f = fun.run<T(int, const T*, void*)>(n, x);
        return alive();
    }
    PyObject* result = fun.call(point(x));
    if (!last_x_.empty() && !noise_known_) {
        learn(result, rounding, noise_known_);
        noise = std::max(noise, rounding);
    }
    if (!fun_returns_gradient) return take_scalar(result, fun.name(), f);
    if (result == nullptr) return false;
    py::object pair = py::reinterpret_steal<py::object>(result);
    if (!PyTuple_Check(result) || PyTuple_GET_SIZE(result) != 2)
        return refuse(PyExc_TypeError, fun.name(),
                      std::string(" must return a pair (value, gradient) with jac=True, got ") + type_name(result));
    cached_ = false;
    if (!take_scalar(Py_NewRef(PyTuple_GET_ITEM(result, 0)), fun.name(), f)) return false;
    if (!take_vector(Py_NewRef(PyTuple_GET_ITEM(result, 1)), "the gradient of fun", cached_g_.data(), n)) return false;
    std::copy(x, x + n, cached_x_.begin());
    cached_ = true;
    return true;
}

template <class T> bool Objective<T>::plain_gradient(const T* x, T* g) {
    if (jac.compiled()) {
        jac.run<void(int, const T*, T*, void*)>(n, x, g);
        return alive();
    }
    PyObject* result = jac.call(point(x));
    if (differences.hessian != Difference::none) learn(result, gradient_noise_, gradient_noise_known_);
    return take_vector(result, jac.name(), g, n);
}

template <class T> bool Objective<T>::gradient(const T* x, T* g) {
    const Held held(without_gil);
    ++jac_calls;
    if (fun_returns_gradient) {
        if (!cached_ || std::memcmp(cached_x_.data(), x, std::size_t(n) * sizeof(T)) != 0) {
            T f;
            if (!value(x, f)) return false;
        }
        std::copy(cached_g_.begin(), cached_g_.end(), g);
        return true;
    }
    if (jac) return plain_gradient(x, g);
    if (differences.gradient == Difference::complex_step) {
        const auto f = [&](PyObject* point, std::complex<T>* out) {
            ++fun_calls;
            return take_scalar(fun.call(point), fun.name(), *out);
        };
        return complex_difference(f, x, 1, g);
    }
    T at = 0;
    if (differences.gradient == Difference::two_point && !base_value(x, at)) return false;
    if (differences.vectorized) return stack(x, differences.gradient, 1, &at, g);
    const auto f = [&](const T* point, T* out) { return evaluate(point, *out); };
    const T* base = differences.gradient == Difference::two_point ? &at : nullptr;
    return difference(f, differences.gradient, noise, x, base, 1, g);
}

template <class T> bool Objective<T>::prime(const T* x) {
    if (last_x_.empty() || fun.compiled()) return true;
    T f;
    primed_ = value(x, f);
    return primed_;
}

// Gradients by complex steps are as exact as any.
template <class T> bool Objective<T>::second_of_values() const {
    return !jac && !fun_returns_gradient && differences.gradient != Difference::complex_step;
}

template <class T> T Objective<T>::hessian_error() const {
    const bool values = second_of_values();
    const T exact = values ? noise : gradient_noise_;
    if (hess || (!values && differences.hessian == Difference::complex_step)) return solve::epsilon<T>;
    if (values || differences.hessian == Difference::two_point) return 4 * std::sqrt(exact);
    return 4 * std::cbrt(exact) * std::cbrt(exact);
}

template <class T> T Objective<T>::gradient_error() const {
    if (differences.gradient == Difference::two_point) return 64 * std::sqrt(noise);
    if (differences.gradient == Difference::three_point) return 64 * std::cbrt(noise) * std::cbrt(noise);
    return 0;
}

template <class T> T Objective<T>::gradient_step(const T* x, int k) const {
    if (differences.gradient != Difference::two_point) return 0;
    bool central;
    return std::abs(step(k, x, differences.gradient, noise, central));
}

// The value at x, which the solver has mostly just asked for.
template <class T> bool Objective<T>::base_value(const T* x, T& f) {
    if (!have_last_ || std::memcmp(last_x_.data(), x, std::size_t(n) * sizeof(T)) != 0) return value(x, f);
    f = last_value_;
    return true;
}

template <class T>
bool Objective<T>::difference(Evaluate f, Difference method, T exact, const T* x, const T* at, int rows, T* out) {
    std::copy(x, x + n, point_.begin());
    for (int k = 0; k < n; ++k) {
        T* column = out + std::ptrdiff_t(k) * rows;
        Quotient q;
        if (!quotient(f, method, exact, x, k, at, rows, column, q)) return false;
        if (relative[k] > 0 || (rows > 1 && m == 0)) continue;
        if (!q.moved) {
            if (!(m == 0 ? measure(f, exact, x, k, column) : lengthen(f, exact, x, k, at, rows, column))) return false;
        } else {
            silent_[std::size_t(k)] = false;
            // A value by itself bends at its minimum, as a vector of residuals does not.
            if (rows > 1 && at != nullptr && !shorten(f, exact, x, k, at, rows, column, q)) return false;
        }
    }
    return true;
}

template <class T>
bool Objective<T>::quotient(Evaluate f, Difference method, T exact, const T* x, int k, const T* at, int rows, T* column,
                            Quotient& q) {
    const auto variable = std::size_t(k);
    const T h = step(k, x, method, exact, q.central);
    if (h == 0) {  // the bounds leave no room
        std::fill(column, column + rows, T(0));
        q.moved = true;
        return true;
    }
    point_[variable] = std::min(std::max(x[k] + h, lower[k]), upper[k]);
    if (!f(point_.data(), high_.data())) return false;
    const T* base = at;
    T width = h;
    if (q.central) {
        point_[variable] = x[k] - h;
        if (!f(point_.data(), low_.data())) return false;
        base = low_.data();
        width = (x[k] + h) - (x[k] - h);
    } else if (base == nullptr) {
        point_[variable] = x[k];
        if (!f(point_.data(), low_.data())) return false;
        base = low_.data();
    }
    point_[variable] = x[k];
    q.moved = false;
    for (int i = 0; i < rows; ++i) {
        const auto row = std::size_t(i);
        column[i] = (high_[row] - base[i]) / width;
        q.moved = q.moved || high_[row] != base[i] || (q.central && at != nullptr && high_[row] != at[i]);
    }
    // One value may have changed by its rounding alone.
    if (m == 0 && rows == 1) q.moved = beyond_rounding(high_[0], base[0], T(8));
    q.width = std::abs(width);
    if (rows == 1 || at == nullptr) return true;
    using Values = Eigen::Map<const solve::Vector<T>>;
    const Values here(at, rows), high(high_.data(), rows);
    q.slope = solve::norm(Values(column, rows)) * q.width;
    if (q.central) q.bend = solve::norm((high - here) + (Values(low_.data(), rows) - here));
    return true;
}

// At a maximum, a saddle or a minimum f changes with the square of the step, and |x_k| does not say over what length:
// near zero it may be far too short. Longer and longer steps tell, up to near max(1, |x_k|). What they find is typical
// of the variable from then on. One that does not change f by then is left alone until it does.
template <class T> bool Objective<T>::measure(Evaluate f, T exact, const T* x, int k, T* column) {
    constexpr T longer = T(0x1p4), longest = T(0x1p-6), enough = T(64);
    const auto variable = std::size_t(k);
    if (silent_[variable]) return true;
    T here;
    if (!base_value(x, here)) return false;
    const T size = std::max(std::abs(x[k]), typical[k]), most = std::max(size, T(1)), kept = stretch_[variable];
    const bool second = differences.hessian != Difference::none || hess || hessp;
    silent_[variable] = true;
    for (T h = 0; h < longest * most;) {
        h = h == 0 ? size * (sizeof(T) == 4 ? longest : T(0x1p-13)) : std::min(h * longer, longest * most);
        const T before = *column;
        Quotient q;
        stretch_[variable] = h / (size * solve::difference_scale<T>(Difference::three_point, exact));
        const bool ok = quotient(f, Difference::three_point, exact, x, k, nullptr, 1, column, q);
        stretch_[variable] = kept;
        if (!ok) return false;
        const T up = high_[0] - here, down = q.central ? low_[0] - here : up;
        const T change = std::max(std::abs(up), std::abs(down));
        if (!std::isfinite(change)) {
            *column = before;
            return true;
        }
        seen_[variable] = h;
        const T wanted = h < longest * most ? enough : T(8);
        if (!(change > wanted * solve::epsilon<T> * std::abs(here))) continue;
        silent_[variable] = false;
        // A top, which second derivatives would show: the way out has a slope, if rounding hides that at x.
        if (!second && q.central && up < 0 && down < 0 && !beyond_rounding(high_[0], low_[0], T(8)))
            *column = (x[k] < 0 ? -up : up) / (q.width / 2);
        // The length over which f would change by itself.
        const T length = change < std::abs(here) ? h * std::sqrt(std::abs(here) / change) : h;
        if (length > 2 * size) typical[k] = std::ldexp(T(1), std::ilogb(std::min(length, most)));
        return true;
    }
    return true;
}

// Nothing has changed over the step: the function may compute in fewer digits than its type has. One that does not
// depend on the variable here is left alone until it does.
template <class T>
bool Objective<T>::lengthen(Evaluate f, T exact, const T* x, int k, const T* at, int rows, T* column) {
    // From eps^(1/2) to where float32 has three digits, and float16 one.
    constexpr T longer[] = {T(0x1p13), T(0x1p20)};
    const auto variable = std::size_t(k);
    if (sizeof(T) == 4 || silent_[variable]) return true;
    const T kept = stretch_[variable];
    for (const T factor : longer) {
        stretch_[variable] = factor * solve::difference_scale<T>(Difference::two_point) /
                             solve::difference_scale<T>(Difference::three_point, exact);
        Quotient q;
        const bool ok = quotient(f, Difference::three_point, exact, x, k, at, rows, column, q);
        stretch_[variable] = kept;
        if (!ok) return false;
        if (!q.moved) continue;
        if (rows > 1) rounding = noise = std::max(noise, T(solve::epsilon<float>));
        return true;
    }
    silent_[variable] = true;
    return true;
}

// Where the function bends over the step, as a narrow peak far from zero does, a shorter one: until the second
// difference is small beside the first, or two steps agree. The step's length is kept for the next time.
template <class T>
bool Objective<T>::shorten(Evaluate f, T exact, const T* x, int k, const T* at, int rows, T* column, Quotient q) {
    constexpr T straight = T(0.01);  // second difference over first; the error of a central one is its square
    constexpr T agreed = T(1e-3);    // two steps
    constexpr T aim = T(0.003);      // of the second difference over the first
    constexpr int most = 6;
    using Values = Eigen::Map<const solve::Vector<T>>;
    const T size = solve::norm(Values(at, rows));
    reach_ = std::max(reach_, size);
    const auto variable = std::size_t(k);
    if (!q.central) {
        // One more evaluation tells, where the change is large beside the residuals.
        if (!(q.slope > straight * reach_) || !std::isfinite(q.slope)) return true;
        const T kept = stretch_[variable];
        // The same length, central.
        const T central_stretch = solve::difference_scale<T>(Difference::two_point, exact) /
                                  solve::difference_scale<T>(Difference::three_point, exact);
        stretch_[variable] = kept * central_stretch;
        const bool ok = quotient(f, Difference::three_point, exact, x, k, at, rows, column, q);
        if (!ok) return false;
        if (!q.central || !(q.bend > straight * q.slope)) {
            stretch_[variable] = kept;
            return true;
        }
        if (!shorten(f, exact, x, k, at, rows, column, q)) return false;
        stretch_[variable] /= central_stretch;
        return true;
    }
    std::vector<T> before;
    for (int i = 0; i < most && q.bend > straight * q.slope; ++i) {
        before.assign(column, column + rows);
        const T estimate = aim * q.slope / q.bend;
        stretch_[variable] *= std::min(std::max(estimate, T(1) / 64), T(1) / 4);
        if (!quotient(f, Difference::three_point, exact, x, k, at, rows, column, q)) return false;
        if (!q.central || !std::isfinite(q.slope)) break;
        const Values now(column, rows);
        const T rounding = 4 * exact * size / q.width;
        if (solve::norm(now - Values(before.data(), rows)) <= agreed * solve::norm(now) + rounding) break;
    }
    return true;
}

template <class T> bool Objective<T>::complex_difference(EvaluateComplex f, const T* x, int rows, T* out) {
    for (int k = 0; k < n; ++k) complex_point_[std::size_t(k)] = x[k];
    for (int k = 0; k < n; ++k) {
        bool central;
        T h = std::abs(step(k, x, Difference::complex_step, noise, central));
        const T least = std::numeric_limits<T>::min() / solve::epsilon<T>;
        const T scale = relative[k] > 0 ? relative[k] : solve::difference_scale<T>(Difference::complex_step);
        h = std::max(scale * std::max(std::abs(x[k]), typical[k]), least);
        complex_point_[std::size_t(k)] = std::complex<T>(x[k], h);
        if (!f(fresh_array(complex_point_.data(), n), complex_value_.data())) return false;
        for (int i = 0; i < rows; ++i) out[std::ptrdiff_t(k) * rows + i] = complex_value_[std::size_t(i)].imag() / h;
        complex_point_[std::size_t(k)] = x[k];
    }
    return true;
}

// One call on all points, an array (points, n), which returns (points, rows), or (points,) for a scalar function.
template <class T> bool Objective<T>::stack(const T* x, Difference method, int rows, const T* at, T* out) {
    const bool twice = method == Difference::three_point;
    const auto points = std::size_t(twice ? 2 * n : n);
    std::vector<T> all(points * std::size_t(n)), values(points * std::size_t(rows));
    std::vector<T> width(static_cast<std::size_t>(n));
    const auto size = std::size_t(n);
    for (int k = 0; k < n; ++k) {
        bool central;
        const T h = step(k, x, method, noise, central);
        const auto row = std::size_t(k);
        std::copy(x, x + n, all.begin() + std::ptrdiff_t(row * size));
        all[row * size + row] = x[k] + h;
        width[row] = h;
        if (twice) {
            const std::size_t other = size + row;
            std::copy(x, x + n, all.begin() + std::ptrdiff_t(other * size));
            if (central) all[other * size + row] = x[k] - h;
            width[row] = all[row * size + row] - all[other * size + row];
        }
    }
    fun_calls += std::int64_t(points);
    PyObject* result = fun.call(fresh_array(all.data(), Py_ssize_t(points), n));
    if (!take_matrix(result, "fun, called on a stack of points,", values.data(), Py_ssize_t(points), rows))
        return false;
    const auto one = [&](const T* point, T* value) {
        ++fun_calls;
        return take_matrix(fun.call(fresh_array(point, 1, n)), "fun, called on a stack of points,", value, 1, 1);
    };
    if (m == 0) std::copy(x, x + n, point_.begin());
    for (int k = 0; k < n; ++k) {
        T* const column = out + std::ptrdiff_t(k) * rows;
        const T* const row = values.data() + std::size_t(k) * std::size_t(rows);
        const T* const low = twice ? row + std::ptrdiff_t(n) * rows : at;
        for (int i = 0; i < rows; ++i)
            column[i] = width[std::size_t(k)] != 0 ? (row[i] - low[i]) / width[std::size_t(k)] : T(0);
        if (lower[k] == upper[k]) continue;
        if (m > 0 || relative[k] > 0) continue;
        if (beyond_rounding(row[0], low[0], T(8))) {
            silent_[std::size_t(k)] = false;
        } else if (!measure(one, noise, x, k, column)) {
            return false;
        }
    }
    return true;
}

template <class T> bool Objective<T>::hessian(const T* x, T* h) {
    const Held held(without_gil);
    ++hess_calls;
    if (hess) {
        if (hess.compiled()) {
            hess.run<void(int, const T*, T*, void*)>(n, x, h);
            if (!alive()) return false;
        } else if (!take_matrix(hess.call(point(x)), hess.name(), h, n, n)) {
            // Rows as columns: the symmetric part is the same.
            return false;
        }
    } else if (second_of_values()) {
        return hessian_of_values(x, h);
    } else {
        const Difference method = differences.hessian;
        if (method == Difference::complex_step) {
            const auto f = [&](PyObject* point, std::complex<T>* out) {
                ++jac_calls;
                return take_vector(jac.call(point), jac.name(), out, n);
            };
            if (!complex_difference(f, x, n, h)) return false;
        } else {
            std::vector<T> at(static_cast<std::size_t>(n));
            if (!gradient(x, at.data())) return false;
            const auto f = [&](const T* point, T* out) { return gradient(point, out); };
            if (!difference(f, method, gradient_noise_, x, at.data(), n, h)) return false;
        }
    }
    // Only its symmetric part has a say in g'p + p'Hp/2. In tiles: a column and a row at a time would miss the cache.
    constexpr int tile = 32;
    for (int i0 = 0; i0 < n; i0 += tile)
        for (int k0 = 0; k0 <= i0; k0 += tile)
            for (int k = k0; k < std::min(k0 + tile, n); ++k)
                for (int i = std::max(i0, k + 1); i < std::min(i0 + tile, n); ++i) {
                    T& a = h[std::ptrdiff_t(k) * n + i];
                    T& b = h[std::ptrdiff_t(i) * n + k];
                    if (a != b) a = b = a / 2 + b / 2;
                }
    return true;
}

// Second differences with steps eps^(1/3) for forward ones, eps^(1/4) for central ones (Dennis and Schnabel 1983,
// section 5.6).
template <class T> bool Objective<T>::hessian_of_values(const T* x, T* h) {
    std::vector<T> steps(static_cast<std::size_t>(n));
    bool moved = false;
    for (int k = 0; k < n; ++k) {
        const auto variable = std::size_t(k);
        bool central = true;
        const T size = std::max(std::abs(x[k]), typical[k]);
        const T scale = std::max(std::sqrt(std::sqrt(noise)), 2 * seen_[variable] / size);
        T h = solve::difference_step(x[k], scale, typical[k], lower[k], upper[k], central);
        point_[variable] = x[k];
        // Around the nearest point that has room on both sides.
        if (!central) {
            h = std::abs(h);
            T low = lower[k] + h, high = upper[k] - h;
            if (low > high) {
                h = (upper[k] - lower[k]) / 4;
                low = high = lower[k] + 2 * h;
            }
            point_[variable] = std::min(std::max(x[k], low), high);
            moved = moved || point_[variable] != x[k];
        }
        steps[variable] = h;
    }
    const std::vector<T> centre = point_;
    T at;
    if (!(moved ? evaluate(centre.data(), at) : base_value(x, at))) return false;
    const auto shifted = [&](int i, T si, int k, T sk, T& f) {
        const auto shift = [&](int variable, T side) {
            T& to = point_[std::size_t(variable)];
            to = std::min(std::max(to + side * steps[std::size_t(variable)], lower[variable]), upper[variable]);
        };
        shift(i, si);
        if (k >= 0) shift(k, sk);
        const bool ok = evaluate(point_.data(), f);
        point_[std::size_t(i)] = centre[std::size_t(i)];
        if (k >= 0) point_[std::size_t(k)] = centre[std::size_t(k)];
        return ok;
    };
    for (int i = 0; i < n; ++i) {
        T plus, minus;
        const T hi = steps[std::size_t(i)];
        if (hi == 0) {  // the bounds leave no room
            for (int k = 0; k < n; ++k) h[std::ptrdiff_t(i) * n + k] = h[std::ptrdiff_t(k) * n + i] = 0;
            continue;
        }
        if (!shifted(i, 1, -1, 0, plus) || !shifted(i, -1, -1, 0, minus)) return false;
        h[std::ptrdiff_t(i) * n + i] = ((plus - at) + (minus - at)) / (hi * hi);
        for (int k = 0; k < i; ++k) {
            if (steps[std::size_t(k)] == 0) continue;
            T a, b, c, d;
            if (!shifted(i, 1, k, 1, a) || !shifted(i, 1, k, -1, b) || !shifted(i, -1, k, 1, c) ||
                !shifted(i, -1, k, -1, d))
                return false;
            const T second = ((a - b) - (c - d)) / (4 * hi * steps[std::size_t(k)]);
            h[std::ptrdiff_t(k) * n + i] = h[std::ptrdiff_t(i) * n + k] = second;
        }
    }
    return true;
}

template <class T> bool Objective<T>::product(const T* x, const T* v, T* hv) {
    const Held held(without_gil);
    ++hess_calls;
    if (hessp.compiled()) {
        hessp.run<void(int, const T*, const T*, T*, void*)>(n, x, v, hv);
        return alive();
    }
    return take_vector(hessp.call(point(x), fresh_array(v, n)), hessp.name(), hv, n);
}

template <class T> bool Objective<T>::residuals(const T* x, T* r) {
    const Held held(without_gil);
    if (have_first_) {
        // The start has been evaluated to learn m.
        have_first_ = false;
        std::copy(first_.begin(), first_.end(), r);
        return true;
    }
    ++fun_calls;
    if (fun.compiled()) {
        fun.run<void(int, int, const T*, T*, void*)>(m, n, x, r);
        return alive();
    }
    return take_vector(fun.call(point(x)), fun.name(), r, m);
}

template <class T> bool Objective<T>::first_residuals(const T* x) {
    ++fun_calls;
    PyObject* result = fun.call(point(x));
    if (result == nullptr) return false;
    if (result == Py_None) {
        Py_DECREF(result);
        return refuse(PyExc_TypeError, fun.name(), " must return real numbers, got None");
    }
    const Py_ssize_t length = vector_length(result, fun.name());
    if (length < 1) {
        Py_DECREF(result);
        return length < 0 ? false
                          : refuse(PyExc_ValueError, fun.name(), " must return at least one residual, got none");
    }
    if (differences.gradient != Difference::none) {
        learn(result, rounding, noise_known_);
        noise = std::max(noise, rounding);
    }
    m = int(length);
    first_.resize(std::size_t(m));
    have_first_ = take_vector(result, fun.name(), first_.data(), m);
    return have_first_;
}

template <class T> bool Objective<T>::refine() {
    if (!can_refine()) return false;
    constexpr T coarser = T(0x1p14);  // steps 25 times as long
    if (differences.gradient == Difference::three_point) noise *= coarser;
    differences.gradient = Difference::three_point;
    stretch_.assign(std::size_t(n), T(1));
    return true;
}

namespace {

// Whether an array, whose only reference the caller has, is the only way to its elements.
bool owns_elements(const py::detail::PyArray_Proxy* a) {
#ifdef Py_GIL_DISABLED
    static_cast<void>(a);
    return false;
#else
    constexpr int owned = py::detail::npy_api::NPY_ARRAY_OWNDATA_;
    if (a->base == nullptr) return (a->flags & owned) != 0;
    return Py_REFCNT(a->base) == 1 && is_plain_array(a->base) && (py::detail::array_proxy(a->base)->flags & owned) != 0;
#endif
}

template <class S> bool can_keep(PyObject* result, Py_ssize_t rows, Py_ssize_t columns) {
    constexpr int wanted = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_ |
                           py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    if (Py_REFCNT(result) != 1 || !is_plain_array(result)) return false;
    const auto* a = py::detail::array_proxy(result);
    return a->descr == descriptor<S>() && a->nd == 2 && a->dimensions[0] == rows && a->dimensions[1] == columns &&
           (a->flags & wanted) == wanted && owns_elements(a);
}

}  // namespace

template <class T> T* Objective<T>::room() {
    if (!room_) room_ = py::reinterpret_steal<py::object>(fresh_array<T>(nullptr, m, n));
    if (!room_) return nullptr;
    // Without the GIL, which compiled functions run without, no reference may change.
    if (jacobian_.ptr() != room_.ptr()) jacobian_ = room_;
    return reinterpret_cast<T*>(py::detail::array_proxy(room_.ptr())->data);
}

template <class T> T* Objective<T>::jacobian_in_place(const T* x, const T* r) {
    const Held held(without_gil);
    ++jac_calls;
    if (jac && !jac.compiled()) {
        // The last one's memory serves the next one.
        jacobian_ = py::object();
        PyObject* const result = jac.call(point(x));
        if (result == nullptr) return nullptr;
        if (can_keep<T>(result, m, n)) {
            jacobian_ = py::reinterpret_steal<py::object>(result);
            return reinterpret_cast<T*>(py::detail::array_proxy(result)->data);
        }
        T* const copy = room();
        if (copy == nullptr) {
            Py_DECREF(result);
            return nullptr;
        }
        return take_matrix(result, jac.name(), copy, m, n) ? copy : nullptr;
    }
    T* const j = room();
    if (j == nullptr) return nullptr;
    if (jac) {
        jac.run<void(int, int, const T*, T*, void*)>(m, n, x, j);
        return alive() ? j : nullptr;
    }
    const auto by_columns = [&](T* out) {
        if (differences.gradient == Difference::complex_step) {
            const auto f = [&](PyObject* point, std::complex<T>* values) {
                ++fun_calls;
                return take_vector(fun.call(point), fun.name(), values, m);
            };
            return complex_difference(f, x, m, out);
        }
        if (differences.vectorized) return stack(x, differences.gradient, m, r, out);
        const auto f = [&](const T* point, T* values) { return residuals(point, values); };
        return difference(f, differences.gradient, noise, x, r, m, out);
    };
    if (!by_columns(columns_.data())) return nullptr;
    transpose(columns_.data(), n, m, j);
    return j;
}

template bool take_scalar(PyObject*, const char*, float&);
template bool take_scalar(PyObject*, const char*, double&);
template bool take_vector(PyObject*, const char*, float*, Py_ssize_t);
template bool take_vector(PyObject*, const char*, double*, Py_ssize_t);
template bool take_matrix(PyObject*, const char*, float*, Py_ssize_t, Py_ssize_t);
template bool take_matrix(PyObject*, const char*, double*, Py_ssize_t, Py_ssize_t);

template class Objective<float>;
template class Objective<double>;

}  // namespace adaptk::bindings
