#include "arguments.hpp"

#include "locks.hpp"
#include "rule_program.hpp"

#include <cmath>
#include <cstdio>
#include <map>
#include <mutex>

namespace adaptk::bindings {
namespace {

struct Whole {
    std::int64_t number;
    int overflow;  // -1: below what an int64 holds
};

Whole whole(PyObject* value, const std::string& name) {
    const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value));
    if (!index || PyBool_Check(value)) {
        PyErr_Clear();
        fail(PyExc_TypeError, name + ": expected an integer, got " + type_name(value));
    }
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
    if (overflow > 0) fail(PyExc_ValueError, name + ": too large, expected at most 2**63 - 1");
    return {number, overflow};
}

double real(PyObject* value, const char* name, const char* expected) {
    const double x = PyFloat_AsDouble(value);
    if (x != -1.0 || PyErr_Occurred() == nullptr) return x;
    if (PyErr_ExceptionMatches(PyExc_TypeError) != 0) {
        PyErr_Clear();
        fail(PyExc_TypeError, std::string(name) + ": expected " + expected + ", got " + type_name(value));
    }
    if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) throw py::error_already_set();
    PyErr_Clear();
    fail(PyExc_ValueError, std::string(name) + ": a number too large for a float");
}

RuleNames make_names(const RuleInfo& r) {
    RuleNames n{};
    n.rule = &r;
    n.buffers = 2 + r.states.size();
    n.hypers = r.hyper_count();
    n.buffer_text[0] = "param";
    n.buffer_text[1] = "grad";
    for (std::size_t i = 0; i < r.states.size(); ++i) n.buffer_text[2 + i] = r.states[i].name;
    for (std::size_t i = 0; i < n.buffers; ++i) n.buffer[i] = interned(n.buffer_text[i]);
    for (std::size_t i = 0; i < n.hypers; ++i) {
        n.hyper_info[i] = r.hyper(i);
        n.hyper[i] = interned(n.hyper_info[i].name);
        n.defaults.value[i] = n.hyper_info[i].value;
    }
    return n;
}

const std::vector<RuleNames>& all_names() {
    static const auto& names = *[] {
        auto* all = new std::vector<RuleNames>;
        for (const RuleInfo& r : detail::rules()) all->push_back(make_names(r));
        return all;
    }();
    return names;
}

// Of rules that are made at run time, which live as long as the process.
const RuleNames& names_of_made(const RuleInfo& rule) {
    static auto& lock = *new std::mutex;
    static auto& made = *new std::map<const RuleInfo*, RuleNames>;
    {
        const std::lock_guard guard(lock);
        if (const auto found = made.find(&rule); found != made.end()) return found->second;
    }
    // Strings are made without the lock: that may run Python code, and other threads.
    const RuleNames names = make_names(rule);
    const std::lock_guard guard(lock);
    return made.emplace(&rule, names).first->second;
}

}  // namespace

void prepare_names() { all_names(); }

const RuleNames& names_of(const RuleInfo& rule) {
    return rule.index == RuleInfo::nowhere ? names_of_made(rule) : all_names()[rule.index];
}

const RuleNames& names_of(const std::string& key) {
    const RuleInfo* r = detail::find_rule(key);
    if (r == nullptr) fail(PyExc_ValueError, "unknown rule '" + key + "'");
    return names_of(*r);
}

double hyper_value(PyObject* value, const Hyperparameter& info) {
    double x = 0.0;
    if (PyFloat_CheckExact(value)) {
        x = PyFloat_AS_DOUBLE(value);
    } else {
        x = PyFloat_AsDouble(value);
        if (x == -1.0 && PyErr_Occurred() != nullptr) {
            const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError) != 0;
            if (!too_large && PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
            PyErr_Clear();
            const bool flag = info.range == Range::flag;
            if (too_large)
                fail(PyExc_ValueError, std::string(info.name) + ": a number too large for a float, expected " +
                                           (flag ? "a bool" : std::string("one in ") + detail::range_text(info.range)));
            fail(PyExc_TypeError,
                 std::string(info.name) + ": expected a " + (flag ? "bool" : "number") + ", got " + type_name(value));
        }
    }
    if (!detail::in_range(info.range, x)) {
        fail(PyExc_ValueError, std::string(info.name) + ": " + number_text(x) + " is not " +
                                   (info.range == Range::flag ? "a bool" : "in ") +
                                   (info.range == Range::flag ? "" : detail::range_text(info.range)));
    }
    return x;
}

