// The number of threads, and the floating-point mode that every thread of a step works in.
#pragma once

#include "export.hpp"

#include <cstdint>
#include <string>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace adaptk::detail {

inline constexpr long long max_threads = 1024;

ADAPTK_INTERNAL_API int num_threads();
// Sets num_threads() for the calling thread alone.
void set_own_threads(int n);
// Returns an empty string, or why the number cannot be set.
ADAPTK_INTERNAL_API std::string set_num_threads(long long n);
// Applies ADAPTK_NUM_THREADS. The default is that of OpenMP, or the number of processors. Returns what is wrong with
// the value, or "".
std::string set_num_threads_from_environment();

// The date of the OpenMP specification that the library was built for; 0 if it has its own threads.
ADAPTK_INTERNAL_API int openmp_date();

// Threads do not survive fork(). A child of a process that has used them would wait for them forever, so it works on
// the calling thread alone.
ADAPTK_INTERNAL_API bool in_forked_child();

// Sets rounding to nearest and keeps subnormal numbers, so that results do not depend on the mode of the caller's
// thread (libraries built with -ffast-math change it when they are loaded).
class FloatingPointMode {
  public:
#if defined(__SSE2__) || defined(_M_X64)
    FloatingPointMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~FloatingPointMode() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#elif defined(__aarch64__)
    FloatingPointMode() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_) : : "memory");
        __asm__ volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}) : "memory");
    }
    ~FloatingPointMode() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

  private:
    std::uint64_t saved_ = 0;
#else
    FloatingPointMode() {}
    ~FloatingPointMode() {}
#endif
  public:
    FloatingPointMode(const FloatingPointMode&) = delete;
    FloatingPointMode& operator=(const FloatingPointMode&) = delete;
};

}  // namespace adaptk::detail
