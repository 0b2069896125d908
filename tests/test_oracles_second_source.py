"""Every oracle, and every plain formula of the demo, against a second formulation of its rule.

Oracles, kernels and the systems that `test_conventions.py` compares them with go from state to state, so all of them
can share a mistake. Here a step is computed from the whole history of gradients, in the form of the paper if it is not
the recursive one: averages are weighted sums, corrected averages are means with normalised weights, and what branches
is written for one element at a time. CONTRIBUTING.md, "Oracles", says what each rule was compared with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import adaptk
import numpy as np
import oracles
import pytest
from adaptk import _reference

Array = np.ndarray
Hyper = Mapping[str, float]

STEPS = 24
TURN = 10  # the learning rate changes at this step
SIZE = 6
TOLERANCE = 1e-13


class History(NamedTuple):
    """The input of a step: row i of `g` is the gradient of step i + 1, `rates` has the learning rates."""

    g: Array
    rates: Array
    p: Array  # before the step
    start: Mapping[str, float]  # the initial states


Step = Callable[[History, Hyper], Array]
STATEMENTS: dict[str, Step] = {}


def statement(function: Step) -> Step:
    STATEMENTS[function.__name__] = function
    return function


# Weights of a history: the newest has weight 1, each earlier one `decay` times that of the next.


def weights(count: int, decay: float) -> Array:
    return decay ** np.arange(count - 1.0, -1.0, -1.0)


def weighted_sum(x: Array, decay: float) -> Array:
    return np.tensordot(weights(len(x), decay), x, 1)


def average(x: Array, decay: float, start: float = 0.0) -> Array:
    return (1 - decay) * weighted_sum(x, decay) + decay ** len(x) * start


def mean(x: Array, decay: float) -> Array:
    """An average with bias correction."""
    w = weights(len(x), decay)
    return np.tensordot(w / w.sum(), x, 1)


def histories(x: Array) -> Iterator[Array]:
    """x up to each of its rows."""
    return (x[: i + 1] for i in range(len(x)))


def each(function: Callable[[list[float]], float], g: Array) -> Array:
    """`function` of the history of one element, for each element."""
    return np.array([function(column.tolist()) for column in g.T])


# Gradient descent


@statement
def sgd(x: History, h: Hyper) -> Array:
    return -x.rates[-1] * x.g[-1]


def dampened(x: History, h: Hyper) -> Array:
    entering = (1 - h["dampening"]) * x.g
    if not h["dampen_first"]:
        entering[0] = x.g[0]
    return entering


@statement
def momentum(x: History, h: Hyper) -> Array:
    if h["velocity"]:
        return -weighted_sum(x.rates[:, None] * dampened(x, h), h["momentum"])
    return -x.rates[-1] * weighted_sum(dampened(x, h), h["momentum"])


@statement
def nesterov(x: History, h: Hyper) -> Array:
    return h["momentum"] * momentum(x, h) - x.rates[-1] * x.g[-1]


@statement
def asgd(x: History, h: Hyper) -> Array:
    """The regularised loss f + lambd/2 p^2 is descended; `test_the_average_of_asgd` has the average."""
    rate = x.rates[-1] * (1 + h["lambd"] * x.rates[-1] * (len(x.g) - 1)) ** -h["alpha"]
    return -rate * (x.g[-1] + h["lambd"] * x.p)


# From the signs of gradients


@statement
def delta_bar_delta(x: History, h: Hyper) -> Array:
    """Jacobs 1988, equations 3 to 5, for one weight."""

    def rate(g: list[float]) -> float:
        eta = x.start["eta"]
        for t, now in enumerate(g):
            bar = (1 - h["theta"]) * math.fsum(h["theta"] ** (t - 1 - i) * g[i] for i in range(t))
            if bar * now > 0:
                eta += h["kappa"]
            elif bar * now < 0:
                eta -= h["phi"] * eta
            eta = min(max(eta, h["eta_min"]), h["eta_max"])
        return eta

    return -each(rate, x.g) * x.g[-1]


@statement
def rprop(x: History, h: Hyper) -> Array:
    """Igel and Huesken 2003, iRprop-, for one weight."""

    def step(g: list[float]) -> float:
        size, before, now = x.start["step_size"], 0.0, 0.0
        for now in g:
            if before * now > 0:
                size = min(size * h["eta_plus"], h["step_max"])
            elif before * now < 0:
                size = max(size * h["eta_minus"], h["step_min"])
                now = 0.0
            before = now
        return -math.copysign(size, before) if before else 0.0

    return each(step, x.g)


@statement
def lion(x: History, h: Hyper) -> Array:
    past = average(x.g[:-1], h["beta2"])
    return -x.rates[-1] * np.sign(h["beta1"] * past + (1 - h["beta1"]) * x.g[-1])


# Scaled by past gradients


def root(square: Array, h: Hyper) -> Array:
    return (square + h["eps_in"]) ** 0.5 + h["eps_out"]


@statement
def adagrad(x: History, h: Hyper) -> Array:
    rate = x.rates[-1] / (1 + (len(x.g) - 1) * h["lr_decay"])
    return -rate * x.g[-1] / root(x.start["sum"] + np.einsum("ij,ij->j", x.g, x.g), h)


@statement
def adadelta(x: History, h: Hyper) -> Array:
    """Zeiler 2012, Algorithm 1: RMS[dx] of the steps before over RMS[g] of all gradients."""

    def rms(values: Sequence[Array]) -> Array:
        total = average(np.array(values) ** 2, h["rho"]) if values else 0.0
        return np.sqrt(total + h["eps"])

    moves: list[Array] = []
    for i, g in enumerate(x.g, 1):
        moves.append(-rms(moves) / rms(list(x.g[:i])) * g)
    return x.rates[-1] * moves[-1]


def scaled(x: History, h: Hyper, *, centered: bool = False) -> Array:
    """Each gradient over the root of the average, or of the weighted variance, at its step."""
    rows = []
    for g in histories(x.g):
        square = average(g * g, h["rho"], x.start["square_avg"])
        if centered:
            square = np.maximum(square - average(g, h["rho"]) ** 2, 0)
        rows.append(g[-1] / root(square, h))
    return np.array(rows)


def pushed(x: History, h: Hyper, d: Array) -> Array:
    if h.get("lr_inside", True):
        return -weighted_sum(x.rates[:, None] * d, h["momentum"])
    return -x.rates[-1] * weighted_sum(d, h["momentum"])


@statement
def rmsprop(x: History, h: Hyper) -> Array:
    return -x.rates[-1] * scaled(x, h)[-1]


@statement
def rmsprop_centered(x: History, h: Hyper) -> Array:
    return -x.rates[-1] * scaled(x, h, centered=True)[-1]


@statement
def rmsprop_momentum(x: History, h: Hyper) -> Array:
    return pushed(x, h, scaled(x, h))


@statement
def rmsprop_centered_momentum(x: History, h: Hyper) -> Array:
    return pushed(x, h, scaled(x, h, centered=True))


@statement
def rmsprop_nesterov(x: History, h: Hyper) -> Array:
    """Deep Learning book, Algorithm 8.6; the caller evaluates gradients at p + alpha*v."""
    return pushed(x, h, scaled(x, h))


# Adam and its variants


def adams_root(corrected: Array, x: History, h: Hyper) -> Array:
    """Of the corrected second moment; eps_hat: eps is added before the correction (Kingma and Ba 2015, section 2)."""
    eps = h["eps"] / math.sqrt(1 - h["beta2"] ** len(x.g)) if h.get("eps_hat") else h["eps"]
    return np.sqrt(corrected + h.get("eps_root", 0.0)) + eps


@statement
def adam(x: History, h: Hyper) -> Array:
    return -x.rates[-1] * mean(x.g, h["beta1"]) / adams_root(mean(x.g**2, h["beta2"]), x, h)


STATEMENTS["adamw"] = adam  # its decay is that of every rule


@statement
def amsgrad(x: History, h: Hyper) -> Array:
    """Reddi et al. 2018, Algorithm 2, with the corrections and eps of PyTorch and Keras, which the paper omits."""
    largest = np.max([average(g * g, h["beta2"]) for g in histories(x.g)], axis=0)
    return -x.rates[-1] * mean(x.g, h["beta1"]) / adams_root(largest / (1 - h["beta2"] ** len(x.g)), x, h)


@statement
def adamax(x: History, h: Hyper) -> Array:
    """Kingma and Ba 2015, equation 11: the largest of all decayed magnitudes."""
    u = np.max(weights(len(x.g), h["beta2"])[:, None] * (np.abs(x.g) + h["eps"]), axis=0)
    return -x.rates[-1] * mean(x.g, h["beta1"]) / u


@statement
def nadam(x: History, h: Hyper) -> Array:
    """Dozat 2016, Algorithm 2. The momenta mu_t only affect the step: the first moment decays by beta1."""
    t = len(x.g)
    mu = [h["beta1"] * (1 - 0.5 * 0.96 ** (h["momentum_decay"] * i)) for i in range(1, t + 2)]
    now = (1 - mu[t - 1]) * x.g[-1] / (1 - math.prod(mu[:t]))
    ahead = mu[t] * average(x.g, h["beta1"]) / (1 - math.prod(mu))
    return -x.rates[-1] * (now + ahead) / adams_root(mean(x.g**2, h["beta2"]), x, h)


@statement
def radam(x: History, h: Hyper) -> Array:
    """Liu et al. 2020, section 4.1: rho is the length of the window whose centre is that of the weights."""
    w = weights(len(x.g), h["beta2"])
    age = np.arange(len(x.g), 0, -1.0)
    rho = 2 * float(age @ w) / w.sum() - 1
    limit = 2 / (1 - h["beta2"]) - 1
    step = -x.rates[-1] * mean(x.g, h["beta1"])
    if rho <= 5:
        return step
    rectified = math.sqrt((rho - 4) / (limit - 4) * (rho - 2) / (limit - 2) * limit / rho)
    return step * rectified / adams_root(mean(x.g**2, h["beta2"]), x, {**h, "eps_hat": True})


@statement
def adabelief(x: History, h: Hyper) -> Array:
    """Zhuang et al. 2020, Algorithm 2."""
    misses = np.array([g[-1] - average(g, h["beta1"]) for g in histories(x.g)])
    s = weighted_sum((1 - h["beta2"]) * misses**2 + h["eps_root"], h["beta2"])
    return -x.rates[-1] * mean(x.g, h["beta1"]) / (np.sqrt(s / (1 - h["beta2"] ** len(x.g))) + h["eps"])


@statement
def yogi(x: History, h: Hyper) -> Array:
    """Zaheer et al. 2018, Algorithm 2, with Adam's corrections, as in the author's code in TensorFlow Addons."""
    t = len(x.g)

    def second(g: list[float]) -> float:
        v = x.start["exp_avg_sq"]
        for square in (now * now for now in g):
            if v < square:
                v += (1 - h["beta2"]) * square
            elif v > square:
                v -= (1 - h["beta2"]) * square
        return v

    first = average(x.g, h["beta1"], x.start["exp_avg"]) / (1 - h["beta1"] ** t)
    return -x.rates[-1] * first / adams_root(each(second, x.g) / (1 - h["beta2"] ** t), x, h)


@statement
def adan(x: History, h: Hyper) -> Array:
    """Xie et al. 2022, Algorithm 1, in the paper's betas, which are the weights of the new values."""
    new1, new2, new3 = 1 - h["beta1"], 1 - h["beta2"], 1 - h["beta3"]
    ahead = new2 if h["one_minus_beta2"] else 1 - new2
    d = np.array([np.zeros_like(x.p)] + [new - old for old, new in pairwise(x.g)])
    n = mean((x.g + ahead * d) ** 2, 1 - new3)
    direction = mean(x.g, 1 - new1) + ahead * mean(d, 1 - new2)
    return -x.rates[-1] * direction / (np.sqrt(n + h["eps_root"]) + h["eps"])


