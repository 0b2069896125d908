"""The rules of the catalogue in NumPy, written from their papers: `STEPS[name](h, p)` returns step(p, g, t) -> new p.

`h` has the hyperparameters, `p` are the initial params. Decoupled decay is left to the caller, unless a rule is in
OWN_DECAY.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Step = Callable[[Any, Any, int], Any]
STEPS: dict[str, Callable[[Any, Any], Step]] = {}
OWN_DECAY = {
    "schedule_free_sgd",
    "schedule_free_adamw",
    "schedule_free_radam",
    "lamb",
    "lars",
    "stable_adamw",
    "prodigy",
    "dadapt_adam",
    "novograd",
    "adafactor",
    "adafactor_momentum",
}


def oracle(function: Callable[[Any, Any], Step]) -> Callable[[Any, Any], Step]:
    STEPS[function.__name__] = function
    return function


def mean(x: Any, new: Any, beta: float) -> Any:
    return beta * x + (1 - beta) * new


def _schedule_free(h: Any, p: Any, direction: Callable[[Any, int], tuple[Any, float]]) -> Step:
    s = SimpleNamespace(z=p.copy(), x=p.copy(), total=0.0, largest=0.0)

    def step(y: Any, g: Any, t: int) -> Any:
        d, lr = direction(g, t)
        d = d + h.weight_decay * y
        s.largest = max(s.largest, lr)
        weight = t**h.r * s.largest**h.weight_lr_power
        s.total += weight
        c = weight / s.total if s.total > 0 else 0.0
        s.z = s.z - lr * d
        # As in the paper, with x itself, for which the library has no state.
        s.x = (1 - c) * s.x + c * s.z
        return (1 - h.beta1) * s.z + h.beta1 * s.x

    step.state = s  # type: ignore[attr-defined]
    return step


@oracle
def schedule_free_sgd(h: Any, p: Any) -> Step:
    return _schedule_free(h, p, lambda g, t: (g, h.lr * min(1.0, t / h.warmup) if h.warmup else h.lr))


@oracle
def schedule_free_adamw(h: Any, p: Any) -> Step:
    v = [0.0]

    def direction(g: Any, t: int) -> tuple[Any, float]:
        v[0] = mean(v[0], g**2, h.beta2)
        d = g / (np.sqrt(v[0] / (1 - h.beta2**t)) + h.eps)
        return d, h.lr * min(1.0, t / h.warmup) if h.warmup else h.lr

    return _schedule_free(h, p, direction)


@oracle
def schedule_free_radam(h: Any, p: Any) -> Step:
    v = [0.0]

    def direction(g: Any, t: int) -> tuple[Any, float]:
        v[0] = mean(v[0], g**2, h.beta2)
        end = 2 / (1 - h.beta2) - 1
        rho = end - 2 * t * h.beta2**t / (1 - h.beta2**t)
        if rho <= 4:
            return g, 0.0 if h.silent_sgd_phase else h.lr
        rect = math.sqrt((rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho))
        return g / (np.sqrt(v[0] / (1 - h.beta2**t)) + h.eps), h.lr * rect

    return _schedule_free(h, p, direction)


@oracle
def ademamix(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m1=0.0, m2=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        alpha, b3 = h.alpha, h.beta3
        if h.warmup:
            part = t / h.warmup
            alpha = min(part * h.alpha, h.alpha)
            log1, log3 = math.log(h.beta1), math.log(h.beta3)
            b3 = min(math.exp(log1 * log3 / ((1 - part) * log3 + part * log1)), h.beta3)
        s.m1, s.m2, s.v = mean(s.m1, g, h.beta1), mean(s.m2, g, b3), mean(s.v, g**2, h.beta2)
        return p - h.lr * (s.m1 / (1 - h.beta1**t) + alpha * s.m2) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)

    return step


@oracle
def simplified_ademamix(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = h.beta1 * s.m + g, mean(s.v, g**2, h.beta2)
        return p - h.lr * (s.m + h.alpha * g) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)

    return step


@oracle
def adopt(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        if t == 1:
            s.v = g**2
            return p
        bound = (t - 1) ** h.clip_exponent
        s.m = mean(s.m, np.clip(g / np.maximum(np.sqrt(s.v), h.eps), -bound, bound), h.beta1)
        s.v = mean(s.v, g**2, h.beta2)
        return p - h.lr * s.m

    return step


@oracle
def nadamw(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        m = h.beta1 * s.m / (1 - h.beta1 ** (t + 1)) + (1 - h.beta1) * g / (1 - h.beta1**t)
        return p - h.lr * m / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)

    return step


@oracle
def laprop(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.v = mean(s.v, g**2, h.beta2)
        s.m = mean(s.m, g / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps), h.beta1)
        return p - h.lr * s.m / (1 - h.beta1**t)

    return step


@oracle
def mars_adamw(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0, before=None)

    def step(p: Any, g: Any, t: int) -> Any:
        change = 0.0 if s.before is None else g - s.before
        c, s.before = g + h.gamma * h.beta1 / (1 - h.beta1) * change, g
        s.m, s.v = mean(s.m, c, h.beta1), mean(s.v, c**2, h.beta2)
        return p - h.lr * (s.m / (1 - h.beta1**t)) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)

    return step


@oracle
def mars_lion(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, before=None)

    def step(p: Any, g: Any, t: int) -> Any:
        change = 0.0 if s.before is None else g - s.before
        s.m = mean(s.m, g + h.gamma * h.beta1 / (1 - h.beta1) * change, h.beta1)
        s.before = g
        return p - h.lr * np.sign(s.m)

    return step


# The Hessian that the caller provides in the tests: the states of this name are set to it before step t.
def hessian(p: Any, t: int) -> Any:
    return np.cos(np.arange(p.size) + t)


@oracle
def sophia(h: Any, p: Any) -> Step:
    m = [0.0]

    def step(p: Any, g: Any, t: int) -> Any:
        m[0] = mean(m[0], g, h.beta1)
        return p - h.lr * np.clip(m[0] / np.maximum(h.gamma * hessian(p, t), h.eps), -1, 1)

    return step


@oracle
def adahessian(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, hessian(p, t) ** 2, h.beta2)
        return p - h.lr * (s.m / (1 - h.beta1**t)) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)

    return step


@oracle
def adams(h: Any, p: Any) -> Step:
    m = [0.0]

    def step(p: Any, g: Any, t: int) -> Any:
        root = np.sqrt(h.beta2 * np.square(m[0]) + (1 - h.beta2) * g**2)
        m[0] = mean(m[0], g, h.beta1)
        return p - h.lr * m[0] / (root + h.eps)

    return step


def _adabound(h: Any, largest: bool) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0, x=0.0, lr=h.lr)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        s.x = np.maximum(s.x, s.v) if largest else s.v
        last = h.final_lr * h.lr / s.lr
        rate = h.lr * math.sqrt(1 - h.beta2**t) / (1 - h.beta1**t) / (np.sqrt(s.x) + h.eps)
        return p - np.clip(rate, last * (1 - 1 / (h.gamma * t + 1)), last * (1 + 1 / (h.gamma * t))) * s.m

    return step


@oracle
def adabound(h: Any, p: Any) -> Step:
    return _adabound(h, False)


@oracle
def amsbound(h: Any, p: Any) -> Step:
    return _adabound(h, True)


@oracle
def qhadam(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        up = (1 - h.nu1) * g + h.nu1 * s.m / (1 - h.beta1**t)
        return p - h.lr * up / (np.sqrt((1 - h.nu2) * g**2 + h.nu2 * s.v / (1 - h.beta2**t)) + h.eps)

    return step


@oracle
def grams(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        return p - h.lr * np.sign(g) * np.abs(s.m / (1 - h.beta1**t) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps))

    return step


@oracle
def signsgd(h: Any, p: Any) -> Step:
    return lambda p, g, t: p - h.lr * np.sign(g)


@oracle
def signum(h: Any, p: Any) -> Step:
    m = [0.0]

    def step(p: Any, g: Any, t: int) -> Any:
        m[0] = mean(m[0], g, h.beta)
        return p - h.lr * np.sign(m[0])

    return step


STEPS["tiger"] = signum


@oracle
def qhm(h: Any, p: Any) -> Step:
    m = [0.0]

    def step(p: Any, g: Any, t: int) -> Any:
        m[0] = mean(m[0], g, h.beta)
        return p - h.lr * ((1 - h.nu) * g + h.nu * m[0])

    return step


@oracle
def aggmo(h: Any, p: Any) -> Step:
    betas = (0.0, h.beta1, h.beta2)
    velocity = [0.0, 0.0, 0.0]

    def step(p: Any, g: Any, t: int) -> Any:
        for i, beta in enumerate(betas):
            velocity[i] = beta * velocity[i] + g
        return p - h.lr / 3 * sum(velocity)

    return step


@oracle
def pid(h: Any, p: Any) -> Step:
    s = SimpleNamespace(i=0.0, d=0.0, before=None)

    def step(p: Any, g: Any, t: int) -> Any:
        s.i = h.momentum * s.i + (1 - h.dampening) * g
        s.d = mean(s.d, 0.0 if s.before is None else g - s.before, h.momentum)
        s.before = g
        return p - h.lr * (g + h.integral * s.i + h.derivative * s.d)

    return step


@oracle
def accsgd(h: Any, p: Any) -> Step:
    # Kidambi et al., Algorithm 3, in its notation.
    average = [p.copy()]
    alpha = 1 - h.small_const**2 * h.xi / h.kappa
    beta = 1 - alpha

    def step(p: Any, g: Any, t: int) -> Any:
        average[0] = alpha * average[0] + beta * (p - h.kappa * h.lr / h.small_const * g)
        share = h.small_const / (h.small_const + beta)
        return share * (p - h.lr * g) + (1 - share) * average[0]

    return step


@oracle
def optimistic_sgd(h: Any, p: Any) -> Step:
    before = [None]

    def step(p: Any, g: Any, t: int) -> Any:
        old = g if before[0] is None else before[0]
        before[0] = g
        return p - h.lr * g - h.lr * h.beta * (g - old)

    return step


@oracle
def ftrl(h: Any, p: Any) -> Step:
    n, z = np.full_like(p, h.initial_accumulator), np.zeros_like(p)

    def step(p: Any, g: Any, t: int) -> Any:
        # McMahan et al. 2013, Algorithm 1, coordinate by coordinate.
        w = np.zeros_like(p)
        for i in range(p.size):
            sigma = (math.sqrt(n[i] + g[i] ** 2) - math.sqrt(n[i])) / h.lr
            z[i] += g[i] - sigma * p[i]
            n[i] += g[i] ** 2
            if abs(z[i]) > h.l1:
                w[i] = -(z[i] - math.copysign(h.l1, z[i])) / ((h.beta + math.sqrt(n[i])) / h.lr + h.l2)
        return w

    return step


@oracle
def madgrad(h: Any, p: Any) -> Step:
    start, s, n = p.copy(), np.zeros_like(p), np.zeros_like(p)

    def step(p: Any, g: Any, t: int) -> Any:
        rate = (h.lr + h.eps) * math.sqrt(t)
        s[:] += rate * g
        n[:] += rate * g**2
        return h.momentum * p + (1 - h.momentum) * (start - s / (np.cbrt(n) + h.eps))

    return step


@oracle
def kate(h: Any, p: Any) -> Step:
    s = SimpleNamespace(b=0.0, m=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.b = s.b + g**2
        s.m = s.m + h.delta * g**2 + g**2 / (s.b + h.eps)
        return p - h.lr * np.sqrt(s.m) * g / (s.b + h.eps)

    return step


@oracle
def adam_atan2(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(w: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        return w - h.lr * h.a * np.arctan2(s.m / (1 - h.beta1**t), h.b * np.sqrt(s.v / (1 - h.beta2**t)))

    return step


@oracle
def adamg(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0, r=0.0)

    def step(w: Any, g: Any, t: int) -> Any:
        s.v = mean(s.v, g**2, h.beta2)
        s.r = mean(s.r, h.scale * s.v**h.power, h.beta3)
        s.m = mean(s.m, s.r * g, h.beta1)
        corrected = s.m / (1 - h.beta1**t), s.v / (1 - h.beta2**t)
        return w - min(h.lr, 1 / math.sqrt(t)) * corrected[0] / (np.sqrt(corrected[1]) + h.eps)

    return step


@oracle
def diffgrad(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0, last=np.zeros_like(p))

    def step(w: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        friction = 1 / (1 + np.exp(-np.abs(s.last - g)))
        s.last = g
        return w - h.lr * friction * (s.m / (1 - h.beta1**t)) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)

    return step


@oracle
def cocob(h: Any, p: Any) -> Step:
    """COCOB-Backprop, in terms of negative gradients as in the paper."""
    s = SimpleNamespace(start=p.copy(), l=np.full_like(p, h.eps), g=0.0, r=0.0, theta=0.0)

    def step(w: Any, g: Any, t: int) -> Any:
        c = -g
        s.l = np.maximum(s.l, np.abs(c))
        s.g = s.g + np.abs(c)
        s.r = np.maximum(s.r + (w - s.start) * c, 0)
        s.theta = s.theta + c
        beta = s.theta / (s.l * np.maximum(s.g + s.l, h.alpha * s.l))
        return s.start + h.lr * beta * (s.l + s.r)

    return step


@oracle
def adamod(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0, q=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        rate = h.lr * math.sqrt(1 - h.beta2**t) / (1 - h.beta1**t) / (np.sqrt(s.v) + h.eps)
        s.q = mean(s.q, rate, h.beta3)
        return p - np.minimum(rate, s.q) * s.m

    return step


@oracle
def padam(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0, x=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        s.x = np.maximum(s.x, s.v)
        rate = h.lr * math.sqrt(1 - h.beta2**t) / (1 - h.beta1**t)
        return p - rate * s.m / (np.sqrt(s.x) + h.eps) ** (2 * 0.25)

    return step


@oracle
def exadam(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        m = s.m / (1 - h.beta1**t) * (1 + s.v / (s.v + h.eps) * h.beta2**t)
        v = s.v / (1 - h.beta2**t) * (1 + s.m**2 / (s.m**2 + h.eps) * h.beta1**t)
        g = g / (1 - h.beta1**t) * (1 + s.v / (s.v + h.eps) * h.beta2**t)
        return p - h.lr * (m + g) / (np.sqrt(v) + h.eps)

    return step


@oracle
def ano(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=np.zeros_like(p))

    def step(p: Any, g: Any, t: int) -> Any:
        s.m = mean(s.m, g, h.beta1)
        s.v = h.beta2 * s.v + (1 - h.beta2) * np.sign(g**2 - s.v) * g**2
        with np.errstate(invalid="ignore"):
            return p - h.lr * np.abs(g) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps) * np.sign(s.m)

    return step


@oracle
def acprop(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, s=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        root = 1.0 if t == 1 else np.sqrt(s.s / (1 - h.beta2 ** (t - 1)))
        s.m = mean(s.m, g, h.beta1)
        s.s = mean(s.s, (g - s.m) ** 2, h.beta2)
        return p - h.lr * g / (root + h.eps)

    return step


@oracle
def optimistic_adam(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0, u=None)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        u = s.m / (1 - h.beta1**t) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)
        before, s.u = u if s.u is None else s.u, u
        return p - 2 * h.lr * u + h.lr * before

    return step


@oracle
def ftml(h: Any, p: Any) -> Step:
    s = SimpleNamespace(v=0.0, d=0.0, z=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.v = mean(s.v, g**2, h.beta2)
        d = (1 - h.beta1**t) / h.lr * (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)
        sigma, s.d = d - h.beta1 * s.d, d
        s.z = h.beta1 * s.z + (1 - h.beta1) * g - sigma * p
        return -s.z / d

    return step


@oracle
def focus(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, q=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.q = mean(s.m, g, h.beta1), mean(s.q, p, h.beta2)
        centre = s.q / (1 - h.beta2**t)
        p = p - h.lr * h.weight_decay * centre
        # The first params equal their average: the difference is only rounding, whose sign means nothing.
        side = np.where(np.abs(p - centre) < 1e-12, 0.0, np.sign(p - centre))
        return p - h.lr * (np.sign(s.m) + h.gamma * side)

    return step


OWN_DECAY.add("focus")


@oracle
def msvag(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta), mean(s.v, g**2, h.beta)
        m, v = s.m / (1 - h.beta**t), s.v / (1 - h.beta**t)
        rho = min((1 - h.beta) * (1 + h.beta**t) / ((1 + h.beta) * (1 - h.beta**t)), 0.9999)
        variance = (v - m**2) / (1 - rho)
        return p - h.lr * np.clip(m**2 / (m**2 + rho * variance), 0, 1) * m

    return step


@oracle
def pnm(h: Any, p: Any) -> Step:
    m = [np.zeros_like(p), np.zeros_like(p)]

    def step(p: Any, g: Any, t: int) -> Any:
        m[t % 2] = mean(m[t % 2], g, h.beta1**2)
        norm = math.sqrt((1 + h.beta0) ** 2 + h.beta0**2)
        return p - h.lr / norm * ((1 + h.beta0) * m[t % 2] - h.beta0 * m[1 - t % 2])

    return step


@oracle
def srmm(h: Any, p: Any) -> Step:
    s = SimpleNamespace(a=0.0, q=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        w = (t % h.memory + 1) ** -h.beta
        s.a = mean(s.a, g, 1 - w)
        s.q = mean(s.q, p, 1 - w) - h.lr * s.a
        return s.q

    return step


@oracle
def adasqrt(h: Any, p: Any) -> Step:
    total = np.zeros_like(p)

    def step(p: Any, g: Any, t: int) -> Any:
        total[:] += g**2
        return p - h.lr * math.sqrt(t) * g / (total + h.eps)

    return step


@oracle
def smorms3(h: Any, p: Any) -> Step:
    # As in its author's program: the memory decays by the rate before the rate is bounded.
    s = SimpleNamespace(memory=np.ones_like(p), m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        r = 1 / (s.memory + 1)
        s.m, s.v = (1 - r) * s.m + r * g, (1 - r) * s.v + r * g**2
        rate = s.m**2 / (s.v + h.eps)
        s.memory = 1 + s.memory * (1 - rate)
        return p - g * np.minimum(h.lr, rate) / (np.sqrt(s.v) + h.eps)

    return step


@oracle
def adapnm(h: Any, p: Any) -> Step:
    m = [np.zeros_like(p), np.zeros_like(p)]
    s = SimpleNamespace(v=0.0, x=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        m[t % 2] = mean(m[t % 2], g, h.beta1**2)
        s.v = mean(s.v, g**2, h.beta2)
        s.x = np.maximum(s.x, s.v)
        norm = math.sqrt((1 + h.beta0) ** 2 + h.beta0**2)
        u = ((1 + h.beta0) * m[t % 2] - h.beta0 * m[1 - t % 2]) / norm
        return p - h.lr * u / (1 - h.beta1**t) / (np.sqrt(s.x / (1 - h.beta2**t)) + h.eps)

    return step


def _own_decay(h: Any) -> float:
    return h.weight_decay if h.decoupled else 0.0


@oracle
def lamb(h: Any, p: Any) -> Step:
    m, v = np.zeros_like(p), np.zeros_like(p)

    def step(x: Any, g: Any, t: int) -> Any:
        m[:] = mean(m, g, h.beta1)
        v[:] = mean(v, g**2, h.beta2)
        r = (m / (1 - h.beta1**t)) / (np.sqrt(v / (1 - h.beta2**t)) + h.eps)
        u = r + _own_decay(h) * x
        ratio = np.sqrt((x**2).sum()) / np.sqrt((u**2).sum()) if x.any() and u.any() else 1.0
        return x - h.lr * ratio * u

    return step


@oracle
def lars(h: Any, p: Any) -> Step:
    b = np.zeros_like(p)

    def step(w: Any, g: Any, t: int) -> Any:
        local = 1.0
        if w.any() and g.any():
            local = h.trust * np.linalg.norm(w) / (np.linalg.norm(g) + _own_decay(h) * np.linalg.norm(w))
        b[:] = h.momentum * b + h.lr * local * (g + _own_decay(h) * w)
        return w - b

    return step


@oracle
def stable_adamw(h: Any, p: Any) -> Step:
    m, v = np.zeros_like(p), np.zeros_like(p)

    def step(x: Any, g: Any, t: int) -> Any:
        beta1 = h.beta1 * (1 - h.beta1 ** (t - 1)) / (1 - h.beta1**t)
        beta2 = h.beta2 * (1 - h.beta2 ** (t - 1)) / (1 - h.beta2**t)
        m[:] = mean(m, g, beta1)
        v[:] = mean(v, g**2, beta2)
        rms = np.sqrt(np.mean(g**2 / np.maximum(v, h.eps**2)))
        lr = h.lr / max(1.0, rms)
        return x - lr * _own_decay(h) * x - lr * m / (np.sqrt(v) + h.eps)

    return step


def _corrected(h: Any, t: int) -> float:
    return math.sqrt(1 - h.beta2**t) / (1 - h.beta1**t) if h.use_bias_correction else 1.0


@oracle
def prodigy(h: Any, p: Any) -> Step:
    start, m, v, s = p.copy(), np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    n = SimpleNamespace(d=h.d0, r=0.0)
    root = math.sqrt(h.beta2)

    def step(x: Any, g: Any, t: int) -> Any:
        d, lr = n.d, h.lr * _corrected(h, t)
        m[:] = h.beta1 * m + (1 - h.beta1) * d * g
        v[:] = h.beta2 * v + (1 - h.beta2) * d**2 * g**2
        # With the paper's factor 1 - sqrt(beta2) in both.
        n.r = root * n.r + (1 - root) * lr * d**2 * np.dot(g, start - x)
        s[:] = root * s + (1 - root) * lr * d**2 * g
        n.d = min(max(d, h.d_coef * n.r / np.abs(s).sum()), d * h.growth_rate if d != h.d0 else math.inf)
        x = x - lr * d * _own_decay(h) * x
        return x - lr * d * m / (np.sqrt(v) + d * h.eps)

    return step


@oracle
def dadapt_adam(h: Any, p: Any) -> Step:
    m, v, s = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    n = SimpleNamespace(d=h.d0, r=0.0)
    root = math.sqrt(h.beta2)

    def step(x: Any, g: Any, t: int) -> Any:
        lr = n.d * h.lr * _corrected(h, t)
        n.r = root * n.r + (1 - root) * lr * np.dot(g, s / (np.sqrt(v) + h.eps))
        m[:] = h.beta1 * m + (1 - h.beta1) * lr * g
        v[:] = mean(v, g**2, h.beta2)
        s[:] = root * s + (1 - root) * lr * g
        n.d = max(n.d, min(n.r / ((1 - root) * np.abs(s).sum()), n.d * h.growth_rate))
        return x - lr * _own_decay(h) * x - m / (np.sqrt(v) + h.eps)

    return step


@oracle
def dadapt_sgd(h: Any, p: Any) -> Step:
    start, s = p.copy(), np.zeros_like(p)
    n = SimpleNamespace(d=h.d0, r=0.0, first=0.0)

    def step(x: Any, g: Any, t: int) -> Any:
        if t == 1:
            n.first = np.linalg.norm(g)
        c = n.d * h.lr / n.first
        n.r += c * np.dot(g, s)
        s[:] = s + c * g
        n.d = max(n.d, min(2 * n.r / np.linalg.norm(s), n.d * h.growth_rate))
        return h.momentum * x + (1 - h.momentum) * (start - s)

    return step


@oracle
def fromage(h: Any, p: Any) -> Step:
    def step(w: Any, g: Any, t: int) -> Any:
        ratio = np.linalg.norm(w) / np.linalg.norm(g) if w.any() and g.any() else 1.0
        return (w - h.lr * ratio * g) / math.sqrt(1 + h.lr**2)

    return step


@oracle
def dog(h: Any, p: Any) -> Step:
    start, grads, far = p.copy(), [0.0], [h.reps_rel * (1 + np.linalg.norm(p))]

    def step(x: Any, g: Any, t: int) -> Any:
        grads.append(float(g @ g))
        far.append(np.linalg.norm(x - start))
        return x - h.lr * max(far) / math.sqrt(sum(grads) + h.eps) * g

    return step


@oracle
def dowg(h: Any, p: Any) -> Step:
    start, weighted, far = p.copy(), [0.0], [h.d0]

    def step(x: Any, g: Any, t: int) -> Any:
        far.append(np.linalg.norm(x - start))
        weighted.append(max(far) ** 2 * float(g @ g))
        return x - h.lr * max(far) ** 2 / (math.sqrt(sum(weighted)) + h.eps) * g

    return step


@oracle
def amsgrad_corrected(h: Any, p: Any) -> Step:
    """From all gradients so far."""
    grads: list[Any] = []

    def corrected(values: list[Any], beta: float) -> Any:
        weights = [beta ** (len(values) - 1 - i) for i in range(len(values))]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    def step(p: Any, g: Any, t: int) -> Any:
        grads.append(g)
        largest = np.max([corrected([x**2 for x in grads[:n]], h.beta2) for n in range(1, t + 1)], axis=0)
        return p - h.lr * corrected(grads, h.beta1) / (np.sqrt(largest + h.eps_root) + h.eps)

    return step


@oracle
def radam_corrected(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(p: Any, g: Any, t: int) -> Any:
        s.m, s.v = mean(s.m, g, h.beta1), mean(s.v, g**2, h.beta2)
        m, v = s.m / (1 - h.beta1**t), s.v / (1 - h.beta2**t)
        # The length of the average: its limit minus twice the mean age of the weights that are still missing.
        limit = 2 / (1 - h.beta2) - 1
        length = limit - 2 * t * h.beta2**t / (1 - h.beta2**t)
        if length < max(h.threshold, 4):
            return p - h.lr * m
        ratio = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
        return p - h.lr * math.sqrt(ratio) * m / (np.sqrt(v + h.eps_root) + h.eps)

    return step


@oracle
def rprop_delayed(h: Any, p: Any) -> Step:
    """One weight at a time."""
    sizes, waiting = [h.lr] * p.size, [0.0] * p.size

    def step(p: Any, g: Any, t: int) -> Any:
        new = p.copy()
        for i in range(p.size):
            agreement = float(g[i]) * waiting[i]
            if agreement < 0:
                sizes[i] = min(max(sizes[i] * h.eta_minus, h.step_min), h.step_max)
                waiting[i] = 0.0
                continue
            if agreement > 0:
                sizes[i] = min(max(sizes[i] * h.eta_plus, h.step_min), h.step_max)
            new[i] -= waiting[i]
            waiting[i] = math.copysign(sizes[i], g[i]) if g[i] != 0 else 0.0
        return new

    return step


@oracle
def novograd(h: Any, p: Any) -> Step:
    s = SimpleNamespace(m=np.zeros_like(p), v=0.0)

    def step(w: Any, g: Any, t: int) -> Any:
        square = (g**2).sum()
        s.v = square if t == 1 else h.beta2 * s.v + (1 - h.beta2) * square
        s.m = h.beta1 * s.m + (g / (math.sqrt(s.v) + h.eps) + _own_decay(h) * w)
        return w - h.lr * s.m

    return step


def _rms(x: Any) -> float:
    return math.sqrt((x**2).mean())


@oracle
def adafactor(h: Any, p: Any) -> Step:
    """Algorithms 4 and 5; with `floor`, as in torch.optim.Adafactor's documentation instead of eps1."""
    s = SimpleNamespace(r=0.0, c=0.0, v=0.0)

    def step(x: Any, g: Any, t: int) -> Any:
        return x - h.lr * _own_decay(h) * x - _adafactor_step(s, h, x, g, t)

    step.state = s  # type: ignore[attr-defined]
    return step


