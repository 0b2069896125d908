// Adam whose adaptive learning rate is rectified, and is not used until its variance is tractable.
//
// L. Liu et al., On the variance of the adaptive learning rate and beyond, ICLR 2020.
#pragma once

#include "adaptk/rules/adam.hpp"

ADAPTK_NAMESPACE_BEGIN

struct RAdam {
    static constexpr const char* name = "radam";
    static constexpr const char* class_name = "RAdam";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "RAdam: Adam with a rectified adaptive rate.";
    static constexpr const char* formula =
        "m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*(g*g)\n"
        "rho_inf = 2/(1-b2) - 1;  rho = rho_inf - 2*t*b2^t/(1-b2^t)\n"
        "rho > 5: p -= lr*r*sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + eps)\n"
        "         r = sqrt((rho-4)*(rho-2)*rho_inf / ((rho_inf-4)*(rho_inf-2)*rho))\n"
        "else:    p -= lr/(1-b1^t) * m";
    static constexpr const char* source = "Liu et al. 2020; torch.optim.RAdam";
    static constexpr std::array hyperparameters{adam_common::lr, adam_common::beta1, adam_common::beta2,
                                                adam_common::eps};
    static constexpr std::array states{adam_common::exp_avg, adam_common::exp_avg_sq};
    static constexpr auto conventions = presets(Preset{"torch"});
    struct Hyper {
        double lr, beta1, beta2, eps;
    };
    template <class T> struct Coefficients {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, step, eps;
        bool rectified;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        const double b2t = power(h.beta2, t);
        const double c1 = 1.0 - power(h.beta1, t);
        const double c2 = 1.0 - b2t;
        const double rho_inf = 2.0 / (1.0 - h.beta2) - 1.0;
        const double rho = rho_inf - 2.0 * double(t) * b2t / c2;
        const bool rectified = rho > 5.0;
        double step = h.lr / c1;
        if (rectified) {
            const double r = std::sqrt((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho));
            step = h.lr * r * std::sqrt(c2) / c1;
        }
        return {T(h.beta1), T(1.0 - h.beta1), T(h.beta2), T(1.0 - h.beta2), T(step), T(h.eps), rectified};
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& m, T& v) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * (g * g);
        const T d = sqrt(v) + c.eps;
        p = p - c.step * m / (c.rectified ? d : T(1));
    }
};

ADAPTK_NAMESPACE_END
