// What kernels are written with: the compiler's own words under nvcc; elsewhere a header of that name that emulates
// them, so that the kernels can be run, and looked at by sanitizers, on the host.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "emulation.hpp"
#endif

#define ADAPTK_DEVICE __device__ __forceinline__
