// A queue of work for one background thread, which runs it in order.
#pragma once

#include "export.hpp"

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace adaptk::detail {

class WorkQueue {
  public:
    // `threads`: the value of num_threads() while the work runs.
    ADAPTK_INTERNAL_API explicit WorkQueue(int threads);
    // Waits for all work.
    ADAPTK_INTERNAL_API ~WorkQueue();
    WorkQueue(const WorkQueue&) = delete;
    WorkQueue& operator=(const WorkQueue&) = delete;

    int threads() const { return threads_; }
    // `work` must not throw. The caller keeps what it refers to until it is done. In a forked child, which does not
    // have the thread, it runs at once on the calling thread.
    ADAPTK_INTERNAL_API void push(std::function<void()> work);
    // Waits until all pushed work is done.
    ADAPTK_INTERNAL_API void wait();

  private:
    void run();

    const int threads_;
    std::mutex mutex_;
    std::condition_variable given_, idle_;
    std::deque<std::function<void()>> work_;
    bool busy_ = false, ends_ = false;
    std::thread thread_;  // started with the first work
};

}  // namespace adaptk::detail