# Trajectories

# Values that differ from every default.
OTHERS = {
    "lr": 0.02,
    "lr_decay": 0.1,
    "momentum": 0.7,
    "dampening": 0.3,
    "kappa": 0.004,
    "phi": 0.3,
    "theta": 0.4,
    "eta_min": 0.01,
    "eta_max": 0.03,
    "rho": 0.8,
    "beta1": 0.7,
    "beta2": 0.95,
    "beta3": 0.6,
    "eps": 1e-3,
    "eps_in": 1e-2,
    "eps_out": 1e-3,
    "eps_root": 1e-2,
    "momentum_decay": 0.05,
    "eta_minus": 0.4,
    "eta_plus": 1.3,
    "step_min": 1e-2,
    "step_max": 0.03,
    "lambd": 0.03,
    "alpha": 0.6,
    "t0": 7.0,
}
COMMON = (
    {"weight_decay": 0.05, "decoupled": False},
    {"weight_decay": 0.05, "decoupled": True},
    {"maximize": True, "grad_scale": 0.5},
)
NONE = {"weight_decay": 0.0, "decoupled": False, "maximize": False, "grad_scale": 1.0}

After = tuple[Array, Sequence[Array]]
Update = Callable[..., After]
Setting = tuple[dict[str, float], dict[str, float]]


