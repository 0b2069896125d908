// A plan of steps: params with their states, bound once, and steps over those that have gradients. Every interface
// (functions, optimizer objects, PyTorch, JAX, C) uses it, and it does not use Python. An interface reads its own kind
// of objects into slots, and words error messages itself.
//
// A step is begin(), add() for each param that takes part, check(), run(), count(). run_part() is a step of one param
// alone.
#pragma once

#include "compiler.hpp"
#include "device_state.hpp"
#include "overlap.hpp"
#include "rows.hpp"
#include "step.hpp"
#include "tensor.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace adaptk::detail {

// The numbers of the buffers that epilogues write, after those of states.
inline constexpr std::uint32_t copy_buffer = max_buffers, average_buffer = max_buffers + 1;

// One buffer of a plan: number 0 is the param, 1 the gradient, from 2 on the states.
struct BufferId {
    std::uint32_t tensor, buffer;
};

// Two buffers that share memory, at least one of which is written.
struct Overlap {
    BufferId first, second;
    bool same_param;  // both are params, at the same address and of the same size
};

// A hyperparameter in device memory.
struct DeviceHyperOfGroup {
    std::uint32_t group, index;
    DeviceScalar scalar;
};

struct Outcome {
    StepReport report;
    std::shared_ptr<Report>
        pending;  // the device knows it later; then `report` says nothing but `skipped`, if it waited
};

// The tensors of a step on one device.
struct DeviceShare {
    Device device;
    void* stream = nullptr;  // set it before run()
    bool capturing = false;  // the stream is captured in a graph, as query_captures() found
    std::vector<std::uint32_t> tensors;
    std::vector<Segment> segments;
    std::vector<std::uint32_t> group_of;  // of each segment
    std::int64_t total = 0;               // elements
};

class StepPlan {
  public:
    // Which memory is checked for overlap: that of all tensors, or of those that take part in a step.
    enum class Watch { all, taking_part };

    // Who counts steps: the plan, or the caller, who passes the numbers to add().
    enum class Counts { plan, caller };

    explicit StepPlan(Watch watch = Watch::all, Counts counts = Counts::plan) : watch_(watch), counts_(counts) {}

    // Adds a group, whose tensors may be added later one by one. Groups are numbered in order.
    ADAPTK_INTERNAL_API std::uint32_t add_group(const RuleInfo& rule, const HyperValues& hyper);
    // Adds a group with all of its tensors, whose buffers the caller has checked, and which are on the device of the
    // others. If two buffers overlap, returns them and changes nothing; new tensors are numbered from size() on in the
    // result. Counts on the device are moved back to the host.
    ADAPTK_INTERNAL_API std::optional<Overlap> add_group(const RuleInfo& rule, const HyperValues& hyper,
                                                         std::span<const ParamUpdate> tensors, const Device& device);
    // Removes tensors and groups. What is on devices stays, because graphs may use it.
    ADAPTK_INTERNAL_API void clear_tensors();
    // Removes the last group.
    ADAPTK_INTERNAL_API void remove_group(std::size_t tensors);
    std::size_t group_count() const { return groups_.size(); }
    const RuleInfo& rule(std::uint32_t group) const { return *groups_[group].rule; }
    HyperValues& hyper(std::uint32_t group) { return groups_[group].hyper; }
    const HyperValues& hyper(std::uint32_t group) const { return groups_[group].hyper; }
    void set_rule(std::uint32_t group, const RuleInfo& rule) { groups_[group].rule = &rule; }
    // The seed of stochastic rounding: 0 unless it is set.
    std::uint64_t& seed(std::uint32_t group) { return groups_[group].seed; }
    std::uint64_t seed(std::uint32_t group) const { return groups_[group].seed; }

    // Adds a tensor to a group; its buffers may follow later, by bind().
    ADAPTK_INTERNAL_API void add_tensor(std::uint32_t group);
    void reserve(std::size_t tensors) {
        tensors_.reserve(tensors);
        updates_.reserve(tensors);
    }
    std::size_t size() const { return tensors_.size(); }
    std::uint32_t group_of(std::size_t i) const { return tensors_[i].group; }
    Device device_of(std::size_t i) const { return tensors_[i].device; }

    // Sets the param and the states of a tensor, which the caller has checked.
    ADAPTK_INTERNAL_API void bind(std::size_t i, const ParamUpdate& buffers, const Device& device);
    const ParamUpdate& update(std::size_t i) const { return updates_[i]; }
    // The buffer is now at another address.
    void move(std::size_t i, std::size_t buffer, void* to) {
        updates_[i].buffer[buffer] = to;
        indexed_ = false;
    }
    // Sets the format of a bound param, and its second buffer.
    void store_param_as(std::size_t i, Format format, void* side) {
        if (updates_[i].format[0] == format && updates_[i].side[0] == side) return;
        updates_[i].format[0] = format;
        updates_[i].side[0] = side;
        indexed_ = false;
    }
    // Sorts the memory that the tensors write by address, unless nothing has changed. Returns two buffers that overlap,
    // if there are any.
    ADAPTK_INTERNAL_API std::optional<Overlap> index();
    bool is_indexed() const { return indexed_; }
    // Whether the tensors are where they were when the first group was added.
    bool stays_on_device() const { return tensors_.empty() || tensors_[0].device == home_; }
    // A tensor that is not on the device of the first one.
    ADAPTK_INTERNAL_API std::optional<std::uint32_t> find_other_device() const;

