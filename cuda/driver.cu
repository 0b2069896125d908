// From a checked list of tensors to launches: tables, memory for them, and the order of kernels on the stream. Nothing
// here waits for the device but what hands a number to the caller.
#include "cuda_backend.hpp"

#include "dispatch.hpp"
#include "kernel_table.hpp"
#include "kernels.hpp"
#include "runtime.hpp"
#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#ifndef ADAPTK_CUDA_ARCHITECTURES
#define ADAPTK_CUDA_ARCHITECTURES ""
#endif

namespace adaptk::detail {

struct CudaWorkspace {
    int device = 0;
    std::byte* memory = nullptr;
    std::size_t bytes = 0;
    std::vector<std::byte> uploaded;  // what the beginning of the memory holds
    std::size_t changed = 0;          // but for its first bytes, which kernels have written to
    cudaEvent_t used = nullptr;       // the end of its last use
};

struct CudaKept {
    int device = 0;
    std::byte* memory = nullptr;
    std::vector<cudaEvent_t> used;  // the end of the last use of each place; null: not used yet
};

}  // namespace adaptk::detail

namespace adaptk::cuda {
namespace {

using detail::CudaError;
using detail::CudaKept;
using detail::CudaPiece;
using detail::CudaStep;
using detail::CudaWorkspace;
using detail::DType;
using detail::Segment;
using detail::StepReport;
using detail::TensorStep;

const KernelTable& kernels() {
    static const KernelTable table = [] {
        KernelTable t{};
        add_kernels<0>(t);
        add_kernels<1>(t);
        add_kernels<2>(t);
        add_kernels<3>(t);
        static_assert(parts == 4);
        return t;
    }();
    return table;
}

constexpr std::size_t rounded(std::size_t n) { return (n + 15) / 16 * 16; }

// Numbers about a device and a kernel that do not change, asked for once.
int remembered(std::atomic<int>& cell, auto&& ask) {
    int n = cell.load(std::memory_order_relaxed);
    if (n == 0) {
        n = ask();
        cell.store(n, std::memory_order_relaxed);
    }
    return n;
}

constexpr int most_devices = 64;

int multiprocessors(int device) {
    static std::atomic<int> known[most_devices];
    std::atomic<int> unknown{0};
    return remembered(device < most_devices ? known[device] : unknown, [&] {
        int n = 0;
        check(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
        return std::max(n, 1);
    });
}

// Blocks of a kernel that a device holds at once.
int resident(int device, const void* kernel) {
    int n = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, kernel, int(block_threads), 0),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    return std::max(n, 1) * multiprocessors(device);
}

int resident_steps(int device, std::size_t kernel, int type) {
    static std::atomic<int> known[most_devices][kernel_count][2];
    std::atomic<int> unknown{0};
    return remembered(device < most_devices ? known[device][kernel][type] : unknown,
                      [&] { return resident(device, kernels()[kernel].step_symbol[type]); });
}

int resident_norms(int device) {
    static std::atomic<int> known[most_devices];
    std::atomic<int> unknown{0};
    return remembered(device < most_devices ? known[device] : unknown, [&] { return resident(device, norm_symbol()); });
}

// How many times what a device holds at once a grid is at most: tuning.hpp.
std::atomic<unsigned> grid_waves{waves};
unsigned set_waves(unsigned n) { return grid_waves.exchange(n, std::memory_order_relaxed); }

// Blocks for the work of so many warps, the last of which takes a turn as full as the others where each takes several.
unsigned blocks_for(std::int64_t warps, std::int64_t resident) {
    const std::int64_t blocks = std::max<std::int64_t>((warps + warps_per_block - 1) / warps_per_block, 1);
    const unsigned n = grid_waves.load(std::memory_order_relaxed);
    const std::int64_t most = n == 0 ? most_blocks : std::min<std::int64_t>(resident * n, most_blocks);
    const std::int64_t turns = (blocks + most - 1) / most;
    return unsigned((blocks + turns - 1) / turns);
}

bool is_capturing(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
}

// What the library has for itself on a device, made when it is first needed: a pool that does not give its memory back
// at every synchronisation, as the default one does, whose settings belong to the program; and a stream for what
// belongs to no stream of a caller, which waits for none of them and none for it.
struct Own {
    cudaMemPool_t pool = nullptr;
    cudaStream_t stream = nullptr;
};

Own& own(int device, const std::lock_guard<std::mutex>&) {
    static std::vector<Own>& all = *new std::vector<Own>;
    if (all.size() <= std::size_t(device)) all.resize(std::size_t(device) + 1);
    return all[std::size_t(device)];
}

std::mutex own_mutex;

cudaMemPool_t own_pool(int device) {
    const std::lock_guard locked(own_mutex);
    Own& o = own(device, locked);
    if (o.pool == nullptr) {
        cudaMemPoolProps wanted = {};
        wanted.allocType = cudaMemAllocationTypePinned;
        wanted.location.type = cudaMemLocationTypeDevice;
        wanted.location.id = device;
        cudaMemPool_t pool = nullptr;
        check(cudaMemPoolCreate(&pool, &wanted), "cudaMemPoolCreate");
        std::uint64_t keeps = pool_keeps;
        // One that gives back more is none the worse for the result.
        ignore(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keeps));
        o.pool = pool;
    }
    return o.pool;
}

cudaStream_t own_stream(int device) {
    const std::lock_guard locked(own_mutex);
    Own& o = own(device, locked);
    if (o.stream == nullptr)
        check(cudaStreamCreateWithFlags(&o.stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return o.stream;
}

std::byte* allocate(int device, cudaStream_t stream, std::size_t bytes) {
    void* out = nullptr;
    check(cudaMallocFromPoolAsync(&out, std::max<std::size_t>(bytes, 16), own_pool(device), stream),
          "cudaMallocFromPoolAsync");
    return static_cast<std::byte*>(out);
}

cudaEvent_t new_event() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    return event;
}

// A step's use of a place that is kept: its end is recorded however the step ends. In a graph it is at each replay.
class Use {
  public:
    Use(CudaKept* kept, std::size_t place, cudaStream_t stream, bool capturing) : stream_(stream) {
        if (kept == nullptr) return;
        cudaEvent_t& used = kept->used[place];
        // Steps before, on whichever streams. A graph cannot wait for what is outside of it: whoever replays it does.
        if (used != nullptr && !capturing) check(cudaStreamWaitEvent(stream, used, 0), "cudaStreamWaitEvent");
        if (used == nullptr) used = new_event();
        event_ = used;
        flags_ = capturing ? cudaEventRecordExternal : cudaEventRecordDefault;
    }
    ~Use() {
        if (event_ == nullptr) return;
        const cudaError_t recorded = cudaEventRecordWithFlags(event_, stream_, flags_);
        ignore(recorded);
        // What nobody could wait for later is waited for now.
        if (recorded != cudaSuccess && flags_ == cudaEventRecordDefault) ignore(cudaStreamSynchronize(stream_));
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

  private:
    cudaStream_t stream_;
    cudaEvent_t event_ = nullptr;
    unsigned flags_ = 0;
};

// Device memory in the order of a stream. A graph under capture gets memory of its own: a workspace may be gone, or
// larger and elsewhere, when it is replayed.
class Memory {
  public:
    Memory(int device, CudaWorkspace* workspace, cudaStream_t stream, std::size_t bytes) : stream_(stream) {
        if (bytes == 0) return;
        if (workspace == nullptr) {
            own_ = allocate(device, stream, bytes);
            data = own_;
            return;
        }
        workspace_ = workspace;
        // Whichever stream it was: handles of streams that are gone are given again.
        if (workspace->memory != nullptr) check(cudaStreamWaitEvent(stream, workspace->used, 0), "cudaStreamWaitEvent");
        if (workspace->bytes < bytes) {
            const std::size_t wanted = bytes + bytes / 2;
            std::byte* const larger = allocate(device, stream, wanted);
            if (workspace->memory != nullptr) ignore(cudaFreeAsync(workspace->memory, stream));
            workspace->memory = larger;
            workspace->bytes = wanted;
            workspace->uploaded.clear();
        }
        data = workspace->memory;
    }
    ~Memory() {
        if (own_ != nullptr) ignore(cudaFreeAsync(own_, stream_));
        if (workspace_ != nullptr) ignore(cudaEventRecord(workspace_->used, stream_));
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    // Puts tables at the beginning of the memory. A workspace is spared what it holds already, but for the first
    // `changing` bytes, which kernels write to. Behind the tables it holds nothing that can be relied on, and nothing
    // at all where a launch fails.
    void upload(const std::vector<std::byte>& tables, std::size_t changing) {
        UploadLaunch launch;
        CudaWorkspace* const w = workspace_;
        std::vector<std::byte> held;
        if (w != nullptr) held.swap(w->uploaded);
        const std::size_t unsure = w != nullptr ? std::max(w->changed, changing) : 0;
        for (std::size_t at = 0; at < tables.size(); at += upload_bytes) {
            const std::size_t n = std::min(upload_bytes, tables.size() - at);
            if (at >= unsure && held.size() >= at + n && std::memcmp(held.data() + at, tables.data() + at, n) == 0)
                continue;
            launch.to = data + at;
            launch.bytes = std::uint32_t(n);
            std::memcpy(launch.data, tables.data() + at, n);
            launch_upload(launch, stream_);
        }
        if (w == nullptr) return;
        held = tables;
        held.swap(w->uploaded);
        w->changed = changing;
    }

    std::byte* data = nullptr;

  private:
    cudaStream_t stream_;
    std::byte* own_ = nullptr;
    CudaWorkspace* workspace_ = nullptr;
};

// Tables that go to device memory, each on a multiple of 16 bytes.
class Tables {
  public:
    std::size_t reserve(std::size_t bytes) {
        const std::size_t offset = bytes_.size();
        bytes_.insert(bytes_.end(), rounded(bytes), std::byte{});
        return offset;
    }
    template <class X> std::size_t add(const std::vector<X>& items) {
        const std::size_t offset = reserve(items.size() * sizeof(X));
        write(offset, items);
        return offset;
    }
    template <class X> void write(std::size_t offset, const std::vector<X>& items) {
        if (!items.empty()) std::memcpy(bytes_.data() + offset, items.data(), items.size() * sizeof(X));
    }
    const std::vector<std::byte>& bytes() const { return bytes_; }

  private:
    std::vector<std::byte> bytes_;
};

// The tensors of a step that one kernel updates.
struct Batch {
    std::size_t kernel;
    int type;  // 0 float, 1 double
    std::vector<Tensor> tensors;
    std::vector<std::uint32_t> source;    // of the step's tensors
    std::vector<std::uint32_t> segments;  // that have scalars here
    std::vector<std::byte> scalars;
    std::int64_t tiles = 0;
    std::size_t scalars_at = 0, tensors_at = 0, slots_at = 0;  // in the tables, or in scratch memory
    bool inside = false;                                       // the tensors go with the parameters

    std::size_t scalars_bytes() const { return kernels()[kernel].scalars_bytes[type]; }
};

Batch& batch_of(std::vector<Batch>& batches, std::size_t kernel, int type) {
    for (Batch& b : batches)
        if (b.kernel == kernel && b.type == type) return b;
    Batch& b = batches.emplace_back();
    b.kernel = kernel;
    b.type = type;
    return b;
}

void add_tensor(Batch& b, const TensorStep& t, std::size_t buffers, std::uint32_t source, std::uint32_t scalars) {
    Tensor out = {};
    std::uintptr_t addresses = 0;
    for (std::size_t i = 0; i < buffers; ++i) {
        out.buffer[i] = t.buffer[i];
        addresses |= reinterpret_cast<std::uintptr_t>(t.buffer[i]);
    }
    out.size = t.size;
    out.first_tile = b.tiles;
    out.scalars = scalars;
    out.param = std::uint8_t(t.param);
    out.grad = std::uint8_t(t.grad);
    out.aligned = addresses % 16 == 0 ? 1 : 0;
    b.tiles += t.size / tile + (t.size % tile != 0 ? 1 : 0);
    b.tensors.push_back(out);
    b.source.push_back(source);
}

void launch_batch(const Batch& b, int device, cudaStream_t stream, const void* scalars, const Tensor* tensors,
                  const Control* control) {
    if (b.tiles == 0) return;
    StepLaunch launch;
    launch.tensors = tensors;
    launch.scalars = scalars;
    launch.control = control;
    launch.tiles = b.tiles;
    launch.count = std::uint32_t(b.tensors.size());
    std::size_t used = 0;
    if (scalars == nullptr) {
        std::memcpy(launch.inside, b.scalars.data(), b.scalars.size());
        used = rounded(b.scalars.size());
    }
    launch.tensors_at = std::uint32_t(used);
    if (tensors == nullptr) std::memcpy(launch.inside + used, b.tensors.data(), b.tensors.size() * sizeof(Tensor));
    kernels()[b.kernel].step[b.type](launch, blocks_for(b.tiles, resident_steps(device, b.kernel, b.type)), stream);
}

bool fits_inside(std::size_t scalars, std::size_t tensors) {
    return rounded(scalars) + tensors * sizeof(Tensor) <= sizeof(StepLaunch::inside);
}

// The norm of all gradients: what its kernels need.
struct Norm {
    std::vector<NormTensor> tensors;
    std::int64_t total = 0;
    double outer = 1.0;
    bool rescalable = false;
    std::size_t tensors_at = 0, leaves_at = 0;

    std::int64_t leaves() const {
        return total / std::int64_t(detail::norm_leaf) + (total % std::int64_t(detail::norm_leaf) != 0 ? 1 : 0);
    }
    bool inside() const { return tensors.size() * sizeof(NormTensor) <= sizeof(NormLaunch::inside); }

    void add(const TensorStep& t, double factor) {
        rescalable = rescalable || t.grad == DType::f64;
        if (t.size == 0) return;
        NormTensor n = {};
        n.data = t.buffer[1];
        n.first = total;
        n.factor = factor;
        n.type = std::uint8_t(t.grad);
        const auto start = reinterpret_cast<std::uintptr_t>(n.data) - std::uintptr_t(total) * size_of(t.grad);
        n.aligned = start % 16 == 0 ? 1 : 0;
        tensors.push_back(n);
        total += t.size;
    }

    void reserve(Tables& tables, std::size_t& scratch) {
        if (!inside()) tensors_at = tables.add(tensors);
        leaves_at = scratch;
        scratch += rounded(std::size_t(leaves()) * sizeof(double));
    }

    void run(int device, cudaStream_t stream, const std::byte* tables, std::byte* scratch, FinishLaunch finish) const {
        NormLaunch launch;
        launch.tensors = inside() ? nullptr : reinterpret_cast<const NormTensor*>(tables + tensors_at);
        launch.leaves = reinterpret_cast<double*>(scratch + leaves_at);
        launch.control = nullptr;
        launch.total = total;
        launch.count = std::uint32_t(tensors.size());
        if (inside() && !tensors.empty())
            std::memcpy(launch.inside, tensors.data(), tensors.size() * sizeof(NormTensor));
        finish.leaves = launch.leaves;
        finish.count = leaves();
        finish.outer = outer;
        finish.rescalable = rescalable;
        const unsigned blocks = total > 0 ? blocks_for(leaves(), resident_norms(device)) : 0;
        for (const bool second : {false, true}) {
            if (second && !rescalable) break;
            finish.second = second;
            launch.control = second ? finish.control : nullptr;
            if (total > 0) launch_norm(launch, blocks, stream);
            launch_finish(finish, stream);
        }
    }
};

std::uint32_t gather_type(detail::ScalarType t) {
    switch (t) {
    case detail::ScalarType::f32: return type_f32;
    case detail::ScalarType::f64: return type_f64;
    case detail::ScalarType::i32: return type_i32;
    default: return type_i64;
    }
}

void run_step(const CudaStep& s) {
    const DeviceGuard guard(s.device);
    auto* const stream = static_cast<cudaStream_t>(s.stream);
    const bool on_device = s.counts != nullptr || s.step != nullptr || !s.hypers.empty();
    const bool with_norm = s.options.clip_norm >= 0.0 || s.options.skip_nonfinite || s.options.want_norm;
    const bool capturing =
        (s.workspace != nullptr || s.counts != nullptr || s.reports != nullptr) && is_capturing(stream);
    const Use of_counts(s.counts, 0, stream, capturing);
    const Use of_report(with_norm ? s.reports : nullptr, s.report, stream, capturing);

    std::vector<Batch> batches;
    Norm norm;
    const auto own = [](const Segment& g) { return g.rule->grad_scale(g.hyper); };
    bool same_scale = true;
    for (const Segment& g : s.segments) same_scale = same_scale && own(g) == own(s.segments[0]);
    if (with_norm) {
        norm.outer = s.options.grad_scale * (same_scale && !s.segments.empty() ? own(s.segments[0]) : 1.0);
        norm.rescalable = !same_scale;
    }

    std::uint32_t source = 0;
    for (std::uint32_t i = 0; i < s.segments.size(); ++i) {
        const Segment& g = s.segments[i];
        for (std::size_t k = 0; k < g.count; ++k, ++source) {
            const TensorStep& t = s.tensors[source];
            if (with_norm) norm.add(t, same_scale ? 1.0 : own(g));
            if (t.size == 0 && !on_device) continue;
            const int type = t.param == DType::f64 ? 1 : 0;
            Batch& b = batch_of(batches, g.rule->index, type);
            if (on_device) {
                b.segments.push_back(i);
            } else if (b.segments.empty() || b.segments.back() != i) {
                b.segments.push_back(i);
                alignas(16) std::byte scalars[detail::max_scalars_bytes];
                detail::current_isa().scalars->prepare[g.rule->index][type](
                    g.hyper.value, own(g) * s.options.grad_scale, g.step, scalars, g.has_memo ? g.memo : nullptr);
                b.scalars.insert(b.scalars.end(), scalars, scalars + b.scalars_bytes());
            }
            add_tensor(b, t, 2 + g.rule->states.size(), source, std::uint32_t(b.segments.size() - 1));
        }
    }

    // Scalars that kernels write to come first.
    Tables tables;
    std::size_t scratch = 0;
    std::vector<Patch> patches;
    std::size_t hypers_at = 0;
    std::size_t own_counts_at = 0;
    if (on_device) {
        std::vector<detail::HyperValues> hypers;
        for (const Segment& g : s.segments) hypers.push_back(g.hyper);
        hypers_at = tables.add(hypers);
        if (s.counts == nullptr) {
            std::vector<Count> counts;
            for (const Segment& g : s.segments) counts.insert(counts.end(), g.count, Count{g.step - 1, {}});
            own_counts_at = tables.add(counts);
        }
    } else if (with_norm) {
        for (Batch& b : batches) {
            b.scalars_at = tables.add(b.scalars);
            for (std::size_t i = 0; i < b.segments.size(); ++i) {
                const Segment& g = s.segments[b.segments[i]];
                const bool maximize = g.hyper.value[g.rule->own.size() + 2] != 0.0;
                const double scale = own(g) * s.options.grad_scale;
                patches.push_back({maximize ? -scale : scale, std::uint32_t(b.scalars_at + i * b.scalars_bytes()),
                                   std::uint32_t(b.type)});
            }
        }
    }
    const std::size_t changing = tables.bytes().size();
    const std::size_t patches_at = tables.add(patches);
    std::size_t gathers_at = 0;
    std::size_t gather_count = 0;
    if (on_device) {
        gather_count = s.hypers.size() + (s.step != nullptr ? s.tensors.size() : 0);
        gathers_at = tables.reserve(gather_count * sizeof(Gather));
        for (Batch& b : batches) {
            b.scalars_at = scratch;
            scratch += rounded(b.tensors.size() * b.scalars_bytes());
            b.slots_at = tables.reserve(b.tensors.size() * sizeof(Slot));
        }
    }
    for (Batch& b : batches) {
        const bool scalars_inside = !on_device && !with_norm && b.scalars.size() <= sizeof(StepLaunch::inside);
        b.inside = fits_inside(scalars_inside ? b.scalars.size() : 0, b.tensors.size());
        if (!on_device && !with_norm && !b.inside) b.scalars_at = tables.add(b.scalars);
        if (!b.inside) b.tensors_at = tables.add(b.tensors);
    }
    std::size_t control_at = 0;
    if (with_norm) {
        norm.reserve(tables, scratch);
        control_at = scratch;
        scratch += rounded(sizeof(Control));
    }

    Memory memory(s.device, capturing ? nullptr : s.workspace, stream, tables.bytes().size() + scratch);
    std::byte* const head = memory.data;
    std::byte* const tail = memory.data + tables.bytes().size();

    // Tables that hold addresses in the memory itself.
    std::vector<Gather> gathers;
    if (on_device) {
        auto* const hypers = reinterpret_cast<double*>(head + hypers_at);
        auto* const counts = reinterpret_cast<Count*>(s.counts != nullptr ? s.counts->memory : head + own_counts_at);
        for (const detail::DeviceHyper& h : s.hypers)
            gathers.push_back({h.data, hypers + h.segment * max_hyperparameters + h.index, gather_type(h.type), 0});
        if (s.step != nullptr)
            for (std::size_t i = 0; i < s.tensors.size(); ++i)
                gathers.push_back({s.step, counts + i, gather_type(s.step_type), 1});
        tables.write(gathers_at, gathers);
        for (const Batch& b : batches) {
            std::vector<Slot> slots;
            for (std::size_t i = 0; i < b.tensors.size(); ++i) {
                const Segment& g = s.segments[b.segments[i]];
                const std::size_t count = s.counts != nullptr ? s.count_of[b.source[i]] : b.source[i];
                slots.push_back(
                    {hypers + b.segments[i] * max_hyperparameters, counts + count, own(g) * s.options.grad_scale});
            }
            tables.write(b.slots_at, slots);
        }
    }
    memory.upload(tables.bytes(), changing);
    if (gather_count > 0)
        launch_gather({reinterpret_cast<const Gather*>(head + gathers_at), std::uint32_t(gather_count)},
                      unsigned(std::min<std::size_t>((gather_count + block_threads - 1) / block_threads, small_grid)),
                      stream);

    Control* control = nullptr;
    if (with_norm) {
        control = s.reports != nullptr ? reinterpret_cast<Control*>(s.reports->memory) + s.report
                                       : reinterpret_cast<Control*>(tail + control_at);
        FinishLaunch finish = {};
        finish.control = control;
        finish.clip_norm = s.options.clip_norm;
        finish.skip_nonfinite = s.options.skip_nonfinite;
        finish.scalars = head;
        finish.patches = reinterpret_cast<const Patch*>(head + patches_at);
        finish.patch_count = std::uint32_t(patches.size());
        norm.run(s.device, stream, head, tail, finish);
    }
    for (const Batch& b : batches) {
        const void* scalars = nullptr;
        if (on_device) {
            std::byte* const out = tail + b.scalars_at;
            kernels()[b.kernel].prepare[b.type](
                {reinterpret_cast<const Slot*>(head + b.slots_at), out, control, std::uint32_t(b.tensors.size())},
                unsigned(std::min<std::size_t>((b.tensors.size() + block_threads - 1) / block_threads, small_grid)),
                stream);
            scalars = out;
        } else if (with_norm || !b.inside) {
            scalars = head + b.scalars_at;
        }
        launch_batch(b, s.device, stream, scalars,
                     b.inside ? nullptr : reinterpret_cast<const Tensor*>(head + b.tensors_at), control);
    }
}

StepReport report_of(const Control& c) {
    StepReport r;
    if (c.again == no_outcome) return r;
    r.grad_norm = c.norm;
    r.has_norm = true;
    r.skipped = c.skip != 0;
    return r;
}

void read(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

// Runs what may throw, and keeps the exception on this side. Scalars are computed under the arithmetic contract's mode.
bool guarded(CudaError& error, auto&& run) {
    const detail::FloatingPointMode mode;
    try {
        run();
        return true;
    } catch (const RuntimeError& e) {
        error.code = int(e.code);
        error.out_of_memory = e.code == cudaErrorMemoryAllocation;
        std::snprintf(error.text, sizeof error.text, "%s: %s (%s)", e.call, cudaGetErrorString(e.code),
                      cudaGetErrorName(e.code));
    } catch (const std::bad_alloc&) {
        error.out_of_memory = true;
        std::snprintf(error.text, sizeof error.text, "out of memory on the host");
    }
    return false;
}

bool device_count(int& count, CudaError& error) {
    return guarded(error, [&] { check(cudaGetDeviceCount(&count), "cudaGetDeviceCount"); });
}

bool describe(int device, detail::CudaDevice& out, CudaError& error) {
    return guarded(error, [&] {
        cudaDeviceProp p;
        check(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
        std::snprintf(out.name, sizeof out.name, "%s", p.name);
        out.major = p.major;
        out.minor = p.minor;
        out.multiprocessors = p.multiProcessorCount;
        out.memory = p.totalGlobalMem;
    });
}

bool device_of(const void* data, std::int32_t& device, CudaError& error) {
    return guarded(error, [&] {
        cudaPointerAttributes a;
        check(cudaPointerGetAttributes(&a, data), "cudaPointerGetAttributes");
        if (a.type == cudaMemoryTypeUnregistered) throw RuntimeError(cudaErrorInvalidValue, "cudaPointerGetAttributes");
        device = a.device;
    });
}

bool step(const CudaStep& s, CudaError& error) {
    return guarded(error, [&] { run_step(s); });
}

bool global_norm(int device, void* on, std::span<const TensorStep> tensors, double scale, StepReport& out,
                 CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        auto* const stream = static_cast<cudaStream_t>(on);
        Norm norm;
        norm.outer = scale;
        for (const TensorStep& t : tensors) norm.add(t, 1.0);
        Tables tables;
        std::size_t scratch = rounded(sizeof(Control));
        norm.reserve(tables, scratch);
        Memory memory(device, nullptr, stream, tables.bytes().size() + scratch);
        std::byte* const tail = memory.data + tables.bytes().size();
        if (!tables.bytes().empty()) memory.upload(tables.bytes(), 0);
        FinishLaunch finish = {};
        finish.control = reinterpret_cast<Control*>(tail);
        finish.clip_norm = -1.0;
        norm.run(device, stream, memory.data, tail, finish);
        Control c;
        read(&c, tail, sizeof c, stream);
        out = report_of(c);
    });
}

void run_one_batch(int device, cudaStream_t stream, std::span<const TensorStep> tensors, std::size_t kernel,
                   std::size_t buffers, double factor) {
    const DeviceGuard guard(device);
    std::vector<Batch> batches;
    for (std::uint32_t i = 0; i < tensors.size(); ++i) {
        if (tensors[i].size == 0) continue;
        add_tensor(batch_of(batches, kernel, tensors[i].param == DType::f64 ? 1 : 0), tensors[i], buffers, i, 0);
    }
    for (Batch& b : batches) {
        alignas(16) std::byte scalars[detail::max_scalars_bytes] = {};
        if (kernel < Rules::size) {
            // p - lr * g with lr = -factor and g = the vector to add: gradient descent's kernel.
            const detail::RuleInfo& sgd = *detail::find_rule("sgd");
            detail::HyperValues h = {};
            h.value[0] = -factor;
            detail::current_isa().scalars->prepare[sgd.index][b.type](h.value, 1.0, 1, scalars, nullptr);
        } else if (b.type == 0) {
            const Before<float> nothing{1, 0, 1, false};
            std::memcpy(scalars, &nothing, sizeof nothing);
        } else {
            const Before<double> nothing{1, 0, 1, false};
            std::memcpy(scalars, &nothing, sizeof nothing);
        }
        b.scalars.assign(scalars, scalars + b.scalars_bytes());
        b.inside = fits_inside(b.scalars.size(), b.tensors.size());
        Tables tables;
        if (!b.inside) {
            b.scalars_at = tables.add(b.scalars);
            b.tensors_at = tables.add(b.tensors);
        }
        Memory memory(device, nullptr, stream, tables.bytes().size());
        if (!b.inside) memory.upload(tables.bytes(), 0);
        launch_batch(b, device, stream, b.inside ? nullptr : memory.data + b.scalars_at,
                     b.inside ? nullptr : reinterpret_cast<const Tensor*>(memory.data + b.tensors_at), nullptr);
    }
}

bool ceiling(int device, void* stream, std::span<const TensorStep> tensors, std::size_t written, CudaError& error) {
    return guarded(error, [&] {
        run_one_batch(device, static_cast<cudaStream_t>(stream), tensors, Rules::size + written - 1, 1 + written, 0.0);
    });
}

bool add_scaled(int device, void* stream, std::span<const TensorStep> tensors, double factor, CudaError& error) {
    return guarded(error, [&] {
        run_one_batch(device, static_cast<cudaStream_t>(stream), tensors, detail::find_rule("sgd")->index, 2, factor);
    });
}

bool copy(int device, void* stream, void* to, const void* from, std::size_t bytes, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)),
              "cudaMemcpyAsync");
    });
}

