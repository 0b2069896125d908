// The part of the CUDA runtime that the driver calls, on the host. Work runs when it is launched on a stream. Errors
// that a device might not notice end the program: races between streams, reading a result before the stream is
// synchronized, handles of another device. Memory comes from the heap with its exact size and filled with garbage, so
// that sanitizers find accesses out of bounds.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define CUDART_VERSION 12040

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidKernelImage = 200,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureIsolation = 905,
    cudaErrorCapturedEvent = 907,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeDevice = 2 };
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaEventRecordDefault = 0, cudaEventRecordExternal = 1;
inline constexpr unsigned cudaStreamNonBlocking = 1;
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
struct cudaMemPoolProps {
    cudaMemAllocationType allocType;
    struct {
        cudaMemLocationType type;
        int id;
    } location;
};
struct CUmemPoolHandle_st {
    int device;
    std::uint64_t release_threshold = 0;
};
using cudaMemPool_t = CUmemPoolHandle_st*;
struct cudaDeviceProp {
    char name[256];
    std::size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
};
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
};

namespace adaptk::cuda::emulation {

// A vector clock: the work of each stream that a stream, an event or the host has waited for. Other work may still be
// running.
using Seen = std::map<int, long>;
inline void see(Seen& by, const Seen& other) {
    for (const auto& [stream, n] : other) by[stream] = std::max(by[stream], n);
}

using Action = std::function<void()>;

}  // namespace adaptk::cuda::emulation

using cudaEvent_t = struct CUevent_st*;
struct CUstream_st {
    int device;
    int number;  // unique
    adaptk::cuda::emulation::Seen seen = {};
    std::vector<adaptk::cuda::emulation::Action> on_wait = {};
    bool gone = false;  // destroyed: its handle must not be used again
    // Under capture, work and the memory that it uses are recorded for replays.
    bool capturing = false;
    std::vector<adaptk::cuda::emulation::Action> graph = {};
    std::vector<std::byte*> graph_memory = {};
    std::vector<const void*> graph_uses = {};
    std::vector<cudaEvent_t> graph_events = {};
};
struct CUevent_st {
    int device;
    adaptk::cuda::emulation::Seen seen;
    bool captured = false;  // recorded inside a graph, only for that graph
};
using cudaStream_t = CUstream_st*;

namespace adaptk::cuda::emulation {

[[noreturn]] inline void give_up(const char* format, ...) {
    std::va_list values;
    va_start(values, format);
    std::fputs("emulation: ", stdout);
    std::vprintf(format, values);
    va_end(values);
    std::fputs("\n", stdout);
    std::fflush(stdout);
    std::abort();
}

struct Allocation {
    std::size_t bytes;
    int device;
    int stream;  // the last use
    long time;
};

struct Launch {
    const void* kernel;
    const void* parameters;
    std::size_t bytes;
    unsigned blocks, threads;
};

struct Runtime {
    int devices = 2;
    int current = 0;
    cudaError_t last = cudaSuccess;
    std::map<const std::byte*, Allocation> memory;
    std::size_t most_filled = std::size_t{1} << 26;  // bytes of an allocation
    long events = 0;                                 // live allocations
    Seen host;
    std::map<int, CUstream_st> defaults;
    int streams = 0;
    std::vector<cudaMemPool_t> pools;
    // All calls, by their names in error messages.
    struct Call {
        std::string_view name;
        int device;
        cudaStream_t stream;
    };
    std::vector<Call> calls;
    // Called for every launch; returns whether it should run.
    std::function<bool(const Launch&)> watch;
    // The call of this name that fails, counted from 1, and its error.
    std::string_view failing;
    long fails_in = 0;
    cudaError_t fails_with = cudaErrorMemoryAllocation;
};
inline Runtime runtime;

inline CUstream_st& stream_of(cudaStream_t s) {
    if (s != nullptr && s->gone) give_up("a stream is used that is gone");
    if (s != nullptr) return *s;
    const int device = runtime.current;
    return runtime.defaults.try_emplace(device, CUstream_st{device, runtime.streams++}).first->second;
}

inline CUstream_st new_stream(int device) { return {device, runtime.streams++}; }

// Every call begins here.
inline cudaError_t called(std::string_view name, cudaStream_t stream = nullptr) {
    runtime.calls.push_back({name, runtime.current, stream});
    if (name == runtime.failing && --runtime.fails_in == 0) return runtime.last = runtime.fails_with;
    if (stream != nullptr && stream->device != runtime.current) return runtime.last = cudaErrorInvalidResourceHandle;
    return cudaSuccess;
}

// Launches work on a stream.
inline void put(CUstream_st& s, const Action& action) {
    see(s.seen, runtime.host);
    ++s.seen[s.number];
    if (s.capturing) {
        s.graph.push_back(action);
    } else {
        action();
    }
}

// The allocation of an address, which the next work on the stream uses.
inline const std::byte* use(CUstream_st& s, const void* address) {
    const auto* p = static_cast<const std::byte*>(address);
    auto found = runtime.memory.upper_bound(p);
    if (found == runtime.memory.begin()) return nullptr;
    Allocation& a = (--found)->second;
    if (p >= found->first + a.bytes) return nullptr;
    if (s.capturing) {
        s.graph_uses.push_back(found->first);
        return found->first;
    }
    const auto seen = [&](const Seen& by) {
        const auto last = by.find(a.stream);
        return last != by.end() && last->second >= a.time;
    };
    if (a.stream != s.number && !seen(s.seen) && !seen(runtime.host))
        give_up("stream %d uses memory that stream %d may be at work on", s.number, a.stream);
    if (a.device != s.device) give_up("a stream of device %d uses memory of device %d", s.device, a.device);
    const auto now = s.seen.find(s.number);
    a.stream = s.number;
    a.time = (now == s.seen.end() ? 0 : now->second) + 1;
    return found->first;
}

// Device memory may be accessed while this exists: by kernels and copies, never by the driver itself.
class Access {
  public:
    Access() {
        for (const auto& [p, a] : runtime.memory) ASAN_UNPOISON_MEMORY_REGION(p, a.bytes);
    }
    ~Access() {
        for (const auto& [p, a] : runtime.memory) ASAN_POISON_MEMORY_REGION(p, a.bytes);
    }
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;
};

inline void fill(std::byte* p, std::size_t bytes) {
    static unsigned round = 0;
    constexpr int garbage[] = {0xff, 0x7f, 0x01};
    const Access access;
    std::memset(p, garbage[++round % 3], std::min(bytes, runtime.most_filled));
}

inline void begin_capture(CUstream_st& s) { s.capturing = true; }
inline void end_capture(CUstream_st& s) { s.capturing = false; }
// On the stream that it was captured on, or on another one.
inline void replay(CUstream_st& s, CUstream_st& on) {
    for (const void* p : s.graph_uses) {
        if (runtime.memory.count(static_cast<const std::byte*>(p)) == 0) give_up("a graph uses memory that was freed");
        use(on, p);
    }
    for (std::byte* p : s.graph_memory) fill(p, runtime.memory.at(p).bytes);
    put(on, [&] {
        for (const Action& action : s.graph) action();
    });
    for (cudaEvent_t event : s.graph_events) event->seen = on.seen;
}
inline void replay(CUstream_st& s) { replay(s, s); }
inline void forget_graph(CUstream_st& s) {
    for (std::byte* p : s.graph_memory) {
        runtime.memory.erase(p);
        std::free(p);
    }
    s.graph_memory.clear();
    s.graph_uses.clear();
    s.graph_events.clear();
    s.graph.clear();
}

}  // namespace adaptk::cuda::emulation

