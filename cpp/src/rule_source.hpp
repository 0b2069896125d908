// The C++ source of a rule that was made at run time, for programs that compile it, and for compilation at run time.
#pragma once

#include "export.hpp"
#include "registry.hpp"

#include <string>
#include <string_view>

namespace adaptk::detail {

// A struct for adaptk/run.hpp. Its coefficients are the constants of Program::coefficients, in that order. If the rule
// has reductions, the results of those to one number are a third argument of coefficients, and each pass of reductions
// is a further struct: NAMEPass0 and so on (cuda/measure_kernel.hpp). Values with one number for each row or column
// come from a further argument of update() (cuda/line_numbers.hpp). Hyper has the rule's own hyperparameters and, if
// the rule reads them, weight_decay and decoupled after these.
ADAPTK_INTERNAL_API std::string source_of_struct(const RuleInfo& rule, std::string_view name);

// Whether the rule reads weight_decay or decoupled.
ADAPTK_INTERNAL_API bool reads_decay(const RuleInfo& rule);

}  // namespace adaptk::detail
