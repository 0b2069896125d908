// Hyperparameters and checked work lists, shared by the functions and the optimizer objects.
#pragma once

#include "buffers.hpp"
#include "locks.hpp"
#include "overlap.hpp"
#include "step_plan.hpp"
#include "text.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace adaptk::bindings {

using detail::Format;
using detail::number_text;
using detail::ParamUpdate;
using detail::RuleInfo;

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
const RuleNames& names_of(const std::string& key);  // ValueError for an unknown one

// A hyperparameter's value, checked against its range. TypeError or ValueError that names it.
double hyper_value(PyObject* value, const Hyperparameter& info);
// Whether a function of the step may take the place of a hyperparameter: of a number, and not of a flag.
inline bool may_be_scheduled(const Hyperparameter& info) { return info.range != Range::flag; }
std::int64_t step_value(PyObject* value);
// Of stochastic rounding: in [0, 2**64).
std::uint64_t seed_value(PyObject* value);
using detail::ParamFormat;
ParamFormat param_format_value(PyObject* value);
// The norm of gradients, if it is given: >= 0, inf or NaN.
std::optional<double> norm_value(PyObject* value);
bool bool_value(PyObject* value, const char* name);
// Averages of params and their decay: None, or a pair.
struct Ema {
    py::object buffers;
    double decay;
};
std::optional<Ema> ema_value(PyObject* value);
// The items of a list or tuple with one for each param; none of None. `what` they are is for the messages.
std::vector<py::object> listed_beside(const py::object& given, const std::string& name, const char* what,
                                      std::size_t params);
// A count of steps from 0 on, called `name`.
std::int64_t count_value(PyObject* value, const std::string& name);
// An argument of a step that is finite, and one that is None or in (0, inf]; TypeError or ValueError that names it.
double scale_value(PyObject* value);
double real_value(PyObject* value, const char* name);
std::optional<double> clip_value(PyObject* value);

// A hyperparameter of a group in the memory of a device, where only kernels look at it.
struct DeviceValue {
    std::uint32_t group;
    std::uint32_t index;
    py::object value;
    // For params on `device`, a CUDA device; `held` keeps the number's memory alive.
    detail::DeviceScalar resolve(const Hyperparameter& info, const Device& device, WorkStream& work, View& held) const;
};
void check_together(const RuleInfo& rule, const detail::HyperValues& values);

// Of a tensor's buffers and of what epilogues write, by number.
inline const char* text_of_buffer(const RuleNames& names, std::size_t buffer) {
    return buffer == detail::copy_buffer      ? "copy_out"
           : buffer == detail::average_buffer ? "ema"
                                              : names.buffer_text[buffer];
}

// A buffer that an epilogue writes beside a param; what may be a state of its param may be one.
detail::Slot take_epilogue_buffer(const py::object& buffer, const ArgName& name, const View& param, View& view,
                                  WorkStream& work);
// Throws ValueError if a gradient cannot be set to zero.
void check_writable(const View& grad, const ArgName& name, const char* option);

// Throws RuntimeError if the rule was made at run time, and there is nothing that compiles it for CUDA devices.
void check_runs_on_cuda(const RuleInfo& rule);

// Throws ValueError: which two arguments share memory, or which two params are one.
[[noreturn]] void fail_overlap(const ArgName& a, const ArgName& b);
[[noreturn]] void fail_shared_memory(const std::string& a, const std::string& b);

// Throws ValueError: two buffers of one call are on different devices.
[[noreturn]] void fail_mixed(const ArgName& a, const View& of_a, const ArgName& b, const View& of_b);

// Runs what puts work on a stream, without the GIL: a full queue, or a module that is loaded at its first use, keeps a
// caller waiting.
template <class Run> void on_stream(WorkStream& work, const Run& run) {
    work.ordered([&] {
        const py::gil_scoped_release released;
        run();
    });
}

// Makes Python's exception of the core's that is being handled; false if it is none of these.
bool set_error_of_core() noexcept;

// For the time of a step, or of a look-ahead: a second caller gets an error in the place of half an update. The number
// is that of the thread which uses an object, 0 for none; the object's lock is held here and in the destructor.
class Busy {
  public:
    explicit Busy(unsigned long& thread) : thread_(thread) {
        const unsigned long self = PyThread_get_thread_ident();
        if (thread_ == self)
            fail(PyExc_RuntimeError, "this optimizer was called within its own step, by a schedule, a hook or the "
                                     "export of a buffer; call it after the step");
        if (thread_ != 0) fail(PyExc_RuntimeError, "this optimizer is being stepped by another thread");
        thread_ = self;
    }
    ~Busy() { thread_ = 0; }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

  private:
    unsigned long& thread_;
};

inline bool is_long(std::int64_t elements) { return elements >= release_gil_from; }

// Releases the GIL, for long work only.
class MaybeReleaseGil {
  public:
    explicit MaybeReleaseGil(std::int64_t elements) = delete;  // is_long(elements)
    explicit MaybeReleaseGil(bool release) : state_(release ? PyEval_SaveThread() : nullptr) {}
    ~MaybeReleaseGil() {
        if (state_ != nullptr) PyEval_RestoreThread(state_);
    }
    MaybeReleaseGil(const MaybeReleaseGil&) = delete;
    MaybeReleaseGil& operator=(const MaybeReleaseGil&) = delete;

  private:
    PyThreadState* state_;
};

}  // namespace adaptk::bindings
