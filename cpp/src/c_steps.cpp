// The C interface: steps, norms and plans.
#include "c_tensors.hpp"

#include "environment.hpp"
#include "overlap.hpp"
#include "rows.hpp"
#include "rule_program.hpp"
#include "step_plan.hpp"
#include "text.hpp"
#include "threads.hpp"

#include "adaptk/rounding.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace adaptk::detail {
namespace {

constexpr std::size_t max_tensors = std::size_t{1} << 28;

std::size_t hyper_index(const RuleInfo& rule, const char* name, const std::string& argument) {
    if (name == nullptr) refuse(argument + ": NULL");
    std::string known;
    for (std::size_t i = 0; i < rule.hyper_count(); ++i) {
        const char* const has = rule.hyper(i).name;
        if (std::strcmp(has, name) == 0) return i;
        known += (i == 0 ? "" : ", ") + std::string(has);
    }
    refuse(ADAPTK_UNKNOWN_NAME, argument + ": " + rule.name + " has no hyperparameter '" + name + "'; it has " + known);
}

HyperValues with_hypers(const RuleInfo& rule, HyperValues values, const adaptk_hyper* hypers, std::size_t count) {
    if (count > 0) need(hypers, "hypers");
    bool given[max_hyperparameters] = {};
    for (std::size_t i = 0; i < count; ++i) {
        const std::string argument = indexed("hypers", i);
        const std::size_t h = hyper_index(rule, hypers[i].name, argument + ".name");
        const Hyperparameter info = rule.hyper(h);
        if (std::exchange(given[h], true)) refuse(argument + ": " + info.name + " is given twice");
        if (!in_range(info.range, hypers[i].value))
            refuse(argument + ": " + info.name + ": " + number_text(hypers[i].value) + " is not " +
                   (info.range == Range::flag ? "0 or 1" : std::string("in ") + range_text(info.range)));
        values.value[h] = hypers[i].value;
    }
    if (const char* const reason = rule.invalid(values); reason != nullptr) refuse("hypers: " + std::string(reason));
    return values;
}

const RuleInfo& rule_of(const char* name) {
    need(name, "rule");
    const RuleInfo* const rule = find_rule(name);
    if (rule == nullptr) refuse(ADAPTK_UNKNOWN_NAME, "rule: " + unknown_rule(name));
    return *rule;
}

HyperValues defaults_of(const RuleInfo& rule) {
    HyperValues values = {};
    for (std::size_t i = 0; i < rule.hyper_count(); ++i) values.value[i] = rule.hyper(i).value;
    return values;
}

void check_count(std::size_t count) {
    if (count == 0) refuse("count: 0 tensors");
    if (count > max_tensors) refuse("count: more than 2**28 tensors");
}

struct Options {
    StepOptions step;
    void* stream = nullptr;
    ParamFormat param_format = ParamFormat::plain;
    Tensors sides = nullptr;
    Tensors copies = nullptr, averages = nullptr;

    // The epilogue of param i, checked.
    Epilogue epilogue(std::size_t i, const TensorView& param) const {
        return {beside(copies, "options.copy_out", i, param), beside(averages, "options.ema", i, param)};
    }
    bool has_epilogues() const { return copies != nullptr || averages != nullptr; }

