// Gradients of rows, as Python gives them: a pair (indices, values), or a sparse matrix of SciPy.
#pragma once

#include "arguments.hpp"
#include "rows.hpp"

namespace adaptk::bindings {

detail::SparseMode sparse_mode_value(PyObject* value);

// Whether a gradient is one of rows.
bool is_of_rows(PyObject* grad);

// One integer array of NumPy's, or of a library that shares its memory with NumPy: int32 or int64, in C order.
struct Integers {
    py::object array;
    detail::RowIndex index;
    // Throws TypeError or ValueError that names the argument.
    static Integers take(const py::object& given, const std::string& name, bool written);
    // A copy of what an object on a device holds; waits for the work that its library has on the device.
    static Integers read(const py::object& given, const std::string& name, const Device& device, WorkStream& work);
};

// What a step of one tensor with a gradient of rows needs, for its length.
struct RowGrad {
    detail::RowUpdate update;
    Integers indices, last_step;
    View values;
    std::string label;  // that errors call the values by

    // Takes and checks the gradient. `tensor` has its param and states; its `rows` is set.
    void take(PyObject* grad, const ArgName& name, const View& param, detail::SparseMode mode, const RuleInfo& rule,
              const detail::HyperValues& hyper, ParamUpdate& tensor, WorkStream& work);
    // An ordinary gradient, before which all rows of the tensor catch up.
    void take_whole(const View& param, ParamUpdate& tensor);
    // catch_up: how far each row is, int64 for each row of the param.
    void take_last_step(const Integers& last_step, const std::string& name, const RuleInfo& rule,
                        const detail::HyperValues& hyper);
};

// A param of which rows are stepped: throws ValueError or NotImplementedError.
void check_has_rows(const View& param, const ArgName& grad);

}  // namespace adaptk::bindings
