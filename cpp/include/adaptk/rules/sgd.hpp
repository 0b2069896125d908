// Gradient descent, with Polyak's momentum and Nesterov's.
//
// B. T. Polyak, Some methods of speeding up the convergence of iteration methods, 1964.
// Yu. Nesterov, A method of solving a convex programming problem with convergence rate O(1/k^2), 1983.
// I. Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/rule.hpp"

ADAPTK_NAMESPACE_BEGIN

struct Sgd {
    static constexpr const char* name = "sgd";
    static constexpr StepUse step_use = StepUse::none;
    static constexpr const char* class_name = "SGD";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "Gradient descent.";
    static constexpr const char* formula = "p -= lr * g";
    static constexpr const char* source = "Robbins and Monro 1951; Deep Learning book, Algorithm 8.1";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 1e-2, Range::nonnegative, "learning rate"},
    };
    static constexpr std::array<State, 0> states{};
    static constexpr auto conventions =
        presets(Preset{"torch", "lr", 1e-3}, Preset{"keras", "decoupled", 1.0}, Preset{"tf1"}, Preset{"optax"});
    struct Hyper {
        double lr;
    };
    template <class T> struct Coefficients {
        T lr;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return {T(h.lr)};
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper&, double shrink, std::int64_t n) { return decayed(shrink, n); }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g) { p = p - c.lr * g; }
};

// The two forms of momentum differ in their coefficients only. The state is b or v:
//   buffer form    b = mu*b + (1 - tau)*g,     p -= lr*b   (the learning rate multiplies the state)
//   velocity form  v = mu*v - lr*(1 - tau)*g,  p += v      (it is inside the state)
// x - y and x + (-y) are the same operation, so one line with a signed gain and rate computes both.
struct MomentumHyper {
    double lr, momentum, dampening, velocity, dampen_first;
};

template <class T> struct MomentumCoefficients {
    T mu;
    T gain;  // of the gradient into the state: 1 - tau, or -lr * (1 - tau)
    T look;  // of the gradient in Nesterov's step: 1, or -lr
    T rate;  // of the state into the parameter: -lr, or 1
    bool first;
};

template <class T>
ADAPTK_HOST_DEVICE MomentumCoefficients<T> momentum_coefficients(const MomentumHyper& h, std::int64_t t) {
    const bool first = t == 1 && h.dampen_first == 0.0;
    const double gain = first ? 1.0 : 1.0 - h.dampening;
    if (h.velocity != 0.0) return {T(h.momentum), T(-h.lr * gain), T(-h.lr), T(1), first};
    return {T(h.momentum), T(gain), T(1), T(-h.lr), first};
}

// `ahead`: the factor of the buffer in the param's step.
inline IdleSteps momentum_idle_steps(const MomentumHyper& h, double shrink, std::int64_t n, double ahead) {
    IdleSteps s = decayed(shrink, n, h.momentum);
    add_momentum(s, 0, h.momentum, (h.velocity != 0.0 ? 1.0 : -h.lr) * ahead, shrink, n);
    return s;
}

inline constexpr std::array momentum_hyperparameters{
    Hyperparameter{"lr", 1e-2, Range::nonnegative, "learning rate"},
    Hyperparameter{"momentum", 0.9, Range::nonnegative, "momentum mu"},
    Hyperparameter{"dampening", 0.0, Range::unit_interval, "dampening tau of the gradient on its way into the buffer"},
    Hyperparameter{"velocity", 1.0, Range::flag, "velocity form (the learning rate is inside the buffer)"},
    Hyperparameter{"dampen_first", 1.0, Range::flag,
                   "dampen the first step too; False: the buffer starts as the first gradient"},
};
inline constexpr std::array momentum_states{State{"momentum_buffer", 0.0}};
inline constexpr auto momentum_conventions =
    presets(Preset{"torch", "velocity", 0.0}, Preset{"torch", "lr", 1e-3}, Preset{"torch", "dampen_first", 0.0},
            Preset{"keras", "decoupled", 1.0}, Preset{"tf1", "velocity", 0.0}, Preset{"optax", "velocity", 0.0});

struct Momentum {
    static constexpr const char* name = "momentum";
    static constexpr StepUse step_use = StepUse::first;
    static constexpr const char* class_name = "SGD";
    static constexpr const char* variant = "momentum";
    static constexpr const char* summary = "Gradient descent with momentum.";
    static constexpr const char* formula = "velocity form: v = mu*v - lr*(1-tau)*g;  p += v\n"
                                           "buffer form:   b = mu*b + (1-tau)*g;     p -= lr*b";
    static constexpr const char* source = "Polyak 1964; Deep Learning book, Algorithm 8.2";
    static constexpr auto hyperparameters = momentum_hyperparameters;
    static constexpr auto states = momentum_states;
    static constexpr auto conventions = momentum_conventions;
    using Hyper = MomentumHyper;
    template <class T> using Coefficients = MomentumCoefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return momentum_coefficients<T>(h, t);
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return momentum_idle_steps(h, shrink, n, 1.0);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& b) {
        b = c.first ? c.gain * g : c.mu * b + c.gain * g;
        p = p + c.rate * b;
    }
};

struct Nesterov {
    static constexpr const char* name = "nesterov";
    static constexpr StepUse step_use = StepUse::first;
    static constexpr const char* class_name = "SGD";
    static constexpr const char* variant = "nesterov";
    static constexpr const char* summary = "Gradient descent with Nesterov's momentum.";
    static constexpr const char* formula = "velocity form: v = mu*v - lr*(1-tau)*g;  p += mu*v - lr*g\n"
                                           "buffer form:   b = mu*b + (1-tau)*g;     p -= lr*(g + mu*b)";
    static constexpr const char* source = "Nesterov 1983; Sutskever et al. 2013; Deep Learning book, Algorithm 8.3";
    static constexpr auto hyperparameters = momentum_hyperparameters;
    static constexpr auto states = momentum_states;
    static constexpr auto conventions = momentum_conventions;
    using Hyper = MomentumHyper;
    template <class T> using Coefficients = MomentumCoefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return momentum_coefficients<T>(h, t);
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return momentum_idle_steps(h, shrink, n, h.momentum);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& b) {
        b = c.first ? c.gain * g : c.mu * b + c.gain * g;
        p = p + c.rate * (c.look * g + c.mu * b);
    }
};

ADAPTK_NAMESPACE_END
