"""Rules that divide a moment of the gradient by the root of a second one."""

from __future__ import annotations

from typing import Any

from adaptk._trace import abs, atan2, decay_of, exp, log, maximum, minimum, sign, sqrt, stored, where
from adaptk.catalogue._entry import average, entry

_MOMENTS: dict[str, float | str] = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
_SECOND = ["exp_avg_sq"]
_EPS_ROOT, _EPS_ROOT_RANGE = {"eps_root": "eps under the root"}, {"eps_root": "[0, inf)"}


def _clamp(x: Any, low: Any, high: Any) -> Any:
    return minimum(maximum(x, low), high)


def _root(v: Any, h: Any, t: Any) -> Any:
    """sqrt(v/(1 - beta2^t)) + eps"""
    return sqrt(v) * (1 / sqrt(1 - h.beta2**t)) + h.eps


@entry("AdEMAMix",
       formula="m1 = beta1*m1 + (1 - beta1)*g;  m2 = beta3_t*m2 + (1 - beta3_t)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "p -= lr*(m1/(1 - beta1^t) + alpha_t*m2)/(sqrt(v/(1 - beta2^t)) + eps)\n"
       "alpha_t = min(t/warmup, 1)*alpha;  beta3_t from beta1 to beta3 in as many steps",
       source="Pagliardini, Ablin, Grangier 2024", states={"exp_avg": 0.0, "exp_avg_slow": 0.0, "exp_avg_sq": 0.0},
       nonnegative=_SECOND, lr=1e-3, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=5.0, warmup=0.0, eps=1e-8,
       decoupled=True, ranges={"beta1": "(0, 1)", "beta3": "(0, 1)", "warmup": "[0, inf)"},
       meanings={"beta3": "decay of the slow first moment", "alpha": "weight of the slow first moment",
                 "warmup": "number of steps in which alpha and beta3 rise to their values"})  # fmt: skip
