#include "plan.hpp"

#include "compiler.hpp"
#include "device_plan.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

namespace adaptk::bindings {
namespace {

// A buffer as it was when it was last checked.
struct Bound {
    py::object object;
    View view;
    std::vector<std::int64_t> layout;  // the view's shape and strides: the object may free the arrays that held them

    Bound() = default;
    explicit Bound(py::object o) : object(std::move(o)) {}
    void keep(View&& v) {
        view = std::move(v);
        layout.assign(view.shape, view.shape + view.ndim);
        if (view.strides != nullptr) layout.insert(layout.end(), view.strides, view.strides + view.ndim);
        view.shape = layout.data();
        if (view.strides != nullptr) view.strides = layout.data() + view.ndim;
    }
    bool same_layout(const View& now) const {
        return now.dtype == view.dtype && now.device == view.device && now.same_shape(view) &&
               now.c_order == view.c_order && now.same_strides(view);
    }
    bool unchanged(const View& now) const { return now.data == view.data && !now.read_only && same_layout(now); }
};

struct Tensor {
    std::size_t group;
    std::int64_t step = 0;  // taken so far
    std::string label;      // "[3]" or "['w']"
    Bound param;
    std::vector<Bound> states;
};

// What a step looks at first, apart from the rest, so that it stays in the cache.
struct Quick {
    QuickShape shape;
    std::uint32_t written = 0;         // buffers in `object`
    PyObject* object[1 + max_states];  // the param and the states; Tensor holds the references
};

struct Group {
    const RuleNames* names;
    std::size_t count;
};

class Plan {
  public:
    explicit Plan(bool capturable) : capturable_(capturable) {}
    void add_group(const std::string& rule, const py::list& params, const py::list& states,
                   const std::vector<std::string>& labels);
    py::tuple step(const py::object& grads, const py::list& groups, const py::object& scale, const py::object& clip,
                   bool skip_nonfinite);
    void begin_lookahead(const py::list& groups);
    void end_lookahead();

    std::vector<std::int64_t> steps() const;
    void set_steps(const py::list& counts, const py::object& taken);
    std::int64_t step_count() const;
    std::size_t size() const;

  private:
    std::vector<Tensor> tensors_;
    std::vector<Group> groups_;
    detail::WrittenMemory written_;
    std::vector<TensorStep> work_;  // of every tensor; the gradients are filled in at each step
    std::vector<Quick> quick_;
    std::vector<std::vector<std::byte>> saved_;  // params outside a look-ahead
    std::int64_t step_count_ = 0;
    ObjectLock lock_;
    unsigned long busy_ = 0;
    bool ahead_ = false;
    bool stale_ = false;  // buffers moved and written_ does not know it yet
    bool capturable_;
    std::unique_ptr<DevicePlan> device_;  // where the params are on a CUDA device

