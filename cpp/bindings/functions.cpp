// The functions of adaptk.ops are plain C functions of the vectorcall protocol: an update of 64 elements takes a tenth
// of a microsecond, and a general argument dispatcher would cost ten times that.
#include "functions.hpp"

#include "arguments.hpp"
#include "kernel_table.hpp"
#include "reduce.hpp"
#include "rows_intake.hpp"
#include "rule_program.hpp"
#include "stored.hpp"

#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include <pybind11/stl.h>

namespace adaptk::bindings {
namespace {

struct Call {
    const RuleNames& names;
    PyObject* buffer[max_buffers] = {};
    detail::Segment segment;
    ParamFormat param_format = ParamFormat::plain;
    bool has_step = false;
    PyObject* device_step = nullptr;
    std::vector<DeviceValue> device_values;
    WorkStream work;
    bool zero_grad = false;
    PyObject* copy_out = nullptr;  // a buffer or a list, if any
    py::object ema;                // the same, of averages
    double ema_decay = 0.0;
    detail::SparseMode sparse = detail::SparseMode::lazy;
    PyObject* last_step = nullptr;  // a buffer or a list, if any

    explicit Call(const RuleNames& n) : names(n), segment{n.rule, n.defaults, 1, 1} {}
    void parse(PyObject* const* args, py::ssize_t nargs, PyObject* kwnames);

    bool has_epilogue() const { return zero_grad || copy_out != nullptr || ema; }