  private:
    static Slot beside(Tensors tensors, const char* list, std::size_t i, const TensorView& param) {
        if (tensors == nullptr || tensors[i] == nullptr) return {};
        const Name name{list, i};
        const TensorView v = view_of(tensors[i], name);
        if (!is_state_of(v, param)) reject(why_no_state(v, param), name);
        return {v.data, v.dtype};
    }
};

// Param i in the format that the options give for it.
Slot stored_param(const Options& options, const TensorView& param, std::size_t i) {
    Slot slot{param.data, param.dtype};
    if (const auto problem = store_param_as(options.param_format, param, slot.format)) reject(*problem, {"params", i});
    const bool split = has_side(slot.format), given = options.sides != nullptr && options.sides[i] != nullptr;
    if (!split && !given) return slot;
    const Name name{"options.param_sides", i};
    if (!split)
        refuse(ADAPTK_INVALID_TYPE, name.text() + ": beside a " + name_of(param.dtype) +
                                        " param, which has nothing beside it with this param_format");
    if (!given) refuse(name.text() + ": NULL, expected what lies beside a param in " + name_of(slot.format));
    const TensorView side = view_of(options.sides[i], name, true);
    if (const auto problem = why_no_side(side, param, slot.format)) reject(*problem, name);
    slot.side = side.data;
    return slot;
}

ParamFormat param_format_of(const char* name) {
    if (name == nullptr) return ParamFormat::plain;
    std::string known;
    for (std::size_t i = 1; i < param_format_count; ++i) {
        if (std::string_view(name) == param_format_names[i]) return ParamFormat(i);
        known += std::string(i > 1 ? ", " : "") + param_format_names[i];
    }
    refuse(ADAPTK_UNKNOWN_NAME, std::string("options: unknown param_format '") + name + "'; there are " + known);
}

Options read_options(const adaptk_step_options* given) {
    Options out;
    if (given == nullptr) return out;
    using O = adaptk_step_options;
    check_size("options", given->size,
               {offsetof(O, clip_norm), offsetof(O, skip_nonfinite), offsetof(O, want_norm), offsetof(O, stream),
                offsetof(O, stochastic_params), offsetof(O, copy_out), offsetof(O, ema), offsetof(O, ema_decay),
                offsetof(O, grad_norm), offsetof(O, zero_grad), offsetof(O, param_format), offsetof(O, param_sides),
                sizeof(O)},
               "ADAPTK_STEP_OPTIONS");
    O o = ADAPTK_STEP_OPTIONS;
    std::memcpy(&o, given, given->size);
    if (!std::isfinite(o.grad_scale))
        refuse("options: grad_scale: " + number_text(o.grad_scale) + " is not in (-inf, inf)");
    if (!(o.clip_norm >= 0.0)) refuse("options: clip_norm: " + number_text(o.clip_norm) + " is not in [0, inf]");
    out.step.grad_scale = o.grad_scale;
    out.step.clip_norm = o.clip_norm > 0.0 ? o.clip_norm : -1.0;
    out.step.skip_nonfinite = o.skip_nonfinite != 0;
    out.step.want_norm = o.want_norm != 0;
    out.param_format = param_format_of(o.param_format);
    if (o.stochastic_params != 0 && o.param_format != nullptr && out.param_format != ParamFormat::sr)
        refuse(std::string("options: stochastic_params beside param_format '") + o.param_format + "'");
    if (o.stochastic_params != 0) out.param_format = ParamFormat::sr;
    out.sides = o.param_sides;
    if (!(o.ema_decay >= 0.0 && o.ema_decay <= 1.0))
        refuse("options: ema_decay: " + number_text(o.ema_decay) + " is not in [0, 1]");
    out.step.average_decay = o.ema_decay;
    out.step.has_norm = !(o.grad_norm < 0.0);
    out.step.known_norm = o.grad_norm;
    out.step.zero_grad = o.zero_grad != 0;
    out.copies = o.copy_out;
    out.averages = o.ema;
    // cudaStreamLegacy and the null stream are the same stream.
    out.stream = reinterpret_cast<std::uintptr_t>(o.stream) == 1 ? nullptr : o.stream;
    return out;
}

void check_report(const adaptk_step_report* report) {
    using R = adaptk_step_report;
    if (report != nullptr)
        check_size("report", report->size, {offsetof(R, has_norm), offsetof(R, skipped), sizeof(R)},
                   "ADAPTK_STEP_REPORT");
}

void write_report(adaptk_step_report* out, const StepReport& from) {
    const adaptk_step_report all{out->size, from.has_norm ? from.grad_norm : 0.0, from.has_norm ? 1 : 0,
                                 from.skipped ? 1 : 0};
    std::memcpy(out, &all, out->size);
}

// For a rule that keeps one number for each row.
void check_rows(const RuleInfo& rule, std::size_t i, const TensorView& param, ParamUpdate& update) {
    if (const auto problem = why_no_param_of_rows(param)) reject(*problem, {"params", i});
    std::size_t buffer = 0;
    if (const char* const reason =
            why_no_rows(update, rule.buffers(), update.row_count == 0 ? 0 : param.size / update.row_count, buffer))
        refuse(name_of_buffer(rule, i, buffer).text() + ": stored as " + name_of(update.format[buffer]) + ", " +
               reason);
}

// Params and states of one call, checked.
struct Buffers {
    std::vector<TensorView> params;
    std::vector<ParamUpdate> updates;
    Device device;

