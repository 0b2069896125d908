"""Rules whose step depends on a norm or a mean of the whole tensor."""

from __future__ import annotations

from typing import Any

from adaptk._trace import decay_of, maximum, mean, norm, sqrt, stored, where
from adaptk.catalogue._entry import average, entry

_MOMENTS: dict[str, float | str] = {"exp_avg": 0.0, "exp_avg_sq": 0.0}


@entry("LAMB",
       formula="m = beta1*m + (1 - beta1)*g;  v = beta2*v + (1 - beta2)*g^2\n"
       "u = m/(1 - beta1^t)/(sqrt(v/(1 - beta2^t)) + eps) + weight_decay*p;  p -= lr*|p|/|u|*u\n"
       "|p|/|u| of the tensor; 1 if one of them is 0",
       source="You et al. 2020", states=_MOMENTS, nonnegative=["exp_avg_sq"], lr=1e-3, beta1=0.9, beta2=0.999,
       eps=1e-6, weight_decay=0.01, decoupled=True)  # fmt: skip
def lamb(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Adam whose step is as long, in each tensor, as the learning rate times the tensor's norm."""
    p = stored(t)
    m = average(exp_avg, g, h.beta1)
    v = average(exp_avg_sq, g * g, h.beta2)
    root = sqrt(v) * (1 / sqrt(1 - h.beta2**t)) + h.eps
    u = 1 / (1 - h.beta1**t) * m / root + decay_of(h, t) * p
    length, of_u = norm(p), norm(u)
    ratio = where((length > 0) & (of_u > 0), length / of_u, 1.0)
    return p - h.lr * ratio * u, m, v


@entry("LARS",
       formula="r = trust*|p|/(|g| + weight_decay*|p|) of the tensor; 1 if |p| or |g| is 0\n"
       "b = momentum*b + lr*r*(g + weight_decay*p);  p -= b",
       source="You, Gitman, Ginsburg 2017", states={"momentum_buffer": 0.0}, lr=0.1, momentum=0.9, trust=1e-3,
       decoupled=True, ranges={"trust": "[0, inf)"},
       meanings={"trust": "length of a step over the norm of the tensor, for a learning rate of 1"})  # fmt: skip
def lars(p: Any, g: Any, momentum_buffer: Any, h: Any, t: Any) -> Any:
    """Momentum of gradients that are scaled, in each tensor, to the tensor's norm."""
    p = stored(t)
    decay = decay_of(h, t)
    length, of_g = norm(p), norm(g)
    ratio = where((length > 0) & (of_g > 0), h.trust * length / (of_g + decay * length), 1.0)
    b = h.momentum * momentum_buffer + h.lr * ratio * (g + decay * p)
    return p - b, b


@entry("StableAdamW",
       formula="m = b1*m + (1 - b1)*g;  v = b2*v + (1 - b2)*g^2;  b = beta*(1 - beta^(t-1))/(1 - beta^t)\n"
       "r = lr/max(1, sqrt(mean(g^2/max(v, eps^2)))) of the tensor\n"
       "p -= r*(m/(sqrt(v) + eps) + weight_decay*p)",
       source="Wortsman et al. 2023", states=_MOMENTS, nonnegative=["exp_avg_sq"], lr=1e-3, beta1=0.9, beta2=0.99,
       eps=1e-6, weight_decay=0.01, decoupled=True)  # fmt: skip
def stable_adamw(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """AdamW with a smaller learning rate in tensors whose second moment is outdated."""
    p = stored(t)
    beta1 = h.beta1 * (1 - h.beta1 ** (t - 1)) / (1 - h.beta1**t)
    beta2 = h.beta2 * (1 - h.beta2 ** (t - 1)) / (1 - h.beta2**t)
    m = average(exp_avg, g, beta1)
    square = g * g
    v = average(exp_avg_sq, square, beta2)
    lr = h.lr / maximum(1.0, sqrt(mean(square / maximum(v, h.eps * h.eps))))
    return (1 - lr * decay_of(h, t)) * p - lr * m / (sqrt(v) + h.eps), m, v


@entry("Fromage",
       formula="p = (p - lr*|p|/|g|*g)/sqrt(1 + lr^2);  |p|/|g| of the tensor, 1 if one of them is 0",
       source="Bernstein et al. 2020", lr=0.01, decoupled=True)  # fmt: skip
def fromage(p: Any, g: Any, h: Any, t: Any) -> Any:
    """Steps whose length is a fixed fraction of the tensor's norm, corrected for the growth of the norm."""
    length, of_g = norm(p), norm(g)
    ratio = where((length > 0) & (of_g > 0), length / of_g, 1.0)
    return 1 / sqrt(1 + h.lr * h.lr) * (p - h.lr * ratio * g)


@entry("NovoGrad",
       formula="v = beta2*v + (1 - beta2)*|g|^2 of the tensor; |g|^2 at the first step\n"
       "m = beta1*m + g/(sqrt(v) + eps) + weight_decay*p;  p -= lr*m",
       source="Ginsburg et al. 2019", states={"exp_avg": 0.0, "exp_avg_sq": 0.0}, per={"exp_avg_sq": "tensor"},
       nonnegative=["exp_avg_sq"], lr=0.01, beta1=0.95, beta2=0.98, eps=1e-8, decoupled=True)  # fmt: skip
def novograd(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """Momentum of gradients that are divided, in each tensor, by the root of one second moment."""
    p = stored(t)
    square = norm(g) ** 2
    v = where(t == 1, square, average(exp_avg_sq, square, h.beta2))
    m = h.beta1 * exp_avg + (1 / (sqrt(v) + h.eps) * g + decay_of(h, t) * p)
    return p - h.lr * m, m, v