    std::int64_t steps_taken() const;
    ArgName name_of(std::size_t tensor, std::size_t buffer) const;
    static void bind(Tensor& t, const RuleNames& names, TensorStep& work, Quick& quick, WorkStream& stream);
    static bool unchanged(const NumpyTypes& numpy, const Quick& quick, const TensorStep& work);
    void index_memory(std::vector<Tensor>& tensors);
    void refresh(WorkStream& stream);
    void check_group_count(const py::list& groups) const;
    detail::Segment read_group(std::size_t group, const py::handle& values, std::vector<DeviceValue>& on_device) const;
    Device device() const { return tensors_.empty() ? Device{} : tensors_[0].param.view.device; }
    void check_device(const std::vector<Tensor>& tensors) const;
    void count_on_device();
    void bring_counts_back(std::vector<Tensor>& tensors);
    TensorStep lookahead_step(std::size_t i) const;
    void look_ahead_on_device(const std::vector<double>& factor, WorkStream& stream);
    // The work of a step on a device: its outcome, where there is one to wait for.
    std::shared_ptr<Report> step_on_device(const std::vector<TensorStep>& tensors,
                                           std::vector<detail::Segment> segments, const std::vector<std::size_t>& which,
                                           const detail::StepOptions& options, const std::vector<DeviceValue>& values,
                                           WorkStream& stream);
};

ArgName Plan::name_of(std::size_t tensor, std::size_t buffer) const {
    const Tensor& t = tensors_[tensor];
    const char* name = buffer == 0 ? "params" : buffer == 1 ? "grads" : groups_[t.group].names->buffer_text[buffer];
    return {name, -1, t.label.c_str()};
}

void Plan::bind(Tensor& t, const RuleNames& names, TensorStep& work, Quick& quick, WorkStream& stream) {
    const ArgName param_name{"params", -1, t.label.c_str()};
    View param;
    View::take(t.param.object, param_name, param, stream);
    check_param(param, param_name);
    std::vector<View> states(t.states.size());
    for (std::size_t s = 0; s < states.size(); ++s) {
        const ArgName name{names.buffer_text[2 + s], -1, t.label.c_str()};
        View::take(t.states[s].object, name, states[s], stream);
        check_state(states[s], name, param);
    }
    work.buffer[0] = param.data;
    work.size = param.size;
    work.param = param.dtype;
    quick.shape = QuickShape(param);
    quick.object[0] = t.param.object.ptr();
    for (std::size_t s = 0; s < states.size(); ++s) quick.object[1 + s] = t.states[s].object.ptr();
    quick.written = std::uint32_t(1 + states.size());
    t.param.keep(std::move(param));
    for (std::size_t s = 0; s < states.size(); ++s) {
        work.buffer[2 + s] = states[s].data;
        t.states[s].keep(std::move(states[s]));
    }
}

void Plan::index_memory(std::vector<Tensor>& tensors) {
    std::vector<detail::Extent> extents;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const auto owner = std::uint32_t(i * 8);
        extents.push_back({tensors[i].param.view.begin(), tensors[i].param.view.end(), owner});
        for (std::size_t s = 0; s < tensors[i].states.size(); ++s) {
            const View& v = tensors[i].states[s].view;
            extents.push_back({v.begin(), v.end(), owner + 2 + std::uint32_t(s)});
        }
    }
    detail::Clash clash{};
    if (!written_.assign(std::move(extents), clash)) {
        const auto text = [&](std::uint32_t owner) {
            const std::string name = owner % 8 == 0 ? "params" : "a state of params";
            return name + tensors[owner / 8].label;
        };
        const View& a = tensors[clash.first / 8].param.view;
        const View& b = tensors[clash.second / 8].param.view;
        if (clash.first % 8 == 0 && clash.second % 8 == 0 && a.begin() == b.begin() && a.end() == b.end())
            fail_twice(text(clash.first), text(clash.second));
        fail(PyExc_ValueError,
             text(clash.first) + " and " + text(clash.second) + " overlap in memory, and both are updated in place");
    }
}

void Plan::add_group(const std::string& rule, const py::list& params, const py::list& states,
                     const std::vector<std::string>& labels) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (ahead_) fail(PyExc_RuntimeError, "add_param_group() inside lookahead(): leave the block first");
    const RuleNames& names = names_of(rule);
    std::vector<Tensor> added(params.size());
    std::vector<TensorStep> work(params.size());
    std::vector<Quick> quick(params.size());
    WorkStream stream;
    for (std::size_t i = 0; i < params.size(); ++i) {
        Tensor& t = added[i];
        t.group = groups_.size();
        t.label = labels.at(i);
        t.param.object = params[i];
        const auto of_param = states[i].cast<py::list>();
        for (const py::handle state : of_param) t.states.emplace_back(py::reinterpret_borrow<py::object>(state));
        if (t.states.size() + 2 != names.buffers) fail(PyExc_ValueError, rule + ": wrong number of states");
        bind(t, names, work[i], quick[i], stream);
    }
    std::vector<Tensor> all;
    all.swap(tensors_);
    const std::size_t before = all.size();
    for (Tensor& t : added) all.push_back(std::move(t));
    std::unique_ptr<DevicePlan> device;
    try {
        check_device(all);
        index_memory(all);
        const Device on = all[0].param.view.device;
        if (capturable_ && !on.cuda)
            fail(PyExc_ValueError, "capturable: params[0] is on " + on.text() + ", expected a CUDA device");
        if (on.cuda && !device_) device = std::make_unique<DevicePlan>(on.id);
        if (device_ && device_->counts_here()) bring_counts_back(all);
    } catch (...) {
        all.resize(before);
        tensors_.swap(all);
        throw;
    }
    tensors_.swap(all);
    work_.insert(work_.end(), work.begin(), work.end());
    quick_.insert(quick_.end(), quick.begin(), quick.end());
    groups_.push_back({&names, params.size()});
    if (device) device_ = std::move(device);
    // A graph that is captured later finds them in place.
    if (capturable_) {
        count_on_device();
        device_->need_reports();
    }
}

