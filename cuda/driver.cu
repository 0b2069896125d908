// From a checked list of tensors to launches: tables, memory for them, and the order of kernels on the stream. Nothing
// here waits for the device but what hands a number to the caller.
#include "cuda_backend.hpp"

#include "dispatch.hpp"
#include "fits.hpp"
#include "kernel_table.hpp"
#include "kernels.hpp"
#include "random_launch.hpp"
#include "reduce.hpp"
#include "row_launch.hpp"
#include "rows.hpp"
#include "rule_program.hpp"
#include "run_time.hpp"
#include "runtime.hpp"
#include "sums.hpp"
#include "threads.hpp"

#include "adaptk/rounding.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
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

using detail::CudaBatch;
using detail::CudaError;
using detail::CudaKept;
using detail::CudaPiece;
using detail::CudaStep;
using detail::CudaWorkspace;
using detail::Format;
using detail::ParamUpdate;
using detail::Segment;
using detail::StepReport;

static_assert(leaf_elements == std::int64_t(detail::reduction_leaf));
// The entries of a second table follow in one piece: tables begin at multiples of 16 bytes.
static_assert(sizeof(Tensor) % 16 == 0 && sizeof(Side) % 16 == 0);

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

// Room for n items behind `bytes` other bytes: its offset. `what` it is for is named if memory has no such size.
std::size_t reserve_items(std::size_t& bytes, std::size_t n, std::size_t each, const char* what) {
    std::size_t own = 0;
    if (__builtin_mul_overflow(n, each, &own) || own > SIZE_MAX / 2 - bytes)
        throw RuntimeError(cudaErrorMemoryAllocation, what);
    const std::size_t at = bytes;
    bytes += rounded(own);
    return at;
}

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
int resident(int device, const void* kernel, unsigned threads = block_threads) {
    int n = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, kernel, int(threads), 0),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    return std::max(n, 1) * multiprocessors(device);
}

