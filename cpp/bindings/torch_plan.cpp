#include "torch_plan.hpp"

#include "arguments.hpp"
#include "rows_intake.hpp"
#include "rule_program.hpp"
#include "step_plan.hpp"
#include "stored.hpp"
#include "work.hpp"

#include "adaptk/prefetch.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace adaptk::bindings {
namespace {

using detail::Slot;
using detail::StepPlan;

DLDataType exchange_type(Format format) {
    const detail::FormatInfo& f = info_of(format);
    return {f.dlpack_code, f.dlpack_bits, 1};
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
        return t.ndim == ndim && on_device(t) && t.strides != nullptr && same(t.shape, t.strides);
    }
    // Whether it is a row of so many, in the place of one with the shape.
    bool is_row(const DLTensor& t, std::int64_t count) const {
        return t.ndim == 1 && on_device(t) && t.shape[0] == count && (t.strides == nullptr || t.strides[0] == 1);
    }
    bool on_device(const DLTensor& t) const {
        return t.device.device_type == device.device_type && t.device.device_id == device.device_id;
    }
};

// Where PyTorch's tensors lie, in a few nanoseconds, where its DLPack exchange and its Python attributes take ten times
// that: the C interface that it has for compiled models, a Python tensor's at::Tensor, which that interface takes, and
// two functions of its C++ interface. adaptk/torch/_private.py finds them and tries them out; without them (all null)
// tensors are looked at by way of DLPack.
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
    int (*assign)(const void* from, void* to) = nullptr;                     // one at::Tensor to another
    const void* (*grad)(const void* impl) = nullptr;                         // the at::Tensor within the impl
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
    bool stored(const void* tensor, std::int64_t size, Format format) const {
        std::int64_t bytes = 0, first = 0;
        return size == 0 || (storage_size(tensor, &bytes) == 0 && storage_offset(tensor, &first) == 0 &&
                             first + stored_count(format, size) <= bytes / std::int64_t(size_of(format)));
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

// Gradients for the length of a step: autograd may replace those of the params at any time, for it works without the
// GIL. Each is held in an at::Tensor here, which is a pointer; the room for them stays from step to step.
class HeldGrads {
  public:
    HeldGrads(const TorchFace& face, std::vector<const void*>& room, std::size_t count) : face_(face), room_(room) {
        if (face && room.size() < count) room.resize(count, face.undefined);
    }
    ~HeldGrads() {
        for (std::size_t i = 0; i < held_; ++i) face_.assign(&face_.undefined, &room_[i]);
    }
    HeldGrads(const HeldGrads&) = delete;
    HeldGrads& operator=(const HeldGrads&) = delete;
    // The at::Tensor that holds what `tensor` held; null if it cannot be had.
    const void* hold(const void* tensor) {
        void* const to = &room_[held_];
        if (face_.assign(tensor, to) != 0) return nullptr;
        ++held_;
        return to;
    }

  private:
    const TorchFace& face_;
    std::vector<const void*>& room_;
    std::size_t held_ = 0;
};

// Numbers that PyTorch keeps in 0-d tensors beside the states: the count of steps first.
constexpr std::size_t max_numbers = 1 + max_kept_numbers;
struct Number {
    PyObject* object = nullptr;
    const DLPackExchangeAPI* api = nullptr;
    void* data = nullptr;
    bool wide = false;  // float64
    bool on_device = false;

    double load() const { return wide ? *static_cast<double*>(data) : double(*static_cast<float*>(data)); }
    // As PyTorch rounds what it stores there.
    double rounded(double x) const { return rounded_as(wide, x); }
    detail::DeviceScalar scalar() const { return {data, wide ? detail::ScalarType::f64 : detail::ScalarType::f32}; }
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
constexpr std::size_t max_entries = 12;
struct Tensor {
    py::object param;
    const RuleNames* names = nullptr;  // null: to be bound
    PyObject* state = nullptr;         // its dict in the optimizer's state, or null
    std::uint64_t version = 0;         // of that dict
    std::int32_t type = -1;            // PyTorch's number of the dtype of a native tensor
    bool odd = false;                  // no plain dense tensors: others stand in for them at each step
    bool fresh = false;                // the momentum buffer of torch's SGD has not seen a gradient yet
    bool loose = false;                // some of the tensors are not among the entries
    bool alone = false;                // it is stepped alone, just now
    bool native = false;               // all of them on the CPU, and looked at by way of TorchFace
    bool catches_up = false;           // its group was in that mode when it was bound
    bool counts_rows = false;          // its state has the last step of each row
    std::uint8_t numbers = 0;
    std::uint8_t entries = 0;                     // of the dict as it was when it was looked at
    std::array<PyObject*, max_entries> values{};  // the objects among them that were values
    std::array<py::object, max_entries> keys;
    std::array<PyObject*, 1 + max_states> object{};  // the param and the states
    std::array<PyObject*, 1 + max_states> sides{};   // what lies beside each of them, or null
    std::array<Number, max_numbers> number{};
    Layout layout;
    const DLPackExchangeAPI* api = nullptr;
    double device_step = 0.0;  // what the device has counted, if it counts
    bool counted_on_device() const { return numbers > 0 && number[0].on_device; }
    std::array<py::object, 1 + 2 * max_states + max_numbers> kept;

    void unbind() {
        names = nullptr;
        kept = {};
    }
    py::tuple buffers() const {
        py::tuple all(names->buffers - 1);
        for (std::size_t b = 0; b + 1 < names->buffers; ++b) all[b] = py::reinterpret_borrow<py::object>(object[b]);
        if (sides[0] != nullptr) all[0] = py::make_tuple(all[0], py::reinterpret_borrow<py::object>(sides[0]));
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
        for (std::size_t b = 1; b + 1 < names->buffers; ++b) {
            loose = loose || !there(object[b]);
        }
        for (PyObject* const side : sides)
            if (side != nullptr) loose = loose || !there(side);
        for (std::size_t n = 0; n < numbers; ++n) loose = loose || !there(number[n].object);
    }
};

// How many numbers PyTorch keeps beside the states of a rule. One that counts no steps may have a count all the same,
// for random bits.
std::size_t numbers_of(const RuleInfo& rule) { return rule.step_use == StepUse::number ? 1 + rule.kept_numbers : 0; }

// A tensor that is stepped, and what the step writes into its numbers when it is done.
struct Later {
    std::size_t tensor;
    std::array<double, max_numbers> value;
};

bool same_numbers(const Tensor& a, const Tensor& b) {
    for (std::size_t n = 0; n < a.numbers; ++n)
        if (a.number[n].load() != b.number[n].load() || a.number[n].wide != b.number[n].wide) return false;
    return true;
}

// From so many elements on the GIL is released: a few hundred microseconds.
constexpr std::int64_t long_work = std::int64_t{1} << 18;

bool releases_gil(const StepPlan& plan) { return plan.on_cuda() || plan.elements() >= long_work; }

py::object attribute(PyObject* object, PyObject* name) {
    auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
    if (!value) throw py::error_already_set();
    return value;
}

// As TorchFace::stored, of a plain tensor of PyTorch.
bool stored(PyObject* tensor, std::int64_t size, Format type) {
    const py::handle t(tensor);
    const auto bytes = t.attr("untyped_storage")().attr("nbytes")().cast<std::int64_t>();
    return size == 0 || t.attr("storage_offset")().cast<std::int64_t>() + stored_count(type, size) <=
                            bytes / std::int64_t(size_of(type));
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
        set("assign_tensors", face_.assign);
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
    // StepPlan::measured_by; none: empty.
    std::vector<double> measured(const std::string& rule) const {
        const auto* const found = plan_.measured_by(names_of(rule).rule->program);
        return found == nullptr ? std::vector<double>() : *found;
    }
    // One param alone, with its gradient; returns whether the caller raises its version.
    bool step_param(const py::object& owner, const py::list& groups, const py::object& param, const py::dict& state,
                    const py::list& undo);
    // The same for a queue to do, with a gradient that the caller has; see Part.
    class Part;
    std::unique_ptr<Part> begin_part(const py::object& self, const py::object& owner, const py::list& groups,
                                     const py::object& param, const py::object& grad, const py::dict& state,
                                     const py::list& undo, const py::object& scale, const py::object& clip,
                                     const py::object& norm, const py::object& zero_grad, const py::object& copy_out);
    py::tuple step(const py::object& owner, const py::list& groups, const py::list& rules, const py::dict& state,
                   const py::object& scale, const py::object& clip, bool skip_nonfinite, const py::list& undo,
                   const py::object& zero_grad, const py::object& copy_out, const py::object& ema,
                   const py::object& grad_norm);

    py::list catch_up(const py::object& owner, const py::list& groups, const py::list& rules, const py::dict& state,
                      const py::list& undo);

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
    StepPlan plan_{StepPlan::Watch::taking_part, StepPlan::Counts::caller};
    std::vector<Tensor> tensors_;
    std::vector<const RuleNames*> names_;              // of each group, at this step
    std::vector<std::vector<DeviceValue>> on_device_;  // hyperparameters of each group
    std::vector<ParamFormat> param_formats_;           // of each group
    std::vector<detail::SparseMode> sparse_;           // of each group
    std::vector<std::size_t> group_sizes_;
    std::vector<std::pair<PyObject*, PyObject*>> seen_state_;  // keys and values of the optimizer's state, in order
    std::uint64_t state_version_ = 0;
    bool state_known_ = false;  // and that of each bound tensor is among them
    py::list all_params_;
    std::vector<py::object> held_;                         // for the length of a step
    std::vector<const void*> held_grads_;                  // room of HeldGrads
    std::vector<std::size_t> bound_;                       // at this step
    std::unordered_map<PyObject*, std::size_t> index_of_;  // of a param
    std::size_t parts_ = 0;                                // params that are stepped alone just now
    ObjectLock lock_;
    unsigned long busy_ = 0;
    PyTypeObject* tensor_type_;
    PyTypeObject* parameter_type_;

    // Of the step under way.
    std::vector<Later> later_;
    std::vector<WorkStream> streams_;             // of plan_.shares()
    std::vector<py::object> grads_;               // those that Python has an object of
    std::vector<View> views_;                     // what has to be held until the step is done
    std::vector<std::unique_ptr<RowGrad>> rows_;  // gradients of rows
    std::vector<py::object> copies_;              // what goes back into tensors that others stand in for
    bool all_ = true;                             // every param has a gradient
    bool zero_grad_ = false;
    std::vector<std::size_t> moved_grads_;  // of tensors whose gradient is read elsewhere than where it is

    class StepGuard;
    class Alone;
    std::size_t find_param(const py::list& group_list, const py::object& param);
    detail::Segment segment_of(std::size_t i, Later& later) const;
    Slot take_single(std::size_t i, const py::object& owner, const py::list& groups, const py::object& grad,
                     const py::dict& state, const py::list& undo);
    void count_alone(const Later& later);
    void list_params(const std::vector<py::object>& groups);
    void check_state_unchanged(const py::dict& state);
    bool same_state(const py::dict& state);
    void remember_state(const py::dict& state);
    static bool same_entries(Tensor& t);
    bool is_plain(PyObject* o) const { return Py_TYPE(o) == tensor_type_ || Py_TYPE(o) == parameter_type_; }
    bool unchanged(std::size_t i);
    void hold(const Tensor& t);
    void bind(std::size_t i, const py::object& owner, const py::handle& group, const py::list& undo);
    void choose(std::uint32_t group, const py::handle& rule);
    const RuleNames& names_of_group(std::size_t i) const { return *names_[plan_.group_of(i)]; }
    Device take_all(std::size_t i, const py::sequence& buffers, WorkStream& stream, Slot& grad);
    bool find_grad(std::size_t i, PyObject* grad, void*& data) const;
    Slot take_grad(std::size_t i, const py::object& owner, WorkStream& stream);
    std::int64_t count_step(const Tensor& t, Later& later) const;
    bool lacks_count(std::size_t i) const;
    bool catches_up(std::size_t i) const { return sparse_[plan_.group_of(i)] == detail::SparseMode::catch_up; }
    void take_last_step(std::size_t i, RowGrad& rows) const;
    Format stored_format(std::size_t i) const {
        return info_of(plan_.update(i).dtype()).as_param[std::size_t(param_formats_[plan_.group_of(i)])];
    }
    void add(std::size_t i, const Slot& grad, const WorkStream& stream);
    void add_rows(std::size_t i, const py::object& owner);
    void take_whole(std::size_t i, RowGrad& rows);
    bool take_without_python(std::size_t i, HeldGrads& held);
    bool take_all_without_python(HeldGrads& held);
    void prefetch_objects(std::size_t i) const;
    void take_with_python(const py::object& owner, const std::vector<py::object>& groups, const py::list& undo);
    bool take_stand_ins(std::size_t i, const py::object& owner, const std::vector<py::object>& groups,
                        const py::list& undo, WorkStream& stream, Slot& grad);
    void start_stream(PyObject* tensor);
    WorkStream& stream_of(const Device& device);
    void check_overlap(bool zero_grad);
    py::list take_epilogues(const py::object& owner, const std::vector<py::object>& copies,
                            const std::vector<py::object>& averages);
    void check_captures(const detail::StepOptions& options);
    std::vector<detail::DeviceHyperOfGroup> resolve_hypers(std::vector<View>& held);
    detail::Outcome run(const py::object& owner, const detail::StepOptions& options);
    void finish(const py::object& owner);
    py::object updated();
    py::list nonzero_grads() const;
};

PyObject* grad_name = nullptr;
PyObject* params_name = nullptr;
PyObject* seed_key = nullptr;
PyObject* param_format_key = nullptr;
PyObject* sparse_key = nullptr;
PyObject* last_step_key = nullptr;
PyObject* is_sparse_name = nullptr;

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
            all.append(p);
        }
    }
    if (tensors.size() > (std::size_t{1} << 28)) fail(PyExc_ValueError, "params: more than 2**28 tensors");
    tensors_ = std::move(tensors);
    index_of_.clear();
    for (std::size_t k = 0; k < tensors_.size(); ++k) index_of_[tensors_[k].param.ptr()] = k;
    group_sizes_ = std::move(sizes);
    all_params_ = std::move(all);
    seen_state_.clear();
    names_.assign(params.size(), nullptr);
    on_device_.assign(params.size(), {});
    param_formats_.assign(params.size(), ParamFormat::plain);
    sparse_.assign(params.size(), detail::SparseMode::lazy);
    plan_.clear_tensors();
    for (const std::size_t size : group_sizes_) {
        const std::uint32_t group = plan_.add_group(detail::rules()[0], {});
        for (std::size_t k = 0; k < size; ++k) plan_.add_tensor(group);
    }
}