  private:
    void keyword(PyObject* name, PyObject* value);
    bool option(PyObject* name, PyObject* value, bool identity);
};

PyObject* step_name = nullptr;
PyObject* seed_name = nullptr;
PyObject* param_format_name = nullptr;
PyObject* zero_grad_name = nullptr;
PyObject* copy_out_name = nullptr;
PyObject* ema_name = nullptr;
PyObject* sparse_name = nullptr;
PyObject* last_step_name = nullptr;

bool same_name(PyObject* a, PyObject* b) { return a == b || PyUnicode_Compare(a, b) == 0; }

void Call::parse(PyObject* const* args, py::ssize_t nargs, PyObject* kwnames) {
    const std::string who = names.rule->name;
    if (nargs > py::ssize_t(names.buffers))
        fail(PyExc_TypeError, who + "() takes " + std::to_string(names.buffers) + " positional arguments but " +
                                  std::to_string(nargs) + " were given");
    for (py::ssize_t i = 0; i < nargs; ++i) buffer[i] = args[i];
    const py::ssize_t keywords = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
    for (py::ssize_t i = 0; i < keywords; ++i) keyword(PyTuple_GET_ITEM(kwnames, i), args[nargs + i]);
    for (std::size_t i = 0; i < names.buffers; ++i) {
        if (buffer[i] == nullptr)
            fail(PyExc_TypeError, who + "() missing required argument '" + names.buffer_text[i] + "'");
    }
    if (!has_step) fail(PyExc_TypeError, who + "() missing required keyword-only argument 'step'");
    const bool catches_up = sparse == detail::SparseMode::catch_up;
    if (catches_up && last_step == nullptr)
        fail(PyExc_TypeError, "last_step: sparse='catch_up' needs it: an int64 array with a number for each row of the "
                              "param, of zeros at the start");
    if (!catches_up && last_step != nullptr) fail(PyExc_TypeError, "last_step: is for sparse='catch_up' alone");
    if (device_values.empty()) check_together(*names.rule, segment.hyper);
}

// Whether the name is that of an argument that every rule has.
bool Call::option(PyObject* name, PyObject* value, bool identity) {
    const auto is = [&](PyObject* known) { return identity ? name == known : same_name(name, known); };
    if (is(step_name)) {
        has_step = true;
        if (View::on_cuda(value, {"step"})) {
            device_step = value;
        } else {
            segment.step = step_value(value);
        }
    } else if (is(seed_name)) {
        segment.seed = seed_value(value);
    } else if (is(param_format_name)) {
        param_format = param_format_value(value);
    } else if (is(zero_grad_name)) {
        zero_grad = bool_value(value, "zero_grad");
    } else if (is(copy_out_name)) {
        copy_out = value == Py_None ? nullptr : value;
    } else if (is(ema_name)) {
        const std::optional<Ema> given = ema_value(value);
        ema = given ? given->buffers : py::object();
        ema_decay = given ? given->decay : 0.0;
    } else if (is(sparse_name)) {
        sparse = sparse_mode_value(value);
    } else if (is(last_step_name)) {
        last_step = value == Py_None ? nullptr : value;
    } else {
        return false;
    }
    return true;
}

void Call::keyword(PyObject* name, PyObject* value) {
    // Identity first: keywords written in a call are interned, and comparing the text of each one would cost more
    // than the update of a small tensor.
    for (const bool identity : {true, false}) {
        if (option(name, value, identity)) return;
        for (std::size_t i = 0; i < names.hypers; ++i) {
            if (identity ? name == names.hyper[i] : same_name(name, names.hyper[i])) {
                if (View::on_cuda(value, {names.hyper_info[i].name})) {
                    device_values.push_back({0, std::uint32_t(i), py::reinterpret_borrow<py::object>(value)});
                } else {
                    segment.hyper.value[i] = hyper_value(value, names.hyper_info[i]);
                }
                return;
            }
        }
        for (std::size_t i = 0; i < names.buffers; ++i) {
            if (identity ? name == names.buffer[i] : same_name(name, names.buffer[i])) {
                if (buffer[i] != nullptr)
                    fail(PyExc_TypeError, std::string(names.rule->name) + "() got multiple values for argument '" +
                                              names.buffer_text[i] + "'");
                buffer[i] = value;
                return;
            }
        }
    }
    std::string known = "step, seed, param_format, zero_grad, copy_out, ema, sparse, last_step";
    for (std::size_t i = 0; i < names.hypers; ++i) known += std::string(", ") + names.hyper_info[i].name;
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R; it takes %s", names.rule->name, name,
                 known.c_str());
    throw py::error_already_set();
}

// Takes and checks the buffers of one tensor; `sides` collects those beside a param or a state. A gradient of rows is
// left out.
void take_tensor(const RuleNames& names, ParamFormat param_format, PyObject* const* objects, py::ssize_t index, View* v,
                 std::vector<View>& sides, ParamUpdate& out, WorkStream& work) {
    for (std::size_t b = 0; b < names.buffers; ++b) {
        if (b == 1 && is_of_rows(objects[1])) continue;
        const ArgName name{names.buffer_text[b], index};
        if (b >= 2 && names.rule->states[b - 2].per != Per::element) {
            View none;
            const StoredState state{py::reinterpret_borrow<py::object>(objects[b]), {}};
            out.set(b, take_state_of(*names.rule, b - 2, state, name, v[0], v[b], none, work));
            continue;
        }
        if (b >= 2 && PyTuple_Check(objects[b])) {
            out.set(b, take_state(objects[b], name, v[0], v[b], sides.emplace_back(), work));
            continue;
        }
        if (b == 0 && param_format != ParamFormat::plain) {
            out.set(0, take_param(objects[0], name, param_format, v[0], sides.emplace_back(), work));
            continue;
        }
        View::take(objects[b], name, v[b], work);
        if (b == 0) {
            check_param(v[0], name);
        } else if (b == 1) {
            check_grad(v[1], name, v[0]);
        } else {
            check_state(v[b], name, v[0]);
        }
        out.set(b, {v[b].data, v[b].dtype});
    }
    out.size = v[0].size;
    check_rows_of_rule(*names.rule, v[0], {names.buffer_text[0], index}, out);
    set_shape(out, *names.rule, {names.buffer_text[0], index}, v[0]);
}

void read_device_values(Call& call);

// Takes a gradient of rows and what belongs to it, or has all rows catch up before an ordinary one; `made` keeps what
// the step needs.
void take_rows(Call& call, PyObject* grad, PyObject* last_step, py::ssize_t index, const View& param,
               std::vector<std::unique_ptr<RowGrad>>& made, ParamUpdate& tensor) {
    const bool of_rows = is_of_rows(grad);
    if (!of_rows && last_step == nullptr) return;
    if (!param.device.cuda && (call.device_step != nullptr || !call.device_values.empty())) read_device_values(call);
    const RuleInfo& rule = *call.names.rule;
    RowGrad& rows = *made.emplace_back(std::make_unique<RowGrad>());
    const ArgName name{"grad", index};
    if (of_rows) {
        if (call.zero_grad)
            fail(PyExc_ValueError, "zero_grad: " + name.text() +
                                       " has values for some rows alone, which are made anew "
                                       "for each step; leave it out");
        rows.take(grad, name, param, call.sparse, rule, call.segment.hyper, tensor, call.work);
    } else {
        check_has_rows(param, {"last_step", index});
        rows.take_whole(param, tensor);
    }
    if (last_step == nullptr) return;
    const std::string text = ArgName{"last_step", index}.text();
    rows.last_step = Integers::take(py::reinterpret_borrow<py::object>(last_step), text, true);
    rows.take_last_step(rows.last_step, text, rule, call.segment.hyper);
    const auto begin = reinterpret_cast<std::uintptr_t>(rows.update.last_step);
    const auto end = begin + rows.last_step.index.bytes();
    for (std::size_t b = 0; b < call.names.buffers; ++b) {
        const auto at = reinterpret_cast<std::uintptr_t>(tensor.buffer[b]);
        if (tensor.buffer[b] != nullptr && at < end && begin < at + tensor.bytes(b))
            fail_overlap({text.c_str()}, {call.names.buffer_text[b], index});
    }
}

// Memory of a buffer, or of what lies beside it.
struct Extent {
    std::uintptr_t begin, end;
    std::size_t buffer;
};

// Of one tensor alone, which no index is made for. The epilogue may be null.
void check_own_overlap(const RuleNames& names, const ParamUpdate& t, const detail::Epilogue* epilogue) {
    Extent memory[2 * max_buffers + 4];
    std::size_t n = 0;
    const auto add = [&](const detail::Slot& s, std::size_t number) {
        const auto begin = reinterpret_cast<std::uintptr_t>(s.data);
        if (s.data != nullptr) memory[n++] = {begin, begin + storage_bytes(s.format, t.size), number};
    };
    if (epilogue != nullptr) {
        add(epilogue->copy, detail::copy_buffer);
        add(epilogue->average, detail::average_buffer);
    }
    if (t.rows != nullptr && !t.rows->whole) {
        const auto values = reinterpret_cast<std::uintptr_t>(t.rows->values().data);
        memory[n++] = {values, values + t.rows->values_bytes(), 1};
        const auto index = reinterpret_cast<std::uintptr_t>(t.rows->index().data);
        memory[n++] = {index, index + t.rows->index().bytes(), 1};
    }
    for (std::size_t b = 0; b < names.buffers; ++b) {
        if (t.buffer[b] == nullptr) continue;  // of rows
        const auto begin = reinterpret_cast<std::uintptr_t>(t.buffer[b]);
        memory[n++] = {begin, begin + t.bytes(b), b};
        if (t.side[b] == nullptr) continue;
        const auto side = reinterpret_cast<std::uintptr_t>(t.side[b]);
        memory[n++] = {side, side + side_bytes(t.format[b], t.size), b};
    }
    for (std::size_t x = 0; x < n; ++x) {
        for (std::size_t y = x + 1; y < n; ++y) {
            if (memory[x].buffer == 1 && memory[y].buffer == 1) continue;
            if (memory[x].begin < memory[y].end && memory[y].begin < memory[x].end)
                fail_overlap({text_of_buffer(names, memory[x].buffer)}, {text_of_buffer(names, memory[y].buffer)});
        }
    }
}

// Numbers on a device beside params on the CPU: read as any other number is.
void read_device_values(Call& call) {
    if (call.device_step != nullptr) call.segment.step = step_value(call.device_step);
    for (const DeviceValue& d : call.device_values)
        call.segment.hyper.value[d.index] = hyper_value(d.value.ptr(), call.names.hyper_info[d.index]);
    if (!call.device_values.empty()) check_together(*call.names.rule, call.segment.hyper);
}

void run_cuda(Call& call, std::span<const ParamUpdate> tensors, const Device& device,
              const detail::StepOptions& options) {
    std::vector<View> held(call.device_values.size() + 1);
    std::vector<detail::DeviceHyper> hypers;
    for (std::size_t i = 0; i < call.device_values.size(); ++i) {
        const DeviceValue& d = call.device_values[i];
        const detail::DeviceScalar n = d.resolve(call.names.hyper_info[d.index], device, call.work, held[i]);
        hypers.push_back({0, d.index, n.data, n.type});
    }
    if (call.device_step != nullptr) {
        const DeviceNumber n = held.back().take_number(call.device_step, {"step"}, call.work);
        if (!(n.device == device))
            fail(PyExc_ValueError, "step: on " + n.device.text() + ", expected " + device.text() + " like the params");
        call.segment.device_step = {n.data, n.type};
    }
    detail::CudaStep step{device.id, call.work.stream(), tensors, {&call.segment, 1}, options};
    detail::CudaEpilogues beside;
    for (std::size_t i = 0; i < options.epilogues.size(); ++i) beside.add(tensors[i], options.epilogues[i]);
    step.copies = beside.copies;
    step.averages = beside.averages;
    step.hypers = hypers;
    on_stream(call.work, [&] {
        detail::call_cuda(
            [&](const detail::CudaBackend& cuda, detail::CudaError& error) { return cuda.step(step, error); });
    });
}

void run(Call& call, std::span<const ParamUpdate> tensors, const Device& device, std::int64_t total,
         std::span<const detail::Epilogue> epilogues = {}) {
    call.segment.count = tensors.size();
    detail::StepOptions options;
    options.zero_grad = call.zero_grad;
    options.epilogues = epilogues;
    options.average_decay = call.ema_decay;
    if (const char* const reason = detail::why_no_function(*call.names.rule))
        fail(PyExc_TypeError, reason + std::string("its optimizer class"));
    if (device.cuda) {
        check_runs_on_cuda(*call.names.rule);
        run_cuda(call, tensors, device, options);
        return;
    }
    read_device_values(call);
    const MaybeReleaseGil released(is_long(total));
    detail::run_step(tensors, {&call.segment, 1}, options);
}

bool is_list(PyObject* o) { return PyList_Check(o) || PyTuple_Check(o); }

// What the epilogues of a call write.
class EpilogueBuffers {
  public:
    // `count` tensors, or one that is given alone.
    EpilogueBuffers(const Call& call, std::size_t count, bool list)
        : copies_(held(call.copy_out, "copy_out", count, list)), averages_(held(call.ema.ptr(), "ema", count, list)) {
        if (!copies_.empty() || !averages_.empty()) epilogues_.resize(count);
    }
    std::span<const detail::Epilogue> all() const { return epilogues_; }
    const detail::Epilogue* first() const { return epilogues_.empty() ? nullptr : epilogues_.data(); }
    void take(std::size_t i, py::ssize_t index, const View& param, WorkStream& work) {
        if (!copies_.empty())
            epilogues_[i].copy =
                take_epilogue_buffer(copies_[i], {"copy_out", index}, param, views_.emplace_back(), work);
        if (!averages_.empty())
            epilogues_[i].average =
                take_epilogue_buffer(averages_[i], {"ema", index}, param, views_.emplace_back(), work);
    }