// `place`: of the rule in the table of kernels; from kernel_count on it is asked for each time.
int resident_steps(int device, const void* kernel, std::size_t place, std::size_t type, std::size_t stored) {
    static std::atomic<int> known[most_devices][kernel_count][2][2];
    std::atomic<int> unknown{0};
    const bool listed = device < most_devices && place < kernel_count;
    return remembered(listed ? known[device][place][type][stored] : unknown, [&] { return resident(device, kernel); });
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

// Blocks of threads that have an item at a time.
unsigned blocks_for_items(int device, std::uint64_t items) {
    return blocks_for(std::int64_t((items + warp - 1) / warp),
                      std::int64_t(multiprocessors(device)) * common_resident_blocks);
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

// Whether the kernel for any formats is needed: 1, or 0.
std::size_t stored_otherwise(const ParamUpdate& t, std::size_t buffers) {
    const Format native = t.compute() == 1 ? Format::float64 : Format::float32;
    return std::all_of(t.format, t.format + buffers, [=](Format f) { return f == native; }) ? 0 : 1;
}

// The kernels of a rule of the list, or of a program, which are compiled when they are asked for.
class KernelsOf {
  public:
    KernelsOf(const RuleKernels& kernels) : listed_(&kernels) {}
    KernelsOf(const detail::RuleInfo& rule, int device)
        : row_wise_(rule.is_row_wise() ? &row_wise_kernels()[std::size_t(&rule - detail::row_wise_rules().data())]
                                       : nullptr),
          listed_(row_wise_ != nullptr      ? &row_wise_->rule
                  : rule.program == nullptr ? &kernels()[rule.index]
                                            : nullptr),
          rule_(&rule), device_(device) {}

    const void* step(std::size_t type, std::size_t stored) const {
        if (listed_ != nullptr) return listed_->step[type][stored];
        return kernel_of_program(*rule_, device_, stored == 1 ? KernelKind::stored_step : KernelKind::step, type);
    }
    const void* prepare(std::size_t type) const {
        if (listed_ != nullptr) return listed_->prepare[type];
        return kernel_of_program(*rule_, device_, KernelKind::prepare, type);
    }
    // What measures before a step, if the rule has reductions or numbers for whole tensors; else null.
    const detail::RuleInfo* measuring() const { return rule_ != nullptr && rule_->measures ? rule_ : nullptr; }
    const void* measure(std::size_t type, std::size_t stored, std::size_t pass) const {
        return kernel_of_program(*rule_, device_, stored == 1 ? KernelKind::stored_measure : KernelKind::measure, type,
                                 pass);
    }
    // What the states of rows and columns become; null: there are none.
    const void* lines(std::size_t type) const {
        const std::vector<Per>& per = rule_->program->per;
        const auto of_line = [](Per p) { return p == Per::row || p == Per::column; };
        if (!std::any_of(per.begin(), per.end(), of_line)) return nullptr;
        return kernel_of_program(*rule_, device_, KernelKind::lines, type);
    }
    std::size_t coefficients_bytes(std::size_t type) const {
        return listed_ != nullptr ? listed_->coefficients_bytes[type] : rule_->program->coefficients_bytes(int(type));
    }
    std::size_t place() const { return listed_ != nullptr ? listed_->place : kernel_count; }
    // Null: the rule keeps no numbers of rows.
    const RowWiseKernels* row_wise() const { return row_wise_; }

  private:
    const RowWiseKernels* row_wise_ = nullptr;
    const RuleKernels* listed_;
    const detail::RuleInfo* rule_ = nullptr;
    int device_ = 0;
};

// What the host has is staged before the call returns.
template <class X> const X* put_items(std::byte* to, std::span<const X> items, cudaStream_t stream) {
    if (!items.empty())
        check(cudaMemcpyAsync(to, items.data(), items.size_bytes(), cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    return reinterpret_cast<const X*>(to);
}

// Whether any of its first buffers needs a Side.
bool needs_sides(const ParamUpdate& t, std::size_t buffers) {
    return !std::all_of(t.format, t.format + buffers, [](Format f) { return is_plain(f); });
}

// Elements of one tensor share the upper half of their number there, which a row may not be in the middle of.
void check_draws_of_rows(const ParamUpdate& t, std::int64_t row_size) {
    if (row_size % 16 == 0 || t.size <= std::int64_t{UINT32_MAX}) return;
    for (std::size_t b = 0; b < max_buffers; ++b)
        if (info_of(t.format[b]).stochastic)
            throw Refusal(std::string("rows of a tensor of more than 2^32 elements, stored as ") +
                          detail::name_of(t.format[b]) + ", whose size is no multiple of 16");
}

// Whether it has states in the second entry of the tables.
bool has_more_states(const ParamUpdate& t) {
    return std::any_of(t.buffer + table_buffers, t.buffer + max_buffers, [](const void* b) { return b != nullptr; });
}
std::size_t tensor_bytes(const ParamUpdate& t) {
    return sizeof(Tensor) + (has_more_states(t) ? sizeof(MoreStates) : 0);
}
std::size_t side_bytes(const ParamUpdate& t) { return sizeof(Side) + (has_more_states(t) ? sizeof(MoreSides) : 0); }

// The rows of a tensor for the kernels that make `count` tensors of them, which are to lie at these addresses.
RowTables row_tables(const ParamUpdate& t, std::int64_t row_size, std::size_t count, std::byte* tensors,
                     std::byte* sides) {
    check_draws_of_rows(t, row_size);
    RowTables out{};
    out.tensors = reinterpret_cast<Tensor*>(tensors);
    out.sides = reinterpret_cast<Side*>(sides);
    if (has_more_states(t)) {
        out.more = reinterpret_cast<MoreStates*>(out.tensors + count);
        if (sides != nullptr) out.more_sides = reinterpret_cast<MoreSides*>(out.sides + count);
    }
    out.row_size = row_size;
    out.number = std::uint8_t(t.row_buffer);
    // As Batch::add() has it.
    out.unaligned = t.compute() == 0 && t.grad() == Format::float64;
    out.tensor = t.number;
    for (std::size_t b = 0; b < max_buffers; ++b) {
        out.buffer[b] = t.buffer[b];
        out.side[b] = t.side[b];
        out.format[b] = std::uint8_t(t.format[b]);
        const std::int64_t elements = b != 0 && b == t.row_buffer ? 1 : row_size;
        if (t.buffer[b] != nullptr) out.row_bytes[b] = std::int64_t(storage_bytes(t.format[b], elements));
        if (t.side[b] != nullptr) out.side_bytes[b] = std::int64_t(detail::side_bytes(t.format[b], elements));
    }
    return out;
}

// A tensor whose rows are updated one by one: the tensors that they are for the kernels.
struct RowTensors {
    const Tensor* tensors = nullptr;
    const Side* sides = nullptr;  // null: none are needed
    std::uint32_t count = 0;
    std::int64_t tiles = 0;
};

// Gradients of rows, made ready for the kernels on a stream. The values of each row are added up; what knows no rows
// takes the sums as a gradient of the whole tensor, with zeros between them. The indices have been grouped on the host.
class RowGradients {
  public:
    // `whole`: all gradients are of whole tensors then; what is updated row by row is so in either case.
    // `gathered`: of each tensor, whether the rows with values alone are there (CatchUp::moved); of none if it is
    // empty.
    RowGradients(int device, cudaStream_t stream, std::span<const ParamUpdate> tensors, bool whole,
                 std::vector<bool> gathered = {})
        : device_(device), stream_(stream), tensors_(tensors), gathered_(std::move(gathered)) {
        for (std::uint32_t i = 0; i < tensors.size(); ++i)
            if (tensors[i].rows != nullptr && !tensors[i].rows->whole) plans_.push_back(plan(i, tensors[i], whole));
        if (plans_.empty()) return;
        // Tables are copied from memory of the host that a replay would read again.
        if (is_capturing(stream)) throw Refusal("a gradient of rows while its stream is captured in a graph");
        memory_.emplace(device, nullptr, stream, bytes_);
        copies_.assign(tensors.begin(), tensors.end());
        tensors_ = copies_;
        for (Plan& p : plans_) make(p);
    }

    // With gradients of whole tensors in the place of those of rows.
    std::span<const ParamUpdate> tensors() const { return tensors_; }
    // Null: the tensor is not updated row by row.
    const RowTensors* rows_of(std::uint32_t tensor) const {
        const auto p = std::lower_bound(plans_.begin(), plans_.end(), tensor,
                                        [](const Plan& a, std::uint32_t wanted) { return a.tensor < wanted; });
        return p != plans_.end() && p->tensor == tensor && p->row_by_row ? &p->rows : nullptr;
    }

  private:
    struct Plan {
        std::uint32_t tensor;
        bool row_by_row, for_all_rows;
        std::vector<RowLeaf> leaves;
        std::vector<LongRow> long_rows;
        std::uint32_t partials = 0;
        std::size_t keys_at, leaves_at, long_rows_at, sums_at, partials_at, tensors_at, sides_at;
        bool sided;
        RowTensors rows;
    };

    int device_;
    cudaStream_t stream_;
    std::span<const ParamUpdate> tensors_;
    std::vector<bool> gathered_;
    std::vector<ParamUpdate> copies_;
    std::vector<Plan> plans_;
    std::size_t bytes_ = 0;
    std::optional<Memory> memory_;

    std::size_t reserve(std::size_t n, std::size_t each) {
        return reserve_items(bytes_, n, each, "a gradient of rows");
    }

    Plan plan(std::uint32_t i, const ParamUpdate& t, bool whole) {
        const detail::RowUpdate& r = *t.rows;
        if (r.occurrences() >= no_partial) throw Refusal("a gradient of rows with more than 2^32 - 2 indices");
        Plan p{};
        p.tensor = i;
        p.row_by_row = r.mode != detail::SparseMode::dense;
        p.for_all_rows = whole || !p.row_by_row;
        p.rows.count = std::uint32_t(r.distinct());
        p.rows.tiles = std::int64_t(r.distinct()) * ((r.row_size() + tile - 1) / tile);
        for (std::uint32_t row = 0; row < p.rows.count; ++row) {
            const auto first = std::uint32_t(r.first(row)), end = std::uint32_t(r.first(row + 1));
            const auto leaf = std::uint32_t(detail::row_leaf);
            if (end - first <= leaf) {
                p.leaves.push_back({first, row, no_partial});
                continue;
            }
            p.long_rows.push_back({first, row, p.partials, (end - first + leaf - 1) / leaf});
            for (std::uint32_t o = first; o < end; o += leaf) p.leaves.push_back({o, row, p.partials++});
        }
        p.leaves.push_back({std::uint32_t(r.occurrences()), 0, no_partial});
        p.sided = needs_sides(t, max_buffers);
        const std::size_t element = t.compute() == 1 ? sizeof(double) : sizeof(float);
        const auto row_bytes = std::size_t(r.row_size()) * element;
        p.keys_at = reserve(r.occurrences(), sizeof(std::uint64_t));
        p.leaves_at = reserve(p.leaves.size(), sizeof(RowLeaf));
        p.long_rows_at = reserve(p.long_rows.size(), sizeof(LongRow));
        p.sums_at = p.for_all_rows ? reserve(std::size_t(t.size), element) : reserve(r.distinct(), row_bytes);
        p.partials_at = reserve(p.partials, row_bytes);
        if (p.row_by_row) {
            p.tensors_at = reserve(r.distinct(), tensor_bytes(t));
            p.sides_at = p.sided ? reserve(r.distinct(), side_bytes(t)) : 0;
        }
        return p;
    }

    template <class X> const X* put(std::size_t at, std::span<const X> items) {
        return put_items(memory_->data + at, items, stream_);
    }

    void make(Plan& p) {
        ParamUpdate& t = copies_[p.tensor];
        const detail::RowUpdate& r = *t.rows;
        const std::size_t type = t.compute();
        RowsLaunch launch{};
        launch.values = r.values().data;
        launch.sums = memory_->data + p.sums_at;
        launch.partials = memory_->data + p.partials_at;
        launch.keys = put(p.keys_at, r.keys());
        launch.leaves = put(p.leaves_at, std::span<const RowLeaf>(p.leaves));
        launch.long_rows = put(p.long_rows_at, std::span<const LongRow>(p.long_rows));
        launch.rows.row_size = r.row_size();
        launch.leaf_count = std::uint32_t(p.leaves.size() - 1);
        launch.long_count = std::uint32_t(p.long_rows.size());
        launch.place_bits = r.place_bits();
        launch.for_all_rows = p.for_all_rows;
        launch.values_format = std::uint8_t(r.values().format);
        t.rows = nullptr;
        t.set(1, {p.for_all_rows ? launch.sums : nullptr, type == 1 ? Format::float64 : Format::float32});
        if (p.row_by_row) {
            launch.rows = row_tables(t, r.row_size(), r.distinct(), memory_->data + p.tensors_at,
                                     p.sided ? memory_->data + p.sides_at : nullptr);
            launch.rows.gathered = !gathered_.empty() && gathered_[p.tensor];
            p.rows.tensors = launch.rows.tensors;
            p.rows.sides = launch.rows.sides;
        }
        if (p.for_all_rows && t.size > 0)
            check(cudaMemsetAsync(launch.sums, 0, t.bytes(1), stream_), "cudaMemsetAsync");
        const auto blocks = [&](std::uint32_t count) {
            return blocks_for_items(device_, std::uint64_t(count) * std::uint64_t(r.row_size()));
        };
        if (launch.leaf_count > 0) launch_row_leaves(launch, type, blocks(launch.leaf_count), stream_);
        if (launch.long_count > 0) launch_long_rows(launch, type, blocks(launch.long_count), stream_);
    }
};

// Rows of a tensor that take the steps which they have missed, up to step number `steps`: all of them, or those that
// the tensor's gradient has values for. The host counts the steps of each row.
class CatchUp {
  public:
    CatchUp(int device, cudaStream_t stream, const Segment& g, const ParamUpdate& t, std::int64_t steps)
        : device_(device), stream_(stream), type_(t.compute()), stored_(is_stored(t, g.rule->buffers())),
          moves_(stored_ && !t.rows->whole) {
        const detail::RowUpdate& r = *t.rows;
        std::vector<MissedRow> rows;
        std::vector<std::int64_t> missed;  // by so many each
        std::map<std::int64_t, std::uint32_t> known;
        const auto add = [&](std::int64_t row) {
            const std::int64_t n = std::max(steps - r.last_step[row], std::int64_t{0});
            if (n == 0 && !moves_) return;
            const auto found = known.emplace(n, std::uint32_t(missed.size()));
            if (found.second) missed.push_back(n);
            rows.push_back({row, found.first->second});
        };
        if (r.whole) {
            for (std::int64_t row = 0; row < r.rows(); ++row) add(row);
        } else {
            for (std::size_t i = 0; i < r.distinct(); ++i) add(r.row(i));
        }
        CatchUpLaunch& launch = launch_.rows;
        if (rows.empty() || t.size == 0) return;
        if (is_capturing(stream)) throw Refusal("rows catch up while their stream is captured in a graph");
        launch.row_size = r.row_size();
        launch.states = int(g.rule->buffers()) - 2;
        launch.number = g.rule->is_row_wise() ? int(g.rule->row_state) : -1;
        for (std::size_t b = 0; b < max_buffers; ++b) launch.buffer[b] = t.buffer[b];
        if (type_ == 0) {
            prepare(rows, factors_of<float>(g, missed));
        } else {
            prepare(rows, factors_of<double>(g, missed));
        }
        if (stored_) add_formats(t, g.key());
    }

    // Whether the step takes moved() in the place of the tensor, and store() follows it.
    bool moves() const { return moves_ && launch_.rows.count > 0; }
    ParamUpdate moved(ParamUpdate t) const {
        for (std::size_t b = 0; b < max_buffers; ++b)
            if (launch_.moved[b] != nullptr) t.set(b, {launch_.moved[b], Format::float32});
        return t;
    }

    void launch() const {
        const CatchUpLaunch& rows = launch_.rows;
        if (rows.count == 0) return;
        if (stored_) return launch_stored();
        launch_catch_up(rows, type_,
                        blocks_for_items(device_, std::uint64_t(rows.count) * std::uint64_t(rows.row_size)), stream_);
    }
    void store() const {
        StoredRowsLaunch back = launch_;
        back.back = true;
        launch_stored(back);
    }

  private:
    int device_;
    cudaStream_t stream_;
    std::size_t type_;
    bool stored_, moves_;
    StoredRowsLaunch launch_{};
    std::optional<Memory> memory_;

    static bool is_stored(const ParamUpdate& t, std::size_t buffers) {
        const Format computed = t.compute() == 1 ? Format::float64 : Format::float32;
        for (std::size_t b = 0; b < buffers; ++b)
            if (b != 1 && t.format[b] != computed) return true;
        return false;
    }

    template <class T>
    static std::vector<IdleFactors<T>> factors_of(const Segment& g, const std::vector<std::int64_t>& missed) {
        const double decay = g.rule->decoupled(g.hyper) ? g.hyper.value[0] * g.rule->weight_decay(g.hyper) : 0.0;
        std::vector<IdleFactors<T>> out;
        for (const std::int64_t n : missed) {
            IdleSteps idle;
            if (n > 0) g.rule->idle_steps(g.hyper, 1.0 - decay, n, idle);
            IdleFactors<T>& f = out.emplace_back();
            f.param = T(idle.param);
            for (std::size_t s = 0; s < max_states; ++s) {
                f.state[s] = T(idle.state[s]);
                f.from_state[s] = T(idle.from_state[s]);
            }
        }
        return out;
    }

    // Tables, and behind them what the rows are moved to.
    template <class T> void prepare(const std::vector<MissedRow>& rows, const std::vector<IdleFactors<T>>& factors) {
        CatchUpLaunch& launch = launch_.rows;
        launch.count = std::int64_t(rows.size());
        std::size_t bytes = 0;
        const auto reserve = [&](std::size_t n, std::size_t each) {
            return reserve_items(bytes, n, each, "rows that catch up");
        };
        const std::size_t rows_at = reserve(rows.size(), sizeof(MissedRow));
        const std::size_t factors_at = reserve(factors.size(), sizeof(IdleFactors<T>));
        std::size_t moved_at[max_buffers] = {};
        const auto is_moved = [&](int b) { return moves_ && b != 1 && b < 2 + launch.states; };
        for (int b = 0; b < int(max_buffers); ++b)
            if (is_moved(b))
                moved_at[b] =
                    reserve(rows.size(), sizeof(T) * std::size_t(b == 2 + launch.number ? 1 : launch.row_size));
        memory_.emplace(device_, nullptr, stream_, bytes);
        for (int b = 0; b < int(max_buffers); ++b)
            if (is_moved(b)) launch_.moved[b] = memory_->data + moved_at[b];
        launch.rows = put_items(memory_->data + rows_at, std::span<const MissedRow>(rows), stream_);
        launch.factors = put_items(memory_->data + factors_at, std::span<const IdleFactors<T>>(factors), stream_);
    }

    void add_formats(const ParamUpdate& t, std::uint64_t key) {
        check_draws_of_rows(t, launch_.rows.row_size);
        launch_.key = key;
        launch_.tensor = t.number;
        std::uintptr_t addresses = 0;
        for (int b = 0; b < 2 + launch_.rows.states; ++b) {
            launch_.format[b] = std::uint8_t(t.format[b]);
            launch_.side[b] = t.side[b];
            if (b == 1 || b == 2 + launch_.rows.number) continue;
            addresses |= reinterpret_cast<std::uintptr_t>(t.buffer[b]);
            if (info_of(t.format[b]).split) addresses |= reinterpret_cast<std::uintptr_t>(t.side[b]);
        }
        launch_.aligned = addresses % 16 == 0;
    }

    void launch_stored() const { launch_stored(launch_); }
    void launch_stored(const StoredRowsLaunch& what) const {
        const std::int64_t tiles = (what.rows.row_size + tile - 1) / tile;
        launch_stored_rows(
            what,
            blocks_for_items(device_, std::uint64_t(what.rows.count) * std::uint64_t(tiles) * std::uint64_t(warp)),
            stream_);
    }
};

// Behind a step: that of the rows that have taken it.
void count_steps_of_rows(const detail::RowUpdate& r, std::int64_t step) {
    if (r.whole) {
        std::fill_n(r.last_step, r.rows(), step);
    } else {
        for (std::size_t i = 0; i < r.distinct(); ++i) r.last_step[r.row(i)] = step;
    }
}

bool catches_up(const ParamUpdate& t) { return t.rows != nullptr && t.rows->mode == detail::SparseMode::catch_up; }

// Those that have a number for each element: the first ones.
std::size_t element_states(const detail::Program& program) {
    return std::size_t(std::count(program.per.begin(), program.per.end(), Per::element));
}

// What passes over the same elements reduce (MeasuredPart), in the order of their leaves.
struct MeasuredParts {
    std::vector<MeasuredPart> parts;
    std::int64_t leaves = 0, sums = 0;
    std::int64_t long_numbers = 0, long_before = 0;  // of the last kind of parts, and of the one before
    std::size_t at = 0;                              // in tables

    // Parts of another kind follow, of the same tensors: columns behind rows.
    void begin_kind() { long_before = std::exchange(long_numbers, 0); }
    void add_scopes(std::int64_t begin, std::int64_t end, std::int64_t scope) {
        parts.push_back({begin, end, leaves, scope, 0, 0, sums, long_numbers});
        const std::int64_t numbers = scope > 0 ? (end - begin) / scope : 0, of_number = detail::leaves_of(scope);
        leaves += numbers * of_number;
        sums += numbers * of_number;
        if (of_number > 1) long_numbers += numbers;
    }
    void add_columns(std::int64_t begin, const detail::Grid& g) {
        const std::int64_t end = begin + g.all_rows() * g.columns;
        const std::int64_t block = end > begin ? detail::rows_of_column_block(g.rows, g.columns) : 1;
        const MeasuredPart p{begin, end, leaves, g.columns, g.rows, block, sums, long_numbers};
        parts.push_back(p);
        leaves += g.matrices * p.blocks() * p.tiles_of_row();
        sums += p.blocks() * g.all_columns();
        if (p.blocks() > 1) long_numbers += g.all_columns();
    }
};

// What a batch needs beside its tensors if its rule has reductions (measure_kernel.hpp). It lies in tables, and what
// kernels write in scratch memory.
struct Measures {
    const detail::RuleInfo* rule = nullptr;     // null: there are none
    std::vector<const void*> kernels;           // of the passes
    const void* lines = nullptr;                // of the states of rows and columns
    std::vector<std::int64_t> first;            // elements of the tensors before each
    std::vector<detail::Grid> grids;            // of what has no elements nothing
    std::int64_t elements = 0, line_count = 0;  // of all tensors
    MeasuredParts of_over[std::size_t(detail::Over::count)];
    std::vector<std::size_t> numbers_at;                     // of the reductions to lines of each tensor, in scratch
    std::size_t first_at = 0, tensors_at = 0, lines_at = 0;  // in tables
    std::size_t sums_at = 0, reduced_at = 0, scales_at = 0;  // in scratch

    const detail::Program& program() const { return *rule->program; }
    std::size_t count() const { return grids.size(); }
    std::size_t reductions() const { return std::max<std::size_t>(program().reductions.size(), 1); }
    std::size_t reduced_bytes() const { return (count() + 1) * reductions() * sizeof(double); }

    void add(const ParamUpdate& t) {
        first.push_back(elements);
        elements += t.size;
        grids.push_back(t.size > 0 ? t.grid : detail::Grid{0, 0, 0, t.grid.is_vector});
    }

    void lay_out(Tables& tables, std::size_t& scratch, std::size_t compute_bytes) {
        first_at = tables.add(first);
        tensors_at = tables.reserve(count() * sizeof(MeasuredTensor));
        const auto take = [&](std::size_t bytes) {
            const std::size_t at = scratch;
            scratch += rounded(bytes);
            return at;
        };
        std::size_t sums = 0, most = 0;
        for (const detail::Program::Pass& p : program().passes()) {
            MeasuredParts& parts = of_over[std::size_t(p.over)];
            if (parts.parts.empty()) {
                make_parts(p.over);
                parts.at = tables.add(parts.parts);
            }
            most = std::max(most, p.reductions.size());
            sums = std::max(sums, p.reductions.size() * std::size_t(parts.sums));
        }
        sums_at = take(sums * sizeof(double));
        reduced_at = take(reduced_bytes());
        scales_at = take(count() * most * sizeof(double));
        if (!program().has_lines()) return;
        lines_at = tables.reserve(count() * sizeof(LineTensor));
        for (const detail::Grid& g : grids) {
            line_count += g.all_rows() + g.all_columns();
            for (const detail::ReductionNode& r : program().reductions)
                numbers_at.push_back(take(std::size_t(numbers_of(g, r.over)) * compute_bytes));
        }
    }

    // Scratch memory lies there now.
    std::vector<LineTensor> line_tensors(std::byte* scratch) const {
        std::vector<LineTensor> out;
        std::int64_t lines_before = 0;
        for (std::size_t i = 0; i < count(); ++i) {
            const detail::Grid& g = grids[i];
            LineTensor& t = out.emplace_back();
            t = {{}, g.matrices, g.rows, g.columns, lines_before};
            lines_before += g.all_rows() + g.all_columns();
            for (std::size_t r = 0; r < program().reductions.size(); ++r)
                t.line[max_states + r] = scratch + numbers_at[i * program().reductions.size() + r];
        }
        return out;
    }

  private:
    static std::int64_t numbers_of(const detail::Grid& g, detail::Over over) {
        return over == detail::Over::rows      ? g.all_rows()
               : over == detail::Over::columns ? g.all_columns()
               : over == detail::Over::matrix  ? g.matrices
                                               : 0;
    }
    std::int64_t end_of(std::size_t i) const { return i + 1 < first.size() ? first[i + 1] : elements; }
    void make_parts(detail::Over over) {
        MeasuredParts& parts = of_over[std::size_t(over)];
        const auto each = [&](const auto& add_part) {
            parts.begin_kind();
            for (std::size_t i = 0; i < count(); ++i) add_part(i, grids[i]);
        };
        switch (over) {
        case detail::Over::all: parts.add_scopes(0, elements, elements); return;
        case detail::Over::tensor:
            each([&](std::size_t i, const detail::Grid&) {
                parts.add_scopes(first[i], end_of(i), end_of(i) - first[i]);
            });
            return;
        case detail::Over::rows:
            each([&](std::size_t i, const detail::Grid& g) { parts.add_scopes(first[i], end_of(i), g.columns); });
            each([&](std::size_t i, const detail::Grid& g) { parts.add_columns(first[i], g); });
            return;
        default:
            each([&](std::size_t, const detail::Grid& g) { parts.add_scopes(0, g.all_rows(), g.rows); });
            each([&](std::size_t, const detail::Grid& g) { parts.add_scopes(0, g.all_columns(), g.columns); });
        }
    }
};

struct Batch;

// The rows of a tensor whose rule keeps one number for each: as tensors, with a set of coefficients each. So many of
// them at a time: their tables take memory. No table comes from the host, and a graph may have it all.
class NumberedRows {
  public:
    static constexpr std::int64_t at_a_time = std::int64_t{1} << 16;

    // `ready`: the tensors of those that a gradient has values for; null: the gradient is of all rows.
    NumberedRows(int device, cudaStream_t stream, const RowWiseKernels& kernels, const ParamUpdate& t, bool keyed,
                 const RowTensors* ready)
        : device_(device), stream_(stream), kernels_(kernels), type_(t.compute()), ready_(ready), rows_(t.row_count),
          row_size_(t.size / t.row_count) {
        const std::int64_t most = ready != nullptr ? std::int64_t(ready->count) : std::min(rows_, at_a_time);
        std::size_t bytes = 0;
        const auto take = [&](std::size_t each) {
            const std::size_t at = bytes;
            bytes += rounded(std::size_t(most) * each);
            return at;
        };
        const bool sided = needs_sides(t, max_buffers);
        const std::size_t coefficients_at = take(kernels.bytes_of_row[type_]);
        const std::size_t keys_at = keyed ? take(sizeof(std::uint64_t)) : 0;
        const std::size_t tensors_at = ready == nullptr ? take(sizeof(Tensor)) : 0;
        const std::size_t sides_at = ready == nullptr && sided ? take(sizeof(Side)) : 0;
        memory_.emplace(device, nullptr, stream, bytes);
        coefficients_ = memory_->data + coefficients_at;
        if (keyed) keys_ = reinterpret_cast<std::uint64_t*>(memory_->data + keys_at);
        if (ready != nullptr) return;
        tables_.rows = row_tables(t, row_size_, std::size_t(most), memory_->data + tensors_at,
                                  sided ? memory_->data + sides_at : nullptr);
    }

    // `key`: null if `keyed` was false.
    void launch(const Batch& b, const void* coefficients, const std::uint64_t* key, const Control* control) const;

  private:
    int device_;
    cudaStream_t stream_;
    const RowWiseKernels& kernels_;
    std::size_t type_;
    const RowTensors* ready_;
    std::int64_t rows_, row_size_;
    std::optional<Memory> memory_;
    std::byte* coefficients_ = nullptr;
    std::uint64_t* keys_ = nullptr;
    RowTablesLaunch tables_{};

    void step(const Batch& b, const RowTensors& rows, const void* coefficients, const std::uint64_t* key,
              const Control* control) const;
};

// The tensors of a step that one kernel updates.
struct Batch {
    const void* kernel;
    std::size_t place;                       // of its rule, in the table of kernels
    std::size_t coefficients_bytes;          // of one set
    const void* prepare;                     // what computes them on the device; null: the host does
    std::size_t type;                        // 0 float, 1 double
    std::size_t stored;                      // which kernel
    const RowTensors* rows = nullptr;        // in the place of tensors: one of the step's, row by row
    std::unique_ptr<NumberedRows> numbered;  // or this
    Measures measures;
    bool alone = false;  // no other tensor may come to it
    std::vector<Tensor> tensors;
    std::vector<MoreStates> more;         // of rules with so many states: one of each tensor
    std::vector<std::uint32_t> source;    // of the step's tensors
    std::vector<std::uint32_t> segments;  // that have coefficients here
    std::vector<std::byte> coefficients;
    std::vector<Side> sides;
    std::vector<MoreSides> more_sides;
    std::vector<std::uint64_t> keys;  // of each set of coefficients, if any format may need them
    std::int64_t tiles = 0;
    bool sided = false;                                                                        // `sides` are needed
    std::size_t coefficients_at = 0, tensors_at = 0, slots_at = 0, sides_at = 0, keys_at = 0;  // in tables, or scratch
    bool inside = false;  // the tensors go with the parameters

    void add(const ParamUpdate& t, std::size_t buffers, std::uint32_t from, std::uint32_t own_coefficients) {
        Tensor out = {};
        Side side = {};
        MoreStates others = {};
        MoreSides beside_others = {};
        side.number = t.number;
        std::uintptr_t addresses = 0;
        for (std::size_t b = 0; b < buffers; ++b) {
            const bool first = b < table_buffers;
            const std::size_t k = first ? b : b - table_buffers;
            (first ? out.buffer : others.buffer)[k] = t.buffer[b];
            (first ? out.format : others.format)[k] = std::uint8_t(t.format[b]);
            (first ? side.of_buffer : beside_others.of_buffer)[k] = t.side[b];
            addresses |= reinterpret_cast<std::uintptr_t>(t.buffer[b]);
            if (info_of(t.format[b]).split) addresses |= reinterpret_cast<std::uintptr_t>(t.side[b]);
        }
        sided = sided || needs_sides(t, buffers);
        out.size = t.size;
        out.first_tile = tiles;
        out.coefficients = own_coefficients;
        // A lane has no room for vectors of gradients in float64 beside float32: they are loaded one by one.
        const bool wide = type == 0 && t.grad() == Format::float64;
        out.aligned = addresses % 16 == 0 && !wide ? 1 : 0;
        tiles += t.size / tile + (t.size % tile != 0 ? 1 : 0);
        tensors.push_back(out);
        source.push_back(from);
        if (stored != 0) sides.push_back(side);
        if (buffers <= table_buffers) return;
        more.push_back(others);
        if (stored != 0) more_sides.push_back(beside_others);
    }

    std::size_t tensor_bytes() const { return tensors.size() * sizeof(Tensor) + more.size() * sizeof(MoreStates); }
    void add_tensors(Tables& tables) {
        tensors_at = tables.add(tensors);
        tables.add(more);
    }
    void add_sides(Tables& tables) {
        if (!sided || sides.empty()) return;
        sides_at = tables.add(sides);
        tables.add(more_sides);
    }
    void add_keys(Tables& tables) {
        if (sided) keys_at = tables.add(keys);
    }

    // Null pointers stand for tables that go with the parameters.
    void launch(int device, cudaStream_t stream, const void* of_device, const Tensor* on_device, const Side* beside,
                const std::uint64_t* keys_of, const Control* control, const LineTensor* lines = nullptr) const {
        launch(device, stream,
               rows != nullptr ? *rows : RowTensors{on_device, beside, std::uint32_t(tensors.size()), tiles}, of_device,
               keys_of, control, lines);
    }
    void launch(int device, cudaStream_t stream, const RowTensors& what, const void* of_device,
                const std::uint64_t* keys_of, const Control* control, const LineTensor* lines = nullptr) const {
        if (what.tiles == 0) return;
        StepLaunch p;
        p.tensors = what.tensors;
        p.coefficients = of_device;
        p.control = control;
        p.sides = what.sides;
        p.keys = keys_of;
        p.lines = lines;
        p.tiles = what.tiles;
        p.count = what.count;
        std::size_t used = 0;
        if (of_device == nullptr) {
            std::memcpy(p.inside, coefficients.data(), coefficients.size());
            used = rounded(coefficients.size());
        }
        p.tensors_at = std::uint32_t(used);
        if (p.tensors == nullptr) {
            const std::size_t bytes = tensors.size() * sizeof(Tensor);
            std::memcpy(p.inside + used, tensors.data(), bytes);
            if (!more.empty()) std::memcpy(p.inside + used + bytes, more.data(), more.size() * sizeof(MoreStates));
        }
        launch_symbol(kernel, stored == 1 ? "stored_step_kernel" : "step_kernel",
                      blocks_for(what.tiles, resident_steps(device, kernel, place, type, stored)), block_threads,
                      stream, p);
    }
};

void NumberedRows::launch(const Batch& b, const void* coefficients, const std::uint64_t* key,
                          const Control* control) const {
    if (ready_ != nullptr) return step(b, *ready_, coefficients, key, control);
    RowTablesLaunch tables = tables_;
    for (tables.first = 0; tables.first < rows_; tables.first += at_a_time) {
        tables.count = std::uint32_t(std::min(rows_ - tables.first, at_a_time));
        launch_row_tables(tables, blocks_for_items(device_, tables.count), stream_);
        const std::int64_t tiles = std::int64_t(tables.count) * ((row_size_ + tile - 1) / tile);
        step(b, {tables.rows.tensors, tables.rows.sides, tables.count, tiles}, coefficients, key, control);
    }
}

void NumberedRows::step(const Batch& b, const RowTensors& rows, const void* coefficients, const std::uint64_t* key,
                        const Control* control) const {
    const RowFactorsLaunch factors{rows.tensors, rows.sides, coefficients, coefficients_,
                                   key,          keys_,      control,      rows.count};
    launch_symbol(kernels_.factors[type_], "row_factors_kernel",
                  blocks_for_items(device_, rows.count * std::uint64_t(warp)), block_threads, stream_, factors);
    b.launch(device_, stream_, rows, coefficients_, keys_, control);
}

// `prepared`: the device computes the coefficients. A tensor that is updated row by row has a batch of its own.
Batch& batch_of(std::vector<Batch>& batches, const KernelsOf& kernels, std::size_t type, std::size_t stored,
                bool prepared = false, const RowTensors* rows = nullptr) {
    const bool alone = rows != nullptr || kernels.row_wise() != nullptr;
    const void* const kernel = kernels.step(type, stored);
    // Rules share a kernel, and compute its coefficients by their own.
    const void* const prepare = prepared ? kernels.prepare(type) : nullptr;
    for (Batch& b : batches)
        if (b.kernel == kernel && b.place == kernels.place() && b.prepare == prepare && !b.alone && !alone) return b;
    Batch& b = batches.emplace_back();
    b.alone = alone;
    b.rows = rows;
    if (rows != nullptr) b.tiles = rows->tiles;
    b.kernel = kernel;
    b.place = kernels.place();
    b.coefficients_bytes = kernels.coefficients_bytes(type);
    b.prepare = prepare;
    b.type = type;
    b.stored = stored;
    b.measures.rule = kernels.measuring();
    if (b.measures.rule != nullptr)
        for (std::size_t p = 0; p < b.measures.program().passes().size(); ++p)
            b.measures.kernels.push_back(kernels.measure(type, stored, p));
    if (b.measures.rule != nullptr) b.measures.lines = kernels.lines(type);
    return b;
}

bool fits_inside(std::size_t coefficient_bytes, std::size_t tensor_bytes) {
    return rounded(coefficient_bytes) + tensor_bytes <= sizeof(StepLaunch::inside);
}

// The norm of all gradients: what its kernels need.
struct Norm {
    std::vector<NormTensor> tensors;
    std::int64_t total = 0;
    double outer = 1.0;
    bool rescalable = false;
    std::size_t tensors_at = 0, leaves_at = 0;

    std::int64_t leaves() const {
        return total / std::int64_t(detail::reduction_leaf) +
               (total % std::int64_t(detail::reduction_leaf) != 0 ? 1 : 0);
    }
    bool inside() const { return tensors.size() * sizeof(NormTensor) <= sizeof(NormLaunch::inside); }

    void add(const ParamUpdate& t, double factor) {
        rescalable = rescalable || t.grad() == Format::float64;
        if (t.size == 0) return;
        NormTensor n = {};
        n.data = t.buffer[1];
        n.first = total;
        n.factor = factor;
        n.format = std::uint8_t(t.grad());
        const auto start = reinterpret_cast<std::uintptr_t>(n.data) - std::uintptr_t(total) * size_of(t.grad());
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

template <class T> constexpr CommonCoefficients<T> unchanged{T(1), T(0), T(1), false};

template <class T> StepCoefficients<Combine, T> combination(Combination how, double factor = 0.0) {
    return {unchanged<T>, {T(factor), T(1) - T(factor), how}};
}
// Of an average, with this weight of what is averaged.
template <class T> StepCoefficients<Combine, T> lerp(double weight) {
    return combination<T>(T(weight) < T(0.5) ? Combination::near_lerp : Combination::far_lerp, weight);
}

// A gradient in the place of both buffers: what becomes zero.
ParamUpdate grad_alone(const ParamUpdate& t) {
    ParamUpdate out(t.size, t.grad(), t.grad());
    out.buffer[0] = out.buffer[1] = t.buffer[1];
    return out;
}

// Buffers that a step combines with others when the rules are done.
struct Epilogues {
    std::vector<Batch> batches;

    void add(const ParamUpdate& t, const StepCoefficients<Combine, float>& narrow,
             const StepCoefficients<Combine, double>& wide) {
        if (t.size == 0) return;
        Batch& b = batch_of(batches, kernels()[combine_place], t.compute(), stored_otherwise(t, 2));
        const auto* const made =
            b.type == 0 ? reinterpret_cast<const std::byte*>(&narrow) : reinterpret_cast<const std::byte*>(&wide);
        if (b.coefficients.empty()) {
            b.coefficients.assign(made, made + b.coefficients_bytes);
            b.keys.push_back(0);
        }
        b.add(t, 2, 0, 0);
    }
    void lay_out(Tables& tables) {
        for (Batch& b : batches) {
            b.inside = fits_inside(b.coefficients.size(), b.tensor_bytes());
            if (!b.inside) {
                b.coefficients_at = tables.add(b.coefficients);
                b.add_tensors(tables);
            }
            b.add_sides(tables);
            b.add_keys(tables);
        }
    }
    void launch(int device, cudaStream_t stream, const std::byte* head, const Control* control) const {
        for (const Batch& b : batches)
            b.launch(device, stream, b.inside ? nullptr : head + b.coefficients_at,
                     b.inside ? nullptr : reinterpret_cast<const Tensor*>(head + b.tensors_at),
                     b.sided ? reinterpret_cast<const Side*>(head + b.sides_at) : nullptr,
                     b.sided ? reinterpret_cast<const std::uint64_t*>(head + b.keys_at) : nullptr, control);
    }
};

unsigned small_blocks(std::size_t items) {
    return unsigned(std::min<std::size_t>((items + block_threads - 1) / block_threads, small_grid));
}

// A step on its way from the list of tensors to launches.
class StepBuilder {
  public:
    explicit StepBuilder(const CudaStep& s)
        : s_(s), stream_(static_cast<cudaStream_t>(s.stream)), with_norm_(s.options.needs_norm()) {
        on_device_ = s.counts != nullptr || !s.hypers.empty();
        for (const Segment& g : s.segments) on_device_ = on_device_ || g.device_step.data != nullptr;
    }

    void run() {
        const bool carries = std::any_of(s_.segments.begin(), s_.segments.end(), [](const Segment& g) {
            return g.rule->measures && g.rule->program->carries_measured();
        });
        const bool capturing = (s_.workspace != nullptr || s_.counts != nullptr || s_.reports != nullptr || carries) &&
                               is_capturing(stream_);
        if (carries && capturing)
            throw Refusal("a rule hands numbers on from step to step that depend on the gradients, which the host "
                          "computes: not while its stream is captured in a graph");
        const Use of_counts(s_.counts, 0, stream_, capturing);
        const Use of_report(with_norm_ ? s_.reports : nullptr, s_.report, stream_, capturing);
        start_catching_up();
        rows_.emplace(s_.device, stream_, gathered_.empty() ? s_.tensors : std::span<const ParamUpdate>(tensors_),
                      with_norm_, gathered_);
        start_norm();
        sort_tensors();
        sort_epilogues();
        lay_out_tables();
        Memory memory(s_.device, capturing ? nullptr : s_.workspace, stream_, tables_.bytes().size() + scratch_);
        head_ = memory.data;
        tail_ = memory.data + tables_.bytes().size();
        if (prepares_) write_addresses();
        memory.upload(tables_.bytes(), changing_);
        launch();
        if (carries) read_measured();
    }

  private:
    const CudaStep& s_;
    cudaStream_t stream_;
    bool with_norm_;
    bool on_device_;  // coefficients are computed there: the host does not know the counts, or some hyperparameters
    bool prepares_ = false;   // some are: those of rules with reductions too
    bool same_scale_ = true;  // all segments have one grad_scale
    std::optional<RowGradients> rows_;
    std::vector<std::unique_ptr<CatchUp>> late_;  // rows that take missed steps first
    // If some of them are moved: the tensors with moved rows in their place, and which ones have them.
    std::vector<ParamUpdate> tensors_;
    std::vector<bool> gathered_;
    std::vector<Batch> batches_;
    Epilogues zeros_, copies_, averages_;
    Norm norm_;

    // Tables go up at the beginning of the memory, scratch memory follows them. All of these are offsets in one of
    // them.
    Tables tables_;
    std::size_t scratch_ = 0;
    std::size_t changing_ = 0;  // bytes at the beginning that kernels write to
    std::vector<Patch> patches_;
    std::size_t patches_at_ = 0, hypers_at_ = 0, own_counts_at_ = 0, gathers_at_ = 0, gather_count_ = 0,
                control_at_ = 0;
    std::byte* head_ = nullptr;
    std::byte* tail_ = nullptr;

    static double own_scale(const Segment& g) { return g.rule->grad_scale(g.hyper); }
    // Of its gradients, but for what the device clips by.
    double scale_of(const Segment& g) const { return own_scale(g) * s_.options.grad_scale * s_.options.clipped_by; }

    void start_norm() {
        for (const Segment& g : s_.segments) same_scale_ = same_scale_ && own_scale(g) == own_scale(s_.segments[0]);
        if (!with_norm_) return;
        norm_.outer = s_.options.grad_scale * (same_scale_ && !s_.segments.empty() ? own_scale(s_.segments[0]) : 1.0);
        norm_.rescalable = !same_scale_;
    }

    void start_catching_up() {
        std::size_t tensor = 0;
        for (const Segment& g : s_.segments) {
            for (std::size_t k = 0; k < g.count; ++k, ++tensor) {
                if (!catches_up(s_.tensors[tensor])) continue;
                if (on_device_ || s_.options.skip_nonfinite)
                    throw Refusal("rows catch up by steps and hyperparameters that the host knows: sparse='catch_up' "
                                  "is without skip_nonfinite, capturable and hyperparameters on a device");
                const CatchUp& late = *late_.emplace_back(
                    std::make_unique<CatchUp>(s_.device, stream_, g, s_.tensors[tensor], g.step - 1));
                if (!late.moves()) continue;
                if (gathered_.empty()) tensors_.assign(s_.tensors.begin(), s_.tensors.end());
                gathered_.resize(tensors_.size());
                gathered_[tensor] = true;
                tensors_[tensor] = late.moved(s_.tensors[tensor]);
            }
        }
    }

    void sort_tensors() {
        std::uint32_t source = 0;
        const std::vector<const detail::RuleInfo*> stored_for_all = rules_of_any_format();
        for (std::uint32_t i = 0; i < s_.segments.size(); ++i) {
            const Segment& g = s_.segments[i];
            const bool prepared = on_device_ || g.rule->measures;
            prepares_ = prepares_ || prepared;
            const bool for_all =
                std::find(stored_for_all.begin(), stored_for_all.end(), g.rule) != stored_for_all.end();
            const std::size_t buffers = g.rule->measures ? 2 + element_states(*g.rule->program) : g.rule->buffers();
            for (std::size_t k = 0; k < g.count; ++k, ++source) {
                const ParamUpdate& t = rows_->tensors()[source];
                const RowTensors* const rows = rows_->rows_of(source);
                if (with_norm_) norm_.add(t, same_scale_ ? 1.0 : own_scale(g));
                if ((t.size == 0 || (rows != nullptr && rows->count == 0)) && !prepared) continue;
                Batch& b = batch_of(batches_, {*g.rule, s_.device}, t.compute(),
                                    for_all ? 1 : stored_otherwise(t, buffers), prepared, rows);
                if (prepared || b.segments.empty() || b.segments.back() != i) {
                    b.segments.push_back(i);
                    if (b.stored != 0) b.keys.push_back(g.key());
                    if (!prepared) add_coefficients(b, g);
                }
                if (b.alone) {
                    b.source.push_back(source);
                    b.sided = needs_sides(t, buffers);
                    if (g.rule->is_row_wise() && t.size > 0)
                        b.numbered = std::make_unique<NumberedRows>(
                            s_.device, stream_, *KernelsOf(*g.rule, s_.device).row_wise(), t, b.sided, rows);
                    continue;
                }
                b.add(t, buffers, source, std::uint32_t(b.segments.size() - 1));
                if (b.measures.rule != nullptr) b.measures.add(t);
            }
        }
    }

    // Reductions over all tensors of a rule are of one kernel: the one for any formats if one of them asks for it.
    std::vector<const detail::RuleInfo*> rules_of_any_format() const {
        std::vector<const detail::RuleInfo*> out;
        std::map<const detail::RuleInfo*, std::size_t> types;
        std::size_t source = 0;
        for (const Segment& g : s_.segments) {
            const bool all = g.rule->measures && g.rule->program->measures_all();
            for (std::size_t k = 0; k < g.count; ++k, ++source) {
                const ParamUpdate& t = rows_->tensors()[source];
                if (!all) continue;
                if (types.emplace(g.rule, t.compute()).first->second != t.compute())
                    throw Refusal(std::string(g.rule->name) +
                                  " has reductions over all params, and some of them are computed in float64, others "
                                  "in float32: on a CUDA device all are of one of the two");
                if (stored_otherwise(t, 2 + element_states(*g.rule->program)) == 1) out.push_back(g.rule);
            }
        }
        return out;
    }

    void sort_epilogues() {
        if (s_.options.zero_grad)
            for (const ParamUpdate& t : rows_->tensors())
                zeros_.add(grad_alone(t), combination<float>(Combination::set_to_zero),
                           combination<double>(Combination::set_to_zero));
        for (const ParamUpdate& t : s_.copies)
            copies_.add(t, combination<float>(Combination::assign), combination<double>(Combination::assign));
        const double weight = 1.0 - s_.options.average_decay;
        for (const ParamUpdate& t : s_.averages) averages_.add(t, lerp<float>(weight), lerp<double>(weight));
    }

    void add_coefficients(Batch& b, const Segment& g) const {
        alignas(16) std::byte made[detail::max_coefficients_bytes];
        const detail::Isa& isa = detail::current_isa();
        if (const detail::Program* const program = g.rule->program; program != nullptr) {
            program->coefficients(*g.rule, g.hyper, scale_of(g), g.step, isa, int(b.type), made);
            b.coefficients.insert(b.coefficients.end(), made, made + b.coefficients_bytes);
            return;
        }
        g.rule->code[isa.number].prepare[b.type](g.hyper.value, scale_of(g), g.step, made,
                                                 g.has_memo ? g.memo : nullptr);
        b.coefficients.insert(b.coefficients.end(), made, made + b.coefficients_bytes);
    }

    // What kernels write to comes first.
    void lay_out_tables() {
        if (prepares_) add_hypers_and_counts();
        if (!on_device_ && with_norm_) add_patched_coefficients();
        changing_ = tables_.bytes().size();
        patches_at_ = tables_.add(patches_);
        if (prepares_) reserve_device_tables();
        for (Batch& b : batches_) {
            const bool prepared = b.prepare != nullptr;
            const bool known = !prepared && !with_norm_;
            const bool coefficients_inside = known && b.coefficients.size() <= sizeof(StepLaunch::inside);
            b.inside = b.measures.rule == nullptr && b.numbered == nullptr &&
                       fits_inside(coefficients_inside ? b.coefficients.size() : 0, b.tensor_bytes());
            if (known && !b.inside) b.coefficients_at = tables_.add(b.coefficients);
            if (!b.inside) b.add_tensors(tables_);
            b.add_sides(tables_);
            if (!prepared) b.add_keys(tables_);
            if (b.measures.rule != nullptr)
                b.measures.lay_out(tables_, scratch_, b.type == 1 ? sizeof(double) : sizeof(float));
        }
        for (Epilogues* e : {&zeros_, &copies_, &averages_}) e->lay_out(tables_);
        if (with_norm_) {
            norm_.reserve(tables_, scratch_);
            control_at_ = scratch_;
            scratch_ += rounded(sizeof(Control));
        }
    }

    void add_hypers_and_counts() {
        std::vector<detail::HyperValues> hypers;
        for (const Segment& g : s_.segments) hypers.push_back(g.hyper);
        hypers_at_ = tables_.add(hypers);
        if (s_.counts != nullptr) return;
        std::vector<Count> counts;
        for (const Segment& g : s_.segments) counts.insert(counts.end(), g.count, Count{g.step - 1, {}});
        own_counts_at_ = tables_.add(counts);
    }

    // The norm's last kernel multiplies the gradient's scale in them.
    void add_patched_coefficients() {
        for (Batch& b : batches_) {
            if (b.prepare != nullptr) continue;
            b.coefficients_at = tables_.add(b.coefficients);
            for (std::size_t i = 0; i < b.segments.size(); ++i) {
                const Segment& g = s_.segments[b.segments[i]];
                const double scale = scale_of(g);
                patches_.push_back({g.rule->maximize(g.hyper) ? -scale : scale,
                                    std::uint32_t(b.coefficients_at + i * b.coefficients_bytes),
                                    std::uint32_t(b.type)});
            }
        }
    }

    void reserve_device_tables() {
        gather_count_ = s_.hypers.size();
        for (const Segment& g : s_.segments)
            if (g.device_step.data != nullptr) gather_count_ += g.count;
        gathers_at_ = tables_.reserve(gather_count_ * sizeof(Gather));
        for (Batch& b : batches_) {
            if (b.prepare == nullptr) continue;
            b.coefficients_at = scratch_;
            scratch_ += rounded(b.source.size() * b.coefficients_bytes);
            if (b.sided) {
                b.keys_at = scratch_;
                scratch_ += rounded(b.source.size() * sizeof(std::uint64_t));
            }
            if (b.measures.rule == nullptr) b.slots_at = tables_.reserve(b.source.size() * sizeof(CoefficientSlot));
        }
    }

    // Tables that hold addresses in the memory itself.
    void write_addresses() {
        auto* const hypers = reinterpret_cast<double*>(head_ + hypers_at_);
        auto* const counts =
            reinterpret_cast<Count*>(s_.counts != nullptr ? s_.counts->memory : head_ + own_counts_at_);
        std::vector<Gather> gathers;
        for (const detail::DeviceHyper& h : s_.hypers)
            gathers.push_back({h.data, hypers + h.segment * max_hyperparameters + h.index, h.type, false});
        std::size_t tensor = 0;
        for (const Segment& g : s_.segments) {
            for (std::size_t k = 0; k < g.count; ++k, ++tensor)
                if (g.device_step.data != nullptr)
                    gathers.push_back({g.device_step.data, counts + tensor, g.device_step.type, true});
        }
        tables_.write(gathers_at_, gathers);
        for (const Batch& b : batches_) {
            if (b.prepare == nullptr) continue;
            std::vector<CoefficientSlot> slots;
            for (std::size_t i = 0; i < b.source.size(); ++i) {
                const Segment& g = s_.segments[b.segments[i]];
                const std::size_t count = s_.counts != nullptr ? s_.count_of[b.source[i]] : b.source[i];
                slots.push_back({hypers + b.segments[i] * max_hyperparameters, counts + count, scale_of(g), g.seed});
            }
            if (b.measures.rule == nullptr) {
                tables_.write(b.slots_at, slots);
            } else {
                tables_.write(b.measures.tensors_at, measured_tensors(b, slots));
                if (b.measures.program().has_lines()) tables_.write(b.measures.lines_at, line_tensors(b));
            }
        }
    }

    std::vector<MeasuredTensor> measured_tensors(const Batch& b, const std::vector<CoefficientSlot>& slots) const {
        std::vector<MeasuredTensor> out;
        for (std::size_t i = 0; i < slots.size(); ++i) {
            const ParamUpdate& t = rows_->tensors()[b.source[i]];
            MeasuredTensor& m = out.emplace_back();
            m.slot = slots[i];
            m.shape[std::size_t(detail::Shape::rows)] = double(t.grid.rows);
            m.shape[std::size_t(detail::Shape::columns)] = double(t.grid.columns);
            m.shape[std::size_t(detail::Shape::is_vector)] = double(t.grid.is_vector);
            const detail::Program& program = b.measures.program();
            for (std::size_t s = element_states(program); s < program.per.size() && t.size > 0; ++s)
                if (program.per[s] == Per::tensor) m.state[s] = t.buffer[2 + s];
        }
        return out;
    }

    std::vector<LineTensor> line_tensors(const Batch& b) const {
        std::vector<LineTensor> out = b.measures.line_tensors(tail_);
        const std::vector<Per>& per = b.measures.program().per;
        for (std::size_t i = 0; i < out.size(); ++i)
            for (std::size_t s = 0; s < per.size(); ++s)
                if (per[s] == Per::row || per[s] == Per::column)
                    out[i].line[s] = rows_->tensors()[b.source[i]].buffer[2 + s];
        return out;
    }

    void launch() const {
        for (const auto& late : late_) late->launch();
        if (gather_count_ > 0)
            launch_gather({reinterpret_cast<const Gather*>(head_ + gathers_at_), std::uint32_t(gather_count_)},
                          small_blocks(gather_count_), stream_);
        Control* const control = with_norm_ ? launch_norm_of_all() : nullptr;
        for (const Batch& b : batches_) {
            const void* coefficients = nullptr;
            const bool prepared = b.prepare != nullptr;
            auto* const keys =
                b.sided ? reinterpret_cast<std::uint64_t*>((prepared ? tail_ : head_) + b.keys_at) : nullptr;
            if (b.measures.rule != nullptr) {
                launch_passes(b, keys, control);
                coefficients = tail_ + b.coefficients_at;
            } else if (prepared) {
                std::byte* const out = tail_ + b.coefficients_at;
                const PrepareLaunch p{reinterpret_cast<const CoefficientSlot*>(head_ + b.slots_at), out, keys, control,
                                      std::uint32_t(b.source.size())};
                launch_symbol(b.prepare, "prepare_kernel", small_blocks(b.source.size()), block_threads, stream_, p);
                coefficients = out;
            } else if (with_norm_ || !b.inside) {
                coefficients = head_ + b.coefficients_at;
            }
            if (b.numbered != nullptr) {
                b.numbered->launch(b, coefficients, keys, control);
                continue;
            }
            b.launch(s_.device, stream_, coefficients,
                     b.inside ? nullptr : reinterpret_cast<const Tensor*>(head_ + b.tensors_at),
                     b.sided ? reinterpret_cast<const Side*>(head_ + b.sides_at) : nullptr, keys, control,
                     reinterpret_cast<const LineTensor*>(head_ + b.measures.lines_at));
            if (b.measures.lines != nullptr && b.measures.line_count > 0) {
                const LinesLaunch p{reinterpret_cast<const LineTensor*>(head_ + b.measures.lines_at), coefficients,
                                    control, b.measures.line_count, std::uint32_t(b.measures.count())};
                launch_symbol(b.measures.lines, "lines_kernel",
                              blocks_for_items(s_.device, std::uint64_t(b.measures.line_count)), block_threads, stream_,
                              p);
            }
        }
        for (const auto& late : late_)
            if (late->moves()) late->store();
        zeros_.launch(s_.device, stream_, head_, nullptr);
        copies_.launch(s_.device, stream_, head_, control);
        averages_.launch(s_.device, stream_, head_, control);
    }

    // What its reductions come to, and between the passes what is computed from them.
    void launch_passes(const Batch& b, std::uint64_t* keys, const Control* control) const {
        const Measures& m = b.measures;
        const std::size_t stride = m.reductions();
        auto* const reduced = reinterpret_cast<double*>(tail_ + m.reduced_at);
        double* const reduced_over_all = reduced + m.count() * stride;
        check(cudaMemsetAsync(reduced, 0, m.reduced_bytes(), stream_), "cudaMemsetAsync");
        ScalarsLaunch scalars = {};
        scalars.tensors = reinterpret_cast<const MeasuredTensor*>(head_ + m.tensors_at);
        scalars.coefficients = tail_ + b.coefficients_at;
        scalars.reduced = reduced;
        scalars.keys = keys;
        scalars.control = control;
        scalars.count = std::uint32_t(m.count());
        const auto run_know = [&](bool last) {
            scalars.last = last ? 1 : 0;
            launch_symbol(b.prepare, "scalars_kernel", small_blocks(m.count()), block_threads, stream_, scalars);
        };
        const std::span<const detail::Program::Pass> passes = m.program().passes();
        for (std::size_t p = 0; p < passes.size(); ++p) {
            if (p == 0 || passes[p].phase != passes[p - 1].phase) run_know(false);
            launch_pass(b, p, scalars.coefficients, passes[p].over == detail::Over::all ? reduced_over_all : reduced,
                        control);
        }
        run_know(true);
    }

    void launch_pass(const Batch& b, std::size_t number, const void* coefficients, double* reduced,
                     const Control* control) const {
        const Measures& m = b.measures;
        const detail::Program::Pass& pass = m.program().passes()[number];
        const MeasuredParts& parts = m.of_over[std::size_t(pass.over)];
        MeasureLaunch launch = {};
        launch.tensors = reinterpret_cast<const Tensor*>(head_ + b.tensors_at);
        launch.coefficients = coefficients;
        launch.sides = b.sided ? reinterpret_cast<const Side*>(head_ + b.sides_at) : nullptr;
        launch.control = control;
        launch.first = reinterpret_cast<const std::int64_t*>(head_ + m.first_at);
        launch.lines = reinterpret_cast<const LineTensor*>(head_ + m.lines_at);
        launch.parts = reinterpret_cast<const MeasuredPart*>(head_ + parts.at);
        launch.sums = reinterpret_cast<double*>(tail_ + m.sums_at);
        launch.scales = reinterpret_cast<double*>(tail_ + m.scales_at);
        launch.leaf_count = parts.leaves;
        launch.sum_count = parts.sums;
        launch.count = std::uint32_t(m.count());
        launch.part_count = std::uint32_t(parts.parts.size());
        const auto measure = [&] {
            if (launch.leaf_count > 0)
                launch_symbol(m.kernels[number], "measure_kernel",
                              blocks_for(launch.leaf_count, resident(s_.device, m.kernels[number])), block_threads,
                              stream_, launch);
        };
        if (pass.over == detail::Over::rows || pass.over == detail::Over::matrix) {
            measure();
            finish_lines(b, pass, launch);
            return;
        }
        FinishPassLaunch finish = {};
        finish.sums = launch.sums;
        finish.parts = launch.parts;
        finish.reduced = reduced;
        finish.scales = reinterpret_cast<double*>(tail_ + m.scales_at);
        finish.control = control;
        finish.leaf_count = launch.leaf_count;
        finish.sum_count = launch.sum_count;
        finish.part_count = launch.part_count;
        finish.count = std::uint32_t(pass.reductions.size());
        finish.stride = std::uint32_t(m.reductions());
        bool squares = false;
        for (std::size_t r = 0; r < pass.reductions.size(); ++r) {
            finish.what[r] = m.program().reductions[pass.reductions[r]].what;
            finish.number[r] = std::uint8_t(pass.reductions[r]);
            squares = squares || finish.what[r] == detail::Reduce::norm;
        }
        // Squares of float32 neither overflow float64 nor vanish in it.
        for (const bool second : {false, true}) {
            if (second && !(squares && b.type == 1)) break;
            launch.second = finish.second = second;
            measure();
            launch_finish_pass(finish, stream_);
        }
    }

    // Numbers for rows, columns or matrices that several sums have a part in.
    void finish_lines(const Batch& b, const detail::Program::Pass& pass, const MeasureLaunch& measured) const {
        const detail::Program& program = b.measures.program();
        const MeasuredParts& parts = b.measures.of_over[std::size_t(pass.over)];
        for (const bool columns : {false, true}) {
            FinishLinesLaunch p = {};
            p.sums = measured.sums;
            p.parts = measured.parts + (columns ? measured.count : 0);
            p.lines = measured.lines;
            p.control = measured.control;
            p.long_count = columns ? parts.long_numbers : parts.long_before;
            p.sum_count = measured.sum_count;
            p.part_count = measured.count;
            p.count = std::uint32_t(pass.reductions.size());
            p.wide = b.type == 1 ? 1 : 0;
            for (std::size_t r = 0; r < pass.reductions.size(); ++r) {
                const detail::ReductionNode& node = program.reductions[pass.reductions[r]];
                const bool of_columns =
                    node.over == detail::Over::columns ||
                    (node.over == detail::Over::matrix && program.kind(node.element) == Per::column);
                p.what[r] = node.what;
                p.number[r] = std::uint8_t(pass.reductions[r]);
                p.skipped[r] = of_columns != columns;
            }
            if (p.long_count == 0) continue;
            if (columns && pass.over == detail::Over::rows) {
                launch_finish_columns(p, blocks_for_items(s_.device, std::uint64_t(p.long_count)), stream_);
            } else {
                launch_finish_scopes(p, stream_);
            }
        }
    }

    // The caller computes with them what the next step begins with.
    void read_measured() const {
        for (const Batch& b : batches_) {
            const Measures& m = b.measures;
            if (m.rule == nullptr || !m.program().carries_measured()) continue;
            std::vector<double> of_all(m.program().reductions.size());
            const std::byte* const from = tail_ + m.reduced_at + m.count() * m.reductions() * sizeof(double);
            check(cudaMemcpyAsync(of_all.data(), from, of_all.size() * sizeof(double), cudaMemcpyDeviceToHost, stream_),
                  "cudaMemcpyAsync");
            check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
            if (s_.measured != nullptr) s_.measured->emplace_back(&m.program(), std::move(of_all));
        }
    }

    Control* launch_norm_of_all() const {
        auto* const control = s_.reports != nullptr ? reinterpret_cast<Control*>(s_.reports->memory) + s_.report
                                                    : reinterpret_cast<Control*>(tail_ + control_at_);
        FinishLaunch finish = {};
        finish.control = control;
        finish.clip_norm = s_.options.clip_norm;
        finish.skip_nonfinite = s_.options.skip_nonfinite;
        finish.coefficients = head_;
        finish.patches = reinterpret_cast<const Patch*>(head_ + patches_at_);
        finish.patch_count = std::uint32_t(patches_.size());
        norm_.run(s_.device, stream_, head_, tail_, finish);
        return control;
    }
};

void run_step(const CudaStep& s) {
    const DeviceGuard guard(s.device);
    StepBuilder(s).run();
    std::size_t tensor = 0;
    for (const Segment& g : s.segments)
        for (std::size_t k = 0; k < g.count; ++k, ++tensor)
            if (catches_up(s.tensors[tensor])) count_steps_of_rows(*s.tensors[tensor].rows, g.step);
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

// Runs what may throw, and keeps the exception on this side. Coefficients are computed under the arithmetic contract's
// mode.
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
    } catch (const CompilationError& e) {
        error.code = int(cudaErrorInvalidKernelImage);
        std::snprintf(error.text, sizeof error.text, "%s", e.what());
    } catch (const Refusal& e) {
        error.code = int(cudaErrorNotSupported);
        std::snprintf(error.text, sizeof error.text, "%s", e.what());
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

bool can_run(const detail::RuleInfo& rule, CudaError& error) {
    return guarded(error, [&] {
        if (rule.program != nullptr) check_compiler();
    });
}

bool step(const CudaStep& s, CudaError& error) {
    return guarded(error, [&] { run_step(s); });
}

bool global_norm(int device, void* on, std::span<const ParamUpdate> tensors, double scale, StepReport& out,
                 CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        auto* const stream = static_cast<cudaStream_t>(on);
        Norm norm;
        norm.outer = scale;
        const RowGradients rows(device, stream, tensors, true);
        for (const ParamUpdate& t : rows.tensors()) norm.add(t, 1.0);
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

// Every tensor by one kernel, whose coefficients are `made` for float and double.
void run_one_kernel(int device, void* on, std::span<const ParamUpdate> tensors, const RuleKernels& kernel,
                    std::size_t buffers, const void* const (&made)[2]) {
    const DeviceGuard guard(device);
    auto* const stream = static_cast<cudaStream_t>(on);
    std::vector<Batch> batches;
    for (std::uint32_t i = 0; i < tensors.size(); ++i)
        if (tensors[i].size > 0)
            batch_of(batches, kernel, tensors[i].compute(), stored_otherwise(tensors[i], buffers))
                .add(tensors[i], buffers, i, 0);
    for (Batch& b : batches) {
        const auto* const bytes = static_cast<const std::byte*>(made[b.type]);
        b.coefficients.assign(bytes, bytes + b.coefficients_bytes);
        b.keys.push_back(0);
        b.inside = fits_inside(b.coefficients.size(), b.tensor_bytes());
        Tables tables;
        if (!b.inside) {
            b.coefficients_at = tables.add(b.coefficients);
            b.add_tensors(tables);
        }
        b.add_sides(tables);
        b.add_keys(tables);
        Memory memory(device, nullptr, stream, tables.bytes().size());
        if (!tables.bytes().empty()) memory.upload(tables.bytes(), 0);
        b.launch(device, stream, b.inside ? nullptr : memory.data + b.coefficients_at,
                 b.inside ? nullptr : reinterpret_cast<const Tensor*>(memory.data + b.tensors_at),
                 b.sided ? reinterpret_cast<const Side*>(memory.data + b.sides_at) : nullptr,
                 b.sided ? reinterpret_cast<const std::uint64_t*>(memory.data + b.keys_at) : nullptr, nullptr);
    }
}

bool bandwidth_probe(int device, void* stream, std::span<const ParamUpdate> tensors, std::size_t written,
                     CudaError& error) {
    return guarded(error, [&] {
        // Streams have no coefficients of their own.
        alignas(16) std::byte made[2][detail::max_coefficients_bytes] = {};
        std::memcpy(made[0], &unchanged<float>, sizeof unchanged<float>);
        std::memcpy(made[1], &unchanged<double>, sizeof unchanged<double>);
        run_one_kernel(device, stream, tensors, kernels()[Rules::size + written - 1], 1 + written, {made[0], made[1]});
    });
}

bool add_scaled(int device, void* stream, std::span<const ParamUpdate> tensors, double factor, CudaError& error) {
    return guarded(error, [&] {
        const auto narrow = combination<float>(Combination::add, factor);
        const auto wide = combination<double>(Combination::add, factor);
        run_one_kernel(device, stream, tensors, kernels()[combine_place], 2, {&narrow, &wide});
    });
}

bool zero_grads(int device, void* stream, std::span<const ParamUpdate> tensors, CudaError& error) {
    return guarded(error, [&] {
        const auto narrow = combination<float>(Combination::set_to_zero);
        const auto wide = combination<double>(Combination::set_to_zero);
        std::vector<ParamUpdate> grads;
        for (const ParamUpdate& t : tensors) grads.push_back(grad_alone(t));
        run_one_kernel(device, stream, grads, kernels()[combine_place], 2, {&narrow, &wide});
    });
}

bool reduce(int device, void* on, std::span<const ParamUpdate> tensors, const detail::Reduction& what,
            std::span<const detail::ReductionPart> of, std::span<double> out, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        auto* const stream = static_cast<cudaStream_t>(on);
        if (of.empty()) return;
        ReduceLaunch launch = {};
        std::vector<NormTensor> values;
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            const ParamUpdate& t = tensors[i];
            if (t.size > 0)
                values.push_back({t.buffer[what.buffer], launch.total, what.factors.empty() ? 1.0 : what.factors[i],
                                  std::uint8_t(t.format[what.buffer]), 0});
            launch.total += t.size;
        }
        std::vector<ReductionPart> parts;
        for (const detail::ReductionPart& p : of) parts.push_back({p.begin, p.begin + p.size, p.first_leaf});
        launch.leaf_count = of.back().first_leaf + detail::leaves_of(of.back().size);
        Tables tables;
        const std::size_t values_at = tables.add(values);
        const std::size_t parts_at = tables.add(parts);
        const std::size_t leaf_bytes = rounded(std::size_t(launch.leaf_count) * sizeof(double));
        Memory memory(device, nullptr, stream, tables.bytes().size() + leaf_bytes + parts.size() * sizeof(double));
        memory.upload(tables.bytes(), 0);
        std::byte* const tail = memory.data + tables.bytes().size();
        launch.tensors = reinterpret_cast<const NormTensor*>(memory.data + values_at);
        launch.parts = reinterpret_cast<const ReductionPart*>(memory.data + parts_at);
        launch.leaves = reinterpret_cast<double*>(tail);
        launch.sums = reinterpret_cast<double*>(tail + leaf_bytes);
        launch.scale = what.scale;
        launch.tensor_count = std::uint32_t(values.size());
        launch.part_count = std::uint32_t(parts.size());
        launch_reduce(launch, what.term,
                      blocks_for(launch.leaf_count, std::int64_t(multiprocessors(device)) * common_resident_blocks),
                      stream);
        read(out.data(), launch.sums, parts.size() * sizeof(double), stream);
    });
}

// Whether anything is wrong with a batch's arrays that the caller must not be left to find out from the results.
detail::CudaBatchFault fault_of(const CudaBatch& b, cudaStream_t stream) {
    using Fault = detail::CudaBatchFault;
    FitCheckLaunch<float> launch = {};
    launch.problem = b.problem;
    launch.size = b.choice.size;
    launch.counts = b.options.poisson;
    const bool nothing =
        b.problem.weights == nullptr && b.problem.lower == nullptr && b.problem.loss_scale == nullptr && !launch.counts;
    if (nothing) return Fault::none;
    const auto blocks = unsigned(std::min<std::int64_t>((b.problem.count + warp - 1) / warp, small_grid));
    std::vector<unsigned> faults(blocks);
    Memory memory(b.device, nullptr, stream, blocks * sizeof(unsigned));
    launch.faults = reinterpret_cast<unsigned*>(memory.data);
    launch_fit_check(launch, blocks, stream);
    read(faults.data(), memory.data, blocks * sizeof(unsigned), stream);
    unsigned all = 0;
    for (const unsigned f : faults) all |= f;
    for (int i = 0; i < 5; ++i)
        if ((all >> i & 1) != 0) return Fault(i + 1);
    return Fault::none;
}

bool has_batch_kernel(const detail::BatchChoice& choice) {
    return kernel_of_fits<float>(choice.model).symbol != nullptr;
}

bool fit_batch(const CudaBatch& b, detail::CudaBatchFault& fault, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(b.device);
        auto* const stream = static_cast<cudaStream_t>(b.stream);
        fault = detail::CudaBatchFault::none;
        if (b.problem.count == 0) return;
        if (fault = fault_of(b, stream); fault != detail::CudaBatchFault::none) return;
        const FitKernel kernel = kernel_of_fits<float>(b.choice.model);
        const std::size_t each = std::size_t(kernel.threads) * std::size_t(b.problem.points) *
                                 std::size_t(fit_stride(b.problem, b.choice.inputs)) * sizeof(float);
        // As many threads as the device holds at once, or fewer where their points would take too much memory.
        const std::int64_t wanted = (b.problem.count + kernel.threads - 1) / kernel.threads;
        const auto room = std::max<std::int64_t>(std::int64_t(most_fit_bytes / each), 1);
        const auto blocks = unsigned(
            std::min({wanted, room, std::int64_t(resident(b.device, kernel.symbol, kernel.threads)), most_blocks}));
        Memory memory(b.device, nullptr, stream, each * blocks);
        const FitLaunch<float> launch = {reinterpret_cast<float*>(memory.data), b.problem, b.options};
        launch_symbol(kernel.symbol, "fit_kernel", blocks, kernel.threads, stream, launch);
    });
}

bool copy(int device, void* stream, void* to, const void* from, std::size_t bytes, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)),
              "cudaMemcpyAsync");
    });
}