def settings(rule: adaptk.Rule) -> Iterator[Setting]:
    """Hyperparameters and initial states: those of each convention, and others with every flag on and off."""
    for convention in rule.conventions:
        yield rule.defaults(convention), rule.initial_states(convention)
    own = [h for h in rule.hyperparameters if not h.common]
    flags = [h.name for h in own if h.range == "bool"]
    values = {h.name: OTHERS[h.name] for h in own if h.name not in flags}
    options = {s.option: 0.3 for s in rule.states if s.option is not None}
    start = rule.initial_states("book", values, options)
    for states in itertools.product([False, True], repeat=len(flags)):
        yield {**NONE, **values, **dict(zip(flags, states, strict=True))}, start
    for common in COMMON:
        yield {**NONE, **values, **dict.fromkeys(flags, False), **common}, start


def problem() -> tuple[Array, Array]:
    """Gradients of different magnitudes; some are 0, and some keep their sign for many steps."""
    rng = np.random.default_rng(20240611)
    g = rng.normal(size=(STEPS, SIZE)) + np.linspace(0, 1, SIZE)
    g[rng.random(g.shape) < 0.1] = 0.0
    g[:3, 2] = 0.0
    return rng.normal(size=SIZE), g * 10.0 ** np.array([0, -3, 1, 0, -1, 0])


