"""The library's rules, each written as a function of adaptk.rule, from its formula and coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import adaptk
from adaptk import where

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def of(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS.update(dict.fromkeys(names, function))
        return function

    return keep


@contextmanager
def traced(name: str) -> Iterator[adaptk.TracedRule]:
    """The library's rule of this name, made at run time."""
    rule = adaptk.rules()[name]
    own = [h for h in rule.hyperparameters if not h.common]
    common = {h.name: h.default for h in rule.hyperparameters if h.name in ("weight_decay", "decoupled")}
    made = adaptk.rule(
        states={s.name: s.initial_from or s.initial for s in rule.states},
        name=f"traced_{name}",
        nonnegative=[s.name for s in rule.states if s.nonnegative],
        ranges={h.name: h.range for h in own},
        **{h.name: h.default for h in own},
        **common,
    )(FUNCTIONS[name])
    try:
        yield made
    finally:
        made.unregister()


@of("sgd")
def sgd(p, g, h, t):
    return p - h.lr * g


def _momentum(b, g, h, t):
    first = (t == 1) & (h.dampen_first == 0)
    factor = where(first, 1.0, 1 - h.dampening)
    gain = where(h.velocity != 0, -h.lr * factor, factor)
    look = where(h.velocity != 0, -h.lr, 1.0)
    rate = where(h.velocity != 0, 1.0, -h.lr)
    return where(first, gain * g, h.momentum * b + gain * g), look, rate


@of("momentum")
def momentum(p, g, momentum_buffer, h, t):
    b, _, rate = _momentum(momentum_buffer, g, h, t)
    return p + rate * b, b


@of("nesterov")
def nesterov(p, g, momentum_buffer, h, t):
    b, look, rate = _momentum(momentum_buffer, g, h, t)
    return p + rate * (look * g + h.momentum * b), b


def _clamp(x, low, high):
    x = where(x < low, low, x)
    return where(x > high, high, x)


@of("delta_bar_delta")
def delta_bar_delta(p, g, bar, eta, h, t):
    same = bar * g
    e = where(same > 0, eta + h.kappa, eta)
    e = where(same < 0, eta * (1 - h.phi), e)
    e = _clamp(e, h.eta_min, h.eta_max)
    return p - e * g, h.theta * bar + (1 - h.theta) * g, e


@of("adagrad")
def adagrad(p, g, sum, h, t):
    r = sum + g * g
    return p - h.lr / (1 + (t - 1) * h.lr_decay) * g / (adaptk.sqrt(r + h.eps_in) + h.eps_out), r


def _square(r, g, h):
    return h.rho * r + (1 - h.rho) * (g * g)


def _root(r, h):
    return adaptk.sqrt(r + h.eps_in) + h.eps_out


def _variance(r, m):
    v = r - m * m
    return where(v < 0, 0.0, v)


@of("rmsprop")
def rmsprop(p, g, square_avg, h, t):
    r = _square(square_avg, g, h)
    return p - h.lr * g / _root(r, h), r


@of("rmsprop_centered")
def rmsprop_centered(p, g, square_avg, grad_avg, h, t):
    r = _square(square_avg, g, h)
    m = h.rho * grad_avg + (1 - h.rho) * g
    return p - h.lr * g / _root(_variance(r, m), h), r, m


def _gain_and_rate(h):
    return where(h.lr_inside != 0, h.lr, 1.0), where(h.lr_inside != 0, 1.0, h.lr)


@of("rmsprop_momentum")
def rmsprop_momentum(p, g, square_avg, momentum_buffer, h, t):
    gain, rate = _gain_and_rate(h)
    r = _square(square_avg, g, h)
    b = h.momentum * momentum_buffer + gain * g / _root(r, h)
    return p - rate * b, r, b


@of("rmsprop_centered_momentum")
def rmsprop_centered_momentum(p, g, square_avg, grad_avg, momentum_buffer, h, t):
    gain, rate = _gain_and_rate(h)
    r = _square(square_avg, g, h)
    m = h.rho * grad_avg + (1 - h.rho) * g
    b = h.momentum * momentum_buffer + gain * g / _root(_variance(r, m), h)
    return p - rate * b, r, m, b


@of("rmsprop_nesterov")
def rmsprop_nesterov(p, g, square_avg, velocity, h, t):
    r = _square(square_avg, g, h)
    v = h.momentum * velocity - h.lr * g / _root(r, h)
    return p + v, r, v


@of("adadelta")
def adadelta(p, g, square_avg, acc_delta, h, t):
    r = _square(square_avg, g, h)
    u = adaptk.sqrt(acc_delta + h.eps) / adaptk.sqrt(r + h.eps) * g
    return p - h.lr * u, r, h.rho * acc_delta + (1 - h.rho) * (u * u)


def _moment(m, g, beta):
    return beta * m + (1 - beta) * g