void Plan::check_device(const std::vector<Tensor>& tensors) const {
    for (const Tensor& t : tensors) {
        if (!(t.param.view.device == tensors[0].param.view.device))
            fail_mixed({"params", -1, t.label.c_str()}, t.param.view, {"params", -1, tensors[0].label.c_str()},
                       tensors[0].param.view);
    }
}

void Plan::count_on_device() {
    std::vector<std::int64_t> steps;
    for (const Tensor& t : tensors_) steps.push_back(t.step);
    steps.push_back(step_count_);
    device_->count_here(steps);
}

void Plan::bring_counts_back(std::vector<Tensor>& tensors) {
    const std::vector<std::int64_t> steps = device_->read_counts();
    for (std::size_t i = 0; i + 1 < steps.size(); ++i) tensors[i].step = steps[i];
    step_count_ = steps.back();
    device_->forget_counts();
}

// NumPy arrays that are still what they were. Anything else is looked at again, without haste.
bool Plan::unchanged(const NumpyTypes& numpy, const Quick& quick, const TensorStep& work) {
    if (quick.shape.ndim < 0) return false;
    DType type = work.param;
    for (std::uint32_t b = 0; b < quick.written; ++b) {
        if (quick.shape.data_of(numpy, quick.object[b], type, true) != work.buffer[b == 0 ? 0 : 1 + b]) return false;
        type = compute_type(work.param);
    }
    return true;
}

// Buffers may have changed since they were bound (moved, made read-only, reshaped). Where looking again is cheap, look.
void Plan::refresh(WorkStream& stream) {
    const NumpyTypes& numpy = numpy_types();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        if (unchanged(numpy, quick_[i], work_[i])) continue;
        Tensor& t = tensors_[i];
        const auto look = [&](Bound& b, std::size_t buffer) {
            if (!b.view.cheap) return true;
            View now;
            View::take(b.object, name_of(i, buffer), now, stream);
            return b.unchanged(now);
        };
        bool same = look(t.param, 0);
        for (std::size_t s = 0; s < t.states.size(); ++s) same = look(t.states[s], 2 + s) && same;
        if (!same) {
            bind(t, *groups_[t.group].names, work_[i], quick_[i], stream);
            stale_ = true;
        }
    }
    if (stale_) {
        check_device(tensors_);
        if (device().cuda != (device_ != nullptr) || (device_ && device_->device() != device().id))
            fail(PyExc_ValueError, "params have moved to " + device().text() +
                                       ": make a new optimizer for them and load this one's state_dict()");
        index_memory(tensors_);
    }
    stale_ = false;
}

void Plan::check_group_count(const py::list& groups) const {
    if (const std::size_t count = groups.size(); count != groups_.size())
        fail(PyExc_ValueError, "param_groups: " + std::to_string(count) + " groups, expected " +
                                   std::to_string(groups_.size()) + "; add groups with add_param_group()");
}

