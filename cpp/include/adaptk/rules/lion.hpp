// Lion: steps by the sign of an interpolated momentum.
//
// X. Chen et al., Symbolic discovery of optimization algorithms, 2023.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/rule.hpp"

ADAPTK_NAMESPACE_BEGIN

struct Lion {
    static constexpr const char* name = "lion";
    static constexpr const char* class_name = "Lion";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "Lion: steps of one size, by the sign of an interpolated momentum.";
    static constexpr const char* formula = "p -= lr*sign(b1*m + (1-b1)*g)\n"
                                           "m = b2*m + (1-b2)*g";
    static constexpr const char* source = "Chen et al. 2023";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 1e-4, Range::nonnegative, "learning rate"},
        Hyperparameter{"beta1", 0.9, Range::fraction, "weight of the momentum in the step"},
        Hyperparameter{"beta2", 0.99, Range::fraction, "decay of the momentum"},
    };
    static constexpr std::array states{State{"exp_avg", 0.0}};
    static constexpr auto conventions =
        presets(Preset{"keras", "lr", 1e-3}, Preset{"keras", "decoupled", 1.0}, Preset{"optax", "weight_decay", 1e-3},
                Preset{"optax", "decoupled", 1.0});
    struct Hyper {
        double lr, beta1, beta2;
    };
    template <class T> struct Coefficients {
        T lr, beta1, one_minus_beta1, beta2, one_minus_beta2;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return {T(h.lr), T(h.beta1), T(1.0 - h.beta1), T(h.beta2), T(1.0 - h.beta2)};
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) { return decayed(shrink, n, h.beta2); }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m) {
        p = p - c.lr * sign(c.beta1 * m + c.one_minus_beta1 * g);
        m = c.beta2 * m + c.one_minus_beta2 * g;
    }
};

ADAPTK_NAMESPACE_END
