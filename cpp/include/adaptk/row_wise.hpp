// AdaGrad and Adam with one second moment per row of a param, for embedding tables: a second moment per element would
// take as much memory as the table.
//
// The formulas are those that FBGEMM documents as EXACT_ROWWISE_ADAGRAD and PARTIAL_ROWWISE_ADAM, and torchrec as
// RowWiseAdagrad and PartialRowWiseAdam.
//
// Besides what every rule has (rule.hpp), such a rule has
//   a state with one number for each slice (Per); the slices are its rows
//   factor<T>(Coefficients, mean, r)   updates the row's number r by the mean of the row's squared gradients, and
//                                      returns the factor of the row's steps
//   update<T>(Coefficients, factor, p, g, s..)   updates an element; s: the other states
#pragma once

#include "adaptk/rules/adagrad.hpp"
#include "adaptk/rules/adam.hpp"

#include <algorithm>
#include <cstddef>

ADAPTK_NAMESPACE_BEGIN

constexpr State per_slice(State s) {
    s.per = Per::slice;
    return s;
}

// The index of the state with one number for each row; state_count<R> if there is none.
template <class R>
inline constexpr std::size_t row_state =
    std::size_t(std::find_if(R::states.begin(), R::states.end(), [](const State& s) { return s.per == Per::slice; }) -
                R::states.begin());

struct RowWiseAdaGrad {
    static constexpr const char* name = "rowwise_adagrad";
    static constexpr const char* class_name = "RowWiseAdaGrad";
    static constexpr const char* variant = "";
    static constexpr const char* summary =
        "AdaGrad with one accumulator per row: the sum of the row's mean squared gradients.";
    static constexpr const char* formula = "r += mean(g*g), the mean over the row\n"
                                           "p -= lr_t / (sqrt(r + eps_in) + eps_out) * g,  "
                                           "lr_t = lr / (1 + (t-1)*lr_decay)";
    static constexpr const char* source = "Duchi, Hazan and Singer 2011, by rows as FBGEMM's EXACT_ROWWISE_ADAGRAD";
    static constexpr std::array hyperparameters{
        AdaGrad::hyperparameters[0],
        AdaGrad::hyperparameters[1],
        AdaGrad::hyperparameters[2],
        Hyperparameter{"eps_out", 1e-8, Range::nonnegative, "eps outside the root"},
    };
    static constexpr std::array states{per_slice(AdaGrad::states[0])};
    // As in torchrec's RowWiseAdagrad.
    static constexpr auto conventions = presets(Preset{"torch", "eps_out", 1e-10});
    using Hyper = AdaGrad::Hyper;
    template <class T> using Coefficients = AdaGrad::Coefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return AdaGrad::coefficients<T>(h, t);
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper&, double shrink, std::int64_t n) { return decayed(shrink, n); }
    template <class T> ADAPTK_HD static T factor(const Coefficients<T>& c, T mean, T& r) {
        r = r + mean;
        return c.lr / (sqrt(r + c.eps_in) + c.eps_out);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>&, T factor, T& p, T g) { p = p - factor * g; }
};

struct RowWiseAdam {
    static constexpr const char* name = "rowwise_adam";
    static constexpr const char* class_name = "RowWiseAdam";
    static constexpr const char* variant = "";
    static constexpr const char* summary = "Adam with one second moment per row.";
    static constexpr const char* formula = "m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*mean(g*g), the mean over the row\n"
                                           "p -= lr/(1-b1^t) / (sqrt(v)/sqrt(1-b2^t) + eps) * m\n"
                                           "eps_hat: p -= lr*sqrt(1-b2^t)/(1-b1^t) / (sqrt(v) + eps) * m";
    static constexpr const char* source = "Kingma and Ba 2015, by rows as FBGEMM's PARTIAL_ROWWISE_ADAM";
    static constexpr auto hyperparameters = adam_hyperparameters;
    static constexpr std::array states{Adam::states[0], per_slice(Adam::states[1])};
    // As in torchrec's PartialRowWiseAdam.
    static constexpr auto conventions = presets(Preset{"torch"});
    using Hyper = AdamHyper;
    template <class T> using Coefficients = AdamCoefficients<T>;
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t t) {
        return adam_coefficients<T>(h, t);
    }
    static constexpr Idle idle = Idle::approximate;
    static IdleSteps idle_steps(const Hyper& h, double shrink, std::int64_t n) {
        return decayed(shrink, n, h.beta1, h.beta2);
    }
    template <class T> ADAPTK_HD static T factor(const Coefficients<T>& c, T mean, T& v) {
        v = c.beta2 * v + c.one_minus_beta2 * mean;
        return c.step / (sqrt(v + c.under) * c.scale + c.eps);
    }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T factor, T& p, T g, T& m) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        p = p - factor * m;
    }
};

using RowWiseRules = RuleList<RowWiseAdaGrad, RowWiseAdam>;

ADAPTK_NAMESPACE_END
