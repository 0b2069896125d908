// The functions of adaptk.ops are plain C functions of the vectorcall protocol: an update of 64 elements takes a tenth
// of a microsecond, and a general argument dispatcher would cost ten times that.
#include "functions.hpp"

#include "arguments.hpp"
#include "compiler.hpp"
#include "kernel_table.hpp"

#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

namespace adaptk::bindings {
namespace {

// Owner numbers of extents: tensor and buffer in one.
constexpr std::uint32_t owner_of(std::size_t tensor, std::size_t buffer) { return std::uint32_t(tensor * 8 + buffer); }
static_assert(max_buffers <= 8);

struct Call {
    const RuleNames& names;
    PyObject* buffer[max_buffers] = {};
    detail::Segment segment;
    bool has_step = false;
    PyObject* device_step = nullptr;
    std::vector<DeviceValue> device_values;
    WorkStream work;

    explicit Call(const RuleNames& n) : names(n), segment{n.rule, n.defaults, 1, 1} {}
    void parse(PyObject* const* args, py::ssize_t nargs, PyObject* kwnames);

  private:
    void keyword(PyObject* name, PyObject* value);
};

PyObject* step_name = nullptr;

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
    if (device_values.empty()) check_together(*names.rule, segment.hyper);
}

void Call::keyword(PyObject* name, PyObject* value) {
    if (same_name(name, step_name)) {
        has_step = true;
        if (View::on_cuda(value, {"step"})) {
            device_step = value;
        } else {
            segment.step = step_value(value);
        }
        return;
    }
    // Identity first: keywords written in a call are interned, and comparing the text of each one would cost more
    // than the update of a small tensor.
    for (const bool identity : {true, false}) {
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
    std::string known = "step";
    for (std::size_t i = 0; i < names.hypers; ++i) known += std::string(", ") + names.hyper_info[i].name;
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R; it takes %s", names.rule->name, name,
                 known.c_str());
    throw py::error_already_set();
}

// Takes and checks the buffers of one tensor.
void take_tensor(const RuleNames& names, PyObject* const* objects, py::ssize_t index, View* views, TensorStep& out,
                 WorkStream& work) {
    for (std::size_t b = 0; b < names.buffers; ++b) {
        const ArgName name{names.buffer_text[b], index};
        View::take(objects[b], name, views[b], work);
        if (b == 0) {
            check_param(views[0], name);
        } else if (b == 1) {
            check_grad(views[1], name, views[0]);
        } else {
            check_state(views[b], name, views[0]);
        }
        out.buffer[b] = views[b].data;
    }
    out.size = views[0].size;
    out.param = views[0].dtype;
    out.grad = views[1].dtype;
}

// Numbers on a device beside params on the CPU: read as any other number is.
void read_device_values(Call& call) {
    if (call.device_step != nullptr) call.segment.step = step_value(call.device_step);
    for (const DeviceValue& d : call.device_values)
        call.segment.hyper.value[d.index] = hyper_value(d.value.ptr(), call.names.hyper_info[d.index]);
    if (!call.device_values.empty()) check_together(*call.names.rule, call.segment.hyper);
}

void run_cuda(Call& call, std::span<const TensorStep> tensors, const detail::Segment& segment, const Device& device) {
    std::vector<View> held(call.device_values.size() + 1);
    std::vector<detail::DeviceHyper> hypers(call.device_values.size());
    for (std::size_t i = 0; i < hypers.size(); ++i) {
        const DeviceValue& d = call.device_values[i];
        d.resolve(call.names.hyper_info[d.index], device, call.work, held[i], hypers[i]);
    }
    detail::CudaStep step{device.id, call.work.stream(), tensors, {&segment, 1}, {}};
    step.hypers = hypers;
    if (call.device_step != nullptr) {
        const DeviceNumber n = held.back().take_number(call.device_step, {"step"}, call.work);
        if (!(n.device == device))
            fail(PyExc_ValueError, "step: on " + n.device.text() + ", expected " + device.text() + " like the params");
        step.step = n.data;
        step.step_type = n.type;
    }
    run_on_stream(call.work,
                  [&](const detail::CudaBackend& part, detail::CudaError& error) { return part.step(step, error); });
}

void run_one(Call& call) {
    const RuleNames& names = call.names;
    View views[max_buffers];
    TensorStep tensor;
    take_tensor(names, call.buffer, -1, views, tensor, call.work);
    for (std::size_t a = 0; a < names.buffers; ++a) {
        for (std::size_t b = a + 1; b < names.buffers; ++b) {
            if (views[a].begin() < views[b].end() && views[b].begin() < views[a].end())
                fail_overlap({names.buffer_text[a]}, {names.buffer_text[b]});
        }
    }
    if (views[0].device.cuda) {
        run_cuda(call, {&tensor, 1}, call.segment, views[0].device);
        return;
    }
    read_device_values(call);
    const MaybeReleaseGil released(tensor.size);
    detail::run_step({&tensor, 1}, {&call.segment, 1}, {});
}

bool is_list(PyObject* o) { return PyList_Check(o) || PyTuple_Check(o); }

// The last list's memory map: training loops pass the same buffers again and again, and comparing addresses costs a
// fiftieth of sorting them.
struct LastWritten {
    std::vector<detail::Extent> extents;
    detail::WrittenMemory memory;
};

bool same_extents(const std::vector<detail::Extent>& a, const std::vector<detail::Extent>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0);
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
    std::vector<TensorStep> tensors(count);
    std::vector<detail::Extent> written;
    written.reserve(count * (names.buffers - 1));
    std::int64_t total = 0;
    for (std::size_t i = 0; i < count; ++i) {
        PyObject* of_tensor[max_buffers];
        View* v = &views[i * names.buffers];
        for (std::size_t b = 0; b < names.buffers; ++b) of_tensor[b] = objects[i * names.buffers + b].ptr();
        take_tensor(names, of_tensor, py::ssize_t(i), v, tensors[i], call.work);
        if (!(v[0].device == views[0].device)) fail_mixed({"param", py::ssize_t(i)}, v[0], {"param", 0}, views[0]);
        if (sum_overflows(total, tensors[i].size, total))
            fail(PyExc_ValueError, "param: more than 2**63 elements in all");
        for (std::size_t b = 0; b < names.buffers; ++b)
            if (b != 1) written.push_back({v[b].begin(), v[b].end(), owner_of(i, b)});
    }
    const auto name_of_owner = [&](std::uint32_t owner) {
        return ArgName{names.buffer_text[owner % 8], py::ssize_t(owner / 8)};
    };
    thread_local LastWritten last;
    if (!same_extents(written, last.extents)) {
        last.extents.clear();
        detail::Clash clash{};
        if (!last.memory.assign(written, clash)) {
            const ArgName a = name_of_owner(clash.first), b = name_of_owner(clash.second);
            const View& x = views[clash.first / 8 * names.buffers];
            const View& y = views[clash.second / 8 * names.buffers];
            if (clash.first % 8 == 0 && clash.second % 8 == 0 && x.begin() == y.begin() && x.end() == y.end())
                fail_twice(a.text(), b.text());
            fail_overlap(a, b);
        }
        last.extents = std::move(written);
    }
    for (std::size_t i = 0; i < count; ++i) {
        const View& g = views[i * names.buffers + 1];
        if (const auto owner = last.memory.find(g.begin(), g.end()); owner != detail::WrittenMemory::none)
            fail_overlap({"grad", py::ssize_t(i)}, name_of_owner(owner));
    }
    call.segment.count = count;
    if (views[0].device.cuda) {
        run_cuda(call, tensors, call.segment, views[0].device);
        return;
    }
    read_device_values(call);
    const MaybeReleaseGil released(total);
    detail::run_step(tensors, {&call.segment, 1}, {});
}

