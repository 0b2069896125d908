#include "step_plan.hpp"

#include "rule_program.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

namespace adaptk::detail {
namespace {

// A buffer's number among the extents of written memory, beside tensors of which there are at most 2**28.
static_assert(average_buffer < 16);
constexpr std::uint32_t owner_of(std::size_t tensor, std::size_t buffer) { return std::uint32_t(tensor * 16 + buffer); }
constexpr BufferId buffer_of(std::uint32_t owner) { return {owner / 16, owner % 16}; }

void add_extents(std::vector<Extent>& out, const ParamUpdate& t, std::size_t tensor, std::size_t buffers) {
    for (std::size_t b = 0; b < buffers; ++b) {
        if (b == 1) continue;
        const auto begin = reinterpret_cast<std::uintptr_t>(t.buffer[b]);
        out.push_back({begin, begin + t.bytes(b), owner_of(tensor, b)});
        if (!has_side(t.format[b])) continue;
        const auto side = reinterpret_cast<std::uintptr_t>(t.side[b]);
        out.push_back({side, side + side_bytes(t.format[b], t.elements(b)), owner_of(tensor, b)});
    }
}

bool is_of_rows(const ParamUpdate& t) { return t.rows != nullptr && !t.rows->whole; }

std::array<std::pair<std::uintptr_t, std::uintptr_t>, 2> memory_of(const RowUpdate& rows) {
    const auto values = reinterpret_cast<std::uintptr_t>(rows.values().data);
    const auto index = reinterpret_cast<std::uintptr_t>(rows.index().data);
    return {{{values, values + rows.values_bytes()}, {index, index + rows.index().bytes()}}};
}

}  // namespace

std::uint32_t StepPlan::add_group(const RuleInfo& rule, const HyperValues& hyper) {
    groups_.push_back({&rule, hyper, 0});
    return std::uint32_t(groups_.size() - 1);
}

std::optional<Overlap> StepPlan::add_group(const RuleInfo& rule, const HyperValues& hyper,
                                           std::span<const ParamUpdate> tensors, const Device& device) {
    const auto group = std::uint32_t(groups_.size());
    std::vector<Tensor> all = tensors_;
    all.resize(all.size() + tensors.size());
    std::vector<ParamUpdate> updates = updates_;
    updates.insert(updates.end(), tensors.begin(), tensors.end());
    for (std::size_t i = tensors_.size(); i < all.size(); ++i) {
        all[i].device = device;
        all[i].group = group;
        updates[i].number = std::uint32_t(i);
    }
    std::vector<Extent> extents;
    for (std::size_t i = 0; i < all.size(); ++i) {
        const RuleInfo& of = all[i].group == group ? rule : *groups_[all[i].group].rule;
        add_extents(extents, updates[i], i, of.buffers());
    }
    WrittenMemory written;
    Clash clash{};
    if (!written.assign(std::move(extents), clash)) return describe(clash, updates);
    groups_.reserve(groups_.size() + 1);
    std::int64_t taken = taken_;
    if (counts_on_device()) {
        const std::vector<std::int64_t> counts = state_->read_counts();
        for (std::size_t i = 0; i + 1 < counts.size(); ++i) all[i].steps = counts[i];
        taken = counts.back();
        state_->forget_counts();
    }
    // Nothing fails from here on.
    if (tensors_.empty()) home_ = device;
    groups_.push_back({&rule, hyper, 0});
    tensors_.swap(all);
    updates_.swap(updates);
    std::swap(written_, written);
    taken_ = taken;
    indexed_ = true;
    ++index_count_;
    return {};
}

void StepPlan::clear_tensors() {
    shares_.clear();
    epilogues_.clear();
    groups_.clear();
    tensors_.clear();
    updates_.clear();
    watched_.clear();
    indexed_ = false;
}

void StepPlan::remove_group(std::size_t tensors) {
    groups_.pop_back();
    tensors_.resize(tensors_.size() - tensors);
    updates_.resize(updates_.size() - tensors);
    indexed_ = false;
}

void StepPlan::add_tensor(std::uint32_t group) {
    updates_.emplace_back();
    try {
        tensors_.emplace_back();
    } catch (...) {
        updates_.pop_back();
        throw;
    }
    tensors_.back().group = group;
    indexed_ = false;
}

void StepPlan::bind(std::size_t i, const ParamUpdate& buffers, const Device& device) {
    updates_[i] = buffers;
    updates_[i].number = std::uint32_t(i);
    tensors_[i].device = device;
    tensors_[i].clear_grad = nullptr;
    indexed_ = false;
}

std::optional<std::uint32_t> StepPlan::find_other_device() const {
    for (std::size_t i = 1; i < tensors_.size(); ++i)
        if (!(tensors_[i].device == tensors_[0].device)) return std::uint32_t(i);
    return {};
}

bool StepPlan::index_covers_step() const {
    if (watch_ == Watch::all) return true;
    std::size_t n = 0;
    for (const DeviceShare& s : shares_) n += s.tensors.size();
    if (n != watched_.size()) return false;
    auto expected = watched_.begin();
    for (const DeviceShare& s : shares_) {
        if (!std::equal(s.tensors.begin(), s.tensors.end(), expected)) return false;
        expected += std::ptrdiff_t(s.tensors.size());
    }
    return true;
}

std::optional<Overlap> StepPlan::index() {
    if (indexed_ && index_covers_step()) return {};
    std::vector<Extent> extents;
    std::vector<std::uint32_t> watched;
    const auto add = [&](std::size_t i) { add_extents(extents, updates_[i], i, rule(tensors_[i].group).buffers()); };
    if (watch_ == Watch::all) {
        for (std::size_t i = 0; i < tensors_.size(); ++i) add(i);
    } else {
        for (const DeviceShare& s : shares_) {
            for (const std::uint32_t i : s.tensors) add(i);
            watched.insert(watched.end(), s.tensors.begin(), s.tensors.end());
        }
    }
    Clash clash{};
    indexed_ = false;
    ++index_count_;
    if (!written_.assign(std::move(extents), clash)) return describe(clash, updates_);
    watched_ = std::move(watched);
    indexed_ = true;
    return {};
}

Overlap StepPlan::describe(const Clash& clash, std::span<const ParamUpdate> updates) {
    const BufferId a = buffer_of(clash.first), b = buffer_of(clash.second);
    const ParamUpdate& x = updates[a.tensor];
    const ParamUpdate& y = updates[b.tensor];
    // If their states are the same too, the overlap that was found may be one of states: that depends on the addresses.
    if (a.tensor != b.tensor && x.buffer[0] == y.buffer[0] && x.bytes(0) == y.bytes(0) && x.bytes(0) != 0)
        return {{a.tensor, 0}, {b.tensor, 0}, true};
    return {a, b, false};
}

void StepPlan::begin() {
    shares_.clear();
    epilogues_.clear();
    // A step without gradients is counted too, on the device that counts the others.
    if (counts_ == Counts::plan && !tensors_.empty() && tensors_[0].device.cuda) share_of(tensors_[0].device);
}

DeviceShare& StepPlan::share_of(const Device& device) {
    for (DeviceShare& s : shares_)
        if (s.device == device) return s;
    DeviceShare& s = shares_.emplace_back();
    s.device = device;
    s.tensors.reserve(tensors_.size());
    return s;
}

void StepPlan::open_segment(DeviceShare& share, std::size_t i, std::int64_t step, const DeviceScalar& device_step) {
    const std::uint32_t group = tensors_[i].group;
    Segment& s = share.segments.emplace_back(Segment{groups_[group].rule, groups_[group].hyper, step, 0});
    s.device_step = device_step;
    s.seed = groups_[group].seed;
    share.group_of.push_back(group);
}

void StepPlan::open_segment(DeviceShare& share, std::size_t i, const ContinuedStep& step) {
    const std::uint32_t group = tensors_[i].group;
    Segment& s = share.segments.emplace_back(Segment{groups_[group].rule, step.hyper, step.step, 0});
    s.has_memo = step.has_memo;
    s.drawn_step = step.drawn_step;
    s.seed = groups_[group].seed;
    std::memcpy(s.memo, step.memo, sizeof s.memo);
    share.group_of.push_back(group);
}

std::optional<Overlap> StepPlan::check_epilogues(bool zero_grad) {
    std::vector<Extent> extents;
    const auto add = [&](std::size_t i, std::size_t buffer, const Slot& s) {
        const auto begin = reinterpret_cast<std::uintptr_t>(s.data);
        extents.push_back({begin, begin + storage_bytes(s.format, updates_[i].size), owner_of(i, buffer)});
    };
    if (zero_grad)
        for (const DeviceShare& share : shares_)
            for (const std::uint32_t i : share.tensors) add(i, 1, updates_[i].slot(1));
    for (std::size_t i = 0; i < epilogues_.size(); ++i) {
        if (epilogues_[i].copy.data != nullptr) add(i, copy_buffer, epilogues_[i].copy);
        if (epilogues_[i].average.data != nullptr) add(i, average_buffer, epilogues_[i].average);
    }
    if (beside_index_ != index_count_ || extents != beside_extents_) {
        Clash clash{};
        beside_index_ = 0;
        if (!beside_.assign(extents, clash)) return describe(clash, updates_);
        for (const Extent& e : extents)
            if (const auto owner = written_.find(e.begin, e.end); owner != WrittenMemory::none)
                return Overlap{buffer_of(e.owner), buffer_of(owner), false};
        beside_extents_ = std::move(extents);
        beside_index_ = index_count_;
    }
    // Memory that is only read: params that are not stepped, and gradients that are kept.
    for (std::size_t i = 0; i < epilogues_.size(); ++i) {
        if (epilogues_[i].copy.data == nullptr && epilogues_[i].average.data == nullptr) continue;
        const auto begin = reinterpret_cast<std::uintptr_t>(updates_[i].buffer[0]);
        if (const auto owner = beside_.find(begin, begin + updates_[i].bytes(0)); owner != WrittenMemory::none)
            return Overlap{{std::uint32_t(i), 0}, buffer_of(owner), false};
    }
    if (zero_grad || epilogues_.empty()) return {};
    for (const DeviceShare& share : shares_) {
        for (const std::uint32_t i : share.tensors) {
            if (is_of_rows(updates_[i])) {
                for (const auto& [begin, end] : memory_of(*updates_[i].rows))
                    if (const auto owner = beside_.find(begin, end); owner != WrittenMemory::none)
                        return Overlap{{i, 1}, buffer_of(owner), false};
                continue;
            }
            const auto begin = reinterpret_cast<std::uintptr_t>(updates_[i].buffer[1]);
            if (const auto owner = beside_.find(begin, begin + updates_[i].bytes(1)); owner != WrittenMemory::none)
                return Overlap{{i, 1}, buffer_of(owner), false};
        }
    }
    return {};
}

std::optional<Overlap> StepPlan::check(bool zero_grad) {
    if (const auto overlap = index()) return overlap;
    if (zero_grad || !epilogues_.empty())
        if (const auto overlap = check_epilogues(zero_grad)) return overlap;
    for (const DeviceShare& share : shares_) {
        for (const std::uint32_t i : share.tensors) {
            Tensor& t = tensors_[i];
            const ParamUpdate& u = updates_[i];
            if (is_of_rows(u)) {
                if (const auto overlap = check_rows(i, *u.rows)) return overlap;
                continue;
            }
            if (t.clear_index == index_count_ && t.clear_grad == u.buffer[1] && t.clear_format == u.format[1]) continue;
            if (const auto overlap = check_part(i, u.buffer[1], u.format[1])) return overlap;
            t.clear_grad = u.buffer[1];
            t.clear_format = u.format[1];
            t.clear_index = index_count_;
        }
    }
    return {};
}

std::optional<Overlap> StepPlan::check_part(std::size_t i, const void* grad, Format format) const {
    const auto begin = reinterpret_cast<std::uintptr_t>(grad);
    const std::uint32_t owner = written_.find(begin, begin + storage_bytes(format, updates_[i].size));
    if (owner == WrittenMemory::none) return {};
    return Overlap{{std::uint32_t(i), 1}, buffer_of(owner), false};
}

std::optional<Overlap> StepPlan::check_rows(std::size_t i, const RowUpdate& rows) const {
    for (const auto& [begin, end] : memory_of(rows))
        if (const auto owner = written_.find(begin, end); owner != WrittenMemory::none)
            return Overlap{{std::uint32_t(i), 1}, buffer_of(owner), false};
    return {};
}

std::optional<Overlap> StepPlan::check_alone(std::size_t i, const Slot& grad) const {
    std::vector<Extent> extents;
    add_extents(extents, updates_[i], i, rule(tensors_[i].group).buffers());
    const auto begin = reinterpret_cast<std::uintptr_t>(grad.data);
    extents.push_back({begin, begin + storage_bytes(grad.format, updates_[i].size), owner_of(i, 1)});
    WrittenMemory memory;
    Clash clash{};
    if (memory.assign(std::move(extents), clash)) return {};
    return describe(clash, updates_);
}

StepReport StepPlan::run_part(std::size_t i, void* grad, Format format, const Segment& segment,
                              const StepOptions& options) const {
    ParamUpdate update = updates_[i];
    update.buffer[1] = grad;
    update.format[1] = format;
    update.rows = nullptr;
    return run_step({&update, 1}, {&segment, 1}, options);
}

std::optional<Overlap> StepPlan::check_list(const RuleInfo& rule, std::span<const ParamUpdate> tensors, bool zero_grad,
                                            std::span<const Epilogue> epilogues) {
    const std::size_t buffers = rule.buffers();
    const auto same = [&](const ParamUpdate& a, const ParamUpdate& b) {
        if (a.size != b.size || a.row_count != b.row_count) return false;
        for (std::size_t k = 0; k < buffers; ++k)
            if (k != 1 && (a.buffer[k] != b.buffer[k] || a.format[k] != b.format[k] || a.side[k] != b.side[k]))
                return false;
        return true;
    };
    const bool known = indexed_ && groups_.size() == 1 && groups_[0].rule->buffers() == buffers &&
                       std::equal(tensors.begin(), tensors.end(), updates_.begin(), updates_.end(), same);
    if (!known) {
        indexed_ = false;
        groups_.assign(1, Group{&rule, {}});
        updates_.assign(tensors.begin(), tensors.end());
        tensors_.assign(tensors.size(), Tensor{});
        if (const auto overlap = index()) return overlap;
    }
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const auto overlap = is_of_rows(tensors[i]) ? check_rows(i, *tensors[i].rows)
                                                    : check_part(i, tensors[i].buffer[1], tensors[i].format[1]);
        if (overlap) return overlap;
    }
    if (!zero_grad && epilogues.empty()) return {};
    begin();
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        add(i, tensors[i].buffer[1], tensors[i].format[1], 1);
        updates_[i].rows = tensors[i].rows;
    }
    epilogues_.assign(epilogues.begin(), epilogues.end());
    return check_epilogues(zero_grad);
}

