"""The oracles of all rules in NumPy, written from the formulas and their papers, not from the kernels.

They take arrays of one dtype T (float32 or float64) and return new ones; nothing is changed in place. Numbers that do
not depend on the element are computed in Python floats and rounded to T once. Every operation on arrays is one IEEE
operation in T, in the order of the formula from left to right. A kernel must give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import lru_cache, wraps

import numpy as np

Array = np.ndarray
Oracle = Callable[..., tuple[Array, ...]]

ORACLES: dict[str, Oracle] = {}


def oracle(function: Oracle) -> Oracle:
    """Register a rule by its name. Overflow and invalid operations are not errors here."""

    @wraps(function)
    def quiet(*args: Array, **hyper: float) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return function(*args, **hyper)

    ORACLES[function.__name__] = quiet
    return quiet


@lru_cache(maxsize=1 << 16)
def power(base: float, exponent: float) -> float:
    """base**exponent for base >= 0, correctly rounded: 60 digits decide all cases except constructed ties."""
    if exponent == 0:
        return 1.0
    with localcontext(Context(prec=60, Emin=MIN_EMIN, Emax=MAX_EMAX)):
        return float(Decimal(base) ** Decimal(exponent))


def rounded(like: Array, *values: float) -> list[np.floating]:
    """Each value as a scalar of the dtype of `like`."""
    return [like.dtype.type(value) for value in values]


def larger(a: Array, b: Array) -> Array:
    """The maximum: NaN if either is NaN; of two equal values (zeros of both signs) the second."""
    return np.where((a > b) | np.isnan(a), a, b)


def sign(x: Array) -> Array:
    one, zero = rounded(x, 1.0, 0.0)
    return np.where(x > zero, one, np.where(x < zero, -one, np.where(np.isnan(x), x, zero)))


def clip(x: Array, low: np.floating, high: np.floating) -> Array:
    x = np.where(x < low, low, x)
    return np.where(x > high, high, x)


# Gradient descent and momentum


@oracle
def sgd(p: Array, g: Array, *, t: int, lr: float) -> tuple[Array]:
    (lr,) = rounded(p, lr)
    return (p - lr * g,)


def _accumulate(g: Array, b: Array, t: int, momentum: float, gain: float, plain: float, dampen_first: float) -> Array:
    """mu*b + gain*g. If the first step is undamped, the state starts as plain*g and its old value is not used."""
    mu, gain, plain = rounded(g, momentum, gain, plain)
    return plain * g if t == 1 and not dampen_first else mu * b + gain * g


@oracle
def momentum(
    p: Array,
    g: Array,
    b: Array,
    *,
    t: int,
    lr: float,
    momentum: float,
    dampening: float,
    velocity: float,
    dampen_first: float,
) -> tuple[Array, Array]:
    (rate,) = rounded(p, lr)
    if velocity:
        b = _accumulate(g, b, t, momentum, -lr * (1.0 - dampening), -lr, dampen_first)
        return p + b, b
    b = _accumulate(g, b, t, momentum, 1.0 - dampening, 1.0, dampen_first)
    return p - rate * b, b


@oracle
def nesterov(
    p: Array,
    g: Array,
    b: Array,
    *,
    t: int,
    lr: float,
    momentum: float,
    dampening: float,
    velocity: float,
    dampen_first: float,
) -> tuple[Array, Array]:
    rate, mu = rounded(p, lr, momentum)
    if velocity:
        b = _accumulate(g, b, t, momentum, -lr * (1.0 - dampening), -lr, dampen_first)
        return p + (mu * b - rate * g), b
    b = _accumulate(g, b, t, momentum, 1.0 - dampening, 1.0, dampen_first)
    return p - rate * (g + mu * b), b


# A rate for each parameter


@oracle
def delta_bar_delta(
    p: Array,
    g: Array,
    bar: Array,
    eta: Array,
    *,
    t: int,
    lr: float,
    kappa: float,
    phi: float,
    theta: float,
    eta_min: float,
    eta_max: float,
) -> tuple[Array, Array, Array]:
    kappa, shrink, theta, rest, low, high, zero = rounded(
        p, kappa, 1.0 - phi, theta, 1.0 - theta, eta_min, eta_max, 0.0
    )
    agreement = bar * g
    eta = np.where(agreement > zero, eta + kappa, np.where(agreement < zero, eta * shrink, eta))
    eta = clip(eta, low, high)
    return p - eta * g, theta * bar + rest * g, eta


@oracle
def adagrad(
    p: Array, g: Array, r: Array, *, t: int, lr: float, lr_decay: float, eps_in: float, eps_out: float
) -> tuple[Array, Array]:
    rate, eps_in, eps_out = rounded(p, lr / (1.0 + (t - 1.0) * lr_decay), eps_in, eps_out)
    r = r + g * g
    return p - rate * g / (np.sqrt(r + eps_in) + eps_out), r


def _average(old: Array, new: Array, decay: float) -> Array:
    keep, rest = rounded(new, decay, 1.0 - decay)
    return keep * old + rest * new


def _variance(r: Array, m: Array) -> Array:
    """The mean square minus the squared mean, which is negative only by rounding."""
    (zero,) = rounded(r, 0.0)
    spread = r - m * m
    return np.where(spread < zero, zero, spread)


def _root(x: Array, eps_in: float, eps_out: float) -> Array:
    eps_in, eps_out = rounded(x, eps_in, eps_out)
    return np.sqrt(x + eps_in) + eps_out


@oracle
def rmsprop(
    p: Array, g: Array, r: Array, *, t: int, lr: float, rho: float, eps_in: float, eps_out: float
) -> tuple[Array, Array]:
    (lr,) = rounded(p, lr)
    r = _average(r, g * g, rho)
    return p - lr * g / _root(r, eps_in, eps_out), r


@oracle
def rmsprop_centered(
    p: Array, g: Array, r: Array, m: Array, *, t: int, lr: float, rho: float, eps_in: float, eps_out: float
) -> tuple[Array, Array, Array]:
    (lr,) = rounded(p, lr)
    r = _average(r, g * g, rho)
    m = _average(m, g, rho)
    return p - lr * g / _root(_variance(r, m), eps_in, eps_out), r, m


def _with_momentum(
    p: Array, g: Array, d: Array, b: Array, lr: float, momentum: float, lr_inside: float
) -> tuple[Array, Array]:
    lr, mu = rounded(p, lr, momentum)
    if lr_inside:
        b = mu * b + lr * g / d
        return p - b, b
    b = mu * b + g / d
    return p - lr * b, b


@oracle
def rmsprop_momentum(
    p: Array,
    g: Array,
    r: Array,
    b: Array,
    *,
    t: int,
    lr: float,
    rho: float,
    eps_in: float,
    eps_out: float,
    momentum: float,
    lr_inside: float,
) -> tuple[Array, Array, Array]:
    r = _average(r, g * g, rho)
    p, b = _with_momentum(p, g, _root(r, eps_in, eps_out), b, lr, momentum, lr_inside)
    return p, r, b


@oracle
def rmsprop_centered_momentum(
    p: Array,
    g: Array,
    r: Array,
    m: Array,
    b: Array,
    *,
    t: int,
    lr: float,
    rho: float,
    eps_in: float,
    eps_out: float,
    momentum: float,
    lr_inside: float,
) -> tuple[Array, Array, Array, Array]:
    r = _average(r, g * g, rho)
    m = _average(m, g, rho)
    p, b = _with_momentum(p, g, _root(_variance(r, m), eps_in, eps_out), b, lr, momentum, lr_inside)
    return p, r, m, b


@oracle
def rmsprop_nesterov(
    p: Array,
    g: Array,
    r: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    rho: float,
    eps_in: float,
    eps_out: float,
    momentum: float,
) -> tuple[Array, Array, Array]:
    """Deep Learning book, Algorithm 8.6; `g` is the gradient at p + momentum*v."""
    lr, alpha = rounded(p, lr, momentum)
    r = _average(r, g * g, rho)
    v = alpha * v - lr * g / _root(r, eps_in, eps_out)
    return p + v, r, v


@oracle
def adadelta(
    p: Array, g: Array, square: Array, delta: Array, *, t: int, lr: float, rho: float, eps: float
) -> tuple[Array, Array, Array]:
    lr, eps = rounded(p, lr, eps)
    square = _average(square, g * g, rho)
    u = np.sqrt(delta + eps) / np.sqrt(square + eps) * g
    delta = _average(delta, u * u, rho)
    return p - lr * u, square, delta


@oracle
def rprop(
    p: Array,
    g: Array,
    prev: Array,
    size: Array,
    *,
    t: int,
    lr: float,
    eta_minus: float,
    eta_plus: float,
    step_min: float,
    step_max: float,
) -> tuple[Array, Array, Array]:
    """Riedmiller & Braun 1993 as in torch.optim.Rprop: after a change of sign the parameter is not updated for one
    step."""
    minus, plus, low, high, zero, one = rounded(p, eta_minus, eta_plus, step_min, step_max, 0.0, 1.0)
    agreement = g * prev
    turned = agreement < zero
    factor = np.where(agreement > zero, plus, np.where(turned, minus, one))
    size = clip(size * factor, low, high)
    g = np.where(turned, zero, g)
    return p - sign(g) * size, g, size


# Adam and its variants


def _adam_step(
    p: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    eps_root: float,
    eps_hat: float,
) -> Array:
    """The step from given moments.

    eps_root belongs under the root of the corrected second moment v / (1 - b2^t). The correction is moved out of the
    root, so eps_root gets the same factor. eps_hat: Kingma & Ba, remark before 2.1.
    """
    correction1 = 1.0 - power(beta1, t)
    correction2 = 1.0 - power(beta2, t)
    (under,) = rounded(p, eps_root * correction2)
    root = np.sqrt(v + under)
    if eps_hat:
        size, eps = rounded(p, lr * math.sqrt(correction2) / correction1, eps)
        return p - size * m / (root + eps)
    size, scale, eps = rounded(p, lr / correction1, 1.0 / math.sqrt(correction2), eps)
    return p - size * m / (root * scale + eps)


@oracle
def adam(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    eps_root: float,
    eps_hat: float,
) -> tuple[Array, Array, Array]:
    m = _average(m, g, beta1)
    v = _average(v, g * g, beta2)
    p = _adam_step(p, m, v, t=t, lr=lr, beta1=beta1, beta2=beta2, eps=eps, eps_root=eps_root, eps_hat=eps_hat)
    return p, m, v


# Its decay acts before the rule, like that of every rule; only its default differs.
ORACLES["adamw"] = adam


@oracle
def amsgrad(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    x: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    eps_root: float,
    eps_hat: float,
) -> tuple[Array, Array, Array, Array]:
    m = _average(m, g, beta1)
    v = _average(v, g * g, beta2)
    x = larger(x, v)
    p = _adam_step(p, m, x, t=t, lr=lr, beta1=beta1, beta2=beta2, eps=eps, eps_root=eps_root, eps_hat=eps_hat)
    return p, m, v, x


@oracle
def adamax(
    p: Array, g: Array, m: Array, u: Array, *, t: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[Array, Array, Array]:
    size, keep, eps = rounded(p, lr / (1.0 - power(beta1, t)), beta2, eps)
    m = _average(m, g, beta1)
    u = larger(keep * u, np.abs(g) + eps)
    return p - size * m / u, m, u


# Products of the momentum schedule, M_1, M_2, ..., for each (beta1, psi).
_PRODUCTS: dict[tuple[float, float], list[float]] = {}


def _nadam_mu(beta1: float, psi: float, t: int) -> float:
    return beta1 * (1.0 - 0.5 * power(0.96, t * psi))


def _nadam_product(beta1: float, psi: float, t: int) -> float:
    products = _PRODUCTS.setdefault((beta1, psi), [])
    # Below 2^-60 the product does not change 1 - product, and it only decreases.
    while len(products) < t and not (products and products[-1] < 2.0**-60):
        last = products[-1] if products else 1.0
        products.append(last * _nadam_mu(beta1, psi, len(products) + 1))
    return products[t - 1] if t <= len(products) else 0.0


@oracle
def nadam(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    momentum_decay: float,
) -> tuple[Array, Array, Array]:
    """Dozat 2016 with the momentum schedule of its appendix."""
    mu = _nadam_mu(beta1, momentum_decay, t)
    following = _nadam_mu(beta1, momentum_decay, t + 1)
    product = _nadam_product(beta1, momentum_decay, t)
    of_g, of_m, scale, eps = rounded(
        p,
        lr * (1.0 - mu) / (1.0 - product),
        lr * following / (1.0 - product * following),
        1.0 / math.sqrt(1.0 - power(beta2, t)),
        eps,
    )
    m = _average(m, g, beta1)
    v = _average(v, g * g, beta2)
    return p - (of_g * g + of_m * m) / (np.sqrt(v) * scale + eps), m, v


@oracle
def radam(
    p: Array, g: Array, m: Array, v: Array, *, t: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[Array, Array, Array]:
    """Liu et al. 2020, Algorithm 2, with torch's eps and its bound of 5 on the length of the average."""
    m = _average(m, g, beta1)
    v = _average(v, g * g, beta2)
    correction1 = 1.0 - power(beta1, t)
    decayed = power(beta2, t)
    correction2 = 1.0 - decayed
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * t * decayed / correction2
    if length > 5.0:
        rectification = math.sqrt(
            (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        )
        size, eps = rounded(p, lr * rectification * math.sqrt(correction2) / correction1, eps)
        return p - size * m / (np.sqrt(v) + eps), m, v
    (size,) = rounded(p, lr / correction1)
    return p - size * m, m, v


@oracle
def asgd(
    p: Array, g: Array, ax: Array, *, t: int, lr: float, lambd: float, alpha: float, t0: float
) -> tuple[Array, Array]:
    """torch.optim.ASGD: the rate and the weight of the average at step t are those of t - 1 steps."""
    done = t - 1.0
    eta = lr / power(1.0 + lambd * lr * done, alpha)
    shrink, rate = rounded(p, 1.0 - lambd * eta, eta)
    p = p * shrink - rate * g
    averaged = done - t0
    if averaged <= 1.0:
        return p, p.copy()
    (mu,) = rounded(p, 1.0 / averaged)
    return p, ax + (p - ax) * mu


@oracle
def lion(p: Array, g: Array, m: Array, *, t: int, lr: float, beta1: float, beta2: float) -> tuple[Array, Array]:
    (lr,) = rounded(p, lr)
    return p - lr * sign(_average(m, g, beta1)), _average(m, g, beta2)


@oracle
def adabelief(
    p: Array,
    g: Array,
    m: Array,
    s: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    eps_root: float,
) -> tuple[Array, Array, Array]:
    """Zhuang et al. 2020, Algorithm 2: the first eps is added to the second moment itself, so it accumulates."""
    size, scale, eps, eps_root = rounded(
        p, lr / (1.0 - power(beta1, t)), 1.0 / math.sqrt(1.0 - power(beta2, t)), eps, eps_root
    )
    m = _average(m, g, beta1)
    surprise = g - m
    s = _average(s, surprise * surprise, beta2) + eps_root
    return p - size * m / (np.sqrt(s) * scale + eps), m, s


@oracle
def yogi(
    p: Array, g: Array, m: Array, v: Array, *, t: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[Array, Array, Array]:
    size, scale, eps, rest = rounded(
        p, lr / (1.0 - power(beta1, t)), 1.0 / math.sqrt(1.0 - power(beta2, t)), eps, 1.0 - beta2
    )
    m = _average(m, g, beta1)
    square = g * g
    v = v - rest * sign(v - square) * square
    return p - size * m / (np.sqrt(v) * scale + eps), m, v


@oracle
def adan(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    n: Array,
    prev: Array,
    *,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    beta3: float,
    eps: float,
    eps_root: float,
    one_minus_beta2: float,
) -> tuple[Array, Array, Array, Array, Array]:
    """Xie et al. 2022, Algorithm 1, with Adam's corrections: the paper's betas are one minus these decays. As in Adam,
    the correction is taken out of the root, and eps_root carries its factor."""
    factor = 1.0 - beta2 if one_minus_beta2 else beta2
    correction3 = 1.0 - power(beta3, t)
    of_m, of_v, ahead, under, scale, eps = rounded(
        p,
        lr / (1.0 - power(beta1, t)),
        lr * factor / (1.0 - power(beta2, t)),
        factor,
        eps_root * correction3,
        1.0 / math.sqrt(correction3),
        eps,
    )
    difference = np.zeros_like(g) if t == 1 else g - prev
    m = _average(m, g, beta1)
    v = _average(v, difference, beta2)
    z = g + ahead * difference
    n = _average(n, z * z, beta3)
    p = p - (of_m * m + of_v * v) / (np.sqrt(n + under) * scale + eps)
    return p, m, v, n, g.copy()


# Operations around a rule

# The types that convert to each compute type without rounding.
_EXACT = {
    "float32": {"float32", "float16", "bfloat16"},
    "float64": {"float64", "float32", "float16", "bfloat16"},
}


def compute_type(param: Array) -> np.dtype:
    return np.dtype(np.float64 if param.dtype == np.float64 else np.float32)


def step(
    rule: str,
    param: Array,
    grad: Array,
    states: Sequence[Array],
    *,
    step: int,
    hyper: Mapping[str, float],
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> tuple[Array, tuple[Array, ...]]:
    """One whole update of one tensor: (new param, new states).

    `hyper` holds every hyperparameter of the rule. A 16-bit param is widened for the computation, and its new value is
    rounded to nearest even; its states are float32. A float64 param has float64 states. A gradient of any type is
    converted to the type of the computation, and rounded if it is wider.
    """
    work = compute_type(param)
    if param.dtype.name not in _EXACT[work.name]:
        raise TypeError(f"{param.dtype} does not widen to {work}")
    for state in states:
        if state.dtype != work:
            raise TypeError(f"state of {state.dtype} where {work} is computed in")
    hyper = {name: float(value) for name, value in hyper.items()}

    with np.errstate(all="ignore"):
        p = param.astype(work)
        (scale,) = rounded(p, grad_scale)
        g = scale * grad.astype(work)
        if maximize:
            g = -g
        if weight_decay != 0.0 and decoupled:
            (shrink,) = rounded(p, 1.0 - hyper["lr"] * float(weight_decay))
            p = p * shrink
        elif weight_decay != 0.0:
            (decay,) = rounded(p, weight_decay)
            g = g + decay * p
        p, *states = ORACLES[rule](p, g, *states, t=step, **hyper)
        return np.asarray(p, work).astype(param.dtype), tuple(np.asarray(state, work) for state in states)


LEAF = 8192
LANES = 256


def global_norm(arrays: Sequence[Array], grad_scale: float = 1.0) -> float:
    """The norm of all gradients together, summed in one fixed order.

    The gradients are concatenated, each in its memory order, and cut into leaves. In a leaf, lane i sums in float64 the
    squares of the elements i, i + LANES, .... The lanes are added in halves, and then the leaves in pairs.
    """
    flat = [np.ravel(array, order="K").astype(np.float64) for array in arrays]
    values = np.concatenate(flat) if flat else np.zeros(0)
    leaves = -(-values.size // LEAF)
    # The zeros of the padding change no sum, because sums of squares are never -0.
    padded = np.zeros(leaves * LEAF)
    padded[: values.size] = values
    with np.errstate(all="ignore"):
        squares = (padded * padded).reshape(leaves, LEAF // LANES, LANES)
        lanes = np.zeros((leaves, LANES))
        for row in range(LEAF // LANES):
            lanes = lanes + squares[:, row, :]
        width = LANES // 2
        while width:
            lanes = lanes[:, :width] + lanes[:, width : 2 * width]
            width //= 2
        sums = lanes[:, 0]
        while sums.size > 1:
            pairs = sums.size // 2
            sums = np.concatenate([sums[0 : 2 * pairs : 2] + sums[1 : 2 * pairs : 2], sums[2 * pairs :]])
        total = float(sums[0]) if sums.size else 0.0
        return float(np.abs(np.float64(grad_scale)) * np.sqrt(np.float64(total)))


def clip_scale(norm: float, clip_norm: float, grad_scale: float = 1.0) -> float:
    """The factor by which gradients are multiplied, so that their scaled norm, `norm`, becomes at most clip_norm."""
    return grad_scale * clip_norm / norm if norm > clip_norm else grad_scale
