#include "buffers.hpp"

#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

namespace adaptk::bindings {
namespace {

// NumPy's type numbers and array flags (part of its stable ABI).
constexpr int npy_float = 11;
constexpr int npy_double = 12;
constexpr int npy_half = 23;
constexpr int npy_first_user_type = 256;
constexpr int npy_c_contiguous = 0x0001;
constexpr int npy_writeable = 0x0400;

static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t), "adaptk needs a 64-bit Python");

using ArrayProxy = py::detail::PyArray_Proxy;
using DescrProxy = py::detail::PyArrayDescr_Proxy;

NumpyTypes& known_types() {
    static NumpyTypes types = [] {
        const auto descr = [](const char* name) { return py::dtype(name).release().ptr(); };
        return NumpyTypes{py::detail::npy_api::get().PyArray_Type_,
                          {descr("float32"), descr("float64"), nullptr, descr("float16")}};
    }();
    return types;
}

PyTypeObject* ndarray_type() { return known_types().array; }

// NumPy's scalars have an array interface too, of a value that nobody will see again.
bool is_numpy_scalar(py::handle object) { return py::isinstance(object, py::module_::import("numpy").attr("generic")); }

// bfloat16 is a dtype that the package ml_dtypes registers; its number is known only then.
bool is_bfloat16(const DescrProxy* descr) {
    static int known = -1;
    if (descr->type_num == known) return true;
    const auto name = py::handle(descr->typeobj).attr("__name__").cast<std::string>();
    if (name != "bfloat16") return false;
    known = descr->type_num;
    known_types().descr[std::size_t(DType::bf16)] =
        py::dtype::from_args(py::reinterpret_borrow<py::object>(descr->typeobj)).release().ptr();
    return true;
}

bool numpy_dtype(const DescrProxy* descr, DType& out) {
    if (descr->byteorder == '>') return false;
    switch (descr->type_num) {
    case npy_float: out = DType::f32; return true;
    case npy_double: out = DType::f64; return true;
    case npy_half: out = DType::f16; return true;
    default: break;
    }
    if (descr->type_num >= npy_first_user_type && is_bfloat16(descr)) {
        out = DType::bf16;
        return true;
    }
    return false;
}

bool dlpack_dtype(const DLDataType& t, DType& out) {
    if (t.lanes != 1) return false;
    if (t.code == code_float && t.bits == 32) return out = DType::f32, true;
    if (t.code == code_float && t.bits == 64) return out = DType::f64, true;
    if (t.code == code_float && t.bits == 16) return out = DType::f16, true;
    if (t.code == code_bfloat && t.bits == 16) return out = DType::bf16, true;
    return false;
}

const char* const wanted_types = "expected float32, float64, bfloat16 or float16";

std::string dlpack_dtype_text(const DLDataType& t) {
    static const char* const codes[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    const std::string code = t.code < 7 ? codes[t.code] : "type code " + std::to_string(t.code) + " of bits ";
    return code + std::to_string(t.bits) + (t.lanes == 1 ? "" : "x" + std::to_string(t.lanes));
}

// The exchange API of a type, or nullptr; remembered, with a reference to the type that keeps its address its own.
const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
    static PyTypeObject* last_type = nullptr;
    static const DLPackExchangeAPI* last_api = nullptr;
    if (type == last_type) return last_api;
    static auto& known = *new std::unordered_map<PyTypeObject*, const DLPackExchangeAPI*>;
    auto found = known.find(type);
    if (found == known.end()) {
        const DLPackExchangeAPI* api = nullptr;
        const py::handle handle(reinterpret_cast<PyObject*>(type));
        if (py::hasattr(handle, "__dlpack_c_exchange_api__")) {
            const py::object capsule = handle.attr("__dlpack_c_exchange_api__");
            if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api") != 0) {
                auto* header =
                    static_cast<DLPackExchangeAPIHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
                while (header != nullptr && header->version.major > 1) header = header->prev_api;
                if (header != nullptr && header->version.major == 1)
                    api = reinterpret_cast<const DLPackExchangeAPI*>(header);
            }
        }
        if (api == nullptr) return nullptr;
        Py_INCREF(type);
        found = known.emplace(type, api).first;
    }
    last_type = type;
    last_api = found->second;
    return last_api;
}

// Arrays of these modules are values: their memory may be shared, and DLPack's unversioned form cannot say so.
bool immutable_type(PyTypeObject* type) {
    const py::object module = py::getattr(py::handle(reinterpret_cast<PyObject*>(type)), "__module__", py::none());
    if (!py::isinstance<py::str>(module)) return false;
    const auto name = module.cast<std::string>();
    return name == "jax" || name == "jaxlib" || name.starts_with("jax.") || name.starts_with("jaxlib.") ||
           name.starts_with("tensorflow.");
}

