// RMSProp: learning rates scaled by a running average of squared gradients.
//
// T. Tieleman, G. Hinton, Lecture 6.5 - RMSProp, COURSERA 2012; Deep Learning book, Algorithms 8.5 and 8.6.
// Centred: A. Graves, Generating sequences with recurrent neural networks, 2013.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/rule.hpp"

ADAPTK_NAMESPACE_BEGIN

namespace rmsprop_common {
inline constexpr Hyperparameter lr{"lr", 1e-3, Range::nonnegative, "learning rate"};
inline constexpr Hyperparameter rho{"rho", 0.9, Range::fraction, "decay of the averaged squares"};
inline constexpr Hyperparameter eps_in{"eps_in", 1e-6, Range::nonnegative, "eps under the root"};
inline constexpr Hyperparameter eps_out{"eps_out", 0.0, Range::nonnegative, "eps outside the root"};
inline constexpr Hyperparameter momentum{"momentum", 0.9, Range::nonnegative, "momentum mu"};
inline constexpr Hyperparameter lr_inside{"lr_inside", 1.0, Range::flag,
                                          "the learning rate is inside the momentum buffer"};
inline constexpr State square_avg{"square_avg", 0.0, nullptr, "initial_accumulator_value", true};

#define ADAPTK_RMSPROP_PRESETS                                                                                         \
    Preset{"torch", "lr", 1e-2}, Preset{"torch", "rho", 0.99}, Preset{"torch", "eps_in", 0.0},                         \
        Preset{"torch", "eps_out", 1e-8}, Preset{"keras", "eps_in", 1e-7}, Preset{"keras", "decoupled", 1.0},          \
        Preset{"tf1", "eps_in", 1e-10}, Preset{"tf1", "square_avg", 1.0}, Preset{"optax", "eps_in", 1e-8}
inline constexpr auto plain = presets(ADAPTK_RMSPROP_PRESETS);
inline constexpr auto with_momentum = presets(ADAPTK_RMSPROP_PRESETS, Preset{"torch", "lr_inside", 0.0});
#undef ADAPTK_RMSPROP_PRESETS

template <class T> struct Coefficients {
    T lr, rho, one_minus_rho, eps_in, eps_out;
};
template <class H, class T> ADAPTK_HOST_DEVICE Coefficients<T> coefficients(const H& h) {
    return {T(h.lr), T(h.rho), T(1.0 - h.rho), T(h.eps_in), T(h.eps_out)};
}

// b = mu*b + gain*g/d, p -= rate*b: the learning rate is the gain (Keras, TF1, optax) or the rate (torch).
template <class T> struct MomentumCoefficients {
    T rho, one_minus_rho, eps_in, eps_out, mu, gain, rate;
};
template <class H, class T> ADAPTK_HOST_DEVICE MomentumCoefficients<T> momentum_coefficients(const H& h) {
    const bool inside = h.lr_inside != 0.0;
    return {T(h.rho),      T(1.0 - h.rho),         T(h.eps_in),           T(h.eps_out),
            T(h.momentum), T(inside ? h.lr : 1.0), T(inside ? 1.0 : h.lr)};
}

// r - m*m, or 0 if rounding makes it negative; NaN stays NaN.
template <class T> ADAPTK_HD T variance(T r, T m) {
    const T v = r - m * m;
    return v < T(0) ? T(0) : v;
}
}  // namespace rmsprop_common

struct RmsProp {
    static constexpr const char* name = "rmsprop";
    static constexpr const char* class_name = "RMSProp";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "RMSProp: rates scaled by a running average of squared gradients.";
    static constexpr const char* formula = "r = rho*r + (1-rho)*(g*g)\n"
                                           "p -= lr*g / (sqrt(r + eps_in) + eps_out)";
    static constexpr const char* source = "Tieleman and Hinton 2012; Deep Learning book, Algorithm 8.5";
    static constexpr std::array hyperparameters{rmsprop_common::lr, rmsprop_common::rho, rmsprop_common::eps_in,
                                                rmsprop_common::eps_out};
    static constexpr std::array states{rmsprop_common::square_avg};
    static constexpr auto conventions = rmsprop_common::plain;
    struct Hyper {
        double lr, rho, eps_in, eps_out;
    };
    template <class T> using Coefficients = rmsprop_common::Coefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return rmsprop_common::coefficients<Hyper, T>(h);
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) { return decayed(shrink, n, h.rho); }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& r) {
        r = c.rho * r + c.one_minus_rho * (g * g);
        p = p - c.lr * g / (sqrt(r + c.eps_in) + c.eps_out);
    }
};

struct RmsPropCentered {
    static constexpr const char* name = "rmsprop_centered";
    static constexpr const char* class_name = "RMSProp";
    static constexpr const char* variant = "centered";
    static constexpr const char* summary = "RMSProp scaled by the running variance of gradients.";
    static constexpr const char* formula = "r = rho*r + (1-rho)*(g*g);  m = rho*m + (1-rho)*g\n"
                                           "p -= lr*g / (sqrt(max(r - m*m, 0) + eps_in) + eps_out)";
    static constexpr const char* source = "Graves 2013";
    static constexpr auto hyperparameters = RmsProp::hyperparameters;
    static constexpr std::array states{rmsprop_common::square_avg, State{"grad_avg", 0.0}};
    static constexpr auto conventions = rmsprop_common::plain;
    using Hyper = RmsProp::Hyper;
    template <class T> using Coefficients = rmsprop_common::Coefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return rmsprop_common::coefficients<Hyper, T>(h);
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.rho, h.rho);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& r, T& m) {
        r = c.rho * r + c.one_minus_rho * (g * g);
        m = c.rho * m + c.one_minus_rho * g;
        p = p - c.lr * g / (sqrt(rmsprop_common::variance(r, m) + c.eps_in) + c.eps_out);
    }
};

