// A rule that was made at run time as C++: for programs that compile it, and for what is compiled while one runs.
#pragma once

#include "export.hpp"
#include "registry.hpp"

#include <string>
#include <string_view>

namespace adaptk::detail {

// A struct as adaptk/run.hpp wants it. Its coefficients are the constants of Program::coefficients, in that order.
// Of a rule with reductions, coefficients has what those to one number come to as a third argument, and each pass that
// measures them is a struct more: NAMEPass0 and so on (cuda/measure_kernel.hpp). What there is one number for each row
// or column of comes from an argument of update() more (cuda/line_numbers.hpp).
// Hyper has the rule's own hyperparameters and, if the rule reads them, weight_decay and decoupled behind those.
ADAPTK_INTERNAL_API std::string source_of_struct(const RuleInfo& rule, std::string_view name);

// Whether the rule reads weight_decay or decoupled.
ADAPTK_INTERNAL_API bool reads_decay(const RuleInfo& rule);

}  // namespace adaptk::detail