template <class M> void release_managed(void* p) {
    auto* m = static_cast<M*>(p);
    if (m->deleter != nullptr) m->deleter(m);
}

// As Python writes a tuple.
template <class Value> std::string tuple_text(std::int32_t n, const Value& value) {
    std::string s(1, '(');
    for (std::int32_t i = 0; i < n; ++i) {
        if (i > 0) s += ", ";
        s += std::to_string(value(i));
    }
    if (n == 1) s += ',';
    return s += ')';
}

// An axis without its extent-1 companions, which strides say nothing about.
struct Axis {
    std::int64_t stride, extent;
};

void check_versioned(const DLManagedTensorVersioned& m, const ArgName& name) {
    if (m.version.major != 1)
        fail(PyExc_BufferError, name.text() + ": DLPack version " + std::to_string(m.version.major) + "." +
                                    std::to_string(m.version.minor) + ", expected 1.x");
    if ((m.flags & flag_is_copied) != 0)
        fail(PyExc_BufferError, name.text() + ": the DLPack export is a copy, an update would be lost");
}

bool reachable(std::int64_t device_type) {
    return device_type == device_cpu || device_type == device_cuda_host || device_type == device_rocm_host;
}

[[noreturn]] void fail_device(std::int64_t device_type, const ArgName& name) {
    fail(PyExc_ValueError, name.text() + ": on a device of DLPack type " + std::to_string(device_type) +
                               (device_type == device_cuda ? " (CUDA)" : "") + ", expected memory of the CPU");
}

}  // namespace

const NumpyTypes& numpy_types() { return known_types(); }

