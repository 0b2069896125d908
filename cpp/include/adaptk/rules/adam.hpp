// Adam, and the rules that differ from it in one line.
//
// D. P. Kingma, J. Ba, Adam: a method for stochastic optimization, ICLR 2015; Deep Learning book, Algorithm 8.7.
// AMSGrad: S. J. Reddi, S. Kale, S. Kumar, On the convergence of Adam and beyond, ICLR 2018.
// AdamW: I. Loshchilov, F. Hutter, Decoupled weight decay regularization, ICLR 2019.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/power.hpp"
#include "adaptk/rule.hpp"

ADAPTK_NAMESPACE_BEGIN

namespace adam_common {
inline constexpr Hyperparameter lr{"lr", 1e-3, Range::nonnegative, "learning rate"};
inline constexpr Hyperparameter beta1{"beta1", 0.9, Range::fraction, "decay of the first moment"};
inline constexpr Hyperparameter beta2{"beta2", 0.999, Range::fraction, "decay of the second moment"};
inline constexpr Hyperparameter eps{"eps", 1e-8, Range::nonnegative, "eps outside the root"};
inline constexpr State exp_avg{"exp_avg", 0.0};
inline constexpr State exp_avg_sq{.name = "exp_avg_sq", .initial = 0.0, .nonnegative = true};
}  // namespace adam_common

struct AdamHyper {
    double lr, beta1, beta2, eps, eps_root, eps_hat;
};

// The corrected root sqrt(v / (1 - b2^t) + eps_root) is sqrt(v + eps_root*(1 - b2^t)) / sqrt(1 - b2^t), so it needs
// only one addition under the root, which is exact if eps_root is 0. In the eps-hat form (Keras, TF1, the remark before
// section 2.1 of the paper), the correction is in the step size alone, and eps is added to the uncorrected root.
template <class T> struct AdamCoefficients {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, step, under, scale, eps;
};

template <class T> ADAPTK_HOST_DEVICE AdamCoefficients<T> adam_coefficients(const AdamHyper& h, std::int64_t t) {
    const double c1 = 1.0 - power(h.beta1, t);
    const double c2 = 1.0 - power(h.beta2, t);
    const bool hat = h.eps_hat != 0.0;
    return {T(h.beta1),
            T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(hat ? h.lr * std::sqrt(c2) / c1 : h.lr / c1),
            T(h.eps_root * c2),
            T(hat ? 1.0 : 1.0 / std::sqrt(c2)),
            T(h.eps)};
}

inline constexpr std::array adam_hyperparameters{
    adam_common::lr,
    adam_common::beta1,
    adam_common::beta2,
    adam_common::eps,
    Hyperparameter{"eps_root", 0.0, Range::nonnegative, "eps under the root of the corrected second moment"},
    Hyperparameter{"eps_hat", 0.0, Range::flag, "add eps to the uncorrected root (Keras, TF1)"},
};
inline constexpr auto adam_conventions =
    presets(Preset{"torch"}, Preset{"keras", "eps", 1e-7}, Preset{"keras", "eps_hat", 1.0},
            Preset{"keras", "decoupled", 1.0}, Preset{"tf1", "eps_hat", 1.0}, Preset{"optax"});

struct Adam {
    static constexpr const char* name = "adam";
    static constexpr const char* class_name = "Adam";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "Adam: adaptive moment estimation.";
    static constexpr const char* formula = "m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*(g*g)\n"
                                           "p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)\n"
                                           "eps_hat: p -= lr*sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + eps)";
    static constexpr const char* source = "Kingma and Ba 2015; Deep Learning book, Algorithm 8.7";
    static constexpr auto hyperparameters = adam_hyperparameters;
    static constexpr std::array states{adam_common::exp_avg, adam_common::exp_avg_sq};
    static constexpr auto conventions = adam_conventions;
    using Hyper = AdamHyper;
    template <class T> using Coefficients = AdamCoefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return adam_coefficients<T>(h, t);
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& v) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
        p = p - c.step * m / (sqrt(v + c.under) * c.scale + c.eps);
    }
};

struct AmsGrad {
    static constexpr const char* name = "amsgrad";
    static constexpr const char* class_name = "Adam AdamW";
    static constexpr const char* variant = "amsgrad";
    static constexpr const char* summary = "Adam with a second moment that never falls.";
    static constexpr const char* formula = "m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*(g*g);  x = max(x, v)\n"
                                           "p -= lr/(1-b1^t) * m / (sqrt(x)/sqrt(1-b2^t) + eps)";
    static constexpr const char* source = "Reddi, Kale and Kumar 2018";
    static constexpr auto hyperparameters = adam_hyperparameters;
    static constexpr std::array states{adam_common::exp_avg, adam_common::exp_avg_sq,
                                       State{.name = "max_exp_avg_sq", .initial = 0.0, .nonnegative = true}};
    // Not optax: its amsgrad takes the maximum of bias-corrected moments.
    static constexpr auto conventions = presets(Preset{"torch"}, Preset{"keras", "eps", 1e-7},
                                                Preset{"keras", "eps_hat", 1.0}, Preset{"keras", "decoupled", 1.0});
    using Hyper = AdamHyper;
    template <class T> using Coefficients = AdamCoefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return adam_coefficients<T>(h, t);
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& v, T& x) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
        x = max(x, v);
        p = p - c.step * m / (sqrt(x + c.under) * c.scale + c.eps);
    }
};

struct AdamW {
    static constexpr const char* name = "adamw";
    static constexpr const char* class_name = "AdamW";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "Adam with decoupled weight decay.";
    static constexpr const char* formula = "p *= 1 - lr*w\n"
                                           "m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*(g*g)\n"
                                           "p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)";
    static constexpr const char* source = "Loshchilov and Hutter 2019";
    static constexpr auto hyperparameters = adam_hyperparameters;
    static constexpr auto states = Adam::states;
    static constexpr auto conventions =
        presets(Preset{"torch"}, Preset{"keras", "eps", 1e-7}, Preset{"keras", "eps_hat", 1.0},
                Preset{"keras", "weight_decay", 4e-3}, Preset{"optax", "weight_decay", 1e-4});
    using Hyper = AdamHyper;
    using Kernel = Adam;  // the same formula: no second copy of its code
    static constexpr CommonHyper Common{1e-2, 1.0, 0.0, 1.0};
    template <class T> using Coefficients = AdamCoefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return adam_coefficients<T>(h, t);
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& v) {
        Adam::update(c, p, g, m, v);
    }
};

ADAPTK_NAMESPACE_END