PyObject* run(const RuleNames& names, PyObject* const* args, py::ssize_t nargs, PyObject* kwnames) {
    try {
        Call call(names);
        call.parse(args, nargs, kwnames);
        if (is_list(call.buffer[0])) {
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
    }
    Py_RETURN_NONE;
}

template <std::size_t Rule> PyObject* entry(PyObject*, PyObject* const* args, py::ssize_t nargs, PyObject* kwnames) {
    static const RuleNames& names = names_of(detail::rules()[Rule]);
    return run(names, args, nargs, kwnames);
}

using Entry = PyObject* (*)(PyObject*, PyObject* const*, py::ssize_t, PyObject*);

template <std::size_t... I> constexpr std::array<Entry, sizeof...(I)> make_entries(std::index_sequence<I...>) {
    return {entry<I>...};
}

// Python keeps pointers into a function's definition and doc string for as long as the function lives: for ever.
py::object make_function(const std::string& rule, const std::string& doc, const py::str& module) {
    static constexpr auto entries = make_entries(std::make_index_sequence<Rules::size>{});
    const RuleInfo& r = *names_of(rule).rule;
    struct Definition {
        PyMethodDef method;
        std::string doc;
    };
    auto definition = std::make_unique<Definition>();
    definition->doc = doc;
    definition->method = {r.name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entries[r.index])),
                          METH_FASTCALL | METH_KEYWORDS, definition->doc.c_str()};
    auto function = py::reinterpret_steal<py::object>(PyCFunction_NewEx(&definition->method, nullptr, module.ptr()));
    if (!function) throw py::error_already_set();
    definition.release();
    return function;
}

