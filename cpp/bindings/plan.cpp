#include "plan.hpp"

#include "arguments.hpp"
#include "rows_intake.hpp"
#include "rule_program.hpp"
#include "step_plan.hpp"
#include "stored.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace adaptk::bindings {
namespace {

using detail::StepPlan;

// A buffer as it was when it was last checked.
struct BoundBuffer {
    py::object object;
    View view;
    std::vector<std::int64_t> layout;  // the view's shape and strides: the object may free the arrays that held them

    BoundBuffer() = default;
    explicit BoundBuffer(py::object o) : object(std::move(o)) {}
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

struct ParamObjects {
    std::string label;        // "[3]" or "['w']"
    BoundBuffer param, side;  // side: of a param that is split
    ParamFormat format = ParamFormat::plain;
    std::vector<BoundBuffer> states, scales;               // a state without scales has an empty place among them
    std::vector<const detail::FormatInfo*> named;          // formats of states that dtypes do not tell; else null
    detail::SparseMode sparse = detail::SparseMode::lazy;  // for gradients of rows
    py::object last_step;                                  // of catch_up, or null
};

// What a step looks at first, apart from the rest, so that it stays in the cache.
struct Quick {
    QuickShape shape;
    std::uint32_t written = 0;         // buffers in `object`
    PyObject* object[1 + max_states];  // the param and the states; ParamObjects holds the references
};

// Of one step.
using RowGrads = std::vector<std::unique_ptr<RowGrad>>;

class Plan {
  public:
    explicit Plan(bool capturable) : capturable_(capturable) {}
    void add_group(const std::string& rule, const py::list& params, const py::list& states,
                   const std::vector<std::string>& labels, const py::object& param_format, const py::object& sparse,
                   const py::list& last_steps);
    void catch_up(const py::list& groups);
    void set_seed(const py::object& seed);
    py::tuple step(const py::object& grads, const py::list& groups, const py::object& scale, const py::object& clip,
                   bool skip_nonfinite, const py::object& zero_grad, const py::object& copy_out, const py::object& ema,
                   const py::object& grad_norm);
    void begin_lookahead(const py::list& groups);
    void end_lookahead();

    std::vector<std::int64_t> steps() const;
    void set_steps(const py::list& counts, const py::object& taken);
    std::int64_t step_count() const;
    std::size_t size() const;

  private:
    StepPlan plan_;
    std::vector<ParamObjects> params_;
    std::vector<Quick> quick_;
    std::vector<const RuleNames*> names_;  // of each group
    ObjectLock lock_;
    unsigned long busy_ = 0;
    bool capturable_;