    // `beside`: the device of params of earlier calls, if there are some. `total`: the number of elements in all.
    Buffers(const RuleInfo& rule, std::size_t count, Tensors params_in, const StateArguments& states_in,
            const Device* beside, std::int64_t& total);
    void take_grad(const adaptk_tensor* grad, std::size_t i) {
        const Slot slot = grad_of(grad, i, params[i]);
        updates[i].set(1, slot);
    }
    static Slot grad_of(const adaptk_tensor* grad, std::size_t i, const TensorView& param);
};

Buffers::Buffers(const RuleInfo& rule, std::size_t count, Tensors params_in, const StateArguments& states_in,
                 const Device* beside, std::int64_t& total) {
    check_count(count);
    need(params_in, "params");
    const std::size_t states = rule.states.size();
    if (states > 0 && !states_in.given()) refuse("states: NULL");
    if (beside != nullptr) device = *beside;
    for (std::size_t i = 0; i < count; ++i) {
        const Name name{"params", i};
        const TensorView p = view_of(params_in[i], name);
        if (!is_param(p)) reject(why_no_param(p), name);
        if (beside == nullptr && i == 0) device = p.device;
        if (device.cuda && i == 0 && rule.program != nullptr)
            call_cuda([&](const CudaBackend& cuda, CudaError& error) { return cuda.can_run(rule, error); });
        if (!(p.device == device))
            refuse(name.text() + ": on " + p.device.text() + ", but params[0] is on " + device.text() +
                   "; one call works on the tensors of one device");
        ParamUpdate update(p.size, p.dtype, p.dtype);
        update.set(0, {p.data, p.dtype});
        update.number = std::uint32_t(i);
        if (rule.program != nullptr && rule.program->has_lines())
            if (const auto problem = why_no_lines(p)) reject(*problem, name);
        set_shape(update, rule, p.ndim, p.shape);
        for (std::size_t s = 0; s < states; ++s) {
            const Name of_state = name_of_buffer(rule, i, 2 + s);
            update.set(2 + s, states_in.take(i * states + s, of_state, p, rule.states[s].per));
        }
        if (rule.is_row_wise()) check_rows(rule, i, p, update);
        if (sum_overflows(total, p.size, total)) refuse("params: more than 2**63 elements in all");
        params.push_back(p);
        updates.push_back(update);
    }
}

Slot Buffers::grad_of(const adaptk_tensor* grad, std::size_t i, const TensorView& param) {
    const Name name{"grads", i};
    const TensorView g = view_of(grad, name);
    if (!is_grad_of(g, param)) reject(why_no_grad(g, param), name);
    return {g.data, g.dtype};
}

std::string text_of_epilogue(std::size_t buffer, std::size_t i) {
    return indexed(buffer == copy_buffer ? "options.copy_out" : "options.ema", i);
}

void check_one_scale(std::span<const Segment> segments) {
    if (!one_grad_scale(segments))
        refuse("options: grad_norm: the groups have different grad_scale, so that the norm of all gradients says "
               "nothing of the scaled ones");
}

[[noreturn]] void refuse_overlap(const Overlap& overlap, const std::string& a, const std::string& b) {
    if (overlap.same_param) refuse(a + " and " + b + " are the same tensor: give each param once");
    refuse(a + " and " + b + " overlap in memory, and one of them is updated in place");
}

}  // namespace
}  // namespace adaptk::detail

using namespace adaptk::detail;

struct adaptk_plan {
    std::atomic<bool> busy{false};
    StepPlan plan;
    std::vector<TensorView> params;
    std::vector<std::vector<std::int64_t>> layouts;  // into which the views of params point
    std::int64_t total = 0;
    StepReport report;
    std::shared_ptr<Report> pending;  // the outcome of the last step, on a device

    std::string text_of(const BufferId& b) const {
        if (b.buffer >= copy_buffer) return text_of_epilogue(b.buffer, b.tensor);
        if (b.buffer < 2) return indexed(b.buffer == 0 ? "params" : "grads", b.tensor);
        const RuleInfo& rule = plan.rule(plan.group_of(b.tensor));
        return std::string(rule.states[b.buffer - 2].name) + " of " + indexed("params", b.tensor);
    }
    void add_group(const char* name, const adaptk_hyper* hypers, std::size_t hyper_count, std::size_t count,
                   Tensors params_in, const StateArguments& states_in);
    void step(std::size_t count, Tensors grads, const Options& options);
};

namespace {

// Held during a call, so that a concurrent call gets an error and there is no race.
class InUse {
  public:
    explicit InUse(adaptk_plan* plan) {
        need(plan, "plan");
        if (plan->busy.exchange(true, std::memory_order_acquire))
            refuse(ADAPTK_BUSY, "plan: it is being used by another thread");
        plan_ = plan;
    }
    ~InUse() {
        if (plan_ != nullptr) plan_->busy.store(false, std::memory_order_release);
    }
    InUse(const InUse&) = delete;
    InUse& operator=(const InUse&) = delete;

  private:
    adaptk_plan* plan_ = nullptr;
};

std::uint32_t check_group(const adaptk_plan& plan, std::size_t group) {
    if (group >= plan.plan.group_count())
        refuse("group: " + std::to_string(group) + ", expected less than " + std::to_string(plan.plan.group_count()));
    return std::uint32_t(group);
}

void check_count(const adaptk_plan& plan, std::size_t count) {
    if (count != plan.params.size())
        refuse("count: " + std::to_string(count) + ", expected " + std::to_string(plan.params.size()) +
               " as there are params");
}

}  // namespace

void adaptk_plan::add_group(const char* name, const adaptk_hyper* hypers, std::size_t hyper_count, std::size_t count,
                            Tensors params_in, const StateArguments& states_in) {
    const RuleInfo& rule = rule_of(name);
    const HyperValues hyper = with_hypers(rule, defaults_of(rule), hypers, hyper_count);
    const std::size_t first = params.size();
    const Device device = first > 0 ? plan.device_of(0) : Device{};
    std::int64_t elements = total;
    Buffers added(rule, count, params_in, states_in, first > 0 ? &device : nullptr, elements);
    check_count(first + count);
    // From here on, views point into the plan's own layouts.
    std::vector<std::vector<std::int64_t>> kept;
    for (TensorView& p : added.params) {
        std::vector<std::int64_t>& layout = kept.emplace_back(p.shape, p.shape + p.ndim);
        if (p.strides != nullptr) layout.insert(layout.end(), p.strides, p.strides + p.ndim);
        p.shape = layout.data();
        if (p.strides != nullptr) p.strides = layout.data() + p.ndim;
    }
    params.reserve(first + count);
    layouts.reserve(first + count);
    if (const auto overlap = plan.add_group(rule, hyper, added.updates, added.device)) {
        const auto text = [&](const BufferId& b) {
            if (b.tensor < first) return text_of(b) + " of an earlier group";
            return name_of_buffer(rule, b.tensor - first, b.buffer).text();
        };
        refuse_overlap(*overlap, text(overlap->first), text(overlap->second));
    }
    params.insert(params.end(), added.params.begin(), added.params.end());
    for (auto& layout : kept) layouts.push_back(std::move(layout));
    total = elements;
}

