"""Rules that estimate their step size, from sums over all tensors."""

from __future__ import annotations

from typing import Any

from adaptk._trace import abs, decay_of, maximum, minimum, norm, sqrt, stored, sum, where
from adaptk.catalogue._entry import average, entry

_MOMENTS: dict[str, float | str] = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
_RANGES = {"d0": "(0, inf)", "d_coef": "(0, inf)", "eps": "(0, inf)", "growth_rate": "[0, inf]"}
_MEANINGS = {
    "lr": "factor of the estimated step size; 1, or a schedule",
    "d0": "the first estimate, which should be too small",
    "d_coef": "factor of later estimates",
    "growth_rate": "largest factor by which the estimate may grow in a step",
    "d": "the estimate: 0 before the first step",
    "d_max": "the largest estimate so far",
    "numerator": "the numerator of the estimate",
    "g0_norm": "norm of the first gradients",
}


@entry("Prodigy",
       formula="m = beta1*m + (1 - beta1)*d*g;  v = beta2*v + (1 - beta2)*d^2*g^2;  c = lr*d^2/d0\n"
       "s = sqrt(beta2)*s + c*g;  r = sqrt(beta2)*r + c*<g, p_0 - p>;  p -= d*lr*m/(sqrt(v) + d*eps)\n"
       "d = max(d, d_coef*r/|s|_1), over all tensors",
       source="Mishchenko, Defazio 2023", states={**_MOMENTS, "s": 0.0, "p0": "param"}, nonnegative=["exp_avg_sq"],
       carried={"d": 0.0, "d_max": 0.0, "numerator": 0.0}, lr=1.0, beta1=0.9, beta2=0.999, eps=1e-8, d0=1e-6,
       d_coef=1.0, growth_rate=float("inf"), use_bias_correction=False, decoupled=True, ranges=_RANGES,
       meanings={**_MEANINGS, "use_bias_correction": "also correct the moments' bias, as Adam does"})  # fmt: skip
def prodigy(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, s: Any, p0: Any, h: Any, t: Any) -> Any:
    """Adam with an estimate of the distance to the solution as its step size."""
    p = stored(t)
    d = where(h.d > 0, h.d, h.d0)
    lr = d * h.lr * where(h.use_bias_correction != 0, sqrt(1 - h.beta2**t) / (1 - h.beta1**t), 1.0)
    beta3 = sqrt(h.beta2)
    weight = d / h.d0 * lr
    m = h.beta1 * exp_avg + d * (1 - h.beta1) * g
    v = h.beta2 * exp_avg_sq + d * d * (1 - h.beta2) * (g * g)
    s = beta3 * s + weight * g
    numerator = beta3 * h.numerator + weight * sum(g * (p0 - p), "all")
    length = sum(abs(s), "all")
    estimate = where(length > 0, h.d_coef * numerator / length, d)
    largest = maximum(maximum(h.d_max, d), estimate)
    new = minimum(largest, where(d == h.d0, maximum(d, estimate), d) * h.growth_rate)
    p = p - lr * decay_of(h, t) * p
    return p - lr * m / (sqrt(v) + d * h.eps), m, v, s, p0, new, largest, numerator


@entry("DAdaptAdam",
       formula="s' = sqrt(beta2)*s + (1 - sqrt(beta2))*d*lr*g;  m = beta1*m + (1 - beta1)*d*lr*g\n"
       "r = sqrt(beta2)*r + (1 - sqrt(beta2))*d*lr*<g, s/(sqrt(v) + eps)>;  v = beta2*v + (1 - beta2)*g^2\n"
       "p -= m/(sqrt(v) + eps);  d = max(d, r/((1 - sqrt(beta2))*|s'|_1)), over all tensors",
       source="Defazio, Mishchenko 2023", states={**_MOMENTS, "s": 0.0}, nonnegative=["exp_avg_sq"],
       carried={"d": 0.0, "numerator": 0.0}, lr=1.0, beta1=0.9, beta2=0.999, eps=1e-8, d0=1e-6,
       growth_rate=float("inf"), use_bias_correction=False, decoupled=True,
       ranges={h: _RANGES[h] for h in ("d0", "eps", "growth_rate")},
       meanings={**_MEANINGS, "use_bias_correction": "also correct the moments' bias, as Adam does"})  # fmt: skip
