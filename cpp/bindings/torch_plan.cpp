#include "torch_plan.hpp"

#include "compiler.hpp"
#include "device_plan.hpp"
#include "kernel_table.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace adaptk::bindings {
namespace {

DLDataType exchange_type(DType type) {
    switch (type) {
    case DType::f32: return {code_float, 32, 1};
    case DType::f64: return {code_float, 64, 1};
    case DType::bf16: return {code_bfloat, 16, 1};
    case DType::f16: return {code_float, 16, 1};
    }
    return {};
}

bool same_type(const DLDataType& a, const DLDataType& b) {
    return a.code == b.code && a.bits == b.bits && a.lanes == 1;
}

// What a tensor beside a param is compared with: the device, the shape and the strides of the param.
struct Layout {
    DLDevice device{};
    std::int32_t ndim = -1;
    std::array<std::int64_t, 8> few{};  // up to four axes: the shape, then the strides
    std::vector<std::int64_t> many;     // more of them

    void assign(const DLTensor& t) {
        device = t.device;
        ndim = t.strides == nullptr ? -1 : t.ndim;
        many.clear();
        for (std::int32_t i = 0; i < ndim; ++i) {
            if (ndim <= 4) {
                few[std::size_t(i)] = t.shape[i];
                few[std::size_t(ndim + i)] = t.strides[i];
            } else {
                many.push_back(t.shape[i]);
            }
        }
        if (ndim > 4) many.insert(many.end(), t.strides, t.strides + ndim);
    }
    bool same(const std::int64_t* shape, const std::int64_t* strides) const {
        const std::int64_t* extents = ndim <= 4 ? few.data() : many.data();
        // Few axes: calls of memcmp would take longer than the comparison.
        for (std::int32_t i = 0; i < ndim; ++i)
            if (shape[i] != extents[i] || strides[i] != extents[ndim + i]) return false;
        return true;
    }
    bool same(const DLTensor& t) const {
        return t.ndim == ndim && t.device.device_type == device.device_type && t.device.device_id == device.device_id &&
               t.strides != nullptr && same(t.shape, t.strides);
    }
};

// Where PyTorch's tensors lie, in a few nanoseconds, where its DLPack exchange and its Python attributes take ten times
// that: the C interface that it has for compiled models, a Python tensor's at::Tensor, which that interface takes, and
// two functions of its C++ interface. adaptk/torch.py finds them and tries them out; without them (all null) tensors
// are looked at by way of DLPack.
struct TorchFace {
    int (*data_ptr)(const void* tensor, void** out) = nullptr;
    int (*numel)(const void* tensor, std::int64_t* out) = nullptr;
    int (*dim)(const void* tensor, std::int64_t* out) = nullptr;
    int (*sizes)(const void* tensor, std::int64_t** out) = nullptr;
    int (*strides)(const void* tensor, std::int64_t** out) = nullptr;
    int (*dtype)(const void* tensor, std::int32_t* out) = nullptr;
    int (*layout)(const void* tensor, std::int32_t* out) = nullptr;
    int (*device_type)(const void* tensor, std::int32_t* out) = nullptr;
    int (*storage_size)(const void* tensor, std::int64_t* out) = nullptr;    // in bytes
    int (*storage_offset)(const void* tensor, std::int64_t* out) = nullptr;  // in elements
    int (*copy)(const void* tensor, void** out) = nullptr;                   // a new at::Tensor, which holds the same
    int (*release)(void* copy) = nullptr;
    const void* (*grad)(const void* impl) = nullptr;  // the at::Tensor within the impl
    void (*bump_version)(const void* tensor) = nullptr;
    std::size_t offset = 0;           // of the at::Tensor in a Python tensor
    const void* undefined = nullptr;  // what the at::Tensor of no tensor holds

    explicit operator bool() const { return data_ptr != nullptr; }
    const void* tensor(PyObject* o) const { return reinterpret_cast<const char*>(o) + offset; }
    static const void* impl(const void* tensor) { return *static_cast<const void* const*>(tensor); }

    // Whether this is a dense tensor with this layout; then also where it lies.
    bool dense(const void* tensor, const Layout& want, void*& data) const {
        std::int64_t axes = -1;
        std::int64_t *shape = nullptr, *steps = nullptr;
        return dim(tensor, &axes) == 0 && axes == want.ndim && sizes(tensor, &shape) == 0 &&
               strides(tensor, &steps) == 0 && want.same(shape, steps) && data_ptr(tensor, &data) == 0;
    }
    // The same of one on the CPU that may be anything.
    bool dense(const void* tensor, const Layout& want, std::int32_t want_type, void*& data) const {
        std::int32_t kind = -1, type = -1, device = -1;
        return layout(tensor, &kind) == 0 && kind == 0 && device_type(tensor, &device) == 0 && device == 0 &&
               dtype(tensor, &type) == 0 && type == want_type && dense(tensor, want, data);
    }
    // Whether the storage of a dense tensor reaches to its end: it may have been freed, or made smaller.
    bool stored(const void* tensor, std::int64_t size, DType type) const {
        std::int64_t bytes = 0, first = 0;
        return size == 0 || (storage_size(tensor, &bytes) == 0 && storage_offset(tensor, &first) == 0 &&
                             first + size <= bytes / std::int64_t(size_of(type)));
    }
    // Whether a tensor that had this memory has it still.
    bool at(PyObject* o, const void* memory) const {
        void* now = nullptr;
        return data_ptr(tensor(o), &now) == 0 && now == memory;
    }
    bool at(PyObject* o, const void* memory, std::int64_t size) const {
        std::int64_t count = 0;
        return at(o, memory) && numel(tensor(o), &count) == 0 && count == size;
    }
};

// References to gradients that Python has no object of.
class HeldTensors {
  public:
    explicit HeldTensors(const TorchFace& face) : face_(face) {}
    ~HeldTensors() {
        for (void* t : held_) face_.release(t);
    }
    HeldTensors(const HeldTensors&) = delete;
    HeldTensors& operator=(const HeldTensors&) = delete;
    bool add(const void* tensor) {
        held_.push_back(nullptr);  // may throw, so before there is anything to lose
        if (face_.copy(tensor, &held_.back()) == 0) return true;
        held_.pop_back();
        return false;
    }

  private:
    const TorchFace& face_;
    std::vector<void*> held_;
};

// Reading a thousand gradients makes a thousand objects that are gone with the step: nothing to look for cycles in. The
// switch is the whole process's: left alone where other threads run meanwhile.
class NoCollection {
  public:
#if defined(Py_GIL_DISABLED)
    NoCollection() = default;
    ~NoCollection() {}
#else
    NoCollection() : was_(PyGC_Disable()) {}
    ~NoCollection() {
        if (was_ != 0) PyGC_Enable();
    }
#endif
    NoCollection(const NoCollection&) = delete;
    NoCollection& operator=(const NoCollection&) = delete;

#if !defined(Py_GIL_DISABLED)
  private:
    int was_;
#endif
};

// Numbers that PyTorch keeps in 0-d tensors beside the states: the count of steps first.
constexpr std::size_t max_numbers = 3;
struct Number {
    PyObject* object = nullptr;
    const DLPackExchangeAPI* api = nullptr;
    void* data = nullptr;
    bool wide = false;  // float64
    bool on_device = false;