void adaptk_plan::step(std::size_t count, Tensors grads, const Options& options) {
    check_count(*this, count);
    need(grads, "grads");
    plan.begin();
    bool some = false;
    for (std::size_t i = 0; i < count; ++i) {
        if (grads[i] == nullptr) {
            // A param without a gradient is read only if it is copied or averaged.
            const Slot param =
                options.has_epilogues() ? stored_param(options, params[i], i) : Slot{{}, params[i].dtype};
            plan.store_param_as(i, param.format, param.side);
            continue;
        }
        some = true;
        const std::int64_t taken = plan.host_steps(i);
        if (taken == INT64_MAX) refuse("grads: more than 2**63 - 1 steps");
        const Slot grad = Buffers::grad_of(grads[i], i, params[i]);
        const Slot param = stored_param(options, params[i], i);
        plan.store_param_as(i, param.format, param.side);
        plan.add(i, grad.data, grad.format, taken + 1);
    }
    for (std::size_t i = 0; options.has_epilogues() && i < count; ++i)
        plan.set_epilogue(i, options.epilogue(i, params[i]));
    if (options.step.has_norm && some) check_one_scale(plan.shares()[0].segments);
    if (const auto overlap = plan.check(options.step.zero_grad))
        refuse_overlap(*overlap, text_of(overlap->first), text_of(overlap->second));
    if ((some || options.has_epilogues()) && plan.on_cuda()) {
        plan.shares()[0].stream = options.stream;
        plan.query_captures();
        if (plan.shares()[0].capturing)
            refuse(ADAPTK_UNSUPPORTED,
                   "options: the stream is captured in a graph, which would replay one step number");
    }
    Outcome outcome;
    outcome.report.has_norm = options.step.needs_norm();
    if (some || options.has_epilogues()) outcome = plan.run(options.step);
    report = outcome.report;
    pending = std::move(outcome.pending);
    if (some && !report.skipped) plan.count();
}

