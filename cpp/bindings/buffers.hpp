// Intake of buffers: NumPy arrays by their struct, everything else by DLPack, without a copy.
#pragma once

#include "cuda_backend.hpp"
#include "dlpack.hpp"
#include "tensor.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace adaptk::bindings {

namespace py = pybind11;
using detail::Device;
using detail::Format;

// Which argument an error is about: "exp_avg", "exp_avg[3]" of a list, or "exp_avg['w']" of a dict (by its label).
struct ArgName {
    const char* name;
    py::ssize_t index = -1;
    const char* label = nullptr;
    std::string text() const;
};

// The stream that a call puts its work on: the one that adaptk.cuda.stream() names; else the current one of the library
// that the first buffer is from; else the default stream. Other streams that buffers are used on are ordered with it.
class WorkStream {
  public:
    // A buffer on this device is about to be taken, whose library lets others name the stream.
    void* want(int device);
    // A buffer whose library works on this stream.
    void meet(int device, void* stream);
    int device() const { return device_; }
    void* stream() const { return stream_; }
    // Runs what puts work on the stream, behind what the other streams hold so far and before what they get later.
    template <class Run> void ordered(const Run& run);
    // One half of that: before the work is put on the stream, or after it.
    void order(bool behind);

  private:
    int device_ = -1;
    void* stream_ = nullptr;
    std::vector<void*> others_;
};

// The stream that adaptk.cuda.stream() names, of this thread.
struct NamedStream {
    bool named = false;
    int device = -1;  // any
    void* stream = nullptr;
};
NamedStream& named_stream();

// The CUDA part of the library, or nullptr where this build has none or it cannot be loaded.
const detail::CudaBackend* cuda_part();
const detail::CudaBackend& need_cuda_part();
// MemoryError or RuntimeError with the call that failed.
[[noreturn]] void fail_cuda(const detail::CudaError& error);

template <class Run> void WorkStream::ordered(const Run& run) {
    order(true);
    run();
    order(false);
}

// A number in the memory of a device.
struct DeviceNumber {
    const void* data = nullptr;
    detail::ScalarType type = detail::ScalarType::f32;
    Device device;
};

// Integers in the memory of a device.
struct DeviceIntegers {
    const void* data = nullptr;
    bool wide = true;  // 64 bits, else 32
    std::int64_t count = 0;
    Device device;
    std::size_t bytes() const { return std::size_t(count) * (wide ? 8 : 4); }
};

// A view of an object's memory. Shape and strides belong to the object (or to its DLPack export, which the view holds).
class View : public detail::TensorView {
  public:
    // Whether a view can be taken anew from the object in a few nanoseconds.
    bool cheap = false;
    // Of a NumPy array: what errors advise depends on it.
    bool numpy = false;

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
    // Codes, which are bytes with scales beside them, if they are asked for.
    static void take(py::handle object, const ArgName& name, View& out, WorkStream& work, bool codes = false);
    // Whether the object is on a CUDA device, without a view of it; false for what is no buffer.
    static bool on_cuda(py::handle object, const ArgName& name);
    // The one number that an object on a CUDA device holds; this view keeps its memory alive.
    DeviceNumber take_number(py::handle object, const ArgName& name, WorkStream& work);
    // The row of integers that an object on a CUDA device holds, kept alive in the same way.
    DeviceIntegers take_integers(py::handle object, const ArgName& name, WorkStream& work);
    // The tensor of an object that exports one, of any dtype and layout; this view keeps its memory alive.
    DLTensor take_tensor(py::handle object, const ArgName& name, WorkStream& work);

  private:
    void swap(View& other) noexcept;
    bool from_numpy(PyObject* object, bool codes);
    void from_array_interface(py::handle object, const ArgName& name, bool codes);
    // The DLTensor of an object that exports one, which this view holds.
    DLTensor exchange_tensor(PyObject* object, const DLPackExchangeAPI& api, const ArgName& name, WorkStream& work);
    DLTensor dlpack_tensor(py::handle object, const ArgName& name, WorkStream& work);
    DLTensor cuda_interface_tensor(py::handle object, const ArgName& name, WorkStream& work);
    bool export_tensor(py::handle object, const ArgName& name, WorkStream& work, DLTensor& out);
    void from_tensor(const DLTensor& t, const ArgName& name, bool codes);

    void* owner_ = nullptr;
    void (*release_)(void*) = nullptr;
};

// NumPy's array type and the one object that describes each dtype in native byte order.
struct NumpyTypes {
    PyTypeObject* array;
    std::atomic<PyObject*> descr[detail::max_formats];  // by Format; null for those of ml_dtypes until an array is seen
    // For comparisons alone: what it points to stays as it is.
    PyObject* of(Format type) const { return descr[std::size_t(type)].load(std::memory_order_relaxed); }
};
const NumpyTypes& numpy_types();

// At import: what later calls find made.
void prepare_buffers();

// The shape of a C-ordered array of few axes, by which another array is found to be its like in a few comparisons: what
// a step over thousands of small arrays spends its time on.
struct QuickShape {
    static constexpr std::int32_t max_axes = 4;
    std::int32_t ndim = -1;  // -1: matches nothing
    std::int64_t shape[max_axes];

    QuickShape() = default;
    explicit QuickShape(const View& v);  // matches nothing where `v` is not such an array

    // The data of an exact NumPy array of this shape in C order, and of this dtype; else nullptr. Of an array that does
    // not match here more may be found by View::take.
    void* data_of(const NumpyTypes& numpy, PyObject* object, Format wanted, bool writable) const {
        constexpr int c_contiguous = 0x0001;
        constexpr int writeable = 0x0400;
        if (Py_TYPE(object) != numpy.array) return nullptr;
        const auto* a = reinterpret_cast<const py::detail::PyArray_Proxy*>(object);
        const int flags = c_contiguous | (writable ? writeable : 0);
        if (a->nd != ndim || (a->flags & flags) != flags || a->descr != numpy.of(wanted)) return nullptr;
        for (std::int32_t i = 0; i < ndim; ++i)
            if (a->dimensions[i] != shape[i]) return nullptr;
        return a->data;
    }
};

// Whether a tensor of PyTorch is negated lazily, which is nothing that DLPack knows of.
bool negated(PyObject* tensor);

// Whether a tensor of PyTorch, as exported, is without memory because its storage was freed (resize_(0), as sharded
// training does). Its address then is its offset in the storage, a number below that of any mapped memory or so low
// that it is worth asking PyTorch.
bool freed(PyObject* tensor, const DLTensor& t);

// The exchange API of an object's type, or nullptr.
const DLPackExchangeAPI* exchange_api_of(PyObject* object);

[[noreturn]] void fail(PyObject* exception, const std::string& message);
[[noreturn]] void fail(const detail::Problem& problem, const ArgName& name);
std::string type_name(py::handle object);

// Why `v` cannot be what it is given as, and what to do about it.
[[noreturn]] void fail_param(const View& v, const ArgName& name);
[[noreturn]] void fail_grad(const View& v, const ArgName& name, const View& param);
[[noreturn]] void fail_state(const View& v, const ArgName& name, const View& param);

// Throws where `v` cannot be what it is given as beside `param`.
inline void check_param(const View& v, const ArgName& name) {
    if (!detail::is_param(v)) fail_param(v, name);
}
inline void check_grad(const View& v, const ArgName& name, const View& param) {
    if (!detail::is_grad_of(v, param)) fail_grad(v, name, param);
}
inline void check_state(const View& v, const ArgName& name, const View& param) {
    if (!detail::is_state_of(v, param)) fail_state(v, name, param);
}

}  // namespace adaptk::bindings