// Memory that is kept, filled by `fill` and ready for any stream.
CudaKept* keep(int device, std::size_t bytes, std::size_t places, auto&& fill) {
    auto kept = std::make_unique<CudaKept>();
    kept->device = device;
    kept->used.resize(places);
    const cudaStream_t stream = own_stream(device);
    kept->memory = allocate(device, stream, bytes);
    try {
        fill(kept->memory, stream);
        check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    } catch (...) {
        ignore(cudaFreeAsync(kept->memory, stream));
        throw;
    }
    return kept.release();
}

void release(CudaKept* kept) {
    if (kept == nullptr) return;
    CudaError ignored;
    guarded(ignored, [&] {
        const DeviceGuard guard(kept->device);
        const cudaStream_t stream = own_stream(kept->device);
        for (const cudaEvent_t used : kept->used) {
            if (used == nullptr) continue;
            ignore(cudaStreamWaitEvent(stream, used, 0));
            ignore(cudaEventDestroy(used));
        }
        ignore(cudaFreeAsync(kept->memory, stream));
    });
    delete kept;
}

// On the host, before the own stream is used: what waits there would keep others' work waiting.
cudaStream_t behind_last_use(const CudaKept& kept, std::size_t place) {
    if (kept.used[place] != nullptr) check(cudaEventSynchronize(kept.used[place]), "cudaEventSynchronize");
    return own_stream(kept.device);
}