def _adafactor_step(s: Any, h: Any, x: Any, g: Any, t: int) -> Any:
    beta = 1 - t ** float(h.beta2_decay)
    square = g**2 + (0.0 if h.floor else h.eps1)
    if x.ndim < 2:
        s.v = beta * s.v + (1 - beta) * square
        v = s.v
    else:
        s.r = beta * s.r + (1 - beta) * square.mean(axis=-1)
        s.c = beta * s.c + (1 - beta) * square.mean(axis=-2)
        whole = s.r.mean(axis=-1)
        if h.floor:
            whole = np.maximum(whole, h.eps1)
        v = np.einsum("...i,...j->...ij", s.r, s.c) / whole[..., None, None]
    if h.floor:
        v = np.maximum(v, h.eps1**2)
    u = g / np.sqrt(v)
    u = u / max(1.0, _rms(u) / h.clip_threshold)
    rate = min(h.lr, 1 / math.sqrt(t)) if h.relative_step else h.lr
    if h.scale_parameter:
        rate *= max(h.eps2, _rms(x))
    return rate * u


@oracle
def adafactor_momentum(h: Any, p: Any) -> Step:
    s = SimpleNamespace(r=0.0, c=0.0, v=0.0, m=0.0)

    def step(x: Any, g: Any, t: int) -> Any:
        s.m = mean(s.m, _adafactor_step(s, h, x, g, t), h.beta1)
        return x - h.lr * _own_decay(h) * x - s.m

    return step


