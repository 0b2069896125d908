// What a plan keeps on a CUDA device besides params and states: memory for tables, the counts of steps if the host may
// not know them, the outcomes of steps, and copies of params during a look-ahead. Nearly every function may wait for
// the device, so callers must not hold the GIL.
#pragma once

#include "cuda_library.hpp"

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

namespace adaptk::detail {

class Reports;

// Thrown if there is no place for the outcome of another step.
struct ADAPTK_INTERNAL_API NoReportSlot {};

// The outcome of one step, which the device knows some time after the step was put on its stream. Reading it waits.
class Report {
  public:
    Report(std::shared_ptr<Reports> reports, std::size_t index, bool captured)
        : reports_(std::move(reports)), index_(index), captured_(captured) {}
    // Without has_norm if the step was captured in a graph that has not been replayed yet.
    ADAPTK_INTERNAL_API StepReport read();

  private:
    friend class Reports;
    bool known();
    std::shared_ptr<Reports> reports_;
    std::size_t index_;
    bool captured_;     // in a graph: each replay has an outcome of its own
    std::mutex mutex_;  // of what follows: any thread may read
    std::optional<StepReport> known_;
};

// Places on the device for outcomes, used in turn. An outcome that is still wanted is read before its place is used
// again, except under capture, when nothing can be waited for.
class Reports : public std::enable_shared_from_this<Reports> {
  public:
    static constexpr std::size_t count = 256;
    explicit Reports(int device);
    ~Reports();
    Reports(const Reports&) = delete;
    Reports& operator=(const Reports&) = delete;
    std::shared_ptr<Report> next(bool captured);  // throws NoReportSlot
    CudaKept* places() const { return places_; }
    static std::size_t place(const Report& report) { return report.index_; }

  private:
    CudaKept* places_ = nullptr;
    std::size_t next_ = 0;
    std::vector<std::weak_ptr<Report>> owners_;
    std::vector<bool> kept_;  // by a graph
};

class DeviceState {
  public:
    explicit DeviceState(int device) : device_(device) {}
    ADAPTK_INTERNAL_API ~DeviceState();
    DeviceState(const DeviceState&) = delete;
    DeviceState& operator=(const DeviceState&) = delete;

    int device() const { return device_; }
    CudaWorkspace* workspace();
    bool capturing(void* stream) const;

    // The device counts steps from now on; the last count is that of the plan itself.
    void count_here(std::span<const std::int64_t> steps);
    bool counts_here() const { return counts_ != nullptr; }
    CudaKept* counts() const { return counts_.get(); }
    std::vector<std::int64_t> read_counts() const;
    void rewrite_counts(std::span<const std::int64_t> steps);
    void forget_counts() { counts_.reset(); }

    // Makes places for outcomes, which is impossible under capture.
    ADAPTK_INTERNAL_API void need_reports();
    bool has_reports() const { return reports_ != nullptr; }
    std::shared_ptr<Report> next_report(bool captured);
    Reports& reports() { return *reports_; }

    // Copies memory for the time of a look-ahead.
    void save(void* stream, std::span<const CudaPiece> from);
    // Copies the pieces back, to their present addresses; null: the copy is dropped.
    void restore(void* stream, std::span<void* const> to);
    void forget_saved();

  private:
    int device_;
    CudaWorkspace* workspace_ = nullptr;
    std::shared_ptr<CudaKept> counts_;  // another thread may read them while this one makes new ones
    std::size_t count_size_ = 0;
    std::shared_ptr<Reports> reports_;
    CudaKept* saved_ = nullptr;
    std::vector<std::size_t> saved_bytes_;
};

}  // namespace adaptk::detail