    double load() const { return wide ? *static_cast<double*>(data) : double(*static_cast<float*>(data)); }
    // As PyTorch rounds what it stores there.
    double rounded(double x) const { return wide ? x : double(float(x)); }
    void store(double x) const {
        if (wide) {
            *static_cast<double*>(data) = x;
        } else {
            *static_cast<float*>(data) = float(x);
        }
    }
};

// A number that changes with any change of any dict, as long as Python has it; 0 where it does not.
std::uint64_t version_of([[maybe_unused]] PyObject* dict) {
#if PY_VERSION_HEX < 0x030c0000
    return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#else
    return 0;
#endif
}

// What lies in the optimizer's state belongs to the optimizer: between steps it may be freed at any time, to make room
// on a device for example, and nothing here keeps it alive but for tensors on the CPU, until the next step: another one
// could not be told from them in the same place. A pointer to it is looked at only once it has been found in the
// optimizer's state again, and what it points to is held from then on to the end of the step.
constexpr std::size_t max_entries = 8;
struct Tensor {
    py::object param;
    const RuleNames* names = nullptr;  // null: to be bound
    PyObject* state = nullptr;         // its dict in the optimizer's state, or null
    std::uint64_t version = 0;         // of that dict
    std::uint32_t group = 0;
    std::int32_t type = -1;  // PyTorch's number of the dtype of a native tensor
    bool odd = false;        // no plain dense tensors: others stand in for them at each step
    bool fresh = false;      // the momentum buffer of torch's SGD has not seen a gradient yet
    bool loose = false;      // some of the tensors are not among the entries
    bool native = false;     // all of them on the CPU, and looked at by way of TorchFace
    std::uint8_t numbers = 0;
    std::uint8_t entries = 0;                     // of the dict as it was when it was looked at
    std::array<PyObject*, max_entries> values{};  // the objects among them that were values
    std::array<py::object, max_entries> keys;
    std::array<PyObject*, 1 + max_states> object{};  // the param and the states
    TensorStep work{};
    const void* apart = nullptr;  // a gradient that overlaps none of the memory that is written,
    std::int64_t apart_bytes = 0;
    std::uint64_t apart_from = 0;  // as of this TorchPlan::written_count_
    std::array<Number, max_numbers> number{};
    Layout layout;
    Device device;
    const DLPackExchangeAPI* api = nullptr;
    double device_step = 0.0;  // what the device has counted, where it counts
    std::array<py::object, max_states + max_numbers> kept;

    void unbind() {
        names = nullptr;
        kept = {};
    }
    py::tuple buffers() const {
        py::tuple all(names->buffers - 1);
        for (std::size_t b = 0; b + 1 < names->buffers; ++b) all[b] = py::reinterpret_borrow<py::object>(object[b]);
        return all;
    }
    void remember_entries() {
        keys = {};
        values = {};
        entries = 0;
        loose = false;
        version = state == nullptr ? 0 : version_of(state);
        const py::scoped_critical_section locked(state);
        PyObject* key = nullptr;
        PyObject* value = nullptr;
        py::ssize_t position = 0;
        while (state != nullptr && PyDict_Next(state, &position, &key, &value) != 0) {
            if (entries == max_entries) {
                loose = true;
                return;
            }
            keys[entries] = py::reinterpret_borrow<py::object>(key);
            values[entries++] = value;
        }
        const auto there = [&](PyObject* x) { return std::find(values.begin(), values.end(), x) != values.end(); };
        for (std::size_t b = 1; b + 1 < names->buffers; ++b) loose = loose || !there(object[b]);
        for (std::size_t n = 0; n < numbers; ++n) loose = loose || !there(number[n].object);
    }
};

// How PyTorch counts what a rule does.
enum class Counting {
    none,      // not at all: SGD
    buffer,    // by whether there is a momentum buffer
    step,      // in state["step"]
    momentum,  // NAdam: and the product of the momenta so far in state["mu_product"]
    average,   // ASGD: and the rate and the weight of the next step in state["eta"] and state["mu"]
};

Counting counting_of(const RuleInfo& rule) {
    const std::string_view name = rule.name;
    if (name == "sgd") return Counting::none;
    if (name == "momentum" || name == "nesterov") return Counting::buffer;
    if (name == "nadam") return Counting::momentum;
    if (name == "asgd") return Counting::average;
    return Counting::step;
}

// Whether steps of the same number may differ.
bool has_numbers(Counting c) { return c == Counting::momentum || c == Counting::average; }

std::size_t numbers_of(Counting c) {
    switch (c) {
    case Counting::none:
    case Counting::buffer: return 0;
    case Counting::step: return 1;
    case Counting::momentum: return 2;
    case Counting::average: return 3;
    }
    return 0;
}

// What a group runs at this step.
struct Chosen {
    const RuleNames* names;
    Counting counting;
    detail::Segment segment;
    std::vector<DeviceValue> on_device;
};

// A tensor that is stepped, its gradient, and what the step writes into its numbers when it is done.
struct Later {
    std::size_t tensor;
    const void* grad;
    std::int64_t grad_bytes;
    std::array<double, max_numbers> value;
};

// The work on one device.
struct Batch {
    Device device;
    WorkStream stream;
    bool capturing = false;  // the stream is, in a graph
    std::vector<TensorStep> tensors;
    std::vector<detail::Segment> segments;
    std::vector<const Tensor*> lead;  // the first of each segment
    std::int64_t total = 0;
};

// Whether a tensor takes the same step as those of a segment, whose count is left out of the comparison.
bool same_step(const detail::Segment& a, const detail::Segment& b) {
    return a.step == b.step && a.has_memo == b.has_memo && std::memcmp(a.memo, b.memo, sizeof a.memo) == 0 &&
           std::memcmp(a.hyper.value, b.hyper.value, sizeof a.hyper.value) == 0;
}

bool same_numbers(const Tensor& a, const Tensor& b) {
    for (std::size_t n = 0; n < a.numbers; ++n)
        if (a.number[n].load() != b.number[n].load() || a.number[n].wide != b.number[n].wide) return false;
    return true;
}

bool counted_alike(const Tensor& a, const Tensor& b) {
    return (a.numbers > 0 && a.number[0].on_device) == (b.numbers > 0 && b.number[0].on_device);
}

// From so many elements on the GIL is released: a few hundred microseconds, beside which holding a thousand gradients
// costs little.
constexpr std::int64_t long_work = std::int64_t{1} << 18;

bool releases_gil(const std::vector<Batch>& batches) {
    return std::any_of(batches.begin(), batches.end(),
                       [](const Batch& b) { return b.device.cuda || b.total >= long_work; });
}

py::object attribute(PyObject* object, PyObject* name) {
    auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
    if (!value) throw py::error_already_set();
    return value;
}

// As TorchFace::stored, of a plain tensor of PyTorch.
bool stored(PyObject* tensor, std::int64_t size, DType type) {
    const py::handle t(tensor);
    const auto bytes = t.attr("untyped_storage")().attr("nbytes")().cast<std::int64_t>();
    return size == 0 || t.attr("storage_offset")().cast<std::int64_t>() + size <= bytes / std::int64_t(size_of(type));
}

class TorchPlan {
  public:
    // torch.Tensor, the type of nearly all gradients; torch.nn.Parameter, of nearly all params; and the numbers of a
    // TorchFace by their names, or none.
    TorchPlan(const py::type& tensor, const py::type& parameter, const std::map<std::string, std::uintptr_t>& face)
        : tensor_type_(reinterpret_cast<PyTypeObject*>(tensor.ptr())),
          parameter_type_(reinterpret_cast<PyTypeObject*>(parameter.ptr())) {
        if (face.empty()) return;
        const auto set = [&](const char* name, auto& member) {
            const auto found = face.find(name);
            if (found == face.end() || found->second == 0) fail(PyExc_ValueError, std::string("face: has no ") + name);
            member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(found->second);
        };
        set("numel", face_.numel);
        set("dim", face_.dim);
        set("sizes", face_.sizes);
        set("strides", face_.strides);
        set("dtype", face_.dtype);
        set("layout", face_.layout);
        set("device_type", face_.device_type);
        set("storage_size", face_.storage_size);
        set("storage_offset", face_.storage_offset);
        set("new_tensor_handle", face_.copy);
        set("delete_tensor_object", face_.release);
        set("grad", face_.grad);
        set("bump_version", face_.bump_version);
        set("undefined", face_.undefined);
        const void* offset = nullptr;
        set("offset", offset);
        face_.offset = reinterpret_cast<std::uintptr_t>(offset);
        set("data_ptr", face_.data_ptr);
    }
    TorchPlan(const TorchPlan&) = delete;
    TorchPlan& operator=(const TorchPlan&) = delete;
    py::tuple step(const py::object& owner, const py::list& groups, const py::list& rules, const py::dict& state,
                   const py::object& scale, const py::object& clip, bool skip_nonfinite, const py::list& undo);

