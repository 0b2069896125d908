// The memory layout of DLPack 1.x exchange structures (the DLPack specification's C ABI), around the tensor of
// adaptk.h.
#pragma once

#include "tensor.hpp"

#include "adaptk/adaptk.h"

#include <cstdint>

namespace adaptk::bindings {

enum DeviceType : std::int32_t {
    device_cpu = ADAPTK_CPU,
    device_cuda = ADAPTK_CUDA,
    device_cuda_host = ADAPTK_CUDA_HOST,
    device_rocm_host = ADAPTK_ROCM_HOST,
    device_cuda_managed = ADAPTK_CUDA_MANAGED,
};

using detail::code_bfloat;
using detail::code_float;
using detail::code_int;
using detail::code_uint;

using DLDevice = adaptk_device;
using DLDataType = adaptk_dtype;
using DLTensor = adaptk_tensor;

struct DLManagedTensor {
    DLTensor dl_tensor;
    void* manager_ctx;
    void (*deleter)(DLManagedTensor*);
};

struct DLPackVersion {
    std::uint32_t major;
    std::uint32_t minor;
};

inline constexpr std::uint64_t flag_read_only = 1;
inline constexpr std::uint64_t flag_is_copied = 2;

struct DLManagedTensorVersioned {
    DLPackVersion version;
    void* manager_ctx;
    void (*deleter)(DLManagedTensorVersioned*);
    std::uint64_t flags;
    DLTensor dl_tensor;
};

// What a capsule "dlpack_exchange_api" in type(x).__dlpack_c_exchange_api__ points to (DLPack 1.3): the tensor of a
// Python object without a call into Python.
struct DLPackExchangeAPIHeader {
    DLPackVersion version;
    DLPackExchangeAPIHeader* prev_api;
};

struct DLPackExchangeAPI {
    DLPackExchangeAPIHeader header;
    void* managed_tensor_allocator;
    int (*managed_tensor_from_py_object_no_sync)(void* object, DLManagedTensorVersioned** out);
    int (*managed_tensor_to_py_object_no_sync)(DLManagedTensorVersioned* tensor, void** out);
    int (*dltensor_from_py_object_no_sync)(void* object, DLTensor* out);  // may be null
    int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** out);
};

}  // namespace adaptk::bindings