double global_norm(const py::object& grads, const py::object& scale) {
    const double grad_scale = scale_value(scale.ptr());
    const bool list = is_list(grads.ptr());
    const std::vector<py::object> objects = list ? items_of(grads.ptr()) : std::vector<py::object>{grads};
    std::vector<View> views(objects.size());
    std::vector<TensorStep> tensors(objects.size());
    WorkStream work;
    std::int64_t total = 0;
    for (std::size_t i = 0; i < objects.size(); ++i) {
        const ArgName name{"grads", list ? py::ssize_t(i) : -1};
        View::take(objects[i], name, views[i], work);
        if (!(views[i].device == views[0].device)) fail_mixed(name, views[i], {"grads", 0}, views[0]);
        if (!views[i].dense())
            fail(PyExc_ValueError, name.text() + ": not contiguous: shape " + views[i].shape_text() + " with strides " +
                                       views[i].strides_text());
        tensors[i] = {{nullptr, views[i].data}, views[i].size, compute_type(views[i].dtype), views[i].dtype};
        if (sum_overflows(total, views[i].size, total))
            fail(PyExc_ValueError, "grads: more than 2**63 elements in all");
    }
    if (!views.empty() && views[0].device.cuda) {
        detail::StepReport report;
        run_on_stream(work, [&](const detail::CudaBackend& part, detail::CudaError& error) {
            return part.global_norm(views[0].device.id, work.stream(), tensors, grad_scale, report, error);
        });
        return report.grad_norm;
    }
    const MaybeReleaseGil released(total);
    return detail::global_norm(tensors, grad_scale).grad_norm;
}

// The bandwidth ceiling of a rule, on the rule's own buffers: benchmarks only.
void ceiling(const py::list& list, std::size_t repeats) {
    const std::vector<py::object> buffers = items_of(list.ptr());
    if (buffers.size() < 2 || buffers.size() > detail::max_written + 1)
        fail(PyExc_ValueError, "buffers: expected 2 to 6");
    View views[max_buffers];
    TensorStep t{};
    WorkStream work;
    for (std::size_t b = 0; b < buffers.size(); ++b) {
        const ArgName name{"buffers", py::ssize_t(b)};
        View::take(buffers[b], name, views[b], work);
        check_param(views[b], name);
        if (!(views[b].device == views[0].device)) fail_mixed(name, views[b], {"buffers", 0}, views[0]);
        if (views[b].size != views[0].size || views[b].dtype != views[0].dtype ||
            (views[b].dtype != DType::f32 && views[b].dtype != DType::f64))
            fail(PyExc_ValueError, name.text() + ": expected equal sizes, and float32 or float64");
        t.buffer[b] = views[b].data;
    }
    t.size = views[0].size;
    t.param = t.grad = views[0].dtype;
    if (views[0].device.cuda) {
        run_on_stream(work, [&](const detail::CudaBackend& part, detail::CudaError& error) {
            bool done = true;
            for (std::size_t i = 0; i < repeats && done; ++i)
                done = part.ceiling(views[0].device.id, work.stream(), {&t, 1}, buffers.size() - 1, error);
            return done;
        });
        return;
    }
    const MaybeReleaseGil released(t.size);
    for (std::size_t i = 0; i < repeats; ++i) detail::run_ceiling({&t, 1}, buffers.size() - 1);
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

// Every hyperparameter of a rule in a dict; a schedule in the place of lr passes.
void check_hyperparameters(const std::string& rule, const py::dict& values) {
    const RuleNames& names = names_of(rule);
    detail::HyperValues checked = names.defaults;
    bool all_known = true;
    for (std::size_t h = 0; h < names.hypers; ++h) {
        const py::object value = values[names.hyper[h]];
        if (h == 0 && PyFloat_CheckExact(value.ptr()) == 0 && PyCallable_Check(value.ptr()) != 0) continue;
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
    m.def("layout", layout, py::arg("buffer"), py::arg("name"));
    m.def("check_param", check_param_object, py::arg("buffer"), py::arg("name"));
    m.def("check_hyperparameters", check_hyperparameters, py::arg("rule"), py::arg("values"));
    m.def("make_function", make_function, py::arg("rule"), py::arg("doc"), py::arg("module"));
    m.def("global_norm", global_norm, py::arg("grads"), py::arg("grad_scale") = 1.0);
    m.def("check_clip_norm", [](const py::object& value) { clip_value(value.ptr()); }, py::arg("clip_norm"));
    m.def("ceiling", ceiling, py::arg("buffers"), py::arg("repeats") = 1);
}

}  // namespace adaptk::bindings
