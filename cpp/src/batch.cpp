#include "batch.hpp"

#include "pool.hpp"
#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>

namespace adaptk::detail {

const BatchTable& batch_table([[maybe_unused]] std::string_view isa) {
    // v2 has the registers of the portable kernels, and little else that these loops would use.
#if defined(ADAPTK_X86_KERNELS)
    if (isa == "x86-64-v3") return batch_v3();
#if !defined(ADAPTK_NO_V4_KERNELS)
    if (isa == "x86-64-v4") return batch_v4();
#endif
#endif
    return batch_portable();
}

namespace {

using Clock = std::chrono::steady_clock;
using std::size_t;

constexpr size_t alignment = 64;
constexpr auto poll_interval = std::chrono::milliseconds(50);

struct Aligned {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t(alignment)); }
};

struct Queue {
    std::atomic<std::int64_t> next{0};
    std::int64_t count = 0, chunk = 1;
    std::atomic<bool> stopped{false};
    BatchPoll poll;
};

// One thread's view of the queue.
struct Worker {
    Queue* queue = nullptr;
    bool polls = false;
    Clock::time_point asked = Clock::now();

    static bool go(void* context) {
        auto& w = *static_cast<Worker*>(context);
        if (w.polls) {
            if (const auto now = Clock::now(); now - w.asked > poll_interval) {
                w.asked = now;
                if (!w.queue->poll.go(w.queue->poll.context)) w.queue->stopped.store(true, std::memory_order_relaxed);
            }
        }
        return !w.queue->stopped.load(std::memory_order_relaxed);
    }
    static bool more(void* context, std::int64_t& begin, std::int64_t& end) {
        Queue& q = *static_cast<Worker*>(context)->queue;
        begin = q.next.fetch_add(q.chunk, std::memory_order_relaxed);
        end = std::min(begin + q.chunk, q.count);
        return begin < q.count && go(context);
    }
};

}  // namespace

template <class T>
bool solve_batch(const BatchTable& table, int threads, const BatchChoice& choice, const solve::BatchProblem<T>& problem,
                 const solve::BatchOptions<T>& options, const BatchPoll& poll) {
    const BatchKernels<T>* kernels;
    if constexpr (sizeof(T) == 4) {
        kernels = &table.f32;
    } else {
        kernels = &table.f64;
    }
    const std::int64_t width = table.register_bytes / std::int64_t(sizeof(T));
    threads = int(std::clamp<std::int64_t>((problem.count + width - 1) / width, 1, threads));
    // Data, coordinates and weights.
    const size_t each =
        (size_t(problem.points) * size_t(2 + choice.inputs) * size_t(table.register_bytes) + alignment - 1) /
        alignment * alignment;
    const std::unique_ptr<std::byte[], Aligned> space(
        static_cast<std::byte*>(::operator new[](each * size_t(threads), std::align_val_t(alignment))));
    Queue queue;
    queue.count = problem.count;
    queue.poll = poll;
    // Small enough that the threads end at about the same time.
    queue.chunk = std::clamp<std::int64_t>(problem.count / (16 * std::int64_t(threads)), 1, 64);
    const auto work = [&](int thread) {
        const FloatingPointMode mode;
        Worker worker{&queue, thread == 0};
        kernels->run(choice, problem, options, space.get() + each * size_t(thread),
                     {Worker::more, Worker::go, &worker});
    };
    run_on_threads(threads, [&](int k, int) { work(k); });
    return !queue.stopped;
}

template bool solve_batch(const BatchTable&, int, const BatchChoice&, const solve::BatchProblem<float>&,
                          const solve::BatchOptions<float>&, const BatchPoll&);
template bool solve_batch(const BatchTable&, int, const BatchChoice&, const solve::BatchProblem<double>&,
                          const solve::BatchOptions<double>&, const BatchPoll&);

}  // namespace adaptk::detail
