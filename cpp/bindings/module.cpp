// The extension module adaptk._core: registrars only.
#include "arguments.hpp"
#include "batch_device.hpp"
#include "code_cache.hpp"
#include "dispatch.hpp"
#include "environment.hpp"
#include "functions.hpp"
#include "hogwild_module.hpp"
#include "machine.hpp"
#include "plan.hpp"
#include "random_module.hpp"
#include "rule_program.hpp"
#include "rule_source.hpp"
#include "stored.hpp"
#include "threads.hpp"
#include "torch_plan.hpp"
#include "work.hpp"

#include "adaptk/adaptk.h"

#include <Eigen/Core>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#define ADAPTK_TEXT2(x) #x
#define ADAPTK_TEXT(x) ADAPTK_TEXT2(x)
#define EIGEN_VERSION_TEXT                                                                                             \
    ADAPTK_TEXT(EIGEN_WORLD_VERSION) "." ADAPTK_TEXT(EIGEN_MAJOR_VERSION) "." ADAPTK_TEXT(EIGEN_MINOR_VERSION)

namespace adaptk::bindings {
namespace {

py::object plain(const Hyperparameter& h, double value) {
    if (h.range == Range::flag) return py::bool_(value != 0.0);
    return py::float_(value);
}

constexpr const char* per_names[] = {"element", "tensor", "row", "column", "slice"};
static_assert(std::size(per_names) == std::size_t(Per::slice) + 1);

// A rule as a plain dict, which adaptk._registry turns into an object.
py::dict describe(const RuleInfo& r) {
    py::list hypers;
    for (std::size_t i = 0; i < r.hyper_count(); ++i) {
        const Hyperparameter h = r.hyper(i);
        hypers.append(py::dict(py::arg("name") = h.name, py::arg("default") = plain(h, h.value),
                               py::arg("range") = detail::range_text(h.range), py::arg("meaning") = h.meaning,
                               py::arg("common") = i >= r.own.size()));
    }
    py::list states;
    for (const State& s : r.states) {
        py::object from = py::none();
        if (s.from != nullptr) from = py::str(s.from);
        const std::uint8_t start = r.program == nullptr ? detail::starts_as_number : r.program->starts[states.size()];
        if (start == detail::starts_as_param) from = py::str("param");
        if (start == detail::starts_as_grad) from = py::str("grad");
        states.append(py::dict(py::arg("name") = s.name, py::arg("initial") = s.initial, py::arg("initial_from") = from,
                               py::arg("option") = s.option == nullptr ? py::object(py::none()) : py::str(s.option),
                               py::arg("nonnegative") = s.nonnegative, py::arg("per") = per_names[std::size_t(s.per)]));
    }
    py::list carried;
    if (r.program != nullptr)
        for (const detail::CarriedNumber& c : r.program->carried) carried.append(r.own[c.hyper].name);
    py::list presets;
    for (const Preset& p : r.conventions) presets.append(py::make_tuple(p.convention, p.name, p.value));
    return py::dict(py::arg("key") = r.key, py::arg("name") = r.name, py::arg("class_name") = r.class_name,
                    py::arg("variant") = r.variant, py::arg("summary") = r.summary, py::arg("formula") = r.formula,
                    py::arg("source") = r.source, py::arg("hyperparameters") = hypers, py::arg("states") = states,
                    py::arg("presets") = presets, py::arg("carried") = carried, py::arg("evaluation") = r.evaluation,
                    py::arg("reduces") = !r.measures                 ? ""
                                         : r.program->measures_all() ? "all"
                                                                     : "tensor",
                    py::arg("shaped") = r.program != nullptr && r.program->knows_shapes(),
                    py::arg("catch_up") = r.idle == Idle::exact         ? "exact"
                                          : r.idle == Idle::approximate ? "approximate"
                                                                        : "");
}

py::list described(std::span<const RuleInfo> rules) {
    py::list all;
    for (const RuleInfo& r : rules) all.append(describe(r));
    return all;
}
py::list registry() { return described(detail::rules()); }
py::list row_wise_registry() { return described(detail::row_wise_rules()); }

// The rule of a program's bytes (program.hpp).
py::dict load_rule(const py::bytes& bytes) {
    const std::string_view data = bytes;
    std::string error;
    const RuleInfo* const rule = detail::load_rule(std::as_bytes(std::span(data)), error);
    if (rule == nullptr) fail(PyExc_ValueError, "bytes: " + error);
    return describe(*rule);
}

// Machine code of a rule that was made at run time, for one instruction set: the addresses of StepKernels for float and
// double, each without and with coupled decay, in a library that stays loaded.
void use_compiled(const std::string& key, const std::string& isa, const std::array<std::uintptr_t, 4>& address) {
    const RuleInfo& rule = *names_of(key).rule;
    for (const detail::Isa& i : detail::built_isas()) {
        if (rule.program == nullptr || isa != i.name) continue;
        detail::RuleCode code{};
        for (std::size_t k = 0; k < 4; ++k) code.step[k / 2][k % 2] = reinterpret_cast<detail::StepKernel>(address[k]);
        rule.program->use_compiled(i.number, code);
        return;
    }
    fail(PyExc_ValueError, "isa: unknown, or not a rule that was made at run time");
}

// A rule that was made at run time as a C++ struct of this name.
std::string source_of_struct(const std::string& key, const std::string& name) {
    const RuleInfo& rule = *names_of(key).rule;
    if (rule.program == nullptr) fail(PyExc_ValueError, "rule: not one that was made at run time");
    return detail::source_of_struct(rule, name);
}

bool reads_decay(const std::string& key) {
    const RuleInfo& rule = *names_of(key).rule;
    return rule.program != nullptr && detail::reads_decay(rule);
}

std::string cache_folder() {
    detail::CacheError error;
    const std::string path = detail::cache_folder(error);
    if (path.empty()) {
        PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code, error.text).ptr());
        throw py::error_already_set();
    }
    return path;
}

