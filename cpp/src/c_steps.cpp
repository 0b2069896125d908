// The C interface: steps, norms and plans.
#include "c_api.hpp"

#include "compiler.hpp"
#include "environment.hpp"
#include "overlap.hpp"
#include "step.hpp"
#include "tensor.hpp"
#include "threads.hpp"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace adaptk::detail {
namespace {

using Tensors = const adaptk_tensor* const*;

// Owner numbers of extents: tensor and buffer in one.
static_assert(max_buffers <= 8);
constexpr std::uint32_t owner_of(std::size_t tensor, std::size_t buffer) { return std::uint32_t(tensor * 8 + buffer); }
constexpr std::size_t most_tensors = std::size_t{1} << 28;

std::string indexed(const char* name, std::size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

// Which argument an error is about, put into words where there is one.
struct Name {
    const char* name;
    std::size_t index;
    const RuleInfo* rule = nullptr;  // of a state: states[index] is number `state` of params[tensor]
    std::size_t tensor = 0;
    std::size_t state = 0;
    std::string text() const {
        const std::string plain = indexed(name, index);
        if (rule == nullptr) return plain;
        return plain + " (" + rule->states[state].name + " of " + indexed("params", tensor) + ")";
    }
};

Name name_of_buffer(const RuleInfo& rule, std::size_t tensor, std::size_t buffer) {
    if (buffer < 2) return {buffer == 0 ? "params" : "grads", tensor};
    return {"states", tensor * rule.states.size() + buffer - 2, &rule, tensor, buffer - 2};
}

std::string number_text(double x) {
    char text[32];
    std::snprintf(text, sizeof text, "%.17g", x);
    return text;
}

[[noreturn]] void reject(const Problem& problem, const Name& name) {
    refuse(problem.kind == Problem::Kind::type ? ADAPTK_INVALID_TYPE : ADAPTK_INVALID_ARGUMENT,
           name.text() + ": " + problem.text);
}

Device device_of(const adaptk_device& device, const Name& name) {
    const int type = int(device.device_type);
    if (type == ADAPTK_CPU || type == ADAPTK_CUDA_HOST || type == ADAPTK_ROCM_HOST) return {};
    if (type != ADAPTK_CUDA && type != ADAPTK_CUDA_MANAGED)
        refuse(name.text() + ": on a device of DLPack type " + std::to_string(type) +
               ", expected memory of the CPU or of a CUDA device");
    const auto on = [&] { return name.text() + ": on the device cuda:" + std::to_string(device.device_id) + ", but "; };
    static std::atomic<int> devices{0};
    int count = devices.load(std::memory_order_relaxed);
    if (device.device_id >= count) {
        try {
            call_cuda([&](const CudaBackend& part, CudaError& error) { return part.device_count(count, error); });
        } catch (const Failure& f) {
            refuse(f.status, on() + f.text);
        }
        devices.store(count, std::memory_order_relaxed);
    }
    if (device.device_id < 0 || device.device_id >= count)
        refuse(on() + "there are " + std::to_string(count) + " CUDA devices here");
    return {true, int(device.device_id)};
}

TensorView view_of(const adaptk_tensor* t, const Name& name) {
    if (t == nullptr) refuse(name.text() + ": NULL");
    TensorView v;
    v.device = device_of(t->device, name);
    if (t->ndim < 0) refuse(name.text() + ": ndim is " + std::to_string(t->ndim));
    if (t->ndim > 0 && t->shape == nullptr) refuse(name.text() + ": shape is NULL");
    if (const auto problem = read_tensor(*t, v)) reject(*problem, name);
    if (v.size > 0 && v.begin() % size_of(v.dtype) != 0)
        refuse(name.text() + ": data + byte_offset is no multiple of " + std::to_string(size_of(v.dtype)) +
               ", the size of its elements");
    return v;
}

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
    if (rule == nullptr) refuse(ADAPTK_UNKNOWN_NAME, "rule: unknown rule '" + std::string(name) + "'");
    return *rule;
}

HyperValues defaults_of(const RuleInfo& rule) {
    HyperValues values = {};
    for (std::size_t i = 0; i < rule.hyper_count(); ++i) values.value[i] = rule.hyper(i).value;
    return values;
}

void check_count(std::size_t count) {
    if (count == 0) refuse("count: 0 tensors");
    if (count > most_tensors) refuse("count: more than 2**28 tensors");
}

struct Options {
    StepOptions step;
    void* stream = nullptr;
};

Options read_options(const adaptk_step_options* given) {
    Options out;
    if (given == nullptr) return out;
    if (given->size != sizeof *given)
        refuse("options: size is " + std::to_string(given->size) + ", expected " + std::to_string(sizeof *given) +
               "; start from ADAPTK_STEP_OPTIONS");
    if (!std::isfinite(given->grad_scale))
        refuse("options: grad_scale: " + number_text(given->grad_scale) + " is not in (-inf, inf)");
    if (!(given->clip_norm >= 0.0))
        refuse("options: clip_norm: " + number_text(given->clip_norm) + " is not in [0, inf]");
    out.step.grad_scale = given->grad_scale;
    out.step.clip_norm = given->clip_norm > 0.0 ? given->clip_norm : -1.0;
    out.step.skip_nonfinite = given->skip_nonfinite != 0;
    out.step.want_norm = given->want_norm != 0;
    // cudaStreamLegacy and the null stream are the same one here.
    out.stream = reinterpret_cast<std::uintptr_t>(given->stream) == 1 ? nullptr : given->stream;
    return out;
}

bool has_norm(const StepOptions& o) { return o.clip_norm >= 0.0 || o.skip_nonfinite || o.want_norm; }

void check_report(const adaptk_step_report* report) {
    if (report != nullptr && report->size != sizeof *report)
        refuse("report: size is " + std::to_string(report->size) + ", expected " + std::to_string(sizeof *report) +
               "; start from ADAPTK_STEP_REPORT");
}

void write_report(adaptk_step_report* out, const StepReport& from) {
    out->grad_norm = from.has_norm ? from.grad_norm : 0.0;
    out->has_norm = from.has_norm ? 1 : 0;
    out->skipped = from.skipped ? 1 : 0;
}

// Memory of the CUDA part that is kept for the length of one call.
struct KeptForCall {
    CudaKept* kept = nullptr;
    KeptForCall() = default;
    ~KeptForCall() {
        if (kept != nullptr) need_cuda().release(kept);
    }
    KeptForCall(const KeptForCall&) = delete;
    KeptForCall& operator=(const KeptForCall&) = delete;
};

// Params and states of one call, checked: what a plan keeps, and what a step runs on.
struct Binding {
    std::vector<TensorView> params;
    std::vector<TensorStep> work;
    std::vector<Extent> written;
    std::vector<std::vector<std::int64_t>> layouts;  // that params' views point into, where they are kept
    std::int64_t total = 0;
    Device device;