def rates(h: Hyper) -> Array:
    return np.where(np.arange(STEPS) < TURN, h["lr"], 0.3 * h["lr"])


def stated(rule: str, h: Hyper, start: Mapping[str, float]) -> Array:
    """The parameters after each step, from the formulation above."""
    p, given = problem()
    lr = rates(h)
    taken: list[Array] = []
    rows = []
    for t, g in enumerate(given, 1):
        g = (-1 if h["maximize"] else 1) * h["grad_scale"] * g
        taken.append(g if h["decoupled"] else g + h["weight_decay"] * p)
        if h["decoupled"]:
            p = p - lr[t - 1] * h["weight_decay"] * p
        p = p + STATEMENTS[rule](History(np.array(taken), lr[:t], p, start), h)
        rows.append(p)
    return np.array(rows)


def by_oracle(rule: str, p: Array, g: Array, states: Sequence[Array], t: int, h: Hyper) -> After:
    own = {name: value for name, value in h.items() if name not in NONE}
    return oracles.step(rule, p, g, states, step=t, hyper=own, **{name: h[name] for name in NONE})


def steps(step: Update, rule: str, h: Hyper, start: Mapping[str, float], given: Array | None = None) -> Iterator[After]:
    """The parameters and the states after each step, from state to state."""
    p, usual = problem()
    given = usual if given is None else given
    states: Sequence[Array] = [np.full_like(p, value) for value in start.values()]
    for t, (g, lr) in enumerate(zip(given, rates(h), strict=True), 1):
        p, states = step(rule, p, g, states, t, {**h, "lr": float(lr)})
        yield p, states


