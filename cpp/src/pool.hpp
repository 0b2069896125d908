// Several threads for one piece of work: the library's own, or OpenMP's if it is built with OpenMP.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <memory>

namespace adaptk::detail {

// Calls work(context, k, n) once for each k = 0 ... n-1, on the calling thread and up to n-1 others, and returns when
// all are done. n is `threads`, or 1 if the pool is busy, even if with the calling thread's own work. No share may wait
// for another one.
void run_in_pool(int threads, void (*work)(void* context, int k, int n), void* context);

// The same for a body(k, n).
template <class Body> void run_in_pool(int threads, const Body& body) {
    run_in_pool(
        threads, [](void* context, int k, int n) noexcept { (*static_cast<const Body*>(context))(k, n); },
        const_cast<Body*>(std::addressof(body)));
}

// Runs body(k, n) for k = 0 ... n-1, the first on the calling thread. A team may be smaller than requested (1 inside a
// parallel region of the caller), so n is its actual size.
template <class Body> void run_on_threads(int threads, const Body& body) {
    if (threads <= 1) {
        body(0, 1);
        return;
    }
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num(), omp_get_num_threads());
#else
    run_in_pool(threads, body);
#endif
}

}  // namespace adaptk::detail