    static std::vector<py::object> held(PyObject* given, const char* name, std::size_t count, bool list) {
        if (given == nullptr) return {};
        if (!list) return {py::reinterpret_borrow<py::object>(given)};
        if (!is_list(given))
            fail(PyExc_TypeError,
                 std::string(name) + ": expected a list or tuple of buffers like param, got " + type_name(given));
        std::vector<py::object> objects = items_of(given);
        if (objects.size() != count)
            fail(PyExc_ValueError, std::string(name) + ": " + std::to_string(objects.size()) + " buffers, expected " +
                                       std::to_string(count) + " as in param");
        return objects;
    }

  private:
    std::vector<py::object> copies_, averages_;
    std::vector<detail::Epilogue> epilogues_;
    std::deque<View> views_;
};

void run_one(Call& call) {
    const RuleNames& names = call.names;
    View views[max_buffers];
    std::vector<View> sides;
    ParamUpdate tensor;
    take_tensor(names, call.param_format, call.buffer, -1, views, sides, tensor, call.work);
    std::vector<std::unique_ptr<RowGrad>> rows;
    take_rows(call, call.buffer[1], call.last_step, -1, views[0], rows, tensor);
    if (!call.has_epilogue()) {
        check_own_overlap(names, tensor, nullptr);
        run(call, {&tensor, 1}, views[0].device, tensor.size);
        return;
    }
    if (call.zero_grad) check_writable(views[1], {"grad"}, "zero_grad");
    EpilogueBuffers beside(call, 1, false);
    beside.take(0, -1, views[0], call.work);
    check_own_overlap(names, tensor, beside.first());
    run(call, {&tensor, 1}, views[0].device, tensor.size, beside.all());
}

// A tuple of two buffers is a param with what lies beside it, if params are split.
bool is_list_of_params(const Call& call) {
    PyObject* const param = call.buffer[0];
    if (!is_list(param) || PyList_Check(param) || side_name(call.param_format) == nullptr) return is_list(param);
    return PyTuple_GET_SIZE(param) > 0 && is_list(PyTuple_GET_ITEM(param, 0));
}

// The tensors of the last list: training loops pass the same buffers again and again, and comparing addresses costs a
// fiftieth of sorting them.
detail::StepPlan& last_list() {
    thread_local detail::StepPlan plan(detail::StepPlan::Watch::all, detail::StepPlan::Counts::caller);
    return plan;
}

void run_list(Call& call) {
    const RuleNames& names = call.names;
    const auto count = std::size_t(PySequence_Fast_GET_SIZE(call.buffer[0]));
    for (std::size_t b = 0; b < names.buffers; ++b) {
        if (!is_list(call.buffer[b]))
            fail(PyExc_TypeError, std::string(names.buffer_text[b]) +
                                      ": expected a list or tuple of buffers like param, got " +
                                      type_name(call.buffer[b]));
        const auto n = std::size_t(PySequence_Fast_GET_SIZE(call.buffer[b]));
        if (n != count)
            fail(PyExc_ValueError, std::string(names.buffer_text[b]) + ": " + std::to_string(n) +
                                       " buffers, expected " + std::to_string(count) + " as in param");
    }
    if (count == 0) fail(PyExc_ValueError, "param: an empty list");
    if (count > (std::size_t{1} << 28)) fail(PyExc_ValueError, "param: more than 2**28 tensors in a list");

    // References of our own: taking a view may run Python code, and other threads run while the GIL is released, or
    // always; all of them may change the lists.
    std::vector<py::object> objects(count * names.buffers);
    for (std::size_t b = 0; b < names.buffers; ++b) {
        const py::scoped_critical_section locked(call.buffer[b]);
        if (std::size_t(PySequence_Fast_GET_SIZE(call.buffer[b])) != count)
            fail(PyExc_RuntimeError, std::string(names.buffer_text[b]) + ": changed size during the call");
        for (std::size_t i = 0; i < count; ++i)
            objects[i * names.buffers + b] =
                py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(call.buffer[b], py::ssize_t(i)));
    }
    std::vector<View> views(count * names.buffers);
    std::vector<View> sides;
    std::vector<ParamUpdate> tensors(count);
    EpilogueBuffers beside(call, count, true);
    std::vector<std::unique_ptr<RowGrad>> rows;
    std::vector<py::object> given_last;
    if (call.last_step != nullptr) given_last = EpilogueBuffers::held(call.last_step, "last_step", count, true);
    std::int64_t total = 0;
    for (std::size_t i = 0; i < count; ++i) {
        PyObject* of_tensor[max_buffers];
        View* const v = &views[i * names.buffers];
        for (std::size_t b = 0; b < names.buffers; ++b) of_tensor[b] = objects[i * names.buffers + b].ptr();
        take_tensor(names, call.param_format, of_tensor, py::ssize_t(i), v, sides, tensors[i], call.work);
        take_rows(call, of_tensor[1], given_last.empty() ? nullptr : given_last[i].ptr(), py::ssize_t(i), v[0], rows,
                  tensors[i]);
        if (call.zero_grad) check_writable(v[1], {"grad", py::ssize_t(i)}, "zero_grad");
        beside.take(i, py::ssize_t(i), v[0], call.work);
        tensors[i].number = std::uint32_t(i);
        if (!(v[0].device == views[0].device)) fail_mixed({"param", py::ssize_t(i)}, v[0], {"param", 0}, views[0]);
        if (sum_overflows(total, tensors[i].size, total))
            fail(PyExc_ValueError, "param: more than 2**63 elements in all");
    }
    if (const auto overlap = last_list().check_list(*names.rule, tensors, call.zero_grad, beside.all())) {
        const auto name = [&](const detail::BufferId& b) {
            return ArgName{text_of_buffer(names, b.buffer), py::ssize_t(b.tensor)};
        };
        if (overlap->same_param) fail_shared_memory(name(overlap->first).text(), name(overlap->second).text());
        fail_overlap(name(overlap->first), name(overlap->second));
    }
    run(call, tensors, views[0].device, total, beside.all());
}