    // Steps taken so far: of each tensor, and of the plan. If the device counts, they wait for it.
    std::int64_t host_steps(std::size_t i) const { return tensors_[i].steps; }
    ADAPTK_INTERNAL_API std::vector<std::int64_t> steps() const;
    ADAPTK_INTERNAL_API std::int64_t steps_taken() const;
    ADAPTK_INTERNAL_API void set_steps(std::span<const std::int64_t> steps, std::int64_t taken);
    bool counts_on_device() const { return state_ != nullptr && state_->counts_here(); }
    // Counts on the device from now on, so that a replayed graph counts too, and allocates memory for outcomes.
    ADAPTK_INTERNAL_API void become_capturable();

    // ---- a step

    ADAPTK_INTERNAL_API void begin();
    // Tensor i takes part; calls are in the order of i. The caller gives the step's number, or `device_step` if only
    // the device knows it. False: more than 2^63 elements.
    bool add(std::size_t i, void* grad, Format format, std::int64_t step, const DeviceScalar& device_step = {}) {
        DeviceShare& share = take(i, grad, format);
        if (share.segments.empty() || share.group_of.back() != tensors_[i].group || share.segments.back().has_memo ||
            share.segments.back().step != step ||
            (share.segments.back().device_step.data == nullptr) != (device_step.data == nullptr))
            open_segment(share, i, step, device_step);
        ++share.segments.back().count;
        return !sum_overflows(share.total, updates_[i].size, share.total);
    }
    // With what the rule keeps from earlier steps (Continued). `again`: the same as for the tensor before.
    bool add(std::size_t i, void* grad, Format format, const ContinuedStep& step, bool again) {
        DeviceShare& share = take(i, grad, format);
        if (!again || share.segments.empty()) open_segment(share, i, step);
        ++share.segments.back().count;
        return !sum_overflows(share.total, updates_[i].size, share.total);
    }
    // The same with a gradient that has values for some rows, which the caller keeps until the step is done. Or with
    // the dense gradient that add() was given, if rows must catch up before it (RowUpdate::whole).
    bool add_rows(std::size_t i, const RowUpdate& rows, std::int64_t step) {
        if (!add(i, nullptr, compute_format(updates_[i].param()), step)) return false;
        set_rows(i, rows);
        return true;
    }
    void set_rows(std::size_t i, const RowUpdate& rows) { updates_[i].rows = &rows; }
    std::vector<DeviceShare>& shares() { return shares_; }
    bool on_cuda() const { return !shares_.empty() && (shares_.size() > 1 || shares_[0].device.cuda); }
    std::int64_t elements() const { return shares_.empty() ? 0 : shares_[0].total; }

    // Sets what a tensor's step writes besides its buffers, until the next begin(). The caller has checked it.
    void set_epilogue(std::size_t i, const Epilogue& epilogue) {
        epilogues_.resize(tensors_.size());
        epilogues_[i] = epilogue;
    }

    // Checks gradients for overlap with the memory that is written and, if they are set to zero, with one another.
    ADAPTK_INTERNAL_API std::optional<Overlap> check(bool zero_grad = false);
    // Asks each share's stream whether it is captured in a graph.
    ADAPTK_INTERNAL_API void query_captures();
    ADAPTK_INTERNAL_API DeviceState& device_state(int device);

    // Runs the step completely or, except after errors of a device, not at all. Throws CudaFailure, NoCuda,
    // NoReportSlot, std::bad_alloc.
    ADAPTK_INTERNAL_API Outcome run(const StepOptions& options, std::span<const DeviceHyperOfGroup> hypers = {});
    // Counts one more step of the tensors that took part and of the plan.
    ADAPTK_INTERNAL_API void count();

    // The results of the last step's reductions over all tensors, of a program whose carried numbers depend on them.
    // Null if none of its tensors took part.
    const std::vector<double>* measured_by(const Program* program) const {
        for (const auto& [of, reduced] : measured_)
            if (of == program) return &reduced;
        return nullptr;
    }