// The instruction sets that a rule has been compiled for at run time.
std::vector<std::string> compiled_for(const std::string& key) {
    const RuleInfo& rule = *names_of(key).rule;
    std::vector<std::string> names;
    for (const detail::Isa& i : detail::built_isas())
        if (rule.program != nullptr && rule.program->compiled(i.number) != nullptr) names.emplace_back(i.name);
    return names;
}

// What the step of this number leaves behind of a rule's hyperparameters, which are all given: by name. `reduced` has
// its reductions, if they have a part in it.
py::dict next_carried(const std::string& key, const std::vector<double>& values, std::int64_t step,
                      const std::vector<double>& reduced) {
    const RuleInfo& rule = *names_of(key).rule;
    detail::HyperValues hyper{};
    if (values.size() != rule.hyper_count()) fail(PyExc_ValueError, "values: not one for each hyperparameter");
    std::copy(values.begin(), values.end(), hyper.value);
    py::dict carried;
    if (rule.program == nullptr) return carried;
    if (!reduced.empty() && reduced.size() != rule.program->reductions.size())
        fail(PyExc_ValueError, "reduced: not one for each reduction");
    rule.program->update_carried(rule, hyper, step, reduced);
    for (const detail::CarriedNumber& c : rule.program->carried) carried[rule.own[c.hyper].name] = hyper.value[c.hyper];
    return carried;
}

// None where this build has no CUDA kernels; [] where there is no driver or no device.
py::object cuda_devices() {
    const detail::CudaBackend* part = cuda_part();
    if (part == nullptr) return py::none();
    py::list devices;
    int count = 0;
    detail::CudaError error;
    if (!part->device_count(count, error)) return devices;
    for (int i = 0; i < count; ++i) {
        detail::CudaDevice d{};
        if (!part->describe(i, d, error)) fail_cuda(error);
        devices.append(py::dict(py::arg("index") = i, py::arg("name") = d.name,
                                py::arg("compute_capability") = py::make_tuple(d.major, d.minor),
                                py::arg("multiprocessors") = d.multiprocessors, py::arg("memory") = d.memory));
    }
    return devices;
}