    // For the garbage collector: a param's hooks may refer to the optimizer, and so to this.
    int traverse(visitproc visit, void* arg) const {
        for (const Tensor& t : tensors_) {
            Py_VISIT(t.param.ptr());
            for (const py::object& o : t.kept) Py_VISIT(o.ptr());
        }
        Py_VISIT(all_params_.ptr());
        return 0;
    }
    void clear() {
        const std::vector<Tensor> tensors = std::exchange(tensors_, {});
        const py::object all = std::exchange(all_params_, py::list());
        group_sizes_.clear();
        seen_state_.clear();
    }

  private:
    TorchFace face_;
    std::vector<Tensor> tensors_;
    std::vector<std::size_t> group_sizes_;
    std::vector<std::pair<PyObject*, PyObject*>> seen_state_;  // keys and values of the optimizer's state, in order
    std::uint64_t state_version_ = 0;
    bool state_known_ = false;  // and that of each bound tensor is among them
    detail::WrittenMemory written_;
    std::vector<std::size_t> indexed_;  // the tensors whose memory written_ knows
    bool moved_ = true;                 // and some of it has moved since
    std::uint64_t written_count_ = 0;   // how often it has been made
    py::list all_params_;
    std::vector<py::object> held_;    // for the length of a step
    std::vector<std::size_t> bound_;  // at this step
    ObjectLock lock_;
    unsigned long busy_ = 0;
    PyTypeObject* tensor_type_;
    PyTypeObject* parameter_type_;
    std::map<int, DevicePlan> devices_;