    ArgName name_of(std::size_t tensor, std::size_t buffer) const;
    static void bind(ParamObjects& t, const RuleNames& names, ParamUpdate& update, Quick& quick, WorkStream& stream);
    static bool unchanged(const NumpyTypes& numpy, const Quick& quick, const ParamUpdate& update);
    static std::string text_of(const detail::BufferId& b, const std::string& label);
    [[noreturn]] static void fail_both_written(const detail::Overlap& overlap, const std::string& first,
                                               const std::string& second);
    std::int64_t steps_taken() const;
    void refresh(WorkStream& stream);
    void check_group_count(const py::list& groups) const;
    detail::HyperValues read_group(std::uint32_t group, const py::handle& values,
                                   std::vector<DeviceValue>& on_device) const;
    Device device() const { return params_.empty() ? Device{} : params_[0].param.view.device; }
    void take_grads(const std::vector<py::object>& grads, bool zero_grad, WorkStream& stream, std::vector<View>& views,
                    RowGrads& rows);
    void take_last_step(std::size_t i, RowGrad& rows) const;
    void take_epilogues(const std::vector<py::object>& copies, const std::vector<py::object>& averages,
                        WorkStream& stream, std::vector<View>& views);
    void query_captures(WorkStream& stream);
};

ArgName Plan::name_of(std::size_t tensor, std::size_t buffer) const {
    const char* name = buffer == 0   ? "params"
                       : buffer == 1 ? "grads"
                                     : text_of_buffer(*names_[plan_.group_of(tensor)], buffer);
    return {name, -1, params_[tensor].label.c_str()};
}

void Plan::bind(ParamObjects& t, const RuleNames& names, ParamUpdate& update, Quick& quick, WorkStream& stream) {
    const ArgName param_name{"params", -1, t.label.c_str()};
    View param, side;
    py::object given = t.param.object;
    if (t.side.object) given = py::make_tuple(given, t.side.object);
    const detail::Slot stored_param = take_param(given.ptr(), param_name, t.format, param, side, stream);
    std::vector<View> states(t.states.size()), scales(t.states.size());
    update = ParamUpdate(param.size, param.dtype, param.dtype);
    update.set(0, stored_param);
    quick.shape = stored_param.side == nullptr ? QuickShape(param) : QuickShape();
    for (std::size_t s = 0; s < states.size(); ++s) {
        const ArgName name{names.buffer_text[2 + s], -1, t.label.c_str()};
        const StoredState stored{t.states[s].object, t.scales[s].object, t.named[s]};
        update.set(2 + s, take_state_of(*names.rule, s, stored, name, param, states[s], scales[s], stream));
        // Which is for buffers of the param's shape, without scales.
        if (update.side[2 + s] != nullptr || names.rule->states[s].per != Per::element) quick.shape = {};
    }
    check_rows_of_rule(*names.rule, param, param_name, update);
    set_shape(update, *names.rule, param_name, param);
    quick.object[0] = t.param.object.ptr();
    for (std::size_t s = 0; s < states.size(); ++s) quick.object[1 + s] = t.states[s].object.ptr();
    quick.written = std::uint32_t(1 + states.size());
    t.param.keep(std::move(param));
    if (t.side.object) t.side.keep(std::move(side));
    for (std::size_t s = 0; s < states.size(); ++s) {
        t.states[s].keep(std::move(states[s]));
        if (t.scales[s].object) t.scales[s].keep(std::move(scales[s]));
    }
}

std::string Plan::text_of(const detail::BufferId& b, const std::string& label) {
    return (b.buffer == 0 ? "params" : "a state of params") + label;
}

void Plan::fail_both_written(const detail::Overlap& overlap, const std::string& first, const std::string& second) {
    const std::string a = text_of(overlap.first, first);
    const std::string b = text_of(overlap.second, second);
    if (overlap.same_param) fail_shared_memory(a, b);
    fail(PyExc_ValueError, a + " and " + b + " overlap in memory, and both are updated in place");
}

// Everything is made aside, and put in place by what cannot fail.
void Plan::add_group(const std::string& rule, const py::list& params, const py::list& states,
                     const std::vector<std::string>& labels, const py::object& param_format, const py::object& sparse,
                     const py::list& last_steps) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (plan_.is_ahead()) fail(PyExc_RuntimeError, "add_param_group() inside lookahead(): leave the block first");
    const RuleNames& names = names_of(rule);
    const std::size_t count = params.size();
    const std::size_t before = params_.size();
    const ParamFormat format = param_format_value(param_format.ptr());
    const detail::SparseMode mode = sparse_mode_value(sparse.ptr());
    std::vector<ParamObjects> objects(count);
    std::vector<ParamUpdate> updates(count);
    std::vector<Quick> quick(count);
    WorkStream stream;
    for (std::size_t i = 0; i < count; ++i) {
        ParamObjects& t = objects[i];
        t.label = labels.at(i);
        t.format = format;
        t.sparse = mode;
        if (i < last_steps.size() && !last_steps[i].is_none()) t.last_step = last_steps[i];
        t.param.object = params[i];
        if (PyTuple_Check(t.param.object.ptr())) {
            const auto pair = py::tuple(t.param.object);
            t.param.object = pair[0];
            t.side.object = pair[1];
        }
        const auto of_param = states[i].cast<py::list>();
        for (std::size_t s = 0; s < of_param.size(); ++s) {
            py::object state = of_param[s];
            StoredState stored{state, {}};
            if (PyTuple_Check(state.ptr()) && s + 2 < names.buffers)
                stored = read_stored(state.ptr(), {names.buffer_text[2 + s], -1, t.label.c_str()});
            t.states.emplace_back(stored.data);
            t.scales.emplace_back(stored.scales);
            t.named.push_back(stored.named);
        }
        if (t.states.size() + 2 != names.buffers) fail(PyExc_ValueError, rule + ": wrong number of states");
        bind(t, names, updates[i], quick[i], stream);
    }
    const ParamObjects& first = before > 0 ? params_[0] : objects.at(0);
    const Device on = first.param.view.device;
    for (const ParamObjects& t : objects)
        if (!(t.param.view.device == on))
            fail_mixed({"params", -1, t.label.c_str()}, t.param.view, {"params", -1, first.label.c_str()},
                       first.param.view);
    if (on.cuda) check_runs_on_cuda(*names.rule);
    if (capturable_ && !on.cuda)
        fail(PyExc_ValueError, "capturable: params[0] is on " + on.text() + ", expected a CUDA device");
    params_.reserve(before + count);
    quick_.reserve(before + count);
    names_.reserve(names_.size() + 1);
    std::optional<detail::Overlap> overlap;
    {
        const py::gil_scoped_release released;
        overlap = plan_.add_group(*names.rule, names.defaults, updates, on);
        if (!overlap && capturable_) {
            // A graph that is captured later finds them in place.
            try {
                plan_.become_capturable();
            } catch (...) {
                plan_.remove_group(count);
                throw;
            }
        }
    }
    if (overlap) {
        const auto label = [&](std::size_t i) { return i < before ? params_[i].label : objects[i - before].label; };
        fail_both_written(*overlap, label(overlap->first.tensor), label(overlap->second.tensor));
    }
    names_.push_back(&names);
    for (std::size_t i = 0; i < count; ++i) {
        params_.push_back(std::move(objects[i]));
        quick_.push_back(quick[i]);
    }
}

// Formats that no dtype tells from one another.
bool same_dtype(Format a, Format b) {
    return info_of(a).dlpack_code == info_of(b).dlpack_code && info_of(a).dlpack_bits == info_of(b).dlpack_bits;
}

// NumPy arrays that are still what they were. Anything else is looked at again, without haste.
bool Plan::unchanged(const NumpyTypes& numpy, const Quick& quick, const ParamUpdate& update) {
    if (quick.shape.ndim < 0) return false;
    for (std::uint32_t i = 0; i < quick.written; ++i) {
        const std::size_t b = i == 0 ? 0 : 1 + i;
        if (quick.shape.data_of(numpy, quick.object[i], i == 0 ? update.dtype() : update.format[b], true) !=
            update.buffer[b])
            return false;
    }
    return true;
}

// Buffers may have changed since they were bound (moved, made read-only, reshaped). If looking again is cheap, look.
void Plan::refresh(WorkStream& stream) {
    const NumpyTypes& numpy = numpy_types();
    for (std::size_t i = 0; i < params_.size(); ++i) {
        if (unchanged(numpy, quick_[i], plan_.update(i))) continue;
        ParamObjects& t = params_[i];
        const auto look = [&](BoundBuffer& b, std::size_t buffer) {
            if (!b.view.cheap) return true;
            View now;
            View::take(b.object, name_of(i, buffer), now, stream, true);
            if (b.view.size > 0 && same_dtype(now.dtype, b.view.dtype)) now.dtype = b.view.dtype;
            return b.unchanged(now);
        };
        bool same = look(t.param, 0);
        same = look(t.side, 0) && same;
        for (std::size_t s = 0; s < t.states.size(); ++s) same = look(t.states[s], 2 + s) && same;
        for (std::size_t s = 0; s < t.states.size(); ++s) same = look(t.scales[s], 2 + s) && same;
        if (same) continue;
        ParamUpdate update;
        bind(t, *names_[plan_.group_of(i)], update, quick_[i], stream);
        plan_.bind(i, update, t.param.view.device);
    }
    if (plan_.is_indexed()) return;
    if (const auto other = plan_.find_other_device())
        fail_mixed(name_of(*other, 0), params_[*other].param.view, name_of(0, 0), params_[0].param.view);
    if (!plan_.stays_on_device())
        fail(PyExc_ValueError, "params have moved to " + device().text() +
                                   ": make a new optimizer for them and load this one's state_dict()");
    if (const auto overlap = plan_.index())
        fail_both_written(*overlap, params_[overlap->first.tensor].label, params_[overlap->second.tensor].label);
}

void Plan::check_group_count(const py::list& groups) const {
    if (const std::size_t count = groups.size(); count != names_.size())
        fail(PyExc_ValueError, "param_groups: " + std::to_string(count) + " groups, expected " +
                                   std::to_string(names_.size()) + "; add groups with add_param_group()");
}

detail::HyperValues Plan::read_group(std::uint32_t group, const py::handle& values,
                                     std::vector<DeviceValue>& on_device) const {
    const RuleNames& names = *names_[group];
    if (PyDict_Check(values.ptr()) == 0)
        fail(PyExc_TypeError, "param_groups: expected a dict, got " + type_name(values));
    detail::HyperValues hyper = names.defaults;
    const std::size_t of_others = on_device.size();
    for (std::size_t h = 0; h < names.hypers; ++h) {
        py::object held = value_of(values.ptr(), names.hyper[h]);
        if (!held) fail(PyExc_KeyError, std::string("param_groups: no '") + names.hyper_info[h].name + "' in a group");
        // A schedule is a function of the step that is about to be taken.
        if (may_be_scheduled(names.hyper_info[h]) && !PyFloat_CheckExact(held.ptr()) &&
            PyCallable_Check(held.ptr()) != 0) {
            if (capturable_)
                fail(PyExc_TypeError,
                     std::string(names.hyper_info[h].name) +
                         ": a replayed graph calls no schedule; with capturable=True give a number, or "
                         "a buffer on the device of the params and change what it holds");
            held = held(steps_taken() + 1);
        }
        if (device().cuda && View::on_cuda(held, {names.hyper_info[h].name})) {
            on_device.push_back({group, std::uint32_t(h), held});
        } else {
            hyper.value[h] = hyper_value(held.ptr(), names.hyper_info[h]);
        }
    }
    if (on_device.size() == of_others) check_together(*names.rule, hyper);
    return hyper;
}

// The gradients of those that have one; `views` are held until the step is done.
void Plan::take_grads(const std::vector<py::object>& grads, bool zero_grad, WorkStream& stream,
                      std::vector<View>& views, RowGrads& rows) {
    const NumpyTypes& numpy = numpy_types();
    const bool cuda = device().cuda;
    plan_.begin();
    for (std::size_t i = 0; i < grads.size(); ++i) {
        if (grads[i].is_none()) continue;
        const std::int64_t taken = plan_.host_steps(i);
        if (taken == INT64_MAX) fail(PyExc_ValueError, "step: more than 2**63 - 1 steps");
        if (is_of_rows(grads[i].ptr())) {
            const ArgName name = name_of(i, 1);
            if (zero_grad)
                fail(PyExc_ValueError, "zero_grad: " + name.text() +
                                           " has values for some rows alone, which are made "
                                           "anew for each step; leave it out");
            RowGrad& of_rows = *rows.emplace_back(std::make_unique<RowGrad>());
            ParamUpdate update = plan_.update(i);
            const std::uint32_t group = plan_.group_of(i);
            of_rows.take(grads[i].ptr(), name, params_[i].param.view, params_[i].sparse, plan_.rule(group),
                         plan_.hyper(group), update, stream);
            if (params_[i].last_step) take_last_step(i, of_rows);
            if (!plan_.add_rows(i, of_rows.update, taken + 1))
                fail(PyExc_ValueError, "params: more than 2**63 elements in all");
            continue;
        }
        Format format = plan_.update(i).dtype();
        void* data = cuda ? nullptr : quick_[i].shape.data_of(numpy, grads[i].ptr(), format, zero_grad);
        if (data == nullptr) {
            const ArgName name = name_of(i, 1);
            View g;
            View::take(grads[i], name, g, stream);
            check_grad(g, name, params_[i].param.view);
            if (zero_grad) check_writable(g, name, "zero_grad");
            data = g.data;
            format = g.dtype;
            views.push_back(std::move(g));
        }
        if (!plan_.add(i, data, format, taken + 1)) fail(PyExc_ValueError, "params: more than 2**63 elements in all");
        if (!params_[i].last_step) continue;
        RowGrad& whole = *rows.emplace_back(std::make_unique<RowGrad>());
        ParamUpdate update = plan_.update(i);
        whole.take_whole(params_[i].param.view, update);
        take_last_step(i, whole);
        plan_.set_rows(i, whole.update);
    }
}

void Plan::take_last_step(std::size_t i, RowGrad& rows) const {
    const std::string name = "last_step of " + name_of(i, 0).text();
    rows.last_step = Integers::take(params_[i].last_step, name, true);
    const std::uint32_t group = plan_.group_of(i);
    rows.take_last_step(rows.last_step, name, plan_.rule(group), plan_.hyper(group));
}

// Rows that have missed steps take them now.
void Plan::catch_up(const py::list& groups) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (plan_.is_ahead()) fail(PyExc_RuntimeError, "catch_up() inside lookahead(): leave the block first");
    check_group_count(groups);
    std::vector<DeviceValue> values;
    for (std::uint32_t g = 0; g < names_.size(); ++g) plan_.hyper(g) = read_group(g, item_of(groups, g), values);
    WorkStream stream;
    refresh(stream);
    RowGrads rows;
    std::vector<std::size_t> which;
    for (std::size_t i = 0; i < params_.size(); ++i) {
        if (!params_[i].last_step) continue;
        ParamUpdate update = plan_.update(i);
        rows.emplace_back(std::make_unique<RowGrad>())->take_whole(params_[i].param.view, update);
        take_last_step(i, *rows.back());
        which.push_back(i);
    }
    if (which.empty()) return;
    const auto run = [&] {
        for (std::size_t n = 0; n < which.size(); ++n)
            plan_.catch_up_rows_of(which[n], rows[n]->update, plan_.host_steps(which[n]), stream.stream());
    };
    if (!device().cuda) {
        const MaybeReleaseGil released(true);
        run();
        return;
    }
    if (!values.empty() || plan_.counts_on_device())
        fail(PyExc_RuntimeError,
             "catch_up(): rows on a CUDA device catch up by steps and hyperparameters that the host "
             "knows, without skip_nonfinite, capturable and hyperparameters on the device");
    stream.want(device().id);
    on_stream(stream, run);
}