    void add(const RuleInfo& rule, std::size_t count, Tensors params_in, Tensors states_in, bool keep);
};

void Binding::add(const RuleInfo& rule, std::size_t count, Tensors params_in, Tensors states_in, bool keep) {
    check_count(count);
    need(params_in, "params");
    const std::size_t states = rule.states.size();
    if (states > 0) need(states_in, "states");
    const std::size_t first = params.size();
    check_count(first + count);
    for (std::size_t i = 0; i < count; ++i) {
        const Name name{"params", i};
        TensorView p = view_of(params_in[i], name);
        if (!is_param(p)) reject(why_no_param(p), name);
        if (params.empty() && i == 0) device = p.device;
        if (!(p.device == device))
            refuse(name.text() + ": on " + p.device.text() + ", but params[0] is on " + device.text() +
                   "; one call works on the tensors of one device");
        TensorStep step{};
        step.buffer[0] = p.data;
        step.size = p.size;
        step.param = step.grad = p.dtype;
        written.push_back({p.begin(), p.end(), owner_of(first + i, 0)});
        for (std::size_t s = 0; s < states; ++s) {
            const Name of_state = name_of_buffer(rule, i, 2 + s);
            const TensorView v = view_of(states_in[i * states + s], of_state);
            if (!is_state_of(v, p)) reject(why_no_state(v, p), of_state);
            step.buffer[2 + s] = v.data;
            written.push_back({v.begin(), v.end(), owner_of(first + i, 2 + s)});
        }
        if (sum_overflows(total, p.size, total)) refuse("params: more than 2**63 elements in all");
        if (keep) {
            std::vector<std::int64_t> layout(p.shape, p.shape + p.ndim);
            if (p.strides != nullptr) layout.insert(layout.end(), p.strides, p.strides + p.ndim);
            layouts.push_back(std::move(layout));
            p.shape = layouts.back().data();
            if (p.strides != nullptr) p.strides = p.shape + p.ndim;
        }
        params.push_back(p);
        work.push_back(step);
    }
}

// The gradient of one tensor.
void take_grad(const adaptk_tensor* grad, std::size_t i, const TensorView& param, TensorStep& work) {
    const Name name{"grads", i};
    const TensorView g = view_of(grad, name);
    if (!is_grad_of(g, param)) reject(why_no_grad(g, param), name);
    work.buffer[1] = g.data;
    work.grad = g.dtype;
}

std::uint32_t overlapped(const WrittenMemory& written, const TensorStep& work) {
    const auto begin = reinterpret_cast<std::uintptr_t>(work.buffer[1]);
    return written.find(begin, begin + std::uintptr_t(work.size) * size_of(work.grad));
}

[[noreturn]] void refuse_overlap(const std::string& a, const std::string& b) {
    refuse(a + " and " + b + " overlap in memory, and one of them is updated in place");
}

// Of memory that is written, with the extents that the owners' numbers stand for.
[[noreturn]] void refuse_clash(const Clash& clash, const std::vector<TensorStep>& work, const std::string& a,
                               const std::string& b) {
    if (clash.first % 8 == 0 && clash.second % 8 == 0) {
        const TensorStep& x = work[clash.first / 8];
        const TensorStep& y = work[clash.second / 8];
        if (x.buffer[0] == y.buffer[0] && x.size == y.size && x.param == y.param)
            refuse(a + " and " + b + " are the same tensor: give each param once");
    }
    refuse_overlap(a, b);
}

}  // namespace
}  // namespace adaptk::detail