PyObject* run(const RuleNames& names, PyObject* const* args, py::ssize_t nargs, PyObject* kwnames) {
    try {
        Call call(names);
        call.parse(args, nargs, kwnames);
        if (is_list_of_params(call)) {
            run_list(call);
        } else {
            run_one(call);
        }
    } catch (py::error_already_set& e) {
        e.restore();
        return nullptr;
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
        return nullptr;
    } catch (const std::exception& e) {
        PyErr_SetString(PyExc_RuntimeError, e.what());
        return nullptr;
    } catch (...) {
        if (!set_error_of_core()) PyErr_SetString(PyExc_RuntimeError, "an unknown exception");
        return nullptr;
    }
    Py_RETURN_NONE;
}

template <std::size_t Rule> PyObject* entry(PyObject*, PyObject* const* args, py::ssize_t nargs, PyObject* kwnames) {
    static const RuleNames& names = names_of(detail::rules()[Rule]);
    return run(names, args, nargs, kwnames);
}

// Of a rule that is made at run time: self is a capsule of its names.
PyObject* entry_of_made(PyObject* self, PyObject* const* args, py::ssize_t nargs, PyObject* kwnames) {
    return run(*static_cast<const RuleNames*>(PyCapsule_GetPointer(self, nullptr)), args, nargs, kwnames);
}