void Plan::take_epilogues(const std::vector<py::object>& copies, const std::vector<py::object>& averages,
                          WorkStream& stream, std::vector<View>& views) {
    const NumpyTypes& numpy = numpy_types();
    const auto take = [&](const std::vector<py::object>& buffers, std::size_t i, std::uint32_t number) -> detail::Slot {
        if (buffers.empty() || buffers[i].is_none()) return {};
        if (void* const same = quick_[i].shape.data_of(numpy, buffers[i].ptr(), Format::float32, true);
            same != nullptr && compute_format(plan_.update(i).param()) == Format::float32)
            return {same, Format::float32};
        return take_epilogue_buffer(buffers[i], name_of(i, number), params_[i].param.view, views.emplace_back(),
                                    stream);
    };
    if (copies.empty() && averages.empty()) return;
    for (std::size_t i = 0; i < params_.size(); ++i)
        plan_.set_epilogue(i, {take(copies, i, detail::copy_buffer), take(averages, i, detail::average_buffer)});
}

py::tuple Plan::step(const py::object& grads, const py::list& groups, const py::object& scale, const py::object& clip,
                     bool skip_nonfinite, const py::object& zero_grad, const py::object& copy_out,
                     const py::object& ema, const py::object& grad_norm) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (plan_.is_ahead())
        fail(PyExc_RuntimeError, "step() inside lookahead(): leave the block first, then take the step");
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
    if (PyList_Check(grads.ptr()) == 0 && PyTuple_Check(grads.ptr()) == 0)
        fail(PyExc_TypeError, "grads: expected a list or tuple, got " + type_name(grads));
    // References of our own: schedules and exports run Python code, and other threads run while the GIL is released, or
    // always; all of them may change the list.
    const std::vector<py::object> held = items_of(grads.ptr());
    if (held.size() != params_.size())
        fail(PyExc_ValueError, "grads: " + std::to_string(held.size()) + " gradients, expected " +
                                   std::to_string(params_.size()) + " as there are params");
    const std::vector<py::object> copies = listed_beside(copy_out, "copy_out", "buffers", params_.size());
    const std::vector<py::object> of_ema =
        listed_beside(averages ? averages->buffers : py::none(), "ema", "buffers", params_.size());
    if (std::all_of(held.begin(), held.end(), [](const py::object& g) { return g.is_none(); }) &&
        PyErr_WarnEx(PyExc_UserWarning, "grads: all gradients are None, so the step changes nothing", 2) != 0)
        throw py::error_already_set();
    check_group_count(groups);
    std::vector<DeviceValue> values;
    for (std::uint32_t g = 0; g < names_.size(); ++g) plan_.hyper(g) = read_group(g, item_of(groups, g), values);
    WorkStream stream;
    refresh(stream);
    std::vector<View> views;
    RowGrads rows;
    take_grads(held, options.zero_grad, stream, views, rows);
    take_epilogues(copies, of_ema, stream, views);
    if (const auto overlap = plan_.check(options.zero_grad))
        fail_overlap(name_of(overlap->first.tensor, overlap->first.buffer),
                     name_of(overlap->second.tensor, overlap->second.buffer));
    if (options.has_norm && !plan_.shares().empty() && !detail::one_grad_scale(plan_.shares()[0].segments))
        fail(PyExc_ValueError,
             "grad_norm: the groups have different grad_scale, so that the norm of all gradients says "
             "nothing of the scaled ones; leave it out");

    detail::Outcome outcome;
    if (plan_.on_cuda()) {
        query_captures(stream);
        std::vector<View> of_values(values.size());
        std::vector<detail::DeviceHyperOfGroup> hypers;
        for (std::size_t i = 0; i < values.size(); ++i) {
            const Hyperparameter& info = names_[values[i].group]->hyper_info[values[i].index];
            hypers.push_back(
                {values[i].group, values[i].index, values[i].resolve(info, device(), stream, of_values[i])});
        }
        on_stream(stream, [&] { outcome = plan_.run(options, hypers); });
    } else {
        const MaybeReleaseGil released(is_long(plan_.elements()));
        outcome = plan_.run(options);
    }
    const detail::StepReport& report = outcome.report;
    if (!report.skipped) {
        plan_.count();
        for (std::uint32_t g = 0; g < names_.size(); ++g) {
            const RuleInfo& rule = *names_[g]->rule;
            if (rule.program == nullptr) continue;
            for (const detail::CarriedNumber& c : rule.program->carried)
                item_of(groups, g).attr("__setitem__")(rule.own[c.hyper].name, plan_.hyper(g).value[c.hyper]);
        }
    }
    if (outcome.pending) return py::make_tuple(outcome.pending, false);
    return py::make_tuple(report.has_norm ? py::object(py::float_(report.grad_norm)) : py::none(), report.skipped);
}

