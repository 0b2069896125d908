#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>

#if defined(_OPENMP)
#include <omp.h>
#else
#include <thread>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define ADAPTK_HAS_FORK 1
#endif

namespace adaptk::detail {
namespace {

std::atomic<bool> forked{false};

int default_threads() {
#if defined(ADAPTK_HAS_FORK)
    [[maybe_unused]] static const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif
#if defined(_OPENMP)
    // OMP_NUM_THREADS may be any number.
    return int(std::clamp<long long>(omp_get_max_threads(), 1, max_threads));
#else
#if defined(__APPLE__)
    // Only fast cores count: threads have equal shares, and the others would wait for those of the efficient cores.
    int fast = 0;
    std::size_t size = sizeof fast;
    if (sysctlbyname("hw.perflevel0.logicalcpu", &fast, &size, nullptr, 0) == 0 && fast > 0) return fast;
#endif
    return int(std::clamp<long long>(std::thread::hardware_concurrency(), 1, max_threads));
#endif
}

std::atomic<int>& threads() {
    static std::atomic<int> n{default_threads()};
    return n;
}

thread_local int own_threads = 0;

}  // namespace

bool in_forked_child() { return forked.load(std::memory_order_relaxed); }

int openmp_date() {
#if defined(_OPENMP)
    return _OPENMP;
#else
    return 0;
#endif
}

int num_threads() {
    const int n = own_threads > 0 ? own_threads : threads().load(std::memory_order_relaxed);
    return in_forked_child() ? 1 : n;
}

void set_own_threads(int n) { own_threads = n; }

std::string set_num_threads(long long n) {
    if (n < 1 || n > max_threads)
        return "the number of threads must be in [1, " + std::to_string(max_threads) + "], got " + std::to_string(n);
    if (in_forked_child() && n > 1)
        return "a forked child works on one thread, because threads do not survive fork; start the process "
               "with the 'spawn' method instead";
    threads().store(int(n), std::memory_order_relaxed);
    return {};
}

std::string set_num_threads_from_environment() {
    threads();
    const char* text = std::getenv("ADAPTK_NUM_THREADS");
    if (text == nullptr || *text == '\0') return {};
    char* end = nullptr;
    errno = 0;
    const long long n = std::strtoll(text, &end, 10);
    if (errno != 0 || *end != '\0') return "ADAPTK_NUM_THREADS: not a number: '" + std::string(text) + "'";
    const std::string error = set_num_threads(n);
    return error.empty() ? error : "ADAPTK_NUM_THREADS: " + error;
}

}  // namespace adaptk::detail
