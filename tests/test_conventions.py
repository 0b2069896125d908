"""Every convention against the system that it is named after: the defaults, and whole trajectories."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import adaptk
import numpy as np
import oracles
import pytest
from helpers import first_tier

# Keras chooses its backend when it is first imported. Its NumPy backend would round Python floats to float32.
os.environ.setdefault("KERAS_BACKEND", "jax" if find_spec("jax") else "torch")

# Keras over torch.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 60
TURN = 20  # the step after which a changing rate changes
SHAPES = ((7,), (4, 5))

# The defaults of these are checked against documentation (DOCUMENTED), their formulas by the oracles and by
# test_oracles_second_source.py.
NO_PEER = {
    "book": "a text, not a system",
    "tf1": "TensorFlow is too heavy to be a dependency of the tests for the sake of its retired optimizers",
}

# The class of a rule and the arguments that make it that rule.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "delta_bar_delta": ("DeltaBarDelta", {}),
    "adagrad": ("AdaGrad", {}),
    "rmsprop": ("RMSProp", {}),
    "rmsprop_centered": ("RMSProp", {"centered": True}),
    "rmsprop_momentum": ("RMSProp", {"momentum": 0.9}),
    "rmsprop_centered_momentum": ("RMSProp", {"centered": True, "momentum": 0.9}),
    "rmsprop_nesterov": ("RMSProp", {"nesterov": True}),
    "adadelta": ("AdaDelta", {}),
    "adam": ("Adam", {}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "adamw": ("AdamW", {}),
    "adamax": ("AdaMax", {}),
    "nadam": ("NAdam", {}),
    "radam": ("RAdam", {}),
    "rprop": ("RProp", {}),
    "asgd": ("ASGD", {}),
    "lion": ("Lion", {}),
    "adabelief": ("AdaBelief", {}),
    "yogi": ("Yogi", {}),
    "adan": ("Adan", {}),
}


# Access to the registry and the objects. Nothing below this group depends on their structure.


def defaults(rule: str, convention: str) -> dict[str, float]:
    return adaptk.rules()[rule].defaults(convention)


def initial_states(rule: str, convention: str) -> dict[str, float]:
    return adaptk.rules()[rule].initial_states(convention)


def listed_pairs() -> list[tuple[str, str]]:
    return [(name, convention) for name, rule in adaptk.rules().items() for convention in rule.conventions]


def optimizer_of(case: Case, params: list[np.ndarray]) -> adaptk.Optimizer:
    name, options = CLASSES[case.rule]
    initial = {} if case.initial is None else {"initial_accumulator_value": case.initial}
    arguments = {**options, **case.given(), **initial}
    optimizer = getattr(adaptk, case.class_name or name)(params, convention=case.convention, **arguments)
    assert optimizer.rules == (case.rule,)
    return optimizer


def state_of(optimizer: adaptk.Optimizer, index: int) -> dict[str, np.ndarray]:
    return dict(optimizer.state[index])


# The peers


@dataclass(frozen=True, eq=False)
class Peer:
    """How another system spells one of our rules.

    `arguments` maps our hyperparameters to the system's arguments, an entry of a tuple argument as (argument, index),
    and `initial` states to the arguments that set their initial values. `built_in` has the value of each hyperparameter
    that the system has no argument for; `options` make it that rule.
    """

    name: str
    arguments: Mapping[str, str | tuple[str, int]]
    built_in: Mapping[str, float] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def _torch(name: str, *, decay: bool = True, built_in: Mapping[str, float] | None = None, **arguments: Any) -> Peer:
    """A class of torch.optim. Those that take decoupled_weight_decay are coupled without it."""
    options = arguments.pop("options", {})
    initial = arguments.pop("initial", {})
    fixed = {"grad_scale": 1.0, **({} if decay else {"weight_decay": 0.0})}
    if "decoupled" not in arguments:
        fixed["decoupled"] = 0.0
    common = {"lr": "lr", "maximize": "maximize", **({"weight_decay": "weight_decay"} if decay else {})}
    return Peer(name, {**common, **arguments}, {**fixed, **(built_in or {})}, initial, options)


def _keras(name: str, *, built_in: Mapping[str, float] | None = None, **arguments: Any) -> Peer:
    """A class of keras.optimizers. All of them take weight_decay, and in all of them it is decoupled."""
    options = arguments.pop("options", {})
    initial = arguments.pop("initial", {})
    fixed = {"decoupled": 1.0, "maximize": 0.0, "grad_scale": 1.0}
    common = {"lr": "learning_rate", "weight_decay": "weight_decay"}
    return Peer(name, {**common, **arguments}, {**fixed, **(built_in or {})}, initial, options)


def _optax(name: str, *, built_in: Mapping[str, float] | None = None, **arguments: Any) -> Peer:
    """A function of optax. Few of them take weight_decay; whether it is decoupled depends on its place in the chain."""
    options = arguments.pop("options", {})
    initial = arguments.pop("initial", {})
    fixed = {"decoupled": 0.0, "maximize": 0.0, "grad_scale": 1.0}
    if "weight_decay" not in arguments:
        fixed["weight_decay"] = 0.0
    return Peer(name, {"lr": "learning_rate", **arguments}, {**fixed, **(built_in or {})}, initial, options)


_BETAS = {"beta1": ("betas", 0), "beta2": ("betas", 1)}
_BETA_1_2 = {"beta1": "beta_1", "beta2": "beta_2"}
_B1_B2 = {"beta1": "b1", "beta2": "b2"}

PEERS: dict[str, dict[str, Peer]] = {
    "torch": {
        "sgd": _torch("SGD"),
        "momentum": _torch(
            "SGD", momentum="momentum", dampening="dampening", built_in={"velocity": 0.0, "dampen_first": 0.0}
        ),
        "nesterov": _torch(
            "SGD",
            momentum="momentum",
            options={"nesterov": True},
            built_in={"velocity": 0.0, "dampen_first": 0.0, "dampening": 0.0},
        ),
        "adagrad": _torch(
            "Adagrad",
            lr_decay="lr_decay",
            eps_out="eps",
            built_in={"eps_in": 0.0},
            initial={"sum": "initial_accumulator_value"},
        ),
        "rmsprop": _torch("RMSprop", rho="alpha", eps_out="eps", built_in={"eps_in": 0.0}),
        "rmsprop_centered": _torch(
            "RMSprop", rho="alpha", eps_out="eps", built_in={"eps_in": 0.0}, options={"centered": True}
        ),
        "rmsprop_momentum": _torch(
            "RMSprop", rho="alpha", eps_out="eps", momentum="momentum", built_in={"eps_in": 0.0, "lr_inside": 0.0}
        ),
        "rmsprop_centered_momentum": _torch(
            "RMSprop",
            rho="alpha",
            eps_out="eps",
            momentum="momentum",
            built_in={"eps_in": 0.0, "lr_inside": 0.0},
            options={"centered": True},
        ),
        "adadelta": _torch("Adadelta", rho="rho", eps="eps"),
        "adam": _torch(
            "Adam", **_BETAS, eps="eps", decoupled="decoupled_weight_decay", built_in={"eps_root": 0.0, "eps_hat": 0.0}
        ),
        "amsgrad": _torch(
            "Adam",
            **_BETAS,
            eps="eps",
            decoupled="decoupled_weight_decay",
            built_in={"eps_root": 0.0, "eps_hat": 0.0},
            options={"amsgrad": True},
        ),
        "adamw": _torch("AdamW", **_BETAS, eps="eps", built_in={"decoupled": 1.0, "eps_root": 0.0, "eps_hat": 0.0}),
        "adamax": _torch("Adamax", **_BETAS, eps="eps"),
        "nadam": _torch(
            "NAdam", **_BETAS, eps="eps", momentum_decay="momentum_decay", decoupled="decoupled_weight_decay"
        ),
        "radam": _torch("RAdam", **_BETAS, eps="eps", decoupled="decoupled_weight_decay"),
        "rprop": _torch(
            "Rprop",
            decay=False,
            eta_minus=("etas", 0),
            eta_plus=("etas", 1),
            step_min=("step_sizes", 0),
            step_max=("step_sizes", 1),
        ),
        "asgd": _torch("ASGD", lambd="lambd", alpha="alpha", t0="t0"),
    },
    "keras": {
        "sgd": _keras("SGD"),
        "momentum": _keras(
            "SGD", momentum="momentum", built_in={"velocity": 1.0, "dampening": 0.0, "dampen_first": 1.0}
        ),
        "nesterov": _keras(
            "SGD",
            momentum="momentum",
            options={"nesterov": True},
            built_in={"velocity": 1.0, "dampening": 0.0, "dampen_first": 1.0},
        ),
        "adagrad": _keras(
            "Adagrad",
            eps_in="epsilon",
            built_in={"lr_decay": 0.0, "eps_out": 0.0},
            initial={"sum": "initial_accumulator_value"},
        ),
        "rmsprop": _keras("RMSprop", rho="rho", eps_in="epsilon", built_in={"eps_out": 0.0}),
        "rmsprop_centered": _keras(
            "RMSprop", rho="rho", eps_in="epsilon", built_in={"eps_out": 0.0}, options={"centered": True}
        ),
        "rmsprop_momentum": _keras(
            "RMSprop", rho="rho", eps_in="epsilon", momentum="momentum", built_in={"eps_out": 0.0, "lr_inside": 1.0}
        ),
        "rmsprop_centered_momentum": _keras(
            "RMSprop",
            rho="rho",
            eps_in="epsilon",
            momentum="momentum",
            built_in={"eps_out": 0.0, "lr_inside": 1.0},
            options={"centered": True},
        ),
        "adadelta": _keras("Adadelta", rho="rho", eps="epsilon"),
        "adam": _keras("Adam", **_BETA_1_2, eps="epsilon", built_in={"eps_root": 0.0, "eps_hat": 1.0}),
        "amsgrad": _keras(
            "Adam", **_BETA_1_2, eps="epsilon", built_in={"eps_root": 0.0, "eps_hat": 1.0}, options={"amsgrad": True}
        ),
        "adamw": _keras("AdamW", **_BETA_1_2, eps="epsilon", built_in={"eps_root": 0.0, "eps_hat": 1.0}),
        "nadam": _keras("Nadam", **_BETA_1_2, eps="epsilon", built_in={"momentum_decay": 1.0}),
        "lion": _keras("Lion", **_BETA_1_2),
    },
    "optax": {
        "sgd": _optax("sgd"),
        "momentum": _optax(
            "sgd", momentum="momentum", built_in={"velocity": 0.0, "dampening": 0.0, "dampen_first": 1.0}
        ),
        "nesterov": _optax(
            "sgd",
            momentum="momentum",
            options={"nesterov": True},
            built_in={"velocity": 0.0, "dampening": 0.0, "dampen_first": 1.0},
        ),
        "adagrad": _optax(
            "adagrad",
            eps_in="eps",
            built_in={"lr_decay": 0.0, "eps_out": 0.0},
            initial={"sum": "initial_accumulator_value"},
        ),
        "rmsprop": _optax(
            "rmsprop", rho="decay", eps_in="eps", built_in={"eps_out": 0.0}, initial={"square_avg": "initial_scale"}
        ),
        "rmsprop_centered": _optax(
            "rmsprop",
            rho="decay",
            eps_in="eps",
            built_in={"eps_out": 0.0},
            initial={"square_avg": "initial_scale"},
            options={"centered": True},
        ),
        "rmsprop_momentum": _optax(
            "rmsprop",
            rho="decay",
            eps_in="eps",
            momentum="momentum",
            built_in={"eps_out": 0.0, "lr_inside": 1.0},
            initial={"square_avg": "initial_scale"},
        ),
        "rmsprop_centered_momentum": _optax(
            "rmsprop",
            rho="decay",
            eps_in="eps",
            momentum="momentum",
            built_in={"eps_out": 0.0, "lr_inside": 1.0},
            initial={"square_avg": "initial_scale"},
            options={"centered": True},
        ),
        "adadelta": _optax("adadelta", rho="rho", eps="eps", weight_decay="weight_decay"),
        "adam": _optax("adam", **_B1_B2, eps="eps", eps_root="eps_root", built_in={"eps_hat": 0.0}),
        "adamw": _optax(
            "adamw",
            **_B1_B2,
            eps="eps",
            eps_root="eps_root",
            weight_decay="weight_decay",
            built_in={"decoupled": 1.0, "eps_hat": 0.0},
        ),
        "adamax": _optax("adamax", **_B1_B2, eps="eps"),
        "nadam": _optax("nadam", **_B1_B2, eps="eps", built_in={"momentum_decay": 1000.0}),
        "lion": _optax("lion", **_B1_B2, weight_decay="weight_decay", built_in={"decoupled": 1.0}),
        "adabelief": _optax("adabelief", **_B1_B2, eps="eps", eps_root="eps_root"),
        "yogi": _optax("yogi", **_B1_B2, eps="eps"),
        "adan": _optax(
            "adan",
            **_B1_B2,
            beta3="b3",
            eps="eps",
            eps_root="eps_root",
            weight_decay="weight_decay",
            built_in={"decoupled": 1.0, "one_minus_beta2": 1.0},
        ),
    },
}

# Arguments that select a rule rather than tune it: by default the system does not use the rule.
SWITCHES = {"momentum"}


def target(convention: str, peer: Peer) -> Any:
    """The function or class of the system; the test is skipped if the system is not installed."""
    if convention == "torch":
        return getattr(pytest.importorskip("torch").optim, peer.name)
    if convention == "optax":
        return getattr(pytest.importorskip("optax"), peer.name)
    pytest.importorskip(os.environ["KERAS_BACKEND"])
    return getattr(pytest.importorskip("keras").optimizers, peer.name)


def default_of(convention: str, peer: Peer, argument: str | tuple[str, int]) -> float | None:
    """The default in the system's own signature; None if the argument is required."""
    name, index = argument if isinstance(argument, tuple) else (argument, None)
    value = inspect.signature(target(convention, peer)).parameters[name].default
    if value is inspect.Parameter.empty:
        return None
    if value is None:
        # None disables the decay in Keras and optax; optax's adadelta without a rate does not descend.
        return 0.0 if name == "weight_decay" else None
    return value if index is None else value[index]