// Copies from memory that the host may reuse at once are staged before the call returns.
void copy_counts(void* to, std::span<const std::int64_t> steps, cudaStream_t stream) {
    std::vector<Count> counts;
    for (const std::int64_t n : steps) counts.push_back({n, {}});
    check(cudaMemcpyAsync(to, counts.data(), counts.size() * sizeof(Count), cudaMemcpyHostToDevice, stream),
          "cudaMemcpyAsync");
}

bool new_counts(int device, std::span<const std::int64_t> steps, CudaKept*& out, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        out = keep(device, steps.size() * sizeof(Count), 1,
                   [&](std::byte* memory, cudaStream_t stream) { copy_counts(memory, steps, stream); });
    });
}

bool write_counts(CudaKept& counts, std::span<const std::int64_t> steps, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(counts.device);
        const cudaStream_t stream = behind_last_use(counts, 0);
        copy_counts(counts.memory, steps, stream);
        check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    });
}

bool read_counts(const CudaKept& counts, std::span<std::int64_t> steps, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(counts.device);
        std::vector<Count> read_back(steps.size());
        read(read_back.data(), counts.memory, steps.size() * sizeof(Count), behind_last_use(counts, 0));
        for (std::size_t i = 0; i < steps.size(); ++i) steps[i] = read_back[i].steps;
    });
}

