#include "buffers.hpp"

#include "cuda_library.hpp"

#include "locks.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace adaptk::bindings {
namespace {

// NumPy's type numbers and array flags (part of its stable ABI).
constexpr int npy_byte = 1;
constexpr int npy_ubyte = 2;
constexpr int npy_short = 3;
constexpr int npy_float = 11;
constexpr int npy_double = 12;
constexpr int npy_half = 23;
constexpr int npy_first_user_type = 256;
constexpr int npy_c_contiguous = 0x0001;
constexpr int npy_writeable = 0x0400;

static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t), "adaptk needs a 64-bit Python");

using ArrayProxy = py::detail::PyArray_Proxy;
using DescrProxy = py::detail::PyArrayDescr_Proxy;

PyObject* is_neg_name = nullptr;

NumpyTypes& known_types() {
    struct Known : NumpyTypes {
        Known() : NumpyTypes{py::detail::npy_api::get().PyArray_Type_, {}} {
            for (const detail::FormatInfo& f : detail::formats()) {
                if (f.dlpack_code >= code_bfloat) continue;
                const char* const kind = f.dlpack_code == code_int ? "i" : f.dlpack_code == code_float ? "f" : "u";
                descr[std::size_t(f.id)] = py::dtype(kind + std::to_string(f.dlpack_bits / 8)).release().ptr();
            }
        }
    };
    static Known types;
    return types;
}

PyTypeObject* ndarray_type() { return known_types().array; }

// NumPy's coefficients have an array interface too, of a value that nobody will see again.
bool is_numpy_scalar(py::handle object) { return py::isinstance(object, py::module_::import("numpy").attr("generic")); }

// Dtypes that the package ml_dtypes registers; their numbers are known only then.
bool registered_dtype(const DescrProxy* descr, Format& out) {
    constexpr std::uint8_t codes[] = {code_bfloat, detail::code_float8_e4m3fn, detail::code_float8_e5m2};
    static std::atomic<int> known[std::size(codes)]{-1, -1, -1};
    static_assert(std::size(known) == 3);
    for (std::size_t i = 0; i < std::size(codes); ++i) {
        if (descr->type_num != known[i].load(std::memory_order_acquire)) continue;
        return detail::element_type({codes[i], std::uint8_t(codes[i] == code_bfloat ? 16 : 8), 1}, false, out);
    }
    const auto name = py::handle(descr->typeobj).attr("__name__").cast<std::string>();
    const detail::FormatInfo* const format = detail::find_format(name);
    const auto* const code =
        format == nullptr ? std::end(codes) : std::find(codes, std::end(codes), format->dlpack_code);
    if (code == std::end(codes)) return false;
    // Two threads may come here at once; both find the one object.
    PyObject* const found = py::dtype::from_args(py::reinterpret_borrow<py::object>(descr->typeobj)).release().ptr();
    for (const detail::FormatInfo& f : detail::formats())
        if (f.dlpack_code == *code) known_types().descr[std::size_t(f.id)] = found;
    known[code - codes].store(descr->type_num, std::memory_order_release);
    out = format->id;
    return true;
}

bool numpy_dtype(const DescrProxy* descr, bool codes, Format& out) {
    if (descr->byteorder == '>') return false;
    switch (descr->type_num) {
    case npy_float: out = Format::float32; return true;
    case npy_double: out = Format::float64; return true;
    case npy_half: out = Format::float16; return true;
    case npy_byte: return codes && detail::element_type({detail::code_int, 8, 1}, true, out);
    case npy_ubyte: return codes && detail::element_type({detail::code_uint, 8, 1}, true, out);
    case npy_short: return codes && detail::element_type({detail::code_int, 16, 1}, true, out);
    default: break;
    }
    return descr->type_num >= npy_first_user_type && registered_dtype(descr, out);
}

// The exchange API of a type, or nullptr. Those that are found are remembered for ever in a list of few entries that
// threads read while others add to it, each with a reference to the type that keeps its address its own.
struct CachedApi {
    PyTypeObject* type;
    const DLPackExchangeAPI* api;
    const CachedApi* next;
};

const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
    static std::atomic<const CachedApi*> known{nullptr};
    for (const CachedApi* k = known.load(std::memory_order_acquire); k != nullptr; k = k->next)
        if (k->type == type) return k->api;
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
    auto* const added = new CachedApi{type, api, known.load(std::memory_order_acquire)};
    Py_INCREF(type);
    while (!known.compare_exchange_weak(added->next, added, std::memory_order_acq_rel)) {
    }
    return api;
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