using namespace adaptk::detail;

struct adaptk_plan {
    struct Group {
        const RuleInfo* rule;
        HyperValues hyper;
        std::size_t first, count;
    };

    std::atomic<bool> busy{false};
    std::vector<Group> groups;
    Binding bound;
    WrittenMemory written;
    std::vector<std::int64_t> steps;  // taken so far
    StepReport report;

    // Of the step that runs, here so that most steps allocate nothing.
    std::vector<Segment> segments;
    std::vector<TensorStep> some;
    std::vector<std::uint32_t> which;

    // Of a plan on a CUDA device, made when they are first needed.
    CudaWorkspace* workspace = nullptr;
    CudaKept* counts = nullptr;  // of steps, where the device knows alone which were skipped
    CudaKept* outcome = nullptr;
    bool outcome_is_news = false;

    std::string text_of(std::uint32_t owner) const {
        const std::size_t tensor = owner / 8;
        for (const Group& g : groups)
            if (tensor >= g.first && tensor < g.first + g.count && owner % 8 >= 2)
                return std::string(g.rule->states[owner % 8 - 2].name) + " of " + indexed("params", tensor);
        return indexed(owner % 8 == 1 ? "grads" : "params", tensor);
    }
    void add_group(const char* name, const adaptk_hyper* hypers, std::size_t hyper_count, std::size_t count,
                   Tensors params, Tensors states);
    void step(std::size_t count, Tensors grads, const Options& options);
    void step_on_device(const Options& options);
    std::vector<std::int64_t> steps_now() const;
    void forget_counts() {
        if (counts != nullptr) need_cuda().release(std::exchange(counts, nullptr));
    }
    ~adaptk_plan() {
        if (workspace == nullptr) return;
        forget_counts();
        if (outcome != nullptr) need_cuda().release(outcome);
        need_cuda().release_workspace(workspace);
    }
};

