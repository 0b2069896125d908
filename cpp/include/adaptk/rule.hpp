// What a rule is: one scalar formula, the coefficients that a step computes once for it, and its metadata. The
// registry, the Python functions and classes, the stubs, the tests and the benchmarks are made from these.
#pragma once

#include "adaptk/config.hpp"
#include "adaptk/power.hpp"

#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

ADAPTK_NAMESPACE_BEGIN

enum class Range {
    finite,         // (-inf, inf)
    nonnegative,    // [0, inf)
    positive,       // (0, inf)
    fraction,       // [0, 1)
    unit_interval,  // [0, 1]
    open_fraction,  // (0, 1)
    above_one,      // (1, inf)
    upper_bound,    // [0, inf]
    flag,           // a bool
};

struct Hyperparameter {
    const char* name;
    double value;  // the default, of the convention "book"
    Range range;
    const char* meaning;
};

// What each number of a state belongs to.
//   element         an element: the state has the param's shape
//   tensor          the tensor: the state is one number
//   row, column     a row or column of a matrix: the last axis runs over columns, the one before it over rows, and the
//                   others over matrices
//   slice           an index of the first axis, as in embedding tables
enum class Per : std::uint8_t { element, tensor, row, column, slice };

struct State {
    const char* name;
    double initial;
    const char* from = nullptr;    // the hyperparameter whose value is the initial one, if it is not a constant
    const char* option = nullptr;  // the name of the classes' argument that sets the initial value
    bool nonnegative = false;      // at every step; the 8-bit and 4-bit formats use this
    Per per = Per::element;
};

// A default of another library (torch, keras, tf1, optax) that differs from the one above. The name is that of a
// hyperparameter, or of a state for its initial value. An empty name means that the library has the rule with the
// defaults above.
struct Preset {
    const char* convention;
    const char* name = "";
    double value = 0.0;
};

template <class... P> constexpr auto presets(P... p) { return std::array<Preset, sizeof...(P)>{p...}; }

// A rule is a struct with
//   name, class_name, variant     "rmsprop_centered", "RMSProp", "centered": the class, the options that select it
//   summary, formula, source      one line, the update as text, the paper
//   hyperparameters, states, conventions
//   Hyper                         the hyperparameters as doubles, in their order
//   Coefficients<T>               what does not depend on the element, rounded once to T
//   coefficients<T>(Hyper, t)          computes them in double for step t, counted from 1
//   update<T>(Coefficients, p, g, s..) the formula: changes p and the states in place, with operations in this order
//   Memo                          optional: what coefficients() keeps from one step for the next, its third argument. A
//                                 new one, {}, gives the same results more slowly
//   invalid(Hyper)                optional: why hyperparameters that are each in range are invalid together, or nullptr
//   Common                        optional: the defaults of weight_decay and decoupled, if they differ from 0, false
//   step_use                      optional: what the coefficients need of the step number
//   look_ahead                    optional: the point at which gradients should be taken, if it is not p
//   kept_numbers, continue_from   optional: see Continued
//   idle, idle_steps              optional: see IdleSteps
//   needs_stored_param            optional, true: update's second argument is the param before any decay
struct NoMemo {};

template <class R> struct memo_of {
    using type = NoMemo;
};
template <class R>
    requires requires { typename R::Memo; }
struct memo_of<R> {
    using type = typename R::Memo;
};
template <class R> using memo_of_t = typename memo_of<R>::type;

// An upper bound on the bytes of any Memo.
inline constexpr std::size_t max_memo_bytes = 32;

enum class StepUse : std::uint8_t {
    number,  // the default: coefficients depend on the number of the step
    first,   // only on whether it is the first one
    none,    // not at all
};

// p + hyperparameter * state
struct LookAhead {
    const char* state = nullptr;
    const char* hyper = nullptr;
};

// Some libraries store what a rule keeps from earlier steps as numbers beside its states, such as the product of
// NAdam's momenta in torch.optim. Such a rule has
//   kept_numbers                                       how many there are, besides the count of steps
//   continue_from(Hyper, step, numbers, wide)          makes a Continued for this step, and updates the numbers; wide:
//                                                      which of them are float64; the others are float32
template <class R> struct Continued {
    typename R::Hyper hyper;  // the argument of coefficients()
    std::int64_t step;
    bool has_memo;
    memo_of_t<R> memo;
};

