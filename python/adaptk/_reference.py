"""Every rule in plain NumPy, one expression per line, as one writes it by hand.

The demo compares its times with these: the cost of an update without a fused kernel. Nothing is done in place, and
operations that the hyperparameters make superfluous are left out (an eps of 0 is not added).

A formula is a function ``(p, g, states, t, h) -> (p, states)``: the parameter, its gradient, the tuple of state arrays,
the number of the step (from 1) and the hyperparameters by name. ``FORMULAS`` has them by the name of the rule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["FORMULAS", "Formula", "initial_states", "update"]

Array: TypeAlias = npt.NDArray[Any]
States: TypeAlias = tuple[Array, ...]
Hyper: TypeAlias = Mapping[str, float]
Update: TypeAlias = Callable[[Array, Array, States, int, Hyper], tuple[Array, States]]


class Formula(NamedTuple):
    update: Update
    initial: tuple[float | str, ...]  # for each state a value, or the hyperparameter that is its value


FORMULAS: dict[str, Formula] = {}


def _rule(*initial: float | str) -> Callable[[Update], Update]:
    def register(function: Update) -> Update:
        FORMULAS[function.__name__] = Formula(function, initial)
        return function

    return register


def initial_states(rule: str, p: Array, h: Hyper) -> States:
    """The states of ``rule`` before its first step on ``p``, in the order of the registry."""
    return tuple(np.full_like(p, h[x] if isinstance(x, str) else x) for x in FORMULAS[rule].initial)


def update(rule: str, p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    """One step of ``rule``, with the options that all rules have: ``grad_scale``, ``maximize``, ``weight_decay``."""
    scale = -h.get("grad_scale", 1.0) if h.get("maximize", False) else h.get("grad_scale", 1.0)
    decay = h.get("weight_decay", 0.0)
    if scale != 1.0:
        g = scale * g
    if decay and h.get("decoupled", False):
        p = p * (1 - h["lr"] * decay)
    elif decay:
        g = g + decay * p
    return FORMULAS[rule].update(p, g, states, t, h)


def _root(r: Array, h: Hyper) -> Array:
    """``sqrt(r + eps_in) + eps_out``."""
    d = np.sqrt(r + h["eps_in"] if h["eps_in"] else r)
    return d + h["eps_out"] if h["eps_out"] else d


# ---------------------------------------------------------------------------------------------------------------------
# Gradient descent
# ---------------------------------------------------------------------------------------------------------------------


@_rule()
def sgd(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    return p - h["lr"] * g, ()


def _buffer(g: Array, b: Array, t: int, h: Hyper, rate: float) -> Array:
    """The new momentum buffer, to which the gradient is added with the factor ``rate``."""
    if t == 1 and not h["dampen_first"]:
        return rate * g
    return h["momentum"] * b + rate * (1 - h["dampening"]) * g


@_rule(0.0)
def momentum(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    if h["velocity"]:
        v = _buffer(g, states[0], t, h, -h["lr"])
        return p + v, (v,)
    b = _buffer(g, states[0], t, h, 1.0)
    return p - h["lr"] * b, (b,)


@_rule(0.0)
def nesterov(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    if h["velocity"]:
        v = _buffer(g, states[0], t, h, -h["lr"])
        return p + (h["momentum"] * v - h["lr"] * g), (v,)
    b = _buffer(g, states[0], t, h, 1.0)
    return p - h["lr"] * (g + h["momentum"] * b), (b,)


@_rule(0.0)
def asgd(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    eta = h["lr"] / (1 + h["lambd"] * h["lr"] * (t - 1)) ** h["alpha"]
    mu = 1 / max(1.0, t - 1 - h["t0"])
    p = p * (1 - h["lambd"] * eta) - eta * g
    (ax,) = states
    return p, (p.copy() if mu == 1 else ax + (p - ax) * mu,)


# ---------------------------------------------------------------------------------------------------------------------
# Rules that use the signs of gradients
# ---------------------------------------------------------------------------------------------------------------------


@_rule(0.0, "lr")
def delta_bar_delta(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    bar, eta = states
    same = bar * g
    eta = np.where(same > 0, eta + h["kappa"], np.where(same < 0, eta * (1 - h["phi"]), eta))
    if h["eta_min"] > 0 or h["eta_max"] < math.inf:
        eta = np.clip(eta, h["eta_min"], h["eta_max"])
    return p - eta * g, (h["theta"] * bar + (1 - h["theta"]) * g, eta)


@_rule(0.0, "lr")
def rprop(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    prev, size = states
    same = g * prev
    size = np.where(same > 0, size * h["eta_plus"], np.where(same < 0, size * h["eta_minus"], size))
    size = np.clip(size, h["step_min"], h["step_max"])
    g = np.where(same < 0, 0.0, g).astype(p.dtype, copy=False)
    return p - np.sign(g) * size, (g, size)


@_rule(0.0)
def lion(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    (m,) = states
    p = p - h["lr"] * np.sign(h["beta1"] * m + (1 - h["beta1"]) * g)
    return p, (h["beta2"] * m + (1 - h["beta2"]) * g,)


# ---------------------------------------------------------------------------------------------------------------------
# Scaled by past gradients
# ---------------------------------------------------------------------------------------------------------------------


@_rule(0.0)
def adagrad(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    r = states[0] + g * g
    return p - h["lr"] / (1 + (t - 1) * h["lr_decay"]) * g / _root(r, h), (r,)


@_rule(0.0, 0.0)
def adadelta(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    square, delta = states
    square = h["rho"] * square + (1 - h["rho"]) * (g * g)
    u = np.sqrt(delta + h["eps"]) / np.sqrt(square + h["eps"]) * g
    return p - h["lr"] * u, (square, h["rho"] * delta + (1 - h["rho"]) * (u * u))


@_rule(0.0)
def rmsprop(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    r = h["rho"] * states[0] + (1 - h["rho"]) * (g * g)
    return p - h["lr"] * g / _root(r, h), (r,)


@_rule(0.0, 0.0)
def rmsprop_centered(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    r = h["rho"] * states[0] + (1 - h["rho"]) * (g * g)
    m = h["rho"] * states[1] + (1 - h["rho"]) * g
    return p - h["lr"] * g / _root(np.maximum(r - m * m, 0), h), (r, m)


def _push(p: Array, g: Array, d: Array, b: Array, h: Hyper) -> tuple[Array, Array]:
    """The parameter and the momentum buffer of RMSProp after a step of ``g / d``."""
    if h["lr_inside"]:
        b = h["momentum"] * b + h["lr"] * g / d
        return p - b, b
    b = h["momentum"] * b + g / d
    return p - h["lr"] * b, b


@_rule(0.0, 0.0)
def rmsprop_momentum(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    r = h["rho"] * states[0] + (1 - h["rho"]) * (g * g)
    p, b = _push(p, g, _root(r, h), states[1], h)
    return p, (r, b)


@_rule(0.0, 0.0, 0.0)
def rmsprop_centered_momentum(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    r = h["rho"] * states[0] + (1 - h["rho"]) * (g * g)
    m = h["rho"] * states[1] + (1 - h["rho"]) * g
    p, b = _push(p, g, _root(np.maximum(r - m * m, 0), h), states[2], h)
    return p, (r, m, b)


@_rule(0.0, 0.0)
def rmsprop_nesterov(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    r = h["rho"] * states[0] + (1 - h["rho"]) * (g * g)
    v = h["momentum"] * states[1] - h["lr"] * g / _root(r, h)
    return p + v, (r, v)


# ---------------------------------------------------------------------------------------------------------------------
# Adam and its variants
# ---------------------------------------------------------------------------------------------------------------------


def _moments(g: Array, m: Array, v: Array, h: Hyper) -> tuple[Array, Array]:
    m = h["beta1"] * m + (1 - h["beta1"]) * g
    v = h["beta2"] * v + (1 - h["beta2"]) * (g * g)
    return m, v


def _adam(p: Array, m: Array, v: Array, t: int, h: Hyper) -> Array:
    c1 = 1 - h["beta1"] ** t
    c2 = 1 - h["beta2"] ** t
    under = v + h["eps_root"] * c2 if h["eps_root"] else v
    if h["eps_hat"]:
        return p - h["lr"] * math.sqrt(c2) / c1 * m / (np.sqrt(under) + h["eps"])
    return p - h["lr"] / c1 * m / (np.sqrt(under) / math.sqrt(c2) + h["eps"])


@_rule(0.0, 0.0)
def adam(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    m, v = states
    m, v = _moments(g, m, v, h)
    return _adam(p, m, v, t, h), (m, v)


# The weight decay of this rule is in `update`.
@_rule(0.0, 0.0)
def adamw(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    return adam(p, g, states, t, h)


@_rule(0.0, 0.0, 0.0)
def amsgrad(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    m, v, x = states
    m, v = _moments(g, m, v, h)
    x = np.maximum(x, v)
    return _adam(p, m, x, t, h), (m, v, x)


@_rule(0.0, 0.0)
def adamax(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    m, u = states
    m = h["beta1"] * m + (1 - h["beta1"]) * g
    u = np.maximum(h["beta2"] * u, np.abs(g) + h["eps"])
    return p - h["lr"] / (1 - h["beta1"] ** t) * m / u, (m, u)


@functools.cache
def _products(beta1: float, psi: float) -> list[float]:
    return [1.0]


def _nadam_schedule(t: int, h: Hyper) -> tuple[float, float, float]:
    """mu_t, mu_(t+1) and mu_1 * ... * mu_t; the product is carried from step to step."""

    def mu(i: int) -> float:
        return h["beta1"] * (1 - 0.5 * math.pow(0.96, i * h["momentum_decay"]))

    products = _products(h["beta1"], h["momentum_decay"])
    while len(products) <= t:
        products.append(products[-1] * mu(len(products)))
    return mu(t), mu(t + 1), products[t]


@_rule(0.0, 0.0)
def nadam(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    m, v = states
    m, v = _moments(g, m, v, h)
    mu, following, product = _nadam_schedule(t, h)
    step = h["lr"] * (1 - mu) / (1 - product) * g + h["lr"] * following / (1 - product * following) * m
    return p - step / (np.sqrt(v) / math.sqrt(1 - h["beta2"] ** t) + h["eps"]), (m, v)


@_rule(0.0, 0.0)
def radam(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    m, v = states
    m, v = _moments(g, m, v, h)
    c1, c2 = 1 - h["beta1"] ** t, 1 - h["beta2"] ** t
    longest = 2 / (1 - h["beta2"]) - 1
    length = longest - 2 * t * h["beta2"] ** t / c2
    if length <= 5:
        return p - h["lr"] / c1 * m, (m, v)
    r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return p - h["lr"] * r * math.sqrt(c2) / c1 * m / (np.sqrt(v) + h["eps"]), (m, v)


@_rule(0.0, 0.0)
def adabelief(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    m, s = states
    m = h["beta1"] * m + (1 - h["beta1"]) * g
    s = h["beta2"] * s + (1 - h["beta2"]) * (g - m) ** 2 + h["eps_root"]
    return p - h["lr"] / (1 - h["beta1"] ** t) * m / (np.sqrt(s) / math.sqrt(1 - h["beta2"] ** t) + h["eps"]), (m, s)


@_rule(0.0, 1e-6)
def yogi(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    m, v = states
    square = g * g
    m = h["beta1"] * m + (1 - h["beta1"]) * g
    v = v - (1 - h["beta2"]) * np.sign(v - square) * square
    return p - h["lr"] / (1 - h["beta1"] ** t) * m / (np.sqrt(v) / math.sqrt(1 - h["beta2"] ** t) + h["eps"]), (m, v)


@_rule(0.0, 0.0, 0.0, 0.0)
def adan(p: Array, g: Array, states: States, t: int, h: Hyper) -> tuple[Array, States]:
    m, v, n, prev = states
    b1, b2, b3 = h["beta1"], h["beta2"], h["beta3"]
    ahead = 1 - b2 if h["one_minus_beta2"] else b2
    d = np.zeros_like(g) if t == 1 else g - prev
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * d
    n = b3 * n + (1 - b3) * (g + ahead * d) ** 2
    step = h["lr"] / (1 - b1**t) * m + h["lr"] * ahead / (1 - b2**t) * v
    return p - step / (np.sqrt(n / (1 - b3**t) + h["eps_root"]) + h["eps"]), (m, v, n, g.copy())