void check_versioned(const DLManagedTensorVersioned& m, const ArgName& name) {
    if (m.version.major != 1)
        fail(PyExc_BufferError, name.text() + ": DLPack version " + std::to_string(m.version.major) + "." +
                                    std::to_string(m.version.minor) + ", expected 1.x");
    if ((m.flags & flag_is_copied) != 0)
        fail(PyExc_BufferError, name.text() + ": the DLPack export is a copy, an update would be lost");
}

// PyTorch negates some views lazily (the imaginary part of a conjugate), and its exchange API does not say so. Such a
// view has gaps between its elements and is refused for them, unless it has one element alone.
void check_sign(PyObject* object, const DLTensor& t, const ArgName& name) {
    if (t.ndim > 0 && t.shape == nullptr) return;
    for (std::int32_t i = 0; i < t.ndim; ++i)
        if (t.shape[i] != 1) return;
    if (negated(object))
        fail(PyExc_BufferError, name.text() + ": a view that is negated lazily; pass its resolve_neg()");
}

// Whether a tensor of PyTorch is sparse, which no memory of elements stands behind.
bool sparse(py::handle tensor) {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    const py::object layout = py::getattr(tensor, "layout", py::none());
    const bool found = py::str(layout).cast<std::string>().starts_with("torch.sparse");
    PyErr_Restore(type, value, trace);
    return found;
}

bool of_cuda(std::int64_t device_type) { return device_type == device_cuda || device_type == device_cuda_managed; }

// Throws where no part of this build can reach the memory.
Device device_of(std::int64_t device_type, std::int64_t id, const ArgName& name) {
    if (device_type == device_cpu || device_type == device_cuda_host || device_type == device_rocm_host) return {};
    if (!of_cuda(device_type))
        fail(PyExc_ValueError, name.text() + ": on a device of DLPack type " + std::to_string(device_type) +
                                   ", expected memory of the CPU or of a CUDA device");
    if (cuda_part() == nullptr)
        fail(PyExc_ValueError, name.text() + ": on the device cuda:" + std::to_string(id) +
                                   ", but this build has no CUDA kernels (adaptk.build_info()['cuda'] is None)");
    static std::atomic<int> known{0};
    int devices = known;
    if (id >= devices) {
        if (detail::CudaError error; !cuda_part()->device_count(devices, error))
            fail(PyExc_ValueError, name.text() + ": on the device cuda:" + std::to_string(id) + ", but " + error.text);
        known = devices;
    }
    if (id < 0 || id >= devices)
        fail(PyExc_ValueError, name.text() + ": on the device cuda:" + std::to_string(id) + ", but there are " +
                                   std::to_string(devices) + " CUDA devices here");
    return {true, int(id)};
}

// cudaStreamLegacy and the null stream are the same one here.
void* plain_stream(void* stream) { return reinterpret_cast<std::uintptr_t>(stream) == 1 ? nullptr : stream; }

// As DLPack's protocol in Python names streams.
std::uintptr_t stream_number(void* stream) { return stream == nullptr ? 1 : reinterpret_cast<std::uintptr_t>(stream); }

// (device type, device id) of an object with __dlpack_device__; the id only where it is of a CUDA device.
std::pair<long long, long long> dlpack_device(py::handle object, const ArgName& name) {
    const py::object pair = object.attr("__dlpack_device__")();
    int overflow = 0;
    const auto part = [&](py::ssize_t i) {
        return PyLong_AsLongLongAndOverflow(PyTuple_GET_ITEM(pair.ptr(), i), &overflow);
    };
    const bool is_pair =
        PyTuple_Check(pair.ptr()) && PyTuple_GET_SIZE(pair.ptr()) == 2 && PyLong_Check(PyTuple_GET_ITEM(pair.ptr(), 0));
    const long long kind = is_pair ? part(0) : -1;
    const long long id = is_pair && overflow == 0 && of_cuda(kind) ? part(1) : 0;
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (!is_pair || overflow != 0)
        fail(PyExc_BufferError, name.text() + ": __dlpack_device__ returned " + py::repr(pair).cast<std::string>() +
                                    ", expected (device type, device id)");
    return {kind, id};
}