// x rounded to float64 if `wide`, else to float32.
ADAPTK_HOST_DEVICE inline double rounded_as(bool wide, double x) { return wide ? x : double(float(x)); }

inline constexpr std::size_t max_kept_numbers = 2;

template <class R, class T>
ADAPTK_HOST_DEVICE auto coefficients_of(const typename R::Hyper& h, std::int64_t t, memo_of_t<R>& memo) {
    if constexpr (requires { typename R::Memo; }) {
        return R::template coefficients<T>(h, t, memo);
    } else {
        return R::template coefficients<T>(h, t);
    }
}

// A rule with the formula of another rule names that rule as its Kernel.
template <class R> struct kernel_of {
    using type = R;
};
template <class R>
    requires requires { typename R::Kernel; }
struct kernel_of<R> {
    using type = typename R::Kernel;
};
template <class R> using kernel_of_t = typename kernel_of<R>::type;

template <class R>
concept Rule = requires(const typename R::Hyper& h, std::int64_t t, memo_of_t<R>* memo) {
    { R::name } -> std::convertible_to<const char*>;
    { R::class_name } -> std::convertible_to<const char*>;
    { R::variant } -> std::convertible_to<const char*>;
    { R::summary } -> std::convertible_to<const char*>;
    { R::formula } -> std::convertible_to<const char*>;
    { R::source } -> std::convertible_to<const char*>;
    { R::hyperparameters.size() } -> std::convertible_to<std::size_t>;
    { R::states.size() } -> std::convertible_to<std::size_t>;
    { R::conventions.size() } -> std::convertible_to<std::size_t>;
    { coefficients_of<R, float>(h, t, *memo) } -> std::same_as<typename R::template Coefficients<float>>;
    { coefficients_of<R, double>(h, t, *memo) } -> std::same_as<typename R::template Coefficients<double>>;
} && sizeof(typename R::Hyper) == sizeof(double) * R::hyperparameters.size();

// For device code, which may read these but must not call size(), a host function.
template <class R> inline constexpr std::size_t state_count = R::states.size();
template <class R> inline constexpr std::size_t hyper_count = R::hyperparameters.size();

// Every rule takes these four after its own; they act before the formula (see apply_common below).
struct CommonHyper {
    double weight_decay = 0.0;
    double decoupled = 0.0;
    double maximize = 0.0;
    double grad_scale = 1.0;
};

// Their positions after a rule's own.
inline constexpr std::size_t at_weight_decay = 0, at_decoupled = 1, at_maximize = 2, at_grad_scale = 3;

inline constexpr std::array common_hyperparameters{
    Hyperparameter{"weight_decay", 0.0, Range::nonnegative, "weight decay w"},
    Hyperparameter{"decoupled", 0.0, Range::flag,
                   "decay the parameter itself, p = p * (1 - lr * w), instead of adding w * p to the gradient"},
    Hyperparameter{"maximize", 0.0, Range::flag, "maximize: use -g instead of g"},
    Hyperparameter{"grad_scale", 1.0, Range::finite, "factor that gradients are multiplied with first"},
};

inline constexpr std::size_t max_hyperparameters = 20;
inline constexpr std::size_t max_states = 5;
// A param, its gradient and the states.
inline constexpr std::size_t max_buffers = 2 + max_states;

// The effect of n steps with a gradient of 0 on an element, in closed form: first
//   p <- param*p + from_state[0]*(state 0) + from_state[1]*(state 1) + ...
// and then each state is multiplied by its own factor. Rows of a param that had no gradient for a while use it to catch
// up. A rule that has such a form declares how exact it is, and computes it for the factor `shrink` of decoupled decay:
//   static constexpr Idle idle;
//   static IdleSteps idle_steps(const Hyper&, double shrink, std::int64_t n);
struct IdleSteps {
    double param = 1.0;
    double state[max_states] = {1.0, 1.0, 1.0, 1.0, 1.0};
    double from_state[max_states] = {};
};

enum class Idle : std::uint8_t {
    none,         // there is no such form
    exact,        // up to rounding
    approximate,  // moments and the param decay; the changes of the param by the moments are left out
};

