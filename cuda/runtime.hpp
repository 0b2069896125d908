// The CUDA runtime with errors as exceptions, which stay inside the CUDA part.
#pragma once

#include "device.hpp"
#include "tuning.hpp"

#include <exception>
#include <stdexcept>

namespace adaptk::cuda {

struct RuntimeError : std::exception {
    cudaError_t code;
    const char* call;
    RuntimeError(cudaError_t c, const char* what_failed) : code(c), call(what_failed) {}
    const char* what() const noexcept override { return call; }
};

// What went wrong besides calls of the runtime.
struct Refusal : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void check(cudaError_t code, const char* call) {
    if (code == cudaSuccess) return;
    // Errors of a call stay behind as "the last error" too, which nobody else shall find.
    (void)cudaGetLastError();
    throw RuntimeError(code, call);
}

// For calls that give something back, whose failure changes nothing for the caller.
inline void ignore(cudaError_t code) {
    if (code != cudaSuccess) (void)cudaGetLastError();
}

// Makes a device current, and afterwards the one that was.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != before_;
    }
    ~DeviceGuard() {
        if (changed_) ignore(cudaSetDevice(before_));
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// A kernel that takes a Launch, as the runtime knows it.
template <class Launch>
void launch_symbol(const void* kernel, const char* name, unsigned blocks, unsigned threads, cudaStream_t stream,
                   const Launch& parameters) {
    // By this function, which returns the launch's own error: the last error may be one that somebody else has left.
#if defined(__CUDACC__)
    void* values[] = {const_cast<Launch*>(&parameters)};
    check(cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), values, 0, stream), name);
#else
    check(emulation::launch(reinterpret_cast<void (*)(Launch)>(const_cast<void*>(kernel)), blocks, threads, stream,
                            parameters),
          name);
#endif
}

template <class Launch>
void launch(void (*kernel)(Launch), const char* name, unsigned blocks, unsigned threads, cudaStream_t stream,
            const Launch& parameters) {
    launch_symbol(reinterpret_cast<const void*>(kernel), name, blocks, threads, stream, parameters);
}

}  // namespace adaptk::cuda
