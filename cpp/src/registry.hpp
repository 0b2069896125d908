// The list of rules as data: what runtime callers (bindings, C ABI, tests) see of the templates.
#pragma once

#include "export.hpp"

#include "adaptk/rules.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace adaptk::detail {

// A rule's own hyperparameters followed by the common ones, in the registry's order.
struct HyperValues {
    double value[max_hyperparameters];
};

struct RuleInfo {
    std::size_t index;  // in the list of rules
    const char* name;
    const char* class_name;
    const char* variant;
    const char* summary;
    const char* formula;
    const char* source;
    std::span<const Hyperparameter> own;
    std::span<const State> states;
    std::span<const Preset> conventions;
    CommonHyper common;
    const char* (*invalid)(const HyperValues& h);  // see rule.hpp; nullptr where the values go together

    std::size_t hyper_count() const { return own.size() + common_hyperparameters.size(); }
    ADAPTK_INTERNAL_API Hyperparameter hyper(std::size_t i) const;  // with the rule's own default
    double weight_decay(const HyperValues& h) const { return h.value[own.size()]; }
    bool decoupled(const HyperValues& h) const { return h.value[own.size() + 1] != 0.0; }
    double grad_scale(const HyperValues& h) const { return h.value[own.size() + 3]; }
    bool coupled_decay(const HyperValues& h) const { return weight_decay(h) != 0.0 && !decoupled(h); }
};

ADAPTK_INTERNAL_API std::span<const RuleInfo> rules();
ADAPTK_INTERNAL_API const RuleInfo* find_rule(std::string_view name);

ADAPTK_INTERNAL_API bool in_range(Range range, double x);  // false for NaN
ADAPTK_INTERNAL_API const char* range_text(Range range);   // "[0, 1)"

}  // namespace adaptk::detail
