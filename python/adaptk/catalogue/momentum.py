"""Rules that combine gradients of several steps, and divide by nothing."""

from __future__ import annotations

from typing import Any

from adaptk._trace import floor, maximum, sqrt, where
from adaptk.catalogue._entry import average, entry


@entry("QHM", formula="m = beta*m + (1 - beta)*g;  p -= lr*((1 - nu)*g + nu*m)", source="Ma, Yarats 2018",
       states={"exp_avg": 0.0}, lr=0.1, beta=0.999, nu=0.7, ranges={"beta": "[0, 1)", "nu": "[0, inf)"},
       meanings={"beta": "decay of the momentum", "nu": "weight of the momentum against the gradient"})  # fmt: skip
def qhm(p: Any, g: Any, exp_avg: Any, h: Any, t: Any) -> Any:
    """A weighted mean of momentum and gradient."""
    m = average(exp_avg, g, h.beta)
    return p - (h.lr * (1 - h.nu) * g + h.lr * h.nu * m), m


@entry("AggMo", formula="b1 = beta1*b1 + g;  b2 = beta2*b2 + g;  p -= lr/3*(g + b1 + b2)", source="Lucas et al. 2018",
       states={"momentum_buffer1": 0.0, "momentum_buffer2": 0.0}, lr=0.1, beta1=0.9, beta2=0.99,
       meanings={"beta1": "decay of the first sum", "beta2": "decay of the second sum"})  # fmt: skip
def aggmo(p: Any, g: Any, momentum_buffer1: Any, momentum_buffer2: Any, h: Any, t: Any) -> Any:
    """The mean of three velocities, with the momenta 0, beta1 and beta2."""
    b1 = h.beta1 * momentum_buffer1 + g
    b2 = h.beta2 * momentum_buffer2 + g
    return p - h.lr / 3 * (g + b1 + b2), b1, b2


@entry("PID",
       formula="i = momentum*i + (1 - dampening)*g;  d = momentum*d + (1 - momentum)*(g - g_prev)\n"
       "p -= lr*(g + integral*i + derivative*d)",
       source="An et al. 2018", states={"integral_buffer": 0.0, "derivative_buffer": 0.0, "prev_grad": "grad"},
       lr=1e-3, momentum=0.9, dampening=0.0, integral=5.0, derivative=10.0,
       meanings={"dampening": "part of the gradient that the sum leaves out", "integral": "weight of the sum",
                 "derivative": "weight of the change"})  # fmt: skip
def pid(p: Any, g: Any, integral_buffer: Any, derivative_buffer: Any, prev_grad: Any, h: Any, t: Any) -> Any:
    """The gradient, its sum and its change, as in a controller."""
    i = h.momentum * integral_buffer + (1 - h.dampening) * g
    d = average(derivative_buffer, g - prev_grad, h.momentum)
    return p - h.lr * (g + h.integral * i + h.derivative * d), i, d, g


@entry("AccSGD",
       formula="alpha = 1 - xi*c^2/kappa;  beta = 1 - alpha;  z = c/(c + beta)\n"
       "w = beta*((1/beta - 1)*w - lr*kappa/c*g + p);  p = z*(p - lr*g) + (1 - z)*w",
       source="Kidambi et al. 2018", states={"running_average": "param"}, lr=0.01, kappa=1000.0, xi=10.0,
       small_const=0.7,
       ranges={"kappa": "(0, inf)", "xi": "(0, inf)", "small_const": "(0, inf)"},
       meanings={"kappa": "ratio of the long to the short step", "xi": "statistical advantage, below sqrt(kappa)",
                 "small_const": "constant c below 1"})  # fmt: skip
def accsgd(p: Any, g: Any, running_average: Any, h: Any, t: Any) -> Any:
    """Gradient descent with a short and a long step."""
    beta = h.xi * h.small_const**2 / h.kappa
    z = h.small_const / (h.small_const + beta)
    w = (1 - beta) * running_average - beta * h.lr * h.kappa / h.small_const * g + beta * p
    return z * (p - h.lr * g) + (1 - z) * w, w


@entry("OptimisticSGD", formula="p -= lr*((1 + beta)*g - beta*g_prev)", source="Daskalakis et al. 2017",
       states={"prev_grad": "grad"}, lr=0.01, beta=1.0, meanings={"beta": "weight of the change of the gradient"},
       )  # fmt: skip
