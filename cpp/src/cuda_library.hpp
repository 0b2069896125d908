// The CUDA part of the library: a separate library, which is loaded when a tensor on a device is first used, so that
// other programs do not load CUDA.
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

// Thrown if a function of the CUDA part fails or there is no such part. Interfaces word the messages themselves.
struct ADAPTK_INTERNAL_API CudaFailure {
    CudaError error;
};
struct ADAPTK_INTERNAL_API NoCuda {
    std::string reason;
};

// The backend that a host has set, else the library's.
ADAPTK_INTERNAL_API const CudaBackend& need_cuda();
ADAPTK_INTERNAL_API void set_backend(const CudaBackend& backend);

// Calls run(backend, error), which returns false if it fails. Call it without the GIL: it may wait for a device.
template <class Run> void call_cuda(const Run& run) {
    CudaError error;
    if (!run(need_cuda(), error)) throw CudaFailure{error};
}

}  // namespace adaptk::detail