    void list_params(const std::vector<py::object>& groups);
    void look_at_state(const py::dict& state);
    bool same_state(const py::dict& state);
    void remember_state(const py::dict& state);
    static bool same_entries(Tensor& t);
    bool is_plain(PyObject* o) const { return Py_TYPE(o) == tensor_type_ || Py_TYPE(o) == parameter_type_; }
    bool unchanged(Tensor& t);
    void hold(const Tensor& t);
    void bind(std::size_t i, const py::object& owner, const py::handle& group, const RuleNames& names,
              const py::list& undo);
    static void take_all(const RuleNames& names, std::size_t i, const py::sequence& buffers, TensorStep& work,
                         std::vector<View>& views, WorkStream& stream, Device& device);
    bool find_grad(const Tensor& t, PyObject* grad, TensorStep& work) const;
    void take_grad(Tensor& t, std::size_t i, const py::object& owner, py::object& grad, TensorStep& work,
                   WorkStream& stream, std::vector<View>& views);
    static Chosen choose(const py::handle& rule);
    static std::int64_t count_step(const Tensor& t, const Chosen& c, Later& later);
    static detail::Segment segment_of(const Tensor& t, const Chosen& c, std::int64_t number, Later& later);
    Batch& batch_of(std::vector<Batch>& batches, const Device& device, PyObject* tensor);
    void check_overlap(const std::vector<Later>& later, const std::vector<TensorStep>& odd);
    static double norm_over(std::vector<Batch>& batches, double grad_scale);
    void check_capture(std::vector<Batch>& batches, const std::vector<Chosen>& chosen, bool with_norm,
                       bool skip_nonfinite);
    std::shared_ptr<Report> run_on_device(Batch& b, const std::vector<Chosen>& chosen,
                                          const detail::StepOptions& options);
};

PyObject* grad_name = nullptr;
PyObject* params_name = nullptr;

std::string label_of(std::size_t i) { return "[" + std::to_string(i) + "]"; }

void TorchPlan::list_params(const std::vector<py::object>& groups) {
    std::size_t i = 0;
    bool same = group_sizes_.size() == groups.size();
    std::vector<py::list> params;
    for (const py::object& group : groups) {
        if (PyDict_Check(group.ptr()) == 0) fail(PyExc_TypeError, "param_groups: expected a dict");
        const py::object list = value_of(group.ptr(), params_name);
        if (!list || PyList_Check(list.ptr()) == 0)
            fail(PyExc_TypeError, "param_groups: expected a list under 'params'");
        params.push_back(py::reinterpret_borrow<py::list>(list));
    }
    for (std::size_t g = 0; g < params.size() && same; ++g) {
        const py::scoped_critical_section locked(params[g]);
        same = group_sizes_[g] == params[g].size();
        for (std::size_t k = 0; same && k < group_sizes_[g]; ++k, ++i)
            same = tensors_[i].param.ptr() == PyList_GET_ITEM(params[g].ptr(), py::ssize_t(k));
    }
    if (same) return;
    std::vector<Tensor> tensors;
    std::vector<std::size_t> sizes;
    py::list all;
    for (std::size_t g = 0; g < params.size(); ++g) {
        const std::vector<py::object> of_group = items_of(params[g].ptr());
        sizes.push_back(of_group.size());
        for (const py::object& p : of_group) {
            Tensor& t = tensors.emplace_back();
            t.param = p;
            t.group = std::uint32_t(g);
            all.append(p);
        }
    }
    if (tensors.size() > (std::size_t{1} << 28)) fail(PyExc_ValueError, "params: more than 2**28 tensors");
    tensors_ = std::move(tensors);
    group_sizes_ = std::move(sizes);
    all_params_ = std::move(all);
    seen_state_.clear();
    moved_ = true;
}

// Whether each param has still the state that it had: two comparisons of pointers a param where nothing has changed,
// and nothing that runs Python. If anything else has touched the optimizer's state, all is to be bound again.
void TorchPlan::look_at_state(const py::dict& state) {
    if (same_state(state)) return;
    for (Tensor& t : tensors_) t.unbind();
    remember_state(state);
}

bool TorchPlan::same_state(const py::dict& state) {
    const py::scoped_critical_section locked(state);
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    py::ssize_t position = 0;
    std::size_t i = 0;
    const std::uint64_t version = version_of(state.ptr());
    if (state_known_ && version != 0 && version == state_version_) return true;
    bool same = state_known_ && std::size_t(PyDict_Size(state.ptr())) == seen_state_.size();
    while (same && PyDict_Next(state.ptr(), &position, &key, &value) != 0) {
        same = seen_state_[i].first == key && seen_state_[i].second == value;
        ++i;
    }
    if (!same) return false;
    state_version_ = version;
#if defined(Py_GIL_DISABLED)
    // Found again; from here on nothing else keeps other threads from taking it away.
    for (const Tensor& t : tensors_)
        if (t.names != nullptr && t.state != nullptr) held_.push_back(py::reinterpret_borrow<py::object>(t.state));
#endif
    return true;
}

void TorchPlan::remember_state(const py::dict& state) {
    const py::scoped_critical_section locked(state);
    seen_state_.clear();
    state_version_ = version_of(state.ptr());
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    py::ssize_t position = 0;
    while (PyDict_Next(state.ptr(), &position, &key, &value) != 0) seen_state_.emplace_back(key, value);
    // Python has run since the tensors were bound, and other threads with it.
    std::vector<PyObject*> values;
    values.reserve(seen_state_.size());
    for (const auto& entry : seen_state_) values.push_back(entry.second);
    std::sort(values.begin(), values.end(), std::less<>());
    state_known_ = true;
    for (const Tensor& t : tensors_) {
        if (t.names == nullptr || t.state == nullptr) continue;
        state_known_ = state_known_ && std::binary_search(values.begin(), values.end(), t.state, std::less<>());
    }
}

bool TorchPlan::same_entries(Tensor& t) {
    if (t.state == nullptr) return true;
    const std::uint64_t version = version_of(t.state);
    if (version != 0 && version == t.version) return true;
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    py::ssize_t position = 0;
    std::size_t i = 0;
    while (PyDict_Next(t.state, &position, &key, &value) != 0) {
        if (i == t.entries || t.keys[i].ptr() != key || t.values[i] != value) return false;
        ++i;
    }
    if (i == t.entries) t.version = version;
    return i == t.entries;
}

// Whether the tensors are what they were when they were bound; memory that has moved is taken where it is now.
bool TorchPlan::unchanged(Tensor& t) {
    if (t.loose) return false;
    {
        const py::scoped_critical_section locked(t.state);
        if (!same_entries(t)) return false;
        hold(t);
    }
    DLTensor now;
    const auto look = [&](const DLPackExchangeAPI* api, PyObject* object) {
        if (api->dltensor_from_py_object_no_sync(object, &now) == 0) return true;
        PyErr_Clear();
        return false;
    };
    for (std::size_t n = 0; n < t.numbers; ++n) {
        Number& number = t.number[n];
        if (t.native && face_.at(number.object, number.data)) continue;
        if (Py_TYPE(number.object) != tensor_type_ || !look(number.api, number.object) || now.ndim != 0 ||
            now.dtype.code != code_float || now.dtype.bits != (number.wide ? 64 : 32) || freed(number.object, now) ||
            (now.device.device_type == device_cuda) != number.on_device)
            return false;
        number.data = static_cast<std::byte*>(now.data) + now.byte_offset;
    }
    if (t.odd) return true;
    DType type = t.work.param;
    for (std::size_t b = 0; b + 1 < t.names->buffers; ++b) {
        if (b > 0) {
            type = compute_type(t.work.param);
            if (t.native && face_.at(t.object[b], t.work.buffer[1 + b], t.work.size)) continue;
            // Another object may be where a tensor was.
            if (Py_TYPE(t.object[b]) != tensor_type_) return false;
        }
        void*& data = t.work.buffer[b == 0 ? 0 : 1 + b];
        if (void* same = nullptr;
            t.native && b == 0 && face_.dense(face_.tensor(t.object[0]), t.layout, same) && same == data)
            continue;
        if (!look(t.api, t.object[b]) || !same_type(now.dtype, exchange_type(type)) || !t.layout.same(now))
            return false;
        void* const now_at = static_cast<std::byte*>(now.data) + now.byte_offset;
        if (now_at != data) {
            // Bound again, with an error where the storage was freed. One that is still where it was is whole.
            const bool whole = t.native ? face_.stored(face_.tensor(t.object[b]), t.work.size, type)
                                        : is_plain(t.object[b]) && stored(t.object[b], t.work.size, type);
            if (!whole) return false;
            data = now_at;
            moved_ = true;
        }
    }
    return true;
}

// Without the GIL, and wherever Python runs, other threads may replace what the optimizer's state holds.
void TorchPlan::hold(const Tensor& t) {
    if (t.native) return;  // it keeps them itself
    for (std::size_t b = 1; b + 1 < t.names->buffers; ++b)
        held_.push_back(py::reinterpret_borrow<py::object>(t.object[b]));
    for (std::size_t n = 0; n < t.numbers; ++n) held_.push_back(py::reinterpret_borrow<py::object>(t.number[n].object));
}

// Takes and checks a param, a gradient and the states that stand in for others.
void TorchPlan::take_all(const RuleNames& names, std::size_t i, const py::sequence& buffers, TensorStep& work,
                         std::vector<View>& views, WorkStream& stream, Device& device) {
    const std::string label = label_of(i);
    if (buffers.size() != names.buffers) fail(PyExc_ValueError, "params" + label + ": wrong number of buffers");
    std::vector<View> taken(names.buffers);
    for (std::size_t b = 0; b < names.buffers; ++b) {
        const ArgName name{b == 0 ? "params" : b == 1 ? "grads" : names.buffer_text[b], -1, label.c_str()};
        View::take(py::object(buffers[b]), name, taken[b], stream);
        if (b == 0) {
            check_param(taken[0], name);
        } else if (b == 1) {
            check_grad(taken[1], name, taken[0]);
        } else {
            check_state(taken[b], name, taken[0]);
        }
        work.buffer[b] = taken[b].data;
    }
    work.size = taken[0].size;
    work.param = taken[0].dtype;
    work.grad = taken[1].dtype;
    device = taken[0].device;
    for (View& v : taken) views.push_back(std::move(v));
}

void TorchPlan::bind(std::size_t i, const py::object& owner, const py::handle& group, const RuleNames& names,
                     const py::list& undo) {
    Tensor& t = tensors_[i];
    const std::string label = label_of(i);
    t.names = nullptr;
    bound_.push_back(i);
    const auto tensor_of = [&](PyObject* object) {
        const DLPackExchangeAPI* api = exchange_api_of(object);
        if (api == nullptr || api->dltensor_from_py_object_no_sync == nullptr)
            fail(PyExc_RuntimeError, "this PyTorch has no DLPack exchange API; it came with version 2.10");
        DLTensor now;
        if (api->dltensor_from_py_object_no_sync(object, &now) != 0) throw py::error_already_set();
        return now;
    };
    // (state or None, (param, *states), numbers, odd, fresh)
    const py::tuple bound = owner.attr("_bind")(t.param, group, names.rule->name, "params" + label, undo);
    t.state = bound[0].is_none() ? nullptr : bound[0].ptr();
    held_.emplace_back(bound);
    const py::sequence buffers(bound[1]);
    const py::sequence numbers(bound[2]);
    t.odd = bound[3].cast<bool>();
    t.fresh = bound[4].cast<bool>();
    t.numbers = std::uint8_t(numbers.size());
    if (numbers.size() != numbers_of(counting_of(*names.rule)) || buffers.size() + 1 != names.buffers)
        fail(PyExc_ValueError, "params" + label + ": wrong number of tensors beside it");
    bool native = bool(face_) && !t.odd && is_plain(t.param.ptr());
    for (std::size_t n = 0; n < t.numbers; ++n) {
        const py::object number = numbers[n];
        const DLTensor now = tensor_of(number.ptr());
        if (freed(number.ptr(), now))
            fail(PyExc_ValueError, "a number in the state of params" + label + ": " + detail::no_memory);
        native = native && Py_TYPE(number.ptr()) == tensor_type_ && now.device.device_type == device_cpu;
        const bool on_device = now.device.device_type == device_cuda;
        if (on_device && t.numbers > 1)
            fail(PyExc_ValueError, std::string("capturable: ") + names.rule->name +
                                       " keeps numbers beside the count of steps, and they have to be on the CPU");
        t.number[n] = {number.ptr(), exchange_api_of(number.ptr()), static_cast<std::byte*>(now.data) + now.byte_offset,
                       now.dtype.bits == 64, on_device};
        // The host waits for the device here, once.
        if (on_device) t.device_step = number.attr("item")().cast<double>();
    }
    for (std::size_t b = 0; b < buffers.size(); ++b) t.object[b] = py::object(buffers[b]).ptr();
    if (!t.odd) {
        WorkStream stream;
        std::vector<View> views(buffers.size());
        for (std::size_t b = 0; b < buffers.size(); ++b) {
            const ArgName name{b == 0 ? "params" : names.buffer_text[1 + b], -1, label.c_str()};
            View::take(t.object[b], name, views[b], stream);
            if (b == 0) {
                check_param(views[0], name);
            } else {
                check_state(views[b], name, views[0]);
            }
            owner.attr("_check_storage")(py::handle(t.object[b]), name.text());
            t.work.buffer[b == 0 ? 0 : 1 + b] = views[b].data;
        }
        for (std::size_t b = 1; b < buffers.size(); ++b) native = native && Py_TYPE(t.object[b]) == tensor_type_;
        t.api = exchange_api_of(t.object[0]);
        t.work.size = views[0].size;
        t.work.param = views[0].dtype;
        t.device = views[0].device;
        const DLTensor now = tensor_of(t.object[0]);
        t.layout.assign(now);
        native = native && now.device.device_type == device_cpu && t.object[0] == t.param.ptr() &&
                 face_.dtype(face_.tensor(t.object[0]), &t.type) == 0;
    }
    t.names = &names;
    t.remember_entries();
    // An inference tensor has no count of versions.
    t.native = native && !t.param.attr("is_inference")().cast<bool>();
    t.kept = {};
    if (t.native) {
        for (std::size_t b = 1; b < buffers.size(); ++b)
            t.kept[b - 1] = py::reinterpret_borrow<py::object>(t.object[b]);
        for (std::size_t n = 0; n < t.numbers; ++n)
            t.kept[max_states + n] = py::reinterpret_borrow<py::object>(t.number[n].object);
    }
    moved_ = true;
}

// Not bound if the step comes to nothing: what binding has made is taken back then.
class Bound {
  public:
    Bound(std::vector<Tensor>& tensors, std::vector<std::size_t>& bound, std::vector<py::object>& held)
        : tensors_(tensors), bound_(bound), held_(held) {}
    ~Bound() {
        if (!kept_)
            for (const std::size_t i : bound_) tensors_[i].names = nullptr;
        bound_.clear();
        held_.clear();
    }
    Bound(const Bound&) = delete;
    Bound& operator=(const Bound&) = delete;
    void keep() { kept_ = true; }

