// Registers what adaptk.hogwild is made of.
#pragma once

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

void register_hogwild(pybind11::module_& m);

}  // namespace adaptk::bindings
