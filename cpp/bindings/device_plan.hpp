// What an optimizer object keeps on a CUDA device beside the params and states: memory for tables, the counts of steps
// where the host may not know them, and the outcomes of steps.
#pragma once

#include "arguments.hpp"

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

namespace adaptk::bindings {

class Reports;

// The outcome of one step, which the device knows some time after the step was put on its stream. Looking at it waits.
class Report {
  public:
    Report(std::shared_ptr<Reports> reports, std::size_t index, bool captured)
        : reports_(std::move(reports)), index_(index), captured_(captured) {}
    detail::StepReport read();

  private:
    friend class Reports;
    bool known();
    std::shared_ptr<Reports> reports_;
    std::size_t index_;
    bool captured_;     // in a graph: each replay has an outcome of its own
    std::mutex mutex_;  // of what follows: any thread may look; Python never runs under it
    std::optional<detail::StepReport> known_;
};

// Places on the device for outcomes, used in turn: one that is still wanted is read before its place is used again, but
// not under capture, where nothing can be waited for.
class Reports : public std::enable_shared_from_this<Reports> {
  public:
    explicit Reports(int device);
    ~Reports();
    Reports(const Reports&) = delete;
    Reports& operator=(const Reports&) = delete;
    std::shared_ptr<Report> next(bool captured);
    detail::CudaKept* places() const { return places_; }
    static std::size_t place(const Report& report) { return report.index_; }

  private:
    static constexpr std::size_t count = 256;
    detail::CudaKept* places_ = nullptr;
    std::size_t next_ = 0;
    std::vector<std::weak_ptr<Report>> owners_;
    std::vector<bool> kept_;  // by a graph
};

class DevicePlan {
  public:
    explicit DevicePlan(int device) : device_(device) {}
    ~DevicePlan();
    DevicePlan(const DevicePlan&) = delete;
    DevicePlan& operator=(const DevicePlan&) = delete;

    int device() const { return device_; }
    detail::CudaWorkspace* workspace();

    // The device counts steps from now on; the last count is that of the optimizer itself.
    void count_here(std::span<const std::int64_t> steps);
    bool counts_here() const { return counts_ != nullptr; }
    detail::CudaKept* counts() const { return counts_.get(); }
    std::vector<std::int64_t> read_counts() const;
    void rewrite_counts(std::span<const std::int64_t> steps);
    void forget_counts();

    // Places for outcomes, which cannot be made under capture.
    void need_reports();
    bool has_reports() const { return reports_ != nullptr; }
    std::shared_ptr<Report> next_report(bool captured);
    Reports& reports() { return *reports_; }

    // Copies of memory, for the length of a look-ahead.
    void save(void* stream, std::span<const View* const> from);
    // To where the same views lie now; null: lost.
    void restore(void* stream, std::span<const View* const> to);
    void forget_saved();

  private:
    int device_;
    detail::CudaWorkspace* workspace_ = nullptr;
    std::shared_ptr<detail::CudaKept> counts_;  // another thread may read them while this one makes new ones
    std::size_t count_size_ = 0;
    std::shared_ptr<Reports> reports_;
    detail::CudaKept* saved_ = nullptr;
    std::vector<std::size_t> saved_bytes_;
};

}  // namespace adaptk::bindings
