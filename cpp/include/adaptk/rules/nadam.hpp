// Adam with Nesterov momentum.
//
// T. Dozat, Incorporating Nesterov momentum into Adam, ICLR workshop 2016, with the momentum schedule of PyTorch's
// NAdam: mu_t = b1 * (1 - 0.96^(t*psi) / 2). The paper's m decays by mu_t; PyTorch's and Keras's decay by b1.
#pragma once

#include "adaptk/rules/adam.hpp"

ADAPTK_NAMESPACE_BEGIN

namespace nadam_detail {

ADAPTK_HOST_DEVICE inline double mu(double beta1, double psi, double t) {
    return beta1 * (1.0 - 0.5 * power(0.96, t * psi));
}

// mu_1 * ... * mu_t, continued from the step before. Below 2^-60 it does not change a difference from 1, so it counts
// as 0.
struct Memo {
    double beta1 = -1.0, psi = -1.0, product = 1.0;
    std::int64_t t = 0;
};
ADAPTK_HOST_DEVICE inline double mu_product(double beta1, double psi, std::int64_t t, Memo& memo) {
    if (memo.beta1 != beta1 || memo.psi != psi || memo.t > t) memo = {beta1, psi, 1.0, 0};
    while (memo.t < t && memo.product >= 0x1p-60) memo.product *= mu(beta1, psi, double(++memo.t));
    return memo.product >= 0x1p-60 ? memo.product : 0.0;
}

}  // namespace nadam_detail

struct NAdam {
    static constexpr const char* name = "nadam";
    static constexpr const char* class_name = "NAdam";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "NAdam: Adam with Nesterov momentum.";
    static constexpr const char* formula =
        "mu_t = b1*(1 - 0.96^(t*psi)/2);  M_t = mu_1*...*mu_t\n"
        "m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*(g*g)\n"
        "p -= (lr*(1-mu_t)/(1-M_t)*g + lr*mu_(t+1)/(1-M_(t+1))*m) / (sqrt(v)/sqrt(1-b2^t) + eps)";
    static constexpr const char* source = "Dozat 2016; torch.optim.NAdam";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 2e-3, Range::nonnegative, "learning rate"}, adam_common::beta1, adam_common::beta2,
        adam_common::eps,
        Hyperparameter{"momentum_decay", 4e-3, Range::nonnegative, "decay psi of the momentum schedule"}};
    static constexpr std::array states{adam_common::exp_avg, adam_common::exp_avg_sq};
    // In optax, mu_t is b1. A momentum_decay of 1000 gives this: from the first step on, 0.96^(t*psi) is so small that
    // it does not change a difference from 1.
    static constexpr auto conventions =
        presets(Preset{"torch"}, Preset{"keras", "lr", 1e-3}, Preset{"keras", "eps", 1e-7},
                Preset{"keras", "momentum_decay", 1.0}, Preset{"keras", "decoupled", 1.0},
                Preset{"optax", "momentum_decay", 1000.0});
    struct Hyper {
        double lr, beta1, beta2, eps, momentum_decay;
    };
    template <class T> struct Coefficients {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, step_g, step_m, scale, eps;
    };
    using Memo = nadam_detail::Memo;
    template <class T>
    ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t, Memo& memo) {
        const double mu = nadam_detail::mu(h.beta1, h.momentum_decay, double(t));
        const double next = nadam_detail::mu(h.beta1, h.momentum_decay, double(t) + 1.0);
        const double product = nadam_detail::mu_product(h.beta1, h.momentum_decay, t, memo);
        return {T(h.beta1),
                T(1.0 - h.beta1),
                T(h.beta2),
                T(1.0 - h.beta2),
                T(h.lr * (1.0 - mu) / (1.0 - product)),
                T(h.lr * next / (1.0 - product * next)),
                T(1.0 / std::sqrt(1.0 - power(h.beta2, t))),
                T(h.eps)};
    }
    // torch.optim.NAdam keeps mu_1 * ... * mu_t in state["mu_product"]. At each step, the factor and the product are
    // rounded to that tensor's type.
    static constexpr std::size_t kept_numbers = 1;
    static Continued<NAdam> continue_from(const Hyper& h, double step, double* numbers, const bool* wide) {
        const double mu = rounded_as(wide[0], nadam_detail::mu(h.beta1, h.momentum_decay, step));
        numbers[0] = rounded_as(wide[0], numbers[0] * mu);
        return {h, std::int64_t(step), true, {h.beta1, h.momentum_decay, numbers[0], std::int64_t(step)}};
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& v) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
        p = p - (c.step_g * g + c.step_m * m) / (sqrt(v) * c.scale + c.eps);
    }
};

ADAPTK_NAMESPACE_END