namespace {

// Waits for the outcome if the caller wants it.
StepReport step_on_device(const Buffers& buffers, const Segment& segment, const Options& wanted,
                          std::span<const Epilogue> epilogues, bool with_report) {
    const int device = buffers.device.id;
    StepReport outcome;
    StepOptions options = wanted.step;
    const bool known = options.has_norm && options.needs_norm();
    if (known) {
        outcome = report_of_known_norm({&segment, 1}, options);
        outcome.skipped = options.apply_known_norm(outcome);
        if (outcome.skipped) {
            if (options.zero_grad)
                call_cuda([&](const CudaBackend& cuda, CudaError& error) {
                    return cuda.zero_grads(device, wanted.stream, buffers.updates, error);
                });
            return outcome;
        }
    }
    CudaStep work{device, wanted.stream, buffers.updates, {&segment, 1}, options};
    CudaEpilogues beside;
    for (std::size_t i = 0; i < epilogues.size(); ++i) beside.add(buffers.updates[i], epilogues[i]);
    work.copies = beside.copies;
    work.averages = beside.averages;
    std::shared_ptr<CudaKept> reports;
    if (with_report && options.needs_norm()) {
        CudaKept* made = nullptr;
        call_cuda([&](const CudaBackend& cuda, CudaError& error) { return cuda.new_reports(device, 1, made, error); });
        reports = {made, need_cuda().release};
        work.reports = made;
    }
    call_cuda([&](const CudaBackend& cuda, CudaError& error) { return cuda.step(work, error); });
    if (reports)
        call_cuda(
            [&](const CudaBackend& cuda, CudaError& error) { return cuda.read_report(*reports, 0, outcome, error); });
    return outcome;
}

// Indices on the param's device are copied to `room`, after the work on the stream.
RowIndex index_of(const adaptk_tensor* t, const std::string& name, const Device& device, void* stream,
                  std::vector<std::int64_t>& room) {
    need(t, name.c_str());
    const bool there = t->device.device_type != ADAPTK_CPU;
    if (there && !(device.cuda && t->device.device_type == ADAPTK_CUDA && t->device.device_id == device.id))
        refuse(name + ": expected memory of the CPU" +
               (device.cuda ? ", or of " + device.text() + " like the param" : ""));
    if (t->dtype.code != code_int || (t->dtype.bits != 32 && t->dtype.bits != 64) || t->dtype.lanes != 1)
        refuse(ADAPTK_INVALID_TYPE, name + ": dtype " + dtype_text(t->dtype) + ", expected int32 or int64");
    if (t->ndim != 1) refuse(name + ": " + std::to_string(t->ndim) + " axes, expected one");
    if (t->shape == nullptr || t->shape[0] < 0) refuse(name + ": no shape");
    if (t->strides != nullptr && t->shape[0] > 1 && t->strides[0] != 1) refuse(name + ": not contiguous");
    if (t->data == nullptr && t->shape[0] > 0) refuse(name + ": " + no_memory);
    const auto* const data = static_cast<const std::byte*>(t->data) + t->byte_offset;
    if (reinterpret_cast<std::uintptr_t>(data) % (t->dtype.bits / 8u) != 0) refuse(name + ": not aligned");
    RowIndex index{data, t->dtype.bits == 64, t->shape[0]};
    if (!there || index.count == 0) return index;
    room.resize((index.bytes() + sizeof room[0] - 1) / sizeof room[0]);
    call_cuda([&](const CudaBackend& cuda, CudaError& error) {
        return cuda.read(device.id, stream, room.data(), data, index.bytes(), error);
    });
    index.data = room.data();
    return index;
}

// The gradients of one call that have values for some rows.
class RowArguments {
  public:
    RowArguments(const adaptk_rows* const* grads, adaptk_sparse_mode mode) : grads_(grads), mode_(mode) {}
    void take(std::size_t i, const TensorView& param, const RuleInfo& rule, const HyperValues& hyper, void* stream,
              ParamUpdate& t) {
        const std::string name = indexed("grads", i);
        need(grads_[i], name.c_str());
        if (const char* const reason = why_never_rows(rule))
            refuse(ADAPTK_UNSUPPORTED, name + ": a gradient of rows, and " + rule.name + " " + reason);
        const adaptk_rows& g = *grads_[i];
        check_size(name, g.size, {sizeof(adaptk_rows)}, "adaptk_make_rows()");
        if (param.ndim == 0) refuse(name + ": a gradient of rows, but the param has no axes");
        if (!param.c_order) refuse(name + ": a gradient of rows, but the param is not in C order");
        const RowIndex index = index_of(g.indices, name + ".indices", param.device, stream, read_.emplace_back());
        const std::string of_values = name + ".values";
        const Name values_name{of_values.c_str()};
        const TensorView values = view_of(g.values, values_name);
        std::int64_t row_size = 1;
        bool fits = values.ndim == param.ndim && values.shape[0] == index.count && values.device == param.device;
        for (std::int32_t a = 1; a < param.ndim; ++a) {
            row_size *= param.shape[a];
            fits = fits && values.shape[a] == param.shape[a];
        }
        if (!fits)
            refuse(of_values + ": shape " + values.shape_text() + ", expected one row of a param of shape " +
                   param.shape_text() + " for each of " + std::to_string(index.count) +
                   " indices, on the param's device");
        if (!values.c_order && values.size > 1) refuse(of_values + ": not in C order");
        std::size_t buffer = 0;
        if (const char* const reason = why_no_rows(t, rule.buffers(), row_size, buffer);
            reason != nullptr && mode_ != ADAPTK_DENSE)
            refuse(name_of_buffer(rule, i, buffer).text() + ": stored as " + name_of(t.format[buffer]) + ", " + reason);
        RowUpdate& rows = *made_.emplace_back(std::make_unique<RowUpdate>());
        if (const auto wrong = rows.assign(index, {values.data, values.dtype}, param.shape[0], row_size))
            refuse(name + ".indices: number " + std::to_string(*wrong) + " is " + std::to_string(index.at(*wrong)) +
                   ", expected in [0, " + std::to_string(param.shape[0]) + "), the rows of the param");
        rows.mode = SparseMode(mode_);
        rows.last_step = g.last_step;
        t.rows = &rows;
        t.format[1] = compute_format(t.format[0]);
        if (mode_ != ADAPTK_CATCH_UP) return;
        if (g.last_step == nullptr) refuse(name + ".last_step: NULL, and ADAPTK_CATCH_UP needs it");
        if (const char* const reason = why_no_catch_up(rule, hyper))
            refuse(std::string("mode: ADAPTK_CATCH_UP: ") + rule.name + " " + reason);
    }