detail::Segment Plan::read_group(std::size_t group, const py::handle& values,
                                 std::vector<DeviceValue>& on_device) const {
    const RuleNames& names = *groups_[group].names;
    if (PyDict_Check(values.ptr()) == 0)
        fail(PyExc_TypeError, "param_groups: expected a dict, got " + type_name(values));
    detail::Segment segment{names.rule, names.defaults, 1, 0};
    const std::size_t of_others = on_device.size();
    for (std::size_t h = 0; h < names.hypers; ++h) {
        py::object held = value_of(values.ptr(), names.hyper[h]);
        if (!held) fail(PyExc_KeyError, std::string("param_groups: no '") + names.hyper_info[h].name + "' in a group");
        // A schedule is a function of the step that is about to be taken.
        if (h == 0 && !PyFloat_CheckExact(held.ptr()) && PyCallable_Check(held.ptr()) != 0) {
            if (capturable_)
                fail(PyExc_TypeError, "lr: a replayed graph calls no schedule; with capturable=True give a number, or "
                                      "a buffer on the device of the params and change what it holds");
            held = held(steps_taken() + 1);
        }
        if (device_ && View::on_cuda(held, {names.hyper_info[h].name})) {
            on_device.push_back({std::uint32_t(group), std::uint32_t(h), held});
        } else {
            segment.hyper.value[h] = hyper_value(held.ptr(), names.hyper_info[h]);
        }
    }
    if (on_device.size() == of_others) check_together(*names.rule, segment.hyper);
    return segment;
}

py::tuple Plan::step(const py::object& grads, const py::list& groups, const py::object& scale, const py::object& clip,
                     bool skip_nonfinite) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (ahead_) fail(PyExc_RuntimeError, "step() inside lookahead(): leave the block first, then take the step");
    const double grad_scale = scale_value(scale.ptr());
    const std::optional<double> clip_norm = clip_value(clip.ptr());
    if (PyList_Check(grads.ptr()) == 0 && PyTuple_Check(grads.ptr()) == 0)
        fail(PyExc_TypeError, "grads: expected a list or tuple, got " + type_name(grads));
    // References of our own: schedules and exports run Python code, and other threads run while the GIL is released, or
    // always; all of them may change the list.
    const std::vector<py::object> held = items_of(grads.ptr());
    const std::size_t count = held.size();
    if (count != tensors_.size())
        fail(PyExc_ValueError, "grads: " + std::to_string(count) + " gradients, expected " +
                                   std::to_string(tensors_.size()) + " as there are params");
    if (std::all_of(held.begin(), held.end(), [](const py::object& g) { return g.is_none(); }) &&
        PyErr_WarnEx(PyExc_UserWarning, "grads: all gradients are None, so the step changes nothing", 2) != 0)
        throw py::error_already_set();
    check_group_count(groups);
    std::vector<detail::Segment> of_group;
    of_group.reserve(groups_.size());
    std::vector<DeviceValue> values;
    for (std::size_t g = 0; g < groups_.size(); ++g) of_group.push_back(read_group(g, item_of(groups, g), values));
    WorkStream stream;
    refresh(stream);

    std::vector<detail::Segment> segments;
    std::vector<TensorStep> some;  // the tensors that have a gradient, where not all have
    bool all = true;
    for (const py::object& g : held) all = all && !g.is_none();
    const NumpyTypes& numpy = numpy_types();
    std::vector<View> views;         // of gradients that have to be held until the step is done
    std::vector<std::size_t> which;  // tensor has which gradient, on a device
    std::size_t last_group = 0;
    std::int64_t total = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (held[i].is_none()) continue;
        const Tensor& t = tensors_[i];
        if (device_) which.push_back(i);
        if (t.step == INT64_MAX || step_count_ == INT64_MAX) fail(PyExc_ValueError, "step: more than 2**63 - 1 steps");
        TensorStep& work = work_[i];
        work.grad = work.param;
        work.buffer[1] = device_ ? nullptr : quick_[i].shape.data_of(numpy, held[i].ptr(), work.param, false);
        if (work.buffer[1] == nullptr) {
            const ArgName name = name_of(i, 1);
            View g;
            View::take(held[i], name, g, stream);
            check_grad(g, name, t.param.view);
            work.buffer[1] = g.data;
            work.grad = g.dtype;
            views.push_back(std::move(g));
        }
        const auto begin = reinterpret_cast<std::uintptr_t>(work.buffer[1]);
        const auto end = begin + std::uintptr_t(work.size) * size_of(work.grad);
        if (const auto owner = written_.find(begin, end); owner != detail::WrittenMemory::none)
            fail_overlap(name_of(i, 1), name_of(owner / 8, owner % 8));
        if (!all) some.push_back(work);
        if (sum_overflows(total, work.size, total)) fail(PyExc_ValueError, "params: more than 2**63 elements in all");
        if (segments.empty() || last_group != t.group || segments.back().step != t.step + 1) {
            segments.push_back(of_group[t.group]);
            segments.back().step = t.step + 1;
            last_group = t.group;
        }
        ++segments.back().count;
    }
    detail::StepOptions options;
    options.grad_scale = grad_scale;
    options.clip_norm = clip_norm.value_or(-1.0);
    options.skip_nonfinite = skip_nonfinite;
    if (device_) {
        if (segments.empty()) segments.push_back(of_group[0]);
        const auto report = step_on_device(all ? work_ : some, std::move(segments), which, options, values, stream);
        if (!device_->counts_here()) {
            for (const std::size_t i : which) ++tensors_[i].step;
            ++step_count_;
        }
        return py::make_tuple(report, false);
    }
    detail::StepReport report;
    {
        const MaybeReleaseGil released(total);
        report = detail::run_step(all ? work_ : some, segments, options);
    }
    if (!report.skipped) {
        for (std::size_t i = 0; i < count; ++i)
            if (!held[i].is_none()) ++tensors_[i].step;
        ++step_count_;
    }
    return py::make_tuple(report.has_norm ? py::object(py::float_(report.grad_norm)) : py::none(), report.skipped);
}