namespace {

// For the time of a call: a second one gets an error in the place of a race.
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

adaptk_plan::Group& group_of(adaptk_plan& plan, std::size_t group) {
    if (group >= plan.groups.size())
        refuse("group: " + std::to_string(group) + ", expected less than " + std::to_string(plan.groups.size()));
    return plan.groups[group];
}

void check_size(const adaptk_plan& plan, std::size_t count) {
    if (count != plan.steps.size())
        refuse("count: " + std::to_string(count) + ", expected " + std::to_string(plan.steps.size()) +
               " as there are params");
}

}  // namespace

void adaptk_plan::add_group(const char* name, const adaptk_hyper* hypers, std::size_t hyper_count, std::size_t count,
                            Tensors params, Tensors states) {
    const RuleInfo& rule = rule_of(name);
    const HyperValues hyper = with_hypers(rule, defaults_of(rule), hypers, hyper_count);
    // On the side until nothing can fail any more. Layouts are moved, which leaves what views point to in place.
    Binding next;
    next.params = bound.params;
    next.work = bound.work;
    next.written = bound.written;
    next.total = bound.total;
    next.device = bound.device;
    const std::size_t first = next.params.size();
    next.add(rule, count, params, states, true);
    std::vector<std::int64_t> all_steps = steps_now();
    all_steps.resize(first + count);
    groups.reserve(groups.size() + 1);
    bound.layouts.reserve(first + count);
    WrittenMemory memory;
    Clash clash{};
    if (!memory.assign(next.written, clash)) {
        const auto text = [&](std::uint32_t owner) {
            if (owner / 8 < first) return text_of(owner) + " of an earlier group";
            return name_of_buffer(rule, owner / 8 - first, owner % 8).text();
        };
        refuse_clash(clash, next.work, text(clash.first), text(clash.second));
    }
    for (auto& layout : next.layouts) bound.layouts.push_back(std::move(layout));
    next.layouts = std::move(bound.layouts);
    bound = std::move(next);
    written = std::move(memory);
    steps = std::move(all_steps);
    groups.push_back({&rule, hyper, first, count});
    forget_counts();
}

std::vector<std::int64_t> adaptk_plan::steps_now() const {
    if (counts == nullptr) return steps;
    std::vector<std::int64_t> out(steps.size());
    call_cuda([&](const CudaBackend& part, CudaError& error) { return part.read_counts(*counts, out, error); });
    return out;
}

void adaptk_plan::step(std::size_t count, Tensors grads, const Options& options) {
    check_size(*this, count);
    need(grads, "grads");
    segments.clear();
    some.clear();
    which.clear();
    for (const Group& g : groups) {
        bool open = false;
        for (std::size_t i = g.first; i < g.first + g.count; ++i) {
            if (grads[i] == nullptr) continue;
            if (steps[i] == INT64_MAX) refuse("grads: more than 2**63 - 1 steps");
            TensorStep work = bound.work[i];
            take_grad(grads[i], i, bound.params[i], work);
            if (const auto owner = overlapped(written, work); owner != WrittenMemory::none)
                refuse_overlap(indexed("grads", i), text_of(owner));
            if (!open || segments.back().step != steps[i] + 1) {
                segments.push_back({g.rule, g.hyper, steps[i] + 1, 0});
                open = true;
            }
            ++segments.back().count;
            some.push_back(work);
            which.push_back(std::uint32_t(i));
        }
    }
    if (bound.device.cuda) {
        step_on_device(options);
        return;
    }
    report = run_step(some, segments, options.step);
    if (!report.skipped)
        for (const std::uint32_t i : which) ++steps[i];
}