// Whether each param has still the state that it had: two comparisons of pointers a param where nothing has changed,
// and nothing that runs Python. If anything else has touched the optimizer's state, all is to be bound again.
void TorchPlan::check_state_unchanged(const py::dict& state) {
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
// A rule that counts no steps gets a number for the random bits of its params, if they are rounded stochastically
// since.
bool TorchPlan::lacks_count(std::size_t i) const {
    return tensors_[i].numbers == 0 && info_of(stored_format(i)).stochastic;
}

bool TorchPlan::unchanged(std::size_t i) {
    Tensor& t = tensors_[i];
    if (t.loose || plan_.update(i).format[0] != stored_format(i) || lacks_count(i) || t.catches_up != catches_up(i))
        return false;
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
    const ParamUpdate& update = plan_.update(i);
    if (t.sides[0] != nullptr) {
        if (Py_TYPE(t.sides[0]) != tensor_type_ || !look(t.api, t.sides[0]) || freed(t.sides[0], now) ||
            now.dtype.bits != info_of(update.format[0]).side_bits || !t.layout.same(now) ||
            static_cast<std::byte*>(now.data) + now.byte_offset != update.side[0])
            return false;
    }
    for (std::size_t k = 0; k + 1 < t.names->buffers; ++k) {
        const std::size_t b = k == 0 ? 0 : 1 + k;  // among the update's, where the gradient is number 1
        if (k > 0) {
            if (PyObject* const scales = t.sides[k]; scales != nullptr) {
                if (Py_TYPE(scales) != tensor_type_ || !look(exchange_api_of(scales), scales) || now.ndim != 1 ||
                    std::size_t(now.shape[0]) != side_count(update.format[b], update.size) || freed(scales, now) ||
                    static_cast<std::byte*>(now.data) + now.byte_offset != reinterpret_cast<std::byte*>(update.side[b]))
                    return false;
            }
            if (t.native && face_.at(t.object[k], update.buffer[b], stored_count(update.format[b], update.elements(b))))
                continue;
            // Another object may be where a tensor was.
            if (Py_TYPE(t.object[k]) != tensor_type_) return false;
        }
        if (void* same = nullptr;
            t.native && k == 0 && face_.dense(face_.tensor(t.object[0]), t.layout, same) && same == update.buffer[0])
            continue;
        const Format format = update.format[b];
        if (!look(t.api, t.object[k]) || !same_type(now.dtype, exchange_type(format))) return false;
        if (k > 0 && update.per[k - 1] != Per::element) {
            // Where it was and as large; another shape is found when it has moved.
            std::int64_t count = 1;
            for (std::int32_t axis = 0; axis < now.ndim; ++axis) count *= now.shape[axis];
            if (count != update.elements(b) || static_cast<std::byte*>(now.data) + now.byte_offset != update.buffer[b])
                return false;
            continue;
        }
        if (!(is_packed(format) ? t.layout.is_row(now, stored_count(format, update.elements(b))) : t.layout.same(now)))
            return false;
        void* const now_at = static_cast<std::byte*>(now.data) + now.byte_offset;
        if (now_at != update.buffer[b]) {
            // Bound again, with an error if the storage was freed. One that is still where it was is whole.
            const bool whole = t.native ? face_.stored(face_.tensor(t.object[k]), update.elements(b), format)
                                        : is_plain(t.object[k]) && stored(t.object[k], update.elements(b), format);
            if (!whole) return false;
            plan_.move(i, b, now_at);
        }
    }
    return true;
}

// Without the GIL, and wherever Python runs, other threads may replace what the optimizer's state holds.
void TorchPlan::hold(const Tensor& t) {
    if (t.native) return;  // it keeps them itself
    for (std::size_t b = 1; b + 1 < t.names->buffers; ++b) {
        held_.push_back(py::reinterpret_borrow<py::object>(t.object[b]));
    }
    for (PyObject* const side : t.sides)
        if (side != nullptr) held_.push_back(py::reinterpret_borrow<py::object>(side));
    for (std::size_t n = 0; n < t.numbers; ++n) held_.push_back(py::reinterpret_borrow<py::object>(t.number[n].object));
}

// Takes and checks the buffers that stand in for those of a tensor.
Device TorchPlan::take_all(std::size_t i, const py::sequence& buffers, WorkStream& stream, Slot& grad) {
    const RuleNames& names = names_of_group(i);
    const std::string label = label_of(i);
    if (buffers.size() != names.buffers) fail(PyExc_ValueError, "params" + label + ": wrong number of buffers");
    std::vector<View> taken(names.buffers + 1);  // and what lies beside the param
    ParamUpdate update;
    for (std::size_t b = 0; b < names.buffers; ++b) {
        const ArgName name{b == 0 ? "params" : b == 1 ? "grads" : names.buffer_text[b], -1, label.c_str()};
        const py::object buffer = buffers[b];
        if (b == 0) {
            update.set(
                0, take_param(buffer.ptr(), name, param_formats_[plan_.group_of(i)], taken[0], taken.back(), stream));
            continue;
        }
        View::take(buffer, name, taken[b], stream);
        if (b == 1) {
            check_grad(taken[1], name, taken[0]);
        } else {
            check_state(taken[b], name, taken[0]);
        }
        update.set(b, {taken[b].data, taken[b].dtype});
    }
    update.size = taken[0].size;
    set_shape(update, *names.rule, {"params", -1, label.c_str()}, taken[0]);
    grad = {update.buffer[1], update.format[1]};
    plan_.bind(i, update, taken[0].device);
    const Device device = taken[0].device;
    for (View& v : taken) views_.push_back(std::move(v));
    return device;
}

void TorchPlan::bind(std::size_t i, const py::object& owner, const py::handle& group, const py::list& undo) {
    Tensor& t = tensors_[i];
    const RuleNames& names = names_of_group(i);
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
    // (state or None, (param, *states), numbers, odd, fresh, whether the state has the last step of each row)
    const py::tuple bound = owner.attr("_bind")(t.param, group, names.rule->key, "params" + label, undo);
    t.state = bound[0].is_none() ? nullptr : bound[0].ptr();
    held_.emplace_back(bound);
    const py::sequence buffers(bound[1]);
    const py::sequence numbers(bound[2]);
    t.odd = bound[3].cast<bool>();
    t.fresh = bound[4].cast<bool>();
    t.counts_rows = bound[5].cast<bool>();
    t.catches_up = catches_up(i);
    t.numbers = std::uint8_t(numbers.size());
    if (numbers.size() != std::max(numbers_of(*names.rule), std::min<std::size_t>(numbers.size(), 1)) ||
        buffers.size() + 1 != names.buffers)
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
    std::vector<StoredState> stored(buffers.size());
    t.sides = {};
    for (std::size_t b = 0; b < buffers.size(); ++b) {
        const py::object given = buffers[b];
        const ArgName name{b == 0 ? "params" : names.buffer_text[1 + b], -1, label.c_str()};
        stored[b].data = given;
        if (PyTuple_Check(given.ptr())) stored[b] = read_stored(given.ptr(), name);
        t.object[b] = stored[b].data.ptr();
        t.sides[b] = stored[b].scales.ptr();
    }
    if (!t.odd) {
        WorkStream stream;
        std::vector<View> views(buffers.size()), scales(buffers.size());
        ParamUpdate update;
        for (std::size_t b = 0; b < buffers.size(); ++b) {
            const ArgName name{b == 0 ? "params" : names.buffer_text[1 + b], -1, label.c_str()};
            if (b == 0) {
                const py::object param = buffers[0];
                update.set(
                    0, take_param(param.ptr(), name, param_formats_[plan_.group_of(i)], views[0], scales[0], stream));
            } else {
                update.set(b + 1,
                           take_state_of(*names.rule, b - 1, stored[b], name, views[0], views[b], scales[b], stream));
            }
            if (!face_ || !is_plain(t.object[b]) || is_packed(views[b].dtype) ||
                !face_.stored(face_.tensor(t.object[b]), views[b].size, views[b].dtype))
                owner.attr("_check_storage")(py::handle(t.object[b]), name.text());
        }
        for (std::size_t b = 1; b < buffers.size(); ++b) native = native && Py_TYPE(t.object[b]) == tensor_type_;
        t.api = exchange_api_of(t.object[0]);
        update.size = views[0].size;
        check_rows_of_rule(*names.rule, views[0], {"params", -1, label.c_str()}, update);
        set_shape(update, *names.rule, {"params", -1, label.c_str()}, views[0]);
        plan_.bind(i, update, views[0].device);
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
        for (std::size_t b = 1; b < buffers.size(); ++b) {
            t.kept[b - 1] = py::reinterpret_borrow<py::object>(t.object[b]);
            t.kept[max_states + max_numbers + b] = stored[b].scales;
        }
        t.kept[max_states + max_numbers] = stored[0].scales;
        for (std::size_t n = 0; n < t.numbers; ++n)
            t.kept[max_states + n] = py::reinterpret_borrow<py::object>(t.number[n].object);
    }
}

// What a group runs at this step.
void TorchPlan::choose(std::uint32_t group, const py::handle& rule) {
    const py::tuple pair = py::reinterpret_borrow<py::tuple>(rule);
    const RuleNames& names = names_of(pair[0].cast<std::string>());
    const py::dict values = pair[1];
    detail::HyperValues hyper = names.defaults;
    on_device_[group].clear();
    for (std::size_t h = 0; h < names.hypers; ++h) {
        const py::object value = value_of(values.ptr(), names.hyper[h]);
        if (!value) continue;
        if (View::on_cuda(value, {names.hyper_info[h].name})) {
            on_device_[group].push_back({group, std::uint32_t(h), value});
        } else if (PyFloat_Check(value.ptr()) || PyLong_Check(value.ptr()) || !py::hasattr(value, "detach")) {
            hyper.value[h] = hyper_value(value.ptr(), names.hyper_info[h]);
        } else {
            // PyTorch warns where a tensor that wants gradients becomes a number.
            hyper.value[h] = hyper_value(value.attr("detach")().ptr(), names.hyper_info[h]);
        }
    }
    if (on_device_[group].empty()) check_together(*names.rule, hyper);
    names_[group] = &names;
    plan_.set_rule(group, *names.rule);
    const py::object seed = value_of(values.ptr(), seed_key);
    plan_.seed(group) = seed ? seed_value(seed.ptr()) : 0;
    const py::object format = value_of(values.ptr(), param_format_key);
    param_formats_[group] = format ? param_format_value(format.ptr()) : ParamFormat::plain;
    const py::object sparse = value_of(values.ptr(), sparse_key);
    sparse_[group] = sparse ? sparse_mode_value(sparse.ptr()) : detail::SparseMode::lazy;
    plan_.hyper(group) = hyper;
}

// The number of the step that a tensor takes, by what PyTorch knows of those before.
std::int64_t TorchPlan::count_step(const Tensor& t, Later& later) const {
    const StepUse use = t.names->rule->step_use;
    if (use == StepUse::first && t.fresh && !t.counted_on_device()) {
        later.value[0] = 1.0;
        return 1;
    }
    if (t.numbers == 0) return use == StepUse::none ? 1 : 2;
    // Tells tensors apart; kernels look at the device's own count.
    if (t.number[0].on_device) return std::int64_t(t.device_step) + 1;
    double step = t.number[0].rounded(t.number[0].load() + 1.0);
    // A buffer that was saved without a count has seen a step.
    if (use == StepUse::first && step < 2.0) step = 2.0;
    if (!(step >= 1.0) || step > 0x1p62)
        fail(PyExc_ValueError, "state['step'] of params" + label_of(later.tensor) + ": " + std::to_string(step - 1.0) +
                                   " is no count of steps");
    later.value[0] = step;
    return std::int64_t(step);
}

// The tensor takes part, with this gradient.
void TorchPlan::add(std::size_t i, const Slot& grad, const WorkStream& stream) {
    const Tensor& t = tensors_[i];
    const RuleInfo& rule = *t.names->rule;
    Later* const before = later_.empty() ? nullptr : &later_.back();
    Later after{i, {}};
    const std::int64_t number = count_step(t, after);
    const std::size_t shares = plan_.shares().size();
    bool fits = true;
    if (rule.kept_numbers == 0) {
        fits = plan_.add(i, grad.data, grad.format, number,
                         t.counted_on_device() ? t.number[0].scalar() : detail::DeviceScalar{});
    } else {
        // Most tensors have the numbers of the one before, and so its step, which takes powers to find.
        const bool again = before != nullptr && plan_.group_of(before->tensor) == plan_.group_of(i) &&
                           plan_.device_of(before->tensor) == plan_.device_of(i) &&
                           same_numbers(tensors_[before->tensor], t);
        detail::ContinuedStep step{};
        if (again) {
            // Their values were the same; those after the step are too.
            after.value = before->value;
        } else {
            bool wide[max_kept_numbers] = {};
            for (std::size_t n = 0; n < rule.kept_numbers; ++n) {
                after.value[1 + n] = t.number[1 + n].load();
                wide[n] = t.number[1 + n].wide;
            }
            rule.continue_from(plan_.hyper(plan_.group_of(i)), after.value[0], &after.value[1], wide, step);
            step.drawn_step = number;
        }
        fits = plan_.add(i, grad.data, grad.format, step, again);
    }
    if (!fits) fail(PyExc_ValueError, "params: more than 2**63 elements in all");
    later_.push_back(after);
    const Device device = plan_.device_of(i);
    if (!device.cuda) return;
    check_runs_on_cuda(*names_of_group(i).rule);
    if (plan_.shares().size() > shares) start_stream(t.object[0]);
    if (stream.device() >= 0) stream_of(device).meet(device.id, stream.stream());
}

// The same with a sparse gradient, which has values for some rows.
void TorchPlan::add_rows(std::size_t i, const py::object& owner) {
    const std::string label = label_of(i);
    const ArgName name{"grads", -1, label.c_str()};
    Tensor& t = tensors_[i];
    const py::tuple pair = owner.attr("_rows_of")(t.param, grads_[i], "params" + label, t.odd);
    View param;
    WorkStream stream;
    View::take(t.object[0], name, param, stream);
    if (zero_grad_)
        fail(PyExc_ValueError, "zero_grad: " + name.text() +
                                   " has values for some rows alone, which are made anew for "
                                   "each step; leave it out");
    RowGrad& rows = *rows_.emplace_back(std::make_unique<RowGrad>());
    ParamUpdate update = plan_.update(i);
    const std::uint32_t group = plan_.group_of(i);
    rows.take(pair.ptr(), name, param, sparse_[group], *t.names->rule, plan_.hyper(group), update, stream);
    if (t.counts_rows) take_last_step(i, rows);
    views_.push_back(std::move(param));
    moved_grads_.push_back(i);
    grads_[i] = pair;
    add(i, {nullptr, compute_format(update.format[0])}, stream);
    plan_.set_rows(i, rows.update);
}

void TorchPlan::take_last_step(std::size_t i, RowGrad& rows) const {
    const std::string name = "state['last_step'] of params" + label_of(i);
    const py::object given = value_of(tensors_[i].state, last_step_key);
    if (!given) fail(PyExc_KeyError, name);
    rows.last_step = Integers::take(given, name, true);
    const std::uint32_t group = plan_.group_of(i);
    rows.take_last_step(rows.last_step, name, plan_.rule(group), plan_.hyper(group));
}

// The share that has been begun works on the current stream of its first tensor's library.
void TorchPlan::start_stream(PyObject* tensor) {
    const std::vector<detail::DeviceShare>& shares = plan_.shares();
    streams_.resize(shares.size());
    const DLPackExchangeAPI* api = exchange_api_of(tensor);
    void* stream = nullptr;
    const int device = shares.back().device.id;
    if (api == nullptr || api->current_work_stream == nullptr) return;
    if (api->current_work_stream(device_cuda, device, &stream) != 0) throw py::error_already_set();
    streams_.back().meet(device, stream);
}

WorkStream& TorchPlan::stream_of(const Device& device) {
    std::size_t s = 0;
    while (!(plan_.shares()[s].device == device)) ++s;
    streams_.resize(plan_.shares().size());
    return streams_[s];
}

// If the gradient is a plain tensor with the layout and the dtype of its param: where it lies.
bool TorchPlan::find_grad(std::size_t i, PyObject* grad, void*& data) const {
    if (Py_TYPE(grad) != tensor_type_) return false;
    const Tensor& t = tensors_[i];
    const ParamUpdate& update = plan_.update(i);
    DLTensor now;
    const DLPackExchangeAPI* api = exchange_api_of(grad);
    if (api == nullptr || api->dltensor_from_py_object_no_sync(grad, &now) != 0) {
        PyErr_Clear();
        return false;
    }
    // Lazily negated tensors are views of imaginary parts, with gaps between them unless there is only one.
    if (!t.layout.same(now) || !same_type(now.dtype, exchange_type(update.dtype())) || freed(grad, now) ||
        (face_ && !face_.stored(face_.tensor(grad), update.size, update.dtype())) ||
        (update.size == 1 && negated(grad)))
        return false;
    data = static_cast<std::byte*>(now.data) + now.byte_offset;
    return true;
}

// Where the gradient lies, and its format. One that differs from its param in layout or device is brought into line.
Slot TorchPlan::take_grad(std::size_t i, const py::object& owner, WorkStream& stream) {
    py::object& grad = grads_[i];
    void* data = nullptr;
    if (find_grad(i, grad.ptr(), data)) return {data, plan_.update(i).dtype()};
    const Tensor& t = tensors_[i];
    const std::string label = label_of(i);
    const ArgName name{"grads", -1, label.c_str()};
    View param;
    WorkStream unused;
    View::take(t.object[0], name, param, unused);
    py::object given = grad;
    grad = owner.attr("_fit")(py::handle(t.object[0]), given, "params" + label);
    if (!grad.is(given)) moved_grads_.push_back(i);
    View g;
    View::take(grad, name, g, stream);
    check_grad(g, name, param);
    owner.attr("_check_storage")(grad, name.text());
    const Slot slot{g.data, g.dtype};
    views_.push_back(std::move(g));
    return slot;
}

// Each tensor is looked at and taken while what PyTorch knows of it is in the cache; false if Python has to run, which
// may change any of them.
bool TorchPlan::take_without_python(std::size_t i, HeldGrads& held) {
    Tensor& t = tensors_[i];
    if (t.names != nullptr && t.native) {
        const void* const grad = held.hold(face_.grad(face_.impl(face_.tensor(t.param.ptr()))));
        if (grad == nullptr) return false;
        if (face_.impl(grad) == face_.undefined) {
            all_ = false;
            return true;
        }
        if (t.names != &names_of_group(i) || !unchanged(i) || t.counts_rows) return false;
        const ParamUpdate& update = plan_.update(i);
        void* data = nullptr;
        // As in find_grad().
        if (update.size != 1 && face_.dense(grad, t.layout, t.type, data) &&
            face_.stored(grad, update.size, update.dtype())) {
            add(i, {data, update.dtype()}, WorkStream());
            return true;
        }
        grads_[i] = attribute(t.param.ptr(), grad_name);
    } else {
        grads_[i] = attribute(t.param.ptr(), grad_name);
        if (grads_[i].is_none()) {
            all_ = false;
            return true;
        }
        if (t.names == nullptr || t.names != &names_of_group(i) || t.odd || !unchanged(i) || t.counts_rows)
            return false;
    }
    void* data = nullptr;
    if (!find_grad(i, grads_[i].ptr(), data)) return false;
    add(i, {data, plan_.update(i).dtype()}, WorkStream());
    return true;
}

// Small tensors take most of their time waiting for these lines: first where the Python tensors are, which say where
// PyTorch's own are, and then those.
void TorchPlan::prefetch_objects(std::size_t i) const {
    constexpr std::size_t ahead = 6, impl_bytes = 192;
    const auto each = [&](std::size_t k, const auto& visit) {
        if (k >= tensors_.size() || tensors_[k].names == nullptr || !tensors_[k].native) return;
        const Tensor& t = tensors_[k];
        for (std::size_t b = 0; b + 1 < t.names->buffers; ++b) visit(t.object[b]);
        for (std::size_t n = 0; n < t.numbers; ++n) visit(t.number[n].object);
    };
    each(i + 2 * ahead, [&](PyObject* o) { prefetch<CacheLevel::first>(face_.tensor(o), 0, cache_line); });
    // A native tensor keeps these objects.
    each(i + ahead, [&](PyObject* o) { prefetch<CacheLevel::first>(face_.impl(face_.tensor(o)), 0, impl_bytes); });
}

bool TorchPlan::take_all_without_python(HeldGrads& held) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        prefetch_objects(i);
        if (!take_without_python(i, held)) return false;
    }
    return true;
}

