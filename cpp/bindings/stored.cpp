#include "stored.hpp"

#include "rule_program.hpp"

#include "arguments.hpp"
#include "rows.hpp"
#include "step.hpp"

#include "adaptk/rounding.hpp"

#include <string>

namespace adaptk::bindings {
namespace {

const detail::FormatInfo& format_of(PyObject* name, const ArgName& argument) {
    const char* const text = PyUnicode_AsUTF8(name);
    if (text == nullptr) throw py::error_already_set();
    if (const detail::FormatInfo* f = detail::find_format(text)) return *f;
    fail(PyExc_ValueError, argument.text() + ": " + detail::unknown_format(text));
}

// What encode() and decode() work on: a state, and as many float32 numbers.
struct Conversion {
    View data, scales, values;
    detail::Slot slot;
    WorkStream work;

    // Either the state or the numbers are written.
    Conversion(const py::object& state, const py::object& floats, bool written) {
        take_values(floats, written);
        const bool is_tuple = PyTuple_Check(state.ptr()) != 0;
        const StoredState stored = is_tuple ? read_stored(state.ptr(), {"state"}) : StoredState{state, {}};
        slot = take_state(stored, {"state"}, values, data, scales, work, !written);
    }
    // A param, in the place of a state.
    Conversion(const py::object& param, const py::object& format, const py::object& floats, bool written) {
        take_values(floats, written);
        const ArgName name{"param"};
        slot = take_param(param.ptr(), name, param_format_value(format.ptr()), data, scales, work, !written);
        if (!detail::lies_beside(data, values)) fail(detail::why_no_grad(data, values), name);
    }
    float* floats() const { return static_cast<float*>(values.data); }

  private:
    // Numbers that are read are an argument of the caller's.
    void take_values(const py::object& floats, bool written) {
        const ArgName name{written ? "values" : "x"};
        View::take(floats, name, values, work);
        if (values.dtype != Format::float32 || !values.c_order)
            fail(PyExc_TypeError, name.text() + ": expected float32 in C order");
        if (values.device.cuda)
            fail(PyExc_ValueError, name.text() + ": on " + values.device.text() + ", expected the CPU");
        if (written && values.read_only) fail(PyExc_ValueError, name.text() + ": read-only");
    }
};

// Rounded as buffer `buffer` of tensor `tensor` is at a step.
void encode(const py::object& values, const py::object& state, const py::object& seed, const py::object& step,
            std::uint32_t tensor, std::uint32_t buffer) {
    const std::uint64_t key = buffer_key(step_key(seed_value(seed.ptr()), step_value(step.ptr())), tensor, buffer);
    const Conversion c(state, values, false);
    const MaybeReleaseGil released(is_long(c.values.size));
    detail::encode(c.floats(), c.slot, c.values.size, key);
}

void decode(const py::object& state, const py::object& values) {
    const Conversion c(state, values, true);
    const MaybeReleaseGil released(is_long(c.values.size));
    detail::decode(c.slot, c.floats(), c.values.size);
}

void encode_param(const py::object& values, const py::object& param, const py::object& format) {
    const Conversion c(param, format, values, false);
    const MaybeReleaseGil released(is_long(c.values.size));
    detail::encode(c.floats(), c.slot, c.values.size, 0);
}

void decode_param(const py::object& param, const py::object& values, const py::object& format) {
    const Conversion c(param, format, values, true);
    const MaybeReleaseGil released(is_long(c.values.size));
    detail::decode(c.slot, c.floats(), c.values.size);
}

py::list list_formats() {
    py::list all;
    for (const detail::FormatInfo& f : detail::formats()) {
        py::dict facts;
        facts["name"] = f.name;
        facts["bytes"] = f.bytes;
        facts["block"] = f.block;
        facts["packed"] = 1 << f.packed_bits;
        facts["stochastic"] = f.stochastic;
        facts["split"] = f.split;
        facts["compute"] = name_of(f.compute);
        all.append(facts);
    }
    return all;
}

}  // namespace

StoredState read_stored(PyObject* state, const ArgName& name) {
    const py::ssize_t n = PyTuple_GET_SIZE(state);
    const auto item = [&](py::ssize_t i) { return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(state, i)); };
    if (n != 2 && (n != 3 || PyUnicode_Check(PyTuple_GET_ITEM(state, 2)) == 0))
        fail(PyExc_TypeError, name.text() + ": a tuple of " + std::to_string(n) +
                                  ", expected a buffer, (codes, scales) or (data, scales, format)");
    StoredState s{item(0), {}};
    if (n == 3) s.named = &format_of(PyTuple_GET_ITEM(state, 2), name);
    if (!item(1).is_none()) s.scales = item(1);
    return s;
}

