// The CUDA part of the library: a library beside this one, loaded when a tensor on a device is first met, so that
// programs without one touch nothing of CUDA.
#pragma once

#include "cuda_backend.hpp"

#include <string>

namespace adaptk::detail {

struct CudaLibrary {
    const CudaBackend* backend = nullptr;
    std::string reason;  // why there is none
};

// The file that ADAPTK_CUDA_LIBRARY names, else libadaptk_cuda in this library's own folder.
ADAPTK_INTERNAL_API const CudaLibrary& cuda_library();

// Thrown where a function of the CUDA part fails, and where there is no such part. Faces put them into their own words.
struct ADAPTK_INTERNAL_API CudaFailure {
    CudaError error;
};
struct ADAPTK_INTERNAL_API NoCuda {
    std::string reason;
};

// The one that a host has handed over, else the library's.
ADAPTK_INTERNAL_API const CudaBackend& need_cuda();
ADAPTK_INTERNAL_API void hand_over(const CudaBackend& backend);

// Calls run(backend, error), which returns false where it fails. Call it without the GIL: it may wait for a device.
template <class Run> void call_cuda(const Run& run) {
    CudaError error;
    if (!run(need_cuda(), error)) throw CudaFailure{error};
}

}  // namespace adaptk::detail