std::int64_t step_value(PyObject* value) {
    const Whole step = whole(value, "step");
    if (step.overflow < 0 || step.number < 1)
        fail(PyExc_ValueError, "step: steps are counted from 1, got " + py::str(value).cast<std::string>());
    return step.number;
}

std::uint64_t seed_value(PyObject* value) {
    if (PyLong_Check(value) == 0) {
        const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value));
        if (index) return seed_value(index.ptr());
        PyErr_Clear();
        fail(PyExc_TypeError, "seed: expected an int, got " + type_name(value));
    }
    const std::uint64_t seed = PyLong_AsUnsignedLongLong(value);
    if (seed == std::uint64_t(-1) && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        fail(PyExc_ValueError, "seed: " + py::str(value).cast<std::string>() + " is not in [0, 2**64)");
    }
    return seed;
}

ParamFormat param_format_value(PyObject* value) {
    if (value == Py_None) return ParamFormat::plain;
    if (PyUnicode_Check(value) == 0)
        fail(PyExc_TypeError, "param_format: expected a str or None, got " + type_name(value));
    std::string known;
    for (std::size_t i = 1; i < detail::param_format_count; ++i) {
        if (PyUnicode_CompareWithASCIIString(value, detail::param_format_names[i]) == 0) return ParamFormat(i);
        known += std::string(i > 1 ? ", '" : "'") + detail::param_format_names[i] + "'";
    }
    fail(PyExc_ValueError,
         "param_format: " + py::repr(value).cast<std::string>() + " is unknown; expected " + known + " or None");
}

std::int64_t count_value(PyObject* value, const std::string& name) {
    const Whole count = whole(value, name);
    if (count.overflow < 0 || count.number < 0)
        fail(PyExc_ValueError, name + ": a count of steps, got " + py::str(value).cast<std::string>());
    return count.number;
}

double real_value(PyObject* value, const char* name) {
    const double x = real(value, name, "a number");
    if (!std::isfinite(x))
        fail(PyExc_ValueError,
             std::string(name) + ": " + py::repr(value).cast<std::string>() + " is not in (-inf, inf)");
    return x;
}

double scale_value(PyObject* value) { return real_value(value, "grad_scale"); }

std::optional<double> clip_value(PyObject* value) {
    if (value == Py_None) return {};
    const double x = real(value, "clip_norm", "a number or None");
    if (!(x > 0.0)) fail(PyExc_ValueError, "clip_norm: " + py::repr(value).cast<std::string>() + " is not in (0, inf]");
    return x;
}

std::optional<double> norm_value(PyObject* value) {
    if (value == Py_None) return {};
    const double x = real(value, "grad_norm", "a number or None");
    if (x < 0.0) fail(PyExc_ValueError, "grad_norm: " + py::repr(value).cast<std::string>() + " is not in [0, inf]");
    return x;
}

bool bool_value(PyObject* value, const char* name) {
    if (PyBool_Check(value) == 0)
        fail(PyExc_TypeError, std::string(name) + ": expected a bool, got " + type_name(value));
    return value == Py_True;
}

std::optional<Ema> ema_value(PyObject* value) {
    if (value == Py_None) return {};
    if (PyTuple_Check(value) == 0 || PyTuple_GET_SIZE(value) != 2)
        fail(PyExc_TypeError, "ema: expected a pair (buffers, decay) or None, got " +
                                  (PyTuple_Check(value) != 0 ? "a tuple of " + std::to_string(PyTuple_GET_SIZE(value))
                                                             : type_name(value)));
    PyObject* const given = PyTuple_GET_ITEM(value, 1);
    const double decay = real(given, "ema", "a number as the decay");
    if (!(decay >= 0.0 && decay <= 1.0))
        fail(PyExc_ValueError, "ema: the decay " + py::repr(given).cast<std::string>() + " is not in [0, 1]");
    return Ema{py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(value, 0)), decay};
}