// The same where Python runs in between.
void TorchPlan::take_with_python(const py::object& owner, const std::vector<py::object>& groups, const py::list& undo) {
    all_ = true;
    plan_.begin();
    later_.clear();
    moved_grads_.clear();
    streams_.clear();
    rows_.clear();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        Tensor& t = tensors_[i];
        grads_[i] = attribute(t.param.ptr(), grad_name);
        if (grads_[i].is_none()) {
            all_ = false;
        } else if (t.names != &names_of_group(i) || !unchanged(i)) {
            t.unbind();
        }
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i)
        if (tensors_[i].names == nullptr && !grads_[i].is_none()) bind(i, owner, groups[plan_.group_of(i)], undo);
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        if (grads_[i].is_none()) continue;
        if (attribute(grads_[i].ptr(), is_sparse_name).cast<bool>()) {
            add_rows(i, owner);
            continue;
        }
        WorkStream stream;
        Slot grad;
        if (!tensors_[i].odd || !take_stand_ins(i, owner, groups, undo, stream, grad))
            grad = take_grad(i, owner, stream);
        add(i, grad, stream);
        if (!tensors_[i].counts_rows) continue;
        RowGrad& whole = *rows_.emplace_back(std::make_unique<RowGrad>());
        take_whole(i, whole);
        plan_.set_rows(i, whole.update);
    }
}

