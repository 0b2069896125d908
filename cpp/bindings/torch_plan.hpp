// The step of a torch.optim.Optimizer: everything is read anew from its param groups and its state, where it may have
// been changed by anyone, and what is still as it was costs a few comparisons.
#pragma once

#include <pybind11/pybind11.h>

namespace adaptk::bindings {

void register_torch_plan(pybind11::module_& m);

}  // namespace adaptk::bindings
