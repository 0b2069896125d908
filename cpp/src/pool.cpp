#include "pool.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#elif defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace adaptk::detail {
namespace {

using Work = void (*)(void* context, int k, int n);

// The threads wait inside this library for as long as the process lives, so it must not be unloaded.
void prevent_unloading() {
    static const char here = 0;
#if defined(_WIN32)
    HMODULE module = nullptr;
    GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN, &here, &module);
#elif defined(RTLD_NODELETE) && defined(RTLD_NOLOAD)
    // Null if the library is linked into the program, which is never unloaded.
    Dl_info found;
    if (dladdr(&here, &found) != 0 && found.dli_fname != nullptr)
        static_cast<void>(dlopen(found.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE));
#endif
}

// Threads that take shares of one piece of work at a time. The caller takes shares too until there are none left. So it
// waits only for shares that are being worked on; a thread that wakes up late does not delay the work.
class Pool {
  public:
    void run(int n, Work work, void* context) {
        // If each caller had its own threads, there would be more threads than processors.
        if (busy_.exchange(true, std::memory_order_acquire)) {
            work(context, 0, 1);
            return;
        }
        {
            const std::lock_guard lock(mutex_);
            grow(n - 1);
            work_ = work;
            context_ = context;
            next_ = 1;
            end_ = left_ = n;
        }
        for (int i = 1; i < n; ++i) wake_.notify_one();
        work(context, 0, n);
        std::unique_lock lock(mutex_);
        --left_;
        while (take(lock)) {
        }
        done_.wait(lock, [&] { return left_ == 0; });
        lock.unlock();
        busy_.store(false, std::memory_order_release);
    }

  private:
    // Runs one share, if there is one left. The lock is released meanwhile.
    bool take(std::unique_lock<std::mutex>& lock) {
        if (next_ >= end_) return false;
        const int k = next_++;
        const int n = end_;
        const Work work = work_;
        void* const context = context_;
        lock.unlock();
        work(context, k, n);
        lock.lock();
        if (--left_ == 0) done_.notify_one();
        return true;
    }

    void grow(int threads) {
        for (; size_ < threads; ++size_) {
            try {
                std::thread([this] {
                    std::unique_lock lock(mutex_);
                    while (true) {
                        wake_.wait(lock, [&] { return next_ < end_; });
                        take(lock);
                    }
                }).detach();
            } catch (const std::system_error&) {
                // The system gives no more threads: the existing ones do all the work.
                return;
            }
        }
    }

    std::atomic<bool> busy_{false};
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    int size_ = 0;
    Work work_ = nullptr;
    void* context_ = nullptr;
    int next_ = 0, end_ = 0, left_ = 0;
};

}  // namespace

void run_in_pool(int threads, Work work, void* context) {
    // Never destroyed: the threads may still run while the process ends.
    static Pool& pool = *[] {
        prevent_unloading();
        return new Pool;
    }();
    pool.run(threads, work, context);
}

}  // namespace adaptk::detail