// All rows of a tensor, which may have missed steps.
void TorchPlan::take_whole(std::size_t i, RowGrad& rows) {
    const std::string label = label_of(i);
    View param;
    WorkStream stream;
    View::take(tensors_[i].object[0], {"params", -1, label.c_str()}, param, stream);
    ParamUpdate update = plan_.update(i);
    rows.take_whole(param, update);
    take_last_step(i, rows);
    views_.push_back(std::move(param));
}

// Tensors that others stand in for at this step; false if they turn out to need none.
bool TorchPlan::take_stand_ins(std::size_t i, const py::object& owner, const std::vector<py::object>& groups,
                               const py::list& undo, WorkStream& stream, Slot& grad) {
    const Tensor& t = tensors_[i];
    const auto ask = [&] { return owner.attr("_stand_in")(t.buffers(), grads_[i], "params" + label_of(i)); };
    py::object stand_in = ask();
    if (stand_in.is_none()) {
        bind(i, owner, groups[plan_.group_of(i)], undo);
        if (!t.odd) return false;
        stand_in = ask();
    }
    const py::tuple pair = stand_in;
    const py::sequence buffers(pair[0]);
    take_all(i, buffers, stream, grad);
    moved_grads_.push_back(i);
    grads_[i] = buffers;
    if (py::len(pair[1]) > 0) copies_.push_back(pair[1]);
    return true;
}