std::shared_ptr<Report> Plan::step_on_device(const std::vector<TensorStep>& tensors,
                                             std::vector<detail::Segment> segments,
                                             const std::vector<std::size_t>& which, const detail::StepOptions& options,
                                             const std::vector<DeviceValue>& values, WorkStream& stream) {
    const detail::CudaBackend& part = need_cuda_part();
    const Device on = device();
    stream.want(on.id);
    void* const work_stream = stream.stream();
    bool capturing = false;
    detail::CudaError error;
    if (!part.capturing(on.id, work_stream, capturing, error)) fail_cuda(error);
    if (capturing && !capturable_)
        fail(PyExc_RuntimeError, "step() while its stream is captured in a graph: an optimizer with capturable=True "
                                 "counts its steps where a replay can");
    // What was skipped is known to the device alone, and so are the counts of steps from then on.
    if (options.skip_nonfinite && !device_->counts_here()) count_on_device();

    // Hyperparameters on the device belong to groups; a group may have several segments.
    std::vector<View> held(values.size());
    std::vector<detail::DeviceHyper> hypers;
    std::vector<std::size_t> first_tensor;
    std::size_t tensor = 0;
    for (const detail::Segment& s : segments) {
        first_tensor.push_back(tensor);
        tensor += s.count;
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
        const RuleNames& names = *groups_[values[i].segment].names;
        detail::DeviceHyper h{};
        values[i].resolve(names.hyper_info[values[i].index], on, stream, held[i], h);
        for (std::size_t s = 0; s < segments.size(); ++s) {
            const std::size_t group = which.empty() ? 0 : tensors_[which[first_tensor[s]]].group;
            if (group != values[i].segment) continue;
            h.segment = std::uint32_t(s);
            hypers.push_back(h);
        }
    }
    std::vector<TensorStep> counted;
    std::vector<std::uint32_t> count_of;
    detail::CudaStep step{on.id, work_stream, tensors, segments, options};
    if (device_->counts_here()) {
        // The optimizer's own count goes up with those of its params: as that of a tensor without elements.
        counted.assign(tensors.begin(), tensors.end());
        counted.push_back({{}, 0, DType::f32, DType::f32});
        ++segments.back().count;
        for (const std::size_t i : which) count_of.push_back(std::uint32_t(i));
        count_of.push_back(std::uint32_t(tensors_.size()));
        step.tensors = counted;
        step.segments = segments;
        step.counts = device_->counts();
        step.count_of = count_of;
    }
    step.hypers = hypers;
    step.workspace = device_->workspace();
    std::shared_ptr<Report> report;
    if (options.clip_norm >= 0.0 || options.skip_nonfinite) {
        report = device_->next_report(capturing);
        step.reports = device_->reports().places();
        step.report = Reports::place(*report);
    }
    run_on_stream(stream, [&](const detail::CudaBackend& p, detail::CudaError& e) { return p.step(step, e); });
    return report;
}

