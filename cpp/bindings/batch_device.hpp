#pragma once

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

// Adds fit_batch_on_device and has_batch_kernel.
void register_batch_on_device(pybind11::module_& m);

}  // namespace adaptk::bindings
