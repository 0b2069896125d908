#include "cuda_library.hpp"

#include "adaptk/adaptk.h"

#include <atomic>
#include <cstdlib>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#define ADAPTK_HAS_DLOPEN 1
#endif

namespace adaptk::detail {
namespace {

#if defined(__APPLE__)
constexpr const char* file = "libadaptk_cuda.0.dylib";
#else
constexpr const char* file = "libadaptk_cuda.so.0";
#endif
static_assert(ADAPTK_ABI_VERSION == 0, "the file's name ends with it");

#if defined(ADAPTK_HAS_DLOPEN)
std::string path_of_library() {
    if (const char* named = std::getenv("ADAPTK_CUDA_LIBRARY"); named != nullptr && *named != '\0') return named;
    Dl_info here;
    if (dladdr(reinterpret_cast<const void*>(&adaptk_version), &here) == 0 || here.dli_fname == nullptr) return file;
    const std::string own = here.dli_fname;
    const std::size_t slash = own.rfind('/');
    return slash == std::string::npos ? file : own.substr(0, slash + 1) + file;
}
#endif

CudaLibrary load() {
    CudaLibrary out;
#if defined(ADAPTK_HAS_DLOPEN)
    const std::string path = path_of_library();
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* const error = dlerror();
        out.reason = "no CUDA kernels: " + std::string(error != nullptr ? error : path.c_str());
        return out;
    }
    using Get = const CudaBackend* (*)();
    const auto get = reinterpret_cast<Get>(dlsym(library, "adaptk_cuda_backend"));
    const CudaBackend* const backend = get == nullptr ? nullptr : get();
    if (backend == nullptr || backend->version != cuda_backend_version || backend->sizes != sizes_that_cross()) {
        out.reason = "no CUDA kernels: " + path + " is of another build";
        dlclose(library);
        return out;
    }
    out.backend = backend;
#else
    out.reason = "no CUDA kernels on this system";
#endif
    return out;
}

}  // namespace

const CudaLibrary& cuda_library() {
    static const CudaLibrary& library = *new CudaLibrary(load());
    return library;
}

namespace {
std::atomic<const CudaBackend*> given_backend{nullptr};
}

void set_backend(const CudaBackend& backend) { given_backend = &backend; }

const CudaBackend& need_cuda() {
    if (const CudaBackend* const backend = given_backend; backend != nullptr) return *backend;
    const CudaLibrary& library = cuda_library();
    if (library.backend == nullptr) throw NoCuda{library.reason};
    return *library.backend;
}

}  // namespace adaptk::detail
