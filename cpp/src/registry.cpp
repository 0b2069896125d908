#include "registry.hpp"

#include "dispatch.hpp"
#include "rule_program.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace adaptk::detail {
namespace {

template <class R> typename R::Hyper own_hyper(const HyperValues& h) {
    typename R::Hyper own;
    static_assert(std::is_trivially_copyable_v<typename R::Hyper>);
    std::memcpy(&own, h.value, sizeof own);
    return own;
}

template <class R> constexpr bool checked() {
    static_assert(R::hyperparameters.size() + common_hyperparameters.size() <= max_hyperparameters);
    static_assert(R::states.size() < max_written);
    static_assert(std::string_view(R::hyperparameters[0].name) == "lr");
    return true;
}

template <class R> const char* check(const HyperValues& h) {
    if constexpr (requires { R::invalid(own_hyper<R>(h)); }) {
        return R::invalid(own_hyper<R>(h));
    } else {
        return nullptr;
    }
}

template <class R> constexpr CommonHyper common_of() {
    if constexpr (requires { R::Common; }) {
        return R::Common;
    } else {
        return {};
    }
}

template <class R> constexpr StepUse step_use_of() {
    if constexpr (requires { R::step_use; }) {
        return R::step_use;
    } else {
        return StepUse::number;
    }
}

template <class Items> constexpr std::size_t place_of(const Items& items, const char* name) {
    for (std::size_t i = 0; i < items.size(); ++i)
        if (std::string_view(items[i].name) == name) return i;
    return RuleInfo::nowhere;
}

template <class R> void place_look_ahead(RuleInfo& rule) {
    rule.ahead_state = rule.ahead_hyper = RuleInfo::nowhere;
    if constexpr (requires { R::look_ahead; }) {
        constexpr std::size_t state = place_of(R::states, R::look_ahead.state);
        constexpr std::size_t hyper = place_of(R::hyperparameters, R::look_ahead.hyper);
        static_assert(state != RuleInfo::nowhere && hyper != RuleInfo::nowhere);
        rule.ahead_state = state;
        rule.ahead_hyper = hyper;
    }
}

template <class R>
void continue_from(const HyperValues& h, double step, double* numbers, const bool* wide, ContinuedStep& out) {
    static_assert(R::kept_numbers <= max_kept_numbers);
    const Continued<R> made = R::continue_from(own_hyper<R>(h), step, numbers, wide);
    out.hyper = h;
    std::memcpy(out.hyper.value, &made.hyper, sizeof made.hyper);
    out.step = made.step;
    out.has_memo = made.has_memo;
    std::memset(out.memo, 0, sizeof out.memo);
    std::memcpy(out.memo, &made.memo, sizeof made.memo);
}

template <class R> void place_kept_numbers(RuleInfo& rule) {
    if constexpr (requires { R::kept_numbers; }) {
        rule.kept_numbers = R::kept_numbers;
        rule.continue_from = continue_from<R>;
    }
}

template <class R> void idle_steps(const HyperValues& h, double shrink, std::int64_t n, IdleSteps& out) {
    out = R::idle_steps(own_hyper<R>(h), shrink, n);
}

template <class R> void set_idle_steps(RuleInfo& rule) {
    if constexpr (requires { R::idle; }) {
        rule.idle = R::idle;
        rule.idle_steps = idle_steps<R>;
    }
}

// Indexed by rule and instruction set.
const RuleCode* code_of(std::size_t rule) {
    static const std::vector<RuleCode> all = [] {
        std::vector<RuleCode> code;
        for (std::size_t r = 0; r < Rules::size; ++r) {
            for (const Isa& isa : built_isas()) {
                RuleCode& c = code.emplace_back();
                std::memcpy(c.step, isa.kernels->rule[r].step, sizeof c.step);
                c.stored = isa.kernels->rule[r].stored;
                std::memcpy(c.prepare, isa.coefficients->prepare[r], sizeof c.prepare);
            }
        }
        return code;
    }();
    return all.data() + rule * built_isas().size();
}

// The same for rules that keep one number for each row.
const RuleCode* code_of_row_wise(std::size_t rule) {
    static const std::vector<RuleCode> all = [] {
        std::vector<RuleCode> code;
        for (std::size_t r = 0; r < RowWiseRules::size; ++r) {
            for (const Isa& isa : built_isas()) {
                RuleCode& c = code.emplace_back();
                c.row_wise = isa.row_wise->rule[r];
                for (int type = 0; type < 2; ++type)
                    for (int coupled = 0; coupled < 2; ++coupled)
                        c.step[type][coupled] = c.row_wise[type][coupled].step;
                std::memcpy(c.prepare, isa.coefficients->prepare_row_wise[r], sizeof c.prepare);
            }
        }
        return code;
    }();
    return all.data() + rule * built_isas().size();
}

template <class R> RuleInfo make_info(std::size_t index) {
    RuleInfo rule{};
    rule.index = index;
    rule.key = rule.name = R::name;
    rule.class_name = R::class_name;
    rule.variant = R::variant;
    rule.summary = R::summary;
    rule.formula = R::formula;
    rule.source = R::source;
    rule.own = R::hyperparameters;
    rule.states = R::states;
    rule.conventions = R::conventions;
    rule.common = common_of<R>();
    rule.step_use = step_use_of<R>();
    place_look_ahead<R>(rule);
    place_kept_numbers<R>(rule);
    set_idle_steps<R>(rule);
    rule.invalid = check<R>;
    if constexpr (row_state<R> < state_count<R>) {
        rule.row_state = row_state<R>;
        rule.index = RuleInfo::nowhere;
        rule.code = {code_of_row_wise(index), built_isas().size()};
    } else {
        rule.code = {code_of(index), built_isas().size()};
    }
    return rule;
}

template <class... R> std::array<RuleInfo, sizeof...(R)> make_registry(RuleList<R...>) {
    static_assert((Rule<R> && ...) && (checked<R>() && ...));
    std::size_t index = 0;
    return {make_info<R>(index++)...};
}

}  // namespace