// What the step writes beside dense params; returns the numbers of the others, which the owner has checked.
py::list TorchPlan::take_epilogues(const py::object& owner, const std::vector<py::object>& copies,
                                   const std::vector<py::object>& averages) {
    py::list others;
    if (copies.empty() && averages.empty()) return others;
    std::vector<bool> stepped(tensors_.size());
    for (const Later& l : later_) stepped[l.tensor] = true;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        Tensor& t = tensors_[i];
        const py::object of[] = {copies.empty() ? py::none() : copies[i], averages.empty() ? py::none() : averages[i]};
        if (of[0].is_none() && of[1].is_none()) continue;
        const std::string label = label_of(i);
        View param;
        WorkStream stream;
        const bool dense = stepped[i] ? !t.odd : owner.attr("_is_plain")(t.param).cast<bool>();
        if (dense) View::take(t.param, {"params", -1, label.c_str()}, param, stream);
        if (!dense || (param.device.cuda && !stepped[i])) {
            for (std::size_t k = 0; k < 2; ++k)
                if (!of[k].is_none())
                    owner.attr("_check_epilogue_tensor")(t.param, of[k], (k == 0 ? "copy_out" : "ema") + label);
            others.append(i);
            continue;
        }
        // One that has been stepped before may have more beside it than its tensor.
        if (!stepped[i] && (t.names == nullptr || t.odd || !unchanged(i))) {
            ParamUpdate update(param.size, param.dtype, param.dtype);
            update.buffer[0] = param.data;
            t.unbind();
            plan_.bind(i, update, param.device);
        }
        const auto take = [&](const py::object& buffer, const char* name) -> Slot {
            if (buffer.is_none()) return {};
            View view;
            const Slot slot = take_epilogue_buffer(buffer, {name, -1, label.c_str()}, param, view, stream);
            owner.attr("_check_storage")(buffer, name + label);
            views_.push_back(std::move(view));
            return slot;
        };
        plan_.set_epilogue(i, {take(of[0], "copy_out"), take(of[1], "ema")});
    }
    return others;
}

// The params whose gradients the step has not set to zero where they are.
py::list TorchPlan::nonzero_grads() const {
    py::list params;
    for (const std::size_t i : moved_grads_) params.append(tensors_[i].param);
    return params;
}

