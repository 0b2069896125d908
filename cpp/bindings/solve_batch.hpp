#pragma once

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

// Adds levenberg_marquardt_batch and what tests need of its models.
void register_batch(pybind11::module_& m);

}  // namespace adaptk::bindings
