// Batches of fits whose arrays are on a CUDA device. They are looked at here; numbers and options have been checked in
// Python, and what is None is absent.
#include "batch_device.hpp"

#include "batch_options.hpp"
#include "buffers.hpp"

#include <climits>
#include <deque>
#include <string>
#include <vector>

namespace adaptk::bindings {
namespace {

using Shape = std::vector<std::int64_t>;

std::string text_of(const Shape& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

constexpr DLDataType type_float32{code_float, 32, 1}, type_int32{code_int, 32, 1}, type_byte{code_uint, 8, 1};

// The arrays of a call, which have to be on the device of the first one, in C order and of the dtype that is named.
class Arrays {
  public:
    // Of the first array, which decides about the others.
    Shape first(const py::dict& arrays, const char* name) {
        const Tensor t = take(arrays[name], name, type_float32);
        device_ = t.device;
        data_ = t.data;
        return t.shape;
    }
    const float* data() const { return static_cast<const float*>(data_); }
    int device() const { return device_; }
    WorkStream& work() { return work_; }

    // One row for all problems, which has the stride 0, or one for each.
    template <class T>
    const T* rows(const py::dict& arrays, const char* key, const Shape& row, std::int64_t count, std::int64_t& stride,
                  const DLDataType& type = type_float32, const char* called = nullptr) {
        if (!arrays.contains(key) || arrays[key].is_none()) return nullptr;
        const char* const name = called != nullptr ? called : key;
        const Tensor t = take(arrays[key], name, type);
        Shape each = row;
        each.insert(each.begin(), count);
        if (t.shape != row && t.shape != each)
            fail(PyExc_ValueError, std::string(name) + ": expected shape " + text_of(row) + " or " + text_of(each) +
                                       ", got " + text_of(t.shape));
        stride = 0;
        if (t.shape == each) {
            stride = 1;
            for (const std::int64_t n : row) stride *= n;
        }
        return static_cast<const T*>(t.data);
    }

    // What is written to.
    template <class T> T* result(const py::dict& arrays, const char* name, const Shape& shape, const DLDataType& type) {
        if (!arrays.contains(name) || arrays[name].is_none()) return nullptr;
        const Tensor t = take(arrays[name], name, type);
        if (t.shape != shape) fail(PyExc_RuntimeError, std::string(name) + ": not of shape " + text_of(shape));
        return static_cast<T*>(t.data);
    }

  private:
    struct Tensor {
        void* data;
        Shape shape;
        int device;
    };

    Tensor take(const py::object& object, const char* argument, const DLDataType& type) {
        const ArgName name{argument};
        const std::string where = " but data are on cuda:" + std::to_string(device_);
        if (device_ >= 0 && !View::on_cuda(object, name)) fail(PyExc_ValueError, name.text() + ": on the CPU," + where);
        views_.emplace_back();
        const DLTensor t = views_.back().take_tensor(object, name, work_);
        const int device = int(t.device.device_id);
        if (device_ >= 0 && device != device_)
            fail(PyExc_ValueError, name.text() + ": on cuda:" + std::to_string(device) + "," + where);
        if (t.dtype.code != type.code || t.dtype.bits != type.bits || t.dtype.lanes != 1)
            fail(PyExc_TypeError, name.text() + ": dtype " + detail::dtype_text(t.dtype) + ", expected " +
                                      detail::dtype_text(type) + " in the memory of a device");
        Tensor out{t.data == nullptr ? nullptr : static_cast<std::byte*>(t.data) + t.byte_offset,
                   Shape(t.shape, t.shape + t.ndim), device};
        std::int64_t dense = 1;
        bool c_order = true, empty = false;
        for (std::int32_t i = t.ndim; i-- > 0;) {
            c_order = c_order && (t.strides == nullptr || t.shape[i] == 1 || t.strides[i] == dense);
            dense *= t.shape[i];
            empty = empty || t.shape[i] == 0;
        }
        if (!c_order && !empty) fail(PyExc_ValueError, name.text() + ": not in C order; pass it contiguous");
        if (out.data == nullptr && !empty) fail(PyExc_ValueError, name.text() + ": " + detail::no_memory);
        if (reinterpret_cast<std::uintptr_t>(out.data) % (type.bits / 8) != 0)
            fail(PyExc_ValueError, name.text() + ": not on a multiple of its item size, which CUDA needs");
        return out;
    }

    std::deque<View> views_;
    WorkStream work_;
    void* data_ = nullptr;
    int device_ = -1;
};

const char* text_of(detail::CudaBatchFault fault) {
    using Fault = detail::CudaBatchFault;
    switch (fault) {
    case Fault::none: break;
    case Fault::weights: return "weights: must be finite and >= 0";
    case Fault::bounds: return "bounds: lower must be less than upper, and neither NaN";
    case Fault::outside: return "x0: outside its bounds";
    case Fault::loss_scale: return "f_scale: must be positive and finite";
    case Fault::counts: return "data: counts of loss='poisson' must be >= 0";
    }
    return "";
}

void fit_batch(const py::tuple& model, const py::tuple& options, const py::dict& given, const py::dict& results) {
    Arrays arrays;
    detail::CudaBatch batch = {};
    batch.choice = batch_choice(model);
    const std::int64_t n = batch.choice.size, inputs = batch.choice.inputs;
    const Shape shape = arrays.first(given, "data");
    if (shape.size() != 2 && !(inputs == 2 && shape.size() == 3))
        fail(PyExc_ValueError, std::string("data: expected shape ") +
                                   (inputs == 1 ? "(k, m)" : "(k, m) or (k, rows, columns)") + ", got " +
                                   text_of(shape));
    const std::int64_t k = shape[0], m = shape.size() == 2 ? shape[1] : shape[1] * shape[2];
    if (m > INT_MAX) fail(PyExc_ValueError, "data: " + std::to_string(m) + " points, expected less than 2**31");
    auto& f = batch.problem;
    f.count = k;
    f.points = int(m);
    f.data = arrays.data();
    f.start = arrays.rows<float>(given, "x0", {n}, k, f.start_stride);
    f.coordinates =
        arrays.rows<float>(given, "coordinates", inputs == 1 ? Shape{m} : Shape{m, inputs}, k, f.coordinates_stride);
    f.weights = arrays.rows<float>(given, "weights", {m}, k, f.weights_stride);
    std::int64_t upper_stride = 0;
    f.lower = arrays.rows<float>(given, "lower", {n}, k, f.bounds_stride, type_float32, "bounds");
    f.upper = arrays.rows<float>(given, "upper", {n}, k, upper_stride, type_float32, "bounds");
    if (upper_stride != f.bounds_stride)
        fail(PyExc_ValueError, "bounds: on a device both have shape (n,) or both (k, n), or one is a number");
    f.fixed = arrays.rows<bool>(given, "fixed", {n}, k, f.fixed_stride, type_byte);
    f.loss_scale = arrays.rows<float>(given, "f_scale", {}, k, f.loss_scale_stride);
    take_batch_options(options, batch.options);
    f.x = arrays.result<float>(results, "x", {k, n}, type_float32);
    f.cost = arrays.result<float>(results, "cost", {k}, type_float32);
    f.status = arrays.result<int>(results, "status", {k}, type_int32);
    f.iterations = arrays.result<int>(results, "nit", {k}, type_int32);
    f.covariance = arrays.result<float>(results, "cov", {k, n, n}, type_float32);
    f.deviation = arrays.result<float>(results, "x_std", {k, n}, type_float32);
    batch.device = arrays.device();
    batch.stream = arrays.work().stream();
    detail::CudaBatchFault fault{};
    arrays.work().ordered([&] {
        detail::CudaError error;
        const auto& part = need_cuda_part();
        bool done = false;
        {
            const py::gil_scoped_release released;
            done = part.fit_batch(batch, fault, error);
        }
        if (!done) fail_cuda(error);
    });
    if (fault != detail::CudaBatchFault::none) fail(PyExc_ValueError, text_of(fault));
}

}  // namespace

void register_batch_on_device(py::module_& m) {
    m.def("fit_batch_on_device", fit_batch, py::arg("model"), py::arg("options"), py::arg("given"), py::arg("results"));
    m.def(
        "has_batch_kernel",
        [](const py::tuple& model) { return need_cuda_part().has_batch_kernel(batch_choice(model)); },
        py::arg("model"));
}

}  // namespace adaptk::bindings
