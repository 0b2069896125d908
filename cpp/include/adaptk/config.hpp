// The only macro header: function markers for host and device code, and the namespace of the instruction set that a
// translation unit is compiled for.
#pragma once

// What a step computes once: on the host, or on the device where the step count and the hyperparameters live there.
#if defined(__CUDACC__)
#define ADAPTK_HOST_DEVICE __host__ __device__
#else
#define ADAPTK_HOST_DEVICE
#endif

// A rule's formula must disappear into the loop around it, whatever the optimisation level: an out-of-line copy in an
// object that was compiled for AVX-512 would be a symbol that the linker may pick for a machine without it.
#if defined(__CUDACC__)
#define ADAPTK_HD __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define ADAPTK_HD __forceinline
#else
#define ADAPTK_HD inline __attribute__((always_inline))
#endif

// Kernel objects define ADAPTK_TARGET (portable, v2, v3, v4, neon), so that everything a rule header declares has a
// name of its own in each of them. All other code sees `base`.
#ifndef ADAPTK_TARGET
#define ADAPTK_TARGET base
#endif
#define ADAPTK_NAMESPACE_BEGIN                                                                                         \
    namespace adaptk {                                                                                                 \
    inline namespace ADAPTK_TARGET {
#define ADAPTK_NAMESPACE_END                                                                                           \
    }                                                                                                                  \
    }