  private:
    std::vector<Tensor>& tensors_;
    std::vector<std::size_t>& bound_;
    std::vector<py::object>& held_;
    bool kept_ = false;
};

Chosen TorchPlan::choose(const py::handle& rule) {
    const py::tuple pair = py::reinterpret_borrow<py::tuple>(rule);
    const RuleNames& names = names_of(pair[0].cast<std::string>());
    const py::dict values = pair[1];
    Chosen c{&names, counting_of(*names.rule), {names.rule, names.defaults, 1, 1, false, {}}, {}};
    for (std::size_t h = 0; h < names.hypers; ++h) {
        const py::object value = value_of(values.ptr(), names.hyper[h]);
        if (!value) continue;
        if (View::on_cuda(value, {names.hyper_info[h].name})) {
            c.on_device.push_back({0, std::uint32_t(h), value});
        } else if (PyFloat_Check(value.ptr()) || PyLong_Check(value.ptr()) || !py::hasattr(value, "detach")) {
            c.segment.hyper.value[h] = hyper_value(value.ptr(), names.hyper_info[h]);
        } else {
            // PyTorch warns where a tensor that wants gradients becomes a number.
            c.segment.hyper.value[h] = hyper_value(value.attr("detach")().ptr(), names.hyper_info[h]);
        }
    }
    if (c.on_device.empty()) check_together(*names.rule, c.segment.hyper);
    return c;
}

// The step that a tensor takes, by what PyTorch knows of those before, and what it will know afterwards.
// The number of the step that a tensor takes, by what PyTorch knows of those before.
std::int64_t TorchPlan::count_step(const Tensor& t, const Chosen& c, Later& later) {
    if (c.counting == Counting::none) return 1;
    if (c.counting == Counting::buffer) return t.fresh ? 1 : 2;
    // Tells tensors apart; kernels look at the device's own count.
    if (t.number[0].on_device) return std::int64_t(t.device_step) + 1;
    const double step = t.number[0].rounded(t.number[0].load() + 1.0);
    if (!(step >= 1.0) || step > 0x1p62)
        fail(PyExc_ValueError, "state['step'] of params" + label_of(later.tensor) + ": " + std::to_string(step - 1.0) +
                                   " is no count of steps");
    later.value[0] = step;
    return std::int64_t(step);
}

// That step, and what PyTorch will know of it afterwards.
detail::Segment TorchPlan::segment_of(const Tensor& t, const Chosen& c, std::int64_t number, Later& later) {
    detail::Segment s = c.segment;
    s.step = number;
    const double* h = s.hyper.value;
    const double step = later.value[0];
    if (c.counting == Counting::momentum) {
        // The product is rounded to the type of its tensor at each step, the factor as well.
        const double mu = nadam_detail::mu(h[1], h[4], step);
        const double product = t.number[1].rounded(t.number[1].load() * t.number[1].rounded(mu));
        const NAdam::Memo memo{h[1], h[4], product, number};
        s.has_memo = true;
        std::memcpy(s.memo, &memo, sizeof memo);
        later.value[1] = product;
    } else if (c.counting == Counting::average) {
        // The rate and the weight of this step have been there since the last one: a rate that does not fall, and an
        // age at step 1 whose weight is this one.
        const double lr = h[0];
        later.value[1] = lr / power(1.0 + h[1] * lr * step, h[2]);
        later.value[2] = 1.0 / std::fmax(1.0, step - h[3]);
        s.hyper.value[0] = t.number[1].load();
        s.hyper.value[3] = -1.0 / t.number[2].load();
        s.step = 1;
    }
    return s;
}

// Throws where memory that is written also belongs to another tensor. The index is of the tensors that are stepped:
// what others point to may be theirs no longer.
void TorchPlan::check_overlap(const std::vector<Later>& later, const std::vector<TensorStep>& odd) {
    const auto text = [&](std::uint32_t owner) {
        const Tensor& t = tensors_[owner / 8];
        const std::string of = "params" + label_of(owner / 8);
        if (owner % 8 == 0) return of;
        return (owner % 8 == 1 ? "the gradient" : std::string(t.names->buffer_text[owner % 8])) + " of " + of;
    };
    const auto complain = [&](std::uint32_t x, std::uint32_t y) {
        if (x % 8 == 0 && y % 8 == 0 && tensors_[x / 8].param.is(tensors_[y / 8].param)) fail_twice(text(x), text(y));
        fail(PyExc_ValueError, text(x) + " and " + text(y) + " overlap in memory, and one of them is updated in place");
    };
    bool same = !moved_ && odd.empty() && indexed_.size() == later.size();
    for (std::size_t k = 0; same && k < later.size(); ++k) same = indexed_[k] == later[k].tensor;
    if (!same) {
        std::vector<detail::Extent> extents;
        indexed_.clear();
        auto next_odd = odd.begin();
        for (const Later& l : later) {
            const Tensor& t = tensors_[l.tensor];
            const TensorStep& work = t.odd ? *next_odd++ : t.work;
            indexed_.push_back(l.tensor);
            const auto add = [&](std::size_t buffer, DType type) {
                const auto begin = reinterpret_cast<std::uintptr_t>(work.buffer[buffer]);
                extents.push_back(
                    {begin, begin + std::uintptr_t(work.size) * size_of(type), std::uint32_t(l.tensor * 8 + buffer)});
            };
            add(0, work.param);
            for (std::size_t b = 2; b < t.names->buffers; ++b) add(b, compute_type(work.param));
        }
        detail::Clash clash{};
        moved_ = true;
        ++written_count_;
        if (!written_.assign(std::move(extents), clash)) complain(clash.first, clash.second);
        moved_ = false;
    }
    for (const Later& l : later) {
        Tensor& t = tensors_[l.tensor];
        if (l.grad == t.apart && l.grad_bytes == t.apart_bytes && t.apart_from == written_count_) continue;
        const auto begin = reinterpret_cast<std::uintptr_t>(l.grad);
        if (const auto owner = written_.find(begin, begin + std::uintptr_t(l.grad_bytes));
            owner != detail::WrittenMemory::none)
            complain(std::uint32_t(l.tensor * 8 + 1), owner);
        t.apart = l.grad;
        t.apart_bytes = l.grad_bytes;
        t.apart_from = written_count_;
    }
}

// A graph replays what is put on the stream: nothing that the host counts, decides, waits for or makes once.
void TorchPlan::check_capture(std::vector<Batch>& batches, const std::vector<Chosen>& chosen, bool with_norm,
                              bool skip_nonfinite) {
    for (Batch& b : batches) {
        if (!b.device.cuda) continue;
        const detail::CudaBackend& part = need_cuda_part();
        b.stream.want(b.device.id);
        detail::CudaError error;
        if (!part.capturing(b.device.id, b.stream.stream(), b.capturing, error)) fail_cuda(error);
        DevicePlan& plan = devices_.try_emplace(b.device.id, b.device.id).first->second;
        if (!b.capturing) {
            // A capture later on finds them in place.
            plan.need_reports();
            continue;
        }
        constexpr const char* what = "step() while its stream is captured in a graph: ";
        for (std::size_t s = 0; s < b.segments.size(); ++s) {
            const Tensor& t = *b.lead[s];
            const Counting counting = chosen[t.group].counting;
            if (counting == Counting::buffer && t.fresh)
                fail(PyExc_RuntimeError, std::string(what) + "a momentum buffer begins with the first step, and each "
                                                             "replay would begin it anew; take one step before");
            if (t.numbers > 0 && !t.number[0].on_device)
                fail(PyExc_RuntimeError, std::string(what) + "capturable is False, and the host counts the steps, "
                                                             "whose number each replay would repeat");
        }
        if (skip_nonfinite)
            fail(PyExc_RuntimeError, std::string(what) + "skip_nonfinite waits for what the device finds; leave it "
                                                         "out, or use adaptk.Adam and its like with capturable=True");
        if (with_norm && batches.size() > 1)
            fail(PyExc_RuntimeError, std::string(what) + "clip_norm over params on several devices waits for each");
        if (with_norm && !plan.has_reports())
            fail(PyExc_RuntimeError, std::string(what) + "clip_norm needs memory for its outcome, which cannot be had "
                                                         "now; take one step before");
    }
}

// Puts the step on the device's stream. The outcome is read where the host needs it.
std::shared_ptr<Report> TorchPlan::run_on_device(Batch& b, const std::vector<Chosen>& chosen,
                                                 const detail::StepOptions& options) {
    DevicePlan& plan = devices_.at(b.device.id);
    const auto counts = [&](std::size_t s) { return b.lead[s]->numbers > 0 && b.lead[s]->number[0].on_device; };
    std::shared_ptr<Report> outcome;
    // A call has one count of steps on the device: that of the first of its tensors.
    std::size_t first_tensor = 0;
    for (std::size_t begin = 0, end = 0; begin < b.segments.size(); begin = end) {
        std::size_t tensors = 0;
        for (end = begin; end < b.segments.size() && counts(end) == counts(begin) &&
                          (!counts(end) || b.segments[end].step == b.segments[begin].step);
             ++end)
            tensors += b.segments[end].count;
        std::vector<View> held;
        held.reserve((end - begin) * max_hyperparameters);
        std::vector<detail::DeviceHyper> hypers;
        for (std::size_t s = begin; s < end; ++s) {
            const Chosen& c = chosen[b.lead[s]->group];
            for (const DeviceValue& v : c.on_device) {
                detail::DeviceHyper h{};
                v.resolve(c.names->hyper_info[v.index], b.device, b.stream, held.emplace_back(), h);
                h.segment = std::uint32_t(s - begin);
                hypers.push_back(h);
            }
        }
        detail::CudaStep step{b.device.id,
                              b.stream.stream(),
                              {b.tensors.data() + first_tensor, tensors},
                              {b.segments.data() + begin, end - begin},
                              options};
        step.hypers = hypers;
        step.workspace = plan.workspace();
        if (counts(begin)) {
            const Number& number = b.lead[begin]->number[0];
            step.step = number.data;
            step.step_type = number.wide ? detail::ScalarType::f64 : detail::ScalarType::f32;
        }
        if (options.clip_norm >= 0.0 || options.skip_nonfinite) {
            if (begin > 0 || end < b.segments.size())
                fail(PyExc_ValueError, "clip_norm, skip_nonfinite: params whose counts of steps on the device differ");
            outcome = plan.next_report(b.capturing);
            step.reports = plan.reports().places();
            step.report = Reports::place(*outcome);
        }
        run_on_stream(b.stream,
                      [&](const detail::CudaBackend& p, detail::CudaError& error) { return p.step(step, error); });
        first_tensor += tensors;
    }
    return outcome;
}

// The norm over several devices, which no single kernel sees. Each waits for its result.
double TorchPlan::norm_over(std::vector<Batch>& batches, double grad_scale) {
    double squares = 0.0;
    for (Batch& b : batches) {
        detail::StepReport report;
        if (b.device.cuda) {
            run_on_stream(b.stream, [&](const detail::CudaBackend& part, detail::CudaError& error) {
                return part.global_norm(b.device.id, b.stream.stream(), b.tensors, grad_scale, report, error);
            });
        } else {
            const MaybeReleaseGil released(releases_gil(batches) ? release_gil_from : 0);
            report = detail::global_norm(b.tensors, grad_scale);
        }
        squares += report.grad_norm * report.grad_norm;
    }
    return std::sqrt(squares);
}

// The work of the device that a tensor is on, on the current stream of the tensor's library.
Batch& TorchPlan::batch_of(std::vector<Batch>& batches, const Device& device, PyObject* tensor) {
    for (Batch& b : batches)
        if (b.device == device) return b;
    Batch& added = batches.emplace_back();
    added.device = device;
    added.tensors.reserve(tensors_.size());
    if (device.cuda) {
        const DLPackExchangeAPI* api = exchange_api_of(tensor);
        void* stream = nullptr;
        if (api != nullptr && api->current_work_stream != nullptr) {
            if (api->current_work_stream(device_cuda, device.id, &stream) != 0) throw py::error_already_set();
            added.stream.meet(device.id, stream);
        }
    }
    return added;
}

// Where the gradient lies, if it is a plain tensor with the layout and the type of its param.
bool TorchPlan::find_grad(const Tensor& t, PyObject* grad, TensorStep& work) const {
    if (Py_TYPE(grad) != tensor_type_) return false;
    DLTensor now;
    const DLPackExchangeAPI* api = exchange_api_of(grad);
    if (api == nullptr || api->dltensor_from_py_object_no_sync(grad, &now) != 0) {
        PyErr_Clear();
        return false;
    }
    // Lazily negated tensors are views of imaginary parts, with gaps between them unless there is only one.
    if (!t.layout.same(now) || !same_type(now.dtype, exchange_type(work.param)) || freed(grad, now) ||
        (face_ && !face_.stored(face_.tensor(grad), work.size, work.param)) || (work.size == 1 && negated(grad)))
        return false;
    work.buffer[1] = static_cast<std::byte*>(now.data) + now.byte_offset;
    work.grad = work.param;
    return true;
}

// Where the gradient lies, and its type. One that differs from its param in layout or device is brought into line.
void TorchPlan::take_grad(Tensor& t, std::size_t i, const py::object& owner, py::object& grad, TensorStep& work,
                          WorkStream& stream, std::vector<View>& views) {
    if (find_grad(t, grad.ptr(), work)) return;
    const std::string label = label_of(i);
    const ArgName name{"grads", -1, label.c_str()};
    View param;
    WorkStream unused;
    View::take(t.object[0], name, param, unused);
    grad = owner.attr("_fit")(py::handle(t.object[0]), grad, "params" + label);
    View g;
    View::take(grad, name, g, stream);
    check_grad(g, name, param);
    owner.attr("_check_storage")(grad, name.text());
    work.buffer[1] = g.data;
    work.grad = g.dtype;
    views.push_back(std::move(g));
}

py::tuple TorchPlan::step(const py::object& owner, const py::list& group_list, const py::list& rules,
                          const py::dict& state, const py::object& scale, const py::object& clip, bool skip_nonfinite,
                          const py::list& undo) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    const double grad_scale = scale_value(scale.ptr());
    const std::optional<double> clip_norm = clip_value(clip.ptr());
    const std::vector<py::object> groups = items_of(group_list.ptr());
    list_params(groups);
    if (rules.size() != group_sizes_.size()) fail(PyExc_ValueError, "rules: wrong length");
    std::vector<Chosen> chosen;
    chosen.reserve(rules.size());
    for (const py::object& rule : items_of(rules.ptr())) chosen.push_back(choose(rule));