// ---- counts

std::vector<std::int64_t> StepPlan::steps() const {
    std::vector<std::int64_t> out;
    if (counts_on_device()) {
        out = state_->read_counts();
        out.pop_back();
        return out;
    }
    out.reserve(tensors_.size());
    for (const Tensor& t : tensors_) out.push_back(t.steps);
    return out;
}

std::int64_t StepPlan::steps_taken() const { return counts_on_device() ? state_->read_counts().back() : taken_; }

void StepPlan::set_steps(std::span<const std::int64_t> steps, std::int64_t taken) {
    // A graph holds the address of the counts, so they are rewritten in place.
    if (counts_on_device()) {
        std::vector<std::int64_t> all(steps.begin(), steps.end());
        all.push_back(taken);
        state_->rewrite_counts(all);
    }
    for (std::size_t i = 0; i < steps.size(); ++i) tensors_[i].steps = steps[i];
    taken_ = taken;
}

void StepPlan::count() {
    if (counts_on_device()) return;
    for (const DeviceShare& s : shares_)
        for (const std::uint32_t i : s.tensors) ++tensors_[i].steps;
    ++taken_;
    for (Group& g : groups_) {
        const Program* const program = g.rule->program;
        if (program == nullptr) continue;
        if (!program->carries_measured()) {
            program->update_carried(*g.rule, g.hyper, taken_);
            continue;
        }
        if (const auto* const reduced = measured_by(program))
            program->update_carried(*g.rule, g.hyper, taken_, *reduced);
    }
}

