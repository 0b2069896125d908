"""Schedule-Free methods: Defazio et al., The Road Less Scheduled, 2024 (arXiv 2405.15682).

The param is the point y that gradients are taken at, z is the sequence that steps are taken on, and x, the average of
z by which a model is evaluated, follows from both: y = (1 - beta1) z + beta1 x.
"""

from __future__ import annotations

from typing import Any

from adaptk._trace import decay_of, maximum, minimum, sqrt, stored, where
from adaptk.catalogue._entry import average, entry

_SOURCE = "Defazio et al. 2024"
_CARRIED = {"lr_max": 0.0, "weight_sum": 0.0}
_MEANINGS = {
    "beta1": "weight of the average x, against z, in the point at which gradients are taken",
    "warmup": "number of steps in which the learning rate rises to its value",
    "weight_lr_power": "power of the largest learning rate so far in the weights of the average",
    "r": "power of the step number in the weights of the average",
    "lr_max": "the largest learning rate so far; carried from step to step",
    "weight_sum": "the sum of the weights so far; carried from step to step",
}
_RANGES = {
    "beta1": "(0, 1)",
    "warmup": "[0, inf)",
    "weight_lr_power": "[0, inf)",
    "r": "[0, inf)",
    "lr_max": "[0, inf)",
    "weight_sum": "[0, inf]",
}
_END = (
    "w = t**r * lr_max**weight_lr_power;  W += w;  c = w/W\np = (1 - c)*p + c*z + lr*(beta1*(1 - c) - 1)*d;  z -= lr*d"
)


@entry("", formula="x = p + (1 - 1/beta1)*(z - p)", source=_SOURCE, states={"z": 0.0}, lr=0.0, beta1=0.9,
       ranges={"beta1": "(0, 1)"})  # fmt: skip
def schedule_free_average(p: Any, g: Any, z: Any, h: Any, t: Any) -> Any:
    """The average of z, from the gradient's point and z."""
    return g + (1 - 1 / h.beta1) * (z - g), z


def _step(p: Any, d: Any, z: Any, lr: Any, h: Any, t: Any) -> Any:
    y = stored(p)
    d = d + decay_of(h, t) * y
    lr_max = maximum(h.lr_max, lr)
    weight = t**h.r * lr_max**h.weight_lr_power
    weight_sum = h.weight_sum + weight
    c = where(weight_sum > 0, weight / weight_sum, 0.0)
    return (1 - c) * y + c * z + lr * (h.beta1 * (1 - c) - 1) * d, z - lr * d, lr_max, weight_sum


def _rate(h: Any, t: Any) -> Any:
    return h.lr * minimum(t / h.warmup, 1.0)


@entry("ScheduleFreeSGD", formula=f"d = g + weight_decay*p\n{_END}", source=_SOURCE, states={"z": "param"},
       carried=_CARRIED, lr=1.0, beta1=0.9, warmup=0.0, weight_lr_power=2.0, r=0.0, decoupled=True,
       meanings=_MEANINGS, ranges=_RANGES, evaluation="schedule_free_average")  # fmt: skip
def schedule_free_sgd(p: Any, g: Any, z: Any, h: Any, t: Any) -> Any:
    """Gradient descent with an average of the params instead of a learning-rate schedule."""
    y, z, lr_max, weight_sum = _step(p, g, z, _rate(h, t), h, t)
    return y, z, lr_max, weight_sum


@entry("ScheduleFreeAdamW",
       formula=f"v = beta2*v + (1 - beta2)*g^2\nd = g/(sqrt(v/(1 - beta2^t)) + eps) + weight_decay*p\n{_END}",
       source=_SOURCE, states={"z": "param", "exp_avg_sq": 0.0}, nonnegative=["exp_avg_sq"], carried=_CARRIED,
       lr=2.5e-3, beta1=0.9, beta2=0.999, eps=1e-8, warmup=0.0, weight_lr_power=2.0, r=0.0, decoupled=True,
       meanings=_MEANINGS, ranges=_RANGES, evaluation="schedule_free_average")  # fmt: skip
def schedule_free_adamw(p: Any, g: Any, z: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """AdamW with an average of the params instead of a learning-rate schedule and the first moment."""
    v = average(exp_avg_sq, g * g, h.beta2)
    d = g / (sqrt(v) * (1 / sqrt(1 - h.beta2**t)) + h.eps)
    y, z, lr_max, weight_sum = _step(p, d, z, _rate(h, t), h, t)
    return y, z, v, lr_max, weight_sum


@entry("ScheduleFreeRAdam",
       formula="rho_inf = 2/(1 - beta2) - 1;  rho = rho_inf - 2*t*beta2^t/(1 - beta2^t)\n"
       "rho > 4: lr *= sqrt((rho - 4)*(rho - 2)*rho_inf/((rho_inf - 4)*(rho_inf - 2)*rho))\n"
       "         d = g/(sqrt(v/(1 - beta2^t)) + eps) + weight_decay*p\n"
       "else:    lr = 0 (silent_sgd_phase);  d = g + weight_decay*p\n"
       f"v = beta2*v + (1 - beta2)*g^2\n{_END}",
       source=_SOURCE, states={"z": "param", "exp_avg_sq": 0.0}, nonnegative=["exp_avg_sq"], carried=_CARRIED,
       lr=2.5e-3, beta1=0.9, beta2=0.999, eps=1e-8, silent_sgd_phase=True, weight_lr_power=2.0, r=0.0, decoupled=True,
       meanings={**_MEANINGS, "silent_sgd_phase": "change nothing but v in the first steps"}, ranges=_RANGES,
       evaluation="schedule_free_average")  # fmt: skip
def schedule_free_radam(p: Any, g: Any, z: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """RAdam with an average of the params instead of a learning-rate schedule and the first moment."""
    v = average(exp_avg_sq, g * g, h.beta2)
    c2 = 1 - h.beta2**t
    rho_inf = 2 / (1 - h.beta2) - 1
    rho = rho_inf - 2 * t * h.beta2**t / c2
    rectified = rho > 4
    rect = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    d = g / where(rectified, sqrt(v) * (1 / sqrt(c2)) + h.eps, 1.0)
    lr = h.lr * where(rectified, rect, where(h.silent_sgd_phase != 0, 0.0, 1.0))
    y, z, lr_max, weight_sum = _step(p, d, z, lr, h, t)
    return y, z, v, lr_max, weight_sum
