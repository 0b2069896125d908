// The CUDA part for the C interface: a library beside this one, loaded when a tensor on a device is first met, so that
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

}  // namespace adaptk::detail