// What to do about strides that are not the param's.
std::string other_layout(const View& v, const View& param) {
    if (!v.numpy)
        return param.c_order ? "; pass it in C order, in PyTorch its contiguous()"
                             : "; copy it into one like its param";
    if (param.c_order) return "; pass np.ascontiguousarray(...) of it";
    std::int64_t expected = std::int64_t(size_of(param.dtype));
    bool fortran = true;
    for (std::int32_t i = 0; i < param.ndim; ++i) {
        fortran = fortran && (param.shape[i] == 1 || param.strides[i] * param.stride_unit == expected);
        expected *= param.shape[i];
    }
    return fortran ? "; pass np.asfortranarray(...) of it" : "; copy it into np.empty_like(param)";
}

// What a view of a __cuda_array_interface__ holds: the shape and the strides in elements, and the object.
struct CudaInterface {
    py::object object;
    std::vector<std::int64_t> shape, strides;
};

}  // namespace

const NumpyTypes& numpy_types() { return known_types(); }

void prepare_buffers() {
    known_types();
    is_neg_name = interned("is_neg");
}

bool negated(PyObject* tensor) {
    PyObject* const name = is_neg_name;
    if (PyObject_HasAttr(tensor, name) == 0) return false;
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, name));
    if (!answer) throw py::error_already_set();
    return answer.cast<bool>();
}

bool freed(PyObject* tensor, const DLTensor& t) {
    constexpr std::uintptr_t low = std::uintptr_t{1} << 40;
    if (reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset >= low) return false;
    if (t.ndim > 0 && t.shape == nullptr) return false;
    for (std::int32_t i = 0; i < t.ndim; ++i)
        if (t.shape[i] == 0) return false;
    if (t.data == nullptr) return true;
    if (!py::hasattr(tensor, "untyped_storage")) return false;
    return py::handle(tensor).attr("untyped_storage")().attr("nbytes")().cast<std::int64_t>() == 0;
}

const DLPackExchangeAPI* exchange_api_of(PyObject* object) { return exchange_api(Py_TYPE(object)); }

void fail(PyObject* exception, const std::string& message) {
    PyErr_SetString(exception, message.c_str());
    throw py::error_already_set();
}

void fail(const detail::Problem& problem, const ArgName& name) {
    using Kind = detail::Problem::Kind;
    PyObject* const exception = problem.kind == Kind::type     ? PyExc_TypeError
                                : problem.kind == Kind::buffer ? PyExc_BufferError
                                                               : PyExc_ValueError;
    fail(exception, name.text() + ": " + problem.text);
}

void fail_param(const View& v, const ArgName& name) {
    detail::Problem problem = detail::why_no_param(v);
    if (!v.read_only)
        problem.text += v.numpy ? "; make it with np.ascontiguousarray(...) and use the result from then on"
                                : "; make it contiguous first and use the result from then on";
    fail(problem, name);
}

void fail_grad(const View& v, const ArgName& name, const View& param) {
    detail::Problem problem = detail::why_no_grad(v, param);
    if (v.device == param.device && v.same_shape(param)) problem.text += other_layout(v, param);
    fail(problem, name);
}