  private:
    const adaptk_rows* const* grads_;
    adaptk_sparse_mode mode_;
    std::vector<std::unique_ptr<RowUpdate>> made_;
    std::vector<std::vector<std::int64_t>> read_;  // indices that were on a device
};

// One update, for adaptk_step(), adaptk_step_stored() and adaptk_step_rows(): `rows` is null except for the last one.
void take_step(const char* rule, const adaptk_hyper* hypers, std::size_t hyper_count, std::int64_t step,
               std::uint64_t seed, std::size_t count, Tensors params, Tensors grads, const StateArguments& states,
               const adaptk_step_options* options, adaptk_step_report* report, RowArguments* rows = nullptr) {
    apply_environment();
    const RuleInfo& info = rule_of(rule);
    if (const char* const reason = why_no_function(info)) refuse(ADAPTK_UNSUPPORTED, std::string(reason) + "a plan");
    const HyperValues hyper = with_hypers(info, defaults_of(info), hypers, hyper_count);
    if (step < 1) refuse("step: steps are counted from 1, got " + std::to_string(step));
    const Options wanted = read_options(options);
    check_report(report);
    std::int64_t total = 0;
    Buffers buffers(info, count, params, states, nullptr, total);
    if (rows == nullptr) {
        need(grads, "grads");
        for (std::size_t i = 0; i < count; ++i) buffers.take_grad(grads[i], i);
    }
    for (std::size_t i = 0; i < count; ++i) buffers.updates[i].set(0, stored_param(wanted, buffers.params[i], i));
    if (rows != nullptr) {
        if (wanted.step.zero_grad) refuse("options: zero_grad: gradients of rows are made anew for each step");
        for (std::size_t i = 0; i < count; ++i)
            rows->take(i, buffers.params[i], info, hyper, wanted.stream, buffers.updates[i]);
    }
    std::vector<Epilogue> epilogues;
    for (std::size_t i = 0; wanted.has_epilogues() && i < count; ++i)
        epilogues.push_back(wanted.epilogue(i, buffers.params[i]));
    StepPlan plan(StepPlan::Watch::all, StepPlan::Counts::caller);
    if (const auto overlap = plan.check_list(info, buffers.updates, wanted.step.zero_grad, epilogues)) {
        const auto text = [&](const BufferId& b) {
            return b.buffer >= copy_buffer ? text_of_epilogue(b.buffer, b.tensor)
                                           : name_of_buffer(info, b.tensor, b.buffer).text();
        };
        refuse_overlap(*overlap, text(overlap->first), text(overlap->second));
    }
    Segment segment{&info, hyper, step, count};
    segment.seed = seed;
    StepReport outcome;
    if (buffers.device.cuda) {
        outcome = step_on_device(buffers, segment, wanted, epilogues, report != nullptr);
    } else {
        StepOptions with = wanted.step;
        with.epilogues = epilogues;
        outcome = run_step(buffers.updates, {&segment, 1}, with);
    }
    if (report != nullptr) write_report(report, outcome);
}

void create(const char* rule, const adaptk_hyper* hypers, std::size_t hyper_count, std::size_t count, Tensors params,
            const StateArguments& states, adaptk_plan** plan) {
    apply_environment();
    need(plan, "plan");
    *plan = nullptr;
    auto made = std::make_unique<adaptk_plan>();
    made->add_group(rule, hypers, hyper_count, count, params, states);
    *plan = made.release();
}

// Fills a state with one value. If rounding is stochastic, all elements are rounded alike, to the same code as in
// Python.
void fill_state(const Slot& state, std::int64_t size, double value) {
    if (is_plain(state.format)) return fill(state, size, value);
    const FormatInfo& format = info_of(state.format);
    const std::vector<float> values(format.block, float(value));
    std::vector<std::byte> codes(storage_bytes(state.format, format.block));
    float scale = 0.0f;
    encode(values.data(), {codes.data(), state.format, &scale}, format.block,
           adaptk::buffer_key(adaptk::step_key(0, 1), 0, 0));
    auto* const out = static_cast<std::byte*>(state.data);
    for (std::int64_t i = 0; i < stored_count(state.format, size); ++i)
        std::memcpy(out + i * format.bytes, codes.data(), format.bytes);
    if (has_side(state.format)) std::fill_n(static_cast<float*>(state.side), side_count(state.format, size), scale);
}

}  // namespace