bool fill_random(int device, void* on, const detail::RandomFill& fill, Format format, void* data, std::int64_t size,
                 CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        if (size == 0) return;
        RandomLaunch launch{};
        launch.data = data;
        launch.seed = fill.seed;
        launch.stream = fill.stream;
        launch.begin = fill.offset;
        launch.end = fill.offset + std::uint64_t(size);
        const std::uint64_t whole =
            detail::random_blocks * numbers_of_block(fill.kind, size_of(detail::compute_format(format)));
        launch.first_block = launch.begin / whole * detail::random_blocks;
        launch.block_count = (launch.end + whole - 1) / whole * detail::random_blocks - launch.first_block;
        launch.distribution = detail::distribution_of(fill, format);
        launch.format = format;
        launch.float8 = size_of(format) == 1 ? detail::info_of(format).dlpack_code : 0;
        launch_random(launch, fill.kind, blocks_for_items(device, launch.block_count), static_cast<cudaStream_t>(on));
    });
}

bool fill_constant(int device, void* on, double value, Format format, void* data, std::int64_t size, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        if (size == 0) return;
        ConstantLaunch launch{data, size, 0};
        const auto bytes = std::int64_t(size_of(format));
        detail::store_elements(&value, format, reinterpret_cast<std::byte*>(&launch.bits), bytes, 1);
        launch_constant(launch, size_of(format), blocks_for_items(device, std::uint64_t(size)),
                        static_cast<cudaStream_t>(on));
    });
}