using Entry = PyObject* (*)(PyObject*, PyObject* const*, py::ssize_t, PyObject*);

template <std::size_t... I> constexpr std::array<Entry, sizeof...(I)> make_entries(std::index_sequence<I...>) {
    return {entry<I>...};
}

// Python keeps pointers into a function's definition and doc string for as long as the function lives: for ever.
py::object make_function(const std::string& rule, const std::string& doc, const py::str& module) {
    static constexpr auto entries = make_entries(std::make_index_sequence<Rules::size>{});
    const RuleNames& names = names_of(rule);
    const RuleInfo& r = *names.rule;
    const bool made = r.index == RuleInfo::nowhere;
    py::object self;
    if (made) self = py::capsule(&names);
    const Entry function_of_rule = made ? entry_of_made : entries[r.index];
    struct Definition {
        PyMethodDef method;
        std::string doc;
    };
    auto definition = std::make_unique<Definition>();
    definition->doc = doc;
    definition->method = {r.name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function_of_rule)),
                          METH_FASTCALL | METH_KEYWORDS, definition->doc.c_str()};
    auto function = py::reinterpret_steal<py::object>(PyCFunction_NewEx(&definition->method, self.ptr(), module.ptr()));
    if (!function) throw py::error_already_set();
    definition.release();
    return function;
}