void fail_state(const View& v, const ArgName& name, const View& param) {
    detail::Problem problem = detail::why_no_state(v, param);
    if (v.dtype == compute_format(param.dtype) && !v.read_only && v.device == param.device && v.same_shape(param))
        problem.text += "; make it in the layout of its param, as np.zeros_like and torch.zeros_like do";
    fail(problem, name);
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

NamedStream& named_stream() {
    thread_local NamedStream named;
    return named;
}

const detail::CudaBackend* cuda_part() {
    // Several threads may look at once; they find the same.
    static std::atomic<const detail::CudaBackend*> known{nullptr};
    static std::atomic<bool> looked{false};
    if (looked) return known;
    const detail::CudaBackend* part = nullptr;
    try {
        const py::object capsule = py::module_::import("adaptk._cuda").attr("backend");
        part = static_cast<const detail::CudaBackend*>(PyCapsule_GetPointer(capsule.ptr(), "adaptk.cuda_backend"));
        if (part == nullptr) throw py::error_already_set();
        if (part->version != detail::cuda_backend_version || part->sizes != detail::sizes_that_cross())
            fail(PyExc_ImportError, "adaptk._cuda is of another build than adaptk._core");
        detail::set_backend(*part);
    } catch (py::error_already_set& e) {
        // Left out of this build. Anything else that keeps it from loading is worth knowing.
        if (!e.matches(PyExc_ModuleNotFoundError)) throw;
    }
    known = part;
    looked = true;
    return part;
}

const detail::CudaBackend& need_cuda_part() {
    const detail::CudaBackend* part = cuda_part();
    if (part == nullptr)
        fail(PyExc_RuntimeError, "this build has no CUDA kernels (adaptk.build_info()['cuda'] is None)");
    return *part;
}

void fail_cuda(const detail::CudaError& error) {
    fail(error.out_of_memory ? PyExc_MemoryError : PyExc_RuntimeError, error.text);
}

void* WorkStream::want(int device) {
    if (device_ < 0) {
        const NamedStream& named = named_stream();
        device_ = device;
        if (named.named && (named.device < 0 || named.device == device)) stream_ = plain_stream(named.stream);
    }
    return stream_;
}

void WorkStream::meet(int device, void* stream) {
    stream = plain_stream(stream);
    const NamedStream& named = named_stream();
    if (device_ < 0 && !(named.named && (named.device < 0 || named.device == device))) {
        device_ = device;
        stream_ = stream;
        return;
    }
    want(device);
    if (stream == stream_ || device != device_) return;
    if (std::find(others_.begin(), others_.end(), stream) == others_.end()) others_.push_back(stream);
}

void WorkStream::order(bool behind) {
    for (void* other : others_) {
        detail::CudaError error;
        if (!need_cuda_part().order(device_, behind ? other : stream_, behind ? stream_ : other, error))
            fail_cuda(error);
    }
}

std::string ArgName::text() const {
    if (label != nullptr) return std::string(name) + label;
    return index < 0 ? std::string(name) : std::string(name) + "[" + std::to_string(index) + "]";
}

void View::swap(View& other) noexcept {
    std::swap(static_cast<detail::TensorView&>(*this), static_cast<detail::TensorView&>(other));
    std::swap(cheap, other.cheap);
    std::swap(numpy, other.numpy);
    std::swap(owner_, other.owner_);
    std::swap(release_, other.release_);
}

bool View::export_tensor(py::handle object, const ArgName& name, WorkStream& work, DLTensor& out) {
    if (const DLPackExchangeAPI* api = exchange_api(Py_TYPE(object.ptr())); api != nullptr) {
        out = exchange_tensor(object.ptr(), *api, name, work);
    } else if (py::hasattr(object, "__dlpack__")) {
        out = dlpack_tensor(object, name, work);
    } else if (py::hasattr(object, "__cuda_array_interface__")) {
        out = cuda_interface_tensor(object, name, work);
    } else {
        return false;
    }
    return true;
}

void View::take(py::handle object, const ArgName& name, View& out, WorkStream& work, bool codes) {
    PyTypeObject* const type = Py_TYPE(object.ptr());
    if (type == ndarray_type() || PyType_IsSubtype(type, ndarray_type()) != 0) {
        if (type != ndarray_type() && py::hasattr(reinterpret_cast<PyObject*>(type), "mask"))
            fail(PyExc_TypeError, name.text() + ": a masked array, whose mask an update would ignore; pass its .data");
        if (!out.from_numpy(object.ptr(), codes)) {
            const auto text = py::str(object.attr("dtype")).cast<std::string>();
            fail(PyExc_TypeError, name.text() + ": dtype " + text + ", " + detail::wanted_types);
        }
        return;
    }
    DLTensor t;
    if (out.export_tensor(object, name, work, t)) {
        const bool cheap = out.cheap;
        const bool read_only = out.read_only;
        out.from_tensor(t, name, codes);
        out.cheap = cheap;
        out.read_only = read_only;
    } else if (py::hasattr(object, "__array_interface__") && !is_numpy_scalar(object)) {
        out.from_array_interface(object, name, codes);
    } else {
        fail(PyExc_TypeError, name.text() + ": " + type_name(object) +
                                  " is not a buffer; expected a NumPy array or an object with __dlpack__" +
                                  (py::hasattr(object, "toarray") ? "; pass its toarray()" : ""));
    }
}

bool View::on_cuda(py::handle object, const ArgName& name) {
    if (PyFloat_Check(object.ptr()) != 0 || PyLong_Check(object.ptr()) != 0) return false;
    PyTypeObject* const type = Py_TYPE(object.ptr());
    if (const DLPackExchangeAPI* api = exchange_api(type); api != nullptr && api->dltensor_from_py_object_no_sync) {
        DLTensor t;
        if (api->dltensor_from_py_object_no_sync(object.ptr(), &t) == 0) return of_cuda(t.device.device_type);
        PyErr_Clear();
        return false;
    }
    if (py::hasattr(object, "__dlpack_device__")) return of_cuda(dlpack_device(object, name).first);
    return py::hasattr(object, "__cuda_array_interface__");
}

DLTensor View::take_tensor(py::handle object, const ArgName& name, WorkStream& work) {
    DLTensor t;
    if (!export_tensor(object, name, work, t)) fail(PyExc_TypeError, name.text() + ": " + type_name(object));
    device = device_of(t.device.device_type, t.device.device_id, name);
    return t;
}

DeviceNumber View::take_number(py::handle object, const ArgName& name, WorkStream& work) {
    const DLTensor t = take_tensor(object, name, work);
    DeviceNumber n;
    n.device = device;
    std::int64_t count = 1;
    for (std::int32_t i = 0; i < t.ndim; ++i) count *= t.shape[i];
    if (count != 1) fail(PyExc_ValueError, name.text() + ": " + std::to_string(count) + " numbers, expected one");
    using detail::ScalarType;
    const bool whole = t.dtype.code == code_int;
    if (t.dtype.lanes != 1 || (t.dtype.bits != 32 && t.dtype.bits != 64) || (!whole && t.dtype.code != code_float))
        fail(PyExc_TypeError, name.text() + ": dtype " + detail::dtype_text(t.dtype) +
                                  ", expected float32, float64, int32 or int64 in the memory of a device");
    n.type = whole ? (t.dtype.bits == 32 ? ScalarType::i32 : ScalarType::i64)
                   : (t.dtype.bits == 32 ? ScalarType::f32 : ScalarType::f64);
    if (t.data == nullptr) fail(PyExc_ValueError, name.text() + ": " + detail::no_memory);
    n.data = static_cast<std::byte*>(t.data) + t.byte_offset;
    if (reinterpret_cast<std::uintptr_t>(n.data) % (t.dtype.bits / 8) != 0)
        fail(PyExc_ValueError, name.text() + ": not on a multiple of its item size, which CUDA needs");
    return n;
}

DeviceIntegers View::take_integers(py::handle object, const ArgName& name, WorkStream& work) {
    DLTensor t;
    if (!export_tensor(object, name, work, t)) fail(PyExc_TypeError, name.text() + ": " + type_name(object));
    DeviceIntegers n;
    n.device = device_of(t.device.device_type, t.device.device_id, name);
    if (t.dtype.code != code_int || t.dtype.lanes != 1 || (t.dtype.bits != 32 && t.dtype.bits != 64))
        fail(PyExc_TypeError, name.text() + ": dtype " + detail::dtype_text(t.dtype) + ", expected int32 or int64");
    if (t.ndim != 1) fail(PyExc_ValueError, name.text() + ": " + std::to_string(t.ndim) + " axes, expected one");
    if (t.strides != nullptr && t.shape[0] > 1 && t.strides[0] != 1)
        fail(PyExc_ValueError, name.text() + ": not contiguous");
    n.wide = t.dtype.bits == 64;
    n.count = t.shape[0];
    if (n.count == 0) return n;
    if (t.data == nullptr) fail(PyExc_ValueError, name.text() + ": " + detail::no_memory);
    n.data = static_cast<std::byte*>(t.data) + t.byte_offset;
    return n;
}

bool View::from_numpy(PyObject* object, bool codes) {
    const auto* a = reinterpret_cast<const ArrayProxy*>(object);
    if (!numpy_dtype(reinterpret_cast<const DescrProxy*>(a->descr), codes, dtype)) return false;
    data = a->data;
    ndim = a->nd;
    shape = reinterpret_cast<const std::int64_t*>(a->dimensions);
    strides = reinterpret_cast<const std::int64_t*>(a->strides);
    stride_unit = 1;
    read_only = (a->flags & npy_writeable) == 0;
    c_order = (a->flags & npy_c_contiguous) != 0;
    cheap = true;
    numpy = true;
    size = 1;
    for (std::int32_t i = 0; i < ndim; ++i) size *= shape[i];
    return true;
}

DLTensor View::exchange_tensor(PyObject* object, const DLPackExchangeAPI& api, const ArgName& name, WorkStream& work) {
    const auto check = [&](int status) {
        if (status == 0) return;
        if (PyErr_Occurred() != nullptr && PyErr_ExceptionMatches(PyExc_Exception) == 0) throw py::error_already_set();
        std::string text = name.text() + ": " + type_name(object) + " cannot be viewed as memory";
        if (sparse(object)) text = name.text() + ": a sparse tensor, expected a dense one; pass its to_dense()";
        if (PyErr_Occurred() == nullptr) fail(PyExc_BufferError, text);
        py::raise_from(PyExc_BufferError, text.c_str());
        throw py::error_already_set();
    };
    DLTensor t;
    if (api.dltensor_from_py_object_no_sync != nullptr) {
        check(api.dltensor_from_py_object_no_sync(object, &t));
        if (freed(object, t)) fail(PyExc_ValueError, name.text() + ": " + detail::no_memory);
        cheap = true;
        check_sign(object, t, name);
    } else {
        DLManagedTensorVersioned* m = nullptr;
        check(api.managed_tensor_from_py_object_no_sync(object, &m));
        owner_ = m;
        release_ = release_managed<DLManagedTensorVersioned>;
        check_versioned(*m, name);
        t = m->dl_tensor;
        read_only = (m->flags & flag_read_only) != 0;
    }
    if (of_cuda(t.device.device_type)) {
        void* stream = nullptr;
        if (api.current_work_stream != nullptr)
            check(api.current_work_stream(t.device.device_type, t.device.device_id, &stream));
        work.meet(t.device.device_id, stream);
    }
    return t;
}

DLTensor View::dlpack_tensor(py::handle object, const ArgName& name, WorkStream& work) {
    // An object may have __dlpack__ and be on a device that this build cannot reach: ask before exporting.
    py::dict options;
    if (py::hasattr(object, "__dlpack_device__")) {
        const auto [kind, id] = dlpack_device(object, name);
        const Device on = device_of(kind, id, name);
        if (on.cuda) options["stream"] = stream_number(work.want(on.id));
    }
    const py::object method = object.attr("__dlpack__");
    py::object capsule;
    try {
        capsule = method(py::arg("max_version") = py::make_tuple(1, 3), **options);
    } catch (py::error_already_set& e) {
        // A producer from before versioned DLPack does not know the argument.
        if (!e.matches(PyExc_TypeError)) throw;
        capsule = method(**options);
    }
    const auto take_capsule = [&]<class M>(const char* fresh, const char* used, M* m) {
        m = static_cast<M*>(PyCapsule_GetPointer(capsule.ptr(), fresh));
        if (m == nullptr || PyCapsule_SetName(capsule.ptr(), used) != 0) throw py::error_already_set();
        owner_ = m;
        release_ = release_managed<M>;
        return m;
    };
    DLTensor t;
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
        auto* m = take_capsule("dltensor_versioned", "used_dltensor_versioned",
                               static_cast<DLManagedTensorVersioned*>(nullptr));
        check_versioned(*m, name);
        t = m->dl_tensor;
        read_only = (m->flags & flag_read_only) != 0;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
        auto* m = take_capsule("dltensor", "used_dltensor", static_cast<DLManagedTensor*>(nullptr));
        t = m->dl_tensor;
    } else {
        fail(PyExc_BufferError, name.text() + ": __dlpack__ returned " + type_name(capsule) +
                                    ", expected a capsule 'dltensor_versioned' or 'dltensor'");
    }
    if (immutable_type(Py_TYPE(object.ptr()))) read_only = true;
    if (of_cuda(t.device.device_type)) work.want(t.device.device_id);
    return t;
}

