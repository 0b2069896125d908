// The headers of the kernels as text, for NVRTC: written by CMake (CMakeLists.txt).
#pragma once

#include <cstddef>

namespace adaptk::cuda {

struct EmbeddedHeader {
    const char* name;
    const char* text;
};
extern const EmbeddedHeader embedded_headers[];
extern const std::size_t embedded_header_count;

}  // namespace adaptk::cuda