struct RmsPropMomentum {
    static constexpr const char* name = "rmsprop_momentum";
    static constexpr const char* class_name = "RMSProp";
    static constexpr const char* variant = "momentum";
    static constexpr const char* summary = "RMSProp with momentum.";
    static constexpr const char* formula = "r = rho*r + (1-rho)*(g*g);  d = sqrt(r + eps_in) + eps_out\n"
                                           "lr_inside:     b = mu*b + lr*g/d;  p -= b\n"
                                           "not lr_inside: b = mu*b + g/d;     p -= lr*b";
    static constexpr const char* source = "Tieleman and Hinton 2012; Graves 2013";
    static constexpr std::array hyperparameters{rmsprop_common::lr,       rmsprop_common::rho,
                                                rmsprop_common::eps_in,   rmsprop_common::eps_out,
                                                rmsprop_common::momentum, rmsprop_common::lr_inside};
    static constexpr std::array states{rmsprop_common::square_avg, State{"momentum_buffer", 0.0}};
    static constexpr auto conventions = rmsprop_common::with_momentum;
    struct Hyper {
        double lr, rho, eps_in, eps_out, momentum, lr_inside;
    };
    template <class T> using Coefficients = rmsprop_common::MomentumCoefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return rmsprop_common::momentum_coefficients<Hyper, T>(h);
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        IdleSteps s = decayed(shrink, n, h.rho, h.momentum);
        add_momentum(s, 1, h.momentum, h.lr_inside != 0.0 ? -1.0 : -h.lr, shrink, n);
        return s;
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& r, T& b) {
        r = c.rho * r + c.one_minus_rho * (g * g);
        b = c.mu * b + c.gain * g / (sqrt(r + c.eps_in) + c.eps_out);
        p = p - c.rate * b;
    }
};

struct RmsPropCenteredMomentum {
    static constexpr const char* name = "rmsprop_centered_momentum";
    static constexpr const char* class_name = "RMSProp";
    static constexpr const char* variant = "centered momentum";
    static constexpr const char* summary = "Centred RMSProp with momentum.";
    static constexpr const char* formula = "r = rho*r + (1-rho)*(g*g);  m = rho*m + (1-rho)*g\n"
                                           "d = sqrt(max(r - m*m, 0) + eps_in) + eps_out\n"
                                           "lr_inside:     b = mu*b + lr*g/d;  p -= b\n"
                                           "not lr_inside: b = mu*b + g/d;     p -= lr*b";
    static constexpr const char* source = "Graves 2013";
    static constexpr auto hyperparameters = RmsPropMomentum::hyperparameters;
    static constexpr std::array states{rmsprop_common::square_avg, State{"grad_avg", 0.0},
                                       State{"momentum_buffer", 0.0}};
    static constexpr auto conventions = rmsprop_common::with_momentum;
    using Hyper = RmsPropMomentum::Hyper;
    template <class T> using Coefficients = rmsprop_common::MomentumCoefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return rmsprop_common::momentum_coefficients<Hyper, T>(h);
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        IdleSteps s = decayed(shrink, n, h.rho, h.rho, h.momentum);
        add_momentum(s, 2, h.momentum, h.lr_inside != 0.0 ? -1.0 : -h.lr, shrink, n);
        return s;
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& r, T& m, T& b) {
        r = c.rho * r + c.one_minus_rho * (g * g);
        m = c.rho * m + c.one_minus_rho * g;
        b = c.mu * b + c.gain * g / (sqrt(rmsprop_common::variance(r, m) + c.eps_in) + c.eps_out);
        p = p - c.rate * b;
    }
};

// Algorithm 8.6 of the Deep Learning book. It has no delta in the denominator, unlike Algorithm 8.5. With eps_in = 0
// the rule is that algorithm; the default of eps_in is the delta of Algorithm 8.5.
struct RmsPropNesterov {
    static constexpr const char* name = "rmsprop_nesterov";
    static constexpr const char* class_name = "RMSProp";
    static constexpr const char* variant = "nesterov";
    static constexpr const char* summary = "RMSProp with Nesterov momentum: the gradient is taken at p + alpha*v.";
    static constexpr const char* formula = "g is the gradient at p + alpha*v\n"
                                           "r = rho*r + (1-rho)*(g*g)\n"
                                           "v = alpha*v - lr*g / (sqrt(r + eps_in) + eps_out);  p += v";
    static constexpr const char* source = "Deep Learning book, Algorithm 8.6";
    static constexpr std::array hyperparameters{rmsprop_common::lr, rmsprop_common::rho, rmsprop_common::eps_in,
                                                rmsprop_common::eps_out,
                                                Hyperparameter{"momentum", 0.9, Range::nonnegative, "momentum alpha"}};
    static constexpr std::array states{rmsprop_common::square_avg, State{"velocity", 0.0}};
    static constexpr auto conventions = presets();
    static constexpr LookAhead look_ahead{"velocity", "momentum"};
    struct Hyper {
        double lr, rho, eps_in, eps_out, momentum;
    };
    template <class T> struct Coefficients {
        T lr, rho, one_minus_rho, eps_in, eps_out, alpha;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return {T(h.lr), T(h.rho), T(1.0 - h.rho), T(h.eps_in), T(h.eps_out), T(h.momentum)};
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        IdleSteps s = decayed(shrink, n, h.rho, h.momentum);
        add_momentum(s, 1, h.momentum, 1.0, shrink, n);
        return s;
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& r, T& v) {
        r = c.rho * r + c.one_minus_rho * (g * g);
        v = c.alpha * v - c.lr * g / (sqrt(r + c.eps_in) + c.eps_out);
        p = p + v;
    }
};

ADAPTK_NAMESPACE_END