// Throws if memory that is written also belongs to another tensor.
void TorchPlan::check_overlap(bool zero_grad) {
    const auto overlap = plan_.check(zero_grad);
    if (!overlap) return;
    const auto text = [&](const detail::BufferId& b) {
        if (b.buffer >= detail::copy_buffer)
            return (b.buffer == detail::copy_buffer ? "copy_out" : "ema") + label_of(b.tensor);
        const std::string of = "params" + label_of(b.tensor);
        if (b.buffer == 0) return of;
        return (b.buffer == 1 ? "the gradient" : std::string(tensors_[b.tensor].names->buffer_text[b.buffer])) +
               " of " + of;
    };
    const auto& [a, b, same_param] = *overlap;
    if (a.buffer == 0 && b.buffer == 0 && tensors_[a.tensor].param.is(tensors_[b.tensor].param))
        fail_shared_memory(text(a), text(b));
    fail(PyExc_ValueError, text(a) + " and " + text(b) + " overlap in memory, and one of them is updated in place");
}

// A graph replays what is put on the stream: nothing that the host counts, decides, waits for or makes once.
void TorchPlan::check_captures(const detail::StepOptions& options) {
    streams_.resize(plan_.shares().size());
    for (std::size_t s = 0; s < streams_.size(); ++s) {
        detail::DeviceShare& share = plan_.shares()[s];
        if (!share.device.cuda) continue;
        streams_[s].want(share.device.id);
        share.stream = streams_[s].stream();
    }
    {
        const py::gil_scoped_release released;
        plan_.query_captures();
    }
    for (const detail::DeviceShare& share : plan_.shares()) {
        if (!share.device.cuda) continue;
        detail::DeviceState& state = plan_.device_state(share.device.id);
        if (!share.capturing) {
            // A capture later on finds them in place.
            const py::gil_scoped_release released;
            state.need_reports();
            continue;
        }
        constexpr const char* what = "step() while its stream is captured in a graph: ";
        for (const std::uint32_t i : share.tensors) {
            const Tensor& t = tensors_[i];
            if (t.names->rule->step_use == StepUse::first && t.fresh)
                fail(PyExc_RuntimeError, std::string(what) + "a momentum buffer begins with the first step, and each "
                                                             "replay would begin it anew; take one step before");
            if (t.numbers > 0 && !t.number[0].on_device)
                fail(PyExc_RuntimeError, std::string(what) + "capturable is False, and the host counts the steps, "
                                                             "whose number each replay would repeat");
        }
        if (options.skip_nonfinite)
            fail(PyExc_RuntimeError, std::string(what) + "skip_nonfinite waits for what the device finds; leave it "
                                                         "out, or use adaptk.Adam and its like with capturable=True");
        if (options.needs_norm() && plan_.shares().size() > 1)
            fail(PyExc_RuntimeError, std::string(what) + "clip_norm over params on several devices waits for each");
        if (options.needs_norm() && !state.has_reports())
            fail(PyExc_RuntimeError, std::string(what) + "clip_norm needs memory for its outcome, which cannot be had "
                                                         "now; take one step before");
    }
}

std::vector<detail::DeviceHyperOfGroup> TorchPlan::resolve_hypers(std::vector<View>& held) {
    std::vector<detail::DeviceHyperOfGroup> hypers;
    for (std::size_t s = 0; s < plan_.shares().size(); ++s) {
        const detail::DeviceShare& share = plan_.shares()[s];
        if (!share.device.cuda) continue;
        for (std::uint32_t g = 0; g < on_device_.size(); ++g) {
            if (std::find(share.group_of.begin(), share.group_of.end(), g) == share.group_of.end()) continue;
            for (const DeviceValue& v : on_device_[g])
                hypers.push_back(
                    {g, v.index,
                     v.resolve(names_[g]->hyper_info[v.index], share.device, streams_[s], held.emplace_back())});
        }
    }
    return hypers;
}

// Puts the step through. The outcome of a device is waited for only if the host needs it.
detail::Outcome TorchPlan::run(const py::object& owner, const detail::StepOptions& options) {
    detail::Outcome outcome;
    if (!plan_.on_cuda()) {
        const MaybeReleaseGil released(releases_gil(plan_));
        return plan_.run(options);
    }
    check_captures(options);
    std::size_t values = 0;
    for (const auto& of_group : on_device_) values += of_group.size();
    std::vector<View> held;
    held.reserve(values * plan_.shares().size());
    const std::vector<detail::DeviceHyperOfGroup> hypers = resolve_hypers(held);
    py::list counts;
    for (const Later& l : later_)
        if (tensors_[l.tensor].counted_on_device()) counts.append(py::handle(tensors_[l.tensor].number[0].object));
    const auto count = [&](int by) {
        if (!counts.empty()) owner.attr("_count")(counts, by);
    };
    count(1);
    try {
        for (WorkStream& stream : streams_) stream.order(true);
        {
            const py::gil_scoped_release released;
            outcome = plan_.run(options, hypers);
            if (outcome.pending && options.skip_nonfinite) outcome.report.skipped = outcome.pending->read().skipped;
        }
        for (WorkStream& stream : streams_) stream.order(false);
    } catch (...) {
        count(-1);
        throw;
    }
    if (outcome.report.skipped) count(-1);
    return outcome;
}