void Plan::query_captures(WorkStream& stream) {
    stream.want(device().id);
    detail::DeviceShare& share = plan_.shares()[0];
    share.stream = stream.stream();
    {
        const py::gil_scoped_release released;
        plan_.query_captures();
    }
    if (share.capturing && !capturable_)
        fail(PyExc_RuntimeError, "step() while its stream is captured in a graph: an optimizer with capturable=True "
                                 "counts its steps where a replay can");
}

void Plan::begin_lookahead(const py::list& groups) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (plan_.is_ahead()) fail(PyExc_RuntimeError, "lookahead() inside lookahead()");
    check_group_count(groups);
    std::vector<double> factor;
    for (std::uint32_t g = 0; g < names_.size(); ++g) {
        const RuleInfo& rule = *names_[g]->rule;
        if (rule.ahead_state == RuleInfo::nowhere)
            fail(PyExc_ValueError, std::string("lookahead() is for rules that take gradients ahead of the params, as "
                                               "RMSProp(nesterov=True); a group here runs ") +
                                       rule.name);
        std::vector<DeviceValue> values;
        const detail::HyperValues hyper = read_group(g, item_of(groups, g), values);
        for (const DeviceValue& v : values)
            if (v.index == rule.ahead_hyper)
                fail(PyExc_TypeError, std::string(names_[g]->hyper_info[v.index].name) +
                                          ": a look-ahead needs a number, not a buffer on a device");
        factor.push_back(hyper.value[rule.ahead_hyper]);
    }
    WorkStream stream;
    refresh(stream);
    if (!device().cuda) {
        plan_.look_ahead(factor, nullptr);
        return;
    }
    stream.want(device().id);
    on_stream(stream, [&] { plan_.look_ahead(factor, stream.stream()); });
}

