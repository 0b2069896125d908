// Updates in the units of the parameter: the root mean square of past updates over that of past gradients.
//
// M. D. Zeiler, ADADELTA: an adaptive learning rate method, 2012.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/rule.hpp"

ADAPTK_NAMESPACE_BEGIN

struct AdaDelta {
    static constexpr const char* name = "adadelta";
    static constexpr const char* class_name = "AdaDelta";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "AdaDelta: steps scaled by the ratio of past updates to past gradients.";
    static constexpr const char* formula = "G = rho*G + (1-rho)*(g*g)\n"
                                           "u = sqrt(U + eps) / sqrt(G + eps) * g\n"
                                           "U = rho*U + (1-rho)*(u*u)\n"
                                           "p -= lr*u";
    static constexpr const char* source = "Zeiler 2012";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 1.0, Range::nonnegative, "learning rate"},
        Hyperparameter{"rho", 0.95, Range::fraction, "decay of both averages"},
        Hyperparameter{"eps", 1e-6, Range::nonnegative, "eps under both roots"},
    };
    static constexpr std::array states{State{.name = "square_avg", .initial = 0.0, .nonnegative = true},
                                       State{.name = "acc_delta", .initial = 0.0, .nonnegative = true}};
    static constexpr auto conventions =
        presets(Preset{"torch", "rho", 0.9}, Preset{"keras", "lr", 1e-3}, Preset{"keras", "eps", 1e-7},
                Preset{"keras", "decoupled", 1.0}, Preset{"tf1", "lr", 1e-3}, Preset{"tf1", "eps", 1e-8},
                Preset{"optax", "rho", 0.9});
    struct Hyper {
        double lr, rho, eps;
    };
    template <class T> struct Coefficients {
        T lr, rho, one_minus_rho, eps;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return {T(h.lr), T(h.rho), T(1.0 - h.rho), T(h.eps)};
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.rho, h.rho);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& square, T& delta) {
        square = c.rho * square + c.one_minus_rho * (g * g);
        const T u = sqrt(delta + c.eps) / sqrt(square + c.eps) * g;
        delta = c.rho * delta + c.one_minus_rho * (u * u);
        p = p - c.lr * u;
    }
};

ADAPTK_NAMESPACE_END