bool new_reports(int device, std::size_t count, CudaKept*& out, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        const std::size_t bytes = count * sizeof(Control);
        static_assert(no_outcome == 0xffffffff);
        out = keep(device, bytes, count, [&](std::byte* memory, cudaStream_t stream) {
            check(cudaMemsetAsync(memory, 0xff, bytes, stream), "cudaMemsetAsync");
        });
    });
}

bool read_report(const CudaKept& reports, std::size_t place, StepReport& out, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(reports.device);
        Control c;
        read(&c, reports.memory + place * sizeof c, sizeof c, behind_last_use(reports, place));
        out = report_of(c);
    });
}

bool save(int device, void* on, std::span<const CudaPiece> from, CudaKept*& out, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        auto* const stream = static_cast<cudaStream_t>(on);
        std::size_t bytes = 0;
        for (const CudaPiece& piece : from) bytes += rounded(piece.bytes);
        auto saved = std::make_unique<CudaKept>();
        saved->device = device;
        saved->used = {new_event()};
        try {
            saved->memory = allocate(device, stream, bytes);
            std::byte* to = saved->memory;
            for (const CudaPiece& piece : from) {
                if (piece.bytes > 0)
                    check(cudaMemcpyAsync(to, piece.data, piece.bytes, cudaMemcpyDeviceToDevice, stream),
                          "cudaMemcpyAsync");
                to += rounded(piece.bytes);
            }
            check(cudaEventRecord(saved->used[0], stream), "cudaEventRecord");
        } catch (...) {
            if (saved->memory != nullptr) ignore(cudaFreeAsync(saved->memory, stream));
            ignore(cudaEventDestroy(saved->used[0]));
            throw;
        }
        out = saved.release();
    });
}

