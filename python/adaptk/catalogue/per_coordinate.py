"""Rules that keep sums over all steps for each coordinate."""

from __future__ import annotations

from typing import Any

from adaptk._trace import abs, cbrt, maximum, minimum, sign, sqrt, where
from adaptk.catalogue._entry import entry


@entry("FTRL",
       formula="n' = n + g^2;  z += g - (sqrt(n') - sqrt(n))/lr*p\n"
       "p = 0 if abs(z) <= l1, else -(z - sign(z)*l1)/((beta + sqrt(n'))/lr + l2)",
       source="McMahan et al. 2013", states={"accumulator": "initial_accumulator", "linear": 0.0},
       nonnegative=["accumulator"], lr=1e-3, beta=0.0, l1=0.0, l2=0.0, initial_accumulator=0.1,
       ranges={"lr": "(0, inf)", "beta": "[0, inf)", "l1": "[0, inf)", "l2": "[0, inf)",
               "initial_accumulator": "[0, inf)"},
       meanings={"beta": "constant added to the root of the sum of squares", "l1": "weight of the sum of magnitudes",
                 "l2": "weight of half the sum of squares", "initial_accumulator": "initial value of `accumulator`"},
       )  # fmt: skip
def ftrl(p: Any, g: Any, accumulator: Any, linear: Any, h: Any, t: Any) -> Any:
    """Follow the regularised leader: sparse params for sparse features."""
    n = accumulator + g * g
    root = sqrt(n)
    z = linear + g - (root - sqrt(accumulator)) / h.lr * p
    rest = (z - sign(z) * h.l1) / ((h.beta + root) / h.lr + h.l2)
    return where(abs(z) <= h.l1, 0.0, -rest), n, z


@entry("MADGRAD",
       formula="l = (lr + eps)*sqrt(t);  s += l*g;  n += l*g^2;  z = x0 - s/(cbrt(n) + eps)\n"
       "p = momentum*p + (1 - momentum)*z;  x0 is the param at the start",
       source="Defazio, Jelassi 2021", states={"grad_sum": 0.0, "grad_sum_sq": 0.0, "x0": "param"},
       nonnegative=["grad_sum_sq"], lr=1e-2, momentum=0.9, eps=1e-6,
       meanings={"momentum": "weight of the old param", "eps": "added to the cube root, and to lr"})  # fmt: skip
def madgrad(p: Any, g: Any, grad_sum: Any, grad_sum_sq: Any, x0: Any, h: Any, t: Any) -> Any:
    """Dual averaging by the cube root of the sum of squares, with momentum."""
    rate = (h.lr + h.eps) * sqrt(t)
    s = grad_sum + rate * g
    n = grad_sum_sq + rate * (g * g)
    z = x0 - s / (cbrt(n) + h.eps)
    return h.momentum * p + (1 - h.momentum) * z, s, n, x0


@entry("Kate", formula="b += g^2;  m += delta*g^2 + g^2/b;  p -= lr*sqrt(m)*g/(b + eps)",
       source="Choudhury et al. 2024",
       states={"squares": 0.0, "ratios": 0.0}, nonnegative=["squares", "ratios"], lr=1e-3, delta=0.0, eps=1e-8,
       ranges={"delta": "[0, inf)"},
       meanings={"delta": "weight of the squares in the second sum", "eps": "added to sums"})  # fmt: skip
def kate(p: Any, g: Any, squares: Any, ratios: Any, h: Any, t: Any) -> Any:
    """AdaGrad without the root, whose steps do not depend on the scale of the features."""
    square = g * g
    b = squares + square
    m = ratios + h.delta * square + square / (b + h.eps)
    return p - h.lr * sqrt(m) * g / (b + h.eps), b, m


@entry("AdaSqrt", formula="s += g^2;  p -= lr*sqrt(t)*g/(s + eps)", source="Hu et al. 2019", states={"sum": 0.0},
       nonnegative=["sum"], lr=1e-3, eps=1e-8, meanings={"eps": "added to the sum"})  # fmt: skip
def adasqrt(p: Any, g: Any, sum: Any, h: Any, t: Any) -> Any:
    """AdaGrad without the root, with rates that grow with the root of the step number."""
    s = sum + g * g
    return p - h.lr * sqrt(t) * g / (s + h.eps), s


@entry("SMORMS3",
       formula="r = 1/(n + 1);  m = (1 - r)*m + r*g;  v = (1 - r)*v + r*g^2\n"
       "x = m^2/(v + eps);  p -= min(x, lr)*g/(sqrt(v) + eps);  n = (1 - x)*n + 1",
       source="Funk 2015", states={"memory": 1.0, "grad_avg": 0.0, "grad_sq_avg": 0.0},
       nonnegative=["memory", "grad_sq_avg"], lr=1e-3, eps=1e-16, meanings={"lr": "largest learning rate"})  # fmt: skip
def smorms3(p: Any, g: Any, memory: Any, grad_avg: Any, grad_sq_avg: Any, h: Any, t: Any) -> Any:
    """Rates from the ratio of the squared mean of gradients to their mean square, with an adaptive memory."""
    r = 1 / (memory + 1)
    m = (1 - r) * grad_avg + r * g
    v = (1 - r) * grad_sq_avg + r * (g * g)
    x = m * m / (v + h.eps)
    return p - minimum(x, h.lr) * g / (sqrt(v) + h.eps), (1 - x) * memory + 1, m, v


@entry("COCOB",
       formula="l = max(l, abs(g));  s += abs(g);  r = max(r - g*(p - start), 0);  w -= g\n"
       "p = start + lr*w/(l*max(s + l, alpha*l))*(l + r);  start is the param at the start, l starts as eps",
       source="Orabona, Tommasi 2017",
       states={"largest": "eps", "magnitudes": 0.0, "reward": 0.0, "negative_sum": 0.0, "start": "param"},
       nonnegative=["largest", "magnitudes", "reward"], lr=1.0, alpha=100.0, eps=1e-8,
       ranges={"alpha": "[0, inf)", "eps": "(0, inf)"},
       meanings={"lr": "factor of the distance from the start",
                 "alpha": "lower bound of the divisor of bets, as a multiple of the largest gradient",
                 "eps": "initial value of the largest gradient"})  # fmt: skip
def cocob(
    p: Any, g: Any, largest: Any, magnitudes: Any, reward: Any, negative_sum: Any, start: Any, h: Any, t: Any
) -> Any:
    """Coin betting for each coordinate, without a learning rate."""
    size = abs(g)
    most = maximum(largest, size)
    total = magnitudes + size
    won = maximum(reward - g * (p - start), 0.0)
    w = negative_sum - g
    bet = w / (most * maximum(total + most, h.alpha * most)) * (most + won)
    return start + h.lr * bet, most, total, won, w, start
