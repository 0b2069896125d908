// Registers what adaptk.init is made of.
#pragma once

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

void register_random(pybind11::module_& m);

}  // namespace adaptk::bindings