void fail(PyObject* exception, const std::string& message) {
    PyErr_SetString(exception, message.c_str());
    throw py::error_already_set();
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

std::string ArgName::text() const {
    if (label != nullptr) return std::string(name) + label;
    return index < 0 ? std::string(name) : std::string(name) + "[" + std::to_string(index) + "]";
}

void View::swap(View& other) noexcept {
    std::swap(data, other.data);
    std::swap(size, other.size);
    std::swap(shape, other.shape);
    std::swap(strides, other.strides);
    std::swap(stride_unit, other.stride_unit);
    std::swap(ndim, other.ndim);
    std::swap(dtype, other.dtype);
    std::swap(read_only, other.read_only);
    std::swap(c_order, other.c_order);
    std::swap(cheap, other.cheap);
    std::swap(owner_, other.owner_);
    std::swap(release_, other.release_);
}

void View::take(py::handle object, const ArgName& name, View& out) {
    PyTypeObject* const type = Py_TYPE(object.ptr());
    if (type == ndarray_type() || PyType_IsSubtype(type, ndarray_type()) != 0) {
        if (type != ndarray_type() && py::hasattr(reinterpret_cast<PyObject*>(type), "mask"))
            fail(PyExc_TypeError, name.text() + ": a masked array, whose mask an update would ignore; pass its .data");
        if (!out.from_numpy(object.ptr(), name)) {
            const auto text = py::str(object.attr("dtype")).cast<std::string>();
            fail(PyExc_TypeError, name.text() + ": dtype " + text + ", " + wanted_types);
        }
        return;
    }
    if (const DLPackExchangeAPI* api = exchange_api(type); api != nullptr) {
        out.from_exchange(object.ptr(), *api, name);
    } else if (py::hasattr(object, "__dlpack__")) {
        out.from_dlpack(object, name);
    } else if (py::hasattr(object, "__array_interface__") && !is_numpy_scalar(object)) {
        out.from_array_interface(object, name);
    } else {
        fail(PyExc_TypeError, name.text() + ": " + type_name(object) +
                                  " is not a buffer; expected a NumPy array or an object with __dlpack__");
    }
}

bool View::from_numpy(PyObject* object, const ArgName&) {
    const auto* a = reinterpret_cast<const ArrayProxy*>(object);
    if (!numpy_dtype(reinterpret_cast<const DescrProxy*>(a->descr), dtype)) return false;
    data = a->data;
    ndim = a->nd;
    shape = reinterpret_cast<const std::int64_t*>(a->dimensions);
    strides = reinterpret_cast<const std::int64_t*>(a->strides);
    stride_unit = 1;
    read_only = (a->flags & npy_writeable) == 0;
    c_order = (a->flags & npy_c_contiguous) != 0;
    cheap = true;
    size = 1;
    for (std::int32_t i = 0; i < ndim; ++i) size *= shape[i];
    return true;
}

void View::from_exchange(PyObject* object, const DLPackExchangeAPI& api, const ArgName& name) {
    const auto check = [&](int status) {
        if (status == 0) return;
        if (PyErr_Occurred() != nullptr && PyErr_ExceptionMatches(PyExc_Exception) == 0) throw py::error_already_set();
        const std::string text = name.text() + ": " + type_name(object) + " cannot be viewed as memory of the CPU";
        if (PyErr_Occurred() == nullptr) fail(PyExc_BufferError, text);
        py::raise_from(PyExc_BufferError, text.c_str());
        throw py::error_already_set();
    };
    if (api.dltensor_from_py_object_no_sync != nullptr) {
        DLTensor t;
        check(api.dltensor_from_py_object_no_sync(object, &t));
        from_tensor(t, name);
        cheap = true;
        return;
    }
    DLManagedTensorVersioned* m = nullptr;
    check(api.managed_tensor_from_py_object_no_sync(object, &m));
    owner_ = m;
    release_ = release_managed<DLManagedTensorVersioned>;
    check_versioned(*m, name);
    from_tensor(m->dl_tensor, name);
    read_only = (m->flags & flag_read_only) != 0;
}

void View::from_dlpack(py::handle object, const ArgName& name) {
    // An object may have __dlpack__ and be on a device that this build cannot reach: ask before exporting.
    if (py::hasattr(object, "__dlpack_device__")) {
        const py::object device = object.attr("__dlpack_device__")();
        int overflow = 0;
        const bool pair = PyTuple_Check(device.ptr()) && PyTuple_GET_SIZE(device.ptr()) == 2 &&
                          PyLong_Check(PyTuple_GET_ITEM(device.ptr(), 0));
        const long long kind = pair ? PyLong_AsLongLongAndOverflow(PyTuple_GET_ITEM(device.ptr(), 0), &overflow) : -1;
        if (!pair || overflow != 0)
            fail(PyExc_BufferError, name.text() + ": __dlpack_device__ returned " +
                                        py::repr(device).cast<std::string>() + ", expected (device type, device id)");
        if (!reachable(kind)) fail_device(kind, name);
    }
    const py::object method = object.attr("__dlpack__");
    py::object capsule;
    try {
        capsule = method(py::arg("max_version") = py::make_tuple(1, 3));
    } catch (py::error_already_set& e) {
        // A producer from before versioned DLPack does not know the argument.
        if (!e.matches(PyExc_TypeError)) throw;
        capsule = method();
    }
    const auto take_capsule = [&]<class M>(const char* fresh, const char* used, M* m) {
        m = static_cast<M*>(PyCapsule_GetPointer(capsule.ptr(), fresh));
        if (m == nullptr || PyCapsule_SetName(capsule.ptr(), used) != 0) throw py::error_already_set();
        owner_ = m;
        release_ = release_managed<M>;
        return m;
    };
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
        auto* m = take_capsule("dltensor_versioned", "used_dltensor_versioned",
                               static_cast<DLManagedTensorVersioned*>(nullptr));
        check_versioned(*m, name);
        from_tensor(m->dl_tensor, name);
        read_only = (m->flags & flag_read_only) != 0;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
        auto* m = take_capsule("dltensor", "used_dltensor", static_cast<DLManagedTensor*>(nullptr));
        from_tensor(m->dl_tensor, name);
        read_only = immutable_type(Py_TYPE(object.ptr()));
    } else {
        fail(PyExc_BufferError, name.text() + ": __dlpack__ returned " + type_name(capsule) +
                                    ", expected a capsule 'dltensor_versioned' or 'dltensor'");
    }
    if (immutable_type(Py_TYPE(object.ptr()))) read_only = true;
}

void View::from_array_interface(py::handle object, const ArgName& name) {
    const py::object array = py::module_::import("numpy").attr("asarray")(object);
    if (!from_numpy(array.ptr(), name)) {
        const auto text = py::str(array.attr("dtype")).cast<std::string>();
        fail(PyExc_TypeError, name.text() + ": dtype " + text + ", " + wanted_types);
    }
    const py::object pointer = py::dict(object.attr("__array_interface__"))["data"];
    if (!py::isinstance<py::tuple>(pointer) ||
        py::tuple(pointer)[0].cast<std::uintptr_t>() != reinterpret_cast<std::uintptr_t>(data))
        fail(PyExc_BufferError, name.text() + ": " + type_name(object) + " cannot be viewed without a copy");
    cheap = false;
    owner_ = py::object(array).release().ptr();
    release_ = [](void* p) { Py_DECREF(static_cast<PyObject*>(p)); };
}