void Plan::begin_lookahead(const py::list& groups) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (ahead_) fail(PyExc_RuntimeError, "lookahead() inside lookahead()");
    check_group_count(groups);
    std::vector<double> factor;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
        const Group& group = groups_[g];
        if (std::string(group.names->rule->name) != "rmsprop_nesterov")
            fail(PyExc_ValueError, std::string("lookahead() belongs to RMSProp(nesterov=True); a group here runs ") +
                                       group.names->rule->name);
        std::vector<DeviceValue> values;
        const detail::Segment s = read_group(g, item_of(groups, g), values);
        for (const DeviceValue& v : values)
            if (std::strcmp(group.names->hyper_info[v.index].name, "momentum") == 0)
                fail(PyExc_TypeError, "momentum: a look-ahead needs a number, not a buffer on a device");
        for (std::size_t h = 0; h < group.names->hypers; ++h)
            if (std::strcmp(group.names->hyper_info[h].name, "momentum") == 0) factor.push_back(s.hyper.value[h]);
    }
    WorkStream stream;
    refresh(stream);
    if (device_) {
        look_ahead_on_device(factor, stream);
        ahead_ = true;
        return;
    }
    std::vector<std::vector<std::byte>> saved;
    for (const Tensor& t : tensors_) {
        const auto* from = static_cast<const std::byte*>(t.param.view.data);
        saved.emplace_back(from, from + (t.param.view.end() - t.param.view.begin()));
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        const TensorStep t = lookahead_step(i);
        detail::add_scaled({&t, 1}, factor[tensors_[i].group]);
    }
    saved_ = std::move(saved);
    ahead_ = true;
}

// p and the velocity that is added to it.
TensorStep Plan::lookahead_step(std::size_t i) const {
    const View& velocity = tensors_[i].states[1].view;
    TensorStep t{};
    t.buffer[0] = tensors_[i].param.view.data;
    t.buffer[1] = velocity.data;
    t.size = velocity.size;
    t.param = tensors_[i].param.view.dtype;
    t.grad = velocity.dtype;
    return t;
}

void Plan::look_ahead_on_device(const std::vector<double>& factor, WorkStream& stream) {
    const int id = device_->device();
    stream.want(id);
    device_->forget_saved();
    std::vector<const View*> params;
    for (const Tensor& t : tensors_) params.push_back(&t.param.view);
    stream.ordered([&] { device_->save(stream.stream(), params); });
    std::vector<std::vector<TensorStep>> of_group(groups_.size());
    for (std::size_t i = 0; i < tensors_.size(); ++i) of_group[tensors_[i].group].push_back(lookahead_step(i));
    run_on_stream(stream, [&](const detail::CudaBackend& part, detail::CudaError& error) {
        for (std::size_t g = 0; g < of_group.size(); ++g)
            if (!part.add_scaled(id, stream.stream(), of_group[g], factor[g], error)) return false;
        return true;
    });
}

