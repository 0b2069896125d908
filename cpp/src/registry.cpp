#include "registry.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

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
    static_assert(R::states.size() <= max_states);
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

template <class... R> std::array<RuleInfo, sizeof...(R)> make_registry(RuleList<R...>) {
    static_assert((Rule<R> && ...) && (checked<R>() && ...));
    std::size_t index = 0;
    return {RuleInfo{index++, R::name, R::class_name, R::variant, R::summary, R::formula, R::source, R::hyperparameters,
                     R::states, R::conventions, common_of<R>(), check<R>}...};
}

}  // namespace

std::span<const RuleInfo> rules() {
    static const auto registry = make_registry(Rules{});
    return registry;
}

const RuleInfo* find_rule(std::string_view name) {
    for (const RuleInfo& r : rules())
        if (name == r.name) return &r;
    return nullptr;
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
