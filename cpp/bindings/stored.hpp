// Params and states in formats that a dtype alone does not name: (codes, scales), or (data, scales or None, name of the
// format).
#pragma once

#include "buffers.hpp"
#include "registry.hpp"
#include "step.hpp"

namespace adaptk::bindings {

// The objects of a state, as it is given.
struct StoredState {
    py::object data, scales;  // scales: null if there are none
    const detail::FormatInfo* named = nullptr;
};

// Throws TypeError or ValueError that names the argument.
StoredState read_stored(PyObject* state, const ArgName& name);

// Takes and checks a state beside its param; `scales` is taken if the format has some.
detail::Slot take_state(const StoredState& state, const ArgName& name, const View& param, View& data, View& scales,
                        WorkStream& work, bool is_written = true);

inline detail::Slot take_state(PyObject* state, const ArgName& name, const View& param, View& data, View& scales,
                               WorkStream& work) {
    if (PyTuple_Check(state)) return take_state(read_stored(state, name), name, param, data, scales, work);
    View::take(state, name, data, work);
    check_state(data, name, param);
    return {data.data, data.dtype};
}

// Throws if the rule keeps one number for each row, and not all buffers of the param can be stepped row by row. The
// names are those of the buffers.
void check_rows_of_rule(const detail::RuleInfo& rule, const View& param, const ArgName& name,
                        const detail::ParamUpdate& update);

// The same of a rule's state number s, which may have one number for more than an element.
detail::Slot take_state_of(const detail::RuleInfo& rule, std::size_t s, const StoredState& state, const ArgName& name,
                           const View& param, View& data, View& scales, WorkStream& work);

// Tells an update the shape of its param, if the rule has to know it.
void set_shape(ParamUpdate& update, const detail::RuleInfo& rule, const ArgName& name, const View& param);

// What lies beside a param that is split so is called; null if nothing does.
const char* side_name(detail::ParamFormat format);

// Takes and checks a param that is to be stored in this format: a buffer, or a pair of buffers if it is split.
detail::Slot take_param(PyObject* param, const ArgName& name, detail::ParamFormat format, View& data, View& side,
                        WorkStream& work, bool is_written = true);

void register_stored(py::module_& m);

}  // namespace adaptk::bindings