// What PyTorch is to know of the step.
void TorchPlan::finish(const py::object& owner) {
    for (const Later& l : later_) {
        Tensor& t = tensors_[l.tensor];
        if (t.counted_on_device()) {
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
    for (const py::object& c : copies_) owner.attr("_copy_back")(c);
}

// The params whose versions the caller raises.
py::object TorchPlan::updated() {
    if (!face_ && all_) return all_params_;
    py::list others;
    for (const Later& l : later_) {
        const Tensor& t = tensors_[l.tensor];
        if (face_ && t.native) {
            face_.bump_version(face_.tensor(t.param.ptr()));
        } else {
            others.append(t.param);
        }
    }
    return others;
}

// For the length of a step. If it comes to nothing, what was bound is bound again next time.
class TorchPlan::StepGuard {
  public:
    explicit StepGuard(TorchPlan& plan) : plan_(plan) {
        plan.plan_.begin();
        plan.grads_.assign(plan.tensors_.size(), {});
        plan.moved_grads_.clear();
        plan.all_ = true;
    }
    ~StepGuard() {
        if (!kept_)
            for (const std::size_t i : plan_.bound_) plan_.tensors_[i].names = nullptr;
        plan_.bound_.clear();
        plan_.later_.clear();
        plan_.streams_.clear();
        plan_.rows_.clear();
        // Objects go last: their end may run Python.
        plan_.views_.clear();
        const auto held = std::exchange(plan_.held_, {});
        const auto copies = std::exchange(plan_.copies_, {});
        for (py::object& g : plan_.grads_) g = {};
    }
    StepGuard(const StepGuard&) = delete;
    StepGuard& operator=(const StepGuard&) = delete;
    void keep() { kept_ = true; }

  private:
    TorchPlan& plan_;
    bool kept_ = false;
};

// While a param is stepped alone: others may be too, by other threads, but there is no step of all.
class TorchPlan::Alone {
  public:
    Alone(TorchPlan& plan, std::size_t i) : plan_(plan), tensor_(i) {
        if (plan.busy_ != 0) fail(PyExc_RuntimeError, "step_param() within a step of this optimizer");
        if (plan.tensors_[i].alone)
            fail(PyExc_RuntimeError, "params" + label_of(i) + ": step_param() while it is being stepped");
        plan.tensors_[i].alone = true;
        ++plan.parts_;
        plan.grads_.resize(plan.tensors_.size());
    }
    ~Alone() {
        Tensor& t = plan_.tensors_[tensor_];
        t.alone = false;
        if (!kept_) t.unbind();
        if (--plan_.parts_ > 0) return;
        plan_.bound_.clear();
        const auto held = std::exchange(plan_.held_, {});
        const auto views = std::exchange(plan_.views_, {});
        const auto grads = std::exchange(plan_.grads_, {});
    }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;
    void keep() { kept_ = true; }

  private:
    TorchPlan& plan_;
    std::size_t tensor_;
    bool kept_ = false;
};

// The number of a param, of which nothing but its own place in its group is looked at.
std::size_t TorchPlan::find_param(const py::list& group_list, const py::object& param) {
    const auto known = [&]() -> std::optional<std::size_t> {
        const auto found = index_of_.find(param.ptr());
        if (found == index_of_.end()) return {};
        std::size_t at = found->second;
        const std::uint32_t group = plan_.group_of(at);
        for (std::uint32_t g = 0; g < group; ++g) at -= group_sizes_[g];
        if (group >= group_list.size()) return {};
        const py::object list = value_of(item_of(group_list, group).ptr(), params_name);
        if (!list || PyList_Check(list.ptr()) == 0 || at >= std::size_t(PyList_GET_SIZE(list.ptr())) ||
            PyList_GET_ITEM(list.ptr(), py::ssize_t(at)) != param.ptr())
            return {};
        return found->second;
    };
    if (const auto i = known()) return *i;
    if (parts_ > 0 || busy_ != 0) fail(PyExc_RuntimeError, "step_param(): the param groups have changed during a step");
    list_params(items_of(group_list.ptr()));
    if (const auto i = known()) return *i;
    fail(PyExc_ValueError, "step_param(): the tensor is not among this optimizer's params");
}

// What a param that is stepped alone runs.
detail::Segment TorchPlan::segment_of(std::size_t i, Later& later) const {
    const Tensor& t = tensors_[i];
    const RuleInfo& rule = *t.names->rule;
    const std::uint32_t group = plan_.group_of(i);
    detail::Segment segment{&rule, plan_.hyper(group), count_step(t, later), 1};
    segment.seed = plan_.seed(group);
    if (rule.kept_numbers == 0) return segment;
    bool wide[max_kept_numbers] = {};
    for (std::size_t n = 0; n < rule.kept_numbers; ++n) {
        later.value[1 + n] = t.number[1 + n].load();
        wide[n] = t.number[1 + n].wide;
    }
    detail::ContinuedStep step{};
    rule.continue_from(segment.hyper, later.value[0], &later.value[1], wide, step);
    segment.hyper = step.hyper;
    segment.drawn_step = segment.step;
    segment.step = step.step;
    segment.has_memo = step.has_memo;
    std::memcpy(segment.memo, step.memo, sizeof segment.memo);
    return segment;
}

// Takes a param and its gradient for a step alone.
Slot TorchPlan::take_single(std::size_t i, const py::object& owner, const py::list& group_list, const py::object& given,
                            const py::dict& state, const py::list& undo) {
    const std::uint32_t group = plan_.group_of(i);
    const py::object values = item_of(group_list, group);
    choose(group, owner.attr("_seeded_rule")(values));
    const std::string label = "params" + label_of(i);
    grads_[i] = given;
    if (given.is_none()) fail(PyExc_ValueError, label + ": step_param() of a param without a gradient");
    Tensor& t = tensors_[i];
    if (t.names != names_[group] || value_of(state.ptr(), t.param.ptr()).ptr() != t.state || !unchanged(i)) {
        t.unbind();
        bind(i, owner, values, undo);
    }
    if (t.odd || plan_.device_of(i).cuda || t.counted_on_device() || !on_device_[group].empty())
        fail(PyExc_TypeError, label + ": step_param() is for plain dense tensors on the CPU, with numbers as "
                                      "hyperparameters; take steps of all params");
    if (const detail::Program* const program = plan_.rule(group).program; program != nullptr && program->measures_all())
        fail(PyExc_TypeError, label +
                                  ": step_param(), and the step of each param depends on the gradients of all; take "
                                  "steps of all params");
    if (attribute(grads_[i].ptr(), is_sparse_name).cast<bool>())
        fail(PyExc_TypeError, label + ": step_param() with a sparse gradient; take steps of all params");
    if (t.counts_rows) fail(PyExc_TypeError, label + ": step_param() with sparse='catch_up'; take steps of all params");
    WorkStream stream;
    const Slot grad = take_grad(i, owner, stream);
    if (plan_.check_alone(i, grad))
        fail(PyExc_ValueError, "the gradient of " + label +
                                   " overlaps the param or a state in memory, and they are "
                                   "updated in place");
    return grad;
}

bool TorchPlan::step_param(const py::object& owner, const py::list& group_list, const py::object& param,
                           const py::dict& state, const py::list& undo) {
    const auto locked = lock_.take();
    const std::size_t i = find_param(group_list, param);
    Alone alone(*this, i);
    const Slot grad = take_single(i, owner, group_list, attribute(param.ptr(), grad_name), state, undo);
    Later later{i, {}};
    const detail::Segment segment = segment_of(i, later);
    {
        const MaybeReleaseGil released(plan_.update(i).size >= long_work);
        plan_.run_part(i, grad.data, grad.format, segment, {});
    }
    count_alone(later);
    alone.keep();
    if (!face_ || !tensors_[i].native) return true;
    face_.bump_version(face_.tensor(param.ptr()));
    return false;
}

// What PyTorch is to know of a step alone.
void TorchPlan::count_alone(const Later& later) {
    Tensor& t = tensors_[later.tensor];
    for (std::size_t n = 0; n < t.numbers; ++n) t.number[n].store(later.value[n]);
    if (t.fresh) {
        t.fresh = false;
        if (PyDict_SetItem(t.state, t.names->buffer[2], t.object[1]) != 0) throw py::error_already_set();
        t.remember_entries();
    }
    // A step of all looks at the optimizer's state anew.
    state_known_ = false;
}

// A step of one param that a queue does, between copies from and to a device. Made, ended and finished with the GIL.
class TorchPlan::Part {
  public:
    Part(py::object self, TorchPlan& plan, std::size_t i)
        : self_(std::move(self)), plan_(plan), alone_(std::in_place, plan, i), later_{i, {}} {}
    ~Part() { end(); }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    void start(const py::object& queue, std::uintptr_t event, const py::object& send) {
        task_.start(queue, transfer_of(event, send), [this] {
            const std::size_t i = later_.tensor;
            detail::StepOptions options = options_;
            options.epilogues = {&epilogue_, 1};
            return plan_.plan_.run_part(i, grad_.data, grad_.format, segment_, options);
        });
    }
    // Counts the step, if it was put through; the param may be stepped again then.
    void finish() {
        if (!alone_) return;
        task_.wait();
        const auto locked = plan_.lock_.take();
        if (task_.succeeded()) {
            plan_.count_alone(later_);
            alone_->keep();
        }
        alone_.reset();
    }
    Task& task() { return task_; }

  private:
    friend class TorchPlan;
    void end() {
        task_.wait();
        const auto locked = plan_.lock_.take();
        alone_.reset();
    }
    py::object self_;  // keeps the plan
    TorchPlan& plan_;
    std::optional<Alone> alone_;
    Later later_;
    Slot grad_;
    detail::Segment segment_;
    detail::StepOptions options_;
    detail::Epilogue epilogue_;
    Task task_;
};

std::unique_ptr<TorchPlan::Part> TorchPlan::begin_part(const py::object& self, const py::object& owner,
                                                       const py::list& group_list, const py::object& param,
                                                       const py::object& grad, const py::dict& state,
                                                       const py::list& undo, const py::object& scale,
                                                       const py::object& clip, const py::object& norm,
                                                       const py::object& zero_grad, const py::object& copy_out) {
    const auto locked = lock_.take();
    const std::size_t i = find_param(group_list, param);
    auto part = std::make_unique<Part>(self, *this, i);
    part->grad_ = take_single(i, owner, group_list, grad, state, undo);
    part->segment_ = segment_of(i, part->later_);
    detail::StepOptions& options = part->options_;
    options.grad_scale = scale_value(scale.ptr());
    options.clip_norm = clip_value(clip.ptr()).value_or(-1.0);
    options.zero_grad = bool_value(zero_grad.ptr(), "zero_grad");
    const std::optional<double> known_norm = norm_value(norm.ptr());
    options.has_norm = known_norm.has_value();
    options.known_norm = known_norm.value_or(0.0);
    if (copy_out.is_none()) return part;
    const std::string label = label_of(i);
    View view, of;
    WorkStream stream;
    View::take(param, {"params", -1, label.c_str()}, of, stream);
    part->epilogue_.copy = take_epilogue_buffer(copy_out, {"copy_out", -1, label.c_str()}, of, view, stream);
    views_.push_back(std::move(view));
    return part;
}

py::tuple TorchPlan::step(const py::object& owner, const py::list& group_list, const py::list& rules,
                          const py::dict& state, const py::object& scale, const py::object& clip, bool skip_nonfinite,
                          const py::list& undo, const py::object& zero_grad, const py::object& copy_out,
                          const py::object& ema, const py::object& grad_norm) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (parts_ > 0) fail(PyExc_RuntimeError, "step() while another thread steps a param of this optimizer alone");
    detail::StepOptions options;
    options.grad_scale = scale_value(scale.ptr());
    options.clip_norm = clip_value(clip.ptr()).value_or(-1.0);
    options.skip_nonfinite = skip_nonfinite;
    options.zero_grad = bool_value(zero_grad.ptr(), "zero_grad");
    const std::optional<double> known_norm = norm_value(grad_norm.ptr());
    options.has_norm = known_norm.has_value();
    options.known_norm = known_norm.value_or(0.0);
    const std::optional<Ema> averages = ema_value(ema.ptr());
    if (averages) options.average_decay = averages->decay;
    const std::vector<py::object> groups = items_of(group_list.ptr());
    list_params(groups);
    if (rules.size() != group_sizes_.size()) fail(PyExc_ValueError, "rules: wrong length");
    std::uint32_t group = 0;
    for (const py::object& rule : items_of(rules.ptr())) choose(group++, rule);

    const std::vector<py::object> copies = listed_beside(copy_out, "copy_out", "tensors", tensors_.size());
    const std::vector<py::object> of_ema =
        listed_beside(averages ? averages->buffers : py::none(), "ema", "tensors", tensors_.size());

    StepGuard under_way(*this);
    zero_grad_ = options.zero_grad;
    check_state_unchanged(state);
    HeldGrads held(face_, held_grads_, tensors_.size());
    if (!take_all_without_python(held)) take_with_python(owner, groups, undo);
    if (!bound_.empty()) remember_state(state);
    const py::list others = take_epilogues(owner, copies, of_ema);
    check_overlap(options.zero_grad);
    if (options.has_norm)
        for (const detail::DeviceShare& share : plan_.shares())
            if (!detail::one_grad_scale(share.segments) ||
                share.segments[0].rule->grad_scale(share.segments[0].hyper) !=
                    plan_.shares()[0].segments[0].rule->grad_scale(plan_.shares()[0].segments[0].hyper))
                fail(PyExc_ValueError, "grad_norm: the groups have different grad_scale, so that the norm of all "
                                       "gradients says nothing of the scaled ones; leave it out");

    const detail::Outcome outcome = run(owner, options);
    const detail::StepReport& report = outcome.report;
    py::object norm = py::none();
    if (outcome.pending) {
        norm = py::cast(outcome.pending);
    } else if (report.has_norm) {
        norm = py::float_(report.grad_norm);
    }
    const py::list nonzero = options.zero_grad ? nonzero_grads() : py::list();
    if (report.skipped) return py::make_tuple(py::list(), norm, true, nonzero, py::list());
    finish(owner);
    under_way.keep();
    return py::make_tuple(updated(), norm, false, nonzero, others);
}

// Rows that have missed steps take them now; the params whose versions the caller raises.
py::list TorchPlan::catch_up(const py::object& owner, const py::list& group_list, const py::list& rules,
                             const py::dict& state, const py::list& undo) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (parts_ > 0) fail(PyExc_RuntimeError, "catch_up() while another thread steps a param of this optimizer alone");
    const std::vector<py::object> groups = items_of(group_list.ptr());
    list_params(groups);
    if (rules.size() != group_sizes_.size()) fail(PyExc_ValueError, "rules: wrong length");
    std::uint32_t group = 0;
    for (const py::object& rule : items_of(rules.ptr())) choose(group++, rule);
    StepGuard under_way(*this);
    check_state_unchanged(state);
    std::vector<std::size_t> which;
    py::list params;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        Tensor& t = tensors_[i];
        if (!catches_up(i) || !value_of(state.ptr(), t.param.ptr())) continue;
        if (t.names != &names_of_group(i) || !unchanged(i)) {
            t.unbind();
            bind(i, owner, groups[plan_.group_of(i)], undo);
        }
        if (!t.counts_rows || t.numbers == 0) continue;
        take_whole(i, *rows_.emplace_back(std::make_unique<RowGrad>()));
        which.push_back(i);
        params.append(t.param);
    }
    if (!bound_.empty()) remember_state(state);
    for (std::size_t n = 0; n < which.size(); ++n) {
        const std::size_t i = which[n];
        const auto run = [&, steps = std::int64_t(tensors_[i].number[0].load())](void* stream) {
            plan_.catch_up_rows_of(i, rows_[n]->update, steps, stream);
        };
        if (!plan_.device_of(i).cuda) {
            const MaybeReleaseGil released(true);
            run(nullptr);
            continue;
        }
        WorkStream stream;
        View param;
        const std::string label = label_of(i);
        View::take(tensors_[i].object[0], {"params", -1, label.c_str()}, param, stream);
        on_stream(stream, [&] { run(stream.stream()); });
    }
    under_way.keep();
    return params;
}

}  // namespace