    const NoCollection no_collection;
    Bound binding(tensors_, bound_, held_);
    look_at_state(state);
    std::vector<py::object> grads(tensors_.size());  // those that Python has an object of
    HeldTensors held_grads(face_);
    std::vector<Batch> batches;
    std::vector<View> views;  // what has to be held until the step is done
    std::vector<Later> later;
    later.reserve(tensors_.size());
    std::vector<py::object> copies;  // what goes back into tensors that others stand in for
    std::vector<TensorStep> odd;
    constexpr Later nobody{~std::size_t{0}, nullptr, 0, {}};
    Later last_of = nobody;
    const auto add = [&](std::size_t i, const TensorStep& work, const Device& device, const WorkStream& stream) {
        Tensor& t = tensors_[i];
        Batch& b =
            batches.size() == 1 && batches[0].device == device ? batches[0] : batch_of(batches, device, t.object[0]);
        if (device.cuda && stream.device() >= 0) b.stream.meet(device.id, stream.stream());
        b.tensors.push_back(work);
        if (sum_overflows(b.total, work.size, b.total))
            fail(PyExc_ValueError, "params: more than 2**63 elements in all");
        Later& after = later.emplace_back();
        after.tensor = i;
        after.grad = work.buffer[1];
        after.grad_bytes = work.size * std::int64_t(size_of(work.grad));
        const Chosen& c = chosen[t.group];
        const std::int64_t number = count_step(t, c, after);
        const bool alike = !b.segments.empty() && b.lead.back()->group == t.group && counted_alike(*b.lead.back(), t);
        if (alike && !has_numbers(c.counting) && b.segments.back().step == number) {
            ++b.segments.back().count;
            return;
        }
        // Most tensors have the numbers of the one before, and so its step, which takes powers to find.
        if (alike && has_numbers(c.counting) && last_of.tensor < i && tensors_[last_of.tensor].group == t.group &&
            tensors_[last_of.tensor].device == device && same_numbers(tensors_[last_of.tensor], t)) {
            after.value = last_of.value;
            last_of.tensor = i;
            ++b.segments.back().count;
            return;
        }
        detail::Segment s = segment_of(t, c, number, after);
        last_of = after;
        if (alike && same_step(b.segments.back(), s)) {
            ++b.segments.back().count;
        } else {
            b.segments.push_back(s);
            b.lead.push_back(&t);
        }
    };
    // Each tensor is looked at and taken while what PyTorch knows of it is in the cache; false where Python has to run,
    // which may change any of them.
    bool all = true;
    const auto take_quickly = [&](std::size_t i) {
        Tensor& t = tensors_[i];
        TensorStep& work = t.work;
        if (t.names != nullptr && t.native) {
            const void* const grad = face_.grad(face_.impl(face_.tensor(t.param.ptr())));
            if (face_.impl(grad) == face_.undefined) {
                all = false;
                return true;
            }
            if (t.names != chosen[t.group].names || !unchanged(t)) return false;
            // Lazily negated tensors are views of imaginary parts, with gaps between them unless there is only one.
            if (work.size != 1 && face_.dense(grad, t.layout, t.type, work.buffer[1]) &&
                face_.stored(grad, work.size, work.param)) {
                work.grad = work.param;
                add(i, work, t.device, WorkStream());
                return true;
            }
            grads[i] = attribute(t.param.ptr(), grad_name);
        } else {
            grads[i] = attribute(t.param.ptr(), grad_name);
            if (grads[i].is_none()) {
                all = false;
                return true;
            }
            if (t.names == nullptr || t.names != chosen[t.group].names || t.odd || !unchanged(t)) return false;
        }
        if (!find_grad(t, grads[i].ptr(), work)) return false;
        add(i, work, t.device, WorkStream());
        return true;
    };
    bool quick = true;
    for (std::size_t i = 0; i < tensors_.size() && quick; ++i) quick = take_quickly(i);
    // While the GIL is held no other thread takes gradients away; where it is not, they are held.
    for (std::size_t k = 0; k < later.size() && quick && releases_gil(batches); ++k)
        if (const Tensor& t = tensors_[later[k].tensor]; t.native && !grads[later[k].tensor])
            quick = held_grads.add(face_.grad(face_.impl(face_.tensor(t.param.ptr()))));
    if (!quick) {
        all = true;
        batches.clear();
        later.clear();
        last_of = nobody;
        for (std::size_t i = 0; i < tensors_.size(); ++i) {
            Tensor& t = tensors_[i];
            grads[i] = attribute(t.param.ptr(), grad_name);
            if (grads[i].is_none()) {
                all = false;
            } else if (t.names != chosen[t.group].names || !unchanged(t)) {
                t.unbind();
            }
        }
        const auto bind_now = [&](std::size_t i) {
            const std::size_t g = tensors_[i].group;
            bind(i, owner, groups[g], *chosen[g].names, undo);
        };
        for (std::size_t i = 0; i < tensors_.size(); ++i)
            if (tensors_[i].names == nullptr && !grads[i].is_none()) bind_now(i);
        for (std::size_t i = 0; i < tensors_.size(); ++i) {
            Tensor& t = tensors_[i];
            if (grads[i].is_none()) continue;
            Device device = t.device;
            WorkStream stream;
            py::object stand_in = py::none();
            if (t.odd) {
                const auto ask = [&] { return owner.attr("_stand_in")(t.buffers(), grads[i], "params" + label_of(i)); };
                stand_in = ask();
                if (stand_in.is_none()) {
                    bind_now(i);
                    device = t.device;
                    if (t.odd) stand_in = ask();
                }
            }
            TensorStep work = t.work;
            if (t.odd) {
                const py::tuple pair = stand_in;
                const py::sequence buffers(pair[0]);
                take_all(*t.names, i, buffers, work, views, stream, device);
                odd.push_back(work);
                grads[i] = buffers;
                if (py::len(pair[1]) > 0) copies.push_back(pair[1]);
            } else {
                take_grad(t, i, owner, grads[i], work, stream, views);
            }
            add(i, work, device, stream);
        }
    }
    if (!bound_.empty()) remember_state(state);
    check_overlap(later, odd);