std::span<const RuleInfo> rules() {
    static const auto registry = make_registry(Rules{});
    return registry;
}

std::span<const RuleInfo> row_wise_rules() {
    static const auto registry = make_registry(RowWiseRules{});
    return registry;
}

const RuleInfo* find_rule(std::string_view key) {
    for (const std::span<const RuleInfo> list : {rules(), row_wise_rules()})
        for (const RuleInfo& r : list)
            if (key == r.key) return &r;
    return find_program(key);
}

std::string unknown_rule(std::string_view name) {
    std::string text = "unknown rule '" + std::string(name) + "'";
#if defined(ADAPTK_CHOSEN_RULES)
    text += "; this library was built with " + std::string(chosen_rules) + " (ADAPTK_RULES)";
#else
    const char* separator = "; the rules are ";
    for (const RuleInfo& r : rules()) {
        text += std::string(separator) + r.key;
        separator = ", ";
    }
#endif
    return text;
}

Hyperparameter RuleInfo::hyper(std::size_t i) const {
    if (i < own.size()) return own[i];
    i -= own.size();
    Hyperparameter h = common_hyperparameters[i];
    const double defaults[] = {common.weight_decay, common.decoupled, common.maximize, common.grad_scale};
    h.value = defaults[i];
    return h;
}

bool in_range(Range range, double x) {
    const bool finite = std::isfinite(x);
    switch (range) {
    case Range::finite: return finite;
    case Range::nonnegative: return finite && x >= 0.0;
    case Range::positive: return finite && x > 0.0;
    case Range::fraction: return x >= 0.0 && x < 1.0;
    case Range::unit_interval: return x >= 0.0 && x <= 1.0;
    case Range::open_fraction: return x > 0.0 && x < 1.0;
    case Range::above_one: return finite && x > 1.0;
    case Range::upper_bound: return x >= 0.0;
    case Range::flag: return x == 0.0 || x == 1.0;
    }
    return false;
}

const char* range_text(Range range) {
    switch (range) {
    case Range::finite: return "(-inf, inf)";
    case Range::nonnegative: return "[0, inf)";
    case Range::positive: return "(0, inf)";
    case Range::fraction: return "[0, 1)";
    case Range::unit_interval: return "[0, 1]";
    case Range::open_fraction: return "(0, 1)";
    case Range::above_one: return "(1, inf)";
    case Range::upper_bound: return "[0, inf]";
    case Range::flag: return "bool";
    }
    return "";
}

}  // namespace adaptk::detail