bool restore(CudaKept* saved, void* on, std::span<const CudaPiece> to, CudaError& error) {
    bool freed = false;
    const bool done = guarded(error, [&] {
        const DeviceGuard guard(saved->device);
        auto* const stream = static_cast<cudaStream_t>(on);
        check(cudaStreamWaitEvent(stream, saved->used[0], 0), "cudaStreamWaitEvent");
        cudaError_t copied = cudaSuccess;
        const std::byte* from = saved->memory;
        for (const CudaPiece& piece : to) {
            if (copied == cudaSuccess && piece.data != nullptr && piece.bytes > 0)
                copied = cudaMemcpyAsync(piece.data, from, piece.bytes, cudaMemcpyDeviceToDevice, stream);
            from += rounded(piece.bytes);
        }
        // Here and not by release(): what a graph has allocated is freed in it.
        ignore(cudaFreeAsync(saved->memory, stream));
        ignore(cudaEventDestroy(saved->used[0]));
        freed = true;
        check(copied, "cudaMemcpyAsync");
    });
    if (freed) {
        delete saved;
    } else {
        release(saved);
    }
    return done;
}

bool new_workspace(int device, CudaWorkspace*& out, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        const cudaEvent_t used = new_event();
        out = new (std::nothrow) CudaWorkspace;
        if (out == nullptr) {
            ignore(cudaEventDestroy(used));
            throw std::bad_alloc();
        }
        out->device = device;
        out->used = used;
    });
}

