// The work behind an optimizer object: parameters and states bound once, gradients read at each step.
#pragma once

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

void register_plan(pybind11::module_& m);

}  // namespace adaptk::bindings