double global_norm(const py::object& grads, const py::object& scale) {
    const double grad_scale = scale_value(scale.ptr());
    const bool list = is_list(grads.ptr());
    const std::vector<py::object> objects = list ? items_of(grads.ptr()) : std::vector<py::object>{grads};
    std::vector<View> views(objects.size());
    std::vector<ParamUpdate> tensors(objects.size());
    WorkStream work;
    std::int64_t total = 0;
    for (std::size_t i = 0; i < objects.size(); ++i) {
        const ArgName name{"grads", list ? py::ssize_t(i) : -1};
        View::take(objects[i], name, views[i], work);
        if (!(views[i].device == views[0].device)) fail_mixed(name, views[i], {"grads", 0}, views[0]);
        if (!views[i].dense())
            fail(PyExc_ValueError, name.text() + ": not contiguous: shape " + views[i].shape_text() + " with strides " +
                                       views[i].strides_text());
        tensors[i] = ParamUpdate(views[i].size, compute_format(views[i].dtype), views[i].dtype);
        tensors[i].buffer[1] = views[i].data;
        if (sum_overflows(total, views[i].size, total))
            fail(PyExc_ValueError, "grads: more than 2**63 elements in all");
    }
    if (views.empty() || !views[0].device.cuda) {
        const MaybeReleaseGil released(is_long(total));
        return detail::global_norm(tensors, grad_scale).grad_norm;
    }
    detail::StepReport report;
    on_stream(work, [&] {
        detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
            return cuda.global_norm(views[0].device.id, work.stream(), tensors, grad_scale, report, error);
        });
    });
    return report.grad_norm;
}

// into <- into + scale * grads; the norm of `into` then, if it is wanted, else 0.
double accumulate(const py::object& into, const py::object& grads, const py::object& scale, bool norm) {
    const double factor = real_value(scale.ptr(), "scale");
    const bool list = is_list(into.ptr());
    if (list != is_list(grads.ptr()))
        fail(PyExc_TypeError, std::string("grads: expected ") + (list ? "a list or tuple" : "a buffer") +
                                  " like into, got " + type_name(grads));
    const auto held = [&](const py::object& given) {
        return list ? items_of(given.ptr()) : std::vector<py::object>{given};
    };
    const std::vector<py::object> to = held(into), from = held(grads);
    if (to.size() != from.size())
        fail(PyExc_ValueError, "grads: " + std::to_string(from.size()) + " buffers, expected " +
                                   std::to_string(to.size()) + " as in into");
    std::vector<View> views(2 * to.size());
    std::vector<ParamUpdate> tensors(to.size());
    std::vector<detail::Extent> written;
    WorkStream work;
    std::int64_t total = 0;
    const auto name = [&](std::size_t buffer, std::size_t i) {
        return ArgName{buffer == 0 ? "into" : "grads", list ? py::ssize_t(i) : -1};
    };
    for (std::size_t i = 0; i < to.size(); ++i) {
        View& a = views[2 * i];
        View& g = views[2 * i + 1];
        View::take(to[i], name(0, i), a, work);
        check_param(a, name(0, i));
        if (compute_format(a.dtype) != a.dtype)
            fail(PyExc_TypeError, name(0, i).text() + ": dtype " + name_of(a.dtype) +
                                      ", expected float32 or float64: sums of gradients lose small ones in 16 bits");
        View::take(from[i], name(1, i), g, work);
        check_grad(g, name(1, i), a);
        if (!(a.device == views[0].device)) fail_mixed(name(0, i), a, name(0, 0), views[0]);
        tensors[i] = ParamUpdate(a.size, a.dtype, g.dtype);
        tensors[i].buffer[0] = a.data;
        tensors[i].buffer[1] = g.data;
        written.push_back({a.begin(), a.end(), std::uint32_t(i)});
        if (sum_overflows(total, a.size, total)) fail(PyExc_ValueError, "into: more than 2**63 elements in all");
    }
    detail::WrittenMemory memory;
    detail::Clash clash{};
    if (!memory.assign(std::move(written), clash)) fail_overlap(name(0, clash.first), name(0, clash.second));
    for (std::size_t i = 0; i < to.size(); ++i) {
        const View& g = views[2 * i + 1];
        if (const auto owner = memory.find(g.begin(), g.end()); owner != detail::WrittenMemory::none)
            fail_overlap(name(1, i), name(0, owner));
    }
    if (views.empty() || !views[0].device.cuda) {
        const MaybeReleaseGil released(is_long(total));
        if (norm) return detail::accumulate(tensors, factor).grad_norm;
        detail::add_scaled(tensors, factor);
        return 0.0;
    }
    detail::StepReport report;
    on_stream(work, [&] {
        const int device = views[0].device.id;
        detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
            return cuda.add_scaled(device, work.stream(), tensors, factor, error);
        });
        if (!norm) return;
        for (ParamUpdate& t : tensors) t.set(1, t.slot(0));
        detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
            return cuda.global_norm(device, work.stream(), tensors, 1.0, report, error);
        });
    });
    return report.grad_norm;
}