// Version 3 of the interface that Numba, CuPy and others share; "stream" is where the object's work goes.
DLTensor View::cuda_interface_tensor(py::handle object, const ArgName& name, WorkStream& work) {
    const std::string who = name.text() + ": __cuda_array_interface__";
    const py::object attribute = object.attr("__cuda_array_interface__");
    if (!py::isinstance<py::dict>(attribute)) fail(PyExc_BufferError, who + " is not a dict");
    const py::dict interface(attribute);
    for (const char* key : {"shape", "typestr", "data"})
        if (!interface.contains(key)) fail(PyExc_BufferError, who + " has no '" + key + "'");
    if (interface.contains("mask") && !interface["mask"].is_none())
        fail(PyExc_TypeError, name.text() + ": a masked array, whose mask an update would ignore");
    auto held = std::make_unique<CudaInterface>();
    held->object = py::reinterpret_borrow<py::object>(object);
    DLTensor t{};
    std::optional<std::uintptr_t> stream;
    try {
        const auto type = interface["typestr"].cast<std::string>();
        static const std::pair<const char*, DLDataType> known[] = {
            {"<f4", {code_float, 32, 1}}, {"<f8", {code_float, 64, 1}}, {"<f2", {code_float, 16, 1}},
            {"<i4", {code_int, 32, 1}},   {"<i8", {code_int, 64, 1}},
        };
        const auto* found =
            std::find_if(std::begin(known), std::end(known), [&](const auto& k) { return type == k.first; });
        if (found == std::end(known))
            fail(PyExc_TypeError, name.text() + ": dtype " + type + ", " + detail::wanted_types);
        t.dtype = found->second;
        held->shape = interface["shape"].cast<std::vector<std::int64_t>>();
        const auto pointer = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
        t.data = reinterpret_cast<void*>(pointer.first);
        read_only = pointer.second;
        if (interface.contains("strides") && !interface["strides"].is_none()) {
            held->strides = interface["strides"].cast<std::vector<std::int64_t>>();
            if (held->strides.size() != held->shape.size())
                fail(PyExc_BufferError, who + ": strides of another length");
            const std::int64_t item = t.dtype.bits / 8;
            for (std::int64_t& stride : held->strides) {
                if (stride % item != 0) fail(PyExc_ValueError, name.text() + ": strides that are no multiple of items");
                stride /= item;
            }
            t.strides = held->strides.data();
        }
        if (interface.contains("stream") && !interface["stream"].is_none())
            stream = interface["stream"].cast<std::uintptr_t>();
    } catch (const py::cast_error&) {
        fail(PyExc_BufferError, who + " holds values of other types than its version 3 has");
    }
    t.ndim = std::int32_t(held->shape.size());
    t.shape = held->shape.data();
    t.device = {device_cuda, 0};
    device_of(device_cuda, 0, name);  // throws where there is no device at all
    detail::CudaError error;
    if (t.data != nullptr && !cuda_part()->device_of(t.data, t.device.device_id, error))
        fail(PyExc_RuntimeError, name.text() + ": not in the memory of a CUDA device: " + error.text);
    if (stream) {
        work.meet(t.device.device_id, reinterpret_cast<void*>(*stream));
    } else {
        work.want(t.device.device_id);
    }
    owner_ = held.release();
    release_ = [](void* p) { delete static_cast<CudaInterface*>(p); };
    return t;
}