def dadapt_adam(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, s: Any, h: Any, t: Any) -> Any:
    """Adam with a lower bound of the distance to the solution as its step size."""
    p = stored(t)
    d = where(h.d > 0, h.d, h.d0)
    lr = d * h.lr * where(h.use_bias_correction != 0, sqrt(1 - h.beta2**t) / (1 - h.beta1**t), 1.0)
    beta3 = sqrt(h.beta2)
    product = sum(g * (s / (sqrt(exp_avg_sq) + h.eps)), "all")
    m = h.beta1 * exp_avg + lr * (1 - h.beta1) * g
    v = average(exp_avg_sq, g * g, h.beta2)
    s = beta3 * s + lr * (1 - beta3) * g
    numerator = beta3 * h.numerator + (1 - beta3) * (lr * product)
    length = sum(abs(s), "all")
    estimate = where(length > 0, numerator / ((1 - beta3) * length), d)
    p = p - lr * decay_of(h, t) * p
    return p - m / (sqrt(v) + h.eps), m, v, s, maximum(d, minimum(estimate, d * h.growth_rate)), numerator


@entry("DAdaptSGD",
       formula="c = d*lr/|g_1|;  r += c*<g, s>;  s += c*g;  p = momentum*p + (1 - momentum)*(p_0 - s)\n"
       "d = max(d, 2*r/|s|), over all tensors",
       source="Defazio, Mishchenko 2023", states={"s": 0.0, "p0": "param"},
       carried={"d": 0.0, "numerator": 0.0, "g0_norm": 0.0}, lr=1.0, momentum=0.0, d0=1e-6,
       growth_rate=float("inf"), ranges={h: _RANGES[h] for h in ("d0", "growth_rate")},
       meanings={**_MEANINGS, "momentum": "weight of the param against the averaged steps"})  # fmt: skip
def dadapt_sgd(p: Any, g: Any, s: Any, p0: Any, h: Any, t: Any) -> Any:
    """Gradient descent with a lower bound of the distance to the solution as its step size."""
    d = where(h.d > 0, h.d, h.d0)
    first = where(h.g0_norm > 0, h.g0_norm, norm(g, "all"))
    weight = where(first > 0, d * h.lr / first, 0.0)
    numerator = h.numerator + weight * sum(g * s, "all")
    s = s + weight * g
    length = norm(s, "all")
    estimate = where(length > 0, 2 * numerator / length, d)
    p = h.momentum * p + (1 - h.momentum) * (p0 - s)
    return p, s, p0, maximum(d, minimum(estimate, d * h.growth_rate)), numerator, first


@entry("DoG",
       formula="r = max(r, |p - p_0|, reps_rel*(1 + |p_0|));  G += |g|^2;  p -= lr*r/sqrt(G + eps)*g, over all tensors",
       source="Ivgi, Hinder, Carmon 2023", states={"p0": "param"}, carried={"distance": 0.0, "squares": 0.0}, lr=1.0,
       reps_rel=1e-6, eps=1e-8, ranges={"reps_rel": "(0, inf)"},
       meanings={"lr": _MEANINGS["lr"], "reps_rel": "the first distance, relative to 1 + |p_0|",
                 "eps": "small constant that is added to the sum of squares", "distance": "the largest distance so far",
                 "squares": "the sum of squared norms of gradients"})  # fmt: skip
def dog(p: Any, g: Any, p0: Any, h: Any, t: Any) -> Any:
    """Gradient descent with the largest distance so far, divided by the root of the sum of squared gradients."""
    distance = maximum(h.distance, maximum(norm(p - p0, "all"), h.reps_rel * (1 + norm(p0, "all"))))
    length = norm(g, "all")
    squares = h.squares + length * length
    return p - h.lr * distance / sqrt(squares + h.eps) * g, p0, distance, squares


@entry("DoWG",
       formula="r = max(r, |p - p_0|, d0);  G += r^2*|g|^2;  p -= lr*r^2/(sqrt(G) + eps)*g, over all tensors",
       source="Khaled, Mishchenko, Jin 2023", states={"p0": "param"}, carried={"distance": 0.0, "squares": 0.0},
       lr=1.0, d0=0.01, eps=1e-4, ranges={"d0": "(0, inf)"},
       meanings={"lr": _MEANINGS["lr"], "d0": "the first distance",
                 "eps": "small constant that is added to the root", "distance": "the largest distance so far",
                 "squares": "the weighted sum of squared norms of gradients"})  # fmt: skip
def dowg(p: Any, g: Any, p0: Any, h: Any, t: Any) -> Any:
    """DoG with gradients weighted by the squared distance at their step."""
    distance = maximum(h.distance, maximum(norm(p - p0, "all"), h.d0))
    length = norm(g, "all")
    weight = distance * distance
    squares = h.squares + weight * (length * length)
    return p - h.lr * weight / (sqrt(squares) + h.eps) * g, p0, distance, squares