detail::Slot take_state(const StoredState& state, const ArgName& name, const View& param, View& data, View& scales,
                        WorkStream& work, bool is_written) {
    View::take(state.data, name, data, work, true);
    if (!is_written) data.read_only = false;
    if (state.named != nullptr && state.named->id != data.dtype)
        if (const auto problem = detail::read_as(*state.named, data)) fail(*problem, name);
    check_state(data, name, param);
    if (!has_side(data.dtype)) {
        if (state.scales)
            fail(PyExc_TypeError, name.text() + ": scales beside " + name_of(data.dtype) + ", which has none");
        return {data.data, data.dtype};
    }
    const std::string label = name.text() + ", scales";
    if (!state.scales) fail(PyExc_TypeError, label + ": None, expected a buffer of float32");
    View::take(state.scales, {label.c_str()}, scales, work);
    if (!is_written) scales.read_only = false;
    if (const auto problem = detail::why_no_scales(scales, data)) fail(*problem, {label.c_str()});
    return {data.data, data.dtype, scales.data};
}

void check_rows_of_rule(const detail::RuleInfo& rule, const View& param, const ArgName& name,
                        const detail::ParamUpdate& update) {
    if (!rule.is_row_wise()) return;
    if (const auto problem = detail::why_no_param_of_rows(param)) fail(*problem, name);
    const std::int64_t rows = detail::rows_of(param);
    std::size_t buffer = 0;
    if (const char* const reason =
            detail::why_no_rows(update, rule.buffers(), rows == 0 ? 0 : param.size / rows, buffer))
        fail(PyExc_ValueError, name.text() +
                                   (buffer == 0 ? std::string() : std::string(", ") + rule.states[buffer - 2].name) +
                                   ": stored as " + name_of(update.format[buffer]) + ", " + reason);
}

detail::Slot take_state_of(const detail::RuleInfo& rule, std::size_t s, const StoredState& state, const ArgName& name,
                           const View& param, View& data, View& scales, WorkStream& work) {
    const Per per = rule.states[s].per;
    if (per == Per::element) {
        if (state.scales || state.named != nullptr) return take_state(state, name, param, data, scales, work);
        return take_state(state.data.ptr(), name, param, data, scales, work);
    }
    if (state.scales || state.named != nullptr || PyTuple_Check(state.data.ptr()))
        fail(PyExc_TypeError, name.text() + ": a pair, expected an array: numbers for a whole tensor, a row, a column "
                                            "or a slice have no other formats");
    View::take(state.data, name, data, work);
    if (const auto problem = detail::why_no_numbers(data, param, per)) fail(*problem, name);
    return {data.data, data.dtype};
}

void set_shape(ParamUpdate& update, const detail::RuleInfo& rule, const ArgName& name, const View& param) {
    if (rule.measures && rule.program->has_lines())
        if (const auto problem = detail::why_no_lines(param)) fail(*problem, name);
    detail::set_shape(update, rule, param.ndim, param.shape);
}

const char* side_name(detail::ParamFormat format) {
    switch (format) {
    case detail::ParamFormat::remainder16:
    case detail::ParamFormat::remainder8: return "remainder";
    case detail::ParamFormat::kahan: return "compensation";
    default: return nullptr;
    }
}

detail::Slot take_param(PyObject* param, const ArgName& name, detail::ParamFormat format, View& data, View& side,
                        WorkStream& work, bool is_written) {
    const bool pair = PyTuple_Check(param) != 0;
    if (pair && PyTuple_GET_SIZE(param) != 2)
        fail(PyExc_TypeError, name.text() + ": a tuple of " + std::to_string(PyTuple_GET_SIZE(param)) +
                                  ", expected a buffer or a pair of buffers");
    View::take(pair ? PyTuple_GET_ITEM(param, 0) : param, name, data, work);
    if (!is_written) data.read_only = false;
    check_param(data, name);
    detail::Slot slot{data.data, data.dtype};
    if (const auto problem = detail::store_param_as(format, data, slot.format)) fail(*problem, name);
    if (pair != has_side(slot.format)) {
        if (pair)
            fail(PyExc_TypeError, name.text() + ": a pair of buffers, expected one: with this param_format " +
                                      name_of(data.dtype) + " params have nothing beside them");
        const std::string beside = side_name(format);
        fail(PyExc_TypeError, name.text() + ": one buffer, expected the pair (param, " + beside +
                                  "); adaptk.formats.split_param() makes one");
    }
    if (!pair) return slot;
    const std::string label = name.text() + ", " + side_name(format);
    View::take(PyTuple_GET_ITEM(param, 1), {label.c_str()}, side, work, true);
    if (!is_written) side.read_only = false;
    if (const auto problem = detail::why_no_side(side, data, slot.format)) fail(*problem, {label.c_str()});
    slot.side = side.data;
    return slot;
}

void register_stored(py::module_& m) {
    m.def("formats", list_formats);
    m.def("encode", encode, py::arg("values"), py::arg("state"), py::arg("seed"), py::arg("step"), py::arg("tensor"),
          py::arg("buffer"));
    m.def("encode_param", encode_param, py::arg("values"), py::arg("param"), py::arg("format"));
    m.def("decode_param", decode_param, py::arg("param"), py::arg("values"), py::arg("format"));
    m.def("decode", decode, py::arg("state"), py::arg("values"));
}

}  // namespace adaptk::bindings