// The plan's own count increases with those of its tensors, as if it were that of a tensor without elements.
void StepPlan::count_on_device() {
    for (const Group& g : groups_) {
        if (g.rule->program == nullptr || g.rule->program->carried.empty()) continue;
        CudaFailure refused;
        std::snprintf(refused.error.text, sizeof refused.error.text,
                      "%s hands numbers on from step to step, which the host computes: on a CUDA device it steps "
                      "without skip_nonfinite and capturable",
                      g.rule->name);
        throw refused;
    }
    std::vector<std::int64_t> all;
    for (const Tensor& t : tensors_) all.push_back(t.steps);
    all.push_back(taken_);
    state_->count_here(all);
}

void StepPlan::become_capturable() {
    DeviceState& state = device_state(tensors_[0].device.id);
    count_on_device();
    state.need_reports();
}

// ---- devices

DeviceState& StepPlan::device_state(int device) {
    if (state_ == nullptr) state_ = std::make_unique<DeviceState>(device);
    if (state_->device() == device) return *state_;
    auto& other = states_[device];
    if (other == nullptr) other = std::make_unique<DeviceState>(device);
    return *other;
}

void StepPlan::query_captures() {
    for (DeviceShare& s : shares_)
        if (s.device.cuda) s.capturing = device_state(s.device.id).capturing(s.stream);
}