inline cudaError_t cudaGetLastError() { return std::exchange(adaptk::cuda::emulation::runtime.last, cudaSuccess); }

inline const char* cudaGetErrorName(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOther";
}

inline const char* cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory" : "another error";
}

// The functions return if `called` fails, except for those that release something: an error injected by a test must not
// leave a leak.
#define EMULATED_CALL(...)                                                                                             \
    using namespace adaptk::cuda::emulation;                                                                           \
    if (const cudaError_t failed = called(__VA_ARGS__); failed != cudaSuccess) return failed

inline cudaError_t cudaGetDeviceCount(int* n) {
    EMULATED_CALL("cudaGetDeviceCount");
    *n = runtime.devices;
    return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
    EMULATED_CALL("cudaGetDevice");
    *device = runtime.current;
    return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
    EMULATED_CALL("cudaSetDevice");
    if (device < 0 || device >= runtime.devices) return runtime.last = cudaErrorInvalidDevice;
    runtime.current = device;
    return cudaSuccess;
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    EMULATED_CALL("cudaGetDeviceProperties");
    if (device < 0 || device >= runtime.devices) return runtime.last = cudaErrorInvalidDevice;
    *p = {"Emulated device", std::size_t{1} << 40, 9, 0, 3 - device % 2};
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
    EMULATED_CALL("cudaDeviceGetAttribute");
    *value = 3 - device % 2;
    return cudaSuccess;
}

inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, std::size_t) {
    EMULATED_CALL("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    *blocks = 2;
    return cudaSuccess;
}

inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* address) {
    EMULATED_CALL("cudaPointerGetAttributes");
    *out = {cudaMemoryTypeUnregistered, -1};
    for (const auto& [p, a] : runtime.memory)
        if (address >= p && address < p + a.bytes) *out = {cudaMemoryTypeDevice, a.device};
    return cudaSuccess;
}

inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* wanted) {
    EMULATED_CALL("cudaMemPoolCreate");
    if (wanted->allocType != cudaMemAllocationTypePinned || wanted->location.type != cudaMemLocationTypeDevice)
        return runtime.last = cudaErrorInvalidValue;
    runtime.pools.push_back(new CUmemPoolHandle_st{wanted->location.id});
    *pool = runtime.pools.back();
    return cudaSuccess;
}

inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void* value) {
    EMULATED_CALL("cudaMemPoolSetAttribute");
    std::memcpy(&pool->release_threshold, value, sizeof pool->release_threshold);
    return cudaSuccess;
}

inline cudaError_t cudaMallocFromPoolAsync(void** out, std::size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
    EMULATED_CALL("cudaMallocFromPoolAsync", stream);
    CUstream_st& s = stream_of(stream);
    if (pool->device != s.device) give_up("a stream of device %d takes memory of device %d", s.device, pool->device);
    auto* const p = static_cast<std::byte*>(std::malloc(bytes));
    if (p == nullptr) return runtime.last = cudaErrorMemoryAllocation;
    put(s, [] {});
    runtime.memory[p] = {bytes, s.device, s.number, s.seen[s.number]};
    fill(p, bytes);
    if (s.capturing) s.graph_memory.push_back(p);
    *out = p;
    return cudaSuccess;
}

inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
    using namespace adaptk::cuda::emulation;
    const cudaError_t result = called("cudaFreeAsync", stream);
    CUstream_st& s = stream_of(stream);
    auto* const p = static_cast<std::byte*>(memory);
    if (use(s, p) != p) give_up("memory is freed that was not allocated");
    const bool in_graph = s.capturing && std::count(s.graph_memory.begin(), s.graph_memory.end(), p) != 0;
    if (s.capturing != in_graph) give_up("memory is freed in a graph, but not allocated there, or the other way about");
    put(s, [] {});
    if (in_graph) return result;
    runtime.memory.erase(p);
    std::free(p);
    return result;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
    EMULATED_CALL("cudaMemcpyAsync", stream);
    CUstream_st& s = stream_of(stream);
    // Host memory is pageable here.
    if (s.capturing && kind != cudaMemcpyDeviceToDevice) return runtime.last = cudaErrorStreamCaptureUnsupported;
    const bool found_to = use(s, to) != nullptr;
    const bool found_from = use(s, from) != nullptr;
    if (bytes > 0 && ((kind == cudaMemcpyHostToDevice && (!found_to || found_from)) ||
                      (kind == cudaMemcpyDeviceToHost && (found_to || !found_from))))
        give_up("a copy in the wrong direction");
    const Action copy = [=] {
        const Access access;
        if (bytes > 0) std::memcpy(to, from, bytes);
    };
    if (kind == cudaMemcpyDeviceToHost) {
        put(s, [&] { s.on_wait.push_back(copy); });
    } else {
        put(s, copy);
    }
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
    EMULATED_CALL("cudaMemsetAsync", stream);
    CUstream_st& s = stream_of(stream);
    use(s, to);
    put(s, [=] {
        const Access access;
        if (bytes > 0) std::memset(to, value, bytes);
    });
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    EMULATED_CALL("cudaStreamCreateWithFlags");
    *stream = new CUstream_st(new_stream(runtime.current));
    return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    using namespace adaptk::cuda::emulation;
    CUstream_st& s = stream_of(stream);
    // If waiting fails, the result is never available.
    const std::vector<Action> results = std::exchange(s.on_wait, {});
    EMULATED_CALL("cudaStreamSynchronize", stream);
    if (s.capturing) return runtime.last = cudaErrorStreamCaptureUnsupported;
    for (const Action& action : results) action();
    see(runtime.host, s.seen);
    return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    EMULATED_CALL("cudaStreamIsCapturing", stream);
    *status = stream_of(stream).capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    EMULATED_CALL("cudaEventCreateWithFlags");
    *event = new CUevent_st{runtime.current, {}};
    ++runtime.events;
    return cudaSuccess;
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    EMULATED_CALL("cudaEventRecord", stream);
    if (event->device != runtime.current) return runtime.last = cudaErrorInvalidResourceHandle;
    event->captured = stream_of(stream).capturing;
    event->seen = stream_of(stream).seen;
    return cudaSuccess;
}

inline cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    EMULATED_CALL("cudaEventRecordWithFlags", stream);
    CUstream_st& s = stream_of(stream);
    if (event->device != runtime.current) return runtime.last = cudaErrorInvalidResourceHandle;
    if (flags == cudaEventRecordExternal && !s.capturing) return runtime.last = cudaErrorInvalidValue;
    if (flags == cudaEventRecordExternal) {
        s.graph_events.push_back(event);
    } else {
        event->captured = s.capturing;
        event->seen = s.seen;
    }
    return cudaSuccess;
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    EMULATED_CALL("cudaEventSynchronize");
    if (event->captured) return runtime.last = cudaErrorCapturedEvent;
    see(runtime.host, event->seen);
    return cudaSuccess;
}

inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    EMULATED_CALL("cudaStreamWaitEvent", stream);
    if (event->captured != stream_of(stream).capturing) return runtime.last = cudaErrorStreamCaptureIsolation;
    see(stream_of(stream).seen, event->seen);
    return cudaSuccess;
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    using namespace adaptk::cuda::emulation;
    delete event;
    --runtime.events;
    return called("cudaEventDestroy");
}

#undef EMULATED_CALL