def translated(convention: str, peer: Peer, values: Mapping[str, float], initial: float | None) -> dict[str, Any]:
    """Our hyperparameters as the system's arguments. Omitted ones keep the system's defaults."""
    theirs: dict[str, Any] = dict(peer.options)
    entries: dict[str, dict[int, float]] = {}
    for ours, argument in peer.arguments.items():
        if isinstance(argument, str):
            if ours in values:
                theirs[argument] = values[ours]
        elif ours in values:
            entries.setdefault(argument[0], {})[argument[1]] = values[ours]
    for name, given in entries.items():
        whole = inspect.signature(target(convention, peer)).parameters[name].default
        theirs[name] = tuple(given.get(i, value) for i, value in enumerate(whole))
    if initial is not None:
        theirs.update(dict.fromkeys(peer.initial.values(), initial))
    return theirs


# A trajectory is the params after each step, flattened, and the last states if the system names them as we do.
Trajectory = tuple[np.ndarray, list[dict[str, np.ndarray]]]


@lru_cache
def problem() -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Params, and gradients for each step, whose values are exact in float32. Their magnitudes range from far below
    every eps to 10, and some are zero."""
    rng = np.random.default_rng(20240607)
    params = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    magnitudes = [10.0 ** rng.uniform(-10.0, 1.0, size=shape) for shape in SHAPES]
    grads = [
        [
            (magnitude * rng.normal(size=magnitude.shape) * (rng.random(magnitude.shape) > 0.1)).astype(np.float32)
            for magnitude in magnitudes
        ]
        for _ in range(STEPS)
    ]
    return params, grads


def inputs(dtype: str) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    params, grads = problem()
    return [p.astype(dtype) for p in params], [[g.astype(dtype) for g in step] for step in grads]


def row(arrays: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])


def run_torch(optimizer: Any, arguments: dict[str, Any], late_lr: float | None, dtype: str) -> Trajectory:
    import torch

    params, grads = inputs(dtype)
    tensors = [torch.tensor(p) for p in params]
    usual = torch.get_default_dtype()
    # The schedules of ASGD and NAdam are kept in this dtype, whatever that of the params is.
    torch.set_default_dtype(torch.float64)
    try:
        running = optimizer(tensors, foreach=False, **arguments)
        rows = []
        for t, step in enumerate(grads):
            if t == TURN and late_lr is not None:
                running.param_groups[0]["lr"] = late_lr
            for tensor, g in zip(tensors, step, strict=True):
                tensor.grad = torch.tensor(g)
            running.step()
            rows.append(row([tensor.numpy() for tensor in tensors]))
    finally:
        torch.set_default_dtype(usual)
    states = [
        {name: value.numpy() for name, value in running.state[tensor].items() if value.shape == tensor.shape}
        for tensor in tensors
    ]
    return np.stack(rows), states


@contextmanager
def keras_dtype(dtype: str) -> Iterator[None]:
    """Keras keeps the learning rate and schedules in floatx."""
    import keras

    usual = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        if keras.config.backend() == "jax":
            import jax

            with jax.enable_x64(True):
                yield
        else:
            yield
    finally:
        keras.config.set_floatx(usual)


def run_keras(optimizer: Any, arguments: dict[str, Any], late_lr: float | None, dtype: str) -> Trajectory:
    import keras

    params, grads = inputs(dtype)
    with keras_dtype(dtype):
        variables = [keras.Variable(p, dtype=dtype) for p in params]
        running = optimizer(**arguments)
        running.build(variables)
        rows = []
        for t, step in enumerate(grads):
            if t == TURN and late_lr is not None:
                running.learning_rate = late_lr
            running.apply([keras.ops.convert_to_tensor(g, dtype=dtype) for g in step])
            rows.append(row([keras.ops.convert_to_numpy(v.value) for v in variables]))
    return np.stack(rows), []


def run_optax(optimizer: Any, arguments: dict[str, Any], late_lr: float | None, dtype: str) -> Trajectory:
    import jax
    import optax

    params, grads = inputs(dtype)
    # In float32 too: the powers in its corrections would be float32 otherwise.
    with jax.enable_x64(True):
        arrays = [jax.numpy.asarray(p) for p in params]
        if late_lr is not None:
            early_lr = arguments["learning_rate"]
            arguments["learning_rate"] = lambda t: jax.numpy.where(t < TURN, early_lr, late_lr)
        running = optimizer(**arguments)
        state = running.init(arrays)
        rows = []
        for step in grads:
            updates, state = running.update([jax.numpy.asarray(g) for g in step], state, arrays)
            arrays = optax.apply_updates(arrays, updates)
            rows.append(row(arrays))
    return np.stack(rows), []


RUNNERS = {"torch": run_torch, "keras": run_keras, "optax": run_optax}


@dataclass(frozen=True)
class Case:
    rule: str
    convention: str
    label: str
    peer: Peer
    values: tuple[tuple[str, float], ...] = ()
    initial: float | None = None
    late_lr: float | None = None  # the rate after TURN steps
    class_name: str | None = None  # if it is not the class that CLASSES has for the rule

    def __str__(self) -> str:
        return "-".join([self.rule, self.convention, self.label])

    def given(self) -> dict[str, float]:
        """The hyperparameters that both sides are given."""
        switches = {name: value for name, value in CLASSES[self.rule][1].items() if name in SWITCHES}
        return {**switches, **dict(self.values)}


@lru_cache
def peer_trajectory(case: Case, dtype: str) -> Trajectory:
    values = case.given()
    if default_of(case.convention, case.peer, case.peer.arguments["lr"]) is None:
        values = {"lr": defaults(case.rule, case.convention)["lr"], **values}
    arguments = translated(case.convention, case.peer, values, case.initial)
    return RUNNERS[case.convention](target(case.convention, case.peer), arguments, case.late_lr, dtype)


def our_trajectory(case: Case, dtype: str) -> Trajectory:
    params, grads = inputs(dtype)
    optimizer = optimizer_of(case, params)
    rows = []
    for t, step in enumerate(grads):
        if t == TURN and case.late_lr is not None:
            optimizer.param_groups[0]["lr"] = case.late_lr
        optimizer.step(step)
        rows.append(row(params))
    return np.stack(rows), [state_of(optimizer, i) for i in range(len(params))]


def oracle_trajectory(case: Case) -> np.ndarray:
    """In float64, with the hyperparameters and initial states of the optimizer. No kernel runs."""
    params, grads = inputs("float64")
    optimizer = optimizer_of(case, params)
    states = [tuple(state_of(optimizer, i).values()) for i in range(len(params))]
    (group,) = optimizer.param_groups
    common = {name: group[name] for name in ("weight_decay", "decoupled", "maximize", "grad_scale")}
    hyper = {name: value for name, value in group.items() if name not in {"params", *common}}
    rows = []
    for t, step in enumerate(grads):
        if t == TURN and case.late_lr is not None:
            hyper["lr"] = case.late_lr
        for i, g in enumerate(step):
            params[i], states[i] = oracles.step(case.rule, params[i], g, states[i], step=t + 1, hyper=hyper, **common)
        rows.append(row(params))
    return np.stack(rows)


# Values that differ from every default, all given together.
OTHERS = {
    "lr": 0.02,
    "lr_decay": 0.1,
    "momentum": 0.7,
    "dampening": 0.3,
    "eps": 1e-4,
    "eps_in": 1e-5,
    "eps_out": 1e-3,
    "eps_root": 1e-6,
    "rho": 0.8,
    "beta1": 0.7,
    "beta2": 0.95,
    "beta3": 0.9,
    "momentum_decay": 0.05,
    "eta_minus": 0.4,
    "eta_plus": 1.3,
    "step_min": 1e-3,
    "step_max": 0.5,
    "lambd": 0.01,
    "alpha": 0.6,
    "t0": 7.0,
}


def cases_of(rule: str, convention: str) -> Iterator[Case]:
    peer = PEERS[convention][rule]
    others = tuple((name, OTHERS[name]) for name in peer.arguments if name in OTHERS)
    yield Case(rule, convention, "defaults", peer)
    yield Case(rule, convention, "others", peer, others, 0.3 if peer.initial else None)
    if rule != "asgd":
        # The forms of momentum differ only under a changing rate. torch's ASGD uses a new rate one step late.
        yield Case(rule, convention, "rates", peer, (("lr", 0.02),), late_lr=0.003)
    if "weight_decay" in peer.arguments:
        for label, decoupled in (("coupled", False), ("decoupled", True)):
            if "decoupled" in peer.arguments or peer.built_in["decoupled"] == decoupled:
                yield Case(rule, convention, label, peer, (("weight_decay", 0.05), ("decoupled", decoupled)))
    if "maximize" in peer.arguments:
        yield Case(rule, convention, "maximize", peer, (("maximize", True),))
    if rule == "amsgrad":
        adamw = replace(PEERS[convention]["adamw"], options=peer.options)
        yield Case(rule, convention, "adamw", adamw, class_name="AdamW")


PAIRS = [(rule, convention) for rule, convention in listed_pairs() if rule in PEERS.get(convention, {})]
CASES = [case for pair in PAIRS for case in cases_of(*pair)]
FIRST_CASES = [next(cases_of(*pair)) for pair in PAIRS]


def error(ours: np.ndarray, exact: np.ndarray) -> float:
    """The largest deviation relative to the value and to the length of the path, which may be long near 0."""
    start = row(inputs("float64")[0])
    way = np.cumsum(np.abs(np.diff(exact, axis=0, prepend=start[np.newaxis])), axis=0)
    return float(np.max(np.abs(ours - exact) / (np.abs(exact) + way)))


@pytest.mark.parametrize("case", first_tier(CASES, *FIRST_CASES), ids=str)
def test_float64_trajectory(case: Case) -> None:
    exact, their_states = peer_trajectory(case, "float64")
    ours, our_states = our_trajectory(case, "float64")
    assert np.all(np.isfinite(exact))
    assert error(ours, exact) < 1e-13
    assert error(oracle_trajectory(case), exact) < 1e-13
    for mine, theirs in zip(our_states, their_states, strict=bool(their_states)):
        assert set(mine) == set(theirs)
        for name, value in theirs.items():
            np.testing.assert_allclose(mine[name], value, rtol=1e-12, atol=1e-14 * np.abs(value).max(), err_msg=name)


# The formulas are compared in float64; in float32 no option has different arithmetic.
@pytest.mark.full
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in FIRST_CASES else pytest.mark.exhaustive) for case in CASES],
    ids=str,
)
def test_float32_trajectory(case: Case) -> None:
    """As near to the float64 trajectory as the peer's own float32, within a factor of 2, plus half an ulp per step for
    the decay's factor 1 - lr*w, which is rounded before it is used."""
    exact, _ = peer_trajectory(case, "float64")
    theirs, _ = peer_trajectory(case, "float32")
    ours, _ = our_trajectory(case, "float32")
    assert error(ours, exact) < 2.0 * error(theirs, exact) + STEPS * 2.0**-24