void adaptk_plan::step_on_device(const Options& options) {
    const int device = bound.device.id;
    if (some.empty()) {
        report = {};
        report.has_norm = has_norm(options.step);
        outcome_is_news = false;
        return;
    }
    bool capturing = false;
    call_cuda([&](const CudaBackend& part, CudaError& error) {
        return part.capturing(device, options.stream, capturing, error);
    });
    if (capturing)
        refuse(ADAPTK_UNSUPPORTED, "options: the stream is captured in a graph, which would replay one step number");
    if (workspace == nullptr) {
        call_cuda(
            [&](const CudaBackend& part, CudaError& error) { return part.new_workspace(device, workspace, error); });
    }
    if (options.step.skip_nonfinite && counts == nullptr) {
        call_cuda(
            [&](const CudaBackend& part, CudaError& error) { return part.new_counts(device, steps, counts, error); });
    }
    const bool with_norm = has_norm(options.step);
    if (with_norm && outcome == nullptr) {
        call_cuda(
            [&](const CudaBackend& part, CudaError& error) { return part.new_reports(device, 1, outcome, error); });
    }
    CudaStep work{device, options.stream, some, segments, options.step};
    if (counts != nullptr) {
        work.counts = counts;
        work.count_of = which;
    }
    if (with_norm) work.reports = outcome;
    work.workspace = workspace;
    call_cuda([&](const CudaBackend& part, CudaError& error) { return part.step(work, error); });
    report = {};
    outcome_is_news = with_norm;
    if (counts == nullptr)
        for (const std::uint32_t i : which) ++steps[i];
}

