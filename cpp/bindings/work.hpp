// Steps and sums of gradients that a queue does without the GIL, between copies from and to a device.
#pragma once

#include "step.hpp"
#include "work_queue.hpp"

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>

namespace adaptk::bindings {

// Four functions of CUDA's driver, whose events and streams are PyTorch's; adaptk/torch/_offload.py finds them.
struct DeviceCalls {
    int (*enter)(void* context) = nullptr;
    int (*wait)(void* event) = nullptr;
    int (*send)(std::uint64_t to, const void* from, std::size_t bytes, void* stream) = nullptr;
    void* context = nullptr;
};

// What comes before and after a piece of work on a device: a copy to here that an event stands for, and one from here.
struct Transfer {
    void* event = nullptr;
    std::uint64_t to = 0;
    const void* from = nullptr;
    std::size_t bytes = 0;
    void* stream = nullptr;
};

// event: a number, 0 for none; send: (to, from, bytes, stream) or None.
Transfer transfer_of(std::uintptr_t event, const pybind11::object& send);

class TaskQueue {
  public:
    TaskQueue(int threads, const std::map<std::string, std::uintptr_t>& calls);
    ~TaskQueue();
    detail::WorkQueue& queue() { return queue_; }
    const DeviceCalls& calls() const { return calls_; }

  private:
    DeviceCalls calls_;
    detail::WorkQueue queue_;
};

// One piece of work. It is waited for before it ends.
class Task {
  public:
    Task() = default;
    ~Task() { wait(); }
    Task(const Task&) = delete;
    Task& operator=(const Task&) = delete;

    void start(pybind11::object queue, const Transfer& transfer, std::function<detail::StepReport()> what);
    bool started() const { return !queue_.is_none(); }
    bool is_done() const { return done_.load(std::memory_order_acquire); }
    void wait();
    // These once it is done. It may have been put through even if there is an error: that of sending.
    bool succeeded() const { return succeeded_; }
    const std::string& error() const { return error_; }
    const detail::StepReport& report() const { return report_; }

  private:
    pybind11::object queue_ = pybind11::none();
    std::atomic<bool> done_{false};
    bool succeeded_ = false;
    std::string error_;
    detail::StepReport report_;
};

void register_work(pybind11::module_& m);

}  // namespace adaptk::bindings