void Plan::end_lookahead() {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    if (!plan_.is_ahead()) return;
    // A param may have moved inside the block: its values go to where it is now.
    std::string lost;
    WorkStream stream;
    std::vector<View> now(params_.size());
    std::vector<void*> to;
    for (std::size_t i = 0; i < params_.size(); ++i) {
        const BoundBuffer& p = params_[i].param;
        to.push_back(p.view.data);
        if (p.view.cheap) {
            try {
                View::take(p.object, name_of(i, 0), now[i], stream);
                to[i] = p.same_layout(now[i]) ? now[i].data : nullptr;
            } catch (py::error_already_set&) {
                to[i] = nullptr;
            }
            if (to[i] == nullptr && p.view.size > 0 && lost.empty()) lost = name_of(i, 0).text();
        }
    }
    if (device().cuda) {
        stream.want(device().id);
        on_stream(stream, [&] { plan_.undo_look_ahead(to, stream.stream()); });
    } else {
        plan_.undo_look_ahead(to, nullptr);
    }
    if (!lost.empty())
        fail(PyExc_RuntimeError, lost + ": its shape, layout or dtype changed inside lookahead(), so that it cannot "
                                        "be put back");
}

// Of all groups.
void Plan::set_seed(const py::object& seed) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    const std::uint64_t value = seed_value(seed.ptr());
    for (std::uint32_t g = 0; g < names_.size(); ++g) plan_.seed(g) = value;
}

