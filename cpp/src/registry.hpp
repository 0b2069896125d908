// The list of rules as data, for callers that choose a rule at run time (bindings, C ABI, tests).
#pragma once

#include "coefficients.hpp"
#include "export.hpp"
#include "kernel_table.hpp"
#include "row_kernels.hpp"

#include "adaptk/rules.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace adaptk::detail {

// A rule's own hyperparameters followed by the common ones, in the registry's order.
struct HyperValues {
    double value[max_hyperparameters];
};

// What a step runs: the code of one rule for one instruction set.
struct RuleCode {
    StepKernel step[2][2];  // [0 float, 1 double][coupled decay]
    PrepareCoefficients prepare[2];
    StoredKernel stored;                            // null if there is none
    const RowWiseKernels (*row_wise)[2] = nullptr;  // of rules that keep one number for each row; indexed as `step`
};

// See adaptk::Continued.
struct ContinuedStep {
    HyperValues hyper;
    std::int64_t step;
    bool has_memo;
    alignas(8) std::byte memo[max_memo_bytes];
    std::int64_t drawn_step;  // for random bits; 0: `step`
};

class Program;

// A rule as data. Those of the list are in rules(); one that is made at run time is an object like them.
struct RuleInfo {
    static constexpr std::size_t nowhere = ~std::size_t{0};

    std::size_t index;  // in the list of rules; `nowhere`: not in it
    const char* key;    // for find_rule: the name, or a key that stays unique if other rules take the name
    const char* name;
    const char* class_name;
    const char* variant;
    const char* summary;
    const char* formula;
    const char* source;
    const char* evaluation = "";  // of a program: the rule that computes the point to evaluate at, if it is not p
    std::span<const Hyperparameter> own;
    std::span<const State> states;
    std::span<const Preset> conventions;
    CommonHyper common;
    StepUse step_use;
    // If gradients are taken ahead of p: the indices of the state and of the hyperparameter. Else `nowhere`.
    std::size_t ahead_state, ahead_hyper;
    std::size_t kept_numbers;
    std::size_t row_state = nowhere;  // that has one number for each slice of a param (row_wise.hpp)
    // See IdleSteps in rule.hpp; nullptr: there is no closed form. `shrink`: the factor of decoupled decay.
    Idle idle;
    void (*idle_steps)(const HyperValues& h, double shrink, std::int64_t n, IdleSteps& out);
    const char* (*invalid)(const HyperValues& h);  // see rule.hpp; nullptr if the values are valid together
    void (*continue_from)(const HyperValues& h, double step, double* numbers, const bool* wide, ContinuedStep& out);
    std::span<const RuleCode> code;    // by the number of the instruction set (dispatch.hpp)
    const Program* program = nullptr;  // that the code interprets (rule_program.hpp); null: compiled
    bool measures = false;             // whether that program has passes over whole tensors before the update

    std::size_t hyper_count() const { return own.size() + common_hyperparameters.size(); }
    ADAPTK_INTERNAL_API Hyperparameter hyper(std::size_t i) const;  // with the rule's own default
    std::size_t buffers() const { return 2 + states.size(); }
    bool is_row_wise() const { return row_state != nowhere; }
    // Whether some states do not have a number for each element.
    bool has_numbers() const {
        for (const State& s : states)
            if (s.per != Per::element) return true;
        return false;
    }
    double weight_decay(const HyperValues& h) const { return h.value[own.size() + at_weight_decay]; }
    bool decoupled(const HyperValues& h) const { return h.value[own.size() + at_decoupled] != 0.0; }
    bool maximize(const HyperValues& h) const { return h.value[own.size() + at_maximize] != 0.0; }
    double grad_scale(const HyperValues& h) const { return h.value[own.size() + at_grad_scale]; }
    bool is_weight_decay(std::size_t hyper) const { return hyper == own.size() + at_weight_decay; }
    bool is_grad_scale(std::size_t hyper) const { return hyper == own.size() + at_grad_scale; }
    bool coupled_decay(const HyperValues& h) const { return weight_decay(h) != 0.0 && !decoupled(h); }
};

ADAPTK_INTERNAL_API std::span<const RuleInfo> rules();
// The rules that keep one number for each row. They are not in the list, but find_rule() finds them.
ADAPTK_INTERNAL_API std::span<const RuleInfo> row_wise_rules();
ADAPTK_INTERNAL_API const RuleInfo* find_rule(std::string_view key);
std::string unknown_rule(std::string_view name);  // the message

ADAPTK_INTERNAL_API bool in_range(Range range, double x);  // false for NaN
ADAPTK_INTERNAL_API const char* range_text(Range range);   // "[0, 1)"

}  // namespace adaptk::detail