def optimistic_sgd(p: Any, g: Any, prev_grad: Any, h: Any, t: Any) -> Any:
    """Gradient descent that extrapolates the last change of the gradient."""
    return p - h.lr * ((1 + h.beta) * g - h.beta * prev_grad), g


def _noise(h: Any) -> Any:
    return (1 + h.beta0) ** 2 + h.beta0**2


@entry("PNM",
       formula="a, b = a and b in odd steps, else b and a\na = beta1^2*a + (1 - beta1^2)*g\n"
       "p -= lr*((1 + beta0)*a - beta0*b)/sqrt((1 + beta0)^2 + beta0^2)",
       source="Xie et al. 2021", states={"positive": 0.0, "negative": 0.0}, lr=0.01, beta1=0.9, beta0=1.0,
       meanings={"beta1": "decay of the momenta", "beta0": "weight of the negative momentum"})  # fmt: skip
def pnm(p: Any, g: Any, positive: Any, negative: Any, h: Any, t: Any) -> Any:
    """The difference of two momenta that are updated in alternate steps."""
    odd = t - 2 * floor(t / 2) == 1
    a = average(where(odd, positive, negative), g, h.beta1**2)
    b = where(odd, negative, positive)
    step = h.lr / sqrt(_noise(h)) * ((1 + h.beta0) * a - h.beta0 * b)
    return p - step, where(odd, a, positive), where(odd, negative, a)


@entry("SRMM",
       formula="w = (t mod memory + 1)^-beta;  a = (1 - w)*a + w*g;  q = (1 - w)*q + w*p - lr*a;  p = q",
       source="Lyu 2022", states={"grad_avg": 0.0, "param_avg": 0.0}, lr=0.01, beta=0.5, memory=100.0,
       ranges={"beta": "[0, inf)", "memory": "(0, inf)"},
       meanings={"beta": "power of the weights",
                 "memory": "number of steps after which the weights are reset"})  # fmt: skip
def srmm(p: Any, g: Any, grad_avg: Any, param_avg: Any, h: Any, t: Any) -> Any:
    """Averages of gradients and params with decreasing weights, which are reset periodically."""
    w = (t - h.memory * floor(t / h.memory) + 1) ** -h.beta
    a = (1 - w) * grad_avg + w * g
    q = (1 - w) * param_avg + w * p - h.lr * a
    return q, a, q


@entry("AdaPNM",
       formula="a, b = a and b in odd steps, else b and a\na = beta1^2*a + (1 - beta1^2)*g\n"
       "v = beta2*v + (1 - beta2)*g^2;  x = max(x, v);  u = ((1 + beta0)*a - beta0*b)/sqrt((1 + beta0)^2 + beta0^2)\n"
       "p -= lr*u/(1 - beta1^t)/(sqrt(x/(1 - beta2^t)) + eps)",
       source="Xie et al. 2021",
       states={"positive": 0.0, "negative": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0},
       nonnegative=["exp_avg_sq", "max_exp_avg_sq"], lr=1e-3, beta1=0.9, beta2=0.999, beta0=1.0, eps=1e-8,
       decoupled=True,
       meanings={"beta1": "decay of the momenta", "beta0": "weight of the negative momentum"})  # fmt: skip
def adapnm(p: Any, g: Any, positive: Any, negative: Any, exp_avg_sq: Any, max_exp_avg_sq: Any, h: Any, t: Any) -> Any:
    """AMSGrad with the difference of two momenta that are updated in alternate steps."""
    odd = t - 2 * floor(t / 2) == 1
    a = average(where(odd, positive, negative), g, h.beta1**2)
    b = where(odd, negative, positive)
    v = average(exp_avg_sq, g * g, h.beta2)
    x = maximum(max_exp_avg_sq, v)
    u = h.lr / sqrt(_noise(h)) / (1 - h.beta1**t) * ((1 + h.beta0) * a - h.beta0 * b)
    root = sqrt(x) * (1 / sqrt(1 - h.beta2**t)) + h.eps
    return p - u / root, where(odd, a, positive), where(odd, negative, a), v, x
