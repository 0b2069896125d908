// What the CUDA part of the library, a module of its own, offers to the rest: plain functions that report errors and
// throw nothing, so that neither side has to know how the other was built.
#pragma once

#include "adaptk/solve/batch_problem.hpp"
#include "batch_choice.hpp"
#include "export.hpp"
#include "random.hpp"
#include "reduce.hpp"
#include "rows.hpp"
#include "step.hpp"

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace adaptk::detail {

struct CudaError {
    int code = 0;  // cudaError_t
    bool out_of_memory = false;
    char text[256] = {};  // "cudaMallocFromPoolAsync: out of memory (cudaErrorMemoryAllocation)"
};

struct CudaDevice {
    char name[256];
    int major, minor;  // compute capability
    int multiprocessors;
    std::size_t memory;  // bytes
};

// A number in device memory in the place of a segment's hyperparameter.
struct DeviceHyper {
    std::uint32_t segment;
    std::uint32_t index;
    const void* data;
    ScalarType type;
};

// Memory on one device that a plan keeps from step to step: tables, and the sums of a norm.
struct CudaWorkspace;
// Counts of steps, outcomes of steps, copies of tensors. Work on any stream may use them, and the stream may be gone
// when they are read, changed or released: what waits then waits for the event that follows each use.
struct CudaKept;

// Memory of a caller.
struct CudaPiece {
    void* data;
    std::size_t bytes;
};

// Epilogues as a step on a device is given them.
struct CudaEpilogues {
    std::vector<ParamUpdate> copies, averages;
    void add(const ParamUpdate& t, const Epilogue& e) {
        const auto beside = [&](std::vector<ParamUpdate>& all, const Slot& to) {
            if (to.data == nullptr) return;
            ParamUpdate& added = all.emplace_back(t.size, to.format, t.param());
            added.set(0, to);
            added.set(1, t.slot(0));
        };
        beside(copies, e.copy);
        beside(averages, e.average);
    }
};

struct CudaStep {
    int device;
    void* stream;  // a cudaStream_t
    // With gradients of rows whose values are on the device, and whose indices have been grouped on the host.
    std::span<const ParamUpdate> tensors;
    std::span<const Segment> segments;
    StepOptions options;

    // If the device counts the steps: an array of counts (new_counts) and the place of each tensor's own in it. The
    // segments' step numbers are not looked at then. Tensors without elements are counted like others. Otherwise the
    // number of a segment's step may be in device memory (Segment::device_step), which is not changed.
    CudaKept* counts = nullptr;
    std::span<const std::uint32_t> count_of = {};
    std::span<const DeviceHyper> hypers = {};

    // What is written when the rules are done, unless the step is skipped: buffer 0 becomes buffer 1, rounded to
    // nearest, or is averaged with it (StepOptions::average_decay). The options' epilogues are not looked at.
    std::span<const ParamUpdate> copies = {}, averages = {};

    CudaKept* reports = nullptr;         // where the norm and whether the step was skipped go (new_reports), or null
    std::size_t report = 0;              // which of them
    CudaWorkspace* workspace = nullptr;  // null: memory for this step alone
    // Where StepReport::measured goes, or null. A step with something to write there waits for the device.
    std::vector<std::pair<const Program*, std::vector<double>>>* measured = nullptr;
};

// A batch of small fits, all of whose arrays are in the memory of the device.
struct CudaBatch {
    int device;
    void* stream;
    BatchChoice choice;
    solve::BatchProblem<float> problem;
    solve::BatchOptions<float> options;
};

// What is wrong with its arrays, the first of these that is found: nothing has been written then.
enum class CudaBatchFault : int { none, weights, bounds, outside, loss_scale, counts };

// Both sides have the same version and sizes of what crosses from one to the other, or the part is not used. The
// version goes up when a meaning changes and no size does.
inline constexpr std::uint32_t cuda_backend_version = 5;
using CrossingSizes = std::array<std::uint32_t, 15>;

struct CudaBackend {
    std::uint32_t version;  // these two stay where they are
    CrossingSizes sizes;
    int runtime;  // CUDART_VERSION
    const char* architectures;

    // Each returns false and fills the error where it fails.
    bool (*device_count)(int& count, CudaError& error);
    bool (*describe)(int device, CudaDevice& out, CudaError& error);

    // The device that memory belongs to.
    bool (*device_of)(const void* data, std::int32_t& device, CudaError& error);

    // Puts the step on the stream and does not wait for it.
    bool (*step)(const CudaStep& step, CudaError& error);
    // Waits for the result.
    bool (*global_norm)(int device, void* stream, std::span<const ParamUpdate> tensors, double scale, StepReport& out,
                        CudaError& error);
    // One sum a part of reduction_parts(); waits for the result.
    bool (*reduce)(int device, void* stream, std::span<const ParamUpdate> tensors, const Reduction& what,
                   std::span<const ReductionPart> parts, std::span<double> out, CudaError& error);
    bool (*bandwidth_probe)(int device, void* stream, std::span<const ParamUpdate> tensors, std::size_t written,
                            CudaError& error);
    // p <- p + factor * x
    bool (*add_scaled)(int device, void* stream, std::span<const ParamUpdate> tensors, double factor, CudaError& error);

    // Sets the gradients to zero.
    bool (*zero_grads)(int device, void* stream, std::span<const ParamUpdate> tensors, CudaError& error);

    bool (*copy)(int device, void* stream, void* to, const void* from, std::size_t bytes, CudaError& error);

    // Counts of steps taken. None of these is put on a stream of the caller: they wait for the last step that used the
    // counts, and are done when they return.
    bool (*new_counts)(int device, std::span<const std::int64_t> steps, CudaKept*& out, CudaError& error);
    bool (*write_counts)(CudaKept& counts, std::span<const std::int64_t> steps, CudaError& error);
    bool (*read_counts)(const CudaKept& counts, std::span<std::int64_t> steps, CudaError& error);

    // Places for the outcomes of steps. Reading waits for the step; has_norm is false where there has been none, as
    // where it was captured in a graph that has not run.
    bool (*new_reports)(int device, std::size_t count, CudaKept*& out, CudaError& error);
    bool (*read_report)(const CudaKept& reports, std::size_t place, StepReport& out, CudaError& error);

    // Copies of memory, on the stream; and the way back, in the same order and to the same sizes. Null data is left
    // out. The copies are gone then, also where it fails.
    bool (*save)(int device, void* stream, std::span<const CudaPiece> from, CudaKept*& out, CudaError& error);
    bool (*restore)(CudaKept* saved, void* stream, std::span<const CudaPiece> to, CudaError& error);

    // Behind the last use. Null is nothing.
    void (*release)(CudaKept* kept);

    bool (*new_workspace)(int device, CudaWorkspace*& out, CudaError& error);
    void (*release_workspace)(CudaWorkspace* workspace);

    // What is put on `after` from now on waits for what has been put on `before` so far.
    bool (*order)(int device, void* before, void* after, CudaError& error);
    bool (*capturing)(int device, void* stream, bool& out, CudaError& error);

    // For measurements: grids of at most `waves` times what a device holds at once; 0 is without a limit. Returns what
    // it was before.
    unsigned (*set_waves)(unsigned waves);

    // Whether steps of this rule can be taken: one that was made at run time is compiled at its first one.
    bool (*can_run)(const RuleInfo& rule, CudaError& error);

    // Random numbers or one number to memory of the device, with the bits of random.hpp.
    bool (*fill_random)(int device, void* stream, const RandomFill& fill, Format format, void* data, std::int64_t size,
                        CudaError& error);
    bool (*fill_constant)(int device, void* stream, double value, Format format, void* data, std::int64_t size,
                          CudaError& error);
    // From memory of the host, which may be gone when this returns. Not while the stream is captured in a graph.
    bool (*write)(int device, void* stream, void* to, const void* from, std::size_t bytes, CudaError& error);
    // To memory of the host: waits for it. Not while the stream is captured.
    bool (*read)(int device, void* stream, void* to, const void* from, std::size_t bytes, CudaError& error);

    // All rows of a tensor take the steps that they have missed: catch_up_rows() of rows.hpp, whose `rows` it has.
    bool (*catch_up)(int device, void* stream, const Segment& segment, const ParamUpdate& tensor, std::int64_t steps,
                     CudaError& error);

    // Whether there is a kernel for this model, and what makes a batch of it: puts the fits on the stream, and waits
    // for nothing but what the arrays have to be looked at for.
    bool (*has_batch_kernel)(const BatchChoice& choice);
    bool (*fit_batch)(const CudaBatch& batch, CudaBatchFault& fault, CudaError& error);
};

constexpr CrossingSizes sizes_that_cross() {
    return {sizeof(CudaBackend), sizeof(CudaStep),  sizeof(ParamUpdate), sizeof(Segment),   sizeof(StepOptions),
            sizeof(StepReport),  sizeof(RuleInfo),  sizeof(Reduction),   sizeof(CudaError), sizeof(CudaDevice),
            sizeof(DeviceHyper), sizeof(CudaPiece), sizeof(RandomFill),  sizeof(RowUpdate), sizeof(CudaBatch)};
}

// Defined by the CUDA part.
const CudaBackend& cuda_backend();
// The same: the one name that its library has outside.
extern "C" ADAPTK_INTERNAL_API const CudaBackend* adaptk_cuda_backend();

}  // namespace adaptk::detail