extern "C" {

adaptk_status adaptk_step(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, int64_t step, size_t count,
                          const adaptk_tensor* const* params, const adaptk_tensor* const* grads,
                          const adaptk_tensor* const* states, const adaptk_step_options* options,
                          adaptk_step_report* report) {
    return guarded([&] {
        apply_environment();
        const RuleInfo& info = rule_of(rule);
        const HyperValues hyper = with_hypers(info, defaults_of(info), hypers, hyper_count);
        if (step < 1) refuse("step: steps are counted from 1, got " + std::to_string(step));
        const Options wanted = read_options(options);
        check_report(report);
        Binding bound;
        bound.add(info, count, params, states, false);
        need(grads, "grads");
        for (std::size_t i = 0; i < count; ++i) take_grad(grads[i], i, bound.params[i], bound.work[i]);
        WrittenMemory written;
        Clash clash{};
        const auto text = [&](std::uint32_t owner) { return name_of_buffer(info, owner / 8, owner % 8).text(); };
        if (!written.assign(std::move(bound.written), clash))
            refuse_clash(clash, bound.work, text(clash.first), text(clash.second));
        for (std::size_t i = 0; i < count; ++i)
            if (const auto owner = overlapped(written, bound.work[i]); owner != WrittenMemory::none)
                refuse_overlap(indexed("grads", i), text(owner));
        const Segment segment{&info, hyper, step, count};
        StepReport outcome;
        if (bound.device.cuda) {
            KeptForCall outcomes;
            CudaStep work{bound.device.id, wanted.stream, bound.work, {&segment, 1}, wanted.step};
            const bool news = report != nullptr && has_norm(wanted.step);
            if (news) {
                call_cuda([&](const CudaBackend& part, CudaError& error) {
                    return part.new_reports(bound.device.id, 1, outcomes.kept, error);
                });
                work.reports = outcomes.kept;
            }
            call_cuda([&](const CudaBackend& part, CudaError& error) { return part.step(work, error); });
            if (news) {
                call_cuda([&](const CudaBackend& part, CudaError& error) {
                    return part.read_report(*outcomes.kept, 0, outcome, error);
                });
            }
        } else {
            outcome = run_step(bound.work, {&segment, 1}, wanted.step);
        }
        if (report != nullptr) write_report(report, outcome);
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
        std::vector<TensorStep> tensors(count);
        Device device;
        std::int64_t total = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const Name name{"grads", i};
            const TensorView v = view_of(grads[i], name);
            if (!is_param(v)) reject(why_no_param(v), name);
            if (i == 0) device = v.device;
            if (!(v.device == device))
                refuse(name.text() + ": on " + v.device.text() + ", but grads[0] is on " + device.text());
            tensors[i] = {{nullptr, v.data}, v.size, compute_type(v.dtype), v.dtype};
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

adaptk_status adaptk_plan_create(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, size_t count,
                                 const adaptk_tensor* const* params, const adaptk_tensor* const* states,
                                 adaptk_plan** plan) {
    return guarded([&] {
        apply_environment();
        need(plan, "plan");
        *plan = nullptr;
        auto made = std::make_unique<adaptk_plan>();
        made->add_group(rule, hypers, hyper_count, count, params, states);
        *plan = made.release();
    });
}

adaptk_status adaptk_plan_add_group(adaptk_plan* plan, const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                    size_t count, const adaptk_tensor* const* params,
                                    const adaptk_tensor* const* states) {
    return guarded([&] {
        const InUse use(plan);
        plan->add_group(rule, hypers, hyper_count, count, params, states);
    });
}

adaptk_status adaptk_plan_destroy(adaptk_plan* plan) {
    return guarded([&] {
        if (plan == nullptr) return;
        if (plan->busy.exchange(true, std::memory_order_acquire))
            refuse(ADAPTK_BUSY, "plan: it is being used by another thread");
        delete plan;
    });
}

adaptk_status adaptk_plan_init_states(adaptk_plan* plan) {
    return guarded([&] {
        const InUse use(plan);
        const FloatingPointMode mode;  // the initial values are rounded as a step would round them
        if (plan->bound.device.cuda)
            refuse(ADAPTK_UNSUPPORTED, "plan: its states are on " + plan->bound.device.text() +
                                           "; fill them there with what adaptk_rule_state() says");
        for (const adaptk_plan::Group& g : plan->groups) {
            for (std::size_t s = 0; s < g.rule->states.size(); ++s) {
                const adaptk::State& state = g.rule->states[s];
                double value = state.initial;
                for (std::size_t h = 0; state.from != nullptr && h < g.rule->hyper_count(); ++h)
                    if (std::strcmp(g.rule->hyper(h).name, state.from) == 0) value = g.hyper.value[h];
                for (std::size_t i = g.first; i < g.first + g.count; ++i) {
                    const TensorStep& t = plan->bound.work[i];
                    fill(t.buffer[2 + s], t.size, compute_type(t.param), value);
                }
            }
        }
    });
}

adaptk_status adaptk_plan_size(const adaptk_plan* plan, size_t* size) {
    return guarded([&] {
        need(size, "size");
        // The flag is the only thing that changes.
        const InUse use(const_cast<adaptk_plan*>(plan));
        *size = plan->steps.size();
    });
}

adaptk_status adaptk_plan_set_hypers(adaptk_plan* plan, size_t group, const adaptk_hyper* hypers, size_t hyper_count) {
    return guarded([&] {
        const InUse use(plan);
        adaptk_plan::Group& g = group_of(*plan, group);
        g.hyper = with_hypers(*g.rule, g.hyper, hypers, hyper_count);
    });
}

adaptk_status adaptk_plan_get_hyper(adaptk_plan* plan, size_t group, const char* name, double* value) {
    return guarded([&] {
        need(value, "value");
        const InUse use(plan);
        const adaptk_plan::Group& g = group_of(*plan, group);
        *value = g.hyper.value[hyper_index(*g.rule, name, "name")];
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
        if (plan->outcome_is_news) {
            StepReport out;
            call_cuda([&](const CudaBackend& part, CudaError& error) {
                return part.read_report(*plan->outcome, 0, out, error);
            });
            plan->report = out;
            plan->outcome_is_news = false;
        }
        write_report(report, plan->report);
    });
}

adaptk_status adaptk_plan_get_steps(adaptk_plan* plan, size_t count, int64_t* steps) {
    return guarded([&] {
        need(steps, "steps");
        const InUse use(plan);
        check_size(*plan, count);
        const std::vector<std::int64_t> now = plan->steps_now();
        std::copy(now.begin(), now.end(), steps);
    });
}

adaptk_status adaptk_plan_set_steps(adaptk_plan* plan, size_t count, const int64_t* steps) {
    return guarded([&] {
        need(steps, "steps");
        const InUse use(plan);
        check_size(*plan, count);
        for (std::size_t i = 0; i < count; ++i)
            if (steps[i] < 0) refuse(indexed("steps", i) + ": " + std::to_string(steps[i]) + " is negative");
        std::vector<std::int64_t> copy(steps, steps + count);
        if (plan->counts != nullptr) {
            call_cuda([&](const CudaBackend& part, CudaError& error) {
                return part.write_counts(*plan->counts, copy, error);
            });
        }
        plan->steps = std::move(copy);
    });
}

}  // extern "C"
