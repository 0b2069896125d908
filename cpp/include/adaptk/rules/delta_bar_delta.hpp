// A learning rate for each parameter that grows while the gradient keeps its sign and shrinks when it changes.
//
// R. A. Jacobs, Increased rates of convergence through learning rate adaptation, Neural Networks 1, 1988, eqs. 3-5.
// The sign comparison is meaningful for full-batch gradients only: with minibatches it reacts to sampling noise.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/rule.hpp"

#include <limits>

ADAPTK_NAMESPACE_BEGIN

struct DeltaBarDelta {
    static constexpr const char* name = "delta_bar_delta";
    static constexpr const char* class_name = "DeltaBarDelta";
    static constexpr const char* variant = "";
    static constexpr const char* summary =
        "Delta-bar-delta: a learning rate for each parameter. For full-batch gradients only.";
    static constexpr const char* formula = "eta += kappa if bar*g > 0;  eta *= 1 - phi if bar*g < 0\n"
                                           "eta = clip(eta, eta_min, eta_max)\n"
                                           "p -= eta*g\n"
                                           "bar = theta*bar + (1 - theta)*g";
    static constexpr const char* source = "Jacobs 1988, equations 3 to 5";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 1e-2, Range::nonnegative, "initial learning rate of every parameter"},
        Hyperparameter{"kappa", 1e-3, Range::nonnegative, "amount that is added to a rate"},
        Hyperparameter{"phi", 0.1, Range::unit_interval, "fraction that is taken off a rate"},
        Hyperparameter{"theta", 0.7, Range::fraction, "decay of the averaged gradient bar"},
        Hyperparameter{"eta_min", 0.0, Range::nonnegative, "smallest rate"},
        Hyperparameter{"eta_max", std::numeric_limits<double>::infinity(), Range::upper_bound, "largest rate"},
    };
    static constexpr std::array states{State{"bar", 0.0}, State{"eta", 0.0, "lr", nullptr, true}};
    static constexpr auto conventions = presets();
    struct Hyper {
        double lr, kappa, phi, theta, eta_min, eta_max;
    };
    static const char* invalid(const Hyper& h) {
        return h.eta_min > h.eta_max ? "eta_min must not be greater than eta_max" : nullptr;
    }
    template <class T> struct Coefficients {
        T kappa, shrink, theta, one_minus_theta, eta_min, eta_max;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return {T(h.kappa), T(1.0 - h.phi), T(h.theta), T(1.0 - h.theta), T(h.eta_min), T(h.eta_max)};
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) { return decayed(shrink, n, h.theta); }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& bar, T& eta) {
        // Both candidates are computed before one is selected: GCC 12 does not vectorise a chain of ?: on the sign.
        const T same = bar * g;
        const T grown = eta + c.kappa;
        const T shrunk = eta * c.shrink;
        T e = same > T(0) ? grown : eta;
        e = same < T(0) ? shrunk : e;
        e = clamp(e, c.eta_min, c.eta_max);
        eta = e;
        p = p - e * g;
        bar = c.theta * bar + c.one_minus_theta * g;
    }
};

ADAPTK_NAMESPACE_END