// The core's reduction, for tests of it: one sum for all buffers, each of some groups of them, each of them, or each
// row of each of them. `groups` and `row_sizes` are as Reduction has them.
std::vector<double> reduce(const py::list& list, const std::string& term, const std::string& scope, double scale,
                           const std::vector<std::size_t>& groups, const std::vector<std::int64_t>& row_sizes) {
    const std::vector<py::object> objects = items_of(list.ptr());
    std::vector<View> views(objects.size());
    std::vector<ParamUpdate> tensors(objects.size());
    WorkStream work;
    for (std::size_t i = 0; i < objects.size(); ++i) {
        const ArgName name{"buffers", py::ssize_t(i)};
        View::take(objects[i], name, views[i], work);
        check_param(views[i], name);
        if (!(views[i].device == views[0].device)) fail_mixed(name, views[i], {"buffers", 0}, views[0]);
        tensors[i] = ParamUpdate(views[i].size, compute_format(views[i].dtype), views[i].dtype);
        tensors[i].buffer[1] = views[i].data;
    }
    detail::Reduction what;
    what.term = term == "value" ? detail::Term::value : detail::Term::square;
    what.scope = scope == "row"      ? detail::Scope::row
                 : scope == "tensor" ? detail::Scope::tensor
                 : scope == "group"  ? detail::Scope::group
                                     : detail::Scope::all;
    what.scale = scale;
    what.groups = groups;
    what.row_sizes = row_sizes;
    if (views.empty() || !views[0].device.cuda) return detail::reduce(tensors, what);
    const std::vector<detail::ReductionPart> parts = detail::reduction_parts(tensors, what);
    std::vector<double> sums(parts.size());
    on_stream(work, [&] {
        detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
            return cuda.reduce(views[0].device.id, work.stream(), tensors, what, parts, sums, error);
        });
    });
    return sums;
}

// The kernel that a rule is measured beside, on the rule's own buffers: benchmarks only.
void bandwidth_probe(const py::list& list, std::size_t repeats) {
    const std::vector<py::object> buffers = items_of(list.ptr());
    if (buffers.size() < 2 || buffers.size() > detail::max_written + 1)
        fail(PyExc_ValueError, "buffers: expected 2 to 6");
    View views[max_buffers];
    ParamUpdate t;
    WorkStream work;
    for (std::size_t b = 0; b < buffers.size(); ++b) {
        const ArgName name{"buffers", py::ssize_t(b)};
        View::take(buffers[b], name, views[b], work);
        check_param(views[b], name);
        if (!(views[b].device == views[0].device)) fail_mixed(name, views[b], {"buffers", 0}, views[0]);
        if (views[b].size != views[0].size || views[b].dtype != views[0].dtype ||
            compute_format(views[b].dtype) != views[b].dtype)
            fail(PyExc_ValueError, name.text() + ": expected equal sizes, and float32 or float64");
        t.set(b, {views[b].data, views[b].dtype});
    }
    t.size = views[0].size;
    const std::size_t written = buffers.size() - 1;
    if (!views[0].device.cuda) {
        const MaybeReleaseGil released(is_long(t.size));
        for (std::size_t i = 0; i < repeats; ++i) detail::run_bandwidth_probe({&t, 1}, written);
        return;
    }
    on_stream(work, [&] {
        for (std::size_t i = 0; i < repeats; ++i)
            detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
                return cuda.bandwidth_probe(views[0].device.id, work.stream(), {&t, 1}, written, error);
            });
    });
}

// What reading a buffer takes: benchmarks only. Whole lines of 64 bytes, aligned.
std::uint64_t read_probe(const py::object& buffer) {
    View view;
    WorkStream work;
    View::take(buffer, {"buffer"}, view, work);
    const auto bytes = std::int64_t(storage_bytes(view.dtype, view.size));
    if (view.device.cuda) fail(PyExc_ValueError, "buffer: on a device, expected the CPU");
    if (bytes == 0) return 0;
    if (reinterpret_cast<std::uintptr_t>(view.data) % cache_line != 0 || bytes % std::int64_t(cache_line) != 0)
        fail(PyExc_ValueError, "buffer: expected whole lines of 64 bytes, aligned");
    const MaybeReleaseGil released(is_long(view.size));
    return detail::run_read_probe(view.data, bytes / std::int64_t(cache_line));
}

// The same of rows: sorted, of streams that are all float32 in C order. For benchmarks, and for tests of it.
void row_probe(const py::list& list, const py::array_t<std::int64_t, py::array::c_style>& rows,
               const py::array_t<float, py::array::c_style>& values) {
    const std::vector<py::object> streams = items_of(list.ptr());
    View views[max_buffers];
    WorkStream work;
    ParamUpdate t;
    if (streams.empty() || streams.size() > detail::max_written) fail(PyExc_ValueError, "streams: expected 1 to 5");
    for (std::size_t b = 0; b < streams.size(); ++b) {
        View::take(streams[b], {"streams", py::ssize_t(b)}, views[b], work);
        t.set(b == 0 ? 0 : 1 + b, {views[b].data, views[b].dtype});
        if (views[b].dtype != Format::float32 || !views[b].c_order || views[b].ndim != 2 ||
            !views[b].same_shape(views[0]) || views[b].shape[1] != values.shape(1) || views[b].shape[1] > 4096)
            fail(PyExc_ValueError, "streams: expected float32 in C order, in one shape, with rows as in values");
    }
    t.size = views[0].size;
    const std::span<const std::int64_t> all(rows.data(), std::size_t(rows.size()));
    if (values.shape(0) < rows.size() ||
        std::any_of(all.begin(), all.end(), [&](std::int64_t r) { return r < 0 || r >= views[0].shape[0]; }))
        fail(PyExc_ValueError, "rows: expected as many values or more, and rows of the streams");
    const MaybeReleaseGil released(true);
    detail::run_row_probe(t, streams.size(), all, views[0].shape[1], {values.data(), std::size_t(values.size())});
}