void View::from_array_interface(py::handle object, const ArgName& name, bool codes) {
    const py::object array = py::module_::import("numpy").attr("asarray")(object);
    if (!from_numpy(array.ptr(), codes)) {
        const auto text = py::str(array.attr("dtype")).cast<std::string>();
        fail(PyExc_TypeError, name.text() + ": dtype " + text + ", " + detail::wanted_types);
    }
    const py::object pointer = py::dict(object.attr("__array_interface__"))["data"];
    if (!py::isinstance<py::tuple>(pointer) ||
        py::tuple(pointer)[0].cast<std::uintptr_t>() != reinterpret_cast<std::uintptr_t>(data))
        fail(PyExc_BufferError, name.text() + ": " + type_name(object) + " cannot be viewed without a copy");
    cheap = false;
    owner_ = py::object(array).release().ptr();
    release_ = [](void* p) { Py_DECREF(static_cast<PyObject*>(p)); };
}

void View::from_tensor(const DLTensor& t, const ArgName& name, bool codes) {
    device = device_of(t.device.device_type, t.device.device_id, name);
    if (const auto problem = detail::read_tensor(t, *this, codes)) fail(*problem, name);
    cheap = false;
}

QuickShape::QuickShape(const View& v) {
    if (!v.c_order || v.ndim > max_axes) return;
    ndim = v.ndim;
    std::copy_n(v.shape, ndim, shape);
}

}  // namespace adaptk::bindings
