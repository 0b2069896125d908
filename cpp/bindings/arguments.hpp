// Hyperparameters and checked work lists, shared by the functions and the optimizer objects.
#pragma once

#include "buffers.hpp"
#include "locks.hpp"
#include "overlap.hpp"
#include "step.hpp"

#include <cstdint>
#include <vector>

namespace adaptk::bindings {

using detail::RuleInfo;
using detail::TensorStep;

inline constexpr std::size_t max_buffers = detail::max_buffers;

// Below this many elements a step is shorter than handing the interpreter to another thread and back.
inline constexpr std::int64_t release_gil_from = 16384;

// The names of a rule's arguments as interned strings, so that most comparisons are of pointers.
struct RuleNames {
    const RuleInfo* rule;
    std::size_t buffers;  // 2 + states
    std::size_t hypers;
    PyObject* buffer[max_buffers];
    const char* buffer_text[max_buffers];
    PyObject* hyper[max_hyperparameters];
    Hyperparameter hyper_info[max_hyperparameters];
    detail::HyperValues defaults;
};

void prepare_names();  // at import
const RuleNames& names_of(const RuleInfo& rule);
const RuleNames& names_of(const std::string& rule);  // ValueError for an unknown name

// A hyperparameter's value, checked against its range. TypeError or ValueError that names it.
double hyper_value(PyObject* value, const Hyperparameter& info);
std::int64_t step_value(PyObject* value);

// A hyperparameter that lies in the memory of a device, where only kernels look at it.
struct DeviceValue {
    std::uint32_t segment;
    std::uint32_t index;
    py::object value;
    bool resolve(const Hyperparameter& info, const Device& device, WorkStream& work, View& held,
                 detail::DeviceHyper& out) const;
};
void check_together(const RuleInfo& rule, const detail::HyperValues& values);

// Throws ValueError: which two arguments share memory.
[[noreturn]] void fail_overlap(const ArgName& a, const ArgName& b);

// Throws ValueError: two buffers of one call are on different devices.
[[noreturn]] void fail_mixed(const ArgName& a, const View& of_a, const ArgName& b, const View& of_b);

// Lets the CUDA part put work on a stream, without the GIL: a full queue, or a module that is loaded at its first use,
// keeps a caller waiting.
template <class Run> void run_on_stream(WorkStream& work, const Run& run) {
    const detail::CudaBackend& part = need_cuda_part();
    detail::CudaError error;
    bool done = false;
    work.ordered([&] {
        const py::gil_scoped_release released;
        done = run(part, error);
    });
    if (!done) fail_cuda(error);
}

// For the time of a step, or of a look-ahead: a second caller gets an error in the place of half an update. The flag is
// an object's, and its lock is held here and in the destructor.
class Busy {
  public:
    explicit Busy(bool& flag) : flag_(flag) {
        if (flag_) fail(PyExc_RuntimeError, "this optimizer is being stepped by another thread");
        flag_ = true;
    }
    ~Busy() { flag_ = false; }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

  private:
    bool& flag_;
};

// Releases the GIL for long work only.
class MaybeReleaseGil {
  public:
    explicit MaybeReleaseGil(std::int64_t elements)
        : state_(elements >= release_gil_from ? PyEval_SaveThread() : nullptr) {}
    ~MaybeReleaseGil() {
        if (state_ != nullptr) PyEval_RestoreThread(state_);
    }
    MaybeReleaseGil(const MaybeReleaseGil&) = delete;
    MaybeReleaseGil& operator=(const MaybeReleaseGil&) = delete;

  private:
    PyThreadState* state_;
};

}  // namespace adaptk::bindings
