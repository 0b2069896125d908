#include "work_queue.hpp"

#include "threads.hpp"

#include <utility>

namespace adaptk::detail {

WorkQueue::WorkQueue(int threads) : threads_(threads) {}

WorkQueue::~WorkQueue() {
    if (!thread_.joinable()) return;
    if (in_forked_child()) {
        thread_.detach();
        return;
    }
    {
        const std::lock_guard lock(mutex_);
        ends_ = true;
    }
    given_.notify_one();
    thread_.join();
}

void WorkQueue::push(std::function<void()> work) {
    if (in_forked_child()) {
        work();
        return;
    }
    {
        const std::lock_guard lock(mutex_);
        if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
        work_.push_back(std::move(work));
    }
    given_.notify_one();
}

void WorkQueue::wait() {
    if (in_forked_child()) return;
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return work_.empty() && !busy_; });
}

void WorkQueue::run() {
    set_own_threads(threads_);
    std::unique_lock lock(mutex_);
    while (true) {
        given_.wait(lock, [&] { return ends_ || !work_.empty(); });
        if (work_.empty()) return;
        {
            const std::function<void()> work = std::move(work_.front());
            work_.pop_front();
            busy_ = true;
            lock.unlock();
            work();
        }
        lock.lock();
        busy_ = false;
        if (work_.empty()) idle_.notify_all();
    }
}

}  // namespace adaptk::detail
