// Adam with a Nesterov step estimated from the difference of successive gradients.
//
// X. Xie et al., Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models, 2022, Algorithm 1. The
// betas here are decays, the weights of old values, as in the authors' code. The paper's betas are the weights of new
// values, so its factor of the difference, 1 - beta2, is beta2 here. In Optax, betas are decays too, but the factor is
// 1 - beta2, as in the paper.
#pragma once

#include "adaptk/rules/adam.hpp"

ADAPTK_NAMESPACE_BEGIN

struct Adan {
    static constexpr const char* name = "adan";
    static constexpr const char* class_name = "Adan";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "Adan: adaptive Nesterov momentum from gradient differences.";
    static constexpr const char* formula =
        "d = g - prev  (0 at the first step);  prev = g\n"
        "m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*d\n"
        "z = g + b2*d;         n = b3*n + (1-b3)*(z*z)\n"
        "p -= lr*(m/(1-b1^t) + b2*v/(1-b2^t)) / (sqrt(n/(1-b3^t) + eps_root) + eps)\n"
        "one_minus_beta2: 1-b2 in place of b2 in z and p";
    static constexpr const char* source = "Xie et al. 2022, Algorithm 1";
    static constexpr std::array hyperparameters{
        adam_common::lr,
        Hyperparameter{"beta1", 0.98, Range::fraction, "decay of the gradients' average"},
        Hyperparameter{"beta2", 0.92, Range::fraction, "decay of the differences' average"},
        Hyperparameter{"beta3", 0.99, Range::fraction, "decay of the squares' average"},
        adam_common::eps,
        Hyperparameter{"eps_root", 0.0, Range::nonnegative, "eps under the root"},
        Hyperparameter{"one_minus_beta2", 0.0, Range::flag, "weigh the differences by 1 - beta2, not beta2 (optax)"},
    };
    static constexpr std::array states{adam_common::exp_avg, State{"exp_avg_diff", 0.0}, adam_common::exp_avg_sq,
                                       State{"prev_grad", 0.0}};
    static constexpr auto conventions = presets(Preset{"optax", "decoupled", 1.0}, Preset{"optax", "eps_root", 1e-8},
                                                Preset{"optax", "one_minus_beta2", 1.0});
    struct Hyper {
        double lr, beta1, beta2, beta3, eps, eps_root, one_minus_beta2;
    };
    template <class T> struct Coefficients {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3, ahead, step_m, step_v, under, scale,
            eps;
        T first;  // 1 in the first step, else 0
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        const double ahead = h.one_minus_beta2 != 0.0 ? 1.0 - h.beta2 : h.beta2;
        const double c3 = 1.0 - power(h.beta3, t);
        return {T(h.beta1),
                T(1.0 - h.beta1),
                T(h.beta2),
                T(1.0 - h.beta2),
                T(h.beta3),
                T(1.0 - h.beta3),
                T(ahead),
                T(h.lr / (1.0 - power(h.beta1, t))),
                T(h.lr * ahead / (1.0 - power(h.beta2, t))),
                T(h.eps_root * c3),
                T(1.0 / std::sqrt(c3)),
                T(h.eps),
                T(t == 1 ? 1 : 0)};
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2, h.beta3, 0.0);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& v, T& n, T& prev) {
        const T moved = g - prev;
        const T d = c.first != T(0) ? T(0) : moved;
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * d;
        const T z = g + c.ahead * d;
        n = c.beta3 * n + c.one_minus_beta3 * (z * z);
        prev = g;
        p = p - (c.step_m * m + c.step_v * v) / (sqrt(n + c.under) * c.scale + c.eps);
    }
};

ADAPTK_NAMESPACE_END