def _adam_step(p, m, x, h, t):
    c1, c2 = 1 - h.beta1**t, 1 - h.beta2**t
    hat = h.eps_hat != 0
    step = where(hat, h.lr * adaptk.sqrt(c2) / c1, h.lr / c1)
    scale = where(hat, 1.0, 1 / adaptk.sqrt(c2))
    return p - step * m / (adaptk.sqrt(x + h.eps_root * c2) * scale + h.eps)


@of("adam", "adamw")
def adam(p, g, exp_avg, exp_avg_sq, h, t):
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_sq, g * g, h.beta2)
    return _adam_step(p, m, v, h, t), m, v


@of("amsgrad")
def amsgrad(p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, h, t):
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_sq, g * g, h.beta2)
    x = adaptk.maximum(max_exp_avg_sq, v)
    return _adam_step(p, m, x, h, t), m, v, x


@of("adamax")
def adamax(p, g, exp_avg, exp_inf, h, t):
    m = _moment(exp_avg, g, h.beta1)
    u = adaptk.maximum(h.beta2 * exp_inf, abs(g) + h.eps)
    return p - h.lr / (1 - h.beta1**t) * m / u, m, u


@of("nadam")
def nadam(p, g, exp_avg, exp_avg_sq, h, t):
    def mu(t):
        return h.beta1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay))

    product = adaptk.cumprod(mu(t))
    step_g = h.lr * (1 - mu(t)) / (1 - product)
    step_m = h.lr * mu(t + 1) / (1 - product * mu(t + 1))
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_sq, g * g, h.beta2)
    scale = 1 / adaptk.sqrt(1 - h.beta2**t)
    return p - (step_g * g + step_m * m) / (adaptk.sqrt(v) * scale + h.eps), m, v


@of("radam")
def radam(p, g, exp_avg, exp_avg_sq, h, t):
    b2t = h.beta2**t
    c1, c2 = 1 - h.beta1**t, 1 - b2t
    rho_inf = 2 / (1 - h.beta2) - 1
    rho = rho_inf - 2 * t * b2t / c2
    r = adaptk.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    step = where(rho > 5, h.lr * r * adaptk.sqrt(c2) / c1, h.lr / c1)
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_sq, g * g, h.beta2)
    return p - step * m / where(rho > 5, adaptk.sqrt(v) + h.eps, 1.0), m, v


@of("rprop")
def rprop(p, g, prev, step_size, h, t):
    same = g * prev
    factor = where(same < 0, h.eta_minus, where(same > 0, h.eta_plus, 1.0))
    size = _clamp(step_size * factor, h.step_min, h.step_max)
    kept = where(same < 0, 0.0, g)
    return p - adaptk.sign(kept) * size, kept, size


@of("asgd")
def asgd(p, g, ax, h, t):
    eta = h.lr / (1 + h.lambd * h.lr * (t - 1)) ** h.alpha
    age = t - 1 - h.t0
    p = p * (1 - h.lambd * eta) - eta * g
    return p, where(age > 1, ax + (p - ax) * where(age > 1, 1 / age, 1.0), p)


@of("lion")
def lion(p, g, exp_avg, h, t):
    return p - h.lr * adaptk.sign(_moment(exp_avg, g, h.beta1)), _moment(exp_avg, g, h.beta2)


@of("adabelief")
def adabelief(p, g, exp_avg, exp_avg_var, h, t):
    m = _moment(exp_avg, g, h.beta1)
    s = _moment(exp_avg_var, (g - m) * (g - m), h.beta2) + h.eps_root
    scale = 1 / adaptk.sqrt(1 - h.beta2**t)
    return p - h.lr / (1 - h.beta1**t) * m / (adaptk.sqrt(s) * scale + h.eps), m, s


@of("yogi")
def yogi(p, g, exp_avg, exp_avg_sq, h, t):
    m = _moment(exp_avg, g, h.beta1)
    v = exp_avg_sq - (1 - h.beta2) * adaptk.sign(exp_avg_sq - g * g) * (g * g)
    scale = 1 / adaptk.sqrt(1 - h.beta2**t)
    return p - h.lr / (1 - h.beta1**t) * m / (adaptk.sqrt(v) * scale + h.eps), m, v


@of("adan")
def adan(p, g, exp_avg, exp_avg_diff, exp_avg_sq, prev_grad, h, t):
    ahead = where(h.one_minus_beta2 != 0, 1 - h.beta2, h.beta2)
    d = where(t == 1, 0.0, g - prev_grad)
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_diff, d, h.beta2)
    z = g + ahead * d
    n = _moment(exp_avg_sq, z * z, h.beta3)
    c3 = 1 - h.beta3**t
    step_m = h.lr / (1 - h.beta1**t)
    step_v = h.lr * ahead / (1 - h.beta2**t)
    root = adaptk.sqrt(n + h.eps_root * c3) * (1 / adaptk.sqrt(c3))
    return p - (step_m * m + step_v * v) / (root + h.eps), m, v, n, g