void register_torch_plan(py::module_& m) {
    grad_name = interned("grad");
    params_name = interned("params");
    seed_key = interned("seed");
    param_format_key = interned("param_format");
    sparse_key = interned("sparse");
    last_step_key = interned("last_step");
    is_sparse_name = interned("is_sparse");
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
    py::class_<TorchPlan::Part>(m, "TorchPart")
        .def("start", &TorchPlan::Part::start, py::arg("queue"), py::arg("event") = 0, py::arg("send") = py::none())
        .def("finish", &TorchPlan::Part::finish)
        .def_property_readonly("succeeded", [](TorchPlan::Part& p) { return p.task().succeeded(); })
        .def_property_readonly("error", [](TorchPlan::Part& p) { return p.task().error(); });
    py::class_<TorchPlan>(m, "TorchPlan", py::custom_type_setup(collectable))
        .def(py::init<py::type, py::type, std::map<std::string, std::uintptr_t>>(), py::arg("tensor"),
             py::arg("parameter"), py::arg("face"))
        .def(
            "begin_part",
            [](const py::object& self, const py::object& owner, const py::list& groups, const py::object& param,
               const py::object& grad, const py::dict& state, const py::list& undo, const py::object& scale,
               const py::object& clip, const py::object& norm, const py::object& zero_grad,
               const py::object& copy_out) {
                return self.cast<TorchPlan&>().begin_part(self, owner, groups, param, grad, state, undo, scale, clip,
                                                          norm, zero_grad, copy_out);
            },
            py::arg("owner"), py::arg("groups"), py::arg("param"), py::arg("grad"), py::arg("state"), py::arg("undo"),
            py::arg("grad_scale") = 1.0, py::arg("clip_norm") = py::none(), py::arg("grad_norm") = py::none(),
            py::arg("zero_grad") = false, py::arg("copy_out") = py::none())
        .def("measured", &TorchPlan::measured, py::arg("rule"))
        .def("catch_up", &TorchPlan::catch_up, py::arg("owner"), py::arg("groups"), py::arg("rules"), py::arg("state"),
             py::arg("undo"))
        .def("step_param", &TorchPlan::step_param, py::arg("owner"), py::arg("groups"), py::arg("param"),
             py::arg("state"), py::arg("undo"))
        .def("step", &TorchPlan::step, py::arg("owner"), py::arg("groups"), py::arg("rules"), py::arg("state"),
             py::arg("grad_scale"), py::arg("clip_norm"), py::arg("skip_nonfinite"), py::arg("undo"),
             py::arg("zero_grad") = false, py::arg("copy_out") = py::none(), py::arg("ema") = py::none(),
             py::arg("grad_norm") = py::none());
}

}  // namespace adaptk::bindings
