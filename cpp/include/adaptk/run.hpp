// Runs rules inside other programs' loops, without the library: a rule of the list (rules.hpp) or a struct of your own.
//
// Such a rule needs no more than
//
//     struct SignSgd {
//         struct Hyper { double lr, beta; };
//         template <class T> struct Coefficients { T lr, beta, rest; };
//         template <class T> static Coefficients<T> coefficients(const Hyper& h, std::int64_t t);
//         template <class T> static void update(const Coefficients<T>& c, T& p, T g, T& m);
//     };
//
// If device code calls them, write ADAPTK_HOST_DEVICE before coefficients and ADAPTK_HD before update. For whole
// arrays:
//
//     adaptk::run<SignSgd>({0.01, 0.9}, step, p, g, m);
//
// For one element, in a loop or a kernel:
//
//     const auto c = adaptk::coefficients<SignSgd, float>(hyper, step);    // once a step
//     adaptk::update<SignSgd>(c, p[i], g[i], m[i]);
//
// The results have the library's bits if operations are not contracted (-ffp-contract=off, nvcc --fmad=false: the CMake
// target adaptk::headers sets them) and the floating-point mode is the default (no -ffast-math, no flushing of
// subnormals).
#pragma once

#include "adaptk/rule.hpp"

#include <span>
#include <stdexcept>

#if defined(_OPENMP)
#include <omp.h>
#endif

ADAPTK_NAMESPACE_BEGIN

// What a step computes once, from the rule's hyperparameters and those that every rule has. Decoupled decay multiplies
// by 1 - lr * weight_decay, so the rule's Hyper needs a member lr for it.
template <class R, class T>
ADAPTK_HOST_DEVICE StepCoefficients<R, T> coefficients(const typename R::Hyper& h, std::int64_t step,
                                                       const CommonHyper& common = {}) {
    double lr = 0.0;
    if constexpr (requires { h.lr; }) lr = h.lr;
    memo_of_t<R> memo{};
    return {common_coefficients<T>(lr, common), coefficients_of<R, T>(h, step, memo)};
}

// Updates one element.
template <class R, class T, class... S>
ADAPTK_HD void update(const StepCoefficients<R, T>& c, T& p, T g, S&... states) {
    static_assert((std::is_same_v<S, T> && ...), "params, gradients and states have one type here");
    if (c.common.coupled) {
        update_element<R, true>(c, p, g, states...);
    } else {
        update_element<R, false>(c, p, g, states...);
    }
}

// Options of run().
struct RunOptions {
    CommonHyper common = {};
    // The number of threads if the program is compiled with OpenMP; 0: OpenMP's default.
    int threads = 1;
};

namespace run_detail {

// The arrays do not overlap. For Clang, __restrict alone says so: with a pragma, it would warn about loops that it
// cannot vectorise, such as those with a square root that may set errno.
template <class R, bool Coupled, class T, class... S>
inline void range(const StepCoefficients<R, T>& c, std::size_t n, T* __restrict p, const T* __restrict g,
                  S* __restrict... s) {
#if !defined(__clang__)
    ADAPTK_INDEPENDENT
#endif
    for (std::size_t i = 0; i < n; ++i) {
        T pi = p[i];
        T gi = g[i];
        update_element<R, Coupled>(c, pi, gi, s[i]...);
        p[i] = pi;
    }
}

template <class R, class T, class... S>
inline void part(const StepCoefficients<R, T>& c, std::size_t begin, std::size_t end, T* p, const T* g, S*... s) {
    if (c.common.coupled) {
        range<R, true>(c, end - begin, p + begin, g + begin, (s + begin)...);
    } else {
        range<R, false>(c, end - begin, p + begin, g + begin, (s + begin)...);
    }
}

}  // namespace run_detail

// One step of a rule over whole arrays: vectors, spans, or anything else that std::span can be made from. States are in
// the rule's order. Throws std::invalid_argument if sizes differ or the step is less than 1, before anything is
// written. Overlap is not checked.
template <class R, class P, class G, class... S>
    requires requires(P&& p, G&& g) {
        std::span(p);
        std::span(g);
    }
void run(const RunOptions& how, const typename R::Hyper& hyper, std::int64_t step, P&& param, G&& grad, S&&... states) {
    const std::span p(param);
    const std::span g(grad);
    using T = typename decltype(p)::element_type;
    static_assert(std::is_floating_point_v<T>, "params are spans of float or double that can be written");
    static_assert(std::is_same_v<typename decltype(g)::value_type, T>, "gradients have the type of their param");
    if (step < 1) throw std::invalid_argument("step: steps are counted from 1");
    if (g.size() != p.size() || ((std::span(states).size() != p.size()) || ...))
        throw std::invalid_argument("grad, states: not of the param's size");
    if constexpr (requires { R::states.size(); })
        static_assert(sizeof...(S) == R::states.size(), "the rule has another number of states");
    const StepCoefficients<R, T> c = coefficients<R, T>(hyper, step, how.common);
#if defined(_OPENMP)
    const int threads = how.threads > 0 ? how.threads : omp_get_max_threads();
    if (threads > 1 && p.size() >= 65536) {
#pragma omp parallel num_threads(threads)
        {
            const auto n = std::size_t(omp_get_num_threads());
            const auto k = std::size_t(omp_get_thread_num());
            // Multiples of 64 elements: each thread has whole cache lines.
            const auto cut = [&](std::size_t i) { return i == n ? p.size() : p.size() / n * i / 64 * 64; };
            run_detail::part<R, T>(c, cut(k), cut(k + 1), p.data(), g.data(), std::span(states).data()...);
        }
        return;
    }
#endif
    run_detail::part<R, T>(c, 0, p.size(), p.data(), g.data(), std::span(states).data()...);
}

template <class R, class P, class G, class... S>
void run(const typename R::Hyper& hyper, std::int64_t step, P&& param, G&& grad, S&&... states) {
    run<R>(RunOptions{}, hyper, step, param, grad, states...);
}

// The default hyperparameters of a rule of the list.
template <class R> typename R::Hyper defaults() {
    double values[hyper_count<R>];
    for (std::size_t i = 0; i < hyper_count<R>; ++i) values[i] = R::hyperparameters[i].value;
    typename R::Hyper h;
    std::memcpy(&h, values, sizeof h);
    return h;
}

ADAPTK_NAMESPACE_END