    detail::StepOptions options;
    options.grad_scale = grad_scale;
    options.clip_norm = clip_norm.value_or(-1.0);
    options.skip_nonfinite = skip_nonfinite;
    check_capture(batches, chosen, clip_norm || skip_nonfinite, skip_nonfinite);
    detail::StepReport report;
    py::object norm = py::none();
    if (batches.empty() && (clip_norm || skip_nonfinite)) norm = py::float_(0.0);
    if (batches.size() > 1 && (clip_norm || skip_nonfinite)) {
        report.grad_norm = norm_over(batches, grad_scale);
        report.skipped = skip_nonfinite && !std::isfinite(report.grad_norm);
        norm = py::float_(report.grad_norm);
        if (clip_norm && report.grad_norm > *clip_norm) options.grad_scale *= *clip_norm / report.grad_norm;
        options.clip_norm = -1.0;
        options.skip_nonfinite = false;
    }
    if (!report.skipped) {
        py::list counts;
        for (const Later& l : later)
            if (const Tensor& t = tensors_[l.tensor]; t.numbers > 0 && t.number[0].on_device)
                counts.append(py::handle(t.number[0].object));
        if (!counts.empty()) owner.attr("_count")(counts, 1);
        try {
            for (Batch& b : batches) {
                if (b.device.cuda) {
                    const std::shared_ptr<Report> outcome = run_on_device(b, chosen, options);
                    if (outcome) norm = py::cast(outcome);
                    if (outcome && options.skip_nonfinite) report.skipped = outcome->read().skipped;
                } else {
                    const MaybeReleaseGil released(releases_gil(batches) ? release_gil_from : 0);
                    report = detail::run_step(b.tensors, b.segments, options);
                }
            }
        } catch (...) {
            if (!counts.empty()) owner.attr("_count")(counts, -1);
            throw;
        }
        if (report.has_norm) norm = py::float_(report.grad_norm);
        if (report.skipped && !counts.empty()) owner.attr("_count")(counts, -1);
    }
    if (report.skipped) return py::make_tuple(py::list(), norm, true);

