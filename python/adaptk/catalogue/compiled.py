"""The compiled rules, written as functions for adaptk.rule from their formulas and coefficients, with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptk._trace import abs, cumprod, maximum, sign, sqrt, where

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def of(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS.update(dict.fromkeys(names, function))
        return function

    return keep


@of("sgd")
def sgd(p: Any, g: Any, h: Any, t: Any) -> Any:
    return p - h.lr * g


def _momentum(b: Any, g: Any, h: Any, t: Any) -> Any:
    first = (t == 1) & (h.dampen_first == 0)
    factor = where(first, 1.0, 1 - h.dampening)
    gain = where(h.velocity != 0, -h.lr * factor, factor)
    look = where(h.velocity != 0, -h.lr, 1.0)
    rate = where(h.velocity != 0, 1.0, -h.lr)
    return where(first, gain * g, h.momentum * b + gain * g), look, rate


@of("momentum")
def momentum(p: Any, g: Any, momentum_buffer: Any, h: Any, t: Any) -> Any:
    b, _, rate = _momentum(momentum_buffer, g, h, t)
    return p + rate * b, b


@of("nesterov")
def nesterov(p: Any, g: Any, momentum_buffer: Any, h: Any, t: Any) -> Any:
    b, look, rate = _momentum(momentum_buffer, g, h, t)
    return p + rate * (look * g + h.momentum * b), b


def _clamp(x: Any, low: Any, high: Any) -> Any:
    x = where(x < low, low, x)
    return where(x > high, high, x)


@of("delta_bar_delta")
def delta_bar_delta(p: Any, g: Any, bar: Any, eta: Any, h: Any, t: Any) -> Any:
    same = bar * g
    e = where(same > 0, eta + h.kappa, eta)
    e = where(same < 0, eta * (1 - h.phi), e)
    e = _clamp(e, h.eta_min, h.eta_max)
    return p - e * g, h.theta * bar + (1 - h.theta) * g, e


@of("adagrad")
def adagrad(p: Any, g: Any, sum: Any, h: Any, t: Any) -> Any:
    r = sum + g * g
    return p - h.lr / (1 + (t - 1) * h.lr_decay) * g / (sqrt(r + h.eps_in) + h.eps_out), r


def _square(r: Any, g: Any, h: Any) -> Any:
    return h.rho * r + (1 - h.rho) * (g * g)


def _root(r: Any, h: Any) -> Any:
    return sqrt(r + h.eps_in) + h.eps_out


def _variance(r: Any, m: Any) -> Any:
    v = r - m * m
    return where(v < 0, 0.0, v)


@of("rmsprop")
def rmsprop(p: Any, g: Any, square_avg: Any, h: Any, t: Any) -> Any:
    r = _square(square_avg, g, h)
    return p - h.lr * g / _root(r, h), r


@of("rmsprop_centered")
def rmsprop_centered(p: Any, g: Any, square_avg: Any, grad_avg: Any, h: Any, t: Any) -> Any:
    r = _square(square_avg, g, h)
    m = h.rho * grad_avg + (1 - h.rho) * g
    return p - h.lr * g / _root(_variance(r, m), h), r, m


def _gain_and_rate(h: Any) -> Any:
    return where(h.lr_inside != 0, h.lr, 1.0), where(h.lr_inside != 0, 1.0, h.lr)


@of("rmsprop_momentum")
def rmsprop_momentum(p: Any, g: Any, square_avg: Any, momentum_buffer: Any, h: Any, t: Any) -> Any:
    gain, rate = _gain_and_rate(h)
    r = _square(square_avg, g, h)
    b = h.momentum * momentum_buffer + gain * g / _root(r, h)
    return p - rate * b, r, b


@of("rmsprop_centered_momentum")
def rmsprop_centered_momentum(
    p: Any, g: Any, square_avg: Any, grad_avg: Any, momentum_buffer: Any, h: Any, t: Any
) -> Any:
    gain, rate = _gain_and_rate(h)
    r = _square(square_avg, g, h)
    m = h.rho * grad_avg + (1 - h.rho) * g
    b = h.momentum * momentum_buffer + gain * g / _root(_variance(r, m), h)
    return p - rate * b, r, m, b


@of("rmsprop_nesterov")
def rmsprop_nesterov(p: Any, g: Any, square_avg: Any, velocity: Any, h: Any, t: Any) -> Any:
    r = _square(square_avg, g, h)
    v = h.momentum * velocity - h.lr * g / _root(r, h)
    return p + v, r, v


@of("adadelta")
def adadelta(p: Any, g: Any, square_avg: Any, acc_delta: Any, h: Any, t: Any) -> Any:
    r = _square(square_avg, g, h)
    u = sqrt(acc_delta + h.eps) / sqrt(r + h.eps) * g
    return p - h.lr * u, r, h.rho * acc_delta + (1 - h.rho) * (u * u)


def _moment(m: Any, g: Any, beta: Any) -> Any:
    return beta * m + (1 - beta) * g


def _adam_step(p: Any, m: Any, x: Any, h: Any, t: Any) -> Any:
    c1, c2 = 1 - h.beta1**t, 1 - h.beta2**t
    hat = h.eps_hat != 0
    step = where(hat, h.lr * sqrt(c2) / c1, h.lr / c1)
    scale = where(hat, 1.0, 1 / sqrt(c2))
    return p - step * m / (sqrt(x + h.eps_root * c2) * scale + h.eps)


@of("adam", "adamw")
def adam(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_sq, g * g, h.beta2)
    return _adam_step(p, m, v, h, t), m, v


@of("amsgrad")
def amsgrad(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, max_exp_avg_sq: Any, h: Any, t: Any) -> Any:
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_sq, g * g, h.beta2)
    x = maximum(max_exp_avg_sq, v)
    return _adam_step(p, m, x, h, t), m, v, x


@of("adamax")
def adamax(p: Any, g: Any, exp_avg: Any, exp_inf: Any, h: Any, t: Any) -> Any:
    m = _moment(exp_avg, g, h.beta1)
    u = maximum(h.beta2 * exp_inf, abs(g) + h.eps)
    return p - h.lr / (1 - h.beta1**t) * m / u, m, u


@of("nadam")
def nadam(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    def mu(t: Any) -> Any:
        return h.beta1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay))

    product = cumprod(mu(t))
    step_g = h.lr * (1 - mu(t)) / (1 - product)
    step_m = h.lr * mu(t + 1) / (1 - product * mu(t + 1))
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_sq, g * g, h.beta2)
    scale = 1 / sqrt(1 - h.beta2**t)
    return p - (step_g * g + step_m * m) / (sqrt(v) * scale + h.eps), m, v


@of("radam")
def radam(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    b2t = h.beta2**t
    c1, c2 = 1 - h.beta1**t, 1 - b2t
    rho_inf = 2 / (1 - h.beta2) - 1
    rho = rho_inf - 2 * t * b2t / c2
    r = sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    step = where(rho > 5, h.lr * r * sqrt(c2) / c1, h.lr / c1)
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_sq, g * g, h.beta2)
    return p - step * m / where(rho > 5, sqrt(v) + h.eps, 1.0), m, v


@of("rprop")
def rprop(p: Any, g: Any, prev: Any, step_size: Any, h: Any, t: Any) -> Any:
    same = g * prev
    factor = where(same < 0, h.eta_minus, where(same > 0, h.eta_plus, 1.0))
    size = _clamp(step_size * factor, h.step_min, h.step_max)
    kept = where(same < 0, 0.0, g)
    return p - sign(kept) * size, kept, size


@of("asgd")
def asgd(p: Any, g: Any, ax: Any, h: Any, t: Any) -> Any:
    eta = h.lr / (1 + h.lambd * h.lr * (t - 1)) ** h.alpha
    age = t - 1 - h.t0
    p = p * (1 - h.lambd * eta) - eta * g
    return p, where(age > 1, ax + (p - ax) * where(age > 1, 1 / age, 1.0), p)


@of("lion")
def lion(p: Any, g: Any, exp_avg: Any, h: Any, t: Any) -> Any:
    return p - h.lr * sign(_moment(exp_avg, g, h.beta1)), _moment(exp_avg, g, h.beta2)


@of("adabelief")
def adabelief(p: Any, g: Any, exp_avg: Any, exp_avg_var: Any, h: Any, t: Any) -> Any:
    m = _moment(exp_avg, g, h.beta1)
    s = _moment(exp_avg_var, (g - m) * (g - m), h.beta2) + h.eps_root
    scale = 1 / sqrt(1 - h.beta2**t)
    return p - h.lr / (1 - h.beta1**t) * m / (sqrt(s) * scale + h.eps), m, s


@of("yogi")
def yogi(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, h: Any, t: Any) -> Any:
    m = _moment(exp_avg, g, h.beta1)
    v = exp_avg_sq - (1 - h.beta2) * sign(exp_avg_sq - g * g) * (g * g)
    scale = 1 / sqrt(1 - h.beta2**t)
    return p - h.lr / (1 - h.beta1**t) * m / (sqrt(v) * scale + h.eps), m, v


@of("adan")
def adan(p: Any, g: Any, exp_avg: Any, exp_avg_diff: Any, exp_avg_sq: Any, prev_grad: Any, h: Any, t: Any) -> Any:
    ahead = where(h.one_minus_beta2 != 0, 1 - h.beta2, h.beta2)
    d = where(t == 1, 0.0, g - prev_grad)
    m = _moment(exp_avg, g, h.beta1)
    v = _moment(exp_avg_diff, d, h.beta2)
    z = g + ahead * d
    n = _moment(exp_avg_sq, z * z, h.beta3)
    c3 = 1 - h.beta3**t
    step_m = h.lr / (1 - h.beta1**t)
    step_v = h.lr * ahead / (1 - h.beta2**t)
    root = sqrt(n + h.eps_root * c3) * (1 / sqrt(c3))
    return p - (step_m * m + step_v * v) / (root + h.eps), m, v, n, g