std::vector<py::object> listed_beside(const py::object& given, const std::string& name, const char* what,
                                      std::size_t params) {
    if (given.is_none()) return {};
    if (PyList_Check(given.ptr()) == 0 && PyTuple_Check(given.ptr()) == 0)
        fail(PyExc_TypeError, name + ": expected a list or tuple of " + what + ", got " + type_name(given));
    std::vector<py::object> items = items_of(given.ptr());
    if (items.size() != params)
        fail(PyExc_ValueError, name + ": " + std::to_string(items.size()) + " " + what + ", expected " +
                                   std::to_string(params) + " as there are params");
    return items;
}

detail::Slot take_epilogue_buffer(const py::object& buffer, const ArgName& name, const View& param, View& view,
                                  WorkStream& work) {
    View::take(buffer, name, view, work);
    check_state(view, name, param);
    return {view.data, view.dtype};
}

void check_writable(const View& grad, const ArgName& name, const char* option) {
    if (grad.read_only)
        fail(PyExc_ValueError, name.text() + ": read-only, but " + option + "=True sets it to zero; copy it first");
}

detail::DeviceScalar DeviceValue::resolve(const Hyperparameter& info, const Device& device, WorkStream& work,
                                          View& held) const {
    const std::string name = info.name;
    const bool flag = info.range == Range::flag;
    if (flag || name == common_hyperparameters[at_grad_scale].name)
        fail(PyExc_TypeError,
             name + ": expected a " + (flag ? "bool" : "number") + ", got " + type_name(value) + " on a device");
    const DeviceNumber n = held.take_number(value, {info.name}, work);
    if (!(n.device == device))
        fail(PyExc_ValueError, name + ": on " + n.device.text() + ", expected " + device.text() + " like the params");
    return {n.data, n.type};
}

bool set_error_of_core() noexcept {
    try {
        throw;
    } catch (const detail::CudaFailure& e) {
        PyErr_SetString(e.error.out_of_memory ? PyExc_MemoryError : PyExc_RuntimeError, e.error.text);
    } catch (const detail::NoCuda& e) {
        PyErr_SetString(PyExc_RuntimeError, e.reason.c_str());
    } catch (const detail::NoReportSlot&) {
        PyErr_SetString(
            PyExc_RuntimeError,
            "there are places for the outcomes of 256 steps, and all are taken: by steps that were captured "
            "in graphs, or under capture by outcomes that nobody has looked at; look at those before the "
            "capture, or drop them");
    } catch (...) {
        return false;
    }
    return true;
}

void check_together(const RuleInfo& rule, const detail::HyperValues& values) {
    if (const char* reason = rule.invalid(values); reason != nullptr) fail(PyExc_ValueError, reason);
}

void check_runs_on_cuda(const RuleInfo& rule) {
    if (rule.program == nullptr) return;
    detail::CudaError error;
    const detail::CudaBackend* const cuda = cuda_part();
    if (cuda != nullptr && !cuda->can_run(rule, error))
        fail(PyExc_RuntimeError, std::string("params: on a CUDA device, and ") + rule.name + ": " + error.text);
}

void fail_overlap(const ArgName& a, const ArgName& b) {
    fail(PyExc_ValueError, a.text() + " and " + b.text() + " overlap in memory, and one of them is updated in place");
}

void fail_shared_memory(const std::string& a, const std::string& b) {
    fail(PyExc_ValueError, a + " and " + b + " are the same buffer: give each param once");
}

void fail_mixed(const ArgName& a, const View& of_a, const ArgName& b, const View& of_b) {
    fail(PyExc_ValueError, a.text() + ": on " + of_a.device.text() + ", but " + b.text() + " is on " +
                               of_b.device.text() + "; one call works on the buffers of one device");
}

}  // namespace adaptk::bindings
