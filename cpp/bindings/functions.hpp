// adaptk.ops: one function a rule.
#pragma once

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

void register_functions(pybind11::module_& m);

}  // namespace adaptk::bindings
