// What the functions of the C interface share: errors that become a status and a message.
#pragma once

#include "cuda_backend.hpp"

#include "adaptk/adaptk.h"

#include <exception>
#include <new>
#include <string>

namespace adaptk::detail {

// Thrown inside the library, and caught before it is left.
struct Failure {
    adaptk_status status;
    std::string text;
};

[[noreturn]] inline void refuse(adaptk_status status, std::string text) { throw Failure{status, std::move(text)}; }
[[noreturn]] inline void refuse(std::string text) { refuse(ADAPTK_INVALID_ARGUMENT, std::move(text)); }

inline void need(const void* pointer, const char* name) {
    if (pointer == nullptr) refuse(std::string(name) + ": NULL");
}

adaptk_status keep_error(adaptk_status status, const char* text) noexcept;

template <class Body> adaptk_status guarded(const Body& body) noexcept {
    try {
        keep_error(ADAPTK_OK, "");
        body();
        return ADAPTK_OK;
    } catch (const Failure& f) {
        return keep_error(f.status, f.text.c_str());
    } catch (const std::bad_alloc&) {
        return keep_error(ADAPTK_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception& e) {
        return keep_error(ADAPTK_INTERNAL_ERROR, e.what());
    } catch (...) {
        return keep_error(ADAPTK_INTERNAL_ERROR, "an unknown exception");
    }
}

const CudaBackend& need_cuda();
// Calls a function of the CUDA part and passes its error on.
template <class Run> void call_cuda(const Run& run) {
    CudaError error;
    if (!run(need_cuda(), error)) refuse(error.out_of_memory ? ADAPTK_OUT_OF_MEMORY : ADAPTK_CUDA_ERROR, error.text);
}

}  // namespace adaptk::detail
