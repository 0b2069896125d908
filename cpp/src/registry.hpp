// The list of rules as data: what runtime callers (bindings, C ABI, tests) see of the templates.
#pragma once

#include "adaptk/rules.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace adaptk::detail {

inline constexpr std::size_t max_scalars_bytes = 128;

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
    // Writes the StepScalars<R, T> of step t for T = float [0] and double [1]: step_scalars. A memo that the caller
    // keeps (see rule.hpp; a copy of R::Memo) stands for the steps before t; without one they are taken as the values
    // say.
    void (*prepare[2])(const HyperValues& h, double grad_scale, std::int64_t t, void* scalars, const void* memo);
    const char* (*invalid)(const HyperValues& h);  // see rule.hpp; nullptr where the values go together

    std::size_t hyper_count() const { return own.size() + common_hyperparameters.size(); }
    Hyperparameter hyper(std::size_t i) const;  // with the rule's own default
    double weight_decay(const HyperValues& h) const { return h.value[own.size()]; }
    bool decoupled(const HyperValues& h) const { return h.value[own.size() + 1] != 0.0; }
    double grad_scale(const HyperValues& h) const { return h.value[own.size() + 3]; }
    bool coupled_decay(const HyperValues& h) const { return weight_decay(h) != 0.0 && !decoupled(h); }
};

std::span<const RuleInfo> rules();
const RuleInfo* find_rule(std::string_view name);

bool in_range(Range range, double x);  // false for NaN
const char* range_text(Range range);   // "[0, 1)"

}  // namespace adaptk::detail
