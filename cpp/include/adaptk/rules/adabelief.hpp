// Adam whose second moment averages (g - m)^2, the squared deviation of the gradient from its running average.
//
// J. Zhuang et al., AdaBelief optimizer: adapting stepsizes by the belief in observed gradients, NeurIPS 2020.
#pragma once

#include "adaptk/rules/adam.hpp"

ADAPTK_NAMESPACE_BEGIN

struct AdaBelief {
    static constexpr const char* name = "adabelief";
    static constexpr const char* class_name = "AdaBelief";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "AdaBelief: steps scaled by the belief in the observed gradient.";
    static constexpr const char* formula = "m = b1*m + (1-b1)*g;  s = b2*s + (1-b2)*((g-m)*(g-m)) + eps_root\n"
                                           "p -= lr/(1-b1^t) * m / (sqrt(s)/sqrt(1-b2^t) + eps)";
    static constexpr const char* source = "Zhuang et al. 2020";
    static constexpr std::array hyperparameters{
        adam_common::lr, adam_common::beta1, adam_common::beta2,
        Hyperparameter{"eps", 1e-16, Range::nonnegative, "eps outside the root"},
        Hyperparameter{"eps_root", 1e-16, Range::nonnegative, "eps that is added to the second moment at each step"}};
    static constexpr std::array states{adam_common::exp_avg,
                                       State{.name = "exp_avg_var", .initial = 0.0, .nonnegative = true}};
    static constexpr auto conventions = presets(Preset{"optax"});
    struct Hyper {
        double lr, beta1, beta2, eps, eps_root;
    };
    template <class T> struct Coefficients {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, step, scale, eps, eps_root;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return {T(h.beta1),
                T(1.0 - h.beta1),
                T(h.beta2),
                T(1.0 - h.beta2),
                T(h.lr / (1.0 - power(h.beta1, t))),
                T(1.0 / std::sqrt(1.0 - power(h.beta2, t))),
                T(h.eps),
                T(h.eps_root)};
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& s) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        const T miss = g - m;
        s = c.beta2 * s + c.one_minus_beta2 * (miss * miss) + c.eps_root;
        p = p - c.step * m / (sqrt(s) * c.scale + c.eps);
    }
};

ADAPTK_NAMESPACE_END