    // A step of a single tensor on the CPU, whose cost does not depend on the number of other tensors. Threads may call
    // it at the same time for different tensors, if none of them changes the plan otherwise and index() has been called
    // since the last change. There is no clipping by a norm over all tensors.
    ADAPTK_INTERNAL_API std::optional<Overlap> check_part(std::size_t i, const void* grad, Format format) const;
    // The same for a gradient that has values for some rows.
    ADAPTK_INTERNAL_API std::optional<Overlap> check_rows(std::size_t i, const RowUpdate& rows) const;
    // The same among the tensor's own buffers, for plans with Watch::taking_part.
    ADAPTK_INTERNAL_API std::optional<Overlap> check_alone(std::size_t i, const Slot& grad) const;
    ADAPTK_INTERNAL_API StepReport run_part(std::size_t i, void* grad, Format format, const Segment& segment,
                                            const StepOptions& options) const;

    // For calls that pass all of their tensors, with gradients: checks for overlap as check() does, with an index that
    // is kept as long as the params and states stay the same.
    ADAPTK_INTERNAL_API std::optional<Overlap> check_list(const RuleInfo& rule, std::span<const ParamUpdate> tensors,
                                                          bool zero_grad = false,
                                                          std::span<const Epilogue> epilogues = {});

    // All rows of a tensor take the steps that they have missed, up to number `steps`.
    ADAPTK_INTERNAL_API void catch_up_rows_of(std::size_t i, const RowUpdate& rows, std::int64_t steps, void* stream);

    // ---- a look-ahead

    // p <- p + factor of its group * the rule's state, for every tensor of a single device, until undo_look_ahead().
    ADAPTK_INTERNAL_API void look_ahead(std::span<const double> factor_of_group, void* stream);
    // Restores the params, each at its present address; null: it is not restored.
    ADAPTK_INTERNAL_API void undo_look_ahead(std::span<void* const> params, void* stream);
    bool is_ahead() const { return ahead_; }

  private:
    struct Group {
        const RuleInfo* rule;
        HyperValues hyper;
        std::uint64_t seed = 0;
    };
    struct Tensor {
        Device device;
        std::uint32_t group = 0;
        std::int64_t steps = 0;
        // The last gradient that was found to overlap nothing, and the index_count_ for which this is true.
        const void* clear_grad = nullptr;
        Format clear_format = Format::float32;
        std::uint64_t clear_index = 0;
    };

    Watch watch_;
    Counts counts_;
    std::vector<Group> groups_;
    std::vector<Tensor> tensors_;
    std::vector<ParamUpdate> updates_;  // of the tensors; separate, because a step reads little else
    WrittenMemory written_;
    std::vector<std::uint32_t> watched_;  // the tensors whose memory written_ knows, if not all
    bool indexed_ = false;
    std::uint64_t index_count_ = 0;
    std::int64_t taken_ = 0;
    Device home_;

    std::vector<DeviceShare> shares_;
    std::vector<ParamUpdate> gathered_;  // of a step that not all take part in
    std::vector<Epilogue> epilogues_, gathered_epilogues_;
    // The memory of epilogues that was found to overlap nothing, and the index_count_ for which this is true.
    WrittenMemory beside_;
    std::vector<Extent> beside_extents_;
    std::uint64_t beside_index_ = 0;
    std::unique_ptr<DeviceState> state_;                  // of the device that all tensors are on
    std::map<int, std::unique_ptr<DeviceState>> states_;  // of the others

    decltype(StepReport::measured) measured_;    // by the last step
    std::vector<std::vector<std::byte>> saved_;  // params during a look-ahead
    bool ahead_ = false;

    DeviceShare& take(std::size_t i, void* grad, Format format) {
        updates_[i].buffer[1] = grad;
        updates_[i].format[1] = format;
        updates_[i].rows = nullptr;
        const Device& device = tensors_[i].device;
        DeviceShare& share = !shares_.empty() && shares_.back().device == device ? shares_.back() : share_of(device);
        share.tensors.push_back(std::uint32_t(i));
        return share;
    }
    ADAPTK_INTERNAL_API DeviceShare& share_of(const Device& device);
    ADAPTK_INTERNAL_API void open_segment(DeviceShare& share, std::size_t i, std::int64_t step,
                                          const DeviceScalar& device_step);
    ADAPTK_INTERNAL_API void open_segment(DeviceShare& share, std::size_t i, const ContinuedStep& step);
    static Overlap describe(const Clash& clash, std::span<const ParamUpdate> updates);
    bool index_covers_step() const;
    void count_on_device();
    std::span<const ParamUpdate> updates_of(const DeviceShare& share);
    std::span<const Epilogue> epilogues_of(const DeviceShare& share);
    void zero_grads_of(const DeviceShare& share);
    void run_other_epilogues(StepOptions options);
    std::optional<Overlap> check_epilogues(bool zero_grad);
    StepReport norm_over_devices(double grad_scale);
    void check_can_catch_up(const DeviceShare& share) const;
    void check_reductions_on_one_device() const;
    std::shared_ptr<Report> run_on_device(DeviceShare& share, const StepOptions& options,
                                          std::span<const DeviceHyperOfGroup> hypers);
};

}  // namespace adaptk::detail