def ademamix(p: Any, g: Any, exp_avg: Any, exp_avg_slow: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam with a second, slow average of gradients."""
    s = t / h.warmup
    ratio = log(h.beta3) / log(h.beta1)
    rising = s < 1
    # exp(ln b1 ln b3 / ((1 - s) ln b3 + s ln b1)), with ln b3 = ratio ln b1
    beta3 = where(rising, minimum(h.beta1 ** (ratio / ((1 - s) * ratio + s)), h.beta3), h.beta3)
    alpha = where(rising, s * h.alpha, h.alpha)
    fast = average(exp_avg, g, h.beta1)
    slow = average(exp_avg_slow, g, beta3)
    v = average(exp_avg_sq, g * g, h.beta2)
    step = h.lr / (1 - h.beta1**t) * fast + h.lr * alpha * slow
    return p - step / _root(v, h, t), fast, slow, v


@entry("SimplifiedAdEMAMix",
       formula="m = beta1*m + g;  v = beta2*v + (1 - beta2)*g^2\np -= lr*(m + alpha*g)/(sqrt(v/(1 - beta2^t)) + eps)",
       source="Morwani et al. 2025", states=_MOMENTS, nonnegative=_SECOND, lr=1e-4, beta1=0.99, beta2=0.95, alpha=0.0,
       eps=1e-8, decoupled=True, meanings={"beta1": "decay of the sum of gradients", "alpha": "weight of the gradient"},
       )  # fmt: skip
def simplified_ademamix(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """AdEMAMix with a sum of gradients, and the gradient instead of the fast average."""
    m = h.beta1 * exp_avg + g
    v = average(exp_avg_sq, g * g, h.beta2)
    return p - h.lr * (m + h.alpha * g) / _root(v, h, t), m, v


@entry("ADOPT",
       formula="t = 1:  v = g^2\nt > 1:  d = clamp(g/max(sqrt(v), eps), +-(t - 1)^clip_exponent)\n"
       "        m = beta1*m + (1 - beta1)*d;  p -= lr*m;  v = beta2*v + (1 - beta2)*g^2",
       source="Taniguchi et al. 2024", states=_MOMENTS, nonnegative=_SECOND, lr=1e-3, beta1=0.9, beta2=0.9999, eps=1e-6,
       clip_exponent=0.25, decoupled=True,
       meanings={"clip_exponent": "power of t - 1 that bounds the scaled gradient", "eps": "lower bound of the root"},
       )  # fmt: skip
def adopt(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam that divides each gradient by the root of the previous second moment, before the first moment."""
    first = t == 1
    bound = (t - 1) ** h.clip_exponent
    d = _clamp(g / maximum(sqrt(exp_avg_sq), h.eps), -bound, bound)
    m = average(exp_avg, d, h.beta1)
    square = g * g
    v = where(first, square, average(exp_avg_sq, square, h.beta2))
    return where(first, stored(p), p - h.lr * m), where(first, exp_avg, m), v


@entry("NAdamW",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "p -= lr*(beta1*m/(1 - beta1^(t+1)) + (1 - beta1)*g/(1 - beta1^t))/(sqrt(v/(1 - beta2^t)) + eps)",
       source="Dozat 2016", states=_MOMENTS, nonnegative=_SECOND, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8,
       weight_decay=0.01, decoupled=True)  # fmt: skip
def nadamw(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """AdamW with Nesterov's momentum, without a schedule of the momentum."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    step = h.lr * h.beta1 / (1 - h.beta1 ** (t + 1)) * m + h.lr * (1 - h.beta1) / (1 - h.beta1**t) * g
    return p - step / _root(v, h, t), m, v


@entry("LaProp",
       formula="v = beta2*v + (1 - beta2)*g^2;  m = beta1*m + (1 - beta1)*g/(sqrt(v/(1 - beta2^t)) + eps)\n"
       "p -= lr*m/(1 - beta1^t)",
       source="Ziyin, Wang, Ueda 2020", states=_MOMENTS, nonnegative=_SECOND, lr=4e-4, beta1=0.9, beta2=0.999,
       eps=1e-15, decoupled=True)  # fmt: skip
def laprop(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Momentum of the scaled gradient: the two operations of Adam in reverse order."""
    v = average(exp_avg_sq, g * g, h.beta2)
    m = average(exp_avg, g / _root(v, h, t), h.beta1)
    return p - h.lr / (1 - h.beta1**t) * m, m, v


def _mars(g: Any, before: Any, h: Any) -> Any:
    return g + h.gamma * (h.beta1 / (1 - h.beta1)) * (g - before)


@entry("MARSAdamW",
       formula="c = g + gamma*beta1/(1 - beta1)*(g - g_prev);  m = beta1*m + (1 - beta1)*c\n"
       "v = beta2*v + (1 - beta2)*c^2;  p -= lr*m/(1 - beta1^t)/(sqrt(v/(1 - beta2^t)) + eps)",
       source="Yuan et al. 2024", states={**_MOMENTS, "prev_grad": "grad"}, nonnegative=_SECOND, lr=3e-3, beta1=0.95,
       beta2=0.99, gamma=0.025, eps=1e-8, decoupled=True,
       meanings={"gamma": "weight of the change of the gradient"})  # fmt: skip
def mars_adamw(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, prev_grad: Any, h: Any, t: Any) -> Any:
    """AdamW on gradients of reduced variance, which are not clipped."""
    c = _mars(g, prev_grad, h)
    m = average(exp_avg, c, h.beta1)
    v = average(exp_avg_sq, c * c, h.beta2)
    return p - h.lr / (1 - h.beta1**t) * m / _root(v, h, t), m, v, g


@entry("MARSLion",
       formula="c = g + gamma*beta1/(1 - beta1)*(g - g_prev);  m = beta1*m + (1 - beta1)*c;  p -= lr*sign(m)",
       source="Yuan et al. 2024", states={"exp_avg": 0.0, "prev_grad": "grad"}, lr=3e-3, beta1=0.95, gamma=0.025,
       decoupled=True, meanings={"gamma": "weight of the change of the gradient"})  # fmt: skip
def mars_lion(p: Any, g: Any, exp_avg: Any, prev_grad: Any, h: Any, t: Any) -> Any:
    """The sign of a momentum of gradients of reduced variance, which are not clipped."""
    m = average(exp_avg, _mars(g, prev_grad, h), h.beta1)
    return p - h.lr * sign(m), m, g


@entry("", formula="p += lr*(g - p)", source="Liu et al. 2023", lr=0.01,
       meanings={"lr": "weight of the new estimate, 1 - beta2"})  # fmt: skip
def sophia_hessian(p: Any, g: Any, h: Any, t: Any) -> Any:
    """Sophia's average of estimates of the Hessian's diagonal: `param` is the average, `grad` the estimate."""
    return average(p, g, 1 - h.lr)


@entry("Sophia",
       formula="m = beta1*m + (1 - beta1)*g;  p -= lr*clamp(m/max(gamma*hessian, eps), +-1)\n"
       "hessian is the caller's: every 10 steps or so, adaptk.ops.sophia_hessian(hessian, estimate, step=1)",
       source="Liu et al. 2023", states={"exp_avg": 0.0, "hessian": 0.0}, lr=4e-4, beta1=0.965, gamma=0.05, eps=1e-12,
       weight_decay=0.1, decoupled=True,
       meanings={"gamma": "factor of the Hessian", "eps": "lower bound of the divisor"})  # fmt: skip
def sophia(p: Any, g: Any, exp_avg: Any, hessian: Any, h: Any, t: Any) -> Any:
    """A clipped step by an average of estimates of the Hessian's diagonal."""
    m = average(exp_avg, g, h.beta1)
    return p - h.lr * _clamp(m / maximum(h.gamma * hessian, h.eps), -1.0, 1.0), m, hessian


@entry("AdaHessian",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*hessian^2\n"
       "p -= lr*m/(1 - beta1^t)/(sqrt(v/(1 - beta2^t)) + eps)\nhessian is the caller's: written before each step",
       source="Yao et al. 2020", states={"exp_avg": 0.0, "exp_hessian_sq": 0.0, "hessian": 0.0},
       nonnegative=["exp_hessian_sq"], lr=0.15, beta1=0.9, beta2=0.999, eps=1e-4, decoupled=True)  # fmt: skip
def adahessian(p: Any, g: Any, exp_avg: Any, exp_hessian_sq: Any, hessian: Any, h: Any, t: Any) -> Any:
    """Adam with the Hessian's diagonal in the second moment."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_hessian_sq, hessian * hessian, h.beta2)
    return p - h.lr / (1 - h.beta1**t) * m / _root(v, h, t), m, v, hessian


@entry("AdamS",
       formula="w = beta2*m^2 + (1 - beta2)*g^2;  m = beta1*m + (1 - beta1)*g;  p -= lr*m/(sqrt(w) + eps)",
       source="Zhang, Wang, Chen 2025", states={"exp_avg": 0.0}, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8,
       decoupled=True, meanings={"beta2": "weight of the old momentum's square"})  # fmt: skip
def adams(p: Any, g: Any, exp_avg: Any, h: Any, t: Any) -> Any:
    """Adam whose second moment is computed from the momentum, with one state."""
    w = h.beta2 * (exp_avg * exp_avg) + (1 - h.beta2) * (g * g)
    m = average(exp_avg, g, h.beta1)
    return p - h.lr * m / (sqrt(w) + h.eps), m


_BOUND = "s = lr*sqrt(1 - beta2^t)/(1 - beta1^t)/(sqrt({v}) + eps);  f = final_lr*lr/first_lr\n"
_BOUND += "p -= clamp(s, f*(1 - 1/(gamma*t + 1)), f*(1 + 1/(gamma*t)))*m"
_BOUND_MEANINGS = {
    "final_lr": "the rate of gradient descent to which the bounds converge",
    "gamma": "how fast the bounds converge",
    "first_lr": "the learning rate of the first step; carried from step to step",
}
_BOUND_RANGES = {"final_lr": "[0, inf)", "gamma": "(0, inf)", "first_lr": "[0, inf)"}


def _bounded(p: Any, m: Any, v: Any, h: Any, t: Any) -> Any:
    first = where(h.first_lr > 0, h.first_lr, h.lr)
    last = h.final_lr * where(first > 0, h.lr / first, 1.0)
    rate = h.lr * sqrt(1 - h.beta2**t) / (1 - h.beta1**t) / (sqrt(v) + h.eps)
    return p - _clamp(rate, last * (1 - 1 / (h.gamma * t + 1)), last * (1 + 1 / (h.gamma * t))) * m, first


@entry("AdaBound",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n" + _BOUND.format(v="v"),
       source="Luo et al. 2019", states=_MOMENTS, nonnegative=_SECOND, carried={"first_lr": 0.0}, lr=1e-3, beta1=0.9,
       beta2=0.999, eps=1e-8, final_lr=0.1, gamma=1e-3, meanings=_BOUND_MEANINGS, ranges=_BOUND_RANGES)  # fmt: skip
def adabound(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam whose rates are clipped to bounds that converge to the rate of gradient descent."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    p, first = _bounded(p, m, v, h, t)
    return p, m, v, first


@entry("AMSBound",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2;  x = max(x, v)\n" + _BOUND.format(v="x"),
       source="Luo et al. 2019", states={**_MOMENTS, "max_exp_avg_sq": 0.0}, nonnegative=[*_SECOND, "max_exp_avg_sq"],
       carried={"first_lr": 0.0}, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, final_lr=0.1, gamma=1e-3,
       meanings=_BOUND_MEANINGS, ranges=_BOUND_RANGES)  # fmt: skip
def amsbound(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, max_exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """AMSGrad whose rates are clipped to bounds that converge to the rate of gradient descent."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    x = maximum(max_exp_avg_sq, v)
    p, first = _bounded(p, m, x, h, t)
    return p, m, v, x, first


@entry("QHAdam",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "p -= lr*((1 - nu1)*g + nu1*m/(1 - beta1^t))/(sqrt((1 - nu2)*g^2 + nu2*v/(1 - beta2^t)) + eps)",
       source="Ma, Yarats 2018", states=_MOMENTS, nonnegative=_SECOND, lr=1e-3, beta1=0.995, beta2=0.999, nu1=0.7,
       nu2=1.0, eps=1e-8, ranges={"nu1": "[0, inf)", "nu2": "[0, 1]"},
       meanings={"nu1": "weight of the first moment against the gradient",
                 "nu2": "weight of the second moment against the squared gradient"},
       )  # fmt: skip
def qhadam(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam with weighted means of the moments and of the gradient itself."""
    square = g * g
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, square, h.beta2)
    step = h.lr * (1 - h.nu1) * g + h.lr * h.nu1 / (1 - h.beta1**t) * m
    return p - step / (sqrt((1 - h.nu2) * square + h.nu2 / (1 - h.beta2**t) * v) + h.eps), m, v


@entry("Grams",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "p -= lr*sign(g)*abs(m/(1 - beta1^t)/(sqrt(v/(1 - beta2^t)) + eps))",
       source="Cao et al. 2024", states=_MOMENTS, nonnegative=_SECOND, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6,
       decoupled=True)  # fmt: skip
def grams(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Steps with the magnitude of Adam's and the sign of the gradient."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    return p - sign(g) * abs(h.lr / (1 - h.beta1**t) * m / _root(v, h, t)), m, v


@entry("AdaMod",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "s = lr*sqrt(1 - beta2^t)/(1 - beta1^t)/(sqrt(v) + eps);  q = beta3*q + (1 - beta3)*s;  p -= min(s, q)*m",
       source="Ding et al. 2019", states={**_MOMENTS, "exp_avg_rate": 0.0}, nonnegative=[*_SECOND, "exp_avg_rate"],
       lr=1e-3, beta1=0.9, beta2=0.999, beta3=0.999, eps=1e-8, meanings={"beta3": "decay of the rates"})  # fmt: skip
def adamod(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, exp_avg_rate: Any, h: Any, t: Any) -> Any:
    """Adam whose rates are bounded by their moving average."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    rate = h.lr * sqrt(1 - h.beta2**t) / (1 - h.beta1**t) / (sqrt(v) + h.eps)
    q = average(exp_avg_rate, rate, h.beta3)
    return p - minimum(rate, q) * m, m, v, q


@entry("PAdam",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2;  x = max(x, v)\n"
       "p -= lr*sqrt(1 - beta2^t)/(1 - beta1^t)*m/sqrt(sqrt(x) + eps)",
       source="Chen et al. 2018", states={**_MOMENTS, "max_exp_avg_sq": 0.0}, nonnegative=[*_SECOND, "max_exp_avg_sq"],
       lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8)  # fmt: skip
def padam(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, max_exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """AMSGrad with the power 1/4 of the second moment instead of 1/2."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    x = maximum(max_exp_avg_sq, v)
    return p - h.lr * sqrt(1 - h.beta2**t) / (1 - h.beta1**t) * m / sqrt(sqrt(x) + h.eps), m, v, x


@entry("AMSGradCorrected",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2;  x = max(x, v/(1 - beta2^t))\n"
       "p -= lr*m/(1 - beta1^t)/(sqrt(x + eps_root) + eps)",
       source="Reddi et al. 2018; optax.amsgrad", states={**_MOMENTS, "max_exp_avg_sq": 0.0},
       nonnegative=[*_SECOND, "max_exp_avg_sq"], lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_root=0.0,
       ranges=_EPS_ROOT_RANGE, meanings=_EPS_ROOT)  # fmt: skip
def amsgrad_corrected(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, max_exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """AMSGrad with the maximum of bias-corrected second moments, as in optax."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    x = maximum(max_exp_avg_sq, 1 / (1 - h.beta2**t) * v)
    return p - h.lr / (1 - h.beta1**t) * m / (sqrt(x + h.eps_root) + h.eps), m, v, x


@entry("RAdamCorrected",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "rho_inf = 2/(1 - beta2) - 1;  rho = rho_inf - 2*t*beta2^t/(1 - beta2^t)\n"
       "rho >= threshold:  p -= lr*r*m/(1 - beta1^t)/(sqrt(v/(1 - beta2^t) + eps_root) + eps)\n"
       "                   r = sqrt((rho-4)*(rho-2)*rho_inf/((rho_inf-4)*(rho_inf-2)*rho))\n"
       "else:              p -= lr*m/(1 - beta1^t)",
       source="Liu et al. 2020; optax.radam", states=_MOMENTS, nonnegative=_SECOND, lr=1e-3, beta1=0.9, beta2=0.999,
       eps=1e-8, eps_root=0.0, threshold=5.0, ranges={**_EPS_ROOT_RANGE, "threshold": "[0, inf)"},
       meanings={**_EPS_ROOT, "threshold": "value of rho from which on the rate is adaptive, at least 4"})  # fmt: skip
def radam_corrected(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """RAdam with eps added to the bias-corrected root, as in optax."""
    b2t = h.beta2**t
    c2 = 1 - b2t
    rho_inf = 2 / (1 - h.beta2) - 1
    rho = rho_inf - 2 * t * b2t / c2
    r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    adaptive = rho >= maximum(h.threshold, 4)
    step = h.lr * where(adaptive, r, 1.0) / (1 - h.beta1**t)
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    return p - step * m / where(adaptive, sqrt(1 / c2 * v + h.eps_root) + h.eps, 1.0), m, v


@entry("EXAdam",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "d1 = 1 + v/(v + eps)*beta2^t;  d2 = 1 + m^2/(m^2 + eps)*beta1^t\n"
       "p -= lr*(m + g)/(1 - beta1^t)*d1/(sqrt(v/(1 - beta2^t)*d2) + eps)",
       source="Adly 2024", states=_MOMENTS, nonnegative=_SECOND, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8,
       decoupled=True)  # fmt: skip
def exadam(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam with bias corrections that depend on both moments, and the gradient added to the first moment."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    b1, b2 = h.beta1**t, h.beta2**t
    d1 = 1 + v / (v + h.eps) * b2
    d2 = 1 + m * m / (m * m + h.eps) * b1
    return p - h.lr / (1 - b1) * (m + g) * d1 / (sqrt(1 / (1 - b2) * v * d2) + h.eps), m, v


@entry("AdamAtan2",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "p -= lr*a*atan2(m/(1 - beta1^t), b*sqrt(v/(1 - beta2^t)))",
       source="Everett et al. 2024", states=_MOMENTS, nonnegative=_SECOND, lr=1e-3, beta1=0.9, beta2=0.999, a=1.27,
       b=1.0, decoupled=True, ranges={"a": "[0, inf)", "b": "[0, inf)"},
       meanings={"a": "factor of the angle", "b": "factor of the root"})  # fmt: skip
def adam_atan2(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam with an angle instead of a quotient: it needs no eps and does not depend on the scale of gradients."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    angle = atan2(1 / (1 - h.beta1**t) * m, h.b / sqrt(1 - h.beta2**t) * sqrt(v))
    return p - h.lr * h.a * angle, m, v


@entry("DiffGrad",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2;  f = 1/(1 + exp(-abs(g' - g)))\n"
       "p -= lr/(1 - beta1^t)*f*m/(sqrt(v/(1 - beta2^t)) + eps);  g' is the gradient before, 0 at first",
       source="Dubey et al. 2019", states={**_MOMENTS, "previous_grad": 0.0}, nonnegative=_SECOND, lr=1e-3, beta1=0.9,
       beta2=0.999, eps=1e-8)  # fmt: skip
def diffgrad(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, previous_grad: Any, h: Any, t: Any) -> Any:
    """Adam with shorter steps where the gradient changes little."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    friction = 1 / (1 + exp(-abs(previous_grad - g)))
    root = sqrt(v) * (1 / sqrt(1 - h.beta2**t)) + h.eps
    return p - h.lr / (1 - h.beta1**t) * friction * m / root, m, v, g


@entry("AdamG",
       formula="v = beta2*v + (1 - beta2)*g^2;  r = beta3*r + (1 - beta3)*scale*v^power\n"
       "m = beta1*m + (1 - beta1)*r*g;  p -= min(lr, 1/sqrt(t))*m/(1 - beta1^t)/(sqrt(v/(1 - beta2^t)) + eps)",
       source="Pang et al. 2024", states={**_MOMENTS, "numerator": 0.0}, nonnegative=[*_SECOND, "numerator"], lr=1.0,
       beta1=0.95, beta2=0.999, beta3=0.95, eps=1e-8, scale=0.2, power=0.24,
       ranges={"scale": "[0, inf)", "power": "(0, inf)"},
       meanings={"lr": "the largest step; 1/sqrt(t) bounds it too", "beta3": "decay of the numerator's average",
                 "scale": "factor of the numerator function", "power": "its power of the second moment"})  # fmt: skip
def adamg(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, numerator: Any, h: Any, t: Any) -> Any:
    """Adam on gradients multiplied by a power of their second moment. It needs no tuned learning rate."""
    v = average(exp_avg_sq, g * g, h.beta2)
    r = average(numerator, h.scale * exp(h.power * log(v)), h.beta3)
    m = average(exp_avg, r * g, h.beta1)
    step = minimum(h.lr, 1 / sqrt(t)) / (1 - h.beta1**t)
    return p - step * m / (sqrt(v) * (1 / sqrt(1 - h.beta2**t)) + h.eps), m, v, r


@entry("Ano",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*sign(g^2 - v)*g^2\n"
       "p -= lr*abs(g)*sign(m)/(sqrt(v/(1 - beta2^t)) + eps)",
       source="Kegreisz 2025", states=_MOMENTS, lr=1e-4, beta1=0.92, beta2=0.99, eps=1e-8, decoupled=True)  # fmt: skip
def ano(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """The momentum's direction with the gradient's magnitude."""
    square = g * g
    m = average(exp_avg, g, h.beta1)
    v = h.beta2 * exp_avg_sq + (1 - h.beta2) * sign(square - exp_avg_sq) * square
    return p - h.lr * abs(g) * sign(m) / _root(v, h, t), m, v


@entry("ACProp",
       formula="p -= lr*g/(sqrt(s/(1 - beta2^(t-1))) + eps), with 1 for the root if t = 1\n"
       "m = beta1*m + (1 - beta1)*g;  s = beta2*s + (1 - beta2)*(g - m)^2",
       source="Zhuang et al. 2021", states={"exp_avg": 0.0, "exp_avg_var": 0.0}, nonnegative=["exp_avg_var"], lr=1e-3,
       beta1=0.9, beta2=0.999, eps=1e-8, decoupled=True)  # fmt: skip
def acprop(p: Any, g: Any, exp_avg: Any, exp_avg_var: Any, h: Any, t: Any) -> Any:
    """The gradient divided by the root of its variance over the previous steps."""
    root = where(t == 1, 1.0, sqrt(exp_avg_var) * (1 / sqrt(1 - h.beta2 ** (t - 1))))
    m = average(exp_avg, g, h.beta1)
    d = g - m
    return p - h.lr * g / (root + h.eps), m, average(exp_avg_var, d * d, h.beta2)


@entry("OptimisticAdam",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "u = m/(1 - beta1^t)/(sqrt(v/(1 - beta2^t)) + eps);  p -= lr*(2*u - u_prev)",
       source="Daskalakis et al. 2017", states={**_MOMENTS, "prev_update": 0.0}, nonnegative=_SECOND, lr=1e-3,
       beta1=0.9, beta2=0.999, eps=1e-8, decoupled=True)  # fmt: skip
def optimistic_adam(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, prev_update: Any, h: Any, t: Any) -> Any:
    """Adam that extrapolates the last change of its step."""
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    u = 1 / (1 - h.beta1**t) * m / _root(v, h, t)
    return p - h.lr * (2 * u - where(t == 1, u, prev_update)), m, v, u


@entry("FTML",
       formula="v = beta2*v + (1 - beta2)*g^2;  d' = (1 - beta1^t)/lr*(sqrt(v/(1 - beta2^t)) + eps)\n"
       "z = beta1*z + (1 - beta1)*g - (d' - beta1*d)*p;  p = -z/d';  d = d'",
       source="Zheng, Kwok 2017", states={"exp_avg_sq": 0.0, "scale": 0.0, "linear": 0.0}, lr=2.5e-3, beta1=0.6,
       nonnegative=[*_SECOND, "scale"], beta2=0.999, eps=1e-8, ranges={"lr": "(0, inf)"},
       meanings={"beta1": "decay of the sums"})  # fmt: skip
def ftml(p: Any, g: Any, exp_avg_sq: Any, scale: Any, linear: Any, h: Any, t: Any) -> Any:
    """Follow the moving leader."""
    v = average(exp_avg_sq, g * g, h.beta2)
    d = (1 - h.beta1**t) / h.lr * _root(v, h, t)
    z = average(linear, g, h.beta1) - (d - h.beta1 * scale) * p
    return -z / d, v, d, z


@entry("FOCUS",
       formula="m = beta1*m + (1 - beta1)*g;  q = beta2*q + (1 - beta2)*p;  c = q/(1 - beta2^t)\n"
       "p -= lr*weight_decay*c;  p -= lr*(sign(m) + gamma*sign(p - c))",
       source="Liu et al. 2025", states={"exp_avg": 0.0, "param_avg": 0.0}, lr=1e-2, beta1=0.9, beta2=0.999, gamma=0.1,
       decoupled=True, meanings={"beta2": "decay of the params' average", "gamma": "strength of the attraction"},
       )  # fmt: skip
def focus(p: Any, g: Any, exp_avg: Any, param_avg: Any, h: Any, t: Any) -> Any:
    """Signum with an attraction to the average of the params."""
    own = stored(p)
    m = average(exp_avg, g, h.beta1)
    q = average(param_avg, own, h.beta2)
    centre = where(t == 1, own, 1 / (1 - h.beta2**t) * q)
    own = own - h.lr * decay_of(h, t) * centre
    return own - h.lr * (sign(m) + h.gamma * sign(own - centre)), m, q


@entry("MSVAG",
       formula="m = beta*m + (1 - beta)*g;  v = beta*v + (1 - beta)*g^2;  both divided by 1 - beta^t\n"
       "r = min((1 - beta)*(1 + beta^t)/((1 + beta)*(1 - beta^t)), 0.9999);  s = (v - m^2)/(1 - r)\n"
       "p -= lr*clamp(m^2/(m^2 + r*s), 0, 1)*m",
       source="Balles, Hennig 2017", states=_MOMENTS, nonnegative=_SECOND, lr=1e-2, beta=0.9, ranges={"beta": "[0, 1)"},
       meanings={"beta": "decay of both moments"})  # fmt: skip
def msvag(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Momentum, scaled down where its variance is large."""
    m = average(exp_avg, g, h.beta)
    v = average(exp_avg_sq, g * g, h.beta)
    c = h.beta**t
    r = minimum((1 - h.beta) * (1 + c) / ((1 + h.beta) * (1 - c)), 0.9999)
    mean, square = 1 / (1 - c) * m, 1 / (1 - c) * v
    mean_sq = mean * mean
    whole = mean_sq + r / (1 - r) * (square - mean_sq)
    factor = where(whole == 0, 0.0, _clamp(mean_sq / where(whole == 0, 1.0, whole), 0.0, 1.0))
    return p - h.lr * factor * mean, m, v