std::span<const ParamUpdate> StepPlan::updates_of(const DeviceShare& share) {
    if (share.tensors.size() == updates_.size()) return updates_;
    gathered_.clear();
    for (const std::uint32_t i : share.tensors) gathered_.push_back(updates_[i]);
    return gathered_;
}

std::span<const Epilogue> StepPlan::epilogues_of(const DeviceShare& share) {
    if (epilogues_.empty() || share.tensors.size() == updates_.size()) return epilogues_;
    gathered_epilogues_.clear();
    for (const std::uint32_t i : share.tensors) gathered_epilogues_.push_back(epilogues_[i]);
    return gathered_epilogues_;
}

void StepPlan::zero_grads_of(const DeviceShare& share) {
    const std::span<const ParamUpdate> tensors = updates_of(share);
    if (!share.device.cuda) {
        zero_grads(tensors);
        return;
    }
    call_cuda([&](const CudaBackend& cuda, CudaError& error) {
        return cuda.zero_grads(share.device.id, share.stream, tensors, error);
    });
}

// Runs the epilogues of tensors on the CPU that take no part in the step.
void StepPlan::run_other_epilogues(StepOptions options) {
    std::vector<bool> done(epilogues_.size());
    for (const DeviceShare& s : shares_)
        for (const std::uint32_t i : s.tensors)
            if (i < done.size()) done[i] = true;
    gathered_.clear();
    gathered_epilogues_.clear();
    for (std::size_t i = 0; i < epilogues_.size(); ++i) {
        const Epilogue& e = epilogues_[i];
        if (done[i] || tensors_[i].device.cuda || (e.copy.data == nullptr && e.average.data == nullptr)) continue;
        gathered_.push_back(updates_[i]);
        gathered_epilogues_.push_back(e);
    }
    options.epilogues = gathered_epilogues_;
    if (!gathered_.empty()) run_epilogues(gathered_, options);
}

