// The memory layout of DLPack 1.x exchange structures (the DLPack specification's C ABI).
#pragma once

#include <cstdint>

namespace adaptk::bindings {

enum DeviceType : std::int32_t {
    device_cpu = 1,
    device_cuda = 2,
    device_cuda_host = 3,
    device_rocm_host = 11,
    device_cuda_managed = 13,
};

enum TypeCode : std::uint8_t { code_int = 0, code_float = 2, code_bfloat = 4 };

struct DLDevice {
    std::int32_t device_type;
    std::int32_t device_id;
};

struct DLDataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct DLTensor {
    void* data;
    DLDevice device;
    std::int32_t ndim;
    DLDataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null for C order before DLPack 1.2
    std::uint64_t byte_offset;
};

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