extern "C" {

adaptk_status adaptk_step(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, int64_t step, size_t count,
                          const adaptk_tensor* const* params, const adaptk_tensor* const* grads,
                          const adaptk_tensor* const* states, const adaptk_step_options* options,
                          adaptk_step_report* report) {
    return guarded([&] {
        take_step(rule, hypers, hyper_count, step, 0, count, params, grads, {.plain = states}, options, report);
    });
}

adaptk_status adaptk_step_stored(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, int64_t step,
                                 uint64_t seed, size_t count, const adaptk_tensor* const* params,
                                 const adaptk_tensor* const* grads, const adaptk_stored* const* states,
                                 const adaptk_step_options* options, adaptk_step_report* report) {
    return guarded([&] {
        take_step(rule, hypers, hyper_count, step, seed, count, params, grads, {.stored = states}, options, report);
    });
}

adaptk_status adaptk_step_rows(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, int64_t step,
                               uint64_t seed, size_t count, const adaptk_tensor* const* params,
                               const adaptk_rows* const* grads, const adaptk_stored* const* states,
                               adaptk_sparse_mode mode, const adaptk_step_options* options,
                               adaptk_step_report* report) {
    return guarded([&] {
        need(grads, "grads");
        if (int(mode) < ADAPTK_LAZY || int(mode) > ADAPTK_CATCH_UP)
            refuse("mode: " + std::to_string(int(mode)) + ", expected ADAPTK_LAZY, ADAPTK_DENSE or ADAPTK_CATCH_UP");
        RowArguments rows(grads, mode);
        take_step(rule, hypers, hyper_count, step, seed, count, params, nullptr, {.stored = states}, options, report,
                  &rows);
    });
}

adaptk_status adaptk_global_norm(size_t count, const adaptk_tensor* const* grads, double grad_scale, void* stream,
                                 double* norm) {
    return guarded([&] {
        apply_environment();
        check_count(count);
        need(grads, "grads");
        need(norm, "norm");
        if (!std::isfinite(grad_scale)) refuse("grad_scale: " + number_text(grad_scale) + " is not in (-inf, inf)");
        std::vector<ParamUpdate> tensors(count);
        Device device;
        std::int64_t total = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const Name name{"grads", i};
            const TensorView v = view_of(grads[i], name);
            if (!is_param(v)) reject(why_no_param(v), name);
            if (i == 0) device = v.device;
            if (!(v.device == device))
                refuse(name.text() + ": on " + v.device.text() + ", but grads[0] is on " + device.text());
            tensors[i] = ParamUpdate(v.size, compute_format(v.dtype), v.dtype);
            tensors[i].buffer[1] = v.data;
            if (adaptk::sum_overflows(total, v.size, total)) refuse("grads: more than 2**63 elements in all");
        }
        StepReport out;
        if (device.cuda) {
            call_cuda([&](const CudaBackend& part, CudaError& error) {
                return part.global_norm(device.id, stream, tensors, grad_scale, out, error);
            });
        } else {
            out = global_norm(tensors, grad_scale);
        }
        *norm = out.grad_norm;
    });
}

adaptk_status adaptk_accumulate(size_t count, const adaptk_tensor* const* into, const adaptk_tensor* const* grads,
                                double scale, void* stream, double* norm) {
    return guarded([&] {
        apply_environment();
        check_count(count);
        need(into, "into");
        need(grads, "grads");
        if (!std::isfinite(scale)) refuse("scale: " + number_text(scale) + " is not in (-inf, inf)");
        std::vector<ParamUpdate> tensors(count);
        std::vector<Extent> written;
        Device device;
        std::int64_t total = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const Name name{"into", i};
            const TensorView v = view_of(into[i], name);
            if (!is_param(v)) reject(why_no_param(v), name);
            if (compute_format(v.dtype) != v.dtype)
                refuse(ADAPTK_INVALID_TYPE,
                       name.text() + ": dtype " + name_of(v.dtype) + ", expected float32 or float64");
            if (i == 0) device = v.device;
            if (!(v.device == device))
                refuse(name.text() + ": on " + v.device.text() + ", but into[0] is on " + device.text());
            tensors[i] = ParamUpdate(v.size, v.dtype, v.dtype);
            tensors[i].set(0, {v.data, v.dtype});
            tensors[i].set(1, Buffers::grad_of(grads[i], i, v));
            written.push_back({v.begin(), v.end(), std::uint32_t(i)});
            if (adaptk::sum_overflows(total, v.size, total)) refuse("into: more than 2**63 elements in all");
        }
        WrittenMemory memory;
        Clash clash{};
        if (!memory.assign(std::move(written), clash))
            refuse_overlap({}, indexed("into", clash.first), indexed("into", clash.second));
        for (std::size_t i = 0; i < count; ++i) {
            const auto begin = reinterpret_cast<std::uintptr_t>(tensors[i].buffer[1]);
            if (const auto owner = memory.find(begin, begin + tensors[i].bytes(1)); owner != WrittenMemory::none)
                refuse_overlap({}, indexed("grads", i), indexed("into", owner));
        }
        StepReport out;
        if (!device.cuda) {
            if (norm != nullptr) {
                out = accumulate(tensors, scale);
            } else {
                add_scaled(tensors, scale);
            }
        } else {
            call_cuda([&](const CudaBackend& part, CudaError& error) {
                return part.add_scaled(device.id, stream, tensors, scale, error);
            });
            for (ParamUpdate& t : tensors) t.set(1, t.slot(0));
            if (norm != nullptr)
                call_cuda([&](const CudaBackend& part, CudaError& error) {
                    return part.global_norm(device.id, stream, tensors, 1.0, out, error);
                });
        }
        if (norm != nullptr) *norm = out.grad_norm;
    });
}

adaptk_status adaptk_plan_create(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, size_t count,
                                 const adaptk_tensor* const* params, const adaptk_tensor* const* states,
                                 adaptk_plan** plan) {
    return guarded([&] { create(rule, hypers, hyper_count, count, params, {.plain = states}, plan); });
}

adaptk_status adaptk_plan_create_stored(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, size_t count,
                                        const adaptk_tensor* const* params, const adaptk_stored* const* states,
                                        adaptk_plan** plan) {
    return guarded([&] { create(rule, hypers, hyper_count, count, params, {.stored = states}, plan); });
}

adaptk_status adaptk_plan_add_group(adaptk_plan* plan, const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                    size_t count, const adaptk_tensor* const* params,
                                    const adaptk_tensor* const* states) {
    return guarded([&] {
        const InUse use(plan);
        plan->add_group(rule, hypers, hyper_count, count, params, {.plain = states});
    });
}