// States that decay by a factor per step and do not move the param.
template <class... D> IdleSteps decayed(double shrink, std::int64_t n, D... factors) {
    IdleSteps s;
    s.param = step_power(shrink, n);
    std::size_t i = 0;
    ((s.state[i++] = step_power(factors, n)), ...);
    return s;
}

// The same, but each step decays state number `i` by `mu` and then adds `rate` times that state to the param:
// p_n = r^n*p + rate*s*(mu*r^(n-1) + mu^2*r^(n-2) + ... + mu^n).
inline void add_momentum(IdleSteps& s, std::size_t i, double mu, double rate, double shrink, std::int64_t n) {
    const double difference = mu - shrink;
    const double sum = std::fabs(difference) > 1e-6 * std::fabs(mu)
                           ? mu * (step_power(mu, n) - step_power(shrink, n)) / difference
                           : double(n) * step_power(mu, n);
    s.from_state[i] = rate * sum;
}

// What happens to the gradient and the parameter before the rule's formula:
//   g <- grad_scale * g, negated to maximize;  g <- g + w * p (coupled)  or  p <- p * (1 - lr * w) (decoupled).
// Negation is exact, so it is folded into the scale, and p * 1 is exact, so "no decay" is a shrink of 1. Coupled decay
// needs its own code: g + 0 * p is not g if p is infinite or g is -0.
template <class T> struct CommonCoefficients {
    T grad_scale;
    T decay;   // w, if coupled
    T shrink;  // 1 - lr * w if decoupled, else 1
    bool coupled;
};

template <class T> ADAPTK_HOST_DEVICE CommonCoefficients<T> common_coefficients(double lr, const CommonHyper& h) {
    const bool decoupled = h.decoupled != 0.0;
    return {T(h.maximize != 0.0 ? -h.grad_scale : h.grad_scale), T(decoupled ? 0.0 : h.weight_decay),
            T(decoupled ? 1.0 - lr * h.weight_decay : 1.0), h.weight_decay != 0.0 && !decoupled};
}

template <bool Coupled, class T> ADAPTK_HD void apply_common(const CommonCoefficients<T>& c, T& p, T& g) {
    g = c.grad_scale * g;
    if constexpr (Coupled) {
        g = g + c.decay * p;
    } else {
        p = p * c.shrink;
    }
}

// One step's coefficients for one rule and compute type, as kernels receive them.
template <class R, class T> struct StepCoefficients {
    CommonCoefficients<T> common;
    typename R::template Coefficients<T> rule;
};

// Updates one element. A rule with `needs_stored_param` also gets the stored param, before any decay.
template <class R, bool Coupled, class T, class... S>
ADAPTK_HD void update_element(const StepCoefficients<R, T>& c, T& p, T& g, S&... states) {
    if constexpr (requires { R::needs_stored_param; }) {
        const T stored = p;
        apply_common<Coupled>(c.common, p, g);
        R::update(c.rule, stored, p, g, states...);
    } else {
        apply_common<Coupled>(c.common, p, g);
        R::update(c.rule, p, g, states...);
    }
}

// The coefficients of step t from a rule's own hyperparameters followed by the common ones. The gradient's scale is a
// separate argument because clipping changes it after the hyperparameters are known.
template <class R, class T>
ADAPTK_HOST_DEVICE StepCoefficients<R, T> step_coefficients(const double* h, double grad_scale, std::int64_t t,
                                                            memo_of_t<R>& memo) {
    constexpr std::size_t count = hyper_count<R>;
    typename R::Hyper own;  // with the weight decay if the rule is a program that reads it
    static_assert(sizeof own >= count * sizeof(double) && std::is_trivially_copyable_v<typename R::Hyper>);
    std::memcpy(&own, h, sizeof own);
    const CommonHyper common{h[count + at_weight_decay], h[count + at_decoupled], h[count + at_maximize], grad_scale};
    return {common_coefficients<T>(h[0], common), coefficients_of<R, T>(own, t, memo)};
}

template <class... R> struct RuleList {
    static constexpr std::size_t size = sizeof...(R);
};

ADAPTK_NAMESPACE_END