std::size_t Plan::size() const {
    const auto locked = lock_.take();
    return params_.size();
}

// The device may have to be waited for.
std::vector<std::int64_t> Plan::steps() const {
    const auto locked = lock_.take();
    const MaybeReleaseGil released(plan_.counts_on_device());
    return plan_.steps();
}

std::int64_t Plan::step_count() const {
    const auto locked = lock_.take();
    return steps_taken();
}

std::int64_t Plan::steps_taken() const {
    const MaybeReleaseGil released(plan_.counts_on_device());
    return plan_.steps_taken();
}

void Plan::set_steps(const py::list& counts, const py::object& taken) {
    const auto locked = lock_.take();
    const Busy busy(busy_);
    const std::vector<py::object> objects = items_of(counts.ptr());
    if (objects.size() != params_.size()) fail(PyExc_ValueError, "steps: wrong length");
    std::vector<std::int64_t> steps;
    for (std::size_t i = 0; i < objects.size(); ++i)
        steps.push_back(count_value(objects[i].ptr(), "the steps of params" + params_[i].label));
    const std::int64_t count = count_value(taken.ptr(), "the optimizer's steps");
    const MaybeReleaseGil released(plan_.counts_on_device());
    plan_.set_steps(steps, count);
}

// Waits for the device.
py::tuple read_report(detail::Report& report) {
    detail::StepReport r;
    {
        const py::gil_scoped_release released;
        r = report.read();
    }
    if (!r.has_norm)
        fail(PyExc_RuntimeError, "the step was captured in a graph that has not been replayed: it has no outcome yet");
    return py::make_tuple(r.grad_norm, r.skipped);
}

}  // namespace

