// Gradient descent with a decaying learning rate, which also averages the parameters.
//
// B. T. Polyak, A. B. Juditsky, Acceleration of stochastic approximation by averaging, 1992, with the learning rate of
// W. Xu, Towards optimal one pass large scale learning with averaged stochastic gradient descent, 2011, as in
// torch.optim.ASGD.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/power.hpp"
#include "adaptk/rule.hpp"

ADAPTK_NAMESPACE_BEGIN

struct Asgd {
    static constexpr const char* name = "asgd";
    static constexpr const char* class_name = "ASGD";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "Averaged gradient descent: the average of the parameters is kept in ax.";
    static constexpr const char* formula = "eta = lr / (1 + lambd*lr*(t-1))^alpha;  mu = 1 / max(1, t-1-t0)\n"
                                           "p = p*(1 - lambd*eta) - eta*g\n"
                                           "ax += (p - ax)*mu  (ax = p if mu = 1)";
    static constexpr const char* source = "Polyak and Juditsky 1992; torch.optim.ASGD";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 1e-2, Range::nonnegative, "learning rate"},
        Hyperparameter{"lambd", 1e-4, Range::nonnegative, "decay of the parameters and of the rate"},
        Hyperparameter{"alpha", 0.75, Range::nonnegative, "power of the rate's decay"},
        Hyperparameter{"t0", 1e6, Range::nonnegative, "step after which averaging begins"},
    };
    static constexpr std::array states{State{"ax", 0.0}};
    static constexpr auto conventions = presets(Preset{"torch"});
    struct Hyper {
        double lr, lambd, alpha, t0;
    };
    template <class T> struct Coefficients {
        T shrink, eta, mu;
        bool copy;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        const double before = double(t) - 1.0;
        const double eta = h.lr / power(1.0 + h.lambd * h.lr * before, h.alpha);
        const double age = before - h.t0;
        const bool copy = !(age > 1.0);
        return {T(1.0 - h.lambd * eta), T(eta), T(copy ? 1.0 : 1.0 / age), copy};
    }
    // torch.optim.ASGD keeps the learning rate and the averaging weight of the next step in state["eta"] and
    // state["mu"]. Here they become the lr of a first step, which has not decayed yet, and the t0 that gives this
    // weight at step 1.
    static constexpr std::size_t kept_numbers = 2;
    static Continued<Asgd> continue_from(const Hyper& h, double step, double* numbers, const bool*) {
        Hyper now = h;
        now.lr = numbers[0];
        now.t0 = -1.0 / numbers[1];
        numbers[0] = h.lr / power(1.0 + h.lambd * h.lr * step, h.alpha);
        numbers[1] = 1.0 / std::fmax(1.0, step - h.t0);
        return {now, 1, false, {}};
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& ax) {
        p = p * c.shrink - c.eta * g;
        const T moved = ax + (p - ax) * c.mu;
        ax = c.copy ? p : moved;
    }
};

ADAPTK_NAMESPACE_END
