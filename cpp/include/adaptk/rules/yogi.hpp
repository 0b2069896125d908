// Adam whose second moment moves up or down by (1 - b2)*g^2 at each step.
//
// M. Zaheer et al., Adaptive methods for nonconvex optimization, NeurIPS 2018.
#pragma once

#include "adaptk/rules/adam.hpp"

ADAPTK_NAMESPACE_BEGIN

struct Yogi {
    static constexpr const char* name = "yogi";
    static constexpr const char* class_name = "Yogi";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "Yogi: Adam with an additive update of the second moment.";
    static constexpr const char* formula = "m = b1*m + (1-b1)*g;  v = v - (1-b2)*sign(v - g*g)*(g*g)\n"
                                           "p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)";
    static constexpr const char* source = "Zaheer et al. 2018";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 1e-2, Range::nonnegative, "learning rate"}, adam_common::beta1, adam_common::beta2,
        Hyperparameter{"eps", 1e-3, Range::nonnegative, "eps outside the root"}};
    // The initial second moment is that of the authors' code. Optax starts the first moment at this value too, which
    // moves parameters that have no gradient.
    static constexpr std::array states{adam_common::exp_avg,
                                       State{"exp_avg_sq", 1e-6, nullptr, "initial_accumulator_value", true}};
    static constexpr auto conventions = presets(Preset{"optax", "exp_avg", 1e-6});
    struct Hyper {
        double lr, beta1, beta2, eps;
    };
    template <class T> struct Coefficients {
        T beta1, one_minus_beta1, one_minus_beta2, step, scale, eps;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return {T(h.beta1),
                T(1.0 - h.beta1),
                T(1.0 - h.beta2),
                T(h.lr / (1.0 - power(h.beta1, t))),
                T(1.0 / std::sqrt(1.0 - power(h.beta2, t))),
                T(h.eps)};
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) { return decayed(shrink, n, h.beta1); }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& v) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        const T square = g * g;
        v = v - c.one_minus_beta2 * sign(v - square) * square;
        p = p - c.step * m / (sqrt(v) * c.scale + c.eps);
    }
};

ADAPTK_NAMESPACE_END