void Plan::end_lookahead() {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (!ahead_) return;
    const auto saved = std::move(saved_);
    saved_.clear();
    ahead_ = false;
    // A param may have moved inside the block: its values go where it is now.
    std::string lost;
    WorkStream stream;
    std::vector<View> now(tensors_.size());
    std::vector<const View*> to;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        const Bound& p = tensors_[i].param;
        to.push_back(&p.view);
        if (p.view.cheap) {
            try {
                View::take(p.object, name_of(i, 0), now[i], stream);
                to[i] = p.same_layout(now[i]) ? &now[i] : nullptr;
            } catch (py::error_already_set&) {
                to[i] = nullptr;
            }
        }
        if (to[i] == nullptr && lost.empty()) lost = name_of(i, 0).text();
    }
    if (device_) {
        stream.want(device_->device());
        stream.ordered([&] { device_->restore(stream.stream(), to); });
    } else {
        for (std::size_t i = 0; i < to.size(); ++i)
            if (to[i] != nullptr && !saved[i].empty()) std::memcpy(to[i]->data, saved[i].data(), saved[i].size());
    }
    if (!lost.empty())
        fail(PyExc_RuntimeError, lost + ": its shape, layout or dtype changed inside lookahead(), so that it cannot "
                                        "be put back");
}

std::size_t Plan::size() const {
    const auto locked = lock_.take();
    return tensors_.size();
}

std::vector<std::int64_t> Plan::steps() const {
    const auto locked = lock_.take();
    std::vector<std::int64_t> s;
    if (device_ && device_->counts_here()) {
        s = device_->read_counts();
        s.pop_back();
        return s;
    }
    for (const Tensor& t : tensors_) s.push_back(t.step);
    return s;
}

std::int64_t Plan::step_count() const {
    const auto locked = lock_.take();
    return steps_taken();
}

std::int64_t Plan::steps_taken() const {
    return device_ && device_->counts_here() ? device_->read_counts().back() : step_count_;
}

void Plan::set_steps(const py::list& counts, const py::object& taken) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    const std::vector<py::object> objects = items_of(counts.ptr());
    if (objects.size() != tensors_.size()) fail(PyExc_ValueError, "steps: wrong length");
    std::vector<std::int64_t> steps;
    for (std::size_t i = 0; i < objects.size(); ++i)
        steps.push_back(count_value(objects[i].ptr(), "the steps of params" + tensors_[i].label));
    const std::int64_t count = count_value(taken.ptr(), "the optimizer's steps");
    for (std::size_t i = 0; i < steps.size(); ++i) tensors_[i].step = steps[i];
    step_count_ = count;
    // A graph holds the address of the counts: they are rewritten where they are.
    if (device_ && device_->counts_here()) {
        std::vector<std::int64_t> all = steps;
        all.push_back(count);
        device_->rewrite_counts(all);
    }
}

}  // namespace

void register_plan(py::module_& m) {
    py::class_<Report, std::shared_ptr<Report>>(m, "Report").def("read", [](Report& report) {
        const detail::StepReport r = report.read();
        return py::make_tuple(r.grad_norm, r.skipped);
    });
    py::class_<Plan>(m, "Plan")
        .def(py::init<bool>(), py::arg("capturable") = false)
        .def("add_group", &Plan::add_group, py::arg("rule"), py::arg("params"), py::arg("states"), py::arg("labels"))
        .def("step", &Plan::step, py::arg("grads"), py::arg("groups"), py::arg("grad_scale"), py::arg("clip_norm"),
             py::arg("skip_nonfinite"))
        .def("begin_lookahead", &Plan::begin_lookahead, py::arg("groups"))
        .def("end_lookahead", &Plan::end_lookahead)
        .def("steps", &Plan::steps)
        .def("set_steps", &Plan::set_steps, py::arg("steps"), py::arg("count"))
        .def_property_readonly("step_count", &Plan::step_count)
        .def("__len__", &Plan::size);
}

}  // namespace adaptk::bindings