// The norm over several devices, which no single kernel can compute. Waits for the result of each device.
StepReport StepPlan::norm_over_devices(double grad_scale) {
    StepReport all;
    all.has_norm = true;
    double squares = 0.0;
    for (DeviceShare& s : shares_) {
        const std::span<const ParamUpdate> tensors = updates_of(s);
        StepReport part;
        if (s.device.cuda) {
            call_cuda([&](const CudaBackend& cuda, CudaError& error) {
                return cuda.global_norm(s.device.id, s.stream, tensors, grad_scale, part, error);
            });
        } else {
            part = global_norm(tensors, grad_scale);
        }
        all.finite = all.finite && part.finite;
        squares += part.grad_norm * part.grad_norm;
    }
    all.grad_norm = std::sqrt(squares);
    return all;
}

Outcome StepPlan::run(const StepOptions& given, std::span<const DeviceHyperOfGroup> hypers) {
    Outcome outcome;
    StepOptions options = given;
    outcome.report.has_norm = options.needs_norm();  // without tensors it is 0
    measured_.clear();
    if (shares_.size() > 1) check_reductions_on_one_device();
    // The norm if one device cannot compute it alone, or if it is known.
    if (options.needs_norm() && on_cuda() && (shares_.size() > 1 || options.has_norm)) {
        outcome.report = options.has_norm ? report_of_known_norm(shares_[0].segments, options)
                                          : norm_over_devices(options.grad_scale);
        outcome.report.skipped = options.apply_known_norm(outcome.report);
        if (outcome.report.skipped) {
            if (options.zero_grad)
                for (DeviceShare& s : shares_) zero_grads_of(s);
            return outcome;
        }
    }
    for (DeviceShare& s : shares_) {
        options.epilogues = epilogues_of(s);
        if (s.device.cuda) {
            outcome.pending = run_on_device(s, options, hypers);
        } else {
            StepReport report = run_step(updates_of(s), s.segments, options);
            measured_ = std::move(report.measured);
            report.measured.clear();
            if (options.needs_norm()) outcome.report = report;
        }
    }
    if (!outcome.report.skipped) run_other_epilogues(options);
    return outcome;
}

