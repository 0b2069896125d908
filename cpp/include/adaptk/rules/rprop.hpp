// Step sizes from the signs of successive gradients alone. Like delta-bar-delta, it is for full-batch gradients only.
//
// M. Riedmiller, H. Braun, A direct adaptive method for faster backpropagation learning: the RPROP algorithm, 1993. The
// form is that of torch.optim.Rprop, without weight backtracking: iRprop- of C. Igel, M. Huesken, 2003.
#pragma once

#include "adaptk/math.hpp"
#include "adaptk/rule.hpp"

ADAPTK_NAMESPACE_BEGIN

struct RProp {
    static constexpr const char* name = "rprop";
    static constexpr const char* class_name = "RProp";
    static constexpr const char* variant = "";
    static constexpr const char* summary =
        "Resilient propagation: step sizes from gradient signs. For full-batch gradients only.";
    static constexpr const char* formula =
        "s *= eta_plus if g*prev > 0;  s *= eta_minus and g = 0 if g*prev < 0;  s = clip(s, step_min, step_max)\n"
        "p -= sign(g)*s;  prev = g";
    static constexpr const char* source = "Riedmiller and Braun 1993; torch.optim.Rprop";
    static constexpr std::array hyperparameters{
        Hyperparameter{"lr", 1e-2, Range::nonnegative, "initial step size of every parameter"},
        Hyperparameter{"eta_minus", 0.5, Range::open_fraction, "factor of the step if the gradient changed its sign"},
        Hyperparameter{"eta_plus", 1.2, Range::above_one, "factor of the step if the gradient kept its sign"},
        Hyperparameter{"step_min", 1e-6, Range::nonnegative, "smallest step size"},
        Hyperparameter{"step_max", 50.0, Range::upper_bound, "largest step size"},
    };
    static constexpr std::array states{State{"prev", 0.0}, State{"step_size", 0.0, "lr", nullptr, true}};
    static constexpr auto conventions = presets(Preset{"torch"});
    struct Hyper {
        double lr, eta_minus, eta_plus, step_min, step_max;
    };
    static const char* invalid(const Hyper& h) {
        return h.step_min > h.step_max ? "step_min must not be greater than step_max" : nullptr;
    }
    template <class T> struct Coefficients {
        T eta_minus, eta_plus, step_min, step_max;
    };
    template <class T> ADAPTK_HOST_DEVICE static Coefficients<T> coefficients(const Hyper& h, std::int64_t) {
        return {T(h.eta_minus), T(h.eta_plus), T(h.step_min), T(h.step_max)};
    }
    static constexpr Idle idle = Idle::exact;
    static IdleSteps idle_steps(const Hyper&, double shrink, std::int64_t n) { return decayed(shrink, n, 0.0); }
    template <class T> ADAPTK_HD static void update(const Coefficients<T>& c, T& p, T g, T& prev, T& size) {
        const T same = g * prev;
        const T f = same > T(0) ? c.eta_plus : T(1);
        const T factor = same < T(0) ? c.eta_minus : f;
        size = clamp(size * factor, c.step_min, c.step_max);
        const T kept = same < T(0) ? T(0) : g;
        p = p - sign(kept) * size;
        prev = kept;
    }
};

ADAPTK_NAMESPACE_END