// What comes before a step with these indices: benchmarks only. The number of distinct rows.
std::size_t group_rows(const py::array_t<std::int64_t, py::array::c_style>& indices, std::int64_t rows) {
    detail::RowUpdate update;
    if (update.assign({indices.data(), true, std::int64_t(indices.size())}, {nullptr, Format::float32}, rows, 1))
        fail(PyExc_ValueError, "indices: out of range");
    return update.distinct();
}

// Shape, strides in bytes, dtype and device of any buffer, for making a state array beside it.
py::tuple layout(const py::object& buffer, const std::string& name) {
    View v;
    WorkStream work;
    View::take(buffer, {name.c_str()}, v, work);
    py::tuple shape(v.ndim);
    py::tuple strides(v.ndim);
    std::int64_t c_stride = std::int64_t(size_of(v.dtype));
    for (std::int32_t i = v.ndim - 1; i >= 0; --i) {
        shape[std::size_t(i)] = v.shape[i];
        strides[std::size_t(i)] = v.strides == nullptr ? c_stride : v.strides[i] * v.stride_unit;
        c_stride *= v.shape[i];
    }
    return py::make_tuple(shape, strides, name_of(v.dtype), v.device.text());
}

void check_param_object(const py::object& buffer, const std::string& name) {
    View v;
    WorkStream work;
    View::take(buffer, {name.c_str()}, v, work);
    check_param(v, {name.c_str()});
}

// Every hyperparameter of a rule in a dict; a schedule in the place of a number passes.
void check_hyperparameters(const std::string& rule, const py::dict& values) {
    const RuleNames& names = names_of(rule);
    detail::HyperValues checked = names.defaults;
    bool all_known = true;
    for (std::size_t h = 0; h < names.hypers; ++h) {
        const py::object value = values[names.hyper[h]];
        if (may_be_scheduled(names.hyper_info[h]) && PyFloat_CheckExact(value.ptr()) == 0 &&
            PyCallable_Check(value.ptr()) != 0)
            continue;
        if (View::on_cuda(value, {names.hyper_info[h].name})) {
            all_known = false;
        } else {
            checked.value[h] = hyper_value(value.ptr(), names.hyper_info[h]);
        }
    }
    if (all_known) check_together(*names.rule, checked);
}

}  // namespace

void register_functions(py::module_& m) {
    step_name = interned("step");
    seed_name = interned("seed");
    param_format_name = interned("param_format");
    zero_grad_name = interned("zero_grad");
    copy_out_name = interned("copy_out");
    ema_name = interned("ema");
    sparse_name = interned("sparse");
    last_step_name = interned("last_step");
    m.def("layout", layout, py::arg("buffer"), py::arg("name"));
    m.def("check_param", check_param_object, py::arg("buffer"), py::arg("name"));
    m.def("check_hyperparameters", check_hyperparameters, py::arg("rule"), py::arg("values"));
    m.def("make_function", make_function, py::arg("rule"), py::arg("doc"), py::arg("module"));
    m.def("global_norm", global_norm, py::arg("grads"), py::arg("grad_scale") = 1.0);
    m.def("accumulate", accumulate, py::arg("into"), py::arg("grads"), py::arg("scale"), py::arg("norm"));
    m.def("check_clip_norm", [](const py::object& value) { clip_value(value.ptr()); }, py::arg("clip_norm"));
    m.def("reduce", reduce, py::arg("buffers"), py::arg("term"), py::arg("scope"), py::arg("scale") = 1.0,
          py::arg("groups") = std::vector<std::size_t>{}, py::arg("row_sizes") = std::vector<std::int64_t>{});
    m.def("bandwidth_probe", bandwidth_probe, py::arg("buffers"), py::arg("repeats") = 1);
    m.def("read_probe", read_probe, py::arg("buffer"));
    m.def("row_probe", row_probe, py::arg("streams"), py::arg("rows"), py::arg("values"));
    m.def("group_rows", group_rows, py::arg("indices"), py::arg("rows"));
    py::register_exception_translator([](std::exception_ptr thrown) {
        if (!thrown) return;
        try {
            std::rethrow_exception(thrown);
        } catch (...) {
            if (!set_error_of_core()) throw;
        }
    });
}

}  // namespace adaptk::bindings