// Rows catch up by the host's count of steps, which is moved to the device and stays there.
void StepPlan::check_can_catch_up(const DeviceShare& share) const {
    for (const std::uint32_t i : share.tensors) {
        const RowUpdate* const rows = updates_[i].rows;
        if (rows == nullptr || rows->mode != SparseMode::catch_up) continue;
        CudaFailure refused;
        std::snprintf(refused.error.text, sizeof refused.error.text,
                      "rows on a CUDA device catch up by steps that the host counts: sparse='catch_up' is without "
                      "skip_nonfinite there");
        throw refused;
    }
}

// A reduction over all params is one tree, which must be on one device.
void StepPlan::check_reductions_on_one_device() const {
    for (const Group& g : groups_) {
        if (g.rule->program == nullptr || !g.rule->program->measures_all()) continue;
        CudaFailure refused;
        std::snprintf(refused.error.text, sizeof refused.error.text,
                      "%s has reductions over all params, which have to be on one device", g.rule->name);
        throw refused;
    }
}

std::shared_ptr<Report> StepPlan::run_on_device(DeviceShare& share, const StepOptions& options,
                                                std::span<const DeviceHyperOfGroup> hypers) {
    DeviceState& state = device_state(share.device.id);
    // Only the device knows whether a step was skipped, so from then on only the device knows the counts of steps.
    if (counts_ == Counts::plan && options.skip_nonfinite && !state.counts_here()) {
        check_can_catch_up(share);
        count_on_device();
    }
    std::vector<DeviceHyper> of_segments;
    for (const DeviceHyperOfGroup& h : hypers)
        for (std::uint32_t s = 0; s < share.segments.size(); ++s)
            if (share.group_of[s] == h.group) of_segments.push_back({s, h.index, h.scalar.data, h.scalar.type});
    std::span<const ParamUpdate> tensors = updates_of(share);
    CudaStep step{share.device.id, share.stream, tensors, share.segments, options};
    std::vector<ParamUpdate> counted;
    std::vector<Segment> counted_segments;
    std::vector<std::uint32_t> count_of;
    if (state.counts_here()) {
        counted.assign(tensors.begin(), tensors.end());
        counted.emplace_back(0, Format::float32, Format::float32);
        counted_segments = share.segments;
        if (counted_segments.empty()) counted_segments.push_back({groups_[0].rule, groups_[0].hyper, 1, 0});
        ++counted_segments.back().count;
        count_of = share.tensors;
        count_of.push_back(std::uint32_t(tensors_.size()));
        step.tensors = counted;
        step.segments = counted_segments;
        step.counts = state.counts();
        step.count_of = count_of;
    }
    CudaEpilogues beside;
    for (std::size_t i = 0; i < epilogues_.size(); ++i)
        if (tensors_[i].device == share.device) beside.add(updates_[i], epilogues_[i]);
    step.copies = beside.copies;
    step.averages = beside.averages;
    step.hypers = of_segments;
    step.workspace = state.workspace();
    step.measured = &measured_;
    std::shared_ptr<Report> report;
    if (options.needs_norm()) {
        report = state.next_report(share.capturing);
        step.reports = state.reports().places();
        step.report = Reports::place(*report);
    }
    call_cuda([&](const CudaBackend& cuda, CudaError& error) { return cuda.step(step, error); });
    return report;
}

