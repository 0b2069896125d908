// The only macro header: function markers for host and device code, what compilers spell differently, and the namespace
// of the instruction set that a translation unit is compiled for.
#pragma once

// GCC and Clang, clang-cl included, have builtins and vector types. With ADAPTK_STANDARD_CXX they are not used, so that
// the code for other compilers can be tested with GCC and Clang.
#if (defined(__GNUC__) || defined(__clang__)) && !defined(ADAPTK_STANDARD_CXX)
#define ADAPTK_GNU 1
#endif

// For what a step computes once: on the host, or on the device if the step count and the hyperparameters are there.
#if defined(__CUDACC__)
#define ADAPTK_HOST_DEVICE __host__ __device__
#else
#define ADAPTK_HOST_DEVICE
#endif

// A rule's formula must be inlined into the loop around it at every optimisation level. An out-of-line copy in an
// object that is compiled for AVX-512 would be a symbol that the linker may choose for all objects, and a processor
// without AVX-512 cannot run it.
#if defined(__CUDACC__)
#define ADAPTK_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define ADAPTK_HD __forceinline
#else
#define ADAPTK_HD inline __attribute__((always_inline))
#endif

// Before a loop whose iterations are independent, because arrays do not overlap. With `omp simd` instead, GCC 12 emits
// scalar code.
#if defined(__clang__)
#define ADAPTK_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ADAPTK_INDEPENDENT _Pragma("GCC ivdep")
#elif defined(_MSC_VER)
#define ADAPTK_INDEPENDENT __pragma(loop(ivdep))
#else
#define ADAPTK_INDEPENDENT
#endif

// Before a loop over the parts of a small array, which then stays in registers.
#if defined(ADAPTK_GNU)
#define ADAPTK_UNROLL _Pragma("GCC unroll 16")
#else
#define ADAPTK_UNROLL
#endif

#if defined(_MSC_VER)
#define ADAPTK_RESTRICT __restrict
#else
#define ADAPTK_RESTRICT __restrict__
#endif

// Kernel objects define ADAPTK_TARGET (portable, v2, v3, v4, neon), so that everything that a rule header declares has
// a different name in each of them. All other code sees `base`.
#ifndef ADAPTK_TARGET
#define ADAPTK_TARGET base
#endif
#define ADAPTK_NAMESPACE_BEGIN                                                                                         \
    namespace adaptk {                                                                                                 \
    inline namespace ADAPTK_TARGET {
#define ADAPTK_NAMESPACE_END                                                                                           \
    }                                                                                                                  \
    }