adaptk_status adaptk_plan_add_group_stored(adaptk_plan* plan, const char* rule, const adaptk_hyper* hypers,
                                           size_t hyper_count, size_t count, const adaptk_tensor* const* params,
                                           const adaptk_stored* const* states) {
    return guarded([&] {
        const InUse use(plan);
        plan->add_group(rule, hypers, hyper_count, count, params, {.stored = states});
    });
}

adaptk_status adaptk_plan_destroy(adaptk_plan* plan) {
    if (plan != nullptr && plan->busy.exchange(true, std::memory_order_acquire))
        return guarded([] { refuse(ADAPTK_BUSY, "plan: it is being used by another thread"); });
    // Does not clear the message of an earlier call that failed: destructors may run before it is read.
    delete plan;
    return ADAPTK_OK;
}

adaptk_status adaptk_plan_init_states(adaptk_plan* plan) {
    return guarded([&] {
        const InUse use(plan);
        const FloatingPointMode mode;  // the initial values are rounded as a step would round them
        const StepPlan& p = plan->plan;
        if (p.device_of(0).cuda)
            refuse(ADAPTK_UNSUPPORTED, "plan: its states are on " + p.device_of(0).text() +
                                           "; fill them there with what adaptk_rule_state() says");
        for (std::size_t i = 0; i < p.size(); ++i) {
            const RuleInfo& rule = p.rule(p.group_of(i));
            for (std::size_t s = 0; s < rule.states.size(); ++s) {
                const adaptk::State& state = rule.states[s];
                double value = state.initial;
                for (std::size_t h = 0; state.from != nullptr && h < rule.hyper_count(); ++h)
                    if (std::strcmp(rule.hyper(h).name, state.from) == 0)
                        value = plan->plan.hyper(p.group_of(i)).value[h];
                fill_state(p.update(i).slot(2 + s), p.update(i).elements(2 + s), value);
            }
        }
    });
}

adaptk_status adaptk_plan_size(const adaptk_plan* plan, size_t* size) {
    return guarded([&] {
        need(size, "size");
        // Only the flag changes.
        const InUse use(const_cast<adaptk_plan*>(plan));
        *size = plan->params.size();
    });
}

adaptk_status adaptk_plan_set_hypers(adaptk_plan* plan, size_t group, const adaptk_hyper* hypers, size_t hyper_count) {
    return guarded([&] {
        const InUse use(plan);
        const std::uint32_t g = check_group(*plan, group);
        plan->plan.hyper(g) = with_hypers(plan->plan.rule(g), plan->plan.hyper(g), hypers, hyper_count);
    });
}

adaptk_status adaptk_plan_get_hyper(adaptk_plan* plan, size_t group, const char* name, double* value) {
    return guarded([&] {
        need(value, "value");
        const InUse use(plan);
        const std::uint32_t g = check_group(*plan, group);
        *value = plan->plan.hyper(g).value[hyper_index(plan->plan.rule(g), name, "name")];
    });
}

adaptk_status adaptk_plan_set_seed(adaptk_plan* plan, size_t group, uint64_t seed) {
    return guarded([&] {
        const InUse use(plan);
        plan->plan.seed(check_group(*plan, group)) = seed;
    });
}

adaptk_status adaptk_plan_get_seed(adaptk_plan* plan, size_t group, uint64_t* seed) {
    return guarded([&] {
        need(seed, "seed");
        const InUse use(plan);
        *seed = plan->plan.seed(check_group(*plan, group));
    });
}

adaptk_status adaptk_plan_step(adaptk_plan* plan, size_t count, const adaptk_tensor* const* grads,
                               const adaptk_step_options* options) {
    return guarded([&] {
        const InUse use(plan);
        plan->step(count, grads, read_options(options));
    });
}

adaptk_status adaptk_plan_report(adaptk_plan* plan, adaptk_step_report* report) {
    return guarded([&] {
        need(report, "report");
        check_report(report);
        const InUse use(plan);
        if (plan->pending) {
            plan->report = plan->pending->read();
            plan->pending.reset();
        }
        write_report(report, plan->report);
    });
}

adaptk_status adaptk_plan_get_steps(adaptk_plan* plan, size_t count, int64_t* steps) {
    return guarded([&] {
        need(steps, "steps");
        const InUse use(plan);
        check_count(*plan, count);
        const std::vector<std::int64_t> now = plan->plan.steps();
        std::copy(now.begin(), now.end(), steps);
    });
}

adaptk_status adaptk_plan_set_steps(adaptk_plan* plan, size_t count, const int64_t* steps) {
    return guarded([&] {
        need(steps, "steps");
        const InUse use(plan);
        check_count(*plan, count);
        for (std::size_t i = 0; i < count; ++i)
            if (steps[i] < 0) refuse(indexed("steps", i) + ": " + std::to_string(steps[i]) + " is negative");
        plan->plan.set_steps({steps, count}, 0);
    });
}

}  // extern "C"