void release_workspace(CudaWorkspace* w) {
    if (w == nullptr) return;
    CudaError ignored;
    guarded(ignored, [&] {
        const DeviceGuard guard(w->device);
        if (w->memory != nullptr) {
            // The stream of its last use may be gone.
            const cudaStream_t stream = own_stream(w->device);
            ignore(cudaStreamWaitEvent(stream, w->used, 0));
            ignore(cudaFreeAsync(w->memory, stream));
        }
        ignore(cudaEventDestroy(w->used));
    });
    delete w;
}

bool order(int device, void* before, void* after, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        const cudaEvent_t event = new_event();
        const cudaError_t recorded = cudaEventRecord(event, static_cast<cudaStream_t>(before));
        const cudaError_t waited =
            recorded == cudaSuccess ? cudaStreamWaitEvent(static_cast<cudaStream_t>(after), event, 0) : cudaSuccess;
        ignore(cudaEventDestroy(event));
        check(recorded, "cudaEventRecord");
        check(waited, "cudaStreamWaitEvent");
    });
}

bool capturing(int device, void* stream, bool& out, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        out = is_capturing(static_cast<cudaStream_t>(stream));
    });
}

}  // namespace
}  // namespace adaptk::cuda

namespace adaptk::detail {

const CudaBackend& cuda_backend() {
    static const CudaBackend backend{sizeof(CudaBackend), CUDART_VERSION,      ADAPTK_CUDA_ARCHITECTURES,
                                     cuda::device_count,  cuda::describe,      cuda::device_of,
                                     cuda::step,          cuda::global_norm,   cuda::ceiling,
                                     cuda::add_scaled,    cuda::copy,          cuda::new_counts,
                                     cuda::write_counts,  cuda::read_counts,   cuda::new_reports,
                                     cuda::read_report,   cuda::save,          cuda::restore,
                                     cuda::release,       cuda::new_workspace, cuda::release_workspace,
                                     cuda::order,         cuda::capturing,     cuda::set_waves};
    return backend;
}

extern "C" const CudaBackend* adaptk_cuda_backend() { return &cuda_backend(); }

}  // namespace adaptk::detail
