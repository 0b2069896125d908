// What a rule is: one scalar formula, the scalars that a step computes once for it, and the facts about it that the
// registry, the Python functions and classes, the stubs, the tests and the benchmarks are made from.
#pragma once

#include "adaptk/config.hpp"

#include <array>
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
    double value;  // the book's default
    Range range;
    const char* meaning;
};

struct State {
    const char* name;
    double initial;
    const char* from = nullptr;    // the hyperparameter whose value is the initial one, where it is not a constant
    const char* option = nullptr;  // the name of the classes' argument that sets the initial value
};

// What a system (torch, keras, tf1, optax) has where the book has another value. The name is a hyperparameter or a
// state (then the value is its initial one); an empty name says that the system has the rule with the values above.
struct Preset {
    const char* convention;
    const char* name = "";
    double value = 0.0;
};

template <class... P> constexpr auto presets(P... p) { return std::array<Preset, sizeof...(P)>{p...}; }

// A rule is a struct with
//   name, class_name, variant     "rmsprop_centered", "RMSProp", "centered": the class and its options that pick it
//   summary, formula, source      one line, the update as text, the paper
//   hyperparameters, states, conventions
//   Hyper                         the hyperparameters as doubles, in their order
//   Scalars<T>                    what does not depend on the element, rounded once to T
//   scalars<T>(Hyper, t)          computes them in double for step t, counted from 1
//   update<T>(Scalars, p, g, s..) the formula: p and the states in place, one operation after the other as written
//   Memo                          optional: what scalars carries on from one step to the next, its third argument; one
//                                 that says {} is as good as any, only slower
//   invalid(Hyper)                optional: why hyperparameters that are each in range do not go together, or nullptr
//   Common                        optional: the defaults of weight_decay and decoupled where they differ from 0, false
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

// Bytes that any rule's Memo fits into.
inline constexpr std::size_t max_memo_bytes = 32;

template <class R, class T>
ADAPTK_HOST_DEVICE auto scalars_of(const typename R::Hyper& h, std::int64_t t, memo_of_t<R>& memo) {
    if constexpr (requires { typename R::Memo; }) {
        return R::template scalars<T>(h, t, memo);
    } else {
        return R::template scalars<T>(h, t);
    }
}

// Rules that compute another rule's formula name it as their Kernel.
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
    { scalars_of<R, float>(h, t, *memo) } -> std::same_as<typename R::template Scalars<float>>;
    { scalars_of<R, double>(h, t, *memo) } -> std::same_as<typename R::template Scalars<double>>;
} && sizeof(typename R::Hyper) == sizeof(double) * R::hyperparameters.size();

// Device code may read these and not call size(), a host function, itself.
template <class R> inline constexpr std::size_t state_count = R::states.size();
template <class R> inline constexpr std::size_t hyper_count = R::hyperparameters.size();

// Every rule takes these four after its own; they act before the formula (see prepare below).
struct CommonHyper {
    double weight_decay = 0.0;
    double decoupled = 0.0;
    double maximize = 0.0;
    double grad_scale = 1.0;
};

inline constexpr std::array common_hyperparameters{
    Hyperparameter{"weight_decay", 0.0, Range::nonnegative, "weight decay w"},
    Hyperparameter{"decoupled", 0.0, Range::flag,
                   "decay the parameter itself, p = p * (1 - lr * w), instead of adding w * p to the gradient"},
    Hyperparameter{"maximize", 0.0, Range::flag, "ascend: use -g in the place of g"},
    Hyperparameter{"grad_scale", 1.0, Range::finite, "factor that gradients are multiplied with first"},
};

inline constexpr std::size_t max_hyperparameters = 20;
inline constexpr std::size_t max_states = 4;

// What acts on the gradient and the parameter before the rule sees them:
//   g <- grad_scale * g, negated to maximize;  g <- g + w * p (coupled)  or  p <- p * (1 - lr * w) (decoupled).
// Negation is exact, so it is folded into the scale, and p * 1 is exact, so "no decay" is a shrink of 1. Coupled decay
// needs its own code: g + 0 * p is not g where p is infinite or g is -0.
template <class T> struct Before {
    T grad_scale;
    T decay;   // w, where coupled
    T shrink;  // 1 - lr * w where decoupled, else 1
    bool coupled;
};

template <bool Coupled, class T> ADAPTK_HD void prepare(const Before<T>& c, T& p, T& g) {
    g = c.grad_scale * g;
    if constexpr (Coupled) {
        g = g + c.decay * p;
    } else {
        p = p * c.shrink;
    }
}

// One step's scalars for one rule and compute type, as kernels receive them.
template <class R, class T> struct StepScalars {
    Before<T> before;
    typename R::template Scalars<T> rule;
};

// The scalars of step t from a rule's own hyperparameters followed by the common ones. The gradient's scale is an
// argument of its own because clipping changes it after the hyperparameters are known.
template <class R, class T>
ADAPTK_HOST_DEVICE StepScalars<R, T> step_scalars(const double* h, double grad_scale, std::int64_t t,
                                                  memo_of_t<R>& memo) {
    constexpr std::size_t count = hyper_count<R>;
    typename R::Hyper own;
    static_assert(sizeof own == count * sizeof(double) && std::is_trivially_copyable_v<typename R::Hyper>);
    std::memcpy(&own, h, sizeof own);
    const double lr = h[0];
    const double decay = h[count];
    const bool decoupled = h[count + 1] != 0.0;
    const bool maximize = h[count + 2] != 0.0;
    return {{T(maximize ? -grad_scale : grad_scale), T(decoupled ? 0.0 : decay), T(decoupled ? 1.0 - lr * decay : 1.0),
             decay != 0.0 && !decoupled},
            scalars_of<R, T>(own, t, memo)};
}

template <class... R> struct RuleList {
    static constexpr std::size_t size = sizeof...(R);
};

ADAPTK_NAMESPACE_END
