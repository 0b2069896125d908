// Adam with the infinity norm of past gradients.
//
// D. P. Kingma, J. Ba, Adam: a method for stochastic optimization, ICLR 2015, Algorithm 2.
#pragma once

#include "adaptk/rules/adam.hpp"

ADAPTK_NAMESPACE_BEGIN

struct AdaMax {
    static constexpr const char* name = "adamax";
    static constexpr const char* class_name = "AdaMax";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "AdaMax: Adam with the infinity norm of past gradients.";
    static constexpr const char* formula = "m = b1*m + (1-b1)*g;  u = max(b2*u, abs(g) + eps)\n"
                                           "p -= lr/(1-b1^t) * m / u";
    static constexpr const char* source = "Kingma and Ba 2015, Algorithm 2";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 2e-3, Range::nonnegative, "learning rate"}, adam_common::beta1,
        Hyperparameter{"beta2", 0.999, Range::fraction, "decay of the infinity norm"},
        Hyperparameter{"eps", 1e-8, Range::nonnegative, "added to the magnitude of the gradient"}};
    static constexpr std::array states{adam_common::exp_avg,
                                       State{.name = "exp_inf", .initial = 0.0, .nonnegative = true}};
    static constexpr auto conventions = presets(Preset{"torch"}, Preset{"optax"});
    struct Hyper {
        double lr, beta1, beta2, eps;
    };
    template <class T> struct Coefficients {
        T beta1, one_minus_beta1, beta2, step, eps;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return {T(h.beta1), T(1.0 - h.beta1), T(h.beta2), T(h.lr / (1.0 - power(h.beta1, t))), T(h.eps)};
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& u) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        u = max(c.beta2 * u, abs(g) + c.eps);
        p = p - c.step * m / u;
    }
};

ADAPTK_NAMESPACE_END
