// AdaGrad: learning rates divided by the root of the sum of all squared gradients.
//
// J. Duchi, E. Hazan, Y. Singer, Adaptive subgradient methods for online learning and stochastic optimization,
// JMLR 12, 2011; Deep Learning book, Algorithm 8.4.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/rule.hpp"

ADAPTK_NAMESPACE_BEGIN

struct AdaGrad {
    static constexpr const char* name = "adagrad";
    static constexpr const char* class_name = "AdaGrad";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "AdaGrad: rates that fall with the sum of squared gradients.";
    static constexpr const char* formula =
        "r += g*g\n"
        "p -= lr_t*g / (sqrt(r + eps_in) + eps_out),  lr_t = lr / (1 + (t-1)*lr_decay)";
    static constexpr const char* source = "Duchi, Hazan and Singer 2011; Deep Learning book, Algorithm 8.4";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 1e-2, Range::nonnegative, "learning rate"},
        Hyperparameter{"lr_decay", 0.0, Range::nonnegative, "decay of the learning rate with the steps"},
        Hyperparameter{"eps_in", 0.0, Range::nonnegative, "eps under the root"},
        Hyperparameter{"eps_out", 1e-7, Range::nonnegative, "eps outside the root"},
    };
    static constexpr std::array states{State{"sum", 0.0, nullptr, "initial_accumulator_value", true}};
    static constexpr auto conventions =
        presets(Preset{"torch", "eps_out", 1e-10}, Preset{"keras", "lr", 1e-3}, Preset{"keras", "eps_in", 1e-7},
                Preset{"keras", "eps_out", 0.0}, Preset{"keras", "sum", 0.1}, Preset{"keras", "decoupled", 1.0},
                Preset{"tf1", "eps_out", 0.0}, Preset{"tf1", "sum", 0.1}, Preset{"optax", "eps_in", 1e-7},
                Preset{"optax", "eps_out", 0.0}, Preset{"optax", "sum", 0.1});
    struct Hyper {
        double lr, lr_decay, eps_in, eps_out;
    };
    template <class T> struct Coefficients {
        T lr, eps_in, eps_out;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return {T(h.lr / (1.0 + (double(t) - 1.0) * h.lr_decay)), T(h.eps_in), T(h.eps_out)};
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper&, double shrink, std::int64_t n) { return decayed(shrink, n); }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& r) {
        r = r + g * g;
        p = p - c.lr * g / (sqrt(r + c.eps_in) + c.eps_out);
    }
};

ADAPTK_NAMESPACE_END