void register_plan(py::module_& m) {
    py::class_<detail::Report, std::shared_ptr<detail::Report>>(m, "Report").def("read", read_report);
    py::class_<Plan>(m, "Plan")
        .def(py::init<bool>(), py::arg("capturable") = false)
        .def("add_group", &Plan::add_group, py::arg("rule"), py::arg("params"), py::arg("states"), py::arg("labels"),
             py::arg("param_format") = py::none(), py::arg("sparse") = "lazy", py::arg("last_steps") = py::list())
        .def("catch_up", &Plan::catch_up, py::arg("groups"))
        .def("step", &Plan::step, py::arg("grads"), py::arg("groups"), py::arg("grad_scale"), py::arg("clip_norm"),
             py::arg("skip_nonfinite"), py::arg("zero_grad") = false, py::arg("copy_out") = py::none(),
             py::arg("ema") = py::none(), py::arg("grad_norm") = py::none())
        .def("begin_lookahead", &Plan::begin_lookahead, py::arg("groups"))
        .def("end_lookahead", &Plan::end_lookahead)
        .def("set_seed", &Plan::set_seed, py::arg("seed"))
        .def("steps", &Plan::steps)
        .def("set_steps", &Plan::set_steps, py::arg("steps"), py::arg("count"))
        .def_property_readonly("step_count", &Plan::step_count)
        .def("__len__", &Plan::size);
}

}  // namespace adaptk::bindings