def _low_rank(r: Any, c: Any) -> Any:
    """From sums, as in the paper."""
    return np.einsum("...i,...j->...ij", r, c) / r.sum(axis=-1)[..., None, None]


@oracle
def came(h: Any, p: Any) -> Step:
    """Algorithm 2. Vectors have no factored moments: they are divided by the root of their full second moment."""
    s = SimpleNamespace(m=0.0, r=0.0, c=0.0, v=0.0, res_r=0.0, res_c=0.0)

    def step(x: Any, g: Any, t: int) -> Any:
        square = g**2 + h.eps1
        if p.ndim < 2:
            s.v = mean(s.v, square, h.beta2)
            u = g / np.sqrt(s.v)
        else:
            s.r, s.c = mean(s.r, square.sum(axis=-1), h.beta2), mean(s.c, square.sum(axis=-2), h.beta2)
            u = g / np.sqrt(_low_rank(s.r, s.c))
        u = u / max(1.0, _rms(u) / h.clip_threshold)
        s.m = mean(s.m, u, h.beta1)
        if p.ndim < 2:
            return x - h.lr * s.m
        away = (u - s.m) ** 2 + h.eps2
        s.res_r, s.res_c = mean(s.res_r, away.sum(axis=-1), h.beta3), mean(s.res_c, away.sum(axis=-2), h.beta3)
        return x - h.lr / np.sqrt(_low_rank(s.res_r, s.res_c)) * s.m

    return step