def error(got: Array, want: Array) -> float:
    """The largest deviation, relative to the value and the length of the path."""
    way = np.cumsum(np.abs(np.diff(want, axis=0, prepend=problem()[0][None])), axis=0)
    return float(np.max(np.abs(got - want) / (np.abs(want) + way)))


UPDATES = (by_oracle, _reference.update)


@pytest.mark.parametrize("rule", adaptk.rules().values(), ids=adaptk.rules())
def test_from_the_whole_history(rule: adaptk.Rule) -> None:
    for h, start in settings(rule):
        want = stated(rule.name, h, start)
        assert np.all(np.isfinite(want))
        for step in UPDATES:
            got = np.array([p for p, _ in steps(step, rule.name, h, start)])
            assert error(got, want) < TOLERANCE, (step.__name__, h, start)


@pytest.mark.parametrize("t0", [0, 7, STEPS])
def test_the_average_of_asgd(t0: int) -> None:
    """Polyak and Juditsky 1992: the mean of the parameters, here of all since the second step after t0."""
    h = {**adaptk.rules()["asgd"].defaults(), "lr": 0.1, "t0": float(t0)}
    for step in UPDATES:
        passed: list[Array] = []
        for t, (p, (ax,)) in enumerate(steps(step, "asgd", h, {"ax": 0.0}), 1):
            passed.append(p)
            np.testing.assert_allclose(ax, np.mean(passed[min(t, t0 + 2) - 1 :], axis=0), rtol=TOLERANCE)


def test_the_average_of_delta_bar_delta() -> None:
    """Jacobs 1988, equation 5: its weights add up to 1, which does not show in the rates."""
    h = adaptk.rules()["delta_bar_delta"].defaults()
    given = problem()[1]
    for step in UPDATES:
        for t, (_, (bar, _)) in enumerate(steps(step, "delta_bar_delta", h, {"bar": 0.0, "eta": 0.01}), 1):
            np.testing.assert_allclose(bar, average(given[:t], h["theta"]), rtol=TOLERANCE, atol=1e-16)


def test_zero_gradients_change_nothing() -> None:
    """No rule's initial states have a direction, except Yogi's in optax's convention."""
    still = np.zeros((STEPS, SIZE))
    for rule in adaptk.rules().values():
        for convention in rule.conventions:
            h = {**rule.defaults(convention), "weight_decay": 0.0, **({"lambd": 0.0} if rule.name == "asgd" else {})}
            for step in UPDATES:
                passed = [p for p, _ in steps(step, rule.name, h, rule.initial_states(convention), still)]
                moves = not all(np.array_equal(p, problem()[0]) for p in passed)
                assert moves == ((rule.name, convention) == ("yogi", "optax")), (rule.name, convention)


def slope(p: Array) -> Array:
    return np.array([0.3, 1.0, 2.0, 0.1, 4.0, 0.7]) * np.sinh(p)


