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
    Report(std::shared_ptr<Reports> reports, std::size_t index, void* stream, bool replayed)
        : reports_(std::move(reports)), index_(index), stream_(stream), replayed_(replayed) {}
    detail::StepReport read();

  private:
    friend class Reports;
    std::shared_ptr<Reports> reports_;
    std::size_t index_;
    void* stream_;
    bool replayed_;     // captured in a graph: each replay has an outcome of its own
    std::mutex mutex_;  // of what follows: any thread may look; Python never runs under it
    std::optional<detail::StepReport> known_;
};

// Places on the device for outcomes, used in turn: one that is still wanted is read before its place is used again.
class Reports : public std::enable_shared_from_this<Reports> {
  public:
    Reports(int device, void* stream);
    ~Reports();
    Reports(const Reports&) = delete;
    Reports& operator=(const Reports&) = delete;
    std::shared_ptr<Report> next(void* stream, bool replayed);
    void* place(std::size_t index) const;
    void* place(const Report& report) const { return place(report.index_); }
    int device() const { return device_; }

  private:
    static constexpr std::size_t count = 256;
    int device_;
    void* memory_ = nullptr;
    void* stream_;
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
    void count_here(void* stream, std::span<const std::int64_t> steps);
    bool counts_here() const { return counts_ != nullptr; }
    void* counts() const { return counts_; }
    std::vector<std::int64_t> read_counts() const;
    void rewrite_counts(std::span<const std::int64_t> steps);
    void forget_counts();
    // The stream that the counts were last used on.
    void set_stream(void* stream) { counts_stream_ = stream; }

    void need_reports(void* stream);
    std::shared_ptr<Report> next_report(void* stream, bool replayed);
    Reports& reports() { return *reports_; }

    // Copies of memory, for the length of a look-ahead.
    void save(void* stream, const View& view);
    void restore(void* stream, std::size_t index, const View& view);
    void forget_saved();

  private:
    struct Saved {
        void* memory;
        std::size_t bytes;
        void* stream;
    };
    int device_;
    detail::CudaWorkspace* workspace_ = nullptr;
    void* counts_ = nullptr;
    std::size_t count_size_ = 0;
    void* counts_stream_ = nullptr;
    std::shared_ptr<Reports> reports_;
    std::vector<Saved> saved_;
};

}  // namespace adaptk::bindings