    for (const Later& l : later) {
        Tensor& t = tensors_[l.tensor];
        if (t.numbers > 0 && t.number[0].on_device) {
            t.device_step += 1.0;
        } else {
            for (std::size_t n = 0; n < t.numbers; ++n) t.number[n].store(l.value[n]);
        }
        if (t.fresh) {
            t.fresh = false;
            if (PyDict_SetItem(t.state, t.names->buffer[2], t.object[1]) != 0) throw py::error_already_set();
            t.remember_entries();
        }
    }
    for (const py::object& c : copies) owner.attr("_put_back")(c);
    binding.keep();
    if (face_) {
        py::list others;
        for (const Later& l : later) {
            const Tensor& t = tensors_[l.tensor];
            if (t.native) {
                face_.bump_version(face_.tensor(t.param.ptr()));
            } else {
                others.append(t.param);
            }
        }
        return py::make_tuple(others, norm, false);
    }
    if (all) return py::make_tuple(all_params_, norm, false);
    py::list updated;
    for (const Later& l : later) updated.append(tensors_[l.tensor].param);
    return py::make_tuple(updated, norm, false);
}

}  // namespace

void register_torch_plan(py::module_& m) {
    grad_name = interned("grad");
    params_name = interned("params");
    const auto collectable = [](PyHeapTypeObject* heap) {
        PyTypeObject& type = heap->ht_type;
        type.tp_flags |= Py_TPFLAGS_HAVE_GC;
        type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
            Py_VISIT(Py_TYPE(self));
            return py::detail::is_holder_constructed(self) ? py::cast<TorchPlan&>(py::handle(self)).traverse(visit, arg)
                                                           : 0;
        };
        type.tp_clear = [](PyObject* self) {
            if (py::detail::is_holder_constructed(self)) py::cast<TorchPlan&>(py::handle(self)).clear();
            return 0;
        };
    };
    py::class_<TorchPlan>(m, "TorchPlan", py::custom_type_setup(collectable))
        .def(py::init<py::type, py::type, std::map<std::string, std::uintptr_t>>(), py::arg("tensor"),
             py::arg("parameter"), py::arg("face"))
        .def("step", &TorchPlan::step, py::arg("owner"), py::arg("groups"), py::arg("rules"), py::arg("state"),
             py::arg("grad_scale"), py::arg("clip_norm"), py::arg("skip_nonfinite"), py::arg("undo"));
}

}  // namespace adaptk::bindings
