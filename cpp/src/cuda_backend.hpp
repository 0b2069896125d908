// What the CUDA part of the library, a separate module, provides to the rest: plain functions that report errors and
// throw nothing, so that neither side depends on how the other was built.
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

// A number in device memory that replaces a segment's hyperparameter.
struct DeviceHyper {
    std::uint32_t segment;
    std::uint32_t index;
    const void* data;
    ScalarType type;
};

// Memory on one device that a plan keeps from step to step: tables, and the sums of a norm.
struct CudaWorkspace;
// Counts of steps, outcomes of steps, copies of tensors. Work on any stream may use them, and the stream may no longer
// exist when they are read, changed or released. So these operations wait for the event that is recorded after each
// use.
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
    // If gradients have values for some rows, these are on the device, and the indices have been grouped on the host.
    std::span<const ParamUpdate> tensors;
    std::span<const Segment> segments;
    StepOptions options;

    // If the device counts the steps: an array of counts (new_counts) and the index of each tensor's count. The
    // segments' step numbers are then ignored. Tensors without elements are counted like others. Otherwise the number
    // of a segment's step may be in device memory (Segment::device_step), which is not changed.
    CudaKept* counts = nullptr;
    std::span<const std::uint32_t> count_of = {};
    std::span<const DeviceHyper> hypers = {};

    // What is written after the rules, unless the step is skipped: buffer 0 becomes buffer 1, rounded to nearest, or is
    // averaged with it (StepOptions::average_decay). The options' epilogues are ignored.
    std::span<const ParamUpdate> copies = {}, averages = {};

    CudaKept* reports = nullptr;         // where the norm and whether the step was skipped go (new_reports), or null
    std::size_t report = 0;              // which of them
    CudaWorkspace* workspace = nullptr;  // null: memory for this step alone
    // Where StepReport::measured goes, or null. A step with something to write there waits for the device.
    std::vector<std::pair<const Program*, std::vector<double>>>* measured = nullptr;
};

// A batch of small fits, whose arrays are all in device memory.
struct CudaBatch {
    int device;
    void* stream;
    BatchChoice choice;
    solve::BatchProblem<float> problem;
    solve::BatchOptions<float> options;
};

// The first error that is found in its arrays. Nothing has been written then.
enum class CudaBatchFault : int { none, weights, bounds, outside, loss_scale, counts };

// The CUDA part is used only if both sides have the same version and the same sizes of what they exchange. The version
// is increased if a meaning changes and no size does.
inline constexpr std::uint32_t cuda_backend_version = 5;
using CrossingSizes = std::array<std::uint32_t, 15>;

struct CudaBackend {
    std::uint32_t version;  // these two must keep their positions
    CrossingSizes sizes;
    int runtime;  // CUDART_VERSION
    const char* architectures;

    // Each returns false and sets the error if it fails.
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

    // Counts of steps taken. These functions do not use a stream of the caller: they wait for the last step that used
    // the counts, and are done when they return.
    bool (*new_counts)(int device, std::span<const std::int64_t> steps, CudaKept*& out, CudaError& error);
    bool (*write_counts)(CudaKept& counts, std::span<const std::int64_t> steps, CudaError& error);
    bool (*read_counts)(const CudaKept& counts, std::span<std::int64_t> steps, CudaError& error);

    // Places for the outcomes of steps. Reading waits for the step. has_norm is false if there was none, for example
    // because it was captured in a graph that has not run.
    bool (*new_reports)(int device, std::size_t count, CudaKept*& out, CudaError& error);
    bool (*read_report)(const CudaKept& reports, std::size_t place, StepReport& out, CudaError& error);

    // Copies memory, on the stream, and copies it back, in the same order and with the same sizes. Null data is left
    // out. After copying back, the copies are freed, even if it fails.
    bool (*save)(int device, void* stream, std::span<const CudaPiece> from, CudaKept*& out, CudaError& error);
    bool (*restore)(CudaKept* saved, void* stream, std::span<const CudaPiece> to, CudaError& error);

    // After the last use. Null is allowed.
    void (*release)(CudaKept* kept);

    bool (*new_workspace)(int device, CudaWorkspace*& out, CudaError& error);
    void (*release_workspace)(CudaWorkspace* workspace);

    // Work on `after` from now on waits for the present work on `before`.
    bool (*order)(int device, void* before, void* after, CudaError& error);
    bool (*capturing)(int device, void* stream, bool& out, CudaError& error);

    // For measurements: grids have at most `waves` times the blocks that a device runs at once; 0: no limit. Returns
    // the previous value.
    unsigned (*set_waves)(unsigned waves);

    // Whether steps of this rule can be taken: one that was made at run time is compiled at its first one.
    bool (*can_run)(const RuleInfo& rule, CudaError& error);

    // Fills device memory with random numbers or one number, with the bits of random.hpp.
    bool (*fill_random)(int device, void* stream, const RandomFill& fill, Format format, void* data, std::int64_t size,
                        CudaError& error);
    bool (*fill_constant)(int device, void* stream, double value, Format format, void* data, std::int64_t size,
                          CudaError& error);
    // Copies from host memory, which may be freed when this returns. Not while the stream is captured in a graph.
    bool (*write)(int device, void* stream, void* to, const void* from, std::size_t bytes, CudaError& error);
    // Copies to host memory and waits for it. Not while the stream is captured.
    bool (*read)(int device, void* stream, void* to, const void* from, std::size_t bytes, CudaError& error);

    // All rows of a tensor take the steps that they have missed: catch_up_rows() of rows.hpp, whose `rows` it has.
    bool (*catch_up)(int device, void* stream, const Segment& segment, const ParamUpdate& tensor, std::int64_t steps,
                     CudaError& error);

    // Whether there is a kernel for this model, and the function that runs a batch: it puts the fits on the stream, and
    // waits only for the checks of the arrays.
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
// The same: the only name that its library exports.
extern "C" ADAPTK_INTERNAL_API const CudaBackend* adaptk_cuda_backend();

}  // namespace adaptk::detail