@pytest.mark.parametrize("velocity", [False, True])
def test_nesterov_of_a_function(velocity: bool) -> None:
    """As in Nesterov 1983 and Sutskever et al. 2013: gradients are evaluated at the second sequence, ahead of the first
    one by the velocity. The rule's parameter is the point at which the gradient is evaluated."""
    lr, mu = 0.05, 0.8
    h = {**adaptk.rules()["nesterov"].defaults(), "lr": lr, "momentum": mu, "velocity": velocity}
    for step in UPDATES:
        p = x = y = theta = problem()[0]
        v = np.zeros_like(p)
        states: Sequence[Array] = [v]
        for t in range(1, STEPS + 1):
            p, states = step("nesterov", p, slope(p), states, t, h)
            y, before = x - lr * slope(x), y
            x = y + mu * (y - before)
            v = mu * v - lr * slope(theta + mu * v)
            theta = theta + v
            np.testing.assert_allclose(p, x, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(p, theta + mu * v, rtol=1e-12, atol=1e-14)


def test_polyaks_two_step_form() -> None:
    """Polyak 1964: the previous step, scaled, is added again."""
    h = {**adaptk.rules()["momentum"].defaults(), "lr": 0.05, "momentum": 0.8}
    for step in UPDATES:
        p = now = before = problem()[0]
        states: Sequence[Array] = [np.zeros_like(p)]
        for t in range(1, STEPS + 1):
            p, states = step("momentum", p, slope(p), states, t, h)
            now, before = now - 0.05 * slope(now) + 0.8 * (now - before), now
            np.testing.assert_allclose(p, now, rtol=1e-12, atol=1e-14)


# Implementations without a convention of their name. test_conventions.py has those with one.


def drive(optimizer: Any, p: Any, given: Array, lr: Array) -> Iterator[Array]:
    """The parameters after each step of an optimizer with PyTorch's interface."""
    import torch

    for g, rate in zip(given, lr, strict=True):
        p.grad = torch.from_numpy(g.copy())
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
        yield p.detach().numpy().copy()


@pytest.mark.full
@pytest.mark.parametrize("rule", ["radam", "adabelief", "yogi", "lion", "adan"])
def test_pytorch_optimizer(rule: str) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
    name = {"radam": "RAdam", "adabelief": "AdaBelief"}.get(rule, rule.capitalize())
    betas = {"beta1": 0.7, "beta2": 0.95, **({"beta3": 0.6} if rule == "adan" else {})}
    given = {"lr": 0.02, **betas}
    options: dict[str, Any] = {"lr": 0.02, "betas": tuple(betas.values()), "weight_decay": 0.0, "foreach": False}
    if rule != "lion":
        given["eps"] = options["eps"] = 1e-3
    if rule == "radam":
        options["degenerated_to_sgd"] = True  # the paper's first steps, which it skips by default
    if rule == "adabelief":
        given["eps_root"] = 1e-3  # one eps for both
    h = {**adaptk.rules()[rule].defaults(), **given}
    start = {s.name: 0.3 if rule == "yogi" else 0.0 for s in adaptk.rules()[rule].states}
    if rule == "yogi":
        options["initial_accumulator"] = 0.3
    p = torch.nn.Parameter(torch.from_numpy(problem()[0].copy()))
    theirs = drive(getattr(library, name)([p], **options), p, problem()[1], rates(h))
    assert error(np.array([p for p, _ in steps(by_oracle, rule, h, start)]), np.array(list(theirs))) < TOLERANCE


@pytest.mark.full
@pytest.mark.parametrize("beta2", [0.999, 0.9])
def test_optax_radam(beta2: float) -> None:
    """With an eps of 0, because optax adds it to the corrected root."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    h = {**adaptk.rules()["radam"].defaults(), "lr": 0.01, "beta2": beta2, "eps": 0.0}
    start, given = problem()
    given = np.where(given == 0, 1.0, given)  # otherwise 0 / 0
    rows = []
    with jax.enable_x64(True):
        peer = optax.radam(lambda count: jax.numpy.asarray(rates(h))[count], b2=beta2, eps=0.0)
        p = jax.numpy.asarray(start)
        state = peer.init(p)
        for g in given:
            updates, state = peer.update(jax.numpy.asarray(g), state, p)
            p = optax.apply_updates(p, updates)
            rows.append(np.asarray(p))
    ours = np.array([p for p, _ in steps(by_oracle, "radam", h, {"m": 0.0, "v": 0.0}, given)])
    assert error(ours, np.array(rows)) < 1e-12  # rho is a difference of numbers around 2 / (1 - beta2)


@pytest.mark.full
def test_optax_rprop() -> None:
    """It applies each step late, and none after a change of sign, but computes the same steps."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    h = {**adaptk.rules()["rprop"].defaults(), "step_max": 0.03}
    before, given = problem()
    with jax.enable_x64(True):
        peer = optax.rprop(h["lr"], max_step_size=h["step_max"])
        p = jax.numpy.asarray(before)
        state = peer.init(p)
        for g, (p, (_, size)) in zip(given, steps(by_oracle, "rprop", h, {"prev": 0.0, "size": h["lr"]}), strict=True):
            _, state = peer.update(jax.numpy.asarray(g), state)
            np.testing.assert_allclose(size, state[0].step_sizes, rtol=TOLERANCE)
            np.testing.assert_allclose(before - p, state[0].prev_updates, rtol=0, atol=1e-15)
            before = p