void StepPlan::catch_up_rows_of(std::size_t i, const RowUpdate& rows, std::int64_t steps, void* stream) {
    const Tensor& of = tensors_[i];
    Segment segment{groups_[of.group].rule, groups_[of.group].hyper, steps, 1};
    segment.seed = groups_[of.group].seed;
    ParamUpdate update = updates_[i];
    update.rows = &rows;
    if (!of.device.cuda) return catch_up_rows(segment, update, steps);
    call_cuda([&](const CudaBackend& cuda, CudaError& error) {
        return cuda.catch_up(of.device.id, stream, segment, update, steps, error);
    });
}

// ---- a look-ahead

void StepPlan::look_ahead(std::span<const double> factor_of_group, void* stream) {
    // p and the state that is added to it, by group.
    std::vector<std::vector<ParamUpdate>> ahead(groups_.size());
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        const std::uint32_t group = tensors_[i].group;
        const std::size_t state = 2 + groups_[group].rule->ahead_state;
        ParamUpdate t(updates_[i].size, updates_[i].dtype(), updates_[i].format[state]);
        t.buffer[0] = updates_[i].buffer[0];
        t.buffer[1] = updates_[i].buffer[state];
        t.side[1] = updates_[i].side[state];
        ahead[group].push_back(t);
    }
    if (!tensors_.empty() && tensors_[0].device.cuda) {
        DeviceState& device = device_state(tensors_[0].device.id);
        std::vector<CudaPiece> params;
        for (const ParamUpdate& t : updates_) params.push_back({t.buffer[0], t.bytes(0)});
        device.save(stream, params);
        for (std::size_t g = 0; g < ahead.size(); ++g) {
            call_cuda([&](const CudaBackend& cuda, CudaError& error) {
                return cuda.add_scaled(device.device(), stream, ahead[g], factor_of_group[g], error);
            });
        }
    } else {
        std::vector<std::vector<std::byte>> saved;
        for (const ParamUpdate& t : updates_) {
            const auto* const from = static_cast<const std::byte*>(t.buffer[0]);
            saved.emplace_back(from, from + t.bytes(0));
        }
        for (std::size_t g = 0; g < ahead.size(); ++g) add_scaled(ahead[g], factor_of_group[g]);
        saved_ = std::move(saved);
    }
    ahead_ = true;
}

void StepPlan::undo_look_ahead(std::span<void* const> params, void* stream) {
    if (!std::exchange(ahead_, false)) return;
    if (!tensors_.empty() && tensors_[0].device.cuda) {
        device_state(tensors_[0].device.id).restore(stream, params);
        return;
    }
    const auto saved = std::exchange(saved_, {});
    for (std::size_t i = 0; i < params.size(); ++i)
        if (params[i] != nullptr && !saved[i].empty()) std::memcpy(params[i], saved[i].data(), saved[i].size());
}

}  // namespace adaptk::detail