@pytest.mark.parametrize(("rule", "convention"), PAIRS)
def test_defaults(rule: str, convention: str) -> None:
    """Every hyperparameter: the default in the system's signature, or its built-in value."""
    peer = PEERS[convention][rule]
    ours = defaults(rule, convention)
    book = defaults(rule, "book")
    expected = dict(peer.built_in)
    for name, argument in peer.arguments.items():
        theirs = default_of(convention, peer, argument)
        expected[name] = book[name] if theirs is None or name in SWITCHES else float(theirs)
    assert ours == expected
    states = initial_states(rule, convention)
    for state, argument in peer.initial.items():
        assert states[state] == default_of(convention, peer, argument)


def test_every_convention_has_a_peer() -> None:
    assert set(CLASSES) == set(adaptk.rules())
    missing = [
        (rule, convention)
        for rule, convention in listed_pairs()
        if convention not in NO_PEER and rule not in PEERS.get(convention, {})
    ]
    assert missing == []


_TF1_RMSPROP = {"rho": 0.9, "eps_in": 1e-10, "eps_out": 0.0, "square_avg": 1.0}
_TF1_MOMENTUM = {"velocity": False, "dampening": 0.0}

# Hyperparameters and initial states as written: the Deep Learning book, the papers and their authors' code, and the API
# documentation of tf.compat.v1.train; rates that have no default there have none here.
DOCUMENTED: dict[str, dict[str, dict[str, float]]] = {
    "book": {
        "momentum": {"velocity": True, "dampening": 0.0},
        "nesterov": {"velocity": True, "dampening": 0.0},
        "delta_bar_delta": {
            "lr": 1e-2,
            "kappa": 1e-3,
            "phi": 0.1,
            "theta": 0.7,
            "eta_min": 0.0,
            "eta_max": np.inf,
            "bar": 0.0,
            "eta": 1e-2,
        },
        "adagrad": {"lr": 1e-2, "eps_in": 0.0, "eps_out": 1e-7, "sum": 0.0},
        "rmsprop": {"lr": 1e-3, "rho": 0.9, "eps_in": 1e-6, "eps_out": 0.0, "square_avg": 0.0},
        "rmsprop_centered": {"lr": 1e-3, "rho": 0.9, "eps_in": 1e-6, "eps_out": 0.0, "square_avg": 0.0},
        "rmsprop_momentum": {"lr": 1e-3, "rho": 0.9, "eps_in": 1e-6, "eps_out": 0.0, "lr_inside": True},
        "rmsprop_centered_momentum": {"lr": 1e-3, "rho": 0.9, "eps_in": 1e-6, "eps_out": 0.0, "lr_inside": True},
        "rmsprop_nesterov": {"lr": 1e-3, "rho": 0.9, "eps_in": 1e-6, "eps_out": 0.0, "square_avg": 0.0},
        "adadelta": {"lr": 1.0, "rho": 0.95, "eps": 1e-6},
        "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_root": 0.0, "eps_hat": False},
        "amsgrad": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_root": 0.0, "eps_hat": False},
        "adamw": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2, "decoupled": True},
        "adamax": {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999},
        "nadam": {"momentum_decay": 1 / 250},
        "radam": {"beta1": 0.9, "beta2": 0.999},
        "rprop": {"eta_minus": 0.5, "eta_plus": 1.2, "step_min": 1e-6, "step_max": 50.0},
        "asgd": {"alpha": 3 / 4},
        "lion": {"beta1": 0.9, "beta2": 0.99},
        "adabelief": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "exp_avg_var": 0.0},
        "yogi": {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-3, "exp_avg": 0.0, "exp_avg_sq": 1e-6},
        "adan": {"lr": 1e-3, "beta1": 1 - 0.02, "beta2": 1 - 0.08, "beta3": 1 - 0.01, "eps": 1e-8},
    },
    "tf1": {
        "sgd": {},
        "momentum": _TF1_MOMENTUM,
        "nesterov": _TF1_MOMENTUM,
        "adagrad": {"lr_decay": 0.0, "eps_in": 0.0, "eps_out": 0.0, "sum": 0.1},
        "rmsprop": _TF1_RMSPROP,
        "rmsprop_centered": _TF1_RMSPROP,
        "rmsprop_momentum": {**_TF1_RMSPROP, "lr_inside": True},
        "rmsprop_centered_momentum": {**_TF1_RMSPROP, "lr_inside": True},
        "adadelta": {"lr": 1e-3, "rho": 0.95, "eps": 1e-8},
        "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_root": 0.0, "eps_hat": True},
    },
}


@pytest.mark.parametrize(
    ("convention", "rule"), [(convention, rule) for convention in DOCUMENTED for rule in DOCUMENTED[convention]]
)
def test_documented_defaults(convention: str, rule: str) -> None:
    ours = {**defaults(rule, convention), **initial_states(rule, convention)}
    for name, value in DOCUMENTED[convention][rule].items():
        assert ours[name] == value, name


def test_every_tf1_rule_is_documented() -> None:
    assert {rule for rule, convention in listed_pairs() if convention == "tf1"} == set(DOCUMENTED["tf1"])