void View::from_tensor(const DLTensor& t, const ArgName& name) {
    if (!reachable(t.device.device_type)) fail_device(t.device.device_type, name);
    if (!dlpack_dtype(t.dtype, dtype))
        fail(PyExc_TypeError, name.text() + ": dtype " + dlpack_dtype_text(t.dtype) + ", " + wanted_types);
    if (t.ndim < 0 || (t.ndim > 0 && t.shape == nullptr))
        fail(PyExc_BufferError, name.text() + ": the DLPack export has no shape");
    data = static_cast<std::byte*>(t.data) + t.byte_offset;
    ndim = t.ndim;
    shape = t.shape;
    strides = t.strides;
    stride_unit = std::int64_t(size_of(dtype));
    read_only = false;
    cheap = false;
    size = 1;
    c_order = true;
    for (std::int32_t i = ndim - 1; i >= 0; --i) {
        if (shape[i] < 0 || __builtin_mul_overflow(size, shape[i], &size) || size > INT64_MAX / 8)
            fail(PyExc_ValueError, name.text() + ": impossible shape " + shape_text());
    }
    if (strides != nullptr) {
        std::int64_t expected = 1;
        for (std::int32_t i = ndim - 1; i >= 0; --i) {
            // Products with element sizes must not overflow further on.
            if (strides[i] > INT64_MAX / 64 || strides[i] < -(INT64_MAX / 64))
                fail(PyExc_ValueError, name.text() + ": not contiguous: impossible stride " +
                                           std::to_string(strides[i]) + " of axis " + std::to_string(i));
            if (shape[i] != 1 && strides[i] != expected) c_order = false;
            expected *= shape[i];
        }
    }
    if (size == 0) c_order = true;
    if (size > 0 && t.data == nullptr)
        fail(PyExc_ValueError, name.text() + ": has no memory of its own (a meta, fake or wrapped tensor?)");
}

QuickShape::QuickShape(const View& v) {
    if (!v.c_order || v.ndim > most_axes) return;
    ndim = v.ndim;
    std::copy_n(v.shape, ndim, shape);
}

bool View::same_shape(const View& other) const {
    return ndim == other.ndim && std::equal(shape, shape + ndim, other.shape);
}

bool View::same_strides(const View& other) const {
    if (c_order && other.c_order) return true;
    if (strides == nullptr || other.strides == nullptr) return false;
    const auto a = std::int64_t(size_of(dtype));
    const auto b = std::int64_t(size_of(other.dtype));
    for (std::int32_t i = 0; i < ndim; ++i) {
        if (shape[i] != 1 && strides[i] * stride_unit * b != other.strides[i] * other.stride_unit * a) return false;
    }
    return true;
}

bool View::dense() const {
    if (c_order || size <= 1 || strides == nullptr) return true;
    std::vector<Axis> axes;
    for (std::int32_t i = 0; i < ndim; ++i)
        if (shape[i] != 1) axes.push_back({strides[i] * stride_unit, shape[i]});
    std::sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.stride < b.stride; });
    auto expected = std::int64_t(size_of(dtype));
    for (const Axis& a : axes) {
        if (a.stride != expected) return false;
        expected *= a.extent;
    }
    return true;
}

std::string View::shape_text() const {
    return tuple_text(ndim, [this](std::int32_t i) { return shape[i]; });
}

std::string View::strides_text() const {
    if (strides == nullptr) return "of C order";
    return tuple_text(ndim, [this](std::int32_t i) { return strides[i] * stride_unit; }) + " in bytes";
}

namespace {

void check_writable(const View& v, const ArgName& name) {
    if (v.read_only) fail(PyExc_ValueError, name.text() + ": read-only, but it is updated in place");
}

void check_beside(const View& v, const ArgName& name, const View& param) {
    if (!v.same_shape(param))
        fail(PyExc_ValueError,
             name.text() + ": shape " + v.shape_text() + ", expected " + param.shape_text() + " like its param");
    if (!v.same_strides(param))
        fail(PyExc_ValueError, name.text() + ": strides " + v.strides_text() + ", expected the layout of its param (" +
                                   param.strides_text() + ")");
}

}  // namespace

void check_param(const View& v, const ArgName& name) {
    check_writable(v, name);
    if (!v.dense())
        fail(PyExc_ValueError, name.text() + ": not contiguous: shape " + v.shape_text() + " with strides " +
                                   v.strides_text() + " does not fill one block of memory");
}

void check_grad(const View& v, const ArgName& name, const View& param) {
    if (v.dtype != param.dtype && precision(v.dtype) >= precision(param.dtype))
        fail(PyExc_TypeError, name.text() + ": dtype " + name_of(v.dtype) + ", expected " + name_of(param.dtype) +
                                  " like its param, or one of lower precision");
    check_beside(v, name, param);
}

void check_state(const View& v, const ArgName& name, const View& param) {
    const DType wanted = compute_type(param.dtype);
    if (v.dtype != wanted)
        fail(PyExc_TypeError, name.text() + ": dtype " + name_of(v.dtype) + ", expected " + name_of(wanted) +
                                  " beside a " + name_of(param.dtype) + " param");
    check_writable(v, name);
    check_beside(v, name, param);
}

}  // namespace adaptk::bindings