// Names the stream for calls of this thread, and returns what was named before: (stream, device) or None.
py::object name_stream(std::optional<std::uintptr_t> stream, int device) {
    NamedStream& named = named_stream();
    const NamedStream before = named;
    named = {stream.has_value(), device, reinterpret_cast<void*>(stream.value_or(0))};
    if (!before.named) return py::none();
    return py::make_tuple(reinterpret_cast<std::uintptr_t>(before.stream), before.device);
}

void register_cuda(py::module_& m) {
    m.def("cuda_devices", cuda_devices);
    m.def("name_stream", name_stream, py::arg("stream"), py::arg("device"));
    m.def("on_cuda", [](const py::object& buffer) { return View::on_cuda(buffer, {"buffer"}); }, py::arg("buffer"));
}

void register_machine(py::module_& m) {
    m.def("get_num_threads", detail::num_threads);
    m.def(
        "set_num_threads",
        [](long long n) {
            if (const std::string error = detail::set_num_threads(n); !error.empty())
                fail(detail::in_forked_child() && n > 1 ? PyExc_RuntimeError : PyExc_ValueError, "n: " + error);
        },
        py::arg("n"));
    m.def("get_isa", [] { return detail::current_isa().name; });
    m.def(
        "set_isa",
        [](const std::string& name) {
            if (const std::string error = detail::choose_isa(name); !error.empty())
                fail(PyExc_ValueError, "name: " + error);
        },
        py::arg("name"));
    m.def("available_isas", [] {
        py::list names;
        for (const detail::Isa& isa : detail::built_isas())
            if (isa.supported) names.append(isa.name);
        return names;
    });
    m.def("built_isas", [] {
        py::list names;
        for (const detail::Isa& isa : detail::built_isas()) names.append(isa.name);
        return names;
    });
    m.def("forked_child", detail::in_forked_child);
    static const detail::Machine machine{detail::num_threads, [] { return detail::current_isa().name; }};
    m.attr("machine") = py::capsule(&machine, detail::machine_capsule);
}

}  // namespace
}  // namespace adaptk::bindings

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
    namespace b = adaptk::bindings;
    m.doc() = "Compiled core of adaptk.";
    // A program that has loaded another libadaptk of the same name gets that one here too.
    if (std::string_view(adaptk_version()) != ADAPTK_VERSION)
        throw pybind11::import_error(std::string("libadaptk is of version ") + adaptk_version() +
                                     ", and the Python package of " + ADAPTK_VERSION);
    if (const std::string& error = adaptk::detail::apply_environment(); !error.empty())
        throw pybind11::import_error(error);
    m.attr("version") = ADAPTK_VERSION;
    m.attr("compiler") = ADAPTK_COMPILER;
    const int openmp = adaptk::detail::openmp_date();
    m.attr("openmp") = openmp != 0 ? pybind11::object(pybind11::int_(openmp)) : pybind11::none();
    m.attr("eigen") = EIGEN_VERSION_TEXT;
    b::prepare_buffers();
    b::prepare_names();
    m.def("registry", b::registry);
    m.def("row_wise_registry", b::row_wise_registry);
    m.def("load_rule", b::load_rule, pybind11::arg("bytes"));
    m.def("next_carried", b::next_carried, pybind11::arg("rule"), pybind11::arg("values"), pybind11::arg("step"),
          pybind11::arg("reduced") = std::vector<double>());
    m.def("use_compiled", b::use_compiled, pybind11::arg("rule"), pybind11::arg("isa"), pybind11::arg("addresses"));
    m.def("source_of_struct", b::source_of_struct, pybind11::arg("rule"), pybind11::arg("name"));
    m.def("reads_decay", b::reads_decay, pybind11::arg("rule"));
    m.def("cache_folder", b::cache_folder);
    m.def("compiled_for", b::compiled_for, pybind11::arg("rule"));
    b::register_machine(m);
    b::register_cuda(m);
    b::register_functions(m);
    b::register_stored(m);
    b::register_plan(m);
    b::register_random(m);
    b::register_batch_on_device(m);
    b::register_hogwild(m);
    b::register_torch_plan(m);
    b::register_work(m);
}