bool write(int device, void* on, void* to, const void* from, std::size_t bytes, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        auto* const stream = static_cast<cudaStream_t>(on);
        if (is_capturing(stream)) throw RuntimeError(cudaErrorStreamCaptureUnsupported, "cudaMemcpyAsync");
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    });
}

bool catch_up(int device, void* on, const Segment& segment, const ParamUpdate& t, std::int64_t steps,
              CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        CatchUp(device, static_cast<cudaStream_t>(on), segment, t, steps).launch();
        const detail::RowUpdate& r = *t.rows;
        for (std::int64_t row = 0; row < r.rows(); ++row) r.last_step[row] = std::max(r.last_step[row], steps);
    });
}

bool read_for_host(int device, void* on, void* to, const void* from, std::size_t bytes, CudaError& error) {
    return guarded(error, [&] {
        const DeviceGuard guard(device);
        auto* const stream = static_cast<cudaStream_t>(on);
        if (is_capturing(stream)) throw RuntimeError(cudaErrorStreamCaptureUnsupported, "cudaMemcpyAsync");
        read(to, from, bytes, stream);
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
    static const CudaBackend backend = [] {
        CudaBackend b{};
        b.version = cuda_backend_version;
        b.sizes = sizes_that_cross();
        b.runtime = CUDART_VERSION;
        b.architectures = ADAPTK_CUDA_ARCHITECTURES;
        b.device_count = cuda::device_count;
        b.describe = cuda::describe;
        b.device_of = cuda::device_of;
        b.step = cuda::step;
        b.global_norm = cuda::global_norm;
        b.reduce = cuda::reduce;
        b.bandwidth_probe = cuda::bandwidth_probe;
        b.add_scaled = cuda::add_scaled;
        b.zero_grads = cuda::zero_grads;
        b.copy = cuda::copy;
        b.new_counts = cuda::new_counts;
        b.write_counts = cuda::write_counts;
        b.read_counts = cuda::read_counts;
        b.new_reports = cuda::new_reports;
        b.read_report = cuda::read_report;
        b.save = cuda::save;
        b.restore = cuda::restore;
        b.release = cuda::release;
        b.new_workspace = cuda::new_workspace;
        b.release_workspace = cuda::release_workspace;
        b.order = cuda::order;
        b.capturing = cuda::capturing;
        b.set_waves = cuda::set_waves;
        b.can_run = cuda::can_run;
        b.fill_random = cuda::fill_random;
        b.fill_constant = cuda::fill_constant;
        b.write = cuda::write;
        b.read = cuda::read_for_host;
        b.catch_up = cuda::catch_up;
        b.has_batch_kernel = cuda::has_batch_kernel;
        b.fit_batch = cuda::fit_batch;
        return b;
    }();
    return backend;
}

extern "C" const CudaBackend* adaptk_cuda_backend() { return &cuda_backend(); }

}  // namespace adaptk::detail
