// Intake of buffers: NumPy arrays by their struct, everything else by DLPack, without a copy.
#pragma once

#include "dlpack.hpp"
#include "dtype.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace adaptk::bindings {

namespace py = pybind11;
using detail::DType;

// Which argument an error is about: "exp_avg", "exp_avg[3]" of a list, or "exp_avg['w']" of a dict (by its label).
struct ArgName {
    const char* name;
    py::ssize_t index = -1;
    const char* label = nullptr;
    std::string text() const;
};

// A view of an object's memory. Shape and strides belong to the object (or to its DLPack export, which the view holds).
class View {
  public:
    void* data = nullptr;
    std::int64_t size = 0;
    const std::int64_t* shape = nullptr;
    const std::int64_t* strides = nullptr;  // null: C order
    std::int64_t stride_unit = 1;           // bytes that a stride of 1 stands for
    std::int32_t ndim = 0;
    DType dtype = DType::f32;
    bool read_only = false;
    bool c_order = false;
    // Whether a view can be taken anew from the object in a few nanoseconds.
    bool cheap = false;

    View() = default;
    View(View&& other) noexcept { swap(other); }
    View& operator=(View&& other) noexcept {
        swap(other);
        return *this;
    }
    ~View() {
        if (release_ != nullptr) release_(owner_);
    }

    // Throws a Python exception that names the argument.
    static void take(py::handle object, const ArgName& name, View& out);

    std::uintptr_t begin() const { return reinterpret_cast<std::uintptr_t>(data); }
    std::uintptr_t end() const { return begin() + std::uintptr_t(size) * size_of(dtype); }
    bool same_shape(const View& other) const;
    bool same_strides(const View& other) const;
    // Every element of one block of memory exactly once, in some order of the axes.
    bool dense() const;
    std::string shape_text() const;
    std::string strides_text() const;

  private:
    void swap(View& other) noexcept;
    bool from_numpy(PyObject* object, const ArgName& name);
    void from_exchange(PyObject* object, const DLPackExchangeAPI& api, const ArgName& name);
    void from_dlpack(py::handle object, const ArgName& name);
    void from_array_interface(py::handle object, const ArgName& name);
    void from_tensor(const DLTensor& t, const ArgName& name);

    void* owner_ = nullptr;
    void (*release_)(void*) = nullptr;
};

// NumPy's array type and the one object that describes each dtype in native byte order.
struct NumpyTypes {
    PyTypeObject* array;
    PyObject* descr[4];  // by DType; that of bfloat16 is null until an array of it has been seen
};
const NumpyTypes& numpy_types();

// The shape of a C-ordered array of few axes, by which another array is found to be its like in a few comparisons: what
// a step over thousands of small arrays spends its time on.
struct QuickShape {
    static constexpr std::int32_t most_axes = 4;
    std::int32_t ndim = -1;  // -1: matches nothing
    std::int64_t shape[most_axes];

    QuickShape() = default;
    explicit QuickShape(const View& v);  // matches nothing where `v` is not such an array

    // The data of an exact NumPy array of this shape in C order, and of this dtype; else nullptr. Of an array that does
    // not match here more may be found by View::take.
    void* data_of(const NumpyTypes& numpy, PyObject* object, DType wanted, bool writable) const {
        constexpr int c_contiguous = 0x0001;
        constexpr int writeable = 0x0400;
        if (Py_TYPE(object) != numpy.array) return nullptr;
        const auto* a = reinterpret_cast<const py::detail::PyArray_Proxy*>(object);
        const int flags = c_contiguous | (writable ? writeable : 0);
        if (a->nd != ndim || (a->flags & flags) != flags || a->descr != numpy.descr[std::size_t(wanted)])
            return nullptr;
        for (std::int32_t i = 0; i < ndim; ++i)
            if (a->dimensions[i] != shape[i]) return nullptr;
        return a->data;
    }
};

// Throws where `v` cannot be what it is given as beside `param`. The order of complaints: type, access, shape, layout.
void check_param(const View& v, const ArgName& name);
void check_grad(const View& v, const ArgName& name, const View& param);
void check_state(const View& v, const ArgName& name, const View& param);

[[noreturn]] void fail(PyObject* exception, const std::string& message);
std::string type_name(py::handle object);

}  // namespace adaptk::bindings