def _sm3(h: Any, p: Any) -> Callable[[Any], Any]:
    """SM3-II. The sets of a matrix are its rows and columns; those of a vector are its elements."""
    matrices = p.reshape(-1, *p.shape[-2:]) if p.ndim > 1 else p.reshape(1, -1)[:0]
    sets: list[list[Any]] = [[k] for k in range(p.size)] if p.ndim < 2 else []
    for m, matrix in enumerate(matrices):
        where = m * matrix.size + np.arange(matrix.size).reshape(matrix.shape)
        sets += [list(row) for row in where] + [list(column) for column in where.T]
    mu = [0.0] * len(sets)

    def update(g: Any) -> Any:
        nu = np.full(p.size, np.inf)
        for of, elements in zip(mu, sets, strict=True):
            nu[elements] = np.minimum(nu[elements], of)
        nu = nu + g.reshape(-1) ** 2
        mu[:] = [nu[elements].max() for elements in sets]
        return (g.reshape(-1) / np.sqrt(nu + h.eps)).reshape(p.shape)

    return update


@oracle
def sm3(h: Any, p: Any) -> Step:
    update = _sm3(h, p)
    return lambda x, g, t: x - h.lr * update(g)


@oracle
def sm3_momentum(h: Any, p: Any) -> Step:
    update = _sm3(h, p)
    m = [0.0]

    def step(x: Any, g: Any, t: int) -> Any:
        m[0] = mean(m[0], update(g), h.momentum)
        return x - h.lr * m[0]

    return step


def _adam_mini(h: Any, axis: int | None) -> Step:
    s = SimpleNamespace(m=0.0, v=0.0)

    def step(x: Any, g: Any, t: int) -> Any:
        s.m = mean(s.m, g, h.beta1)
        s.v = mean(s.v, np.mean(g**2, axis=axis, keepdims=True), h.beta2)
        return x - h.lr * (s.m / (1 - h.beta1**t)) / (np.sqrt(s.v / (1 - h.beta2**t)) + h.eps)

    return step


@oracle
def adam_mini(h: Any, p: Any) -> Step:
    return _adam_mini(h, -1 if p.ndim > 0 else None)


@oracle
def adam_mini_tensor(h: Any, p: Any) -> Step:
    return _adam_mini(h, None)
